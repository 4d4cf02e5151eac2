"The learner and the methods as callbacks: neutral settings, precision, accumulation, interruption, and the registry."

import contextlib
import copy
import itertools
import math
import warnings

import cloudpickle
import pytest
import torch
from common import said_after
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD, Adam
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import mmlit.methods
from mmlit.data.catalogue import load_dataset
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, SumHead
from mmlit.fusion.models import FusionModel, JoinedMLP
from mmlit.learner import METHODS as REGISTRY
from mmlit.learner import (
    Budget,
    FusionMethod,
    Method,
    build_model,
    default_encoders,
    joint,
    joint_run,
    multimodal_learner,
    register_method,
)
from mmlit.methods.baselines import ModalityDropout, MultiLoss
from mmlit.methods.mcr import MCR, mcr_loss
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling
from mmlit.methods.tcmax import TCMax, tcmax_model_loss
from mmlit.monitor import ModalityMonitor

DATA = load_dataset("breast_cancer")  # three modalities, two classes, 569 samples
METHODS = dict(
    multimodal=MultiModal,
    tcmax=TCMax,
    mcr=MCR,
    resampling=lambda: ModalityResampling(warmup=1),
    resampling_modality=lambda: ModalityResampling("modality", warmup=1),
    agm=GradientModulation,
    agm_lr=lambda: GradientModulation(mode="lr"),
    multi_loss=MultiLoss,
    dropout=ModalityDropout,
)
EVERY = pytest.mark.parametrize("name", METHODS)
NEUTRAL = dict(
    tcmax=lambda: TCMax(alignment=0.0),
    agm=lambda: GradientModulation(alpha=0.0),
    agm_lr=lambda: GradientModulation(alpha=0.0, mode="lr"),
    mcr=lambda: MCR(mipd_weight=0.0, unimodal_weight=0.0, contrastive_weight=0.0),
    multi_loss=lambda: MultiLoss(0.0),
    resampling=lambda: ModalityResampling(warmup=99),
    dropout=lambda: ModalityDropout(0.0),
    agm_over=lambda: GradientModulation(start=99),
)


def learner(*cbs, head="concat", opt=Adam, seed=0, bs=32, path="."):
    torch.manual_seed(seed)
    dls = multimodal_dls(DATA, seed=seed, bs=bs, device="cpu", path=path)
    return multimodal_learner(dls, head=head, width=16, cbs=list(cbs), opt_func=opt)


def fit(learn, epochs=2, lr=3e-3, cbs=(), **kwargs):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adam-like")
        learn.fit(epochs, lr, cbs=list(cbs), **kwargs)
    return learn


def weights(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b, **tolerance):
    for k in a:
        if k in b:
            assert_close(a[k], b[k], **tolerance)


class Gradients(Callback):
    "The gradients of the first step, as the optimiser gets them."

    order = MixedPrecision.order + 5

    def before_fit(self):
        self.seen = None

    def before_step(self):
        if self.seen is None:
            self.seen = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("head", ["concat", "film", "attention"])
def test_the_neutral_setting_has_the_gradients_of_plain_training(name, head):
    plain, neutral = (fit(learner(*cbs, Gradients(), head=head), 1).gradients.seen for cbs in ((), (NEUTRAL[name](),)))
    for n, g in plain.items():
        assert_close(neutral[n], g, rtol=1e-4, atol=1e-6)


@EVERY
@pytest.mark.parametrize("head", HEADS)
def test_every_method_trains_every_head(name, head):
    few = (
        dict(pairings=200) if name == "tcmax" and head in ("mlp", "attention") else {}
    )  # heads without structure score sampled pairings
    learn = fit(learner(TCMax(**few) if few else METHODS[name](), head=head), 4)
    assert math.isfinite(learn.recorder.values[-1][0]) and learn.recorder.values[-1][2] > 0.8
    assert not learn.model._feature_hooks and learn.dls.train.plan is None and len(learn.metrics) == 1
    method = (
        learn.cbs[-1]
        if isinstance(learn.cbs[-1], FusionMethod)
        else next(c for c in learn.cbs if isinstance(c, FusionMethod))
    )
    for column in method.columns:
        assert len(method.history[column]) == 4 and math.isfinite(method.history[column][-1]), column


