"MCR: the terms against their loops, the loss in its limits, and the callback beside a loop written by hand."

import copy
import inspect
import math
import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import generator
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from games import ADDITIVE, DIMS, OTHER, features, gradients, model_of, published_terms
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset
from trajectories import OTHER_ORDER, Setting, same_trajectory

from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, AttentionHead, ConcatHead, FiLMHead, MLPHead, SumHead, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP
from mmlit.learner import build_model, multimodal_learner
from mmlit.methods.baselines import unimodal_learner
from mmlit.methods.exchange import STRATEGIES, mipd, stand_ins
from mmlit.methods.mcr import (
    MCR,
    MCRHeads,
    _as_vectors,
    _classes,
    conditional_entropy_bottleneck,
    mcr_loss,
    supervised_nt_xent,
)

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


def test_a_row_of_zeros_has_a_bounded_gradient():
    z = [torch.randn(6, 4, generator=torch.Generator().manual_seed(m)) for m in range(2)]
    z[0][2] = 0
    z = [v.requires_grad_() for v in z]
    grads = torch.autograd.grad(supervised_nt_xent(z, torch.tensor([0, 0, 1, 1, 2, 2])), z)
    assert grads[0].isfinite().all() and grads[0][2].norm() < 10 * grads[1].norm()


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


def test_what_reconstructs_is_as_wide_as_the_widest_features():
    heads = MCRHeads((3, 4), 5)
    assert [tuple(p.shape) for p in heads.decoder.parameters()] == [(4, 5), (7, 4)]
    assert [p.out_features for p in heads.projections] == [3, 3]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_contrastive_loss_has_a_least_value(temperature):
    "Cosines are at least -1: L >= ln(1 + n_- exp(-2/tau)), reached by two classes on opposite sides."
    y = torch.arange(12) % 2
    opposite = supervised_nt_xent([(2.0 * y - 1)[:, None].double()] * 2, y, temperature)
    least = math.log(1 + 12 * math.exp(-2 / temperature))
    assert math.isclose(opposite.item(), least, rel_tol=1e-7)
    for seed in range(20):
        assert supervised_nt_xent(features((3, 3), 12, seed=seed), y, temperature) > least


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


def test_tokens_of_any_shape_are_averaged():
    z = torch.randn(2, 3, 4, 5, generator=generator())
    vectors, flat = _as_vectors([z, z[:, 0, 0]])
    assert_close(vectors, torch.stack([sum(row[i, j] for i in range(3) for j in range(4)) / 12 for row in z]))
    assert torch.equal(flat, z[:, 0, 0])


def test_a_game_without_players_says_so():
    options = dict(unimodal_weight=0, contrastive_weight=0)
    xs, y = [x.detach().float() for x in features((4, 4))], torch.zeros(4).long()
    early = EarlyFusion(JoinedMLP([(4,), (4,)], 3), 2)
    perceptron = model_of(MLPHead, (4, 4), dtype=torch.float32)
    for model, more in ((early, {}), (perceptron, dict(owned="encoders"))):
        with pytest.warns(UserWarning, match="early fusion"):
            mcr_loss(model, xs, y, **options, **more)
    for model, more in ((early, dict(strategy="collaborative")), (perceptron, {})):  # slices are players
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mcr_loss(model, xs, y, **options, **more).total.backward()
        assert all(p.grad.abs().max() > 0 for p in model.parameters())
    with pytest.warns(UserWarning, match="early fusion"):
        mcr_loss(perceptron.requires_grad_(False), xs, y, **options)


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


def test_targets_of_a_regression_may_be_flat():
    head, zs, y = SumHead((3, 3), 1), torch.randn(2, 8, 3), torch.randn(8)
    model = FusionModel([nn.Identity()] * 2, head)
    loss = lambda y: (
        mcr_loss(model, zs, y, mipd_weight=0.0, unimodal_weight=0.0, contrastive_weight=0.0, task_loss=F.l1_loss).task
    )
    assert_close(loss(y), loss(y[:, None]))
    assert_close(loss(y), F.l1_loss(head(zs)[:, 0], y))


