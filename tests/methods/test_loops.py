"Each method as a loss in somebody else's loop, plain, of Lightning or of a `Trainer`, trains as its callback does."

import copy
import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from torch.testing import assert_close

from mmlit.data.loaders import multimodal_dls
from mmlit.learner import METHODS as REGISTERED
from mmlit.learner import FusionMethod, multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling
from mmlit.methods.tcmax import TCMax
from mmlit.training import Budget

# ---- each method as a function of the batch: what the page of recipes shows


def page():
    "The losses of the page, as they stand there."
    book = json.loads((Path(__file__).parents[2] / "nbs" / "recipes.ipynb").read_text(encoding="utf8"))
    code = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    names = {}
    for source in code[:2] + [c for c in code if "LOSSES = dict(" in c]:  # imports, and the losses
        exec(source, names)
    return names["LOSSES"]


LOSSES = page()
CALLBACKS = {
    "joint": lambda: None,
    "multi_loss": MultiLoss,
    "modality_dropout": ModalityDropout,
    "resampling": lambda: ModalityResampling(warmup=0),
    "multimodal": MultiModal,
    "tcmax": lambda: TCMax(pairings=32**2),  # all of a batch: nothing is drawn
    "mcr": MCR,
    "agm": GradientModulation,
}
PARTS = {"multi_loss": "multi_loss_heads", "mcr": "mcr_heads", "agm": "response_history"}


def loss_of(method):
    "The loss of a page with what the callback put beside the model."

    def loss(model, batch):
        own = model.parts[PARTS[method]] if method in PARTS else None
        return LOSSES[method](model, own, batch.xs, batch.y, batch.keep)

    return loss


METHODS = {name: (make, loss_of(name)) for name, make in CALLBACKS.items()}
OPTIMISERS = {
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
}


class Keeper(Callback):
    "The batches of a training, with what its callback kept of each."

    order = 55

    def before_fit(self):
        self.batches = []

    def before_step(self):
        zs = getattr(self.method, "zs", ()) if self.method is not None else ()
        keep = torch.stack([z.detach().any(1) for z in zs], 1) if zs else torch.ones(len(self.y), 2, dtype=torch.bool)
        self.batches.append(SimpleNamespace(xs=self.xb, y=self.y, keep=keep))

    def __init__(self, method):
        self.method = method


def by_callback(make, optimiser):
    "The model before and after a training with the callback, and its batches."
    rng = np.random.default_rng(0)
    y = np.arange(160) % 3
    xs = {"a": rng.normal(size=(160, 6)) + np.eye(3, 6)[y], "b": rng.normal(size=(160, 5))}
    torch.manual_seed(0)
    dls, method = multimodal_dls(xs, y, bs=32, device="cpu", seed=0), make()
    keeper = Keeper(method)
    opt_func = lambda params, lr: OptimWrapper(params, OPTIMISERS[optimiser])
    learn = multimodal_learner(dls, head="mlp", width=8, method=method, cbs=keeper, opt_func=opt_func)
    before = copy.deepcopy(learn.model)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, OPTIMISERS[optimiser].keywords["lr"])
    return before.train(), learn.model, keeper.batches


def plain_loop(model, loss_of, batches, optimiser):
    opt = OPTIMISERS[optimiser](model.parameters())
    for batch in batches:
        opt.zero_grad()
        loss_of(model, batch).backward()
        opt.step()


def lightning_loop(model, loss_of, batches, optimiser):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return loss_of(self.model, batch)

        def configure_optimizers(self):
            return OPTIMISERS[optimiser](self.model.parameters())

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False, collate_fn=lambda b: b)
    trainer.fit(Module(), loader)


