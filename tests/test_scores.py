"Scores against scikit-learn and against loops, intervals against their definition, and refusals."

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from mmlit.data.columns import MultimodalData
from mmlit.scores import (
    Answer,
    Interval,
    best_on_validation,
    bootstrap_interval,
    classification_scores,
    confidence_gaps,
    corrected_interval,
    drawn_interval,
    expected_calibration_error,
    gains,
    headline,
    multilabel_scores,
    paired_intervals,
    paired_table,
    regression_scores,
    sampling_deviation,
)


def drawn(n=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * rng.gamma(2, size=(n, 1))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), rng.integers(0, classes, n)


@pytest.mark.parametrize("bins", [1, 2, 15, 40])
@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_the_loop_over_bins(bins, seed):
    logp, y = drawn(seed=seed)
    confidence, right = np.exp(logp.max(1)), logp.argmax(1) == y
    gap = 0.0
    for b in range(bins):
        rows = [n for n in range(len(y)) if min(int(confidence[n] * bins), bins - 1) == b]
        if rows:
            gap += len(rows) / len(y) * abs(confidence[rows].mean() - right[rows].mean())
    assert expected_calibration_error(logp, y, bins) == pytest.approx(gap, abs=1e-12)
    gaps = confidence_gaps(logp, y, bins)
    assert gaps.shape == (len(y), bins) and np.allclose(gaps.sum(1), confidence - right)


def test_scores_are_those_of_scikit_learn():
    logp, y = drawn()
    scores, answer = classification_scores(logp, y), logp.argmax(1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(y, answer))
    assert scores["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, answer))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(y, answer, average="macro"))
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(y, np.exp(logp)))


@pytest.mark.parametrize("column", [False, True])
def test_regression_scores_do_not_mind_a_column(column):
    rng = np.random.default_rng(0)
    y, guess = rng.normal(size=(2, 50))
    scores = regression_scores(guess[:, None] if column else guess, y)
    assert scores["r2"] == pytest.approx(metrics.r2_score(y, guess))
    assert scores["rmse"] == pytest.approx(metrics.mean_squared_error(y, guess) ** 0.5)


def test_gains_average_to_the_headline_score():
    logp, y = drawn()
    assert gains(torch.tensor(logp), torch.tensor(y)).mean().item() == classification_scores(logp, y)["accuracy"]
    rng = np.random.default_rng(0)
    target, guesses = rng.normal(size=40), rng.normal(size=(3, 40, 1))
    found = gains(torch.tensor(guesses), torch.tensor(target)).mean(-1)
    assert found.numpy() == pytest.approx([metrics.r2_score(target, g[:, 0]) for g in guesses])


def test_groups_of_one_are_samples_and_draws_repeat():
    values = np.random.default_rng(0).normal(size=120)
    plain = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, groups=np.arange(120)[::-1], seed=3).mean == plain.mean
    assert bootstrap_interval(values, seed=3) == plain != bootstrap_interval(values, seed=4)
    assert plain.low < plain.mean < plain.high


def test_the_chunks_of_the_bootstrap_change_nothing(monkeypatch):
    import mmlit.scores as module

    values = np.random.default_rng(0).normal(size=(60, 2))
    whole = bootstrap_interval(values, draws=500)
    monkeypatch.setattr(module, "_WEIGHTS", 60 * 7)
    chunked = bootstrap_interval(values, draws=500)
    assert np.allclose(whole, chunked)


def test_one_run_has_no_interval_and_more_have_the_corrected_one():
    one = corrected_interval([0.5])
    assert (
        one.mean == 0.5
        and np.isnan(one.low)
        and f"{one:.2f}" == "0.50"
        and f"{Interval(1, 0, 2)}" == "1.000 [0.000, 2.000]"
    )
    narrow, wide = (corrected_interval([0.1, 0.2, 0.4], ratio) for ratio in (0.0, 1.0))
    assert (wide.high - wide.mean) / (narrow.high - narrow.mean) == pytest.approx(2.0)


