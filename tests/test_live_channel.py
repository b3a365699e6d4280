"""LiveCluster: finding the primary and following it; servers that are slow, dead or cut off."""

import contextlib
import socket
import threading
import time

import pytest

import pegasus_http as ph
import replay
from fakes import (
    PAGES,
    QUICK,
    STATE,
    MetaAt,
    Resolver,
    check_error,
    check_pages,
    expected,
    live,
    mute,
    one_page,
    reading,
    serving,
    until,
)
from replay import LIST_NODES, QUERY, Meta
from support import PATIENCE, at_once, get, wait_until


def test_standby_first_in_the_list(leader):
    with Meta(replay.standby()) as standby, serving(standby, leader) as server:
        check_pages(server, STATE)


@pytest.mark.parametrize("new", [False, True])
def test_forward_address_outside_the_list(leader, new):
    with Meta(replay.standby(leader.address, new)) as standby, serving(standby) as server:
        check_pages(server, STATE)
        assert standby.connections == 1, "the leader is remembered"


def test_forward_address_by_host_name(leader):
    with Meta(replay.standby("localhost:%d" % leader.port)) as standby:
        assert one_page(standby).status == 200


def test_stale_forward_address_goes_on_with_the_list(leader):
    with replay.refused() as dead, Meta(replay.standby(dead)) as standby:
        assert one_page(standby, leader).status == 200


def test_forward_to_itself():
    with Meta(replay.standby()) as standby:
        standby.answers = replay.standby(standby.address)
        check_error(one_page(standby), 503, "ERR_SERVICE_NOT_ACTIVE", standby.address)
        assert len(standby.requests) < 20


def test_forward_loop_ends():
    with Meta(replay.standby()) as one, Meta(replay.standby(one.address)) as two:
        one.answers = replay.standby(two.address)
        check_error(one_page(one, two), 503, "ERR_SERVICE_NOT_ACTIVE")
        assert len(one.requests) + len(two.requests) < 40


@pytest.mark.parametrize("hops, status", [(1, 200), (3, 200), (4, 503)])
def test_three_hops_at_most(leader, hops, status):
    with contextlib.ExitStack() as stack:
        target = leader
        for _ in range(hops):
            target = stack.enter_context(Meta(replay.standby(target.address)))
        assert one_page(target).status == status
        assert (len(leader.requests) > 0) == (status == 200)


def test_no_leader_known():
    with Meta(replay.standby()) as one, Meta(replay.standby()) as two:
        answer = one_page(one, two)
    check_error(answer, 503, "ERR_SERVICE_NOT_ACTIVE")
    assert answer.headers["retry-after"] == "1"


def test_leader_not_ready():
    error = "ERR_SERVICE_NOT_ACTIVE"
    with Meta(replay.failing(error)) as meta:
        answer = check_error(one_page(meta, timeout=QUICK), 503, error, meta.address)
        assert answer.headers["retry-after"] == "1"
        assert len(meta.requests) < 20


def test_leader_becomes_ready():
    not_ready = replay.failing("ERR_SERVICE_NOT_ACTIVE")
    with Meta(not_ready) as meta, serving(meta, timeout=QUICK) as server:
        assert get(server.port, "/meta/nodes").status == 503
        meta.answers = replay.synthetic(STATE)
        wait_until(lambda: get(server.port, "/meta/nodes").status == 200, "ready")


@pytest.mark.parametrize("failure", [
    replay.failing("ERR_SERVICE_NOT_ACTIVE"), replay.standby(), replay.refusing("ERR_BUSY"),
], ids=["not active", "standby", "busy"])
def test_back_off_ends_however_many_pages_are_polled(failure):
    """An attempt that was spared does not put off the next one."""
    with Meta(failure) as meta, serving(meta, timeout=2.0) as server:
        def poll():
            return [get(server.port, target).status for target in PAGES]
        assert set(poll()) <= {502, 503}
        meta.answers = replay.synthetic(STATE)
        wait_until(lambda: poll() == [200] * len(PAGES), "all pages are back")


def test_back_off_ends_after_a_second_at_most(monkeypatch):
    assert ph._RETRY_SECONDS <= 1.0
    monkeypatch.setattr(ph, "_RETRY_SECONDS", 0.05)
    with replay.refused() as dead, reading(dead) as source:
        for _ in range(5):
            state, until = source.read("overview")
            assert isinstance(state, ph.PageError)
            assert until - time.monotonic() <= ph._RETRY_SECONDS
            wait_until(lambda until=until: time.monotonic() > until, "the next attempt")


