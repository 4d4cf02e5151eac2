"Modality Shapley values: axioms, brute force over all orders, integrality, sampling, valuation, resampling plans."

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from common import generator
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find  # noqa: F401  adds Learner.lr_find
from torch import nn
from torch.testing import assert_close

from mmlit.core import eval_mode
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.coalitions import coalition_logits, coalitions, mask_features
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP, as_fusion
from mmlit.learner import FusionMethod, multimodal_learner
from mmlit.methods import shapley
from mmlit.methods.shapley import (
    _EXACT_MODALITIES,
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
    valuate,
)

F64 = torch.float64


def by_orders(v, n):
    "Average gain over all M! orders."
    phi = [0.0] * n
    for order in permutations(range(n)):
        s = 0
        for i in order:
            phi[i] += float(v[s | 1 << i] - v[s])
            s |= 1 << i
    return torch.tensor(phi, dtype=F64) / math.factorial(n)


def tables(n, k=None, seed=0):
    "All correctness tables (n <= 4), or k random ones; nobody's row is 0."
    if k is None:
        codes = torch.arange(2 ** (2**n - 1))
        rows = codes >> torch.arange(2**n - 1)[:, None] & 1
    else:
        rows = torch.randint(0, 2, (2**n - 1, k), generator=generator(seed))
    return torch.cat([torch.zeros(1, rows.shape[1], dtype=torch.long), rows])


# ---- the values


@pytest.mark.parametrize("n", range(1, 7))
def test_matrix_is_average_over_orders(n):
    for seed in range(3):
        v = torch.randn(2**n, generator=generator(seed), dtype=F64)
        assert_close(shapley_values(v), by_orders(v, n))


