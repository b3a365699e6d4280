"""The redirect of a standby: where to, in which letters, and never to itself."""

import re

import pytest

import pegasus_http as ph
from support import PRIMARY, STYLES, Client, check, get, head, served

# RFC 3986, 3.3 and 3.4: what a path and a query may hold
LOCATION = r"http://10\.0\.0\.9:34601/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"


@pytest.mark.parametrize("target, location", [
    ("/meta/apps", "/meta/apps"),
    ("/meta/apps?", "/meta/apps?"),
    ("//meta//apps/", "//meta//apps/"),
    ("/%6deta/apps", "/%6deta/apps"),
    ("/meta/nodes?detail=", "/meta/nodes?detail="),
    ("/meta/nodes?detail&pretty", "/meta/nodes?detail&pretty"),
    ("/meta/app?pretty&name=a&detail", "/meta/app?pretty&name=a&detail"),
    ("/meta/app?name=a%20b", "/meta/app?name=a%20b"),
    ("/meta/app?name=a+b", "/meta/app?name=a+b"),
    ("/meta/app?name=a%2bb", "/meta/app?name=a%2bb"),
    ("/meta/app?name=%c3%A9", "/meta/app?name=%c3%A9"),
    ("/meta/app?name=a?b/c:d@e", "/meta/app?name=a?b/c:d@e"),
    ("/meta/app?name=-._~!$'()*,;=", "/meta/app?name=-._~!$'()*,;="),
    ("/meta/app_envs?name=a", "/meta/app_envs?name=a"),
    ("/meta/cluster?_=1&x=%3C", "/meta/cluster?_=1&x=%3C"),
    ('/meta/app?name="a"', "/meta/app?name=%22a%22"),
    ("/meta/app?name=<a>", "/meta/app?name=%3Ca%3E"),
    ("/meta/app?name=a\\b", "/meta/app?name=a%5Cb"),
    ("/meta/app?name=a^b", "/meta/app?name=a%5Eb"),
    ("/meta/app?name=a`b", "/meta/app?name=a%60b"),
    ("/meta/app?name={a|b}", "/meta/app?name=%7Ba%7Cb%7D"),
    ("/meta/app?name=a[b]", "/meta/app?name=a%5Bb%5D"),
    ("/meta/cluster?<", "/meta/cluster?%3C"),
    ('/meta/cluster?_=%22"', "/meta/cluster?_=%22%22"),
    ("/meta/app?name=%0d%0aX:%20y", "/meta/app?name=%0d%0aX:%20y"),
    ("/meta/app?name=@evil.example", "/meta/app?name=@evil.example"),
    ("http://evil.example/meta/apps?detail", "/meta/apps?detail"),
    ("http://evil.example:80//meta/apps", "//meta/apps"),
    ("HTTPS://[::1]/meta/app?name=a%20b", "/meta/app?name=a%20b"),
])
def test_location(standby, target, location):
    answer = check(get(standby.port, target))
    assert answer.status == 307 and PRIMARY in answer.json["hint_message"]
    assert answer.headers["location"] == "http://" + PRIMARY + location
    assert re.fullmatch(LOCATION, answer.headers["location"])


def test_every_character_that_a_target_may_bring(standby):
    with Client(standby.port) as client:
        for code in set(range(0x21, 0x7f)) - set(b"#%&"):
            client.send(head("GET /meta/app?name=a%sb HTTP/1.1" % chr(code), "Host: test"))
            answer = check(client.answer())
            assert answer.status == 307, chr(code)
            assert re.fullmatch(LOCATION, answer.headers["location"]), chr(code)


@pytest.mark.parametrize("target", [
    "/meta/app", "/meta/app?name=", "/meta/app?name=a&name=b", "/meta/app?name=%zz",
    "/meta/apps?detail=x", "/meta/apps?x=1", "/meta/cluster?_=%zz", "/meta/app_envs",
])
def test_parameters_are_checked_before(standby, target):
    answer = check(get(standby.port, target))
    assert (answer.status, answer.json["error"]) == (400, "ERR_INVALID_PARAMETERS")
    assert "location" not in answer.headers


