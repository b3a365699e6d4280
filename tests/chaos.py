"""Three meta servers in trouble for as long as you like, and a server whose pages must stay right.

`python tests/chaos.py --seconds 180 --seed 7`. One of the three leads, the others stand by or are
dead. Everything changes all the time: tables, the leader, delays, cut connections, torn answers,
silence, restarts. Clients ask for pages; what each page shows must be what the servers held between
the moment from which its source says that its answer is and the end of the request. No answer may
come later than the timeout, and in the end all pages are right again and no thread, no descriptor
and no memory is lost.

Nothing that is compared depends on how fast the machine is: a source says how old its answer is, a
control tells what the machine adds to each time, and the run goes on until it has seen enough.
"""

import argparse
import collections
import contextlib
import copy
import gc
import itertools
import json
import os
import random
import resource
import sys
import threading
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pegasus_http as ph  # noqa: E402
import replay  # noqa: E402
import support  # noqa: E402
from fakes import MetaAt, cluster_of  # noqa: E402
from replay import CLOSE  # noqa: E402

TIMEOUT, MAX_AGE, UNFINISHED = 1.5, 0.05, 1.0  # seconds
KEPT = 20.0  # seconds for which states are remembered: more than any answer may be old
LATE = 1.0  # seconds above the timeout and what the control has seen, for threads that take turns
LEAST = 20  # pages that have to be compared, however long that takes; a minute at most
NAMES = ["t%d" % n for n in range(12)]


class World:
    """What the servers hold, now and at any time before: `versions` are (begin, state)."""

    def __init__(self, rng):
        self._rng, self._ids = rng, itertools.count(100)
        state = replay.make_state(tables=len(NAMES) - 2, partitions=3, name="t%d")
        self.versions = [(time.monotonic(), state)]
        self.lock = threading.Lock()

    @property
    def state(self):
        return self.versions[-1][1]

    def change(self):
        """A table comes, goes, comes again under another id, or moves its replicas; or a node."""
        state = copy.deepcopy(self.state)
        apps, nodes, rng = state["apps"], state["nodes"], self._rng
        what = rng.choice(("move", "move", "drop", "create", "again", "node"))
        if what == "node":
            node = rng.choice(nodes)
            node["status"] = "UNALIVE" if node["status"] == "ALIVE" else "ALIVE"
        elif what in ("drop", "again") and len(apps) > 3:
            app = apps.pop(rng.randrange(len(apps)))
            if what == "again":
                apps.append(dict(app, app_id=next(self._ids)))
        elif what == "create" and len(apps) < len(NAMES):
            name = next(one for one in NAMES if one not in {app["app_name"] for app in apps})
            like = copy.deepcopy(apps[0])
            apps.append(dict(like, app_name=name, app_id=next(self._ids)))
        else:
            row = rng.choice(rng.choice(apps)["partitions"])
            row["ballot"] += 1
            row["primary"] = rng.choice([None, *[node["address"] for node in nodes]])
        with self.lock:
            now = time.monotonic()
            while self.versions[0][0] < now - KEPT:
                del self.versions[0]
            self.versions.append((now, state))

    def between(self, begin, end):
        """All states that were there at some moment from `begin` to `end`."""
        with self.lock:
            versions = list(self.versions)
        ends = [since for since, _ in versions[1:]] + [float("inf")]
        return [state for (since, state), until in zip(versions, ends)
                if since <= end and until >= begin]


class Servers:
    """The three, and what can happen to them. `leader` is the number of one, or None."""

    def __init__(self, world, rng):
        self._world, self._rng, self.leader = world, rng, 0
        self.metas = [MetaAt(self._answers(n), self._fault) for n in range(3)]
        self._closed = set()

    def _answers(self, number):
        def answers(code, argument):
            with self._world.lock:  # nobody leads beside another
                leader = self.leader
                state = self._world.state
            if leader == number:
                return replay.synthetic(state)(code, argument)
            address = None if leader is None else self.metas[leader].address
            return replay.standby(address)(code, argument)
        return answers

    def _fault(self, pieces):
        kind = self._rng.random()
        time.sleep(self._rng.random() * 0.03)
        if kind < 0.02:
            return []
        if kind < 0.05:
            return [b"".join(pieces)[:self._rng.randrange(200)], CLOSE]
        if kind < 0.10:
            return replay.bytewise(pieces)
        if kind < 0.15:
            time.sleep(self._rng.random() * 0.5)
        return replay.reordered(pieces) if kind < 0.5 else pieces

    def forget(self):
        """What the fakes keep of every request and connection; it must not pass for a leak."""
        for meta in self.metas:
            del meta.requests[:]
            meta._threads[:] = [one for one in meta._threads if one.is_alive()]

    def disturb(self):
        number = self._rng.randrange(3)
        what = self._rng.choice(("cut", "leader", "nobody", "close", "open", "open"))
        if what == "cut":
            self.metas[number].drop()
        elif what == "close" and number != self.leader and number not in self._closed:
            self.metas[number].close()
            self._closed.add(number)
        elif what == "open":
            self.open()
        elif what == "nobody" and self._rng.random() < 0.2:
            self._lead(None)
        elif number not in self._closed:
            self._lead(number)

    def open(self):
        while self._closed:
            self.metas[self._closed.pop()].reopen()

    def heal(self):
        self.open()
        for meta in self.metas:
            meta.fault = None
        self._lead(1)

    def _lead(self, number):
        with self._world.lock:
            self.leader = number