def test_targets_that_agree_are_one_class():
    model, zs, heads = model_of(ConcatHead, (3, 3)), features((3, 3)), MCRHeads((3, 3), 4).double()
    sets = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]).double()
    got = lambda y, loss, **options: mcr_loss(model, zs, y, heads, task_loss=loss, **options).contrastive
    same = supervised_nt_xent(heads.embed(zs), torch.tensor([0, 1, 0, 2]))
    assert_close(got(sets, F.binary_cross_entropy_with_logits, distance="bernoulli"), same)
    one, of_one = model_of(ConcatHead, (3, 3), 1), MCRHeads((3, 3), 1).double()
    numbers = mcr_loss(one, zs, torch.tensor([0.5, 2, 0.5, 3]), of_one, task_loss=F.l1_loss, distance="gaussian")
    assert_close(numbers.contrastive, supervised_nt_xent(of_one.embed(zs), torch.tensor([0, 1, 0, 2])))


def test_a_bounded_contrast_is_unbiased_and_whole_where_it_fits(runs=300):
    zs, y = features((4, 4), 12), torch.arange(12) % 3
    presence = torch.rand(12, 2, generator=generator(1)) < 0.7
    for there in (None, presence):
        whole = supervised_nt_xent(zs, y, presence=there)
        assert torch.equal(supervised_nt_xent(zs, y, presence=there, pairs=24 * 24), whole)
        few = lambda s, there=there: supervised_nt_xent(zs, y, presence=there, pairs=6 * 24, generator=generator(s))
        draws = torch.stack([few(s).detach() for s in range(runs)])
        slopes = torch.stack([torch.autograd.grad(few(s), zs[0])[0] for s in range(runs)])
        for values, truth in ((draws, whole), (slopes, torch.autograd.grad(whole, zs[0])[0])):
            standard_error = values.std(0) / runs**0.5
            assert ((values.mean(0) - truth).abs() <= 4.5 * standard_error + 1e-12).all()
            assert standard_error.max() < 0.1 * truth.abs().max() and standard_error.max() > 0
    one = supervised_nt_xent(zs, y, pairs=1, generator=generator())  # one row, and all its pairs
    assert one.isfinite() and one > 0


def test_what_nobody_has_makes_no_pair():
    zs, y = features((4, 4), 6), torch.tensor([0, 0, 1, 1, 2, 0])
    presence = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [0, 0]]).bool()
    rows = torch.cat([z[p] for z, p in zip(zs, presence.T)])
    same = supervised_nt_xent([rows], torch.cat([y[p] for p in presence.T]))
    assert_close(supervised_nt_xent(zs, y, presence=presence), same)
    grads = torch.autograd.grad(supervised_nt_xent(zs, y, presence=presence), zs)
    assert all((g[~p] == 0).all() and g[p].any() for g, p in zip(grads, presence.T))


def test_the_gradient_of_the_contrast_may_be_differentiated_again():
    zs = features((3, 3), 5)
    y = torch.tensor([0, 1, 0, 1, 2])
    f = lambda *zs: supervised_nt_xent(zs, y)
    assert torch.autograd.gradcheck(f, zs) and torch.autograd.gradgradcheck(f, zs)


def test_classes_are_numbered_as_unique_does():
    gen = generator()
    for shape in ((9, 1), (40, 5), (40, 3), (7,), (1, 4)):
        y = torch.randint(2, shape, generator=gen).double()
        ours, theirs = _classes(y), y.unique(dim=0, return_inverse=True)[1]
        assert ours.shape == (shape[0],)
        assert torch.equal(ours[:, None] == ours, theirs[:, None] == theirs)
    assert torch.equal(_classes(torch.tensor([3, 1])), torch.tensor([3, 1]))


WAITING = "_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "is_nonzero", "equal", "masked_select"


def reads(f):
    "The operations by which a program waits for a value, as often as they are asked for."
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name in WAITING:
                found.append(name)
            return func(*args, **(kwargs or {}))

    with Watch():
        f()
    return found


