"""A soak run: good, bad and slow clients against one server process whose state keeps changing.

    python tests/soak.py --seconds 300

prints a Markdown table and exits 1 when a request was lost, an answer was wrong or anything grew.
Linux only: memory, threads and descriptors are read in /proc.
"""

import argparse
import collections
import contextlib
import gzip
import itertools
import json
import os
import platform
import random
import select
import subprocess
import sys
import threading
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pegasus_http as ph
from support import (
    PATIENCE,
    Client,
    Slow,
    check_page,
    environment,
    figures,
    generation,
    request,
    reset,
    wait_until,
)

ANSWER_LIMIT = 10.0  # seconds: a good request that takes longer counts as lost
GROWTH_LIMIT = 8.0  # MiB: what an allocator may keep between two measurements
SLOW_CLIENTS = 20  # of each kind
TARGETS = [
    "/version", "/meta/apps", "/meta/apps?detail", "/meta/nodes?detail", "/meta/cluster",
    "/meta/apps?pretty",
]
BAD = [
    b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\nHost: x\n\n", b"\0" * 100,
    b"GET /" + b"a" * 9000, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"b" * 40000,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: tea\r\n\r\n",
]


# The server: a host that publishes a new state every 20 ms until its standard input ends

def serve():
    ph._HEAD_SECONDS = ph._WRITE_SECONDS = 1.0
    ph._IDLE_SECONDS = 15.0
    with ph.StatusServer(generation(0), role="meta") as server:
        print(server.port, flush=True)
        for number in itertools.count(1):
            server.publish(generation(number))
            if select.select([sys.stdin], [], [], 0.02)[0]:
                break
    print(number, flush=True)


# The good clients: each function is one connection's life

class Tally:
    """What happened, from all threads."""

    def __init__(self):
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.counts, self.seconds, self.notes = collections.Counter(), [], []

    def add(self, what, note=None):
        with self.lock:
            self.counts[what] += 1
            if note and len(self.notes) < 20:
                self.notes.append("%s: %s" % (what, note))

    def good(self, began):
        self.add("good")
        self.seconds.append(time.monotonic() - began)


def answered(client, tally, target, began, newest=-1):
    """One right answer; returns its generation, which is never older than `newest`."""
    answer = client.answer()
    assert answer.status == 200, answer
    number = check_page(target, answer.json)
    tally.good(began)
    if number is None:
        return newest
    assert number >= newest, "state %d after %d" % (number, newest)
    return number


def poll(client, rng, tally):
    newest = -1
    for _ in range(50):
        target, began = rng.choice(TARGETS), time.monotonic()
        client.send(request(target))
        newest = answered(client, tally, target, began, newest)


def once(client, rng, tally):
    target, began = rng.choice(TARGETS), time.monotonic()
    client.send(request(target, "Connection: close"))
    answered(client, tally, target, began)
    assert client.closed(), "bytes after the answer"


def pipeline(client, rng, tally):
    targets, newest, began = [rng.choice(TARGETS) for _ in range(20)], -1, time.monotonic()
    client.send(b"".join(request(target) for target in targets))
    for target in targets:
        newest = answered(client, tally, target, began, newest)


def split(client, rng, tally):
    target, began = rng.choice(TARGETS), time.monotonic()
    data = request(target)
    at = rng.randrange(1, len(data))
    client.send(data[:at])
    client.send(data[at:])
    answered(client, tally, target, began)


def revalidate(client, rng, tally):
    began = time.monotonic()
    client.send(request("/meta/apps", "Accept-Encoding: gzip"))
    first = client.answer()
    number = check_page("/meta/apps", json.loads(gzip.decompress(first.body).decode()))
    client.send(request("/meta/apps", "Accept-Encoding: gzip",
                        "If-None-Match: " + first.headers["etag"]))
    second = client.answer()
    if second.status == 200:
        page = json.loads(gzip.decompress(second.body).decode())
        assert check_page("/meta/apps", page) > number, "the same state under another tag"
    else:
        assert second.status == 304, second
    client.send(request("/meta/apps", method="HEAD"))
    assert client.answer(head_only=True).status == 200
    tally.good(began)


# The bad and the slow ones

def refused(client, rng, tally):
    client.send(rng.choice(BAD))
    answer = client.answer()
    assert 400 <= answer.status < 600 and set(answer.json) == {"error", "hint_message"}, answer
    assert client.closed(), "bytes after the answer"
    tally.add("refused")


def break_off(client, rng, tally):
    data = request(rng.choice(TARGETS)) * rng.randrange(1, 30)
    client.send(data[:rng.randrange(len(data))])
    reset(client)
    tally.add("reset")


def drip(client, tally):
    """One more byte of a head that never ends; False once the server has ended it with 408."""
    with contextlib.suppress(BlockingIOError, InterruptedError):
        try:
            if client.sock.recv(4096)[:13] not in (b"HTTP/1.1 408 ", b""):
                tally.add("wrong", "a head that never ends was answered")
            return False
        except ConnectionResetError:
            return False
    with contextlib.suppress(BlockingIOError, ConnectionError):
        client.send(b"a")
    return True


