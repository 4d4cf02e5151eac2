"The audit as a user meets it: on foreign models, on own data, for regression, with groups, and with wrong input."

import inspect
import json
import random

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from torch import nn

from mmlit import runs
from mmlit.audits.audit import audit
from mmlit.audits.measure import tabulate
from mmlit.audits.report import Audit
from mmlit.benchmark.comparison import compare
from mmlit.data.catalogue import data_digest, load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.data.splits import split_rows
from mmlit.fusion.heads import ConcatHead
from mmlit.fusion.models import FusionModel, as_fusion
from mmlit.learner import Budget, multimodal_learner
from mmlit.monitor import ModalityMonitor

JOINT = "models", "accuracy", "joint"


def width(i):
    return i.high - i.low


def test_four_kinds_of_modality_with_groups(mixed, small, tmp_path):
    found = audit(data=mixed(), budget=small, out=tmp_path, progress=False)
    assert "in whole groups" in found.facts["intervals"] and len(found.modalities) == 4
    assert len([k for k in found.table.index if k[:2] == ("coalitions", "accuracy")]) == 16
    assert np.isfinite(found.table[["value", "low", "high"]].to_numpy(float)).all()
    assert (found.table.low <= found.table.value + 1e-9).all() and (found.table.value <= found.table.high + 1e-9).all()
    page = found.to_html(tmp_path / "page.html").read_text()
    assert page.count("<img") == 6 and "groups stay on one side" in page
    samples = found.table.sort_index().loc[("shapley", "log likelihood")].value.sum()
    full = found.get("coalitions", "log likelihood", " + ".join(found.modalities))
    whole = full.mean - found.get("coalitions", "log likelihood", "nobody").mean
    assert abs(samples - whole) < 1e-6  # Shapley values share out what the full model gains over nobody


def test_group_intervals_are_wider(copies, small, tmp_path):
    "Four copies of each sample: as groups they are one sample."
    grouped = audit(data=copies(100), budget=small, out=tmp_path, progress=False)
    plain = tabulate([grouped.first.quantities])
    assert width(grouped.get(*JOINT)) > 1.6 * width(plain.loc[JOINT])


def test_groups_widen_the_intervals_of_a_fixed_model_too(copies, tmp_path):
    dls = multimodal_dls(copies(80))
    learn = multimodal_learner(dls, width=4)
    found = audit(learn, budget=Budget(epochs=1, width=4), seeds=5, out=tmp_path, progress=False)
    plain = tabulate([found.first.quantities]).loc[JOINT]
    assert width(found.get(*JOINT)) > 1.6 * width(plain)


def test_regression(mixed, tmp_path):
    budget = Budget(epochs=8, width=8, lr=1e-2)
    found = audit(data=mixed(regression=True), budget=budget, out=tmp_path, progress=False)
    sections = found.table.index.get_level_values(0)
    assert found.score == "r2" and "probes" in sections and "oracle" not in sections
    assert found.get("models", "r2", "joint").mean > 0.1 and "of r2" in str(found.advice)
    assert found.get("information", "of the answers", "all").mean > 0.1
    assert not any("of the features" in key[1] for key in found.table.index)
    assert any("are measured for class labels" in note for note in found.notes)
    assert found.to_html(tmp_path / "page.html").is_file() and json.dumps(found.to_dict())


def test_a_regression_far_from_zero_is_audited_fairly(mixed, tmp_path):
    data = mixed(n=400, regression=True, groups=False)

    def moved(shift, scale):
        other = MultimodalData(f"shifted {shift}", data.xs, data.y * scale + shift, [])
        return audit(data=other, budget=Budget(epochs=8, width=8, lr=1e-2), out=tmp_path, progress=False)

    found, near = moved(1000, 14), moved(0, 1)
    for name in ("joint", "ensemble", "pretrained", "multi_loss"):
        assert abs(found.get("models", "r2", name).mean - near.get("models", "r2", name).mean) < 0.1
    assert found.advice.use == near.advice.use


