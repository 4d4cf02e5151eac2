"What was fitted, and how a model is built, as plain data: rebuilt, it encodes and answers as before, bit for bit."

import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from mmlit.data.loaders import multimodal_dls
from mmlit.data.mixed import MixedTable, TableEncoder
from mmlit.data.own import multimodal_data
from mmlit.data.rows import Rows
from mmlit.fusion.heads import (
    AttentionHead,
    ConcatHead,
    FiLMHead,
    GatedHead,
    InUnits,
    MLPHead,
    PictureEncoder,
    SequenceEncoder,
    SumHead,
    TokenEncoder,
    VectorEncoder,
)
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP, SelectModalities
from mmlit.learner import multimodal_learner
from mmlit.methods.multimodal_loss import MultiProxyHead, ScaledSumHead
from mmlit.methods.tcmax import TCMax
from mmlit.production.plain import coding_of, coding_state, is_whole, model_of, model_plan

N = 200


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def table(seed=0, gaps=0.1):
    rng = np.random.default_rng(seed)
    words = np.array("pain ache Fieber été naïve 42nd under_score no".split())
    made = pd.DataFrame(
        dict(
            age=rng.normal(60, 9, N),
            remark=[" ".join(rng.choice(words, 4)) for _ in range(N)],
            stage=pd.Categorical(rng.choice(["I", "II", "III", "<empty>"], N)),
            dose=1e6 + rng.exponential(size=N),
            smoker=rng.random(N) < 0.3,
            ward=rng.choice(["b", "a", ""], N),
            second=[f"no. {i} {w}" for i, w in enumerate(rng.choice(words, N))],
        )
    )
    return made.mask(rng.random(made.shape) < gaps).assign(smoker=made.smoker)


SETS = [
    ["age", "dose"],
    ["stage", "ward"],
    ["remark", "second"],
    ["remark", "age", "stage"],
    ["age", "remark", "stage", "dose", "smoker", "ward", "second"],
]


@pytest.mark.parametrize("columns", SETS, ids="-".join)
@pytest.mark.parametrize("indicator, standardize", itertools.product([False, True], repeat=2))
def test_a_rebuilt_table_encoder_is_the_first_one(columns, indicator, standardize):
    frame = table()[columns]
    frame = frame[frame.notna().any(axis=1)].reset_index(drop=True)
    column = MixedTable(frame, "m", indicator=indicator)
    y = np.arange(len(frame)) % 2
    data = multimodal_data(dict(m=column, x=np.random.default_rng(0).normal(size=(len(frame), 3))), y)
    coding = multimodal_dls(data, standardize=standardize, device="cpu").valid_ds.coding
    same = coding_of(through_a_file(coding_state(coding))).encoders["m"]
    assert type(same) is TableEncoder and same.names == coding.encoders["m"].names

    rng = np.random.default_rng(1)
    new = table(seed=9, gaps=0.4)[columns]
    if "stage" in columns:
        new["stage"] = new.stage.astype(object).where(rng.random(N) < 0.8, "never seen")
    if "remark" in columns:
        new["remark"] = new.remark.where(rng.random(N) < 0.8, "unheard WORDS, and Pain")
    new = new[new.notna().any(axis=1)]
    for rows in (MixedTable(new, "m", same.sorts).frame, column.frame):
        assert torch.equal(same.encode(rows), coding.encoders["m"].encode(rows))


def test_a_column_that_is_empty_in_all_training_rows_is_rebuilt():
    frame = pd.DataFrame(dict(a=np.r_[np.full(150, np.nan), np.arange(50.0)], b=np.arange(200.0), c=["x", "y"] * 100))
    for indicator in (False, True):
        first = TableEncoder(MixedTable(frame, "m", indicator=indicator), np.arange(150))
        coding = multimodal_dls(dict(m=frame, x=np.eye(200)), np.arange(200) % 2, device="cpu").valid_ds.coding
        coding.encoders["m"] = first
        same = coding_of(through_a_file(coding_state(coding))).encoders["m"]
        rows = MixedTable(frame, "m", first.sorts).frame
        assert torch.equal(same.encode(rows), first.encode(rows))


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_the_coding_of_each_kind_and_task(task):
    rng = np.random.default_rng(0)
    xs = dict(
        vector=1e5 + rng.normal(size=(N, 4)),
        sequence=rng.normal(size=(N, 2, 12)).astype(np.float32),
        picture=rng.integers(0, 256, (N, 3, 8, 8), dtype=np.uint8),
        text=[f"word{i % 5} and word{i % 3}" for i in range(N)],
        ids=rng.integers(0, 9, (N, 6)),
        several=dict(ids=rng.integers(0, 5, (N, 3)), mask=rng.random((N, 3)) < 0.5, size=rng.normal(size=N)),
    )
    y = dict(
        classification=np.arange(N) % 3,
        regression=rng.normal(size=N),
        **{"multi-label": (rng.random((N, 3)) < 0.5).astype(int)},
    )[task]
    data = multimodal_data(xs, y, kinds=dict(ids="tokens"), task=task)
    coding = multimodal_dls(data, device="cpu").valid_ds.coding
    same = coding_of(through_a_file(coding_state(coding)))
    rows = torch.arange(N)
    ours, theirs = (Rows(c, data.xs, None, range(N)).batch(rows) for c in (same, coding))
    assert all(torch.equal(a, b) for a, b in zip(ours[:5], theirs[:5]))
    assert all(torch.equal(ours[5][k], theirs[5][k]) for k in theirs[5])
    left_out = {"split", "loss_func", "vocab", "encoders", "bytes", "blank"}
    torch.testing.assert_close(same.blank, coding.blank, rtol=0, atol=0)
    for name in set(vars(coding)) - left_out:
        assert getattr(same, name) == getattr(coding, name), name
    assert set(same.bytes) == coding.bytes and list(same.vocab) == list(coding.vocab)


