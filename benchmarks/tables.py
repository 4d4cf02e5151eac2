"Results as files and tables: what is committed, whether a target is met, what became slower."

import json
import math
from dataclasses import asdict
from pathlib import Path

from .rows import COLUMNS, Row, as_dict

WORSE = 1.15  # a ratio this many times the committed one is a regression
TRIES = 3  # how often a case is measured before it is one: the best median counts
RATIOS = ("ratio",)


def save(path, machine, rows, targets=()):
    "JSON with the machine, the rows, and the most that some of them may be."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def lines(dicts):
        return ",\n".join("  " + json.dumps(d, ensure_ascii=False) for d in dicts)

    parts = f' "targets": [\n{lines(map(asdict, targets))}\n],\n "rows": [\n{lines(map(as_dict, rows))}\n]'
    path.write_text(f'{{"machine": {json.dumps(machine)},\n{parts}}}\n', encoding="utf8")


def load(path):
    "Machine and rows of a file of `save`; nothing where there is none."
    path = Path(path)
    if not path.exists():
        return {}, []
    found = json.loads(path.read_text(encoding="utf8"))
    unknown = {name for row in found["rows"] for name in row} - set(COLUMNS)
    if unknown:
        raise ValueError(f"{path.name} has unknown columns {sorted(unknown)}: expected some of {COLUMNS}")
    return found["machine"], [Row(**{"value": math.nan, **row}) for row in found["rows"]]


def merged(old, new):
    "The old rows, with those of the cases that were measured again exchanged for the new ones."
    again = {(r.section, r.case) for r in new}
    return [r for r in old if (r.section, r.case) not in again] + list(new)


def regressions(new, committed):
    "Ratios that are more than 15 % above the committed ones: key -> (new, committed)."
    before = {r.key: r.value for r in committed if r.quantity in RATIOS}
    worse = {}
    for row in new:
        old = before.get(row.key, math.nan)
        if row.quantity in RATIOS and row.value > WORSE * old:
            worse[row.key] = (row.value, old)
    return worse


def lost(new, committed):
    "Ratios that are committed and were not measured, though their case was."
    cases, there = {(r.section, r.case) for r in new}, {r.key for r in new}
    return [r.key for r in committed if (r.section, r.case) in cases and r.quantity in RATIOS and r.key not in there]


def best(*tries):
    "Of several measurements of a case, each number from the one in which it was least."
    found = {}
    for row in (r for rows in tries for r in rows):
        if row.key not in found or row.value < found[row.key].value:
            found[row.key] = row
    return list(found.values())


def settled(measured, committed, again, tries=TRIES, say=print):
    """The rows, after each case with a regression was measured again, and the regressions that stay.

    Two measurements of one thing differ by up to a quarter on a machine that others use. Noise rarely makes a median
    smaller, so what counts is the best of three; `again(section, case)` measures one case once more.
    """
    rows = list(measured)
    for _ in range(tries - 1):
        suspects = sorted({key[:2] for key in regressions(rows, committed)})
        for section, case in suspects:
            say(f"measured again: {section}, {case}")
            own = [r for r in rows if (r.section, r.case) == (section, case)]
            rows = merged(rows, best(own, again(section, case)))
    return rows, regressions(rows, committed)


# ---- targets


def verdict(target, rows):
    "A dict of one line of the table of targets."
    found = {r.key: r for r in rows}.get(target.key)
    value = math.nan if found is None else found.value
    met = "not measured" if math.isnan(value) else "met" if value <= target.most else "not met"
    return {"what": target.title, "target": target.most, "unit": target.unit, "now": value, "verdict": met}


# ---- text


def number(value):
    if value != value:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def markdown(header, lines):
    "A table; all but the first column to the right."
    cells = [[str(c) for c in line] for line in lines]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def line(row):
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, cells)])


def targets_table(targets, rows):
    lines = [verdict(t, rows) for t in targets]
    header = ["what", "target", "now", "verdict"]
    return markdown(header, [[v["what"], _with_unit(v, "target"), _with_unit(v, "now"), v["verdict"]] for v in lines])


def _with_unit(line, column):
    text = number(line[column])
    return f"{text} {line['unit']}".strip() if text else ""


def section_tables(rows):
    "Every section: cases down, what was measured across, medians with quartiles."
    parts = []
    for section in dict.fromkeys(r.section for r in rows if r.section != "profile"):
        for quantity in dict.fromkeys(r.quantity for r in rows if r.section == section):
            own = [r for r in rows if (r.section, r.quantity) == (section, quantity)]
            across = list(dict.fromkeys(r.what for r in own))
            cells = {(r.case, r.what): _cell(r) for r in own}
            down = dict.fromkeys(r.case for r in own)
            lines = [[case, *(cells.get((case, what), "") for what in across)] for case in down]
            parts.append(f"## {section}: {quantity}\n\n{markdown(['case', *across], lines)}")
    return "\n\n".join(parts)


def profile_table(targets, rows):
    "Of the steps that miss their target: how many operations, beside the plain step, and which take longest."
    missed = [v["what"] for v in (verdict(t, rows) for t in targets if t.section == "steps") if v["verdict"] != "met"]
    lines = []
    for case in missed:
        own = [r for r in rows if (r.section, r.case) == ("profile", case)]
        counts = {r.what: number(r.value) for r in own if r.quantity == "count"}
        longest = ", ".join(f"{r.what} {r.value:.0%}" for r in own if r.quantity == "share")
        if own:
            lines.append([case, f"{counts['operations']} ({counts['of plain']})", longest])
    return markdown(["step", "operations (plain)", "longest, share of all operations' time"], lines) if lines else ""


def _cell(row):
    if row.value != row.value:
        return row.note or "not measured"
    spread = f" ({number(row.low)}, {number(row.high)})" if row.rounds > 1 and row.low == row.low else ""
    return number(row.value) + spread


def report(machine, rows, targets, title="What mmlit costs"):
    "The whole page of results as Markdown."
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [f"# {title}", f"{about}. Medians, quartiles in brackets; nbs/speed.ipynb explains the columns."]
    parts += ["## Targets", targets_table(targets, rows)]
    if missed := profile_table(targets, rows):
        parts += ["## Where the time of the steps goes that miss their target", missed]
    parts.append(section_tables(rows))
    return "\n\n".join(parts) + "\n"
