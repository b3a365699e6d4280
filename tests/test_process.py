"""What happens to the process around the server: signals, limits, forks, threads made of greenlets.

Each test is a host program of its own.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

import pegasus_http as ph
from marks import both_styles, needs_fork, needs_proc
from support import (
    NEXT,
    PATIENCE,
    Client,
    ask,
    environment,
    get,
    host,
    request,
    reset,
    room,
    settle,
    wait_until,
)

STARTED = """
import contextlib, ctypes, http.server, os, resource, signal, socket, subprocess, sys, threading
import time
import pegasus_http as ph
from support import *
def serve(style, source, **settings):
    '''(server, port); whoever needs an end ends the process.'''
    server = ph.StatusServer(source, role='meta', **settings)
    if style == 'loop':
        server.start()
        return server, server.port
    class Handler(ph.StatusHandler):
        status_server = server
    class Mount(http.server.ThreadingHTTPServer):
        request_queue_size = 64
        def handle_error(self, request, address):
            os.write(2, b'the handler raised\\n')
    mount = Mount(('127.0.0.1', 0), Handler)
    threading.Thread(target=mount.serve_forever, args=(60.0,), daemon=True).start()
    return server, mount.server_address[1]
def total(port):
    return get(port, '/meta/apps').json['summary']['total_app_count']
def fork_without_hooks():
    '''As uWSGI and C hosts do; PyDLL keeps the interpreter lock, as they do.

    A thread that wants that lock at this moment would hold up the child, whatever we do: so the
    others are given time to wait for something else.
    '''
    time.sleep(0.05)
    return ctypes.PyDLL(None).fork()
"""


def told(process, line="go\n"):
    """Tell the host to go on; what it says then."""
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline().strip()


# A client that leaves early must not kill a host that has SIGPIPE at its default

PIPE = STARTED + """
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
"""


SMALL, LARGE = ("/version",), ("/meta/apps?detail", "/nosuch")


@both_styles
def test_clients_that_leave_early_do_not_kill_the_host(style):
    def leaves_early(port, turn, leave, targets):
        client = Client(port)
        client.send(b"".join(
            request(target, "X-A: %d.%d" % (turn, n)) for n in range(50) for target in targets))
        leave(client)
        assert get(port, "/version").status == 200, (leave, targets)

    def answer(process, port):
        for leave in (lambda client: client.sock.close(), reset):
            for targets in (SMALL, LARGE):
                for turn in range(10):
                    leaves_early(int(port), turn, leave, targets)
        told(process)

    host(PIPE + """
server, port = serve(%r, cluster(tables=300))
print(port, flush=True)
sys.stdin.readline()
print('alive')
sys.stdout.flush()
os._exit(0)
""" % style, answer=answer)


def test_a_source_that_returns_after_the_stop_does_not_kill_the_host():
    host(PIPE + """
ph._STOP_SECONDS = 0.05
gate = Gate()
def source():
    gate()
    return cluster()
server, port = serve('loop', source)
client = Client(port)
client.send(request('/meta/apps'))
gate.reached()
server.stop()
gate.open()
wait_until(lambda: not ours(), 'the thread ends')
server.start()
assert total(server.port) == '3'
server.stop()
client.sock.close()
""")


def test_a_meta_server_that_leaves_early_does_not_kill_the_host():
    """It ends its side and then resets: the next send on that connection is a broken pipe."""
    host(PIPE + """
import replay
class Meta(replay.Meta):
    def leave(self):
        for sock in list(self._sockets):
            sock.shutdown(socket.SHUT_WR)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._sockets.discard(sock)
            os.dup2(self._listener.fileno(), sock.fileno())  # closes it: its thread still receives
meta = replay.Meta(replay.synthetic(replay.make_state(tables=100)))
Meta.leave(meta)
source = ph.LiveCluster(meta.address, max_age=0.0)
server, port = serve('loop', source)
for _ in range(3):
    assert total(port) == '100'
    assert get(port, '/meta/apps?detail').status == 200
    Meta.leave(meta)
server.stop()
print('alive', flush=True)
os._exit(0)
""")


# Descriptors

LIMITED = STARTED + """
resource.setrlimit(resource.RLIMIT_NOFILE, (MOST, MOST))
server, port = serve('loop', cluster(tables=300))
print(port, flush=True)
"""
STILL_ABLE = LIMITED.replace("MOST", "256") + """
sys.stdin.readline()
files = [open(os.devnull) for _ in range(40)]
assert subprocess.run([sys.executable, '-S', '-c', ''], env=os.environ).returncode == 0
with Client(port) as client:
    pass
