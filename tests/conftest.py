"""Servers that several test files ask, and the command line as a function.

Every test that takes `meta` or `standby` runs in both serving styles.
"""

import logging
import os
import signal
import threading

import pytest

import pegasus_http as ph
import replay
from fakes import STATE
from support import PATIENCE, PRIMARY, STYLES, cluster, ours, served, wait_until
from two_processes import pytest_runtestloop  # noqa: F401 - pytest looks for hooks here


class Served:
    """A `StatusServer` and the port on which it is serving in this style."""

    def __init__(self, server, port, style):
        self.server, self.port, self.style = server, port, style


@pytest.fixture(autouse=True)
def it_ends():
    """A test that waits for ever fails, and those after it run."""
    def give_up(*_):
        pytest.fail("the test did not end within %g s" % (4 * PATIENCE))

    action = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 4 * PATIENCE, 1.0)  # again, if it then waits elsewhere
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, action)


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def meta(style):
    with served(style, cluster(tables=9), version="1.12.0") as (server, port):
        yield Served(server, port, style)


@pytest.fixture(scope="module")
def standby(style):
    with served(style, ph.Standby(PRIMARY)) as (server, port):
        yield Served(server, port, style)


@pytest.fixture
def nothing_is_left():
    """The threads that a test has started with a server end."""
    before = set(ours())
    yield
    wait_until(lambda: set(ours()) <= before, "the threads of the server end")


@pytest.fixture
def leader():
    """The one meta server of a cluster."""
    with replay.Meta(replay.synthetic(STATE)) as meta:
        yield meta


@pytest.fixture
def main(capfd):
    """main() in this process: call it like `run`. When it serves instead, it is ended. The signals
    and the log, which it does not give back, are put back."""
    def call(*arguments):
        capfd.readouterr()  # what others have said before
        timer = threading.Timer(PATIENCE, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        try:
            code = ph.main(list(arguments))
        except SystemExit as ended:
            code = ended.code
        finally:
            timer.cancel()
        return (code, *capfd.readouterr())

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    actions = [signal.getsignal(number) for number in numbers]
    logger = logging.getLogger("pegasus_http")
    handlers, level = logger.handlers[:], logger.level
    yield call
    logger.handlers, logger.level = handlers, level
    signal.set_wakeup_fd(-1)
    for number, action in zip(numbers, actions):
        signal.signal(number, action)
