"An audit of several seeds with one test part says what a comparison on the same rows says."

import numpy as np
import pytest

from mmlit import Budget, audit, compare
from mmlit.data.catalogue import load_dataset

QUIET = dict(workers=1, progress=False)


@pytest.mark.parametrize("n_train, seeds", [(100, 3), (600, 2)])
def test_it_is_the_crossed_interval_of_compare(tmp_path, n_train, seeds):
    budget = Budget(steps=20, width=8, n_train=n_train, n_test=500)
    found = audit(data="digits", budget=budget, seeds=seeds, out=tmp_path, **QUIET)
    told = compare("digits", ["unimodal", "ensemble", "joint"], seeds, budget, tmp_path, **QUIET)
    assert (told.overlap["digits"] > 0) == (n_train == 600)
    for method, (own, difference) in told.intervals("digits").items():
        np.testing.assert_allclose(found.get("models", "accuracy", method), own, atol=1e-9)
        if method == "joint":
            ours = found.get("differences", "accuracy", "joint minus ensemble")
            np.testing.assert_allclose(ours, difference, atol=1e-9)
    assert f"over {seeds} seeds: training parts" in found.facts["intervals"]
    shares = found.table.loc["models"].query("quantity == 'accuracy'")
    assert (shares.low >= 0).all() and (shares.high <= 1).all()


def test_where_groups_are_few_they_are_the_units(tmp_path):
    data, budget = load_dataset("digits"), Budget(steps=20, width=8, n_train=100, n_test=500)
    grouped = type(data)("digits", data.xs, data.y, data.classes, groups=np.arange(len(data)) % 8)
    found = audit(data=grouped, budget=budget, seeds=4, out=tmp_path, **QUIET)
    told = compare(grouped, ["unimodal", "ensemble", "joint"], 4, budget, tmp_path, **QUIET)
    ours = found.get("differences", "accuracy", "joint minus ensemble")
    np.testing.assert_allclose(ours, told.intervals("digits")["joint"][1], atol=1e-9)
    assert found.facts["intervals"].endswith("test rows together, in whole groups")
    assert told.within["digits"] > told.overlap["digits"] > 0
