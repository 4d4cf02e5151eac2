"Gradient modulation (AGM): responses, muted passes, coefficients, routing of gradients, competition strength."
import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmlit.fusion.coalitions import coalitions
from mmlit.fusion.heads import HEADS, SequenceEncoder, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP
from mmlit.audits.strength import competition_strength, competition_strength_of, penultimate_features, train_concepts
from mmlit.core import scale_grad
from mmlit.methods.modulation import SCORE_FLOOR, depends_on_mode, modality_responses, modulated_logits
from mmlit.methods.modulation import modulation_coefficients, muted_logits, response_scores, response_weights
from mmlit.methods.modulation import routed_logits, routing_coefficients, update_history
from mmlit.methods.modulation import regression_response_scores
from mmlit.methods.shapley import random_orders, shapley_values, shapley_values_sampled

F64 = torch.float64
DIMS = (3, 4, 5, 6, 7)


def gen(seed=0): return torch.Generator().manual_seed(seed)
def game(n, *shape, seed=0): return torch.randn(2**n, *shape, generator=gen(seed), dtype=F64)
def zero(*shape): return torch.zeros(shape, dtype=F64)

def model_of(n, head="mlp", n_classes=3, noisy=False, seed=0):
    torch.manual_seed(seed)
    def encoder(d): return nn.Sequential(nn.Linear(d, 6), *[nn.BatchNorm1d(6), nn.Dropout(.4)][:2*noisy], nn.Tanh())
    return FusionModel([encoder(d) for d in DIMS[:n]], HEADS[head]([6]*n, n_classes)).double()

def data_of(n, size=7, n_classes=3, seed=0):
    return [torch.randn(size, d, generator=gen(seed), dtype=F64) for d in DIMS[:n]], torch.randint(0, n_classes, (size,), generator=gen(seed))

def grads(loss, model): return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)
def cases(ns=(1, 2, 3, 4)): return [(n, h) for n, h in product(ns, HEADS) if n > 1 or h not in ("film", "gated")]


# ---- responses

@pytest.mark.parametrize("n", range(1, 6))
def test_responses_are_the_average_over_orders_plus_a_share_of_nothing(n):
    v = game(n, 2, 3)
    m = torch.zeros(n, 2, 3, dtype=F64)
    for order in permutations(range(n)):
        s = 0
        for i in order:
            m[i] += (v[s | 1 << i] - v[s])/math.factorial(n)
            s |= 1 << i
    m += v[0]/n
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
    assert_close(modality_responses(v + 2*w), modality_responses(v) + 2*modality_responses(w))
    for i in range(n):
        dummy = v[index & ~(1 << i)]
        assert_close(modality_responses(dummy)[i], dummy[0]/n)                 # phi_i = 0
    swap = [s & ~3 | (s & 1) << 1 | s >> 1 & 1 for s in range(2**n)]
    assert_close(*modality_responses(v + v[swap])[:2])


@pytest.mark.parametrize("n", range(1, 6))
def test_additive_game(n):
    g_x, g_0 = torch.randn(2, n, 4, 3, generator=gen(), dtype=F64)
    keep = coalitions(n).double()
    v = torch.einsum("sm,mbc->sbc", keep, g_x) + torch.einsum("sm,mbc->sbc", 1 - keep, g_0)
    assert_close(modality_responses(v), g_x - g_0 + g_0.sum(0)/n)
    assert_close(shapley_values(v), g_x - g_0)


@pytest.mark.parametrize("n, k", [(2, 2), (5, 4), (9, 2), (30, 6)])
def test_sampled_responses_sum_to_the_logits(n, k):
    present, weights = response_weights(n, random_orders(n, k, generator=gen()))
    v = torch.randn(len(present), 4, 3, generator=gen(), dtype=F64)
    assert_close(modality_responses(v, weights).sum(0), v[-1])
    kappa = torch.rand(n, generator=gen(), dtype=F64)
    v.requires_grad_()
    assert torch.equal(routed_logits(v, kappa, weights), v[-1])
    G = torch.randn(4, 3, generator=gen(), dtype=F64)
    a, = torch.autograd.grad((modulated_logits(modality_responses(v, weights), kappa)*G).sum(), v)
    b, = torch.autograd.grad((routed_logits(v, kappa, weights)*G).sum(), v)
    assert_close(a, b)


