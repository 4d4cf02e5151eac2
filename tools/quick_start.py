"""The README's programs in the environment that runs this script, from an empty folder: what a new user does first.

python tools/quick_start.py        # prints the versions of what it ran on
"""

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
COMMANDS = ["audit --data digits --epochs 2 --workers 1", "compare --data digits --seeds 2 --epochs 2", "data emoji"]


def programs():
    "The Python programs of the README, in its order."
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf8"), re.S)


def run(*command, folder):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=folder, env=os.environ | {"MPLBACKEND": "agg"}
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)[:200]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run("-c", "import mmlit, sys; assert 'torch' not in sys.modules; print(mmlit.__file__)", folder=folder)
        run("-c", "\n".join(programs()), folder=folder)
        for command in COMMANDS:
            run("-m", "mmlit.cli", *command.split(), folder=folder)
    names = ("torch", "fastai", "fastcore", "fastprogress", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib")
    print(f"passed on Python {sys.version.split()[0]},", ", ".join(f"{n} {version(n)}" for n in names))
