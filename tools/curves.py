"""Make results/curves.csv (every run) and results/curves_differences.csv (differences to the ensemble with intervals):
how joint training and what is to mend it compare with the ensemble of the unimodal models, by the number of training
rows. `python tools/curves.py --seeds 10`; `--sets emoji,mfeat` makes some of the rows anew and keeps the others.

Half of the rows are for testing, and the training parts of different seeds are disjoint where there are enough rows.
Each model, the unimodal ones included, is trained with 200 and with 800 steps, and the log loss of validation chooses.
Finished runs are kept in `runs`, so it can be interrupted; with five seeds it takes hours.
"""

import argparse
import warnings
from pathlib import Path

import pandas as pd

from mmlit.benchmark.curves import learning_curve
from mmlit.training import Budget

ROOT = Path(__file__).resolve().parent.parent
METHODS = (
    "unimodal ensemble ensemble_calibrated deep_ensemble joint lr_control multi_loss modality_dropout pretrained "
    "frozen multimodal tcmax mcr resampling agm"
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
FILES = {name: ROOT / "results" / f"{name}.csv" for name in ("curves", "curves_differences")}


def store(name, table):
    "Rows of other data sets stay as they are."
    file = FILES[name]
    if file.exists():
        kept = pd.read_csv(file)
        table = pd.concat([kept[~kept.data.isin(table.data)], table], ignore_index=True)
    order = list(SIZES)
    table = table.sort_values("data", key=lambda names: names.map(order.index), kind="stable")
    table.round(6).to_csv(file, index=False)


def main():
    parser = argparse.ArgumentParser(description="Learning curves of all methods on real data.")
    parser.add_argument("--sets", default=",".join(SIZES), help="data sets, with commas")
    parser.add_argument("--seeds", type=int, default=5, help="training parts of each size")
    parser.add_argument("--workers", type=int, default=None, help="runs at a time")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the notes of each run are in the tables
    for name in args.sets.split(","):
        options = dict(seeds=args.seeds, out=ROOT / "runs", workers=args.workers)
        curve = learning_curve(name, METHODS, SIZES[name], budget=BUDGET, **options)
        curve.show()
        store("curves", curve.runs.drop(columns=["lacking", "temperatures", "warnings"], errors="ignore"))
        store("curves_differences", curve.table)
        curve.to_html(ROOT / "runs" / f"curve_{name}.html", "make curves")


if __name__ == "__main__":
    main()
