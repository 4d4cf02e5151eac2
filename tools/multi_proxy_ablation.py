"""Take MultiModal loss apart on three synthetic designs: which of its terms helps, by how much, and are its unimodal
scores upright?

    OMP_NUM_THREADS=1 python tools/multi_proxy_ablation.py      # a few minutes on one core

writes results/multi_proxy_ablation.csv, one line per run: design, head, seed, accuracies on 2,000 fresh samples, and
what became of the modalities and of the proxies.

Encoders and training follow the authors' synthetic notebook: linear encoders, whole batch, Adam 5e-4 with weight decay
1e-4, and a stop when the training loss has not fallen by 1e-4 for 100 epochs. Their generator is not published, so the
data are a stand-in with n/d = 5, made small. All seeds of a head train at once: parameters are stacked along a first
axis, and Adam works number by number.
"""

import csv
import math
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from mmlit.fusion.heads import SumHead
from mmlit.fusion.models import FusionModel
from mmlit.methods.multimodal_loss import MultiProxyHead, ScaledSumHead, unimodal_accuracy

OUT = Path(__file__).resolve().parent.parent / "results" / "multi_proxy_ablation.csv"
D = 40  # features per modality
N, N_TEST = 200, 2000
WIDTHS = (16, 16, 16)  # of the layers of an encoder
EPOCHS, PATIENCE = 1500, 100
SEEDS = 20

DESIGNS = dict(  # strength of each modality's class signal
    # one informative modality, two that are nearly noise
    one_easy=dict(classes=2, sigma=(1.7, 0.25, 0.25)),
    # the same with four classes
    one_easy_4=dict(classes=4, sigma=(2.5, 0.4, 0.4)),
    # each sample is informative in one modality, drawn at random
    random=dict(classes=2, sigma=(3.0, 3.0, 3.0), one=True),
)


class Parts(MultiProxyHead):
    "Multi-proxy head with its two terms weighted."

    def __init__(self, dims, n_classes, z=1.0, o=1.0, **options):
        super().__init__(dims, n_classes, **options)
        self.z, self.o = z, o

    def forward(self, zs):
        terms = self.terms(zs)
        return self.z * terms.z + self.o * terms.o


class Logits(SumHead):
    "Sum of unimodal logits."

    unimodal_logits = SumHead.contributions


class LinearOnProbs(Logits):
    "The paper's NN baseline: a linear layer on the joined unimodal probabilities."

    def __init__(self, dims, n_classes):
        super().__init__(dims, n_classes)
        self.out = nn.Linear(len(self.dims) * n_classes, n_classes)

    def forward(self, zs):
        return self.out(torch.cat(tuple(self.unimodal_logits(zs).softmax(-1)), dim=1))


def parts(**options):
    return lambda dims, n_classes: Parts(dims, n_classes, **options)


HEADS = {  # name: (head, settings of `train`)
    "as published": (parts(), {}),
    "aligned": (parts(init="aligned"), {}),
    "unimodal losses": (parts(), dict(auxiliary=1.0)),
    "decoupled decay": (parts(), dict(optimiser=torch.optim.AdamW)),
    "z only": (parts(o=0.0), {}),
    "o only": (parts(z=0.0), {}),
    "20 o only": (parts(z=0.0, o=20.0), {}),
    "z/20": (parts(z=1 / 20), {}),
    "proxy axis": (parts(axis="proxy"), {}),
    "proxy axis, 20 z": (parts(axis="proxy", z=20.0), {}),
    "K=1": (parts(k=1), {}),
    "K=5": (parts(k=5), {}),
    "sum p": (lambda *a: ScaledSumHead(*a, scale=1.0), {}),
    "20 sum p": (ScaledSumHead, {}),
    "sum logits": (Logits, {}),
    "linear on p": (LinearOnProbs, {}),
    "modality 1 alone": (Logits, {}),
}
MAIN = ["as published", "aligned", "unimodal losses", "z only", "sum p", "20 sum p", "sum logits", "modality 1 alone"]
PLAN = [("one_easy", head) for head in HEADS] + [(design, head) for design in ("one_easy_4", "random") for head in MAIN]


class Net(FusionModel):
    "Linear encoders and a head; answers with the logits of the head and of each modality."

    def forward(self, *xs):
        zs = self.encode(*xs)
        return self.fuse(zs), self.head.unimodal_logits(zs)


def class_means(classes, generator):
    "Unit vectors at equal angles, (C, D): plus and minus one direction for C = 2."
    directions = torch.linalg.qr(torch.randn(D, classes, generator=generator)).Q.T
    return math.sqrt(classes / (classes - 1)) * (directions - directions.mean(0))


def draw(n, means, sigma, generator, one=False):
    "x_m = noise + sigma_m mean_m(y); with `one` the signal stands in one random modality of each sample."
    y = torch.arange(n) % len(means[0])
    chosen = torch.randint(len(sigma), (n, 1), generator=generator)
    return [
        torch.randn(n, D, generator=generator) + s * mean[y] * (chosen == m if one else 1)
        for m, (s, mean) in enumerate(zip(sigma, means))
    ], y


