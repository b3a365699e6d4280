"""Recorded states of a real cluster: each decoded state, served by us, gives the recorded pages."""

import glob
import json
import os
import time

import pytest

import pegasus_http as ph
import support

FILES = sorted(glob.glob(os.path.join(support.CAPTURES, "*.json")))
pytestmark = pytest.mark.skipif(not FILES, reason="the recordings are not beside this project")


def load(path):
    with open(path) as file:
        return json.load(file)


RECORDED = [(os.path.basename(path)[:-5], load(path)) for path in FILES]
PAGES = [
    pytest.param(capture, target, id="%s %s" % (name, target))
    for name, capture in RECORDED if "state" in capture
    for target in capture["http"] if target.startswith("/meta/")
]


@pytest.fixture(autouse=True)
def in_the_time_zone_of_the_recording(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def cluster_of(capture, **without):
    state = json.loads(json.dumps(capture["state"]))
    for name in without.get("info", ()):
        del state["cluster_info"][name]
    return ph._cluster_from_json(state)


def differs_on_purpose(recorded):
    """Errors are JSON (recorded: text), and a table in creation is 503 (recorded: 500 and "/")."""
    text = recorded["body"]
    if recorded["status"] == 404:
        return 404, {"error": "ERR_OBJECT_NOT_FOUND", "hint_message": text}
    assert (recorded["status"], text) == (500, "/")
    return 503, "ERR_BUSY_CREATING"


@pytest.mark.parametrize("capture, target", PAGES)
def test_page_is_the_recorded_one(capture, target):
    recorded = capture["http"][target]
    response = ph.respond(cluster_of(capture), "GET", target, flat=True)
    assert dict(response.headers)["Content-Type"] == "application/json"  # recorded: text/plain
    if recorded["status"] == 200:
        assert (response.status, response.body.decode()) == (200, recorded["body"])
        return
    status, error = differs_on_purpose(recorded)
    page = json.loads(response.body)
    assert response.status == status
    assert error in (page, page["error"])


@pytest.mark.parametrize("capture", [pytest.param(c, id=n) for n, c in RECORDED if "state" in c])
def test_standard_deviations_are_those_of_the_server_when_computed(capture):
    figures = ("primary_replica_count_stddev", "total_replica_count_stddev")
    response = ph.respond(cluster_of(capture, info=figures), "GET", "/meta/cluster", flat=True)
    assert response.body.decode() == capture["http"]["/meta/cluster"]["body"]


@pytest.mark.parametrize("capture", [c for _, c in RECORDED if c.get("standby_http")])
def test_redirect_of_a_standby_is_the_recorded_one(capture):
    seen = 0
    for target, recorded in capture["standby_http"].items():
        if recorded["status"] != 307:
            continue
        primary = recorded["location"].split("/")[2]
        response = ph.respond(ph.Standby(primary), "GET", target)
        location = dict(response.headers)["Location"]
        if "%20" in target or target.count("&"):  # recorded: decoded, in reversed order
            assert location == "http://" + primary + target
        else:
            assert location.replace("%3A", ":") == recorded["location"].replace("%3A", ":")
        seen += 1
    assert seen
