"""`respond`: the whole application as a pure function, as a host calls it."""

import gzip
import json

import pytest

import pegasus_http as ph
from support import PRIMARY, cluster, head, talk, without_dates

STATE = cluster(tables=9)
STATES = {
    "cluster": STATE, "standby": ph.Standby(PRIMARY), "election": ph.Standby(None),
    "nothing": None, "error": ph.PageError(502, "ERR_NETWORK_FAILURE", "nobody is there"),
}
LOCAL = ("/", "/version", "/startTime", "/recentStartTime", "/health")
META = ("/meta/app?name=table1", "/meta/app_envs?name=table1", "/meta/apps", "/meta/nodes",
        "/meta/cluster")


def ask(target, *headers, method="GET", state=STATE, **settings):
    """A `Response`, after what holds for all of them."""
    answer = ph.respond(state, method, target, [line.split(": ", 1) for line in headers],
                        **settings)
    fields = dict(answer.headers)
    assert isinstance(answer, ph.Response) and len(fields) == len(answer.headers)
    assert not {"Date", "Server", "Connection"} & set(fields)
    if answer.status in (204, 304):
        assert "Content-Length" not in fields and answer.body == b""
    elif method == "HEAD":
        assert answer.body == b"" and int(fields["Content-Length"]) > 0
    else:
        assert int(fields["Content-Length"]) == len(answer.body) > 0
    return answer


def field(answer, name):
    return dict(answer.headers).get(name)


def error(answer):
    page = json.loads(answer.body.decode())
    assert list(page) == ["error", "hint_message"]
    assert field(answer, "Cache-Control") == "no-store"
    return answer.status, page["error"]


# What it is given

@pytest.mark.parametrize("target", ["/version", "/meta/apps", "/health", "/nosuch", "*", "/%zz"])
@pytest.mark.parametrize("state", [
    {}, [], (), "", "10.0.0.1:34601", 0, False, object(), ValueError("x"), ph.Cluster, (STATE,),
], ids=lambda state: repr(state)[:20])
def test_a_state_that_is_none(state, target):
    for method in ("GET", "OPTIONS"):
        with pytest.raises(TypeError, match="Cluster"):
            ph.respond(state, method, target)


@pytest.mark.parametrize("name", ["version", "git_commit"])
@pytest.mark.parametrize("value", [5, b"1.0", "\ud800"])
def test_a_version_that_is_no_text(name, value):
    with pytest.raises(ValueError, match="^%s: expected " % name):
        ph.respond(STATE, "GET", "/version", **{name: value})


@pytest.mark.parametrize("parts", [
    ("503", "ERR_BUSY", "later"), (99, "ERR_BUSY", "later"), (600, "ERR_BUSY", "later"),
    (503, None, "later"), (503, "ERR_BUSY", {1}), (503, "ERR_BUSY", "later", [("X", 1)]),
    (503, "ERR_BUSY", "later", [("X", "a\r\nSet-Cookie: b")]),
    (503, "ERR_BUSY", "later", [("X\n", "a")]),
])
def test_a_page_error_that_cannot_be_sent(parts):
    with pytest.raises(ValueError, match="expected"):
        ph.PageError(*parts)


@pytest.mark.parametrize("headers", [
    {"Accept-Encoding": "gzip"}, {"accept-encoding": "gzip"}, {"ACCEPT-ENCODING": "GZIP"},
    [("Accept-Encoding", "gzip")], (("X", "y"), ("accept-Encoding", "br, gzip")),
    [("Accept-Encoding", "br"), ("accept-encoding", "gzip")],
    [("Accept-Encoding", "gzip"), ("accept-encoding", "br")],
    [["Accept-Encoding", "gzip"]],
])
def test_headers_are_a_mapping_or_pairs_in_any_case(headers):
    plain = ask("/meta/apps?detail")
    given = iter(headers) if isinstance(headers, tuple) else headers
    packed = ph.respond(STATE, "GET", "/meta/apps?detail", given)
    assert field(packed, "Content-Encoding") == "gzip"
    assert gzip.decompress(packed.body) == plain.body


