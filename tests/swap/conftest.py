"""What the tests of the swapper share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small(one_thread):
    """These problems are too small for two threads."""
