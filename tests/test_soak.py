"""The soak run in its seconds-long mode, and that it would notice what it is there to notice."""

import json
import os
import subprocess
import sys

import pytest

import pegasus_http as ph
import soak
from marks import needs_cpython, needs_proc
from support import PATIENCE, Figures, check_page, environment, generation

pytestmark = needs_proc


def test_a_short_run_loses_nothing():
    done = subprocess.run(
        [sys.executable, os.path.abspath(soak.__file__), "--seconds", "2", "--seed", "7"],
        capture_output=True, text=True, env=environment(), timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("| requests lost | 0 |", "| wrong answers | 0 |", "| soak, seed 7 | |"):
        assert row in done.stdout, done.stdout


def page(state, target):
    return ph.respond(state, "GET", target, {"Host": "x"}, role="meta").body


def decoded(state, target):
    return json.loads(page(state, target).decode())


@pytest.mark.parametrize("target", soak.TARGETS)
def test_one_state_is_right(target):
    number = check_page(target, decoded(generation(5), target))
    assert number in (5, None)


@pytest.mark.parametrize("target", ["/meta/apps", "/meta/apps?detail", "/meta/nodes?detail"])
def test_a_mixture_of_two_states_is_noticed(target):
    one, two = generation(5), generation(6)
    short = two.apps[0]._replace(partitions=two.apps[0].partitions[:5], partition_count=5)
    mixed = one._replace(apps=(short,) + one.apps[1:])
    with pytest.raises(AssertionError):
        check_page(target, decoded(mixed, target))


def figures(**changes):
    return Figures(resident=30.0, peak=40.0, threads=2, descriptors=7)._replace(**changes)


@pytest.mark.parametrize("what, after, code", [
    ("lost", figures(), 0),
    ("wrong", figures(), 0),
    pytest.param("good", figures(resident=60.0), 0, marks=needs_cpython),
    ("good", figures(threads=3), 0),
    ("good", figures(descriptors=8), 0),
    ("good", figures(), 1),
])
def test_the_verdict_notices(what, after, code):
    tally = soak.Tally()
    for each in ("good", "refused", "reset", "ended"):
        tally.add(each)
    assert not list(soak.verdict(tally, figures(), figures(), 0))
    tally.add(what)
    assert list(soak.verdict(tally, figures(), after, code))
