"Information on tables and Gaussians: identities, known answers, other packages, proofs of the union information."

import inspect
import math
import time
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import mutual_info_score
from torch.testing import assert_close

from mmlit import information
from mmlit.information import (
    _Couplings,
    _line_search,
    _match_marginals,
    _newton_step,
    check_distribution,
    conditional_mutual_information,
    dual_total_correlation,
    entropy,
    gaussian_conditional_mutual_information,
    gaussian_mutual_information,
    gaussian_total_correlation,
    guaranteed_information,
    information_decomposition,
    interaction_information,
    js_divergence,
    kl_divergence,
    marginal,
    mutual_information,
    pairwise_marginals,
    partial_information,
    total_correlation,
    union_information,
)

F64 = torch.float64
ONE_TABLE = dict(
    entropy=entropy,
    total_correlation=total_correlation,
    dual_total_correlation=dual_total_correlation,
    interaction_information=interaction_information,
)
SHAPES = [(2, 2, 2), (3, 4, 2), (5, 2, 6), (2, 3, 2, 3), (2, 2, 2, 2, 2)]


def random_table(*shape, seed=0, zeros=0.0):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(shape, generator=g, dtype=F64).log().neg() * (torch.rand(shape, generator=g) >= zeros)
    return p / p.sum()


def concentrated(*shape, seed=0, spread=6.0):
    "Entries over many orders of magnitude."
    p = (spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)).flatten().softmax(0)
    return p.reshape(shape)


def bits(n, f):
    p = torch.zeros(*[2] * n, 1 + max(f(*x) for x in product((0, 1), repeat=n)), dtype=F64)
    for x in product((0, 1), repeat=n):
        p[(*x, f(*x))] = 0.5**n
    return p


AND, XOR, UNQ = bits(2, lambda a, b: a & b), bits(2, lambda a, b: a ^ b), bits(2, lambda a, b: 2 * a + b)
RDN = torch.zeros(2, 2, 2, dtype=F64)
RDN[0, 0, 0] = RDN[1, 1, 1] = 0.5

# --- the table functions


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_terms_are_sums_over_the_table(shape, zeros):
    p = random_table(*shape, zeros=zeros)
    cells = [(i, v) for i, v in zip(product(*map(range, shape)), p.flatten().tolist()) if v > 0]
    one = [p.sum([k for k in range(p.ndim) if k != m]) for m in range(p.ndim)]
    assert math.isclose(
        total_correlation(p),
        sum(v * math.log(v / math.prod(float(o[j]) for o, j in zip(one, i))) for i, v in cells),
        abs_tol=1e-12,
    )
    three = p.sum(list(range(3, p.ndim))) if p.ndim > 3 else p
    xz, yz, z = three.sum(1), three.sum(0), three.sum((0, 1))
    expected = sum(
        float(v) * math.log(float(v * z[k] / (xz[i, k] * yz[j, k])))
        for i, j, k in product(*map(range, three.shape))
        if (v := three[i, j, k]) > 0
    )
    assert math.isclose(conditional_mutual_information(three), expected, abs_tol=1e-12)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_decomposition_is_exact_and_its_terms_are_amounts(shape, zeros):
    for seed in range(10):
        p = random_table(*shape, seed=seed, zeros=zeros)
        d, M = information_decomposition(p), p.ndim - 1
        x = p.sum(-1)
        assert_close(d.joint, mutual_information(p.reshape(-1, shape[-1])))
        assert_close(d.single, torch.stack([mutual_information(w) for w in pairwise_marginals(p)]))
        assert_close(
            d.given_rest,
            torch.stack(
                [
                    conditional_mutual_information(p.movedim(m, 0).reshape(shape[m], -1, shape[-1]).transpose(1, 2))
                    for m in range(M)
                ]
            ),
        )
        assert_close(d.total_correlation, total_correlation(x))
        assert_close(d.dual_total_correlation, dual_total_correlation(x))
        given = [(float(w), p[..., y] / w) for y, w in enumerate(marginal(p, -1)) if w > 0]
        assert_close(d.total_correlation_given_y, sum(w * total_correlation(q) for w, q in given))
        assert_close(d.dual_total_correlation_given_y, sum(w * dual_total_correlation(q) for w, q in given))
        assert_close(d.joint, d.single.sum() - d.total_correlation + d.total_correlation_given_y)
        assert_close(d.joint, d.given_rest.sum() + d.shared)
        assert_close(total_correlation(p), d.total_correlation + d.joint)
        assert min(float(t.min()) for t in d) > -1e-12
        if M == 2:
            assert_close(d.shared, interaction_information(p))


