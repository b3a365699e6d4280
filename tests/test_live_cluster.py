"""LiveCluster: tables that come and go, parts that fail, the version, forks."""

import os
import subprocess
import sys
import time
import traceback

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
from support import get, wait_until


def test_error_of_one_table_is_no_other_pages_error(leader):
    denied = replay.query(None, error="ERR_ACL_DENY")
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table3"): denied})
    with serving(leader, timeout=2.0) as server:
        for target in ("/meta/nodes", "/meta/cluster", "/meta/app?name=table1", "/meta/apps"):
            check_error(get(server.port, "/meta/app?name=table3"), 502, "ERR_ACL_DENY")
            check_pages(server, STATE, [target])


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


def test_name_that_a_fresh_list_lacks_costs_no_call(leader):
    with serving(leader, max_age=600.0) as server:
        assert get(server.port, "/meta/apps").status == 200
        before = len(leader.requests)
        for number in range(100):
            answer = get(server.port, "/meta/app?name=nosuch%d&detail" % number)
            check_error(answer, 404, "ERR_OBJECT_NOT_FOUND", "nosuch%d" % number)
        assert len(leader.requests) == before


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


def test_a_table_that_fails_makes_no_other_look_fresh(leader):
    with reading(leader, max_age=0.2, timeout=QUICK) as source:
        source.read("overview")
        _, until = source.read("partitions:table1")
        leader.fault = replay.only(QUERY, replay.silent)
        assert source.read("partitions:table2")[0].status == 504
        leader.fault = None
        wait_until(lambda: time.monotonic() > until, "the answer about table1 is old")
        asked = leader.count(QUERY)
        assert source.read("partitions:table1")[0].apps[0].app_name == "table1"
        assert leader.count(QUERY) > asked


@pytest.mark.parametrize("key", ["overview", "partitions", "partitions:table1"])
def test_an_answer_holds_for_max_age(leader, key):
    with reading(leader, max_age=100.0) as source:
        source.read("overview")
        before = time.monotonic()
        state, until = source.read(key)
        assert state.apps
        assert before + 90.0 < until < time.monotonic() + 100.0


def test_an_error_that_stays_does_not_grow(leader):
    """Each traceback would hold the state of its moment."""
    leader.answers = replay.overriding(
        leader.answers, {QUERY: replay.frame(QUERY, b"", "ERR_BUSY")})
    with reading(leader, max_age=100.0) as source:
        depths = []
        for _ in range(3):
            with pytest.raises(ph.PageError) as caught:
                source()
            depths.append(len(list(traceback.walk_tb(caught.tb))))
    assert len(set(depths)) == 1


def test_odd_rows_do_not_fill_the_log(leader, monkeypatch, caplog):
    monkeypatch.setattr(ph, "_MAX_REPORTS", 3)
    state = replay.make_state(tables=9)
    for number, app in enumerate(state["apps"]):
        app["app_id"] = -1 - number
    with reading(leader, max_age=0.0) as source:
        for turn in range(3):
            state["apps"][0]["max_replica_count"] = turn
            leader.answers = replay.synthetic(state)
            assert not source().apps
    assert len(caplog.records) == 3


# ---- the version --------------------------------------------------------------------------------

@pytest.mark.parametrize("text, version, commit", [
    (replay.OLD_INFO, "1.12.3", "ab12" * 10), (replay.NEW_INFO, "2.6.0", "cd34" * 10),
    ("Pegasus Server 1.11.3 (non-git-repo) , Started at 2019-01-01 00:00:00", "1.11.3",
     "non-git-repo"),
])
def test_version_is_the_clusters(leader, monkeypatch, text, version, commit):
    monkeypatch.setattr(ph, "_GLANCE_SECONDS", support.PATIENCE)
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


def test_version_that_comes_after_the_overview(leader):
    """Here with the answers about tables; the whole state has it."""
    kept = []

    def late(pieces):
        before, pieces = kept[:], list(pieces)
        kept[:] = [piece for piece in pieces if replay.code_of(piece) == CLI]
        return before + [piece for piece in pieces if piece not in kept]

    leader.fault = late
    with reading(leader) as source:
        assert source().version == "2.6.0"
    assert leader.count(CLI) == 1


def test_version_is_the_primarys(leader):
    """A standby that answers this call, as all do, is not taken for the primary."""
    leader.fault = replay.only(CLI, replay.silent)
    standby = replay.overriding(replay.standby(), {CLI: replay.cli(replay.OLD_INFO)})
    begin = time.monotonic()
    with Meta(standby) as other, serving(other, leader) as server:
        check_pages(server, STATE)
        assert time.monotonic() - begin < support.PATIENCE / 2, "nobody waits for it"
        own = ph.respond(None, "GET", "/version", flat=True).body
        assert get(server.port, "/version").body == own
        assert other.connections == leader.connections == 1
        assert leader.count(CLI) == 1, "it still owes the answer to the first"


