"The command as a user meets it: help, lists, wrong input, an interruption, what it writes."

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mmlit import __version__
from mmlit.cli import main
from mmlit.data.catalogue import DATASETS
from mmlit.fusion.heads import HEADS
from mmlit.learner import METHODS

COMMAND = [sys.executable, "-m", "mmlit.cli"]


def run(*args, **kwargs):
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)


def stored(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}


@pytest.fixture
def said(capsys, monkeypatch):
    "Exit status, output and errors of a command, in process."
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args):
        capsys.readouterr()
        try:
            code = main(args)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return (code, out, err) if isinstance(code, int | None) else (1, out, err + code)

    return call


# ---- help


@pytest.mark.parametrize("args", [[], ["--help"], ["audit", "--help"], ["compare", "--help"], ["data", "--help"]])
@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_fits_a_screen(said, monkeypatch, args, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = said(*args)
    lines = out.splitlines()
    assert not code and not err and 8 <= len(lines) <= 24 and max(map(len, lines)) <= int(columns)


def test_help_explains_every_option(said):
    training = ("--seeds", "--epochs", "--bs", "--lr", "--width", "--head", "--out", "--workers")
    parts = ("--data", "--test", "--valid")
    own = dict(audit=(*parts, "--metric", "--absent"), compare=(*parts, "--methods", "--reference", "--metric"))
    for command, options in own.items():
        text = " ".join(said(command, "--help")[1].split())
        assert re.findall(r"(--[a-z]+) [A-Z]+ \S", text) == [*options, *training]
        assert ", ".join(HEADS) in text
    listed = said("compare", "--methods", "list")[1]
    assert all(f"{name} " in listed and method.title in listed for name, method in METHODS.items())


def test_the_version_is_said(said):
    assert said("--version") == (0, f"mmlit {__version__}\n", "")


def test_asking_for_help_loads_neither_torch_nor_fastai():
    heavy = "{n.split('.')[0] for n in sys.modules} & {'torch', 'fastai', 'sklearn', 'pandas', 'matplotlib'}"
    code = (
        f"import sys\nfrom mmlit.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('loaded', *{heavy})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


# ---- data


def test_each_data_set_is_listed_and_told_about(said):
    code, out, _ = said("data")
    assert not code and [line.split()[0] for line in out.splitlines()] == list(DATASETS)
    assert max(map(len, out.splitlines())) <= 100
    for name, info in DATASETS.items():
        text = " ".join(said("data", name)[1].split())
        assert f"rows {info.n:,} modalities" in text
        assert all(f"{option}=" in text for option in inspect.signature(info.load).parameters)
        known = (info.licence, info.citation, info.caveats, info.groups, *info.modalities, *info.classes)
        assert all(" ".join(part.split()) in text for part in known)


def test_a_file_and_a_set_with_options_are_told_about_as_they_are(said):
    assert "1629 rows" in said("data", "emoji?flags=False")[1]
    assert said("data", "mfaet")[0] == 1 and "did you mean 'mfeat'" in said("data", "mfaet")[2]
    assert said("data", "gone.npz")[2].startswith("mmlit data: gone.npz does not exist")


# ---- wrong input


@pytest.mark.parametrize(
    "args, message",
    [
        (["compare", "--data", "mfaet"], "mmlit compare: unknown data set 'mfaet' (did you mean 'mfeat'?)"),
        (["compare", "--methods", "jiont"], "did you mean 'joint'"),
        (["compare", "--reference", "ensembel"], "unknown reference 'ensembel' (did you mean 'ensemble'?)"),
        (["compare", "--data", "digits", "--epochs", "0"], "epochs of a budget must be a whole number, at least 1"),
        (["compare", "--data", "digits", "--seeds", "0"], "no seed"),
        (["compare", "--data", "digits", "--head", "concta"], "concat"),
        (["compare", "--data", ","], "no data set"),
        (["compare", "--methods", ","], "no method"),
        (["audit", "--data", "mfaet"], "mmlit audit: unknown data set 'mfaet' (did you mean 'mfeat'?)"),
        (["audit", "--absent", "zero_featur"], "zero_feature"),
        (["audit", "--absent", "mean_feature"], "zero_feature"),
        (["audit", "--data", "digits", "--epochs", "0"], "epochs of a budget must be a whole number, at least 1"),
        (["audit", "--head", "concta"], "concat"),
        (["audit", "--width", "0"], "width of a budget must be"),
        (["audit", "--data", "competition?n=abc"], "competition"),
        (["audit", "--data", "watch?width=a"], "watch"),
    ],
)
def test_wrong_input_is_said_before_training(said, tmp_path, args, message):
    code, _, err = said(*args, "--out", tmp_path / "runs")
    assert code == 1 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["audti"], "invalid choice: 'audti'"),
        (["compare", "--epoch", "3"], "unknown option '--epoch' (did you mean '--epochs'?); options: --help, --data"),
        (["audit", "--epoch=3"], "unknown option '--epoch=3' (did you mean '--epochs'?)"),
        (["data", "emoji", "more"], "unknown word 'more'"),
        (["compare", "--epochs", "three"], "--epochs: invalid int value: 'three'"),
        (["audit", "--seeds", "x"], "expected a number, or numbers separated by commas, got 'x'"),
    ],
)
def test_a_word_that_is_no_option_is_said(said, args, message):
    code, _, err = said(*args)
    assert code == 2 and message in err


