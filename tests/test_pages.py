"""What the pages show of a given state. Pages of real clusters are in test_recordings.py."""

import calendar
import json
import subprocess
import sys
import time

import pytest

import pegasus_http as ph
import support
from marks import needs_proc

A, B, C, D, E = ("10.0.0.%d:34801" % n for n in range(1, 6))
STATUSES = ("INVALID", "AVAILABLE", "CREATING", "CREATE_FAILED", "DROPPING", "DROP_FAILED",
            "DROPPED", "RECALLING")


# ---- helpers ------------------------------------------------------------------------------------

def body(state, target, **settings):
    answer = ph.respond(state, "GET", target, **settings)
    assert answer.status == 200, answer
    return answer.body.decode("utf-8")


def page(state, target, **settings):
    return json.loads(body(state, target, **settings))


def error(state, target, **settings):
    """(status, error code) and the hint."""
    answer = ph.respond(state, "GET", target, **settings)
    content = json.loads(answer.body.decode("utf-8"))
    assert list(content) == ["error", "hint_message"]
    return (answer.status, content["error"]), content["hint_message"]


def table(*partitions, app_id=1, app_name="t", **fields):
    return ph.App(app_id, app_name, partitions, **fields)


def cluster(*apps, nodes=(A, B, C), **info):
    return ph.Cluster(apps, [node if isinstance(node, ph.Node) else ph.Node(node)
                             for node in nodes], **info)


def detail(*partitions, **fields):
    """The detail page of one table."""
    return page(cluster(table(*partitions, **fields)), "/meta/app?name=t&detail")


# ---- whole pages --------------------------------------------------------------------------------

def onebox():
    """Two partitions, one of them without a primary; all that a page can show."""
    return ph.Cluster(
        [ph.App(8, "temp", [ph.Partition(7, 3, A, (C, B)), ph.Partition(9, 3, None, (B,))],
                max_replica_count=3, envs={"rocksdb.a": "1", "b": "2"}, create_second=1564466666)],
        [ph.Node(B, "UNALIVE"), ph.Node(A), ph.Node(C)],
        meta_servers=["10.0.0.1:34601", "10.0.0.2:34601"], primary_meta_server="10.0.0.1:34601",
        zookeeper_hosts="127.0.0.1:22181", zookeeper_root="/pegasus/onebox",
        meta_function_level="steady", balance_operation_count=(1, 2, 4),
        version="2.5.0", git_commit="abc",
    )


GENERAL = ('"general":{"app_name":"temp","app_id":"8","partition_count":"2",'
           '"max_replica_count":"3"}')
INFO = ('"general_info":{"8":{"app_id":"8","status":"AVAILABLE","app_name":"temp",'
        '"app_type":"pegasus","partition_count":"2","replica_count":"3","is_stateful":"true",'
        '"create_time":"2019-07-30 06:04:26.000","drop_time":"-","drop_expire":"-",'
        '"envs_count":"2"}}')
COUNTS = '"summary":{"total_node_count":"3","alive_node_count":"2","unalive_node_count":"1"}'
PAGES = {
    "/version": '{"Version":{"Version":"2.5.0","GitCommit":"abc"}}',
    "/health": '{"status":"ok","role":"meta","primary":"true"}',
    "/meta/app?name=temp": "{%s}" % GENERAL,
    "/meta/app?name=temp&detail":
        '{%s,"replicas":{'
        '"0":{"pidx":"0","ballot":"7","replica_count":"3/3","primary":"10.0.0.1:34801",'
        '"secondaries":"[10.0.0.3:34801,10.0.0.2:34801]"},'
        '"1":{"pidx":"1","ballot":"9","replica_count":"1/3","primary":"-",'
        '"secondaries":"[10.0.0.2:34801]"}},'
        '"nodes":{'
        '"10.0.0.1:34801":{"node":"10.0.0.1:34801","primary":"1","secondary":"0","total":"1"},'
        '"10.0.0.2:34801":{"node":"10.0.0.2:34801","primary":"0","secondary":"2","total":"2"},'
        '"10.0.0.3:34801":{"node":"10.0.0.3:34801","primary":"0","secondary":"1","total":"1"},'
        '"total":{"node":"total","primary":"1","secondary":"3","total":"4"}},'
        '"healthy":{"fully_healthy_partition_count":"1","unhealthy_partition_count":"1",'
        '"write_unhealthy_partition_count":"1","read_unhealthy_partition_count":"1"}}' % GENERAL,
    "/meta/apps": '{%s,"summary":{"total_app_count":"1"}}' % INFO,
    "/meta/apps?detail":
        '{%s,"healthy_info":{"8":{"app_id":"8","app_name":"temp","partition_count":"2",'
        '"fully_healthy":"1","unhealthy":"1","write_unhealthy":"1","read_unhealthy":"1"}},'
        '"summary":{"total_app_count":"1","fully_healthy_app_count":"0","unhealthy_app_count":"1",'
        '"write_unhealthy_app_count":"1","read_unhealthy_app_count":"1"}}' % INFO,
    "/meta/nodes":
        '{"details":{"10.0.0.1:34801":{"address":"10.0.0.1:34801","status":"ALIVE"},'
        '"10.0.0.2:34801":{"address":"10.0.0.2:34801","status":"UNALIVE"},'
        '"10.0.0.3:34801":{"address":"10.0.0.3:34801","status":"ALIVE"}},%s}' % COUNTS,
    "/meta/nodes?detail":
        '{"details":{"10.0.0.1:34801":{"address":"10.0.0.1:34801","status":"ALIVE",'
        '"replica_count":"1","primary_count":"1","secondary_count":"0"},'
        '"10.0.0.2:34801":{"address":"10.0.0.2:34801","status":"UNALIVE",'
        '"replica_count":"2","primary_count":"0","secondary_count":"2"},'
        '"10.0.0.3:34801":{"address":"10.0.0.3:34801","status":"ALIVE",'
        '"replica_count":"1","primary_count":"0","secondary_count":"1"}},%s}' % COUNTS,
    "/meta/cluster":
        '{"cluster_info":{"meta_servers":"10.0.0.1:34601,10.0.0.2:34601",'
        '"primary_meta_server":"10.0.0.1:34601","zookeeper_hosts":"127.0.0.1:22181",'
        '"zookeeper_root":"/pegasus/onebox","meta_function_level":"steady",'
        '"balance_operation_count":"move_pri=1,copy_pri=2,copy_sec=4,total=7",'
        '"primary_replica_count_stddev":"0.50","total_replica_count_stddev":"0.00"}}',
    "/meta/app_envs?name=temp": '{"b":"2","rocksdb.a":"1"}',
}


@pytest.mark.parametrize("target", PAGES)
def test_whole_page(target):
    with support.time_zone("UTC0"):
        assert body(onebox(), target) == PAGES[target] + "\n"


