"A trained model in one file: it answers raw rows in a fresh process as before, bit for bit, and never runs code."

import hashlib
import io
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fasttransform import Transform
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from torch import nn

from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import multimodal_data
from mmlit.fusion.heads import TokenEncoder, VectorEncoder
from mmlit.fusion.models import FusionModel
from mmlit.learner import multimodal_learner
from mmlit.methods.baselines import ModalityDropout, unimodal_learner
from mmlit.methods.mcr import MCR
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.tcmax import TCMax
from mmlit.production.predictor import Predictor, load_predictor, save_predictor

N = 200


def columns(seed=0, n=N):
    rng = np.random.default_rng(seed)
    ward = pd.DataFrame(
        dict(
            age=rng.normal(60, 9, n),
            stage=rng.choice(["I", "II", "III"], n),
            remark=[f"{a} and {b}" for a, b in rng.choice(["pain", "ache", "fever", "cough"], (n, 2))],
        )
    )
    ward.loc[3:6, "age"], ward.loc[7, "stage"], ward.loc[8, "remark"] = np.nan, None, None
    return dict(
        ward=ward,
        note=[f"word{i % 9} after word{i % 7}" for i in range(seed, n + seed)],
        picture=rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8),
        signal=rng.normal(size=(n, 2, 16)).astype(np.float32),
        ids=rng.integers(0, 9, (n, 5)),
    )


def labels(task):
    rng, age = np.random.default_rng(5), columns()["ward"].age.fillna(60).to_numpy()
    if task == "classification":
        return np.where(age > 60, "old", "young")
    if task == "regression":
        return (1000 + 20 * age + rng.normal(size=N)).astype(np.float32)
    return pd.DataFrame(dict(old=age > 60, odd=np.arange(N) % 2 == 1, any=rng.random(N) < 0.4)).astype(int)


# raw rows of production: empty cells, an unknown category, unseen words, an empty text
NEW = columns(seed=11, n=9)
NEW["ward"] = NEW["ward"].assign(stage=["IV", "II", None, "I", "II", "III", "IV", "I", "I"])
NEW["note"][1:3] = ["unheard of", ""]


def trained(task="classification", epochs=2, path=".", names=None, **options):
    xs = {m: x for m, x in columns().items() if names is None or m in names}
    kinds = dict(ids="tokens") if "ids" in xs else None
    data = multimodal_data(xs, labels(task), kinds=kinds, task=task)
    torch.manual_seed(0)
    learn = multimodal_learner(multimodal_dls(data, device="cpu", path=path), **dict(width=8) | options)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-2)
    return learn


def said(learn, rows=NEW):
    rows = {m: rows[m] for m in learn.dls.modalities}
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(dl=learn.dls.test_dl(rows))[0].numpy()


def in_a_fresh_process(code, folder, **held):
    "Run code in a process of its own, with pickled objects as `held`."
    (folder / "held.pkl").write_bytes(pickle.dumps(held))
    head = "import pickle, torch\ntorch.set_num_threads(1)\nheld = pickle.load(open('held.pkl', 'rb'))\n"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", head + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return pickle.loads((folder / "said.pkl").read_bytes())


def check_same(learn, folder, rows=NEW, save=None, **options):
    "What is read from the file answers as the learner does, bit for bit."
    save_predictor(learn, folder / "p.pt", **save or {})
    predictor = load_predictor(folder / "p.pt", **options)
    rows = {m: rows[m] for m in learn.dls.modalities}
    assert np.array_equal(predictor.predict_proba(rows).to_numpy(), said(learn, rows))


# ---- answers as before, bit for bit

TASKS = ["classification", "multi-label", "regression"]
FRESH = """
from fastai.learner import load_learner
from mmlit import load_predictor
said, rows = {}, held["rows"]
for task in held["tasks"]:
    predictor, learn = load_predictor(task + ".pt"), load_learner(task + ".pkl")
    table = predictor.predict(rows) if task == "regression" else predictor.predict_proba(rows)
    with learn.no_bar():
        exported = learn.get_preds(dl=learn.dls.test_dl(rows))[0].numpy()
    said[task] = table, predictor.predict(rows), exported
pickle.dump(said, open("said.pkl", "wb"))
"""


