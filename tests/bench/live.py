"""Reading a live cluster: decode the configurations of 64,000 partitions and build the pages.

`python tests/bench/live.py` alone, or as part of bench.py. Only the public `LiveCluster` is used,
against a meta server that knows nothing but ready-made answers and runs as a process of its own;
the yardstick is json.loads of the same content.
"""

import argparse
import gc
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE), os.path.dirname(os.path.dirname(HERE))]

import report  # noqa: E402

TABLES, PARTITIONS, NODES, REPLICAS = 1000, 64, 100, 3
PORT = 34801
PAGES = ("/meta/apps?detail=true", "/meta/nodes?detail=true")
BOOL, I32, I64, STRING, STRUCT, MAP, LIST = 2, 8, 10, 11, 12, 13, 15


# The answers of a meta server, up to release 2.5 with addresses alone, then with host names too.

def field(kind, number, value):
    return struct.pack(">bh", kind, number) + value


def i32(number):
    return struct.pack(">i", number)


def i64(number):
    return struct.pack(">q", number)


def text(value):
    return i32(len(value)) + value.encode()


def array(kind, values):
    return struct.pack(">bi", kind, len(values)) + b"".join(values)


def ip(node):
    return "10.0.%d.%d" % divmod(node, 250)


def address(node):
    return struct.pack(">4BHH", *map(int, ip(node).split(".")), PORT, 1)


def host_port(node):
    return text("replica%d.example" % node) + struct.pack(">Hb", PORT, 1)


def ok(*fields):
    """A result struct with its inner error code, which is a string tagged as a struct."""
    return field(STRUCT, 0, field(STRUCT, 1, text("ERR_OK")) + b"".join(fields) + b"\0") + b"\0"


def places(app_id, index):
    return [1 + (app_id + index + k) % NODES for k in range(REPLICAS)]


def partition(app_id, index, new):
    primary, *others = places(app_id, index)
    fields = [
        field(STRUCT, 1, struct.pack(">ii", index, app_id)), field(I64, 2, i64(3)),
        field(I32, 3, i32(REPLICAS)), field(STRUCT, 4, address(primary)),
        field(LIST, 5, array(STRUCT, [address(node) for node in others])),
        field(LIST, 6, array(STRUCT, [])), field(I64, 7, i64(0)), field(I32, 8, i32(0)),
    ]
    if new:
        fields += [field(STRUCT, 9, host_port(primary)),
                   field(LIST, 10, array(STRUCT, [host_port(node) for node in others])),
                   field(LIST, 11, array(STRUCT, []))]
    return b"".join(fields) + b"\0"


def configuration(app_id, new):
    rows = [partition(app_id, index, new) for index in range(PARTITIONS)]
    return ok(field(I32, 2, i32(app_id)), field(I32, 3, i32(PARTITIONS)),
              field(BOOL, 4, b"\1"), field(LIST, 5, array(STRUCT, rows)))


def app_info(app_id):
    return b"".join([
        field(I32, 1, i32(1)), field(STRING, 2, text("pegasus")),
        field(STRING, 3, text("table%d" % app_id)), field(I32, 4, i32(app_id)),
        field(I32, 5, i32(PARTITIONS)), field(MAP, 6, struct.pack(">bbi", STRING, STRING, 0)),
        field(BOOL, 7, b"\1"), field(I32, 8, i32(REPLICAS)), field(I64, 9, i64(0)),
        field(I64, 10, i64(1564466666)), field(I64, 11, i64(0)), b"\0",
    ])


def node_info(node, new):
    name = field(STRUCT, 3, host_port(node)) if new else b""
    return field(I32, 1, i32(1)) + field(STRUCT, 2, address(node)) + name + b"\0"


CLUSTER = {
    "meta_servers": "10.0.0.1:34601", "primary_meta_server": "10.0.0.1:34601",
    "zookeeper_hosts": "127.0.0.1:2181", "zookeeper_root": "/pegasus/bench",
    "meta_function_level": "lively",
    "balance_operation_count": "move_pri=0,copy_pri=0,copy_sec=0,total=0",
    "primary_replica_count_stddev": "0.00", "total_replica_count_stddev": "0.00",
}
INFO = "Pegasus Server 2.6.0 (%s) Release, Started at 2026-11-23 12:00:00" % ("a" * 40)


def answers(new):
    """Call name, and for a query the table's name too, to the bytes after the sequence id."""
    ids = range(1, TABLES + 1)
    names = [array(STRING, [text(each) for each in part])
             for part in (list(CLUSTER), list(CLUSTER.values()))]
    found = {
        ("RPC_CM_LIST_APPS", ""): ok(field(LIST, 2, array(STRUCT, [app_info(n) for n in ids]))),
        ("RPC_CM_LIST_NODES", ""): ok(field(LIST, 2, array(
            STRUCT, [node_info(n, new) for n in range(1, NODES + 1)]))),
        ("RPC_CM_CLUSTER_INFO", ""): ok(field(LIST, 2, names[0]), field(LIST, 3, names[1])),
        ("RPC_CLI_CLI_CALL", ""): field(STRING, 0, text(INFO)) + b"\0",
    }
    for number in ids:
        found[QUERY, "table%d" % number] = configuration(number, new)
    return found


