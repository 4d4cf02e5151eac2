"MCR: the one-pass game against explicit players, the terms against their loops, and the loss in its limits."

import inspect
import math
import warnings
from itertools import permutations as orders
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from common import generator
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.heads import AttentionHead, ConcatHead, FiLMHead, GatedHead, MLPHead, SumHead, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP
from mmlit.methods.mcr import (
    DISTANCES,
    MCR,
    STRATEGIES,
    MCRHeads,
    _as_vectors,
    _owned_parameters,
    _player_scales,
    bounded_squared_error,
    conditional_entropy_bottleneck,
    mcr_loss,
    mipd,
    partners,
    proper_subsets,
    squared_error,
    stand_ins,
    supervised_nt_xent,
)
from mmlit.permutation import js_divergence_with_logits

ADDITIVE, OTHER = (SumHead, ConcatHead), (FiLMHead, GatedHead, MLPHead)
DIMS = (3, 4, 2, 5)


def features(dims, batch=4, seed=0, scale=1.0, dtype=torch.float64):
    gen = generator(seed)
    return [(scale * torch.randn(batch, d, generator=gen, dtype=dtype)).requires_grad_() for d in dims]


def model_of(kind, dims, classes=4, seed=0, dtype=torch.float64, **kwargs):
    torch.manual_seed(seed)
    return FusionModel([nn.Identity() for _ in dims], kind(dims, classes, **kwargs)).to(dtype)


def gradients(loss, model, zs):
    wrt = [*zs, *model.parameters()]
    return [
        torch.zeros_like(w) if g is None else g
        for w, g in zip(wrt, torch.autograd.grad(loss, wrt, allow_unused=True, retain_graph=True))
    ]


def players_of(model, zs, live):
    "Rows of a player each, a gradient for `live` only, and the function from rows to answers; shared are constants."
    head = model.head
    if isinstance(head, ConcatHead):
        rows, bias = [z @ w.T for z, w in zip(zs, head.linear.weight.split(head.dims, 1))], head.linear.bias.detach()
    elif isinstance(head, SumHead):
        rows, bias = [linear(z) for linear, z in zip(head.linears, zs)], 0.0
    else:
        rows, bias = list(zs), None
    rows = [r if m == live else r.detach() for m, r in enumerate(rows)]
    if bias is not None:
        return rows, lambda rows: sum(rows) + bias
    constants = {f"head.{n}": p.detach() for n, p in head.named_parameters()}

    class Fuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, rows):
            return self.head(rows)

    return rows, lambda rows: torch.func.functional_call(Fuse(), constants, (rows,))


def naive_divergence(fuse, rows, clean, subset):
    "J_S by loops over samples and all combinations of partners."
    members, values = [m for m, inside in enumerate(subset) if inside], []
    for i in range(len(clean)):
        for partner in product(range(len(clean)), repeat=len(members)):
            row = dict(zip(members, partner))
            values.append(
                js_divergence_with_logits(fuse([r[row.get(m, i)][None] for m, r in enumerate(rows)])[0], clean[i])
            )
    return torch.stack(values).mean()


def naive_game(model, zs, k, clean_grad):
    "The sum of the players' own losses."
    total = 0.0
    for m in range(len(zs)):
        rows, fuse = players_of(model, zs, m)
        clean = fuse(rows) if clean_grad == "full" else fuse(rows).detach()
        for subset in proper_subsets(len(zs)).tolist():
            total = total - (1.0 if subset[m] else k) * naive_divergence(fuse, rows, clean, subset)
    return total


# ---- the primitive


# ---- the game


