"""A server process that computes on its own threads and shows each step on its pages."""

import json
import threading
import urllib.request

import pegasus_http as ph

NODES = ("127.0.0.1:34801", "127.0.0.1:34802", "127.0.0.1:34803")


def cluster(primary):
    """What this process sees: one table whose only partition is led by node number `primary`."""
    partition = ph.Partition(
        ballot=primary + 1,
        max_replica_count=3,
        primary=NODES[primary],
        secondaries=tuple(node for node in NODES if node != NODES[primary]),
    )
    return ph.Cluster(
        apps=(ph.App(1, "temp", partitions=(partition,)),),
        nodes=tuple(ph.Node(address) for address in NODES),
        meta_servers="127.0.0.1:34601",
        primary_meta_server="127.0.0.1:34601",
    )


def work(server):
    """The host's own thread: `publish` never blocks it, and works from any thread."""
    for step in range(1, 3):
        server.publish(cluster(step))


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def main():
    server = ph.start(cluster(0), role="meta", version="1.2.3")
    try:
        print(get(server.url + "/version"))
        worker = threading.Thread(target=work, args=(server,))
        worker.start()
        worker.join()
        page = get(server.url + "/meta/app?name=temp&detail")
        print(page["replicas"]["0"]["primary"], page["healthy"])
        print("requests:", server.counters.requests)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
