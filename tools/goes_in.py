"""What goes in, and where: each kind of input, tried in training, in every method, in an audit, in files and exports.

python tools/goes_in.py          # all cells, to results/goes_in.csv (minutes)

A cell *works*, works *with a warning*, is *refused* with a ValueError, or has *no form*: there is nothing to try, such
as a file form that cannot hold such a column. All else is a fault, and so are answers that changed on the way.
The tests hold a sample of the cells to the committed table, `--slow` all of them.
"""

import argparse
import importlib.util
import os
import re
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.learner import load_learner
from fastai.optimizer import SGD
from kinds import KINDS, WIDTH, case, rows_of, same
from support import METHODS, first_line

from mmlit.audits.audit import audit
from mmlit.benchmark.comparison import compare
from mmlit.cli import main as command
from mmlit.data.files import data_digest, load_npz
from mmlit.data.loaders import multimodal_dls
from mmlit.learner import joint, multimodal_learner
from mmlit.methods.shapley import valuate
from mmlit.production.exported import export_model, export_onnx
from mmlit.production.predictor import load_predictor, save_predictor
from mmlit.training import Budget

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "goes_in.csv"
SMALL = Budget(epochs=1, bs=16, width=WIDTH)
_QUIET = dict(workers=1, progress=False)

# ---- what is tried with


@cache
def _pictures():
    "A folder of pictures that is there as long as the process."
    return tempfile.TemporaryDirectory()


def given(kind):
    "The case, with its pictures in a folder of their own."
    return case(kind, _pictures().name)


def _learner(kind, method=None):
    "A learner and its case, untrained."
    one = given(kind)
    dls = multimodal_dls(one.xs, one.y, bs=16, device="cpu", **one.options)
    made = None if one.encoders is None else one.encoders()
    cbs = [] if METHODS.get(method) is None else [METHODS[method]()]
    return multimodal_learner(dls, made, width=WIDTH, cbs=cbs, opt_func=SGD)


def _fit(kind, method=None):
    "A learner after one epoch; what it learnt must be finite, and must have moved."
    torch.manual_seed(0)
    learn = _learner(kind, method)
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, 1e-2)
    assert all(p.isfinite().all() for p in learn.model.parameters()), "parameters are not finite"
    assert any(not torch.equal(p, before[n]) for n, p in learn.model.named_parameters()), "nothing moved"
    return learn


@cache
def trained(kind):
    "One trained learner for all places that leave it as it is. What making it says is said by the training."
    with quietly():
        return _fit(kind)


@contextmanager
def quietly():
    "Without bars, and without warnings."
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


# ---- places


def _train(kind, folder, method=None):
    _fit(kind, method)


def _predict(kind, folder):
    "Raw rows of the validation part are answered as the loader of that part is."
    learn, one = trained(kind), given(kind)
    raw = {m: rows_of(x, learn.dls.split.valid) for m, x in one.xs.items()}
    assert same(learn.get_preds(dl=learn.dls.test_dl(raw))[0], learn.get_preds()[0]), "other answers"


def _valuate(kind, folder):
    learn = trained(kind)
    value = valuate(learn.model, learn.dls.valid)
    assert value.phi.isfinite().all() and value.phi.shape == (2, len(learn.dls.valid_ds)), "values are not finite"


def _compare(kind, folder):
    "Own encoders come as a method of one's own; all other kinds have the ensemble, too."
    data, own = trained(kind).dls.data, given(kind).encoders
    if own is None:
        found = compare(data, seeds=1, budget=SMALL, out=folder, **_QUIET)
    else:
        registry = {"own": joint("with encoders of its own", "own", encoders=own)}
        found = compare(data, ["own"], 1, SMALL, folder, registry, reference="own", **_QUIET)
    assert found.failed.empty and np.isfinite(found.table["mean"]).all(), found.failed.to_dict("records")


