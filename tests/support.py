"""What several test files share: raw sockets, real processes, and clusters of any size."""

import contextlib
import json
import os
import socket
import subprocess
import sys
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


def get(port, target, *headers, method="GET"):
    """One request on a connection of its own."""
    lines = ["%s %s HTTP/1.1" % (method, target), "Host: test", "Connection: close", *headers]
    with Client(port) as client:
        client.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        return client.answer(head_only=method == "HEAD")


def wait_until(condition, what):
    """Poll `condition` until it holds; the only place of the tests that sleeps."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "never came true: " + what
        time.sleep(0.005)


def command(*arguments, python=()):
    """The command line of `python -m pegasus_http`, wherever the module was imported from."""
    return [sys.executable, *python, "-m", "pegasus_http", *arguments]


def environment(**changes):
    env = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(ph.__file__)))
    env.update(changes)
    return env


@contextlib.contextmanager
def running(*arguments, **changes):
    """A real server process; yields (process, port) once it has printed its first line."""
    process = subprocess.Popen(
        command("--listen", "127.0.0.1:0", *arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(**changes), text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), (line, process.stderr.read())
        yield process, int(line.split()[2].rsplit(":", 1)[1])
    finally:
        process.kill()
        process.communicate()


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