@pytest.mark.parametrize("target", PAGES)
def test_pretty_is_the_same_with_an_indent_of_four(target):
    with support.time_zone("UTC0"):
        text = body(onebox(), target + "?&"["?" in target] + "pretty")
    assert text == json.dumps(json.loads(PAGES[target]), indent=4) + "\n"


def test_pretty_to_the_letter():
    expected = '{\n    "Version": {\n        "Version": "1",\n        "GitCommit": "Ü"\n    }\n}\n'
    assert body(None, "/version?pretty", version="1", git_commit="Ü") == expected


LIST_TARGETS = ("/meta/apps", "/meta/apps?detail", "/meta/nodes", "/meta/nodes?detail")
NO_NODES = '"summary":{"total_node_count":"0","alive_node_count":"0","unalive_node_count":"0"}'


@pytest.mark.parametrize("target, expected", [
    ("/meta/apps", '{"general_info":{},"summary":{"total_app_count":"0"}}'),
    ("/meta/apps?detail", '{"general_info":{},"summary":{"total_app_count":"0"}}'),
    ("/meta/nodes", '{"details":{},%s}' % NO_NODES),
    ("/meta/nodes?detail", '{"details":{},%s}' % NO_NODES),
    ("/meta/cluster",
     '{"cluster_info":{"meta_servers":"","primary_meta_server":"","zookeeper_hosts":"",'
     '"zookeeper_root":"","meta_function_level":"lively",'
     '"balance_operation_count":"move_pri=0,copy_pri=0,copy_sec=0,total=0",'
     '"primary_replica_count_stddev":"0.00","total_replica_count_stddev":"0.00"}}'),
])
def test_empty_cluster(target, expected):
    assert body(ph.Cluster(), target) == expected + "\n"


@pytest.mark.parametrize("target, flat", [
    ("/version", {"Version": "2.5.0", "GitCommit": "abc"}),
    ("/startTime", None), ("/recentStartTime", None), ("/meta/cluster", None),
])
def test_flat_pages_have_no_wrapper(target, flat):
    wrapper = {"/version": "Version", "/meta/cluster": "cluster_info"}
    wrapped = page(onebox(), target)
    ours = page(onebox(), target, flat=True)
    assert wrapped == {wrapper.get(target, "RecentStartTime"): ours}
    assert flat in (None, ours)


@pytest.mark.parametrize("target", ["/", "/health", "/meta/app?name=temp&detail", *LIST_TARGETS])
def test_other_pages_are_the_same_when_flat(target):
    assert body(onebox(), target, flat=True) == body(onebox(), target)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, 257, 1100])
def test_long_pages(count):
    """However a long page is put together, each row is there once and in order."""
    addresses = ["10.1.%d.%d:1" % divmod(n, 250) for n in range(count)]
    rows = [ph.Partition(n, 1, addresses[n]) for n in range(count)]
    apps = [table(app_id=n, app_name="t%d" % n) for n in range(count, 1, -1)]
    state = cluster(table(*rows), *apps, nodes=reversed(addresses))
    numbers = [str(n) for n in range(count)]
    details = page(state, "/meta/app?name=t&detail")
    assert list(details["replicas"]) == numbers
    assert [row["ballot"] for row in details["replicas"].values()] == numbers
    assert list(details["nodes"]) == [*addresses, "total"]
    assert details["nodes"]["total"]["total"] == str(count)
    tables = page(state, "/meta/apps?detail")
    ids = [str(n) for n in range(1, count + 1)]
    assert list(tables["general_info"]) == list(tables["healthy_info"]) == ids
    assert tables["summary"]["total_app_count"] == str(count)
    assert tables["summary"]["fully_healthy_app_count"] == str(count)
    assert list(page(state, "/meta/nodes?detail")["details"]) == addresses
    for target in ("/meta/app?name=t&detail", *LIST_TARGETS):
        plain = body(state, target)
        assert plain == json.dumps(json.loads(plain), separators=(",", ":")) + "\n"
        pretty = body(state, target + "?&"["?" in target] + "pretty")
        assert pretty == json.dumps(json.loads(plain), indent=4) + "\n"


@pytest.mark.parametrize("name, target", [
    ("表-ü", "%E8%A1%A8-%C3%BC"), ("a b", "a%20b"), ("a+b", "a+b"), ("a%20b", "a%2520b"),
    ('q"uo\\te/<&>\'', "q%22uo%5Cte%2F%3C%26%3E%27"), ("tab\tnl\n\x01\x7f", "tab%09nl%0A%01%7F"),
    ("\U0001f40e", "%F0%9F%90%8E"), ("general", "general"), ("=", "="),
])
def test_names_of_tables(name, target):
    state = cluster(table(app_name=name, app_type=name, envs={name: name}))
    assert page(state, "/meta/app?name=" + target)["general"]["app_name"] == name
    row = page(state, "/meta/apps")["general_info"]["1"]
    assert (row["app_name"], row["app_type"]) == (name, name)
    assert page(state, "/meta/apps?detail")["healthy_info"]["1"]["app_name"] == name
    text = json.dumps(name, ensure_ascii=False)
    assert '"app_name":%s,' % text in body(state, "/meta/apps"), "no escapes but for what needs one"


# ---- health -------------------------------------------------------------------------------------

# What it should have, its primary, its secondaries: (fully, write-, read-) healthy, replica count.
HEALTH = [
    (3, A, (B, C), (1, 0, 0), "3/3"),
    (3, A, (B, C, D), (1, 0, 0), "4/3"),
    (3, A, (B,), (0, 0, 0), "2/3"),
    (3, A, (), (0, 1, 0), "1/3"),
    (3, None, (B, C), (0, 1, 1), "2/3"),
    (3, None, (B, C, D), (0, 1, 1), "3/3"),
    (3, None, (), (0, 1, 1), "0/3"),
    (2, A, (B,), (1, 0, 0), "2/2"),
    (2, A, (), (0, 1, 0), "1/2"),
    (2, None, (B, C), (0, 1, 1), "2/2"),
    (1, A, (), (1, 0, 0), "1/1"),
    (1, A, (B,), (1, 0, 0), "2/1"),
    (1, None, (), (0, 1, 1), "0/1"),
    (1, None, (B,), (0, 1, 1), "1/1"),
    (5, A, (B, C, D), (0, 0, 0), "4/5"),
    (5, A, (B,), (0, 0, 0), "2/5"),
    (5, A, (), (0, 1, 0), "1/5"),
    (0, A, (), (1, 0, 0), "1/0"),
    (0, None, (), (0, 1, 1), "0/0"),
]


