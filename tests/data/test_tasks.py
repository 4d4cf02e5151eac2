"""The synthetic tasks keep their word: what they say of themselves is true of what they draw."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression

from mmlit.data.catalogue import load_dataset
from mmlit.data.tasks import (
    FiniteTask,
    GaussianTask,
    competition_task,
    easy_hard_task,
    members,
    parity_accuracy,
    parity_information,
    random_modality_task,
    shared_unique_task,
)

TASKS = {
    "finite": lambda: FiniteTask(np.random.default_rng(0).dirichlet(np.ones(2 * 3 * 2 * 3)).reshape(2, 3, 2, 3)),
    "easy_hard": easy_hard_task,
    "random_modality": random_modality_task,
    "shared_unique": shared_unique_task,
    "competition": lambda: competition_task((0.3, 0.2, 0.1), 0.2, 0.3),
    "correlated": lambda: GaussianTask(
        [[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], [[0.0], [1.0], [0.0]]], covariance=np.eye(3) + 0.5
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_more_modalities_never_know_less(name):
    truth = TASKS[name]().truth
    S = len(truth["bayes"])
    slack = 4 * (truth["bayes_se"].max() if "bayes_se" in truth else 0) + 1e-9
    for s in range(S):
        for m in range(S.bit_length() - 1):
            if not s >> m & 1:
                assert truth["bayes"][s | 1 << m] >= truth["bayes"][s] - slack
                assert truth["information"][s | 1 << m] >= truth["information"][s] - 2 * slack
    assert truth["information"][0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_draws_are_reproducible_and_carry_the_truth(name):
    task = TASKS[name]()
    a, b, c = task.sample(50, 0), task.sample(50, np.random.default_rng(0)), task.sample(50, 1)
    assert all(np.array_equal(a.xs[m], b.xs[m]) for m in a.modalities) and not np.array_equal(a.y, c.y)
    assert len(a.truth["bayes"]) == 2 ** len(a.xs)
    assert a.subset([0, 1]).truth is a.truth and a.select(a.modalities[:1]).truth == {}
    assert all(len(v) == 2 for v in a.subset([0, 1]).row_truth.values())


def test_a_finite_task_is_what_it_draws():
    task = TASKS["finite"]()
    data = task.sample(200_000)
    counts = np.zeros(task.table.shape)
    np.add.at(counts, (*(x.argmax(1) for x in data.xs.values()), data.y), 1 / len(data))
    assert np.abs(counts - task.table).max() < 5 * np.sqrt(task.table.max() / len(data))
    given_rest = task.truth["information"][7] - task.truth["information"][[6, 5, 3]]  # the chain rule
    np.testing.assert_allclose(task.decomposition.given_rest, given_rest, atol=1e-12)
    for s in range(8):
        assert FiniteTask(counts).truth["bayes"][s] == pytest.approx(task.truth["bayes"][s], abs=0.006)


def log_joint(task, xs, inside):
    """Log density of rows (given the modalities `inside`) and each class, (N, C), from the full densities."""
    ends = np.cumsum([0, *task.dims])
    at = np.concatenate([np.arange(ends[m], ends[m + 1]) for m in inside])
    x = np.concatenate([xs[m] for m in inside], 1)
    covariance = (np.eye(ends[-1]) if task.covariance is None else task.covariance)[np.ix_(at, at)]

    def density(k, c):
        centre = np.concatenate([task.patterns[k, m] * task.means[m][c] for m in inside])
        return multivariate_normal.logpdf(x, centre, covariance)

    shares = np.log(task.shares)
    per_class = [[share + density(k, c) for k, share in enumerate(shares)] for c in range(task.C)]
    return np.stack([np.logaddexp.reduce(patterns) for patterns in per_class], 1)


@pytest.mark.parametrize(
    "task",
    [easy_hard_task(dim=3), random_modality_task(dim=4), shared_unique_task(0.4, (0.2, 0.4)), TASKS["correlated"]()],
    ids=lambda t: t.name,
)
def test_the_best_rule_on_draws_is_as_right_as_a_gaussian_task_says(task, n=20_000):
    "Posterior from the full densities, pattern by pattern and class by class: the oracle of the small space."
    data = task.sample(n, 1)
    xs = [x.astype(float) for x in data.xs.values()]
    if task.maps is not None:
        xs = [x @ np.linalg.pinv(lift) for x, lift in zip(xs, task.maps)]

    for s in range(1, 2**task.M):
        log_p = log_joint(task, xs, [m for m in range(task.M) if s >> m & 1])
        log_p -= np.logaddexp.reduce(log_p, 1)[:, None]
        known = np.log(task.C) + log_p[np.arange(n), data.y]
        for found, key in ((log_p.argmax(1) == data.y, "bayes"), (known, "information")):
            se = np.hypot(found.std() / n**0.5, task.truth[f"{key}_se"][s])
            assert se < 0.01 and abs(found.mean() - task.truth[key][s]) < 4 * se, (s, key)


@pytest.mark.parametrize(
    "dials",
    [
        dict(unique=(0.4, 0.2), redundant=0.3),
        dict(unique=(0.5, 0.0), redundant=0.0, strength=(1, 3)),
        dict(unique=(0.3, 0.2, 0.1), redundant=0.2),
    ],
)
def test_a_linear_model_reaches_the_bayes_accuracy_of_every_coalition_without_synergy(dials):
    data = competition_task(**dials, dim=6).sample(20_000)
    for s in range(1, 2 ** len(data.xs)):
        x = np.concatenate([x for m, x in enumerate(data.xs.values()) if s >> m & 1], 1)
        fitted = LogisticRegression(tol=1e-2).fit(x[:10_000], data.y[:10_000])
        reached, best = fitted.score(x[10_000:], data.y[10_000:]), data.truth["bayes"][s]
        se = np.sqrt(best * (1 - best) / 10_000)
        assert se < 0.006 and -0.015 - 3 * se < reached - best < 4 * se, (s, reached, best)


def test_a_synergistic_bit_is_invisible_to_an_additive_model_and_to_each_modality():
    data = load_dataset("xor", n=6000, synergistic=0.6)
    x = np.concatenate(list(data.xs.values()), 1)
    assert data.truth["bayes"].tolist()[:3] == [0.5] * 3 and data.truth["bayes"][3] > 0.9
    assert abs(LogisticRegression().fit(x[:3000], data.y[:3000]).score(x[3000:], data.y[3000:]) - 0.5) < 0.04


def test_the_informative_modality_of_a_row_is_the_one_that_tells():
    data = random_modality_task(sigma=3.0).sample(4000)
    for m, x in enumerate(data.xs.values()):
        here = data.row_truth["informative"][:, m]
        direction = x[here][data.y[here] == 1].mean(0) - x[here][data.y[here] == 0].mean(0)
        guess = x @ direction > 0
        assert (guess == data.y)[here].mean() > 0.95 and abs((guess == data.y)[~here].mean() - 0.5) < 0.05


BAD = {
    "no dial": (lambda: competition_task((0, 0), 0, 0), r"one must be positive"),
    "negative dial": (lambda: competition_task((-0.1, 0)), r"each dial must lie"),
    "strength": (lambda: competition_task(strength=(1, 2, 3)), r"strength must be one positive factor or 2"),
    "small dim": (lambda: competition_task(dim=2), r"dim must be at least 3"),
    "table": (lambda: FiniteTask(np.array([[0.5, -0.5], [0.5, 0.5]])), r"negative entries"),
    "table of counts": (lambda: FiniteTask(np.ones((2, 2, 2))), r"sums to 8, expected 1"),
    "table of one axis": (lambda: FiniteTask(np.array([0.5, 0.5])), r"one axis per modality"),
    "means": (lambda: GaussianTask([np.zeros((2, 3)), np.zeros((3, 3))]), r"means must be M arrays \(C, D_m\)"),
    "patterns": (
        lambda: GaussianTask([np.zeros((2, 3))] * 2, patterns=[[1]]),
        r"patterns has shape \(1, 1\), expected \(K, 2\)",
    ),
    "shares": (lambda: GaussianTask([np.zeros((2, 3))] * 2, shares=[0.5]), r"shares must be 1 probabilities"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_members_are_the_bits_of_a_mask():
    assert [members(s) for s in range(8)] == [[], [0], [1], [0, 1], [2], [0, 2], [1, 2], [0, 1, 2]]


def test_parity_information_lies_between_the_accuracy_it_allows():
    "A bit that is guessed right with probability b holds between log 2 - h(b) and (2 b - 1) log 2 nats of information."
    for separations in [(0.5,), (3.0,), (1.0, 4.0), (2.0, 2.0, 5.0)]:
        b, information = parity_accuracy(separations), parity_information(separations)
        fano = np.log(2) + b * np.log(b) + (1 - b) * np.log(1 - b)
        assert fano - 1e-9 <= information <= (2 * b - 1) * np.log(2) + 1e-9
