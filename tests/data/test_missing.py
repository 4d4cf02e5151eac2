"Samples that lack a modality: from the column to the gradient, the ensemble, the audit and the prediction."

import copy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from mmlit.audits.audit import audit
from mmlit.benchmark.comparison import compare
from mmlit.core import presence_of
from mmlit.data.columns import MultimodalData
from mmlit.data.files import data_digest, load_npz
from mmlit.data.loaders import multimodal_dls
from mmlit.data.missing import PartialColumn
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.data.values import as_column
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel
from mmlit.learner import METHODS, multimodal_learner
from mmlit.methods.baselines import ModalityDropout, MultiLoss, unimodal_learner, unimodal_run
from mmlit.methods.mcr import MCR
from mmlit.methods.modulation import GradientModulation
from mmlit.methods.multimodal_loss import MultiModal
from mmlit.methods.shapley import ModalityResampling, valuate
from mmlit.methods.tcmax import TCMax
from mmlit.store import RunStore
from mmlit.training import Budget

N = 120
SMALL = Budget(epochs=2, bs=16, width=4)
pytestmark = pytest.mark.filterwarnings("ignore:samples of .* lack a modality", "ignore:Adam-like")


def given(seed=0, rate=0.3):
    "Columns with gaps, a presence table (N, 3) and labels."
    rng, y = np.random.default_rng(seed), np.arange(N) % 3
    there = rng.random((N, 3)) > rate
    there[~there.any(1), 0] = True
    there[:6] = True
    x1, x2 = rng.normal(size=(N, 5)) + y[:, None], rng.normal(size=(N, 2, 8)) + y[:, None, None]
    words = [f"say {'abc'[k]} to {i % 7}" for i, k in enumerate(y)]
    x1[~there[:, 0]], x2[~there[:, 1]] = np.nan, np.nan
    columns = dict(blood=x1, sound=x2, note=[w if here else None for w, here in zip(words, there[:, 2])])
    return columns, there, np.array(list("xyz"))[y]


@pytest.fixture
def data():
    columns, _, y = given()
    return multimodal_data(columns, y)


# ---- data


def test_empty_rows_are_missing_and_said():
    columns, there, y = given()
    with pytest.warns(UserWarning, match=r"samples of data lack a modality: 'blood' in 2\d"):
        data = multimodal_data(columns, y)
    assert all(np.array_equal(data.xs[m].present, there[:, i]) for i, m in enumerate(data.modalities))
    assert data.missing == {m: (~there[:, i]).mean() for i, m in enumerate(data.modalities)}
    assert f"blood (vector 5, {1 - there[:, 0].mean():.0%} missing)" in repr(data)


def test_presence_says_the_same_as_empty_rows(data):
    columns, there, y = given()
    full = dict(
        blood=np.nan_to_num(columns["blood"], nan=-1),
        sound=np.nan_to_num(columns["sound"]),
        note=["?" if w is None else w for w in columns["note"]],
    )
    for presence in (
        there,
        torch.tensor(there),
        pd.DataFrame(there, columns=list(columns)),
        dict(zip(columns, there.T)),
    ):
        said = multimodal_data(full, y, presence=presence)
        assert data_digest(said) == data_digest(data)
    with pytest.raises(ValueError, match="presence has shape .120, 2., expected .N, 3."):
        multimodal_data(full, y, presence=there[:, :2])
    with pytest.raises(ValueError, match="presence of modality 'blood' has 50 rows, its column has 120"):
        multimodal_data(full, y, presence=dict(blood=there[:50, 0]))
    wrong = there.copy()
    wrong[np.flatnonzero(~there[:, 0])[0], 0] = True
    with pytest.raises(ValueError, match="modality 'blood' is empty in row .*, of which presence says"):
        multimodal_data(columns, y, presence=wrong)


