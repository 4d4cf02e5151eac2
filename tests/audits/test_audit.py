"The audit as a user meets it: on foreign models, on own data, resumed, for regression, with groups, and with wrong input."

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mmlit.audits.audit import audit
from mmlit.audits.companions import fresh_copy
from mmlit.audits.measure import coalition_outcomes, measure, tabulate
from mmlit.audits.quantities import answer_information, coalition_plan, feature_information, hold
from mmlit.audits.report import Audit, print_audit, write_page
from mmlit.audits.strength import competition_strength_of
from mmlit.data.catalogue import data_digest, load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import HEADS, AttentionHead, ConcatHead, SequenceEncoder, SumHead
from mmlit.fusion.models import FusionModel, SelectModalities, as_fusion
from mmlit.learner import Budget, multimodal_learner
from mmlit.methods.multimodal_loss import MultiProxyHead, ScaledSumHead
from mmlit.methods.shapley import valuate

SMALL = Budget(epochs=2, width=8)
COMMAND = Path(sys.executable).parent / "mmlit_audit"


def mixed(n=240, classes=3, groups=True, regression=False, seed=0):
    "A sequence, a picture, words and a vector, in groups of four."
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    words = np.array(
        [["red fox", "blue whale", "green frog"][c] if rng.random() < 0.8 else "grey" for c in y], dtype=object
    )
    xs = dict(
        tone=rng.normal(size=(n, 2, 20)).astype("float32") + y[:, None, None],
        face=(rng.random((n, 3, 12, 12)) + y[:, None, None, None] / 4).astype("float32"),
        words=words,
        vector=rng.normal(size=(n, 4)).astype("float32"),
    )
    return MultimodalData(
        "mixed",
        xs,
        y + rng.normal(size=n) if regression else y,
        [] if regression else list("abc"[:classes]),
        np.arange(n) // 4 if groups else None,
    )


