"The game of exchanged modalities: the one pass against explicit players, partners, distances and stand-ins."

import math
from functools import partial
from itertools import permutations as orders
from itertools import product

import pytest
import torch
from common import generator
from games import (
    ADDITIVE,
    DIMS,
    OTHER,
    features,
    gradients,
    halves,
    model_of,
    naive_divergence,
    naive_game,
    published_terms,
)
from scipy.integrate import quad
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.heads import AttentionHead, ConcatHead, FiLMHead, InUnits, MLPHead, SumHead, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel
from mmlit.methods.exchange import (
    DISTANCES,
    STRATEGIES,
    _owned_parameters,
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
from mmlit.permutation import js_divergence_with_logits

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


@pytest.mark.parametrize("owned", ["slices", "encoders"])
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
        (MLPHead, 4, 2),
    ],
)
def test_one_pass_is_the_game_of_explicit_players(kind, n, batch, strategy, clean_grad, owned):
    model, zs = model_of(kind, DIMS[:n]), features(DIMS[:n], batch)
    options = dict(strategy=strategy, clean_grad=clean_grad, owned=owned)
    ours = gradients(-mipd(model, zs, permutations="exact", **options).mean(1).sum(), model, zs)
    theirs = gradients(naive_game(model, zs, STRATEGIES[strategy], clean_grad, owned), model, zs)
    for a, b in zip(ours, theirs):
        assert_close(a, b, rtol=1e-9, atol=1e-14)
    assert max(g.abs().max() for g in ours[:n]) > 1e-4


@pytest.mark.parametrize(
    "strategy, default", [("greedy", "detach"), ("independent", "detach"), ("collaborative", "full")]
)
@pytest.mark.parametrize("kind", [MLPHead, FiLMHead])
def test_the_clean_answer_is_a_constant_for_players_and_a_variable_for_a_team(kind, strategy, default):
    "Unless it is said otherwise; with more than two modalities the choice is seen in all strategies."
    model, zs = model_of(kind, DIMS[:3]), features(DIMS[:3], 3)
    flows = {
        how: gradients(
            mipd(model, zs, permutations="exact", strategy=strategy, clean_grad=how).mean(1).sum(), model, zs
        )
        for how in (None, "detach", "full")
    }
    other = "full" if default == "detach" else "detach"
    assert all(torch.equal(a, b) for a, b in zip(flows[None], flows[default]))
    assert max((a - b).abs().max() for a, b in zip(flows[None], flows[other])) > 1e-6


@pytest.mark.parametrize("kind", ADDITIVE + OTHER)
def test_collaborative_is_the_plain_gradient(kind):
    model, zs = model_of(kind, DIMS[:3]), features(DIMS[:3], 3)
    plain = -sum(naive_divergence(model.fuse, zs, model.fuse(zs), s) for s in proper_subsets(3).tolist())
    for a, b in zip(
        gradients(-mipd(model, zs, permutations="exact").mean(1).sum(), model, zs), gradients(plain, model, zs)
    ):
        assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", [*ADDITIVE, MLPHead])
def test_the_game_is_the_published_terms(kind, strategy):
    "Values and gradients, with one exception: what independent players leak by way of the clean answer and the shared."
    model, zs = model_of(kind, (3, 4), 5), features((3, 4), 8)
    published, values = published_terms(model, zs, strategy), mipd(model, zs, strategy=strategy).mean(1)
    assert_close(published, torch.zeros(()).double() if strategy == "greedy" else -values.sum(), rtol=1e-12, atol=1e-17)
    ours, theirs = gradients(-values.sum(), model, zs), gradients(published, model, zs)
    close = [torch.allclose(a, b, rtol=1e-9, atol=1e-14) for a, b in zip(ours, theirs)]
    assert all(close) if strategy != "independent" else not any(close[:2])
    weights = [g for (n, _), g in zip(model.named_parameters(), ours[2:]) if n in OWNED_BY_SLICE]
    assert weights and min(w.abs().max() for w in weights) > 1e-5


OWNED_BY_SLICE = ("head.linear.weight", "head.layers.0.weight", "head.linears.0.weight", "head.linears.1.weight")


