"Bounds against exact laws, estimators against truths, intervals by coverage."

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from torch.testing import assert_close

from mmlit.bounds import donsker_varadhan, info_nce, log_mean_exp, matched_logits, nwj, tcne, tcne_additive
from mmlit.estimators.direct import Estimate, as_variable
from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
from mmlit.estimators.learned import NeuralEstimator
from mmlit.information import conditional_mutual_information, gaussian_mutual_information
from mmlit.information import gaussian_total_correlation, kl_divergence, mutual_information, total_correlation

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("certify", ROOT / "tools" / "certify.py")
certify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(certify)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def law(*shape, seed=0):
    return (
        torch.rand(shape, generator=generator(seed), dtype=torch.float64)
        .pow(2)
        .flatten()
        .div_(1)
        .softmax(0)
        .reshape(shape)
    )


def gaussians(rng, n, d, rho):
    x = rng.normal(size=(n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(n, d))


# the bounds


@pytest.mark.parametrize("seed", range(5))
def test_donsker_varadhan_of_weighted_draws_is_below_the_divergence_and_tight_at_the_log_ratio(seed):
    p, q = torch.randn(2, 7, generator=generator(seed), dtype=torch.float64).softmax(1)
    exact = lambda T: (p * T).sum() - (q.log() + T).logsumexp(0)
    assert_close(exact((p / q).log() - 3), kl_divergence(p, q))
    for T in torch.randn(200, 7, generator=generator(seed + 10), dtype=torch.float64) * 3:
        assert exact(T) <= kl_divergence(p, q) + 1e-12


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_donsker_varadhan_and_nwj_at_the_best_score_are_the_gaussian_information(rho, runs=60, n=3000):
    truth = gaussian_mutual_information(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64), (1, 1)).item()
    T = lambda x, y: -0.5 * math.log(1 - rho**2) - (rho**2 * (x * x + y * y) - 2 * rho * x * y) / (2 * (1 - rho**2))
    bounds = []
    for seed in range(runs):
        x, e, other = torch.randn(3, n, generator=generator(seed), dtype=torch.float64)
        y = rho * x + math.sqrt(1 - rho**2) * e
        bounds.append([donsker_varadhan(T(x, y), T(x, other)), nwj(1 + T(x, y), 1 + T(x, other))])
    bounds = torch.tensor(bounds)
    error = bounds.std(0) / math.sqrt(runs)
    assert (error < 0.01).all() and ((bounds.mean(0) - truth).abs() <= 4 * error + 1e-7).all()


