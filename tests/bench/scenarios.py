"""The scenarios: each yields rows, every ratio is of two runs that followed each other."""

import json
import os
import subprocess
import sys
from typing import Callable, NamedTuple

import load
import peers
import report
from load import Load, Server

SMALL = {"tables": 1, "partitions": 8, "nodes": 3}
LARGE = {"tables": 1000, "partitions": 64, "nodes": 100}
WIDE = {"tables": 1000, "partitions": 4, "nodes": 100}  # for pages that show no partition
APPS, NODES = "/meta/apps?detail=true", "/meta/nodes?detail=true"
BASES = ("limit", "threads", "http.server", "http.server-1.1")
KEPT, CLOSED = 0.85, 0.75  # of the limit: with kept connections, with a connection per request
VERSION = {
    "c1": Load(connections=1), "c16": Load(), "c64": Load(connections=64),
    "close": Load(connections=16, close=True),
}
IDLE = 1000
BESIDE = 40  # requests a second beside a busy host: 3 socket calls of 5 ms each bound them to 66


class Bench(NamedTuple):
    """What the command line asked for."""

    pairs: int
    seconds: int
    peers: tuple
    say: Callable

    def paired(self, first, second, asked, more=1):
        """Two lists of Rounds, run in turns after a warm-up: A B A B.

        more: so many times the pairs, of which those count that other processes disturbed least.
        """
        for server in (first, second):
            load.wrk(server, asked, 1)
        if "limit" in (first.name, second.name):
            with load.apart(first, second):
                pairs = self.runs(first, second, asked, more)
        else:
            pairs = self.runs(first, second, asked, more)
        pairs.sort(key=lambda pair: pair[0].others + pair[1].others)
        return tuple(zip(*pairs[:self.pairs]))

    def runs(self, first, second, asked, more):
        return [(load.wrk(first, asked, self.seconds), load.wrk(second, asked, self.seconds))
                for _ in range(self.pairs * more)]


def besides(left, right):
    """The absolute figures behind a ratio, ours first."""
    def both(form, key, scale=1.0):
        pair = [form % (report.median(getattr(each, key) for each in side) / scale)
                for side in (left, right)]
        return " : ".join(pair)

    # What else runs on the machine only ever slows a run down: the best of each says most.
    best = max(each.rate for each in left) / max(each.rate for each in right)
    others = report.median(each.others for each in (*left, *right))
    return "best : best %.2f, %s /s, p99 %s ms, CPU %s us, RSS %s MB, others %.0f %%" % (
        best, both("%.0f", "rate"), both("%.2f", "p99"), both("%.1f", "cpu"),
        both("%.0f", "rss", 1e6), 100 * others)


def compare(scenario, other, left, right, least=None):
    rate = report.ratios([each.rate for each in left], [each.rate for each in right])
    return report.row(scenario, "requests/s, ours : " + other, rate, least=least,
                      besides=besides(left, right))


def compare_p99(scenario, other, left, right):
    p99 = report.ratios([each.p99 for each in left], [each.p99 for each in right])
    return report.row(scenario, "p99, ours : " + other, p99)


def compare_cpu(scenario, other, left, right):
    cpu = report.ratios([each.cpu for each in left], [each.cpu for each in right])
    return report.row(scenario, "CPU per request, ours : " + other, cpu)


def version(sort):
    def scenario(bench):
        asked = VERSION[sort]
        name = "/version, " + ("a connection per request" if asked.close
                               else "%d connections" % asked.connections)
        with Server("ours", **SMALL) as ours:
            whole = load.answer(ours, asked.target, asked.close)
            with load.files(answer=whole, body=load.body(whole)) as paths:
                for other in bench.peers:
                    yield from against(bench, name, ours, other, sort, paths)

    return scenario


