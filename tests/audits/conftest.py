"Data and models that the tests of audits share."

import numpy as np
import pytest
import torch
from torch import nn

from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import ConcatHead, SumHead
from mmlit.fusion.models import FusionModel, SelectModalities
from mmlit.learner import Budget


@pytest.fixture
def small():
    return Budget(epochs=2, width=8)


@pytest.fixture
def digits():
    return multimodal_dls(load_dataset("digits"), seed=0)


@pytest.fixture
def mixed():
    "`mixed(...)`: a sequence, a picture, words and a vector, in groups of four."

    def make(n=240, classes=3, groups=True, regression=False, seed=0):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, classes, n)
        said = ["red fox", "blue whale", "green frog"]
        words = np.array([said[c] if rng.random() < 0.8 else "grey" for c in y], dtype=object)
        xs = dict(
            tone=rng.normal(size=(n, 2, 20)).astype("float32") + y[:, None, None],
            face=(rng.random((n, 3, 12, 12)) + y[:, None, None, None] / 4).astype("float32"),
            words=words,
            vector=rng.normal(size=(n, 4)).astype("float32"),
        )
        targets = y + rng.normal(size=n) if regression else y
        names = [] if regression else list("abc"[:classes])
        return MultimodalData("mixed", xs, targets, names, np.arange(n) // 4 if groups else None)

    return make


@pytest.fixture
def copies():
    "`copies(n)`: four copies of each of n samples; as groups they are one sample."

    def make(n):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, n)
        xs = dict(a=rng.normal(size=(n, 3)) + 0.7 * y[:, None], b=rng.normal(size=(n, 3)))
        xs = {m: np.repeat(x, 4, 0).astype("float32") for m, x in xs.items()}
        return MultimodalData("copies", xs, np.repeat(y, 4), ["p", "q"], np.repeat(np.arange(n), 4))

    return make


@pytest.fixture(scope="session")
def subject():
    "`subject(seed)`: an untrained joint model and unimodal ones of their own, on the halved digits."

    def make(seed, width=8):
        torch.manual_seed(seed)

        def encoder():
            return nn.Linear(32, width)

        joint = FusionModel([encoder(), encoder()], ConcatHead((width, width), 10))
        alone = [FusionModel([encoder()], SumHead([width], 10)) for _ in range(2)]
        return joint, [SelectModalities(u, [m], 2) for m, u in enumerate(alone)]

    return make
