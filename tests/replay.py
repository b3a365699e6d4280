"""A fake meta server that speaks recorded or made-up answers, and can be made to misbehave.

Three parts, each usable alone: an encoder of requests and answers (written apart from the module
under test, so that an error in one does not hide in the other), *answers* (callables
`(code, argument) -> frame`) and *faults* (callables that turn the frames of one batch into what is
sent). `Meta(answers, fault)` serves them on a loopback port. `argument` is the status of a list,
the raw name of a table, None, or the command of a remote call.
"""

import collections
import contextlib
import socket
import struct
import threading

import support

LIST_APPS = "RPC_CM_LIST_APPS"
LIST_NODES = "RPC_CM_LIST_NODES"
QUERY = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX"
CLUSTER_INFO = "RPC_CM_CLUSTER_INFO"
CLI = "RPC_CLI_CLI_CALL"

BOOL, BYTE, DOUBLE, I16, I32, I64 = 2, 3, 4, 6, 8, 10
STRING, STRUCT, MAP, SET, LIST = 11, 12, 13, 14, 15

STATUSES = ("INVALID", "AVAILABLE", "CREATING", "CREATE_FAILED", "DROPPING", "DROP_FAILED",
            "DROPPED", "RECALLING")
OLD_INFO = "Pegasus Server 1.12.3 (%s) Release, Started at 2020-06-01 12:00:00" % ("ab12" * 10)
NEW_INFO = '{"build_type":"Release","git_SHA":"%s","start_time":"%s","version":"2.6.0"}' % (
    "cd34" * 10, "2026-01-01 00:00:00")

Request = collections.namedtuple("Request", "code argument sequence timeout raw connection")


# ---- encoder ------------------------------------------------------------------------------------

def octets(value):
    """A length and the bytes: string, error_code, blob."""
    data = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack(">i", len(data)) + data


def field(kind, number, value):
    return struct.pack(">bh", kind, number) + value


def i32(number, value):
    return field(I32, number, struct.pack(">i", value))


def i64(number, value):
    return field(I64, number, struct.pack(">q", value))


def boolean(number, value):
    return field(BOOL, number, struct.pack(">?", value))


def string(number, value):
    return field(STRING, number, octets(value))


def sequence_of(number, kind, items, tag=LIST):
    return field(tag, number, struct.pack(">bi", kind, len(items)) + b"".join(items))


def mapping(number, pairs):
    data = b"".join(octets(key) + octets(value) for key, value in pairs)
    return field(MAP, number, struct.pack(">bbi", STRING, STRING, len(pairs)) + data)