@pytest.mark.parametrize("n", range(1, 13))
def test_matrix_rows_and_columns(n):
    A = shapley_matrix(n)
    ends = torch.zeros(2**n, dtype=F64)
    ends[0], ends[-1] = -1, 1
    assert A.shape == (n, 2**n)
    assert_close(A.sum(1), torch.zeros(n, dtype=F64), atol=1e-12, rtol=0)
    assert_close(A.sum(0), ends, atol=1e-12, rtol=0)
    units = A * math.factorial(n)
    assert_close(units, units.round(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("n", range(1, 6))
def test_axioms(n):
    v, w = torch.randn(2, 2**n, 4, generator=generator(n), dtype=F64)
    phi = shapley_values(v)
    assert_close(phi.sum(0), v[-1] - v[0])
    assert_close(shapley_values(v - 3 * w), phi - 3 * shapley_values(w))
    for i in range(n):
        null = v[torch.arange(2**n) & ~(1 << i)]
        assert_close(shapley_values(null)[i], torch.zeros(4, dtype=F64))
    for order in permutations(range(n)):
        relabelled = [
            sum(1 << order[m] for m in range(n) if s >> m & 1) for s in range(2**n)
        ]  # new modality m is old order[m]
        assert_close(shapley_values(v[relabelled]), phi[list(order)])


@pytest.mark.parametrize("n", range(2, 6))
def test_symmetric_players_get_the_same(n):
    v = torch.randn(2**n, generator=generator(n), dtype=F64)
    swap = [s & ~3 | (s & 1) << 1 | s >> 1 & 1 for s in range(2**n)]
    phi = shapley_values(v + v[swap])
    assert_close(phi[0], phi[1])


def test_values_keep_shape_and_pass_gradients():
    v = torch.randn(8, 2, 3, 4, dtype=F64, requires_grad=True)
    assert shapley_values(v).shape == (3, 2, 3, 4)
    assert torch.autograd.gradcheck(shapley_values, v)


def test_precision_is_at_least_float32():
    v = torch.randn(8, 5, 3, generator=generator()) * 1e4
    exact = shapley_values(v.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = shapley_values(v)
    assert under_autocast.dtype == torch.float32
    assert_close(under_autocast.double(), exact, rtol=1e-5, atol=1e-2)
    assert shapley_values(v.bfloat16()).dtype == torch.float32
    assert shapley_values(v.bool()).dtype == shapley_values(v.long()).dtype == F64
    assert_close(shapley_values(v.bfloat16()), shapley_values(v.bfloat16().float()))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (6, 2), (0,)])
def test_wrong_number_of_coalitions_is_rejected(shape):
    with pytest.raises(ValueError, match="2\\*\\*M"):
        shapley_values(torch.zeros(shape))
    with pytest.raises(ValueError, match="2\\*\\*M"):
        modality_valuation(torch.zeros(shape))


def test_combining_rejects_misfits():
    with pytest.raises(ValueError, match="weights"):
        combine_coalitions(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="weights"):
        combine_coalitions(torch.zeros(2, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(2, 4\) and torch.float64 \(3, 1\)"):
        combine_coalitions(torch.zeros(2, 4), torch.zeros(3, 1, dtype=F64))


# ---- the valuation game


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])  # the weights of 7 times 7! are no integers in float64
def test_valuation_is_exact_in_integers(n):
    c = tables(n) if n <= 3 else tables(n, 100)
    phi = modality_valuation(c)
    units = math.factorial(n)
    oracle = torch.zeros(n, c.shape[1], dtype=torch.long)
    size = [s.bit_count() for s in range(2**n)]
    for order in permutations(range(n)):
        s = 0
        for i in order:
            t = s | 1 << i
            oracle[i] += size[t] * c[t] - size[s] * c[s]
            s = t
    assert torch.equal((phi * units).round().long(), oracle)
    assert torch.equal(phi, oracle.double() / units)  # correctly rounded, not merely close
    assert torch.equal(oracle.sum(0), units * n * c[-1])  # efficiency


def test_valuation_is_exact_for_many_modalities():
    n = 12
    c = tables(n, 5)
    units = modality_valuation(c) * math.factorial(n)
    assert torch.equal(units.round().sum(0), math.factorial(n) * n * c[-1].double())
    assert (units - units.round()).abs().max() < 1e-5
    assert (
        math.factorial(_EXACT_MODALITIES) * (_EXACT_MODALITIES + 1) / 2
        < 2**53
        < math.factorial(_EXACT_MODALITIES + 1) * (_EXACT_MODALITIES + 2) / 2
    )


@pytest.mark.parametrize("n, count", [(1, 2), (2, 5), (3, 19), (4, None)])
def test_range_and_number_of_values(n, count):
    phi = modality_valuation(tables(n))
    assert phi.min() == -(n - 1) / 2 and phi.max() == (n + 1) / 2
    if count:
        assert len(phi.unique()) == count
    if n > 1:
        assert (phi[0] - phi[1]).max() == n / 2  # the largest gap


@pytest.mark.parametrize("n", [5, 6])
def test_range_is_attained_by_the_extremes(n):
    with_first = coalitions(n)[:, :1]
    assert modality_valuation(with_first)[0].item() == (n + 1) / 2
    without = (~with_first) & coalitions(n).any(1, keepdim=True)
    assert modality_valuation(without)[0].item() == -(n - 1) / 2
    phi = modality_valuation(tables(n, 500))
    assert phi.min() >= -(n - 1) / 2 and phi.max() <= (n + 1) / 2


def test_closed_forms_of_two_and_three():
    _, c1, c2, c12 = tables(2).double()
    assert torch.equal(modality_valuation(tables(2)), torch.stack([(c1 - c2) / 2 + c12, (c2 - c1) / 2 + c12]))
    _, c1, c2, c12, c3, c13, c23, c123 = tables(3).double()
    assert_close(modality_valuation(tables(3))[0], c1 / 3 + (c12 + c13) / 3 + c123 - (c2 + c3) / 6 - 2 * c23 / 3)


@pytest.mark.parametrize("n", range(2, 5))
def test_free_ride_of_a_useless_modality(n):
    "A modality that never changes an answer earns the share of orders in which those before it were right."
    c = tables(n - 1)
    useless = torch.cat([c, c])  # modality n-1 changes nothing
    phi = modality_valuation(useless)[-1]
    weights = [1 / (n * math.comb(n - 1, s.bit_count())) for s in range(2 ** (n - 1))]
    assert_close(phi, sum(w * c[s].double() for s, w in enumerate(weights)))
    assert_close(shapley_values(useless)[-1], torch.zeros_like(phi))


@pytest.mark.parametrize("n", range(1, 5))
def test_equal_correctness_gives_equal_shares(n):
    ones = torch.ones(2**n, 1, dtype=torch.bool)
    assert_close(modality_valuation(ones), torch.ones(n, 1, dtype=F64), rtol=0, atol=0)
    assert_close(modality_valuation(~ones), torch.zeros(n, 1, dtype=F64), rtol=0, atol=0)


def test_dataset_value_is_mean_of_sample_values():
    c = tables(3, 400)
    accuracy = c.double().mean(1)
    assert_close(shapley_values(c).mean(1), shapley_values(accuracy))
    assert_close(modality_valuation(c).mean(1), shapley_values(coalitions(3).sum(1) * accuracy))
    two = tables(2, 400)
    phi, acc = modality_valuation(two).mean(1), two.double().mean(1)
    assert_close(phi[0] - phi[1], acc[1] - acc[2])


def test_valuation_rejects_what_is_not_correctness():
    with pytest.raises(ValueError, match="zeros and ones"):
        modality_valuation(torch.rand(4, 3))
    with pytest.raises(ValueError, match="at most 17"):
        modality_valuation(torch.zeros(2**18, 1, dtype=torch.bool))
    assert modality_valuation(torch.ones(2**17, 1, dtype=torch.bool)).shape == (17, 1)
    assert torch.equal(modality_valuation(tables(2)), modality_valuation(tables(2).float()))
    assert modality_valuation(tables(2, 1)).shape == (2, 1)  # B = 1


def test_valuation_keeps_the_shape_of_the_answers():
    "One answer of each coalition, answers of N samples, answers of N samples to C labels: all by the same formula."
    c = torch.randint(0, 2, (8, 5, 2), generator=generator(4))
    game = coalitions(3).sum(1)[:, None, None] * c
    expected = torch.stack([torch.stack([by_orders(game[:, i, k], 3) for k in range(2)], 1) for i in range(5)], 1)
    assert expected.shape == (3, 5, 2)
    assert_close(modality_valuation(c), expected)
    assert_close(modality_valuation(c[:, :, 0]), expected[:, :, 0])
    assert_close(modality_valuation(c[:, 2, 1]), expected[:, 2, 1])
    assert modality_valuation(c[:, :0]).shape == (3, 0, 2) and modality_valuation(c[:, :, :0]).shape == (3, 5, 0)


def test_valuation_counts_only_the_modalities_that_a_sample_has():
    c = torch.randint(0, 2, (8, 9, 2), generator=generator(5))
    presence = torch.rand(9, 3, generator=generator(6)) > 0.4
    sizes = [[sum(s >> m & 1 and has for m, has in enumerate(row)) for row in presence.tolist()] for s in range(8)]
    game = torch.tensor(sizes)[:, :, None] * c
    expected = torch.stack([torch.stack([by_orders(game[:, i, k], 3) for k in range(2)], 1) for i in range(9)], 1)
    assert not presence.all() and presence.any(0).all()
    assert_close(modality_valuation(c, presence), expected)
    assert_close(modality_valuation(c[..., 0], presence), expected[..., 0])
    assert torch.equal(modality_valuation(c, torch.ones(9, 3).bool()), modality_valuation(c))


@pytest.mark.parametrize(
    "answers, presence", [((8,), (1, 3)), ((8,), (3,)), ((8, 5), (5, 2)), ((8, 5), (3, 5)), ((8, 5, 2), (2, 3))]
)
def test_valuation_refuses_a_presence_of_another_shape(answers, presence):
    with pytest.raises(ValueError, match=r"presence must be \(B, M\), got") as refusal:
        modality_valuation(torch.zeros(answers), torch.ones(presence).bool())
    assert f"got {presence} for answers {answers}" in str(refusal.value)


@pytest.mark.parametrize(
    "shape, pieces", [((4, 200_000), [65_536] * 3 + [3_392]), ((4, 7), [7]), ((2**16, 3, 8), [1] * 3)]
)
def test_valuation_holds_at_most_two_mebibytes_of_answers_or_one_sample(monkeypatch, shape, pieces):
    seen = []

    def noted(weights, values):
        seen.append(values)
        return combine_coalitions(weights, values)

    monkeypatch.setattr(shapley, "combine_coalitions", noted)
    c = torch.zeros(shape, dtype=torch.bool)
    c[-1] = True
    phi = modality_valuation(c)
    assert [v.shape[1] for v in seen] == pieces
    assert all(v.numel() * v.element_size() <= 2 * 2**20 or v.shape[1] == 1 for v in seen)
    assert_close(phi, torch.ones_like(phi))  # only the answer from all of them is right


# ---- sampled orders


@pytest.mark.parametrize("n", range(1, 6))
def test_all_orders_give_the_matrix(n):
    present, weights, steps = permutation_coalitions(torch.tensor(list(permutations(range(n)))))
    assert torch.equal(present, coalitions(n))
    assert_close(weights, shapley_matrix(n))
    assert torch.equal(present[steps].sum(-1), torch.arange(n + 1).expand(math.factorial(n), -1))


@pytest.mark.parametrize("n", [1, 2, 5, 20, 40, 62])
@pytest.mark.parametrize("antithetic", [True, False])
def test_sampled_values_are_efficient(n, antithetic):
    a = torch.randn(n, generator=generator(n), dtype=F64)

    def game(present):
        return torch.stack([(present * a).sum(1).sin(), (present * a).sum(1) ** 2], dim=1)

    e = shapley_values_sampled(game, n, 6, antithetic, generator())
    assert_close(e.values.sum(0), (game(torch.ones(1, n).bool()) - game(torch.zeros(1, n).bool()))[0])
    assert len(e.present) <= 6 * (n - 1) + 2 and e.present[-1].all() and not e.present[0].any()


@pytest.mark.parametrize("antithetic", [True, False])
def test_sampled_values_are_unbiased_and_their_errors_honest(antithetic):
    n, repeats = 6, 600
    v = torch.randn(2**n, generator=generator(1), dtype=F64)

    def game(present):
        return v[(present * 2 ** torch.arange(n)).sum(1)]

    runs = [shapley_values_sampled(game, n, 6, antithetic, generator(seed)) for seed in range(repeats)]
    values, errors = torch.stack([r.values for r in runs]), torch.stack([r.standard_errors for r in runs])
    standard_error = values.std(0) / repeats**0.5
    assert standard_error.max() < 0.03
    assert ((values.mean(0) - shapley_values(v)).abs() / standard_error).max() < 4
    assert_close(
        (errors**2).mean(0), values.var(0), rtol=0.25, atol=0
    )  # the stated variance is the true one (its own error: sqrt(2/600) = 6 %)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_standard_errors_are_the_deviation_of_the_mean_of_independent_draws(antithetic, shape):
    n, v = 4, torch.randn(16, *shape, generator=generator(2), dtype=F64)
    got = shapley_values_sampled(
        lambda present: v[(present * 2 ** torch.arange(n)).sum(1)], n, 8, antithetic, generator(3)
    )
    gains = []
    for order in random_orders(n, 8, antithetic, generator(3)).tolist():
        gain, s = [None] * n, 0
        for i in order:
            gain[i], s = v[s | 1 << i] - v[s], s | 1 << i
        gains.append(torch.stack(gain))
    draws = torch.stack(gains).view(-1, 1 + antithetic, n, *shape).mean(1)
    assert_close(got.values, draws.mean(0))
    assert_close(got.standard_errors, draws.std(0) / len(draws) ** 0.5)


def test_sampled_values_pass_gradients():
    v = torch.randn(16, 3, dtype=F64, requires_grad=True)

    def game(present):
        return v[(present * 2 ** torch.arange(4)).sum(1)]

    e = shapley_values_sampled(game, 4, 8, generator=generator())
    e.values[2].sum().backward()
    assert v.grad.abs().sum() > 0 and not e.standard_errors.requires_grad


def test_orders_are_uniform():
    orders = random_orders(3, 6000, generator=generator())
    counts = torch.tensor([(orders == torch.tensor(p)).all(1).sum() for p in permutations(range(3))])
    expected = 1000
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 2 * 20.5  # chi-square with 5 degrees of freedom, p = 0.001; pairs double the variance


def test_sampling_rejects():
    for k in (0, 2, 5):
        with pytest.raises(ValueError):
            shapley_values_sampled(lambda p: p.double().sum(1), 3, k)
    with pytest.raises(ValueError, match="returned"):
        shapley_values_sampled(lambda p: torch.zeros(2), 3, 4)
    with pytest.raises(ValueError, match="orders"):
        permutation_coalitions(torch.tensor([[0, 0]]))
    with pytest.raises(ValueError, match="integers 0 to M-1, at least one, got torch.float32"):
        permutation_coalitions(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="62"):
        permutation_coalitions(torch.arange(63)[None])


def test_a_game_may_answer_in_numpy():
    worth = np.array([1.0, 2.0, 4.0])
    got = shapley_values_sampled(lambda present: present.numpy() @ worth, 3, 4, generator=generator())
    assert_close(got.values, torch.tensor([1.0, 2.0, 4.0], dtype=F64))  # nothing interacts: the same in every order
    assert_close(got.standard_errors, torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)


# ---- models

DIMS = (3, 4, 5, 6)


def model_of(n, head="mlp", n_classes=3, seed=0, noisy=True):
    torch.manual_seed(seed)

    def encoder(d):
        return (
            nn.Sequential(nn.Linear(d, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4)) if noisy else nn.Linear(d, 6)
        )

    return FusionModel([encoder(d) for d in DIMS[:n]], HEADS[head]([6] * n, n_classes))


def data_of(n, size=20, n_classes=3, seed=0):
    return [torch.randn(size, d, generator=generator(seed)) for d in DIMS[:n]], torch.randint(
        0, n_classes, (size,), generator=generator(seed)
    )


@pytest.mark.parametrize(
    "n, head", [(n, h) for n, h in product((1, 2, 3, 4), HEADS) if n > 1 or h not in ("film", "gated")]
)
def test_valuate_is_the_loop_over_samples_and_coalitions(n, head):
    model = model_of(n, head)
    xs, y = data_of(n)
    got = valuate(model, [(*(x[:13] for x in xs), y[:13]), (*(x[13:] for x in xs), y[13:])])
    with eval_mode(model), torch.no_grad():
        for k, present in product(range(0, 20, 4), coalitions(n)):
            zs = [
                z if there else torch.zeros_like(z)
                for z, there in zip(model.encode(*(x[k : k + 1] for x in xs)), present)
            ]
            logits = model.fuse(zs)[0]
            s = int((present * 2 ** torch.arange(n)).sum())
            assert got.correct[s, k] == (logits.argmax() == y[k])
            assert_close(got.log_likelihood[s, k], logits.double().log_softmax(0)[y[k]], atol=1e-5, rtol=0)
    assert torch.equal(got.phi, modality_valuation(got.correct)) and got.phi.shape == (n, 20)
    assert_close(got.accuracy, got.correct.double().mean(1))


def test_a_valuation_names_its_coalitions_by_bit_mask():
    xs, y = data_of(3)
    present = valuate(model_of(3), [(*xs, y)]).present
    assert present.tolist() == [[bool(s & 1), bool(s & 2), bool(s & 4)] for s in range(8)]


def test_of_several_labels_a_sampled_valuation_is_the_mean_too():
    model, (xs, _) = model_of(2), data_of(2)
    y = torch.randint(0, 2, (20, 3), generator=generator()).float()
    with eval_mode(model), torch.no_grad():
        zs = model.encode(*xs)
        a, b, both = (
            ((model.fuse([z * k for z, k in zip(zs, kept)]) > 0) == (y > 0)).double().mean(1)
            for kept in ((1, 0), (0, 1), (1, 1))
        )
    got = valuate(model, [(*xs, y)], n_permutations=4, generator=generator())  # a pair has both orders of the two
    assert_close(got.phi, torch.stack([(a - b) / 2 + both, (b - a) / 2 + both]))
    assert_close(valuate(model, [(*xs, y)]).phi, got.phi)


def lacking(xs, presence, filling):
    "The inputs, with `filling` in the places of what a sample lacks."
    return [dict(values=x.where(has[:, None], filling), present=has) for x, has in zip(xs, presence.T)]


@pytest.mark.parametrize("n_permutations", [None, 6])
def test_what_a_sample_lacks_has_no_part_in_its_valuation(n_permutations):
    model, (xs, y) = model_of(3, noisy=False), data_of(3)
    presence = torch.rand(20, 3, generator=generator(2)) > 0.4
    got, other = (
        valuate(model, [([*lacking(xs, presence, fill)], y)], n_permutations=n_permutations, generator=generator())
        for fill in (0.0, 1e6)
    )
    assert torch.equal(got.phi, other.phi) and torch.equal(got.presence, presence)
    assert not presence.all() and got.phi.T[~presence].abs().max() < 1e-15
    table, right = torch.zeros(8, 20), torch.zeros(20)
    with torch.no_grad():
        for s, k in product(range(8), range(20)):
            has = [bool(s >> m & 1) and bool(presence[k, m]) for m in range(3)]
            zs = [e(x[k : k + 1]) * there for e, x, there in zip(model.encoders, xs, has)]
            right[k] = model.fuse(zs)[0].argmax() == y[k]  # the last coalition is that of all
            table[s, k] = sum(has) * right[k]
    assert_close(got.phi.sum(0), (right * presence.sum(1)).double())
    if n_permutations is None:
        assert_close(got.phi, torch.stack([by_orders(table[:, k], 3) for k in range(20)], 1))
        assert (got.phi != modality_valuation(got.correct)).any()  # which counts three modalities for all


def test_a_valuation_without_gaps_says_that_all_is_there():
    xs, y = data_of(2, 5)
    got = valuate(model_of(2), [(*(x[:3] for x in xs), y[:3]), (*(x[3:] for x in xs), y[3:])])
    assert got.presence.dtype == torch.bool and got.presence.tolist() == [[True, True]] * 5


def test_a_model_of_as_many_modalities_as_are_exact_is_valued_and_of_one_more_refused(monkeypatch):
    monkeypatch.setattr(shapley, "_EXACT_MODALITIES", 3)  # 2**17 coalitions would take long
    xs, y = data_of(4)
    got = valuate(model_of(3), [(*xs[:3], y)])
    assert got.correct.shape == (8, 20) and torch.equal(got.phi, modality_valuation(got.correct))
    with pytest.raises(ValueError, match=r"4 modalities have 2\*\*4 coalitions: pass n_permutations"):
        valuate(model_of(4), [(*xs, y)])
    assert valuate(model_of(4), [(*xs, y)], n_permutations=4).phi.shape == (4, 20)


def test_one_modality_alone_is_worth_its_correctness():
    xs, y = data_of(1)
    got = valuate(model_of(1), [(*xs, y)])
    assert torch.equal(got.phi[0], got.correct[1].double())


def test_linear_head_splits_over_coalitions():
    model, (xs, _) = model_of(3, "concat", noisy=False), data_of(3)
    zs = model.encode(*xs)
    W = model.head.linear.weight.split((6, 6, 6), dim=1)
    for present, logits in zip(coalitions(3), coalition_logits(model, zs)):
        assert_close(
            logits,
            sum(z @ w.T * there for z, w, there in zip(zs, W, present)) + model.head.linear.bias,
            atol=1e-6,
            rtol=0,
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("absent", ["zero_feature", "zero_input"])
def test_valuation_leaves_no_trace(training, absent):
    model, (xs, y) = model_of(3).train(training), data_of(3)
    model.encoders[0].eval()
    model.head.requires_grad_(False)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*xs, y), batch_size=8, shuffle=True)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    calls = []
    for e in model.encoders:
        e.register_forward_hook(lambda *_: calls.append(1))
    valuate(model, loader, absent)
    assert len(calls) == 3 * len(loader) * (2 if absent == "zero_input" else 1)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()


