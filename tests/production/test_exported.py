"The plain model as a graph with named inputs, in torch.export and in ONNX: the same answers to any number of rows."

import importlib.util
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, InUnits, PictureEncoder, SequenceEncoder, TokenEncoder, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP, SelectModalities, as_fusion
from mmlit.learner import multimodal_learner
from mmlit.methods.mcr import MCR
from mmlit.methods.multimodal_loss import MultiModal, MultiProxyHead, ScaledSumHead
from mmlit.production.exported import export_model, export_onnx, input_names
from mmlit.production.predictor import load_predictor, save_predictor

ALL = dict(HEADS) | dict(proxies=MultiProxyHead, scaled=ScaledSumHead)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")),
    reason="ONNX is an extra: pip install mmlit[onnx]",
)


def batch(n=5, seed=0):
    "One input of each kind that a default encoder reads."
    draw = torch.Generator().manual_seed(seed)
    return {
        "vector": torch.randn(n, 5, generator=draw),
        "picture": torch.randn(n, 3, 16, 16, generator=draw),
        "sequence": torch.randn(n, 2, 20, generator=draw),
        "tokens": torch.randint(11, (n, 6), generator=draw),
    }


def model_with(head, pool=True):
    torch.manual_seed(0)
    encoders = [VectorEncoder(5, 8), PictureEncoder(3, 8), SequenceEncoder(2, 8, pool=pool), TokenEncoder(11, 8, pool)]
    return FusionModel(encoders, head((8,) * 4, 3))


def answers(model, xs):
    with torch.no_grad():
        return model.eval()(*xs.values())


def onnx_answers(path, xs):
    runtime = pytest.importorskip("onnxruntime", reason="the runtime is an extra: pip install mmlit[onnx]")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits"]
    assert [i.name for i in session.get_inputs()] == list(xs)
    return torch.as_tensor(session.run(None, {name: x.numpy() for name, x in xs.items()})[0])


@pytest.mark.parametrize("head", ALL)
def test_all_default_encoders_and_each_head(head):
    model = model_with(ALL[head])
    program = export_model(model, batch())
    for n in (1, 2, 33):
        xs = batch(n, seed=n)
        torch.testing.assert_close(program.module()(**xs), answers(model, xs))
        backwards = dict(reversed(xs.items()))
        assert torch.equal(program.module()(**backwards), program.module()(**xs))


@needs_onnx
@pytest.mark.parametrize("head", ["concat", "film", "attention", "proxies"])
def test_onnx_of_all_default_encoders(head, tmp_path):
    model = model_with(ALL[head], pool=head != "attention")
    assert export_onnx(model, tmp_path / "m.onnx", batch()) == ["vector", "picture", "sequence", "tokens"]
    for n in (1, 2, 33):
        xs = batch(n, seed=n)
        torch.testing.assert_close(onnx_answers(tmp_path / "m.onnx", xs), answers(model, xs), atol=1e-4, rtol=1e-4)


@needs_onnx
def test_onnx_is_read_by_the_reference_where_there_is_no_runtime(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    model = FusionModel([VectorEncoder(5, 4), VectorEncoder(3, 4)], HEADS["mlp"]((4, 4), 2))
    xs = dict(a=torch.randn(3, 5), b=torch.randn(3, 3))
    assert export_onnx(model, tmp_path / "m.onnx", xs) == ["a", "b"]


def test_without_the_libraries_the_remedy_is_said(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ImportError, match=r"ONNX needs onnx: pip install mmlit\[onnx\]"):
        export_onnx(model_with(HEADS["sum"]), tmp_path / "m.onnx", batch())


class ByPlace(nn.Module):
    "Of several tensors by place."

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x):
        assert isinstance(x, tuple)
        return self.left(x[0]) + self.right(x[1])


