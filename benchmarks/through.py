"Through the learner, the audit and the command line: what a user waits for."

import os
import resource
import subprocess
import sys
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from mmlit import audit, multimodal_data, multimodal_dls, multimodal_learner
from mmlit.fitting import train_run
from mmlit.fusion.heads import ConcatHead
from mmlit.learner import joint_run
from mmlit.methods.baselines import MultiLoss
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling
from mmlit.methods.tcmax import TCMax
from mmlit.permutation import permutation_cmi
from mmlit.training import Budget

from .rows import Case, ratio_rows, seconds_row
from .timing import clock_of, interleaved, process_clock

ROOT = Path(__file__).resolve().parents[1]
CALLBACKS = {
    "TCMax": TCMax,
    "MCR": MCR,
    "MCR, one permutation": partial(MCR, permutations=1),
    "MultiModal": MultiModal,
    "AGM": partial(GradientModulation),
    "AGM lr": partial(GradientModulation, mode="lr"),
    "resampling": partial(ModalityResampling, warmup=0),
    "MultiLoss": MultiLoss,
}


def vectors(n=2048, dim=32, modalities=3, classes=4):
    "A small data set of vectors that says something about its classes."
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(modalities, classes, dim, generator=generator)
    xs = {f"x{m}": centre[y] + 2 * torch.randn(n, dim, generator=generator) for m, centre in enumerate(centres)}
    return multimodal_data({name: x.numpy() for name, x in xs.items()}, y.numpy())


# ---- training


def lean_epoch(model, optimiser, dls):
    "One epoch on the loader as it is, and a pass over the validation part."
    model.train()
    for *xs, y in dls.train:
        loss = F.cross_entropy(model(*xs), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return answers(model, dls.valid)


@torch.no_grad()
def answers(model, loader):
    model.eval()
    pairs = [(model(*xs), y) for *xs, y in loader]
    out, y = (torch.cat(parts) for parts in zip(*pairs))
    return out, F.cross_entropy(out, y), (out.argmax(1) == y).float().mean()


def fused_adam(model):
    "The cheapest optimiser that trains the same, with fastai's decay."
    return torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01, fused=True)


def an_epoch(learn):
    "A function that trains a learner for one more epoch."

    def epoch():
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 3e-3)

    return epoch


def learner_against_loop(effort, device="cpu"):
    "An epoch of `multimodal_learner`, plain, over one of a lean loop on the same loaders."
    dls = multimodal_dls(vectors(400 if effort.quick else 2048), device=device)
    learn, lean = multimodal_learner(dls), multimodal_learner(dls).model
    optimiser = fused_adam(lean)
    calls = {"lean loop": lambda: lean_epoch(lean, optimiser, dls), "multimodal_learner": an_epoch(learn)}
    return ratio_rows("learner", "an epoch", interleaved(calls, effort, clock_of(device)))


def run_against_loop(effort, device="cpu"):
    "A run of `compare` and `audit`: loaders, model, training, answers; over a lean loop that does the same."
    data, budget = vectors(400 if effort.quick else 2048), Budget(epochs=2 if effort.quick else 10)

    def lean():
        dls = multimodal_dls(data, bs=budget.bs, device=device)
        model = multimodal_learner(dls, width=budget.width, head=budget.head).model
        optimiser = fused_adam(model)
        for _ in range(budget.epochs):
            lean_epoch(model, optimiser, dls)
        return answers(model, dls[1]), answers(model, dls[2])

    calls = {"lean loop": lean, "train_run": lambda: train_run(joint_run(), data, 0, budget)}
    return ratio_rows("learner", "a run of compare", interleaved(calls, effort, clock_of(device)))


def callbacks(effort, device="cpu"):
    "An epoch of each method's callback over a plain epoch of the learner."
    dls = multimodal_dls(vectors(400 if effort.quick else 2048), device=device)
    calls = {"plain": an_epoch(multimodal_learner(dls))}
    for name, make in CALLBACKS.items():
        calls[name] = an_epoch(multimodal_learner(dls, method=make()))
    return ratio_rows("learner", "an epoch of a method", interleaved(calls, effort, clock_of(device)))


# ---- functions and the audit


