"""The command line, as real processes: output, exit codes, messages, streams, signals, log."""

import contextlib
import datetime
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

import pegasus_http as ph
import replay
from support import (
    PATIENCE,
    Client,
    at_once,
    cluster,
    command,
    environment,
    finished,
    get,
    run,
    running,
    started,
    wait_until,
)

METAS = ("/meta/app?name=temp", "/meta/apps", "/meta/nodes", "/meta/cluster")
NEXT = b"GET /version HTTP/1.1\r\nHost: test\r\n\r\n"
SERVE = ("--role", "meta", "--listen", "127.0.0.1:0")


needs_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")


# Messages: all that a wrong command line is answered with

LISTEN = "--listen: expected HOST:PORT, :PORT or [IPV6]:PORT with a port from 0 to 65535, got "
TARGET = "--standby-of: expected an address that clients can be sent to, got "
SECONDS = "expected seconds from 0.001 to 86400, got "
NO_STATE = "--dump and --check need a cluster: a standby or replica server has none"
ADDRESS = 'expected HOST:PORT or [IPV6]:PORT, without "http://", got '
NO_PAGES = "--role replica takes no --cluster, --state or --standby-of: use --role meta"

USAGE = [
    ((), "--role is needed: meta or replica"),
    (("--listen", ":0"), "--role is needed: meta or replica"),
    (("--role", "replica", "--state", "x"), NO_PAGES),
    (("--role", "replica", "--cluster", "a:1"), NO_PAGES),
    (("--role", "replica", "--standby-of", "a:1"), NO_PAGES),
    (("--check", "--role", "replica"), NO_STATE),
    (("--dump", "--role", "replica"), NO_STATE),
    (("--check", "--standby-of", "a:1"), NO_STATE),
    (("--dump", "--standby-of", "a:1"), NO_STATE),
    (("--check", "--state", ""), '--state: expected the name of a file, got ""'),
    (("--role", "meta", "--listen", "::1"), '--listen: expected [::1]:PORT, got "::1"'),
    (("--role", "meta", "--listen", "[::1]"), '--listen: expected [::1]:PORT, got "[::1]"'),
    *((("--role", "meta", "--listen", text), '%s"%s"' % (LISTEN, text)) for text in (
        "", ":", "8080", "localhost", "a:http", ":65536", ":-1", "http://a:80", "a b:1", "[]:1",
        "[a]:1", ":\u0661", "x:1:y", "user@a:1")),
    (("--role", "meta", "--standby-of", "a"), '--standby-of: %s"a"' % ADDRESS),
    (("--role", "meta", "--standby-of", ""), '--standby-of: %s""' % ADDRESS),
    (("--role", "meta", "--standby-of", "a:0"), '--standby-of: %s"a:0"' % ADDRESS),
    *((("--role", "meta", "--standby-of", text), TARGET + json.dumps(text)) for text in (
        "0.0.0.0:34601", "[::]:34601", "255.255.255.255:1", "224.0.0.1:1", "240.0.0.1:1",
        "[ff02::1]:1", "[::::]:1", "1.2.3:1", "300.1.1.1:1", "0:1")),
    (("--role", "meta", "--standby-of", "127.0.0.1:34601"),
     "--standby-of: this server itself listens on 127.0.0.1:34601; name the primary"),
    (("--role", "meta", "--listen", "[::1]:7", "--standby-of", "[::1]:7"),
     "--standby-of: this server itself listens on [::1]:7; name the primary"),
    (("--check", "--cluster", ""), '--cluster: %s""' % ADDRESS),
    (("--check", "--cluster", "a"), '--cluster: %s"a"' % ADDRESS),
    (("--check", "--cluster", "a:1,,b:1"), '--cluster: %s""' % ADDRESS),
    (("--check", "--cluster", "a:1;b:1"), '--cluster: %s"a:1;b:1"' % ADDRESS),
    (("--check", "--cluster", "http://a:1"), '--cluster: %s"http://a:1"' % ADDRESS),
    (("--check", "--timeout", "5s"), "argument --timeout: invalid float value: '5s'"),
    (("--check", "--timeout", "0"), "--timeout: " + SECONDS + "0.0"),
    (("--check", "--timeout", "inf"), "--timeout: " + SECONDS + "Infinity"),
    (("--check", "--max-age", "-1"), "--max-age: expected seconds from 0 to 86400, got -1.0"),
    (("--check", "--max-age", "nan"), "--max-age: expected seconds from 0 to 86400, got NaN"),
    (("--check", "--max-connections", "0"),
     "--max-connections: expected a whole number from 1 to 2147483647, got 0"),
    *((("--check", "--max-connections", text),
       "argument --max-connections: invalid int value: '%s'" % text) for text in (
        "many", "1.5", "")),
    (("--dump", "--check"), "argument --check: not allowed with argument --dump"),
    (("--check", "--routes"), "argument --routes: not allowed with argument --check"),
    (("--state", "a", "--cluster", "b:1"),
     "argument --cluster: not allowed with argument --state"),
    (("--nosuch",), "unrecognized arguments: --nosuch"),
    (("meta",), "unrecognized arguments: meta"),
    (("--state",), "argument --state: expected one argument"),
    (("--role", "master"), re.compile("argument --role: invalid choice: 'master' .*meta.*replica")),
    (("--log-level", "loud"), re.compile("argument --log-level: invalid choice: 'loud' .*debug")),
]


