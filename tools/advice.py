"""Does the audit's advice turn out right? `python tools/advice.py` writes results/advice.csv and advice_judge.csv.

Each case is a synthetic task with known dials or a real data set. Audits see some seeds (for a synthetic task: some
draws), the judge others: every recipe is trained anew there, and what counts is which one turns out best. Finished runs
are kept in `runs`, so it can be interrupted; about 40 minutes on 2 cores.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mmlit.audits.advice import CANDIDATES
from mmlit.audits.audit import audit
from mmlit.audits.companions import AdditiveMLPHead
from mmlit.benchmark.comparison import compare
from mmlit.core import is_additive
from mmlit.data.catalogue import load_dataset, parse_dataset
from mmlit.fusion.heads import HEADS
from mmlit.learner import METHODS, Budget, Method, joint_run

ROOT = Path(__file__).resolve().parent.parent
OTHER_HEADS = {
    name: Method(
        f"joint training, {name} head",
        lambda modalities, name=name, head=head: [joint_run(name, head=head)],
        lambda answers, data, name=name: {name: answers[0]},
    )
    for name, head in (("interacting", "mlp"), ("additive", AdditiveMLPHead))
}
JUDGED = [
    "unimodal",
    "ensemble",
    "joint",
    "pretrained",
    "multi_loss",
    "multimodal",
    "tcmax",
    "mcr",
    "resampling",
    "agm_lr",
]
AUDITS = (5, 6, 7, 8, 9)  # seeds of the audits
ASKED = [*(("fast", [seed]) for seed in AUDITS), ("full", list(AUDITS))]  # each seed alone, and all together
JUDGE = (0, 1, 2, 3, 4)


@dataclass
class Case:
    "A synthetic task or a data set with a budget; `draw(part)` gives the data of audits (part 1) and judge (part 0)."

    name: str
    draw: Callable
    budget: Budget = field(default_factory=lambda: Budget(epochs=15))
    stored: bool = False  # is the judge's table in results/benchmark.csv?

    @property
    def additive(self):
        return is_additive(HEADS[self.budget.head]((1, 1), 2))

    def data(self, part):
        data = self.draw(part)
        data.name = f"advice-{self.name}-{part}"
        return data


def task(name, n=1500, **dials):
    return lambda part: load_dataset(name, n=n, seed=100 + part, **dials)


def real(name):
    return lambda part: parse_dataset(name)


CASES = [
    *(
        Case(name, task(name))
        for name in ("redundant", "unique", "strong_weak", "easy_hard", "random_modality", "shared_unique")
    ),
    Case("xor, additive head", task("xor")),
    Case("xor, FiLM head", task("xor"), Budget(epochs=15, head="film")),
    Case("half synergy", task("competition", unique=(0.1, 0.1), redundant=0.0, synergistic=0.5)),
    Case("a little synergy", task("competition", unique=(0.4, 0.4), redundant=0.1, synergistic=0.1)),
    Case("one modality louder", task("competition", unique=(0.5, 0.5), redundant=0.0, strength=(8.0, 1.0))),
    Case(
        "louder, 4 epochs", task("competition", unique=(0.5, 0.5), redundant=0.3, strength=(8.0, 1.0)), Budget(epochs=4)
    ),
    Case("three modalities", task("competition", unique=(0.4, 0.4, 0.4), redundant=0.3, strength=(5.0, 1.0, 1.0))),
    Case("few samples", task("competition", n=400, unique=(0.4, 0.4), redundant=0.3, dim=32)),
    *(
        Case(f"memorable, {n} samples", task("memorable", n=n, dim=dim))
        for n, dim in ((800, 400), (1500, 600), (2500, 900))
    ),
    Case("memorable, FiLM head", task("memorable", n=1500), Budget(epochs=15, head="film")),
    *(Case(name, real(name), Budget()) for name in ("digits", "breast_cancer", "htad")),
    *(Case(name, real(name), Budget(), stored=True) for name in ("mfeat", "emoji", "watch")),
]


def judged(case, out, workers):
    "Accuracy of every recipe on the judge's seeds: a row for each recipe and seed."
    registry = METHODS | OTHER_HEADS
    extra = ["interacting", "additive"] if case.additive else ["additive"]
    if case.stored:
        table = pd.read_csv(ROOT / "results" / "benchmark.csv").query("data == @case.name")
        table = pd.concat(
            [
                table[table.method.isin([*JUDGED, "best unimodal"])],
                compare([case.data(0)], extra, JUDGE, case.budget, out, registry, "additive", workers).runs,
            ]
        )
    else:
        table = compare([case.data(0)], JUDGED + extra, JUDGE, case.budget, out, registry, "ensemble", workers).runs
    return table[~table.method.str.startswith("unimodal ")].assign(case=case.name)[
        ["case", "method", "seed", "split", "n_train", "n_test", "accuracy"]
    ]


def audited(case, out, workers):
    "What each audit advises: a row per audit, with the recipe that validation scores alone would choose."
    rows = []
    for asked, seeds in ASKED:
        found = audit(data=case.data(1), budget=case.budget, seeds=seeds, out=out, workers=workers)
        scores = found.facts["validation"]
        rows.append(
            dict(
                case=case.name,
                budget=asked,
                seeds=" ".join(map(str, seeds)),
                use=found.advice.use,
                validation=max(["joint", *CANDIDATES], key=lambda c: scores.get(c, 0.0)),
                findings="; ".join(found.advice.findings),
                joint_minus_ensemble=found.get("differences", "accuracy", "joint minus ensemble").mean,
            )
        )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is written")
    parser.add_argument("--out", default=str(ROOT / "runs"), help="folder of finished runs")
    parser.add_argument("--workers", type=int, default=None, help="runs at a time; default: the number of cores")
    args = parser.parse_args()
    judges, advices = [], []
    for case in CASES:
        if args.only not in case.name:
            continue
        advices.append(audited(case, args.out, args.workers))
        judges.append(judged(case, args.out, args.workers))
        print(
            case.name,
            advices[-1][["budget", "use", "findings"]].to_string(index=False, header=False),
            judges[-1].groupby("method").accuracy.mean().round(3).to_dict(),
            sep="\n",
            flush=True,
        )
        if not args.only:
            pd.concat(advices).round(6).to_csv(ROOT / "results" / "advice.csv", index=False)
            pd.concat(judges).round(6).to_csv(ROOT / "results" / "advice_judge.csv", index=False)


if __name__ == "__main__":
    main()
