"""A seeded mutation fuzzer over everything that decodes the bytes of others.

    python tests/fuzz.py --inputs 1000000

prints a Markdown table. The invariants: only the documented errors, in bounded time, and the
result is a function of the bytes, however they are cut. A broken one ends the run: the input,
made as short as it gets, is printed, and the exit code is 1.
"""

import argparse
import json
import os
import random
import socket
import struct
import sys
import time
import zlib
from typing import Callable, NamedTuple, Sequence

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pegasus_http as ph
from support import cluster

SECONDS = 5.0  # an input that takes longer breaks the invariant; ordinary ones take 0.1 ms
LONGEST = 100000  # bytes of an input
PRIMARY = "10.0.0.9:34601"
STATES = {"cluster": cluster(), "standby": ph.Standby(PRIMARY), "nothing": None}
DOCUMENTED = {200, 204, 304, 307, 400, 404, 405, 414, 431, 501, 503, 505}
SERVERS = [ph.StatusServer(STATES[name], role="meta") for name in ("cluster", "standby")]


class Target(NamedTuple):
    """What is fuzzed. check: raises for a broken invariant, else says whether it was accepted."""

    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    check: Callable[[bytes], bool]


class Broken(Exception):
    """An invariant does not hold."""


def must(condition, *said):
    if not condition:
        raise Broken(" ".join(map(str, said)))


def cuts(data):
    """The bytes in pieces; the places depend on nothing but the bytes."""
    rng = random.Random(zlib.crc32(data))
    yield [data]
    for most in (1, 3, 12):
        places = sorted(rng.randrange(len(data) + 1) for _ in range(most))
        yield [data[a:b] for a, b in zip([0] + places, places + [len(data)])]
    if len(data) < 300:
        yield [data[n:n + 1] for n in range(len(data))]


# Requests: a stream of bytes through a connection's handler

def check_response(status, headers, body):
    must(status in DOCUMENTED, "status", status, body[:200])
    for name, value in headers:
        must(value.isprintable(), "field", name, repr(value))
        if name == "Location":
            must(value.startswith("http://%s/" % PRIMARY), "Location", value)
    if body:
        must(body.endswith(b"\n"), "body does not end in a newline", body[-20:])
        must(isinstance(json.loads(body.decode("utf-8")), dict), "body", body[:200])


def converse(server, pieces):
    """All answers to a connection that sends `pieces`, and whether it is closed at their end."""
    handler = ph.StatusHandler(None, ("127.0.0.1", 1), server, fed=True)
    answers = []
    for piece in pieces:
        handler.buffer += piece
        while not handler.close_connection and handler.next_request():
            response, head = handler.answer(server._state)
            must(head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1, "head", head)
            if ("Content-Encoding", "gzip") not in response.headers:
                check_response(*response)
            answers.append(response)
    return answers, handler.close_connection


def check_stream(data):
    for server in SERVERS:
        expected = None
        for pieces in cuts(data):
            answers = converse(server, pieces)
            expected = expected or answers
            must(answers == expected, "cut into", pieces, "it is", answers, "instead of", expected)
    return any(answer.status < 400 for answer in expected[0])


def check_head(data):
    """The parser alone: a head or PageError, with and without its end in sight."""
    try:
        end = ph._head_end(data, 0)
        head = ph._parse_head(data[:end] if end >= 0 else data)
    except ph.PageError as error:
        must(error.status in (400, 414, 431, 501, 505), error.status)
        return False
    must(head.target.isascii() and head.target.isprintable(), head.target)
    must(all(name == name.lower() for name in head.fields), head.fields)
    return True


HEADS = [b"\r\n".join(lines) + b"\r\n\r\n" for lines in [
    [b"GET /version HTTP/1.1", b"Host: x"],
    [b"HEAD /meta/apps?detail=true HTTP/1.1", b"Host: a.example:34601", b"Accept-Encoding: gzip"],
    [b"GET http://o/meta/app?name=table1&detail HTTP/1.1", b"Host: x", b"Connection: close"],
    [b"POST /version HTTP/1.1", b"Host: x", b"Content-Length: 0", b"Connection: keep-alive, x"],
    [b"OPTIONS * HTTP/1.0", b"Connection: keep-alive", b"User-Agent: curl/8.5.0"],
    [b"GET /meta/nodes?pretty HTTP/1.1", b"Host: [::1]", b"X-A: \t \xff ", b'If-None-Match: "a"'],
    [b"GET / HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked", b"", b"1", b"x", b"0"],
]]
HEAD_TOKENS = [
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"\x7f", b"\x80", b"\xff", b"/",
    b"?", b"&", b"=", b"%", b"%zz", b"%2f", b"%00", b"*", b"#", b"HTTP/1.1", b"HTTP/1.0",
    b"HTTP/2.0", b"GET ", b"get ", b"HEAD ", b"http://", b"Host: x\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"5, 5", b"-1", b"9" * 5000,
    b"a" * 8192, b"X: y\r\n" * 100, b"\r\nX: " + b"b" * 9000, b"\r\n ", b" :", *HEADS,
]


