"A training step of each method over the plain step of the same model: pure functions in a torch loop."

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mmlit import FusionModel, mcr_loss
from mmlit.core import unimodal_losses
from mmlit.fusion.coalitions import mask_features
from mmlit.fusion.heads import HEADS, PictureEncoder, VectorEncoder
from mmlit.methods.mcr import MCRHeads
from mmlit.methods.modulation import (
    ResponseHistory,
    modality_shares,
    modulation_coefficients,
    response_scores,
    routed_shares,
)
from mmlit.methods.multimodal_loss import MultiProxyHead, use_head
from mmlit.methods.tcmax import tcmax_model_loss

from .rows import Case, Row, ratio_rows
from .timing import clock_of, interleaved, peak_memory

WIDTH = 64  # of the features
INPUTS = dict(mlp=(32,), cnn=(3, 48, 48))  # a row of a modality; these pictures make a plain step of about 35 ms


@dataclass(frozen=True)
class Setting:
    "A model and a batch."

    encoder: str
    modalities: int
    batch: int
    classes: int
    head: str

    def __str__(self):
        return f"{self.encoder} M={self.modalities} B={self.batch} C={self.classes} {self.head}"

    def make(self, device="cpu"):
        "A model, its inputs and labels; the same ones each time."
        torch.manual_seed(0)
        shape, dims = INPUTS[self.encoder], [WIDTH] * self.modalities
        new = {"mlp": lambda: VectorEncoder(shape[0], WIDTH), "cnn": lambda: PictureEncoder(3, WIDTH)}[self.encoder]
        model = FusionModel([new() for _ in dims], HEADS[self.head](dims, self.classes)).to(device)
        xs = [torch.randn(self.batch, *shape).to(device) for _ in dims]
        return model, xs, torch.randint(self.classes, (self.batch,)).to(device)


# ---- the loss of a step, given the model, its extra parts, inputs and labels


def plain(model, parts, xs, y):
    return F.cross_entropy(model(*xs), y)


def tcmax(model, parts, xs, y):
    return tcmax_model_loss(model, model.encode(*xs), y)


def mcr(model, parts, xs, y, **options):
    return mcr_loss(model, model.encode(*xs), y, parts["heads"], **options).total


def multi_loss(model, parts, xs, y):
    zs = model.encode(*xs)
    answers = parts["heads"](zs)
    return F.cross_entropy(model.fuse(zs), y) + unimodal_losses(F.cross_entropy, list(answers), [y]).sum()


def mask(model, parts, xs, y):
    "A batch of the resampling, some rows of which show one modality only."
    return F.cross_entropy(model.fuse(mask_features(model.encode(*xs), parts["keep"])), y)


def _coefficients(shares, history, y):
    score = response_scores(shares.responses, y)
    kappa = modulation_coefficients(score, history.mean)
    history.update(score)
    return kappa


def agm(model, parts, xs, y):
    zs = model.encode(*xs)
    logits = model.fuse(zs)
    shares = modality_shares(model, xs, zs, logits)
    kappa = _coefficients(shares, parts["history"], y)
    return F.cross_entropy(routed_shares(logits, shares, kappa), y)


def agm_lr(model, parts, xs, y):
    zs = model.encode(*xs)
    logits = model.fuse(zs)
    with torch.no_grad():
        shares = modality_shares(model, xs, zs, logits)
    parts["kappa"] = _coefficients(shares, parts["history"], y)
    return F.cross_entropy(logits, y)


LOSSES = {
    "plain": plain,
    "TCMax": tcmax,
    "MCR": mcr,
    "MCR, one permutation": partial(mcr, permutations=1),
    "MultiModal": plain,
    "AGM": agm,
    "AGM lr": agm_lr,
    "resampling mask": mask,
    "MultiLoss": multi_loss,
}
MANY_PROXIES = 10**7  # from here on the library itself warns that MultiModal has too many


def left_out(method, setting):
    "Why a method is not measured in a setting; empty where it is."
    if method != "MultiModal":
        return ""
    if setting.head not in ("sum", "concat"):
        return "its own head takes the place of this one"
    if setting.modalities * 20 * setting.classes**2 >= MANY_PROXIES:
        return "too many proxies for so many classes"
    return ""


