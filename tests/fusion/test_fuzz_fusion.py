"Any input of the functions of features gives the right answer, or an error that names what was wrong."

import pytest
import torch
from fuzzing import TIMES, refused, run
from hypothesis import strategies as st
from torch import nn

from mmlit.core import check_count, check_features, check_number, log_likelihood, n_rows, one_of
from mmlit.fusion.coalitions import (
    absent_features,
    check_pairings,
    coalition_logits,
    coalitions,
    mask_features,
    pairing_logits,
)
from mmlit.fusion.heads import HEADS, encoder_for
from mmlit.fusion.models import FusionModel

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 6),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 3), max_size=3),
)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw, shape=shapes, dtype=dtypes):
    t = torch.randint(0, 4, draw(shape), generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    t = t.to(draw(dtype))
    if t.is_floating_point() and t.numel() and draw(st.booleans()):
        t.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf"), -1e30]))
    return t


def heads(draw):
    M, B = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    name = draw(st.sampled_from(list(HEADS)))
    if M == 1 and name in ("film", "gated"):
        M = 2
    torch.manual_seed(0)
    model = FusionModel([nn.Identity()] * M, HEADS[name]((3, 2, 4)[:M], 2)).eval()
    zs = [torch.randn(B, d) for d in (3, 2, 4)[:M]]
    if B and draw(st.booleans()):
        zs[draw(st.integers(0, M - 1))][0, 0] = float("nan")
    return model, zs


def ask_numbers(draw):
    value, least = draw(anything), draw(st.sampled_from([0, 1]))
    got = refused(check_count, "x", value, least)
    assert got is None or (got == value and got >= least)
    got = refused(check_number, "x", value)
    assert got is None or (got == value and 0 <= got < float("inf"))
    assert refused(one_of, "x", value, ("a", "b")) in (None, "a", "b")


def ask_rows(draw):
    x = draw(st.one_of(tensors(), st.dictionaries(st.text(max_size=2), tensors(), max_size=2), anything))
    got = refused(n_rows, x)
    assert got is None or got >= 0
    refused(check_features, draw(st.lists(st.one_of(tensors(), anything), max_size=3)))


def ask_likelihood(draw):
    logits, y = draw(tensors(dtype=st.just(torch.float32))), draw(tensors())
    got = refused(log_likelihood, logits, y if y.dtype != torch.bool else y.long())
    if got is not None and logits.isfinite().all():
        assert got.shape == logits.shape[:-1] and (got <= 1e-6).all()


def ask_heads(draw):
    dims, n = draw(st.lists(anything, max_size=3)), draw(anything)
    head = refused(HEADS[draw(st.sampled_from(list(HEADS)))], dims, n)
    if head is not None:
        assert head.dims == tuple(dims) and head.n_classes == n
        refused(head, draw(st.lists(tensors(), min_size=1, max_size=3)))
    kind = draw(st.sampled_from(["vector", "sequence", "picture", "word"]))
    refused(encoder_for, kind, draw(st.lists(st.integers(1, 4), max_size=3)), 4)


def ask_coalitions(draw):
    model, zs = heads(draw)
    assert (got := refused(coalitions, draw(anything))) is None or got.dtype == torch.bool
    present = draw(st.one_of(st.none(), tensors()))
    logits = refused(coalition_logits, model, zs, present, memory=draw(st.sampled_from([1, 64, 2**20])))
    if logits is None:
        return
    present = coalitions(len(zs)) if present is None else present
    assert logits.shape == (len(present), len(zs[0]), 2)
    for s, here in enumerate(present):
        masked = mask_features(zs, here.expand(len(zs[0]), -1))
        torch.testing.assert_close(logits[s], model.fuse(masked), equal_nan=True, rtol=1e-4, atol=1e-5)


def ask_pairings(draw):
    model, zs = heads(draw)
    index = draw(tensors())
    refused(check_pairings, index, len(zs[0]), len(zs))
    logits = refused(pairing_logits, model, zs, index)
    if logits is not None:
        rows = [model.fuse([z[i : i + 1] for z, i in zip(zs, row)]) for row in index.long()]
        torch.testing.assert_close(
            logits, torch.cat([*rows, zs[0].new_empty(0, 2)]), equal_nan=True, rtol=1e-4, atol=1e-5
        )


def ask_stand_ins(draw):
    model, zs = heads(draw)
    kind = draw(st.sampled_from(["zero_feature", "zero_input", "learned", "none"]))
    absent = refused(absent_features, model, zs, kind)
    refused(mask_features, zs, draw(tensors()), draw(st.one_of(st.just(absent), st.lists(tensors(), max_size=3))))


QUESTIONS = [ask_numbers, ask_rows, ask_likelihood, ask_heads, ask_coalitions, ask_pairings, ask_stand_ins]
QUESTION = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.__name__)


@TIMES
@QUESTION
def test_any_input_is_answered_or_refused(question, times):
    run(lambda data: question(data.draw), 60 * times, st.data())