# Queries: the whole application on any target and any field

def check_query(data):
    target, *fields = data.decode("latin-1").split("\n")
    headers = dict(zip(("Accept-Encoding", "If-None-Match", "Host"), fields))
    accepted = False
    for state in STATES.values():
        for method in ("GET", "HEAD", "OPTIONS"):
            response = ph.respond(state, method, target, headers, compress=False)
            check_response(*response)
            accepted = accepted or response.status < 400
    return accepted


QUERIES = [
    b"/meta/app?name=table1&detail=true", b"/meta/app?name=%74able1&pretty&detail=false",
    b"/meta/apps?detail\ngzip;q=0.5, *;q=0\nW/\"a\", *\nx", b"//meta//nodes/?&&detail&",
    b"http://o:1/version?pretty=true", b"/health?primary", b"/meta/app?name=%c3%a9+%20=b;c",
    b"/\ngzip\n*\n" + PRIMARY.encode(),
]
QUERY_TOKENS = [
    b"%", b"%0d%0a", b"%00", b"%c3", b"%ed%a0%80", b"%2F", b"&", b"=", b"?", b"#", b"+", b";",
    b"name=", b"detail", b"pretty", b"\n", b"\r", b"\0", b"\xe9", b"/", b"//", b"@evil", b"\\",
    b"http://", b"*", b"\"", b",", b"q=0", b"a" * 9000, b"&" * 5000, b"/" * 5000, b"%41" * 3000,
]


# State files

def check_state(data):
    try:
        state = ph._load_cluster(data, "state")
    except ValueError as error:
        must(str(error).startswith("state: "), "no place in", error)
        return False
    again = ph._load_cluster(json.dumps(ph._cluster_to_json(state)).encode(), "again")
    must(again == state, "dumped and loaded it is another")
    targets = ["/meta/apps?detail&pretty", "/meta/nodes?detail", "/meta/cluster", "/version"]
    for target in targets:
        response = ph.respond(state, "GET", target)
        must(response.status == 200, target, response)
        check_response(*response)
    return True


def state_seeds():
    whole = ph._cluster_to_json(cluster(tables=2, partitions=2, nodes=3))
    small = {"apps": [{"app_id": 1, "app_name": "a"}], "nodes": []}
    full = dict(whole, server_info={"version": "1.12.0", "git_SHA": "abc"})
    return [json.dumps(each).encode() for each in (whole, small, full)]


STATE_TOKENS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"9" * 5000, b"[]",
    b"{}", b"[" * 5000, b'{"a":' * 5000, b'""', b'"\\ud800"', b'"\\u0000"', b'"a:1"', b'"a:99999"',
    b'"DROPPED"', b'"CREATING"', b"\xff", b"\xef\xbb\xbf", b",", b":", b'"', b"\\", b"2147483648",
    b'"apps"', b'"partitions"', b'"secondaries"', b'"primary"', b'"envs"', b'"app_id"', b"1.0",
]


# The RPC decoder, and the framing under it

def text(value):
    return struct.pack(">i", len(value)) + value


def frame(code, result, error=b"ERR_OK", sequence=1):
    body = text(error) + b"\x80\x01\x00\x02" + text(code + b"_ACK")
    body += struct.pack(">i", sequence) + result + b"\0"
    return struct.pack(">i", len(body) + 4) + body


def address(last):
    return bytes([10, 0, 0, last]) + struct.pack(">HH", 34801, 1)


