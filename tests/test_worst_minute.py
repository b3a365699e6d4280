"""Pages that take long and sources that hang: what others are answered meanwhile, and what stays.

Nothing here measures time against the clock of the machine: a page or a source is held at a gate,
and what has to be answered meanwhile is answered before the gate opens.
"""

import contextlib
import http.server
import os
import select
import socket
import threading
import time

import pytest

import pegasus_http as ph
import replay
from marks import both_styles
from support import (
    PATIENCE,
    STYLES,
    Client,
    Gate,
    Slow,
    ask,
    at_once,
    cluster,
    descriptors,
    get,
    host,
    in_thread,
    joined,
    mounted,
    ours,
    page_of,
    request,
    reset,
    room,
    save_state,
    served,
    settle,
    wait_until,
)

HELD = "/meta/held"  # a page like /meta/apps that waits at the gate


@pytest.fixture
def gate():
    one = Gate()
    yield one
    one.open()


@pytest.fixture(autouse=True)
def _stop_is_quick(monkeypatch, nothing_is_left):
    """Who waits at the gate does so for longer than any stop of a server."""
    monkeypatch.setattr(ph, "_STOP_SECONDS", 0.05)


@contextlib.contextmanager
def holding(monkeypatch, gate, port):
    """Somebody waits for the page that the gate holds; yields that client."""
    page_of(monkeypatch, HELD, "/meta/apps", gate)
    with Client(port) as waiter:
        waiter.send(request(HELD))
        gate.reached()
        yield waiter


def computed_tables(monkeypatch, act=lambda query: None):
    """The names whose /meta/app has been computed, in this order."""
    names = []

    def note(query):
        names.append(query.name)
        act(query)

    page_of(monkeypatch, "/meta/app", "/meta/app", note)
    return names


def app(name):
    return "/meta/app?name=%s&detail" % name


def silent(client):
    """True while the server has said nothing to it."""
    return not select.select([client.sock], [], [], 0)[0]


def total(answer):
    return int(answer.json["summary"]["total_app_count"])


# A page that takes long

MEANWHILE = {
    "/": 200, "/version": 200, "/startTime": 200, "/recentStartTime": 200, "/health": 200,
    "/health?primary": 200, "/version?pretty": 200, "/nosuch": 404, "/meta/app": 400,
    "/meta/apps?detail=maybe": 400, "/meta/app?name=nosuch": 404, "/meta/app?name=creating": 503,
    "/meta/nodes": 200, "/meta/apps?pretty": 200,
}
READY = ("/meta/nodes", "/meta/apps?pretty")  # computed before


@both_styles
def test_a_page_that_is_being_computed_holds_up_nothing_else(monkeypatch, gate, style):
    state = cluster()
    creating = ph.App(9, "creating", status="CREATING", partition_count=4)
    with served(style, state._replace(apps=(*state.apps, creating))) as (_, port):
        tags = {target: get(port, target).headers["etag"] for target in READY}
        with holding(monkeypatch, gate, port) as waiter:
            for target, status in MEANWHILE.items():
                assert (target, get(port, target).status) == (target, status)
                assert get(port, target, method="HEAD").status == status
            for target, tag in tags.items():
                assert get(port, target, "If-None-Match: " + tag).status == 304
                assert get(port, target, method="OPTIONS").status == 204
            assert silent(waiter)
            gate.open()
            assert total(waiter.answer()) == 3


@both_styles
def test_a_page_that_is_being_computed_holds_up_no_redirect(monkeypatch, gate, style):
    with served(style, cluster()) as (server, port):
        with holding(monkeypatch, gate, port) as waiter:
            server.publish(ph.Standby("10.0.0.9:34601"))
            for target in ("/meta/apps", "/meta/app?name=table1", "/meta/nodes?detail", HELD):
                answer = get(port, target)
                assert answer.status == 307
                assert answer.headers["location"] == "http://10.0.0.9:34601" + target
            gate.open()
            assert total(waiter.answer()) == 3, "it asked for the state of then"


def share_of_the_longest_wait(port, target):
    """How long others wait at most while a page is computed, as a share of what that takes."""
    with Client(port) as greedy, Client(port) as bystander:
        ask(bystander)
        longest, now = 0.0, time.monotonic()
        began = now
        greedy.send(request(target, "Accept-Encoding: gzip"))
        while silent(greedy):
            ask(bystander)
            before, now = now, time.monotonic()
            longest = max(longest, now - before)
        spent = time.monotonic() - began
        assert greedy.answer().status == 200
        return longest / spent


