"""The model: what its constructors say and keep, how its pages are written, what is shared."""

import copy
import datetime
import decimal
import enum
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
import warnings

import pytest

import pegasus_http as ph
import support

TARGETS = ("/meta/apps", "/meta/apps?detail", "/meta/nodes", "/meta/nodes?detail", "/meta/cluster")


def body(state, target):
    return ph.respond(state, "GET", target, role="meta").body


def partitions(chance, addresses):
    rows = []
    for _ in range(chance.randrange(4)):
        replicas = chance.sample(addresses, chance.randrange(min(4, len(addresses) + 1)))
        primary = replicas.pop() if replicas and chance.random() < 0.9 else None
        rows.append(ph.Partition(chance.randrange(9), 3, primary, tuple(replicas)))
    return rows


def table(chance, app_id, addresses):
    known = chance.random() < 0.9
    return ph.App(
        app_id, "t%d" % app_id, partitions(chance, addresses) if known else None,
        None if known else 4, status=chance.choice(("AVAILABLE",) * 6 + ("DROPPED", "CREATING")),
    )


def changed(chance, state):
    """The same cluster but for a few tables and nodes."""
    addresses = [node.address for node in state.nodes] or ["10.0.0.1:1"]
    apps = list(state.apps)
    for _ in range(chance.randrange(4)):
        kind = chance.choice(("add", "change", "change", "drop", "move"))
        place = chance.randrange(len(apps)) if apps else 0
        if kind == "add" or not apps:
            free = set(range(1, 70)) - {app.app_id for app in apps}
            apps.insert(place, table(chance, chance.choice(sorted(free)), addresses))
        elif kind == "change":
            apps[place] = table(chance, apps[place].app_id, addresses)
        elif kind == "drop":
            del apps[place]
        else:
            apps.append(apps.pop(place))
    nodes = list(state.nodes)
    if chance.random() < 0.3:
        nodes = nodes[chance.randrange(2):] + [ph.Node("10.0.0.%d:1" % chance.randrange(100, 200))]
    return state._replace(apps=apps, nodes=dict.fromkeys(nodes))


@pytest.mark.parametrize("seed", range(20))
def test_a_page_is_the_same_whatever_was_served_before(seed):
    chance = random.Random(seed)
    state = support.cluster(tables=chance.randrange(40), nodes=6)
    server = ph.StatusServer(state, role="meta")
    for _ in range(60):
        for target in chance.sample(TARGETS, chance.randrange(len(TARGETS))):
            assert body(state, target) == body(ph.Cluster(*state), target), target
        state = changed(chance, state)
        server.publish(state)


def counts(state, address, target="/meta/nodes?detail"):
    row = json.loads(body(state, target).decode())["details"][address]
    return [int(row[key]) for key in ("replica_count", "primary_count", "secondary_count")]


@pytest.mark.parametrize("how", ["removed", "DROPPED", "CREATING"])
def test_a_dropped_table_has_no_replicas_any_more(how):
    address, before = "10.0.0.1:34801", support.cluster(tables=3, nodes=3)
    server = ph.StatusServer(before, role="meta")
    assert counts(before, address) == [12, 4, 8]
    one, two, three = before.apps
    left = [one, three] if how == "removed" else [one, two._replace(status=how), three]
    after, back = before._replace(apps=left), before._replace()
    server.publish(after)
    assert counts(after, address) == [8, 3, 5]
    assert list(json.loads(body(after, "/meta/apps").decode())["general_info"]) == ["1", "3"]
    kept = counts(before, address, "/meta/nodes?detail&pretty")  # a page not asked for before
    assert kept == [12, 4, 8], "the older state is not touched"
    server.publish(back)
    assert counts(back, address) == [12, 4, 8]


def test_equal_pages_have_equal_tags_and_others_do_not():
    def tag(state, target, *fields):
        answer = ph.respond(state, "GET", target, fields, role="meta")
        return dict(answer.headers)["ETag"]

    one, again = (support.cluster(tables=30, nodes=30) for _ in range(2))
    other = one._replace(apps=one.apps[:-1])
    server = ph.StatusServer(one, role="meta")
    server.publish(other)
    for target in TARGETS[:4]:
        plain, pretty = tag(one, target), tag(one, target + "&?"["?" not in target] + "pretty")
        assert len({plain, pretty, tag(one, target, ("Accept-Encoding", "gzip"))}) == 3
        assert tag(again, target) == plain
        assert (tag(other, target) == plain) == (body(other, target) == body(one, target))