def pairs_of_an_additive_head(effort, device="cpu"):
    batch, head = 64 if effort.quick else 1024, ConcatHead((64, 64), 10).to(device)
    generator = torch.Generator().manual_seed(0)
    zs = [torch.randn(batch, 64, generator=generator).to(device) for _ in range(2)]
    y = torch.randint(10, (batch,), generator=generator).to(device)

    def ask():
        with torch.no_grad():
            permutation_cmi(head, zs, 0, y)

    timing = interleaved({"permutation_cmi": ask}, effort, clock_of(device))["permutation_cmi"]
    case = f"permutation_cmi, additive, all pairs, B={batch}"
    return [seconds_row("functions", case, "permutation_cmi", timing.seconds)]


def audit_of_mfeat(effort, device="cpu"):
    "The audit of a recipe with the default budget, every model trained anew."

    def ask():
        with tempfile.TemporaryDirectory() as out:
            audit(data="mfeat", out=out, workers=1, progress=False)

    seconds = [process_clock(ask)]
    return [seconds_row("audit", "audit of mfeat", "CPU seconds", seconds)]


# ---- start


def script():
    "Python that does what the installed command does."
    with open(ROOT / "pyproject.toml", "rb") as file:
        module, function = tomllib.load(file)["project"]["scripts"]["mmlit"].split(":")
    return f"import sys; from {module} import {function}; sys.argv[0] = 'mmlit'; sys.exit({function}())"


def cpu_seconds(code, *arguments):
    "CPU seconds of a new interpreter that runs `code`, and what it wrote."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


CORE = "import torch, fastai.callback.core"
FIRST_RUN = """
import os, sys, tempfile, time
import mmlit.cli
from mmlit import compare
from mmlit.learner import METHODS, Method, Run, register_method
METHODS["joint"]        # fills the registry, which imports every method
def make(dls, budget, models):
    print(time.process_time() - start, flush=True)
    os._exit(0)
register_method("first", Method("stops", lambda modalities: [Run("first", make)], lambda answers, data: {}))
start = time.process_time()
compare("emoji", ["first"], seeds=1, reference="first", out=tempfile.mkdtemp(), workers=1, progress=False)
"""


def starts(effort, device="cpu"):
    "Interpreters that start, beyond one that does nothing."
    times = 1 if effort.quick else 3
    codes = {"nothing": "pass", "import mmlit": "import mmlit"}
    if not effort.quick:
        codes |= {"core": CORE, "tcmax": "from mmlit import tcmax_loss", "help": script()}
    seconds = {name: [] for name in codes}
    for turn in range(times + 1):
        for name, code in codes.items():
            took, _ = cpu_seconds(code, *(["--help"] if name == "help" else []))
            if turn or effort.quick:  # the first one compiles modules
                seconds[name].append(took)

    def beyond(name, other):
        return [a - b for a, b in zip(seconds[name], seconds[other])]

    rows = [seconds_row("start", "import mmlit", "CPU seconds", beyond("import mmlit", "nothing"))]
    if effort.quick:
        return rows
    title = "from mmlit import tcmax_loss"
    rows.append(seconds_row("start", title, "CPU seconds", seconds["tcmax"]))
    rows.append(seconds_row("start", title, "beyond torch and fastai's callbacks", beyond("tcmax", "core")))
    return [*rows, seconds_row("start", "mmlit --help", "CPU seconds", seconds["help"])]


def first_run(effort, device="cpu"):
    seconds = [float(cpu_seconds(FIRST_RUN)[1].split()[-1]) for _ in range(3)]
    return [seconds_row("start", "mmlit compare", "from its imports to its first run", seconds)]


def cases():
    for quick in (False, True):
        yield Case("learner", "an epoch", learner_against_loop, quick, cuda=True)
        yield Case("learner", "a run of compare", run_against_loop, quick)
        yield Case("learner", "an epoch of a method", callbacks, quick, cuda=True)
        batch = 64 if quick else 1024
        name = f"permutation_cmi, additive, all pairs, B={batch}"
        yield Case("functions", name, pairs_of_an_additive_head, quick, cuda=True)
        yield Case("start", "starts", starts, quick)
    yield Case("audit", "audit of mfeat", audit_of_mfeat)
    yield Case("start", "mmlit compare", first_run)