def _audit(kind, folder):
    learn, own = trained(kind), given(kind).encoders
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    found = audit(learn, encoders=own, budget=SMALL, out=folder, **_QUIET)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()), "the model was changed"
    assert "models" in found.table.index.get_level_values(0), found.table


# ---- files, by the command line


def _by_command(path, folder, *words):
    "The command line trains on a file; what it prints on one line as an error is a refusal."
    short = "--methods joint --reference joint --seeds 1 --epochs 1 --bs 16 --width 4 --workers 1 --device cpu"
    try:
        command(["compare", "--data", str(path), *words, *short.split(), "--out", str(folder / "runs")])
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        raise ValueError(end.code.removeprefix("mmlit compare: ")) from end


def _npz(kind, folder):
    data = trained(kind).dls.data
    data.save(folder / "data.npz")
    assert data_digest(load_npz(folder / "data.npz")) == data_digest(data), "other data after loading"
    _by_command(folder / "data.npz", folder)


_NOT_SAID = "the command line has no option that says it"
_NO_CELL = "a cell of a table holds one number, one text or, in parquet, one list"
_SEVERAL = ["dict of arrays", "what a tokenizer returns", "tuple of arrays"]
_NO_FORM = {
    "table file": dict.fromkeys(["sequence", "picture in an array", *_SEVERAL], _NO_CELL)
    | dict.fromkeys(["transformer", "class weights", "row weights"], _NOT_SAID),
    "folder": dict.fromkeys(_SEVERAL, "a file holds one array")
    | dict.fromkeys(["transformer", "class weights", "row weights"], _NOT_SAID),
}


def _labels(one):
    "The columns of the label, and of the split where there is one; and the words of the command that name them."
    y = np.asarray(one.y)
    columns = dict(y=y) if y.ndim == 1 else {f"y{i}": part for i, part in enumerate(y.T)}
    words = ["--target", ",".join(columns)] + (["--task", "regression"] if y.ndim > 1 else [])
    if "split" in one.options:
        columns, words = columns | dict(part=one.options["split"]), [*words, "--split", "part"]
    return columns, words


def _kinds(one):
    "The kinds and layouts that the case is given, as words of the command."
    given = {f"--{option}": one.options.get(option, {}) for option in ("kinds", "layout")}
    return [word for option, of in given.items() if of for word in (option, *(f"{m}={v}" for m, v in of.items()))]


def _columns(name, x):
    "A column of rows as columns of a table."
    if isinstance(x, pd.DataFrame):
        return dict(x.add_prefix(f"{name}_"))
    return {f"{name}_{i}": part for i, part in enumerate(x.T)} if isinstance(x, np.ndarray) else {f"{name}_": x}


def _table_file(kind, folder):
    one = given(kind)
    columns, words = _labels(one)
    inputs = {c: v for m, x in one.xs.items() for c, v in _columns(m, x).items()}
    table, path = pd.DataFrame(inputs | columns), folder / "data.csv"
    if _are_lists(one.xs["x"]):
        path = path.with_suffix(".parquet")
        table.assign(x_=[np.asarray(row).T.tolist() for row in one.xs["x"]]).to_parquet(path)
    else:
        table.to_csv(path, index=False)
    _by_command(path, folder, "--modalities", "x=x_*", "plain=plain_*", *words, *_kinds(one))


def _are_lists(x):
    return isinstance(x, list) and not isinstance(x[0], str)


def _folder(kind, folder):
    "Arrays as .npy files, all else as a table; labels are a table of their own, or columns of the other table."
    one = given(kind)
    columns, words = _labels(one)
    place = folder / "data"
    place.mkdir()
    x = one.xs["x"]
    table, array = isinstance(x, pd.DataFrame) or isinstance(x[0], str), isinstance(x, np.ndarray)
    pd.DataFrame((_columns("x", x) if table else {}) | columns).to_csv(
        place / ("x.csv" if table else "labels.csv"), index=False
    )
    np.save(place / "plain.npy", one.xs["plain"])
    if not table:
        np.save(place / "x.npy", x if array else np.array([np.asarray(row) for row in x], dtype=object))
    _by_command(place, folder, *words, *_kinds(one))


