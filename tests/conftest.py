import os

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy and torch are there: with one test process a core, threads only get into each other's way

import fuzzing
import numpy as np
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


_BEGINNINGS = {}  # module -> its generators, and their states before its first test


@pytest.fixture(autouse=True)
def same_numbers(request):
    "Generators of a module begin anew for each test: its numbers do not depend on which tests ran before."
    own = vars(request.module)
    found = {name: value.bit_generator for name, value in own.items() if isinstance(value, np.random.Generator)}
    states = _BEGINNINGS.setdefault(request.module.__name__, {name: bits.state for name, bits in found.items()})
    for name, bits in found.items():
        bits.state = states[name]
