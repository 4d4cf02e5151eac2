"What a training needs and keeps: groups of parameters, frozen modules, and exact resumption, for every method."

import gc
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import fit_one_cycle, lr_find  # noqa: F401  they patch Learner
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import params
from torch import nn
from torch.testing import assert_close

from mmlit.data.loaders import multimodal_dls
from mmlit.learner import Budget, FusionMethod, build_model, multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss, pretrained_learner, unimodal_learner
from mmlit.methods.mcr import MCR
from mmlit.monitor import ModalityMonitor
from mmlit.training import untrained_parameters, with_parts

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 300)
XS = {"a": RNG.normal(size=(300, 6)) + np.eye(3, 6)[Y], "b": RNG.normal(size=(300, 5))}
SEVERAL = np.stack([Y == 0, Y > 0, RNG.random(300) < 0.5], 1).astype("f")
TARGETS = {"classification": Y, "multi-label": SEVERAL, "regression": (XS["a"][:, 0] + 0.1 * XS["b"][:, 0]).astype("f")}


def loaders(path=".", task="classification", bs=32):
    return multimodal_dls(XS, TARGETS[task], path=path, device="cpu", bs=bs, task=task)


def encoder(n_in, dropout=0.5):
    return nn.Sequential(nn.Linear(n_in, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout))


def learner(method=None, path=".", task="classification", **options):
    torch.manual_seed(0)
    return multimodal_learner(loaders(path, task), [encoder(6), encoder(5)], method=method, **options)


def fit(learn, epochs=2, lr=3e-3, **options):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, **options)
    return learn


def weights(learn):
    return torch.cat([p.detach().flatten().float() for p in learn.model.state_dict().values()])


class Part(FusionMethod):
    "A method with a module of its own."

    def attach(self):
        super().attach()
        self.add_part(type(self).__name__, lambda: nn.ModuleList([nn.Linear(d, 1) for d in self.feature_dims()]))

    def after_loss(self):
        heads = self.model.parts[type(self).__name__]
        self.add_loss(sum(head(z).square().mean() for head, z in zip(heads, self.zs)))


class Other(Part):
    pass


# ---- every parameter in a group


SPLITTERS = dict(
    default=None,
    blind=lambda m: [params(m.encoders), params(m.head)],
    one_flat=lambda m: params(m.encoders) + params(m.head),
    generator=lambda m: (p for part in (m.encoders, m.head) for p in part.parameters()),
    whole=params,
    three=lambda m: [params(m.encoders[0]), params(m.encoders[1]), params(m.head)],
)


@pytest.mark.parametrize("opt", [SGD, partial(OptimWrapper, opt=torch.optim.Adam)], ids=["fastai", "torch"])
@pytest.mark.parametrize("name", SPLITTERS)
def test_parts_are_trained_whatever_the_splitter(name, opt):
    options = {} if name == "default" else dict(splitter=SPLITTERS[name])
    learn = learner(Part(), opt_func=opt, **options)
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    fit(learn, 1)
    still = [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])]
    assert set(still) <= {"encoders.0.0.bias", "encoders.1.0.bias"}  # in front of a normalisation: no gradient


def test_groups_rates_and_freezing_stay_those_of_the_user():
    learn = learner(Part(), splitter=SPLITTERS["three"])
    learn.freeze()
    assert len(learn.opt.param_lists) == 3
    assert all(p.requires_grad for p in [*learn.model.head.parameters(), *learn.model.parts.parameters()])
    assert not learn.model.encoders[0][0].weight.requires_grad
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=slice(1e-4, 1e-2))
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])
    with pytest.raises(AssertionError, match="2 values for lr but there are 3"), learn.no_bar():
        learn.fit(1, lr=[1e-3, 1e-2])


def test_a_splitter_may_write_groups_as_torch_does():
    learn = learner(
        Part(),
        splitter=lambda m: [dict(params=params(m.encoders), lr=0.1), dict(params=params(m.head), lr=0.2)],
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD, convert_groups=False),
    )
    learn.create_opt()
    assert untrained_parameters(learn.model, learn.opt) == [] and len(learn.opt.param_lists) == 2


def test_an_optimiser_that_was_made_before_the_parts_is_refused():
    torch.manual_seed(0)
    dls = loaders()
    model = build_model(dls)
    ready = OptimWrapper(opt=torch.optim.SGD(model.parameters(), 0.1))
    learn = multimodal_learner(dls, model, method=Part(), opt_func=ready)
    with pytest.raises(ValueError, match=r"does not hold parts\.Part"):
        fit(learn, 1)


