"The instrument itself: ratios of known costs, regressions of synthetic tables, oracles, and one run from end to end."

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import counts, naive, peers, profiles, steps, tables, through
from benchmarks.rows import Case, Row, ratio_rows
from benchmarks.steps import Setting
from benchmarks.targets import TARGETS, Target
from benchmarks.timing import Effort, cpu_clock, interleaved, machine, peak_memory, quartiles

ROOT = Path(__file__).parents[1]


# ---- times


class FakeClock:
    "Runs are counted, and last as long as they say, in a world that becomes slower and slower."

    def __init__(self, drift=1.0):
        self.slow, self.drift, self.runs = 1.0, drift, []

    def of(self, name, seconds):
        def call():
            self.runs.append(name)
            self.last = seconds * self.slow

        return call

    def __call__(self, call):
        before = len(self.runs)
        self.last = 0.0
        call()
        self.slow *= self.drift
        return self.last * (len(self.runs) - before)


def test_a_ratio_is_that_of_the_costs_though_the_machine_slows_down():
    clock = FakeClock(drift=1.02)
    calls = {"base": clock.of("base", 0.01), "three": clock.of("three", 0.03), "same": clock.of("same", 0.01)}
    timings = interleaved(calls, Effort(1.0, 30), clock)
    assert abs(np.median(timings["three"].ratios) - 3) < 0.1 and abs(np.median(timings["same"].ratios) - 1) < 0.04
    assert clock.slow > 3  # one after the other, the last would have looked three times as slow


def test_functions_run_in_turns_and_the_order_moves_on():
    clock = FakeClock()
    interleaved({n: clock.of(n, 0.01) for n in "abc"}, Effort(1e9, 3), clock)
    rounds = clock.runs[6:]  # after two warm-up runs of each
    assert ["".join(rounds[i : i + 3]) for i in (0, 3, 6)] == ["abc", "bca", "cab"]


def test_a_function_that_has_had_its_time_drops_out():
    clock = FakeClock()
    timings = interleaved({"base": clock.of("base", 0.01), "slow": clock.of("slow", 5.0)}, Effort(1.0, 30), clock)
    assert clock.runs.count("slow") == 1 and timings["slow"].ratios.tolist() == [500.0]


def test_what_is_short_runs_several_times_in_a_row():
    clock = FakeClock()
    timings = interleaved({"base": clock.of("base", 0.0005), "b": clock.of("b", 0.001)}, Effort(0.01, 5), clock)
    assert clock.runs[4:8] == ["base"] * 4  # 2 ms of half a millisecond
    assert timings["b"].seconds[0] == pytest.approx(0.001)


def test_cpu_time_leaves_out_waiting():
    assert cpu_clock(lambda: time.sleep(0.05)) < 0.03 < cpu_clock(lambda: sum(range(5_000_000)))


def test_quartiles_are_those_of_the_ratios():
    assert quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)
    clock = FakeClock()
    timings = interleaved({"base": clock.of("base", 0.01), "b": clock.of("b", 0.02)}, Effort(1.0, 7), clock)
    (row,) = ratio_rows("s", "c", timings)
    assert (row.value, row.low, row.high, row.base_ms) == pytest.approx((2, 2, 2, 10)) and row.rounds == 7


def test_the_peak_of_memory_is_what_is_held_at_once():
    def two_after_each_other():
        for _ in range(2):
            torch.ones(1000, 250)  # a megabyte, let go of

    def two_at_once():
        return [torch.ones(1000, 250) for _ in range(2)]

    assert peak_memory(two_after_each_other) == pytest.approx(10**6, rel=0.01)
    assert peak_memory(two_at_once) == pytest.approx(2 * 10**6, rel=0.01)


def test_the_machine_is_described_and_not_named():
    about = json.dumps(machine())
    assert {"cpu", "cores", "memory_gib", "torch", "python"} <= set(json.loads(about))
    assert os.uname().nodename not in about and str(ROOT) not in about and "/" not in machine()["torch"]


# ---- regressions


def ratio(value, what="TCMax", case="c", section="steps", quantity="ratio"):
    return Row(section, case, what, quantity, value)


def test_a_regression_is_more_than_15_per_cent():
    committed = [ratio(2.0), ratio(2.0, "MCR")]
    assert not tables.regressions([ratio(2.29), ratio(1.0, "MCR")], committed)
    found = tables.regressions([ratio(2.31), ratio(2.0, "MCR")], committed)
    assert found == {("steps", "c", "TCMax", "ratio"): (2.31, 2.0)}


def test_only_ratios_that_are_committed_can_become_worse():
    committed = [ratio(1.0, quantity="seconds"), ratio(math.nan, "MCR")]
    assert not tables.regressions([ratio(9.0, quantity="seconds"), ratio(9.0, "MCR"), ratio(9.0, "new")], committed)