def test_measures_do_not_depend_on_names():
    p = random_table(3, 4, 2, seed=1)
    shuffled = p[[2, 0, 1]][:, [3, 1, 0, 2]][:, :, [1, 0]]
    for f in ONE_TABLE.values():
        assert_close(f(shuffled), f(p))
        assert_close(f(p.permute(2, 0, 1)), f(p))
    assert_close(mutual_information(p[:, :, 0] / p[:, :, 0].sum()), mutual_information(p[:, :, 0].T / p[:, :, 0].sum()))


def test_values_are_those_of_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 6, (4, 5))
        p, q = torch.tensor(counts / counts.sum()), random_table(4, 5, seed=int(rng.integers(1000)))
        assert math.isclose(entropy(p), scipy_entropy(p.flatten()), rel_tol=1e-12)
        assert math.isclose(kl_divergence(p, q), scipy_entropy(p.flatten(), q.flatten()), rel_tol=1e-12)
        assert math.isclose(js_divergence(p, q), jensenshannon(p.flatten(), q.flatten()) ** 2, rel_tol=1e-10)
        assert math.isclose(mutual_information(p), mutual_info_score(None, None, contingency=counts), rel_tol=1e-10)


@pytest.mark.parametrize("name", ONE_TABLE)
def test_gradients_are_right_and_finite_at_zeros(name):
    f = ONE_TABLE[name]
    theta = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    soft = lambda t: t.flatten().softmax(0).reshape(t.shape)
    assert torch.autograd.gradcheck(lambda t: f(soft(t)), theta)
    impossible = torch.zeros(2, 3, 2, dtype=torch.bool)
    impossible[0, 1] = impossible[1, 2, 0] = impossible[:, 0, 1] = True
    kept = theta.detach()[~impossible].requires_grad_()
    full = lambda t: torch.full_like(theta, -math.inf).masked_scatter(~impossible, t)
    assert torch.autograd.gradcheck(
        lambda t: f(soft(full(t))), kept
    )  # the chain rule through a softmax with impossible cells
    p = soft(full(kept.detach())).requires_grad_()
    assert torch.autograd.grad(f(p), p)[0].isfinite().all()


def test_other_gradients_are_right_and_finite_at_zeros():
    soft = lambda t: t.flatten().softmax(0).reshape(t.shape)
    theta = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    other = random_table(2, 3, 2, seed=3)
    for f in (
        conditional_mutual_information,
        lambda p: mutual_information(p.sum(2)),
        lambda p: js_divergence(p, other),
        lambda p: kl_divergence(p, other),
        lambda p: kl_divergence(other, p),
        lambda p: torch.cat([t.reshape(-1) for t in information_decomposition(p)]),
    ):
        assert torch.autograd.gradcheck(lambda t, f=f: f(soft(t)), theta)
    p = random_table(2, 3, 2, zeros=0.5).requires_grad_()
    for f in (
        conditional_mutual_information,
        lambda p: js_divergence(p, other),
        lambda p: information_decomposition(p).given_rest.sum(),
    ):
        assert torch.autograd.grad(f(p), p)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_any_precision_is_taken(dtype):
    p = torch.full((4, 2, 2), 1 / 16, dtype=dtype)
    assert entropy(p).dtype == (F64 if dtype == F64 else torch.float32)
    assert_close(entropy(p).double(), torch.tensor(16.0, dtype=F64).log())
    assert abs(union_information(p).information) < 1e-6 and union_information(p).information.dtype == entropy(p).dtype


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.zeros(()), "one or more"),
        (torch.tensor([1, 0]), "counts"),
        (torch.tensor([0.5, math.nan]), "1 of 2"),
        (torch.tensor([math.inf, 0.0]), "NaN or infinity"),
        (torch.tensor([1.1, -0.1]), "negative entries, the smallest -0.1"),
        (torch.tensor([0.3, 0.3]), "sums to 0.6"),
        (torch.zeros(2), "sums to 0"),
    ],
)
def test_what_is_no_distribution_is_refused(bad, message):
    for f in (check_distribution, entropy, total_correlation, lambda p: kl_divergence(p, p)):
        with pytest.raises(ValueError, match=message):
            f(bad)


