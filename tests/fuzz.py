"""A seeded mutation fuzzer over everything that decodes the bytes of others.

    python tests/fuzz.py --inputs 1000000

prints a Markdown table. The invariants: only the documented errors, in bounded time, and the
result is a function of the bytes, however they are cut. A broken one ends the run: the input,
made as short as it gets, is printed, and the exit code is 1.
"""

import argparse
import atexit
import contextlib
import gzip
import io
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
import zlib
from typing import Callable, NamedTuple, Sequence

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pegasus_http as ph
import replay
from support import PRIMARY, cluster, talk, without_dates

SECONDS = 5.0  # an input that takes longer breaks the invariant; ordinary ones take 0.1 ms
LONGEST = 100000  # bytes of an input
STATES = {"cluster": cluster(), "standby": ph.Standby(PRIMARY), "nothing": None}
DOCUMENTED = {200, 204, 304, 307, 400, 404, 405, 412, 414, 431, 501, 503, 505}
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


# Requests: a stream of bytes through `StatusHandler`

LOCATION = re.compile(re.escape("http://" + PRIMARY) + "/[!$-;=?-Z_a-z~]*")  # what URIs may hold


def check_response(status, headers, body):
    must(status in DOCUMENTED, "status", status, body[:200])
    for name, value in headers:
        must(value.isprintable(), "field", name, repr(value))
        must(name != "Location" or LOCATION.fullmatch(value), "Location", value)
    if body:
        must(body.endswith(b"\n"), "body does not end in a newline", body[-20:])
        must(isinstance(json.loads(body.decode("utf-8")), dict), "body", body[:200])


def parsed(answer):
    """Status, (name, value) pairs and body of an answer on the wire."""
    head, end, body = answer.partition(b"\r\n\r\n")
    must(end, "the head does not end", answer[:200])
    line, *fields = head.decode("latin-1").split("\r\n")
    must(all(": " in field for field in fields), "head", head)
    return int(line.split(" ")[1]), [tuple(field.split(": ", 1)) for field in fields], body


def converse(server, pieces):
    """All answers to a connection that sends `pieces`, and whether the server ends it."""
    data, closed = talk(server, pieces)
    # A compressed body ends without a line break; what an error quotes has none behind it.
    first, *answers = re.split(rb"(?=HTTP/1\.1 [0-9]{3} [^\r\n]*\r\n)", without_dates(data))
    must(not first, "before the first answer", first)
    return [parsed(answer) for answer in answers], closed


def check_stream(data):
    for server in SERVERS:
        expected = None
        for pieces in cuts(data):
            answers = converse(server, pieces)
            expected = expected or answers
            must(answers == expected, "cut into", pieces, "it is", answers, "instead of", expected)
        for status, fields, body in expected[0]:
            length = int(dict(fields).get("Content-Length", "0"))
            must(len(body) in (0, length), "length", length, body)
            packed = body and ("Content-Encoding", "gzip") in fields
            check_response(status, fields, gzip.decompress(body) if packed else body)
    return any(status < 400 for status, _, _ in expected[0])


HEADS = [b"\r\n".join(lines) + b"\r\n\r\n" for lines in [
    [b"GET /version HTTP/1.1", b"Host: x"],
    [b"HEAD /meta/apps?detail=true HTTP/1.1", b"Host: a.example:34601", b"Accept-Encoding: gzip"],
    [b"GET http://o/meta/app?name=table1&detail HTTP/1.1", b"Host: x", b"Connection: close"],
    [b"POST /version HTTP/1.1", b"Host: x", b"Content-Length: 0", b"Connection: keep-alive, x"],
    [b"OPTIONS * HTTP/1.0", b"Connection: keep-alive", b"User-Agent: curl/8.5.0"],
    [b"GET /meta/nodes?pretty HTTP/1.1", b"Host: [::1]", b"X-A: \t \xff ", b'If-None-Match: "a"'],
    [b"GET / HTTP/1.1", b"Host: x", b"Transfer-Encoding: ,chunked", b"", b"1", b"x", b"0"],
    [b"GET /version HTTP/1.1", b"Host: [fe80::1%eth0]:80", b'If-Match: "a,b", *, W/"c"'],
]]
HEAD_TOKENS = [
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"\x7f", b"\x80", b"\xff", b"/",
    b"?", b"&", b"=", b"%", b"%zz", b"%2f", b"%00", b"*", b"#", b"HTTP/1.1", b"HTTP/1.0",
    b"HTTP/2.0", b"GET ", b"get ", b"HEAD ", b"http://", b"Host: x\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"5, 5", b"-1", b"9" * 5000,
    b"a" * 8192, b"X: y\r\n" * 100, b"\r\nX: " + b"b" * 9000, b"\r\n ", b" :",
    b"[::1]", b"[v1.a]", b":80", b"@", b"Host: ", b"\"", b",", *HEADS,
]