def test_paired_intervals_pair_by_seed_whatever_the_order_of_rows():
    rows = [
        dict(data="d", method=m, seed=s, n_train=60, n_test=20, accuracy=a, log_loss=2 * a)
        for m, values in dict(ensemble=[0.7, 0.8, 0.9], joint=[0.75, 0.85, 0.95]).items()
        for s, a in enumerate(values)
    ]
    for order in (rows, rows[::-1]):
        difference = paired_intervals(pd.DataFrame(order), "d")["joint"][1]
        assert difference.mean == pytest.approx(0.05)
        half = corrected_interval([0.0, 0.0, 0.0], 1 / 3, least=sampling_deviation(difference.mean, 20)).high
        assert difference.high - difference.mean == pytest.approx(half)  # equal differences have a width
        assert difference.low < 0  # and decide nothing: one row of twenty, three times
        twice = paired_intervals(pd.DataFrame(order), "d", "log_loss")["joint"][1]
        assert twice.mean == pytest.approx(0.1) and np.isnan(twice.low)  # of a score that is no share nobody knows it


@pytest.mark.parametrize("value, n", [(0.0, 10), (1.0, 10), (-1.0, 10), (0.03, 240), (0.5, 7)])
def test_no_share_of_rows_is_certain(value, n):
    share = (abs(value) * n + 1) / (n + 2)
    assert sampling_deviation(value, n) == pytest.approx((share * (1 - share) / n) ** 0.5) and share not in (0, 1)


def test_an_interval_ends_where_the_score_does():
    rows = [
        dict(data="d", method=m, seed=s, n_train=60, n_test=20, accuracy=a, r2=a)
        for m, values in dict(ensemble=[0.0, 0.1], joint=[1.0, 0.9]).items()
        for s, a in enumerate(values)
    ]
    found = {score: paired_intervals(pd.DataFrame(rows), "d", score) for score in ("accuracy", "r2")}
    assert found["accuracy"]["ensemble"][0].low == 0 and found["accuracy"]["joint"][0].high == 1
    assert -1 <= found["accuracy"]["joint"][1].low and found["accuracy"]["joint"][1].high == 1
    assert found["r2"]["ensemble"][0].low < 0 and found["r2"]["joint"][0].high == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: classification_scores(np.zeros((3, 2)), np.zeros(3, int)), "log_softmax"),
        (lambda: classification_scores(np.log([[0.5, 0.5]]), np.array([2])), "0 to 1"),
        (lambda: regression_scores([1.0, 2.0], [1.0]), "one prediction for each"),
        (lambda: corrected_interval([]), "at least one run"),
        (lambda: bootstrap_interval([1.0, np.nan]), "finite values"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=[1]), "one group id per sample"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=["a", None]), "missing"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: bootstrap_interval([1.0, 2.0], draws=99), "at least 100"),
        (lambda: bootstrap_interval(np.zeros((2, 2, 2))), r"\(N,\) or \(N, K\)"),
        (lambda: corrected_interval([1.0, 2.0], level=1), "level=.95"),
        (lambda: corrected_interval([1.0, 2.0], test_to_train=np.nan), "ratio of sizes"),
        (lambda: expected_calibration_error(np.random.randn(10, 3) * 100, np.zeros(10, int)), "log_softmax"),
        (lambda: expected_calibration_error(np.log(np.full((10, 2), 0.5)), np.zeros(1, int)), r"labels \(N,\)"),
        (lambda: confidence_gaps(np.log(np.full((3, 2), 0.5)), np.zeros(3, int), bins=2.5), "whole number"),
        (lambda: confidence_gaps(np.log(np.full((3, 2), 0.5)), np.zeros(3)), "integer labels"),
        (lambda: confidence_gaps(np.log(np.full((3, 2), 0.5)), np.array([0, -1, 1])), "from -1 to 1"),
        (lambda: classification_scores(np.full((3, 2), np.nan), np.zeros(3, int)), "NaN in 3 of 3 rows"),
        (lambda: classification_scores(np.zeros((0, 2)), np.zeros(0, int)), "expected log-prob"),
        (lambda: regression_scores([1.0, np.inf], [1.0, 2.0]), "prediction has NaN or infinity in 1 of 2"),
        (lambda: regression_scores([1.0, 2.0], [1.0, np.nan]), "y has NaN"),
        (lambda: regression_scores([1.0, 2.0], [1.0, 1.0]), "all 2 targets are 1"),
        (lambda: regression_scores([], []), "one prediction"),
        (lambda: multilabel_scores(np.zeros((3, 2)), np.zeros(3)), r"labels \(N, C\)"),
        (lambda: multilabel_scores(np.zeros((3, 2)), np.full((3, 2), 0.5)), "zeros and ones"),
        (lambda: multilabel_scores(np.full((3, 2), np.inf), np.zeros((3, 2))), "diverge"),
        (lambda: gains(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)[:2]), r"y \(N,\)"),
        (lambda: gains(torch.zeros(3, 2), torch.tensor([0.0, 1, 2])), r"predictions \(..., N, 1\)"),
        (lambda: gains(torch.zeros(3, 1), torch.ones(3)), "all 3 targets are equal"),
        (lambda: gains(torch.zeros(3, 1), torch.arange(3.0)[:, None]), "zeros and ones"),
        (lambda: gains(torch.full((3, 2), torch.nan), torch.tensor([0, 1, 1])), "NaN"),
        (lambda: gains(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)), r"y \(N,\)"),
        (lambda: classification_scores(np.log([[0.5, 0.5], [np.nan, 1]]), np.array([0, 1])), "NaN in 1 of 2 rows"),
        (lambda: Answer(np.eye(2), np.eye(2), np.arange(2), np.arange(2), {}).scores("tset", "regression"), "part"),
        (lambda: Answer(np.eye(2), np.eye(2), np.arange(2), np.arange(2), {}).scores("test", "ranking"), "task"),
        (
            lambda: Answer(*[np.full((2, 2), np.nan)] * 2, *[np.arange(2)] * 2, {}).scores("test", "classification"),
            "di",
        ),
    ],
)
def test_what_is_no_score_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_best_on_validation_looks_at_no_test_answer():
    y = np.array([0, 1, 1])
    data = MultimodalData("toy", dict(a=np.zeros((3, 1)), b=np.zeros((3, 1))), y, ["p", "q"])
    right, wrong = np.eye(2)[y], np.eye(2)[1 - y]
    good = Answer(right, wrong, y, y, {})
    bad = Answer(wrong, right, y, y, {})
    assert best_on_validation([bad, good], data) is good and good.scores("test", data.classes)["accuracy"] == 0
    assert headline(data.classes) == "accuracy" and headline([]) == "r2"


