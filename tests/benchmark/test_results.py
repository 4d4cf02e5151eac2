"What follows from a table of scores: intervals, sentences, pictures, pages; whatever the names hold."

import html
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mmlit.benchmark.comparison import compare
from mmlit.benchmark.results import Comparison
from mmlit.crossed import crossed_interval
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.metrics import with_metric
from mmlit.scores import corrected_interval, drawn_interval
from mmlit.training import Budget

PARTS = dict(split="5e1f", n_train=120_000, n_test=40_000)


def data(name, classes=("no", "yes")):
    x = np.random.default_rng(0).normal(size=(2, 60, 3))
    y = np.arange(60) % 2 if classes else x.sum((0, 2))
    return MultimodalData(name, dict(left=x[0], right=x[1]), y, list(classes))


def comparison(reference="ensemble", **scores):
    "Of accuracies by method, (seeds,), on one data set."
    rows = [
        dict(data="a", method=m, seed=s, accuracy=v, seconds=1.0, **PARTS)
        for m, values in scores.items()
        for s, v in enumerate(values)
    ]
    return Comparison(pd.DataFrame(rows), reference, Budget(), {"a": data("a")})


def test_the_sentence_follows_from_the_interval_of_the_differences():
    rng = np.random.default_rng(0)
    seen = set()
    for shift in np.repeat([-0.03, 0.0, 0.03], 20):
        base, other = rng.uniform(0.6, 0.8, 5), rng.normal(shift, 0.02, 5)
        found = comparison(ensemble=base, joint=base + other)
        low, high = corrected_interval(other, 1 / 3)[1:]
        answer = "yes, the joint" if low > 0 else "no, the ensemble" if high < 0 else "no difference"
        assert found.verdict("a").startswith(f"a: {answer}")
        row = found.table.set_index("method").loc["joint"]
        assert np.allclose([row.difference_low, row.difference_high], [low, high])
        seen.add(answer)
    assert len(seen) == 3


def test_one_seed_tells_nothing():
    found = comparison(ensemble=[0.5], joint=[0.9])
    assert "one seed cannot tell" in found.verdict("a") and np.isnan(found.table.low).all()
    assert "1 seed\n" in repr(found) + "\n" and len(found.plot().axes[1].lines) == 2


def test_words_and_tables_name_every_method_but_the_parts_of_the_reference(capsys):
    scores = {m: [0.7, 0.8] for m in ("unimodal left", "best unimodal", "ensemble", "ensemble_prob", "joint", "mcr")}
    found = comparison(**scores)
    found.show()
    printed = capsys.readouterr().out
    for text in (repr(found), printed):
        assert [m for m in scores if found.verdict("a", m) in text] == ["joint", "mcr"]
    assert all(m in printed for m in scores)
    assert repr(found).splitlines()[0] == "Comparison with the ensemble on a, 2 seeds"


def test_an_unknown_data_set_is_said():
    with pytest.raises(ValueError, match="unknown data set 'b'; known: a"):
        comparison(joint=[0.5]).plot("b")


def test_one_figure_shows_all_data_sets_or_one():
    found = comparison(ensemble=[0.5, 0.6], joint=[0.6, 0.5])
    more = found.runs.assign(data="b", r2=found.runs.accuracy).drop(columns="accuracy")
    sets = {"a": data("a"), "b": data("b", ())}
    both = Comparison(pd.concat([found.runs, more]), "ensemble", Budget(), sets)
    assert [ax.get_title("left") for ax in both.plot().axes] == ["a", "", "b", ""]
    assert [ax.get_xlabel() for ax in both.plot("b").axes] == ["test r2", "minus ensemble"]
    figure, axes = plt.subplots(2, 2)
    assert both.plot(axes=axes) is figure and axes[1, 0].get_title("left") == "b"
    with pytest.raises(ValueError):
        both.plot("a", axes)
    plt.close("all")