def test_five_seeds_are_five_splits_and_corrected_intervals(mixed, tmp_path):
    data, budget = mixed(groups=False).select(["tone", "vector"]), Budget(epochs=1, width=8)
    found = audit(data=data, budget=budget, seeds=5, out=tmp_path, progress=False)
    assert found.facts["seeds"] == [0, 1, 2, 3, 4]
    assert len(found.facts["split"]) == 5 and (found.table.seeds == 5).all() and "Nadeau" in found.facts["intervals"]

    learn = multimodal_learner(multimodal_dls(data), width=8)
    fixed = audit(learn, budget=budget, seeds=5, out=tmp_path, progress=False)
    assert len(fixed.facts["split"]) == 1 and (fixed.table.seeds == 5).all() and "widened" in fixed.facts["intervals"]
    same = fixed.get(*JOINT)  # one model, asked five times: the bootstrap's interval alone
    alone = tabulate([fixed.first.quantities]).loc[JOINT]
    assert np.allclose([same.low, same.high], [alone.low, alone.high])


def test_seeds_are_how_many_or_which(mixed, tmp_path):
    data, budget = mixed(groups=False).select(["tone", "vector"]), Budget(epochs=1, width=4)

    def audited(seeds):
        return audit(data=data, budget=budget, seeds=seeds, out=tmp_path, workers=1, progress=False)

    two, which, other = audited(2), audited((0, 1)), audited([3])
    assert two.facts["seeds"] == which.facts["seeds"] == [0, 1] and other.facts["seeds"] == [3]
    assert two.table.equals(which.table) and other.facts["split"][0] not in two.facts["split"]


def test_a_seed_that_cannot_be_trained_is_left_out_and_said(tmp_path, monkeypatch):
    rng, train, bad = np.random.default_rng(0), runs.train_run, {0}
    data = MultimodalData("few", dict(a=rng.normal(size=(80, 3)), b=rng.normal(size=(80, 3))), np.arange(80) % 2, "pq")

    def fails(run, source, seed, *others):
        if seed in bad and run.name == "pretrained":
            raise FloatingPointError("the loss is nan")
        return train(run, source, seed, *others)

    monkeypatch.setattr(runs, "train_run", fails)
    options = dict(data=data, budget=Budget(epochs=1, bs=16, width=4), out=tmp_path, workers=1, progress=False)
    found = audit(**options, seeds=2)
    note = next(note for note in found.notes if "Left out" in note)
    assert "seed 0." in note and "the loss is nan" in note and found.facts["seeds"] == [1]
    bad.clear()
    alone = audit(**options, seeds=[1])
    assert found.table.equals(alone.table) and found.notes == [note, *alone.notes]
    bad.update([3, 4])
    with pytest.raises(runs.RunsFailed, match="the loss is nan"):
        audit(**options, seeds=[3, 4])


