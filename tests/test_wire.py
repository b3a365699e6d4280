"""The wire, row by row: bytes in, status, our JSON back, connection open or closed after."""

import contextlib
import gzip
import http.client
import itertools
import socket
import string
import threading

import pytest

import pegasus_http as ph
from support import (
    PRIMARY,
    Client,
    check,
    cluster,
    descriptors,
    ended,
    get,
    head,
    request,
    reset,
    settle,
    statuses_in,
    talk,
    wait_until,
    without_dates,
)

OPEN, CLOSED = "open", "closed"
GET = "GET /version HTTP/1.1"
HOST = "Host: test"
START_TIME = b"GET /startTime HTTP/1.1\r\nHost: test\r\n\r\n"
CONTROLS = [chr(n) for n in itertools.chain(range(32), [127])]
FRAMING_ERRORS = {400, 414, 431, 505}
METAS = ("/meta/app?name=table1", "/meta/app_envs?name=table1", "/meta/apps", "/meta/nodes",
         "/meta/cluster")
PAGES = ("/", "/version", "/startTime", "/recentStartTime", "/health", *METAS)


def with_fields(*fields):
    return head(GET, HOST, *fields)


def rows(*table):
    params = [pytest.param(*row[1:], id=row[0]) for row in table]
    return pytest.mark.parametrize("data, status, after", params)


def check_after(client, answer, after):
    if after == OPEN:
        assert answer.headers.get("connection") != "close"
        client.send(START_TIME)
        assert "RecentStartTime" in check(client.answer()).json
    else:
        assert answer.headers["connection"] == "close"
        assert ended(client) == b""


def play(server, data, status, after):
    head_only = data.startswith(b"HEAD")
    with Client(server.port) as client:
        client.send(data)
        answer = check(client.answer(head_only), head_only)
        assert answer.status == status, answer
        if status in FRAMING_ERRORS and after == CLOSED and not head_only:
            assert answer.json["error"] == "ERR_INVALID_DATA"
        check_after(client, answer, after)
    return answer


# Request line

LINES = [
    ("plain", GET, 200, OPEN),
    ("query-after-version", "GET /version? HTTP/1.1", 200, OPEN),
    ("version-1.2", "GET /version HTTP/1.2", 200, OPEN),
    ("version-1.9", "GET /version HTTP/1.9", 200, OPEN),
    ("version-2.0", "GET /version HTTP/2.0", 505, CLOSED),
    ("version-3.0", "GET /version HTTP/3.0", 505, CLOSED),
    ("version-0.9", "GET /version HTTP/0.9", 505, CLOSED),
    ("version-one-number", "GET /version HTTP/1", 400, CLOSED),
    ("version-no-dot", "GET /version HTTP/11", 400, CLOSED),
    ("version-two-digits", "GET /version HTTP/1.10", 400, CLOSED),
    ("version-major-two-digits", "GET /version HTTP/10.1", 400, CLOSED),
    ("version-signed", "GET /version HTTP/+1.1", 400, CLOSED),
    ("version-lower-case", "GET /version http/1.1", 400, CLOSED),
    ("version-other-protocol", "GET /version HTCPCP/1.0", 400, CLOSED),
    ("version-superscript", "GET /version HTTP/1.\xb9", 400, CLOSED),
    ("version-trailing-blank", "GET /version HTTP/1.1 ", 400, CLOSED),
    ("four-words", "GET /version now HTTP/1.1", 400, CLOSED),
    ("two-words", "GET /version", 400, CLOSED),
    ("one-word", "GET", 400, CLOSED),
    ("blank-only", " ", 400, CLOSED),
    ("leading-blank", " GET /version HTTP/1.1", 400, CLOSED),
    ("double-blank-1", "GET  /version HTTP/1.1", 400, CLOSED),
    ("double-blank-2", "GET /version  HTTP/1.1", 400, CLOSED),
    ("tab-for-blank", "GET\t/version\tHTTP/1.1", 400, CLOSED),
    ("target-empty", "GET  HTTP/1.1", 400, CLOSED),
    ("target-without-slash", "GET version HTTP/1.1", 400, OPEN),
    ("target-relative", "GET ../version HTTP/1.1", 400, OPEN),
    ("target-query-only", "GET ?pretty HTTP/1.1", 400, OPEN),
    ("target-fragment", "GET /version#top HTTP/1.1", 400, OPEN),
    ("target-utf8", "GET /versi\xc3\xb3n HTTP/1.1", 400, CLOSED),
    ("target-latin1-query", "GET /meta/app?name=\xe9 HTTP/1.1", 400, CLOSED),
    ("target-asterisk-get", "GET * HTTP/1.1", 400, OPEN),
    ("target-asterisk-options", "OPTIONS * HTTP/1.1", 204, OPEN),
    ("target-asterisk-and-more", "OPTIONS *x HTTP/1.1", 400, OPEN),
    ("target-authority-get", "GET test:80 HTTP/1.1", 400, OPEN),
    ("connect", "CONNECT test:80 HTTP/1.1", 405, OPEN),
    ("connect-ipv6", "CONNECT [::1]:80 HTTP/1.1", 405, OPEN),
    ("connect-no-port", "CONNECT test HTTP/1.1", 400, OPEN),
    ("connect-port-not-a-number", "CONNECT test:http HTTP/1.1", 400, OPEN),
    ("connect-no-host", "CONNECT :80 HTTP/1.1", 400, OPEN),
    ("connect-user", "CONNECT me@test:80 HTTP/1.1", 400, OPEN),
    ("connect-and-path", "CONNECT test:80/version HTTP/1.1", 400, OPEN),
    ("connect-asterisk", "CONNECT * HTTP/1.1", 400, OPEN),
    ("connect-unknown-path", "CONNECT /nosuch HTTP/1.1", 404, OPEN),
    ("target-absolute", "GET http://other.example/version HTTP/1.1", 200, OPEN),
    ("target-absolute-port", "GET http://other.example:81/version HTTP/1.1", 200, OPEN),
    ("target-absolute-upper", "GET HTTP://other.example/version HTTP/1.1", 200, OPEN),
    ("target-absolute-no-path", "GET http://other.example HTTP/1.1", 200, OPEN),
    ("target-absolute-query", "GET http://o/meta/app?name=table1 HTTP/1.1", 200, OPEN),
    ("target-absolute-unknown", "GET http://o/nosuch HTTP/1.1", 404, OPEN),
    ("target-absolute-no-host", "GET http:///version HTTP/1.1", 400, OPEN),
    ("target-absolute-options", "OPTIONS http://o HTTP/1.1", 204, OPEN),
    ("target-absolute-two-slashes", "GET http://o//version HTTP/1.1", 200, OPEN),
    ("target-absolute-fragment", "GET http://o/version#top HTTP/1.1", 400, OPEN),
    ("target-absolute-one-slash", "GET http:/version HTTP/1.1", 400, OPEN),
    ("target-absolute-no-slash", "GET http:version HTTP/1.1", 400, OPEN),
    ("target-absolute-cut", "GET http:// HTTP/1.1", 400, OPEN),
    ("target-absolute-only-a-query", "GET http://o?pretty HTTP/1.1", 200, OPEN),
    ("target-absolute-https", "GET https://o/version HTTP/1.1", 200, OPEN),
    ("target-ftp", "GET ftp://other.example/version HTTP/1.1", 400, OPEN),
    ("target-javascript", "GET javascript:alert(1) HTTP/1.1", 400, OPEN),
    ("path-double-slashes", "GET //meta//apps/ HTTP/1.1", 200, OPEN),
    ("path-case", "GET /Version HTTP/1.1", 404, OPEN),
    ("path-escaped", "GET /%76ersion HTTP/1.1", 200, OPEN),
    ("path-escaped-slash", "GET /meta%2Fapps HTTP/1.1", 404, OPEN),
    ("path-escaped-nul", "GET /version%00 HTTP/1.1", 404, OPEN),
    ("path-dots", "GET /meta/../version HTTP/1.1", 404, OPEN),
    ("path-bad-escape", "GET /%zz HTTP/1.1", 400, OPEN),
    ("path-cut-escape", "GET /version%4 HTTP/1.1", 400, OPEN),
    ("path-not-utf8", "GET /%ff HTTP/1.1", 400, OPEN),
    ("method-lower-case", "get /version HTTP/1.1", 501, OPEN),
    ("method-mixed-case", "Get /version HTTP/1.1", 501, OPEN),
    ("method-unknown", "BREW /version HTTP/1.1", 501, OPEN),
    ("method-unknown-unknown-path", "BREW /nosuch HTTP/1.1", 501, OPEN),
    ("method-not-a-token", "GE{T /version HTTP/1.1", 400, CLOSED),
    ("method-not-ascii", "G\xcbT /version HTTP/1.1", 400, CLOSED),
    ("method-known-unknown-path", "DELETE /nosuch HTTP/1.1", 404, OPEN),
    ("head", "HEAD /version HTTP/1.1", 200, OPEN),
    ("head-unknown-path", "HEAD /nosuch HTTP/1.1", 404, OPEN),
    ("options", "OPTIONS /version HTTP/1.1", 204, OPEN),
    ("options-unknown-path", "OPTIONS /nosuch HTTP/1.1", 404, OPEN),
] + [
    ("method-" + method.lower(), method + " /version HTTP/1.1", 405, OPEN)
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT")
]