# --- constructors --------------------------------------------------------------------------------


@pytest.mark.parametrize("length, shown", [(77, '"%s"' % ("a" * 77)), (78, '"%s"' % ("a" * 78)),
                                           (79, '"%s...' % ("a" * 76))])
def test_what_is_shown_has_80_characters(length, shown):
    with pytest.raises(ValueError, match="expected one of") as caught:
        ph.App(1, "t", status="a" * length)
    assert str(caught.value).rpartition(", got ")[2] == shown


class Text(str, enum.Enum):
    """As applications keep their constants: `str()` of a member is not its value."""

    ALIVE = "ALIVE"
    AVAILABLE = "AVAILABLE"
    ADDRESS = "10.0.0.1:34801"
    NAME = "temp"


ONE = ph.Partition(primary="10.0.0.1:34801")
LONELY = "\ud800"  # half of a surrogate pair: no UTF-8

ERRORS = [
    # App
    (lambda: ph.App("1", "t"), 'app_id: expected a whole number from 0 to 2147483647, got "1"'),
    (lambda: ph.App(True, "t"), "app_id: expected a whole number from 0 to 2147483647, got true"),
    (lambda: ph.App(2**31, "t"), "app_id: expected a whole number"),
    (lambda: ph.App(10**5000, "t"), "app_id: expected a whole number from 0 to 2147483647, got "),
    (lambda: ph.App(1, b"t"), "app_name: expected a string, got b't'"),
    (lambda: ph.App(1, LONELY), 'app_name: expected text that UTF-8 can encode, got "\\ud800"'),
    (lambda: ph.App(1, "t", 8), "partitions: expected Partition objects, got 8"),
    (lambda: ph.App(1, "t", "abc"), 'partitions: expected Partition objects, got "abc"'),
    (lambda: ph.App(1, "t", b"abc"), "partitions: expected Partition objects, got b'abc'"),
    (lambda: ph.App(1, "t", ph.Partition), "partitions: expected Partition objects, got <class"),
    (lambda: ph.App(1, "t", [None]), "partitions[0]: expected a Partition, got null"),
    (lambda: ph.App(1, "t", [ONE, {"ballot": 1}]),
     'partitions[1]: expected a Partition, got {"ballot":1}'),
    (lambda: ph.App(1, "t", [ONE], 2), "partition_count: expected 1, the number of partitions"),
    (lambda: ph.App(1, "t", None, "8"), 'partition_count: expected a whole number'),
    (lambda: ph.App(1, "t", None, -1), 'partition_count: expected a whole number'),
    (lambda: ph.App(1, "t", max_replica_count=None), "max_replica_count: expected a whole number"),
    (lambda: ph.App(1, "t", status="available"), "status: expected one of INVALID, AVAILABLE, "),
    (lambda: ph.App(1, "t", status=None), "status: expected one of INVALID, AVAILABLE, "),
    (lambda: ph.App(1, "t", status=["AVAILABLE"]), "status: expected one of INVALID, AVAILABLE, "),
    (lambda: ph.App(1, "t", app_type=None), "app_type: expected a string, got null"),
    (lambda: ph.App(1, "t", is_stateful="true"), 'is_stateful: expected true or false, got "true"'),
    (lambda: ph.App(1, "t", envs=None), "envs: expected a mapping of strings, got null"),
    (lambda: ph.App(1, "t", envs="a=b"), 'envs: expected a mapping of strings, got "a=b"'),
    (lambda: ph.App(1, "t", envs=["a=b"]), 'envs: expected a mapping of strings, got ["a=b"]'),
    (lambda: ph.App(1, "t", envs=[("a", "b"), ("a",)]), "envs: expected a mapping of strings"),
    (lambda: ph.App(1, "t", envs={"a": 1}), 'envs["a"]: expected a string, got 1'),
    (lambda: ph.App(1, "t", envs={1: "a"}), "envs: expected a string, got 1"),
    (lambda: ph.App(1, "t", create_second=-1), "create_second: expected a whole number"),
    (lambda: ph.App(1, "t", drop_second=1.5), "drop_second: expected a whole number"),
    (lambda: ph.App(1, "t", expire_second=2**63), "expire_second: expected a whole number"),
    (lambda: ph.App(1, "t")._replace(app_name=17), "app_name: expected a string, got 17"),
    # Partition, as App sees it
    *[(lambda fields=fields: ph.App(1, "t", [ONE, ph.Partition(**fields)]), "partitions[1]." + text)
      for fields, text in (
        ({"ballot": -2}, "ballot: expected a whole number from -1 to 9223372036854775807, got -2"),
        ({"ballot": None}, "ballot: expected a whole number"),
        ({"ballot": 2**63}, "ballot: expected a whole number"),
        ({"max_replica_count": "3"}, "max_replica_count: expected a whole number"),
        ({"primary": ""}, 'primary: expected "host:port" or null, got ""'),
        ({"primary": "a"}, 'primary: expected "host:port" or null, got "a"'),
        ({"primary": "a:0"}, 'primary: expected "host:port" or null, got "a:0"'),
        ({"primary": "a:65536"}, 'primary: expected "host:port" or null, got "a:65536"'),
        ({"primary": "a b:1"}, 'primary: expected "host:port" or null, got "a b:1"'),
        ({"primary": "a:1\n"}, 'primary: expected "host:port" or null, got "a:1\\n"'),
        ({"primary": ("a", 1)}, "primary: expected \"host:port\" or null, got ('a', 1)"),
        ({"primary": ["a", 1]}, 'primary: expected "host:port" or null, got ["a",1]'),
        ({"secondaries": "a:1"}, 'secondaries: expected a tuple or list of "host:port", got "a:1"'),
        ({"secondaries": None}, 'secondaries: expected a tuple or list of "host:port", got null'),
        ({"secondaries": {"a:1"}}, "secondaries: expected a tuple or list of "),
        ({"secondaries": ("a:1", 17)}, 'secondaries[1]: expected "host:port", got 17'),
        ({"secondaries": ["a:1", None]}, 'secondaries[1]: expected "host:port", got null'),
    )],
    # Cluster
    (lambda: ph.Cluster(17), "apps: expected App objects, got 17"),
    (lambda: ph.Cluster(None), "apps: expected App objects, got null"),
    (lambda: ph.Cluster("apps"), 'apps: expected App objects, got "apps"'),
    (lambda: ph.Cluster({"t": ph.App(1, "t")}), 'apps[0]: expected an App, got "t"'),
    (lambda: ph.Cluster([(1, "t")]), "apps[0]: expected an App, got (1, 't')"),
    (lambda: ph.Cluster(ph.App(1, "t")), "apps: expected App objects, got App("),
    (lambda: ph.Cluster([ph.App(1, "a"), ph.App(2, "b"), ph.App(1, "c")]),
     "apps[2].app_id: 1 is already used by apps[0]"),
    (lambda: ph.Cluster([ph.App(1, "a")] * 2), "apps[1].app_id: 1 is already used by apps[0]"),
    (lambda: ph.Cluster([ph.App(1, "a"), ph.App(2, "\xe9"), ph.App(3, "\xe9", status="CREATING")]),
     'apps[2].app_name: "\xe9" is already used by apps[1]'),
    (lambda: ph.Cluster(nodes=None), "nodes: expected Node objects, got null"),
    (lambda: ph.Cluster(nodes=["a:1"]), 'nodes[0]: expected a Node, got "a:1"'),
    (lambda: ph.Cluster(nodes=[ph.Node("a")]), 'nodes[0].address: expected "host:port", got "a"'),
    (lambda: ph.Cluster(nodes=[ph.Node(None)]), 'nodes[0].address: expected "host:port", got null'),
    (lambda: ph.Cluster(nodes=[ph.Node("a:1", "DEAD")]),
     'nodes[0].status: expected one of ALIVE, UNALIVE, got "DEAD"'),
    (lambda: ph.Cluster(nodes=[ph.Node("a:1")] * 2),
     'nodes[1].address: "a:1" is already used by nodes[0]'),
    (lambda: ph.Cluster(meta_servers=None), 'meta_servers: expected texts "host:port", or one'),
    (lambda: ph.Cluster(meta_servers=17), 'meta_servers: expected texts "host:port", or one text'),
    (lambda: ph.Cluster(meta_servers=b"a:1"), 'meta_servers: expected texts "host:port", or one'),
    (lambda: ph.Cluster(meta_servers=["a:1", 2]), "meta_servers[1]: expected a string, got 2"),
    (lambda: ph.Cluster(balance_operation_count=(1, 2)),
     "balance_operation_count: expected three whole numbers (move_pri, copy_pri, copy_sec), or a "
     "text, got (1, 2)"),
    (lambda: ph.Cluster(balance_operation_count=17), "balance_operation_count: expected three"),
    (lambda: ph.Cluster(balance_operation_count=None), "balance_operation_count: expected three"),
    (lambda: ph.Cluster(balance_operation_count=(1, 2, "3")),
     'balance_operation_count[2]: expected a whole number from 0 to 2147483647, got "3"'),
    *[(lambda name=name: ph.Cluster(**{name: 17}), name + ": expected a string, got 17")
      for name in ph.Cluster._fields[3:] if name != "balance_operation_count"],
    *[(lambda name=name: ph.Cluster(**{name: None}), name + ": expected a string, got null")
      for name in ph.Cluster._fields[3:7]],
    (lambda: ph.Cluster(version=datetime.date(2019, 8, 2)),
     "version: expected a string, got datetime.date(2019, 8, 2)"),
    (lambda: ph.Cluster(zookeeper_root=["/" * 99]), 'zookeeper_root: expected a string, got ["///'),
    (lambda: ph.Cluster(zookeeper_root=[decimal.Decimal(1)]),
     "zookeeper_root: expected a string, got [Decimal('1')]"),
    (lambda: ph.Cluster()._replace(apps=17), "apps: expected App objects, got 17"),
    # Standby
    (lambda: ph.Standby(17), 'primary: expected "host:port" or null, got 17'),
    (lambda: ph.Standby("a/b:1"), 'primary: expected "host:port" or null, got "a/b:1"'),
    (lambda: ph.Standby("a:1")._replace(primary="\r\n"), 'primary: expected "host:port" or null'),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_a_constructor_says_which_field_is_wrong(number):
    call, text = ERRORS[number]
    with pytest.raises(ValueError, match="^" + re.escape(text)) as raised:
        call()
    said = str(raised.value)
    assert len(said.rpartition("got ")[2]) <= 80
    said.encode("utf-8")


def test_what_is_nearly_right_is_brought_into_form():
    one = ph.Partition(3, None, Text.ADDRESS, [Text.ADDRESS, "10.0.0.2:34801"])
    app = ph.App(1, Text.NAME, iter([one]), status=Text.AVAILABLE, app_type=Text.NAME,
                 envs=[["b", Text.NAME], ("a", "1")])
    exact = ph.Partition(3, None, "10.0.0.1:34801", ("10.0.0.1:34801", "10.0.0.2:34801"))
    assert app == ph.App(1, "temp", [exact], 1, 3, "AVAILABLE", "temp", True,
                         {"a": "1", "b": "temp"})
    nodes = [ph.Node(Text.ADDRESS, Text.ALIVE), ph.Node("10.0.0.2:34801")]
    state = ph.Cluster([app], nodes, [Text.ADDRESS, "a:1"], balance_operation_count=[1, 2, 3],
                       zookeeper_root=Text.NAME)
    fields = (*app, *app.envs[1], exact.primary, *app.partitions[0].secondaries, *state.nodes[0],
              *state[2:8])
    assert {type(field) for field in fields if isinstance(field, str)} == {str}
    assert state[2] == "10.0.0.1:34801,a:1"
    assert state[7] == "move_pri=1,copy_pri=2,copy_sec=3,total=6"
    assert type(ph.Standby(Text.ADDRESS).primary) is str
    assert counts(state, "10.0.0.1:34801") == [2, 1, 1]
    hash(state)
    for target in (*TARGETS, "/meta/app?name=temp&detail"):
        assert b"Text." not in body(state, target)


def odd():
    """What the checks refuse, as it may come from a live cluster."""
    apps = [
        ph.App._unchecked(1, "", (), 0, envs=(("b", "2"), ("a", "1"))),
        ph.App._unchecked(2, "twin", (ONE,), 1, create_second=2**62),
        ph.App._unchecked(app_id=3, app_name="twin", partitions=None, partition_count=4),
    ]
    return ph.Cluster._unchecked(tuple(apps), (ph.Node("10.0.0.1:34801"),), cluster_name="c")


def test_odd_data_of_a_live_cluster_is_shown():
    page = json.loads(body(odd(), "/meta/apps?detail"))
    assert [row["app_name"] for row in page["general_info"].values()] == ["", "twin", "twin"]
    assert page["general_info"]["2"]["create_time"] == "-"
    assert list(page["healthy_info"]) == ["1", "2"]
    assert json.loads(body(odd(), "/meta/app?name=twin"))["general"]["app_id"] == "2"
    with pytest.raises(ValueError, match="^create_second: expected a whole number"):
        odd().apps[1]._replace(app_id=4)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy,
                                    lambda state: pickle.loads(pickle.dumps(state))])
