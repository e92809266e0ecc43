"""What the tests of the training side need; without it they are not collected, and `test_installed.py` says so."""

from __future__ import annotations

import importlib.util

import pytest

NEEDED = ("torch", "onnxscript", "matplotlib", "monai")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
NEEDING = ("test_model.py", "test_published.py", "test_train.py", "test_evaluate.py", "test_fine.py")
collect_ignore = [*NEEDING] if MISSING else []


@pytest.fixture
def missing() -> list[str]:
    """What of it is not installed."""
    return MISSING
