"""The host that embeds the server: failing sources, threads, forks, signals, start, stop, exit."""

import asyncio
import contextlib
import itertools
import signal
import socket
import threading
import time

import pytest

import pegasus_http as ph
from marks import both_styles, needs_fork, needs_proc
from support import (
    NEVER,
    NEXT,
    PATIENCE,
    Client,
    Gate,
    Slow,
    ask,
    at_once,
    check_page,
    cluster,
    descriptors,
    generation,
    get,
    host,
    in_thread,
    joined,
    mounted,
    ours,
    page_of,
    request,
    settle,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")

METAS = ("/meta/app?name=table1", "/meta/apps", "/meta/nodes", "/meta/cluster")


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


# Sources that fail

def raising(error):
    def source(*_):
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


def test_a_source_of_the_wrong_kind_is_refused_at_once():
    kinds = "a Cluster, Standby, LiveCluster, StateFile, function or None as the source"
    with pytest.raises(TypeError, match="^expected %s, got str$" % kinds):
        ph.StatusServer("state.json", role="meta")


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
    """A server whose source hangs at `server.gate` until the end of the test."""
    gate = Gate()

    def source():
        gate()
        return cluster()

    server = ph.start(source, role="meta", **settings)
    server.gate = gate
    try:
        yield server
    finally:
        gate.open()
        server.stop()


def test_a_hanging_source_holds_up_only_the_pages_that_need_it():
    with blocked(timeout=10 * PATIENCE) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Client(server.port)) for _ in range(20)]
        for client in waiting:
            client.send(request("/meta/apps") + NEXT)
        server.gate.reached()
        for target in ("/version", "/startTime", "/", "/health"):
            assert get(server.port, target).status == 200
        assert get(server.port, "/meta/app").status == 400
        assert server.gate.calls == 1
        server.gate.open()
        for client in waiting:
            assert client.answer().json["summary"]["total_app_count"] == "3"
            assert "Version" in client.answer().json