def run(*args, **kwargs):
    return subprocess.run(
        [COMMAND, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs
    )


def test_the_command_prints_writes_and_resumes(tmp_path):
    args = ["--data", "digits", "--epochs", 2, "--width", 8, "--out", tmp_path]
    first = run(*args)
    assert first.returncode == 0, first.stderr
    assert (
        "joint minus ensemble" in " ".join(first.stdout.split())
        and Path(first.stdout.strip().splitlines()[-1].removeprefix("report: ")).is_file()
    )
    told = json.loads((tmp_path / "audit-digits.json").read_text())
    assert told["advice"]["reason"] in " ".join(first.stdout.split()) and told["facts"]["seeds"] == [0]
    stored = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert len(stored) == 6  # two modalities, joint, pretrained, multi_loss, interacting
    max(stored).unlink()
    again = run(*args)
    assert [p for p in stored if p.stat().st_mtime_ns != stored[p]] == [max(stored)]
    assert json.loads((tmp_path / "audit-digits.json").read_text()) == told  # the same digits


@pytest.mark.parametrize(
    "args, message",
    [
        (["--data", "mfaet"], "mfeat"),
        (["--budget", "quick"], "unknown budget"),
        (["--data", "digits", "--epochs", "0"], "epochs >= 1"),
        (["--head", "concta"], "concat"),
        (["--width", "0"], "width >= 1"),
        (["--data", "competition?n=abc"], "competition"),
        (["--data", "watch?width=a"], "watch"),
    ],
)
def test_wrong_input_is_said_before_training(tmp_path, args, message):
    done = run(*args, "--out", tmp_path / "runs")
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_four_kinds_of_modality_with_groups(tmp_path):
    found = audit(data=mixed(), training=SMALL, out=tmp_path, progress=False)
    assert "in whole groups" in found.facts["intervals"] and len(found.modalities) == 4
    assert len([k for k in found.table.index if k[:2] == ("coalitions", "accuracy")]) == 16
    assert np.isfinite(found.table[["value", "low", "high"]].to_numpy(float)).all()
    assert (found.table.low <= found.table.value + 1e-9).all() and (found.table.value <= found.table.high + 1e-9).all()
    page = write_page(found, tmp_path / "page.html").read_text()
    assert page.count("<img") == 6 and "groups stay on one side" in page
    samples = found.table.sort_index().loc[("shapley", "log likelihood")].value.sum()
    whole = (
        found.get("coalitions", "log likelihood", " + ".join(found.modalities)).mean
        - found.get("coalitions", "log likelihood", "nobody").mean
    )
    assert abs(samples - whole) < 1e-6  # Shapley values share out what the full model gains over nobody


def test_group_intervals_are_wider(tmp_path):
    "Four copies of each sample: as groups they are one sample."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    x = rng.normal(size=(100, 3)) + 0.7 * y[:, None]
    data = MultimodalData(
        "copies",
        dict(a=np.repeat(x, 4, 0).astype("float32"), b=np.repeat(rng.normal(size=(100, 3)), 4, 0).astype("float32")),
        np.repeat(y, 4),
        ["p", "q"],
        np.repeat(np.arange(100), 4),
    )
    grouped = audit(data=data, training=SMALL, out=tmp_path, progress=False)
    width = lambda i: i.high - i.low
    measured = [grouped.first.quantities]
    assert width(grouped.get("models", "accuracy", "joint")) > 1.6 * (lambda r: r.high - r.low)(
        tabulate(measured).loc[("models", "accuracy", "joint")]
    )


def test_regression(tmp_path):
    found = audit(
        data=mixed(regression=True), training=Budget(epochs=8, width=8, lr=1e-2), out=tmp_path, progress=False
    )
    assert (
        found.score == "r2"
        and "probes" in found.table.index.get_level_values(0)
        and "oracle" not in found.table.index.get_level_values(0)
    )
    assert found.get("models", "r2", "joint").mean > 0.1 and "of r2" in str(found.advice)
    assert found.get("information", "of the answers", "all").mean > 0.1 and not any(
        "of the features" in key[1] for key in found.table.index
    )
    assert any("are measured for class labels" in note for note in found.notes)
    assert write_page(found, tmp_path / "page.html").is_file() and json.dumps(found.to_dict())


def test_information_about_repeating_or_few_targets_is_warned_about():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 1)), rng.normal(size=400)
    notes = lambda n, y: {
        q.note for q in answer_information(list(x[:, :n]), y[:n], list(x[:, 200:]), y[200:], ["a", "b"])
    }
    assert notes(200, y) == {""} and "fewer than 50" in notes(40, y).pop() and "repeat" in notes(200, y.round()).pop()
    unrelated = [
        q.values.mean() for q in answer_information(list(x[:, :200]), y[:200], list(x[:, 200:]), y[200:], ["a", "b"])
    ]
    assert np.abs(unrelated).max() < 0.03


def test_full_budget_has_five_splits_and_corrected_intervals(tmp_path):
    data = mixed(groups=False).select(["tone", "vector"])
    found = audit(data=data, budget="full", training=Budget(epochs=1, width=8), out=tmp_path, progress=False)
    assert len(found.facts["split"]) == 5 and (found.table.seeds == 5).all() and "Nadeau" in found.facts["intervals"]
    fixed = audit(
        multimodal_learner(multimodal_dls(data), width=8),
        budget="full",
        training=Budget(epochs=1, width=8),
        out=tmp_path,
        progress=False,
    )
    assert len(fixed.facts["split"]) == 1 and (fixed.table.seeds == 5).all() and "widened" in fixed.facts["intervals"]
    same = fixed.get("models", "accuracy", "joint")  # one model, asked five times: the bootstrap's interval alone
    alone = tabulate([fixed.first.quantities]).loc[("models", "accuracy", "joint")]
    assert np.allclose([same.low, same.high], [alone.low, alone.high])


