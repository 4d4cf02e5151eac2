"A split that the data come with: read, kept, used by loaders, comparisons, audits and the command line."

import warnings

import numpy as np
import pandas as pd
import pytest

from mmlit.audits.audit import audit
from mmlit.benchmark.comparison import compare
from mmlit.cli import main
from mmlit.data.columns import MultimodalData
from mmlit.data.files import data_digest, load_npz
from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.training import Budget

SMALL = Budget(epochs=2, bs=16, width=4)


def columns(n=120, seed=0):
    rng, y = np.random.default_rng(seed), np.arange(n) % 3
    return dict(a=rng.normal(size=(n, 3)) + y[:, None], b=rng.normal(size=(n, 2))), np.array(list("xyz"))[y]


@pytest.fixture
def data():
    xs, y = columns()
    return multimodal_data(xs, y, split=["train"] * 70 + [None] * 10 + ["test"] * 40)


def test_every_way_to_give_a_split_is_the_same_split(data):
    xs, y = columns()
    frame = pd.DataFrame(dict(a=xs["a"][:, 0], b=xs["b"][:, 0], y=y, part=[w or np.nan for w in data.parts]))
    rows = dict(train=range(70), test=range(80, 120))
    made = [
        multimodal_data(frame, "y", dict(a="a", b="b"), split="part"),
        multimodal_data(xs, y, split=rows),
        multimodal_data(xs, y).with_split(data.parts),
        multimodal_data(xs, y).with_split(pd.Series(data.parts)),
    ]
    assert all(np.array_equal(other.parts, data.parts) for other in made)
    assert "70 train, 0 valid, 40 test" in repr(data)


def test_a_split_follows_its_index():
    frame = pd.DataFrame(dict(a=range(40), b=range(40), y=[0, 1] * 20), index=[f"r{i}" for i in range(40)])
    split = pd.Series(["train"] * 30 + ["test"] * 10, index=frame.index)
    moved = split.sample(frac=1, random_state=0)
    made = MultimodalData("m", dict(a=frame[["a"]], b=frame[["b"]]), frame["y"], split=moved)
    assert list(made.parts) == list(split)
    with pytest.raises(ValueError, match="different order"):
        MultimodalData("m", dict(a=frame[["a"]], b=frame[["b"]]), list(frame["y"]), split=moved)


def test_names_of_rows_are_not_taken_for_positions(data):
    xs, y = columns()
    frame = pd.DataFrame(dict(y=y), index=np.arange(120)[::-1])
    with pytest.raises(ValueError, match="a pandas Index holds names of rows: give table.index.get_indexer"):
        multimodal_data(xs, y, split=dict(train=frame.index[:70], test=frame.index[80:]))
    with pytest.raises(ValueError, match="the split has an index, and the rows of .* are known by position"):
        data.with_split(pd.Series(data.parts, index=frame.index))


def test_a_split_of_which_a_part_is_gone_is_no_split(data):
    with pytest.raises(ValueError, match="60 training and 0 test rows are here: give another, data.with_split"):
        multimodal_dls(data.subset(np.arange(60)), device="cpu")


def test_loaders_keep_the_given_test_rows_and_cut_validation_rows_anew_for_each_seed(data):
    dls = [multimodal_dls(data, seed=seed, bs=16, device="cpu") for seed in range(5)]
    assert all(list(d.split.test) == list(range(80, 120)) for d in dls)
    assert sorted(np.concatenate([d.split.valid for d in dls])) == list(range(70))  # disjoint, and all of it
    own = data.with_split(np.where(np.arange(120) < 20, "valid", data.parts))
    for seed in range(2):
        split = multimodal_dls(own, seed=seed, device="cpu").split
        assert list(split.valid) == list(range(20)) and list(split.train) == list(range(20, 70))
    assert list(multimodal_dls(data, split=dict(train=range(60), test=range(60, 90)), device="cpu").split.test)[0] == 60
    parts = np.arange(60), np.arange(60, 90), np.arange(90, 120)
    assert all(map(np.array_equal, multimodal_dls(data, split=parts, device="cpu").split, parts))


