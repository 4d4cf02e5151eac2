"The comparison as a user meets it: interrupted, in parallel, on own files, with wrong input, for regression."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmlit.methods.baselines import MultiLoss
from mmlit.benchmark.comparison import compare
from mmlit.benchmark.results import print_comparison, report
from mmlit.learner import METHODS, joint
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.learner import Budget

SMALL = Budget(epochs=1, width=16)
COMMAND = Path(sys.executable).parent / "mmlit_compare"


def run(*args, **kwargs):
    return subprocess.run(
        [COMMAND, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs
    )


def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path):
    args = ["--data", "digits", "--methods", "joint", "--seeds", "3", "--epochs", "2", "--jobs", "1", "--out", tmp_path]
    process = subprocess.Popen([COMMAND, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(tmp_path.rglob("*.npz"))) < 2 and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert 2 <= len(finished) < 9, "the kill came too late for this test to mean anything"
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1].removeprefix("report: ")).is_file()
    assert len(list(tmp_path.rglob("*.npz"))) == 9  # three seeds of two unimodal models and one joint
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())


def test_parallel_runs_give_the_digits_of_serial_ones(tmp_path):
    data = load_dataset("digits")
    tables = [
        compare([data], ["joint", "frozen"], 2, SMALL, tmp_path / str(jobs), jobs=jobs, progress=False).runs.drop(
            columns="seconds"
        )
        for jobs in (1, 2)
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
    assert list(result.table().method) == ["unimodal tone", "unimodal face", "best unimodal", "gentle", "ensemble"]
    assert result.runs.query("method == 'best unimodal'").accuracy.mean() > 0.8
    page = report(result, tmp_path / "report.html").read_text()
    assert "4 modalities" not in page and "2 modalities: tone, face" in page


def test_regression(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 3)).astype("float32")
    data = MultimodalData(
        "plane", dict(left=x[0], right=x[1]), (x.sum((0, 2)) + 0.1 * rng.normal(size=300)).astype("float32"), []
    )
    result = compare([data], ["unimodal", "joint"], 2, Budget(epochs=20, width=16, lr=1e-2), tmp_path, progress=False)
    scores = result.table().set_index("method")["mean"]
    assert scores["joint"] > 0.8 > 0.6 > scores["best unimodal"]  # each half explains half of the variance
    assert "r2" in result.verdict("plane") and report(result, tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--data", "mfaet"], "mfeat"),
        (["--methods", "jiont"], "did you mean 'joint'"),
        (["--data", "digits", "--epochs", "0"], "epochs >= 1"),
        (["--data", "digits", "--seeds", "0"], "no seed"),
        (["--data", "digits", "--head", "concta"], "concat"),
    ],
)
def test_wrong_input_is_said_before_training(tmp_path, args, message):
    done = run(*args, "--out", tmp_path / "runs")
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


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
    with pytest.raises(FloatingPointError, match="learning rate"):
        compare(["digits"], ["joint"], 1, Budget(epochs=2, lr=1e30), tmp_path, jobs=1, progress=False)


def test_help_explains_every_option():
    text = run("--help").stdout
    for option in ("--data", "--methods", "--seeds", "--epochs", "--lr", "--head", "--out", "--jobs"):
        assert option in text
    listed = run("--methods", "list").stdout
    assert all(name in listed for name in METHODS)


def test_an_unknown_reference_and_no_data_are_said_before_training(tmp_path):
    with pytest.raises(ValueError, match="unknown reference 'ensembel'"):
        compare(["digits"], ["joint"], 1, SMALL, tmp_path / "runs", reference="ensembel", progress=False)
    with pytest.raises(ValueError, match="no data set"):
        compare([], ["joint"], 1, SMALL, tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_a_file_is_said_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--data", "digits", "--methods", "joint", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "file")
    assert done.returncode != 0 and "Traceback" not in done.stderr and "file" in done.stderr


def test_brackets_and_dollars_in_names_are_names(tmp_path, capsys):
    data = load_dataset("digits")
    found = compare(
        [MultimodalData("d [/b] $x_1$", {"a [red]": data.xs["left"], "b $_1_2$": data.xs["right"]}, data.y)],
        ["unimodal", "joint"],
        2,
        SMALL,
        tmp_path,
    )
    report(found, tmp_path / "report.html")
    print_comparison(found)
    assert "a [red]" in (text := capsys.readouterr().out) and "d [/b]" in text
