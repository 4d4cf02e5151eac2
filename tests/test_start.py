"How fast the library and its command start: what an import loads, and how long it takes beside that of torch."

import re
import subprocess
import sys

import pytest

HEAVY = "{'sklearn', 'pandas', 'matplotlib', 'rich', 'scipy'}"

# seconds of CPU that an import takes, in a process that imports nothing else meanwhile
CLOCK = """
import sys, time
def seconds(code):
    start = time.process_time()
    exec(code, {})
    return time.process_time() - start
"""


def fresh(code):
    "What `code` prints last in a process of its own."
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CLOCK + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def ratio(first, second):
    "CPU time of the code `first` over that of `second`, which runs after it; the better of two processes."
    asked = f"first, second = seconds({first!r}), seconds({second!r})\nprint(first/second)"
    return min(float(fresh(asked)) for _ in range(2))


# what it costs is told by torch's own import, which takes about a second: the machines of a test are of any speed


def test_the_door_opens_in_a_tenth_of_the_time_of_torch():
    assert ratio("import mmlit; dir(mmlit)", "import torch") < 0.1


@pytest.mark.parametrize("command", ["", "'audit', ", "'compare', ", "'data', "])
def test_help_takes_less_than_half_of_the_time_of_torch(command):
    asked = "import contextlib\nfrom mmlit.cli import main\nwith contextlib.suppress(SystemExit): "
    asked += f"main([{command}'--help'])"
    assert ratio(asked, "import torch") < 0.5


def test_a_loss_adds_nothing_heavy_to_what_fastai_loads():
    "fastai loads scikit-learn, pandas, matplotlib and rich itself, so that parts of these are what may be added."
    asked = "import fastai.callback.all\nbefore = set(sys.modules)\nfrom mmlit import tcmax_loss\n"
    added = f"{{m for m in set(sys.modules) - before if m.split('.')[0] in {HEAVY}}}"
    assert fresh(f"{asked}print('added', *sorted({added}))") == "added"


def test_a_loss_takes_little_beside_torch_and_fastai():
    "About a tenth of a second more: a tenth of torch alone."
    asked = "base = seconds('import torch, fastai.callback.all'); own = seconds('from mmlit import tcmax_loss')"
    assert min(float(fresh(f"{asked}\nprint(own/base)")) for _ in range(2)) < 0.15


@pytest.mark.parametrize("name", ["coalition_logits", "pairing_logits", "FiLMHead", "as_fusion", "FusionModel"])
def test_what_needs_only_torch_loads_only_torch(name):
    asked = f"from mmlit import {name}\nloaded = {{m.split('.')[0] for m in sys.modules}}\n"
    assert fresh(f"{asked}print('loaded', *(loaded & ({HEAVY} | {{'torch', 'fastai'}})))") == "loaded torch"


def test_a_comparison_begins_soon_after_its_imports(tmp_path):
    "Its own work before the first run: reading the data, splits, fingerprints."
    asked = f"""
torch = seconds("import torch")
import mmlit.methods, mmlit.runs
from mmlit import Budget, compare
def begin(*args, **options):
    print((time.process_time() - start)/torch)
    raise KeyboardInterrupt
mmlit.runs.train_run = begin
start = time.process_time()
try: compare(["mfeat", "emoji"], seeds=2, budget=Budget(epochs=1), out={str(tmp_path)!r}, workers=1, progress=False)
except KeyboardInterrupt: pass
"""
    assert min(float(fresh(asked)) for _ in range(2)) < 1.5


def test_the_help_names_the_heads_that_there_are():
    "They are written there by hand: to ask for them would load torch."
    from mmlit.fusion.heads import HEADS

    said = fresh("from mmlit.cli import _TRAINING\nprint(dict((o, what) for o, _, what in _TRAINING)['--head'])")
    assert re.findall(r"\w+", said.partition(":")[2]) == list(HEADS)
