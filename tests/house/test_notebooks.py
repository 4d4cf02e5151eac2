"Every notebook runs from top to bottom, one case each, within the time that the landing page states."

import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from nbdev.test import test_nb as run_notebook

from mmlit import DATASETS, METHODS
from mmlit.estimators.estimates import ESTIMATORS
from mmlit.fusion.heads import HEADS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.fixture
def registries():
    "What a notebook enters is taken out again: its classes stand in no module, and other tests share the process."
    before = [(table, dict(table)) for table in (METHODS.entries, HEADS, DATASETS, ESTIMATORS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, registries):
    monkeypatch.chdir(path.parent)
    start = time.process_time()  # of this process: other tests run beside it
    success, seconds = run_notebook(
        path, skip_flags=["notest", "slow", "cuda"], force_flags=[], basepath=ROOT, showerr=True
    )
    plt.close("all")
    assert success, f"{path.name} failed after {seconds:.0f} s; the traceback is above"
    assert time.process_time() - start < 60
