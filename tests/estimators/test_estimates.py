"The three functions, the certification and its claims."

import functools
import math
from pathlib import Path

import certify
import numpy as np
import pandas as pd
import pytest
import torch
from common import gaussians
from scipy.stats import binom

from mmlit.estimators.estimates import ESTIMATORS, estimate_cmi, estimate_mi, estimate_tc
from mmlit.estimators.learned import NeuralEstimator
from mmlit.information import (
    conditional_mutual_information,
    gaussian_total_correlation,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("task", certify.DISTRIBUTIONS, ids=lambda t: f"{t.quantity}-{t.name}")
def test_each_distribution_knows_its_truth(task, n=40_000):
    ratio = task.log_ratio(*task.sample(n, np.random.default_rng(5)))
    error = ratio.std() / math.sqrt(n)
    assert error < 0.02 and abs(ratio.mean() - task.truth) <= 4 * error + 1e-9


def test_truths_agree_with_the_exact_module():
    by_name = {(t.quantity, t.name): t for t in certify.DISTRIBUTIONS}
    assert math.isclose(
        by_name["cmi", "table, redundant"].truth,
        conditional_mutual_information(torch.tensor(certify.redundant_table())).item(),
        abs_tol=1e-12,
    )
    assert math.isclose(by_name["tc", "XOR, exact"].truth, math.log(2), abs_tol=1e-12)
    gaussian = by_name["tc", "Gaussian 1+1+1"]
    assert math.isclose(
        gaussian.truth, gaussian_total_correlation(torch.tensor(gaussian.covariance), (1, 1, 1)).item(), abs_tol=1e-12
    )


@pytest.mark.parametrize("method", ["knn", "plugin", "classifier", "neural"])
def test_estimates_do_not_depend_on_units_or_order(method):
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 300, 1, 0.6)
    if method != "knn":
        y = (y[:, 0] > 0).astype(int)
    if method == "plugin":
        x = (x[:, 0] > 0.3).astype(int)
    options = dict(neural=NeuralEstimator(folds=2, steps=50)) if method == "neural" else {}
    first = estimate_mi(x, y, method=method, **options)
    second = estimate_mi(x if method == "plugin" else np.exp(2 * x) + 5, y, method=method, **options)
    assert math.isclose(first.value, second.value, abs_tol=1e-9) and first == estimate_mi(
        x, y, method=method, **options
    )
    if method in ("knn", "plugin"):
        assert math.isclose(first.value, estimate_mi(y, x, method=method).value, abs_tol=1e-9)


def test_methods_find_nothing_in_independent_data():
    rng = np.random.default_rng(0)
    x, y, label = rng.normal(size=(400, 3)), rng.normal(size=(400, 3)), rng.integers(0, 3, 400)
    for estimate in (
        estimate_mi(x, y),
        estimate_mi(x, label),
        estimate_mi(x[:, 0], y[:, 0]),
        estimate_cmi(x, label, y),
    ):
        assert estimate.low < 0.01 and estimate.value < 0.05