@both_styles
@pytest.mark.parametrize("target, tables, partitions", [
    pytest.param("/meta/apps?detail&pretty", 4000, 1, id="many-tables"),
    pytest.param("/meta/app?name=table1&detail", 1, 32768, id="a-large-table"),
    pytest.param("/meta/app?name=table1&detail&pretty", 1, 16384, id="a-large-table-pretty"),
    pytest.param("/meta/nodes?detail", 500, 64, id="many-replicas"),
])
def test_what_is_computed_leaves_others_their_turns(style, target, tables, partitions):
    with served(style, None, timeout=10 * PATIENCE) as (server, port):
        for attempt in range(3):  # a busy machine may stop everybody once, not each time
            server.publish(cluster(tables=tables, partitions=partitions, changed=attempt))
            share = share_of_the_longest_wait(port, target)
            if share < 0.5:
                return
    raise AssertionError("others wait %.0f %% of the time" % (100 * share))


@both_styles
def test_a_state_file_that_is_read_leaves_others_their_turns(tmp_path, style):
    path = str(tmp_path / "state.json")
    with served(style, ph.StateFile(path, max_age=0.0), timeout=10 * PATIENCE) as (_, port):
        for attempt in range(3):
            save_state(path, tables=200, partitions=64, ballot=10 ** attempt)
            share = share_of_the_longest_wait(port, "/meta/apps")
            if share < 0.5:
                return
    raise AssertionError("others wait %.0f %% of the time" % (100 * share))


# Turns: one client's many requests

def test_answers_to_pipelined_requests_take_turns_with_those_of_others(monkeypatch, gate):
    order = []

    def greedy_page(query):
        order.append("greedy")
        if len(order) == 1:
            gate()

    page_of(monkeypatch, "/greedy", "/version", greedy_page)
    page_of(monkeypatch, "/modest", "/version", lambda query: order.append("modest"))
    with served("loop", cluster()) as (_, port), Client(port) as greedy, Client(port) as modest:
        ask(modest)
        greedy.send(b"".join(request("/greedy", "X-A: %d" % n) for n in range(300)))
        gate.reached()
        modest.send(request("/modest"))
        gate.open()
        assert modest.answer().status == 200
        assert [greedy.answer().status for _ in range(300)] == [200] * 300
    assert order.index("modest") < 10, "one answer a turn"


def test_pages_of_pipelined_requests_take_turns_with_those_of_others(monkeypatch, gate):
    def first(query):
        if query.name == "table1":
            gate()

    order = computed_tables(monkeypatch, first)
    with served("loop", cluster(tables=60), timeout=10 * PATIENCE) as (_, port):
        with Client(port) as greedy, Client(port) as modest, Client(port) as bystander:
            greedy.send(b"".join(request(app("table%d" % n)) for n in range(1, 51)))
            gate.reached()
            modest.send(request(app("table60")))
            settle(bystander)
            gate.open()
            assert modest.answer().json["general"]["app_name"] == "table60"
            for n in range(1, 51):
                assert greedy.answer().json["general"]["app_name"] == "table%d" % n
    assert order.index("table60") < 5, "a connection waits for one page at a time"


def test_heads_of_pages_that_are_pipelined_hold_up_nobody(monkeypatch, gate):
    """16 KB of requests, whose answers have no body, for pages that each take long."""
    order = computed_tables(monkeypatch, gate)
    names = ["table%d" % n for n in range(1, 200)]
    with served("loop", cluster(tables=200), timeout=10 * PATIENCE) as (_, port):
        with Client(port) as greedy:
            greedy.send(b"".join(request(app(name) + "&pretty", method="HEAD") for name in names))
            gate.reached()
            for _ in range(5):
                assert get(port, "/version").status == 200
            assert order == ["table1"]
            gate.open()
            assert all(greedy.answer(head_only=True).status == 200 for _ in names)
    assert order == names


# One computation for all who wait, none for nobody, and not too many

@both_styles
def test_requests_for_one_page_share_its_computation(monkeypatch, gate, style):
    with served(style, cluster(), timeout=10 * PATIENCE) as (_, port):
        with holding(monkeypatch, gate, port) as waiter, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(port)) for _ in range(20)]
            for client in clients:
                client.send(request(HELD))
            assert get(port, "/version").status == 200
            gate.open()
            bodies = {client.answer().body for client in [waiter, *clients]}
    assert (len(bodies), gate.calls) == (1, 1)


