"Metrics by name, by scorer and of one's own: values, refusals, and the draws of those that are no means."

import functools
import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

import mmlit.metrics
from mmlit.audits.audit import audit
from mmlit.benchmark.comparison import compare
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.data.own import joined_parts, multimodal_data
from mmlit.fingerprint import fingerprint
from mmlit.metrics import METRICS, Metric, check_metric, drawn_scores, metric_of, register_metric, with_metric
from mmlit.scores import drawn_interval, multilabel_scores, regression_scores
from mmlit.training import Budget

RNG = np.random.default_rng(0)
Y, OUT = RNG.integers(0, 3, 120), RNG.normal(size=(120, 3))
TAGS, LOGITS = RNG.integers(0, 2, (120, 4)).astype(np.float32), RNG.normal(size=(120, 4))
TARGETS = RNG.normal(size=120)
GUESS = (TARGETS + RNG.normal(size=120))[:, None]


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


OF_CLASSES = dict(
    accuracy=metrics.accuracy_score(Y, OUT.argmax(1)),
    balanced_accuracy=metrics.balanced_accuracy_score(Y, OUT.argmax(1)),
    f1=metrics.f1_score(Y, OUT.argmax(1), average="macro"),
    auroc=metrics.roc_auc_score(Y, softmax(OUT), multi_class="ovr"),
    average_precision=metrics.average_precision_score(np.eye(3)[Y], softmax(OUT), average="macro"),
    log_loss=metrics.log_loss(Y, softmax(OUT)),
    mcc=metrics.matthews_corrcoef(Y, OUT.argmax(1)),
    quadratic_kappa=metrics.cohen_kappa_score(Y, OUT.argmax(1), weights="quadratic"),
)
OF_NUMBERS = dict(
    r2=metrics.r2_score(TARGETS, GUESS[:, 0]),
    mae=metrics.mean_absolute_error(TARGETS, GUESS[:, 0]),
    rmse=metrics.mean_squared_error(TARGETS, GUESS[:, 0]) ** 0.5,
)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_metric_of_classes_is_that_of_scikit_learn(name):
    assert math.isclose(METRICS[name](OUT, Y, "classification"), OF_CLASSES[name], abs_tol=1e-12)


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_metric_of_numbers_is_that_of_scikit_learn(name):
    assert math.isclose(METRICS[name](GUESS, TARGETS, "regression"), OF_NUMBERS[name], rel_tol=1e-9)
    assert math.isclose(regression_scores(GUESS, TARGETS)[name], OF_NUMBERS[name], rel_tol=1e-9)


def test_a_metric_of_labels_is_the_score_of_that_name():
    scores = multilabel_scores(LOGITS, TAGS)
    names = dict(accuracy="accuracy", exact_match="exact_match", f1="macro_f1", auroc="auc", log_loss="log_loss")
    names |= dict(average_precision="average_precision")
    for name, own in names.items():
        assert math.isclose(METRICS[name](LOGITS, TAGS, "multi-label"), scores[own], abs_tol=1e-9), name
    each = [metrics.balanced_accuracy_score(t, a > 0) for t, a in zip(TAGS.T, LOGITS.T)]
    assert math.isclose(METRICS["balanced_accuracy"](LOGITS, TAGS, "multi-label"), np.mean(each))


def test_every_metric_is_better_for_better_answers_in_the_direction_it_says():
    right = {"classification": (np.eye(3)[Y] * 9, OUT, Y), "multi-label": (TAGS * 18 - 9, LOGITS, TAGS)}
    right["regression"] = TARGETS[:, None], GUESS, TARGETS
    for metric in METRICS.values():
        for task in metric.tasks:
            good, bad, y = right[task]
            assert metric.goodness(good, y, task) > metric.goodness(bad, y, task), (metric.name, task)


def test_rows_have_the_score_as_their_mean():
    for metric in METRICS.values():
        cases = dict(classification=(OUT, Y), regression=(GUESS, TARGETS), **{"multi-label": (LOGITS, TAGS)})
        for task in metric.tasks:
            out, y = cases[task]
            if metric.rows is not None:
                assert metric.by_row(out, y).shape == (120,)
                assert math.isclose(metric.by_row(out, y).mean(), metric(out, y, task))


