"Competition strength: the formula, its limits and invariances, what the last layer reads, concepts trained alone."

import math
from itertools import product

import numpy as np
import pytest
import torch
from common import generator
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmlit.audits.strength import (
    StrengthMonitor,
    ZeroPadded,
    competition_strength,
    competition_strength_of,
    penultimate_features,
    train_concepts,
)
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP
from mmlit.learner import multimodal_learner

F64 = torch.float64
DIMS = (3, 4, 5)


def model_of(n, head="mlp", n_classes=3, seed=0):
    torch.manual_seed(seed)
    encoders = [nn.Sequential(nn.Linear(d, 6), nn.Tanh()) for d in DIMS[:n]]
    return FusionModel(encoders, HEADS[head]([6] * n, n_classes)).double()


def data_of(n, size=7, n_classes=3, seed=0):
    return [torch.randn(size, d, generator=generator(seed), dtype=F64) for d in DIMS[:n]], torch.randint(
        0, n_classes, (size,), generator=generator(seed)
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


@pytest.mark.parametrize("alpha", [0.1, 120.0, 1e4])
def test_strength_is_the_formula_with_sklearn_ridge(alpha):
    h, c = normal(300, 6), normal(300, 3, seed=1)
    c = c + h[:, :3]
    dep, rest = slice(0, 100), slice(100, 300)
    g = Ridge(alpha=alpha).fit(h[dep].numpy(), c[dep].numpy())
    e = g.predict(h[rest].numpy()) - c[rest].numpy()
    N = len(e)
    inverse = np.linalg.pinv(N * np.cov(c[rest].numpy().T))
    expected = sum(e_n @ inverse @ e_n for e_n in e) / 3
    got = competition_strength(h[dep], c[dep], h[rest], c[rest], alpha=alpha)
    assert abs(got.item() - expected) < 1e-9
    terms = competition_strength(h[dep], c[dep], h[rest], c[rest], alpha=alpha, per_sample=True)
    assert terms.shape == (N,) and abs(terms.mean() - expected) < 1e-9


def test_strength_is_zero_when_the_concept_is_there():
    h, w = normal(200, 8), normal(8, 4, seed=1)
    assert competition_strength(h[:100], h[:100] @ w, h[100:], h[100:] @ w, alpha=0.0) < 1e-20
    assert competition_strength(h[:100], h[:100] @ w, h[100:], h[100:] @ w, alpha=1e-9) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_strength_of_a_constant_is_rank_over_k(dtype):
    N, h = 2000, torch.zeros(2000, 2, dtype=dtype)
    logits = normal(N, 4).to(dtype)
    assert competition_strength(h, logits, h, logits).item() == pytest.approx(0.9995, abs=1e-6)
    p = logits.softmax(1)
    assert competition_strength(h, p, h, p).item() == pytest.approx(0.999500 * 3 / 4, abs=1e-5)
    assert competition_strength(h, p, h, p, by_rank=True).item() == pytest.approx(0.9995, abs=1e-5)


def test_strength_of_one_output_is_unexplained_variance():
    h, c = normal(100, 3), normal(100, 1, seed=1)
    c = c + h[:, :1]
    x = torch.cat([h, torch.ones(100, 1, dtype=F64)], 1)
    fit = x @ torch.linalg.lstsq(x, c).solution
    r_squared = 1 - ((fit - c) ** 2).sum() / ((c - c.mean()) ** 2).sum()
    assert_close(competition_strength(h, c, h, c, alpha=0.0), (1 - r_squared) * 99 / 100)


@pytest.mark.parametrize("alpha", [0.0, 120.0])
def test_strength_does_not_mind_linear_maps_of_the_concept(alpha):
    h, c, A = normal(200, 5), normal(200, 4, seed=1), normal(4, 4, seed=2)
    c = c + h[:, :4]
    a, b = (competition_strength(h[:100], t[:100], h[100:], t[100:], alpha=alpha) for t in (c, c @ A + 3))
    assert_close(a, b)


def test_strength_and_scales_of_the_features():
    h, c = normal(200, 5), normal(200, 4, seed=1)
    c = c + h[:, :4]

    def d(h, **options):
        return competition_strength(h[:100], c[:100], h[100:], c[100:], **options)

    assert_close(d(h, alpha=0.0), d(h @ normal(5, 5, seed=3), alpha=0.0))
    assert d(h / 100) > d(h) + 0.1
    scales = torch.tensor([1.0, 10.0, 0.1, 5.0, 100.0], dtype=F64)
    assert_close(d(h, standardize=True), d(h * scales + 7, standardize=True))
    with_constant = torch.cat([h, torch.ones(200, 1, dtype=F64)], dim=1)
    assert_close(d(with_constant, standardize=True), d(h, standardize=True))


def test_more_features_than_samples():
    h, c = normal(60, 200), normal(60, 3, seed=1)
    for alpha in 0.0, 120.0:
        assert competition_strength(h[:30], c[:30], h[30:], c[30:], alpha=alpha).isfinite()


@pytest.mark.parametrize(
    "bad, match",
    [
        (lambda h, c: competition_strength(h, c[:-1], h, c), "same samples"),
        (lambda h, c: competition_strength(h, c, h[:, :1], c), "same samples"),
        (lambda h, c: competition_strength(h, c[:, 0], h, c[:, 0]), "same samples"),
        (lambda h, c: competition_strength(h, c, h[:1], c[:1]), "two samples"),
        (lambda h, c: competition_strength(h, c, h, c, alpha=-1.0), "alpha must be a number"),
        (lambda h, c: competition_strength(h * math.nan, c, h, c), "NaN"),
        (lambda h, c: competition_strength(h, c, h, c * 0), "constant"),
    ],
)
def test_strength_rejects(bad, match):
    with pytest.raises(ValueError, match=match):
        bad(normal(20, 3), normal(20, 2, seed=1))


@pytest.mark.parametrize("n, head", list(product((2, 3), HEADS)))
def test_penultimate_features_enter_the_last_layer(n, head):
    model, (xs, _) = model_of(n, head), data_of(n)
    zs = model.encode(*xs)
    h = penultimate_features(model, zs)
    logits = model.fuse(zs)
    x = torch.cat([h, torch.ones(len(h), 1, dtype=F64)], dim=1)
    if x.shape[1] < 2 * len(h):  # the logits are linear in h
        w = torch.linalg.lstsq(x, logits, driver="gelsd").solution
        assert_close(x @ w, logits, atol=1e-9, rtol=0)
    layers = dict(sum=6 * n, concat=6 * n, film=6 * (n - 1), gated=64 * (n - 1), mlp=64, attention=64)
    assert h.shape == (7, layers[head])
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_penultimate_features_of_a_shared_layer_and_early_fusion():
    model = FusionModel([nn.Linear(3, 6), nn.Linear(4, 6)], HEADS["sum"]([6, 6], 3, shared=True))
    xs = [torch.randn(5, 3), torch.randn(5, 4)]
    zs = model.encode(*xs)
    assert_close(penultimate_features(model, zs), torch.cat(zs, dim=1))
    assert penultimate_features(EarlyFusion(JoinedMLP([(3,), (4,)], 3), 2), xs).shape == (5, 64)
    with pytest.raises(ValueError, match="pass features="):
        penultimate_features(EarlyFusion(nn.Tanh(), 1), xs[:1])


def halves(n, seed):
    "Two modalities that each know half of the label."
    y = torch.randint(0, 4, (n,), generator=generator(seed))
    xs = [
        2 * F.one_hot(t, 2).float() @ torch.eye(4)[:2] + 0.5 * torch.randn(n, 4, generator=generator(seed + i + 1))
        for i, t in enumerate((y % 2, y // 2))
    ]
    return xs, y


def test_competition_strength_end_to_end():
    (xs, y), dep, rest = halves(300, 0), halves(150, 10), halves(400, 20)
    torch.manual_seed(0)
    concepts = train_concepts(
        [VectorEncoder(4, 8, (16,)) for _ in range(2)],
        xs,
        y,
        4,
        epochs=15,
        optimizer=lambda p: torch.optim.Adam(p, 1e-2),
        generator=generator(),
    )
    for c, x in zip(concepts, rest[0]):
        assert not c.training and c(x).shape == (400, 4)
        assert (c(x).argmax(1) == rest[1]).double().mean() > 0.42  # half of the label: chance is .25, the ceiling .5
    dep_batches, rest_batches = ([(xs_, y_)] for xs_, y_ in (dep, rest))
    # a joint model made of the concepts themselves has lost nothing; one that ignores modality 2 has lost that
    both = FusionModel([c[0] for c in concepts], HEADS["concat"]([8, 8], 4)).train()
    d = competition_strength_of(both, concepts, dep_batches, rest_batches, alpha=1e-6)
    assert both.training and d.max() < 1e-3
    one = FusionModel([concepts[0][0], nn.Sequential(nn.Flatten(), nn.Linear(4, 8))], HEADS["concat"]([8, 8], 4))
    with torch.no_grad():
        one.encoders[1][1].weight.zero_(), one.encoders[1][1].bias.zero_()
    d = competition_strength_of(one, concepts, dep_batches, rest_batches, alpha=1e-6)
    assert d[0] < 1e-3 and d[1] > 0.8
    split = lambda xs, y: [(*(x[k : k + 64] for x in xs), y[k : k + 64]) for k in range(0, len(y), 64)]
    assert_close(competition_strength_of(one, concepts, split(*dep), split(*rest), alpha=1e-6), d, atol=1e-4, rtol=1e-3)
    assert competition_strength_of(one, concepts, dep_batches, rest_batches, per_sample=True).shape == (2, 400)
    joined = competition_strength_of(
        one, concepts, dep_batches, rest_batches, features=lambda model, zs: torch.cat(zs, dim=1), alpha=1e-6
    )
    assert_close(joined, d)
    with pytest.raises(ValueError, match="unimodal models"):
        competition_strength_of(one, concepts[:1], dep_batches, rest_batches)
    with pytest.raises(ValueError, match="no batches"):
        competition_strength_of(one, concepts, [], rest_batches)


def test_concepts_are_reproducible_and_only_draw_from_their_generator():
    (xs, y) = halves(100, 0)

    def run():
        torch.manual_seed(3)
        encoders = [VectorEncoder(4, 8, (16,)) for _ in range(2)]
        state = torch.get_rng_state()
        models = train_concepts(encoders, xs, y, 4, epochs=2, generator=generator())
        return models, torch.equal(state, torch.get_rng_state())

    (a, same), (b, _) = run(), run()
    assert same
    for p, q in zip(nn.ModuleList(a).parameters(), nn.ModuleList(b).parameters()):
        assert torch.equal(p, q)


def test_concepts_reject():
    xs, y = halves(20, 0)
    with pytest.raises(ValueError, match="1 encoders"):
        train_concepts([nn.Identity()], xs, y, 4)
    with pytest.raises(ValueError, match="20 samples"):
        train_concepts([nn.Identity()] * 2, [xs[0], xs[1][:3]], y, 4)
    with pytest.raises(ValueError, match="one vector"):
        train_concepts([nn.Unflatten(1, (2, 2))] * 2, xs, y, 4)


def test_options_reach_the_measure_and_a_typo_does_not():
    (xs, y), more = halves(60, 0), halves(80, 10)
    torch.manual_seed(0)
    model = FusionModel([VectorEncoder(4, 8, (16,)) for _ in range(2)], HEADS["concat"]([8, 8], 4))
    concepts = [nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=1)) for _ in range(2)]
    options = dict(alpha=3.0, by_rank=True, standardize=True)
    got = competition_strength_of(model, concepts, [(xs, y)], [more], **options)
    with torch.no_grad():
        h, eval_h = (penultimate_features(model, model.encode(*x)) for x in (xs, more[0]))
        expected = [competition_strength(h, c(x), eval_h, c(z), **options) for c, x, z in zip(concepts, xs, more[0])]
    assert torch.equal(got, torch.stack(expected))
    with pytest.raises(TypeError, match="by_ranks"):
        competition_strength_of(model, concepts, [(xs, y)], [more], by_ranks=True)


# ---- early fusion, dicts, the curve


def test_a_concept_of_early_fusion_is_the_same_net_trained_with_the_others_at_zero():
    def network():
        torch.manual_seed(0)
        return JoinedMLP([(3,), (4,)], 3)

    (a, b), y = data_of(2, 40)
    a, b = a.float(), b.float()
    got = train_concepts(
        [ZeroPadded(network(), m, [a, b]) for m in range(2)],
        [a, b],
        y,
        3,
        epochs=2,
        batch_size=16,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        generator=generator(),
        readout=False,
    )
    order = generator()
    for m, given in enumerate([lambda x: (x, torch.zeros(len(x), 4)), lambda x: (torch.zeros(len(x), 3), x)]):
        net, x = network().train(), (a, b)[m]
        opt = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            for at in torch.randperm(40, generator=order).split(16):
                opt.zero_grad()
                F.cross_entropy(net(*given(x[at])), y[at]).backward()
                opt.step()
        assert_close(got[m](x), net.eval()(*given(x)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)

    def forward(self, x):
        return (self.embedding(x["ids"]) * x["mask"][..., None]).mean(1)


def test_an_input_may_be_a_dict():
    torch.manual_seed(0)
    tokens = dict(ids=torch.randint(0, 9, (40, 5), generator=generator()), mask=torch.ones(40, 5))
    b, y = torch.randn(40, 4, generator=generator()), torch.arange(40) % 3
    concepts = train_concepts([Words(), nn.Linear(4, 6)], [tokens, b], y, 3, epochs=1, generator=generator())
    model = FusionModel([Words(), nn.Linear(4, 6)], HEADS["concat"]([6, 6], 3))
    batches = [((tokens, b), y)]
    assert competition_strength_of(model, concepts, batches, batches).isfinite().all()
    padded = ZeroPadded(model, 1, [tokens, b])(b)
    zeros = {name: torch.zeros_like(t) for name, t in tokens.items()}
    assert_close(padded, model(zeros, b))


def test_the_curve_is_the_measure_after_each_epoch_and_disturbs_nothing():
    r = np.random.default_rng(0)
    y = r.integers(0, 3, 160)
    xs = {f"m{m}": (r.normal(size=(160, 4)) + y[:, None]).astype("f") for m in range(2)}
    batches = [(*(torch.tensor(x[at]) for x in xs.values()), torch.tensor(y[at])) for at in (slice(80), slice(80, 160))]
    torch.manual_seed(1)
    concepts = [nn.Linear(4, 3), nn.Linear(4, 3)]
    ends = []
    for watched in True, False:
        torch.manual_seed(0)
        dls = multimodal_dls(xs, y, bs=16, device="cpu")
        method = StrengthMonitor(concepts, batches[:1], batches[1:]) if watched else None
        learn = multimodal_learner(dls, method=method, width=8)
        expected = []
        for _ in range(2):
            with learn.no_bar(), learn.no_logging():
                learn.fit(1, 3e-3)
            expected.append(competition_strength_of(learn.model, concepts, batches[:1], batches[1:]))
            if watched:
                got = [values[0] for values in learn.strength_monitor.history.values()]
                assert got == pytest.approx(expected[-1].tolist(), abs=1e-5)
        ends.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="1 models for 2 modalities"):
        multimodal_learner(dls, method=StrengthMonitor(concepts[:1], batches[:1], batches[1:]))