def test_starting_server_without_handlers_is_passed_over(leader):
    with Meta(replay.refusing("ERR_HANDLER_NOT_FOUND")) as starting:
        assert one_page(starting, leader).status == 200


def test_starting_server_alone():
    with Meta(replay.refusing("ERR_HANDLER_NOT_FOUND")) as starting:
        answer = one_page(starting, timeout=QUICK)
        assert answer.status in (502, 503)
        check_error(answer, answer.status, None, starting.address)


def test_leader_dies_and_the_next_takes_over():
    with Meta(replay.synthetic(STATE)) as first, Meta(replay.standby()) as second, \
            serving(first, second) as server:
        check_pages(server, STATE)
        first.close()
        second.answers = replay.synthetic(STATE)
        check_pages(server, STATE)


def test_leader_is_demoted_between_pages(leader):
    with Meta(replay.synthetic(STATE)) as first, serving(first, leader) as server:
        check_pages(server, STATE)
        assert leader.requests == []
        first.answers = replay.standby(leader.address)
        check_pages(server, STATE)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("target", ["/meta/apps?detail=true", "/meta/nodes?detail=true"])
def test_leader_changes_in_mid_page(leader, target, calls, known):
    """After so many calls the leader is a standby; the page is whole and fresh all the same."""
    forward = replay.standby(leader.address if known else None)
    with Meta(replay.switching(replay.synthetic(STATE), calls, forward)) as first:
        answer = one_page(first, leader, target=target)
    assert (answer.status, answer.body) == (200, expected(STATE, target))


@pytest.mark.parametrize("answers", range(6))
@pytest.mark.parametrize("target", ["/meta/apps?detail=true", "/meta/nodes?detail=true"])
def test_leader_dies_in_mid_page(leader, target, answers):
    with Meta(replay.synthetic(STATE), replay.closed_after_answers(answers)) as first:
        answer = one_page(first, leader, target=target)
    assert (answer.status, answer.body) == (200, expected(STATE, target))


@pytest.mark.parametrize("calls", range(3, 7))
def test_no_mixture_of_two_leaders(calls):
    """A page that began at one leader and ended at another is of the second alone."""
    changed = replay.make_state()
    for app in changed["apps"]:
        for row in app["partitions"]:
            row.update(ballot=9, primary=None)
    with Meta(replay.synthetic(changed)) as second:
        first = replay.switching(replay.synthetic(STATE), calls, replay.standby(second.address))
        with Meta(first) as meta:
            answer = one_page(meta, second, target="/meta/apps?detail=true")
    assert answer.body == expected(changed, "/meta/apps?detail=true")


def test_end_of_file_passes_over_to_the_next(leader):
    for count in (0, 3, 50):
        with Meta(replay.synthetic(STATE), replay.closed_after(count)) as broken:
            assert one_page(broken, leader).status == 200


def test_end_of_file_on_a_reused_connection(leader):
    with serving(leader) as server:
        check_pages(server, STATE)
        leader.drop()
        check_pages(server, STATE)
        leader.fault = replay.once(replay.closed_after(0))
        check_pages(server, STATE)


@pytest.mark.parametrize("count", [0, 3, 50])
def test_end_of_file_every_time(leader, count):
    leader.fault = replay.closed_after(count)
    check_error(one_page(leader), 502, "ERR_NETWORK_FAILURE", leader.address)
    assert leader.connections < 10


def test_refused():
    with replay.refused() as one, replay.refused() as two:
        check_error(one_page(one, two), 502, "ERR_NETWORK_FAILURE", one, two)


def test_refused_first(leader):
    with replay.refused() as dead, serving(dead, leader) as server:
        check_pages(server, STATE)


def test_silence(leader):
    leader.fault = replay.silent
    start = time.monotonic()
    check_error(one_page(leader, timeout=QUICK), 504, "ERR_TIMEOUT", leader.address)
    assert QUICK * 0.9 < time.monotonic() - start < QUICK + 5


def test_silence_of_all(leader):
    leader.fault = replay.silent
    with Meta(replay.synthetic(STATE), replay.silent) as other:
        start = time.monotonic()
        answer = one_page(leader, other, timeout=QUICK)
        check_error(answer, 504, "ERR_TIMEOUT", leader.address, other.address)
        assert time.monotonic() - start < QUICK + 5
        assert min(len(leader.requests), len(other.requests)) > 0, "both were asked"


