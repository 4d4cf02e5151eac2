"Several methods and data sets: Holm's procedure, p-values that invert the intervals, ranks, the diagram."

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmlit.benchmark.results import Comparison
from mmlit.benchmark.several import corrected, holm, over_datasets, p_values, plot_ranks
from mmlit.data.columns import MultimodalData
from mmlit.metrics import with_metric
from mmlit.training import Budget

X = np.zeros((2, 4, 3))


def of_sets(names, metric=None):
    made = {n: MultimodalData(n, dict(a=X[0], b=X[1]), np.arange(4) % 2, ["no", "yes"]) for n in names}
    return {n: with_metric(d, metric) if metric else d for n, d in made.items()}


def comparison(values, score="accuracy", reference="ensemble"):
    "values: data set -> method -> scores by seed"
    rows = [
        dict(data=d, method=m, seed=s, split="s", n_train=10**9, n_test=10**6, **{score: v})
        for d, by in values.items()
        for m, scores in by.items()
        for s, v in enumerate(scores)
    ]
    return Comparison(pd.DataFrame(rows), reference, Budget(), of_sets(values, None if score == "accuracy" else score))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_step_down_procedure(p):
    found = holm(p)
    for alpha in (0.01, 0.05, 0.2, 0.9):
        order, rejected = np.argsort(p, kind="stable"), set()
        for k, i in enumerate(order):  # as it is told: go on until one is not small enough
            if p[i] > alpha / (len(p) - k):
                break
            rejected.add(i)
        adjusted = {i for i in range(len(p)) if found[i] <= alpha}
        assert adjusted == rejected or any(math.isclose(found[i], alpha) for i in range(len(p)))
    assert len(found) == len(p) and all(found >= p) and all(found <= 1)


def test_p_values_are_those_of_the_test_whose_intervals_are_shown():
    rng = np.random.default_rng(0)
    base = 0.7 + 0.01 * rng.normal(size=6)
    by = {f"m{k}": base + gap + 0.02 * rng.normal(size=6) for k, gap in enumerate((0, 0.01, 0.02, 0.05))}
    found = p_values(comparison(dict(d=dict(ensemble=base, **by))), "d")
    assert set(found) == set(by)
    for name, scores in by.items():
        exact = stats.ttest_1samp(scores - base, 0).pvalue
        assert found[name] == pytest.approx(max(exact, 1e-4), rel=0.02)


def test_what_stands_alone_may_fall_among_others():
    rng = np.random.default_rng(1)
    base, gain = 0.7 + 0.01 * rng.normal(size=5), np.array([0.02, 0.028, 0.011, 0.03, 0.013])
    alone = corrected(comparison(dict(d=dict(ensemble=base, joint=base + gain))))
    assert alone.shown.tolist() == ["above"] and alone.p.tolist() == alone.p_holm.tolist()
    same = {f"m{k}": base + 0.01 * rng.normal(size=5) for k in range(12)}
    table = corrected(comparison(dict(d=dict(ensemble=base, joint=base + gain, **same)))).set_index("method")
    assert table.p["joint"] == alone.p[0] and table.p_holm["joint"] == pytest.approx(13 * alone.p[0])
    assert table.shown["joint"] == "neither"


def test_ranks_go_by_what_is_better_and_share_places():
    values = {
        f"d{k}": dict(ensemble=[1.0, 1.1], low=[0.5 + 0.01 * k, 0.6], same=[1.0, 1.1], high=[2.0, 2.2 + 0.01 * k])
        for k in range(8)
    }
    for score, best in (("log_loss", "low"), ("accuracy", "high")):
        scaled = {d: {m: np.array(v) / 3 for m, v in by.items()} for d, by in values.items()}
        table = over_datasets(comparison(scaled, score))
        assert table.index[0] == best and table["rank"][best] == 1
        assert table["rank"]["ensemble"] == table["rank"]["same"] == 2.5
        assert math.isnan(table.p["ensemble"]) and math.isnan(table.p["same"])  # nothing to test
        assert table.p[best] == pytest.approx(2 / 2**8) and (table.difference[best] > 0)


def test_the_diagram_goes_by_what_is_better_on_each_set():
    "On half of the sets less is better: one method is the better one on all of them, and no bar joins the two."
    halves = [
        comparison(
            {f"{score} {k}": {"ensemble": [0.5, 0.6], "joint": [0.5 + gap, 0.61 + gap]} for k in range(4)}, score
        )
        for score, gap in (("log_loss", -0.1), ("accuracy", 0.1))
    ]
    runs = pd.concat([half.runs for half in halves])
    both = Comparison(runs, "ensemble", Budget(), halves[0].datasets | halves[1].datasets)
    assert list(over_datasets(both).index) == ["joint", "ensemble"]
    lines = plot_ranks(both).axes[0].lines
    assert len(lines) == 2 * 2  # two for each method, and no bar: eight sets of one sign have p = .008


def test_a_method_that_lacks_a_data_set_is_left_out_or_refused():
    values = dict(a=dict(ensemble=[0.5, 0.6], joint=[0.6, 0.7], late=[0.6, 0.7]), b=dict(ensemble=[0.5], joint=[0.4]))
    found = comparison(values)
    assert list(over_datasets(found).index) == ["ensemble", "joint"]
    with pytest.raises(ValueError, match="unknown method 'late'"):
        over_datasets(found, ["late"])
    assert corrected(found).set_index(["data", "method"]).shown["b", "joint"] == "unknown"  # one seed
    assert plot_ranks(found).axes[0].get_xlabel() == "mean rank on 2 data sets (1: best)"


@pytest.mark.parametrize("shift", [0.0195, 0.02, 0.0205])
def test_what_is_corrected_for_one_method_is_what_the_verdict_says(shift):
    "p is near 5 %, where the levels of a grid would lie on the other side than the interval."
    errors = np.array([-0.02, -0.01, 0, 0.01, 0.02])
    found = comparison(dict(d=dict(ensemble=np.full(5, 0.7), joint=0.7 + shift + errors)))
    exact, row = stats.ttest_1samp(shift + errors, 0).pvalue, corrected(found).iloc[0]
    assert row.p == pytest.approx(exact, rel=0.02) and 0.04 < exact < 0.06
    assert (row.shown == "above") == (row.p <= 0.05) == ("yes, the joint" in found.verdict("d"))
    assert (
        corrected(found, level=0.99).shown.item() == "neither" and corrected(found, level=0.5).shown.item() == "above"
    )


def test_the_side_at_a_low_level_is_that_of_the_mean():
    errors = np.array([-0.02, -0.01, 0, 0.01, 0.02])
    found = comparison(dict(d=dict(ensemble=np.full(5, 0.7), up=0.708 + errors, down=0.692 + errors)))
    table = corrected(found, level=0.3).set_index("method")
    assert table.loc["up", "shown"] == "above" and table.loc["down", "shown"] == "below"
    assert set(corrected(found).shown) == {"neither"}