def test_a_page_whose_clients_have_left_is_not_computed(monkeypatch, gate):
    computed = computed_tables(monkeypatch)
    with served("loop", cluster(tables=9), timeout=10 * PATIENCE) as (_, port):
        with holding(monkeypatch, gate, port) as waiter, Client(port) as bystander:
            clients = [Client(port) for _ in range(5)]
            for n, client in enumerate(clients, 1):
                client.send(request(app("table%d" % n)))
            settle(bystander)
            for client in clients:
                reset(client)
            settle(bystander)
            gate.open()
            assert waiter.answer().status == 200
            assert get(port, app("table9")).status == 200
    assert computed == ["table9"]


@both_styles
def test_a_page_that_was_given_up_is_not_computed(monkeypatch, gate, style):
    computed = computed_tables(monkeypatch)
    with served(style, cluster(tables=9), timeout=0.1) as (server, port):
        with holding(monkeypatch, gate, port) as waiter:
            for n in range(1, 4):
                answer = get(port, app("table%d" % n))
                assert (answer.status, answer.json["error"]) == (504, "ERR_TIMEOUT")
            assert waiter.answer().status == 504
            gate.open()
            wait_until(lambda: get(port, app("table9")).status == 200, "the worker goes on")
    assert set(computed) == {"table9"}


def test_too_many_different_pages_that_wait_are_refused(monkeypatch, gate):
    most = room(3000) // 2  # each connection has two ends in this process
    with served("loop", cluster(tables=most, partitions=1), timeout=10 * PATIENCE) as (_, port):
        with holding(monkeypatch, gate, port), contextlib.ExitStack() as stack:
            bystander, waiting = stack.enter_context(Client(port)), []
            for n in range(1, most):
                client = stack.enter_context(Client(port))
                client.send(request(app("table%d" % n)))
                settle(bystander, 4)
                if not silent(client):
                    break
                waiting.append(client)
            refused = client.answer()
            assert (refused.status, refused.json["error"]) == (503, "ERR_BUSY")
            assert int(refused.headers["retry-after"]) >= 1
            same = stack.enter_context(Client(port))
            same.send(request(app("table1")))
            settle(bystander)
            assert silent(same), "a page that waits already is not one more"
            gate.open()
            assert len(waiting) >= 16
            assert all(one.answer().status == 200 for one in [*waiting, same])


@both_styles
def test_unknown_names_are_404_while_a_page_is_computed(monkeypatch, gate, style):
    with served(style, cluster(), timeout=10 * PATIENCE) as (_, port), Client(port) as rude:
        with holding(monkeypatch, gate, port) as waiter:
            for batch in range(10):
                names = ["nosuch%d" % n for n in range(100 * batch, 100 * batch + 100)]
                rude.send(b"".join(request(app(name)) for name in names))
                for name in names:
                    answer = rude.answer()
                    assert answer.status == 404 and name in answer.json["hint_message"]
            gate.open()
            assert waiter.answer().status == 200
            assert get(port, app("table1")).status == 200


@both_styles
def test_unknown_names_are_404_while_a_table_is_read_from_the_cluster(gate, style):
    def held(pieces):
        gate()
        return pieces

    with replay.Meta(replay.synthetic(replay.make_state(tables=4))) as meta:
        source = ph.LiveCluster(meta.address, timeout=10 * PATIENCE, max_age=3600.0)
        with served(style, source, timeout=10 * PATIENCE) as (_, port):
            with Client(port) as waiter, Client(port) as rude:
                assert total(get(port, "/meta/apps")) == 4
                meta.fault = held
                waiter.send(request(app("table1")))
                gate.reached()
                asked = len(meta.requests)
                for batch in range(10):
                    names = ["nosuch%d.%d" % (batch, n) for n in range(100)]
                    rude.send(b"".join(request(app(name)) for name in names))
                    assert {rude.answer().status for _ in names} == {404}
                assert len(meta.requests) == asked
                gate.open()
                assert waiter.answer().status == 200
                assert get(port, app("table2")).status == 200


