"Other packages for the same numbers: time, and error against a truth that is known."

import contextlib
import importlib
import importlib.metadata
import logging
import math
import warnings
from functools import partial

import numpy as np
import torch

from mmlit import coalition_logits, estimate_mi, shapley_values
from mmlit.information import partial_information

from .naive import shapley_orders
from .rows import Case, Row, seconds_row
from .steps import Setting
from .timing import interleaved, process_clock, quartiles

PACKAGES = dict(
    dit="dit",
    infomeasure="infomeasure",
    npeet_plus="npeet-plus",
    sklearn="scikit-learn",
    captum="captum",
    shapiq="shapiq",
)


def peer(module):
    "A package, or why there is none."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module), ""
    except ImportError as error:
        return None, f"not installed ({type(error).__name__})"


class NoAnswer(Exception):
    "The package has no function for this question."


def compared(case, calls, error_of, effort, notes):
    """Rows of time and error of several functions that answer the same question, ours first.

    A package that is not there, or fails, has a row that says so: nothing is left out in silence.
    """
    rows, answers = [], {}
    for name, call in calls.items():
        try:
            if call is not None:
                answers[name] = error_of(call())
        except NoAnswer as reason:
            notes[name] = f"no answer: {reason}"
        except Exception as error:  # of somebody else's package: it belongs into the table
            notes[name] = f"failed ({type(error).__name__}: {str(error)[:80]})"
    timings = interleaved({name: calls[name] for name in answers}, effort, process_clock)
    rows += [seconds_row("peers", case, name, timing.seconds) for name, timing in timings.items()]
    rows += [Row("peers", case, name, "error", error) for name, error in answers.items()]
    rows += [_ours_over(case, name, timing) for name, timing in timings.items() if not name.startswith("mmlit")]
    gone = [name for name in calls if name not in answers]
    return rows + [Row("peers", case, name, "seconds", math.nan, rounds=0, note=notes.get(name, "")) for name in gone]


def _ours_over(case, name, timing):
    "How many times the time of another package ours takes, round by round."
    low, middle, high = quartiles(1 / timing.ratios)
    base = 1000 * quartiles(timing.seconds)[1]
    return Row("peers", case, f"mmlit over {name}", "ratio", middle, low, high, base, len(timing.ratios))


# ---- mutual information


def gaussian(n, dim, nats, seed, transform=lambda x: x):
    "Samples of two Gaussians of `dim` columns each, that share `nats` over all columns, perhaps bent one by one."
    rho = math.sqrt(1 - math.exp(-2 * nats / dim))
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, dim))
    return transform(x), transform(rho * x + math.sqrt(1 - rho**2) * noise)


def classes(n, nats, seed):
    "Two classes, normal around -d and d; the distance that gives so many nats is found by quadrature."
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)

    def information(d):
        return math.log(2) - weights @ np.logaddexp(0, -2 * d * (nodes + d)) / weights.sum()

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if information(middle) < nats else (low, middle)
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    return (rng.standard_normal(n) + low * (2 * y - 1))[:, None], y


def _values(function, samples):
    return np.array([float(function(x, y)) for x, y in samples])


def _sklearn(x, y):
    "scikit-learn knows single columns only."
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    if y.ndim == 1:
        return mutual_info_classif(x, y, random_state=0)[0]
    if x.shape[1] > 1 or y.shape[1] > 1:
        raise NoAnswer("takes single columns only")
    return mutual_info_regression(x, y[:, 0], random_state=0)[0]


def _npeet(module, x, y):
    "In bits if not told otherwise; a label goes to a function of its own."
    return module.micd(x, y[:, None], base=math.e) if y.ndim == 1 else module.mi(x, y, base=math.e)


def _infomeasure(module, x, y):
    if y.ndim == 1:
        raise NoAnswer("no estimator for a number and a label")
    return module.mutual_information(x, y, approach="ksg")


