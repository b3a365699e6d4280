"""The loop and the blocking style get the same bytes, and must not be told apart by them."""

import contextlib
import http.client
import http.server
import random
import socket
import socketserver
import ssl

import pytest

import pegasus_http as ph
from support import (
    PATIENCE,
    PRIMARY,
    Client,
    cluster,
    ended,
    head,
    in_service,
    mounted,
    settle,
    without_dates,
)

HOST = "Host: test"
TARGETS = (
    "/", "/version", "/startTime", "/health", "/health?primary", "/meta/apps",
    "/meta/apps?detail&pretty", "/meta/nodes?detail=", "/meta/cluster?_=1", "/favicon.ico",
    "/meta/app?name=table1&detail", "/meta/app?name=table+1", "/meta/app?name=%zz",
    "/meta/app_envs?name=table1", "/nosuch", "http://o/version", "http://me@o/version", "*",
)
METHODS = ("GET",) * 6 + ("HEAD", "HEAD", "OPTIONS", "POST", "CONNECT", "BREW", "get")
FIELDS = (
    "Accept-Encoding: gzip", "If-None-Match: *", 'If-None-Match: "a,b"', 'If-Match: "x"',
    "If-Match: *", "Connection: keep-alive", "X-A: " + "b" * 400, "X-A:", "Content-Length: 0",
    "Accept: */*",
)
ENDING = (  # whatever follows one of these is not answered
    head("GET /version HTTP/1.1", HOST, "Connection: close"),
    head("GET /version HTTP/1.0"),
    head("GET /version HTTP/1.1"),
    head("GET /version HTTP/1.1", HOST, HOST),
    head("GET / HTTP/2.0", HOST),
    head("GET /version HTTP/1.1", HOST, "Content-Length: 5") + b"hello",
    head("POST /version HTTP/1.1", HOST, "Transfer-Encoding: ,chunked") + b"1\r\nx\r\n0\r\n\r\n",
    head("GET /version HTTP/1.1", HOST, "Transfer-Encoding: tea"),
    head("GET /version HTTP/1.1", HOST, "X A: b"),
    b"GET /health\r\n", b"HEAD /health\r\n", b"hello\r\n", b"\x16\x03\x01",
    b"GET /\xe9 HTTP/1.1\r\n",
    head("GET /" + "a" * 9000 + " HTTP/1.1", HOST),
    head("GET /version HTTP/1.1", HOST, *("X-%d: y" % n for n in range(120))),
)


@pytest.fixture(scope="module")
def both():
    """Server -> (the port of its loop, the port of the same server in blocking style)."""
    states = {"meta": cluster(tables=9), "standby": ph.Standby(PRIMARY), "nothing": None}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(ph.StatusServer(state, role="meta"))
                   for name, state in states.items()}
        yield {name: (server.port, stack.enter_context(mounted(server)))
               for name, server in servers.items()}


def any_request(chance):
    line = "%s %s HTTP/" % (chance.choice(METHODS), chance.choice(TARGETS))
    fields = chance.sample(FIELDS, chance.choice((0, 0, 1, 2, 3)))
    if chance.random() < 0.1:
        return head(line + "1.0", "Connection: keep-alive", *fields)
    return head(line + "1.1", HOST, *fields)


def stream(chance, seed):
    """The bytes of one client: requests, blank lines between, with odd seeds an end among them."""
    parts = [any_request(chance) for _ in range(chance.randrange(1, 8))]
    for _ in range(chance.choice((0, 0, 1, 2))):
        parts.insert(chance.randrange(len(parts) + 1), b"\r\n")
    if seed % 2:
        parts.insert(chance.randrange(len(parts) + 1), ENDING[seed // 2 % len(ENDING)])
    data = b"".join(parts)
    return data[:chance.randrange(len(data))] if chance.random() < 0.2 else data


def cut(chance, data):
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 1, 3, 8))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)]) if a < b]


def heard(port, bystander, pieces):
    """All that a client of these pieces hears until a clean end; a reset is an error."""
    with Client(port) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:  # the connection may end before all are sent
                client.send(piece)
                settle(bystander, rounds=1)
            client.sock.shutdown(socket.SHUT_WR)
        return without_dates(ended(client))


@pytest.mark.parametrize("seed", range(150))
def test_both_styles_answer_the_same(both, seed):
    chance = random.Random(seed)
    loop, blocking = both[chance.choice(("meta", "meta", "standby", "nothing"))]
    data = stream(chance, seed)
    pieces, others = cut(chance, data), cut(chance, data)
    with Client(loop) as bystander:
        expected = heard(loop, bystander, pieces)
        assert heard(blocking, bystander, pieces) == expected
        assert heard(blocking, bystander, others) == expected, "cut otherwise"
        assert heard(loop, bystander, others) == expected, "cut otherwise"


@pytest.mark.parametrize("seed", range(40))
def test_both_styles_end_the_connection_or_leave_it_open(both, seed):
    """A last request tells: it is answered and ends the connection, or the end was before it."""
    chance = random.Random(1000 + seed)
    data = stream(chance, seed)
    pieces = [*cut(chance, data), head("GET /health HTTP/1.1", HOST, "Connection: close")]
    loop, blocking = both["meta"]
    with Client(loop) as bystander:
        answers = heard(loop, bystander, pieces)
        assert heard(blocking, bystander, pieces) == answers


def test_the_streams_are_many_and_depend_on_the_seed_alone():
    def streams(first):
        return [stream(random.Random(seed), seed) for seed in range(first, first + 150)]

    assert streams(0) == streams(0) and len(set(streams(0) + streams(150))) > 250
    assert all(any(each in data for data in streams(0)) for each in ENDING)


# Servers of other kinds that StatusHandler serves

BIG = "/meta/app?name=table1&detail&pretty"


def test_over_a_unix_socket(tmp_path):
    class Handler(ph.StatusHandler):
        status_server = ph.StatusServer(cluster(partitions=100), role="meta")

    class Mount(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path = str(tmp_path / "socket")
    with in_service(Mount(path, Handler)), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        assert asked(sock) == ph.respond(cluster(partitions=100), "GET", BIG).body


def test_over_tls():
    """Without a certificate, which nothing here needs."""
    contexts = [ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)]
    for context in contexts:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.set_ciphers("aNULL:@SECLEVEL=0")
        except ssl.SSLError:
            pytest.skip("this OpenSSL always needs a certificate")

    class Handler(ph.StatusHandler):
        status_server = ph.StatusServer(cluster(partitions=100), role="meta")

    mount = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mount.daemon_threads = True
    mount.socket = contexts[0].wrap_socket(mount.socket, server_side=True)
    with in_service(mount), socket.create_connection(mount.server_address) as plain, \
            contexts[1].wrap_socket(plain) as sock:
        assert asked(sock) == ph.respond(cluster(partitions=100), "GET", BIG).body


def asked(sock):
    """The page twice over one connection; its body."""
    sock.settimeout(PATIENCE)
    bodies = []
    for _ in range(2):
        sock.sendall(head("GET %s HTTP/1.1" % BIG, HOST))
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert answer.status == 200
        bodies.append(answer.read())
    assert len(bodies[0]) > 16384 and bodies[0] == bodies[1]
    return bodies[0]