def test_unknown_names_share_the_state_that_they_wait_for(gate):
    calls = []

    def source():
        calls.append(1)
        gate()
        return cluster()

    with served("loop", source, timeout=10 * PATIENCE) as (_, port):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(port)) for _ in range(21)]
            for n, client in enumerate(clients):
                client.send(request(app("nosuch%d" % n) if n else app("table1")))
            gate.reached()
            settle(stack.enter_context(Client(port)))
            gate.open()
            assert [client.answer().status for client in clients] == [200] + [404] * 20
    assert len(calls) == 1, "all came while the first call was under way"


# What is kept of a state, and for how long

@both_styles
def test_a_state_published_while_a_page_of_the_last_is_computed(monkeypatch, gate, style):
    with served(style, cluster(tables=2), timeout=10 * PATIENCE) as (server, port):
        with holding(monkeypatch, gate, port) as before, Client(port) as after:
            server.publish(cluster(tables=5))
            after.send(request(HELD))
            assert get(port, "/version").status == 200
            assert silent(before) and silent(after)
            gate.open()
            old, new = before.answer(), after.answer()
            assert (total(old), total(new)) == (2, 5)
            assert old.headers["etag"] != new.headers["etag"]
            again = get(port, HELD)
            assert (again.body, again.headers["etag"]) == (new.body, new.headers["etag"])
            before.send(request(HELD))
            assert before.answer().body == new.body
    assert gate.calls == 2


def test_a_page_that_is_under_way_during_a_refresh_is_not_known_after_it(monkeypatch, gate):
    source = Source()
    with served("loop", source, timeout=10 * PATIENCE, max_age=3600.0) as (server, port):
        with holding(monkeypatch, gate, port) as waiter, Client(port) as bystander:
            server.refresh()
            for _ in range(3):
                ask(bystander, "/startTime")  # which asks nothing of the source
            gate.open()
            assert total(waiter.answer()) == 3
            ask(waiter, HELD)
    assert source.calls == 2, "the source has more to say since"


@both_styles
def test_pages_beyond_what_is_kept_do_not_empty_what_is_kept(monkeypatch, style):
    monkeypatch.setattr(ph, "_PAGE_CACHE_BYTES", 20000)
    computed = computed_tables(monkeypatch)
    names = ["table%d" % n for n in range(1, 101)]

    def turn(client, number):
        del computed[:]
        sizes = {}
        for name in names:
            client.send(request(app(name), "X-Turn: %d" % number))  # bytes not seen before
            sizes[name] = len(client.answer().body)
        return sizes, set(computed)

    with served(style, cluster(tables=100)) as (_, port), Client(port) as client:
        sizes, first = turn(client, 0)
        assert first == set(names) and sum(sizes.values()) > 40000
        for number in range(1, 4):
            _, again = turn(client, number)
            found = set(names) - again
            assert sum(sizes[name] for name in found) <= 20000
            assert sum(sizes[name] for name in found) > 5000, "what is kept is of use"


