"Permutation contrasts against their proofs and loops; the corrected estimate; the level and the power of the test."

import math
import warnings
from itertools import permutations as orders

import numpy as np
import pytest
import torch
from common import generator
from scipy.stats import binom, chisquare
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mmlit import permutation
from mmlit.core import MEMORY
from mmlit.fusion.heads import ConcatHead, MLPHead
from mmlit.fusion.models import FusionModel
from mmlit.information import conditional_mutual_information
from mmlit.permutation import (
    _gaussian_kernel,
    _kernel_features,
    _rest_kernels,
    conditional_permutation_cmi,
    conditional_weights,
    cyclic_shifts,
    derangements,
    js_divergence_with_logits,
    permutation_cmi,
    permutation_test,
    permute_modality,
    random_permutations,
)


def first_of(sample):
    return sample[0], 0, sample[1]  # arguments zs, m, y: the first modality is under test


def normal(shape, g):
    return torch.randn(shape, generator=g, dtype=torch.float64)


def uniform(n, g):
    return torch.rand(n, generator=g, dtype=torch.float64)


# Tasks: tables with axes (x_m, y, x_r)


def random_table(seed):
    g = generator(seed)
    shape = torch.randint(2, 5, (3,), generator=g).tolist()
    p = normal(shape, g).mul(1 + 2 * uniform(1, g)).exp()
    return p / p.sum()


def with_independent_modalities(p):
    return p / p.sum(1, keepdim=True) * p.sum((1, 2))[:, None, None] * p.sum((0, 1))


def with_conditional_independence(p):
    return p.sum(1, keepdim=True) * p.sum(0) / p.sum((0, 1))


def answer_contrasts(p):
    "Log-ratio and JSD contrast of the exact answers, by broadcasting over (own, other, y, rest)."
    answer, w = p / p.sum(1, keepdim=True), p.sum((1, 2))[:, None, None]
    own, other = answer[:, None], answer[None]
    log_ratio = (p[:, None] * w * (own.log() - other.log())).sum()
    mid = (own + other) / 2
    jsd = 0.5 * (own * (own / mid).log() + other * (other / mid).log()).sum(2)
    return log_ratio.item(), (p.sum(1)[:, None] * w[..., 0] * jsd).sum().item()


def test_log_ratio_is_never_below_cmi():
    exceeding = 0
    for seed in range(600):
        p = random_table(seed)
        cmi = conditional_mutual_information(p).item()
        log_ratio, jsd = answer_contrasts(p)
        assert log_ratio >= cmi - 1e-12
        exceeding += jsd > cmi
    assert 20 < exceeding < 300  # under dependence the JSD form is no lower bound: some tables exceed, not all


def test_jsd_is_not_above_cmi_for_independent_modalities():
    for seed in range(300):
        p = with_independent_modalities(random_table(seed))
        log_ratio, jsd = answer_contrasts(p)
        assert jsd - 1e-12 <= conditional_mutual_information(p).item() <= log_ratio + 1e-12


def test_conditional_independence_makes_all_three_zero():
    for seed in range(100):
        p = with_conditional_independence(random_table(seed))
        assert max(abs(v) for v in (*answer_contrasts(p), conditional_mutual_information(p).item())) < 1e-12


# Jensen-Shannon divergence


def test_js_divergence_is_symmetric_bounded_and_zero_only_for_equal_answers():
    a, b = normal((2, 500, 7), generator()) * 10
    d = js_divergence_with_logits(a, b)
    assert_close(d, js_divergence_with_logits(b, a))
    assert (d > 0).all() and (d <= math.log(2) + 1e-12).all()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert (js_divergence_with_logits(a.to(dtype), a.to(dtype)) == 0).all()
    assert_close(
        js_divergence_with_logits(a, a + 3), torch.zeros(500).double(), atol=1e-12, rtol=0
    )  # logits are defined up to a constant


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_js_divergence_has_finite_values_and_gradients(dtype, size):
    grid = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * 3)
    a = grid[:, None].expand(27, 27, 3).to(dtype, copy=True).requires_grad_()
    b = grid[None].expand(27, 27, 3).to(dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        d = js_divergence_with_logits(a, b)
        d.sum().backward()
    assert (
        d.dtype in (torch.float32, torch.float64)
        and d.isfinite().all()
        and a.grad.isfinite().all()
        and b.grad.isfinite().all()
    )
    assert -1e-6 < d.min() and d.max() < math.log(2) + 1e-6


def test_js_divergence_of_disjoint_answers_is_ln_2():
    assert_close(
        js_divergence_with_logits(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])), torch.tensor(math.log(2))
    )


def test_js_divergence_gradient():
    a, b = normal((2, 4, 3), generator(1))
    assert torch.autograd.gradcheck(js_divergence_with_logits, (a.requires_grad_(), b.requires_grad_()))


# Permutations


def test_derangements_are_uniform():
    draws = derangements(4, 9000, generator(3))
    _, counts = draws.unique(dim=0, return_counts=True)
    assert len(counts) == 9 and not (draws == torch.arange(4)).any()
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_random_permutations_are_uniform_and_reproducible():
    draws = random_permutations(4, 12000, generator(4))
    _, counts = draws.unique(dim=0, return_counts=True)
    assert len(counts) == 24 and chisquare(counts.numpy()).pvalue > 1e-3
    assert torch.equal(random_permutations(9, 5, generator(1)), random_permutations(9, 5, generator(1)))


def test_cyclic_shifts_are_distinct():
    assert len(cyclic_shifts(50, 20, generator()).unique(dim=0)) == 20
    assert (cyclic_shifts(6).sort(0).values == torch.arange(6)[:, None]).all()  # a Latin square: each pair once


def test_permute_modality_keeps_the_others():
    zs = tuple(normal((6, d), generator(d)) for d in (1, 2, 3))
    index = random_permutations(6, 2, generator())
    out = permute_modality(zs, (2, 0), index)
    assert out[1] is zs[1] and torch.equal(out[2], zs[2][index[0]]) and torch.equal(out[0], zs[0][index[1]])


