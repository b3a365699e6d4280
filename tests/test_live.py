"""LiveCluster and --cluster, against a meta server that speaks recorded answers and misbehaves."""

import concurrent.futures
import contextlib
import json
import math
import os
import random
import struct
import threading
import time
import tracemalloc

import pytest

import pegasus_http as ph
import replay
import support
from replay import CLI, CLUSTER_INFO, LIST_APPS, LIST_NODES, QUERY, Meta
from support import get, run, running, wait_until

LONG = os.environ.get("PEGASUS_HTTP_LONG") == "1"
EXAMPLES = os.path.join(support.SHARED, "rpc-examples")
STATES = ("healthy", "node_just_died", "all_nodes_dead", "after_failover",
          "metadata_frozen_node_dead")
LISTS = (LIST_APPS, LIST_NODES, CLUSTER_INFO)
PAGES = ("/meta/cluster", "/meta/apps", "/meta/apps?detail=true", "/meta/nodes",
         "/meta/nodes?detail=true", "/meta/app?name=table1", "/meta/app?name=table2&detail=true")
QUICK = 0.4  # seconds: the timeout of the tests that run into it

needs_captures = pytest.mark.skipif(
    not os.path.isdir(support.CAPTURES), reason="the recorded answers are not here")
needs_examples = pytest.mark.skipif(
    not os.path.isdir(EXAMPLES), reason="the recorded frames are not here")


# ---- helpers ------------------------------------------------------------------------------------

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
    source = live(*metas, timeout=timeout, max_age=max_age)
    with ph.StatusServer(source, role="meta", flat=True, timeout=timeout) as server:
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
        answer = get(server.port, target)
        assert (answer.status, answer.body) == (200, expected(state, target)), target


def check_error(answer, status, error=None, *words):
    """An error answer in the shape of the contract; the sentence holds the words."""
    assert answer.status == status, answer
    assert set(answer.json) == {"error", "hint_message"}
    assert error is None or answer.json["error"] == error
    for word in words:
        assert word in answer.json["hint_message"], answer
    return answer


def one_page(*metas, target="/meta/nodes", timeout=support.PATIENCE):
    """The first answer of a server that nobody has asked yet."""
    with serving(*metas, timeout=timeout) as server:
        return get(server.port, target)


STATE = replay.make_state()


@pytest.fixture
def leader():
    with Meta(replay.synthetic(STATE)) as meta:
        yield meta


# ---- the encoder of these tests and the requests, against recorded bytes ------------------------

def with_sequence(data, sequence):
    at = replay.sequence_at(data)
    return data[:at] + struct.pack(">i", sequence) + data[at + 4:]


@needs_captures
@pytest.mark.parametrize("name", STATES)
def test_replay_encodes_as_the_real_server(name):
    capture = replay.capture(name)
    answers = replay.synthetic(capture["state"])
    forwards = replay.standby("localhost:34601")
    for code, argument, _, recorded in replay.recorded_calls(capture["rpc"]):
        if code in LISTS:
            assert with_sequence(answers(code, argument), 1) == recorded
    for code, argument, _, recorded in replay.recorded_calls(capture.get("standby_rpc", ())):
        if code != CLI:
            assert with_sequence(forwards(code, argument), 1) == recorded


@needs_examples
@pytest.mark.parametrize("name, code, argument, sequence", [
    ("01_list_apps_req_v0", LIST_APPS, 0, 1), ("05_query_cfg_req_v0", QUERY, b"temp", 2),
    ("12_list_nodes_req_v0", LIST_NODES, 0, 3), ("15_cluster_info_req_v0", CLUSTER_INFO, None, 4),
    ("18_cli_call_req_v0", CLI, "server-info", 5),
])
def test_replay_takes_exactly_the_recorded_requests(name, code, argument, sequence):
    with open(os.path.join(EXAMPLES, name + ".bin"), "rb") as file:
        data = file.read()
    assert replay.request(code, argument, sequence, 5000) == data
    assert replay.parse_request(data)[:4] == (code, argument, sequence, 5000)
    with pytest.raises((ValueError, struct.error, IndexError)):
        replay.parse_request(data[:24] + b"\0\0\0\1" + data[28:])


@needs_examples
@pytest.mark.parametrize("call, name, sequence", [
    (ph._CALLS["apps"], "01_list_apps_req_v0", 1), (ph._query(b"temp"), "05_query_cfg_req_v0", 2),
    (ph._CALLS["nodes"], "12_list_nodes_req_v0", 3),
    (ph._CALLS["cluster_info"], "15_cluster_info_req_v0", 4),
    (ph._CALLS["server_info"], "18_cli_call_req_v0", 5),
])
def test_request_bytes(call, name, sequence):
    with open(os.path.join(EXAMPLES, name + ".bin"), "rb") as file:
        assert ph._request(call.code, call.args, sequence, 5000) == file.read()


@needs_captures
def test_requests_on_the_wire_are_the_recorded_ones():
    capture = replay.capture("healthy")
    recorded = {request for _, _, request, _ in replay.recorded_calls(capture["rpc"])}
    with Meta(replay.recorded(capture["rpc"])) as meta, serving(meta) as server:
        for target in capture["http"]:
            get(server.port, target)
        assert {one.code for one in meta.requests} == {*LISTS, QUERY, CLI}
        for one in meta.requests:
            at = 56 + len(one.code)
            assert one.raw[32:36] != bytes(4), "a timeout of 0 means: drop"
            patched = one.raw[:32] + struct.pack(">i", 10000) + one.raw[36:at] \
                + struct.pack(">i", 1) + one.raw[at + 4:]
            assert patched in recorded, one


def test_sequence_ids_differ_within_a_connection(leader):
    with serving(leader) as server:
        check_pages(server, STATE)
    pairs = [(one.connection, one.sequence) for one in leader.requests]
    assert len(pairs) == len(set(pairs)) > 5


def test_timeout_in_the_header_is_ours(leader):
    with serving(leader, timeout=7.0) as server:
        get(server.port, "/meta/apps?detail=true")
    assert {0 < one.timeout <= 7000 for one in leader.requests} == {True}


# ---- recorded pages -----------------------------------------------------------------------------

def check_recorded(port, pages):
    """Every recorded page byte for byte; where the contract differs on purpose, what it says."""
    for target, page in pages.items():
        answer = get(port, target)
        if target == "/recentStartTime":  # of this process, not of the cluster
            assert (answer.status, list(answer.json)) == (200, ["RecentStartTime"])
        elif page["status"] == 404:  # JSON instead of the bare text
            check_error(answer, 404, "ERR_OBJECT_NOT_FOUND", page["body"])
        elif page["status"] == 500:  # a sentence and a fitting status instead of "/"
            assert page["body"] == "/"
            check_error(answer, 503, "ERR_BUSY_CREATING")
            assert answer.headers["retry-after"] == "1"
        else:
            assert page["status"] == 200
            assert (answer.status, answer.body) == (200, page["body"].encode("utf-8")), target