CASES = [
    (kind, strategy, n)
    for kind in (SumHead, ConcatHead, MLPHead, FiLMHead, AttentionHead)
    for strategy, n in (("greedy", 2), ("independent", 3), ("collaborative", 2))
]


@pytest.mark.parametrize("kind, strategy, n", CASES)
def test_a_step_reads_no_value(kind, strategy, n):
    model, heads = model_of(kind, (4,) * n, dtype=torch.float32), MCRHeads((4,) * n, 4)
    zs, y = features((4,) * n, 6, dtype=torch.float32), torch.tensor([0, 1, 3, 1, 2, 2])
    step = lambda **how: mcr_loss(model, zs, y, heads, strategy, ceb_weight=0.1, **how).total.backward()
    step()  # who owns what is found in the first one
    for how in ({}, dict(exclude="label"), dict(rows=12, pairs=40), dict(permutations=3, shared=True)):
        assert reads(lambda how=how: step(generator=generator(), **how)) == []
    assert reads(lambda: torch.ones(1).item()) == ["_local_scalar_dense"]


@pytest.mark.parametrize("target", ["numbers", "labels"])
def test_a_step_of_another_task_reads_no_value(target):
    model, heads, zs = model_of(MLPHead, (4, 4)), MCRHeads((4, 4), 4).double(), features((4, 4), 6)
    y = torch.randn(6, 4, generator=generator()).double()
    y = (y > 0).double() if target == "labels" else y
    how = dict(task_loss=F.mse_loss, distance="gaussian" if target == "numbers" else "bernoulli")
    step = lambda: mcr_loss(model, zs, y, heads, **how).total.backward()
    step()
    assert reads(step) == []


@pytest.mark.parametrize("kind, strategy, n", CASES)
def test_the_loss_is_one_graph(kind, strategy, n):
    torch._dynamo.reset()
    model, heads = model_of(kind, (4,) * n, dtype=torch.float32), MCRHeads((4,) * n, 4)
    zs, y = features((4,) * n, 6, dtype=torch.float32), torch.tensor([0, 1, 3, 1, 2, 2])

    def loss(zs, y):
        return mcr_loss(model, zs, y, heads, strategy, ceb_weight=0.1).total

    torch.manual_seed(0)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)(zs, y)
    torch.manual_seed(0)
    eager = loss(zs, y)
    assert_close(compiled, eager)
    for a, b in zip(gradients(compiled, model, zs), gradients(eager, model, zs)):
        assert_close(a, b)


def test_each_modality_gets_all_targets_for_its_own_loss():
    "A loss of two targets, on samples of which some lack a modality."
    model, heads, zs = model_of(SumHead, (3, 3)), MCRHeads((3, 3), 4).double(), features((3, 3), 6)
    y, weight = torch.tensor([0, 1, 3, 1, 2, 2]), torch.rand(6, generator=generator(), dtype=torch.float64)
    loss = lambda out, y, w: (w * F.cross_entropy(out, y, reduction="none")).mean()
    presence = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1], [1, 1]]).bool()
    terms = mcr_loss(model, zs, y, heads, task_loss=loss, targets=[y, weight], presence=presence)
    assert_close(terms.task, loss(model.fuse(zs), y, weight))
    own = [loss(u(z[p]), y[p], weight[p]) for u, z, p in zip(heads.unimodal, zs, presence.T)]
    assert_close(terms.unimodal, torch.stack(own))


