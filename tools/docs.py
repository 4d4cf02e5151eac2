"""The book: notebooks run in a copy, processed by nbdev, rendered to docs/ by smalldocs. No Quarto, no network.

python tools/docs.py                     # everything; notebooks that did not change are not run again
python tools/docs.py --only 04_heads     # run this one (and use what is stored of the others)
python tools/docs.py --no-run            # run none, for work on the layout
"""

import argparse
import ast
import base64
import configparser
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "_proc" / "executed"
SOURCES = ("nbs", "mmlit", "results", "settings.ini", "pyproject.toml")
LONG = 18  # lines of code, directives included, that are shown without a click
FOLD = (
    '#| code-fold: show\n#| code-summary: "Exported source"\n'  # what nbdev writes above an exported cell that is shown
)
ANSI = r"\x1b\[[0-9;]*m"
SKIPPED = re.compile(r"^#\|\s*(slow|cuda|notest|eval:\s*false)\b", re.M)
settings = configparser.ConfigParser(interpolation=None)
settings.read(ROOT / "settings.ini")
settings = settings["DEFAULT"]
SITE_URL = settings["doc_host"] + settings["doc_baseurl"] + "/"
# nbdev links each name to its lines on a host of code; there is none, and a page shows what it documents
SOURCE_LINK = re.compile(rf"\[source\]\({re.escape(settings['git_url'])}[^)]*\)(\{{[^}}]*\}})?")


def page_of(notebook):
    "Name of the page that nbdev links to: 04_permutation -> permutation."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", Path(notebook).stem.lower())


def in_sidebar(folder=ROOT / "nbs"):
    "Notebooks in the order of the sidebar."
    return re.findall(r"([\w-]+\.ipynb)", (folder / "sidebar.yml").read_text(encoding="utf8"))


def check_sidebar(folder=ROOT / "nbs"):
    listed, there = in_sidebar(folder), sorted(p.name for p in folder.glob("*.ipynb"))
    if sorted(listed) != there:
        add, remove = sorted(set(there) - set(listed)), sorted(set(listed) - set(there))
        raise SystemExit(f"nbs/sidebar.yml: add {add}, remove {remove}; each stands there once")


# ---- 1. a copy of the sources, in which notebooks are run


def stage(to):
    "Copy of what notebooks read, installed as far as nbdev needs: an index of names, found through an entry point."
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "models")
            )
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, to / name)
    # these stand once, in docs/, where the pages need them
    shutil.copytree(ROOT / "docs" / "katex", to / "nbs" / "katex")
    shutil.copy(ROOT / "docs" / "styles.css", to / "nbs")
    info = to / f"{settings['lib_name']}-{settings['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {settings['lib_name']}\nVersion: {settings['version']}\n"
    )
    (info / "entry_points.txt").write_text("[nbdev]\nmmlit = mmlit._modidx:d\n")
    return dict(
        os.environ, PYTHONPATH=str(to), MPLBACKEND="module://matplotlib_inline.backend_inline", OMP_NUM_THREADS="1"
    )


def imports(text, package=("mmlit",)):
    "Modules of the library that a source in `package` imports, as files; of the package itself: its names' modules."
    for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*", "", text, flags=re.M))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) + 1 - node.level] if node.level else ()
        name = (*base, *(node.module or "").split(".")) if node.module else base
        if name == ("mmlit",):
            yield from (door(a.name) for a in node.names if a.name != "__version__")
        elif name[0] == "mmlit":
            yield ROOT.joinpath(*name).with_suffix(".py")


def door(name):
    "The module of a name at the front door."
    import mmlit

    return ROOT.joinpath("mmlit", *mmlit._DOOR[name].split(".")).with_suffix(".py")


def imported(text, package=("mmlit",), known=frozenset()):
    "Modules of the library that a source names, and those that they name; the registry of methods names all methods."
    for module in imports(text, package):
        if not module.exists() or module in known:
            continue
        inner = module.relative_to(ROOT).parent.parts
        known = imported(module.read_text(encoding="utf8"), inner, known | {module})
    if re.search(r"\bMETHODS\b|\bcompare\(", text) and package == ("mmlit",):
        known |= set((ROOT / "mmlit" / "methods").glob("*.py"))
    return known


