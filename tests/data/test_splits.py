"""Splits tear no group apart and lose no row."""

import numpy as np
import pytest
import torch

from mmlit.data.columns import MultimodalData
from mmlit.data.encoders import Standardize, TokenIds, Vocabulary, fit_encoder
from mmlit.data.splits import (
    Split,
    check_split,
    fewer_rows,
    grouped_split,
    overlap,
    sized_split,
    split_hash,
    split_rows,
)
from mmlit.data.values import as_column


@pytest.mark.parametrize("name", ["mfeat", "emoji", "watch", "breast_cancer"])
def test_splits_tear_no_group_apart_and_cover_the_data(load, name):
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


def test_small_regressions_and_vocabularies_without_words_are_said():
    with pytest.raises(ValueError, match="20 rows are too few"):
        grouped_split(np.linspace(0, 1, 20))
    with pytest.warns(UserWarning, match="segment"):
        Vocabulary(["今天天气很好", "我们去公园", "他在看书"])


Y = np.arange(40) % 2


BAD = {
    "mask for a split": (
        lambda: check_split((Y > 0, Y < 1, Y > 0), Y),
        r"the train part must be row numbers, got bool",
    ),
    "test share": (lambda: grouped_split(Y, test=0.7), r"test must lie in \(0, 0.5\]"),
    "groups shape": (lambda: grouped_split(Y, Y[:3]), r"groups has shape \(3,\), y has \(40,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (3, 4, 4)])
def test_standardised_rows_come_back(shape):
    x = np.random.default_rng(0).normal(3, 2, (50, *shape)).astype(np.float32)
    encoder = fit_encoder(x, "vector", np.arange(30))
    assert isinstance(encoder, Standardize)
    torch.testing.assert_close(encoder.decode(encoder.encode(x)).float(), torch.tensor(x))
    axes = (0, *range(2, x.ndim))
    torch.testing.assert_close(encoder.encode(x[:30]).mean(axes), torch.zeros(shape[0]), atol=1e-5, rtol=0)


def test_words_and_ids_come_back():
    texts = as_column(["red car", "blue car", "red boat"] * 4)
    words = fit_encoder(texts, "tokens", np.arange(6))
    assert [words.decode(row) for row in words.encode(texts)] == list(texts)
    ids = np.array([[3, 1, 0], [2, 0, 0]])
    assert isinstance(fit_encoder(ids, "tokens", np.arange(1)), TokenIds)
    assert fit_encoder(ids, "tokens", np.arange(1)).decode(torch.tensor([3, 1, 0])) == "3 1"


# ---- fewer training rows


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("n", [40, 100, 333])
def test_fewer_rows_are_a_stratified_draw_of_whole_groups(grouped, n):
    rng = np.random.default_rng(n)
    y = rng.choice(4, 2000, p=[0.5, 0.3, 0.15, 0.05])
    groups = rng.integers(0, 700, 2000) if grouped else None
    whole = grouped_split(y, groups)
    few = fewer_rows(whole, y, groups, n, seed=3)
    assert few.valid is whole.valid and few.test is whole.test
    assert set(few.train) <= set(whole.train) and n - 3 <= len(few.train) <= n
    share = np.bincount(y[whole.train]) / len(whole.train)
    assert np.abs(np.bincount(y[few.train], minlength=4) - n * share).max() <= (6 if grouped else 1)
    if grouped:
        rest = np.setdiff1d(whole.train, few.train)
        assert not set(groups[few.train]) & set(groups[rest])
    assert np.array_equal(few.train, fewer_rows(whole, y, groups, n, seed=3).train)
    assert not np.array_equal(few.train, fewer_rows(whole, y, groups, n, seed=4).train)


def test_fewer_rows_of_a_regression_keep_its_fifths():
    y = np.random.default_rng(0).normal(size=1000)
    whole = grouped_split(y)
    few = fewer_rows(whole, y, n=50)
    edges = np.quantile(y[whole.train], [0.2, 0.4, 0.6, 0.8])
    assert np.bincount(np.digitize(y[few.train], edges)).tolist() == [10] * 5


def test_fewer_rows_of_several_labels_keep_their_shares():
    y = (np.random.default_rng(0).random((1000, 3)) < [0.5, 0.2, 0.1]).astype(np.float32)
    whole = grouped_split(y)
    few = fewer_rows(whole, y, n=100)
    assert len(few.train) == 100 and np.abs(y[few.train].sum(0) - 100 * y[whole.train].mean(0)).max() <= 3


def test_fewer_rows_that_cannot_be_drawn_are_refused():
    y = np.repeat([0, 1], 50)
    whole = grouped_split(y)
    for wrong in (0, 2.5, "3", True):
        with pytest.raises(ValueError, match="n_train must be a whole number"):
            fewer_rows(whole, y, n=wrong)
    with pytest.raises(ValueError, match="1 training rows hold none of class [01] .1 of 2 classes"):
        fewer_rows(whole, y, n=1)
    tens = np.arange(100) // 10
    with pytest.raises(ValueError, match="no group has 9 training rows or fewer, the smallest has 10"):
        fewer_rows(grouped_split(y, tens), y, tens, n=9)


def _kinds(n=900):
    rng = np.random.default_rng(1)
    classes = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    labels = (rng.random((n, 3)) < [0.5, 0.2, 0.1]).astype(float)
    return dict(classes=classes, numbers=rng.normal(size=n), labels=labels, several=rng.normal(size=(n, 2)))


@pytest.mark.parametrize("kind", ["classes", "numbers", "labels", "several"])
@pytest.mark.parametrize("groups", [None, 300, 12])
def test_sized_parts_have_their_sizes_and_share_no_row(kind, groups):
    y = _kinds()[kind]
    ids = None if groups is None else np.random.default_rng(2).integers(0, groups, len(y))
    found = [sized_split(y, ids, n_test=300, n_train=90, seed=seed) for seed in range(4)]
    for split in found:
        check_split(split, y, ids)
        sizes = [len(part) for part in split]
        assert all(abs(size - asked) <= 0.1 * asked for size, asked in zip(sizes, (90, 30, 300))), sizes
    if groups != 12:  # one test part, and other training rows for each seed
        assert all(np.array_equal(split.test, found[0].test) for split in found)
        assert overlap([np.concatenate(split[:2]) for split in found]) == 0
    else:
        tested = [set(ids[split.test]) for split in found]
        assert not tested[0] & tested[1] and tested[0] == tested[3]  # 900 rows hold three test parts
        assert overlap([split.train for split in found[::3]]) == 0


def test_a_sized_split_depends_on_its_own_seed_alone_and_a_large_one_costs_nothing():
    y = np.arange(600) % 3
    once = sized_split(y, n_test=300, n_train=60, seed=2**32 - 1)
    again = sized_split(y, n_test=300, n_train=60, seed=2**32 - 1)
    assert split_hash(once) == split_hash(again)
    smaller = sized_split(y, n_test=300, n_train=30, seed=0)  # the dial leaves the test part alone
    assert np.array_equal(smaller.test, once.test)


def test_a_size_that_is_not_there_is_refused():
    y = np.arange(100) % 2
    for wrong in (dict(n_test=0), dict(n_train=0), dict(n_test=1.5), dict(seed=-1)):
        with pytest.raises(ValueError):
            sized_split(y, **{"n_test": 40, **wrong})
    with pytest.raises(ValueError, match="n_test asks for 101 rows, and 100 are there"):
        sized_split(y, n_test=101)
    with pytest.raises(ValueError, match="asks for 80 rows, and 60 are there"):
        sized_split(y, n_test=40, n_train=60)


def test_a_group_in_two_parts_is_called_by_the_name_that_was_given():
    sites = np.repeat(["Bonn", "Aachen", "Ulm", "Kiel"], 10)
    data = MultimodalData("sites", dict(a=np.ones((40, 2)), b=np.ones((40, 2))), np.arange(40) % 2, groups=sites)
    assert [data.group_names[g] for g in data.groups] == sites.tolist()
    part = data.subset(np.arange(10, 40))
    assert [part.group_names[g] for g in part.groups] == sites[10:].tolist()
    torn = np.arange(0, 35), np.arange(35, 38), np.arange(38, 40)
    with pytest.raises(ValueError, match="group 'Kiel' is in both train and valid, as are 1 groups in all"):
        split_rows(data, rows=torn)
    words = np.repeat(["train", "valid", "test"], [35, 3, 2])
    with pytest.raises(ValueError, match="group 'Kiel' is in both train and valid"):
        split_rows(data.with_split(words))
    numbers = MultimodalData("n", data.xs, data.y, groups=np.repeat([7, 5, 9, 30], 10))
    with pytest.raises(ValueError, match="group 30 is in both train and valid"):
        split_rows(numbers, rows=torn)
    assert MultimodalData("n", data.xs, data.y, groups="duplicates").group_names is None
