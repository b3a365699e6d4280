"""Processes, wrk, paced clients, and what /proc says about a process."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 60.0  # seconds for a server to start; building the largest model takes some
TICKS = os.sysconf("SC_CLK_TCK")
WRK = "wrk is missing: `apt-get install wrk` on Debian and Ubuntu, `brew install wrk` elsewhere"


class Failed(RuntimeError):
    """A server that did not do its part."""

    def __init__(self, server, what):
        super().__init__("%s: %s" % (server, what))
        self.server = server


class Round(NamedTuple):
    """What one run of wrk, or one paced run, showed."""

    rate: float = 0.0  # requests per second
    p50: float = 0.0  # milliseconds
    p99: float = 0.0
    cpu: float = 0.0  # microseconds of the server's processes per request
    rss: int = 0  # bytes of the server's processes
    others: float = 0.0  # processors that were busy with anything but the server and wrk


class Load(NamedTuple):
    """How wrk asks."""

    target: str = "/version"
    connections: int = 16
    close: bool = False


def tree(pid):
    """The process and all its children."""
    pids = [pid]
    for path in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir("/proc/%d/task" % path):
                with open("/proc/%d/task/%s/children" % (path, task)) as file:
                    pids.extend(int(child) for child in file.read().split())
    return pids


def cpu_seconds(pid):
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError), open("/proc/%d/stat" % each) as file:
            fields = file.read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def busy_seconds():
    """Processor time of the whole machine, but for interrupts, which belong to no process."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, _, _, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + steal) / TICKS


def clocks(pid):
    """(of the machine, of the server, of the clients that have ended), in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy_seconds(), cpu_seconds(pid), children.ru_utime + children.ru_stime


def status(pid, key):
    """The sum of a number in /proc/PID/status over the process and its children."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError), open("/proc/%d/status" % each) as file:
            found = re.search(r"^%s:\s+(\d+)" % key, file.read(), re.MULTILINE)
            total += int(found.group(1)) if found else 0
    return total


