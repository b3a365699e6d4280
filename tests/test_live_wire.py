"""LiveCluster: frames and what is in them, against recorded bytes and another encoder."""

import json
import os
import random
import struct

import pytest

import pegasus_http as ph
import replay
from fakes import (
    FRAMES,
    LISTS,
    LONG,
    STATE,
    check_error,
    check_pages,
    cluster_of,
    expected,
    one_page,
    reading,
    serving,
)
from replay import CLI, CLUSTER_INFO, LIST_APPS, LIST_NODES, QUERY, Meta
from support import get


@pytest.mark.parametrize("name, code, argument, sequence", [
    ("01_list_apps_req_v0", LIST_APPS, 0, 1), ("05_query_cfg_req_v0", QUERY, b"temp", 2),
    ("12_list_nodes_req_v0", LIST_NODES, 0, 3), ("15_cluster_info_req_v0", CLUSTER_INFO, None, 4),
    ("18_cli_call_req_v0", CLI, "server-info", 5),
])
def test_replay_takes_exactly_the_recorded_requests(name, code, argument, sequence):
    with open(os.path.join(FRAMES, name + ".bin"), "rb") as file:
        data = file.read()
    assert replay.request(code, argument, sequence, 5000) == data
    assert replay.parse_request(data)[:4] == (code, argument, sequence, 5000)
    with pytest.raises((ValueError, struct.error, IndexError)):
        replay.parse_request(data[:24] + b"\0\0\0\1" + data[28:])


@pytest.mark.parametrize("key, name, sequence", [
    ("apps", "01_list_apps_req_v0", 1), ("nodes", "12_list_nodes_req_v0", 3),
    ("cluster_info", "15_cluster_info_req_v0", 4), ("server_info", "18_cli_call_req_v0", 5),
    ("temp", "05_query_cfg_req_v0", 2),
])
def test_request_bytes(key, name, sequence):
    temp = ph._table_rpc("temp", ph.App(1, "temp"), b"temp")
    call = {**{call.key: call for call in ph._RPCS}, "temp": temp}[key]
    with open(os.path.join(FRAMES, name + ".bin"), "rb") as file:
        assert ph._request(call, sequence, 5000) == file.read()


def test_sequence_ids_differ_within_a_connection(leader):
    with serving(leader) as server:
        check_pages(server, STATE)
    pairs = [(one.connection, one.sequence) for one in leader.requests]
    assert len(pairs) == len(set(pairs)) > 5


def test_timeout_in_the_header_is_ours(leader):
    with serving(leader, timeout=7.0) as server:
        get(server.port, "/meta/apps?detail=true")
    assert {0 < one.timeout <= 7000 for one in leader.requests} == {True}


def read_query(decoder):
    return ph._read_result(decoder, ph._CONFIGURATION)


RESPONSES = [
    ("02_list_apps_rsp_old", ph._read_apps), ("03_list_apps_rsp_new", ph._read_apps),
    ("06_query_cfg_rsp_old", read_query), ("07_query_cfg_rsp_new", read_query),
    ("13_list_nodes_rsp_old", ph._read_nodes), ("14_list_nodes_rsp_new", ph._read_nodes),
    ("16_cluster_info_rsp_old", ph._read_info), ("17_cluster_info_rsp_new", ph._read_info),
    ("19_cli_call_rsp_old", ph._read_server_info), ("20_cli_call_rsp_new", ph._read_server_info),
]


@pytest.mark.parametrize("name, read", RESPONSES)
def test_example_answers_decode(name, read):
    """Made by yet another encoder, from the interface files."""
    with open(os.path.join(FRAMES, name + ".bin"), "rb") as file:
        data = file.read()
    assert read(ph._Decoder(data[replay.sequence_at(data) + 4:]))


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