def test_a_presence_table_follows_its_index():
    columns, there, y = given()
    rows = [f"r{i}" for i in range(N)]
    blood = pd.DataFrame(np.nan_to_num(columns["blood"]), index=rows)
    table = pd.DataFrame(dict(blood=there[:, 0]), index=rows)
    sound = pd.DataFrame(np.arange(N), index=rows)
    data = MultimodalData(
        "d", dict(blood=blood, sound=sound), pd.Series(y, rows), presence=table.sample(frac=1, random_state=1)
    )
    assert np.array_equal(data.xs["blood"].present, there[:, 0])


def test_what_one_cell_says_and_what_a_row_says():
    columns, _, y = given()
    genes = np.random.default_rng(0).normal(size=(N, 200))
    genes[5, 7] = np.nan
    with pytest.raises(
        ValueError, match="modality 'genes' has NaN or infinity in 1 of 120 rows, the first is row 5, column 7"
    ):
        multimodal_data(dict(genes=genes, blood=columns["blood"]), y)
    table = pd.DataFrame(genes, columns=[f"g{i}" for i in range(200)])
    with pytest.warns(UserWarning, match="modality 'genes' has 1 empty cells in 120 rows"):
        data = multimodal_data(dict(genes=table, blood=columns["blood"]), y)
    assert "genes" not in data.missing
    table.iloc[9] = np.nan
    data = multimodal_data(dict(genes=table, blood=columns["blood"]), y)
    assert data.missing["genes"] == pytest.approx(1 / N) and data.kinds["genes"] == "table"


def test_a_sample_without_any_modality_is_refused_by_number():
    columns, _, y = given()
    for m in columns:
        columns[m][17] = None if m == "note" else np.nan
    with pytest.raises(
        ValueError, match="row 17 of data has no modality at all, and so have 0 more: leave these rows out"
    ):
        multimodal_data(columns, y)


def test_gaps_survive_rows_parts_and_files(data, tmp_path):
    columns, there, _ = given()
    rows = np.arange(40, 90)[there[40:90][:, [0, 2]].any(1)]  # who has neither is refused
    part = data.subset(rows).select(["note", "blood"])
    assert np.array_equal(part.xs["note"].present, there[rows, 2]) and np.array_equal(
        part.xs["blood"].present, there[rows, 0]
    )
    assert len(part.xs["blood"].values) == there[rows, 0].sum()  # what is left out is not kept
    moved = joined_parts(data.subset(np.arange(60, N)), data.subset(np.arange(60)))
    order = np.r_[60:N, :60]
    assert data_digest(moved) == data_digest(data.subset(order).with_split(["train"] * 60 + ["test"] * 60))
    data.save(tmp_path / "gaps.npz")
    assert data_digest(load_npz(tmp_path / "gaps.npz")) == data_digest(data)
    joined = joined_parts(data.subset(np.arange(80)), data.subset(np.arange(80, N)))
    assert all(np.array_equal(joined.xs[m].present, data.xs[m].present) for m in data.modalities)
    assert data_digest(joined) == data_digest(data.with_split(["train"] * 80 + ["test"] * 40))