def test_errors_have_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--data", "digits", "--methods", "joint", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "file"]
    done = run("compare", *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "file" in done.stderr
    assert done.stderr.startswith("mmlit compare: ")


# ---- what it does


def test_seeds_say_how_many_or_which(said, tmp_path):
    for text, seeds in (("1", [0]), ("3,", [3]), ("4,2", [4, 2])):
        options = ["--data", "digits", "--methods", "joint", "--epochs", 1, "--width", 8, "--workers", 1]
        code, out, err = said("compare", *options, "--seeds", text, "--out", tmp_path)
        assert not code, err
        assert list(dict.fromkeys(pd.read_csv(tmp_path / "scores.csv").seed)) == seeds
        assert f"--seeds {text} " in (tmp_path / "compare.html").read_text(encoding="utf8")
    assert len(stored(tmp_path)) == 4 * 3  # and each seed is kept


def test_the_command_on_the_page_repeats_it(said, tmp_path):
    options = ["--data", "digits", "--methods", "joint", "--epochs", "1", "--width", "8", "--seeds", "2"]
    said("compare", *options, "--out", tmp_path, "--workers", "1")
    page = (tmp_path / "compare.html").read_text(encoding="utf8")
    command = re.search(r"<dt>Command</dt><dd>mmlit (.*?)</dd>", page)[1].split()
    before = stored(tmp_path)
    assert not said(*command, "--out", tmp_path, "--workers", "1")[0]
    assert stored(tmp_path) == before  # nothing else was asked for
    again = (tmp_path / "compare.html").read_text(encoding="utf8")
    drop = re.compile(r'src="[^"]*"')
    assert drop.sub("", again) == drop.sub("", page)


def test_ctrl_c_says_that_finished_runs_are_kept(said, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmlit.benchmark.comparison.train_missing", interrupted)
    code, _, err = said("compare", "--data", "digits", "--methods", "joint", "--seeds", 1, "--out", "here")
    assert code == 130 and "mmlit compare: stopped; finished runs are kept in here" in err


def test_the_audit_prints_writes_and_resumes(said, tmp_path):
    args = ["audit", "--data", "digits", "--epochs", 2, "--width", 8, "--out", tmp_path]
    code, out, err = said(*args)
    assert not code, err
    assert "joint minus ensemble" in " ".join(out.split())
    assert Path(out.strip().splitlines()[-1].removeprefix("page: ")) == tmp_path / "audit-digits.html"
    assert "mmlit audit --data digits --absent zero_feature --seeds 1 --epochs 2" in (
        (tmp_path / "audit-digits.html").read_text(encoding="utf8")
    )
    told = json.loads((tmp_path / "audit-digits.json").read_text())
    assert told["advice"]["reason"] in " ".join(out.split()) and told["facts"]["seeds"] == [0]
    before = stored(tmp_path)
    assert len(before) == 7  # two modalities, joint, pretrained, multi_loss, interacting, additive
    max(before).unlink()
    said(*args)
    assert [p for p in before if p.stat().st_mtime_ns != before[p]] == [max(before)]
    assert json.loads((tmp_path / "audit-digits.json").read_text()) == told  # the same digits
