"""Processes under multiprocessing: each worker is a replica server with a page on its own port."""

import multiprocessing
import urllib.request

import pegasus_http as ph


def worker(pipe):
    """Runs in a process of its own, and works with "spawn", "fork" and "forkserver" alike."""
    with ph.StatusServer(role="replica", version="1.2.3") as server:
        pipe.send(server.port)
        pipe.recv()


def get(port, target):
    with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, target), timeout=10) as answer:
        return answer.read().decode().strip()


def main():
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs,))
        process.start()
        workers.append((process, ours))
    for process, pipe in workers:
        print(get(pipe.recv(), "/health"))
        pipe.send("stop")
        process.join(20)
        print("exit code", process.exitcode)


if __name__ == "__main__":
    main()
