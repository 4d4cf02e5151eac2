"Any input: a right answer, or an error that names what is wrong."

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from fuzzing import TIMES, refused, run
from hypothesis.extra import numpy as hnp

from mmlit import bounds, information, scores

CASES = 40
odd = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan])
numbers = st.one_of(odd, st.floats(-3, 3), st.floats(width=64))
arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)
)
tables = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4, max_side=3), elements=st.floats(0, 1))


ONE = [information.entropy, information.total_correlation, information.dual_total_correlation]
ONE += [information.interaction_information, information.mutual_information, information.check_distribution]
ONE += [information.conditional_mutual_information, information.information_decomposition]


def any_array(x):
    for measure in ONE:
        found = refused(measure, torch.from_numpy(x))
        if found is not None:
            assert all(v.isfinite().all() for v in (found if isinstance(found, tuple) else [found]))


def any_table(p):
    if p.sum() < 1e-3:
        return
    p = torch.from_numpy(p / p.sum())
    entropy = information.entropy(p)
    assert -1e-12 <= entropy <= math.log(p.numel()) + 1e-9
    assert -1e-9 <= information.total_correlation(p)
    if p.ndim >= 3:
        d = information.information_decomposition(p)
        assert min(term.min() for term in d) > -1e-9 and d.joint <= entropy + 1e-9


def any_scores(values, y, level):
    found = refused(scores.corrected_interval, values, level=level)
    if found is not None and len(values) > 1 and max(map(abs, values)) < 1e100:
        assert found.low <= found.mean <= found.high
    found = refused(scores.bootstrap_interval, values, level=level, draws=100)
    if found is not None and len(values) > 1 and max(map(abs, values)) < 1e100:
        assert found.low <= found.high
    for score in (scores.regression_scores, scores.multilabel_scores, scores.classification_scores):
        found = refused(score, np.array(values), np.array(y))
        assert found is None or not any(math.isnan(v) for v in found.values())


def any_bound(x, y):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    for bound in (bounds.donsker_varadhan, bounds.nwj, bounds.tcne, bounds.tcne_additive):
        found = refused(bound, x, y)
        assert found is None or not (
            found.isnan() and x.isfinite().all() and y.isfinite().all() and x.abs().max() < 1e30
        )
    for bound in (bounds.info_nce, bounds.log_mean_exp, bounds.matched_logits):
        refused(bound, x)
    for score in (scores.expected_calibration_error, scores.classification_scores, scores.gains):
        refused(score, x, y)


FUZZ = [
    (any_array, (arrays,)),
    (any_table, (tables,)),
    (any_scores, (st.lists(numbers, max_size=5), st.lists(numbers, max_size=5), numbers)),
    (any_bound, (arrays, arrays)),
]


@TIMES
@pytest.mark.parametrize("check, inputs", FUZZ, ids=[check.__name__ for check, _ in FUZZ])
def test_any_input(check, inputs, times):
    run(check, CASES * times, *inputs)