def code_of(notebook):
    return "\n".join("".join(c["source"]) for c in json.loads(notebook)["cells"] if c["cell_type"] == "code")


def stored(notebook):
    "Where the executed notebook is kept, under a hash of itself, the modules it imports and the results it reads."
    text = notebook.read_text(encoding="utf8")
    digest = hashlib.sha256(text.encode())
    for source in sorted([*imported(code_of(text)), *(p for p in (ROOT / "results").glob("*") if p.name in text)]):
        digest.update(source.name.encode() + source.read_bytes())
    return CACHE / f"{notebook.stem}-{digest.hexdigest()[:16]}.ipynb"


def sources(shown=lambda notebook: True):
    "What a built site is made of: a digest of each notebook, None for one that is shown without its outputs."
    return {
        book.stem: hashlib.sha256(book.read_bytes()).hexdigest()[:16] if shown(book) else None
        for book in sorted((ROOT / "nbs").glob("*.ipynb"))
    }


def execute(notebook, keep, env):
    "Run `notebook` without cells marked slow or cuda and store it with its outputs in `keep`; what went wrong."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class Client(NotebookClient):
        async def async_execute_cell(self, cell, index, **kwargs):
            if not SKIPPED.search(cell.source):
                return await super().async_execute_cell(cell, index, **kwargs)

    started, book = time.time(), nbformat.read(notebook, as_version=4)
    client = Client(
        book,
        timeout=900,
        kernel_name="python3",
        extra_arguments=["--InlineBackend.figure_formats=retina"],
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    try:
        client.execute(env=env, stderr=subprocess.DEVNULL)
    except CellExecutionError as error:
        return f"{notebook.name}: {re.sub(ANSI, '', str(error))}"
    for cell in book.cells:  # warnings and logs name files of this machine; a page that shows one prints it
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    keep.parent.mkdir(parents=True, exist_ok=True)
    for old in keep.parent.glob(f"{notebook.stem}-*.ipynb"):
        old.unlink()
    keep.write_text(nbformat.writes(book).replace(f"{notebook.parent.parent}/", ""), encoding="utf8")
    print(f"  {notebook.name}: {time.time() - started:.0f} s", flush=True)


def execute_all(folder, env, run, workers):
    "Notebooks get their outputs: from the store, or by running them if `run(name)`; returns what failed."
    books = sorted(folder.glob("*.ipynb"))
    kept = {book: stored(book) for book in books}
    due = [book for book in books if run(book.stem) and not kept[book].exists()]
    if due:
        print(f"running {len(due)} of {len(books)} notebooks", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        failed = list(filter(None, pool.map(lambda book: execute(book, kept[book], env), due)))
    for book in books:
        if kept[book].exists():
            shutil.copy(kept[book], book)
    return failed


# ---- 2. nbdev's processing: documentation of the exported names, links from names in backticks

PROCESS = """
import ast
import nbdev.processors as processors
from nbdev.doclinks import _build_modidx
from nbdev.serve import proc_nbs

wanted = processors._do_eval
def only_imports(cell):
    # nbdev runs cells with imports to show documentation; one that also computes may need what was not run
    if not wanted(cell): return False
    imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.parsed_())
    return cell.directives_ or "show_doc" in cell.source or imports
processors._do_eval = only_imports
_build_modidx()
proc_nbs(force=True, n_workers=0)
"""


def show_source(book):
    "Exported functions and classes show their code with their documentation, one a cell."
    cells = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if (
            cell["cell_type"] != "code"
            or not re.match(r"#\|\s*export\b", source)
            or not re.search(r"^(def|class|@)", source, re.M)
        ):
            cells.append(cell)
        else:
            cells += [
                {**cell, "id": f"{cell['id']}-{n}", "source": f"#| exports\n{part}"}
                for n, part in enumerate(one_by_one(source.split("\n", 1)[1]))
            ]
        cells.append(
            {"cell_type": "markdown", "id": f"{cell['id']}-end", "metadata": {}, "source": "<!-- -->"}
        )  # keeps nbdev from moving the next cell's documentation above this one
    return {**book, "cells": cells}


def one_by_one(source):
    "Cut after each public definition; private helpers go with the one that follows them."
    lines, public = (
        source.split("\n"),
        [o for o in ast.parse(source).body if not getattr(o, "name", "_").startswith("_")],
    )
    cuts = [0, *(o.end_lineno for o in public[:-1]), len(lines)]
    return ["\n".join(lines[a:b]).strip("\n") for a, b in zip(cuts, cuts[1:])]


def process(top, env):
    "nbdev's processed notebooks, each under the name of its page, with links that stay inside the site."
    for book in (top / "nbs").glob("*.ipynb"):
        book.write_text(json.dumps(show_source(json.loads(book.read_text(encoding="utf8")))), encoding="utf8")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS], cwd=top, env=env, check=True, stdout=subprocess.DEVNULL
    )
    pages = top / "_proc"
    for folder in (p for p in (top / "nbs").iterdir() if p.is_dir()):
        shutil.copytree(folder, pages / folder.name, dirs_exist_ok=True)
    names = {book.name: f"{page_of(book)}.ipynb" for book in (top / "nbs").glob("*.ipynb")}
    rename = lambda text: re.sub("|".join(map(re.escape, names)), lambda m: names[m[0]], text)
    for old, new in names.items():
        book = json.loads((pages / old).read_text(encoding="utf8"))
        for cell in book["cells"]:
            rewrite(cell, names, top, rename)
            if only_imports(cell):
                cell["source"] = '#| code-fold: true\n#| code-summary: "Imports"\n' + "".join(cell["source"])
        for doc, cell in pairwise(book["cells"]):
            tidy_source(doc, cell)
        (pages / old).unlink()
        (pages / new).write_text(json.dumps(book), encoding="utf8")
    (pages / "sidebar.yml").write_text(rename((pages / "sidebar.yml").read_text(encoding="utf8")), encoding="utf8")
    return pages