@pytest.mark.parametrize("made", [odd, support.cluster])
def test_copies_are_equal_and_hold_nothing_computed(copied, made):
    state, size = made(), len(pickle.dumps(made()))
    pages = [body(state, target) for target in TARGETS]
    assert len(pickle.dumps(state)) == size
    again = copied(state)
    assert (again, hash(again), type(again)) == (state, hash(state), ph.Cluster)
    assert [body(again, target) for target in TARGETS] == pages


# --- writing -------------------------------------------------------------------------------------


def text(chance):
    letters = 'abc 07"\\\n\u2028\xe9\U0001f600/<'
    return "".join(chance.choice(letters) for _ in range(chance.randrange(6)))


def value(chance, depth=3):
    kind = chance.randrange(5 if depth else 3)
    if kind == 3:
        return {text(chance): value(chance, depth - 1) for _ in range(chance.randrange(4))}
    if kind == 4:
        return [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return (text(chance), chance.choice((None, True, 7, -1.5)), {})[kind]


def rows(chance):
    """(a long object in parts, the same as one dict)."""
    whole, parts = {}, []
    for number in range(chance.randrange(5)):
        part = {"%d %s" % (number, text(chance)): value(chance) for _ in range(1 + number % 3)}
        whole.update(part)
        parts.append(json.dumps(part, ensure_ascii=False, separators=(",", ":"))[1:-1])
    return iter(parts), whole


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("pretty", [False, True])
def test_pieces_joined_are_what_json_makes_of_the_page(seed, pretty):
    chance = random.Random(seed)
    page, expected = {}, {}
    for number in range(chance.randrange(5)):
        key = "%d %s" % (number, text(chance))
        page[key], expected[key] = rows(chance) if chance.random() < 0.5 else (value(chance),) * 2
    how = {"indent": 4} if pretty else {"separators": (",", ":")}
    whole = json.dumps(expected, ensure_ascii=False, **how)
    assert "".join(ph._write_page(page, pretty)) == whole
    listed = json.dumps([expected], ensure_ascii=False, **how)
    assert "".join(ph._write_page([expected], pretty)) == listed


@pytest.mark.parametrize("target", [*TARGETS, "/meta/app?name=table1&detail", "/", "/health"])
@pytest.mark.parametrize("state", [ph.Cluster([ph.App(1, "table1", [])]),
                                   support.cluster(tables=150, partitions=200, nodes=150)])
def test_an_indented_page_says_the_same(state, target):
    pretty = body(state, target + "&?"["?" not in target] + "pretty").decode()
    assert pretty == json.dumps(json.loads(body(state, target)), indent=4) + "\n"


def settings(role="meta"):
    return ph._Settings(role, None, None, False, True, "")


BIG = support.cluster(tables=1, partitions=5000, nodes=5000, replicas=3)
MANY = support.cluster(tables=2000, partitions=5, nodes=9)
WORK = {
    "checks of partitions": lambda: ph.App(1, "t", BIG.apps[0].partitions),
    "checks of tables": lambda: ph.Cluster(MANY.apps),
    "unchecked tables": lambda: ph.Cluster._unchecked(MANY.apps),
    "one table": lambda: ph._write_page(page_of("/meta/app", BIG), False),
    "one table, indented": lambda: ph._write_page(page_of("/meta/app", BIG), True),
    "tables": lambda: ph._write_page(page_of("/meta/apps", MANY), False),
    "tables, indented": lambda: ph._write_page(page_of("/meta/apps", MANY), True),
    "health of a large one": lambda: ph._write_page(page_of("/meta/apps", BIG), False),
    "nodes": lambda: ph._write_page(page_of("/meta/nodes", BIG), False),
    "replicas": lambda: ph._write_page(page_of("/meta/nodes", MANY), False),
    "deviations": lambda: ph._write_page(page_of("/meta/cluster", MANY), False),
}


def page_of(path, state):
    query = ph._Query(name="table1", detail=True)
    return ph.ROUTES[path].page(ph.Cluster(*state), query, settings())


@pytest.mark.parametrize("work", WORK)
def test_long_work_lets_other_threads_run(work, monkeypatch):
    """With a clock that goes on by 1 ms at each look, and whenever a pause may be due."""
    clock, pauses, looks = [0.0], [], []

    def look():
        looks.append(clock[0])
        clock[0] += 0.001
        return clock[0]

    monkeypatch.setattr(time, "thread_time", look)
    monkeypatch.setattr(time, "sleep", pauses.append)
    pieces = WORK[work]()
    assert len(looks) >= 9, "hardly ever asked whether a pause is due"
    assert len(pauses) >= len(looks) / 5
    assert max(pauses) <= 0.001
    if isinstance(pieces, list):
        assert max(map(len, pieces)) <= 40000


def test_a_thread_that_computes_little_does_not_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "thread_time", lambda: ph._BURST.began)
    monkeypatch.setattr(time, "sleep", pauses.append)
    body(support.cluster(), "/meta/apps?detail")
    assert not pauses