@needs_captures
@pytest.mark.parametrize("name", STATES)
def test_recorded_pages_byte_for_byte(name):
    capture = replay.capture(name)
    with Meta(replay.recorded(capture["rpc"])) as meta:
        with running("--role", "meta", "--cluster", meta.address, "--flat", TZ="UTC") as (_, port):
            check_recorded(port, capture["http"])
        assert meta.connections == 1


@needs_captures
@pytest.mark.parametrize("name", ["healthy", "all_nodes_dead"])
def test_recorded_pages_by_way_of_the_recorded_standby(name):
    capture = replay.capture(name)
    with Meta(replay.recorded(capture["rpc"])) as meta:
        forward = replay.overriding(  # the recorded answer names a port that is not ours to use
            replay.recorded(capture["standby_rpc"]), {QUERY: replay.forward_query(meta.address)})
        with Meta(forward) as standby:
            arguments = ("--role", "meta", "--cluster", standby.address, "--flat")
            with running(*arguments, TZ="UTC") as (_, port):
                check_recorded(port, capture["http"])


@needs_captures
def test_recorded_standby_of_a_dead_leader():
    capture = replay.capture("standby_leader_just_died")
    with replay.refused() as dead:
        forward = replay.overriding(
            replay.recorded(capture["rpc"]), {QUERY: replay.forward_query(dead)})
        with Meta(forward) as standby, serving(standby) as server:
            for target in capture["http"]:
                if target.startswith("/meta/"):
                    answer = get(server.port, target)
                    assert answer.status in (502, 503), answer
                    check_error(answer, answer.status, None, dead)


@needs_captures
@pytest.mark.parametrize("name", STATES)
def test_recorded_pages_through_slow_and_torn_delivery(name):
    capture = replay.capture(name)
    pages = {target: page for target, page in capture["http"].items()
             if "?detail" in target or target == "/meta/cluster"}
    fault = replay.chain(replay.glued, replay.bytewise)
    with Meta(replay.recorded(capture["rpc"]), fault) as meta, serving(meta) as server:
        for target, page in pages.items():
            assert get(server.port, target).body == page["body"].encode("utf-8"), target


# ---- shapes of the wire -------------------------------------------------------------------------

RESPONSES = [
    ("02_list_apps_rsp_old", "_decode_apps"), ("03_list_apps_rsp_new", "_decode_apps"),
    ("06_query_cfg_rsp_old", "_decode_query"), ("07_query_cfg_rsp_new", "_decode_query"),
    ("11_query_cfg_rsp_notfound", "_decode_query"), ("13_list_nodes_rsp_old", "_decode_nodes"),
    ("14_list_nodes_rsp_new", "_decode_nodes"), ("16_cluster_info_rsp_old", "_decode_info"),
    ("17_cluster_info_rsp_new", "_decode_info"), ("19_cli_call_rsp_old", "_decode_server_info"),
    ("20_cli_call_rsp_new", "_decode_server_info"),
]


@needs_examples
@pytest.mark.parametrize("name, decode", RESPONSES)
def test_example_answers_decode(name, decode):
    """Made by yet another encoder, from the interface files."""
    with open(os.path.join(EXAMPLES, name + ".bin"), "rb") as file:
        data = file.read()
    assert getattr(ph, decode)(data, ph._read_reply(data).body)


def old_world():
    state = replay.make_state(nodes=12, host="200.255.%d.%d")
    state["nodes"].append({"address": "9.0.0.1:65535", "status": "UNALIVE"})
    state["apps"][0]["partitions"][0].update(primary=None)
    state["apps"][0]["partitions"][1].update(primary="9.0.0.1:65535", secondaries=[])
    state["apps"][1]["partitions"][2].update(primary=None, secondaries=[], ballot=-1)
    return state


def new_world():
    state = old_world()
    text = json.dumps(state).replace("200.255.0.1:", "replica-1.example.com:")
    return json.loads(text.replace("200.255.0.10:34801", "a:65535"))


@pytest.mark.parametrize("world, new", [(old_world, False), (old_world, True), (new_world, True)])
def test_both_address_worlds(world, new):
    with Meta(replay.synthetic(world(), new)) as meta, serving(meta) as server:
        check_pages(server, world())


def test_host_name_wins_over_the_resolved_address():
    state = replay.make_state(tables=1, nodes=3, host="n%d-%d.example.com")
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        assert b"127.0.0.1" not in get(server.port, "/meta/app?name=table1&detail=true").body


def test_primary_never_assigned():
    """On a new server a partition without a primary may lack the host_port fields."""
    state = replay.make_state(tables=1, partitions=2)
    state["apps"][0]["partitions"][0].update(primary=None, secondaries=[])
    whole = replay.query(state["apps"][0])
    first = replay.partition(1, 0, state["apps"][0]["partitions"][0], new=True)
    bare = replay.partition(1, 0, state["apps"][0]["partitions"][0], new=False)
    short = whole.replace(first, bare)
    short = struct.pack(">i", len(short)) + short[4:]
    answers = replay.overriding(replay.synthetic(state), {QUERY: short})
    with Meta(answers) as meta, serving(meta) as server:
        check_pages(server, state, ["/meta/app?name=table1&detail=true", "/meta/apps?detail=true"])


def test_cluster_info_of_an_old_server():
    """Five keys only, before 1.11.3; the deviations follow from the tables."""
    state = replay.make_state()
    state["apps"][0]["partitions"][0].update(primary=None, secondaries=[])
    state["cluster_info"] = dict(list(state["cluster_info"].items())[:5])
    with Meta(replay.synthetic(state, new=False)) as meta, serving(meta) as server:
        answer = get(server.port, "/meta/cluster")
    assert answer.status == 200
    assert list(answer.json.items())[:5] == list(state["cluster_info"].items())
    for key in ("primary_replica_count_stddev", "total_replica_count_stddev"):
        assert answer.json[key] == json.loads(expected(state, "/meta/cluster"))[key] != "0.00"


def test_cluster_info_keys_in_any_order_and_unknown_ones():
    state = replay.make_state()
    state["cluster_info"] = dict(reversed(list(state["cluster_info"].items())), later="x")
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        assert get(server.port, "/meta/cluster").body == expected(STATE, "/meta/cluster")