def several(n=200, labels=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, labels)) * 2
    return logits, (rng.random((n, labels)) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def test_multilabel_scores_are_those_of_scikit_learn():
    logits, y = several()
    p, scores = 1 / (1 + np.exp(-logits)), multilabel_scores(logits, y)
    assert scores["accuracy"] == pytest.approx(1 - metrics.hamming_loss(y, p > 0.5))
    assert scores["exact_match"] == pytest.approx(metrics.accuracy_score(y, p > 0.5))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(y, p > 0.5, average="macro"))
    assert scores["average_precision"] == pytest.approx(metrics.average_precision_score(y, p, average="macro"))
    assert scores["auc"] == pytest.approx(metrics.roc_auc_score(y, p, average="macro"))
    assert scores["log_loss"] == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1).mean(), rel=1e-6)
    sure = np.maximum(p, 1 - p).ravel()
    right, gap = ((p > 0.5) == y).ravel(), 0.0
    for b in range(15):
        rows = np.minimum((sure * 15).astype(int), 14) == b
        gap += abs((sure - right)[rows].sum()) / len(sure)
    assert scores["ece"] == pytest.approx(gap)
    assert gains(torch.tensor(logits), torch.tensor(y)).mean().item() == pytest.approx(scores["accuracy"])
    stacked = gains(torch.tensor(np.stack([logits, -logits])), torch.tensor(y)).mean(-1)
    assert stacked[1].item() == pytest.approx(1 - scores["accuracy"])


def test_labels_without_both_values_are_left_out_of_the_ranking_scores_only():
    logits, y = several()
    y[:, 0], y[:, 1] = 0, 1
    scores, mixed = multilabel_scores(logits, y), multilabel_scores(logits[:, 2:], y[:, 2:])
    assert scores["auc"] == mixed["auc"] and scores["average_precision"] == mixed["average_precision"]
    assert scores["log_loss"] > mixed["log_loss"]
    alone = multilabel_scores(logits[:, :2], y[:, :2])
    assert math.isnan(alone["auc"]) and math.isnan(alone["average_precision"])


