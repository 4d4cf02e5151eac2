"What is to be predicted is what the user says, or what the values leave no doubt about; a doubtful guess is said."

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

from mmlit.data.labels import encode_labels
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.learner import multimodal_learner


def said(y, **options):
    "The task, and whether there was a warning that names the remedy."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        task = encode_labels(y, **options).task
    assert all("task=" in str(w.message) for w in seen) and len(seen) < 2
    return task, bool(seen)


@pytest.mark.parametrize(
    "y, expected",
    [
        ([0, 1] * 30, ("classification", False)),
        ([0.0, 1.0] * 30, ("regression", True)),
        ([-1.0, 1.0] * 30, ("regression", True)),
        ([1.0, 2.0, 3.0, 4.0, 5.0] * 30, ("regression", True)),
        (torch.tensor([0.0, 1.0] * 30), ("regression", True)),
        (np.linspace(0, 1, 60), ("regression", False)),
        (np.arange(60.0), ("regression", False)),
        (range(62), ("classification", True)),
        (np.arange(50), ("classification", False)),
        (list("ab") * 9, ("classification", False)),
        ([True, False] * 9, ("classification", False)),
        (np.tile([[1, 1], [0, 1]], (9, 1)), ("multi-label", False)),
        (np.zeros((9, 3), bool), ("multi-label", False)),
    ],
)
def test_a_guess_is_right_or_said(y, expected):
    assert said(y) == expected
    for task in ("classification", "regression") if np.ndim(y) == 1 and not isinstance(y[0], str) else ():
        assert said(y, task=task) == (task, False)


def test_every_task_overrules_and_survives_a_subset():
    rng = np.random.default_rng(0)
    x = dict(a=rng.normal(size=(60, 2)), b=rng.normal(size=(60, 2)))
    onehot = np.eye(3, dtype=int)[np.arange(60) % 3]
    for y, task, dtype in (
        (np.array([0.0, 1.0] * 30), "classification", np.int64),
        (np.arange(60) % 3, "regression", np.float32),
        (onehot, "multi-label", np.float32),
        (onehot, "classification", np.int64),
    ):
        data = multimodal_data(x, y, task=task)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part = data.subset(np.arange(0, 60, 3))
        assert data.task == part.task == task and data.y.dtype == part.y.dtype == dtype
        assert part.classes == data.classes and data.select(["b"]).task == task
    assert multimodal_data(x, np.array([0.0, 1.0] * 30), task="classification").classes == ["0", "1"]


def test_lists_tables_and_sets_of_labels_are_the_same_labels():
    tags = [["u", "v"], ["v"], [], ["w", "u"]]
    table = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]])
    for y in (tags, [set(t) for t in tags], pd.Series(tags), np.array(tags, dtype=object)):
        found = encode_labels(y, task="multi-label")
        assert found.classes == ["u", "v", "w"] and np.array_equal(found.y, table) and found.y.dtype == np.float32
    for y in (pd.DataFrame(table, columns=list("uvw")), pd.DataFrame(table == 1, columns=list("uvw"))):
        assert encode_labels(y).classes == ["u", "v", "w"]
    assert encode_labels(tags, classes=["w", "v", "u"], task="multi-label").y[0].tolist() == [0, 1, 1]
    assert encode_labels(table.astype(float)).task == encode_labels(torch.tensor(table)).task == "multi-label"


def test_a_category_keeps_its_order_and_integer_names_are_names():
    size = pd.Series(pd.Categorical(["s", "l", "m"], ["s", "m", "l", "xl"], ordered=True))
    assert encode_labels(size).classes == ["s", "m", "l"] and encode_labels(size).y.tolist() == [0, 2, 1]
    assert encode_labels([1, 2, 1], classes=[2, 1]).y.tolist() == [1, 0, 1]
    assert encode_labels([1.0, 0.0], classes=["no", "yes"]).y.tolist() == [1, 0]
    assert encode_labels(pd.DataFrame(dict(y=["b", "a"]))).y.tolist() == [1, 0]
    assert encode_labels(pd.Series([3, 4], dtype="Int64")).classes == ["3", "4"]
    assert encode_labels(pd.Series([True, False], dtype="boolean")).task == "classification"