def trainer_loop(model, loss_of, batches, optimiser, folder):
    from transformers import Trainer, TrainingArguments

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return loss_of(model, SimpleNamespace(**inputs))

        def get_train_dataloader(self):
            return torch.utils.data.DataLoader([vars(b) for b in batches], batch_size=None, shuffle=False)

    opt = OPTIMISERS[optimiser](model.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    quiet = dict(report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True)
    options = TrainingArguments(
        str(folder), num_train_epochs=1, max_grad_norm=0.0, use_cpu=True, remove_unused_columns=False, **quiet
    )
    Own(model, options, train_dataset=batches, optimizers=(opt, constant)).train()


@pytest.fixture(scope="module")
def torchvision():
    "Both libraries import it; beside a CPU build of torch from elsewhere its compiled operators may not load."
    needs("torchvision")
    try:
        import torchvision
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.operators = library  # they live as long as this object
    return torchvision


def needs(library):
    "Skips where an extra is not installed; under `make test-all`, which installs it, that is a failure."
    if importlib.util.find_spec(library) is None and "MMLIT_TEST_ALL" not in os.environ:
        pytest.skip(f"{library} is not installed: make test-all has it, and fails without")


LOOPS = {"plain": plain_loop, "lightning": lightning_loop, "trainer": trainer_loop}
cases = pytest.mark.parametrize("method", METHODS)


def check(loop, method, optimiser, *more):
    make, loss_of = METHODS[method]
    model, trained, batches = by_callback(make, optimiser)
    start = copy.deepcopy(model.state_dict())
    LOOPS[loop](model, loss_of, batches, optimiser, *more)
    assert any(not torch.equal(v, start[k]) for k, v in model.state_dict().items())
    for name, value in trained.state_dict().items():
        assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@cases
def test_a_plain_loop_is_the_callback(method, optimiser):
    check("plain", method, optimiser)


@pytest.mark.slow
@cases
def test_lightning_is_the_callback(method, torchvision):
    needs("lightning")
    check("lightning", method, "SGD")


@pytest.mark.slow
@cases
def test_a_hugging_face_trainer_is_the_callback(method, torchvision, tmp_path):
    needs("transformers")
    needs("accelerate")
    check("trainer", method, "SGD", tmp_path)


def test_a_library_that_is_missing_is_a_failure_of_the_whole_suite(monkeypatch):
    "A missing extra never makes it green in silence."
    monkeypatch.delenv("MMLIT_TEST_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make test-all has it, and fails without"):
        needs("no_such_library")
    monkeypatch.setenv("MMLIT_TEST_ALL", "1")
    needs("no_such_library")  # the import that follows fails
    makefile = Path(__file__).parents[2] / "Makefile"
    if makefile.exists():
        assert "test-all: export MMLIT_TEST_ALL = 1" in makefile.read_text(encoding="utf8")


def test_every_callback_of_the_package_has_a_loop():
    "One that is only another option, start or learning rate of a method here needs no lines of its own."
    variants = {"agm_lr", "resampling_modality", "mcr_pretrained", "pretrained", "frozen", "scaled_sum", "lr_control"}
    separate = {"unimodal", "ensemble", "ensemble_prob", "ensemble_calibrated", "deep_ensemble", "linear"}
    assert set(REGISTERED) - variants - separate == set(METHODS) == set(LOSSES)


ROWS = {
    "tcmax": (TCMax, {}),
    "mcr": (MCR, {}),
    "mcr_pretrained": (MCR, {}),
    "resampling": (ModalityResampling, dict(level="sample")),
    "resampling_modality": (ModalityResampling, dict(level="modality")),
    "agm": (GradientModulation, dict(mode="grad")),
    "agm_lr": (GradientModulation, dict(mode="lr")),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_row_of_a_table_is_the_training_of_its_callback(name):
    x, budget = np.random.default_rng(0).normal(size=(2, 40, 3)), Budget(width=4)
    dls = multimodal_dls({"a": x[0], "b": x[1]}, np.arange(40) % 2, bs=8, device="cpu")
    (run,) = REGISTERED[name].runs(["a", "b"])
    learn = run.make(dls, budget, {need.name: need.make(dls, budget, {}).model for need in run.needs})
    (method,) = [cb for cb in learn.cbs if isinstance(cb, FusionMethod)]
    kind, options = ROWS[name]
    assert type(method) is kind and options.items() <= vars(method).items() and run.name == name
    assert REGISTERED[name].combine(["its answer"], None) == {name: "its answer"}
    assert len(run.needs) == 2 * (name == "mcr_pretrained")
