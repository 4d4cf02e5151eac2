"The committed support matrix is what happens: a sample of its cells here, all of them with --slow."

import random

import pytest
import support

import mmlit.methods
from mmlit.learner import FusionMethod

CELLS = support.cells()
DEAR = {("attention", 6)}  # TCMax scores all pairings of six modalities: half a minute a cell
SAMPLE = [c for c in random.Random(0).sample(CELLS, 60) if (c.head, c.modalities) not in DEAR]


@pytest.fixture(scope="module")
def committed():
    return support.committed()


def subclasses(kind):
    return {kind, *(one for sub in kind.__subclasses__() for one in subclasses(sub))}


def test_every_method_of_the_package_has_its_rows():
    "Those that are made without further models: `StrengthMonitor` wants trained ones, and has tests of its own."
    assert mmlit.methods
    there = {k.__name__ for k in subclasses(FusionMethod) if k.__module__.startswith("mmlit.")}
    there -= {"FusionMethod", "StrengthMonitor"}
    assert there == {name.split("(")[0] for name in support.METHODS} - {"plain"}


def test_the_table_has_every_cell(committed):
    assert set(committed) == set(CELLS)
    assert {answer for answer, _ in committed.values()} <= {"works", "with a warning", "refused"}
    assert all(bool(reason) == (answer != "works") for answer, reason in committed.values())


@pytest.mark.parametrize("cell", SAMPLE, ids=lambda c: "-".join(map(str, filter(None, c))))
def test_a_cell_ends_as_the_table_says(cell, committed):
    assert support.try_cell(cell) == committed[cell]


@pytest.mark.slow
def test_all_cells_end_as_the_table_says(committed):
    found = {cell: support.try_cell(cell) for cell in CELLS}
    assert not {cell: (committed[cell], now) for cell, now in found.items() if committed[cell] != now}
