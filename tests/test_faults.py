"""What is interrupted, damaged or crowded: equal numbers afterwards, bit for bit.

Each fault has a quick variant here; `--slow` runs the many: ten kills of each kind, at seeded moments.
A test says how many faults it made; `tools/trials.py` makes the table of them.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import load_dataset
from mmlit.learner import joint_run
from mmlit.methods.baselines import unimodal_run
from mmlit.runs import Job, train_missing
from mmlit.store import RunStore
from mmlit.training import Budget

SMALL = Budget(epochs=1, width=8)
COMPARE = "compare --data digits --methods joint,frozen --seeds 2 --epochs 3 --width 16 --workers {workers} --out"
AUDIT = "audit --data digits --seeds 1 --epochs 3 --width 16 --workers {workers} --out"

posix = pytest.mark.skipif(os.name != "posix", reason="signals and mounts of Unix")


def start(command, out, workers=1):
    words = [sys.executable, "-m", "mmlit.cli", *command.format(workers=workers).split(), str(out)]
    # a shell that starts the tests in the background lets them ignore Ctrl-C, and their children, too
    heed = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) if os.name == "posix" else {}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed)


def numbers(folder):
    "Every stored answer and weight, by the name of its file."
    found = {}
    for file in sorted(folder.rglob("*.npz")):
        with np.load(file) as stored:
            found[file.name] = {k: stored[k].tobytes() for k in ("valid", "test", "y_test")}
        weights = torch.load(file.with_suffix(".pt"), weights_only=True)
        found[file.name] |= {k: v.numpy().tobytes() for k, v in weights.items()}
    return found


def children(pid):
    done = subprocess.run(["ps", "-o", "pid=,ppid=,stat=", "-A"], capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def gone(pids, seconds=20):
    "Have these processes ended, or do they within this time?"
    deadline = time.time() + seconds
    while any(map(alive, pids)) and time.time() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def kill_and_go_on(command, tmp_path, kills, seed, workers=1):
    "Numbers of an uninterrupted call, and of one that was killed; and how many kills came while it was at work."
    began = time.time()
    assert start(command, tmp_path / "whole", workers).wait() == 0
    length, draw, hit, tries = time.time() - began, random.Random(seed), 0, 0
    while hit < kills:
        tries += 1
        assert tries <= 10 * kills, f"{hit} of {tries} kills came while it was at work"
        began = time.time()
        process = start(command, tmp_path / "killed", workers)
        try:
            process.wait(draw.uniform(0.2, 0.8) * length)
            length = time.time() - began  # it was through: the machine is faster now, and there must be something to do
            shutil.rmtree(tmp_path / "killed")
        except subprocess.TimeoutExpired:
            hit += 1
            own = children(process.pid)
            process.kill()
            process.wait()
            # those that had no run yet, too: they may still import what a busy machine takes long to load
            assert gone(own, max(20, length))
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.npz")}
    said = start(command, tmp_path / "killed", workers).communicate()[1]
    assert "damaged" not in said and not list((tmp_path / "killed").rglob("*.part"))
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in finished.items())  # what was finished was not done again
    return numbers(tmp_path / "whole"), numbers(tmp_path / "killed"), hit


@posix
@pytest.mark.slow
def test_a_comparison_that_is_killed_gives_the_same_numbers(tmp_path, record_property):
    command = COMPARE.replace("--seeds 2", "--seeds 1").replace("joint,frozen", "joint")
    whole, killed, hit = kill_and_go_on(command, tmp_path, 1, 0)
    record_property("trials", hit)
    assert len(whole) == 3 and killed == whole and hit == 1


@posix
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("command", [COMPARE, AUDIT], ids=["compare", "audit"])
def test_ten_kills_change_no_bit(tmp_path, record_property, command, workers):
    whole, killed, hit = kill_and_go_on(command, tmp_path, 10, workers, workers)
    record_property("trials", hit)
    assert whole and killed == whole and hit == 10


TRAINING = """
import sys, numpy as np, torch
from pathlib import Path
from fastai.callback.all import *
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import multimodal_learner
from mmlit.methods.baselines import ModalityDropout
folder, epochs = Path(sys.argv[1]), 6
rng = np.random.default_rng(0)
y = rng.integers(0, 3, 300)
dls = multimodal_dls({"a": rng.normal(size=(300, 6)), "b": rng.normal(size=(300, 5))}, y, path=folder, device="cpu")
torch.manual_seed(0)
learn = multimodal_learner(dls, method=ModalityDropout())
done = sorted((folder/"models").glob("model_*.pth"), key=lambda p: int(p.stem.split("_")[1])) if folder.exists() else []
while done:
    try: learn.load(done[-1].stem)
    except Exception: done.pop()             # it was being written
    else: break