def against(bench, name, ours, other, sort, paths):
    """Rows of one pairing; a peer that is not there or breaks is skipped by name."""
    lacks = peers.missing(other)
    if lacks:
        bench.say("%s: skipped, not installed: %s" % (other, ", ".join(lacks)))
        return
    asked, is_limit = VERSION[sort], other == "limit"
    try:
        with Server(other, close=asked.close, **paths) as rival:
            same = load.body(load.answer(rival, asked.target)) == load.body(
                load.answer(ours, asked.target))
            if not same:
                raise load.Failed(other, "answers other bytes")
            left, right = bench.paired(ours, rival, asked, 3 if is_limit else 1)
    except load.Failed as error:
        if error.server == "ours":
            raise
        bench.say("%s: skipped: %s" % (other, error))
        return
    least = CLOSED if asked.close else KEPT
    yield compare(name, other, left, right, least if is_limit else None)
    if is_limit:
        yield compare_p99(name, other, left, right)
        yield compare_cpu(name, other, left, right)


def page(name, target, sizes):
    """A page of an unchanged state against the limit sending the same bytes."""
    def scenario(bench):
        asked = Load(target)
        with Server("ours", **sizes) as ours:
            whole = load.answer(ours, target)
            with load.files(answer=whole) as paths, Server("limit", **paths) as limit:
                left, right = bench.paired(ours, limit, asked, 3)
        title = "%s, %s, unchanged, %d bytes" % (target, name, len(whole))
        yield compare(title, "limit", left, right)
        yield compare_cpu(title, "limit", left, right)

    return scenario


def changing(target, sizes):
    """A page of a state that changes 10 times a second against the same page unchanged."""
    def scenario(bench):
        with Server("ours", hz=10, **sizes) as ours, Server("ours", **sizes) as still:
            left, right = bench.paired(ours, still, Load(target))
        title = "%s, 1,000 tables, one changes 10 times a second" % target
        yield compare(title, "unchanged", left, right)
        yield compare_p99(title, "unchanged", left, right)

    return scenario


def idle(bench):
    """The cost of connections that say nothing, and what they cost the others."""
    with Server("ours", **SMALL) as ours:
        load.wrk(ours, Load(connections=64), 1)
        before, threads = load.rss(ours.pid), load.status(ours.pid, "Threads")
        with load.Idle(ours, IDLE):
            each = (load.rss(ours.pid) - before) / IDLE / 1000
            more = load.status(ours.pid, "Threads") - threads
        title = "%d idle connections" % IDLE
        yield report.row(title, "threads more", [more])
        yield report.row(title, "RSS per connection", [each], unit=" KB")
        left, right = [], []
        for _ in range(bench.pairs):
            with load.Idle(ours, IDLE):
                left.append(load.wrk(ours, Load(), bench.seconds))
            right.append(load.wrk(ours, Load(), bench.seconds))
        rate = report.ratios([each.rate for each in left], [each.rate for each in right])
        yield report.row(title, "requests/s of 16 others, with : without", rate,
                         besides=besides(left, right))


def memory(bench):
    """RSS that the pages cost: beyond the process with the model that answered /version."""
    del bench
    with Server("ours", **LARGE) as ours:
        load.answer(ours, "/version")
        before, sent = load.rss(ours.pid), 0
        for target in ("/meta/apps", APPS, "/meta/nodes", NODES, "/meta/cluster"):
            sent += len(load.body(load.answer(ours, target)))
        title = "memory for the pages of 1,000 x 64"
        yield memory_row(title, load.rss(ours.pid) - before, sent, most=4.0)
        for number in range(1, LARGE["tables"] + 1):
            target = "/meta/app?name=table%d&detail=true" % number
            sent += len(load.body(load.answer(ours, target)))
        yield memory_row(title + ", each table's too", load.rss(ours.pid) - before, sent)


def memory_row(title, used, sent, most=None):
    return report.row(title, "RSS : bytes of the pages", [used / sent], most=most,
                      besides="%.2f : %.2f MB" % (used / 1e6, sent / 1e6))


# Processor time: on a quiet machine that of the clock, on a busy one without the time of others.
IMPORT = ("import time; start = time.process_time(); import %s; "
          "print(time.process_time() - start)")


