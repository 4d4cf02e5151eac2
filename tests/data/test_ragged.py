"Sequences of different length, and inputs of several tensors, go through everything, and padding never has a say."

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import load_learner
from support import BFloat16
from torch import nn
from torch.testing import assert_close

from mmlit import audit, compare
from mmlit.audits.held import hold
from mmlit.audits.measure import repeated_rows
from mmlit.audits.robustness import _shake
from mmlit.data.columns import MultimodalData
from mmlit.data.files import data_digest, load_npz
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.data.own import joined_parts
from mmlit.data.ragged import RaggedArrays
from mmlit.data.show import show_samples
from mmlit.data.values import NamedArrays, as_column, duplicate_groups
from mmlit.fusion.coalitions import ABSENT, absent_features, coalition_logits
from mmlit.fusion.heads import ConcatHead, TokenEncoder, VectorEncoder, masked_mean
from mmlit.fusion.models import FusionModel, NamedEncoders, as_fusion
from mmlit.fusion.padding import WithMask
from mmlit.learner import METHODS, multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss, unimodal_learner
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling, valuate
from mmlit.methods.tcmax import TCMax
from mmlit.monitor import ModalityMonitor
from mmlit.training import Budget

N = 120
BUDGET = Budget(epochs=1, bs=16, width=8)


def walks(rng, y, channels=2, longest=30):
    "The class is the level of the first channel; every length is there."
    lengths = rng.integers(1, longest, len(y))
    return [rng.normal(size=(t, channels)) + np.eye(1, channels) * c for t, c in zip(lengths, y)]


def ragged(n=N, seed=0, **options):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    words = [[int(c) + 1, *map(int, rng.integers(4, 9, rng.integers(0, 7)))] for c in y]
    options = dict(kinds=dict(words="tokens")) | options
    return multimodal_data(dict(walk=walks(rng, y), words=words, plain=rng.normal(size=(n, 3))), y, **options)


def quiet(f, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **options)


def fit(learn, epochs=1):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adam-like")
        warnings.filterwarnings("ignore", message="ModalityResampling acts|.*acts from epoch")
        learn.fit(epochs, 1e-2)
    return learn


def predictions(learn, **options):
    with learn.no_bar():
        return learn.get_preds(**options)[0]


# ---- padding has no say


def test_the_batch_that_a_row_is_in_changes_no_prediction():
    data = ragged()
    torch.manual_seed(0)
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = fit(multimodal_learner(dls, width=8), 2)
    together = predictions(learn, ds_idx=2)
    alone = predictions(learn, dl=dls.test_dl(data.subset(dls.split.test), bs=1))
    pairs = predictions(learn, dl=dls.test_dl(data.subset(dls.split.test), bs=2))
    assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert_close(together, pairs, rtol=1e-5, atol=1e-6)
    assert together.std(0).min() > 1e-3  # answers that could differ


def test_the_batch_that_a_row_is_in_moves_no_gradient():
    dls = multimodal_dls(ragged(), bs=16, device="cpu")
    torch.manual_seed(0)
    model = multimodal_learner(dls, width=8).model.double()

    def gradient(*batches):
        model.zero_grad()
        for rows in batches:
            walk, words, plain, y = dls.train_ds.batch(torch.tensor(rows))
            walk = dict(walk, values=walk["values"].double())
            nn.functional.cross_entropy(model(walk, words, plain.double()), y, reduction="sum").backward()
        return [p.grad.clone() for p in model.parameters()]

    rows = dls.split.train[:6].tolist()
    for together, apart in zip(gradient(rows), gradient(*[[r] for r in rows])):
        assert_close(together, apart, rtol=1e-9, atol=1e-11)


def test_statistics_are_those_of_the_steps_of_the_training_rows():
    data = ragged()
    dls = multimodal_dls(data, device="cpu")
    steps = np.concatenate([data.xs["walk"][i] for i in dls.split.train], axis=1)
    scale = dls.train_ds.encoders["walk"].scale
    assert_close(scale.mean[:, 0], torch.tensor(steps.mean(1)))
    assert_close(scale.std[:, 0], torch.tensor(steps.std(1)))


def test_noise_falls_on_steps_that_are_there_by_their_deviation():
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(500) < torch.randint(1, 50, (400, 1), generator=g)  # padding is nine tenths
    values = 3 * torch.randn(400, 2, 500, generator=g) * mask[:, None]
    noisy = _shake(dict(values=values, mask=mask), 0.5, g)
    noise = (noisy["values"] - values).transpose(1, 2)
    assert torch.equal(noisy["mask"], mask) and not noise[~mask].any()
    assert noise[mask].std() == pytest.approx(1.5, rel=0.05)


