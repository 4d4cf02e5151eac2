"Gradient modulation (AGM): responses, muted passes, coefficients, routing of gradients, the callback's history."

import math
import warnings
from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import generator
from fastai.callback.core import Callback
from fastai.optimizer import SGD, OptimWrapper
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmlit.core import filled, presence_of, scale_grad
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.coalitions import coalitions
from mmlit.fusion.heads import HEADS, SequenceEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP
from mmlit.learner import multimodal_learner
from mmlit.methods.modulation import (
    _SCORE_FLOOR,
    ConditionalClip,
    GradientModulation,
    ResponseHistory,
    Shares,
    _depends_on_mode,
    _terms,
    hides_factors,
    modality_responses,
    modality_shares,
    modulated_logits,
    modulation_coefficients,
    muted_logits,
    regression_response_scores,
    response_scores,
    response_weights,
    routed_logits,
    routed_shares,
    routing_coefficients,
    update_history,
)
from mmlit.methods.shapley import random_orders, shapley_values, shapley_values_sampled

F64 = torch.float64
DIMS = (3, 4, 5, 6, 7)


def game(n, *shape, seed=0):
    return torch.randn(2**n, *shape, generator=generator(seed), dtype=F64)


def zero(*shape):
    return torch.zeros(shape, dtype=F64)


def model_of(n, head="mlp", n_classes=3, noisy=False, seed=0):
    torch.manual_seed(seed)

    def encoder(d):
        return nn.Sequential(nn.Linear(d, 6), *[nn.BatchNorm1d(6), nn.Dropout(0.4)][: 2 * noisy], nn.Tanh())

    return FusionModel([encoder(d) for d in DIMS[:n]], HEADS[head]([6] * n, n_classes)).double()


def data_of(n, size=7, n_classes=3, seed=0):
    return [torch.randn(size, d, generator=generator(seed), dtype=F64) for d in DIMS[:n]], torch.randint(
        0, n_classes, (size,), generator=generator(seed)
    )


def grads(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)


def cases(ns=(1, 2, 3, 4)):
    return [(n, h) for n, h in product(ns, HEADS) if n > 1 or h not in ("film", "gated")]


# ---- responses


@pytest.mark.parametrize("n", range(1, 6))
def test_responses_are_the_average_over_orders_plus_a_share_of_nothing(n):
    v = game(n, 2, 3)
    m = torch.zeros(n, 2, 3, dtype=F64)
    for order in permutations(range(n)):
        s = 0
        for i in order:
            m[i] += (v[s | 1 << i] - v[s]) / math.factorial(n)
            s |= 1 << i
    m += v[0] / n
    assert_close(modality_responses(v), m)
    assert_close(modality_responses(v).sum(0), v[-1])


@pytest.mark.parametrize("n", range(1, 6))
def test_the_empty_answer_does_not_count(n):
    v = game(n, 2, 3).requires_grad_()
    modality_responses(v)[0].sum().backward()
    assert (v.grad[0] == 0).all() and (v.grad[-1] != 0).all()
    w = v.detach().clone()
    w[0] = math.inf
    assert torch.equal(modality_responses(w), modality_responses(v.detach()))


@pytest.mark.parametrize("n", range(2, 6))
def test_response_axioms(n):
    v, w = game(n, 2, 3), game(n, 2, 3, seed=1)
    index = torch.arange(2**n)
    assert_close(modality_responses(v + 2 * w), modality_responses(v) + 2 * modality_responses(w))
    for i in range(n):
        dummy = v[index & ~(1 << i)]
        assert_close(modality_responses(dummy)[i], dummy[0] / n)  # phi_i = 0
    swap = [s & ~3 | (s & 1) << 1 | s >> 1 & 1 for s in range(2**n)]
    assert_close(*modality_responses(v + v[swap])[:2])


@pytest.mark.parametrize("n", range(1, 6))
def test_additive_game(n):
    g_x, g_0 = torch.randn(2, n, 4, 3, generator=generator(), dtype=F64)
    keep = coalitions(n).double()
    v = torch.einsum("sm,mbc->sbc", keep, g_x) + torch.einsum("sm,mbc->sbc", 1 - keep, g_0)
    assert_close(modality_responses(v), g_x - g_0 + g_0.sum(0) / n)
    assert_close(shapley_values(v), g_x - g_0)


@pytest.mark.parametrize("n, k", [(2, 2), (5, 4), (9, 2), (30, 6)])
def test_sampled_responses_sum_to_the_logits(n, k):
    present, weights = response_weights(n, random_orders(n, k, generator=generator()))
    v = torch.randn(len(present), 4, 3, generator=generator(), dtype=F64)
    assert_close(modality_responses(v, weights).sum(0), v[-1])
    kappa = torch.rand(n, generator=generator(), dtype=F64)
    v.requires_grad_()
    assert torch.equal(routed_logits(v, kappa, weights), v[-1])
    G = torch.randn(4, 3, generator=generator(), dtype=F64)
    (a,) = torch.autograd.grad((modulated_logits(modality_responses(v, weights), kappa) * G).sum(), v)
    (b,) = torch.autograd.grad((routed_logits(v, kappa, weights) * G).sum(), v)
    assert_close(a, b)