def test_metrics_are_told_apart_and_sent_to_other_processes():
    digests = {fingerprint(metric) for metric in METRICS.values()}
    assert len(digests) == len(METRICS)
    assert fingerprint(METRICS["auroc"]) == fingerprint(metric_of("auroc", "classification"))
    beta = [metric_of(metrics.make_scorer(metrics.fbeta_score, beta=b), "classification") for b in (1, 2)]
    assert fingerprint(beta[0]) != fingerprint(beta[1])
    assert pickle.loads(pickle.dumps(METRICS["f1"])) == METRICS["f1"]


@pytest.mark.parametrize("name", ["f1_macro", "neg_log_loss", "roc_auc_ovr", "balanced_accuracy", "neg_brier_score"])
def test_a_scorer_is_asked_as_scikit_learn_asks_it(name):
    scorer = metrics.get_scorer(name)
    try:
        expected = {
            "f1_macro": metrics.f1_score(Y, OUT.argmax(1), average="macro"),
            "neg_log_loss": metrics.log_loss(Y, softmax(OUT)),
            "roc_auc_ovr": metrics.roc_auc_score(Y, softmax(OUT), multi_class="ovr"),
            "balanced_accuracy": metrics.balanced_accuracy_score(Y, OUT.argmax(1)),
            "neg_brier_score": metrics.brier_score_loss(Y, softmax(OUT)),
        }[name]
    except ValueError:
        pytest.skip("this version of scikit-learn has it for two classes only")
    assert math.isclose(metric_of(scorer, "classification")(OUT, Y, "classification"), expected)


def columns(y, **options):
    return MultimodalData("mine", dict(a=RNG.normal(size=(120, 2)), b=RNG.normal(size=(120, 2))), y, **options)


def test_a_scorer_that_cannot_answer_is_refused_before_training():
    with pytest.raises(ValueError, match="cannot be measured on the validation part"):
        compare(columns(Y, classes=list("xyz")), metric=metrics.get_scorer("roc_auc"), progress=False)
    with pytest.raises(ValueError, match="f1 is a metric for classification and multi-label.*choose one of r2"):
        compare(columns(TARGETS), metric="f1", progress=False)


@pytest.mark.parametrize("name", ["r2", "neg_mean_absolute_error", "explained_variance"])
def test_a_scorer_of_numbers_is_refused_for_classes(name):
    for task, y, names in (("classification", Y, list("xyz")), ("multi-label", TAGS, list("wxyz"))):
        said = f"is a metric for regression, and the task of mine is {task}: choose one of accuracy"
        with pytest.raises(ValueError, match=said):
            compare(columns(y, classes=names, task=task), metric=metrics.get_scorer(name), progress=False)


SCORERS = ["accuracy", "f1_macro", "roc_auc_ovr", "neg_log_loss", "average_precision", "adjusted_rand_score"]


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_of_classes_is_refused_for_numbers(name):
    with pytest.raises(
        ValueError, match="is a metric for classification.*task of mine is regression: choose one of r2"
    ):
        compare(columns(TARGETS), metric=metrics.get_scorer(name), progress=False)


def test_a_scorer_of_a_function_of_ones_own_fits_what_it_asks_for():
    def own(y, answer):
        return float(np.mean(y == answer))

    half = functools.partial(metrics.fbeta_score, beta=0.5)
    assert (
        metric_of(metrics.make_scorer(own), "classification").tasks
        == metric_of(metrics.make_scorer(own), "regression").tasks
    )
    with pytest.raises(ValueError, match="own is a metric for classification and multi-label"):
        metric_of(metrics.make_scorer(own, response_method="predict_proba"), "regression")
    found = metric_of(metrics.make_scorer(half, average="macro"), "classification")
    assert found.name == "fbeta_score" and found.tasks == ("classification", "multi-label")
    answer = OUT.argmax(1)
    assert found(OUT, Y, "classification") == metrics.fbeta_score(Y, answer, beta=0.5, average="macro")


