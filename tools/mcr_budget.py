"""How many answers, and how many pairs, does MCR need a step? `results/mcr_budget.csv`, which 20_mcr reads.

python tools/mcr_budget.py
"""

from pathlib import Path

import pandas as pd
import torch

from mmlit.data.tasks import shared_unique_task
from mmlit.fusion.heads import HEADS, VectorEncoder
from mmlit.fusion.models import FusionModel
from mmlit.methods.exchange import mipd
from mmlit.methods.mcr import MCRHeads, mcr_loss

ALL = 10**9
BUDGETS = dict(all={"rows": ALL, "pairs": ALL}, default={}, least={"rows": 1, "pairs": 2**11})
# head, size of a batch, steps, weight of the game: tenfold that of the defaults, so that its noise would be seen
SETTINGS = [("concat", 64, 120, 1.0), ("concat", 256, 60, 1.0), ("attention", 32, 100, 1.0)]
TASK = shared_unique_task(shared=0.5, unique=(0.05, 0.45))


def standardised(n, seed, like=None):
    "Draws as tensors, scaled by the statistics of `like` (default: their own), and the statistics."
    drawn = TASK.sample(n, seed)
    xs = [torch.from_numpy(x) for x in drawn.xs.values()]
    like = [(x.mean(0), x.std(0)) for x in xs] if like is None else like
    return [(x - mean) / std for x, (mean, std) in zip(xs, like)], torch.from_numpy(drawn.y).long(), like


def trained(seed, head, batch, steps, weight, budget):
    "Accuracy and MIPD of both modalities on others, after a training in which only the budget differs."
    xs, y, like = standardised(800, seed)
    torch.manual_seed(seed)
    model = FusionModel([VectorEncoder(100, 16, hidden=(32,)) for _ in xs], HEADS[head]((16, 16), 5))
    heads, order, draws = (
        MCRHeads((16, 16), 5),
        torch.Generator().manual_seed(seed),
        torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(y), (batch,), generator=order)
        zs = model.encode(*(x[rows] for x in xs))
        loss = mcr_loss(model, zs, y[rows], heads, mipd_weight=weight, generator=draws, **budget).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    xs, y, _ = standardised(1000, 1000 + seed, like)
    with torch.no_grad():
        zs = model.encode(*xs)
        scores = mipd(model, zs, permutations=4, draw="shift", generator=torch.Generator().manual_seed(0)).mean(1)
        return (model.fuse(zs).argmax(1) == y).float().mean().item(), *scores.tolist()


def table(seeds=8):
    "A row for each training."
    rows = []
    for seed in range(seeds):
        for setting in SETTINGS:
            for name, budget in BUDGETS.items():
                rows.append([*setting[:2], name, seed, *trained(seed, *setting, budget)])
    return pd.DataFrame(rows, columns=["head", "batch", "budget", "seed", "accuracy", "mipd_0", "mipd_1"]).round(6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    table().to_csv(Path(__file__).parents[1] / "results" / "mcr_budget.csv", index=False)
