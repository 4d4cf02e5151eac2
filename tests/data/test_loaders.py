"""fastai gets what it needs, what is fitted sees the training part only, and bad input is refused at the door."""

import random
import warnings

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
from torch import nn

matplotlib.use("agg")

from mmlit.data.catalogue import DATASETS, load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.data.pictures import PictureFiles
from mmlit.data.show import show_samples
from mmlit.data.splits import grouped_split
from mmlit.data.tasks import CompetitionTask, competition_task

TASKS = [name for name, info in DATASETS.items() if info.source == "mmlit"]


# --- what is fitted sees the training part only


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


# --- batches


def test_batch_index_names_the_rows_of_the_batch_also_when_shuffled(emoji):
    dls = multimodal_dls(emoji, bs=100, device="cpu", min_count=1)
    for part, dl in zip(dls.split, dls):
        rows = []
        for picture, _, y in dl:
            rows.append(dl.batch_index)
            assert np.array_equal(emoji.y[dl.batch_index], y)
            assert dl.batch_keep.all() and dl.batch_keep.shape == (len(y), 2)
            drawn, original = dl.encoders["picture"].decode(picture), emoji.xs["picture"][dl.batch_index]
            torch.testing.assert_close(drawn, torch.as_tensor(original).double(), atol=1e-2, rtol=0)
        rows = torch.cat(rows)
        assert len(rows) == (len(part) // 100 * 100 if dl is dls.train else len(part))
        assert set(rows.tolist()) <= set(part.tolist())
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


# --- fastai


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
        (dict(fou=np.zeros((2, 76)), zehr=np.zeros((2, 47))), r"modality 'zer' is missing \(is it 'zehr'\?\)"),
        ((np.zeros((2, 76)), np.zeros((3, 47)), np.zeros((2, 6))), "different length"),
        ((np.array([[np.nan] + [0] * 75] * 2), np.zeros((2, 47)), np.zeros((2, 6))), "NaN"),
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


@pytest.mark.parametrize("name", TASKS)
def test_tasks_go_through_the_door(name):
    dls = multimodal_dls(load_dataset(name, n=200), device="cpu")
    assert dls.c == len(DATASETS[name].classes) and len(dls.one_batch()) == dls.n_inp + 1
    assert isinstance(competition_task(), CompetitionTask)


def test_dollars_are_drawn_as_dollars(tmp_path):
    data = MultimodalData(
        "shop", {"text $_1_2$": ["was $53 now $7", "a $_a^ b $", "c", "d"], "b": np.zeros((4, 2))}, [0, 1, 0, 1]
    )
    fig = show_samples(data, range(4))
    fig.savefig(tmp_path / "fig.png")
    assert fig.axes[0].texts[0].get_text() == "was $53 now $7" and not fig.axes[0].texts[0].get_parse_math()
    plt.close(fig)


# --- the user's own data

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
        r"unknown label 'c'; known: a, b",
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
    "labels mixed": (lambda: multimodal_dls((X, X), ["a", None] * 20), r"y has no value in 20 of 40 rows"),
    "two labels a row": (lambda: multimodal_dls((X, X), (9 * X).astype(int)), r"y has shape \(40, 3\)"),
    "class not in data": (
        lambda: multimodal_dls((X, X), Y, classes=["a", "b", "c"]),
        r"class 'c' is missing from the training part",
    ),
    "class not in training part": (
        lambda: multimodal_dls((X, X), Y, split=(np.arange(0, 30, 2), np.arange(1, 20, 2), np.arange(21, 40, 2))),
        r"class '1' is missing from the training part",
    ),
    "rare class": (lambda: multimodal_dls((X, X), np.r_[Y[:-1], 2]), r"class '2' has 1 rows, fewer than 5 folds"),
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
    "five axes": (lambda: multimodal_dls((X, X.reshape(40, 1, 1, 1, 3)), Y), r"expected 1, 2 or 3 axes beside the row"),
    "ragged in both axes": (
        lambda: multimodal_dls((X, [np.zeros((2, 3)), np.zeros((3, 2))] * 20), Y),
        r"rows of modality 'x2' differ in both axes",
    ),
    "missing everywhere": (
        lambda: multimodal_dls((X, [None, float("nan")] * 20), Y),
        r"modality 'x2' is missing in all",
    ),
    "missing cell": (
        lambda: multimodal_dls((X, np.array([[1, 2], [np.nan, 2]] * 20)), Y),
        r"modality 'x2' has NaN or infinity in 20 of 40 rows, the first is row 1, column 0",
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
    "unknown kind": (
        lambda: multimodal_dls((X, X), Y, kinds=dict(x1="sound")),
        r"unknown kind of modality 'x1': 'sound'; known: vector",
    ),
    "kind of nothing": (lambda: multimodal_dls((X, X), Y, kinds=dict(z="vector")), r"kinds are given for"),
    "names": (lambda: multimodal_dls((X, X), Y, modalities=["a", "b", "c"]), r"got 2 modalities and 3 names"),
    "unknown modality": (
        lambda: multimodal_dls(load_dataset("mfeat"), modalities=["fou", "fuo"]),
        r"unknown modality of mfeat: 'fuo' \(did you mean 'fou'\?\)",
    ),
    "frame without names": (lambda: multimodal_dls(pd.DataFrame(X), Y), r"for a DataFrame give modalities"),
    "unknown column": (
        lambda: multimodal_dls(pd.DataFrame(X), Y, modalities=dict(a=[0, 1], b="c")),
        r"unknown column of the DataFrame: 'c'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_an_option_that_loaders_do_not_have_is_refused(emoji):
    dls = multimodal_dls(emoji, device="cpu")
    with pytest.raises(ValueError, match="unknown option of MultimodalDL: 'shuffled'"):
        dls.train.new(shuffled=True)
    with pytest.raises(ValueError, match="unknown option of MultimodalDL: 'batchsize'"):
        dls.test_dl(emoji, batchsize=3)
    assert dls.test_dl(emoji, bs=7).one_batch()[0].shape[0] == 7
    with pytest.raises(TypeError, match="max"):
        dls.show_batch(max=2)


def test_rows_that_processes_share_are_encoded_without_a_warning(request):
    "Workers get arrays that may not be written to; torch warns of these, and the warning would stand under a table."
    rng = np.random.default_rng(0)
    x, pair = rng.normal(size=(60, 4)), dict(a=rng.normal(size=(60, 3)), b=rng.integers(0, 9, (60, 2)))
    data = multimodal_data(dict(x=x, pair=pair), np.arange(60) % 2)
    for column in (data.xs["x"], *data.xs["pair"].arrays.values()):
        column.flags.writeable = False
    request.addfinalizer(lambda: torch.set_warn_always(False))
    torch.set_warn_always(True)  # it says this once in a process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert multimodal_dls(data, bs=8, device="cpu").one_batch()[0].isfinite().all()
