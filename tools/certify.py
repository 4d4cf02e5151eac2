"""Holds the estimators to known truths: `python tools/certify.py` writes results/certification.csv.

Each distribution draws samples and knows its truth (the pattern of the bmi benchmark, Czyz et al. 2023):
a closed form, or quadrature in one or two dimensions. Rows are stored as they are finished; a second run computes
only what is missing. `--quick` takes a twentieth of the repeats into another file.
"""

import argparse
import csv
import math
import os
import time
import zlib
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many small fits: threads only get into each other's way

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scipy.special import digamma, gammaln, logsumexp
from scipy.stats import multivariate_t

from mmlit.estimators.direct import Estimate
from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
from mmlit.permutation import conditional_permutation_cmi, permutation_cmi

ROOT = Path(__file__).parent.parent
ESTIMATE = dict(mi=estimate_mi, cmi=estimate_cmi, tc=lambda *xs, **options: estimate_tc(xs, **options))
COLUMNS = [
    "quantity",
    "distribution",
    "estimator",
    "kind",
    "n",
    "repeats",
    "truth",
    "mean",
    "bias",
    "bias_se",
    "sd",
    "reported_se",
    "coverage",
    "low_holds",
    "quiet",
    "claimed",
    "coverage_quiet",
    "seconds",
    "warning",
]
CLAIMED = 0.8  # a row claims coverage if at least this share of its estimates does (`Estimate.covers`)


def signed(quantity, axes):
    "(+1 / -1, groups of axes) whose joint log-densities add up to the log-ratio of the quantity."
    everything = tuple(range(axes))
    if quantity == "cmi":
        return [(1, (0, 1, 2)), (-1, (0, 2)), (-1, (1, 2)), (1, (2,))]
    return [(1, everything), *((-1, (a,)) for a in everything)]


class FiniteDistribution:
    "A joint table; one axis per variable."

    def __init__(self, name, quantity, p):
        self.name, self.quantity, self.p = name, quantity, np.asarray(p, dtype=float) / np.sum(p)
        self.table = np.zeros_like(self.p)
        for sign, group in signed(quantity, self.p.ndim):
            marginal = self.p.sum(tuple(a for a in range(self.p.ndim) if a not in group), keepdims=True)
            self.table = self.table + sign * np.log(np.where(marginal > 0, marginal, 1.0))
        self.truth = float((self.p * self.table).sum())

    def sample(self, n, rng):
        return np.unravel_index(rng.choice(self.p.size, n, p=self.p.ravel()), self.p.shape)

    def log_ratio(self, *sample):
        return self.table[sample]

    def logits(self, zs):
        "The exact log-posterior of axis 1 given axes 0 and 2, as a head: the model that cannot be improved."
        joint = np.moveaxis(self.p, 1, 2)
        return torch.as_tensor(np.log((joint / joint.sum(2, keepdims=True)).clip(1e-12)))[tuple(z.long() for z in zs)]


class GaussianDistribution:
    "Blocks of a Gaussian vector are the variables."

    def __init__(self, name, quantity, covariance, dims):
        self.name, self.quantity, self.covariance = name, quantity, np.asarray(covariance, dtype=float)
        self.edges = np.cumsum([0, *dims])
        self.truth = sum(
            -sign * 0.5 * np.linalg.slogdet(self.block(group)[1])[1] for sign, group in signed(quantity, len(dims))
        )
        self.root = np.linalg.cholesky(self.covariance)

    def block(self, group):
        index = np.concatenate([np.arange(self.edges[g], self.edges[g + 1]) for g in group])
        return index, self.covariance[np.ix_(index, index)]

    def sample(self, n, rng):
        return tuple(np.split(rng.normal(size=(n, len(self.root))) @ self.root.T, self.edges[1:-1], axis=1))

    def log_density(self, x, group):
        c = self.block(group)[1]
        return (
            -0.5 * ((x @ np.linalg.inv(c)) * x).sum(1)
            - 0.5 * np.linalg.slogdet(c)[1]
            - 0.5 * len(c) * math.log(2 * math.pi)
        )

    def log_ratio(self, *xs):
        return sum(
            sign * self.log_density(np.hstack([xs[g] for g in group]), group)
            for sign, group in signed(self.quantity, len(xs))
        )


