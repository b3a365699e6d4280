"""A WSGI application that answers with `respond()`, under any WSGI server (here wsgiref)."""

import http
import threading
import urllib.parse
import urllib.request
import wsgiref.simple_server

import pegasus_http as ph

META = "127.0.0.1:34601"
STATE = ph.Cluster(
    apps=(ph.App(1, "a b", partition_count=8),),
    meta_servers=META,
    primary_meta_server=META,
)


def application(environ, start_response):
    # WSGI hands over the path decoded, as latin-1: it has to become a request target again.
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    target = urllib.parse.quote(path.encode("latin-1")) or "/"
    if environ.get("QUERY_STRING"):
        target += "?" + environ["QUERY_STRING"]
    headers = {
        name[5:].replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    answer = ph.respond(STATE, environ["REQUEST_METHOD"], target, headers, role="meta")
    phrase = http.HTTPStatus(answer.status).phrase
    start_response("%d %s" % (answer.status, phrase), list(answer.headers))
    return [answer.body]


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *arguments):
        """wsgiref prints each request to stderr; this host does not want that."""


def get(server, target):
    url = "http://127.0.0.1:%d%s" % (server.server_port, target)
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode().strip()


def main():
    make_server = wsgiref.simple_server.make_server
    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        print(get(server, "/version"))
        print(get(server, "/meta/app?name=a%20b"))
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