@pytest.mark.parametrize("code", [*LISTS, QUERY])
def test_unknown_scalar_fields_are_skipped(code):
    answers = replay.synthetic(STATE, extra=replay.unknown_scalars(), only=code)
    with Meta(answers) as meta, serving(meta) as server:
        check_pages(server, STATE)


UNKNOWN_STRUCTS = {
    "struct": replay.field(replay.STRUCT, 77, b"\0"),
    "list of structs": replay.sequence_of(77, replay.STRUCT, [b"\0"]),
    "map of structs": replay.field(
        replay.MAP, 77,
        struct.pack(">bbi", replay.STRING, replay.STRUCT, 1) + replay.octets("k") + b"\0"),
    "list of lists of structs": replay.sequence_of(
        77, replay.LIST, [struct.pack(">bi", replay.STRUCT, 1) + b"\0"]),
}


@pytest.mark.parametrize("kind", UNKNOWN_STRUCTS)
@pytest.mark.parametrize("code", [*LISTS, QUERY])
def test_unknown_struct_fields_are_refused(code, kind):
    answers = replay.synthetic(STATE, extra=UNKNOWN_STRUCTS[kind], only=code)
    target = {LIST_NODES: "/meta/nodes", CLUSTER_INFO: "/meta/cluster"}.get(
        code, "/meta/app?name=table1&detail=true")
    with Meta(answers) as meta:
        answer = check_error(one_page(meta, target=target), 502, None, meta.address)
    assert "77" in answer.json["hint_message"], answer


def test_nesting_does_not_exhaust_the_stack():
    deep = struct.pack(">bi", replay.LIST, 1) * 100000 + struct.pack(">bi", replay.I32, 0)
    answers = replay.synthetic(STATE, extra=replay.field(replay.LIST, 90, deep), only=LIST_NODES)
    with Meta(answers) as meta:
        check_error(one_page(meta), 502, None, meta.address)


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


def test_names_that_need_care():
    state = replay.make_state()
    names = ["a b", "\u8868/\U0001f4a9", "x&name=y"]
    for app, name in zip(state["apps"], names):
        app["app_name"] = name
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        check_pages(server, state, [
            "/meta/app?detail&name=" + "".join("%%%02x" % byte for byte in name.encode("utf-8"))
            for name in names])


# ---- finding the leader -------------------------------------------------------------------------

def test_standby_first_in_the_list(leader):
    with Meta(replay.standby()) as standby, serving(standby, leader) as server:
        check_pages(server, STATE)


@pytest.mark.parametrize("new", [False, True])
def test_forward_address_outside_the_list(leader, new):
    with Meta(replay.standby(leader.address, new)) as standby, serving(standby) as server:
        check_pages(server, STATE)
        assert len(standby.requests) < 4, "the leader is remembered"


def test_forward_address_by_host_name(leader):
    with Meta(replay.standby("localhost:%d" % leader.port)) as standby:
        assert one_page(standby).status == 200


def test_stale_forward_address_goes_on_with_the_list(leader):
    with replay.refused() as dead, Meta(replay.standby(dead)) as standby:
        assert one_page(standby, leader).status == 200


def test_forward_to_itself():
    with Meta(replay.standby()) as standby:
        standby.answers = replay.standby(standby.address)
        check_error(one_page(standby), 503, "ERR_SERVICE_NOT_ACTIVE", standby.address)
        assert len(standby.requests) < 20


def test_forward_loop_ends():
    with Meta(replay.standby()) as one, Meta(replay.standby(one.address)) as two:
        one.answers = replay.standby(two.address)
        check_error(one_page(one, two), 503, "ERR_SERVICE_NOT_ACTIVE")
        assert len(one.requests) + len(two.requests) < 40


@pytest.mark.parametrize("hops, status", [(1, 200), (3, 200), (4, 503)])
def test_three_hops_at_most(leader, hops, status):
    with contextlib.ExitStack() as stack:
        target = leader
        for _ in range(hops):
            target = stack.enter_context(Meta(replay.standby(target.address)))
        assert one_page(target).status == status
        assert (len(leader.requests) > 0) == (status == 200)


def test_no_leader_known():
    with Meta(replay.standby()) as one, Meta(replay.standby()) as two:
        answer = one_page(one, two)
    check_error(answer, 503, "ERR_SERVICE_NOT_ACTIVE")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("error", ["ERR_SERVICE_NOT_ACTIVE"])
def test_leader_not_ready(error):
    with Meta(replay.failing(error)) as meta:
        answer = check_error(one_page(meta, timeout=QUICK), 503, error, meta.address)
        assert answer.headers["retry-after"] == "1"
        assert len(meta.requests) < 20


def test_leader_becomes_ready():
    not_ready = replay.failing("ERR_SERVICE_NOT_ACTIVE")
    with Meta(not_ready) as meta, serving(meta, timeout=QUICK) as server:
        assert get(server.port, "/meta/nodes").status == 503
        meta.answers = replay.synthetic(STATE)
        wait_until(lambda: get(server.port, "/meta/nodes").status == 200, "ready")


@pytest.mark.parametrize("failure", [
    replay.failing("ERR_SERVICE_NOT_ACTIVE"), replay.standby(), replay.refusing("ERR_BUSY"),
], ids=["not active", "standby", "busy"])
def test_back_off_ends_however_many_pages_are_polled(failure):
    """An attempt that was spared does not put off the next one."""
    with Meta(failure) as meta, serving(meta, timeout=2.0) as server:
        def poll():
            return [get(server.port, target).status for target in PAGES]
        assert set(poll()) <= {502, 503}
        meta.answers = replay.synthetic(STATE)
        wait_until(lambda: poll() == [200] * len(PAGES), "all pages are back")


def test_back_off_stays_short_after_thousands_of_attempts():
    with replay.refused() as dead, reading(dead) as source:
        for _ in range(3000):
            source._retry_at = -math.inf
            with pytest.raises(ph.PageError, match="no meta server is reachable: " + dead):
                source()
            assert source._retry_at - time.monotonic() <= 1.0
        assert source._failures == 3000
        with ph.StatusServer(source, role="meta") as server:
            check_error(get(server.port, "/meta/nodes"), 502, "ERR_NETWORK_FAILURE", dead)


def test_starting_server_without_handlers_is_passed_over(leader):
    with Meta(replay.refusing("ERR_HANDLER_NOT_FOUND")) as starting:
        assert one_page(starting, leader).status == 200


def test_starting_server_alone():
    with Meta(replay.refusing("ERR_HANDLER_NOT_FOUND")) as starting:
        answer = one_page(starting, timeout=QUICK)
        assert answer.status in (502, 503)
        check_error(answer, answer.status, None, starting.address)