def test_exact_weights_name_their_coalitions_by_bit_mask():
    present, _ = response_weights(3)
    assert present.tolist() == [[bool(s & 1), bool(s & 2), bool(s & 4)] for s in range(8)]


def test_sampled_responses_are_unbiased():
    n, repeats = 4, 400
    v = game(n, 1, 2)
    draws = []
    for seed in range(repeats):
        present, weights = response_weights(n, random_orders(n, 4, generator=generator(seed)))
        draws.append(modality_responses(v[(present * 2 ** torch.arange(n)).sum(1)], weights))
    draws = torch.stack(draws)
    standard_error = draws.std(0) / repeats**0.5
    assert standard_error.max() < 0.05
    assert ((draws.mean(0) - modality_responses(v)).abs() / standard_error).max() < 4


def test_estimate_and_responses_agree():
    n = 5
    v = game(n, 2, 3)
    pick = lambda present: v[(present * 2 ** torch.arange(n)).sum(1)]
    present, weights = response_weights(n, random_orders(n, 6, generator=generator()))
    estimate = shapley_values_sampled(pick, n, 6, generator=generator())
    assert_close(modality_responses(pick(present), weights), estimate.values + v[0] / n)


# ---- muted passes


@pytest.mark.parametrize("n, head", cases())
@pytest.mark.parametrize("noisy", [True, False])
def test_muted_logits_are_full_passes_with_zero_inputs(n, head, noisy):
    model, (xs, _) = model_of(n, head, noisy=noisy), data_of(n)
    for e in model.encoders:
        if noisy:
            e[1].running_mean.normal_()
            e[1].running_var.uniform_(0.5, 2)
    state = {k: t.clone() for k, t in model.state_dict().items()}
    zs = model.encode(*xs)
    after_training_pass = {k: t.clone() for k, t in model.state_dict().items()}
    full = model.fuse(zs)
    v = muted_logits(model, xs, zs, full)
    assert all(torch.equal(t, after_training_pass[k]) for k, t in model.state_dict().items()) and model.training
    assert torch.equal(v[-1], full) and (v[0] == 0).all()
    model.eval()
    for s, present in list(enumerate(coalitions(n)))[1:-1]:
        expected = model(*(x if p else torch.zeros_like(x) for x, p in zip(xs, present)))
        assert_close(v[s], expected)
        for a, b in zip(grads(v[s].sin().sum(), model), grads(expected.sin().sum(), model)):
            assert_close(a, b)
    if not noisy:
        assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_features_are_reused_only_when_the_mode_does_not_matter():
    for noisy, frozen in (True, False), (True, True), (False, False):
        model, (xs, _) = model_of(2, noisy=noisy), data_of(2)
        if frozen:
            model.eval()
        rows = []
        for e in model.encoders:
            e.register_forward_hook(lambda m, i, o, rows=rows: rows.append(len(o)))
        muted_logits(model, xs)
        assert sum(rows) == 2 * (7 + 1 + 7 * (noisy and not frozen))


def test_given_features_are_enough_where_zero_features_stand_in():
    model, (xs, _) = model_of(3), data_of(3)
    zs = model.encode(*xs)
    calls = []
    for e in model.encoders:
        e.register_forward_hook(lambda *_: calls.append(1))
    v = muted_logits(model, xs, zs, absent="zero_feature")
    assert not calls
    for s, present in list(enumerate(coalitions(3)))[1:]:
        assert_close(v[s], model.fuse(tuple(z * there for z, there in zip(zs, present))))


def test_muted_passes_obey_the_memory():
    model, (xs, _) = model_of(3), data_of(3)
    expected, rows = muted_logits(model, xs), []
    model.head.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    zs, full = model.encode(*xs), expected[-1]
    row = 3 * 6 * 8  # three features of six numbers in double precision
    v = muted_logits(model, xs, zs, full, memory=10 * row)
    assert sum(rows) == 6 * 7 and max(rows) == 10
    assert_close(v, expected)
    with pytest.raises(ValueError, match="more than memory=1"):
        muted_logits(model, xs, zs, full, memory=1)


@pytest.mark.parametrize(
    "layer, expected",
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.BatchNorm2d(3), True),
        (nn.LayerNorm(3), False),
        (nn.BatchNorm1d(3, track_running_stats=False), False),
        (nn.GroupNorm(1, 3), False),
        (nn.LSTM(2, 3, 2, dropout=0.2), True),
        (nn.LSTM(2, 3), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    ],
)
def test_mode_dependence_is_seen(layer, expected):
    assert _depends_on_mode(nn.Sequential(layer).train()) == expected
    assert not _depends_on_mode(nn.Sequential(layer).eval())