def rewrite(cell, names, top, rename):
    "Links to this site become relative, those to files of the repository their names; names of notebooks become links."

    def link(m):
        target = m[2].split("#")[0]
        return m[0] if not target or (top / "nbs" / target).exists() or not (ROOT / target).exists() else m[1]

    def chapter(m):
        return f"[{m[0]}]({page_of(m[1])}.ipynb)"

    def prose(text):
        text = re.sub(
            r"\]\(#([^)]+)\)", lambda m: f"](#{m[1].lower()})", text
        )  # Jupyter keeps capitals in anchors, Quarto does not
        text = re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", link, rename(text))
        return re.sub(
            "(?<!\\[)`(" + "|".join(re.escape(Path(n).stem) for n in names if n != "index.ipynb") + ")`", chapter, text
        )

    if cell["cell_type"] == "markdown":
        cell["source"] = prose("".join(cell["source"]).replace(SITE_URL, ""))
    for output in cell.get("outputs", []):
        for kind in ("text/markdown", "text/html"):
            if kind in output.get("data", {}):
                said = SOURCE_LINK.sub("", "".join(output["data"][kind]).replace(SITE_URL, ""))
                output["data"][kind] = re.sub(r"^```.*?^```", unlinked, said, flags=re.S | re.M)


def only_imports(cell):
    try:
        return (
            cell["cell_type"] == "code"
            and (body := ast.parse("".join(cell["source"])).body)
            and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body)
        )
    except SyntaxError:
        return False  # magics


def unlinked(code):
    "A signature as one would write it: no links inside code, short names of types, a class called so."
    text = re.sub(r"\[(`[^`\n]+`)\]\([^)\s]+\)", r"\1", code[0])
    text = re.sub(
        r"\b(?:__main__|collections\.abc|pathlib|typing|torch(?=\.Tensor|\.Generator|\.device)|"
        r"torch\.nn\.modules\.\w+(?=\.Module))\.",
        "",
        text,
    )
    return re.sub(r"^def (?=[A-Z]\w*\()", "class ", text, flags=re.M)


def tidy_source(doc, cell):
    "A short function is shown once, with its body; a long one by its signature, its body folded."
    source = "".join(cell["source"])
    if FOLD not in source:
        return
    short = source.count("\n") <= LONG
    cell["source"] = source.replace(
        FOLD, "" if short else FOLD.replace("show", "true").replace("Exported source", "Source")
    )
    shown = "" if short else statement(source)
    for output in doc.get("outputs", []) if shown is not None else ():
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = re.sub(
                r"^```.*?^```", lambda m: shown, output["data"]["text/markdown"], flags=re.S | re.M
            )