@EVERY
def test_every_learnable_parameter_moves(name):
    learn = learner(METHODS[name]())
    before = {n: p.clone() for n, p in learn.model.named_parameters()}
    fit(learn, 3)
    still = [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])]
    assert not still


def test_the_decoder_of_the_bottleneck_moves_when_it_has_a_weight():
    learn = learner(MCR(ceb_weight=1.0))
    before = learn.model.parts["mcr_heads"].decoder[0].weight.clone()
    assert "ceb" in fit(learn, 1).mcr.history and not torch.equal(
        learn.model.parts["mcr_heads"].decoder[0].weight, before
    )


@EVERY
def test_fit_twice_is_a_fresh_fit(name):
    "A second fit on the same initial weights and batches gives what the first one gave: the callback keeps no state."
    learn = learner(METHODS[name]())
    start = weights(learn)
    first = weights(fit(learn))
    learn.model.load_state_dict(start)
    learn.counted_epochs.done = 0
    learn.opt = None
    same(weights(fit(learn)), first)


class StopAt(Callback):
    def __init__(self, epoch):
        self.stop = epoch

    def after_epoch(self):
        if self.epoch + 1 == self.stop:
            raise CancelFitException()


@pytest.mark.parametrize("name", ["agm", "agm_lr", "resampling", "resampling_modality", "multimodal", "mcr", "dropout"])
def test_interrupted_and_resumed_is_uninterrupted(name, tmp_path):
    whole = weights(fit(learner(METHODS[name]()), 4))
    first = fit(learner(METHODS[name](), path=tmp_path), 4, cbs=[StopAt(2)])
    first.save("half")
    second = learner(METHODS[name](), path=tmp_path, seed=0)
    second.create_opt()
    second.load("half")
    same(weights(fit(second, 4, start_epoch=2)), whole)


@EVERY
def test_cancelled_training_leaves_nothing_behind(name):
    learn = fit(learner(METHODS[name]()), 3, cbs=[StopAt(2)])
    assert not learn.model._feature_hooks and learn.dls.train.plan is None and len(learn.metrics) == 1


@pytest.mark.parametrize("name", ["tcmax", "mcr", "multi_loss"])
def test_penalties_leave_the_logged_loss_alone(name):
    class Compare(Callback):
        order = 55

        def after_loss(self):
            if self.training:
                assert_close(self.loss, self.loss_func(self.pred, *self.yb))

    learn = fit(learner(METHODS[name](), Compare()), 1)
    assert learn.recorder.values


@pytest.mark.parametrize(
    "name, formula",
    [
        ("tcmax", lambda learn, zs, y: tcmax_model_loss(learn.model, zs, y)),
        (
            "mcr",
            lambda learn, zs, y: (
                mcr_loss(
                    learn.model, zs, y, learn.model.parts["mcr_heads"], generator=torch.Generator().manual_seed(0)
                ).total
            ),
        ),
    ],
)
def test_the_first_gradient_is_that_of_the_formula(name, formula):
    learn = learner(METHODS[name](), Gradients())
    twin, rng = copy.deepcopy(learn.model), learn.dls.train.rng.getstate()
    seen = fit(learn, 1).gradients.seen
    learn.dls.train.rng.setstate(rng)
    learn.model = twin
    *xs, y = learn.dls.train.one_batch()
    formula(learn, twin.encode(*xs), y).backward()
    for n, p in twin.named_parameters():
        if p.grad is not None:
            assert_close(seen[n], p.grad, rtol=1e-4, atol=1e-6)


