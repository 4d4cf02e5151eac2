"Nonsense as an option of a callback is refused when the callback is made, by name: not in the middle of a training."

import importlib
import inspect
import pkgutil

import pytest
from fastai.callback.core import Callback

import mmlit.methods
from mmlit.core import check_seed, check_switch
from mmlit.runs import which_seeds

MODULES = [f"mmlit.methods.{found.name}" for found in pkgutil.iter_modules(mmlit.methods.__path__)]
MODULES += ["mmlit.monitor", "mmlit.audits.strength"]
CALLBACKS = {
    name: kind
    for module in map(importlib.import_module, MODULES)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, Callback) and kind.__module__ == module.__name__
}
NEEDED = dict(StrengthMonitor=dict(unimodal_models=[len], dep_batches=[], eval_batches=[]))
OPTIONS = [(name, option) for name, kind in CALLBACKS.items() for option in list(inspect.signature(kind).parameters)]
NONSENSE = ["nonsense", -1, float("nan"), object(), b"1", 1j]
# what the message calls an option, where that is another word
WORDS = dict(absent="stand-in")


def made(name, **options):
    return CALLBACKS[name](**NEEDED.get(name, {}) | options)


def test_all_callbacks_are_looked_at():
    known = {"MCR", "TCMax", "GradientModulation", "ConditionalClip", "ModalityResampling", "ModalityDropout"}
    assert known | {"MultiLoss", "MultiModal", "ModalityMonitor", "StrengthMonitor"} <= set(CALLBACKS)
    assert all(made(name) for name in CALLBACKS)


@pytest.mark.parametrize("name, option", OPTIONS, ids=map("-".join, OPTIONS))
def test_nonsense_is_refused_at_construction(name, option):
    for wrong in NONSENSE:
        with pytest.raises((ValueError, TypeError)) as caught:
            made(name, **{option: wrong})
        said = str(caught.value)
        assert option in said or WORDS.get(option, option) in said, (wrong, said)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS if option == "seed"])
def test_seeds_are_those_that_every_generator_takes(name):
    assert made(name, seed=2**32 - 1).seed == 2**32 - 1
    for wrong in (2**32, 2**70, True):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 to"):
            made(name, seed=wrong)


@pytest.mark.parametrize("call", [check_seed, lambda seed: which_seeds([seed])])
def test_seeds_of_runs_and_of_methods_are_the_same(call):
    call(2**32 - 1)
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=r"0 to 2\*\*32 - 1"):
            call(wrong)


def test_a_switch_is_true_or_false_and_no_word():
    assert check_switch("x", True) is True and check_switch("x", False) is False
    for wrong in ("no", "", 0, 1, None, [], float("nan")):
        with pytest.raises(ValueError, match="x is True or False, got"):
            check_switch("x", wrong)