def statement(source):
    "The first public definition, as written, down to its parameters or fields; None where there is nothing to cut."
    lines = re.sub(r"^#\|.*\n", "", source, flags=re.M).split("\n")
    node = next((o for o in ast.parse("\n".join(lines)).body if getattr(o, "name", "_")[0] != "_"), None)

    def head(o):
        return lines[o.lineno - 1 : o.body[0].lineno - 1]  # from the name to the line before the body

    if isinstance(node, ast.FunctionDef):
        shown = head(node)
    elif isinstance(node, ast.ClassDef):
        init = next((o for o in node.body if getattr(o, "name", "") == "__init__"), None)
        fields = [o for o in node.body if isinstance(o, ast.AnnAssign)]
        shown = head(node) + (
            [line for o in fields for line in lines[o.lineno - 1 : o.end_lineno]]
            if fields
            else head(init)
            if init
            else []
        )
    return "\n".join(["```python", *shown, "```"]) if node and shown else None


# ---- 3. smalldocs' rendering, and what makes its site independent of any server


def render(pages):
    from smalldocs import layout, site

    layout.KATEX = "katex"
    for warning in (built := site.build(pages, quiet=True)).warnings:
        if not re.search("output-file|html-math-method", warning):
            print("  " + warning)
    return built.out


def resolve(out):
    "Names in backticks that have no documentation of their own lead to that of their class, or nowhere."
    pages = {p: p.read_text(encoding="utf8") for p in out.glob("*.html")}
    ids = {p.name: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}

    def link(page, m):
        name, anchor = m[2] or page.name, m[3]
        if anchor in ids.get(name, (anchor,)):
            return m[0]
        return f"{m[1]}{m[2]}#{anchor.split('.')[0]}{m[4]}{m[5]}</a>" if anchor.split(".")[0] in ids[name] else m[5]

    for page, text in pages.items():
        page.write_text(
            re.sub(
                r'(<a href="(?:\./)?)([\w-]+\.html|)#([^"]+)("[^>]*>)(<code>[^<]*</code>)</a>',
                functools.partial(link, page),
                text,
            )
            .replace("<!-- -->", "")
            .replace('bg-light" data-bs-theme="light"', 'sd-navbar-default"'),
            encoding="utf8",
        )  # a bar that follows the colours of the page


def picture(out, page, numbers, m):
    "A picture inside a page becomes a file of its own, shown at half its size: it was drawn for dense screens."
    data = base64.b64decode(m[2])
    path = f"figures/{page}-{next(numbers)}.png"
    (out / path).write_bytes(data)
    width, height = struct.unpack(">II", data[16:24])
    return f'<img{m[1]}src="{path}" width="{width // 2}" height="{height // 2}" loading="lazy"'