def test_raw_rows_of_all_kinds_are_answered_as_before_in_a_fresh_process(tmp_path):
    "By the file of `save_predictor`, and by that of fastai's own `learn.export`."
    before = {}
    for task in TASKS:
        learn = trained(task, path=tmp_path)
        before[task] = said(learn)
        save_predictor(learn, tmp_path / f"{task}.pt")
        learn.export(f"{task}.pkl")
    after = in_a_fresh_process(FRESH, tmp_path, rows=NEW, tasks=TASKS)
    for task, (table, predicted, exported) in after.items():
        assert np.array_equal(exported, before[task])
        assert np.array_equal(table.to_numpy().reshape(9, -1), before[task]) and list(table.index) == list(range(9))
        if task == "classification":
            assert list(table) == ["old", "young"] and set(predicted) <= {"old", "young"}
            assert (predicted.to_numpy() == table.idxmax(axis=1).to_numpy()).all()
        elif task == "multi-label":
            assert list(table) == ["old", "odd", "any"] and predicted.equals(table > 0.5)
        else:
            assert predicted.between(1000, 4000).all() and predicted.name == "predicted"


@pytest.mark.parametrize("head", ["sum", "film", "gated", "mlp", "attention"])
def test_each_head(head, tmp_path):
    learn = trained(head=head, names=["ward", "note", "signal"])
    save_predictor(learn, tmp_path / "p.pt")
    new = {m: NEW[m] for m in learn.dls.modalities}
    assert np.array_equal(load_predictor(tmp_path / "p.pt").predict_proba(new).to_numpy(), said(learn))


@pytest.mark.parametrize("method", [TCMax, MCR, partial(MultiModal, k=3, gamma=0.5), partial(ModalityDropout, 0.3)])
def test_what_a_method_adds_for_training_is_left_out(method, tmp_path):
    learn = trained(method=method(), names=["ward", "note"])
    check_same(learn, tmp_path)
    assert not [k for k in contents(tmp_path / "p.pt")["weights"] if k.startswith("parts")]


def test_a_unimodal_learner(tmp_path):
    data = multimodal_data({m: columns()[m] for m in ("ward", "note")}, labels("classification"))
    learn = unimodal_learner(multimodal_dls(data, device="cpu"), "note", width=8)
    check_same(learn, tmp_path)


def test_pictures_in_files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths, numbers = [tmp_path / f"{i}.png" for i in range(60)], rng.normal(size=(60, 3))
    dls = multimodal_dls(dict(picture=paths, numbers=numbers), np.arange(60) % 2, size=8, device="cpu")
    learn = multimodal_learner(dls, width=8)
    check_same(learn, tmp_path, dict(picture=paths[:7], numbers=numbers[:7] + 1))


def test_transformers_are_kept_by_skops_or_given(tmp_path):
    data = multimodal_data(dict(columns(), rna=np.random.default_rng(0).normal(size=(N, 40))), labels("classification"))
    data = data.select(["ward", "rna", "note"]).with_transform(dict(rna=SelectKBest(k=5), note=TfidfVectorizer()))
    learn = multimodal_learner(multimodal_dls(data, device="cpu"), width=8)
    with pytest.raises(ValueError, match="transform of modality '(rna|note)' is an object of scikit-learn.*'skops'"):
        save_predictor(learn, tmp_path / "p.pt")
    assert not list(tmp_path.iterdir())
    new = dict(NEW, rna=data.xs["rna"][:9] * 2)
    own = {m: learn.dls.encoders[m].transform for m in ("rna", "note")}
    check_same(learn, tmp_path, new, dict(transforms="given"), transforms=own)
    pytest.importorskip("skops", reason="skops is an extra: pip install mmlit[skops]")
    trusted = ["sklearn.feature_selection._univariate_selection.f_classif"]
    check_same(learn, tmp_path, new, dict(transforms="skops"), trusted=trusted)


class Own(nn.Module):
    "A model of your own, whose code the file does not hold."

    def __init__(self, activation=None):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(16, 2)
        self.activation = activation or torch.relu

    def encode(self, a, b):
        return self.left(a), self.right(b)

    def fuse(self, zs):
        return self.out(self.activation(torch.cat(zs, 1)))

    def forward(self, a, b):
        return self.fuse(self.encode(a, b))


def own_learner(model=None):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(N, 4)), rng.normal(size=(N, 3))
    return multimodal_learner(multimodal_dls(dict(a=a, b=b), np.arange(N) % 2, device="cpu"), model or Own())