# ---- files of a trained model


def _predictor(kind, folder):
    learn, one = trained(kind), given(kind)
    fitted = {m: e.transform for m, e in learn.dls.valid_ds.encoders.items() if hasattr(e, "transform")}
    save_predictor(learn, folder / "model.mmlit", transforms="given" if fitted else None)
    own = None if one.encoders is None else one.encoders()
    raw = {m: rows_of(x, learn.dls.split.valid) for m, x in one.xs.items()}
    predictor = load_predictor(folder / "model.mmlit", own, fitted)
    with torch.no_grad():
        want = torch.cat([learn.model.eval()(*batch[:2]) for batch in learn.dls.valid])
    assert same(predictor.answers(raw), want.reshape(len(want), -1)), "other answers"


def _fastai(kind, folder):
    learn, one = trained(kind), given(kind)
    path, learn.path = learn.path, folder
    try:
        learn.export("model.pkl")
    finally:
        learn.path = path
    with quietly():  # fastai says each time that a pickle may run code
        again = load_learner(folder / "model.pkl")
    raw = {m: rows_of(x, learn.dls.split.valid) for m, x in one.xs.items()}
    with again.no_bar(), again.no_logging():
        assert same(again.get_preds(dl=again.dls.test_dl(raw))[0], learn.get_preds()[0]), "other answers"


FIVE = "MCR", "MultiModal", "TCMax", "ModalityResampling", "GradientModulation"
PLACES = {
    "training": _train,
    "predict": _predict,
    **{name: partial(_train, method=name) for name in FIVE},
    "valuate": _valuate,
    "compare": _compare,
    "audit": _audit,
    "npz": _npz,
    "table file": _table_file,
    "folder": _folder,
    "predictor file": _predictor,
    "fastai export": _fastai,
    "torch.export": lambda kind, folder: export_model(trained(kind)),  # both compare the answers themselves
    "ONNX": lambda kind, folder: export_onnx(trained(kind), folder / "model.onnx"),
}


def cells():
    "All kinds at all places."
    return [(kind, place) for kind in KINDS for place in PLACES]


def possible(place):
    "Are the libraries there that the place needs?"
    return place != "ONNX" or all(map(importlib.util.find_spec, ("onnx", "onnxscript")))


def try_cell(kind, place):
    "Its answer, 'works', 'with a warning', 'refused' or 'no form', and the reason. Any other end is raised."
    if reason := _NO_FORM.get(place, {}).get(kind):
        return "no form", reason
    with warnings.catch_warnings(record=True) as said, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                PLACES[place](kind, Path(folder))
        except ValueError as refusal:
            return "refused", _plain(refusal, folder)
    said = [w for w in said if w.category is UserWarning and _of_mmlit(w)]
    return ("with a warning", _plain(said[0].message, folder)) if said else ("works", "")


def _of_mmlit(warning):
    "Is it said of what was given? torch and onnx say more, and some of it once only in a process."
    return not re.search(r"site-packages.(torch|onnx)", warning.filename)


def _plain(message, folder):
    "The first line, without the folder that it happened in, and without what another library says at its end."
    text = first_line(message).replace(folder + os.sep, "").replace(_pictures().name + os.sep, "")
    return re.sub(r" \([A-Z][a-z][^()]*\)$", "", text)


def table():
    "The answers to all cells."
    rows = [(kind, place, *try_cell(kind, place)) for kind, place in cells()]
    return pd.DataFrame(rows, columns=["kind", "place", "answer", "reason"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    found = table()
    found.to_csv(TABLE, index=False)
    print(found.groupby(["place", "answer"]).size().unstack(fill_value=0))


if __name__ == "__main__":
    main()
