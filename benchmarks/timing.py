"Times of several functions in turns, as ratios to the first of them; peaks of memory; what machine it was."

import gc
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Effort:
    "How long to measure: each function until `seconds` are spent on it, at most `rounds` times, at least `least`."

    seconds: float = 1.5
    rounds: int = 40
    least: int = 3
    quick: bool = False  # the smallest problems that still go through all of the code


@dataclass(frozen=True)
class Timing:
    "Seconds of one function, and those of the first function in the same rounds."

    seconds: np.ndarray
    base: np.ndarray

    @property
    def ratios(self):
        return self.seconds / self.base


def cpu_clock(call):
    "CPU seconds of this thread: what other processes do beside it does not count. Torch has one thread here."
    start = time.thread_time()
    call()
    return time.thread_time() - start


def process_clock(call):
    "CPU seconds of all threads of this process, for libraries that start threads of their own."
    start = time.process_time()
    call()
    return time.process_time() - start


def cuda_clock(call):
    "Seconds between two events on the GPU, when both have come: what waits in between counts."
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def clock_of(device):
    return cuda_clock if torch.device(device).type == "cuda" else cpu_clock


def interleaved(calls, effort, clock=cpu_clock):
    """Time functions in turns; `calls` is name -> function, the first is the one that others are compared with.

    In each round every function runs once, so that what slows the machine down for a while slows all of them down. The
    order moves on by one place each round. A function that has had its time drops out, the first one stays.
    """
    names, first = list(calls), next(iter(calls))
    seconds = {name: [] for name in names}
    base = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        clocks = {name: _Repeated(calls[name], clock) for name in names}
        for name in names[1:]:
            if clocks[name].warm > effort.seconds:  # slow enough to be its own measurement
                took = clocks[first]()
                seconds[name].append(clocks[name].warm)
                for times in base[name], seconds[first], base[first]:
                    times.append(took)
        for turn in range(effort.rounds):
            others = [n for n in names[1:] if not _done(seconds[n], effort)]
            if not others and (len(names) > 1 or _done(seconds[first], effort)) or _done(seconds[first], effort, 4):
                break
            order = [first, *others]
            order = order[turn % len(order) :] + order[: turn % len(order)]
            took = {name: clocks[name]() for name in order}
            for name in order:
                seconds[name].append(took[name])
                base[name].append(took[first])
    finally:
        gc.enable()
    return {name: Timing(np.array(seconds[name]), np.array(base[name])) for name in names}


SHORT = 0.002  # seconds; what is shorter is run several times in a row


class _Repeated:
    "Seconds of one run, from so many in a row that they can be measured."

    def __init__(self, call, clock):
        self.call, self.clock = call, clock
        self.warm = clock(call)  # the first run makes buffers, and shows what is slow
        again = clock(call) if self.warm < 1 else self.warm
        self.times = min(20, max(1, round(SHORT / max(again, 1e-6))))

    def __call__(self):
        return self.clock(self._all) / self.times

    def _all(self):
        for _ in range(self.times):
            self.call()


def _done(seconds, effort, times=1):
    "Has a function had its time? One round is enough where it alone takes twice the time."
    total = sum(seconds)
    return total > 2 * times * effort.seconds or (total > times * effort.seconds and len(seconds) >= effort.least)


def quartiles(values):
    "Lower quartile, median, upper quartile."
    return tuple(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))


def peak_memory(call, device="cpu"):
    "Bytes that were held at once while `call` ran, beyond what was held before."
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(np.cumsum([0, *changes]).max(), 0)


def cpu_model():
    "What the processor calls itself."
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


PACKAGES = ("torch", "fastai", "numpy", "scipy", "scikit-learn")


def machine(device="cpu"):
    "What the numbers were measured on; nothing that names the machine or its folders."
    found = dict(cpu=cpu_model(), cores=os.cpu_count(), memory_gib=_memory_gib(), system=platform.system())
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found | dict(python=platform.python_version()) | {p: importlib.metadata.version(p) for p in PACKAGES}


def _memory_gib():
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return None