@needs_onnx
def test_several_tensors_by_place_are_inputs_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    xs = dict(pair=(rng.normal(size=(60, 3)), rng.normal(size=(60, 2))), plain=rng.normal(size=(60, 5)))
    dls = multimodal_dls(xs, np.arange(60) % 2, kinds=dict(pair="tuple"), device="cpu")
    learn = multimodal_learner(dls, [ByPlace(), VectorEncoder(5, 4)])
    pair, plain, _ = dls.valid.one_batch()
    want = answers(learn.model, dict(pair=pair, plain=plain))
    torch.testing.assert_close(export_model(learn).module()(pair=tuple(pair), plain=plain), want)
    assert export_onnx(learn, tmp_path / "m.onnx") == ["pair_0", "pair_1", "plain"]
    said = onnx_answers(tmp_path / "m.onnx", dict(pair_0=pair[0], pair_1=pair[1], plain=plain))
    torch.testing.assert_close(said, want, atol=1e-4, rtol=1e-4)


# ---- learners and predictors


def learner(y=None, method=None, **options):
    rng = np.random.default_rng(0)
    xs = {"rna seq": rng.normal(size=(120, 6)), "note": [f"word{i % 5} word{i % 3}" for i in range(120)]}
    y = np.arange(120) % 3 if y is None else y
    return multimodal_learner(multimodal_dls(xs, y, device="cpu"), method=method, width=8, **options)


def inputs_of(learn):
    *xs, _ = learn.dls.valid.one_batch()
    return dict(zip(["rna_seq", "note"], xs))


@pytest.mark.parametrize("method", [None, MCR, partial(MultiModal, k=2)])
def test_what_a_method_added_is_not_exported(method):
    learn = learner(method=method and method())
    modes = [m.training for m in learn.model.train().modules()]
    program = export_model(learn)
    assert not [k for k in program.state_dict if ".parts." in k]
    assert [m.training for m in learn.model.modules()] == modes
    torch.testing.assert_close(program.module()(**inputs_of(learn)), answers(learn.model, inputs_of(learn)))


def test_hooks_are_not_exported():
    learn = learner()
    handle = learn.model.register_feature_hook(lambda zs: tuple(0 * z for z in zs))
    program = export_model(learn)
    handle.remove()
    torch.testing.assert_close(program.module()(**inputs_of(learn)), answers(learn.model, inputs_of(learn)))