# Queries: the whole application on any target and any field

def check_query(data):
    target, *fields = data.decode("latin-1").split("\n")
    headers = dict(zip(("Accept-Encoding", "If-None-Match", "Host", "If-Match"), fields))
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
    b"/\ngzip\n*\n" + PRIMARY.encode(), b"http://a@b:80:81/meta/cluster?_=1\n\n\"a,b\"\nx\n*",
    b"/favicon.ico", b"/meta/app_envs?name=table1&detail=\n\n\n\nW/\"a\", \"b\"",
]
QUERY_TOKENS = [
    b"%", b"%0d%0a", b"%00", b"%c3", b"%ed%a0%80", b"%2F", b"&", b"=", b"?", b"#", b"+", b";",
    b"name=", b"detail", b"pretty", b"\n", b"\r", b"\0", b"\xe9", b"/", b"//", b"@evil", b"\\",
    b"http://", b"*", b"\"", b",", b"q=0", b"a" * 9000, b"&" * 5000, b"/" * 5000, b"%41" * 3000,
]


# State files, as a host and the command line read them

FOLDER = tempfile.mkdtemp(prefix="pegasus-http-fuzz-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def loaded(data):
    path = os.path.join(FOLDER, "state")
    with open(path, "wb") as file:
        file.write(data)
    return path, ph.StateFile(path)()


def dumped(path):
    with io.TextIOWrapper(io.BytesIO()) as output:
        with contextlib.redirect_stdout(output):
            must(ph.main(["--state", path, "--dump"]) == 0, "--dump failed")
        output.flush()
        return output.buffer.getvalue()


def check_state(data):
    try:
        path, state = loaded(data)
    except ValueError as error:
        must(FOLDER in str(error), "no place in", error)
        return False
    must(loaded(dumped(path))[1] == state, "dumped and loaded it is another")
    targets = ["/meta/apps?detail&pretty", "/meta/nodes?detail", "/meta/cluster", "/version"]
    for target in targets:
        response = ph.respond(state, "GET", target)
        must(response.status == 200, target, response)
        check_response(*response)
    return True


def state_seeds():
    row = {"ballot": 3, "max_replica_count": 3, "primary": "10.0.0.1:34801",
           "secondaries": ["10.0.0.2:34801", "10.0.0.3:34801"]}
    app = {"app_id": 1, "app_name": "table1", "status": "AVAILABLE", "app_type": "pegasus",
           "partition_count": 2, "is_stateful": True, "max_replica_count": 3, "envs": {"k": "v"},
           "create_second": 1564466666, "drop_second": 0, "expire_second": 0,
           "partitions": [row, dict(row, primary=None)]}
    gone = dict(app, app_id=2, app_name="table2", status="DROPPED", partitions=None, envs={})
    nodes = [{"address": "10.0.0.%d:34801" % n, "status": "ALIVE"} for n in (1, 2, 3)]
    info = {"meta_servers": "10.0.0.1:34601", "primary_meta_server": "10.0.0.1:34601",
            "zookeeper_hosts": "127.0.0.1:2181", "zookeeper_root": "/pegasus/test"}
    whole = {"apps": [app, gone], "nodes": nodes, "cluster_info": info,
             "server_info": {"version": "1.12.0", "git_SHA": "abc"}}
    small = {"apps": [{"app_id": 1, "app_name": "a"}], "nodes": []}
    return [json.dumps(each).encode() for each in (whole, small, dict(whole, apps=[app]))]


STATE_TOKENS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"9" * 5000, b"[]",
    b"{}", b"[" * 5000, b'{"a":' * 5000, b'""', b'"\\ud800"', b'"\\u0000"', b'"a:1"', b'"a:99999"',
    b'"DROPPED"', b'"CREATING"', b"\xff", b"\xef\xbb\xbf", b",", b":", b'"', b"\\", b"2147483648",
    b'"apps"', b'"partitions"', b'"secondaries"', b'"primary"', b'"envs"', b'"app_id"', b"1.0",
]


