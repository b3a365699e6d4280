"""State files: what is wrong is told with its place, changes are seen, a good state stays."""

import io
import json
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

import pegasus_http as ph
import soak
from support import Client, cluster, environment, finished, get, running, wait_until


def app(**fields):
    return dict({"app_id": 1, "app_name": "a"}, **fields)


def state(*apps, **parts):
    return dict({"apps": list(apps), "nodes": []}, **parts)


def partition(**fields):
    return state(app(partitions=[{}, fields]))


def save(path, content):
    """All at once, as a server may be reading it."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    other = path.with_name("not yet complete")
    other.write_bytes(data)
    os.replace(str(other), str(path))
    return str(path)


# What is wrong. The table goes through all messages that a file can be the reason of.

APP_FIELDS = (
    "app_id, app_name, partitions, partition_count, max_replica_count, status, app_type, "
    "is_stateful, envs, create_second, drop_second, expire_second, duplicating, "
    "init_partition_count, is_bulk_loading, atomic_idempotent"
)
PARTITION_FIELDS = (
    "ballot, max_replica_count, primary, secondaries, pid, last_drops, last_committed_decree, "
    "partition_flags"
)
INFO_FIELDS = (
    "meta_servers, primary_meta_server, zookeeper_hosts, zookeeper_root, meta_function_level, "
    "balance_operation_count, primary_replica_count_stddev, total_replica_count_stddev, "
    "cluster_name"
)
PARTS = "apps, nodes, cluster_info, server_info"
COUNT = "expected a whole number from 0 to 2147483647, got "
SECOND = "expected a whole number from 0 to 253402214399, got "
ADDRESS = 'expected "host:port", got '
STATUSES = ("INVALID, AVAILABLE, CREATING, CREATE_FAILED, DROPPING, DROP_FAILED, DROPPED, "
            "RECALLING")

WRONG = [
    # no text, no JSON
    (b"", "empty; --dump prints what belongs there"),
    (b" \n\t\n", "empty; --dump prints what belongs there"),
    (b'{"apps":\n "caf\xe9"}', "not UTF-8: byte 15 is 0xe9; save it as UTF-8"),
    (b'\xef\xbb\xbf{"apps":\n "caf\xe9"}', "not UTF-8: byte 18 is 0xe9; save it as UTF-8"),
    (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "not UTF-8: byte 2 is 0x8b; save it as UTF-8"),
    (b"\xff\xfe" + '{"apps":[],"nodes":[]}'.encode("utf-16-le"),
     "not UTF-8: byte 1 is 0xff; save it as UTF-8"),
    ('{"apps":[],"nodes":[]}'.encode("utf-16-le"), "not JSON: line 1, column 2: expected property "
     'name enclosed in double quotes at "\\u0000"'),
    (b"<html></html>", 'not JSON: line 1, column 1: expected value at "<"'),
    (b'{"apps":[],\n "nodes":\n ]}', 'not JSON: line 3, column 2: expected value at "]"'),
    (b'{"apps":[], "nodes":[]', "not JSON: line 1, column 23: expected ',' delimiter at the end"),
    (b'{"apps" []}', "not JSON: line 1, column 9: expected ':' delimiter at \"[\""),
    (b"{apps: []}", "not JSON: line 1, column 2: expected property name enclosed in double quotes"
     ' at "a"'),
    (b'{"apps":[],"nodes":[]}\n{}', "not JSON: line 2, column 1: extra data at \"{\""),
    (b'{"apps', 'not JSON: line 1, column 2: unterminated string at "\\""'),
    (b'{"\n":[]}', 'not JSON: line 1, column 3: invalid control character at "\\n"'),
    (b'{"\\x":[]}', 'not JSON: line 1, column 3: invalid \\escape at "\\\\"'),
    (b"[" * 200000, "nested too deeply to be a state"),
    # the parts
    (b"null", "top level: expected an object, got null"),
    (b"[]", "top level: expected an object, got []"),
    (b"{}", 'top level: "apps" is missing'),
    ({"apps": []}, 'top level: "nodes" is missing'),
    (dict(state(), tables=[]), 'top level: unknown field "tables", expected one of ' + PARTS),
    ({"general_info": {}}, 'top level: unknown field "general_info", expected one of ' + PARTS),
    ({"apps": {}, "nodes": []}, "apps: expected a list, got {}"),
    ({"apps": [], "nodes": "a:1"}, 'nodes: expected a list, got "a:1"'),
    # tables
    (state(3), "apps[0]: expected an object, got 3"),
    (state({"app_id": 1}), 'apps[0]: "app_name" is missing'),
    (state({"app_name": "a"}), 'apps[0]: "app_id" is missing'),
    (state(app(), app(app_id=2, app_nme="b")),
     'apps[1]: unknown field "app_nme", expected one of ' + APP_FIELDS),
    (state(app(app_id="1")), "apps[0].app_id: " + COUNT + '"1"'),
    (state(app(app_id=True)), "apps[0].app_id: " + COUNT + "true"),
    (state(app(app_id=1.0)), "apps[0].app_id: " + COUNT + "1.0"),
    (state(app(app_id=-1)), "apps[0].app_id: " + COUNT + "-1"),
    (state(app(app_id=2**31)), "apps[0].app_id: " + COUNT + "2147483648"),
    (state(app(), app(app_name="b")), "apps[1].app_id: 1 is already used by apps[0]"),
    (state(app(), app(app_id=2)), 'apps[1].app_name: "a" is already used by apps[0]'),
    (state(app(app_name=None)), "apps[0].app_name: expected a string, got null"),
    (state(app(app_name="\ud800")),
     'apps[0].app_name: expected text that UTF-8 can encode, got "\\ud800"'),
    (state(app(partition_count=9, partitions=[{}])),
     "apps[0].partition_count: expected 1, the number of partitions, got 9"),
    (b'{"apps":[{"app_id":1,"app_name":"a","partition_count":NaN}],"nodes":[]}',
     "apps[0].partition_count: " + COUNT + "NaN"),
    (b'{"apps":[{"app_id":1,"app_name":"a","partition_count":1e999}],"nodes":[]}',
     "apps[0].partition_count: " + COUNT + "Infinity"),
    (b'{"apps":[{"app_id":1,"app_name":"a","partition_count":1' + b"0" * 30 + b'}],"nodes":[]}',
     "apps[0].partition_count: " + COUNT + "1" + "0" * 30),
    (state(app(max_replica_count=None)), "apps[0].max_replica_count: " + COUNT + "null"),
    (state(app(status="GONE")), "apps[0].status: expected one of " + STATUSES + ', got "GONE"'),
    (state(app(app_type=1)), "apps[0].app_type: expected a string, got 1"),
    (state(app(is_stateful="true")), 'apps[0].is_stateful: expected true or false, got "true"'),
    (state(app(envs=["a=b"])), 'apps[0].envs: expected an object, got ["a=b"]'),
    (state(app(envs=None)), "apps[0].envs: expected an object, got null"),
    (state(app(envs={"k": 1})), 'apps[0].envs["k"]: expected a string, got 1'),
    (state(app(create_second=1e9)), "apps[0].create_second: " + SECOND + "1000000000.0"),
    (state(app(create_second=2**38)), "apps[0].create_second: " + SECOND + "274877906944"),
    # partitions
    (state(app(partitions={})), "apps[0].partitions: expected a list, got {}"),
    (state(app(partitions=[None])), "apps[0].partitions[0]: expected an object, got null"),
    (partition(leader="a:1"), 'apps[0].partitions[1]: unknown field "leader", expected one of '
     + PARTITION_FIELDS),
    (partition(ballot=-2), "apps[0].partitions[1].ballot: expected a whole number from -1 to "
     "9223372036854775807, got -2"),
    (partition(max_replica_count="3"), "apps[0].partitions[1].max_replica_count: " + COUNT + '"3"'),
    (partition(primary=17), 'apps[0].partitions[1].primary: expected "host:port" or null, got 17'),
    (partition(primary="a:65536"), 'apps[0].partitions[1].primary: expected "host:port" or null, '
     'got "a:65536"'),
    (partition(secondaries="a:1,b:1"), "apps[0].partitions[1].secondaries: expected a list, got "
     '"a:1,b:1"'),
    (partition(secondaries=["a:1", "b"]), "apps[0].partitions[1].secondaries[1]: " + ADDRESS
     + '"b"'),
    # nodes
    (state(nodes=["a:1"]), 'nodes[0]: expected an object, got "a:1"'),
    (state(nodes=[{"address": "a:1"}]), 'nodes[0]: "status" is missing'),
    (state(nodes=[{"address": "a", "status": "ALIVE"}]), "nodes[0].address: " + ADDRESS + '"a"'),
    (state(nodes=[{"address": "a:1", "status": "DEAD"}]),
     'nodes[0].status: expected one of ALIVE, UNALIVE, got "DEAD"'),
    (state(nodes=[{"address": "a:1", "status": "ALIVE"}] * 2),
     'nodes[1].address: "a:1" is already used by nodes[0]'),
    (state(nodes=[{"address": "a:1", "state": "ALIVE"}]),
     'nodes[0]: unknown field "state", expected one of address, status'),
    # the cluster
    (state(cluster_info=None), "cluster_info: expected an object, got null"),
    (state(cluster_info={"leader": "a"}),
     'cluster_info: unknown field "leader", expected one of ' + INFO_FIELDS),
    (state(cluster_info={"zookeeper_root": 1}), "cluster_info.zookeeper_root: expected a string, "
     "got 1"),
    (state(cluster_info={"balance_operation_count": [1, 2, 3]}),
     "cluster_info.balance_operation_count: expected a string, got [1,2,3]"),
    (state(server_info={"version": 2}), "server_info.version: expected a string, got 2"),
    (state(server_info={"git": "x"}),
     'server_info: unknown field "git", expected one of version, git_SHA'),
    # names that stand twice
    (b'{"apps":[{"app_id":1,"app_name":"a"}],"nodes":[],"apps":[]}',
     'top level: "apps" appears twice'),
    (b'{"apps":[{"app_id":1,"app_name":"a"},{"app_id":2,"app_id":2,"app_name":"b"}],"nodes":[]}',
     'apps[1]: "app_id" appears twice'),
    (b'{"apps":[{"app_id":1,"app_name":"a","partitions":[{},{"ballot":1,"primary":null,'
     b'"ballot":1}]}],"nodes":[]}', 'apps[0].partitions[1]: "ballot" appears twice'),
    (b'{"apps":[{"app_id":1,"app_name":"a","envs":{"k":"1","k":"1"}}],"nodes":[]}',
     'apps[0].envs: "k" appears twice'),
    (b'{"apps":[],"nodes":[{"address":"a:1","address":"b:1","status":"ALIVE"}]}',
     'nodes[0]: "address" appears twice'),
    (b'{"apps":[],"nodes":[],"cluster_info":{"meta_servers":"","meta_servers":""}}',
     'cluster_info: "meta_servers" appears twice'),
    (b'{"apps":[],"nodes":[],"server_info":{"version":"","version":""}}',
     'server_info: "version" appears twice'),
]


@pytest.mark.parametrize("content, message", WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_is_wrong_is_told_with_its_place(tmp_path, content, message):
    path = save(tmp_path / "state.json", content)
    source = ph.StateFile(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="^") as caught:
            source()
        assert str(caught.value) == "%s: %s" % (path, message)
    assert repr(source) == "<StateFile %r: %s: %s>" % (path, path, message)


@pytest.mark.parametrize("content, message", [
    (b"", "empty; --dump prints what belongs there"),
    (state(app(app_id="1")), "apps[0].app_id: " + COUNT + '"1"'),
])
def test_the_command_line_says_the_same(main, tmp_path, content, message):
    path = save(tmp_path / "state.json", content)
    expected = "pegasus_http: error: %s: %s\n"
    assert main("--check", "--state", path) == (1, "", expected % (path, message))
    with open(path, "rb") as file:
        done = finished([sys.executable, "-m", "pegasus_http", "--check", "--state", "-"],
                        stdin=file)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == expected % ("standard input", message)


def test_what_is_too_large_is_refused_and_one_byte_less_is_read(main, tmp_path, monkeypatch):
    data = json.dumps(state(app())).encode()
    path = save(tmp_path / "state.json", data)
    monkeypatch.setattr(ph, "_STATE_BYTES", len(data))
    source = ph.StateFile(path)
    assert len(source().apps) == 1
    save(tmp_path / "state.json", data + b" ")
    refused = "larger than %d bytes, the most" % len(data)
    with pytest.raises(ValueError, match=refused):
        ph.StateFile(path)()
    for content, expected in ((data, (0, "")), (data + b" ", (1, refused))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code, _, errors = main("--check", "--state", "-")
        assert code == expected[0] and expected[1] in errors


# What is fine

EVERYTHING = {
    "apps": [
        {"app_id": 2, "app_name": "tablé", "partition_count": 2, "max_replica_count": 2,
         "status": "AVAILABLE", "app_type": "other", "is_stateful": False, "envs": {"b": "2"},
         "create_second": 1, "drop_second": 2, "expire_second": 3,
         "partitions": [
             {"ballot": 5, "max_replica_count": 1, "primary": "a:1", "secondaries": ["b:1", "c:1"]},
             {"ballot": -1, "max_replica_count": None, "primary": None, "secondaries": []}]},
        {"app_id": 1, "app_name": "gone", "partition_count": 4, "max_replica_count": 3,
         "status": "DROPPED", "app_type": "pegasus", "is_stateful": True, "envs": {},
         "create_second": 0, "drop_second": 0, "expire_second": 0, "partitions": None}],
    "nodes": [{"address": "a:1", "status": "ALIVE"}, {"address": "b:1", "status": "UNALIVE"}],
    "cluster_info": {
        "meta_servers": "m:1,n:1", "primary_meta_server": "m:1", "zookeeper_hosts": "z:1",
        "zookeeper_root": "/r", "meta_function_level": "steady", "balance_operation_count": "x",
        "primary_replica_count_stddev": "0.50", "total_replica_count_stddev": "0.25",
        "cluster_name": "onebox"},
    "server_info": {"version": "1.2", "git_SHA": "abc"},
}


def test_every_field_arrives(tmp_path):
    source = ph.StateFile(save(tmp_path / "state.json", EVERYTHING))
    assert source() == ph.Cluster(
        apps=[
            ph.App(2, "tablé", [ph.Partition(5, 1, "a:1", ("b:1", "c:1")), ph.Partition(-1)], 2, 2,
                   app_type="other", is_stateful=False, envs={"b": "2"}, create_second=1,
                   drop_second=2, expire_second=3),
            ph.App(1, "gone", partition_count=4, status="DROPPED")],
        nodes=[ph.Node("a:1"), ph.Node("b:1", "UNALIVE")],
        meta_servers="m:1,n:1", primary_meta_server="m:1", zookeeper_hosts="z:1",
        zookeeper_root="/r", meta_function_level="steady", balance_operation_count="x",
        primary_replica_count_stddev="0.50", total_replica_count_stddev="0.25",
        cluster_name="onebox", version="1.2", git_commit="abc")
    assert repr(source) == "<StateFile %r: 2 tables, 2 nodes>" % str(tmp_path / "state.json")


@pytest.mark.parametrize("content", [
    b'\xef\xbb\xbf{"apps":[{"app_id":1,"app_name":"a"}],"nodes":[]}',
    b' \r\n{"nodes":[],\t"apps":[{"app_name":"a","app_id":1}]}\n\n',
    b'{"apps":[{"app_id":1,"app_name":"\\u0061"}],"nodes":[]}',
    state(app(duplicating=True, init_partition_count=8, is_bulk_loading=False,
              atomic_idempotent=None)),
    state(app(), cluster_info={}, server_info={}),
    state(app(partitions=None, partition_count=None)),
], ids=["BOM", "blanks", "escapes", "not shown", "no info", "nulls"])
def test_what_is_fine(tmp_path, content):
    assert ph.StateFile(save(tmp_path / "state.json", content))() == ph.Cluster([ph.App(1, "a")])


def test_fields_of_partitions_that_no_page_shows_are_fine(tmp_path):
    fields = {"pid": {"app_id": 1, "partition_index": 1}, "last_drops": ["a:1"],
              "last_committed_decree": 7, "partition_flags": 0}
    path = save(tmp_path / "state.json", partition(ballot=3, **fields))
    assert ph.StateFile(path)().apps[0].partitions == (ph.Partition(), ph.Partition(3))


def test_a_path_object_will_do_and_arguments_are_checked(tmp_path):
    save(tmp_path / "state.json", state(app()))
    assert len(ph.StateFile(tmp_path / "state.json", max_age=0)().apps) == 1
    with pytest.raises(TypeError):
        ph.StateFile(None)
    with pytest.raises(ValueError, match="^max_age: expected seconds from 0 to 86400, got -1$"):
        ph.StateFile("x", max_age=-1)


# Changes

def names(port):
    tables = get(port, "/meta/apps").json["general_info"]
    return [row["app_name"] for row in tables.values()]


def rewrite(path, content):
    path.write_bytes(content)


def replace(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(str(other), (1564466666, 1564466666))
    os.replace(str(other), str(path))


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, change):
    path, before = tmp_path / "state.json", json.dumps(state(app(app_name="old"))).encode()
    path.write_bytes(before)
    os.utime(str(path), (1564466666, 1564466666))
    source = ph.StateFile(str(path), max_age=0.0)
    with ph.StatusServer(source, role="meta") as server:
        assert names(server.port) == ["old"]
        change(path, before.replace(b"old", b"new"))
        os.utime(str(path), (1564466666, 1564466666))
        assert names(server.port) == ["new"]


def test_tables_that_are_as_they_were_stay_the_same_objects(tmp_path):
    def rows(ballot):
        return [{"ballot": ballot, "primary": "a:1"}, {}]

    path = tmp_path / "state.json"
    first, second = (app(app_id=n, app_name=str(n), partitions=rows(n)) for n in (1, 2))
    source = ph.StateFile(save(path, state(first, second, app(app_id=3, app_name="3"))))
    before = source().apps
    renamed = dict(second, app_name="new")
    save(path, state(first, renamed, app(app_id=3, app_name="3", partitions=rows(3))))
    after = source().apps
    assert after == ph.StateFile(path)().apps
    assert after[0] is before[0]
    assert (after[1].app_name, before[1].app_name) == ("new", "2")
    assert after[1].partitions[0] is before[1].partitions[0]


@pytest.mark.parametrize("ballot", [True, 1.0, [], {}])
def test_a_value_that_only_equals_a_good_one_is_refused(tmp_path, caplog, ballot):
    path = tmp_path / "state.json"
    table = app(partitions=[{"ballot": 1}])
    source = ph.StateFile(save(path, state(table)))
    before = source()
    save(path, state(dict(table, partitions=[{"ballot": ballot}])))
    assert source() is before
    assert "apps[0].partitions[0].ballot: expected a whole number" in caplog.text


def test_the_age_is_respected(tmp_path):
    path = tmp_path / "state.json"
    source = ph.StateFile(save(path, state(app(app_name="old"))), max_age=3600.0)
    with ph.StatusServer(source, role="meta") as server:
        assert names(server.port) == ["old"]
        save(path, state(app(app_name="newer")))
        assert names(server.port) == ["old"]
        source.reload()
        server.refresh()
        assert names(server.port) == ["newer"]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, load = tmp_path / "state.json", ph._load_cluster
    parsed, release = threading.Event(), threading.Event()

    def slow_load(*arguments):
        loaded = load(*arguments)
        parsed.set()
        assert release.wait(30.0)
        return loaded

    save(path, state(app()))
    source = ph.StateFile(str(path), max_age=3600.0)
    with ph.StatusServer(source, role="meta") as server, Client(server.port) as client:
        monkeypatch.setattr(ph, "_load_cluster", slow_load)
        client.send(soak.request("/meta/apps"))
        assert parsed.wait(30.0)
        save(path, state(app(), app(app_id=2, app_name="b")))
        source.reload()
        server.refresh()
        release.set()
        assert client.answer().status == 200
        assert names(server.port) == ["a", "b"]


# Counts how often the file is opened: what is not opened is not parsed.
COUNTING = """
import os, sys
import pegasus_http as ph
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
path, content = sys.argv[1], sys.argv[2].encode()
def opens(count=5):
    before = opened.count(path)
    for _ in range(count):
        try:
            source()
        except (OSError, ValueError) as error:
            pass
    return opened.count(path) - before
