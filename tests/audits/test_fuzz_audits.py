"Whatever is given: a right answer, or a ValueError that says what is wrong; NaN never becomes a number."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st
from sklearn import metrics

from mmlit.audits.advice import SMALLEST_EFFECT, advise, detectable, smallest_effects, widened
from mmlit.audits.companions import still_improving
from mmlit.audits.measure import tabulate
from mmlit.audits.quantities import Quantity, linear_answers
from mmlit.audits.sample_scores import deciding_score, sample_scores, step_of
from mmlit.scores import Interval

numbers = st.floats(-1, 1)


@fuzz(60, st.integers(1, 5), st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_scores_are_those_of_sklearn(C, n, seed, coarse):
    rng = np.random.default_rng(seed)
    y, logits = torch.as_tensor(rng.integers(0, C, n)), torch.as_tensor(rng.normal(size=(n, C)))
    logits = logits.round() if coarse else logits
    said = {name: v.mean() for name, v in sample_scores(logits, y).items()}
    answer, there = logits.argmax(1), y.unique()
    assert math.isclose(said["accuracy"], metrics.accuracy_score(y, answer))
    by_class = [(answer[y == c] == c).double().mean().item() for c in there]
    assert math.isclose(said["balanced accuracy"], float(np.mean(by_class)), abs_tol=1e-9)
    assert ("AUC" in said) == (len(there) > 1)
    if len(there) > 1:
        p = logits.log_softmax(1).exp()
        areas = [metrics.roc_auc_score(y == c, p[:, c]) for c in there]
        assert math.isclose(said["AUC"], float(np.mean(areas)), abs_tol=1e-9)
    assert all(step_of(score, y) >= 0 for score in said) and deciding_score(y) in said


@fuzz(60, st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.sampled_from([0.0, math.nan, math.inf]))
def test_scores_of_answers_that_do_not_fit_are_refused(n, m, C, value):
    logits, y = torch.full((n, C), value), torch.zeros(m, dtype=torch.long)
    if n == m > 0 and value == 0:
        return assert_finite(sample_scores(logits, y))
    with pytest.raises(ValueError, match="one row of answers per target|finite answers"):
        sample_scores(logits, y)


def assert_finite(scores):
    assert all(np.isfinite(v).all() for v in scores.values())


ends = st.tuples(numbers, st.floats(0, 1), st.floats(0, 1)).map(lambda t: (t[0], t[0] - t[1], t[0] + t[2]))


@fuzz(60, st.data(), st.sampled_from(["accuracy", "AUC", "r2"]), st.booleans(), st.floats(0.001, 1))
def test_the_rule_says_nothing_that_its_intervals_do_not(data, score, additive, bound):
    further = ["pretrained", "multi_loss", "additive"] + ["interacting"] * additive
    names = ["joint minus ensemble", "joint minus best unimodal", "ensemble minus best unimodal"]
    names += [f"{c} minus {r}" for c in further for r in ("joint", "ensemble")]
    rows = {("differences", score, name): data.draw(ends) for name in names + ["interacting minus additive"] * additive}
    head = "accuracy" if score == "AUC" else score
    rows |= {("differences", head, name): data.draw(ends) for name in names if score != head}
    for m in "ab":
        for name in dict.fromkeys([f"permuted, {score}" if score != head else "permuted", "permuted"]):
            rows["robustness", name, m] = data.draw(ends)
    index = pd.MultiIndex.from_tuples(list(rows), names=["section", "quantity", "of"])
    table = pd.DataFrame(list(rows.values()), index=index, columns=["value", "low", "high"])
    marks = data.draw(st.dictionaries(st.sampled_from([*further, "ensemble", "best unimodal"]), st.just("so")))
    found = advise(table, "ab", score, smallest_effect=bound, marks=marks)

    assert found.use == "joint" or found.use not in marks
    inside = [abs(rows["differences", s, n][k]) < bound for s in {score, head} for n in names[1:3] for k in (1, 2)]
    assert "redundant" not in found.findings or all(inside)
    assert ("competition" in found.findings) <= (rows["differences", score, names[0]][2] < 0)
    assert ("none" in found.findings) <= (rows["differences", score, names[0]][1] > -bound)
    assert not ("ensemble" in marks and {"none", "open", "competition", "helps"} & set(found.findings))
    for m in "ab":
        lost = [v for (section, _, of), v in rows.items() if section == "robustness" and of == m]
        assert f"ignored {m}" not in found.findings or all(-bound < low and high < bound for _, low, high in lost)
    assert "nan" not in str(found)


bounds = st.one_of(st.none(), st.floats(), st.integers(-2, 2), st.booleans(), st.text(max_size=4))


@fuzz(60, st.one_of(bounds, st.dictionaries(st.sampled_from([*SMALLEST_EFFECT, "acc"]), bounds)))
def test_bounds_are_numbers_above_zero_or_refused(value):
    try:
        found = smallest_effects(value)
    except ValueError as error:
        assert "smallest_effect" in str(error)
    else:
        assert set(found) == set(SMALLEST_EFFECT) and all(0 < v < math.inf for v in found.values())


@fuzz(60, ends, st.integers(1, 9), st.one_of(st.just(math.inf), st.integers(1, 50)))
def test_more_candidates_never_show_more(interval, k, freedom):
    i = Interval(*interval)
    wide, more = widened(i, k, freedom), widened(i, k + 1, freedom)
    assert more.low <= wide.low <= i.low + 1e-12 and i.high - 1e-12 <= wide.high <= more.high
    assert detectable(i, k, freedom) <= detectable(i, k + 1, freedom)


@fuzz(60, st.lists(st.integers(-1, 1), min_size=2, max_size=40), st.floats(0, 3))
def test_intervals_of_counts_are_never_narrower_than_the_sign_test(values, step):
    row = tabulate([[Quantity("s", "a", "", np.array(values, dtype=float), step=step)]], draws=100).iloc[0]
    assert min(row.value - row.low, row.high - row.value) >= 5 * step / len(values) - 1e-9


@fuzz(60, st.lists(numbers, min_size=1, max_size=20), st.floats(0, 0.1))
def test_what_stands_still_is_not_improving(curve, smallest):
    if len(curve) > 1:
        assert not still_improving([*curve, max(curve)], True, smallest)
    assert still_improving(curve, True, smallest) == still_improving([-v for v in curve], False, smallest)


@fuzz(60, st.integers(2, 4), st.integers(6, 30), st.integers(0, 10**6))
def test_linear_answers_are_probabilities_of_all_classes(C, n, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2  # the later classes are never seen
    told = linear_answers(rng.normal(size=(n, 3)), y, rng.normal(size=(5, 3)), C)
    assert told.shape == (5, C) and torch.allclose(told.exp().sum(1), torch.ones(5, dtype=torch.float64), atol=1e-6)
