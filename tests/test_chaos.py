"""A short run of the chaos script; `python tests/chaos.py` runs longer."""

import chaos
from marks import needs_proc


@needs_proc
def test_pages_stay_right_in_trouble():
    seen, _, _ = chaos.run(3.0, seed=1)
    assert sum(seen.values()), "each answer was compared with what the fakes hold"
