"""The embedding examples, each run as a real process: what it prints, and that it is short."""

import ast
import glob
import importlib.util
import os
import subprocess
import sys

import pytest

import support

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "examples")
LONGEST = 80  # lines: what somebody still reads before copying it

APPS = (
    '{"general_info":{"1":{"app_id":"1","status":"AVAILABLE","app_name":"temp",'
    '"app_type":"pegasus","partition_count":"8","replica_count":"3","is_stateful":"true",'
    '"create_time":"-","drop_time":"-","drop_expire":"-","envs_count":"0"}},'
    '"summary":{"total_app_count":"1"}}'
)
NODES = (
    '{"details":{"127.0.0.1:34801":{"address":"127.0.0.1:34801","status":"ALIVE"}},'
    '"summary":{"total_node_count":"1","alive_node_count":"1","unalive_node_count":"0"}}'
)
NO_NODES = (
    '{"details":{},'
    '"summary":{"total_node_count":"0","alive_node_count":"0","unalive_node_count":"0"}}'
)
NOT_READY = '"error":"ERR_SERVICE_NOT_ACTIVE"'
HEALTH = '{"status":"ok","role":"%s","primary":"false"}'
GENERAL = (
    '{"general":{"app_name":"%s","app_id":"%d","partition_count":"%d","max_replica_count":"3"}}'
)

# The lines that each example prints; a line that is not equal has to contain the expected one.
PRINTS = {
    "threaded_host.py": [
        "{'Version': {'Version': '1.2.3', 'GitCommit': ",
        "127.0.0.1:34803 {'fully_healthy_partition_count': '1', "
        "'unhealthy_partition_count': '0', 'write_unhealthy_partition_count': '0', "
        "'read_unhealthy_partition_count': '0'}",
        "requests: 2",
    ],
    "asyncio_host.py": [
        NOT_READY,
        "HTTP/1.1 200 OK " + GENERAL % ("stat", 1, 4),
        "HTTP/1.1 200 OK " + GENERAL % ("temp", 2, 4),
    ],
    "http_server_host.py": [NODES, NO_NODES],
    "wsgi_host.py": ['{"Version":{"Version":', GENERAL % ("a b", 1, 8)],
    "flask_host.py": ["a page of the host", APPS],
    "multiprocessing_host.py": [HEALTH % "replica", "exit code 0"] * 2,
    "fork_host.py": (
        ["worker: " + HEALTH % "replica"] * 2
        + ["exit status 0"] * 2
        + ["parent: " + HEALTH % "meta"]
    ),
    "role_change_host.py": [
        "election: 503 None, health 503",
        "standby: 307 http://127.0.0.1:34602/meta/cluster, health 503",
        "primary: 200 None, health 200",
        "standby again: 307 http://127.0.0.1:34602/meta/cluster, health 503",
    ],
}


def source(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return file.read()


def test_every_example_is_run():
    assert sorted(map(os.path.basename, glob.glob(os.path.join(FOLDER, "*.py")))) == sorted(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_it_prints_what_its_own_pages_say(name):
    if name == "flask_host.py" and importlib.util.find_spec("flask") is None:
        pytest.skip("Flask is not installed")
    # Warnings of Flask's own packages are not ours to mend.
    strict = [] if name == "flask_host.py" else ["-W", "error"]
    done = subprocess.run(
        [sys.executable, *strict, os.path.join(FOLDER, name)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.PATIENCE,
        env=support.environment(no_proxy="*"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(PRINTS[name]), done.stdout
    for line, expected in zip(lines, PRINTS[name]):
        assert expected in line


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_it_is_short_and_says_what_it_shows(name):
    text = source(name)
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert "main" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert text.count("\n") <= LONGEST


def test_the_wsgi_application_keeps_to_the_protocol():
    """The standard library's own validator finds no fault in any kind of answer."""
    check = (
        "import wsgiref.util, wsgiref.validate, wsgi_host\n"
        "for method, path, query in %r:\n"
        "    environ = {'REQUEST_METHOD': method, 'SCRIPT_NAME': '', 'PATH_INFO': path}\n"
        "    environ['QUERY_STRING'] = query\n"
        "    wsgiref.util.setup_testing_defaults(environ)\n"
        "    statuses = []\n"
        "    def start_response(status, headers, exc_info=None):\n"
        "        statuses.append(status)\n"
        "    answer = wsgiref.validate.validator(wsgi_host.application)(environ, start_response)\n"
        "    list(answer)\n"
        "    answer.close()\n"
        "    print(*statuses)\n"
    ) % ([
        ("GET", "/", ""), ("GET", "/meta/app", "name=a%20b"), ("GET", "/meta/app", ""),
        ("GET", "/meta/app", "name=a%20b&detail"), ("GET", "/nosuch", ""),
        ("POST", "/meta/apps", ""), ("OPTIONS", "/meta/apps", ""), ("HEAD", "/version", ""),
    ],)
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=FOLDER, capture_output=True, text=True,
        timeout=support.PATIENCE, env=support.environment(),
    )
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "200", "200", "400", "503", "404", "405", "204", "200"]
