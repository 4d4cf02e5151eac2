"An index of pandas is never ignored: rows, and columns of a table, of one name belong together, or are refused."

import inspect
import math
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from common import public_functions
from sklearn import metrics

from mmlit.audits.quantities import linear_answers, probe
from mmlit.crossed import crossed_interval, crossed_intervals, variances
from mmlit.data.loaders import multimodal_dls
from mmlit.data.losses import with_class_weights, with_weights
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.data.splits import check_split, fewer_rows, given_split, grouped_split, sized_split
from mmlit.data.tables import align_columns
from mmlit.estimators.direct import as_variables
from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
from mmlit.learner import multimodal_learner
from mmlit.metrics import METRICS, drawn_scores
from mmlit.production.predictor import load_predictor, save_predictor
from mmlit.scores import (
    bootstrap_interval,
    classification_scores,
    confidence_gaps,
    expected_calibration_error,
    multilabel_scores,
    regression_scores,
)

N = 120
NAMES = [f"row {i}" for i in range(N)]
RNG = np.random.default_rng(0)
CLASS = RNG.integers(0, 3, N)
GROUP = np.arange(N) // 3
U = RNG.normal(size=N)
V = U + 0.5 * RNG.normal(size=N)
LOGITS = RNG.normal(size=(N, 3)) + 2 * np.eye(3)[CLASS]
LOGP = torch.as_tensor(LOGITS).log_softmax(1).numpy()
SEVERAL = np.eye(3)[CLASS]
SORTS = "classification"
PARTS = np.arange(N // 2), np.arange(N // 2, 3 * N // 4), np.arange(3 * N // 4, N)


def named(x):
    return (pd.Series if x.ndim == 1 else pd.DataFrame)(x, index=NAMES)


def scored(name, task):
    return lambda out, y: METRICS[name](out, y, task)


CASES = {
    "estimate_mi": (
        lambda x, y, groups: estimate_mi(x, y, groups=groups, method="plugin").value,
        (CLASS, U > 0, GROUP),
    ),
    "estimate_cmi": (lambda *xs: estimate_cmi(*xs, method="plugin").value, (CLASS, U > 0, V > 0)),
    "estimate_tc": (lambda *xs: estimate_tc(xs, method="plugin").value, (CLASS, U > 0, V > 0)),
    "estimate_mi of a tuple": (lambda x, y, z: estimate_mi((x, y), z).value, (CLASS, U > 0, V > 0)),
    "as_variables": (lambda *xs: np.concatenate([v.columns for v in as_variables(xs)], 1), (U, V)),
    "confidence_gaps": (confidence_gaps, (LOGP, CLASS)),
    "expected_calibration_error": (expected_calibration_error, (LOGP, CLASS)),
    "classification_scores": (lambda *c: list(classification_scores(*c).values()), (LOGP, CLASS)),
    "regression_scores": (lambda *c: list(regression_scores(*c).values()), (U, V)),
    "multilabel_scores": (lambda *c: list(multilabel_scores(*c).values()), (LOGITS, SEVERAL)),
    "bootstrap_interval": (bootstrap_interval, (U, GROUP)),
    "variances": (lambda a, b, g: variances([a, b], g)[:3], (U, V, GROUP)),
    "crossed_interval": (lambda a, b, g: crossed_interval([a, b], g), (U, V, GROUP)),
    "crossed_intervals": (
        lambda a, b, g: crossed_intervals({"m": {0: a}, "ensemble": {0: b}}, score="r2", groups=g)["m"],
        (U, V, GROUP),
    ),
    "drawn_scores": (
        lambda o, y, g: drawn_scores(METRICS["f1"], o, y, "classification", g, 20),
        (LOGITS, CLASS, GROUP),
    ),
    **{
        f"metric {m}": (scored(m, METRICS[m].tasks[0]), (LOGITS, CLASS))
        for m in ("accuracy", "f1", "log_loss", "auroc")
    },
    **{f"metric {m}": (scored(m, "regression"), (U, V)) for m in ("r2", "mae", "rmse", "spearman")},
    "metric exact_match": (scored("exact_match", "multi-label"), (LOGITS, SEVERAL)),
    "grouped_split": (lambda y, g: np.concatenate(grouped_split(y, g)), (CLASS, GROUP)),
    "sized_split": (lambda y, g: np.concatenate(sized_split(y, g, 30, 60)), (CLASS, GROUP)),
    "given_split": (
        lambda y, g: np.concatenate(given_split(np.repeat(["train", "test"], [90, 30]), y, g)),
        (CLASS, GROUP),
    ),
    "check_split": (lambda y, g: check_split(PARTS, y, g) is None, (CLASS, GROUP)),
    "fewer_rows": (lambda y, g: np.concatenate(fewer_rows(PARTS, y, g, 30)), (CLASS, GROUP)),
    "linear_answers": (lambda z, y: linear_answers(z, y, LOGITS, 3), (LOGITS, CLASS)),
    "probe": (lambda z, y: probe(z, y, LOGITS, CLASS), (LOGITS, CLASS)),
    "probe, test": (lambda z, y: probe(LOGITS, CLASS, z, y), (LOGITS, CLASS)),
    "multimodal_data": (
        lambda a, y, g: data_of(multimodal_data({"a": a, "b": a}, y, groups=g)),
        (LOGITS, CLASS, GROUP),
    ),
}
EXEMPT = {
    "align_rows": "it is what brings them into order, see tests/data/test_tables.py",
    "align_columns": "likewise",
    "answer_information": "answers of models: arrays",
    "feature_information": "features of models: arrays",
    "knn_terms": "takes `Variable`s, which have no index",
    "plugin_jackknife": "likewise",
    "classifier_log_likelihood": "of a fitted classifier: arrays",
    "multimodal_dls": "by `multimodal_data`, which has a row here; weights in a test of their own",
    "weighed": "weights follow the index that the data have, see a test below",
    "with_weights": "likewise",
    "with_class_weights": "weights of classes and not of rows",
}
COLUMNS = set("x y z xs logp logits prediction values groups out weights answers".split())


def data_of(data):
    return np.c_[data.xs["a"], data.y, data.groups]


def same(a, b):
    return np.allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), equal_nan=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_rows_in_another_order_are_brought_into_one_or_refused(case):
    call, columns = CASES[case]
    given = [named(c) for c in columns]
    want = call(*columns)
    assert same(call(*given), want)
    turned = RNG.permutation(N)
    for k in range(len(given)):
        moved = [c.iloc[turned] if i == k else c for i, c in enumerate(given)]
        refused = False
        try:
            found = call(*moved)
        except ValueError as error:
            assert "different order" in str(error) or k == 0 and case == "check_split"  # row numbers are those of y
            refused = True
        first = call(*(c.to_numpy()[turned] for c in given)) if k == 0 and not refused else want
        assert refused or same(found, first) or same(found, want)
        with pytest.raises(ValueError, match="the index of|other rows"):
            call(*(c.set_axis(range(N)) if i == k else c for i, c in enumerate(given)))
    bare = [given[0], given[1].iloc[turned], np.arange(N)]
    with pytest.raises(ValueError, match="has no index that says where its rows belong"):
        align_columns(a=bare[0], b=bare[1], c=bare[2])