def information(title, draw, truth, effort, device="cpu"):
    "Mutual information from samples; the error is the mean distance from the truth over three draws."
    samples = [draw(seed=seed) for seed in range(1 if effort.quick else 3)]
    modules, notes = {}, {}
    for name in ("infomeasure", "npeet_plus"):
        modules[name], notes[name] = peer(name)

    def asked(function):
        return lambda: _values(function, samples)

    calls = {
        "mmlit k-NN": asked(lambda x, y: estimate_mi(x, y, method="knn").value),
        "mmlit": asked(lambda x, y: estimate_mi(x, y).value),
        "scikit-learn": asked(_sklearn),
        "npeet-plus": modules["npeet_plus"] and asked(partial(_npeet, modules["npeet_plus"])),
        "infomeasure": modules["infomeasure"] and asked(partial(_infomeasure, modules["infomeasure"])),
    }
    notes = {"npeet-plus": notes["npeet_plus"], "infomeasure": notes["infomeasure"]}
    if effort.quick:
        calls = {name: calls[name] for name in ("mmlit k-NN", "scikit-learn")}
    return compared(title, calls, lambda values: float(np.abs(values - truth).mean()), effort, notes)


# ---- partial information


def _table(rule, sizes=(2, 2)):
    "The distribution of two uniform inputs and the label that a rule makes of them."
    cells = [(i, j, rule(i, j)) for i in range(sizes[0]) for j in range(sizes[1])]
    p = np.zeros((*sizes, 1 + max(c[2] for c in cells)))
    for cell in cells:
        p[cell] += 1 / len(cells)
    return p


BIT = math.log(2)
GATES = {  # unique, unique, redundant, synergy
    "exclusive-or": (_table(lambda i, j: i ^ j), (0, 0, 0, BIT)),
    "both bits": (_table(lambda i, j: 2 * i + j), (BIT, BIT, 0, 0)),
    "first bit": (_table(lambda i, j: i), (BIT, 0, 0, 0)),
}


def _copies():
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[1, 1, 1] = 0.5
    return p


GATES["copies"] = (_copies(), (0, 0, BIT, 0))


def _ours(p):
    found = partial_information(torch.as_tensor(p))
    return [*found.unique.tolist(), float(found.redundant), float(found.synergy)]


def _dit(dit, p):
    cells = list(np.argwhere(p > 0))
    names = ["".join(chr(97 + int(i)) for i in cell) for cell in cells]
    d = dit.Distribution(names, [p[tuple(cell)] for cell in cells])
    pid = importlib.import_module("dit.pid").PID_BROJA(d)
    return [BIT * pid.get_pi(node) for node in (((0,),), ((1,),), ((0,), (1,)), ((0, 1),))]


def partial_tables(effort, device="cpu"):
    "The four amounts of gates whose amounts are known, and of tables of which only the sum rules are."
    dit, note = peer("dit")
    gates = list(GATES.values())[: 1 if effort.quick else None]
    rng = np.random.default_rng(0)
    drawn = [] if effort.quick else [rng.dirichlet(np.ones(18)).reshape(3, 3, 2) for _ in range(3)]

    def error_of(amounts):
        return float(max(np.abs(np.array(a) - truth).max() for a, (_, truth) in zip(amounts, gates)))

    def asked(function, tables):
        return lambda: [function(p) for p in tables]

    known = [p for p, _ in gates]
    calls = {"mmlit": asked(_ours, known), "dit": dit and asked(partial(_dit, dit), known)}
    rows = compared("partial information of gates, known amounts", calls, error_of, effort, {"dit": note})
    if not drawn:
        return rows
    # the minimum is certified by ours: what lies above it is the error of the other
    calls = {"mmlit": asked(_ours, drawn), "dit": dit and asked(partial(_dit, dit), drawn)}
    best = np.array([_ours(p) for p in drawn])
    return rows + compared(
        "partial information of 3 x 3 x 2 tables, certified",
        calls,
        lambda amounts: float(np.abs(np.array(amounts) - best).max()),
        effort,
        {"dit": note},
    )


