"What makes a GPU wait, or ends a compiled graph: counted, not timed."

import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from mmlit import mcr_loss, multimodal_dls, multimodal_learner

from . import steps, through
from .rows import Case, Row

# operations whose result, or whose shape, the host has to know
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero", "item")
METHODS_OF_TENSORS = ("cpu", "tolist", "numpy")


@contextmanager
def as_on_a_device():
    "Inside the block nothing is looked at only because that is free on the CPU, see `mmlit.core.may_read`."
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("mmlit") and hasattr(module, "may_read"):
                stack.enter_context(mock.patch.object(module, "may_read", lambda x: False))
        yield


class Reads(TorchDispatchMode):
    "Counts operations that need a value on the host, and calls of methods that bring a tensor there."

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += name in READS or by_mask
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self._were = {name: getattr(torch.Tensor, name) for name in METHODS_OF_TENSORS}
        for name, method in self._were.items():
            setattr(torch.Tensor, name, counted_by(self, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._were.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)


def counted_by(reads, method):
    "The method of a tensor, and a count of its calls."

    def counted(tensor, *args, **kwargs):
        reads.count += 1
        return method(tensor, *args, **kwargs)

    return counted


class CudaReads:
    "The same on a GPU: what torch itself says makes the host wait."

    def __enter__(self):
        self._caught = warnings.catch_warnings(record=True)
        self._said = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")
        self.count = sum("synchroniz" in str(w.message).lower() for w in self._said)
        self._caught.__exit__(*error)


class FirstOfStep(Callback):
    "Begins to count before any other callback sees the batch."

    order, run_valid, reads = -1000, False, None

    def __init__(self, new=Reads):
        self.new, self.counts = new, []

    def before_batch(self):
        self.reads = self.new()
        self.reads.__enter__()

    def end(self):
        self.reads.__exit__(None, None, None)
        self.counts.append(self.reads.count)


class LastOfStep(Callback):
    "Ends the count when all other callbacks have seen the step, before fastai records it."

    order, run_valid = 1000, False

    def __init__(self, first):
        self.first = first

    def after_step(self):
        self.first.end()


def reads_of(make, device="cpu"):
    "Reads in a training step through the learner, the median over an epoch."
    dls = multimodal_dls(through.vectors(400), device=device)
    first = FirstOfStep(CudaReads if torch.device(device).type == "cuda" else Reads)
    learn = multimodal_learner(dls, method=None if make is None else make(), cbs=[first, LastOfStep(first)])
    with learn.no_bar(), learn.no_logging(), as_on_a_device():
        learn.fit(1, 1e-3)
    return sorted(first.counts)[len(first.counts) // 2]


def reads_of_function(method, device="cpu"):
    "Reads in loss and gradient as pure functions; torch's Adam reads a number of each parameter, whatever the loss."
    _, _, gradient = steps.gradient_of(method, steps.QUICK[0], device)
    gradient()
    with as_on_a_device(), CudaReads() if torch.device(device).type == "cuda" else Reads() as found:
        gradient()
    return found.count


def functions(effort, device="cpu"):
    case, plain = "reads of values in a step of functions", reads_of_function("plain", device)
    return [
        Row("counts", case, method, "count", reads_of_function(method, device) - plain)
        for method in steps.LOSSES
        if method != "plain"
    ]


def reads(effort, device="cpu"):
    case, plain = "reads of values in a step", reads_of(None, device)
    names = ["TCMax", "AGM"] if effort.quick else [n for n in through.CALLBACKS if n != "MCR, one permutation"]
    counts = {name: reads_of(through.CALLBACKS[name], device) - plain for name in names}
    return [Row("counts", case, name, "count", value) for name, value in counts.items()]


# ---- torch.compile

BREAKING = {
    "cross-entropy": lambda model, parts, zs, y: F.cross_entropy(model.fuse(zs), y),
    "TCMax": lambda model, parts, zs, y: steps.tcmax_model_loss(model, zs, y),
    "MCR": lambda model, parts, zs, y: mcr_loss(model, zs, y, parts["heads"]).total,
    "MultiModal": lambda model, parts, zs, y: F.cross_entropy(model.fuse(zs), y),
    "AGM": None,  # of the whole step: it looks at the inputs too
}


def graph_breaks(method, device="cpu"):
    "How often the graph of a loss ends before its end."
    setting = steps.QUICK[0]
    model, xs, y = setting.make(device)
    if method == "MultiModal":
        steps.use_head(model, steps.MultiProxyHead)
    parts, zs = steps.parts_of(method, setting, device), [z.detach() for z in model.encode(*xs)]
    loss = BREAKING[method] or (lambda model, parts, zs, y: steps.agm(model, parts, xs, y))
    torch._dynamo.reset()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch._dynamo.explain(partial(loss, model, parts))(zs, y)
    torch._dynamo.reset()
    return found.graph_break_count


def breaks(effort, device="cpu"):
    return [Row("counts", "graph breaks", method, "count", graph_breaks(method, device)) for method in BREAKING]


def cases():
    yield Case("counts", "reads of values in a step", reads, cuda=True)
    yield Case("counts", "reads of values in a step of functions", functions, cuda=True)
    yield Case("counts", "graph breaks", breaks, cuda=True)
    yield Case("counts", "reads of values in a step", reads, quick=True)
