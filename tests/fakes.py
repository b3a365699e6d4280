"""What the tests of the live cluster share: fake meta servers in trouble, and what pages must be.

`replay` encodes answers and serves them; here are the clusters, servers and faults made of that.
"""

import contextlib
import os
import socket
import struct
import threading

import pegasus_http as ph
import replay
import support
from replay import CLUSTER_INFO, LIST_APPS, LIST_NODES

LONG = os.environ.get("PEGASUS_HTTP_LONG") == "1"
FRAMES = os.path.join(support.RECORDINGS, "frames")
LISTS = (LIST_APPS, LIST_NODES, CLUSTER_INFO)
PAGES = ("/meta/cluster", "/meta/apps", "/meta/apps?detail=true", "/meta/nodes",
         "/meta/nodes?detail=true", "/meta/app?name=table1", "/meta/app?name=table2&detail=true")
QUICK = 0.4  # seconds: the timeout of the tests that run into it


# ---- the reader, and what it has to show --------------------------------------------------------

def live(*metas, timeout=support.PATIENCE, max_age=0.0):
    """A LiveCluster of Meta objects or addresses."""
    addresses = [one if isinstance(one, str) else one.address for one in metas]
    return ph.LiveCluster(",".join(addresses), timeout=timeout, max_age=max_age)


@contextlib.contextmanager
def reading(*metas, **options):
    """A LiveCluster to call, its connection closed afterwards."""
    source = live(*metas, **options)
    try:
        yield source
    finally:
        source.rest()


@contextlib.contextmanager
def serving(*metas, timeout=support.PATIENCE, max_age=0.0):
    """A server of a LiveCluster; `timeout` is the cluster's: only its errors are seen."""
    source = live(*metas, timeout=timeout, max_age=max_age)
    with ph.StatusServer(source, role="meta", flat=True, timeout=support.PATIENCE) as server:
        yield server


def expected(state, target):
    """The same page of the same state, without a wire in between."""
    return ph.respond(cluster_of(state), "GET", target, flat=True).body


def cluster_of(state):
    """The Cluster of a state of the recorded shape."""
    def app(values):
        rows = values["partitions"]
        if rows is not None:
            rows = tuple(ph.Partition(**dict(row, secondaries=tuple(row["secondaries"])))
                         for row in rows)
        return ph.App(**dict(values, partitions=rows))

    return ph.Cluster(apps=tuple(app(values) for values in state["apps"]),
                      nodes=tuple(ph.Node(**node) for node in state["nodes"]),
                      **state["cluster_info"])


def check_pages(server, state, pages=PAGES):
    for target in pages:
        answer = support.get(server.port, target)
        assert (answer.status, answer.body) == (200, expected(state, target)), target


def check_error(answer, status, error=None, *words):
    """An error answer in the usual shape; the sentence holds the words."""
    assert answer.status == status, answer
    assert set(answer.json) == {"error", "hint_message"}
    assert error is None or answer.json["error"] == error
    for word in words:
        assert word in answer.json["hint_message"], answer
    return answer


def one_page(*metas, target="/meta/nodes", timeout=support.PATIENCE):
    """The first answer of a server that nobody has asked yet."""
    with serving(*metas, timeout=timeout) as server:
        return support.get(server.port, target)


STATE = replay.make_state()


# ---- answers and faults -------------------------------------------------------------------------

def patched(answers, code, old, new):
    """The answers, but those to `code` have `new` where they had `old`; one of them at least."""
    def changed(asked, argument):
        data = answers(asked, argument)
        if asked != code or old not in data:
            return data
        data = data.replace(old, new)
        return struct.pack(">i", len(data)) + data[4:]
    assert old in answers(code, 0 if code in LISTS else b"table1"), "nothing to change"
    return changed


def until(condition):
    """Nothing is answered before the condition holds."""
    def fault(pieces):
        support.wait_until(condition, "what the answer waits for")
        yield from pieces
    return fault


@contextlib.contextmanager
def mute(host="127.0.0.1", port=0):
    """The address of a server that takes connections and says nothing."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(16)
        yield "%s:%d" % sock.getsockname()


class Resolver:
    """Stands in for socket.getaddrinfo. `hosts`: a name's addresses, or the event before which it
    has none; `asked`: the names that were looked up, in order."""

    def __init__(self, hosts):
        self.hosts, self.asked, self._real = hosts, [], socket.getaddrinfo

    def __call__(self, host, port, family=0, type=0, proto=0, flags=0):
        if host not in self.hosts:
            return self._real(host, port, family, type, proto, flags)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror("a name")
        self.asked.append(host)
        found = self.hosts[host]
        if isinstance(found, threading.Event):
            found.wait(support.PATIENCE)
            raise socket.gaierror("it has none")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]


class MetaAt(replay.Meta):
    """A Meta at an address of one's choice; once closed, it can be opened there again."""

    def __init__(self, answers, fault=None, host="127.0.0.1", port=0):
        super().__init__(answers, fault)
        self.close()
        self.port = port or self.port
        self.address = "%s:%d" % (host, self.port)
        self.reopen()

    def reopen(self):
        self._stopping, self._threads = False, []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.address.rpartition(":")[0], self.port))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