@pytest.mark.parametrize("maximum, primary, secondaries, healthy, count", HEALTH)
@pytest.mark.parametrize("own", [True, False])
def test_health_of_a_partition(maximum, primary, secondaries, healthy, count, own):
    """The figure of what it should have is its own, or else the table's."""
    row = ph.Partition(0, maximum if own else None, primary, secondaries)
    app = table(row, max_replica_count=4 if own else maximum)
    state = cluster(app)
    details = page(state, "/meta/app?name=t&detail")
    fully, write, read = healthy
    assert details["healthy"] == {
        "fully_healthy_partition_count": str(fully),
        "unhealthy_partition_count": str(1 - fully),
        "write_unhealthy_partition_count": str(write),
        "read_unhealthy_partition_count": str(read),
    }
    assert details["replicas"]["0"]["replica_count"] == count
    assert details["general"]["max_replica_count"] == str(maximum)
    tables = page(state, "/meta/apps?detail")
    assert tables["healthy_info"]["1"] == {
        "app_id": "1", "app_name": "t", "partition_count": "1", "fully_healthy": str(fully),
        "unhealthy": str(1 - fully), "write_unhealthy": str(write), "read_unhealthy": str(read),
    }
    assert tables["summary"] == {
        "total_app_count": "1", "fully_healthy_app_count": str(fully),
        "unhealthy_app_count": str(1 - fully), "write_unhealthy_app_count": str(write),
        "read_unhealthy_app_count": str(read),
    }


def test_health_is_counted():
    rows = [ph.Partition(0, maximum, primary, secondaries)
            for maximum, primary, secondaries, _, _ in HEALTH]
    fully, write, read = (sum(row[3][n] for row in HEALTH) for n in range(3))
    expected = [str(n) for n in (fully, len(rows) - fully, write, read)]
    assert list(detail(*rows)["healthy"].values()) == expected
    tables = page(cluster(table(*rows)), "/meta/apps?detail")
    assert list(tables["healthy_info"]["1"].values())[2:] == [str(len(rows)), *expected]
    assert list(tables["summary"].values()) == ["1", "0", "1", "1", "1"]


def test_health_of_several_tables():
    good, low, single, lost = (ph.Partition(0, 3, primary, secondaries) for primary, secondaries in
                               ((A, (B, C)), (A, (B,)), (A, ()), (None, (B, C))))
    rows = [(good, good), (good, low), (good, single), (single, single), (good, lost), (), (good,)]
    state = cluster(*(table(*some, app_id=n, app_name=str(n)) for n, some in enumerate(rows, 1)))
    tables = page(state, "/meta/apps?detail")
    found = [list(row.values())[3:] for row in tables["healthy_info"].values()]
    assert found == [list(one) for one in ("2000", "1100", "1110", "0220", "1111", "0000", "1000")]
    assert tables["summary"] == {
        "total_app_count": "7", "fully_healthy_app_count": "3", "unhealthy_app_count": "4",
        "write_unhealthy_app_count": "3", "read_unhealthy_app_count": "1",
    }


@pytest.mark.parametrize("own, of_table, general, replicas", [
    ((), 3, "0", []), ((None,), 3, "3", ["1/3"]), ((2,), 3, "2", ["1/2"]), ((0,), 3, "0", ["1/0"]),
    ((1, 5, None), 3, "1", ["1/1", "1/5", "1/3"]), ((None, 5), 4, "4", ["1/4", "1/5"]),
])
def test_maximum_of_a_table_is_that_of_its_first_partition(own, of_table, general, replicas):
    details = detail(*(ph.Partition(0, one, A) for one in own), max_replica_count=of_table)
    assert details["general"]["max_replica_count"] == general
    assert [row["replica_count"] for row in details["replicas"].values()] == replicas
    plain = cluster(table(*(ph.Partition(0, one, A) for one in own), max_replica_count=of_table))
    assert page(plain, "/meta/apps")["general_info"]["1"]["replica_count"] == str(of_table)


# ---- one table ----------------------------------------------------------------------------------

@pytest.mark.parametrize("ballot", [-1, 0, 1, 3, 2**32, 2**63 - 1])
def test_ballot(ballot):
    replicas = detail(ph.Partition(5), ph.Partition(ballot))["replicas"]
    assert [row["ballot"] for row in replicas.values()] == ["5", str(ballot)]


@pytest.mark.parametrize("primary, secondaries, shown", [
    (None, (), ("-", "[]")), (A, (), (A, "[]")), (None, (A,), ("-", "[%s]" % A)),
    (A, (C, B), (A, "[%s,%s]" % (C, B))), ("a-b.c:1", ("[::1]:2",), ("a-b.c:1", "[[::1]:2]")),
])
def test_addresses_of_a_partition(primary, secondaries, shown):
    row = detail(ph.Partition(0, 3, primary, secondaries))["replicas"]["0"]
    assert (row["primary"], row["secondaries"]) == shown


def rows_of(details):
    return {node: [int(row[key]) for key in ("primary", "secondary", "total")]
            for node, row in details["nodes"].items()}


@pytest.mark.parametrize("partitions, expected", [
    ([], {"total": [0, 0, 0]}),
    ([ph.Partition()], {"total": [0, 0, 0]}),
    ([ph.Partition(primary=B)], {B: [1, 0, 1], "total": [1, 0, 1]}),
    ([ph.Partition(secondaries=(B, A))], {A: [0, 1, 1], B: [0, 1, 1], "total": [0, 2, 2]}),
    ([ph.Partition(primary=C, secondaries=(A, B)), ph.Partition(primary=C, secondaries=(A,)),
      ph.Partition(primary=A, secondaries=(C, E))],
     {A: [1, 2, 3], B: [0, 1, 1], C: [2, 1, 3], E: [0, 1, 1], "total": [3, 5, 8]}),
])
def test_nodes_of_a_table(partitions, expected):
    """Those that hold a replica, listed ones (A, B, C) or not, and a row of sums at the end."""
    details = detail(*partitions)
    assert rows_of(details) == expected
    assert list(details["nodes"]) == list(expected)
    assert all(row["node"] == node for node, row in details["nodes"].items())


def test_nodes_of_one_table_are_not_those_of_others():
    state = cluster(table(ph.Partition(primary=A)),
                    table(ph.Partition(primary=B, secondaries=(A,)), app_id=2, app_name="u"))
    assert rows_of(page(state, "/meta/app?name=t&detail")) == {A: [1, 0, 1], "total": [1, 0, 1]}


BUSY_CREATING, BUSY_DROPPING = (503, "ERR_BUSY_CREATING"), (503, "ERR_BUSY_DROPPING")
MISSING = (404, "ERR_OBJECT_NOT_FOUND")


@pytest.mark.parametrize("detail", ["", "&detail"])
@pytest.mark.parametrize("status, expected, hint", [
    ("CREATING", BUSY_CREATING, 'table is being created or recalled: "t"'),
    ("RECALLING", BUSY_CREATING, 'table is being created or recalled: "t"'),
    ("DROPPING", BUSY_DROPPING, 'table is being dropped: "t"'),
    ("DROPPED", MISSING, 'table not found: "t"'),
    ("INVALID", MISSING, 'table not found: "t"'),
    ("CREATE_FAILED", MISSING, 'table not found: "t"'),
    ("DROP_FAILED", MISSING, 'table not found: "t"'),
])
@pytest.mark.parametrize("path", ["/meta/app", "/meta/app_envs"])
def test_tables_that_are_not_available(path, status, expected, hint, detail):
    state = cluster(table(ph.Partition(0, 3, A, (B, C)), status=status))
    target = path + "?name=t" + (detail if path == "/meta/app" else "")
    assert error(state, target) == (expected, hint)
    retry = dict(ph.respond(state, "GET", target).headers).get("Retry-After")
    assert retry == ("1" if expected[0] == 503 else None)