def keep_slow(port, rng, tally):
    """A crowd that drips, is silent or never reads; those that the server ends are replaced."""
    def dripping():
        return Slow(port, b"GET /version HTTP/1.1\r\nX-A: ")

    with contextlib.ExitStack() as held:
        drips = [dripping() for _ in range(SLOW_CLIENTS)]
        for _ in range(SLOW_CLIENTS):
            held.enter_context(Slow(port))
            held.enter_context(Slow(port, request("/meta/apps?detail") * 100))
        while not tally.stop.wait(0.05):
            for at, client in enumerate(drips):
                if not drip(client, tally):
                    client.sock.close()
                    drips[at] = dripping()
                    tally.add("ended")
        for client in drips:
            client.sock.close()


def live(port, lives, seed, tally):
    rng = random.Random(seed)
    while not tally.stop.is_set():
        try:
            with Client(port) as client:
                client.sock.settimeout(ANSWER_LIMIT)
                rng.choice(lives)(client, rng, tally)
        except AssertionError as problem:
            tally.add("wrong", problem)
        except (OSError, EOFError, ValueError, KeyError) as problem:
            tally.add("lost", repr(problem))


def phase(port, seconds, seed):
    """All the clients for `seconds`; what happened."""
    tally = Tally()
    good = [poll, once, pipeline, split, revalidate]
    threads = [threading.Thread(target=live, args=(port, lives, "%s %d" % (seed, n), tally))
               for n, lives in enumerate([good, good, good, good, [refused, break_off]])]
    threads.append(threading.Thread(target=keep_slow, args=(port, random.Random(seed), tally)))
    for thread in threads:
        thread.start()
    tally.stop.wait(seconds)
    tally.stop.set()
    for thread in threads:
        thread.join()
    return tally


# The run and its table

@contextlib.contextmanager
def server_process():
    process = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--serve"], env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def soak(seconds, seed):
    """Warm up, measure, run, measure: (tally, figures before, figures after, states, exit code)."""
    with server_process() as (process, port):
        idle = figures(process.pid).descriptors

        def settled():
            wait_until(lambda: figures(process.pid).descriptors <= idle,
                       "the server gives all descriptors back")
            return figures(process.pid)

        phase(port, min(30.0, max(1.0, seconds * 0.2)), "warm %d" % seed)
        before = settled()
        tally = phase(port, seconds, seed)
        after = settled()
        states, _ = process.communicate("stop\n", timeout=PATIENCE)
        return tally, before, after, int(states), process.returncode


def rows(seconds, tally, before, after, states):
    spent = sorted(tally.seconds) or [0.0]
    p50, p99 = (spent[int(len(spent) * share)] * 1000 for share in (0.5, 0.99))
    yield "seconds", "%g" % seconds
    yield "states published", "%d" % states
    yield "good requests", "%d" % tally.counts["good"]
    yield "requests lost", "%d" % tally.counts["lost"]
    yield "wrong answers", "%d" % tally.counts["wrong"]
    yield "bad requests refused", "%d" % tally.counts["refused"]
    yield "connections reset by the client", "%d" % tally.counts["reset"]
    yield "endless heads ended by the server", "%d" % tally.counts["ended"]
    yield "latency p50, p99, maximum", "%.1f, %.1f, %.1f ms" % (p50, p99, spent[-1] * 1000)
    yield "memory before, after, peak", "%.1f, %.1f, %.1f MiB" % (
        before.resident, after.resident, after.peak)
    yield "threads before, after", "%d, %d" % (before.threads, after.threads)
    yield "descriptors before, after", "%d, %d" % (before.descriptors, after.descriptors)
    yield "measured with", "Python %s, %s %s, %s CPUs" % (
        platform.python_version(), platform.system(), platform.machine(), os.cpu_count())


def verdict(tally, before, after, code):
    """What is wrong with the run, one sentence each."""
    for what in ("lost", "wrong"):
        if tally.counts[what]:
            yield "%d requests %s" % (tally.counts[what], what)
    for what in ("good", "refused", "reset", "ended"):
        if not tally.counts[what]:
            yield "the run has no %s requests" % what
    cpython = sys.implementation.name == "cpython"  # others give memory back when it suits them
    if cpython and after.resident - before.resident > GROWTH_LIMIT:
        yield "memory grew by %.1f MiB" % (after.resident - before.resident)
    if after.threads != before.threads or after.descriptors != before.descriptors:
        yield "threads or descriptors changed: %r, %r" % (before, after)
    if code:
        yield "the server ended with exit code %d" % code


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve()
        return 0
    tally, before, after, states, code = soak(options.seconds, options.seed)
    print("| soak, seed %d | |\n|---|---|" % options.seed)
    for row in rows(options.seconds, tally, before, after, states):
        print("| %s | %s |" % row)
    problems = [*verdict(tally, before, after, code), *tally.notes]
    for problem in problems:
        print("PROBLEM:", problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
