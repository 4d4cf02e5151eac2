"""Nonsense for every public function: a clear ValueError or TypeError, or an answer; never another error or no end.

The functions are those that the modules offer, so that a new one is tried without being asked for; what is left out
stands in `LEFT_OUT` with its reason. Values are checked in the tests of each chapter: this is about refusals.
"""

import contextlib
import inspect
import random
import signal
import typing
import warnings

import fuzzing
import numpy as np
import pandas as pd
import pytest
import torch
from common import public_functions

from mmlit.audits.advice import detectable, widened
from mmlit.audits.sample_scores import deciding_score, watched_score
from mmlit.bounds import donsker_varadhan, info_nce
from mmlit.methods.multimodal_loss import unimodal_accuracy
from mmlit.methods.shapley import shapley_values
from mmlit.metrics import METRICS, drawn_scores
from mmlit.permutation import cyclic_shifts
from mmlit.scores import Interval

OBJECT = "takes a model, a learner, loaders, data, a column or an encoder, whose class the signature names"
LEFT_OUT = {
    **dict.fromkeys(
        "audit check_model check_stand_in check_reset companion_runs measure repeated_rows training_part in_batches "
        "answers last_features robustness_quantities penultimate_features competition_strength_of train_concepts "
        "build_model default_encoders multimodal_learner unimodal_learner pretrained_learner pretrained_run "
        "unimodal_run joint_run joint pretrained training_on check_learner check_training check_answers check_linear "
        "check_companions frozen_modules untrained_parameters is_training is_search first_epoch task_of with_parts "
        "changes_epochs train_run train_missing loaders data_of use_head in_units feature_dims unwrap encode_present "
        "as_fusion valuate muted_logits mipd mcr_loss tcmax_model_loss alignment_term pairing_log_sums "
        "coalition_logits unimodal_logits pairing_logits absent_features coalition_outcomes hold model_plan model_of "
        "is_whole coding_state coding_of export_model export_onnx save_predictor load_predictor device_of eval_mode "
        "with_metric best_on_validation shapley_values_sampled check_reduction split_rows encode_some fit_encoder "
        "classifier_log_likelihood in_parts chosen_trial trial_rows tuned_rows linear_marks marks_in_words result_card "
        "card_in_words checklist fulfilled_in_words training_in_words tested_rows".split(),
        OBJECT,
    ),
    **dict.fromkeys(
        "compare learning_curve main load_table read_split load_npz load_dataset parse_dataset save_page save_json "
        "register register_method register_metric terminal terminal_table sigterm_as_ctrl_c code_digest on_device "
        "figure_html".split(),
        "reads or writes files, the screen, the device or a register",
    ),
}

BIG = {"shared_unique_task": "its tables grow with its arguments", "competition_task": "likewise"}
# need an object of a class that is not made up
OBJECTS = (
    "plot_models plot_curves plot_shapley conflicts figures audit_metric data_digest with_class_weights with_weights "
    "check_targets draw_rows weighed class_weights_of joined_parts say_guess show_samples plugin_jackknife plugin "
    "knn_terms suits_neighbours knn cross_fitted_log_likelihood suits_classifier classifier neural put_submodule "
    "takes_mask with_mask check_padding check_metric drawn_scores sent routed_shares modality_shares metric_effect "
    "metric_step metric_score is_own_score answers_in_units corrected over_datasets p_values plot_ranks "
    "show_over_datasets token_fault draws_of is_category say_leaks "
    "fit_linear trial_runs trials_of"
)
# what is asked of a value that a library names better: torch lists the devices that it knows
PLAIN = {"device": lambda draw: draw.choice([None, "cpu"])}


def array(draw):
    shape = tuple(draw.choice([0, 1, 2, 3, 5]) for _ in range(draw.choice([0, 1, 1, 2, 2, 3])))
    rng = np.random.default_rng(draw.randrange(2**32))
    x = rng.normal(size=shape)
    kind = draw.choice("fdibng")
    if kind == "i":
        return rng.integers(0, 3, shape)
    if kind == "b":
        return x > 0
    if kind == "f":
        return x.astype(np.float32)
    return x if kind == "d" else np.where(x > 0.5, np.nan if kind == "n" else np.inf, x)


def tensor(draw):
    return torch.as_tensor(array(draw))


