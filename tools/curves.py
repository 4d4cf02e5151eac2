"""Make results/curves.csv (every run) and results/curves_differences.csv (differences to the ensemble with intervals):
how joint training and what is to mend it compare with the ensemble of the unimodal models, by the number of training
rows. `python tools/curves.py --seeds 10`; `--sets emoji,mfeat` makes some of the rows anew and keeps the others, and so
does `--methods linear`. results/linear_marks.csv has each network beside the linear model of its modality.

Half of the rows are for testing, and the training parts of different seeds are disjoint where there are enough rows.
Each model, the unimodal ones included, is trained with 200 and with 800 steps, and the log loss of validation chooses.
Finished runs are kept in `runs`, so it can be interrupted; with five seeds it takes hours.
"""

import argparse
import warnings
from pathlib import Path

import pandas as pd

from mmlit.benchmark.curves import learning_curve
from mmlit.benchmark.protocol import linear_marks
from mmlit.training import Budget

ROOT = Path(__file__).resolve().parent.parent
METHODS = (
    "unimodal linear ensemble ensemble_calibrated deep_ensemble joint lr_control multi_loss modality_dropout "
    "pretrained frozen multimodal tcmax mcr resampling agm"
).split()
SIZES = {  # training rows; a third as many more are for validation
    "emoji": [150, 300, 600],
    "avdigits": [150, 300, 600, 1000],
    "mfeat": [150, 300, 600],
    "htad": [150, 300],
    "digits": [150, 600],
    "brca": [150],
    "watch": [450],
    "hanzi": [450],
    "babynames": [450],
}
BUDGET = Budget(steps=(200, 800))
RESULTS = ROOT / "results"
NOT_KEPT = ["lacking", "temperatures", "warnings", "test_locked"]  # columns of runs


def store(file, table, key="method", sets=tuple(SIZES)):
    "Rows of other data sets, and of other methods, stay as they are; data sets are in the order of `sets`."
    if file.exists():
        kept = pd.read_csv(file)
        made = set(zip(table.data, table[key]))
        others = [pair not in made for pair in zip(kept.data, kept[key])]
        table = pd.concat([kept[others], table], ignore_index=True)
    table = table.sort_values(["data", "n_asked"], key=rank(sets), kind="stable")
    table.round(6).to_csv(file, index=False)


def rank(sets):
    "Data sets in this order, sizes by number."
    return lambda column: column.map(sets.index) if column.name == "data" else column


def marks(curve):
    "Each network beside the linear model of its modality."
    return pd.DataFrame(
        dict(data=data, n_asked=n, network=m.network, linear=m.linear, shown=m.side)
        | dict(zip(("difference", "difference_low", "difference_high"), m.difference))
        for (data, n), found in curve.comparisons.items()
        for m in linear_marks(found, data)
    )


def main():
    parser = argparse.ArgumentParser(description="Learning curves of all methods on real data.")
    parser.add_argument("--sets", default=",".join(SIZES), help="data sets, with commas")
    parser.add_argument("--seeds", type=int, default=5, help="training parts of each size")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, with commas")
    parser.add_argument("--workers", type=int, default=None, help="runs at a time")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the notes of each run are in the tables
    for name in args.sets.split(","):
        options = dict(seeds=args.seeds, out=ROOT / "runs", workers=args.workers)
        curve = learning_curve(name, args.methods.split(","), SIZES[name], budget=BUDGET, **options)
        curve.show()
        store(RESULTS / "curves.csv", curve.runs.drop(columns=NOT_KEPT, errors="ignore"))
        store(RESULTS / "curves_differences.csv", curve.table)
        if not (found := marks(curve)).empty:
            store(RESULTS / "linear_marks.csv", found, "network")
        curve.to_html(ROOT / "runs" / f"curve_{name}.html", "make curves")


if __name__ == "__main__":
    main()
