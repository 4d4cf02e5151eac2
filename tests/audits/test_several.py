"An audit of several real targets, and of several labels, a sample: every number against an independent computation."

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from mmlit.audits.audit import audit
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import Budget, multimodal_learner
from mmlit.production.predictor import load_predictor, save_predictor

TINY = Budget(epochs=3, width=8, bs=32)


def inputs(n=320, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    return rng, z, dict(left=z[:, :2].astype("float32"), right=z[:, 1:].astype("float32"))


def numbers():
    rng, z, xs = inputs()
    return MultimodalData(
        "numbers", xs, np.stack([z.sum(1), 50 * z[:, 0] + rng.normal(size=len(z))], 1), task="regression"
    )


def tags():
    rng, z, xs = inputs(seed=1)
    return MultimodalData("tags", xs, (z + rng.normal(size=z.shape) > 0.5).astype(int), list("pqr"), task="multi-label")


def value(found, section, quantity, of):
    return found.get(section, quantity, of).mean


def test_scores_of_several_targets_are_means_over_them(tmp_path):
    found = audit(data=numbers(), budget=TINY, out=tmp_path, progress=False)
    y = found.first.y.numpy()
    for model, out in found.first.logits.items():
        assert value(found, "models", "r2", model) == pytest.approx(metrics.r2_score(y, out), abs=1e-5)
        assert value(found, "models", "r1", model) == pytest.approx(metrics.d2_absolute_error_score(y, out), abs=1e-5)
        assert value(found, "models", "absolute error", model) == pytest.approx(
            metrics.mean_absolute_error(y, out), rel=1e-5
        )
    both = np.mean([found.first.logits[f"unimodal {m}"].numpy() for m in found.modalities], 0)
    assert value(found, "models", "r2", "ensemble") == pytest.approx(metrics.r2_score(y, both), abs=1e-5)
    gap = value(found, "models", "r2", "joint") - value(found, "models", "r2", "ensemble")
    assert value(found, "differences", "r2", "joint minus ensemble") == pytest.approx(gap)
    assert "Each sample has 2 targets" in str(found) and "2 targets" in found.to_html(tmp_path / "p.html").read_text()
    assert any("one label or target" in note for note in found.notes)


def test_names_of_several_targets_stay(tmp_path):
    rng, z, xs = inputs(160)
    y = pd.DataFrame(dict(systolic=z.sum(1), diastolic=50 * z[:, 0]))
    data = MultimodalData("blood", xs, y, task="regression")
    assert data.targets == ["systolic", "diastolic"] == data.subset(range(9)).targets
    assert not MultimodalData("blood", xs, y.to_numpy(), task="regression").targets
    found = audit(data=data, budget=TINY, metric="mae", out=tmp_path, progress=False)
    note = "Each sample has 2 targets (systolic, diastolic)"
    assert note in str(found) and note in found.to_html(tmp_path / "p.html").read_text()
    out, y = found.first.logits["joint"], found.first.y
    assert found.score == "neg_mae"
    assert value(found, "models", "mae", "joint") == pytest.approx(metrics.mean_absolute_error(y, out), rel=1e-5)

    learn = multimodal_learner(multimodal_dls(data, device="cpu"), width=4)
    save_predictor(learn, tmp_path / "p.pt")
    said = load_predictor(tmp_path / "p.pt").predict(xs)
    assert list(said) == ["systolic", "diastolic"] and len(said) == 160


def test_targets_of_any_unit_have_the_same_audit(tmp_path):
    plain, large = numbers(), numbers()
    large.y = large.y * np.array([1024.0, 0.125], dtype=large.y.dtype)
    one, other = (
        audit(data=data, budget=TINY, out=tmp_path / str(i), progress=False) for i, data in enumerate((plain, large))
    )
    same = [key for key in one.table.index if key[1] != "absolute error"]
    assert np.allclose(one.table.value[same], other.table.value[same], atol=2e-3)
    assert one.advice.use == other.advice.use


def test_linear_models_probes_and_coalitions_of_several_targets(tmp_path):
    data = numbers()
    dls = multimodal_dls(data)
    learn = multimodal_learner(dls, width=8)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    found = audit(learn, budget=TINY, metric="rmse", out=tmp_path, progress=False)
    y, out = found.first.y.numpy(), found.first.logits["joint"]
    assert value(found, "models", "rmse", "joint") == pytest.approx(metrics.root_mean_squared_error(y, out), rel=1e-5)
    whole = value(found, "coalitions", "r2", "left + right")
    assert whole == pytest.approx(metrics.r2_score(y, out), abs=1e-5)
    shares = [value(found, "shapley", "r2", m) for m in found.modalities]
    assert sum(shares) == pytest.approx(whole - value(found, "coalitions", "r2", "nobody"))
    linear = value(found, "linear model", "r2, linear minus", "joint") + whole
    assert linear > 0.97  # both targets are linear in the inputs
    assert 0 < value(found, "probes", "alone", "left") <= 1


def test_scores_of_several_labels_are_means_over_them(tmp_path):
    found = audit(data=tags(), budget=TINY, metric="f1", out=tmp_path, progress=False)
    y = found.first.y.numpy()
    for model, out in found.first.logits.items():
        answer, p = (out > 0).numpy(), out.double().sigmoid().numpy()
        assert value(found, "models", "accuracy", model) == pytest.approx(np.mean(answer == y))
        assert value(found, "models", "AUC", model) == pytest.approx(metrics.roc_auc_score(y, p))
        each = [metrics.balanced_accuracy_score(a, b) for a, b in zip(y.T, answer.T)]
        assert value(found, "models", "balanced accuracy", model) == pytest.approx(np.mean(each))
        nats = sum(metrics.log_loss(a, b) for a, b in zip(y.T, p.T))
        assert value(found, "models", "log loss", model) == pytest.approx(nats)
        assert value(found, "models", "f1", model) == pytest.approx(
            metrics.f1_score(y, answer, average="macro", zero_division=0)
        )
    log_odds = np.mean([found.first.logits[f"unimodal {m}"].numpy() for m in found.modalities], 0)
    assert np.allclose(found.first.logits["ensemble"], log_odds, atol=1e-6)
    assert found.facts["decides"] == "f1" and "Each sample has 3 labels" in str(found)
    assert not [key for key in found.table.index if key[0] == "oracle"]
    found.to_html(tmp_path / "page.html")


def test_several_labels_without_a_metric_and_with_a_missing_modality(tmp_path):
    data = tags()
    there = np.random.default_rng(0).random((len(data), 2)) < 0.7
    there[~there.any(1)] = True
    data = MultimodalData("tags", data.xs, data.y, data.classes, task="multi-label", presence=there)
    found = audit(data=data, budget=TINY, out=tmp_path, progress=False)
    y, out = found.first.y.numpy(), found.first.logits["joint"]
    lacks = ~there[found.first.rows, 0]
    share = np.mean((out > 0).numpy()[lacks] == y[lacks])
    assert value(found, "missing", "accuracy, joint", "without left") == pytest.approx(share)
    assert found.facts["decides"] in ("accuracy", "AUC")


def test_r2_of_several_targets_where_a_modality_is_missing(tmp_path):
    data = numbers()
    there = np.random.default_rng(0).random((len(data), 2)) < 0.7
    there[~there.any(1)] = True
    data = MultimodalData("numbers", data.xs, data.y, task="regression", presence=there)
    found = audit(data=data, budget=TINY, out=tmp_path, progress=False)
    y, out, has = found.first.y.numpy(), found.first.logits["joint"], there[found.first.rows]
    for of, rows in (("complete", has.all(1)), ("without right", ~has[:, 1])):
        own = metrics.r2_score(y[rows], out[rows])
        assert value(found, "missing", "r2, joint", of) == pytest.approx(own, abs=1e-5)