def test_numbers_keep_their_units_and_raw_rows_their_coding(tmp_path):
    learn = learner(1e4 + 10 * np.random.default_rng(0).normal(size=120))
    assert isinstance(learn.model.head, InUnits)
    save_predictor(learn, tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt")
    rows = {"rna seq": np.ones((3, 6)), "note": ["word1", "unheard of", ""]}
    xs = predictor.encode(rows)
    export_model(predictor, xs, tmp_path / "p.pt2")
    said = torch.export.load(tmp_path / "p.pt2").module()(rna_seq=xs["rna seq"], note=xs["note"])
    torch.testing.assert_close(said, predictor.answers(rows))
    assert (said > 9000).all()


@needs_onnx
def test_names_that_are_no_names_of_code_are_so_in_onnx_too(tmp_path):
    learn = learner()
    assert export_onnx(learn, tmp_path / "m.onnx") == ["rna_seq", "note"]
    said = onnx_answers(tmp_path / "m.onnx", inputs_of(learn))
    torch.testing.assert_close(said, answers(learn.model, inputs_of(learn)), atol=1e-4, rtol=1e-4)


def test_frozen_weights_make_no_difference():
    "Without gradients torch takes a fused transformer layer, which ONNX does not know."
    model = model_with(HEADS["attention"], pool=False).requires_grad_(False)
    enabled = torch.backends.mha.get_fastpath_enabled()
    program = export_model(model, batch())
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    assert not [n for n in program.graph.nodes if "_transformer_encoder_layer_fwd" in str(n.target)]


# ---- rows with gaps and rows of different length


def gappy(model=None, **options):
    "A learner of walks of different length, word ids and numbers; some samples lack walks, some lack numbers."
    rng = np.random.default_rng(0)
    walks = [None if i % 7 == 0 else rng.normal(size=(rng.integers(1, 15), 3)) for i in range(90)]
    words = [list(map(int, rng.integers(1, 20, rng.integers(1, 9)))) for _ in range(90)]
    number = rng.normal(size=(90, 4))
    number[1::5] = np.nan
    xs = dict(walk=walks, words=words, number=number)
    with warnings.catch_warnings(action="ignore"):
        dls = multimodal_dls(xs, np.arange(90) % 2, device="cpu", kinds=dict(words="tokens"))
    learn = multimodal_learner(dls, model, width=8, **options)
    if options.get("learn_absent"):
        for z in learn.model.absent:
            torch.nn.init.normal_(z)
    return learn


def raw(steps):
    "Three rows: complete, of one step, and without walk or number."
    rng = np.random.default_rng(steps)
    walks = [rng.normal(size=(steps, 3)), rng.normal(size=(1, 3)), None]
    number = np.array([[1.0, 2.0, 3.0, 4.0], [np.nan] * 4, [0.5] * 4])
    return dict(walk=walks, words=[[3] * steps, [1, 2], [5]], number=number)


def whole(steps):
    return {m: [x[0]] for m, x in raw(steps).items()}


@needs_onnx
@pytest.mark.parametrize("options", [{}, dict(learn_absent=True), dict(head="attention")], ids=str)
def test_gaps_and_lengths_are_answered_as_by_the_predictor(options, tmp_path):
    learn = gappy(**options)
    save_predictor(learn, tmp_path / "p.pt")
    predictor = load_predictor(tmp_path / "p.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        names = export_onnx(learn, tmp_path / "m.onnx")
        program = export_model(predictor, predictor.encode(whole(4)))
    assert names == ["walk_values", "walk_mask", "walk_present", "words", "number", "number_present"]
    for rows in [raw(1), raw(2), raw(5), raw(40), whole(3)]:
        xs, want = predictor.encode(rows), predictor.answers(rows)
        torch.testing.assert_close(program.module()(**xs), want)
        walk, words, number = xs["walk"], xs["words"], xs["number"]
        flat = dict(walk_values=walk["values"]["values"], walk_mask=walk["values"]["mask"])
        flat |= dict(walk_present=walk["present"], words=words)
        flat |= dict(number=number["values"], number_present=number["present"])
        torch.testing.assert_close(onnx_answers(tmp_path / "m.onnx", flat), want, atol=1e-4, rtol=1e-4)


def test_what_stands_in_a_gap_has_no_say_in_the_graph():
    model = FusionModel([VectorEncoder(5, 4), VectorEncoder(3, 4)], HEADS["mlp"]((4, 4), 2), learn_absent=True)
    there = torch.tensor([True, False, True, False, True, False])
    said = []
    program = export_model(model, dict(a=dict(values=PAIR["a"], present=torch.ones(6, dtype=torch.bool)), b=PAIR["b"]))
    for blank in (0.0, 1e3, torch.nan):
        a = dict(values=torch.where(there[:, None], PAIR["a"], blank), present=there)
        said.append(program.module()(a=a, b=PAIR["b"]))
        torch.testing.assert_close(said[-1], answers(model, dict(a=a, b=PAIR["b"])))
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])
    full = answers(model, PAIR)
    torch.testing.assert_close(said[0][there], full[there])
    assert (said[0][~there] - full[~there]).abs().max() > 1e-3


class Flat(nn.Module):
    "Of 6 steps and no others."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x["values"].flatten(1))


def test_a_fixed_number_of_steps_is_said(recwarn):
    model = FusionModel([Flat(), VectorEncoder(5, 4)], HEADS["concat"]((4, 4), 2))
    xs = dict(walk=dict(values=torch.randn(5, 2, 6), mask=torch.ones(5, 6, dtype=torch.bool)), a=torch.randn(5, 5))
    with pytest.warns(UserWarning, match="takes rows of exactly 6 steps of 'walk', those of the example: pad to"):
        program = export_model(model, xs)
    torch.testing.assert_close(program.module()(**xs), answers(model, xs))


