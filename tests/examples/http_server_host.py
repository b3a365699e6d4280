"""A host that already runs http.server.ThreadingHTTPServer mounts the pages as a handler class."""

import http.server
import threading
import urllib.request

import pegasus_http as ph

META = "127.0.0.1:34601"
CLUSTER = ph.Cluster(
    nodes=(ph.Node("127.0.0.1:34801"),),
    meta_servers=META,
    primary_meta_server=META,
)


class Handler(ph.StatusHandler):
    """The status server is never started: it holds the state and the settings."""

    status_server = ph.StatusServer(CLUSTER, role="meta")


def get(server, target):
    url = "http://127.0.0.1:%d%s" % (server.server_address[1], target)
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode().strip()


def main():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        print(get(server, "/meta/nodes"))
        Handler.status_server.publish(CLUSTER._replace(nodes=()))
        print(get(server, "/meta/nodes"))
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