def test_every_public_function_of_several_columns_is_tried():
    def columns(f):
        parameters = inspect.signature(f).parameters.values()
        return [p for p in parameters if p.name in COLUMNS and "Tensor" not in str(p.annotation)]

    several = {name for name, f in public_functions().items() if len(columns(f)) > 1}
    assert several - set(EXEMPT) <= set(CASES), sorted(several - set(EXEMPT) - set(CASES))
    assert set(EXEMPT) <= set(public_functions())


def test_information_and_scores_are_those_of_the_rows_that_belong_together():
    "The values that positions would give are far away."
    x, y = named(U), named(V).sample(frac=1, random_state=0)
    assert estimate_mi(x, y, method="knn").value == estimate_mi(U, V, method="knn").value > 0.4
    assert abs(estimate_mi(x.to_numpy(), y.to_numpy(), method="knn").value) < 0.2
    assert regression_scores(x, y)["r2"] == regression_scores(U, V)["r2"] > 0.5
    f1 = METRICS["f1"](named(LOGITS), named(CLASS).sample(frac=1, random_state=0), "classification")
    assert math.isclose(f1, metrics.f1_score(CLASS, LOGITS.argmax(1), average="macro"))


def test_what_is_given_for_the_rows_of_data_later_follows_their_index():
    "By name, also where the names are the numbers 0 to N-1 in another order."
    turned = RNG.permutation(N)
    for names in (np.arange(N), [f"r{i}" for i in range(N)]):
        weights = pd.Series(1.0 + np.arange(N), names)
        split = pd.Series(np.where(np.arange(N) % 3 == 0, "test", "train"), names)
        frame = pd.DataFrame(LOGITS, names).iloc[turned]
        xs, y = {"a": frame, "b": frame}, pd.Series(CLASS, names)
        data = multimodal_data(xs, y, groups=pd.Series(range(N), names))
        assert list(data.index) == list(frame.index) and list(data.groups) == list(turned)
        assert list(with_weights(data, weights).weights) == list(1.0 + turned)
        assert list(data.with_split(split).parts) == list(split.loc[frame.index])
        half = data.subset(np.arange(0, N, 2))
        assert list(with_weights(half, weights.loc[half.index[::-1]]).weights) == list(1.0 + turned[::2])
        with pytest.raises(ValueError, match="of the column of weights are not in data"):
            with_weights(half, weights)
        dls = multimodal_dls(xs, y, weights=weights, split=split, device="cpu")
        assert list(dls.data.weights) == list(1.0 + turned) and list(dls.data.parts) == list(split.loc[frame.index])
    table = frame.set_axis(list("pqr"), axis=1).assign(y=CLASS[turned], w=1.0 + turned)
    dls = multimodal_dls(table, "y", modalities=dict(a=["p"], b=["q", "r"]), weights="w", device="cpu")
    assert list(dls.data.weights) == list(1.0 + turned)


