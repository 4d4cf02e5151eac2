"""Make results/benchmark.csv: every method of the registry on real data, the five methods and their controls on the
synthetic tasks made for them, five seeds each.

About an hour on 2 cores; finished runs are kept in `runs`, so it can be interrupted. XOR needs a head that is not
additive, hence FiLM there.
"""

from pathlib import Path

import pandas as pd

from mmlit.benchmark.comparison import compare
from mmlit.learner import METHODS, Budget

ROOT = Path(__file__).resolve().parent.parent
CORE_METHODS = [
    "unimodal",
    "ensemble",
    "joint",
    "lr_control",
    "multi_loss",
    "multimodal",
    "tcmax",
    "mcr",
    "resampling",
    "agm",
    "agm_lr",
]
BOOK = (
    "unimodal ensemble ensemble_prob joint lr_control multi_loss modality_dropout pretrained frozen multimodal "
    "scaled_sum tcmax mcr mcr_pretrained resampling resampling_modality agm agm_lr"
).split()  # the order of the rows; a method that is new comes last
PARTS = [
    (["mfeat", "emoji", "watch"], [*BOOK, *(name for name in METHODS if name not in BOOK)], Budget()),
    (["strong_weak", "redundant"], CORE_METHODS, Budget(epochs=15)),
    (["xor"], CORE_METHODS, Budget(epochs=15, head="film")),
]

if __name__ == "__main__":
    tables = []
    for number, (datasets, methods, budget) in enumerate(PARTS):
        result = compare(datasets, methods, seeds=5, budget=budget, out=ROOT / "runs")
        result.show()
        result.to_html(ROOT / "runs" / f"benchmark_{number}.html", "make benchmark")
        tables.append(result.runs.assign(head=budget.head, epochs=budget.epochs))
    table = pd.concat(tables).drop(columns=["seconds", "test_locked"])
    table.round(6).to_csv(ROOT / "results" / "benchmark.csv", index=False)
