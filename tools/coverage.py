"""How often do 95 % intervals of a difference hold the truth, where runs share their test rows?

    python tools/coverage.py      # some minutes on one core

writes results/coverage.csv, two lines per setting: the interval of `crossed_interval` and that of the bootstrap over
runs and rows. Answers of two methods are right where a latent number is above a threshold: it is the sum of a part of
the row (the same for both), of the training part, of the test unit, and of a rest, all normal. So the accuracies, and
their difference, are known.
"""

import csv
import itertools
import math
import sys
import zlib
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import stats

from mmlit.crossed import crossed_interval

OUT = Path(__file__).resolve().parent.parent / "results" / "coverage.csv"
ACCURACY = 0.85, 0.82  # of the two methods
TRUTH = ACCURACY[1] - ACCURACY[0]
REST = 0.5  # standard deviation of what belongs to a run and a row together
REPEATS = 1000
DRAWS = 400  # of the bootstrap

# standard deviations of the parts of training and of the unit: none, small, both, large
PARTS = (0.0, 0.0), (0.05, 0.3), (0.1, 0.3), (0.15, 0.0), (0.4, 0.3)
SETTINGS = [
    *(dict(runs=r, rows=n, training=t, units=u) for r in (3, 5, 10) for n in (400, 1500) for t, u in PARTS),
    # few groups, in one test part or in test parts that change
    *(
        dict(runs=r, rows=1000, groups=g, test_parts=p, training=t, units=u)
        for (r, g, p), (t, u) in itertools.product(((5, 5, 1), (6, 10, 2), (10, 10, 2), (5, 20, 1)), PARTS[:4])
    ),
    # training parts with a common share of rows
    *(
        dict(runs=r, rows=400, overlap=o, training=t, units=0.3)
        for r in (3, 5)
        for o in (0.2, 0.5)
        for t in (0.0, 0.15)
    ),
]
COLUMNS = "runs rows groups test_parts overlap training units interval repeats coverage half_width".split()


def draw(rng, runs, rows, training, units, groups=None, test_parts=1, overlap=0.0):
    "Differences of right and wrong (runs, rows), NaN where a run was not tested; and the group of each row."
    group = np.arange(rows) if groups is None else np.arange(rows) * groups // rows
    scale = math.sqrt(1 + training**2 + units**2 + REST**2)
    row = rng.normal(size=rows)
    right = []
    for accuracy in ACCURACY:
        common = math.sqrt(overlap) * rng.normal() + math.sqrt(1 - overlap) * rng.normal(size=(runs, 1))
        unit = rng.normal(size=group.max() + 1)[group]
        latent = row + training * common + units * unit + REST * rng.normal(size=(runs, rows))
        right.append(latent + stats.norm.ppf(accuracy) * scale > 0)
    values = right[1].astype(float) - right[0]
    tested_by = np.arange(runs)[:, None] % test_parts
    return np.where(tested_by == group * test_parts // (group.max() + 1), values, np.nan), group


def bootstrap(values, rng):
    "Percentiles of the mean when runs and rows are drawn with replacement."
    runs, rows = values.shape
    by_row = rng.multinomial(runs, np.full(runs, 1 / runs), DRAWS) @ values
    means = (by_row * rng.multinomial(rows, np.full(rows, 1 / rows), DRAWS)).sum(1) / (runs * rows)
    return np.quantile(means, [0.025, 0.975])


def main(repeats=REPEATS):
    table = []
    for setting in track(SETTINGS, "settings"):
        rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
        plain = "groups" not in setting
        found = {"crossed": [], **({"bootstrap": []} if plain else {})}
        for i in range(repeats):
            values, group = draw(rng, **setting)
            found["crossed"].append(
                crossed_interval(values, None if plain else group, setting.get("overlap", 0.0), share=True)[1:]
            )
            if plain and i < repeats // 4:  # it takes long
                found["bootstrap"].append(bootstrap(values, rng))
        for name, ends in found.items():
            low, high = np.array(ends).T
            row = dict(test_parts=1, overlap=0.0) | setting
            row |= dict(interval=name, repeats=len(low), coverage=((low <= TRUTH) & (TRUTH <= high)).mean())
            table.append(row | dict(half_width=((high - low) / 2).mean()))
    with OUT.open("w", newline="") as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows([{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in table])
    print(OUT.relative_to(OUT.parent.parent))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