# The contrast


class ToyHead:
    "A head with interactions between neighbours for any M; counts the rows of its largest call."

    def __init__(self, n_modalities, n_classes=3, ignored=None):
        g = generator(n_modalities)
        self.weights = [normal((m + 2, n_classes), g) * (m != ignored) for m in range(n_modalities)]
        self.zs, self.y = (
            [normal((4, m + 2), g) for m in range(n_modalities)],
            torch.randint(0, n_classes, (4,), generator=g),
        )
        self.largest = 0

    def __call__(self, zs):
        self.largest = max(self.largest, len(zs[0]))
        terms = [z @ w for z, w in zip(zs, self.weights)]
        return sum(terms) + sum(a * b.tanh() for a, b in zip(terms, terms[1:]))


def naive(head, zs, ms, y, form, sigmas):
    "Per-sample contrast for one permutation (a tuple) per modality of `ms`."
    out = []
    for i in range(len(y)):
        swapped = [z[sigmas[ms.index(m)][i]] if m in ms else z[i] for m, z in enumerate(zs)]
        p, q = (head([z[None] for z in row])[0].softmax(-1) for row in ([z[i] for z in zs], swapped))
        mid = (p + q) / 2
        out.append(
            (p.log() - q.log())[y[i]]
            if form == "log_ratio"
            else 0.5 * (p * (p / mid).log() + q * (q / mid).log()).sum()
        )
    return torch.stack(out)


@pytest.mark.parametrize("form", ["log_ratio", "jsd"])
@pytest.mark.parametrize("n_modalities", [1, 2, 3, 4])
def test_all_pairs_is_the_mean_over_all_permutations(n_modalities, form):
    head = ToyHead(n_modalities)
    every = list(orders(range(4)))
    deranged = [s for s in every if all(i != j for i, j in enumerate(s))]
    for m in range(n_modalities):
        mean = lambda sigmas, m=m: torch.stack([naive(head, head.zs, [m], head.y, form, [s]) for s in sigmas]).mean(0)
        exact = permutation_cmi(head, head.zs, m, head.y, form)
        assert_close(exact.per_sample, mean(every), atol=1e-12, rtol=0)
        cyclic = permutation_cmi(head, head.zs, m, head.y, form, "cyclic")
        assert_close(cyclic.per_sample, mean(deranged), atol=1e-12, rtol=0)
        assert_close(cyclic.per_sample, exact.per_sample * 4 / 3, atol=1e-12, rtol=0)
        assert_close(exact.mean, exact.per_sample.mean())


@pytest.mark.parametrize("form", ["log_ratio", "jsd"])
@pytest.mark.parametrize("ms", [(0, 2), (2, 1), (0, 1, 2), (3,)])
def test_subsets_are_the_loop(ms, form):
    head = ToyHead(4)
    index = random_permutations(4, 6 * len(ms), generator()).view(6, len(ms), 4)
    loop = torch.stack([naive(head, head.zs, list(ms), head.y, form, sigmas) for sigmas in index]).mean(0)
    assert_close(permutation_cmi(head, head.zs, ms, head.y, form, index).per_sample, loop)
    drawn = permutation_cmi(head, head.zs, ms, head.y, form, 6, generator=generator())  # the same draws by number
    assert_close(drawn.per_sample, loop)
    together = torch.stack(
        [naive(head, head.zs, list(ms), head.y, form, [s] * len(ms)) for s in orders(range(4))]
    ).mean(0)
    assert_close(permutation_cmi(head, head.zs, ms, head.y, form, shared=True).per_sample, together, atol=1e-12, rtol=0)


def test_random_permutations_are_unbiased():
    head = ToyHead(3)
    draws = torch.stack(
        [permutation_cmi(head, head.zs, 1, form="jsd", permutations=3, generator=generator(s)).mean for s in range(300)]
    )
    standard_error = draws.std() / 300**0.5
    assert standard_error < 0.01
    assert (draws.mean() - permutation_cmi(head, head.zs, 1, form="jsd").mean).abs() < 4 * standard_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [1, 2**28])
def test_identity_and_ignored_modalities_score_exactly_zero(dtype, memory):
    for ignored in range(3):
        head = ToyHead(3, ignored=ignored)
        head.weights, zs = [w.to(dtype) for w in head.weights], [z.to(dtype) for z in head.zs]
        for form in ("log_ratio", "jsd"):
            assert (permutation_cmi(head, zs, ignored, head.y, form, memory=memory).per_sample == 0).all()
            identity = torch.arange(4).expand(2, 4)
            assert (permutation_cmi(head, zs, 1, head.y, form, identity, memory=memory).per_sample == 0).all()


def test_chunks_obey_memory_and_change_neither_value_nor_gradient():
    head = ToyHead(3)
    batch_bytes = sum(z.numel() * 8 for z in head.zs)
    results = []
    for memory in (2**28, 2 * batch_bytes, 1):
        head.largest, zs = 0, [z.clone().requires_grad_() for z in head.zs]
        out = permutation_cmi(head, zs, 1, head.y, "jsd", memory=memory)
        results.append((out.per_sample, *torch.autograd.grad(out.mean, zs)))
        assert head.largest <= max(4, memory / batch_bytes * 4)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert_close(a, b)
    assert all(g.abs().max() > 0 for g in results[0][1:])


@pytest.mark.parametrize("batch, draws, most", [(4, 5000, 2**13), (4, 7, 28), (5000, 3, 5000), (1, 2**14, 2**13)])
def test_without_a_gradient_a_call_has_as_many_rows_as_a_cache_holds(batch, draws, most):
    "At least one permutation and, beyond that, at most 8192 rows; with a gradient as many as the memory allows."
    head = ToyHead(2)
    zs, index = [z[:1].expand(batch, -1) for z in head.zs], torch.arange(batch).expand(draws, -1)
    for grad, expected in ((False, most), (True, batch * draws)):
        head.largest = 0
        with torch.set_grad_enabled(grad):
            permutation_cmi(head, zs, 0, form="jsd", permutations=index)
        assert head.largest == expected


