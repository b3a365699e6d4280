"""Slow, silent, rude and greedy clients, exhausted resources, and what must not be injected."""

import contextlib
import gzip
import os
import pickle
import select
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse

import pytest

import pegasus_http as ph
from marks import needs_proc
from support import (
    NEVER,
    NEXT,
    PATIENCE,
    STYLES,
    Client,
    Slow,
    ask,
    at_once,
    check_growth,
    cluster,
    descriptors,
    ended,
    figures,
    get,
    host,
    request,
    reset,
    room,
    running,
    save_state,
    served,
    settle,
    started,
    wait_until,
)

CROWD = 400
MEBIBYTES = 30.0  # what so many hostile clients may cost at their peak
HALF = NEXT[:-2]
BIG = request("/meta/apps?detail")


def threads():
    return {thread.ident for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def large():
    return cluster(tables=1000, partitions=4)


@pytest.fixture
def meta(monkeypatch, large):
    """A server without deadlines: a test sets the one that it is about."""
    for name in ("_HEAD_SECONDS", "_IDLE_SECONDS", "_WRITE_SECONDS"):
        monkeypatch.setattr(ph, name, NEVER)
    with ph.StatusServer(ph.Cluster(*large), role="meta") as server:
        yield server


@pytest.fixture(params=STYLES)
def port(request, monkeypatch, large):
    """The same in both styles."""
    for name in ("_HEAD_SECONDS", "_IDLE_SECONDS", "_WRITE_SECONDS", "_DRAIN_SECONDS"):
        monkeypatch.setattr(ph, name, NEVER)
    with served(request.param, ph.Cluster(*large)) as (_, port):
        yield port


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    """A state whose page /meta/apps?detail has 300 KB and more."""
    path = str(tmp_path_factory.mktemp("state") / "big.json")
    save_state(path, tables=1000)
    return path


# Deadlines: by the clock, from the first byte, whatever trickles in

def trickle(client, byte, seconds=0.02):
    """Send `byte` again and again until the server has something to say; all that it says."""
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # closed at this moment
        while not select.select([client.sock], [], [], seconds)[0]:
            assert time.monotonic() < end, "the server never ends it"
            client.send(byte)
    return client.rest()


def flood(client, data):
    """Send `data` until the server ends the connection; how many bytes that took."""
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < 2 ** 27:
            sent += client.sock.send(data)
    return sent


KERNEL = 2 ** 25  # bytes: more than what the kernel takes for a server that reads nothing


def test_a_head_that_never_ends_is_ended_by_the_clock(port, monkeypatch):
    def check(first):
        with Client(port) as client:
            began = time.monotonic()
            client.send(first)
            if first.startswith(NEXT):
                assert client.answer().status == 200
            left = trickle(client, b"a")
            assert time.monotonic() - began >= 0.4
            assert left.startswith(b"HTTP/1.1 408 "), left

    monkeypatch.setattr(ph, "_HEAD_SECONDS", 0.5)
    at_once(check, [[b"G"], [b"GET /version HTTP/1.1\r\nX-A: "], [NEXT + b"G"]])


def test_a_head_that_stops_is_answered_408(port, monkeypatch):
    monkeypatch.setattr(ph, "_HEAD_SECONDS", 0.2)
    with Client(port) as client:
        client.send(HALF)
        answer = client.answer()
        assert (answer.status, answer.json["error"]) == (408, "ERR_TIMEOUT")
        assert answer.headers["connection"] == "close"
        assert client.closed()


def test_a_slow_head_within_the_deadline_is_answered(meta):
    with Client(meta.port) as client, Client(meta.port) as bystander:
        for byte in NEXT:
            client.send(bytes([byte]))
            settle(bystander)
        assert client.answer().status == 200


def test_an_idle_connection_is_closed_without_a_word(port, monkeypatch):
    monkeypatch.setattr(ph, "_IDLE_SECONDS", 0.4)
    began = time.monotonic()
    with Client(port) as without_a_byte, Client(port) as after_an_answer:
        after_an_answer.send(NEXT)
        assert after_an_answer.answer().status == 200
        for client in (without_a_byte, after_an_answer):
            assert client.closed()
            assert time.monotonic() - began >= 0.3


def test_idle_connections_outlive_the_intervals_of_pollers():
    assert ph._IDLE_SECONDS == 75


def test_blank_lines_for_ever_are_ended_by_the_clock(port, monkeypatch):
    monkeypatch.setattr(ph, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(ph, "_IDLE_SECONDS", 0.3)
    with Client(port) as client:
        assert trickle(client, b"\r\n") == b"", "no request has begun"


@pytest.mark.parametrize("first, data", [
    pytest.param(b"", b"\r\n" * 8000, id="blank-lines"),
    pytest.param(NEXT, b"\r\n" * 8000, id="blank-lines-after-a-request"),
    pytest.param(b"", b"a" * 16000, id="request-line"),
    pytest.param(HALF, b"X-A: b\r\n" * 2000, id="fields"),
    pytest.param(HALF + b"Content-Length: 999999999999\r\n\r\n", b"b" * 16000, id="body"),
    pytest.param(HALF + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nb\r\n" * 2000, id="chunks"),
    pytest.param(HALF + b"Connection: close\r\n\r\n", NEXT * 400, id="after-the-last-request"),
])
def test_what_never_ends_is_ended_by_its_bytes(port, first, data):
    with Client(port) as client:
        client.send(first)
        assert flood(client, data) < KERNEL


def test_a_body_that_never_ends_is_ended_by_the_clock(port, monkeypatch):
    monkeypatch.setattr(ph, "_DRAIN_SECONDS", 0.2)
    with Client(port) as client:
        client.send(HALF + b"Content-Length: 1000\r\n\r\n")
        assert client.answer().status == 200
        assert client.closed()

        def takes_no_more():
            try:
                client.send(b"b")
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        wait_until(takes_no_more, "the server takes no more")


@pytest.mark.parametrize("size", [100, 479, 480, 512, 4096, 8192, 16383, 16384, 16385, 32000])
def test_bytes_behind_the_last_request_do_not_reset_its_answer(port, size):
    fields, begin = [], "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    while len(begin) + len("".join(fields)) + 2 < size:
        wanted = min(size - len(begin) - len("".join(fields)) - 2, 7000)
        fields.append("X: %s\r\n" % ("a" * (wanted - 5)))
    data = (begin + "".join(fields) + "\r\n").encode()
    assert len(data) == size
    for behind in (NEXT * 30, b"", NEXT * 30):  # at the end these bytes are known
        with Client(port) as client:
            client.send(data + behind)
            assert client.answer().status == 200
            assert ended(client) == b""


def test_an_answer_that_nobody_reads_is_given_up(port, monkeypatch):
    monkeypatch.setattr(ph, "_WRITE_SECONDS", 0.2)
    with Client(port) as bystander:
        settle(bystander)
        before = descriptors()
        with Slow(port, BIG * 10) as client:
            client.wait()
            wait_until(lambda: descriptors() <= before + 1, "the server closes its end")
            client.sock.settimeout(PATIENCE)
            assert len(client.rest()) < 10 * 300000


def test_a_reader_of_a_byte_at_a_time_is_given_up(port, monkeypatch):
    monkeypatch.setattr(ph, "_WRITE_SECONDS", 0.3)

    def read_one():
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            client.sock.recv(1)
        return descriptors() <= before + 1

    with Client(port) as bystander:
        settle(bystander)
        before = descriptors()
        with Slow(port, BIG * 10) as client:
            client.wait()
            wait_until(read_one, "the server closes its end")


def test_a_slow_reader_within_the_deadline_gets_every_byte(port):
    expected = get(port, "/meta/apps?detail").body
    with Slow(port, BIG * 3) as client, Client(port) as bystander:
        settle(bystander, 20)
        client.sock.settimeout(PATIENCE)
        assert [client.answer().body == expected for _ in range(3)] == [True] * 3


# Rude clients, one at a time

STAGES = {
    "connected": b"",
    "a-byte": b"G",
    "half-a-head": HALF,
    "request": NEXT,
    "two-requests": NEXT * 2,
    "big-answer": BIG * 20,
    "body": b"GET /version HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    "error": b"\0",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("read", [False, True], ids=["unread", "half-read"])
def test_reset_at_each_stage(meta, stage, read):
    with Client(meta.port) as bystander:
        settle(bystander)
        ask(bystander, "/meta/apps")  # the worker has started
        before, running_before = descriptors(), threads()
        for _ in range(20):
            client = Client(meta.port)
            client.send(STAGES[stage])
            settle(bystander)
            if read and stage in ("request", "two-requests", "big-answer", "body", "error"):
                client.sock.recv(10)
            reset(client)
        settle(bystander)
        wait_until(lambda: descriptors() <= before, "every connection is given back")
        wait_until(lambda: threads() <= running_before, "every thread ends")


def test_a_tls_client_is_told_at_once(meta):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hello = context.wrap_bio(incoming, outgoing, server_hostname="test.example")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    with Client(meta.port) as client:
        client.send(outgoing.read())
        answer = client.answer()
        assert (answer.status, answer.json["error"]) == (400, "ERR_INVALID_DATA")
        assert client.closed()


@needs_proc
def test_rude_clients_do_not_fill_the_log(state_file):
    with running("--role", "meta", "--state", state_file) as (process, port):
        with Client(port) as bystander:
            for _ in range(25):
                for data in STAGES.values():
                    client = Client(port)
                    client.send(data)
                    reset(client)
                    settle(bystander, 1)
            assert get(port, "/nosuch").status == 404
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
        assert log == ""


# Crowds: hundreds at once

class Crowd:
    """Many clients of one kind; `turn` is what each does between two requests of a good client."""

    def __init__(self, count, port, first=b"", small=False):
        self.clients = [Slow(port, first) if small else Client(port) for _ in range(count)]
        for client in self.clients:
            client.sock.setblocking(False)
            if not small:
                client.send(first)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for client in self.clients:
            client.sock.close()

    def turn(self, act):
        for client in self.clients:
            with contextlib.suppress(OSError):
                act(client)


KINDS = {
    "silent": (b"", False, None),
    "half-a-head": (HALF, False, None),
    "a-byte-at-a-time": (b"G", False, lambda client: client.send(b"a")),
    "never-reads": (BIG, True, None),
    "reads-a-byte-at-a-time": (BIG, True, lambda client: client.sock.recv(1)),
    "half-closes": (HALF, False, lambda client: client.sock.shutdown(socket.SHUT_WR)),
    "resets": (NEXT, False, reset),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", False, None),
}


@needs_proc
@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_at_once(state_file, kind):
    first, small, act = KINDS[kind]
    count = room(CROWD)
    with running("--role", "meta", "--state", state_file) as (process, port):
        with Client(port) as good:
            good.send(BIG)
            assert len(good.answer().body) > 300000
            before = figures(process.pid)
            with Crowd(count, port, first, small) as crowd:
                for _ in range(3):
                    settle(good, 20)
                    if act:
                        crowd.turn(act)
                with Client(port) as newcomer:
                    ask(newcomer)
                during = figures(process.pid)
                assert during.threads == before.threads
                check_growth(before.peak, during.peak, MEBIBYTES)
            wait_until(lambda: figures(process.pid).descriptors <= before.descriptors,
                       "every connection is given back")
            after = figures(process.pid)
            check_growth(before.resident, after.resident, MEBIBYTES / 2)
            ask(good)


@needs_proc
def test_back_pressure(state_file):
    with running("--role", "meta", "--state", state_file) as (process, port):
        with Client(port) as good:
            good.send(BIG)
            expected = good.answer().body
            before = figures(process.pid)
            with Crowd(50, port, BIG * 100, small=True) as crowd:
                settle(good, 200)
                during = figures(process.pid)
                check_growth(before.peak, during.peak, MEBIBYTES)
                reader = crowd.clients[0]
                reader.sock.settimeout(PATIENCE)
                assert [reader.answer().body == expected for _ in range(5)] == [True] * 5
            wait_until(lambda: figures(process.pid).descriptors <= before.descriptors,
                       "every connection is given back")


def test_all_pipelined_answers_come_once_they_are_read(meta):
    with Slow(meta.port, (BIG + NEXT) * 10) as client, Client(meta.port) as bystander:
        settle(bystander, 20)
        client.sock.settimeout(PATIENCE)
        for _ in range(10):
            assert "general_info" in client.answer().json
            assert "Version" in client.answer().json


# Exhaustion: connections, descriptors, caches

@pytest.fixture
def small(monkeypatch):
    for name in ("_HEAD_SECONDS", "_IDLE_SECONDS"):
        monkeypatch.setattr(ph, name, NEVER)
    with ph.StatusServer(cluster(), role="meta", max_connections=5) as server:
        yield server


def opened(stack, port, data=b""):
    client = stack.enter_context(Client(port))
    client.send(data)
    return client


def test_over_the_limit_the_longest_idle_connection_goes(small):
    with contextlib.ExitStack() as stack:
        clients = [opened(stack, small.port) for _ in range(5)]
        for client in clients:
            ask(client)
        ask(clients[0])  # so that the second is now the longest idle
        for gone in (clients[1], clients[2]):
            ask(opened(stack, small.port))
            assert gone.closed()
        for client in (clients[0], clients[3], clients[4]):
            ask(client)


def test_over_the_limit_with_all_at_work_503(small):
    with contextlib.ExitStack() as stack:
        busy = [opened(stack, small.port, NEXT + HALF) for _ in range(5)]
        for client in busy:
            assert client.answer().status == 200
        for _ in range(20):
            with Client(small.port) as refused:
                with contextlib.suppress(ConnectionError):
                    refused.send(NEXT)
                answer = refused.answer()
                assert (answer.status, answer.json["error"]) == (503, "ERR_BUSY")
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.headers["connection"] == "close"
                assert refused.closed()
        for client in busy:
            client.send(b"\r\n")
            assert client.answer().status == 200
        ask(opened(stack, small.port))


def test_the_limit_counts_what_is_open_not_what_was(small):
    before = descriptors()
    for _ in range(50):
        with Client(small.port) as client:
            ask(client)
    wait_until(lambda: descriptors() <= before, "every connection is given back")
    with contextlib.ExitStack() as stack:
        clients = [opened(stack, small.port) for _ in range(5)]
        for client in clients * 2:
            ask(client)


@needs_proc
def test_a_burst_over_the_limit_is_answered():
    """All are there before the server looks: one that has asked already is not an idle one."""
    with running("--role", "meta", "--max-connections", "5") as (process, port):
        with contextlib.ExitStack() as stack:
            process.send_signal(signal.SIGSTOP)
            clients = [opened(stack, port, NEXT) for _ in range(20)]
            process.send_signal(signal.SIGCONT)
            statuses = [client.answer().status for client in clients]
            assert set(statuses) <= {200, 503} and statuses.count(200) >= 5, statuses


FEW = """
import contextlib, os, resource, signal, sys
import pegasus_http as ph
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
files = []
def fill(*_):
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
def free(*_):
    while files:
        os.close(files.pop())
signal.signal(signal.SIGUSR1, fill)
signal.signal(signal.SIGUSR2, free)
sys.exit(ph.main(sys.argv[1:]))
"""


def few_descriptors():
    """A process that may have 40; its host takes the rest on SIGUSR1, gives it back on SIGUSR2."""
    return started([sys.executable, "-c", FEW, "--role", "meta", "--listen", "127.0.0.1:0"])


def fill(process):
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: figures(process.pid).descriptors == 40, "the host has taken the rest")


def processor_seconds(pid):
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_proc
def test_a_full_descriptor_table_neither_spins_nor_kills():
    with few_descriptors() as (process, port), contextlib.ExitStack() as stack:
        working = opened(stack, port, NEXT + HALF)
        assert working.answer().status == 200
        fill(process)
        waiting = [opened(stack, port, NEXT) for _ in range(10)]
        began, spent = time.monotonic(), processor_seconds(process.pid)
        wait_until(lambda: time.monotonic() - began > 1.0, "a second has passed")
        assert processor_seconds(process.pid) - spent < 0.4
        working.send(b"\r\n" + HALF)
        assert working.answer().status == 200, "who is connected is served"
        assert not select.select([client.sock for client in waiting], [], [], 0)[0]
        process.send_signal(signal.SIGUSR2)
        for client in waiting:
            assert client.answer().status == 200
        working.send(b"\r\n")
        assert working.answer().status == 200
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and 1 <= len(log.splitlines()) < 20, log


@needs_proc
def test_idle_clients_do_not_hold_a_full_descriptor_table():
    with few_descriptors() as (process, port), contextlib.ExitStack() as stack:
        idle = [opened(stack, port) for _ in range(6)]
        for client in idle:
            ask(client)
        fill(process)
        for _ in range(40):
            ask(opened(stack, port))
        assert idle[0].closed()
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
        assert (process.returncode, log) == (0, "")


def pour(port, requests, batch=20):
    """Send many requests, `batch` at a time, on one connection; the statuses seen."""
    seen = set()
    with Client(port) as client:
        for at in range(0, len(requests), batch):
            client.send(b"".join(requests[at:at + batch]))
            seen.update(client.answer().status for _ in requests[at:at + batch])
    return seen


@needs_proc
@pytest.mark.parametrize("make, status, count", [
    pytest.param(lambda n: request("/version", "X-A: %d%s" % (n, "b" * 7000)), 200, 1500,
                 id="heads"),
    pytest.param(lambda n: request("/version", "X-A: %d%s" % (n, "b" * 1900)), 200, 4000,
                 id="shorter-heads"),
    pytest.param(lambda n: request("/meta/app?name=%d%s" % (n, "b" * 7000)), 404, 1500,
                 id="names"),
    pytest.param(lambda n: request("/%d%s" % (n, "b" * 7000)), 404, 1500, id="paths"),
    pytest.param(lambda n: request("/meta/apps?detail&%s" % ("&" * n)), 200, 1500,
                 id="spellings"),
    pytest.param(lambda n: request("/meta/apps", 'If-None-Match: "%d"' % n), 200, 5000,
                 id="tags"),
])
def test_caches_are_bounded(make, status, count):
    with running("--role", "meta") as (process, port):
        pour(port, [make(0)] * 100)
        before = figures(process.pid)
        assert pour(port, [make(n) for n in range(count)]) == {status}
        after = figures(process.pid)
        check_growth(before.peak, after.peak, 10.0)


def test_pages_are_right_however_few_are_kept(monkeypatch):
    monkeypatch.setattr(ph, "_PAGE_CACHE_BYTES", 20000)
    state = cluster(tables=100, partitions=4)
    targets = ["/meta/app?name=table%d&detail" % n for n in range(1, 101)] + ["/meta/apps"]
    pages = {target: ph.respond(ph.Cluster(*state), "GET", target).body for target in targets}
    with ph.StatusServer(state, role="meta") as server, Client(server.port) as client:
        for target in targets * 2:
            for field in ("X-A: b", "Accept-Encoding: gzip"):
                client.send(request(target, field))
                answer = client.answer()
                zipped = "content-encoding" in answer.headers
                assert zipped == ("gzip" in field)
                assert (gzip.decompress(answer.body) if zipped else answer.body) == pages[target]


PUBLISHING = """
import sys, pegasus_http as ph
from support import cluster
server = ph.start(cluster(tables=200), role="meta")
print(server.port, flush=True)
for n, line in enumerate(sys.stdin):
    server.publish(cluster(tables=200, changed=n))
    print(n, flush=True)
"""


@needs_proc
def test_pages_of_old_states_are_given_back():
    def turn(process, port):
        process.stdin.write("next\n")
        process.stdin.flush()
        process.stdout.readline()
        for target in ("/meta/apps?detail", "/meta/apps?pretty", "/meta/nodes?detail"):
            assert get(port, target, "Accept-Encoding: gzip").status == 200

    def answer(process, first):
        for _ in range(5):
            turn(process, int(first))
        before = figures(process.pid)
        for _ in range(25):
            turn(process, int(first))
        check_growth(before.resident, figures(process.pid).resident, 5.0)

    host(PUBLISHING, answer=answer)


# What must not be injected, and what must not leak

@pytest.mark.parametrize("target, status", [
    ("/meta/apps?detail&%0d%0aSet-Cookie:%20a=b", 400),
    ("/meta/app?name=%0d%0aLocation:%20http://evil/", 307),
    ("/meta/app?name=%0aHTTP/1.1%20200%20OK", 307),
    ("//evil.example/meta/apps", 404), ("//evil.example//", 404),
    ("http://evil.example/meta/apps", 307),
    ("http://evil.example:80/meta/app?name=a%20b", 307),
    ("http://user@evil.example/meta/apps", 400), ("/meta/apps?http://evil.example/", 400),
    ("/meta/app?name=@evil.example", 307), ("/%2f%2fevil.example/meta/apps", 404),
    ("/meta//apps", 307), ("/meta/app?name=%22%3E%3Cscript%3E", 307),
    ("/\\evil.example/meta/apps", 404), ("/meta/apps/@evil.example", 404),
])
def test_only_the_published_primary_is_redirected_to(target, status):
    with ph.StatusServer(ph.Standby("10.0.0.9:34601"), role="meta") as server:
        with Client(server.port) as client:
            client.send(("GET %s HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example"
                         "\r\nForwarded: host=evil.example\r\n\r\n" % target).encode())
            answer = client.answer()
    assert answer.status == status
    assert ("location" in answer.headers) == (status == 307)
    assert "set-cookie" not in answer.headers
    if status == 307:
        location = answer.headers["location"]
        split = urllib.parse.urlsplit(location)
        assert (split.scheme, split.netloc) == ("http", "10.0.0.9:34601"), location
        assert split.path.startswith("/"), location
        assert split.query == urllib.parse.urlsplit(target).query
        assert "10.0.0.9:34601" in answer.json["hint_message"]


def test_a_standby_never_redirects_to_itself():
    with ph.StatusServer(ph.Standby(None), role="meta") as server:
        assert get(server.port, "/meta/apps").status == 503
        server.publish(ph.Standby("127.0.0.1:%d" % server.port))
        answer = get(server.port, "/meta/apps")
        assert answer.status == 503 and "location" not in answer.headers
        assert answer.json["error"] == "ERR_SERVICE_NOT_ACTIVE"


@pytest.mark.parametrize("primary, host, status", [
    ("Example:34601", "example:34601", 503), ("example:34601", "EXAMPLE:34601", 503),
    ("Example:80", "example", 503), ("example:80", "EXAMPLE:80", 503), ("[::A]:80", "[::a]", 503),
    ("Example:34601", "example", 307), ("Example:80", "example:34601", 307),
    ("Example:34601", "example.org:34601", 307),
])
def test_a_standby_knows_itself_by_its_host_field_in_any_case(primary, host, status):
    with ph.StatusServer(ph.Standby(primary), role="meta") as server:
        with Client(server.port) as client:
            client.send(("GET /meta/apps HTTP/1.1\r\nHost: %s\r\n\r\n" % host).encode())
            answer = client.answer()
    assert (answer.status, "location" in answer.headers) == (status, status == 307)


@pytest.mark.parametrize("host, primary", [("localhost", "LocalHost"), ("LocalHost", "localhost")])
def test_a_standby_knows_the_address_it_listens_on_in_any_case(host, primary):
    with ph.StatusServer(ph.Standby(None), role="meta", host=host) as server:
        server.publish(ph.Standby("%s:%d" % (primary, server.port)))
        with Client(server.port, "localhost") as client:
            client.send(request("/meta/apps"))
            assert client.answer().status == 503


@pytest.mark.parametrize("primary", [
    "evil", "a:1\r\nSet-Cookie: b", "a:1/../", "a b:1", "a@b:1", "a:port", "a:99999", "", ":1", 17,
    "a:1?x", "a:1#x", "http://a:1", "a:-1", "a:1 ", "\u00e9:1",
])
def test_a_primary_that_is_no_address_is_refused(primary):
    with pytest.raises(ValueError, match="primary"):
        ph.Standby(primary)


def test_a_name_stays_inside_its_string():
    name = 'a"b\\c<script>\r\n\t\u2028\u00e9/../'
    with ph.StatusServer(cluster(), role="meta") as server:
        answer = get(server.port, "/meta/app?name=" + urllib.parse.quote(name, safe=""))
    assert answer.status == 404 and answer.body.count(b"\n") == 1
    assert set(answer.json) == {"error", "hint_message"}
    assert set(answer.headers) <= {
        "server", "date", "content-type", "content-length", "connection", "cache-control",
        "x-content-type-options", "vary"}


@needs_proc
def test_no_client_writes_its_own_log_line(tmp_path):
    requests = [
        request("/version%0aforged%20line"), request("/version?%0d%0aforged"),
        request("/%1b[31mred"), request("/%e2%80%a8forged"), request("/%c2%85forged"),
        b"GET /version HTTP/1.1\r\nHost: x\r\nUser-Agent: a\xc2\x85\xe2\x80\xa8b\xff\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\nReferer: \"a\\\"\tb\r\n\r\n",
    ]
    broken = [b"\x1b[2J\nforged\r\n\r\n", b"GET /\x1b[31m HTTP/1.1\r\n\r\n",
              b"\x85\r\nforged\r\n\r\n"]
    with running("--role", "meta", "--access-log", "--log-level", "DEBUG") as (process, port):
        for data in requests + broken:
            with Client(port) as client:
                client.send(data)
                client.answer()
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
    lines = log.splitlines()
    assert len([line for line in lines if "GET " in line]) >= len(requests)
    assert not [line for line in lines if line.startswith(("forged", "b", " forged"))], log
    assert all(char == "\n" or " " <= char <= "~" for char in log), ascii(log)
    assert len(lines) <= 2 * len(requests + broken) + 5, log


SECRET = "swordfish in /etc/secret/path"


def failing():
    raise RuntimeError(SECRET)


@pytest.mark.parametrize("target", ["/meta/apps", "/meta/app?name=a", "/meta/nodes",
                                    "/meta/cluster"])
def test_a_failure_does_not_show_its_inside(target):
    with ph.StatusServer(failing, role="meta") as server:
        answer = get(server.port, target)
    assert (answer.status, answer.json["error"]) == (500, "ERR_UNKNOWN")
    for leak in (b"swordfish", b"Traceback", b"RuntimeError", b".py", b"/etc"):
        assert leak not in answer.body


def test_a_failing_source_does_not_fill_the_log(caplog):
    with ph.StatusServer(failing, role="meta") as server:
        for _ in range(100):
            assert get(server.port, "/meta/apps").status == 500
    assert SECRET in caplog.text
    assert 1 <= len(caplog.records) <= 20


@needs_proc
def test_the_default_is_loopback_only():
    with ph.StatusServer(cluster(), role="meta") as server:
        assert server.url.startswith("http://127.0.0.1:")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=PATIENCE)


class Planted:
    """Unpickling it would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_state_file_is_only_data(tmp_path, protocol):
    path, planted = tmp_path / "state", str(tmp_path / "planted")
    path.write_bytes(pickle.dumps(Planted(planted), protocol))
    with pytest.raises(ValueError, match="."):
        ph.StateFile(str(path))()
    path.write_text("__import__('os').mkdir(%r)" % planted)
    with pytest.raises(ValueError, match="."):
        ph.StateFile(str(path))()
    assert not os.path.exists(planted)