def test_muting_early_fusion_means_zero_inputs():
    xs, _ = data_of(2)
    network = JoinedMLP([(3,), (4,)], 3).double()

    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network.layers

        def forward(self, *xs):
            return self.layers(torch.cat(xs, dim=1))

    v = muted_logits(EarlyFusion(Double(), 2), xs)
    assert_close(v[1], network.layers(torch.cat([xs[0], 0 * xs[1]], dim=1)))


class Recurrent(nn.Module):
    def __init__(self, channels, n_out):
        super().__init__()
        self.gru = nn.GRU(channels, n_out, 2, batch_first=True, dropout=0.3)

    def forward(self, x):
        return self.gru(x.transpose(1, 2))[0][:, -1]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
def test_recurrent_encoders_train_through_muted_passes(device):
    model = FusionModel([Recurrent(3, 6), SequenceEncoder(2, 6)], HEADS["mlp"]([6, 6], 3)).to(device)
    xs = [
        torch.randn(4, 3, 9, generator=generator()).to(device),
        torch.randn(4, 2, 9, generator=generator()).to(device),
    ]
    v = muted_logits(model, xs)
    F.cross_entropy(
        routed_logits(v, torch.tensor([0.5, 2.0], device=device)), torch.tensor([0, 1, 2, 0], device=device)
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_muting_rejects():
    model, (xs, _) = model_of(2), data_of(2)
    with pytest.raises(ValueError, match="last coalition"):
        muted_logits(model, xs, present=torch.eye(2).bool())
    with pytest.raises(ValueError, match="unknown stand-in"):
        muted_logits(model, xs, absent="nothing")
    for wrong in (torch.zeros(3, 2, 2), torch.zeros(1, 2, 2), torch.zeros(0, 2, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="2\\*\\*M"):
            modality_responses(wrong)


# ---- shares


@pytest.mark.parametrize("head", ["sum", "concat"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("noisy", [False, True])
def test_shares_of_a_sum_are_those_of_the_game_without_asking_the_head_for_coalitions(n, head, noisy):
    model, (xs, _) = model_of(n, head, noisy=noisy), data_of(n)
    zs = model.encode(*xs)
    full, asked = model.fuse(zs), []
    v = muted_logits(model, xs, zs, full)
    model.head.register_forward_hook(lambda *_: asked.append(1))
    shares = modality_shares(model, xs, zs, full)
    assert not asked and torch.equal(shares.full, full)
    assert_close(shares.responses.sum(0), full)
    assert_close(shares.alone, torch.stack([v[2**m] for m in range(n)]))
    if not noisy:
        assert_close(shares.responses, modality_responses(v))


class Averaged(nn.Module):
    "Adds what each modality says at each of its times, on average; a user's head that wants a tuple."

    def __init__(self):
        super().__init__()
        self.weights, self.calls = nn.Parameter(torch.randn(2, 3, 4, generator=generator(1)).double()), []

    def contributions(self, zs):
        self.calls.append([len(z) for z in zs])
        return torch.stack([zs[m].tanh().flatten(1, -2).mean(1) @ self.weights[m] for m in range(len(zs))])


@pytest.mark.parametrize("times, calls", [((5, 5), [[7, 7], [1, 1]]), ((2, 2), [[8, 8]])])
def test_terms_of_features_and_stand_ins_are_asked_for_together_where_they_fit(times, calls):
    "A stand-in of two times fits features of two times; those of five are longer."
    model = Averaged()
    zs = [torch.randn(7, t, 3, generator=generator(m)).double() for m, t in enumerate(times)]
    absent = [torch.randn(1, 2, 3, generator=generator(m)).double() for m in (2, 3)]
    there, gone = _terms(model, zs, absent)
    assert model.calls == calls
    for m in (0, 1):
        assert_close(there[m], zs[m].tanh().mean(1) @ model.weights[m])
        assert_close(gone[m], absent[m].tanh().mean(1) @ model.weights[m])


def test_routed_shares_of_half_precision_are_reckoned_in_single():
    own, total = (torch.randn(s, generator=generator(1)).bfloat16().requires_grad_() for s in ((2, 5, 3), (5, 3)))
    kappa, logits = torch.tensor([0.3, 1.8]), total.detach()
    out = routed_shares(logits, Shares(logits, total, own, own.detach()), kappa)
    assert out.dtype == torch.float32 and torch.equal(out, logits.float())
    to_own, to_total = torch.autograd.grad(out.sum(), [own, total])
    apart = (kappa - kappa.mean()).bfloat16()[:, None, None]
    assert_close(to_own, apart.expand_as(own))
    assert_close(to_total, kappa.mean().bfloat16().expand_as(total))


# ---- scores and coefficients


def test_scores_are_clamped_mean_log_likelihoods():
    m, y = torch.randn(3, 8, 4, generator=generator()), torch.randint(0, 4, (8,), generator=generator())
    for s, r in zip(response_scores(m, y), m):
        assert_close(s, -F.cross_entropy(r, y))
    assert abs(_SCORE_FLOOR + 18.42) < 0.001
    wrong = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    assert_close(response_scores(wrong, torch.tensor([1])), torch.tensor([_SCORE_FLOOR, 0.0]))
    half = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]])  # one sample at the floor, one perfect: the floor is per sample
    assert_close(response_scores(half, torch.tensor([1, 1])), torch.tensor([_SCORE_FLOOR / 2]))


def test_scores_of_dense_outputs():
    m, y = torch.randn(2, 5, 7, 4, generator=generator()), torch.randint(0, 4, (5, 7), generator=generator())
    assert_close(response_scores(m, y), torch.stack([-F.cross_entropy(r.flatten(0, 1), y.flatten()) for r in m]))


def test_scores_of_several_labels_are_those_of_coins():
    m = torch.randn(2, 5, 4, generator=generator())
    y = torch.randint(0, 2, (5, 4), generator=generator()).float()
    for labels in (y, y.long(), torch.zeros(5, 4), torch.ones(5, 4)):
        coins = [-F.binary_cross_entropy_with_logits(r, labels.float()) for r in m]
        assert_close(response_scores(m, labels), torch.stack(coins))


def test_scores_carry_no_gradient():
    m = torch.randn(2, 3, 4, requires_grad=True)
    s = response_scores(m, torch.tensor([0, 1, 2]))
    assert not s.requires_grad and not modulation_coefficients(s, torch.zeros(2)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_float32_at_least(dtype):
    s = response_scores(torch.randn(2, 3, 4, generator=generator()).to(dtype), torch.tensor([0, 1, 2]))
    assert s.dtype == torch.float32


def test_regression_scores():
    alone, y = torch.randn(3, 10, 2, generator=generator()), torch.randn(10, 2, generator=generator())
    for s, a in zip(regression_response_scores(alone, y, 0.5), alone):
        assert_close(s, -2 * (a - y).abs().mean())
    better = torch.stack([y + 0.1, y + 1.0])
    assert modulation_coefficients(regression_response_scores(better, y, 1.0), torch.zeros(2))[0] < 1


def ahead(s):
    return torch.stack(
        [torch.exp(sum(s[i] - s[j] for j in range(len(s)) if j != i) / (len(s) - 1)) for i in range(len(s))]
    )


@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("alpha, cap", [(0.0, 10.0), (1.0, 10.0), (2.5, 0.3), (1.0, math.inf)])
def test_coefficients_are_the_definition(n, alpha, cap):
    for seed in range(20):
        s, h = -2 * torch.rand(2, n, generator=generator(seed), dtype=F64)
        r, tau = ahead(s), ahead(h)
        assert_close(r.prod(), torch.ones((), dtype=F64))
        kappa = modulation_coefficients(s, h, alpha, cap)
        assert_close(kappa, torch.exp(alpha * (tau - r).clamp(max=cap)))
        assert (kappa <= torch.exp(alpha * tau.clamp(max=cap)) + 1e-12).all() and (kappa > 0).all()
        assert ((kappa < 1) == ((r > tau) & (alpha > 0))).all()  # weaker iff further ahead than in its history


def test_two_modalities_are_the_published_ratio():
    "r_1 = exp(CE_2 - CE_1), with cross-entropies."
    ce, mean_ce = torch.tensor([0.4, 1.3], dtype=F64), torch.tensor([0.9, 1.1], dtype=F64)
    r, tau = (ce[1] - ce[0]).exp(), (mean_ce[1] - mean_ce[0]).exp()
    assert_close(modulation_coefficients(-ce, -mean_ce, 1.5)[0], torch.exp(-1.5 * (r - tau)))


def test_neutral_cases():
    s = -torch.rand(4, generator=generator())
    one = torch.ones(4)
    assert torch.equal(modulation_coefficients(s, -one, alpha=0.0), one)
    assert_close(modulation_coefficients(s[0].expand(4), torch.zeros(4)), one)
    assert_close(modulation_coefficients(s, s), one)
    assert_close(modulation_coefficients(s - 2, s), one)
    assert torch.equal(modulation_coefficients(s[:1], -one[:1]), one[:1])


def test_constant_scores_modulate_the_first_step_only():
    s, history = torch.tensor([-0.3, -1.0]), torch.zeros(2)
    for step in range(1, 6):
        kappa = modulation_coefficients(s, history)
        assert (kappa.allclose(torch.ones(2), atol=1e-6)) == (step > 1)
        history = update_history(history, s, step)


@pytest.mark.parametrize("cap", [10.0, 1.0, 0.0])
def test_extreme_scores_stay_finite(cap):
    for s, h in product(([_SCORE_FLOOR, 0.0], [0.0, _SCORE_FLOOR], [-1e30, 0.0], [0.0, -1e30]), repeat=2):
        kappa = modulation_coefficients(torch.tensor(s), torch.tensor(h), 1.0, cap)
        assert kappa.isfinite().all() and (kappa >= 0).all() and kappa.max() <= math.exp(cap) * (1 + 1e-6)


def test_strength_and_cap_are_one_and_ten_unless_given():
    score, history = torch.zeros(2, dtype=F64), torch.tensor([0.0, -1.0], dtype=F64)
    kappa = torch.tensor([math.exp(math.e - 1), math.exp(1 / math.e - 1)], dtype=F64)
    assert_close(modulation_coefficients(score, history), kappa)
    assert_close(modulation_coefficients(score, 5 * history)[0].log(), torch.tensor(10.0, dtype=F64))  # e**5 - 1 is 147
    made = GradientModulation()
    assert (made.alpha, made.cap, made.start, made.end, made.mode, made.absent) == (
        1,
        10,
        0,
        None,
        "grad",
        "zero_input",
    )


def test_history_is_the_arithmetic_mean_and_can_be_resumed():
    scores, history = -torch.rand(50, 3, generator=generator(), dtype=F64), zero(3)
    for t, s in enumerate(scores, 1):
        history = update_history(history, s, t)
        assert_close(history, scores[:t].mean(0))
        if t == 20:
            saved = history.clone()
    for t, s in enumerate(scores[20:], 21):
        saved = update_history(saved, s, t)
    assert torch.equal(saved, history)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: modulation_coefficients(torch.zeros(2), torch.zeros(3)),
        lambda: modulation_coefficients(torch.zeros(2, 2), torch.zeros(2, 2)),
        lambda: modulation_coefficients(torch.zeros(2), torch.zeros(2), alpha=-1.0),
        lambda: modulation_coefficients(torch.zeros(2), torch.zeros(2), cap=-1.0),
        lambda: update_history(torch.zeros(2), torch.zeros(2), 0),
        lambda: response_scores(torch.zeros(2, 3, 4), torch.zeros(4).long()),
        lambda: response_scores(torch.zeros(2, 3, 4), torch.zeros(3)),
        lambda: response_scores(torch.zeros(3, 4), torch.zeros(4).long()),
        lambda: response_scores(torch.zeros(2, 3, 4), torch.tensor([0.0, 1.0, 0.5, 0.0]).expand(3, 4)),
        lambda: regression_response_scores(torch.zeros(2, 3), torch.zeros(4), 1.0),
        lambda: regression_response_scores(torch.zeros(2, 3), torch.zeros(3), -1.0),
        lambda: modulated_logits(torch.zeros(2, 3, 4), torch.ones(3)),
        lambda: routing_coefficients(torch.ones(2, 1)),
        lambda: routed_logits(torch.zeros(8, 3, 4), torch.ones(2)),
    ],
)
def test_bad_input_is_rejected(bad):
    with pytest.raises(ValueError):
        bad()


