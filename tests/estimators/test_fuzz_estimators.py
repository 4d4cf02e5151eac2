"Any samples: an estimate that its interval contains, or an error that names what is wrong."

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from fuzzing import TIMES, refused, run
from hypothesis.extra import numpy as hnp

from mmlit.estimators.estimates import estimate_cmi, estimate_mi, estimate_tc
from mmlit.permutation import conditional_weights, permutation_cmi, permutation_test

CASES = 15
odd = st.sampled_from([0.0, 1.0, -1.0, 1e300, math.inf, math.nan])
n = st.sampled_from([0, 1, 19, 20, 25, 90])
columns = n.flatmap(
    lambda n: st.one_of(
        hnp.arrays(np.float64, (n,), elements=st.one_of(st.floats(-2, 2, width=16), odd)),
        hnp.arrays(np.float64, (n, 2), elements=st.floats(-2, 2), fill=st.nothing()),
        hnp.arrays(np.int64, (n,), elements=st.integers(0, 3)),
        hnp.arrays(np.bool_, (n,)),
    )
)
same_length = st.tuples(columns, st.integers(0, 2**16)).map(
    lambda drawn: (drawn[0], np.random.default_rng(drawn[1]).normal(size=len(drawn[0])))
)


def any_estimate(pair, groups, level, method):
    x, y = pair
    groups = None if groups is None else np.arange(len(x)) // groups
    for found in (
        refused(estimate_mi, x, y, method=method, level=level, groups=groups),
        refused(estimate_cmi, y, x, y > 0, method=method, level=level, groups=groups),
        refused(estimate_tc, [x, y, y > 1], method=method, level=level, groups=groups),
    ):
        assert found is None or (0 <= found.low <= found.high and not math.isnan(found.value) and found.n == len(x))


def any_permutation(pair, m, reps):
    x, y = (torch.as_tensor(v) for v in pair)
    label, g = (y > 0).long(), torch.Generator().manual_seed(0)
    found = refused(permutation_test, [x, y[:, None]], m, label, reps, generator=g)
    assert found is None or (1 / (1 + reps) <= found.pvalue <= 1 and found.statistic.isfinite())
    weights = refused(conditional_weights, [x, y[:, None]], m, g)
    assert weights is None or (weights.isfinite().all() and (weights.sum(1) - 1).abs().max() < 1e-6)
    refused(
        permutation_cmi,
        lambda zs: torch.stack([z.reshape(len(z), -1).sum(1) for z in zs], 1),
        [x, y[:, None]],
        m,
        label,
    )


FUZZ = [
    (
        any_estimate,
        (
            same_length,
            st.sampled_from([None, 1, 2]),
            st.sampled_from([0.5, 0.95, 95, math.nan]),
            st.sampled_from(["auto", "plugin", "knn", "magic"]),
        ),
    ),
    (any_permutation, (same_length, st.integers(-1, 2), st.sampled_from([0, 9]))),
]


@TIMES
@pytest.mark.parametrize("check, inputs", FUZZ, ids=[check.__name__ for check, _ in FUZZ])
@pytest.mark.filterwarnings("ignore")
def test_any_input(check, inputs, times):
    run(check, CASES * times, *inputs)
