"""AGM (Li et al. 2023) and valuation (Wei et al. 2024) beside loops written from the papers' formulas.

Nothing of the library is used in the loops. Callbacks are compared with torch trainings written by hand.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import generator
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, OptimWrapper
from fasttransform import ItemTransform
from torch import nn
from torch.testing import assert_close
from trajectories import SETTINGS, Setting, same_trajectory

from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel
from mmlit.learner import multimodal_learner
from mmlit.methods.modulation import (
    ConditionalClip,
    GradientModulation,
    hides_factors,
    modality_responses,
    modulation_coefficients,
    muted_logits,
    regression_response_scores,
    response_scores,
    routed_logits,
)
from mmlit.methods.shapley import ModalityResampling, resampling_frequency, resampling_plan, valuate

F64 = torch.float64
FLOOR = math.log(1e-8)


# ---- AGM, from the paper


class Scale(torch.autograd.Function):
    "x; backwards its gradient times k."

    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.k, None


def with_zeros(model, xs, present):
    return model(*[x if there else torch.zeros_like(x) for x, there in zip(xs, present)])


def responses_from_the_paper(model, xs):
    "The closed forms of two and of three modalities."
    if len(xs) == 2:
        both, a, b = (with_zeros(model, xs, s) for s in ((1, 1), (1, 0), (0, 1)))
        return [(both - b + a) / 2, (both - a + b) / 2]
    answers = {s: with_zeros(model, xs, s) for s in np.ndindex(2, 2, 2) if any(s)}

    def response(i):
        j, k = (m for m in range(3) if m != i)

        def f(*members):
            return answers[tuple(int(m in members) for m in range(3))]

        return (f(i, j, k) - f(j, k) + f(i)) / 3 + (f(i, k) - f(k) + f(i, j) - f(j)) / 6

    return [response(i) for i in range(3)]


def scores_from_the_paper(responses, y):
    scores = []
    for m in responses:
        total = 0.0
        for row, label in zip(m.detach().tolist(), y.tolist()):
            p = math.exp(row[label]) / sum(math.exp(v) for v in row)
            total += math.log(max(p, 1e-8))
        scores.append(total / len(y))
    return scores


def coefficients_from_the_paper(scores, history, alpha, cap):
    def ratio(s, i):
        others = [s[j] for j in range(len(s)) if j != i]
        return math.exp(sum(s[i] - other for other in others) / len(others))

    return [math.exp(alpha * min(ratio(history, i) - ratio(scores, i), cap)) for i in range(len(scores))]


class ByHand:
    "AGM's loss as a plain function of a model and a batch, with its running mean over all iterations."

    def __init__(self, n, alpha=1.0, cap=10.0, epochs=(0, math.inf), loss=F.cross_entropy):
        self.history, self.steps, self.kappas = [0.0] * n, 0, []
        self.alpha, self.cap, self.epochs, self.loss = alpha, cap, epochs, loss

    def __call__(self, model, xs, y, epoch):
        responses = responses_from_the_paper(model, xs)
        scores = scores_from_the_paper([r.float() for r in responses], y)
        kappa = coefficients_from_the_paper(scores, self.history, self.alpha, self.cap)
        self.steps += 1
        self.history = [h + (s - h) / self.steps for h, s in zip(self.history, scores)]
        if not self.epochs[0] <= epoch < self.epochs[1]:
            return self.loss(model(*xs).float(), y)
        self.kappas.append(kappa)
        return self.loss(sum(Scale.apply(r.float(), k) for r, k in zip(responses, kappa)), y)


def model_of(M, head="mlp", n_classes=3, seed=0):
    torch.manual_seed(seed)
    dims = (3, 4, 5)[:M]
    return FusionModel([nn.Sequential(nn.Linear(d, 6), nn.Tanh()) for d in dims], HEADS[head]([6] * M, n_classes))


def batch_of(M, n_classes=3, size=9, seed=0):
    xs = [torch.randn(size, d, generator=generator(seed), dtype=F64) for d in (3, 4, 5)[:M]]
    return xs, torch.randint(0, n_classes, (size,), generator=generator(seed))


@pytest.mark.parametrize("M", [2, 3])
@pytest.mark.parametrize("head", ["mlp", "sum", "attention"])
def test_values_and_gradients_of_agm_are_the_papers(M, head):
    model, (xs, y) = model_of(M, head).double(), batch_of(M)
    rule = ByHand(M, alpha=1.5, cap=0.3)
    rule.history, rule.steps = [-0.3, -1.4, -0.9][:M], 7
    before = list(rule.history)
    expected_loss = rule(model, xs, y, 0)

    v = muted_logits(model, xs)
    responses = modality_responses(v)
    for got, want in zip(responses, responses_from_the_paper(model, xs)):
        assert_close(got, want)
    score = response_scores(responses, y)
    assert_close(score, torch.tensor(scores_from_the_paper(responses, y), dtype=F64), atol=1e-12, rtol=1e-12)
    kappa = modulation_coefficients(score, torch.tensor(before, dtype=F64), 1.5, 0.3)
    assert_close(kappa, torch.tensor(coefficients_from_the_paper(score.tolist(), before, 1.5, 0.3), dtype=F64))

    # the rule by hand rounds its responses to float32 before the loss; here everything is float64
    f = sum(Scale.apply(r, k) for r, k in zip(responses_from_the_paper(model, xs), kappa))
    parameters = list(model.parameters())
    options = dict(retain_graph=True, materialize_grads=True)
    expected = torch.autograd.grad(F.cross_entropy(f, y), parameters, **options)
    got = torch.autograd.grad(F.cross_entropy(routed_logits(v, kappa), y), parameters, **options)
    for a, b in zip(got, expected):
        assert_close(a, b, atol=1e-13, rtol=1e-11)
    assert_close(expected_loss.double(), F.cross_entropy(f, y), atol=1e-6, rtol=1e-6)


def learner_of(M, method, setting, loss_func=None, head="concat", seed=0, bs=16):
    r = np.random.default_rng(seed)
    y = r.integers(0, 3, 200)
    xs = {f"m{m}": (r.normal(size=(200, 4 + m)) + (y[:, None] == m)).astype("f") for m in range(M)}
    torch.manual_seed(seed)
    dls = multimodal_dls(xs, y, bs=bs, device="cpu")
    options = {} if loss_func is None else dict(loss_func=loss_func)
    return multimodal_learner(dls, head=head, method=method, width=8, opt_func=setting.opt_func(), **options)


@pytest.mark.filterwarnings("ignore:Adam-like")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("M", [2, 3])
def test_a_training_with_agm_is_the_loop_by_hand(M, setting):
    rule = ByHand(M, alpha=10.0, epochs=(1, 2))
    # bfloat16 rounds the sum of the responses and the answer itself in their own ways; Adam makes whole steps of it
    tolerance = dict(rtol=2e-2, atol=5e-3 if setting.opt == "adam" else 2e-3) if setting.bf16 else {}
    learn = learner_of(M, GradientModulation(10.0, start=1, end=2), setting, head="mlp")
    same_trajectory(learn, setting, rule, epochs=3, **tolerance)
    history = learn.model.parts["response_history"]
    assert history.steps == rule.steps == 3 * len(learn.dls.train)
    assert_close(history.mean, torch.tensor(rule.history), atol=2e-3 if setting.bf16 else 1e-5, rtol=0)
    assert max(abs(k - 1) for kappa in rule.kappas for k in kappa) > 0.05  # it was modulated


def test_agm_trains_with_the_loss_of_the_user():
    weights = torch.tensor([0.2, 1.0, 5.0])
    rule = ByHand(2, loss=lambda f, y: F.cross_entropy(f, y, weights))
    learn = learner_of(2, GradientModulation(), Setting(), CrossEntropyLossFlat(weight=weights))
    same_trajectory(learn, Setting(), rule)
    with pytest.raises(AssertionError):
        same_trajectory(
            learner_of(2, GradientModulation(), Setting(), CrossEntropyLossFlat(weight=weights)), Setting(), ByHand(2)
        )


def test_the_history_is_one_over_fits_and_goes_with_the_model():
    one, several = (learner_of(2, GradientModulation(), Setting()) for _ in range(2))
    for learn, fits in ((one, [3]), (several, [1, 1, 1])):
        for epochs in fits:
            with learn.no_bar(), learn.no_logging():
                learn.fit(epochs, 0.02)
    a, b = (learn.model.parts["response_history"] for learn in (one, several))
    assert a.steps == b.steps == 3 * len(one.dls.train)
    other = learner_of(2, GradientModulation(), Setting(), seed=1)
    other.model.load_state_dict(one.model.state_dict())
    assert torch.equal(other.model.parts["response_history"].mean, a.mean)
    with other.no_bar(), other.no_logging():
        other.lr_find(show_plot=False, num_it=5)
    assert torch.equal(other.model.parts["response_history"].mean, a.mean)  # a search leaves no score behind
    other.gradient_modulation.reset_history()
    assert other.model.parts["response_history"].steps == 0


def test_an_overflow_does_not_stay_in_the_history():
    class Overflow(Callback):
        order = GradientModulation.order - 1

        def after_pred(self):
            if self.training and self.train_iter == 1:
                self.learn.pred = self.pred * math.inf

        def after_loss(self):
            if self.training and self.train_iter == 1:
                raise CancelBatchException()  # as the scaler of half precision skips the step

    learn = learner_of(2, GradientModulation(), Setting(lr=0.0))
    learn.add_cb(Overflow())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.0)
    history = learn.model.parts["response_history"]
    assert history.mean.isfinite().all() and history.steps == len(learn.dls.train) - 1


@pytest.mark.parametrize(
    "kind, hides",
    [
        (torch.optim.SGD, False),
        (torch.optim.ASGD, False),
        (torch.optim.Adam, True),
        (torch.optim.AdamW, True),
        (torch.optim.NAdam, True),
        (torch.optim.RAdam, False),  # its first steps are those of SGD with momentum
        (torch.optim.RMSprop, True),
        (torch.optim.Adagrad, True),
        (torch.optim.Rprop, True),
        (torch.optim.LBFGS, False),
    ],
)
def test_what_hides_factors_is_seen_by_trying(kind, hides):
    model = nn.Linear(2, 2)
    assert hides_factors(OptimWrapper(model.parameters(), opt=kind, lr=0.1)) == hides


@pytest.mark.filterwarnings("ignore:Adam-like")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mode_lr_scales_the_step_by_the_mean_factor_of_its_batches(accumulate):
    class Watch(Callback):
        order = GradientModulation.order + 1
        seen, steps = [], []

        def before_step(self):
            self.seen.append(self.learn.gradient_modulation.kappa)

    class Before(Callback):
        order = GradientModulation.order + 20

        def before_step(self):
            self.at = [[p.detach().clone() for p in e.parameters()] for e in self.model.encoders]
            self.gradient = [[p.grad.clone() for p in e.parameters()] for e in self.model.encoders]

    class After(Callback):
        order = GradientModulation.order + 20

        def after_step(self):
            kappa = torch.stack(Watch.seen).mean(0)
            Watch.seen.clear()
            Watch.steps.append(kappa)
            for m, e in enumerate(self.model.encoders):
                for p, old, g in zip(e.parameters(), self.learn.before.at[m], self.learn.before.gradient[m]):
                    assert_close(p - old, -0.02 * kappa[m] * g, rtol=1e-3, atol=1e-6)

    Watch.seen, Watch.steps = [], []
    learn = learner_of(2, GradientModulation(mode="lr"), Setting())
    learn.opt_func = SGD
    learn.add_cbs([Watch(), Before(), After(), GradientAccumulation(accumulate * 16)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.02)
    assert len(Watch.steps) == len(learn.dls.train) // accumulate and (torch.stack(Watch.steps) != 1).any()


@pytest.mark.parametrize("setting, threshold", [(SETTINGS[0], 0.12), (SETTINGS[2], 0.08)], ids=str)
def test_conditional_clip_is_the_loop_by_hand(setting, threshold):
    clipped = []

    def before_step(model, xs, y):
        head = model.head.linear.weight.grad
        clipped.append(head.max() > threshold or head.min() < -threshold)
        if clipped[-1]:
            norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
            for p in model.parameters():
                p.grad *= min(1, threshold / norm)

    learn = learner_of(2, GradientModulation(), setting)
    learn.add_cb(ConditionalClip(threshold))
    same_trajectory(learn, setting, ByHand(2), before_step=before_step)
    assert 0 < sum(clipped) < len(clipped)


def test_conditional_clip_needs_a_linear_layer_that_answers():
    class Product(nn.Module):
        def forward(self, zs):
            return zs[0] * zs[1]

    dls = learner_of(2, None, Setting()).dls
    learn = multimodal_learner(dls, FusionModel([nn.Linear(4, 3), nn.Linear(5, 3)], Product()), cbs=[ConditionalClip()])
    with pytest.raises(ValueError, match="GradientClip"), learn.no_bar(), learn.no_logging():
        learn.fit(1)


# ---- scores of other tasks, from their distributions


def test_scores_of_several_labels_are_bernoulli_likelihoods():
    m, y = (
        torch.randn(3, 5, 4, generator=generator(), dtype=F64) * 9,
        torch.randint(0, 2, (5, 4), generator=generator()),
    )
    for score, response in zip(response_scores(m, y.double()), m.tolist()):
        total = 0.0
        for row, labels in zip(response, y.tolist()):
            for logit, there in zip(row, labels):
                p = 1 / (1 + math.exp(-logit))
                total += math.log(max(p if there else 1 - p, 1e-8))
        assert score.item() == pytest.approx(total / 20, rel=1e-9)
    assert response_scores(m, y.double()).dtype == F64
    with pytest.raises(ValueError, match="several labels"):
        response_scores(m, y + 0.5)


def test_regression_scores_keep_double_precision():
    y = torch.tensor([1e8], dtype=F64)
    got = regression_response_scores((y + 1e-3)[None], y, 1.0)
    assert got.dtype == F64 and got.item() == pytest.approx(-1e-3, rel=1e-4)


def multi_label_learner(method, opt_func):
    r = np.random.default_rng(0)
    y = r.integers(0, 2, (200, 3)).astype("f")
    xs = {"a": (r.normal(size=(200, 4)) + y[:, :1]).astype("f"), "b": (r.normal(size=(200, 5)) + y[:, 1:2]).astype("f")}
    dls = multimodal_dls(xs, r.integers(0, 3, 200), bs=16, device="cpu")
    for part in (dls.train_ds, dls.valid_ds):
        part.y = torch.tensor(y)
    dls.task, dls.loss_func = "multi-label", nn.BCEWithLogitsLoss()
    torch.manual_seed(0)
    return multimodal_learner(dls, method=method, width=8, opt_func=opt_func, metrics=[], loss_func=dls.loss_func)


def test_agm_of_several_labels_is_the_loop_by_hand():
    def label_scores(responses, y):
        return [
            float(-F.binary_cross_entropy_with_logits(r.detach(), y, reduction="none").clamp(max=-FLOOR).mean())
            for r in responses
        ]

    state = dict(history=[0.0, 0.0], steps=0)

    def loss(model, xs, y, epoch):
        responses = responses_from_the_paper(model, xs)
        scores = label_scores(responses, y)
        kappa = coefficients_from_the_paper(scores, state["history"], 1.0, 10.0)
        state["steps"] += 1
        state["history"] = [h + (s - h) / state["steps"] for h, s in zip(state["history"], scores)]
        return F.binary_cross_entropy_with_logits(sum(Scale.apply(r, k) for r, k in zip(responses, kappa)), y)

    same_trajectory(multi_label_learner(GradientModulation(), Setting().opt_func()), Setting(), loss)


def test_resampling_of_several_labels_runs():
    learn = multi_label_learner(ModalityResampling(warmup=1), Setting().opt_func())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.02)
    assert learn.modality_resampling.history["extra rows"][1] > 0


# ---- valuation, from the paper


def game_of(head, zs, label):
    def v(*members):
        kept = [z if m in members else torch.zeros_like(z) for m, z in enumerate(zs)]
        return len(members) * float(head(kept).argmax() == label)

    return v


@pytest.mark.parametrize("M", [2, 3])
def test_valuation_and_copies_are_the_papers(M):
    model, (xs, y) = model_of(M).double(), batch_of(M, size=40)
    got = valuate(model, [(*xs, y)])
    assert got.log_likelihood.dtype == F64
    copies = resampling_frequency(got.phi)
    seen = set()
    for k in range(40):
        zs = [e(x[k : k + 1]) for e, x in zip(model.encoders, xs)]
        v = game_of(model.head, zs, y[k])
        if M == 2:
            phi = [(v(0) + v(0, 1) - v(1)) / 2, (v(1) + v(0, 1) - v(0)) / 2]
        else:
            phi = []
            for i in range(3):
                a, b = (m for m in range(3) if m != i)
                pairs = (v(i, a) - v(a) + v(i, b) - v(b)) / 6
                phi.append(v(i) / 3 + pairs + (v(i, a, b) - v(a, b)) / 3)
        assert got.phi[:, k].tolist() == pytest.approx(phi, abs=1e-12)
        assert copies[:, k].tolist() == [math.floor(2 * (1 - p) + 0.5 + 1e-9) if p < 1 else 0 for p in phi]
        seen.add(tuple(phi))
        likelihood = model(*(x[k : k + 1] for x in xs)).log_softmax(1)[0, y[k]]
        assert_close(got.log_likelihood[-1, k], likelihood.detach(), atol=1e-12, rtol=0)
    assert len(seen) > 2


def test_share_of_the_modality_level_is_the_papers():
    phi = torch.tensor([[1.5, 0.5, 1.0, 1.5], [0.5, 0.5, 1.0, -0.5]], dtype=F64)
    gap = abs((1.5 + 0.5 + 1.0 + 1.5) / 4 - (0.5 + 0.5 + 1.0 - 0.5) / 4) / 1.5
    for name, share in dict(linear=gap, tanh=math.tanh(gap), power=gap**1.5).items():
        assert resampling_frequency(phi, "modality", name).tolist() == pytest.approx([0.0, share])


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_training_with_resampling_is_the_loop_by_hand(setting):
    "Sampling only: on the rows that were shown the loss is the user's, with what is not kept at zero."
    weights = torch.tensor([0.2, 1.0, 5.0])
    shown = []

    class Kept(Callback):
        order, run_valid = -5, False

        def before_batch(self):
            shown.append(self.learn.dl.batch_keep)

    def loss(model, xs, y, epoch):
        keep = shown.pop(0)
        zs = [e(x) * keep[:, m, None] for m, (e, x) in enumerate(zip(model.encoders, xs))]
        return F.cross_entropy(model.head(zs).float(), y, weights)

    learn = learner_of(2, ModalityResampling(warmup=1), setting, CrossEntropyLossFlat(weight=weights), bs=20)
    learn.add_cb(Kept())
    tolerance = dict(rtol=2e-2, atol=2e-3) if setting.bf16 else {}
    same_trajectory(learn, setting, loss, epochs=3, **tolerance)
    assert not shown and learn.modality_resampling.history["extra rows"][1] > 0


def test_samples_are_valued_under_the_training_transforms_or_without():
    def values(augmented):
        learn = learner_of(2, ModalityResampling(warmup=0, augmented=augmented), Setting())
        learn.dls.train.after_batch.add(ItemTransform(lambda batch: (torch.full_like(batch[0], 1e3), *batch[1:])))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 0.0)
        rows = learn.dls.train_ds.batch(learn.dls.train_ds.index)
        return learn.modality_resampling.history["phi m0"][0], learn.model, rows

    (under, model, rows), (without, *_) = values(True), values(False)
    expected = valuate(model, [rows]).phi.mean(1)[0]
    blinded = valuate(model, [(torch.full_like(rows[0], 1e3), *rows[1:])]).phi.mean(1)[0]
    assert without == pytest.approx(float(expected)) and under == pytest.approx(float(blinded))
    assert abs(under - without) > 0.01


def test_a_fraction_of_no_sample_is_refused_when_the_data_are_known():
    with pytest.raises(ValueError, match="is none"):
        learner_of(2, ModalityResampling("modality", fraction=0.001), Setting())


# ---- mutants that lived


def test_the_chosen_copies_stay_in_the_order_of_the_plan():
    frequency = torch.ones(2, 30, dtype=torch.long)
    rows, keep = resampling_plan(frequency, max_copies=17, generator=generator())
    position = keep[30:, 1].long() * 30 + rows[30:]
    assert (position.diff() > 0).all() and len(position) == 17
