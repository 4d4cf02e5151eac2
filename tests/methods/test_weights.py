"Class weights and weights of rows: every method honours them."

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from mmlit.benchmark.comparison import compare
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.data.losses import with_class_weights, with_weights
from mmlit.fitting import train_run
from mmlit.learner import METHODS, multimodal_learner
from mmlit.methods.shapley import ModalityResampling, draw_rows
from mmlit.metrics import with_metric
from mmlit.training import Budget

TINY = Budget(epochs=1, width=4, bs=16)


def uneven(name="plain", n=160, share=5):
    rng = np.random.default_rng(0)
    y = (np.arange(n) % share == 0).astype(int)
    return MultimodalData(name, {m: rng.normal(size=(n, 3)) + y[:, None] for m in "ab"}, y, ["no", "yes"])


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    "The log loss of every run of every method: without weights, with neutral ones, and with two kinds of others."
    y = uneven().y
    sets = [with_metric(uneven(), "log_loss"), with_class_weights(uneven("ones"), [1, 1])]
    sets += [with_class_weights(uneven("classes"), dict(yes=30)), with_weights(uneven("rows"), 1.0 + 29 * y)]
    out = tmp_path_factory.mktemp("runs")
    found = compare(sets, list(METHODS), 1, TINY, out, metric="log_loss", reference="joint", workers=1, progress=False)
    assert found.failed.empty, found.failed.to_dict("records")
    return found.runs.pivot(index="method", columns="data", values="log_loss")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_honours_weights(method, answered):
    several = method in ("unimodal", "linear")  # rows of one method with its name in each
    rows = answered.loc[[m for m in answered.index if m == method or several and method in m]]
    assert len(rows) and np.allclose(rows.plain, rows.ones, rtol=1e-5)  # neutral weights change nothing
    assert (abs(rows.classes - rows.plain) > 1e-4).all() and (abs(rows["rows"] - rows.plain) > 1e-4).all()


@pytest.mark.parametrize("weigh", ["classes", "rows", "balanced"])
def test_weights_move_answers_to_the_rare_class(weigh):
    data = uneven(n=400, share=10)
    if weigh == "rows":
        heavy = with_weights(data, np.where(data.y == 1, 9.0, 1.0))
    else:
        heavy = with_class_weights(data, dict(yes=9) if weigh == "classes" else "balanced")

    def said(source):
        answer, _ = train_run(METHODS["joint"].runs(["a", "b"])[0], source, 0, Budget(epochs=5, width=8))
        return (answer.test.argmax(1) == 1).mean(), answer

    (share, answer), (before, _) = said(heavy), said(data)
    assert share > before and answer.info["monitor"] == "valid_loss"


def test_a_weighted_loss_is_the_weighted_mean_and_stays_with_its_loaders():
    dls = multimodal_dls(uneven(), class_weights=[1.0, 4.0], bs=16)
    learn = multimodal_learner(dls, width=4)
    out, y = torch.randn(12, 2), torch.arange(12) % 2
    each = torch.nn.functional.cross_entropy(out, y, reduction="none")
    w = torch.tensor([1.0, 4.0])[y]
    assert torch.isclose(learn.loss_func(out, y), (w * each).sum() / w.sum())
    assert dls.data.class_weights.tolist() == [1, 4] and dls.class_weights.tolist() == [1, 4]


def test_balanced_weights_are_those_of_the_training_rows():
    dls = multimodal_dls(uneven(), class_weights="balanced")
    y = dls.data.y[dls.split.train]
    assert np.allclose(dls.class_weights * np.bincount(y), len(y) / 2)


