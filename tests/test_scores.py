"Scores against scikit-learn and against loops, intervals against their definition, and refusals."

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
    expected_calibration_error,
    gains,
    headline,
    paired_intervals,
    regression_scores,
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
        dict(data="d", method=m, seed=s, n_train=60, n_test=20, accuracy=a)
        for m, values in dict(ensemble=[0.7, 0.8, 0.9], joint=[0.75, 0.85, 0.95]).items()
        for s, a in enumerate(values)
    ]
    for order in (rows, rows[::-1]):
        difference = paired_intervals(pd.DataFrame(order), "d")["joint"][1]
        assert difference.mean == pytest.approx(0.05) and difference.high - difference.low < 1e-9


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: classification_scores(np.zeros((3, 2)), np.zeros(3, int)), "log_softmax"),
        (lambda: classification_scores(np.log([[0.5, 0.5]]), np.array([2])), "0 to 1"),
        (lambda: regression_scores([1.0, 2.0], [1.0]), "one prediction for each"),
        (lambda: corrected_interval([]), "at least one run"),
        (lambda: bootstrap_interval([1.0, np.nan]), "finite values"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=[1]), "1 groups for 2"),
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
