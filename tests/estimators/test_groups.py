"Rows of one case, copies, ties, and variables that are the same."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from common import gaussians

from mmlit.estimators.direct import EntropySum, as_variable, half_width, knn_terms, plugin, plugin_jackknife
from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
from mmlit.estimators.learned import NeuralEstimator, cross_fitted_log_likelihood
from mmlit.permutation import permutation_test


def dice(rng, cases=200, rows=5):
    "Two dice that agree more often than by chance, each case recorded several times."
    x = rng.integers(0, 3, cases)
    y, case = np.where(rng.random(cases) < 0.5, x, rng.integers(0, 3, cases)), np.repeat(np.arange(cases), rows)
    return x[case], y[case], case


def near_copies(rng, cases=400, rows=3):
    x, y = (v[:, 0] for v in gaussians(rng, cases, 1, 0.6))
    case = np.repeat(np.arange(cases), rows)
    x, y = (math.sqrt(0.9) * v[case] + math.sqrt(0.1) * rng.normal(size=cases * rows) for v in (x, y))
    return x, y, case


def labelled(rng, cases=60, rows=4):
    "A label a case, and features that follow the case more than its label."
    y, case = rng.integers(0, 2, cases), np.repeat(np.arange(cases), rows)
    own = rng.normal(size=(cases, 3))
    return own[case] + 0.1 * rng.normal(size=(cases * rows, 3)), y[case], case


AGREE = 0.5 + 0.5 / 3
DICE = math.log(3) + AGREE * math.log(AGREE) + 2 * (0.5 / 3) * math.log(0.5 / 3)
NEAR = -0.5 * math.log(1 - (0.9 * 0.6) ** 2)


def test_the_jackknife_leaves_out_whole_groups():
    x, y, case = dice(np.random.default_rng(0), 30, 2)
    case[:3] = 0  # sizes differ
    case = np.unique(case, return_inverse=True)[1]
    parts = lambda rows: EntropySum.mutual(as_variable(x[rows]), as_variable(y[rows]))
    G, every = case.max() + 1, np.full(len(x), True)
    plain = plugin_jackknife(*parts(every)[:3])[0]
    left = np.array([plugin_jackknife(*parts(case != g)[:3])[0] for g in range(G)])
    found = plugin_jackknife(*parts(every)[:3], case)
    np.testing.assert_allclose(found, [plain, G * plain - (G - 1) * left.mean(), (G - 1) * left.var()], rtol=1e-9)


def test_exact_copies_in_groups_are_as_good_as_one_row_each():
    rng = np.random.default_rng(0)
    x, y, case = dice(rng)
    once, copies = estimate_mi(x[::5], y[::5]), estimate_mi(x, y, groups=case)
    np.testing.assert_allclose([*copies.__dict__.values()][:3], [*once.__dict__.values()][:3], rtol=1e-9)
    assert copies.warnings == once.warnings and copies.covers
    a, b = gaussians(rng, 500, 1, 0.6)
    case = np.repeat(np.arange(500), 3)
    once, copies = estimate_mi(a, b, method="knn"), estimate_mi(a[case], b[case], method="knn", groups=case)
    assert copies.covers and abs(copies.value - once.value) < 0.02
    assert (copies.high - copies.low) > 0.6 * (once.high - once.low)


def test_groups_may_have_names_and_any_order():
    x, y, case = dice(np.random.default_rng(1))
    names = pd.Series(case).map("case {}".format)
    order = np.random.default_rng(2).permutation(len(x))
    plain = estimate_mi(x, y, groups=case)
    for other in (estimate_mi(x, y, groups=names), estimate_mi(x[order], y[order], groups=list(names[order]))):
        np.testing.assert_allclose(
            [other.value, other.low, other.high], [plain.value, plain.low, plain.high], rtol=1e-9
        )


def test_a_half_width_of_groups_is_the_formula():
    terms, groups = np.random.default_rng(0).normal(size=12), np.repeat([0, 1, 2], [2, 4, 6])
    sums = [(terms[groups == g] - terms.mean()).sum() for g in range(3)]
    expected = 4.302652729911275 * math.sqrt(3 / 2 * sum(v**2 for v in sums)) / 12  # t of 2 degrees of freedom
    assert half_width(terms, 0.95, groups) == pytest.approx(expected)
    assert half_width(terms, 0.95, None) == pytest.approx(1.959963984540054 * terms.std() / math.sqrt(12))


