"Linear models beside the networks: held to scikit-learn on raw inputs, for every kind of input and task."

import warnings

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.data.losses import with_class_weights, with_weights
from mmlit.fitting import train_run
from mmlit.learner import METHODS
from mmlit.locked import is_locked
from mmlit.methods import linear
from mmlit.methods.linear import fit_linear, linear_run
from mmlit.training import Budget

STRENGTHS = 10.0 ** np.arange(1, -7, -1)
RNG = np.random.default_rng(0)
N = 300


def answers_of(model, dls, m, part=2):
    with torch.no_grad():
        return torch.cat([model(batch[m]) for batch in dls[part]]).double().numpy()


def by_hand(z, y, split, weights=None):
    "Test probabilities of the logistic regression whose log loss on validation is smallest."
    n, best = len(split.train), None
    for strength in STRENGTHS:
        own = LogisticRegression(C=1 / (n * strength), max_iter=3000, tol=1e-6)
        own.fit(z[split.train], y[split.train], None if weights is None else weights[split.train])
        p = own.predict_proba(z[split.valid])
        loss = -np.log(p[np.arange(len(p)), y[split.valid]]).mean()
        if best is None or loss < best[0]:
            best = loss, own.predict_proba(z[split.test])
    return best[1]


def scaled(x, split):
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    return StandardScaler().fit(x[split.train]).transform(x)


def softmax(logits):
    return torch.as_tensor(logits).softmax(-1).numpy()


def classes(n=N, c=3):
    y = np.arange(n) % c
    return y, RNG.normal(size=(n, 4)) + np.eye(c, 4)[y]


def test_words_are_tf_idf_of_the_training_rows():
    y, x = classes()
    vocabulary = "red green blue grey pink".split()
    texts = [" ".join(RNG.choice(vocabulary, 5, p=np.roll([0.4, 0.3, 0.1, 0.1, 0.1], k))) for k in y]
    data = MultimodalData("texts", dict(words=np.array(texts, dtype=object), x=x), y, ["a", "b", "c"])
    dls = multimodal_dls(data)
    z = TfidfVectorizer().fit([texts[i] for i in dls.split.train]).transform(texts)
    found = softmax(answers_of(fit_linear(dls, "words"), dls, 0))
    assert np.abs(found - by_hand(z, y, dls.split)).max() < 0.01


@pytest.mark.parametrize("shape", [(5,), (2, 7), (1, 6, 5)])
def test_small_inputs_are_read_whole(shape):
    y, _ = classes()
    x = RNG.normal(size=(N, *shape))
    x.reshape(N, -1)[:, :3] += np.eye(3)[y]
    data = MultimodalData("arrays", dict(x=x, y=RNG.normal(size=(N, 2))), y, ["a", "b", "c"])
    with warnings.catch_warnings(action="ignore"):
        dls = multimodal_dls(data)
    z = x.reshape(N, -1)
    if len(shape) == 2:
        encoded = x - x[dls.split.train].mean((0, 2), keepdims=True)
        encoded = encoded / x[dls.split.train].std((0, 2), keepdims=True)
        z = np.concatenate([encoded.reshape(N, -1), encoded.std(2)], 1)
    found = softmax(answers_of(fit_linear(dls, "x"), dls, 0))
    assert np.abs(found - by_hand(scaled(z, dls.split), y, dls.split)).max() < 0.01


def test_two_classes_and_their_weights():
    y, x = classes(c=2)
    data = with_class_weights(MultimodalData("two", dict(x=x, z=x[:, :2]), y, ["a", "b"]), [1.0, 5.0])
    dls = multimodal_dls(data)
    found = softmax(answers_of(fit_linear(dls, "x"), dls, 0))
    assert np.abs(found - by_hand(scaled(x, dls.split), y, dls.split, np.array([1.0, 5.0])[y])).max() < 0.01