def anything(draw):
    "A value of many kinds."
    kind = draw.randrange(10)
    if kind < 3:
        return tensor(draw)
    if kind < 5:
        return array(draw)
    if kind == 5:
        return [tensor(draw) for _ in range(draw.randrange(4))]
    if kind == 6:
        x = array(draw)
        return pd.DataFrame(x) if x.ndim == 2 else pd.Series(x.ravel())
    odd = [0, 1, 2, 3, -1, 0.5, 1e4, float("nan"), float("inf"), "x", "mean", None, True, [1, 2], {"a": 1}, ()]
    return draw.choice(odd)


NUMBERS = [0.0, 0.5, 1.0, -1.0, 7, float("nan"), float("inf")]
WHOLE = [0, 1, 2, 3, 5, -1, 2.5, 1e9, True, None]
OF = {  # what stands in an annotation -> a value of this class, which need not make sense
    "Callable": lambda draw: lambda *args, **options: tensor(draw),
    "Generator": lambda draw: torch.Generator().manual_seed(0),
    "Iterable[Hashable]": lambda draw: list("abc"[: draw.randrange(4)]),
    "Iterable": lambda draw: [tensor(draw) for _ in range(draw.randrange(4))],
    "DataFrame": lambda draw: pd.DataFrame(np.zeros((draw.randrange(3), 2)), columns=["a", "b"]),
    "Interval": lambda draw: Interval(*(draw.choice(NUMBERS) for _ in range(3))),
    "Estimate": None,
    "Mapping": lambda draw: {name: tensor(draw) for name in "ab"[: draw.randrange(3)]},
    "dict": lambda draw: {name: anything(draw) for name in "ab"[: draw.randrange(3)]},
    "Sequence[str]": lambda draw: list("abc"[: draw.randrange(4)]),
    "Sequence[int]": lambda draw: [draw.choice(WHOLE) for _ in range(draw.randrange(3))],
    "Sequence[float]": lambda draw: [draw.choice(NUMBERS) for _ in range(draw.randrange(3))],
    "ndarray": lambda draw: array(draw),
    "Sequence": lambda draw: [tensor(draw) for _ in range(draw.randrange(4))],
    "Tensor": tensor,
    "bool": lambda draw: draw.random() < 0.5,
    "int": lambda draw: draw.choice(WHOLE),
    "float": lambda draw: draw.choice(NUMBERS),
    "str": lambda draw: draw.choice(["x", "", "mean", "zero", "classification", "accuracy"]),
    "dtype": lambda draw: draw.choice([torch.float32, torch.int64]),
    "tuple": lambda draw: tuple(draw.choice(WHOLE) for _ in range(draw.randrange(4))),
}


def sort_of(annotation):
    "Which of `OF` an annotation names; None: a class that is not made up here."
    if annotation is inspect.Parameter.empty or annotation is typing.Any:
        return ""
    said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    said = said.replace("collections.abc.", "")
    return next((name for name in OF if name in said), None)


def of(annotation, draw):
    "What the signature asks for; anything where it says nothing."
    sort = sort_of(annotation)
    return anything(draw) if sort == "" else OF[sort](draw)


