"""LiveCluster: what real servers accept or newer ones may send is shown, or left out and reported.

Whatever is odd about one row, all other rows and pages stay as they are.
"""

import copy
import json
import logging
import struct
import urllib.parse

import pytest

import replay
from fakes import PAGES, STATE, check_error, check_pages, expected, one_page, patched, serving
from replay import LIST_APPS, LIST_NODES, QUERY, Meta
from support import get

I32_MAX, I64_MAX = 2**31 - 1, 2**63 - 1
DROPPED = {"app_name": "old", "app_id": 7, "partition_count": 1, "status": "DROPPED",
           "partitions": None}


def with_table(**fields):
    """The usual cluster and a table of this kind."""
    state = replay.make_state(tables=4)
    state["apps"][3].update(fields)
    return state


def reports(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


# ---- what no page shows -------------------------------------------------------------------------

@pytest.mark.parametrize("fields", [
    dict(DROPPED, app_name=""), dict(DROPPED, app_name=b"\xff"), dict(DROPPED, app_name="table1"),
    dict(DROPPED, expire_second=10**13), dict(DROPPED, expire_second=-I64_MAX),
    dict(DROPPED, drop_second=I64_MAX), dict(DROPPED, envs={b"\xff": b"\xfe"}),
    dict(DROPPED, partition_count=I32_MAX, max_replica_count=I32_MAX),
    dict(DROPPED, status="INVALID"), dict(DROPPED, status="CREATE_FAILED"),
    dict(DROPPED, status="DROP_FAILED"), dict(DROPPED, app_id=I32_MAX),
], ids=repr)
def test_tables_that_are_on_no_page(fields, caplog):
    with Meta(replay.synthetic(with_table(**fields))) as meta, serving(meta) as server:
        check_pages(server, STATE)
    assert not reports(caplog)


@pytest.mark.parametrize("fields", [
    {"drop_second": 10**13}, {"expire_second": -1}, {"drop_second": -I64_MAX},
])
def test_times_that_no_page_shows(fields):
    with Meta(replay.synthetic(with_table(**fields))) as meta, serving(meta) as server:
        check_pages(server, replay.make_state(tables=4))


@pytest.mark.parametrize("row", [
    {"last_committed_decree": -I64_MAX, "partition_flags": -1},
    {"last_drops": ["10.9.9.9:1", None, "host.test:2"] * 50},
], ids=["figures", "drops"])
def test_figures_of_a_partition_that_no_page_shows(row):
    state = replay.make_state()
    state["apps"][0]["partitions"][1].update(row)
    for new in (False, True):
        with Meta(replay.synthetic(state, new)) as meta, serving(meta) as server:
            check_pages(server, STATE)


# ---- what is shown as it is ---------------------------------------------------------------------

@pytest.mark.parametrize("fields", [
    {"app_type": ""}, {"app_type": "\x00\u8868"}, {"max_replica_count": 0},
    {"create_second": 253402300800 - 86400 * 2}, {"app_id": I32_MAX}, {"envs": {"": ""}},
    {"is_stateful": False},
], ids=repr)
def test_tables_that_are_shown(fields):
    state = with_table(**fields)
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        check_pages(server, state)


def test_table_without_a_name():
    """Real servers create one."""
    with Meta(replay.synthetic(with_table(app_name=""))) as meta, serving(meta) as server:
        check_pages(server, STATE, ["/meta/cluster", "/meta/nodes", "/meta/app?name=table1"])
        apps = get(server.port, "/meta/apps?detail").json
        assert apps["general_info"]["4"]["app_name"] == ""
        assert apps["healthy_info"]["4"]["fully_healthy"] == "4"
        check_pages(server, replay.make_state(tables=4), ["/meta/nodes?detail=true"])


@pytest.mark.parametrize("second, shown", [
    (10**13, "318857-"), (I64_MAX, "-"), (-I64_MAX, "-"), (0, "-"),
])
def test_creation_that_no_calendar_has(second, shown):
    state = with_table(create_second=second)
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        row = get(server.port, "/meta/apps").json["general_info"]["4"]
        assert row["create_time"].startswith(shown)
        check_pages(server, STATE, ["/meta/cluster", "/meta/nodes", "/meta/app?name=table1"])


@pytest.mark.parametrize("row, shown", [
    ({"ballot": -7}, {"ballot": "-7"}), ({"ballot": I64_MAX}, {"ballot": str(I64_MAX)}),
    ({"max_replica_count": -1}, {"replica_count": "3/-1"}),
    ({"max_replica_count": I32_MAX}, {"replica_count": "3/%d" % I32_MAX}),
], ids=repr)
def test_figures_of_a_partition(row, shown):
    state = replay.make_state()
    state["apps"][0]["partitions"][1].update(row)
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        found = get(server.port, "/meta/app?name=table1&detail").json["replicas"]["1"]
        assert {key: found[key] for key in shown} == shown
        check_pages(server, STATE, ["/meta/app?name=table2&detail=true", "/meta/nodes?detail=true"])


def test_names_that_are_not_utf8():
    state = replay.make_state()
    name = b"\xff\xfe\xc3("
    state["apps"][1]["app_name"] = name
    state["apps"][2]["envs"] = {b"\xf0": b"\x80"}
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        apps = get(server.port, "/meta/apps?detail=true")
        nodes = get(server.port, "/meta/nodes?detail=true")
        assert apps.status == nodes.status == 200
        assert list(apps.json["healthy_info"]) == ["1", "2", "3"]
        assert apps.json["general_info"]["3"]["envs_count"] == "1"
        assert nodes.body == expected(STATE, "/meta/nodes?detail=true")
        assert name in meta.asked(QUERY), "asked by its own bytes"


@pytest.mark.parametrize("first", [0, 1])
def test_names_that_look_equal(first):
    """Two tables: one whose name is that text, one whose bytes are shown as that text."""
    state = replay.make_state(tables=2)
    names = ["\\xff", b"\xff"]
    for app, name in zip(state["apps"], names[first:] + names[:first]):
        app["app_name"] = name
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        apps = get(server.port, "/meta/apps?detail").json
        assert [row["app_name"] for row in apps["general_info"].values()] == ["\\xff"] * 2
        assert len(apps["healthy_info"]) == 2
        page = get(server.port, "/meta/app?name=" + urllib.parse.quote("\\xff")).json
        assert page["general"]["app_id"] == str(1 + first), "the one whose name it is"
        check_pages(server, replay.make_state(tables=2), ["/meta/nodes?detail=true"])


def test_names_that_need_care():
    state = replay.make_state()
    names = ["a b", "\u8868/\U0001f4a9", "x&name=y"]
    for app, name in zip(state["apps"], names):
        app["app_name"] = name
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        check_pages(server, state, [
            "/meta/app?detail&name=" + urllib.parse.quote(name, safe="") for name in names])


def test_cluster_info_that_is_not_utf8():
    state = replay.make_state()
    state["cluster_info"]["zookeeper_hosts"] = b"\xff"
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        assert get(server.port, "/meta/cluster").json["zookeeper_hosts"] == "\\xff"


# ---- what is left out ---------------------------------------------------------------------------

@pytest.mark.parametrize("fields", [
    {"partition_count": -1}, {"max_replica_count": -2}, {"app_id": -4}, {"app_id": 3},
], ids=repr)
def test_table_that_makes_no_sense(fields, caplog):
    """It is left out; the server and the row are named in the log, once."""
    with Meta(replay.synthetic(with_table(**fields))) as meta, serving(meta) as server:
        for _ in range(2):
            check_pages(server, STATE)
        report, = reports(caplog)
        assert meta.address in report
        assert '"table4"' in report
        check_error(get(server.port, "/meta/app?name=table4"), 404, "ERR_OBJECT_NOT_FOUND")


def test_status_of_a_newer_server(leader):
    """It is INVALID here: on no page, like all that are not available."""
    row = replay.string(2, "pegasus") + replay.string(3, "table3")
    for status in (8, 1000, -1):
        leader.answers = patched(replay.synthetic(STATE), LIST_APPS, replay.i32(1, 1) + row,
                                 replay.i32(1, status) + row)
        with serving(leader) as server:
            check_pages(server, dict(STATE, apps=STATE["apps"][:2]))


@pytest.mark.parametrize("status, shown", [(0, "UNALIVE"), (2, "UNALIVE"), (3, "UNALIVE"),
                                           (-1, "UNALIVE"), (1, "ALIVE")])
def test_status_of_a_node(leader, status, shown):
    address = STATE["nodes"][1]["address"]
    row = replay.field(replay.STRUCT, 2, replay.rpc_address(address))
    leader.answers = patched(leader.answers, LIST_NODES, replay.i32(1, 1) + row,
                             replay.i32(1, status) + row)
    assert one_page(leader).json["details"][address]["status"] == shown


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("odd", [None, "10.0.0.1:34801"], ids=["none", "twice"])
def test_node_without_an_address_of_its_own(odd, new, caplog):
    state = copy.deepcopy(STATE)
    state["nodes"].append({"address": odd, "status": "UNALIVE"})
    with Meta(replay.synthetic(state, new)) as meta, serving(meta) as server:
        check_pages(server, STATE)
        check_pages(server, STATE)
        report, = reports(caplog)
        assert meta.address in report
        assert "node" in report


@pytest.mark.parametrize("new", [False, True])
def test_secondary_without_an_address(new, caplog):
    state = copy.deepcopy(STATE)
    state["apps"][0]["partitions"][2]["secondaries"].insert(1, None)
    with Meta(replay.synthetic(state, new)) as meta, serving(meta) as server:
        for _ in range(2):
            check_pages(server, STATE, [*PAGES, "/meta/app?name=table1&detail=true"])
        report, = reports(caplog)
        assert meta.address in report
        assert '"table1"' in report
        assert "partition 2" in report


@pytest.mark.parametrize("raw", [
    replay.octets("a b") + struct.pack(">HB", 1, 1), replay.octets("a") + struct.pack(">HB", 0, 1),
    replay.octets(b"\xff") + struct.pack(">HB", 1, 1), replay.octets("a") + b"\0\1\2", bytes(7),
], ids=["blank", "port", "bytes", "group", "none"])
def test_host_name_that_is_none_leaves_the_address(leader, raw):
    """Newer servers send both; what is no name falls back to what older ones send alone."""
    address = STATE["nodes"][1]["address"]
    for code in (LIST_NODES, QUERY):
        leader.answers = patched(leader.answers, code, replay.host_port(address), raw)
    with serving(leader) as server:
        check_pages(server, STATE)


# ---- one table's answer is nonsense -------------------------------------------------------------

BROKEN = {
    "unknown struct": replay.query(STATE["apps"][1], extra=replay.field(replay.STRUCT, 77, b"\0")),
    "no result": replay.frame(QUERY, b""),
    "cut off": replay.frame(QUERY, replay.query(STATE["apps"][1])[-80:-9]),
    "no ballot": replay.frame(QUERY, replay.structure(
        replay.field(replay.STRUCT, 1, replay.octets("ERR_OK")) + replay.i32(2, 2)
        + replay.sequence_of(5, replay.STRUCT, [replay.i32(3, 3) + replay.string(50, "x" * 80)
                                                + b"\0"]))),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_table_whose_answer_makes_no_sense(leader, answer, caplog):
    """Its own page says so; the others have what is known without it."""
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table2"): answer})
    without = dict(STATE, apps=[STATE["apps"][0], STATE["apps"][2]])
    with serving(leader) as server:
        for target in PAGES[:4]:
            if "detail" not in target:
                check_pages(server, STATE, [target])
        for _ in range(2):
            check_error(get(server.port, "/meta/app?name=table2"), 502, "ERR_NETWORK_FAILURE",
                        leader.address, '"table2"')
            check_pages(server, without, ["/meta/nodes?detail=true", "/meta/app?name=table1"])
        page = get(server.port, "/meta/apps?detail=true").json
        assert page["general_info"] == json.loads(expected(STATE, "/meta/apps"))["general_info"]
        assert list(page["healthy_info"]) == ["1", "3"]
    report, = reports(caplog)
    assert leader.address in report
    assert '"table2"' in report