def test_a_given_split_tears_no_group_apart_unsaid():
    xs, y = columns()
    with pytest.raises(ValueError, match="group 9 is in both train and test"):
        multimodal_dls(xs, y, groups=np.arange(120) // 8, split=["train"] * 78 + ["test"] * 42, device="cpu")
    dls = multimodal_dls(xs, y, groups=np.arange(120) // 8, split=["train"] * 80 + ["test"] * 40, device="cpu")
    assert not set(dls.split.train // 8) & set(dls.split.valid // 8)


def test_test_rows_that_are_also_in_training_are_counted():
    xs, y = columns()
    for x in xs.values():
        x[100:103] = x[:3]
    with pytest.warns(UserWarning, match="3 of 40 test rows of data are also in the training or validation part"):
        multimodal_data(xs, y, split=["train"] * 80 + ["test"] * 40)


def test_equal_rows_are_counted_across_the_split_that_is_used_in_whatever_form_it_comes():
    half, y = {m: x[:60] for m, x in columns()[0].items()}, np.arange(60) % 3
    xs, y = {m: np.r_[x, x] for m, x in half.items()}, np.r_[y, y]
    inside, across = (np.array(words * 2) for words in (["train"] * 40 + ["test"] * 20, ["train"] * 60))
    across[60:] = ["valid"] * 30 + ["test"] * 30
    forms = (list, pd.Series, lambda words: {p: np.flatnonzero(words == p) for p in np.unique(words)})
    for form in (*forms, lambda words: tuple(np.flatnonzero(words == p) for p in ("train", "valid", "test"))):
        for words in inside, across:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                dls = multimodal_dls(xs, y, split=form(words), device="cpu")
            assert sorted(dls.split.test) == list(np.flatnonzero(words == "test"))
            told = [str(w.message) for w in said if "equal in every modality" in str(w.message)]
            assert len(said) == len(told) == (words is across) and all("30 of 30 test rows" in t for t in told)
    with pytest.warns(UserWarning, match="30 of 30 test rows"):
        multimodal_dls(multimodal_data(xs, y, groups=range(120)), split=across, groups=None, device="cpu")


def test_three_arrays_keep_their_order_and_repeats_at_every_door():
    xs, y = columns()
    order = np.random.default_rng(0).permutation(120)
    train, valid, test = np.r_[order[:70], order[:10]], order[70:90], order[90:]
    data = multimodal_data(xs, y)
    for given in (xs, y), (data,):
        dls = multimodal_dls(*given, split=(train, valid, test), device="cpu")
        assert all(map(np.array_equal, dls.split, (train, valid, test)))
        assert np.array_equal(np.concatenate([b[-1].numpy() for b in dls[2]]), data.y[test])
        dls = multimodal_dls(*given, split=(order[:90], [], test), device="cpu")
        assert [len(part) for part in dls.split] == [72, 18, 30]


def test_equal_rows_of_different_groups_are_counted_unless_each_row_is_a_group():
    xs, y = columns()
    for x in xs.values():
        x[100:103] = x[:3]
    with pytest.warns(UserWarning, match="6 of 120 rows of data are equal, in every modality, to a row of another"):
        multimodal_data(xs, y, groups=np.arange(120) // 4)
    with warnings.catch_warnings(action="error"):
        multimodal_data(xs, y, groups=np.arange(120) % 100)
        multimodal_data(xs, y, groups="duplicates")
        multimodal_data(xs, y, groups=range(120))


def test_a_file_keeps_the_split_and_another_split_is_another_data_set(data, tmp_path):
    data.save(tmp_path / "mine.npz")
    back = load_npz(tmp_path / "mine.npz")
    assert np.array_equal(back.parts, data.parts) and data_digest(back) == data_digest(data)
    assert data_digest(data.with_split(np.where(np.arange(120) < 60, "train", "test"))) != data_digest(data)
    some = data.subset(np.arange(60, 100))
    assert list(some.parts) == list(data.parts[60:100]) and data.select(["b", "a"]).parts is data.parts


def test_official_files_are_joined_by_the_names_of_their_classes(tmp_path):
    xs, y = columns()
    part = lambda rows: multimodal_data({m: x[rows] for m, x in xs.items()}, y[rows], name="set")
    y[80:] = np.where(y[80:] == "x", "z", y[80:])  # a test file without the class x: its codes are others
    joined = joined_parts(part(slice(80)), part(slice(100, 120)), part(slice(80, 100)))
    assert [joined.label(i) for i in (0, 80, 119)] == [y[0], y[80], y[119]] and joined.classes == ["x", "y", "z"]
    assert list(joined.parts[[0, 80, 100]]) == ["train", "valid", "test"]
    with pytest.raises(ValueError, match="the test file has labels for classification, 'x' among them"):
        joined_parts(part(slice(80, 120)), part(slice(80)))
    with pytest.raises(ValueError, match="the test file has the modalities"):
        joined_parts(part(slice(80)), part(slice(80, 120)).select(["a"]))
    own = part(slice(80, 120)).with_split(["train"] * 30 + ["test"] * 10)
    with pytest.raises(
        ValueError, match=r"the test file has a split of its own .test, train.: give its test rows only"
    ):
        joined_parts(part(slice(80)), own)
    assert len(joined_parts(part(slice(80)), own.subset(own.parts == "test"))) == 90


def in_two_files(column, cut=90, one=None, other=None):
    "The first rows and the rest of a modality, as official files of one data set; options for either."
    y, b = np.arange(120) % 2, np.random.default_rng(5).normal(size=(120, 2))
    files = zip((slice(cut), slice(cut, 120)), (one or {}, other or {}))
    return [multimodal_data(dict(m=column[rows], b=b[rows]), y[rows], **options) for rows, options in files]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", [3, 100])
def test_files_of_which_one_has_empty_cells_are_joined_and_filled_as_one_file_is(row):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(120, 3)), columns=["p", "q", "r"])
    table.loc[row, "q"] = np.nan
    table.loc[50] = np.nan  # a row that lacks the modality
    joined = joined_parts(*in_two_files(table))
    whole = multimodal_data(dict(m=table, b=joined.xs["b"]), np.arange(120) % 2, split=["train"] * 90 + ["test"] * 30)
    assert joined.kinds == whole.kinds == dict(m="table", b="vector") and joined.names == whole.names == {}
    assert data_digest(joined) == data_digest(whole) and joined.missing == {"m": 1 / 120}
    made, expected = (multimodal_dls(d, device="cpu")[2].dataset for d in (joined, whole))
    filled = made.batch(made.index)[0]["values"]
    assert filled.equal(expected.batch(expected.index)[0]["values"])
    if row == 100:  # the median of the training rows, scaled by them
        known = table.loc[made.split.train, "q"].dropna()
        assert np.isclose(filled[10, 1], (known.median() - known.mean()) / known.std(ddof=0), atol=1e-6)


def test_files_with_text_in_a_column_of_numbers_or_without_names_are_not_joined():
    table = pd.DataFrame(dict(p=np.arange(120.0), q=np.arange(120) % 7))
    one, _ = in_two_files(table)
    _, other = in_two_files(table.assign(q=["yes", "no"] * 60))
    with pytest.raises(
        ValueError, match="column 'q' of modality 'm' holds text in the test file, and numbers in the training"
    ):
        joined_parts(one, other)
    one, _ = in_two_files(table.to_numpy())
    with pytest.raises(ValueError, match="the test file has the modalities"):
        joined_parts(one, other)


@pytest.mark.parametrize("layout", ["time_first", "channels_first"])
@pytest.mark.parametrize("ragged", ["train", "test"])
@pytest.mark.parametrize("said", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_which_one_has_rows_of_one_length_are_joined_as_one_file_is(layout, ragged, said):
    rng, cut = np.random.default_rng(0), 90
    steps = [6 if (i < cut) == (ragged == "test") else 3 + i % 5 for i in range(120)]
    rows = [rng.normal(size=(t, 4) if layout == "time_first" else (4, t)) for t in steps]
    options = dict(layout=dict(m=layout)) if said else {}
    joined = joined_parts(*in_two_files(rows, cut, options, options))
    for row, kept in zip(rows, joined.xs["m"].rows):
        assert np.array_equal(row.T if layout == "time_first" else row, kept)
    assert joined.layout == dict(m=layout) and joined.kinds["m"] == "sequence"
    dls = multimodal_dls(joined, device="cpu")  # new rows come as those of the files did
    made = dls.test_dl(dict(m=rows[:1], b=joined.xs["b"][:1])).dataset
    assert np.array_equal(made.xs["m"].rows[0], joined.xs["m"].rows[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_ids_and_of_one_channel_of_which_one_has_rows_of_one_length_are_joined():
    rng = np.random.default_rng(0)
    lengths = [2 + i % 4 if i < 90 else 3 for i in range(120)]
    for draw, kind in ((lambda t: rng.integers(1, 9, t), "tokens"), (lambda t: rng.normal(size=t), "sequence")):
        rows = [draw(t) for t in lengths]
        for files in (in_two_files(rows), in_two_files(rows[::-1], 30)):
            joined = joined_parts(*files)
            assert joined.kinds["m"] == kind and joined.xs["m"].lengths.tolist() in (lengths, lengths[::-1])
    _, other = in_two_files(rng.normal(size=(120, 4, 5)))
    one, _ = in_two_files(rows)  # of one axis, and these have two
    with pytest.raises(ValueError, match="the test file has the modalities"):
        joined_parts(one, other)


def test_a_comparison_on_a_given_split_has_intervals_over_initialisations_and_test_rows(data, tmp_path):
    options = dict(methods=["ensemble", "joint"], budget=SMALL, out=tmp_path, workers=1, progress=False)
    found = compare(data, seeds=2, **options)
    assert found.runs.n_test.eq(40).all() and np.isfinite(found.rows["data"]["joint"][1]).sum() == 40
    value, difference = found.intervals("data")["joint"]
    assert value.low < value.mean < value.high and difference.low < difference.mean < difference.high
    assert found.table.set_index("method").low["joint"] == value.low
    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf8")
    assert "the split that came with the data" in page and "Nadeau" not in page
    one = compare(data, seeds=1, **options)
    assert np.isfinite(one.intervals("data")["joint"]).all()  # over test rows, where splits would need several seeds
    assert found.intervals("data", "log_loss")["joint"][0].mean > 0


def test_an_audit_of_a_recipe_on_a_given_split_says_what_its_intervals_are_over(data, tmp_path):
    found = audit(data=data, seeds=2, budget=SMALL, out=tmp_path, workers=1, progress=False)
    assert found.facts["n_test"] == 40 and "bootstrap over test samples" in found.facts["intervals"]
    assert "over seeds" in found.facts["intervals"] and "Nadeau" not in found.facts["intervals"]


def test_the_command_line_takes_the_files_of_an_official_split(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xs, y = columns()
    for name, rows in dict(train=slice(60), valid=slice(60, 80), test=slice(80, 120)).items():
        multimodal_data({m: x[rows] for m, x in xs.items()}, y[rows]).save(f"{name}.npz")
    small = "--methods ensemble,joint --seeds 1 --epochs 1 --width 4 --bs 16 --workers 1".split()
    main(["compare", "--data", "train.npz", "--valid", "valid.npz", "--test", "test.npz", *small])
    runs = pd.read_csv("runs/scores.csv")
    assert runs.n_test.eq(40).all() and runs.n_train.eq(60).all()
    page = (tmp_path / "runs" / "compare.html").read_text(encoding="utf8")
    assert "--test test.npz --valid valid.npz" in page or "--valid valid.npz --test test.npz" in page
    with pytest.raises(SystemExit, match="--valid is given without --test"):
        main(["compare", "--data", "train.npz", "--valid", "valid.npz"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main(["data", "train.npz"])
    assert "60 rows" in capsys.readouterr().out