def test_the_table_is_the_json_and_what_is_not_there_is_null(tmp_path):
    found = comparison(ensemble=[0.5, 0.6], joint=[0.6, 0.8])
    told = json.loads(found.to_json(tmp_path / "new" / "a.json").read_text())
    table = pd.DataFrame(told["table"])
    assert np.allclose(table.difference.astype(float), found.table.difference, equal_nan=True)
    assert told["table"][0]["difference"] is None and told["verdicts"] == {"a": [found.verdict("a")]}
    assert told["seeds"] == [0, 1] and told["datasets"]["a"]["classes"] == ["no", "yes"]


def test_the_page_has_every_seed_and_every_sentence(tmp_path):
    found = comparison(ensemble=[0.5, 0.6], joint=[0.6123, 0.8], mcr=[0.7, 0.7])
    page = html.unescape(found.to_html(tmp_path / "new" / "a.html", "the <command>").read_text(encoding="utf8"))
    assert "0.6123" in page and found.verdict("a") in page and found.verdict("a", "mcr") in page
    assert "the <command>" in page and "Command" not in found.to_html(tmp_path / "b.html").read_text(encoding="utf8")


def test_brackets_and_dollars_in_names_are_names(tmp_path, capsys):
    digits = load_dataset("digits")
    odd = MultimodalData("d [/b] $x_1$", {"a [red]": digits.xs["left"], "b $_1_2$": digits.xs["right"]}, digits.y)
    small = Budget(epochs=1, width=16)
    found = compare([odd], ["unimodal", "joint"], 2, small, tmp_path)
    found.to_html(tmp_path / "report.html")
    found.show()
    assert "a [red]" in (text := capsys.readouterr().out) and "d [/b]" in text


def test_what_trainings_warned_of_stands_below_the_table_once_with_its_methods(tmp_path, capsys):
    found = comparison(ensemble=[0.7, 0.8], joint=[0.7, 0.8], tcmax=[0.6, 0.7], mcr=[0.7, 0.9])
    assert found._notes("a") == [] and "note:" not in repr(found)
    idle, other = "it acts from epoch 5 on & this has <2>", "no answer moved"
    found.runs["warnings"] = [np.nan, np.nan, np.nan, [other], [idle], [idle], [other, idle], np.nan]
    lines = [f"a: note: joint, mcr: {other}", f"a: note: tcmax, mcr: {idle}"]
    found.show()
    for text in (repr(found), capsys.readouterr().out):
        assert all(text.count(line) == 1 for line in lines)
    assert found.to_dict()["notes"] == {"a": lines}
    page = found.to_html(tmp_path / "page.html").read_text()
    assert all(page.count(html.escape(line)) == 1 for line in lines)


def test_the_method_that_is_meant_is_the_only_one_else_joint_else_it_has_to_be_said():
    one = comparison(ensemble=[0.7, 0.8], mcr=[0.6, 0.9], **{"unimodal left": [0.5, 0.5]})
    assert one.meant("a") == "mcr" and one.verdict("a") == one.verdict("a", "mcr")
    two = comparison(ensemble=[0.7, 0.8], mcr=[0.6, 0.9], joint=[0.6, 0.9])
    assert two.meant("a") == "joint" and two.meant("a", "mcr") == "mcr"
    open_question = comparison(ensemble=[0.7, 0.8], mcr=[0.6, 0.9], tcmax=[0.6, 0.9])
    with pytest.raises(ValueError, match=r"mcr, tcmax beside the ensemble: say which method is meant"):
        open_question.verdict("a")
    with pytest.raises(ValueError, match="unknown method 'mrc' .did you mean 'mcr'"):
        open_question.verdict("a", "mrc")
    with pytest.raises(ValueError, match="nothing beside the ensemble"):
        comparison(ensemble=[0.7, 0.8]).verdict("a")
    assert comparison("joint", ensemble=[0.7, 0.8], joint=[0.6, 0.9]).meant("a") == "ensemble"


