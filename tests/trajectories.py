"""The training of a callback beside a loop written by hand: the same batches, the same optimiser, the same numbers?

learn = multimodal_learner(dls, method=Method(), opt_func=setting.opt_func())
same_trajectory(learn, setting, loss)       # `loss(model, xs, y, epoch)` is written from the paper
"""

import copy
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import OptimWrapper
from torch.testing import assert_close

OPTIMISERS = dict(
    sgd=(torch.optim.SGD, dict(momentum=0.9, weight_decay=1e-3)),
    adam=(torch.optim.Adam, dict(weight_decay=1e-3)),
)


@dataclass(frozen=True)
class Setting:
    "How to train."

    opt: str = "sgd"  # a name in OPTIMISERS, of torch
    accumulate: int = 1  # batches a step
    clip: float | None = None  # the largest norm of a step's gradient
    bf16: bool = False  # forward pass and loss under autocast?
    lr: float = 0.02

    def opt_func(self):
        kind, options = OPTIMISERS[self.opt]
        return partial(OptimWrapper, opt=kind, **options)

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


SETTINGS = [
    Setting(),
    Setting("adam", lr=3e-3),
    Setting(accumulate=2),
    Setting("adam", clip=0.05, lr=3e-3),
    Setting(bf16=True),
    Setting("adam", accumulate=2, clip=0.05, bf16=True, lr=3e-3),
]
# Of methods whose sums the loop by hand adds in another order: Adam makes whole steps of gradients of any size, and of
# small ones, which clipping leaves, rounding to bfloat16 decides the sign
OTHER_ORDER = [replace(s, bf16=False) if s.opt == "adam" else s for s in SETTINGS]


class CpuPrecision(MixedPrecision):
    "Mixed precision in bfloat16 on the CPU; that of fastai asks for cuda, and does nothing elsewhere."

    name = "mixed_precision"

    def __init__(self):
        super().__init__(amp_mode=AMPMode.BF16)

    def before_fit(self):
        with warnings.catch_warnings(action="ignore"):
            super().before_fit()
        self.autocast = torch.autocast("cpu", torch.bfloat16)


class Tape(Callback):
    "Keeps the batches of each epoch as the model was given them."

    order, run_valid = -5, False

    def before_fit(self):
        self.epochs = []

    def before_train(self):
        self.epochs.append([])

    def before_batch(self):
        self.epochs[-1].append((self.xb, self.yb[0]))


def callbacks(setting, bs):
    "What makes a fastai training that of the setting."
    cbs = [Tape()]
    if setting.accumulate > 1:
        cbs.append(GradientAccumulation(setting.accumulate * bs))
    if setting.clip is not None:
        cbs.append(GradientClip(setting.clip))
    return cbs + [CpuPrecision()] * setting.bf16


def by_hand(model, epochs, loss, setting, before_step=None):
    "Train `model` on the batches of each epoch. `before_step(model, xs, y)` may change the gradients of a step."
    kind, options = OPTIMISERS[setting.opt]
    optimiser, seen = kind(model.parameters(), lr=setting.lr, **options), 0
    for epoch, batches in enumerate(epochs):
        for xs, y in batches:
            with setting.autocast():
                value = loss(model.train(), xs, y, epoch)
            (value / setting.accumulate).backward()
            seen += 1
            if seen % setting.accumulate:
                continue
            if before_step is not None:
                before_step(model, xs, y)
            if setting.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            optimiser.step()
            optimiser.zero_grad()
    return model


def same_trajectory(learn, setting, loss, *, epochs=2, before_step=None, rtol=1e-4, atol=1e-5):
    "Fit the learner, replay its batches in the loop by hand from the same start, and compare all parameters."
    start = copy.deepcopy(learn.model)  # with the parts of a method, which are there as soon as it is attached
    before = copy.deepcopy(start.state_dict())
    learn.add_cbs(callbacks(setting, learn.dls.bs))
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, setting.lr)
    assert len({len(y) for batches in learn.tape.epochs for _, y in batches}) == 1, "batches of one size, please"

    by_hand(start, learn.tape.epochs, loss, setting, before_step)
    moved = 0.0
    for (name, a), b in zip(learn.model.named_parameters(), start.parameters()):
        assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        moved += (b - before[name]).abs().sum().item()
    assert moved > 0.1, "nothing moved: the comparison would show nothing"
    return learn