def test_leader_dies_and_the_next_takes_over():
    with Meta(replay.synthetic(STATE)) as first, Meta(replay.standby()) as second, \
            serving(first, second) as server:
        check_pages(server, STATE)
        first.close()
        second.answers = replay.synthetic(STATE)
        check_pages(server, STATE)


def test_leader_is_demoted_between_pages(leader):
    with Meta(replay.synthetic(STATE)) as first, serving(first, leader) as server:
        check_pages(server, STATE)
        assert leader.requests == []
        first.answers = replay.standby(leader.address)
        check_pages(server, STATE)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("target", ["/meta/apps?detail=true", "/meta/nodes?detail=true"])
def test_leader_changes_in_mid_page(leader, target, calls, known):
    """After so many calls the leader is a standby; the page is whole and fresh all the same."""
    forward = replay.standby(leader.address if known else None)
    with Meta(replay.switching(replay.synthetic(STATE), calls, forward)) as first:
        answer = one_page(first, leader, target=target)
    assert (answer.status, answer.body) == (200, expected(STATE, target))


@pytest.mark.parametrize("answers", range(6))
@pytest.mark.parametrize("target", ["/meta/apps?detail=true", "/meta/nodes?detail=true"])
def test_leader_dies_in_mid_page(leader, target, answers):
    with Meta(replay.synthetic(STATE), replay.closed_after_answers(answers)) as first:
        answer = one_page(first, leader, target=target)
    assert (answer.status, answer.body) == (200, expected(STATE, target))


def test_no_mixture_of_two_leaders():
    """A page that began at one leader and ended at another is of the second alone."""
    changed = replay.make_state()
    for app in changed["apps"]:
        for row in app["partitions"]:
            row.update(ballot=9, primary=None)
    with Meta(replay.synthetic(changed)) as second:
        first = replay.switching(replay.synthetic(STATE), 3, replay.standby(second.address))
        with Meta(first) as meta:
            answer = one_page(meta, second, target="/meta/apps?detail=true")
    assert answer.body == expected(changed, "/meta/apps?detail=true")


def test_end_of_file_passes_over_to_the_next(leader):
    for count in (0, 3, 50):
        with Meta(replay.synthetic(STATE), replay.closed_after(count)) as broken:
            assert one_page(broken, leader).status == 200


def test_end_of_file_on_a_reused_connection(leader):
    with serving(leader) as server:
        check_pages(server, STATE)
        leader.drop()
        check_pages(server, STATE)
        leader.fault = replay.once(replay.closed_after(0))
        check_pages(server, STATE)


@pytest.mark.parametrize("count", [0, 3, 50])
def test_end_of_file_every_time(leader, count):
    leader.fault = replay.closed_after(count)
    check_error(one_page(leader), 502, "ERR_NETWORK_FAILURE", leader.address)
    assert leader.connections < 10


def test_refused():
    with replay.refused() as one, replay.refused() as two:
        check_error(one_page(one, two), 502, "ERR_NETWORK_FAILURE", one, two)


def test_refused_first(leader):
    with replay.refused() as dead, serving(dead, leader) as server:
        check_pages(server, STATE)


def test_silence(leader):
    leader.fault = replay.silent
    start = time.monotonic()
    check_error(one_page(leader, timeout=QUICK), 504, "ERR_TIMEOUT", leader.address)
    assert QUICK * 0.9 < time.monotonic() - start < QUICK + 5


def test_silence_of_all(leader):
    leader.fault = replay.silent
    with Meta(replay.synthetic(STATE), replay.silent) as other:
        start = time.monotonic()
        answer = one_page(leader, other, timeout=QUICK)
        check_error(answer, 504, "ERR_TIMEOUT", leader.address, other.address)
        assert time.monotonic() - start < QUICK + 5
        assert min(len(leader.requests), len(other.requests)) > 0, "both were asked"


@pytest.mark.parametrize("fault", [replay.silent, replay.truncated(20), replay.lying(1 << 20)])
def test_silent_first_and_good_second_within_the_timeout(leader, fault):
    with Meta(replay.synthetic(STATE), fault) as mute:
        answer = one_page(mute, leader, target="/meta/apps?detail=true", timeout=2.4)
    assert (answer.status, answer.body) == (200, expected(STATE, "/meta/apps?detail=true"))


def test_known_leader_falls_silent(leader):
    with Meta(replay.synthetic(STATE)) as first, serving(first, leader, timeout=2.4) as server:
        assert get(server.port, "/meta/nodes").status == 200
        first.fault = replay.silent
        assert get(server.port, "/meta/nodes").status == 200
        assert leader.requests


def test_queries_fall_silent(leader):
    leader.fault = replay.only(QUERY, replay.silent)
    answer = one_page(leader, target="/meta/apps?detail=true", timeout=QUICK)
    check_error(answer, 504, "ERR_TIMEOUT", leader.address)


def test_drip_does_not_outlive_the_timeout(leader):
    """Bytes that keep coming do not extend the deadline."""
    def drip(pieces):
        for piece in replay.bytewise(pieces):
            time.sleep(0.05)
            yield piece
    leader.fault = drip
    start = time.monotonic()
    check_error(one_page(leader, timeout=QUICK), 504, "ERR_TIMEOUT")
    assert time.monotonic() - start < QUICK + 5


@pytest.mark.parametrize("error", ["ERR_ACL_DENY", "ERR_UNDER_RECOVERY", "ERR_INVENTED_LATER"])
def test_other_errors_pass_verbatim(error):
    with Meta(replay.failing(error)) as meta:
        for target in ("/meta/nodes", "/meta/cluster", "/meta/apps"):
            check_error(one_page(meta, target=target, timeout=2.0), 502, error, meta.address)


def test_error_of_the_rpc_layer_passes_verbatim():
    with Meta(replay.refusing("ERR_BUSY")) as meta:
        check_error(one_page(meta, timeout=2.0), 502, "ERR_BUSY", meta.address)


def test_error_of_one_table_is_no_other_pages_error(leader):
    denied = replay.query(None, error="ERR_ACL_DENY")
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table3"): denied})
    with serving(leader, timeout=2.0) as server:
        for target in ("/meta/nodes", "/meta/cluster", "/meta/app?name=table1", "/meta/apps"):
            check_error(get(server.port, "/meta/app?name=table3"), 502, "ERR_ACL_DENY")
            check_pages(server, STATE, [target])


# ---- load on the meta servers -------------------------------------------------------------------

