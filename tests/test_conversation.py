"""What is said over one connection, held without any socket: bytes in, wishes and answers out."""

import json
import random

import pytest

import pegasus_http as ph
from support import PATIENCE, cluster

VERSION = b"GET /version HTTP/1.1\r\nHost: test\r\n\r\n"
TABLES = b"GET /meta/apps HTTP/1.1\r\nHost: test\r\n\r\n"
LAST = b"GET /startTime HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
POST = b"POST /version HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n"


class Clock:
    """Stands in for the module `time`: it moves when the test says so."""

    def __init__(self, real):
        self._real, self.now = real, 1000.0

    def monotonic(self):
        return self.now

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(ph.time)
    monkeypatch.setattr(ph, "time", clock)
    return clock


SERVERS = []


@pytest.fixture(autouse=True)
def _workers_end():
    yield
    while SERVERS:
        SERVERS.pop().stop()


class Talk:
    """Drives one conversation; `wish` is what it waits for, `answers` what it has said."""

    def __init__(self, server=None, refusal=None):
        self.server = server or ph.StatusServer(cluster(), role="meta")
        SERVERS.append(self.server)
        self.handler = ph.StatusHandler(None, ("test", 1), self.server, driven=True)
        self.steps = self.handler.converse(refusal)
        self.answers, self.wish = [], None
        self.go_on(None)

    def go_on(self, came):
        """Give it `came`, take its answers, and stop where it waits for something else."""
        while True:
            try:
                self.wish = self.steps.send(came)
            except StopIteration:
                self.wish = "over"
                return self
            if not isinstance(self.wish, ph._Answer):
                return self
            self.answers.append(self.wish)
            came = None

    def read(self, data):
        assert self.wish is ph._READ, self.wish
        return self.go_on(data)

    def make_page(self):
        """What a driver does: have the page made and hand it over."""
        assert isinstance(self.wish, ph._Order), self.wish
        return self.go_on(self.server._pages.wait(self.wish, ph.time.monotonic() + PATIENCE))

    @property
    def bodies(self):
        return [(answer.head + answer.body).partition(b"\r\n\r\n")[2] for answer in self.answers]

    @property
    def statuses(self):
        return [int(answer.head.split(b" ")[1]) for answer in self.answers]


def test_a_request_is_answered_and_the_next_one_awaited():
    talk = Talk().read(VERSION)
    assert talk.statuses == [200]
    assert talk.wish is ph._READ and talk.handler.idle
    assert json.loads(talk.bodies[0].decode())["Version"]
    assert talk.read(LAST).statuses == [200, 200]
    assert talk.wish == "over"
    assert [answer.last for answer in talk.answers] == [False, True]


@pytest.mark.parametrize("seed", range(20))
def test_however_the_bytes_arrive_the_answers_are_the_same(seed):
    chance = random.Random(seed)
    data = b"\r\n".join([VERSION, VERSION, b"", TABLES, POST.replace(b"POST", b"GET")])
    whole, drip = Talk().read(data), Talk()
    while data:
        size = chance.choice((1, 1, 2, 3, 40, 200))
        drip.read(data[:size])
        data = data[size:]
        if isinstance(drip.wish, ph._Order):
            drip.make_page()
    if isinstance(whole.wish, ph._Order):
        whole.make_page()
    assert drip.statuses == whole.statuses == [200, 200, 200, 200]
    assert drip.bodies == whole.bodies


def test_pipelined_requests_wait_for_the_page_before_them():
    talk = Talk().read(TABLES + VERSION + LAST)
    assert talk.statuses == [], "the page of the tables comes first"
    assert talk.make_page().statuses == [200, 200, 200]
    assert b"total_app_count" in talk.bodies[0]
    assert talk.wish == "over"


def test_a_page_that_comes_late_is_a_timeout_and_the_next_request_is_served():
    talk = Talk().read(TABLES + VERSION)
    assert talk.go_on(None).statuses == [504, 200]
    assert json.loads(talk.bodies[0].decode())["error"] == "ERR_TIMEOUT"
    assert talk.wish is ph._READ


def test_a_page_that_is_there_already_is_not_waited_for():
    talk = Talk(ph.StatusServer(cluster(tables=200), role="meta")).read(TABLES).make_page()
    assert talk.read(TABLES).statuses == [200, 200]
    assert len(talk.answers[0].body) > ph._JOINED_BYTES
    assert talk.answers[0].body is talk.answers[1].body, "one copy for all who ask"


@pytest.mark.parametrize("beginning", [b"", b"\r", b"\r\n", b"\r\n\r\n"])
def test_the_time_of_an_idle_connection(clock, beginning):
    talk = Talk()
    began = clock.now
    assert talk.handler.deadline == began + ph._IDLE_SECONDS
    if beginning:
        clock.now += 7
        talk.read(beginning)
        late = began + ph._IDLE_SECONDS if beginning.endswith(b"\n") else clock.now + 10
        assert talk.handler.deadline == late
    clock.now = talk.handler.deadline
    talk.read(None)
    assert talk.wish in ("over", ph._END_OUR_SIDE)
    assert talk.statuses == ([408] if beginning == b"\r" else [])


def test_blank_lines_buy_no_time(clock):
    talk = Talk()
    begun = clock.now
    while talk.wish is ph._READ and clock.now < begun + 10 * ph._IDLE_SECONDS:
        clock.now += 1
        talk.read(b"\r\n")
    assert talk.wish == "over" and talk.statuses == []
    assert clock.now == begun + ph._IDLE_SECONDS


