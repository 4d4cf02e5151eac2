"Heads, coalitions and pairings over numbers of modalities, dtypes and extremes."

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.coalitions import absent_features, coalition_logits, coalitions, mask_features, pairing_logits
from mmlit.fusion.coalitions import unimodal_logits
from mmlit.fusion.heads import HEADS, PictureEncoder, SequenceEncoder, SumHead, TokenEncoder, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP, as_fusion

HEAD = pytest.mark.parametrize("name", HEADS)
MODALITIES = pytest.mark.parametrize("M", [2, 3, 4])


def model_of(name, M, C=3, seed=0):
    torch.manual_seed(seed)
    dims = tuple(range(4, 4 + M))
    return FusionModel([nn.Linear(5, d) for d in dims], HEADS[name](dims, C)).eval(), tuple(
        torch.randn(4, 5) for _ in range(M)
    )


@HEAD
@MODALITIES
def test_coalitions_are_loops_over_the_head(name, M):
    model, xs = model_of(name, M)
    zs = model.encode(*xs)
    fast = coalition_logits(model, zs)
    for s, present in enumerate(coalitions(M)):
        assert_close(fast[s], model.fuse(tuple(z if p else torch.zeros_like(z) for z, p in zip(zs, present))))
    assert_close(fast[-1], model(*xs))
    assert_close(unimodal_logits(model, zs), fast[[2**m for m in range(M)]])


@HEAD
@MODALITIES
def test_pairings_are_loops_over_rows(name, M):
    model, xs = model_of(name, M)
    zs = tuple(z[:3] for z in model.encode(*xs))
    fast = pairing_logits(model, zs)
    for rows in torch.cartesian_prod(*[torch.arange(3)] * M):
        assert_close(fast[tuple(rows)], model.fuse(tuple(z[r : r + 1] for z, r in zip(zs, rows)))[0])


@HEAD
def test_one_sample(name):
    model, xs = model_of(name, 3)
    zs = model.encode(*(x[:1] for x in xs))
    assert pairing_logits(model, zs).shape == (1, 1, 1, 3) and coalition_logits(model, zs).shape == (8, 1, 3)


@HEAD
def test_chunks_have_the_gradients_of_one_call(name):
    grads = []
    for memory in (2**28, 200):
        model, xs = model_of(name, 3)
        coalition_logits(model, model.encode(*xs), memory=memory).pow(2).sum().backward()
        pairing_logits(model, model.encode(*xs), torch.tensor([[0, 1, 2], [3, 3, 0]]), memory=memory).pow(
            2
        ).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads):
        assert_close(a, b)


@HEAD
def test_every_parameter_of_a_head_gets_a_gradient(name):
    model, xs = model_of(name, 3)
    model(*xs).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@HEAD
def test_models_can_be_copied_pickled_and_moved_to_bfloat16(name):
    model, xs = model_of(name, 2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(twin(*xs), model(*xs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(coalition_logits(model, model.encode(*xs))).all()


def test_dropped_features_get_exactly_no_gradient():
    zs = tuple(torch.randn(4, 3, requires_grad=True) for _ in range(2))
    keep = torch.tensor([[True, False], [False, True], [True, True], [True, False]])
    sum(z.pow(2).sum() for z in mask_features(zs, keep)).backward()
    for m, z in enumerate(zs):
        assert (z.grad[~keep[:, m]] == 0).all() and (z.grad[keep[:, m]] != 0).all()


@pytest.mark.parametrize(
    "encoder, x",
    [
        (VectorEncoder(6), torch.randn(5, 6)),
        (PictureEncoder(), torch.randn(5, 3, 16, 16)),
        (SequenceEncoder(2), torch.randn(5, 2, 40)),
        (TokenEncoder(9), torch.randint(0, 9, (5, 4))),
    ],
)
def test_a_feature_does_not_depend_on_its_batch_nor_on_the_mode(encoder, x):
    whole = encoder.train()(x)
    assert_close(encoder.eval()(x), whole)
    assert_close(torch.cat([encoder(row) for row in x.split(1)]), whole, rtol=1e-4, atol=1e-6)


def test_absent_features_leave_the_mode_and_running_averages_alone():
    model = FusionModel(
        [nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)) for _ in range(2)], HEADS["sum"]((4, 4), 2)
    ).train()
    xs = tuple(torch.randn(6, 5) for _ in range(2))
    model(*xs)
    before = copy.deepcopy(model.state_dict())
    absent_features(model, xs, "zero_input")
    assert all(m.training for m in model.modules())
    for k, v in model.state_dict().items():
        assert_close(v, before[k])


def test_early_fusion_masks_its_inputs_tokens_included():
    early = EarlyFusion(JoinedMLP([(5,), (4,)], 3), 2)
    xs = torch.randn(6, 5), torch.randint(1, 9, (6, 4))
    logits = coalition_logits(early, early.encode(*xs))
    assert_close(logits[1], early(xs[0], torch.zeros_like(xs[1])))
    assert_close(logits[2], early(torch.zeros_like(xs[0]), xs[1]))


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