def test_certification_keeps_finished_rows(tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "table.csv", []
    run = certify.run
    monkeypatch.setattr(certify, "run", lambda *a: calls.append(a) or run(*a))
    arguments = ["certify", "--quick", "--only", "10 % flipped", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    certify.main()
    first, rows = len(calls), out.read_text()
    assert first and len(certify.read(out)) >= 2
    certify.main()
    assert len(calls) == first and out.read_text() == rows  # nothing computed twice
    out.write_text("\n".join(rows.splitlines()[:-1]) + "\n")  # as if interrupted before the last row
    certify.main()
    assert first < len(calls) < 2 * first and len(out.read_text().splitlines()) == len(rows.splitlines())


def test_every_claim_of_the_table_holds():
    rows = certify.read(ROOT / "results" / "certification.csv").values()
    planned = {(task.quantity, task.name, e, n) for task, e, n, _ in certify.plan()}
    assert {certify.key(r) for r in rows} == planned, "distributions or estimators changed: run python tools/certify.py"
    for row in rows:
        if row["claimed"] == "True":
            assert 0.90 <= float(row["coverage_quiet"]) <= 0.99, row
        if row["kind"] == "lower bound":  # consistent with 95 % or more, at the 0.1 % level
            repeats = int(row["repeats"])
            assert binom.sf(round((1 - float(row["low_holds"])) * repeats) - 1, repeats, 0.05) > 1e-3, row


@pytest.mark.parametrize("constant", [np.zeros(400, int), np.array(["a"] * 400), np.full(400, 3.0)])
def test_a_constant_changes_nothing(constant):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x + 0.5 * rng.normal(size=(400, 3))
    small = NeuralEstimator(folds=2, steps=50)
    with_it, without = (estimate_tc(xs, method="neural", neural=small) for xs in ([x, y, constant], [x, y]))
    if constant.dtype.kind != "f":
        assert with_it.value == without.value > 1
    label = estimate_mi(np.hstack([x, y]), np.zeros(400, int))
    assert label.value == label.low == label.high == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: estimate_tc(pd.DataFrame({"a": x, "b": x})), "DataFrame"),
        (lambda x: estimate_mi((x, x[:50]), x), "different numbers"),
        (lambda x: estimate_mi(np.where(np.arange(100) < 3, None, "a"), x), "missing"),
        (lambda x: estimate_mi(pd.Series(pd.date_range("2020", periods=100)), x), "dates"),
        (lambda x: estimate_mi(x, x, discrete=True), "one entry per variable"),
        (lambda x: estimate_mi(x, -(x**2), method="knn", neighbours=0), "at least one neighbour"),
        (lambda x: estimate_mi(x, -(x**2), method="neural", neural=NeuralEstimator(folds=1)), "at least 2 folds"),
    ],
)
def test_input_that_cannot_be_meant_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=100))


def outside(quantity, level, bandwidth=1.0):
    return quantity.estimate(bandwidth, 0.0, "outside", "estimate", level, [])


def any_option(quantity, level, **options):
    return quantity.estimate(options["bandwidth"], 0.0, "outside", "estimate", level, [])


class Callable:
    def __call__(self, quantity, level, *, bandwidth):
        return quantity.estimate(bandwidth, 0.0, "outside", "estimate", level, [])


@pytest.mark.parametrize("estimator", [outside, any_option, Callable(), functools.partial(outside, bandwidth=7.0)])
def test_an_outside_estimator_gets_its_own_options(estimator, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "outside", estimator)
    x, y, z = np.random.default_rng(0).normal(size=(3, 50))
    options = dict(method="outside", bandwidth=2.0)
    found = estimate_mi(x, y, **options), estimate_cmi(x, y, z, **options), estimate_tc([x, y, z], **options)
    assert all(e.value == 2.0 and e.method == "outside" for e in found)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(method="outside", bandwidt=2.0), "method 'outside': 'bandwidt' .did you mean 'bandwidth'.*: bandwidth$"),
        (dict(method="outside", folds=2), "method 'outside': 'folds'; known: bandwidth$"),
        (dict(method="knn", folds=2), "method 'knn': 'folds'; known: seed, neighbours$"),
        (dict(bandwidth=2.0), "method 'auto': 'bandwidth'; known: seed, neighbours, folds, neural$"),
        (dict(method="outsider"), "unknown method 'outsider' .did you mean 'outside'"),
    ],
)
def test_an_option_that_the_method_does_not_have_is_refused(options, message, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "outside", outside)
    x = np.random.default_rng(0).normal(size=50)
    with pytest.raises(ValueError, match=message):
        estimate_mi(x, x, **options)


def test_auto_uses_the_options_of_the_method_that_it_chooses():
    x, y = gaussians(np.random.default_rng(0), 500, 1, 0.6)
    assert estimate_mi(x, y, neighbours=7, folds=3) == estimate_mi(x, y, method="knn", neighbours=7)
    assert estimate_mi(x, y, neighbours=7) != estimate_mi(x, y)
    assert estimate_mi(x > 0, y > 0, seed=3) == estimate_mi(x > 0, y > 0, method="plugin")
