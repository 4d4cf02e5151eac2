"A lean training leaves what fastai's own loop leaves: every method and task, accumulation, clipping, resumption."

import copy

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.optimizer import RAdam
from torch import nn
from trajectories import CpuPrecision

import mmlit.learner
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fitting import train_run
from mmlit.lean import LeanAdam, LeanLearner
from mmlit.learner import METHODS, Run, multimodal_learner
from mmlit.monitor import ModalityMonitor
from mmlit.training import Budget

RNG = np.random.default_rng(0)
N = 260
LABELS = RNG.integers(0, 3, N)
XS = {"left": RNG.normal(size=(N, 6)) + np.eye(3, 6)[LABELS], "right": RNG.normal(size=(N, 5))}
TARGETS = dict(
    classification=LABELS,
    multi_label=np.stack([LABELS == 1, XS["right"][:, 0] > 0], 1).astype(np.float32),
    regression=XS["left"][:, 0] * 3 + XS["right"][:, 1] + 50,
)
EPOCHS = dict(classification=7, multi_label=3, regression=3)  # resampling begins in epoch 5


def source(task):
    return MultimodalData(task, XS, TARGETS[task], task=task.replace("_", "-"))


@pytest.fixture
def with_learner(monkeypatch):
    "Runs something with each of the two learners: the lean one, and fastai's own."

    def both(ask):
        out = []
        for kind in (LeanLearner, Learner):
            monkeypatch.setattr(mmlit.learner, "LeanLearner", kind)
            out.append(ask())
        return out

    return both


def all_runs(names):
    "Each run of the methods once, behind those that it needs."
    found: dict[str, Run] = {}

    def add(run):
        for needed in run.needs:
            add(needed)
        found.setdefault(run.name, run)

    for name in names:
        for run in METHODS[name].runs(list(XS)):
            add(run)
    return found


def trained_runs(task, names):
    data, models, answers = source(task), {}, {}
    for name, run in all_runs(names).items():
        needed = {r.name: copy.deepcopy(models[r.name]) for r in run.needs}
        try:
            answers[name], models[name] = train_run(run, data, 1, Budget(epochs=EPOCHS[task], bs=32, width=8), needed)
        except ValueError as error:  # a method that does not apply to the task: it must say the same
            answers[name] = str(error)
    return answers, models


