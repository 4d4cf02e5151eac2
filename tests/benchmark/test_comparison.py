"The comparison as a user meets it: in parallel, on own files, with wrong input, for regression."

import inspect
import json
import os
import signal
import sys
import warnings

import cloudpickle
import numpy as np
import pytest

from mmlit.benchmark.comparison import _check_methods, compare
from mmlit.benchmark.curves import learning_curve
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import METHODS, FusionMethod, Method, Run, joint
from mmlit.methods.baselines import MultiLoss
from mmlit.runs import RunsFailed
from mmlit.training import Budget

SMALL = Budget(epochs=1, width=16)


def test_parallel_runs_give_the_digits_of_serial_ones(tmp_path):
    data = load_dataset("digits")
    tables = [
        compare(
            [data], ["joint", "frozen"], 2, SMALL, tmp_path / str(workers), workers=workers, progress=False
        ).runs.drop(columns="seconds")
        for workers in (1, 2)
    ]
    assert tables[0].equals(tables[1])


def test_own_file_and_own_method(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    np.savez(
        tmp_path / "mine.npz",
        tone=rng.normal(size=(200, 2, 30)) + y[:, None, None],
        face=rng.random((200, 3, 16, 16)),
        y=y,
        groups=np.arange(200) // 4,
    )
    registry = METHODS | {"gentle": joint("a tenth of the unimodal losses", "gentle", MultiLoss, weight=0.1)}
    result = compare(
        [str(tmp_path / "mine.npz")],
        ["unimodal", "gentle"],
        2,
        Budget(epochs=10, bs=16, width=16),
        tmp_path / "runs",
        registry,
        progress=False,
    )
    assert list(result.table.method) == ["unimodal tone", "unimodal face", "best unimodal", "gentle", "ensemble"]
    assert result.runs.query("method == 'best unimodal'").accuracy.mean() > 0.8
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "4 modalities" not in page and "2 modalities: tone, face" in page


class FailsOnOdd(FusionMethod):  # of a module that other processes cannot import: it is trained here
    def after_loss(self):
        if self.dls.split.test[0] % 2:
            raise FloatingPointError("odd")


def test_what_fails_on_some_seeds_is_compared_on_the_others(tmp_path, capsys):
    registry = METHODS | dict(odd=joint("fails", "odd", FailsOnOdd))
    seeds = [0, 1, 2, 3]
    odd = [int(multimodal_dls(load_dataset("digits"), seed=s).split.test[0] % 2) for s in seeds]
    assert 0 < sum(odd) < 3
    found = compare("digits", ["odd"], seeds, SMALL, tmp_path, registry, "joint", workers=2, progress=False)
    row = found.table.set_index("method").loc["odd"]
    assert (row.seeds, row.failed) == (4 - sum(odd), sum(odd)) and len(found.failed) == sum(odd)
    assert f"{4 - sum(odd)} of 4 seeds" in found.verdict("digits", "odd")
    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf8")
    told = json.loads(found.to_json(tmp_path / "page.json").read_text(encoding="utf8"))
    found.show()
    for text in (page, repr(found), capsys.readouterr().out, told["failed"][0]["reason"]):
        assert "FloatingPointError" in text and "odd" in text
    assert len(told["failed"]) == sum(odd)


@pytest.mark.slow
def test_a_process_that_dies_costs_the_run_that_kills_it(tmp_path):
    here = os.getpid()

    def make(dls, budget, models):
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as what stands in a notebook or a script is sent
    kills = Method("kills", lambda modalities: [Run("kills", make)], lambda answers, data: {"kills": answers[0]})
    registry = METHODS | dict(kills=kills)
    found = compare("digits", ["unimodal", "kills"], 1, SMALL, tmp_path, registry, "joint", workers=2, progress=False)
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert list(found.failed.method) == ["kills"] and "process that trained it died" in found.failed.reason[0]
    assert {"joint", "unimodal left", "unimodal right"} <= set(found.runs.method)


def test_several_labels(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 4)).astype("float32")
    y = (np.stack([x[0, :, 0], x[1, :, 0], x[0, :, 1] + x[1, :, 1]], 1) > 0).astype("float32")
    data = MultimodalData("labels", dict(left=x[0], right=x[1]), y, ["p", "q", "r"], task="multi-label")
    found = compare([data], ["unimodal", "joint"], 2, Budget(epochs=10, width=16, lr=1e-2), tmp_path, progress=False)
    scores = found.table.set_index("method")
    assert found.score("labels") == "accuracy" and not len(found.failed)
    assert scores["mean"]["joint"] > 0.85 > scores["mean"]["unimodal left"] + 0.05
    assert "points of accuracy" in found.verdict("labels") and found.to_html(tmp_path / "r.html").is_file()


def test_regression(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 3)).astype("float32")
    y = (x.sum((0, 2)) + 0.1 * rng.normal(size=300)).astype("float32")
    data = MultimodalData("plane", dict(left=x[0], right=x[1]), y, [])
    result = compare([data], ["unimodal", "joint"], 2, Budget(epochs=20, width=16, lr=1e-2), tmp_path, progress=False)
    scores = result.table.set_index("method")["mean"]
    assert scores["joint"] > 0.8 > 0.6 > scores["best unimodal"]  # each half explains half of the variance
    assert "r2" in result.verdict("plane") and result.to_html(tmp_path / "report.html").is_file()