class CPUAutocast(MixedPrecision):
    "fastai's MixedPrecision asks for CUDA; the same on a CPU in bfloat16."

    def before_fit(self):
        self.autocast = torch.autocast("cpu", torch.bfloat16)
        self.learn.scaler = None

    def before_batch(self):
        self.autocast.__enter__()

    def after_pred(self):
        self.learn.pred = self.pred.float()

    def after_loss(self):
        self.autocast.__exit__(None, None, None)

    def before_backward(self):
        pass

    def before_step(self):
        pass

    def after_step(self):
        pass

    def after_fit(self):
        pass


@EVERY
@pytest.mark.parametrize(
    "companion",
    [
        CPUAutocast,
        lambda: GradientClip(0.1),
        lambda: GradientAccumulation(64),
        lambda: EarlyStoppingCallback(patience=1),
    ],
    ids=["bfloat16", "clip", "accumulate", "early"],
)
def test_every_method_goes_with_fastai(name, companion):
    learn = fit(learner(METHODS[name](), companion(), ModalityMonitor()), 3)
    assert all(torch.isfinite(v.float()).all() for v in learn.model.state_dict().values())
    assert learn.recorder.values[-1][2] > 0.6


@pytest.mark.parametrize("name", ["mcr", "multi_loss"])
def test_accumulated_penalties_are_divided_like_the_loss(name):
    "Two half batches accumulated have half the sum of their gradients, penalties included."
    seen = []
    for bs, cbs in ((32, (GradientAccumulation(64),)), (32, ())):
        learn = learner(METHODS[name](), Gradients(), *cbs, bs=bs, opt=SGD)
        fit(learn, 1, lr=0.0)
        seen.append(learn.gradients.seen)
    accumulated, single = (torch.cat([g.flatten() for g in s.values()]) for s in seen)
    assert accumulated.norm() < 1.05 * single.norm()  # undivided they would be about twice as long


@EVERY
def test_lr_find_save_model_and_freezing(name, tmp_path):
    learn = learner(METHODS[name](), path=tmp_path)
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.lr_find(num_it=20, show_plot=False)
    same(weights(learn), before)
    learn.model.encoders[0].requires_grad_(False)
    learn.create_opt()
    fit(learn, 2, cbs=[SaveModelCallback(monitor="accuracy", fname="best")])
    same({k: v for k, v in before.items() if k.startswith("encoders.0.")}, weights(learn))


@pytest.mark.parametrize("name", ["multimodal", "tcmax", "mcr", "agm"])
def test_export_and_predict(name, tmp_path):
    learn = fit(learner(METHODS[name](), path=tmp_path), 1)
    item = tuple(x[3] for x in DATA.xs.values())
    with learn.no_bar():
        wanted = learn.predict(item)[2]
        learn.export(tmp_path / "model.pkl")
        again = load_learner(tmp_path / "model.pkl")
    with again.no_bar():
        assert_close(again.predict(item)[2], wanted)


def test_gradient_modulation_of_a_late_fusion_scales_the_encoders_gradients():
    learn = learner(GradientModulation(alpha=1.0), Gradients(), head="sum", opt=SGD)
    plain = learner(Gradients(), head="sum", opt=SGD)
    seen, reference = fit(learn, 1).gradients.seen, fit(plain, 1).gradients.seen
    kappa = []
    for m in range(3):  # first layers: the muted pass has a zero input and sends them nothing
        g, plain_g = seen[f"encoders.{m}.1.weight"], reference[f"encoders.{m}.1.weight"]
        kappa.append((g * plain_g).sum() / plain_g.square().sum())
        assert_close(g, kappa[-1] * plain_g, rtol=1e-3, atol=1e-6)
    assert max(kappa) > 1.01 > 0.99 > min(kappa)


