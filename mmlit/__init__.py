"""Does your multimodal model suffer from modality competition, how much, and what helps?

A joint model of several modalities is often no better than an ensemble of unimodal ones: the modalities compete.
mmlit explains it, measures it, fixes it, and compares every fix with the ensemble.

    from mmlit import TCMax, audit, load_dataset, multimodal_dls, multimodal_learner

    dls = multimodal_dls(load_dataset("emoji"))                # or {"picture": paths, "text": strings}, labels
    learn = multimodal_learner(dls, method=TCMax())            # a fastai Learner; method=None trains plainly
    learn.fit_one_cycle(5, 3e-3)
    print(learn.audit())                                       # or audit(model, dls) for any torch module

Data        multimodal_dls, multimodal_data: your columns as fastai loaders; DATASETS, load_dataset: ours by name
Models      multimodal_learner; as_fusion, FusionModel: a model in two parts, `encode` and `fuse`;
            SumHead, ConcatHead, FiLMHead, GatedHead, MLPHead, AttentionHead
Methods     MultiModal, TCMax, MCR, ModalityResampling, GradientModulation; ModalityMonitor watches each modality;
            METHODS has them all, with the baselines, by the names that `compare` knows
Answers     audit: does this model suffer, and what to do; compare: methods x seeds x data sets under one `Budget`;
            learning_curve: the same by the number of training rows
Production  save_predictor, load_predictor: answers to raw rows from a file without code; export_model, export_onnx
Functions   estimate_mi, estimate_cmi, estimate_tc: information from samples, in nats; shapley_values;
            tcmax_loss, mcr_loss, coalition_logits, pairing_logits: the methods in plain torch

On a terminal: `mmlit audit --data emoji`, `mmlit compare --data mfeat,emoji`, `mmlit data`.
Modules, in reading order: core, information, data, fusion, bounds, permutation, estimators, scores, learner, methods,
fingerprint, store, runs, pages, audits, benchmark, cli, production. Each is a chapter of the book, its formulas beside
their tests.
"""
__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audits.audit import audit
    from .benchmark.comparison import compare
    from .benchmark.curves import learning_curve
    from .data.catalogue import DATASETS, load_dataset
    from .data.loaders import multimodal_data, multimodal_dls
    from .estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
    from .fusion.coalitions import coalition_logits, pairing_logits
    from .fusion.heads import AttentionHead, ConcatHead, FiLMHead, GatedHead, MLPHead, SumHead
    from .fusion.models import FusionModel, as_fusion
    from .learner import METHODS, Budget, multimodal_learner
    from .methods.mcr import MCR, mcr_loss
    from .methods.modulation import GradientModulation
    from .methods.multimodal_loss import MultiModal
    from .methods.shapley import ModalityResampling, shapley_values
    from .methods.tcmax import TCMax, tcmax_loss
    from .monitor import ModalityMonitor
    from .production.exported import export_model, export_onnx
    from .production.predictor import load_predictor, save_predictor

# name -> module; loaded when a name is first asked for, so that `import mmlit` alone loads neither torch nor fastai
_DOOR = {name: module for module, names in {
    "audits.audit": ["audit"],
    "benchmark.comparison": ["compare"],
    "benchmark.curves": ["learning_curve"],
    "data.catalogue": ["DATASETS", "load_dataset"],
    "data.loaders": ["multimodal_data", "multimodal_dls"],
    "estimators.estimates": ["estimate_cmi", "estimate_mi", "estimate_tc"],
    "fusion.coalitions": ["coalition_logits", "pairing_logits"],
    "fusion.heads": ["AttentionHead", "ConcatHead", "FiLMHead", "GatedHead", "MLPHead", "SumHead"],
    "fusion.models": ["FusionModel", "as_fusion"],
    "learner": ["METHODS", "Budget", "multimodal_learner"],
    "methods.mcr": ["MCR", "mcr_loss"],
    "methods.modulation": ["GradientModulation"],
    "methods.multimodal_loss": ["MultiModal"],
    "methods.shapley": ["ModalityResampling", "shapley_values"],
    "methods.tcmax": ["TCMax", "tcmax_loss"],
    "monitor": ["ModalityMonitor"],
    "production.exported": ["export_model", "export_onnx"],
    "production.predictor": ["load_predictor", "save_predictor"],
}.items() for name in names}

__all__ = [  # noqa: F822
    "AttentionHead", "Budget", "ConcatHead", "DATASETS", "FiLMHead", "FusionModel", "GatedHead", "GradientModulation",
    "MCR", "METHODS", "MLPHead", "ModalityMonitor", "ModalityResampling", "MultiModal", "SumHead", "TCMax",
    "as_fusion", "audit", "coalition_logits", "compare", "estimate_cmi", "estimate_mi", "estimate_tc", "export_model",
    "export_onnx", "learning_curve", "load_dataset", "load_predictor", "mcr_loss", "multimodal_data", "multimodal_dls",
    "multimodal_learner", "pairing_logits", "save_predictor", "shapley_values", "tcmax_loss",
]


_ROOMS = (
    "core", "information", "data", "fusion", "bounds", "permutation", "estimators", "scores", "learner", "methods",
    "fingerprint", "store", "runs", "pages", "audits", "benchmark", "cli", "production",
)


def __getattr__(name):
    if name in _ROOMS: return _import_module(f"{__name__}.{name}")
    if name not in _DOOR: raise AttributeError(f"module 'mmlit' has no attribute {name!r}; its names are in dir(mmlit)")

    value = getattr(_import_module(f"{__name__}.{_DOOR[name]}"), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
