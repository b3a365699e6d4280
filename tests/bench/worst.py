"""The worst minute: how long `/version` waits while somebody attacks the server.

`python tests/bench/worst.py` runs every attack, `--only REGEX` some of them. It needs no wrk. Three
processes run beside this one: the server that is measured, a second one like it, and the attacker.
This process asks the first server for `/version` once a millisecond on one kept connection, three
times in turn: while nobody attacks, while the first server is attacked, and while the second one
is. The third figure is the control: it shows what the attack costs the machine, whoever serves it.

A wait is counted from the moment when the request was due. So all the requests that a long wait
has delayed count as late, as they would for clients that know nothing of each other. A wait of
"inf" is a request that got no answer in 30 seconds, or another answer than status 200.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path[:0] = [HERE, os.path.dirname(HERE), os.path.dirname(os.path.dirname(HERE))]

import load  # noqa: E402
import report  # noqa: E402

LARGE = {"tables": 1000, "partitions": 64, "nodes": 100, "hz": 10}
RATE = 100  # requests for /version a second: few enough that one late answer delays no other
BURST = 16 * 1024  # bytes of requests that the attacker sends at once when it pipelines
SETTLING = 20  # how many times it is tried whether a server answers as usual again
FILES = 4  # different state files, written in turn
LONGEST, P99 = 50, 10  # milliseconds that are aimed at


class Attack(NamedTuple):
    title: str
    sizes: dict  # of the cluster; hz is how many times a second one of its tables changes
    targets: tuple  # pages, "%d" is replaced by the number of each table
    method: str = "GET"
    clients: int = 1
    at_once: int = 0  # bytes of requests sent together; 0 for one request at a time
    file: bool = False  # the servers read a state file, of which each second there is a new one


PIPELINED = ("/meta/app?name=table%d&detail&pretty",)
ATTACKS = {
    "burst": Attack("one client pipelines 16 KB of HEAD for different detail pages",
                    LARGE, PIPELINED, "HEAD", 1, BURST),
    "bursts": Attack("32 clients pipeline 16 KB of HEAD for different detail pages each",
                     LARGE, PIPELINED, "HEAD", 32, BURST),
    "many-tables": Attack("`/meta/apps?detail&pretty` of 10,000 tables, ten changes a second",
                          {"tables": 10000, "partitions": 4, "nodes": 100, "hz": 10},
                          ("/meta/apps?detail&pretty",)),
    "large-table": Attack("`/meta/app?detail` of 65,536 partitions, a change a second",
                          {"tables": 1, "partitions": 65536, "nodes": 100, "hz": 1},
                          ("/meta/app?name=table%d&detail",)),
    "state-file": Attack("a new state file of 1,000 tables x 64 each second",
                         LARGE, ("/meta/apps?detail",), file=True),
    "every-page": Attack("every detail page in turn, ten changes a second", LARGE,
                         ("/meta/apps?detail", "/meta/nodes?detail",
                          "/meta/app?name=table%d&detail")),
}
SMALL = {"tables": 20, "partitions": 4}  # with --small


# The attacker, in a process of its own.

def requests(attack):
    """The attacker's requests in turn, for ever."""
    tables = range(1, attack.sizes["tables"] + 1)
    pages = [target % number for target in attack.targets if "%d" in target for number in tables]
    pages += [target for target in attack.targets if "%d" not in target]
    lines = "%s %s HTTP/1.1\r\nHost: bench\r\n\r\n"
    return itertools.cycle([(lines % (attack.method, page)).encode() for page in pages])


def batches(attack, skip):
    """The requests that are sent together; each client begins at another place."""
    endless = itertools.islice(requests(attack), skip, None)
    while True:
        batch = [next(endless)]
        while sum(map(len, batch)) < attack.at_once:
            batch.append(next(endless))
        yield batch


class Attacker:
    """Clients that ask as fast as they are answered, each in a thread."""

    def __init__(self, attack, port, path):
        self.attack, self.port, self.path = attack, port, path
        self.answers = self.lost = 0
        self.lock, self.begun, self.ending = threading.Lock(), threading.Event(), threading.Event()

    def run(self):
        work = [(self.ask, number) for number in range(self.attack.clients)]
        if self.attack.file:
            work.append((self.write, state_files(self.attack)))
        threads = [threading.Thread(target=call, args=(argument,), daemon=True)
                   for call, argument in work]
        for thread in threads:
            thread.start()
        self.begun.wait(60)  # the attack is under way with its first answer
        print("ready", flush=True)
        os.read(0, 1)  # until this process is to end
        self.ending.set()
        print("answers %d %d" % (self.answers, self.lost), flush=True)

    def ask(self, number):
        every = batches(self.attack, 97 * number)
        while not self.ending.is_set():
            with contextlib.suppress(OSError), \
                    socket.create_connection(("127.0.0.1", self.port), 60) as connection:
                for batch in every:
                    connection.sendall(b"".join(batch))
                    for answers in answered(connection, len(batch), self.attack.method):
                        self.count(answers)
            with self.lock:
                self.lost += 1
            self.ending.wait(0.01)

    def count(self, answers):
        with self.lock:
            self.answers += answers
        self.begun.set()
        if self.ending.is_set() or not answers:
            raise OSError("the end")

    def write(self, contents):
        for content in itertools.cycle(contents):
            with open(self.path + ".new", "wb") as file:
                file.write(content)
            os.replace(self.path + ".new", self.path)
            self.ending.wait(1.0)