@pytest.mark.parametrize("n", [2, 5, 30])
def test_info_nce_is_at_most_log_n_and_below_the_truth_in_expectation(n, runs=4000, rho=0.9):
    truth = -0.5 * math.log(1 - rho**2)
    x, e = torch.randn(2, runs, n, generator=generator(), dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * e
    a, b = x[:, :, None], y[:, None]
    bounds = torch.stack([info_nce(s) for s in -(rho**2 * (a * a + b * b) - 2 * rho * a * b) / (2 * (1 - rho**2))])
    assert (bounds <= math.log(n) + 1e-9).all()
    assert bounds.mean() < min(truth, math.log(n)) + 4 * bounds.std() / math.sqrt(runs)


def test_log_mean_exp_is_finite_and_has_softmax_gradients():
    x = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    log_mean_exp(x).backward()
    assert_close(x.grad, torch.tensor([1.0, 0.0, 0.0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert log_mean_exp(torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 2, 3, 3)])
@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_tcne_on_a_table_written_out_as_a_batch_is_the_total_correlation(shape, prior):
    "A law whose cells are multiples of 1/B is a batch; the best score reaches TC of that batch, with the surplus of the uniform prior."
    rows = torch.stack(
        [
            torch.randint(s, (40,), generator=generator(3))
            if m == 0
            else torch.randint(s, (40,), generator=generator(m))
            for m, s in enumerate(shape)
        ],
        1,
    )
    *zs, y = rows.T
    p = torch.zeros(shape, dtype=torch.float64)
    p.index_put_(tuple(rows.T), torch.full((40,), 1 / 40, dtype=torch.float64), accumulate=True)
    q = torch.ones((), dtype=torch.float64)
    for m in range(len(shape)):
        marginal = p.sum([d for d in range(p.ndim) if d != m])
        q = q[..., None] * (
            marginal if m < p.ndim - 1 or prior == "empirical" else torch.full_like(marginal, 1 / shape[-1])
        )
    best = torch.where(p > 0, (p / q).log(), -60.0)
    scores = best[tuple(z.reshape((1,) * m + (-1,) + (1,) * (len(zs) - 1 - m)) for m, z in enumerate(zs))]
    label = p.sum(list(range(p.ndim - 1)))
    surplus = (math.log(shape[-1]) + torch.special.xlogy(label, label).sum()) if prior == "uniform" else 0
    assert_close(tcne(scores, y, prior), total_correlation(p) + surplus)


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_additive_form_is_the_full_form(M, prior):
    f = torch.randn(M, 5, 3, generator=generator(M), dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2, 2, 0, 2])  # class 1 absent
    full = sum(f[m].reshape((1,) * m + (5,) + (1,) * (M - m - 1) + (3,)) for m in range(M))
    assert_close(tcne_additive(f, y, prior), tcne(full, y, prior))
    fast, slow = (
        torch.autograd.grad(loss, f, retain_graph=True)[0]
        for loss in (tcne_additive(f, y, prior), tcne(full, y, prior))
    )
    assert_close(fast, slow)
    assert fast.isfinite().all() and fast.sum().abs() < 1e-12  # a constant changes nothing


def test_scores_of_1e4_are_finite_with_finite_gradients():
    for make in (
        lambda: 1e4 * torch.randn(3, 6, 4, generator=generator()),
        lambda: 1e4 * torch.randn(6, 6, 4, generator=generator()),
    ):
        scores = make().requires_grad_()
        loss = (tcne_additive if len(scores) == 3 else tcne)(scores, torch.arange(6) % 4)
        loss.backward()
        assert loss.isfinite() and scores.grad.isfinite().all()
    assert matched_logits(torch.zeros(1, 1, 3)).shape == (1, 3) and tcne(torch.zeros(1, 1, 3), torch.tensor([2])) == 0


@pytest.mark.parametrize("seed", range(3))
def test_no_additive_score_exceeds_the_sum_of_pair_informations(seed):
    "The theorem, on random laws with three modalities and random scores; equality at its optimum."
    p = law(2, 3, 2, 3, seed=seed)
    q = torch.ones((), dtype=torch.float64)
    for m in range(4):
        q = q[..., None] * p.sum([d for d in range(4) if d != m])
    pairs = sum(mutual_information(p.sum([d for d in range(3) if d != m])) for m in range(3))
    bound = lambda f: (p * f).sum() - (q.log() + f).flatten().logsumexp(0)
    spread = lambda t, m: t.reshape([t.shape[0] if d == m else t.shape[1] if d == 3 else 1 for d in range(4)])

    def best(m):
        joint = p.sum([d for d in range(3) if d != m])
        return spread((joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log(), m)

    assert_close(bound(sum(best(m) for m in range(3))), pairs)
    for k in range(200):
        g = generator(1000 * seed + k)
        assert (
            bound(sum(spread(torch.randn(p.shape[m], 3, generator=g, dtype=torch.float64), m) for m in range(3)))
            <= pairs + 1e-12
        )
    assert pairs < total_correlation(p)


# estimates from samples


@pytest.mark.parametrize("law", certify.LAWS, ids=lambda l: f"{l.quantity}-{l.name}")
def test_each_law_owns_its_truth(law, n=40_000):
    ratio = law.log_ratio(*law.sample(n, np.random.default_rng(5)))
    error = ratio.std() / math.sqrt(n)
    assert error < 0.02 and abs(ratio.mean() - law.truth) <= 4 * error + 1e-9


def test_truths_agree_with_the_exact_module():
    by_name = {(l.quantity, l.name): l for l in certify.LAWS}
    assert math.isclose(
        by_name["cmi", "table, redundant"].truth,
        conditional_mutual_information(torch.tensor(certify.redundant_table())).item(),
        abs_tol=1e-12,
    )
    assert math.isclose(by_name["tc", "XOR, exact"].truth, math.log(2), abs_tol=1e-12)
    gaussian = by_name["tc", "Gaussian 1+1+1"]
    assert math.isclose(
        gaussian.truth, gaussian_total_correlation(torch.tensor(gaussian.covariance), (1, 1, 1)).item(), abs_tol=1e-12
    )


@pytest.mark.parametrize(
    "quantity, name",
    [
        ("mi", "table 5x5, independent"),
        ("mi", "table 4x6, random"),
        ("cmi", "table 2x4x3, random"),
        ("tc", "XOR, 10 % flipped"),
    ],
)
def test_plugin_interval_covers(quantity, name, runs=400, n=300):
    law = next(l for l in certify.LAWS if (l.quantity, l.name) == (quantity, name))
    estimates = [certify.run(law, "plugin", n, 5000 + r)[0] for r in range(runs)]
    values = np.array([e.value for e in estimates])
    inside = np.mean([e.low <= law.truth + 1e-12 and law.truth - 1e-12 <= e.high for e in estimates])
    assert abs(values.mean() - law.truth) < 4 * values.std() / math.sqrt(runs) + 0.002
    assert 0.90 <= inside <= 0.99


@pytest.mark.parametrize("name", ["Gaussian 1+1, rho 0.6", "Student 1+1, 2 d.o.f., rho 0.5", "step, 5 labels"])
def test_nearest_neighbour_interval_covers(name, runs=60, n=500):
    law = next(l for l in certify.LAWS if l.name == name)
    estimates = [certify.run(law, "knn", n, 5000 + r)[0] for r in range(runs)]
    values = np.array([e.value for e in estimates])
    inside = np.mean([e.low <= law.truth <= e.high for e in estimates])
    assert inside >= 0.85  # 60 runs at 93 %: 4 standard errors
    assert abs(values.mean() - law.truth) < 0.03


def test_nearest_neighbours_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 1500, 1, 0.7)
    assert abs(estimate_mi(x, y, method="knn").value - mutual_info_regression(x, y[:, 0], random_state=0)[0]) < 0.04
    label = rng.integers(0, 3, 1500)
    features = rng.normal(size=1500) + label
    assert (
        abs(
            estimate_mi(label, features, method="knn").value
            - mutual_info_classif(features[:, None], label, random_state=0)[0]
        )
        < 0.03
    )


def test_nearest_neighbours_count_ties():
    "Half the samples share one value: a mixture of an atom and a density."
    rng = np.random.default_rng(0)
    hit = rng.random(3000) < 0.5
    x, y = np.where(hit, 0.0, rng.random(3000) + 1), np.where(hit, 0.0, rng.random(3000) + 1)
    assert abs(estimate_mi(x, y, method="knn").value - math.log(2)) < 0.05


@pytest.mark.parametrize("method", ["knn", "plugin", "classifier", "neural"])
def test_estimates_do_not_depend_on_units_or_order(method):
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 300, 1, 0.6)
    if method != "knn":
        y = (y[:, 0] > 0).astype(int)
    if method == "plugin":
        x = (x[:, 0] > 0.3).astype(int)
    options = dict(neural=NeuralEstimator(folds=2, steps=50)) if method == "neural" else {}
    first = estimate_mi(x, y, method=method, **options)
    second = estimate_mi(x if method == "plugin" else np.exp(2 * x) + 5, y, method=method, **options)
    assert math.isclose(first.value, second.value, abs_tol=1e-9) and first == estimate_mi(
        x, y, method=method, **options
    )
    if method in ("knn", "plugin"):
        assert math.isclose(first.value, estimate_mi(y, x, method=method).value, abs_tol=1e-9)