def test_rows_of_weight_zero_have_no_say():
    y, x = classes(c=2)
    split = tuple(np.split(np.arange(N), [200, 250]))
    weights = np.where((np.arange(N) < 200) & (RNG.random(N) < 0.5), 0.0, 1 + (np.arange(N) % 3))
    wrong = np.where(weights == 0, 1 - y, y)
    dls = multimodal_dls(with_weights(MultimodalData("w", dict(x=x, z=x), wrong, ["a", "b"]), weights), split=split)
    found = softmax(answers_of(fit_linear(dls, "x"), dls, 0))
    own = weights / weights[dls.split.train].mean()
    assert (weights[dls.split.train] > 0).all() and len(dls.split.train) < 150
    assert np.abs(found - by_hand(scaled(x, dls.split), y, dls.split, own)).max() < 0.01


def test_several_labels_are_a_regression_each():
    x = RNG.normal(size=(N, 4))
    y = (x[:, :3] + RNG.normal(size=(N, 3)) > 0).astype(int)
    data = MultimodalData("labels", dict(x=x, z=x[:, :2]), y, ["a", "b", "c"], task="multi-label")
    dls = multimodal_dls(data)
    found = answers_of(fit_linear(dls, "x"), dls, 0)
    z, split, losses = scaled(x, dls.split), dls.split, {}
    for strength in STRENGTHS:
        models = [
            LogisticRegression(C=1 / (len(split.train) * strength), tol=1e-6).fit(z[split.train], y[split.train, k])
            for k in range(3)
        ]
        p = np.stack([m.predict_proba(z[split.valid])[:, 1] for m in models], 1)
        target = y[split.valid]
        loss = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
        losses[strength] = loss, np.stack([m.decision_function(z[split.test]) for m in models], 1)
    expected = min(losses.values(), key=lambda pair: pair[0])[1]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_a_ridge_regression_in_their_units(targets):
    x = RNG.normal(size=(N, 4))
    y = 1000 + 50 * (x[:, :targets] + 0.3 * RNG.normal(size=(N, targets)))
    y = y[:, 0] if targets == 1 else y
    dls = multimodal_dls(MultimodalData("numbers", dict(x=x, z=x[:, :2]), y))
    found = answers_of(fit_linear(dls, "x"), dls, 0)
    z, split, best = scaled(x, dls.split), dls.split, None
    for strength in STRENGTHS:
        own = Ridge(alpha=len(split.train) * strength).fit(z[split.train], y[split.train])
        rest = (y[split.valid] - own.predict(z[split.valid])) ** 2
        r2 = (1 - rest.mean(0) / y[split.valid].var(0)).mean()
        if best is None or r2 > best[0]:
            best = r2, own.predict(z[split.test]).reshape(len(split.test), -1)
    assert np.abs(found - best[1]).max() < 0.05 and found.mean() > 900


def test_rows_that_lack_the_modality_are_not_fitted_and_have_no_voice(tmp_path):
    y, x = classes()
    gone = RNG.random(N) < 0.4
    noisy = np.where(gone[:, None], np.nan, x)
    data = MultimodalData("gaps", dict(x=noisy, z=x[:, :2]), y, ["a", "b", "c"], presence=dict(x=~gone))
    dls = multimodal_dls(data)
    model = fit_linear(dls, "x")
    there = [rows[~gone[rows]] for rows in dls.split]
    expected = by_hand(scaled_on(x, there[0]), y, dls.split._replace(train=there[0], valid=there[1], test=there[2]))
    with torch.no_grad():
        xs = torch.cat([b[0]["values"][b[0]["present"]] for b in dls[2]])
        found = softmax(model(xs).double())
    assert np.abs(found - expected).max() < 0.01

    answers = [train_run(run, data, 0, Budget(epochs=1))[0] for run in METHODS["linear"].runs(data.modalities)]
    rows = METHODS["linear"].combine(answers, data)
    alone = gone[dls.split.test]
    left = torch.as_tensor(answers[1].test).log_softmax(1)
    assert np.allclose(rows["linear ensemble"].test[alone], left[alone], atol=1e-5)


def scaled_on(x, train):
    return StandardScaler().fit(x[train]).transform(x)


def test_the_strength_is_chosen_by_validation_behind_the_lock(monkeypatch):
    seen = []
    whole = linear.best_on_validation
    monkeypatch.setattr(linear, "best_on_validation", lambda *a, **k: seen.append((is_locked(), k)) or whole(*a, **k))
    train_run(linear_run("left"), load_dataset("digits"), 0, Budget(epochs=1))
    assert seen == [(True, dict(finely=True))]