def test_rows_of_different_batches_are_joined_and_compared_without_padding():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    steps, words = walks(rng, y), [list(rng.integers(1, 9, t)) for t in rng.integers(1, 9, 60)]
    split = np.arange(20), np.arange(20, 30), np.arange(30, 60)
    for i, j in ((31, 0), (32, 1), (40, 33)):  # two test rows are training rows, one is another test row
        steps[i], words[i] = steps[j], words[j]
    dls = quiet(multimodal_dls, dict(walk=steps, words=words), y, split, bs=3, device="cpu")
    assert repeated_rows(dls) == (2, 2)

    held = hold(multimodal_learner(dls, width=4).model, dls[2])
    longest = max(len(steps[i]) for i in split[2])
    assert held.xs[0]["values"].shape == (30, 2, longest) and held.xs[0]["mask"].sum() == sum(
        len(steps[i]) for i in split[2]
    )
    assert (held.xs[1] > 0).sum(1).tolist() == [len(words[i]) for i in split[2]]


def test_an_encoder_that_takes_the_mask_gets_it():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 8)

        def forward(self, values, mask):
            assert values.ndim == 3 and mask.dtype == torch.bool
            return self.layer(masked_mean(values, mask))

    dls = multimodal_dls(ragged(), bs=16, device="cpu")
    learn = multimodal_learner(dls, [Own(), TokenEncoder(9, 8), VectorEncoder(3, 8)])
    assert isinstance(learn.model.encoders[0], WithMask)
    fit(learn)
    assert_close(predictions(learn, ds_idx=2), predictions(learn, dl=dls[2].new(bs=1)), rtol=1e-5, atol=1e-6)
    alone = unimodal_learner(dls, "walk", Own())
    assert predictions(fit(alone), ds_idx=2).isfinite().all()


class Careless(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.read, self.layer = read, nn.Linear(2, 8)

    def forward(self, x):
        return self.layer(self.read(x))


class CarelessTokens(TokenEncoder):
    def forward(self, x):
        return self.embedding(x + 0).mean(1)


@pytest.mark.parametrize(
    "encoder, message",
    [
        (lambda: nn.Conv1d(2, 8, 3), r"modality 'walk' \(Conv1d\) does not take .*def forward\(self, values, mask\)"),
        (lambda: Careless(lambda x: x["values"].mean(-1)), r"padding changes what the encoder of modality 'walk'"),
        (lambda: Careless(lambda x: x["values"].amax(-1)), r"padding changes what the encoder of modality 'walk'"),
        (lambda: Careless(lambda x: x["values"].transpose(1, 2)), r"padding changes what the encoder"),
    ],
    ids=["takes tensors", "counts zeros", "maximum with zeros", "a feature per step"],
)
def test_an_encoder_that_padding_would_change_is_refused(encoder, message):
    dls = multimodal_dls(ragged(), bs=16, device="cpu")
    with pytest.raises(ValueError, match=message):
        multimodal_learner(dls, [encoder(), TokenEncoder(9, 8), VectorEncoder(3, 8)])
    with pytest.raises(ValueError, match="padding changes|does not take"):
        unimodal_learner(dls, "walk", encoder())


def test_ids_whose_padding_counts_are_refused_too():
    dls = multimodal_dls(ragged(), bs=16, device="cpu")
    walk = multimodal_learner(dls, width=8).model.encoders[0]
    with pytest.raises(ValueError, match="padding changes what the encoder of modality 'words'"):
        multimodal_learner(dls, [walk, CarelessTokens(9, 8), VectorEncoder(3, 8)])
    with pytest.raises(ValueError, match="padding changes what the encoder of modality 'words'"):
        multimodal_learner(dls, [walk, TokenEncoder(9, 8, pool=False), VectorEncoder(3, 8)], head="attention")


def test_a_whole_model_that_counts_padding_is_refused():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, walk, words, plain):
            return self.layer(walk["values"].mean(-1)) + plain

    with pytest.raises(ValueError, match="padding changes what the model, of modality 'walk', answers"):
        multimodal_learner(multimodal_dls(ragged(), bs=16, device="cpu"), Whole())


# ---- the column