def test_mode_lr_scales_steps_under_any_optimiser():
    class Fixed(GradientModulation):
        def after_pred(self):
            super().after_pred()
            self.kappa = torch.tensor([0.5, 1.0, 2.0])

    start = weights(learner())
    moved = []
    for cbs in ((), (Fixed(mode="lr"),)):
        learn = learner(*cbs)

        class One(Callback):
            def after_batch(self):
                if self.training:
                    raise CancelFitException()

        moved.append(weights(fit(learn, 1, cbs=[One()])))
    for m, k in enumerate((0.5, 1.0, 2.0)):
        key = f"encoders.{m}.1.weight"
        assert_close(moved[1][key] - start[key], k * (moved[0][key] - start[key]), rtol=1e-3, atol=1e-7)


def test_adam_is_warned_about_and_sgd_is_not():
    with pytest.warns(UserWarning, match="hide constant factors"):
        learn = learner(GradientModulation())
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Adam-like")
        learn = learner(GradientModulation(), opt=SGD)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)


def test_what_is_masked_is_masked_for_every_method():
    class Seen(TCMax):
        def begin_training(self):
            super().begin_training()
            self.dropped, self.nonzero = 0, 0

        def after_loss(self):
            keep = self.learn.dl.batch_keep
            for z, k in zip(self.zs, keep.T):
                self.dropped, self.nonzero = (
                    self.dropped + int((~k).sum()),
                    self.nonzero + int(z[~k].abs().sum(1).count_nonzero()),
                )
            super().after_loss()

    for cbs in ([Seen(), ModalityResampling(warmup=0)], [ModalityResampling(warmup=0), Seen()]):
        seen = next(c for c in fit(learner(*cbs), 1).cbs if isinstance(c, Seen))
        assert seen.dropped > 20 and seen.nonzero == 0
    either = [weights(fit(learner(*cbs), 1)) for cbs in ([MCR(), ModalityDropout(0.5)], [ModalityDropout(0.5), MCR()])]
    same(*either)  # the order in which they were added does not matter


class Stop(Callback):
    "Ctrl-C in the middle of an epoch."

    def __init__(self, epoch):
        self.at = epoch

    def before_batch(self):
        if self.training and self.epoch == self.at and self.iter == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["resampling", "mcr"])
def test_an_interrupted_fit_leaves_nothing_to_the_next(name):
    learn = learner(METHODS[name](), Stop(1))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(learn, 3)
    assert learn.dls.train.plan is None
    fit(learn, 1)  # ends before the epoch of the interruption
    assert (
        not learn.model._feature_hooks
        and len(learn.metrics) == 1
        and len(set(learn.recorder.metric_names)) == len(learn.recorder.metric_names)
    )
    fresh = multimodal_learner(learn.dls, width=16)
    rows = []

    class Count(Callback):
        def before_batch(self):
            if self.training:
                rows.append(len(self.y))

    fit(fresh, 1, cbs=[Count()])
    assert len(rows) == len(learn.dls.train) and sum(rows) <= len(learn.dls.split.train)


def test_options_that_could_not_act_are_refused():
    learn = learner(MultiModal(k=5))
    learn.remove_cb(learn.multi_modal)
    learn.add_cb(MultiModal(k=5))  # the same head goes on
    learn.remove_cb(learn.multi_modal)
    with pytest.raises(ValueError, match="already"):
        learn.add_cb(MultiModal(k=3))
    with pytest.raises(TypeError, match="prior"):  # with another prior the trained logits would lack ln p(y)
        TCMax(prior="empirical")
    encoder = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU())
    with pytest.raises(ValueError, match="share parameters"):
        multimodal_learner(learn.dls, [encoder] * 3, method=GradientModulation(mode="lr"))
    pictures = multimodal_dls(load_dataset("emoji"), device="cpu")
    network = JoinedMLP([pictures.shapes[m] for m in pictures.modalities], pictures.c)
    for method in (MultiLoss(), MCR()):
        with pytest.raises(ValueError, match="name the encoders"):
            multimodal_learner(pictures, network, method=method)