# --- threads and forks ---------------------------------------------------------------------------


def test_threads_may_compute_the_same_pages_at_once():
    interval, targets = sys.getswitchinterval(), (*TARGETS, "/meta/app?name=table1&detail")
    pages, expected = [], []

    def compute(state, barrier, targets):
        barrier.wait(support.PATIENCE)
        pages.append({target: body(state, target) for target in targets})

    sys.setswitchinterval(1e-6)
    try:
        for seed in range(10):
            state = support.cluster(tables=40, partitions=20, nodes=9, changed=seed)
            barrier = threading.Barrier(4)
            orders = [targets[n:] + targets[:n] for n in range(4)]
            threads = [threading.Thread(target=compute, args=(state, barrier, order))
                       for order in orders]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            fresh = support.cluster(tables=40, partitions=20, nodes=9, changed=seed)
            expected += [{target: body(fresh, target) for target in targets}] * 4
    finally:
        sys.setswitchinterval(interval)
    assert pages == expected


FORK = """
import os, signal, sys, threading, warnings
import pegasus_http as ph, support
warnings.simplefilter("ignore")
states, answers = [support.cluster(tables=99, partitions=8)], []
def page(state, target):
    return ph.respond(state, "GET", target).body
def compute():
    while True:
        state = states[-1] = ph.Cluster(*states[-1])
        for target in ("/meta/nodes?detail", "/meta/apps?detail", "/meta/app?name=table1&detail"):
            page(state, target)
page(states[0], "/meta/apps")
sys.setswitchinterval(1e-5)
threading.Thread(target=compute, daemon=True).start()
for n in range(20):
    child = os.fork()
    if not child:
        signal.alarm(int(sys.argv[1]))
        for target in ("/meta/nodes?detail", "/meta/apps?detail", "/meta/app?name=table1&detail"):
            page(states[-1], target)
        os._exit(0)
    answers.append(os.waitpid(child, 0)[1])
print(answers)
"""


