"""Timings without sockets: `python tests/bench/inprocess.py` alone, or as part of bench.py.

`--only` takes parts of it: change, cold, several, scaling, memory. The server's worker makes pages
as `respond` does, so the time of `respond` is the worker's. The yardstick is a full recompute: one
plain pass over all partitions, then json.dumps. It builds the very bytes of our page, which is
checked before anything is timed.
"""

import argparse
import gc
import json
import os
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE), os.path.dirname(os.path.dirname(HERE))]

import pegasus_http as ph  # noqa: E402
import report  # noqa: E402
import support  # noqa: E402
from servers import changed  # noqa: E402

APPS, NODES = "/meta/apps?detail=true", "/meta/nodes?detail=true"
LARGE = {"tables": 1000, "partitions": 64, "nodes": 100}
SIZES = (10, 100, 1000, 10000)
SPREAD = 8  # partitions per table of the scaling figures


def dumps(page):
    return json.dumps(page, separators=(",", ":")).encode() + b"\n"


def stamp(second):
    if not second:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S.000", time.localtime(second))


def general(app):
    return {
        "app_id": str(app.app_id), "status": app.status, "app_name": app.app_name,
        "app_type": app.app_type, "partition_count": str(len(app.partitions)),
        "replica_count": str(app.max_replica_count),
        "is_stateful": "true" if app.is_stateful else "false",
        "create_time": stamp(app.create_second), "drop_time": "-", "drop_expire": "-",
        "envs_count": str(len(app.envs)),
    }


def health(app):
    """Fully healthy, unhealthy, write-unhealthy and read-unhealthy partitions of a table."""
    full = write = read = 0
    for part in app.partitions:
        if part.primary is None:
            write += 1
            read += 1
            continue
        replicas = 1 + len(part.secondaries)
        if replicas >= part.max_replica_count:
            full += 1
        elif replicas < 2:
            write += 1
    return full, len(app.partitions) - full, write, read


def plain_apps(state):
    """/meta/apps?detail=true, from scratch."""
    rows, healthy, bad = {}, {}, [0, 0, 0, 0]
    apps = sorted((app for app in state.apps if app.status == "AVAILABLE"),
                  key=lambda app: app.app_id)
    for app in apps:
        key, (full, other, write, read) = str(app.app_id), health(app)
        rows[key] = general(app)
        healthy[key] = {
            "app_id": key, "app_name": app.app_name, "partition_count": str(len(app.partitions)),
            "fully_healthy": str(full), "unhealthy": str(other), "write_unhealthy": str(write),
            "read_unhealthy": str(read),
        }
        for place, hit in enumerate((other == 0, other > 0, write > 0, read > 0)):
            bad[place] += hit
    names = ("total", "fully_healthy", "unhealthy", "write_unhealthy", "read_unhealthy")
    summary = {name + "_app_count": str(count) for name, count in zip(names, [len(apps), *bad])}
    return dumps({"general_info": rows, "healthy_info": healthy, "summary": summary})


def order(node):
    host, _, port = node.address.rpartition(":")
    return [int(part) for part in host.split(".")], int(port)


def plain_nodes(state):
    """/meta/nodes?detail=true, from scratch."""
    primaries = {node.address: 0 for node in state.nodes}
    secondaries = dict(primaries)
    for app in state.apps:
        if app.status != "AVAILABLE":
            continue
        for part in app.partitions:
            if part.primary in primaries:
                primaries[part.primary] += 1
            for address in part.secondaries:
                if address in secondaries:
                    secondaries[address] += 1
    details = {}
    for node in sorted(state.nodes, key=order):
        first, others = primaries[node.address], secondaries[node.address]
        details[node.address] = {
            "address": node.address, "status": node.status, "replica_count": str(first + others),
            "primary_count": str(first), "secondary_count": str(others),
        }
    alive = sum(node.status == "ALIVE" for node in state.nodes)
    summary = {"total_node_count": str(len(state.nodes)), "alive_node_count": str(alive),
               "unalive_node_count": str(len(state.nodes) - alive)}
    return dumps({"details": details, "summary": summary})


PLAIN = {APPS: plain_apps, NODES: plain_nodes}


def ours(state, target):
    return ph.respond(state, "GET", target, role="meta").body


def check(state):
    """The yardstick and our page are the same bytes."""
    for target, plain in PLAIN.items():
        if plain(state) != ours(state, target):
            raise RuntimeError("%s: the plain pass builds another page" % target)


