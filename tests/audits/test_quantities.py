"What an audit measures: each quantity against another way to the same number."

import numpy as np
import pytest
import torch
from torch import nn

from mmlit.audits.held import Held, answers, hold, training_part
from mmlit.audits.quantities import (
    answer_information,
    coalition_outcomes,
    coalition_plan,
    feature_information,
    last_features,
    model_quantities,
    probe,
)
from mmlit.audits.robustness import _shake, robustness_quantities
from mmlit.fusion.heads import ConcatHead
from mmlit.fusion.models import EarlyFusion, FusionModel
from mmlit.methods.shapley import valuate


def test_outcomes_are_those_of_valuate(digits):
    torch.manual_seed(0)
    model = FusionModel([nn.Linear(32, 8), nn.Linear(32, 8)], ConcatHead((8, 8), 10))
    present, _ = coalition_plan(2)
    ours, theirs = coalition_outcomes(model, hold(model, digits[2]), present), valuate(model, digits[2])
    assert torch.equal(ours["accuracy"], theirs.correct.double())
    assert torch.allclose(ours["log likelihood"], theirs.log_likelihood, atol=1e-5)


def test_sampled_plans_give_weights_that_share_out(M=9):
    _, weights = coalition_plan(M)
    assert torch.allclose(weights.sum(1), torch.zeros(M, dtype=torch.float64), atol=1e-9)


def test_information_about_repeating_or_few_targets_is_warned_about():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 1)), rng.normal(size=400)

    def told(n, y):
        return answer_information(list(x[:, :n]), y[:n], list(x[:, 200:]), y[200:], ["a", "b"])

    def notes(n, y):
        return {q.note for q in told(n, y)}

    assert notes(200, y) == {""} and "fewer than 50" in notes(40, y).pop() and "repeat" in notes(200, y.round()).pop()
    assert np.abs([q.values.mean() for q in told(200, y)]).max() < 0.03


def test_rare_classes_are_warned_about():
    rng = np.random.default_rng(0)
    x, y = list(rng.normal(size=(2, 200, 3))), np.arange(200) % 2
    rare = np.where(np.arange(200) < 9, 2, y)
    assert {q.note for q in answer_information(x, y, x, y, ["a", "b"])} == {
        "the rarest class has fewer than 10 validation samples"
    }  # the third class, of which there is none
    assert "fewer than 10" in answer_information(x, rare, x, rare, ["a", "b"])[0].note
    common = np.arange(200) % 3
    assert answer_information(x, common, x, common, ["a", "b"])[0].note == ""


def test_read_outs_are_not_fitted_where_they_are_scored():
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(120, 12)) for _ in range(4)]
    found = answer_information(noise[:2], rng.integers(0, 3, 120), noise[2:], rng.integers(0, 3, 120), ["a", "b"])
    # chance is not information; fitted on itself it would be positive
    assert found[0].of == "all" and found[0].values.mean() < 0


@pytest.mark.slow
def test_intervals_of_quantised_information_have_the_right_width():
    rng, values, halves = np.random.default_rng(0), [], []
    for _ in range(30):
        y, flip = rng.integers(0, 2, 400), rng.random((2, 400)) < 0.2
        x = [(y ^ f)[:, None].astype(float) for f in flip]
        redundant = next(q for q in feature_information(x, x, y, ["a", "b"]) if q.name == "of the features, redundant")
        values.append(redundant.given.mean)
        halves.append((redundant.given.high - redundant.given.low) / 2 / 1.96)
    assert 0.6 < np.mean(halves) / np.std(values, ddof=1) < 1.6


def test_groups_are_left_out_together():
    "Copies of a sample in one group are no more information: the interval is that of the samples."
    rng = np.random.default_rng(0)
    y, flip = rng.integers(0, 2, 200), rng.random((2, 200)) < 0.2
    x = [(y ^ f)[:, None].astype(float) for f in flip]
    four = [np.repeat(v, 4, 0) for v in x]
    groups = np.repeat(np.arange(200), 4)

    def width(*args, **options):
        told = feature_information(*args, ["a", "b"], **options)
        interval = next(q.given for q in told if q.name == "of the features, redundant")
        return interval.high - interval.low

    single, grouped = width(x, x, y), width(four, four, np.repeat(y, 4), groups=groups)
    assert np.isclose(grouped, single) and width(four, four, np.repeat(y, 4)) < 0.8 * grouped


