"Whatever is given to the game and to MCR: a right answer, or a ValueError that says what is wrong; no NaN hides."

import math

import torch
from fuzzing import fuzz
from games import features, model_of
from hypothesis import strategies as st

from mmlit.fusion.heads import ConcatHead, FiLMHead, GatedHead, MLPHead, SumHead
from mmlit.methods.exchange import (
    DISTANCES,
    STRATEGIES,
    bernoulli_js_divergence,
    bounded_squared_error,
    check_game,
    gaussian_js_divergence,
    mipd,
    partners,
    proper_subsets,
    squared_error,
    stand_ins,
)
from mmlit.methods.mcr import MCR, MCRHeads, conditional_entropy_bottleneck, mcr_loss, supervised_nt_xent

seeds, batches = st.integers(0, 10**6), st.integers(1, 6)
values = st.sampled_from([0.0, 1.0, -3.0, 1e-30, 1e4, 1e30, math.inf, math.nan])
strategies, excludes = st.sampled_from(list(STRATEGIES)), st.sampled_from([None, "self", "label", "other_label"])
counts = st.one_of(st.sampled_from(["pairs", "exact", "all", True, 0, 2.5, None]), st.integers(-1, 7))
anything = st.one_of(st.none(), st.booleans(), st.text(max_size=8), st.integers(-2, 3), st.floats())


def gen(seed):
    return torch.Generator().manual_seed(seed)


@fuzz(
    50,
    st.sampled_from([SumHead, ConcatHead, FiLMHead, GatedHead, MLPHead]),
    st.integers(2, 3),
    batches,
    strategies,
    st.sampled_from(["slices", "encoders"]),
    excludes,
    st.sampled_from(["pairs", "exact", 1, 3]),
    st.booleans(),
    st.sampled_from(["permutation", "zero", "noise"]),
    st.sampled_from(list(DISTANCES)),
    seeds,
)
def test_the_game_has_values_in_range_and_finite_gradients(
    kind, n, batch, strategy, owned, exclude, permutations, shared, instead, distance, seed
):
    model, zs, y = model_of(kind, (3, 4, 2)[:n], 3), features((3, 4, 2)[:n], batch, seed), gen(seed)
    numbers, exclude = distance in ("gaussian", "bernoulli"), exclude if instead == "permutation" else None
    y = torch.randint(2, (batch, 3), generator=y).double() if numbers else torch.randint(3, (batch,), generator=y)
    out = mipd(
        model,
        zs,
        strategy=strategy,
        owned=owned,
        exclude=exclude,
        permutations=permutations,
        shared=shared,
        distance=distance,
        y=y,
        substitutes=None if instead == "permutation" else stand_ins(zs, instead, gen(seed)),
        generator=gen(seed),
        memory=2**28 if seed % 2 else 300,
    )
    most = {"jensen_shannon": math.log(2), "bernoulli": 3 * math.log(2), "gaussian": math.log(2) + 2e-5}
    assert out.shape == (2**n - 2, batch) and out.isfinite().all()
    assert (out >= -1e-9).all() and out.mean(1).max() <= most.get(distance, math.inf) + 1e-9
    assert distance != "bounded_squared_error" or out.mean(1).max() <= 1
    if exclude == "self" and batch == 1:
        assert (out == 0).all()
    out.mean(1).sum().backward()
    assert all(z.grad is None or z.grad.isfinite().all() for z in zs)


@fuzz(50, st.integers(0, 8), st.integers(0, 6), st.sampled_from([0, 1, 2, 3, 21]), counts, st.booleans(), seeds)
def test_partners_are_rows_of_the_batch(n_members, batch, n, permutations, shared, seed):
    try:
        index = partners(min(n_members, 3), batch, permutations, generator=gen(seed), shared=shared)
    except ValueError as error:
        assert permutations not in ("pairs", "exact") or batch == 0 or n_members == 0, error
    else:
        assert len(index) == min(n_members, 3)
        assert all(((i >= 0) & (i < max(batch, 1))).all() and i.shape[1] in (1, batch) for i in index)
    try:
        subsets = proper_subsets(n)
    except ValueError:
        assert not 2 <= n <= 20
    else:
        assert (
            len({tuple(s) for s in subsets.tolist()}) == 2**n - 2 and subsets.any(1).all() and not subsets.all(1).any()
        )