BAD = {
    "one-hot": (np.eye(4, dtype=int), {}, "task='classification' .* task='multi-label'"),
    "lists": ([["u"], ["u", "v"]], {}, r"list of labels per row, \['u'\] in row 0: .* task='multi-label'"),
    "lists of one length": ([["u", "v"], ["w", "v"]], {}, "task='multi-label'"),
    "some lists": ([["u"], "v"], dict(task="multi-label"), r"'v' in row 1: give \[\]"),
    "words as labels": (["u", "v"], dict(task="multi-label"), "task is multi-label: give a table"),
    "unknown in a list": ([["u"], ["z"]], dict(task="multi-label", classes=["u"]), "unknown label 'z'; known: u"),
    "no label at all": ([[], []], dict(task="multi-label"), "no row has a label"),
    "two ones": ([[1, 1], [0, 1]], dict(task="classification"), "row 0 of y, .* has 2 ones"),
    "words as numbers": (["u", "v"], dict(task="regression"), "task is a regression: give numbers"),
    "classes of numbers": ([1.0, 2.0], dict(task="regression", classes=["a"]), "classes are given"),
    "no classes": ([1, 2], dict(task="classification", classes=[]), "classes are empty"),
    "unknown task": ([1, 2], dict(task="multilabels"), r"unknown task 'multilabels' \(did you mean 'multi-label'"),
    "same names": ([0, 1], dict(classes=["a", "a"]), "two of the 2 classes have the name 'a'"),
    "names of columns": (np.ones((3, 2)), dict(classes=["a"]), "y has 2 columns, and there are 1 classes"),
    "shares": (np.full((3, 2), 0.5), {}, r"y has shape \(3, 2\), expected one label per row"),
    "missing integer": (pd.Series([1, None], dtype="Int64"), {}, "no value in 1 of 2 rows, the first is row 1"),
    "missing category": (pd.Categorical(["a", None]), {}, "no value in 1 of 2 rows"),
    "dates": (pd.date_range("2020", periods=3), {}, "y mixes types|y holds"),
    "complex": (np.ones(3) * 1j, {}, "y holds complex128"),
    "masked": (np.ma.masked_equal([0, 1, 2], 1), {}, "masked"),
    "one number": (3, {}, "y is one int"),
    "beyond float32": (np.arange(1, 9) * 1e300, {}, "float32"),
    "behind an offset": (1e9 + np.arange(9) / 2, {}, "subtract an offset"),
    "squares underflow": (np.arange(9) * 1e-30, {}, "float32"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("error")
def test_bad_labels_are_refused_in_words(case):
    y, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        encode_labels(y, **options)


@pytest.fixture(scope="module")
def tagged():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    y = (x[:, :3] + rng.normal(size=(300, 3)) / 3 > [0, 0, 1.5]).astype(int)
    return dict(a=x[:, :3], b=x[:, 3:]), pd.DataFrame(y, columns=["u", "v", "rare"])


@pytest.mark.parametrize("groups", [None, np.arange(300) // 2])
def test_labels_are_alike_in_all_parts(tagged, groups):
    x, y = tagged
    for seed in range(3):
        dls = multimodal_dls(x, y, groups=groups, seed=seed, device="cpu")
        shares = np.array([dls.data.y[part].mean(0) for part in dls.split])
        assert np.abs(shares - dls.data.y.mean(0)).max() < (0.03 if groups is None else 0.05)
        assert [len(p) for p in dls.split] == pytest.approx([180, 60, 60], abs=8)
        if groups is not None:
            assert not set(groups[dls.split.train]) & set(groups[dls.split.test])


def test_several_labels_are_learnt_and_named(tagged, tmp_path):
    x, y = tagged
    dls = multimodal_dls(x, y, bs=32, device="cpu", path=tmp_path)
    assert (dls.task, dls.c, dls.classes) == ("multi-label", 3, ["u", "v", "rare"])
    torch.manual_seed(0)
    learn = multimodal_learner(dls, metrics=[])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(8, 1e-2)
        p, t = learn.get_preds(ds_idx=2)
        assert t.dtype == torch.float32 and ((p > 0.5) == t.bool()).float().mean() > 0.85
        words, _, shares = learn.predict(tuple(v[0] for v in x.values()))
        assert words == ", ".join(n for n, s in zip(dls.classes, shares) if s > 0.5)
    with pytest.raises(ValueError, match="new data have classes for classification"):
        dls.test_dl(multimodal_data(x, y["u"]))


def test_a_label_that_is_never_there_is_refused(tagged):
    x, y = tagged
    with pytest.raises(ValueError, match="label 'gone' is in no rows of the training part"):
        multimodal_dls(x, y.assign(gone=0), device="cpu")
    with pytest.raises(ValueError, match="label 'always' is in all rows"):
        multimodal_dls(x, y.assign(always=1), device="cpu")


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("kind", [float, int])
def test_a_time_and_an_event_without_names_are_refused(order, kind):
    rng = np.random.default_rng(0)
    y = np.column_stack([rng.integers(1, 90, 60), rng.integers(0, 2, 60)])[:, order].astype(kind)
    with pytest.raises(ValueError, match="survival targets, an event and its time.*task='regression' if they are two"):
        encode_labels(y)
    assert encode_labels(y, task="regression").y.tolist() == y.tolist()


DAYS = pd.date_range("2020-01-01", periods=3)


@pytest.mark.parametrize("y", [DAYS, DAYS.to_numpy(), list(DAYS.date), DAYS.to_series(), DAYS.to_period("D")])
def test_dates_are_called_dates(y):
    with pytest.raises(ValueError, match="y holds dates, 2020-01-01.* in row 0: give classes of them"):
        encode_labels(y)


@pytest.mark.parametrize("y, sort", [([Decimal(3), Decimal(4)], "Decimal, 3"), (np.array([1j, 2]), "complex128, 1j")])
def test_labels_of_one_unknown_type_are_not_called_a_mixture(y, sort):
    with pytest.raises(ValueError, match=f"y holds {sort} in row 0; expected strings, whole numbers or floats"):
        encode_labels(y)


@pytest.mark.parametrize("groups, many", [(["a"] * 100, "1 group"), (list("abcd") * 25, "4 groups")])
def test_too_few_groups_are_refused_with_a_remedy(groups, many):
    xs = dict(a=np.random.default_rng(0).normal(size=(100, 2)), b=np.random.default_rng(1).normal(size=(100, 2)))
    with pytest.raises(ValueError, match=f"^{many} cannot be dealt into 5 folds: give at least 5 groups, no groups if"):
        multimodal_dls(xs, np.arange(100) % 2, groups=groups)