def test_no_group_is_on_both_sides_of_a_split():
    x, y, case = labelled(np.random.default_rng(0))
    ignored = cross_fitted_log_likelihood(as_variable(x), as_variable(y)).mean()
    known = cross_fitted_log_likelihood(as_variable(x), as_variable(y), groups=case).mean()
    assert ignored > known + 0.1 and known < -0.6  # cases are recognised; the label is noise
    seen = []

    class Watched(NeuralEstimator):
        def fit(self, parts, generator, groups=None):
            seen.append(set(groups.tolist()))
            return super().fit(parts, generator, groups)

        def _held_out(self, critic, parts, largest):
            assert not {round(v, 6) for v in parts[0][:, 0].tolist()} & trained(seen[-1]) and largest == 4
            return super()._held_out(critic, parts, largest)

    first = torch.as_tensor(x[:, :1], dtype=torch.float32)
    trained = lambda groups: {round(v, 6) for v in first[np.isin(case, list(groups)), 0].tolist()}
    terms, _ = Watched(folds=3, steps=25).terms([first, torch.as_tensor(x[:, 1:2]).float()], 0, torch.as_tensor(case))
    assert len(seen) == 3 and all(len(s) == 40 for s in seen) and terms.isfinite().all()


def test_copies_are_said_with_their_number_and_the_remedy():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 500, 1, 0.6)
    twice = np.r_[np.arange(500), np.arange(100)]
    found = estimate_mi(x[twice], y[twice])
    assert any("200 of 600 samples are copies" in w and "groups=" in w for w in found.warnings) and not found.covers
    label = (x[:, 0] + rng.normal(size=500) > 0).astype(int)
    assert any("copies" in w for w in estimate_mi(x[twice], label[twice], method="knn").warnings)
    for a, b in ((x, y), (x.round(2), y.round(2)), (x.round(1), label), (label, label)):
        assert not any("copies" in w for w in estimate_mi(a, b).warnings)
    assert not any("copies" in w for w in estimate_mi(x[twice], y[twice], groups=twice).warnings)
    other = np.arange(600)  # the copies have cases of their own
    assert any("copies" in w for w in estimate_mi(x[twice], y[twice], groups=other).warnings)


@pytest.mark.parametrize("digits", [2, 1])
def test_rounding_does_not_look_like_information(digits):
    errors = []
    for seed in range(6):
        x, y = (v.round(digits) for v in gaussians(np.random.default_rng(seed), 1000, 1, 0.7))
        quantity = EntropySum.mutual(as_variable(x), as_variable(y))
        errors.append([estimate_mi(x, y).value, knn_terms(*quantity[:3]).mean()])
    broken, tied = np.mean(errors, 0) + 0.5 * math.log(0.51)
    assert abs(broken) < 0.04 and tied > broken + 0.02
    assert estimate_mi(x, y) == estimate_mi(x, y) != estimate_mi(x, y, seed=1)


def test_few_values_are_atoms_and_said():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, 1000)
    y = np.clip(x + rng.integers(-1, 2, 1000), 1, 5)
    as_numbers, as_categories = estimate_mi(x.astype(float), y.astype(float)), estimate_mi(x, y)
    assert any(w.startswith("ties: 100%") and "discrete=" in w for w in as_numbers.warnings)
    assert as_categories.covers and abs(as_numbers.value - as_categories.value) < 0.01


@pytest.mark.slow
def test_what_two_variables_share_is_no_information_where_it_is_known():
    x, y = gaussians(np.random.default_rng(0), 500, 2, 0.6)
    found = estimate_cmi(x, np.c_[x[:, 0], y[:, 0]], x[:, :1])
    assert found.method == "neural" and found.value < 1


