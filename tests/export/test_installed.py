"""Says aloud when the tests of the training side are left out."""

from __future__ import annotations

import pytest


def test_the_training_side_is_tested(missing):
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (`make export`): the tests of training and export did not run")
