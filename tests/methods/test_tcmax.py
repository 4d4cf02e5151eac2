"TCMax: loop oracles, exact distributions, sampling, memory, precision and the callback."

import inspect
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import generator
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from reads import Reads
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from trajectories import OTHER_ORDER, Setting, same_trajectory

from mmlit.bounds import class_log_prior, tcne, tcne_additive
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, ConcatHead, FiLMHead, GatedHead, MLPHead, SumHead, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel
from mmlit.learner import multimodal_learner
from mmlit.methods.pairings import draw_pairings, pairing_log_sums
from mmlit.methods.tcmax import (
    TCMax,
    TCMaxLoss,
    TwoClasses,
    alignment_term,
    tcmax_loss,
    tcmax_loss_conditional,
    tcmax_loss_full,
    tcmax_loss_sampled,
    tcmax_model_loss,
    unimodal_losses,
    unimodal_losses_at,
)

TANGENT_FROM = 10.0  # log of the mean from which on the exponential of "nwj" is its tangent
PAIRINGS, NUMBERS = 512, 2**18  # what is scored by default: pairings, and logits in all

OPTIONS = [
    dict(prior=prior, alignment=alignment, form=form)
    for prior in ("uniform", "empirical", "given")
    for alignment in (0.0, 0.3, 1.0, 2.0)
    for form in ("dv", "nwj")
]
GIVEN = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def normal(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=dtype)


def labels(B, C, seed=0):
    return torch.randint(C, (B,), generator=generator(seed))


def with_prior(options):
    return options | dict(prior=GIVEN) if options["prior"] == "given" else options


def table_of(f):
    "All pairings of additive contributions, (B,)*M + (C,)."
    M, B, C = f.shape
    return sum(f[m].view(*[B if k == m else 1 for k in range(M)], C) for m in range(M))


def loop_loss(score, y, M, C, prior="uniform", alignment=1.0, form="dv"):
    "The definition, one pairing and one class at a time."
    B = len(y)
    weight = {
        "uniform": torch.ones(C).double(),
        "empirical": torch.bincount(y, minlength=C).double() / B,
        "given": GIVEN.exp(),
    }[prior]

    def own(i):
        return score((i,) * M)

    cross_entropy = (
        -sum((weight[y[i]] * own(i)[y[i]].exp() / (weight * own(i).exp()).sum()).log() for i in range(B)) / B
    )
    total = sum(weight[c] * score(k)[c].exp() for k in itertools.product(range(B), repeat=M) for c in range(C))
    mean = total / (B**M * weight.sum())
    log_sum = math.log(B**M) + weight.sum().log() + (mean.log() if form == "dv" else mean - 1)
    within = sum((weight * own(i).exp()).sum().log() for i in range(B)) / B
    return cross_entropy + alignment * (log_sum - within - math.log(B))


class Plain(torch.nn.Module):
    "A head that does not say how it is built."

    def __init__(self, head):
        super().__init__()
        self.head, self.calls = head, []

    def fuse(self, zs):
        self.calls.append(len(zs[0]))
        return self.head(zs)


# ---- against the loops, values and gradients