def poured(client):
    """How many bytes the kernel still takes of a client that sends for ever."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 2 ** 26:
            sent += client.sock.send(NEXT * 2000)
    return sent


def test_a_client_that_waits_for_the_source_is_not_read():
    with blocked(timeout=10 * PATIENCE) as server:
        with Client(server.port) as client, Client(server.port) as bystander:
            client.send(request("/meta/apps"))
            server.gate.reached()
            client.sock.setblocking(False)
            taken = unchanged = 0
            while unchanged < 5:  # until every buffer of the kernel is full
                more = poured(client)
                taken, unchanged = taken + more, 0 if more else unchanged + 1
                assert taken < 64 * 1024 * 1024, "somebody reads it: no buffer is as large"
                settle(bystander, 20)


def test_a_source_that_hangs_for_ever_is_a_504():
    with blocked(timeout=0.1) as server:
        for _ in range(2):
            answer = get(server.port, "/meta/apps")
            assert (answer.status, answer.json["error"]) == (504, "ERR_TIMEOUT")
        assert server.gate.calls == 1, "one call at a time"
        server.gate.open()
        wait_until(lambda: get(server.port, "/meta/apps").status == 200, "the source is back")


@both_styles
def test_requests_that_gave_up_are_forgotten(style):
    with blocked(timeout=0.05) as server, contextlib.ExitStack() as stack:
        port = server.port if style == "loop" else stack.enter_context(mounted(server))
        clients = [stack.enter_context(Client(port)) for _ in range(20)]
        targets = METAS + ("/health",)
        for client in clients:
            client.send(b"".join(request(target) for target in targets))
        for client in clients:
            assert [client.answer().status for _ in targets] == [504] * len(METAS) + [200]
        assert server.gate.calls == 1, "the source hangs all the while"
        server.gate.open()
        wait_until(lambda: server.counters.refreshes == 1, "the source has answered")
        asked = 1
        while get(port, "/meta/apps").status == 504:  # on a slow machine
            asked += 1
        assert server.gate.calls <= 1 + asked, "nothing is asked for those who gave up"


def test_options_asks_nothing_of_a_hanging_source():
    def options():
        for target in METAS:
            answer = get(server.port, target, method="OPTIONS")
            assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")

    with blocked(timeout=2.0) as server, Client(server.port) as client:
        options()
        assert server.gate.calls == 0
        client.send(request("/meta/apps"))
        server.gate.reached()
        options()


def test_clients_that_wait_for_the_source_may_leave():
    with blocked(timeout=10 * PATIENCE) as server:
        get(server.port, "/version")
        before = descriptors()
        for _ in range(20):
            with Client(server.port) as client:
                client.send(request("/meta/apps"))
        server.gate.reached()
        server.gate.open()
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


def test_a_page_that_publishes(monkeypatch):
    page_of(monkeypatch, "/meta/publishing", "/meta/apps",
            lambda query: server.publish(cluster(tables=7)))
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
        client.send(request("/meta/apps"))
        assert client.answer().json["summary"] == {"total_app_count": "3"}, "it may leave"
        assert client.closed()
    assert stopped.wait(PATIENCE)
    wait_until(lambda: not server.running and refuses(port), "the server stops")


@pytest.mark.parametrize("path, model", [
    ("/stopping", "/version"), ("/meta/stopping", "/meta/apps"),
])
def test_a_page_that_stops_the_server(monkeypatch, path, model):
    page_of(monkeypatch, path, model, lambda query: server.stop())
    server = ph.start(cluster(), role="meta")
    port = server.port
    with Client(port) as client:
        client.send(request(path))
        assert client.answer().status == 200, "it may leave"
        assert client.closed()
    wait_until(lambda: not server.running and refuses(port), "the server stops")


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_page_that_raises(monkeypatch, caplog, kind):
    path = "/raising/" + kind.__name__
    page_of(monkeypatch, path, "/version", raising(kind("swordfish")))
    with ph.StatusServer(cluster(), role="meta") as server, Client(server.port) as client:
        for _ in range(3):
            client.send(request(path))
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
    states = [generation(n) for n in range(50)]

    def publisher():
        while not done.wait(0.008):
            server.publish(states[next(number) % len(states)])

    seen, end = set(), time.monotonic() + PATIENCE
    with ph.StatusServer(states[0], role="meta") as server:
        publishers = [in_thread(publisher) for _ in range(8)]
        try:
            with Client(server.port) as client:
                while len(seen) < 20:
                    assert time.monotonic() < end, "the state does not change"
                    for target in ("/meta/apps?detail", "/meta/nodes?detail", "/meta/cluster"):
                        seen.add(check_page(target, ask(client, target).json))
        finally:
            done.set()
        assert all(joined(thread) for thread in publishers)


def test_publish_never_blocks_and_is_seen_at_once():
    with ph.StatusServer(cluster(), role="meta") as server, Client(server.port) as client:
        for tables in range(1, 50):
            server.publish(cluster(tables=tables, partitions=1))
            client.send(request("/meta/apps"))
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

@pytest.mark.parametrize("jump", [-86400 * 400, 10 ** 9])
def test_the_clock_may_jump(monkeypatch, jump):
    real = time.time
    targets = METAS + ("/startTime",)

    def years(client):
        for target in targets:
            client.send(request(target))
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
        before, threads = descriptors(), set(ours())
        for _ in range(5):
            second = ph.StatusServer(cluster(), role="meta", port=first.port)
            with pytest.raises(OSError, match="[Aa]ddress already in use"):
                second.start()
            assert not second.running
            second.stop()
        assert descriptors() == before and set(ours()) <= threads
        assert get(first.port, "/version").status == 200


@pytest.mark.parametrize("host, port", [
    ("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", -1), ("127.0.0.1", 65536),
])
def test_an_impossible_address_raises_and_leaves_nothing(host, port):
    before, threads = descriptors(), set(ours())
    with pytest.raises((OSError, OverflowError, ValueError)):
        ph.start(cluster(), role="meta", host=host, port=port)
    assert descriptors() == before and set(ours()) <= threads


def stop(server, port, free):
    server.stop()
    free.append(refuses(port))


def test_every_stop_returns_when_the_port_is_free(monkeypatch):
    gate, free = Gate(), []
    page_of(monkeypatch, "/holding", "/version", gate)
    server = ph.start(cluster(), role="meta")
    with Client(server.port) as client:
        client.send(request("/holding"))
        gate.reached()
        port = server.port
        stoppers = [in_thread(stop, server, port, free) for _ in range(2)]
        stoppers[1].join(0.1)  # time to return too early
        gate.open()
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
    large = {"page": "x" * 2 ** 24}  # more than the kernel keeps of it
    route = ph.ROUTES["/meta/apps"]._replace(page=lambda *_: large)
    monkeypatch.setitem(ph.ROUTES, "/large", route)
    with ph.StatusServer(cluster(), role="meta") as server:
        with Client(server.port) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(request("/large"))
            client.more()
            port, stopper = server.port, in_thread(server.stop)
            wait_until(lambda: refuses(port), "the listener is closed")
            assert client.answer().json == large
            assert client.closed() and joined(stopper)


def test_stop_does_not_wait_for_clients_that_do_nothing(monkeypatch):
    threads = set(ours())
    monkeypatch.setattr(ph, "_STOP_SECONDS", NEVER)
    server = ph.start(cluster(), role="meta")
    with contextlib.ExitStack() as stack:
        for data in (b"", b"G", NEXT, NEXT[:-1]) * 5:
            stack.enter_context(Client(server.port)).send(data)
        settle(stack.enter_context(Client(server.port)))
        port = server.port
        assert joined(in_thread(server.stop))
        assert refuses(port)
        wait_until(lambda: set(ours()) <= threads, "the threads end")


def test_stop_gives_clients_that_read_nothing_no_longer_than_it_says(monkeypatch):
    threads = set(ours())
    monkeypatch.setattr(ph, "_WRITE_SECONDS", NEVER)
    monkeypatch.setattr(ph, "_STOP_SECONDS", 0.1)
    server = ph.start(cluster(tables=1000), role="meta")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Slow(server.port, request("/meta/apps?detail") * 20))
        ask(stack.enter_context(Client(server.port)), "/meta/apps?detail")
        port = server.port
        assert joined(in_thread(server.stop))
        assert refuses(port)
        wait_until(lambda: set(ours()) <= threads, "the threads end")


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

STARTED = """
import os, signal, socket, sys, threading
import pegasus_http as ph
from support import Client, cluster, get
"""

AGAIN_AND_AGAIN = STARTED + """
import gc
from support import check_growth, figures, wait_until
server = ph.StatusServer(cluster(), role='meta')
def turns(count):
    for n in range(count):
        with server:
            if n % 10 == 0:
                assert get(server.port, '/meta/apps').status == 200
    gc.collect()
    wait_until(lambda: figures(os.getpid()).threads == 1, 'all threads have ended')
    return figures(os.getpid())