@pytest.mark.parametrize("function", [metrics.f1_score, metrics.precision_score, metrics.jaccard_score])
def test_a_scorer_counts_the_class_that_is_named(function):
    y, pair = (Y > 0).astype(int), OUT[:, :2]
    names = np.array(["ill", "well"])
    for name in names:
        found = with_metric(columns(y, classes=list(names)), metrics.make_scorer(function, pos_label=name)).metric
        assert found(pair, y, "classification") == function(names[y], names[pair.argmax(1)], pos_label=name)
    for wrong in (metrics.make_scorer(function), metrics.make_scorer(function, pos_label="sick")):
        with pytest.raises(
            ValueError, match=r"counts one class, pos_label=.*the classes of mine are \['ill', 'well'\]"
        ):
            with_metric(columns(y, classes=list(names)), wrong)
    with_metric(columns(y, classes=list(names)), metrics.make_scorer(function, average="macro"))  # of no one class


def test_labels_that_are_numbers_are_counted_by_their_number():
    "Labels 1 and 2: pos_label=1, which scikit-learn means without a word, is the first of them."
    y, pair = (Y > 0).astype(int), OUT[:, :2]
    for names, first in ((["1", "2"], True), (["0", "1"], False), (["False", "True"], False)):
        for scorer in (metrics.get_scorer("f1"), metrics.make_scorer(metrics.f1_score, pos_label=1)):
            found = metric_of(scorer, "classification", classes=names)(pair, y, "classification")
            assert found == metrics.f1_score(y == (not first), pair.argmax(1) == (not first))
    scorer, p = metrics.get_scorer("average_precision"), softmax(pair)
    for names, k in ((["1", "2"], 0), (["0", "1"], 1)):
        found = metric_of(scorer, "classification", classes=names)(pair, y, "classification")
        assert math.isclose(found, metrics.average_precision_score(y == k, p[:, k]))
    with pytest.raises(ValueError, match="average_precision_score counts one class"):
        metric_of(scorer, "classification", classes=["ill", "well"])


def test_a_metric_of_ones_own_is_entered_once():
    def share(y, answer):
        return (y == answer).mean()

    mine = register_metric("share", share)
    try:
        assert metric_of("share", "classification") is mine and mine(OUT, Y, "classification") == OF_CLASSES["accuracy"]
        with pytest.raises(ValueError, match="task of it is regression"):
            metric_of("share", "regression", "it")
        with pytest.raises(ValueError, match="unknown task"):
            register_metric("other", share, tasks="ranking")
        with pytest.raises(ValueError, match="unknown answers"):
            register_metric("other", share, takes="logits")
    finally:
        del mmlit.metrics._METRICS["share"]


def test_a_score_that_is_no_number_is_an_error():
    silent = Metric("silent", ("classification",), function=lambda y, answer: math.nan)
    with pytest.raises(ValueError, match="silent of 120 rows is nan"):
        silent(OUT, Y, "classification")
    with pytest.raises(ValueError, match="all alike"):
        METRICS["average_precision"](OUT, np.zeros(120, int), "classification")
    with pytest.raises(ValueError, match="auroc cannot be measured on the test part"):
        check_metric(METRICS["auroc"], np.zeros(9, int), "classification", 2, "test")


def test_draws_take_whole_groups_and_cover_the_truth():
    "Of AUROC of two normal distributions: the intervals contain what a large sample says, nineteen in twenty."
    from scipy import stats

    truth, found = stats.norm.cdf(1 / math.sqrt(2)), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.arange(150) % 2
        score = rng.normal(size=150) + y
        out = np.stack([-score, score], 1)
        i = drawn_interval([drawn_scores(METRICS["auroc"], out, y, "classification", draws=200)])
        found.append(i.low <= truth <= i.high)
    assert stats.binom.cdf(sum(found), 60, 0.9) > 0.01  # a percentile interval of 150 rows is a little too narrow

    each = drawn_scores(METRICS["f1"], OUT, Y, "classification")
    pairs = np.repeat(np.arange(120), 2)
    twice = drawn_scores(METRICS["f1"], np.repeat(OUT, 2, 0), np.repeat(Y, 2), "classification", groups=pairs)
    assert np.allclose(each, twice)  # a row that stands there twice in one group is one row


def test_validation_chooses_by_the_metric():
    data = with_metric(MultimodalData("d", dict(a=np.zeros(40), b=np.zeros(40)), np.arange(40) % 2), "auroc")
    dls = multimodal_dls(data, split=(np.arange(20), np.arange(20, 30), np.arange(30, 40)))
    assert dls.metric is METRICS["auroc"] and data.subset(np.arange(9)).metric is METRICS["auroc"]


