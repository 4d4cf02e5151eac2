"How much memory large data take beyond themselves, each question in a process of its own; and what many steps leave."

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .rows import Case, Row
from .through import CALLBACKS

ROOT = Path(__file__).resolve().parents[1]
PICTURES, SIDE, STEPS = 50_000, 64, 10_000

# `data` are pictures of bytes in two modalities, of `size` bytes; `rise` says by how many bytes a call raises the
# high-water mark of the process above what it held before
PROGRAM = """
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
    return most() - before
def pictures(n, side, seed=0):
    rng = np.random.default_rng(seed)
    xs = {m: rng.integers(0, 255, (n, 1, side, side), dtype=np.uint8) for m in "ab"}
    return multimodal_data(xs, np.arange(n) % 5), sum(x.nbytes for x in xs.values())
if __name__ == "__main__":
    data, size = pictures(N, SIDE)
"""

# what is freed goes back at once: else the C library keeps pieces, several times as large as what is in use
AT_ONCE = dict(MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536")

RUN = "Budget(epochs=1, bs=256), out=tempfile.mkdtemp(), workers=1, progress=False"
QUESTIONS = {
    "loaders": "multimodal_dls(data)",
    "compare": f"compare(data, 'joint', 1, reference='joint', budget={RUN})",
    "audit": f"audit(data=data, budget={RUN})",
}

PAIRINGS = """
from mmlit import MLPHead, FusionModel, pairing_logits
head, memory = MLPHead((512, 512), 4), 2**24
model = FusionModel([torch.nn.Identity()]*2, head).eval()
zs = [torch.randn(256, 512) for _ in range(2)]
index = torch.cartesian_prod(torch.arange(256), torch.arange(256))
with torch.no_grad():
    pairing_logits(model, zs, index[:512], memory)
    print(len(index)*2*512*4/memory, rise(lambda: pairing_logits(model, zs, index, memory))/memory)
"""

# the process at a fifth of the steps and at their end
GROWTH = """
from fastai.callback.core import Callback, CancelFitException
from mmlit import multimodal_learner
from benchmarks.through import CALLBACKS
class Count(Callback):
    order, n, sizes = 1000, 0, []
    def after_batch(self):
        self.n += 1
        if self.n in (STEPS//5, STEPS):
            gc.collect()
            self.sizes.append(held())
        if self.n == STEPS: raise CancelFitException
rng = np.random.default_rng(0)
xs = [rng.normal(size=(1024, 16)).astype("float32") for _ in range(2)]
dls = multimodal_dls(xs, np.arange(1024) % 3, bs=32, device="cpu", seed=0)
method = CALLBACKS[NAME]() if NAME in CALLBACKS else None
learn = multimodal_learner(dls, width=16, method=method, cbs=[Count()])
with learn.no_bar(), learn.no_logging(): learn.fit(STEPS, 3e-3)
print(Count.sizes[1] - Count.sizes[0])
"""


def fresh(code, n, side, folder, **environment):
    "The numbers that `code` prints last in a process of its own, which has `data`."
    program = Path(folder) / "program.py"  # a file: workers of joblib import it
    start = PROGRAM.replace("N, SIDE", f"{n}, {side}")
    program.write_text(start + "".join(f"    {line}\n" for line in code.strip().splitlines()))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-W", "ignore", str(program)]
    given = os.environ | {"PYTHONPATH": paths} | environment
    done = subprocess.run(words, capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def mib(case, what, value):
    return Row("memory", case, what, "MiB", value / 2**20)


def pictures(effort, device="cpu"):
    "What 50,000 pictures are, and what is held beyond them at the worst moment."
    n, side = (500, 16) if effort.quick else (PICTURES, SIDE)
    case = f"{n:,} pictures of {side} x {side} bytes, twice"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, call in QUESTIONS.items():
            code = f"print(size, rise(lambda: {call}))"
            size, more = fresh(code, n, side, folder)
            rows = rows or [mib(case, "the data", size)]
            rows.append(mib(case, what, more))
    return rows


def pairings(effort, device="cpu"):
    "The answers to 65,536 pairs, in the bytes that are allowed: 16 MiB."
    with tempfile.TemporaryDirectory() as folder:
        whole, more = fresh(PAIRINGS, 10, 8, folder, **AT_ONCE)
    case = "pairings within memory=16 MiB"
    return [mib(case, "the features of all at once", whole * 2**24), mib(case, "held", more * 2**24)]


def growth(effort, device="cpu"):
    "By how much the process grows in the last four fifths of the steps of a training."
    steps, names = (500, ["TCMax"]) if effort.quick else (STEPS, CALLBACKS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ["plain", *names]:
            code = f"STEPS, NAME = {steps}, {name!r}\n{GROWTH.strip()}"
            rows.append(mib(f"growth in {steps - steps // 5:,} steps", name, fresh(code, 10, 8, folder, **AT_ONCE)[0]))
    return rows


def cases():
    if not Path("/proc/self/statm").exists():  # the size of a process is read from there
        return
    for quick in (False, True):
        yield Case("memory", "pictures", pictures, quick)
        yield Case("memory", "growth", growth, quick)
    yield Case("memory", "pairings", pairings)
