"Any input of the losses gives a number that the definition gives too, or an error that names what was wrong."

import itertools
import math

import pytest
import torch
from fuzzing import TIMES, refused, run
from hypothesis import strategies as st

from mmlit.methods.multimodal_loss import MultiModal, init_proxies, multi_proxy_logits, unimodal_accuracy
from mmlit.methods.pairings import draw_pairings
from mmlit.methods.tcmax import (
    TCMax,
    tcmax_loss,
    tcmax_loss_full,
    tcmax_loss_sampled,
    unimodal_losses,
    unimodal_losses_at,
)

shapes = st.lists(st.integers(0, 3), max_size=4)
options = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4), st.floats(), st.sampled_from(["dv", "nwj", "class", "x"])
)


@st.composite
def tensors(draw, dtypes=(torch.float32, torch.float64, torch.int64, torch.bool)):
    g = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    t = (3 * torch.rand(draw(shapes), generator=g)).to(draw(st.sampled_from(list(dtypes))))
    if t.is_floating_point() and t.numel() and draw(st.integers(0, 3)) == 0:
        t.view(-1)[0] = draw(st.sampled_from([float("nan"), 1e30, -1.0]))
    return t


def ask_tcmax(draw):
    f = draw(tensors())
    y = draw(st.one_of(tensors(), st.just(torch.zeros(f.shape[1:2]).long())))
    named = dict(alignment=draw(st.one_of(st.just(1.0), options)), form=draw(st.one_of(st.just("dv"), options)))
    loss = refused(tcmax_loss, f, y, **named)
    refused(unimodal_losses, f, y)
    refused(tcmax_loss_full, f, y, **named)
    if loss is None:
        return
    assert loss.isnan() == (not f.isfinite().all()) or loss.isfinite()
    M, B, C = f.shape
    every = torch.stack(
        [sum(f[m, j] for m, j in enumerate(k)) for k in itertools.product(range(B), repeat=M)]
    )  # (B**M, C)
    if named["form"] == "dv" and named["alignment"] == 1 and f.isfinite().all() and f.abs().max() < 100:
        true = f.sum(0)[torch.arange(B), y.long()].mean()
        torch.testing.assert_close(loss, every.flatten().logsumexp(0) - true - math.log(B), rtol=1e-4, atol=1e-4)


def ask_draws(draw):
    index = refused(draw_pairings, draw(options), draw(options), draw(options))
    assert index is None or (index.ndim == 2 and index.min() >= 0)
    refused(tcmax_loss_sampled, draw(tensors()), draw(tensors()), draw(tensors()), draw(tensors()))
    refused(unimodal_losses_at, draw(tensors()), draw(tensors()), draw(tensors()))


def ask_proxies(draw):
    p, W = draw(tensors()), draw(tensors())
    logits = refused(multi_proxy_logits, p, W, gamma=draw(st.one_of(st.just(0.1), options)))
    assert logits is None or logits.shape == p.shape[1:]
    W = refused(init_proxies, draw(options), draw(options), draw(options))
    assert W is None or W.isfinite().all()
    scores = refused(unimodal_accuracy, draw(tensors()), draw(tensors()))
    assert scores is None or all(((s >= 0) & (s <= 1)).all() for s in scores)


def ask_callbacks(draw):
    made = refused(TCMax, draw(options), draw(options), draw(options), draw(options), draw(options), draw(options))
    if made is not None:
        assert 0 <= made.alignment < math.inf and made.form in ("dv", "nwj") and made.pairings >= 1 and made.memory >= 1
    made = refused(MultiModal, draw(options), draw(options), draw(options), draw(options))
    assert made is None or made.options.get("gamma", 1) > 0


QUESTION = pytest.mark.parametrize(
    "question", [ask_tcmax, ask_draws, ask_proxies, ask_callbacks], ids=lambda q: q.__name__
)


@TIMES
@QUESTION
def test_any_input_is_answered_or_refused(question, times):
    run(lambda data: question(data.draw), 60 * times, st.data())