@pytest.mark.parametrize("status", STATUSES)
def test_only_available_tables_are_listed(status):
    other = table(app_id=7, app_name="other")
    state = cluster(table(ph.Partition(0, 3, A, (B, C)), status=status), other)
    listed = ["1", "7"] if status == "AVAILABLE" else ["7"]
    tables = page(state, "/meta/apps?detail")
    assert list(tables["general_info"]) == list(tables["healthy_info"]) == listed
    assert tables["summary"]["total_app_count"] == str(len(listed))
    counted = [row["replica_count"] for row in
               page(state, "/meta/nodes?detail")["details"].values()]
    assert counted == (["1", "1", "1"] if status == "AVAILABLE" else ["0", "0", "0"])


@pytest.mark.parametrize("name", ["", "T", "t ", "tt", "nosuch", "表"])
def test_a_missing_table(name):
    state = cluster(table(), table(app_id=2, app_name="u", status="DROPPED"))
    target = "/meta/app?name=" + "".join("%%%02X" % byte for byte in name.encode())
    if name:
        assert error(state, target) == (MISSING, 'table not found: "%s"' % name)
    else:
        invalid = (400, "ERR_INVALID_PARAMETERS")
        assert error(state, target) == (invalid, "app name shouldn't be empty")


def test_a_missing_table_with_a_plus_is_told_how_to_write_a_blank():
    found, hint = error(cluster(table(app_name="a b")), "/meta/app?name=a+b")
    assert found == MISSING
    assert hint.startswith('table not found: "a+b"')
    assert "%20" in hint


@pytest.mark.parametrize("order", [1, -1])
def test_a_dropped_table_does_not_hide_the_one_that_has_its_name_now(order):
    apps = [table(app_id=3, status="DROPPED"), table(app_id=4), table(app_id=5, status="DROPPED")]
    state = cluster(*apps[::order])
    assert page(state, "/meta/app?name=t")["general"]["app_id"] == "4"


def test_partitions_that_are_not_known():
    state = cluster(ph.App(1, "t", None, 8, 5), table(ph.Partition(0, 1, A), app_id=2,
                                                      app_name="u"))
    general = {"app_name": "t", "app_id": "1", "partition_count": "8", "max_replica_count": "5"}
    assert page(state, "/meta/app?name=t") == {"general": general}
    found, hint = error(state, "/meta/app?name=t&detail")
    assert found == (503, "ERR_SERVICE_NOT_ACTIVE")
    assert '"t"' in hint
    tables = page(state, "/meta/apps?detail")
    assert tables["general_info"]["1"]["partition_count"] == "8"
    assert list(tables["healthy_info"]) == ["2"]
    assert tables["summary"]["total_app_count"] == "2"
    assert list(tables["summary"].values())[1:] == ["1", "0", "0", "0"]


# ---- all tables ---------------------------------------------------------------------------------

ZONE = "EST5EDT,M3.2.0,M11.1.0"


@pytest.mark.parametrize("zone, second, shown", [
    ("UTC0", 1564466666, "2019-07-30 06:04:26.000"),
    ("XXX-5:45", 1564466666, "2019-07-30 11:49:26.000"),
    (ZONE, 1564466666, "2019-07-30 02:04:26.000"),
    (ZONE, 1575158400, "2019-11-30 19:00:00.000"),
    ("UTC0", 1, "1970-01-01 00:00:01.000"), (ZONE, 1, "1969-12-31 19:00:01.000"),
    ("UTC0", 951782400, "2000-02-29 00:00:00.000"),
    ("XXX-14", 253402214399, "9999-12-31 13:59:59.000"),
    ("UTC0", 0, "-"), (ZONE, 0, "-"),
])
def test_create_time_is_local(zone, second, shown):
    with support.time_zone(zone):
        row = page(cluster(table(create_second=second)), "/meta/apps")["general_info"]["1"]
    assert row["create_time"] == shown


@pytest.mark.parametrize("fields, shown", [
    ({"app_type": "simple_kv"}, {"app_type": "simple_kv"}),
    ({"is_stateful": False}, {"is_stateful": "false"}),
    ({"is_stateful": True}, {"is_stateful": "true"}),
    ({"envs": {}}, {"envs_count": "0"}),
    ({"envs": {"a": "", "b": "1", "c": "2"}}, {"envs_count": "3"}),
    ({"max_replica_count": 5}, {"replica_count": "5"}),
    ({"drop_second": 1564466666, "expire_second": 1564466666},
     {"drop_time": "-", "drop_expire": "-"}),
    ({"app_id": 0}, {"app_id": "0"}),
    ({"app_id": 2**31 - 1}, {"app_id": "2147483647"}),
])
def test_row_of_a_table(fields, shown):
    ((key, row),) = page(cluster(table(**fields)), "/meta/apps")["general_info"].items()
    assert {name: row[name] for name in shown} == shown
    assert key == row["app_id"]


@pytest.mark.parametrize("ids", [
    (10, 9, 1, 100, 2), (16, 15, 17), (33, 0, 32, 31), (2**31 - 1, 1, 2**30),
])
def test_tables_are_in_the_order_of_their_numbers(ids):
    state = cluster(*(table(app_id=one, app_name="t%d" % one) for one in ids))
    tables = page(state, "/meta/apps?detail")
    expected = [str(one) for one in sorted(ids)]
    assert list(tables["general_info"]) == list(tables["healthy_info"]) == expected
    for section in ("general_info", "healthy_info"):
        assert [row["app_name"] for row in tables[section].values()] \
            == ["t" + one for one in expected]


# ---- nodes --------------------------------------------------------------------------------------

IN_ORDER = [
    "1.2.3.4:65535", "9.0.0.1:34801", "10.0.0.9:9", "10.0.0.9:10", "10.0.0.10:1", "10.0.1.2:1",
    "127.0.0.1:34801", "200.1.1.1:1",
    "1.2.3:5", "Zulu:1", "[::1]:5", "a:9", "a:10", "a-b:1", "a.b:1", "a_b:1", "b:1", "bb:1",
]


@pytest.mark.parametrize("turned", [0, 1, 5, 11, -1])
def test_order_of_nodes(turned):
    """IPv4 addresses by number, then host names by their bytes, each then by port."""
    given = IN_ORDER[::-1] if turned < 0 else IN_ORDER[turned:] + IN_ORDER[:turned]
    rows = [ph.Partition(primary=one) for one in given]
    state = cluster(table(*rows), nodes=given)
    assert list(page(state, "/meta/nodes")["details"]) == IN_ORDER
    assert list(page(state, "/meta/nodes?detail")["details"]) == IN_ORDER
    assert list(page(state, "/meta/app?name=t&detail")["nodes"]) == [*IN_ORDER, "total"]