def test_several_labels_weigh_those_that_have_them():
    rng = np.random.default_rng(0)
    tags = (rng.random((120, 3)) < [0.1, 0.5, 0.3]).astype(int)
    xs = {m: rng.normal(size=(120, 3)) for m in "ab"}
    dls = multimodal_dls(xs, tags, classes=list("xyz"), task="multi-label", class_weights="balanced", device="cpu")
    have = tags[dls.split.train].mean(0)
    assert np.allclose(dls.class_weights, (1 - have) / have)
    learn = multimodal_learner(dls, width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert np.isfinite(learn.recorder.values[0]).all()


def test_rows_of_weight_zero_are_never_drawn_and_others_by_weight():
    n = 400
    data = with_weights(uneven(n=n), np.where(np.arange(n) % 4 == 0, 0.0, 1.0 + 8 * (np.arange(n) % 4 == 1)))
    dls = multimodal_dls(data, bs=32)
    seen = torch.cat([dls.train.batch_index.clone() for _ in range(20) for _ in dls.train]).numpy()
    assert not (seen % 4 == 0).any()
    train = dls.split.train
    share = 9 * (train % 4 == 1).sum() / (9 * (train % 4 == 1).sum() + (train % 4 > 1).sum())
    assert abs((seen % 4 == 1).mean() - share) < 0.02
    assert set(dls.train.batch_index.numpy()) <= set(train)
    held = np.concatenate([dls.valid.batch_index.numpy() for _ in dls.valid])
    assert np.array_equal(held, dls.split.valid)  # held-out rows count alike


def test_rows_of_weight_zero_are_not_drawn_from_the_plan_of_a_method_either():
    n, seen = 200, []
    data = with_weights(uneven(n=n), np.where(np.arange(n) % 3 == 0, 0.0, 1.0))

    class Seen(Callback):
        order, run_valid = 99, False

        def after_pred(self):
            seen.extend(self.learn.dl.batch_index.tolist())

    learn = multimodal_learner(multimodal_dls(data, bs=16), width=4, method=ModalityResampling(warmup=0), cbs=Seen())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    assert len(seen) > 2 * 16 and not (np.array(seen) % 3 == 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(class_weights=dict(maybe=2)), "unknown class in class_weights"),
        (dict(class_weights="auto"), "unknown class weights"),
        (dict(class_weights=[1, 2, 3]), "2 numbers above 0"),
        (dict(weights=[1.0, 2.0]), "each of 160 rows"),
        (dict(weights=np.zeros(160)), "nothing would be trained"),
        (dict(weights=-np.ones(160)), "that of row 0 is -1"),
        (dict(weights="weight"), "of no DataFrame"),
    ],
)
def test_weights_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        multimodal_dls(uneven(), **options)


def test_class_weights_of_numbers_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="weights= of rows"):
        multimodal_dls({m: rng.normal(size=(99, 2)) for m in "ab"}, rng.normal(size=99), class_weights="balanced")


def test_weights_are_kept_or_refused_on_the_way(tmp_path):
    from mmlit.data.own import joined_parts
    from mmlit.learner import joint_run
    from mmlit.store import RunStore

    data, heavy = uneven(), with_weights(uneven(), np.arange(160.0))
    assert heavy.subset([5, 7]).weights.tolist() == [5, 7] and len(heavy.select(["a"]).weights) == 160
    for chosen in (heavy, with_class_weights(data, "balanced"), with_metric(data, "f1")):
        with pytest.raises(ValueError, match="an npz file does not keep"):
            chosen.save(tmp_path / "data.npz")
        with pytest.raises(ValueError, match="weights or a metric of its own"):
            joined_parts(chosen, data)
    store = RunStore(tmp_path)
    sets = data, heavy, with_class_weights(data, "balanced"), with_class_weights(data, [1, 2])
    assert len({store.path(d, joint_run(), 0, TINY) for d in sets}) == 4


def test_rows_of_weight_0_count_for_nothing_in_any_method(tmp_path):
    "Neither their inputs nor their labels move an answer, what is fitted on the training rows, or what is planned."
    found, plain = [], uneven()
    parts = np.repeat(["train", "valid", "test"], [100, 30, 30])
    weights = np.where((np.arange(160) < 100) & (np.arange(160) % 3 == 0), 0.0, 1.0 + np.arange(160) / 160)
    for name, y, unit in (("as they are", plain.y, 1.0), ("other", np.where(weights == 0, 1 - plain.y, plain.y), 9.0)):
        xs = {m: np.where((weights == 0)[:, None], unit * x, x) for m, x in plain.xs.items()}
        data = with_weights(MultimodalData(name, xs, y, ["no", "yes"]).with_split(parts), weights)
        rows = Budget(epochs=7, width=4, bs=16)  # resampling plans from epoch 5 on
        result = compare(data, list(METHODS), 1, rows, tmp_path, reference="joint", workers=1, progress=False)
        assert result.failed.empty, result.failed.to_dict("records")
        found.append(result.runs.set_index("method")[["accuracy", "log_loss"]])
    pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize("replacement", [True, False])
def test_rows_are_drawn_by_weight(replacement):
    "The share of drawn rows is that of their weights: with replacement exactly, without it for few of many rows."
    kind = torch.arange(9000) % 3
    drawn = draw_rows(9000, 0.1, replacement, torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 3.0])[kind])
    share = kind[drawn].bincount(minlength=3) / 900
    assert len(drawn) == 900 and share[0] == 0 and abs(share[2] - 0.75) < 4 * (0.75 * 0.25 / 900) ** 0.5 + 0.02
