"Whatever comes in, a public function of the data rooms gives a right answer or a clear ValueError or TypeError."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmlit.data.columns import MultimodalData
from mmlit.data.encoders import Standardize
from mmlit.data.labels import encode_labels, name_of
from mmlit.data.loaders import multimodal_dls
from mmlit.data.missing import PartialColumn, missing_rows, pick_rows
from mmlit.data.own import multimodal_data
from mmlit.data.pictures import PictureFiles
from mmlit.data.ragged import RaggedArrays
from mmlit.data.splits import check_split, grouped_split
from mmlit.data.tables import align_rows, read_option
from mmlit.data.values import NamedArrays, as_column, duplicate_groups

pytestmark = pytest.mark.filterwarnings("ignore")
CLEAR = ("modality", "y ", "y:", "y mixes", "class", "label", "groups", "row", "task", "test must", "targets", "seed")


def answer(call):
    "What it returns, or None where it refuses in words that name what is wrong."
    try:
        return call()
    except (ValueError, TypeError) as e:
        assert any(word in str(e) for word in CLEAR), f"unclear: {type(e).__name__}: {e}"
        return None


numbers = st.one_of(
    hnp.arrays(
        st.sampled_from(["f4", "f8", ">f8", "f2", "i8", "i4", "u1", "u4", "?", "c8"]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    )
)
cell = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=3),
    st.lists(st.integers(0, 2), max_size=2),
    st.sampled_from(["x.png", "a.wav", "see a.pdf", "", pd.NA, pd.NaT, b"b", pd.Timestamp("2020"), 10**400, {}]),
)  # fmt: skip
columns = st.one_of(
    numbers,
    st.lists(cell, max_size=6),
    st.lists(cell, max_size=6).map(lambda v: pd.Series(v, dtype=object)),
    st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=6).map(lambda v: pd.Series(v, dtype="Int64")),
    st.lists(st.sampled_from(["a", "b", None]), max_size=6).map(pd.Categorical),
    st.dictionaries(st.text(max_size=2), numbers, max_size=2),
    cell,
)


@fuzz(150, columns)
def test_a_column_holds_what_was_given_or_is_refused(values):
    x = answer(lambda: as_column(values, "m"))
    if isinstance(x, PartialColumn):
        assert len(x) == len(values) and not missing_rows(pick_rows(values, x.present)).any()
        values, x = pick_rows(values, x.present), x.values
    if x is None or isinstance(x, (NamedArrays, PictureFiles, RaggedArrays)):
        return
    assert len(x) == len(values) > 0
    if x.dtype != object:
        assert np.isfinite(x).all() and x.dtype.isnative
        torch.as_tensor(x[:1])
        given_ = np.array(values.tolist() if isinstance(values, pd.Series) else values, dtype=np.float64)
        assert np.array_equal(np.asarray(x, dtype=np.float64).reshape(given_.shape), given_)


@fuzz(150, columns, st.sampled_from([None, "classification", "multi-label", "regression", "x"]),
       st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "0", "1", 0, 1]), max_size=3)))  # fmt: skip
def test_labels_are_codes_of_names_or_refused(y, task, classes):
    found = answer(lambda: encode_labels(y, classes, task))
    if found is None:
        return
    assert np.isfinite(found.y).all() and len(found.y) == len(y)
    assert (found.classes == []) == (found.task == "regression") or len(y) == 0
    assert task is None or found.task == task
    if found.task == "classification":
        assert found.y.dtype == np.int64 and (len(y) == 0 or 0 <= found.y.min() <= found.y.max() < len(found.classes))
        assert len(set(found.classes)) == len(found.classes)
    if len(y):
        name_of(found.y[0], found.classes, found.task)


@fuzz(60, hnp.arrays("f8", st.tuples(st.integers(2, 6), st.integers(1, 3)),
                  elements=st.floats(-1e307, 1e307, exclude_min=True, exclude_max=True)))  # fmt: skip
def test_scaled_rows_are_finite_and_ordered_as_the_rows_are(x):
    scaled = Standardize.fit(x).encode(x).numpy()
    assert np.isfinite(scaled).all()
    for raw, z in zip(x.T, scaled.T):
        order = np.argsort(raw, kind="stable")
        assert (np.diff(z[order]) >= 0).all()
        if raw.max() > raw.min() and z.std() > 0 and raw.std() > 1e-6 * np.abs(raw).max():
            assert z.mean() == pytest.approx(0, abs=1e-4) and z.std() == pytest.approx(1, abs=1e-3)


labels = st.one_of(
    hnp.arrays("i8", st.integers(0, 60), elements=st.integers(0, 3)),
    hnp.arrays("f8", st.integers(0, 80)),
    hnp.arrays("i8", st.tuples(st.integers(0, 60), st.integers(0, 3)), elements=st.integers(0, 1)),
)
share = st.one_of(st.floats(), st.sampled_from([0.1, 0.2, 0.5, 0, 1, None, "a"]))


@fuzz(100, labels, st.booleans(), share, share, st.one_of(st.integers(-1, 9), st.sampled_from([None, 1.5, "a"])))
def test_a_split_is_whole_and_disjoint_or_refused(y, grouped, test, valid, seed):
    groups = np.arange(len(y)) // 3 if grouped else None
    split = answer(lambda: grouped_split(y, groups, test, valid, seed))
    if split is not None:
        assert sorted(np.concatenate(split)) == list(range(len(y))) and all(len(part) for part in split)
        check_split(split, y, groups)


@fuzz(60, st.lists(st.tuples(st.sampled_from("abcd"), st.floats(allow_nan=False)), max_size=6), st.randoms())
def test_aligned_rows_keep_their_names(rows, random):
    left = pd.Series([v for _, v in rows], index=[k for k, _ in rows], dtype=float)
    order = list(range(len(rows)))
    random.shuffle(order)
    found = answer(lambda: align_rows(dict(row_a=left, row_b=left.iloc[order])))
    if found is not None and left.index.is_unique:  # names that stand there twice, in the same places, tell nothing
        assert found["row_b"].equals(found["row_a"])


scalar = st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.floats(), max_size=2))


@fuzz(100, scalar, st.sampled_from([True, 1, 0.5, (0.5, 0.5), "word", ("a", "b"), None]))  # fmt: skip
def test_an_option_is_read_or_refused(value, default):
    try:
        found = read_option("option 'o'", value, default)
    except ValueError as e:
        assert "option 'o' is" in str(e)
        return
    if isinstance(default, (bool, int, float)) or default == (0.5, 0.5):
        assert all(math.isfinite(v) for v in np.ravel(found))


@fuzz(25, st.dictionaries(st.sampled_from(["a", "b", "c"]), columns, max_size=3), columns,
       st.one_of(st.none(), columns, st.just("duplicates")), st.sampled_from([64, 0, 2.5, None]))  # fmt: skip
def test_loaders_give_finite_batches_or_are_refused(xs, y, groups, bs):
    CLEAR_HERE = (*CLEAR, "modalit", "bs must", "has no modality", "parts of different length", "data", "folds")
    try:
        data = multimodal_data(xs, y, groups=groups)
        assert duplicate_groups(data.xs).shape == (len(data),) and isinstance(data, MultimodalData)
        dls = multimodal_dls(data, bs=bs, device="cpu")
    except (ValueError, TypeError) as e:
        assert any(word in str(e) for word in CLEAR_HERE), f"unclear: {type(e).__name__}: {e}"
        return
    for dl in dls:
        for *inputs, _ in dl:
            assert all(torch.isfinite(x).all() for x in inputs if torch.is_tensor(x))