class StudentDistribution(GaussianDistribution):
    "A Gaussian vector divided by a common random scale: heavy tails, and dependence even where the correlation is 0."

    def __init__(self, name, covariance, dims, freedom):
        super().__init__(name, "mi", covariance, dims)
        self.freedom = freedom
        f = lambda d: gammaln((freedom + d) / 2) - (freedom + d) / 2 * digamma((freedom + d) / 2)
        self.truth += f(sum(dims)) + f(0) - f(dims[0]) - f(dims[1])

    def sample(self, n, rng):
        scale = np.sqrt(self.freedom / rng.chisquare(self.freedom, n))[:, None]
        return tuple(x * scale for x in super().sample(n, rng))

    def log_density(self, x, group):
        return multivariate_t(shape=self.block(group)[1], df=self.freedom).logpdf(x)


class StepDistribution:
    "x uniform on m labels, y uniform on [x, x + 2] (Gao et al. 2017): I = log m - (m - 1)/m log 2."

    def __init__(self, name, m):
        self.name, self.quantity, self.m, self.truth = name, "mi", m, math.log(m) - (m - 1) / m * math.log(2)

    def sample(self, n, rng):
        x = rng.integers(0, self.m, n)
        return x, x + 2 * rng.random(n)

    def log_ratio(self, x, y):
        cell = np.floor(y).astype(int)
        return math.log(self.m) - np.log(np.where((cell > 0) & (cell < self.m), 2, 1))


class MixtureDistribution:
    "Hidden components; modality m is Gaussian around means[m][component]; the label is a function of the component."

    def __init__(self, name, quantity, means, labels=None, weights=None):
        self.name, self.quantity, self.means = name, quantity, [np.asarray(m, dtype=float) for m in means]
        k = len(self.means[0])
        self.weights = np.full(k, 1 / k) if weights is None else np.asarray(weights)
        self.labels = None if labels is None else np.asarray(labels)
        everything, J = range(len(means)), self.information
        shared = sum(J([m]) for m in everything) - J(everything)  # TC of the modalities
        if labels is None:
            self.truth = shared
        elif quantity == "mi":
            self.truth = self.about_label(everything)
        elif quantity == "cmi":
            self.truth = self.about_label(everything) - self.about_label([1])
        else:
            self.truth = shared + self.about_label(everything)

    def information(self, modalities, rows=slice(None)):
        "I(modalities; component), for the components in `rows`: Gauss-Hermite quadrature in the span of the means."
        means, weights = (
            np.hstack([self.means[m] for m in modalities])[rows],
            self.weights[rows] / self.weights[rows].sum(),
        )
        means = means - means.mean(0)
        _, s, axes = np.linalg.svd(means, full_matrices=False)
        means = means @ axes[s > 1e-9].T
        if not means.shape[1]:
            return 0.0
        assert means.shape[1] <= 2, "the means must span two dimensions at most"
        node, weight = np.polynomial.hermite_e.hermegauss(100)
        grid = np.array(list(product(node, repeat=means.shape[1])))
        mass = np.prod(list(product(weight / weight.sum(), repeat=means.shape[1])), axis=1)
        total = 0.0
        for c, w in enumerate(weights):
            log_p = -0.5 * ((grid + means[c] - means[:, None]) ** 2).sum(2)  # (components, nodes)
            total += w * (mass * (log_p[c] - logsumexp(log_p + np.log(weights)[:, None], 0))).sum()
        return total

    def about_label(self, modalities):
        rows = [np.flatnonzero(self.labels == y) for y in np.unique(self.labels)]
        return self.information(modalities) - sum(self.weights[r].sum() * self.information(modalities, r) for r in rows)

    def sample(self, n, rng):
        component = rng.choice(len(self.weights), n, p=self.weights)
        zs = [m[component] + rng.normal(size=(n, m.shape[1])) for m in self.means]
        if self.labels is None:
            return tuple(zs)
        y = self.labels[component]
        return dict(mi=lambda: (np.hstack(zs), y), cmi=lambda: (zs[0], y, zs[1]), tc=lambda: (*zs, y))[self.quantity]()

    def log_density(self, zs, modalities, y=None):
        "log p(zs), or log p(zs | y)."
        log_p = sum(
            -0.5 * ((z[:, None] - self.means[m]) ** 2).sum(2) - 0.5 * z.shape[1] * math.log(2 * math.pi)
            for m, z in zip(modalities, zs)
        ) + np.log(self.weights)
        if y is None:
            return logsumexp(log_p, 1)
        same = self.labels == np.asarray(y)[:, None]
        return logsumexp(np.where(same, log_p, -np.inf), 1) - np.log((same * self.weights).sum(1))

    def log_ratio(self, *xs):
        p, everything = self.log_density, range(len(self.means))
        if self.labels is None:
            return p(xs, everything) - sum(p([x], [m]) for m, x in enumerate(xs))
        if self.quantity == "cmi":
            z1, y, z2 = xs
            return p([z1, z2], everything, y) - p([z1, z2], everything) - p([z2], [1], y) + p([z2], [1])
        *zs, y = (
            (*np.split(xs[0], np.cumsum([m.shape[1] for m in self.means])[:-1], axis=1), xs[1])
            if self.quantity == "mi"
            else xs
        )
        alone = sum(p([z], [m]) for m, z in enumerate(zs)) if self.quantity == "tc" else p(zs, everything)
        return p(zs, everything, y) - alone

    def logits(self, zs):
        zs = [z.double().numpy() for z in zs]
        mass = [self.weights[self.labels == y].sum() for y in np.unique(self.labels)]
        return torch.as_tensor(
            np.stack(
                [
                    self.log_density(zs, range(len(zs)), np.full(len(zs[0]), y)) + math.log(w)
                    for y, w in zip(np.unique(self.labels), mass)
                ],
                1,
            )
        )


