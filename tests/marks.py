"""Marks that several test files put on their tests."""

import os
import sys

import pytest

from support import STYLES

both_styles = pytest.mark.parametrize("style", STYLES)
needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="memory and descriptors are read in /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
needs_cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="memory is given back when it suits it")