@pytest.mark.parametrize("M,B", [(1, 4), (2, 3), (2, 5), (3, 3), (4, 2)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_factorised_and_full_are_the_loops(M, B, options):
    f, y = normal(M, B, 4).requires_grad_(), torch.arange(B) % 3  # class 3 is absent
    oracle = loop_loss(lambda k: sum(f[m, j] for m, j in enumerate(k)), y, M, 4, **options)
    (expected,) = torch.autograd.grad(oracle, f)
    for loss in tcmax_loss(f, y, **with_prior(options)), tcmax_loss_full(table_of(f), y, **with_prior(options)):
        assert_close(loss, oracle, rtol=0, atol=1e-12)
        assert_close(torch.autograd.grad(loss, f)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", [FiLMHead, GatedHead])
@pytest.mark.parametrize("dims,condition", [((3, 4), 0), ((3, 4), 1), ((2, 3, 4), 1), ((2, 3, 2, 3), 2)])
@pytest.mark.parametrize("options", OPTIONS[1::5], ids=str)
def test_conditional_is_the_loops(head, dims, condition, options):
    torch.manual_seed(0)
    B, M, head = 3, len(dims), head(dims, 4, condition).double()
    zs, y = [normal(B, d, seed=d).requires_grad_() for d in dims], labels(B, 4)
    oracle = loop_loss(lambda k: head([z[j : j + 1] for z, j in zip(zs, k)])[0], y, M, 4, **options)
    loss = tcmax_loss_conditional(*head.conditional_contributions(zs), y, **with_prior(options))
    assert_close(loss, oracle, rtol=0, atol=1e-12)
    inputs = [*zs, *head.parameters()]
    for ours, theirs in zip(
        *(torch.autograd.grad(v, inputs, allow_unused=True, materialize_grads=True) for v in (loss, oracle))
    ):
        assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["dv", "nwj"])
def test_gradcheck(form):
    y = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(lambda f: tcmax_loss(f, y, form=form), normal(3, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda f: tcmax_loss_full(f, y, alignment=0.5, form=form), normal(3, 3, 4).requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda a, b: tcmax_loss_conditional(0, [a, b], y, form=form),
        (normal(3, 1, 4).requires_grad_(), normal(3, 3, 4).requires_grad_()),
    )
    index = draw_pairings(3, 2, 7, "independent", generator())
    for diagonal in ("exact", "drawn"):
        assert torch.autograd.gradcheck(
            lambda a, b, diagonal=diagonal: tcmax_loss_sampled(a, b, index, y, diagonal, form=form),
            (normal(3, 4).requires_grad_(), normal(7, 4).requires_grad_()),
        )


def test_gradient_formula_and_its_zero_sum():
    f, y = normal(3, 6, 4, scale=2.0).requires_grad_(), labels(6, 4)
    (gradient,) = torch.autograd.grad(tcmax_loss(f, y), f)
    S = f.detach().logsumexp(1)
    belief = (f.detach() + (S.sum(0) - S)[:, None] - S.sum(0).logsumexp(0)).exp()
    assert_close(gradient, belief - F.one_hot(y, 4) / 6)
    assert_close(gradient.sum((1, 2)), torch.zeros(3).double(), rtol=0, atol=1e-14)


# ---- identities


@pytest.mark.parametrize("M,B,C", [(1, 5, 3), (2, 7, 3), (3, 4, 6), (4, 3, 2)])
def test_offset_shift_and_order(M, B, C):
    zero, y = torch.zeros(M, B, C), labels(B, C)
    for form in ("dv", "nwj"):
        assert_close(tcmax_loss(zero, y, form=form), torch.tensor((M - 1) * math.log(B) + math.log(C)))
    frequencies = torch.bincount(y) / B
    assert_close(
        tcmax_loss(zero, y, prior="empirical"),
        torch.tensor((M - 1) * math.log(B)) - torch.xlogy(frequencies, frequencies).sum(),
    )
    f = normal(M, B, C)
    assert_close(tcmax_loss(f + 3.7, y), tcmax_loss(f, y))
    order = torch.randperm(B, generator=generator(1))
    assert_close(tcmax_loss(f.flip(0)[:, order], y[order]), tcmax_loss(f, y))


@pytest.mark.parametrize("seed", range(20))
def test_bracket_is_not_negative_and_the_floors_hold(seed):
    M, B, C = 2 + seed % 2, 6, 3
    y, scale = labels(B, C, seed), 10.0 ** (seed % 4 - 1)
    f, scores = normal(M, B, C, seed=seed, scale=scale), normal(*[B] * M, C, seed=seed, scale=scale)
    joint = F.cross_entropy(f.sum(0), y)
    assert torch.equal(tcmax_loss(f, y, alignment=0.0), joint)
    assert tcmax_loss(f, y) >= joint - 1e-9
    n = torch.bincount(y).double()
    assert tcmax_loss(f, y) >= (M - 1) * torch.xlogy(n, n).sum() / B - 1e-9  # additive: (M-1)(log B - H(y))
    own = scores[(torch.arange(B),) * M]
    assert tcmax_loss_full(scores, y) >= F.cross_entropy(own, y) - 1e-9
    assert tcmax_loss_full(scores, y, form="nwj") >= tcmax_loss_full(scores, y) - 1e-9  # x - 1 >= log x
    K = draw_pairings(B, M, 5, "independent", generator(seed))  # the exact diagonal keeps the bound for any draw
    assert tcmax_loss_sampled(own, scores[tuple(K.T)], K, y) >= F.cross_entropy(own, y) - 1e-9


def test_gradient_at_alignment_zero_is_that_of_the_cross_entropy():
    f, y = normal(3, 5, 4).requires_grad_(), labels(5, 4)
    for loss in tcmax_loss(f, y, alignment=0.0), tcmax_loss_full(table_of(f), y, alignment=0.0):
        assert_close(
            torch.autograd.grad(loss, f)[0], torch.autograd.grad(F.cross_entropy(f.sum(0), y), f)[0], rtol=0, atol=0
        )


# ---- a batch that has the counts of a table is its distribution, and its pairings are the product of the marginals


def batch_of(counts):
    return torch.repeat_interleave(
        torch.cartesian_prod(*[torch.arange(s) for s in counts.shape]), counts.flatten(), dim=0
    ).T


def entropy(p):
    return -torch.xlogy(p, p).sum().item()


def truth_of(counts):
    "H(y), total correlation and the sum of the unimodal informations of a table of counts, in nats."
    p = counts.double() / counts.sum()
    axes = range(p.ndim)
    single = [entropy(p.sum([a for a in axes if a != m])) for m in axes]
    pairs = [entropy(p.sum([a for a in axes if a not in (m, p.ndim - 1)])) for m in axes[:-1]]
    return single[-1], sum(single) - entropy(p), sum(single[m] + single[-1] - pairs[m] for m in axes[:-1])


def minimise(loss, *shape):
    x = normal(*shape, seed=1, scale=0.1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14
    )

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(x).item(), x.detach()


def tables_of(f, xs):
    out = f
    for m, x in enumerate(xs):
        out = out.index_select(m, x)
    return out


TABLES = {
    "general": torch.tensor([[[6, 1], [1, 3]], [[1, 4], [3, 5]]]),
    "xor": torch.tensor([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]),
    "three": torch.tensor([[[[2, 1], [1, 0]], [[1, 1], [0, 3]]], [[[1, 2], [2, 1]], [[1, 1], [1, 4]]]]),
}


@pytest.mark.parametrize("prior", ["uniform", "empirical"])
@pytest.mark.parametrize("name", TABLES)
def test_suprema_over_distributions(name, prior):
    counts = TABLES[name]
    *xs, y = batch_of(counts)
    H, TC, unimodal = truth_of(counts)
    B, M, C = len(y), len(xs), counts.shape[-1]
    offset, extra = (
        (M - 1) * math.log(B) + (math.log(C) if prior == "uniform" else H),
        (math.log(C) - H if prior == "uniform" else 0.0),
    )
    shift = 0.0 if prior == "uniform" else class_log_prior(y, C)
    least, f = minimise(lambda f: tcmax_loss(torch.stack([t[x] for t, x in zip(f, xs)]), y, prior=prior), M, 2, C)
    assert offset - least == pytest.approx(unimodal + extra, abs=1e-6)  # additive: sum of unimodal informations
    conditionals = [counts.double().sum([a for a in range(M) if a != m]) for m in range(M)]
    naive_bayes = math.prod(
        c.view(*[2 if k == m else 1 for k in range(M)], C) for m, c in enumerate(conditionals)
    ) / counts.double().sum(list(range(M))) ** (M - 1)
    assert_close((table_of(f) + shift).softmax(-1), naive_bayes / naive_bayes.sum(-1, keepdim=True), rtol=0, atol=1e-3)
    if name == "xor":
        assert abs(unimodal) < 1e-12 and TC == pytest.approx(math.log(2))
    if name == "three":
        return
    least, f = minimise(lambda f: tcmax_loss_full(tables_of(f, xs), y, prior=prior), *counts.shape)
    assert offset - least == pytest.approx(TC + extra, abs=1e-6)  # any head: the total correlation
    posterior = counts.double() / counts.sum(-1, keepdim=True)
    assert_close((f + shift).softmax(-1), posterior, rtol=0, atol=1e-3)


def test_random_critics_stay_below_and_the_log_ratio_attains():
    counts = TABLES["general"]
    *xs, y = batch_of(counts)
    H, TC, _ = truth_of(counts)
    offset = math.log(len(y)) + H
    bounds = [
        offset - tcmax_loss_full(tables_of(normal(2, 2, 2, seed=s, scale=s / 20), xs), y, prior="empirical").item()
        for s in range(100)
    ]
    assert max(bounds) <= TC + 1e-12 and max(bounds) > 0
    p = counts.double() / counts.sum()
    ratio = (p / (p.sum((1, 2))[:, None, None] * p.sum((0, 2))[None, :, None] * p.sum((0, 1)))).log()
    assert offset - tcmax_loss_full(tables_of(ratio, xs), y, prior="empirical").item() == pytest.approx(TC, abs=1e-12)
    assert offset - tcmax_loss_full(tables_of(ratio, xs), y, prior="empirical", form="nwj").item() == pytest.approx(
        TC, abs=1e-12
    )


def test_xor_additive_is_at_most_zero():
    *xs, y = batch_of(TABLES["xor"])
    for s in range(50):
        f = normal(2, 2, 2, seed=s, scale=2.0)
        assert math.log(4) + math.log(2) - tcmax_loss(torch.stack([t[x] for t, x in zip(f, xs)]), y).item() <= 1e-12


@pytest.mark.parametrize("M", [2, 3])
def test_in_batch_extremes(M):
    y = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    floor = (M - 1) * (6 * math.log(6) + 4 * math.log(4) + 2 * math.log(2)) / 12
    assert floor / (M - 1) == pytest.approx(1.473502, abs=1e-6)
    least, _ = minimise(lambda f: tcmax_loss(f, y), M, 12, 3)
    assert floor - 1e-9 <= least < floor + 1e-3
    least, _ = minimise(lambda f: tcmax_loss_full(f, y[::2]), *[6] * M, 3)
    assert 0 <= least < 1e-3


def test_gaussian_total_correlation():
    "One class: the loss is the total correlation bound of the modalities; at the log-ratio it reaches -1/2 log det R."
    R = torch.tensor([[1.0, 0.4, 0.3], [0.4, 1.0, 0.2], [0.3, 0.2, 1.0]]).double()
    truth, precision = -0.5 * torch.logdet(R).item(), R.inverse() - torch.eye(3).double()
    assert torch.linalg.eigvalsh(R).max() < 2 and truth == pytest.approx(0.13854, abs=1e-5)

    def critic(x):
        return (-0.5 * ((x @ precision) * x).sum(1) - 0.5 * torch.logdet(R))[:, None]

    N, bounds = 20_000, []
    for s in range(20):
        x, index = normal(N, 3, seed=s) @ torch.linalg.cholesky(R).T, draw_pairings(N, 3, N, generator=generator(s))
        loss = tcmax_loss_sampled(
            critic(x),
            critic(torch.stack([x[i, m] for m, i in enumerate(index.T)], 1)),
            index,
            torch.zeros(N).long(),
            "drawn",
        )
        bounds.append(2 * math.log(N) - loss.item())
    mean, error = np.mean(bounds), np.std(bounds, ddof=1) / 20**0.5
    assert error < 0.003 and abs(mean - truth) < 4 * error


# ---- sampling


def sampled(scores, y, K, seed, how="blocks", diagonal="exact", **options):
    M, B = scores.ndim - 1, len(y)
    index = draw_pairings(B, M, K, how, generator(seed))
    return tcmax_loss_sampled(scores[(torch.arange(B),) * M], scores[tuple(index.T)], index, y, diagonal, **options)


@pytest.mark.parametrize("how", ["blocks", "independent"])
@pytest.mark.parametrize("M", [1, 2, 3])
def test_pairings_are_uniform(how, M):
    "Frequencies of all pairings over many draws, by chi-squared; a truncated last block included."
    B, K, runs = 3, 4, 4000
    counts = torch.zeros(B**M)
    for s in range(runs):
        index = draw_pairings(B, M, K, how, generator(s))
        assert index.shape == (K, M)
        if how == "blocks":
            assert (index[:B].sort(0).values == torch.arange(B)[:, None]).all()
        counts[(index * B ** torch.arange(M)).sum(1)[int(s) % K]] += 1  # one row a run: independent draws
    expected = runs / B**M
    assert ((counts - expected) ** 2 / expected).sum() < B**M - 1 + 4.5 * math.sqrt(2 * max(1, B**M - 1))


@pytest.mark.parametrize(
    "how,diagonal", [("blocks", "exact"), ("blocks", "drawn"), ("independent", "exact"), ("independent", "drawn")]
)
@pytest.mark.parametrize("M", [2, 3])
def test_sampled_sum_is_unbiased_and_the_log_form_is_low(how, diagonal, M):
    B, C, K, runs = 4, 3, 8, 1000
    scores, y = normal(*[B] * M, C), labels(B, C)
    for form in ("nwj", "dv"):
        error = torch.stack(
            [sampled(scores, y, K, s, how, diagonal, form=form) for s in range(runs)]
        ) - tcmax_loss_full(scores, y, form=form)
        standard_error = error.std() / runs**0.5
        if form == "nwj":
            assert standard_error < 0.03 and error.mean().abs() < 4 * standard_error
        else:
            assert error.mean() < 0  # Jensen: the bound looks too good


def test_sampling_bias_has_the_predicted_size():
    "About -Var(w)/(2K E[w]^2) with w the sum of e^f over classes, for independent draws as published."
    B, K, runs = 16, 64, 3000
    scores, y = normal(B, B, 2, scale=1.2), labels(B, 2)
    w = scores.exp().sum(-1)
    predicted = -(w.var(correction=0) / (2 * K * w.mean() ** 2)).item()
    error = torch.stack([sampled(scores, y, K, s, "independent", "drawn") for s in range(runs)]) - tcmax_loss_full(
        scores, y
    )
    standard_error = (error.std() / runs**0.5).item()
    assert standard_error < abs(predicted) / 2 and abs(error.mean().item() - predicted) < 4 * standard_error
    few, some, many = (
        torch.stack([sampled(scores, y, K, s, "independent", "drawn") for s in range(300)]).mean()
        - tcmax_loss_full(scores, y)
        for K in (4, 16, 1024)
    )
    assert few < some < -0.005 and many.abs() < 0.01  # and vanishes


def test_all_pairings_once_is_exact():
    scores, y = normal(4, 4, 4, 3), labels(4, 3)
    index = torch.cartesian_prod(*[torch.arange(4)] * 3)
    for diagonal, form in itertools.product(("exact", "drawn"), ("dv", "nwj")):
        loss = tcmax_loss_sampled(
            scores[(torch.arange(4),) * 3], scores[tuple(index.T)], index, y, diagonal, form=form, prior="empirical"
        )
        assert_close(loss, tcmax_loss_full(scores, y, form=form, prior="empirical"))


def test_exact_diagonal_has_less_variance_when_true_pairings_score_high():
    scores, y = normal(16, 16, 3) + 4 * torch.eye(16)[..., None], labels(16, 3)
    spread = {
        d: torch.stack([sampled(scores, y, 32, s, "blocks", d) for s in range(200)]).std() for d in ("exact", "drawn")
    }
    assert spread["exact"] < spread["drawn"] / 4


# ---- extreme numbers and precision


def losses_of(f, y, form):
    "Each way to the loss, on additive scores."
    M, B, C = f.shape
    index = draw_pairings(B, M, 6, "blocks", generator())
    yield tcmax_loss(f, y, form=form)
    yield tcmax_loss_full(table_of(f), y, form=form)
    yield tcmax_loss_conditional(0, [f[0][:, None]] + [t[None].expand(B, B, C) for t in f[1:]], y, form=form)
    for diagonal in ("exact", "drawn"):
        yield tcmax_loss_sampled(f.sum(0), sum(t[i] for t, i in zip(f, index.T)), index, y, diagonal, form=form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["dv", "nwj"])
@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_extreme_logits_are_finite(dtype, form, prior):
    f = (1e4 * torch.sign(normal(3, 4, 5))).to(dtype).requires_grad_()
    for loss in losses_of(f, torch.tensor([0, 3, 3, 1]), form):
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert torch.autograd.grad(loss, f)[0].isfinite().all()
    assert tcmax_loss(f, torch.tensor([0, 3, 3, 1]), form=form, prior=prior).isfinite()


def test_nwj_goes_on_as_its_tangent():
    y = torch.zeros(2).long()

    def at(t):
        return tcmax_loss_full(torch.full((2, 2, 1), float(t)).double(), y, form="nwj").item()  # -t + e^t - 1 + log 2

    assert at(3.0) == pytest.approx(-3 + math.exp(3) - 1 + math.log(2))
    slope = math.exp(TANGENT_FROM)
    assert at(TANGENT_FROM + 5) == pytest.approx(6 * slope - 1 - TANGENT_FROM - 5 + math.log(2), rel=1e-12)


@pytest.mark.parametrize("head", [SumHead, ConcatHead, FiLMHead, GatedHead, MLPHead])
@pytest.mark.parametrize("form", ["dv", "nwj"])
def test_bfloat16_autocast(head, form):
    torch.manual_seed(0)
    model = FusionModel([VectorEncoder(5, 8, (16,)) for _ in range(3)], head((8,) * 3, 4))
    xs, y = [normal(6, 5, seed=s, dtype=torch.float32) for s in range(3)], labels(6, 4)
    full = tcmax_model_loss(model, model.encode(*xs), y, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tcmax_model_loss(model, model.encode(*xs), y, memory=900, form=form)  # chunks too
    assert loss.dtype == torch.float32
    assert_close(loss, full, rtol=0, atol=0.02)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(3e4)
    with torch.autocast("cpu", torch.bfloat16):
        wild = tcmax_model_loss(model, model.encode(*xs), y, form=form)
    model.zero_grad()
    wild.backward()
    assert wild.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("M", [1, 2, 3])
def test_batch_of_one_is_the_cross_entropy(M):
    f, y = normal(M, 1, 4, dtype=torch.float32).requires_grad_(), torch.tensor([2])
    expected = F.cross_entropy(f.sum(0), y)
    for loss in losses_of(f, y, "dv"):
        assert_close(loss, expected)
        assert_close(
            torch.autograd.grad(loss, f)[0], torch.autograd.grad(expected, f, retain_graph=True)[0], rtol=0, atol=1e-6
        )


@pytest.mark.cuda
@pytest.mark.parametrize("head", [ConcatHead, FiLMHead, MLPHead])
def test_cuda_is_the_cpu(head):
    torch.manual_seed(0)
    model, y = FusionModel([VectorEncoder(4, 8, (8,)) for _ in range(3)], head((8,) * 3, 3)), labels(6, 3)
    xs = [normal(6, 4, seed=s, dtype=torch.float32) for s in range(3)]
    ways = [dict(), dict(prior="empirical"), dict(memory=500), dict(form="nwj"), dict(pairings=50)]

    def losses(model, xs, y):
        return torch.stack(
            [tcmax_model_loss(model, model.encode(*xs), y, generator=generator(), **way) for way in ways]
        )

    expected, (model, y, *xs) = losses(model, xs, y).detach(), (t.cuda() for t in (model, y, *xs))
    assert_close(losses(model, xs, y).cpu(), expected, rtol=0, atol=1e-4)
    with torch.autocast("cuda", torch.float16):
        half = losses(model, xs, y)
    assert half.dtype == torch.float32
    assert_close(half.cpu(), expected, rtol=0, atol=0.05)
    half.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_absent_classes():
    f, y = normal(2, 4, 6).requires_grad_(), torch.tensor([1, 1, 4, 1])
    seen = torch.isin(torch.arange(6), y)
    (gradient,) = torch.autograd.grad(tcmax_loss(f, y), f)
    assert (gradient[:, :, ~seen] > 0).all()  # pushed down
    (gradient,) = torch.autograd.grad(tcmax_loss(f, y, prior="empirical"), f)
    assert (gradient[:, :, ~seen] == 0).all() and gradient.isfinite().all()  # left alone
    with pytest.raises(ValueError, match="no weight"):
        tcmax_loss(f, y, prior=class_log_prior(torch.tensor([0, 1, 2, 3, 5]), 6))


# ---- models


@pytest.mark.parametrize("M", [2, 3, 4])
@pytest.mark.parametrize("head", [SumHead, ConcatHead, FiLMHead, GatedHead])
@pytest.mark.parametrize("options", OPTIONS[1::7], ids=str)
def test_structure_gives_the_same_loss_and_gradients(M, head, options):
    torch.manual_seed(M)
    dims, B = (3, 4, 2, 3)[:M], 4
    head, zs, y = head(dims, 4).double(), [normal(B, d, seed=d).requires_grad_() for d in dims], labels(B, 4)
    model, inputs = FusionModel([torch.nn.Identity()] * M, head), [*zs, *head.parameters()]
    row = 8 * sum(dims)
    ways = (
        tcmax_model_loss(model, zs, y, **with_prior(options)),
        tcmax_model_loss(Plain(head), zs, y, memory=7 * row, **with_prior(options)),
        tcmax_model_loss(Plain(head), zs, y, **with_prior(options)),
    )
    gradients = [torch.autograd.grad(loss, inputs, materialize_grads=True) for loss in ways]
    for loss, gradient in zip(ways[1:], gradients[1:]):
        assert_close(loss, ways[0], rtol=0, atol=1e-11)
        for a, b in zip(gradient, gradients[0]):
            assert_close(a, b, rtol=0, atol=1e-10)


def test_memory_bounds_the_rows_of_a_call():
    torch.manual_seed(0)
    zs, y, model = (
        [normal(6, 5, dtype=torch.float32).requires_grad_() for _ in range(2)],
        labels(6, 3),
        Plain(MLPHead((5, 5), 3)),
    )
    loss = tcmax_model_loss(model, zs, y, memory=10 * 40)  # 40 bytes a row
    assert model.calls == [6, 10, 10, 10, 6]
    loss.backward()
    assert max(model.calls) == 10 and sum(model.calls) == 6 + 2 * 36
    model.calls.clear()
    tcmax_model_loss(model, zs, y, alignment=0.0)
    assert model.calls == [6]  # cross-entropy pays for no pairing


def test_dropout_in_chunks_is_replayed():
    torch.manual_seed(0)
    zs, head = [normal(6, 5, dtype=torch.float32).requires_grad_() for _ in range(2)], MLPHead((5, 5), 3, dropout=0.5)
    model, index = Plain(head), torch.cartesian_prod(torch.arange(6), torch.arange(6))

    def gradients(checkpointed):
        torch.manual_seed(1)
        if checkpointed:
            rows = pairing_log_sums(model, zs, index, memory=12 * 40)
        else:
            rows = torch.cat([pairing_log_sums(model, zs, part) for part in index.split(12)])
        return torch.autograd.grad(rows.logsumexp(0), [*zs, *head.parameters()])

    for a, b in zip(gradients(True), gradients(False)):
        assert_close(a, b)


def test_beyond_the_limit_it_samples_as_many_and_repeats_with_the_seed():
    torch.manual_seed(0)
    zs, y, model = [normal(8, 3, dtype=torch.float32) for _ in range(3)], labels(8, 3), Plain(MLPHead((3, 3, 3), 3))

    def loss(seed, **options):
        return tcmax_model_loss(model, zs, y, generator=generator(seed), **options)

    assert torch.equal(loss(0, pairings=64), loss(0, pairings=64)) and not torch.equal(
        loss(0, pairings=64), loss(1, pairings=64)
    )
    assert model.calls[:2] == [8, 64]
    exact = loss(0)
    assert model.calls[-1] == 512 <= PAIRINGS
    runs = torch.stack([loss(s, pairings=64) for s in range(50)])
    assert (runs.mean() - exact).abs() < 4 * runs.std() / 50**0.5 + 0.01 and runs.std() < 0.05


def test_early_fusion_and_integer_inputs():
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = torch.nn.Embedding(5, 4), torch.nn.Linear(6, 3)

        def forward(self, words, x):
            return self.linear(torch.cat([self.embedding(words).mean(1), x], 1)).tanh()

    model, y = EarlyFusion(Network(), 2), labels(4, 3)
    xs = model.encode(torch.randint(5, (4, 7), generator=generator()), normal(4, 2, dtype=torch.float32))
    loss = tcmax_model_loss(model, xs, y, memory=200)
    scores = torch.stack([torch.stack([model.fuse((xs[0][[i]], xs[1][[j]]))[0] for j in range(4)]) for i in range(4)])
    assert_close(loss, tcmax_loss_full(scores, y))
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("head", [ConcatHead, FiLMHead, MLPHead])
def test_every_parameter_moves(head):
    torch.manual_seed(0)
    model = FusionModel([VectorEncoder(4, 8, (8,)) for _ in range(2)], head((8, 8), 3))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, xs, y = (
        torch.optim.Adam(model.parameters()),
        [normal(16, 4, seed=s, dtype=torch.float32) for s in range(2)],
        labels(16, 3),
    )
    for _ in range(3):
        optimizer.zero_grad()
        TCMaxLoss()(model, model.encode(*xs), y).backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_class_log_prior_counts_and_smooths():
    y = torch.tensor([0, 0, 3])
    assert_close(class_log_prior(y, 4).exp(), torch.tensor([2.0, 0.0, 0.0, 1.0]) / 3)
    assert_close(class_log_prior(y, 4, smoothing=0.5).exp(), torch.tensor([2.5, 0.5, 0.5, 1.5]) / 5)


def test_loss_is_minus_the_bound():
    f, y = normal(3, 4, 5), labels(4, 5)
    assert_close(tcmax_loss(f, y), math.log(4**2 * 5) - tcne_additive(f, y))
    assert_close(tcmax_loss_full(table_of(f), y), math.log(4**2 * 5) - tcne(table_of(f), y))


def test_fastai_types_do_not_leak():
    from fastai.torch_core import TensorCategory

    y = TensorCategory(torch.tensor([0, 1, 2, 1]))
    assert (
        type(tcmax_loss(normal(2, 4, 3), y)) is torch.Tensor
        and type(unimodal_losses(normal(2, 4, 3), y)) is torch.Tensor
    )
    assert type(class_log_prior(y, 3)) is torch.Tensor


def test_loss_module():
    y, log_prior = labels(6, 4), class_log_prior(torch.tensor([0, 1, 2, 3, 3]), 4)
    model = FusionModel([torch.nn.Identity()] * 2, ConcatHead((3, 4), 4))
    zs = [normal(6, d, dtype=torch.float32) for d in (3, 4)]
    loss = TCMaxLoss(prior=log_prior, alignment=0.5, form="nwj")
    assert_close(loss(model, zs, y), tcmax_loss(model.contributions(zs), y, prior=log_prior, alignment=0.5, form="nwj"))
    assert_close(loss.log_probs(model.fuse(zs)), (model.fuse(zs) + log_prior).log_softmax(1))
    again = TCMaxLoss(prior=torch.full((4,), -math.log(4)))
    again.load_state_dict(loss.state_dict())
    assert_close(again.log_prior, log_prior)
    assert not list(loss.parameters())
    with pytest.raises(ValueError, match="no fixed prior"):
        TCMaxLoss("empirical").log_probs(model.fuse(zs))


# ---- the losses of the parts, and what changes the loss


@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_unimodal_losses_are_the_marginal_likelihoods(M):
    B, C = 3, 4
    f, y = normal(M, B, C), labels(B, C)
    joint = table_of(f).flatten().softmax(0).view(*[B] * M, C)
    beliefs = [joint.movedim(m, 0).reshape(B, -1, C).sum(1) for m in range(M)]
    assert_close(
        unimodal_losses(f.requires_grad_(), y),
        torch.stack([-(B * q[torch.arange(B), y]).log().mean().detach() for q in beliefs]),
    )
    assert not unimodal_losses(f, y).requires_grad
    assert_close(unimodal_losses(torch.zeros(M, B, C), y), torch.full((M,), math.log(C)))


def test_accumulation_over_micro_batches_is_another_loss():
    f, y = normal(2, 8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    halves = (tcmax_loss(f[:, :4], y[:4]) + tcmax_loss(f[:, 4:], y[4:])) / 2
    assert (tcmax_loss(f, y) - halves).abs() > 0.3
    halves = (tcmax_loss(f[:, :4], y[:4], alignment=0.0) + tcmax_loss(f[:, 4:], y[4:], alignment=0.0)) / 2
    assert_close(halves, tcmax_loss(f, y, alignment=0.0))


def test_two_pass_accumulation_has_the_gradient_of_the_whole_batch():
    "The solution of exercise 3."
    f, y = normal(2, 8, 3).requires_grad_(), labels(8, 3)
    (expected,) = torch.autograd.grad(tcmax_loss(f, y), f)
    tables = [part.logsumexp(1).detach() for part in f.chunk(4, dim=1)]
    total = torch.zeros_like(f)
    for b, (part, label) in enumerate(zip(f.chunk(4, dim=1), y.chunk(4))):
        others = torch.stack([t for k, t in enumerate(tables) if k != b]).logsumexp(0)
        loss = (
            torch.logaddexp(part.logsumexp(1), others).sum(0).logsumexp(0)
            - part.sum(0)[torch.arange(2), label].sum() / 8
        )
        total = total + torch.autograd.grad(loss, f)[0]
    assert_close(total, expected)


# ---- rejected input


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda f, y: tcmax_loss(f, torch.tensor([0, 1, 4])), "0 to 3"),
        (lambda f, y: tcmax_loss(f, torch.tensor([0, -1, 1])), "got -1"),
        (lambda f, y: tcmax_loss(f, y[:2]), "one label per sample"),
        (lambda f, y: tcmax_loss(f, F.one_hot(y, 4)), "one label per sample"),
        (lambda f, y: tcmax_loss(f, y.float()), "continuous target"),
        (lambda f, y: tcmax_loss(f[0], y), r"\(M, B, C\)"),
        (lambda f, y: tcmax_loss(f[:, :0], y[:0]), "per sample and at least one"),
        (lambda f, y: tcmax_loss(f.long(), y), "floating point"),
        (lambda f, y: tcmax_loss(f, y, prior="flat"), "unknown prior"),
        (lambda f, y: tcmax_loss(f, y, prior=torch.zeros(4)), "sum to 1"),
        (lambda f, y: tcmax_loss(f, y, prior=torch.zeros(3)), "4 frequencies"),
        (lambda f, y: tcmax_loss(f, y, alignment=-0.1), "weight"),
        (lambda f, y: tcmax_loss(f, y, alignment=math.inf), "weight"),
        (lambda f, y: tcmax_loss(f, y, form="mine"), "unknown form"),
        (lambda f, y: tcmax_loss_full(f, y), r"\(B,\)\*M"),
        (lambda f, y: tcmax_loss_full(torch.zeros(4), y), r"\(B,\)\*M"),
        (lambda f, y: tcmax_loss_conditional(0, [torch.zeros(3, 3, 4)] * 2, y), "modality 0"),
        (lambda f, y: tcmax_loss_conditional(2, [torch.zeros(3, 3, 4)] * 2, y), "modality 2"),
        (lambda f, y: tcmax_loss_sampled(f[0], f[0], draw_pairings(3, 2, 4), y), "3 drawn scores"),
        (lambda f, y: tcmax_loss_sampled(f[0], f, draw_pairings(3, 2, 3), y), r"\(K, C\)"),
        (lambda f, y: tcmax_loss_sampled(f[0], f[1], draw_pairings(3, 2, 3), y, "maybe"), "diagonal"),
        (lambda f, y: draw_pairings(3, 2, 0), "at least one"),
        (lambda f, y: draw_pairings(3, 2, 1, "grid"), "unknown way"),
        (lambda f, y: class_log_prior(y, 1), "0 to 0"),
        (lambda f, y: class_log_prior(y, 4, smoothing=-1), "negative"),
        (lambda f, y: unimodal_losses(f[0], y), r"\(M, B, C\)"),
        (
            lambda f, y: tcmax_model_loss(Plain(MLPHead((2, 2), 3)), [torch.zeros(3, 2), torch.zeros(4, 2)], y),
            "batch size",
        ),
        (
            lambda f, y: tcmax_model_loss(
                Plain(MLPHead((2, 2), 1)), [torch.zeros(3, 2)] * 2, torch.tensor([0.1, 0.2, 0.3])
            ),
            "continuous target",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rejected(call, match):
    with pytest.raises(ValueError, match=match):
        call(normal(2, 3, 4), torch.tensor([0, 3, 1]))


def test_a_head_that_draws_still_has_an_alignment_that_is_not_negative():
    torch.manual_seed(0)
    head = MLPHead((3, 3), 4, dropout=0.5)
    for batch in (1, 2, 3):
        for _ in range(30):
            zs, y = tuple(torch.randn(batch, 3) for _ in range(2)), torch.randint(4, (batch,))
            torch.manual_seed(1)
            plain = tcmax_model_loss(FusionModel([torch.nn.Identity()] * 2, head), zs, y, alignment=0.0)
            torch.manual_seed(1)
            full = tcmax_model_loss(FusionModel([torch.nn.Identity()] * 2, head), zs, y)
            assert full >= plain - 1e-5


@pytest.mark.parametrize("M", [2, 3])
def test_all_pairings_are_scored_where_just_as_many_are_allowed(M):
    torch.manual_seed(0)
    B, model = 4, Plain(MLPHead((3,) * M, 2).double())
    zs = [normal(B, 3, seed=m) for m in range(M)]
    scores = torch.stack([model.fuse(tuple(z[[i]] for z, i in zip(zs, k)))[0] for k in np.ndindex(*[B] * M)])
    bracket = scores.logsumexp((0, 1)) - model.fuse(zs).logsumexp(1).mean() - math.log(B)
    assert_close(alignment_term(model, zs, pairings=B**M), bracket)
    enough = B**M - B if M == 2 else B**M  # two modalities: the false pairings, each once, beside the true ones
    assert_close(alignment_term(model, zs, pairings=enough, generator=generator()), bracket)
    assert abs(alignment_term(model, zs, pairings=enough - 1, generator=generator()) - bracket) > 1e-6


# ---- options, and the callback


def loaders(regression=False):
    x = torch.randn(2, 120, 3, generator=generator())
    y = x[0, :, 0] + x[1, :, 0]
    y = y if regression else (y > 0).long()
    return multimodal_dls({"a": x[0], "b": x[1]}, y.numpy(), device="cpu", seed=0)


@pytest.mark.parametrize("make", [TCMax, TCMaxLoss])
@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(alignments=1.0), TypeError, "alignments"),
        (dict(alignment=-1.0), ValueError, "weight"),
        (dict(form="nwk"), ValueError, "unknown form 'nwk' .did you mean 'nwj'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_where_they_are_written(make, options, error, match):
    with pytest.raises(error, match=match):
        make(**options)


def test_the_callback_trains_predictions_and_takes_no_prior():
    with pytest.raises(TypeError, match="prior"):  # the logits it trains would lack ln p(y)
        TCMax(prior="empirical")
    with pytest.raises(ValueError, match="targets are numbers"):
        multimodal_learner(loaders(regression=True), method=TCMax())


@pytest.mark.parametrize("call", [tcmax_loss, tcmax_loss_full, tcmax_loss_conditional, tcmax_loss_sampled])
def test_a_misspelt_option_of_a_loss_is_a_type_error(call):
    names = set(inspect.signature(call).parameters)
    assert {"prior", "alignment", "form"} <= names and not names & {"options", "kwargs"}
    with pytest.raises(TypeError, match="alignments"):
        call(None, None, alignments=0.5)


@pytest.mark.parametrize("options", [{}, dict(alignment=0.3), dict(form="nwj"), dict(pairings=40, seed=3)], ids=str)
@pytest.mark.parametrize("head", ["concat", "mlp"])
def test_the_callback_backpropagates_the_function_with_its_options(head, options):
    "In every step, with the draws of its seed and epoch."
    pairs, draws = [], generator(options.get("seed", 0) * 100_003)
    arguments = {name: value for name, value in options.items() if name != "seed"}

    class Watched(TCMax):
        def after_loss(self):
            expected = tcmax_model_loss(self.model, self.zs, self.y, generator=draws, **arguments)
            super().after_loss()
            pairs.append((self.learn.loss_grad.item(), expected.item()))

    torch.manual_seed(0)
    learn = multimodal_learner(loaders(), method=Watched(**options), head=head, width=8)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert pairs and all(one == pytest.approx(other, rel=1e-6) for one, other in pairs)
    assert learn.watched.history["tcmax"] == pytest.approx([np.mean([one for one, _ in pairs])], rel=1e-6)


# ---- the callback beside loops written from the paper


def pairs_and_triples(M):
    def score(model, zs, k):
        return model.fuse(tuple(z[i : i + 1] for z, i in zip(zs, k)))[0].float()

    def bracket(model, zs, normaliser):
        "ln of the sum over all pairings of e^F, minus the mean over the true ones, minus ln B; one pairing at a time."
        B = len(zs[0])
        every = torch.stack([normaliser(score(model, zs, k)) for k in itertools.product(range(B), repeat=M)])
        true = torch.stack([normaliser(score(model, zs, (i,) * M)) for i in range(B)])
        return every.logsumexp(0) - true.mean(0) - math.log(B)

    return bracket


def classes_of(M, bs, C=3):
    x = normal(M, 64, 4, dtype=torch.float32)
    y = ((x[:, :, 0].sum(0) > 0).long() + (x[0, :, 1] > 0.3).long()) % C
    return multimodal_dls({f"x{m}": x[m] for m in range(M)}, y.numpy(), bs=bs, device="cpu", seed=0)


WEIGHTED = CrossEntropyLossFlat(weight=torch.tensor([1.0, 4.0, 0.5]))


@pytest.mark.parametrize("head, M", [("concat", 2), ("concat", 3), ("film", 2), ("mlp", 2)])
@pytest.mark.parametrize("setting", [Setting(), Setting("adam", accumulate=2, clip=0.05, lr=3e-3)], ids=str)
def test_training_is_the_loop_by_hand(setting, head, M):
    bs, bracket = 4 if M > 2 else 6, pairs_and_triples(M)

    def paper(model, xs, y, epoch):
        zs = model.encode(*xs)
        own = model.fuse(zs).float()
        return WEIGHTED(own, y) + bracket(model, zs, lambda f: f.logsumexp(0))

    torch.manual_seed(0)
    learn = multimodal_learner(
        classes_of(M, bs), head=head, method=TCMax(), width=4, loss_func=WEIGHTED, opt_func=setting.opt_func()
    )
    same_trajectory(learn, setting, paper, epochs=1, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("setting", OTHER_ORDER, ids=str)
def test_plain_cross_entropy_gives_the_published_loss_in_every_setting(setting):
    def published(model, xs, y, epoch):
        return tcmax_loss(model.contributions(model.encode(*xs)), y)

    torch.manual_seed(0)
    learn = multimodal_learner(classes_of(2, 8), method=TCMax(), width=4, opt_func=setting.opt_func())
    same_trajectory(learn, setting, published, epochs=2, **(dict(rtol=0.02, atol=2e-3) if setting.bf16 else {}))


@pytest.mark.parametrize("loss", [WEIGHTED, LabelSmoothingCrossEntropyFlat(eps=0.3), FocalLossFlat(gamma=3.0)], ids=str)
def test_the_loss_of_the_learner_acts(loss):
    ends = []
    for func in (loss, CrossEntropyLossFlat()):
        torch.manual_seed(0)
        learn = multimodal_learner(classes_of(2, 8), method=TCMax(), width=4, loss_func=func)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 0.01)
        ends.append(learn.model.head.linear.weight.detach())
    assert not torch.allclose(*ends, atol=1e-3)


def one_against_rest(logits, y):
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[1]).float())


def test_a_loss_that_cannot_be_honoured_is_refused_before_training():
    dls = classes_of(2, 8)
    with pytest.raises(ValueError, match="one_against_rest changes when a number is added"):
        multimodal_learner(dls, method=TCMax(), loss_func=one_against_rest)
    with pytest.raises(ValueError, match="one number per batch"):
        multimodal_learner(dls, method=TCMax(), loss_func=torch.nn.CrossEntropyLoss(reduction="none"))
    learn = multimodal_learner(dls, method=TCMax())
    learn.loss_func = one_against_rest
    with pytest.raises(ValueError, match="changes when a number is added"), learn.no_bar(), learn.no_logging():
        learn.fit(1)


@pytest.mark.parametrize("head", ["concat", "film", "mlp"])
def test_the_losses_of_the_modalities_are_recorded_and_change_nothing(head):
    ends = []
    for monitor in (False, True):
        torch.manual_seed(0)
        method = TCMax(monitor=monitor, pairings=40)
        learn = multimodal_learner(classes_of(2, 8), head=head, method=method, width=4)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 0.01)
        ends.append(learn.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends)))
    assert (
        list(method.history) == ["tcmax", "tcmax x0", "tcmax x1"] and np.isfinite(list(method.history.values())).all()
    )


