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
    assert found.facts["decides"] == score
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
    assert found.facts["decides"] == "r1" and found.score == "r2" and "of r1" in str(found.advice)


def test_the_best_unimodal_model_is_chosen_by_the_metric():
    data = uneven(300, share=0.1)
    dls = multimodal_dls(data)
    joint = multimodal_learner(dls, width=4)
    alone = [unimodal_learner(dls, m, width=4).model for m in data.modalities]
    from mmlit.metrics import METRICS

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
    [("f1", "f1 is none of the scores"), ("mae", "task of uneven"), ("accuracies", "did you mean 'accuracy'")],
)
def test_a_metric_that_an_audit_does_not_have_is_refused_before_training(metric, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        audit(data=uneven(), metric=metric, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()
