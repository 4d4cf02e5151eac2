"The rendered site: complete, nothing from elsewhere, nothing raw or broken; no error in a browser or on a phone."

import ast
import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from common import tracked_files
from filelock import FileLock

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import docs  # noqa: E402

pytest.importorskip("smalldocs")
BOOKS = [p.stem for p in (ROOT / "nbs").glob("*.ipynb")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
FLAGS += "--disable-component-update --disable-sync --enable-logging=stderr".split()
browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "Built once, without running a notebook; workers of one test run share it."
    top = tmp_path_factory.getbasetemp()
    out = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "site"
    with FileLock(f"{out}.lock"):
        if not (out / "index.html").exists():
            docs.build(out.with_name("unchecked"), run=lambda name: False)
            out.with_name("unchecked").rename(out)
    return out


# ---- without a browser


def test_every_notebook_is_in_the_sidebar():
    docs.check_sidebar()


def test_chapters_stand_in_the_order_of_their_numbers():
    listed = docs.in_sidebar()
    chapters = [name for name in listed if name[0].isdigit()]
    assert chapters == sorted(chapters) and listed[: 1 + len(chapters)] == [
        "index.ipynb",
        *chapters,
    ]  # the other pages come last


def test_a_notebook_missing_from_the_sidebar_is_named(tmp_path):
    shutil.copy(ROOT / "nbs" / "sidebar.yml", tmp_path)
    for book in docs.in_sidebar():
        (tmp_path / book).touch()
    (tmp_path / "99_new.ipynb").touch()
    with pytest.raises(SystemExit, match="99_new"):
        docs.check_sidebar(tmp_path)


def test_nbdev_yml_follows_the_settings():
    text = (ROOT / "nbs" / "nbdev.yml").read_text()
    for value in (
        docs.SITE_URL.rstrip("/"),
        docs.settings["git_url"],
        docs.settings["description"],
        docs.settings["doc_path"],
    ):
        assert value in text


def test_imports_of_a_notebook_stand_in_cells_of_their_own():
    "`nbdev_docs` runs every cell with an import, and only those: one that also computes may need what was not run."
    mixed = []
    for book in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        for n, cell in enumerate(json.loads(book.read_text())["cells"]):
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or re.search(r"^#\|\s*(export|eval)", source, re.M):
                continue
            nodes = list(ast.walk(ast.parse(source)))
            if any(isinstance(o, (ast.Import, ast.ImportFrom)) for o in nodes) and any(
                isinstance(o, (ast.Expr, ast.Assign)) for o in nodes
            ):
                mixed.append(f"{book.name}, cell {n}")
    assert not mixed


def test_pages_are_complete(site):
    pages = {docs.page_of(b) for b in BOOKS}
    assert {p.stem for p in site.glob("*.html")} == pages
    for name, page in ((p.stem, p.read_text()) for p in site.glob("*.html")):
        assert all(f'href="{other}.html"' in page for other in pages - {name}), (
            f"{name} does not lead to every other page"
        )


def test_pages_lead_on_in_the_order_of_the_sidebar(site):
    order = [f"{docs.page_of(book)}.html" for book in docs.in_sidebar()]
    for here, before, after in zip(order, [None, *order], [*order[1:], None]):
        text = (site / here).read_text()
        turns = [re.search(rf'nav-page-{where}"><a href="([^"]+)"', text) for where in ("previous", "next")]
        assert [turn and turn[1] for turn in turns] == [before, after], here


def test_nothing_is_raw_broken_or_loaded_from_elsewhere(site):
    assert not docs.problems(site)


def test_no_page_leads_to_a_host_of_code_that_does_not_exist(site):
    assert not [page.name for page in site.glob("*.html") if docs.settings["git_url"] in page.read_text()]


def test_names_in_backticks_lead_to_their_documentation(site):
    assert 'href="shapley.html#shapley_values"' in (site / "index.html").read_text()
    assert 'id="shapley_values"' in (site / "shapley.html").read_text()


@pytest.mark.parametrize(
    "broken, told",
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<a href="nowhere.html">x</a>', "links to nowhere.html, which is not there"),
        ('<a href="#nowhere">x</a>', "no such anchor"),
        ("<p>the value $$x$$</p>", "raw markup"),
        ("<p>a [link](x.html)</p>", "raw markup"),
        ("<p>::: note</p>", "raw markup"),
        ("<pre><code>#| export\nx = 1</code></pre>", "directive"),
        ('<img src="good.html">', "without words"),
        ("<pre>saved /root/x.png</pre>", "of this machine"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(tmp_path, broken, told):
    (tmp_path / "good.html").write_text(
        '<p id="a">is <span class="math">\\(\\frac12\\)</span>, <code>$$</code></p><a href="#a">a</a><a href="https://x.org">x</a>'
    )
    assert not docs.problems(tmp_path)
    (tmp_path / "bad.html").write_text(broken)
    found = docs.problems(tmp_path)
    assert len(found) == 1 and found[0].startswith("bad.html") and told in found[0]


def test_the_store_notices_what_a_notebook_depends_on(tmp_path, monkeypatch):
    for folder in ("mmlit", "results"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    book, module, deeper, other, read = (
        tmp_path / "00_a.ipynb",
        tmp_path / "mmlit" / "a.py",
        tmp_path / "mmlit" / "b.py",
        tmp_path / "mmlit" / "c.py",
        tmp_path / "results" / "r.csv",
    )
    texts = {
        book: "from mmlit.a import f; read_csv('r.csv')",
        module: "from .b import g",
        deeper: "",
        other: "from .a import f",
        read: "",
    }

    def write(path, text):
        cells = [{"cell_type": "code", "source": [text]}]
        path.write_text(json.dumps({"cells": cells}) if path == book else text)

    for path, text in texts.items():
        write(path, text)
    for path, text in texts.items():
        before = docs.stored(book)
        write(path, text + " # changed")
        assert (docs.stored(book) == before) == (path == other)


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="left alone"):
        docs.build(tmp_path, run=lambda name: False)
    assert (tmp_path / "mine.txt").exists()


def test_a_long_definition_is_shown_as_far_as_its_parameters_or_fields():
    function = "#| code-fold: true\n_x = 1\n@cache\ndef f(\n    a:int, # one\n)->int:\n    'doc'\n    return a"
    assert docs.statement(function) == "```python\ndef f(\n    a:int, # one\n)->int:\n```"
    tuple_ = "class T(NamedTuple):\n    'doc'\n    a:int # one\n    def g(self): pass"
    assert docs.statement(tuple_) == "```python\nclass T(NamedTuple):\n    a:int # one\n```"
    module = "class M(Module):\n    'doc'\n    def __init__(self,\n        a, # one\n    ):\n        self.a = a"
    assert (
        docs.statement(module) == "```python\nclass M(Module):\n    def __init__(self,\n        a, # one\n    ):\n```"
    )
    assert docs.statement("_x = 1\ndef _f(): pass") is None


def test_names_lead_to_their_class_where_they_have_no_documentation_of_their_own(tmp_path):
    (tmp_path / "a.html").write_text('<h3 id="c">C</h3>')
    link = '<a href="./a.html#{}"><code>{}</code></a>'
    (tmp_path / "b.html").write_text(
        " ".join(link.format(n.lower(), n) for n in ("C", "C.m", "_f")) + '<a href="a.html#gone">by hand</a>'
    )
    docs.resolve(tmp_path)
    assert (
        (tmp_path / "b.html").read_text()
        == f'{link.format("c", "C")} {link.format("c", "C.m")} <code>_f</code><a href="a.html#gone">by hand</a>'
    )


def test_committed_pages_are_those_of_the_notebooks():
    if not committed():
        pytest.skip("docs/ is not committed")
    made_of = json.loads((ROOT / "docs" / "sources.json").read_text())
    assert made_of == docs.sources(), "run `make docs`"
    assert not docs.problems(ROOT / "docs")


def test_definitions_are_shown_one_by_one():
    source = "A = 1\ndef _f(): return 1\n\n@cache\ndef g():\n    return 2\n# h\ndef h(): pass\nB = 2"
    assert docs.one_by_one(source) == [source[: source.index("# h")].strip(), source[source.index("# h") :]]
    assert docs.one_by_one("def _f(): pass") == ["def _f(): pass"]


@pytest.mark.slow
def test_a_notebook_is_run_once_without_its_slow_cells(tmp_path, monkeypatch):
    import nbformat

    cells = [
        "import time; time.time()",
        "#| slow\n1/0",
        "#| eval: false\n1/0",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    ]
    folder = tmp_path / "nbs"
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), folder / "00_a.ipynb")
    source = (folder / "00_a.ipynb").read_text()
    monkeypatch.setattr(docs, "CACHE", tmp_path / "store")
    env = dict(os.environ, MPLBACKEND="module://matplotlib_inline.backend_inline")
    shown = []
    for _ in range(2):
        (folder / "00_a.ipynb").write_text(source)
        docs.execute_all(folder, env, lambda name: True, 1)
        shown.append((folder / "00_a.ipynb").read_text())
    assert shown[0] == shown[1]  # the time in the first cell says that it was run once
    outputs = [c["outputs"] for c in json.loads(shown[0])["cells"]]
    assert [len(o) for o in outputs] == [1, 0, 0, 1] and "image/png" in outputs[3][0]["data"]


# ---- in a browser: each page in a frame, at the width of a phone and of a desk

HARNESS = Path(__file__).with_name("harness.html").read_text(encoding="utf8")


def visit(url, folder):
    "What the page at `url` looks like to a reader's browser, and what the console says."
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=600000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def read_report(page):
    assert "<title>done" in page, page[-2000:]
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", page, re.S)[1]))


def committed():
    return "docs/index.html" in tracked_files(ROOT)


@pytest.fixture(scope="module", params=["built without outputs", "committed"])
def pages_seen(request, tmp_path_factory):
    "Over http: the report of the harness on the pages as they are built here, and as they are committed."
    if request.param == "committed" and not committed():
        pytest.skip("docs/ is not committed")
    site = request.getfixturevalue("site") if request.param != "committed" else ROOT / "docs"
    top = tmp_path_factory.mktemp("browser")
    shutil.copytree(site, top / "site")
    pages = sorted(p.name for p in site.glob("*.html"))
    (top / "site" / "harness.html").write_text(HARNESS.replace("PAGES", json.dumps(pages)))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=top / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, console = visit(f"http://127.0.0.1:{server.server_port}/harness.html", top / "profile")
        server.shutdown()
    return read_report(page), console


@browser
def test_pages_are_sound_in_a_browser(pages_seen):
    report, console = pages_seen
    found, words = report.pop("search"), report.pop("words")
    assert set(report) == {f"{docs.page_of(b)}.html" for b in BOOKS}
    assert not {page: found for page, found in report.items() if found}
    assert not console
    assert "./tcmax.html#tcmax_loss" in found[:3]
    assert "./faq.html#missing-modalities" in words[:3]


@browser
def test_a_page_opened_from_disk_draws_its_formulas_and_searches(site, tmp_path):
    page, console = visit((site / "shapley.html").as_uri(), tmp_path / "profile")
    assert page.count('class="katex"') > 20 and "katex-error" not in page
    assert not console
    text = (
        (site / "mcr.html")
        .read_text()
        .replace(
            "</body>",
            """<script>addEventListener("load", () => {
        const input = document.querySelector(".smalldocs-search input");
        input.value = "tcmax_loss"; input.dispatchEvent(new Event("input"));
        });</script></body>""",
        )
    )
    (site / "searching.html").write_text(text)
    try:
        page, console = visit((site / "searching.html").as_uri(), tmp_path / "profile")
    finally:
        (site / "searching.html").unlink()
    assert "tcmax.html#tcmax_loss" in re.findall(r'class="search-result" href="([^"]+)"', page)[0] and not console