# ---- how old an answer is -----------------------------------------------------------------------

class Read:
    """The answer to a question of the server's worker: from when till when it was asked for, and
    the moment of the oldest thing in it."""

    def __init__(self, key, began, ended, oldest):
        self.key, self.began, self.ended, self.oldest = key, began, ended, oldest


def watched(cluster):
    """A class of sources that keep what they have read. Until when an answer holds is `max_age`
    after its oldest part was asked for: it may be older than that by what one attempt may leave to
    the next. The pages of tables use the last list, whatever its age."""
    class Watched(cluster):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.reads, self.slowest = collections.deque(maxlen=5000), 0.0
            self.troubles, self._list = [], 0.0

        def read(self, key):
            began = time.monotonic()
            state, until = super().read(key)
            ended = time.monotonic()
            self.slowest = max(self.slowest, ended - began)
            if isinstance(state, ph.Cluster):
                read = Read(key, began, ended, until - MAX_AGE - 1e-6)
                least = began - MAX_AGE - UNFINISHED - 1e-5
                if key == "overview":
                    self._list = read.oldest
                else:
                    least = min(least, self._list)
                if read.oldest < least:
                    self.troubles.append(AssertionError("%s: %.3f s too old" % (
                        key, least - read.oldest)))
                self.reads.append(read)
            return state, until

        def oldest(self, keys, begin):
            """Of what a page may show that was asked for at `begin` and made of these answers: what
            came since then, or had come and still held. An answer counts as coming until the worker
            begins with the next."""
            oldest = begin - MAX_AGE
            for read in reversed(list(self.reads)):
                if read.key in keys:
                    oldest = min(oldest, read.oldest)
                if read.ended < begin:
                    break
            return oldest
    return Watched


# ---- what a page may show -----------------------------------------------------------------------

def page_of(state, target):
    return json.loads(ph.respond(cluster_of(state), "GET", target, flat=True).body)


def check_rows(page, key, pages):
    """Each row is that of one of the states; rows that all have are there, others none has not."""
    rows = page.get(key, {})
    everywhere = set.intersection(*[set(one.get(key, {})) for one in pages])
    for name, row in rows.items():
        assert any(row == one.get(key, {}).get(name) for one in pages), (key, name, row)
    assert everywhere <= set(rows), (key, everywhere - set(rows))


def may_miss(name, states):
    """Whether the table was away, or came again twice: the list is read again only once."""
    ids = {next((app["app_id"] for app in state["apps"] if app["app_name"] == name), None)
           for state in states}
    return None in ids or len(ids) > 2


def counts(state):
    """(node, table) -> replicas."""
    found = collections.Counter()
    for app in state["apps"]:
        for row in app["partitions"]:
            for address in (row["primary"], *row["secondaries"]):
                found[address, app["app_name"]] += address is not None
    return found


def check_counts(page, states):
    """Of each node: between what all tables had at least and what they had at most."""
    each = [counts(state) for state in states]
    sure = [name for name in NAMES if not may_miss(name, states)]
    for address, row in page["details"].items():
        least = sum(min(one[address, name] for one in each) for name in sure)
        most = sum(max(one[address, name] for one in each) for name in NAMES)
        assert least <= int(row["replica_count"]) <= most, (address, row, least, most)


def check(target, answer, states):
    """Whether `answer` is right if the cluster was in these states meanwhile."""
    if answer.status in (502, 503, 504):
        return
    table = target.partition("name=")[2].partition("&")[0]
    if answer.status == 404:
        assert table and may_miss(table, states), (target, answer)
        return
    assert answer.status == 200, answer
    if table:
        states = [state for state in states
                  if table in {app["app_name"] for app in state["apps"]}]
        assert answer.json in [page_of(state, target) for state in states], (target, answer.body)
        return
    pages = [page_of(state, target) for state in states]
    if target.startswith("/meta/apps"):
        check_rows(answer.json, "general_info", pages)
        check_rows(answer.json, "healthy_info", pages)
    elif target == "/meta/nodes?detail":
        check_counts(answer.json, states)
    else:
        assert answer.json in pages, (target, answer.body)


def keys_of(target):
    """The answers of the source that the page is made of."""
    name = target.partition("name=")[2].partition("&")[0]
    return {"overview", "table:" + name if name else "partitions"}


