"Tuning: as many trials for each model, chosen by validation alone, all of them paid for, and nothing trained twice."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score

import mmlit.tuning
from mmlit.benchmark.comparison import compare
from mmlit.benchmark.curves import learning_curve
from mmlit.benchmark.several import over_datasets
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fingerprint import fingerprint
from mmlit.learner import METHODS, FusionMethod, joint
from mmlit.locked import TestPartLocked
from mmlit.metrics import METRICS
from mmlit.scores import Answer
from mmlit.store import RunStore
from mmlit.training import Budget
from mmlit.tuning import chosen_trial, trial_runs, trials_of

SMALL = Budget(epochs=2, bs=32, width=8, lr=0.02)
QUIET = dict(budget=SMALL, workers=1, progress=False)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").subset(range(300))


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return compare(data, ["unimodal", "ensemble", "agm", "pretrained"], 2, out=out, tune=4, **QUIET), RunStore(out)


def answers_of(store, data, name, seed, n=4):
    "Of each model of a method: what the store has of its trials."
    models = trial_runs(name, METHODS[name], data.modalities, trials_of(METHODS[name], n))
    return [[store.answer(data, run, seed, SMALL) for run in trials] for trials in models]


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    return p / p.sum(1, keepdims=True)


# ---- what is chosen


@pytest.mark.parametrize("method", ["agm", "pretrained"])
def test_the_chosen_trial_has_the_lowest_log_loss_of_validation_and_its_answers_are_those_of_the_row(
    tuned, data, method
):
    found, store = tuned
    rows = found.runs.set_index(["method", "seed"])
    for seed in (0, 1):
        (answers,) = answers_of(store, data, method, seed)
        losses = [log_loss(a.y_valid, softmax(a.valid), labels=range(10)) for a in answers]
        best = answers[int(np.argmin(losses))]
        told = found.trials.query("method == @method + ' tuned' and seed == @seed")
        assert np.allclose(told.validation, losses) and told.trial[told.chosen].tolist() == [np.argmin(losses)]
        assert min(losses) <= losses[0]  # never worse than the published default
        accuracy = accuracy_score(best.y_test, best.test.argmax(1))
        assert rows.accuracy[f"{method} tuned", seed] == pytest.approx(accuracy)
        published = accuracy_score(answers[0].y_test, answers[0].test.argmax(1))
        assert rows.accuracy[method, seed] == pytest.approx(published)


def test_the_tuned_ensemble_is_that_of_its_tuned_models(tuned, data):
    found, store = tuned
    for seed in (0, 1):
        models = answers_of(store, data, "ensemble", seed)
        best = [min(m, key=lambda a: log_loss(a.y_valid, softmax(a.valid), labels=range(10))) for m in models]
        mean = np.mean([np.log(softmax(a.test)) for a in best], axis=0)
        accuracy = accuracy_score(best[0].y_test, mean.argmax(1))
        row = found.runs.query("method == 'ensemble tuned' and seed == @seed")
        assert row.accuracy.item() == pytest.approx(accuracy)
        assert row.encoder_steps.item() == sum(a.info["encoder_steps"] for m in models for a in m)


def test_numbers_are_chosen_by_r2_and_a_metric_that_was_chosen_decides(tmp_path):
    rng = np.random.default_rng(0)
    xs = {m: rng.normal(size=(200, 3)) for m in ("left", "right")}
    numbers = MultimodalData("numbers", xs, xs["left"][:, 0] + xs["right"][:, 1])
    found = compare(numbers, ["joint"], 1, out=tmp_path, reference="joint", tune=3, **QUIET)
    (answers,) = answers_of(RunStore(tmp_path), numbers, "joint", 0, 3)
    scores = [r2_score(a.y_valid, a.valid[:, 0]) for a in answers]
    assert set(found.trials.score) == {"r2"} and np.allclose(found.trials.validation, scores, atol=1e-5)
    assert found.trials.trial[found.trials.chosen].item() == np.argmax(scores)

    classes = MultimodalData("classes", xs, (xs["left"][:, 0] > 0.8).astype(int), ["no", "yes"])
    found = compare(classes, ["joint"], 1, out=tmp_path, reference="joint", metric="auroc", tune=3, **QUIET)
    (answers,) = answers_of(RunStore(tmp_path), found.datasets["classes"], "joint", 0, 3)
    areas = [roc_auc_score(a.y_valid, a.valid[:, 1] - a.valid[:, 0]) for a in answers]
    assert set(found.trials.score) == {"auroc"} and np.allclose(found.trials.validation, areas)
    assert found.trials.trial[found.trials.chosen].item() == np.argmax(areas)
    assert METRICS["auroc"].larger


# ---- the test part


