"Models in two parts survive what people do to models: copies, pickles, casts, hooks."

import copy
import pickle

import pytest
import torch
from common import linear_model
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.coalitions import coalition_logits
from mmlit.fusion.heads import HEADS, InUnits, SumHead
from mmlit.fusion.models import FusionModel, as_fusion, unwrap
from mmlit.methods.multimodal_loss import MultiProxyHead

HEAD = pytest.mark.parametrize("name", HEADS)


@HEAD
def test_models_can_be_copied_pickled_and_moved_to_bfloat16(name):
    model, xs = linear_model(name, 2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(twin(*xs), model(*xs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(coalition_logits(model, model.encode(*xs))).all()


def test_the_head_of_a_foreign_module_runs_once_in_training():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.norm, self.out = (
                nn.Linear(3, 4),
                nn.Linear(2, 4),
                nn.BatchNorm1d(8),
                nn.Linear(8, 2),
            )

        def forward(self, a, b):
            return self.out(self.norm(torch.cat([self.left(a), self.right(b)], 1)))

    model = as_fusion(Foreign(), 2, encoders=["left", "right"])
    xs = torch.randn(6, 3), torch.randn(6, 2)
    model(*xs)[:, 0].sum().backward()
    assert model.module.norm.num_batches_tracked == 1 and model.module.left.weight.grad is not None
    twin = Foreign()
    twin.load_state_dict(model.module.state_dict())
    assert_close(model.eval()(*xs), twin.eval()(*xs))


def test_hooks_that_replace_features_may_go_first():
    model, seen = FusionModel([nn.Identity()] * 2, SumHead((3, 3), 2)), []
    model.register_feature_hook(lambda zs: seen.append([z.sum().item() for z in zs]))
    model.register_feature_hook(lambda zs: tuple(0 * z for z in zs), first=True)
    model(torch.ones(2, 3), torch.ones(2, 3))
    assert seen == [[0, 0]]


def test_learned_stand_ins_need_the_widths_of_the_features():
    with pytest.raises(ValueError, match="learn_absent needs the widths"):
        FusionModel([nn.Identity()], nn.Linear(3, 2), learn_absent=True)
    with pytest.raises(ValueError, match="has no submodule 'ear'"):
        as_fusion(nn.Sequential(nn.Linear(2, 2)), 2, encoders=["ear", "0"])


# ---- weights, and what torch puts around a model


def made(name="concat", parts=()):
    torch.manual_seed(1)
    model = FusionModel([nn.Linear(3, 4), nn.Linear(2, 4)], HEADS[name]((4, 4), 3))
    model.parts.update({p: nn.Linear(4, 1) for p in parts})
    return model


@HEAD
def test_weights_of_a_method_load_into_the_plain_model_and_not_the_other_way_round(name):
    trained, plain = made(name, ["mcr_heads"]), made(name)
    for p in trained.parameters():
        p.data.add_(1.0)
    assert not plain.load_state_dict(trained.state_dict()).unexpected_keys
    xs = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(plain(*xs), trained(*xs))
    with pytest.raises(RuntimeError, match=r"nothing for \['mcr_heads'\].*strict=False"):
        trained.load_state_dict(plain.state_dict())
    assert trained.load_state_dict(plain.state_dict(), strict=False).missing_keys
    some = {k: v for k, v in trained.state_dict().items() if "encoders.1" not in k}
    with pytest.raises(RuntimeError, match="encoders.1.weight"):  # parts are left out, and nothing else
        plain.load_state_dict(some)
    with pytest.raises(RuntimeError, match="surprise"):
        plain.load_state_dict(trained.state_dict() | {"surprise": torch.ones(1)})


def with_head(head):
    torch.manual_seed(1)
    return FusionModel([nn.Linear(3, 4), nn.Linear(2, 4)], head)


PAIRS = [(a, b) for a in HEADS for b in HEADS if set(made(a).state_dict()) != set(made(b).state_dict())]


@pytest.mark.parametrize("there, here", PAIRS)
def test_weights_of_another_head_are_refused_by_its_name(there, here):
    said = rf"model with .*{HEADS[there].__name__}.*this one has {HEADS[here].__name__}.*multimodal_learner\(dls, head="
    with pytest.raises(RuntimeError, match=said):
        made(here).load_state_dict(made(there).state_dict())


def test_weights_of_the_multimodal_loss_say_so_in_both_directions():
    dims = (4, 4), 3
    multi, plain = with_head(MultiProxyHead(*dims, k=5)), with_head(HEADS["concat"](*dims))
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="model with MultiProxyHead, and this one has ConcatHead.*head=MultiProxy"):
        plain.load_state_dict(multi.state_dict())
    with pytest.raises(RuntimeError, match="model with ConcatHead, and this one has MultiProxyHead.*as MultiModal"):
        multi.load_state_dict(nn.DataParallel(plain).state_dict())
    assert torch.equal(before, torch.get_rng_state())  # the heads that are tried draw from no generator of the caller


def test_heads_of_numbers_and_heads_of_ones_own_are_told_apart_as_well():
    inside = [InUnits(HEADS[name]((4, 4), 2), 1.0, 2.0) for name in ("sum", "concat")]
    with pytest.raises(RuntimeError, match="model with SumHead or ScaledSumHead, and this one has ConcatHead"):
        with_head(inside[1]).load_state_dict(with_head(inside[0]).state_dict())
    own = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(RuntimeError, match="model with another head, and this one has ConcatHead .they hold '0.bias'"):
        with_head(HEADS["concat"]((4, 4), 3)).load_state_dict(with_head(own).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):  # what has no widths cannot be compared: torch says it
        with_head(own).load_state_dict(made().state_dict())
    some = {k: v for k, v in made().state_dict().items() if k != "head.linear.bias"}
    with pytest.raises(RuntimeError, match="Missing key.*head.linear.bias"):
        made().load_state_dict(some)


AROUND = [
    nn.DataParallel,
    torch.compile,
    lambda m: torch.compile(nn.DataParallel(m)),
    lambda m: nn.DataParallel(torch.compile(m)),
]


@pytest.mark.parametrize("around", AROUND)
def test_wrappers_are_taken_off_and_their_checkpoints_load(around):
    model, xs = made(), (torch.randn(5, 3), torch.randn(5, 2))
    wrapped = around(model)
    assert unwrap(wrapped) is model and unwrap(model) is model
    twin = FusionModel([nn.Linear(3, 4), nn.Linear(2, 4)], HEADS["concat"]((4, 4), 3))
    twin.load_state_dict(wrapped.state_dict())
    assert torch.equal(twin(*xs), model(*xs))
    with pytest.raises(ValueError, match="give the model itself"):
        as_fusion(wrapped, 2)

    foreign = as_fusion(nn.Bilinear(3, 2, 4), 2)  # a name that looks like a wrapper's prefix stays
    again = as_fusion(nn.Bilinear(3, 2, 4), 2)
    again.load_state_dict(around(foreign).state_dict())
    assert torch.equal(again(*xs), foreign(*xs))


def test_a_model_compiled_in_place_keeps_its_names_and_its_hooks():
    model, xs, seen = made(), (torch.randn(5, 3), torch.randn(5, 2)), []
    expected, names = model(*xs), list(model.state_dict())
    model.compile(backend="eager")
    handle = model.register_feature_hook(lambda zs: seen.append(len(zs)))
    assert_close(model(*xs), expected)
    assert_close(model(*xs), expected)
    assert seen == [2, 2] and list(model.state_dict()) == names
    handle.remove()
    model(*xs)
    assert seen == [2, 2]