def test_a_model_of_your_own_is_given_and_stays_as_it_was(tmp_path):
    learn, fresh = own_learner(), Own()
    save_predictor(learn, tmp_path / "p.pt")
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    predictor = load_predictor(tmp_path / "p.pt", fresh)
    rows = {m: x[:5] for m, x in learn.dls.data.xs.items()}
    assert np.array_equal(predictor.predict_proba(rows).to_numpy(), said(learn, rows))
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    assert all(p.requires_grad for p in fresh.parameters()) and fresh.training


def test_encoders_of_your_own_are_given_and_the_head_is_in_the_file(tmp_path):
    several = dict(ids=np.arange(N * 3).reshape(N, 3) % 5, mask=np.ones((N, 3), dtype=bool))

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = TokenEncoder(5, 6)

        def forward(self, x):
            return self.tokens(x["ids"] * x["mask"])

    make = lambda: [VectorEncoder(4, 6), Several()]
    dls = multimodal_dls(dict(a=np.random.default_rng(0).normal(size=(N, 4)), b=several), np.arange(N) % 2)
    learn = multimodal_learner(dls.cpu(), make(), head="mlp")
    save_predictor(learn, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="the encoders of this learner came from outside of mmlit"):
        load_predictor(tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt", make())
    rows = dict(a=dls.data.xs["a"][:5], b={k: v[:5] for k, v in several.items()})
    assert np.array_equal(predictor.predict_proba(rows).to_numpy(), said(learn, rows))


def test_a_learner_that_was_exported_by_fastai_can_be_saved(tmp_path):
    learn = trained(path=tmp_path, names=["ward", "note"])
    learn.export("all.pkl")
    save_predictor(load_learner(tmp_path / "all.pkl"), tmp_path / "p.pt")
    new = {m: NEW[m] for m in learn.dls.modalities}
    assert np.array_equal(load_predictor(tmp_path / "p.pt").predict_proba(new).to_numpy(), said(learn))


# ---- the rows


def test_rows_come_as_columns_dicts_tables_or_data_sets(tmp_path):
    learn = trained(names=["ward", "note"])
    save_predictor(learn, tmp_path / "p.pt", columns=dict(note="text"))
    predictor = load_predictor(tmp_path / "p.pt")
    new = {m: NEW[m] for m in ("ward", "note")}
    want = predictor.predict_proba(new)
    each = [dict(ward=row, note=note) for row, note in zip(new["ward"].to_dict("records"), new["note"])]
    frame = new["ward"].assign(text=new["note"], more=1)
    for rows in (each, tuple(new.values()), frame, dict(new, ward=new["ward"].to_dict("records"))):
        assert predictor.predict_proba(rows).equals(want)
    data = multimodal_data(new, ["old", "young", "old"] * 3, classes=["old", "young"])
    assert predictor.predict_proba(data).equals(want)

    names = [f"patient {i}" for i in range(9)]
    assert list(predictor.predict(frame.set_axis(names)).index) == names
    assert list(predictor.predict(dict(new, ward=new["ward"].set_axis(names))).index) == names
    with pytest.raises(ValueError, match="the DataFrame has no column 'age' of modality 'ward'"):
        predictor.predict(frame.drop(columns="age"))
    with pytest.warns(UserWarning, match="'note' of .* is missing in all rows: .* never saw such a sample in training"):
        without = predictor.predict_proba(frame.drop(columns="text"))
    assert not without.equals(want) and np.isfinite(without.to_numpy()).all()
    with pytest.raises(ValueError, match="unknown modality 'notes'"):
        save_predictor(learn, tmp_path / "p.pt", columns=dict(notes="text"))


def test_numbers_of_a_table_are_found_by_the_columns_that_were_said(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(N, 5)), columns=list("abcde"))
    parts = dict(left=["a", "b"], right=["c", "d", "e"])
    dls = multimodal_dls(frame.assign(y=np.arange(N) % 2), "y", modalities=parts, device="cpu")
    save_predictor(multimodal_learner(dls), tmp_path / "p.pt", columns=parts)
    predictor = load_predictor(tmp_path / "p.pt")
    want = predictor.predict_proba((frame[["a", "b"]].to_numpy(), frame[["c", "d", "e"]].to_numpy()))
    assert np.array_equal(predictor.predict_proba(frame[list("edcba")]).to_numpy(), want.to_numpy())


