"Tables of numbers, categories and text as a modality, and transformers of scikit-learn: from training to export."

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer

from mmlit.benchmark.comparison import compare
from mmlit.data.columns import MultimodalData
from mmlit.data.encoders import FittedTransform
from mmlit.data.files import data_digest, load_npz
from mmlit.data.loaders import multimodal_dls
from mmlit.data.mixed import MixedTable, TableEncoder
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.fingerprint import fingerprint
from mmlit.learner import multimodal_learner
from mmlit.methods.tcmax import TCMax
from mmlit.training import Budget

N = 240


def clinic(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 2
    table = pd.DataFrame(
        dict(
            age=rng.normal(60, 9, N) + 9 * y,
            smoker=rng.random(N) < 0.3,
            stage=pd.Categorical(rng.choice(["I", "II", "III"], N)),
            remark=[f"no. {i} has {w}" for i, w in enumerate(rng.choice(["pain", "ache"], N))],
        )
    )
    table.loc[3:7, "age"] = np.nan
    table.loc[9, "stage"] = np.nan
    rna = rng.normal(size=(N, 300))
    rna[:, 7] += 2 * y
    return table, rna, y


@pytest.fixture
def data():
    table, rna, y = clinic()
    with pytest.warns(UserWarning, match="modality 'clinic' has 6 empty cells in 240 rows .'age' 5, 'stage' 1."):
        made = multimodal_data(dict(clinic=table, rna=rna, note=table.remark.to_numpy()), y)
    return made.with_transform(dict(rna=SelectKBest(k=20), note=TfidfVectorizer(min_df=2)))


NEW = [dict(age=None, smoker=True, stage="IV", remark="never seen")]


def test_tables_and_transforms_are_vectors_for_the_model(data):
    dls = multimodal_dls(data, device="cpu")
    assert "table of 2 numbers, 1 category, 1 text" in repr(data)
    assert dls.kinds == dict(clinic="table", rna="vector", note="tokens")
    assert set(dls.input_kinds.values()) == {"vector"} and dls.shapes["rna"] == (20,)
    chosen = dls.encoders["rna"].transform.get_support()
    assert chosen[7] and chosen.sum() == 20
    clinic, rna, note, y = dls.train.one_batch()
    assert clinic.dtype == rna.dtype == note.dtype == torch.float32 and clinic.isfinite().all()


def test_what_is_outside_of_training_has_no_say(data):
    split = multimodal_dls(data, device="cpu").split
    table, rna, y = clinic()
    outside = np.setdiff1d(np.arange(N), split.train)
    table.loc[outside, "age"] *= 1000
    table.loc[outside, "stage"] = "I"
    rna[outside] = 1e6
    moved = MultimodalData("moved", dict(clinic=table, rna=rna, note=data.xs["note"]), y).with_transform(data.transform)
    rows = [
        multimodal_dls(d, split=split, device="cpu").train_ds.batch(torch.as_tensor(split.train)) for d in (data, moved)
    ]
    assert all(map(torch.equal, *rows))


def test_a_learner_of_tables_trains_predicts_and_is_exported(data, tmp_path):
    dls = multimodal_dls(data, device="cpu", path=tmp_path)
    torch.manual_seed(0)
    learn = multimodal_learner(dls, width=8, method=TCMax(), head="sum")
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(6, 1e-2)
        assert learn.validate()[1] > 0.7
        new = dict(clinic=NEW, rna=data.xs["rna"][:1], note=["no. 3 has pain"])
        said = learn.get_preds(dl=dls.test_dl(new))[0]
        assert said.isfinite().all()
        learn.show_results()
    dls.show_batch(max_n=2)
    learn.export("all.pkl")
    code = """
import sys, torch
from fastai.learner import load_learner
learn = load_learner("all.pkl")
with learn.no_bar():
    said = learn.get_preds(dl=learn.dls.test_dl(torch.load("new.pt", weights_only=False)))[0]
torch.save(said, "said.pt")
"""
    torch.save(new, tmp_path / "new.pt")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "said.pt"), said)  # bit for bit, in a process of its own


