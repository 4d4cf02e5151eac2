"Models in two parts survive what people do to models: copies, pickles, casts, hooks."

import copy
import pickle

import pytest
import torch
from common import linear_model
from torch import nn
from torch.testing import assert_close

from mmlit.fusion.coalitions import coalition_logits
from mmlit.fusion.heads import HEADS, SumHead
from mmlit.fusion.models import FusionModel, as_fusion

HEAD = pytest.mark.parametrize("name", HEADS)


@HEAD
def test_models_can_be_copied_pickled_and_moved_to_bfloat16(name):
    model, xs = linear_model(name, 2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(twin(*xs), model(*xs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(coalition_logits(model, model.encode(*xs))).all()


def test_the_head_of_a_foreign_module_runs_once_in_training():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.norm, self.out = (
                nn.Linear(3, 4),
                nn.Linear(2, 4),
                nn.BatchNorm1d(8),
                nn.Linear(8, 2),
            )

        def forward(self, a, b):
            return self.out(self.norm(torch.cat([self.left(a), self.right(b)], 1)))

    model = as_fusion(Foreign(), 2, encoders=["left", "right"])
    xs = torch.randn(6, 3), torch.randn(6, 2)
    model(*xs)[:, 0].sum().backward()
    assert model.module.norm.num_batches_tracked == 1 and model.module.left.weight.grad is not None
    twin = Foreign()
    twin.load_state_dict(model.module.state_dict())
    assert_close(model.eval()(*xs), twin.eval()(*xs))


def test_hooks_that_replace_features_may_go_first():
    model, seen = FusionModel([nn.Identity()] * 2, SumHead((3, 3), 2)), []
    model.register_feature_hook(lambda zs: seen.append([z.sum().item() for z in zs]))
    model.register_feature_hook(lambda zs: tuple(0 * z for z in zs), first=True)
    model(torch.ones(2, 3), torch.ones(2, 3))
    assert seen == [[0, 0]]


def test_learned_stand_ins_need_the_widths_of_the_features():
    with pytest.raises(ValueError, match="learn_absent needs the widths"):
        FusionModel([nn.Identity()], nn.Linear(3, 2), learn_absent=True)
    with pytest.raises(ValueError, match="has no submodule 'ear'"):
        as_fusion(nn.Sequential(nn.Linear(2, 2)), 2, encoders=["ear", "0"])
