"""Public functions of valuation, modulation and strength under generated input.

Anything but a right answer or a ValueError / TypeError of the library fails, and NaN never becomes a number.
"""

import math

import torch
from fuzzing import TIMES, refused, run
from hypothesis import strategies as st
from torch.testing import assert_close

from mmlit.audits.strength import competition_strength
from mmlit.methods.modulation import (
    GradientModulation,
    modality_responses,
    modulation_coefficients,
    response_scores,
    routed_logits,
    routing_coefficients,
    update_history,
)
from mmlit.methods.shapley import (
    FREQUENCIES,
    ModalityResampling,
    combine_coalitions,
    draw_rows,
    modality_valuation,
    permutation_coalitions,
    random_orders,
    resampling_frequency,
    resampling_plan,
    shapley_matrix,
    shapley_values,
    shapley_values_sampled,
)

F64 = torch.float64
numbers = st.one_of(st.integers(-3, 70), st.floats(), st.sampled_from([None, True, "1", "", (), math.inf, math.nan]))
entries = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
dtypes = st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, F64])


@st.composite
def tensors(draw, shape=None, dtype=None, values=entries):
    shape = draw(st.lists(st.integers(0, 5), max_size=3)) if shape is None else shape
    size = math.prod(shape)
    made = torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=F64).view(shape)
    dtype = draw(dtypes) if dtype is None else dtype
    return made.to(dtype) if dtype.is_floating_point else made.nan_to_num(0, 9, -9).clamp(-9, 9).to(dtype)


def fuzz(times, strategy, check):
    run(lambda drawn: check(*drawn), 30 * times, strategy)


def check_game(v):
    phi = refused(lambda: shapley_values(v))
    m = refused(lambda: modality_responses(v))
    valid = v.ndim > 0 and len(v) in (2, 4, 8, 16, 32)
    assert (phi is not None) == valid and (m is not None) == valid
    if not valid:
        return
    wide = v.double() if not v.is_floating_point() else v
    if wide.isfinite().all():
        size = max(1.0, wide.double().abs().max().item() if wide.numel() else 1.0)
        assert_close(phi.sum(0).double(), (wide[-1] - wide[0]).double(), atol=1e-2 * size, rtol=1e-2)
        assert_close(m.sum(0).double(), wide[-1].double(), atol=1e-2 * size, rtol=1e-2)
    elif v.numel():
        assert not phi[:, ~wide.isfinite().all(0)].isfinite().all()


def check_correct(v):
    phi = refused(lambda: modality_valuation(v))
    valid = v.ndim > 0 and len(v) in (2, 4, 8, 16, 32) and ((v == 0) | (v == 1)).all()
    assert (phi is not None) == bool(valid)
    if valid:
        M = len(phi)
        assert_close(phi.sum(0), M * v[-1].double())
        if phi.numel():
            assert -(M - 1) / 2 - 1e-12 <= phi.min() and phi.max() <= (M + 1) / 2 + 1e-12


def games():
    return st.integers(0, 6).flatmap(
        lambda n: st.tuples(
            tensors([n and 2 ** (n - 1), 2]) | tensors() | tensors([4, 2], None, st.sampled_from([0.0, 1.0]))
        )
    )


@TIMES
def test_games(times):
    fuzz(times, games(), check_game)
    fuzz(times, games(), check_correct)


def check_combined(weights, values):
    got = refused(lambda: combine_coalitions(weights, values))
    fits = weights.ndim == 2 and values.ndim > 0 and weights.shape[1] == len(values)
    assert (got is not None) == fits
    if fits:
        assert got.shape == (len(weights), *values.shape[1:])
        if values.is_floating_point() and values.isnan().any() and len(weights):
            assert got.isnan().any()


@TIMES
def test_combinations(times):
    fits = tensors([2, 3]), tensors([3, 2])
    fuzz(times, st.tuples(*fits) | st.tuples(tensors(), tensors()), check_combined)


def check_orders(table, M, K, antithetic):
    got = refused(lambda: permutation_coalitions(table))
    if got is not None:
        present, weights, steps = got
        assert (present.sum(1)[steps].diff(dim=1) == 1).all() and present[-1].all()
        assert_close(weights.sum(0)[-1], torch.tensor(1.0, dtype=F64))
    orders = refused(lambda: random_orders(M, K, antithetic))
    whole = all(type(n) is int and n >= 1 for n in (M, K))
    assert (orders is not None) == (whole and not (antithetic and K % 2))
    if orders is not None:
        assert orders.shape == (K, M) and (orders.sort(1).values == torch.arange(M)).all()
    sampled = refused(lambda: shapley_values_sampled(lambda present: present.double().sum(1), M, K, antithetic))
    if sampled is not None:
        assert_close(sampled.values, torch.ones(M, dtype=F64))
    matrix = refused(lambda: shapley_matrix(M if type(M) is not int else M % 12))
    assert (matrix is not None) == (type(M) is int and M % 12 > 0)


@TIMES
def test_orders(times):
    rows = st.integers(1, 5).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=3))
    tables = rows.map(torch.tensor) | tensors()
    fuzz(times, st.tuples(tables, numbers, numbers, st.booleans()), check_orders)


def is_number(x, low=0.0, high=math.inf, closed=False):
    real = isinstance(x, (int, float)) and not isinstance(x, bool)
    return real and low <= x <= high and (closed or x < math.inf)


