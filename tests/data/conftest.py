from functools import lru_cache

import pytest

from mmlit.data.catalogue import DATASETS, load_dataset

cached_load = lru_cache(None)(load_dataset)


@pytest.fixture(scope="session")
def load():
    "`load(name, **options)`: the set, or a skip when its package is not installed."

    def load(name, **options):
        if not DATASETS[name].available:
            pytest.skip(f"{name} needs {DATASETS[name].source}")
        return cached_load(name, **options)

    return load


@pytest.fixture(scope="session")
def emoji():
    return load_dataset("emoji")
