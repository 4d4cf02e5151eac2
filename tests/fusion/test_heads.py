"Heads and encoders: every parameter learns, and a feature depends on its sample alone."

import pytest
import torch
from common import linear_model
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.heads import (
    HEADS,
    InUnits,
    PictureEncoder,
    SequenceEncoder,
    SumHead,
    TokenEncoder,
    VectorEncoder,
    encoder_for,
    feature_dims,
)
from mmlit.fusion.models import FusionModel, as_fusion

HEAD = pytest.mark.parametrize("name", HEADS)


@HEAD
def test_every_parameter_of_a_head_gets_a_gradient(name):
    model, xs = linear_model(name, 3)
    model(*xs).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "encoder, x",
    [
        (VectorEncoder(6), torch.randn(5, 6)),
        (PictureEncoder(), torch.randn(5, 3, 16, 16)),
        (SequenceEncoder(2), torch.randn(5, 2, 40)),
        (TokenEncoder(9), torch.randint(0, 9, (5, 4))),
    ],
)
def test_a_feature_does_not_depend_on_its_batch_nor_on_the_mode(encoder, x):
    whole = encoder.train()(x)
    assert_close(encoder.eval()(x), whole)
    assert_close(torch.cat([encoder(row) for row in x.split(1)]), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("inner, has", [("sum", "contributions"), ("film", "conditional_contributions"), ("mlp", None)])
def test_what_stands_around_a_head_has_its_structure_and_no_other(inner, has):
    "Rescaled, in a model and in a foreign module alike; attributes that nobody has stay an AttributeError."

    class Foreign(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            if has:
                setattr(self, has, getattr(model, has))

        def encode(self, *xs):
            return xs

        def fuse(self, zs):
            return self.model.fuse(zs)

    head = HEADS[inner]((4, 5), 1)
    scaled = InUnits(head, 10.0, 2.0)
    model = FusionModel([nn.Identity()] * 2, scaled)
    for outer in (scaled, model, as_fusion(Foreign(model), 2)):
        assert [n for n in ("contributions", "conditional_contributions") if hasattr(outer, n)] == (
            [has] if has else []
        )
        with pytest.raises(AttributeError):
            outer.no_such_thing  # noqa: B018
    assert scaled.dims == (4, 5) and scaled.n_classes == 1


def test_heads_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="feature width in dims must be a whole number, at least 1, got 0"):
        SumHead((3, 0), 2)
    with pytest.raises(ValueError, match="equal feature widths"):
        SumHead((3, 4), 2, shared=True)
    with pytest.raises(ValueError, match="one vector of floats per sample"):
        SumHead((3, 4), 2)((torch.zeros(2, 5, 3), torch.zeros(2, 4)))


def test_feature_dims_give_each_module_its_own_mode_back():
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4).eval(), nn.Dropout())
    assert feature_dims([encoder], [torch.randn(5, 6)]) == (4,)
    assert [m.training for m in encoder.modules()] == [True, True, False, True]
    assert encoder[1].num_batches_tracked == 0

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no answer")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="no answer"):
        feature_dims([broken], [torch.randn(5, 6)])
    assert broken.training


def test_an_unknown_kind_of_input_is_refused_with_what_is_known():
    with pytest.raises(ValueError, match="unknown kind of modality 'tokns' .did you mean 'tokens'"):
        encoder_for("tokns", (3,))