@pytest.mark.parametrize("alive, dead", [(0, 0), (1, 0), (0, 1), (3, 2), (1, 4)])
def test_summary_of_nodes(alive, dead):
    nodes = [ph.Node("10.0.0.%d:1" % n, "ALIVE" if n < alive else "UNALIVE")
             for n in range(alive + dead)]
    for target in ("/meta/nodes", "/meta/nodes?detail"):
        found = page(cluster(nodes=nodes), target)
        assert found["summary"] == {
            "total_node_count": str(alive + dead), "alive_node_count": str(alive),
            "unalive_node_count": str(dead)}
        states = [row["status"] for row in found["details"].values()]
        assert states == ["ALIVE"] * alive + ["UNALIVE"] * dead


def test_replicas_of_a_node():
    """Over all available tables; a node that is not listed counts nowhere."""
    state = cluster(
        table(ph.Partition(primary=A, secondaries=(B, C)), ph.Partition(primary=A)),
        table(ph.Partition(primary=B, secondaries=(A, D)), app_id=2, app_name="u"),
        table(ph.Partition(primary=A, secondaries=(B,)), app_id=3, status="DROPPED"),
        table(ph.Partition(primary=None, secondaries=(C, C)), app_id=4, app_name="v"),
        ph.App(5, "unknown", None, 8),
        nodes=(E, C, B, A),
    )
    found = {node: [int(row[key]) for key in ("replica_count", "primary_count", "secondary_count")]
             for node, row in page(state, "/meta/nodes?detail")["details"].items()}
    assert found == {A: [3, 2, 1], B: [2, 1, 1], C: [3, 0, 3], E: [0, 0, 0]}


# ---- the cluster --------------------------------------------------------------------------------

def holding(alive, dead=()):
    """A cluster whose nodes hold so many (primaries, secondaries)."""
    nodes, rows = [], []
    for status, holdings in (("ALIVE", alive), ("UNALIVE", dead)):
        for primaries, secondaries in holdings:
            address = "10.0.0.%d:1" % (len(nodes) + 1)
            nodes.append(ph.Node(address, status))
            rows += [ph.Partition(primary=address)] * primaries
            rows += [ph.Partition(secondaries=(address,))] * secondaries
    return cluster(table(*rows), nodes=nodes)


@pytest.mark.parametrize("alive, dead, primary, total", [
    ([], [], "0.00", "0.00"),
    ([(5, 3)], [], "0.00", "0.00"),  # fewer than two
    ([(5, 3)], [(2, 2)], "0.00", "0.00"),
    ([], [(1, 1), (5, 9)], "0.00", "0.00"),
    ([(2, 4), (1, 4), (1, 3)], [], "0.47", "0.82"),
    ([(2, 4), (0, 0), (1, 4), (1, 3), (0, 0)], [], "0.47", "0.82"),  # who holds none is left out
    ([(4, 0), (0, 0)], [], "0.00", "0.00"),
    ([(2, 0), (0, 2)], [], "1.00", "0.00"),  # who holds no primary is not
    ([(2, 4), (1, 4), (1, 3)], [(0, 0)], "0.47", "0.82"),
    ([(2, 4), (1, 4), (1, 3)], [(0, 1)], "0.47", "1.00"),  # divided by n - 1, each on its own
    ([(2, 4), (1, 4), (1, 3)], [(1, 0)], "0.58", "1.00"),
    ([(2, 4), (1, 4), (1, 3)], [(0, 0), (1, 1)], "0.58", "1.00"),
    ([(0, 7), (3, 7)], [(1, 0)], "2.12", "2.12"),
    ([(100, 0), (0, 1)], [], "50.00", "49.50"),
    ([(1, 0), (1, 0), (1, 0), (1, 0), (2, 0), (2, 0)], [], "0.47", "0.47"),
])
def test_deviations_are_computed(alive, dead, primary, total):
    info = page(holding(alive, dead), "/meta/cluster")["cluster_info"]
    assert info["primary_replica_count_stddev"] == primary
    assert info["total_replica_count_stddev"] == total


def test_replicas_on_nodes_that_are_not_listed_do_not_deviate():
    state = cluster(table(ph.Partition(primary=A, secondaries=(B, D)), ph.Partition(primary=D)))
    info = page(state, "/meta/cluster")["cluster_info"]
    assert info["primary_replica_count_stddev"] == "0.50"
    assert info["total_replica_count_stddev"] == "0.00"


@pytest.mark.parametrize("given, shown", [
    ({}, ["0.47", "0.82"]),
    ({"primary_replica_count_stddev": "9.99"}, ["9.99", "0.82"]),
    ({"total_replica_count_stddev": "9.99"}, ["0.47", "9.99"]),
    ({"primary_replica_count_stddev": "1", "total_replica_count_stddev": "-"}, ["1", "-"]),
])
def test_deviations_that_the_server_tells_are_shown(given, shown):
    state = holding([(2, 4), (1, 4), (1, 3)])._replace(**given)
    assert list(page(state, "/meta/cluster")["cluster_info"].values())[-2:] == shown


@pytest.mark.parametrize("given, shown", [
    ((0, 0, 0), "move_pri=0,copy_pri=0,copy_sec=0,total=0"),
    ((1, 2, 4), "move_pri=1,copy_pri=2,copy_sec=4,total=7"),
    ("unknown", "unknown"), ('{\n  "total": 9\n}', '{\n  "total": 9\n}'),
])
def test_balance(given, shown):
    state = ph.Cluster(balance_operation_count=given)
    info = page(state, "/meta/cluster")["cluster_info"]
    assert info["balance_operation_count"] == shown


@pytest.mark.parametrize("given", [
    "10.0.0.1:34601,b:2", ["10.0.0.1:34601", "b:2"], ("10.0.0.1:34601", "b:2"),
])
def test_meta_servers(given):
    info = page(ph.Cluster(meta_servers=given), "/meta/cluster")["cluster_info"]
    assert info["meta_servers"] == "10.0.0.1:34601,b:2"


# ---- environments -------------------------------------------------------------------------------

@pytest.mark.parametrize("envs, expected", [
    ({}, "{}"), ({"b": "2", "a": "1"}, '{"a":"1","b":"2"}'),
    ({"ü": 'a"b', "Z": "", "10": "x", "9": "y"}, '{"10":"x","9":"y","Z":"","ü":"a\\"b"}'),
])
def test_environment_of_a_table(envs, expected):
    state = cluster(table(envs=envs), ph.App(2, "unknown", None, 4, envs=envs))
    assert body(state, "/meta/app_envs?name=t") == expected + "\n"
    assert body(state, "/meta/app_envs?name=unknown") == expected + "\n"