OK = b"\x0c\0\0\x0c\0\x01" + text(b"ERR_OK")
APP = (
    b"\x08\0\x01\0\0\0\x01" + b"\x0b\0\x02" + text(b"pegasus") + b"\x0b\0\x03" + text(b"temp")
    + b"\x08\0\x04\0\0\0\x02" + b"\x08\0\x05\0\0\0\x01" + b"\x0d\0\x06\x0b\x0b\0\0\0\x01"
    + text(b"k") + text(b"v") + b"\x02\0\x07\x01" + b"\x08\0\x08\0\0\0\x03"
    + b"\x0a\0\x0a" + bytes(8) + b"\x02\0\x0e\0" + b"\0"
)
ROW = (
    b"\x0c\0\x01" + bytes(8) + b"\x0a\0\x02" + bytes(7) + b"\x05" + b"\x08\0\x03\0\0\0\x03"
    + b"\x0c\0\x04" + address(1) + b"\x0f\0\x05\x0c\0\0\0\x02" + address(2) + address(3)
    + b"\x0f\0\x06\x0c\0\0\0\0" + b"\x0a\0\x07" + bytes(8) + b"\x08\0\x08\0\0\0\0"
)
NEW_ROW = ROW + b"\x0c\0\x09" + text(b"host") + b"\x87\xf1\x01" + b"\x0f\0\x0a\x0c\0\0\0\0"
NODE = b"\x08\0\x01\0\0\0\x01" + b"\x0c\0\x02" + address(1)
NEW_NODE = NODE + b"\x0c\0\x03" + text(b"host") + b"\x87\xf1\x01"
TEXTS = b"\x0b\0\0\0\x02" + text(b"meta_servers") + text(b"zookeeper_root")
LIST, QUERY = b"RPC_CM_LIST_APPS", b"RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX"


def query_result(row, error=b"ERR_OK"):
    return (b"\x0c\0\0\x0c\0\x01" + text(error) + b"\x08\0\x02\0\0\0\x02\x08\0\x03\0\0\0\x01"
            + b"\x02\0\x04\x01\x0f\0\x05\x0c\0\0\0\x01" + row + b"\0\0")


FRAMES = [
    frame(LIST, OK + b"\x0f\0\x02\x0c\0\0\0\x02" + APP * 2 + b"\0"),
    frame(QUERY, query_result(ROW)),
    frame(QUERY, query_result(NEW_ROW)),
    frame(QUERY, query_result(ROW, b"ERR_FORWARD_TO_OTHERS")),
    frame(b"RPC_CM_LIST_NODES",
          OK + b"\x0f\0\x02\x0c\0\0\0\x02" + NODE + b"\0" + NEW_NODE + b"\0\0"),
    frame(b"RPC_CM_CLUSTER_INFO", OK + b"\x0f\0\x02" + TEXTS + b"\x0f\0\x03" + TEXTS + b"\0"),
    frame(b"RPC_CLI_CLI_CALL", b"\x0b\0\0" + text(b"Pegasus Server 2.5.0 (abc) Release, Started")),
    frame(b"RPC_CLI_CLI_CALL", b"\x0b\0\0" + text(b'{"version":"2.6.0","git_SHA":"abc"}')),
    frame(LIST, b"", error=b"ERR_HANDLER_NOT_FOUND")[:-1],
]
FRAME_TOKENS = [
    b"\0", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x01",
    b"\x0c\0\x01", b"\x0f\0\x02\x0c\0\0\0\x01", b"\x0b", b"\x0d\0\x06\x0b\x0b", b"\x0f\0\x63\x0b",
    b"\x0d\0\x63\x0c\x0c\0\0\0\x01", b"\x0f\0\x63\x02\0\xff\xff\xff", b"\xc3\x28", b"ERR_OK",
    b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\x40\0", address(7), APP, ROW, NODE,
]
DECODERS = (ph._decode_apps, ph._decode_nodes, ph._decode_info, ph._decode_server_info,
            ph._decode_query)
RPC_ERRORS = (ph._WireError, ph._Refused, ph._NotPrimary)


def check_rpc(data):
    try:
        body = ph._guarded(lambda data, at: ph._read_reply(data))(data, 0).body
    except ph._WireError:
        body = data.find(b"\x0c\0\0")
    accepted = False
    for decode in DECODERS:
        try:
            decode(data, body if body >= 0 else 0)
            accepted = True
        except RPC_ERRORS:
            pass
    return accepted


class Pipe:
    """The socket of a meta server that sends what it was given, in these pieces, and closes."""

    def __init__(self, pieces):
        self.pieces = [piece for piece in pieces if piece]

    def settimeout(self, seconds):
        pass

    def recv(self, most):
        return self.pieces.pop(0) if self.pieces else b""


