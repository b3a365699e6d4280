"""Other people's servers, each as its users write it, answering the same JSON bytes to every path.

They get the body ready-made, which spares them json.dumps and so is kind to them.
"""

import importlib.util
import os
import socket
import sys
from typing import Callable, NamedTuple

NAME = os.path.splitext(os.path.basename(__file__))[0]


class Peer(NamedTuple):
    serve: Callable
    needs: tuple  # modules


def port():
    """A free port, for servers that do not tell which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    print("port", number, flush=True)
    return number


def bottle(body):
    import bottle as framework

    app = framework.Bottle()

    @app.route("/<path:path>")
    def page(path):
        framework.response.content_type = "application/json"
        return body

    app.run(host="127.0.0.1", port=port(), quiet=True)


def flask(body):
    import waitress
    from flask import Flask, Response

    app = Flask("peer")

    @app.route("/<path:path>")
    def page(path):
        return Response(body, mimetype="application/json")

    waitress.serve(app, host="127.0.0.1", port=port())


def cheroot(body):
    from cheroot import wsgi

    def app(environ, start_response):
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    wsgi.Server(("127.0.0.1", port()), app).start()


def aiohttp(body):
    from aiohttp import web

    async def page(request):
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    web.run_app(app, host="127.0.0.1", port=port(), print=None, access_log=None)


def fastapi(body):
    import uvicorn
    from fastapi import FastAPI, Response

    app = FastAPI()

    @app.get("/{path:path}")
    async def page(path: str):
        return Response(body, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning", access_log=False)


def asgi(body):
    """The smallest ASGI application there is."""
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def uvicorn(body):
    import uvicorn as server

    server.run(asgi(body), host="127.0.0.1", port=port(), log_level="warning", access_log=False,
               loop="uvloop", http="httptools", lifespan="off")


BODY = "PEGASUS_BENCH_BODY"  # a file: granian loads its application by name, in its own process


def application():
    with open(os.environ[BODY], "rb") as file:
        return asgi(file.read())


def granian(body):
    from granian import Granian
    from granian.constants import Interfaces

    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    Granian(NAME + ":application", factory=True, address="127.0.0.1", port=port(),
            interface=Interfaces.ASGINL, log_enabled=False).serve()


UVICORN = ("uvicorn", "uvloop", "httptools")
PEERS = {
    "bottle": Peer(bottle, ("bottle",)),
    "flask+waitress": Peer(flask, ("flask", "waitress")),
    "cheroot": Peer(cheroot, ("cheroot",)),
    "aiohttp": Peer(aiohttp, ("aiohttp",)),
    "fastapi+uvicorn": Peer(fastapi, ("fastapi",) + UVICORN),
    "asgi+uvicorn": Peer(uvicorn, UVICORN),
    "granian": Peer(granian, ("granian",)),
}


def missing(name):
    """The modules that this interpreter lacks for a peer."""
    wanted = PEERS[name].needs if name in PEERS else ()
    return [module for module in wanted if importlib.util.find_spec(module) is None]


if __name__ == "__main__":
    for known in PEERS:
        lacks = ", ".join(missing(known))
        sys.stdout.write("%s: %s\n" % (known, "missing " + lacks if lacks else "installed"))