# Answers of a meta server, one of them damaged, as a `LiveCluster` reads them

MARK = b"mark"  # where the number of the request belongs
STATE = replay.make_state(tables=1, partitions=2, nodes=3)
ANSWERS = replay.synthetic(STATE)
CALLS = {replay.LIST_APPS: 0, replay.LIST_NODES: 0, replay.CLUSTER_INFO: None,
         replay.QUERY: b"table1", replay.CLI: "server-info"}


def frames():
    for others in (ANSWERS, replay.synthetic(STATE, new=False, server_info=replay.OLD_INFO),
                   replay.synthetic(STATE, extra=replay.unknown_scalars()), replay.standby(),
                   replay.refusing("ERR_HANDLER_NOT_FOUND")):
        for code, argument in CALLS.items():
            yield replay.with_sequence(others(code, argument), int.from_bytes(MARK, "big"))


FRAME_TOKENS = [
    b"\0", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x01",
    b"\x0c\0\x01", b"\x0f\0\x02\x0c\0\0\0\x01", b"\x0b", b"\x0d\0\x06\x0b\x0b", b"\x0f\0\x63\x0b",
    b"\x0d\0\x63\x0c\x0c\0\0\0\x01", b"\x0f\0\x63\x02\0\xff\xff\xff", b"\xc3\x28", b"ERR_OK",
    b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\x40\0", replay.rpc_address("10.0.0.7:34801"),
    *(code.encode() for code in CALLS),
]


def is_whole(data):
    """Whether these bytes are frames, of which none would be waited for any longer."""
    while data and 4 <= int.from_bytes(data[:4], "big") <= len(data):
        data = data[int.from_bytes(data[:4], "big"):]
    return not data


def in_place_of_the_right_one(data):
    """A fault: `data` instead of the answers to the call that it names; torn as it says itself."""
    named = [code for code in CALLS if code.encode() + b"_ACK" in data]
    code = named[0] if named else replay.LIST_APPS

    def fault(pieces):
        for piece in pieces:
            if replay.code_of(piece) != code:
                yield piece
                continue
            at = replay.sequence_at(piece)
            sent = data.replace(MARK, piece[at:at + 4])
            cut = zlib.crc32(data) % (len(sent) + 1)
            yield from (sent[:cut], sent[cut:])
            if not (named and MARK in data and is_whole(sent)):
                yield replay.CLOSE  # otherwise the right one would be waited for
    return fault


def check_answers(data):
    with replay.Meta(ANSWERS, in_place_of_the_right_one(data)) as meta:
        source = ph.LiveCluster(meta.address, timeout=2 * SECONDS)
        try:
            state = source()
        except ph.PageError as error:
            must(error.status in (502, 503, 504) and error.hint_message, "error", error)
            return False
        finally:
            source.rest()
    must(isinstance(state, ph.Cluster), "it is", state)
    for target in ("/meta/apps?detail", "/meta/nodes?detail", "/meta/cluster", "/version"):
        response = ph.respond(state, "GET", target, compress=False)
        must(response.status == 200, target, response)
        check_response(*response)
    return True


TARGETS = {
    "request stream": Target([b"".join(HEADS[:3]), *HEADS], HEAD_TOKENS, check_stream),
    "target and fields": Target(QUERIES, QUERY_TOKENS, check_query),
    "state file": Target(state_seeds(), STATE_TOKENS, check_state),
    "answers of a meta server": Target(list(frames()), FRAME_TOKENS, check_answers),
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
    logging.disable(logging.CRITICAL)  # what makes no sense is told there, as it should be
    sys.exit(main())
