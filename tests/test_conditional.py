"""Entity tags, If-Match and If-None-Match, and what caches are told."""

import gzip

import pytest

import pegasus_http as ph
from support import STYLES, Client, check, cluster, get, head, served

HOST = "Host: test"
TAGGED = (
    "/", "/version", "/startTime", "/recentStartTime", "/meta/app?name=table1",
    "/meta/app?name=table1&detail", "/meta/app_envs?name=table1", "/meta/apps",
    "/meta/apps?detail", "/meta/nodes", "/meta/cluster", "/meta/cluster?pretty",
)
NOT_STORED = (
    ("/health", 200), ("/nosuch", 404), ("/meta/app", 400), ("/meta/apps?x=1", 400),
    ("/meta/app?name=nosuch", 404),
)


def ask(meta, target, *fields, method="GET"):
    answer = get(meta.port, target, *fields, method=method)
    return check(answer, head_only=method == "HEAD")


@pytest.mark.parametrize("target", TAGGED)
def test_a_page_has_a_strong_tag_and_is_asked_for_again(meta, target):
    answer = ask(meta, target)
    tag = answer.headers["etag"]
    assert answer.status == 200 and answer.headers["cache-control"] == "no-cache"
    assert tag[0] == tag[-1] == '"' and len(tag) > 10
    assert not set(tag[1:-1]) & set('" ,*\\'), tag
    assert ask(meta, target).headers["etag"] == tag


def test_each_representation_has_its_own_tag(meta):
    targets = [target for target in TAGGED if target != "/recentStartTime"]
    tags = [ask(meta, target).headers["etag"] for target in targets]
    packed = get(meta.port, "/meta/apps?detail", "Accept-Encoding: gzip")
    assert len({*tags, packed.headers["etag"]}) == len(tags) + 1


@pytest.mark.parametrize("target, status", NOT_STORED)
def test_what_is_not_to_be_stored(meta, target, status):
    answer = ask(meta, target)
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store" and "etag" not in answer.headers


@pytest.mark.parametrize("method, target", [
    ("POST", "/version"), ("BREW", "/version"), ("CONNECT", "test:80"), ("GET", "*"),
])
def test_a_refusal_is_not_to_be_stored(meta, method, target):
    answer = ask(meta, target, method=method)
    assert answer.status >= 400 and "etag" not in answer.headers


def test_a_redirect_is_not_to_be_stored(standby):
    answer = ask(standby, "/meta/apps")
    assert answer.status == 307 and "etag" not in answer.headers


# The conditions: {} is the page's own tag

WEAK, STRONG = "If-None-Match", "If-Match"
CONDITIONS = [
    # field value, status with If-None-Match, status with If-Match
    ("{}", 304, 200),
    ("W/{}", 304, 412),
    ("*", 304, 200),
    (" \t* ", 304, 200),
    ('"other"', 200, 412),
    ('W/"other"', 200, 412),
    ('""', 200, 412),
    ('"other", {}', 304, 200),
    ('"other",{},W/"third"', 304, 200),
    ('{}, W/"other"', 304, 200),
    ('"other", W/{}', 304, 412),
    (", ,{},", 304, 200),
    (',\t"other" , ,W/{}', 304, 412),
    ('"x,y",{}', 304, 200),
    ('"a,*,b"', 200, 412),
    ('"a, *"', 200, 412),
    ('"*"', 200, 412),
    ('W/"*"', 200, 412),
    ('",", {}', 304, 200),
    ('"\\", {}', 304, 200),  # RFC 9110, 8.8.3: a backslash escapes nothing
    ('"\xe9", {}', 304, 200),
    ('"a{bare}b"', 200, 412),
    ('"a,{},b"', 200, 412),
    ("", 200, 412),
    (",", 200, 412),
    # malformed: nothing is known of what is meant, so the condition does not hold
    ("{bare}", 200, 412),
    ("w/{}", 200, 412),
    ("W/ {}", 200, 412),
    ("W/", 200, 412),
    ("W/*", 200, 412),
    ('"', 200, 412),
    ('"{bare}', 200, 412),
    ('{bare}"', 200, 412),
    ('{} "other"', 200, 412),
    ("{}{}", 200, 412),
    ("{}x", 200, 412),
    ("{}; {}", 200, 412),
    ("*, {}", 200, 412),
    ("{}, *", 200, 412),
    ("**", 200, 412),
    ("bare, {}", 200, 412),
]


def condition(field, value, tag):
    return "%s: %s" % (field, value.replace("{bare}", tag[1:-1]).replace("{}", tag))


@pytest.mark.parametrize("target", ["/version", "/meta/apps"])
@pytest.mark.parametrize("value, weak, strong", CONDITIONS)
def test_condition(meta, target, value, weak, strong):
    page = ask(meta, target)
    for field, status in ((WEAK, weak), (STRONG, strong)):
        for method in ("GET", "HEAD"):
            answer = ask(meta, target, condition(field, value, page.headers["etag"]),
                         method=method)
            assert answer.status == status, (method, field, answer)
            if status == 200:
                assert answer.body == (page.body if method == "GET" else b"")
            if status != 412:
                assert answer.headers["etag"] == page.headers["etag"]
                assert answer.headers["cache-control"] == "no-cache"
            elif method == "GET":
                assert answer.json["error"] == "ERR_INVALID_PARAMETERS"


@pytest.mark.parametrize("target", TAGGED)
def test_every_page_knows_conditions(meta, target):
    tag = ask(meta, target).headers["etag"]
    for fields, status in [
        ([WEAK + ": " + tag], 304), ([WEAK + ": *"], 304), ([WEAK + ': "x"'], 200),
        ([STRONG + ": " + tag], 200), ([STRONG + ": *"], 200), ([STRONG + ': "x"'], 412),
        ([STRONG + ": W/" + tag], 412),
    ]:
        assert ask(meta, target, *fields).status == status, fields