@pytest.mark.parametrize("target, expected", [
    ("?name=nosuch", MISSING), ("", (400, "ERR_INVALID_PARAMETERS")),
    ("?name=t&detail", (400, "ERR_INVALID_PARAMETERS")),
])
def test_environment_that_is_not_there(target, expected):
    assert error(cluster(table()), "/meta/app_envs" + target)[0] == expected


# ---- the server itself --------------------------------------------------------------------------

@pytest.mark.parametrize("state, given, shown", [
    (ph.Cluster(version="2.5.0", git_commit="abc"), {}, ("2.5.0", "abc")),
    (ph.Cluster(version="2.5.0"), {}, ("2.5.0", "unknown")),
    (ph.Cluster(git_commit="abc"), {}, (ph.__version__, "abc")),
    (ph.Cluster(), {}, (ph.__version__, "unknown")),
    (ph.Cluster(version="2.5.0", git_commit="abc"), {"version": "9"}, ("9", "abc")),
    (ph.Cluster(version="2.5.0", git_commit="abc"), {"git_commit": "x"}, ("2.5.0", "x")),
    (ph.Standby(A), {}, (ph.__version__, "unknown")),
    (ph.Standby(A), {"version": "9", "git_commit": "x"}, ("9", "x")),
    (None, {"version": "9"}, ("9", "unknown")),
    (ph.PageError(502, "ERR_NETWORK_FAILURE", "no"), {}, (ph.__version__, "unknown")),
])
@pytest.mark.parametrize("role", ["meta", "replica"])
def test_version(state, given, shown, role):
    found = page(state, "/version", role=role, **given)
    assert found == {"Version": {"Version": shown[0], "GitCommit": shown[1]}}


OLD = """
import sys
sys.stdin.readline()
import pegasus_http
for target in ("/startTime", "/recentStartTime"):
    print(pegasus_http.respond(None, "GET", target).body.decode())
"""


TICK = 0.01  # seconds: the kernel counts the start of a process in whole ticks
HELD_UP = 0.25  # seconds that a loaded machine may hold up a process between two clocks it reads


@needs_proc
def test_start_of_the_process():
    """Not of the module, and not of the machine, in local time."""
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", OLD], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=support.environment(TZ="XXX-5:45"),
                          text=True) as process:
        latest = int(time.time() + HELD_UP)
        support.wait_until(lambda: int(time.time()) > latest, "a second that is not the start's")
        output, _ = process.communicate("\n", timeout=support.PATIENCE)
    pages = [json.loads(line) for line in output.split("\n") if line]
    assert pages[0] == pages[1]
    assert list(pages[0]) == list(pages[0]["RecentStartTime"]) == ["RecentStartTime"]
    shown = time.strptime(pages[0]["RecentStartTime"]["RecentStartTime"], "%Y-%m-%d %H:%M:%S")
    assert int(before - TICK) <= calendar.timegm(shown) - (5 * 60 + 45) * 60 <= latest


NOT_ACTIVE = (503, "ERR_SERVICE_NOT_ACTIVE")


@pytest.mark.parametrize("role, state, primary", [
    ("meta", ph.Cluster(), True), ("meta", ph.Standby(A), False), ("meta", None, False),
    ("meta", ph.Standby(None), False), ("replica", None, False), ("replica", ph.Cluster(), False),
    ("meta", ph.PageError(502, "ERR_NETWORK_FAILURE", "no"), False),
])
def test_health_of_the_server(role, state, primary):
    expected = {"status": "ok", "role": role, "primary": "true" if primary else "false"}
    for target in ("/health", "/health?primary=false"):
        assert body(state, target, role=role) \
            == json.dumps(expected, separators=(",", ":")) + "\n"
    if primary:
        assert page(state, "/health?primary", role=role) == expected
    else:
        found, hint = error(state, "/health?primary", role=role)
        assert (found, hint) == (NOT_ACTIVE, "this server is not the primary meta server")


META_ONLY = ("/meta/app?name=t", "/meta/apps", "/meta/nodes", "/meta/cluster",
             "/meta/app_envs?name=t")


@pytest.mark.parametrize("target", META_ONLY)
def test_a_replica_server_has_no_meta_pages(target):
    found, hint = error(onebox(), target, role="replica")
    path = target.partition("?")[0]
    assert found == (404, "ERR_HANDLER_NOT_FOUND")
    assert hint == '"%s" is served by meta servers; this is a replica server' % path


@pytest.mark.parametrize("target", META_ONLY)
@pytest.mark.parametrize("state, expected", [
    (None, NOT_ACTIVE), (ph.Standby(None), NOT_ACTIVE),
    (ph.PageError(502, "ERR_NETWORK_FAILURE", "no"), (502, "ERR_NETWORK_FAILURE")),
    (ph.Standby(A), (307, "ERR_FORWARD_TO_OTHERS")),
])
def test_meta_pages_without_a_cluster(target, state, expected):
    assert error(state, target)[0] == expected
    headers = dict(ph.respond(state, "GET", target).headers)
    assert headers.get("Retry-After") == ("1" if expected == NOT_ACTIVE else None)
    assert headers.get("Location") == ("http://" + A + target if expected[0] == 307 else None)
    assert headers["Cache-Control"] == "no-store"


BOTH = ["/", "/health", "/recentStartTime", "/startTime", "/version"]
META = ["/meta/app", "/meta/app_envs", "/meta/apps", "/meta/cluster", "/meta/nodes"]


@pytest.mark.parametrize("role, paths", [
    ("replica", BOTH), ("meta", sorted(BOTH + META)),
])
@pytest.mark.parametrize("state", [None, ph.Standby(A), onebox()])
def test_index_lists_the_pages_of_the_role(role, paths, state):
    found = page(state, "/", role=role)
    assert list(found) == paths
    assert all(isinstance(text, str) and text for text in found.values())


def test_index_tells_the_parameters():
    parameters = {path: text.partition(". ")[0] for path, text in page(None, "/").items()}
    assert parameters["/meta/app"] == "name=<app_name>[&detail]"
    assert parameters["/meta/app_envs"] == "name=<app_name>"
    told = {path for path, text in parameters.items() if "detail" in text}
    assert told == {"/meta/app", "/meta/apps", "/meta/nodes"}
    assert [path for path, text in parameters.items() if "primary" in text] == ["/health"]


@pytest.mark.parametrize("role", ["meta", "replica"])
def test_favicon(role):
    answer = ph.respond(None, "GET", "/favicon.ico", role=role)
    assert (answer.status, answer.body) == (204, b"")
    assert dict(answer.headers)["Cache-Control"] == "max-age=86400"


# ---- parameters ---------------------------------------------------------------------------------

