"""Make results/missing.csv: what to do with samples that lack a modality, on real data with 10 to 70 per cent missing.

Three answers are compared: to drop the samples that are not complete, to put a zero feature in the place of what is
missing, and to learn a feature for it. Fewer samples also make fewer steps in an epoch, so dropping has a control that
shows its samples again until there are as many steps. Beside them stand the ensemble of unimodal models, each trained
on the samples that have its modality, and the better one of these. All are scored on all test samples. What is missing
is drawn completely at random, once per data set and rate. About 10 minutes on 2 cores; finished runs are kept.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.learner import METHODS, Budget, Method, Run, joint_run, multimodal_learner
from mmlit.methods.baselines import training_on

ROOT = Path(__file__).resolve().parent.parent
RATES = (0.1, 0.3, 0.5, 0.7)
SETS = dict(mfeat=["fou", "zer"], emoji=["picture", "name"], digits=["left", "right"])


def drop(dls, budget, models):
    "Joint training on complete samples only."
    presence = dls.train.dataset.presence
    return multimodal_learner(training_on(dls, presence.all(1)), head=budget.head, width=budget.width)


def drop_again(dls, budget, models):
    "The same with as many steps as all samples make."
    n, learn = len(dls.train_ds), drop(dls, budget, models)
    rows = learn.dls.train_ds.index
    rows = rows.repeat(-(-n // len(rows)))[:n]
    learn.dls.train.plan = rows, torch.ones(n, len(dls.modalities), dtype=torch.bool)
    return learn


def row(title, run):
    return Method(title, lambda modalities: [run], lambda answers, data: {run.name: answers[0]})


ANSWERS = {
    "drop": row("joint training on complete samples", Run("drop", drop)),
    "drop, as many steps": row("the same, shown again and again", Run("drop, as many steps", drop_again)),
    "zero": row("a zero feature stands for what is missing", joint_run("zero")),
    "learned": row("a learned feature stands for it", joint_run("learned", learner=dict(learn_absent=True))),
}


def with_gaps(name, modalities, rate, seed=0):
    "A data set whose samples lack each modality with this probability, but never all of them."
    data = load_dataset(name).select(modalities)
    draw = np.random.default_rng([seed, int(100 * rate)])
    there = draw.random((len(data), len(modalities))) >= rate
    nothing = ~there.any(1)
    there[nothing, draw.integers(0, len(modalities), nothing.sum())] = True
    y = np.array(data.classes)[data.y]
    return MultimodalData(f"{name} {rate:.0%}", data.xs, y, data.classes, data.groups, data.kinds, presence=there)


if __name__ == "__main__":
    tables = []
    for name, modalities in SETS.items():
        sets = [with_gaps(name, modalities, rate) for rate in RATES]
        result = compare(sets, ["unimodal", "ensemble", *ANSWERS], 5, Budget(), ROOT / "runs", METHODS | ANSWERS)
        result.show()
        table = result.runs[["data", "method", "seed", "split", "n_train", "n_test", "accuracy"]]
        share = {data.name: np.mean(list(data.missing.values())).round(3) for data in sets}
        tables.append(table.assign(missing=table.data.map(share)))
    pd.concat(tables).round(6).to_csv(ROOT / "results" / "missing.csv", index=False)
