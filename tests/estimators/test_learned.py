"Classifier and network: bounds that stay below, cross-fitting, reproducible draws."

import certify
import numpy as np
import pytest
import torch
from common import gaussians, generator

from mmlit.estimators.estimates import estimate_cmi, estimate_mi
from mmlit.estimators.learned import NeuralEstimator


@pytest.mark.parametrize(
    "task",
    [
        t
        for t in certify.DISTRIBUTIONS
        if t.quantity != "cmi" and t.name in ("Gaussian 5+5, rho 0.5", "Gaussian 4+4+4, rho 0.4", "label x 10 features")
    ],
    ids=lambda t: f"{t.quantity}-{t.name}",
)
def test_lower_bounds_stay_below_and_come_close(task):
    method = "classifier" if task.name.startswith("label") else "neural"
    estimate = certify.run(task, method, 1000, 77)[0]
    assert estimate.kind == "lower bound" and not estimate.covers
    assert estimate.low <= task.truth and estimate.value > 0.7 * task.truth


def test_classifier_sees_xor_and_ignores_a_known_condition():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 800))
    features = np.stack([2 * a - 1, 2 * b - 1], 1) * 2.0 + rng.normal(size=(800, 2))
    assert estimate_mi(features, a ^ b, method="classifier").value > 0.45
    assert abs(estimate_cmi(rng.normal(size=(800, 5)), a, features[:, 0], method="classifier").value) < 0.03


def test_neural_estimate_is_reproducible_and_leaves_the_global_generator_alone():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 300, 2, 0.5)
    estimator = NeuralEstimator(folds=2, steps=50)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = estimate_mi(x, y, method="neural", neural=estimator)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert estimate_mi(x, y, method="neural", neural=estimator) == first
    assert estimate_mi(x, y, method="neural", neural=estimator, seed=1) != first


def test_a_critic_never_scores_the_samples_it_was_trained_on(monkeypatch):
    seen = []
    fit, held_out = NeuralEstimator.fit, NeuralEstimator._held_out
    monkeypatch.setattr(
        NeuralEstimator,
        "fit",
        lambda self, parts, g, groups=None: (seen.append(set(parts[0][:, 0].tolist())), fit(self, parts, g, groups))[1],
    )

    def check(self, critic, parts, largest):
        assert not seen[-1] & set(parts[0][:, 0].tolist())
        return held_out(self, critic, parts, largest)

    monkeypatch.setattr(NeuralEstimator, "_held_out", check)
    x = torch.randn(2, 120, 1, generator=generator())
    NeuralEstimator(folds=3, steps=25).terms(x)
    assert len(seen) == 3 and all(len(s) == 80 for s in seen)


@pytest.mark.parametrize("classes", [2, 20])
def test_features_without_content_inform_about_nothing(classes):
    y = np.random.default_rng(0).integers(0, classes, 800)
    found = estimate_mi(np.zeros((800, 6)), y, method="classifier")
    assert found.low == 0 and abs(found.value) < 1e-6