def test_names_of_rows_are_refused_where_the_rows_of_the_data_have_none():
    data = multimodal_data({"a": LOGITS, "b": LOGITS}, CLASS)
    for give in (with_weights, lambda data, x: data.with_split(x)):
        with pytest.raises(ValueError, match="known by position only, 0 to"):
            give(data, named(np.ones(N)))


# ---- columns of a table of numbers


A = pd.DataFrame(LOGITS @ RNG.normal(size=(3, 4)), columns=list("pqrs"))
B = pd.DataFrame(RNG.normal(size=(N, 3)), columns=["u", "v", 3])


@pytest.fixture(scope="module")
def learn():
    torch.manual_seed(0)
    learn = multimodal_learner(multimodal_dls({"a": A, "b": B}, CLASS, bs=16, device="cpu", seed=0), width=8)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
    return learn


def answers_of_loader(learn, rows, folder):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(dl=learn.dls.test_dl(rows))[0]


def answers_of_file(learn, rows, folder):
    save_predictor(learn, folder / "model")
    return load_predictor(folder / "model").answers(rows).softmax(1)


def answers_of_export(learn, rows, folder):
    from fastai.learner import load_learner

    learn.path = folder
    learn.export("model.pkl")
    return answers_of_loader(load_learner(folder / "model.pkl"), rows, folder)


WAYS = pytest.mark.parametrize("answers", [answers_of_loader, answers_of_file, answers_of_export])


