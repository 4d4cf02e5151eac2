"""Learning curves of all methods on real data: how joint training and what is to mend it compare with the ensemble of
the unimodal models, by the number of training rows. Five studies, which differ in what is asked of the same data:

curves  all methods with Adam; each model, the unimodal ones included, is trained with 200 and with 800 steps, and the
        log loss of validation chooses; results/linear_marks.csv has the linear model beside each network
sgd     the same with SGD and momentum, which modulation methods were made for
steps   with 100, 200, 400, 800 and 1600 steps, each for itself
dials   data whose difficulty is a dial: how much of the variance of pictures is kept; how strong the signal of the hard
        modality is, beside one that can be memorised; how strong the signals of a task with synergy are
quick   minutes, to see that it all runs: tables go to `runs`, and none of them is committed

A study makes results/NAME.csv (every run) and results/NAME_differences.csv (to the ensemble, with intervals).
`python tools/curves.py --studies sgd --seeds 10`; `--sets emoji,mfeat` makes some of the rows anew and keeps the
others, and so does `--methods linear`. Half of the rows are for testing, and the training parts of different seeds are
disjoint where there are enough rows. Finished runs are kept in `runs`, so it can be interrupted; the whole takes hours.
"""

import argparse
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mmlit.benchmark.curves import learning_curve
from mmlit.benchmark.protocol import linear_marks
from mmlit.benchmark.several import corrected
from mmlit.training import Budget

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NOT_KEPT = ["lacking", "temperatures", "warnings", "test_locked"]  # columns of runs
FIVE = "multimodal tcmax mcr resampling agm"
BUDGET = Budget(steps=(200, 800))


@dataclass(frozen=True)
class Study:
    "What is compared: numbers of training rows of each data set; a third as many more rows are for validation."

    sizes: dict
    methods: str
    budgets: tuple = (BUDGET,)
    seeds: int = 5
    results: Path = RESULTS


STUDIES = {
    "curves": Study(
        {
            "emoji": [150, 300, 600],
            "avdigits": [150, 300, 600, 1000],
            "mfeat": [150, 300, 600],
            "htad": [150, 300],
            "digits": [150, 600],
            "brca": [150],
            "watch": [450],
            "hanzi": [450],
            "babynames": [450],
        },
        "unimodal linear ensemble ensemble_calibrated deep_ensemble joint lr_control multi_loss modality_dropout "
        f"pretrained frozen {FIVE}",
    ),
    "sgd": Study(
        {"emoji": [600], "avdigits": [300, 600], "mfeat": [300], "watch": [450]},
        f"unimodal ensemble deep_ensemble joint lr_control multi_loss {FIVE} agm_lr",
        (Budget(steps=(200, 800), optimiser="sgd"),),
    ),
    "steps": Study(
        {"emoji": [600], "avdigits": [300]},
        "unimodal ensemble deep_ensemble joint multi_loss tcmax agm",
        tuple(Budget(steps=n) for n in (100, 200, 400, 800, 1600)),
    ),
    "dials": Study(
        {
            name: [300]
            for name in (
                *(f"avdigits?share={share}" for share in (0.3, 0.7)),
                *(f"memorable?n=4000&signal={signal}" for signal in (0.8, 1.6, 3.2)),
                *(f"competition?n=4000&strength={strength}" for strength in (0.5, 1, 2)),
            )
        },
        f"unimodal ensemble joint lr_control multi_loss {FIVE}",
    ),
    "quick": Study(
        {"avdigits": [300], "mfeat": [300]},
        f"unimodal ensemble deep_ensemble joint multi_loss {FIVE}",
        (Budget(steps=400),),
        seeds=3,
        results=ROOT / "runs",
    ),
}
SETS = tuple(dict.fromkeys(data for study in STUDIES.values() for data in study.sizes))


def store(file, table, key="method"):
    "Rows of other data sets, and of other methods, stay as they are."
    if file.exists():
        kept = pd.read_csv(file)
        made = set(zip(table.data, table[key]))
        others = [pair not in made for pair in zip(kept.data, kept[key])]
        table = pd.concat([kept[others], table], ignore_index=True)
    table = table.sort_values(["data", "n_asked"], key=rank, kind="stable")
    table.round(6).to_csv(file, index=False)


def rank(column):
    "Data sets in the order of the studies, sizes by number."
    return column.map(SETS.index) if column.name == "data" else column


def marks(curve):
    "Each network beside the linear model of its modality."
    return pd.DataFrame(
        dict(data=data, n_asked=n, network=m.network, linear=m.linear, shown=m.side)
        | dict(zip(("difference", "difference_low", "difference_high"), m.difference))
        for (data, n), found in curve.comparisons.items()
        for m in linear_marks(found, data)
    )


def with_p(curve):
    "The table of a curve with p-values, as they are and corrected for all methods of a data set and size (Holm)."
    p = [corrected(found).assign(n_asked=n) for (_, n), found in curve.comparisons.items()]
    columns = ["data", "n_asked", "method"]
    return curve.table.merge(pd.concat(p)[[*columns, "p", "p_holm"]], "left", columns)


def carry_out(title, study, data, methods, **options):
    "One data set of a study: its tables and pages."
    runs, differences = [], []
    for budget in study.budgets:
        curve = learning_curve(data, methods, study.sizes[data], budget=budget, out=ROOT / "runs", **options)
        curve.show()
        asked = {} if len(study.budgets) == 1 else {"steps_asked": budget.steps}
        runs.append(curve.runs.drop(columns=NOT_KEPT, errors="ignore").assign(**asked))
        differences.append(with_p(curve).assign(**asked))
        name = "_".join([title, data, *map(str, asked.values())])
        curve.to_html(ROOT / "runs" / f"{re.sub(r'[^a-z0-9.]+', '_', name)}.html", "make curves")
        if not (found := marks(curve)).empty:
            store(study.results / "linear_marks.csv", found, "network")
    store(study.results / f"{title}.csv", pd.concat(runs))
    store(study.results / f"{title}_differences.csv", pd.concat(differences))


def main():
    parser = argparse.ArgumentParser(description="Learning curves of all methods on real data.")
    parser.add_argument("--studies", default="curves,sgd,steps,dials", help="which, with commas")
    parser.add_argument("--sets", help="data sets, with commas; all of the study where it is not given")
    parser.add_argument("--methods", help="methods, with commas; all of the study where it is not given")
    parser.add_argument("--seeds", type=int, help="training parts of each size; 5, of the quick study 3")
    parser.add_argument("--workers", type=int, help="runs at a time")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the notes of each run are in the tables
    for title in args.studies.split(","):
        study = STUDIES[title]
        methods = args.methods.split(",") if args.methods else study.methods.split()
        for data in args.sets.split(",") if args.sets else study.sizes:
            carry_out(title, study, data, methods, seeds=args.seeds or study.seeds, workers=args.workers)


if __name__ == "__main__":
    main()