def imports(bench):
    """Import time in fresh interpreters, in turns; the best of many is what the code costs."""
    root = os.path.dirname(os.path.dirname(load.HERE))
    best = {"pegasus_http": [], "http.server": []}
    for _ in range(max(40, bench.pairs)):
        for module, times in best.items():
            done = subprocess.run([sys.executable, "-c", IMPORT % module], cwd=root, check=True,
                                  stdout=subprocess.PIPE, timeout=60)
            times.append(float(done.stdout) * 1e3)
    ours, stock = (min(times) for times in best.values())
    yield report.row("import time", "pegasus_http - http.server", [ours - stock], most=10,
                     unit=" ms", besides="%.1f : %.1f ms" % (ours, stock))


def resident(bench):
    """Memory of the command line that nobody asks, beyond that of `python -m http.server`."""
    commands = {
        "pegasus_http": ["-m", "pegasus_http", "--role", "meta", "--listen", "127.0.0.1:0"],
        "http.server": ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
    }
    more, used = [], {name: [] for name in commands}
    for _ in range(bench.pairs):
        for name, command in commands.items():
            with Server(name, command) as server:
                load.answer(server, "/version", close=True)
                used[name].append(load.rss(server.pid) / 1e6)
        more.append(used["pegasus_http"][-1] - used["http.server"][-1])
    middle = tuple(report.median(values) for values in used.values())
    yield report.row("resident memory, idle", "pegasus_http - http.server", more, most=2,
                     unit=" MB", besides="%.1f : %.1f MB" % middle)


def busy(bench):
    """A host computing on its main thread while it is asked: its loss, and our latencies."""
    with Server("ours", **SMALL) as ours:
        whole = load.answer(ours, "/version")
    with load.files(answer=whole) as paths, \
            Server("busy", beside="none") as alone, \
            Server("busy", beside="ours", **SMALL) as ours, \
            Server("busy", beside="threads", **paths) as threads:
        yield from beside(bench, alone, {"ours": ours, "thread per connection": threads})


def beside(bench, alone, hosts):
    shares = {name: [] for name in hosts}
    halves = {name: [] for name in hosts}
    tails = {name: [] for name in hosts}
    seconds = bench.seconds * 2
    for _ in range(bench.pairs):
        free = alone.compute(seconds)
        for name, host in hosts.items():
            with load.Paced(host, ("/version",), BESIDE) as paced:
                shares[name].append(host.compute(seconds) / free)
            halves[name].append(paced.quantile(0.5))
            tails[name].append(paced.quantile(0.99))
    for name in hosts:
        title = "busy host, %d requests/s, %s" % (BESIDE, name)
        yield report.row(title, "speed of the host, asked : not asked", shares[name],
                         besides="p50 %.2f ms, p99 %.2f ms"
                         % (report.median(halves[name]), report.median(tails[name])))


def script(name, *arguments):
    """A measuring script without wrk, as a process of its own that prints rows."""
    def scenario(bench):
        command = [sys.executable, os.path.join(load.HERE, name), "--json",
                   "--pairs", str(bench.pairs), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   text=True, start_new_session=True)
        try:
            for line in process.stdout:
                yield report.Row(*json.loads(line))
            if process.wait():
                raise RuntimeError(name + " failed")
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()

    return scenario


SCENARIOS = {
    **{"version-" + sort: version(sort) for sort in VERSION},
    "apps-1": page("1 table", "/meta/apps", SMALL),
    "apps-10": page("10 tables", "/meta/apps", dict(SMALL, tables=10)),
    "apps-1000": page("1,000 tables", "/meta/apps", WIDE),
    "apps-detail": page("1,000 x 64", APPS, LARGE),
    "nodes-detail": page("1,000 x 64", NODES, LARGE),
    "app-detail": page("64 partitions", "/meta/app?name=table7&detail=true", LARGE),
    "changing-version": changing("/version", LARGE),
    "changing-apps": changing("/meta/apps", LARGE),
    "changing-apps-detail": changing(APPS, LARGE),
    "changing-nodes-detail": changing(NODES, LARGE),
    "idle": idle,
    "memory": memory,
    "import": imports,
    "resident": resident,
    "busy": busy,
    "inprocess": script("inprocess.py"),
    "live-addresses": script("live.py"),
    "live-names": script("live.py", "--new"),
    "worst": script("worst.py"),
}
