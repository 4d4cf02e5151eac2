"Where two parts meet: missing modalities beside pictures, tables, weights, targets, predictors, modulation, audits."

import re

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.optimizer import SGD
from PIL import Image
from scipy import sparse
from torch import nn

from mmlit.audits.audit import audit
from mmlit.audits.quantities import missing_quantities
from mmlit.audits.robustness import _shake
from mmlit.core import has_presence
from mmlit.data.columns import MultimodalData
from mmlit.data.files import data_digest
from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import multimodal_data
from mmlit.data.ragged import is_padded
from mmlit.data.values import duplicate_groups
from mmlit.learner import multimodal_learner
from mmlit.methods.modulation import GradientModulation, ResponseHistory
from mmlit.methods.shapley import resampling_frequency
from mmlit.metrics import with_metric
from mmlit.production.predictor import load_predictor, save_predictor
from mmlit.training import Budget

N = 200
pytestmark = pytest.mark.filterwarnings(
    "ignore:samples of .* lack a modality", "ignore:.* is missing in all rows", "ignore:modality .* empty cells"
)


def columns(rate=0.4, seed=0):
    "Two modalities, of which samples lack the second; labels."
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(N, 4)).astype("float32"), rng.normal(size=(N, 3)).astype("float32")
    b[rng.random(N) < rate] = np.nan
    return dict(a=a, b=b), rng.integers(0, 2, N)


def fit(learn, epochs=1):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-2)
    return learn


def saved(learn, tmp_path, **options):
    save_predictor(learn, tmp_path / "p.pt", **options)
    return load_predictor(tmp_path / "p.pt")


def answers(learn, rows):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(dl=learn.dls.test_dl(rows))[0]


# ---- names


def test_a_column_called_present_counts_in_digest_and_duplicates():
    xs, y = columns()
    rng = np.random.default_rng(1)
    table = pd.DataFrame(dict(unit=rng.integers(0, 3, N).astype(float), present=rng.normal(size=N)))
    table.iloc[:30] = np.nan
    table.loc[50, "unit"] = np.nan  # a single gap: what is left is a table, and no array
    other = table.assign(present=2 * table.present)
    ours, theirs = (multimodal_data(dict(a=xs["a"], t=t), y) for t in (table, other))
    assert data_digest(ours) != data_digest(theirs)
    assert duplicate_groups(dict(t=ours.xs["t"])).max() + 1 == N - 30 + 1


def test_arrays_with_the_names_of_what_is_missing_are_refused():
    xs, y = columns()
    odd = dict(values=np.ones((N, 3)), present=np.arange(N) % 2 == 0)
    with pytest.raises(ValueError, match="'odd' has the arrays 'values' and 'present'.*rename"):
        multimodal_dls(dict(a=xs["a"], odd=odd), y)
    dls = multimodal_dls(dict(a=xs["a"], odd=dict(values=odd["values"], there=odd["present"])), y)
    assert not has_presence(dls.one_batch()[1])


def test_presence_beside_columns_that_have_gaps_already_is_honoured():
    xs, y = columns()
    data = multimodal_data(xs, y)
    there = data.xs["b"].present.copy()
    there[np.flatnonzero(there)[:10]] = False
    fewer = multimodal_data(data.xs, y, presence=dict(b=there))
    assert (fewer.xs["b"].present == there).all() and np.array_equal(fewer.xs["b"].values, xs["b"][there])
    with pytest.raises(ValueError, match="'b' is empty in row .* presence says"):
        multimodal_data(data.xs, y, presence=dict(b=np.ones(N, dtype=bool)))


def test_modalities_of_which_a_row_has_none_are_not_chosen():
    xs, y = columns()
    gone = np.isnan(xs["b"][:, 0]) & (np.arange(N) % 2 == 0)
    data = multimodal_data(dict(a=np.where(gone[:, None], np.nan, xs["a"]), b=xs["b"], c=np.ones((N, 1))), y)
    assert data.select(["a", "c"]).modalities == ["a", "c"]
    for choose in (data.select, lambda names: multimodal_dls(data, modalities=names)):
        with pytest.raises(ValueError, match=f"row {gone.argmax()} of data with a, b only has no modality at all"):
            choose(["a", "b"])
    assert data.subset(~gone).select(["a", "b"]).missing.keys() == {"b"}


# ---- rows to be predicted


def test_no_name_of_a_picture_is_a_missing_picture_in_prediction_too(tmp_path):
    xs, y = columns()
    for i in range(N):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    names = [str(tmp_path / f"{i}.png") if i % 4 else "" for i in range(N)]
    learn = fit(multimodal_learner(multimodal_dls(dict(a=xs["a"], p=names), y, size=8), width=4))
    blank, none = (answers(learn, dict(a=xs["a"][:4], p=[p, *names[1:4]])) for p in (" ", None))
    assert torch.equal(blank, none)
    assert torch.equal(answers(learn, dict(a=xs["a"][:2], p=["", ""])), answers(learn, dict(a=xs["a"][:2])))
    assert len(saved(learn, tmp_path).predict(dict(a=xs["a"], p=names))) == N


