"""Recorded states of real clusters of five releases: what they answered is what we answer.

A recording holds the RPC answers and the HTTP pages of one moment (of its standby too, where one
was up), and the RPC answers decoded. The pages are held twice: made of the decoded state, by way of
a state file, and made of the RPC answers, by way of `LiveCluster` and a meta server that replays
them. `tests/recordings` is enough for all tests; further recordings beside the project are used as
well. The keys of a recording:

rpc, standby_rpc: calls with the whole frames of request and response, in hex.
http, standby_http: target -> status, location and body; those with `_extra` are of odd targets.
state: the RPC answers decoded, in the form of a state file; not there when only a standby was up.
shape: of the pages: flat, wrapped, or none for a release that has none.
create_time_milliseconds: what that release prints behind the second.
"""

import contextlib
import json
import re
from urllib.parse import parse_qsl, quote, unquote

import pytest

import pegasus_http as ph
import replay
import support
from replay import CLI, CLUSTER_INFO, LIST_APPS, LIST_NODES, QUERY, Meta

RECORDED = support.recordings()
DEVIATIONS = ("primary_replica_count_stddev", "total_replica_count_stddev")


def recordings(*keys, shapes=("flat", "wrapped")):
    """One parameter per recording that has all the keys and one of the shapes."""
    return [pytest.param(one, id=name) for name, one in RECORDED.items()
            if shape(one) in shapes and all(one.get(key) for key in keys)]


def shape(recording):
    """Recordings of the first kind do not tell: they are of a server with flat pages."""
    return recording.get("shape", "flat")


@pytest.fixture(autouse=True)
def _utc():
    assert {one["timezone"] for one in RECORDED.values()} == {"UTC"}
    with support.time_zone("UTC0"):
        yield


def test_the_recordings_of_the_project_are_there():
    """So that no test below is empty; and that they stay small."""
    sizes = {path.name: path.stat().st_size for path in support.recording_files()}
    assert len(sizes) >= 15
    assert sum(sizes.values()) < 200_000
    releases = {re.match(r"(v[^_]*)?", name).group().rstrip("r") for name in sizes}
    assert releases >= {"", "v1.11.2", "v1.12.3", "v2.5.0", "v2019-08-02"}


# ---- what we answer, given what they answered ---------------------------------------------------

# Both clusters' pages say when their own process started.
TIMES = ("/startTime", "/recentStartTime")

# "/" lists our pages; 2019 says "hello world". On later servers `detail=false` means true.
OTHERWISE = ("/", "/meta/apps?detail=false")

# Errors have the same meaning but are JSON, with a status that fits.
NOT_FOUND = (404, "ERR_OBJECT_NOT_FOUND")
BUSY = {
    "/": (503, "ERR_BUSY_CREATING"),  # 2.6, which tells only the first character of a path
    "ERR_BUSY_CREATING": (503, "ERR_BUSY_CREATING"),
    "ERR_BUSY_DROPPING": (503, "ERR_BUSY_DROPPING"),
    "ERR_OBJECT_NOT_FOUND": NOT_FOUND,  # 2019
}


def expected(recording, target, page):
    """(status, body) of a page, (status, error code, hint or None) of an error."""
    body = page["body"]
    if page["status"] == 200:
        if recording.get("create_time_milliseconds") == "0":  # 2.2 to 2.5
            body = re.sub(r'("create_time":"[-0-9: ]{19}\.)0"', r'\g<1>000"', body)
        return 200, without_time(target, body)
    if page["status"] == 404:
        return (*NOT_FOUND, body)
    assert page["status"] == 500
    return (*BUSY[body], None)


def without_time(target, body):
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "(time)", body) if target in TIMES else body


def answered(target, page, status, headers, body):
    """Our answer in the form of `expected`."""
    assert headers["Content-Type"] == "application/json"  # theirs: text/plain
    if status == 200:
        return status, without_time(target, body.decode("utf-8"))
    error = json.loads(body.decode("utf-8"))
    assert list(error) == ["error", "hint_message"]
    assert headers.get("Retry-After") == ("1" if status == 503 else None)
    return status, error["error"], error["hint_message"] if page["status"] == 404 else None


def check(recording, pages, ask):
    """`ask(target)` is the expected answer for all pages; the difference shows the targets."""
    ours = {target: answered(target, page, *ask(target)) for target, page in pages.items()}
    assert ours == {target: expected(recording, target, page) for target, page in pages.items()}


def pages_of(recording):
    """The usual pages, whatever their status, and the unusual ones that were served."""
    served = {target: page for target, page in recording.get("http_extra", {}).items()
              if page["status"] == 200}
    pages = {**recording["http"], **served}
    return {target: page for target, page in pages.items() if target not in OTHERWISE}