def test_nothing_is_asked_while_nobody_asks(leader):
    with serving(leader, max_age=0.01) as server:
        assert get(server.port, "/").status == 200
        assert get(server.port, "/startTime").status == 200
        assert (leader.connections, leader.requests) == (0, [])
        assert get(server.port, "/meta/nodes").status == 200
        before = len(leader.requests)
        end = time.monotonic() + 0.3
        wait_until(lambda: time.monotonic() > end, "the clock")
        assert len(leader.requests) == before


def test_one_refresh_however_many_poll(leader):
    with serving(leader, max_age=600.0) as server, \
            concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda target: get(server.port, target), PAGES * 12))
    assert {answer.status for answer in answers} == {200}
    for code in LISTS:
        assert leader.count(code) == 1
    asked = leader.asked(QUERY)
    assert len(asked) == len(set(asked)) == 3
    assert leader.connections == 1


def test_requests_share_a_refresh_under_way(leader):
    gate = threading.Event()
    leader.fault = replay.held(gate)
    with serving(leader) as server, concurrent.futures.ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(get, server.port, "/meta/nodes") for _ in range(12)]
        wait_until(lambda: leader.requests and server.counters.connections >= 12, "all ask")
        gate.set()
        assert {job.result().status for job in jobs} == {200}
    assert leader.count(LIST_NODES) < 12


def test_age_is_respected(leader):
    """After max_age the next request sees what changed; before it, none does."""
    with serving(leader, max_age=0.05) as server:
        assert get(server.port, "/meta/nodes").body == expected(STATE, "/meta/nodes")
        changed = replay.make_state(nodes=7)
        leader.answers = replay.synthetic(changed)
        wait_until(lambda: get(server.port, "/meta/nodes").body == expected(changed, "/meta/nodes"),
                   "the new nodes")


@pytest.mark.parametrize("target, codes", [
    ("/meta/nodes", {LIST_NODES}), ("/meta/cluster", {CLUSTER_INFO}), ("/meta/apps", {LIST_APPS}),
    ("/meta/apps?detail=true", {LIST_APPS, QUERY}), ("/meta/app?name=table1", {LIST_APPS, QUERY}),
    ("/meta/nodes?detail=true", {LIST_NODES, LIST_APPS, QUERY}),
])
def test_only_what_a_page_needs_is_asked(leader, target, codes):
    assert one_page(leader, target=target).status == 200
    assert {one.code for one in leader.requests} - {CLI} <= codes
    if target.startswith("/meta/app?"):
        assert set(leader.asked(QUERY)) == {b"table1"}


def test_one_connection_is_reused(leader):
    with serving(leader) as server:
        for _ in range(5):
            check_pages(server, STATE)
    assert leader.connections == 1
    assert leader.count(LIST_APPS) >= 5


def test_connection_is_closed_after_idling(leader, monkeypatch):
    monkeypatch.setattr(ph, "_SOURCE_IDLE_SECONDS", 0.02)
    with serving(leader) as server:
        for _ in range(2):
            assert get(server.port, "/meta/nodes").status == 200
            wait_until(lambda: leader.open == 0, "the idle connection is closed")