def answered(connection, count, method):
    """Read so many answers; yields how many came with each piece, 0 when the server has closed."""
    if method != "HEAD":
        yield int(load.receive(connection).startswith(b"HTTP/1.1 200"))
        return
    data, left = b"", count
    while left > 0:
        piece = connection.recv(1 << 16)
        *whole, data = (data + piece).split(b"\r\n\r\n")
        if whole or not piece:
            yield len(whole)
        left -= len(whole)


def state_files(attack):
    """State files of the same cluster that differ in one ballot."""
    import support

    state = support.cluster(**{key: attack.sizes[key] for key in ("tables", "partitions", "nodes")})
    apps = [dict(app._asdict(), envs={}, partitions=[row._asdict() for row in app.partitions])
            for app in state.apps]
    nodes = [node._asdict() for node in state.nodes]
    for turn in range(FILES):
        apps[0]["partitions"][0]["ballot"] = 100 + turn
        yield json.dumps({"apps": apps, "nodes": nodes}).encode()


# The measuring.

def probe(server, seconds):
    """Ask for `/version` meanwhile: the longest wait and the p99, in milliseconds."""
    try:
        with load.Paced(server, ("/version",), RATE, 1) as paced:
            time.sleep(seconds)
    except load.Failed:
        return float("inf"), float("inf")  # a request was not answered
    return max(paced.latencies) * 1e3, paced.quantile(0.99)


def settle(server):
    """Until it has done what the last attack has left."""
    for _ in range(SETTLING):
        if probe(server, 0.3)[0] < LONGEST:
            return


@contextlib.contextmanager
def attacked(name, server, path, small):
    """The attacker at work; what it was answered is in the list afterwards."""
    told = json.dumps({"name": name, "port": server.port, "path": path, "small": small})
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--attack", told],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    got = []
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the attacker did not start")
        yield got
        process.stdin.close()
        got += map(int, process.stdout.readline().split()[1:])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stopped(server, stop):
    """The second server rests while it is not attacked; it is not to change its cluster then."""
    os.kill(server.pid, signal.SIGSTOP if stop else signal.SIGCONT)


def rounds(name, attack, options, servers, paths):
    """For each round (without attack, attacked, control), and the attacker's answers."""
    first, second = servers
    for _ in range(options.pairs):
        stopped(second, True)
        settle(first)
        alone = probe(first, options.seconds)
        with attacked(name, first, paths[0], options.small) as got:
            hit = probe(first, options.seconds)
        stopped(second, False)
        settle(first)
        with attacked(name, second, paths[1], options.small):
            control = probe(first, options.seconds)
        yield (alone, hit, control), got[0] / options.seconds, got[1]


def measure(name, options):
    """Two rows for an attack: the longest wait and the p99."""
    attack = chosen(name, options.small)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = [os.path.join(folder, part) for part in ("first.json", "second.json")]
        sizes = dict(attack.sizes)
        if attack.file:
            content = next(state_files(attack))
            for path in paths:
                with open(path, "wb") as file:
                    file.write(content)
        servers = []
        for path in paths:
            more = {"state": path} if attack.file else {}
            servers.append(stack.enter_context(load.Server("ours", **sizes, **more)))
        found = list(rounds(name, attack, options, servers, paths))
    yield from rows(name, attack, found)


def rows(name, attack, found):
    """The longest wait of all rounds is held to the budget, and the median of their p99s."""
    speed = "%.0f answers/s to the attacker" % report.median(rate for _, rate, _ in found)
    cut = sum(lost for *_, lost in found)
    speed += ", which lost %d connections" % cut if cut > len(found) * attack.clients else ""
    alone, hit, control = ([each[column] for each, _, _ in found] for column in range(3))
    form = "%s ms without attack, %s ms while another server is attacked"
    most = [max(longest for longest, _ in side) for side in (alone, hit, control)]
    middle = [report.median(p99 for _, p99 in side) for side in (alone, hit, control)]
    yield report.row(attack.title, "longest wait of `/version`", [most[1]], most=LONGEST,
                     unit=" ms", besides=form % (report.figure(most[0]), report.figure(most[2])))
    yield report.row(attack.title, "p99 of `/version`", [p99 for _, p99 in hit],
                     most=P99 if name == "every-page" else None, unit=" ms", besides="%s; %s" % (
                         form % (report.figure(middle[0]), report.figure(middle[2])), speed))


def chosen(name, small):
    attack = ATTACKS[name]
    return attack._replace(sizes=dict(attack.sizes, **SMALL)) if small else attack


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="rounds for each attack")
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement")
    parser.add_argument("--only", default="", metavar="REGEX", help="attacks to run")
    parser.add_argument("--small", action="store_true", help="small clusters: does it work at all")
    parser.add_argument("--list", action="store_true", help="what --only chooses")
    parser.add_argument("--json", action="store_true", help="a row a line, for bench.py")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    if options.attack:
        told = json.loads(options.attack)
        Attacker(chosen(told["name"], told["small"]), told["port"], told["path"]).run()
        return
    names = [name for name in ATTACKS if re.search(options.only, name)]
    if options.list:
        print(*names, sep="\n")
        return
    made = []
    for row in itertools.chain.from_iterable(measure(name, options) for name in names):
        made.append(row)
        print(json.dumps(row) if options.json else report.line(row), flush=True)
    if not options.json:
        print("\n" + report.table(made))


if __name__ == "__main__":
    main()