def test_wrong_number_of_axes_is_refused():
    for f, n in ((mutual_information, 2), (conditional_mutual_information, 3)):
        with pytest.raises(ValueError, match=rf"{n} axes.*\(2, 2, 2, 2\)"):
            f(torch.full((2,) * 4, 1 / 16))
    for f in (information_decomposition, union_information, partial_information):
        with pytest.raises(ValueError, match=r"two or more modalities.*\(2, 2\)"):
            f(torch.full((2, 2), 0.25))
    for f in (dual_total_correlation, interaction_information):
        with pytest.raises(ValueError, match="two or more axes"):
            f(torch.ones(1))
    with pytest.raises(ValueError, match="same shape"):
        js_divergence(torch.full((2, 2), 0.25), torch.full((4,), 0.25))


# --- union information and what follows from it

TABLES = {
    f"{'x'.join(map(str, shape))} {kind}": make(shape)
    for shape in [(2, 2, 2), (3, 4, 2), (5, 5, 5), (8, 8, 8), (2, 2, 2, 2), (4, 3, 3, 4)]
    for kind, make in dict(
        positive=lambda s: random_table(*s),
        sparse=lambda s: random_table(*s, zeros=0.7),
        concentrated=lambda s: concentrated(*s),
    ).items()
}


@pytest.mark.parametrize("name", TABLES)
def test_gap_closes_and_both_proofs_hold(name):
    p = TABLES[name]
    M, marginals = p.ndim - 1, pairwise_marginals(p)
    u = union_information(p)
    assert 0 <= u.gap <= 1e-8
    for w, expected in zip(pairwise_marginals(u.coupling), marginals):
        assert_close(w, expected, atol=1e-14, rtol=0)
    assert (u.coupling >= 0).all()
    assert_close(information_decomposition(u.coupling).joint, u.information + u.gap, atol=1e-12, rtol=0)
    seen = torch.ones(p.shape, dtype=torch.bool)
    total = torch.zeros_like(p)
    for m, (w, s) in enumerate(zip(marginals, u.scores)):
        shape = [-1 if k == m else 1 for k in range(M)] + [p.shape[-1]]
        seen &= (w > 0).reshape(shape)
        total = total + s.reshape(shape)
    assert total.masked_fill(~seen, -math.inf).logsumexp(-1).max() < 1e-12
    assert_close(entropy(marginal(p, -1)) + sum((w * s).sum() for w, s in zip(marginals, u.scores)), u.information)


@pytest.mark.parametrize("seed", range(5))
def test_union_lies_between_random_scores_and_random_couplings(seed):
    p = random_table(3, 4, 3, seed=seed, zeros=0.3)
    marginals, u = pairwise_marginals(p), union_information(p)
    for k in range(50):
        g = torch.Generator().manual_seed(k)
        q = torch.tensor(
            _match_marginals(
                (u.coupling + 0.2 * torch.rand(p.shape, generator=g, dtype=F64) / p.numel()).numpy(),
                [w.numpy() for w in marginals],
            )
        )
        assert information_decomposition(q).joint >= u.information - 1e-12
        scores = [s + 0.1 * torch.randn(s.shape, generator=g, dtype=F64) for s in u.scores]
        assert guaranteed_information(scores, marginals)[0] <= u.information + u.gap + 1e-12