def test_many_modalities_are_sampled(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    data = MultimodalData(
        "nine",
        {f"x{m}": (rng.normal(size=(200, 2)) + y[:, None] * (m == 3)).astype("float32") for m in range(9)},
        y,
        ["p", "q"],
    )
    dls = multimodal_dls(data)
    torch.manual_seed(0)
    joint = FusionModel([nn.Linear(2, 3) for _ in range(9)], ConcatHead([3] * 9, 2))
    alone = [SelectModalities(FusionModel([nn.Linear(2, 3)], SumHead([3], 2)), [m], 9) for m in range(9)]
    found = tabulate([measure(joint, alone, dls).quantities]).sort_index()
    assert not any(k[0] == "coalitions" for k in found.index) and len(found.loc[("shapley", "accuracy")]) == 9
    present, weights = coalition_plan(9)
    assert torch.allclose(weights.sum(1), torch.zeros(9, dtype=torch.float64), atol=1e-9)


def test_outcomes_are_those_of_valuate():
    dls = multimodal_dls(load_dataset("digits"))
    torch.manual_seed(0)
    model = FusionModel([nn.Linear(32, 8), nn.Linear(32, 8)], ConcatHead((8, 8), 10))
    present, _ = coalition_plan(2)
    ours, theirs = coalition_outcomes(model, hold(model, dls[2]), present), valuate(model, dls[2])
    assert torch.equal(ours["accuracy"], theirs.correct.double()) and torch.allclose(
        ours["log likelihood"], theirs.log_likelihood, atol=1e-5
    )


def test_an_audit_leaves_the_model_alone(tmp_path):
    dls = multimodal_dls(load_dataset("digits"))
    model = FusionModel(
        [nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)) for _ in range(2)], ConcatHead((8, 8), 10)
    ).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    audit(model, dls, training=SMALL, out=tmp_path, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(
        m.training for m in model.modules()
    )


def test_companions_have_the_models_own_architecture(tmp_path):
    dls = multimodal_dls(load_dataset("digits"))
    encoder = lambda: nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 6))
    found = audit(
        FusionModel([encoder(), encoder()], ConcatHead((6, 6), 10)), dls, training=SMALL, out=tmp_path, progress=False
    )
    stored = {p.parent.name: torch.load(p, weights_only=False) for p in tmp_path.rglob("*.pt")}
    assert all(
        isinstance(stored[n].encoders[0][1], nn.Tanh) for n in ("pretrained", "multi_loss", "interacting")
    ) and isinstance(stored["unimodal_left"].model.encoders[0][1], nn.Tanh)
    assert not found.notes


def test_named_encoders_must_see_every_path(tmp_path):
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.top = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(48, 10)

        def forward(self, left, right):
            return self.top(torch.cat([self.a(left), self.b(right), left], 1))

    with pytest.raises(ValueError, match="outside of the named encoders"):
        audit(
            as_fusion(Leaky(), 2, encoders=["a", "b"]),
            multimodal_dls(load_dataset("digits")),
            out=tmp_path,
            progress=False,
        )


