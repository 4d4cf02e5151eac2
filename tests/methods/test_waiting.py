"""A step of training waits for no device: no method reads a value, or asks which rows are which, more than plain
training does; and its functions are one graph for `torch.compile`."""

import functools
import gc
import tracemalloc
import warnings
from collections import Counter
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import generator
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mmlit.core import may_read
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.fusion.coalitions import coalition_logits, mask_features
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel
from mmlit.learner import METHODS, FusionMethod, multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import (
    ConditionalClip,
    GradientModulation,
    modality_responses,
    modality_shares,
    modulated_logits,
    modulation_coefficients,
    muted_logits,
    regression_response_scores,
    response_scores,
    routed_logits,
    routed_shares,
    update_history,
)
from mmlit.methods.multimodal_loss import MultiModal, MultiProxyHead, init_proxies, multi_proxy_logits
from mmlit.methods.shapley import ModalityResampling, shapley_values
from mmlit.methods.tcmax import TCMax
from mmlit.monitor import ModalityMonitor

METHOD_CALLBACKS = {
    "agm": GradientModulation,
    "agm_lr": partial(GradientModulation, mode="lr"),
    "agm of zero features": partial(GradientModulation, absent="zero_feature"),
    "conditional clip": partial(ConditionalClip, 1e-3),
    "mcr": MCR,
    "modality_dropout": ModalityDropout,
    "monitor": ModalityMonitor,
    "multi_loss": MultiLoss,
    "multimodal": MultiModal,
    "resampling": partial(ModalityResampling, warmup=0),
    "resampling_modality": partial(ModalityResampling, level="modality", warmup=0),
    "tcmax": TCMax,
}
# rows of `METHODS` whose trainings are plain ones, of other models or rates, or with a callback that stands above
PLAIN = {"unimodal", "ensemble", "ensemble_prob", "joint", "lr_control", "pretrained", "frozen", "scaled_sum"} | {
    "mcr_pretrained",
    "ensemble_calibrated",
    "deep_ensemble",
    "linear",
}

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
# methods of a tensor that bring its values to Python; on the CPU some of them pass by the dispatcher
ASKED = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__", "cpu")


class Dispatched(TorchDispatchMode):
    "Counts operations whose result depends on values: numbers read, and rows chosen by a mask."

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name, kwargs = f._schema.name.removeprefix("aten::"), kwargs or {}
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        lengths = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in READS or by_mask or lengths:
            self.seen[name] += 1
        return f(*args, **kwargs)


class Asked(TorchFunctionMode):
    "Counts calls that bring values to Python."

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_function__(self, f, types, args=(), kwargs=None):
        name = getattr(f, "__name__", "")
        if name in ASKED:
            self.seen[name] += 1
        return f(*args, **(kwargs or {}))


class Reads:
    "What is read inside the block."

    def __enter__(self):
        self.modes = Dispatched(), Asked()
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)
        self.seen = sum((mode.seen for mode in self.modes), Counter())


class _Begin(Callback):
    "Starts to watch before all others ..."

    order, run_valid = -1000, False

    def before_fit(self):
        self.steps = []

    def before_batch(self):
        self.reads = Reads()
        self.reads.__enter__()


class _End(Callback):
    "... and ends after them."

    order, run_valid = 1000, False

    def after_batch(self):
        self.learn.begin.reads.__exit__(None, None, None)
        self.learn.begin.steps.append(self.learn.begin.reads.seen)


_Begin.name, _End.name = "begin", "end"


@functools.cache
def data(task, missing=False):
    rng = np.random.default_rng(0)
    xs = {m: rng.normal(size=(96, 5)).astype("float32") for m in "abc"}
    label = np.arange(96) % 3
    several = (rng.random((96, 3)) < 0.5).astype("float32")
    y = {"classification": label, "regression": rng.normal(size=96).astype("float32"), "multi-label": several}[task]
    if missing:
        xs["c"][rng.random(96) < 0.3] = np.nan
    with warnings.catch_warnings(action="ignore"):
        return multimodal_data(xs, y, task=task, name="waiting")