def measured_again(*values):
    "Further measurements of the case `c`, one after the other."
    left = list(values)

    def again(section, case):
        assert (section, case) == ("steps", "c")
        return [ratio(left.pop(0)), ratio(1.0, "MCR")]

    return again, left


def test_noise_is_measured_again_and_the_best_median_counts():
    committed = [ratio(2.0), ratio(1.0, "MCR"), ratio(5.0, case="d")]
    first = [ratio(2.6), ratio(1.1, "MCR"), ratio(5.0, case="d")]
    again, left = measured_again(2.7, 2.1)
    rows, worse = tables.settled(first, committed, again, say=lambda line: None)
    assert not worse and not left
    assert {r.key[1:3]: r.value for r in rows} == {("c", "TCMax"): 2.1, ("c", "MCR"): 1.0, ("d", "TCMax"): 5.0}


def test_what_stays_slow_is_a_regression_after_three_measurements():
    again, left = measured_again(2.7, 2.5, 0.1)
    _, worse = tables.settled([ratio(2.6)], [ratio(2.0)], again, say=lambda line: None)
    assert worse == {("steps", "c", "TCMax", "ratio"): (2.5, 2.0)} and left == [0.1]


def test_what_is_not_slower_is_not_measured_again():
    rows, worse = tables.settled([ratio(2.0)], [ratio(2.0)], again=None)
    assert rows == [ratio(2.0)] and not worse


def test_a_committed_ratio_that_is_not_measured_any_more_is_named():
    committed = [ratio(2.0), ratio(1.0, "MCR"), ratio(1.0, case="of another run")]
    assert tables.lost([ratio(2.0)], committed) == [("steps", "c", "MCR", "ratio")]


# ---- files


def test_what_is_saved_is_read_again(tmp_path):
    rows = [Row("steps", "c", "TCMax", "ratio", 1.23456, 1.1, 1.3, 20.0, 7), ratio(math.nan, "MCR")]
    tables.save(tmp_path / "speed.json", {"cpu": "x"}, rows)
    about, found = tables.load(tmp_path / "speed.json")
    assert about == {"cpu": "x"} and found[0] == Row("steps", "c", "TCMax", "ratio", 1.235, 1.1, 1.3, 20.0, 7)
    assert math.isnan(found[1].value) and found[1].key == ("steps", "c", "MCR", "ratio")
    assert tables.load(tmp_path / "none.json") == ({}, [])


def test_a_file_with_unknown_columns_is_refused(tmp_path):
    (tmp_path / "speed.json").write_text('{"machine": {}, "rows": [{"section": "steps", "median": 1}]}')
    with pytest.raises(ValueError, match="unknown columns.*median"):
        tables.load(tmp_path / "speed.json")


def test_rows_of_a_case_are_exchanged_as_a_whole():
    old = [ratio(1.0), ratio(2.0, "gone"), ratio(3.0, case="d")]
    assert [r.value for r in tables.merged(old, [ratio(4.0)])] == [3.0, 4.0]


def test_a_target_is_met_or_not_or_not_measured():
    target = Target("steps", "c", "TCMax", "ratio", 1.15)
    said = [tables.verdict(target, rows)["verdict"] for rows in ([ratio(1.15)], [ratio(1.16)], [ratio(math.nan)], [])]
    assert said == ["met", "not met", "not measured", "not measured"]
    page = tables.targets_table([target], [ratio(1.16)])
    assert "| c: TCMax | 1.15 x | 1.16 x | not met |" in page


def test_every_target_is_a_number_that_is_measured():
    "By name: a renamed case would leave its target unmeasured for ever."
    assert len({t.key for t in TARGETS}) == len(TARGETS)
    settings = {str(s): s for s in steps.SETTINGS}
    for target in TARGETS:
        if target.section == "steps":
            assert not steps.left_out(target.what, settings[target.case]) and target.what in steps.LOSSES
    there = {r.key: r.value for r in tables.load(ROOT / "results" / "speed.json")[1]}
    assert not [t.key for t in TARGETS if not there.get(t.key, -1) >= 0]


def test_the_committed_files_belong_together():
    "The page reads the targets from there; the text is what the numbers say."
    found = json.loads((ROOT / "results" / "speed.json").read_text(encoding="utf8"))
    assert found["targets"] == [asdict(t) for t in TARGETS]
    for name in ("speed", "speed_before"):
        about, rows = tables.load(ROOT / "results" / f"{name}.json")
        assert set(peers.PACKAGES.values()) == set(about["peers"]) and "/" not in json.dumps(about)
        assert len({r.key for r in rows}) == len(rows)
    about, rows = tables.load(ROOT / "results" / "speed.json")
    assert (ROOT / "results" / "speed.md").read_text(encoding="utf8") == tables.report(about, rows, TARGETS)