def test_chain_rule_holds_between_the_plug_in_estimates():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(0, 3, (3, 800))
    y = np.where(rng.random(800) < 0.5, x, y)
    z = np.where(rng.random(800) < 0.5, (x + y) % 3, z)
    whole = estimate_mi((x, z), y).value
    assert math.isclose(whole, estimate_mi(z, y).value + estimate_cmi(x, y, z).value, abs_tol=1e-9)
    assert math.isclose(estimate_tc([x, y, z]).value, whole + estimate_mi(x, z).value, abs_tol=1e-9)


@pytest.mark.parametrize(
    "law",
    [
        l
        for l in certify.LAWS
        if l.quantity != "cmi" and l.name in ("Gaussian 5+5, rho 0.5", "Gaussian 4+4+4, rho 0.4", "label x 10 features")
    ],
    ids=lambda l: f"{l.quantity}-{l.name}",
)
def test_lower_bounds_stay_below_and_come_close(law):
    method = "classifier" if law.name.startswith("label") else "neural"
    estimate = certify.run(law, method, 1000, 77)[0]
    assert estimate.kind == "lower bound" and not estimate.covers
    assert estimate.low <= law.truth and estimate.value > 0.7 * law.truth


def test_methods_find_nothing_in_independent_data():
    rng = np.random.default_rng(0)
    x, y, label = rng.normal(size=(400, 3)), rng.normal(size=(400, 3)), rng.integers(0, 3, 400)
    for estimate in (
        estimate_mi(x, y),
        estimate_mi(x, label),
        estimate_mi(x[:, 0], y[:, 0]),
        estimate_cmi(x, label, y),
    ):
        assert estimate.low < 0.01 and estimate.value < 0.05