def test_rejected_input():
    model, zs, heads, y = (
        model_of(SumHead, (3, 4)),
        features((3, 4)),
        MCRHeads((3, 4), 4).double(),
        torch.zeros(4).long(),
    )
    for options, message in [
        (dict(), "needs heads"),
        (dict(unimodal_weight=0, ceb_weight=1), "needs heads"),
        (dict(heads=heads, mipd_weight=-1), "must be a number"),
        (dict(heads=heads, ceb_weight=math.nan), "must be a number"),
        (dict(heads=heads, contrastive_weight=math.inf), "must be a number"),
        (dict(heads=heads, unimodal_weight="much"), "must be a number"),
        (dict(heads=heads, temperature=math.inf), "temperature"),
        (dict(heads=heads, temperature=math.nan), "temperature"),
        (dict(heads=heads, task_loss=partial(F.cross_entropy, reduction="none")), "one number"),
        (dict(unimodal_weight=0), "project"),
        (dict(heads=heads, exclude="twins"), "unknown exclude"),
        (dict(heads=heads, pairs=0), "pairs must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            mcr_loss(model, zs, y, **options)
    with pytest.raises(ValueError, match="no classes"):
        mcr_loss(model, zs, torch.rand(4, 4), heads)  # of what kind are these targets? of probabilities, if we say so
    assert mcr_loss(model, zs, torch.rand(4, 4), heads, distance="jensen_shannon").total.isfinite()
    with pytest.raises(TypeError, match="stand_in"):
        mcr_loss(model, zs, y, heads, stand_in="zero")
    for wrong in (torch.zeros(4), torch.zeros(3).long()):
        with pytest.raises(ValueError, match="integers"):
            supervised_nt_xent(features((3, 3)), wrong)
    for temperature in (-1, 0, math.nan, math.inf, "hot"):
        with pytest.raises(ValueError, match="^temperature must be"):
            supervised_nt_xent(features((3, 3)), y, temperature)
    with pytest.raises(ValueError, match="reconstruction"):
        conditional_entropy_bottleneck(zs, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="widths"):
        heads(features((4, 4)))


# ---- the callback


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(stand_in="zero"), TypeError, "stand_in"),
        (dict(strategy="gredy"), ValueError, "unknown strategy 'gredy' .did you mean 'greedy'"),
        (dict(clean_grad="half"), ValueError, "unknown clean_grad 'half'"),
        (dict(owned="slice"), ValueError, "unknown owned 'slice' .did you mean 'slices'"),
        (dict(draw="twist"), ValueError, "unknown draw 'twist'"),
        (dict(shared=2), ValueError, "unknown shared 2"),
        (dict(exclude="twins"), ValueError, "unknown exclude 'twins'"),
        (dict(distance="cosine"), ValueError, "unknown distance 'cosine'"),
        (dict(contrast="class"), ValueError, "unknown contrast 'class'"),
        (dict(substitute="zero"), ValueError, "unknown substitute 'zero'"),
        (dict(substitute="noise_input", exclude="self"), ValueError, "leaves out partners"),
        (dict(permutations="all"), ValueError, "permutations, if not"),
        (dict(permutations=0), ValueError, "permutations, if not"),
        (dict(permutations=True), ValueError, "permutations, if not"),
        (dict(mipd_weight=-1), ValueError, "must be a number in"),
        (dict(ceb_weight=math.nan), ValueError, "must be a number in"),
        (dict(contrastive_weight=math.inf), ValueError, "contrastive_weight must be a number"),
        (dict(temperature=0), ValueError, "temperature must be a number"),
        (dict(rows=0), ValueError, "rows must be a whole number"),
        (dict(pairs=0), ValueError, "pairs must be a whole number"),
        (dict(temperature=math.nan), ValueError, "temperature must be a number"),
        (dict(memory=0), ValueError, "in bytes"),
        *(
            (dict(start=s, end=e), ValueError, f"^{name} must be a whole number")
            for s, e, name in ((-1, None, "start"), (2, 2, "end"), (3, 1, "end"), (1.5, None, "start"))
        ),
    ],
)
def test_the_callback_refuses_an_option_where_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        MCR(**options)


def test_the_options_of_the_callback_are_those_of_its_signature_and_the_defaults_those_of_the_loss():
    method, own = MCR(seed=3), inspect.signature(MCR).parameters
    assert own.keys() - {"seed", "contrast", "substitute", "start", "end"} == method.options.keys() and method.seed == 3
    defaults = {name: p.default for name, p in inspect.signature(mcr_loss).parameters.items()}
    assert method.options.items() <= defaults.items()