@pytest.mark.parametrize(
    "module",
    [
        *(head((8, 8), 3) for head in (*HEADS.values(), MultiProxyHead, ScaledSumHead)),
        nn.LSTM(3, 4),
        nn.TransformerEncoderLayer(8, 2),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        nn.Embedding(5, 3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_fresh_copies_are_new(module):
    torch.manual_seed(0)
    new = fresh_copy(module)
    changed = [not torch.equal(p, q) for p, q in zip(module.parameters(), new.parameters()) if p.ndim > 1]
    assert changed and all(changed)


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    dls = multimodal_dls(load_dataset("digits"), device="cuda")
    learn = multimodal_learner(dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert isinstance(learn.audit(training=SMALL, out=tmp_path, progress=False), Audit)


def digits_subject(seed, width=8):
    "An untrained joint model and unimodal ones of their own, on the halved digits."
    torch.manual_seed(seed)
    make = lambda: nn.Linear(32, width)
    return FusionModel([make(), make()], ConcatHead((width, width), 10)), [
        SelectModalities(FusionModel([make()], SumHead([width], 10)), [m], 2) for m in range(2)
    ]


def test_the_best_unimodal_model_is_chosen_on_validation_data():
    dls = multimodal_dls(load_dataset("digits"), seed=0)
    differ = 0
    for seed in range(300):
        joint, alone = digits_subject(seed)
        right = lambda u, part: np.mean(
            [(u(*xs).argmax(1) == y).float().mean().item() for *xs, y in [tuple(map(torch.cat, zip(*dls[part])))]]
        )
        with torch.no_grad():
            valid, test = ([right(u, part) for u in alone] for part in (1, 2))
        if (valid[0] > valid[1]) == (test[0] > test[1]):
            continue
        differ += 1
        found = tabulate([measure(joint, alone, dls).quantities])
        assert abs(found.loc[("models", "accuracy", "best unimodal")].value - test[int(np.argmax(valid))]) < 1e-6
        if differ == 2:
            break
    assert differ == 2


def test_strength_is_fitted_on_validation_and_measured_on_test():
    dls = multimodal_dls(load_dataset("digits"), seed=0)
    joint, alone = digits_subject(0)
    found = tabulate([measure(joint, alone, dls).quantities])
    direct = competition_strength_of(
        joint, [lambda x, u=u: u.model(x) for u in alone], dls[1], dls[2], by_rank=True, standardize=True
    )
    side_by_side = FusionModel([u.model.encoders[0] for u in alone], ConcatHead((8, 8), 10))
    base = competition_strength_of(
        side_by_side, [lambda x, u=u: u.model(x) for u in alone], dls[1], dls[2], by_rank=True, standardize=True
    )
    for m, d, b in zip(("left", "right"), direct, base):
        assert (
            abs(found.loc[("competition strength", "joint", m)].value - d) < 1e-4
            and abs(found.loc[("competition strength", "side by side", m)].value - b) < 1e-4
        )
        missing = (
            found.loc[("coalitions", "accuracy", "left + right")].value
            - found.loc[("coalitions", "accuracy", dict(left="right", right="left")[m])].value
        )
        assert abs(found.loc[("robustness", "missing", m)].value - missing) < 1e-9


def test_read_outs_are_not_fitted_where_they_are_scored():
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(120, 12)) for _ in range(4)]
    found = answer_information(noise[:2], rng.integers(0, 3, 120), noise[2:], rng.integers(0, 3, 120), ["a", "b"])
    assert (
        found[0].of == "all" and found[0].values.mean() < 0
    )  # chance is not information; fitted on itself it would be positive


def test_intervals_of_quantised_information_have_the_right_width():
    rng, values, halves = np.random.default_rng(0), [], []
    for _ in range(30):
        y, flip = rng.integers(0, 2, 400), rng.random((2, 400)) < 0.2
        x = [(y ^ f)[:, None].astype(float) for f in flip]
        unique = next(q for q in feature_information(x, x, y, ["a", "b"]) if q.name == "of the features, redundant")
        values.append(unique.given.mean)
        halves.append((unique.given.high - unique.given.low) / 2 / 1.96)
    assert 0.6 < np.mean(halves) / np.std(values, ddof=1) < 1.6


def test_groups_widen_the_intervals_of_a_fixed_model_too(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    xs = dict(a=rng.normal(size=(80, 3)) + 0.7 * y[:, None], b=rng.normal(size=(80, 3)))
    data = MultimodalData(
        "copies",
        {m: np.repeat(x, 4, 0).astype("float32") for m, x in xs.items()},
        np.repeat(y, 4),
        ["p", "q"],
        np.repeat(np.arange(80), 4),
    )
    dls = multimodal_dls(data)
    found = audit(
        multimodal_learner(dls, width=4),
        budget="full",
        training=Budget(epochs=1, width=4),
        out=tmp_path,
        progress=False,
    )
    grouped, plain = (
        found.get("models", "accuracy", "joint"),
        tabulate([found.first.quantities]).loc[("models", "accuracy", "joint")],
    )
    assert grouped.high - grouped.low > 1.6 * (plain.high - plain.low)


def test_companions_start_where_they_should(tmp_path):
    dls = multimodal_dls(load_dataset("digits"))
    joint, _ = digits_subject(0)
    audit(
        joint, dls, training=Budget(epochs=1, lr=1e-12), out=tmp_path, progress=False
    )  # hardly a step: the weights are those of the start
    stored = {p.parent.name: torch.load(p, weights_only=False) for p in tmp_path.rglob("*.pt")}
    near = lambda a, b: torch.allclose(a, b, atol=1e-6)
    for m, name in enumerate(("left", "right")):
        trained = stored[f"unimodal_{name}"].model.encoders[0].weight
        assert near(stored["pretrained"].encoders[m].weight, trained) and not near(trained, joint.encoders[m].weight)
        for run in ("multi_loss", "interacting"):
            assert not near(stored[run].encoders[m].weight, joint.encoders[m].weight)
    for run in ("pretrained", "multi_loss"):
        assert not near(stored[run].head.linear.weight, joint.head.linear.weight)


def test_unimodal_models_with_the_same_encoders_show_no_gap():
    dls = multimodal_dls(load_dataset("digits"), seed=0)
    joint, _ = digits_subject(0)
    plain = [nn.Sequential(e, nn.Linear(8, 10)) for e in joint.encoders]
    found = audit(joint, dls, unimodal=plain, progress=False)
    assert "without named encoders" in found.notes[0] and not any(k[0] == "probes" for k in found.table.index)
    named = audit(joint, dls, unimodal=[as_fusion(u, 1, encoders=["0"]) for u in plain], progress=False)
    assert all(named.get("probes", "alone minus joint", m).mean == 0 for m in ("left", "right"))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(absent="typo"), "unknown stand-in"),
        (dict(absent="learned"), "learn_absent"),
        (dict(absent="mean_feature"), "depend on the others"),
        (dict(seeds=[]), "no seed"),
    ],
)
def test_wrong_options_are_said_before_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        audit(
            digits_subject(0)[0],
            multimodal_dls(load_dataset("digits")),
            out=tmp_path / "runs",
            progress=False,
            **options,
        )
    assert not (tmp_path / "runs").exists()


