"""Which method works with what: each cell of the support matrix is a training of one epoch on a few rows.

python tools/support.py          # all cells, to results/support.csv (minutes)
python tools/support.py --new    # those that the table has not yet

A cell *works*, works *with a warning*, or is *refused* with a ValueError before the first step; all else is a fault.
The tests hold a sample of the cells to the committed table, `--slow` all of them.
"""

import argparse
import itertools
import random
import re
import warnings
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import SGD
from kinds import case

from mmlit.core import TASKS
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.fusion.heads import HEADS
from mmlit.learner import multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling
from mmlit.methods.tcmax import TCMax
from mmlit.monitor import ModalityMonitor

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "support.csv"

# what a training of one epoch needs to act at once
METHODS = {
    "plain": None,
    "MultiLoss": MultiLoss,
    "ModalityDropout": ModalityDropout,
    "MultiModal": MultiModal,
    "TCMax": TCMax,
    "MCR": MCR,
    "ModalityResampling": partial(ModalityResampling, warmup=0),
    "ModalityResampling(level='modality')": partial(ModalityResampling, level="modality", warmup=0),
    "GradientModulation": GradientModulation,
    "GradientModulation(mode='lr')": partial(GradientModulation, mode="lr"),
    "ModalityMonitor": ModalityMonitor,
}
TARGETS = {"C = 2": ("classification", 2), "C = 5": ("classification", 5)}
TARGETS |= {task: (task, 3) for task in TASKS[1:]}
EXTRAS = {"": None, "accumulation": partial(GradientAccumulation, 32), "clipping": partial(GradientClip, 1.0)}
# what changes the shape of a batch, of the target or of the loss, or which rows there are
NEW_KINDS = (
    *("table", "sequence of different length", "word ids of different length", "dict of arrays", "tuple of arrays"),
    *("missing modality", "transformer", "given split", "several targets", "class weights", "row weights"),
)
PAIRED = "C = 5", "multi-label", "regression"
DRAWN = 300  # combinations of everything at once
ROWS, BATCH = 80, 16  # 48 of the rows are trained on: three batches


class Cell(NamedTuple):
    "One combination; `other` is a second method, added after the first."

    method: str
    target: str = "C = 5"
    head: str = "concat"
    modalities: int = 2
    precision: str = "fp32"
    extra: str = ""
    other: str = ""
    kind: str = "vector"  # of the first modality, see kinds.py


def cells():
    """Combinations: with heads, modalities and precisions; with what else a training may have; in pairs; with kinds;
    and some of everything at once."""
    found = [Cell(*c) for c in itertools.product(METHODS, TARGETS, HEADS, (2, 3, 6), ("fp32", "bf16"))]
    found += [Cell(m, t, modalities=1) for m in METHODS for t in TARGETS]
    found += [Cell(m, t, extra=e) for m in METHODS for t in TARGETS for e in EXTRAS if e]
    pairs = list(itertools.permutations([m for m in METHODS if m != "plain"], 2))
    found += [Cell(one, target, other=other) for target in PAIRED for one, other in pairs]
    kinds = itertools.product(NEW_KINDS, METHODS, ("concat", "attention"), ("fp32", "bf16"))
    found += [Cell(m, _target(kind), head, 2, p, kind=kind) for kind, m, head, p in kinds]
    return found + _drawn(found)


def _drawn(known):
    "Of all that can be chosen, combinations of everything at once."
    others = ["", *(m for m in METHODS if m != "plain")]
    all_of = itertools.product(METHODS, TARGETS, HEADS, (1, 2, 3, 6), ("fp32", "bf16"), EXTRAS, others)
    there = set(known)
    left = [c for c in itertools.starmap(Cell, all_of) if c.method != c.other and c not in there]
    return random.Random(0).sample([c for c in left if (c.head, c.modalities) != ("attention", 6)], DRAWN)


def _target(kind):
    return "regression" if kind == "several targets" else "C = 5"