@pytest.mark.parametrize("arguments, message", USAGE, ids=lambda value: " ".join(value)
                         if isinstance(value, tuple) else "")
def test_wrong_usage(main, arguments, message):
    code, output, errors = main(*arguments)
    last = errors.splitlines()[-1]
    assert (code, output, last[:21]) == (2, "", "pegasus_http: error: ")
    if isinstance(message, str):
        assert last[21:] == message
    else:
        assert message.match(last[21:])


def test_wrong_usage_of_a_process():
    code, output, errors = run("--role", "replica", "--state", "x")
    assert (code, output, errors.splitlines()[-1]) == (2, "", "pegasus_http: error: " + NO_PAGES)


@contextlib.contextmanager
def taken():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield "127.0.0.1:%d" % sock.getsockname()[1]


NO_NAME = "the host name does not resolve; 0.0.0.0 stands for all addresses of this machine"

FAILURES = [
    (("--role", "meta", "--state", "nosuch"), "nosuch: no such file or directory"),
    (("--role", "meta", "--state", "two\nlines"), "two lines: no such file or directory"),
    (("--check", "--state", "/etc"), "/etc: not a regular file"),
    (("--check", "--state", "/dev/null"), "/dev/null: not a regular file"),
    (("--check", "--state", "-"), "standard input: empty; --dump prints what belongs there"),
    (("--role", "meta", "--listen", "192.0.2.1:0"), "cannot listen on 192.0.2.1:0: not an address "
     "of this machine; 0.0.0.0 stands for all that it has"),
    (("--role", "meta", "--listen", "no-such-host.invalid:80"),
     "cannot listen on no-such-host.invalid:80: " + NO_NAME),
    (("--role", "meta", "--listen", "a..b:80"), "cannot listen on a..b:80: " + NO_NAME),
    (("--role", "meta", "--listen", "*:80"), "cannot listen on *:80: " + NO_NAME),
    (("--role", "meta", "--listen", "x" * 70 + ":80"),
     "cannot listen on %s:80: %s" % ("x" * 70, NO_NAME)),
]


@pytest.mark.parametrize("arguments, message", FAILURES, ids=[" ".join(row[0])[:50]
                                                             for row in FAILURES])
def test_what_cannot_be_done_is_one_line_and_exit_code_1(main, monkeypatch, arguments, message):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(*arguments) == (1, "", "pegasus_http: error: %s\n" % message)


def test_what_a_process_cannot_do():
    assert run("--role", "meta", "--state", "nosuch") == (
        1, "", "pegasus_http: error: nosuch: no such file or directory\n")


def test_a_port_in_use(main):
    with taken() as address:
        assert main("--role", "meta", "--listen", address) == (1, "", (
            "pegasus_http: error: cannot listen on %s: the port is in use, or was a "
            "moment ago; end what uses it, or take a free one with port 0\n" % address))


LOWEST = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


