"What an audit claims is true: models that are known exactly, over many draws, and how often a false claim is made."

import numpy as np
import pytest
import torch
from torch import nn

from mmlit.audits.audit import audit
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.models import as_fusion
from mmlit.learner import Budget

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]


class Bayes(nn.Module):
    "The posterior of two classes whose Gaussians lie at 0 and 1 in each of the columns with a weight; else 0."

    def __init__(self, *weights):
        super().__init__()
        self.weights = weights

    def forward(self, *xs):
        logit = sum(w * (x - 0.5).sum(1) for w, x in zip(self.weights, xs) if w)
        return torch.stack([torch.zeros_like(logit), logit], 1)


def findings(seed, joint, copied=False, n=4000, **options):
    "Findings on two Gaussians that are independent given the label, or on one that is there twice."
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    a, b = rng.normal(size=(2, n, 3)) + y[:, None]
    xs = {m: x.astype("float32") for m, x in dict(a=a, b=a if copied else b).items()}
    dls = multimodal_dls(MultimodalData("known", xs, y, ["p", "q"]), seed=seed, standardize=False, device="cpu")
    return audit(Bayes(*joint), dls, unimodal=[Bayes(1.0)] * 2, progress=False, **options).advice.findings


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [300, 4000])
def test_independent_modalities_are_never_called_redundant(seed, n):
    found = findings(seed, (1.0, 1.0), n=n)
    assert "redundant" not in found and not any(f.startswith("ignored") for f in found)
    assert "competition" not in found and ("gain" in found or n == 300)


@pytest.mark.parametrize("seed", SEEDS)
def test_identical_modalities_are_redundant_and_small_audits_do_not_say_so(seed):
    assert "redundant" in findings(seed, (0.5, 0.5), copied=True)
    assert "gain open" in findings(seed, (0.5, 0.5), copied=True, n=300)  # 60 test samples exclude nothing
    assert "gain open" in findings(seed, (0.5, 0.5), copied=True, smallest_effect=0.004)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_model_ignores_is_ignored(seed):
    found = findings(seed, (1.0, 0.0))
    assert "ignored b" in found and "ignored a" not in found and "redundant" not in found
    assert "ignored b" not in findings(seed, (1.0, 0.3))


def test_a_wrong_sum_is_competition_and_a_right_one_is_not():
    assert "competition" in findings(0, (1.0, -0.7)) and "none" in findings(0, (1.0, 1.0))


class Net(nn.Module):
    "Two encoders and a head that lets them interact."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 8), nn.Linear(2, 8)
        self.top = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, a, b):
        return self.top(torch.cat([self.a(a), self.b(b)], 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("product", [True, False])
def test_synergy_is_said_of_a_product_and_not_of_a_sum(product, seed, tmp_path):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 2000, 2)).astype("float32")
    y = ((a[:, 0] * b[:, 0] if product else a[:, 0] + b[:, 0]) > 0).astype(int)
    dls = multimodal_dls(MultimodalData("known", dict(a=a, b=b), y, ["p", "q"]), seed=seed, device="cpu")
    torch.manual_seed(seed)
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        for *xs, target in dls.train:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(*xs), target).backward()
            optimiser.step()
    model = as_fusion(net, 2, encoders=["a", "b"])
    found = audit(model, dls, Budget(epochs=20, lr=1e-2), out=tmp_path, workers=1, progress=False).advice.findings
    assert ("synergy" in found) == product and "redundant" not in found


def test_a_short_training_is_said_of_the_recipe_itself_and_a_large_effect_hides_no_poor_yardstick(tmp_path):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 500, 6)).astype("float32")
    y = (left[:, 0] + right[:, 0] > 0).astype(int)
    data = MultimodalData("sum", dict(left=left, right=right), y, ["p", "q"])
    budget = Budget(epochs=1, width=4, lr=1e-5)
    options = dict(data=data, budget=budget, out=tmp_path, workers=1, progress=False)
    plain, coarse = audit(**options), audit(**options, smallest_effect=0.5)
    for found in (plain, coarse):
        assert "joint model of the recipe was still improving in its last epoch (epochs=1)" in str(found)
        assert str(found).count("No yardstick") == str(plain).count("No yardstick") > 0