def test_other_test_rows_change_nothing_of_what_is_tried_and_chosen(tmp_path):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 240)
    split = np.repeat(["train", "valid", "test"], 80)
    xs = {m: rng.normal(size=(240, 4)) + y[:, None] for m in ("left", "right")}
    other = {m: np.where((split == "test")[:, None], rng.normal(size=x.shape) - x, x) for m, x in xs.items()}
    moved = np.where(split == "test", np.roll(y, 7), y)
    once, again = (
        compare(
            MultimodalData("split", values, labels, ["a", "b", "c"], split=split),
            ["joint", "tcmax"],
            2,
            out=tmp_path / str(k),
            tune=3,
            **QUIET,
        )
        for k, (values, labels) in enumerate([(xs, y), (other, moved)])
    )
    assert once.trials.equals(again.trials)
    assert not once.runs.accuracy.equals(again.runs.accuracy)


@pytest.mark.parametrize("part", ["test", "y_test"])
def test_a_choice_that_reads_the_test_part_is_an_error(tuned, data, monkeypatch, part):
    (answers,) = answers_of(tuned[1], data, "agm", 0)
    monkeypatch.setattr(
        mmlit.tuning, "best_on_validation", lambda answers, *_, **__: max(answers, key=lambda a: getattr(a, part).max())
    )
    with pytest.raises(TestPartLocked, match="read during tuning"):
        chosen_trial(answers, data)


# ---- as many trials for all


@pytest.mark.parametrize("name", METHODS)
def test_each_model_has_as_many_trials_and_each_of_them_can_be_made(data, name):
    method, dls = METHODS[name], multimodal_dls(data)
    trials = trials_of(method, 8)
    models = trial_runs(name, method, data.modalities, trials)
    published = method.runs(data.modalities)
    assert [m[0].name for m in models] == [run.name for run in published]
    for model, run in zip(models, published, strict=True):
        assert len(model) == len({fingerprint(r) for r in model}) == 8
        assert fingerprint(model[0]) == fingerprint(run)  # the default is the published run, and stored as that
        assert np.allclose([r.lr / run.lr for r in model[1:]], [t["lr"] for t in trials[1:]])
        assert all([fingerprint(n) for n in r.needs] == [fingerprint(n) for n in run.needs] for r in model)
    for option, values in (method.space or {}).items():  # and the ends of each range
        for value in values:
            for run in method.runs(data.modalities, **{option: value}):
                if not run.needs:
                    run.make(dls, SMALL, {})


def test_all_rows_have_as_many_trials_with_the_same_learning_rates(tuned):
    found, _ = tuned
    by = found.trials.groupby(["method", "seed", "run"])
    assert (by.size() == 4).all() and (by.chosen.sum() == 1).all()
    assert by.lr.agg(tuple).nunique() == 1
    assert set(found.trials.method) == {m for m in found.runs.method if m.endswith(" tuned")} - {
        "unimodal left tuned",
        "unimodal right tuned",
        "best unimodal tuned",
    } | {"unimodal tuned"}


def test_what_a_run_starts_from_is_trained_and_paid_for_once(tuned, data):
    found, store = tuned
    for seed in (0, 1):
        (answers,) = answers_of(store, data, "pretrained", seed)
        own = sum(a.info["steps"] * 2 for a in answers)
        before = answers[0].info["encoder_steps"] - answers[0].info["steps"] * 2
        row = found.runs.query("method == 'pretrained tuned' and seed == @seed")
        assert row.encoder_steps.item() == own + before and before > 0
    folders = {p.name for p in store.out.glob("*/*")}
    assert {"unimodal_left", "unimodal_left_trial_3", "pretrained_trial_3"} <= folders
    assert len([*store.out.glob("*/unimodal_left/*.npz")]) == 2 * 2  # each seed: with the budget, and with half of it


# ---- stored, resumed, repeated