@pytest.mark.parametrize("M", [1, 2, 3])
def test_unimodal_losses_of_any_head_are_the_marginals_of_its_table(M):
    B, C = 3, 4
    scores, y = normal(*[B] * M, C, scale=3.0), labels(B, C)
    joint, index = scores.flatten().softmax(0).view_as(scores), torch.cartesian_prod(*[torch.arange(B)] * M).view(-1, M)
    beliefs = [joint.movedim(m, 0).reshape(B, -1, C).sum(1) for m in range(M)]
    expected = torch.stack([-(B * q[torch.arange(B), y]).log().mean() for q in beliefs])
    assert_close(unimodal_losses_at(scores.reshape(-1, C), index, y), expected)
    wild = unimodal_losses_at(1e4 * scores.reshape(-1, C).float(), index, y)
    assert wild.isfinite().all()


# ---- several labels


def several(M, C=3, n=32, bs=6, head=ConcatHead):
    sets = []
    for seed in (0, 1):
        x = normal(M, n, 4, seed=seed, dtype=torch.float32)
        y = (x[:, :, :C].sum(0) + normal(n, C, seed=seed + 2, dtype=torch.float32) > 0).float()
        sets.append(TensorDataset(*x, y))
    dls = DataLoaders.from_dsets(*sets, bs=bs, n_inp=M, num_workers=0, device="cpu", drop_last=True)
    torch.manual_seed(0)
    return dls, FusionModel([torch.nn.Linear(4, 3) for _ in range(M)], head((3,) * M, C))


