"What holds for the repository as a whole: the order of the rooms, exports, versions, visible checks, the README."

import ast
import configparser
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from common import tracked_files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mmlit"


def cells(notebook):
    return json.loads(notebook.read_text(encoding="utf8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def exported(cell):
    return re.search(r"^#\|\s*exports?\b", source(cell), re.M) is not None


def module_of(notebook):
    "The dotted name that a notebook is exported to; None for a page that is no chapter."
    found = re.search(r"^#\|\s*default_exp ([\w.]+)", source(cells(notebook)[0]), re.M)
    return found and found[1]


BOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = {book: module for book in BOOKS if (module := module_of(book))}
ORDER = {module: place for place, module in enumerate(CHAPTERS.values())}  # of reading, and of imports
PATHS = {module: PACKAGE / (module.replace(".", "/") + ".py") for module in CHAPTERS.values()}

# what loads without scikit-learn, pandas and fastai: the mathematics, for people who bring their own training loop
LEAN = [m for m in ORDER if m.split(".")[0] in ("core", "information", "fusion", "bounds", "permutation")]
# what knows nothing of fastai: everything below the loaders, and what only writes down
NO_FASTAI = [*LEAN, "data.columns", "data.tasks", "data.splits", "data.catalogue", "scores", "pages"]
NO_FASTAI += [m for m in ORDER if m.startswith("estimators.")]

each_chapter = pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("module", ORDER)


def imported(module):
    "Modules of the package that the code of `module` imports, dotted and without `mmlit`, and names of other packages."
    tree, here = ast.parse(PATHS[module].read_text(encoding="utf8")), ["mmlit", *module.split(".")]
    own, other = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            other |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            (own if name.split(".")[0] == "mmlit" else other).add(name)
    return {name.removeprefix("mmlit").lstrip(".") for name in own} - {""}, other


# ---- rooms


def test_each_notebook_has_its_module_and_each_module_its_notebook():
    written_by_hand = {p for p in PACKAGE.rglob("__init__.py")}
    there = {p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py"} - written_by_hand
    assert there == set(PATHS.values())
    assert len({re.sub(r"^\d+\w*?_", "", book.stem) for book in BOOKS}) == len(BOOKS), "two pages of one name"


@each_module
def test_imports_point_down(module):
    "To a chapter that is read before, hence in no circle; rooms of a package do not import the package as a whole."
    own, other = imported(module)
    assert own <= set(ORDER), f"{module} imports {own - set(ORDER)}"
    up = {name for name in own if ORDER[name] >= ORDER[module]}
    assert not up, f"{module} imports {up}, which stand above it"
    if module in NO_FASTAI:
        assert not {n for n in other if n.split(".")[0] == "fastai"}, f"{module} imports fastai"


def test_the_lean_rooms_load_neither_scikit_learn_nor_pandas_nor_fastai():
    names = ", ".join(f"mmlit.{m}" for m in LEAN)
    code = f"import sys, {names}; print(*{{n.split('.')[0] for n in sys.modules}} & {{'sklearn', 'pandas', 'fastai'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "", done.stdout


def test_the_rule_finds_what_it_is_for():
    assert ORDER["core"] == 0 and ORDER["learner"] < ORDER["methods.tcmax"] < ORDER["audits.audit"]
    own, other = imported("methods.shapley")
    assert {"core", "learner", "fusion.coalitions"} <= own and "torch" in other


@each_module
def test_matplotlib_is_imported_where_it_draws(module):
    tree = ast.parse(PATHS[module].read_text(encoding="utf8"))
    top = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any("matplotlib" in line for line in top)


@each_chapter
def test_no_star_import(notebook):
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert not re.search(r"^\s*from .* import \*", source(cell), re.M), source(cell)


# ---- what is public


@each_chapter
def test_every_exported_name_stands_in_a_visible_check(notebook):
    "Each name of `__all__` is used in a code cell that is shown, is not exported and asserts something."
    names = importlib.import_module(f"mmlit.{CHAPTERS[notebook]}").__all__
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    shown = [source(c) for c in code if not exported(c) and "#| hide" not in source(c)]
    text = "\n".join(shown)
    assert re.search(r"assert|test_\w+\(", text)
    missing = [n for n in names if not re.search(rf"\b{n}\b", text)]
    assert not missing, f"{notebook.name}: no visible check uses {missing}"


@each_chapter
def test_no_check_only_restates_a_constant(notebook):
    "`assert FORMS == ('dv', 'nwj')` teaches nothing: a constant that no reader calls has an underscore."
    for cell in cells(notebook):
        if cell["cell_type"] != "code" or exported(cell):
            continue
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", source(cell), flags=re.M))):
            test = node.test if isinstance(node, ast.Assert) else None
            if not isinstance(test, ast.Compare) or len(test.ops) != 1:
                continue
            constant = isinstance(test.left, ast.Name) and test.left.id.isupper() and len(test.left.id) > 1
            try:
                ast.literal_eval(test.comparators[0])
            except ValueError:
                continue
            assert not constant, f"{notebook.name}: {ast.unparse(node)}"


@each_module
def test_public_names_have_a_docstring_and_public_options_a_name(module):
    found = importlib.import_module(f"mmlit.{module}")
    names = [n for n in found.__all__ if callable(getattr(found, n))]
    bare = [n for n in names if not getattr(found, n).__doc__]
    assert not bare, f"no docstring on {bare}"
    hidden = [n for n in names if "options" in parameters(getattr(found, n)) - ALLOWED_OPTIONS.get(n, set())]
    assert not hidden, f"options that no completion shows: {hidden}"


# the options of somebody else, whose signature says them: a callback, a loader, a head, an estimator
ALLOWED_OPTIONS = dict.fromkeys(("joint", "joint_run", "load_dataset", "use_head"), {"options"})
ALLOWED_OPTIONS |= dict.fromkeys(("estimate_mi", "estimate_cmi", "estimate_tc", "Estimator"), {"options"})


def parameters(o):
    try:
        signature = inspect.signature(o)
    except (TypeError, ValueError):
        return set()
    return {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}


@each_module
def test_private_names_stay_in_their_room(module):
    tree = ast.parse(PATHS[module].read_text(encoding="utf8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("mmlit")):
            private = [a.name for a in node.names if re.match(r"_(?!_)", a.name)]
            assert not private, f"{module} imports {private} from {node.module}"


# ---- code that fits


def body_lines(function):
    "Lines of a body, without signature and docstring."
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@each_module
def test_code_fits(module):
    text = PATHS[module].read_text(encoding="utf8")
    assert not [line for line in text.split("\n") if len(line) > 120 and not line.startswith("__all__ = ")]
    assert text.count("\n") < 450, f"{module} has {text.count(chr(10))} lines"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: n for f in functions if (n := body_lines(f)) > 40}
    assert not long, f"{module} has bodies of more than 40 lines: {long}"


@each_module
def test_what_is_known_is_said_in_one_place(module):
    "`core.one_of` says what is known and what was probably meant."
    if module != "core":
        assert "known: {" not in PATHS[module].read_text(encoding="utf8")


@each_module
def test_plain_words_in_code(module):
    text = PATHS[module].read_text(encoding="utf8")
    assert not re.findall(r"\b(?:law|laws|_law\w*|\w+_laws?)\b", text, re.I), "say distribution or synthetic task"


# ---- what is generated


@pytest.mark.parametrize("notebook", BOOKS, ids=lambda p: p.stem)
def test_notebooks_carry_no_state(notebook):
    ids = [c["id"] for c in cells(notebook)]
    assert len(set(ids)) == len(ids)
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)


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
    for notebook in BOOKS:
        assert (fresh / "nbs" / notebook.name).read_text() == notebook.read_text(), f"run nbdev_clean: {notebook.name}"


def test_exporting_changes_nothing(fresh):
    names = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")}
    assert {str(p.relative_to(fresh / "mmlit")) for p in (fresh / "mmlit").rglob("*.py")} == names
    for name in names:
        assert (fresh / "mmlit" / name).read_text() == (PACKAGE / name).read_text(), f"run nbdev_export: {name}"


# ---- what stands twice, in step


def test_settings_and_pyproject_are_in_step():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, nbdev = pyproject["project"], pyproject["tool"]["nbdev"]
    assert importlib.import_module("mmlit").__version__ == settings["version"]
    assert sorted(settings["requirements"].split()) == sorted(project["dependencies"])
    assert sorted(settings["dev_requirements"].split()) == sorted(project["optional-dependencies"]["dev"])
    assert settings["console_scripts"].split() == [f"{k}={v}" for k, v in project["scripts"].items()]
    assert settings["lib_name"] == project["name"] and settings["min_python"] in project["requires-python"]
    assert all(str(settings[key]) == str(value) for key, value in nbdev.items())
    assert f"## {settings['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_is_in_step_with_the_index():
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is a source distribution: its own tests say it")
def test_the_source_distribution_holds_what_the_tests_need():
    "Each tracked file is one that setuptools takes by itself, or is named in MANIFEST.in."
    named = (ROOT / "MANIFEST.in").read_text()
    tops = {name.split("/")[0] for name in tracked_files(ROOT)} - {"mmlit", "pyproject.toml", "README.md", "LICENSE"}
    assert not {top for top in tops - {"MANIFEST.in"} if top not in named}


def test_nothing_stands_in_the_repository_twice():
    "One KaTeX, one style sheet."
    tracked = tracked_files(ROOT)
    for name in ("katex.min.js", "styles.css"):
        assert sum(Path(p).name == name for p in tracked) == 1, name


def says_trials(function):
    "Does this test, or its decorator, say how many random cases or faults it made?"
    decorators = [ast.unparse(d) for d in function.decorator_list]
    counted = any(d.startswith(("fuzz(", "fuzzing.fuzz(")) or d in ("TIMES", "fuzzing.TIMES") for d in decorators)
    return counted or "record_property('trials'" in ast.unparse(function)


# tests that are newer than the table: `python tools/trials.py -k ...` makes their rows, then their names go from here
AWAITED: set[tuple[str, str]] = set()


def test_every_test_that_counts_trials_has_a_row_in_their_table():
    table = (ROOT / "results" / "trials.csv").read_text(encoding="utf8").splitlines()[1:]
    rows = {tuple(part.split("[")[0] for part in line.split(",")[:2]) for line in table}
    counted = set()
    for file in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf8"))
        own = [f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and says_trials(f)]
        counted |= {(file.stem, name) for name in own if name.startswith("test_")}
    assert len(counted) > 50 and all("_fuzz_" in stem or stem == "test_faults" for stem, _ in counted)
    assert not AWAITED & rows, "their rows are there: take them out of AWAITED"
    assert counted <= rows | AWAITED, f"run tools/trials.py -k for {sorted(counted - rows)}"
    assert rows <= counted, f"there are no such tests: {sorted(rows - counted)}"