@pytest.mark.parametrize("grouped", [False, True])
def test_what_intervals_are_over_is_said_in_the_same_words_everywhere(tmp_path, grouped):
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 2, 160), np.arange(160) // 2 if grouped else None
    xs = dict(left=rng.normal(size=(160, 2)) + y[:, None], right=rng.normal(size=(160, 2)))
    given = MultimodalData("set", xs, y, groups=groups, split=np.repeat(["train", "valid", "test"], [100, 30, 30]))
    drawn, units = MultimodalData("set", xs, y, groups=groups), "groups" if grouped else "rows"
    sized = Budget(epochs=1, n_train=40, n_test=60)
    cases = [
        (given, Budget(epochs=1), f"over initialisations and test {units}"),
        (drawn, sized, f"over training parts and test {units}"),
        (drawn, Budget(epochs=1), ""),
    ]
    for source, budget, words in cases:
        found = compare(source, ["joint"], 2, budget, tmp_path, workers=1, progress=False)
        assert found.over("set") == words
        console = Console(file=io.StringIO(), record=True, width=200)
        found.show(console)
        page = html.unescape(found.to_html(tmp_path / "page.html").read_text(encoding="utf8"))
        said = [repr(found), found.verdict("set"), console.export_text(), page, json.dumps(found.to_dict()["verdicts"])]
        title = said[2].strip().splitlines()[0].strip()
        assert title == f"set: 2 seeds, mean and 95 % interval {words}".strip()
        assert f"set: 95 %, {words}" in page if words else "95 %, over seeds" in page
        for text in said:
            assert words in text if words else "initialisations and" not in text and "training parts and" not in text


def test_each_score_of_common_test_rows_knows_the_overlap_of_training_parts():
    rng, S, N = np.random.default_rng(0), 3, 60
    right, nats = rng.integers(0, 2, (2, S, N)).astype(float), rng.random((2, S, N)) + rng.random((2, S, 1))
    names = "ensemble", "joint"
    runs = [
        dict(
            data="a",
            method=m,
            seed=s,
            accuracy=right[k, s].mean(),
            log_loss=nats[k, s].mean(),
            ece=0.1 * s * k,
            **PARTS,
        )
        for k, m in enumerate(names)
        for s in range(S)
    ]

    def made(chosen, values):
        by = [{m: dict(enumerate(v)) for m, v in zip(names, x)} for x in (values, nats)]
        given = dict(rows={"a": by[0]}, nats={"a": by[1]}, overlap={"a": 0.4}, within={"a": 0.6})
        return Comparison(pd.DataFrame(runs), "ensemble", Budget(), {"a": chosen}, **given)

    found = made(data("a"), right)
    own = crossed_interval(nats[1] - nats[0], overlap=0.4, within=0.6)
    assert found.intervals("a", "log_loss")["joint"][1] == pytest.approx(own)
    row = found.table.set_index("method").loc["joint"]
    columns = [f"log_loss_difference{end}" for end in ("", "_low", "_high")]
    assert row[columns].tolist() == pytest.approx(own) and found.table.iloc[0][columns].isna().all()
    ece = found.intervals("a", "ece")["joint"][1]
    assert ece == pytest.approx(corrected_interval([0, 0.1, 0.2], 0.4 / 0.6))
    of_two = found.intervals("a", methods=["joint"])
    assert of_two == found.intervals("a") and list(of_two) == list(names)

    draws = rng.random((2, S, 301))
    drawn = made(with_metric(data("a"), "f1"), draws).intervals("a", "f1")["joint"][1]
    wide = drawn_interval(draws[1] - draws[0], overlap=0.4)
    assert drawn == pytest.approx((wide.mean, max(wide.low, -1), min(wide.high, 1)))
    assert wide.high - wide.low > 1.2 * np.subtract(*drawn_interval(draws[1] - draws[0])[:0:-1])


def test_equal_training_parts_of_a_test_part_are_initialisations():
    found = comparison(ensemble=[0.5, 0.6], joint=[0.7, 0.9])
    given = dict(rows={"a": {}}, overlap={"a": 0.4})
    for within, words in ((0.6, "over training parts"), (1.0, "over initialisations")):
        made = Comparison(found.runs, "ensemble", Budget(), found.datasets, **given, within={"a": within})
        assert made.over("a").startswith(words)
