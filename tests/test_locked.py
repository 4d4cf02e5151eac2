"The lock on the test part: which doors it guards, what it leaves open, and who opens it."

import copy
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import mmlit
from mmlit.data.catalogue import load_dataset
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import METHODS, joint_run
from mmlit.locked import Sealed, TestPartLocked, check_unlocked, is_locked, locked, unlocked
from mmlit.runs import Job, train_missing
from mmlit.scores import Answer, best_on_validation
from mmlit.store import RunStore
from mmlit.training import Budget

DIGITS = load_dataset("digits")


def answer():
    values = np.array([[2.0, 0.0], [0.0, 1.0]])
    return Answer(values, values, np.array([0, 1]), np.array([0, 1]), {})


def test_the_lock_is_as_it_was_after_each_block():
    seen = []
    with locked("a"):
        seen.append(is_locked())
        with unlocked("b"):
            seen.append(is_locked())
            with locked("c"):
                seen.append(is_locked())
            seen.append(is_locked())
        seen.append(is_locked())
    assert seen == [True, False, True, False, True] and not is_locked()


@pytest.mark.parametrize("read", [lambda a: a.test, lambda a: a.y_test, lambda a: a.scores("test", ["a", "b"])])
def test_an_answer_hands_out_validation_only(read):
    with locked("tuning the width on emoji"):
        found = answer()
        with pytest.raises(TestPartLocked, match="during tuning the width on emoji"):
            read(found)
        assert found.scores("valid", ["a", "b"])["accuracy"] == 1
    read(found)


def test_loaders_hand_out_two_of_three_parts():
    dls = multimodal_dls(DIGITS)
    with locked("tuning"):
        assert dls.train is dls[0] and dls.valid is dls[1]
        for read in (lambda: dls[2], lambda: dls[-1], lambda: list(dls)):
            with pytest.raises(TestPartLocked, match="test loader"):
                read()
    assert len(dls[2].dataset) == len(dls.split.test)


def test_runs_are_trained_and_stored_under_a_lock_and_read_after_it(tmp_path):
    store, budget, run = RunStore(tmp_path), Budget(epochs=1), joint_run()
    with locked("tuning"):
        train_missing([Job(DIGITS, run, 0)], store, budget, 1, False)
        found = store.answer(DIGITS, run, 0, budget)
        assert best_on_validation([found], DIGITS) is found
        with pytest.raises(TestPartLocked):
            found.scores("test", DIGITS.task)
    assert found.info["test_locked"] and found.scores("test", DIGITS.task)["accuracy"] > 0.1


def test_no_method_reads_labels_of_the_test_part_to_combine():
    values = {m: np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32) for m in "ab"}
    y = np.arange(6)
    info = dict(seconds=1.0, parameters=1, encoder_steps=1, encoders=1)
    seal = Sealed("y_test", "the combination of answers")
    for name, method in METHODS.items():
        runs = method.runs(DIGITS.modalities)
        open_ = method.combine([Answer(values["a"], values["b"], y, y, dict(info)) for _ in runs], DIGITS)
        sealed = method.combine([Answer(values["a"], values["b"], y, seal, dict(info)) for _ in runs], DIGITS)
        assert all(np.array_equal(open_[row].test, sealed[row].test) for row in open_), name


def test_what_is_sealed_can_be_handed_on_and_not_be_read():
    seal = Sealed("y_test", "the combination")
    for copied in (copy.copy(seal), copy.deepcopy(seal), pickle.loads(pickle.dumps(seal))):
        for read in (np.asarray, len, list, bool, float, lambda y: y[0], lambda y: y == 0, lambda y: y.shape):
            with pytest.raises(TestPartLocked, match="y_test was read during the combination"):
                read(copied)


def test_another_thread_has_a_lock_of_its_own():
    seen = []
    with locked("tuning"):
        thread = threading.Thread(target=lambda: seen.append(is_locked()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_the_reason_is_not_left_out():
    for door in (locked, unlocked):
        for nothing in ("", None, 3):
            with pytest.raises(ValueError, match="why says what"), door(nothing):
                pass
    check_unlocked("the test part")


def test_the_package_opens_the_test_part_in_two_places_only():
    "Each of them stores an answer that nobody has looked at; whoever adds a third has to say why here."
    root = Path(mmlit.__file__).parent
    found = [f.name for f in sorted(root.rglob("*.py")) for _ in re.finditer(r"with .*\bunlocked\(", f.read_text())]
    assert found == ["fitting.py", "runs.py"]
