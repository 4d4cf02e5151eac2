"What several test files draw from."

import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import mmlit
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def public_functions():
    "The functions that the modules of the package offer, by name."
    found = {}
    for module in pkgutil.walk_packages(mmlit.__path__, "mmlit."):
        loaded = importlib.import_module(module.name)
        own = {name: getattr(loaded, name) for name in getattr(loaded, "__all__", ())}
        found |= {
            f"{module.name}.{name}" if name in found else name: f for name, f in own.items() if inspect.isfunction(f)
        }
    return found


def gaussians(rng, n, d, rho):
    "Two arrays (n, d), each column of the one correlated with that of the other."
    x = rng.normal(size=(n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(n, d))


def linear_model(name, M, C=3, seed=0):
    "A model of linear encoders, with features of different widths, under a head of `HEADS`; and a batch of four."
    torch.manual_seed(seed)
    dims = tuple(range(4, 4 + M))
    return FusionModel([nn.Linear(5, d) for d in dims], HEADS[name](dims, C)).eval(), tuple(
        torch.randn(4, 5) for _ in range(M)
    )


def tracked_files(root):
    "Names of the files that git tracks; of a source distribution, which has no git: of all."
    if not (root / ".git").exists():
        return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and Path(root, name).exists()]


_FORKS = """
import os, sys, fastai.callback.all, matplotlib.pyplot, pandas, scipy.stats, sklearn.linear_model, torch
first, code = eval(sys.argv[1])
for line in first:
    if child := os.fork():
        if os.waitpid(child, 0)[1]: sys.exit(f"failed after {line}")
        print("---", flush=True)
    else:
        exec(f"{line}\\n{code}", {})
        sys.stdout.flush()
        os._exit(0)
"""


def said_after(first, code):
    """What `code` prints after each of the lines `first`, each in a process of its own that never imported mmlit.
    They are forked from one that has loaded what mmlit stands on, which takes longer than all the rest."""
    words = [sys.executable, "-W", "ignore", "-c", _FORKS, repr((first, code))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [said.strip() for said in done.stdout.split("---")[:-1]]