@pytest.mark.parametrize("method, target, status", [
    ("GET", "/", 200), ("GET", "/version", 200), ("GET", "/startTime", 200),
    ("GET", "/health", 200), ("GET", "/health?primary", 503), ("GET", "/nosuch", 404),
    ("GET", "/favicon.ico", 204), ("GET", "/meta", 404), ("GET", "/meta/nosuch", 404),
    ("OPTIONS", "/meta/apps", 204), ("POST", "/meta/apps", 405), ("HEAD", "/meta/apps", 307),
])
def test_only_the_meta_pages_redirect(standby, method, target, status):
    head_only = method == "HEAD"
    answer = check(get(standby.port, target, method=method), head_only)
    assert answer.status == status
    assert ("location" in answer.headers) == (status == 307)


# Never to itself: the authority that a client used is one of the server's own names

ITSELF, OTHER = 503, 307


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("primary, host, status", [
    ("example:80", "example", ITSELF),
    ("example:80", "example:", ITSELF),
    ("example:80", "example:80", ITSELF),
    ("example:80", "example:0080", ITSELF),
    ("example:80", "example:00000000000080", ITSELF),
    ("example:00080", "example", ITSELF),
    ("example:00080", "example:80", ITSELF),
    ("example:034", "example:34", ITSELF),
    ("Example:80", "eXAMPLE:", ITSELF),
    ("example:34601", "EXAMPLE:034601", ITSELF),
    ("[::1]:80", "[::1]", ITSELF),
    ("[::1]:80", "[::1]:", ITSELF),
    ("[::1]:80", "[0:0:0:0:0:0:0:1]", ITSELF),
    ("[fe80::a]:34601", "[FE80::A]:34601", ITSELF),
    ("[FE80:0::A]:34601", "[fe80::a]:034601", ITSELF),
    ("example:80", "example:8080", OTHER),
    ("example:80", "example:808", OTHER),
    ("example:80", "example:800", OTHER),
    ("example:34601", "example", OTHER),
    ("example:34601", "example:", OTHER),
    ("example:34601", "example:80", OTHER),
    ("example:80", "example.org", OTHER),
    ("example:80", "", OTHER),
    ("[::1]:80", "[::2]", OTHER),
    ("[::1]:34601", "[::1]", OTHER),
])
def test_never_to_itself(style, primary, host, status):
    with served(style, ph.Standby(primary)) as (_, port), Client(port) as client:
        requests = [head("GET /meta/apps HTTP/1.1", "Host: " + host)]
        if host:  # the authority of the target counts, not the field
            requests.append(head("GET http://%s/meta/apps HTTP/1.1" % host, "Host: other"))
            requests.append(head("GET HTTP://%s/meta/apps HTTP/1.1" % host, "Host: " + primary))
        for request in requests:
            client.send(request)
            answer = check(client.answer())
            assert answer.status == status, request
            assert ("location" in answer.headers) == (status == OTHER)


@pytest.mark.parametrize("style", STYLES)
def test_never_to_the_address_that_it_listens_on(style):
    with served(style, ph.Standby(None)) as (server, port):
        answer = check(get(port, "/meta/apps"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        if style == "loop":  # mounted, a `StatusServer` listens on nothing
            server.publish(ph.Standby("127.0.0.1:%d" % port))
            assert check(get(port, "/meta/apps")).status == ITSELF
        server.publish(ph.Standby("127.0.0.1:1"))
        assert check(get(port, "/meta/apps")).status == OTHER


@pytest.mark.parametrize("address", [
    "0.0.0.0:34601", "[::]:34601", "[0:0:0:0:0:0:0:0]:34601", "224.0.0.1:34601",
    "255.255.255.255:34601", "[ff02::1]:34601", "10.0.0.1:0", "10.0.0.1", "a:b:34601",
])
def test_a_standby_of_nobody_is_refused(main, address):
    code, _, errors = main("--role", "meta", "--standby-of", address, "--check")
    assert code == 2 and address in errors.splitlines()[-1]