def test_mipd_is_the_cmi_within_bounds_when_modalities_are_independent():
    "JSD <= CMI <= log-ratio on finite tables, through the function itself; and all 0 where x1 says nothing more."

    class Table(nn.Module):
        def __init__(self, log_p):
            super().__init__()
            self.log_p = log_p

        def fuse(self, zs):
            return self.log_p[zs[0][:, 0], zs[1][:, 0]]

    for seed in range(20):
        log_p = torch.rand(3, 4, 5, generator=generator(seed), dtype=torch.float64).pow(3).log().log_softmax(-1)
        if seed == 0:
            log_p = log_p[:1].expand(3, 4, 5)
        zs = [
            z[:, None] for z in torch.cartesian_prod(torch.arange(3), torch.arange(4)).T
        ]  # each pair once: independent and uniform
        jsd = mipd(Table(log_p), zs)[0].mean()
        p = log_p.exp()
        cmi = (torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(-1).mean()
        log_ratio = (p * (log_p - log_p.mean(0))).sum(-1).mean()
        assert jsd <= cmi + 1e-12 and cmi <= log_ratio + 1e-12
        if seed == 0:
            assert max(jsd, cmi, log_ratio) <= 1e-12


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
@pytest.mark.parametrize("n", [2, 3])
def test_mipd_is_the_loop(kind, n):
    model, zs = model_of(kind, DIMS[:n]), features(DIMS[:n], batch=3)
    values = mipd(model, zs, permutations="exact")
    assert values.shape == (2**n - 2, 3)
    for subset, value in zip(proper_subsets(n).tolist(), values):
        assert_close(value.mean(), naive_divergence(model.fuse, zs, model.fuse(zs), subset))


@pytest.mark.parametrize("clean_grad", ["detach", "full"])
@pytest.mark.parametrize("strategy", ["greedy", "independent"])
@pytest.mark.parametrize(
    "kind, n, batch",
    [
        *((kind, 2, 4) for kind in ADDITIVE + OTHER),
        (ConcatHead, 3, 3),
        (SumHead, 3, 3),
        (FiLMHead, 3, 3),
        (MLPHead, 3, 3),
        (ConcatHead, 4, 2),
    ],
)
def test_one_pass_is_the_game_of_explicit_players(kind, n, batch, strategy, clean_grad):
    model, zs = model_of(kind, DIMS[:n]), features(DIMS[:n], batch)
    ours = gradients(
        -mipd(model, zs, strategy=strategy, clean_grad=clean_grad, permutations="exact").mean(1).sum(), model, zs
    )
    theirs = gradients(naive_game(model, zs, STRATEGIES[strategy], clean_grad), model, zs)
    for a, b in zip(ours, theirs):
        assert_close(a, b, rtol=1e-9, atol=1e-14)
    assert max(g.abs().max() for g in ours[:n]) > 1e-4


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
def test_collaborative_is_the_plain_gradient(kind):
    model, zs = model_of(kind, DIMS[:3]), features(DIMS[:3], 3)
    plain = -sum(naive_divergence(model.fuse, zs, model.fuse(zs), s) for s in proper_subsets(3).tolist())
    for a, b in zip(
        gradients(-mipd(model, zs, permutations="exact").mean(1).sum(), model, zs), gradients(plain, model, zs)
    ):
        assert_close(a, b, rtol=1e-9, atol=1e-14)


def four_terms(model, zs):
    "The published greedy form for two modalities and a linear head, all pairs."
    p1, p2 = (z @ w.T for z, w in zip(zs, model.head.linear.weight.split(model.head.dims, 1)))
    bias = model.head.linear.bias
    clean = p1 + p2 + bias
    first = lambda a, b: js_divergence_with_logits(a[:, None] + b[None] + bias, clean[None]).mean()
    second = lambda a, b: js_divergence_with_logits(a[:, None] + b[None] + bias, clean[:, None]).mean()
    return -first(p1, p2.detach()) + first(p1.detach(), p2) - second(p1.detach(), p2) + second(p1, p2.detach())


def test_greedy_is_the_published_four_term_form():
    model, zs = model_of(ConcatHead, (3, 4), 5), features((3, 4), 8)
    published = four_terms(model, zs)
    assert published == 0
    ours, theirs = (
        gradients(-mipd(model, zs, strategy="greedy").mean(1).sum(), model, zs),
        gradients(published, model, zs),
    )
    for a, b in zip(ours[:3], theirs[:3]):
        assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert (ours[3] == 0).all() and theirs[3].abs().max() < 1e-15


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("strategy", ["greedy", "independent"])
def test_shared_parameters_get_exactly_zero(strategy, n):
    for model in (
        model_of(ConcatHead, (3,) * n),
        model_of(SumHead, (3,) * n, shared=True),
        model_of(MLPHead, (3,) * n),
        model_of(AttentionHead, (3,) * n, width=8),
    ):
        zs = features((3,) * n)
        got = gradients(-mipd(model, zs, strategy=strategy, generator=generator()).mean(1).sum(), model, zs)
        owned = {"head.linear.weight"} if isinstance(model.head, ConcatHead) else set()
        for (name, _), g in zip(model.named_parameters(), got[n:]):
            assert (g != 0).any() == (name in owned), name
        assert all((g != 0).any() for g in got[:n])


def test_ownership_is_seen_for_features_of_mean_zero():
    model = model_of(SumHead, (2, 2), shared=True)
    z = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double()
    assert not any(
        torch.autograd.grad(p.sum() + 0 * q.sum(), q)[0].any()
        for p, q in zip(_owned_parameters(model, [z, z]).values(), model.parameters())
    )


def test_running_statistics_and_weights_are_left_alone():
    head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))

    class Fuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def fuse(self, zs):
            return self.head(torch.cat(tuple(zs), 1))

    model, zs = Fuse(), features((2, 3), 6, dtype=torch.float32)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for strategy in STRATEGIES:
        mipd(model, zs, strategy=strategy).sum().backward()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
