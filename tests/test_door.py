"The front door: what `import mmlit` shows, in any order and at no cost, and what it must never show."

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from common import said_after

import mmlit

HEAVY = {"torch", "fastai", "sklearn", "pandas", "matplotlib", "scipy"}


def fresh(code):
    "What `code` prints in a process of its own."
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_heavy():
    loaded = fresh("import mmlit, sys; dir(mmlit); print(mmlit.__version__, *sys.modules)").split()
    assert loaded[0] == mmlit.__version__ and not HEAVY & {name.split(".")[0] for name in loaded}


def test_the_docstring_is_a_tour_of_one_screen_that_names_every_name():
    lines = mmlit.__doc__.splitlines()
    assert 20 <= len(lines) <= 40 and max(map(len, lines)) <= 120
    missing = [name for name in mmlit.__all__ if name not in mmlit.__doc__]
    assert not missing, missing


def test_completion_lists_the_names_before_anything_was_loaded():
    shown = fresh("import mmlit; print(*(n for n in dir(mmlit) if n[0] != '_'))").split()
    assert sorted(shown) == sorted(mmlit.__all__) and len(mmlit.__all__) < 40


def test_the_names_for_the_type_checker_are_those_that_are_loaded():
    tree = ast.parse(inspect.getsource(mmlit))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {a.name: node.module for node in block.body for a in node.names}
    assert typed == mmlit._DOOR and set(typed) == set(mmlit.__all__)


def test_every_name_is_there_and_is_no_module_after_every_module_was_imported():
    for module in pkgutil.walk_packages(mmlit.__path__, "mmlit."):
        importlib.import_module(module.name)
    for name in mmlit.__all__:
        value = getattr(mmlit, name)
        assert not inspect.ismodule(value), f"mmlit.{name} is a module"
        assert value is getattr(importlib.import_module(f"mmlit.{mmlit._DOOR[name]}"), name)


def test_names_do_not_depend_on_what_was_imported_before():
    modules = ["mmlit.audits.audit", "mmlit.methods.tcmax", "mmlit.benchmark.comparison", "mmlit.cli"]
    asked = "from mmlit import audit, compare, TCMax\nprint(callable(audit), callable(compare), TCMax.__name__)"
    assert said_after([f"import {m}" for m in modules], asked) == ["True True TCMax"] * 4


def test_an_unknown_name_is_an_import_error_and_star_gives_all():
    with pytest.raises(ImportError):
        from mmlit import audti  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'measure'"):
        mmlit.measure  # noqa: B018
    assert fresh("from mmlit import *; print(audit.__name__, len(DATASETS) > 5)") == "audit True"


def test_learners_audit_themselves_without_a_second_import():
    first = [
        "from mmlit import multimodal_learner",
        "from mmlit.learner import multimodal_learner",
        "import mmlit.cli; from mmlit import TCMax",
    ]
    asked = "from mmlit.learner import Learner, multimodal_learner\nfrom mmlit import load_dataset, multimodal_dls\n"
    asked += "try: multimodal_learner(multimodal_dls(load_dataset('digits'))).audit(absent='no such')\n"
    asked += "except ValueError as e: print('stand-in' in str(e))"
    assert said_after(first, asked) == ["True"] * 3
