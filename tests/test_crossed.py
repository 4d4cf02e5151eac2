"Intervals over training parts and test rows, against formulas written once more and against what they must never do."

import math

import numpy as np
import pytest
from scipy import stats

from mmlit.crossed import crossed_interval, crossed_intervals, variances
from mmlit.scores import corrected_interval, sampling_deviation


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("runs", [2, 3, 7])
def test_the_interval_is_the_formula_of_the_page(runs, level):
    rng = np.random.default_rng(runs)
    d = rng.normal(size=(runs, 1)) + rng.normal(size=60) + rng.normal(size=(runs, 60))
    A = d.mean(1).var(ddof=1) / runs
    B = d.mean(0).var(ddof=1) / 60
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    C = (rest**2).sum() / (runs - 1) / runs / 60**2
    t = stats.t.ppf((1 + level) / 2, runs - 1), stats.t.ppf((1 + level) / 2, 59)
    found = crossed_interval(d, level=level)
    half = math.sqrt(t[0] ** 2 * A + t[1] ** 2 * max(B - C, 0))
    assert found == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    one = crossed_interval(d[:1], level=level)
    assert one == pytest.approx(corrected_interval(d[0], level=level))  # of one run, over rows alone


@pytest.mark.parametrize("groups", [None, np.arange(60) // 6])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_equal_answers_are_no_certainty(groups, level):
    for runs in (1, 3):
        found = crossed_interval(np.ones((runs, 60)), groups, share=True, level=level)
        half = stats.norm.ppf((1 + level) / 2) * sampling_deviation(1.0, 60)
        assert found == pytest.approx((1, 1 - half, 1 + half))
        assert crossed_interval(np.ones((runs, 60)), groups, level=level) == (1, 1, 1)


def test_groups_widen_what_their_rows_have_in_common():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 20)
    d = rng.normal(size=12)[groups] + 0.1 * rng.normal(size=(4, 240))
    by_rows, by_groups = crossed_interval(d), crossed_interval(d, groups)
    assert by_rows.mean == pytest.approx(by_groups.mean)
    ratio = (by_groups.high - by_groups.low) / (by_rows.high - by_rows.low)
    assert ratio == pytest.approx(math.sqrt(20), rel=0.2)  # twelve numbers, not 240


def test_groups_of_unequal_size_weigh_by_their_rows():
    d = np.array([[1.0] * 30 + [0.0] * 10] * 2)
    found = variances(d, np.repeat([0, 1], [30, 10]))
    assert found.mean == pytest.approx(0.75) and found.freedom == (1, 1)
    pulls = np.array([30 * (1 - 0.75), 10 * (0 - 0.75)]) / 40
    assert found.units == pytest.approx((pulls**2).sum() * 2)


def test_test_parts_that_rotate_are_compared_with_themselves():
    "A test part that is harder than the other one is no scatter of the training parts."
    rng = np.random.default_rng(0)
    d = np.full((6, 100), np.nan)
    for s in range(6):
        half = slice(0, 50) if s % 2 else slice(50, 100)
        d[s, half] = (5.0 if s % 2 else 0.0) + 0.1 * rng.normal(size=50)
    found = variances(d, np.arange(100) // 10)
    assert found.freedom == (4, 9) and found.runs < 1e-4 < found.units
    assert found.mean == pytest.approx(2.5, abs=0.05)
    within = [np.nanmean(d, 1)[k::2] for k in (0, 1)]
    assert found.runs == pytest.approx(sum(w.var(ddof=0) * 3 for w in within) / 4 / 6)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_overlap_only_widens(overlap):
    d = np.random.default_rng(0).normal(size=(4, 1)) + np.random.default_rng(1).normal(size=(4, 80))
    plain, wide = crossed_interval(d), crossed_interval(d, overlap=overlap)
    assert wide.low < plain.low and wide.high > plain.high
    noise = np.random.default_rng(2).normal(size=(4, 80))
    noise -= noise.mean(1, keepdims=True)  # runs that agree have nothing that overlap could hide
    assert crossed_interval(noise, overlap=overlap) == crossed_interval(noise)


def test_intervals_are_paired_by_seed():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 40))
    by = dict(joint={0: a[0], 5: a[1], 7: a[2]}, ensemble={7: b[2], 0: b[0]}, alone={1: b[1]})
    found = crossed_intervals(by, score="r2")
    assert found["joint"][1] == crossed_interval([a[0] - b[0], a[2] - b[2]])
    assert found["ensemble"][1] is None and all(map(math.isnan, found["alone"][1]))
    assert found["joint"][0].mean == pytest.approx(a.mean()) and found["joint"][0].high <= 1
    assert crossed_intervals(by, reference="nobody", score="r2")["joint"][1] is None
    shares = {m: {s: (v > 0).astype(float) for s, v in runs.items()} for m, runs in by.items()}
    value, difference = crossed_intervals(shares)["joint"]
    assert 0 <= value.low < value.high <= 1 and -1 <= difference.low < difference.high <= 1
    groups = np.arange(40) // 4
    grouped = crossed_intervals(shares, groups=groups)["joint"][0]
    assert grouped == crossed_interval(list(shares["joint"].values()), groups, share=True)


def test_what_is_no_table_of_values_is_refused():
    for wrong in ([0.1, 0.2], np.ones((0, 3)), np.full((2, 3), np.inf), [[1.0, 2.0], [np.nan, np.nan]]):
        with pytest.raises(ValueError, match="values of each run"):
            crossed_interval(wrong)
    with pytest.raises(ValueError, match="groups"):
        crossed_interval(np.ones((2, 3)), groups=[0, 1])
    for overlap in (1.0, -0.1, np.nan, "x"):
        with pytest.raises(ValueError, match="overlap"):
            crossed_interval(np.ones((2, 3)), overlap=overlap)


def test_intervals_of_rotating_test_parts_cover_where_training_rows_overlap_within_them():
    "Runs of one test part with the correlation rho, none between parts: the mean overlap alone promises too much."
    rng, S, U, n, repeats = np.random.default_rng(0), 6, 10, 12, 400
    groups = np.repeat(np.arange(U), n)
    for rho in (0.9, 0.99):
        overlap = rho * 2 * 3 / 15  # six of fifteen pairs have one test part
        hits = {"within": 0, "mean": 0}
        for _ in range(repeats):
            d, common, unit = np.full((S, U * n), np.nan), rng.normal(size=2), 0.02 * rng.normal(size=U)
            for s in range(S):
                rows = groups % 2 == s % 2
                a = 0.05 * (np.sqrt(rho) * common[s % 2] + np.sqrt(1 - rho) * rng.normal())
                d[s, rows] = a + unit[groups[rows]] + 0.3 * rng.normal(size=rows.sum())
            for name, within in (("within", rho), ("mean", None)):
                found = crossed_interval(d, groups, overlap, within=within)
                hits[name] += found.low <= 0 <= found.high
        assert hits["within"] / repeats > 0.93 and hits["mean"] < hits["within"]