def test_tokens_of_features_and_odd_names(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    data = MultimodalData(
        "tokens",
        {
            "US$_a": rng.normal(size=(200, 2, 20)).astype("float32") + y[:, None, None],
            "b_$%/ä": rng.normal(size=(200, 2, 20)).astype("float32"),
        },
        y,
        ["p", "q"],
    )
    dls = multimodal_dls(data)
    joint = FusionModel(
        [SequenceEncoder(2, 8, pool=False) for _ in range(2)], AttentionHead((8, 8), 2, width=8, heads=2)
    )
    found = audit(joint, dls, training=SMALL, out=tmp_path, progress=False)
    assert ("models", "accuracy", "multi_loss") in found.table.index and write_page(
        found, tmp_path / "page.html"
    ).is_file()


def test_a_data_set_read_in_another_way_is_another_data_set():
    ids = np.random.default_rng(0).integers(0, 9, (40, 6))
    read = lambda kind: data_digest(
        MultimodalData("ids", dict(a=ids, b=ids), np.arange(40) % 2, ["p", "q"], kinds=dict(a=kind))
    )
    assert read("vector") != read("tokens")


class Clip(nn.Module):
    "Two towers with a parameter of its own, and a division by the length of the features."

    def __init__(self, floor=1e-6):
        super().__init__()
        self.left, self.right, self.scale, self.out, self.floor = (
            nn.Linear(32, 8),
            nn.Linear(32, 8),
            nn.Parameter(torch.ones(())),
            nn.Linear(16, 10),
            floor,
        )

    def forward(self, a, b):
        unit = lambda z: z / z.norm(dim=-1, keepdim=True).clamp(min=self.floor)
        return self.out(torch.cat([unit(self.left(a)), unit(self.right(b))], 1)) * self.scale


def test_answers_that_are_not_finite_without_a_modality_are_said_before_training(tmp_path):
    dls = multimodal_dls(load_dataset("digits"), seed=0)
    with pytest.raises(ValueError, match="not finite where .* zero feature"):
        audit(
            as_fusion(Clip(floor=0.0), 2, encoders=["left", "right"]),
            dls,
            encoders=lambda: [nn.Linear(32, 8) for _ in range(2)],
            out=tmp_path / "runs",
            progress=False,
        )
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_reset_is_audited_with_encoders(tmp_path):
    dls = multimodal_dls(load_dataset("digits"), seed=0)
    model = as_fusion(Clip(), 2, encoders=["left", "right"])
    with pytest.raises(ValueError, match="pass encoders="):
        audit(model, dls, out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()
    found = audit(
        model,
        dls,
        training=SMALL,
        encoders=lambda: [nn.Linear(32, 8) for _ in range(2)],
        out=tmp_path / "runs",
        progress=False,
    )
    assert "have the head 'concat'" in found.notes[0] and ("models", "accuracy", "pretrained") in found.table.index


def test_weights_that_encoders_come_with_tell_stored_runs_apart(tmp_path):
    dls, found = multimodal_dls(load_dataset("digits"), seed=0), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        kept = [nn.Linear(32, 8) for _ in range(2)]
        model = FusionModel(copy.deepcopy(kept), ConcatHead((8, 8), 10))
        found.append(
            audit(model, dls, training=SMALL, encoders=lambda: copy.deepcopy(kept), out=tmp_path, progress=False)
            .get("models", "log loss", "ensemble")
            .mean
        )
    assert found[0] != found[1]


def test_what_fuse_leaves_out_is_said():
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
        audit(Turned(), multimodal_dls(load_dataset("digits")), progress=False)


def test_companions_minimise_the_loss_of_the_learner(tmp_path):
    "With a loss that punishes one class only, everybody always answers the other."
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    data = MultimodalData("skewed", dict(a=rng.normal(size=(400, 3)) + y[:, None] / 2, b=rng.normal(size=(400, 3))), y)
    learn = multimodal_learner(
        multimodal_dls(data, seed=0), width=8, loss_func=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 200.0]))
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(10, 1e-2)
    found = learn.audit(out=tmp_path, progress=False)
    share = np.mean(found.first.y.numpy() == 1)
    assert "competition" not in found.advice.findings and all(
        abs(found.get("models", "accuracy", m).mean - share) < 0.15
        for m in ("joint", "unimodal a", "unimodal b", "ensemble")
    )