@pytest.mark.parametrize("ceb_weight", [0.0, 0.5])
def test_every_part_of_the_callback_trains(ceb_weight):
    learn = learner(MCR(ceb_weight=ceb_weight))
    before = {n: p.detach().clone() for n, p in learn.model.parts.named_parameters()}
    quietly_fit(learn)
    assert any("decoder" in n for n in before) == bool(ceb_weight)
    assert not [n for n, p in learn.model.parts.named_parameters() if torch.equal(p, before[n])]


def test_to_make_a_callback_draws_no_number():
    before = torch.get_rng_state()
    MCR(permutations=4)
    assert torch.equal(torch.get_rng_state(), before)


def loaders(task="classification", modalities=2, rows=96, unit=1):
    "A little data, in batches of one size: the first columns of each modality say something about the target."
    r = np.random.default_rng(0)
    y = r.integers(0, 3, rows)
    xs = {f"m{m}": r.normal(size=(rows, 5 + m)).astype("f") + y[:, None] * (m != 1) for m in range(modalities)}
    several = (r.random((rows, 3)) < 0.5).astype("f")
    numbers = (unit * (50 + 9 * y + r.normal(size=rows))).astype("f")
    targets = {"classification": y, "multi-label": several, "regression": numbers}
    return multimodal_dls(xs, targets[task], bs=16, device="cpu", task=task)


def learner(method, dls=None, head="concat", setting=OTHER_ORDER[0], **options):
    torch.manual_seed(0)
    dls = loaders() if dls is None else dls
    return multimodal_learner(dls, head=head, width=8, method=method, opt_func=setting.opt_func(), **options)


def quietly_fit(learn, epochs=1, lr=0.01):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lr)
    return learn


def nt_xent_by_hand(zs, ids, temperature=0.5):
    "From the formula, with plain exponentials."
    with torch.autocast("cpu", enabled=False):
        z = torch.cat([z.float() / z.float().norm(dim=1, keepdim=True) for z in zs])
        ids, e = ids.repeat(len(zs)), torch.exp(z @ z.T / temperature)
        same = ids[:, None] == ids[None]
        negative = (e * ~same).sum(1, keepdim=True)
        return -torch.log(e / (e + negative))[same & ~torch.eye(len(z), dtype=torch.bool)].mean()


def published(model, xs, y, epoch, loss=F.cross_entropy, weights=(0.1, 0.01, 1.0, 0.5)):
    "MCR for two modalities as the paper and its code have it: four terms of which the game is made, and the others."
    zs, heads, (mipd_weight, unimodal, contrastive, ceb) = model.encode(*xs), model.parts["mcr_heads"], weights
    logits = model.fuse(zs).float()
    alone = sum(loss(u(z).float(), y) for u, z in zip(heads.unimodal, zs))
    together = torch.cat([z.float() for z in zs], 1)
    bottleneck = F.mse_loss(heads.decoder(logits.detach()).float(), together) if ceb else 0.0
    return (
        loss(logits, y)
        + unimodal * alone
        + mipd_weight * published_terms(model, zs, "greedy")
        + contrastive * nt_xent_by_hand(zs, y)
        + ceb * bottleneck
    )


@pytest.mark.parametrize("setting", OTHER_ORDER, ids=str)
@pytest.mark.parametrize("head", ["concat", "mlp"])
def test_the_callback_trains_as_the_published_loop(head, setting):
    learn = learner(MCR(ceb_weight=0.5), head=head, setting=setting)
    off = dict(rtol=2e-2, atol=2e-3) if setting.bf16 else {}  # sums of bfloat16 in another order
    same_trajectory(learn, setting, published, epochs=1, **off)


def test_without_the_slices_the_trajectory_is_another():
    "The harness sees the difference between the published rule and a head that is one block."
    learn = learner(MCR(ceb_weight=0.5, mipd_weight=20.0, owned="encoders"), head="mlp")
    with pytest.raises(AssertionError, match="layers.0.weight"):
        same_trajectory(learn, Setting(), partial(published, weights=(20.0, 0.01, 1.0, 0.5)), epochs=1)


