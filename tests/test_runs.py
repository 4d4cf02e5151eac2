"Runs that are trained once: keys, files, random states, what is trained again and what is not."

import copy
import os
import platform
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import default_device, defaults

from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fitting import train_run
from mmlit.fusion.heads import HEADS, MLPHead
from mmlit.learner import FusionMethod, Run, joint_run, multimodal_learner
from mmlit.methods.baselines import pretrained_run, unimodal_run
from mmlit.runs import Job, RunsFailed, _missing, _on_gpu, train_missing, workers_that_fit
from mmlit.store import RunStore, Source, loaders, safe_name
from mmlit.training import Budget, on_device

SMALL = Budget(epochs=1, width=8)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").subset(range(600))


def files(folder):
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*.npz")}


@pytest.mark.parametrize(
    "name, safe", [("a/b", "a_b"), ("../x", ".._x"), ("digits?n=3&m=a", "digits_n=3_m=a"), ("naïve 数", "naïve_数")]
)
def test_names_become_parts_of_paths(name, safe):
    assert safe_name(name) == safe and len(Path(safe).parts) == 1 and safe_name(safe) == safe


class Quiet(FusionMethod):
    "A method of a user's own."

    def __init__(self, rate=0.1):
        self.rate = rate

    def after_loss(self):
        self.add_loss(self.rate * 0)


class Loud(Quiet):
    def after_loss(self):
        self.add_loss(self.rate * 1)


def small_encoders(width=4):
    return [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width)) for _ in range(2)]


def other_encoders(width=5):
    return [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width)) for _ in range(2)]


def ingredients(data):
    "What decides the numbers of a run, changed one at a time."
    run, budget, dls = joint_run(), Budget(), multimodal_dls(data)
    own_loss, weighted, more_dropped = (copy.copy(dls) for _ in range(3))
    own_loss.loss_func = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    weighted.loss_func = torch.nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))
    y = data.y.copy()
    y[0] = (y[0] + 1) % 10
    pair = [unimodal_run(m) for m in data.modalities]
    runs = [
        replace(run, tag="other"),
        replace(run, name="other"),
        replace(run, lr=2.0),
        replace(run, needs=(unimodal_run("left"),)),
        replace(run, needs=(replace(unimodal_run("left"), needs=(unimodal_run("right"),)),)),
        *(joint_run(head=head) for head in ("sum", "film", MLPHead, lambda dims, c: MLPHead(dims, c, hidden=7))),
        joint_run(encoders=small_encoders),
        joint_run(encoders=other_encoders),
        joint_run(encoders=partial(small_encoders, 6)),
        joint_run("joint", Quiet),
        joint_run("joint", Loud),
        joint_run("joint", Quiet, rate=0.2),
        joint_run("joint", Quiet, Loud),
        *(pretrained_run("joint", pair, freeze) for freeze in (False, True)),
        pretrained_run("joint", pair, method=Quiet(0.3)),
        pretrained_run("joint", pair, method=Quiet(0.4)),
        Run("joint", lambda dls, budget, models: multimodal_learner(dls, opt_func=SGD), tag=run.tag),
        Run("joint", lambda dls, budget, models: multimodal_learner(dls, opt_func=partial(SGD, mom=0.5)), tag=run.tag),
        Run("joint", lambda dls, budget, models: multimodal_learner(dls, loss_func=torch.nn.MSELoss()), tag=run.tag),
    ]
    budgets = [replace(budget, **change) for change in (dict(lr=1e-3), dict(head="sum"), dict(epochs=3), dict(bs=32))]
    sources = [
        MultimodalData(data.name, data.xs, y, data.classes),
        MultimodalData(data.name, data.xs, data.y, data.classes, np.arange(600) // 2),
        *(
            multimodal_dls(data, **o)
            for o in ({}, dict(bs=32), dict(standardize=False), dict(seed=1), dict(drop_last=False))
        ),
        own_loss,
        weighted,
    ]
    asked = [(data, run, 0, budget), (data, run, 1, budget)]
    asked += [(data, other, 0, budget) for other in runs]
    asked += [(data, run, 0, other) for other in budgets]
    return asked + [(other, run, 0, budget) for other in sources]


def keys(asked, folder="x"):
    return [str(RunStore(folder).path(*one).relative_to(Path(folder).absolute())) for one in asked]


def test_every_ingredient_alone_changes_the_key(data):
    found = keys(ingredients(data))
    assert len(set(found)) == len(found)
    assert found == keys(ingredients(data), "y")  # and nothing else does


def test_what_surrounds_every_run_changes_the_key(data, monkeypatch):
    asked = [(data, joint_run(), 0, Budget())]
    before = keys(asked)
    for name, value in (("code_digest", lambda package: "x"), ("_versions", lambda: {"torch": "9"})):
        with monkeypatch.context() as m:
            m.setattr(f"mmlit.store.{name}", value)
            assert keys(asked) != before
    torch.set_default_dtype(torch.float64)
    try:
        assert keys(asked) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert keys(asked) == before


def test_a_head_of_ones_own_counts_by_what_it_is(data, monkeypatch):
    found = []
    for width in (3, 4):
        monkeypatch.setitem(HEADS, "mine", partial(MLPHead, hidden=width))
        found += keys([(data, joint_run(), 0, Budget(head="mine")), (data, joint_run(head="mine"), 0, Budget())])
    assert len(set(found)) == 4


def test_two_data_sets_of_one_name_are_two(data):
    store, other = RunStore("x"), MultimodalData(data.name, data.xs, data.y[::-1].copy(), data.classes)
    assert store.path(data, joint_run(), 0, SMALL) != store.path(other, joint_run(), 0, SMALL)


def test_another_process_has_the_same_keys(data):
    code = "import sys; sys.path.insert(0, sys.argv[1])\nimport test_runs as t\n"
    code += "from mmlit.data.catalogue import load_dataset\n"
    code += "print(*t.keys(t.ingredients(load_dataset('digits').subset(range(600)))), sep='\\n')"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(PYTHONHASHSEED="7"))
    assert done.stdout.split("\n")[:-1] == keys(ingredients(data)), done.stderr


