"One split: chosen on validation data, measured on test data; what does not apply is left out with a note."

import numpy as np
import pytest
import torch
from torch import nn

from mmlit.audits.measure import measure, tabulate
from mmlit.audits.quantities import Quantity
from mmlit.audits.strength import competition_strength_of
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import ConcatHead, SumHead
from mmlit.fusion.models import FusionModel, SelectModalities
from mmlit.scores import Interval


def many(M, y=None, n=200):
    "M modalities of which the fourth tells the label, and untrained models."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n) if y is None else y
    xs = {f"x{m}": (rng.normal(size=(n, 2)) + y[:, None] * (m == 3)).astype("float32") for m in range(M)}
    dls = multimodal_dls(MultimodalData("many", xs, y, ["p", "q"] if y.dtype.kind == "i" else []))
    torch.manual_seed(0)
    joint = FusionModel([nn.Linear(2, 3) for _ in range(M)], ConcatHead([3] * M, dls.c))
    alone = [SelectModalities(FusionModel([nn.Linear(2, 3)], SumHead([3], dls.c)), [m], M) for m in range(M)]
    return joint, alone, dls


def test_many_modalities_are_sampled():
    measured = measure(*many(9))
    found = tabulate([measured.quantities]).sort_index()
    assert not any(k[0] == "coalitions" for k in found.index) and len(found.loc[("shapley", "accuracy")]) == 9
    assert len(found.loc[("robustness", "missing")]) == 9
    assert any("with 9 modalities the quantised table has too many cells" in note for note in measured.notes)


@pytest.mark.parametrize("M, features", [(4, True), (5, False)])
def test_features_are_decomposed_for_few_modalities(M, features):
    measured = measure(*many(M, n=120))
    there = [q for q in measured.quantities if q.name.startswith("of the features")]
    assert bool(there) == features == (not measured.notes)
    assert any(q.section == "probes" for q in measured.quantities)


def test_numbers_have_no_cells():
    measured = measure(*many(2, y=np.random.default_rng(1).normal(size=200)))
    assert measured.notes == [
        "Unique, redundant and synergistic information were left out: they are measured for class labels."
    ]
    assert measured.shapley.shape == (2, len(measured.y)) and set(measured.validation) == set(measured.logits)


def test_one_label_has_no_information():
    joint, alone, dls = many(2)
    y = dls.data.y
    train, zeros = np.concatenate([np.flatnonzero(y == 1), np.flatnonzero(y == 0)[:60]]), np.flatnonzero(y == 0)[60:70]
    split = np.setdiff1d(train, train[:30]), zeros, train[:30]
    measured = measure(joint, alone, multimodal_dls(dls.data, split=split))
    assert "Information was left out: the validation part has one label only." in measured.notes
    assert not any(q.name.startswith("of the answers") for q in measured.quantities)


def test_the_best_unimodal_model_is_chosen_on_validation_data(digits, subject):
    differ = 0
    for seed in range(300):
        joint, alone = subject(seed)

        def right(u, part):
            batches = [tuple(map(torch.cat, zip(*digits[part])))]
            return np.mean([(u(*xs).argmax(1) == y).float().mean().item() for *xs, y in batches])

        with torch.no_grad():
            valid, test = ([right(u, part) for u in alone] for part in (1, 2))
        if (valid[0] > valid[1]) == (test[0] > test[1]):
            continue
        differ += 1
        found = tabulate([measure(joint, alone, digits).quantities])
        assert abs(found.loc[("models", "accuracy", "best unimodal")].value - test[int(np.argmax(valid))]) < 1e-6
        if differ == 2:
            break
    assert differ == 2