def test_tuning_that_was_interrupted_goes_on_and_gives_the_same(data, tmp_path, monkeypatch):
    asked = dict(methods=["ensemble", "multi_loss"], seeds=1, tune=3, **QUIET)
    whole = compare(data, **asked, out=tmp_path / "whole")
    train, trained = mmlit.runs.train_run, []

    def counted(run, *args):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(run.name)
        return train(run, *args)

    monkeypatch.setattr("mmlit.runs.train_run", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(data, **asked, out=tmp_path / "cut")
    monkeypatch.setattr("mmlit.runs.train_run", lambda run, *args: trained.append(run.name) or train(run, *args))
    again = compare(data, **asked, out=tmp_path / "cut")
    names = [r + t for r in ("unimodal left", "unimodal right", "multi_loss") for t in ("", " trial 1", " trial 2")]
    assert sorted(trained) == sorted(names)  # each once
    assert again.trials.equals(whole.trials)
    assert again.runs.drop(columns="seconds").equals(whole.runs.drop(columns="seconds"))

    del trained[:]
    more = compare(data, **asked | dict(tune=4), out=tmp_path / "cut")
    assert sorted(trained) == [f"{r} trial 3" for r in ("multi_loss", "unimodal left", "unimodal right")]
    kept = more.trials.query("trial < 3").drop(columns="chosen").reset_index(drop=True)
    assert kept.equals(whole.trials.drop(columns="chosen"))


# ---- trials that fail


class FailsAbove(FusionMethod):
    def __init__(self, strength=1.0):
        self.strength = strength

    def after_loss(self):
        if self.strength > 5:
            raise FloatingPointError("too strong")


def test_a_trial_that_fails_lost_and_is_said(data, tmp_path):
    def registry(space, **options):
        return METHODS | dict(strong=joint("fails", "strong", FailsAbove, space=dict(strength=space), **options))

    asked = dict(methods=["strong"], seeds=1, tune=3, reference="joint", **QUIET)
    found = compare(data, **asked, registry=registry((9.0, 10.0)), out=tmp_path)
    rows = found.runs.set_index("method")
    assert list(rows.index) == ["strong", "strong tuned", "joint", "joint tuned"] and found.failed.empty
    tried = found.trials.query("method == 'strong tuned'")
    assert tried.score.tolist() == ["log_loss", "failed", "failed"] and tried.chosen.tolist() == [True, False, False]
    assert rows.accuracy["strong tuned"] == rows.accuracy["strong"]
    assert rows.encoder_steps["strong tuned"] == 3 * rows.encoder_steps["strong"]
    assert "strong tuned: 2 of 3 trials failed" in repr(found)

    found = compare(data, **asked, registry=registry((1.0, 2.0), strength=9.0), out=tmp_path)
    assert found.failed.method.tolist() == ["strong"]  # the published setting fails, a tuned one does not
    assert "strong tuned" in set(found.runs.method)
    found = compare(data, **asked, registry=registry((8.0, 9.0), strength=9.0), out=tmp_path)
    assert found.failed.method.tolist() == ["strong", "strong tuned"] and "too strong" in found.failed.reason.iloc[1]


# ---- what it is compared with, pages, curves


def test_tuned_rows_are_compared_with_the_tuned_reference(tuned, data, tmp_path):
    found, _ = tuned
    accuracy = found.runs.pivot(index="seed", columns="method", values="accuracy")
    for method in found.table.method:
        difference = found.intervals("digits")[method][1]
        other = "ensemble tuned" if method.endswith(" tuned") else "ensemble"
        assert found.opponent(method) == other
        if method == other:
            assert difference is None
        else:
            assert difference.mean == pytest.approx((accuracy[method] - accuracy[other]).mean())
    assert found.meant("digits", "agm tuned") == "agm tuned"
    assert "the ensemble tuned" in found.verdict("digits", "agm tuned")
    gains = over_datasets(found).difference
    assert gains["agm tuned"] == pytest.approx((accuracy["agm tuned"] - accuracy["ensemble tuned"]).mean())
    assert gains["agm"] == pytest.approx((accuracy["agm"] - accuracy["ensemble"]).mean())
    assert {"ensemble", "ensemble tuned"} <= set(gains.index[gains.isna()])

    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf8")
    assert "each model has 4 trials" in page and "Every trial of what is tuned" in page
    told = json.loads(found.to_json(tmp_path / "page.json").read_text(encoding="utf8"))
    assert len(told["trials"]) == len(found.trials) and told["trials"][1]["lr"] == found.trials.lr[1]


def test_a_learning_curve_is_tuned_at_each_size(data, tmp_path):
    asked = dict(n_train=[40, 60], n_test=100, seeds=2, tune=2, workers=1, progress=False)
    curve = learning_curve(data, ["ensemble", "joint"], budget=replace(SMALL, epochs=1), out=tmp_path, **asked)
    rows = curve.table.set_index(["n_asked", "method"])
    assert set(curve.table.method) == {"ensemble", "ensemble tuned", "joint", "joint tuned"}
    scores = curve.runs.groupby(["n_asked", "method"]).accuracy.mean()
    for n in (40, 60):
        gain = scores[n, "joint tuned"] - scores[n, "ensemble tuned"]
        assert rows.difference[n, "joint tuned"] == pytest.approx(gain)
    assert "against the ensemble tuned, joint tuned is shown" in repr(curve)
    assert pd.isna(rows.difference[40, "ensemble tuned"])


def test_a_row_that_is_called_tuned_is_refused_beside_tuning(data):
    registry = METHODS | {"joint tuned": METHODS["joint"]}
    with pytest.raises(ValueError, match="'joint tuned' already"):
        compare(data, ["joint", "joint tuned"], registry=registry, tune=2, **QUIET)


def test_the_choice_of_equal_trials_is_the_published_one():
    y, logits = np.arange(4) % 2, np.eye(2)[np.arange(4) % 2]
    cost = dict(steps=3, encoders=2, encoder_steps=6, seconds=1.0)
    same = [Answer(logits, logits, y, y, cost) for _ in range(3)]
    best, which = chosen_trial(same, MultimodalData("two", dict(a=logits, b=logits), y, ["no", "yes"]))
    assert which == 0 and best.info["encoder_steps"] == 18 and best.info["seconds"] == 3
