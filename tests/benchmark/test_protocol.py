"The protocol: equal total training, steps as budget, what validation chooses, optimisers, opponents of equal cost."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.optimizer import SGD
from scipy.optimize import minimize
from sklearn.metrics import zero_one_loss

from mmlit.benchmark.comparison import UNFINISHED, _told_if_cut, compare
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.fitting import train_run
from mmlit.learner import METHODS, FusionMethod, Method, Run, joint_run
from mmlit.methods.baselines import (
    ensemble_log_probabilities,
    inverse_temperature,
    precisions,
    pretrained_run,
    unimodal_run,
)
from mmlit.metrics import Metric, with_metric
from mmlit.runs import Job, train_missing
from mmlit.scores import Answer
from mmlit.store import RunStore, loaders, seed_of
from mmlit.training import Budget

STEPS = Budget(steps=24, bs=32, width=8)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").subset(range(400))


# ---- budgets


def test_steps_are_whole_epochs_that_hold_them_whatever_the_number_of_rows(data):
    for rows in (64, 160):
        budget = replace(STEPS, n_train=rows)
        info = train_run(joint_run(), data, 0, budget)[0].info
        batches = len(loaders(data, 0, budget).train)
        assert info["steps"] == math.ceil(24 / batches) * batches and 24 <= info["steps"] < 24 + batches
    assert info["encoders"] == 2 and info["encoder_steps"] == 2 * info["steps"]
    alone = train_run(unimodal_run("left"), data, 0, STEPS)[0].info
    assert alone["encoders"] == 1 and alone["encoder_steps"] == alone["steps"]


def test_a_run_that_starts_from_others_costs_as_much_as_one_that_does_not(data, tmp_path):
    pair, store = [unimodal_run(m) for m in data.modalities], RunStore(tmp_path)
    tuned = pretrained_run("tuned", pair)
    jobs = [Job(data, run, 0) for run in (tuned, joint_run(), replace(tuned, name="more", on_top=True))]
    train_missing(jobs, store, replace(STEPS, steps=40), workers=1, progress=False)
    costs = {j.run.name: store.answer(data, j.run, 0, replace(STEPS, steps=40)).info for j in jobs}
    batches = len(loaders(data, 0, STEPS).train)
    whole, half = (math.ceil(n / batches) * batches for n in (40, 20))
    assert costs["joint"]["encoder_steps"] == 2 * whole and costs["more"]["encoder_steps"] == 4 * whole
    assert costs["tuned"]["steps"] == half and costs["tuned"]["encoder_steps"] == 4 * half
    assert len(list(tmp_path.glob("*/unimodal_left/*.npz"))) == 2  # the one that is shared, and the whole one


def test_budgets_are_shared_by_all_stages():
    one = unimodal_run("a")
    two = Run("two", one.make, (one,))
    three = Run("three", one.make, (two, one))
    assert [r.stages for r in (one, two, three)] == [1, 2, 3]
    own, shares = three.budgets(Budget(steps=900))
    assert own.steps == 300 and [s.steps for s in shares] == [600, 300]
    inner, last = two.budgets(shares[0])
    assert inner.steps == last[0].steps == 300
    assert one.budgets(Budget(epochs=7)) == (Budget(epochs=7), [])
    own, shares = replace(two, on_top=True).budgets(Budget(epochs=7))
    assert own == shares[0] == Budget(epochs=7)


def test_of_several_numbers_of_steps_validation_chooses_for_each_model(data, tmp_path):
    names = ["unimodal", "ensemble", "joint"]
    budget = replace(STEPS, steps=(8, 64))
    found = compare(data, names, 2, budget, tmp_path, workers=1, progress=False)
    each = [compare(data, names, 2, one, tmp_path, workers=1, progress=False) for one in budget.lengths()]
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * 2 * 3  # what the single numbers need was trained already
    store, lengths = RunStore(tmp_path), set()
    for run in (joint_run(), *(unimodal_run(m) for m in data.modalities)):
        for seed in (0, 1):
            answers = [store.answer(data, run, seed, one) for one in budget.lengths()]
            losses = [a.scores("valid", "classification")["log_loss"] for a in answers]
            best = int(np.argmin(losses))
            row = found.runs[(found.runs.method == run.name) & (found.runs.seed == seed)].iloc[0]
            own = each[best].runs
            lengths.add(row.steps)
            assert row.accuracy == own[(own.method == run.name) & (own.seed == seed)].accuracy.iloc[0]
            assert row.steps == answers[best].info["steps"]
    assert max(lengths) >= 64
    page = found.to_html(tmp_path / "page.html").read_text()
    assert "each model is trained with each number of steps" in page
    assert "steps of training times the modalities that are encoded" in page


