"What holds for the repository as a whole: floors, exports, versions, visible checks, the README."

import ast
import configparser
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
MODULES = sorted(p for p in (ROOT / "mmlit").glob("*.py") if not p.name.startswith("_"))

# an import may only point to a lower floor, or to a lower number on the same floor
FLOORS = dict(
    information=0,
    fusion=0,
    estimators=0,
    permutation=0,
    scores=0,
    data=1,
    multimodal_loss=1,
    shapley=1,
    mcr=2,
    tcmax=2,
    modulation=2,
    callbacks=3,
    baselines=3,
    runs=3,
    audit=4,
    benchmark=4,
)
FASTAI = {"data", "callbacks", "baselines", "runs", "audit", "benchmark"}


def cells(notebook):
    return json.loads(notebook.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def exported(cell):
    return re.search(r"^#\|\s*exports?\b", source(cell), re.M) is not None


def number(module):
    return next(n.name.split("_")[0] for n in NOTEBOOKS if n.stem.split("_", 1)[1] == module)


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or "")


def test_each_notebook_has_its_module():
    assert {n.stem.split("_", 1)[1] for n in NOTEBOOKS} == {m.stem for m in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_imports_point_down(module):
    for name in imports(ast.parse(module.read_text())):
        if name.startswith(".") and len(name) > 1:
            name = "mmlit" + name  # nbdev exports imports of the package as relative ones
        if name.startswith("fastai"):
            assert module.stem in FASTAI, f"{module.name} imports fastai"
        if name.startswith("mmlit."):
            other = name.split(".")[1]
            if other == "datasets":
                continue
            assert FLOORS[other] <= FLOORS[module.stem] and number(other) < number(module.stem), (
                f"{module.name} (floor {FLOORS[module.stem]}) imports {other} (floor {FLOORS[other]})"
            )


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_matplotlib_is_imported_where_it_draws(module):
    tree = ast.parse(module.read_text())
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any("matplotlib" in name for node in top for name in imports(node))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_star_import(notebook):
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert not re.search(r"^\s*from .* import \*", source(cell), re.M), source(cell)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_exported_name_stands_in_a_visible_check(notebook):
    "Each name of `__all__` is used in a code cell that is shown, is not exported and asserts something."
    names = importlib.import_module(f"mmlit.{notebook.stem.split('_', 1)[1]}").__all__
    shown = [
        source(c)
        for c in cells(notebook)
        if c["cell_type"] == "code" and not exported(c) and "#| hide" not in source(c)
    ]
    text = "\n".join(shown)
    assert re.search(r"assert|test_\w+\(", text)
    missing = [n for n in names if not re.search(rf"\b{n}\b", text)]
    assert not missing, f"{notebook.name}: no visible check uses {missing}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_public_functions_have_a_docstring(notebook):
    module = importlib.import_module(f"mmlit.{notebook.stem.split('_', 1)[1]}")
    bare = [n for n in module.__all__ if callable(getattr(module, n)) and not getattr(module, n).__doc__]
    assert len(bare) <= 0.1 * len(module.__all__), f"{notebook.name}: no docstring on {bare}"


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_carry_no_state(notebook):
    ids = [c["id"] for c in cells(notebook)]
    assert len(set(ids)) == len(ids)
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells(notebook) if c["cell_type"] == "code")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A copy of the sources, cleaned and exported anew."
    copy = tmp_path_factory.mktemp("fresh")
    for name in ("nbs", "mmlit"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    bin = Path(sys.executable).parent
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([bin / command], cwd=copy, check=True, capture_output=True)
    return copy


def test_cleaning_changes_nothing(fresh):
    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        assert (fresh / "nbs" / notebook.name).read_text() == notebook.read_text(), f"run nbdev_clean: {notebook.name}"


def test_exporting_changes_nothing(fresh):
    assert {p.name for p in (fresh / "mmlit").glob("*.py")} == {p.name for p in (ROOT / "mmlit").glob("*.py")}
    for module in (ROOT / "mmlit").glob("*.py"):
        assert (fresh / "mmlit" / module.name).read_text() == module.read_text(), f"run nbdev_export: {module.name}"


def test_settings_and_pyproject_are_in_step():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.import_module("mmlit").__version__ == settings["version"]
    assert sorted(settings["requirements"].split()) == sorted(project["dependencies"])
    assert sorted(settings["dev_requirements"].split()) == sorted(project["optional-dependencies"]["dev"])
    assert settings["console_scripts"].split() == [f"{k}={v}" for k, v in project["scripts"].items()]
    assert settings["lib_name"] == project["name"] and settings["min_python"] in project["requires-python"]
    assert f"## {settings['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_is_in_step_with_the_index():
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