def test_silent_first_and_good_second_within_the_timeout(leader):
    def check(fault):
        with Meta(replay.synthetic(STATE), fault) as mute:
            answer = one_page(mute, leader, target="/meta/apps?detail=true", timeout=2.4)
        assert (answer.status, answer.body) == (200, expected(STATE, "/meta/apps?detail=true"))

    at_once(check, [[replay.silent], [replay.truncated(20)], [replay.lying(1 << 20)]])


def test_known_leader_falls_silent(leader):
    with Meta(replay.synthetic(STATE)) as first, serving(first, leader, timeout=1.6) as server:
        assert get(server.port, "/meta/nodes").status == 200
        first.fault = replay.silent
        assert get(server.port, "/meta/nodes").status == 200
        assert leader.requests


def test_queries_fall_silent(leader):
    leader.fault = replay.only(QUERY, replay.silent)
    answer = one_page(leader, target="/meta/apps?detail=true", timeout=QUICK)
    check_error(answer, 504, "ERR_TIMEOUT", leader.address)


def test_drip_does_not_outlive_the_timeout(leader):
    """Bytes that keep coming do not extend the deadline."""
    def drip(pieces):
        for piece in replay.bytewise(pieces):
            time.sleep(0.05)
            yield piece
    leader.fault = drip
    start = time.monotonic()
    check_error(one_page(leader, timeout=QUICK), 504, "ERR_TIMEOUT")
    assert time.monotonic() - start < QUICK + 5


@pytest.mark.parametrize("error", ["ERR_ACL_DENY", "ERR_UNDER_RECOVERY", "ERR_INVENTED_LATER"])
def test_other_errors_pass_verbatim(error):
    with Meta(replay.failing(error)) as meta:
        for target in ("/meta/nodes", "/meta/cluster", "/meta/apps"):
            check_error(one_page(meta, target=target, timeout=2.0), 502, error, meta.address)


def test_error_of_the_rpc_layer_passes_verbatim():
    with Meta(replay.refusing("ERR_BUSY")) as meta:
        check_error(one_page(meta, timeout=2.0), 502, "ERR_BUSY", meta.address)


# ---- a leader that is slow, but good ------------------------------------------------------------

@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("new", [False, True])
def test_slow_leader_that_the_standbys_name(place, new):
    """It answers only after others were asked in its place; what they say leads back to it, and
    its first answer is still good."""
    with Meta(replay.synthetic(STATE)) as slow, Meta(replay.standby(slow.address, new)) as one, \
            Meta(replay.standby(slow.address, new)) as two:
        servers = [one, two]
        servers.insert(place, slow)
        if place == 0:
            slow.fault = until(lambda: one.requests)
        answer = one_page(*servers, target="/meta/apps?detail=true", timeout=2.4)
        assert (answer.status, answer.body) == (200, expected(STATE, "/meta/apps?detail=true"))
        assert slow.connections == 1
        assert slow.count(LIST_NODES) == 1, "nothing is asked twice"


def test_slow_leader_gets_the_time_that_others_do_not_need(leader):
    begin = time.monotonic()
    leader.fault = replay.once(until(lambda: time.monotonic() > begin + 1.3))
    with replay.refused() as dead:
        assert one_page(leader, dead, timeout=2.4).status == 200, "half of 2.16 s was not enough"
    assert leader.connections == 1


def test_known_leader_that_becomes_slow(leader):
    with Meta(replay.standby(leader.address)) as one, Meta(replay.standby()) as two, \
            serving(one, two, leader, timeout=2.4) as server:
        check_pages(server, STATE)
        asked = len(one.requests)
        leader.fault = until(lambda: len(one.requests) > asked)
        assert get(server.port, "/meta/nodes").status == 200


def test_standbys_that_name_a_silent_leader_do_not_hide_the_new_one(leader):
    with mute() as dead, Meta(replay.standby(dead)) as one:
        assert one_page(dead, one, leader, timeout=3.0).status == 200


def test_slow_leader_is_asked_again_whatever_a_standby_says_of_a_dead_one(leader):
    with replay.refused() as dead, Meta(replay.standby(dead)) as one:
        leader.fault = replay.once(until(lambda: one.requests))
        assert one_page(leader, dead, one, timeout=2.4).status == 200


