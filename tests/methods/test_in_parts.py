"Every function that takes a model takes it inside of what torch puts around one, and says so where it has no parts."

from functools import partial

import pytest
import torch
from common import generator
from torch import nn
from torch.testing import assert_close

from mmlit.audits.strength import competition_strength_of, penultimate_features
from mmlit.fusion.coalitions import absent_features, coalition_logits, pairing_logits, unimodal_logits
from mmlit.fusion.heads import HEADS
from mmlit.fusion.models import EarlyFusion, FusionModel, in_parts
from mmlit.methods.exchange import mipd
from mmlit.methods.mcr import MCRHeads, mcr_loss
from mmlit.methods.modulation import modality_shares, muted_logits
from mmlit.methods.pairings import pairing_log_sums
from mmlit.methods.shapley import valuate
from mmlit.methods.tcmax import TCMaxLoss, TwoClasses, alignment_term, tcmax_model_loss

XS, Y = [torch.randn(6, 3, generator=generator(k)) for k in (0, 1)], torch.arange(6) % 3
ZS = [torch.randn(6, 4, generator=generator(k)).requires_grad_() for k in (2, 3)]
BATCHES = [(*XS, Y)]
ALONE = [lambda x: x, lambda x: 2 * x]
HEADS_OF_MCR, BASE = MCRHeads((4, 4), 3), HEADS["mlp"]((4, 4), 3)

ASKED = dict(
    absent_features=lambda m: absent_features(m, XS, "zero_input"),
    coalition_logits=lambda m: coalition_logits(m, ZS),
    unimodal_logits=lambda m: unimodal_logits(m, ZS),
    pairing_logits=lambda m: pairing_logits(m, ZS),
    pairing_log_sums=lambda m: pairing_log_sums(m, ZS, torch.tensor([[0, 1], [2, 2]])),
    alignment_term=lambda m: alignment_term(m, ZS),
    tcmax_model_loss=lambda m: tcmax_model_loss(m, ZS, Y),
    TCMaxLoss=lambda m: TCMaxLoss()(m, ZS, Y),
    TwoClasses=lambda m: TwoClasses(m, BASE).fuse(ZS),
    mipd=lambda m: mipd(m, ZS),
    mcr_loss=lambda m: mcr_loss(m, ZS, Y, HEADS_OF_MCR).total,
    valuate=lambda m: valuate(m, BATCHES).log_likelihood,
    muted_logits=lambda m: muted_logits(m, XS),
    modality_shares=lambda m: tuple(modality_shares(m, XS)),
    penultimate_features=lambda m: penultimate_features(m, ZS),
    competition_strength_of=lambda m: competition_strength_of(m, ALONE, BATCHES, BATCHES),
)
AROUND = dict(
    parallel=nn.DataParallel,
    compiled=partial(torch.compile, backend="eager"),
    both=lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
)


def made(head):
    torch.manual_seed(0)
    return FusionModel([nn.Linear(3, 4), nn.Linear(3, 4)], HEADS[head]((4, 4), 3))


@pytest.mark.parametrize("head", ["concat", "mlp", "film"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_wrapped_model_answers_as_the_model_itself(ask, around, head):
    model = made(head)
    assert_close(ask(around(model)), ask(model))


@pytest.mark.parametrize("wrong", [nn.Linear(3, 4), nn.DataParallel(nn.Linear(3, 4)), len], ids=str)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_has_no_parts_is_refused_with_the_remedy(ask, wrong):
    with pytest.raises(ValueError, match=r"no model in two parts.*give the model itself, or as_fusion\(model, M\)"):
        ask(wrong)


def test_what_has_fuse_need_not_be_a_module():
    class Mine:
        def fuse(self, zs):
            return zs[0] - zs[1]

    mine, early = Mine(), EarlyFusion(nn.Bilinear(3, 3, 2), 2)
    assert in_parts(mine) is mine and in_parts(early) is early and in_parts(nn.DataParallel(early)) is early
    assert_close(coalition_logits(mine, ZS), torch.stack([0 * ZS[0], ZS[0], -ZS[1], ZS[0] - ZS[1]]))
