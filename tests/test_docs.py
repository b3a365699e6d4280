"""The documentation, run: doctests, every snippet and command of the README, and its tables.

What the README has to keep to:

- A ```python block is a whole program: it ends by itself and says nothing on stderr.
- A ```sh block is one script that has to succeed.
- In a ```console block a line that begins with `$ ` is a command (with the `> ` lines after it)
  and has to exit with 0. The lines below it, if there are any, are what it prints, with `...` for
  anything. A command that ends with `&` is a server: the next command is run when it has said that
  it listens. The commands of a block share one shell, in an empty directory of their own.
- Only `console no-run: REASON` and `sh no-run: REASON` are not run.
"""

import contextlib
import doctest
import fcntl
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

import pytest

import pegasus_http as ph
import support

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "README.md")
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
            with contextlib.closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    pytest.skip("something on this machine listens on port " + port)
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
def test_the_table_of_pages_is_the_table_of_routes():
    table = [row for row in rows(section("Pages")) if re.search("`/", row[0])]
    assert sorted(path for row in table for path in re.findall(r"`(/[^`]*)`", row[0])) == sorted(
        ph.ROUTES)
    for row in table:
        for path in re.findall(r"`(/[^`]*)`", row[0]):
            route, rest = ph.ROUTES[path], " ".join(row[1:])
            for role in ("meta", "replica"):
                assert (role in re.findall(r"[a-z]+", row[1])) == (role in route.roles), path
            for parameter in route.parameters:
                assert "`%s`" % parameter in rest, (path, parameter)


@readme
def test_the_table_of_limits_has_the_constants():
    shown = {}
    for row in rows(section("Limits")):
        name = re.match(r"`(_[A-Z_]+)`", row[0])
        if name:
            number = re.search(r"\d[\d,]*(\.\d+)?", row[1])
            assert number, row
            shown[name.group(1)] = float(number.group().replace(",", ""))
    assert shown == {name: float(getattr(ph, name)) for name in shown}
    assert set(limits()) <= set(shown)


def limits():
    """The numbers in the section of the module that its banner calls Limits."""
    with open(ph.__file__, encoding="utf-8") as file:
        source = file.read()
    banners = [match.start() for match in re.finditer(r"^# (?:---|===)", source, re.M)]
    start = re.search(r"^# .*\bLimits\b", source, re.M | re.I)
    assert start, "the module has no section of limits"
    end = min(place for place in [*banners, len(source)] if place > start.end())
    return re.findall(r"^(_[A-Z_]+)\b.*= *[\d.]", source[start.end():end], re.M)


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


@readme
@pytest.mark.parametrize("title", ["benchmark", "soak"])
def test_the_figures_say_how_they_were_measured(title):
    text = section(title)
    assert re.search(r"\d", text)
    assert "measured" in text.lower()


@readme
@pytest.mark.parametrize("title", ["compatibility", "changelog"])
def test_it_has_the_sections_that_people_look_for(title):
    assert section(title).strip()