def test_modes_come_back_after_an_error():
    model = model_of(2).train()
    with pytest.raises(RuntimeError, match="shapes"):
        valuate(model, [(torch.randn(4, 9), torch.randn(4, 9), torch.zeros(4, dtype=torch.long))])
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_extreme_logits_stay_finite_in_float32(scale):
    model, (xs, y) = model_of(3), data_of(3)
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(scale)
    got = valuate(model, [(xs, y)])
    assert not got.log_likelihood.isnan().any() and got.phi.isfinite().all()


def test_valuation_under_autocast():
    model, (xs, y) = model_of(3), data_of(3)
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(1e4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = valuate(model, [(xs, y)])
    assert got.log_likelihood.isfinite().all()
    assert_close(got.phi.sum(0), 3 * got.correct[-1].double())


def test_early_fusion_and_foreign_modules():
    xs, y = data_of(2)
    network = JoinedMLP([(3,), (4,)], 3)
    a, b = valuate(EarlyFusion(network, 2), [(xs, y)]), valuate(as_fusion(network, 2), [(*xs, y)])
    assert torch.equal(a.phi, b.phi) and a.correct.shape == (4, 20)


def test_sampled_valuation_of_many_modalities():
    torch.manual_seed(0)
    n = 20
    model = FusionModel([nn.Linear(2, 3) for _ in range(n)], HEADS["mlp"]([3] * n, 3))
    xs, y = [torch.randn(9, 2, generator=generator()) for _ in range(n)], torch.arange(9) % 3
    got = valuate(model, [(xs, y)], n_permutations=6, generator=generator())
    assert_close(got.phi.sum(0), n * got.correct[-1].double())
    again = valuate(model, [(xs, y)], n_permutations=6, generator=generator())
    assert torch.equal(got.phi, again.phi)
    with pytest.raises(ValueError, match="n_permutations"):
        valuate(model, [(xs, y)])
    resampling_frequency(got.phi)


def test_valuate_rejects():
    model, (xs, y) = model_of(2), data_of(2)
    with pytest.raises(ValueError, match="as_fusion"):
        valuate(nn.Linear(2, 2), [(*xs, y)])
    with pytest.raises(ValueError, match="mean feature"):
        valuate(model, [(*xs, y)], "mean_feature")
    with pytest.raises(ValueError, match="no batches"):
        valuate(model, [])
    with pytest.raises(ValueError, match="class labels"):
        valuate(model, [(*xs, y.float())])
    with pytest.raises(ValueError, match="class labels"):
        valuate(model, [(*xs, y[:3])])
    with pytest.raises(ValueError, match="labels"):
        valuate(model, [xs])
    with pytest.raises(ValueError, match="unknown stand-in 'nothing'"):
        valuate(model, [(*xs, y)], "nothing")


def test_batch_of_one():
    xs, y = data_of(2, 1)
    assert valuate(model_of(2), [(*xs, y)]).phi.shape == (2, 1)


def test_the_refusal_of_other_targets_says_what_was_given():
    model, (xs, y) = model_of(2), data_of(2)
    with pytest.raises(ValueError, match=r"got torch.float32 \(20,\) and \(4, 20, 3\)$"):
        valuate(model, [(*xs, y.float())])
    with pytest.raises(ValueError, match=r"got torch.int64 \(20, 2\) and \(4, 20, 3\)$"):
        valuate(model, [(*xs, torch.zeros(20, 2).long())])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu():
    model, (xs, y) = model_of(3, noisy=False), data_of(3)
    expected = valuate(model, [(*xs, y)])
    torch_state, cuda_state = torch.get_rng_state(), torch.cuda.get_rng_state()
    got = valuate(model.cuda(), [(*xs, y)])
    assert torch.equal(torch.get_rng_state(), torch_state) and torch.equal(torch.cuda.get_rng_state(), cuda_state)
    assert_close(got.log_likelihood, expected.log_likelihood, atol=1e-3, rtol=1e-3)
    assert torch.equal(modality_valuation(expected.correct.cuda()).cpu(), expected.phi)
    v = torch.randn(8, 4, 3, dtype=F64)
    assert_close(shapley_values(v.cuda()).cpu(), shapley_values(v))

    def game(present):
        return v.cuda()[(present * 2 ** torch.arange(3)).sum(1).cuda()]

    assert_close(
        shapley_values_sampled(game, 3, 8, generator=generator()).standard_errors.cpu(),
        shapley_values_sampled(lambda p: game(p).cpu(), 3, 8, generator=generator()).standard_errors,
    )


# ---- resampling

COPIES = {
    (1, 1, 1): (0, 0),
    (0, 0, 1): (0, 0),
    (1, 0, 1): (0, 1),
    (0, 1, 1): (1, 0),
    (0, 0, 0): (2, 2),
    (1, 1, 0): (2, 2),
    (1, 0, 0): (1, 3),
    (0, 1, 0): (3, 1),
}  # c_1 c_2 c_12


@pytest.mark.parametrize("c, copies", COPIES.items())
def test_copies_of_the_eight_outcomes(c, copies):
    phi = modality_valuation(torch.tensor([0, *c])[:, None])
    assert tuple(resampling_frequency(phi)[:, 0].tolist()) == copies


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_copies_round_halves_up_in_integers(n):
    phi, u = modality_valuation(tables(n)), math.factorial(n)
    units = (phi * u).round().long()
    expected = ((4 * (u - units) + u) // (2 * u)).clamp(min=0)
    assert torch.equal(resampling_frequency(phi), expected)
    assert (resampling_frequency(phi)[phi >= 1] == 0).all()


def test_modality_level_follows_the_accuracy_gap():
    c = tables(2, 500)
    acc = c.double().mean(1)
    share = resampling_frequency(modality_valuation(c), "modality")
    weaker = int(acc[1] > acc[2])  # index of the modality with the larger gap 1 - phi
    expected = torch.zeros(2, dtype=F64)
    expected[weaker] = (acc[1] - acc[2]).abs() / 1.5
    assert_close(share, expected)
    for alpha in (0.5, 1.0, 3.0):
        assert_close(
            resampling_frequency(modality_valuation(c), "modality", "tanh", alpha)[weaker],
            torch.tanh(alpha * expected[weaker]),
        )
        assert_close(
            resampling_frequency(modality_valuation(c), "modality", "power", alpha)[weaker],
            alpha * expected[weaker] ** 1.5,
        )
    assert resampling_frequency(modality_valuation(c), "modality", alpha=1e6).max() == 1.0


@pytest.mark.parametrize("dtype, alpha", [(torch.float16, 1501.0), (torch.float32, 0.5), (torch.float64, 2.0)])
def test_copies_are_counted_in_float64_whatever_the_valuation_is_held_in(dtype, alpha):
    phi = torch.tensor([[0.0, 1e-8, 0.25, 0.7, 1.5], [1.0, -1e-8, -0.5, 0.3333, 0.75]]).to(dtype)
    expected = [[math.floor(alpha * max(0.0, 1 - p) + 0.5 + 1e-9) for p in row] for row in phi.tolist()]
    assert resampling_frequency(phi, alpha=alpha).tolist() == expected


def test_shares_judge_a_modality_by_the_samples_that_have_it():
    phi = torch.tensor([[1.5, 0.0, 0.0, 0.0], [0.5, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=F64)
    presence = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]).bool()
    share = resampling_frequency(phi, "modality", presence=presence)
    gap = 1.5 - (0.5 + 1.0 + 1.0 + 0.0) / 4
    assert_close(share, torch.tensor([0, gap / 1.5, 0], dtype=F64))  # nobody has the third: it is not shown again
    everybody = resampling_frequency(phi, "modality")
    assert_close(everybody, torch.tensor([0.25 / 1.5, 0, 0.625 / 1.5], dtype=F64))  # means .375, .625, 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_shares_are_bounded_and_the_best_modality_gets_none(n):
    share = resampling_frequency(modality_valuation(tables(n, 50)), "modality")
    assert share.min() == 0 and share.max() <= 1


def test_plan_is_base_plus_copies():
    frequency = torch.randint(0, 4, (3, 40), generator=generator())
    rows, keep = resampling_plan(frequency)
    assert len(rows) == len(keep) == 40 + frequency.sum()
    assert torch.equal(rows[:40], torch.arange(40)) and keep[:40].all()
    assert (keep[40:].sum(1) == 1).all()
    counts = torch.zeros(3, 40, dtype=torch.long).index_put_(
        (keep[40:].int().argmax(1), rows[40:]), torch.tensor(1), accumulate=True
    )
    assert torch.equal(counts, frequency)


def test_neutral_plan_is_the_data_itself():
    for frequency in torch.zeros(2, 9, dtype=torch.long), torch.zeros(2):
        rows, keep = resampling_plan(frequency, 9)
        assert torch.equal(rows, torch.arange(9)) and keep.all()


def test_copies_are_bounded_uniformly():
    frequency = torch.tensor([[0, 8], [4, 0]])
    kept = torch.zeros(2)
    for seed in range(1000):
        rows, keep = resampling_plan(frequency, max_copies=3, generator=generator(seed))
        assert len(rows) == 5
        kept += keep[2:].sum(0)
    assert_close(kept / 3000, torch.tensor([2 / 3, 1 / 3]), atol=4 * 0.0086, rtol=0)  # standard error sqrt(2/9/3000)


def test_shares_draw_rows():
    for replacement in True, False:
        rows, keep = resampling_plan(torch.tensor([0.3, 0.0, 0.55]), 100, replacement, generator=generator())
        assert len(rows) == 100 + 30 + 55 and torch.equal(keep[100:].sum(0), torch.tensor([30, 0, 55]))
        assert (len(rows[130:].unique()) == 55) == (not replacement)
    assert torch.equal(draw_rows(50, 0.5, generator=generator()), draw_rows(50, 0.5, generator=generator()))


def test_plan_names_rows():
    index = torch.tensor([10, 20, 30])
    rows, _ = resampling_plan(torch.tensor([[0, 1, 0], [2, 0, 0]]), index=index)
    assert rows.tolist() == [10, 20, 30, 20, 10, 10]


@pytest.mark.parametrize("copies", [[[0], [1]], [[1], [0]], [[2], [1]], [[0], [0]]])
def test_copies_of_a_single_sample_are_of_the_right_modality(copies):
    rows, keep = resampling_plan(torch.tensor(copies))
    (a,), (b,) = copies
    assert rows.tolist() == [0] * (1 + a + b)
    assert keep.tolist() == [[True, True]] + [[True, False]] * a + [[False, True]] * b


def test_a_plan_does_not_show_again_what_a_sample_lacks():
    copies = torch.randint(0, 3, (3, 30), generator=generator(1))
    presence = torch.rand(30, 3, generator=generator(2)) > 0.4
    expected = [(i, m) for m in range(3) for i in range(30) if presence[i, m] for _ in range(int(copies[m, i]))]
    rows, keep = resampling_plan(copies, presence=presence)
    assert rows[:30].tolist() == list(range(30)) and keep[:30].all() and (keep[30:].sum(1) == 1).all()
    assert [(int(i), int(k.int().argmax())) for i, k in zip(rows[30:], keep[30:])] == expected
    assert len(expected) < copies.sum()
    rows, keep = resampling_plan(torch.ones(3), 30, replacement=False, presence=presence, generator=generator())
    extra = {(int(i), int(k.int().argmax())) for i, k in zip(rows[30:], keep[30:])}
    assert len(rows) == 30 + presence.sum() and extra == {(int(i), int(m)) for i, m in presence.nonzero()}


@pytest.mark.parametrize("presence", [torch.ones(3, 2), torch.ones(3, 2).long(), torch.ones(2, 3).bool()])
@pytest.mark.parametrize("frequency", [torch.ones(2, 3).long(), torch.ones(2)])
def test_a_plan_refuses_a_presence_of_another_kind_or_shape(frequency, presence):
    with pytest.raises(ValueError, match=r"presence must be bool \(3, 2\), got") as refusal:
        resampling_plan(frequency, 3, presence=presence)
    assert f"got {presence.dtype} {tuple(presence.shape)}" in str(refusal.value)


def test_dropped_encoders_get_no_gradient():
    model, (xs, y) = model_of(3, noisy=False), data_of(3)
    keep = torch.eye(3).bool()[torch.arange(20) % 3]
    xs = [x.requires_grad_() for x in xs]
    nn.functional.cross_entropy(model.fuse(mask_features(model.encode(*xs), keep)), y).backward()
    for m, x in enumerate(xs):
        assert x.grad[~keep[:, m]].abs().max() == 0 and x.grad[keep[:, m]].abs().max() > 0


@pytest.mark.parametrize(
    "bad, match",
    [
        (lambda: resampling_frequency(torch.ones(3)), "\\(M, B\\)"),
        (lambda: resampling_frequency(torch.ones(2, 0)), "\\(M, B\\)"),
        (lambda: resampling_frequency(torch.ones(2, 3).long()), "float"),
        (lambda: resampling_frequency(torch.full((2, 3), math.nan)), "NaN"),
        (lambda: resampling_frequency(torch.ones(2, 3), "batch"), "level"),
        (lambda: resampling_frequency(torch.ones(2, 3), function="cube"), "function"),
        (lambda: resampling_frequency(torch.ones(2, 3), alpha=-1.0), "alpha must be a number"),
        (lambda: resampling_plan(torch.ones(2, 3)), "integer copies"),
        (lambda: resampling_plan(torch.ones(2)), "n_samples"),
        (lambda: resampling_plan(torch.ones(2, 3).long(), 4), "3 samples"),
        (lambda: resampling_plan(-torch.ones(2, 3).long()), "negative"),
        (lambda: resampling_plan(torch.ones(2, 3).long(), index=torch.arange(2)), "name the 3"),
        (lambda: resampling_plan(torch.ones(2, 3).long(), max_copies=-1), "max_copies must be a whole number"),
        (lambda: resampling_plan(torch.ones(2, 3).long(), max_copies=1.5), "max_copies must be a whole number"),
        (lambda: resampling_plan(torch.ones(2), 0), "^n_samples must be a whole number, at least 1, got 0"),
        (lambda: resampling_plan(torch.ones(2), 2.5), "^n_samples must be a whole number, at least 1, got 2.5"),
        (lambda: draw_rows(0), "n must be a whole number, at least 1"),
        (lambda: draw_rows(5, -0.1), "fraction"),
    ],
)
def test_resampling_rejects(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_sampled_values_of_a_table_of_right_and_wrong(dtype):
    def estimate(kind):
        return shapley_values_sampled(
            lambda present: (present.sum(1)[:, None] > torch.arange(3)).to(kind),
            4,
            32,
            generator=torch.Generator().manual_seed(0),
        )

    one, other = estimate(dtype), estimate(torch.float64)
    assert_close(one.values, other.values, check_dtype=False)
    assert_close(one.standard_errors, other.standard_errors, check_dtype=False)


def test_labels_that_the_model_does_not_have_are_refused():
    model = FusionModel([nn.Identity()] * 2, HEADS["sum"]((3, 3), 2))
    for y in (torch.tensor([0, 2]), torch.tensor([0, -100])):
        with pytest.raises(ValueError, match="labels in 0 to 1"):
            valuate(model, [(torch.randn(2, 3), torch.randn(2, 3), y)])


# ---- the callback


@pytest.mark.parametrize("function", FREQUENCIES)
def test_frequencies_start_at_nothing_and_grow(function):
    x = torch.linspace(0, 1, 20, dtype=F64)
    f = FREQUENCIES[function](x, 1.5)
    assert f[0] == 0 and (f.diff() > 0).all()


@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(level="epoch"), ValueError, "unknown level 'epoch'; known: sample, modality"),
        (dict(function="linea"), ValueError, "did you mean 'linear'"),
        (dict(alpha=-1.0), ValueError, "alpha must be a number in"),
        (dict(alpha=math.nan), ValueError, "alpha must be a number in"),
        (dict(alpha=math.inf), ValueError, "alpha must be a number in"),
        (dict(warmup=-1), ValueError, "warmup must be a whole number"),
        (dict(warmup=2.5), ValueError, "warmup must be a whole number"),
        (dict(max_copies=-3), ValueError, "max_copies must be a whole number"),
        (dict(max_copies=0.5), ValueError, "max_copies must be a whole number"),
        (dict(seed=1.5), ValueError, "seed must be a whole number"),
        (dict(fraction=0.0), ValueError, "fraction must be a number in"),
        (dict(fraction=math.nan), ValueError, "fraction must be a number in"),
        (dict(absent="zero_feat"), ValueError, "did you mean 'zero_feature'"),
        (dict(absent="mean_feature"), ValueError, "mean feature"),
        (dict(alphas=2.0), TypeError, "alphas"),
    ],
)
def test_options_are_checked_when_the_callback_is_made(options, error, match):
    with pytest.raises(error, match=match):
        ModalityResampling(**options)