def test_an_audit_leaves_the_random_state_alone_and_equal_seeds_count_once(tmp_path):
    data, state = mixed(groups=False), torch.get_rng_state()
    found = audit(data=data, training=SMALL, seeds=[0, 0], out=tmp_path, workers=1, progress=False)
    assert torch.equal(state, torch.get_rng_state()) and not torch.backends.cudnn.deterministic
    assert found.facts["seeds"] == [0]


def test_a_regression_far_from_zero_is_audited_fairly(tmp_path):
    data = mixed(n=400, regression=True, groups=False)
    found, near = (
        audit(
            data=MultimodalData(f"shifted {shift}", data.xs, data.y * scale + shift, []),
            training=Budget(epochs=8, width=8, lr=1e-2),
            out=tmp_path,
            progress=False,
        )
        for shift, scale in ((1000, 14), (0, 1))
    )
    for name in ("joint", "ensemble", "pretrained", "multi_loss"):
        assert abs(found.get("models", "r2", name).mean - near.get("models", "r2", name).mean) < 0.1
    assert found.advice.use == near.advice.use


def test_brackets_and_dollars_in_names_are_names(tmp_path):
    data = load_dataset("digits")
    odd = MultimodalData(
        "digits [/b] $x_1$",
        {"left [red]": data.xs["left"], "cost $_1_2$": data.xs["right"]},
        data.y,
        [f"{c} [/i] $" for c in data.classes],
    )
    found = audit(data=odd, training=SMALL, out=tmp_path)
    write_page(found, tmp_path / "page.html")
    console = Console(width=200, record=True, file=open(tmp_path / "log", "w"))
    print_audit(found, console)
    assert "left [red]" in (text := console.export_text()) and "digits [/b]" in text