def frames(pieces):
    channel = ph._Channel.__new__(ph._Channel)
    channel._buffer, channel._socket, channel._sequence = bytearray(), Pipe(pieces), 1
    found = []
    try:
        while True:
            found.append(channel._frame(time.monotonic() + 1000.0))
    except (ph._WireError, ConnectionResetError, socket.timeout) as error:
        return found, type(error), str(error)


def check_frames(data):
    """The answer ends at the first frame that cannot be; what precedes it does not depend on cuts.

    The text of the error may: an HTTP answer is told apart only when its start is there at once.
    """
    found = [frames(pieces)[0] for pieces in cuts(data)]
    must(all(each == found[0] for each in found), "cut otherwise there are other frames")
    must(sum(map(len, found[0])) <= len(data), "more than was sent")
    return bool(found[0])


TARGETS = {
    "request stream": Target([b"".join(HEADS[:3]), *HEADS], HEAD_TOKENS, check_stream),
    "request head": Target(HEADS, HEAD_TOKENS, check_head),
    "target and fields": Target(QUERIES, QUERY_TOKENS, check_query),
    "state file": Target(state_seeds(), STATE_TOKENS, check_state),
    "RPC answer": Target(FRAMES, FRAME_TOKENS, check_rpc),
    "RPC frames": Target([b"".join(FRAMES), *FRAMES], FRAME_TOKENS, check_frames),
}


# Mutation, the run, the report

def mutate(rng, target):
    """A seed after a few changes; about one in eight is a splice of two."""
    data = rng.choice(target.seeds)
    if not rng.randrange(8):
        other = rng.choice(target.seeds)
        data = data[:rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1):]
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((0, 1, 1, 2, 4, 30)))
        put = rng.choice((
            b"", bytes([rng.randrange(256)]), rng.choice(target.tokens), rng.choice(target.tokens),
            data[at:end] * rng.choice((2, 3, 50)),
        ))
        data = data[:at] + put + data[end:]
    return data[:LONGEST]


def broken(target, data):
    """What is wrong with `data`, or None; whether it was accepted; seconds."""
    began, problem, accepted = time.perf_counter(), None, False
    try:
        accepted = target.check(data)
    except Exception as error:
        problem = "%s: %s" % (type(error).__name__, error)
    spent = time.perf_counter() - began
    if problem is None and spent > SECONDS:
        problem = "it took %.1f s" % spent
    return problem, accepted, spent


def shorten(target, data):
    """The shortest input found by leaving pieces out that is still broken."""
    size = len(data)
    while size:
        at = 0
        while at < len(data):
            less = data[:at] + data[at + size:]
            if broken(target, less)[0]:
                data = less
            else:
                at += size
        size //= 2
    return data


def fuzz(name, inputs, seed):
    """`inputs` mutants of one target: (accepted, slowest second, None or (problem, input))."""
    rng, target, total, slowest = random.Random("%s %d" % (name, seed)), TARGETS[name], 0, 0.0
    for _ in range(inputs):
        data = mutate(rng, target)
        problem, accepted, spent = broken(target, data)
        if problem:
            return total, slowest, (problem, data)
        total += accepted
        slowest = max(slowest, spent)
    return total, slowest, None


def report(name, problem, data):
    short = shorten(TARGETS[name], data)
    print("BROKEN: %s: %s" % (name, broken(TARGETS[name], short)[0] or problem))
    print("input:", short)
    print("again: python tests/fuzz.py --target %r --hex %s" % (name, short.hex()))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000000, help="in all, default %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=sorted(TARGETS), help="only this one")
    parser.add_argument("--hex", type=bytes.fromhex, help="only this input of --target")
    options = parser.parse_args(argv)
    if options.hex is not None:
        problem, _, _ = broken(TARGETS[options.target], options.hex)
        print(problem or "holds")
        return 1 if problem else 0
    names, code = [options.target] if options.target else list(TARGETS), 0
    rows = []
    for name in names:
        inputs = options.inputs // len(names)
        accepted, slowest, found = fuzz(name, inputs, options.seed)
        if found:
            report(name, *found)
            code = 1
        else:
            share = 100.0 * accepted / max(inputs, 1)
            rows.append("| %s | %d | %.0f %% | %.1f ms |" % (name, inputs, share, slowest * 1000))
    print("| fuzzed, seed %d | inputs | accepted | slowest |\n|---|---|---|---|" % options.seed)
    print("\n".join(rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