@pytest.mark.parametrize("head, M", [(ConcatHead, 2), (ConcatHead, 3), (FiLMHead, 2), (MLPHead, 2)])
def test_several_labels_are_the_mean_of_binary_losses_by_hand(head, M):
    bracket = pairs_and_triples(M)

    def by_label(model, xs, y, epoch):
        zs, base = model.encode(*xs), model.parts["tcmax_base"]

        class Two:
            @staticmethod
            def fuse(zs):
                return torch.stack([base(zs), base(zs) + model.head(zs)], -1)

        cross_entropies = [F.cross_entropy(Two.fuse(zs)[:, c], y[:, c].long()) for c in range(y.shape[1])]
        brackets = bracket(Two, zs, lambda f: f.logsumexp(-1))
        return sum(a + b for a, b in zip(cross_entropies, brackets)) / y.shape[1]

    setting = Setting(lr=0.05)
    dls, model = several(M, bs=4 if M > 2 else 6, head=head)
    learn = Learner(dls, model, loss_func=BCEWithLogitsLossFlat(), cbs=TCMax(), opt_func=setting.opt_func())
    same_trajectory(learn, setting, by_label, epochs=1, atol=2e-5)


def test_a_softmax_loss_of_several_labels_and_models_without_a_head_are_refused():
    dls, model = several(2)
    with pytest.raises(ValueError, match="loss of their softmax"):
        Learner(dls, model, loss_func=torch.nn.CrossEntropyLoss(), cbs=TCMax())
    early = EarlyFusion(torch.nn.Bilinear(4, 4, 3), 2)
    with pytest.raises(ValueError, match="needs a second head"):
        Learner(dls, early, loss_func=torch.nn.BCEWithLogitsLoss(), cbs=TCMax())