def test_blank_lines_are_bounded_by_bytes():
    talk = Talk()
    for _ in range(ph._MAX_HEAD // 2048):
        talk.read(b"\r\n" * 1024)
    assert talk.wish is ph._READ
    assert talk.read(b"\r\n").statuses == [400]


def test_a_head_has_its_time_from_its_first_byte(clock):
    talk = Talk()
    clock.now += 60
    begun = clock.now
    for byte in VERSION[:20]:
        talk.read(bytes([byte]))
        assert talk.handler.deadline == begun + ph._HEAD_SECONDS
        clock.now += 0.4
    clock.now = begun + ph._HEAD_SECONDS
    talk.read(None)
    assert talk.statuses == [408] and talk.answers[0].last


def test_what_was_sent_while_the_process_stood_still_is_answered(clock):
    talk = Talk()
    talk.read(VERSION[:10])
    clock.now += 3600
    assert talk.read(VERSION[10:]).statuses == [200]
    talk.read(VERSION[:10])
    clock.now += 3600
    assert talk.read(VERSION[10:20]).statuses == [200, 408]


def test_half_a_head_and_the_end_is_no_request():
    assert Talk().read(VERSION[:30]).read(b"").wish == "over"


def test_a_blank_line_in_two_pieces_leaves_nothing_behind(clock):
    talk = Talk().read(b"\r").read(b"\n").read(VERSION)
    assert talk.statuses == [200]
    assert talk.handler.deadline == clock.now + ph._IDLE_SECONDS


def test_a_body_is_drained_within_bounds(clock):
    talk = Talk().read(POST)
    assert talk.statuses == [405] and talk.wish is ph._END_OUR_SIDE
    talk.go_on(None)
    for _ in range(ph._DRAIN_BYTES // ph._RECV_BYTES - 1):
        talk.read(bytes(ph._RECV_BYTES))
    assert talk.wish is ph._READ
    assert talk.read(bytes(ph._RECV_BYTES)).wish == "over"


def test_draining_ends_by_the_clock(clock):
    talk = Talk().read(POST).go_on(None)
    clock.now += ph._DRAIN_SECONDS
    assert talk.read(b"more").wish == "over"


@pytest.mark.parametrize("data, drained", [
    (LAST, False),
    (LAST + b"more", True),
    (LAST[:-2] + b"X: " + b"x" * 8000 + b"\r\nX: "
     + b"x" * (ph._RECV_BYTES - len(LAST) - 8000 - 10) + b"\r\n\r\n", True),
    (b"GET\r\n", True),
])
def test_what_may_be_unread_is_drained_before_the_end(data, drained):
    talk = Talk().read(data)
    assert len(talk.answers) == 1
    assert talk.wish is ph._END_OUR_SIDE if drained else talk.wish == "over"


def test_a_refused_connection_gets_its_reason_whatever_it_wants():
    talk = Talk(refusal=ph.PageError(503, "ERR_BUSY", "full"))
    assert talk.statuses == [503] and talk.answers[0].last
    assert talk.wish is ph._END_OUR_SIDE
    assert talk.go_on(None).read(b"").wish == "over"


@pytest.mark.parametrize("data, reusable", [
    (VERSION, True),
    (b"\r\n" + VERSION, True),
    (VERSION + VERSION, False),
    (b"GET /nosuch HTTP/1.1\r\nHost: test\r\n\r\n", False),
    (b"GET /version HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n", False),
])
def test_which_answers_may_be_given_to_equal_bytes(data, reusable):
    talk = Talk().read(data)
    assert [answer.raw for answer in talk.answers] == (
        [data] if reusable else [b""] * len(talk.answers)
    )


def test_the_request_that_came_in_pieces_is_not_known_by_its_last_piece():
    talk = Talk().read(VERSION[:-4]).read(VERSION[-4:])
    assert [answer.raw for answer in talk.answers] == [b""]


def test_an_override_sees_the_prepared_answer_and_its_failure_is_answered():
    class Handler(ph.StatusHandler):
        def respond(self, state):
            if self.path == "/mine":
                return ph.Response(200, (("Content-Length", "4"), ("ETag", '"my"')), b"mine")
            if self.path == "/nothing":
                return None
            if self.path == "/broken":
                raise RuntimeError("a page of the host")
            assert isinstance(state, ph.Cluster)
            return super().respond(state)

    server = ph.StatusServer(cluster(), role="meta")
    SERVERS.append(server)
    handler = Handler(None, ("test", 1), server, driven=True)
    steps = handler.converse()
    next(steps)

    def ask(target, method=b"GET", fields=b""):
        wish = steps.send(b"%s %s HTTP/1.1\r\nHost: test\r\n%s\r\n" % (method, target, fields))
        if isinstance(wish, ph._Order):
            wish = steps.send(server._pages.wait(wish, ph.time.monotonic() + PATIENCE))
        assert next(steps) is ph._READ
        return wish.head.split(b" ")[1], wish.head.partition(b"\r\n\r\n")[2]

    assert ask(b"/mine") == (b"200", b"mine")
    assert ask(b"/mine", b"HEAD") == (b"200", b"")
    assert ask(b"/mine", fields=b'If-None-Match: "my"\r\n') == (b"304", b"")
    assert ask(b"/mine", fields=b'If-Match: "yours"\r\n')[0] == b"412"
    assert ask(b"/broken", b"HEAD") == (b"500", b"")
    assert server.counters.last_error == "/broken raised RuntimeError"
    assert ask(b"/nothing")[0] == b"500"
    assert server.counters.last_error == "/nothing raised AttributeError"
    assert ask(b"/version")[0] == ask(b"/meta/apps")[0] == b"200"
