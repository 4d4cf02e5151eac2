"Several real targets, survival targets, and the names of classes where a split is refused."

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from mmlit.benchmark.comparison import compare
from mmlit.data.columns import MultimodalData
from mmlit.data.labels import encode_labels
from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.learner import METHODS, multimodal_learner
from mmlit.metrics import METRICS
from mmlit.monitor import ModalityMonitor
from mmlit.scores import regression_scores
from mmlit.training import Budget

TINY = Budget(epochs=2, width=4, bs=16)


def two_targets(n=200, name="two", split=None):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n, 3))
    y = np.stack([a[:, 0] + b[:, 0], 1e4 + 500 * (a[:, 1] - b[:, 1])], 1)
    return MultimodalData(name, dict(a=a, b=b), y, task="regression", split=split)


def test_several_targets_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(90, 3)) * [1, 10, 100] + [0, 5, 1000]
    out = y + rng.normal(size=(90, 3)) * [0.5, 5, 100]
    scores = regression_scores(out, y)
    assert np.isclose(scores["r2"], metrics.r2_score(y, out)) and np.isclose(
        scores["mae"], metrics.mean_absolute_error(y, out)
    )
    assert np.isclose(scores["rmse"], metrics.root_mean_squared_error(y, out))
    for name in ("r2", "mae", "rmse"):
        assert np.isclose(METRICS[name](out, y, "regression"), scores[name])
    assert np.isclose(METRICS["r2"].by_row(out, y).mean(), scores["r2"])
    alone = METRICS["r2"].by_row(out[:, :1], y[:, 0])
    assert np.isclose(alone.mean(), metrics.r2_score(y[:, 0], out[:, 0]))


def test_each_target_has_a_unit_of_its_own():
    torch.manual_seed(0)
    dls = multimodal_dls(two_targets())
    y = dls.data.y[dls.split.train].astype(float)
    assert dls.c == 2 and np.allclose(dls.units[0], y.mean(0)) and np.allclose(dls.units[1], y.std(0))
    out, target = torch.as_tensor(y + y.std(0) * [0.5, 1.0]), torch.as_tensor(y)
    assert np.isclose(float(dls.loss_func(out, target)), (0.25 + 1) / 2)
    learn = multimodal_learner(dls, width=8, cbs=ModalityMonitor())
    answers = learn.get_preds()[0]
    assert answers.shape[1] == 2 and abs(answers[:, 1].mean() - 1e4) < 1000  # an untrained head answers in the units
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(30, 1e-2)
    scores = regression_scores(*learn.get_preds(ds_idx=2))
    assert scores["r2"] > 0.8
    assert 0 < learn.modality_monitor.history["only a"][-1] < 0.8
    assert dls.train_ds.name_of(dls.train_ds.y[0]) == tuple(map(float, dls.data.y[0]))


def test_every_method_of_numbers_takes_several_targets(tmp_path):
    "Those of classes refuse them before training, as they refuse one."
    found = compare(two_targets(), list(METHODS), 1, TINY, tmp_path, progress=False, workers=1, reference="joint")
    alone = MultimodalData("one", two_targets().xs, two_targets().y[:, 0], task="regression")
    one = compare(alone, list(METHODS), 1, TINY, tmp_path, progress=False, workers=1, reference="joint")
    assert set(found.failed.method) == set(one.failed.method) and set(found.runs.method) == set(one.runs.method)
    assert found.score("two") == "r2" and np.isfinite(found.runs.r2).all()
    assert found.failed.reason.str.contains("classes|labels").all()


def test_the_given_split_of_several_targets_has_intervals(tmp_path):
    split = np.repeat(["train", "valid", "test"], [120, 40, 40])
    for metric in (None, "rmse"):
        found = compare(two_targets(split=split), ["joint"], 2, TINY, tmp_path, metric=metric, progress=False)
        row = found.table.set_index("method").loc["joint"]
        assert row.low < row["mean"] < row.high and row.difference_low < row.difference < row.difference_high
        page = found.to_html(tmp_path / "page.html").read_text(encoding="utf8")
        assert ("rmse: chosen before training" in page) == ("less is better" in page) == (metric == "rmse")


