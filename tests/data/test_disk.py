"Tables on disk: what is read is what was written, rows go together by name, and what is in doubt is refused."

import contextlib
import importlib.util
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmlit.data.columns import MultimodalData
from mmlit.data.disk import load_table, read_split
from mmlit.data.files import data_digest
from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.data.pictures import PictureFiles

N = 60
VIEWS = dict(rna="rna_*", clinic=["age", "sex"])


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    numbers = {f"rna_{i}": rng.normal(size=N) / 3 for i in range(4)}
    sex, stage = rng.choice(["f", "m"], N), rng.choice(["early", "late"], N)
    names = [f"p{i}" for i in range(N)]
    return pd.DataFrame(numbers | dict(age=rng.integers(20, 90, N), sex=sex, stage=stage, patient=names))


def quietly(*args, **options):
    "Nothing is said."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_table(*args, **options)


def files(folder, **tables):
    folder.mkdir(exist_ok=True)
    for name, t in tables.items():
        t.to_csv(folder / f"{name}.csv", index=False)
    return folder


# ---- one file


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_file_gives_the_data_of_the_table(table, tmp_path, kind):
    path = tmp_path / f"study.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    found = quietly(path, VIEWS, "stage")
    xs = dict(rna=table[[f"rna_{i}" for i in range(4)]], clinic=table[["age", "sex"]])
    assert found.name == "study" and data_digest(found) == data_digest(MultimodalData("study", xs, table.stage))
    assert found.classes == ["early", "late"] and found.xs["clinic"].sorts == dict(age="number", sex="category")


def test_an_index_of_a_parquet_file_is_a_column(table, tmp_path):
    table.set_index("patient").to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="also matches 'patient', the names of rows: left out"):
        found = load_table(tmp_path / "a.parquet", dict(rna="rna_*", rest="[pa]*"), "stage", index="patient")
    assert found.xs["rest"].tolist() == table[["age"]].values.tolist()


def test_row_numbers_that_a_parquet_file_keeps_are_no_input(table, tmp_path):
    "As they are none in a CSV file: rows that are sorted by their label would give it away."
    moved = table.sample(frac=1, random_state=0)
    moved.to_parquet(tmp_path / "a.parquet")
    moved.to_csv(tmp_path / "a.csv")
    for kind in "parquet", "csv":
        with pytest.warns(UserWarning, match="'Unnamed: 0'.*left out"):
            found = load_table(tmp_path / f"a.{kind}", dict(rna=["rna_0", "rna_1"], rest="[!rp]*"), "stage")
        assert [*found.xs["rest"].frame] == ["age", "sex"]


def test_parquet_without_pyarrow_says_what_to_install(table, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="a.parquet is a parquet file.*pip install pyarrow"):
        load_table(tmp_path / "a.parquet", VIEWS, "stage")


def test_patterns_leave_out_what_is_no_input_and_say_so(table, tmp_path):
    table.assign(rna_split="train").to_csv(tmp_path / "a.csv")  # with row numbers, as pandas does by default
    with pytest.warns(UserWarning) as said:
        found = load_table(tmp_path / "a.csv", dict(age="age", rest="[!a]*"), "stage", groups="patient")
    (text,) = [str(w.message) for w in said if "pattern" in str(w.message)]
    assert "'[!a]*' for modality 'rest' also matches 'Unnamed: 0', the names of rows, and 2 more: left out" in text
    assert list(found.xs["rest"].sorts) == [*(f"rna_{i}" for i in range(4)), "sex", "rna_split"]
    assert found.groups.max() == N - 1