def test_sampled_responses_are_unbiased():
    n, repeats = 4, 400
    v = game(n, 1, 2)
    draws = []
    for seed in range(repeats):
        present, weights = response_weights(n, random_orders(n, 4, generator=gen(seed)))
        draws.append(modality_responses(v[(present*2**torch.arange(n)).sum(1)], weights))
    draws = torch.stack(draws)
    standard_error = draws.std(0)/repeats**.5
    assert standard_error.max() < .05
    assert ((draws.mean(0) - modality_responses(v)).abs()/standard_error).max() < 4


def test_estimate_and_responses_agree():
    n = 5
    v = game(n, 2, 3)
    pick = lambda present: v[(present*2**torch.arange(n)).sum(1)]
    present, weights = response_weights(n, random_orders(n, 6, generator=gen()))
    estimate = shapley_values_sampled(pick, n, 6, generator=gen())
    assert_close(modality_responses(pick(present), weights), estimate.values + v[0]/n)


# ---- muted passes

@pytest.mark.parametrize("n, head", cases())
@pytest.mark.parametrize("noisy", [True, False])
def test_muted_logits_are_full_passes_with_zero_inputs(n, head, noisy):
    model, (xs, y) = model_of(n, head, noisy=noisy), data_of(n)
    for e in model.encoders:
        if noisy: e[1].running_mean.normal_(); e[1].running_var.uniform_(.5, 2)
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
        for a, b in zip(grads(v[s].sin().sum(), model), grads(expected.sin().sum(), model)): assert_close(a, b)
    if not noisy: assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_features_are_reused_only_when_the_mode_does_not_matter():
    for noisy, frozen in (True, False), (True, True), (False, False):
        model, (xs, _) = model_of(2, noisy=noisy), data_of(2)
        if frozen: model.eval()
        rows = []
        for e in model.encoders: e.register_forward_hook(lambda m, i, o: rows.append(len(o)))
        muted_logits(model, xs)
        assert sum(rows) == 2*(7 + 1 + 7*(noisy and not frozen))


@pytest.mark.parametrize("layer, expected", [(nn.Dropout(.1), True), (nn.Dropout(0.), False), (nn.BatchNorm2d(3), True), (nn.LayerNorm(3), False),
                                              (nn.BatchNorm1d(3, track_running_stats=False), False), (nn.GroupNorm(1, 3), False),
                                              (nn.LSTM(2, 3, 2, dropout=.2), True), (nn.LSTM(2, 3), False), (nn.MultiheadAttention(4, 2, dropout=.1), True)])
def test_mode_dependence_is_seen(layer, expected):
    assert depends_on_mode(nn.Sequential(layer)) == expected
    assert not depends_on_mode(nn.Sequential(layer).eval())


def test_muting_early_fusion_means_zero_inputs():
    xs, _ = data_of(2)
    network = JoinedMLP([(3,), (4,)], 3).double()
    class Double(nn.Module):
        def __init__(self): super().__init__(); self.layers = network.layers
        def forward(self, *xs): return self.layers(torch.cat(xs, dim=1))
    v = muted_logits(EarlyFusion(Double(), 2), xs)
    assert_close(v[1], network.layers(torch.cat([xs[0], 0*xs[1]], dim=1)))


class Recurrent(nn.Module):
    def __init__(self, channels, n_out):
        super().__init__()
        self.gru = nn.GRU(channels, n_out, 2, batch_first=True, dropout=.3)
    def forward(self, x): return self.gru(x.transpose(1, 2))[0][:, -1]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))])
