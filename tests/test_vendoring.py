"""The vendoring contract: the one file, copied anywhere under any name, works and stays quiet."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipapp

import pytest

import pegasus_http as ph
import support

PUBLIC = [
    "App", "Cluster", "LiveCluster", "Node", "PageError", "Partition", "ROUTES", "Response",
    "Standby", "StateFile", "StatusHandler", "StatusServer", "main", "respond", "start",
]  # and __version__

with open(ph.__file__, encoding="utf-8") as _file:
    SOURCE = _file.read()
TREE = ast.parse(SOURCE)

# Run with -I -S -W error: what the interpreter looks like before and after the import, by part.
LOOK = r"""
import atexit, http.server, importlib, json, logging, os, signal, socket, sys, threading, warnings

sys.path.insert(0, sys.argv[1])

def look():
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else [],
        "loggers": [
            (name, logger.level, logger.propagate, logger.disabled, len(logger.handlers))
            for name, logger in sorted(logging.Logger.manager.loggerDict.items())
            if isinstance(logger, logging.Logger)
            and (logger.level, logger.propagate, logger.disabled, logger.handlers)
            != (0, True, False, [])
        ],
        "root logger": (logging.root.level, len(logging.root.handlers), logging.raiseExceptions,
                        logging.root.manager.disable, logging.getLoggerClass().__name__),
        "warning filters": [repr(one) for one in warnings.filters],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "search path": list(sys.path),
        "signals": [repr(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.gettrace()),
                  repr(sys.stdin), repr(sys.stdout), repr(sys.stderr)],
        "exit functions": atexit._ncallbacks(),
        "switch interval": sys.getswitchinterval(),
        "socket default": socket.getdefaulttimeout(),
    }

for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(one, signal.SIG_DFL)  # what is ignored would be inherited, and so not seen
modules = set(sys.modules)
before = look()
importlib.import_module(sys.argv[2])
after = look()
library = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
strange = []
for name in set(sys.modules) - modules:
    origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
    if origin not in (None, "built-in", "frozen") and (
            not os.path.abspath(origin).startswith(library) or "-packages" in origin):
        strange.append(name)
print(json.dumps([before, after, sorted(strange)]))
"""

# Run with -I -S -W error: two copies in one process, each with a server of its own.
TWO = r"""
import importlib, sys, urllib.request

sys.path.insert(0, sys.argv[1])
copies = [importlib.import_module(name) for name in sys.argv[2:]]
servers = [copy.start(role="replica", version="v%d" % n) for n, copy in enumerate(copies)]
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
for copy, server in zip(copies, servers):
    with open_url(server.url + "/version", timeout=20) as answer:
        print(answer.headers["Server"], answer.read().decode().strip())
servers[0].stop()
with open_url(servers[1].url + "/health", timeout=20) as answer:
    print(answer.status, servers[0].running, servers[1].running)
servers[1].stop()
print(copies[0].Cluster is copies[1].Cluster, "pegasus_http" in sys.modules)
"""


# Run with -I -S -W error: what importing a copy imports that http.server does not need.
IMPORTED = r"""
import http.server, importlib, sys

sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print(*sorted(set(sys.modules) - before))
"""

# Run with -I -S -W error: a host in odd surroundings (HERE) serves pages and writes their statuses
# into a file.
SERVE = r"""
import sys
HERE
import http.client, importlib

result, folder, name = sys.argv[1:]
sys.path.insert(0, folder)
statuses = []
with importlib.import_module(name).start(role="replica") as server:
    for page in ["/version", "/health", "/startTime", "/"] * 50:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        client.request("GET", page, headers={"Connection": "close"})
        answer = client.getresponse()
        answer.read()
        client.close()
        statuses.append(answer.status)
with open(result, "w") as file:
    file.write("%s %d" % (sorted(set(statuses)), len(statuses)))
"""
SURROUNDINGS = {
    "as usual": "",
    "closed standard streams": "assert sys.stdin is sys.stdout is sys.stderr is None",
    "64 descriptors": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "no /proc": "import os; assert not os.path.exists('/proc/self')",
    "no /proc to open": r"""
import builtins, io, os

def without(call):
    def checked(path, *arguments, **options):
        if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return call(path, *arguments, **options)
    return checked

builtins.open = io.open = without(open)
for name in ("open", "listdir", "scandir", "readlink", "stat"):
    setattr(os, name, without(getattr(os, name)))