def test_a_source_is_a_data_set_or_loaders_and_nothing_else(data):
    dls = multimodal_dls(data, bs=16)
    assert isinstance(data, Source) and isinstance(dls, Source) and not isinstance("digits", Source)
    assert loaders(dls, 3, Budget()) is dls and loaders(data, 3, Budget()).train.bs == 64
    first = [next(iter(loaders(dls, seed, Budget()).train))[-1].tolist() for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]  # a seed shuffles loaders, too


def test_training_leaves_threads_and_random_states_as_they_were(data, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), np.random.get_state()[1].copy())
    train_missing([Job(data, joint_run(), 0)], RunStore(tmp_path), SMALL, workers=1, progress=False)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_a_run_does_not_depend_on_what_was_drawn_before(data):
    first, _ = train_run(joint_run(), data, 0, SMALL)
    torch.rand(5), np.random.rand(7)
    assert np.array_equal(train_run(joint_run(), data, 0, SMALL)[0].test, first.test)


def test_a_stored_answer_and_model_are_the_ones_that_were_trained(data, tmp_path):
    answer, model = train_run(joint_run(), data, 0, SMALL)
    store = RunStore(tmp_path / "new" / "folder")
    path = store.path(data, joint_run(), 0, SMALL)
    store.save(path, answer, model)
    back = store.answer(data, joint_run(), 0, SMALL)
    for part in ("valid", "test", "y_valid", "y_test"):
        assert np.array_equal(getattr(back, part), getattr(answer, part))
    assert back.info == answer.info
    weights = store.model(data, joint_run(), 0, SMALL).state_dict()
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_run_needs_is_trained_first_and_shared(data, tmp_path):
    alone = [unimodal_run(m) for m in data.modalities]
    wanted = [
        Job(data, pretrained_run(name, alone, freeze), 0) for name, freeze in (("tuned", False), ("frozen", True))
    ]
    store = RunStore(tmp_path)
    train_missing([*wanted, Job(data, alone[0], 0)], store, SMALL, workers=1, progress=False)
    assert len(files(tmp_path)) == 4
    left = store.model(data, alone[0], 0, SMALL).model.encoders[0].state_dict()
    kept = store.model(data, wanted[1].run, 0, SMALL).encoders[0].state_dict()
    assert all(torch.equal(left[k].cpu(), v) for k, v in kept.items())  # frozen: as it was trained alone


