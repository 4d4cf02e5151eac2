"A method, a head, a data set and an estimator from outside of the package, with options of their own."

import sys

import certify
import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from mmlit import DATASETS, METHODS, Budget, audit, compare, estimate_mi, load_dataset, multimodal_learner
from mmlit.audits.companions import companion_runs
from mmlit.data.catalogue import register
from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.estimators.direct import Estimate
from mmlit.estimators.estimates import ESTIMATORS
from mmlit.fusion.heads import HEADS, FusionHead
from mmlit.learner import FusionMethod, joint, register_method

SMALL = Budget(epochs=2, width=8, head="outside_head")


class OutsideMethod(FusionMethod):
    "A penalty on the features, with a weight of its own."

    columns = ("outside_penalty",)

    def __init__(self, weight=0.1):
        self.weight = weight

    def after_loss(self):
        term = sum(z.pow(2).mean() for z in self.zs)
        self.record(outside_penalty=term)
        self.add_loss(self.weight * term)


class OutsideHead(FusionHead):
    "A sum of linear maps under a name that mmlit does not know."

    def __init__(self, dims, n_classes, scale=0.7):
        super().__init__(dims, n_classes)
        self.linears, self.scale = nn.ModuleList([nn.Linear(d, n_classes) for d in dims]), scale

    def contributions(self, zs):
        return self.scale * torch.stack([linear(z) for linear, z in zip(self.linears, self.check(zs))])

    def forward(self, zs):
        return self.contributions(zs).sum(0)


def outside_data(n=240, seed=0, gap=1.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    xs = {m: rng.normal(size=(n, 4)) + gap * y[:, None] / 4 for m in ("left", "right")}
    return MultimodalData("outside_data", xs, y, ["a", "b"])


def outside_estimator(quantity, level, shrink=0.0):
    "The information of a Gaussian with the correlation of the normal scores."
    rho = (1 - shrink) * np.corrcoef(quantity.joint.columns.T)[0, 1]
    n, value = len(quantity.joint.codes), -0.5 * np.log(1 - rho**2)
    error = 2 * abs(rho) / n**0.5
    return Estimate(value, max(value - error, 0.0), value + error, "outside_estimator", "estimate", n, level)


@pytest.fixture(scope="module", autouse=True)
def extended():
    "All four are entered, and leave nothing behind for other tests."
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # pytest gives this file a name that no other process can import
    title = "from outside"
    register_method("outside_method", joint(title, "outside_method", OutsideMethod, weight=0.5))
    HEADS["outside_head"] = OutsideHead
    about = dict(modalities=dict(left=(4,), right=(4,)), n=240, classes=["a", "b"])
    register("outside_data", **about, licence="none", citation="this test", source="mmlit")(outside_data)
    ESTIMATORS["outside_estimator"] = outside_estimator
    yield
    cloudpickle.unregister_pickle_by_value(here)
    METHODS.entries.pop("outside_method")
    for table, name in ((HEADS, "outside_head"), (DATASETS, "outside_data"), (ESTIMATORS, "outside_estimator")):
        table.pop(name)


@pytest.mark.parametrize("workers", [1, 2])
def test_they_run_through_a_comparison_with_any_number_of_workers(tmp_path, workers):
    "A worker imports mmlit anew and knows nothing of this module: the entry travels, and not its name."
    methods = ["unimodal", "ensemble", "joint", "outside_method"]
    data = ["outside_data?n=200&gap=2.0"]
    found = compare(data, methods, seeds=2, budget=SMALL, out=tmp_path, workers=workers, progress=False)
    rows = found.runs[found.runs.method.isin(["joint", "outside_method"])]
    assert len(rows) == 4 and rows.accuracy.between(0, 1).all()
    scores = {method: rows[rows.method == method].log_loss.to_numpy() for method in ("joint", "outside_method")}
    assert not np.allclose(scores["joint"], scores["outside_method"])  # the penalty acted
    assert found.verdict(data[0], "outside_method").startswith("outside_data")


def test_workers_give_the_numbers_of_one_process(tmp_path):
    ask = dict(methods=["outside_method", "joint"], seeds=1, budget=SMALL, reference="joint", progress=False)
    one, two = (
        compare(["outside_data"], out=tmp_path / str(workers), workers=workers, **ask).runs.drop(columns="seconds")
        for workers in (1, 2)
    )
    assert one.equals(two)


def test_a_head_says_what_it_can_do_whatever_its_name():
    assert "interacting" in companion_runs(["left", "right"], recipe_head="outside_head")
    assert "interacting" not in companion_runs(["left", "right"], recipe_head="mlp")


def test_a_learner_with_all_of_them_is_audited(tmp_path):
    torch.manual_seed(0)
    dls = multimodal_dls(load_dataset("outside_data"), seed=0)
    learn = multimodal_learner(dls, head="outside_head", method=OutsideMethod(0.5), width=8)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 3e-3)
    assert len(learn.outside_method.history["outside_penalty"]) == 2
    found = learn.audit(out=tmp_path, workers=1, progress=False)
    assert "interacting minus joint" in found.table.index.get_level_values("of")
    recipe = audit(data="outside_data", budget=SMALL, seeds=1, out=tmp_path, workers=1, progress=False)
    assert recipe.name == "outside_data" and "interacting minus joint" in recipe.table.index.get_level_values("of")


def test_an_estimator_is_asked_with_its_own_options():
    x, noise = np.random.default_rng(0).normal(size=(2, 400))
    whole, shrunk = (estimate_mi(x, x + noise, method="outside_estimator", **o) for o in ({}, {"shrink": 0.5}))
    assert whole.value > shrunk.value > 0
    with pytest.raises(ValueError, match="shrink"):
        estimate_mi(x, x + noise, method="outside_estimator", shirnk=0.5)


def test_an_estimator_is_certified_like_those_of_the_package():
    task, _, n, _ = next(row for row in certify.plan(quick=True) if row[0].quantity == "mi" and row[1] == "knn")
    found = [certify.run(task, "outside_estimator", n, repeat) for repeat in range(5)]
    shrunk, _ = certify.run(task, "outside_estimator", n, 0, shrink=0.5)
    assert shrunk.value < found[0][0].value
    row = certify.summary(task, "outside_estimator", n, found)
    assert row["estimator"] == "outside_estimator" and int(row["repeats"]) == 5