def pair(rho, d):
    return np.kron([[1, rho], [rho, 1]], np.eye(d))


def equal(rho, m, d=1):
    return np.kron((1 - rho) * np.eye(m) + rho * np.ones((m, m)), np.eye(d))


def xor_table(flip):
    p = np.zeros((2, 2, 2))
    for a, b in product(range(2), repeat=2):
        p[a, b, a ^ b], p[a, b, 1 - (a ^ b)] = (1 - flip) / 4, flip / 4
    return p


def redundant_table(agree=0.99, right=0.9):
    "x1 and x2 agree nearly always, the label follows x1: hardly anything is unique to it (axes x1, y, x2)."
    p = np.zeros((2, 2, 2))
    for a, y, b in product(range(2), repeat=3):
        p[a, y, b] = 0.5 * (right if y == a else 1 - right) * (agree if b == a else 1 - agree)
    return p


RANDOM = np.random.default_rng(7).dirichlet(np.ones(24))

DISTRIBUTIONS = [
    FiniteDistribution("table 5x5, independent", "mi", np.ones((5, 5))),
    FiniteDistribution("table 2x2, weak", "mi", [[0.27, 0.23], [0.23, 0.27]]),
    FiniteDistribution("table 4x6, random", "mi", RANDOM.reshape(4, 6)),
    FiniteDistribution("table 10x10, noisy copy", "mi", np.eye(10) * 0.8 / 10 + 0.2 / 100),
    FiniteDistribution("table 8x2, rare label, independent", "mi", np.outer(np.ones(8), [0.97, 0.03])),
    FiniteDistribution("table 2x4x3, random", "cmi", RANDOM.reshape(2, 4, 3)),
    FiniteDistribution("table, redundant", "cmi", redundant_table()),
    FiniteDistribution(
        "table 2x2x2, chain", "cmi", redundant_table(0.9, 0.9).swapaxes(0, 2)
    ),  # x and y are noisy copies of z and nothing more
    FiniteDistribution("XOR, exact", "tc", xor_table(0.0)),
    FiniteDistribution("XOR, 10 % flipped", "tc", xor_table(0.1)),
    FiniteDistribution("XOR, 10 % flipped", "cmi", np.moveaxis(xor_table(0.1), 2, 1)),
    GaussianDistribution("Gaussian 1+1, rho 0", "mi", pair(0, 1), (1, 1)),
    GaussianDistribution("Gaussian 1+1, rho 0.6", "mi", pair(0.6, 1), (1, 1)),
    GaussianDistribution("Gaussian 1+1, rho 0.9", "mi", pair(0.9, 1), (1, 1)),
    GaussianDistribution("Gaussian 2+2, rho 0.5", "mi", pair(0.5, 2), (2, 2)),
    GaussianDistribution("Gaussian 5+5, rho 0.5", "mi", pair(0.5, 5), (5, 5)),
    GaussianDistribution("Gaussian 10+10, rho 0.5", "mi", pair(0.5, 10), (10, 10)),
    GaussianDistribution("Gaussian 10+10, rho 0.8", "mi", pair(0.8, 10), (10, 10)),
    GaussianDistribution("Gaussian, redundant 1+1+1", "cmi", [[1, 0.8, 0.9], [0.8, 1, 0.8], [0.9, 0.8, 1]], (1, 1, 1)),
    GaussianDistribution("Gaussian 4+4+4, rho 0.4", "cmi", equal(0.4, 3, 4), (4, 4, 4)),
    GaussianDistribution("Gaussian 1+1+1", "tc", [[1, 0.4, 0.3], [0.4, 1, 0.2], [0.3, 0.2, 1]], (1, 1, 1)),
    GaussianDistribution("Gaussian 4+4+4, rho 0.4", "tc", equal(0.4, 3, 4), (4, 4, 4)),
    StudentDistribution("Student 1+1, 1 d.o.f., rho 0", pair(0, 1), (1, 1), 1),
    StudentDistribution("Student 1+1, 2 d.o.f., rho 0.5", pair(0.5, 1), (1, 1), 2),
    StudentDistribution("Student 5+5, 3 d.o.f., rho 0.5", pair(0.5, 5), (5, 5), 3),
    StepDistribution("step, 5 labels", 5),
    MixtureDistribution("two humps", "mi", [[[-2], [2]], [[-2], [2]]]),
    MixtureDistribution("label x 2 features", "mi", [[[0, 0], [2, 0], [0, 2]]], [0, 1, 2]),
    MixtureDistribution("label x 10 features", "mi", [2 * np.eye(3, 10)], [0, 1, 2]),
    MixtureDistribution("label x 10 features, independent", "mi", [np.zeros((2, 10))], [0, 1]),
    MixtureDistribution(
        "label XOR, features 1+1", "cmi", [[[-1.5], [-1.5], [1.5], [1.5]], [[-1.5], [1.5], [-1.5], [1.5]]], [0, 1, 1, 0]
    ),
    MixtureDistribution(
        "label XOR, features 1+1", "tc", [[[-1.5], [-1.5], [1.5], [1.5]], [[-1.5], [1.5], [-1.5], [1.5]]], [0, 1, 1, 0]
    ),
    MixtureDistribution("label, redundant features 1+1", "cmi", [[[-1.5], [1.5]], [[-1.5], [1.5]]], [0, 1]),
    MixtureDistribution("label, redundant features 1+1", "tc", [[[-1.5], [1.5]], [[-1.5], [1.5]]], [0, 1]),
    MixtureDistribution(
        "label, redundant features 4+4", "cmi", [[[-0.7] * 4, [0.7] * 4], [[-0.7] * 4, [0.7] * 4]], [0, 1]
    ),
]