def test_nothing_is_trained_twice(data, tmp_path):
    jobs = [Job(data, unimodal_run(m), seed) for m in data.modalities for seed in (0, 1)]
    for _ in range(2):
        train_missing([*jobs, *jobs], RunStore(tmp_path), SMALL, workers=1, progress=False)
        stored = files(tmp_path)
        assert len(stored) == 4
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=1, progress=False)
        assert files(tmp_path) == stored


def test_a_run_that_fails_costs_itself_and_what_needs_it(data, tmp_path):
    fine, bad = unimodal_run("left"), replace(unimodal_run("right"), lr=1e30)
    after, deeper = (Run("after", fine.make, (bad,)), Run("deeper", fine.make, (Run("after", fine.make, (bad,)), fine)))
    with pytest.raises(RunsFailed, match="3 of 5 runs failed.*smaller learning rate") as failed:
        jobs = [Job(data, run, 0) for run in (deeper, bad, after, fine, joint_run())]
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=1, progress=False)
    assert sorted(p.parent.name for p in files(tmp_path)) == ["joint", "unimodal_left"]
    assert {p.parent.name for p in failed.value.reasons} == {"unimodal_right", "after", "deeper"}
    assert not list(tmp_path.rglob("*.part"))


def test_needs_may_be_deep_and_must_not_form_a_circle(data, tmp_path):
    one = unimodal_run("left")
    two = Run("two", one.make, (one,))
    three = Run("three", one.make, (two, one))
    train_missing([Job(data, three, 0)], RunStore(tmp_path), SMALL, workers=1, progress=False)
    assert len(files(tmp_path)) == 3
    again = Run("a", one.make, needs := [])
    needs.append(Run("b", one.make, (again,)))
    for wrong, message in (
        (again, "'a' needs 'b' needs 'a'"),
        (Run("c", one.make, (one, one)), "two runs of one name"),
    ):
        with pytest.raises(ValueError, match=message):
            train_missing([Job(data, wrong, 0)], RunStore(tmp_path), SMALL, workers=1, progress=False)


def test_a_model_is_made_anew_and_leaves_random_states_as_they_were(data, tmp_path):
    pair = [unimodal_run(m) for m in data.modalities]
    run, store = pretrained_run("tuned", pair), RunStore(tmp_path)
    train_missing([Job(data, run, 0)], store, SMALL, workers=1, progress=False)
    answer, model = train_run(run, data, 0, SMALL, {u.name: store.model(data, u, 0, SMALL) for u in pair})
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = store.model(data, run, 0, SMALL)
    assert torch.equal(torch.get_rng_state(), state) and not again.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert np.array_equal(answer.test, store.answer(data, run, 0, SMALL).test)
    weights = store.path(data, run, 0, SMALL).with_suffix(".pt")
    assert torch.load(weights, weights_only=True).keys() == again.state_dict().keys()