# ---- what is measured


@pytest.mark.parametrize("method", steps.LOSSES)
def test_a_step_trains_all_that_there_is(method):
    "The steps of a method with AGM's factors are those of Adam, times a number that is not 0."
    model, step = steps.trained_by(method, Setting("mlp", 3, 8, 3, "concat"))
    before = [p.detach().clone() for p in model.parameters()]
    step()
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before)]
    assert all(moved) and all(p.isfinite().all() for p in model.parameters())


def test_neutral_steps_are_the_plain_step():
    "Methods that only add terms have the plain loss where the terms are switched off."
    setting = Setting("mlp", 2, 8, 3, "concat")
    model, xs, y = setting.make()
    want = steps.plain(model, {}, xs, y)
    parts = steps.parts_of("MCR", setting)
    off = dict(mipd_weight=0.0, unimodal_weight=0.0, contrastive_weight=0.0)
    torch.testing.assert_close(steps.mcr(model, parts, xs, y, **off), want)
    torch.testing.assert_close(steps.agm(model, steps.parts_of("AGM", setting), xs, y), want)
    everything = dict(keep=torch.ones(8, 2, dtype=torch.bool))
    torch.testing.assert_close(steps.mask(model, everything, xs, y), want)


@pytest.mark.parametrize("head", ["sum", "mlp", "film", "attention"])
def test_a_setting_is_measured_or_says_why_not(head):
    rows = steps.measure(Setting("mlp", 2, 8, 3, head), Effort(0.0, 1, 1))
    ratios = {r.what: r for r in rows if r.quantity == "ratio"}
    assert set(ratios) == set(steps.LOSSES) - {"plain"}
    assert all(r.value > 0 or r.note for r in ratios.values())
    assert bool(ratios["MultiModal"].note) == (head != "sum")


@pytest.mark.parametrize("name", naive.FORMS)
def test_the_loops_are_the_library(name):
    _, settings = naive.FORMS[name]
    for s in settings:
        n = min(s.modalities, 3)
        small = Setting("mlp", n, 5, 3, s.head)
        old, new = naive.forms(name, small)
        torch.testing.assert_close(new().double(), old().double(), rtol=1e-4, atol=1e-5)


def test_a_wrong_form_is_not_timed(monkeypatch):
    monkeypatch.setattr(naive, "tcmax_loss", lambda f, y: torch.zeros(()))
    with pytest.raises(AssertionError):
        naive.measure("TCMax, loops", Setting("mlp", 2, 4, 3, "sum"), Effort(0.0, 1))


def test_reads_of_values_are_counted():
    mask, x = torch.tensor([True, False]), torch.ones(2)
    for read in (
        lambda: x.sum().item(),
        lambda: bool(mask.any()),
        lambda: x[mask],
        lambda: mask.nonzero(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.numpy(),
    ):
        with counts.Reads() as found:
            read()
        assert found.count >= 1
    with counts.Reads() as found:
        (x.softmax(0) + x.where(mask, 0.0)).sum()
    assert found.count == 0 and torch.Tensor.cpu.__name__ == "cpu"


def test_the_plain_step_and_its_relatives_read_nothing():
    assert [counts.reads_of_function(m) for m in ("plain", "MultiModal", "MultiLoss", "resampling mask")] == [0] * 4


def test_graph_breaks_of_the_cross_entropy_are_none():
    assert counts.graph_breaks("cross-entropy") == 0


def test_samples_of_peers_have_the_information_that_is_said():
    "By the formula of normal variables with the correlations that were drawn, over many samples."
    x, y = peers.gaussian(200_000, 2, 0.5, seed=0)
    rho = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(2)]
    assert abs(-0.5 * np.log(1 - np.square(rho)).sum() - 0.5) < 0.01
    x, y = peers.classes(200_000, 0.3, seed=0)
    d = abs(x[y == 1].mean() - x[y == 0].mean()) / 2
    gain = math.log(2) - np.logaddexp(0, -2 * d * x[:, 0] * (2 * y - 1)).mean()
    assert abs(gain - 0.3) < 0.01


def test_known_amounts_of_gates_add_up_to_the_joint_information():
    for p, amounts in peers.GATES.values():
        joint, inputs, label = p[p > 0], p.sum(2), p.sum((0, 1))
        entropy = lambda q: -(q[q > 0] * np.log(q[q > 0])).sum()
        assert sum(amounts) == pytest.approx(entropy(inputs) + entropy(label) - entropy(joint))