def test_additive_bound_of_one_label_is_the_sum_of_unimodal_informations():
    "As for classes: two logits a label, of which the model has the difference and the base the rest."
    counts = TABLES["general"]
    *xs, y = batch_of(counts)
    H, _, unimodal = truth_of(counts)

    class Table:
        def __init__(self, t):
            self.t = t

        def contributions(self, zs):
            return torch.stack([t[x][:, None] for t, x in zip(self.t, zs)])

        def fuse(self, zs):
            return self.contributions(zs).sum(0)

        __call__ = fuse

    def loss(t):
        model, base = Table(t[0]), Table(t[1])
        f = model.fuse(xs)
        return F.binary_cross_entropy_with_logits(f[:, 0], y.double()) + alignment_term(TwoClasses(model, base), xs)

    least, _ = minimise(loss, 2, 2, 2)
    assert math.log(len(y)) + math.log(2) - least == pytest.approx(unimodal + math.log(2) - H, abs=1e-6)


@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(alignment=math.nan), ValueError, "weight alignment"),
        (dict(alignment="1"), ValueError, "a number in"),
        (dict(form="log"), ValueError, "unknown form"),
        (dict(pairings=2.5), ValueError, "a whole number"),
        (dict(memory=0), ValueError, "memory must be a number in"),
        (dict(seed="a"), ValueError, "^seed must be"),
        (dict(monitor=1), ValueError, "True or False"),
    ],
    ids=str,
)
def test_wrong_kinds_of_options_are_refused_too(options, error, match):
    with pytest.raises(error, match=match):
        TCMax(**options)