def test_modulation_of_a_regression_lets_every_encoder_learn():
    rng = torch.Generator().manual_seed(0)
    xs = torch.randn(2, 600, 3, generator=rng)
    dls = multimodal_dls({"a": xs[0], "b": xs[1]}, (xs[0, :, 0] + 0.8 * xs[1, :, 0]).numpy(), device="cpu", seed=0)
    torch.manual_seed(0)
    learn = fit(multimodal_learner(dls, method=GradientModulation(mode="lr"), width=16), 15)
    kappa = torch.tensor(list(learn.gradient_modulation.history.values()))
    assert 0.3 < kappa.min() and kappa.max() < 3 and learn.validate(ds_idx=1)[0] < 0.05


@pytest.mark.parametrize("shift, scale", [(1000.0, 14.0), (0.0, 1e-3)])
def test_a_regression_does_not_depend_on_the_unit_of_its_target(shift, scale):
    x = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum((0, 2))

    def predictions(target, method):
        torch.manual_seed(0)
        learn = fit(
            multimodal_learner(
                multimodal_dls({"a": x[0], "b": x[1]}, target.numpy(), device="cpu", seed=0), method=method(), width=8
            ),
            3,
        )
        with learn.no_bar():
            return learn.get_preds(ds_idx=2)[0]

    for method in (MultiLoss, ModalityDropout):
        assert_close(
            (predictions(shift + scale * y, method) - shift) / scale, predictions(y, method), rtol=0.05, atol=0.05
        )


@EVERY
def test_validation_and_prediction_leave_the_histories_alone(name):
    learn = fit(learner(METHODS[name](), ModalityMonitor()), 2)
    kept = copy.deepcopy([c.history for c in learn.cbs if isinstance(c, FusionMethod)])
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds(ds_idx=2)
    assert [c.history for c in learn.cbs if isinstance(c, FusionMethod)] == kept
    assert not learn.model._feature_hooks and len(learn.metrics) == 1 and learn.dls.train.plan is None


def test_methods_combine_where_it_has_a_meaning():
    learn = fit(learner(MCR(), ModalityResampling(warmup=1), GradientModulation(mode="lr"), ModalityMonitor()), 3)
    assert learn.recorder.values[-1][2] > 0.8
    with pytest.raises(ValueError, match="cannot be combined"):
        learner(GradientModulation(), TCMax())


# ---- the base class


class Penalty(FusionMethod):
    columns = ("penalty",)

    def __init__(self, weight=0.1):
        self.weight = weight

    def after_loss(self):
        term = sum(z.pow(2).mean() for z in self.zs)
        self.record(penalty=term)
        self.add_loss(self.weight * term)


class Louder(Penalty):
    pass


class ByName(FusionMethod):
    excludes = ("Penalty",)


class ByClass(FusionMethod):
    excludes = (Penalty,)


@pytest.mark.parametrize("one", [ByName, ByClass])
@pytest.mark.parametrize("other", [Penalty, Louder])
def test_what_a_method_excludes_is_refused_in_either_order_and_with_its_subclasses(one, other):
    for pair in itertools.permutations([one, other]):
        with pytest.raises(ValueError, match="cannot be combined"):
            learner(*(kind() for kind in pair))


def test_a_subclass_of_gradient_modulation_is_excluded_by_tcmax():
    class Mine(GradientModulation):
        pass

    for cbs in ([TCMax(), Mine()], [Mine(), TCMax()]):
        with pytest.raises(ValueError, match="cannot be combined"):
            learner(*cbs)


def test_a_method_goes_beside_itself_only_as_another_class():
    with pytest.raises(ValueError, match="cannot be combined"):
        learner(Penalty(), Penalty())
    assert math.isfinite(fit(learner(Penalty(), Louder()), 1).recorder.values[-1][0])


def test_a_value_without_a_column_is_an_error_that_names_the_columns():
    class Misspelt(Penalty):
        def after_loss(self):
            self.record(penalti=0.0)

    with pytest.raises(ValueError, match="did you mean 'penalty'"):
        fit(learner(Misspelt()), 1)


