"Public functions of runs, store, fingerprint, results and the command, with whatever one may give them."

import math
import os
import string
from pathlib import Path

import numpy as np
import pandas as pd
from fuzzing import fuzz
from hypothesis import strategies as st

from mmlit.benchmark.results import Comparison
from mmlit.data.columns import MultimodalData
from mmlit.fingerprint import fingerprint
from mmlit.runs import check_budget, which_seeds
from mmlit.scores import sampling_deviation
from mmlit.store import safe_name
from mmlit.training import OPTIMISERS, Budget

ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.complex_numbers(),
)


@fuzz(60, st.text(st.characters()))
def test_any_name_is_one_part_of_a_path(name):
    safe = safe_name(name)
    assert len(Path(safe).parts) == 1 and safe not in (".", "..") and "\0" not in safe and os.sep not in safe
    assert 0 < len(safe.encode()) <= 100 and safe_name(safe) == safe


@fuzz(60, st.lists(st.text(string.printable, min_size=1), min_size=2, max_size=2, unique=True))
def test_a_name_that_is_cut_is_told_from_others(names):
    long = [name + "x" * 200 for name in names]
    assert len({safe_name(name) for name in long}) == 2


@fuzz(60, ANY | st.lists(ANY) | st.sets(st.integers(0, 99)) | st.builds(np.arange, st.integers(0, 9)))
def test_seeds_are_whole_numbers_or_refused(seeds):
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 10**6:
        return  # so many are wanted: a list of them is the right answer, and takes its memory
    try:
        found = which_seeds(seeds)
    except ValueError as error:
        assert "seed" in str(error)
        return
    assert found and len(set(found)) == len(found) and all(type(s) is int and 0 <= s < 2**32 for s in found)
    assert not isinstance(seeds, (bool, float, str))


@fuzz(
    60,
    st.fixed_dictionaries({}, optional={k: ANY for k in ("epochs", "bs", "lr", "width", "head", "steps", "optimiser")}),
)
def test_a_budget_can_train_or_is_refused(options):
    try:
        check_budget(Budget(**options))
    except ValueError as error:
        assert any(name in str(error) for name in ("budget", "head", "optimiser"))
        return
    budget = Budget(**options)
    assert all(type(n) is int for n in (budget.epochs, budget.bs, budget.width))
    assert budget.epochs >= 1 and budget.bs >= 2 and 0 < budget.rate < math.inf and budget.head in ("concat",)
    assert all(one.steps is None or one.steps >= 1 for one in budget.lengths()) and budget.optimiser in OPTIMISERS


TREES = st.recursive(
    ANY | st.builds(np.arange, st.integers(0, 5)),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@fuzz(60, TREES, TREES)
def test_a_fingerprint_is_that_of_the_value(one, other):
    import copy

    assert fingerprint(one) == fingerprint(copy.deepcopy(one))
    assert fingerprint([one]) != fingerprint((one,)) != fingerprint({"a": one}) != fingerprint(one)
    if repr(one) != repr(other):
        assert fingerprint(one) != fingerprint(other)


@fuzz(60, st.floats(-1, 1), st.integers(1, 10**6))
def test_a_share_has_a_deviation(value, n):
    found = sampling_deviation(value, n)
    assert 0 < found <= 0.5 / math.sqrt(n) + 1e-12


def data(classes):
    x = np.random.default_rng(0).normal(size=(2, 60, 3))
    return MultimodalData("a", dict(left=x[0], right=x[1]), np.arange(60) % 2 if classes else x.sum((0, 2)), classes)


SETS = {True: data(["no", "yes"]), False: data([])}
CELL = st.none() | st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@fuzz(
    20,
    st.dictionaries(
        st.sampled_from(["ensemble", "joint", "mcr", "[b]", "best unimodal"]),
        st.lists(CELL, min_size=3, max_size=3),
        min_size=1,
    ),
    st.integers(1, 3),
    st.booleans(),
    st.integers(2, 10**6),
)
def test_a_table_of_scores_has_an_answer_and_no_certainty(table, seeds, classes, n):
    score = "accuracy" if classes else "r2"
    cells = [
        dict(data="a", method=m, seed=s, split="x", n_train=3 * n, n_test=n, **{score: v})
        for m, values in table.items()
        for s, v in enumerate(values[:seeds])
    ]
    there, lost = ([c for c in cells if (c[score] is None) == gone] for gone in (False, True))
    if not there:
        return
    failed = pd.DataFrame([dict(c, reason="why") for c in lost]) if lost else None
    found = Comparison(pd.DataFrame(there), "ensemble", Budget(), {"a": SETS[classes]}, failed)
    assert repr(found).count("failed: ") == len(lost)
    assert found.table.failed.sum() == len(lost) and found.table.seeds.sum() == len(there)
    for m, (value, difference) in found.intervals("a").items():
        for i in (value, difference):
            if i is None or math.isnan(i.low):
                continue
            assert i.low <= i.mean <= i.high and i.low < i.high or not classes and i.mean == 0 or i.low == i.high == 1
        said = found.verdict("a", m)
        if "beats" in said and ("yes" in said or "no," in said):
            assert difference.low > 0 or difference.high < 0
    found.to_dict(), found.show(console=__import__("rich.console").console.Console(file=open(os.devnull, "w")))