def test_an_answer_is_scored_by_its_task_or_by_its_classes():
    logits, y = several(6, 2)
    labels = Answer(logits, logits, y, y, {})
    assert labels.scores("valid", "multi-label") == labels.scores("valid", ["a", "b"])
    assert "exact_match" in labels.scores("test", "multi-label")
    c = np.array([0, 1, 0, 1, 1, 1])
    classes = Answer(logits, logits, c, c, {})
    assert classes.scores("test", "classification") == classes.scores("test", ["a", "b"])
    numbers = Answer(logits[:, :1], logits[:, :1], logits[:, 0], logits[:, 1], {})
    assert numbers.scores("valid", "regression")["r2"] == numbers.scores("valid", [])["r2"] == 1
    assert numbers.scores("test", None)["r2"] < 1
    assert [headline(t) for t in ("classification", "multi-label", "regression", True, False, None)] == [
        "accuracy",
        "accuracy",
        "r2",
        "accuracy",
        "r2",
        "r2",
    ]


def test_a_probability_of_half_precision_is_one_and_a_doubtful_one_is_not():
    logp, y = drawn()
    half = torch.tensor(logp).half().float()
    assert expected_calibration_error(half, y) == pytest.approx(expected_calibration_error(logp, y), abs=5e-3)
    shifted = np.log(np.exp(logp) * 1.0008)
    assert expected_calibration_error(shifted, y) >= 0
    with pytest.raises(ValueError, match="sum to 1"):
        expected_calibration_error(np.log(np.exp(logp) * 1.002), y)


def test_certain_and_wrong_has_an_infinite_log_loss():
    scores = classification_scores(np.array([[0.0, -np.inf], [-np.inf, 0.0]]), np.array([0, 0]))
    assert scores["log_loss"] == math.inf and scores["accuracy"] == 0.5 and scores["ece"] == 0.5


def test_one_sample_or_one_group_has_no_interval():
    for found in (bootstrap_interval([0.3]), bootstrap_interval([0.1, 0.5], groups=["a", "a"])):
        assert found.mean == pytest.approx(0.3) and math.isnan(found.low) and math.isnan(found.high)
    both = bootstrap_interval(np.array([[0.1, 1.0], [0.5, 3.0]]), groups=[4, 4])
    assert [i.mean for i in both] == [0.3, 2.0] and all(math.isnan(i.low) for i in both)
    named = bootstrap_interval([0.1, 0.5, 0.3], groups=["b", "a", "b"])
    assert named == bootstrap_interval([0.1, 0.5, 0.3], groups=torch.tensor([1, 0, 1]))
    assert [named.mean, named.low, named.high] == pytest.approx([0.3, 0.2, 0.5])


