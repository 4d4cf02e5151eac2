"Options and answers drawn at random: a right value, or a ValueError that names what was given."

import math

import torch
from fuzzing import fuzz
from hypothesis import strategies as st

from mmlit.core import check_count, check_number
from mmlit.learner import Budget
from mmlit.methods.baselines import ModalityDropout, MultiLoss, ensemble_log_odds, ensemble_log_probabilities

NUMBERS = st.one_of(
    st.floats(), st.integers(-3, 10**6), st.booleans(), st.none(), st.text(max_size=3), st.just([1.0]), st.just(1j)
)


def refused_or(make, error=ValueError):
    "What `make` gives, or None where it refuses in the agreed way."
    try:
        return make()
    except error as e:
        assert "must be" in str(e) and "got" in str(e)
        return None


@fuzz(30, NUMBERS, st.sampled_from(["[0, inf)", "(0, inf)", "[0, 1)", "(0, 1)", "[-2, 3]", "(0, inf]"]))
def test_numbers_are_in_their_interval_or_refused(value, within):
    x = refused_or(lambda: check_number("x", value, within))
    low, high = map(float, within[1:-1].split(","))
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    ends = (value == low and within[0] == "[") or (value == high and within[-1] == "]")
    inside = real and (low < value < high or ends)
    assert (x is not None) is bool(inside) and (x is None or x == value)


@fuzz(30, NUMBERS, st.integers(0, 3))
def test_counts_are_whole_or_refused(value, least):
    n = refused_or(lambda: check_count("n", value, least))
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    assert (n is not None) is good and (n is None or n == value)


@fuzz(30, NUMBERS)
def test_options_of_methods_and_budgets_are_finite_or_refused(value):
    method = refused_or(lambda: MultiLoss(value))
    assert method is None or 0 <= method.weight < math.inf
    method = refused_or(lambda: ModalityDropout(value))
    assert method is None or 0 <= method.p < 1
    refused_or(lambda: ModalityDropout(seed=value))
    for name in ("epochs", "bs", "lr", "width"):
        refused_or(lambda: Budget(**{name: value}).check())  # noqa: B023  called at once


@fuzz(30, st.integers(1, 5), st.integers(1, 4), st.integers(2, 5), st.floats(-4, 4), st.integers(0, 10**6))
def test_ensembles_are_distributions_for_all_finite_logits(m, b, c, power, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = 10**power * torch.randn(m, b, c, generator=draw, dtype=torch.float64)
    for how in ("logprob", "prob"):
        together = ensemble_log_probabilities(logits, how)
        assert torch.allclose(together.logsumexp(-1), torch.zeros(b, dtype=torch.float64), atol=1e-9)
        odds = ensemble_log_odds(logits, how)
        assert odds.isfinite().all()
        assert (odds <= logits.max(0).values + 1e-9 * 10**power).all()
        assert (odds >= logits.min(0).values - 1e-9 * 10**power).all()