def test_an_audit_leaves_the_model_alone(digits, small, tmp_path):
    encoders = [nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)) for _ in range(2)]
    model = FusionModel(encoders, ConcatHead((8, 8), 10)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    audit(model, digits, small, out=tmp_path, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_an_audit_leaves_the_random_state_alone_and_equal_seeds_count_once(mixed, small, tmp_path):
    data, state, exact = mixed(groups=False), torch.get_rng_state(), torch.backends.cudnn.deterministic
    found = audit(data=data, budget=small, seeds=[0, 0], out=tmp_path, workers=1, progress=False)
    assert torch.equal(state, torch.get_rng_state()) and torch.backends.cudnn.deterministic == exact
    assert found.facts["seeds"] == [0]


def test_an_audit_goes_on_where_it_stopped(digits, small, subject, tmp_path):
    joint, _ = subject(0)
    first = audit(joint, digits, small, out=tmp_path, progress=False)
    stored = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert len(stored) == 6  # two modalities, pretrained, multi_loss, interacting, additive
    max(stored).unlink()
    again = audit(joint, digits, small, out=tmp_path, progress=False)
    assert [p for p in stored if p.stat().st_mtime_ns != stored[p]] == [max(stored)]
    assert again.table.equals(first.table)


def test_a_learner_brings_loaders_epochs_and_curves(digits, tmp_path):
    learn = multimodal_learner(digits, width=4, cbs=ModalityMonitor())
    with learn.no_bar(), learn.no_logging():
        learn.fit(3)
    found = audit(learn, out=tmp_path, progress=False)
    assert found.facts["budget"]["epochs"] == 3 and found.facts["budget"]["bs"] == digits.train.bs
    assert found.curves == learn.modality_monitor.history and len(found.curves["only left"]) == 3
    fresh = multimodal_learner(digits, width=4)
    named = audit(fresh, budget=Budget(epochs=1, bs=7), out=tmp_path, progress=False)
    assert named.facts["budget"]["epochs"] == 1 and named.facts["budget"]["bs"] == digits.train.bs
    assert named.curves is None


def test_a_recipe_is_watched_by_itself(mixed, tmp_path):
    data = mixed(groups=False).select(["tone", "vector"])
    found = audit(data=data, budget=Budget(epochs=2, width=4), out=tmp_path, progress=False)
    assert found.subject == "The recipe" and set(found.curves) == {"only tone", "only vector"}
    assert all(len(v) == 2 for v in found.curves.values())


def test_unimodal_models_with_the_same_encoders_show_no_gap(digits, subject):
    joint, _ = subject(0)
    plain = [nn.Sequential(e, nn.Linear(8, 10)) for e in joint.encoders]
    found = audit(joint, digits, unimodal=plain, progress=False)
    assert any("without named encoders" in note for note in found.notes)
    assert not any(k[0] == "probes" for k in found.table.index)
    wrapped = [as_fusion(u, 1, encoders=["0"]) for u in plain]
    named = audit(joint, digits, unimodal=wrapped, seeds=3, progress=False)
    assert all(named.get("probes", "alone minus joint", m).mean == 0 for m in ("left", "right"))
    assert named.facts["seeds"] == [0]  # nothing is trained: every seed would say the same


@pytest.mark.cuda
def test_on_a_gpu(small, tmp_path):
    dls = multimodal_dls(load_dataset("digits"), device="cuda")
    learn = multimodal_learner(dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert isinstance(audit(learn, budget=small, out=tmp_path, progress=False), Audit)


@pytest.mark.parametrize("head", ["concat", "film"])
def test_groups_that_are_few_are_warned_about(head, tmp_path):
    rng, y = np.random.default_rng(0), np.arange(120) % 2
    xs = dict(a=rng.normal(size=(120, 3)), b=rng.normal(size=(120, 3)))
    data = MultimodalData("few", xs, y, ["p", "q"], groups=np.arange(120) // 6)
    budget = Budget(epochs=1, bs=8, width=4, head=head)
    recipe = audit(data=data, budget=budget, out=tmp_path, progress=False)
    assert recipe.notes[0] == (
        "The test part has only 4 groups: intervals that resample them are too narrow to be trusted. "
        "Use seeds=5, whose intervals are over splits."
    )
    over_splits = audit(data=data, budget=budget, seeds=2, out=tmp_path, progress=False)
    assert not any("groups" in note for note in over_splits.notes)
    learn = multimodal_learner(multimodal_dls(data), head=head, width=4)
    fixed = audit(learn, budget=budget, seeds=2, out=tmp_path, progress=False)
    assert fixed.notes[0].endswith("Cross-validate over groups.")


# ---- wrong input is said before anything is trained


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(absent="typo"), "unknown stand-in"),
        (dict(absent="learned"), "learn_absent"),
        (dict(absent="mean_feature"), "depend on the others"),
        (dict(seeds=[]), "no seed"),
        (dict(seeds="a"), "how many, such as 5, or which, such as .0, 1, 2.; got 'a'"),
        (dict(seeds=1.5), "got 1.5"),
        (dict(seeds=[0, -1]), "got .0, -1."),
        (dict(seeds=True), "got True"),
        (dict(workers=0), "workers is how many"),
        (dict(workers="all"), "workers is how many"),
        (dict(encoders=[nn.Linear(2, 2)]), "encoders is a function"),
        (dict(unimodal=nn.Linear(2, 2)), "unimodal is a sequence"),
        (dict(smallest_effect=-0.1), "a number above 0"),
        (dict(smallest_effect=dict(accuracies=0.1)), "did you mean 'accuracy'"),
        (dict(seeds=0), "no seed"),
        (dict(budget="full"), "budget is a Budget, such as Budget.epochs=25., got 'full'; for five splits.*seeds=5"),
        (dict(budget=Budget(epochs=0)), "epochs of a budget must be a whole number, at least 1, got 0"),
        (dict(budget=Budget(head="concta")), "concat"),
        (dict(data="digits"), "pass its loaders"),
        (dict(data=DataLoaders()), "do not say how they were split"),
        (dict(data=[1, 2]), "expected loaders of multimodal_dls, .* got list"),
        (dict(unimodal=[nn.Linear(32, 10)]), "1 unimodal models for the 2 modalities"),
        (dict(unimodal=[nn.Linear(32, 9)] * 2), "9 outputs for 10 classes"),
    ],
)
def test_wrong_options_are_said_before_training(tmp_path, options, message, digits, subject):
    with pytest.raises(ValueError, match=message):
        audit(subject(0)[0], **(dict(data=digits, out=tmp_path / "runs", progress=False) | options))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(), "no data given"),
        (dict(data="mfaet"), "mfeat"),
        (dict(data="digits", absent="learned"), "a recipe has zero_feature or zero_input"),
        (dict(data="digits", unimodal=[nn.Linear(32, 10)] * 2), "no joint model"),
    ],
)
def test_wrong_recipes_are_said_before_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        audit(out=tmp_path / "runs", progress=False, **options)
    assert not (tmp_path / "runs").exists()