def test_pictures_without_a_path_are_missing(tmp_path):
    for i in range(8):
        Image.new("RGB", (9, 9), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    paths = ["" if i % 4 == 3 else str(tmp_path / f"{i % 8}.png") for i in range(80)]
    frame = pd.DataFrame(dict(path=paths, age=np.arange(80.0), y=[0, 1] * 40))
    data = multimodal_data(frame, "y", dict(eye="path", age="age"), size=8)
    assert data.kinds["eye"] == "picture" and data.missing == dict(eye=0.25)
    eye, _, _ = multimodal_dls(data, device="cpu", bs=8).train.one_batch()
    assert eye["values"].shape == (8, 3, 8, 8) and (eye["values"][~eye["present"]] == 0).all()


def test_what_is_fitted_is_fitted_on_rows_that_are_there(data):
    columns, there, _ = given()
    dls = multimodal_dls(data, device="cpu")
    train = dls.split.train[there[dls.split.train, 0]]
    mean, std = columns["blood"][train].mean(0), columns["blood"][train].std(0)
    blood = dls.train_ds.batch(torch.arange(N))[0]
    want = torch.tensor((columns["blood"] - mean) / std).float()
    assert torch.equal(blood["present"], torch.tensor(there[:, 0]))
    torch.testing.assert_close(blood["values"][there[:, 0]], want[there[:, 0]], atol=1e-5, rtol=1e-5)
    assert "blood (vector, 2" in repr(dls) and set(dls.missing) == {"blood", "sound", "note"}
    assert torch.equal(dls.valid_ds.presence, torch.tensor(there[dls.split.valid]))
    all_gone = dict(columns, blood=columns["blood"].copy())
    all_gone["blood"][dls.split.train] = np.nan
    kept = np.flatnonzero(there[:, 1] | there[:, 2])
    with pytest.raises(ValueError, match="modality 'blood' is missing in all .* training rows"):
        split = [[int(np.flatnonzero(kept == r)[0]) for r in part if r in kept] for part in dls.split]
        some = {m: [v for v, k in zip(c, np.isin(np.arange(N), kept)) if k] for m, c in all_gone.items()}
        some = {m: np.stack(c) if m != "note" else c for m, c in some.items()}
        multimodal_dls(some, data.y[kept], split=split, device="cpu")


# ---- models and methods

METHODS_HERE = dict(
    joint=[],
    multi_loss=[MultiLoss],
    mcr=[lambda: MCR(ceb_weight=0.1)],
    multimodal=[MultiModal],
    tcmax=[TCMax],
    agm=[GradientModulation],
    agm_lr=[lambda: GradientModulation(mode="lr")],
    resampling=[lambda: ModalityResampling(warmup=0)],
    resampling_modality=[lambda: ModalityResampling(level="modality", warmup=0)],
    dropout=[lambda: ModalityDropout(0.4)],
)


class Spoil(Callback):
    "Puts numbers in the places of what is missing, and looks whether a gradient comes back to them."

    order, run_valid = -50, False

    def __init__(self, value):
        self.value, self.gradients, self.seen = value, [], 0

    def before_batch(self):
        xs = []
        for x in self.xb:
            values, there = x["values"], x["present"]
            self.seen += int((~there).sum())
            if values.is_floating_point():
                values = values.clone()
                values[~there] = self.value
                values.requires_grad_()
            else:
                values = values.where(there[:, None], 1)
            xs.append(dict(values=values, present=there))
        self.learn.xb = tuple(xs)

    def after_backward(self):
        for x in self.xb:
            if x["values"].grad is not None:
                self.gradients.append(x["values"].grad[~x["present"]].abs().sum().item())
                assert x["values"].grad[x["present"]].abs().sum() > 0


def trained(data, method, head, value):
    torch.manual_seed(0)
    dls = multimodal_dls(data, bs=16, device="cpu")
    spoil = Spoil(value)
    learn = multimodal_learner(dls, head=head, width=4, cbs=[make() for make in METHODS_HERE[method]])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2, cbs=spoil)
    return learn, spoil


@pytest.mark.parametrize("method", METHODS_HERE)
def test_what_stands_in_a_missing_place_changes_no_weight_and_gets_no_gradient(data, method):
    for head in ["concat"] if method == "multimodal" else ["concat", "attention"]:
        zeros, huge = (trained(data, method, head, value) for value in (0.0, 1e6))
        assert zeros[1].seen > 50 and set(huge[1].gradients) == {0.0}
        for (name, a), b in zip(zeros[0].model.state_dict().items(), huge[0].model.state_dict().values()):
            assert torch.equal(a, b), name
            assert a.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_every_head_answers_without_what_is_missing(data, head):
    learn, _ = trained(data, "joint", head, 0.0)
    *xs, _ = learn.dls.valid.one_batch()
    gone = lambda x: ~x["present"].view(-1, *[1] * (x["values"].ndim - 1))
    spoilt = [dict(x, values=x["values"].masked_fill(gone(x), 3)) for x in xs]
    model = learn.model.eval()
    assert torch.equal(model(*xs), model(*spoilt))