def check_frequency(phi, level, function, alpha):
    got = refused(lambda: resampling_frequency(phi, level, function, alpha))
    good = phi.ndim == 2 and phi.numel() and phi.is_floating_point() and phi.isfinite().all()
    known = level in ("sample", "modality") and function in FREQUENCIES
    assert (got is not None) == bool(good and known and (alpha is None or is_number(alpha)))
    if got is None:
        return
    if level == "modality":
        assert got.shape == phi.shape[:1] and got.min() == 0 and got.max() <= 1
    else:
        assert got.shape == phi.shape and (got[phi >= 1] == 0).all() and (got >= 0).all()


@TIMES
def test_frequencies(times):
    phi = tensors([2, 3], None, st.floats(-1, 2)) | tensors()
    level, function = st.sampled_from(["sample", "modality", "rows", None]), st.sampled_from([*FREQUENCIES, "cube", 3])
    fuzz(times, st.tuples(phi, level, function, st.floats(0, 9) | numbers), check_frequency)


def check_plan(frequency, n, copies):
    got = refused(lambda: resampling_plan(frequency, n, max_copies=copies))
    if got is None:
        return
    rows, keep = got
    base = frequency.shape[1] if frequency.ndim == 2 else n
    assert torch.equal(rows[:base], torch.arange(base)) and keep[:base].all() and len(rows) == len(keep)
    assert (keep[base:].sum(1) == 1).all() and (copies is None or len(rows) - base <= copies)


@TIMES
def test_plans(times):
    small = st.integers(0, 3).map(float)
    frequency = tensors([2, 3], torch.int64, small) | tensors([2], F64, st.floats(0, 1)) | tensors()
    fuzz(times, st.tuples(frequency, st.none() | numbers, st.none() | numbers), check_plan)

    def rows(n, fraction, replacement):
        got = refused(lambda: draw_rows(n, fraction, replacement))
        assert (got is not None) == (type(n) is int and n >= 1 and is_number(fraction, 0, 1))
        if got is not None:
            assert len(got) == int(fraction * n) and ((0 <= got) & (got < n)).all()

    fuzz(times, st.tuples(numbers, st.floats(0, 1) | numbers, st.booleans()), rows)


def check_coefficients(score, history, alpha, cap, step):
    got = refused(lambda: modulation_coefficients(score, history, alpha, cap))
    fits = score.ndim == 1 and score.shape == history.shape and is_number(alpha) and is_number(cap, closed=True)
    if got is None or not fits:
        assert got is None and not (fits and score.is_floating_point())
        return
    if score.isnan().any() or history.isnan().any():
        assert got.isnan().any()
    elif score.isfinite().all() and history.isfinite().all():
        assert (got >= 0).all()
        routing = routing_coefficients(got)
        if got.isfinite().all() and got.numel() and got.max() < 1e6:
            assert_close(routing.sum().double(), got.mean().double(), rtol=1e-3, atol=1e-3)
    if type(step) is int and step >= 1:
        assert update_history(history, score, step).shape == score.shape
    else:
        assert refused(lambda: update_history(history, score, step)) is None


@TIMES
def test_coefficients(times):
    pair = st.tuples(tensors([3], F64), tensors([3], F64)) | st.tuples(tensors(), tensors())
    both = st.tuples(pair, st.floats(0, 5) | numbers, st.floats(0, 5) | numbers, numbers)
    fuzz(times, both.map(lambda d: (*d[0], *d[1:])), check_coefficients)


def check_scores(responses, y, kappa):
    got = refused(lambda: response_scores(responses, y))
    if got is not None:
        assert got.shape == responses.shape[:1]
        finite = responses.double().isfinite().all()
        if finite and responses.numel():
            assert (got <= 1e-6).all() and (got >= math.log(1e-8) - 1e-3).all()
        elif responses.isnan().any() and y.numel():
            assert not got.isfinite().all()
    routed = refused(lambda: routed_logits(responses, kappa))
    if routed is not None:
        assert routed.shape == responses.shape[1:]


@TIMES
def test_scores(times):
    responses = tensors([4, 3, 2], torch.float32) | tensors()
    y = (
        tensors([3], torch.int64, st.sampled_from([0.0, 1.0]))
        | tensors([3, 2], None, st.sampled_from([0.0, 1.0]))
        | tensors()
    )
    fuzz(times, st.tuples(responses, y, tensors([2], F64) | tensors()), check_scores)


@TIMES
def test_options_of_callbacks(times):
    def modulation(alpha, cap, start, end):
        got = refused(lambda: GradientModulation(alpha, cap, start, end))
        window = type(start) is int and start >= 0 and (end is None or (type(end) is int and end > start))
        assert (got is not None) == (is_number(alpha) and is_number(cap, closed=True) and window)

    def resampling(warmup, fraction, copies, seed):
        got = refused(lambda: ModalityResampling("modality", warmup, fraction, max_copies=copies, seed=seed))
        whole = all(type(n) is int and n >= 0 for n in (warmup, seed, 0 if copies is None else copies))
        assert (got is not None) == (whole and is_number(fraction, 0, 1) and fraction > 0)

    fuzz(times, st.tuples(numbers, numbers, numbers, numbers), modulation)
    fuzz(times, st.tuples(numbers, st.floats(0, 1) | numbers, numbers, numbers), resampling)


@TIMES
def test_strength(times):
    def check(h, c, eval_h, eval_c, alpha):
        got = refused(lambda: competition_strength(h, c, eval_h, eval_c, alpha))
        if got is not None:
            assert got.ndim == 0 and got.dtype == F64 and got >= 0 and got.isfinite()

    nice = st.floats(-10, 10)
    four = st.tuples(*(tensors([5, d], F64, nice) for d in (2, 3, 2, 3)), st.floats(0, 200) | numbers)
    fuzz(times, four | st.tuples(*[tensors()] * 4, numbers), check)
