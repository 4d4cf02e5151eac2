"""Every kind of input that a model may be given, as small as it can be: what the tables of support try.

A case has two modalities, `x`, which is of the kind, and a plain vector beside it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.feature_selection import SelectKBest
from torch import nn

from mmlit.fusion.heads import VectorEncoder

ROWS, WIDTH = 60, 4


class Case(NamedTuple):
    "What is given: columns, labels, options of `multimodal_dls`, and perhaps encoders."

    xs: dict
    y: np.ndarray
    options: dict = {}
    encoders: Callable | None = None  # () -> M untrained encoders


class Words(nn.Module):
    "Of what a tokenizer returns."

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, WIDTH)

    def forward(self, x):
        mask = x["attention_mask"][..., None]
        return (self.embedding(x["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)


class Pair(nn.Module):
    "Of two vectors."

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, WIDTH), nn.Linear(2, WIDTH)

    def forward(self, x):
        return (self.left(x[0]) + self.right(x[1])).relu()


def _words_encoders():
    return [Words(), VectorEncoder(3, WIDTH)]


def _pair_encoders():
    return [Pair(), VectorEncoder(3, WIDTH)]


def _level(rng, y, *shape):
    "Random numbers about the class, float32."
    return (rng.normal(size=(len(y), *shape)) + y.reshape(-1, *(1,) * len(shape))).astype(np.float32)


def _files(rng, y, folder):
    "Paths of pictures, which are written."
    paths = [Path(folder) / f"{i}.png" for i in range(len(y))]
    for path, c in zip(paths, y):
        Image.fromarray(rng.integers(60 * c, 60 * c + 90, (8, 8, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def _table(rng, y):
    "Numbers, categories and text, with empty cells."
    table = pd.DataFrame(dict(age=rng.normal(60, 9, len(y)) + 9 * y))
    table["stage"] = [("I", "II", "III")[i] for i in rng.integers(0, 3, len(y))]
    table["remark"] = [f"no. {i} has {('pain', 'ache')[i % 2]}" for i in range(len(y))]
    table.loc[3:5, "age"], table.loc[9, "stage"], table.loc[11, "remark"] = np.nan, None, None
    return table


def _some(rng, y):
    "A vector that every fourth sample lacks."
    x = _level(rng, y, 4)
    x[1::4] = np.nan
    return x


def _walks(rng, y):
    return [_level(rng, np.full(t, c), 2) for t, c in zip(rng.integers(2, 9, len(y)), y)]


def _ids(rng, y):
    return [[int(c) + 1, *map(int, rng.integers(4, 9, rng.integers(1, 6)))] for c in y]


def _several(rng, y):
    return dict(input_ids=rng.integers(0, 9, (len(y), 5)), attention_mask=np.tile([1, 1, 1, 1, 0], (len(y), 1)))


def _numbers(y, rng):
    return np.stack([y + rng.normal(size=len(y)), 1e3 * rng.normal(size=len(y))], 1).astype(np.float32)


def _parts(y):
    "A given split; where classes take turns, each part has all of them."
    return [("train", "train", "train", "valid", "test")[i // (y.max() + 1) % 5] for i in range(len(y))]


_TOKENS, _TUPLE = dict(kinds=dict(x="tokens")), dict(kinds=dict(x="tuple"))

# kind -> (rng, y, folder) -> the column, options of `multimodal_dls`, encoders; what is left out is as for a vector
KINDS: dict[str, Callable] = {
    "vector": lambda rng, y, _: (_level(rng, y, 4),),
    "sequence": lambda rng, y, _: (_level(rng, y, 2, 8), dict(layout=dict(x="channels_first"))),
    "picture in an array": lambda rng, y, _: (rng.integers(0, 256, (len(y), 3, 8, 8), dtype=np.uint8),),
    "picture files": lambda rng, y, folder: (_files(rng, y, folder), dict(size=8)),
    "text": lambda rng, y, _: ([f"word{c} after word{i % 5}" for i, c in enumerate(y)],),
    "word ids": lambda rng, y, _: (rng.integers(1, 9, (len(y), 5)), _TOKENS),
    "table": lambda rng, y, _: (_table(rng, y),),
    "sequence of different length": lambda rng, y, _: (_walks(rng, y),),
    "word ids of different length": lambda rng, y, _: (_ids(rng, y), _TOKENS),
    "dict of arrays": lambda rng, y, _: (_several(rng, y), {}, _words_encoders),
    "what a tokenizer returns": lambda rng, y, _: (_several(rng, y),),
    "tuple of arrays": lambda rng, y, _: ((_level(rng, y, 3), _level(rng, y, 2)), _TUPLE, _pair_encoders),
    "missing modality": lambda rng, y, _: (_some(rng, y),),
    "transformer": lambda rng, y, _: (_level(rng, y, 30), dict(transform=dict(x=SelectKBest(k=5)))),
    "given split": lambda rng, y, _: (_level(rng, y, 4), dict(split=_parts(y))),
    "several targets": lambda rng, y, _: (_level(rng, y, 4), dict(task="regression")),
    "class weights": lambda rng, y, _: (_level(rng, y, 4), dict(class_weights="balanced")),
    "row weights": lambda rng, y, _: (_level(rng, y, 4), dict(weights=1.0 + y)),
}


def case(kind, folder=".", rows=ROWS, classes=3):
    "The case of a kind, always the same."
    rng, y = np.random.default_rng(0), np.arange(rows) % classes
    x, *more = KINDS[kind](rng, y, folder)
    plain = _level(rng, y, 3)
    return Case(dict(x=x, plain=plain), _numbers(y, rng) if kind == "several targets" else y, *more)


def rows_of(column, rows):
    "These rows of a column as it was given."
    if isinstance(column, dict):
        return {name: rows_of(part, rows) for name, part in column.items()}
    if isinstance(column, tuple):
        return tuple(rows_of(part, rows) for part in column)
    if isinstance(column, pd.DataFrame):
        return column.iloc[rows].reset_index(drop=True)
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]


def same(said, want):
    "Are two answers equal, but for the order of sums?"
    return torch.allclose(torch.as_tensor(said), torch.as_tensor(want), rtol=1e-4, atol=1e-5)