def test_split_groups_and_several_labels_are_columns(table, tmp_path):
    labels = dict(label_a=[0, 1, 1] * 20, label_b=[1, 1, 0] * 20)
    made = table.assign(part=["train", "dev", "test", ""] * 15, ward=np.arange(N) // 4 * 4 + np.arange(N) % 4, **labels)
    made.to_csv(tmp_path / "a.csv", index=False)
    for target in ("label_*", ["label_a", "label_b"]):
        found = quietly(tmp_path / "a.csv", VIEWS, target, split="part", groups="ward")
        assert found.task == "multi-label" and found.classes == ["label_a", "label_b"]
        assert np.array_equal(found.y, np.stack(list(labels.values()), 1))
        assert found.parts.tolist() == ["train", "valid", "test", ""] * 15
    ages = dict(rna="rna_*", sex="sex")
    assert quietly(tmp_path / "a.csv", ages, "age", task="regression").y.tolist() == table.age.tolist()


def test_names_of_pictures_start_at_the_folder_of_the_table(table, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(N):
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    made = table.assign(photo=[f"pictures/{i}.png" for i in range(N)])
    made.to_csv(tmp_path / "a.csv", index=False)
    found = quietly(tmp_path / "a.csv", dict(photo="photo", rna="rna_*"), "stage")
    assert isinstance(found.xs["photo"], PictureFiles) and found.kinds["photo"] == "picture"
    assert found.xs["photo"][[7]].max() == 7
    with pytest.raises(ValueError, match="'photo' of modality 'a' holds names of pictures, beside other columns"):
        load_table(tmp_path / "a.csv", dict(a=["photo", "age"], rna="rna_*"), "stage")
    made.loc[3, "photo"] = None
    made.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="'photo' has no picture in 1 rows, the first is row 3"):
        load_table(tmp_path / "a.csv", dict(photo="photo", rna="rna_*"), "stage")


def test_gaps_repeats_and_leaks_are_still_said(table, tmp_path):
    twice = pd.concat([table, table.iloc[:3]], ignore_index=True)
    twice.loc[5, "age"] = None
    twice["part"] = ["test" if i < 3 else "train" for i in range(len(twice))]
    twice.to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(UserWarning, match="'clinic' has 1 empty cells"):
        load_table(tmp_path / "a.csv", VIEWS, "stage")
    with pytest.warns(UserWarning, match="3 of 63 rows of a repeat"):
        load_table(tmp_path / "a.csv", VIEWS, "stage")
    with pytest.warns(UserWarning, match="3 of 3 test rows of a are also in the training"):
        load_table(tmp_path / "a.csv", VIEWS, "stage", split="part")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(modalities=dict(a="rna_9", b="age")),
            "for modality 'a': 'rna_9' .did you mean 'rna_",
        ),
        (dict(modalities=dict(a="dna_*", b="age")), "pattern 'dna_.' for modality 'a' matches no column; a has rna_0"),
        (dict(modalities=dict(a="sta*", b="age")), "matches only 'stage', which holds the target"),
        (dict(modalities=dict(a="rna_*", b=["age", "rna_1"])), "'rna_1' is in two modalities, 'a' and 'b'"),
        (dict(modalities=dict(a="rna_*", b="stage")), "'stage' holds the target, and is named for modality 'b'"),
        (
            dict(modalities=dict(a="rna_*", b="sex"), groups="sex"),
            "'sex' holds the groups, and is named for",
        ),
        (dict(modalities=dict(a="rna_*", b="sex"), split="sex"), "'sex' holds the split, and is named"),
        (dict(modalities=dict(a="rna_*", b="patient"), index="patient"), "'patient' holds the names of rows, and is"),
        (dict(modalities=None), "modalities are missing: give name -> columns"),
        (dict(modalities=["rna", "clinic"]), "modalities are missing"),
        (dict(target=None), "target is missing: give the column of labels; columns: rna_0"),
        (dict(target="stege"), "unknown column of a, for the target: 'stege' .did you mean 'stage'"),
        (dict(groups="ptient"), "for the groups: 'ptient' .did you mean 'patient'"),
        (dict(split="part"), "unknown column of a, for the split: 'part'"),
        (dict(split=["train", "test"]), "split has shape .2,., expected a word for each of 60 rows"),
        (dict(index="sex"), "column 'sex' of .*a.csv names no rows: '[fm]' is in two rows; a column of groups"),
        (dict(task="regressio"), "did you mean 'regression'"),
        (dict(valid="b.csv"), "valid is given without test"),
        (dict(test="gone.csv"), "gone.csv does not exist"),
    ],
)
def test_what_is_wrong_is_said(table, tmp_path, options, message):
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "a.csv", **(dict(modalities=VIEWS, target="stage") | options))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "x,y,x\n1,2,3\n", "two columns 'x'"),
        ("a.csv", "x;y\n1;2\n", "seems separated by ';': expected ','"),
        ("a.tsv", "x,y\n1,2\n", "seems separated by ','"),
        ("a.csv", "", "cannot be read as a table"),
        ("a.csv", "x,y\n", "has no rows"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", "cannot be read as a table"),
        ("a.parquet", "no parquet", "cannot be read as a table"),
        ("a.xlsx", "x", "unknown kind of table 'a.xlsx'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / name, dict(a="x", b="y"), "z")


def test_of_many_columns_only_the_nearest_are_listed(tmp_path):
    wide = pd.DataFrame(np.zeros((4, 5000)), columns=[f"gene_{i}" for i in range(5000)])
    wide.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=r"a .5000 columns., for the target: 'gene_4x'") as told:
        load_table(tmp_path / "a.csv", dict(a="gene_1*"), "gene_4x")
    assert len(str(told.value)) < 300


# ---- a folder


def by_file(table):
    rna = table[["patient", *(f"rna_{i}" for i in range(4))]]
    return dict(rna=rna, clinic=table[["patient", "age", "sex"]], labels=table[["patient", "stage"]])


def test_rows_of_a_folder_go_together_by_name(table, tmp_path):
    tables = by_file(table)
    shuffled = np.random.default_rng(1).permutation(N)
    folder = files(tmp_path / "study", **(tables | dict(rna=tables["rna"].iloc[shuffled])))
    found = quietly(folder, target="stage", index="patient")  # clinic comes first
    whole = MultimodalData("x", dict(clinic=table[["age", "sex"]], rna=tables["rna"].iloc[:, 1:]), table.stage)
    assert found.name == "study" and data_digest(found) == data_digest(whole)
    with pytest.warns(UserWarning, match="joined by their column 'patient'"):
        assert data_digest(load_table(folder, target="labels.stage")) == data_digest(found)


def test_a_folder_may_mix_kinds_of_files_and_arrays(table, tmp_path):
    folder = files(tmp_path / "study", labels=table[["patient", "stage"]])
    table[["age", "sex", "patient"]].to_parquet(folder / "clinic.parquet")
    pictures = np.random.default_rng(0).random((N, 3, 4, 4)).astype(np.float32)
    np.save(folder / "picture.npy", pictures)
    found = quietly(folder, target="stage", index="patient")
    assert found.kinds == dict(clinic="table", picture="picture") and np.array_equal(found.xs["picture"], pictures)
    (folder / "clinic.parquet").unlink()
    table[["age", "patient"]].iloc[::-1].to_csv(folder / "clinic.csv", index=False)
    with pytest.raises(ValueError, match="different order, and the array picture has no names of rows"):
        load_table(folder, target="stage", index="patient")


def test_modalities_of_a_folder_are_files_or_columns(table, tmp_path):
    folder = files(tmp_path / "study", **by_file(table))
    np.save(folder / "sound.npy", np.random.default_rng(0).random((N, 3)))
    options = dict(target="stage", index="patient")
    assert quietly(folder, ["sound", "rna"], **options).modalities == ["sound", "rna"]
    found = quietly(folder, dict(some=["rna_1", "clinic.age"], wave="sound", sex="sex"), **options)
    assert found.xs["some"].tolist() == table[["rna_1", "age"]].to_numpy().tolist()
    assert list(found.xs["wave"].shape) == [N, 3] and found.kinds["sex"] == "tokens"
    with pytest.raises(ValueError, match="unknown file of study: 'rma' .did you mean 'rna'"):
        load_table(folder, ["rma", "sound"], **options)
    with pytest.raises(ValueError, match="matches no column"):  # of the labels, where they are not named
        load_table(folder, dict(a="rna_*", b="stag*"), "age", index="patient")


def test_a_column_of_several_files_is_asked_for(table, tmp_path):
    tables = by_file(table)
    folder = files(tmp_path / "study", **(tables | dict(rna=tables["rna"].assign(stage="?"))))
    with pytest.raises(ValueError, match=r"'stage', for the target, is in several files of study: say one of"):
        load_table(folder, target="stage", index="patient")
    assert load_table(folder, target="labels.stage", index="patient").classes == ["early", "late"]


def test_samples_that_are_not_in_a_file_lack_what_is_in_it(table, tmp_path):
    tables = by_file(table)
    folder = files(tmp_path / "s", **(tables | dict(rna=tables["rna"].iloc[3:].sample(frac=1, random_state=0))))
    with pytest.warns(UserWarning, match="3 of 60 rows, by 'patient', are not in all files of .*s: 3 are not in rna"):
        found = load_table(folder, target="stage", index="patient")
    assert found.missing == dict(rna=3 / 60) and len(found) == 60
    whole = quietly(files(tmp_path / "w", **tables), target="stage", index="patient")
    assert np.array_equal(found.xs["rna"].values, whole.xs["rna"][3:]) and np.array_equal(found.y, whole.y)


def test_labels_are_needed_of_all_and_names_of_rows_in_common(table, tmp_path):
    tables = by_file(table)
    folder = files(tmp_path / "s", **(tables | dict(labels=tables["labels"].iloc[:-1])))
    with (
        pytest.raises(ValueError, match="y has no value in 1 of 60 rows, the first is row 59"),
        pytest.warns(UserWarning),
    ):
        load_table(folder, target="stage", index="patient")
    other = {name: t.assign(patient=t.patient.str.upper()) if name == "rna" else t for name, t in tables.items()}
    with pytest.raises(ValueError, match="120 of 120 rows, .* no row is in all of them") as told:
        load_table(files(tmp_path / "o", **other), target="stage", index="patient")
    assert "60 are not in labels, the first is 'P0'" in str(told.value)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda t: t.drop(columns="patient"), {}, "no column is in all of them, with another value in each row"),
        (lambda t: t.drop(columns="patient"), dict(index="patient"), "unknown index of .*rna: 'patient'"),
        (
            lambda t: t.assign(patient=["p0", *t.patient[:-1]]),
            dict(index="patient"),
            "'p0' is in two rows",
        ),
        (
            lambda t: t.assign(patient=[None, *t.patient[1:]]),
            dict(index="patient"),
            "it is empty in row 0",
        ),
    ],
)
def test_rows_without_names_are_refused(table, tmp_path, change, options, message):
    tables = by_file(table)
    folder = files(tmp_path / "s", **(tables | dict(rna=change(tables["rna"]))))
    with pytest.raises(ValueError, match=message):
        load_table(folder, target="stage", **options)