@pytest.mark.skipif(not os.path.exists(LOWEST), reason="no Linux: who may listen is another matter")
def test_a_port_without_permission():
    with open(LOWEST) as file:
        if int(file.read()) <= 80:
            pytest.skip("everybody may listen on all ports here")
    # The first call imports what a process that is not root may not be able to read any more.
    script = (
        "import json, logging, os, queue, resource, signal, sys\n"
        "import pegasus_http\n"
        "pegasus_http.main(['--check'])\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "sys.exit(pegasus_http.main(['--role', 'meta', '--listen', ':80']))"
    )
    done = finished([sys.executable, "-c", script])
    assert (done.returncode, done.stderr.decode()) == (1, (
        "pegasus_http: error: cannot listen on 127.0.0.1:80: no permission; take a port from 1024 "
        "up\n"))


def test_too_little_memory(main, tmp_path):
    """As much as Python needs to start, and less than the file's own bytes."""
    path = tmp_path / "state.json"
    path.write_bytes(b" " * (60 << 20) + b'{"apps":[],"nodes":[]}')
    assert main("--check", "--state", str(path))[0] == 0
    limits = [(resource.RLIMIT_AS, 100 << 20)]
    done = finished(command("--check", "--state", str(path)), limits=limits)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1, b"", "pegasus_http: error: not enough memory for this state\n")
    with open(str(path), "rb") as file:
        done = finished(command("--check", "--state", "-"), limits=limits, stdin=file)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1, b"", "pegasus_http: error: not enough memory for this state\n")


@pytest.mark.parametrize("limit", [5, 6])
def test_no_descriptor_is_left(limit):
    done = finished(command(*SERVE), limits=[(resource.RLIMIT_NOFILE, limit)])
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", (
        "pegasus_http: error: cannot listen on 127.0.0.1:0: no file descriptor is left; raise the "
        "limit (ulimit -n)\n"))


NO_THREAD = """
import sys, threading
import pegasus_http
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
sys.exit(pegasus_http.main())
"""


def test_no_thread_is_to_be_had():
    done = finished([sys.executable, "-c", NO_THREAD, *SERVE])
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1, b"", "pegasus_http: error: the server needs a daemon thread: can't start new thread; "
        "start it in the main interpreter of a process that may have one more\n")


# Output

def test_check(main):
    assert main("--check") == (
        0, "ok: source=sample, available tables 1, partitions 8, nodes 3\n", "")


def test_check_counts_what_is_available(main, tmp_path):
    path = tmp_path / "state.json"
    apps = [{"app_id": 1, "app_name": "a", "partition_count": 4},
            {"app_id": 2, "app_name": "b", "partitions": [{}, {}]},
            {"app_id": 3, "app_name": "c", "partition_count": 8, "status": "DROPPED"}]
    path.write_text(json.dumps({"apps": apps, "nodes": [{"address": "a:1", "status": "UNALIVE"}]}))
    assert main("--check", "--state", str(path)) == (
        0, "ok: source=state, available tables 2, partitions 6, nodes 1\n", "")


def test_routes(main):
    code, output, errors = main("--routes")
    assert (code, errors) == (0, "")
    assert [line.split("`")[1] for line in output.splitlines()[2:]] == sorted(
        path for path, route in ph.ROUTES.items() if route.listed)
    assert "| `/version` | meta, replica | pretty | " in output
    assert "| `/meta/app` | meta | name, detail, pretty | " in output


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help(main, option):
    code, output, errors = main(option)
    assert (code, errors) == (0, "")
    assert output == "pegasus_http %s\n" % ph.__version__ or output.startswith("usage: ")


ODD = {
    "apps": [{"app_id": 1, "app_name": "tablé \u2028 \U0001f60b \"\\", "envs": {"ключ": "值"}}],
    "nodes": [],
}


SURROUNDINGS = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:replace"},
    {"PYTHONIOENCODING": "utf-16"}, {"PYTHONUNBUFFERED": "1"},
]


