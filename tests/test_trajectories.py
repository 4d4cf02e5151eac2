"The harness itself: plain training is the loop by hand in every setting, and a setting that is ignored is seen."

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trajectories import SETTINGS, by_hand, same_trajectory

from mmlit.data.loaders import multimodal_dls
from mmlit.learner import multimodal_learner


def plain(setting):
    r = np.random.default_rng(0)
    y = r.integers(0, 3, 200)
    dls = multimodal_dls(
        {"a": r.normal(size=(200, 6)) + y[:, None], "b": r.normal(size=(200, 5))}, y, bs=16, device="cpu"
    )
    torch.manual_seed(0)
    return multimodal_learner(dls, width=8, opt_func=setting.opt_func())


def cross_entropy(model, xs, y, epoch):
    return F.cross_entropy(model(*xs).float(), y)


def smoothed(model, xs, y, epoch):
    return F.cross_entropy(model(*xs).float(), y, label_smoothing=0.1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_plain_training_is_the_loop_by_hand(setting):
    same_trajectory(plain(setting), setting, cross_entropy, epochs=1)


@pytest.mark.parametrize("setting", SETTINGS[1:], ids=str)
def test_another_loss_or_setting_is_another_trajectory(setting):
    with pytest.raises(AssertionError):
        same_trajectory(plain(setting), setting, smoothed, epochs=1)
    learn, batches = plain(setting), [((torch.randn(8, 6), torch.randn(8, 5)), torch.arange(8) % 3)] * 4
    ends = [by_hand(copy.deepcopy(learn.model), [batches], cross_entropy, s) for s in (setting, SETTINGS[0])]
    assert not torch.allclose(*(end.head.linear.weight for end in ends), rtol=1e-4, atol=1e-6)
