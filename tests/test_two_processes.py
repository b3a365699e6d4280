"""That the tests run in two processes report every result."""

import os
import subprocess
import sys

import pytest

import support
from marks import needs_fork

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = {
    "test_a.py": """
import pytest
def test_passes(other):
    pass
def test_fails(capfd):
    print("this is shown")
    assert [1, 2] == [1, 3]
@pytest.mark.skip("a reason")
def test_is_skipped():
    pass
""",
    "test_b.py": """
import os
def test_passes(other):
    pass
def test_does_not_end_well():
    if "CRASH" in os.environ:
        os._exit(7)
""",
    "conftest.py": """
import os, time, pytest
from two_processes import pytest_runtestloop
@pytest.fixture
def other(request, tmp_path_factory):
    "Passes once both files have a test that runs."
    folder = tmp_path_factory.getbasetemp()
    (folder / request.node.path.name).touch()
    end = time.monotonic() + %d
    while sum(1 for _ in folder.glob("test_?.py")) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
""" % support.PATIENCE,
}

pytestmark = needs_fork


@pytest.fixture
def run(tmp_path):
    """Run pytest on those files; its exit code and what it printed."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def call(*arguments, **changes):
        env = support.environment(**changes)
        env["PYTHONPATH"] += os.pathsep + HERE
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments],
            cwd=str(tmp_path), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=4 * support.PATIENCE)
        return ended.returncode, ended.stdout
    return call


def test_two_files_run_at_once_and_every_result_is_shown(run):
    code, printed = run()
    assert code == 1
    assert "1 failed, 3 passed, 1 skipped in" in printed
    for line in ("this is shown", "assert [1, 2] == [1, 3]", "a reason"):
        assert line in printed


def test_the_first_failure_can_end_both(run):
    code, printed = run("-x")
    assert code == 1
    assert "stopping after 1 failures" in printed
    assert "1 failed" in printed


def test_a_process_that_crashes_is_no_success(run):
    code, printed = run(CRASH="yes", PYTEST_ADDOPTS="--deselect test_a.py::test_fails")
    assert code == 1
    assert "a process that runs tests ended with 7" in printed