SILENT_READERS = """
import os, sys
import pegasus_http as ph
from support import Client, Slow, ask, cluster, figures, request, settle, wait_until
ph._WRITE_SECONDS = ph._IDLE_SECONDS = 1000.0
ph._UNSENT_BYTES = 4 << 20
base = cluster(tables=4000, partitions=1)
row = base.apps[0].partitions[0]
def state(n):
    return base._replace(apps=(base.apps[0]._replace(app_name='state%d' % n), *base.apps[1:]))
server = ph.start(state(0), role='meta')
bystander, held = Client(server.port), []
def turn(n):
    server.publish(state(n))
    if READERS:
        held.append(Slow(server.port, request('/meta/apps?detail')))
        settle(bystander)
    size = len(ask(bystander, '/meta/apps?detail').body)
    return size
for n in range(1, 6):
    turn(n)
before = figures(os.getpid()).resident
for n in range(6, 36):
    size = turn(n)
print(size / 2 ** 20, figures(os.getpid()).resident - before, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is read in /proc")
def test_silent_readers_do_not_keep_the_pages_of_every_state():
    def measure(readers):
        """(MiB of a page, MiB that the process has grown by)"""
        figures[readers] = [float(word) for word in
                            host(SILENT_READERS.replace("READERS", readers)).split()]

    figures = {}
    at_once(measure, [["0"], ["1"]])
    (size, without), (_, grown) = figures["0"], figures["1"]
    assert size > 1.0, "a page is much more than what the kernel takes of it"
    assert grown - without < 12 * size, figures


def test_small_answers_that_nobody_reads_count_too(monkeypatch):
    """Each client has a copy of its own: of ten, two have room."""
    target = "/meta/apps"
    with ph.start(cluster(tables=40), role="meta") as server, Client(server.port) as bystander:
        size = len(ask(bystander, target).body)
        assert 8000 < size < 16000
        monkeypatch.setattr(ph, "_UNSENT_BYTES", 3 * size)
        before = descriptors()
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(Slow(server.port, request(target) * 400))
            settle(bystander, 20)
            wait_until(lambda: descriptors() <= before + 10 + 2, "all but two are closed")
            settle(bystander, 20)
            assert descriptors() == before + 10 + 2


def test_small_answers_count_too_when_their_clients_have_read_some(monkeypatch):
    """These connections waited for room before, and then for room for another answer."""
    target = "/meta/apps"
    with ph.start(cluster(tables=40), role="meta") as server, Client(server.port) as bystander:
        size = len(ask(bystander, target).body)
        before = descriptors()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Slow(server.port, request(target) * 400))
                       for _ in range(10)]
            settle(bystander, 20)
            assert descriptors() == before + 10 + 10
            monkeypatch.setattr(ph, "_UNSENT_BYTES", 3 * size)
            for client in clients:
                client.sock.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    for _ in range(100):  # of 270 answers that were asked for with one receive
                        client.sock.recv(size)
            wait_until(lambda: descriptors() <= before + 10 + 2, "all but two are closed")


# A source that hangs

class Source:
    """A callable whose behaviour a test sets: `act` is called, then the state is returned."""

    def __init__(self, act=lambda: None, state=None):
        self.act, self.state = act, state or cluster()
        self.calls = self.active = self.most = 0
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            self.calls += 1
            self.active += 1
            self.most = max(self.most, self.active)
        try:
            self.act()
        finally:
            with self._lock:
                self.active -= 1
        return self.state


def failing():
    raise RuntimeError("the source is broken")


@pytest.mark.parametrize("leave", [lambda client: client.sock.close(), reset],
                         ids=["closes", "resets"])
def test_clients_that_went_away_take_nobodys_place(gate, leave):
    with served("loop", Source(gate), timeout=10 * PATIENCE, max_connections=20) as (_, port):
        for _ in range(60):
            client = Client(port)
            with contextlib.suppress(ConnectionError):  # of those that are refused
                client.send(request("/meta/apps"))
            leave(client)
        wait_until(lambda: get(port, "/health").status == 200, "there is room")


@both_styles
def test_clients_that_only_stopped_sending_get_their_answers(gate, style):
    with served(style, Source(gate), timeout=10 * PATIENCE) as (_, port):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(port)) for _ in range(5)]
            for client in clients:
                client.send(request("/meta/apps") + request("/version") + request("/meta/nodes"))
                client.sock.shutdown(socket.SHUT_WR)
            gate.reached()
            for _ in range(3):
                assert get(port, "/version").status == 200
            gate.open()
            for client in clients:
                assert total(client.answer()) == 3
                assert "Version" in client.answer().json
                assert "details" in client.answer().json
                assert client.closed()


@both_styles
@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_health_of_the_primary_follows_its_source(gate, style, trouble):
    def healthy():
        return get(port, "/health?primary").status

    source = Source()
    with served(style, source, timeout=0.5) as (_, port):
        assert get(port, "/meta/apps").status == 200
        assert healthy() == 200
        source.act = failing if trouble == "fails" else gate
        assert get(port, "/meta/apps").status == (500 if trouble == "fails" else 504)
        wait_until(lambda: healthy() == 503, "the balancer is told")
        answer = get(port, "/health?primary")
        assert (answer.status, answer.json["error"]) == (503, "ERR_SERVICE_NOT_ACTIVE")
        assert get(port, "/health").status == 200
        source.act = lambda: None
        gate.open()
        wait_until(lambda: healthy() == 200, "the balancer is told, without any other page")


@both_styles
def test_health_of_the_primary_is_enough_to_notice_that_its_source_hangs(gate, style):
    source = Source()
    with served(style, source, timeout=0.3) as (_, port):
        assert get(port, "/meta/apps").status == 200
        source.act = gate
        wait_until(lambda: get(port, "/health?primary").status == 503, "nobody asks anything else")


def test_health_of_the_primary_that_is_seldom_asked_is_good():
    """In both styles at the same time."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(served(style, Source(), timeout=0.5))[1] for style in STYLES]
        for port in ports:
            assert get(port, "/meta/apps").status == 200
        for _ in range(2):
            until = time.monotonic() + 0.6  # longer than max_age + timeout
            wait_until(lambda: time.monotonic() > until, "nobody asks for a while")  # noqa: B023
            for port in ports:
                assert get(port, "/health?primary").status == 200


