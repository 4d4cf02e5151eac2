"How much memory large data take, in processes of their own; and that run after run leaves nothing behind."

from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import AT_ONCE, PAIRINGS, fresh
from mmlit.data import encoders

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc"
)

# ---- data


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_moments_of_parts_are_those_of_the_whole(monkeypatch, dtype):
    x = np.random.default_rng(0).normal(100, 20, (301, 3, 4, 5)).astype(dtype)
    rows, axes = np.arange(0, 301, 2), (0, 2, 3)
    whole = encoders.moments(x, axes, rows)
    monkeypatch.setattr(encoders, "_PART", 700)  # eleven rows
    parts = encoders.moments(x, axes, rows)
    picked = x[rows].astype(np.float64)
    expected = picked.mean(axes), picked.std(axes), picked.min(axes), picked.max(axes)
    for found in (whole, parts):
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_loaders_of_50_000_pictures_make_no_copy_of_them(tmp_path):
    "Half of the data's size is the parts in which their statistics are taken, which do not grow with the data."
    (more,) = fresh("print(rise(lambda: multimodal_dls(data))/size)", 50_000, 28, tmp_path)
    assert more < 0.9  # with the training rows in float64: 5


def test_a_digest_makes_no_copy_of_the_data(tmp_path):
    asked = "from mmlit.fingerprint import fingerprint\nprint(rise(lambda: fingerprint(data))/size)"
    assert fresh(asked, 50_000, 28, tmp_path)[0] < 0.2


# ---- run after run

LOOP = """
budget, sizes, tensors = Budget(epochs=1, bs=500, n_train=500, width=8), [], []
gc.collect()
gc.disable()
for seed in range(7):
    compare(data, "joint", [seed], budget, tempfile.mkdtemp(), reference="joint", workers=1, progress=False)
    sizes.append(held())
    tensors.append(sum(t.nbytes for t in gc.get_objects() if torch.is_tensor(t)))
print((tensors[6] - tensors[2])/4/size, (sizes[6] - sizes[2])/size)
"""


def test_a_run_leaves_no_tensors_behind(tmp_path):
    "Even where nobody looks for circles: models, batches and optimisers go with the run, only row numbers stay."
    tensors, growth = fresh(LOOP, 20_000, 28, tmp_path, **AT_ONCE)
    assert tensors < 0.03 and growth < 0.4


def test_workers_let_the_data_go(tmp_path):
    "They share the memory of one file, which is gone when the comparison is done."
    asked = """
budget = Budget(epochs=1, bs=500, n_train=500, width=8)
for seeds in [0, 1], [2, 3]:
    compare(data, "joint", seeds, budget, tempfile.mkdtemp(), reference="joint", workers=2, progress=False)
import os, pathlib, time
def left(): return sum(p.stat().st_size for p in pathlib.Path(os.environ["JOBLIB_TEMP_FOLDER"]).rglob("*.pkl"))
for _ in range(50):
    if not left(): break
    time.sleep(.2)
print(left()/size)
"""
    (tmp_path / "shared").mkdir()
    assert fresh(asked, 20_000, 28, tmp_path, JOBLIB_TEMP_FOLDER=str(tmp_path / "shared")) == [0]


# ---- pairings


def test_pairings_keep_within_the_bytes_that_they_are_given(tmp_path):
    "And twice, where the head joins them to one tensor; the features of all pairs would take sixteen times as many."
    all_at_once, more = fresh(PAIRINGS, 100, 8, tmp_path, **AT_ONCE)
    assert all_at_once == 16 and more < 3.5
