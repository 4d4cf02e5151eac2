"Runs on a cluster of two workers: the digits of local runs, what fails, what dies, and going on."

import importlib.util
import os
import sys
import warnings

import cloudpickle
import pytest

from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import load_dataset
from mmlit.learner import METHODS, FusionMethod, joint
from mmlit.training import Budget

SMALL = Budget(epochs=2, width=8)
there = importlib.util.find_spec("ray") is not None
slow = pytest.mark.slow
# in `make test-all` a missing Ray is a failure
needed = pytest.mark.skipif(not there and "MMLIT_TEST_ALL" not in os.environ, reason="Ray is an extra of make test-all")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").subset(range(400))


def told(data, folder, names=("ensemble", "pretrained"), registry=None, engine="ray"):
    return compare(data, names, 2, SMALL, folder, registry, workers=2, progress=False, engine=engine)


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}


@pytest.mark.skipif(there, reason="Ray is installed")
def test_without_ray_it_is_said_before_training(data, tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'mmlit\[ray\]'"):
        told(data, tmp_path)
    assert not files(tmp_path)


@slow
@needed
def test_a_cluster_gives_the_digits_of_this_machine_and_goes_on(data, tmp_path):
    near, far = (told(data, tmp_path / engine, engine=engine) for engine in ("joblib", "ray"))
    assert near.runs.drop(columns="seconds").equals(far.runs.drop(columns="seconds"))
    stored = files(tmp_path / "ray")
    gone = sorted(stored)[0]
    gone.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which run is missing
        again = told(data, tmp_path / "ray")
    changed = [p for p, t in files(tmp_path / "ray").items() if t != stored[p]]
    assert changed == [gone] and again.runs.drop(columns="seconds").equals(far.runs.drop(columns="seconds"))


class Dies(FusionMethod):
    def after_loss(self):
        if self.epoch:
            os._exit(1)


class Fails(FusionMethod):
    def after_loss(self):
        raise FloatingPointError("as asked")


@slow
@needed
def test_what_fails_or_dies_on_a_cluster_costs_itself(data, tmp_path, request):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import this file
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(sys.modules[__name__]))
    registry = METHODS | dict(dies=joint("dies", "dies", Dies), fails=joint("fails", "fails", Fails))
    found = told(data, tmp_path, ["joint", "dies", "fails"], registry)
    assert set(found.table.method) >= {"joint", "ensemble"}
    reasons = found.failed.set_index("method").reason
    assert all("died" in r for r in reasons["dies"]) and all("as asked" in r for r in reasons["fails"])
    assert not list(tmp_path.rglob("*.part"))