def permutation(task, sample, form, seed):
    "The permutation contrasts of the exact posterior, as estimates of the conditional mutual information."
    x, y, z = sample
    zs = [torch.as_tensor(v) for v in (x, z)]
    if form == "permutation":
        found = permutation_cmi(task.logits, zs, 0, torch.as_tensor(y))
    elif form == "permutation, jsd":
        found = permutation_cmi(task.logits, zs, 0, form="jsd")
    else:
        found = conditional_permutation_cmi(task.logits, zs, 0, torch.as_tensor(y))
    mean, half = found.mean.item(), 1.96 * found.per_sample.std().item() / math.sqrt(len(y))
    return Estimate(mean, max(mean - half, 0), max(mean + half, 0), form, "score", len(y))


def run(task, estimator, n, repeat, **options):
    "One estimate on fresh samples; the same samples for every estimator. `options` are the estimator's own."
    sample = task.sample(n, np.random.default_rng([zlib.crc32(task.name.encode()), n, repeat]))
    start = time.process_time()
    found = (
        permutation(task, sample, estimator, repeat)
        if "permutation" in estimator
        else ESTIMATE[task.quantity](*sample, method=estimator, seed=repeat, **options)
    )
    return found, time.process_time() - start


def summary(task, estimator, n, found):
    "One row of the table."
    estimates, seconds = zip(*found)
    value, low, high = (np.array([getattr(e, k) for e in estimates]) for k in ("value", "low", "high"))
    quiet = np.array([e.covers for e in estimates])
    inside = (low <= task.truth + 1e-12) & (task.truth - 1e-12 <= high)
    notes = [w.split(":")[0] for e in estimates for w in e.warnings]
    row = dict(
        quantity=task.quantity,
        distribution=task.name,
        estimator=estimator,
        kind=estimates[0].kind,
        n=n,
        repeats=len(found),
        truth=task.truth,
        mean=value.mean(),
        bias=value.mean() - task.truth,
        bias_se=value.std(ddof=1) / math.sqrt(len(found)),
        sd=value.std(ddof=1),
        reported_se=np.mean(high - low) / (2 * 1.96),
        coverage=inside.mean(),
        low_holds=(low <= task.truth + 1e-12).mean(),
        quiet=quiet.mean(),
        claimed=bool(quiet.mean() >= CLAIMED),
        coverage_quiet=inside[quiet].mean() if quiet.any() else math.nan,
        seconds=np.median(seconds),
        warning=max(set(notes), key=notes.count) if notes else "",
    )
    return {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()}


