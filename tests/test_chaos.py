"""A short run of the chaos script; `python tests/chaos.py` runs longer."""

import os

import pytest

import chaos


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("seed", [1, 2])
def test_pages_stay_right_in_trouble(seed):
    seen, _, _ = chaos.run(3.0, seed)
    assert sum(seen.values()), "each answer was compared with what the fakes hold"