def test_a_dump_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(json.dumps(ODD))
    dumps = []
    for changes in SURROUNDINGS:
        with open(str(tmp_path / "dump.json"), "wb") as out:
            done = finished(command("--dump", "--state", str(path)), stdout=out, changes=changes)
        assert (done.returncode, done.stderr) == (0, b""), changes
        dumps.append((tmp_path / "dump.json").read_bytes())
    assert dumps[0].endswith(b"\n}\n") and "tablé".encode() in dumps[0]
    assert dumps == dumps[:1] * len(dumps)
    dump, = json.loads(dumps[0].decode("utf-8"))["apps"]
    assert (dump["app_name"], dump["envs"]) == (ODD["apps"][0]["app_name"], {"ключ": "值"})
    with open(str(tmp_path / "dump.json")) as file:
        again = finished(command("--dump", "--state", "-"), stdin=file)
    assert (again.returncode, again.stdout) == (0, dumps[0])


def test_a_dump_holds_every_field(main, tmp_path):
    path = tmp_path / "state.json"
    whole = cluster(tables=2)._replace(cluster_name="onebox", version="1.2", git_commit="abc")
    path.write_text(json.dumps(ph._cluster_to_json(whole)))
    code, output, errors = main("--dump", "--state", str(path))
    assert (code, errors) == (0, "")
    assert output == json.dumps(json.loads(output), indent=1, ensure_ascii=False) + "\n"
    path.write_text(output)
    assert ph.StateFile(str(path))() == whole


PRINTS = [("--dump",), ("--routes",), SERVE]
FAILED = "pegasus_http: error: standard output: %s\n"


@pytest.mark.parametrize("arguments", PRINTS, ids=" ".join)
def test_output_that_does_not_arrive_is_a_failure(arguments):
    with open("/dev/full", "wb") as full:
        done = finished(command(*arguments), stdout=full)
    assert (done.returncode, done.stderr.decode()) == (1, FAILED % "no space left on device")


@pytest.mark.parametrize("arguments", [("--check",), SERVE], ids=" ".join)
def test_output_that_nobody_takes_is_a_failure(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        done = finished(command(*arguments), stdout=broken)
    assert (done.returncode, done.stderr.decode()) == (1, FAILED % "broken pipe")
    done = finished(command(*arguments), closed=[1])
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", (
        "pegasus_http: error: standard output is closed: send it to a file or to /dev/null\n"))


def test_standard_input_that_is_closed():
    done = finished(command("--state", "-", "--check"), closed=[0])
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", (
        "pegasus_http: error: standard input is closed: --state - reads the state from it\n"))


def test_standard_error_that_is_closed():
    """Nobody can be told: what the exit code tells is right, and nothing lands in the output."""
    done = finished(command("--check", "--state", "nosuch"), closed=[2])
    assert (done.returncode, done.stdout) == (1, b"")
    arguments = command(*SERVE, "--access-log", "--log-level", "debug")
    with started(arguments, preexec_fn=lambda: os.close(2)) as (process, port):
        assert get(port, "/version").status == get(port, "/meta/apps").status == 200
        ends_well(process, signal.SIGHUP, signal.SIGTERM)


def test_an_interrupt_before_it_serves(monkeypatch, capsys):
    class Terminal:
        buffer = property(lambda self: self)

        def read(self, size):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert ph.main(["--state", "-", "--check"]) == 130
    assert capsys.readouterr() == ("", "")


# Serving

def ends_well(process, *signals):
    for number in signals:
        process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")


def first_line(*arguments):
    process = subprocess.Popen(  # without a buffer, which would hide what follows the line
        command(*arguments), env=environment(), bufsize=0,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = process.stdout.readline().decode()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, b"", b"")
    assert line.endswith(" pid=%d\n" % process.pid)
    return re.sub(r":[1-9][0-9]* role", ":PORT role", line.rpartition(" pid=")[0])


FIRST_LINES = [
    (("--role", "meta", "--listen", ":0"), "127.0.0.1:PORT role=meta source=sample"),
    (("--role", "replica", "--listen", "127.0.0.1:0"),
     "127.0.0.1:PORT role=replica source=none"),
    (("--role", "meta", "--listen", "localhost:0", "--standby-of", "a:1"),
     "localhost:PORT role=meta source=standby"),
    (("--role", "meta", "--listen", "0.0.0.0:0"), "0.0.0.0:PORT role=meta source=sample"),
]