@contextlib.contextmanager
def apart(*servers):
    """Servers of one thread on one processor, wrk on the others: else their ratio is that of where
    the scheduler happened to put them, with one connection twice as fast or half."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) > 1:
        for server in servers:
            for task in os.listdir("/proc/%d/task" % server.pid):
                os.sched_setaffinity(int(task), every[:1])
        os.sched_setaffinity(0, every[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def rss(pid):
    return status(pid, "VmRSS") * 1024


class Server:
    """A server in a process of its own; ended by leaving the `with` block, whatever the reason.

    `command` is that of a server that is not one of servers.py and prints where it listens.
    """

    def __init__(self, name, command=None, **options):
        self.name = name
        ours = [os.path.join(HERE, "servers.py"), name, json.dumps(options)]
        # A session of its own: Ctrl-C reaches the benchmark alone, which then ends its servers.
        self.process = subprocess.Popen(
            [sys.executable, *(command or ours)], cwd=os.path.dirname(os.path.dirname(HERE)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, bufsize=1, start_new_session=True,
        )
        self.pid = self.process.pid
        self.port = 0

    def __enter__(self):
        try:
            for line in self.process.stdout:
                told = re.search(r"\bport (\d+)|^listening on http://[\d.]+:(\d+)", line)
                if told:
                    self.port = int(told.group(1) or told.group(2))
                    break
            else:
                raise Failed(self.name, "did not start")
            self.wait()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exc):
        self.end()

    def wait(self):
        """Until it takes connections: some announce their port before they listen."""
        end = time.monotonic() + PATIENCE
        while self.port:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed(self.name, "did not start")
            time.sleep(0.02)

    def end(self):
        pids = tree(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        for pid in pids if self.process.returncode is None else pids[1:]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def compute(self, seconds):
        """Let a `busy` host compute; how far it came."""
        self.process.stdin.write("%f\n" % seconds)
        return int(self.process.stdout.readline().split()[1])


def wrk(server, load, seconds):
    """One run: a Round. Anything but answers with status 2xx is an error of the benchmark."""
    if shutil.which("wrk") is None:
        raise RuntimeError(WRK)
    command = ["wrk", "-t1", "-c%d" % load.connections, "-d%ds" % seconds, "--timeout", "10s",
               "-s", os.path.join(HERE, "report.lua")]
    if load.close:
        command += ["-H", "Connection: close"]
    command.append("http://127.0.0.1:%d%s" % (server.port, load.target))
    before = clocks(server.pid)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PATIENCE)
    machine, used, client = (end - start for start, end in zip(before, clocks(server.pid)))
    found = re.search(r"FIGURES" + r" (\d+)" * 6, done.stdout)
    if found is None:
        raise Failed(server.name, "wrk said " + (done.stdout + done.stderr).strip())
    requests, micros, p50, p99, ends, errors = map(int, found.groups())
    errors += 0 if load.close else ends  # some servers close as asked without announcing it
    if not requests or errors:
        raise Failed(server.name, "%d answers, %d errors" % (requests, errors))
    others = max(0.0, machine - used - client) / (micros / 1e6)
    return Round(requests / (micros / 1e6), p50 / 1e3, p99 / 1e3, used / requests * 1e6,
                 rss(server.pid), others)


def answer(server, target, close=False):
    """One whole answer as it goes over the wire: bytes."""
    lines = ["GET %s HTTP/1.1" % target, "Host: 127.0.0.1:%d" % server.port]
    lines += ["Connection: close"] if close else []
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return receive(connection)


def receive(connection):
    """Read one answer; without a Content-Length, until the server closes."""
    data, total = bytearray(), None
    while total is None or len(data) < total:
        piece = connection.recv(1 << 20)
        if not piece:
            break
        data += piece
        end = data.find(b"\r\n\r\n")
        if total is None and end >= 0:
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", data[:end])
            total = end + 4 + int(length.group(1)) if length else float("inf")
    return bytes(data)


def body(data):
    return data.partition(b"\r\n\r\n")[2]


@contextlib.contextmanager
def files(**contents):
    """Temporary files: their paths under the same names."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, data in contents.items():
            paths[name] = os.path.join(folder, name)
            with open(paths[name], "wb") as file:
                file.write(data)
        yield paths


class Paced:
    """Requests at a fixed rate over several connections; latencies from the moment due."""

    def __init__(self, server, targets, rate, connections=8):
        self.server, self.targets, self.rate, self.count = server, targets, rate, connections
        self.latencies, self.failed, self.ending = [], [], threading.Event()
        self.start = time.monotonic() + 0.05
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True)
                        for n in range(connections)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.ending.set()
        for thread in self.threads:
            thread.join(30)
        if self.failed and exc[0] is None:
            raise Failed(self.server.name, "paced client: %r" % self.failed[0])

    def run(self, number):
        try:
            with socket.create_connection(("127.0.0.1", self.server.port), 30) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.ask(connection, number)
        except (OSError, ValueError) as error:
            self.failed.append(error)

    def ask(self, connection, number):
        form = "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n"
        while not self.ending.is_set():
            due = self.start + number / self.rate
            late = time.monotonic() - due
            # A late answer counts against the requests queued behind it; a late timer does not.
            if late < 0:
                self.ending.wait(-late)
                due = time.monotonic()
            connection.sendall((form % self.targets[number % len(self.targets)]).encode())
            if not receive(connection).startswith(b"HTTP/1.1 200"):
                raise ValueError("not a 200")
            self.latencies.append(time.monotonic() - due)
            number += self.count

    def quantile(self, share):
        """Milliseconds."""
        values = sorted(self.latencies)
        return values[min(len(values) - 1, int(share * len(values)))] * 1e3


class Idle:
    """Connections that asked once and then say nothing."""

    def __init__(self, server, count):
        self.connections = []
        try:
            for _ in range(count):
                connection = socket.create_connection(("127.0.0.1", server.port), 30)
                self.connections.append(connection)
                connection.sendall(b"GET /version HTTP/1.1\r\nHost: bench\r\n\r\n")
                receive(connection)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        for connection in self.connections:
            connection.close()