@pytest.mark.parametrize("name", TABLES)
def test_amounts_are_amounts_and_add_up(name):
    p = TABLES[name]
    a, d = partial_information(p), information_decomposition(p)
    assert a.gap < 1e-7
    assert (
        min(float(a.unique.min()), float(a.redundant), float(a.synergy)) > -a.gap - 1e-12
    )  # redundant >= 0: proved for M <= 3
    assert_close(a.unique.sum() + a.redundant + a.synergy, a.joint)
    assert_close(a.joint, d.joint)
    assert d.single.max() - 1e-8 <= a.union <= min(d.single.sum(), d.joint) + 1e-12
    if p.ndim == 3:
        assert_close(a.unique + a.redundant, d.single)
        assert_close(a.unique + a.synergy, d.given_rest)


@pytest.mark.parametrize(
    "p, unique, redundant, synergy",
    [
        (AND, (0, 0), 0.3112781244591328, 0.5),
        (XOR, (0, 0), 0, 1),
        (RDN, (0, 0), 1, 0),
        (UNQ, (1, 1), 0, 0),
        (bits(2, lambda a, b: a), (1, 0), 0, 0),
        (bits(2, lambda a, b: a + b), (0, 0), 0.5, 1),
        (bits(3, lambda a, b, c: a ^ b ^ c), (0, 0, 0), 0, 1),
        (bits(3, lambda a, b, c: 4 * a + 2 * b + c), (1, 1, 1), 0, 0),
    ],
    ids=["AND", "XOR", "RDN", "UNQ", "first bit", "SUM", "PARITY", "UNQ3"],
)
def test_known_answers_in_bits(p, unique, redundant, synergy):
    a = partial_information(p)
    got = torch.cat([a.unique, a.redundant[None], a.synergy[None]]) / math.log(2)
    assert_close(got, torch.tensor([*unique, redundant, synergy], dtype=F64), atol=1e-7, rtol=0)


def test_union_does_not_depend_on_names_and_swaps_with_the_modalities():
    p = random_table(3, 4, 2, seed=1)
    a, b = partial_information(p), partial_information(p.transpose(0, 1)[[3, 0, 2, 1]][:, :, [1, 0]])
    assert_close(a.unique, b.unique.flip(0), atol=2e-8, rtol=0)
    assert_close(a.synergy, b.synergy, atol=2e-8, rtol=0)


def test_a_modality_that_is_noise_or_a_copy_changes_nothing():
    p = random_table(3, 4, 2, seed=2)
    noise = torch.einsum("ijy,k->ijky", p, torch.tensor([0.3, 0.7], dtype=F64))
    copied = torch.einsum("ijy,ik->ijky", p, torch.eye(3, dtype=F64))
    a, n, c = partial_information(p), partial_information(noise), partial_information(copied)
    assert_close(torch.stack([n.union, c.union]), torch.stack([a.union, a.union]), atol=1e-7, rtol=0)
    assert n.unique[2] < 1e-7 and c.unique[[0, 2]].max() < 1e-7
    assert_close(torch.stack([n.synergy, c.synergy]), torch.stack([a.synergy, a.synergy]), atol=1e-7, rtol=0)