def test_a_run_is_kept_apart_only_where_the_metric_changes_it(tmp_path):
    from mmlit.learner import joint_run
    from mmlit.store import RunStore

    data = MultimodalData("d", dict(a=RNG.normal(size=(80, 2)), b=RNG.normal(size=(80, 2))), np.arange(80) % 2)
    paths = [RunStore(tmp_path).path(with_metric(data, m), joint_run(), 0, Budget()) for m in (None, "f1", "auroc")]
    assert len(set(paths)) == 3 and RunStore(tmp_path).path(data, joint_run(), 0, Budget()) == paths[0]


def test_the_epoch_that_is_kept_is_the_best_by_an_error():
    from mmlit.fitting import train_run
    from mmlit.learner import joint_run

    x = RNG.normal(size=(200, 3)).astype(np.float32)
    data = with_metric(MultimodalData("d", dict(a=x, b=x[:, ::-1].copy()), x.sum(1)), "mae")
    answer, _ = train_run(joint_run(), data, 0, Budget(epochs=4, bs=16))
    assert answer.info["monitor"] == "mae"
    kept = METRICS["mae"](answer.valid, answer.y_valid, "regression")
    assert math.isclose(kept, min(answer.info["validation"]), rel_tol=1e-5)


OPTIONS = [dict(average=average) for average in ("macro", "micro", "weighted")]
SHARES = [metrics.f1_score, metrics.precision_score, metrics.recall_score, metrics.jaccard_score]
COUNTED = [(f, o) for f in SHARES for o in OPTIONS]
COUNTED += [(metrics.fbeta_score, dict(average="macro", beta=2)), (metrics.balanced_accuracy_score, {})]
COUNTED += [(metrics.balanced_accuracy_score, dict(adjusted=True)), (metrics.matthews_corrcoef, {})]
COUNTED += [(metrics.cohen_kappa_score, dict(weights=w)) for w in (None, "linear", "quadratic")]
PAIR = [(f, dict(pos_label=k)) for f in SHARES for k in (0, 1)] + [
    (metrics.f1_score, {}),
    (metrics.matthews_corrcoef, {}),
]
LABELS = [(f, o) for f in SHARES for o in OPTIONS] + [(metrics.f1_score, dict(average="macro", zero_division=1))]