def test_function_and_slope_reach_the_frequency():
    made = ModalityResampling("modality", function="tanh", alpha=3.0)
    assert (made.level, made.function, made.alpha) == ("modality", "tanh", 3.0)
    made = ModalityResampling()
    assert (made.level, made.function, made.alpha) == ("sample", "linear", None)


def test_the_defaults_of_resampling_are_the_published_ones():
    made = ModalityResampling()
    assert made.augmented is True and made.replacement is True
    assert made.absent == "zero_feature" and made.max_copies is None


def learner_of(method, path=None):
    r = np.random.default_rng(0)
    y = r.integers(0, 3, 80)
    dls = multimodal_dls({m: r.normal(size=(80, 4)).astype("f") for m in "ab"}, y, bs=16, device="cpu")
    return multimodal_learner(dls, head="concat", method=method, width=8, path=path)


def test_one_sample_is_enough_to_value():
    n = len(learner_of(None).dls.train_ds)
    learn = learner_of(ModalityResampling("modality", warmup=0, fraction=1.5 / n))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    phi = [learn.modality_resampling.history[f"phi {m}"][0] for m in "ab"]
    assert sum(phi) in (0, 2) and set(phi) <= {-0.5, 0, 0.5, 1, 1.5}  # the values of a single sample


def test_a_search_for_the_learning_rate_sees_the_data_as_they_are(tmp_path):
    plans = []

    class Seen(Callback):
        def before_batch(self):
            if self.training:
                plans.append(self.learn.modality_resampling.plan)

    learn = learner_of(ModalityResampling(warmup=0), tmp_path)
    learn.add_cb(Seen())
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=6, show_plot=False)
        assert len(plans) >= 6 and all(plan is None for plan in plans)
        plans.clear()
        learn.fit(1, 0.01)
        assert plans and all(plan is not None for plan in plans)


