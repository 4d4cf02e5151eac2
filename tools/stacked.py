"""All seeds of one small architecture in one vmapped step, against one after the other: what it gains on this machine.

Writes results/stacked.csv. Each row: how many models, the thread CPU time of a step of all of them, one after the other
and stacked (medians of interleaved repetitions, one thread), and the gain. Both ways train the same models on the same
batches with the same Adam; that the weights agree is checked.

What it says: below five models of one architecture the stacked step is slower, at 16 about twice as fast, at 64 three
to five times. An audit trains seven or eight models of as many architectures for each seed, a comparison a few seeds
of each, with callbacks that look at one model and an epoch that is chosen for each: so runs are trained one by one, and
one to a core.
"""

import copy
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel

MODALITIES, FEATURES, CLASSES = 3, 32, 10


def model_of(seed: int, width: int) -> FusionModel:
    torch.manual_seed(seed)
    encoders = [
        nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        for _ in range(MODALITIES)
    ]
    return FusionModel(encoders, HEADS["concat"]((width,) * MODALITIES, CLASSES))


def adam_of(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-5, weight_decay=0.01, fused=True)


def one_by_one(models, batches) -> float:
    "CPU seconds of a step of all models, each trained by itself."
    optimisers = [adam_of(m.parameters()) for m in models]
    start = time.thread_time()
    for model, optimiser, (xs, y) in zip(models, optimisers, batches):
        for x, labels in zip(xs, y):
            cross_entropy(model(*x), labels).backward()
            optimiser.step()
            optimiser.zero_grad()
    return (time.thread_time() - start) / len(batches[0][1])


def stacked(models, batches) -> tuple[float, dict]:
    "The same in one step for all models; and their weights."
    weights, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
    optimiser = adam_of(weights.values())

    def loss(weights, buffers, xs, labels):
        return cross_entropy(functional_call(base, (weights, buffers), tuple(xs)), labels)

    gradient = vmap(grad(loss))
    xs, y = torch.stack([b[0] for b in batches], 1), torch.stack([b[1] for b in batches], 1)
    start = time.thread_time()
    for x, labels in zip(xs, y):  # (models, modalities, B, features), (models, B)
        found = gradient({name: w.detach() for name, w in weights.items()}, buffers, x, labels)
        for name, w in weights.items():
            w.grad = found[name]
        optimiser.step()
    return (time.thread_time() - start) / len(y), weights


def measured(n: int, width: int, B: int, steps: int = 20, repetitions: int = 5) -> dict:
    "The two ways, and that they train the same weights."
    generator, times = torch.Generator().manual_seed(0), []
    batches = [
        (
            torch.randn(steps, MODALITIES, B, FEATURES, generator=generator),
            torch.randint(CLASSES, (steps, B), generator=generator),
        )
        for _ in range(n)
    ]
    for _ in range(repetitions):
        models = [model_of(seed, width) for seed in range(n)]
        together, weights = stacked(models, batches)
        times.append((one_by_one(models, batches), together))
        for i, model in enumerate(models):
            for name, p in model.named_parameters():
                torch.testing.assert_close(weights[name][i], p, rtol=1e-3, atol=1e-4)
    alone, together = (1000 * statistics.median(t) for t in zip(*times))
    gain = statistics.median(a / b for a, b in times)
    return dict(models=n, width=width, B=B, one_by_one_ms=round(alone, 2), stacked_ms=round(together, 2), gain=gain)


def main() -> None:
    torch.set_num_threads(1)
    rows = [measured(n, width, B) for width, B in ((64, 64), (64, 16), (16, 64)) for n in (1, 4, 16, 64)]
    table = pd.DataFrame(rows).round({"gain": 2})
    table.to_csv(Path(__file__).parents[1] / "results/stacked.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