for file in files:
    file.close()
print('able', flush=True)
sys.stdin.readline()
server.stop()
"""


@pytest.mark.parametrize("data, status", [
    pytest.param(b"", 200, id="silent"), pytest.param(NEXT, 200, id="idle"),
    pytest.param(NEXT[:-2], 503, id="half-a-head"),
])
def test_a_thousand_clients_leave_the_host_its_descriptors(data, status):
    def answer(process, port):
        with contextlib.ExitStack() as stack:
            for _ in range(room(1000)):
                with contextlib.suppress(ConnectionError):  # those that are refused
                    stack.enter_context(Client(int(port))).send(data)
            with contextlib.suppress(ConnectionError):
                newcomer = stack.enter_context(Client(int(port)))
                newcomer.send(NEXT)
            assert newcomer.answer().status == status  # and all before it have been accepted
            assert told(process) == "able"
        told(process)

    host(STILL_ABLE, "-W", "ignore::ResourceWarning", answer=answer)


def test_connections_take_three_quarters_of_the_descriptors():
    def answer(process, port):
        with contextlib.ExitStack() as stack:
            def at_work():
                client = stack.enter_context(Client(int(port)))
                with contextlib.suppress(ConnectionError):
                    client.send(NEXT + NEXT[:-2])
                return client

            clients = [at_work() for _ in range(60)]
            for client in clients:
                assert client.answer().status == 200
            refused = at_work().answer()
            assert (refused.status, refused.json["error"]) == (503, "ERR_BUSY")
            for client in clients:
                client.send(b"\r\n")
                assert client.answer().status == 200
        told(process)

    host(LIMITED.replace("MOST", "80") + "sys.stdin.readline()", answer=answer)


@needs_proc
def test_when_the_host_takes_all_descriptors_the_longest_idle_connection_goes():
    def answer(process, port):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(int(port))) for _ in range(5)]
            for client in clients:
                ask(client)
            assert told(process) == "full"
            for gone in clients[:3]:
                ask(stack.enter_context(Client(int(port))))
                assert gone.closed()
            for client in clients[3:]:
                ask(client)
        told(process)

    host(LIMITED.replace("MOST", "64") + """
sys.stdin.readline()
files = []
with contextlib.suppress(OSError):
    while True:
        files.append(os.open(os.devnull, os.O_RDONLY))
print('full', flush=True)
sys.stdin.readline()
for file in files:
    os.close(file)
""", answer=answer)


# Logging handlers that raise

LOGGING = STARTED + """
import logging
KINDS = (ZeroDivisionError, OSError, SystemExit)
class Broken(logging.Handler):
    def emit(self, record):
        raise self.kind('the log is broken')
broken = Broken()
logging.getLogger('pegasus_http').addHandler(broken)
logging.getLogger('pegasus_http.access').setLevel(logging.INFO)
"""
FOR_EACH_KIND = """
for style in STYLES:
    for broken.kind in KINDS:
        check(style)
sys.stdout.flush()
os._exit(0)
"""


def test_a_host_that_closes_all_descriptors_can_see_that_the_server_has_stopped():
    host(STARTED + """
import logging
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger('pegasus_http').addHandler(handler)
ph._IDLE_SECONDS = 0.2  # the loop notices it when a client has been idle for so long
server = ph.start(cluster(), role='meta')
assert total(server.port) == '3'
client = Client(server.port)
ask(client)
os.closerange(3, 256)
wait_until(lambda: not server.running, 'it is not running')
assert [record.getMessage() for record in records] == ['the server has stopped']
os._exit(0)
""")


def test_descriptors_that_select_cannot_take():
    """Where there is no epoll, a client that gets such a one is turned away; others are served."""
    host(STARTED + """
import select
del select.epoll
server = ph.start(cluster(), role='meta')
need = 1100
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if soft < need <= hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
client = Client(server.port)
ask(client)
taken = []
while not taken or max(taken) < 1024:
    taken.append(os.dup(0))
with Client(server.port) as late:
    late.send(request('/version'))
    with contextlib.suppress(ConnectionError):
        assert ended(late) == b''
for fd in taken:
    os.close(fd)
ask(client)
assert total(server.port) == '3'
os._exit(0)
""")


def test_a_logging_handler_that_raises_stops_no_page():
    host(LOGGING + """
