"Rows with a name are paired by it or refused, in every combination; columns say what they hold."

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.data.splits import check_split, grouped_split
from mmlit.data.tables import align_rows, check_whole, read_option, words_among_numbers

N = 60
IDS = [f"p{i}" for i in range(N)]
RNG = np.random.default_rng(0)
Y = pd.Series(np.arange(N) % 2, index=IDS)
A = pd.DataFrame(RNG.normal(size=(N, 3)) + 5 * Y.to_numpy()[:, None], index=IDS)
SHUFFLE = np.random.default_rng(1).permutation(N)


@pytest.mark.parametrize("shuffled", [s for k in range(4) for s in itertools.combinations("abyg", k)])
@pytest.mark.parametrize("bare", [b for k in range(4) for b in itertools.combinations("abyg", k)])
def test_indexed_parts_are_aligned_and_bare_ones_never_misplaced(shuffled, bare):
    parts = dict(a=A, b=A[0], y=Y, g=pd.Series(np.arange(N) // 2, index=IDS))
    parts = {k: v.iloc[SHUFFLE] if k in shuffled else v for k, v in parts.items()}
    parts = {k: v.to_numpy() if k in bare else v for k, v in parts.items()}
    indexed = [k for k in parts if k not in bare]
    differ = len({k in shuffled for k in indexed}) == 2
    make = lambda: multimodal_data(dict(a=parts["a"], b=parts["b"]), parts["y"], groups=parts["g"])
    if differ and bare:
        with pytest.raises(ValueError, match="has no index that says where"):
            make()
        return
    if not indexed or not bare:  # otherwise a bare part goes by position, as it must
        data = make()
        if not shuffled or not bare:
            assert ((data.xs["a"].mean(1) > 2.5) == data.y).all() and np.array_equal(
                data.xs["b"][:, 0], data.xs["a"][:, 0]
            )
            assert all(len(set(np.flatnonzero(data.groups == g))) == 2 for g in range(N // 2))


def test_the_same_rows_are_needed_once_each():
    b = A.copy()
    for other, message in (
        (b.drop("p3"), "1 of modality 'a' are not in modality 'b', the first is 'p3'"),
        (b.reset_index(drop=True), "60 of modality 'a' are not in modality 'b'"),
        (b.rename(dict(p3="q")), "the first is 'p3'"),
        (pd.concat([b.iloc[::-1], b.iloc[:1]]), "has 'p0' more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            multimodal_data(dict(a=A, b=other), list(Y))
    twice = A.rename(dict(p1="p0"))  # the same index, in the same order: by position is by name
    assert len(multimodal_data(dict(a=twice, b=twice * 2), list(Y))) == N


def test_splits_and_new_items_are_aligned_too():
    groups = pd.Series(np.arange(N) // 3, index=IDS)
    split = grouped_split(Y, groups.iloc[SHUFFLE])
    assert all(np.array_equal(p, q) for p, q in zip(split, grouped_split(Y, groups)))
    check_split(split, Y, groups.iloc[SHUFFLE])
    with pytest.raises(ValueError, match="is in both"):
        check_split((SHUFFLE[:30], SHUFFLE[30:50], SHUFFLE[50:]), Y, groups)
    with pytest.raises(ValueError, match="get_indexer"):
        check_split(tuple(A.index[part] for part in split), Y)

    dls = multimodal_dls(dict(a=A, b=A), Y, device="cpu")
    x, z = dls.test_dl(dict(a=A, b=A.iloc[SHUFFLE])).one_batch()
    assert np.array_equal(x, z)


FRAME = pd.DataFrame(
    dict(
        x=RNG.normal(size=N),
        count=pd.array(RNG.integers(0, 9, N), dtype="Int64"),
        flag=pd.array([True, False] * 30, dtype="boolean"),
        share=pd.array(RNG.random(N), dtype="Float64"),
        site=pd.Categorical(list("ab") * 30),
        grade=pd.Categorical([1, 2] * 30, ordered=True),
        day=pd.date_range("2020", periods=N),
        text=["a", "b"] * 30,
        mixed=[1.5, "b"] * 30,
        y=[0, 1] * 30,
    )
)


@pytest.mark.parametrize("column", ["count", "flag", "share"])
def test_a_nullable_column_is_numbers_and_its_gaps_are_named(column):
    data = multimodal_data(FRAME, "y", dict(a=["x", column], b=column))
    assert data.xs["a"].dtype.kind == "f" and np.allclose(data.xs["a"][:, 1], FRAME[column].to_numpy(float))
    gap = FRAME.copy()
    gap.loc[7, column] = pd.NA
    with pytest.warns(UserWarning, match=r"samples of data lack a modality: 'a' in 1.7%"):
        lacking = multimodal_data(gap, "y", dict(a=column, b="x"))  # nothing is left of the modality in this row
    assert np.flatnonzero(~lacking.xs["a"].present).tolist() == [7]
    with pytest.warns(
        UserWarning, match=f"modality 'a' has 1 empty cells in 60 rows .'{column}' 1.: numbers are filled"
    ):
        data = multimodal_data(gap, "y", dict(a=["x", column], b="x"))
    assert data.kinds["a"] == "table" and data.xs["a"].gaps() == {column: 1}


@pytest.mark.parametrize(
    "column, message",
    [
        ("day", "holds datetime64.*days since"),
        ("mixed", r"holds str \('b'\) in row 1"),
    ],
)
def test_a_column_that_is_no_number_is_named_with_a_remedy(column, message):
    with pytest.raises(ValueError, match=f"column '{column}' of modality 'a' {message}"):
        multimodal_data(FRAME, "y", dict(a=["x", column], b="x"))


@pytest.mark.parametrize("column, sort", [("site", "category"), ("grade", "category"), ("text", "category")])
def test_categories_and_words_beside_numbers_are_a_table(column, sort):
    data = multimodal_data(FRAME, "y", dict(a=["x", column], b="x"))
    assert data.kinds == dict(a="table", b="vector") and data.xs["a"].sorts == {"x": "number", column: sort}


def test_a_label_never_comes_in_as_an_input():
    with pytest.raises(ValueError, match="column 'y' is the label, and an input as well"):
        multimodal_data(FRAME, "y", dict(a=["x", "y"], b="x"))
    with pytest.raises(ValueError, match="2 columns 'x'"):
        multimodal_data(pd.concat([FRAME, FRAME[["x"]]], axis=1), "y", dict(a="x", b="count"))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3", None, float("nan"), [1]])
def test_a_whole_number_is_one(wrong):
    with pytest.raises(ValueError, match="bs must be a whole number"):
        check_whole("bs", wrong, 1)
    x = dict(a=A, b=A)
    for option in ("bs", "size", "min_count", "max_words") if wrong is not None else ():
        with pytest.raises(ValueError, match=f"{option} must be a whole number"):
            multimodal_dls(x | dict(t=["a b"] * N), Y.to_numpy(), device="cpu", **{option: wrong})


@pytest.mark.parametrize("default", [True, 1, 0.5, (0.5, 0.5), "word", ("a", "b"), None])
@pytest.mark.parametrize("word", ["", "nan", "true", "no", "1", "2.5", "a+b", ".5+.5", "(1, 2)", "1e400", "\0"])
def test_an_option_has_the_type_of_its_default(default, word):
    try:
        value = read_option("option 'o'", word, default)
    except ValueError as e:
        assert "option 'o' is" in str(e)
        return
    if isinstance(default, bool):
        assert isinstance(value, bool)
    elif isinstance(default, int):
        assert isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, float):
        assert np.isfinite(value).all()
    elif default == (0.5, 0.5):
        assert np.isfinite(value).all()


def test_nothing_is_touched_where_there_is_one_index():
    parts = dict(a=A, y=[1] * N, b=None)
    found = align_rows(parts)
    assert list(found) == list(parts) and all(found[k] is parts[k] for k in parts)


@pytest.mark.parametrize("where", ["one column", "beside others", "beside words", "rows"])
def test_a_word_among_numbers_is_said(where):
    "One sign for nothing makes text of a column of numbers, which is a guess: it is said with its column and row."
    rng = np.random.default_rng(0)
    age = [str(v) for v in rng.integers(20, 90, N)]
    age[17] = "n/a"
    frame = pd.DataFrame(dict(age=age, weight=rng.normal(size=N), sex=["f", "m"] * (N // 2)))
    columns = {"one column": ["age"], "beside others": ["age", "weight"], "beside words": ["sex", "age"]}
    given = list(age) if where == "rows" else frame[columns[where]]
    with pytest.warns(UserWarning, match="all but 1, the first of them 'n/a' in row 17. It is taken as text") as said:
        multimodal_data(dict(a=given, b=rng.normal(size=(N, 2))), [0, 1] * (N // 2))
    (text,) = [str(w.message) for w in said if "written as text" in str(w.message)]
    assert text.startswith("modality 'a' holds" if where == "rows" else "column 'age' of modality 'a' holds")
    assert ("kinds={'a': 'tokens'}" in text) == (where in ("rows", "one column"))


def test_what_is_text_and_what_is_said_to_be_is_no_word_among_numbers():
    rng = np.random.default_rng(0)
    age = pd.Series([str(v) for v in rng.integers(20, 90, N)])
    age[17] = "?"
    frame = pd.DataFrame(dict(age=age, weight=rng.normal(size=N)))
    b, y = rng.normal(size=(N, 2)), [0, 1] * (N // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multimodal_data(dict(a=frame.astype(dict(age="category")), b=b), y)
        multimodal_data(dict(a=frame["age"], b=b), y, kinds=dict(a="tokens"))
        multimodal_data(dict(a=[f"{v} years" for v in range(N)], b=b), y)
        numbers = frame.assign(age=pd.to_numeric(frame["age"], errors="coerce").fillna(50))  # the remedy
        assert multimodal_data(dict(a=numbers, b=b), y).kinds["a"] == "vector"


@pytest.mark.parametrize("share", [0.05, 0.12, 0.4])
def test_one_sign_for_nothing_is_said_however_often_it_stands(share):
    cells = [f"{v:.3f}" for v in np.random.default_rng(0).normal(size=120)]
    for i in range(3, 3 + int(share * 120)):
        cells[i] = "?"
    told = words_among_numbers(cells, "column 'a'")
    assert told is not None and f"all but {int(share * 120)}, the first of them '?' in row 3" in told
    assert words_among_numbers([*"abcdefgh", *"12345678"], "x") is None  # names, some of them numbers


def test_what_is_odd_in_a_column_is_said_once_and_with_the_row_that_was_given():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": [f"{v:.3f}" for v in rng.normal(size=60)], "b": rng.normal(size=60)})
    frame.loc[5, "a"] = "?"
    frame.loc[[0, 2]] = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        multimodal_data(dict(t=frame, u=rng.normal(size=(60, 2))), np.arange(60) % 2)
    told = [str(w.message) for w in said if "numbers written as text" in str(w.message)]
    assert len(told) == 1 and "'?' in row 5" in told[0]
