"Runs that are trained once: keys, files, random states, what is trained again and what is not."

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import Budget, joint_run
from mmlit.methods.baselines import pretrained_run, unimodal_run
from mmlit.runs import Job, RunStore, Source, loaders, safe_name, train_missing, train_run

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


def test_the_key_of_a_stored_run_is_what_it_was(monkeypatch):
    "A rebuilt library finds the runs of the one before: their names change with the version only."
    data = MultimodalData("a", dict(x=np.zeros((40, 2)), z=np.ones((40, 3))), np.arange(40) % 2)
    monkeypatch.setattr("mmlit.runs.__version__", "0.1.0")
    assert RunStore("runs").path(data, joint_run(), 3, Budget()) == Path("runs/a/joint/seed3-bc98869c26.npz")
    monkeypatch.setattr("mmlit.runs.__version__", "0.2.0")
    assert RunStore("runs").path(data, joint_run(), 3, Budget()) != Path("runs/a/joint/seed3-bc98869c26.npz")


def test_every_fact_is_part_of_the_key(data):
    run, budget = joint_run(), Budget()
    dls = multimodal_dls(data)
    y = data.y.copy()
    y[0] = (y[0] + 1) % 10
    asked = [
        (data, run, 0, budget),
        (data, run, 1, budget),
        (data, replace(run, tag="other"), 0, budget),
        (data, replace(run, name="other"), 0, budget),
        (data, replace(run, needs=(unimodal_run("left"),)), 0, budget),
        (data, run, 0, replace(budget, lr=1e-3)),
        (data, run, 0, replace(budget, head="sum")),
        (MultimodalData(data.name, data.xs, y, data.classes), run, 0, budget),
        (MultimodalData(data.name, data.xs, data.y, data.classes, np.arange(600) // 2), run, 0, budget),
        (dls, run, 0, budget),
        (multimodal_dls(data, bs=32), run, 0, budget),
        (multimodal_dls(data, standardize=False), run, 0, budget),
        (multimodal_dls(data, seed=1), run, 0, budget),
    ]
    keys = [RunStore("x").path(*one).relative_to("x") for one in asked]
    assert len(set(keys)) == len(keys)
    assert keys == [RunStore("y").path(*one).relative_to("y") for one in asked]  # and nothing else is


def test_a_source_is_a_data_set_or_loaders_and_nothing_else(data):
    dls = multimodal_dls(data, bs=16)
    assert isinstance(data, Source) and isinstance(dls, Source) and not isinstance("digits", Source)
    assert loaders(dls, 3, 64) is dls and loaders(data, 3, 64).train.bs == 64
    first = [next(iter(loaders(dls, seed, 64).train))[-1].tolist() for seed in (0, 0, 1)]
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
    weights = store.model(path).state_dict()
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
    left = store.model(store.path(data, alone[0], 0, SMALL)).model.encoders[0].state_dict()
    kept = store.model(store.path(data, wanted[1].run, 0, SMALL)).encoders[0].state_dict()
    assert all(torch.equal(left[k].cpu(), v) for k, v in kept.items())  # frozen: as it was trained alone


def test_nothing_is_trained_twice(data, tmp_path):
    jobs = [Job(data, unimodal_run(m), seed) for m in data.modalities for seed in (0, 1)]
    for _ in range(2):
        train_missing([*jobs, *jobs], RunStore(tmp_path), SMALL, workers=1, progress=False)
        stored = files(tmp_path)
        assert len(stored) == 4
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=1, progress=False)
        assert files(tmp_path) == stored


def test_a_run_that_fails_leaves_nothing_behind(data, tmp_path):
    fine, bad = unimodal_run("left"), joint_run(lr=1e30)
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        train_missing([Job(data, fine, 0), Job(data, bad, 0)], RunStore(tmp_path), SMALL, workers=1, progress=False)
    assert [p.parent.name for p in files(tmp_path)] == ["unimodal_left"] and not list(tmp_path.rglob("*.part"))


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