def test_records_are_means_weighted_by_their_counts():
    class Counted(FusionMethod):
        columns = ("value", "never")

        def after_loss(self):
            self.record(value=float(self.iter), n=self.iter)

    history = fit(learner(Counted()), 2).counted.history
    n = len(learner().dls.train)
    mean = sum(i * i for i in range(n)) / sum(range(n))
    assert history["value"] == pytest.approx([mean, mean])
    assert all(math.isnan(v) for v in history["never"]) and len(history["never"]) == 2


def test_a_method_refuses_models_and_loaders_that_do_not_fit():
    learn = learner()
    learn.model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="encode and fuse"):
        learn.add_cb(Penalty())


@EVERY
@pytest.mark.parametrize("outputs", [1, 3])
def test_methods_train_on_loaders_that_know_nothing_but_their_batches(name, outputs):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(40, generator=g) if outputs == 1 else torch.arange(40) % 3
    rows = TensorDataset(*torch.randn(2, 40, 4, generator=g), y)
    dls = DataLoaders(*(DataLoader(rows, bs=20, n_inp=2) for _ in range(2)))
    torch.manual_seed(0)
    model = FusionModel([torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)], SumHead([5, 5], outputs))
    loss = torch.nn.CrossEntropyLoss() if outputs == 3 else lambda out, y: (out[:, 0] - y).square().mean()
    refused = "resampling" in name or outputs == 1 and name in ("multimodal", "tcmax")
    with pytest.raises(ValueError, match="needs|bin them") if refused else contextlib.nullcontext():
        fit(Learner(dls, model, loss_func=loss, cbs=METHODS[name]()), 1)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_generator_depends_on_seed_and_epoch_only():
    class Draws(FusionMethod):
        def __init__(self, seed):
            self.seed, self.seen = seed, []

        def begin_epoch(self):
            super().begin_epoch()
            self.seen.append(torch.rand(1, generator=self.generator).item())

    one, same_seed, other = (fit(learner(Draws(seed), seed=k), 3).draws.seen for k, seed in ((0, 5), (1, 5), (0, 6)))
    assert one == same_seed and len(set(one)) == 3 and one != other


# ---- models of loaders


def test_encoders_and_heads_that_do_not_fit_are_refused():
    dls = learner().dls
    with pytest.raises(ValueError, match="unknown head 'flim' .did you mean 'film'"):
        build_model(dls, head="flim")
    with pytest.raises(ValueError, match="2 encoders for the 3 modalities"):
        build_model(dls, default_encoders(dls)[:2])
    with pytest.raises(TypeError, match="los_func"):
        multimodal_learner(dls, los_func=None)


def test_a_model_or_a_head_that_is_given_is_taken_as_it_is():
    dls = learner().dls
    model = build_model(dls)
    assert build_model(dls, model) is model
    head = HEADS["sum"]((64,) * 3, 2)
    assert build_model(dls, torch.nn.ModuleList(default_encoders(dls)), head=head).head is head


# ---- runs, methods, the registry


def test_the_tag_of_a_run_is_its_options_in_order():
    run = joint_run("mine", ModalityDropout, seed=3, p=0.5)
    assert run.tag == "[('p', 0.5), ('seed', 3)]" and joint_run().tag == "[]"
    assert joint_run("mine", ModalityDropout, p=0.5, tag="other").tag == "other"


def test_an_option_that_the_callback_does_not_have_is_refused_at_once():
    with pytest.raises(TypeError, match="alignments"):
        joint_run("tcmax", TCMax, alignments=1.0)
    with pytest.raises(TypeError, match="weights"):
        joint("title", "multi_loss", MultiLoss, weights=1.0)


def test_a_run_makes_encoders_and_callbacks_anew():
    made = []

    def encoders():
        made.append(default_encoders(dls, 8))
        return made[-1]

    dls, run = learner().dls, joint_run("mine", MultiLoss, encoders=encoders, head="sum", weight=0.5)
    one, two = (run.make(dls, Budget(), {}) for _ in range(2))
    assert len(made) == 2 and one.model.encoders[0] is not two.model.encoders[0]
    assert one.multi_loss is not two.multi_loss and one.multi_loss.weight == 0.5
    assert isinstance(one.model.head, HEADS["sum"])