def failing(*_):
    raise ValueError('the page or the source fails')
class Patch:
    setitem = staticmethod(dict.__setitem__)
for path in ('/version', '/meta/apps'):
    page_of(Patch, path + '/failing', path, failing)
def check(style):
    answers = iter([failing, lambda: 17, cluster])
    server, port = serve(style, lambda: next(answers, cluster)())
    assert [get(port, '/meta/apps').status for _ in range(3)] == [500, 500, 200]
    for path in ('/version/failing', '/meta/apps/failing'):
        for _ in range(3):
            assert get(port, path).status == 500
        assert total(port) == '3'
    assert server.counters.last_error
    server.stop()
""" + FOR_EACH_KIND)


def test_a_logging_handler_that_raises_keeps_the_last_good_state(tmp_path):
    host(LOGGING + "path = %r" % str(tmp_path / "state.json") + """
def write(text):
    with open(path + '.new', 'w') as file:
        file.write(text)
    os.replace(path + '.new', path)
def check(style):
    write('{"apps":[],"nodes":[]}')
    server, port = serve(style, ph.StateFile(path, max_age=0.0))
    assert get(port, '/meta/apps').status == 200
    write('{')
    assert [get(port, '/meta/apps').status for _ in range(3)] == [200] * 3
    server.stop()
""" + FOR_EACH_KIND)


def test_an_access_log_that_raises_stops_no_page():
    host(LOGGING + """
def check(style):
    server, port = serve(style, cluster(), access_log=True)
    assert not server.counters.last_error
    with Client(port) as client:
        for _ in range(3):
            for target in ('/version', '/meta/apps'):
                client.send(request(target))
                assert client.answer().status == 200
    assert server.counters.last_error == 'the access log raised ' + broken.kind.__name__
    server.stop()
""" + FOR_EACH_KIND)


@needs_proc
def test_a_logging_handler_that_raises_does_not_end_the_loop_without_descriptors():
    def answer(process, line):
        while line != "the end":
            assert told(process) == "full"
            with Client(int(line)) as client:
                client.send(NEXT)
                assert told(process) == "reported"
                assert client.answer().status == 200
            line = told(process)

    host(LOGGING + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for broken.kind in KINDS:
    server, port = serve('loop', cluster())
    print(port, flush=True)
    sys.stdin.readline()
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    print('full', flush=True)
    sys.stdin.readline()
    wait_until(lambda: server.counters.last_error, 'it cannot accept')
    for file in files:
        os.close(file)
    print('reported', flush=True)
    sys.stdin.readline()
    server.stop()
print('the end', flush=True)
""", answer=answer)


# Forks

FORKS = pytest.mark.parametrize("fork", ["os.fork", "fork_without_hooks"])
CHILD = """
def in_child(work, seconds=20):
    '''The pid of a forked child that does `work`; it ends with 0 when that raises nothing.'''
    child = FORK()
    if child == 0:
        signal.alarm(seconds)  # ends a child that waits for ever
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    return child
def ended(child):
    assert os.waitpid(child, 0)[1] == 0
"""


def forking(script, fork):
    host(STARTED + CHILD.replace("FORK", fork) + script, "-W", "ignore::DeprecationWarning")


@needs_fork
@FORKS
def test_a_child_starts_afresh(fork):
    forking("""
server, port = serve('loop', cluster(tables=2))
kept = Client(port)
ask(kept)
def work():
    assert not server.running
    server.stop()
    for _ in range(2):
        server.start()
        assert server.running and server.port != port
        assert total(server.port) == '2'
        server.publish(cluster(tables=5))
        assert total(server.port) == '5'
        server.stop()
        assert not server.running
        server.publish(cluster(tables=2))
ended(in_child(work))
assert server.running
for _ in range(20):
    assert total(port) == '2'
ask(kept)
server.stop()
assert kept.closed()
kept.sock.close()
""", fork)


@needs_fork
@FORKS
def test_clients_see_the_end_although_a_child_lives(fork):
    forking("""
def check(style):
    server, port = serve(style, cluster())
    kept = Client(port)
    ask(kept)
    closing = Client(port)
    closing.send(request('/version')[:-2])
    read, write = os.pipe()
    def work():
        os.close(write)
        os.read(read, 1)
    child = in_child(work, 60)
    closing.send(b'Connection: close\\r\\n\\r\\n')
    assert closing.answer().status == 200
    assert closing.closed(), 'a child holds it open'
    closing.sock.close()
    kept.send(b'not HTTP\\r\\n\\r\\n')
    assert kept.answer().status == 400
    assert kept.closed(), 'a child holds it open'
    kept.sock.close()
    if style == 'loop':
        last = Client(port)
        ask(last)
        server.stop()
        assert last.closed(), 'a child holds it open'
        last.sock.close()
    os.close(write)
    ended(child)
for style in STYLES:
    check(style)
os._exit(0)
""", fork)