def test_what_is_no_data_is_named():
    coding = multimodal_dls(dict(a=np.eye(100), b=np.eye(100)), np.arange(100) % 2, device="cpu").valid_ds.coding
    coding.extra = dict(rule=lambda x: x)
    with pytest.raises(ValueError, match=r"extra\['rule'\] is function, which a file without code cannot hold"):
        coding_state(coding)


def test_a_file_cannot_ask_for_a_class_that_is_not_in_the_list():
    coding = multimodal_dls(dict(a=np.eye(100), b=np.eye(100)), np.arange(100) % 2, device="cpu").valid_ds.coding
    state = coding_state(coding)
    state["encoders"]["a"] = ("<fitted>", "Popen", {})
    with pytest.raises(ValueError, match="unknown fitted object 'Popen'"):
        coding_of(state)
    with pytest.raises(ValueError, match="unknown part of a model: 'Popen'"):
        model_of(dict(type="FusionModel", encoders=[dict(type="Popen", options={})], head={}, learn_absent=False), 1)


# ---- transformers of scikit-learn


def twice(x):
    return 2 * x


def with_transforms(**transforms):
    rng = np.random.default_rng(0)
    xs = dict(rna=rng.normal(size=(N, 30)), note=[f"word{i % 5} and word{i % 3} so{i % 11}" for i in range(N)])
    data = multimodal_data(xs, np.arange(N) % 2).with_transform(transforms)
    return data, multimodal_dls(data, device="cpu").valid_ds.coding


def test_transformers_in_the_form_of_skops():
    pytest.importorskip("skops", reason="skops is an extra: pip install mmlit[skops]")
    data, coding = with_transforms(rna=SelectKBest(k=4), note=make_pipeline(TfidfVectorizer(), TruncatedSVD(3)))
    state = through_a_file(coding_state(coding, "skops"))
    with pytest.raises(ValueError, match="'rna' holds types that skops does not know .*f_classif.*trusted=") as told:
        coding_of(state)
    trusted = eval(str(told.value).split("trusted=")[1])
    same = coding_of(state, trusted=trusted)
    for m, x in data.xs.items():
        assert torch.equal(same.encoders[m].encode(x), coding.encoders[m].encode(x))


def test_a_function_is_not_called_before_it_is_trusted_by_name():
    pytest.importorskip("skops", reason="skops is an extra: pip install mmlit[skops]")
    _, coding = with_transforms(rna=FunctionTransformer(twice))
    state = coding_state(coding, "skops")
    with pytest.raises(ValueError, match=r"twice'\]"):
        coding_of(state)
    with pytest.raises(ValueError, match=r"twice'\]"):
        coding_of(state, trusted=["something.else"])


def test_a_transformer_that_is_given_is_the_one_of_the_training():
    data, coding = with_transforms(rna=SelectKBest(k=4))
    own = coding.encoders["rna"].transform
    state = through_a_file(coding_state(coding, "given"))
    same = coding_of(state, dict(rna=own))
    assert torch.equal(same.encoders["rna"].encode(data.xs["rna"]), coding.encoders["rna"].encode(data.xs["rna"]))
    for other in (SelectKBest(k=5), SelectKBest(k=4)):
        with pytest.raises(ValueError, match="is not the one that the model was trained with, SelectKBest.k=4."):
            coding_of(state, dict(rna=other.fit(data.xs["rna"][:90], data.y[:90])))
    with pytest.raises(ValueError, match="unknown modality with a transform: 'note'; known: rna"):
        coding_of(state, dict(note=own))


