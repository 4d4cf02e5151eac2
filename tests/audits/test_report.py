"The report: the same audit as a page, on a terminal, as JSON and as pictures, whatever names hold."

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mmlit.audits.audit import audit
from mmlit.audits.report import _plot_probes, conflicts, figures, plot_curves, plot_models, plot_shapley
from mmlit.data.catalogue import load_dataset
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import AttentionHead, SequenceEncoder
from mmlit.fusion.models import FusionModel
from mmlit.pages import terminal


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def once(subject):
    "An audit without any training."
    joint, alone = subject(0)
    return audit(joint, multimodal_dls(load_dataset("digits"), seed=0), unimodal=alone, progress=False)


@pytest.fixture
def found(once):
    return replace(once, table=once.table.copy())


def said(found, width=200):
    console = terminal(width)
    with console.capture() as text:
        found.show(console)
    return text.get()


def test_brackets_and_dollars_in_names_are_names(small, tmp_path):
    data = load_dataset("digits")
    odd = MultimodalData(
        "digits [/b] $x_1$",
        {"left [red]": data.xs["left"], "cost $_1_2$": data.xs["right"]},
        data.y,
        [f"{c} [/i] $" for c in data.classes],
    )
    found = audit(data=odd, budget=small, out=tmp_path)
    found.to_html(tmp_path / "page.html")
    text = said(found)
    assert "left [red]" in text and "digits [/b]" in text


def test_tags_in_names_are_names(found, tmp_path):
    found.name, found.subject, found.notes = "<b>data", "<i>model", ["<u>note"]
    page = found.to_html(tmp_path / "page.html").read_text()
    assert "&lt;b&gt;data" in page and "&lt;i&gt;model" in page and "&lt;u&gt;note" in page
    assert "<b>data" not in page and "<i>" not in page and "<u>" not in page


def test_tokens_of_features_and_odd_names(small, tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    xs = {
        "US$_a": rng.normal(size=(200, 2, 20)).astype("float32") + y[:, None, None],
        "b_$%/ä": rng.normal(size=(200, 2, 20)).astype("float32"),
    }
    dls = multimodal_dls(MultimodalData("tokens", xs, y, ["p", "q"]))
    encoders = [SequenceEncoder(2, 8, pool=False) for _ in range(2)]
    joint = FusionModel(encoders, AttentionHead((8, 8), 2, width=8, heads=2))
    found = audit(joint, dls, small, out=tmp_path, progress=False)
    assert ("models", "accuracy", "multi_loss") in found.table.index
    assert found.to_html(tmp_path / "page.html").is_file()


def test_page_terminal_and_json_say_the_same(found, tmp_path):
    i = found.get("differences", "accuracy", "joint minus ensemble")
    number = f"{100 * i.mean:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}] points"
    page = found.to_html(tmp_path / "new" / "page.html", command="repeat < me").read_text()
    told = json.loads(found.to_json(tmp_path / "other" / "audit.json").read_text())
    assert number in page and "repeat &lt; me" in page and page.count("<img") == len(figures(found))
    row = next(r for r in told["table"] if r["section"] == "differences" and r["of"] == "joint minus ensemble")
    assert (row["value"], row["low"], row["high"]) == tuple(i)
    shown = said(found)
    for name in ("joint", "ensemble", "best unimodal"):
        i = found.get("models", "accuracy", name)
        assert f"{100 * i.mean:.1f} [{100 * i.low:.1f}, {100 * i.high:.1f}] %" in shown
    for text in str(found.advice).splitlines():
        assert text in " ".join(shown.split()) and text in told["advice"]["findings"].values() or text in shown
    assert found.advice.reason == told["advice"]["reason"]
    assert repr(found).endswith("\n".join([found.advice.reason, *(f"Note: {note}" for note in found.notes)]))


def test_numbers_are_shown_in_their_units(found):
    shown = said(found)
    assert (
        "score lost, permuted" in shown and "probe: alone minus joint" in shown and "Shapley value, accuracy" in shown
    )
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert lines["probe: alone minus joint"].rstrip(" │").endswith("points")
    assert lines["accuracy"].rstrip(" │").endswith("%")


def test_what_is_not_finite_is_null_in_json(found, tmp_path):
    found.table.iloc[0, 1] = np.nan
    text = found.to_json(tmp_path / "audit.json").read_text()
    assert "NaN" not in text and json.loads(text)["table"] == found.to_dict()["table"]
    row = found.to_dict()["table"][0]
    assert row["low"] is None and row["value"] is not None and isinstance(row["n"], int)


def test_a_row_that_is_not_there_is_named(found):
    with pytest.raises(KeyError, match="no row .*'nobody'"):
        found.get("models", "accuracy", "nobody")


def test_pictures_are_those_there_are_numbers_for(found):
    assert list(figures(found)) == ["Models", "Encoders", "Coalitions", "Shapley values of samples", "Conflicts"]
    with pytest.raises(ValueError, match="ModalityMonitor"):
        plot_curves(found)
    found.table = found.table.drop("probes", level=0)
    assert "Encoders" not in figures(found)


def test_probes_are_drawn_beside_each_other_from_above(found):
    ax = _plot_probes(found).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["left", "right"] and ax.yaxis.get_inverted()
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    for x, y in dots:
        m, name = ["left", "right"][round(y)], "joint" if y > round(y) else "alone"
        assert np.isclose(x, 100 * found.get("probes", name, m).mean)
    assert len(dots) == 4


def test_points_are_samples_on_both_kinds_of_picture(found):
    phi = found.first.shapley
    plane = plot_shapley(found).axes[0]
    points = np.concatenate([c.get_offsets() for c in plane.collections])
    assert np.allclose(np.sort(points[:, 0]), np.sort(phi[0].numpy())) and len(points) == phi.shape[1]

    found.first = found.first._replace(shapley=torch.cat([phi, phi[:1]]))
    found.modalities = ["a", "b", "c"]
    strips = plot_shapley(found, limit=50).axes[0]
    points = np.concatenate([c.get_offsets() for c in strips.collections])
    assert len(points) == 150 and np.abs(points[:, 1] - points[:, 1].round()).max() <= 0.3
    assert [t.get_text() for t in strips.get_yticklabels()] == ["a", "b", "c"]


def test_the_models_picture_is_the_figure_of_the_audit(found):
    ours, theirs = found.plot().axes, plot_models(found).axes
    assert (
        [a.get_xlabel() for a in ours]
        == [a.get_xlabel() for a in theirs]
        == [
            "test accuracy (%)",
            "minus joint (points of accuracy)",
        ]
    )


def test_conflicts_come_in_order_with_what_each_model_says(found):
    rows, titles = conflicts(found, 4)
    conflict = dict(zip(found.first.rows, found.first.conflict.tolist()))
    assert [conflict[r] for r in rows] == sorted(conflict.values(), reverse=True)[:4]
    at = {row: i for i, row in enumerate(found.first.rows)}
    for row, title in zip(rows, titles):
        left = found.first.logits["unimodal left"][at[row]].argmax()
        truth, *lines = title.split("\n")
        assert truth == f"truth: {found.data.classes[found.data.y[row]]}" and len(lines) == 3
        assert lines[0] == f"left: {found.data.classes[left]}"