def learner(method, task="classification", head="concat", missing=False, cbs=(), device="cpu"):
    torch.manual_seed(0)
    dls = multimodal_dls(data(task, missing), bs=16, device=device, seed=0)
    return multimodal_learner(dls, head=head, width=8, method=method, cbs=cbs)


def fit(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(action="ignore"):
        learn.fit(epochs, 1e-3)
    return learn


def read_in_steps(method, *setting, cbs=(), **options):
    "Reads a step, of all steps but the first."
    learn = fit(learner(method, *setting, cbs=[_Begin(), _End(), *cbs], **options))
    steps = learn.begin.steps[1:]
    assert len(steps) > 2
    return {name: sum(s[name] for s in steps) / len(steps) for name in set().union(*steps)}


def more_than_plain(method, *setting, **options):
    plain = read_in_steps(None, *setting, **options)
    return {k: n for k, n in read_in_steps(method, *setting, **options).items() if n > plain.get(k, 0)}


@pytest.fixture
def as_on_a_device(monkeypatch):
    "What is looked at only where that waits for nobody is not looked at, by whatever name a module has the question."
    monkeypatch.setattr(may_read, "__code__", (lambda x: False).__code__)
    assert not may_read(torch.ones(1))


# ---- the instrument


def test_what_waits_is_seen():
    x = torch.arange(3.0)
    for ask in (
        lambda: x[0].item(),
        lambda: float(x[0]),
        lambda: bool(x[0] > 1),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x[x > 1],
        lambda: x.masked_fill(x > 1, 0).nonzero(),
        lambda: x.index_put((x > 1,), torch.zeros(())),
        lambda: x.unique(),
        lambda: x.cpu(),
        lambda: torch.equal(x, x),
        lambda: torch.arange(3).repeat_interleave(torch.arange(3)),
    ):
        with Reads() as reads:
            ask()
        assert reads.seen, ask
    with Reads() as reads:
        torch.where(x > 1, x, 0).sum() + x[1:].mean()
        x[torch.tensor([0, 2])]
    assert not reads.seen


class Curious(FusionMethod):
    "Looks at the loss."

    def after_loss(self):
        assert self.learn.loss_grad.item() > -1


def test_a_method_that_reads_is_seen():
    assert more_than_plain(Curious()) == {"item": 1, "_local_scalar_dense": 1}


# ---- trainings


def test_all_registered_methods_are_watched():
    assert set(METHODS) - PLAIN <= set(METHOD_CALLBACKS), "a new method: enter its callback above"


@pytest.mark.parametrize("head", ["concat", "mlp", "film"])
@pytest.mark.parametrize("name", METHOD_CALLBACKS)
def test_no_step_reads_more_than_a_plain_one(name, head, as_on_a_device):
    if name == "multimodal" and head != "concat":
        return
    assert more_than_plain(METHOD_CALLBACKS[name](), "classification", head) == {}


@pytest.mark.parametrize("task", ["regression", "multi-label"])
@pytest.mark.parametrize("name", METHOD_CALLBACKS)
def test_nor_with_other_targets(name, task, as_on_a_device):
    refused = {"regression": ("multimodal", "tcmax", "resampling", "resampling_modality"), "multi-label": "multimodal"}
    if name in refused[task]:
        return
    assert more_than_plain(METHOD_CALLBACKS[name](), task) == {}


@pytest.mark.parametrize("name", ["agm", "agm_lr", "modality_dropout"])
def test_nor_where_samples_lack_a_modality(name, as_on_a_device):
    assert more_than_plain(METHOD_CALLBACKS[name](), missing=True) == {}


def test_nor_where_batches_are_accumulated(as_on_a_device):
    for name in "agm", "agm_lr", "conditional clip":
        assert more_than_plain(METHOD_CALLBACKS[name](), cbs=[GradientAccumulation(32)]) == {}


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHOD_CALLBACKS)
def test_no_step_on_a_gpu_waits_more_than_a_plain_one(name):
    "By torch's own debug mode, between the forward pass and the step: fastai's loops and records stand outside."

    class Strict(Callback):
        order, run_valid = -1000, False

        def before_batch(self):
            if self.learn.train_iter > 1:
                torch.cuda.set_sync_debug_mode("error")

    class Relaxed(Callback):
        order, run_valid = 1000, False

        def after_step(self):
            torch.cuda.set_sync_debug_mode("default")

    try:
        fit(learner(METHOD_CALLBACKS[name](), cbs=[Strict(), Relaxed()], device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- pure functions


def model_of(head):
    torch.manual_seed(0)
    return FusionModel([nn.Linear(5, 6) for _ in range(3)], HEADS[head]([6] * 3, 4))


def batch():
    g = generator()
    return [torch.randn(8, 5, generator=g) for _ in range(3)], torch.randint(0, 4, (8,), generator=g)


V = torch.randn(8, 6, 4, generator=generator())
KAPPA, SCORE = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-0.5, -1.0, -2.0])
PROXIES = init_proxies(3, 4, generator=generator())
LABELS, AMONG = torch.arange(6) % 4, torch.tensor([True, False, True])
FUNCTIONS = {
    "responses": lambda: modality_responses(V),
    "scores": lambda: response_scores(V[:3], LABELS),
    "scores of several labels": lambda: response_scores(V[:3], (V[0] > 0).float()),
    "scores of numbers": lambda: regression_response_scores(V[:3], V[3], KAPPA[0]),
    "scores of those present": lambda: response_scores(V[:3], LABELS, V[:3, :, 0].T > -1),
    "coefficients": lambda: modulation_coefficients(SCORE, KAPPA, 1.5),
    "coefficients of some": lambda: modulation_coefficients(SCORE, KAPPA, 1.5, among=AMONG),
    "history": lambda: update_history(KAPPA, SCORE, 3),
    "history by a tensor": lambda: update_history(KAPPA, SCORE, torch.tensor(3)),
    "routed logits": lambda: routed_logits(V, KAPPA),
    "modulated logits": lambda: modulated_logits(V[:3], KAPPA),
    "multi-proxy logits": lambda: multi_proxy_logits(V[:3].softmax(-1), PROXIES),
    "Shapley values": lambda: shapley_values(V),
    "masked features": lambda: torch.stack(mask_features(tuple(V[:3]), V[:3, :, 0].T > 0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_read_nothing(name, as_on_a_device):
    with Reads() as reads:
        FUNCTIONS[name]()
    assert not reads.seen


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_one_graph(name):
    expected = FUNCTIONS[name]()
    torch.compiler.reset()
    assert_close(torch.compile(FUNCTIONS[name], backend="eager", fullgraph=True)(), expected)


def agm_loss(model, xs, y, history):
    zs = model.encode(*xs)
    full = model.fuse(zs)
    shares = modality_shares(model, xs, zs, full, absent="zero_feature")
    kappa = modulation_coefficients(response_scores(shares.responses, y), history)
    return F.cross_entropy(routed_shares(full, shares, kappa), y)


def agm_loss_of_coalitions(model, xs, y, history):
    v = muted_logits(model, xs)
    kappa = modulation_coefficients(response_scores(modality_responses(v.detach()), y), history)
    return F.cross_entropy(routed_logits(v, kappa), y)


@pytest.mark.parametrize("loss", [agm_loss, agm_loss_of_coalitions])
@pytest.mark.parametrize("head", ["sum", "mlp", "attention"])
def test_the_loss_of_agm_reads_nothing(loss, head, as_on_a_device):
    model, (xs, y) = model_of(head), batch()
    with Reads() as reads:
        loss(model, xs, y, torch.zeros(3)).backward()
    assert not reads.seen


class Copies(TorchDispatchMode):
    "Counts copies from one device to another for which the program waits."

    n = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out, name = f(*args, **(kwargs or {})), f._schema.name
        if name == "aten::_to_copy" and out.device != args[0].device:
            self.n += not (kwargs or {}).get("non_blocking")
        if name == "aten::copy_" and args[0].device != args[1].device:
            self.n += not (len(args) > 2 and args[2])
        return out


def test_copies_that_wait_are_seen():
    x = torch.ones(2)
    with Copies() as copies:
        x.to("meta", non_blocking=True)
        assert copies.n == 0
        x.to("meta")
        torch.ones(2, device="meta").copy_(x)
    assert copies.n == 2


@pytest.mark.parametrize("loss", [agm_loss, agm_loss_of_coalitions])
@pytest.mark.parametrize("head", ["sum", "mlp", "attention"])
def test_the_loss_of_agm_waits_for_no_other_device(loss, head, monkeypatch):
    "On a device without numbers, where to read one is an error, and which has no autocast."
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model, (xs, y) = model_of(head).to("meta"), batch()
    xs, y = [x.to("meta") for x in xs], y.to("meta")
    history = torch.zeros(3, device="meta")
    with Copies() as copies:
        loss(model, xs, y, history).backward()
    assert copies.n == 0
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(history[0])


def test_muted_logits_and_coalitions_read_nothing(as_on_a_device):
    for head in HEADS:
        model, (xs, _) = model_of(head), batch()
        with Reads() as reads:
            coalition_logits(model, model.encode(*xs)).sum().backward()
            muted_logits(model, xs).sum().backward()
        assert not reads.seen, head


def test_the_multi_proxy_loss_is_one_graph():
    model, (xs, y) = FusionModel([nn.Linear(5, 6) for _ in range(3)], MultiProxyHead([6] * 3, 4)), batch()

    def loss(xs, y):
        return F.cross_entropy(model(*xs), y)

    torch.compiler.reset()
    assert_close(torch.compile(loss, backend="eager", fullgraph=True)(xs, y), loss(xs, y))


# ---- memory


@functools.cache
def growth(name, steps):
    "Tensors that are alive, and bytes that Python holds, after `steps` more steps than 48."
    rng, kept = np.random.default_rng(0), []
    xs = [rng.normal(size=(96, 4)).astype("float32") for _ in range(2)]
    dls = multimodal_dls(xs, np.arange(96) % 3, bs=4, device="cpu", seed=0)

    class Count(Callback):
        order, run_valid = 1000, False
        n = 0

        def after_batch(self):
            self.n += 1
            if self.n in (48, 48 + steps):
                gc.collect()
                tensors = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
                kept.append((tensors, tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0))
            if self.n == 48 + steps:
                raise CancelFitException

    torch.manual_seed(0)
    method = None if name is None else METHOD_CALLBACKS[name]()
    fit(multimodal_learner(dls, width=4, method=method, cbs=[Count()]), steps)
    (before, held), (after, holds) = kept
    return after - before, holds - held


@pytest.mark.parametrize("name", METHOD_CALLBACKS)
def test_no_tensor_stays_behind_in_300_steps(name):
    "More than those that fastai's recorder keeps; a few come with an epoch, such as the mask of a plan."
    assert growth(name, 300)[0] <= growth(None, 300)[0] + 50


@pytest.mark.slow
@pytest.mark.parametrize("name", METHOD_CALLBACKS)
def test_nothing_stays_behind_in_10_000_steps(name):
    tracemalloc.start()
    try:
        (tensors, held), (plain, plainly) = growth(name, 10_000), growth(None, 10_000)
    finally:
        tracemalloc.stop()
    assert tensors <= plain + 50 and held <= plainly + 500_000  # an epoch of 24 steps adds a row to the table