def test_chunks_change_nothing(kind):
    model, zs = model_of(kind, DIMS[:3]), features(DIMS[:3])
    whole, chunks = (mipd(model, zs, strategy="greedy", permutations="exact", memory=memory) for memory in (2**28, 500))
    assert_close(whole, chunks)
    for a, b in zip(gradients(whole.sum(), model, zs), gradients(chunks.sum(), model, zs)):
        assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_no_gradient_no_routing():
    model, zs = model_of(ConcatHead, (3, 4)), features((3, 4))
    with torch.no_grad():
        quiet = mipd(model, zs, strategy="greedy")
    with torch.inference_mode():
        assert_close(mipd(model, zs, strategy="greedy").clone(), quiet)
    assert_close(quiet, mipd(model, zs, strategy="greedy")) and not quiet.requires_grad


def test_an_additive_model_without_parameters():
    class Sum(nn.Module):
        def contributions(self, zs):
            return torch.stack(tuple(zs))

        def fuse(self, zs):
            return self.contributions(zs).sum(0)

    zs = features((3, 3))
    mipd(Sum(), zs, strategy="greedy").sum().backward()
    assert all(z.grad.abs().max() > 0 for z in zs)


def test_subsets_can_be_chosen_and_modalities_renamed():
    model, zs = model_of(MLPHead, DIMS[:3]), features(DIMS[:3])
    alone = mipd(model, zs, torch.eye(3).bool())
    assert_close(alone, mipd(model, zs, permutations="exact")[[0, 1, 3]])
    torch.manual_seed(0)
    swapped = FusionModel([nn.Identity()] * 2, SumHead((4, 3), 5)).double()
    straight = FusionModel([nn.Identity()] * 2, SumHead((3, 4), 5)).double()
    straight.head.linears[0], straight.head.linears[1] = swapped.head.linears[1], swapped.head.linears[0]
    zs = features((3, 4))
    assert_close(mipd(straight, zs), mipd(swapped, zs[::-1]).flip(0))


# ---- who meets whom