@needs_fork
@FORKS
def test_a_server_used_before_a_fork_serves_in_the_child(fork):
    """The thread that computed before is not there; a server that was never started has one too."""
    forking("""
def check(style, source):
    server, port = serve(style, source)
    assert total(port) == '2'
    def work():
        class Handler(ph.StatusHandler):
            status_server = server
        with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as mount:
            threading.Thread(target=mount.serve_forever, args=(0.01,), daemon=True).start()
            assert get(mount.server_address[1], '/version').status == 200
            assert total(mount.server_address[1]) == '2'
            mount.shutdown()
    ended(in_child(work))
    assert total(port) == '2'
for style in STYLES:
    for source in (cluster(tables=2), lambda: cluster(tables=2)):
        check(style, source)
os._exit(0)
""", fork)


@needs_fork
def test_a_fork_while_a_page_is_computed():
    """Whatever the other thread is about, the child waits for none of its locks."""
    forking("""
begun = threading.Event()
class Patch:
    setitem = staticmethod(dict.__setitem__)
base = cluster(tables=1000, partitions=16)
def fresh():
    '''An equal state of which nothing has been computed.'''
    return base._replace(apps=[ph.App(*app) for app in base.apps])
for path in ('/meta/nodes', '/meta/apps', '/meta/app'):
    page_of(Patch, path, path, lambda query: begun.set())
server, port = serve('loop', None, timeout=60.0)
TARGETS = ('/meta/nodes?detail', '/meta/apps?detail', '/meta/app?name=table1', '/meta/cluster')
for n in range(6):
    server.publish(ph.Standby(None))
    begun.clear()
    state = fresh()
    server.publish(state)
    with Client(port) as client:
        client.send(request(TARGETS[n % 3]))
        assert begun.wait(20)
        def work():
            server.start()
            own = fresh()
            for target in TARGETS:
                assert get(server.port, target).status == 200
                assert ph.respond(own, 'GET', target).status == 200
        child = in_child(work)
        assert client.answer().status == 200
        ended(child)
server.stop()
""", "os.fork")


@needs_fork
@FORKS
def test_a_fork_while_a_page_and_a_source_hang(fork):
    forking("""
gate = Gate()
calls = []
def source():
    calls.append(os.getpid())
    if os.getpid() == parent:
        gate()
    return cluster(tables=2)
parent = os.getpid()
server, port = serve('loop', source, timeout=60.0)
client = Client(port)
client.send(request('/meta/apps'))
gate.reached()
def work():
    server.start()
    assert total(server.port) == '2'
    server.stop()
ended(in_child(work))
gate.open()
assert client.answer().status == 200
client.sock.close()
server.stop()
""", fork)


@needs_fork
@FORKS
def test_a_child_reads_the_cluster_that_the_parent_is_reading(fork):
    """The read is under way for as long as the meta server is silent."""
    forking("""
import replay
release = threading.Event()
meta = replay.Meta(replay.synthetic(replay.make_state(tables=4)))
source = ph.LiveCluster(meta.address, timeout=60.0, max_age=0.0)
server, port = serve('loop', source, timeout=60.0)
assert total(port) == '4' and meta.connections == 1
meta.fault = replay.held(release)
asked = len(meta.requests)
kept = Client(port)
kept.send(request('/meta/apps'))
wait_until(lambda: len(meta.requests) > asked, 'the read is under way')
def work():
    assert len(source().apps) == 4
    server.start()
    assert total(server.port) == '4'
child = in_child(work)
wait_until(lambda: meta.connections == 2, 'the child has a connection of its own')
release.set()
ended(child)
assert kept.answer().json['summary']['total_app_count'] == '4'
assert total(port) == '4'
kept.sock.close()
server.stop()
meta.close()
""", fork)


# Greenlets