def test_gradient_is_that_of_finite_differences():
    for seed in range(3):
        p, towards = (
            random_table(3, 3, 2, seed=seed),
            random_table(3, 3, 2, seed=seed + 50) - random_table(3, 3, 2, seed=seed),
        )
        q = p.clone().requires_grad_()
        slope = (torch.autograd.grad(partial_information(q).synergy, q)[0] * towards).sum()
        difference = (
            partial_information(p + 1e-3 * towards).synergy - partial_information(p - 1e-3 * towards).synergy
        ) / 2e-3
        assert_close(slope, difference, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tiny", [1e-10, 1e-30, 1e-59, 1e-100, 1e-300])
def test_tiny_cells_do_no_harm(tiny):
    p = XOR.clone()
    p[0, 0, 1] = p[1, 0, 0] = tiny
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = partial_information(p / p.sum())
    assert_close(a.synergy / math.log(2), torch.tensor(1.0, dtype=F64), atol=1e-7, rtol=0)


def test_large_tables_take_seconds():
    start = time.perf_counter()
    assert union_information(random_table(20, 20, 10, zeros=0.3)).gap <= 1e-8
    assert time.perf_counter() - start < 30


def test_too_few_steps_warn_and_still_tell_the_truth():
    p = random_table(5, 5, 5, seed=1)
    truth = union_information(p)
    with pytest.warns(UserWarning, match="known within"):
        early = union_information(p, max_steps=3)
    assert (
        early.gap > 1e-8
        and early.information <= truth.information + truth.gap
        and truth.information <= early.information + early.gap
    )


def test_amounts_are_those_of_dit(tries=20):
    "dit's BROJA starts at random and may stop early: each answer is an upper bound of the union, some are the union."
    dit = pytest.importorskip("dit")
    from dit.pid import PID_BROJA

    atoms = ((0,),), ((1,),), ((0,), (1,)), ((0, 1),)  # unique to each, redundant, synergy
    for seed, shape in enumerate([(2, 2, 2), (2, 3, 2), (2, 2, 3)]):
        p = random_table(*shape, seed=seed, zeros=0.2)
        d, ours = (
            dit.Distribution(["".join(map(str, i)) for i in product(*map(range, shape))], p.flatten().tolist()),
            partial_information(p),
        )
        for _ in range(tries):
            pid = PID_BROJA(d, [[0], [1]], [2])
            theirs = np.array([float(pid[a]) * math.log(2) for a in atoms])
            assert theirs[:3].sum() >= float(ours.union) - 1e-4  # its constraints hold within about 1e-5
            if np.allclose(
                theirs, [*ours.unique.tolist(), float(ours.redundant), float(ours.synergy)], rtol=0, atol=2e-4
            ):
                break
        else:
            pytest.fail(f"none of {tries} answers like ours on table {seed}")
        for mine, their in (
            (total_correlation, "total_correlation"),
            (dual_total_correlation, "dual_total_correlation"),
            (interaction_information, "coinformation"),
        ):
            assert math.isclose(mine(p), getattr(dit.multivariate, their)(d) * math.log(2), abs_tol=1e-9)


# --- Gaussians


def covariance(d, seed=0):
    x = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return x @ x.T / d


def test_gaussian_identities():
    cov = covariance(6)
    blocks = lambda *index: cov[list(index)][:, list(index)]
    assert_close(
        gaussian_mutual_information(cov, (2, 4)),
        gaussian_mutual_information(blocks(0, 1, 4, 5), (2, 2))
        + gaussian_conditional_mutual_information(blocks(0, 1, 2, 3, 4, 5), (2, 2, 2)),
    )
    assert_close(
        gaussian_total_correlation(cov, (2, 1, 3)),
        gaussian_mutual_information(cov[:3, :3], (2, 1)) + gaussian_mutual_information(cov, (3, 3)),
    )
    assert_close(
        gaussian_total_correlation(cov, [1] * 6), -0.5 * (cov / cov.diagonal().outer(cov.diagonal()).sqrt()).logdet()
    )
    mixing = torch.block_diag(covariance(2, 1), covariance(4, 2))  # invertible within each block
    assert_close(gaussian_mutual_information(mixing @ cov @ mixing.T, (2, 4)), gaussian_mutual_information(cov, (2, 4)))
    units = torch.tensor([1e-6, 1e6, 1.0, 1e3, 1e-3, 1.0], dtype=F64).diag()
    assert_close(gaussian_total_correlation(units @ cov @ units, (2, 4)), gaussian_total_correlation(cov, (2, 4)))
    assert_close(
        gaussian_total_correlation(torch.stack([cov, covariance(6, 3)]), (3, 3))[1],
        gaussian_total_correlation(covariance(6, 3), (3, 3)),
    )


def test_gaussian_gradients():
    cov = covariance(4).requires_grad_()
    for f in (
        lambda c: gaussian_total_correlation(c, (1, 1, 2)),
        lambda c: gaussian_conditional_mutual_information(c, (1, 2, 1)),
    ):
        assert torch.autograd.gradcheck(lambda c, f=f: f((c + c.T) / 2), cov)


def test_gaussian_truth_is_the_mean_log_ratio_of_draws(runs=20, n=5000):
    cov, (i, j) = covariance(4), (slice(0, 1), slice(1, 4))
    log_density = lambda x, c: torch.distributions.MultivariateNormal(torch.zeros(len(c), dtype=F64), c).log_prob(x)

    def estimate(seed):
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64) @ torch.linalg.cholesky(cov).T
        return (log_density(x, cov) - log_density(x[:, i], cov[i, i]) - log_density(x[:, j], cov[j, j])).mean()

    estimates = torch.stack([estimate(s) for s in range(runs)])
    error = estimates.std() / runs**0.5
    assert error < 0.01
    assert (estimates.mean() - gaussian_mutual_information(cov, (1, 3))).abs() < 4 * error