# ---- the gradient


@pytest.mark.parametrize("n", range(1, 6))
def test_routing_is_the_closed_form(n):
    kappa = torch.rand(n, generator=generator(n), dtype=F64) * 3
    v = game(n, 4, 3).requires_grad_()
    G = torch.randn(4, 3, generator=generator(), dtype=F64)
    (received,) = torch.autograd.grad((modulated_logits(modality_responses(v), kappa) * G).sum(), v)
    for s, present in enumerate(coalitions(n)):
        k = int(present.sum())
        if k == n:
            expected = kappa.mean()
        elif k == 0:
            expected = zero()
        else:
            expected = (kappa[present].mean() - kappa[~present].mean()) / math.comb(n, k)
        assert_close(received[s], expected * G)
        assert_close(routing_coefficients(kappa)[s], expected)
    (routed,) = torch.autograd.grad((routed_logits(v, kappa) * G).sum(), v)
    assert_close(routed, received)


@pytest.mark.parametrize("n, head", cases((2, 3, 4)))
def test_equal_coefficients_are_plain_training(n, head):
    model, (xs, y) = model_of(n, head), data_of(n)
    plain = grads(F.cross_entropy(model(*xs), y), model)
    for c in 1.0, 0.3, 1.1:
        v = muted_logits(model, xs)
        v.retain_grad()
        loss = F.cross_entropy(routed_logits(v, torch.full((n,), c, dtype=F64)), y)
        for a, b in zip(grads(loss, model), plain):
            assert_close(a, c * b, atol=1e-15, rtol=1e-10)
        loss.backward()
        assert (v.grad[:-1] == 0).all()  # exactly nothing through muted passes