@pytest.mark.parametrize("library, patch", [
    ("gevent", "from gevent import monkey; monkey.patch_all()"),
    ("eventlet", "import eventlet; eventlet.monkey_patch()"),
])
@pytest.mark.parametrize("order", ["before", "after"])
def test_greenlets_that_are_patched_in(library, patch, order):
    if importlib.util.find_spec(library) is None:
        pytest.skip("%s is not installed" % library)
    patched = "import warnings\nwarnings.simplefilter('ignore')\n%s\n" % patch
    first, second = (patched, "") if order == "before" else ("", patched)
    host(first + STARTED + second + """
server = ph.start(cluster(tables=300), role='meta')
for _ in range(3):
    with Client(server.port) as client:
        for target in ('/version', '/meta/apps?detail', '/meta/nodes', '/health'):
            client.send(request(target))
            assert client.answer().status == 200
server.publish(cluster(tables=2))
assert total(server.port) == '2'
server.stop()
assert not server.running
slow = ph.start(lambda: cluster(tables=4), role='meta')
assert total(slow.port) == '4'
slow.stop()
sys.stdout.flush()
os._exit(0)
""")


# A process that is stopped and continued

def asleep(pid):
    """True when every thread of the process waits for something."""
    states = set()
    for thread in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/stat" % (pid, thread)) as stat:
            states.add(stat.read().rpartition(")")[2].split()[0])
    return states == {"S"}


def sent_while_stopped(stack, port):
    """Connections to this port at different stages: (before the stop, during it, after it)."""
    kept, half, silent = (stack.enter_context(Client(port)) for _ in range(3))

    def before():
        for client in (kept, half):
            ask(client)
        half.send(NEXT[:9])
        settle(kept)

    def meanwhile():
        kept.send(request("/meta/apps") + NEXT)
        half.send(NEXT[9:])
        silent.send(NEXT)
        silent.newcomer = stack.enter_context(Client(port))
        silent.newcomer.send(NEXT)

    def afterwards():
        assert "general_info" in kept.answer().json
        for client in (kept, half, silent, silent.newcomer):
            assert client.answer().status == 200

    return before, meanwhile, afterwards


@needs_proc
def test_what_was_sent_while_the_process_was_stopped_is_answered():
    """In both styles at the same time."""
    def answer(process, ports):
        with contextlib.ExitStack() as stack:
            steps = zip(*(sent_while_stopped(stack, int(port)) for port in ports.split()))
            before, meanwhile, afterwards = steps
            for step in before:
                step()
            wait_until(lambda: asleep(process.pid), "it waits for its clients")
            process.send_signal(signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            for step in meanwhile:
                step()
            until = time.monotonic() + 2.2  # all limits are over
            wait_until(lambda: time.monotonic() > until, "time passes")
            process.send_signal(signal.SIGCONT)
            for step in afterwards:
                step()
        told(process)

    host(STARTED + """
ph._IDLE_SECONDS = ph._HEAD_SECONDS = 2.0
print(*[serve(style, cluster())[1] for style in STYLES], flush=True)
sys.stdin.readline()
sys.stdout.flush()
os._exit(0)
""", answer=answer)


# Interpreters within the interpreter

IN_A_SUBINTERPRETER = """
import sys
sys.path[:0] = PATHS
import pegasus_http as ph
assert ph.respond(ph.Cluster((), ()), 'GET', '/meta/apps').status == 200
server = ph.StatusServer(ph.Cluster((), ()), role='meta')
try:
    server.start()
except RuntimeError as error:
    print('RuntimeError:', error, flush=True)
assert not server.running
"""


@pytest.mark.skipif(sys.version_info < (3, 9), reason="before 3.9 they may have daemon threads")
def test_a_subinterpreter_is_told_that_it_cannot_start_one():
    names = ("_interpreters", "_xxsubinterpreters")
    name = next((name for name in names if importlib.util.find_spec(name)), None)
    if name is None:
        pytest.skip("this Python has no subinterpreters")
    paths = [os.path.dirname(os.path.abspath(ph.__file__))]
    script = IN_A_SUBINTERPRETER.replace("PATHS", repr(paths))
    # The process ends with `os._exit`, because Python 3.12.1 crashes when it takes down a
    # subinterpreter that has done nothing but `import http.server`.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c",
         "import os, %s as them\none = them.create()\n"
         "print(them.run_string(one, %r) or 'done', flush=True)\nos._exit(0)" % (name, script)],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[1:]) == (0, "", ["done"])
    assert lines[0].startswith("RuntimeError: ") and "daemon thread" in lines[0]
    assert lines[0].count(".") <= 1, "one sentence"