def test_wrong_data_is_said_before_training(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    nan = x.copy()
    nan[3, 1] = np.nan
    rare = y.copy()
    rare[0] = 2
    for arrays, message in [
        (dict(a=x, b=x[:-1], y=y), "length"),
        (dict(a=x, b=nan, y=y), "NaN"),
        (dict(a=x, y=y), "one modality"),
        (dict(a=x, b=x, y=rare), "missing"),
        (dict(a=x, b=x, y=y + 1, classes=np.array(["p", "q"])), "label"),
    ]:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            compare([str(tmp_path / "bad.npz")], out=tmp_path / "runs", budget=SMALL, progress=False)
    assert not (tmp_path / "runs").exists()


def test_training_that_diverges_is_an_error_and_not_a_score(tmp_path):
    with pytest.raises(RunsFailed, match="FloatingPointError.*learning rate"):
        compare(["digits"], ["joint"], 1, Budget(epochs=2, lr=1e30), tmp_path, workers=1, progress=False)


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            dict(reference="ensembel"),
            r"unknown reference 'ensembel' \(did you mean 'ensemble'\?\); known: .*best unimodal",
        ),
        (dict(methods=["jiont"]), r"unknown method 'jiont' \(did you mean 'joint'\?\)"),
        (dict(methods=[]), "no method"),
        (dict(datasets=[]), "no data set"),
        (dict(datasets=["digits", "digits"]), "different names"),
        (dict(seeds=0), "no seed"),
        (dict(seeds=()), "no seed"),
        (dict(budget=5), "budget is a Budget"),
        (dict(workers=-1), "workers is how many"),
        (dict(budget=Budget(bs=1)), "bs of a budget must be"),
    ],
)
def test_a_question_without_an_answer_is_refused_before_training(tmp_path, asked, message):
    asked = dict(datasets=["digits"], methods=["joint"], seeds=1, budget=SMALL) | asked
    with pytest.raises(ValueError, match=message):
        compare(**asked, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_the_reference_is_trained_too_and_may_be_any_row(tmp_path):
    options = dict(seeds=[4], budget=SMALL, out=tmp_path, workers=1, progress=False)
    asked = compare("digits", ["unimodal", "joint", "joint"], reference="unimodal left", **options)
    assert list(asked.runs.method) == ["unimodal left", "unimodal right", "best unimodal", "joint"]
    assert asked.runs.seed.unique().tolist() == [4] and asked.verdict("digits").count("unimodal left") == 1
    added = compare("digits", "unimodal", reference="joint", **options)  # one name is a list of one
    assert list(added.runs.method)[-1] == "joint"


def test_methods_of_ones_own_registry_are_known_by_their_names():
    own = dict(mine=METHODS["joint"])
    assert _check_methods(["mine", "mine"], own) == own
    with pytest.raises(ValueError, match="known: mine"):
        _check_methods(["joint"], own)


def test_the_default_budget_is_a_budget_with_its_defaults():
    assert inspect.signature(compare).parameters["budget"].default == Budget()


def test_a_method_that_cannot_act_is_noted_whether_its_run_is_new_or_stored(tmp_path):
    data, asked = load_dataset("digits").subset(range(400)), ["joint", "resampling"]
    with pytest.warns(UserWarning, match="ModalityResampling acts from epoch 5 on"):
        new = compare(data, asked, 1, SMALL, tmp_path, workers=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = compare(data, asked, 1, SMALL, tmp_path, workers=1, progress=False)
    assert new._notes(data.name) == stored._notes(data.name) and repr(new) == repr(stored)
    note, other = sorted(stored._notes(data.name), key=lambda line: "still improving" in line)
    assert "joint" in other and "still improving" in other  # after one epoch nobody can tell
    assert note.startswith(f"{data.name}: note: resampling: ModalityResampling acts from epoch 5 on")


@pytest.mark.parametrize("part, metric", [("test", None), ("test", "mae"), ("valid", None)])
def test_a_default_that_is_not_defined_is_refused_before_training(tmp_path, part, metric):
    "R2 stands in the table whatever decides, and of equal targets there is none."
    rng = np.random.default_rng(0)
    split = np.repeat(["train", "valid", "test"], [100, 30, 30])
    y = np.where(split == part, 1.0, rng.normal(size=160))
    xs = dict(a=rng.normal(size=(160, 2)), b=rng.normal(size=(160, 2)))
    data = MultimodalData("constant", xs, y, task="regression", split=split)
    name = dict(test="test", valid="validation")[part]
    with pytest.raises(ValueError, match=f"r2 cannot be measured on the {name} part: all 30 targets are equal"):
        compare(data, ["joint"], 1, Budget(epochs=1), tmp_path, metric=metric, workers=1, progress=False)
    assert not any(tmp_path.rglob("*.*"))  # nothing was trained


@pytest.mark.parametrize("door, options", [(compare, {}), (learning_curve, dict(n_train=[150]))])
@pytest.mark.parametrize("out", [None, 3])
def test_a_folder_that_is_none_is_refused_by_name(door, options, out):
    with pytest.raises(TypeError, match=f"^out is {out}, expected the folder where runs are kept"):
        door(load_dataset("digits"), ["joint"], budget=Budget(epochs=1), out=out, **options)
