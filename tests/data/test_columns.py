"""Columns and labels of every sort become one kind of data set, and come back from a file."""

import numpy as np
import pandas as pd
import pytest
import torch

from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.labels import encode_labels
from mmlit.data.loaders import multimodal_data
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