def test_part_files_of_the_living_stay(data, tmp_path):
    folder = tmp_path / "d" / "r"
    folder.mkdir(parents=True)
    host = platform.node().replace(".", "-")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"s.{host}.{os.getpid()}.part", f"s.{host}.{gone.pid}.part", f"s.elsewhere.{gone.pid}.part", "mine.part"]
    for name in names:
        (folder / name).write_bytes(b"x")
    RunStore(tmp_path).prepare()
    assert sorted(p.name for p in folder.iterdir()) == sorted([names[0], names[2], "mine.part"])


def test_a_folder_that_cannot_be_written_is_said_before_training(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        train_missing([Job(data, joint_run(), 0)], RunStore(tmp_path / "file"), SMALL, workers=1, progress=False)


def test_the_loss_of_the_users_own_decides_which_epoch_is_kept(data):
    dls = copy.copy(multimodal_dls(data))
    first, _ = train_run(joint_run(), dls, 0, Budget(epochs=3, width=8))
    dls.loss_func = torch.nn.CrossEntropyLoss(label_smoothing=0.5)
    other, _ = train_run(joint_run(), dls, 0, Budget(epochs=3, width=8))
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("rare, monitor", [(0, "accuracy"), (0.05, "valid_loss")])
def test_a_run_keeps_the_score_by_which_its_epochs_were_chosen(rare, monitor):
    "One value an epoch; where a class is rare, accuracy says nothing."
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2 if not rare else (np.arange(400) < rare * 400).astype(int)
    xs = {m: rng.normal(size=(400, 3)).astype("float32") + y[:, None] for m in "ab"}
    info = train_run(joint_run(), MultimodalData("two", xs, y, ["no", "yes"]), 0, replace(SMALL, epochs=3))[0].info
    assert info["monitor"] == monitor and len(info["validation"]) == 3 and np.isfinite(info["validation"]).all()


# ---- where and on how much is trained


def test_processes_train_on_the_device_of_the_caller(data, tmp_path):
    def elsewhere(dls, budget, models):
        if defaults.use_cuda is not False:
            raise ValueError("not told")
        return joint_run().make(dls, budget, models)

    jobs = [Job(data, Run("told", elsewhere), seed) for seed in (0, 1)]
    with pytest.raises(RunsFailed, match="not told"):
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=2, progress=False)
    with on_device("cpu"):
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=2, progress=False)
    assert defaults.use_cuda is None


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_device_is_put_back_after_an_error(device):
    before = defaults.use_cuda, default_device()
    with pytest.raises(KeyError), on_device(device):
        raise KeyError
    assert (defaults.use_cuda, default_device()) == before


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="there is no device|unknown device"), on_device(device):
        raise AssertionError


def test_mixed_precision_is_on_while_training_and_off_for_the_answers(data, monkeypatch):
    order = []
    monkeypatch.setattr(Learner, "to_fp16", lambda self: order.append("to_fp16"))
    monkeypatch.setattr(Learner, "to_fp32", lambda self: order.append("to_fp32"))
    fit, ask = Learner.fit_one_cycle, Learner.get_preds
    monkeypatch.setattr(Learner, "fit_one_cycle", lambda self, *a, **k: (order.append("fit"), fit(self, *a, **k)))
    monkeypatch.setattr(Learner, "get_preds", lambda self, **k: (order.append("ask"), ask(self, **k))[1])
    train_run(joint_run(), data, 0, replace(SMALL, amp=True))
    assert order == ["to_fp16", "fit", "to_fp32", "ask", "ask"]
    order.clear()
    train_run(joint_run(), data, 0, SMALL)
    assert order == ["fit", "ask", "ask"]


@pytest.mark.cuda
def test_mixed_precision_trains_on_a_gpu(data):
    answer, _ = train_run(joint_run(), data, 0, Budget(epochs=5, amp=True))
    assert (answer.test.argmax(1) == answer.y_test).mean() > 0.8 and answer.test.dtype == np.float32