class Seen(FusionMethod):
    "Notes the plan of each epoch when its training starts."

    def __init__(self):
        self.plans = []

    def before_train(self):
        self.plans.append(self.learn.dl.plan)


@pytest.mark.parametrize("first", [True, False])
def test_other_methods_see_the_loader_of_the_plan(first):
    seen, resampling = Seen(), ModalityResampling(warmup=1)
    learn = learner_of(None)
    learn.add_cbs([seen, resampling] if first else [resampling, seen])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
    assert (
        seen.plans[0] is None and len(seen.plans[1][0]) == len(learn.dls.train_ds) + resampling.history["extra rows"][1]
    )


def learner_with_gaps(*cbs):
    "`a` says the class but is often missing; `b`, rarely missing, says it two times in three. Who says louder? `a`."
    r = np.random.default_rng(0)
    y = np.arange(150) % 3
    said = np.where(np.arange(150) // 3 % 3 == 0, (y + 1) % 3, y)
    has_a = r.random(150) < 0.4
    presence = np.stack([has_a, ~has_a | (r.random(150) < 0.7)], axis=1)
    data = dict(a=np.eye(3, dtype="f")[y], b=np.eye(3, dtype="f")[said])
    dls = multimodal_dls(data, y, bs=16, device="cpu", presence=presence, groups=range(150))
    learn = multimodal_learner(dls, [nn.Linear(3, 3), nn.Linear(3, 3)], head="concat", cbs=cbs)
    with torch.no_grad():
        for encoder, loudness in zip(learn.model.encoders, (2, 1)):
            encoder.weight.copy_(loudness * torch.eye(3))
            encoder.bias.zero_()
        learn.model.head.linear.weight.copy_(torch.eye(3).repeat(1, 2))
        learn.model.head.linear.bias.zero_()
    return learn, y == said, presence


def extra_showings(plan, n):
    "The row and the modality of all that is shown again, in order; the first n rows are the data."
    rows, keep = plan
    assert keep[:n].all() and (keep[n:].sum(1) == 1).all()
    return sorted((int(i), int(k.int().argmax())) for i, k in zip(rows[n:], keep[n:]))


@pytest.mark.filterwarnings("ignore:samples of .* lack a modality")
@pytest.mark.parametrize("level", ["sample", "modality"])
def test_the_plan_of_data_with_gaps_judges_and_shows_what_is_there(level):
    options = dict(level="modality", fraction=1.0, alpha=1e6) if level == "modality" else {}
    callback, seen = ModalityResampling(warmup=0, replacement=False, **options), Seen()
    learn, b_right, presence = learner_with_gaps(callback, seen)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    expected, worth = [], ([], [])
    for row in (index := learn.dls.train_ds.index.tolist()):
        a, b = presence[row].tolist()
        phi = [0.5 + a * 1.0, 0.5] if a and b and not b_right[row] else [float(a), float(b and b_right[row])]
        for m in (m for m in range(2) if presence[row, m]):
            worth[m].append(phi[m])
            expected += [(row, m)] * math.floor(2 * max(0, 1 - phi[m]) + 0.5)
    means = [sum(w) / len(w) for w in worth]
    assert_close([callback.history[f"phi {m}"][0] for m in "ab"], means)
    assert means[0] > means[1] and sum(worth[0]) < sum(worth[1])  # over all samples, `a` would be the weaker one
    if level == "modality":  # so steep that the weaker one is shown again to all who have it
        expected = [(row, 1) for row in index if presence[row, 1]]
    assert extra_showings(seen.plans[0], len(index)) == sorted(expected)
    assert 0 < len(expected) < 2 * len(index) and not presence[index].all(0).any()


def test_the_share_of_extra_showings_by_weight_is_that_of_data_with_copies():
    "A row of weight w counts as w copies of it, also among the extra rows of a plan."
    generator = torch.Generator().manual_seed(0)
    copies = torch.randint(4, (2, 30), generator=generator)
    weights = torch.randint(1, 5, (30,), generator=generator)
    rows, keep = resampling_plan(copies)
    extra = (~keep).any(1)
    share = weights[rows][extra].sum() / weights[rows].sum()  # what draws by weight show
    again = torch.arange(30).repeat_interleave(weights)
    _, kept = resampling_plan(copies[:, again])
    assert torch.isclose(share, (~kept).any(1).double().mean().float())
    each = torch.stack([weights[rows][extra & keep[:, m]].sum() / weights[rows].sum() for m in range(2)])
    assert torch.allclose(each, torch.stack([((~kept).any(1) & kept[:, m]).float().mean() for m in range(2)]))