def test_headers_may_be_left_out():
    assert ph.respond(STATE, "GET", "/version") == ph.respond(STATE, "GET", "/version", {})


def test_field_lines_of_one_name_are_one_list():
    tag = field(ask("/version"), "ETag")
    for fields, status in [
        (['If-None-Match: "x"', "If-None-Match: " + tag], 304),
        (["If-None-Match: " + tag, 'if-none-match: "x"'], 304),
        (['If-Match: "x"', "If-Match: " + tag], 200), (["If-Match: " + tag, 'If-Match: "x"'], 200),
    ]:
        assert ask("/version", *fields).status == status, fields


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", [
    "", " ", "x", "?", "#", "*", "/#", "//", "/ ", "/\r\nX: y", "/\0", "/%", "/%zz", "/%ff",
    "/\xe9", "/\u4e2d", "/\ud800", "http:", "http://", "http://@/", "http://o:x/",
    "/meta/app?name=\ud800", "/meta/app?name=\xe9", "/meta/app?name=%ff", "/meta/app?" + "&" * 9999,
    "/" * 9999, "/meta/app?name=" + "a" * 99999, "/meta/apps?" + "=" * 999,
])
def test_a_bad_request_is_answered_and_raises_nothing(state, target):
    for method in ("GET", "HEAD", "POST", "OPTIONS", "", "G T", "\xe9"):
        answer = ask(target, "Host: x", method=method, state=STATES[state])
        for name, value in answer.headers:
            assert value.isprintable() and value.isascii(), (name, value)
        if answer.body:
            json.loads(answer.body.decode("utf-8"))


@pytest.mark.parametrize("name, value", [
    (name, value) for name in ("Host", "Accept-Encoding", "If-Match", "If-None-Match", "Accept")
    for value in ("", ",", '"', "\xe9", "\u4e2d", "\0", ";q=", "*" * 9999, "[", "a" * 99999)
])
def test_odd_fields_raise_nothing(name, value):
    for state in STATES.values():
        for target in ("/version", "/meta/apps"):
            assert isinstance(ph.respond(state, "GET", target, {name: value}), ph.Response)


# Methods

@pytest.mark.parametrize("target", [*LOCAL, *META, "/nosuch", "/meta/app", "/meta/apps?x"])
def test_head_is_get_without_the_body(target):
    for fields in ([], ["Accept-Encoding: gzip"], ["If-Match: *"], ['If-Match: "x"']):
        full, bare = ask(target, *fields), ask(target, *fields, method="HEAD")
        assert (bare.status, bare.headers) == (full.status, full.headers)


@pytest.mark.parametrize("target", [*LOCAL, *META, "*", "http://o", "/meta/app", "/favicon.ico"])
def test_options(target):
    for state in STATES.values():
        answer = ask(target, method="OPTIONS", state=state)
        assert (answer.status, field(answer, "Allow")) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("method, target, expected", [
    ("POST", "/version", (405, "ERR_HANDLER_NOT_FOUND")),
    ("TRACE", "/meta/app", (405, "ERR_HANDLER_NOT_FOUND")),
    ("CONNECT", "o:80", (405, "ERR_HANDLER_NOT_FOUND")),
    ("CONNECT", "o", (400, "ERR_INVALID_DATA")),
    ("GET", "*", (400, "ERR_INVALID_DATA")),
    ("POST", "/nosuch", (404, "ERR_HANDLER_NOT_FOUND")),
    ("OPTIONS", "/nosuch", (404, "ERR_HANDLER_NOT_FOUND")),
    ("BREW", "/version", (501, "ERR_INVALID_DATA")),
    ("get", "/version", (501, "ERR_INVALID_DATA")),
    ("", "/version", (501, "ERR_INVALID_DATA")),
])
def test_other_methods(method, target, expected):
    for state in STATES.values():
        answer = ask(target, method=method, state=state)
        assert error(answer) == expected
        assert (field(answer, "Allow") == "GET, HEAD, OPTIONS") == (answer.status == 405)


# Conditions

