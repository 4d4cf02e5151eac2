"""README.md from nbs/index.ipynb. `--check` only compares; `--demo` first runs the demo and puts its output and picture into the index."""
import argparse
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README, PICTURE = ROOT/"nbs"/"index.ipynb", ROOT/"README.md", ROOT/"nbs"/"images"/"demo.png"
START = "<!-- output of `make demo`, written by `make readme` -->"


def render():
    "The cells of the index as markdown: prose as it is, code in fences, without directives and hidden cells."
    parts = ["<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->"]
    for cell in json.loads(INDEX.read_text(encoding="utf8"))["cells"]:
        source = "".join(cell["source"])
        if re.search(r"^#\|\s*(hide|default_exp)", source, re.M): continue
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts).replace("](images/", "](nbs/images/") + "\n"


def demo():
    "Run (or read back) the demo; its tables and picture go into the index."
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from rich.console import Console

    from mmlit.benchmark import compare, print_comparison
    result = compare(["mfeat", "emoji"], ["unimodal", "ensemble", "joint"], seeds=5, out=ROOT/"runs")
    heights = [len(result.intervals(d)) for d in result.datasets]
    figure, axes = plt.subplots(2, 2, figsize=(8, 4.6), sharey="row", layout="constrained", height_ratios=heights)
    for data, row in zip(result.datasets, axes): result.plot(data, row)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
    text = io.StringIO()
    print_comparison(result, Console(file=text, width=116))
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
    book = json.loads(INDEX.read_text(encoding="utf8"))
    cell = next(c for c in book["cells"] if "".join(c["source"]).startswith(START))
    cell["source"] = f"{START}\n\n```text\n{lines}\n```".splitlines(keepends=True)
    INDEX.write_text(json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true"); parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    if options.demo: demo()
    if options.check:
        if README.read_text(encoding="utf8") != render(): sys.exit("README.md is not in step with nbs/index.ipynb: run `make readme`")
    else: README.write_text(render(), encoding="utf8")