def test_what_a_splitter_leaves_out_is_named_once():
    learn = learner(splitter=lambda m: params(m.head))
    with pytest.warns(UserWarning, match=r"encoders\.0\.0\.bias.* and 5 more.*in no group") as said:
        fit(learn, 1), fit(learn, 1)
    assert len([w for w in said if "in no group" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn = learner(splitter=lambda m: params(m.head))
        learn.model.encoders.requires_grad_(False)
        fit(learn, 1)  # frozen, as the message advises


def test_the_wrapped_splitter_is_wrapped_once_and_can_be_sent():
    wrapped = with_parts(params)
    assert with_parts(wrapped) is wrapped and wrapped.args == (params,)


# ---- the order in which methods are added


def test_two_methods_with_parts_start_and_end_with_the_same_weights_in_either_order():
    found = []
    for kinds in ((Part, Other, MultiLoss), (MultiLoss, Other, Part)):
        learn = learner(cbs=[kind() for kind in kinds])
        start = {n: p.clone() for n, p in learn.model.state_dict().items()}
        fit(learn, 2)
        found.append((start, learn.model.state_dict()))
    for one, two in zip(*found):
        for n in one:
            assert_close(one[n], two[n], rtol=1e-3, atol=1e-5)
    parts = found[0][0]
    assert not torch.equal(parts["parts.Part.0.weight"], parts["parts.Other.0.weight"])


def test_a_part_moves_no_random_number_of_the_training():
    torch.manual_seed(0)
    learner()
    plain = torch.rand(1)
    learner(Part())
    assert torch.equal(torch.rand(1), plain)


# ---- frozen means frozen


@pytest.mark.parametrize("method", [None, MultiLoss, MCR, ModalityDropout])
def test_frozen_encoders_keep_their_function_statistics_and_dropout_included(method):
    dls = loaders()
    torch.manual_seed(0)
    alone = [fit(unimodal_learner(dls, m, encoder(d)), 1).model for m, d in (("a", 6), ("b", 5))]
    learn = pretrained_learner(dls, alone, freeze=True, method=method)
    before = {n: t.clone() for n, t in learn.model.encoders.state_dict().items()}
    seen = []

    class Mode(Callback):
        run_valid = False

        def after_pred(self):
            seen.append([m.training for m in self.learn.model.encoders.modules()])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MultiLoss acts")
        fit(learn, 2, cbs=Mode())
    assert all(torch.equal(t, before[n]) for n, t in learn.model.encoders.state_dict().items())
    assert not any(map(any, seen)) and learn.model.head.training is False  # after the last validation


def test_fastai_freezes_statistics_only_where_train_bn_says_so():
    for train_bn in (True, False):
        learn = learner(splitter=SPLITTERS["blind"], train_bn=train_bn)
        learn.freeze()
        before = learn.model.encoders[0][1].running_mean.clone()
        fit(learn, 1)
        assert torch.equal(learn.model.encoders[0][1].running_mean, before) is not train_bn


def test_multi_loss_on_frozen_encoders_says_that_it_does_nothing():
    learn = learner(MultiLoss())
    learn.model.encoders.requires_grad_(False)
    with pytest.warns(UserWarning, match="all of them are frozen"):
        fit(learn, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn = learner(MultiLoss())
        learn.model.encoders[0].requires_grad_(False)  # one that learns is enough
        fit(learn, 1)


# ---- resumed is uninterrupted


class StopAt(Callback):
    order = 90

    def __init__(self, epochs):
        self.epochs = epochs

    def after_epoch(self):
        if self.epoch + 1 == self.epochs:
            raise CancelFitException()


@pytest.mark.parametrize("opt", [None, partial(OptimWrapper, opt=torch.optim.Adam)], ids=["fastai", "torch"])
@pytest.mark.parametrize("method", [None, MultiLoss, ModalityDropout, MCR])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(method, opt, tmp_path):
    options = {} if opt is None else dict(opt_func=opt)
    whole = weights(fit(learner(method, **options), 3))
    saved = SaveModelCallback(every_epoch=True, with_opt=True)
    fit(learner(method, tmp_path, **options), 3, cbs=[saved, StopAt(1)])
    again = learner(method, tmp_path, **options)
    for _ in range(3):
        again.dls.train.one_batch()  # a look at the data after the learner was made
    torch.rand(5), random.random(), np.random.rand()
    again.load("model_0")
    assert torch.equal(weights(fit(again, 3, start_epoch=1)), whole)


def test_a_history_has_one_value_an_epoch_also_where_it_was_resumed(tmp_path):
    learn = fit(learner(MultiLoss(), tmp_path), 2)
    kept = list(learn.multi_loss.history["unimodal_loss"])
    fit(learn, 4, start_epoch=2)
    assert learn.multi_loss.history["unimodal_loss"][:2] == kept
    fresh = fit(learner(MultiLoss(), tmp_path), 3, start_epoch=2).multi_loss.history["unimodal_loss"]
    assert np.isnan(fresh[:2]).all() and len(fresh) == 3 and fresh[2] > 0


def test_a_second_training_and_one_after_a_search_walk_on(tmp_path):
    one, two = learner(path=tmp_path), learner(path=tmp_path)
    with two.no_bar(), two.no_logging():
        two.lr_find(num_it=6, show_plot=False)
    assert torch.equal(weights(fit(one)), weights(fit(two)))
    assert one.counted_epochs.done == two.counted_epochs.done == 2
    assert one.dls.train.rng.getstate() == two.dls.train.rng.getstate()


def test_an_interrupted_training_never_moves_the_generators_later():
    "Neither when its learner is collected, nor when it is trained again after the user seeded anew."

    class Interrupt(Callback):
        def before_batch(self):
            raise KeyboardInterrupt

    for again in (False, True):
        interrupt = Interrupt()
        learn = learner(cbs=interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(learn)
        learn.remove_cb(interrupt)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        if again:
            fit(learn)
        del learn, interrupt
        gc.collect()
        assert torch.equal(torch.get_rng_state(), state)


def test_a_validation_inside_of_a_training_ends_no_method():
    class Looks(Callback):
        order = 95

        def after_epoch(self):
            self.learn.get_preds(inner=True)

    learn = fit(learner(MultiLoss(), cbs=Looks()), 3)
    assert np.isfinite(learn.multi_loss.history["unimodal_loss"]).all()
    learn = learner(MultiLoss())
    with learn.no_mbar():
        fit(learn, 1)  # a training without a bar is a training
    assert len(learn.multi_loss.history["unimodal_loss"]) == 1


# ---- misfits


def test_a_method_serves_one_learner():
    method = MultiLoss()
    first = learner(method)
    with pytest.raises(ValueError, match="belongs to another learner"):
        learner(method)
    first.remove_cb(method)
    assert learner(method).multi_loss is method


@pytest.mark.parametrize("wrong", ["mcr", 3, [MCR()], (MCR,), Learner, nn.Linear(2, 2)], ids=str)
def test_what_is_no_method_is_refused(wrong):
    with pytest.raises(TypeError, match="method must be a callback"):
        learner(wrong)


def test_a_model_that_does_not_fit_the_loaders_is_refused_with_the_numbers():
    dls = loaders()
    three = build_model(multimodal_dls({**XS, "c": XS["a"]}, Y, device="cpu"))
    with pytest.raises(ValueError, match="takes 3 modalities, and the loaders have 2"):
        multimodal_learner(dls, three)
    narrow = build_model(multimodal_dls(XS, Y % 2, device="cpu"))
    with pytest.raises(ValueError, match=r"answers \(2,\) for each sample, and the loaders have 3 classes"):
        multimodal_learner(dls, narrow)
    with pytest.raises(ValueError, match="3 labels"):
        multimodal_learner(loaders(task="multi-label"), narrow)
    multimodal_learner(dls, narrow, loss_func=nn.CrossEntropyLoss())  # whoever brings a loss knows what it takes


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["parallel", "compile"]
)
def test_a_wrapper_that_is_put_on_later_changes_nothing(wrap):
    plain = weights(fit(learner(MultiLoss()), 1))
    learn = learner(MultiLoss())
    inner = learn.model
    learn.model = wrap(inner)
    fit(learn, 1)
    learn.model = inner
    assert_close(weights(learn), plain)


BAD = [dict(bs=2.5), dict(lr=float("inf")), dict(lr=float("nan")), dict(lr="1"), dict(epochs=True), dict(width=None)]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_nonsense_in_a_budget_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} of a budget must be"):
        Budget(**options).check()


# ---- tasks


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("method", [MultiLoss, ModalityDropout])
def test_baselines_learn_every_task_and_the_monitor_measures_it(method, task):
    learn = fit(learner(method, task=task, cbs=ModalityMonitor()), 12, lr=1e-2)
    history = learn.modality_monitor.history
    *xs, y = (torch.cat(column) for column in zip(*learn.dls.valid))
    with torch.no_grad():
        zs = learn.model.eval().encode(*xs)
        alone = learn.model.fuse([zs[0], torch.zeros_like(zs[1])])
    if task == "classification":
        wanted, floor = (alone.argmax(1) == y).float().mean(), 0.4
    elif task == "multi-label":
        wanted, floor = ((alone > 0) == y.bool()).float().mean(), 0.55
    else:
        wanted, floor = 1 - ((alone[:, 0] - y.flatten()) ** 2).mean() / learn.dls.units[1] ** 2, 0.2
    assert history["only a"][-1] == pytest.approx(wanted.item(), abs=1e-5) and wanted > floor
    assert [m.name for m in learn.metrics] == dict(zip(TARGETS, (["accuracy"], ["accuracy_multi"], [])))[task]


def test_the_loss_of_multi_loss_is_the_users():
    weight = torch.tensor([5.0, 1.0, 1.0])
    own = nn.CrossEntropyLoss(weight=weight)
    seen = []

    class Seen(FusionMethod):
        def after_loss(self):
            terms = [own(head(z), self.y) for head, z in zip(self.model.parts["multi_loss_heads"], self.zs)]
            seen.append(sum(terms).item())

    learn = fit(learner(MultiLoss(), loss_func=own, cbs=Seen()), 1)
    assert learn.multi_loss.history["unimodal_loss"] == pytest.approx([np.mean(seen)], rel=1e-5)