@rows(*((name, head(line, HOST), status, after) for name, line, status, after in LINES))
def test_request_line(meta, data, status, after):
    answer = play(meta, data, status, after)
    if status in (204, 405):
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("line, status, hint", [
    ("\r\nhello", 400, "request line"),
    ("GET /health", 400, "request line"),
    ("HEAD /health", 400, None),
    ("GET", 400, "request line"),
    ("hello", 400, "request line"),
    ("GET /health HTTP/1.1 ", 400, "request line"),
    ("GET  /health HTTP/1.1", 400, "request line"),
    ("GET /health HTTP/1", 400, "request line"),
    ("GET /health HTCPCP/1.0", 400, "request line"),
    ("GE{T /health HTTP/1.1", 400, "request line"),
    ("GET /health HTTP/2.0", 505, "HTTP/2.0"),
    ("GET /health HTTP/0.9", 505, "HTTP/0.9"),
    ("PRI * HTTP/2.0", 505, "HTTP/2.0"),
    ("GET /versi\xc3\xb3n HTTP/1.1", 400, "percent-encode"),
    ("GET /meta/app?name=\xe9 HTTP/1.1", 400, "percent-encode"),
    ("SSH-2.0-OpenSSH_9.6", 400, "request line"),
    ("EHLO test", 400, "request line"),
])
def test_a_malformed_line_is_answered_when_it_is_there(meta, monkeypatch, line, status, hint):
    monkeypatch.setattr(ph, "_HEAD_SECONDS", 1000.0)
    head_only = line.startswith("HEAD")
    with Client(meta.port) as client:
        client.send(line.encode("latin-1") + b"\r\n")
        answer = check(client.answer(head_only), head_only)
        assert answer.status == status
        if hint:
            assert answer.json["error"] == "ERR_INVALID_DATA"
            assert hint in answer.json["hint_message"]
        check_after(client, answer, CLOSED)


@pytest.mark.parametrize("line", ["GET /health", "hello"])
def test_a_malformed_second_line_is_answered_when_it_is_there(meta, monkeypatch, line):
    monkeypatch.setattr(ph, "_HEAD_SECONDS", 1000.0)
    with Client(meta.port) as client:
        client.send(START_TIME + line.encode() + b"\r\n")
        assert client.answer().status == 200
        answer = check(client.answer())
        assert answer.status == 400
        check_after(client, answer, CLOSED)


# The authority: of an absolute target, and of the Host field

AUTHORITIES = [
    ("name", "a.example", 200),
    ("ipv4", "127.0.0.1", 200),
    ("port", "a.example:34601", 200),
    ("port-empty", "a:", 200),
    ("port-zero", "a:0", 200),
    ("port-leading-zeros", "a:00080", 200),
    ("port-65536", "a:65536", 200),
    ("port-of-a-hundred-digits", "a:" + "9" * 100, 200),
    ("port-not-a-number", "a:http", 400),
    ("port-signed", "a:+80", 400),
    ("port-negative", "a:-1", 400),
    ("port-hexadecimal", "a:0x50", 400),
    ("port-twice", "a:80:81", 400),
    ("port-superscript", "a:8\xb2", 400),
    ("sub-delimiters", "!$&'()*+,;=", 200),
    ("comma", "a,b", 200),
    ("unreserved", "a-b.c_d~", 200),
    ("escape", "%41%c3%a9.example", 200),
    ("escaped-slash", "a%2Fb", 200),
    ("escape-malformed", "a%zz", 400),
    ("escape-cut", "a%4", 400),
    ("escape-empty", "a%", 400),
    ("escape-in-the-port", "a:%38", 400),
    ("ipv6", "[::1]", 200),
    ("ipv6-port", "[::1]:34601", 200),
    ("ipv6-port-empty", "[::1]:", 200),
    ("ipv6-any", "[::]", 200),
    ("ipv6-upper-case", "[FE80::A]", 200),
    ("ipv6-whole", "[1:2:3:4:5:6:7:8]", 200),
    ("ipv6-elided-at-the-end", "[1:2:3:4:5:6:7::]", 200),
    ("ipv6-ipv4", "[::ffff:10.0.0.1]", 200),
    ("ipv6-zone-rfc6874", "[fe80::1%25eth0]", 200),
    ("ipv6-zone-rfc6874-port", "[fe80::1%25eth0]:34601", 200),
    ("ipv6-zone-of-clients", "[fe80::1%eth0]", 200),
    ("ipv6-zone-of-clients-port", "[fe80::1%eth0.100]:34601", 200),
    ("ipv6-zone-number", "[fe80::1%2]", 200),
    ("ipv6-zone-empty", "[fe80::1%]", 400),
    ("ipv6-zone-delimiter", "[fe80::1%eth@0]", 400),
    ("ipv6-zone-bracket", "[fe80::1%eth0]]", 400),
    ("ipv6-zone-without-address", "[%eth0]", 400),
    ("ipv6-no-brackets", "::1", 400),
    ("ipv6-unclosed", "[::1", 400),
    ("ipv6-unopened", "::1]", 400),
    ("ipv6-and-more", "[::1]x", 400),
    ("ipv6-port-twice", "[::1]:80:81", 400),
    ("ipv6-empty", "[]", 400),
    ("ipv6-a-dot", "[.]", 400),
    ("ipv6-a-colon", "[:]", 400),
    ("ipv6-colons", "[:::::]", 400),
    ("ipv6-elided-twice", "[1::2::3]", 400),
    ("ipv6-too-long", "[1:2:3:4:5:6:7:8:9]", 400),
    ("ipv6-too-short", "[1:2:3:4:5:6:7]", 400),
    ("ipv6-group-too-long", "[12345::]", 400),
    ("ipv6-not-hexadecimal", "[g::]", 400),
    ("ipv6-ipv4-too-large", "[::256.1.1.1]", 400),
    ("ipv6-ipv4-in-front", "[1.2.3.4::]", 400),
    ("ipv4-in-brackets", "[1.2.3.4]", 400),
    ("ipv6-escaped", "[%3A%3A1]", 400),
    ("future", "[v1.x]", 200),
    ("future-upper-case-port", "[VF.a:b!]:80", 200),
    ("future-no-version", "[v.x]", 400),
    ("future-no-address", "[v1.]", 400),
    ("future-not-hexadecimal", "[vg.x]", 400),
    ("user", "me@a", 400),
    ("user-empty", "@a", 400),
    ("user-and-password", "me:pass@a", 400),
    ("backslash", "a\\b", 400),
    ("not-ascii", "\xe9", 400),
] + [("character-%02x" % ord(each), "a%sb" % each, 400) for each in '"<>^`{|}[]']