start = int(done[-1].stem.split("_")[1]) + 1 if done else 0
with learn.no_bar(), learn.no_logging():
    if start < epochs:
        learn.fit_one_cycle(epochs, 3e-3, start_epoch=start, cbs=SaveModelCallback(every_epoch=True, with_opt=True))
torch.save(learn.model.state_dict(), folder/"final.pt")
"""


def trained(folder, script, wait=None):
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.wait(wait) == 0, process.stderr.read()
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


@posix
@pytest.mark.slow
def test_ten_kills_of_a_training_with_checkpoints_change_no_bit(tmp_path, record_property):
    script, draw, hits, tries = tmp_path / "train.py", random.Random(0), 0, 0
    script.write_text(TRAINING)
    for name in ("whole", "timed", "killed"):
        (tmp_path / name).mkdir()
    trained(tmp_path / "whole", script)
    began = time.time()
    trained(tmp_path / "timed", script)
    length = time.time() - began
    while hits < 10:
        tries += 1
        assert tries <= 100, f"{hits} of {tries} kills came while it was at work"
        (tmp_path / "killed" / "final.pt").unlink(missing_ok=True)
        for model in sorted((tmp_path / "killed").glob("models/*"))[2:]:
            model.unlink()  # far enough back that there is something left to be killed in
        hits += trained(tmp_path / "killed", script, draw.uniform(0.5, 1.0) * length)
    trained(tmp_path / "killed", script)
    whole, killed = (torch.load(tmp_path / name / "final.pt") for name in ("whole", "killed"))
    record_property("trials", hits)
    assert hits == 10 and all(torch.equal(v, killed[k]) for k, v in whole.items())


# ---- SIGTERM, and workers whose parent is gone


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_parent_and_nothing_is_half_written(tmp_path, record_property, number, code):
    record_property("trials", 1)
    command = COMPARE.replace("--epochs 3", "--epochs 2000")
    process = start(command, tmp_path, workers=2)
    deadline, workers = time.time() + 90, []
    while len(workers) < 2 and time.time() < deadline:
        time.sleep(0.2)
        workers = children(process.pid)
    time.sleep(12)  # they have imported torch and are training
    process.send_signal(number)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, said
    if number != signal.SIGKILL:
        assert "finished runs are kept" in said and "Traceback" not in said
    assert workers and gone(workers)
    assert not list(tmp_path.rglob("*.part"))


# ---- two at a time, no room, damage


def test_two_processes_in_one_folder_do_no_harm(tmp_path, record_property):
    record_property("trials", 1)
    words = dict(methods=["joint", "frozen"], seeds=1, budget=Budget(epochs=3, width=16), workers=1, progress=False)
    process = start(COMPARE.replace("--seeds 2", "--seeds 1"), tmp_path / "both")
    while not list(tmp_path.glob("both/*/*")) and process.poll() is None:
        time.sleep(0.05)  # it trains its first run
    both = compare("digits", out=tmp_path / "both", **words)
    assert process.wait() == 0
    alone = compare("digits", out=tmp_path / "alone", **words)
    # two modalities whole and with half the budget, joint, frozen
    assert len(numbers(tmp_path / "alone")) == 6 and numbers(tmp_path / "both") == numbers(tmp_path / "alone")
    assert both.runs.drop(columns="seconds").equals(alone.runs.drop(columns="seconds"))
    assert both.verdict("digits") in process.communicate()[0]


@pytest.mark.slow
def test_three_processes_that_start_together_do_no_harm(tmp_path, record_property):
    record_property("trials", 2)
    command = COMPARE.replace("--seeds 2", "--seeds 1")
    several = [start(command, tmp_path / "several") for _ in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    assert start(command, tmp_path / "alone").wait() == 0
    assert numbers(tmp_path / "several") == numbers(tmp_path / "alone")


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 1.5 MiB."
    room = tmp_path / "room"
    room.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", room], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield room
    subprocess.run(["umount", room], check=True)


@posix
def test_a_full_disk_is_said_before_and_after_training(small_disk, record_property):
    record_property("trials", 2)
    data, wide = load_dataset("digits").subset(range(600)), Budget(epochs=1, width=512)
    jobs = [Job(data, run, 0) for run in (unimodal_run("left"), *(joint_run(str(i)) for i in range(9)))]
    with pytest.raises(OSError, match=r"cannot store .* \(No space left on device\); finished runs are kept"):
        train_missing(jobs, RunStore(small_disk / "runs"), wide, workers=1, progress=False)
    assert numbers(small_disk) and not list(small_disk.rglob("*.part"))
    (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match=r"cannot write to the folder .* \(No space left on device\)"):
        train_missing(jobs, RunStore(small_disk / "runs"), wide, workers=1, progress=False)
    assert not list(small_disk.rglob("*.part"))


@posix
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_clear_line_of_the_command(small_disk, record_property, workers):
    record_property("trials", 1)
    process = start(COMPARE.replace("--width 16", "--width 512"), small_disk / "runs", workers)
    said = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in said
    assert "No space left" in said.splitlines()[-1] and "mmlit compare: cannot" in said.splitlines()[-1]


def damages(other):
    "What can happen to a file, by name: its content becomes another; None: it is gone."
    return dict(
        truncated=lambda b: b[: len(b) // 2],
        empty=lambda b: b"",
        first_bit=lambda b: bytes([b[0] ^ 1]) + b[1:],
        middle_bit=lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 8]) + b[len(b) // 2 + 1 :],
        other_run=lambda b: other,
        text=lambda b: b"not a file of runs",
        longer=lambda b: b + b"\0" * 7,
        missing=lambda b: None,
    )


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_each_damage_costs_one_run_and_one_warning(tmp_path, record_property, suffix):
    data, store = load_dataset("digits").subset(range(600)), RunStore(tmp_path)
    jobs = [Job(data, run, 0) for run in (unimodal_run("left"), unimodal_run("right"), joint_run())]

    def go():
        train_missing(jobs, RunStore(tmp_path), SMALL, workers=1, progress=False)

    go()
    before = numbers(tmp_path)
    file, other, _ = (store.path(data, job.run, 0, SMALL).with_suffix(suffix) for job in jobs)
    kinds = damages(other.read_bytes())
    record_property("trials", len(kinds))
    for name, damage in kinds.items():
        stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
        damaged = damage(file.read_bytes())
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            go()
        mine = [str(w.message) for w in said if "trained again" in str(w.message)]
        if name == "longer" and suffix == ".npz":
            assert len(mine) <= 1  # a zip file may be followed by anything: what it holds is whole
        else:
            assert len(mine) == 1 and file.name in mine[0], name
        again = [p for p, t in stamps.items() if p.stat().st_mtime_ns != t]
        assert again in ([file.with_suffix(".npz")], []) and numbers(tmp_path) == before, name


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_no_flipped_bit_becomes_a_number(tmp_path, record_property, suffix):
    "Two hundred seeded bits of each file: it is found, or the answer is the one that was stored."
    record_property("trials", 200)
    data, store, run = load_dataset("digits").subset(range(600)), RunStore(tmp_path), joint_run()
    train_missing([Job(data, run, 0)], store, SMALL, workers=1, progress=False)
    path = store.path(data, run, 0, SMALL)
    whole, right, draw, found = path.with_suffix(suffix).read_bytes(), store.load(path), random.Random(0), 0
    for _ in range(200):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        path.with_suffix(suffix).write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        if not store.finished(path, warn=False):
            found += 1
            continue
        assert np.array_equal(store.load(path).test, right.test) and store.load(path).info == right.info
    assert found == 200 or suffix == ".npz" and found > 180


@pytest.mark.parametrize("name", ["..", "a" * 300, "数" * 200, "a/b", "", "nul\0l", "x\ny"])
def test_any_name_of_data_and_runs_is_stored_inside_the_folder(tmp_path, record_property, name):
    record_property("trials", 1)
    digits = load_dataset("digits").subset(range(600))
    digits.name = name
    run = joint_run(name)
    store = RunStore(tmp_path / "runs")
    train_missing([Job(digits, run, 0)], store, SMALL, workers=1, progress=False)
    path = store.path(digits, run, 0, SMALL)
    assert path.is_file() and len(path.relative_to(tmp_path / "runs").parts) == 3 and ".." not in path.parts
    assert store.answer(digits, run, 0, SMALL).info["seed"] == 0


@pytest.mark.parametrize("name", ["o" * 300, "/".join(["folder"] * 700)], ids=["name", "path"])
def test_a_folder_that_no_file_system_takes_is_one_clear_line(tmp_path, record_property, name):
    record_property("trials", 2)
    with pytest.raises(OSError, match="cannot be a folder here .*: give another") as said:
        compare("digits", ["joint"], 1, SMALL, tmp_path / name, progress=False)
    assert len(str(said.value)) < 300
    process = start("audit --data digits --seeds 1 --epochs 1 --out", tmp_path / name)
    told = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in told
    assert "mmlit audit: out=" in told.splitlines()[-1] and "give another" in told.splitlines()[-1]


def test_a_folder_that_is_full_of_finished_runs_need_not_be_written(tmp_path):
    options = dict(methods=["joint"], seeds=1, budget=SMALL, out=tmp_path, workers=1, progress=False)
    first = compare("digits", **options)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert compare("digits", **options).runs.equals(first.runs)
    assert written == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
