"Drawn pairings: each of the false ones before any comes again, none that is true, and their scores in chunks."

from itertools import product

import pytest
import torch
from common import generator
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.heads import MLPHead
from mmlit.fusion.models import FusionModel
from mmlit.methods import pairings
from mmlit.methods.pairings import bounded_pairings, draw_pairings, pairing_log_sums


def rows(index):
    return sorted(map(tuple, index.tolist()))


def false_pairings(batch, n_modalities):
    return [p for p in product(range(batch), repeat=n_modalities) if len(set(p)) > 1]


@pytest.mark.parametrize("batch, n_modalities", [(2, 2), (2, 3), (3, 2), (4, 3), (5, 2), (2, 5)])
def test_shifts_are_all_false_pairings_before_any_comes_again(batch, n_modalities):
    every = false_pairings(batch, n_modalities)
    for times in (1, 2, 3):
        index = draw_pairings(batch, n_modalities, times * len(every), "shifts", generator(times))
        assert rows(index) == sorted(times * every)
    some = draw_pairings(batch, n_modalities, len(every) - 1, "shifts", generator())
    assert len(set(rows(some))) == len(some) == len(every) - 1
    one_more = draw_pairings(batch, n_modalities, len(every) + 1, "shifts", generator())
    assert len(one_more) == len(every) + 1 and set(rows(one_more)) == set(every)


@pytest.mark.parametrize("batch, n_modalities", [(3, 3), (2, 4), (4, 3)])
def test_shifts_that_are_too_many_for_a_list_are_never_true_either(batch, n_modalities, monkeypatch):
    monkeypatch.setattr(pairings, "_LISTED", 0)
    index = draw_pairings(batch, n_modalities, 2000 * batch, "shifts", generator())
    assert set(rows(index)) == set(false_pairings(batch, n_modalities))
    for modality in index.T:  # blocks of permutations still
        assert (modality.view(2000, batch).sort(1).values == torch.arange(batch)).all()


@pytest.mark.parametrize("batch, n_modalities, listed", [(2, 17, 2**16), (2, 18, 2**17), (2**16 + 1, 2, 2**16 + 1)])
def test_a_list_of_shifts_is_made_up_to_65536_or_the_batch(batch, n_modalities, listed, monkeypatch):
    "As many as a list holds are distinct; of more, no list is made."
    asked, permute = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **options: asked.append(n) or permute(n, **options))
    shifts = pairings._shifts(batch, n_modalities, min(batch ** (n_modalities - 1), 2**16) - 1, generator())
    assert shifts.min() >= 0 and shifts.max() < batch and (shifts != 0).any(1).all()
    if listed > max(2**16, batch):
        assert asked == []
    else:
        assert asked == [listed - 1]
        places = batch ** torch.arange(n_modalities - 1)
        assert len((shifts * places).sum(1).unique()) == len(shifts)


@pytest.mark.parametrize("wrong", [(0, 2, 3), (3, 0, 3), (3, 2, 0), (-1, 2, 3)])
@pytest.mark.parametrize("how", ["blocks", "shifts", "independent"])
def test_nothing_to_pair_is_refused(wrong, how):
    with pytest.raises(ValueError, match=f"at least one sample, modality and pairing, got {wrong[0]}, {wrong[1]}, "):
        draw_pairings(*wrong, how)


def test_shifts_need_two_samples_and_two_modalities():
    for batch, n_modalities in ((1, 2), (2, 1)):
        with pytest.raises(ValueError, match=f"batch of {batch} and {n_modalities} have no false pairing"):
            draw_pairings(batch, n_modalities, 1, "shifts")
    assert rows(draw_pairings(2, 2, 2, "shifts")) == [(0, 1), (1, 0)]


def test_all_pairings_are_taken_where_they_are_allowed_and_as_many_as_are_allowed_elsewhere():
    every = list(product(range(3), repeat=2))
    index, false = bounded_pairings(3, 2, 9)
    assert rows(index) == every and not false
    index, false = bounded_pairings(3, 2, 8, generator())
    assert rows(index) == false_pairings(3, 2) and false  # six, the three true ones come on top
    index, false = bounded_pairings(3, 2, 4, generator())
    assert len(index) == 4 and set(rows(index)) <= set(false_pairings(3, 2)) and false
    index, false = bounded_pairings(3, 3, 26, generator())
    assert torch.equal(index, draw_pairings(3, 3, 26, "blocks", generator())) and not false


@pytest.mark.parametrize(
    "wrong, message",
    [((4, 2, 0), "most must be"), ((4, 0, 9), "n_modalities must be"), ((4, 2.5, 9), "n_modalities must be")],
)
def test_bounds_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        bounded_pairings(*wrong)


def made():
    torch.manual_seed(0)
    model = FusionModel([nn.Identity()] * 2, MLPHead((3, 4), 5)).double()
    zs = [torch.randn(6, d, dtype=torch.float64, generator=generator(d)).requires_grad_() for d in (3, 4)]
    return model, zs, draw_pairings(6, 2, 20, generator=generator())


@pytest.mark.parametrize(
    "memory, most", [(2**28, 20), (20 * 56, 20), (20 * 56 - 1, 19), (3 * 56, 3), (1, 1), (168.0, 3)]
)
def test_scores_are_the_definition_in_chunks_of_the_memory(memory, most):
    "A pairing has 3 + 4 numbers of 8 bytes."
    model, zs, index = made()
    prior, asked = torch.randn(5, dtype=torch.float64, generator=generator(1)), []
    model.head.register_forward_hook(lambda module, given, out: asked.append(len(out)))
    got = pairing_log_sums(model, zs, index, prior, memory)
    assert max(asked) == most and sum(asked) == 20
    expected = torch.stack(
        [(model.fuse([z[[i]] for z, i in zip(zs, row)])[0] + prior).exp().sum().log() for row in index.tolist()]
    )
    assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got.sum(), zs), torch.autograd.grad(expected.sum(), zs)):
        assert_close(a, b)


def test_features_of_different_batches_and_rows_that_are_not_there_are_refused():
    model, zs, index = made()
    for check in (True, False):
        with pytest.raises(ValueError, match="differ in batch size"):
            pairing_log_sums(model, [zs[0], torch.cat([zs[1], zs[1]])], index, check=check)
    with pytest.raises(ValueError, match="rows of a batch of 6, 0 to 5; got 1 to 6"):
        pairing_log_sums(model, zs, index + 1)