QUERY = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX"


def reply(request, known):
    """The frame that answers one request body."""
    end = 8 + int.from_bytes(request[4:8], "big")
    name, sequence = request[8:end].decode(), request[end:end + 4]
    table = ""
    if name == QUERY:
        start = end + 4 + 3 + 3  # past the heads of the args struct and of its first field
        size = int.from_bytes(request[start:start + 4], "big")
        table = request[start + 4:start + 4 + size].decode()
    frame = b"".join([text("ERR_OK"), b"\x80\1\0\2", text(name + "_ACK"), sequence,
                      known[name, table]])
    return i32(len(frame) + 4) + frame


def converse(connection, known):
    data = b""
    while True:
        piece = connection.recv(1 << 16)
        if not piece:
            return
        data += piece
        frames = []
        while len(data) >= 48:
            end = 48 + int.from_bytes(data[16:20], "big")
            if len(data) < end:
                break
            frames.append(reply(data[48:end], known))
            data = data[end:]
        if frames:
            connection.sendall(b"".join(frames))


def meta(new):
    """The meta server: prints its port, serves until stdin ends."""
    known = answers(new)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=converse, args=(connection, known), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


# The measuring.

def content(new):
    """The same content as JSON text, the shape of a state file."""
    name = "replica%d.example:%d" if new else None

    def spell(node):
        return name % (node, PORT) if new else "%s:%d" % (ip(node), PORT)

    def row(app_id, index):
        primary, *others = places(app_id, index)
        return {"ballot": 3, "max_replica_count": REPLICAS, "primary": spell(primary),
                "secondaries": [spell(node) for node in others]}

    apps = [{"app_id": n, "app_name": "table%d" % n, "status": "AVAILABLE",
             "partition_count": PARTITIONS, "max_replica_count": REPLICAS,
             "partitions": [row(n, index) for index in range(PARTITIONS)]}
            for n in range(1, TABLES + 1)]
    return json.dumps({"apps": apps})


def timed(work, argument):
    """Seconds by the clock and of the processor, of one call."""
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    work(argument)
    return time.perf_counter() - start, time.process_time() - cpu


def source(port):
    import pegasus_http

    return pegasus_http.LiveCluster("127.0.0.1:%d" % port, timeout=30.0, max_age=0.0)


def read(cluster):
    """What a request for the two large pages costs."""
    import pegasus_http

    state = cluster()
    pages = [pegasus_http.respond(state, "GET", page, role="meta") for page in PAGES]
    if any(page.status != 200 for page in pages):
        raise RuntimeError("pages of the live cluster: %r" % pages)


def measure(port, new, pairs):
    import pegasus_http  # noqa: F401  (imported before its memory is measured)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    live, again, loads = [timed(read, source(port))], [], []
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = content(new)
    for _ in range(pairs):
        cluster = source(port)
        live.append(timed(read, cluster))
        again.append(timed(read, cluster))
        loads.append(timed(json.loads, whole)[1])
    title = "live cluster, 64,000 partitions, " + ("host names" if new else "addresses")
    yield report.row(title, "read, decode and two detail pages", [wall for wall, _ in live],
                     most=1.5, unit=" s")
    yield report.row(title, "its processor time : json.loads",
                     report.ratios([cpu for _, cpu in live[1:]], loads),
                     besides="%.2f : %.2f s" % (report.median(cpu for _, cpu in live),
                                                report.median(loads)))
    yield report.row(title, "the same again, nothing changed : json.loads, processor time",
                     report.ratios([cpu for _, cpu in again], loads),
                     besides="%.2f s by the clock" % report.median(wall for wall, _ in again))
    yield report.row(title, "memory of the process", [used / 1e3], unit=" MB",
                     besides="%.0f MB before" % (before / 1e3))


def rows(new, pairs):
    command = [sys.executable, os.path.abspath(__file__), "--meta"] + ["--new"] * new
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, start_new_session=True)
    try:
        yield from measure(int(server.stdout.readline()), new, pairs)
    finally:
        server.kill()
        server.communicate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--new", action="store_true", help="answers with host names")
    parser.add_argument("--json", action="store_true", help="a row a line, for bench.py")
    parser.add_argument("--meta", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.meta:
        meta(options.new)
        return
    for made in rows(options.new, options.pairs):
        print(json.dumps(made) if options.json else report.line(made), flush=True)


if __name__ == "__main__":
    main()
