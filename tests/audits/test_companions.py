"Companions: what is trained anew, from which start, with whose loss, and under which tag it is stored."

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmlit.audits.audit import audit
from mmlit.audits.companions import ResetError, _fresh_copy, check_reset, companion_runs
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, ConcatHead, SumHead
from mmlit.fusion.models import FusionModel, as_fusion
from mmlit.learner import Budget, multimodal_learner
from mmlit.methods.multimodal_loss import MultiProxyHead, ScaledSumHead


def stored_weights(folder):
    return {p.parent.name: torch.load(p, weights_only=True) for p in folder.rglob("*.pt")}


def untrained(notes):
    "What is said of these barely trained models, and nothing more."
    return all("training fell short" in note for note in notes)


@pytest.mark.parametrize(
    "module",
    [
        *(head((8, 8), 3) for head in (*HEADS.values(), MultiProxyHead, ScaledSumHead)),
        nn.LSTM(3, 4),
        nn.TransformerEncoderLayer(8, 2),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        nn.Embedding(5, 3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_fresh_copies_are_new(module):
    torch.manual_seed(0)
    new = _fresh_copy(module)
    changed = [not torch.equal(p, q) for p, q in zip(module.parameters(), new.parameters()) if p.ndim > 1]
    assert changed and all(changed)


def test_what_cannot_be_copied_is_named_with_the_remedy():
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

    with pytest.raises(ResetError, match=r"Locked cannot be copied \(one of a kind\), so .* pass encoders=") as caught:
        _fresh_copy(Locked(2, 2))
    assert caught.value.reason == "Locked cannot be copied (one of a kind)"


def test_constant_and_single_weights_are_no_sign_of_a_layer_that_is_not_reset():
    _fresh_copy(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.LayerNorm((2, 2))))


def test_companions_have_the_models_own_architecture(digits, small, tmp_path):
    def encoder():
        return nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 6))

    joint = FusionModel([encoder(), encoder()], ConcatHead((6, 6), 10))
    found = audit(joint, digits, small, out=tmp_path, progress=False)
    stored = stored_weights(tmp_path)
    for name in ("pretrained", "multi_loss", "interacting", "additive", "unimodal_left"):
        inside = "model." if name == "unimodal_left" else ""
        widths = [tuple(stored[name][f"{inside}encoders.0.{layer}.weight"].shape) for layer in (0, 2)]
        assert widths == [(24, 32), (6, 24)]
    assert untrained(found.notes)


def test_companions_of_named_encoders_have_the_whole_module(digits, small, tmp_path):
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = nn.ModuleDict({"a": nn.Linear(32, 8), "b": nn.Linear(32, 8)})
            self.top = nn.Sequential(nn.Tanh(), nn.Linear(16, 10))

        def forward(self, left, right):
            return self.top(torch.cat([self.towers["a"](left), self.towers["b"](right)], 1))

    model = as_fusion(Towers(), 2, encoders=["towers.a", "towers.b"])
    found = audit(model, digits, small, out=tmp_path, progress=False)
    stored = stored_weights(tmp_path)
    assert set(stored) == {"unimodal_left", "unimodal_right", "pretrained", "multi_loss", "additive"}
    assert untrained(found.notes)
    for name in ("pretrained", "multi_loss"):
        assert {"module.towers.a.weight", "module.towers.b.weight"} <= set(stored[name])
        assert not torch.equal(stored[name]["module.top.1.weight"], model.module.top[1].weight)


def test_companions_start_where_they_should(digits, subject, tmp_path):
    joint, _ = subject(0)
    # hardly a step: the weights are those of the start
    audit(joint, digits, Budget(epochs=1, lr=1e-12), out=tmp_path, progress=False)
    stored = stored_weights(tmp_path)

    def near(a, b):
        return torch.allclose(a, b, atol=1e-6)

    for m, name in enumerate(("left", "right")):
        trained = stored[f"unimodal_{name}"]["model.encoders.0.weight"]
        own, encoder = joint.encoders[m].weight, f"encoders.{m}.weight"
        assert near(stored["pretrained"][encoder], trained) and not near(trained, own)
        for run in ("multi_loss", "interacting", "additive"):
            assert not near(stored[run][encoder], own)
    for run in ("pretrained", "multi_loss"):
        assert not near(stored[run]["head.linear.weight"], joint.head.linear.weight)


def test_weights_that_encoders_come_with_tell_stored_runs_apart(digits, small, tmp_path):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        kept = [nn.Linear(32, 8) for _ in range(2)]
        model = FusionModel(copy.deepcopy(kept), ConcatHead((8, 8), 10))
        told = audit(model, digits, small, encoders=lambda kept=kept: copy.deepcopy(kept), out=tmp_path, progress=False)
        found.append(told.get("models", "log loss", "ensemble").mean)
    assert found[0] != found[1]


def test_companions_minimise_the_loss_of_the_learner(tmp_path):
    "With a loss that punishes one class only, everybody always answers the other."
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    data = MultimodalData("skewed", dict(a=rng.normal(size=(400, 3)) + y[:, None] / 2, b=rng.normal(size=(400, 3))), y)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 200.0]))
    learn = multimodal_learner(multimodal_dls(data, seed=0), width=8, loss_func=loss)
    with learn.no_bar(), learn.no_logging():
        learn.fit(10, 1e-2)
    found = audit(learn, out=tmp_path, progress=False)
    share = np.mean(found.first.y.numpy() == 1)
    assert "competition" not in found.advice.findings
    for m in ("joint", "unimodal a", "unimodal b", "ensemble"):
        assert abs(found.get("models", "accuracy", m).mean - share) < 0.15


@pytest.mark.parametrize("head", HEADS)
def test_what_a_head_can_do_is_asked_of_the_head(head, monkeypatch):
    own = type("Own", (HEADS[head],), {})
    monkeypatch.setitem(HEADS, "mine", own)
    runs = companion_runs(["a", "b", "c"], recipe_head="mine")
    assert ("interacting" in runs) == hasattr(own((1, 1, 1), 2), "contributions")
    assert list(runs) == list(companion_runs(["a", "b", "c"], recipe_head=head))


def test_planning_a_recipe_draws_nothing():
    state = torch.get_rng_state()
    companion_runs(["a", "b"], recipe_head="attention")
    assert torch.equal(state, torch.get_rng_state())


def test_tags_tell_architectures_apart_and_not_weights():
    def tag(*layers, joint=None):
        return companion_runs(["a", "b"], joint, lambda: [nn.Sequential(*map(_fresh_copy, layers))])["multi_loss"].tag

    class Scaled(nn.Linear):
        scale = 2.0

        def forward(self, x):
            return super().forward(x) * self.scale

    one, two = Scaled(3, 4), Scaled(3, 4)
    two.scale = 3.0  # an attribute that no repr shows
    tags = [tag(nn.Linear(3, 4)), tag(nn.Linear(3, 5)), tag(nn.Linear(3, 4, bias=False)), tag(one), tag(two)]
    assert len(set(tags)) == len(tags)
    assert tag(nn.Linear(3, 4)) == tags[0] and all(len(t) == 10 for t in tags)
    joint = FusionModel([nn.Linear(3, 4)] * 2, SumHead((4, 4), 2))
    assert tag(nn.Linear(3, 4), joint=joint) != tags[0]


def test_only_what_is_reset_is_checked():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))

    check_reset(as_fusion(Odd(), 2))  # one network: nothing of it is trained anew
    with pytest.raises(ResetError, match="Odd"):
        check_reset(FusionModel([nn.Linear(3, 2)] * 2, Odd()))
