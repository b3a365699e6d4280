"""What several test files share: raw sockets, real processes, and clusters of any size."""

import atexit
import collections
import contextlib
import email.utils
import functools
import gzip
import http.server
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pegasus_http as ph

SHARED = os.environ.get(
    "PEGASUS_HTTP_SHARED",
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "shared"),
)
CAPTURES = os.path.join(SHARED, "captures")
PATIENCE = 30.0  # seconds, far above what a loaded machine needs: who waits longer has failed


class Answer:
    """One answer read off the wire: status, lower-case headers, body bytes."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    def __repr__(self):
        return "Answer(%d, %r, %r)" % (self.status, self.headers, self.body[:200])


class Client:
    """A raw connection: `send` bytes, `answer` reads one framed answer, `rest` until the end."""

    def __init__(self, port, host="127.0.0.1"):
        self.sock = socket.create_connection((host, port), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def more(self):
        data = self.sock.recv(65536)
        self.buffer += data
        return data

    def answer(self, head_only=False):
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                raise EOFError("closed with %r" % self.buffer[:200])
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1", lines[0]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, "twice: " + line
            headers[name.lower()] = value
        length = 0 if head_only or status in ("204", "304") else int(headers["content-length"])
        while len(self.buffer) < length:
            if not self.more():
                raise EOFError("body cut after %d of %d" % (len(self.buffer), length))
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(status), headers, body)

    def rest(self):
        """All that still comes until the server closes."""
        with contextlib.suppress(ConnectionResetError):
            while self.more():
                pass
        return self.buffer

    def closed(self):
        """True when the server has closed and nothing is left to read."""
        return self.rest() == b""


def head(*lines):
    """The bytes of a head that has these lines, right or wrong."""
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def request(target, *fields, method="GET"):
    """The bytes of a good request."""
    return head("%s %s HTTP/1.1" % (method, target), "Host: test", *fields)


NEXT = request("/version")


def get(port, target, *fields, method="GET"):
    """The answer to one request on a connection of its own."""
    with Client(port) as client:
        client.send(request(target, "Connection: close", *fields, method=method))
        return client.answer(head_only=method == "HEAD")


def ask(client, target="/version"):
    """The answer to a good request, 200."""
    client.send(request(target))
    answer = client.answer()
    assert answer.status == 200, answer
    return answer


def wait_until(condition, what):
    """Poll `condition` until it holds; the only place of the tests that sleeps."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "never came true: " + what
        time.sleep(0.005)


def command(*arguments, python=()):
    """The command line of `python -m pegasus_http`, wherever the module was imported from."""
    return [sys.executable, *python, "-m", "pegasus_http", *arguments]


@functools.lru_cache(maxsize=None)
def bytecode_folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(**changes):
    env = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(ph.__file__)))
    if env.pop("PYTHONDONTWRITEBYTECODE", ""):  # hundreds of processes would compile all anew
        env["PYTHONPYCACHEPREFIX"] = bytecode_folder()
    env.pop("PYTHONUNBUFFERED", None)  # otherwise nobody would see that a flush is missing
    env.update(changes)
    return env


@contextlib.contextmanager
def started(arguments, **options):
    """A process that becomes a server; yields (process, port) once it says that it listens.

    `options`: those of Popen that are not as usual.
    """
    options = {"stdin": subprocess.DEVNULL, "env": environment(), **options}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), (line, process.stderr.read())
        yield process, int(line.split()[2].rsplit(":", 1)[1])
    finally:
        process.kill()
        process.communicate()


def running(*arguments):
    """The same for a command line of ours."""
    return started(command("--listen", "127.0.0.1:0", *arguments))


def at_once(check, cases):
    """Call `check` with each of the cases, with some at the same time: each is about a process.

    An error says in which case it came up.
    """
    import concurrent.futures  # which processes that import this file do without

    def checked(case):
        try:
            check(*case)
        except Exception as error:
            raise AssertionError("%r: %s" % (case, error)) from error

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(checked, cases))


