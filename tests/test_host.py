"""The host that embeds the server: failing sources, threads, forks, signals, start, stop, exit."""

import asyncio
import contextlib
import gc
import http.server
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import pegasus_http as ph
import soak
from soak import figures
from support import PATIENCE, Client, cluster, command, environment, get, wait_until

NEXT = b"GET /version HTTP/1.1\r\nHost: test\r\n\r\n"
METAS = ("/meta/app?name=table1", "/meta/apps", "/meta/nodes", "/meta/cluster")

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="memory and descriptors are read in /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


def descriptors():
    return len(os.listdir("/dev/fd"))


def ours():
    """The threads that belong to the module."""
    return [t for t in threading.enumerate() if t.name.startswith("pegasus-http")]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = ours()
    yield
    wait_until(lambda: set(ours()) <= set(before), "the threads of the server end")


def bindable(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # never mind TIME_WAIT
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def refuses(port):
    assert port, "the port is only known while the server runs"
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        return sock.connect_ex(("127.0.0.1", port)) != 0


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def joined(thread):
    thread.join(PATIENCE)
    return not thread.is_alive()


# Sources that fail

def raising(error):
    def source():
        raise error

    return source


@pytest.mark.parametrize("error", [
    RuntimeError("x"), ValueError("x"), OSError(5, "x"), KeyError("x"), MemoryError(),
    RecursionError("x"), StopIteration(), AssertionError(), UnicodeDecodeError("x", b"", 0, 1, "y"),
    SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(),
], ids=lambda error: type(error).__name__)
def test_a_source_that_raises_is_a_500_and_nothing_else(error):
    with ph.StatusServer(raising(error), role="meta") as server:
        for target in METAS * 2:
            answer = get(server.port, target)
            assert (answer.status, answer.json["error"]) == (500, "ERR_UNKNOWN")
        assert get(server.port, "/version").status == 200
        assert server.running
        assert server.counters.last_error


@pytest.mark.parametrize("status, name", [
    (502, "ERR_NETWORK_FAILURE"), (504, "ERR_TIMEOUT"), (502, "ERR_UNDER_RECOVERY"),
])
def test_a_page_error_of_the_source_is_the_answer(status, name):
    error = ph.PageError(status, name, "so said the source")
    with ph.StatusServer(raising(error), role="meta") as server:
        answer = get(server.port, "/meta/apps")
    assert (answer.status, answer.json) == (
        status, {"error": name, "hint_message": "so said the source"})


@pytest.mark.parametrize("garbage", [
    17, "state", b"state", object(), [], {}, (), ph.Cluster, cluster, float("nan"), True,
    ph.Partition(), {"apps": []}, Exception("returned"),
], ids=repr)
def test_a_source_that_returns_garbage_is_a_500(garbage):
    with ph.StatusServer(lambda: garbage, role="meta") as server:
        answer = get(server.port, "/meta/apps")
        assert (answer.status, answer.json["error"]) == (500, "ERR_UNKNOWN")
        assert get(server.port, "/version").status == 200


@pytest.mark.parametrize("garbage", [17, "state", object(), []], ids=repr)
def test_garbage_is_not_published(garbage):
    with ph.StatusServer(cluster(), role="meta") as server:
        with pytest.raises((TypeError, ValueError)):
            server.publish(garbage)
        assert get(server.port, "/meta/apps").status == 200


def test_no_state_is_not_ready():
    with ph.StatusServer(role="meta") as server:
        answer = get(server.port, "/meta/apps")
        assert (answer.status, answer.json["error"]) == (503, "ERR_SERVICE_NOT_ACTIVE")
        assert int(answer.headers["retry-after"]) >= 1
        server.publish(cluster())
        assert get(server.port, "/meta/apps").status == 200


def test_a_source_recovers():
    answers = itertools.chain([RuntimeError("x"), 17, None], itertools.repeat(cluster()))

    def source():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with ph.StatusServer(source, role="meta") as server:
        wait_until(lambda: get(server.port, "/meta/apps").status == 200, "the source recovers")


@contextlib.contextmanager
def blocked(**settings):
    """A server whose source hangs until the end of the test."""
    release, entered, calls = threading.Event(), threading.Event(), []

    def source():
        calls.append(threading.current_thread())
        entered.set()
        release.wait(PATIENCE)
        return cluster()

    server = ph.start(source, role="meta", **settings)
    server.entered, server.calls, server.release = entered, calls, release
    try:
        yield server
    finally:
        release.set()
        server.stop()


def test_a_hanging_source_holds_up_only_the_pages_that_need_it():
    with blocked(timeout=PATIENCE) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Client(server.port)) for _ in range(20)]
        for client in waiting:
            client.send(b"GET /meta/apps HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT)
        assert server.entered.wait(PATIENCE)
        for target in ("/version", "/startTime", "/", "/health"):
            assert get(server.port, target).status == 200
        assert get(server.port, "/meta/app").status == 400
        assert len(server.calls) == 1
        server.release.set()
        for client in waiting:
            assert client.answer().json["summary"]["total_app_count"] == "3"
            assert "Version" in client.answer().json


def test_a_client_that_waits_for_the_source_is_not_read():
    with blocked(timeout=PATIENCE) as server, Client(server.port) as client:
        client.send(NEXT)
        assert client.answer().status == 200
        client.send(soak.request("/meta/apps"))
        assert server.entered.wait(PATIENCE)
        client.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                client.sock.send(NEXT * 2000)
        for _ in range(5):
            assert get(server.port, "/version").status == 200
        assert max(len(each.buffer) for each in server._loop._open) <= ph._RECV_BYTES


def test_a_source_that_hangs_for_ever_is_a_504():
    with blocked(timeout=0.3) as server:
        for _ in range(2):
            answer = get(server.port, "/meta/apps")
            assert (answer.status, answer.json["error"]) == (504, "ERR_TIMEOUT")
        assert len(server.calls) == 1, "one call at a time"
        server.release.set()
        wait_until(lambda: get(server.port, "/meta/apps").status == 200, "the source is back")


@contextlib.contextmanager
def mounted(server):
    """The port of an `http.server` that serves the same in blocking style."""
    class Handler(ph.StatusHandler):
        status_server = server

    class Mount(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    with Mount(("127.0.0.1", 0), Handler) as mount:
        thread = in_thread(mount.serve_forever, 0.01)
        try:
            yield mount.server_address[1]
        finally:
            mount.shutdown()
            assert joined(thread)


@pytest.mark.parametrize("style", ["loop", "blocking"])
def test_requests_that_gave_up_are_forgotten(style):
    with blocked(timeout=0.05) as server, contextlib.ExitStack() as stack:
        port = server.port if style == "loop" else stack.enter_context(mounted(server))
        clients = [stack.enter_context(Client(port)) for _ in range(20)]
        targets = METAS + ("/health",)
        for client in clients:
            client.send(b"".join(soak.request(target) for target in targets))
        for client in clients:
            assert [client.answer().status for _ in targets] == [504] * len(METAS) + [200]
        assert sum(map(len, server._asker._wanted.values())) == 0
        assert len(server.calls) == 1, "the source hangs all the while"
        server.release.set()
        wait_until(lambda: get(port, "/meta/apps").status == 200, "the source is back")
        wait_until(lambda: not server._asker._wanted, "nothing is under way")


def test_options_asks_nothing_of_a_hanging_source():
    def options():
        for target in METAS:
            answer = get(server.port, target, method="OPTIONS")
            assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")

    with blocked(timeout=2.0) as server, Client(server.port) as client:
        options()
        assert server.calls == []
        client.send(soak.request("/meta/apps"))
        assert server.entered.wait(PATIENCE)
        options()


def test_stop_does_not_wait_for_a_hanging_source():
    with blocked(timeout=PATIENCE) as server, Client(server.port) as client:
        client.send(b"GET /meta/apps HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.entered.wait(PATIENCE)
        began, port = time.monotonic(), server.port
        server.stop()
        assert time.monotonic() - began < 10.0
        assert not server.running and refuses(port)
        left = client.rest()
        assert left == b"" or left.startswith(b"HTTP/1.1 50"), left


def test_clients_that_wait_for_the_source_may_leave():
    with blocked(timeout=PATIENCE) as server:
        get(server.port, "/version")
        before = descriptors()
        for _ in range(20):
            with Client(server.port) as client:
                client.send(b"GET /meta/apps HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.entered.wait(PATIENCE)
        server.release.set()
        wait_until(lambda: descriptors() <= before, "their connections are given back")
        assert get(server.port, "/meta/apps").status == 200


# Calls from within, from everywhere

def test_a_source_that_publishes_is_told_not_to():
    errors = []

    def source():
        try:
            server.publish(cluster(tables=7))
        except RuntimeError as error:
            errors.append(error)
        return cluster(tables=2)

    server = ph.StatusServer(source, role="meta")
    with server:
        for _ in range(5):
            page = get(server.port, "/meta/apps").json
            assert page["summary"]["total_app_count"] == "2"
    assert len(errors) == 5


def page_of(monkeypatch, path, model, act):
    """Serve a page at `path` that calls `act` first and is like the page `model` then."""
    route = ph.ROUTES[model]

    def page(*arguments):
        act()
        return route.page(*arguments)

    monkeypatch.setitem(ph.ROUTES, path, route._replace(page=page))


def test_a_page_that_publishes(monkeypatch):
    page_of(monkeypatch, "/meta/publishing", "/meta/apps",
            lambda: server.publish(cluster(tables=7)))
    with ph.StatusServer(cluster(tables=2), role="meta") as server:
        counts = [get(server.port, "/meta/publishing").json["summary"]["total_app_count"]
                  for _ in range(3)]
    assert counts == ["2", "7", "7"]


def test_a_source_that_stops_the_server():
    stopped = threading.Event()

    def source():
        server.stop()
        stopped.set()
        return cluster()

    server = ph.StatusServer(source, role="meta")
    server.start()
    port = server.port
    with Client(port) as client:
        client.send(b"GET /meta/apps HTTP/1.1\r\nHost: x\r\n\r\n")
        left = client.rest()
        assert left == b"" or left.startswith(b"HTTP/1.1 "), left
    assert stopped.wait(PATIENCE)
    wait_until(lambda: not server.running and refuses(port), "the server stops")


def test_a_page_that_stops_the_server(monkeypatch):
    page_of(monkeypatch, "/stopping", "/version", lambda: server.stop())
    server = ph.start(cluster(), role="meta")
    port = server.port
    with Client(port) as client:
        client.send(soak.request("/stopping"))
        left = client.rest()
        assert left == b"" or b'{"Version"' in left, left
    wait_until(lambda: not server.running and refuses(port), "the server stops")


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_page_that_raises(monkeypatch, caplog, kind):
    path = "/raising/" + kind.__name__
    page_of(monkeypatch, path, "/version", raising(kind("swordfish")))
    with ph.StatusServer(cluster(), role="meta") as server, Client(server.port) as client:
        for _ in range(3):
            client.send(soak.request(path))
            answer = client.answer()
            assert (answer.status, answer.json["error"]) == (500, "ERR_UNKNOWN")
            assert b"swordfish" not in answer.body
        assert get(server.port, "/meta/apps").status == 200
    assert "swordfish" in caplog.text


def test_a_page_that_raises_does_not_fill_the_log(monkeypatch, caplog):
    page_of(monkeypatch, "/raising/often", "/version", raising(RuntimeError("swordfish")))
    with ph.StatusServer(cluster(), role="meta") as server:
        for n in range(100):
            assert get(server.port, "/raising/often?" + "&" * n).status == 500
    assert 1 <= len(caplog.records) <= 20


def test_publish_from_eight_threads_is_never_a_mixture():
    done, number = threading.Event(), itertools.count()
    states = [soak.generation(n) for n in range(50)]

    def publisher():
        while not done.wait(0.008):
            server.publish(states[next(number) % len(states)])

    seen = set()
    with ph.StatusServer(states[0], role="meta") as server:
        publishers = [in_thread(publisher) for _ in range(8)]
        try:
            with Client(server.port) as client:
                for target in ("/meta/apps?detail", "/meta/nodes?detail", "/meta/cluster") * 150:
                    client.send(soak.request(target))
                    seen.add(soak.check_page(target, client.answer().json))
        finally:
            done.set()
        assert all(joined(thread) for thread in publishers)
    assert len(seen) > 5, "the state did change"


def test_publish_never_blocks_and_is_seen_at_once():
    with ph.StatusServer(cluster(), role="meta") as server, Client(server.port) as client:
        for tables in range(1, 100):
            server.publish(cluster(tables=tables, partitions=1))
            client.send(soak.request("/meta/apps"))
            assert client.answer().json["summary"]["total_app_count"] == str(tables)


def test_publish_before_start_and_after_stop():
    server = ph.StatusServer(role="meta")
    server.publish(cluster(tables=2))
    with server:
        assert get(server.port, "/meta/apps").json["summary"]["total_app_count"] == "2"
    server.publish(cluster(tables=4))
    with server:
        assert get(server.port, "/meta/apps").json["summary"]["total_app_count"] == "4"


# The clock

@pytest.mark.parametrize("jump", [86400 * 400, -86400 * 400, 10 ** 9])
def test_the_clock_may_jump(monkeypatch, jump):
    real = time.time
    targets = METAS + ("/startTime",)

    def years(client):
        for target in targets:
            client.send(soak.request(target))
            answer = client.answer()
            assert answer.status == 200
            yield answer.headers["date"].split()[3]

    def follows(year):
        """An answer is kept for a second of the clock that cannot jump."""
        wait_until(lambda: set(years(client)) == {year}, "the date follows")

    with ph.StatusServer(cluster(), role="meta") as server:
        with Client(server.port) as client, Client(server.port) as silent:
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            follows(str(time.gmtime(real() + jump).tm_year))
            monkeypatch.undo()
            follows(str(time.gmtime().tm_year))
            assert len(set(years(silent))) == 1, "no deadline hangs on the wall clock"


# Start and stop

def test_stop_before_start_and_twice():
    server = ph.StatusServer(cluster(), role="meta")
    server.stop()
    assert not server.running
    server.start()
    port = server.port
    assert server.running and get(port, "/version").status == 200
    server.stop()
    server.stop()
    assert not server.running and refuses(port) and bindable(port)


def test_start_twice_is_an_error_and_start_again_is_not():
    server = ph.StatusServer(cluster(), role="meta")
    for _ in range(3):
        with server:
            with pytest.raises(RuntimeError):
                server.start()
            assert get(server.port, "/version").status == 200


def test_a_taken_port_is_an_oserror_and_leaves_nothing():
    with ph.StatusServer(cluster(), role="meta") as first:
        before = descriptors()
        for _ in range(5):
            second = ph.StatusServer(cluster(), role="meta", port=first.port)
            with pytest.raises(OSError, match="[Aa]ddress already in use"):
                second.start()
            assert not second.running
            second.stop()
        assert descriptors() == before and len(ours()) == 1
        assert get(first.port, "/version").status == 200


@pytest.mark.parametrize("host, port", [
    ("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", -1), ("127.0.0.1", 65536),
])
def test_an_impossible_address_raises_and_leaves_nothing(host, port):
    before = descriptors()
    with pytest.raises((OSError, OverflowError, ValueError)):
        ph.start(cluster(), role="meta", host=host, port=port)
    assert descriptors() == before and not ours()


def stop(server, port, free):
    server.stop()
    free.append(refuses(port))


def test_every_stop_returns_when_the_port_is_free(monkeypatch):
    entered, release, free = threading.Event(), threading.Event(), []

    def hold():
        entered.set()
        release.wait(PATIENCE)

    page_of(monkeypatch, "/holding", "/version", hold)
    server = ph.start(cluster(), role="meta")
    with Client(server.port) as client:
        client.send(soak.request("/holding"))
        assert entered.wait(PATIENCE)
        port = server.port
        stoppers = [in_thread(stop, server, port, free) for _ in range(2)]
        stoppers[1].join(0.3)  # time to return too early
        release.set()
        assert all(joined(thread) for thread in stoppers) and free == [True] * 2


def test_stop_from_eight_threads_at_once():
    for _ in range(20):
        server, free = ph.start(cluster(), role="meta"), []
        port = server.port
        stoppers = [in_thread(stop, server, port, free) for _ in range(8)]
        assert all(joined(thread) for thread in stoppers)
        assert not server.running and free == [True] * 8


def test_stop_during_start():
    for _ in range(50):
        server = ph.StatusServer(cluster(), role="meta")
        stopper = in_thread(server.stop)
        server.start()
        assert joined(stopper)
        server.stop()
        assert not server.running


def test_stop_lets_answers_under_way_leave(monkeypatch):
    monkeypatch.setattr(ph, "_STOP_SECONDS", PATIENCE)
    with ph.StatusServer(cluster(tables=25000, partitions=1), role="meta") as server:
        with Client(server.port) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(soak.request("/meta/apps?detail"))
            client.more()
            port, stopper = server.port, in_thread(server.stop)
            wait_until(lambda: refuses(port), "the listener is closed")
            assert client.answer().json["summary"]["total_app_count"] == "25000"
            assert client.closed() and joined(stopper)


def test_stop_does_not_wait_for_clients_that_do_nothing():
    server = ph.start(cluster(tables=1000), role="meta")
    with contextlib.ExitStack() as stack:
        for data in (b"", b"G", NEXT, NEXT[:-1]) * 5:
            stack.enter_context(Client(server.port)).send(data)
        for _ in range(5):
            stack.enter_context(soak.Slow(server.port, soak.request("/meta/apps?detail") * 20))
        get(server.port, "/version")
        began, port = time.monotonic(), server.port
        server.stop()
        assert time.monotonic() - began < ph._STOP_SECONDS + 9.0
        assert refuses(port) and not ours()


@needs_proc
def test_start_and_stop_a_thousand_times():
    server = ph.StatusServer(cluster(), role="meta")

    def turn(ask):
        with server:
            if ask:
                assert get(server.port, "/meta/apps").status == 200

    for n in range(100):
        turn(n % 10 == 0)
    gc.collect()
    before = figures(os.getpid())
    for n in range(1000):
        turn(n % 10 == 0)
    gc.collect()
    after = figures(os.getpid())
    assert (after.threads, after.descriptors) == (before.threads, before.descriptors)
    assert after.resident - before.resident < 8.0, (before, after)


def test_many_servers_in_one_process():
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ph.StatusServer(cluster(tables=1 + n), role="meta"))
                   for n in range(10)]
        for n, server in enumerate(servers):
            page = get(server.port, "/meta/apps").json
            assert page["summary"]["total_app_count"] == str(1 + n)
        servers[0].stop()
        assert get(servers[1].port, "/version").status == 200


def test_the_constructor_and_the_import_touch_nothing():
    before = descriptors(), threading.active_count(), signal.getsignal(signal.SIGTERM)
    server = ph.StatusServer(cluster(), role="meta", port=1)
    assert not server.running
    assert (descriptors(), threading.active_count(), signal.getsignal(signal.SIGTERM)) == before


# Hosts as real processes

def host(script, *flags, expect=0, answer=None):
    """Run a host program to its end; what it printed. Its standard error must stay empty.

    `answer`: called with the first printed line while the program runs.
    """
    env = environment()
    env["PYTHONPATH"] += os.pathsep + os.path.dirname(os.path.abspath(__file__))
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", script], env=env, universal_newlines=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        first = process.stdout.readline() if answer else ""
        if answer:
            answer(process, first.strip())
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (expect, ""), (process.returncode, errors)
    return first + output


STARTED = """
import os, signal, socket, sys, threading
import pegasus_http as ph
from support import Client, cluster, get
"""

EXITS = {
    "end-of-main": "server = ph.start(cluster(), role='meta')",
    "not-even-kept": "ph.start(cluster(), role='meta')",
    "after-a-request": """
server = ph.start(cluster(), role='meta')
assert get(server.port, '/meta/apps').status == 200
""",
    "with-clients": """
server = ph.start(cluster(tables=1000), role='meta')
clients = [Client(server.port) for _ in range(20)]
for client in clients:
    client.send(b'GET /meta/apps?detail HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' * 20)
get(server.port, '/version')
""",
    "with-a-hanging-source": """
entered = threading.Event()
def source():
    entered.set()
    threading.Event().wait()
server = ph.start(source, role='meta')
client = Client(server.port)
client.send(b'GET /meta/apps HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
entered.wait()
""",
    "with-a-busy-source": """
server = ph.start(lambda: cluster(tables=50), role='meta')
client = Client(server.port)
client.send(b'GET /meta/apps HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' * 200)
client.answer()
""",
    "sys-exit": "server = ph.start(cluster(), role='meta'); sys.exit(0)",
    "os-exit": "server = ph.start(cluster(), role='meta'); os._exit(0)",
    "stop-at-exit": """
import atexit
server = ph.start(cluster(), role='meta')
atexit.register(server.stop)
""",
    "stop-in-a-finalizer": """
class Host:
    def __del__(self):
        self.server.stop()
host = Host()
host.server = ph.start(cluster(), role='meta')
get(host.server.port, '/version')
""",
    "in-a-reference-cycle": """
class Host: pass
host = Host()
host.server = ph.start(lambda: host.state, role='meta')
host.state, host.me = cluster(), host
get(host.server.port, '/meta/apps')
""",
}


def check_exit(name, *flags):
    began = time.monotonic()
    host(STARTED + EXITS[name], *flags)
    assert time.monotonic() - began < 5.5, "the end was held up"


@pytest.mark.parametrize("name", EXITS)
def test_the_interpreter_ends_with_the_server_running(name):
    own = "ignore" if name == "with-clients" else "error"  # its own clients stay open
    check_exit(name, "-X", "dev", "-W", own)


@pytest.mark.parametrize("flags", [(), ("-O",)], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", ["after-a-request", "with-a-hanging-source"])
def test_the_interpreter_ends_under_other_flags(name, flags):
    check_exit(name, *flags)


STOPPING = STARTED + """
server = ph.start(cluster(), role='meta')
done = threading.Event()
def handler(*_):
    server.stop()
    done.set()
signal.signal(signal.SIGTERM, handler)
port = server.port
print(port, flush=True)
while not done.wait(0.05):
    pass
assert not server.running and not any('pegasus' in t.name for t in threading.enumerate())
with socket.socket() as sock:
    assert sock.connect_ex(('127.0.0.1', port))
"""


def test_stop_from_a_signal_handler():
    def answer(process, first):
        with Client(int(first)) as client:
            client.send(NEXT)
            assert client.answer().status == 200
            process.send_signal(signal.SIGTERM)
            assert client.closed()

    host(STOPPING, answer=answer)


INTERRUPTED = STARTED + """
server = ph.start(cluster(), role='meta')
print(server.port, flush=True)
signal.signal(signal.SIGALRM, lambda *_: server.stop())
signal.setitimer(signal.ITIMER_REAL, DELAY)
server.stop()
signal.setitimer(signal.ITIMER_REAL, 0)
server.stop()
print('stopped', server.running)
"""


def test_stop_interrupted_by_a_handler_that_stops():
    for delay in ("1e-6", "5e-5", "2e-4", "1e-3"):
        assert host(INTERRUPTED.replace("DELAY", delay)).endswith("stopped False\n")


FORKED = STARTED + """
server = ph.start(cluster(tables=2), role='meta')
kept = Client(server.port)
kept.send(b'GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
assert kept.answer().status == 200
go_read, go_write = os.pipe()
ready_read, ready_write = os.pipe()
child = os.fork()
if child == 0:
    code = 1
    try:
        os.close(go_write)
        server.stop()
        assert not server.running
        os.write(ready_write, b'x')
        own = ph.start(cluster(tables=5), role='meta')
        page = get(own.port, '/meta/apps').json
        assert page['summary']['total_app_count'] == '5'
        os.read(go_read, 1)
        own.stop()
        code = 0
    finally:
        os._exit(code)
os.close(go_read)
os.read(ready_read, 1)
for _ in range(50):
    page = get(server.port, '/meta/apps').json
    assert page['summary']['total_app_count'] == '2'
kept.send(b'GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
assert kept.answer().status == 200, 'the connection survived the child'
port = server.port
server.stop()
assert kept.closed(), 'no copy in the child holds it open'
kept.sock.close()
STOPPED
os.write(go_write, b'x')
_, status = os.waitpid(child, 0)
assert status == 0, status
"""

# A child that does nothing with the server must not serve, hold or shut down anything of it.
IDLE_CHILD = """
server = ph.start(cluster(tables=2), role='meta')
port = server.port
read, write = os.pipe()
ready_read, ready_write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.write(ready_write, b'x')
    os.read(read, 1)
    os._exit(0)
os.close(read)
os.read(ready_read, 1)
for _ in range(50):
    assert get(port, '/meta/apps').status == 200
server.stop()
REUSED
os.write(write, b'x')
os.waitpid(child, 0)
"""

REUSED = """
with socket.socket() as sock:
    assert sock.connect_ex(('127.0.0.1', port)), 'a child holds the listener'
again = ph.start(cluster(tables=3), role='meta', port=port)
assert get(port, '/meta/apps').json['summary']['total_app_count'] == '3'
again.stop()
"""


@needs_fork
@pytest.mark.parametrize("script", [
    pytest.param(FORKED.replace("STOPPED", REUSED), id="child-stops-and-serves"),
    pytest.param(STARTED + IDLE_CHILD.replace("REUSED", REUSED), id="child-does-nothing"),
])
def test_fork_without_exec(script):
    host(script, "-W", "ignore::DeprecationWarning")


# The read that holds the lock in the parent is under way for as long as its meta server is silent.
FORKED_WHILE_READING = STARTED + """
import replay, support
gate = threading.Event()
meta = replay.Meta(replay.synthetic(replay.make_state(tables=4)))
source = ph.LiveCluster(meta.address, timeout=20.0, max_age=0.0)
server = ph.start(source, role='meta', timeout=20.0)
def tables(port):
    return get(port, '/meta/apps').json['summary']['total_app_count']
assert tables(server.port) == '4' and meta.connections == 1
meta.fault = replay.held(gate)
kept = Client(server.port)
kept.send(b'GET /meta/apps HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
support.wait_until(lambda: len(meta.requests) == 2, 'the read is under way')
assert source._lock.locked()
child = os.fork()
if child == 0:
    code = 1
    signal.alarm(20)
    try:
        assert len(source().apps) == 4
        server.start()
        assert tables(server.port) == '4'
        code = 0
    finally:
        os._exit(code)
gate.set()
_, status = os.waitpid(child, 0)
assert status == 0, status
assert kept.answer().json['summary']['total_app_count'] == '4'
assert tables(server.port) == '4'
assert meta.connections == 2, 'the child has a connection of its own'
kept.sock.close()
server.stop()
meta.close()
"""


@needs_fork
def test_a_forked_child_reads_the_cluster_that_the_parent_is_reading():
    host(FORKED_WHILE_READING, "-W", "ignore::DeprecationWarning")


EXECUTED = STARTED + """
import subprocess
server = ph.start(cluster(tables=2), role='meta')
port = server.port
child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'],
                         stdin=subprocess.PIPE, close_fds=False)
for _ in range(20):
    assert get(port, '/meta/apps').status == 200
server.stop()
""" + REUSED + """
child.stdin.close()
assert child.wait() == 0
"""


def test_fork_with_exec():
    host(EXECUTED)


@needs_fork
def test_multiprocessing_child_of_a_serving_host():
    host(STARTED + """
import multiprocessing
def work(queue):
    queue.put(sum(range(10)))
server = ph.start(cluster(), role='meta')
context = multiprocessing.get_context('fork')
for _ in range(5):
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    assert queue.get() == 45
    process.join()
    assert process.exitcode == 0
    assert get(server.port, '/version').status == 200
server.stop()
""", "-W", "ignore::DeprecationWarning")


# The command line as a process: flags of the interpreter, signals

@contextlib.contextmanager
def serving(arguments):
    process = subprocess.Popen(
        arguments, env=environment(), universal_newlines=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), (line, process.stderr.read())
        yield process, int(line.split()[2].rsplit(":", 1)[1])
    finally:
        process.kill()
        process.communicate()


def ends_well(process, *signals):
    for number in signals:
        process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")


SERVE = ("--role", "meta", "--listen", "127.0.0.1:0")


@pytest.mark.parametrize("flags", [
    ("-W", "error", "-X", "dev"), ("-O",), ("-OO",), ("-u",), ("-b", "-b"), ("-S",), ("-s", "-E"),
], ids=" ".join)
def test_flags_of_the_interpreter(flags):
    arguments = command(*SERVE, python=flags)
    if "-E" in flags:
        arguments = [sys.executable, *flags, ph.__file__, *SERVE]
    with serving(arguments) as (process, port):
        for target in METAS[1:] + ("/", "/version", "/startTime", "/health"):
            assert get(port, target, "Accept-Encoding: gzip").status == 200
        assert get(port, "/meta/app?name=temp&detail&pretty").status == 200
        assert get(port, "/nosuch").status == 404
        ends_well(process, signal.SIGTERM)


@pytest.mark.parametrize("name", ["pegasus_http.py", "copied.py", "two words.py"])
def test_isolated_without_site(tmp_path, name):
    copy = shutil.copy(ph.__file__, str(tmp_path / name))
    flags = ("-I", "-S", "-B", "-W", "error", "-X", "dev")
    with serving([sys.executable, *flags, copy, *SERVE]) as (process, port):
        for target in METAS[1:] + ("/version",):
            assert get(port, target, "Accept-Encoding: gzip").status == 200
        ends_well(process, signal.SIGTERM)


@pytest.mark.parametrize("signals", [
    (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM) * 20,
], ids=["TERM", "INT", "TERM-TERM", "INT-INT", "forty"])
def test_signals_end_it_well(signals):
    with serving(command(*SERVE)) as (process, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(10)]
        for client, data in zip(clients, [b"", b"G", NEXT, NEXT * 5, NEXT[:-1]] * 2):
            client.send(data)
        assert get(port, "/version").status == 200
        ends_well(process, *signals)


def test_sighup_reads_a_state_file_that_looks_unchanged(tmp_path):
    path = tmp_path / "state.json"

    def save(name):
        path.write_text(json.dumps({"apps": [{"app_id": 1, "app_name": name}], "nodes": []}))
        os.utime(str(path), (1564466666, 1564466666))

    def shown(target):
        return get(port, target).json["general_info"]["1"]["app_name"]

    save("before")
    arguments = command(*SERVE, "--state", str(path), "--max-age", "3600")
    with serving(arguments) as (process, port):
        assert shown("/meta/apps") == "before"
        save("behind")
        assert shown("/meta/apps") == shown("/meta/apps?detail") == "before"
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: shown("/meta/apps") == "behind", "the new content is shown")
        assert shown("/meta/apps?detail") == "behind"
        ends_well(process, signal.SIGTERM)


def test_a_killed_process_leaves_a_port_that_can_be_used_again():
    with serving(command(*SERVE)) as (process, port):
        with Client(port) as client:
            client.send(NEXT)
            assert client.answer().status == 200
            process.kill()
            process.wait(PATIENCE)
            with serving(command("--role", "meta", "--listen", "127.0.0.1:%d" % port)) as (_, same):
                assert same == port and get(port, "/version").status == 200


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, load = tmp_path / "state.json", ph._load_cluster
    parsed, release = threading.Event(), threading.Event()

    def slow_load(*arguments):
        state = load(*arguments)
        parsed.set()
        assert release.wait(PATIENCE)
        return state

    def write(tables):
        path.write_text(json.dumps(ph._cluster_to_json(cluster(tables=tables))))

    write(2)
    source = ph.StateFile(str(path), max_age=3600.0)
    with ph.StatusServer(source, role="meta") as server, Client(server.port) as client:
        monkeypatch.setattr(ph, "_load_cluster", slow_load)
        client.send(soak.request("/meta/apps"))
        assert parsed.wait(PATIENCE)
        write(3)
        source.reload()
        server._distrust()
        release.set()
        assert client.answer().status == 200
        assert get(server.port, "/meta/apps").json["summary"] == {"total_app_count": "3"}