def test_stopping_during_a_refresh_leaves_nothing_behind(leader, monkeypatch):
    monkeypatch.setattr(ph, "_SOURCE_IDLE_SECONDS", 1000.0)
    monkeypatch.setattr(ph, "_STOP_SECONDS", 0.05)
    gate = threading.Event()
    leader.fault = replay.held(gate)
    with serving(leader) as server, support.Client(server.port) as client:
        client.send(b"GET /meta/nodes HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: leader.requests, "the refresh has begun")
    gate.set()
    wait_until(lambda: leader.open == 0, "the connection to the meta server is closed")


def test_connections_are_closed_with_the_server(leader):
    with serving(leader) as server:
        check_pages(server, STATE)
    wait_until(lambda: leader.open == 0, "the connection to the meta server is closed")


def test_failing_cluster_is_not_hammered():
    with Meta(replay.failing("ERR_UNDER_RECOVERY")) as meta, serving(meta, max_age=1.0) as server:
        for _ in range(40):
            check_error(get(server.port, "/meta/nodes"), 502, "ERR_UNDER_RECOVERY")
        assert len(meta.requests) < 20


def test_cluster_without_a_leader_is_not_hammered_by_many_pages():
    with Meta(replay.standby()) as meta, serving(meta) as server:
        for number in range(200):
            answer = get(server.port, "/meta/app?name=table%d" % number)
            check_error(answer, 503, "ERR_SERVICE_NOT_ACTIVE", meta.address)
        assert meta.count(LIST_APPS) < 100


def test_thousand_tables_are_a_list_and_a_stream():
    state = replay.make_state(tables=1000)
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        answer = get(server.port, "/meta/apps?detail=true")
        assert answer.body == expected(state, "/meta/apps?detail=true")
        assert (meta.count(LIST_APPS), meta.count(QUERY), meta.connections) == (1, 1000, 1)
        assert get(server.port, "/meta/nodes?detail=true").status == 200


def test_queries_are_pipelined(leader):
    """No query is answered before two wait: one at a time would never get an answer."""
    state = replay.make_state(tables=64)
    with Meta(replay.synthetic(state), gather=2) as meta, serving(meta) as server:
        check_pages(server, state, ["/meta/apps?detail=true"])


def test_pipelining_is_bounded():
    """A server that answers no query has not got all of them."""
    state = replay.make_state(tables=3000, partitions=1)
    with Meta(replay.synthetic(state), replay.only(QUERY, replay.silent)) as meta:
        assert one_page(meta, target="/meta/apps?detail=true", timeout=1.5).status == 504
        assert 1 < len(set(meta.asked(QUERY))) < 3000


def test_answers_in_any_order():
    state = replay.make_state(tables=40)
    shuffle = random.Random(3).shuffle

    def shuffled(pieces):
        pieces = list(pieces)
        shuffle(pieces)
        return pieces
    for fault in (replay.reordered, shuffled, replay.chain(replay.reordered, replay.glued),
                  replay.chain(replay.reordered, replay.bytewise)):
        with Meta(replay.synthetic(state), fault, gather=4) as meta, serving(meta) as server:
            check_pages(server, state, ["/meta/apps?detail=true"])


def test_answer_with_a_wrong_sequence_id(leader):
    def renumbered(pieces):
        return (with_sequence(piece, 987654) for piece in pieces)
    leader.fault = renumbered
    answer = one_page(leader, timeout=QUICK)
    assert answer.status in (502, 504)
    check_error(answer, answer.status, None, leader.address)


def test_answer_of_another_call(leader):
    """An empty list of the one would make an empty list of the other."""
    leader.answers = replay.overriding(
        leader.answers, {LIST_APPS: replay.list_nodes([]), LIST_NODES: replay.list_apps([])})
    for target in ("/meta/apps", "/meta/nodes"):
        answer = one_page(leader, target=target, timeout=2.0)
        assert answer.status in (502, 504), answer


# ---- tables that come and go --------------------------------------------------------------------

def test_table_that_vanishes_between_list_and_query(leader):
    gone = replay.query(None, error="ERR_OBJECT_NOT_FOUND")
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table2"): gone})
    without = dict(STATE, apps=[STATE["apps"][0], STATE["apps"][2]])
    with serving(leader) as server:
        apps = get(server.port, "/meta/apps?detail=true")
        assert (apps.status, list(apps.json["healthy_info"])) == (200, ["1", "3"])
        target = "/meta/nodes?detail=true"
        assert get(server.port, target).body == expected(without, target)
        check_error(get(server.port, "/meta/app?name=table2"), 404, "ERR_OBJECT_NOT_FOUND",
                    'table not found: "table2"')


@pytest.mark.parametrize("error", ["ERR_BUSY_CREATING", "ERR_BUSY_DROPPING"])
def test_table_that_gets_busy_between_list_and_query(leader, error):
    busy = replay.query(None, error=error)
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table2"): busy})
    with serving(leader) as server:
        apps = get(server.port, "/meta/apps?detail=true")
        assert (apps.status, list(apps.json["healthy_info"])) == (200, ["1", "3"])
        assert get(server.port, "/meta/nodes?detail=true").status == 200
        answer = check_error(get(server.port, "/meta/app?name=table2"), 503, error)
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("status, error", [
    ("CREATING", "ERR_BUSY_CREATING"), ("RECALLING", "ERR_BUSY_CREATING"),
    ("DROPPING", "ERR_BUSY_DROPPING"),
])
@pytest.mark.parametrize("suffix", ["", "&detail=true"])
def test_busy_table(status, error, suffix):
    state = replay.make_state()
    state["apps"][1]["status"] = status
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        answer = check_error(get(server.port, "/meta/app?name=table2" + suffix), 503, error)
        assert answer.headers["retry-after"] == "1"
        apps = get(server.port, "/meta/apps?detail=true").json
        assert list(apps["general_info"]) == list(apps["healthy_info"]) == ["1", "3"]


def test_name_that_is_not_in_the_list_is_not_asked_for(leader):
    with serving(leader) as server:
        for name in ("nosuch", "table", "table11", "Table1", "x" * 4000, "%00", "table1%00"):
            check_error(get(server.port, "/meta/app?name=" + name), 404, "ERR_OBJECT_NOT_FOUND")
    assert leader.count(QUERY) == 0


def test_bad_parameters_are_not_asked_for(leader):
    with serving(leader) as server:
        for target in ("/meta/app", "/meta/app?name=", "/meta/app?name=%ff", "/meta/apps?detail=x",
                       "/meta/app?name=table1&x=1", "/meta/nosuch"):
            assert get(server.port, target).status in (400, 404)
    assert leader.requests == []


def test_dropped_table():
    """Dropped, with a namesake that lives and without one."""
    state = replay.make_state()
    state["apps"][0].update(status="DROPPED", app_name="table3", partitions=None)
    state["apps"][1].update(status="DROPPED", partitions=None)
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        check_error(get(server.port, "/meta/app?name=table2"), 404, "ERR_OBJECT_NOT_FOUND")
        assert meta.count(QUERY) == 0
        assert get(server.port, "/meta/app?name=table3").json["general"]["app_id"] == "3"
        check_pages(server, state, ["/meta/apps?detail=true", "/meta/nodes?detail=true"])


def test_split_in_progress():
    """Twice the partitions the list knows; the children have no primary yet."""
    state = replay.make_state(tables=1, partitions=2)
    app = state["apps"][0]
    child = {"ballot": -1, "max_replica_count": 3, "primary": None, "secondaries": []}
    app.update(partitions=app["partitions"] + [child, child], partition_count=4)
    listed = dict(app, partition_count=2)
    answers = replay.overriding(replay.synthetic(state), {LIST_APPS: replay.list_apps([listed])})
    with Meta(answers) as meta, serving(meta) as server:
        target = "/meta/app?name=table1&detail=true"
        assert get(server.port, target).body == expected(state, target)
        assert get(server.port, "/meta/apps?detail=true").status == 200


def test_no_tables_and_no_nodes():
    state = dict(replay.make_state(), apps=[], nodes=[])
    with Meta(replay.synthetic(state)) as meta, serving(meta) as server:
        check_pages(server, state, PAGES[:5])


# ---- codec --------------------------------------------------------------------------------------

def random_state(rng, new):
    """Any cluster that the wire can carry; names are unique, as the server holds them."""
    def text():
        return "".join(chr(rng.choice((rng.randint(1, 127), rng.randint(0xA0, 0xD7FF))))
                       for _ in range(rng.randint(0, 12)))

    def address():
        if new and rng.random() < 0.5:
            return "r%d.example.com:%d" % (rng.randint(0, 9), rng.randint(1, 65535))
        return "%d.%d.0.%d:%d" % (rng.randint(1, 255), rng.randint(0, 255), rng.randint(0, 255),
                                  rng.randint(1, 65535))

    def row():
        return {"ballot": rng.randint(-1, 1 << 40), "max_replica_count": rng.randint(1, 5),
                "primary": rng.choice((None, address())),
                "secondaries": [address() for _ in range(rng.randint(0, 3))]}

    def app(app_id):
        status = rng.choice(("AVAILABLE", "AVAILABLE", "AVAILABLE", "DROPPED", "CREATING"))
        rows = [row() for _ in range(rng.randint(1, 6))]
        return {"app_name": "%d%s" % (app_id, text()), "app_id": app_id, "app_type": text(),
                "partition_count": len(rows), "is_stateful": rng.random() < 0.5,
                "envs": {text(): text() for _ in range(rng.randint(0, 3))},
                "max_replica_count": rng.randint(1, 9),
                "create_second": rng.randint(0, 1 << 32), "drop_second": rng.randint(0, 1 << 32),
                "expire_second": rng.randint(0, 1 << 32), "status": status,
                "partitions": rows if status == "AVAILABLE" else None}

    state = replay.make_state()
    ids = sorted(rng.sample(range(1, 1 << 20), rng.randint(0, 6)))
    state["apps"] = [app(app_id) for app_id in ids]
    state["nodes"] = [{"address": one, "status": rng.choice(("ALIVE", "UNALIVE"))}
                      for one in sorted({address() for _ in range(rng.randint(0, 6))})]
    for key in ("zookeeper_hosts", "balance_operation_count", "cluster_name"):
        state["cluster_info"][key] = text()
    return state


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("seed", range(200 if LONG else 20))
def test_what_is_encoded_decodes_to_itself(seed, new):
    state = random_state(random.Random(seed), new)
    wanted = cluster_of(state)
    extra = replay.unknown_scalars() if seed % 2 else b""
    with Meta(replay.synthetic(state, new, extra)) as meta, reading(meta) as source:
        found = source()
    assert found.apps == wanted.apps
    assert sorted(found.nodes) == sorted(wanted.nodes)
    for key, value in state["cluster_info"].items():
        assert getattr(found, key) == value


# ---- answers that are torn, lie or are damaged --------------------------------------------------

SMALL = replay.make_state(tables=2, partitions=2, nodes=3)
FRAMES = {code: replay.synthetic(SMALL)(code, argument) for code, argument in (
    (LIST_APPS, 0), (LIST_NODES, 0), (CLUSTER_INFO, None), (QUERY, b"table1"))}


def outcome(meta):
    """What asking for everything gives: a Cluster whose pages can be built, or a page's error."""
    with reading(meta) as source:
        try:
            state = source()
        except ph.PageError as error:
            state = error
    failed = isinstance(state, ph.PageError)
    for target in PAGES:
        answer = ph.respond(state, "GET", target)
        assert answer.status in ((502, 503, 504) if failed else (200, 404, 503)), (target, answer)
    return state


@pytest.mark.parametrize("code", FRAMES)
def test_cut_at_every_byte(code):
    with Meta(replay.synthetic(SMALL)) as meta:
        whole = outcome(meta)
        for count in range(len(FRAMES[code])):
            meta.fault = replay.only(code, replay.closed_after(count))
            assert outcome(meta).status == 502, count
        meta.fault = None
        assert outcome(meta) == whole


@pytest.mark.parametrize("code", FRAMES)
def test_cut_once_on_a_connection_in_use_is_retried(code):
    with Meta(replay.synthetic(SMALL)) as meta, reading(meta) as source:
        whole = source()
        for count in range(0, len(FRAMES[code]), 7):
            meta.fault = replay.once(replay.only(code, replay.closed_after(count)))
            assert source() == whole, count


@pytest.mark.parametrize("code", FRAMES)
def test_one_byte_flipped_on_the_wire(code):
    """An error or a valid state, of which every page can be built."""
    def last(pieces):
        yield from pieces
        yield replay.CLOSE
    with Meta(replay.synthetic(SMALL)) as meta:
        for position in range(0, len(FRAMES[code]), 1 if LONG else 3):
            flip = replay.flipped(position, (0x01, 0x80, 0xFF)[position % 3])
            meta.fault = replay.only(code, replay.chain(flip, last))
            outcome(meta)


DECODERS = {LIST_APPS: "_decode_apps", LIST_NODES: "_decode_nodes", CLUSTER_INFO: "_decode_info",
            QUERY: "_decode_query", CLI: "_decode_server_info"}


def decoded(code, frame):
    """What the codec makes of a frame; anything but its own three errors fails the test."""
    try:
        answer = ph._guarded(lambda data, at: ph._read_reply(data))(frame, 0)
        return getattr(ph, DECODERS[code])(frame, answer.body)
    except (ph._WireError, ph._NotPrimary, ph._Refused) as error:
        return error


def samples():
    """Frames of every kind: (code, frame)."""
    for new in (False, True):
        answers = replay.synthetic(SMALL, new, replay.unknown_scalars() if new else b"")
        for code, argument in ((LIST_APPS, 0), (LIST_NODES, 0), (CLUSTER_INFO, None),
                               (QUERY, b"table1"), (CLI, "server-info")):
            yield code, answers(code, argument)
        yield QUERY, replay.forward_query("10.0.0.1:34601", new)
    yield CLI, replay.cli(replay.OLD_INFO)


def test_every_byte_flipped_in_the_codec():
    masks = range(1, 256) if LONG else (0x01, 0x02, 0x0F, 0x80, 0xFF)
    for code, frame in samples():
        assert not isinstance(decoded(code, frame), ph._WireError)
        for position in range(len(frame)):
            for mask in masks:
                flip = bytes([frame[position] ^ mask])
                decoded(code, frame[:position] + flip + frame[position + 1:])


@pytest.mark.parametrize("seed", range(50 if LONG else 5))
def test_arbitrary_bytes_in_the_codec(seed):
    """Noise, noise behind a good head, and real answers cut, repeated and put together anew."""
    rng = random.Random(seed)
    frames = list(samples())
    for _ in range(400):
        code, frame = rng.choice(frames)
        head = frame[:replay.sequence_at(frame) + 4]
        noise = bytes(rng.choice((0, 1, 2, 8, 11, 12, 13, 15, rng.randrange(256)))
                      for _ in range(rng.randrange(200)))
        other = rng.choice(frames)[1]
        cut = rng.randrange(len(frame))
        for data in (noise, head + noise, frame[:cut] + noise, frame[:cut] + frame[cut // 2:],
                     frame[:cut] + other[rng.randrange(len(other)):], frame + noise):
            decoded(code, data)


LENGTHS = (-(1 << 31), -1, 0, 3, 4, 8, 11, 40, (1 << 31) - 1, (1 << 28) + 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_lying_length_is_seen_at_once(leader, length):
    """Not after the timeout: the connection stays open and says nothing more."""
    leader.fault = replay.lying(length)
    check_error(one_page(leader), 502, None, leader.address)


@pytest.mark.parametrize("more", [-1, -20, 1, 1000])
def test_length_a_little_wrong(leader, more):
    leader.fault = replay.chain(
        lambda pieces: (struct.pack(">i", len(piece) + more) + piece[4:] for piece in pieces),
        replay.closed_after(1 << 20))
    check_error(one_page(leader), 502, None, leader.address)


@pytest.mark.parametrize("count", [-(1 << 31), -7, -1, 10, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("marker", [
    b"\x0f\x00\x02\x0c", b"\x0f\x00\x02\x0b", b"\x0d\x00\x06\x0b\x0b", b"\x0b\x00\x03",
    b"\x0f\x00\x05\x0c", b"\x0f\x00\x0a\x0c"])
def test_lying_counts_inside(leader, marker, count):
    """Counts of lists and maps and lengths of strings: never more memory than was received."""
    hit = []

    def lie(piece):
        at = piece.find(marker, replay.sequence_at(piece)) + len(marker)
        if at < len(marker):
            return piece
        hit.append(at)
        return piece[:at] + struct.pack(">i", count) + piece[at + 4:]
    leader.fault = lambda pieces: (lie(piece) for piece in pieces)
    tracemalloc.start()
    try:
        assert outcome(leader).status == 502
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert hit


def test_garbage(leader):
    for data in (b"\0" * 64, b"\xff" * 64, random.Random(1).getrandbits(512).to_bytes(64, "big"),
                 b"SSH-2.0-OpenSSH_9\r\n", b"\x15\x03\x01\0\2\2\n"):
        leader.fault = replay.raw(data)
        check_error(one_page(leader), 502, None, leader.address)


def test_trailing_and_unasked_frames(leader):
    """An answer that nobody asked for is ignored or an error, never taken for another one."""
    def doubled(pieces):
        for piece in pieces:
            yield piece + piece
    leader.fault = doubled
    with serving(leader) as server:
        for target in PAGES * 2:
            answer = get(server.port, target)
            assert answer.status == 502 or answer.body == expected(STATE, target), target


# ---- /version -----------------------------------------------------------------------------------

@pytest.mark.parametrize("text, version, commit", [
    (replay.OLD_INFO, "1.12.3", "ab12" * 10), (replay.NEW_INFO, "2.6.0", "cd34" * 10),
    ("Pegasus Server 1.11.3 (non-git-repo) , Started at 2019-01-01 00:00:00", "1.11.3",
     "non-git-repo"),
])
def test_version_is_the_clusters(leader, text, version, commit):
    leader.answers = replay.overriding(leader.answers, {CLI: replay.cli(text)})
    page = one_page(leader, target="/version")
    assert page.json == {"Version": version, "GitCommit": commit}


@pytest.mark.parametrize("answer", [
    replay.cli("unknown command 'server-info'"), replay.cli(""), replay.cli("{"), replay.cli("[1]"),
    replay.cli('{"version":1}'), replay.cli(b"\xff\xfe"),
    replay.cli('{"version":"\\ud800","git_SHA":"\\udfff"}'), replay.cli('{"a":' + "[" * 100000),
    replay.cli('{"version":' + "9" * 5000 + "}"), replay.frame(CLI, b"", "ERR_HANDLER_NOT_FOUND"),
    replay.frame(CLI, b"\x0b\x00\x00\x7f\xff\xff\xff"),
], ids=range(11))
def test_version_falls_back_to_ours(leader, answer):
    own = ph.respond(None, "GET", "/version", flat=True).body
    leader.answers = replay.overriding(leader.answers, {CLI: answer})
    with serving(leader) as server:
        for target in PAGES:
            page = get(server.port, "/version")
            assert (page.status, page.body) == (200, own)
            check_pages(server, STATE, [target])
    with reading(leader) as source:
        assert source().apps == cluster_of(STATE).apps, "--dump does not need it either"


def test_version_of_an_unreachable_cluster():
    own = ph.respond(None, "GET", "/version", flat=True).body
    with replay.refused() as dead:
        page = one_page(dead, target="/version", timeout=QUICK)
        assert (page.status, page.body) == (200, own)


def test_silent_server_info_spoils_no_page(leader):
    leader.fault = replay.only(CLI, replay.silent)
    with serving(leader, timeout=QUICK) as server:
        assert get(server.port, "/version").status == 200
        check_pages(server, STATE)


# ---- command line -------------------------------------------------------------------------------

@needs_captures
@pytest.mark.parametrize("name", STATES)
def test_dump_served_again_gives_the_same_pages(name, tmp_path):
    capture = replay.capture(name)
    with Meta(replay.recorded(capture["rpc"])) as meta:
        code, out, err = run("--role", "meta", "--cluster", meta.address, "--dump")
    assert code == 0, err
    path = tmp_path / "dump.json"
    path.write_text(out, encoding="utf-8")
    with running("--role", "meta", "--state", str(path), "--flat", TZ="UTC") as (_, port):
        check_recorded(port, capture["http"])


def dump_error(address):
    """The lines on stderr of a --dump that cannot work."""
    code, out, err = run("--role", "meta", "--cluster", address, "--dump", "--timeout", "5")
    assert (code, out) == (1, ""), (code, out, err)
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize("address", [
    "10.0.0.1", "10.0.0.1:", ":34601", "10.0.0.1:x", "10.0.0.1:0", "10.0.0.1:65536", "a:1,b", "",
])
def test_address_that_is_none(address):
    code, out, err = run("--role", "meta", "--cluster", address)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert address.split(",")[-1] in err


def test_name_that_does_not_resolve():
    assert "no-such-host.invalid:34601" in dump_error("no-such-host.invalid:34601")


@pytest.mark.parametrize("host", [
    "no-such-host.invalid", "x" * 70 + ".invalid", "a..invalid",
], ids=["unknown", "label too long", "empty label"])
def test_name_that_cannot_resolve_is_passed_over(leader, host):
    """A label that is empty or too long fails in another way than an unknown name."""
    address = host + ":34601"
    assert one_page(address, leader, timeout=20.0).status == 200
    check_error(one_page(address, timeout=20.0), 502, "ERR_NETWORK_FAILURE", address)
    with Meta(replay.standby(address)) as standby:
        assert one_page(standby, leader, timeout=20.0).status == 200


def test_http_server_where_a_meta_was_expected(leader):
    leader.fault = replay.HTTP_400
    error = dump_error(leader.address)
    assert leader.address in error
    assert "HTTP" in error
    check_error(one_page(leader), 502, None, leader.address, "HTTP")


def test_our_own_server_where_a_meta_was_expected():
    with ph.StatusServer(support.cluster(), role="meta") as server:
        address = "127.0.0.1:%d" % server.port
        error = dump_error(address)
    assert address in error
    assert "HTTP" in error


def test_replica_server_where_a_meta_was_expected():
    with Meta(replay.replica_server()) as replica:
        error = dump_error(replica.address)
    assert replica.address in error
    assert "replica" in error


def test_refused_on_the_command_line():
    with replay.refused() as dead:
        assert dead in dump_error(dead)


def test_cluster_that_is_not_there_yet():
    """Unreachable at start is a warning: the pages come when the cluster does."""
    with Meta(replay.failing("ERR_SERVICE_NOT_ACTIVE")) as meta:
        arguments = ("--role", "meta", "--cluster", meta.address, "--timeout", "0.5", "--flat")
        with running(*arguments) as (_, port):
            assert get(port, "/meta/nodes").status == 503
            assert get(port, "/health").status == 200
            meta.answers = replay.synthetic(STATE)
            wait_until(lambda: get(port, "/meta/nodes").status == 200, "the cluster is there")