def test_the_two_parts_of_named_encoders_take_no_gaps():
    model = as_fusion(Pair(), 2, encoders=["left", "right"])
    xs = dict(a=dict(values=PAIR["a"], present=torch.arange(6) > 2), b=PAIR["b"])
    with pytest.warns(UserWarning, match=r"samples lack \['a'\]: .* by a Predictor, see save_predictor"):
        program = export_model(model, xs)
    torch.testing.assert_close(program.module()(**PAIR), answers(model, PAIR))


# ---- models of others


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(8, 2)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, a, b):
        return self.out(self.norm(torch.cat([self.left(a), self.right(b)], 1)))


class Halves(Pair):
    def encode(self, a, b):
        return self.left(a), self.right(b)

    def fuse(self, zs):
        return self.out(torch.cat(tuple(zs), 1))


PAIR = dict(a=torch.randn(6, 5), b=torch.randn(6, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: as_fusion(Pair(), 2),
        lambda: as_fusion(Pair(), 2, encoders=["left", "right"]),
        lambda: as_fusion(Halves(), 2),
        lambda: EarlyFusion(JoinedMLP([(5,), (3,)], 2), 2),
        lambda: SelectModalities(FusionModel([VectorEncoder(3, 4)], HEADS["sum"]((4,), 2)), [1], 2),
    ],
    ids=["early", "named", "halves", "joined", "selected"],
)
def test_each_way_to_cut_a_model(make, tmp_path):
    model = make()
    torch.testing.assert_close(export_model(model, PAIR).module()(**PAIR), answers(model, PAIR))
    program = export_model(model, tuple(PAIR.values()))
    torch.testing.assert_close(program.module()(x1=PAIR["a"], x2=PAIR["b"]), answers(model, PAIR))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)

    def forward(self, x):
        return (self.embedding(x["ids"]) * x["mask"][..., None]).sum(1)


def test_an_input_of_several_tensors(tmp_path):
    model = FusionModel([VectorEncoder(5, 4), Reader()], HEADS["mlp"]((4, 4), 2))
    text = dict(ids=torch.randint(9, (6, 7)), mask=torch.rand(6, 7) < 0.5)
    xs = dict(a=PAIR["a"], text=text)
    program = export_model(model, xs)
    torch.testing.assert_close(program.module()(**xs), answers(model, xs))
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("ONNX is an extra: pip install mmlit[onnx]")
    assert export_onnx(model, tmp_path / "m.onnx", xs) == ["a", "text_ids", "text_mask"]
    said = onnx_answers(tmp_path / "m.onnx", dict(a=xs["a"], text_ids=text["ids"], text_mask=text["mask"]))
    torch.testing.assert_close(said, answers(model, xs), atol=1e-5, rtol=1e-4)


class Branches(Pair):
    def forward(self, a, b):
        return super().forward(a, b) if a.mean() > 0 else super().forward(-a, b)


class Counts(Pair):
    def forward(self, a, b):
        return super().forward(a, b) + torch.zeros(len(a), 1)


class Numbers(Pair):
    def forward(self, a, b):
        return torch.as_tensor(np.tanh(a.detach().numpy()))


class Draws(Pair):
    def forward(self, a, b):
        return super().forward(a, b) + torch.randn(a.shape[0], 2)


@pytest.mark.parametrize(
    "module, why",
    [
        (Branches, "Branches cannot be exported: which way the code goes depends on values of its inputs"),
        (Counts, "Counts cannot be exported: the code takes the number of rows for a constant"),
        (Numbers, "Numbers cannot be exported: its code does what a graph of tensors cannot hold"),
        (Draws, "do its answers depend on random draws"),
    ],
)
def test_a_model_that_cannot_be_exported_is_told_why(module, why):
    with pytest.raises(ValueError, match=why):
        export_model(as_fusion(module(), 2), PAIR)