def test_chunks_that_are_differentiated_are_asked_again_and_a_single_one_is_not():
    for memory, again in ((2**28, 0), (1, 4)):  # of four samples, four pairings of a batch
        head, calls = ToyHead(2), []
        zs = [z.clone().requires_grad_() for z in head.zs]
        out = permutation_cmi(lambda rows, h=head, c=calls: c.append(1) or h(rows), zs, 0, head.y, memory=memory)
        asked = len(calls)
        assert asked == 1 + max(again, 1)  # the clean answer comes on top
        out.mean.backward()
        assert len(calls) == asked + again


def test_bytes_may_be_a_number_with_a_point():
    head = ToyHead(3)
    with torch.enable_grad():
        whole, point = (permutation_cmi(head, head.zs, 1, head.y, memory=memory) for memory in (10**9, 1e9))
    assert torch.equal(whole.per_sample, point.per_sample)


class Logarithms(TorchDispatchMode):
    "The sizes of tensors of which a logarithm is taken."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.log:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.sizes = []
        return super().__enter__()


@pytest.mark.parametrize("batch, memory, most", [(33, MEMORY, 33), (33, 8 * 99, 3), (33, 8 * 98, 2), (33, 1, 1)])
def test_pairs_of_a_sum_obey_the_memory(batch, memory, most):
    "Eight bytes for each pair of samples."
    head, zs = ConcatHead((3, 2), 5), [torch.randn(batch, d, generator=generator(d)) for d in (3, 2)]
    y = torch.arange(batch) % 5
    with torch.no_grad(), Logarithms() as seen:
        found = permutation_cmi(head, zs, 0, y, memory=memory).per_sample
    assert max(seen.sizes) == most * batch and sum(seen.sizes) == batch**2
    assert_close(found, permutation_cmi(lambda rows: head(rows), zs, 0, y).per_sample.detach(), atol=1e-5, rtol=1e-5)


def test_pairs_of_a_sum_are_at_most_those_that_a_cache_holds():
    head, zs = ConcatHead((3, 2), 5), [torch.randn(600, d, generator=generator(d)) for d in (3, 2)]
    with torch.no_grad(), Logarithms() as seen:
        permutation_cmi(head, zs, 0, torch.arange(600) % 5)
    assert max(seen.sizes) == 2**18 // 600 * 600


@pytest.mark.parametrize("form", ["log_ratio", "jsd"])
def test_of_a_model_the_head_is_asked(form):
    "Its forward pass takes inputs, and not features."
    torch.manual_seed(0)
    model = FusionModel([torch.nn.Linear(5, d) for d in (3, 2)], MLPHead((3, 2), 4)).double()
    zs, y = [normal((6, d), generator(d)) for d in (3, 2)], torch.arange(6) % 4
    ours, heads = (permutation_cmi(f, zs, 1, y, form).per_sample for f in (model, model.head))
    assert torch.equal(ours, heads) and ours.abs().max() > 1e-3
    weights = torch.full((6, 6), 1 / 6).double()
    ours, heads = (conditional_permutation_cmi(f, zs, 1, y, weights).per_sample for f in (model, model.head))
    assert torch.equal(ours, heads)


def test_one_sample_has_no_partner():
    head = ToyHead(2)
    zs = [z[:1] for z in head.zs]
    assert permutation_cmi(head, zs, 0, head.y[:1]).mean == 0
    with pytest.raises(ValueError, match="at least 2"):
        permutation_cmi(head, zs, 0, head.y[:1], permutations="cyclic")


def test_features_of_any_shape():
    z, other = normal((5, 3, 2), generator()), normal((5, 4), generator(1))
    fuse = lambda zs: zs[0].sum(1) + zs[1][:, :2]
    assert_close(
        permutation_cmi(fuse, [z, other], 0, form="jsd"),
        permutation_cmi(lambda zs: zs[0] + zs[1][:, :2], [z.sum(1), other], 0, form="jsd"),
    )


BAD_CONTRASTS = {
    "several modalities": (dict(m=(0, 1)), "shared=False"),
    "modality": (dict(m=2), r"0\.\.1"),
    "negative": (dict(m=-1), r"0\.\.1"),
    "none": (dict(m=()), r"0\.\.1"),
    "twice": (dict(m=(0, 0)), "distinct"),
    "form": (dict(form="kl"), "form"),
    "labels": (dict(y=None), "labels"),
    "label range": (dict(y=torch.tensor([0, 1, 2, 3])), "labels"),
    "label shape": (dict(y=torch.tensor([0, 1])), "labels"),
    "label type": (dict(y=torch.zeros(4)), "labels"),
    "word": (dict(permutations="some"), "permutations"),
    "zero": (dict(permutations=0), "k=0"),
    "float index": (dict(permutations=torch.zeros(1, 4)), "integers"),
    "index shape": (dict(permutations=torch.zeros(1, 3).long()), "integers"),
    "index range": (dict(permutations=torch.full((1, 4), 4)), r"0\.\.3"),
    "logits": (dict(fuse=lambda zs: torch.zeros(4, 3)), "logits"),
    "bool": (dict(permutations=True), "permutations"),
    "batch": (dict(zs=[torch.zeros(4, 2), torch.zeros(3, 2)]), "batch size"),
    "empty": (dict(zs=[]), "modality"),
}


@pytest.mark.parametrize("case", BAD_CONTRASTS)
def test_rejected_contrasts(case):
    change, message = BAD_CONTRASTS[case]
    head = ToyHead(2)
    with pytest.raises(ValueError, match=message):
        permutation_cmi(**(dict(fuse=head, zs=head.zs, m=0, y=head.y) | change))