TARGETS = ["/meta/apps", "/meta/apps?detail", "/meta/nodes", "/meta/nodes?detail", "/meta/cluster",
           *["/meta/app?name=%s&detail" % name for name in NAMES]]


# ---- the run ------------------------------------------------------------------------------------

def repeat(work, goes_on, troubles, *arguments):
    """A thread that works while it is to go on; what goes wrong is kept."""
    def run():
        try:
            while goes_on() and not troubles:
                work(*arguments)
        except BaseException as error:
            troubles.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    return thread


class Run:
    """What is seen: answers by status, the slowest of them, of the control's, and of the source's.
    """

    def __init__(self):
        self.seen, self.lock = collections.Counter(), threading.Lock()
        self.slowest = self.control = self.read = self.grown = 0.0

    def ask(self, port, target, source, world):
        begin = time.monotonic()
        answer = support.get(port, target)
        end = time.monotonic()
        check(target, answer, world.between(source.oldest(keys_of(target), begin), end))
        with self.lock:
            self.seen[answer.status] += 1
            self.slowest = max(self.slowest, end - begin)
        time.sleep(0.02 if answer.status > 500 else 0.0)  # an error comes at once: not thousands

    def ask_control(self, port):
        """A page that needs no source: what it takes, the machine or the loop has spent."""
        begin = time.monotonic()
        time.sleep(0.02)
        assert support.get(port, "/").status == 200
        self.control = max(self.control, time.monotonic() - begin)

    def check_times(self):
        most = TIMEOUT + LATE + 2 * self.control
        assert self.slowest < most, "an answer came after %.2f s of %.2f" % (self.slowest, most)
        assert self.read < most, "the source took %.2f s of %.2f" % (self.read, most)

    def __str__(self):
        return ("answers by status: %s; slowest %.2f s, of the source %.2f s, of the control %.2f s"
                "; memory %+.1f MB" % (dict(self.seen), self.slowest, self.read, self.control,
                                       self.grown / 1e6))


def run(seconds, seed, clients=3, cluster=ph.LiveCluster):
    """A Run of so many seconds, longer if it has not seen enough; AssertionError for what must not
    be. cluster: the class of the source."""
    rng = random.Random(seed)
    world, result, troubles = World(rng), Run(), []
    servers = Servers(world, rng)
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    source = watched(cluster)([meta.address for meta in servers.metas], timeout=TIMEOUT,
                              max_age=MAX_AGE)

    def happen():
        time.sleep(rng.random() * 0.05)
        world.change()
        servers.forget()
        troubles.extend(source.troubles)
        if rng.random() < 0.1:
            servers.disturb()

    def ask(port):
        result.ask(port, rng.choice(TARGETS), source, world)

    def goes_on():
        now = time.monotonic()
        return now < until or (result.seen[200] < LEAST and now < until + 2 * support.PATIENCE)

    with unfinished(UNFINISHED), ph.StatusServer(
            source, role="meta", flat=True, timeout=TIMEOUT, max_age=MAX_AGE) as server:
        until = time.monotonic() + seconds
        threads = [repeat(happen, goes_on, troubles),
                   repeat(result.ask_control, goes_on, troubles, server.port)]
        threads += [repeat(ask, goes_on, troubles, server.port) for _ in range(clients)]
        used = memory(until - seconds / 2)
        for thread in threads:
            thread.join()
        result.read = source.slowest
        if troubles:
            raise troubles[0]
        servers.heal()
        for target in TARGETS:
            support.wait_until(lambda target=target: is_now(server.port, target, world.state),
                               target + " as it is now")
        result.grown = memory() - used
    for meta in servers.metas:
        support.wait_until(lambda meta=meta: meta.open == 0, "all connections are closed")
        meta.close()
    gc.collect()
    support.wait_until(lambda: threading.active_count() <= before[0] - 3, "all threads have ended")
    after = len(os.listdir("/proc/self/fd"))
    assert after <= before[1] - 3, "descriptors: %d, then %d" % (before[1] - 3, after)
    result.check_times()
    assert result.seen[200] >= LEAST, result
    assert result.grown < 30e6, result
    return result


@contextlib.contextmanager
def unfinished(seconds):
    """A read that ran out of time is continued for so long: the states it may show are few."""
    kept, ph._UNFINISHED_SECONDS = ph._UNFINISHED_SECONDS, seconds
    try:
        yield
    finally:
        ph._UNFINISHED_SECONDS = kept


def memory(at=0.0):
    """Of the process at that time, in bytes: the most it had until then."""
    time.sleep(max(0.0, at - time.monotonic()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_now(port, target, state):
    answer = support.get(port, target)
    if answer.status == 404:
        return "name=" in target and \
            target[len("/meta/app?name="):-len("&detail")] not in {
                app["app_name"] for app in state["apps"]}
    return answer.status == 200 and answer.json == page_of(state, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(run(options.seconds, options.seed))


if __name__ == "__main__":
    main()
