"The committed table of what goes in is what happens: a sample of its cells here, all of them with --slow."

import random

import goes_in
import numpy as np
import pandas as pd
import pytest
from kinds import KINDS, case, rows_of

from mmlit.data.loaders import multimodal_dls

CELLS = goes_in.cells()
DEAR = {"ONNX", "audit"}  # about a second a cell
SAMPLE = [cell for cell in random.Random(0).sample(CELLS, 70) if cell[1] not in DEAR]


@pytest.fixture(scope="module")
def committed():
    table = pd.read_csv(goes_in.TABLE, keep_default_na=False)
    return {tuple(row[:2]): tuple(row[2:]) for row in table.itertuples(index=False, name=None)}


def test_the_table_has_every_cell_once_and_in_order(committed):
    table = pd.read_csv(goes_in.TABLE, keep_default_na=False)
    assert list(zip(table.kind, table.place)) == CELLS == list(committed)
    assert set(table.answer) <= {"works", "with a warning", "refused", "no form"}
    assert ((table.reason == "") == (table.answer == "works")).all()


@pytest.mark.parametrize("kind, place", SAMPLE, ids=str)
def test_a_cell_ends_as_the_table_says(kind, place, committed):
    if not goes_in.possible(place):
        pytest.skip("a library is missing: pip install mmlit[onnx]")
    assert goes_in.try_cell(kind, place) == committed[kind, place]


@pytest.mark.slow
def test_all_cells_end_as_the_table_says(committed):
    found = {cell: goes_in.try_cell(*cell) for cell in CELLS if goes_in.possible(cell[1])}
    assert not {cell: (committed[cell], now) for cell, now in found.items() if committed[cell] != now}


def test_a_fault_is_no_refusal_and_a_warning_is_seen(monkeypatch):
    def fails(kind, folder):
        raise KeyError("x")

    monkeypatch.setitem(goes_in.PLACES, "training", fails)
    with pytest.raises(KeyError):
        goes_in.try_cell("vector", "training")
    monkeypatch.setitem(goes_in.PLACES, "predict", lambda kind, folder: int("a"))
    assert goes_in.try_cell("vector", "predict")[0] == "refused"
    monkeypatch.setattr(goes_in, "same", lambda said, want: False)
    with pytest.raises(AssertionError, match="other answers"):
        goes_in.try_cell("vector", "fastai export")


WHAT = {
    "vector": "vector",
    "sequence": "sequence",
    "picture in an array": "picture",
    "picture files": "picture",
    "text": "tokens",
    "word ids": "tokens",
    "table": "table",
    "sequence of different length": "sequence",
    "word ids of different length": "tokens",
    "dict of arrays": "dict",
    "what a tokenizer returns": "dict",
    "tuple of arrays": "tuple",
}


@pytest.mark.filterwarnings("ignore:samples of .* lack a modality", "ignore:modality 'x' has .* empty cells")
@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_of_the_kind_that_it_is_called(kind, tmp_path):
    one = case(kind, tmp_path)
    dls = multimodal_dls(one.xs, one.y, device="cpu", **one.options)
    assert dls.kinds == dict(x=WHAT.get(kind, "vector"), plain="vector")
    assert (dls.padded == ["x"]) == kind.endswith("of different length")
    assert dls.missing == (dict(x=0.25) if kind == "missing modality" else {})
    assert bool(dls.data.transform) == (kind == "transformer")
    assert (dls.data.parts is not None) == (kind == "given split") and (dls.c == 2) == (kind == "several targets")
    assert (dls.data.class_weights is not None) == (kind == "class weights")
    assert (dls.data.weights is not None) == (kind == "row weights")


@pytest.mark.parametrize("kind", ["table", "tuple of arrays", "dict of arrays", "text", "vector"])
def test_rows_of_a_column_are_those_rows(kind):
    column = case(kind).xs["x"]
    flat = lambda x: [np.asarray(part).tolist() for part in (x.values() if isinstance(x, dict) else x)]
    if kind == "table":
        assert rows_of(column, [4, 2]).remark.tolist() == column.remark.iloc[[4, 2]].tolist()
    elif kind in ("tuple of arrays", "dict of arrays"):
        assert flat(rows_of(column, [4, 2])) == [[part[4], part[2]] for part in flat(column)]
    else:
        assert flat(rows_of(column, [4, 2])) == [flat(column)[4], flat(column)[2]]