def test_examples_that_do_not_fit():
    model = as_fusion(Pair(), 2)
    for xs, message in (
        (None, "an example is missing"),
        (dict(a=PAIR["a"]), "the model takes 2 inputs, and the example has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, xs)
    with pytest.raises(ValueError, match=r"the example has the inputs \['a', 'b'\], expected \['rna seq', 'note'\]"):
        export_model(learner(), PAIR)
    with pytest.raises(ValueError, match="Pair is no model in two parts"):
        export_model(Pair(), PAIR)


def test_names_of_inputs():
    assert input_names(["a", "a b", "1st", "é", "for"]) == ["a", "a_b", "_1st", "é", "for_"]
    with pytest.raises(ValueError, match="'a b' and 'a.b' both become the input 'a_b'"):
        input_names(["a b", "c", "a.b"])


@needs_onnx
@pytest.mark.parametrize("missing", [False, True], ids=["cells", "cells and rows"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_mixed_table_with_gaps_is_answered_as_by_the_predictor(task, missing, tmp_path):
    "Single empty cells are filled before the graph, whole rows are masked inside of it."
    rng, n = np.random.default_rng(0), 120
    ward = pd.DataFrame(
        dict(
            age=rng.normal(60, 9, n),
            dose=rng.exponential(2, n),
            stage=rng.choice(["I", "II", "III"], n),
            remark=[f"{a} and {b}" for a, b in rng.choice(["pain", "ache", "fever", "cough"], (n, 2))],
        )
    )
    y = 40 * ward.age + 100 * ward.dose if task == "regression" else np.where(ward.age > 60, "old", "young")
    scan = rng.normal(size=(n, 4))
    ward.loc[3:8, "age"], ward.loc[7:12, "dose"] = np.nan, np.nan
    ward.loc[9, "stage"], ward.loc[20, "remark"] = None, None
    if missing:
        scan[1:25:5], ward.loc[30:40, :] = np.nan, None
    with warnings.catch_warnings(action="ignore"):
        dls = multimodal_dls(dict(ward=ward, scan=scan), y, device="cpu")
        learn = multimodal_learner(dls, width=8, learn_absent=missing)
        with learn.no_bar(), learn.no_logging():
            learn.fit(3, 1e-2)
        save_predictor(learn, tmp_path / "p.pt")
        predictor = load_predictor(tmp_path / "p.pt")
        export_onnx(learn, tmp_path / "m.onnx")
        program = export_model(predictor, predictor.encode(dict(ward=ward, scan=scan)))
        new = pd.DataFrame(
            dict(
                age=[np.nan, 51, np.nan, 70, np.nan],
                dose=[1.0, np.nan, np.nan, 3, np.nan],
                stage=["II", None, "IV", "I", None],
                remark=["pain and ache", None, "unheard", "", None],
            )
        )
        other = np.where(np.arange(5)[:, None] == 3, np.nan, rng.normal(size=(5, 4))) if missing else scan[:5]
        rows = dict(ward=new if missing else new[:4], scan=other if missing else other[:4])
        xs, want = predictor.encode(rows), predictor.answers(rows)
        filled = new.assign(age=new.age.fillna(ward.age[dls.split.train].median()))  # the median, computed here
        filled = filled.assign(dose=new.dose.fillna(ward.dose[dls.split.train].median()))
        again = predictor.answers(dict(ward=filled[:4], scan=rows["scan"][:4]))
        assert (again - want[:4]).abs().max() <= 1e-5 * want.abs().max()
    scale = want.abs().max().clamp(min=1)
    assert (program.module()(**xs) - want).abs().max() <= 1e-5 * scale
    flat = {}
    for m, x in xs.items():
        flat |= {m: x["values"], f"{m}_present": x["present"]} if isinstance(x, dict) else {m: x}
    assert (onnx_answers(tmp_path / "m.onnx", flat) - want).abs().max() <= 1e-5 * scale