@pytest.mark.parametrize(
    "cov, dims, message",
    [
        (torch.ones(3), (1, 2), "square"),
        (torch.eye(3), (1, 1), "add up to 3"),
        (torch.eye(3), (3,), "two or more"),
        (torch.eye(3), (3, 0), "add up to 3"),
        (torch.eye(2).long(), (1, 1), "floating point"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), (1, 1), "coordinate 1"),
        (torch.tensor([[1.0, 0.2], [0.1, 1.0]]), (1, 1), "symmetric"),
        (torch.full((2, 2), math.nan), (1, 1), "NaN"),
        (torch.zeros(2, 2), (1, 1), "coordinate 0"),
    ],
)
def test_what_is_no_covariance_is_refused(cov, dims, message):
    with pytest.raises(ValueError, match=message):
        gaussian_total_correlation(cov, dims)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_coordinate_that_is_a_sum_of_others_is_refused_although_rounding_hides_it(dtype):
    for seed in range(20):
        x = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        x = torch.cat([x, x.sum(0, keepdim=True)])
        with pytest.raises(ValueError, match="coordinate 3"):
            gaussian_mutual_information(x @ x.T, (2, 2))


def test_marginals_of_variables_that_are_not_there_are_refused():
    p = np.full((2, 3, 4), 1 / 24)
    assert marginal(p, 0, -1).shape == (2, 4)
    for axis in (3, -4):
        with pytest.raises(ValueError, match="no variable"):
            marginal(p, axis)


def test_options_of_the_solver_are_passed_on_and_typing_errors_fail():
    p = random_table(4, 4, 4)
    with pytest.warns(UserWarning, match="raise max_steps"):
        assert partial_information(p, max_steps=2).gap > 1e-3
    assert partial_information(p, tolerance=1e-2).gap > partial_information(p).gap
    with pytest.raises(TypeError, match="max_step"):
        partial_information(p, max_step=2)


def test_decomposition_keeps_the_precision_of_its_table():
    "Half precision is widened to float32, and float64 stays."
    p = torch.full((2, 2, 2), 1 / 8, dtype=torch.float16)
    for dtype, expected in ((torch.float16, torch.float32), (F64, F64)):
        for term in (*information_decomposition(p.to(dtype)), guaranteed(p.to(dtype))):
            assert term.dtype == expected


def guaranteed(p):
    pairs = [pair.to(F64 if p.dtype == F64 else torch.float32) for pair in pairwise_marginals(p)]
    return guaranteed_information([torch.zeros_like(pair) for pair in pairs], pairs)[0]


def test_lists_are_tables_too():
    copied = [[0.5, 0.0], [0.0, 0.5]]
    for measure in (total_correlation, dual_total_correlation, mutual_information, interaction_information):
        assert measure(copied).item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_gap_that_is_closed_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = union_information(random_table(3, 4, 3, seed=5))
    upper = information_decomposition(found.coupling).joint
    assert found.gap <= 1e-8 and upper - found.information == pytest.approx(found.gap, abs=1e-12)