def parts_of(method, setting, device="cpu"):
    "What a method needs beside the model."
    if method.startswith("MCR") or method == "MultiLoss":
        heads = MCRHeads([WIDTH] * setting.modalities, setting.classes).to(device)
        del heads.decoder  # nobody uses it, so it would only be one more parameter without gradient
        return dict(heads=heads)
    if method.startswith("AGM"):
        return dict(history=ResponseHistory(setting.modalities).to(device))
    if method == "resampling mask":
        keep = torch.ones(setting.batch, setting.modalities, dtype=torch.bool)
        keep[::3, 1:] = False
        return dict(keep=keep.to(device))
    return {}


def gradient_of(method, setting, device="cpu"):
    "A model, what the method has beside it, and a function that does all of a step but the optimiser's part."
    model, xs, y = setting.make(device)
    if method == "MultiModal":
        use_head(model, MultiProxyHead)
    parts = parts_of(method, setting, device)
    return model, parts, lambda: LOSSES[method](model, parts, xs, y).backward()


def trained_by(method, setting, device="cpu"):
    "A model, and a function that makes one training step of it."
    model, parts, gradient = gradient_of(method, setting, device)
    modules = [p for p in parts.values() if isinstance(p, nn.Module)]
    optimiser = torch.optim.Adam([p for m in (model, *modules) for p in m.parameters()], 1e-3)

    def step():
        optimiser.zero_grad()
        gradient()
        optimiser.step()

    return model, step if method != "AGM lr" else _scaled(step, model, parts)


def step_of(method, setting, device="cpu"):
    return trained_by(method, setting, device)[1]


def _scaled(step, model, parts):
    "The step of each encoder times its factor."

    def scaled():
        before = [[p.detach().clone() for p in e.parameters()] for e in model.encoders]
        step()
        with torch.no_grad():
            for encoder, old, k in zip(model.encoders, before, parts["kappa"]):
                for p, o in zip(encoder.parameters(), old):
                    p.copy_(o + k * (p - o))

    return scaled


# ---- cases

TOO_SLOW = 4.0  # seconds from which a step is timed once, and its memory is not looked at


def measure(setting, effort, device="cpu", methods=tuple(LOSSES)):
    "Rows of time and memory of the methods in one setting."
    reasons = {m: left_out(m, setting) for m in methods}
    calls = {m: step_of(m, setting, device) for m in methods if not reasons[m]}
    timings = interleaved(calls, effort, clock_of(device))
    case = str(setting)
    rows = ratio_rows("steps", case, timings)
    fast = [m for m, t in timings.items() if t.seconds.max() < TOO_SLOW]
    peaks = {m: peak_memory(calls[m], device) for m in fast}
    base = peaks["plain"]
    rows.append(Row("steps", case, "plain", "MiB", base / 2**20))
    rows += [Row("steps", case, m, "memory ratio", peaks[m] / base) for m in fast if m != "plain"]
    nan = float("nan")
    return rows + [Row("steps", case, m, "ratio", nan, rounds=0, note=why) for m, why in reasons.items() if why]


SETTINGS = [
    # pictures: the encoders are what a step costs
    Setting("cnn", 2, 64, 10, "sum"),
    Setting("cnn", 2, 64, 10, "attention"),
    Setting("cnn", 3, 64, 10, "film"),
    Setting("cnn", 3, 64, 10, "attention"),
    Setting("cnn", 6, 64, 10, "sum"),
    Setting("cnn", 6, 64, 10, "film"),
    # vectors: every head
    *(Setting("mlp", 2, 64, 10, head) for head in ("sum", "concat", "mlp", "film", "gated", "attention")),
    # batches
    Setting("mlp", 2, 32, 10, "concat"),
    *(Setting("mlp", 2, 512, 10, head) for head in ("sum", "concat", "film", "attention")),
    Setting("mlp", 2, 1024, 10, "concat"),
    # modalities
    Setting("mlp", 3, 64, 10, "concat"),
    Setting("mlp", 6, 64, 10, "concat"),
    Setting("mlp", 3, 256, 100, "mlp"),
    Setting("mlp", 6, 32, 10, "attention"),
    # classes
    Setting("mlp", 2, 64, 2, "concat"),
    Setting("mlp", 2, 64, 100, "film"),
    Setting("mlp", 2, 128, 1000, "concat"),
    Setting("mlp", 2, 128, 1000, "film"),
]
QUICK = [Setting("mlp", 2, 16, 3, "concat")]


def cases():
    for quick, settings in ((False, SETTINGS), (True, QUICK)):
        for setting in settings:
            yield Case("steps", str(setting), partial(measure, setting), quick, cuda=True)