@pytest.mark.slow
def test_an_interval_that_ignores_groups_misses_and_one_that_knows_them_does_not():
    missed = dict(ignored=0, known=0)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), 5)
        values = rng.normal(size=60)[groups] + rng.normal(size=300)
        for name, g in (("ignored", None), ("known", groups)):
            interval = bootstrap_interval(values, g, draws=500, seed=seed)
            missed[name] += not interval.low <= 0 <= interval.high
    assert missed["ignored"] / 300 > 0.15 and missed["known"] / 300 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_failed_runs_are_said_and_stand_for_nothing():
    rows = [
        dict(data="d", method=m, seed=s, n_train=60_000, n_test=20_000, accuracy=a)
        for m, values in dict(ensemble=[0.7, 0.8, 0.705], joint=[0.75, math.nan, 0.76], broken=[math.nan] * 3).items()
        for s, a in enumerate(values)
    ]
    with pytest.warns(UserWarning, match=r"of 3 seeds on 'd'.*'joint': 1, 'broken': 3"):
        found = paired_intervals(pd.DataFrame(rows), "d")
    assert found["joint"][0] == corrected_interval([0.75, 0.76], 1 / 3)
    assert np.allclose(found["joint"][1], corrected_interval([0.05, 0.055], 1 / 3))
    assert all(math.isnan(v) for v in (*found["broken"][0], *found["broken"][1]))
    with pytest.raises(ValueError, match="no score 'accuracy'"):
        paired_intervals(pd.DataFrame(rows[-3:]), "d")
    with pytest.raises(ValueError, match=r"several runs of .* = \('ensemble', 0\)"):
        paired_intervals(pd.DataFrame(rows + rows[:1]), "d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired_intervals(pd.DataFrame(rows[:3]), "d")


def test_scores_are_plain_numbers_in_double_precision_whatever_comes_in():
    logits, y = several()
    labels = torch.tensor(logits).argmax(1).numpy()
    for scores in (
        multilabel_scores(torch.tensor(logits).bfloat16(), torch.tensor(y)),
        classification_scores(torch.tensor(logits).float().log_softmax(1).requires_grad_(), torch.tensor(labels)),
        regression_scores(logits[:, 0], y[:, 0]),
    ):
        assert all(type(v) is float for v in scores.values())
    assert type(expected_calibration_error(torch.tensor(logits).log_softmax(1), labels)) is float
    single = (10 * logits).astype(np.float32)
    exact = -torch.tensor(single).double().log_softmax(1)[range(len(labels)), labels].mean().item()
    answer = Answer(single, single, labels, labels, {})
    assert answer.scores("test", "classification")["log_loss"] == pytest.approx(exact, rel=1e-12)


def test_the_task_of_the_data_decides_the_score_before_its_classes_do():
    y = np.array([0.0, 1.0, 3.0])
    near, far = (Answer(g, g, y, y, {}) for g in (y + 0.1, np.array([3.0, 0.0, 1.0])))
    assert best_on_validation([far, near], SimpleNamespace(task="regression", classes=["a"])) is near
    assert near.scores("test", "regression") == regression_scores(y + 0.1, y)
    guess = np.array([0.0, 0.5, 4.0])
    assert Answer(guess, guess, y, y, {}).scores("test", [])["r2"] == pytest.approx(metrics.r2_score(y, guess))


@pytest.mark.parametrize(
    "score", ["accuracy", "balanced_accuracy", "macro_f1", "exact_match", "average_precision", "auc", "ece"]
)
def test_every_share_ends_at_0_and_1(score):
    values = dict(ensemble=[0.0, 0.3], joint=[1.0, 0.7])
    rows = [
        dict(data="d", method=m, seed=s, n_train=60, n_test=20, **{score: v})
        for m, shares in values.items()
        for s, v in enumerate(shares)
    ]
    found = paired_intervals(pd.DataFrame(rows), "d", score)
    assert found["ensemble"][0].low == 0 and found["joint"][0].high == 1
    assert found["joint"][1].high == 1 and found["joint"][1].low >= -1
    reverse = paired_intervals(pd.DataFrame(rows), "d", score, "joint")
    assert reverse["ensemble"][1].low == -1 and reverse["joint"][1] is None


def test_the_interval_takes_the_mean_ratio_of_sizes():
    sizes = [(50, 10), (40, 20), (30, 30)]  # test to train: 0.2, 0.5, 1
    rows = [
        dict(data="d", method="a", seed=s, n_train=train, n_test=test, mine=v)
        for s, ((train, test), v) in enumerate(zip(sizes, (0.5, 0.7, 1.1)))
    ]
    found = paired_intervals(pd.DataFrame(rows), "d", "mine", "a")["a"][0]
    assert np.allclose(found, corrected_interval([0.5, 0.7, 1.1], 1.7 / 3))
    assert all(type(v) is float for v in found)
    errors = pd.DataFrame(rows).rename(columns=dict(mine="mae"))
    assert paired_intervals(errors, "d", "mae", "a")["a"][0].low == 0  # no error is below zero


def test_the_table_shows_what_each_data_set_has():
    rows = [
        dict(data=d, method=m, seed=s, n_train=60, n_test=20, log_loss=v + 0.01 * s * s)
        for d, m, v in (("p", "ensemble", 0.5), ("p", "joint", 0.25), ("q", "joint", 0.75), ("q", "other", 1.0))
        for s in range(3)
    ]
    table = paired_table(pd.DataFrame(rows), ["ensemble", "other", "joint"], "log_loss", ("joint",), scale=10)
    assert list(table.index) == [("p", "ensemble"), ("p", "joint"), ("q", "other"), ("q", "joint")]
    assert table.index.names == ["data", "method"] and list(table.columns) == ["log_loss", "minus joint"]
    half = 10 * (corrected_interval([0, 0.01, 0.04], 1 / 3).high - 0.05 / 3)
    mean = 10 * (0.5 + 0.05 / 3)
    assert table.log_loss["p", "ensemble"] == f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"
    assert table["minus joint"]["p", "ensemble"] == "+2.5" and table["minus joint"]["p", "joint"] == ""


@pytest.mark.parametrize("logits, y", [([[0.0, 1.0]], torch.tensor([1])), (torch.zeros(1, 2), [1])])
def test_gains_of_lists_are_refused(logits, y):
    with pytest.raises(TypeError, match="list"):
        gains(logits, y)


def test_labels_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match="^y has NaN or infinity in 1 of 2"):
        multilabel_scores(np.zeros((1, 2)), np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="^logits has NaN or infinity in 2 of 2"):
        multilabel_scores(np.full((1, 2), np.inf), np.array([[0.0, 1.0]]))


