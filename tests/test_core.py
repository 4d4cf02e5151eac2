"What every module leans on: names, numbers, gradients, batches, and tools that leave no trace."

import copy
import math
import random

import numpy as np
import pytest
import torch
from common import generator
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmlit.core import (
    at_least_float32,
    batch_parts,
    check_features,
    device_of,
    eval_mode,
    is_additive,
    is_conditional,
    keep_random_state,
    log_likelihood,
    may_read,
    one_of,
    scale_grad,
)
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import FusionModel

# ---- names


@pytest.mark.parametrize("known", [("sum", "film"), ["sum", "film"], {"sum": 1, "film": 2}])
def test_what_is_known_comes_back(known):
    assert one_of("head", "film", known) == one_of("head", "film", iter(known)) == "film"


def test_what_is_unknown_is_named_with_what_is_known_and_a_guess():
    with pytest.raises(ValueError, match=r"^unknown head 'flim' \(did you mean 'film'\?\); known: sum, film$"):
        one_of("head", "flim", ("sum", "film"))
    with pytest.raises(ValueError, match="^unknown head 'transformer'; known: sum, film$"):
        one_of("head", "transformer", ("sum", "film"))


@pytest.mark.parametrize("value", [None, 3, "", ["sum"]])
def test_what_is_no_name_is_refused_too(value):
    with pytest.raises(ValueError, match="unknown head"):
        one_of("head", value, ("sum", "film"))


# ---- numbers


@pytest.mark.parametrize(
    "given, wanted",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_floats_are_widened_and_never_narrowed(given, wanted):
    x = torch.randn(3, 2, generator=generator()).to(given)
    assert at_least_float32(x).dtype == wanted and torch.equal(at_least_float32(x), x.to(wanted))
    assert log_likelihood(x, torch.tensor([0, 1, 1])).dtype == wanted


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_log_likelihood_is_minus_the_cross_entropy(shape):
    logits = 3 * torch.randn(*shape, 6, 4, generator=generator(), dtype=torch.float64)
    y = torch.randint(0, 4, (6,), generator=generator(1))
    got = log_likelihood(logits, y)
    assert got.shape == (*shape, 6)
    for part, of in zip(logits.reshape(-1, 6, 4), got.reshape(-1, 6)):
        assert_close(of, -F.cross_entropy(part, y, reduction="none"))
    labels = y.expand(*shape, 6)
    assert torch.equal(log_likelihood(logits, labels), got)


def test_log_likelihood_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e30, 0.0], [0.0, 1e30]])
    assert torch.equal(log_likelihood(logits, torch.tensor([0, 0])), torch.tensor([0.0, -1e30]))


# ---- the gradient