def test_covariances_come_in_batches_of_any_shape():
    x = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    covs = x @ x.mT
    total, mutual = gaussian_total_correlation(covs, (1, 3)), gaussian_mutual_information(covs, (2, 2))
    assert total.shape == mutual.shape == (2, 3)
    assert_close(mutual[1, 2], gaussian_mutual_information(covs[1, 2], (2, 2)))
    bad = covs.clone()
    bad[1, 1, 2], bad[1, 1, :, 2] = bad[1, 1, 0], bad[1, 1, :, 0]
    bad[1, 1, 2, 2] = bad[1, 1, 0, 0]
    with pytest.raises(ValueError, match="coordinate 2"):
        gaussian_total_correlation(bad, (1, 3))


def test_rounding_of_the_sum_is_forgiven_up_to_the_square_root_of_the_precision():
    p = torch.full((2, 2), 0.25, dtype=F64)
    for dtype, size in ((F64, 1e-8), (torch.float32, 2e-4), (torch.float16, 2e-2)):
        given = p.to(dtype).to(F64)
        assert check_distribution((given * (1 + size)).to(F64 if dtype == F64 else dtype)).shape == (2, 2)
        with pytest.raises(ValueError, match="divide it by its sum"):
            check_distribution((given * (1 + 4 * size)).to(dtype))


def test_the_first_and_the_last_axis_can_be_named_from_both_ends():
    p = random_table(2, 3, 4)
    assert_close(marginal(p, -3), p.sum((1, 2)))
    assert_close(marginal(p, -1, 0), p.sum(1))
    with pytest.raises(ValueError, match="no variable -4"):
        marginal(p, -4)


@pytest.mark.parametrize("left", [1e-4, 1e-8, 1e-12])
def test_a_coordinate_that_others_nearly_determine_is_no_rounding(left):
    rho = math.sqrt(1 - left)
    for scale in (1e-3, 1.0, 1e3):
        cov = scale**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F64)
        found = gaussian_mutual_information(cov, (1, 1)).item()
        assert found == pytest.approx(-0.5 * math.log(left), abs=1e-3)


def test_the_solver_stops_at_the_first_step_whose_gap_is_small_enough(monkeypatch):
    p, steps = random_table(4, 4, 4), []
    monkeypatch.setattr(information, "_newton_step", lambda *given: steps.append(1) or _newton_step(*given))
    for tolerance in (10.0, 1e-1, 1e-3, 1e-8):
        steps.clear()
        assert union_information(p, tolerance).gap <= tolerance
        needed = len(steps)
        assert needed == 1 if tolerance == 10 else needed > 1
        if needed > 1:
            with pytest.warns(UserWarning, match="raise max_steps"):
                assert union_information(p, tolerance, max_steps=needed - 1).gap > tolerance


def test_partial_information_solves_as_union_information_does():
    one, other = (inspect.signature(f).parameters for f in (partial_information, union_information))
    assert all(one[name].default == other[name].default for name in ("tolerance", "max_steps"))


def test_a_step_is_taken_in_full_or_halved_and_never_lengthened():
    couplings = _Couplings([pair.numpy() for pair in pairwise_marginals(random_table(3, 3, 2))])
    q, mu = couplings.fit(np.zeros(couplings.n)), 1e-2
    step, _, gradient = _newton_step(couplings, q, np.zeros(len(couplings.b)), mu)
    assert step.min() < 0 < step.max() and gradient @ step < 0
    for size in (1e-3, 1e-1, 1.0, 10.0):
        moved = _line_search(couplings, q, mu, size * step, size * (gradient @ step))
        taken = (moved - q) @ step / (step @ step) / size
        assert_close(moved, q + taken * size * step, rtol=0, atol=1e-14)
        assert moved.min() > 0 and couplings.objective(moved, mu) < couplings.objective(q, mu)
        assert size >= 1 or taken == pytest.approx(1)  # a short step goes down all the way
        assert taken <= 1 + 1e-12
