"""A short run of the chaos script; `python tests/chaos.py` runs longer."""

import chaos
from marks import needs_proc


@needs_proc
def test_pages_stay_right_in_trouble():
    """The script compares each answer with what the servers held, and stops at the first that is
    wrong; it goes on until it has compared enough pages."""
    assert chaos.run(2.0, seed=1).seen[200] >= chaos.LEAST