def prepare(design, head, seed):
    "Training inputs, test inputs and the untrained model of one run."
    d, generator = DESIGNS[design], torch.Generator().manual_seed(seed)
    means = [class_means(d["classes"], generator) for _ in d["sigma"]]
    (xs, _), (xs_test, _) = (draw(n, means, d["sigma"], generator, d.get("one", False)) for n in (N, N_TEST))
    seen = 1 if head == "modality 1 alone" else len(xs)

    torch.manual_seed(seed)
    encoders = [nn.Sequential(*(nn.Linear(a, b) for a, b in zip((D, *WIDTHS), WIDTHS))) for _ in range(seen)]
    make_head, _ = HEADS[head]
    return xs[:seen], xs_test[:seen], Net(encoders, make_head((WIDTHS[-1],) * seen, d["classes"]))


def mean_cross_entropy(logits, y):
    "Of logits (..., B, C), shape (...)."
    return -logits.log_softmax(-1).gather(-1, y[:, None].expand(*logits.shape[:-1], 1)).mean((-2, -1))


def train(forward, params, xs, y, auxiliary=0.0, optimiser=torch.optim.Adam):
    "Train stacked models, each until its own loss stops falling; parameters, losses and epochs at that moment."
    step = optimiser(params.values(), lr=5e-4, weight_decay=1e-4)
    final = {name: q.detach().clone() for name, q in params.items()}
    n = len(xs[0])
    best, last, wait = torch.full((n,), math.inf), torch.zeros(n), torch.zeros(n)
    epochs = torch.zeros(n, dtype=torch.long)
    running = torch.ones(n, dtype=torch.bool)

    while running.any():
        f, u = forward(params, xs)  # (S, B, C), (S, M, B, C)
        losses = mean_cross_entropy(f, y)
        if auxiliary:
            losses = losses + auxiliary * mean_cross_entropy(u, y).sum(1)
        step.zero_grad()
        losses.sum().backward()
        step.step()

        losses, improved = losses.detach(), losses.detach() < best - 1e-4
        best, wait = torch.where(improved, losses, best), torch.where(improved, 0, wait + 1)
        epochs[running] += 1
        last[running] = losses[running]
        over = running & ((wait >= PATIENCE) | (epochs >= EPOCHS))
        for name, q in params.items():
            final[name][over] = q.detach()[over]
        running &= ~over
    return final, last, epochs


def run(design, head, seeds):
    "Train one head on one draw per seed; for each seed a dictionary of what came out."
    torch.set_flush_denormal(True)  # saturated softmaxes make denormal numbers, which are slow
    try:
        return rows_of(design, head, seeds)
    finally:
        torch.set_flush_denormal(False)  # it holds for the process, of which others may need such numbers


def rows_of(design, head, seeds):
    xs, xs_test, models = zip(*(prepare(design, head, seed) for seed in seeds))
    xs, xs_test = ([torch.stack(x) for x in zip(*inputs)] for inputs in (xs, xs_test))
    y, y_test = (torch.arange(n) % DESIGNS[design]["classes"] for n in (N, N_TEST))

    params, _ = stack_module_state(models)
    before = {name: q.detach().clone() for name, q in params.items()}
    forward = vmap(lambda params, xs: functional_call(models[0], params, tuple(xs)))
    final, losses, epochs = train(forward, params, xs, y, **HEADS[head][1])
    with torch.no_grad():
        (f, u), (f_test, u_test) = forward(final, xs), forward(final, xs_test)

    rows = []
    for i, seed in enumerate(seeds):
        row = dict(
            design=design,
            head=head,
            seed=seed,
            accuracy=(f_test[i].argmax(1) == y_test).float().mean().item(),
            train_accuracy=(f[i].argmax(1) == y).float().mean().item(),
            loss=losses[i].item(),
            epochs=epochs[i].item(),
        )
        if "head.proxies" in final:
            was, now = before["head.proxies"][i], final["head.proxies"][i]
            row["revived"] = (now[was < 0] > 0).float().mean().item()

        accuracy, renamed = unimodal_accuracy(u_test[i], y_test)
        confident = (u[i].softmax(-1).amax(-1) > 0.9).float().mean(1)
        for name, values in dict(accuracy=accuracy, renamed=renamed, confident=confident).items():
            row |= {f"{name}_{m + 1}": value for m, value in enumerate(values.tolist())}
        rows.append(row)
    return rows


if __name__ == "__main__":
    with open(OUT, "w", newline="") as file:
        for job in PLAN:
            rows = run(*job, range(SEEDS))
            if job == PLAN[0]:
                table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
            table.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
            file.flush()
            print(f"{job[0]:11s} {job[1]:18s} {sum(row['accuracy'] for row in rows) / len(rows):.3f}", flush=True)