@pytest.mark.parametrize("address", ["..:1", "1" * 64 + ":1", "a..b:1", "[:::::]:1"])
def test_an_address_that_is_none_is_passed_over(leader, address):
    assert one_page(address, leader).status == 200
    with Meta(replay.standby(address)) as standby:
        assert one_page(standby, leader).status == 200


def test_standby_that_answers_by_halves_does_not_hide_the_leader(leader):
    """That it is a standby is clear, who leads is not: that answer never comes."""
    with Meta(replay.standby()) as one:
        one.fault = replay.only(QUERY, replay.silent)
        assert one_page(one, leader, timeout=2.0).status == 200


# ---- names --------------------------------------------------------------------------------------

@pytest.fixture
def resolver(monkeypatch):
    """Call it with the hosts that there are."""
    def install(**hosts):
        made = Resolver({name + ".test": found for name, found in hosts.items()})
        monkeypatch.setattr(socket, "getaddrinfo", made)
        return made
    return install


@pytest.mark.parametrize("first", ["silent", "refused"])
def test_second_address_of_a_name(leader, resolver, first):
    """The first one takes no more than its share."""
    resolver(meta=["127.0.0.2", "127.0.0.1"])
    with contextlib.ExitStack() as stack:
        if first == "silent":
            stack.enter_context(mute("127.0.0.2", leader.port))
        server = stack.enter_context(serving("meta.test:%d" % leader.port, timeout=1.6))
        check_pages(server, STATE)


def test_name_of_a_standby_and_of_the_leader(leader, resolver):
    resolver(meta=["127.0.0.2", "127.0.0.1"])
    standby = MetaAt(replay.standby(), host="127.0.0.2", port=leader.port)
    with standby, serving("meta.test:%d" % leader.port) as server:
        check_pages(server, STATE)


def test_dead_addresses_share_the_time(resolver):
    hosts = ["127.0.0.%d" % n for n in range(2, 6)]
    resolver(meta=hosts)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(mute(hosts[0])).rpartition(":")[2]
        for host in hosts[1:]:
            stack.enter_context(mute(host, int(port)))
        begin = time.monotonic()
        answer = one_page("meta.test:" + port, timeout=QUICK)
    assert time.monotonic() - begin < QUICK + 5
    check_error(answer, 504, "ERR_TIMEOUT", "meta.test:" + port, *hosts)


@pytest.mark.parametrize("behind", [True, False])
def test_resolver_that_hangs(leader, resolver, behind):
    """It costs its own share, is not asked twice at once, and nobody waits for it in the end."""
    gate = threading.Event()
    asked = resolver(slow=gate).asked
    servers = ["slow.test:34601"] + [leader] * behind
    with reading(*servers, timeout=1.0 if behind else QUICK) as source:
        for _ in range(2):
            state, again = source.read("overview")
            if behind:
                assert state.apps
                source._primary().leader = None  # as if it were the first time
            else:
                assert (state.status, state.error) == (504, "ERR_TIMEOUT")
                assert "slow.test:34601: the host name is not resolved in time" in str(state)
            wait_until(lambda again=again: time.monotonic() > again, "the next attempt")
        assert asked == ["slow.test"]
        assert sum(one.name == "pegasus-http-names" for one in threading.enumerate()) == 1
        gate.set()
        wait_until(lambda: all(one.name != "pegasus-http-names" for one in threading.enumerate()),
                   "its thread ends")


def test_name_that_moves(leader, resolver):
    made = resolver(meta=["127.0.0.2"])
    with serving("meta.test:%d" % leader.port) as server:
        check_error(get(server.port, "/meta/nodes"), 502, None, "meta.test", "127.0.0.2", "refused")
        made.hosts["meta.test"] = ["127.0.0.1"]
        wait_until(lambda: get(server.port, "/meta/nodes").status == 200, "the new address")


# ---- the connection -----------------------------------------------------------------------------

def test_sequence_numbers_begin_anew(leader):
    with reading(leader) as source:
        first = source()
        source._primary()._channels[leader.address]._sequence = 2**31 - 3
        assert source() == first
    assert leader.connections == 1
    numbers = [one.sequence for one in leader.requests]
    assert max(numbers) == 2**31 - 1
    assert 0 <= min(numbers) < 9


