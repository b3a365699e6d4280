"""The documentation, run: doctests, every snippet and command of the README, its tables and links.

What the README has to keep to:

- A ```python block is a whole program: it ends by itself and says nothing on stderr.
- A ```sh block is one script that has to succeed.
- In a ```console block a line that begins with `$ ` is a command (with the `> ` lines after it)
  and has to exit with 0. The lines below it, if there are any, are what it prints, with `...` for
  anything. A command that ends with `&` is a server: the next command is run when it has said that
  it listens. The commands of a block share one shell, in a directory that holds only the module.
- Only `console no-run: REASON` and `sh no-run: REASON` are not run. The options that they, the
  container and the systemd unit give to the module have to be good ones all the same.
"""

import contextlib
import doctest
import fcntl
import glob
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import types

import pytest

import pegasus_http as ph
import support

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
README = os.path.join(ROOT, "README.md")
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
END = "end-of-command"

TEXT = ""
if os.path.exists(README):
    with open(README, encoding="utf-8") as _file:
        TEXT = _file.read()

readme = pytest.mark.skipif(not TEXT, reason="there is no README.md yet")


class Block:
    """One fenced block: where it is, its language, the reason not to run it, its text."""

    def __init__(self, match):
        self.line = TEXT.count("\n", 0, match.start()) + 1
        self.language, _, self.mark = match.group(1).strip().partition(" ")
        self.text = match.group(2)

    def __repr__(self):
        return "line-%d-%s" % (self.line, self.language)


BLOCKS = [Block(match) for match in FENCE.finditer(TEXT)]


def blocks(*languages):
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=repr)


def section(title):
    """The text below the heading that has `title` in it, up to the next of its level or above."""
    headings = [
        (match.start(), match.end(), len(match.group(1)), match.group(2))
        for match in re.finditer(r"^(#+) +(.*)$", FENCE.sub(lambda m: " " * len(m.group()), TEXT),
                                 re.M)
    ]
    found = [one for one in headings if title.lower() in one[3].lower()]
    assert found, "README.md has no heading with the word %r" % title
    _, start, level, _ = found[0]
    ends = [one[0] for one in headings if one[0] > start and one[2] <= level]
    return TEXT[start:ends[0] if ends else len(TEXT)]