def plan(quick=False):
    "(task, estimator, n, repeats), cheap ones first."
    jobs = []
    for task in DISTRIBUTIONS:
        columns = task.sample(50, np.random.default_rng(0))
        widths = [np.asarray(c).reshape(50, -1).shape[1] if np.asarray(c).dtype.kind == "f" else 0 for c in columns]
        discrete, label = not any(widths), 0 in widths and task.quantity != "tc"
        if discrete:
            jobs += [(task, "plugin", n, 1000) for n in (200, 1000)]
        elif sum(widths) <= 10:
            jobs += [
                (task, "knn", 500, 600 if sum(widths) <= 4 else 100),
                (task, "knn", 2000, 400 if sum(widths) <= 4 else 20),
            ]
        if label and not discrete:
            jobs += [(task, "classifier", 500, 60), (task, "classifier", 2000, 40)]
        if hasattr(task, "logits") and task.quantity == "cmi":
            jobs += [
                (task, e, 500, 100 if "conditional" not in e else 40)
                for e in ("permutation", "permutation, jsd", "conditional permutation")
            ]
        if not discrete and not (label and task.quantity == "mi"):
            jobs.append((task, "neural", 1000, 30))
        if task.name.startswith("Gaussian 10+10"):
            jobs.append((task, "neural", 5000, 12))
    jobs = [j for j in jobs if "permutation" not in j[1] or "2x4x3" not in j[0].name]
    if quick:
        jobs = [(task, e, n, max(4, repeats // 20)) for task, e, n, repeats in jobs if n <= 1000]
    return jobs


def read(path):
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        return {key(row): row for row in csv.DictReader(f)}


def key(row):
    return row["quantity"], row["distribution"], row["estimator"], int(row["n"])


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    temporary.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        help="the table; default results/certification.csv, with --quick runs/certification-quick.csv",
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the repeats and no more than 1000 samples")
    parser.add_argument("--only", default="", help="only rows whose task or estimator contains this")
    parser.add_argument("--fresh", action="store_true", help="compute the rows again even if they are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.out or ROOT / ("runs/certification-quick.csv" if args.quick else "results/certification.csv")
    jobs = plan(args.quick)
    done, order = read(path), [(task.quantity, task.name, e, n) for task, e, n, _ in jobs]
    wanted = [j for j in jobs if args.only in j[0].name or args.only in j[1]]
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        rows = bar.add_task("rows", total=len(wanted))
        for task, estimator, n, repeats in wanted:
            here = task.quantity, task.name, estimator, n
            if args.fresh or here not in done or int(done[here]["repeats"]) != repeats:
                bar_of_row = bar.add_task(f"{task.quantity} {task.name}, {estimator}, n = {n}", total=repeats)
                found = []
                for r in range(repeats):
                    found.append(run(task, estimator, n, r))
                    bar.advance(bar_of_row)
                bar.remove_task(bar_of_row)
                done[here] = summary(task, estimator, n, found)
                write(path, [done[k] for k in order if k in done])
            bar.advance(rows)
    print(path)


if __name__ == "__main__":
    main()