@pytest.mark.parametrize("n, head", cases((2, 3, 4)))
def test_step_is_the_published_one(n, head):
    "Every pass a full one, responses by orders, a scaled gradient on each response."
    model, (xs, y) = model_of(n, head), data_of(n)
    kappa = torch.rand(n, generator=generator(), dtype=F64) * 3
    v = [model(*(x if p else torch.zeros_like(x) for x, p in zip(xs, present))) for present in coalitions(n)]
    m = [0] * n
    for order in permutations(range(n)):
        s = 0
        for i in order:
            m[i] = m[i] + (v[s | 1 << i] - v[s]) / math.factorial(n)
            s |= 1 << i
    naive = sum(k * (r - r.detach()) + r.detach() for k, r in zip(kappa, (r + v[0] / n for r in m)))
    expected = grads(F.cross_entropy(naive, y), model)
    for logits in (
        routed_logits(muted_logits(model, xs), kappa),
        modulated_logits(modality_responses(muted_logits(model, xs)), kappa),
    ):
        for a, b in zip(grads(F.cross_entropy(logits, y), model), expected):
            assert_close(a, b)


@pytest.mark.parametrize("head", ["sum", "concat"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_late_fusion_without_bias_scales_each_encoder(n, head):
    torch.manual_seed(0)
    model = FusionModel(
        [nn.Sequential(nn.Linear(d, 6, bias=False), nn.Tanh()) for d in DIMS[:n]], HEADS[head]([6] * n, 3)
    ).double()
    xs, y = data_of(n)
    kappa = torch.rand(n, generator=generator(), dtype=F64) * 3
    loss, plain = F.cross_entropy(routed_logits(muted_logits(model, xs), kappa), y), F.cross_entropy(model(*xs), y)
    for m, e in enumerate(model.encoders):
        a, b = (torch.autograd.grad(of, e[0].weight, retain_graph=True)[0] for of in (loss, plain))
        assert_close(a, kappa[m] * b)


def test_value_is_that_of_plain_training_bit_for_bit():
    for scale, dtype in product((1.0, 1e4), (torch.float32, torch.bfloat16)):
        v = (torch.randn(8, 5, 3, generator=generator()) * scale).to(dtype)
        out = routed_logits(v, torch.tensor([0.1, 1.0, 7.0]))
        assert torch.equal(out, v[-1].to(out.dtype))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7])