@pytest.mark.parametrize("value, long", [
    ("detail", True), ("detail=true", True), ("detail=false", False), ("&&detail&", True),
    ("pretty", False), ("pretty=false", False), ("detail&pretty=false", True),
    ("%64etail=%74rue", True), ("detail=", True),
])
@pytest.mark.parametrize("path", ["/meta/app?name=temp", "/meta/apps?", "/meta/nodes?"])
def test_detail(path, value, long):
    found = page(onebox(), path + "&" + value)
    assert (found == page(onebox(), path + "&detail")) == long
    assert (found == page(onebox(), path)) == (not long)


@pytest.mark.parametrize("target, hint", [
    ("/meta/apps?detail=yes", 'invalid detail: "yes", expected true or false'),
    ("/meta/apps?detail=True", 'invalid detail: "True", expected true or false'),
    ("/version?pretty=x", 'invalid pretty: "x", expected true or false'),
    ("/meta/app", "app name shouldn't be empty"),
    ("/meta/app?name", "app name shouldn't be empty"),
    ("/meta/app?name=&detail", "app name shouldn't be empty"),
    ("/meta/app?name=a&name=b", "duplicate parameter: name"),
    ("/meta/nodes?detail&detail", "duplicate parameter: detail"),
    ("/meta/app?name=t&foo=1", "unknown parameter: foo"),
    ("/meta/apps?name=t", "unknown parameter: name"),
    ("/meta/nodes?primary", "unknown parameter: primary"),
    ("/health?detail", "unknown parameter: detail"),
    ("/meta/app?name=%zz", 'malformed escape in parameter: "name=%zz"'),
    ("/meta/app?name=%4", 'malformed escape in parameter: "name=%4"'),
    ("/meta/app?name=%ff", 'bytes that are not UTF-8 in parameter: "name=%ff"'),
])
@pytest.mark.parametrize("state", [onebox(), ph.Standby(A), None])
def test_parameters_that_are_wrong(target, hint, state):
    assert error(state, target) == ((400, "ERR_INVALID_PARAMETERS"), hint)


@pytest.mark.parametrize("target", ["/version", "/startTime", "/recentStartTime", "/",
                                    "/meta/cluster"])
@pytest.mark.parametrize("query", ["?_=1", "?detail", "?name=", "?x=1&y"])
def test_pages_without_parameters_ignore_unknown_ones(target, query):
    assert body(onebox(), target + query) == body(onebox(), target)
    assert body(onebox(), target + query + "&pretty") == body(onebox(), target + "?pretty")


# ---- header fields ------------------------------------------------------------------------------

@pytest.mark.parametrize("target", [
    "/", "/startTime", *(target for target in PAGES if target != "/health"),
])
def test_every_page_has_a_tag(target):
    first, again = (ph.respond(onebox(), "GET", target) for _ in range(2))
    headers = dict(first.headers)
    assert headers["Content-Type"] == "application/json"
    assert headers["Content-Length"] == str(len(first.body))
    assert headers["Cache-Control"] == "no-cache"
    assert headers["ETag"].startswith('"') and headers["ETag"].endswith('"')
    assert dict(again.headers)["ETag"] == headers["ETag"]
    pretty = ph.respond(onebox(), "GET", target + "?&"["?" in target] + "pretty")
    assert dict(pretty.headers)["ETag"] != headers["ETag"]
    same = ph.respond(onebox(), "GET", target, {"If-None-Match": headers["ETag"]})
    assert (same.status, same.body, dict(same.headers)["ETag"]) == (304, b"", headers["ETag"])


def test_health_is_not_to_be_kept():
    headers = dict(ph.respond(onebox(), "GET", "/health").headers)
    assert headers["Cache-Control"] == "no-store"
    assert "ETag" not in headers


# ---- states that make no sense ------------------------------------------------------------------

def app(**fields):
    return ph.App(**{"app_id": 1, "app_name": "t", **fields})


def partition(*values, **fields):
    return app(partitions=[ph.Partition(*values, **fields)])


LONE = "\ud800"  # half of a pair: no UTF-8 can hold it
WHOLE = "expected a whole number from "
PLACE = 'expected "host:port"'