def test_a_package_that_is_not_there_or_fails_has_a_row_that_says_so():
    def fails():
        raise RuntimeError("no such thing")

    notes = {"absent": peers.peer("no_such_package_here")[1]}
    rows = peers.compared("c", {"mmlit": lambda: 1.0, "absent": None, "fails": fails}, float, Effort(0.0, 1), notes)
    said = {r.what: r.note for r in rows if r.note}
    assert said["absent"] == "not installed (ModuleNotFoundError)" and "no such thing" in said["fails"]
    assert {r.what for r in rows if r.quantity == "error"} == {"mmlit"}


def test_a_start_is_that_of_a_new_interpreter():
    seconds, said = through.cpu_seconds("import sys; print('torch' in sys.modules)")
    assert said.split() == ["False"] and 0 < seconds < 5
    with pytest.raises(subprocess.CalledProcessError):
        through.cpu_seconds("raise SystemExit(3)")


# ---- the runner


def test_cases_have_names_of_their_own_and_a_gpu_has_some():
    for quick in (False, True):
        names = [(c.section, c.name) for c in runner.chosen(quick)]
        assert len(set(names)) == len(names) > 5
    assert {c.section for c in runner.chosen()} == set(runner.SECTIONS)
    assert {c.section for c in runner.chosen(device="cuda")} == {"steps", "learner", "functions", "counts", "naive"}
    assert [c.name for c in runner.chosen(only=["steps"], case="cnn M=6")] == [
        "cnn M=6 B=64 C=10 sum",
        "cnn M=6 B=64 C=10 film",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_is_skipped_and_that_is_said(capsys):
    assert runner.main(["--device", "cuda"]) == 0
    assert "skipped" in capsys.readouterr().out


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["--only", "step"])
    assert "unknown sections ['step']; known: steps" in capsys.readouterr().err


def test_a_case_that_fails_is_named():
    def fails(effort, device):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        runner.Runner(Effort(), say=lambda line: None).measure(Case("steps", "the case", fails))
    assert caught.value.__notes__ == ["while measuring steps: the case"]


@pytest.fixture
def one_case(monkeypatch):
    "A runner with one case, whose ratio is what the test says next."
    values = []
    rows = lambda effort, device: [ratio(values.pop(0))]
    monkeypatch.setattr(runner, "chosen", lambda *args: [Case("steps", "c", rows)])
    return values


def test_the_command_fails_on_a_regression_and_keeps_numbers_when_told(one_case, tmp_path, capsys):
    folders = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "build")]
    one_case += [2.0]
    assert runner.main([*folders, "--write"]) == 0
    committed = tmp_path / "results" / "speed.json"
    kept = committed.read_text()

    one_case += [2.6, 2.5, 2.4]
    assert runner.main(folders) == 1
    assert "steps, c: TCMax 2.4 times the base, committed 2" in capsys.readouterr().out
    one_case += [2.6, 2.2]
    assert runner.main(folders) == 0
    one_case += [9.0]
    assert runner.main([*folders, "--no-check"]) == 0 and committed.read_text() == kept

    one_case += [2.6, 2.5, 2.4]
    assert runner.main([*folders, "--write"]) == 0
    assert tables.load(committed)[1] == [ratio(2.4)]


def test_the_quick_mode_runs_from_end_to_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "steps,counts,naive,functions"]
    done = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about, rows = tables.load(tmp_path / "speed_quick.json")
    assert about["torch"] == torch.__version__
    assert {r.section for r in rows} == {"steps", "counts", "naive", "functions"}
    assert all(r.value > 0 for r in rows if r.quantity == "ratio") and "## steps: ratio" in done.stdout


def test_a_profile_counts_each_operation_of_a_step():
    x = torch.ones(300, 300)
    times, count = profiles.own_times(lambda: (x @ x).relu().relu(), 4)
    assert set(times) >= {"aten::mm", "aten::relu"} and count >= 4
    assert max(times, key=lambda name: times[name]) == "aten::mm"


def test_the_profile_is_shown_of_steps_that_miss_their_target():
    targets = [Target("steps", "a", "MCR", "ratio", 2.0), Target("steps", "b", "MCR", "ratio", 4.0)]
    rows = [Row("steps", case, "MCR", "ratio", 3.0) for case in "ab"]
    for case in ("a: MCR", "b: MCR"):
        rows += [Row("profile", case, "operations", "count", 1200), Row("profile", case, "of plain", "count", 500)]
        rows.append(Row("profile", case, "aten::mm", "share", 0.25))
    shown = tables.profile_table(targets, rows)
    assert "a: MCR" in shown and "1,200 (500)" in shown and "aten::mm 25%" in shown and "b: MCR" not in shown
    assert tables.profile_table(targets, []) == ""
    assert shown in tables.report({}, rows, targets) and "share" not in tables.section_tables(rows)
