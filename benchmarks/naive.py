"Each method as its paper writes it, in loops, beside the form of the library: the same number first, then the times."

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F

from mmlit import mcr_loss, shapley_values, tcmax_loss
from mmlit.core import eval_mode
from mmlit.fusion.coalitions import coalitions
from mmlit.methods.exchange import mipd, proper_subsets
from mmlit.methods.mcr import MCRHeads, supervised_nt_xent
from mmlit.methods.modulation import muted_logits
from mmlit.methods.multimodal_loss import init_proxies, multi_proxy_logits
from mmlit.methods.shapley import valuate
from mmlit.permutation import permutation_cmi

from .rows import Case, ratio_rows
from .steps import WIDTH, Setting
from .timing import clock_of, interleaved

# ---- oracles


def tcmax_grid(contributions, y):
    "TCMax from the logits of all B**M pairings, one axis a modality."
    n, batch, _ = contributions.shape
    grid = contributions[0]
    for m in range(1, n):
        grid = grid[..., None, :] + contributions[m].view(*[1] * m, batch, -1)
    own = contributions.sum(0)[torch.arange(batch, device=y.device), y].mean()
    return grid.logsumexp(tuple(range(n + 1))) - own - math.log(batch)


def tcmax_loops(contributions, y):
    "TCMax pairing by pairing and class by class."
    n, batch, n_classes = contributions.shape
    total = 0.0
    for rows in itertools.product(range(batch), repeat=n):
        score = sum(contributions[m, i] for m, i in enumerate(rows))
        total = total + sum(score[c].exp() for c in range(n_classes))
    true = sum(contributions[:, i, y[i]].sum() for i in range(batch)) / batch
    return total.log() - true - math.log(batch)


def jensen_shannon(p, q):
    "Of two rows of logits, from its definition."
    p, q = p.softmax(-1), q.softmax(-1)
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2


def mipd_loops(model, xs, subset):
    "Mean divergence over all partners; every pair is encoded again."
    batch, members = len(xs[0]), [m for m, there in enumerate(subset.tolist()) if there]
    total = 0.0
    for i in range(batch):
        clean = model(*(x[i : i + 1] for x in xs))[0]
        for partner in itertools.product(range(batch), repeat=len(members)):
            rows = {m: j for m, j in zip(members, partner)}
            mixed = [x[(j := rows.get(m, i)) : j + 1] for m, x in enumerate(xs)]
            total = total + jensen_shannon(model(*mixed)[0], clean)
    return total / batch ** (len(members) + 1)


def nt_xent_loops(zs, y, temperature=0.5):
    "The supervised contrastive term, pair by pair."
    z, y, terms = torch.cat([F.normalize(z, dim=1) for z in zs]), y.tolist() * len(zs), []
    for i, j in itertools.product(range(len(y)), repeat=2):
        if i == j or y[i] != y[j]:
            continue
        e = [torch.exp(z[i] @ z[k] / temperature) for k in range(len(y))]
        terms.append(-torch.log(e[j] / (e[j] + sum(e[k] for k in range(len(y)) if y[k] != y[i]))))
    return torch.stack(terms).mean()


def mcr_loops(model, heads, xs, y):
    "The terms of MCR with the published weights, each from the inputs again."
    task = F.cross_entropy(model(*xs), y)
    alone = sum(F.cross_entropy(answer, y) for answer in heads(model.encode(*xs)))
    game = sum(mipd_loops(model, xs, subset) for subset in proper_subsets(len(xs)))
    contrast = nt_xent_loops(heads.embed(model.encode(*xs)), y)
    return task + 0.01 * alone - 0.1 * game + contrast


def shapley_orders(v):
    "The average gain over all orders."
    n = len(v).bit_length() - 1
    phi = torch.zeros_like(v[:n])
    for order in itertools.permutations(range(n)):
        seen = 0
        for i in order:
            phi[i] += v[seen | 1 << i] - v[seen]
            seen |= 1 << i
    return phi / math.factorial(n)


@torch.no_grad()
def valuation_passes(model, xs, y):
    "Every coalition is a forward pass of the whole model."
    n, right = len(xs), []
    with eval_mode(model):
        for present in coalitions(n).tolist():
            zs = model.encode(*xs)
            kept = [z if there else torch.zeros_like(z) for z, there in zip(zs, present)]
            right.append(sum(present) * (model.fuse(kept).argmax(1) == y).double())
    return shapley_orders(torch.stack(right))


def muted_passes(model, xs):
    "Every coalition is a forward pass with zeros for the muted inputs; nobody's answer is 0."
    parts = []
    for present in coalitions(len(xs)).tolist():
        parts.append(model(*(x if there else torch.zeros_like(x) for x, there in zip(xs, present))))
    return torch.stack([torch.zeros_like(parts[0]), *parts[1:]])


def multi_proxy_loops(p, proxies, gamma=0.1):
    "The multi-proxy logits, sample by sample and proxy by proxy."
    (n, batch, n_classes), k = p.shape, proxies.shape[-1]
    every = list(itertools.product(range(n_classes), range(k)))
    unit = {(c, j): F.normalize(proxies[:, :, c, j].flatten().clamp(min=0), dim=0) for c, j in every}
    out = []
    for b in range(batch):
        e = p[:, b].flatten()
        s = {at: (e @ unit[at]) / e.norm() for at in every}
        boost = {at: (s[at] / gamma).exp() for at in every}
        w = sum(boost[at] * unit[at] for at in every) / sum(boost.values())
        share = {(c, j): boost[c, j] / sum(boost[d, j] for d in range(n_classes)) for c, j in every}
        z = [sum(share[c, j] * s[c, j] for j in range(k)) for c in range(n_classes)]
        o = [sum(p[m, b, c] * (1 + w[m * n_classes + c]) for m in range(n)) for c in range(n_classes)]
        out.append(torch.stack(z) + torch.stack(o))
    return torch.stack(out)


