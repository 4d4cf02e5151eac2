"The prose of pages, docstrings and comments: spelling, and a few rules of the house; formulas are left out."

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PAGES = [n for n in NOTEBOOKS if not n.stem[0].isdigit()]
# mistakes made on purpose, a view of mfeat, a variable, words that are meant
ALLOWED = "jont,siz,mor,abd,informations,advices,re-use,re-used,re-uses,ue,docments,notin"

HOUSE = {
    "a word stands there twice": r"\b([a-z]+)\s+\1\b",
    "British spelling is used: -ise, -isation": r"\b(?!(?:re|over)?siz|priz|seiz|tokeniz|capsiz)[a-z]+"
    r"(?:iz(?:e[ds]?|er|ers|ing|ations?)|yz(?:e[ds]?|ing))\b",
    "British spelling is used": r"\b(?:behavior|color|favor|flavor|neighbor|center|gray|labeled|labeling|modeling|"
    r"modeled|fulfill|catalog(?!ue)|practiced|penaliz)\w*\b",
    "no contractions": r"\b(?:it|that|there|what)'s\b|\b\w+n't\b|\b(?:we|you|they)'(?:re|ve|ll)\b",
    "no dash where a comma or colon does": "—",
    "a space before a mark": r"[a-z] [,.;:?](?=\s)",
}


def cells(notebook, kind):
    return [
        "".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf8"))["cells"] if c["cell_type"] == kind
    ]


def prose(notebook):
    "The sentences of a notebook: code, formulas, addresses and tags become a letter: what is around them stays apart."
    text = "\n\n".join(cells(notebook, "markdown"))
    for pattern in (r"^```.*?^```", r"\$\$.*?\$\$", r"\$[^$]*\$", r"`[^`]*`", r"(?<=\])\([^)]*\)", r"<[^>]*>"):
        text = re.sub(pattern, "X", text, flags=re.S | re.M)
    return text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_house_rules(notebook):
    text = prose(notebook)
    assert not [f"{told}: {m[0]!r}" for told, pattern in HOUSE.items() for m in re.finditer(pattern, text)]
    assert not [
        line
        for source in cells(notebook, "markdown") + cells(notebook, "code")
        for line in source.split("\n")
        if line != line.rstrip()
    ], "spaces at the end of a line"


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("the the law", "the law of the"),
        ("we normalize it", "the size, normalised"),
        ("the color", "the colour"),
        ("it isn't", "it is not"),
        ("a word , here", "a word, here"),
        ("so — then", "so: then"),
        ("to analyze", "to analyse"),
    ],
)
def test_the_rules_find_what_they_are_for(wrong, right):
    found = lambda text: [told for told, pattern in HOUSE.items() if re.search(pattern, text)]
    assert len(found(wrong)) == 1 and not found(right)


def test_spelling(tmp_path):
    for notebook in NOTEBOOKS:
        (tmp_path / f"{notebook.stem}.md").write_text(prose(notebook), encoding="utf8")
        (tmp_path / f"{notebook.stem}.py").write_text("\n\n".join(cells(notebook, "code")), encoding="utf8")
    files = [
        tmp_path,
        *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "tools", "tests", "benchmarks")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--ignore-words-list", ALLOWED, *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def known_names():
    "What a page may put in backticks: modules, exported names with their members and parameters, data sets, methods."
    import mmlit

    known = {n.stem for n in NOTEBOOKS} | set(mmlit.DATASETS) | set(mmlit.METHODS) | {"mmlit"}
    for found in pkgutil.walk_packages(mmlit.__path__, "mmlit."):
        module = importlib.import_module(found.name)
        short = found.name.removeprefix("mmlit.")
        known |= {found.name, short, short.rpartition(".")[2]}
        for exported in getattr(module, "__all__", ()):
            known |= names_of(exported, getattr(module, exported), found.name)
    other = (
        "xs zs logits index detach logsumexp torch.logsumexp LightningModule Trainer Step DataLoaders.from_dsets dls.c"
    )
    return known | set(f"{other} model.parts num_classes self.zs".split())


def names_of(exported, o, module):
    names = {exported, f"{module}.{exported}"}
    if inspect.isclass(o):
        names |= {m for m in dir(o) if m[0] != "_"} | {f"{exported}.{m}" for m in dir(o)}
        names |= set(getattr(o, "__annotations__", {}))
    try:
        return names | set(inspect.signature(o).parameters)
    except (TypeError, ValueError):
        return names


def test_names_on_the_pages_exist():
    "What a page that is no chapter puts in backticks exists, under that name; one that was changed is found."
    known = known_names()
    unknown = {
        n.stem: names
        for n in PAGES
        if (names := sorted(set(re.findall(r"`([A-Za-z_][\w.]*)`", "\n".join(cells(n, "markdown")))) - known))
    }
    assert not unknown


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_stands_below_the_subtitle_of_a_page(notebook):
    "What stands there is not on the rendered page: the cell is its head, title and subtitle."
    heads = [c for c in cells(notebook, "markdown") if c.startswith("# ")]
    assert len(heads) == 1 and len(heads[0].split("\n\n")) <= 2
