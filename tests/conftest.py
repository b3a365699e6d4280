"""Servers that several test files ask: every test that takes one runs in both serving styles."""

import pytest

import pegasus_http as ph
from support import PRIMARY, STYLES, cluster, served


class Served:
    """A `StatusServer` and the port on which it is serving in this style."""

    def __init__(self, server, port, style):
        self.server, self.port, self.style = server, port, style


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def meta(style):
    with served(style, cluster(tables=9), version="1.12.0") as (server, port):
        yield Served(server, port, style)


@pytest.fixture(scope="module")
def standby(style):
    with served(style, ph.Standby(PRIMARY)) as (server, port):
        yield Served(server, port, style)