# ---- Shapley values


def _captum(captum, setting):
    model, xs, _ = setting.make()
    model.eval()
    with torch.no_grad():
        zs = model.encode(*xs)
    method = importlib.import_module("captum.attr").ShapleyValues(lambda *zs: model.fuse(zs)[:, 0])
    masks = tuple(torch.full((1, z.shape[1]), m) for m, z in enumerate(zs))

    def ask():
        with torch.no_grad():
            parts = method.attribute(tuple(zs), feature_mask=masks)
        return torch.stack([part[:, 0] for part in parts])

    return ask


def _game(setting):
    "Logits of class 0 of all coalitions, (2**M, B), from one call of ours."
    model, xs, _ = setting.make()
    with torch.no_grad():
        zs = model.encode(*xs)

    def values():
        with torch.no_grad():
            return coalition_logits(model, zs)[..., 0]

    return model, zs, values


def _shapiq(shapiq, setting):
    model, zs, _ = _game(setting)

    def ask():
        out = []
        for row in range(len(zs[0])):
            one = [z[row : row + 1] for z in zs]

            def value(present, one=one):
                kept = torch.as_tensor(np.asarray(present)).float()
                with torch.no_grad():
                    return model.fuse([z * kept[:, m : m + 1] for m, z in enumerate(one)])[:, 0].numpy()

            found = shapiq.ExactComputer(value, n_players=len(zs))("SV")
            out.append([float(found[(m,)]) for m in range(len(zs))])
        return torch.tensor(out).T

    return ask


def attributions(setting, effort, device="cpu"):
    "Shapley values of each sample's logit over the modalities of a model; the truth is the mean over all orders."
    captum, no_captum = peer("captum")
    shapiq, no_shapiq = peer("shapiq")
    _, _, values = _game(setting)
    truth = shapley_orders(values().double())
    calls = {
        "mmlit": lambda: shapley_values(values()),
        "captum": captum and _captum(captum, setting),
        "shapiq": shapiq and _shapiq(shapiq, setting),
    }
    notes = {"captum": no_captum, "shapiq": no_shapiq}
    case = f"Shapley values of {setting.batch} samples, M={setting.modalities}"
    return compared(case, calls, lambda phi: float((phi.double() - truth).abs().max()), effort, notes)


@contextlib.contextmanager
def quiet():
    "Other packages warn and log about matters of their own."
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quietly(run, effort, device="cpu"):
    with quiet():
        return run(effort=effort, device=device)


def versions():
    "Package -> version, of those that are there."
    found = {}
    for name in PACKAGES.values():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


DRAWS = {
    "MI of Gaussians, 1 + 1 columns, n=2,000": (partial(gaussian, 2000, 1, 0.5), 0.5),
    "MI of Gaussians, 5 + 5 columns, n=2,000": (partial(gaussian, 2000, 5, 0.5), 0.5),
    "MI of bent Gaussians, 5 + 5 columns, n=2,000": (partial(gaussian, 2000, 5, 0.5, transform=np.sinh), 0.5),
    "MI of a number and a label, n=2,000": (partial(classes, 2000, 0.3), 0.3),
}
SHAPLEY = {m: Setting("mlp", m, 32, 10, "mlp") for m in (3, 6)}
SMALL = "MI of Gaussians, 1 + 1 columns, n=300"


def cases():
    for title, (draw, truth) in DRAWS.items():
        yield Case("peers", title, partial(_quietly, partial(information, title, draw, truth)))
    yield Case("peers", "partial information", partial(_quietly, partial_tables))
    for m in (3, 6):
        yield Case("peers", f"Shapley values, M={m}", partial(_quietly, partial(attributions, SHAPLEY[m])))
    small = partial(information, SMALL, partial(gaussian, 300, 1, 0.5), 0.5)
    yield Case("peers", SMALL, partial(_quietly, small), quick=True)
