"The rule of the advice: its sentences word for word, and what holds for any table."

import math

import numpy as np
import pandas as pd
import pytest

from mmlit.audits.advice import CANDIDATES, advise, difference, interval_of, widened
from mmlit.scores import Interval

LEVEL = (0.0, -0.01, 0.01)


def table(score="accuracy", **changes):
    "Nothing is the matter; `changes` by the name of the difference, or by section."
    rows = {("differences", score, "joint minus ensemble"): LEVEL}
    for name in ("pretrained", "multi_loss", "interacting", "additive"):
        rows["differences", score, f"{name} minus joint"] = rows["differences", score, f"{name} minus ensemble"] = LEVEL
    rows["differences", score, "interacting minus additive"] = LEVEL
    for name in ("joint", "ensemble"):
        rows["differences", score, f"{name} minus best unimodal"] = (0.05, 0.03, 0.07)
    for m in "ab":
        rows["probes", "alone minus joint", m] = LEVEL
        rows["robustness", "permuted", m] = (0.2, 0.1, 0.3)
        rows["models", score, f"unimodal {m}"] = (0.8, 0.7, 0.9)
    for name, interval in changes.items():
        key = next(k for k in rows if k[2] == name.replace("_minus_", " minus ").replace("best_", "best "))
        rows[key] = interval
    return frame(rows)


def frame(rows):
    index = pd.MultiIndex.from_tuples(rows, names=["section", "quantity", "of"])
    return pd.DataFrame(rows.values(), index=index, columns=["value", "low", "high"])


GAIN = "Fusion gains: the joint model beats the best single modality by +5.0 points [+3.0, +7.0].\n"


def test_the_sentences_word_for_word():
    quiet = advise(table(), "ab")
    assert str(quiet) == (
        "No competition of 2.0 points or more: joint minus ensemble is +0.0 points [-1.0, +1.0]. Do not balance.\n"
        + GAIN
        + "Keep the joint model: of pretrained, multi_loss, interacting, additive, ensemble, best unimodal, "
        "none is shown to be better at the level corrected for 6 candidates; "
        "an advantage of 3.6 points would be shown in four of five cases."
    )
    rows = table(joint_minus_ensemble=(-0.1, -0.15, -0.05))
    rows.loc[("probes", "alone minus joint", "a"), :] = (0.1, 0.05, 0.15)
    rows.loc[("robustness", "permuted", "b"), :] = (0.0, -0.005, 0.005)
    lost = advise(rows, "ab")
    assert lost.use == "ensemble" and str(lost) == (
        "Competition: the ensemble of unimodal models wins, joint minus ensemble is -10.0 points [-15.0, -5.0].\n"
        "The encoder of a is under-trained by 10.0 points [5.0, 15.0]: its features serve a linear probe worse than "
        "after training alone. Try `pretrained` or `multi_loss`: they give it a loss of its own, which goes on when "
        "the others have explained the training labels.\n"
        "The joint model ignores b: taking it from another sample costs 0.0 points [-0.5, 0.5]; "
        "differences of 2.0 points or more are excluded; alone, b reaches 80.0 %.\n"
        + GAIN
        + "Use the ensemble of unimodal models: better than the joint model by +10.0 points [+3.3, +16.7] "
        "at the level corrected for 6 candidates."
    )


def test_the_sentences_of_a_regression():
    rows = table("r2", joint_minus_ensemble=(0.1, 0.05, 0.15))
    rows = rows.drop([k for k in rows.index if k[2].startswith(("interacting", "additive"))])
    rows.loc[("robustness", "permuted", "a"), :] = (0.0, -0.005, 0.005)
    found = advise(rows, "ab", "r2")
    assert str(found) == (
        "No competition of 0.020 of r2 or more: joint minus ensemble is +0.100 of r2 [+0.050, +0.150]. "
        "Do not balance.\n"
        "The joint model ignores a: taking it from another sample costs 0.000 of r2 [-0.005, 0.005]; "
        "differences of 0.020 of r2 or more are excluded.\n"
        "Joint training helps: the joint model beats the ensemble by +0.100 of r2 [+0.050, +0.150]. "
        "That needs no interaction of the modalities: an ensemble averages.\n"
        "Fusion gains: the joint model beats the best single modality by +0.050 of r2 [+0.030, +0.070].\n"
        "Keep the joint model: of pretrained, multi_loss, ensemble, best unimodal, none is shown to be better "
        "at the level corrected for 4 candidates; an advantage of 0.085 of r2 would be shown in four of five cases."
    )