def test_runs_on_one_split_have_no_correction_for_overlapping_training_parts():
    rows = [
        dict(data="d", method="m", seed=s, n_train=60, n_test=40, log_loss=v) for s, v in enumerate([0.4, 0.5, 0.7])
    ]
    plain = corrected_interval([0.4, 0.5, 0.7])
    assert paired_intervals(pd.DataFrame(rows), "d", "log_loss", one_split=True)["m"][0] == plain
    assert paired_intervals(pd.DataFrame(rows), "d", "log_loss")["m"][0].low < plain.low


def test_one_bad_number_among_many_is_refused():
    logits, y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    logits[2, 1] = math.nan
    with pytest.raises(ValueError, match="NaN among the logits or targets"):
        gains(logits, y)
    numbers = torch.tensor([1.0, 2.0, math.nan, 3.0])
    with pytest.raises(ValueError, match="NaN among the logits or targets"):
        gains(torch.zeros(4, 1), numbers)
    with pytest.raises(TypeError, match="true and false"):
        gains(torch.zeros(4, 3) > 1, y)
    with pytest.raises(ValueError, match="of rows"):
        sampling_deviation(0.5, 0)


def test_gains_of_several_answers_are_those_of_each():
    logits, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(gains(logits, y), torch.stack([gains(one, y) for one in logits]))


def test_scores_and_ends_are_plain_floats():
    rng = np.random.default_rng(0)
    p, y = np.log(rng.dirichlet(np.ones(3), 40)), np.arange(40) % 3
    found = [*classification_scores(p, y).values(), *regression_scores(p[:, 0], p[:, 1]).values()]
    found += [*corrected_interval(np.float32([1, 2, 4]), 0.3), *bootstrap_interval(np.float32([1, 2, 4]))]
    assert {type(v) for v in found} == {float}
    halves = rng.random(101).astype(np.float16)  # their mean in half precision is another number
    assert bootstrap_interval(halves).mean == pytest.approx(halves.astype(float).mean(), abs=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_scores_of_several_targets_are_the_means_of_theirs(d):
    rng = np.random.default_rng(d)
    y = rng.normal(size=(50, d)) * 10.0 ** np.arange(d)
    guess = y + rng.normal(size=(50, d))
    each = [regression_scores(guess[:, k], y[:, k]) for k in range(d)]
    assert regression_scores(guess, y) == {name: pytest.approx(np.mean([s[name] for s in each])) for name in each[0]}


def test_an_interval_of_drawn_scores_adds_both_errors_on_each_side():
    draws = np.r_[np.linspace(0.5, 0.6, 51), np.linspace(0.6, 0.9, 50)]  # about .6, and further above than below
    runs = np.stack([np.r_[0.58, draws], np.r_[0.62, draws]])
    one, two = drawn_interval(runs[:1]), drawn_interval(runs)
    seeds, (low, high) = corrected_interval(runs[:, 0], 0.0), np.quantile(draws, [0.025, 0.975])
    assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high)) and two.mean == pytest.approx(0.6)
    half = seeds.mean - seeds.low
    assert two.low == pytest.approx(0.6 - math.hypot(half, 0.6 - low))
    assert two.high == pytest.approx(0.6 + math.hypot(half, high - 0.6))
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        drawn_interval(runs, 95)
