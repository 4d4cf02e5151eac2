"Bounds against exact distributions: below the truth, and tight at the best score."

import math

import pytest
import torch
from common import generator
from torch.testing import assert_close

from mmlit.bounds import (
    class_labels,
    class_log_prior,
    donsker_varadhan,
    info_nce,
    log_mean_exp,
    log_prior_of,
    matched_logits,
    nwj,
    tcne,
    tcne_additive,
)
from mmlit.information import (
    gaussian_mutual_information,
    kl_divergence,
    mutual_information,
    total_correlation,
)


def random_table(*shape, seed=0):
    scores = torch.rand(shape, generator=generator(seed), dtype=torch.float64).pow(2)
    return scores.flatten().softmax(0).reshape(shape)


@pytest.mark.parametrize("seed", range(5))
def test_donsker_varadhan_of_weighted_draws_is_below_the_divergence_and_tight_at_the_log_ratio(seed):
    p, q = torch.randn(2, 7, generator=generator(seed), dtype=torch.float64).softmax(1)
    exact = lambda T: (p * T).sum() - (q.log() + T).logsumexp(0)
    assert_close(exact((p / q).log() - 3), kl_divergence(p, q))
    for T in torch.randn(200, 7, generator=generator(seed + 10), dtype=torch.float64) * 3:
        assert exact(T) <= kl_divergence(p, q) + 1e-12


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_donsker_varadhan_and_nwj_at_the_best_score_are_the_gaussian_information(rho, runs=60, n=3000):
    truth = gaussian_mutual_information(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64), (1, 1)).item()
    T = lambda x, y: -0.5 * math.log(1 - rho**2) - (rho**2 * (x * x + y * y) - 2 * rho * x * y) / (2 * (1 - rho**2))
    bounds = []
    for seed in range(runs):
        x, e, other = torch.randn(3, n, generator=generator(seed), dtype=torch.float64)
        y = rho * x + math.sqrt(1 - rho**2) * e
        bounds.append([donsker_varadhan(T(x, y), T(x, other)), nwj(1 + T(x, y), 1 + T(x, other))])
    bounds = torch.tensor(bounds)
    error = bounds.std(0) / math.sqrt(runs)
    assert (error < 0.01).all() and ((bounds.mean(0) - truth).abs() <= 4 * error + 1e-7).all()