def test_the_first_line(tmp_path):
    def check(arguments, line):
        assert first_line(*arguments) == "listening on http://" + line

    path = tmp_path / "state.json"
    path.write_text('{"apps":[],"nodes":[]}')
    serve = ("--role", "meta", "--listen", ":0")
    with replay.Meta(replay.synthetic(replay.make_state())) as meta:
        at_once(check, [
            *FIRST_LINES,
            ((*serve, "--state", str(path)), "127.0.0.1:PORT role=meta source=state"),
            ((*serve, "--cluster", meta.address), "127.0.0.1:PORT role=meta source=cluster"),
        ])


@needs_ipv6
def test_the_first_line_with_ipv6():
    assert first_line("--role", "meta", "--listen", "[::1]:0") == (
        "listening on http://[::1]:PORT role=meta source=sample")


@pytest.mark.parametrize("role, port", [("meta", 34601), ("replica", 34801)])
def test_the_default_address(main, role, port):
    """The port is taken, by this test or by another program: the message names it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            sock.listen()
        code, output, errors = main("--role", role)
    assert (code, output) == (1, "")
    assert "cannot listen on 127.0.0.1:%d: the port is in use, " % port in errors


def test_a_cluster_that_is_not_reachable_at_the_start_is_a_line():
    with running("--role", "meta", "--cluster", "127.0.0.1:1") as (process, port):
        assert process.stderr.readline().endswith(
            " WARNING pegasus_http: no meta server is reachable: 127.0.0.1:1: connection refused; "
            "serving, and asking again with the next request\n")
        assert get(port, "/meta/apps").status == 502


def test_a_state_from_standard_input(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"apps": [{"app_id": 7, "app_name": "piped"}], "nodes": []}))
    with open(str(path)) as file, subprocess.Popen(
        command(*SERVE, "--state", "-"), env=environment(), stdin=file, universal_newlines=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        port = int(process.stdout.readline().split()[2].rsplit(":", 1)[1])
        assert get(port, "/meta/app?name=piped").json["general"]["app_id"] == "7"
        ends_well(process, signal.SIGTERM)


@needs_ipv6
def test_ipv6_addresses():
    with started(command("--role", "meta", "--listen", "[::]:0")) as (_, port):
        for host in ("127.0.0.1", "::1"):
            with Client(port, host) as client:
                client.send(NEXT)
                assert client.answer().status == 200
    with started(command("--role", "meta", "--listen", "[::1]:0")) as (_, port):
        with Client(port, "::1") as client:
            client.send(NEXT)
            assert client.answer().status == 200
        with pytest.raises(ConnectionRefusedError):
            Client(port)


def test_a_replica_server_has_no_meta_pages():
    with running("--role", "replica", "--app-version", "1.2", "--git-commit", "abc") as (_, port):
        for target in METAS:
            answer = get(port, target)
            assert (answer.status, answer.json["error"]) == (404, "ERR_HANDLER_NOT_FOUND")
        assert get(port, "/version").json == {"Version": {"Version": "1.2", "GitCommit": "abc"}}
        assert get(port, "/health").json["role"] == "replica"
        assert not [path for path in get(port, "/").json if path.startswith("/meta")]


def test_options_that_change_pages():
    arguments = ("--role", "meta", "--flat", "--no-gzip", "--app-version", "1.2")
    with running(*arguments) as (_, port):
        assert get(port, "/version").json["Version"] == "1.2"
        answer = get(port, "/meta/app?name=temp&detail", "Accept-Encoding: gzip")
        assert (answer.status, answer.headers.get("content-encoding")) == (200, None)
    with running("--role", "meta") as (_, port):
        answer = get(port, "/meta/app?name=temp&detail", "Accept-Encoding: gzip")
        assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")


def test_a_standby_redirects():
    with running("--role", "meta", "--standby-of", "[2001:db8::7]:34601") as (_, port):
        answer = get(port, "/meta/apps?detail")
        assert (answer.status, answer.headers["location"]) == (
            307, "http://[2001:db8::7]:34601/meta/apps?detail")


def test_the_number_of_connections_is_bounded():
    with running("--role", "meta", "--max-connections", "1") as (_, port):
        with Client(port) as first, Client(port) as other:
            other.send(NEXT)
            assert other.answer().status == 200
            assert first.closed()


# The log

def test_an_access_line_and_where_it_goes():
    with running("--role", "meta", "--access-log") as (process, port):
        length = len(get(port, "/version?pretty").body)
        missing = len(get(port, "/no%22such", method="POST").body)
        get(port, "/version", method="HEAD")
        process.terminate()
        output, log = process.communicate(timeout=PATIENCE)
    date = r"\[(\d\d/[A-Z][a-z]{2}/\d{4}(?::\d\d){3} [+-]\d{4})\]"
    lines = re.sub(date, "[DATE]", log).splitlines()
    assert (output, lines) == ("", [
        '127.0.0.1 - - [DATE] "GET /version?pretty HTTP/1.1" 200 %d' % length,
        '127.0.0.1 - - [DATE] "POST /no%%22such HTTP/1.1" 404 %d' % missing,
        '127.0.0.1 - - [DATE] "HEAD /version HTTP/1.1" 200 0',
    ])
    logged = datetime.datetime.strptime(re.search(date, log)[1], "%d/%b/%Y:%H:%M:%S %z")
    assert abs(time.time() - logged.timestamp()) < PATIENCE


def test_other_lines_say_when_how_bad_and_who(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"apps":[],"nodes":[]}')
    arguments = ("--role", "meta", "--state", str(path), "--max-age", "0")
    for level, lines in (("warning", 1), ("error", 0)):
        with running(*arguments, "--log-level", level) as (process, port):
            path.write_text("{}")
            assert get(port, "/meta/apps").status == 200
            process.terminate()
            _, log = process.communicate(timeout=PATIENCE)
        path.write_text('{"apps":[],"nodes":[]}')
        assert len(log.splitlines()) == lines
        assert not lines or re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING pegasus_http: keeping .*\n", log)


def test_nobody_reads_standard_error():
    """A pipe takes 64 KB, then the queue is filled, then lines are dropped."""
    target, asked = "/version?" + "&" * 400, 0
    with running("--role", "meta", "--access-log") as (process, port), Client(port) as client:
        def ask(count):
            client.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode() * count)
            for _ in range(count):
                assert client.answer().status == 200
            return count

        for _ in range(14):
            asked += ask(100)
        lines = []
        while "dropped" not in "".join(lines[-1:]):
            asked += ask(1)  # reading makes room: one of these lines tells how many are missing
            lines.append(process.stderr.readline())
        process.terminate()
        lines += process.stderr.readlines()
        assert process.wait(PATIENCE) == 0
    told = [line.partition(" ") for line in lines if target not in line]
    lost = [int(count) for count, _, _ in told]
    assert max(lost) > 100 and sum(lost) + len(lines) - len(lost) == asked
    assert {rest for _, _, rest in told} == {
        "lines were dropped here, because nobody read standard error\n"}


@pytest.mark.parametrize("make", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_nobody_reads_standard_error_and_it_ends(make):
    try:
        reader, writer = make()
    except OSError:
        pytest.skip("no pseudo-terminal is to be had here")
    try:
        with subprocess.Popen(
            command(*SERVE, "--access-log"), env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=writer, universal_newlines=True,
        ) as process:
            port = int(process.stdout.readline().split()[2].rpartition(":")[2])
            with Client(port) as client:
                for _ in range(8):
                    client.send(b"GET /version?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"&" * 400) * 50)
                    for _ in range(50):
                        assert client.answer().status == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_a_host_that_has_closed_standard_error():
    done = finished([sys.executable, "-c", (
        "import sys, pegasus_http; sys.stderr.close(); "
        "print(pegasus_http.main(['--check', '--state', 'nosuch']))")])
    assert (done.returncode, done.stdout) == (0, b"1\n")


# Flags of the interpreter, signals

FLAGS = [
    ("-W", "error", "-X", "dev"), ("-O",), ("-OO",), ("-u",), ("-b", "-b"), ("-S",), ("-s", "-E"),
]


def test_flags_of_the_interpreter():
    def check(*flags):
        arguments = command(*SERVE, python=flags)
        if "-E" in flags:
            arguments = [sys.executable, *flags, ph.__file__, *SERVE]
        with started(arguments) as (process, port):
            for target in METAS[1:] + ("/", "/version", "/startTime", "/health"):
                assert get(port, target, "Accept-Encoding: gzip").status == 200
            assert get(port, METAS[0] + "&detail&pretty").status == 200
            assert get(port, "/nosuch").status == 404
            ends_well(process, signal.SIGTERM)

    at_once(check, FLAGS)


def test_signals_end_it_well():
    def check(*signals):
        with started(command(*SERVE)) as (process, port), contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(port)) for _ in range(10)]
            for client, data in zip(clients, [b"", b"G", NEXT, NEXT * 5, NEXT[:-1]] * 2):
                client.send(data)
            assert get(port, "/version").status == 200
            ends_well(process, *signals)

    term, interrupt = signal.SIGTERM, signal.SIGINT
    at_once(check, [
        [term], [interrupt], [term, term], [interrupt, interrupt], [interrupt, term] * 20])


def test_sighup_reads_a_state_file_that_looks_unchanged(tmp_path):
    path = tmp_path / "state.json"

    def save(name):
        path.write_text(json.dumps({"apps": [{"app_id": 1, "app_name": name}], "nodes": []}))
        os.utime(str(path), (1564466666, 1564466666))

    def shown(target):
        return get(port, target).json["general_info"]["1"]["app_name"]

    save("before")
    arguments = command(*SERVE, "--state", str(path), "--max-age", "3600")
    with started(arguments) as (process, port):
        assert shown("/meta/apps") == "before"
        save("behind")
        assert shown("/meta/apps") == shown("/meta/apps?detail") == "before"
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: shown("/meta/apps") == "behind", "the new content is shown")
        assert shown("/meta/apps?detail") == "behind"
        path.write_text("{")
        for _ in range(2):  # each time it is read at once, without a request
            process.send_signal(signal.SIGHUP)
            assert "keeping the last good state" in process.stderr.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_killed_process_leaves_a_port_that_can_be_used_again():
    with started(command(*SERVE)) as (process, port):
        with Client(port) as client:
            client.send(NEXT)
            assert client.answer().status == 200
            process.kill()
            process.wait(PATIENCE)
            with started(command("--role", "meta", "--listen", "127.0.0.1:%d" % port)) as (_, same):
                assert same == port and get(port, "/version").status == 200


def test_sighup_without_a_state_file_is_ignored_with_a_line(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"apps":[],"nodes":[]}')

    def check(*source):
        with open(str(path)) as file, started(
                command(*SERVE, *source), stdin=file) as (process, port):
            process.send_signal(signal.SIGHUP)
            line = next(line for line in process.stderr if "SIGHUP" in line)
            assert line.endswith(
                " WARNING pegasus_http: SIGHUP is ignored: only --state FILE can be read again\n")
            assert get(port, "/version").status == 200
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "SIGHUP" not in errors and "Traceback" not in errors

    at_once(check, [
        [], ["--standby-of", "10.0.0.2:34601"], ["--cluster", "127.0.0.1:1"], ["--state", "-"]])


# A host that calls main()

THREAD = """
import logging, os, signal, threading, time
import pegasus_http as ph
def left():
    loggers = [logging.getLogger(name) for name in ("", "pegasus_http", "pegasus_http.access")]
    settings = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    handlers = [signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    wakeup = signal.set_wakeup_fd(-1)
    return len(os.listdir("/dev/fd")), threading.active_count(), settings, handlers, wakeup
arguments = ["--role", "meta", "--listen", ":0", "--access-log"]
before, codes = left(), []
thread = threading.Thread(target=lambda: codes.append(ph.main(arguments)))
thread.start()
thread.join()
assert codes == [1]
for _ in range(1000):  # the system's part of a thread opens a library at its end, after `join`
    if left() == before:
        break
    time.sleep(0.01)
assert left() == before, (before, left())
"""


def test_main_outside_the_main_thread_says_so_and_leaves_nothing():
    done = finished([sys.executable, "-X", "dev", "-c", THREAD])  # tells what is not closed
    assert (done.returncode, done.stderr.decode()) == (0, (
        "pegasus_http: error: main() takes over the signals, so call it in the main "
        "thread of the main interpreter; start() runs in any\n"))
