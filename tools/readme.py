"""README.md from nbs/index.ipynb. `--check` only compares; `--demo` first runs the demo and puts its output and the two
pictures into the index."""

import argparse
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, GALLERY, PICTURES = ROOT / "nbs" / "index.ipynb", ROOT / "nbs" / "gallery.ipynb", ROOT / "nbs" / "images"
README = ROOT / "README.md"
START = "<!-- output of `make demo`, written by `make readme` -->"


def render():
    "The cells of the index as markdown: prose as it is, code in fences, without directives and hidden cells."
    parts = ["<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->"]
    for cell in json.loads(INDEX.read_text(encoding="utf8"))["cells"]:
        source = "".join(cell["source"])
        if re.search(r"^#\|\s*(hide|default_exp)", source, re.M):
            continue
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return re.sub(r"\]\((?=images/|\w+\.ipynb)", "](nbs/", "\n\n".join(parts)) + "\n"


def demo():
    "Run (or read back) the demo; its tables and picture go into the index."
    import matplotlib

    matplotlib.use("agg")
    from rich.console import Console

    from mmlit.benchmark.comparison import compare
    from mmlit.training import Budget

    budget = Budget(n_train=300, n_test=1000, steps=400)
    methods = ["unimodal", "ensemble", "joint", "tcmax"]
    result = compare(["avdigits", "mfeat"], methods, seeds=5, budget=budget, out=ROOT / "runs")
    figure = result.plot()
    figure.set_size_inches(8, 4.6)
    figure.savefig(PICTURES / "demo.png", dpi=110, metadata={"Software": None})

    text = io.StringIO()
    result.show(Console(file=text, width=120))
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
    book = json.loads(INDEX.read_text(encoding="utf8"))
    cell = next(c for c in book["cells"] if "".join(c["source"]).startswith(START))
    cell["source"] = f"{START}\n\n```text\n{lines}\n```".splitlines(keepends=True)
    INDEX.write_text(json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")


def phenomenon():
    "The first picture of the gallery, by the gallery's own cells."
    import matplotlib

    matplotlib.use("agg")
    scope = {}
    for cell in json.loads(GALLERY.read_text(encoding="utf8"))["cells"]:
        if cell["cell_type"] == "code" and "figure" not in scope:
            exec("".join(cell["source"]), scope)
    scope["figure"].savefig(PICTURES / "phenomenon.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    if options.demo:
        demo()
        phenomenon()
    if options.check:
        if README.read_text(encoding="utf8") != render():
            sys.exit("README.md is not in step with nbs/index.ipynb: run `make readme`")
    else:
        README.write_text(render(), encoding="utf8")