# The corrected estimate


def draw(p, n, g):
    cell = torch.multinomial(p.flatten(), n, replacement=True, generator=g)
    x_m, y, x_r = torch.unravel_index(cell, p.shape)
    return [x_m, x_r], y


def look_up(p):
    answers = (p / p.sum(1, keepdim=True)).log().transpose(1, 2)
    return lambda zs: answers[zs[0], zs[1]]


def redundant_table(delta, noise=0.05):
    flip = lambda e: torch.tensor([[1 - e, e], [e, 1 - e]], dtype=torch.float64)
    return 0.5 * flip(noise)[:, :, None] * flip(delta)[:, None, :]


@pytest.mark.parametrize("task", ["redundant", 0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_corrected_estimate_is_the_cmi_on_dependent_tables(task, runs=30, n=300):
    p = redundant_table(0.1) if task == "redundant" else random_table(task)
    truth = conditional_mutual_information(p).item()
    estimates = torch.stack(
        [
            conditional_permutation_cmi(look_up(p), *first_of(draw(p, n, generator(s))), generator=generator(s)).mean
            for s in range(runs)
        ]
    )
    standard_error = estimates.std() / runs**0.5
    assert standard_error < 0.012
    assert (estimates.mean() - truth).abs() < 4 * standard_error + 0.005  # the smoother's own bias at n = 300


def test_corrected_estimate_without_labels_is_the_cmi_of_exact_answers(runs=30, n=300):
    p = redundant_table(0.2)
    estimates = torch.stack(
        [
            conditional_permutation_cmi(look_up(p), draw(p, n, generator(s))[0], 0, generator=generator(s)).mean
            for s in range(runs)
        ]
    )
    standard_error = estimates.std() / runs**0.5
    assert (
        standard_error < 0.01
        and (estimates.mean() - conditional_mutual_information(p)).abs() < 4 * standard_error + 0.005
    )


def test_corrected_estimate_is_zero_where_the_modality_adds_nothing():
    p = with_conditional_independence(random_table(5))
    zs, y = draw(p, 200, generator())
    assert_close(
        conditional_permutation_cmi(look_up(p), zs, 0, y, generator=generator()).per_sample,
        torch.zeros(200).double(),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("dim, runs", [(1, 15), pytest.param(4, 15, marks=pytest.mark.slow)])
def test_corrected_estimate_on_correlated_gaussians(dim, runs, n=300):
    logit = lambda x, z: 1.5 * (x + z).sum(-1) / dim**0.5

    def entropy(p):
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))

    g = generator(99)
    z = normal((1000, dim), g)
    answers = logit(0.8 * z + 0.6 * normal((500, 1000, dim), g), z).sigmoid()
    truth = (entropy(answers.mean(0)) - entropy(answers).mean(0)).mean()
    both = []
    for seed in range(runs):
        g = generator(seed)
        z = normal((n, dim), g)
        x = 0.8 * z + 0.6 * normal((n, dim), g)
        y = (uniform(n, g) < logit(x, z).sigmoid()).long()
        fuse = lambda zs: torch.stack([torch.zeros(len(zs[0])).double(), logit(*zs)], -1)
        both.append(
            [
                conditional_permutation_cmi(fuse, [x, z], 0, y, generator=g).mean,
                permutation_cmi(fuse, [x, z], 0, y).mean,
            ]
        )
    corrected, marginal = torch.tensor(both).mean(0)
    standard_error = torch.tensor(both)[:, 0].std() / runs**0.5
    assert standard_error < 0.008 and (corrected - truth).abs() < 4 * standard_error + 0.01
    assert marginal > 4 * truth


def test_strata_given_as_weights_are_the_plug_in_estimate():
    p = random_table(3)
    zs, y = draw(p, 200, generator())
    same = (zs[1][:, None] == zs[1]).double()
    estimate = conditional_permutation_cmi(look_up(p), zs, 0, y, same / same.sum(1, keepdim=True))
    answers = look_up(p)
    for i in range(5):
        partners = [j for j in range(200) if zs[1][j] == zs[1][i]]
        q = torch.stack([answers([zs[0][j], zs[1][i]]).exp()[y[i]] for j in partners]).mean()
        assert_close(estimate.per_sample[i], answers([zs[0][i], zs[1][i]])[y[i]] - q.log())


def test_any_weights_are_the_loop():
    head, g = ToyHead(3), generator(8)
    weights = uniform(16, g).view(4, 4)
    weights = weights / weights.sum(1, keepdim=True)
    q = torch.stack(
        [
            sum(
                weights[i, j]
                * head([(head.zs[m][j] if m == 1 else head.zs[m][i])[None] for m in range(3)])[0].softmax(-1)
                for j in range(4)
            )
            for i in range(4)
        ]
    )
    p = head(head.zs).softmax(-1)
    for memory in (1, 2**28):
        labelled, own = (
            conditional_permutation_cmi(head, head.zs, 1, y, weights, memory).per_sample for y in (head.y, None)
        )
        assert_close(labelled, (p.log() - q.log())[torch.arange(4), head.y])
        assert_close(own, (p * (p.log() - q.log())).sum(1))


def test_uniform_weights_are_the_marginal_permutation_averaged_before_the_logarithm():
    head = ToyHead(2)
    uniform_weights = torch.full((4, 4), 0.25).double()
    averaged = conditional_permutation_cmi(head, head.zs, 0, head.y, uniform_weights).mean
    assert averaged < permutation_cmi(head, head.zs, 0, head.y).mean  # Jensen


def test_weights_sum_to_one_for_any_number_of_modalities():
    g = generator(7)
    zs = [normal((60, 2), g), torch.randint(0, 3, (60,), generator=g), normal((60, 4, 2), g), torch.zeros(60, 1)]
    for m in (0, 1, 2, (0, 2), (0, 1, 2, 3)):
        w = conditional_weights(zs, m)
        assert_close(w.sum(1), torch.ones(60).double())
        assert (w.diagonal() == 0).all()


def test_extreme_answers_stay_finite():
    zs = [torch.tensor([0.0, 1.0] * 20)[:, None] * 1e4, normal((40, 1), generator()).float()]
    out = conditional_permutation_cmi(lambda zs: torch.cat([zs[0], -zs[0]], 1), zs, 0, torch.zeros(40).long())
    assert out.per_sample.isfinite().all()


# The test: level, power, and the wrong null


def binary(logit, g):
    return (uniform(len(logit), g) < logit.sigmoid()).long()


def gaussian(n, g, effect, dim=1):
    z, e = normal((2, n, dim), g)
    return [0.9 * z + 0.44 * e, z], binary((2 * z + effect * e).sum(1) / dim**0.5, g)


def gaussian_5(n, g, effect):
    return gaussian(n, g, effect, 5)


def sine(n, g, effect):
    z, e = normal((2, n, 1), g)
    return [torch.sin(2 * z) + 0.4 * e, z], binary(2 * torch.sin(2 * z[:, 0]) + effect * e[:, 0], g)


def real_target(n, g, effect):
    z, e = normal((2, n, 1), g)
    return [torch.sin(2 * z) + 0.4 * e, z], torch.sin(2 * z[:, 0]) + 0.4 * normal((n,), g) + 0.3 * effect * e[:, 0]


def discrete(n, g, effect):
    pick = lambda k: torch.randint(0, k, (n,), generator=g)
    z = pick(4)
    x = torch.where(uniform(n, g) < 0.6, z, pick(4))
    return [x, z], torch.where(uniform(n, g) < 0.5, z % 3, torch.where(uniform(n, g) < 0.8 * effect, x % 3, pick(3)))


def mixed(n, g, effect):
    z = normal((n, 2), g)
    x = (z[:, 0] + 0.5 * normal((n,), g) > 0).long()
    return [x, z], binary(2 * z[:, 0] + z[:, 1] ** 2 - 1 + effect * (2 * x - 1), g)


def heavy_tails(n, g, effect):
    z, e = normal((2, n, 1), g) / (0.1 + 0.9 * uniform(2 * n, g).view(2, n, 1)) ** 0.7
    return [z + e, z], binary(2 * z[:, 0] + effect * e[:, 0], g)


def unequal_variance(n, g, effect):
    z, e = normal((2, n, 1), g)
    return [z + 0.5 * (0.3 + z.abs()) * e, z], binary(3 * z[:, 0] + effect * e[:, 0], g)


def xor_of_three(n, g, effect):
    bits = torch.randint(0, 2, (3, n), generator=g)
    y = bits[1] ^ bits[0] if effect else bits[1] ^ bits[2]
    return list(bits), torch.where(uniform(n, g) < 0.8, y, 1 - y)


def index(n, g, effect):
    "One direction of sixteen says what x_m and the label share."
    z, e = normal((n, 16), g), normal((n, 1), g)
    a = z.sum(1, keepdim=True) / 4
    return [a + 0.3 * e, z], binary(3 * a[:, 0] + effect * e[:, 0], g)


def index_of_a_real_target(n, g, effect):
    (x, z), _ = index(n, g, 0.0)
    a = z.sum(1, keepdim=True) / 4
    return [x, z], a + effect * (x - a) + 0.5 * normal((n, 1), g)


TASKS = [
    gaussian,
    gaussian_5,
    sine,
    real_target,
    discrete,
    mixed,
    heavy_tails,
    unequal_variance,
    xor_of_three,
    index,
    index_of_a_real_target,
]
FEW = [real_target, mixed]  # the notebook has the rest's main cases: two Gaussians, XOR, one direction of many
SOME = [task if task in FEW else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]


def pvalues(task, effect, runs, n, reps=99):
    return torch.tensor(
        [
            permutation_test(*first_of(task(n, generator(s), effect)), reps=reps, generator=generator(s + 10**6)).pvalue
            for s in range(runs)
        ]
    )


def assert_level(p, levels=(0.05, 0.1, 0.2)):
    for level in levels:
        assert (p <= level).sum() <= binom.ppf(0.999, len(p), level), (
            f"{(p <= level).float().mean():.3f} of true nulls rejected at {level}"
        )


@pytest.mark.parametrize("task", SOME)
def test_level(task):
    assert_level(pvalues(task, 0.0, runs=150, n=100))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_level_at_a_larger_sample(task):
    assert_level(pvalues(task, 0.0, runs=500, n=300, reps=199))


@pytest.mark.parametrize("task", SOME)
def test_power(task):
    assert (pvalues(task, 1.0, runs=30, n=250) <= 0.05).float().mean() > {
        unequal_variance: 0.3,
        discrete: 0.6,
        gaussian_5: 0.7,
    }.get(task, 0.8)


def gaussian_16(n, g, effect):
    return gaussian(n, g, effect, 16)


def product(n, g, effect):
    z, e = normal((n, 4), g), normal((n, 1), g)
    both = z[:, :1] * z[:, 1:2]
    return [both + 0.3 * e, z], binary(3 * both[:, 0] + effect * e[:, 0], g)


def jump(n, g, effect):
    z, e = normal((2, n, 1), g)
    return [(z > 0) + 0.2 * e, z], (uniform(n, g) < torch.where(z[:, 0] > 0, 0.95, 0.05)).long()


@pytest.mark.slow
def test_refitting_keeps_the_level_in_many_dimensions():
    assert (pvalues(gaussian_16, 0.0, runs=120, n=200) <= 0.05).sum() <= 7  # signs without the fit: about 11


@pytest.mark.slow
def test_residual_features_limit_what_a_poor_regression_costs():
    "No level is claimed for these; still far better than one of the two regressions alone (about 0.39 and 0.6)."
    assert 0.03 < (pvalues(product, 0.0, runs=100, n=200) <= 0.05).float().mean() < 0.25
    assert 0.1 < (pvalues(jump, 0.0, runs=100, n=200) <= 0.05).float().mean() < 0.5


@pytest.mark.slow
def test_the_level_is_not_bought_with_conservatism():
    p = torch.cat([pvalues(task, 0.0, runs=100, n=100) for task in (gaussian, sine, mixed)])
    assert (p <= 0.2).sum() >= binom.ppf(0.001, len(p), 0.2) and (p <= 0.05).sum() >= binom.ppf(0.001, len(p), 0.05)


def test_marginal_permutation_rejects_true_nulls(runs=60, n=100, reps=99):
    "The correlation of x_m and y against that for shuffled x_m, where y is independent of x_m given the rest."
    found = 0
    for seed in range(runs):
        (x, _z), y = gaussian(n, generator(seed), 0.0)
        statistic = lambda x, y=y: torch.corrcoef(torch.stack([x[:, 0], y.double()]))[0, 1].abs()
        null = torch.stack([statistic(x[i]) for i in random_permutations(n, reps, generator(seed))])
        found += (1 + (null >= statistic(x)).sum()) / (1 + reps) <= 0.05
    assert found > 0.9 * runs


def test_pvalues_are_on_the_grid_and_reproducible():
    zs, y = gaussian(60, generator(), 3.0)
    a, b = (permutation_test(zs, 0, y, reps=19, generator=generator(1)) for _run in range(2))
    assert a.pvalue == 1 / 20 == b.pvalue and torch.equal(a.null, b.null) and len(a.null) == 19


def test_pvalue_counts_the_null_at_or_above_the_statistic():
    zs, y = gaussian(60, generator(), 0.0)
    out = permutation_test(zs, 0, y, reps=99, generator=generator(1))
    assert out.pvalue == (1 + (out.null >= out.statistic).sum().item()) / 100


def test_large_samples_are_thinned():
    zs, y = gaussian(5000, generator(), 2.0)
    assert permutation_test(zs, 0, y, reps=99, max_samples=200, generator=generator()).pvalue == 0.01


@pytest.mark.parametrize("degenerate", ["constant modality", "constant label", "copy of the rest"])
def test_degenerate_data_are_never_significant(degenerate):
    zs, y = gaussian(60, generator(), 1.0)
    if degenerate == "constant modality":
        zs[0] = zs[0] * 0
    if degenerate == "constant label":
        y = y * 0
    if degenerate == "copy of the rest":
        zs[0] = zs[1]
    assert permutation_test(zs, 0, y, reps=99, generator=generator()).pvalue > 0.05


def test_one_modality_is_tested_for_independence():
    zs, y = gaussian(100, generator(), 0.0)
    assert permutation_test(zs[1:], 0, y, reps=99, generator=generator()).pvalue == 0.01
    noise = [
        permutation_test([normal((60, 2), generator(s))], 0, y[:60], reps=99, generator=generator(s)).pvalue
        for s in range(100)
    ]
    assert_level(torch.tensor(noise))


BAD_TESTS = {
    "few": (dict(zs=[torch.randn(10, 1)] * 2, y=torch.zeros(10).long()), "at least 20"),
    "thinned to few": (dict(max_samples=10), "at least 20"),
    "reps": (dict(reps=0), "reps=0"),
    "labels": (dict(y=torch.zeros(5).long()), "class labels"),
    "label matrix": (dict(y=torch.zeros(40, 2).long()), "class labels"),
    "modality": (dict(m=2), r"0\.\.1"),
    "NaN": (dict(zs=[torch.full((40, 1), math.nan), torch.zeros(40, 1)]), "finite"),
    "NaN target": (dict(y=torch.full((40,), math.nan)), "y has NaN or infinity"),
    "batch": (dict(zs=[torch.zeros(40, 1), torch.zeros(30, 1)]), "batch size"),
}


@pytest.mark.parametrize("case", BAD_TESTS)
def test_rejected_tests(case):
    change, message = BAD_TESTS[case]
    zs, y = gaussian(40, generator(), 0.0)
    with pytest.raises(ValueError, match=message):
        permutation_test(**(dict(zs=zs, m=0, y=y) | change))


def test_heads_may_rule_classes_out():
    table = torch.eye(2, dtype=torch.float64).log()  # certain: minus infinity elsewhere

    def fuse(zs):
        return table[zs[0] ^ zs[1]]

    bits = torch.randint(0, 2, (2, 200), generator=generator())
    assert_close(
        permutation_cmi(fuse, bits, 0, form="jsd").mean,
        torch.tensor(0.5 * math.log(2), dtype=torch.float64),
        atol=0.02,
        rtol=0,
    )
    with_labels, without = (conditional_permutation_cmi(fuse, bits, 0, y).mean for y in (bits[0] ^ bits[1], None))
    assert_close(with_labels, without, atol=1e-6, rtol=0)


def test_indices_are_numbers_and_not_masks():
    zs = [torch.arange(6.0)[:, None], torch.arange(6.0)[:, None]]
    index = torch.tensor([1, 0, 1, 0, 0, 0])
    assert torch.equal(permute_modality(zs, 0, index.to(torch.uint8))[0], permute_modality(zs, 0, index)[0])
    with pytest.raises(ValueError, match="integers"):
        permute_modality(zs, 0, index.bool())


def test_labels_of_any_integer_type_are_labels_and_no_masks():
    head = ToyHead(2, n_classes=2)
    for dtype in (torch.uint8, torch.int32):
        y = head.y.to(dtype)
        assert_close(permutation_cmi(head, head.zs, 0, y), permutation_cmi(head, head.zs, 0, head.y))
        weights = torch.full((4, 4), 0.25)
        corrected = [conditional_permutation_cmi(head, head.zs, 0, labels, weights) for labels in (y, head.y)]
        assert_close(*corrected)


def test_messages_name_what_was_given():
    with pytest.raises(ValueError, match=r"got shapes \(2, 3\) and \(2, 4\)"):
        js_divergence_with_logits(torch.zeros(2, 3), torch.zeros(2, 4))
    head = ToyHead(2)
    with pytest.raises(ValueError, match=r"0\.\.2 of shape \(4,\), got \(torch.int64, \(2,\)\)"):
        permutation_cmi(head, head.zs, 0, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"0\.\.2 of shape \(4,\), got \(torch.int64, \(4,\)\)"):
        permutation_cmi(head, head.zs, 0, torch.tensor([0, 1, 2, 3]))  # one too large
    with pytest.raises(ValueError, match="got None"):
        permutation_cmi(head, head.zs, 0)
    with pytest.raises(ValueError, match=r"got torch.int64 \(1, 4\) from 0 to 4"):
        permutation_cmi(head, head.zs, 0, head.y, permutations=torch.tensor([[0, 4, 1, 2]]))
    with pytest.raises(ValueError, match=r"shape \(4,\) or \(1, 4\), got torch.int64 \(3,\)"):
        permute_modality(head.zs, 0, torch.zeros(3).long())
    zs, y = gaussian(40, generator(), 0.0)
    with pytest.raises(ValueError, match=r"expected 40 class labels .*, got torch.int64 \(5,\)"):
        permutation_test(zs, 0, y[:5])


def test_every_draw_comes_from_the_generator():
    "Landmarks of features and of a real target, signs, thinning and the row of each group."
    zs, y = real_target(240, generator(), 0.5)
    groups, (z, e) = torch.arange(240) // 2, torch.randn(2, 240, 1, generator=generator())
    noisy = [torch.sin(5 * z) + 0.8 * e, z]  # here the landmarks decide about the penalty
    for call in (
        lambda g: conditional_weights(zs, 0, g),
        lambda g: conditional_weights(noisy, 0, g),
        lambda g: permutation_test(zs, 0, y, reps=9, generator=g).null,
        lambda g: permutation_test(zs, 0, y, reps=9, max_samples=60, generator=g).null,
        lambda g: permutation_test(zs, 0, (y > 0).long(), reps=9, groups=groups, generator=g).null,
        lambda g: random_permutations(9, 3, g),
        lambda g: derangements(9, 3, g),
        lambda g: cyclic_shifts(9, 3, g),
    ):
        found = []
        for seed in range(1, 7):
            torch.manual_seed(seed)
            found.append(call(generator(5)))
        assert all(torch.equal(found[0], other) for other in found[1:])
    others = [conditional_weights(noisy, 0, generator(seed)) for seed in range(6)]
    assert any(not torch.equal(others[0], other) for other in others[1:])


def test_the_rest_is_seen_through_kernels_of_a_median_a_tenth_and_a_hundredth():
    rest = normal((20, 2), generator())
    far = (rest[:, None] - rest).square().sum(2)
    median = far[far > 0].median()
    centring = torch.eye(20).double() - 1 / 20
    found = _rest_kernels(rest)
    assert len(found) == 3
    for (e, u), width in zip(found, (1, 0.1, 0.01)):
        kernel = (-far / (width * median)).exp() + rest @ rest.T
        assert_close(u @ e.diag() @ u.T, centring @ kernel @ centring)


def test_integers_are_categories_in_one_dimension_and_numbers_in_more():
    g = generator(3)
    kind, z = torch.randint(0, 3, (60,), generator=g), normal((60, 1), g)
    x = (kind == 1) + 0.3 * normal((60, 1), g)[:, 0]
    weights = conditional_weights([x[:, None], kind], 0)
    assert_close(conditional_weights([x[:, None], torch.tensor([7, -2, 3])[kind]], 0), weights)  # other names
    one_hot = torch.eye(3, dtype=torch.float64)[kind]
    assert_close(conditional_weights([x[:, None], one_hot], 0), weights)
    as_numbers = conditional_weights([x[:, None], kind[:, None].double()], 0)
    assert_close(conditional_weights([x[:, None], kind[:, None]], 0), as_numbers)
    assert (as_numbers - weights).abs().max() > 1e-3
    assert_close(conditional_weights([x, z], 0), conditional_weights([x[:, None], z], 0))  # real numbers are columns


def test_weights_follow_a_wave_that_only_the_narrowest_kernel_sees():
    z = torch.linspace(0, 1, 300, dtype=torch.float64)[:, None]
    x = torch.sin(100 * z)
    error = (conditional_weights([x, z], 0, generator()) @ x - x).square().mean()
    assert error < 0.01 * x.square().mean()


def test_weights_hold_no_graph():
    zs = [normal((30, 1), generator(s)).requires_grad_() for s in range(2)]
    assert not conditional_weights(zs, 0).requires_grad
    y = (zs[0] > 0).long()[:, 0]
    assert not permutation_test(zs, 0, y, reps=9, generator=generator()).statistic.requires_grad


def test_modalities_may_be_named_by_an_array():
    zs = tuple(normal((6, d), generator(d)) for d in (1, 2, 3))
    index = random_permutations(6, 2, generator())
    out = permute_modality(zs, np.array([2, 0]), index)
    assert out[1] is zs[1] and torch.equal(out[2], zs[2][index[0]]) and torch.equal(out[0], zs[0][index[1]])


def test_an_average_below_every_answer_counts_as_the_lowest_answer():
    "Weights can be negative, and an average with them no probability."
    head, n = ToyHead(2), 4
    weights = normal((n, n), generator(3)) * 4
    weights += 1 / n - weights.mean(1, keepdim=True)
    below, q = 0, []
    for i in range(n):
        answers = torch.stack([head([head.zs[0][j][None], head.zs[1][i][None]])[0].softmax(0) for j in range(n)])
        average, lowest = weights[i] @ answers, answers.min(0).values
        below += int((average < lowest).sum())
        q.append(torch.maximum(average, lowest) / torch.maximum(average, lowest).sum())
    assert 0 < below < 12
    log_ratio = head(head.zs).log_softmax(1) - torch.stack(q).log()
    got = conditional_permutation_cmi(head, head.zs, 0, head.y, weights).per_sample
    assert_close(got, log_ratio[torch.arange(n), head.y])


def test_without_other_modalities_every_other_sample_weighs_the_same():
    weights = conditional_weights([normal((30, 2), generator())], 0)
    assert_close(weights, (1 - torch.eye(30).double()) / 29)


def test_kernel_features_of_three_values_have_three_directions():
    x = torch.arange(30, dtype=torch.float64)[:, None] % 3
    features = _kernel_features(x, generator())
    assert features.shape == (30, 3)
    assert_close(features @ features.T, (-((x - x.T) ** 2)).exp())  # 1 is the median of the squared distances


def test_twenty_samples_or_cases_are_enough():
    zs, y = gaussian(40, generator(), 0.0)
    pvalue = permutation_test([z[:20] for z in zs], 0, y[:20], reps=9, generator=generator()).pvalue
    assert pvalue in [k / 10 for k in range(1, 11)]
    assert len(permutation_test(zs, 0, y, reps=9, max_samples=20, generator=generator()).null) == 9
    assert len(permutation_test(zs, 0, y, reps=9, groups=torch.arange(40) % 20, generator=generator()).null) == 9
    with pytest.raises(ValueError, match="19 different ids, expected at least 20"):
        permutation_test(zs, 0, y, reps=9, groups=torch.arange(40) % 19)


def test_copies_of_samples_are_pointed_out():
    zs, y = gaussian(50, generator(), 0.0)
    zs, y = [torch.cat([z, z]) for z in zs], torch.cat([y, y])
    with pytest.warns(UserWarning, match="100 of 100 samples are copies of others"):
        permutation_test(zs, 0, y, reps=9, generator=generator())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        permutation_test(zs, 0, y, reps=9, groups=torch.arange(100) % 50, generator=generator())
        numbers = torch.arange(100)[:, None].expand(100, 2)  # tell the halves apart
        permutation_test([*zs, numbers], 0, y, reps=9, generator=generator())
        few = [zs[0].sign()] * 2  # four different rows
        permutation_test(few, 0, y, reps=9, generator=generator())


@pytest.mark.parametrize("form", ["log_ratio", "jsd"])
@pytest.mark.parametrize("m", [0, (0, 2)])
def test_a_model_of_terms_is_the_function_of_its_features(form, m):
    class Terms(torch.nn.Module):
        def contributions(self, zs):
            return torch.stack([z[:, :3] ** 2 for z in zs])

        def fuse(self, zs):
            return self.contributions(zs).sum(0)

    zs = [torch.randn(7, 4, generator=torch.Generator().manual_seed(s)).double().requires_grad_() for s in range(3)]
    y, model = torch.arange(7) % 3, Terms()
    ours, theirs = (permutation_cmi(f, zs, m, y, form, shared=True) for f in (model, model.fuse))
    torch.testing.assert_close(ours.per_sample, theirs.per_sample)
    for a, b in zip(torch.autograd.grad(ours.mean, zs), torch.autograd.grad(theirs.mean, zs)):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert permutation_cmi(model, zs, m, y, form, memory=1, shared=True).mean.item() == pytest.approx(
            ours.mean.item()
        )


def test_a_first_gradient_of_the_divergence_takes_the_terms_that_are_there(monkeypatch):
    calls, terms = [], permutation._relative_terms
    monkeypatch.setattr(permutation, "_relative_terms", lambda *logits: calls.append(1) or terms(*logits))
    p, q = normal((2, 4, 3), generator()).requires_grad_()
    value = js_divergence_with_logits(p, q).sum()
    (first,) = torch.autograd.grad(value, p, retain_graph=True)
    assert len(calls) == 1
    (again,) = torch.autograd.grad(value, p, create_graph=True)
    assert len(calls) == 2 and torch.equal(first, again) and again.requires_grad


def test_the_gradient_of_the_divergence_may_be_differentiated_again():
    p, q = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (3, 4)))
    assert torch.autograd.gradcheck(js_divergence_with_logits, (p, q))
    assert torch.autograd.gradgradcheck(js_divergence_with_logits, (p, q))