def test_a_deep_head_in_units_of_the_targets_still_says_what_its_slices_are():
    inside = model_of(MLPHead, (3, 4), 1, hidden=(6, 5)).head
    model, zs = FusionModel([nn.Identity()] * 2, InUnits(inside, 100.0, 3.0)).double(), features((3, 4))
    y = torch.randn(4, generator=generator())
    values = mipd(model, zs, strategy="greedy", distance="gaussian", y=100 + y)
    plain = mipd(FusionModel([nn.Identity()] * 2, inside), zs, strategy="greedy", distance="gaussian", y=y / 3)
    assert_close(values, plain)  # the divergence has no units
    reached = [bool(g.any()) for g in gradients(-values.mean(1).sum(), model, zs)]
    assert reached == [True] * 3 + [False] * (len(reached) - 3)
    rows, finish = halves(inside, zs)
    assert_close(model.finish(model.summands(zs).sum(0)), 100 + 3 * finish(sum(rows)))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("strategy", ["greedy", "independent"])
def test_shared_parameters_get_exactly_zero(strategy, n):
    for model in (
        model_of(ConcatHead, (3,) * n),
        model_of(SumHead, (3,) * n, shared=True),
        model_of(MLPHead, (3,) * n, hidden=(6, 5)),
        model_of(AttentionHead, (3,) * n, width=8),
    ):
        zs = features((3,) * n)
        got = gradients(-mipd(model, zs, strategy=strategy, generator=generator()).mean(1).sum(), model, zs)
        for (name, _), g in zip(model.named_parameters(), got[n:]):
            assert (g != 0).any() == (name in OWNED_BY_SLICE[:2]), name
        assert all((g != 0).any() for g in got[:n])


def test_one_module_for_two_modalities_stays_as_it_was():
    "A shared encoder is registered twice; its parameters stay the ones that the optimiser holds."
    encoder, xs = nn.Linear(5, 4), [torch.randn(6, 5, generator=generator(s)) for s in (0, 1)]
    for kind, strategy, owned in product([*ADDITIVE, *OTHER], STRATEGIES, ["slices", "encoders"]):
        model = FusionModel([encoder, encoder], kind((4, 4), 3))
        model.norm = nn.BatchNorm1d(4)  # copied in training; one more place for a tensor
        held = {n: p for n, p in [*model.named_parameters(), *model.named_buffers()]}
        mipd(model, model.encode(*xs), strategy=strategy, owned=owned).mean(1).sum().backward()
        assert all(t is held[n] for n, t in [*model.named_parameters(), *model.named_buffers()])
        assert encoder.weight.requires_grad and encoder.weight.grad.any()


def test_weights_that_two_layers_share_are_nobodys_in_both():
    "A head that ties its last layer to the first: the game's gradient enters by neither."

    class Tied(nn.Module):
        dims = (3, 3)

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last.weight = self.first.weight

        def forward(self, zs):
            return self.last(self.first(torch.cat(tuple(zs), 1)).relu())

    model, zs = model_of(lambda *_: Tied(), (3, 3)), features((3, 3))
    grads = gradients(mipd(model, zs, strategy="greedy").mean(1).sum(), model, zs)
    assert all(g.any() for g in grads[:2]) and not any(g.any() for g in grads[2:])
    assert model.head.last.weight is model.head.first.weight and model.head.first.weight.requires_grad


def test_a_tied_layer_is_nobodys():
    "A first layer whose columns are the same tensor for both modalities belongs to neither."

    class Tied(nn.Module):
        dims = (3, 3)

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 4)

        def summands(self, zs):
            return torch.stack([self.first(z) for z in zs])

        def finish(self, total):
            return self.last(total.relu())

        def forward(self, zs):
            return self.finish(self.summands(zs).sum(0))

    model, zs = model_of(lambda *_: Tied(), (3, 3)), features((3, 3))
    values = mipd(model, zs, strategy="greedy")
    assert_close(values[0].mean(), naive_divergence(model.fuse, zs, model.fuse(zs), [True, False]))
    grads = gradients(-values.mean(1).sum(), model, zs)
    assert all(g.any() for g in grads[:2]) and not any(g.any() for g in grads[2:])


class Overlap(nn.Module):
    "Windows of one table: its middle row is used by both modalities."

    dims = (2, 2)

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4, generator=generator(3)))

    def contributions(self, zs):
        return torch.stack([z @ self.table[m : m + 2] for m, z in enumerate(zs)])

    def forward(self, zs):
        return self.contributions(zs).sum(0)