@WAYS
def test_columns_of_a_table_go_by_name(learn, answers, tmp_path):
    want = answers(learn, {"a": A, "b": B}, tmp_path)
    ways = [
        {"a": A[list("srqp")], "b": B[[3, "v", "u"]]},
        {"a": A.to_numpy(), "b": B},  # no names: by position
        [{"a": A.iloc[i, ::-1], "b": B.iloc[i]} for i in range(N)],  # rows of tables
    ]
    for rows in ways:
        assert torch.allclose(answers(learn, rows, tmp_path), want, atol=1e-6)
    gap = A[list("srqp")].copy()
    gap.iloc[:3] = np.nan
    found = answers(learn, {"a": gap, "b": B}, tmp_path)
    assert torch.allclose(found[3:], want[3:], atol=1e-6)


@WAYS
@pytest.mark.parametrize(
    "columns, told",
    [("pqrz", r"\['s'\] are missing and \['z'\] are not known"), ("pqr", "missing"), ("pqrst", "not known")],
)
def test_other_columns_are_refused(learn, answers, columns, told, tmp_path):
    rows = {"a": A.reindex(columns=list(columns), fill_value=0.0), "b": B}
    with pytest.raises(ValueError, match=told):
        answers(learn, rows, tmp_path)


def test_new_data_and_parts_of_a_split_go_by_name(learn):
    turned = multimodal_data({"a": A[list("srqp")], "b": B}, CLASS)
    whole = multimodal_data({"a": A, "b": B}, CLASS)
    want, found = (next(iter(learn.dls.test_dl(d)))[0] for d in (whole, turned))
    assert torch.equal(found, want)
    joined = joined_parts(whole.subset(range(80)), turned.subset(range(80, N)))
    assert np.array_equal(joined.xs["a"], whole.xs["a"]) and joined.names == whole.names
    assert joined.select(["b"]).names == {"b": ["u", "v", 3]}
    other = multimodal_data({"a": A.rename(columns={"p": "z"}), "b": B}, CLASS)
    with pytest.raises(ValueError, match="columns of modality 'a' of the test file"):
        joined_parts(whole.subset(range(80)), other.subset(range(80, N)))


def test_the_parts_of_a_modality_and_presence_by_name_go_by_their_index():
    turned, there = RNG.permutation(N), RNG.random(N) > 0.3
    first, second, u = (named(c) for c in (np.c_[U, V], np.c_[V, U, V], U))
    presence = dict(u=named(there), pair=named(np.ones(N, bool)))
    for pair in (lambda *parts: parts, lambda *parts: dict(a=parts[0], b=parts[1])):
        make = partial(multimodal_data, kinds=dict(pair="tuple" if isinstance(pair(1, 2), tuple) else "dict"))
        want = make(dict(pair=pair(first, second), u=u), CLASS, presence=presence)
        assert np.array_equal(want.xs["u"].present, there)

        mixed = dict(pair=pair(first, second.iloc[turned]), u=u)
        found = make(mixed, named(CLASS), presence=presence | dict(u=named(there).iloc[turned]))
        assert np.array_equal(found.xs["u"].present, there) and same(found.y, want.y)
        told, ours = (d.xs["pair"].arrays for d in (want, found))
        assert list(told) == list(ours) and all(same(told[k], ours[k]) for k in told)
        rows = multimodal_dls(want, device="cpu").test_dl(mixed).dataset
        assert all(same(told[k], rows.xs["pair"].arrays[k]) for k in told)
        with pytest.raises(ValueError, match="have their rows in different order, and y has no index"):
            make(mixed, CLASS)
        with pytest.raises(ValueError, match="the index of"):
            make(dict(mixed, u=u.set_axis(range(N))), named(CLASS))