@pytest.mark.parametrize("permutations", ["pairs", "cyclic"])
@pytest.mark.parametrize("scale", [1.0, 40.0, 2000.0])
@pytest.mark.parametrize("m", [0, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("memory", [2**28, 2**10])
def test_a_sum_scores_as_its_answers_do(permutations, scale, m, memory):
    torch.manual_seed(0)
    head, y = ConcatHead((3, 2, 4), 5).double(), torch.randint(5, (33,))
    zs = [scale * torch.randn(33, d, dtype=torch.float64) for d in (3, 2, 4)]
    with torch.no_grad():
        options = dict(permutations=permutations, shared=True, memory=memory)
        found = permutation_cmi(head, zs, m, y, **options).per_sample
        asked = permutation_cmi(lambda rows: head(rows), zs, m, y, **options).per_sample
    torch.testing.assert_close(found, asked, rtol=1e-9, atol=1e-9 * scale)
    assert found.abs().max() > 0 or m == (0, 1, 2)


def test_equal_rows_are_at_distance_zero_however_many_there_are():
    "Above 25 rows torch takes distances by matrix products, so that equal rows lie 1e-16 apart and set the width."
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = torch.as_tensor(rng.normal(size=(5, 3)))
        x = values[torch.as_tensor(np.r_[np.zeros(140, dtype=int), rng.integers(0, 5, 10)])]
        kernel = _gaussian_kernel(x, x, 1.0)
        same = (x[:, None] == x[None]).all(-1)
        squares = (x[:, None] - x[None]).square().sum(-1)
        assert (kernel[same] == 1).all()
        assert torch.allclose(kernel, torch.exp(-squares / squares[squares > 0].median()))
