"Coalitions and pairings equal their loops for every head, in one call or in many, gradients included."

import copy
import itertools

import pytest
import torch
from common import linear_model
from reads import Reads
from torch import nn
from torch.testing import assert_close

from mmlit.core import with_presence
from mmlit.fusion.coalitions import (
    absent_features,
    coalition_logits,
    coalitions,
    mask_features,
    pairing_logits,
    unimodal_logits,
)
from mmlit.fusion.heads import HEADS, FusionHead
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


# ---- what stands in the place of an absent modality, index types, memory


@HEAD
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_stands_for_an_absent_modality_is_seen_by_no_logit_and_no_gradient(name, value):
    model, xs = linear_model(name, 3)
    whole = [z.detach().requires_grad_() for z in model.encode(*xs)]
    spoilt = [z.detach().clone() for z in whole]
    spoilt[1][2, 0] = value
    spoilt = [z.requires_grad_() for z in spoilt]
    without, keep = ~coalitions(3)[:, 1], torch.tensor([[True, False, True]] * 4)
    head = list(model.head.parameters())

    def asked(zs):
        for logits in (
            coalition_logits(model, zs)[without],
            coalition_logits(model, zs, present=coalitions(3)[without]),
            coalition_logits(model, zs, memory=400)[without],
            unimodal_logits(model, zs)[[0, 2]],
            model.fuse(mask_features(zs, keep)),
            pairing_logits(model, zs, torch.tensor([[2, 1, 2], [0, 3, 2], [2, 2, 2]]))[:2],
        ):
            yield logits.detach(), *torch.autograd.grad(logits.square().sum(), [*head, zs[0], zs[2]], allow_unused=True)

    for ours, theirs in zip(asked(spoilt), asked(whole)):
        for a, b in zip(ours, theirs):
            assert (a is None) == (b is None)
            if a is not None:
                assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not coalition_logits(model, spoilt)[~without][:, 2].isfinite().all()  # and present it is seen


@HEAD
def test_an_index_is_an_index_whatever_integers_it_has(name):
    model, xs = linear_model(name, 2)
    zs, index = model.encode(*xs), torch.tensor([[0, 1], [3, 2], [1, 1]])
    expected = torch.cat([model.fuse((zs[0][i : i + 1], zs[1][j : j + 1])) for i, j in index])
    for kind in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        assert_close(pairing_logits(model, zs, index.to(kind)), expected)
    for bad in (index.bool(), index.float(), index - 1, index + 1, index[0], index[:, :1]):
        with pytest.raises(ValueError, match="index must hold"):
            pairing_logits(model, zs, bad)
    assert pairing_logits(model, zs, index[:0]).shape == (0, 3)


@HEAD
def test_memory_bounds_the_result_too(name):
    model, xs = linear_model(name, 3)
    zs = model.encode(*xs)
    for ask, size in ((coalition_logits, 8 * 4 * 3 * 4), (pairing_logits, 4**3 * 3 * 4)):
        assert ask(model, zs, memory=size).numel() * 4 == size
        with pytest.raises(ValueError, match=f"{size:,} bytes, more than memory"):
            ask(model, zs, memory=size - 1)
    with pytest.raises(ValueError, match="60 bytes, more than memory=59"):
        pairing_logits(model, zs, torch.zeros(5, 3).long(), memory=59)


def test_stand_ins_that_do_not_fit_are_refused():
    model, xs = linear_model("mlp", 2)
    zs = model.encode(*xs)
    for bad in (zs, [z[:1] for z in zs[:1]], [z[0] for z in zs], [z[:1, :2] for z in zs]):
        with pytest.raises(ValueError, match="2 stand-ins of one row"):
            coalition_logits(model, zs, absent=bad)


class Words(nn.Module):
    "The mean embedding of the tokens that the mask leaves; of none it is 0/0."

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)

    def forward(self, x):
        mask = x["attention_mask"][..., None]
        return (self.embedding(x["input_ids"]) * mask).sum(1) / mask.sum(1)


def test_a_dict_of_tensors_has_stand_ins_and_a_zero_that_means_nothing():
    text = dict(input_ids=torch.randint(0, 9, (6, 5)), attention_mask=torch.ones(6, 5))
    model = FusionModel([Words(), nn.Linear(3, 4)], HEADS["film"]((4, 4), 2))
    xs = (text, torch.randn(6, 3))
    for kind in ("zero_feature", "mean_feature"):
        absent = absent_features(model, xs, kind)
        assert coalition_logits(model, model.encode(*xs), absent=absent).isfinite().all()
    with pytest.raises(ValueError, match="not finite"):
        absent_features(model, xs, "zero_input")
    with pytest.raises(ValueError, match="no mask says"):
        absent_features(model, (dict(input_ids=text["input_ids"]), xs[1]), "zero_input")
    floats = EarlyFusion(nn.Identity(), 2)
    with pytest.raises(ValueError, match="got \\['dict', 'Tensor'\\].*name them"):
        coalition_logits(floats, floats.encode(*xs))


# ---- a step of training does not wait