@fuzz(50, st.sampled_from([bernoulli_js_divergence, squared_error, bounded_squared_error]), batches, values, values)
def test_a_distance_is_no_number_where_an_answer_is_none(distance, batch, one, other):
    p, q = torch.full((batch, 2), one), torch.full((batch, 2), other)
    out = distance(p, q)
    assert out.shape == (batch,)
    if math.isnan(one) or math.isnan(other):
        assert out.isnan().all()
    elif math.isfinite(one) and math.isfinite(other) and max(abs(one), abs(other)) < 1e15:
        assert out.isfinite().all() and (out >= -1e-6).all()
        assert one != other or (out == 0).all()


@fuzz(50, batches, values, values, values)
def test_the_gaussian_distance_is_no_number_where_an_answer_is_none(batch, one, other, target):
    out = gaussian_js_divergence(*(torch.full((batch, 2), v) for v in (one, other, target)))
    if any(map(math.isnan, (one, other, target))):
        assert out.isnan().all()
    elif all(map(math.isfinite, (one, other, target))):
        assert ((out >= -1e-6) & (out <= math.log(2) + 2e-5)).all() or out.isnan().all()


@fuzz(50, st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(1, 3), st.floats(), seeds, values)
def test_the_contrastive_term_is_finite_or_refused(y, n, temperature, seed, value):
    zs, y = features((3,) * n, len(y), seed, dtype=torch.float32), torch.tensor(y)
    try:
        loss = supervised_nt_xent(zs, y, temperature)
    except ValueError:
        assert not 0 < temperature < math.inf
        return
    assert 0 < temperature < math.inf
    if temperature > 1e-30:  # else a cosine over it is infinite in float32
        assert loss.isfinite() and loss >= 0
    spoilt = [torch.full_like(zs[0], value), *zs[1:]]
    if math.isnan(value) and (len(y) > 1 or n > 1):
        assert supervised_nt_xent(spoilt, torch.zeros_like(y)).isnan()
    error = conditional_entropy_bottleneck(spoilt, torch.zeros(len(y), 3 * n))
    assert error.isnan().all() if math.isnan(value) else (error >= 0).all()


@fuzz(50, st.dictionaries(st.sampled_from(["strategy", "owned", "draw", "shared", "exclude", "distance"]), anything))
def test_an_option_is_known_or_refused(options):
    try:
        check_game(options)
    except ValueError as error:
        assert any(repr(v) in str(error) for v in options.values())
    else:
        y = torch.tensor([0, 1, 0, 1, 0, 1]).view(3, 2) if options.get("distance") == "gaussian" else torch.arange(3)
        assert mipd(model_of(SumHead, (2, 2), 2), features((2, 2), 3), y=y, **options).isfinite().all()


@fuzz(
    50,
    st.dictionaries(
        st.sampled_from(["mipd_weight", "ceb_weight", "temperature", "start", "end", "memory", "seed", "substitute"]),
        anything,
        min_size=1,
    ),
)
def test_the_callback_is_made_or_refuses(options):
    try:
        method = MCR(**options)
    except ValueError:
        return
    assert all(0 <= method.options[w] < math.inf for w in method.options if w.endswith("_weight"))
    first, end = method.window
    assert first >= 0 and (end is None or end > first) and 0 < method.options["temperature"] < math.inf


@fuzz(50, batches, st.integers(0, 3), values, seeds, strategies)
def test_the_loss_is_finite_or_shows_what_is_not(batch, where, value, seed, strategy):
    model, heads = model_of(MLPHead, (3, 3), 3), MCRHeads((3, 3), 3).double()
    zs, y = features((3, 3), batch, seed), torch.randint(3, (batch,), generator=gen(seed))
    if where < 2:
        zs[where] = torch.full_like(zs[where], value).requires_grad_()
    terms = mcr_loss(model, zs, y, heads, strategy, ceb_weight=1.0, generator=gen(seed))
    if where < 2 and math.isnan(value):
        assert terms.total.isnan() and terms.task.isnan()
        assert terms.unimodal.isnan().any() and terms.mipd.isnan().all()
    elif where >= 2 or abs(value) < 1e5:
        assert terms.total.isfinite()
        terms.total.backward()
        assert all(z.grad.isfinite().all() for z in zs)
