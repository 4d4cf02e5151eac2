"""Columns and labels of every sort become one kind of data set, and come back from a file."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.labels import encode_labels
from mmlit.data.loaders import multimodal_data, multimodal_dls
from mmlit.data.pictures import PictureFiles
from mmlit.data.values import as_column


def test_memory_mapped_columns_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(multimodal_data(dict(a=x, b=x), np.arange(50) % 2).xs["a"], x)


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


def test_a_picture_column_reads_what_is_asked_for_in_its_order(tmp_path):
    from PIL import Image

    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (5, 9), colour).save(tmp_path / f"{i}.png")
    column = as_column([tmp_path / f"{i}.png" for i in range(3)], size=4)
    assert isinstance(column, PictureFiles) and column.shape == (3, 3, 4, 4) and len(column.take([2, 0])) == 2
    assert np.array_equal(column.take([2, 0])[[0, 1]], column[[2, 0]])
    assert column[[2, 0]][:, :, 0, 0].tolist() == [list(colours[2]), list(colours[0])]


def test_labels_come_back_by_their_names():
    rng = np.random.default_rng(0)
    for y in (rng.choice(["b", "a", "c"], 50), rng.integers(-3, 3, 50), rng.integers(0, 2, 50).astype(bool)):
        codes, names, _ = encode_labels(y)
        assert codes.dtype == np.int64 and [names[c] for c in codes] == [str(v) for v in y]
        again, same, _ = encode_labels([names[c] for c in codes], names)
        assert same == names and np.array_equal(again, codes)
    assert encode_labels([1, 2], classes=[]).y.dtype == np.float32


def test_a_subset_of_a_subset_is_the_subset_of_its_rows():
    rng = np.random.default_rng(0)
    data = MultimodalData(
        "d", dict(a=rng.normal(size=(9, 2)), b=list("abcdefghi")), [0, 1, 2] * 3, groups=list("aabbccdde")
    )
    rows = np.array([8, 1, 4, 0])
    part, direct = data.subset(rows).subset([2, 0]), data.subset(rows[[2, 0]])
    assert (
        np.array_equal(part.xs["a"], direct.xs["a"]) and part.xs["b"].tolist() == ["e", "i"] == direct.xs["b"].tolist()
    )
    assert part.classes == data.classes and part.y.tolist() == [1, 2] and part.kinds == data.kinds


@pytest.mark.parametrize("name", ["y", "groups", "classes", "kinds", "file"])
def test_a_file_never_takes_a_modality_for_something_else(name, tmp_path):
    with pytest.raises(ValueError, match=f"under the name {name!r}: rename"):
        MultimodalData("d", {name: [1.0, 2.0]}, [0, 1]).save(tmp_path / "d.npz")


def bad_inputs():
    "What is wrong -> xs, options, message."
    rng, ones = np.random.default_rng(0), np.ones((20, 2))
    walks = [rng.normal(size=(2 + i % 3, 4)) for i in range(20)]
    odd = lambda rows, row: [row if i == 5 else r for i, r in enumerate(rows)]
    kinds = dict(kinds=dict(m="tokens"))
    other = "in row 5, and its other rows are arrays or lists"
    empty = "row 5 of modality 'm' has no steps .* give None, which says"
    return {
        "a word for all layouts": (walks, dict(layout="time_first"), "layout is 'time_first', expected a dict"),
        "a list of layouts": (walks, dict(layout=["time_first"]), "layout is .* expected a dict"),
        "a word for all kinds": (walks, dict(kinds="sequence"), "kinds is 'sequence', expected a dict"),
        "a word among sequences": (odd(walks, "foo"), {}, f"holds str .'foo'. {other}"),
        "a word among vectors": (odd(list(ones), "foo"), {}, f"holds str .'foo'. {other}"),
        "a word among ids": (odd([[1, 2]] * 20, "foo"), kinds, f"holds str .'foo'. {other}"),
        "a number among sequences": (odd(walks, 5.0), {}, f"holds float .5.0. {other}"),
        "a dict among sequences": (odd(walks, {}), {}, f"holds dict .* {other}"),
        "a sequence without steps": (odd(walks, np.zeros((0, 4))), {}, empty),
        "a row without ids": (odd([[1, 2]] * 20, []), kinds, empty),
        "no steps anywhere": (np.zeros((20, 3, 0)), {}, r"without a number, shape .20, 3, 0.: leave it out"),
        "an empty dict": ({}, {}, "modality 'm' is a dict without arrays"),
        "an empty dict of some": ({}, dict(presence=np.ones((20, 2), dtype=bool)), "is a dict without arrays"),
        "empty dicts": ([{}] * 20, {}, "modality 'm' is a dict without arrays"),
    }


@pytest.mark.parametrize("what", bad_inputs())
def test_bad_input_is_refused_with_what_was_given_and_the_remedy(what):
    column, options, message = bad_inputs()[what]
    with pytest.raises((ValueError, TypeError), match=message):
        multimodal_data(dict(m=column, plain=np.arange(20.0)), [0, 1] * 10, **options)


def test_rows_and_options_of_loaders_are_refused_before_training():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(a=rng.normal(size=60), s=["x", "y"] * 30, b=rng.normal(size=60), y=[0, 0, 1, 1] * 15))
    columns = dict(u=["a", "s"], v=["b"])
    loaders = lambda y="y", **options: multimodal_dls(frame, y, modalities=columns, device="cpu", **options)
    for empty in (frame.head(0), frame.iloc[[]].reset_index(drop=True)):
        with pytest.raises(ValueError, match="there are no rows to predict: modality 'u' is an empty DataFrame"):
            loaders().test_dl({m: empty[c] for m, c in columns.items()})
    with pytest.raises(ValueError, match="there are no rows to predict, the list is empty"):
        loaders().test_dl([])
    with pytest.raises(TypeError, match=r"the transform of modality 'v' is the class PCA, .* object of it, PCA\(\)"):
        loaders(transform=dict(v=PCA))
    with pytest.raises(TypeError, match=r"transform is PCA\(\), expected a dict"):
        loaders(transform=PCA())
    for y, message in (
        (np.zeros(60, dtype=int), "one class only, '0': give rows of another class"),
        (np.ones(60), "y is 1.0 in all training rows of data: nothing can be learnt, give targets that differ"),
        (np.c_[frame.a, np.full(60, 3.0)], "y is 3.0 in column 1 in all .* leave this column out"),
    ):
        with pytest.raises(ValueError, match=message):
            loaders(y, task="classification" if y.dtype.kind == "i" else "regression")
    ids = dict(t=rng.integers(1, 9, (60, 5)), v=frame[["b"]])
    dls = multimodal_dls(ids, frame.y, kinds=dict(t="tokens"), device="cpu")
    with pytest.raises(ValueError, match=r"'t': word ids run from 40 to 40, outside 0\.\.8, .*: replace others"):
        dls.test_dl(dict(t=np.full((2, 5), 40), v=frame[["b"]][:2]))
