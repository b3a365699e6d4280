"""A Flask application that has pages of its own and adds those of Pegasus with `respond()`."""

import threading
import urllib.request

import flask
import werkzeug.serving

import pegasus_http as ph

META = "127.0.0.1:34601"
STATE = ph.Cluster(
    apps=(ph.App(1, "temp", partition_count=8),),
    meta_servers=META,
    primary_meta_server=META,
)
app = flask.Flask(__name__)


@app.route("/hello")
def hello():
    return "a page of the host\n"


def status():
    request = flask.request
    target = request.environ["PATH_INFO"] + "?" + request.query_string.decode("latin-1")
    answer = ph.respond(STATE, request.method, target, dict(request.headers), role="meta")
    return flask.Response(answer.body, answer.status, list(answer.headers))


for path in ph.ROUTES:
    app.add_url_rule(path, "status", status, methods=["GET", "HEAD", "OPTIONS"],
                     provide_automatic_options=False)


def get(server, target):
    url = "http://127.0.0.1:%d%s" % (server.server_port, target)
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode().strip()


class Quiet(werkzeug.serving.WSGIRequestHandler):
    def log(self, *arguments):
        """Werkzeug prints each request to stderr; this host does not want that."""


def main():
    server = werkzeug.serving.make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    print(get(server, "/hello"))
    print(get(server, "/meta/apps"))
    server.shutdown()
    thread.join()
    server.server_close()


if __name__ == "__main__":
    main()
