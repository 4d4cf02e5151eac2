"An audit by a metric of the user's choice: what decides, what chooses, what is refused."

import numpy as np
import pytest
import torch
from sklearn import metrics

from mmlit.audits.audit import audit
from mmlit.audits.measure import measure
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import Budget, multimodal_learner
from mmlit.methods.baselines import unimodal_learner
from mmlit.metrics import METRICS, Metric, drawn_scores, register_metric, with_metric
from mmlit.scores import drawn_interval

TINY = Budget(epochs=2, width=4, bs=32)


def uneven(n=600, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(int)
    return MultimodalData(
        "uneven", {m: rng.normal(size=(n, 3)) + y[:, None] for m in ("left", "right")}, y, ["no", "yes"]
    )


def test_the_metric_decides_and_chooses_epochs(tmp_path):
    found = audit(data=uneven(), budget=TINY, metric="balanced_accuracy", out=tmp_path, progress=False)
    assert found.facts["decides"] == "balanced accuracy" and "points of balanced accuracy" in str(found.advice)
    plain = audit(data=uneven(), budget=TINY, out=tmp_path, progress=False)
    assert plain.facts["decides"] == "accuracy" and "balanced accuracy" not in str(plain.advice)
    n = len([*tmp_path.rglob("*.npz")])
    audit(data=uneven(), budget=TINY, metric="accuracy", out=tmp_path, progress=False)
    assert len([*tmp_path.rglob("*.npz")]) == n  # accuracy chooses the epochs of the default: these runs are there


@pytest.mark.parametrize(
    ("metric", "score"), [("log_loss", "log likelihood"), ("auroc", "AUC"), ("accuracy", "accuracy")]
)
def test_the_difference_that_decides_is_that_of_the_metric(metric, score, tmp_path):
    found = audit(data=uneven(seed=1), budget=TINY, metric=metric, out=tmp_path, progress=False)
    assert found.facts["decides"] == found.score == score
    rows = "log loss" if metric == "log_loss" else score
    joint = found.get("models", rows, "joint").mean * (-1 if metric == "log_loss" else 1)
    found.to_html(tmp_path / "page.html")
    p, y = found.first.logits["joint"].double().softmax(1).numpy(), found.first.y.numpy()
    own = dict(log_loss=-metrics.log_loss(y, p), auroc=metrics.roc_auc_score(y, p[:, 1]))
    assert abs(joint - own.get(metric, metrics.accuracy_score(y, p.argmax(1)))) < 1e-6


def test_an_error_of_numbers_decides_too(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    data = MultimodalData("numbers", dict(left=x[:, :2], right=x[:, 2:]), 50 * x.sum(1))
    found = audit(data=data, budget=TINY, metric="mae", out=tmp_path, progress=False)
    assert found.facts["decides"] == found.score == found.to_dict()["score"] == "neg_mae" and found.counts == "r2"
    assert found.facts["reported"] == "mae"
    assert "of mae" in str(found.advice) and "r1" not in str(found) and "neg_" not in str(found)
    out, y = found.first.logits["joint"], found.first.y
    assert found.get("models", "mae", "joint").mean == pytest.approx(metrics.mean_absolute_error(y, out), rel=1e-5)
    page = found.to_html(tmp_path / "page.html").read_text()
    assert "neg_" not in page and "Compared by" in page

    # what a sentence says of the difference has the sign of the error: own numbers, from the answers
    said = {m: metrics.mean_absolute_error(y, found.first.logits[m]) for m in ("joint", "ensemble", "best unimodal")}
    apart = f"{said['joint'] - said['best unimodal']:+.3f} of mae ["
    assert apart in str(found.advice) and "(less is better)" in str(found.advice)
    i = found.get("differences", "neg_mae", "joint minus best unimodal")
    assert f"{apart}{-i.high:+.3f}, {-i.low:+.3f}] (less is better)" in str(found.advice)
    assert f"{said['joint'] - said['ensemble']:+.3f}" in page and "mae (less is better)" in page


def test_a_scorer_of_an_error_is_that_error_with_its_own_sign(tmp_path):
    from mmlit.metrics import metric_of

    scorer = metrics.get_scorer("neg_mean_absolute_error")
    made, y, out = metric_of(scorer, "regression"), np.arange(4.0), np.array([0.0, 2, 2, 5])[:, None]
    assert made.name == "mean_absolute_error" and not made.larger
    assert made(out, y, "regression") == 0.75 and made.goodness(out, y, "regression") == -0.75
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    data = MultimodalData("numbers", dict(left=x[:, :2], right=x[:, 2:]), 50 * x.sum(1))
    effect = dict(mean_absolute_error=2.0)
    found = audit(data=data, budget=TINY, metric=scorer, smallest_effect=effect, out=tmp_path, progress=False)
    assert "neg_" not in str(found) and "of mean_absolute_error [" in str(found) and "(less is better)" in str(found)
    error = metrics.mean_absolute_error(found.first.y, found.first.logits["joint"])
    assert found.get("models", "mean_absolute_error", "joint").mean == pytest.approx(error, rel=1e-5)
    assert "2 of mean_absolute_error" in found.to_html(tmp_path / "page.html").read_text()


def test_the_best_unimodal_model_is_chosen_by_the_metric():
    data = uneven(300, share=0.1)
    dls = multimodal_dls(data)
    joint = multimodal_learner(dls, width=4)
    alone = [unimodal_learner(dls, m, width=4).model for m in data.modalities]
    for name in ("accuracy", "log_loss", "auroc"):
        found = measure(joint.model, alone, dls, metric=METRICS[name])
        best = max(data.modalities, key=lambda m: found.validation[f"unimodal {m}"])
        assert found.validation["best unimodal"] == found.validation[f"unimodal {best}"]
        assert torch.equal(found.logits["best unimodal"], found.logits[f"unimodal {best}"])


def test_a_model_is_audited_by_a_metric_on_its_own_loaders(tmp_path):
    dls = multimodal_dls(uneven(300))
    learn = multimodal_learner(dls, width=4)
    found = audit(learn, budget=Budget(epochs=1, width=4), metric="auroc", out=tmp_path, progress=False)
    assert found.facts["decides"] == "AUC" and getattr(dls, "metric", None) is None  # the loaders are left as they were


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric("AUC", ("classification",), function=metrics.f1_score), "give the metric another name"),
        (Metric("one", ("classification",), function=lambda y, answer: 1.0), "say what counts as no difference"),
        (Metric("odd", ("classification",), function=lambda y, answer: np.ones(2)), "odd cannot be measured"),
        ("mae", "task of uneven"),
        ("accuracies", "did you mean 'accuracy'"),
    ],
)
def test_a_metric_that_an_audit_does_not_have_is_refused_before_training(metric, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        audit(data=uneven(), metric=metric, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def rate_of_yes(y, answer):
    return float(((y == 1) & (answer == 1)).sum() / (y == 1).sum())


@pytest.mark.parametrize(
    ("metric", "own"),
    [
        ("f1", lambda y, p: metrics.f1_score(y, p.argmax(1), average="macro")),
        ("average_precision", lambda y, p: np.mean([metrics.average_precision_score(y == c, p[:, c]) for c in (0, 1)])),
        ("mcc", lambda y, p: metrics.matthews_corrcoef(y, p.argmax(1))),
        (
            metrics.make_scorer(metrics.jaccard_score, pos_label="yes"),
            lambda y, p: metrics.jaccard_score(y, p.argmax(1)),
        ),
        (Metric("rate", ("classification",), function=rate_of_yes), lambda y, p: rate_of_yes(y, p.argmax(1))),
    ],
    ids=["f1", "average_precision", "mcc", "scorer", "own"],
)
def test_a_metric_that_is_no_mean_decides_with_an_interval_of_draws(metric, own, tmp_path):
    data = uneven(300, seed=2)
    found = audit(data=data, budget=TINY, metric=metric, out=tmp_path, progress=False)
    name, y, said = found.facts["decides"], found.first.y, found.first.logits
    assert name in str(found.advice)
    p = {model: out.double().softmax(1).numpy() for model, out in said.items()}
    for model in ("joint", "ensemble", "best unimodal"):
        assert abs(found.get("models", name, model).mean - own(y.numpy(), p[model])) < 1e-9
    gap = found.get("differences", name, "joint minus ensemble")
    assert abs(gap.mean - (own(y.numpy(), p["joint"]) - own(y.numpy(), p["ensemble"]))) < 1e-9
    best = max(data.modalities, key=lambda m: found.facts["validation"][f"unimodal {m}"])
    assert torch.equal(said["best unimodal"], said[f"unimodal {best}"])  # chosen by the metric, too

    drawn = []  # the same rows for both models, drawn here by hand
    for seed in range(300):
        rows = np.random.default_rng([9, seed]).integers(len(y), size=len(y))
        drawn.append(own(y.numpy()[rows], p["joint"][rows]) - own(y.numpy()[rows], p["ensemble"][rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert gap.low < low + 0.3 * (high - low) and gap.high > high - 0.3 * (high - low)  # or wider: the sign test
    page = found.to_html(tmp_path / "page.html").read_text()
    assert name in page and f"{found.facts['smallest_effect'][name]:g} of {name}" in page


def test_draws_are_of_whole_groups_and_paired(tmp_path):
    data = uneven(240, seed=3)
    groups = np.arange(240) // 6
    data = MultimodalData("grouped", data.xs, data.y, data.classes, groups=groups)
    dls = multimodal_dls(data)
    joint, metric = multimodal_learner(dls, width=4), METRICS["f1"]
    alone = [unimodal_learner(dls, m, width=4).model for m in data.modalities]
    found = measure(joint.model, alone, dls, metric=metric)
    got = {q[:3]: q.given for q in found.quantities if "f1" in q.name}
    of_test = groups[dls.split.test]

    def drawn(model):
        return drawn_scores(metric, found.logits[model], found.y, "classification", of_test)

    assert got["models", "f1", "joint"] == drawn_interval(drawn("joint")[None])
    pair = drawn("joint") - drawn("ensemble")
    assert got["differences", "f1", "joint minus ensemble"] == drawn_interval(pair[None])
    assert ("linear model", "f1, linear minus", "joint") in got and ("robustness", "permuted, f1", "left") in got


def test_an_error_in_the_unit_of_the_target_decides_with_the_sign_of_a_gain(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    data = MultimodalData("numbers", dict(left=x[:, :2], right=x[:, 2:]), 50 * x.sum(1))
    found = audit(data=data, budget=TINY, metric="rmse", seeds=2, out=tmp_path, progress=False)
    assert found.facts["decides"] == "neg_rmse" and found.facts["reported"] == "rmse"
    joint, ensemble = (found.get("models", "rmse", model).mean for model in ("joint", "ensemble"))
    assert joint > 0 and found.get("differences", "neg_rmse", "joint minus ensemble").mean == pytest.approx(
        ensemble - joint
    )
    assert found.facts["smallest_effect"]["neg_rmse"] == pytest.approx(0.02 * 2**0.5 * np.std(data.y), rel=0.2)
    given = audit(
        data=data, budget=TINY, metric="rmse", smallest_effect=dict(neg_rmse=3.0), out=tmp_path, progress=False
    )
    assert given.facts["smallest_effect"]["neg_rmse"] == 3.0 and "of rmse" in str(given.advice)


def test_a_registered_metric_audits_as_it_compares(tmp_path):
    from mmlit import metrics as ours

    register_metric("rate of yes", rate_of_yes)
    try:
        found = audit(data=uneven(300), budget=TINY, metric="rate of yes", out=tmp_path, progress=False)
    finally:
        ours._METRICS.pop("rate of yes")
    answer = found.first.logits["joint"].argmax(1)
    assert found.get("models", "rate of yes", "joint").mean == rate_of_yes(found.first.y.numpy(), answer.numpy())


def test_an_audit_computes_curves_at_once_and_says_where_each_draw_takes_a_call(tmp_path, monkeypatch):
    called = []

    def curve(y, p):
        called.append(len(y))
        return metrics.average_precision_score(y, p[:, 1])

    data, own = uneven(300, seed=2), Metric("curve", ("classification",), function=curve, takes="probabilities")
    found = audit(data=data, budget=TINY, metric=own, out=tmp_path, progress=False)
    said = [note for note in found.notes if "100 draws of test rows" in note]
    assert len(said) == 1 and "Intervals of curve" in said[0] and said[0] in repr(found)
    assert max(map(called.count, set(called))) < 100 * 45  # about 40 questions, and what chooses epochs

    asked = []
    inner = METRICS["average_precision"].function
    call = type(inner).__call__
    monkeypatch.setattr(type(inner), "__call__", lambda self, *a: asked.append(1) or call(self, *a))
    found = audit(data=data, budget=TINY, metric="average_precision", out=tmp_path, progress=False)
    assert not any("draws of test rows" in note for note in found.notes)
    assert len(asked) < 300  # one call for each model, none for a draw


def test_the_metric_of_the_data_is_that_of_the_audit_unless_another_is_given(tmp_path):
    options = dict(budget=TINY, out=tmp_path, progress=False)
    for metric in "f1", "balanced_accuracy":
        asked = audit(data=uneven(), metric=metric, **options)
        held = audit(data=with_metric(uneven(), metric), **options)
        assert held.facts["decides"] == asked.facts["decides"] != "accuracy" and str(held.advice) == str(asked.advice)
        assert held.table.equals(asked.table)
    plain = audit(data=with_metric(uneven(), "f1"), metric="accuracy", **options)
    assert plain.table.equals(audit(data=uneven(), **options).table)
    learn = multimodal_learner(multimodal_dls(with_metric(uneven(), "f1"), device="cpu", bs=32), width=4)
    assert audit(learn, **options).facts["decides"] == "f1"


def test_the_scores_where_a_modality_is_missing_hold_the_chosen_one_and_say_what_was_too_few(tmp_path):
    data, rng = uneven(), np.random.default_rng(1)
    left, right = (data.xs[m].copy() for m in data.modalities)
    left[rng.random(600) < 0.3] = np.nan
    right[(rng.random(600) < 0.04) & np.isfinite(left).all(1)] = np.nan
    gaps = MultimodalData("gaps", dict(left=left, right=right), data.y, ["no", "yes"])
    for metric, score in ("f1", metrics.f1_score), ("balanced_accuracy", metrics.balanced_accuracy_score):
        found = audit(data=gaps, metric=metric, budget=TINY, out=tmp_path, progress=False)
        here, dls = found.first, multimodal_dls(gaps, device="cpu")
        whole = dls[2].dataset.presence.all(1).numpy()
        rows = {"complete": whole, "without left": ~dls[2].dataset.presence[:, 0].numpy()}
        name = metric.replace("_", " ")
        for model in "joint", "ensemble":
            for of, which in rows.items():
                answer, y = here.logits[model][which].argmax(1), here.y[which]
                options = dict(average="macro") if metric == "f1" else {}
                row = found.table.loc["missing", f"{name}, {model}", of]
                assert row.value == pytest.approx(score(y, answer, **options)) and row.n == which.sum()
        assert f"too few samples to score: {(~dls[2].dataset.presence[:, 1]).sum()} without right" in set(
            found.table.note
        )