# ---- one modality, half precision, memory and what is looked at on the side


def test_one_modality_alone_is_aligned_with_its_own_rows():
    "Its pairings are the true ones, so the bracket is the gap of Jensen between their normalisers."
    model, z = Plain(MLPHead((3,), 4).double()), normal(5, 3, scale=3.0)
    normalisers = model.fuse([z]).logsumexp(1)
    assert_close(pairing_log_sums(model, [z], torch.arange(5)[:, None]), normalisers)
    gap = normalisers.exp().mean().log() - normalisers.mean()
    assert gap > 1e-3
    assert_close(alignment_term(model, [z]), gap)


def test_a_conditional_head_in_half_precision_is_summed_in_single():
    torch.manual_seed(0)
    model = FusionModel([torch.nn.Identity()] * 2, FiLMHead((3, 4), 3)).bfloat16()
    zs = [3 * normal(6, d, seed=d).bfloat16() for d in (3, 4)]
    own, (_, terms) = model.fuse(zs).double(), model.conditional_contributions(zs)
    every = terms[0].double() + terms[1].double()  # (B, B, C), each pairing once
    got = alignment_term(model, zs)
    assert got.dtype == torch.float32
    assert_close(got.double(), every.logsumexp((0, 1, 2)) - own.logsumexp(1).mean() - math.log(6), rtol=0, atol=1e-5)