def test_rows_that_do_not_fit_are_refused(tmp_path):
    learn = own_learner()
    save_predictor(learn, tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt", Own())
    a, b = (x[:5] for x in learn.dls.data.xs.values())
    for rows, message in (
        (dict(a=a, b=b[:3]), "modalities of different length"),
        (dict(a=a, b=a), r"modality 'b' has rows of shape .4,., expected .3,."),
        (dict(a=np.where(np.eye(5, 4) > 0, np.nan, a), b=b), "'a' has NaN or infinity in 4 of 5 rows"),
        (
            dict(a=np.full((5, 4), np.nan), b=np.full((5, 3), np.nan)),
            "row 0 of what is to be predicted has no modality",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(rows)


def test_a_predictor_answers_in_evaluation_mode_and_draws_nothing(tmp_path):
    model = FusionModel([VectorEncoder(4, 6, dropout=0.5), nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))], Head())
    learn = own_learner(model)
    save_predictor(learn, tmp_path / "p.pt")
    fresh = FusionModel([VectorEncoder(4, 6, dropout=0.5), nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))], Head())
    predictor = load_predictor(tmp_path / "p.pt", fresh)
    rows = {m: x[:5] for m, x in learn.dls.data.xs.items()}
    predictor.model.train()
    state = torch.get_rng_state()
    first, second = predictor.answers(rows), predictor.answers(rows)
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert predictor.model.training and not first.requires_grad


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 2)

    def forward(self, zs):
        return self.out(torch.cat(tuple(zs), 1))


# ---- the file


def test_a_file_is_read_as_plain_data_only(tmp_path, monkeypatch):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    load_predictor(tmp_path / "p.pt")
    assert [options["weights_only"] for options in asked] == [True, True]


def contents(path):
    "The state inside of a file, which has its digest."
    data = torch.load(path, weights_only=True)["state"].numpy().tobytes()
    return torch.load(io.BytesIO(data), weights_only=True)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_code_in_a_file_is_refused_and_not_run(write, tmp_path):
    made = str(tmp_path / "made")
    write(dict(format="mmlit predictor", version=1, more=Harmful(made)), tmp_path / "p.pt")
    with pytest.raises(ValueError, match="holds more than plain data, which could run code"):
        load_predictor(tmp_path / "p.pt")
    assert not os.path.exists(made)
    if write is torch.save:
        torch.load(tmp_path / "p.pt", weights_only=False)
        assert os.path.exists(made)  # it would have


def test_code_inside_of_the_state_is_refused_too(tmp_path):
    "Whoever forges the state can forge its digest."
    inner = io.BytesIO()
    torch.save(dict(coding=Harmful(str(tmp_path / "made"))), inner)
    data = inner.getvalue()
    state = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    held = dict(format="mmlit predictor", version=1, mmlit="", sha256=hashlib.sha256(data).hexdigest(), state=state)
    torch.save(held, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="holds more than plain data, which could run code"):
        load_predictor(tmp_path / "p.pt")
    assert not (tmp_path / "made").exists()


def test_a_file_does_not_depend_on_the_version_of_torch(tmp_path, monkeypatch):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    new = {m: NEW[m] for m in learn.dls.modalities}
    assert np.array_equal(load_predictor(tmp_path / "p.pt").predict_proba(new).to_numpy(), said(learn))


def test_a_damaged_file_is_no_answer(tmp_path):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    whole, new = (tmp_path / "p.pt").read_bytes(), {m: NEW[m] for m in ("ward", "note")}
    want, rng, refused = load_predictor(tmp_path / "p.pt").answers(new), np.random.default_rng(0), 0
    for at in rng.integers(0, len(whole), 80):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "broken.pt").write_bytes(broken)
        try:
            said = load_predictor(tmp_path / "broken.pt").answers(new)
        except ValueError:
            refused += 1
        else:
            assert torch.equal(said, want)  # filling between the parts of the file
    assert refused > 40
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "broken.pt").write_bytes(whole[:n])
        with pytest.raises(ValueError, match="broken.pt"):
            load_predictor(tmp_path / "broken.pt")