class Noted(FusionMethod):
    "What the optimiser has in each step."

    def attach(self):
        super().attach()
        self.seen = []

    def after_step(self):
        self.seen.append(dict(self.opt.hypers[0]))


def test_sgd_is_the_optimiser_of_a_budget_and_a_run_may_have_its_own(data):
    found = []
    for given, budget in (({}, STEPS), ({}, replace(STEPS, optimiser="sgd")), (dict(opt_func=SGD), STEPS)):
        noted = Noted()
        train_run(joint_run("noted", lambda noted=noted: noted, learner=given), data, 0, budget)
        found.append({name: [hyper[name] for hyper in noted.seen] for name in noted.seen[0]})
    adam, sgd, own = found
    assert "sqr_mom" in adam and max(adam["lr"]) == pytest.approx(3e-3, rel=0.05) and min(adam["mom"]) < 0.9
    assert "sqr_mom" not in sgd and max(sgd["lr"]) == pytest.approx(0.03, rel=0.05) and set(sgd["mom"]) == {0.9}
    assert "sqr_mom" not in own and max(own["lr"]) == pytest.approx(3e-3, rel=0.05)
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        compare(data, "joint", 1, Budget(optimiser="adm"))


def test_a_training_that_was_still_improving_is_said(data, tmp_path):
    def seen(values, steps=100, monitor="accuracy"):
        return Answer(*[np.zeros((1, 2))] * 4, dict(validation=values, steps=steps, monitor=monitor))

    rising, flat = [k / 20 for k in range(20)], [0.9] * 20
    assert _told_if_cut(seen(rising), Budget(), data).info["warnings"] == [UNFINISHED]
    assert "warnings" not in _told_if_cut(seen(flat), Budget(), data).info
    assert "warnings" not in _told_if_cut(seen(rising, monitor="valid_loss"), Budget(), data).info
    assert _told_if_cut(seen(rising[::-1], monitor="valid_loss"), Budget(), data).info["warnings"] == [UNFINISHED]
    several = Budget(steps=(50, 200))  # a longer training was tried, and was not better
    assert "warnings" not in _told_if_cut(seen(rising, 56), several, data).info
    assert "warnings" in _told_if_cut(seen(rising, 203), several, data).info
    mine = with_metric(data, Metric("cost", ("classification",), larger=False, function=zero_one_loss))
    falling = seen(rising[::-1], monitor="cost")  # of a metric of one's own less may be better
    assert _told_if_cut(falling, Budget(), mine).info["warnings"] == [UNFINISHED]
    assert "warnings" not in _told_if_cut(seen(rising, monitor="cost"), Budget(), mine).info


# ---- opponents of equal cost


def test_two_members_have_one_split_and_differ_in_everything_drawn(data):
    first, second = (unimodal_run("left"), replace(unimodal_run("left"), member=1))
    answers = [train_run(run, data, 3, STEPS)[0] for run in (first, second, second)]
    assert answers[0].info["split"] == answers[1].info["split"]
    assert not np.allclose(answers[0].test, answers[1].test) and np.array_equal(answers[1].test, answers[2].test)
    assert seed_of(0, 3) == 3 and len({seed_of(k, s) for k in range(5) for s in range(100)}) == 500
    orders = [loaders(data, 3, STEPS, member).train.get_idxs() for member in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_a_deep_ensemble_is_the_mean_of_all_its_members(data, tmp_path):
    found = compare(data, ["ensemble", "deep_ensemble"], 1, STEPS, tmp_path, workers=1, progress=False)
    runs, store = METHODS["deep_ensemble"].runs(data.modalities), RunStore(tmp_path)
    answers = [store.answer(data, run, 0, STEPS) for run in runs]
    assert [a.info["encoders"] for a in answers] == [1] * 4 and len(list(tmp_path.rglob("*.npz"))) == 4
    logits = torch.stack([torch.as_tensor(a.test) for a in answers])
    answered = ensemble_log_probabilities(logits).argmax(-1).numpy()
    row = found.runs[found.runs.method == "deep_ensemble"].iloc[0]
    assert row.accuracy == pytest.approx((answered == answers[0].y_test).mean())
    plain = found.runs[found.runs.method == "ensemble"].iloc[0]
    assert row.encoder_steps == 2 * plain.encoder_steps and row.encoders == 2 * plain.encoders == 4


@pytest.mark.parametrize("C, labels", [(2, False), (5, False), (3, True)])
def test_the_temperature_is_that_of_an_independent_minimum(C, labels):
    rng = np.random.default_rng(C)
    logits = 4 * rng.normal(size=(60, C))
    y = rng.integers(0, 2, (60, C)) if labels else rng.integers(0, C, 60)

    def cost(s):
        z = np.exp(s[0]) * logits
        if labels:
            nll = np.logaddexp(0, z) - y * z
        else:
            nll = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(60), y]
        return nll.sum() + s[0] ** 2 / (2 * 0.5**2)

    want = np.exp(minimize(cost, [-1.0], method="Nelder-Mead", options=dict(xatol=1e-8)).x[0])
    assert inverse_temperature(torch.as_tensor(logits), torch.as_tensor(y)) == pytest.approx(want, rel=1e-3)