@torch.no_grad()
def cmi_passes(model, xs, m, y):
    "Permutation CMI in the log-ratio form, a forward pass of the whole model for each shift of the batch."
    rows, clean = torch.arange(len(y), device=y.device), model(*xs).log_softmax(1)
    total = 0.0
    for shift in rows.tolist():
        moved = [x.roll(shift, 0) if i == m else x for i, x in enumerate(xs)]
        total += (clean - model(*moved).log_softmax(1))[rows, y].mean()
    return total / len(y)


# ---- both forms of each


def _contributions(setting, device):
    model, xs, y = setting.make(device)
    with torch.no_grad():
        f = model.head.contributions(model.encode(*xs))
    return f.double(), y


def tcmax_forms(setting, naive, device):
    f, y = _contributions(setting, device)
    return lambda: naive(f, y), lambda: tcmax_loss(f, y)


def mipd_forms(setting, device):
    model, xs, _ = setting.make(device)
    subset = proper_subsets(setting.modalities)[:1]

    def ours():
        return mipd(model, model.encode(*xs), subset, permutations="exact").mean()

    return lambda: mipd_loops(model, xs, subset[0]), ours


def mcr_forms(setting, device):
    model, xs, y = setting.make(device)
    heads = MCRHeads([WIDTH] * setting.modalities, setting.classes).to(device)

    def ours():
        return mcr_loss(model, model.encode(*xs), y, heads, permutations="exact").total

    return lambda: mcr_loops(model, heads, xs, y), ours


def contrast_forms(setting, device):
    model, xs, y = setting.make(device)
    zs = [z.detach() for z in model.encode(*xs)]
    return lambda: nt_xent_loops(zs, y), lambda: supervised_nt_xent(zs, y)


def valuation_forms(setting, device):
    model, xs, y = setting.make(device)
    return lambda: valuation_passes(model, xs, y), lambda: valuate(model, [(*xs, y)]).phi


def shapley_forms(setting, device):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(2**setting.modalities, setting.batch, generator=generator).double().to(device)
    return lambda: shapley_orders(v), lambda: shapley_values(v)


def muted_forms(setting, device):
    model, xs, _ = setting.make(device)
    return lambda: muted_passes(model, xs), lambda: muted_logits(model, xs)


def multi_proxy_forms(setting, device):
    generator = torch.Generator().manual_seed(0)
    n, k = setting.modalities, 5
    p = torch.randn(n, setting.batch, setting.classes, generator=generator).softmax(-1).to(device)
    proxies = init_proxies(n, setting.classes, k, generator=generator).to(device)
    return lambda: multi_proxy_loops(p, proxies), lambda: multi_proxy_logits(p, proxies)


def cmi_forms(setting, device):
    model, xs, y = setting.make(device)

    def ours():
        with torch.no_grad():
            return permutation_cmi(model.fuse, model.encode(*xs), 0, y).mean

    return lambda: cmi_passes(model, xs, 0, y), ours


FORMS = {
    "TCMax, grid of all pairings": (
        partial(tcmax_forms, naive=tcmax_grid),
        [Setting("mlp", 2, 512, 100, "sum"), Setting("mlp", 3, 64, 10, "sum")],
    ),
    "TCMax, loops": (partial(tcmax_forms, naive=tcmax_loops), [Setting("mlp", 2, 16, 3, "sum")]),
    "divergence of MCR, encoded again": (mipd_forms, [Setting("mlp", 2, 16, 10, "mlp")]),
    "MCR, all terms, encoded again": (mcr_forms, [Setting("mlp", 2, 12, 3, "concat")]),
    "contrastive term, loops": (contrast_forms, [Setting("mlp", 2, 16, 3, "concat")]),
    "valuation, 2^M passes": (valuation_forms, [Setting("cnn", m, 64, 10, "concat") for m in (2, 3, 6)]),
    "Shapley values, all orders": (shapley_forms, [Setting("mlp", 6, 64, 2, "sum")]),
    "AGM, 2^M passes": (muted_forms, [Setting("cnn", m, 64, 10, "concat") for m in (2, 3, 6)]),
    "MultiModal, loops": (multi_proxy_forms, [Setting("mlp", 2, 16, 4, "sum")]),
    "permutation CMI, B passes": (cmi_forms, [Setting("mlp", 2, 64, 10, "concat")]),
}
QUICK = "contrastive term, loops"


def forms(name, setting, device="cpu"):
    "The naive and the fast form, as functions without arguments; an AssertionError where they differ."
    naive, ours = FORMS[name][0](setting=setting, device=device)
    torch.testing.assert_close(ours().double().cpu(), naive().double().cpu(), rtol=1e-4, atol=1e-5)
    return naive, ours


def measure(name, setting, effort, device="cpu"):
    naive, ours = forms(name, setting, device)
    timings = interleaved({"naive": naive, name: ours}, effort, clock_of(device))
    case = f"M={setting.modalities} B={setting.batch} C={setting.classes}"
    return ratio_rows("naive", f"{name}, {case}", timings)


def cases():
    for name, (_, settings) in FORMS.items():
        for setting in settings:
            case = f"{name}, M={setting.modalities} B={setting.batch} C={setting.classes}"
            yield Case("naive", case, partial(measure, name, setting), cuda=True)
            if name == QUICK:
                yield Case("naive", case, partial(measure, name, setting), quick=True)