before = turns(100)
after = turns(500)
assert after.descriptors == before.descriptors, (before, after)
check_growth(before.resident, after.resident, 4.0)
"""


@needs_proc
def test_start_and_stop_again_and_again():
    """In a process of its own: no other thread comes or goes."""
    host(AGAIN_AND_AGAIN)


# Whoever waits for as long as that never comes to an end.
PATIENT = "ph._STOP_SECONDS = ph._IDLE_SECONDS = ph._WRITE_SECONDS = 1000.0\n"

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
    "with-a-hanging-page": """
entered = threading.Event()
def page(*_):
    entered.set()
    threading.Event().wait()
ph.ROUTES['/meta/apps'] = ph.ROUTES['/meta/apps']._replace(page=page)
server = ph.start(cluster(), role='meta')
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
    "stop-in-a-finalizer-of-builtins": """
class Host:
    def __init__(self):
        self.server = ph.start(lambda: cluster(), role='meta')
        get(self.server.port, '/meta/apps')
    def __del__(self):
        self.server.stop()
__builtins__.host = Host()
""",
    "stop-in-a-finalizer-with-a-hanging-source": """
class Host:
    def __del__(self):
        self.server.stop()
entered = threading.Event()
def source():
    entered.set()
    threading.Event().wait()
sys.host = Host()
sys.host.server = ph.start(source, role='meta')
client = Client(sys.host.server.port)
client.send(b'GET /meta/apps HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
entered.wait()
""",
    "in-a-reference-cycle": """
class Host: pass
host = Host()
host.server = ph.start(lambda: host.state, role='meta')
host.state, host.me = cluster(), host
get(host.server.port, '/meta/apps')
""",
}


def test_the_interpreter_ends_with_the_server_running():
    def check(name):
        own = "ignore" if "client" in EXITS[name].lower() else "error"  # its own clients stay open
        host(STARTED + PATIENT + EXITS[name], "-X", "dev", "-W", own)

    at_once(check, [[name] for name in EXITS])


def test_the_interpreter_ends_under_other_flags():
    def check(name, *flags):
        host(STARTED + PATIENT + EXITS[name], *flags)

    at_once(check, [(name, *flags) for name in ("after-a-request", "with-a-hanging-source")
                    for flags in ((), ("-O",))])


# Both modules outlive the first round of clearing, `holder` is emptied after the other one.
HELD_BY_A_MODULE = """
import sys, types
sys.holder = sys.modules['holder'] = types.ModuleType('holder')
""" + STARTED + PATIENT + """
class Host:
    def __del__(self):
        self.server.stop()
sys.holder.ph, sys.holder.host = ph, Host()
sys.holder.host.server = ph.start(SOURCE, role='meta')
assert get(sys.holder.host.server.port, '/meta/apps').status == 200
"""


def test_the_interpreter_ends_with_a_host_that_is_held_by_another_module():
    def check(source):
        host(HELD_BY_A_MODULE.replace("SOURCE", source))

    at_once(check, [["cluster()"], ["lambda: cluster()"]])


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


INTERRUPTED = STARTED + PATIENT + """
server = ph.StatusServer(cluster(), role='meta')
signal.signal(signal.SIGALRM, lambda *_: server.stop())
for turn in range(100):
    server.start()
    signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + turn % 50))
    server.stop()
    signal.setitimer(signal.ITIMER_REAL, 0)
    server.stop()
    assert not server.running
"""


def test_stop_interrupted_by_a_handler_that_stops():
    """Wherever it is interrupted: nobody waits for a lock that the same thread holds below."""
    host(INTERRUPTED)


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


# What a debugger shows

def test_repr_of_a_server_and_its_counters():
    server = ph.StatusServer(cluster(), role="meta", host="127.0.0.1")
    assert repr(server) == "<StatusServer meta http://127.0.0.1:0 not running>"
    with server:
        assert repr(server) == "<StatusServer meta http://127.0.0.1:%d running>" % server.port
        assert get(server.port, "/nosuch").status == 404
        assert repr(server.counters) == (
            "<counters requests=1 errors=1 connections=1 refreshes=0 last_error=''>")
    assert repr(server) == "<StatusServer meta http://127.0.0.1:0 not running>"
