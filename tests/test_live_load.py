"""LiveCluster: what is asked of the meta servers, how often, and that no answer is lost."""

import concurrent.futures
import random
import struct
import threading
import time

import pytest

import pegasus_http as ph
import replay
import support
from fakes import (
    LISTS,
    PAGES,
    QUICK,
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
from support import PATIENCE, get, served, wait_until


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


@pytest.mark.parametrize("target, tables", [
    ("/meta/nodes", 0), ("/meta/cluster", 0), ("/meta/apps", 0), ("/version", 0), ("/health", 0),
    ("/meta/app?name=table1", 1), ("/meta/app?name=nosuch", 0),
    ("/meta/apps?detail=true", 3), ("/meta/nodes?detail=true", 3),
])
def test_only_what_a_page_needs_is_asked(leader, target, tables):
    """One overview for all pages, and the partitions of the tables that are shown."""
    with serving(leader, max_age=600.0) as server:
        assert get(server.port, target).status in (200, 404)
    for code in (*LISTS, CLI):
        assert leader.count(code) == 1
    assert len(leader.asked(QUERY)) == tables
    assert all(0.3 < one.timeout / 1000 / PATIENCE <= 0.9 for one in leader.requests)
    if tables == 1:
        assert leader.asked(QUERY) == [b"table1"]


def test_one_connection_is_reused(leader):
    with serving(leader) as server:
        for _ in range(5):
            check_pages(server, STATE)
    assert leader.connections == 1
    assert leader.count(LIST_APPS) >= 5


def test_one_connection_is_reused_for_a_server_that_was_never_started(leader):
    source = ph.LiveCluster(leader.address, max_age=0.0)
    with served("blocking", source) as (_, port):
        for _ in range(5):
            assert get(port, "/meta/nodes").status == 200
    assert leader.connections == 1


def test_connection_is_closed_after_idling(leader, monkeypatch):
    monkeypatch.setattr(ph, "_WORKER_IDLE_SECONDS", 0.02)
    with serving(leader) as server:
        for _ in range(2):
            assert get(server.port, "/meta/nodes").status == 200
            wait_until(lambda: leader.open == 0, "the idle connection is closed")


def test_stopping_during_a_refresh_leaves_nothing_behind(leader, monkeypatch):
    monkeypatch.setattr(ph, "_WORKER_IDLE_SECONDS", 1000.0)
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
        assert one_page(meta, target="/meta/apps?detail=true", timeout=1.0).status == 504
        assert 1 < len(set(meta.asked(QUERY))) <= ph._WINDOW


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
        for piece in pieces:
            at = replay.sequence_at(piece)
            yield piece[:at] + struct.pack(">i", 987654) + piece[at + 4:]
    leader.fault = renumbered
    check_error(one_page(leader), 502, "ERR_NETWORK_FAILURE", leader.address, "987654")


def test_answer_of_another_call(leader):
    """An empty list of the one would make an empty list of the other."""
    leader.answers = replay.overriding(
        leader.answers, {LIST_APPS: replay.list_nodes([]), LIST_NODES: replay.list_apps([])})
    for target in ("/meta/apps", "/meta/nodes"):
        answer = one_page(leader, target=target, timeout=2.0)
        assert answer.status in (502, 504), answer


# ---- progress -----------------------------------------------------------------------------------

def test_read_that_ran_out_of_time_goes_on_where_it_stopped():
    state = replay.make_state(tables=200, partitions=1)
    answered, left = [], []

    def some(pieces):
        for piece in pieces:
            if left:
                left.pop()
                answered.append(piece)
                yield piece
    with Meta(replay.synthetic(state), replay.only(QUERY, some)) as meta, \
            reading(meta, timeout=QUICK) as source:
        assert isinstance(source.read("overview")[0], ph.Cluster)
        for attempt in range(3):
            left[:] = range(80)
            found, again = source.read("partitions")
            if attempt < 2:
                assert found.error == "ERR_TIMEOUT"
                wait_until(lambda again=again: time.monotonic() > again, "the next attempt")
        assert found == cluster_of(state)._replace(version=found.version,
                                                   git_commit=found.git_commit)
    assert len(answered) == len(set(answered)) == 200, "no table is asked for twice"


def test_lists_that_ran_out_of_time_are_not_asked_for_again(leader):
    leader.fault = replay.only(CLUSTER_INFO, replay.silent)
    with reading(leader, timeout=QUICK) as source:
        error, again = source.read("overview")
        assert error.error == "ERR_TIMEOUT"
        wait_until(lambda: time.monotonic() > again, "the next attempt")
        leader.fault = None
        assert source.read("overview")[0].apps
    assert (leader.count(LIST_APPS), leader.count(CLUSTER_INFO)) == (1, 2)


def test_one_late_answer_holds_up_no_others():
    """The first query is answered when 150 others have been: more than are ever under way."""
    state = replay.make_state(tables=200, partitions=1)
    late, passed = [], []

    def fault(pieces):
        for piece in pieces:
            if not late:
                late.append(piece)
                continue
            passed.append(True)
            yield piece
            if len(passed) == 150:
                yield late[0]
    with Meta(replay.synthetic(state), replay.only(QUERY, fault)) as meta, serving(meta) as server:
        check_pages(server, state, ["/meta/apps?detail=true"])
