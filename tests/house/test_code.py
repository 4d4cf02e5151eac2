"Style and types of all code, and the wheel: what a user installs."

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from common import tracked_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    return done.returncode, done.stdout + done.stderr


def test_ruff_is_clean():
    code, said = run(BIN / "ruff", "check", ".", cwd=ROOT)
    assert code == 0, said


def test_tests_and_tools_are_formatted():
    code, said = run(BIN / "ruff", "format", "--check", "tests", "tools", "benchmarks", cwd=ROOT)
    assert code == 0, said


def test_pyright_is_clean():
    code, said = run(BIN / "pyright", "--pythonpath", sys.executable, cwd=ROOT)
    assert code == 0, said


# ---- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The wheel alone, installed into a folder."
    top = tmp_path_factory.mktemp("wheel")
    for name in tracked_files(ROOT):
        if name.startswith(("docs/", "tests/", "results/")):
            continue
        (top / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, top / "source" / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    code, said = run(*pip, "--target", top / "site", top / "source")
    assert code == 0, said
    return top / "site"


def test_the_wheel_holds_every_room_and_all_data(installed):
    names = {str(p.relative_to(installed / "mmlit")) for p in (installed / "mmlit").rglob("*") if p.is_file()}
    here = {p for p in (ROOT / "mmlit").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    wanted = {str(p.relative_to(ROOT / "mmlit")) for p in here}
    assert wanted <= names, f"not in the wheel: {wanted - names}"
    assert {"py.typed", "datasets/mfeat.npz", "audits/audit.py", "methods/__init__.py"} <= wanted


def quick_start():
    "The first program of the README."
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.S)[1]


def test_the_quick_start_runs_from_the_wheel(installed, tmp_path):
    code = f"import mmlit; assert mmlit.__file__.startswith({str(installed)!r}), mmlit.__file__\n{quick_start()}"
    env = os.environ | {"PYTHONPATH": str(installed), "MPLBACKEND": "agg"}
    status, said = run(sys.executable, "-W", "ignore", "-c", code, cwd=tmp_path, env=env)
    assert status == 0, said


def test_the_wheel_names_no_page_that_does_not_exist(installed):
    (metadata,) = installed.glob("mmlit-*.dist-info/METADATA")
    said = metadata.read_text(encoding="utf8").split("\n\n")[0]
    assert "Project-URL" not in said and "Home-page" not in said
    assert "Requires-Dist: threadpoolctl" in said


# ---- the versions that the tests passed with


def test_the_lock_file_names_what_is_installed():
    "Of everything that mmlit and its tests need; an entry that nothing needs is no fault."
    lines = [line.split("==") for line in (ROOT / "requirements-lock.txt").read_text().split()]
    locked = {canonicalize_name(name): number for name, number in lines}
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, needed["dependencies"] + needed["optional-dependencies"]["dev"]):
        number = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(number), requirement
        assert version(requirement.name).split("+")[0] == number, requirement