def test_two_columns_that_could_name_the_rows_are_in_doubt(table, tmp_path):
    folder = files(tmp_path / "s", **{k: t.assign(row=range(N)) for k, t in by_file(table).items()})
    with pytest.raises(ValueError, match=r"each of \['patient', 'row'\] could tell"):
        load_table(folder, target="stage")


def test_numbers_of_rows_without_a_name_are_no_names_unless_that_is_said(table, tmp_path):
    for k, t in by_file(table).items():
        t.drop(columns="patient").to_csv(tmp_path / f"{k}.csv")
    with pytest.raises(ValueError, match="no column is in all of them"):
        load_table(tmp_path, target="stage")
    assert quietly(tmp_path, target="stage", index="Unnamed: 0").modalities == ["clinic", "rna"]
    for k, t in by_file(table).items():
        t.set_index("patient").rename_axis(None).to_csv(tmp_path / f"{k}.csv")
    with pytest.warns(UserWarning, match="joined by their column 'Unnamed: 0'"):
        assert load_table(tmp_path, target="stage").modalities == ["clinic", "rna"]


def test_numbers_and_words_that_name_one_row_are_one_name(table, tmp_path):
    tables = {k: t.assign(patient=range(N)) for k, t in by_file(table).items()}
    folder = files(tmp_path / "s", labels=tables["labels"], rna=tables["rna"])
    tables["clinic"].assign(patient=[str(i) for i in range(N)]).to_parquet(folder / "clinic.parquet")
    assert len(quietly(folder, target="stage", index="patient")) == N