def test_a_missing_modality_is_worth_nothing_and_is_not_shown_again(data):
    learn, _ = trained(data, "resampling", "concat", 0.0)
    value = valuate(learn.model, learn.dls.valid)
    there = learn.dls.valid_ds.presence
    assert torch.equal(value.presence, there) and (value.phi.T[~there] == 0).all()
    right = value.correct[-1].double() * there.sum(1)
    torch.testing.assert_close(value.phi.sum(0), right)
    callback = ModalityResampling(warmup=0)
    learn = multimodal_learner(learn.dls, width=4, method=callback)
    plans = []

    class Note(Callback):
        order = callback.order + 1

        def before_train(self):
            plans.append(self.learn.dl.plan)

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Note())
    rows, keep = plans[0]
    where = {int(r): p for r, p in zip(learn.dls.train_ds.index, learn.dls.train_ds.presence)}
    extra = [(int(r), k) for r, k in zip(rows, keep) if not k.all()]
    assert extra and all((k & ~where[r]).sum() == 0 for r, k in extra)


def test_a_learned_stand_in_is_learnt_from_those_who_lack_the_modality(data):
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = multimodal_learner(dls, width=4, learn_absent=True)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
    assert all(a.abs().sum() > 0 for a in learn.model.absent)
    *xs, _ = dls.valid.one_batch()
    zs, there = learn.model.encode(*xs), presence_of(xs)
    for z, a, here in zip(zs, learn.model.absent, there.T):
        assert (z[~here] == a).all()


def test_batch_statistics_are_those_of_rows_that_are_there(data):
    dls = multimodal_dls(data, bs=16, device="cpu")
    norms = [nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(momentum=1.0)) for _ in range(2)]
    model = FusionModel([*norms, nn.Sequential(nn.EmbeddingBag(99, 16))], HEADS["concat"]((5, 16, 16), 3))
    *xs, _ = dls.train.one_batch()
    model.train()(*xs)
    for x, norm in zip(xs, norms):
        torch.testing.assert_close(norm[1].running_mean, x["values"][x["present"]].flatten(1).mean(0))


# ---- comparison, audit, prediction


@pytest.mark.filterwarnings("ignore")
def test_every_registered_method_goes_through_a_comparison(data, tmp_path):
    found = compare(data, list(METHODS), 1, SMALL, tmp_path, workers=1, progress=False)
    assert not len(found.failed) and found.table["mean"].between(0, 1).all()


def test_the_ensemble_is_the_mean_over_those_who_have_something_to_go_by(data, tmp_path):
    found = compare(data, ["unimodal", "ensemble"], 1, SMALL, tmp_path, workers=1, progress=False)
    dls = multimodal_dls(data, seed=0, device="cpu")
    there = dls[2].dataset.presence
    answers = [RunStore(tmp_path).answer(data, unimodal_run(m), 0, SMALL) for m in data.modalities]
    assert torch.equal(answers[0].presence("test"), there)
    logp = torch.stack([torch.tensor(a.test).log_softmax(-1) for a in answers])
    mean = torch.stack([logp[there[i], i].mean(0) for i in range(len(there))])
    accuracy = (mean.argmax(1) == torch.tensor(answers[0].y_test)).double().mean().item()
    assert found.table.set_index("method").loc["ensemble", "mean"] == pytest.approx(accuracy)