def timed(work, *arguments):
    """Milliseconds of one call, garbage of others collected before."""
    gc.collect()
    start = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - start) * 1e3


def warm(state):
    for target in PLAIN:
        ours(state, target)


def recompute(state):
    for plain in PLAIN.values():
        plain(state)


class Host:
    """A cluster and the server it is published to, which is never started: no sockets."""

    def __init__(self, **sizes):
        self.state = support.cluster(**sizes)
        self.server = ph.StatusServer(self.state, role="meta")
        self.turn = 0
        warm(self.state)

    def change(self, tables=1):
        """Publish the cluster with so many tables changed."""
        for _ in range(tables):
            self.turn += 1
            self.state = changed(self.state, self.turn)
        self.server.publish(self.state)


def after_change(pairs):
    """First detail page after one table of 1,000 changed, and a full recompute."""
    host = Host(**LARGE)
    check(host.state)
    for target, plain in PLAIN.items():
        new, full = [], []
        for _ in range(pairs):
            host.change()
            new.append(timed(ours, host.state, target))
            full.append(timed(plain, host.state))
            warm(host.state)
        yield report.row("one table of 1,000 x 64 changed, first %s" % target, "time", new, most=20,
                         unit=" ms", besides="full recompute %.2f ms" % report.median(full))


def cold(pairs):
    """First detail page of a model never seen : one plain pass and json.dumps."""
    for target, plain in PLAIN.items():
        new, full = [], []
        for _ in range(pairs):
            # A model for each, so that neither finds the other's objects in the processor's cache.
            new.append(timed(ours, support.cluster(**LARGE), target))
            full.append(timed(plain, support.cluster(**LARGE)))
        yield report.row("cold, 64,000 partitions, first %s" % target, "time : plain pass, dumps",
                         report.ratios(new, full), besides="%.2f : %.2f ms"
                         % (report.median(new), report.median(full)))


def scaling(pairs):
    """Both detail pages at four sizes: unchanged, after one table changed, recomputed in full."""
    for tables in SIZES:
        host = Host(tables=tables, partitions=SPREAD, nodes=100)
        same = [timed(warm, host.state) for _ in range(pairs * 4)]
        publishing, new, full = [], [], []
        for _ in range(pairs):
            publishing.append(timed(host.change))
            new.append(timed(warm, host.state))
            full.append(timed(recompute, host.state))
        title = "both detail pages, %d tables x %d" % (tables, SPREAD)
        yield report.row(title, "unchanged", [1e3 * each for each in same], unit=" us")
        yield report.row(title, "one table changed", new, unit=" ms",
                         besides="full recompute %.2f ms, _replace and publish %.2f ms"
                         % (report.median(full), report.median(publishing)))


def several(pairs):
    """After 1, 10 and 100 tables of 1,000 changed at once: the cost follows what changed."""
    host = Host(**LARGE)
    for count in (1, 10, 100):
        new = []
        for _ in range(pairs):
            host.change(count)
            new.append(timed(warm, host.state))
        yield report.row("both detail pages, 1,000 x 64", "%d tables changed" % count, new,
                         unit=" ms")


def memory(pairs):
    """Bytes that stay allocated for the pages of 1,000 x 64, beyond the model."""
    import tracemalloc  # which PyPy does not have

    del pairs
    state = support.cluster(**LARGE)
    ours(support.cluster(), APPS)
    gc.collect()
    tracemalloc.start()
    sent = sum(len(ours(state, target))
               for target in ("/meta/apps", APPS, "/meta/nodes", NODES, "/meta/cluster"))
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    yield report.row("memory for the pages of 1,000 x 64, no sockets",
                     "allocated : bytes of the pages", [used / sent], most=4.0,
                     besides="%.2f : %.2f MB" % (used / 1e6, sent / 1e6))


PARTS = {
    "change": after_change, "cold": cold, "several": several, "scaling": scaling, "memory": memory,
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", default="", metavar="REGEX", help="parts to run")
    parser.add_argument("--list", action="store_true", help="what --only chooses")
    parser.add_argument("--json", action="store_true", help="a row a line, for bench.py")
    options = parser.parse_args(argv)
    for name, part in PARTS.items():
        if not re.search(options.only, name):
            continue
        if options.list:
            print(name)
            continue
        for made in part(options.pairs):
            print(json.dumps(made) if options.json else report.line(made), flush=True)


if __name__ == "__main__":
    main()