# ---- a part that is refused or nonsense ---------------------------------------------------------

SHOWN_BY = {
    LIST_APPS: ["/meta/apps", "/meta/app?name=table1", "/meta/apps?detail", "/meta/nodes?detail"],
    LIST_NODES: ["/meta/nodes", "/meta/nodes?detail"],
    CLUSTER_INFO: ["/meta/cluster"],
}


@pytest.mark.parametrize("answer, error", [
    ({LIST_APPS: replay.list_apps([], error="ERR_ACL_DENY"),
      LIST_NODES: replay.list_nodes([], error="ERR_ACL_DENY"),
      CLUSTER_INFO: replay.cluster_info({}, error="ERR_ACL_DENY")}, "ERR_ACL_DENY"),
    ({code: replay.frame(code, b"", "ERR_BUSY") for code in LISTS}, "ERR_BUSY"),
    ({code: replay.frame(code, b"\x0c\0\0\x0c\0\x63\0\0") for code in LISTS},
     "ERR_NETWORK_FAILURE"),
], ids=["denied", "busy", "nonsense"])
@pytest.mark.parametrize("code", LISTS)
def test_part_that_fails_is_no_other_pages_failure(leader, code, answer, error):
    leader.answers = replay.overriding(leader.answers, {code: answer[code]})
    with serving(leader) as server:
        for target in PAGES:
            if target.replace("=true", "") in SHOWN_BY[code] or "/meta/app?" in target and \
                    code == LIST_APPS:
                check_error(get(server.port, target), 502, error, leader.address)
            elif code == LIST_NODES and target == "/meta/apps?detail=true":
                continue
            else:
                check_pages(server, STATE, [target])
    with reading(leader) as source, pytest.raises(ph.PageError, match=leader.address):
        source()


# ---- a table that was dropped and created again -------------------------------------------------

TABLE1 = "/meta/app?name=table1&detail=true"


@pytest.mark.parametrize("target", [TABLE1, "/meta/apps?detail=true", "/meta/nodes?detail=true"])
def test_answer_with_another_id_makes_the_list_old(leader, target):
    changed = replay.make_state()
    changed["apps"][0].update(app_id=9, max_replica_count=2)
    changed["apps"].append(changed["apps"].pop(0))
    with serving(leader, max_age=600.0) as server:
        assert get(server.port, "/meta/apps").status == 200
        leader.answers = replay.synthetic(changed)
        answer = get(server.port, target)
        assert (answer.status, answer.body) == (200, expected(changed, target))
    assert leader.count(LIST_APPS) == 2


def test_list_that_has_something_new_about_a_table(leader):
    """The answer about it is not old yet; it is shown with what the list says now."""
    changed = replay.make_state()
    changed["apps"][1]["envs"] = {"key": "value"}
    with reading(leader, max_age=1.0) as source:
        _, old = source.read("overview")
        wait_until(lambda: time.monotonic() > old - 0.5, "half of it")
        assert source.read("partitions:table2")[0].apps[0].envs == ()
        leader.answers = replay.synthetic(changed)
        wait_until(lambda: time.monotonic() > old, "the list is old, the table is not")
        source.read("overview")
        assert source.read("partitions:table2")[0].apps[0].envs == (("key", "value"),)


def test_list_that_stays_old_is_read_again_once(leader):
    other = replay.query(dict(STATE["apps"][0], app_id=9))
    leader.answers = replay.overriding(leader.answers, {(QUERY, b"table1"): other})
    answer = check_error(one_page(leader, target=TABLE1), 404, "ERR_OBJECT_NOT_FOUND", "table1")
    assert answer
    assert leader.count(LIST_APPS) == 2


# ---- forks --------------------------------------------------------------------------------------

FORKS = """
import os, signal, sys
import pegasus_http as ph, replay
signal.alarm(60)
state = replay.make_state(tables=30)
meta = replay.Meta(replay.synthetic(state), replay.reordered)
source = ph.LiveCluster(meta.address, timeout=20.0, max_age=0.0)
source()
def good():
    return [app.app_name for app in source().apps] == [app["app_name"] for app in state["apps"]]
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if all([good() for _ in range(10)]) else 2
            source.rest()
        finally:
            os._exit(code)
    children.append(child)
assert all([good() for _ in range(10)])
for child in children:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert meta.connections == 4, "each process has its own"
assert good()
assert meta.connections == 4, "that of the parent has not been closed"
source.rest()
meta.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_have_connections_of_their_own():
    path = os.pathsep.join([os.path.dirname(ph.__file__), os.path.dirname(replay.__file__)])
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]
    done = subprocess.run(command, env=dict(os.environ, PYTHONPATH=path), capture_output=True,
                          text=True, timeout=90)
    assert done.returncode == 0, done.stderr