def test_files_of_a_split_are_read_as_one_table(table, tmp_path):
    first, last = table.iloc[:40].copy(), table.iloc[40:]
    first.loc[2, "rna_1"] = None  # a gap in one file only
    folder = files(tmp_path / "study", train=first, test=last)
    with pytest.warns(UserWarning, match="'rna' has 1 empty cells in 60 rows"):
        found = load_table(folder, VIEWS, "stage")
        pair = load_table(folder / "train.csv", VIEWS, "stage", test=folder / "test.csv")
    assert np.bincount(found.parts == "test").tolist() == [40, 20] and found.name == "study" and pair.name == "train"
    order = np.r_[40:60, :40]  # test.csv is the first file of the folder
    assert found.y.tolist() == pair.y[order].tolist()
    assert len(multimodal_dls(found).split.test) == 20


def test_groups_of_different_files_of_a_split_are_different(table, tmp_path):
    made = table.assign(ward=np.arange(N) % 10)
    folder = files(tmp_path / "study", train=made.iloc[:40], test=made.iloc[40:])
    with pytest.warns(UserWarning, match="10 of the groups 'ward' are in several files of the split of study"):
        assert load_table(folder, VIEWS, "stage", groups="ward").groups.max() == 19


def test_what_a_folder_cannot_hold_is_refused(table, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no .csv, .tsv, .parquet or .npy"):
        load_table(tmp_path / "empty", target="x")
    both = files(tmp_path / "both", train=table, rna=table)
    with pytest.raises(ValueError, match="holds 'train', a part of a split, beside 'rna'"):
        load_table(both, VIEWS, "stage")
    other = files(tmp_path / "other", train=table, test=table.drop(columns="sex"))
    with pytest.warns(UserWarning, match="column 'sex' of .*train.csv, and 0 more, are not in all files of the split"):
        with pytest.raises(ValueError, match="sex"):
            load_table(other, VIEWS, "stage")
    with pytest.raises(ValueError, match="put the test file into it"):
        load_table(other, VIEWS, "stage", test=other / "test.csv")
    twice = files(tmp_path / "twice", rna=table)
    np.save(twice / "rna.npy", np.zeros(3))
    with pytest.raises(ValueError, match="needs another name for the file 'rna'"):
        load_table(twice, target="stage")
    np.save(tmp_path / "both" / "a.npy", np.array([{}], dtype=object))
    (tmp_path / "both" / "train.csv").unlink()
    with pytest.raises(ValueError, match="a.npy cannot be read"):
        load_table(both, target="stage")
    np.save(tmp_path / "both" / "a.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="different numbers of rows: {'rna': 60, 'a': 3}"):
        load_table(both, target="stage")


def test_files_that_are_neither_tables_nor_arrays_are_named(table, tmp_path):
    folder = files(tmp_path / "study", **by_file(table))
    (folder / "readme.md").write_text("x")
    with pytest.warns(UserWarning, match="left out of .*: readme.md"):
        load_table(folder, target="stage", index="patient")


def test_words_of_a_split_are_read(table, tmp_path):
    words = ["train"] * 40 + ["test"] * 20
    (tmp_path / "parts.txt").write_text("\n".join(words) + "\n")
    np.save(tmp_path / "parts.npy", words)
    table.to_csv(tmp_path / "a.csv", index=False)
    for name in ("parts.txt", "parts.npy"):
        found = quietly(tmp_path / "a.csv", VIEWS, "stage", split=read_split(tmp_path / name))
        assert found.parts.tolist() == words
    np.save(tmp_path / "parts.npy", np.zeros(60))
    with pytest.raises(ValueError, match="holds float64 of shape .60,., expected words"):
        read_split(tmp_path / "parts.npy")
    for header, line in (("split", "train"), ("patient,split", "P0,train")):
        (tmp_path / "parts.csv").write_text("\n".join([header, *[line] * 60]))
        with pytest.raises(ValueError, match=f"parts.csv is no file of a split: .*{header}.* in row 0.*one word"):
            read_split(tmp_path / "parts.csv")
    folder = files(tmp_path / "study", **by_file(table))
    with pytest.raises(ValueError, match="whose rows are joined by name: give a column"):
        load_table(folder, target="stage", index="patient", split=words)
    parts = files(tmp_path / "official", train=table, test=table)
    with pytest.raises(ValueError, match="its files are those of a split: leave it out"):
        load_table(parts, VIEWS, "stage", split="sex")


# ---- lists in the cells of a parquet file, and kinds and layouts that are said


def lists(folder, **columns):
    "A parquet file with these columns, a plain one and labels."
    pytest.importorskip("pyarrow")
    n = len(next(iter(columns.values())))
    plain = np.random.default_rng(5).normal(size=n)
    pd.DataFrame(columns | dict(plain=plain, y=["a", "b"] * (n // 2))).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def test_lists_of_different_length_in_parquet_are_rows(tmp_path):
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 9, t).tolist() for t in rng.integers(2, 7, 40)]
    walk = [rng.normal(size=(t, 2)) for t in rng.integers(3, 9, 40)]
    path = lists(tmp_path, ids=ids, walk=[w.tolist() for w in walk])
    data = load_table(path, dict(words="ids", walk="walk", plain="plain"), "y", kinds=dict(words="tokens"))
    assert data.kinds == dict(words="tokens", walk="sequence", plain="vector")
    assert [row.tolist() for row in data.xs["words"].rows] == ids
    assert data.layout == dict(words=None, walk="time_first")
    assert all(np.allclose(row, w.T) for row, w in zip(data.xs["walk"].rows, walk))
    multimodal_dls(data)


def test_lists_of_one_length_are_vectors_and_gaps_are_missing_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    cells = [None if i == 7 else row.tolist() for i, row in enumerate(rows)]
    with pytest.warns(UserWarning, match="lack a modality: 'x' in 2.5%"):
        data = load_table(lists(tmp_path, x=cells), dict(x="x", plain="plain"), "y")
    assert data.kinds["x"] == "vector" and np.flatnonzero(~data.xs["x"].present).tolist() == [7]
    assert np.allclose(data.xs["x"].values, np.delete(rows, 7, 0))


def test_lists_that_are_no_rows_are_refused(tmp_path):
    path = lists(tmp_path, x=[[1.0, 2.0], [3.0]] * 20, u=[["a"], ["b", "c"]] * 20, v=[[[1.0, 2.0], [3.0]]] * 40)
    with pytest.raises(ValueError, match="column 'x' of modality 'm' holds lists, beside other columns"):
        load_table(path, dict(m=["x", "plain"], v="v"), "y")
    with pytest.raises(ValueError, match="row 0 of modality 'u' holds str .*expected numbers"):
        load_table(path, dict(u="u", plain="plain"), "y")
    with pytest.raises(ValueError, match="modality 'v' has rows of different shapes.*pad or cut them"):
        load_table(path, dict(v="v", plain="plain"), "y")


def test_kinds_and_layouts_are_those_that_are_said(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(1, 9, (40, 5))).add_prefix("w").assign(a=rng.normal(size=40), y=["a", "b"] * 20)
    table.to_csv(tmp_path / "t.csv", index=False)
    views = dict(text="w*", a="a")
    data = load_table(tmp_path / "t.csv", views, "y", kinds=dict(text="tokens"))
    assert data.kinds == dict(text="tokens", a="vector")
    assert np.array_equal(data.xs["text"], table.filter(like="w"))
    assert load_table(tmp_path / "t.csv", views, "y").kinds["text"] == "vector"
    with pytest.raises(ValueError, match="unknown modality of t: 'words'"):
        load_table(tmp_path / "t.csv", views, "y", kinds=dict(words="tokens"))
    with pytest.raises(ValueError, match="cannot be of kind 'tokens'"):
        load_table(tmp_path / "t.csv", views, "y", kinds=dict(a="tokens"))
    with pytest.raises(ValueError, match="layout is for sequences"):
        load_table(tmp_path / "t.csv", views, "y", layout=dict(a="time_first"))


def test_a_sign_for_nothing_in_a_file_is_said(table, tmp_path):
    table["age"] = table["age"].astype(str)
    table.loc[7, "age"] = "?"
    for name, write in dict(csv=pd.DataFrame.to_csv, parquet=pd.DataFrame.to_parquet).items():
        write(table, tmp_path / f"a.{name}", index=False)
        said = (
            "column 'age' of modality 'clinic' holds numbers written as text, all but 1, the first of them '?' in row 7"
        )
        with pytest.warns(UserWarning, match=said.replace("?", "[?]")):
            load_table(tmp_path / f"a.{name}", VIEWS, "stage")
    table.loc[7, "age"] = ""  # the remedy
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(UserWarning, match="1 empty cells in 60 rows .'age' 1"):
        assert load_table(tmp_path / "a.csv", VIEWS, "stage").xs["clinic"].sorts["age"] == "number"


def test_a_column_that_one_file_of_a_split_has_alone_is_left_out_and_said(table, tmp_path):
    folder = files(tmp_path / "study", train=table.iloc[:40].assign(memo="x"), test=table.iloc[40:])
    with pytest.warns(UserWarning, match="column 'memo' of .*train.csv, and 0 more, are not in all files of the split"):
        found = load_table(folder, VIEWS, "stage")
    plain = files(tmp_path / "plain", train=table.iloc[:40], test=table.iloc[40:])
    assert data_digest(found) == data_digest(load_table(plain, VIEWS, "stage"))


def test_a_column_name_with_a_space_around_it_is_said(table, tmp_path):
    table.rename(columns={table.columns[0]: f" {table.columns[0]}"}).to_csv(tmp_path / "spaced.csv", index=False)
    with pytest.warns(UserWarning, match=f"column ' {table.columns[0]}' of .*spaced.csv begins or ends with a space"):
        with contextlib.suppress(ValueError):  # it may be one that is asked for
            load_table(tmp_path / "spaced.csv", VIEWS, "stage")


def test_files_of_training_and_test_rows_may_have_different_length(tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in dict(train=40, test=13, valid=7).items():
        parts[part] = pd.DataFrame(rng.normal(size=(n, 3)), columns=["a_1", "a_2", "b"]).assign(y=np.arange(n) % 2)
        parts[part].to_csv(tmp_path / f"{part}.csv", index=False)
    data = load_table(tmp_path, dict(a="a_*", b="b"), "y")
    assert [(data.parts == part).sum() for part in ("train", "valid", "test")] == [40, 7, 13]
    for part, table in parts.items():
        assert np.allclose(data.xs["a"][data.parts == part], table[["a_1", "a_2"]])
    split = multimodal_dls(data).split
    assert [len(rows) for rows in split] == [40, 7, 13]
    joined = joined_parts(*(multimodal_data(t, "y", dict(a=["a_1", "a_2"], b="b")) for t in parts.values()))
    assert np.array_equal(np.sort(joined.xs["b"], 0), np.sort(data.xs["b"], 0)) and len(joined) == 60


def test_arrays_and_parts_of_different_length_are_refused_with_both_lengths_and_the_remedy(tmp_path):
    for name, n in dict(left=60, right=50).items():
        np.save(tmp_path / f"{name}.npy", np.ones((n, 2)))
    with pytest.raises(ValueError, match=r"of rows: {'left': 60, 'right': 50}, and an array has no names of rows"):
        load_table(tmp_path, target="y")
    with pytest.raises(ValueError, match="'left' has 60 rows, modality 'right' has 50 rows, y has 60 rows; each"):
        multimodal_data(dict(left=np.ones((60, 2)), right=np.ones((50, 2))), np.arange(60) % 2)


def test_another_separator_is_said_with_the_remedy(tmp_path):
    (tmp_path / "a.csv").write_text("x;y\n1;2\n")
    with pytest.raises(ValueError, match=r"seems separated by ';'.*pd.read_csv\('a.csv', sep=';'\) and give the table"):
        load_table(tmp_path / "a.csv", dict(x="x"), "y")