def test_the_open_sentences():
    rows = table(joint_minus_ensemble=(-0.01, -0.04, 0.02), joint_minus_best_unimodal=(0.0, -0.03, 0.03))
    rows.loc[("differences", "accuracy", "ensemble minus best unimodal"), :] = (0.01, -0.01, 0.03)
    found = advise(rows, "ab").findings
    assert found["open"] == (
        "Competition is neither shown nor excluded: joint minus ensemble is -1.0 points [-4.0, +2.0]; "
        "less than 2.0 points does not count, and this audit would show 4.3 points in four of five cases."
    )
    assert found["gain open"] == (
        "Whether fusion gains is open: over the best single modality the joint model has +0.0 points [-3.0, +3.0], "
        "the ensemble +1.0 points [-1.0, +3.0]; less than 2.0 points does not count, "
        "and this audit would show 4.3 points in four of five cases."
    )


def test_names_with_braces_are_names():
    rows = table().rename(index={"a": "{gap}", "unimodal a": "unimodal {gap}"})
    rows.loc[("probes", "alone minus joint", "{gap}"), :] = (0.1, 0.05, 0.15)
    assert "The encoder of {gap} is" in str(advise(rows, ["{gap}", "b"]))


@pytest.mark.parametrize("use", CANDIDATES)
def test_each_candidate_is_used_where_it_alone_is_better(use):
    name = {"ensemble": "joint_minus_ensemble", "best unimodal": "joint_minus_best_unimodal"}.get(use)
    better, worse = (0.1, 0.08, 0.12), (-0.1, -0.12, -0.08)
    found = advise(table(**{name: worse} if name else {f"{use}_minus_joint": better}), "ab")
    assert found.use == use and found.reason.startswith(CANDIDATES[use])


def test_what_is_shown_for_one_is_not_shown_among_five():
    shown = (0.05, 0.01, 0.09)
    assert advise(table(pretrained_minus_joint=shown), "ab").use == "joint"
    assert advise(table(pretrained_minus_joint=(0.05, 0.02, 0.08)), "ab").use == "pretrained"
    # over five splits the quantiles of Student's t are farther apart than those of the normal distribution
    assert advise(table(pretrained_minus_joint=(0.05, 0.017, 0.083)), "ab", freedom=4).use == "joint"
    assert advise(table(pretrained_minus_joint=(0.05, 0.017, 0.083)), "ab").use == "pretrained"


def test_differences_read_backwards():
    rows = table(joint_minus_ensemble=(0.1, 0.05, 0.2))
    there, back = difference(rows, "joint", "ensemble"), difference(rows, "ensemble", "joint")
    assert there == interval_of(rows, "differences", "accuracy", "joint minus ensemble") == Interval(0.1, 0.05, 0.2)
    assert back == Interval(-0.1, -0.2, -0.05)
    assert difference(rows, "joint", "unimodal a") is None and difference(rows, "joint", "ensemble", "r2") is None


def test_widening_for_one_candidate_changes_nothing_and_more_candidates_widen_more():
    i, before = Interval(0.2, 0.1, 0.4), 0.0
    assert np.allclose(widened(i, 1), i) and np.allclose(widened(i, 1, 4), i)
    for n in (1, 2, 5, 10):
        wide = widened(i, n)
        assert wide.mean == i.mean and wide.high - wide.low > before
        assert math.isclose((wide.high - i.mean) / (i.mean - wide.low), 2)  # both ends by the same factor
        before = wide.high - wide.low


def test_what_has_no_interval_is_not_shown():
    "One split has no interval over splits."
    none = (0.5, math.nan, math.nan)
    found = advise(table(pretrained_minus_joint=none, interacting_minus_joint=none), "ab")
    assert found.use == "joint" and list(found.findings) == ["none", "gain"]


def test_few_samples_that_lack_a_modality_do_not_make_a_test_part_small():
    whole = table().assign(n=400, units=400)
    part = frame({("missing", "accuracy, joint", "without a"): LEVEL}).assign(n=9, units=9)
    assert str(advise(pd.concat([whole, part]), "ab")) == str(advise(whole, "ab"))
    assert str(advise(whole.assign(units=9), "ab")) != str(advise(whole, "ab"))