def test_the_weights_of_predictions_go_by_their_errors():
    errors = (
        torch.randn(3, 5_000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 4])[:, None, None]
    )
    errors[1, 1000:] = math.nan  # samples that lack the modality say nothing of it
    beta = precisions(errors).tolist()
    assert beta[0] == pytest.approx(beta[1], rel=0.1) and beta[0] / beta[2] == pytest.approx(16, rel=0.1)
    assert torch.allclose(precisions(torch.zeros(2, 0, 1)), torch.ones(2, dtype=torch.float64))


def toy(task, gone=False):
    "Answers of two models: the second is wrong and ten times too sure."
    rng, n = np.random.default_rng(0), 400
    y = rng.normal(size=n) if task == "regression" else rng.integers(0, 2, n)
    sign = y if task == "regression" else 2.0 * y - 1
    say = (lambda f: f[:, None]) if task == "regression" else (lambda f: np.stack([-f, f], 1))
    fine, loud = sign + rng.normal(size=n), 10 * (0.1 * sign + rng.normal(size=n))
    info = dict(lacking=dict(valid=[[], [0, 1]], test=[[], [2]])) if gone else {}
    answers = [Answer(*(say(f.astype("float32")),) * 2, y, y, dict(info)) for f in (fine, loud)]
    columns = dict(a=np.zeros((n, 1)), b=np.zeros((n, 1)))
    return answers, MultimodalData("toy", columns, y, [] if task == "regression" else ["no", "yes"])


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_calibrated_ensemble_hears_the_better_model(task, gone):
    answers, data = toy(task, gone)
    plain, ours = (METHODS[name].combine(answers, data)[name] for name in ("ensemble", "ensemble_calibrated"))
    score = "r2" if task == "regression" else "accuracy"
    assert ours.scores("test", task)[score] > plain.scores("test", task)[score] + 0.05
    cold, hot = ours.info["temperatures"]
    assert hot > 5 * cold
    if gone:  # a sample that has the first modality alone is answered by its model
        first = answers[0].test[2] / (1 if task == "regression" else cold)
        first = first if task == "regression" else torch.as_tensor(first).log_softmax(-1).numpy()
        assert ours.test[2] == pytest.approx(first, abs=1e-3)


def test_equal_costs_stand_in_the_table(data, tmp_path):
    names = ["ensemble", "joint", "pretrained", "ensemble_calibrated", "lr_control", "unimodal"]
    table = compare(data, names, 1, STEPS, tmp_path, workers=1, progress=False).table.set_index("method")
    cost, encoders = table.encoder_steps, table.encoders
    assert cost["ensemble"] == cost["joint"] == cost["ensemble_calibrated"] == cost["best unimodal"]
    assert cost["lr_control"] == 3 * cost["joint"] and abs(cost["pretrained"] / cost["joint"] - 1) < 0.2
    assert encoders["best unimodal"] == 1 and encoders["joint"] == encoders["lr_control"] == encoders["ensemble"] == 2


def test_a_method_of_ones_own_pays_as_well(data, tmp_path):
    base = joint_run("base")
    after = Run("after", lambda dls, budget, models: base.make(dls, budget, {}), (base,))
    method = Method("continues", lambda modalities: [after], lambda answers, data: {"after": answers[0]})
    found = compare(data, ["after", "joint"], 1, STEPS, tmp_path, METHODS | dict(after=method), "joint", progress=False)
    cost = found.table.set_index("method").encoder_steps
    assert cost["after"] == pytest.approx(cost["joint"], rel=0.2)