def test_recurrent_encoders_train_through_muted_passes(device):
    model = FusionModel([Recurrent(3, 6), SequenceEncoder(2, 6)], HEADS["mlp"]([6, 6], 3)).to(device)
    xs = [torch.randn(4, 3, 9, generator=gen()).to(device), torch.randn(4, 2, 9, generator=gen()).to(device)]
    v = muted_logits(model, xs)
    F.cross_entropy(routed_logits(v, torch.tensor([.5, 2.], device=device)), torch.tensor([0, 1, 2, 0], device=device)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_muting_rejects():
    model, (xs, _) = model_of(2), data_of(2)
    with pytest.raises(ValueError, match="last coalition"): muted_logits(model, xs, present=torch.eye(2).bool())
    with pytest.raises(ValueError, match="unknown stand-in"): muted_logits(model, xs, absent="nothing")
    with pytest.raises(ValueError, match="2\\*\\*M"): modality_responses(torch.zeros(3, 2, 2))


# ---- scores and coefficients

def test_scores_are_clamped_mean_log_likelihoods():
    m, y = torch.randn(3, 8, 4, generator=gen()), torch.randint(0, 4, (8,), generator=gen())
    for s, r in zip(response_scores(m, y), m): assert_close(s, -F.cross_entropy(r, y))
    assert abs(SCORE_FLOOR + 18.42) < .001
    wrong = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    assert_close(response_scores(wrong, torch.tensor([1])), torch.tensor([SCORE_FLOOR, 0.]))
    half = torch.tensor([[[1e4, 0.], [0., 1e4]]])                          # one sample at the floor, one perfect: the floor is per sample
    assert_close(response_scores(half, torch.tensor([1, 1])), torch.tensor([SCORE_FLOOR/2]))


def test_scores_of_dense_outputs():
    m, y = torch.randn(2, 5, 7, 4, generator=gen()), torch.randint(0, 4, (5, 7), generator=gen())
    assert_close(response_scores(m, y), torch.stack([-F.cross_entropy(r.flatten(0, 1), y.flatten()) for r in m]))


def test_scores_carry_no_gradient():
    m = torch.randn(2, 3, 4, requires_grad=True)
    s = response_scores(m, torch.tensor([0, 1, 2]))
    assert not s.requires_grad and not modulation_coefficients(s, torch.zeros(2)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_float32_at_least(dtype):
    s = response_scores(torch.randn(2, 3, 4, generator=gen()).to(dtype), torch.tensor([0, 1, 2]))
    assert s.dtype == torch.float32


def test_regression_scores():
    alone, y = torch.randn(3, 10, 2, generator=gen()), torch.randn(10, 2, generator=gen())
    for s, a in zip(regression_response_scores(alone, y, .5), alone): assert_close(s, -2*(a - y).abs().mean())
    better = torch.stack([y + .1, y + 1.])
    assert modulation_coefficients(regression_response_scores(better, y, 1.), torch.zeros(2))[0] < 1


def ahead(s): return torch.stack([torch.exp(sum(s[i] - s[j] for j in range(len(s)) if j != i)/(len(s) - 1)) for i in range(len(s))])

@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("alpha, cap", [(0., 10.), (1., 10.), (2.5, .3), (1., math.inf)])
def test_coefficients_are_the_definition(n, alpha, cap):
    for seed in range(20):
        s, h = -2*torch.rand(2, n, generator=gen(seed), dtype=F64)
        r, tau = ahead(s), ahead(h)
        assert_close(r.prod(), torch.ones((), dtype=F64))
        kappa = modulation_coefficients(s, h, alpha, cap)
        assert_close(kappa, torch.exp(alpha*(tau - r).clamp(max=cap)))
        assert (kappa <= torch.exp(alpha*tau.clamp(max=cap)) + 1e-12).all() and (kappa > 0).all()
        assert ((kappa < 1) == ((r > tau) & (alpha > 0))).all()            # weaker iff further ahead than in its history


def test_two_modalities_are_the_published_ratio():
    "r_1 = exp(CE_2 - CE_1), with cross-entropies."
    ce, mean_ce = torch.tensor([.4, 1.3], dtype=F64), torch.tensor([.9, 1.1], dtype=F64)
    r, tau = (ce[1] - ce[0]).exp(), (mean_ce[1] - mean_ce[0]).exp()
    assert_close(modulation_coefficients(-ce, -mean_ce, 1.5)[0], torch.exp(-1.5*(r - tau)))


def test_neutral_cases():
    s = -torch.rand(4, generator=gen())
    one = torch.ones(4)
    assert torch.equal(modulation_coefficients(s, -one, alpha=0.), one)
    assert_close(modulation_coefficients(s[0].expand(4), torch.zeros(4)), one)
    assert_close(modulation_coefficients(s, s), one)
    assert_close(modulation_coefficients(s - 2, s), one)
    assert torch.equal(modulation_coefficients(s[:1], -one[:1]), one[:1])


def test_constant_scores_modulate_the_first_step_only():
    s, history = torch.tensor([-.3, -1.]), torch.zeros(2)
    for step in range(1, 6):
        kappa = modulation_coefficients(s, history)
        assert (kappa.allclose(torch.ones(2), atol=1e-6)) == (step > 1)
        history = update_history(history, s, step)


@pytest.mark.parametrize("cap", [10., 1., 0.])
def test_extreme_scores_stay_finite(cap):
    for s, h in product(([SCORE_FLOOR, 0.], [0., SCORE_FLOOR], [-1e30, 0.], [0., -1e30]), repeat=2):
        kappa = modulation_coefficients(torch.tensor(s), torch.tensor(h), 1., cap)
        assert kappa.isfinite().all() and (kappa >= 0).all() and kappa.max() <= math.exp(cap)*(1 + 1e-6)


def test_history_is_the_arithmetic_mean_and_can_be_resumed():
    scores, history = -torch.rand(50, 3, generator=gen(), dtype=F64), zero(3)
    for t, s in enumerate(scores, 1):
        history = update_history(history, s, t)
        assert_close(history, scores[:t].mean(0))
        if t == 20: saved = history.clone()
    for t, s in enumerate(scores[20:], 21): saved = update_history(saved, s, t)
    assert torch.equal(saved, history)


@pytest.mark.parametrize("bad", [
    lambda: modulation_coefficients(torch.zeros(2), torch.zeros(3)),
    lambda: modulation_coefficients(torch.zeros(2, 2), torch.zeros(2, 2)),
    lambda: modulation_coefficients(torch.zeros(2), torch.zeros(2), alpha=-1.),
    lambda: modulation_coefficients(torch.zeros(2), torch.zeros(2), cap=-1.),
    lambda: update_history(torch.zeros(2), torch.zeros(2), 0),
    lambda: response_scores(torch.zeros(2, 3, 4), torch.zeros(4).long()),
    lambda: response_scores(torch.zeros(2, 3, 4), torch.zeros(3)),
    lambda: response_scores(torch.zeros(3, 4), torch.zeros(4).long()),
    lambda: regression_response_scores(torch.zeros(2, 3), torch.zeros(4), 1.),
    lambda: regression_response_scores(torch.zeros(2, 3), torch.zeros(3), -1.),
    lambda: modulated_logits(torch.zeros(2, 3, 4), torch.ones(3)),
    lambda: routing_coefficients(torch.ones(2, 1)),
    lambda: routed_logits(torch.zeros(8, 3, 4), torch.ones(2)),
])
def test_bad_input_is_rejected(bad):
    with pytest.raises(ValueError): bad()


# ---- the gradient

@pytest.mark.parametrize("n", range(1, 6))
def test_routing_is_the_closed_form(n):
    kappa = torch.rand(n, generator=gen(n), dtype=F64)*3
    v = game(n, 4, 3).requires_grad_()
    G = torch.randn(4, 3, generator=gen(), dtype=F64)
    received, = torch.autograd.grad((modulated_logits(modality_responses(v), kappa)*G).sum(), v)
    for s, present in enumerate(coalitions(n)):
        k = int(present.sum())
        if k == n: expected = kappa.mean()
        elif k == 0: expected = zero()
        else: expected = (kappa[present].mean() - kappa[~present].mean())/math.comb(n, k)
        assert_close(received[s], expected*G)
        assert_close(routing_coefficients(kappa)[s], expected)
    routed, = torch.autograd.grad((routed_logits(v, kappa)*G).sum(), v)
    assert_close(routed, received)


@pytest.mark.parametrize("n, head", cases((2, 3, 4)))
def test_equal_coefficients_are_plain_training(n, head):
    model, (xs, y) = model_of(n, head), data_of(n)
    plain = grads(F.cross_entropy(model(*xs), y), model)
    for c in 1., .3, 1.1:
        v = muted_logits(model, xs)
        v.retain_grad()
        loss = F.cross_entropy(routed_logits(v, torch.full((n,), c, dtype=F64)), y)
        for a, b in zip(grads(loss, model), plain): assert_close(a, c*b, atol=1e-15, rtol=1e-10)
        loss.backward()
        assert (v.grad[:-1] == 0).all()                                   # exactly nothing through muted passes


@pytest.mark.parametrize("n, head", cases((2, 3, 4)))
def test_step_is_the_published_one(n, head):
    "Every pass a full one, responses by orders, a scaled gradient on each response."
    model, (xs, y) = model_of(n, head), data_of(n)
    kappa = torch.rand(n, generator=gen(), dtype=F64)*3
    v = [model(*(x if p else torch.zeros_like(x) for x, p in zip(xs, present))) for present in coalitions(n)]
    m = [0]*n
    for order in permutations(range(n)):
        s = 0
        for i in order:
            m[i] = m[i] + (v[s | 1 << i] - v[s])/math.factorial(n)
            s |= 1 << i
    naive = sum(k*(r - r.detach()) + r.detach() for k, r in zip(kappa, (r + v[0]/n for r in m)))
    expected = grads(F.cross_entropy(naive, y), model)
    for logits in routed_logits(muted_logits(model, xs), kappa), modulated_logits(modality_responses(muted_logits(model, xs)), kappa):
        for a, b in zip(grads(F.cross_entropy(logits, y), model), expected): assert_close(a, b)


@pytest.mark.parametrize("head", ["sum", "concat"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_late_fusion_without_bias_scales_each_encoder(n, head):
    torch.manual_seed(0)
    model = FusionModel([nn.Sequential(nn.Linear(d, 6, bias=False), nn.Tanh()) for d in DIMS[:n]], HEADS[head]([6]*n, 3)).double()
    xs, y = data_of(n)
    kappa = torch.rand(n, generator=gen(), dtype=F64)*3
    loss, plain = F.cross_entropy(routed_logits(muted_logits(model, xs), kappa), y), F.cross_entropy(model(*xs), y)
    for m, e in enumerate(model.encoders):
        a, b = (torch.autograd.grad(l, e[0].weight, retain_graph=True)[0] for l in (loss, plain))
        assert_close(a, kappa[m]*b)


def test_value_is_that_of_plain_training_bit_for_bit():
    for scale, dtype in product((1., 1e4), (torch.float32, torch.bfloat16)):
        v = (torch.randn(8, 5, 3, generator=gen())*scale).to(dtype)
        out = routed_logits(v, torch.tensor([.1, 1., 7.]))
        assert torch.equal(out, v[-1].to(out.dtype))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7])
def test_extreme_logits_give_finite_losses_and_gradients(autocast, n, size):
    model, (xs, y) = model_of(n).float(), data_of(n, size)
    xs = [x.float() for x in xs]
    with torch.no_grad(): model.head.layers[-1].weight.copy_(1e4*model.head.layers[-1].weight.sign())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        v = muted_logits(model, xs)
        assert v.abs().max() > 1e3
        s = response_scores(modality_responses(v.detach()), y)
        kappa = modulation_coefficients(s, torch.zeros(n))
        for logits in routed_logits(v, kappa), modulated_logits(modality_responses(v), kappa):
            loss = F.cross_entropy(logits, y)
            assert loss.isfinite() and all(g.isfinite().all() for g in grads(loss, model))


def test_scale_grad_is_the_identity_forward():
    x = torch.tensor([1., -1e30, math.inf], requires_grad=True)
    y = scale_grad(x, .25)
    assert torch.equal(y, x)
    y.backward(torch.ones(3))
    assert torch.equal(x.grad, torch.full((3,), .25))


# ---- competition strength

def normal(*shape, seed=0): return torch.randn(*shape, generator=gen(seed), dtype=F64)

@pytest.mark.parametrize("alpha", [.1, 120., 1e4])
def test_strength_is_the_formula_with_sklearn_ridge(alpha):
    h, c = normal(300, 6), normal(300, 3, seed=1)
    c = c + h[:, :3]
    dep, rest = slice(0, 100), slice(100, 300)
    g = Ridge(alpha=alpha).fit(h[dep].numpy(), c[dep].numpy())
    e = g.predict(h[rest].numpy()) - c[rest].numpy()
    N = len(e)
    inverse = np.linalg.pinv(N*np.cov(c[rest].numpy().T))
    expected = sum(e_n@inverse@e_n for e_n in e)/3
    got = competition_strength(h[dep], c[dep], h[rest], c[rest], alpha=alpha)
    assert abs(got.item() - expected) < 1e-9
    terms = competition_strength(h[dep], c[dep], h[rest], c[rest], alpha=alpha, per_sample=True)
    assert terms.shape == (N,) and abs(terms.mean() - expected) < 1e-9


def test_strength_is_zero_when_the_concept_is_there():
    h, w = normal(200, 8), normal(8, 4, seed=1)
    assert competition_strength(h[:100], h[:100]@w, h[100:], h[100:]@w, alpha=0.) < 1e-20
    assert competition_strength(h[:100], h[:100]@w, h[100:], h[100:]@w, alpha=1e-9) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_strength_of_a_constant_is_rank_over_k(dtype):
    N, h = 2000, torch.zeros(2000, 2, dtype=dtype)
    logits = normal(N, 4).to(dtype)
    assert competition_strength(h, logits, h, logits).item() == pytest.approx(.9995, abs=1e-6)
    p = logits.softmax(1)
    assert competition_strength(h, p, h, p).item() == pytest.approx(.999500*3/4, abs=1e-5)
    assert competition_strength(h, p, h, p, by_rank=True).item() == pytest.approx(.9995, abs=1e-5)


def test_strength_of_one_output_is_unexplained_variance():
    h, c = normal(100, 3), normal(100, 1, seed=1)
    c = c + h[:, :1]
    x = torch.cat([h, torch.ones(100, 1, dtype=F64)], 1)
    fit = x@torch.linalg.lstsq(x, c).solution
    r_squared = 1 - ((fit - c)**2).sum()/((c - c.mean())**2).sum()
    assert_close(competition_strength(h, c, h, c, alpha=0.), (1 - r_squared)*99/100)


@pytest.mark.parametrize("alpha", [0., 120.])
def test_strength_does_not_mind_linear_maps_of_the_concept(alpha):
    h, c, A = normal(200, 5), normal(200, 4, seed=1), normal(4, 4, seed=2)
    c = c + h[:, :4]
    a, b = (competition_strength(h[:100], t[:100], h[100:], t[100:], alpha=alpha) for t in (c, c@A + 3))
    assert_close(a, b)


def test_strength_and_scales_of_the_features():
    h, c = normal(200, 5), normal(200, 4, seed=1)
    c = c + h[:, :4]
    def d(h, **options): return competition_strength(h[:100], c[:100], h[100:], c[100:], **options)
    assert_close(d(h, alpha=0.), d(h@normal(5, 5, seed=3), alpha=0.))
    assert d(h/100) > d(h) + .1
    scales = torch.tensor([1., 10., .1, 5., 100.], dtype=F64)
    assert_close(d(h, standardize=True), d(h*scales + 7, standardize=True))
    with_constant = torch.cat([h, torch.ones(200, 1, dtype=F64)], dim=1)
    assert_close(d(with_constant, standardize=True), d(h, standardize=True))


def test_more_features_than_samples():
    h, c = normal(60, 200), normal(60, 3, seed=1)
    for alpha in 0., 120.: assert competition_strength(h[:30], c[:30], h[30:], c[30:], alpha=alpha).isfinite()


@pytest.mark.parametrize("bad, match", [
    (lambda h, c: competition_strength(h, c[:-1], h, c), "same samples"),
    (lambda h, c: competition_strength(h, c, h[:, :1], c), "same samples"),
    (lambda h, c: competition_strength(h, c[:, 0], h, c[:, 0]), "same samples"),
    (lambda h, c: competition_strength(h, c, h[:1], c[:1]), "two samples"),
    (lambda h, c: competition_strength(h, c, h, c, alpha=-1.), "negative"),
    (lambda h, c: competition_strength(h*math.nan, c, h, c), "NaN"),
    (lambda h, c: competition_strength(h, c, h, c*0), "constant"),
])
def test_strength_rejects(bad, match):
    with pytest.raises(ValueError, match=match): bad(normal(20, 3), normal(20, 2, seed=1))


@pytest.mark.parametrize("n, head", cases((2, 3)))
def test_penultimate_features_enter_the_last_layer(n, head):
    model, (xs, _) = model_of(n, head), data_of(n)
    zs = model.encode(*xs)
    h = penultimate_features(model, zs)
    logits = model.fuse(zs)
    x = torch.cat([h, torch.ones(len(h), 1, dtype=F64)], dim=1)
    if x.shape[1] < 2*len(h):     # the logits are linear in h
        w = torch.linalg.lstsq(x, logits, driver="gelsd").solution
        assert_close(x@w, logits, atol=1e-9, rtol=0)
    layers = dict(sum=6*n, concat=6*n, film=6*(n - 1), gated=64*(n - 1), mlp=64, attention=64)
    assert h.shape == (7, layers[head])
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_penultimate_features_of_a_shared_layer_and_early_fusion():
    model = FusionModel([nn.Linear(3, 6), nn.Linear(4, 6)], HEADS["sum"]([6, 6], 3, shared=True))
    xs = [torch.randn(5, 3), torch.randn(5, 4)]
    zs = model.encode(*xs)
    assert_close(penultimate_features(model, zs), torch.cat(zs, dim=1))
    assert penultimate_features(EarlyFusion(JoinedMLP([(3,), (4,)], 3), 2), xs).shape == (5, 64)
    with pytest.raises(ValueError, match="pass features="): penultimate_features(EarlyFusion(nn.Tanh(), 1), xs[:1])


def law(n, seed):
    "Two modalities that each know half of the label."
    y = torch.randint(0, 4, (n,), generator=gen(seed))
    xs = [2*F.one_hot(t, 2).float() @ torch.eye(4)[:2] + .5*torch.randn(n, 4, generator=gen(seed + i + 1)) for i, t in enumerate((y % 2, y//2))]
    return xs, y

def test_competition_strength_end_to_end():
    (xs, y), dep, rest = law(300, 0), law(150, 10), law(400, 20)
    torch.manual_seed(0)
    concepts = train_concepts([VectorEncoder(4, 8, (16,)) for _ in range(2)], xs, y, 4, epochs=15, optimizer=lambda p: torch.optim.Adam(p, 1e-2), generator=gen())
    for c, x, t in zip(concepts, rest[0], (rest[1] % 2, rest[1]//2)):
        assert not c.training and c(x).shape == (400, 4)
        assert (c(x).argmax(1) == rest[1]).double().mean() > .42        # half of the label: chance is .25, the ceiling .5
    dep_batches, rest_batches = ([(xs_, y_)] for xs_, y_ in (dep, rest))
    # a joint model made of the concepts themselves has lost nothing; one that ignores modality 2 has lost that
    both = FusionModel([c[0] for c in concepts], HEADS["concat"]([8, 8], 4)).train()
    d = competition_strength_of(both, concepts, dep_batches, rest_batches, alpha=1e-6)
    assert both.training and d.max() < 1e-3
    one = FusionModel([concepts[0][0], nn.Sequential(nn.Flatten(), nn.Linear(4, 8))], HEADS["concat"]([8, 8], 4))
    with torch.no_grad(): one.encoders[1][1].weight.zero_(), one.encoders[1][1].bias.zero_()
    d = competition_strength_of(one, concepts, dep_batches, rest_batches, alpha=1e-6)
    assert d[0] < 1e-3 and d[1] > .8
    split = lambda xs, y: [(*(x[k:k + 64] for x in xs), y[k:k + 64]) for k in range(0, len(y), 64)]
    assert_close(competition_strength_of(one, concepts, split(*dep), split(*rest), alpha=1e-6), d, atol=1e-4, rtol=1e-3)
    assert competition_strength_of(one, concepts, dep_batches, rest_batches, per_sample=True).shape == (2, 400)
    joined = competition_strength_of(one, concepts, dep_batches, rest_batches, features=lambda model, zs: torch.cat(zs, dim=1), alpha=1e-6)
    assert_close(joined, d)
    with pytest.raises(ValueError, match="unimodal models"): competition_strength_of(one, concepts[:1], dep_batches, rest_batches)
    with pytest.raises(ValueError, match="no batches"): competition_strength_of(one, concepts, [], rest_batches)


def test_concepts_are_reproducible_and_only_draw_from_their_generator():
    (xs, y) = law(100, 0)
    def run():
        torch.manual_seed(3)
        encoders = [VectorEncoder(4, 8, (16,)) for _ in range(2)]
        state = torch.get_rng_state()
        models = train_concepts(encoders, xs, y, 4, epochs=2, generator=gen())
        return models, torch.equal(state, torch.get_rng_state())
    (a, same), (b, _) = run(), run()
    assert same
    for p, q in zip(nn.ModuleList(a).parameters(), nn.ModuleList(b).parameters()): assert torch.equal(p, q)


def test_concepts_reject():
    xs, y = law(20, 0)
    with pytest.raises(ValueError, match="1 encoders"): train_concepts([nn.Identity()], xs, y, 4)
    with pytest.raises(ValueError, match="20 samples"): train_concepts([nn.Identity()]*2, [xs[0], xs[1][:3]], y, 4)
    with pytest.raises(ValueError, match="one vector"): train_concepts([nn.Unflatten(1, (2, 2))]*2, xs, y, 4)


# ---- training

def test_alpha_zero_is_plain_training_step_for_step():
    xs, y = data_of(3, 32)
    finals = []
    for modulated in True, False:
        model = model_of(3)
        optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9)
        history = zero(3)
        for step in range(1, 6):
            if modulated:
                v = muted_logits(model, xs)
                s = response_scores(modality_responses(v.detach()), y)
                logits, history = routed_logits(v, modulation_coefficients(s, history, 0.)), update_history(history, s, step)
            else: logits = model(*xs)
            optimizer.zero_grad(); F.cross_entropy(logits, y).backward(); optimizer.step()
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(*finals, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("optimizer, ratio", [(lambda p: torch.optim.SGD(p, 1e-3), .1), (lambda p: torch.optim.Adam(p, 1e-3, eps=1e-15), 1.)])
def test_adam_hides_a_constant_factor(optimizer, ratio):
    def moved(k):
        w = torch.ones(10, dtype=F64, requires_grad=True)
        opt, A = optimizer([w]), normal(10, 10)
        for _ in range(20):
            loss = (A@scale_grad(w, k)).pow(2).sum()*1e-3
            opt.zero_grad(); loss.backward(); opt.step()
        return (w.detach() - 1).norm()
    assert (moved(.1)/moved(1.)).item() == pytest.approx(ratio, rel=1e-3)