def test_a_target_that_is_constant_is_named():
    data = two_targets()
    y = data.y.copy()
    y[:, 1] = 7
    with pytest.raises(ValueError, match="in column 1 in all training rows"):
        multimodal_dls(MultimodalData("flat", data.xs, y, task="regression"))


def test_several_targets_survive_a_file(tmp_path):
    from mmlit.data.catalogue import load_dataset

    data = two_targets()
    data.save(tmp_path / "two.npz")
    again = load_dataset(str(tmp_path / "two.npz"))
    assert again.task == "regression" and np.array_equal(again.y, data.y)


SURVIVAL = {
    "names": pd.DataFrame(dict(time=[3.0, 8.0, 5.0], event=[1, 0, 1])),
    "TCGA": pd.DataFrame({"OS": [1, 0, 1], "OS.time": [3, 8, 5]}),
    "bool": pd.DataFrame(dict(t=[3.0, 8.0, 5.0], e=[True, False, True])),
    "status": pd.DataFrame(dict(status=[1.0, 0.0, 1.0], days=[3, 8, 5])),
    "duration": pd.DataFrame(dict(duration=[3, 8, 5], observed=[1, 0, 1])),
    "sksurv": np.array([(True, 3.0), (False, 8.0)], dtype=[("cens", "?"), ("time", "<f8")]),
}


@pytest.mark.parametrize("y", SURVIVAL.values(), ids=SURVIVAL)
@pytest.mark.parametrize("task", [None, "regression"])
def test_survival_targets_are_refused_by_name(y, task):
    with pytest.raises(ValueError, match="survival targets.*landmark time.*censored"):
        encode_labels(y, task=task)


def test_other_pairs_of_columns_are_no_survival():
    assert encode_labels(pd.DataFrame(dict(time=[1, 0, 1], event=[1, 0, 0]))).task == "multi-label"
    pair = pd.DataFrame(dict(length=[1.5, 2.5, 3.0], width=[1.0, 2.0, 4.0]))
    assert encode_labels(pair, task="regression").y.shape == (3, 2)
    with pytest.warns(UserWarning, match="2 targets of a regression"):
        assert encode_labels(pair).task == "regression"


def test_a_frame_names_several_targets_by_column():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(80, 4)), columns=list("abuv"))
    dls = multimodal_dls(frame, ["u", "v"], modalities=dict(left="a", right="b"), task="regression")
    assert dls.c == 2 and np.allclose(dls.data.y, frame[["u", "v"]].to_numpy())
    with pytest.raises(ValueError, match="survival"):
        late = frame.assign(event=rng.integers(0, 2, 80), time=rng.random(80))
        multimodal_dls(late, ["time", "event"], modalities=dict(left="a", right="b"))


def test_the_other_spelling_of_multi_label_is_the_same_task():
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2, (80, 3))
    dls = multimodal_dls({m: rng.normal(size=(80, 2)) for m in "ab"}, tags, task="multilabel")
    assert dls.task == "multi-label" and METRICS["f1"].tasks[1] == dls.task


@pytest.mark.parametrize("split", [None, (np.arange(40), np.arange(40, 50), np.arange(50, 53))])
def test_a_refused_split_names_the_class(split):
    xs = {m: np.random.default_rng(0).normal(size=(53, 2)) for m in "ab"}
    with pytest.raises(ValueError, match="class 'rare'"):
        multimodal_dls(xs, ["usual"] * 50 + ["rare"] * 3, classes=["usual", "rare"], split=split)


def test_names_of_targets_stay_when_files_are_joined():
    rng = np.random.default_rng(0)
    parts = [
        multimodal_data(
            dict(a=rng.normal(size=(n, 3)), b=rng.normal(size=(n, 2))),
            pd.DataFrame(rng.normal(size=(n, 2)), columns=["weight", "height"]),
            task="regression",
        )
        for n in (40, 20)
    ]
    assert list(parts[0].targets) == list(joined_parts(*parts).targets) == ["weight", "height"]
