"""Random cases, and kills, damaged files, crowded folders and full disks: how many of them each test tried.

python tools/trials.py              # `pytest --slow` on their files, half an hour, to results/trials.csv
python tools/trials.py -k kills     # these tests again, as pytest chooses them; the rows of the others stay
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "trials.csv"


def read(report):
    "Rows of a report of pytest, in XML: tests that said how many trials they made, or failed before they could."
    rows = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        said = {p.get("name"): p.get("value") for p in case.iter("property")}
        bad = case.find("failure") is not None or case.find("error") is not None
        if "trials" in said or bad:
            outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
            rows.append([case.get("classname").split(".")[-1], case.get("name"), int(said.get("trials", 0)), outcome])
    return pd.DataFrame(rows, columns=["file", "test", "trials", "outcome"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="which tests; all of them if left out")
    asked = parser.parse_args()
    files = [str(f) for f in sorted(ROOT.glob("tests/**/test_*.py")) if "_fuzz_" in f.stem or f.stem == "test_faults"]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-n", "2", "--slow", "-q", f"--junitxml={report.name}", *files]
        if asked.k:
            command += ["-k", asked.k]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        table = read(Path(report.name).read_text(encoding="utf8"))
    if table.empty:
        sys.exit(done.stdout[-4000:] + done.stderr[-2000:])
    if asked.k and TABLE.exists():
        old, key = pd.read_csv(TABLE), ["file", "test"]
        table = pd.concat([old[~old.set_index(key).index.isin(table.set_index(key).index)], table])
    table.sort_values(["file", "test"]).to_csv(TABLE, index=False)
    bad = table.test[table.outcome != "passed"]
    if done.returncode:
        print(done.stdout[-8000:])
    print(f"{table.trials.sum():,} trials of {len(table)} tests; not passed: {', '.join(bad) or 'none'}")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