def test_all_pairs_are_the_mean_over_all_permutations():
    model, zs = model_of(ConcatHead, (3, 4)), features((3, 4))
    clean = model.fuse(zs)
    every = torch.stack(
        [js_divergence_with_logits(model.fuse([zs[0][list(o)], zs[1]]), clean) for o in orders(range(4))]
    )
    assert_close(mipd(model, zs)[0], every.mean(0), rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize("kind", [ConcatHead, MLPHead])
@pytest.mark.parametrize("batch", [2, 3, 7])
def test_without_itself_is_b_over_b_minus_1(kind, batch):
    model, zs = model_of(kind, (3, 4)), features((3, 4), batch)
    assert_close(mipd(model, zs, exclude="self"), mipd(model, zs) * batch / (batch - 1))


def test_partners_of_another_class_only():
    model, zs, y = model_of(FiLMHead, (3, 4, 2)), features((3, 4, 2), 5), torch.tensor([0, 0, 1, 1, 2])
    clean, subset = model.fuse(zs), [True, True, False]
    expected = []
    for i in range(5):
        ok = [(j, k) for j, k in product(range(5), repeat=2) if y[j] != y[i] and y[k] != y[i]]
        expected.append(
            torch.stack(
                [
                    js_divergence_with_logits(model.fuse([zs[0][[j]], zs[1][[k]], zs[2][[i]]])[0], clean[i])
                    for j, k in ok
                ]
            ).mean()
        )
    assert_close(
        mipd(model, zs, torch.tensor([subset]), exclude="label", y=y, permutations="exact")[0], torch.stack(expected)
    )
    assert (mipd(model, zs, exclude="label", y=torch.ones(5).long(), generator=generator()) == 0).all()


@pytest.mark.parametrize(
    "how",
    [
        dict(permutations=2),
        dict(permutations=2, draw="shift"),
        dict(permutations="pairs"),
        dict(permutations=2, draw="derangement"),
    ],
)
def test_draws_are_unbiased(how, runs=400):
    model, zs = model_of(ConcatHead, DIMS[:3]), features(DIMS[:3], 5)
    with torch.no_grad():
        truth = mipd(
            model, zs, permutations="exact", exclude="self" if how.get("draw") == "derangement" else None
        ).mean(1)
        draws = torch.stack([mipd(model, zs, **how, generator=generator(s)).mean(1) for s in range(runs)])
    standard_error = draws.std(0) / runs**0.5
    assert (standard_error < 0.03 * draws.mean(0)).all()
    assert ((draws.mean(0) - truth).abs() <= 4 * standard_error + 1e-12).all()
    assert torch.equal(mipd(model, zs, **how, generator=generator(3)).mean(1), draws[3])


def test_partners_are_permutations():
    for how in ((3, 5, "pairs"), (2, 5, 4, "shift"), (2, 5, 4, "random"), (2, 5, 4, "derangement")):
        for index in partners(*how, generator=generator()):
            assert (index.sort(1).values == torch.arange(5)).all()
    shifts = partners(1, 6, 4, "shift", generator())[0]
    assert len({tuple(row.tolist()) for row in shifts}) == 4


def test_identity_and_deaf_head_score_exactly_zero():
    model = model_of(ConcatHead, (3, 4))
    with torch.no_grad():
        model.head.linear.weight[:, 3:] = 0
    values = mipd(model, features((3, 4)))
    assert (values[1] == 0).all() and (values[0] > 0).all()
    for kind in ADDITIVE:
        model, zs = model_of(kind, (3, 4)), features((3, 4))
        assert (mipd(model, [z[:1].expand_as(z) for z in zs]) == 0).all()  # exchanged for the same
    for kind in ADDITIVE + OTHER:
        assert (mipd(model_of(kind, (3, 4)), features((3, 4), 1)).abs() < 1e-15).all()


def test_exchanging_inputs_is_exchanging_features():
    torch.manual_seed(0)
    model = FusionModel([VectorEncoder(d, 6, hidden=(8,)) for d in (3, 4)], FiLMHead((6, 6), 4)).double()
    xs = [x.detach() for x in features((3, 4), 5)]
    zs = model.encode(*xs)
    assert_close(mipd(model, zs, substitutes=stand_ins(zs, "permutation")), mipd(model, zs))
    assert_close(mipd(EarlyFusion(model, 2), xs), mipd(model, zs))
    zero = mipd(model, zs, substitutes=stand_ins(zs, "zero"))
    assert_close(zero[0], js_divergence_with_logits(model.fuse([torch.zeros_like(zs[0]), zs[1]]), model.fuse(zs)))
    noise = stand_ins(zs, "noise", generator())
    assert_close(
        mipd(model, zs, substitutes=noise)[1, 2],
        torch.stack(
            [js_divergence_with_logits(model.fuse([zs[0][[2]], n[None]]), model.fuse(zs)[[2]])[0] for n in noise[1]]
        ).mean(),
    )
    raw = model.encode(*stand_ins(xs, "noise", generator()))
    assert not torch.allclose(mipd(model, zs, substitutes=raw), mipd(model, zs, substitutes=noise))


def test_noise_has_the_moments_of_the_batch():
    z = 3 + 2 * torch.randn(20000, 2, generator=generator())
    (noise,) = stand_ins([z], "noise", generator(1))
    assert_close(noise.mean(0), z.mean(0), atol=0.06, rtol=0) and assert_close(
        noise.std(0), z.std(0), atol=0.06, rtol=0
    )


# ---- regression


def test_regression_distances():
    model, zs = model_of(MLPHead, (3, 4), 2), features((3, 4), 5)
    clean = model.fuse(zs)
    error = torch.stack([(model.fuse([zs[0][[j] * 5], zs[1]]) - clean).square().mean(1) for j in range(5)])
    variance = clean.var(0, unbiased=False).mean()
    assert_close(mipd(model, zs, distance="squared_error")[0], error.mean(0))
    assert_close(mipd(model, zs, distance="bounded_squared_error")[0], (error / (error + variance)).mean(0))
    assert (
        squared_error(clean, clean).sum() == 0
        and bounded_squared_error(clean, clean).sum() == 0
        and "jensen_shannon" in DISTANCES
    )


def test_a_regression_trains_and_a_batch_of_one_is_finite():
    for batch in (1, 6):
        model, zs, y = (
            model_of(SumHead, (3, 4), 1),
            features((3, 4), batch),
            torch.randn(batch, 1, generator=generator(), dtype=torch.float64),
        )
        heads = MCRHeads((3, 4), 1).double()
        terms = mcr_loss(
            model,
            zs,
            y,
            heads,
            task_loss=F.l1_loss,
            distance="bounded_squared_error",
            labels=torch.arange(batch),
            ceb_weight=1,
        )
        terms.total.backward()
        assert all(p.grad.isfinite().all() for p in [*zs, *model.parameters(), *heads.parameters()])


# ---- the other terms


def naive_nt_xent(zs, y, temperature):
    z, y, terms = torch.cat([z / z.norm(dim=1, keepdim=True) for z in zs]), [*y.tolist()] * len(zs), []
    for i, j in product(range(len(y)), repeat=2):
        if i == j or y[i] != y[j]:
            continue
        e = [torch.exp(z[i] @ z[k] / temperature) for k in range(len(y))]
        terms.append(-torch.log(e[j] / (e[j] + sum(e[k] for k in range(len(y)) if y[k] != y[i]))))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("y", [[0, 0, 1, 2, 1], [0, 1, 2, 3, 4], [4, 4, 4, 4, 4], [7, 7, 7, 7, 2]])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_loop(n, y, temperature):
    zs, y = features((4,) * n, 5), torch.tensor(y)
    ours, theirs = supervised_nt_xent(zs, y, temperature), naive_nt_xent(zs, y, temperature)
    assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, zs), torch.autograd.grad(theirs, zs)):
        assert_close(a, b, rtol=1e-8, atol=1e-13)
    assert_close(supervised_nt_xent(zs[::-1], y, temperature), ours)