def test_a_part_in_which_nobody_has_a_modality_is_answered_and_saved(tmp_path):
    xs, y = columns(rate=0)
    split = tuple(multimodal_dls(xs, y).split)
    xs["b"][split[1]] = xs["b"][split[2]] = np.nan
    learn = fit(multimodal_learner(multimodal_dls(xs, y, split=split), width=4))
    test = learn.dls.data.subset(split[2])
    assert test.missing == {"b": 1.0}
    assert torch.equal(answers(learn, test), answers(learn, dict(a=xs["a"][split[2]], b=[None] * len(test))))
    raw = {m: x[split[2]] for m, x in xs.items()}
    torch.testing.assert_close(saved(learn, tmp_path).answers(raw).softmax(1), answers(learn, test))


@pytest.mark.parametrize("weighed", ["balanced", [1.0, 3.0]])
def test_a_learner_with_class_weights_has_a_predictor(tmp_path, weighed):
    xs, y = columns()
    learn = fit(multimodal_learner(multimodal_dls(xs, y, class_weights=weighed), width=4))
    torch.testing.assert_close(saved(learn, tmp_path).answers(xs).softmax(1), answers(learn, xs))


def test_a_learner_of_data_with_a_metric_has_a_predictor(tmp_path):
    xs, y = columns()
    learn = fit(multimodal_learner(multimodal_dls(with_metric(multimodal_data(xs, y), "f1")), width=4))
    torch.testing.assert_close(saved(learn, tmp_path).answers(xs).softmax(1), answers(learn, xs))


def test_a_predictor_of_several_targets_answers_all_of_them_in_their_units(tmp_path):
    xs, _ = columns()
    y = (np.random.default_rng(2).normal(size=(N, 2)) * [1, 1000] + [5, 3000]).astype("float32")
    learn = fit(multimodal_learner(multimodal_dls(xs, y), width=4))
    predictor = saved(learn, tmp_path)
    told = predictor.predict(dict(a=pd.DataFrame(xs["a"], index=range(7, N + 7)), b=xs["b"]))
    assert told.shape == (N, 2) and list(told.index[:2]) == [7, 8]
    torch.testing.assert_close(torch.as_tensor(told.to_numpy()), answers(learn, xs))
    assert repr(predictor) == "Predictor of 2 numbers from a (vector), b (vector)"


# ---- training


def test_weights_that_leave_nothing_of_a_modality_are_refused_before_training():
    xs, y = columns()
    weights = np.isnan(xs["b"][:, 0]).astype(float)
    with pytest.raises(ValueError, match=r"'b' is missing in all \d+ training rows"):
        multimodal_dls(xs, y, weights=weights)


def test_history_of_modulation_counts_the_batches_that_have_the_modality():
    torch.manual_seed(0)
    scores, there = -torch.rand(40, 3), torch.rand(40, 3) < torch.tensor([1.0, 0.5, 0.1])
    there[:5, 2] = False
    history = ResponseHistory(3)
    for score, has in zip(scores, there):
        judged = history.judged(has)
        assert (judged <= has).all() and judged[0]
        history.update(score.where(has, torch.nan), has)
    want = [scores[has, m].mean() for m, has in enumerate(there.T)]
    torch.testing.assert_close(history.mean, torch.stack(want))


def test_a_modality_that_hardly_anyone_has_does_not_look_learnt_to_modulation():
    xs, y = columns(rate=0)
    xs["b"][2:] = np.nan
    split = np.arange(120), np.arange(120, 160), np.arange(160, 200)
    dls, method = multimodal_dls(xs, y, split=split, bs=16), GradientModulation()
    learn = multimodal_learner(dls, width=4, method=method, opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, 0.0)
    # at rate 0 the history of each modality is what it answers, about log 1/2; batches without it say nothing
    history = learn.model.parts["response_history"]
    assert history.steps == 3 * len(dls.train) and history.lacking[0] == 0 < history.lacking[1]
    assert (history.mean < -0.5).all()
    assert all(0.8 < kappa < 1.25 for name in method.columns for kappa in method.history[name])


# ---- the audit


