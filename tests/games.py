"What the tests of the exchange game and of MCR draw from: models, features, the game with detached players."

from itertools import product

import torch
from common import generator
from torch import nn

from mmlit.fusion.heads import ConcatHead, FiLMHead, GatedHead, MLPHead, SumHead
from mmlit.fusion.models import FusionModel
from mmlit.methods.exchange import proper_subsets
from mmlit.permutation import js_divergence_with_logits

ADDITIVE, OTHER = (SumHead, ConcatHead), (FiLMHead, GatedHead, MLPHead)
DIMS = (3, 4, 2, 5)


def features(dims, batch=4, seed=0, scale=1.0, dtype=torch.float64):
    gen = generator(seed)
    return [(scale * torch.randn(batch, d, generator=gen, dtype=dtype)).requires_grad_() for d in dims]


def model_of(kind, dims, classes=4, seed=0, dtype=torch.float64, **kwargs):
    torch.manual_seed(seed)
    return FusionModel([nn.Identity() for _ in dims], kind(dims, classes, **kwargs)).to(dtype)


def gradients(loss, model, zs):
    wrt = [*zs, *model.parameters()]
    return [
        torch.zeros_like(w) if g is None else g
        for w, g in zip(wrt, torch.autograd.grad(loss, wrt, allow_unused=True, retain_graph=True))
    ]


def halves(head, zs):
    "The slices W_m z_m of a head whose first layer is linear, and what makes answers of their sum, all by hand."
    if isinstance(head, SumHead):
        return [linear(z) for linear, z in zip(head.linears, zs)], lambda total: total
    first, rest = (head.linear, None) if isinstance(head, ConcatHead) else (head.layers[0], head.layers[1:])
    rows = [z @ w.T for z, w in zip(zs, first.weight.split(head.dims, 1))]
    return rows, lambda total: total + first.bias if rest is None else rest(total + first.bias)


class Constant(nn.Module):
    "A function of a module with all its parameters detached."

    def __init__(self, module, f):
        super().__init__()
        self.module, self.f = module, f

    def forward(self, x):
        return self.f(x)

    def constant(self, x):
        tensors = {f"module.{n}": p.detach() for n, p in self.module.named_parameters()}
        return torch.func.functional_call(self, tensors, (x,))


def players_of(model, zs, live, owned="slices"):
    "Rows of a player each, a gradient for `live` only, and the function from rows to answers; shared are constants."
    head = model.head
    if owned == "slices" and not isinstance(head, (FiLMHead, GatedHead)):
        rows, finish = halves(head, zs)
        constant = Constant(head, finish).constant
        return [r if m == live else r.detach() for m, r in enumerate(rows)], lambda rows: constant(sum(rows))
    return [z if m == live else z.detach() for m, z in enumerate(zs)], Constant(head, lambda rows: head(rows)).constant


def naive_divergence(fuse, rows, clean, subset):
    "J_S by loops over samples and all combinations of partners."
    members, values = [m for m, inside in enumerate(subset) if inside], []
    for i in range(len(clean)):
        for partner in product(range(len(clean)), repeat=len(members)):
            row = dict(zip(members, partner))
            values.append(
                js_divergence_with_logits(fuse([r[row.get(m, i)][None] for m, r in enumerate(rows)])[0], clean[i])
            )
    return torch.stack(values).mean()


def naive_game(model, zs, k, clean_grad, owned="slices"):
    "The sum of the players' own losses."
    total = 0.0
    for m in range(len(zs)):
        rows, fuse = players_of(model, zs, m, owned)
        clean = fuse(rows) if clean_grad == "full" else fuse(rows).detach()
        for subset in proper_subsets(len(zs)).tolist():
            total = total - (1.0 if subset[m] else k) * naive_divergence(fuse, rows, clean, subset)
    return total


def published_terms(model, zs, strategy):
    "The public code's terms for two modalities and all pairs: one side of each divergence is cut off, nothing else."
    (p1, p2), finish = halves(model.head, zs)
    clean = finish(p1 + p2)
    first = lambda a, b: js_divergence_with_logits(finish(a[:, None] + b[None]), clean[None]).mean()
    second = lambda a, b: js_divergence_with_logits(finish(a[:, None] + b[None]), clean[:, None]).mean()
    if strategy == "collaborative":
        return -first(p1, p2) - second(p1, p2)
    own = -first(p1, p2.detach()) - second(p1.detach(), p2)
    return own if strategy == "independent" else own + first(p1.detach(), p2) + second(p1, p2.detach())