@pytest.mark.parametrize("k", [1, 0.0, -1.0, 0.3, torch.tensor(-0.5), torch.tensor([2.0, 0.0, -1.0])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scale_grad_is_the_identity_with_a_scaled_gradient(k, dtype):
    x = torch.tensor([[1.0, -2.0, 1e-30], [3.3, 1e30, 0.0]], dtype=dtype, requires_grad=True)
    assert torch.equal(scale_grad(x, k), x)
    (g,) = torch.autograd.grad(scale_grad(x, k).sum(), x)
    assert_close(g, (torch.ones(2, 3) * k).to(dtype))
    assert g.dtype == dtype


def test_scale_grad_passes_infinity():
    x = torch.tensor([1.0, -1e30, math.inf], requires_grad=True)
    y = scale_grad(x, 0.25)
    assert torch.equal(y, x)
    y.backward(torch.ones(3))
    assert torch.equal(x.grad, torch.full((3,), 0.25))


def test_scale_grad_differentiates_twice_and_under_vmap():
    x = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)
    (g,) = torch.autograd.grad((scale_grad(x, 3.0) ** 3).sum(), x, create_graph=True)
    assert_close(g, 9 * x**2)
    assert_close(torch.autograd.grad(g.sum(), x)[0], 6 * x.detach() * 9)
    assert_close(torch.func.vmap(torch.func.grad(lambda v: scale_grad(v, -2.0) ** 2))(x.detach()), -4 * x.detach())


def test_scale_grad_takes_no_gradient_itself_and_rejects_a_wrong_shape():
    k = torch.tensor(2.0, requires_grad=True)
    assert torch.autograd.grad(scale_grad(torch.ones(3, requires_grad=True), k).sum(), k, allow_unused=True) == (None,)
    with pytest.raises(ValueError, match="broadcast"):
        scale_grad(torch.ones(3), torch.ones(2, 3))


# ---- features and batches


def test_features_come_back_as_a_tuple():
    zs = [torch.zeros(2, 3), torch.zeros(2, 5)]
    got = check_features(zs, dims=(3, 5))
    assert isinstance(got, tuple) and all(a is b for a, b in zip(got, zs))


@pytest.mark.parametrize(
    "zs, dims, match",
    [
        ([], None, "at least one"),
        ([torch.zeros(2, 3), 4.0], None, "one feature tensor per modality"),
        ([torch.zeros(())], None, "one feature tensor per modality"),
        ([torch.zeros(2, 3), torch.zeros(4, 3)], None, "batch size"),
        ([torch.zeros(2, 3)], (3, 4), "2 modalities"),
        ([torch.zeros(2, 3), torch.zeros(2, 5)], (3, 4), "widths"),
    ],
)
def test_features_that_do_not_fit_are_refused(zs, dims, match):
    with pytest.raises(ValueError, match=match):
        check_features(zs, dims)


@pytest.mark.parametrize("form", [lambda xs, y: (*xs, y), lambda xs, y: (xs, y), lambda xs, y: [list(xs), y, "more"]])
def test_both_forms_of_a_batch_have_the_same_parts(form):
    xs, y = (torch.zeros(4, 2), torch.ones(4, 3)), torch.arange(4)
    for device in None, "cpu", torch.device("cpu"):
        got, labels = batch_parts(form(xs, y), 2, device)
        assert isinstance(got, tuple) and all(torch.equal(a, b) for a, b in zip(got, xs)) and torch.equal(labels, y)


def test_batches_that_do_not_fit_are_refused():
    xs, y = (torch.zeros(4, 2), torch.ones(4, 3)), torch.arange(4)
    with pytest.raises(ValueError, match="3 inputs"):
        batch_parts((xs, y), 3)
    with pytest.raises(ValueError, match="2 inputs and labels, got 2 inputs and 0 more"):
        batch_parts(xs, 2)
    with pytest.raises(ValueError, match="2 inputs"):
        batch_parts((), 2)


# ---- leaving no trace


def mixed_modes():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3), nn.Dropout())).train()
    model[1].eval()
    return model


def modes(model):
    return [m.training for m in model.modules()]


def test_each_module_gets_its_own_mode_back():
    model = mixed_modes()
    before, state = modes(model), copy.deepcopy(model.state_dict())
    with eval_mode(model) as same:
        assert same is model and not any(modes(model)) and torch.is_grad_enabled()
        model(torch.randn(5, 3))
    assert modes(model) == before and set(before) == {True, False}
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_modes_come_back_after_an_error_and_from_within():
    model = mixed_modes()
    before = modes(model)
    with pytest.raises(KeyError), eval_mode(model):
        with eval_mode(model):
            pass
        assert not any(modes(model))
        raise KeyError
    assert modes(model) == before


def draw():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_draws_inside_do_not_move_the_states_outside():
    with keep_random_state():
        first = draw()
        with keep_random_state():
            second = draw()
        assert draw() == second != first
    assert draw() == first


def test_random_state_comes_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), keep_random_state():
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_state_of_a_cuda_device_comes_back():
    with keep_random_state("cuda"):
        first = torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), first)
    assert device_of(nn.Linear(2, 2).cuda()).type == "cuda"


# ---- what a model is


def test_device_is_that_of_the_first_parameter_or_buffer():
    buffer_only = nn.Module()
    buffer_only.register_buffer("b", torch.zeros(1, device="meta"))
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(buffer_only) == device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.Sequential(nn.Linear(2, 2), buffer_only)) == torch.device("cpu")


@pytest.mark.parametrize("head", HEADS)
def test_a_model_can_do_what_its_head_can(head):
    model = FusionModel([nn.Linear(3, 6), nn.Linear(4, 6)], HEADS[head]((6, 6), 3))
    assert is_additive(model) == is_additive(model.head) == (head in ("sum", "concat"))
    assert is_conditional(model) == is_conditional(model.head) == (head in ("film", "gated"))


def test_values_are_not_read_of_another_device_nor_in_a_graph():
    assert may_read(torch.ones(2)) and not may_read(torch.ones(2, device="meta"))
    compiled = torch.compile(lambda x: x + 1 if may_read(x) else x + 2, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 2