def test_models_are_held_as_they_are_and_without_gradients(digits):
    "Mixed modes stay, batch statistics stay, and a batch is not seen by another."
    torch.manual_seed(0)
    encoders = [nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)) for _ in range(2)]
    model = FusionModel(encoders, ConcatHead((8, 8), 10)).train()
    encoders[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    held = hold(model, digits[1])
    assert torch.equal(answers(model, held.zs), answers(model, hold(model, digits[1]).zs))
    assert not any(z.requires_grad for z in held.zs) and len(held.y) == len(digits.split.valid)
    assert not encoders[0].training and encoders[1].training and model.head.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_vectors_are_means_of_tokens_and_flat_pictures():
    zs = torch.randn(5, 3, 4), torch.randn(5, 2, 3, 3), torch.randn(5, 7)
    tokens, picture, vector = Held((), zs, torch.zeros(5)).vectors()
    assert np.allclose(tokens, zs[0].mean(1)) and picture.shape == (5, 18) and np.allclose(vector, zs[2])


def test_the_training_part_is_the_training_part_in_order(digits):
    first = training_part(digits)
    y = torch.cat([batch[-1] for batch in first])
    assert torch.equal(y, torch.as_tensor(digits.data.y[digits.split.train]))
    assert sum(len(batch[-1]) for batch in training_part(digits, limit=70)) == 70


def test_nothing_is_last_in_a_head_without_a_linear_layer():
    model = EarlyFusion(nn.Bilinear(3, 3, 2), 2)
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        last_features(model, (torch.randn(4, 3), torch.randn(4, 3)))


def test_differences_are_of_the_same_samples():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    names = ["unimodal a", "unimodal b", "best unimodal", "ensemble", "joint", "further"]
    found = model_quantities({name: torch.randn(60, 3) for name in names}, y, ["a", "b"])
    rows = {q[:3]: q.values for q in found}
    for (section, name, of), values in rows.items():
        if section != "differences":
            continue
        a, b = of.split(" minus ")
        scores = [
            -rows["models", "log loss", m] if name == "log likelihood" else rows["models", name, m] for m in (a, b)
        ]
        assert np.allclose(values, scores[0] - scores[1])
    assert [q.of for q in found if q[:2] == ("differences", "accuracy")] == [
        "joint minus ensemble",
        "joint minus best unimodal",
        "ensemble minus best unimodal",
        "further minus joint",
        "further minus ensemble",
    ]


def test_regressions_have_neither_log_likelihood_nor_oracle():
    y = torch.randn(50)
    models = ["unimodal a", "unimodal b", "best unimodal", "ensemble", "joint"]
    found = model_quantities({name: torch.randn(50, 1) for name in models}, y, ["a", "b"])
    assert {q.section for q in found} == {"models", "differences"} and {q.name for q in found} == {
        "r2",
        "r1",
        "absolute error",
    }
    z = np.random.default_rng(0).normal(size=(100, 2))
    assert probe(z, z[:, 0], z, z[:, 0]).mean() > 0.99


def test_noise_and_permutations_come_from_the_seed(digits, subject):
    joint, _ = subject(0)
    held = hold(joint, digits[2])
    missing = {m: torch.zeros(len(held.y)) for m in ("left", "right")}

    def told(seed):
        return np.stack([q.values for q in robustness_quantities(joint, held, ["left", "right"], missing, seed)])

    assert np.array_equal(told(0), told(0)) and not np.array_equal(told(0), told(1))
    x = torch.randn(50, 4, dtype=torch.float64)
    assert (
        _shake(x, 0.0, torch.Generator().manual_seed(0)).equal(x) and _shake(x, 1.0, torch.Generator()).dtype == x.dtype
    )