def test_noise_is_in_deviations_of_the_rows_that_are_there():
    x = torch.zeros(1000, 3)
    there = torch.arange(1000) < 200
    x[there] = 5 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    noisy = _shake(dict(values=x, present=there), 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(noisy["present"], there)
    moved = (noisy["values"] - x)[there]
    assert abs(moved.std() / x[there].std() - 1) < 0.1
    one = dict(values=x[:, :1], present=torch.arange(1000) == 3)
    assert torch.equal(_shake(one, 1.0, torch.Generator())["values"], one["values"])


def test_r2_of_those_who_lack_a_modality_is_by_their_own_variance():
    rng = np.random.default_rng(0)
    there = torch.as_tensor(np.c_[np.ones(100), np.arange(100) % 3 > 0]).bool()
    y = torch.as_tensor(rng.normal(size=100) + 5.0 * ~there[:, 1].numpy())
    said = (y + torch.as_tensor(rng.normal(size=100)))[:, None]
    told = missing_quantities(dict(joint=said, ensemble=said), y, there, ["a", "b"])
    found = {q.of: q.statistic(q.values.mean(0, keepdims=True))[0, 0] for q in told if q.name == "r2, joint"}
    for of, which in (("complete", there[:, 1]), ("without b", ~there[:, 1])):
        want = 1 - (said[which, 0] - y[which]).square().mean() / y[which].var(unbiased=False)
        assert abs(found[of] - want) < 1e-9
    assert set(found) == {"complete", "without b"}


class TimeFirst(nn.Module):
    "Takes values (B, T, D) and a mask (B, T), in the order of a user's own."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x):
        mask = x["mask"][..., None]
        return (self.layer(x["values"]) * mask).sum(1) / mask.sum(1).clamp(min=1)


@pytest.mark.parametrize("missing", [False, True])
def test_an_audit_takes_values_and_mask_of_a_users_own(tmp_path, missing):
    xs, y = columns()
    rng = np.random.default_rng(0)
    steps = [dict(values=rng.normal(size=(5, 2)).astype("f"), mask=np.arange(5) < rng.integers(1, 6)) for _ in range(N)]
    steps = [None if missing and i % 5 == 0 else row for i, row in enumerate(steps)]
    dls = multimodal_dls(dict(a=xs["a"], s=steps), y, device="cpu")
    batch = dls.one_batch()[1]
    assert not is_padded(batch["values"] if missing else batch)

    def make():
        return [nn.Linear(4, 4), TimeFirst()]

    learn = fit(multimodal_learner(dls, make()))
    found = audit(learn, encoders=make, budget=Budget(epochs=1, width=4), out=tmp_path, progress=False, workers=1)
    names = {name for _, name, _ in found.table.index}
    assert any(re.match("noise of", name) for name in names)
    assert found.table.value.notna().all()


@pytest.mark.parametrize(
    "make", [sparse.csr_matrix, sparse.csr_array, sparse.coo_array, lambda x: torch.tensor(x).to_sparse()]
)
def test_sparse_rows_are_taken_with_gaps_and_without(make):
    xs, y = columns()
    whole = np.nan_to_num(xs["b"])
    assert np.array_equal(multimodal_data(dict(a=xs["a"], b=make(whole)), y).xs["b"], whole)
    there = ~np.isnan(xs["b"][:, 0])
    for data in (
        multimodal_data(dict(a=xs["a"], b=make(xs["b"])), y),
        multimodal_data(dict(a=xs["a"], b=make(whole)), y, presence=dict(b=there)),
    ):
        assert (data.xs["b"].present == there).all() and np.array_equal(data.xs["b"].values, whole[there])
    learn = fit(multimodal_learner(multimodal_dls(dict(a=xs["a"], b=make(xs["b"])), y), width=4))
    assert torch.equal(answers(learn, dict(a=xs["a"], b=make(xs["b"]))), answers(learn, xs))


def test_a_modality_that_no_valued_sample_has_is_not_called_the_weakest():
    valuation = torch.tensor([[0.2, 0.4], [0.9, 0.7], [0.0, 0.0]])
    presence = torch.tensor([[True, True, False], [True, True, False]])
    shares = resampling_frequency(valuation, "modality", presence=presence)
    assert shares[2] == 0 and shares[1] == 0 and torch.isclose(shares[0], torch.tensor(0.5 / 1.5).double())


def test_a_subset_in_which_nobody_has_a_modality_is_shown_and_not_saved(tmp_path):
    walk = [None, None, np.ones((2, 4)), np.zeros((2, 6))]
    data = multimodal_data(dict(walk=walk, sure=np.arange(4.0)), [0, 1, 0, 1], layout=dict(walk="channels_first"))
    nobody = data.subset([0, 1])
    assert "100% missing" in repr(nobody)
    gone = MultimodalData("g", dict(a=[1.0, np.nan], b=[1.0, 2.0]), [0, 1]).subset([1])
    with pytest.raises(ValueError, match="no sample has this modality: select the others"):
        gone.save(tmp_path / "x.npz")