@cache
def data(target, modalities):
    "A little data: the first columns of each modality say something about the target."
    task, classes = TARGETS[target]
    rng = np.random.default_rng(0)
    label = np.arange(ROWS) % classes
    xs = {f"m{m}": rng.normal(size=(ROWS, 4 + m)).astype("float32") + label[:, None] for m in range(modalities)}
    several = (rng.random((ROWS, classes)) < 0.5).astype("float32")
    y = dict(zip(TASKS, (label, several, rng.normal(size=ROWS).astype("float32") + label)))[task]
    return multimodal_data(xs, y, task=task, name="support")


def learner(cell, **options):
    "On the data, or on the case of a kind; what making the loaders says is said in other tables."
    of_data = dict(bs=BATCH, device="cpu", seed=0)
    if cell.kind == "vector":
        return multimodal_learner(multimodal_dls(data(cell.target, cell.modalities), **of_data), **options)
    one = case(cell.kind, rows=ROWS, classes=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "modality 'x' has .* empty cells|samples of data lack a modality")
        dls = multimodal_dls(one.xs, one.y, **of_data, **one.options)
    return multimodal_learner(dls, one.encoders() if one.encoders else None, **options)


class BFloat16(Callback):
    "Autocast on the CPU: fastai's `MixedPrecision` knows CUDA only."

    order = MixedPrecision.order

    def before_batch(self):
        self.autocast = torch.autocast("cpu", torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self):
        self.learn.pred = self.pred.float()

    def after_loss(self):
        self.autocast.__exit__(None, None, None)


class _Steps(Callback):
    "Counts the steps that were taken."

    n = 0

    def after_step(self):
        self.n += 1


def _train(cell, steps):
    "One epoch; what it learnt must be finite, and must have moved."
    torch.manual_seed(0)
    extra = EXTRAS[cell.extra]
    cbs = [steps, *([extra()] if extra else []), *([BFloat16()] if cell.precision == "bf16" else [])]
    learn = learner(cell, head=cell.head, width=8, cbs=cbs, opt_func=SGD)
    for name in filter(None, (cell.method, cell.other)):
        if METHODS[name] is not None:
            learn.add_cb(METHODS[name]())
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(), redirect_stdout(StringIO()):
        learn.fit(1, 1e-2)
    assert all(p.isfinite().all() for p in learn.model.parameters()), "parameters are not finite"
    assert any(not torch.equal(p, before[n]) for n, p in learn.model.named_parameters()), "nothing moved"


def try_cell(cell):
    "Its answer, 'works', 'with a warning' or 'refused', and the reason. Any other end is raised."
    steps = _Steps()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            _train(cell, steps)
        except ValueError as refusal:
            if steps.n:
                raise AssertionError(f"{cell} was refused after {steps.n} steps") from refusal
            return "refused", first_line(refusal)
    said = [w for w in said if issubclass(w.category, UserWarning)]
    return ("with a warning", first_line(said[0].message)) if said else ("works", "")


def first_line(message):
    "Without what fastai puts before an exception of a callback."
    text = str(message)
    if "when calling event" in text:
        text = text.split(":\n\n", 1)[1]
    return re.sub(r"\s+", " ", text.strip().split("\n")[0])


def committed():
    "The table that there is, as cell -> answer and reason."
    table = pd.read_csv(TABLE, keep_default_na=False).to_dict("records")
    return {Cell(**{f: row[f] for f in Cell._fields if f in row}): (row["answer"], row["reason"]) for row in table}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", action="store_true", help="only cells that the table has not yet")
    known = committed() if parser.parse_args().new else {}
    torch.set_num_threads(1)
    rows = [(*cell, *(known[cell] if cell in known else try_cell(cell))) for cell in cells()]
    table = pd.DataFrame(rows, columns=[*Cell._fields, "answer", "reason"])
    table.to_csv(TABLE, index=False)
    print(table.groupby(["method", "answer"]).size().unstack(fill_value=0))


if __name__ == "__main__":
    main()