@rows(*((name, head("GET http://%s/version HTTP/1.1" % each, HOST), status,
         CLOSED if "\xb2" in each or "\xe9" in each else OPEN)
        for name, each, status in AUTHORITIES + [("empty", "", 400), ("only-a-port", ":80", 400)]))
def test_authority_of_an_absolute_target(meta, data, status, after):
    play(meta, data, status, after)


@rows(
    *((name, head(GET, "Host: " + each), status, OPEN if status == 200 else CLOSED)
      for name, each, status in AUTHORITIES),
    ("empty", head(GET, "Host:"), 200, OPEN),
    ("path", head(GET, "Host: a/b"), 400, CLOSED),
    ("query", head(GET, "Host: a?b"), 400, CLOSED),
    ("fragment", head(GET, "Host: a#b"), 400, CLOSED),
    ("scheme", head(GET, "Host: http://a"), 400, CLOSED),
    ("missing", head(GET), 400, CLOSED),
    ("missing-absolute-form", head("GET http://o/version HTTP/1.1"), 400, CLOSED),
    ("malformed-absolute-form", head("GET http://o/version HTTP/1.1", "Host: a/b"), 400, CLOSED),
    ("malformed-1.0", head("GET /version HTTP/1.0", "Host: a/b"), 400, CLOSED),
    ("two", head(GET, HOST, "Host: other"), 400, CLOSED),
    ("two-equal", head(GET, HOST, HOST), 400, CLOSED),
    ("two-cases", head(GET, HOST, "hOST: test"), 400, CLOSED),
    ("with-blank", head(GET, "Host: a b"), 400, CLOSED),
    ("list-with-blank", head(GET, "Host: a, b"), 400, CLOSED),
    ("upper-case-name", head(GET, "HOST: test"), 200, OPEN),
    ("blanks-around", head(GET, "Host: \t test \t"), 200, OPEN),
)
def test_host_field(meta, data, status, after):
    play(meta, data, status, after)


# Versions, persistence, framing of the head