def same_draws(function, options, out, y, task):
    "Draws from counts are those of scikit-learn, draw by draw; few rows, so that classes are missing from many."
    answer = out.argmax(1) if task == "classification" else (out > 0).astype(int)
    rng = np.random.default_rng(0)
    rows = [rng.integers(len(y), size=len(y)) for _ in range(60)]

    def of(r):
        value = function(y[r], answer[r], **options)
        return value if math.isfinite(value) else math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [of(np.arange(len(y))), *map(of, rows)]
        found = metric_of(metrics.make_scorer(function, **options), task)
        drawn = drawn_scores(found, out, y, task, draws=60)
    assert np.allclose(drawn, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    counted = mmlit.metrics._by_counts(found, torch.as_tensor(out), torch.as_tensor(y), task, rows)
    there = ~np.isnan(counted)
    assert there.mean() > 0.5 and np.allclose(counted[there], np.array(expected[1:])[there], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function, options", COUNTED)
def test_draws_of_classes_from_counts_are_those_of_scikit_learn(function, options):
    same_draws(function, options, np.c_[OUT[:12], RNG.normal(size=12) - 1], np.r_[Y[:11], 3], "classification")


@pytest.mark.parametrize("function, options", PAIR)
def test_draws_of_two_classes_from_counts_are_those_of_scikit_learn(function, options):
    same_draws(function, options, OUT[:9, :2], (Y[:9] > 0).astype(int), "classification")


@pytest.mark.parametrize("function, options", LABELS)
def test_draws_of_labels_from_counts_are_those_of_scikit_learn(function, options):
    same_draws(function, options, LOGITS[:6], TAGS[:6], "multi-label")


@pytest.mark.parametrize("name", ["f1", "balanced_accuracy", "mcc", "quadratic_kappa"])
def test_draws_of_our_own_from_counts_are_those_without(name):
    metric = METRICS[name]
    slow = Metric("slow", metric.tasks, function=lambda y, answer: metric.function(y, answer))
    cases = dict(classification=(OUT[:15], Y[:15]), **{"multi-label": (LOGITS[:15], TAGS[:15])})
    for task in metric.tasks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = (drawn_scores(m, *cases[task], task, draws=100) for m in (metric, slow))
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_draws_with_options_beyond_the_counts_ask_scikit_learn():
    for options in (dict(labels=[0, 1], average="macro"), dict(average="macro", zero_division=np.nan)):
        found = metric_of(metrics.make_scorer(metrics.f1_score, **options), "classification")
        rows = np.random.default_rng(0).integers(120, size=120)
        expected = metrics.f1_score(Y[rows], OUT[rows].argmax(1), **options)
        assert math.isclose(drawn_scores(found, OUT, Y, "classification", draws=1)[1], expected)


def ranked_draws(found, expected_of, out, y, task, draws=60):
    "Draws from ranks are those of scikit-learn, draw by draw, with ties and with draws that lack a class."
    rng = np.random.default_rng(0)
    rows = [rng.integers(len(y), size=len(y)) for _ in range(draws)]

    def of(r):
        try:
            value = expected_of(y[r], out[r])
        except ValueError:
            return math.nan
        return value if math.isfinite(value) else math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.array([of(r) for r in rows])
        assert np.allclose(drawn_scores(found, out, y, task, draws=draws)[1:], expected, 1e-12, 1e-12, equal_nan=True)
    ranked = mmlit.metrics._by_ranks(found, torch.as_tensor(out), torch.as_tensor(y), task, rows)
    assert np.allclose(ranked, expected, 1e-12, 1e-12, equal_nan=True)  # NaN is where a call finds none either
    assert np.isfinite(expected).mean() > 0.2


def mean_of(score):
    "The mean over classes, or labels, that some of the rows have and others not, one call for each."

    def of(y, out):
        p = softmax(out) if y.ndim == 1 else 1 / (1 + np.exp(-out))
        there = y[:, None] == np.arange(p.shape[1]) if y.ndim == 1 else y > 0
        values = [score(t, s) for t, s in zip(there.T, p.T) if 0 < t.sum() < len(t)]
        return np.mean(values) if values else math.nan

    return of


AREAS = {"auroc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
TIED = RNG.integers(0, 4, (14, 3)) / 4


@pytest.mark.parametrize("name", AREAS)
def test_draws_of_a_curve_from_ranks_are_those_of_scikit_learn(name):
    ranked_draws(METRICS[name], mean_of(AREAS[name]), TIED, np.r_[Y[:13] % 2, 2], "classification")
    ranked_draws(METRICS[name], mean_of(AREAS[name]), TIED[:4, :2], np.array([0, 1, 0, 1]), "classification")
    ranked_draws(METRICS[name], mean_of(AREAS[name]), TIED[:9], (TIED[::-1][:9] > 0.4).astype(float), "multi-label")


@pytest.mark.parametrize("function", AREAS.values())
def test_draws_of_a_scorer_of_a_curve_are_those_of_scikit_learn(function):
    found = metric_of(metrics.make_scorer(function, response_method="predict_proba"), "classification", classes="01")
    ranked_draws(
        found, lambda y, out: function(y, softmax(out)[:, 1]), TIED[:4, :2], np.array([0, 1, 0, 1]), "classification"
    )
    several = dict(multi_class="ovr") if function is metrics.roc_auc_score else {}
    found = metric_of(metrics.make_scorer(function, response_method="predict_proba", **several), "classification")
    ranked_draws(
        found, lambda y, out: function(y, softmax(out), **several), TIED, np.r_[Y[:13] % 2, 2], "classification"
    )
    assert mmlit.metrics.draws_of(found, "classification") == 300


def test_draws_of_a_scorer_count_the_class_that_is_named():
    scorer = metrics.make_scorer(metrics.average_precision_score, response_method="predict_proba", pos_label="ill")
    found, y = metric_of(scorer, "classification", classes=["ill", "well"]), np.array([0, 1, 0, 1, 1])
    ranked_draws(
        found,
        lambda y, out: metrics.average_precision_score(y == 0, softmax(out)[:, 0]),
        TIED[:5, :2],
        y,
        "classification",
    )


def test_draws_of_a_curve_with_other_options_ask_scikit_learn():
    for options in (dict(max_fpr=0.5), dict(average="micro")):
        scorer = metrics.make_scorer(metrics.roc_auc_score, response_method="predict_proba", **options)
        found, rows = metric_of(scorer, "classification"), np.random.default_rng(0).integers(120, size=120)
        y, out = (Y > 0).astype(int), OUT[:, :2]
        expected = metrics.roc_auc_score(y[rows], softmax(out[rows])[:, 1], **options)
        assert math.isclose(drawn_scores(found, out, y, "classification", draws=1)[1], expected)
        assert mmlit.metrics.draws_of(found, "classification") == 100


GRADES = np.array(["low", "mid", "high"])


def graded(y, **options):
    "A data set whose answers are off by one grade at most."
    x = RNG.normal(size=(2, len(y), 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return multimodal_data(dict(a=x[0], b=x[1]), y, **options)


def kappa_of(data, guess):
    "Of answers that name a class each."
    out = torch.eye(3)[[data.classes.index(str(v)) for v in guess]] * 9
    return metric_of("quadratic_kappa", "classification")(out, data.y, "classification")


LINEAR = metrics.make_scorer(metrics.cohen_kappa_score, weights="linear")
ORDINAL = [
    "quadratic_kappa",
    LINEAR,
    Metric("own", ("classification",), function=functools.partial(metrics.cohen_kappa_score, weights="quadratic")),
]


@pytest.mark.parametrize("metric", ORDINAL)
@pytest.mark.parametrize("names, taken", [(GRADES, "high, low, mid"), (np.array(["9", "10", "11"]), "10, 11, 9")])
def test_classes_in_no_known_order_are_refused_where_distance_counts(tmp_path, metric, names, taken):
    grade = RNG.integers(0, 3, 120)
    for y in (names[grade], list(names[grade]), pd.Series(names[grade], dtype="category")):
        data = graded(y)
        for refused in (
            compare,
            lambda d, *args, **options: audit(
                data=d, budget=args[2], metric=options["metric"], out=tmp_path, workers=1, progress=False
            ),
        ):
            with pytest.raises(ValueError, match=f"that of the alphabet, {taken}. Give classes="):
                refused(data, ["joint"], 1, Budget(epochs=1), tmp_path, metric=metric, workers=1, progress=False)
    assert not any(tmp_path.rglob("*.*"))  # nothing was trained


def test_a_known_order_is_honoured(tmp_path):
    grade = RNG.integers(0, 3, 120)
    guess = np.clip(grade + RNG.integers(-1, 2, 120), 0, 2)
    expected = metrics.cohen_kappa_score(grade, guess, weights="quadratic")
    ordered = pd.Series(pd.Categorical(GRADES[grade], GRADES, ordered=True))
    known = [graded(GRADES[grade], classes=list(GRADES)), graded(ordered), graded(ordered.to_frame("grade"))]
    for data in known:
        assert data.ordered and data.classes == list(GRADES)
        assert kappa_of(data, GRADES[guess]) == pytest.approx(expected)
    numbers = graded(grade + 9)
    assert numbers.ordered and kappa_of(numbers, guess + 9) == pytest.approx(expected)
    found = compare(
        known[0], ["joint"], 1, Budget(epochs=1), tmp_path, metric="quadratic_kappa", workers=1, progress=False
    )
    assert found.score("data") == "quadratic_kappa"


def test_where_distance_does_not_count_words_need_no_order():
    assert [m.name for m in METRICS.values() if m.ordinal] == ["quadratic_kappa"]
    assert not metric_of(metrics.make_scorer(metrics.cohen_kappa_score), "classification").ordinal
    assert metric_of(LINEAR, "classification").ordinal
    assert graded(GRADES[:2][RNG.integers(0, 2, 120)]).ordered  # of two, either order has the same distances
    y = GRADES[RNG.integers(0, 3, 120)]
    joined = joined_parts(graded(y), graded(y))
    assert not (graded(y).ordered or joined.ordered or graded(y).subset(np.arange(60)).ordered)