@pytest.mark.parametrize("fields, status", [
    (["If-Match: {}", "If-None-Match: {}"], 304),
    (["If-None-Match: {}", "If-Match: {}"], 304),
    (["If-Match: *", "If-None-Match: *"], 304),
    (['If-Match: "x"', "If-None-Match: {}"], 412),
    (["If-None-Match: {}", 'If-Match: "x"'], 412),
    (["If-Match: W/{}", "If-None-Match: W/{}"], 412),
    (['If-Match: "x"', 'If-None-Match: "x"'], 412),
    (["If-Match: {}", 'If-None-Match: "x"'], 200),
    (['If-None-Match: "x"', "If-None-Match: {}"], 304),
    (["If-None-Match: ", "If-None-Match: {}"], 304),
    (['If-Match: "x"', "IF-MATCH: {}"], 200),
    (["If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"], 200),
    (["If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"], 200),
    (["Range: bytes=0-1"], 200),
    (["Range: bytes=0-1", "If-Range: {}"], 200),
])
def test_the_order_of_conditions(meta, fields, status):
    """RFC 9110, 13.2.2. Of dates and ranges nothing is known: our pages have neither."""
    tag = ask(meta, "/version").headers["etag"]
    assert ask(meta, "/version", *(each.replace("{}", tag) for each in fields)).status == status


@pytest.mark.parametrize("fields", [['If-Match: "x"'], ["If-None-Match: *"], ["If-Match: *"]])
@pytest.mark.parametrize("method, target, status", [
    ("GET", "/health", 200), ("HEAD", "/health", 200), ("GET", "/nosuch", 404),
    ("GET", "/meta/app?name=nosuch", 404), ("GET", "/meta/apps?x", 400),
    ("POST", "/version", 405), ("BREW", "/version", 501), ("OPTIONS", "/version", 204),
    ("OPTIONS", "*", 204),
])
def test_conditions_change_no_other_answer(meta, method, target, status, fields):
    assert ask(meta, target, *fields, method=method).status == status


@pytest.mark.parametrize("fields", [['If-Match: "x"'], ["If-None-Match: *"]])
def test_conditions_do_not_change_a_redirect(standby, fields):
    assert ask(standby, "/meta/apps", *fields).status == 307


def test_a_packed_page_has_conditions_of_its_own(meta):
    def packed(*fields):
        return get(meta.port, "/meta/apps?detail", "Accept-Encoding: gzip", *fields)

    plain, other = ask(meta, "/meta/apps?detail"), packed()
    assert gzip.decompress(other.body) == plain.body
    own, foreign = other.headers["etag"], plain.headers["etag"]
    for answer, status in [
        (packed("If-None-Match: " + own), 304), (packed("If-None-Match: " + foreign), 200),
        (packed("If-Match: " + own), 200), (packed("If-Match: " + foreign), 412),
    ]:
        assert answer.status == status


def test_a_304_has_the_fields_that_its_200_would_have(meta):
    for accepted in ("gzip", "identity"):
        coding = "Accept-Encoding: " + accepted
        page = get(meta.port, "/meta/apps?detail", coding)
        answer = ask(meta, "/meta/apps?detail", coding, "If-None-Match: *")
        wanted = {"etag", "cache-control", "vary"}
        assert answer.status == 304
        assert {name: answer.headers.get(name) for name in wanted} == {
            name: page.headers[name] for name in wanted}
        assert "content-encoding" not in answer.headers and answer.body == b""


def test_a_412_is_followed_by_the_next_answer(meta):
    bad = head("GET /version HTTP/1.1", HOST, 'If-Match: "x"')
    with Client(meta.port) as client:
        client.send((bad + head("GET /health HTTP/1.1", HOST)) * 2)
        for _ in range(2):
            assert check(client.answer()).status == 412
            assert check(client.answer()).json["status"] == "ok"


@pytest.mark.parametrize("style", STYLES)
def test_a_tag_is_of_the_state(style):
    with served(style, cluster()) as (server, port):
        target = "/meta/app?name=table1&detail"
        tag = get(port, target).headers["etag"]
        server.publish(cluster(changed=1))
        assert get(port, target, "If-None-Match: " + tag).status == 200
        assert get(port, target, "If-Match: " + tag).status == 412
        server.publish(cluster())
        assert get(port, target, "If-None-Match: " + tag).status == 304


# The picture that browsers ask for

STATES = {"meta": cluster(), "standby": ph.Standby("10.0.0.9:34601"), "nothing": None}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("role, state", [
    ("meta", "meta"), ("meta", "standby"), ("meta", "nothing"), ("replica", "nothing"),
])
def test_favicon(style, role, state):
    with served(style, STATES[state], role=role) as (_, port):
        for target in ("/favicon.ico", "/favicon.ico?v=2", "//favicon.ico"):
            for method in ("GET", "HEAD"):
                answer = check(get(port, target, method=method))
                assert (answer.status, answer.body) == (204, b"")
                assert answer.headers["cache-control"] == "max-age=86400"
                assert "location" not in answer.headers
        options = check(get(port, "/favicon.ico", method="OPTIONS"))
        assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        assert check(get(port, "/favicon.ico", method="POST")).status == 405
        assert "/favicon.ico" not in get(port, "/").json


def test_favicon_is_not_in_the_table_of_routes(main):
    _, output, _ = main("--routes")
    assert "/version" in output and "favicon" not in output