# ---- from the decoded state ---------------------------------------------------------------------

def decoded(recording, folder, without=()):
    """The decoded state as a file of ours has it, read again."""
    state = dict(recording["state"])
    state["cluster_info"] = {key: value for key, value in state["cluster_info"].items()
                             if key not in without}
    version = json.loads(recording["http"]["/version"]["body"])
    version = version.get("Version") if shape(recording) == "wrapped" else version
    state["server_info"] = {"version": version["Version"], "git_SHA": version["GitCommit"]}
    path = folder / "state.json"
    path.write_text(json.dumps(state), encoding="utf-8")
    return ph.StateFile(str(path))()


def asking(state, recording):
    def ask(target):
        answer = ph.respond(state, "GET", target, flat=shape(recording) == "flat")
        return answer.status, dict(answer.headers), answer.body
    return ask


@pytest.mark.parametrize("recording", recordings("state"))
def test_pages_of_the_decoded_state(recording, tmp_path):
    check(recording, pages_of(recording), asking(decoded(recording, tmp_path), recording))


# While a table is being dropped its replicas still count there, but no RPC tells which they are.
COMPUTED = [one for one in recordings("state")
            if all(app["status"] != "DROPPING" for app in one.values[0]["state"]["apps"])]


@pytest.mark.parametrize("recording", COMPUTED)
def test_deviations_of_the_decoded_state_when_computed(recording, tmp_path):
    state = decoded(recording, tmp_path, without=DEVIATIONS)
    page = {"/meta/cluster": recording["http"]["/meta/cluster"]}
    check(recording, page, asking(state, recording))


# ---- from the RPC answers -----------------------------------------------------------------------

@contextlib.contextmanager
def serving(recording, *addresses, timeout=support.PATIENCE):
    """`ask` for a server that reads the cluster at these addresses."""
    source = ph.LiveCluster(addresses, timeout=timeout, max_age=support.PATIENCE)
    flat = shape(recording) == "flat"
    with ph.StatusServer(source, role="meta", flat=flat, timeout=timeout) as server:
        yield over_http(server.port)


def over_http(port):
    support.get(port, "/meta/cluster")  # /version waits for the source's first answer only 50 ms

    def ask(target):
        answer = support.get(port, target)
        names = {"content-type": "Content-Type", "retry-after": "Retry-After"}
        headers = {names[key]: value for key, value in answer.headers.items() if key in names}
        return answer.status, headers, answer.body
    return ask


@pytest.mark.parametrize("recording", recordings("state"))
def test_pages_of_the_replayed_answers(recording):
    with Meta(replay.recorded(recording["rpc"])) as meta:
        with serving(recording, meta.address) as ask:
            check(recording, pages_of(recording), ask)
        assert meta.connections == 1


@pytest.mark.parametrize("recording", recordings("state"))
def test_pages_of_answers_that_come_slowly_and_torn(recording):
    pages = {target: page for target, page in recording["http"].items()
             if target.endswith("s?detail=true") or target == "/meta/cluster"}
    fault = replay.chain(replay.glued, replay.torn(7))
    with Meta(replay.recorded(recording["rpc"]), fault) as meta:
        with serving(recording, meta.address) as ask:
            check(recording, pages, ask)


@pytest.mark.parametrize("recording", COMPUTED)
def test_deviations_when_the_server_does_not_tell_them(recording):
    info = {key: value for key, value in recording["state"]["cluster_info"].items()
            if key not in DEVIATIONS}
    silent = {CLUSTER_INFO: replay.cluster_info(info)}
    answers = replay.overriding(replay.recorded(recording["rpc"]), silent)
    with Meta(answers) as meta, serving(recording, meta.address) as ask:
        check(recording, {"/meta/cluster": recording["http"]["/meta/cluster"]}, ask)


@pytest.mark.parametrize("recording", recordings("state", "standby_rpc"))
def test_pages_by_way_of_the_standby(recording):
    """Which names the primary in its answer to a query; here with the port of the replay."""
    primary = recording["state"]["cluster_info"]["primary_meta_server"]
    with Meta(replay.recorded(recording["rpc"])) as meta:
        forward = replay.moved(replay.recorded(recording["standby_rpc"]), primary, meta.port)
        with Meta(forward) as standby, serving(recording, standby.address) as ask:
            check(recording, {"/meta/apps?detail=true": recording["http"]["/meta/apps?detail=true"],
                              "/meta/cluster": recording["http"]["/meta/cluster"]}, ask)
            assert standby.count(QUERY) == 1


LEADERLESS = [pytest.param(one, id=name) for name, one in RECORDED.items()
              if "state" not in one]


