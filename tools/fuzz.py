"""Every fuzzed function with all its random cases: how many were tried, to results/fuzz.csv.

python tools/fuzz.py          # `pytest --slow` on tests/**/test_fuzz_*.py (minutes)
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "fuzz.csv"
TEST = re.compile(r"^(?P<file>tests/\S+?\.py)::(?P<test>.+?):$")
CASES = re.compile(r"^\s+- (\d+) passing\D+(\d+) failing\D+(\d+) invalid")


def read(said):
    "Rows of hypothesis' statistics: a case is one call with drawn arguments that were valid."
    rows, test = [], None
    for line in said.splitlines():
        if found := TEST.match(line):
            test = found.groupdict()
            rows.append(dict(file=test["file"], test=test["test"], passed=0, failed=0))
        elif (found := CASES.match(line)) and test:
            rows[-1]["passed"] += int(found[1])
            rows[-1]["failed"] += int(found[2])
    return pd.DataFrame(rows, columns=["file", "test", "passed", "failed"])


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    files = sorted(map(str, ROOT.glob("tests/**/test_fuzz_*.py")))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--slow", "-q", "--hypothesis-show-statistics", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    table = read(done.stdout)
    if done.returncode or table.empty:
        sys.exit(done.stdout[-4000:] + done.stderr[-2000:])
    table.sort_values(["file", "test"]).to_csv(TABLE, index=False)
    print(f"{table.passed.sum():,} cases of {len(table)} tests passed, {table.failed.sum()} failed")


if __name__ == "__main__":
    main()