def test_strength_is_fitted_on_validation_and_measured_on_test(digits, subject):
    joint, alone = subject(0)
    found = tabulate([measure(joint, alone, digits).quantities])
    concepts = [lambda x, u=u: u.model(x) for u in alone]
    direct = competition_strength_of(joint, concepts, digits[1], digits[2], by_rank=True, standardize=True)
    side_by_side = FusionModel([u.model.encoders[0] for u in alone], ConcatHead((8, 8), 10))
    base = competition_strength_of(side_by_side, concepts, digits[1], digits[2], by_rank=True, standardize=True)
    for m, d, b in zip(("left", "right"), direct, base):
        assert abs(found.loc[("competition strength", "joint", m)].value - d) < 1e-4
        assert abs(found.loc[("competition strength", "side by side", m)].value - b) < 1e-4
        without = found.loc[("coalitions", "accuracy", dict(left="right", right="left")[m])].value
        missing = found.loc[("coalitions", "accuracy", "left + right")].value - without
        assert abs(found.loc[("robustness", "missing", m)].value - missing) < 1e-9


def test_a_head_without_a_last_layer_has_no_strength(digits, subject):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 10))

        def forward(self, zs):
            return (zs[0] * zs[1]) @ self.w

    joint, alone = subject(0)
    measured = measure(FusionModel(joint.encoders, Product()), alone, digits)
    assert len(measured.notes) == 1 and measured.notes[0].startswith("Competition strength was left out: ")
    assert not any(q.section == "competition strength" for q in measured.quantities)


def test_each_model_is_asked_once_about_the_held_out_samples(digits, subject):
    joint, alone = subject(0)
    seen = [0, 0]
    for m, u in enumerate(alone):
        u.model.encoders[0].register_forward_hook(lambda module, args, z, m=m: seen.__setitem__(m, seen[m] + len(z)))
    measure(joint, alone, digits)
    assert seen == [sum(map(len, digits.split))] * 2  # training samples for the probe, the others once


def test_quantities_that_a_later_split_lacks_are_over_the_others():
    a, b = (Quantity("s", name, "", np.arange(5.0)) for name in "ab")
    table = tabulate([[a, b], [a._replace(values=a.values + 1)]])
    assert table.loc[("s", "a", ""), "value"] == 2.5 and table.loc[("s", "b", ""), "value"] == 2.0
    assert np.isnan(table.loc[("s", "b", ""), "low"])


def test_order_notes_and_intervals_of_their_own_are_kept():
    given = Interval(0.5, 0.0, 2.0)
    rows = [
        Quantity("s", "a", "", np.ones(4), given=given, note="careful"),
        Quantity("s", "b", "", np.arange(4.0)),
        Quantity("s", "c", "", np.ones((4, 2)), lambda mean: np.abs(mean).sum(1, keepdims=True)),
    ]
    table = tabulate([rows])
    assert [k[1] for k in table.index] == ["a", "b", "c"] and list(table.note) == ["careful", "", ""]
    assert tuple(table.iloc[0][["value", "low", "high"]]) == given and table.loc[("s", "c", ""), "value"] == 2.0
    assert tabulate([[rows[0], rows[2]]]).n.tolist() == [4, 4]  # no plain mean among them


@pytest.mark.parametrize("grouped", [False, True])
def test_scores_of_samples_that_lack_a_modality_count_these_samples(grouped):
    rng, (joint, alone, plain) = np.random.default_rng(2), many(2, n=300)
    there = rng.random((300, 2)) > 0.3
    there[~there.any(1), 0] = True
    groups = rng.integers(0, 150, 300) if grouped else None
    data = MultimodalData("gaps", plain.data.xs, plain.data.y, ["p", "q"], presence=there, groups=groups)
    dls = multimodal_dls(data)
    table = tabulate([measure(joint, alone, dls).quantities], None if groups is None else groups[dls.split.test])
    held_out, test = np.concatenate(dls.split[1:]), dls.split.test

    def units(rows):
        return len(rows) if groups is None else len(np.unique(groups[rows]))

    of = {"complete": there.all(1)} | {f"without x{m}": ~there[:, m] for m in (0, 1)}
    for name, rows in of.items():
        row, these = table.loc[("missing", "accuracy, joint", name)], test[rows[test]]
        assert (row.n, row.units) == (len(these), units(these)) and len(these) < len(test)
    row = table.loc[("models", "accuracy", "joint")]
    assert (row.n, row.units) == (len(test), units(test))
    row = table.loc[("information", "of the features, redundant", "all")]
    assert (row.n, row.units) == (len(held_out), units(held_out))  # counted on the validation part, too