@pytest.mark.parametrize("recording", LEADERLESS)
def test_standby_whose_leader_just_died(recording):
    (primary,) = {page["location"].split("/")[2] for page in recording["http"].values()
                  if page["status"] == 307}
    with replay.refused() as dead:
        port = int(dead.rpartition(":")[2])
        forward = replay.moved(replay.recorded(recording["rpc"]), primary, port)
        with Meta(forward) as standby, serving(recording, standby.address) as ask:
            for target, page in recording["http"].items():
                if page["status"] == 307:
                    status, headers, body = ask(target)
                    error = json.loads(body.decode("utf-8"))
                    assert (status, error["error"]) == (503, "ERR_SERVICE_NOT_ACTIVE"), target
                    assert headers["Retry-After"] == "1"
                    assert ":%d: connection refused" % port in error["hint_message"]


@pytest.mark.parametrize("recording", recordings("state"))
def test_pages_of_a_dump_that_is_served(main, recording, tmp_path):
    with Meta(replay.recorded(recording["rpc"])) as meta:
        code, text, errors = main("--cluster", meta.address, "--dump")
    assert (code, errors) == (0, "")
    path = tmp_path / "dumped.json"
    path.write_text(text, encoding="utf-8")
    check(recording, pages_of(recording), asking(ph.StateFile(str(path))(), recording))


# One recording of each shape, as a user starts it.
STARTED = [(name, ["--flat"] if shape(RECORDED[name]) == "flat" else [])
           for name in ("healthy", "v1.12.3_zk_stalled", "v2019-08-02_node_just_died")]


@pytest.mark.parametrize("name, flags", STARTED)
def test_pages_of_the_command_line(name, flags):
    recording = RECORDED[name]
    with Meta(replay.recorded(recording["rpc"])) as meta:
        arguments = ("--role", "meta", "--cluster", meta.address, *flags)
        with support.running(*arguments) as (_, port):
            check(recording, pages_of(recording), over_http(port))


# ---- 1.11.2, which has no pages of its own ------------------------------------------------------

@pytest.mark.parametrize("name, deviations", [
    ("v1.11.2_healthy", ["1.09", "1.22"]),  # primaries 4, 6, 7, 6; replicas 13, 16, 15, 16
    # 4, 9, 6 (divided by 3), 13, 16, 16 (by 2): the dead node holds eight secondaries, no primary
    ("v1.11.2_node_dead_partly_cured", ["2.05", "1.73"]),
])
def test_a_release_without_pages(name, deviations, tmp_path):
    """Its cluster info tells no balance, and no deviations: they are computed."""
    recording = RECORDED[name]
    state = recording["state"]
    assert not recording["http"]
    assert not set(state["cluster_info"]) & {"balance_operation_count", *DEVIATIONS}
    state = dict(state, cluster_info=dict(state["cluster_info"], balance_operation_count="unknown"))
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state), encoding="utf-8")
    same = asking(ph.StateFile(str(path))(), recording)
    tables = [app["app_name"] for app in state["apps"] if app["status"] == "AVAILABLE"]
    assert len(tables) == 7
    with Meta(replay.recorded(recording["rpc"])) as meta:
        with serving(recording, meta.address) as ask:
            details = ["/meta/app?name=%s&detail=true" % quote(table) for table in tables]
            for target in ("/meta/apps?detail=true", "/meta/nodes?detail=true", "/meta/cluster",
                           *details):
                status, _, body = ask(target)
                assert (status, body) == (200, same(target)[2]), target
            page = json.loads(ask("/meta/cluster")[2].decode())["cluster_info"]
            assert page["balance_operation_count"] == "unknown"
            assert [page[key] for key in DEVIATIONS] == deviations
            version = json.loads(ask("/version")[2].decode())["Version"]
            assert version == {"Version": "1.11.2", "GitCommit": version["GitCommit"]}
            assert version["GitCommit"].startswith("a186d383e113")


# ---- redirects ----------------------------------------------------------------------------------

def redirects(recording):
    """Target -> Location, of the asked server and of its standby."""
    return {target: page["location"]
            for key in ("http", "http_extra", "standby_http", "standby_http_extra")
            for target, page in recording.get(key, {}).items() if page["status"] == 307}


REDIRECTING = [pytest.param(one, id=name) for name, one in RECORDED.items() if redirects(one)]
FAULTY = ("/meta/app", "/meta/app?name=", "/meta/app?detail=true", "/meta/app?name=%zz")


def parts(location):
    """Path without empty segments; parameters decoded and sorted: theirs are in that order."""
    path, _, query = location.partition("?")
    segments = [segment for segment in path.split("/") if segment]
    # 2019 takes escapes as they are, later servers decode them before they build the location
    return segments, sorted(parse_qsl(unquote(query.replace("+", "%2B")), keep_blank_values=True))


