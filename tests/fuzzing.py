"How functions are fuzzed: few cases in the usual suite, ten times as many with --slow; the same cases every time."

import functools

import pytest
from hypothesis import HealthCheck, given, settings

passed = 0  # cases, in this process; conftest.py gives each test its own
TIMES = pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])


def run(check, cases, *drawn, **named):
    "`check` with that many cases of what the strategies draw."

    @functools.wraps(check)
    def counted(*args, **options):
        global passed
        check(*args, **options)
        passed += 1

    how = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    settings(max_examples=cases, **how)(given(*drawn, **named)(counted))()


def fuzz(cases, *drawn, **named):
    "A decorator: the check as two tests, one of `cases` cases and one of ten times as many."

    def wrap(check):
        @TIMES
        def fuzzed(times):
            run(check, times * cases, *drawn, **named)

        fuzzed.__name__, fuzzed.__doc__ = check.__name__, check.__doc__
        return fuzzed

    return wrap


def refused(call, *args, **options):
    "What `call` returns, or None for a clear ValueError or TypeError; anything else fails."
    try:
        return call(*args, **options)
    except (ValueError, TypeError) as error:
        said = str(error)
        assert len(said) > 10 and "unsupported operand" not in said and "object is not" not in said, error