def split_address(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def rpc_address(address):
    """Eight raw bytes; a host name has the address 127.0.0.1 here, as in the recorded cluster."""
    if address is None:
        return bytes(8)
    host, port = split_address(address)
    with contextlib.suppress(OSError):
        return socket.inet_aton(host) + struct.pack(">HH", port, 1)
    return socket.inet_aton("127.0.0.1") + struct.pack(">HH", port, 1)


def host_port(address):
    if address is None:
        return bytes(7)
    host, port = split_address(address)
    return octets(host) + struct.pack(">HB", port, 1)


def request(code, argument, sequence, timeout):
    """The whole frame a client sends, header version 0."""
    if code in (LIST_APPS, LIST_NODES):
        arguments = i32(1, argument)
    elif code == QUERY:
        arguments = string(1, argument) + sequence_of(2, I32, [])
    elif code == CLI:
        arguments = string(1, argument) + sequence_of(2, STRING, [])
    else:
        arguments = b""
    body = (struct.pack(">I", 0x80010001) + octets(code) + struct.pack(">i", sequence)
            + field(STRUCT, 1, arguments + b"\0\0"))
    return b"THFT" + struct.pack(">9iq", 0, 48, 0, len(body), 0, 0, 0, timeout, 0, 0) + body


def frame(code, result, error="ERR_OK"):
    """The whole frame a server sends, with sequence id 0."""
    body = octets(error) + struct.pack(">I", 0x80010002) + octets(code + "_ACK") + bytes(4) + result
    return struct.pack(">i", len(body) + 4) + body


def structure(fields):
    """A result whose field 0 is a struct."""
    return field(STRUCT, 0, fields + b"\0") + b"\0"


def sequence_at(data):
    """Offset of the sequence id of an answer."""
    error = struct.unpack_from(">i", data, 4)[0]
    return 16 + error + struct.unpack_from(">i", data, 12 + error)[0]


def with_sequence(data, sequence):
    """The answer with another sequence id."""
    at = sequence_at(data)
    return data[:at] + struct.pack(">i", sequence) + data[at + 4:]


def code_of(data):
    """Name of the call that an answer belongs to."""
    end = sequence_at(data)
    return data[16 + struct.unpack_from(">i", data, 4)[0]:end - len("_ACK")].decode("ascii")


def app_info(app, new, extra):
    optional = b"".join((
        boolean(12, app.get("duplicating", False)), i32(13, app.get("init_partition_count", -1)),
        boolean(14, app.get("is_bulk_loading", False)),
        boolean(15, app.get("atomic_idempotent", False)),
    ))
    return b"".join((
        i32(1, STATUSES.index(app.get("status", "AVAILABLE"))),
        string(2, app.get("app_type", "pegasus")), string(3, app["app_name"]),
        i32(4, app["app_id"]), i32(5, app["partition_count"]),
        mapping(6, sorted(app.get("envs", {}).items())),
        boolean(7, app.get("is_stateful", True)), i32(8, app.get("max_replica_count", 3)),
        i64(9, app.get("expire_second", 0)), i64(10, app.get("create_second", 0)),
        i64(11, app.get("drop_second", 0)), optional if new else b"", extra, b"\0",
    ))


def partition(app_id, index, row, new, extra=b""):
    """One partition_configuration; `row` has the keys of the recorded state, drops besides."""
    secondaries, drops = row.get("secondaries", ()), row.get("last_drops", ())
    named = field(STRUCT, 9, host_port(row["primary"])) \
        + sequence_of(10, STRUCT, [host_port(one) for one in secondaries]) \
        + sequence_of(11, STRUCT, [host_port(one) for one in drops])
    return b"".join((
        field(STRUCT, 1, struct.pack(">ii", index, app_id)),
        i64(2, row["ballot"]), i32(3, row["max_replica_count"]),
        field(STRUCT, 4, rpc_address(row["primary"])),
        sequence_of(5, STRUCT, [rpc_address(one) for one in secondaries]),
        sequence_of(6, STRUCT, [rpc_address(one) for one in drops]),
        i64(7, row.get("last_committed_decree", 0)), i32(8, row.get("partition_flags", 0)),
        named if new else b"", extra, b"\0",
    ))


def list_apps(apps, new=True, extra=b"", error="ERR_OK"):
    rows = [app_info(app, new, extra) for app in apps]
    return frame(LIST_APPS, structure(
        field(STRUCT, 1, octets(error)) + sequence_of(2, STRUCT, rows) + extra))


def query(app, new=True, extra=b"", error="ERR_OK"):
    """The answer about one table; None for a table that is not there."""
    app = app or {"app_id": 0, "partitions": (), "is_stateful": False}
    rows = [partition(app["app_id"], index, row, new, extra)
            for index, row in enumerate(app["partitions"] or ())]
    return frame(QUERY, structure(
        field(STRUCT, 1, octets(error)) + i32(2, app["app_id"]) + i32(3, len(rows))
        + boolean(4, app.get("is_stateful", True)) + sequence_of(5, STRUCT, rows) + extra))


def list_nodes(nodes, new=True, extra=b"", error="ERR_OK"):
    rows = []
    for node in nodes:
        named = field(STRUCT, 3, host_port(node["address"])) if new else b""
        rows.append(i32(1, 1 if node["status"] == "ALIVE" else 2)
                    + field(STRUCT, 2, rpc_address(node["address"])) + named + extra + b"\0")
    return frame(LIST_NODES, structure(
        field(STRUCT, 1, octets(error)) + sequence_of(2, STRUCT, rows) + extra))


def cluster_info(info, extra=b"", error="ERR_OK"):
    return frame(CLUSTER_INFO, structure(
        field(STRUCT, 1, octets(error)) + sequence_of(2, STRING, [octets(key) for key in info])
        + sequence_of(3, STRING, [octets(value) for value in info.values()]) + extra))


def cli(text):
    return frame(CLI, field(STRING, 0, octets(text)) + b"\0")


def forward_query(leader, new=True):
    """What a standby says to a query: the leader's address in a partition, or no partition."""
    rows = []
    if leader is not None:
        named = field(STRUCT, 9, host_port(leader)) if new else b""
        rows = [field(STRUCT, 1, bytes(8)) + i64(2, 0) + i32(3, 0)
                + field(STRUCT, 4, rpc_address(leader)) + sequence_of(5, STRUCT, [])
                + sequence_of(6, STRUCT, []) + i64(7, 0) + i32(8, 0) + named + b"\0"]
    return frame(QUERY, structure(
        field(STRUCT, 1, octets("ERR_FORWARD_TO_OTHERS")) + i32(2, 0) + i32(3, 0)
        + boolean(4, False) + sequence_of(5, STRUCT, rows)))


def unknown_scalars(number=90):
    """Fields that no version has, one of each kind that can be skipped."""
    return b"".join((
        boolean(number, True), field(BYTE, number + 1, b"\x07"),
        field(I16, number + 2, b"\x01\x02"), i32(number + 3, -5), i64(number + 4, 1 << 60),
        field(DOUBLE, number + 5, bytes(8)),
        string(number + 6, b"\xff\x00"), mapping(number + 7, [("a", "b"), ("c", "")]),
        field(MAP, number + 8, bytes(6)), sequence_of(number + 9, I32, [bytes(4)] * 3),
        sequence_of(number + 10, STRING, [octets("x")], tag=SET),
    ))


# ---- answers ------------------------------------------------------------------------------------

def recorded_calls(calls):
    """(code, argument, request, response) of a recording's list of calls."""
    for call in calls:
        values = list(call["arg"].values())
        argument = values[0] if values else None
        if call["rpc"] == QUERY:
            argument = argument.encode("utf-8")
        yield call["rpc"], argument, bytes.fromhex(call["request"]), bytes.fromhex(call["response"])


def recorded(calls):
    """Answers of a recording's `rpc` or `standby_rpc`; a table it does not know is not found."""
    known = {(code, argument): answer for code, argument, _, answer in recorded_calls(calls)}

    def answers(code, argument):
        if code == QUERY:
            return known.get((code, argument), query(None, error="ERR_OBJECT_NOT_FOUND"))
        return known[code, argument]
    return answers


def moved(answers, old, port):
    """`answers` that forward to another port of 127.0.0.1 instead of the address `old`."""
    def elsewhere(code, argument):
        host = split_address(old)[0]
        data = answers(code, argument).replace(
            rpc_address(old), rpc_address("127.0.0.1:%d" % port))
        return data.replace(host_port(old), host_port("%s:%d" % (host, port)))
    return elsewhere


def synthetic(state, new=True, extra=b"", server_info=NEW_INFO, only=None):
    """Answers of a leader with any state of the recorded shape (names may be bytes).

    `extra` goes into every struct, or with `only` into those of one call.
    """
    def more(code):
        return extra if only in (None, code) else b""

    tables = {}  # a name may be in the list more than once, but only one of them lives
    for app in state["apps"]:
        name = octets(app["app_name"])[4:]
        if name not in tables or app.get("status", "AVAILABLE") == "AVAILABLE":
            tables[name] = app
    errors = {"AVAILABLE": "ERR_OK", "CREATING": "ERR_BUSY_CREATING",
              "RECALLING": "ERR_BUSY_CREATING", "DROPPING": "ERR_BUSY_DROPPING"}

    def about(name):
        app = tables.get(name, {"status": "DROPPED"})
        error = errors.get(app.get("status", "AVAILABLE"), "ERR_OBJECT_NOT_FOUND")
        return query(app if error == "ERR_OK" else None, new, more(QUERY), error)

    def answers(code, argument):
        if code == LIST_APPS:
            wanted = [app for app in state["apps"]
                      if argument in (0, STATUSES.index(app.get("status", "AVAILABLE")))]
            return list_apps(wanted, new, more(code))
        if code == QUERY:
            return about(argument)
        if code == LIST_NODES:
            return list_nodes(state["nodes"], new, more(code))
        if code == CLUSTER_INFO:
            return cluster_info(state["cluster_info"], more(code))
        return cli(server_info)
    return answers


def failing(error, leader=None, new=True, server_info=NEW_INFO):
    """Every leader-bound call fails inside the payload; a forward query may name a leader."""
    def answers(code, argument):
        if code == CLI:
            return cli(server_info)
        if code == QUERY:
            forward = error == "ERR_FORWARD_TO_OTHERS"
            return forward_query(leader, new) if forward else query(None, new, error=error)
        if code == CLUSTER_INFO:
            return cluster_info({}, error=error)
        return (list_apps if code == LIST_APPS else list_nodes)([], error=error)
    return answers


def standby(leader=None, new=True):
    return failing("ERR_FORWARD_TO_OTHERS", leader, new)


def refusing(error, server_info=None):
    """Every call fails at the RPC level; a replica server still answers the remote command."""
    def answers(code, argument):
        if code == CLI and server_info is not None:
            return cli(server_info)
        return frame(code, b"", error)
    return answers


def replica_server():
    return refusing("ERR_HANDLER_NOT_FOUND", NEW_INFO)


def switching(first, calls, then):
    """`first` for so many calls, `then` from the next one on."""
    seen = []

    def answers(code, argument):
        seen.append(code)
        return (first if len(seen) <= calls else then)(code, argument)
    return answers


def overriding(base, changes):
    """`base`, but for a `(code, argument)` or `code` in `changes`: a frame; None is silence."""
    def answers(code, argument):
        for key in ((code, argument), code):
            if key in changes:
                return changes[key]
        return base(code, argument)
    return answers


def make_state(tables=3, partitions=4, nodes=5, replicas=3, name="table%d", host="10.0.%d.%d"):
    """A healthy cluster of any size in the recorded shape."""
    addresses = [host % divmod(n, 250) + ":34801" for n in range(1, nodes + 1)]
    apps = []
    for app_id in range(1, tables + 1):
        rows = []
        for index in range(partitions):
            place = [addresses[(app_id + index + k) % nodes] for k in range(replicas)]
            rows.append({"ballot": 3, "max_replica_count": replicas, "primary": place[0],
                         "secondaries": place[1:]})
        apps.append({"app_name": name % app_id, "app_id": app_id, "partition_count": partitions,
                     "max_replica_count": replicas, "create_second": 1564466666,
                     "partitions": rows})
    return {
        "apps": apps, "nodes": [{"address": one, "status": "ALIVE"} for one in addresses],
        "cluster_info": {
            "meta_servers": "10.0.0.1:34601,10.0.0.2:34601",
            "primary_meta_server": "10.0.0.1:34601",
            "zookeeper_hosts": "127.0.0.1:2181", "zookeeper_root": "/pegasus/made",
            "meta_function_level": "lively",
            "balance_operation_count": "move_pri=0,copy_pri=0,copy_sec=0,total=0",
            "primary_replica_count_stddev": "0.47", "total_replica_count_stddev": "0.82",
            "cluster_name": "made",
        },
    }


# ---- faults: the frames of a batch in, the pieces to send out; CLOSE ends the connection --------

CLOSE = None


def chain(*faults):
    """One fault after the other, first to last."""
    def fault(pieces):
        for one in faults:
            pieces = one(pieces)
        return pieces
    return fault


def once(fault):
    """The fault on the first batch that has pieces, nothing afterwards."""
    used = []

    def first_only(pieces):
        if used:
            return pieces
        used.append(True)
        return fault(pieces)
    return first_only


def only(code, fault):
    """The fault on the answers of one call; the others pass."""
    def some(pieces):
        for piece in pieces:
            hit = piece is not CLOSE and code_of(piece) == code
            yield from fault([piece]) if hit else [piece]
    return some


def silent(pieces):
    return []


def glued(pieces):
    return [b"".join(pieces)]


def reordered(pieces):
    return reversed(list(pieces))


def torn(size):
    """Pieces of so many bytes at most."""
    def fault(pieces):
        for piece in pieces:
            for index in range(0, len(piece), size):
                yield piece[index:index + size]
    return fault


bytewise = torn(1)


def closed_after(count):
    """So many bytes of the batch, then the end."""
    def fault(pieces):
        yield b"".join(pieces)[:count]
        yield CLOSE
    return fault


def closed_after_answers(count):
    """So many answers in the life of the server, then the end of every connection that asks."""
    sent = []

    def fault(pieces):
        for piece in pieces:
            if len(sent) >= count:
                yield CLOSE
            sent.append(True)
            yield piece
    return fault


def truncated(count):
    """Only so many bytes of each answer; the connection stays."""
    return lambda pieces: (piece[:count] for piece in pieces)


def lying(length):
    """Another total length in front of the same answer."""
    return lambda pieces: (struct.pack(">i", length) + piece[4:] for piece in pieces)


def flipped(position, mask=0xFF):
    def change(data):
        return data[:position] + bytes([data[position] ^ mask]) + data[position + 1:]
    return lambda pieces: (change(piece) for piece in pieces)


def held(event):
    """Nothing before the event."""
    def fault(pieces):
        event.wait(support.PATIENCE)
        yield from pieces
    return fault


def raw(data, close=True):
    """Something else than an answer."""
    return lambda pieces: [data, CLOSE] if close else [data]


HTTP_400 = raw(b"HTTP/1.1 400 Bad Request\r\nServer: other\r\nContent-Length: 0\r\n\r\n")


# ---- server -------------------------------------------------------------------------------------

class Meta:
    """A meta server on a loopback port. `answers` and `fault` may be replaced at any time.

    `requests` keeps every request in order of arrival, `malformed` what is not exactly one of the
    five requests (leaving the `with` block fails then: it can abort a real server), `connections`
    counts what was accepted, `open` what still is. With `gather` no query is answered before so
    many are waiting on one connection.
    """

    def __init__(self, answers, fault=None, gather=1):
        self.answers, self.fault, self.gather = answers, fault, gather
        self.requests, self.malformed, self.connections, self.open = [], [], 0, 0
        self._lock, self._stopping = threading.Lock(), False
        self._sockets, self._threads = set(), []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        self.address = "127.0.0.1:%d" % self.port
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        self.close()
        assert kind or not self.malformed, self.malformed

    def count(self, code):
        return sum(1 for one in list(self.requests) if one.code == code)

    def asked(self, code):
        """The arguments of all calls of one kind."""
        return [one.argument for one in list(self.requests) if one.code == code]

    def drop(self):
        """Close every connection, as a server that restarts does; the port stays."""
        with self._lock:
            for sock in self._sockets:
                _shut(sock)

    def close(self):
        """Close everything, the port too: from now on connections are refused."""
        self._stopping = True
        _shut(self._listener)
        self._accepting.join(support.PATIENCE)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(support.PATIENCE)

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self.open += 1
                self._sockets.add(sock)
                number = self.connections
            thread = threading.Thread(target=self._converse, args=(sock, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _converse(self, sock, number):
        with contextlib.suppress(OSError):
            waiting, data = [], b""
            while not self._stopping:
                more = sock.recv(65536)
                if not more:
                    break
                new, data = self._parse(data + more, number)
                waiting += new
                if not waiting or self._gathering(waiting):
                    continue
                if not self._answer(sock, waiting):
                    break
                waiting = []
        with self._lock:
            self.open -= 1
            self._sockets.discard(sock)
            sock.close()

    def _gathering(self, waiting):
        return waiting[-1].code == QUERY and len(waiting) < self.gather

    def _parse(self, data, number):
        """(complete requests, what is left)."""
        found = []
        while len(data) >= 48:
            size = 48 + struct.unpack_from(">i", data, 16)[0]
            if len(data) < size:
                break
            whole, data = data[:size], data[size:]
            try:
                one = parse_request(whole, number)
            except (ValueError, struct.error, IndexError) as error:
                self.malformed.append((whole, error))
                raise OSError("malformed request") from error
            found.append(one)
            with self._lock:
                self.requests.append(one)
        return found, data

    def _answer(self, sock, requests):
        frames = []
        for one in requests:
            data = self.answers(one.code, one.argument)
            if data is not None:
                frames.append(with_sequence(data, one.sequence))
        for piece in self.fault(frames) if self.fault and frames else frames:
            if piece is CLOSE:
                return False
            if piece:
                sock.sendall(piece, getattr(socket, "MSG_NOSIGNAL", 0))
        return True


def parse_request(data, connection=0):
    """A request that is byte for byte one of the five templates, or ValueError."""
    timeout = struct.unpack_from(">i", data, 32)[0]
    end = 56 + struct.unpack_from(">i", data, 52)[0]
    code = data[56:end].decode("ascii")
    sequence = struct.unpack_from(">i", data, end)[0]
    argument, at = None, end + 10
    if code in (LIST_APPS, LIST_NODES):
        argument = struct.unpack_from(">i", data, at)[0]
    elif code in (QUERY, CLI):
        size = struct.unpack_from(">i", data, at)[0]
        argument = data[at + 4:at + 4 + size]
        argument = argument.decode("ascii") if code == CLI else argument
    elif code != CLUSTER_INFO:
        raise ValueError("unknown code " + code)
    if request(code, argument, sequence, timeout) != data:
        raise ValueError("not the template of " + code)
    return Request(code, argument, sequence, timeout, data, connection)


def _shut(sock):
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def refused():
    """An address that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield "127.0.0.1:%d" % sock.getsockname()[1]