def test_other_files_and_other_versions(tmp_path):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    held = torch.load(tmp_path / "p.pt", weights_only=True)
    torch.save(held | dict(version=2, mmlit="9.1"), tmp_path / "later.pt")
    torch.save(learn.model.state_dict(), tmp_path / "weights.pt")
    torch.save(held | dict(state=held["state"] ^ 1), tmp_path / "other.pt")
    for name, message in (
        ("later", "has version 2 of the format, of mmlit 9.1; this is mmlit .*, which reads version 1"),
        ("weights", "is no file of save_predictor: it holds OrderedDict"),
        ("other", "is damaged: it is not what was written"),
    ):
        with pytest.raises(ValueError, match=message):
            load_predictor(tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError):
        load_predictor(tmp_path / "none.pt")


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    save_predictor(own_learner(), tmp_path / "p.pt")
    wide = Own()
    wide.left = nn.Linear(5, 8)
    for model, message in (
        (None, "the model of this learner came from outside of mmlit, and code is not kept"),
        (wide, "do not fit this WrappedFusion: size mismatch for module.left.weight"),
        (nn.Bilinear(4, 3, 2), "do not fit this EarlyFusion"),
        (Own(torch.tanh), "answers otherwise than the one that was saved"),
        ([VectorEncoder(4), VectorEncoder(3)], "nothing of a head for these encoders"),
    ):
        with pytest.raises(ValueError, match=message):
            load_predictor(tmp_path / "p.pt", model)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    first = (tmp_path / "p.pt").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        save_predictor(learn, tmp_path / "p.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["p.pt"] and (tmp_path / "p.pt").read_bytes() == first


# ---- what is code, and not kept


class Shift(Callback):
    def after_pred(self):
        self.learn.pred = self.pred + torch.arange(self.pred.shape[1])


def test_a_callback_that_changes_answers_is_refused(tmp_path):
    learn = trained(names=["ward", "note"], epochs=1, cbs=Shift())
    with pytest.raises(ValueError, match="another way than its model alone: a callback"):
        save_predictor(learn, tmp_path / "p.pt")


def test_a_transformation_of_batches_is_refused(tmp_path):
    learn = trained(names=["signal", "note"], epochs=1)
    learn.dls.valid.after_batch.add(Transform(lambda x: 3 * x if x.is_floating_point() else x))
    with pytest.raises(ValueError, match="another way than its model alone"):
        save_predictor(learn, tmp_path / "p.pt")


def test_the_threshold_of_the_loss_is_kept(tmp_path):
    learn = trained("multi-label", names=["ward", "note"], epochs=1)
    learn.loss_func.thresh = 0.3
    save_predictor(learn, tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt")
    new = {m: NEW[m] for m in ("ward", "note")}
    assert predictor.predict(new).equals(predictor.predict_proba(new) > 0.3)


def test_loaders_of_others_are_refused(tmp_path):
    learn = own_learner()
    learn.dls = [1, 2]
    with pytest.raises(ValueError, match="expected loaders of multimodal_dls"):
        save_predictor(learn, tmp_path / "p.pt")


def test_options_of_a_predictor_are_checked():
    learn = own_learner()
    coding = learn.dls.valid_ds.coding
    for options, message in ((dict(bs=0), "bs"), (dict(threshold=2), "threshold"), (dict(columns=dict(c="c")), "'c'")):
        with pytest.raises(ValueError, match=message):
            Predictor(coding, learn.model, **options)


@pytest.mark.cuda
def test_on_a_device(tmp_path):
    learn = trained(names=["ward", "note"], epochs=1)
    save_predictor(learn, tmp_path / "p.pt")
    new = {m: NEW[m] for m in ("ward", "note")}
    here, there = load_predictor(tmp_path / "p.pt"), load_predictor(tmp_path / "p.pt", device="cuda")
    assert there.encode(new)["note"].is_cuda and torch.allclose(here.answers(new), there.answers(new), atol=1e-4)


def test_answers_are_compared_by_their_range_and_not_by_their_offset(tmp_path):
    "A callback that shifts numbers by a tenth of their spread is noticed, however large the numbers are."

    class Tenth(Callback):
        def after_pred(self):
            self.learn.pred = self.pred + 2.0

    rng = np.random.default_rng(0)
    xs = dict(a=rng.normal(size=(N, 3)), b=rng.normal(size=(N, 2)))
    y = (1e5 + 10 * xs["a"][:, 0] + rng.normal(size=N)).astype(np.float32)
    learn = multimodal_learner(multimodal_dls(xs, y, device="cpu"))
    with learn.no_bar(), learn.no_logging():
        learn.fit(30, 1e-2)
    save_predictor(learn, tmp_path / "p.pt")
    learn.add_cb(Tenth())
    with pytest.raises(ValueError, match="another way than its model alone"):
        save_predictor(learn, tmp_path / "p.pt")


def test_a_torch_whose_plain_loading_has_a_hole_is_named(tmp_path, monkeypatch):
    save_predictor(trained(names=["ward", "note"], epochs=1), tmp_path / "p.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.warns(UserWarning, match="torch 2.5.1 can be made to run code even by weights_only .CVE-2025-32434"):
        load_predictor(tmp_path / "p.pt")


def test_several_targets_are_answered_one_by_one_in_their_units(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 90, 3))
    y = np.stack([a[:, 0], 1e4 + b[:, 0]], 1)
    learn = multimodal_learner(multimodal_dls(dict(a=a, b=b), y, task="regression"), width=4)
    save_predictor(learn, tmp_path / "p.pt")
    table = load_predictor(tmp_path / "p.pt").predict(dict(a=pd.DataFrame(a), b=b))
    assert np.array_equal(table.to_numpy(), said(learn, dict(a=a, b=b))) and list(table.index) == list(range(90))
    assert table.shape == (90, 2) and abs(table[0].mean()) < 10 and abs(table[1].mean() - 1e4) < 10


@pytest.mark.parametrize("weights", ["balanced", [1.0, 4.0]], ids=str)
def test_class_weights_have_no_part_in_a_predictor(weights, tmp_path):
    xs, y = {m: np.random.default_rng(0).normal(size=(90, 3)) for m in "ab"}, np.arange(90) % 3 // 2
    learn = multimodal_learner(multimodal_dls(xs, y, class_weights=weights, groups=range(90)), width=4)
    check_same(learn, tmp_path, rows=xs)


@pytest.mark.filterwarnings("ignore:samples of .* lack a modality")
def test_rows_that_lack_a_modality_are_answered_as_by_the_learner(tmp_path):
    rng, y = np.random.default_rng(0), np.arange(90) % 3
    walk = [None if i % 5 == 0 else rng.normal(size=(2, t)) for i, t in enumerate(rng.integers(4, 12, 90))]
    note = [None if i % 7 == 1 else f"word{k} and more" for i, k in enumerate(y)]
    xs = dict(walk=walk, note=note, vector=rng.normal(size=(90, 3)) + y[:, None])
    dls = multimodal_dls(xs, np.array(list("abc"))[y], bs=16, device="cpu")
    learn = multimodal_learner(dls, width=4, learn_absent=True)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        save_predictor(learn, tmp_path / "gaps.mmlit")
        new = dict(walk=walk[:4], note=[None, "word1 and more", None, "?"], vector=xs["vector"][:4])
        want = learn.get_preds(dl=dls.test_dl(new))[0].numpy()
    loaded = load_predictor(tmp_path / "gaps.mmlit")
    assert np.array_equal(loaded.predict_proba(new).to_numpy(), want.astype(loaded.predict_proba(new).to_numpy().dtype))
    with pytest.warns(UserWarning, match="'note' of .* is missing in all rows"):
        fewer = loaded.predict_proba(dict(walk=walk[1:3], vector=xs["vector"][1:3]))
    assert np.isfinite(fewer.to_numpy()).all()


# ---- what rows lack, have beside, or call otherwise is said


def answered(predictor, rows):
    "Answers, and what was warned of."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        return predictor.answers(rows), [str(w.message) for w in seen]


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    "A predictor of a table, numbers and a note; rows that it takes, and the same as a DataFrame."
    folder = tmp_path_factory.mktemp("ward")
    with warnings.catch_warnings(action="ignore"):
        learn = trained(epochs=1, path=folder, names=("ward", "note", "ids"))
        save_predictor(learn, folder / "p.pt", columns=dict(note="text", ids=list("abcde")))
    rows = {m: x for m, x in columns(seed=4, n=4).items() if m in ("ward", "note", "ids")}
    rows["ward"] = columns(seed=4)["ward"][20:24].reset_index(drop=True)
    frame = rows["ward"].assign(text=rows["note"], **dict(zip("abcde", rows["ids"].T)))
    return load_predictor(folder / "p.pt"), rows, frame


@pytest.mark.parametrize("name", ["txet", "Text", " text "])
def test_a_misspelt_column_of_a_modality_is_refused_with_the_close_match(name, ward):
    predictor, _, frame = ward
    with pytest.raises(ValueError, match=rf"no column 'text' of modality 'note' \(is it '{name}'\?\); it has \["):
        predictor.predict(frame.rename(columns=dict(text=name)))


def test_a_column_that_is_near_no_other_is_said_with_those_of_no_modality(ward):
    predictor, rows, frame = ward
    said, seen = answered(predictor, frame.rename(columns=dict(text="remarks_of_doctor")).assign(bed=1))
    assert any("'text' of modality 'note'" in w and "['remarks_of_doctor', 'bed'] belong to no" in w for w in seen)
    assert torch.equal(said, answered(predictor, {m: x for m, x in rows.items() if m != "note"})[0])
    said, seen = answered(predictor, frame.assign(bed=1))
    assert not seen and torch.equal(said, answered(predictor, rows)[0])  # a table may have other columns
    with pytest.raises(ValueError, match=r"no column 'age' of modality 'ward' \(is it 'Age'\?\)"):
        predictor.predict(frame.rename(columns=dict(age="Age")))


def test_a_modality_whose_columns_are_not_known_has_its_close_match_named(tmp_path):
    xs = {m: np.random.default_rng(0).normal(size=(90, 1)) for m in ("pressure", "pulse")}
    learn = multimodal_learner(multimodal_dls(xs, np.arange(90) % 2, device="cpu"), width=4)
    save_predictor(learn, tmp_path / "p.pt")
    frame = pd.DataFrame({"Pressures": [1.0, 2.0], "pulse": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"modality 'pressure' is not known \(is it column 'Pressures'\?\)"):
        load_predictor(tmp_path / "p.pt").predict(frame)


def test_a_name_that_is_no_modality_is_said_where_none_lacks(ward):
    predictor, rows, _ = ward
    said, seen = answered(predictor, dict(rows, pulse=[1] * 4, y=[0] * 4))
    assert len(seen) == 1 and "['pulse', 'y'] of what is to be predicted are left out" in seen[0]
    assert torch.equal(said, answered(predictor, rows)[0])
    each = [{m: x.iloc[i] if m == "ward" else x[i] for m, x in rows.items()} for i in range(4)]
    each[2]["Note"] = each[2].pop("note")
    _, seen = answered(predictor, each)
    assert any("['Note']" in w for w in seen) and any(
        "'note' is missing in 1 of 4 rows, the first is row 2" in w for w in seen
    )


def test_a_modality_of_none_is_one_that_all_rows_lack(ward):
    predictor, rows, _ = ward
    said, seen = answered(predictor, dict(rows, note=None))
    assert any("'note' of" in w and "is missing in all rows" in w for w in seen)
    assert torch.equal(said, answered(predictor, {m: x for m, x in rows.items() if m != "note"})[0])
    with pytest.raises(ValueError, match="'ward' is missing; got none, expected"):
        predictor.predict(dict(ward=None, note=None, ids=None))


def test_gaps_that_are_filled_are_counted_aloud_by_column(ward):
    predictor, rows, _ = ward
    table = rows["ward"].copy()
    table.loc[[0, 2], "age"], table.loc[3, "stage"] = np.nan, None
    said, seen = answered(predictor, dict(rows, ward=table))
    assert len(seen) == 1 and "'ward' has 3 empty cells in 4 rows ('age' 2, 'stage' 1)" in seen[0]
    assert not torch.equal(said[0], answered(predictor, rows)[0][0])
    assert answered(predictor, rows)[1] == []


def test_a_modality_that_no_row_has_is_said_the_same_however_it_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    a, b, y = rng.normal(size=(120, 2)), rng.normal(size=(120, 3)), np.arange(120) % 2
    learn = multimodal_learner(multimodal_dls(dict(a=a, b=b), y, device="cpu"), width=4)
    save_predictor(learn, tmp_path / "p.pt")
    predictor, gone = load_predictor(tmp_path / "p.pt"), np.full((2, 3), np.nan)
    with warnings.catch_warnings(action="ignore"):
        data = multimodal_data(dict(a=a[:3], b=[None, None, b[2]]), y[:3], classes=["0", "1"]).subset([0, 1])
    ways = [
        dict(a=a[:2]),
        dict(a=a[:2], b=None),
        dict(a=a[:2], b=[None, None]),
        dict(a=a[:2], b=gone),
        [dict(a=row) for row in a[:2]],
        [dict(a=row, b=None) for row in a[:2]],
        data,
    ]
    (first, words), *others = [answered(predictor, rows) for rows in ways]
    assert len(words) == 1 and words[0].startswith("'b' of ['a', 'b'] is missing in all rows")
    assert words[0].endswith("and never saw such a sample in training")
    assert all(torch.equal(said, first) and seen == words for said, seen in others)
    _, seen = answered(predictor, dict(a=a[:2], b=[None, b[0]]))
    assert len(seen) == 1 and seen[0].startswith("modality 'b' is missing in 1 of 2 rows, the first is row 0")


def test_rows_of_a_table_of_numbers_are_dicts_by_the_names_of_its_columns(tmp_path):
    rng = np.random.default_rng(0)
    table, b, y = (
        pd.DataFrame(rng.normal(size=(120, 2)), columns=["u", "v"]),
        rng.normal(size=(120, 3)),
        np.arange(120) % 2,
    )
    learn = multimodal_learner(multimodal_dls(dict(num=table, b=b), y, device="cpu"), width=4)
    save_predictor(learn, tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt")
    expected = predictor.answers(dict(num=table[:3], b=b[:3]))
    each = [dict(num=dict(v=v, u=u), b=row) for u, v, row in zip(table.u[:3], table.v[:3], b)]  # in another order
    assert torch.equal(predictor.answers(each), expected)
    assert torch.equal(predictor.answers(dict(num=[row["num"] for row in each], b=b[:3])), expected)
    said, seen = answered(predictor, [each[0], dict(num=None, b=b[1]), each[2]])
    assert torch.equal(said[::2], expected[::2]) and "'num' is missing in 1 of 3 rows" in seen[0]
    with pytest.raises(ValueError, match="row 1 of modality 'num' has no 'u', and others do"):
        predictor.answers([each[0], dict(num=dict(v=0.0), b=b[1])])
    with pytest.raises(ValueError, match=r"'num' are \['u', 'w'\], expected \['u', 'v'\]"):
        predictor.answers([dict(num=dict(u=0.0, w=1.0), b=b[1])])


def test_a_file_that_is_not_there_is_named_with_what_is_expected(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no file .*nope.pt: a file of save_predictor\(learn, path\) is expected"
    ):
        load_predictor(tmp_path / "nope.pt")


def test_what_fills_the_gaps_of_a_transformed_table_is_said(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(120, 3)), columns=list("uvw"))
    table.loc[::4, "v"] = np.nan
    own = dict(a=SimpleImputer(strategy="constant", fill_value=-9.0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dls = multimodal_dls(
            dict(a=table, b=rng.normal(size=(120, 2))),
            np.arange(120) % 2,
            standardize=False,
            transform=own,
            device="cpu",
        )
    (words,) = [str(w.message) for w in seen if "empty cells" in str(w.message)]
    assert "('v' 30)" in words and words.endswith("unless a transform of the modality takes them as they are")
    x = dls.train.dataset.batch(torch.arange(120))[0]
    assert (x[::4, 1] == -9).all() and torch.equal(x[1, :], torch.tensor(table.iloc[1].to_numpy(), dtype=torch.float32))
    save_predictor(multimodal_learner(dls, width=4), tmp_path / "p.pt", transforms="given")
    fitted = dict(a=dls.train.dataset.encoders["a"].transform)
    predictor = load_predictor(tmp_path / "p.pt", transforms=fitted)
    _, seen = answered(predictor, dict(a=table[:4], b=np.zeros((4, 2))))
    assert len(seen) == 1 and "its transform takes them as they are, or where it cannot, the median" in seen[0]


def test_whether_a_row_of_a_table_is_empty_is_for_the_columns_that_are_known():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(age=rng.normal(50, 9, 90), sex=rng.choice(["f", "m"], 90)))
    table.loc[3] = None
    with warnings.catch_warnings(action="ignore"):
        dls = multimodal_dls(dict(t=table, b=rng.normal(size=(90, 2))), np.arange(90) % 2, device="cpu")
    learn = multimodal_learner(dls, width=4)

    def said(t):
        with learn.no_bar():
            return learn.get_preds(dl=dls.test_dl(dict(t=t, b=np.zeros((2, 2)))))[0]

    rows = [dict(age=40.0, sex="f"), dict(age=None, sex=None)]
    further = [row | dict(patient="p1") for row in rows]
    for t in (pd.DataFrame(rows), further, pd.DataFrame(further)):
        assert torch.equal(said(t), said(rows))