def test_both_layouts_are_read_alike_and_new_rows_as_the_old_ones():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    steps = walks(rng, y)
    square = rng.normal(size=(2, 2))  # a new row whose shape does not tell
    first, second = (
        multimodal_dls(dict(walk=[turn(s) for s in steps], a=np.ones(60)), y, device="cpu")
        for turn in (np.asarray, np.transpose)
    )
    assert (first.data.layout, second.data.layout) == (dict(walk="time_first"), dict(walk="channels_first"))
    assert all(map(np.array_equal, first.data.xs["walk"].rows, second.data.xs["walk"].rows))
    new = [dls.test_dl(([row], [1.0])).one_batch()[0] for dls, row in ((first, square), (second, square.T))]
    assert torch.equal(new[0]["values"], new[1]["values"])
    # (N, T, C) of one length after rows of different length
    assert first.test_dl((np.ones((4, 7, 2)), np.ones(4))).one_batch()[0]["values"].shape == (4, 2, 7)
    with pytest.raises(ValueError, match=r"rows of shape \(7, None\), expected \(2, None\)"):
        first.test_dl((np.ones((4, 2, 7)), np.ones(4)))


@pytest.mark.parametrize(
    "values",
    [
        lambda rows: rows,
        lambda rows: tuple(rows),
        lambda rows: [r.tolist() for r in rows],
        lambda rows: [torch.tensor(r) for r in rows],
        lambda rows: pd.Series(rows),
        lambda rows: [pd.DataFrame(r) for r in rows],
        lambda rows: np.array([*rows, None], dtype=object)[:-1],
    ],
    ids=["list", "tuple", "lists", "tensors", "Series", "DataFrames", "object array"],
)
def test_rows_come_in_every_form(values):
    rows = walks(np.random.default_rng(0), np.arange(9) % 3)
    column = as_column(values(rows), "walk")
    assert isinstance(column, RaggedArrays) and column.row_shape == (2, None) and len(column) == 9
    for a, b in zip(column, rows):
        assert np.array_equal(a, b.T)