def test_classifier_sees_xor_and_ignores_a_known_condition():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 800))
    features = np.stack([2 * a - 1, 2 * b - 1], 1) * 2.0 + rng.normal(size=(800, 2))
    assert estimate_mi(features, a ^ b, method="classifier").value > 0.45
    assert abs(estimate_cmi(rng.normal(size=(800, 5)), a, features[:, 0], method="classifier").value) < 0.03


def test_neural_estimate_is_reproducible_and_leaves_the_global_generator_alone():
    rng = np.random.default_rng(0)
    x, y = gaussians(rng, 300, 2, 0.5)
    estimator = NeuralEstimator(folds=2, steps=50)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = estimate_mi(x, y, method="neural", neural=estimator)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert estimate_mi(x, y, method="neural", neural=estimator) == first
    assert estimate_mi(x, y, method="neural", neural=estimator, seed=1) != first


def test_a_critic_never_scores_the_samples_it_was_trained_on(monkeypatch):
    seen = []
    fit, held_out = NeuralEstimator.fit, NeuralEstimator._held_out
    monkeypatch.setattr(
        NeuralEstimator,
        "fit",
        lambda self, parts, g: (seen.append(set(parts[0][:, 0].tolist())), fit(self, parts, g))[1],
    )

    def check(self, critic, parts):
        assert not seen[-1] & set(parts[0][:, 0].tolist())
        return held_out(self, critic, parts)

    monkeypatch.setattr(NeuralEstimator, "_held_out", check)
    x = torch.randn(2, 120, 1, generator=generator())
    NeuralEstimator(folds=3, steps=25).terms(x)
    assert len(seen) == 3 and all(len(s) == 80 for s in seen)


@pytest.mark.parametrize(
    "dtype, discrete", [(np.float32, False), (np.int64, True), (bool, True), ("U1", True), (object, True)]
)
def test_kind_of_a_variable_follows_its_type(dtype, discrete):
    assert as_variable(np.array([0, 1, 1, 0]).astype(dtype)).discrete == discrete
    assert as_variable(np.array([0, 1, 1, 0]), discrete=not discrete).discrete != discrete


def test_estimate_prints_what_it_is():
    estimate = Estimate(0.1, 0.0, 0.2, "knn", "estimate", 30, warnings=("too few samples",))
    assert str(estimate).endswith("warning: too few samples") and not estimate.covers


# the table


