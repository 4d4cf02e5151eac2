import os

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy and torch are there: with one test process a core, threads only get into each other's way

import fuzzing
import pytest
import torch

torch.set_num_threads(1)  # many small runs: one thread each is faster, and the digits do not depend on the machine


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: --slow runs it"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def trials(record_property):
    "A report in XML says how many random cases a test tried."
    before = fuzzing.passed
    yield
    if fuzzing.passed > before:
        record_property("trials", fuzzing.passed - before)
