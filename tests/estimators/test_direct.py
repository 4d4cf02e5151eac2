"Plug-in and nearest neighbours against truths and other libraries, their intervals by coverage."

import math

import certify
import numpy as np
import pandas as pd
import pytest
import torch
from common import gaussians
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from mmlit.estimators.direct import Estimate, as_variable
from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc


@pytest.mark.parametrize(
    "quantity, name",
    [
        ("mi", "table 5x5, independent"),
        ("mi", "table 4x6, random"),
        ("cmi", "table 2x4x3, random"),
        ("tc", "XOR, 10 % flipped"),
    ],
)
def test_plugin_interval_covers(quantity, name, runs=400, n=300):
    task = next(t for t in certify.DISTRIBUTIONS if (t.quantity, t.name) == (quantity, name))
    estimates = [certify.run(task, "plugin", n, 5000 + r)[0] for r in range(runs)]
    values = np.array([e.value for e in estimates])
    inside = np.mean([e.low <= task.truth + 1e-12 and task.truth - 1e-12 <= e.high for e in estimates])
    assert abs(values.mean() - task.truth) < 4 * values.std() / math.sqrt(runs) + 0.002
    assert 0.90 <= inside <= 0.99


@pytest.mark.parametrize("name", ["Gaussian 1+1, rho 0.6", "Student 1+1, 2 d.o.f., rho 0.5", "step, 5 labels"])
def test_nearest_neighbour_interval_covers(name, runs=60, n=500):
    task = next(t for t in certify.DISTRIBUTIONS if t.name == name)
    estimates = [certify.run(task, "knn", n, 5000 + r)[0] for r in range(runs)]
    values = np.array([e.value for e in estimates])
    inside = np.mean([e.low <= task.truth <= e.high for e in estimates])
    assert inside >= 0.85  # 60 runs at 93 %: 4 standard errors
    assert abs(values.mean() - task.truth) < 0.03


def test_nearest_neighbours_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 1500, 1, 0.7)
    assert abs(estimate_mi(x, y, method="knn").value - mutual_info_regression(x, y[:, 0], random_state=0)[0]) < 0.04
    label = rng.integers(0, 3, 1500)
    features = rng.normal(size=1500) + label
    assert (
        abs(
            estimate_mi(label, features, method="knn").value
            - mutual_info_classif(features[:, None], label, random_state=0)[0]
        )
        < 0.03
    )


def test_nearest_neighbours_count_ties():
    "Half the samples share one value: a mixture of an atom and a density."
    rng = np.random.default_rng(0)
    hit = rng.random(3000) < 0.5
    x, y = np.where(hit, 0.0, rng.random(3000) + 1), np.where(hit, 0.0, rng.random(3000) + 1)
    assert abs(estimate_mi(x, y, method="knn").value - math.log(2)) < 0.05


def test_chain_rule_holds_between_the_plug_in_estimates():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(0, 3, (3, 800))
    y = np.where(rng.random(800) < 0.5, x, y)
    z = np.where(rng.random(800) < 0.5, (x + y) % 3, z)
    whole = estimate_mi((x, z), y).value
    assert math.isclose(whole, estimate_mi(z, y).value + estimate_cmi(x, y, z).value, abs_tol=1e-9)
    assert math.isclose(estimate_tc([x, y, z]).value, whole + estimate_mi(x, z).value, abs_tol=1e-9)


@pytest.mark.parametrize(
    "dtype, discrete", [(np.float32, False), (np.int64, True), (bool, True), ("U1", True), (object, True)]
)
def test_kind_of_a_variable_follows_its_type(dtype, discrete):
    assert as_variable(np.array([0, 1, 1, 0]).astype(dtype)).discrete == discrete
    assert as_variable(np.array([0, 1, 1, 0]), discrete=not discrete).discrete != discrete


def test_estimate_prints_what_it_is():
    estimate = Estimate(0.1, 0.0, 0.2, "knn", "estimate", 30, warnings=("too few samples",))
    assert str(estimate).endswith("warning: too few samples") and not estimate.covers


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_as_many_codes_as_samples_do_not_make_information(seed):
    rng = np.random.default_rng(seed)
    found = estimate_mi((rng.normal(size=(600, 6)), rng.integers(0, 9, (600, 4))), rng.integers(0, 2, 600))
    assert found.low == 0 and any("features" in w for w in found.warnings)


@pytest.mark.parametrize("sizes, rare", [((8, 2), 0.03), ((12, 2), 0.05)])
def test_tables_with_a_rare_label_are_covered_or_warned_about(sizes, rare, runs=300, n=300):
    rng = np.random.default_rng(0)
    found = [estimate_mi(rng.integers(0, sizes[0], n), rng.random(n) < rare) for _ in range(runs)]
    quiet = [e.low == 0 for e in found if e.covers]
    assert len(quiet) < runs / 4 or np.mean(quiet) > 0.9


def test_a_table_has_columns_of_several_types():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(a=rng.normal(size=500), b=rng.random(500) < 0.5))
    frame["c"] = np.where(frame.b, "x", "y")
    y = frame.a.to_numpy() + 0.5 * rng.normal(size=500)
    assert estimate_mi(frame, y).value < 2 and estimate_mi(frame, y).method == "knn"
    assert as_variable(frame).columns.shape == (500, 1) and as_variable(
        torch.ones(5, dtype=torch.bfloat16)
    ).columns.shape == (5, 1)