def test_the_counter_of_reads_sees_each_kind_of_read():
    x = torch.arange(3.0)
    looks = [lambda: x.tolist(), lambda: x[0].item(), lambda: bool(x[0]), lambda: x[x > 1], lambda: x.nonzero()]
    looks += [lambda: float(x[1]), lambda: x.long().bincount(), lambda: x.cpu(), lambda: x.numpy()]
    for look in looks:
        with Reads() as reads:
            look()
        assert reads.seen
    with Reads() as reads:
        (x[torch.tensor([0, 1])] + x.where(x > 1, 0).sum()).exp()
    assert not reads.seen


@HEAD
@pytest.mark.parametrize("memory", [2**28, 400])
def test_coalitions_and_pairings_of_a_training_step_read_no_values(name, memory):
    model, xs = linear_model(name, 3)
    presence = torch.ones(len(xs[0]), 3).bool()
    presence[1, 2] = False
    given = [with_presence(x, there) for x, there in zip(xs, presence.T)]
    index = torch.tensor([[0, 1, 2], [3, 3, 0]])
    # the encoders look at who is there, with any method and with none
    zs = [z.detach().requires_grad_() for z in model.encode(*given)]
    with Reads() as reads:
        for kind in ("zero_feature", "zero_input", "mean_feature"):
            absent = absent_features(model, given, kind, zs, check=False)
            for there, apart in itertools.product((presence, None), (True, False)):
                coalition_logits(model, zs, None, absent, memory, there, apart).sum().backward(retain_graph=True)
        if name not in ("mlp", "attention"):  # all pairings of these are an index, and that is looked at
            pairing_logits(model, zs).sum().backward()
    assert not reads.seen
    with Reads() as reads:
        pairing_logits(model, zs, index)
    assert set(reads.seen) == {"tolist"}  # what a caller gives is looked at, on the CPU


def test_the_mean_stand_in_is_that_of_the_samples_that_have_it():
    model, xs = linear_model("concat", 2)
    presence = torch.tensor([[True, False], [True, True], [False, False], [True, False]])[: len(xs[0])]
    given = [with_presence(x, there) for x, there in zip(xs, presence.T)]
    zs = [z.detach().clone() for z in model.encode(*given)]
    zs[0][2] = float("nan")  # whatever stands there
    first, second = absent_features(model, given, "mean_feature", zs)
    assert_close(first, zs[0][[0, 1, 3]].mean(0, keepdim=True))
    assert_close(second, zs[1][[1]])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_rows_that_are_not_finite_spoil_no_others_in_any_mode(grad, training):
    torch.manual_seed(0)
    model = FusionModel([nn.Identity()] * 2, Filling((3, 4), 2)).train(training)
    zs = [torch.randn(5, 3), torch.randn(5, 4)]
    zs[0][1, 0] = float("nan")  # the head has an answer to this
    zs[1][3, 1] = float("inf")  # and none to that
    everyone = torch.ones(1, 2).bool()
    with torch.set_grad_enabled(grad):
        logits = coalition_logits(model, zs, everyone)[0]
    rows = torch.tensor([0, 1, 2, 4])
    filled = [torch.where(zs[0].isnan(), 0.0, zs[0]), zs[1]]
    assert_close(logits[rows], model.head.linear(torch.cat([z[rows] for z in filled], 1)))
    assert not logits[3].isfinite().any()
    if grad:  # the answer of a row with a NaN teaches, where the head has one
        (ours,) = torch.autograd.grad(logits[rows].sum(), model.head.linear.weight)
        assert_close(ours, torch.cat([z[rows] for z in filled], 1).sum(0).expand(2, -1))


def test_rows_are_scored_once_where_a_caller_vouches_for_them():
    model, xs = linear_model("mlp", 2)
    zs, rows = model.encode(*xs), []
    model.head.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    with torch.no_grad():
        expected = coalition_logits(model, zs)
    assert_close(coalition_logits(model, zs, apart=False), expected)
    assert_close(coalition_logits(model, zs), expected)
    assert rows == [16, 16, 16, 16]


def test_a_probe_enters_no_running_average():
    torch.manual_seed(0)
    model = FusionModel([nn.Identity()] * 2, Normed((3, 4), 2)).train()
    zs, once = [torch.randn(5, 3), torch.randn(5, 4)], copy.deepcopy(model)
    coalition_logits(model, zs, torch.ones(1, 2).bool())
    once.fuse(zs)
    assert model.head.norm.num_batches_tracked == 1 and model.training and model.head.norm.training
    assert_close(model.head.norm.running_mean, once.head.norm.running_mean)


class Filling(FusionHead):
    "A head that reads a NaN as a zero."

    def __init__(self, dims, n_classes):
        super().__init__(dims, n_classes)
        self.linear = nn.Linear(sum(dims), n_classes)

    def forward(self, zs):
        z = torch.cat(zs, 1)
        return self.linear(torch.where(z.isnan(), 0.0, z))


class Normed(FusionHead):
    def __init__(self, dims, n_classes):
        super().__init__(dims, n_classes)
        self.norm, self.linear = nn.BatchNorm1d(sum(dims)), nn.Linear(sum(dims), n_classes)

    def forward(self, zs):
        return self.linear(self.norm(torch.cat(zs, 1)))