def test_a_class_that_is_missing_from_the_rows_is_unlikely_and_possible():
    y, x = classes()
    gone = y == 2
    data = MultimodalData("rare", dict(x=x, z=x), y, ["a", "b", "c"], presence=dict(x=~gone))
    dls = multimodal_dls(data)
    with torch.no_grad():
        p = fit_linear(dls, "x")(torch.randn(50, 4)).softmax(1)
    assert p.isfinite().all() and (p[:, 2] > 0).all() and p[:, 2].max() < 0.01
    only = MultimodalData("one", dict(x=x, z=x), y, ["a", "b", "c"], presence=dict(x=y == 0))
    with torch.no_grad():
        p = fit_linear(multimodal_dls(only), "x")(torch.randn(50, 4)).softmax(1)
    assert (p.argmax(1) == 0).all() and p.isfinite().all()


def test_sequences_of_any_length_are_read_by_the_steps_that_are_there():
    y, _ = classes()
    rows = [RNG.normal(size=(2, RNG.integers(3, 9))) + k for k in y]
    data = MultimodalData(
        "ragged",
        dict(x=rows, z=np.zeros((N, 2)) + RNG.normal(size=(N, 2))),
        y,
        list("abc"),
        layout=dict(x="channels_first"),
    )
    answer, model = train_run(linear_run("x"), data, 0, Budget(epochs=1))
    assert answer.scores("test", data.task)["accuracy"] > 0.8 and answer.info["steps"] == 0


def test_whole_numbers_by_name_are_refused_and_the_table_says_why(tmp_path):
    y, x = classes()
    parts = dict(ids=np.arange(N * 2).reshape(N, 2) % 7, values=RNG.normal(size=(N, 2)).astype(np.float32))
    data = MultimodalData("parts", dict(x=x, several=parts), y, ["a", "b", "c"])
    dls = multimodal_dls(data)
    with pytest.raises(ValueError, match="whole numbers may be ids, masks or counts"):
        fit_linear(dls, "several")
    assert fit_linear(dls, "x") is not None


def test_linear_beside_the_ensemble_brings_each_network(tmp_path):
    untrained = Budget(epochs=1, lr=1e-6)
    found = compare("digits", ["linear"], 3, untrained, tmp_path, workers=1, progress=False)
    linears, networks = (
        [f"{kind} left", f"{kind} right", f"{last}"]
        for kind, last in (("linear", "linear ensemble"), ("unimodal", "best unimodal"))
    )
    assert list(dict.fromkeys(found.runs.method)) == [*linears, "ensemble", *networks]
    assert (found.runs.encoder_steps[found.runs.method.str.startswith("linear")] == 0).all()
    text = repr(found)
    for side in ("left", "right"):
        start = f"the ensemble's encoder for {side} is below a linear model (linear {side} minus unimodal {side}: +"
        assert start in text
    assert "an ensemble of under-trained models is no opponent" in text
    assert "the ensemble is below the mean of linear models" in found.to_dict()["notes"]["digits"][2]
    other = compare("digits", ["linear"], 1, untrained, tmp_path, reference="joint", workers=1, progress=False)
    assert "unimodal left" not in set(other.runs.method)  # nobody asked for networks of one modality


def test_a_linear_model_is_fitted_once_for_all_numbers_of_steps(tmp_path):
    budget = Budget(steps=(2, 4))
    found = compare("digits", ["linear"], 1, budget, tmp_path, reference="joint", workers=1, progress=False)
    runs = [path.parent.name for path in tmp_path.rglob("*.npz")]
    assert sorted(runs) == ["joint", "joint", "linear_left", "linear_right"]
    longer = compare("digits", ["linear"], 1, Budget(epochs=2), tmp_path, reference="joint", workers=1, progress=False)
    assert len([*tmp_path.rglob("linear_*/*.npz")]) == 2
    scores = [f.runs.set_index("method").accuracy["linear ensemble"] for f in (found, longer)]
    assert scores[0] == scores[1] > 0.8