def test_extreme_logits_give_finite_losses_and_gradients(autocast, n, size):
    model, (xs, y) = model_of(n).float(), data_of(n, size)
    xs = [x.float() for x in xs]
    with torch.no_grad():
        model.head.layers[-1].weight.copy_(1e4 * model.head.layers[-1].weight.sign())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        v = muted_logits(model, xs)
        assert v.abs().max() > 1e3
        s = response_scores(modality_responses(v.detach()), y)
        kappa = modulation_coefficients(s, torch.zeros(n))
        for logits in routed_logits(v, kappa), modulated_logits(modality_responses(v), kappa):
            loss = F.cross_entropy(logits, y)
            assert loss.isfinite() and all(g.isfinite().all() for g in grads(loss, model))


# ---- training


def test_alpha_zero_is_plain_training_step_for_step():
    xs, y = data_of(3, 32)
    finals = []
    for modulated in True, False:
        model = model_of(3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        history = zero(3)
        for step in range(1, 6):
            if modulated:
                v = muted_logits(model, xs)
                s = response_scores(modality_responses(v.detach()), y)
                logits, history = (
                    routed_logits(v, modulation_coefficients(s, history, 0.0)),
                    update_history(history, s, step),
                )
            else:
                logits = model(*xs)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(*finals, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer, ratio",
    [(lambda p: torch.optim.SGD(p, 1e-3), 0.1), (lambda p: torch.optim.Adam(p, 1e-3, eps=1e-15), 1.0)],
)
def test_adam_hides_a_constant_factor(optimizer, ratio):
    def moved(k):
        w = torch.ones(10, dtype=F64, requires_grad=True)
        opt, A = optimizer([w]), torch.randn(10, 10, generator=generator(), dtype=F64)
        for _ in range(20):
            loss = (A @ scale_grad(w, k)).pow(2).sum() * 1e-3
            opt.zero_grad()
            loss.backward()
            opt.step()
        return (w.detach() - 1).norm()

    assert (moved(0.1) / moved(1.0)).item() == pytest.approx(ratio, rel=1e-3)


def test_an_optimiser_of_short_steps_can_hide_factors_too():
    def moved(gradient):
        w = nn.Parameter(torch.zeros(1))
        w.grad = torch.full((1,), gradient)
        torch.optim.Adadelta([w], lr=1.0).step()
        return w.abs().item()

    assert moved(1.0) < 0.01 and moved(0.1) > 0.9 * moved(1.0)
    assert hides_factors(OptimWrapper(nn.Linear(2, 2).parameters(), opt=torch.optim.Adadelta, lr=0.1))


# ---- the callback


def test_history_of_a_model_is_saved_and_reset():
    history, scores = ResponseHistory(2), -torch.rand(5, 2, generator=generator())
    for s in scores:
        history.update(s)
    assert_close(history.mean, scores.mean(0))
    assert int(history.steps) == 5

    other = ResponseHistory(2)
    other.load_state_dict(history.state_dict())
    assert torch.equal(other.mean, history.mean) and other.steps == 5
    other.reset()
    assert (other.mean == 0).all() and other.steps == 0 and other.spread == 0


def test_the_count_of_scores_is_exact_where_float32_is_not():
    history = ResponseHistory(2)
    history.steps += 2**24
    history.update(torch.zeros(2))
    assert int(history.steps) == 2**24 + 1


class Batches(Callback):
    "What the method sees."

    def before_fit(self):
        self.seen = []

    def before_batch(self):
        if self.training:
            self.seen.append((self.xb, self.yb[0]))


def trained_without_steps(y, method, *cbs):
    "A learner after an epoch at rate 0, and its batches; zero inputs have features other than zero."
    n = len(y)
    xs = {m: np.random.default_rng(k).normal(size=(n, 4)).astype("f") for k, m in enumerate("ab")}
    dls = multimodal_dls(xs, y, bs=16, device="cpu")
    torch.manual_seed(0)
    model = FusionModel([nn.Linear(4, 6), nn.Linear(4, 6)], HEADS["mlp"]([6, 6], dls.c))
    learn = multimodal_learner(dls, model, method=method, cbs=[*cbs, Batches()])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adam-like")
        learn.fit(1, 0.0)
    return learn.model, learn.batches.seen


def alone_and_together(model, xs, absent):
    zs = model.encode(*xs)
    gone = [
        torch.zeros_like(z) if absent == "zero_feature" else model.encode(*(0 * x for x in xs))[m]
        for m, z in enumerate(zs)
    ]
    return [model.fuse(z).detach() for z in ((zs[0], gone[1]), (gone[0], zs[1]), zs)]


@pytest.mark.parametrize("absent", ["zero_input", "zero_feature"])
def test_a_training_scores_with_the_stand_in_that_was_asked_for(absent):
    model, seen = trained_without_steps(np.arange(80) % 3, GradientModulation(absent=absent))
    scores = []
    for xs, y in seen:
        a, b, both = alone_and_together(model, xs, absent)
        responses = (both - b + a) / 2, (both - a + b) / 2
        scores.append(torch.stack([-F.cross_entropy(r, y) for r in responses]))
    assert_close(model.parts["response_history"].mean, torch.stack(scores).mean(0))


@pytest.mark.filterwarnings("ignore:samples of data lack a modality")
def test_only_modalities_that_are_there_and_have_a_history_are_compared():
    "The factors of three epochs at rate 0, by hand; a few samples have the third modality, and some batches have none."
    rng, n = np.random.default_rng(0), 96
    xs = {m: rng.normal(size=(n, 4)).astype("f") for m in "abc"}
    xs["c"][5:] = np.nan
    dls = multimodal_dls(xs, np.arange(n) % 3, bs=16, device="cpu")
    torch.manual_seed(0)
    model, method = FusionModel([nn.Linear(4, 6)] * 3, HEADS["sum"]([6] * 3, 3)), GradientModulation()
    learn = multimodal_learner(dls, model, method=method, cbs=[Batches()], opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, 0.0)

    scores, factors = [[] for _ in "abc"], []
    for inputs, y in learn.batches.seen:
        presence = presence_of(inputs)
        own = torch.stack(
            [c(e(filled(x))) - c(e(0 * filled(x))) for c, e, x in zip(model.head.linears, model.encoders, inputs)]
        )
        own = own.where(presence.T[..., None], 0).detach()
        responses = own + (model(*inputs).detach() - own.sum(0)) / 3
        now = {
            m: -F.cross_entropy(responses[m, presence[:, m]], y[presence[:, m]])
            for m in range(3)
            if presence[:, m].any()
        }
        compared = [m for m in now if scores[m]] or list(now)
        history = [torch.stack(s).mean() if s else torch.zeros(()) for s in scores]
        factors.append({m: torch.ones(()) for m in now})
        if len(compared) > 1:
            r, tau = ahead([now[m] for m in compared]), ahead([history[m] for m in compared])
            factors[-1] |= dict(zip(compared, (tau - r).clamp(max=10).exp()))
        for m, score in now.items():
            scores[m].append(score)
    lacking, epoch = [2 not in f for f in factors], len(dls.train)
    assert lacking[0] and not all(lacking[:epoch])
    for m, name in enumerate("abc"):
        for k, got in enumerate(method.history[f"kappa {name}"]):
            told = [f[m] for f in factors[k * epoch : (k + 1) * epoch] if m in f]
            assert_close(torch.tensor(got), torch.stack(told).mean(), rtol=1e-4, atol=1e-5)
        assert_close(model.parts["response_history"].mean[m], torch.stack(scores[m]).mean())


def test_a_regression_scores_each_modality_alone():
    y = np.random.default_rng(2).normal(size=80).astype("f")
    model, seen = trained_without_steps(y, GradientModulation())
    scores, deviations = [], []
    for xs, targets in seen:
        deviations.append((targets - targets.mean()).abs().mean())
        unit = sum(deviations) / len(deviations)
        answers = alone_and_together(model, xs, "zero_input")[:2]
        scores.append(torch.stack([-(a.flatten() - targets.flatten()).abs().mean() / unit for a in answers]))
    assert_close(model.parts["response_history"].mean, torch.stack(scores).mean(0))


def test_modulation_is_refused_beside_whatever_is_called_tcmax():
    class TCMax(Callback):
        "Not that of the library, which refuses modulation itself."

    with pytest.raises(ValueError, match="GradientModulation cannot be combined with TCMax"):
        trained_without_steps(np.arange(80) % 3, GradientModulation(), TCMax())


def test_unit_is_the_running_mean_deviation_of_the_targets():
    history, deviations = ResponseHistory(2), []
    for seed in range(4):
        y = torch.randn(30, 1, generator=generator(seed)) * (seed + 1)
        deviations.append((y - y.mean(0)).abs().mean())
        assert_close(history.unit(y), torch.stack(deviations).mean())
        history.update(torch.zeros(2))
    assert ResponseHistory(2).unit(torch.ones(4, 1)) > 0  # constant targets do not divide by zero


def test_a_lead_may_be_uncapped():
    assert GradientModulation(cap=math.inf).cap == math.inf
    assert GradientModulation(cap=0).cap == 0


@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(mode="sgd"), ValueError, "unknown mode 'sgd'; known: grad, lr"),
        (dict(absent="zero_inputs"), ValueError, "did you mean 'zero_input'"),
        (dict(alpha=-1.0), ValueError, "alpha must be a number in"),
        (dict(alpha=math.nan), ValueError, "alpha must be a number in"),
        (dict(cap=-1.0), ValueError, "cap must be a number in"),
        (dict(cap=math.nan), ValueError, "cap must be a number in"),
        (dict(start=-1), ValueError, "start must be a whole number"),
        (dict(start=0.5), ValueError, "start must be a whole number"),
        (dict(end=0), ValueError, "end must be a whole number, at least 1"),
        (dict(start=4, end=4), ValueError, "end must be a whole number, at least 5"),
        (dict(end=2.5), ValueError, "end must be a whole number"),
        (dict(alphas=2.0), TypeError, "alphas"),
    ],
)
def test_options_are_checked_when_the_callback_is_made(options, error, match):
    with pytest.raises(error, match=match):
        GradientModulation(**options)