""",
}
WRAPPERS = {  # what starts the interpreter there, with the whole command as its arguments
    "closed standard streams": ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"],
    "no /proc": ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
}


def vendor(folder, *parts, text=None):
    """Puts a copy at folder/part/.../part.py, inside packages that know nothing of it."""
    package = str(folder)
    os.makedirs(package, exist_ok=True)
    for part in parts[:-1]:
        package = os.path.join(package, part)
        os.makedirs(package, exist_ok=True)
        with open(os.path.join(package, "__init__.py"), "w", encoding="utf-8"):
            pass
    path = os.path.join(package, parts[-1] + ".py")
    if text is None:
        shutil.copyfile(ph.__file__, path)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return path


def isolated(*arguments, options=(), wrapper=()):
    """A bare interpreter: next to no environment, no site-packages, warnings fatal."""
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(
        [*wrapper, sys.executable, "-I", "-S", "-W", "error", *options, *arguments], env=env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.PATIENCE,
    )


def test_the_contract(tmp_path):
    """A copy in an unrelated package: no side effect of its import, two servers, and a script."""
    first = vendor(tmp_path, "alpha", "_vendor", "status_pages")
    vendor(tmp_path, "beta", "http_status",
           text=SOURCE.replace('"%s"' % ph.__version__, '"0.0.1"', 1))

    done = isolated("-c", LOOK, str(tmp_path), "alpha._vendor.status_pages")
    assert (done.returncode, done.stderr) == (0, "")
    before, after, strange = json.loads(done.stdout)
    for what in before:
        assert after[what] == before[what], what
    assert strange == ["alpha", "alpha._vendor", "alpha._vendor.status_pages"]

    done = isolated("-c", TWO, str(tmp_path), "alpha._vendor.status_pages", "beta.http_status")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith('pegasus_http/%s {"Version":{"Version":"v0"' % ph.__version__)
    assert lines[1].startswith('pegasus_http/0.0.1 {"Version":{"Version":"v1"')
    assert lines[2:] == ["200 False True", "False False"]

    done = isolated(first, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert ph.__version__ in done.stdout.split()


def test_the_import_is_light(tmp_path):
    """Each of these is as much to import as a good part of the module, and not always needed."""
    vendor(tmp_path, "alpha", "status_pages")
    done = isolated("-c", IMPORTED, str(tmp_path), "alpha.status_pages")
    assert (done.returncode, done.stderr) == (0, "")
    imported = set(done.stdout.split())
    assert imported & {"typing", "json", "dataclasses", "logging", "argparse"} == set()
    assert "alpha.status_pages" in imported


def zipped(folder):
    """A copy in a package in a zip file: what to put on sys.path, and the module's name."""
    vendor(folder / "content", "alpha", "_vendor", "status_pages")
    archive = shutil.make_archive(str(folder / "library"), "zip", str(folder / "content"))
    return archive, "alpha._vendor.status_pages"


@pytest.mark.parametrize("place, surroundings", [
    ("zip", "as usual"), *(("folder", name) for name in SURROUNDINGS),
])
def test_a_host_in_odd_surroundings(tmp_path, place, surroundings):
    wrapper = WRAPPERS.get(surroundings, [])
    if wrapper and shutil.which(wrapper[0]) is None:
        pytest.skip("there is no " + wrapper[0])
    bare = isolated("-c", "", wrapper=wrapper) if wrapper else None
    if bare and (bare.returncode or bare.stderr):
        pytest.skip("Python itself cannot do without: " + bare.stderr.strip())
    where, name = str(tmp_path), "copied"
    if place == "zip":
        where, name = zipped(tmp_path)
    else:
        vendor(tmp_path, name)
    result = tmp_path / "result"
    done = isolated("-c", SERVE.replace("HERE", SURROUNDINGS[surroundings]),
                    str(result), where, name, wrapper=wrapper)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert result.read_text() == "[200] 200"


def script(folder):
    return vendor(folder, "two words")


def application(folder):
    """One executable archive, which is what most ways to freeze a program come down to."""
    vendor(folder / "content", "copied")
    target = str(folder / "copied.pyz")
    zipapp.create_archive(str(folder / "content"), target, main="copied:main")
    return target


@pytest.mark.parametrize("make", [script, application])
def test_a_copy_serves_as_a_program(tmp_path, make):
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-W", "error", "-X", "dev", make(tmp_path),
         "--role", "meta", "--listen", "127.0.0.1:0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        first = re.match(
            r"listening on http://127\.0\.0\.1:(\d+) role=meta source=sample pid=(\d+)$",
            process.stdout.readline(),
        )
        assert int(first.group(2)) == process.pid
        port = int(first.group(1))
        assert support.get(port, "/meta/apps").json["summary"] == {"total_app_count": "1"}
        for target in ("/meta/apps", "/meta/nodes", "/meta/cluster", "/version"):
            assert support.get(port, target, "Accept-Encoding: gzip").status == 200
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=support.PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, rest) == (0, ("", ""))


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_it_works_without_asserts_and_docstrings(tmp_path, option):
    """-OO drops docstrings too, from which the index takes its help texts."""
    vendor(tmp_path, "copied")
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1]); import copied\n"
        "print(copied.respond(None, 'GET', '/', role='meta').body.decode())"
    )
    done = isolated("-c", ask, str(tmp_path), options=[option])
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(json.loads(done.stdout)) == sorted(
        json.loads(ph.respond(None, "GET", "/", role="meta").body.decode()))


def test_the_header_says_licence_and_version():
    top = SOURCE.splitlines()[:5]
    assert "# SPDX-License-Identifier: Apache-2.0" in top
    assert any(line.startswith("# SPDX-FileCopyrightText: ") for line in top)
    literals = [
        node.value for node in TREE.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and "__version__" in [
            target.id for target in getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(target, ast.Name)
        ]
    ]
    assert [ast.literal_eval(value) for value in literals] == [ph.__version__]
    assert re.match(r"\d+\.\d+\.\d+([ab]|rc)?\d*$", ph.__version__)


def defined(body):
    """The names that a module's or a class's own body gives a meaning, imports left out, and
    TYPE_CHECKING, which type checkers know by that name: typing's own would have to be imported."""
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        yield name.id, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


def test_the_public_names_are_those_agreed_on():
    assert sorted(ph.__all__) == sorted(PUBLIC)
    public = {name for name, _ in defined(TREE.body) if not name.startswith("_")}
    assert public == set(PUBLIC)


def test_every_public_name_and_method_is_documented():
    bare = []
    for name, node in defined(TREE.body):
        if name.startswith("_"):
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            assert SOURCE.splitlines()[node.lineno - 2].startswith("#: "), name
            continue
        places = [(name, node)]
        if isinstance(node, ast.ClassDef):
            places += [
                (name + "." + method, inner) for method, inner in defined(node.body)
                if isinstance(inner, ast.FunctionDef) and not method.startswith("_")
            ]
        bare += [place for place, one in places if not ast.get_docstring(one)]
    assert bare == []
