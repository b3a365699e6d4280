"""The servers: `python servers.py NAME JSON` prints its port and serves until stdin ends.

The JSON object holds what a server needs: `answer` (file with a whole HTTP answer) and `close` for
the bare loops, `body` (file with the JSON) for the frameworks of peers.py, the size of the cluster
or a state file for `ours`.
"""

import http.server
import itertools
import json
import os
import select
import signal
import socket
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ACCEPTS = 64  # connections taken per wake-up of the listener


def announce(port):
    print("port", port, flush=True)


def content(options, key):
    with open(options[key], "rb") as file:
        return file.read()


def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def limit(options):
    """The limit: one read and one write per request, whatever was asked, as bare as Python goes."""
    listener = listen()
    listener.setblocking(False)
    announce(listener.getsockname()[1])
    loop = Loop(listener, content(options, "answer"), options.get("close", False))
    loop.run()


class Loop:
    """Bare descriptors and level-triggered epoll: measured faster than socket objects."""

    def __init__(self, listener, answer, close):
        self.listener, self.answer, self.close = listener, answer, close
        self.poller = select.epoll()
        self.poller.register(listener.fileno(), select.EPOLLIN)
        self.unsent = {}

    def run(self):
        read, write, poll = os.read, os.write, self.poller.poll
        answer, length, close = self.answer, len(self.answer), self.close
        accepting, unsent = self.listener.fileno(), self.unsent
        while True:
            for fd, _ in poll():
                if fd == accepting:
                    self.accept()
                    continue
                if fd in unsent:
                    self.resume(fd)
                    continue
                try:
                    sent = write(fd, answer) if read(fd, 4096) else -1
                except OSError:
                    sent = -1
                if sent == length and not close:
                    continue
                self.finish(fd, sent)

    def accept(self):
        for _ in range(ACCEPTS):
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            fd = connection.detach()
            os.set_blocking(fd, False)
            self.poller.register(fd, select.EPOLLIN)

    def finish(self, fd, sent):
        if 0 <= sent < len(self.answer):
            self.unsent[fd] = memoryview(self.answer)[sent:]
            self.poller.modify(fd, select.EPOLLOUT)
        else:
            os.close(fd)

    def resume(self, fd):
        """Send on where the socket's buffer was full."""
        rest = self.unsent.pop(fd)
        try:
            rest = rest[os.write(fd, rest):]
        except BlockingIOError:
            pass
        except OSError:
            os.close(fd)
            return
        if rest:
            self.unsent[fd] = rest
        elif self.close:
            os.close(fd)
        else:
            self.poller.modify(fd, select.EPOLLIN)


def threads(options):
    """The bare thread-per-connection loop."""
    listener = listen()
    announce(listener.getsockname()[1])
    serve_threads(listener, content(options, "answer"), options.get("close", False))


def serve_threads(listener, answer, close):
    def serve(connection):
        with connection:
            try:
                while connection.recv(4096):
                    connection.sendall(answer)
                    if close:
                        return
            except OSError:
                pass

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def stock(options, version="HTTP/1.0"):
    """ThreadingHTTPServer as people write it."""
    body = content(options, "body")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = version

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    announce(server.server_address[1])
    server.serve_forever()


def stock11(options):
    stock(options, "HTTP/1.1")


def model(options):
    import support

    sizes = ("tables", "partitions", "nodes", "replicas")
    return support.cluster(**{key: options[key] for key in sizes if key in options})


def ours(options):
    """The module as a host embeds it; with `hz`, one table changes that many times a second."""
    import pegasus_http

    path = options.get("state")
    state = pegasus_http.StateFile(path) if path else model(options)
    server = pegasus_http.start(state, role="meta", version="2.6.0", git_commit="a" * 40)
    announce(server.port)
    if options.get("hz") and not path:
        change(server, state, 1.0 / options["hz"])
    signal.pause()


def change(server, state, period):
    due = time.monotonic()
    for turn in itertools.count(1):
        state = changed(state, turn)
        server.publish(state)
        due += period
        time.sleep(max(0.0, due - time.monotonic()))


def changed(state, turn):
    """The same cluster but for one ballot of one table, each time of the next one."""
    place = turn % len(state.apps)
    app = state.apps[place]
    row = app.partitions[0]
    rows = (row._replace(ballot=row.ballot + 1), *app.partitions[1:])
    apps = state.apps[:place] + (app._replace(partitions=rows),) + state.apps[place + 1:]
    return state._replace(apps=apps)


def busy(options):
    """A host that computes in pure Python while it is asked; an input line says how long."""
    announce(companion(options))
    for line in sys.stdin:
        end, count = time.monotonic() + float(line), 0
        while time.monotonic() < end:
            for number in range(1000):
                count += number & 1
        print("count", count, flush=True)


def companion(options):
    """Start what serves beside the computing host; the port, 0 for nothing."""
    if options["beside"] == "ours":
        import pegasus_http

        return pegasus_http.start(model(options), role="meta").port
    if options["beside"] == "threads":
        listener = listen()
        arguments = (listener, content(options, "answer"), False)
        threading.Thread(target=serve_threads, args=arguments, daemon=True).start()
        return listener.getsockname()[1]
    return 0


def end_with_stdin():
    """Whatever happens to the benchmark, its servers end: its death closes their stdin."""
    def wait():
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


SERVERS = {
    "limit": limit, "threads": threads, "http.server": stock, "http.server-1.1": stock11,
    "ours": ours, "busy": busy,
}


def main():
    sys.path[:0] = [ROOT, os.path.dirname(HERE)]
    name, options = sys.argv[1], json.loads(sys.argv[2])
    if name != "busy":
        end_with_stdin()
    if name in SERVERS:
        SERVERS[name](options)
    else:
        import peers

        os.environ[peers.BODY] = options["body"]
        peers.PEERS[name].serve(content(options, "body"))


if __name__ == "__main__":
    main()