def test_the_same_variable_twice_has_the_right_answer():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 500, 2, 0.6)
    for same in (x, -x, np.exp(x), x[:, ::-1], np.c_[y, x[:, 0]]):
        for method in ("knn", "neural", "auto"):
            found = estimate_mi(x, same, method=method)
            assert found.value == found.high == math.inf and "identical" in found.warnings[0] and not found.covers
    assert estimate_tc([x[:, 0], y, x[:, 0]]).value == math.inf
    for z in (x, (x, y), np.c_[y, -x]):
        found = estimate_cmi(x, y[:, :1], z)
        assert (found.value, found.low, found.high) == (0, 0, 0) and found.covers
    assert estimate_cmi(x, np.c_[x[:, 0], y[:, 0]], x[:, :1], method="knn").value < 1  # what is shared is known
    label = rng.integers(0, 4, 2000)
    found = estimate_mi(label, label)
    assert found.value == pytest.approx(math.log(4), abs=0.01)
    assert estimate_cmi(label, rng.integers(0, 2, 2000), label).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: estimate_mi(x, -(x**2), groups=np.arange(50)), "one group id per sample"),
        (lambda x: estimate_cmi(x, -(x**2), x, groups=np.arange(100) % 19), "19 different ids: at least 20"),
        (lambda x: estimate_tc([x, -(x**2)], groups=[None, *range(99)]), "missing"),
        (lambda x: estimate_mi(x, -(x**2), method="knn", groups=np.arange(100) % 20), "3 nearest neighbours need"),
        (lambda x: estimate_mi(x, x > 0, method="classifier", folds=1), "at least 2 folds"),
        (lambda x: plugin(EntropySum.mutual(as_variable(x > 0), as_variable(x > 1)), 95), "level"),
        (lambda x: permutation_test([torch.tensor(x)], 0, torch.tensor(x > 0).long(), groups=[1] * 100), "at least 20"),
        (lambda x: permutation_test([torch.tensor(x)], 0, torch.tensor(x) / 0), "y has NaN or infinity"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=100))


def null_of_cases(seed, cases=60, rows=6):
    "A true null in which a case has one label and features of its own."
    g = torch.Generator().manual_seed(seed)
    case = torch.arange(cases).repeat_interleave(rows)
    x, z = torch.randn(2, cases, 1, generator=g, dtype=torch.float64)[:, case]
    noise = torch.randn(2, cases * rows, 1, generator=g, dtype=torch.float64)
    return [x + 0.2 * noise[0], z + 0.2 * noise[1]], torch.randint(0, 2, (cases,), generator=g)[case], case, g


def test_one_row_of_each_case_is_tested():
    zs, y, case, _ = null_of_cases(0)
    by_case = [
        permutation_test(zs, 0, y, 19, groups=g, generator=torch.Generator().manual_seed(0)) for g in (case, case)
    ]
    assert by_case[0].pvalue == by_case[1].pvalue
    alone = [z[::6] for z in zs]
    g = torch.Generator().manual_seed(0)
    plain = permutation_test(alone, 0, y[::6], 19, groups=range(60), generator=g)
    assert plain.null.shape == (19,)
    with pytest.warns(UserWarning, match="60 of 120 samples are copies of others.*groups="):
        permutation_test([torch.cat([z[:90], z[:30]]) for z in zs], 0, torch.cat([y[:90], y[:30]]), 19)


@pytest.mark.slow
def test_intervals_that_ignore_groups_miss_too_often_and_those_that_know_them_do_not(runs=120):
    for draw, truth, options in ((dice, DICE, {}), (near_copies, NEAR, dict(method="knn"))):
        missed = dict(ignored=0, known=0)
        for seed in range(runs):
            x, y, case = draw(np.random.default_rng(seed))
            for name, groups in (("ignored", None), ("known", case)):
                found = estimate_mi(x, y, groups=groups, **options)
                missed[name] += not found.low <= truth <= found.high
        assert missed["known"] / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs), (draw.__name__, missed)
        assert missed["ignored"] / runs > 0.1, (draw.__name__, missed)


@pytest.mark.slow
def test_a_test_that_ignores_groups_rejects_true_nulls_and_one_that_knows_them_does_not(runs=60):
    rejected = dict(ignored=0, known=0)
    for seed in range(runs):
        zs, y, case, g = null_of_cases(seed)
        rejected["ignored"] += permutation_test(zs, 0, y, 99, generator=g).pvalue <= 0.05
        rejected["known"] += permutation_test(zs, 0, y, 99, groups=case, generator=g).pvalue <= 0.05
    assert rejected["ignored"] / runs > 0.3 and rejected["known"] / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