def rows(text):
    """The cells of every row of the tables in a piece of Markdown, the headers and rules too."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        for line in text.splitlines() if line.strip().startswith("|")
    ]


@pytest.fixture
def alone(tmp_path):
    """The README uses the ports that people use, so only one run at a time uses them.

    Other runs of the suite are waited for; a server that is not ours is a reason to skip.
    """
    lock = os.open(tempfile.gettempdir(), os.O_RDONLY)  # the same one for every copy of the tests
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for port in re.findall(r"\b34[68]0\d\b", TEXT):
            try:  # also taken for a minute: the ports of connections that a client has closed
                socket.create_server(("127.0.0.1", int(port))).close()
            except OSError:
                pytest.skip("something on this machine uses port " + port)
        yield tmp_path
    finally:
        os.close(lock)


@pytest.fixture
def shell(alone):
    """A directory to work in and an environment in which `python` is this Python."""
    programs = alone / "bin"
    programs.mkdir()
    for name, extra in (("python", ""), ("python3", ""), ("pegasus-http", "-m pegasus_http ")):
        program = programs / name
        program.write_text('#!/bin/sh\nexec %s %s"$@"\n' % (shlex.quote(sys.executable), extra))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    work = alone / "work"
    work.mkdir()
    shutil.copy(ph.__file__, str(work / "pegasus_http.py"))
    path = str(programs) + os.pathsep + os.environ["PATH"]
    return str(work), support.environment(PATH=path, COLUMNS="80", no_proxy="*")


@contextlib.contextmanager
def session(shell):
    """A bash that reads commands from a pipe; with it ends whatever it has left running."""
    folder, env = shell
    bash = subprocess.Popen(
        ["bash", "--noprofile", "--norc"], cwd=folder, env=env, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(bash.pid, signal.SIGKILL)

    timer = threading.Timer(support.PATIENCE, end)
    timer.start()
    try:
        yield bash
    finally:
        with contextlib.suppress(OSError, AssertionError):  # when the shell itself has ended
            execute(bash, "kill -KILL $(jobs -p); wait")  # waited for, their ports are free again
        timer.cancel()
        end()
        with contextlib.suppress(BrokenPipeError):
            bash.stdin.close()
        bash.stdout.close()
        bash.wait()
        timer.join()


def execute(bash, command):
    """One command in that shell: its exit status and the lines it printed."""
    bash.stdin.write("{ %s\n} </dev/null\nprintf '%s %%d\\n' $?\n" % (command, END))
    bash.stdin.flush()
    server = command.rstrip().endswith("&")
    status, lines = None, []
    while status is None or (server and not any("listening on" in line for line in lines)):
        line = bash.stdout.readline()
        assert line, "the shell ended in %r after %r" % (command, lines)
        before, mark, number = line.rstrip("\n").partition(END + " ")
        if mark:
            status = int(number)
        if before or not mark:
            lines.append(before)
    return status, lines


def commands(block):
    """(command, the lines it should print) of a block, in order."""
    if block.language == "sh":
        return [(block.text, [])]
    found = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and line.startswith("> ") and not found[-1][1]:
            found[-1] = (found[-1][0] + "\n" + line[2:], [])
        else:
            assert found, "output before the first command: " + line
            found[-1][1].append(line)
    assert found, "a console block without a command"
    return found


def pattern(lines):
    """What the shown lines allow: `...` stands for anything, lines too."""
    text = "\n".join(lines).rstrip()
    return ".*".join(re.escape(piece) for piece in text.split("..."))


def check_runnable(block):
    """Skips a block that says why it is not run, or that needs a program this machine lacks."""
    if block.mark:
        mark, _, reason = block.mark.partition(":")
        assert mark == "no-run", block.mark
        assert reason.strip(), "no-run without a reason"
        pytest.skip("README line %d: %s" % (block.line, reason.strip()))
    for program in ("curl", "jq", "wrk", "gzip"):
        if re.search(r"(^|[\s|;&(])%s\s" % program, block.text) and shutil.which(program) is None:
            pytest.skip(program + " is not installed")


def test_the_doctests_of_the_module():
    results = doctest.testmod(ph)
    assert results.failed == 0
    assert results.attempted > 0


@readme
@blocks("python")
def test_a_program_of_the_readme(block, alone):
    assert not block.mark, "a program is always run"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text], cwd=str(alone),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.PATIENCE,
        env=support.environment(no_proxy="*"),
    )
    assert (done.returncode, done.stderr) == (0, "")


@readme
@blocks("sh", "console")
def test_the_commands_of_the_readme(block, shell):
    check_runnable(block)
    with session(shell) as bash:
        for command, expected in commands(block):
            status, lines = execute(bash, command)
            assert status == 0, (command, lines)
            if expected:
                printed = "\n".join(lines).rstrip()
                assert re.match(pattern(expected) + r"\Z", printed, re.S), (command, printed)


@readme
def test_every_block_says_what_it_is():
    known = {"python", "sh", "console", "text", "json", "ini", "yaml", "dockerfile", "toml"}
    assert [block for block in BLOCKS if block.language not in known] == []
    for language in ("python", "console"):
        assert language in [block.language for block in BLOCKS]


@readme
def test_the_table_of_pages_is_what_routes_prints(main):
    """`pretty` is told once, below the table."""
    code, printed, _ = main("--routes")
    assert code == 0
    theirs = {cells[0]: [cells[1], cells[2].replace("pretty", "").rstrip(", ")]
              for cells in rows(printed)[2:]}
    ours = {path: [row[1], row[2].replace("`", "")]
            for row in rows(section("Pages"))[2:] for path in row[0].split(", ")}
    assert ours == theirs
    assert "Every page also takes `pretty`" in section("Pages")


def default(function, name):
    return inspect.signature(function).parameters[name].default


@readme
def test_the_table_of_limits_has_the_defaults():
    values = {
        "max_connections": ph._MAX_CONNECTIONS,
        "timeout": default(ph.StatusServer, "timeout"),
        "max_age": default(ph.LiveCluster, "max_age"),
    }
    shown = [(row[0].strip("`"), float(row[1].replace(",", "")))
             for row in rows(section("Limits"))[2:]]
    assert len(shown) == 5
    assert shown == [(name, values.get(name, getattr(ph, name, None))) for name, _ in shown]
    assert default(ph.StateFile, "max_age") == default(ph.LiveCluster, "max_age")
    assert default(ph.StatusServer, "max_age") == 0  # of a function


@readme
def test_constants_that_are_named_are_there():
    drained = re.search(r"(\d+) MiB of the body, for at most (\d+) seconds", TEXT)
    assert drained
    assert int(drained.group(1)) * 1024 * 1024 == ph._DRAIN_BYTES
    assert int(drained.group(2)) == ph._DRAIN_SECONDS
    named = set(re.findall(r"`(?:pegasus_http\.)?(_[A-Z][A-Z_]+)", TEXT))
    assert named
    assert [name for name in named if not hasattr(ph, name)] == []


@readme
def test_the_command_line_is_what_help_says(shell):
    done = subprocess.run(
        [sys.executable, "-m", "pegasus_http", "--help"], cwd=shell[0], env=shell[1],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert flat(done.stdout) in flat(section("Command line"))


def flat(text):
    """Whitespace and the one heading that differ between versions of argparse, made equal."""
    return " ".join(text.replace("optional arguments:", "options:").split())


# What cannot be run here: a container, a system service, a running cluster

def arguments():
    """(line, arguments of the module) of every command that names it and is not run."""
    found = []
    for block in BLOCKS:
        words = []
        if block.language == "ini":
            words = [line.partition("=")[2] for line in block.text.splitlines()
                     if line.startswith("ExecStart=")]
        elif block.language == "dockerfile":
            words = [shlex.join(sum(map(json.loads, re.findall(r"\[.*\]", block.text)), []))]
        elif block.mark:
            words = [command for command, _ in commands(block)]
        for command in words:
            program = re.search(r"(?:^|\s|/)pegasus[-_]http\s+(?=-)([^>&]*)", command)
            if program:
                found.append(pytest.param(program.group(1), id="line-%d %s" % (
                    block.line, program.group(1).strip())))
    return found


@readme
@pytest.mark.parametrize("text", arguments())
def test_the_options_of_commands_that_are_not_run(main, text):
    """With `--routes` they are all checked, and nothing is served or asked."""
    words = [word for word in shlex.split(text) if word not in ("--check", "--dump")]
    code, _, trouble = main(*words, *([] if "--version" in words else ["--routes"]))
    assert (code, trouble) == (0, "")


@readme
@blocks("dockerfile")
def test_the_container_is_made_of_what_is_there(block):
    """And it listens where its port is: an address of the container alone helps nobody."""
    steps = [line.split(None, 1) for line in block.text.splitlines()]
    assert {name for name, _ in steps} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    steps = dict(steps)
    assert steps["COPY"] == "pegasus_http.py ."
    words = json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"])
    assert words[:3] == ["python3", "-m", "pegasus_http"]
    assert words[words.index("--listen") + 1] == "0.0.0.0:" + steps["EXPOSE"]


@readme
@blocks("ini")
def test_the_unit_is_one_that_systemd_takes(block, tmp_path):
    assert "\nWants=network-online.target\nAfter=network-online.target\n" in block.text
    assert "\nRestart=" in block.text
    assert "ExecReload" not in block.text  # a signal before the handlers are there would end it
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "pegasus-http.service"
    unit.write_text(block.text.replace("/usr/bin/python3", sys.executable))
    done = subprocess.run(
        [verify, "verify", "--man=no", str(unit)], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=support.PATIENCE)
    assert unit.name not in done.stderr, done.stderr


@readme
def test_one_worker_serves_for_all(alone):
    """The program that gunicorn runs in each worker; with a real gunicorn it was tried by hand."""
    [block] = [block for block in BLOCKS if "def post_worker_init" in block.text]
    names = {}
    exec(block.text, names)
    workers = [types.SimpleNamespace() for _ in range(2)]
    for worker in workers:
        names["post_worker_init"](worker)
    first, second = (worker.pages for worker in workers)
    with first:
        assert second is None
        assert support.get(first.port, "/meta/app?name=temp").status == 200
    names["post_worker_init"](workers[1])
    with workers[1].pages as heir:
        assert heir.port == first.port


@readme
def test_the_overview_can_be_left_out(tmp_path):
    """As the section about vendoring says: without its part of the file browsers get JSON too."""
    title = re.search("delete all from the line `# === (.*?)`", TEXT).group(1)
    with open(ph.__file__, encoding="utf-8") as file:
        source = file.read()
    left, found = re.subn(
        r"^# === %s =+\n.*?(?=^# === )" % re.escape(title), "", source, flags=re.M | re.S)
    assert found == 1
    (tmp_path / "shortened.py").write_text(left, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import shortened as ph\n"
         "answer = ph.respond(None, 'GET', '/', {'Accept': 'text/html'}, role='meta')\n"
         "print(answer.status, dict(answer.headers)['Content-Type'])"],
        cwd=str(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=support.PATIENCE)
    assert (done.stdout, done.stderr) == ("200 application/json\n", "")


# Tables and links

@readme
def test_the_table_of_hosts_is_python_that_works(alone):
    state = ph.Standby(None)
    names = {"ph": ph, "state": state, "function": lambda: state, "method": "GET",
             "target": "/version", "headers": {}}
    table = [row[1] for row in rows(section("Embed it"))[2:]]
    calls = [call for cell in table for call in re.findall(r"`(ph\.\w+\(.*?\))`", cell)]
    assert len(calls) >= 6
    for call in calls:
        made = eval(call, names)
        if isinstance(made, ph.StatusServer):
            with made:
                assert support.get(made.port, "/version").status == 200
        else:
            assert made.status == 200


@readme
def test_every_example_is_linked():
    linked = re.findall(r"\]\(tests/examples/(\w+\.py)\)", section("Embed it"))
    there = glob.glob(os.path.join(TESTS, "examples", "*.py"))
    assert sorted(linked) == sorted(map(os.path.basename, there))


@readme
def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not os.path.exists(os.path.join(ROOT, link))] == []


def test_the_readme_of_the_tests_has_every_file():
    with open(os.path.join(TESTS, "README.md"), encoding="utf-8") as file:
        text = file.read()
    named = re.findall(r"^\| `([\w*]+\.py)`", text, re.M)
    found = [glob.glob(os.path.join(TESTS, name)) for name in named]
    assert [name for name, files in zip(named, found) if not files] == []
    assert sorted(sum(found, [])) == sorted(glob.glob(os.path.join(TESTS, "*.py")))


@readme
def test_the_sections_are_those_that_people_look_for():
    assert re.findall(r"^## (.*)$", TEXT, re.M) == [
        "Run it", "Vendor it", "Embed it", "Pages", "The overview", "Command line",
        "What differs from a real server", "Compatibility", "What it is not for", "Limits",
        "Speed", "Tests", "Changelog",
    ]