def run(*arguments, stdin="", **changes):
    """A command that ends by itself: (exit code, stdout, stderr)."""
    done = subprocess.run(
        command(*arguments), input=stdin, capture_output=True,
        env=environment(**changes), text=True, timeout=PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


def cluster(tables=3, partitions=4, nodes=5, replicas=3, changed=0):
    """A healthy cluster; `changed` raises the ballots of table 1, all other tables stay equal."""
    addresses = ["10.0.%d.%d:34801" % divmod(n, 250) for n in range(1, nodes + 1)]

    def app(app_id):
        rows = []
        for index in range(partitions):
            place = [addresses[(app_id + index + k) % nodes] for k in range(replicas)]
            rows.append(ph.Partition(
                ballot=3 + (changed if app_id == 1 else 0), max_replica_count=replicas,
                primary=place[0], secondaries=tuple(place[1:]),
            ))
        return ph.App(app_id=app_id, app_name="table%d" % app_id, partitions=tuple(rows),
                      max_replica_count=replicas, create_second=1564466666)

    return ph.Cluster(
        apps=tuple(app(n) for n in range(1, tables + 1)),
        nodes=tuple(ph.Node(address) for address in addresses),
        meta_servers="10.0.0.1:34601,10.0.0.2:34601", primary_meta_server="10.0.0.1:34601",
        zookeeper_hosts="127.0.0.1:2181", zookeeper_root="/pegasus/test",
    )


# HTTP by hand, in both serving styles

STYLES = ("loop", "blocking")
PRIMARY = "10.0.0.9:34601"  # whom a standby of the tests knows
ERROR_NAMES = {
    307: {"ERR_FORWARD_TO_OTHERS"},
    400: {"ERR_INVALID_DATA", "ERR_INVALID_PARAMETERS"},
    404: {"ERR_HANDLER_NOT_FOUND", "ERR_OBJECT_NOT_FOUND"},
    405: {"ERR_HANDLER_NOT_FOUND"},
    408: {"ERR_TIMEOUT"},
    412: {"ERR_INVALID_PARAMETERS"},
    503: {"ERR_SERVICE_NOT_ACTIVE"},
}


class CutSocket(socket.socket):
    """The server's end of a connection: each receive gets one of the pieces, `sent` is kept."""

    def expect(self, pieces):
        self.sizes = [len(piece) for piece in pieces if piece]
        self.sent, self.shut, self.saw_end = b"", False, False

    def recv(self, most, flags=0):
        data = super().recv(min([most, *self.sizes[:1]]), flags)
        self.saw_end = self.saw_end or not (data or self.shut)
        if self.sizes and not flags & socket.MSG_PEEK:
            self.sizes[0] -= len(data)
            self.sizes = self.sizes if self.sizes[0] else self.sizes[1:]
        return data

    def recv_into(self, buffer, most=0, flags=0):
        data = self.recv(most or len(buffer), flags)
        buffer[:len(data)] = data
        return len(data)

    def send(self, data, flags=0):
        self.sent += data
        return len(data)

    def sendall(self, data, flags=0):
        self.send(data)

    def sendmsg(self, buffers, *rest):
        return self.send(b"".join(buffers))

    def shutdown(self, how):
        self.shut = True
        super().shutdown(how)

    def setsockopt(self, *option):
        """A pair of sockets knows no options of TCP."""


def talk(server, pieces, ends=True):
    """What `StatusHandler` sends to a client whose bytes arrive in exactly these pieces.

    Blocking style, on this thread: returns all bytes, and whether the server has closed. `ends`:
    the client shuts down its side behind the last piece; without, it keeps silent.
    """
    class Handler(ph.StatusHandler):
        status_server = server

    ours, theirs = socket.socketpair()
    with ours, CutSocket(theirs.family, theirs.type, fileno=theirs.detach()) as end:
        end.expect(pieces)
        ours.sendall(b"".join(pieces))
        if ends:
            ours.shutdown(socket.SHUT_WR)
        Handler(end, ("127.0.0.1", 1), server)
        return end.sent, not end.saw_end


def without_dates(data):
    return re.sub(rb"\r\nDate: [^\r]*", b"", data)


def statuses_in(data):
    """The status codes of all answers in these bytes."""
    return [int(status) for status in re.findall(rb"(?m)^HTTP/1\.1 ([0-9]{3}) ", data)]


def check(answer, head_only=False):
    """What holds for every answer, whatever was asked."""
    assert answer.headers["server"].startswith("pegasus_http/")
    moment = email.utils.parsedate_to_datetime(answer.headers["date"])
    assert email.utils.format_datetime(moment, usegmt=True) == answer.headers["date"]
    if answer.status in (204, 304):
        assert "content-type" not in answer.headers and "content-length" not in answer.headers
        return answer
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/json"
    if not head_only:
        page = json.loads(answer.body.decode("utf-8"))
        assert answer.body.endswith(b"\n") and isinstance(page, dict)
    if answer.status >= 300:
        assert answer.headers["cache-control"] == "no-store"
    if answer.status >= 300 and not head_only:
        assert list(page) == ["error", "hint_message"]
        assert page["error"] in ERROR_NAMES.get(answer.status, {"ERR_INVALID_DATA"})
        assert page["hint_message"]
    return answer


def ended(client):
    """What comes until a clean end: a reset, which could overtake an answer, is an error."""
    while client.more():
        pass
    return client.buffer


def settle(bystander, rounds=2):
    """Answers on another connection: the one loop has read by then what was sent before.

    In blocking style it is just a while. Returns what the slowest took, in seconds.
    """
    slowest = 0.0
    for _ in range(rounds):
        began = time.monotonic()
        ask(bystander, "/startTime")  # needs no source
        slowest = max(slowest, time.monotonic() - began)
    return slowest


# Clients, rude and slow

NEVER = 1000.0  # seconds: a limit that no test reaches
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, 0 seconds: close() sends RST


def reset(client):
    """Close the connection with a RST, as a client that crashes does."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.sock.close()


class Slow(Client):
    """A tiny window and small segments, so that the kernel takes little of an unread answer."""

    def __init__(self, port, first=b""):
        self.sock, self.buffer = socket.socket(), b""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", port))
        self.send(first)
        self.sock.setblocking(False)

    def wait(self):
        """Until an answer begins: by then the server has accepted, on whichever thread."""
        self.sock.settimeout(PATIENCE)
        self.sock.recv(1, socket.MSG_PEEK)
        self.sock.setblocking(False)


# Servers, threads and what a process holds

Figures = collections.namedtuple("Figures", "resident peak threads descriptors")


def figures(pid):
    """What a process holds: resident and peak memory in MiB, threads, descriptors."""
    with open("/proc/%d/status" % pid) as status:
        fields = dict(line.split(":", 1) for line in status)
    resident, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return Figures(resident, peak, int(fields["Threads"]), len(os.listdir("/proc/%d/fd" % pid)))


def check_growth(before, after, most):
    """Memory in MiB; other interpreters than CPython give it back when it suits them."""
    if sys.implementation.name == "cpython":
        assert after - before < most, (before, after)


def descriptors():
    """How many this process has open."""
    return len(os.listdir("/dev/fd"))


def room(wanted):
    """How many of `wanted` connections this process may open; raises its limit if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + 200
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(hard, need)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < need:
            print("scaled to %d clients: only %d descriptors are allowed" % (soft - 200, soft))
            return soft - 200
    return wanted


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def joined(thread):
    thread.join(PATIENCE)
    return not thread.is_alive()


def ours():
    """The threads that belong to the module."""
    return [t for t in threading.enumerate() if t.name.startswith("pegasus-http")]


class Gate:
    """Holds every thread that calls it until it is opened; `calls` counts them."""

    def __init__(self):
        self.calls = 0
        self._entered, self._open = threading.Event(), threading.Event()

    def __call__(self, *_):
        self.calls += 1
        self._entered.set()
        self._open.wait(10 * PATIENCE)  # longer than any test waits for something else

    def reached(self):
        assert self._entered.wait(PATIENCE), "nobody came to the gate"

    def open(self):
        self._open.set()


@contextlib.contextmanager
def mounted(server, kind=http.server.ThreadingHTTPServer):
    """The port of an `http.server` that serves the same in blocking style."""
    class Handler(ph.StatusHandler):
        status_server = server

    class Mount(kind):
        request_queue_size = 64
        daemon_threads = True  # a connection that a failing test leaves open holds nothing up

    with in_service(Mount(("127.0.0.1", 0), Handler)) as mount:
        yield mount.server_address[1]


@contextlib.contextmanager
def in_service(mount):
    """A server of `socketserver`, serving meanwhile."""
    with mount:
        thread = in_thread(mount.serve_forever, 0.01)
        try:
            yield mount
        finally:
            mount.shutdown()
            assert joined(thread)


@contextlib.contextmanager
def served(style, source, role="meta", **settings):
    """(server, port) of one that serves with its own loop, or one that an `http.server` serves."""
    server = ph.StatusServer(source, role=role, **settings)
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        if style == "loop":
            server.start()
            yield server, server.port
        else:
            yield server, stack.enter_context(mounted(server))


def host(script, *flags, expect=0, answer=None):
    """Run a host program to its end; what it printed. Its standard error must stay empty.

    `answer`: called with the process and the first printed line while the program runs.
    """
    env = environment()
    env["PYTHONPATH"] += os.pathsep + os.path.dirname(os.path.abspath(__file__))
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", script], env=env, universal_newlines=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        first = process.stdout.readline() if answer else ""
        if first:
            answer(process, first.strip())
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (expect, ""), (process.returncode, errors)
    return first + output


# States of which a page shows whether it mixes two of them

def tables_of(number):
    return 20 + number % 7


def generation(number):
    """A state in which every name carries `number`, so that a mixture of two shows."""
    def app(app_id):
        replicas = ["10.0.0.%d:34801" % (1 + (app_id + k) % 5) for k in range(3)]
        row = ph.Partition(ballot=number, max_replica_count=3, primary=replicas[0],
                           secondaries=tuple(replicas[1:]))
        return ph.App(app_id=app_id, app_name="t%d.g%d" % (app_id, number), partitions=(row,) * 8,
                      max_replica_count=3, create_second=1564466666)

    return ph.Cluster(
        apps=tuple(app(n) for n in range(1, 1 + tables_of(number))),
        nodes=tuple(ph.Node("10.0.0.%d:34801" % n) for n in range(1, 6)),
        meta_servers="g%d:34601" % number, primary_meta_server="g%d:34601" % number,
        zookeeper_hosts="127.0.0.1:2181", zookeeper_root="/pegasus/g%d" % number,
    )


def check_nodes(page):
    rows = page["details"].values()
    primaries = sum(int(row["primary_count"]) for row in rows)
    secondaries = sum(int(row["secondary_count"]) for row in rows)
    assert sum(int(row["replica_count"]) for row in rows) == primaries + secondaries
    assert secondaries == 2 * primaries, (primaries, secondaries)
    assert primaries in {8 * tables_of(number) for number in range(7)}, primaries


def check_apps(page, number):
    tables, summary = tables_of(number), page["summary"]
    assert len(page["general_info"]) == tables, summary
    assert summary["total_app_count"] == str(tables), summary
    if "healthy_info" in page:
        assert len(page["healthy_info"]) == tables
        assert summary["fully_healthy_app_count"] == str(tables), summary


def check_page(target, page):
    """The generation that a page shows, None if it shows none; AssertionError for a mixture."""
    path = target.partition("?")[0]
    if path == "/version":
        assert list(page) == ["Version"], page
        return None
    if path == "/meta/nodes":
        check_nodes(page)
        return None
    seen = {int(number) for number in re.findall(r"\bg(\d+)\b", json.dumps(page))}
    assert len(seen) == 1, "a mixture of %r" % seen
    number = seen.pop()
    if path == "/meta/apps":
        check_apps(page, number)
    return number


# Pages and state files

def page_of(monkeypatch, path, model, act):
    """Serve a page at `path` that calls `act(query)` first and is like the page `model` then."""
    route = ph.ROUTES[model]

    def page(state, query, settings):
        act(query)
        return route.page(state, query, settings)

    monkeypatch.setitem(ph.ROUTES, path, route._replace(page=page))


def save_state(path, tables, partitions=1, ballot=3):
    """A state file; at `path` all at once, as a good writer does it."""
    row = {"ballot": ballot, "max_replica_count": 3, "primary": "10.0.0.1:34801",
           "secondaries": []}
    apps = [{
        "app_id": n, "app_name": "table%d" % n, "status": "AVAILABLE", "app_type": "pegasus",
        "partition_count": partitions, "is_stateful": True, "max_replica_count": 3, "envs": {},
        "create_second": 1564466666, "drop_second": 0, "expire_second": 0,
        "partitions": [row] * partitions,
    } for n in range(1, tables + 1)]
    info = {
        "meta_servers": "10.0.0.1:34601", "primary_meta_server": "10.0.0.1:34601",
        "zookeeper_hosts": "127.0.0.1:2181", "zookeeper_root": "/pegasus/test",
        "meta_function_level": "lively",
        "balance_operation_count": "move_pri=0,copy_pri=0,copy_sec=0,total=0",
        "primary_replica_count_stddev": "0.00", "total_replica_count_stddev": "0.00",
    }
    nodes = [{"address": "10.0.0.1:34801", "status": "ALIVE"}]
    with open(path + ".new", "w") as file:
        json.dump({"apps": apps, "nodes": nodes, "cluster_info": info}, file)
    os.replace(path + ".new", path)


RECORDINGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recordings")


def recording_files():
    """The files of the project's own recordings."""
    return sorted(pathlib.Path(RECORDINGS).glob("*.json.gz"))


def recordings():
    """Every recorded state of a real cluster by name: the project's, and what is beside it."""
    found = {}
    for folder, ending, opened in ((RECORDINGS, ".json.gz", gzip.open), (CAPTURES, ".json", open)):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
        for name in names:
            if name.endswith(ending) and name[:-len(ending)] not in found:
                with opened(os.path.join(folder, name), "rt", encoding="utf-8") as file:
                    found[name[:-len(ending)]] = json.load(file)
    return found


@contextlib.contextmanager
def time_zone(name):
    """Local time as it is there, named in POSIX's form, which needs no files: EST5, XXX-5:45."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def finished(arguments, closed=(), limits=(), **options):
    """A process that ends by itself: its CompletedProcess, with bytes. `closed`: descriptors that
    it does not have; `limits`: pairs of a resource and its limit."""
    def prepare():
        for descriptor in closed:
            os.close(descriptor)
        for name, limit in limits:
            resource.setrlimit(name, (limit, limit))

    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
    env = environment(**options.pop("changes", {}))
    return subprocess.run(
        arguments, stderr=subprocess.PIPE, env=env, preexec_fn=prepare, timeout=PATIENCE, **options,
    )