# ---- clipping as in the public code


def clipped(threshold, head, rest, n_outputs=3):
    "The gradients after the step's clip: of the weight of a head, and of an encoder."
    model = FusionModel([nn.Linear(2, 2, bias=False)], nn.Linear(2, 3, bias=False))
    clip = ConditionalClip() if threshold is None else ConditionalClip(threshold)
    clip.learn = SimpleNamespace(model=model, dls=SimpleNamespace(c=n_outputs))
    clip.before_fit()
    weights = model.head.weight, model.encoders[0].weight
    for w, g in zip(weights, (head, rest)):
        w.grad = None if g is None else torch.full_like(w, g)
    clip.before_step()
    return [None if w.grad is None else w.grad.flatten() for w in weights]


@pytest.mark.parametrize("threshold", [None, 1.0, 2.0, 5.0])
def test_the_gradient_is_brought_to_the_threshold_where_an_entry_of_the_heads_exceeds_it(threshold):
    "Published: 1, which is what is taken where nothing is said."
    most = threshold or 1.0
    for head, rest in ((most, 100.0), (-most, 3.0), (0.5 * most, 100.0), (0.0, 100.0), (None, 100.0)):
        for got, given in zip(clipped(threshold, head, rest), (head, rest)):
            assert got is None if given is None else (got == given).all()
    for head, rest in ((1.01 * most, 0.0), (-3 * most, 100.0), (1.5 * most, None)):
        found, given = clipped(threshold, head, rest), (head, rest)
        norm = math.sqrt(6 * head**2 + 4 * (rest or 0) ** 2)
        for got, g in zip(found, given):
            assert got is None if g is None else torch.allclose(got, torch.full_like(got, g * most / norm), rtol=1e-5)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "1"])
def test_a_threshold_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^threshold must be a number in \(0, inf\)"):
        ConditionalClip(wrong)


def test_a_clip_without_a_layer_to_look_at_is_refused():
    with pytest.raises(ValueError, match="linear layers with 4 outputs, and Linear has none"):
        clipped(1.0, 1.0, 1.0, n_outputs=4)