ORDER = (
    "unimodal ensemble ensemble_prob ensemble_calibrated deep_ensemble joint lr_control multi_loss modality_dropout "
    "pretrained frozen linear mcr mcr_pretrained resampling resampling_modality agm agm_lr multimodal scaled_sum tcmax"
).split()


def test_the_registry_has_every_method_in_the_same_order_whatever_was_imported_first():
    first = ["import mmlit.learner", "import mmlit.methods.tcmax", "import mmlit.methods.modulation"]
    said = said_after(first, "from mmlit.learner import METHODS; print(*METHODS)")
    assert said == [" ".join(ORDER)] * 3


def test_the_registry_reads_like_a_dictionary():
    assert list(REGISTRY) == list(REGISTRY.keys()) and len(REGISTRY) >= len(ORDER) and "joint" in REGISTRY
    assert "no such" not in REGISTRY and REGISTRY.get("no such") is None and REGISTRY.get("joint") is REGISTRY["joint"]
    assert all(isinstance(m, Method) and m.title for m in REGISTRY.values())
    mine = joint("mine", "mine", MultiLoss, weight=0.1)
    both = REGISTRY | {"mine": mine, "joint": mine}
    assert type(both) is dict and both["mine"] is both["joint"] is mine
    assert "mine" not in REGISTRY and REGISTRY["joint"] is not mine
    with pytest.raises(ValueError, match="unknown method 'tcmx' .did you mean 'tcmax'"):
        REGISTRY["tcmx"]


def test_a_name_is_registered_once_and_again_by_its_own_chapter_only():
    mine, again = joint("mine", "scratch"), joint("mine", "scratch")
    try:
        assert register_method("scratch", mine) is mine and REGISTRY["scratch"] is mine
        register_method("scratch", again)  # the same recipe: a cell that is run twice
        assert REGISTRY["scratch"] is again
        others = (joint("mine", "scratch", head="film"), joint("mine", "scratch", MultiLoss), joint("mine", "other"))
        for other in (*others, joint("mine", "scratch", learner=dict(opt_func=SGD)), joint("mine", "scratch", lr=3.0)):
            with pytest.raises(ValueError, match="another method 'scratch'"):
                register_method("scratch", other)
        with pytest.raises(ValueError, match="'scratch' already, 'mine'"):
            register_method("scratch", joint("another", "scratch"))
    finally:
        REGISTRY.entries.pop("scratch")
    with pytest.raises(ValueError, match="'tcmax' already"):
        register_method("tcmax", mine)
    assert list(REGISTRY) == ORDER


@pytest.mark.parametrize("by_value", [False, True], ids=["module", "notebook"])
@pytest.mark.parametrize("name", ORDER)
def test_every_method_can_be_sent_to_another_process(name, by_value):
    "By the name of its module, or whole, as where the cells of its chapter were run in a notebook."
    if by_value:
        cloudpickle.register_pickle_by_value(mmlit.methods)
    try:
        method = cloudpickle.loads(cloudpickle.dumps(REGISTRY[name]))
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(mmlit.methods)
    runs, sent = REGISTRY[name].runs(["a", "b"]), method.runs(["a", "b"])
    assert method.title == REGISTRY[name].title
    assert [(r.name, r.tag, r.lr, [n.name for n in r.needs]) for r in sent] == [
        (r.name, r.tag, r.lr, [n.name for n in r.needs]) for r in runs
    ]


@pytest.mark.parametrize(
    "options", [dict(epochs=0), dict(bs=1), dict(width=0), dict(lr=0.0), dict(lr=-1.0), dict(head="concatt")], ids=str
)
def test_a_budget_that_trains_nothing_is_refused(options):
    with pytest.raises(ValueError, match="of a budget must be|did you mean 'concat'"):
        Budget(**options).check()
    Budget().check()