def test_every_split_is_checked_before_training(tmp_path):
    "A class of five rows is missing from a part of some splits."
    y = np.array([0] * 60 + [1] * 4)
    data = MultimodalData("rare", dict(a=np.zeros((64, 2)), b=np.ones((64, 2))), y, ["p", "q"])
    with pytest.raises(ValueError, match="fewer than 5 folds"):
        audit(data=data, seeds=3, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.layer = answer, nn.Linear(32, 10)

    def forward(self, left, right):
        return self.answer(self.layer(left + right))


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda z: (z, z), r"expected logits \(B, C\) from the model, got tuple"),
        (lambda z: z[:, 0], r"expected logits \(B, C\) from the model, got \(64,\)"),
        (lambda z: z[:, :4], "4 outputs for 10 classes"),
        (
            lambda z: z @ torch.zeros(3, 3),
            r"does not take the inputs of the loaders, of shapes \[\(64, 32\), \(64, 32\)",
        ),
        (lambda z: z * torch.nan, "answer is not finite"),
    ],
)
def test_wrong_answers_are_said_before_training(answer, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        audit(Wrong(answer), digits, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_model_of_other_modalities_is_refused(digits):
    model = FusionModel([nn.Linear(32, 4)] * 3, ConcatHead((4, 4, 4), 10))
    with pytest.raises(ValueError, match="takes 3 modalities, the loaders have 2: .*left"):
        audit(model, digits, progress=False)


def test_named_encoders_must_see_every_path(digits, tmp_path):
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.top = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(48, 10)

        def forward(self, left, right):
            return self.top(torch.cat([self.a(left), self.b(right), left], 1))

    with pytest.raises(ValueError, match="outside of the named encoders"):
        audit(as_fusion(Leaky(), 2, encoders=["a", "b"]), digits, out=tmp_path, progress=False)


def test_what_fuse_leaves_out_is_said(digits):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(8, 10)

        def encode(self, a, b):
            return self.a(a), self.b(b)

        def fuse(self, zs):
            return self.out(torch.cat(zs, 1))

        def forward(self, a, b):
            return -self.fuse(self.encode(a, b))

    with pytest.raises(ValueError, match="not what its forward answers"):
        audit(Turned(), digits, progress=False)


class Clip(nn.Module):
    "Two towers with a parameter of its own, and a division by the length of the features."

    def __init__(self, floor=1e-6):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(16, 10)
        self.scale, self.floor = nn.Parameter(torch.ones(())), floor

    def unit(self, z):
        return z / z.norm(dim=-1, keepdim=True).clamp(min=self.floor)

    def forward(self, a, b):
        return self.out(torch.cat([self.unit(self.left(a)), self.unit(self.right(b))], 1)) * self.scale


@pytest.fixture
def encoders():
    return lambda: [nn.Linear(32, 8) for _ in range(2)]  # processes get it by value


def test_answers_that_are_not_finite_without_a_modality_are_said_before_training(digits, encoders, tmp_path):
    model = as_fusion(Clip(floor=0.0), 2, encoders=["left", "right"])
    with pytest.raises(ValueError, match="not finite where .* zero feature"):
        audit(model, digits, encoders=encoders, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_reset_is_audited_with_encoders(digits, encoders, small, tmp_path):
    model = as_fusion(Clip(), 2, encoders=["left", "right"])
    with pytest.raises(ValueError, match="pass encoders="):
        audit(model, digits, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()
    found = audit(model, digits, small, encoders=encoders, out=tmp_path / "runs", progress=False)
    assert "have the head 'concat'" in found.notes[0] and ("models", "accuracy", "pretrained") in found.table.index
    assert found.notes[0] == (
        "The companions pretrained and multi_loss have the head 'concat' and not the model's own: "
        "Clip '' has parameters and no reset_parameters."
    )


def test_a_data_set_read_in_another_way_is_another_data_set():
    ids = np.random.default_rng(0).integers(0, 9, (40, 6))

    def read(kind):
        data = MultimodalData("ids", dict(a=ids, b=ids), np.arange(40) % 2, ["p", "q"], kinds=dict(a=kind))
        return data_digest(data)

    assert read("vector") != read("tokens")


def test_the_options_stand_in_the_signature():
    known = "model data budget seeds encoders unimodal absent smallest_effect metric out workers progress"
    assert list(inspect.signature(audit).parameters) == known.split()


def test_an_audit_leaves_learner_loaders_and_random_states_as_they_were(mixed, small, tmp_path):
    learn = multimodal_learner(multimodal_dls(mixed(), device="cpu"), width=8, cbs=ModalityMonitor())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)

    def state():
        weights = [p.clone() for p in learn.model.state_dict().values()]
        moments = [v.clone() for s in learn.opt.state.values() for v in s.values() if torch.is_tensor(v)]
        rngs = [loader.rng.getstate() for loader in learn.dls.loaders]
        draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        recorded = [list(v) for v in learn.recorder.values], list(learn.metrics), list(learn.cbs)
        return weights, moments, rngs, draws, recorded, [m.training for m in learn.model.modules()]

    before = state()
    audit(learn, budget=small, out=tmp_path, workers=1, progress=False)
    after = state()
    for tensors in (0, 1):
        assert all(torch.equal(p, q) for p, q in zip(before[tensors], after[tensors], strict=True))
    assert before[2] == after[2] and before[4:] == after[4:] and before[3][2] == after[3][2]
    assert torch.equal(before[3][0], after[3][0]) and (before[3][1] == after[3][1]).all()


def test_the_options_are_explained_by_help():
    for name in inspect.signature(audit).parameters:
        assert f"\n    {name}: " in audit.__doc__


@pytest.mark.parametrize("size", [None, 4, 24])
def test_seeds_with_common_test_rows_have_the_intervals_of_a_comparison(mixed, tmp_path, size):
    "Both factors, rows (or groups, which rotate where they are few) and training parts; not the correction of splits."
    data = mixed(groups=False).select(["tone", "vector"])
    groups = None if size is None else np.arange(len(data)) // size
    data = MultimodalData("mixed", data.xs, data.y, data.classes, groups)
    budget = Budget(steps=10, width=8, n_train=30, n_test=60)
    given = dict(seeds=4, budget=budget, out=tmp_path, workers=1, progress=False)
    found, compared = audit(data=data, **given), compare(data, ["ensemble", "joint"], **given)
    assert "test rows together" in found.facts["intervals"] and "Nadeau" not in found.facts["intervals"]
    value, difference = compared.intervals("mixed")["joint"]
    assert found.get(*JOINT) == pytest.approx(value)
    splits = [split_rows(data, seed, n_train=30, n_test=60) for seed in range(4)]
    tested = np.unique(np.concatenate([split.test for split in splits]))
    units = len(tested if groups is None else np.unique(groups[tested]))
    half = max(difference.high - difference.mean, 5 / units)  # five units that agree show nothing
    wide = found.get("differences", "accuracy", "joint minus ensemble")
    assert wide == pytest.approx((difference.mean, difference.mean - half, difference.mean + half))
    shares = found.table[found.table.index.get_level_values(1).isin(["accuracy", "ECE", "balanced accuracy"])]
    shares = shares[shares.index.get_level_values(0).isin(["models", "coalitions"])]
    assert len(shares) > 10 and shares.low.min() >= 0 and shares.high.max() <= 1