@pytest.mark.parametrize("target", [each for each in (*LOCAL, *META) if each != "/health"])
def test_304_and_412(target):
    page = ask(target)
    tag = field(page, "ETag")
    for method in ("GET", "HEAD"):
        same = ask(target, "If-None-Match: " + tag, method=method)
        kept = [pair for pair in page.headers if pair[0] not in ("Content-Type", "Content-Length")]
        assert (same.status, list(same.headers)) == (304, kept)
        other = ask(target, "If-Match: W/" + tag, method=method)
        assert other.status == 412 and field(other, "ETag") is None
    assert error(ask(target, 'If-Match: "x"', "If-None-Match: " + tag)) == (
        412, "ERR_INVALID_PARAMETERS")


def test_a_tag_is_of_what_the_page_shows():
    assert field(ask("/meta/apps"), "ETag") == field(ask("/meta/apps", state=cluster(9)), "ETag")
    assert field(ask("/meta/apps"), "ETag") != field(ask("/meta/apps", state=cluster(8)), "ETag")


# Absolute targets

@pytest.mark.parametrize("target", [*LOCAL, *META, "/nosuch", "/meta/app?name=%zz"])
@pytest.mark.parametrize("origin", [
    "http://o", "http://o:80", "HTTP://O", "https://o", "http://[::1]:1", "http://[fe80::1%eth0]",
])
def test_absolute_targets(target, origin):
    assert ask(origin + target) == ask(target)


def test_an_absolute_target_without_a_path():
    assert ask("http://o") == ask("/") and ask("http://o?pretty") == ask("/?pretty")


@pytest.mark.parametrize("origin", [
    "http://", "http://me@o", "http://o:80:81", "http://o%zz", "http://[::1", "http://o\\", "ftp://o",
    "http:", "http://[:::]", "http:///o",
])
def test_authorities_that_are_none(origin):
    assert error(ask(origin + "/version")) == (400, "ERR_INVALID_DATA")


def test_the_authority_of_the_target_counts():
    standby = ph.Standby("example:80")
    for target, host, status in [
        ("http://Example:/meta/apps", "other", 503), ("http://other/meta/apps", "example", 307),
        ("/meta/apps", "EXAMPLE:080", 503), ("/meta/apps", "other", 307),
    ]:
        assert ask(target, "Host: " + host, state=standby).status == status
    assert ask("/meta/apps", state=standby).status == 307, "without a Host field"


# States

@pytest.mark.parametrize("state, status, name", [
    ("standby", 307, "ERR_FORWARD_TO_OTHERS"), ("election", 503, "ERR_SERVICE_NOT_ACTIVE"),
    ("nothing", 503, "ERR_SERVICE_NOT_ACTIVE"), ("error", 502, "ERR_NETWORK_FAILURE"),
])
def test_states_without_tables(state, status, name):
    for target in META:
        answer = ask(target, state=STATES[state])
        assert error(answer) == (status, name)
        assert (field(answer, "Retry-After") == "1") == (status == 503)
        location = field(answer, "Location")
        assert location == ("http://" + PRIMARY + target if status == 307 else None)
    for target in LOCAL:
        assert ask(target, state=STATES[state]).status == 200
    assert error(ask("/health?primary", state=STATES[state]))[0] == 503
    assert json.loads(ask("/health", state=STATES[state]).body.decode())["primary"] == "false"


def test_an_error_that_is_a_state_brings_its_headers():
    state = ph.PageError(503, "ERR_BUSY", "later", (("Retry-After", "7"),))
    answer = ask("/meta/apps", state=state)
    assert error(answer) == (503, "ERR_BUSY") and field(answer, "Retry-After") == "7"


# Settings

@pytest.mark.parametrize("target, wrapper", [
    ("/version", "Version"), ("/startTime", "RecentStartTime"),
    ("/recentStartTime", "RecentStartTime"), ("/meta/cluster", "cluster_info"),
])
def test_flat(target, wrapper):
    wrapped = json.loads(ask(target).body.decode())
    assert list(wrapped) == [wrapper]
    assert json.loads(ask(target, flat=True).body.decode()) == wrapped[wrapper]
    assert field(ask(target), "ETag") != field(ask(target, flat=True), "ETag")