def write(data):
    with open(path, "wb") as file:
        file.write(data)
    opened.clear()
source = ph.StateFile(path)
assert opens() == 0, "missing"
write(b"bad")
assert opens() == 1, "bad from the start"
write(content)
assert opens() == 1, "good"
write(b"bad")
assert opens() == 1, "bad later"
os.utime(path)
assert opens() == 1, "touched"
source.reload()
assert opens() == 1, "reload"
os.remove(path)
assert opens() == 0, "gone"
write(content)
assert opens() == 1, "back"
"""


def test_a_file_is_read_once_for_each_change(tmp_path):
    arguments = [sys.executable, "-c", COUNTING, str(tmp_path / "x"), json.dumps(state())]
    done = finished(arguments)
    assert (done.returncode, done.stderr[-500:].decode().splitlines()[-1:]) == (
        0, ["keeping the last good state: %s: no such file or directory" % (tmp_path / "x")])


def test_a_long_name_in_a_file_is_not_told_whole(tmp_path):
    for text in ('{"apps":[],"nodes":[],"%s":1}', '{"apps":[],"nodes":[],"%s":1,"%s":1}'):
        path = save(tmp_path / "state.json", (text.replace("%s", "a" * 100000)).encode())
        with pytest.raises(ValueError, match='"aaaa') as caught:
            ph.StateFile(path)()
        assert len(str(caught.value)) < 500


def test_trouble_is_logged_once_and_the_last_good_state_stays(tmp_path, caplog):
    path = tmp_path / "state.json"
    source = ph.StateFile(save(path, state(app())))
    good = source()

    def said():
        for _ in range(3):
            assert source() is good
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    kept = "keeping the last good state: %s: " % path
    assert said() == []
    save(path, b"{}")
    assert said() == [kept + 'top level: "apps" is missing']
    source.reload()
    assert said() == [kept + 'top level: "apps" is missing'], "as after each SIGHUP"
    path.unlink()
    assert said() == [kept + "no such file or directory"]
    save(path, b"{ }")
    assert said() == [kept + 'top level: "apps" is missing']
    save(path, state(app()))
    good = source()
    assert said() == []
    save(path, b"{}")
    assert said() == [kept + 'top level: "apps" is missing']


def test_a_server_waits_for_a_file_that_is_not_there_yet(tmp_path, caplog):
    path = tmp_path / "state.json"
    with ph.start(ph.StateFile(str(path), max_age=0.0), role="meta") as server:
        for _ in range(3):
            answer = get(server.port, "/meta/apps")
            assert (answer.status, answer.json["error"]) == (503, "ERR_SERVICE_NOT_ACTIVE")
        assert get(server.port, "/version").status == 200
        save(path, state(app()))
        assert names(server.port) == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        "no good state yet: %s: no such file or directory" % path]


# What is no regular file: refused, and nobody waits for it

def make_socket(path):
    script = ("import socket, sys\n"
              "with socket.socket(socket.AF_UNIX) as sock: sock.bind(sys.argv[1])")
    subprocess.run([sys.executable, "-c", script, path], check=True, env=environment())


def make_device(path):
    os.symlink("/dev/zero", path)  # to make a node is for root


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket, make_device])
def test_what_is_no_regular_file_is_refused_and_then_forgotten(main, tmp_path, make):
    path, trouble = tmp_path / "s", "%s: not a regular file" % (tmp_path / "s")
    make(str(path))
    assert main("--check", "--state", str(path)) == (1, "", "pegasus_http: error: %s\n" % trouble)
    remove(path)
    save(path, state(app(app_name="before")))
    arguments = ("--role", "meta", "--state", str(path), "--max-age", "0")
    with running(*arguments) as (process, port):
        assert names(port) == ["before"]
        path.unlink()
        make(str(path))
        assert names(port) == names(port) == ["before"]
        remove(path)
        save(path, state(app(app_name="behind")))
        wait_until(lambda: names(port) == ["behind"], "the new file is shown")
        process.terminate()
        _, log = process.communicate()
    assert [line.partition("pegasus_http: ")[2] for line in log.splitlines()
            if "no such file" not in line] == ["keeping the last good state: " + trouble]


def remove(path):
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()


def test_a_link_to_a_file_is_followed(tmp_path):
    save(tmp_path / "first", state(app(app_name="first")))
    save(tmp_path / "other", state(app(app_name="other")))
    link = tmp_path / "link"
    link.symlink_to("first")
    source = ph.StateFile(str(link))
    assert source().apps[0].app_name == "first"
    link.unlink()
    link.symlink_to("other")
    assert source().apps[0].app_name == "other"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "state.json"
    save(path, state(app()))
    path.chmod(stat.S_IWUSR)
    source = ph.StateFile(str(path))
    with pytest.raises(PermissionError):
        source()
    path.chmod(stat.S_IRUSR)
    assert len(source().apps) == 1


# Large files

def longest_wait(data):
    """The longest time for which this thread did not get on while another parsed, as a share."""
    parser = threading.Thread(target=ph._load_cluster, args=(data, "x"))
    begun = last = time.monotonic()
    longest = 0.0
    parser.start()
    while parser.is_alive():
        time.sleep(0.0005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest / (last - begun)


def test_parsing_lets_other_threads_go_on():
    drops = [{"node": "a:1", "second": n} for n in range(100)]
    rows = [{"last_drops": drops} for _ in range(64)]
    data = json.dumps(state(*(app(app_id=n, app_name=str(n), partitions=rows)
                              for n in range(20)))).encode()
    # json.loads alone, without a function in Python, makes others wait for 0.8 of the time. A
    # machine under load may stop a thread at any time, but hardly three times in a row.
    assert any(longest_wait(data) < 0.4 for _ in range(3))


def test_large_dumps_are_read_again(tmp_path):
    whole = cluster(tables=200, partitions=64)
    path = save(tmp_path / "state.json", ph._cluster_to_json(whole))
    assert ph.StateFile(path)() == whole