@both_styles
@pytest.mark.parametrize("trouble", ["fails", "hangs", "returns-garbage", "is-not-ready"])
def test_the_version_stays_when_the_source_is_in_trouble(gate, style, trouble):
    source = Source(state=cluster()._replace(version="1.12.3", git_commit="abc"))
    with served(style, source, timeout=0.3) as (_, port):
        assert get(port, "/meta/apps").status == 200
        known = {"Version": {"Version": "1.12.3", "GitCommit": "abc"}}
        assert get(port, "/version").json == known
        if trouble in ("fails", "hangs"):
            source.act = failing if trouble == "fails" else gate
        else:
            source.state = 17 if trouble == "returns-garbage" else None
        for _ in range(2):
            assert get(port, "/meta/apps").status in (500, 503, 504)
            assert get(port, "/version").json == known


def test_a_server_that_starts_again_does_not_ask_a_hanging_source_twice(gate):
    source = Source(gate)
    server = ph.StatusServer(source, role="meta", timeout=10 * PATIENCE)
    for _ in range(3):
        with server, Client(server.port) as client:
            client.send(request("/meta/apps"))
            gate.reached()
            for _ in range(2):
                assert get(server.port, "/version").status == 200
            assert source.calls == 1
    with server, Client(server.port) as client:
        client.send(request("/meta/apps"))
        assert get(server.port, "/version").status == 200
        gate.open()
        assert total(client.answer()) == 3
    assert source.most == 1


def test_eight_threads_start_and_stop_one_server(gate):
    source = Source(gate)
    server = ph.StatusServer(source, role="meta", timeout=0.05)

    def turn():
        for _ in range(5):
            with contextlib.suppress(RuntimeError):  # it runs already
                server.start()
            with contextlib.suppress(OSError, EOFError):  # another thread has stopped it
                get(server.port, "/meta/apps")
            server.stop()

    wait_until(lambda: not ours(), "the threads of other tests end")
    turns = [in_thread(turn) for _ in range(8)]
    assert all(joined(thread) for thread in turns)
    assert not server.running
    assert len(ours()) <= 1 and source.most <= 1, "one thread waits for the source, no more"
    gate.open()
    wait_until(lambda: not ours(), "it ends when the source lets it go")


@pytest.mark.parametrize("what", ["source", "page"])
def test_what_hangs_does_not_hold_up_stop(monkeypatch, gate, what):
    page_of(monkeypatch, HELD, "/meta/apps", gate)
    source, target = (Source(gate), "/meta/apps") if what == "source" else (cluster(), HELD)
    with served("loop", source, timeout=10 * PATIENCE) as (server, port), Client(port) as client:
        client.send(request(target))
        gate.reached()
        assert joined(in_thread(server.stop)), "it waits for the " + what
        assert not server.running and client.closed()


# A host that has no thread left

def no_thread(*_):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("style", ["loop", "blocking"])
@pytest.mark.parametrize("source", [cluster(), Source()], ids=["state", "source"])
def test_without_another_thread_only_pages_of_tables_fail(monkeypatch, style, source):
    with contextlib.ExitStack() as stack:
        server = ph.StatusServer(source, role="meta", timeout=10 * PATIENCE)
        stack.callback(server.stop)
        if style == "loop":
            server.start()
            port = server.port
        else:
            port = stack.enter_context(mounted(server, http.server.HTTPServer))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for target in ("/meta/apps", "/meta/nodes", app("table1"), "/meta/cluster"):
                answer = get(port, target)
                assert (answer.status, set(answer.json)) == (503, {"error", "hint_message"})
            for target in ("/version", "/health", "/startTime", "/"):
                assert get(port, target).status == 200
        assert total(get(port, "/meta/apps")) == 3, "once there is a thread again"


def test_start_without_another_thread_leaves_nothing(monkeypatch):
    server, before = ph.StatusServer(cluster(), role="meta"), descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="thread"):
            server.start()
    assert not server.running and descriptors() == before
    with server:
        assert total(get(server.port, "/meta/apps")) == 3
