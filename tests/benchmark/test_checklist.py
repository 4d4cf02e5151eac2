"What is said of the protocol of a comparison is computed from it: its card, its checklist, its marks."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from mmlit.benchmark.comparison import compare
from mmlit.benchmark.protocol import UNFINISHED, checklist, linear_marks, result_card
from mmlit.benchmark.results import Comparison
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.splits import grouped_split, split_hash, split_rows
from mmlit.learner import METHODS, Method
from mmlit.learner import joint as joint_method
from mmlit.metrics import with_metric
from mmlit.scores import corrected_interval
from mmlit.training import Budget

DIGITS = load_dataset("digits")
QUIET = dict(workers=1, progress=False)


def answers(found):
    return {c.item: c.answer for c in checklist(found)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return compare("digits", ["linear", "ensemble", "joint", "lr_control"], 2, Budget(epochs=2), out, **QUIET), out


def test_the_card_says_what_the_runs_were(whole, tmp_path):
    found, out = whole
    told = json.loads(found.to_json(tmp_path / "found.json").read_text())["card"]
    splits = {str(s): split_hash(grouped_split(DIGITS.y, seed=s)) for s in (0, 1)}
    assert told["splits"] == {"digits": splits} and told["seeds"] == [0, 1]
    files = list(out.rglob("*.npz"))
    infos = [json.loads(str(np.load(f)["info"])) for f in files]
    assert told["trainings"] == len(files) == 2 * (2 + 2 + 3)
    assert told["seconds"] == pytest.approx(sum(i["seconds"] for i in infos), abs=0.06)
    assert told["peak_memory_mb"] == round(max(i["memory"] for i in infos) / 2**20) > 50
    assert told["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert told["optimiser"] == "adam" and told["budget"]["epochs"] == 2 and len(told["machines"]) == 1


def test_the_page_ends_with_checklist_and_card(whole, tmp_path):
    found, _ = whole
    page = found.to_html(tmp_path / "found.html").read_text(encoding="utf8")
    assert page.index("How this was measured") < page.index("<h2>Checklist</h2>") < page.index("<h2>Result card</h2>")
    assert all(f"<td>{c.item}</td>" in page or c.item in page for c in checklist(found))
    assert set(found.runs.split) <= {h for h in set(found.runs.split) if h in page.split("Result card")[1]}


def test_the_checklist_of_a_real_comparison(whole):
    found, _ = whole
    said = answers(found)
    assert said["several data sets"] == "no" and said["several seeds"] == "partly"
    assert said["the test part is not used to choose"] == said["unimodal models in the table"] == "yes"
    assert said["simple multimodal models in the table"] == said["the cost is reported"] == "yes"
    assert said["equal training budgets"] == "partly"  # lr_control trains three models
    why = {c.item: c.why for c in checklist(found)}
    assert why["equal training budgets"] == "more than the cheapest: lr_control"
    above = [m for m in linear_marks(found, "digits") if m.network != "ensemble" and not m.below]
    assert said["unimodal networks above linear models"] == ("yes" if len(above) == 2 else "partly" if above else "no")


def test_a_mark_is_the_paired_interval_of_the_two_rows(whole):
    found, _ = whole
    wide = found.runs.pivot(index="seed", columns="method", values="accuracy")
    ratio = (found.runs.n_test / found.runs.n_train).mean()
    for mark in linear_marks(found, "digits"):
        gap = wide[mark.linear] - wide[mark.network]
        assert mark.difference.mean == pytest.approx(gap.mean()) and mark.below == (gap.mean() > 0)
        plain = corrected_interval(gap, ratio)
        assert mark.difference.low <= plain.low + 1e-9  # at least as wide as the sampling of test rows allows


def made_up(score="mae", **values):
    rows = [
        dict(data="a", method=m, seed=s, split="5e1f", n_train=1200, n_test=40_000, **{score: v})
        for m, each in values.items()
        for s, v in enumerate(each)
    ]
    x = np.random.default_rng(0).normal(size=(60, 3))
    data = with_metric(MultimodalData("a", dict(left=x, right=x), x.sum(1)), "mae")
    return Comparison(pd.DataFrame(rows), "ensemble", Budget(), {"a": data})


def test_where_less_is_better_a_network_with_less_stands_above():
    gap = np.array([0.0, 0.01, 0.02])
    values = {"unimodal left": 0.5 + gap, "linear left": 0.7 + gap[::-1] / 10 + gap, "ensemble": 0.4 + gap}
    good = made_up(**values)
    assert not linear_marks(good, "a")[0].below and "no opponent" not in repr(good)
    values["linear left"] = 0.3 + gap[::-1] / 10 + gap
    bad = made_up(**values)
    assert linear_marks(bad, "a")[0].side == "above"
    told = repr(bad)
    assert (
        "a: the ensemble's encoder for left is below a linear model (linear left minus unimodal left: -0.199 [" in told
    )


def test_a_table_that_says_nothing_fulfils_nothing_that_it_does_not_say():
    said = answers(made_up(ensemble=[0.5, 0.6], joint=[0.6, 0.8]))
    for item in ("the test part is not used to choose", "the cost is reported", "all methods are tuned alike"):
        assert said[item] == "no"
    assert result_card(made_up(ensemble=[0.5, 0.6]))["seconds"] == "not recorded"


def test_trainings_that_were_cut_short_are_counted(tmp_path):
    found = compare("digits", ["joint"], 2, Budget(steps=20, lr=1e-4), tmp_path, **QUIET)
    cut = [isinstance(t, list) and UNFINISHED in t for t in found.runs.get("warnings", [None] * len(found.runs))]
    why = {c.item: c.why for c in checklist(found)}["trainings run to their end"]
    assert any(cut) and why.startswith(f"{sum(cut)} of {len(cut)} rows")


def test_a_choice_among_steps_is_a_part_of_tuning(tmp_path):
    found = compare("digits", ["joint"], 1, Budget(steps=(5, 10)), tmp_path, reference="joint", **QUIET)
    assert answers(found)["all methods are tuned alike"] == "partly"
    assert found.cost and len(found.cost) == 2  # both lengths were trained, and both are paid for


def test_who_reads_the_test_part_is_a_failed_cell_with_the_reason(tmp_path):
    class Peeks(Callback):
        def after_epoch(self):
            self.learn.get_preds(ds_idx=2)

    def luckiest(answers, data):
        return {"luckiest": max(answers, key=lambda a: a.scores("test", data.task)["accuracy"])}

    registry = METHODS | dict(
        peeks=joint_method("peeks", "peeks", Peeks), luckiest=Method("luckiest", METHODS["lr_control"].runs, luckiest)
    )
    one = dict(seeds=1, budget=Budget(epochs=1), out=tmp_path, registry=registry, **QUIET)
    found = compare("digits", ["peeks", "luckiest", "joint"], reference="joint", **one)
    why = dict(zip(found.failed.method, found.failed.reason))
    assert "the test loader, dls[2], was read during training" in why["peeks"]
    assert "y_test was read during the combination of answers" in why["luckiest"]
    assert answers(found)["no run left out"] == "partly" and list(found.runs.method) == ["joint"]


def test_another_reference_leaves_the_first_as_it_was(whole):
    found, _ = whole
    before = found.table.copy()
    other = found.against("joint")
    pairs = other.table.set_index("method").difference
    assert pairs["ensemble"] == pytest.approx(-before.set_index("method").difference["joint"])
    assert found.reference == "ensemble" and found.table.equals(before)
    with pytest.raises(ValueError, match="unknown reference 'jont'"):
        found.against("jont")


def test_the_overlap_of_training_parts_is_that_of_their_rows(tmp_path):
    sized = Budget(epochs=1, n_train=900, n_test=500)
    found = compare("digits", ["joint"], 3, sized, tmp_path, reference="joint", **QUIET)
    rows = [set(split_rows(DIGITS, seed, n_train=900, n_test=500).train) for seed in range(3)]
    shares = [len(a & b) / 900 for i, a in enumerate(rows) for b in rows[i + 1 :]]
    assert (
        result_card(found)["overlap"]["digits"] == pytest.approx(np.mean(shares), abs=0.001) and np.mean(shares) > 0.3
    )
    page = found.to_html(tmp_path / "a.html").read_text(encoding="utf8")
    assert f"{100 * np.mean(shares):.0f} % of digits" in page.split("Result card")[1]