def test_the_users_loss_is_that_of_the_fusion_and_of_each_modality():
    options = dict(weight=torch.tensor([1.0, 5.0, 0.2]), label_smoothing=0.2)
    dls = loaders()
    learn = learner(MCR(unimodal_weight=1.0), dls, loss_func=CrossEntropyLossFlat(**options))
    loss = partial(F.cross_entropy, **options)
    same_trajectory(learn, Setting(), partial(published, loss=loss, weights=(0.1, 1.0, 1.0, 0.0)), epochs=1)


def rows_of(y, contrast):
    return torch.arange(len(y)) if contrast == "sample" else None


@pytest.mark.parametrize(
    "options",
    [
        dict(strategy="independent", clean_grad="full"),
        dict(strategy="collaborative"),
        dict(owned="encoders"),
        dict(exclude="other_label"),
        dict(shared=True, permutations=3),
        dict(contrast="sample", temperature=0.2),
        dict(start=1, end=2),
        dict(substitute="zero_feature"),
        dict(substitute="zero_input"),
        dict(substitute="noise_feature"),
        dict(substitute="noise_input"),
    ],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()),
)
def test_each_option_of_the_callback_is_that_of_the_loss(options):
    "With a game of so much weight that another one leaves the trajectory."
    options, generators = options | dict(mipd_weight=20.0), {}
    own = dict(options)
    contrast, substitute = own.pop("contrast", "label"), own.pop("substitute", "permutation")
    start, end = own.pop("start", 0), own.pop("end", None)

    def by_hand(model, xs, y, epoch, own=own, substitute=substitute, contrast=contrast):
        gen = generators.setdefault(epoch, torch.Generator().manual_seed(epoch))
        zs, on, instead = model.encode(*xs), start <= epoch < (end or 99), None
        if substitute != "permutation":
            kind, where = substitute.split("_")
            instead = stand_ins(zs if where == "feature" else xs, kind, gen)
            instead = model.encode(*instead) if where == "input" else instead
        weights = {} if on else dict(mipd_weight=0, contrastive_weight=0)
        heads, labels = model.parts["mcr_heads"], rows_of(y, contrast)
        given = dict(generator=gen, labels=labels, substitutes=instead)
        return mcr_loss(model, zs, y, heads, **given, **(own | weights)).total

    epochs = 3 if "start" in options else 1
    dls = loaders(modalities=3) if "shared" in options else None
    learn = same_trajectory(learner(MCR(**options), dls, head="mlp"), Setting(), by_hand, epochs=epochs)
    plain = partial(by_hand, own=dict(mipd_weight=20.0), substitute="permutation", contrast="label")
    if "start" not in options:
        generators.clear()
        with pytest.raises(AssertionError, match="are not close"):
            same_trajectory(learner(MCR(**options), dls, head="mlp"), Setting(), plain, epochs=1)
    if "start" in options:
        assert [math.isnan(v) for v in learn.mcr.history["mipd"]] == [True, False, True]
        assert not any(math.isnan(v) for v in learn.mcr.history["unimodal"])


def test_stand_ins_of_inputs_enter_no_running_average():
    encoders = [nn.Sequential(nn.Linear(5 + m, 8), nn.BatchNorm1d(8)) for m in range(2)]
    averages = []
    for method in (None, MCR(substitute="noise_input", mipd_weight=1e-9, contrastive_weight=0, unimodal_weight=0)):
        torch.manual_seed(0)
        dls = loaders()
        learn = multimodal_learner(dls, [*map(copy.deepcopy, encoders)], method=method)
        quietly_fit(learn, lr=0.0)
        averages.append(learn.model.encoders[0][1].running_mean)
        assert all(m.training for m in learn.model.train().modules())
    assert_close(*averages)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("task, most", [("multi-label", 3 * math.log(2)), ("regression", math.log(2) + 2e-5)])