def test_a_child_forked_while_a_page_is_computed_computes_its_own():
    here = os.path.dirname(os.path.abspath(__file__))
    env = support.environment()
    env["PYTHONPATH"] += os.pathsep + here
    done = subprocess.run([sys.executable, "-c", FORK, "%d" % support.PATIENCE], env=env,
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("%s\n" % ([0] * 20), "")


# --- the start of the process --------------------------------------------------------------------


def test_the_start_is_that_of_the_process():
    assert support.host(
        "import os, time, pegasus_http as ph\n"
        "import_to_now = time.monotonic() - ph._IMPORTED\n"
        "print(ph._process_start(os.getpid()) < time.time() - import_to_now)") == "True\n"
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # another test may have left a thread
        child = os.fork()
    if not child:
        os.write(write, repr(ph._process_start(os.getpid())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    started = float(os.read(read, 100))
    os.close(read), os.close(write)
    assert ph._process_start(os.getpid()) < started <= time.time()


@pytest.mark.parametrize("stat", [
    None, b"", b"1 (x) S", b"1 (x) S " + b"x " * 50, b"1 (x) S " + b"1 " * 18 + b"9" * 17 + b" 0",
    b"1 (x) S " + b"-9" * 30,
], ids=["no /proc", "empty", "short", "letters", "in the future", "one number"])
def test_without_a_sensible_proc_the_start_is_that_of_the_import(stat, monkeypatch):
    def opened(path, mode):
        if stat is None:
            raise FileNotFoundError(path)
        return io.BytesIO(stat)

    monkeypatch.setattr(ph, "open", opened, raising=False)
    start = ph._process_start.__wrapped__
    imported = time.time() - (time.monotonic() - ph._IMPORTED)
    assert abs(start(os.getpid()) - imported) < 5
