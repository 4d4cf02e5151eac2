"How much memory large data take, in processes of their own; and that run after run leaves nothing behind."

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmlit.data import encoders

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc"
)

# `data` are pictures of bytes in two modalities, of `size` bytes; `rise` says by how much a call raises the high-water
# mark of the process above what it held before, in units of `size`
START = """
import gc, re, sys, tempfile, warnings
import numpy as np, torch
import mmlit.methods
from mmlit import Budget, audit, compare, multimodal_data, multimodal_dls
torch.set_num_threads(1)
def held(): return 4096*int(open("/proc/self/statm").read().split()[1])
def most():     # of this process: what `resource` says is, at first, that of the process which started it
    return 1024*int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def rise(f):
    before = held()
    f()
    return (most() - before)/size
def pictures(n, side, seed=0):
    rng = np.random.default_rng(seed)
    xs = {m: rng.integers(0, 255, (n, 1, side, side), dtype=np.uint8) for m in "ab"}
    return multimodal_data(xs, np.arange(n) % 5), sum(x.nbytes for x in xs.values())
if __name__ == "__main__":
    data, size = pictures(N, SIDE)
"""


def fresh(code, n, side, tmp_path, **environment):
    "The numbers that `code` prints last in a process of its own, which has `data`."
    program = tmp_path / "program.py"  # a file: workers of joblib import it
    start = START.replace("N, SIDE", f"{n}, {side}")
    program.write_text(start + "".join(f"    {line}\n" for line in code.strip().splitlines()))
    words = [sys.executable, "-W", "ignore", str(program)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


# what is freed goes back at once: else the C library keeps pieces, several times as large as what is in use
AT_ONCE = dict(MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536")

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
    (more,) = fresh("print(rise(lambda: multimodal_dls(data)))", 50_000, 28, tmp_path)
    assert more < 0.9  # with the training rows in float64: 5


def test_a_digest_makes_no_copy_of_the_data(tmp_path):
    asked = "from mmlit.fingerprint import fingerprint\nprint(rise(lambda: fingerprint(data)))"
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

PAIRINGS = """
from mmlit import MLPHead, FusionModel, pairing_logits
head, memory = MLPHead((512, 512), 4), 2**24
model = FusionModel([torch.nn.Identity()]*2, head).eval()
zs = [torch.randn(256, 512) for _ in range(2)]
index = torch.cartesian_prod(torch.arange(256), torch.arange(256))
size = memory
with torch.no_grad():
    pairing_logits(model, zs, index[:512], memory)
    print(len(index)*2*512*4/size, rise(lambda: pairing_logits(model, zs, index, memory)))
"""


def test_pairings_keep_within_the_bytes_that_they_are_given(tmp_path):
    "And twice, where the head joins them to one tensor; the features of all pairs would take sixteen times as many."
    all_at_once, more = fresh(PAIRINGS, 100, 8, tmp_path, **AT_ONCE)
    assert all_at_once == 16 and more < 3.5
