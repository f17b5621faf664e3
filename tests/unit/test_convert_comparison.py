"""Errors are told from rounding: what may grow, what may not leap, and what is no number."""

import numpy as np

from convert.comparison import BOUNDS, Bounds, compare, compare_tokens, judge


def test_what_is_not_a_number_is_out_of_tolerance():
    theirs = np.ones(4, np.float32)
    bounds = BOUNDS["float32", "stage"]
    for wrong in (np.nan, np.inf):
        one = np.array([1, 1, 1, wrong], np.float32)
        assert judge(compare("logits", one, theirs), bounds, 1.0).within is False
        assert judge(compare("logits", theirs, one), bounds, 1.0).within is False
    assert judge(compare("logits", np.ones(5, np.float32), theirs), bounds, 1.0).within is False
    for same in (theirs, np.zeros(4, np.float32)):
        assert judge(compare("logits", same, same), bounds, 0.0).within


def test_an_error_may_grow_but_not_leap_nor_ever_pass_the_limit():
    bounds = Bounds(1e-5, 1e-3)
    theirs = np.ones(100, np.float32)

    def within(error: float, worst: float) -> bool | None:
        return judge(compare("decoder layer 7", theirs * np.float32(1 + error), theirs), bounds, worst).within

    assert within(0.9e-5, 0.0)
    assert not within(2e-5, 0.0)
    assert within(2e-5, 0.5e-5)
    assert not within(2e-3, 0.9e-3)


def test_greedy_tokens_are_judged_in_float32_and_told_in_bfloat16():
    theirs = np.array([1, 2, 3], np.int32)
    for ours in (np.array([1, 2, 4]), np.array([1, 2]), np.array([1, 2, 3, 4])):
        assert compare_tokens(ours, theirs, "float32").within is False
        assert compare_tokens(ours, theirs, "bfloat16").within is None
    assert compare_tokens(theirs, theirs, "bfloat16").within