@pytest.mark.parametrize("strategy", ["greedy", "independent"])
def test_of_a_table_that_two_modalities_use_in_part_the_rest_is_owned(strategy):
    "The rows of one modality get what they would get if each had a table of its own; the common row gets nothing."
    model, zs = model_of(lambda *_: Overlap(), (2, 2)), features((2, 2))
    apart = model_of(SumHead, (2, 2))
    with torch.no_grad():
        for m, linear in enumerate(apart.head.linears):
            linear.weight.copy_(model.head.table[m : m + 2].T)
            linear.bias.zero_()
    ours, theirs = (gradients(-mipd(one, zs, strategy=strategy).mean(1).sum(), one, zs) for one in (model, apart))
    for a, b in zip(ours[:2], theirs[:2]):
        assert_close(a, b)
    first, _, second, _ = theirs[2:]  # weights and biases, (C, D) and (C,)
    assert_close(ours[2], torch.stack([first[:, 0], torch.zeros(4).double(), second[:, 1]]))
    assert min(ours[2][0].abs().max(), ours[2][2].abs().max()) > 1e-4


@pytest.mark.parametrize("value", [-0.5, 0.0, 1.0])
def test_ownership_does_not_depend_on_what_the_terms_are(value):
    "Of a layer that starts at 0 they are all the same."
    head, zs = SumHead((2, 2), 3, shared=True), [torch.randn(5, 2, generator=generator(m)) for m in (0, 1)]
    with torch.no_grad():
        head.linears[0].weight.zero_()
        head.linears[0].bias.fill_(value)
    assert not _owned_parameters(head, zs)
    head = SumHead((2, 3), 3)
    with torch.no_grad():
        for p in head.parameters():
            p.fill_(value)
    owned = _owned_parameters(head, [zs[0], torch.randn(5, 3, generator=generator())])
    assert len(owned) == 4 and all(p is owned[n] for n, p in head.named_parameters())


class TwoNames(nn.Module):
    "One layer, one weight and one buffer, each under two names."

    def __init__(self):
        super().__init__()
        self.layer = self.again = nn.Linear(5, 5)
        self.weight = self.same = nn.Parameter(torch.randn(5, 3, generator=generator(2)))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("count", self.calls)

    def forward(self, zs):
        self.calls += 1
        self.count += 1
        hidden = self.again(self.layer(torch.cat(tuple(zs), 1)).tanh()).tanh()
        return hidden @ self.weight + hidden.tanh() @ self.same


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_has_two_names_in_a_head_is_exchanged_under_both(strategy):
    model, zs = model_of(lambda *_: TwoNames(), (2, 3)), features((2, 3))
    head = model.head
    head.count = head.calls  # to change the precision took them apart
    held = [head.layer, head.weight, head.layer.weight, head.calls]
    grads = gradients(mipd(model, zs, strategy=strategy).mean(1).sum(), model, zs)
    assert all(g.any() for g in grads[:2])
    assert all(bool(g.any()) == (strategy == "collaborative") for g in grads[2:])
    assert all(a is b for a, b in zip(held, [head.again, head.same, head.again.weight, head.count]))
    assert all(a is b for a, b in zip(held, [head.layer, head.weight, head.layer.weight, head.calls]))
    assert head.calls == 0 and head.weight.requires_grad and head.layer.weight.requires_grad


def test_ownership_is_seen_for_features_of_mean_zero():
    model = model_of(SumHead, (2, 2), shared=True)
    z = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double()
    assert not any(
        torch.autograd.grad(p.sum() + 0 * q.sum(), q)[0].any()
        for p, q in zip(_owned_parameters(model, [z, z]).values(), model.parameters())
    )


def test_features_that_cancel_are_still_used():
    head, signs = SumHead((1, 1), 2, shared=True), torch.tensor([1.0, -1, -1, 1])[:, None]
    owned = _owned_parameters(head, (signs, signs))
    assert not owned  # each element is used by both


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


# ---- all subsets at once, within a budget


class OwnHead(nn.Module):
    "A user's head that says nothing of its inside."

    def __init__(self, dims, classes):
        super().__init__()
        self.dims, self.first = dims, nn.ModuleList([nn.Linear(d, 5) for d in dims])
        self.last = nn.Linear(5, classes)

    def forward(self, zs):
        return self.last(torch.stack([torch.tanh(f(z)) for f, z in zip(self.first, zs)]).prod(0))


SIX = (2, 3, 2, 1, 2, 3)