@pytest.mark.parametrize("task", TARGETS)
def test_every_method_trains_the_same_model(task, with_learner):
    (lean, models), (plain, expected) = with_learner(lambda: trained_runs(task, METHODS))
    assert lean.keys() == plain.keys() and models.keys() == expected.keys() and len(models) > 10
    for name, model in models.items():
        ours, theirs = model.state_dict(), expected[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == [], name
        for part in ("valid", "test"):
            assert np.array_equal(getattr(lean[name], part), getattr(plain[name], part)), name
        for fact in ("validation", "monitor", "curves"):
            np.testing.assert_equal(lean[name].info[fact], plain[name].info[fact])
    for name, told in lean.items():
        if isinstance(told, str):
            assert told == plain[name]


def fitted(task="classification", *cbs, epochs=3, fit="fit_one_cycle", method=None, **options):
    torch.manual_seed(0)
    dls = multimodal_dls(source(task), bs=32, seed=3, device="cpu")
    learn = multimodal_learner(dls, width=8, cbs=[copy.deepcopy(cb) for cb in cbs], method=method, **options)
    with learn.no_bar(), learn.no_logging():
        getattr(learn, fit)(epochs, 1e-2)
    return learn


def left_by(learn):
    "What a training leaves, as numbers."
    state = [v.tolist() for v in learn.model.state_dict().values()]
    averages = [s["grad_avg"].tolist() for s in learn.opt.state_dict()["state"] if "grad_avg" in s]
    record = learn.recorder
    histories = [cb.history for cb in learn.cbs if hasattr(cb, "history")]
    return state, averages, list(map(list, record.values)), list(map(float, record.losses)), record.lrs, histories


CALLBACKS = {
    "accumulation": [GradientAccumulation(80)],
    "clipping": [GradientClip(0.05)],
    "both": [GradientAccumulation(64), GradientClip(0.1)],
    "monitor": [ModalityMonitor()],
    "early stopping": [EarlyStoppingCallback(patience=1)],
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_callbacks_of_fastai_and_of_ours_do_the_same(task, name, with_learner):
    ours, theirs = with_learner(lambda: left_by(fitted(task, *CALLBACKS[name])))
    np.testing.assert_equal(ours, theirs)


@pytest.mark.parametrize("options", [dict(fit="fit"), dict(fit="fit_flat_cos"), dict(opt_func=RAdam), dict(wd=0.0)])
def test_schedules_and_optimisers_do_the_same(options, with_learner):
    ours, theirs = with_learner(lambda: left_by(fitted(**options)))
    np.testing.assert_equal(ours, theirs)


def test_a_loss_of_ones_own_does_the_same(with_learner):
    def ask():
        return left_by(fitted(loss_func=nn.CrossEntropyLoss(label_smoothing=0.1)))

    np.testing.assert_equal(*with_learner(ask))


def test_groups_of_parameters_have_rates_of_their_own(with_learner):
    def splitter(model):
        return [list(model.encoders.parameters()), list(model.head.parameters())]

    def ask():
        torch.manual_seed(0)
        learn = multimodal_learner(multimodal_dls(source("classification"), seed=3, device="cpu"), splitter=splitter)
        with learn.no_bar(), learn.no_logging():
            learn.freeze()
            learn.fit_one_cycle(1, slice(1e-3, 1e-2))
            learn.unfreeze()
            learn.fit_one_cycle(2, slice(1e-3, 1e-2))
        return left_by(learn)

    np.testing.assert_equal(*with_learner(ask))


def test_a_training_that_is_saved_and_loaded_goes_on_the_same(tmp_path, with_learner):
    def ask():
        torch.manual_seed(0)
        dls = multimodal_dls(source("classification"), seed=3, device="cpu", path=tmp_path)
        learn = multimodal_learner(dls, width=8, cbs=SaveModelCallback(monitor="accuracy", with_opt=True))
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-2)
            learn.save("halfway", with_opt=True)
            learn.fit(1, 1e-2)
            learn.load("halfway", with_opt=True)
            learn.fit(2, 1e-2)
        return left_by(learn)

    np.testing.assert_equal(*with_learner(ask))


def test_the_search_for_a_rate_does_the_same(tmp_path, with_learner):
    def ask():
        torch.manual_seed(0)
        learn = multimodal_learner(multimodal_dls(source("regression"), seed=3, device="cpu", path=tmp_path))
        with learn.no_bar(), learn.no_logging():
            found = learn.lr_find(num_it=20, show_plot=False)
            learn.fit(1, 1e-3)
        return tuple(found), left_by(learn)

    np.testing.assert_equal(*with_learner(ask))


def test_the_loop_leaves_out_only_callbacks_that_do_not_listen():
    calls = []

    class Quiet(Callback):
        def __call__(self, event_name):
            calls.append(event_name)
            return super().__call__(event_name)

        def after_loss(self):
            pass

    learn = fitted("classification", Quiet(), epochs=2)
    assert type(learn) is LeanLearner and type(learn.opt) is LeanAdam
    assert set(calls) == {"before_fit", "after_loss", "after_fit"}
    steps = len(learn.recorder.losses)
    assert calls.count("after_loss") == steps + 2 * len(learn.dls.valid)


def test_gradients_that_others_hold_or_replace_are_taken_in(with_learner):
    class Replaces(Callback):
        "Puts new gradients in place of the old ones, and takes one away, now and then."

        def before_step(self):
            for i, p in enumerate(self.model.parameters()):
                if p.grad is None:
                    continue
                if (i + self.iter) % 3 == 0:
                    p.grad = p.grad.sign()
                elif (i + self.iter) % 5 == 0:
                    p.grad = None

    np.testing.assert_equal(*with_learner(lambda: left_by(fitted("classification", Replaces()))))


def test_a_model_that_changes_its_type_keeps_its_averages():
    "Weights that go to float64 in the middle of a training: the averages of the first half go with them."
    model = nn.Linear(3, 2)
    opt = LeanAdam.of(fastai_adam(model))
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        for _ in range(3):
            model(torch.ones(4, 3, dtype=dtype)).square().mean().backward()
            opt.step()
            opt.zero_grad()
    held = opt.state[model.weight]
    assert held["step"] == 6 and held["grad_avg"].dtype == torch.float64 and held["grad_avg"].abs().sum() > 0


def fastai_adam(model):
    from fastai.optimizer import Adam

    return Adam(list(model.parameters()), lr=0.01)


def test_memory_does_not_grow_with_the_steps():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    opt = LeanAdam.of(fastai_adam(model))
    for i in range(40):
        model[: 1 + i % 2](torch.ones(4, 3)).square().mean().backward()
        if i % 7 == 0:
            model[1].weight.grad = None
        opt.step()
        opt.zero_grad()
    assert len(opt._blocks) <= 4


# ---- what a step that failed leaves


class StopsAt(Callback):
    "An error in the middle of a step, behind the answer of the model."

    def after_pred(self):
        if self.learn.train_iter == 2:
            raise RuntimeError("in the middle")


def in_bfloat16(**options):
    torch.manual_seed(0)
    return multimodal_learner(multimodal_dls(source("classification"), seed=3, device="cpu"), width=8, **options)


def test_a_step_that_fails_leaves_no_autocast_open():
    "Else the next training would be in half precision, and with weights of the step before."

    def trained():
        learn = in_bfloat16(cbs=[CpuPrecision()])
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
        return learn.model.state_dict()

    before, failing = trained(), in_bfloat16(cbs=[CpuPrecision(), StopsAt()])
    for outer in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=outer):
            with pytest.raises(RuntimeError, match="in the middle"), failing.no_bar(), failing.no_logging():
                failing.fit(1, 1e-2)
            assert torch.is_autocast_enabled("cpu") == outer
            assert torch.get_autocast_dtype("cpu") == torch.float16
    assert torch.autocast_increment_nesting() == 1 and torch.autocast_decrement_nesting() == 0
    for name, value in trained().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.cuda
def test_losses_of_an_epoch_on_a_device_are_those_of_fastai(with_learner):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def ask():
        torch.manual_seed(0)
        learn = multimodal_learner(multimodal_dls(source("classification"), seed=3, device="cuda"), width=8)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2)
        return [float(v) for v in learn.recorder.losses]

    ours, theirs = with_learner(ask)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