@pytest.mark.parametrize("K, per_class, n", [(3, 2, 2), (2, 5, 3), (4, 1, 2)])
def test_nt_xent_constants(K, per_class, n):
    y = torch.arange(K).repeat(per_class)
    rows = per_class * n
    assert_close(supervised_nt_xent([F.one_hot(y).double()] * n, y).item(), math.log(1 + (K - 1) * rows * math.exp(-2)))
    assert_close(supervised_nt_xent([torch.ones(len(y), K).double()] * n, y).item(), math.log(1 + (K - 1) * rows))
    assert supervised_nt_xent([F.one_hot(y).double()] * n, torch.zeros_like(y)) == 0


def test_nt_xent_extremes():
    for zs in (
        features((4, 4), 6, scale=1e4, dtype=torch.float32),
        features((4, 4), 6, scale=1e-20, dtype=torch.float32),
        features((4, 4), 1, dtype=torch.float32),
    ):
        value = supervised_nt_xent(zs, torch.arange(len(zs[0])) % 2, 0.05)
        assert value.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(value, zs))
    assert supervised_nt_xent(features((4,), 3), torch.arange(3)) == 0  # no positive pair at all


def test_bottleneck_is_zero_iff_reconstructed_and_leaves_the_classifier_alone():
    zs, heads = features((3, 4)), MCRHeads((3, 4), 5).double()
    assert (conditional_entropy_bottleneck(zs, torch.cat(zs, 1)) == 0).all() and (
        conditional_entropy_bottleneck(zs, torch.cat(zs, 1) + 0.1) > 0
    ).all()
    logits = torch.randn(4, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    penalty = conditional_entropy_bottleneck(zs, heads.reconstruct(logits)).mean()
    assert_close(penalty, F.mse_loss(heads.decoder(logits), torch.cat(zs, 1)))
    grads = torch.autograd.grad(penalty, [logits, *zs, *heads.decoder.parameters()], allow_unused=True)
    assert grads[0] is None and all(g.abs().max() > 0 for g in grads[1:])


# ---- the loss


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
def test_weights_zero_are_multi_loss_training(kind):
    model, zs, y, heads = (
        model_of(kind, (3, 4)),
        features((3, 4)),
        torch.tensor([0, 1, 3, 1]),
        MCRHeads((3, 4), 4).double(),
    )
    ours = mcr_loss(model, zs, y, heads, mipd_weight=0, contrastive_weight=0, unimodal_weight=0.7).total
    plain = F.cross_entropy(model.fuse(zs), y) + 0.7 * sum(F.cross_entropy(u(z), y) for u, z in zip(heads.unimodal, zs))
    for a, b in zip(gradients(ours, model, zs), gradients(plain, model, zs)):
        assert_close(a, b, rtol=1e-12, atol=1e-15)
    joint = mcr_loss(model, zs, y, mipd_weight=0, contrastive_weight=0, unimodal_weight=0)
    for a, b in zip(gradients(joint.total, model, zs), gradients(F.cross_entropy(model.fuse(zs), y), model, zs)):
        assert torch.equal(a, b)
    assert joint.mipd.isnan() and joint.unimodal.isnan() and joint.contrastive.isnan() and joint.ceb.isnan()


def test_total_is_the_weighted_sum_and_logits_can_be_given():
    model, zs, y, heads = (
        model_of(ConcatHead, DIMS[:3]),
        features(DIMS[:3]),
        torch.tensor([0, 1, 3, 1]),
        MCRHeads(DIMS[:3], 4).double(),
    )
    weights = dict(mipd_weight=0.3, unimodal_weight=0.2, contrastive_weight=0.5, ceb_weight=0.7)
    t = mcr_loss(model, zs, y, heads, **weights, generator=generator(), logits=model.fuse(zs))
    assert t.unimodal.shape == (3,) and t.mipd.shape == (6,) and (t.mipd > 0).all()
    assert_close(t.total, t.task + 0.2 * t.unimodal.sum() - 0.3 * t.mipd.sum() + 0.5 * t.contrastive + 0.7 * t.ceb)
    assert_close(t.total, mcr_loss(model, zs, y, heads, **weights, generator=generator()).total)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ADDITIVE + OTHER + (AttentionHead,))