@pytest.mark.parametrize("kind", [*ADDITIVE, *OTHER, partial(AttentionHead, width=8), OwnHead])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_subsets_of_six_in_one_call_are_the_game_of_explicit_players(kind, strategy):
    six = kind in (SumHead, FiLMHead) and strategy == "greedy"
    dims, batch = SIX if six else SIX[:3], 2
    model, zs = model_of(kind, dims), features(dims, batch)
    how = dict(strategy=strategy, clean_grad="detach", permutations="exact", owned="slices")
    if kind not in (*ADDITIVE, *OTHER):
        how["owned"] = "encoders"
    values = mipd(model, zs, **how)
    ours = gradients(-values.mean(1).sum(), model, zs)[: len(dims)]
    theirs = gradients(naive_game(model, zs, STRATEGIES[strategy], "detach", how["owned"]), model, zs)[: len(dims)]
    for a, b in zip(ours, theirs):
        assert_close(a, b, rtol=1e-9, atol=1e-14)
    for s in (0, len(values) // 2, len(values) - 1):
        subset = proper_subsets(len(dims))[s].tolist()
        assert_close(values[s].mean(), naive_divergence(model.fuse, zs, model.fuse(zs), subset))


def asked_for(head, name="forward"):
    "How many rows the head is asked for, call by call."
    calls, ask = [], getattr(head, name)

    def counted(x):
        calls.append(len(x[0]) if name == "forward" else len(x))
        return ask(x)

    setattr(head, name, counted)
    return calls


@pytest.mark.parametrize(
    "n, batch, rows", [(2, 6, None), (3, 6, None), (3, 6, 100), (3, 6, 36), (3, 6, 1), (2, 600, None)]
)
def test_answers_stay_below_the_budget(n, batch, rows):
    model, zs = model_of(FiLMHead, DIMS[:n]), features(DIMS[:n], batch)
    calls, least = asked_for(model.head), (2**n - 2) * batch
    values = mipd(model, zs, rows=rows, logits=model.fuse(zs), strategy="greedy", generator=generator())
    assert values.shape == (2**n - 2, batch) and len(calls) == 2
    k = min(batch, max(1, (1024 if rows is None else rows) // least))
    assert calls[1] == k * least  # one call for all subsets, and no other


@pytest.mark.parametrize("kind, most", [(MLPHead, 2048), (AttentionHead, 1024)])
def test_the_budget_depends_on_how_much_a_head_says_of_itself(kind, most):
    model, zs = model_of(kind, (3, 4), **({"width": 8} if kind is AttentionHead else {})), features((3, 4), 64)
    calls = asked_for(model.head, "finish" if kind is MLPHead else "forward")
    mipd(model, zs, strategy="greedy", generator=generator())
    assert max(calls) == most


def test_what_the_user_asks_for_is_not_cut():
    model, zs = model_of(FiLMHead, (3, 4)), features((3, 4), 40)
    calls = asked_for(model.head)
    for how, rows in ((dict(permutations=37), 37), (dict(permutations="exact"), 40), (dict(rows=10**6), 40)):
        mipd(model, zs, **how, strategy="greedy", logits=torch.zeros(40, 4).double())
        assert calls.pop() == 2 * 40 * rows
    everyone = mipd(model, zs, permutations="exact")
    assert_close(mipd(model, zs, rows=10**6).mean(1), everyone.mean(1))


@pytest.mark.parametrize("exclude", [None, "self"])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_budget_leaves_the_estimate_unbiased(rows, exclude, runs=200):
    model, zs = model_of(ConcatHead, DIMS[:3]), features(DIMS[:3], 5)
    with torch.no_grad():
        truth = mipd(model, zs, permutations="exact", exclude=exclude).mean(1)
        how = dict(rows=rows, exclude=exclude)
        draws = torch.stack([mipd(model, zs, **how, generator=generator(s)).mean(1) for s in range(runs)])
    standard_error = draws.std(0) / runs**0.5
    assert (standard_error < 0.06 * truth).all() and (standard_error > 0).all()
    assert ((draws.mean(0) - truth).abs() <= 4 * standard_error).all()


def test_gradients_of_a_budget_are_unbiased_too(runs=300):
    model, zs = model_of(ConcatHead, (3, 4)), features((3, 4), 6)
    play = lambda **how: torch.cat(
        [g.flatten() for g in gradients(mipd(model, zs, strategy="greedy", **how).mean(1).sum(), model, zs)[:2]]
    )
    truth = play()
    draws = torch.stack([play(rows=12, generator=generator(s)) for s in range(runs)])
    standard_error = draws.std(0) / runs**0.5
    assert ((draws.mean(0) - truth).abs() <= 4.5 * standard_error + 1e-12).all()
    assert standard_error.max() < truth.abs().max() / 10


def test_answers_that_are_there_stand_for_the_clean_ones():
    model, zs = model_of(FiLMHead, (3, 4)), features((3, 4))
    asked = mipd(model, zs, strategy="greedy")
    assert_close(mipd(model, zs, strategy="greedy", logits=model.fuse(zs)), asked)
    assert not torch.allclose(mipd(model, zs, strategy="greedy", logits=2 * model.fuse(zs)), asked)
    for how in (dict(clean_grad="full"), dict(strategy="collaborative")):  # that need a gradient of their own
        assert_close(mipd(model, zs, **how, logits=torch.zeros(4, 4).double()), mipd(model, zs, **how))


def test_who_owns_what_is_found_anew_when_the_model_changes():
    model, zs = model_of(SumHead, (3, 3)), features((3, 3))
    first, second = model.head.linears
    names = lambda: set(_owned_parameters(model, zs))
    assert names() == {f"head.linears.{m}.{n}" for m in (0, 1) for n in ("weight", "bias")}
    second.weight = first.weight  # tied
    assert names() == {"head.linears.0.bias", "head.linears.1.bias"}
    second.weight = nn.Parameter(first.weight.detach().clone())
    first.bias.requires_grad_(False)
    assert names() == {"head.linears.0.weight", "head.linears.1.weight", "head.linears.1.bias"}
    first.bias.requires_grad_(True)
    model.head.linears[1] = nn.Linear(3, 4).double()
    owned = _owned_parameters(model, zs)
    assert owned["head.linears.1.weight"] is model.head.linears[1].weight
    model.head = ConcatHead((3, 3), 4).double()
    assert names() == {"head.linear.weight"}


def test_who_owns_what_is_found_once():
    class Watched(SumHead):
        def contributions(self, zs):
            calls.append(len(zs[0]))
            return super().contributions(zs)

    calls, zs = [], features((3, 4))
    model = model_of(Watched, (3, 4))
    state = torch.get_rng_state()
    for _ in range(3):
        mipd(model, zs, strategy="greedy")
    assert calls == [64, 4, 4, 4] and torch.equal(torch.get_rng_state(), state)


def test_rows_of_a_table_are_owned_as_a_whole():
    "Token ids may take any row of an embedding: a table that both modalities read belongs to neither."

    class Tables(nn.Module):
        def __init__(self, shared):
            super().__init__()
            first, second = (nn.Embedding(9, 4, padding_idx=0) for _ in range(2))
            self.tables = nn.ModuleList([first, first if shared else second])

        def contributions(self, zs):
            return torch.stack([t(z) for t, z in zip(self.tables, zs)])

        def fuse(self, zs):
            return self.contributions(zs).sum(0)

    words = [torch.arange(6), torch.arange(6).flip(0) + 3]
    for shared in (True, False):
        model = Tables(shared)
        assert len(_owned_parameters(model, words)) == (0 if shared else 2)
        if not shared:
            mipd(model, words, strategy="greedy").sum().backward()
            assert all(t.weight.grad.any() for t in model.tables)


def test_players_with_nothing_to_pull_at_get_zero():
    "Independent players that own no slice, exchanged for zeros: nobody has a gradient, and to ask for it is no error."
    model, zs = model_of(SumHead, (3, 4)), features((3, 4))
    instead = stand_ins(zs, "zero")
    mipd(model, zs, strategy="independent", owned="encoders", substitutes=instead).sum().backward()
    assert all((z.grad == 0).all() for z in zs)


def test_no_gradient_no_routing():
    model, zs = model_of(ConcatHead, (3, 4)), features((3, 4))
    with torch.no_grad():
        quiet = mipd(model, zs, strategy="greedy")
    with torch.inference_mode():
        assert_close(mipd(model, zs, strategy="greedy").clone(), quiet)
    assert_close(quiet, mipd(model, zs, strategy="greedy").detach())
    assert not quiet.requires_grad


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


def kept(exclude, y, i, partners_of_i):
    "May sample i meet these partners?"
    same = [bool((y[j] == y[i]).all()) for j in partners_of_i]
    if exclude == "self":
        return all(j != i for j in partners_of_i)
    if exclude == "label":
        return not any(same)
    return all(same) and all(j != i for j in partners_of_i)


@pytest.mark.parametrize("exclude", ["self", "label", "other_label"])
@pytest.mark.parametrize("members", [(0,), (2,), (0, 1)])
@pytest.mark.parametrize("labels", ["classes", "sets"])
def test_what_is_kept_is_averaged_as_one_list_of_pairs(exclude, members, labels):
    model, zs = model_of(FiLMHead, (3, 4, 2)), features((3, 4, 2), 5)
    y, clean = torch.tensor([0, 0, 1, 1, 0]), model.fuse(zs)
    if labels == "sets":
        y = torch.tensor([[0.0, 1], [1, 0]])[y]
    values = [[] for _ in range(5)]
    for i, chosen in product(range(5), product(range(5), repeat=len(members))):
        if not kept(exclude, y, i, chosen):
            continue
        row = dict(zip(members, chosen))
        answer = model.fuse([z[[row.get(m, i)]] for m, z in enumerate(zs)])[0]
        values[i].append(js_divergence_with_logits(answer, clean[i]))
    subset = torch.tensor([[m in members for m in range(3)]])
    ours = mipd(
        model, zs, subset, exclude=exclude, y=y, permutations="exact", distance="jensen_shannon", generator=generator()
    )[0]
    n_pairs = sum(map(len, values))
    assert_close(ours.mean(), sum(map(sum, values)) / n_pairs)
    assert_close(ours, torch.stack([5 * sum(v, torch.zeros(()).double()) / n_pairs for v in values]))
    together = torch.stack([torch.stack(v).mean() for v in values if v])
    assert exclude == "self" or not torch.isclose(ours.mean(), together.mean(), rtol=1e-4)


def test_random_draws_are_one_list_of_pairs_too():
    "As in the public code: the kept pairs of all draws are put together, then averaged."
    model, zs, y = model_of(MLPHead, (3, 4)), features((3, 4), 6), torch.tensor([0, 0, 0, 1, 1, 2])
    index = partners(1, 6, 4, generator=generator(5))[0]
    answers = torch.stack([model.fuse([zs[0][k], zs[1]]) for k in index])
    pairs = js_divergence_with_logits(answers, model.fuse(zs))[y[index] != y]
    values = mipd(model, zs, exclude="label", y=y, permutations=4, generator=generator(5))
    assert_close(values[0].mean(), pairs.mean())
    with_one = mipd(model, zs, exclude="other_label", y=torch.arange(6), permutations=4, generator=generator())
    assert (with_one == 0).all()  # nobody left
    assert (mipd(model, zs, exclude="label", y=torch.ones(6).long(), generator=generator()) == 0).all()


@pytest.mark.parametrize("kind", [ConcatHead, FiLMHead, MLPHead])
def test_members_that_share_their_partner(kind):
    model, zs = model_of(kind, DIMS[:3]), features(DIMS[:3], 4)
    values = mipd(model, zs, shared=True)
    assert_close(values, mipd(model, zs, shared=True, permutations="exact"))
    for subset, value in zip(proper_subsets(3).tolist(), values):
        pairs = [
            js_divergence_with_logits(
                model.fuse([z[[j if inside else i]] for z, inside in zip(zs, subset)])[0], model.fuse(zs)[i]
            )
            for i, j in product(range(4), repeat=2)
        ]
        assert_close(value.mean(), torch.stack(pairs).mean())
    one = mipd(model, zs, shared=True, permutations=3, generator=generator())
    assert not torch.allclose(one[2], mipd(model, zs, permutations=3, generator=generator())[2])


@pytest.mark.parametrize(
    "how",
    [
        dict(permutations=2),
        dict(permutations=2, draw="shift"),
        dict(permutations="pairs"),
        dict(permutations=2, draw="derangement"),
    ],
)
def test_draws_are_unbiased(how, runs=150):
    model, zs = model_of(ConcatHead, DIMS[:3]), features(DIMS[:3], 5)
    with torch.no_grad():
        truth = mipd(
            model, zs, permutations="exact", exclude="self" if how.get("draw") == "derangement" else None
        ).mean(1)
        draws = torch.stack([mipd(model, zs, **how, generator=generator(s)).mean(1) for s in range(runs)])
    standard_error = draws.std(0) / runs**0.5
    assert (standard_error < 0.05 * draws.mean(0)).all()
    assert ((draws.mean(0) - truth).abs() <= 4 * standard_error + 1e-12).all()
    assert torch.equal(mipd(model, zs, **how, generator=generator(3)).mean(1), draws[3])


def test_partners_are_permutations():
    for how in ((3, 5, "pairs"), (2, 5, 4, "shift"), (2, 5, 4, "random"), (2, 5, 4, "derangement")):
        for index in partners(*how, generator=generator()):
            assert (index.sort(1).values == torch.arange(5)).all()
    shifts = partners(1, 6, 4, "shift", generator())[0]
    assert len({tuple(row.tolist()) for row in shifts}) == 4
    one, two = partners(2, 5, 4, generator=generator())
    assert not torch.equal(one, two)
    one, two, three = partners(3, 5, 4, generator=generator(), shared=True)
    assert torch.equal(one, two) and torch.equal(one, three) and one.shape == (4, 5)


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


# ---- stand-ins


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


def test_noise_has_the_moments_of_each_entry_of_the_batch():
    spread = torch.tensor([0.5, 4.0])
    z = 3 + spread * torch.randn(20000, 2, generator=generator())
    (noise,) = stand_ins([z], "noise", generator(1))
    assert_close(noise.mean(0), z.mean(0), atol=0.15, rtol=0)
    assert_close(noise.std(0), z.std(0), rtol=0.03, atol=0)
    drawn = torch.randn(3, 2, generator=generator(1))  # of three rows, the deviation is that of the batch itself
    assert_close(stand_ins([z[:3]], "noise", generator(1))[0], z[:3].mean(0) + z[:3].std(0, unbiased=False) * drawn)
    same = torch.full((4, 2), 7.0).requires_grad_()
    (still,) = stand_ins([same], "noise", generator())
    still.sum().backward()
    assert (still == 7).all() and same.grad.isfinite().all()


@pytest.mark.parametrize("kind, trains", [("permutation", True), ("noise", True), ("zero", False)])
def test_who_can_raise_its_own_divergence(kind, trains):
    model, zs = model_of(ConcatHead, (3, 4)), features((3, 4), 8)
    value = mipd(model, zs, strategy="greedy", substitutes=stand_ins(zs, kind, generator()))[0].mean()
    grad = torch.autograd.grad(value, zs[0], allow_unused=True)[0]
    assert bool(grad.abs().max() > 1e-6) == trains


# ---- distances


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


def test_several_labels_are_coins():
    "The sum over labels, by hand; never below the divergence of all label sets together; C ln 2 where all differ."
    p, q = (torch.randn(50, 3, generator=generator(s), dtype=torch.float64) * 3 for s in (0, 1))
    coin = lambda v: torch.stack([v.sigmoid(), 1 - v.sigmoid()], -1)
    a, b = coin(p), coin(q)
    m = (a + b) / 2
    by_hand = ((a * (a / m).log() + b * (b / m).log()) / 2).sum((-1, -2))
    assert_close(bernoulli_js_divergence(p, q), by_hand)
    sets = lambda v: torch.stack(
        [torch.stack([coin(v)[:, c, s] for c, s in enumerate(chosen)]).prod(0) for chosen in product((0, 1), repeat=3)],
        1,
    )
    together = js_divergence_with_logits(sets(p).log(), sets(q).log())
    added = bernoulli_js_divergence(p, q)
    assert (together <= added + 1e-12).all() and (together <= math.log(2)).all() and (added > math.log(2)).any()
    for scale in (1e2, 1e4):
        p = torch.full((1, 3), scale, requires_grad=True)
        value = bernoulli_js_divergence(p, -p.detach())
        assert_close(value.item(), 3 * math.log(2), rtol=1e-6, atol=0)
        assert torch.autograd.grad(value.sum(), p)[0].isfinite().all()
    assert bernoulli_js_divergence(p, p).item() == 0


def test_numbers_are_normal_densities():
    y, q = torch.tensor([[3.0], [-3.0]]).double(), torch.zeros(2, 1).double()  # errors of deviation 3
    normal = lambda x, mean: math.exp(-(((x - mean) / 3) ** 2) / 2) / (3 * math.sqrt(2 * math.pi))

    def by_hand(d):
        def inside(x):
            a, b = normal(x, d), normal(x, 0)
            m = (a + b) / 2
            return (a * math.log(a / m) if a else 0) / 2 + (b * math.log(b / m) if b else 0) / 2

        return quad(inside, -40, 40 + d, points=[0, d / 2, d], limit=400)[0]

    for d in (0.0, 0.1, 1.0, 3.0, 9.0, 20.0, 60.0):
        value = gaussian_js_divergence(q + d, q, y)[0].item()
        assert abs(value - by_hand(d)) < 2e-5
        assert value <= min(math.log(2) + 2e-5, (d / 3) ** 2 / 4 + 1e-12)
    near = gaussian_js_divergence(q + 1e-3, q, y)[0].item()
    assert math.isclose(near, (1e-3 / 3) ** 2 / 8, rel_tol=1e-6)


def test_the_gaussian_divergence_of_several_batches_has_a_variance_for_each():
    p, q = (torch.randn(4, 6, 2, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    y = torch.randn(6, 2, generator=generator(2), dtype=torch.float64)
    each = [gaussian_js_divergence(a, b, y) for a, b in zip(p, q)]
    assert_close(gaussian_js_divergence(p, q, y), torch.stack(each))
    assert_close(
        gaussian_js_divergence(p[..., :1], q[..., :1], y[:, 0])[3],
        gaussian_js_divergence(p[3, :, :1], q[3, :, :1], y[:, :1]),
    )
    model, zs, y = model_of(MLPHead, (3, 4), 1), features((3, 4), 6), y[:, 0]
    values = [mipd(model, zs, strategy="greedy", clean_grad=c, distance="gaussian", y=y) for c in ("full", "detach")]
    assert_close(*values)


def test_the_gaussian_divergence_has_finite_gradients_everywhere():
    for scale in (0.0, 1e-20, 1.0, 1e6, 1e30):
        for error in (0.0, 1e-20, 1.0, 1e15):
            p = torch.full((3, 2), scale, requires_grad=True)
            q = torch.zeros(3, 2)
            value = gaussian_js_divergence(p, q, q + error)
            assert value.isfinite().all() and (value <= math.log(2) + 2e-5).all() and (value >= -1e-6).all()
            assert torch.autograd.grad(value.sum(), p)[0].isfinite().all()
    for wrong, got in ((None, "None"), (torch.zeros(2, 2), r"\(2, 2\)"), (torch.zeros(3), r"\(3,\)")):
        with pytest.raises(ValueError, match=f"needs targets y of shape .3, 2., got {got}"):
            gaussian_js_divergence(torch.zeros(3, 2), torch.zeros(3, 2), wrong)


@pytest.mark.parametrize("distance", ["bernoulli", "gaussian", "squared_error", "bounded_squared_error"])
def test_distances_of_half_precision_are_reckoned_in_single(distance):
    p, q, y = (3 * torch.randn(50, 3, generator=generator(s)).bfloat16() for s in (0, 1, 2))
    more = dict(y=y) if distance == "gaussian" else {}
    wide = DISTANCES[distance](p.float(), q.float(), **{k: v.float() for k, v in more.items()})
    got = DISTANCES[distance](p, q, **more)
    assert got.dtype == torch.float32
    assert_close(got, wide)


# ---- rejected input


def test_rejected_input():
    model, zs = model_of(SumHead, (3, 4)), features((3, 4))
    for options, message in [
        (dict(strategy="selfish"), "unknown strategy"),
        (dict(owned="all"), "unknown owned"),
        (dict(clean_grad="half"), "clean_grad"),
        (dict(distance="cosine"), "unknown distance"),
        (dict(distance="gaussian"), "needs targets"),
        (dict(y=torch.zeros(4)), "no classes"),
        (dict(permutations="all"), "permutations, if not"),
        (dict(permutations=0), "permutations, if not"),
        (dict(permutations=True), "permutations"),
        (dict(permutations=1.5), "permutations, if not"),
        (dict(permutations=9, draw="shift"), "distinct shifts"),
        (dict(permutations=2, draw="twist"), "unknown draw"),
        (dict(shared="yes"), "unknown shared"),
        (dict(rows=0), "rows must be a whole number"),
        (dict(rows=2.5), "rows must be a whole number"),
        (dict(memory=0), "in bytes"),
        (dict(memory=math.nan), "in bytes"),
        (dict(exclude="twins"), "unknown exclude"),
        (dict(exclude="label"), "needs the labels"),
        (dict(exclude="other_label", y=torch.zeros(3).long()), "needs the labels"),
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
    whole, flat = model_of(FiLMHead, (3, 4)), [torch.zeros(2, 3).double(), torch.zeros(4, 4).double()]
    with pytest.raises(ValueError, match="batch size"):  # rows that nobody would ever take
        mipd(whole, [zs[0], torch.cat([zs[1], zs[1]])])
    for spares in (flat, flat[::-1]):
        with pytest.raises(ValueError, match="substitutes must have 4 rows|batch size"):
            mipd(whole, zs, substitutes=spares)
    with pytest.raises(ValueError, match="substitutes must have 4 rows .*, got 2"):
        mipd(whole, zs, substitutes=flat)
    with pytest.raises(ValueError, match="unknown stand-in"):
        stand_ins(zs, "blur")
    with pytest.raises(ValueError, match="integers"):
        stand_ins([torch.zeros(3, 2).long()], "noise")
    for wrong in ((0, 4), (1, 0), (2, -1), (5, 64, "exact")):
        with pytest.raises(ValueError, match="at least 1|all combinations"):
            partners(*wrong)
    assert len(partners(1, 2**14, "exact")[0]) == 2**14  # 2**28 answers, all that are allowed
    with pytest.raises(ValueError, match="all combinations"):
        partners(1, 2**14 + 1, "exact")
    check_game({})
    with pytest.raises(ValueError, match="unknown clean_grad"):
        check_game(dict(clean_grad="half"))
