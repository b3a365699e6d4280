"""A host that is its own meta server: standby, then elected primary, then standby again."""

import http.client

import pegasus_http as ph

SELF, OTHER = "127.0.0.1:34601", "127.0.0.1:34602"


class MetaServer:
    """Its election tells it when it leads; both calls may come from any thread."""

    def __init__(self):
        self.pages = ph.StatusServer(ph.Standby(None), role="meta")

    def lead(self):
        self.pages.publish(ph.Cluster(
            meta_servers=SELF + "," + OTHER,
            primary_meta_server=SELF,
        ))

    def follow(self, primary):
        self.pages.publish(ph.Standby(primary))


def show(port, when):
    """`/meta/cluster` as a client gets it, and `/health?primary` as a load balancer does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/meta/cluster")
    page = connection.getresponse()
    page.read()
    connection.request("GET", "/health?primary")
    health = connection.getresponse()
    health.read()
    connection.close()
    print("%s: %d %s, health %d" % (when, page.status, page.getheader("Location"), health.status))


def main():
    meta = MetaServer()
    with meta.pages as server:
        show(server.port, "election")
        meta.follow(OTHER)
        show(server.port, "standby")
        meta.lead()
        show(server.port, "primary")
        meta.follow(OTHER)
        show(server.port, "standby again")


if __name__ == "__main__":
    main()