def localise(out):
    "No font from elsewhere; pictures as files with their size; a search index that also loads from disk."
    for css in out.glob("site_libs/**/*.css"):
        css.write_text(
            re.sub(r"@import\s*(url\(https?:[^)]*\)|([\"'])https?:.*?\2)[^;]*;", "", css.read_text(encoding="utf8")),
            encoding="utf8",
        )
    (out / "search.js").write_text(
        f"window.searchIndex = {(out / 'search.json').read_text(encoding='utf8')};\n", encoding="utf8"
    )
    script = out / "site_libs" / "smalldocs.js"
    fetched = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
    text = script.read_text(encoding="utf8")
    assert fetched in text, "smalldocs has changed how it loads its search index"
    script.write_text(
        text.replace(
            fetched,
            "await new Promise((done, fail) => document.head.append(Object.assign("
            'document.createElement("script"), { src: offset + "search.js", onload: done, onerror: fail })));\n'
            "      index = window.searchIndex;",
        ),
        encoding="utf8",
    )
    for unused in ("search.json", "sitemap.xml"):
        (out / unused).unlink(missing_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    for page in out.glob("*.html"):
        as_file, text = functools.partial(picture, out, page.stem, count(1)), page.read_text(encoding="utf8")
        page.write_text(re.sub(r'<img([^>]*?)src="data:image/png;base64,([^"]+)"', as_file, text), encoding="utf8")
    (out / ".nojekyll").touch()


# ---- 4. what a reader would stumble over


class Reader(HTMLParser):
    "Anchors, links, loaded files, pictures without words and visible text of a page."

    LOADS = {
        "script": "src",
        "img": "src",
        "iframe": "src",
        "source": "src",
        "audio": "src",
        "video": "src",
        "object": "data",
    }
    QUIET = {"script", "style", "code", "pre", "title", "textarea"}

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.mute, self.prose, self.code, self.open = set(), [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.add(attrs["id"])
        if tag == "img" and not (attrs.get("alt") or "").strip():
            self.mute.append(attrs.get("src", "")[:60])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(attrs["href"])
        if attrs.get(self.LOADS.get(tag, "")):
            self.loads.append(attrs[self.LOADS[tag]])
        if (
            tag in self.QUIET
            or (tag == "span" and "math" in attrs.get("class", ""))
            or (self.open and tag == self.open[0][0])
        ):
            self.open.append((tag, attrs.get("class")))

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1][0]:
            self.open.pop()

    def handle_data(self, text):
        if not self.open:
            self.prose.append(text)
        elif self.open[0][0] in ("pre", "code"):
            self.code.append(text)


RAW = re.compile(r"\$\$|\$[^$\n]*[\\_^][^$\n]*\$|\\begin\{|\\frac|\\text|:::|^#\||\{=html\}|\]\(|^\s*\|.*\|\s*$", re.M)


def problems(out):
    "One line each: loads from elsewhere, broken links and anchors, raw markup, pictures without words."
    pages = {p.name: Reader(p.read_text(encoding="utf8")) for p in out.glob("*.html")}
    found = []
    for name, page in pages.items():
        for url in page.loads + page.links:
            parts = urlsplit(url)
            if parts.scheme or url.startswith("//"):
                if url in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {url}")
                continue
            path = unquote(parts.path) or name
            if not (out / path).exists():
                found.append(f"{name} links to {url}, which is not there")
            elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
                found.append(f"{name} links to {url}, where there is no such anchor")
        found += [f"{name} shows raw markup: {m[0][:80]!r}" for text in page.prose for m in RAW.finditer(text)]
        found += [
            f"{name} shows a directive: {m[0]!r}" for text in page.code for m in re.finditer(r"^#\|.*", text, re.M)
        ]
        found += [f"{name} has a picture without words for it: {src}" for src in page.mute]
        found += [
            f"{name} shows a path of this machine: {m[0]}"
            for text in page.code + page.prose
            for m in re.finditer(rf"({re.escape(str(ROOT))}|/root/|/home/|{tempfile.gettempdir()}/)\S*", text)
        ]
    for css in out.rglob("*.css"):
        found += [
            f"{css.relative_to(out)} loads {m[0]}"
            for m in re.finditer(r"(@import|url\()[\"' ]*(https?:)?//[^\"');]*", css.read_text(encoding="utf8"))
        ]
    return sorted(set(found))


def build(to=ROOT / "docs", run=lambda name: True, workers=2):
    "The site in `to`; returns what is wrong with it. A notebook that fails is shown without its outputs."
    check_sidebar()
    if to.exists() and any(p.name != "README.md" for p in to.iterdir()) and not (to / "site_libs").exists():
        raise SystemExit(f"{to} holds something else than a site; it is left alone")
    with tempfile.TemporaryDirectory() as top:
        top = Path(top).resolve()
        env = stage(top)
        failed = execute_all(top / "nbs", env, run, workers)
        out = render(process(top, env))
        resolve(out)
        localise(out)
        for old in to.glob("*") if to.exists() else ():
            if old.name != "README.md":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(out, to, dirs_exist_ok=True)
    (to / "sources.json").write_text(
        json.dumps(sources(lambda book: stored(book).exists()), indent=1) + "\n", encoding="utf8"
    )
    return failed + problems(to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="run no notebook; stored outputs are shown")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="run only these")
    parser.add_argument("--workers", type=int, default=2, help="notebooks that run at a time")
    parser.add_argument("--to", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    found = build(
        options.to, lambda name: not options.no_run and (not options.only or name in options.only), options.workers
    )
    size = sum(f.stat().st_size for f in options.to.rglob("*") if f.is_file())
    print(
        *found,
        f"{options.to / 'index.html'}: {len(list(options.to.glob('*.html')))} pages, {size / 1e6:.1f} MB",
        sep="\n",
    )
    sys.exit(bool(found))
