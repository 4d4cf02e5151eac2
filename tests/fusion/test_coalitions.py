"Coalitions and pairings equal their loops for every head, in one call or in many, gradients included."

import copy

import pytest
import torch
from common import linear_model
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.coalitions import (
    absent_features,
    coalition_logits,
    coalitions,
    mask_features,
    pairing_logits,
    unimodal_logits,
)
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP

HEAD = pytest.mark.parametrize("name", HEADS)

MODALITIES = pytest.mark.parametrize("M", [2, 3, 4])


@HEAD
@MODALITIES
def test_coalitions_are_loops_over_the_head(name, M):
    model, xs = linear_model(name, M)
    zs = model.encode(*xs)
    fast = coalition_logits(model, zs)
    for s, present in enumerate(coalitions(M)):
        assert_close(fast[s], model.fuse(tuple(z if p else torch.zeros_like(z) for z, p in zip(zs, present))))
    assert_close(fast[-1], model(*xs))
    assert_close(unimodal_logits(model, zs), fast[[2**m for m in range(M)]])


@HEAD
@MODALITIES
def test_pairings_are_loops_over_rows(name, M):
    model, xs = linear_model(name, M)
    zs = tuple(z[:3] for z in model.encode(*xs))
    fast = pairing_logits(model, zs)
    for rows in torch.cartesian_prod(*[torch.arange(3)] * M):
        assert_close(fast[tuple(rows)], model.fuse(tuple(z[r : r + 1] for z, r in zip(zs, rows)))[0])


@HEAD
def test_one_sample(name):
    model, xs = linear_model(name, 3)
    zs = model.encode(*(x[:1] for x in xs))
    assert pairing_logits(model, zs).shape == (1, 1, 1, 3) and coalition_logits(model, zs).shape == (8, 1, 3)


@HEAD
def test_chunks_have_the_gradients_of_one_call(name):
    grads = []
    for memory in (2**28, 400):
        model, xs = linear_model(name, 3)
        coalition_logits(model, model.encode(*xs), memory=memory).pow(2).sum().backward()
        pairing_logits(model, model.encode(*xs), torch.tensor([[0, 1, 2], [3, 3, 0]]), memory=memory).pow(
            2
        ).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads):
        assert_close(a, b)


def test_dropped_features_get_exactly_no_gradient():
    zs = tuple(torch.randn(4, 3, requires_grad=True) for _ in range(2))
    keep = torch.tensor([[True, False], [False, True], [True, True], [True, False]])
    sum(z.pow(2).sum() for z in mask_features(zs, keep)).backward()
    for m, z in enumerate(zs):
        assert (z.grad[~keep[:, m]] == 0).all() and (z.grad[keep[:, m]] != 0).all()


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


def test_absent_features_give_each_module_its_own_mode_back():
    "Training with a frozen normalisation: the one stays in training mode, the other in evaluation mode."
    encoders = [nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    model = FusionModel(encoders, HEADS["sum"]((4, 4), 2)).train()
    encoders[0][1].eval()
    modes = [m.training for m in model.modules()]
    absent_features(model, [torch.randn(6, 5) for _ in range(2)], "zero_input")
    assert [m.training for m in model.modules()] == modes and not all(modes)


def test_unknown_names_are_refused_with_what_is_known():
    model, xs = linear_model("concat", 2)
    with pytest.raises(ValueError, match="did you mean 'zero_feature'..; known: zero_feature, zero_input"):
        absent_features(model, xs, "zero_features")
    with pytest.raises(ValueError, match="unknown strategy 'splt' .did you mean 'split'"):
        unimodal_logits(model, model.encode(*xs), "splt")
    with pytest.raises(ValueError, match="no meaning"):
        absent_features(model, xs, "mean_feature", zs=(torch.zeros(4, 3).long(),) * 2)
