"""Make results/tuned.csv (every run), results/tuned_differences.csv (differences with intervals) and
results/tuned_trials.csv (what was tried): does what is shown of the methods as published stay when each model is tuned?

python tools/tuned.py                                  # 8 trials, 5 training parts, 3 sets at 300 training rows
python tools/tuned.py --sets emoji --methods tcmax     # these rows anew; the others stay as they are

The controls and the six methods that stood best in results/curves_differences.csv, by mean rank. Rows and budget are
those of tools/curves.py, so that what that has trained is not trained again. Finished runs are kept in `runs`, so it
can be interrupted; the whole takes hours.
"""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
from curves import BUDGET, NOT_KEPT, ROOT, store

from mmlit.benchmark.curves import learning_curve

CONTROLS = "unimodal ensemble ensemble_calibrated deep_ensemble joint".split()
BEST = "tcmax multi_loss resampling frozen agm pretrained".split()
SIZES = {"emoji": 300, "avdigits": 300, "mfeat": 300}  # training rows


def main():
    parser = argparse.ArgumentParser(description="The methods as published, and each tuned by as many trials.")
    parser.add_argument("--sets", default=",".join(SIZES), help="data sets, with commas")
    parser.add_argument("--methods", default=",".join(CONTROLS + BEST), help="methods, with commas")
    parser.add_argument("--trials", type=int, default=8, help="of each model, the published default among them")
    parser.add_argument("--seeds", type=int, default=5, help="training parts")
    parser.add_argument("--steps", type=int, nargs="+", default=BUDGET.steps, help="validation chooses among several")
    parser.add_argument("--workers", type=int, default=None, help="runs at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="where finished runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where the tables go")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the notes of each run are in the tables
    for name in args.sets.split(","):
        options = dict(seeds=args.seeds, out=args.out, workers=args.workers, tune=args.trials)
        budget = replace(BUDGET, steps=tuple(args.steps))
        curve = learning_curve(name, args.methods.split(","), SIZES[name], budget=budget, **options)
        curve.show()
        trials = [found.trials.assign(n_asked=n) for (_, n), found in curve.comparisons.items()]
        runs = curve.runs.drop(columns=NOT_KEPT, errors="ignore")
        for kind, table in {"": runs, "_differences": curve.table, "_trials": pd.concat(trials)}.items():
            store(args.results / f"tuned{kind}.csv", table)
        curve.to_html(args.out / f"tuned_{name}.html", "make tuned")


if __name__ == "__main__":
    main()