def test_weights_of_classes_go_by_the_name_of_the_class():
    names = np.array(["no", "perhaps", "yes"])[CLASS]
    data = multimodal_data(dict(u=U, v=V), names)
    table = dict(yes=4.0, no=1.0, perhaps=2.0)
    weighed = [with_class_weights(data, weights) for weights in (table, pd.Series(table), [1.0, 2.0, 4.0])]
    assert all(list(w.class_weights) == [1, 2, 4] for w in weighed)
    with pytest.raises(ValueError, match="often"):
        with_class_weights(data, pd.Series(dict(yes=4.0, no=1.0, often=2.0)))


def test_answers_of_the_parts_of_a_modality_bear_the_names_of_their_rows(tmp_path):
    "The order is that of the first part with an index, at any depth; the answers are named by the same one."
    ids, mask, u = (named(c) for c in (RNG.integers(1, 9, (N, 5)), np.ones((N, 5), dtype=int), U))
    data = multimodal_data(dict(words=dict(input_ids=ids, attention_mask=mask), u=u), named(CLASS))
    learn = multimodal_learner(multimodal_dls(data, device="cpu"), width=4)
    save_predictor(learn, tmp_path / "model")
    predictor, turned = load_predictor(tmp_path / "model"), RNG.permutation(N)

    def asked(ids, mask, u):
        return predictor.predict_proba(dict(words=dict(input_ids=ids, attention_mask=mask), u=u))

    want = asked(ids, mask, u)
    assert list(want.index) == NAMES
    for k in range(3):
        found = asked(*(c.iloc[turned] if i == k else c for i, c in enumerate((ids, mask, u))))
        assert np.allclose(found.loc[NAMES], want, atol=1e-6)
    assert list(asked(ids, mask, u.to_numpy()).index) == NAMES


@pytest.mark.parametrize("rows", [6, 4])
def test_a_predictor_of_sequences_with_time_first_is_saved(rows, tmp_path):
    "The rows that are tried before saving are those of the data, whose channels come first already."
    s, y = RNG.normal(size=(N, rows, 4)), CLASS
    data = multimodal_data(dict(s=s, u=U), y, layout=dict(s="time_first"))
    dls = multimodal_dls(data, device="cpu")
    learn = multimodal_learner(dls, width=4)
    save_predictor(learn, tmp_path / "model")
    found = load_predictor(tmp_path / "model").answers(dict(s=s, u=U))
    assert torch.allclose(found, learn.get_preds(dl=dls.test_dl(dict(s=s, u=U)), act=torch.nn.Identity())[0], atol=1e-5)


def test_a_mask_follows_its_index_and_what_is_no_rows_is_refused():
    names = [f"r{i}" for i in range(N)]
    data = multimodal_data({"a": pd.DataFrame(LOGITS, names), "b": LOGITS}, CLASS)
    old = pd.Series(np.arange(N) >= 50, names)
    turned = old.sample(frac=1, random_state=0)
    assert list(data.subset(turned).index) == list(data.subset(old.to_numpy()).index) == names[50:]
    assert list(data.subset([1, -1]).index) == ["r1", names[-1]] and len(data.subset([])) == 0
    for rows in np.ones(10, bool), [0.9, 1.9], [N], [[0, 1]]:
        with pytest.raises(ValueError, match="rows are positions from 0 to|the mask"):
            data.subset(rows)


def test_row_numbers_in_another_order_beside_bare_arrays_are_said():
    turned = RNG.permutation(N)
    groups, split = pd.Series(np.arange(N)), pd.Series(["train", "test"] * (N // 2))
    for given in dict(groups=groups.iloc[turned]), dict(split=split.iloc[turned]):
        with pytest.warns(UserWarning, match="in another order, and not all parts have one: they are taken as they"):
            multimodal_data({"a": LOGITS, "b": LOGITS}, CLASS, **given)
    with warnings.catch_warnings(action="error"):
        multimodal_data({"a": LOGITS, "b": LOGITS}, pd.Series(CLASS, np.arange(N) + 3))
        frame = pd.DataFrame(LOGITS).iloc[turned]
        multimodal_data({"a": frame, "b": frame}, pd.Series(CLASS))