def test_rows_with_one_axis_are_a_guess_that_is_said():
    with pytest.warns(UserWarning, match="'x' has rows of 1 to 2 numbers, which are taken for word ids: say kinds"):
        assert as_column([[1], [2, 3]], "x").kind == "tokens"
    with pytest.warns(UserWarning, match="taken for sequences of one channel"):
        assert as_column([[0.5], [2, 3]], "x").row_shape == (1, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_column([[1], [2, 3]], "x", "sequence").row_shape == (1, None)
        assert as_column([[1], [2, 3]], "x", "tokens").row_shape == (None,)


def test_bytes_and_half_precision_are_read():
    assert as_column([np.ones((3, 2), np.uint8), np.ones((4, 2), np.uint8)])[0].dtype == np.float64
    assert as_column([np.ones((3, 2), np.float16), np.ones((4, 2), np.float16)])[0].dtype == np.float32
    halves = [torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(4, 2, dtype=torch.bfloat16)]
    assert as_column(halves)[0].dtype == np.float32


def test_a_data_set_of_such_rows_is_cut_joined_digested_and_drawn(tmp_path):
    data = ragged()
    assert "walk (sequence 2x1-29)" in repr(data) and "words (tokens 1-7)" in repr(data)
    assert data_digest(data) == data_digest(ragged()) != data_digest(ragged(seed=1))
    part = data.subset([3, 3, 5])
    assert duplicate_groups(part.xs).tolist() == [0, 0, 1]
    assert data.select(["words", "walk"]).layout == dict(walk="time_first", words=None)
    moved = dict(data.xs, walk=data.xs["walk"].take([1, 0, *range(2, N)]))
    assert data_digest(data) != data_digest(data._with(xs=moved))

    whole = joined_parts(data.subset(np.arange(80)), data.subset(np.arange(80, N)))
    assert data_digest(whole) == data_digest(data.with_split(["train"] * 80 + ["test"] * (N - 80)))
    assert whole.layout == data.layout
    other = dict(data.xs, walk=[np.ones((t, 3)) for t in range(1, N + 1)])
    with pytest.raises(ValueError, match="walk.*sequence .3, None.*the training file"):
        joined_parts(data, MultimodalData("test", other, data.y, data.classes, kinds=data.kinds))
    with pytest.raises(ValueError, match="'walk' is a sequence of different length: an npz file does not keep it"):
        data.save(tmp_path / "data.npz")
    show_samples(data, [0, 1])
    multimodal_dls(data, device="cpu").show_batch(max_n=2)
    plt.close("all")


def test_new_ids_and_broken_rows_are_refused():
    dls = multimodal_dls(ragged(), device="cpu")
    good = dict(walk=[np.ones((4, 2))], words=[[3]], plain=[[1.0, 2, 3]])
    assert predictions(multimodal_learner(dls), dl=dls.test_dl(good)).shape == (1, 3)
    for wrong, message in (
        (dict(words=[[99]]), "'words': word ids run from 99 to 99"),
        (dict(words=[[0]]), "ids start at 1, because 0 pads"),
        (dict(words=[[0.5]]), "cannot be of kind 'tokens'"),
        (dict(walk=[np.ones((4, 3))]), r"expected \(2, None\)"),
        (dict(walk=[np.ones((0, 2))]), "row 0 of modality 'walk' has no steps"),
        (
            dict(walk=[np.array([[np.nan, 1.0]] * 4)]),
            "row 0 of modality 'walk' has NaN or infinity in channel 0, step 0",
        ),
        (dict(walk=[np.full((4, 2), 1e200)]), "beyond float32"),
        (dict(walk=[np.ones((4, 2))] * 2), "modalities of different length"),
    ):
        with pytest.raises(ValueError, match=message):
            dls.test_dl(good | wrong)


def test_a_transformer_of_whole_rows_makes_vectors_of_them():
    from sklearn.preprocessing import FunctionTransformer

    def levels(rows):
        return np.array([r.mean(1) for r in rows])

    dls = multimodal_dls(ragged(), device="cpu", transform=dict(walk=FunctionTransformer(levels)))
    assert dls.padded == ["words"] and dls.input_kinds["walk"] == "vector" and dls.shapes["walk"] == (2,)
    assert predictions(fit(multimodal_learner(dls)), ds_idx=2).isfinite().all()


@pytest.mark.filterwarnings("ignore:load_learner")
def test_a_learner_is_exported_and_asked_about_one_row(tmp_path):
    data = ragged()
    dls = multimodal_dls(data, bs=16, device="cpu", path=tmp_path)
    learn = fit(multimodal_learner(dls, width=8))
    expected = predictions(learn, ds_idx=2)
    one = tuple(x[int(dls.split.test[5])] for x in data.xs.values())
    one = one[0].T, *one[1:]  # as it came: time first
    with learn.no_bar():
        assert_close(learn.predict(one)[2], expected[5], rtol=1e-5, atol=1e-6)
        learn.show_results(max_n=2)
    learn.export("export.pkl")
    loaded = load_learner(tmp_path / "export.pkl")
    with loaded.no_bar():
        assert_close(loaded.predict(one)[2], expected[5], rtol=1e-5, atol=1e-6)
    plt.close("all")


# ---- a modality of several tensors


class Mean(nn.Module):
    "Of a tokenizer's output."

    def __init__(self, width=8):
        super().__init__()
        self.embedding = nn.Embedding(9, width)

    def forward(self, x):
        mask = x["attention_mask"][..., None]
        return (self.embedding(x["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)


class Pair(nn.Module):
    "Of a tuple of numbers and of a picture."

    def __init__(self, width=8):
        super().__init__()
        self.left, self.right = nn.Linear(3, width), nn.Linear(16, width)

    def forward(self, x):
        assert isinstance(x, tuple)
        return (self.left(x[0]) + self.right(x[1].flatten(1))).relu()


def several(kind, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 3
    plain = rng.normal(size=(N, 3)) + y[:, None]
    if kind == "dict":
        ids = rng.integers(3, 9, (N, 5))
        ids[:, 0] = y
        text = dict(input_ids=ids, attention_mask=(rng.random((N, 5)) < 0.8).astype(int))
        return multimodal_data(dict(text=text, plain=plain), y), Mean
    pair = (rng.normal(size=(N, 3)), rng.normal(size=(N, 1, 4, 4)) + y[:, None, None, None])
    return multimodal_data(dict(pair=pair, plain=plain), y, kinds=dict(pair="tuple")), Pair


def encoders_of(make):
    return [make(), VectorEncoder(3, 8, (8,))]


CALLBACKS = dict(
    joint=lambda: None,
    multi_loss=MultiLoss,
    modality_dropout=lambda: ModalityDropout(0.3),
    mcr=MCR,
    mcr_zero_input=lambda: MCR(substitute="zero_input"),
    resampling=lambda: ModalityResampling(warmup=0),
    resampling_modality=lambda: ModalityResampling("modality", warmup=0),
    agm=GradientModulation,
    agm_lr=lambda: GradientModulation(mode="lr"),
    agm_zero_input=lambda: GradientModulation(absent="zero_input"),
    multimodal=MultiModal,
    tcmax=TCMax,
)
KINDS = pytest.mark.parametrize("kind", ["dict", "tuple"])


@KINDS
@pytest.mark.parametrize("name", CALLBACKS)
def test_every_method_trains_on_inputs_of_several_tensors(kind, name):
    data, make = several(kind)
    torch.manual_seed(0)
    dls = multimodal_dls(data, bs=16, device="cpu")
    method = CALLBACKS[name]()
    learn = multimodal_learner(dls, encoders_of(make), method=method, cbs=ModalityMonitor())
    before = [p.clone() for p in learn.model.encoders[0].parameters()]
    fit(learn, 2)
    assert any((a != b).any() for a, b in zip(before, learn.model.encoders[0].parameters()))
    assert predictions(learn, ds_idx=2).isfinite().all()


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_method_trains_on_sequences_of_different_length(name):
    torch.manual_seed(0)
    dls = multimodal_dls(ragged(), bs=16, device="cpu")
    learn = fit(multimodal_learner(dls, width=8, method=CALLBACKS[name](), cbs=ModalityMonitor()), 2)
    assert predictions(learn, ds_idx=2).isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_of_the_comparison_runs_on_sequences_of_different_length(name, folder):
    result = quiet(compare, ragged(), [name], 1, BUDGET, folder, workers=1, progress=False)
    assert not len(result.failed), result.failed
    assert np.isfinite(result.runs.accuracy).all() and len(result.runs)


@KINDS
@pytest.mark.parametrize("absent", ABSENT)
def test_stand_ins_for_an_input_of_several_tensors(kind, absent):
    data, make = several(kind)
    dls = multimodal_dls(data, bs=16, device="cpu")
    model = FusionModel(encoders_of(make), ConcatHead((8, 8), 3), learn_absent=True)
    *xs, _ = dls.valid.one_batch()
    stand_in = absent_features(model, xs, absent)
    assert [a.shape for a in stand_in] == [(1, 8), (1, 8)]
    if absent == "mean_feature":
        with pytest.raises(ValueError, match="would make a sample's value depend on the batch"):
            valuate(model, dls.valid, absent=absent)
    else:
        assert valuate(model, dls.valid, absent=absent).log_likelihood.isfinite().all()
    zs = model.encode(*xs)
    alone = coalition_logits(model, zs, absent=stand_in)[0]
    assert_close(alone, model.fuse([a.expand(len(zs[0]), -1) for a in stand_in]))


def test_a_zero_that_is_a_code_stands_for_nothing():
    ids = torch.randint(1, 9, (4, 5))
    model = FusionModel([Mean(), VectorEncoder(3, 8)], ConcatHead((8, 8), 3))
    for text in (dict(input_ids=ids), (ids, torch.rand(4, 2))):
        with pytest.raises(ValueError, match="a zero in .* is a code like others"):
            absent_features(model, (text, torch.rand(4, 3)), "zero_input")
    with pytest.raises(ValueError, match="noise takes one tensor per modality, got dict"):
        data, make = several("dict")
        multimodal_learner(multimodal_dls(data, device="cpu"), encoders_of(make), method=MCR(substitute="noise_input"))


@pytest.mark.parametrize("method", [None, MCR, TCMax, GradientModulation], ids=str)
@pytest.mark.parametrize("kind", ["dict", "tuple", "ragged"])
def test_half_precision(kind, method):
    data, make = (ragged(), None) if kind == "ragged" else several(kind)
    torch.manual_seed(0)
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = multimodal_learner(
        dls, make and encoders_of(make), width=8, method=method and method(), cbs=BFloat16(), metrics=[]
    )
    assert predictions(fit(learn, 2), ds_idx=2).isfinite().all()
    whole, half = predictions(multimodal_learner(dls, learn.model), ds_idx=2), predictions(learn, ds_idx=2)
    assert_close(whole, half, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["dict", "tuple", "ragged"])
def test_an_audit(kind, tmp_path):
    data, make = (ragged(), None) if kind == "ragged" else several(kind)
    torch.manual_seed(0)
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = fit(multimodal_learner(dls, make and encoders_of(make), width=8))
    made = None if make is None else lambda: encoders_of(make)
    found = quiet(audit, learn, encoders=made, seeds=1, budget=BUDGET, out=tmp_path, workers=1, progress=False)
    assert {"models", "robustness", "probes"} <= set(found.table.reset_index().section)
    assert np.isfinite(found.table.select_dtypes("number").to_numpy(float)[:, 0]).all()


@KINDS
def test_a_modality_of_several_arrays_is_cut_joined_digested_predicted_and_drawn(kind, tmp_path):
    data, make = several(kind)
    m = data.modalities[0]
    assert data.kinds[m] == kind and data_digest(data) == data_digest(several(kind)[0])
    whole = joined_parts(data.subset(np.arange(80)), data.subset(np.arange(80, N)))
    assert whole.kinds == data.kinds and isinstance(whole.xs[m], NamedArrays)
    dls = multimodal_dls(data, bs=16, device="cpu", path=tmp_path)
    learn = fit(multimodal_learner(dls, encoders_of(make)))
    expected, row = predictions(learn, ds_idx=2), int(dls.split.test[5])
    parts = {k: v[row] for k, v in data.xs[m].arrays.items()}
    one = parts if kind == "dict" else tuple(parts.values())
    with learn.no_bar():
        assert_close(learn.predict((one, data.xs["plain"][row]))[2], expected[5])
    several_rows = {k: v[dls.split.test] for k, v in data.xs[m].arrays.items()}
    new = several_rows if kind == "dict" else tuple(several_rows.values())
    assert_close(predictions(learn, dl=dls.test_dl((new, data.xs["plain"][dls.split.test]))), expected)
    dls.show_batch(max_n=2)
    dls.show_batch(dls.one_batch(), max_n=2)
    plt.close("all")


@pytest.mark.parametrize("presence", [None, np.ones((6, 2), dtype=bool)])
@pytest.mark.parametrize("form", ["tuple", "list", "tensors", "Series", "text", "rows", "alike"])
def test_several_arrays_whose_kind_nobody_said_are_refused_with_the_remedy(form, presence):
    rng, plain, y = np.random.default_rng(0), np.zeros((6, 1)), [0, 1] * 3
    one, other = rng.normal(size=(6, 2)), rng.normal(size=(6, 2 if form == "alike" else 3))
    pair = dict(
        tuple=(one, other),
        list=[one, other],
        tensors=(torch.tensor(one), torch.tensor(other)),
        Series=(pd.Series(one[:, 0]), pd.DataFrame(other)),
        text=(["a"] * 6, ["b"] * 6),
        rows=list(zip(one, other)),
        alike=list(zip(one, other)),
    )[form]
    with pytest.raises(ValueError, match=r"modality 'pair' is a .* say kinds=.'pair': 'tuple'.") as said:
        multimodal_data(dict(pair=pair, plain=plain), y, presence=presence)
    assert ("give a tuple of them" in str(said.value)) == (form == "list")
    if form == "text":
        return  # which no kind allows
    pair = tuple(pair) if form == "list" else pair
    data = multimodal_data(dict(pair=pair, plain=plain), y, kinds=dict(pair="tuple"), groups=range(6))
    assert list(data.xs["pair"].arrays) == ["0", "1"] and len(data) == 6


def test_the_axis_that_is_taken_for_time_is_said_once_until_the_layout_decides(tmp_path):
    rng, y = np.random.default_rng(0), [0, 1] * 10
    xs = dict(s=rng.normal(size=(20, 30, 4)), t=rng.normal(size=(20, 2, 8)), one=rng.normal(size=(20, 1, 8)))
    xs |= dict(plain=rng.normal(size=(20, 3)), word=rng.integers(1, 5, (20, 6)))
    kinds = dict(word="tokens")
    with pytest.warns(UserWarning, match="'s' of 30 channels and 4 steps, 't' of 2 channels and 8 steps. lay") as said:
        guessed = multimodal_data(xs, y, kinds=kinds)
    assert len(said) == 1
    guessed.save(tmp_path / "mine.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decided = multimodal_data(xs, y, kinds=kinds, layout=dict(s="time_first", t="channels_first"))
        back = load_npz(tmp_path / "mine.npz")  # which was saved with channels first
        ragged = [rng.normal(size=(2 + i % 3, 4)) for i in range(20)]
        multimodal_data(dict(s=ragged, plain=xs["plain"]), y)  # whose lengths tell
    assert np.array_equal(guessed.xs["s"], xs["s"]) and np.array_equal(back.xs["s"], xs["s"])
    assert np.array_equal(decided.xs["s"], xs["s"].transpose(0, 2, 1)) and np.array_equal(decided.xs["t"], xs["t"])
    assert load_npz(tmp_path / "mine.npz", layout=dict(s="time_first")).xs["s"].shape == (20, 4, 30)


def test_rows_that_are_tuples_of_numbers_or_lists_are_rows():
    made = lambda rows: multimodal_data(dict(x=rows, plain=np.zeros((4, 1))), [0, 1] * 2, groups=range(4)).xs["x"]
    assert made(((1, 2), (3, 4), (5, 6), (7, 8))).shape == (4, 2)
    assert made([(1.0, 2.0)] * 4).shape == (4, 2) and made([([1, 2, 3], [3, 4, 5])] * 4).shape == (4, 2, 3)
    assert made([(np.float64(1), torch.tensor(2.0))] * 4).shape == (4, 2)


def test_a_tuple_is_rows_unless_its_kind_says_otherwise():
    rows = (np.ones(3), np.zeros(3))
    assert as_column(rows, "x").shape == (2, 3)
    assert as_column(rows, "x", "tuple").arrays["1"].shape == (3,)
    data = multimodal_data((np.ones((4, 2)), np.zeros((4, 1))), [0, 1, 0, 1], groups=range(4))  # two modalities
    assert data.modalities == ["x1", "x2"]
    with pytest.raises(ValueError, match="'pair' is of kind 'tuple', which is a tuple of arrays"):
        multimodal_data(dict(pair=np.ones((4, 2))), [0, 1, 0, 1], kinds=dict(pair="tuple"))
    with pytest.raises(ValueError, match="different numbers of rows"):
        multimodal_data(dict(pair=([1, 2], [1, 2, 3])), [0, 1], kinds=dict(pair="tuple"))
    data, _ = several("tuple")
    with pytest.raises(ValueError, match="hold several arrays each.*pass model="):
        multimodal_learner(multimodal_dls(data, device="cpu"))


def test_named_encoders_of_a_foreign_model_take_padded_rows():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.walk, self.words, self.top = Careless(lambda x: masked_mean(**x)), TokenEncoder(9, 8), nn.Linear(16, 3)

        def forward(self, walk, words, plain):
            return self.top(torch.cat([self.walk(walk), self.words(words)], 1)) + 0 * plain

    dls = multimodal_dls(ragged().select(["walk", "words"]), bs=16, device="cpu")

    class Two(Foreign):
        def forward(self, walk, words):
            return super().forward(walk, words, torch.zeros(1, 3))

    model = as_fusion(Two(), 2, encoders=["walk", "words"])
    assert isinstance(model, NamedEncoders)
    learn = fit(multimodal_learner(dls, model))
    assert_close(predictions(learn, ds_idx=2), predictions(learn, dl=dls[2].new(bs=1)), rtol=1e-5, atol=1e-6)


# ---- a dict whose names say what it is


def test_values_with_a_mask_of_which_either_axis_may_be_time_are_refused():
    values, mask = np.ones((6, 4, 4), np.float32), np.ones((6, 4), bool)
    with pytest.raises(ValueError, match="either axis of values may be time"):
        as_column(dict(values=values, mask=mask), "walk")
    assert as_column(dict(values=values[:, :3], mask=mask), "walk").arrays["mask"].shape == (6, 4)
    assert as_column(dict(steps=values, mask=mask), "walk").kind == "dict"  # under another name it is your own


def tokenized(n=60, seed=0, longest=5):
    "What a tokenizer returns: the first word tells the class; ids behind the mask are no zeros."
    rng, y = np.random.default_rng(seed), np.arange(n) % 3
    ids = rng.integers(4, 9, (n, longest))
    ids[:, 0] = y + 1
    mask = np.arange(longest) < rng.integers(1, longest + 1, n)[:, None]
    return dict(input_ids=np.where(mask, ids, 7), attention_mask=mask.astype(int)), y


def test_the_default_encoder_of_tokens_is_the_mean_of_those_that_are_there():
    words, y = tokenized()
    dls = multimodal_dls(dict(text=words, plain=np.random.default_rng(1).normal(size=(60, 2))), y, device="cpu")
    assert dls.kinds["text"] == "dict" and dls.input_kinds["text"] == "tokenized" and len(dls.vocab["text"]) == 9
    learn = fit(multimodal_learner(dls, width=8), 2)
    encoder, row = learn.model.encoders[0], dls.split.test[0]
    x, *_ = dls[2].dataset.batch(torch.tensor([row]))
    there = words["input_ids"][row][words["attention_mask"][row] == 1]
    assert_close(encoder(x)[0], encoder.embedding.weight[torch.as_tensor(there)].mean(0))


def test_longer_padding_changes_no_answer_and_moves_no_gradient():
    words, y = tokenized()
    more = {name: np.pad(part, ((0, 0), (0, 3)), constant_values=(name == "input_ids")) for name, part in words.items()}
    said, grads = [], []
    for given in (words, more):
        torch.manual_seed(0)
        dls = multimodal_dls(dict(text=given, plain=np.ones((60, 2))), y, device="cpu", seed=0, groups=range(60))
        learn = multimodal_learner(dls, width=8)
        batch = dls[2].dataset.batch(torch.as_tensor(dls.split.test))
        said.append(learn.model(*batch[:2]))
        said[-1].square().sum().backward()
        grads.append(learn.model.encoders[0].embedding.weight.grad)
    assert_close(*said)
    assert_close(*grads)


def test_an_id_that_no_row_had_is_refused_by_name_and_others_keep_their_refusal():
    words, y = tokenized()
    dls = multimodal_dls(dict(text=words, plain=np.ones((60, 2))), y, device="cpu", groups=range(60))
    learn = multimodal_learner(dls, width=8)
    ids = dict(input_ids=np.array([[1, 30, 1, 1, 1]]), attention_mask=np.ones((1, 5), int))
    with pytest.raises(ValueError, match="token id 30 is beyond the 9 ids"):
        learn.model(*dls.test_dl(dict(text=ids, plain=np.ones((1, 2)))).one_batch())
    sorts = words["attention_mask"] * np.arange(5)
    nameless = dict(ids=words["input_ids"], mask=words["attention_mask"])
    for odd in (dict(words, pixel_values=np.ones((60, 2))), dict(words, token_type_ids=sorts), nameless):
        dls = multimodal_dls(dict(text=odd, plain=np.ones((60, 2))), y, device="cpu", groups=range(60))
        with pytest.raises(ValueError, match="hold several arrays each.*pass model="):
            multimodal_learner(dls)


@pytest.mark.parametrize(
    "changed, fault",
    [
        (dict(input_ids=np.full((60, 5), -3)), "input_ids hold -3, and ids start at 0"),
        (dict(input_ids=np.ones((60, 5))), "input_ids are float"),
        (dict(attention_mask=np.full((60, 5), 5)), "attention_mask holds 5, expected 1 where a token is there"),
        (dict(attention_mask=np.ones((60, 4), int)), r"shape \(60, 5\) and attention_mask \(60, 4\)"),
        (
            dict(token_type_ids=np.arange(300).reshape(60, 5) % 2),
            "token_type_ids tell sorts of tokens.*leave them",
        ),
        (
            dict(pixel_values=np.ones((60, 2))),
            r"holds \['input_ids', 'attention_mask', 'pixel_values'\]",
        ),
    ],
)
def test_what_keeps_a_dict_from_being_a_tokenizers_output_is_said(changed, fault):
    words, y = tokenized()
    dls = multimodal_dls(dict(text=words | changed, plain=np.ones((60, 2))), y, device="cpu", groups=range(60))
    with pytest.raises(ValueError, match=f"'text'.*{fault}"):
        multimodal_learner(dls)


def test_a_tokenizer_that_did_not_pad_is_told_how():
    words, y = tokenized()
    dls = multimodal_dls(dict(text=words, plain=np.ones((60, 2))), y, device="cpu", groups=range(60))
    ragged = dict(input_ids=[[1, 2], [3]], attention_mask=[[1, 1], [1]])
    each = [dict(input_ids=[1, 2], attention_mask=[1, 1]), dict(input_ids=[3], attention_mask=[1])]
    for given in (ragged, each):
        with pytest.raises(ValueError, match="pad or cut them to one, a tokenizer by padding='max_length'"):
            dls.test_dl(dict(text=given, plain=np.ones((2, 2))))
    short = dict(input_ids=[[1, 2], [3, 4]], attention_mask=[[1, 1], [1, 1]])
    with pytest.raises(ValueError, match="give the tokenizer padding='max_length', truncation=True, max_length=5"):
        dls.test_dl(dict(text=short, plain=np.ones((2, 2))))


def test_a_tokenizers_output_is_compared_and_audited_without_encoders(tmp_path):
    words, y = tokenized(150)
    data = multimodal_data(dict(text=words, plain=np.random.default_rng(1).normal(size=(150, 2))), y)
    budget = Budget(epochs=8, bs=16, width=8, lr=0.03)
    found = compare(data, seeds=1, budget=budget, out=tmp_path, workers=1, progress=False)
    assert found.failed.empty and found.table["mean"].max() > 0.8  # the first word tells the class
    told = audit(data=data, budget=budget, out=tmp_path, workers=1, progress=False)
    assert told.get("models", "accuracy", "unimodal text").mean > 0.8