def test_extreme_logits_are_finite(kind, strategy, autocast):
    model, heads = model_of(kind, (4, 4, 4), dtype=torch.float32), MCRHeads((4, 4, 4), 4)
    zs, y = features((4, 4, 4), scale=1e4, dtype=torch.float32), torch.tensor([0, 1, 1, 2])  # class 3 is absent
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = mcr_loss(model, zs, y, heads, strategy, ceb_weight=1e-6, generator=generator())
    assert terms.total.dtype == torch.float32 and all(t.isfinite().all() for t in terms)
    terms.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [*zs, *model.parameters(), *heads.parameters()])


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
def test_a_batch_of_one(kind):
    model, zs, heads = model_of(kind, (4, 4)), features((4, 4), 1), MCRHeads((4, 4), 4).double()
    terms = mcr_loss(model, zs, torch.tensor([2]), heads)
    terms.total.backward()
    assert (terms.mipd.abs() < 1e-15).all() and terms.contrastive == 0 and all(z.grad.isfinite().all() for z in zs)


@pytest.mark.parametrize("kind", ADDITIVE + OTHER + (AttentionHead,))
def test_every_parameter_moves(kind):
    torch.manual_seed(0)
    model = FusionModel([VectorEncoder(d, w, hidden=(8,)) for d, w in zip((5, 6, 7), (4, 6, 5))], kind((4, 6, 5), 3))
    heads, xs, y = MCRHeads((4, 6, 5), 3), [x.detach().float() for x in features((5, 6, 7), 12)], torch.arange(12) % 3
    params = [*model.parameters(), *heads.parameters()]
    before, optimizer = [p.detach().clone() for p in params], torch.optim.SGD(params, lr=0.1)
    for step in range(3):
        loss = mcr_loss(model, model.encode(*xs), y, heads, ceb_weight=1.0, generator=generator(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for p, b in zip(params, before):
        assert not torch.equal(p, b)


def test_token_features():
    model, heads = model_of(AttentionHead, (4, 5), dtype=torch.float32), MCRHeads((4, 5), 4)
    zs = [
        torch.randn(6, 3, 4, generator=generator()).requires_grad_(),
        torch.randn(6, 2, 5, generator=generator()).requires_grad_(),
    ]
    mcr_loss(model, zs, torch.arange(6) % 4, heads, ceb_weight=1.0).total.backward()
    assert all(z.grad.abs().max() > 0 for z in zs) and _as_vectors(zs)[0].shape == (6, 4)


def test_a_game_without_players_says_so():
    model, xs = EarlyFusion(JoinedMLP([(4,), (4,)], 3), 2), [x.detach().float() for x in features((4, 4))]
    options = dict(unimodal_weight=0, contrastive_weight=0)
    with pytest.warns(UserWarning, match="early fusion"):
        mcr_loss(model, xs, torch.zeros(4).long(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcr_loss(model, xs, torch.zeros(4).long(), **options, strategy="collaborative").total.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_greedy_makes_both_modalities_matter_more(seeds=8):
    "Some steps of the game alone raise the MIPD of both modalities, from every start."
    gains = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = FusionModel([VectorEncoder(5, 8, hidden=(16,)) for _ in range(2)], ConcatHead((8, 8), 3))
        xs, optimizer = [torch.randn(32, 5) for _ in range(2)], torch.optim.SGD(model.parameters(), lr=0.5)
        start = mipd(model, model.encode(*xs)).mean(1).detach()
        for _ in range(25):
            optimizer.zero_grad()
            (-mipd(model, model.encode(*xs), strategy="greedy").mean(1).sum()).backward()
            optimizer.step()
        gains.append(mipd(model, model.encode(*xs)).mean(1).detach() / start - 1)
    assert (torch.stack(gains) > 0).all()


# ---- rejected input


def test_rejected_input():
    model, zs, heads, y = (
        model_of(SumHead, (3, 4)),
        features((3, 4)),
        MCRHeads((3, 4), 4).double(),
        torch.zeros(4).long(),
    )
    for options, message in [
        (dict(strategy="selfish"), "unknown strategy"),
        (dict(clean_grad="half"), "clean_grad"),
        (dict(distance="cosine"), "unknown distance"),
        (dict(permutations="all"), "permutations must"),
        (dict(permutations=0), "permutations must"),
        (dict(permutations=9, draw="shift"), "distinct shifts"),
        (dict(permutations=2, draw="twist"), "unknown draw"),
        (dict(exclude="twins"), "unknown exclude"),
        (dict(exclude="label"), "needs the labels"),
        (dict(subsets=torch.ones(1, 2).bool()), "keep at least one"),
        (dict(subsets=torch.zeros(1, 2).bool()), "at least one"),
        (dict(subsets=torch.eye(3).bool()), "shape"),
        (dict(subsets=torch.eye(2)), "bool"),
        (dict(subsets=torch.zeros(0, 2).bool()), "shape"),
        (dict(substitutes=[torch.zeros(2, 3).double(), torch.zeros(2, 4).double()]), "rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            mipd(model, zs, **options)
    with pytest.raises(ValueError, match="at least two"):
        mipd(model_of(SumHead, (3,)), zs[:1])
    with pytest.raises(ValueError, match="one output"):
        mipd(model_of(SumHead, (3, 4), 1), zs)
    with pytest.raises(ValueError, match="batch size"):
        mipd(model, [zs[0], zs[1][:2]])
    with pytest.raises(ValueError, match="unknown strategy"):
        _player_scales(proper_subsets(2), "none")
    with pytest.raises(ValueError, match="needs heads"):
        mcr_loss(model, zs, y)
    with pytest.raises(ValueError, match="needs heads"):
        mcr_loss(model, zs, y, unimodal_weight=0, ceb_weight=1)
    with pytest.raises(ValueError, match="negative"):
        mcr_loss(model, zs, y, heads, mipd_weight=-1)
    with pytest.raises(ValueError, match="negative"):
        mcr_loss(model, zs, y, heads, ceb_weight=math.nan)
    with pytest.raises(ValueError, match="project"):
        mcr_loss(model, zs, y, unimodal_weight=0)
    with pytest.raises(ValueError, match="integers"):
        supervised_nt_xent(features((3, 3)), torch.zeros(4))
    with pytest.raises(ValueError, match="integers"):
        supervised_nt_xent(features((3, 3)), torch.zeros(3).long())
    with pytest.raises(ValueError, match="temperature"):
        supervised_nt_xent(features((3, 3)), y, -1)
    with pytest.raises(ValueError, match="reconstruction"):
        conditional_entropy_bottleneck(zs, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="unknown stand-in"):
        stand_ins(zs, "blur")
    with pytest.raises(ValueError, match="integers"):
        stand_ins([torch.zeros(3, 2).long()], "noise")
    with pytest.raises(ValueError, match="widths"):
        heads(features((4, 4)))


def test_a_row_of_zeros_has_a_bounded_gradient():
    z = [torch.randn(6, 4, generator=torch.Generator().manual_seed(m)) for m in range(2)]
    z[0][2] = 0
    z = [v.requires_grad_() for v in z]
    grads = torch.autograd.grad(supervised_nt_xent(z, torch.tensor([0, 0, 1, 1, 2, 2])), z)
    assert grads[0].isfinite().all() and grads[0][2].norm() < 10 * grads[1].norm()


def test_features_that_cancel_are_still_used():
    head, signs = SumHead((1, 1), 2, shared=True), torch.tensor([1.0, -1, -1, 1])[:, None]
    owned = _owned_parameters(head, (signs, signs))
    owned["linears.0.weight"].sum().backward() if owned["linears.0.weight"].requires_grad else None
    assert head.linears[0].weight.grad is None or not head.linears[0].weight.grad.any()


def test_targets_of_a_regression_may_be_flat():
    head, zs, y = SumHead((3, 3), 1), torch.randn(2, 8, 3), torch.randn(8)
    model = FusionModel([nn.Identity()] * 2, head)
    loss = lambda y: (
        mcr_loss(model, zs, y, mipd_weight=0.0, unimodal_weight=0.0, contrastive_weight=0.0, task_loss=F.l1_loss).task
    )
    assert_close(loss(y), loss(y[:, None]))
    assert_close(loss(y), F.l1_loss(head(zs)[:, 0], y))


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(stand_in="zero"), TypeError, "stand_in"),
        (dict(strategy="gredy"), ValueError, "unknown strategy 'gredy' .did you mean 'greedy'"),
        (dict(clean_grad="half"), ValueError, "unknown clean_grad 'half'"),
        (dict(draw="twist"), ValueError, "unknown draw 'twist'"),
        (dict(exclude="twins"), ValueError, "unknown exclude 'twins'"),
        (dict(distance="cosine"), ValueError, "unknown distance 'cosine'"),
        (dict(permutations="all"), ValueError, "permutations must"),
        (dict(permutations=0), ValueError, "permutations must"),
        (dict(mipd_weight=-1), ValueError, "mipd_weight must not be negative"),
        (dict(ceb_weight=math.nan), ValueError, "ceb_weight must not be negative"),
    ],
)
def test_the_callback_refuses_an_option_where_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        MCR(**options)


def test_the_options_of_the_callback_are_those_of_its_signature_and_the_defaults_those_of_the_loss():
    method, own = MCR(seed=3), inspect.signature(MCR).parameters
    assert own.keys() - {"seed"} == method.options.keys() and method.seed == 3
    defaults = {name: p.default for name, p in inspect.signature(mcr_loss).parameters.items()}
    assert method.options.items() <= defaults.items()


def test_to_make_a_callback_draws_no_number():
    before = torch.get_rng_state()
    MCR(permutations=4)
    assert torch.equal(torch.get_rng_state(), before)