@pytest.mark.parametrize("make, text", [
    (lambda: app(app_id=-1), "app_id: " + WHOLE + "0 to 2147483647, got -1"),
    (lambda: app(app_id=2**31), "app_id: " + WHOLE),
    (lambda: app(app_id=True), "app_id: " + WHOLE + "0 to 2147483647, got true"),
    (lambda: app(app_id="1"), "app_id: " + WHOLE + '0 to 2147483647, got "1"'),
    (lambda: app(app_id=1.0), "app_id: " + WHOLE),
    (lambda: app(app_name=b"t"), "app_name: expected a string"),
    (lambda: app(app_name=LONE), "app_name: expected text that UTF-8 can encode"),
    (lambda: app(app_name=None), "app_name: expected a string, got null"),
    (lambda: app(app_type=7), "app_type: expected a string, got 7"),
    (lambda: app(app_type=LONE), "app_type: expected text that UTF-8 can encode"),
    (lambda: app(status="available"), "status: expected one of INVALID, AVAILABLE, CREATING, "),
    (lambda: app(is_stateful=1), "is_stateful: expected true or false, got 1"),
    (lambda: app(max_replica_count=-1), "max_replica_count: " + WHOLE),
    (lambda: app(max_replica_count=None), "max_replica_count: " + WHOLE),
    (lambda: app(partition_count=-1), "partition_count: " + WHOLE),
    (lambda: app(partitions=[ph.Partition()], partition_count=2),
     "partition_count: expected 1, the number of partitions, got 2"),
    (lambda: app(envs={"a": 1}), 'envs["a"]: expected a string, got 1'),
    (lambda: app(envs={"a": LONE}), 'envs["a"]: expected text that UTF-8 can encode'),
    (lambda: app(envs={1: "a"}), "envs: expected a string, got 1"),
    (lambda: app(envs={LONE: "a"}), "envs: expected text that UTF-8 can encode"),
    (lambda: app(create_second=-1), "create_second: " + WHOLE + "0 to 253402214399, got -1"),
    (lambda: app(create_second=253402214400), "create_second: " + WHOLE),
    (lambda: app(create_second=1.5), "create_second: " + WHOLE),
    (lambda: app(drop_second=-1), "drop_second: " + WHOLE),
    (lambda: app(expire_second=2**63), "expire_second: " + WHOLE),
    (lambda: app(partitions=[(0, 3, A, ())]), "partitions[0]: expected a Partition, got "),
    (lambda: app(partitions=[ph.Partition(), None]), "partitions[1]: expected a Partition"),
    (lambda: partition(-2), "partitions[0].ballot: " + WHOLE + "-1 to 9223372036854775807, got -2"),
    (lambda: partition(2**63), "partitions[0].ballot: " + WHOLE),
    (lambda: partition(True), "partitions[0].ballot: " + WHOLE),
    (lambda: partition(0, -1), "partitions[0].max_replica_count: " + WHOLE),
    (lambda: partition(0, "3"), "partitions[0].max_replica_count: " + WHOLE),
    (lambda: partition(primary=17), "partitions[0].primary: " + PLACE + " or null, got 17"),
    (lambda: partition(primary=""), "partitions[0].primary: " + PLACE),
    (lambda: partition(primary="a"), "partitions[0].primary: " + PLACE),
    (lambda: partition(secondaries=A), "partitions[0].secondaries: expected a tuple or list of "),
    (lambda: partition(secondaries=(A, None)), "partitions[0].secondaries[1]: " + PLACE),
    (lambda: partition(secondaries=("a b:1",)), "partitions[0].secondaries[0]: " + PLACE),
    (lambda: ph.Cluster([None]), "apps[0]: expected an App, got null"),
    (lambda: ph.Cluster([app(), app(app_name="u")]),
     "apps[1].app_id: 1 is already used by apps[0]"),
    (lambda: ph.Cluster([app(), app(app_id=2, status="DROPPED"), app(app_id=2, app_name="u")]),
     "apps[2].app_id: 2 is already used by apps[1]"),
    (lambda: ph.Cluster([app(app_name="u"), app(app_id=2), app(app_id=3)]),
     'apps[2].app_name: "t" is already used by apps[1]'),
    (lambda: ph.Cluster([app(status="CREATING"), app(app_id=2, status="DROPPING")]),
     'apps[1].app_name: "t" is already used by apps[0]'),
    (lambda: ph.Cluster([app(status="RECALLING"), app(app_id=2)]), "apps[1].app_name: "),
    (lambda: ph.Cluster((), [A]), "nodes[0]: expected a Node, got "),
    (lambda: ph.Cluster((), [ph.Node("a")]), "nodes[0].address: " + PLACE + ', got "a"'),
    (lambda: ph.Cluster((), [ph.Node(None)]), "nodes[0].address: " + PLACE + ", got null"),
    (lambda: ph.Cluster((), [ph.Node(A), ph.Node(B, "alive")]),
     'nodes[1].status: expected one of ALIVE, UNALIVE, got "alive"'),
    (lambda: ph.Cluster((), [ph.Node(A), ph.Node(B), ph.Node(A, "UNALIVE")]),
     'nodes[2].address: "%s" is already used by nodes[0]' % A),
    (lambda: ph.Cluster(meta_servers=LONE), "meta_servers: expected text that UTF-8"),
    (lambda: ph.Cluster(primary_meta_server=None), "primary_meta_server: expected a string"),
    (lambda: ph.Cluster(zookeeper_hosts=1), "zookeeper_hosts: expected a string"),
    (lambda: ph.Cluster(zookeeper_root=None), "zookeeper_root: expected a string"),
    (lambda: ph.Cluster(meta_function_level=LONE), "meta_function_level: expected text"),
    (lambda: ph.Cluster(primary_replica_count_stddev=0.5),
     "primary_replica_count_stddev: expected a string, got 0.5"),
    (lambda: ph.Cluster(total_replica_count_stddev=1), "total_replica_count_stddev: expected a "),
    (lambda: ph.Cluster(cluster_name=1), "cluster_name: expected a string"),
    (lambda: ph.Cluster(version=2), "version: expected a string"),
    (lambda: ph.Cluster(git_commit=LONE), "git_commit: expected text"),
    (lambda: ph.Standby("a"), "primary: " + PLACE + ' or null, got "a"'),
    (lambda: ph.Standby("a:1\r\nX: y"), "primary: " + PLACE),
    (lambda: ph.Cluster()._replace(nodes=[ph.Node("a")]), "nodes[0].address: " + PLACE),
    (lambda: app()._replace(app_id=-1), "app_id: " + WHOLE),
])
def test_what_makes_no_sense_is_refused_with_its_place(make, text):
    with pytest.raises(ValueError, match="^") as caught:
        make()
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("address, fine", [
    ("a:1", True), ("A-b_c.d:65535", True), ("10.0.0.1:34801", True), ("[::1]:1", True),
    ("[fe80::1.2.3.4]:80", True), ("a:0", False), ("a:65536", False), ("a:100000", False),
    ("a:", False), (":1", False), ("a", False), ("a:1 ", False), (" a:1", False), ("a:1\n", False),
    ("a b:1", False), ("::1:1", False), ("[::1]", False), ("[a]b:1", False), ("a:b", False),
    ("a:-1", False), ("a/b:1", False), ("a@b:1", False), ("ä:1", False), ("a:١", False),
])
def test_addresses(address, fine):
    if fine:
        assert ph.Standby(address).primary == address
        assert cluster(nodes=[address]).nodes[0].address == address
    else:
        with pytest.raises(ValueError, match="^primary: expected"):
            ph.Standby(address)


@pytest.mark.parametrize("make", [
    lambda: ph.Cluster([app(status="DROPPED"), app(app_id=2), app(app_id=3, status="DROPPED")]),
    lambda: ph.Cluster([app(status="CREATE_FAILED"), app(app_id=2, status="CREATING")]),
    lambda: partition(-1, 0), lambda: partition(2**63 - 1, 2**31 - 1),
    lambda: app(app_id=0, create_second=253402214399), lambda: app(app_id=2**31 - 1),
    lambda: ph.Standby(None), lambda: ph.Cluster(iter([app()]), iter([ph.Node(A)])),
    lambda: ph.App(1, "t", None, 7), lambda: app(envs=[("a", "b")]),
    lambda: partition(secondaries=[A]),
])
def test_what_is_rare_but_fine(make):
    assert make() == make()


@pytest.mark.parametrize("fields", [{}, {"partition_count": 0}, {"partitions": []}])
def test_count_of_partitions_may_be_left_out(fields):
    assert app(**fields).partition_count == 0
    assert app(partitions=(ph.Partition(), ph.Partition())).partition_count == 2


@pytest.mark.parametrize("value, fields", [
    (ph.Partition(), (0, None, None, ())),
    (ph.Node(A), (A, "ALIVE")),
    (ph.App(1, "t"), (1, "t", None, 0, 3, "AVAILABLE", "pegasus", True, (), 0, 0, 0)),
    (app(envs={"b": "2", "a": "1"})[8], (("a", "1"), ("b", "2"))),
    (ph.Cluster()[:8], ((), (), "", "", "", "", "lively",
                        "move_pri=0,copy_pri=0,copy_sec=0,total=0")),
    (ph.Cluster()[8:], (None,) * 5),
])
def test_what_may_be_left_out(value, fields):
    assert value == fields


def test_page_errors_tell_what_they_are():
    one = ph.PageError(503, "ERR_BUSY", "try later", (("Retry-After", "7"),))
    assert (one.status, one.error, one.hint_message) == (503, "ERR_BUSY", "try later")
    assert one.headers == (("Retry-After", "7"),)
    assert ph.PageError(404, "ERR_X", "no").headers == ()
    assert "ERR_BUSY" in str(one) and "try later" in str(one)
    answer = ph.respond(one, "GET", "/meta/apps")
    assert dict(answer.headers)["Retry-After"] == "7"