def test_new_rows_of_a_table_are_read_as_those_that_were_fitted(data):
    dls = multimodal_dls(data, device="cpu")
    table, rna, _ = clinic()
    note, rows = table.remark.to_numpy(), [0, 5, 9]
    parts = lambda t: dls.valid_ds.of(dict(clinic=t, rna=rna[rows], note=note[rows])).batch(torch.arange(3))[0]
    frame = table.iloc[rows].reset_index(drop=True)
    want = dls.valid_ds.batch(torch.tensor(rows))[0]
    assert torch.equal(parts(frame), want)
    assert torch.equal(
        parts(frame[["remark", "stage", "smoker", "age"]].assign(more=1)), want
    )  # order and more columns
    assert torch.equal(parts(frame.to_dict("records")), want)
    for wrong, message in (
        (frame.drop(columns="age"), r"no column 'age'; got \['smoker', 'stage', 'remark'\]"),
        (
            frame.assign(age="old"),
            "column 'age' of modality 'clinic' holds text .'old' in row 0., and was fitted on num",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            parts(wrong)


@pytest.mark.parametrize("names", [["p", "q"], [0, 1], [("a", 1), ("a", 2)]])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_new_rows_with_and_without_gaps_meet_what_was_fitted_with_and_without_gaps(names):
    full = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=range(2)).set_axis(names, axis=1)
    gaps, other, y = full.copy(), np.random.default_rng(1).normal(size=(60, 2)), [0, 1] * 30
    gaps.iloc[1, 1] = np.nan
    gaps.iloc[2] = np.nan
    made = lambda x, **more: multimodal_data(dict(m=x, other=other), y, **more)
    split = [np.arange(40), np.arange(40, 50), np.arange(50, 60)]
    table = dict(kinds=dict(m="table", other="vector"))
    for data in (made(gaps), made(full, **table)):
        dls = multimodal_dls(data, split=split, standardize=False, device="cpu")
        median = data.xs["m"].values.frame if data.missing else data.xs["m"].frame
        median = median.iloc[: 39 if data.missing else 40, 1].median()
        for new in (made(gaps), dict(m=gaps, other=other)):
            x = dls.test_dl(new).dataset.batch(torch.arange(4))[0]
            assert x["present"].tolist() == [True, True, False, True]
            assert np.allclose(x["values"][[0, 1, 3]], [full.iloc[0], [full.iloc[1, 0], median], full.iloc[3]])
        for new in (made(full), dict(m=full, other=other)):
            assert np.allclose(dls.test_dl(new).dataset.batch(torch.arange(60))[0], full)
    dls = multimodal_dls(made(full), split=split, standardize=False, device="cpu")
    for new in (made(full), made(full, **table), dict(m=full, other=other)):
        assert np.allclose(dls.test_dl(new).dataset.batch(torch.arange(60))[0], full)
    for new in (made(gaps), dict(m=gaps, other=other)):
        with pytest.raises(ValueError, match=r"is empty in 1 of 60 rows, the first is row 1, .*kinds=.'m': 'table'."):
            dls.test_dl(new)


def test_transforms_decide_what_a_stored_run_is(data):
    other = data.with_transform(dict(rna=SelectKBest(k=10)))
    prints = {fingerprint(d) for d in (data, data.with_transform(data.transform), other, data.with_transform({}))}
    assert len(prints) == 3 and data_digest(data) == data_digest(other)
    table, rna, y = clinic()
    table.loc[3, "age"] = 50.0
    assert data_digest(MultimodalData("data", dict(data.xs, clinic=table), y)) != data_digest(data)


def test_tables_go_through_a_comparison_and_official_files(data, tmp_path):
    small = Budget(epochs=2, bs=32, width=4)
    found = compare(
        data.select(["clinic", "rna"]), ["ensemble", "joint"], 1, small, tmp_path, workers=1, progress=False
    )
    assert found.table["mean"].between(0.3, 1).all()
    rows = np.arange(N)
    joined = joined_parts(data.subset(rows[:180]), data.subset(rows[180:]))
    assert joined.transform == data.transform
    assert (
        joined.xs["clinic"].frame.equals(data.xs["clinic"].frame)
        and joined.xs["clinic"].sorts == data.xs["clinic"].sorts
    )


def test_encoders_of_tables_are_scikit_learns():
    table, rna, y = clinic()
    column = MixedTable(table, "clinic")
    encoder = TableEncoder(column, np.arange(200))
    x = encoder.encode(column[np.arange(N)])
    stage = np.array([n.split("__")[-1] for n in encoder.names])
    shown = {name: x[:, i] for i, name in enumerate(stage)}
    assert torch.equal(shown["stage_II"].bool(), torch.tensor((table.stage == "II").to_numpy()))
    assert torch.equal(shown["stage_<empty>"].bool(), torch.tensor(table.stage.isna().to_numpy()))
    own = FittedTransform(QuantileTransformer(n_quantiles=20), rna, np.arange(200), y[:200])
    raw = QuantileTransformer(n_quantiles=20).fit(rna[:200]).transform(rna)
    want = (raw - raw[:200].mean(0)) / raw[:200].std(0)
    torch.testing.assert_close(own.encode(rna).double(), torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_transforms_that_do_not_fit_are_refused_before_training(data, tmp_path):
    with pytest.raises(ValueError, match="unknown modality of data: 'dna'"):
        data.with_transform(dict(dna=SelectKBest()))
    with pytest.raises(TypeError, match="is the class SelectKBest, expected an object of it"):
        multimodal_dls(data, transform=dict(rna=SelectKBest), device="cpu")
    with pytest.raises(ValueError, match="the transform of modality 'rna', .* cannot be fitted"):
        multimodal_dls(data, transform=dict(rna=TfidfVectorizer()), device="cpu")
    with pytest.raises(ValueError, match="modality 'clinic' is a table: an npz file does not keep it"):
        data.save("never.npz")
    numbers = data.select(["rna", "note"])
    with pytest.raises(ValueError, match="modality 'rna' has a transformer, which an npz file does not keep"):
        numbers.save("never.npz")
    numbers.with_transform({}).save(tmp_path / "plain.npz")
    assert load_npz(tmp_path / "plain.npz").modalities == ["rna", "note"]


def test_what_a_transform_makes_is_checked_in_all_rows_before_training():
    x, y = np.ones((1300, 2)), np.arange(1300) % 2
    x[:, 0] += np.linspace(0, 1, 1300)
    x[1290, 1] = 0.0
    data = MultimodalData("d", dict(a=x, b=x), y, split=["train"] * 1200 + ["test"] * 100)
    inverse = FunctionTransformer(lambda v: np.divide(1.0, v, where=v != 0, out=np.full_like(v, np.inf)))
    with pytest.raises(ValueError, match="modality 'a' becomes NaN, infinite or too large for float32 in row 1290 and"):
        multimodal_dls(data, transform=dict(a=inverse), device="cpu")
    huge = pd.DataFrame(dict(v=np.r_[x[:1299, 0], 1e300], c=pd.Categorical(["u", "v"] * 650)))
    data = MultimodalData("d", dict(a=huge, b=x), y, split=["train"] * 1200 + ["test"] * 100)
    with pytest.raises(ValueError, match="modality 'a' becomes NaN, infinite or too large for float32 in row 1299 and"):
        multimodal_dls(data, device="cpu")

    class Picky(SelectKBest):
        def transform(self, x):
            if len(x) < 50:
                raise RuntimeError("too few")
            return super().transform(x)

    data = MultimodalData("d", dict(a=x[:120], b=x[:120]), y[:120], split=["train"] * 80 + ["test"] * 40)
    with pytest.raises(ValueError, match="the transform of modality 'a' cannot take these 1 rows: too few"):
        multimodal_dls(data, transform=dict(a=Picky(k=1)), device="cpu")
    with pytest.raises(TypeError, match="expected a dict: modality's name -> transformer"):
        data.with_transform(SelectKBest())


def test_numbers_stay_as_they_are_where_that_was_asked_for(data):
    table, rna, y = clinic()
    dls = multimodal_dls(data, transform=dict(rna=SelectKBest(k=20)), standardize=False, device="cpu")
    rows = torch.arange(N)
    picked = SelectKBest(k=20).fit(rna[dls.split.train], y[dls.split.train]).transform(rna)
    clinical, chosen, note = dls.train_ds.batch(rows)[:3]
    assert torch.equal(chosen, torch.tensor(picked).float())
    filled = table.age.fillna(table.age.iloc[dls.split.train].median())
    assert torch.equal(clinical[:, 0], torch.tensor(filled.to_numpy()).float())
    assert note.shape[1] > 1  # `transform=` adds to what the data have: the words of the note are still counted


def test_numbers_of_categories_have_one_name(data):
    grades = pd.DataFrame(dict(grade=pd.Categorical([1, 2, 3] * 20), v=np.arange(60.0)))
    column = MixedTable(grades, "g")
    encoder = TableEncoder(column, np.arange(60))
    as_floats = MixedTable(grades.astype(dict(grade=float)), "g", encoder.sorts)
    assert torch.equal(encoder.encode(column.frame), encoder.encode(as_floats.frame))


def test_how_a_table_is_read_is_part_of_the_data():
    table = pd.DataFrame(dict(v=[1.0, np.nan] * 30, grade=["1", "2", "3"] * 20))
    as_text = dict(v="number", grade="text")
    made = [
        MultimodalData("d", dict(t=MixedTable(table, "t", *options), x=np.arange(60.0)), [0, 1] * 30)
        for options in ((None, False), (None, True), (as_text, False))
    ]
    assert len(set(map(data_digest, made))) == 3


def test_files_with_other_columns_in_a_table_are_not_joined(data):
    other = data._with(xs=data.xs | dict(clinic=MixedTable(clinic()[0].drop(columns="age"), "clinic")))
    with pytest.raises(ValueError, match="the test file has the modalities .*'smoker': .., 'stage': .., 'remark'"):
        joined_parts(data, other)


def test_an_empty_text_is_one_without_words():
    frame = pd.DataFrame(dict(remark=["pain and ache", "pain", "ache"] * 20, x=np.arange(60.0)))
    whole = TableEncoder(MixedTable(frame, "m", dict(remark="text", x="number")), np.arange(60))
    gaps = frame.copy()
    gaps.loc[[1, 5], "remark"] = None
    column = MixedTable(gaps, "m", dict(remark="text", x="number"))
    assert column.frame.remark[1] is None
    fitted = TableEncoder(column, np.arange(60)).encode(column.frame)
    assert (fitted[[1, 5], 1:] == 0).all() and (fitted[[0, 2], 1:].sum(1) > 0).all()
    empty = whole.encode(MixedTable(gaps.assign(remark=gaps.remark.fillna("")), "m", whole.sorts).frame)
    assert torch.equal(whole.encode(column.frame), empty)


@pytest.mark.parametrize("where", ["train", "test"])
def test_single_empty_cells_are_filled_for_a_transformer_that_takes_none(where):
    "With the median of the training rows, whether a training row has a gap or only another."
    rng = np.random.default_rng(0)
    genes = pd.DataFrame(rng.normal(size=(120, 30)), columns=[f"g{k}" for k in range(30)])
    y = (genes["g5"] > 0).astype(int).to_numpy()
    full = multimodal_data(dict(rna=genes, b=rng.normal(size=(120, 2))), y, kinds=dict(rna="table"))
    split = multimodal_dls(full, device="cpu").split
    row = getattr(split, where)[0]
    gap = genes.copy()
    gap.loc[row, "g5"] = np.nan
    median = genes["g5"].iloc[[r for r in split.train if r != row]].median()
    filled = genes.copy()
    filled.loc[row, "g5"] = median
    with pytest.warns(UserWarning, match="1 empty cells"):
        found = multimodal_dls(dict(rna=gap, b=full.xs["b"]), y, transform=dict(rna=SelectKBest(k=3)), device="cpu")
    want = multimodal_dls(
        dict(rna=filled, b=full.xs["b"]), y, kinds=dict(rna="table"), transform=dict(rna=SelectKBest(k=3)), device="cpu"
    )
    rows = torch.arange(120)
    assert torch.allclose(found.train_ds.batch(rows)[0], want.train_ds.batch(rows)[0], atol=1e-6)


def test_a_guess_is_said_as_what_it_is_and_of_a_table_that_was_built_directly_too():
    rng, n = np.random.default_rng(0), 80
    codes, many = [str(i % 7) for i in range(n)], [str(v) for v in rng.integers(0, 10**6, n)]
    frame = pd.DataFrame(dict(code=codes, age=rng.normal(size=n), many=many))
    b, y = rng.normal(size=(n, 2)), [0, 1] * 40
    own = MixedTable(frame, "t")
    assert own.sorts == dict(code="category", age="number", many="text")
    said = "'code' of modality 't' holds numbers written as text. It is taken as a category: .*; if it is a category"
    for given in (frame, own):
        with pytest.warns(UserWarning, match=said):
            multimodal_data(dict(t=given, b=b), y)
    with pytest.warns(UserWarning, match="'many' of modality 't' .* taken as text: .*; if it is text, say so, col"):
        multimodal_data(dict(t=MixedTable(frame[["age", "many"]], "t"), b=b), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = MixedTable(frame, "t", sorts=dict(code="category", age="number", many="text"))
        assert not chosen.guessed and own.guessed
        multimodal_data(dict(t=chosen, b=b), y)
        multimodal_data(dict(t=frame.astype(dict(code="category", many="category")), b=b), y)