@pytest.mark.parametrize("target", ["/", "/health", "/meta/app?name=table1&detail", "/meta/apps"])
def test_flat_changes_no_other_page(target):
    assert ask(target, flat=True).body == ask(target).body


@pytest.mark.parametrize("target, large", [("/meta/apps?detail", True), ("/version", False)])
def test_compress(target, large):
    plain = ask(target)
    packed, off = (ask(target, "Accept-Encoding: gzip", compress=on) for on in (True, False))
    assert off.body == plain.body and field(off, "Content-Encoding") is None
    assert field(off, "Vary") is None and field(off, "ETag") == field(plain, "ETag")
    assert (field(packed, "Content-Encoding") == "gzip") == large
    for answer in (plain, packed):
        assert field(answer, "Vary") == ("Accept-Encoding" if large else None)
    assert (field(packed, "ETag") != field(plain, "ETag")) == large


def test_a_body_of_a_kibibyte_is_packed_and_a_smaller_one_is_not():
    def version(letters):
        return ask("/version", "Accept-Encoding: gzip", version="v" * letters, git_commit="c")

    shortest = len(ask("/version", version="v", git_commit="c").body)
    assert field(version(1024 - shortest), "Content-Encoding") is None
    assert field(version(1025 - shortest), "Content-Encoding") == "gzip"


@pytest.mark.parametrize("state", STATES)
def test_a_replica_server_has_no_meta_pages(state):
    for target in META:
        answer = ask(target, state=STATES[state], role="replica")
        assert error(answer) == (404, "ERR_HANDLER_NOT_FOUND")
        assert "meta server" in json.loads(answer.body.decode())["hint_message"]
    for target in LOCAL:
        assert ask(target, state=STATES[state], role="replica").status == 200
    index = json.loads(ask("/", state=STATES[state], role="replica").body.decode())
    assert list(index) == sorted(LOCAL)
    assert "meta" in json.loads(ask("/meta/apps", role="replica").body.decode())["hint_message"]


def test_the_role_is_shown():
    for role in ("meta", "replica"):
        page = json.loads(ask("/health", role=role).body.decode())
        primary = "true" if role == "meta" else "false"
        assert page == {"status": "ok", "role": role, "primary": primary}


def test_the_index_lists_the_parameters_of_each_page():
    index = json.loads(ask("/").body.decode())
    assert list(index) == sorted([*LOCAL, *(target.partition("?")[0] for target in META)])
    assert index["/meta/app"].startswith("name=<app_name>[&detail]. ")
    assert index["/meta/app_envs"].startswith("name=<app_name>. ")
    for path, told in [("/meta/apps", "detail"), ("/meta/nodes", "detail"), ("/health", "primary")]:
        assert told in index[path].partition(". ")[0], path


def test_version_is_the_hosts_or_the_states_or_ours():
    told = STATE._replace(version="2.0", git_commit="abc")
    for state, settings, version, commit in [
        (STATE, {}, ph.__version__, "unknown"), (told, {}, "2.0", "abc"),
        (told, {"version": "3.0"}, "3.0", "abc"), (told, {"git_commit": "d"}, "2.0", "d"),
        (None, {"version": "3.0", "git_commit": "d"}, "3.0", "d"),
    ]:
        page = json.loads(ask("/version", state=state, **settings).body.decode())["Version"]
        assert page == {"Version": version, "GitCommit": commit}


def test_it_is_pure():
    for target in (*LOCAL, *META, "/nosuch", "/meta/apps?detail"):
        for fields in ([], ["Accept-Encoding: gzip"], ["If-None-Match: *"]):
            assert ask(target, *fields) == ask(target, *fields), target


def test_a_server_sends_what_respond_says():
    server = ph.StatusServer(STATE, role="meta")
    for target in (*LOCAL, *META, "/nosuch", "/favicon.ico"):
        answer = ask(target)
        data, _ = talk(server, [head("GET %s HTTP/1.1" % target, "Host: x")])
        lines, _, body = without_dates(data).partition(b"\r\n\r\n")
        sent = [tuple(line.split(": ", 1)) for line in lines.decode().split("\r\n")[1:]]
        assert body == answer.body
        assert [pair for pair in sent if pair[0] != "Server"] == list(answer.headers)