def is_made_up(f):
    "Can all that the function needs be made up?"
    needed = [p for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    return all(OF.get(sort_of(p.annotation), anything) for p in needed if sort_of(p.annotation) is not None) and all(
        sort_of(p.annotation) is not None for p in needed
    )


class TooLong(Exception):
    "A call without an end."


@contextlib.contextmanager
def within(seconds):
    "TooLong after so many seconds, where there are signals."
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(f, draw, **chosen):
    "None where the call is answered or refused; else what was given, and the error."
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    asked = [p for p in inspect.signature(f).parameters.values() if p.kind not in kinds]
    asked = [p for p in asked if p.default is p.empty or OF.get(sort_of(p.annotation), anything) is not None]
    asked = [p for p in asked if sort_of(p.annotation) is not None]
    given = {
        p.name: PLAIN[p.name](draw) if p.name in PLAIN else of(p.annotation, draw)
        for p in asked
        if p.default is p.empty or draw.random() < 0.25
    }
    given |= chosen
    try:
        with within(20):
            f(**given)
    except (ValueError, TypeError) as error:
        return None if str(error).strip() else (given, error)
    except Exception as error:
        return {name: repr(v)[:120] for name, v in given.items()}, repr(error)[:300]
    return None


BY_MODULE, NOT_MADE_UP = {}, set()
for name, function in public_functions().items():
    own = name.split(".")[-1]
    if own in LEFT_OUT or own in BIG:
        continue
    if is_made_up(function):
        BY_MODULE.setdefault(function.__module__, {})[name] = function
    else:
        NOT_MADE_UP.add(own)


@fuzzing.TIMES
@pytest.mark.parametrize("module", BY_MODULE)
def test_nonsense_is_refused_or_answered(module, times):
    found = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, f in BY_MODULE[module].items():
            draw = random.Random(name)
            fuzzing.passed += 20 * times
            found += [(name, bad) for _ in range(20 * times) if (bad := tried(f, draw)) is not None]
    assert not found, "\n".join(f"{name}: {bad}" for name, bad in found[:20])


# at the 450 lines that a file may have: their own shape checks meet a list before they can name it
FULL = {"mmlit.methods.modulation", "mmlit.methods.shapley"}


@pytest.mark.parametrize("module", sorted(set(BY_MODULE) - FULL))
@pytest.mark.parametrize("wrong", [[1.0, 2.0], np.ones((3, 2)), None, "x"], ids=lambda v: type(v).__name__)
def test_what_is_no_tensor_is_refused_or_read_as_one(module, wrong):
    found = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, f in BY_MODULE[module].items():
            for p in inspect.signature(f).parameters.values():
                if p.annotation is torch.Tensor:
                    draw = random.Random(name)
                    found += [(name, bad) for _ in range(3) if (bad := tried(f, draw, **{p.name: wrong})) is not None]
    assert not found, "\n".join(f"{name}: {bad}" for name, bad in found[:20])


def test_what_is_left_out_is_stated():
    "A function that needs an object of a class of ours is left out by its signature; those stand here, too."
    names = {name.split(".")[-1] for name in public_functions()}
    assert set(LEFT_OUT) | set(BIG) <= names
    assert NOT_MADE_UP == set(OBJECTS.split()), NOT_MADE_UP ^ set(OBJECTS.split())
    assert sum(map(len, BY_MODULE.values())) > 150


@pytest.mark.parametrize(
    "call",
    [
        lambda: shapley_values(np.ones((4, 2))),
        lambda: shapley_values([1.0, 2.0]),
        lambda: donsker_varadhan(np.ones(3), np.ones(3)),
        lambda: info_nce([[1.0, 2], [3, 4]]),
        lambda: info_nce(np.eye(3)),
        lambda: widened(Interval(0.1, 0, 0.2), 0),
        lambda: widened(Interval(0.1, 0, 0.2), -1),
        lambda: detectable(Interval(0.1, 0, 0.2), 0),
        lambda: watched_score("x", torch.tensor([0, 1])),
        lambda: deciding_score(torch.tensor([True, False])),
        lambda: deciding_score(torch.tensor([], dtype=torch.long)),
        lambda: METRICS["exact_match"](np.zeros((3, 2)), np.array([0, 1, 0]), "classification"),
        lambda: METRICS["exact_match"].by_row(np.zeros((3, 2)), np.array([0, 1, 0])),
        lambda: cyclic_shifts(1e9),
    ],
)
def test_what_was_a_riddle_is_refused(call):
    with within(20), pytest.raises((ValueError, TypeError)) as said:
        call()
    assert len(str(said.value)) > 20 and "object has no" not in str(said.value)


NOTHING = torch.tensor([[0.2, 0.1, 0.3], [float("nan"), 1.0, 0.0], [0.1, 0.2, 0.3], [0.9, 0.2, 0.3]])


@pytest.mark.parametrize("metric", METRICS)
def test_nan_is_no_score(metric):
    task = METRICS[metric].tasks[0]
    y = {"classification": torch.arange(4) % 3, "multi-label": (NOTHING > 0.2).float(), "regression": torch.rand(4, 3)}
    assert np.isfinite(METRICS[metric](NOTHING.nan_to_num(), y[task], task))
    for out in (NOTHING, NOTHING.numpy(), pd.DataFrame(NOTHING.numpy())):
        with pytest.raises(ValueError, match="NaN in 1 of 4 rows"):
            METRICS[metric](out, y[task], task)
        assert np.isnan(drawn_scores(METRICS[metric], NOTHING.nan_to_num(), y[task], task, draws=2)[0]) == 0
    if task == "regression":
        with pytest.raises(ValueError, match="the labels have NaN in 1 of 4 rows"):
            METRICS[metric](y[task], NOTHING, task)


def test_nan_is_no_accuracy_of_a_modality():
    with pytest.raises(ValueError, match="NaN among the scores"):
        unimodal_accuracy(NOTHING[None], torch.arange(4) % 3)