def check_redirects(theirs):
    for target, location in theirs.items():
        primary = location.split("/")[2]
        answer = ph.respond(ph.Standby(primary), "GET", target)
        ours = dict(answer.headers)["Location"]
        assert answer.status == 307, target
        assert ours == "http://" + primary + target
        assert parts(ours) == parts(location)


@pytest.mark.parametrize("recording", REDIRECTING)
def test_redirects_of_a_standby(recording):
    found = redirects(recording)
    assert len(found) >= 7
    check_redirects({target: location for target, location in found.items()
                     if target not in FAULTY})


# ---- answers that are not theirs ----------------------------------------------------------------

# Odd requests; theirs is 400, 404 or 500 with a text, depending on the release.
ODD = {
    "/meta/app": (400, "ERR_INVALID_PARAMETERS"),  # there 404, 2019: 500
    "/meta/app?name=": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/app?detail=true": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/app?nam=temp": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/app?name=temp&name=test": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/app?name=%zz": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/apps?x=1": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/nodes?x=1": (400, "ERR_INVALID_PARAMETERS"),
    "/meta/app?name=a+b": NOT_FOUND,
    "/nosuch": (404, "ERR_HANDLER_NOT_FOUND"),  # 2019: 400
    "/meta/nosuch": (404, "ERR_HANDLER_NOT_FOUND"),
    "/meta": (404, "ERR_HANDLER_NOT_FOUND"),
    "/meta/": (404, "ERR_HANDLER_NOT_FOUND"),
}


@pytest.mark.parametrize("recording", recordings("state", "http_extra"))
def test_odd_requests(recording, tmp_path):
    """What is an error there is one here, or is a page that their parser did not find."""
    ask = asking(decoded(recording, tmp_path), recording)
    for target, page in recording["http_extra"].items():
        status, _, body = ask(target)
        content = json.loads(body.decode("utf-8")) if body else None
        if target in ODD:
            assert page["status"] in (400, 404, 500)
            assert (status, content["error"]) == ODD[target], target
        elif page["status"] != 200 and target.startswith("/meta/app?name="):
            # 2019 does not decode escapes; 1.12 to 2.5 decode "&" before they split
            name = unquote(target.partition("=")[2].partition("&")[0])
            names = {app["app_name"] for app in recording["state"]["apps"]
                     if app["status"] == "AVAILABLE"}
            assert status == (200 if name in names else 404), target
            if name in names:
                assert content["general"]["app_name"] == name


@pytest.mark.parametrize("recording", recordings("state", "http_extra"))
def test_a_flag_that_is_false(recording, tmp_path):
    """Only the server of 2019 agrees."""
    body = asking(decoded(recording, tmp_path), recording)("/meta/apps?detail=false")[2].decode()
    plain, theirs = (
        expected(recording, target, page)[1]
        for target, page in (("/meta/apps", recording["http"]["/meta/apps"]),
                             ("", recording["http_extra"]["/meta/apps?detail=false"])))
    assert body == plain
    assert (theirs == plain) == (shape(recording) == "wrapped")


# ---- the tests' own encoder, and our requests ---------------------------------------------------

@pytest.mark.parametrize("recording", [pytest.param(one, id=name) for name, one in RECORDED.items()
                                       if "state" in one and "shape" not in one])
def test_replay_encodes_as_the_real_server(recording):
    answers = replay.synthetic(recording["state"])
    forwards = replay.standby("localhost:34601")
    for code, argument, _, frame in replay.recorded_calls(recording["rpc"]):
        if code in (LIST_APPS, LIST_NODES, CLUSTER_INFO):
            assert replay.with_sequence(answers(code, argument), 1) == frame
    for code, argument, _, frame in replay.recorded_calls(recording.get("standby_rpc", ())):
        if code != CLI:
            assert replay.with_sequence(forwards(code, argument), 1) == frame


@pytest.mark.parametrize("recording", recordings("rpc", shapes=("flat", "wrapped", "none")))
def test_requests_are_the_recorded_ones(recording):
    """`parse_request` takes nothing but the exact bytes; sequence id and timeout are free."""
    known = set()
    for code, argument, request, _ in replay.recorded_calls(recording["rpc"]):
        assert replay.parse_request(request)[:2] == (code, argument)
        known.add((code, argument))
    with Meta(replay.recorded(recording["rpc"])) as meta:
        with serving(recording, meta.address) as ask:
            for target in ("/meta/apps?detail=true", "/meta/nodes", "/meta/cluster", "/version"):
                ask(target)
        assert {one[:2] for one in meta.requests} <= known
        assert {one.code for one in meta.requests} >= {LIST_APPS}
        assert {one.timeout > 0 for one in meta.requests} == {True}, "0 means: drop it"