def test_an_audit_has_a_section_on_missing_modalities_and_leaves_no_trace(data, tmp_path):
    dls = multimodal_dls(data, bs=16, device="cpu", test=0.5)
    learn = multimodal_learner(dls, width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    found = audit(learn, budget=SMALL, out=tmp_path, workers=1, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    rows = found.table.loc["missing"]
    there = dls[2].dataset.presence.numpy()
    with learn.no_bar():
        logits, y = learn.get_preds(ds_idx=2, act=nn.Identity())
    right = (logits.argmax(1) == y).numpy()
    assert (~there).sum(0).min() >= 10  # fewer are not shown
    for i, m in enumerate(data.modalities):
        value = rows.loc[("accuracy, joint", f"without {m}"), "value"]
        assert value == pytest.approx(right[~there[:, i]].mean())
    assert rows.loc[("accuracy, joint", "complete"), "value"] == pytest.approx(right[there.all(1)].mean())
    assert "when a modality is missing" in found.to_html(tmp_path / "a.html").read_text().lower()


def test_predictions_with_fewer_modalities(data, tmp_path):
    columns, there, _ = given()
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = multimodal_learner(dls, width=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
        rows = np.arange(6)
        new = dict(blood=columns["blood"][rows], note=columns["note"][:6])
        with pytest.warns(UserWarning, match="'sound' of .* is missing in all rows: the model answers by the others"):
            fewer = learn.get_preds(dl=learn.dls.test_dl(new))[0]
        empty = dict(new, sound=np.full((6, 2, 8), np.nan))
        assert torch.equal(fewer, learn.get_preds(dl=learn.dls.test_dl(empty))[0])
        items = [dict(blood=columns["blood"][i], note=None, sound=columns["sound"][i]) for i in range(3)]
        name, _, p = learn.predict(items[0])
        assert name in data.classes and p.sum() == pytest.approx(1, abs=1e-5)
        lacking = [{m: v for m, v in item.items() if m != "note"} for item in items]
        with pytest.warns(UserWarning):
            assert torch.equal(learn.predict(lacking[0])[2], p)
        with pytest.raises(ValueError, match="modality 'sound' is missing .is it 'sounds'..; got"):
            learn.dls.test_dl(dict(blood=new["blood"], sounds=columns["sound"][rows]))
        with pytest.raises(ValueError, match="modality 'sound' is missing; got .*'smell'"):
            learn.dls.test_dl(dict(new, smell=columns["sound"][rows]))
        with pytest.raises(ValueError, match="row 0 of what is to be predicted has no modality at all"):
            learn.dls.test_dl([dict(blood=None, note=None, sound=None)])
        learn.show_results(max_n=2)
        learn.dls.show_batch(max_n=3)
        learn.export(tmp_path / "learner.pkl")
    torch.save((items, learn.get_preds(dl=learn.dls.test_dl(items))[0]), tmp_path / "said.pt")
    code = """
import torch
from fastai.learner import load_learner
learn = load_learner("learner.pkl")
items, said = torch.load("said.pt", weights_only=False)
assert torch.equal(said, learn.get_preds(dl=learn.dls.test_dl(items))[0])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unimodal_models_learn_from_rows_that_have_the_modality(data):
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = unimodal_learner(dls, "sound", width=4)
    there = data.xs["sound"].present
    assert sorted(learn.dls.train_ds.index.tolist()) == sorted(dls.split.train[there[dls.split.train]].tolist())
    assert len(learn.dls.valid_ds) == len(dls.valid_ds) and len(dls.train_ds) == len(dls.split.train)


@pytest.mark.parametrize("task", ["regression", "multi-label"])
def test_other_tasks_go_through_as_well(task, tmp_path):
    columns, _, y = given()
    rng = np.random.default_rng(1)
    target = rng.normal(size=N) if task == "regression" else (rng.random((N, 2)) > 0.5).astype(int)
    data = multimodal_data(columns, target, task=task)
    names = [n for n in METHODS if task != "regression" or n not in ("tcmax", "resampling", "resampling_modality")]
    names = [n for n in names if n not in ("multimodal", "scaled_sum", "late_sum")]
    found = compare(data, names[:12], 1, SMALL, tmp_path, workers=1, progress=False)
    assert "joint" in found.table.method.to_list()


def test_half_precision_keeps_what_is_missing_out(data):
    dls = multimodal_dls(data, bs=16, device="cpu")
    learn = multimodal_learner(dls, width=4)
    *xs, _ = dls.train.one_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        zs = learn.model.encode(*xs)
    for z, here in zip(zs, presence_of(xs).T):
        assert (z[~here] == 0).all() and z[here].isfinite().all()


def test_a_partial_column_needs_no_filler(data):
    assert isinstance(data.xs["blood"], PartialColumn)
    assert len(data.xs["blood"].values) == data.xs["blood"].present.sum()


@pytest.mark.filterwarnings("ignore:modality 'walk' has rows")
def test_sequences_of_different_length_and_tables_may_be_missing_too(tmp_path):
    rng, y = np.random.default_rng(0), np.arange(60) % 2
    walk = [rng.normal(size=(2, t)) + k for t, k in zip(rng.integers(4, 20, 60), y)]
    table = pd.DataFrame(dict(age=rng.normal(size=60), sex=pd.Categorical(rng.choice(["f", "m"], 60))))
    for i in range(0, 60, 7):
        walk[i] = None
        table.loc[i + 1 : i + 2] = np.nan
    data = multimodal_data(dict(walk=walk, clinic=table, sure=rng.normal(size=(60, 3))), y)
    dls = multimodal_dls(data, bs=16, device="cpu")
    walks, clinic, sure, _ = dls.train.one_batch()
    assert set(walks) == {"values", "present"} and set(walks["values"]) == {"values", "mask"}
    assert torch.is_tensor(sure) and clinic["values"].ndim == 2
    spoilt = dict(walks, values={k: v.clone() for k, v in walks["values"].items()})
    spoilt["values"]["values"][~walks["present"]] = 1e6
    learn = multimodal_learner(dls, width=4)
    model = learn.model.eval()
    assert torch.equal(model(walks, clinic, sure), model(spoilt, clinic, sure))
    found = compare(data, ["ensemble", "joint", "mcr", "tcmax"], 1, SMALL, tmp_path, workers=1, progress=False)
    assert not len(found.failed)
    new = dict(walk=[None, walk[1]], clinic=table.iloc[:2].reset_index(drop=True), sure=[[0, 1, 2], [3, 4, 5]])
    with learn.no_bar():
        assert learn.get_preds(dl=dls.test_dl(new))[0].shape == (2, 2)


# ---- a part in which nobody has a modality


COLUMNS = dict(
    vector=lambda rng, n: rng.normal(size=(n, 3)),
    ragged=lambda rng, n: [rng.normal(size=(2, t)) for t in rng.integers(3, 8, n)],
    dict=lambda rng, n: dict(a=rng.normal(size=(n, 3)), b=rng.normal(size=(n, 2))),
    table=lambda rng, n: pd.DataFrame(dict(a=rng.normal(size=n), b=["x", "y"] * (n // 2))),
    text=lambda rng, n: ["a red car", "a car"] * (n // 2),
)


@pytest.mark.parametrize("kind", COLUMNS)
def test_files_of_which_one_has_nothing_of_a_modality_are_joined(kind):
    rng, n = np.random.default_rng(0), 40
    there = np.ones((n, 2), dtype=bool)
    there[20:, 0] = there[3, 0] = False
    whole = multimodal_data(
        dict(x=COLUMNS[kind](rng, n), plain=rng.normal(size=(n, 2))), np.arange(n) % 2, groups=range(n), presence=there
    )
    one, other = whole.subset(np.arange(20)), whole.subset(np.arange(20, n))
    data = joined_parts(one, other)
    assert np.array_equal(data.xs["x"].present, there[:, 0]) and data.missing == dict(x=21 / 40)
    dls = multimodal_dls(data, bs=8, device="cpu")
    assert not any(batch[0]["present"].any() for batch in dls[2]) and all(b[0]["present"].any() for b in dls[0])
    back = joined_parts(other, one)
    assert np.array_equal(back.xs["x"].present, np.roll(there[:, 0], 20))
    with pytest.raises(ValueError, match="modality 'x' is missing in all .* training rows: leave it out"):
        multimodal_dls(back)


def test_the_best_unimodal_model_is_one_that_the_validation_part_says_something_of(tmp_path):
    rng, n = np.random.default_rng(0), 150
    y = np.repeat([0, 0, 1], n // 3)[rng.permutation(n)]  # a constant answer is right in two of three
    split = np.array(["train"] * 90 + ["valid"] * 30 + ["test"] * 30)
    there = np.ones((n, 2), dtype=bool)
    there[90:120, 0] = False
    xs = dict(gone=rng.normal(size=(n, 2)), noise=rng.normal(size=(n, 2)))
    data = multimodal_data(xs, y, presence=there, split=split)
    found = compare(data, ["unimodal"], 1, SMALL, tmp_path, reference="unimodal noise", workers=1, progress=False)
    runs = found.runs.set_index("method")
    assert runs.log_loss["best unimodal"] == runs.log_loss["unimodal noise"] != runs.log_loss["unimodal gone"]
    told = audit(data=data, budget=SMALL, out=tmp_path, workers=1, progress=False)
    assert torch.equal(told.first.logits["best unimodal"], told.first.logits["unimodal noise"])


def _gappy(kind):
    "A column of N rows of a kind whose rows 0 to 3 are missing, the same with a fault in row 17, and the fault."
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(N, 3, 4))
    ids = [rng.integers(1, 9, k) for k in rng.integers(2, 6, N)]
    table = pd.DataFrame(dict(age=numbers[:, 0, 0], sex=rng.choice(["f", "m"], N)))
    good = dict(
        vector=numbers[:, 0],
        sequence=numbers,
        ragged=[row[:, :k] for row, k in zip(numbers, rng.integers(2, 5, N))],
        tokens=ids,
        text=rng.choice(["red cat", "blue dog"], N).astype(object),
        table=table,
        dict=dict(u=numbers[:, 0], v=numbers[:, 1]),
    )[kind]
    wrong = copy.deepcopy(good)
    if kind == "dict":
        return good, wrong | dict(u=_with_nan(wrong["u"], (17, 1))), "in 1 of 120 rows, the first is row 17, column 1"
    for column in (good, wrong):
        for row in range(4):
            if kind == "table":
                column.iloc[row] = None
            else:
                column[row] = np.nan if kind in ("vector", "sequence") else None
    if kind in ("vector", "sequence"):
        wrong[17, 2] = np.nan
        return good, wrong, "in 1 of 120 rows, the first is row 17, column 2"
    if kind == "table":
        wrong.loc[17, "age"] = np.inf
        return good, wrong, "infinite in 1 rows, the first is row 17"
    wrong[17] = dict(ragged=_with_nan(np.ones((3, 2)), (0, 1)), tokens=np.array([-2, 1]), text=5.0)[kind]
    return (
        good,
        wrong,
        dict(ragged="row 17 of .* NaN", tokens="row 17 of .* word id -2", text="float .5.0. in row 17")[kind],
    )


def _with_nan(x, at):
    x[at] = np.nan
    return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vector", "sequence", "ragged", "tokens", "text", "table", "dict"])
def test_a_fault_has_the_row_of_what_was_given(kind):
    good, wrong, message = _gappy(kind)
    other, y = np.random.default_rng(1).normal(size=(N, 2)), [0, 1] * (N // 2)
    presence = pd.DataFrame(dict(a=np.arange(N) > 3)) if kind == "dict" else None
    with pytest.raises(ValueError, match=message):
        multimodal_data(dict(a=wrong, b=other), y, presence=presence)
    dls = multimodal_dls(dict(a=good, b=other), y, presence=presence, device="cpu")
    with pytest.raises(ValueError, match=message.replace("float .5.0. in", ".*")):
        dls.test_dl(dict(a=wrong, b=other))


def test_what_a_transform_cannot_hold_has_the_row_of_what_was_given():
    x = np.random.default_rng(0).random((N, 3)) + 1
    x[:4], x[17, 1] = np.nan, -1
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="too large for float32 in row 17 and 0 more"):
        log = FunctionTransformer(np.log)
        multimodal_dls(dict(a=x, b=np.arange(N)), [0, 1] * (N // 2), transform=dict(a=log), standardize=False)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "string"])
@pytest.mark.parametrize("form", [pd.Series, pd.array])
def test_an_empty_value_of_a_pandas_array_is_a_missing_row(form, dtype):
    values = ["1"] * 3 + [None] if dtype == "string" else [1, 2, 3, None]
    column = as_column(form(values, dtype=dtype), "a", "tokens" if dtype == "string" else None)
    assert column.present.tolist() == [True, True, True, False] and len(column.values) == 3
