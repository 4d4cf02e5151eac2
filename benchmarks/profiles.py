"Where the time of a step goes: torch's operations by their own time, for each step that has a target."

from collections import defaultdict
from functools import partial

import numpy as np
import torch

from . import steps
from .rows import Case, Row
from .targets import TARGETS

STEPS, MOST = 20, 8  # steps that are looked at, and operations that are written down


def own_times(step, n=STEPS):
    """Microseconds of one step by operation, without those that it calls; and how many operations of torch it makes.

    Of each operation the median over the steps: what another process takes while one of them runs is not its time.
    """
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(n):
            step()
    times = defaultdict(list)
    for event in sorted(seen.events(), key=lambda e: e.time_range.start):
        times[event.key].append(event.self_cpu_time_total)
    count = sum(len(found) for name, found in times.items() if name.startswith("aten::")) / n
    return {name: sum(np.median(found[k::per]) for k in range(per)) for name, found, per in _each(times, n)}, count


def _each(times, n):
    "Operations that each step makes equally often, and how often."
    return [(name, found, len(found) // n) for name, found in times.items() if len(found) >= n and not len(found) % n]


def measure(setting, method, effort, device="cpu"):
    "Rows of the operations that take most of a step, and of how many there are beside those of the plain step."
    case = f"{setting}: {method}"
    n = 2 if effort.quick else STEPS
    times, count = own_times(steps.step_of(method, setting, device), n)
    _, plain = own_times(steps.step_of("plain", setting, device), n)
    rows = [Row("profile", case, "operations", "count", count), Row("profile", case, "of plain", "count", plain)]
    largest = sorted(times, key=lambda name: -times[name])[:MOST]
    return rows + [Row("profile", case, name, "share", times[name] / sum(times.values())) for name in largest]


def cases():
    settings = {str(s): s for s in steps.SETTINGS}
    for target in TARGETS:
        if target.section == "steps":
            run = partial(measure, settings[target.case], target.what)
            yield Case("profile", f"{target.case}: {target.what}", run)
    yield Case("profile", f"{steps.QUICK[0]}: MCR", partial(measure, steps.QUICK[0], "MCR"), quick=True)