def test_the_table_of_a_conditional_head_is_made_where_just_it_fits():
    made = []

    class Watched(FiLMHead):
        def conditional_contributions(self, zs):
            made.append(len(zs[0]))
            return super().conditional_contributions(zs)

    torch.manual_seed(0)
    batch, model = 5, FusionModel([torch.nn.Identity()] * 2, Watched((3, 4), 3)).double()
    zs, bytes_of_table = [normal(batch, d) for d in (3, 4)], 2 * batch * batch * 3 * 8  # M tables (B, B, C) of float64
    values = []
    for memory, expected in ((bytes_of_table, [batch]), (bytes_of_table - 1, [])):
        made.clear()
        values.append(alignment_term(model, zs, memory=memory))
        assert made == expected
    assert_close(*values)


@pytest.mark.parametrize(
    "limits", [dict(pairings=0), dict(pairings=1.5), dict(memory=0), dict(memory=math.nan)], ids=str
)
@pytest.mark.parametrize("head", [SumHead, MLPHead])
def test_limits_are_refused_by_every_door(head, limits):
    "Also where a head needs no pairing, so that they would not be read."
    model, zs, y = FusionModel([torch.nn.Identity()] * 2, head((3, 3), 2)), [torch.zeros(4, 3)] * 2, labels(4, 2)
    for call in (alignment_term, lambda *a, **k: tcmax_model_loss(*a, y, **k), lambda *a, **k: TCMaxLoss(**k)):
        with pytest.raises(ValueError, match=f"^{next(iter(limits))} must be"):
            call(model, zs, **limits)


def test_a_misspelt_prior_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="unknown prior 'unifor' .did you mean 'uniform'"):
        TCMaxLoss("unifor")