@rows(
    ("1.0", head("GET /version HTTP/1.0"), 200, CLOSED),
    ("1.0-close", head("GET /version HTTP/1.0", "Connection: close"), 200, CLOSED),
    ("1.0-host", head("GET /version HTTP/1.0", HOST), 200, CLOSED),
    ("1.0-not-found", head("GET /nosuch HTTP/1.0"), 404, CLOSED),
    ("1.1-close", with_fields("Connection: close"), 200, CLOSED),
    ("1.1-close-upper", with_fields("connection: CLOSE"), 200, CLOSED),
    ("1.1-close-in-a-list", with_fields("Connection: keep-alive , close"), 200, CLOSED),
    ("1.1-close-second-line", with_fields("Connection: x", "Connection: close"), 200, CLOSED),
    ("1.1-close-part-of-a-word", with_fields("Connection: closed"), 200, OPEN),
    ("1.1-close-empty-elements", with_fields("Connection: , ,close,"), 200, CLOSED),
    ("1.1-empty-elements", with_fields("Connection: ,,"), 200, OPEN),
    ("1.1-connection-empty", with_fields("Connection:"), 200, OPEN),
    ("1.1-keep-alive", with_fields("Connection: keep-alive"), 200, OPEN),
    ("1.1-close-error", head("GET /no HTTP/1.1", HOST, "Connection: close"), 404, CLOSED),
    ("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, CLOSED),
    ("upgrade", with_fields("Connection: Upgrade", "Upgrade: websocket"), 200, OPEN),
    ("upgrade-h2c", with_fields("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
                                "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200, OPEN),
    ("expect", with_fields("Expect: 100-continue"), 200, OPEN),
    ("expect-and-body", with_fields("Expect: 100-continue", "Content-Length: 5"), 200, CLOSED),
    ("expect-other", with_fields("Expect: tea"), 200, OPEN),
    ("blank-line-first", b"\r\n" + head(GET, HOST), 200, OPEN),
    ("blank-lines-first", b"\r\n" * 5 + head(GET, HOST), 200, OPEN),
    ("bare-lf", head(GET, HOST).replace(b"\r\n", b"\n"), 400, CLOSED),
    ("bare-lf-first", b"\n" + head(GET, HOST), 400, CLOSED),
    ("bare-lf-request-line", head(GET, HOST).replace(b"\r\n", b"\n", 1), 400, CLOSED),
    ("bare-lf-at-the-end", head(GET, HOST)[:-2] + b"\n", 400, CLOSED),
    ("bare-lf-in-a-value", with_fields("X-A: b\nX-C: d"), 400, CLOSED),
    ("bare-cr-first", b"\r" + head(GET, HOST), 400, CLOSED),
    ("bare-cr-for-crlf", head(GET, HOST).replace(b"\r\n", b"\r") + b"\n\n", 400, CLOSED),
    ("bare-cr-in-a-value", with_fields("X-A: b\rX-C: d"), 400, CLOSED),
    ("cr-cr-lf", head(GET, HOST).replace(b"\r\n", b"\r\r\n", 1), 400, CLOSED),
    ("obs-fold-blank", with_fields("X-A: b", " c"), 400, CLOSED),
    ("obs-fold-tab", with_fields("X-A: b", "\tc"), 400, CLOSED),
    ("obs-fold-first", head(GET, " X-A: b", HOST), 400, CLOSED),
    ("obs-fold-empty", with_fields("X-A: b", " "), 400, CLOSED),
    ("colon-after-blank", with_fields("X-A : b"), 400, CLOSED),
    ("colon-after-tab", with_fields("X-A\t: b"), 400, CLOSED),
    ("colon-missing", with_fields("X-A"), 400, CLOSED),
    ("name-empty", with_fields(": b"), 400, CLOSED),
    ("name-with-blank", with_fields("X A: b"), 400, CLOSED),
    ("name-not-ascii", with_fields("X-\xc4: b"), 400, CLOSED),
    ("name-with-delimiter", with_fields("X(A): b"), 400, CLOSED),
    ("name-every-token-character",
     with_fields("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters + ": b"), 200, OPEN),
    ("value-empty", with_fields("X-A:"), 200, OPEN),
    ("value-no-blank", with_fields("X-A:b"), 200, OPEN),
    ("value-blanks-and-tabs", with_fields("X-A: \t b \t c \t"), 200, OPEN),
    ("value-obs-text", with_fields("X-A: " + bytes(range(128, 256)).decode("latin-1")), 200, OPEN),
    ("value-colons", with_fields("X-A: b:c::d"), 200, OPEN),
    ("tls-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, CLOSED),
    ("tls-hello-starts", b"\x16", 400, CLOSED),
    ("rdsn-answer", bytes(44), 400, CLOSED),
    ("ssh-hello", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400, CLOSED),
    ("smtp-hello", b"EHLO test\r\n\r\n", 400, CLOSED),
    ("html", b"<html>\r\n\r\n", 400, CLOSED),
    ("nul", b"\0", 400, CLOSED),
    ("utf16", head(GET, HOST).decode().encode("utf-16"), 400, CLOSED),
)
def test_head(meta, data, status, after):
    play(meta, data, status, after)


@rows(
    ("1.0-keep-alive", "keep-alive", 200, OPEN),
    ("1.0-keep-alive-upper", "Keep-Alive", 200, OPEN),
    ("1.0-keep-alive-in-a-list", "x, keep-alive", 200, OPEN),
    ("1.0-keep-alive-empty-elements", ",, keep-alive ,", 200, OPEN),
    ("1.0-keep-alive-and-close", "keep-alive, close", 200, CLOSED),
)
def test_http_1_0_keep_alive_is_echoed(meta, data, status, after):
    answer = play(meta, head("GET /version HTTP/1.0", "Connection: " + data), status, after)
    assert answer.headers["connection"] == ("keep-alive" if after == OPEN else "close")


# Bodies: none is needed, none is ever taken for a request

LENGTHS = [
    ("zero", "0", 200, OPEN),
    ("zeros", "000", 200, OPEN),
    ("blanks-around", " \t0\t ", 200, OPEN),
    ("missing-body", "5", 200, CLOSED),
    ("leading-zero", "05", 200, CLOSED),
    ("64-bit", "18446744073709551616", 200, CLOSED),
    ("5000-digits", "9" * 5000, 200, CLOSED),
    ("empty", "", 400, CLOSED),
    ("plus", "+5", 400, CLOSED),
    ("minus", "-1", 400, CLOSED),
    ("minus-zero", "-0", 400, CLOSED),
    ("list-equal", "5, 5", 400, CLOSED),
    ("list-different", "5, 6", 400, CLOSED),
    ("list-zero", "0, 0", 400, CLOSED),
    ("empty-element", "5,", 400, CLOSED),
    ("hexadecimal", "0x5", 400, CLOSED),
    ("exponent", "1e2", 400, CLOSED),
    ("decimal", "5.0", 400, CLOSED),
    ("underscore", "1_0", 400, CLOSED),
    ("inner-blank", "5 5", 400, CLOSED),
    ("words", "five", 400, CLOSED),
    ("quoted", '"5"', 400, CLOSED),
    ("superscript", "\xb2", 400, CLOSED),
    ("utf8-arabic-digit", "\xd9\xa5", 400, CLOSED),
]


@rows(*((name, with_fields("Content-Length: " + value), status, after)
        for name, value, status, after in LENGTHS))
def test_content_length(meta, data, status, after):
    play(meta, data, status, after)


CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = b"GET /nosuch HTTP/1.1\r\nHost: test\r\n\r\n"


@rows(
    ("length-twice-different", with_fields("Content-Length: 5", "Content-Length: 6"), 400, CLOSED),
    ("length-twice-equal", with_fields("Content-Length: 5", "Content-Length: 5"), 400, CLOSED),
    ("length-and-chunked", with_fields("Content-Length: 5", CHUNKED), 400, CLOSED),
    ("chunked-and-length", with_fields(CHUNKED, "Content-Length: 5"), 400, CLOSED),
    ("chunked-and-zero", with_fields(CHUNKED, "Content-Length: 0"), 400, CLOSED),
    ("chunked-1.0", head("GET /version HTTP/1.0", CHUNKED), 400, CLOSED),
    ("te-unknown", with_fields("Transfer-Encoding: tea"), 501, CLOSED),
    ("te-identity", with_fields("Transfer-Encoding: identity"), 501, CLOSED),
    ("te-gzip-chunked", with_fields("Transfer-Encoding: gzip, chunked"), 501, CLOSED),
    ("te-chunked-gzip", with_fields("Transfer-Encoding: chunked, gzip"), 501, CLOSED),
    ("te-chunked-twice", with_fields("Transfer-Encoding: chunked, chunked"), 501, CLOSED),
    ("te-chunked-two-lines", with_fields(CHUNKED, CHUNKED), 501, CLOSED),
    ("te-longer-word", with_fields("Transfer-Encoding: xchunked"), 501, CLOSED),
    ("te-vertical-tab", with_fields("Transfer-Encoding: \x0bchunked"), 400, CLOSED),
    ("te-empty-element-first", with_fields("Transfer-Encoding: ,chunked"), 200, CLOSED),
    ("te-empty-element-last", with_fields("Transfer-Encoding: chunked ,"), 200, CLOSED),
    ("te-empty-elements", with_fields("Transfer-Encoding: , ,\tchunked, ,"), 200, CLOSED),
    ("te-empty-line", with_fields("Transfer-Encoding:", CHUNKED), 200, CLOSED),
    ("te-upper-case", with_fields("Transfer-Encoding: CHUNKED"), 200, CLOSED),
    ("te-empty-element-unknown", with_fields("Transfer-Encoding: ,tea"), 501, CLOSED),
    ("chunked-empty-element-and-length",
     with_fields("Transfer-Encoding: ,chunked", "Content-Length: 5"), 400, CLOSED),
    ("chunked-well-formed", with_fields(CHUNKED) + b"5\r\nhello\r\n0\r\n\r\n", 200, CLOSED),
    ("chunked-with-trailer", with_fields(CHUNKED) + b"0\r\nX: y\r\n\r\n" + SMUGGLED, 200, CLOSED),
    ("chunked-extension", with_fields(CHUNKED) + b'1;a="b"\r\nx\r\n0\r\n\r\n', 200, CLOSED),
    ("chunked-not-hexadecimal", with_fields(CHUNKED) + b"xyz\r\n", 200, CLOSED),
    ("chunked-negative", with_fields(CHUNKED) + b"-5\r\nhello\r\n", 200, CLOSED),
    ("chunked-huge", with_fields(CHUNKED) + b"f" * 100 + b"\r\n", 200, CLOSED),
    ("chunked-bare-lf", with_fields(CHUNKED) + b"5\nhello\n0\n\n", 200, CLOSED),
    ("chunked-smuggled", with_fields(CHUNKED) + b"0\r\n\r\n" + SMUGGLED, 200, CLOSED),
    ("body", with_fields("Content-Length: 5") + b"hello", 200, CLOSED),
    ("body-is-a-request", with_fields("Content-Length: 39") + SMUGGLED, 200, CLOSED),
    ("body-then-request", with_fields("Content-Length: 5") + b"hello" + SMUGGLED, 200, CLOSED),
    ("body-64k", with_fields("Content-Length: 65000") + b"x" * 65000, 200, CLOSED),
    ("body-binary", with_fields("Content-Length: 256") + bytes(range(256)), 200, CLOSED),
    ("body-post", head("POST /version HTTP/1.1", HOST, "Content-Length: 2") + b"{}", 405, CLOSED),
    ("body-not-found", head("GET /no HTTP/1.1", HOST, "Content-Length: 2") + b"{}", 404, CLOSED),
    ("body-head", head("HEAD /version HTTP/1.1", HOST, "Content-Length: 2") + b"{}", 200, CLOSED),
    ("head-bad-length", head("HEAD /version HTTP/1.1", HOST, "Content-Length: x"), 400, CLOSED),
    ("zero-then-request", with_fields("Content-Length: 0") + START_TIME, 200, "pipelined"),
)
def test_body(meta, data, status, after):
    if after != "pipelined":
        play(meta, data, status, after)
        return
    with Client(meta.port) as client:
        client.send(data)
        assert [client.answer().status for _ in range(2)] == [status, 200]


SIZES = (477, 478, 479, 480, 481, 958, 2048, 2049, 16383, 16384, 16385)


def head_of(size, *lines):
    """A request head of exactly `size` bytes."""
    lines = [GET, HOST, *lines]
    while len(head(*lines)) < size:
        lines.append("X-A: " + "a" * min(size - len(head(*lines)) - 7, 8000))
    lines[-1] = lines[-1][:len(lines[-1]) - len(head(*lines)) + size]
    assert len(head(*lines)) == size
    return head(*lines)


@pytest.mark.parametrize("size", SIZES)
def test_heads_of_the_sizes_that_receives_have(meta, size):
    data = head_of(size)
    with Client(meta.port) as client:
        for repeated in (1, 1, 1, 3):
            client.send(data * repeated)
            assert [client.answer().status for _ in range(repeated)] == [200] * repeated


@pytest.mark.parametrize("behind", [1, 100, 20000])
@pytest.mark.parametrize("size", [100, 479, 16384])
def test_what_follows_the_last_request_does_not_reset_its_answer(meta, size, behind):
    data = head_of(size, "Connection: close")
    for _ in range(10):  # the second time these bytes are known
        with Client(meta.port) as client:
            client.send(data)
            check_after(client, check(client.answer()), CLOSED)
        with Client(meta.port) as client:
            client.send(data + b"x" * behind)
            check_after(client, check(client.answer()), CLOSED)


MEGABYTES = 5000000
REFUSED = [
    pytest.param(head("POST /version HTTP/1.1", HOST, "Content-Length: %d" % MEGABYTES), 405,
                 id="not-allowed"),
    pytest.param(head("PUT /nosuch HTTP/1.1", HOST, "Content-Length: %d" % MEGABYTES), 404,
                 id="not-found"),
    pytest.param(head("POST /version HTTP/1.1", "Content-Length: %d" % MEGABYTES), 400,
                 id="no-host"),
    pytest.param(head("POST /version HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"), 501,
                 id="coding"),
    pytest.param(head("BREW /version HTTP/1.1", HOST, "Transfer-Encoding: chunked"), 501,
                 id="method"),
    pytest.param(head("GET /version HTTP/1.1", HOST, "Content-Length: %d" % MEGABYTES), 200,
                 id="serving"),
]


@pytest.mark.parametrize("data, status", REFUSED)
def test_a_client_that_sends_its_whole_body_first_gets_the_answer(
        meta, monkeypatch, data, status):
    monkeypatch.setattr(ph, "_DRAIN_SECONDS", 1000.0)  # so that only the byte limit can end it
    with Client(meta.port) as client:
        client.send(data + b"1" * MEGABYTES)
        answer = check(client.answer())
        assert answer.status == status
        check_after(client, answer, CLOSED)


@pytest.mark.parametrize("data, status", REFUSED)
def test_a_client_that_reads_while_it_sends_its_body_gets_the_answer(meta, data, status):
    def send():
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(data + b"1" * MEGABYTES)

    with Client(meta.port) as client:
        thread = threading.Thread(target=send)
        thread.start()
        answer = check(client.answer())
        thread.join()
        assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_a_body_beyond_the_drain_is_answered_and_cut(meta, monkeypatch):
    monkeypatch.setattr(ph, "_DRAIN_SECONDS", 1000.0)  # so that only the byte limit can end it
    monkeypatch.setattr(ph, "_DRAIN_BYTES", 64 * 1024)
    with Client(meta.port) as client:
        client.send(with_fields("Content-Length: 100000000"))
        assert check(client.answer()).headers["connection"] == "close"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.send(bytes(50000000))


def test_a_body_in_many_small_pieces_is_drained(meta, monkeypatch):
    monkeypatch.setattr(ph, "_DRAIN_SECONDS", 1000.0)  # so that only the byte limit can end it
    with Client(meta.port) as client, Client(meta.port) as bystander:
        client.send(with_fields("Content-Length: 400"))
        for _ in range(40):
            settle(bystander)
            client.send(b"x" * 10)
        assert check(client.answer()).status == 200
        assert ended(client) == b""


def test_a_body_that_never_comes_is_not_waited_for(meta, monkeypatch):
    monkeypatch.setattr(ph, "_DRAIN_SECONDS", 0.2)
    before = descriptors()
    with Client(meta.port) as client:
        client.send(with_fields("Content-Length: 10"))
        assert check(client.answer()).status == 200
        assert client.closed()
        wait_until(lambda: descriptors() <= before + 1, "the server lets go of the connection")


# Control characters, one at a time, in every place

PLACES = {
    "method": "G{}ET /version HTTP/1.1\r\nHost: test\r\n\r\n",
    "after-method": "GET{} /version HTTP/1.1\r\nHost: test\r\n\r\n",
    "target": "GET /ver{}sion HTTP/1.1\r\nHost: test\r\n\r\n",
    "query": "GET /version?pretty{} HTTP/1.1\r\nHost: test\r\n\r\n",
    "version": "GET /version HTTP/{}1.1\r\nHost: test\r\n\r\n",
    "end-of-line": "GET /version HTTP/1.1{}\r\nHost: test\r\n\r\n",
    "name": "GET /version HTTP/1.1\r\nHost: test\r\nX-{}A: b\r\n\r\n",
    "start-of-name": "GET /version HTTP/1.1\r\nHost: test\r\n{}X-A: b\r\n\r\n",
    "before-colon": "GET /version HTTP/1.1\r\nHost: test\r\nX-A{}: b\r\n\r\n",
    "value": "GET /version HTTP/1.1\r\nHost: test\r\nX-A: b{}c\r\n\r\n",
    "host": "GET /version HTTP/1.1\r\nHost: te{}st\r\n\r\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_control_character(meta, place):
    for control in CONTROLS:
        data = PLACES[place].replace("{}", control).encode("latin-1")
        with Client(meta.port) as client:
            client.send(data)
            answer = check(client.answer())
            allowed = control == "\t" and place == "value"
            assert answer.status == (200 if allowed else 400), (control, data)
            if not allowed:
                check_after(client, answer, CLOSED)


# Limits: at the limit and one over

def long_line(length):
    """A request line of exactly `length` bytes; empty pieces of a query are ignored."""
    room = length - len("GET /version? HTTP/1.1")
    return "GET /version?" + "&" * room + " HTTP/1.1"


def long_field(length, name="X-A"):
    return name + ": " + "b" * (length - len(name) - 2)


def fields_of(total):
    """Field lines that add up to `total` bytes with their line ends, Host included."""
    left = total - len(HOST) - 2
    lines = []
    while left:
        size = left if left <= 4000 else min(4000, left - 100)
        lines.append(long_field(size - 2, "X-%d" % len(lines)))
        left -= size
    return lines


@rows(
    ("line-at", head(long_line(8192), HOST), 200, OPEN),
    ("line-over", head(long_line(8193), HOST), 414, CLOSED),
    ("line-far-over", head(long_line(60000), HOST), 414, CLOSED),
    ("line-without-end", b"GET /" + b"a" * 9000, 414, CLOSED),
    ("method-without-end", b"A" * 9000, 414, CLOSED),
    ("field-at", with_fields(long_field(8192)), 200, OPEN),
    ("field-over", with_fields(long_field(8193)), 431, CLOSED),
    ("field-far-over", with_fields(long_field(30000)), 431, CLOSED),
    ("field-without-end", with_fields()[:-2] + b"X-A: " + b"b" * 40000, 431, CLOSED),
    ("name-without-end", with_fields()[:-2] + b"a" * 40000, 431, CLOSED),
    ("fields-at", with_fields(*("X-%d: y" % n for n in range(99))), 200, OPEN),
    ("fields-over", with_fields(*("X-%d: y" % n for n in range(100))), 431, CLOSED),
    ("fields-far-over", with_fields(*("X-%d: y" % n for n in range(2000))), 431, CLOSED),
    ("all-at", with_fields(*fields_of(32768 - len(GET) - 4)), 200, OPEN),
    ("all-over", with_fields(*fields_of(32768 - len(GET) - 3)), 431, CLOSED),
    ("all-at-without-end", with_fields(*fields_of(32768 - len(GET) - 2))[:-2], 431, CLOSED),
    ("all-without-end", with_fields(*fields_of(40000))[:-2], 431, CLOSED),
)
def test_limit(meta, data, status, after):
    play(meta, data, status, after)


@pytest.mark.parametrize("data", [
    pytest.param(head(long_line(8192), HOST), id="line"),
    pytest.param(with_fields(long_field(8192)), id="field"),
    pytest.param(with_fields(*fields_of(32768 - len(GET) - 4)), id="all"),
])
def test_at_the_limit_and_split(meta, data):
    with Client(meta.port) as bystander:
        for at in [8191, 8192, 8193, 8194, *range(len(data) - 5, len(data))]:
            with Client(meta.port) as client:
                client.send(data[:at])
                settle(bystander)
                client.send(data[at:])
                assert client.answer().status == 200, at


# Splits: the answer is a function of the bytes, not of the segments

ONE = head("GET /meta/app?name=table3 HTTP/1.1", HOST, "X-A: b")
TWO = ONE + head("GET /meta/app?name=table4 HTTP/1.1", HOST)


def names(client, count):
    return [client.answer().json["general"]["app_name"] for _ in range(count)]


def split(meta, data, at):
    """All that is sent to a client whose bytes arrive in two pieces and which then ends."""
    if meta.style == "blocking":
        return talk(meta.server, [data[:at], data[at:]])[0]
    with Client(meta.port) as bystander, Client(meta.port) as client:
        client.send(data[:at])
        settle(bystander)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(data[at:])  # answered and closed in mid-body: allowed
            client.sock.shutdown(socket.SHUT_WR)
        return client.rest()


@pytest.mark.parametrize("data, statuses", [
    pytest.param(ONE, [200], id="one"),
    pytest.param(TWO, [200, 200], id="two-pipelined"),
    pytest.param(b"\r\n" + TWO, [200, 200], id="blank-line-and-two"),
    pytest.param(head(GET), [400], id="no-host"),
    pytest.param(head("GET / HTTP/2.0", HOST), [505], id="version-2"),
    pytest.param(with_fields("Content-Length: 3") + b"abc", [200], id="body"),
    pytest.param(with_fields(CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n", [200], id="chunked"),
    pytest.param(head("GET / HTTP/2.0", "Host: \0"), [505], id="version-2-and-control-character"),
    pytest.param(head("GET /", "Host: \0"), [400], id="no-version-and-control-character"),
    pytest.param(head("GET", "X-A: b\nc"), [400], id="bare-lf-and-one-word"),
    pytest.param(b"\r\n\n", [400], id="bare-lf-after-a-blank-line"),
    pytest.param(ONE + b"hello\r\n" + ONE, [200, 400], id="malformed-line-between"),
])
def test_every_split(meta, data, statuses):
    whole = without_dates(split(meta, data, len(data)))
    assert statuses_in(whole) == statuses
    for at in range(1, len(data)):
        assert without_dates(split(meta, data, at)) == whole, at


def test_a_byte_per_segment(meta):
    with Client(meta.port) as bystander, Client(meta.port) as client:
        for byte in TWO:
            client.send(bytes([byte]))
            settle(bystander)
        assert names(client, 2) == ["table3", "table4"]


# Pipelining

def test_a_hundred_pipelined(meta):
    wanted = ["table%d" % (1 + n % 9) for n in range(100)]
    with Client(meta.port) as client:
        client.send(b"".join(head("GET /meta/app?name=%s HTTP/1.1" % n, HOST) for n in wanted))
        assert names(client, 100) == wanted
        client.send(START_TIME)
        assert client.answer().status == 200


@pytest.mark.parametrize("first, status", [
    pytest.param("GET /nosuch HTTP/1.1", 404, id="not-found"),
    pytest.param("GET /meta/app?name=nosuch HTTP/1.1", 404, id="table-not-found"),
    pytest.param("GET /meta/app HTTP/1.1", 400, id="parameter-missing"),
    pytest.param("GET /meta/apps?x HTTP/1.1", 400, id="parameter-unknown"),
    pytest.param("GET /favicon.ico HTTP/1.1", 204, id="no-content"),
    pytest.param("CONNECT test:80 HTTP/1.1", 405, id="connect"),
    pytest.param("GET http://me@o/version HTTP/1.1", 400, id="authority"),
    pytest.param("DELETE /version HTTP/1.1", 405, id="not-allowed"),
    pytest.param("OPTIONS /version HTTP/1.1", 204, id="options"),
    pytest.param("OPTIONS * HTTP/1.1", 204, id="options-asterisk"),
    pytest.param("HEAD /meta/apps HTTP/1.1", 200, id="head"),
    pytest.param("HEAD /nosuch HTTP/1.1", 404, id="head-not-found"),
])
def test_pipelined_behind(meta, first, status):
    head_only = first.startswith("HEAD")
    with Client(meta.port) as client:
        client.send((head(first, HOST) + ONE) * 3)
        for _ in range(3):
            assert check(client.answer(head_only), head_only).status == status
            assert names(client, 1) == ["table3"]


def test_pipelined_behind_a_redirect(standby):
    with Client(standby.port) as client:
        client.send(b"".join(map(request, METAS)) + START_TIME)
        for target in METAS:
            answer = check(client.answer())
            assert answer.status == 307
            assert answer.headers["location"] == "http://" + PRIMARY + target
        assert client.answer().status == 200


@pytest.mark.parametrize("first", [
    pytest.param(head(GET, HOST, "Connection: close"), id="close"),
    pytest.param(head("GET /version HTTP/1.0"), id="1.0"),
    pytest.param(head(GET), id="no-host"),
    pytest.param(head("GET / HTTP/2.0", HOST), id="version-2"),
    pytest.param(head("GET"), id="not-http"),
    pytest.param(with_fields("Content-Length: 1") + b"x", id="body"),
    pytest.param(with_fields("Transfer-Encoding: tea"), id="te-unknown"),
])
def test_nothing_is_answered_behind(meta, first):
    with Client(meta.port) as client:
        client.send(ONE + first + ONE * 3)
        assert names(client, 1) == ["table3"]
        check_after(client, check(client.answer()), CLOSED)


# Silence: behind what was answered nothing is asked for

def known_request_behind_a_split_blank_line(meta, monkeypatch):
    """What is sent behind CR, LF and a request that the server knows, all on their own."""
    if meta.style == "blocking":
        monkeypatch.setattr(ph, "_IDLE_SECONDS", 0.3)
        return talk(meta.server, [b"\r", b"\n", START_TIME], ends=False)[0]
    with Client(meta.port) as bystander, Client(meta.port) as client:
        bystander.send(START_TIME)
        bystander.answer()
        for each in (b"\r", b"\n"):
            client.send(each)
            settle(bystander)
        monkeypatch.setattr(ph, "_IDLE_SECONDS", 0.3)
        client.send(START_TIME)
        return client.rest()


def test_a_blank_line_in_two_pieces_leaves_no_head_to_wait_for(meta, monkeypatch):
    for name in ("_HEAD_SECONDS", "_IDLE_SECONDS"):
        monkeypatch.setattr(ph, name, 1000.0)
    assert statuses_in(known_request_behind_a_split_blank_line(meta, monkeypatch)) == [200]


# Half-close, and close in the middle of anything

def test_half_close_after_the_requests(meta):
    with Client(meta.port) as client:
        client.send(TWO)
        client.sock.shutdown(socket.SHUT_WR)
        assert names(client, 2) == ["table3", "table4"]
        assert client.closed()


@pytest.mark.parametrize("data", [
    pytest.param(b"", id="nothing"),
    pytest.param(b"G", id="a-byte"),
    pytest.param(ONE[:-1], id="all-but-the-last-byte"),
    pytest.param(TWO[:-1], id="in-the-second"),
])
def test_half_close_in_the_middle(meta, monkeypatch, data):
    monkeypatch.setattr(ph, "_HEAD_SECONDS", 1000.0)
    monkeypatch.setattr(ph, "_IDLE_SECONDS", 1000.0)
    with Client(meta.port) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        if data.startswith(ONE):
            assert names(client, 1) == ["table3"]
        assert ended(client) == b"", "a request that is not whole is not answered"


@pytest.mark.parametrize("end", [
    pytest.param(reset, id="reset"),
    pytest.param(lambda client: client.sock.close(), id="close"),
])
def test_close_in_the_middle_of_anything(meta, end):
    with Client(meta.port) as bystander:
        settle(bystander)
        before = descriptors()
        bodies = with_fields("Content-Length: 5") + b"hel", with_fields(CHUNKED) + b"5\r\nhe"
        for data in (TWO, b"\xff\xfe", *bodies):
            for at in range(len(data) + 1):
                client = Client(meta.port)
                client.send(data[:at])
                if at % 2:
                    settle(bystander)
                end(client)
        settle(bystander)
        wait_until(lambda: descriptors() <= before, "every connection is given back")


# The fields of every answer

@pytest.mark.parametrize("target", PAGES)
def test_head_equals_get(meta, target):
    with Client(meta.port) as client:
        for fields in ((), ("Accept-Encoding: gzip",)):
            for method in ("GET", "HEAD"):
                client.send(head("%s %s HTTP/1.1" % (method, target), HOST, *fields))
            full, bare = client.answer(), client.answer(head_only=True)
            for answer in (full, bare):
                answer.headers.pop("date")
            assert (bare.status, bare.headers, bare.body) == (200, full.headers, b"")
            assert int(full.headers["content-length"]) == len(full.body) > 0


@pytest.mark.parametrize("target", PAGES)
def test_options(meta, target):
    answer = check(get(meta.port, target, method="OPTIONS"))
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert answer.body == b"" and "content-length" not in answer.headers


@pytest.mark.parametrize("coding, packed", [
    ("gzip", True), ("GZIP", True), ("x, gzip;q=0.5", True), ("gzip;q=1.000, br", True),
    ("gzip;q=0", False), ("gzip; q=0.000", False), ("identity", False), ("gzipped", False),
    (",gzip", True), (", ,gzip;q=1 ,,", True), (",", False),
    ("", False), ("br", False), ("*;q=0", False), ("gzip;q=0, *", False),
    ("*", True), ("br;q=1.0, *;q=0.5", True), ("x-gzip", True), ("x-gzip;q=0, *", False),
    ("gzip" + "," * 996, True), ("gzip" + "," * 997, False),  # a very long field names nothing
])
def test_gzip(meta, coding, packed):
    plain = check(get(meta.port, "/meta/apps?detail"))
    assert len(plain.body) >= 1024 and plain.headers["vary"] == "Accept-Encoding"
    answer = get(meta.port, "/meta/apps?detail", "Accept-Encoding: " + coding)
    assert (answer.headers.get("content-encoding") == "gzip") == packed
    assert answer.headers["vary"] == "Accept-Encoding"
    assert (gzip.decompress(answer.body) if packed else answer.body) == plain.body
    assert (answer.headers["etag"] != plain.headers["etag"]) == packed


def test_a_small_page_is_not_packed(meta):
    answer = check(get(meta.port, "/version", "Accept-Encoding: gzip"))
    assert "content-encoding" not in answer.headers


def test_gzip_switched_off():
    with ph.StatusServer(cluster(tables=9), role="meta", compress=False) as server:
        answer = check(get(server.port, "/meta/apps?detail", "Accept-Encoding: gzip"))
        assert "content-encoding" not in answer.headers and answer.json["summary"]


# Parameters

NAMED = ("/meta/app", "/meta/app_envs")  # pages of one table
PLAIN = ("/", "/version", "/startTime", "/recentStartTime", "/meta/cluster")  # take only `pretty`
EMPTY_NAME = "app name shouldn't be empty"

PARAMETERS = [(path + rest, status, hint) for path in NAMED for rest, status, hint in [
    ("", 400, EMPTY_NAME),
    ("?", 400, EMPTY_NAME),
    ("?name=", 400, EMPTY_NAME),
    ("?name", 400, EMPTY_NAME),
    ("?Name=table1", 400, "unknown parameter: Name"),
    ("?&name=table1&&", 200, None),
    ("?name=table1&name=table1", 400, "duplicate parameter: name"),
    ("?name=table1&n%61me=table2", 400, "duplicate parameter: name"),
    ("?name=table1&foo=1", 400, "unknown parameter: foo"),
    ("?name=table1&%66oo=1", 400, "unknown parameter: foo"),
    ("?name=table1&pretty=maybe", 400, 'invalid pretty: "maybe", expected true or false'),
    ("?name=table1&%70retty", 200, None),
    ("?pretty&name=table1&pretty", 400, "duplicate parameter: pretty"),
    ("?name=%74able1", 200, None),
    ("?name=table1;pretty", 404, 'table not found: "table1;pretty"'),
    ("?name=Table1", 404, 'table not found: "Table1"'),
    ("?name=%20table1", 404, 'table not found: " table1"'),
    ("?name=a=b", 404, 'table not found: "a=b"'),
    ("?name=a%26b", 404, 'table not found: "a&b"'),
    ("?name=a%26pretty%3Dx", 404, 'table not found: "a&pretty=x"'),
    ("?name=a%2Bb%25", 404, 'table not found: "a+b%"'),
    ("?name=%2520", 404, 'table not found: "%20"'),
    ("?name=%c3%a9", 404, 'table not found: "\u00e9"'),
    ("?name=a+b", 404, 'table not found: "a+b"'),
    ("?name=a?b", 404, 'table not found: "a?b"'),
    ("?=table1", 400, "unknown parameter: "),
    ("?name=%zz", 400, "name=%zz"),
    ("?name=%4", 400, "name=%4"),
    ("?name=%", 400, "name=%"),
    ("?na%zzme=1", 400, "na%zzme=1"),
    ("?name=%ff", 400, "name=%ff"),
    ("?name=%ed%a0%80", 400, "name=%ed%a0%80"),
    ("?name=%c0%af", 400, "name=%c0%af"),
]] + [("/meta/app?name=table1" + rest, status, hint) for rest, status, hint in [
    ("&detail", 200, None),
    ("&detail=", 200, None),
    ("&detail=true", 200, None),
    ("&detail=%74rue", 200, None),
    ("&detail=false", 200, None),
    ("&detail=x", 400, 'invalid detail: "x", expected true or false'),
    ("&detail=True", 400, 'invalid detail: "True", expected true or false'),
    ("&detail=1", 400, 'invalid detail: "1", expected true or false'),
    ("&detail=true=", 400, 'invalid detail: "true=", expected true or false'),
    ("&detail&detail", 400, "duplicate parameter: detail"),
    ("&detail=true&detail=false", 400, "duplicate parameter: detail"),
]] + [(path + rest, status, hint) for path in ("/meta/apps", "/meta/nodes")
      for rest, status, hint in [
    ("?detail=", 200, None),
    ("?detail=true", 200, None),
    ("?detail=yes", 400, 'invalid detail: "yes", expected true or false'),
    ("?_=1", 400, "unknown parameter: _"),
    ("?name=table1", 400, "unknown parameter: name"),
]] + [(path + rest, status, hint) for path in PLAIN for rest, status, hint in [
    ("?pretty", 200, None),
    ("?pretty=true", 200, None),
    ("?_=1", 200, None),
    ("?_=1&_=2", 200, None),
    ("?" + "&" * 400, 200, None),
    ("?" + "_&" * 100, 200, None),
    ("?" + "_&" * 101, 400, "more than 100 parameters"),
    ("?detail", 200, None),
    ("?detail=nonsense", 200, None),
    ("?=", 200, None),
    ("?pretty=maybe", 400, 'invalid pretty: "maybe", expected true or false'),
    ("?pretty&pretty", 400, "duplicate parameter: pretty"),
    ("?_=%zz", 400, "_=%zz"),
    ("?_=%ff", 400, "_=%ff"),
]] + [
    ("/meta/app_envs?name=table1&detail", 400, "unknown parameter: detail"),
    ("/health?primary", 200, None),
    ("/health?primary=no", 400, 'invalid primary: "no", expected true or false'),
    ("/health?_=1", 400, "unknown parameter: _"),
    ("/nosuch", 404, 'service not found for "/nosuch"'),
    ("/nosuch?name=%zz", 404, 'service not found for "/nosuch"'),
]


@pytest.mark.parametrize("target, status, hint", PARAMETERS)
def test_parameters_leave_the_connection_open(meta, target, status, hint):
    with Client(meta.port) as client:
        client.send(head("GET %s HTTP/1.1" % target, HOST))
        answer = check(client.answer())
        assert answer.status == status, answer
        if hint:
            assert hint in answer.json["hint_message"]
        if status == 400:
            assert answer.json["error"] == "ERR_INVALID_PARAMETERS"
        check_after(client, answer, OPEN)


@pytest.mark.parametrize("target, like", [
    ("/meta/app?name=table1&detail=", "/meta/app?name=table1&detail=true"),
    ("/meta/app?name=table1&detail", "/meta/app?name=table1&detail=true"),
    ("/meta/app?name=table1&detail=false", "/meta/app?name=table1"),
    ("/meta/apps?detail=", "/meta/apps?detail=true"),
    ("/meta/nodes?detail=", "/meta/nodes?detail=true"),
    ("/version?_=1&detail", "/version"),
    ("/meta/cluster?_=1&pretty&x", "/meta/cluster?pretty"),
    ("/version?pretty=false", "/version"),
])
def test_parameters_that_mean_the_same(meta, target, like):
    answer, expected = get(meta.port, target), get(meta.port, like)
    assert (answer.status, answer.body) == (200, expected.body)
    assert answer.headers["etag"] == expected.headers["etag"]


@pytest.mark.parametrize("target, status, hint", [
    ("/meta/app?name=table+1", 404, "%20"),
    ("/meta/app_envs?name=table+1", 404, "%20"),
    ("/meta/app?name=%ff", 400, "UTF-8"),
    ("/version?_=%ff", 400, "UTF-8"),
    ("/%ff", 400, "UTF-8"),
    ("/meta/app?name=\xe9", 400, "percent-encode"),
    ("/versi\xc3\xb3n", 400, "percent-encode"),
])
def test_a_hint_says_what_to_do(meta, target, status, hint):
    answer = check(get(meta.port, target))
    assert answer.status == status and hint in answer.json["hint_message"], answer


@pytest.mark.parametrize("target", ["/meta/app?name=table", "/meta/app_envs?name=a%2Bb"])
def test_only_a_plus_is_told_about_blanks(meta, target):
    hint = get(meta.port, target).json["hint_message"]
    name = target.partition("=")[2].replace("%2B", "+")
    assert hint.startswith('table not found: "%s"' % name)
    assert ("%20" in hint) == ("+" in name)


# Others as judges of the same answers

JUDGED = [("GET", target, "") for target in PAGES] + [("HEAD", target, "") for target in PAGES] + [
    ("OPTIONS", "/version", ""), ("OPTIONS", "*", ""), ("POST", "/version", ""),
    ("BREW", "/version", ""), ("GET", "/nosuch", ""), ("GET", "/meta/app?name=%zz", ""),
    ("GET", "/meta/apps?detail&pretty", ""), ("GET", "/favicon.ico", ""),
    ("HEAD", "/favicon.ico", ""), ("HEAD", "/nosuch", ""), ("HEAD", "/meta/app", ""),
] + [
    (method, target, field)
    for method in ("GET", "HEAD")
    for target in ("/version", "/meta/apps", "/meta/apps?detail", "/health", "/nosuch")
    for field in ("If-None-Match: *", "If-None-Match: %s", 'If-None-Match: "a,b", W/%s',
                  'If-None-Match: "other"', "If-Match: %s", 'If-Match: "other"', "If-Match: W/%s",
                  "Accept-Encoding: gzip")
]


def judged(port):
    """(method, target, fields) of every request; the pages' own tags stand where %s was."""
    tags = {target: get(port, target).headers.get("etag", '"none"') for _, target, _ in JUDGED}
    for method, target, field in JUDGED:
        name, _, value = field.replace("%s", tags[target]).partition(": ")
        yield method, target, {"Host": "test", name: value} if name else {"Host": "test"}


def comparable(status, fields, body):
    fields = {name.lower(): value for name, value in fields}
    fields.pop("date")
    return status, fields, body


def raw_answers(port, requests):
    with Client(port) as client:
        for method, target, fields in requests:
            lines = ["%s: %s" % pair for pair in fields.items()]
            client.send(head("%s %s HTTP/1.1" % (method, target), *lines))
            answer = client.answer(head_only=method == "HEAD")
            yield comparable(answer.status, answer.headers.items(), answer.body)


@pytest.fixture(params=["meta", "standby"])
def judged_port(request, meta, standby):
    return {"meta": meta, "standby": standby}[request.param].port


def test_http_client_reads_the_same(judged_port):
    requests = list(judged(judged_port))
    connection = http.client.HTTPConnection("127.0.0.1", judged_port, timeout=30)
    connection.connect()
    sock = connection.sock
    for (method, target, fields), expected in zip(requests, raw_answers(judged_port, requests)):
        connection.request(method, target, headers=fields)
        answer = connection.getresponse()
        assert comparable(answer.status, answer.getheaders(), answer.read()) == expected
        assert connection.sock is sock, "kept alive after " + target
    connection.close()


def h11_answers(h11, port, requests):
    judge = h11.Connection(h11.CLIENT)
    with Client(port) as client:
        for method, target, fields in requests:
            request = h11.Request(method=method, target=target, headers=list(fields.items()))
            client.send(judge.send(request))
            judge.send(h11.EndOfMessage())
            bodies = []
            while True:
                event = judge.next_event()
                if event is h11.NEED_DATA:
                    judge.receive_data(client.more())
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    bodies.append(bytes(event.data))
                else:
                    assert isinstance(event, h11.EndOfMessage), event
                    break
            answered = [(name.decode(), value.decode()) for name, value in response.headers]
            yield comparable(response.status_code, answered, b"".join(bodies))
            judge.start_next_cycle()


def test_h11_reads_the_same(judged_port):
    h11 = pytest.importorskip("h11", reason="h11 is an optional second judge of the answers")
    requests = list(judged(judged_port))
    expected = list(raw_answers(judged_port, requests))
    assert list(h11_answers(h11, judged_port, requests)) == expected


def test_the_judges_see_every_kind_of_answer(meta, standby):
    seen = {answer[0] for each in (meta, standby)
            for answer in raw_answers(each.port, judged(each.port))}
    assert seen == {200, 204, 304, 307, 400, 404, 405, 412, 501}
