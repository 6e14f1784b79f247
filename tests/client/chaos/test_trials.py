"""What trials conclude from what they measured."""

import math

import pytest

from nanoserve_client.chaos import report, resources
from nanoserve_client.chaos.trials import TrialResult


def test_growth_is_from_the_first_quarter_to_the_last_whatever_happens_between():
    assert resources.growth([10] * 4 + [90] * 8 + [10] * 4) == 0
    assert resources.growth([10] * 4 + [0] * 8 + [13] * 4) == 3
    assert resources.growth([5]) == 0
    assert resources.relative_growth([100, 100, 100, 100, 107, 107, 107, 107]) == pytest.approx(0.07)


def test_one_odd_reading_is_no_growth():
    assert resources.growth([10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 500, 10]) == 0


def test_a_percentile_is_one_of_the_values():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [report.percentile(values, share) for share in (0.2, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert math.isnan(report.percentile([], 0.5))
    assert report.rounded(math.nan) is None


def test_only_what_does_not_hold_is_a_problem():
    result = TrialResult()
    result.require(True, "fine")
    result.require(False, "not fine")
    assert result.problems == ["not fine"]
