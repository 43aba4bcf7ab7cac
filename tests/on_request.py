"""Tests that take minutes run on request: `RLGKD_MINUTES=1 scripts/test`, or with the files alone."""

from __future__ import annotations

import os

import pytest

minutes = pytest.mark.skipif("RLGKD_MINUTES" not in os.environ, reason="takes minutes: RLGKD_MINUTES=1 scripts/test")