def test_several_labels_and_numbers_train(task, most, modalities, head):
    learn = quietly_fit(learner(MCR(ceb_weight=0.01), loaders(task, modalities), head=head, metrics=[]))
    assert learn.mcr.distance == {"multi-label": "bernoulli", "regression": "gaussian"}[task]
    columns = {name: values[0] for name, values in learn.mcr.history.items()}
    assert 0 < columns["mipd"] < most and all(math.isfinite(v) for v in columns.values())
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_numbers_play_the_same_game_in_any_unit():
    played = []
    for unit in (1, 1000):
        torch.manual_seed(3)
        dls = loaders("regression", unit=unit)
        model = build_model(dls, head="mlp", width=8)
        *xs, y = dls.valid.one_batch()
        zs, none = model.encode(*xs), dict(unimodal_weight=0, contrastive_weight=0)
        played.append(mcr_loss(model, zs, y, task_loss=F.mse_loss, distance="gaussian", **none).mipd)
    assert_close(*played, rtol=1e-3, atol=0)
    assert (played[0] > 0).all()


@pytest.mark.parametrize(
    "method, dls, message",
    [
        (dict(distance="gaussian"), dict(), "unknown distance for a classification task 'gaussian'"),
        (dict(distance="jensen_shannon"), dict(task="regression"), "unknown distance for a regression task"),
        (dict(distance="jensen_shannon"), dict(task="multi-label"), "unknown distance for a multi-label task"),
    ],
)
def test_what_cannot_be_played_is_refused_before_training(method, dls, message):
    with pytest.raises(ValueError, match=message):
        learner(MCR(**method), loaders(**dls))


@pytest.mark.parametrize("distance", ["squared_error", "bounded_squared_error"])
@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_squares_are_a_distance_of_any_task(task, distance):
    assert learner(MCR(distance=distance), loaders(task)).mcr.distance == distance


def test_too_many_modalities_are_refused_before_training():
    r, y = np.random.default_rng(0), np.arange(40) % 3
    many = multimodal_dls({f"m{m}": r.normal(size=(40, 2)) for m in range(21)}, y, bs=16, device="cpu")
    with pytest.raises(ValueError, match="20"):
        learner(MCR(), many)
    assert learner(MCR(mipd_weight=0), many).model.n_modalities == 21


def test_noise_needs_numbers_where_it_is_put_in():
    "Token ids have no noise, their features have."
    words = torch.randint(5, (2, 64, 3), generator=generator())
    y = words[0, :, 0] % 3
    dls = DataLoaders.from_dsets(
        *[TensorDataset(*words, y)] * 2, bs=16, n_inp=2, num_workers=0, device="cpu", drop_last=True
    )

    dls.c = 3

    def encoders():
        return [nn.EmbeddingBag(5, 4) for _ in range(2)]

    def train(substitute):
        cbs = MCR(substitute=substitute)
        return quietly_fit(Learner(dls, FusionModel(encoders(), ConcatHead((4, 4), 3)), nn.CrossEntropyLoss(), cbs=cbs))

    assert train("noise_feature").mcr.history["mipd"][0] > 0
    with pytest.raises(ValueError, match="noise needs real values"):  # before the training
        Learner(
            dls,
            FusionModel(encoders(), ConcatHead((4, 4), 3)),
            nn.CrossEntropyLoss(),
            cbs=MCR(substitute="noise_input"),
        )


def test_the_answer_of_the_training_pass_is_used_again():
    learn, calls = learner(MCR(mipd_weight=0)), []
    learn.model.head.register_forward_hook(lambda module, *_: calls.append(module.training))
    quietly_fit(learn)
    assert sum(calls) == len(learn.dls.train)


def test_one_modality_trains_without_the_game_only():
    with pytest.raises(ValueError, match="features of one: set mipd_weight=0"):
        unimodal_learner(loaders(), 0, method=MCR())
    assert quietly_fit(unimodal_learner(loaders(), 0, method=MCR(mipd_weight=0))).mcr.history["unimodal"][0] > 0


def test_a_game_that_does_nothing_says_so():
    class Deaf(ConcatHead):
        def contributions(self, zs):
            return super().contributions([0 * z for z in zs])

        def forward(self, zs):
            return self.contributions(zs).sum(0)

    with pytest.warns(UserWarning, match="game did nothing"):
        quietly_fit(learner(MCR(), head=Deaf))
    with pytest.warns(UserWarning, match="from epoch 2 on"):
        quietly_fit(learner(MCR(start=2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quietly_fit(learner(MCR()))