def test_fewer_training_rows_are_part_of_what_tells_runs_apart(data, tmp_path):
    store, few = RunStore(tmp_path), replace(SMALL, n_train=100)
    assert store.path(data, joint_run(), 0, few) != store.path(data, joint_run(), 0, SMALL)
    train_missing([Job(data, joint_run(), seed) for seed in (0, 1)], store, few, workers=1, progress=False)
    for seed in (0, 1):
        answer, whole = store.answer(data, joint_run(), seed, few), loaders(data, seed, SMALL)
        assert answer.info["n_train"] == 100 and np.array_equal(answer.y_test, data.y[whole.split.test])
    with pytest.raises(ValueError, match="n_train=100 is given for loaders"):
        train_run(joint_run(), multimodal_dls(data), 0, few)


def test_runs_are_kept_where_the_caller_stands_also_by_workers_of_an_earlier_call(tmp_path, monkeypatch):
    data = MultimodalData("where", dict(a=np.random.randn(60, 3), b=np.random.randn(60, 2)), [0, 1, 2] * 20)
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        compare(
            data, ["unimodal", "pretrained"], 2, Budget(epochs=1, bs=16, width=4), "runs", workers=2, progress=False
        )
        assert len(list((tmp_path / place / "runs").rglob("*.npz"))) == 6


def test_workers_on_a_gpu_are_as_many_as_its_memory_holds_and_fewer_are_said(data, tmp_path, monkeypatch):
    store, noted, GiB = RunStore(tmp_path), [], 2**30
    ((first,),) = _missing([Job(data, joint_run(), 0)], store, SMALL)
    for name, value in dict(
        reset_peak_memory_stats=None, max_memory_reserved=5 * GiB, mem_get_info=(24 * GiB, 0)
    ).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    with pytest.warns(UserWarning, match="8 workers were asked for.*5.0 GiB.*24.0 GiB are free: 3 train at a time"):
        assert _on_gpu(first, store, 8, lambda *told: noted.append(told)) == 3
    assert noted == [(first, None)] and store.finished(first.path)  # the first run was trained here
    for most, free, taken, fit in ((16, None, 0, 16), (16, 80, 1, 16), (16, 24, 5, 3), (16, 1, 5, 1), (2, 24, 5, 2)):
        assert workers_that_fit(most, None if free is None else free * GiB, taken * GiB) == fit


def test_each_worker_trains_in_one_thread(data, tmp_path):
    def make(dls, budget, models):
        assert torch.get_num_threads() == 1
        return joint_run().make(dls, budget, models)

    jobs = [Job(data, Run("one thread", make), seed) for seed in (0, 1)]
    train_missing(jobs, RunStore(tmp_path), SMALL, workers=2, progress=False)


class Warns(FusionMethod):
    "Warns of the same in every batch, and of something that is about the code only."

    def after_loss(self):
        warnings.warn("this method does nothing", stacklevel=1)
        warnings.warn("old words", DeprecationWarning, stacklevel=1)


def test_what_a_training_warns_of_is_said_and_kept_beside_its_answer(data, tmp_path):
    run = joint_run("warns", Warns)
    with pytest.warns(UserWarning, match="does nothing") as seen:
        answer, _ = train_run(run, data, 0, SMALL)
    assert answer.info["warnings"] == ["this method does nothing"]
    assert {str(w.message) for w in seen} >= {"this method does nothing", "old words"}  # these go on to the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet, _ = train_run(run, data, 0, SMALL)  # what the caller does not want to hear is kept all the same
    assert quiet.info["warnings"] == answer.info["warnings"]
    assert "warnings" not in train_run(joint_run(), data, 0, SMALL)[0].info

    store = RunStore(tmp_path)
    jobs = [Job(data, run, seed) for seed in (0, 1)]
    train_missing(jobs, store, SMALL, workers=2, progress=False)
    assert all(store.answer(data, run, seed, SMALL).info["warnings"] for seed in (0, 1))


def test_a_warning_that_is_an_error_for_the_caller_is_one(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="does nothing"):
            train_run(joint_run("warns", Warns), data, 0, SMALL)
