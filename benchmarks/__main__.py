"The runner: `make bench`, or `python -m benchmarks --quick`."

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", MPLBACKEND="agg")  # before torch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch  # noqa: E402

from . import counts, memory, naive, peers, profiles, steps, tables, through  # noqa: E402
from .targets import TARGETS  # noqa: E402
from .timing import Effort, machine  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MODULES = (steps, profiles, through, memory, counts, naive, peers)
SECTIONS = ("steps", "profile", "learner", "functions", "audit", "start", "memory", "counts", "naive", "peers")


def chosen(quick=False, device="cpu", only=SECTIONS, case=""):
    "The cases to measure."
    every = [c for module in MODULES for c in module.cases()]
    on_gpu = torch.device(device).type == "cuda"
    return [c for c in every if c.quick == quick and c.section in only and case in c.name and (c.cuda or not on_gpu)]


class Runner:
    "Measures cases, and remembers which of them a row came from."

    def __init__(self, effort, device="cpu", say=print):
        self.effort, self.device, self.say = effort, device, say
        self.came_from = {}

    def measure(self, case):
        "Rows of a case; one that fails is an error of the whole run, and says which it was."
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Adam-like")  # AGM is measured with Adam on purpose
                rows = case.run(effort=self.effort, device=self.device)
        except Exception as error:
            error.add_note(f"while measuring {case.section}: {case.name}")
            raise
        self.came_from |= {(r.section, r.case): case for r in rows}
        self.say(f"{time.perf_counter() - start:6.1f} s  {case.section}: {case.name}")
        return rows

    def again(self, section, name):
        "The rows that are called so, measured once more."
        rows = self.measure(self.came_from[section, name])
        return [r for r in rows if (r.section, r.case) == (section, name)]


def options(arguments):
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest problems, about a minute: does it all run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--seconds", type=float, default=1.5, help="spent on each function of a case")
    parser.add_argument("--write", action="store_true", help="keep the numbers as the new committed table")
    parser.add_argument("--no-check", action="store_true", help="do not compare with the committed table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the committed table")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder for what was measured now")
    given = parser.parse_args(arguments)
    given.only = given.only.split(",")
    if unknown := sorted(set(given.only) - set(SECTIONS)):
        parser.error(f"unknown sections {unknown}; known: {', '.join(SECTIONS)}")
    return given


def check(rows, committed, about, runner):
    "The rows with second measurements, and lines that say what became slower."
    was, before = committed
    rows, worse = tables.settled(rows, before, runner.again, say=runner.say)
    lines = [
        f"{section}, {case}: {what} {new:.3g} times the base, committed {old:.3g}"
        for (section, case, what, _), (new, old) in worse.items()
    ]
    lines += [f"{key[0]}, {key[1]}: {key[2]} is committed and was not measured" for key in tables.lost(rows, before)]
    differs = {k: (was.get(k), v) for k, v in about.items() if was.get(k) != v}
    if lines and differs:
        lines.append(f"the committed numbers are of another machine (then, now): {differs}")
    return rows, lines


def files(folder, device, quick=False):
    "Where results are: the JSON and the page, of the CPU or a GPU."
    name = "speed" + ("_cuda" if torch.device(device).type == "cuda" else "") + ("_quick" if quick else "")
    return folder / f"{name}.json", folder / f"{name}.md"


def keep(folder, given, about, rows):
    "Writes the JSON and the page."
    data, page = files(folder, given.device, given.quick)
    tables.save(data, about, rows, targets_of(given))
    page.write_text(tables.report(*tables.load(data), targets_of(given)), encoding="utf8")  # the digits that were kept


def targets_of(given):
    "On the CPU, and of the problems that they are about."
    return [] if given.quick or torch.device(given.device).type == "cuda" else TARGETS


def main(arguments=None):
    given = options(arguments)
    if torch.device(given.device).type == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no CUDA device here, and --device cuda needs one")
        return 0
    torch.set_num_threads(1)
    effort = Effort(0.02, 5, 2, quick=True) if given.quick else Effort(given.seconds)
    runner = Runner(effort, given.device)
    about = machine(given.device) | {"peers": peers.versions()}

    rows = []
    for case in chosen(given.quick, given.device, given.only, given.case):
        rows += runner.measure(case)
        keep(given.out, given, about, rows)  # what was measured so far survives an interruption
    committed = tables.load(files(given.results, given.device, given.quick)[0])
    worse = []
    if committed[1] and not given.no_check:
        rows, worse = check(rows, committed, about, runner)
    keep(given.out, given, about, rows)
    if given.write:
        everything = sorted(tables.merged(committed[1], rows), key=lambda r: SECTIONS.index(r.section))
        keep(given.results, given, about, everything)
    asked = [t for t in targets_of(given) if t.section in given.only and given.case in t.case]
    print(tables.report(about, rows, asked))
    if worse:
        print("slower than the committed table:", *worse, sep="\n  ")
    return int(bool(worse) and not given.write)


if __name__ == "__main__":
    sys.exit(main())