def test_a_transformer_of_other_versions_is_taken_with_a_warning():
    "Its digest holds the version of scikit-learn, so it says nothing then."
    data, coding = with_transforms(rna=SelectKBest(k=4))
    state = coding_state(coding, "given")
    state["encoders"]["rna"][2]["transform"] |= dict(digest="0", made_with="scikit-learn 1.5")
    with pytest.warns(UserWarning, match="cannot be told: the file comes from scikit-learn 1.5, this is scikit-learn"):
        same = coding_of(state, dict(rna=coding.encoders["rna"].transform))
    assert torch.equal(same.encoders["rna"].encode(data.xs["rna"]), coding.encoders["rna"].encode(data.xs["rna"]))


# ---- models

DIMS, C = (6, 6, 6), 4
HEADS = [
    SumHead(DIMS, C),
    SumHead(DIMS, C, shared=True),
    ConcatHead(DIMS, C),
    FiLMHead(DIMS, C, condition=2),
    GatedHead(DIMS, C, condition=1, width=5),
    MLPHead(DIMS, C, hidden=(7, 5), dropout=0.3),
    MLPHead(DIMS, C, hidden=()),
    AttentionHead(DIMS, C, width=12, heads=3, depth=2, dropout=0.1),
    MultiProxyHead(DIMS, C, k=3, gamma=0.7, init="aligned", axis="proxy", attended=False, unit=False),
    ScaledSumHead(DIMS, C, scale=3.0),
    InUnits(MLPHead(DIMS, 1), 1000.0, 0.1),
    InUnits(MLPHead(DIMS, 2), [1000.0, -2.0], [0.1, 5.0]),
]
ENCODERS = [
    (VectorEncoder(5, 6, hidden=(9, 8), dropout=0.2), torch.randn(3, 5)),
    (VectorEncoder(5, 6, hidden=()), torch.randn(3, 5)),
    (PictureEncoder(1, 6, width=8), torch.randn(3, 1, 16, 16)),
    (SequenceEncoder(2, 8, width=12), torch.randn(3, 2, 20)),
    (SequenceEncoder(2, 8, pool=False), torch.randn(3, 2, 20)),
    (TokenEncoder(11, 6), torch.randint(11, (3, 7))),
    (TokenEncoder(11, 6, pool=False), torch.randint(11, (3, 7))),
]


def twin_of(model):
    plan = through_a_file(model_plan(model))
    assert is_whole(plan)
    made = model_of(plan, model.n_modalities)
    made.load_state_dict(model.state_dict())
    assert repr(made) == repr(model)
    return made.eval()


@pytest.mark.parametrize("head", HEADS, ids=lambda h: type(h).__name__)
def test_each_head_is_rebuilt_with_its_options(head):
    model = FusionModel([VectorEncoder(5, 6) for _ in DIMS], head).eval()
    xs = torch.randn(3, 4, 5)
    assert torch.equal(twin_of(model)(*xs), model(*xs))


@pytest.mark.parametrize("encoder, x", ENCODERS, ids=lambda e: type(e).__name__)
def test_each_encoder_is_rebuilt_with_its_options(encoder, x):
    with torch.no_grad():
        dims = [encoder.eval()(x).shape[-1]] * 2
    model = FusionModel([encoder, encoder], AttentionHead(dims, C), learn_absent=True).eval()
    assert torch.equal(twin_of(model)(x, x), model(x, x))


def test_models_around_models_are_rebuilt():
    xs = torch.randn(3, 4, 5)
    inner = FusionModel([VectorEncoder(5, 6)], SumHead((6,), C))
    for model in (SelectModalities(inner, [2], 3).eval(), EarlyFusion(JoinedMLP([[5]] * 3, C, (8, 7)), 3).eval()):
        assert torch.equal(twin_of(model)(*xs), model(*xs))


def test_the_parts_of_a_method_are_no_part_of_the_plan():
    dls = multimodal_dls(dict(a=np.random.randn(99, 3), b=np.random.randn(99, 3)), np.arange(99) % 3, device="cpu")
    plain, method = multimodal_learner(dls), multimodal_learner(dls, method=TCMax())
    assert model_plan(plain.model) == model_plan(method.model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.encoders[0], "2", nn.GELU()),
        lambda m: m.encoders[0].append(nn.Tanh()),
        lambda m: setattr(m.encoders[0], "1", nn.Linear(5, 128, bias=False)),
        lambda m: nn.utils.parametrizations.weight_norm(m.encoders[0][1]),
        lambda m: setattr(m.encoders[0], "1", nn.Identity()),
    ],
)
def test_a_part_that_was_changed_is_foreign(change):
    model = FusionModel([VectorEncoder(5, 6), VectorEncoder(5, 6)], ConcatHead((6, 6), C))
    assert is_whole(model_plan(model))
    change(model)
    plan = model_plan(model)
    assert plan["encoders"][0] is None and plan["encoders"][1] is not None and not is_whole(plan)


def test_the_random_state_stays():
    model = FusionModel([VectorEncoder(5, 6), VectorEncoder(5, 6)], ConcatHead((6, 6), C))
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    model_of(model_plan(model), 2)
    assert torch.equal(torch.rand(3), first)