def test_nothing_that_is_sent_can_raise_sigpipe(leader, monkeypatch):
    flags = []

    class Socket(socket.socket):
        def sendall(self, data, flag=0):
            if threading.current_thread() is threading.main_thread():  # not the fake server
                flags.append(flag)
            return super().sendall(data, flag)

        send = None  # whoever wants it has to be looked at here

    source = live(leader)
    monkeypatch.setattr(socket, "socket", Socket)
    source()
    monkeypatch.undo()
    source.rest()
    assert len(flags) > 1
    assert set(flags) == {socket.MSG_NOSIGNAL}


def test_repr_tells_the_servers_and_the_primary(leader):
    with Meta(replay.standby(leader.address)) as standby, reading(standby, leader) as source:
        assert standby.address + "," + leader.address in repr(source)
        source()
        assert "primary: " + leader.address in repr(source)


# ---- what the hints say -------------------------------------------------------------------------

NO_PRIMARY = "no primary meta server answers: "
UNREACHABLE = "no meta server is reachable: "
NODES = "the answer about nodes "


def nodes(result, error="ERR_OK"):
    """A cluster whose list of nodes is this one."""
    answer = replay.frame(LIST_NODES, b"\x0c\0\0" + result, error)
    return replay.overriding(replay.synthetic(STATE), {LIST_NODES: answer})


@pytest.mark.parametrize("answers, fault, status, hint", [
    (replay.standby(), None, 503, NO_PRIMARY + "META: a standby that knows no primary"),
    (replay.standby("127.0.0.1:1"), None, 503,
     NO_PRIMARY + "META: a standby of 127.0.0.1:1; 127.0.0.1:1: connection refused"),
    (replay.failing("ERR_SERVICE_NOT_ACTIVE"), None, 503,
     NO_PRIMARY + "META: ERR_SERVICE_NOT_ACTIVE: still starting"),
    (replay.replica_server(), None, 503,
     NO_PRIMARY + "META: ERR_HANDLER_NOT_FOUND: a replica server, or still starting"),
    (replay.failing("ERR_BUSY"), None, 502, "META: the answer about apps is ERR_BUSY"),
    (replay.synthetic(STATE), replay.silent, 504,
     "no meta server answered in time: META: timed out"),
    (replay.synthetic(STATE), replay.HTTP_400, 502,
     UNREACHABLE + "META: not a meta server's answer: b'HTTP/1.1'"),
    (replay.synthetic(STATE), replay.closed_after(9), 502,
     UNREACHABLE + "META: closed the connection without an answer"),
    (nodes(b"", "ERR_BUSY"), None, 502, "META: " + NODES + "is ERR_BUSY"),
    (nodes(b"\x0c\0\1" + replay.octets(b"ERR_OK") + b"\0"), None, 502,
     "META: " + NODES + "makes no sense: no 'infos'"),
    (nodes(b"\x0c\0\1" + replay.octets(b"E" * 200) + b"\0"), None, 502,
     "META: " + NODES + "is " + "E" * 100),
    (nodes(b"\x0c\0\1" + replay.octets(b"E" * 65537)), None, 502,
     "META: " + NODES + "makes no sense: a text of impossible length"),
    (nodes(b""), None, 502, "META: " + NODES + "makes no sense: a struct without end"),
    (nodes(b"\x0c\0\1\0\0\0\5ab"), None, 502,
     "META: " + NODES + "makes no sense: the answer is cut off"),
    (nodes(b"\x0c\0\1" + replay.octets(b"ERR_OK") + b"\x0f\0\2\x0c\x7f\xff\xff\xff"), None, 502,
     "META: " + NODES + "makes no sense: a list of impossible length or type"),
    (nodes(b"\x0c\0\1" + replay.octets(b"ERR_OK") + b"\x0c\0\x63\0"), None, 502,
     "META: " + NODES + "makes no sense: field 99 is unknown and of type [12]"),
])
def test_hints(answers, fault, status, hint):
    with Meta(answers) as meta:
        meta.fault = fault
        answer = one_page(meta, timeout=QUICK if status == 504 else PATIENCE)
    assert (answer.status, answer.json["hint_message"]) == (
        status, hint.replace("META", meta.address))


def test_hint_of_a_port_that_refuses():
    with replay.refused() as dead:
        assert one_page(dead).json["hint_message"] == UNREACHABLE + dead + ": connection refused"