def test_certification_keeps_finished_rows(tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "table.csv", []
    run = certify.run
    monkeypatch.setattr(certify, "run", lambda *a: calls.append(a) or run(*a))
    arguments = ["certify", "--quick", "--only", "10 % flipped", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    certify.main()
    first, rows = len(calls), out.read_text()
    assert first and len(certify.read(out)) >= 2
    certify.main()
    assert len(calls) == first and out.read_text() == rows  # nothing computed twice
    out.write_text("\n".join(rows.splitlines()[:-1]) + "\n")  # as if interrupted before the last row
    certify.main()
    assert first < len(calls) < 2 * first and len(out.read_text().splitlines()) == len(rows.splitlines())


def test_every_claim_of_the_table_holds():
    rows = certify.read(ROOT / "results" / "certification.csv").values()
    planned = {(law.quantity, law.name, e, n) for law, e, n, _ in certify.plan()}
    assert {certify.key(r) for r in rows} == planned, "laws or estimators changed: run python tools/certify.py"
    for row in rows:
        if row["claimed"] == "True":
            assert 0.90 <= float(row["coverage_quiet"]) <= 0.99, row
        if row["kind"] == "lower bound":  # consistent with 95 % or more, at the 0.1 % level
            repeats = int(row["repeats"])
            assert binom.sf(round((1 - float(row["low_holds"])) * repeats) - 1, repeats, 0.05) > 1e-3, row


@pytest.mark.parametrize("constant", [np.zeros(400, int), np.array(["a"] * 400), np.full(400, 3.0)])
def test_a_constant_changes_nothing(constant):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x + 0.5 * rng.normal(size=(400, 3))
    small = NeuralEstimator(folds=2, steps=50)
    with_it, without = (estimate_tc(xs, method="neural", neural=small) for xs in ([x, y, constant], [x, y]))
    if constant.dtype.kind != "f":
        assert with_it.value == without.value > 1
    label = estimate_mi(np.hstack([x, y]), np.zeros(400, int))
    assert label.value == label.low == label.high == 0


@pytest.mark.parametrize("classes", [2, 20])
def test_features_without_content_inform_about_nothing(classes):
    y = np.random.default_rng(0).integers(0, classes, 800)
    found = estimate_mi(np.zeros((800, 6)), y, method="classifier")
    assert found.low == 0 and abs(found.value) < 1e-6


def test_as_many_codes_as_samples_do_not_make_information():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        found = estimate_mi((rng.normal(size=(600, 6)), rng.integers(0, 9, (600, 4))), rng.integers(0, 2, 600))
        assert found.low == 0 and any("features" in w for w in found.warnings)


@pytest.mark.parametrize("sizes, rare", [((8, 2), 0.03), ((12, 2), 0.05)])
def test_tables_with_a_rare_label_are_covered_or_warned_about(sizes, rare, runs=300, n=300):
    rng = np.random.default_rng(0)
    found = [estimate_mi(rng.integers(0, sizes[0], n), rng.random(n) < rare) for _ in range(runs)]
    quiet = [e.low == 0 for e in found if e.covers]
    assert len(quiet) < runs / 4 or np.mean(quiet) > 0.9


def test_a_table_has_columns_of_several_types():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(a=rng.normal(size=500), b=rng.random(500) < 0.5))
    frame["c"] = np.where(frame.b, "x", "y")
    y = frame.a.to_numpy() + 0.5 * rng.normal(size=500)
    assert estimate_mi(frame, y).value < 2 and estimate_mi(frame, y).method == "knn"
    assert as_variable(frame).columns.shape == (500, 1) and as_variable(
        torch.ones(5, dtype=torch.bfloat16)
    ).columns.shape == (5, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: estimate_tc(pd.DataFrame({"a": x, "b": x})), "DataFrame"),
        (lambda x: estimate_mi((x, x[:50]), x), "different numbers"),
        (lambda x: estimate_mi(np.where(np.arange(100) < 3, None, "a"), x), "missing"),
        (lambda x: estimate_mi(pd.Series(pd.date_range("2020", periods=100)), x), "dates"),
        (lambda x: estimate_mi(x, x, discrete=True), "one entry a variable"),
        (lambda x: estimate_mi(x, x, method="knn", neighbours=0), "at least one neighbour"),
        (lambda x: estimate_mi(x, x, method="neural", neural=NeuralEstimator(folds=1)), "at least 2 folds"),
    ],
)
def test_input_that_cannot_be_meant_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=100))
