"""A host that forks workers while it serves: its pages stay its own, each worker opens others."""

import os
import urllib.request
import warnings

import pegasus_http as ph


def worker(tell, wait):
    """In the child, where the parent's server does not run: this one has its own port."""
    with ph.StatusServer(role="replica") as server:
        os.write(tell, b"%d" % server.port)
        os.read(wait, 1)


def fork():
    """A worker's pid, its port, and the descriptor that stops it."""
    ready, tell = os.pipe()
    wait, stop = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            worker(tell, wait)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    os.close(wait)
    port = int(os.read(ready, 16))
    os.close(ready)
    return pid, port, stop


def get(port, target):
    with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, target), timeout=10) as answer:
        return answer.read().decode().strip()


def main():
    # Python 3.12 and later warn of any fork beside a running thread. These children use nothing
    # that a thread of the parent could have held locked at that moment.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    with ph.StatusServer(ph.Standby(None), role="meta") as server:
        workers = [fork() for _ in range(2)]
        for _, port, _ in workers:
            print("worker:", get(port, "/health"))
        for pid, _, stop in workers:
            os.write(stop, b"x")
            os.close(stop)
            print("exit status", os.waitpid(pid, 0)[1])
        print("parent:", get(server.port, "/health"))


if __name__ == "__main__":
    main()