@pytest.mark.parametrize("head", ["concat", "mlp"])
def test_what_is_recorded_of_each_modality_is_its_loss_over_all_pairings(head):
    expected = []

    class Watched(TCMax):
        def after_loss(self):
            super().after_loss()
            B = len(self.y)
            index = torch.cartesian_prod(torch.arange(B), torch.arange(B))
            logits = torch.cat([self.model.fuse(tuple(z[[i]] for z, i in zip(self.zs, k))) for k in index.tolist()])
            expected.append(unimodal_losses_at(logits, index, self.y))

    torch.manual_seed(0)
    learn = multimodal_learner(classes_of(2, 16), head=head, method=Watched(monitor=True), width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    history = learn.watched.history
    assert_close(torch.tensor([history["tcmax x0"], history["tcmax x1"]])[:, 0], torch.stack(expected).mean(0))


def test_what_is_recorded_of_each_modality_has_each_of_its_rows_however_little_is_allowed():
    torch.manual_seed(0)
    method = TCMax(monitor=True, pairings=1, memory=1)
    learn = multimodal_learner(classes_of(2, 8), head="mlp", method=method, width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    assert np.isfinite(list(method.history.values())).all()


@pytest.mark.parametrize(
    "kind, known", [(ConcatHead, "contributions"), (FiLMHead, "conditional_contributions"), (MLPHead, "")]
)
def test_labels_as_two_classes_have_the_structure_of_the_model(kind, known):
    "No more and no less: what adds up needs no pairing, and what does not must not claim to."
    torch.manual_seed(0)
    base, model = (FusionModel([torch.nn.Identity()] * 2, kind((3, 4), 2)).double() for _ in range(2))
    base.forward = base.fuse
    two, zs = TwoClasses(model, base), [normal(5, d, seed=d) for d in (3, 4)]
    told = [name for name in ("contributions", "conditional_contributions") if hasattr(two, name)]
    assert told == [known] * bool(known)
    with pytest.raises(AttributeError, match="^anything$"):
        two.anything  # noqa: B018
    both = torch.stack([base.fuse(zs), base.fuse(zs) + model.fuse(zs)], -1)
    if known == "contributions":
        assert_close(two.contributions(zs).sum(0), both)
    elif known:
        given, terms = two.conditional_contributions(zs)
        rows = torch.arange(5)
        assert_close(sum(t[rows, 0 if m == given else rows] for m, t in enumerate(terms)), both)


# ---- a step waits for no device, and is one graph


def losses_to_watch(device):
    "The ways to the loss, as functions of tensors on a device."
    torch.manual_seed(0)
    B, C, dims = 6, 4, (3, 5)
    f, y, log_prior = torch.randn(2, B, C), labels(B, C), torch.full((C,), 0.25).log()
    f, y, log_prior = f.to(device), y.to(device), log_prior.to(device)
    zs = [torch.randn(B, d, device=device) for d in dims]
    for prior, alignment, form in (("uniform", 1.0, "dv"), ("empirical", 0.5, "nwj"), (log_prior, 0.0, "dv")):
        yield partial(tcmax_loss, prior=prior, alignment=alignment, form=form), (f, y)
    yield tcmax_loss_full, (torch.randn(B, B, C, device=device), y)
    given, terms = FiLMHead(dims, C).to(device).conditional_contributions(zs)
    yield partial(tcmax_loss_conditional, given), (terms, y)
    index = draw_pairings(B, 2, 7, "shifts", generator()).to(device)
    for diagonal in ("exact", "apart", "drawn"):
        drawn = torch.randn(7, C, device=device)
        yield partial(tcmax_loss_sampled, diagonal=diagonal), (f[0], drawn, index, y)
    for name, head in HEADS.items():
        model = FusionModel([torch.nn.Identity()] * 2, head(dims, C).eval()).to(device)
        for pairings in (None, 9) if name in ("mlp", "attention") else (None,):
            yield partial(tcmax_model_loss, model, pairings=pairings), (zs, y)


def test_no_value_of_another_device_is_read():
    "Tensors of the meta device have none: whoever looks at one is told so."
    for loss, arguments in losses_to_watch("meta"):
        assert loss(*arguments).shape == ()
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(1, device="meta"))


def test_each_loss_is_one_graph_with_its_value_and_gradient():
    for loss, arguments in losses_to_watch("cpu"):
        torch._dynamo.reset()
        features = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
        features = [z.detach().requires_grad_() for z in features]
        given = (features if isinstance(arguments[0], list) else features[0], *arguments[1:])
        answers = []
        for call in (torch.compile(loss, backend="eager", fullgraph=True), loss):
            torch.manual_seed(1)
            value = call(*given)
            answers.append((value, *torch.autograd.grad(value, features)))
        assert_close(*answers)


@pytest.mark.parametrize("monitor", [False, True])
@pytest.mark.parametrize("head", [*HEADS, "labels"])
def test_a_step_of_the_callback_reads_no_values(head, monitor):
    seen = []

    class Watched(TCMax):
        def after_loss(self):
            with Reads() as reads:
                super().after_loss()
            seen.append(reads.seen)

    torch.manual_seed(0)
    if head == "labels":
        dls, model = several(2, head=MLPHead)
        learn = Learner(dls, model, loss_func=BCEWithLogitsLossFlat(), cbs=Watched(monitor=monitor, pairings=20))
    else:
        learn = multimodal_learner(classes_of(2, 8), head=head, method=Watched(monitor=monitor, pairings=20), width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    assert len(seen) > 3 and not sum(seen, [])


def test_the_callback_says_wrong_labels_at_the_loss_and_the_functions_on_the_cpu():
    for call in (tcmax_loss, unimodal_losses):
        with pytest.raises(ValueError, match="got 0 to 4"):
            call(torch.zeros(2, 3, 4), torch.tensor([0, 4, 1]))
    with pytest.raises((IndexError, RuntimeError), match="(out of bounds|out of range)"):  # in a graph: by the look-up
        torch.compile(tcmax_loss, backend="eager", fullgraph=True)(torch.zeros(2, 3, 4), torch.tensor([0, 4, 1]))
    with pytest.raises((IndexError, RuntimeError), match="(out of bounds|out of range)"):
        plain = torch.compile(partial(tcmax_loss, alignment=0.0), backend="eager", fullgraph=True)
        plain(torch.zeros(2, 3, 4), torch.tensor([0, -100, 1]))  # which torch's cross-entropy would leave out


# ---- what is scored by default


@pytest.mark.parametrize("M, B, C, most", [(2, 16, 3, 256), (2, 40, 3, 512), (3, 10, 3, 512), (2, 40, 2048, 128)])
def test_the_default_scores_at_most_512_pairings_and_a_quarter_of_a_million_logits(M, B, C, most):
    torch.manual_seed(0)
    model, zs = Plain(MLPHead((3,) * M, C)), [normal(B, 3, seed=m, dtype=torch.float32) for m in range(M)]
    alignment_term(model, zs, generator=generator())
    assert model.calls == [B, most] and most <= PAIRINGS and most * C <= NUMBERS


@pytest.mark.parametrize("B, C, made", [(32, 128, True), (32, 129, False), (8, 4096, True), (8, 4097, False)])
def test_the_table_of_a_conditional_head_is_bounded_and_made_where_all_pairings_are_allowed(B, C, made):
    counts = []

    class Watched(FiLMHead):
        def conditional_contributions(self, zs):
            counts.append(len(zs[0]))
            return super().conditional_contributions(zs)

    torch.manual_seed(0)
    model, zs = FusionModel([torch.nn.Identity()] * 2, Watched((3, 4), C)), [normal(B, d).float() for d in (3, 4)]
    assert made == (2 * B * B * C <= NUMBERS or B * B * C <= NUMBERS and B * B <= PAIRINGS)
    alignment_term(model, zs)
    assert counts == [B] * made
    counts.clear()
    every = alignment_term(model, zs, pairings=B * B)
    assert counts == [B]
    assert_close(every, alignment_term(Plain(model.head), zs, pairings=B * B))
    sampled = (
        [alignment_term(model, zs, pairings=64, generator=generator(s)) for s in range(30)] if not made else [every]
    )
    assert (torch.stack(sampled).mean() - every).abs() < 0.05


@pytest.mark.parametrize("K", [5, 20, 37, 64])
def test_shifts_are_false_different_and_equally_often_each(K):
    B, runs, counts = 9, 3000, torch.zeros(9, 9)
    for s in range(runs):
        index = draw_pairings(B, 2, K, "shifts", generator(s))
        assert (index[:, 0] != index[:, 1]).all() and len(index.unique(dim=0)) == K
        for block in index.split(B):
            assert all(len(rows.unique()) == len(block) for rows in block.T)
        counts.index_put_(tuple(index.T), torch.ones(K), accumulate=True)
    off = counts[~torch.eye(B).bool()] / runs
    p = K / (B * B - B)
    assert (off - p).abs().max() < 4.5 * math.sqrt(p * (1 - p) / runs)


@pytest.mark.parametrize("B, M", [(3, 3), (2, 5), (300, 3), (5, 9)])
def test_shifts_of_many_modalities_are_false(B, M):
    "Also where there are more of them than are put in order."
    index = draw_pairings(B, M, 4 * B, "shifts", generator())
    assert index.shape == (4 * B, M) and ((index != index[:, :1]).any(1)).all()
    for block in index.split(B):
        assert (block.sort(0).values == torch.arange(B)[:, None]).all()


@pytest.mark.parametrize("K", [8, 24, 100])
def test_the_sum_over_shifts_is_unbiased(K):
    scores, y = normal(12, 12, 3), labels(12, 3)
    errors = torch.stack([sampled(scores, y, K, s, "shifts", "apart", form="nwj") for s in range(1500)])
    errors = errors - tcmax_loss_full(scores, y, form="nwj")
    standard_error = errors.std() / len(errors) ** 0.5
    assert standard_error < 0.02 and errors.mean().abs() < 4 * standard_error


def test_main_effects_make_no_error_of_whole_shifts():
    rows, columns, y = normal(16, 1, 1), normal(1, 16, 1), labels(16, 2)
    scores = (rows + 0 * columns).exp().log().expand(16, 16, 2)
    for s in range(5):
        assert_close(sampled(scores, y, 16, s, "shifts", "apart"), tcmax_loss_full(scores, y))
    errors = [sampled(scores, y, 16, s, "independent", "exact") - tcmax_loss_full(scores, y) for s in range(20)]
    assert torch.stack(errors).std() > 0.05
