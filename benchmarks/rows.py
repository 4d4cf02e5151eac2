"A row of the results: what was measured of what, and the case that it belongs to."

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from .timing import quartiles


@dataclass(frozen=True)
class Row:
    "One number. `ratio` rows are held to the committed ones; the others depend on the machine, or are counts."

    section: str
    case: str
    what: str
    quantity: str  # "ratio", "seconds", "MiB", "memory ratio", "count" or "error"
    value: float
    low: float = float("nan")  # quartiles over the rounds
    high: float = float("nan")
    base_ms: float = float("nan")  # what a ratio is a ratio to, milliseconds
    rounds: int = 1
    note: str = ""

    @property
    def key(self):
        return self.section, self.case, self.what, self.quantity


COLUMNS = [f.name for f in fields(Row)]


@dataclass(frozen=True)
class Case:
    "A measurement: `run(effort, device)` gives its rows; it can be repeated."

    section: str
    name: str
    run: Callable
    quick: bool = False  # is it part of the quick mode?
    cuda: bool = False  # does it make sense on a GPU?


def ratio_rows(section, case, timings, notes=None, skip=()):
    "Rows of the ratios of all timings but the first."
    rows = []
    for name, timing in list(timings.items())[1:]:
        if name in skip:
            continue
        low, middle, high = quartiles(timing.ratios)
        base = 1000 * quartiles(timing.base)[1]
        note = (notes or {}).get(name, "")
        rows.append(Row(section, case, name, "ratio", middle, low, high, base, len(timing.ratios), note))
    return rows


def seconds_row(section, case, what, seconds, note=""):
    low, middle, high = quartiles(seconds)
    return Row(section, case, what, "seconds", middle, low, high, rounds=len(seconds), note=note)


def as_dict(row):
    "What is written down: NaN is nothing, and four digits are enough."
    kept = {k: v for k, v in asdict(row).items() if v == v and v != ""}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in kept.items()}