@pytest.mark.parametrize("n", [2, 5, 30])
def test_info_nce_is_at_most_log_n_and_below_the_truth_in_expectation(n, runs=4000, rho=0.9):
    truth = -0.5 * math.log(1 - rho**2)
    x, e = torch.randn(2, runs, n, generator=generator(), dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * e
    a, b = x[:, :, None], y[:, None]
    bounds = torch.stack([info_nce(s) for s in -(rho**2 * (a * a + b * b) - 2 * rho * a * b) / (2 * (1 - rho**2))])
    assert (bounds <= math.log(n) + 1e-9).all()
    assert bounds.mean() < min(truth, math.log(n)) + 4 * bounds.std() / math.sqrt(runs)


def test_log_mean_exp_is_finite_and_has_softmax_gradients():
    x = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    log_mean_exp(x).backward()
    assert_close(x.grad, torch.tensor([1.0, 0.0, 0.0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert log_mean_exp(torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 2, 3, 3)])
@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_tcne_on_a_table_written_out_as_a_batch_is_the_total_correlation(shape, prior):
    "A table whose cells are multiples of 1/B is a batch; the best score reaches its TC, plus the surplus of the prior."
    rows = torch.stack(
        [
            torch.randint(s, (40,), generator=generator(3))
            if m == 0
            else torch.randint(s, (40,), generator=generator(m))
            for m, s in enumerate(shape)
        ],
        1,
    )
    *zs, y = rows.T
    p = torch.zeros(shape, dtype=torch.float64)
    p.index_put_(tuple(rows.T), torch.full((40,), 1 / 40, dtype=torch.float64), accumulate=True)
    q = torch.ones((), dtype=torch.float64)
    for m in range(len(shape)):
        marginal = p.sum([d for d in range(p.ndim) if d != m])
        q = q[..., None] * (
            marginal if m < p.ndim - 1 or prior == "empirical" else torch.full_like(marginal, 1 / shape[-1])
        )
    best = torch.where(p > 0, (p / q).log(), -60.0)
    scores = best[tuple(z.reshape((1,) * m + (-1,) + (1,) * (len(zs) - 1 - m)) for m, z in enumerate(zs))]
    label = p.sum(list(range(p.ndim - 1)))
    surplus = (math.log(shape[-1]) + torch.special.xlogy(label, label).sum()) if prior == "uniform" else 0
    assert_close(tcne(scores, y, prior), total_correlation(p) + surplus)


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_additive_form_is_the_full_form(M, prior):
    f = torch.randn(M, 5, 3, generator=generator(M), dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2, 2, 0, 2])  # class 1 absent
    full = sum(f[m].reshape((1,) * m + (5,) + (1,) * (M - m - 1) + (3,)) for m in range(M))
    assert_close(tcne_additive(f, y, prior), tcne(full, y, prior))
    fast, slow = (
        torch.autograd.grad(loss, f, retain_graph=True)[0]
        for loss in (tcne_additive(f, y, prior), tcne(full, y, prior))
    )
    assert_close(fast, slow)
    assert fast.isfinite().all() and fast.sum().abs() < 1e-12  # a constant changes nothing


def test_scores_of_1e4_are_finite_with_finite_gradients():
    for make in (
        lambda: 1e4 * torch.randn(3, 6, 4, generator=generator()),
        lambda: 1e4 * torch.randn(6, 6, 4, generator=generator()),
    ):
        scores = make().requires_grad_()
        loss = (tcne_additive if len(scores) == 3 else tcne)(scores, torch.arange(6) % 4)
        loss.backward()
        assert loss.isfinite() and scores.grad.isfinite().all()
    assert matched_logits(torch.zeros(1, 1, 3)).shape == (1, 3) and tcne(torch.zeros(1, 1, 3), torch.tensor([2])) == 0


@pytest.mark.parametrize("seed", range(3))
def test_no_additive_score_exceeds_the_sum_of_pair_informations(seed):
    "The theorem, on random distributions with three modalities and random scores; equality at its optimum."
    p = random_table(2, 3, 2, 3, seed=seed)
    q = torch.ones((), dtype=torch.float64)
    for m in range(4):
        q = q[..., None] * p.sum([d for d in range(4) if d != m])
    pairs = sum(mutual_information(p.sum([d for d in range(3) if d != m])) for m in range(3))
    bound = lambda f: (p * f).sum() - (q.log() + f).flatten().logsumexp(0)
    spread = lambda t, m: t.reshape([t.shape[0] if d == m else t.shape[1] if d == 3 else 1 for d in range(4)])

    def best(m):
        joint = p.sum([d for d in range(3) if d != m])
        return spread((joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log(), m)

    assert_close(bound(sum(best(m) for m in range(3))), pairs)
    for k in range(200):
        g = generator(1000 * seed + k)
        assert (
            bound(sum(spread(torch.randn(p.shape[m], 3, generator=g, dtype=torch.float64), m) for m in range(3)))
            <= pairs + 1e-12
        )
    assert pairs < total_correlation(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priors_are_frequencies_of_the_wanted_type(dtype):
    y = class_labels(torch.tensor([2, 0, 2, 1], dtype=torch.uint8), 4, 3)
    assert y.dtype == torch.int64 and type(y) is torch.Tensor
    for prior, frequencies in (
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("empirical", [0.25, 0.25, 0.5]),
        (class_log_prior(y, 3, smoothing=1), [2 / 7, 2 / 7, 3 / 7]),
    ):
        assert_close(log_prior_of(prior, y, 3, dtype).exp(), torch.tensor(frequencies, dtype=dtype), check_dtype=True)


@pytest.mark.parametrize(
    "y, message",
    [
        ([0.0, 1.0], "continuous"),
        ([0, 3], "0 to 2, got 0 to 3"),
        ([-1, 0], "0 to 2, got -1 to 0"),
        ([0, 1, 2], "one label per sample"),
        ([[0, 1]], "one label per sample"),
    ],
)
def test_what_is_no_label_is_refused(y, message):
    for f in (
        lambda: class_labels(torch.tensor(y), 2, 3),
        lambda: tcne(torch.zeros(2, 2, 3), torch.tensor(y)),
        lambda: tcne_additive(torch.zeros(2, 2, 3), torch.tensor(y)),
    ):
        with pytest.raises(ValueError, match=message):
            f()


@pytest.mark.parametrize(
    "prior, message",
    [
        ("empircal", "did you mean 'empirical'"),
        (torch.zeros(2), "3 frequencies"),
        (torch.zeros(3), "sum to 1"),
        (torch.tensor([0.5, 0.5, 0.0]).log(), "no weight"),
    ],
)
def test_what_is_no_prior_is_refused(prior, message):
    y = torch.tensor([0, 2])
    for f in (tcne, tcne_additive):
        with pytest.raises(ValueError, match=message):
            f(torch.zeros(2, 2, 3), y, prior)


@pytest.mark.parametrize("total, fine", [(0.9993, True), (1.0007, True), (0.998, False), (1.002, False), (1.9, False)])
def test_a_prior_sums_to_1_within_a_thousandth(total, fine):
    y, prior = torch.tensor([0, 1]), torch.tensor([0.3, 0.7]).mul(total).log()
    calls = (
        lambda: log_prior_of(prior, y, 2, torch.float32),
        lambda: tcne(torch.zeros(2, 2, 2), y, prior),
        lambda: tcne_additive(torch.zeros(2, 2, 2), y, prior),
    )
    for call in calls:
        if fine:
            call()
        else:
            with pytest.raises(ValueError, match=f"sum to 1, got shape .* with sum {total:.4g}"):
                call()
