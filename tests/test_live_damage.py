"""LiveCluster: answers that are torn, lie, are damaged or hostile."""

import random
import socket
import struct
import time
import tracemalloc

import pytest

import pegasus_http as ph
import replay
from fakes import (
    LONG,
    PAGES,
    STATE,
    check_error,
    expected,
    one_page,
    reading,
    serving,
)
from replay import CLI, CLUSTER_INFO, LIST_APPS, LIST_NODES, QUERY, Meta
from support import get

SMALL = replay.make_state(tables=2, partitions=2, nodes=3)


FRAMES = {code: replay.synthetic(SMALL)(code, argument) for code, argument in (
    (LIST_APPS, 0), (LIST_NODES, 0), (CLUSTER_INFO, None), (QUERY, b"table1"))}


def outcome(meta):
    """What asking for everything gives: a Cluster whose pages can be built, or a page's error."""
    with reading(meta) as source:
        try:
            state = source()
        except ph.PageError as error:
            state = error
    failed = isinstance(state, ph.PageError)
    for target in PAGES:
        answer = ph.respond(state, "GET", target)
        assert answer.status in ((502, 503, 504) if failed else (200, 404, 503)), (target, answer)
    return state


@pytest.mark.parametrize("code", FRAMES)
def test_cut_at_any_byte(code):
    """At every byte of the head, at the last one, and at some in between."""
    size = len(FRAMES[code])
    with Meta(replay.synthetic(SMALL)) as meta:
        whole = outcome(meta)
        for count in range(size) if LONG else (*range(40), *range(40, size, 7), size - 1):
            meta.fault = replay.only(code, replay.closed_after(count))
            assert outcome(meta).status == 502, count
        meta.fault = None
        assert outcome(meta) == whole


@pytest.mark.parametrize("code", FRAMES)
def test_cut_once_on_a_connection_in_use_is_retried(code):
    with Meta(replay.synthetic(SMALL)) as meta, reading(meta) as source:
        whole = source()
        for count in range(0, len(FRAMES[code]), 7):
            meta.fault = replay.once(replay.only(code, replay.closed_after(count)))
            assert source() == whole, count


@pytest.mark.parametrize("code", FRAMES)
def test_one_byte_flipped_on_the_wire(code):
    """An error or a valid state, of which every page can be built."""
    def last(pieces):
        yield from pieces
        yield replay.CLOSE
    with Meta(replay.synthetic(SMALL)) as meta:
        for position in range(0, len(FRAMES[code]), 1 if LONG else 3):
            flip = replay.flipped(position, (0x01, 0x80, 0xFF)[position % 3])
            meta.fault = replay.only(code, replay.chain(flip, last))
            outcome(meta)


def read_query(decoder, listed=None):
    return ph._read_result(decoder, ph._CONFIGURATION)


READERS = {LIST_APPS: ph._read_apps, LIST_NODES: ph._read_nodes, CLUSTER_INFO: ph._read_info,
           QUERY: read_query, CLI: ph._read_server_info}


def decoded(code, frame):
    """What the codec makes of a frame; raised may only be what concerns all answers of a server."""
    call = ph._Rpc("x", code, b"", READERS[code])
    head = ph._REPLY_HEAD.match(frame[4:])
    if head is None:
        return None
    try:
        decoder = ph._Decoder(frame[4 + head.end():])
        answer = ph._Reply(call, "127.0.0.1:1", head.group(1).decode(), b"", 0.0)
        return ph._value(answer, decoder)
    except ph._Refused as error:
        return error


def samples():
    """Frames of every kind: (code, frame)."""
    for new in (False, True):
        answers = replay.synthetic(SMALL, new, replay.unknown_scalars() if new else b"")
        for code, argument in ((LIST_APPS, 0), (LIST_NODES, 0), (CLUSTER_INFO, None),
                               (QUERY, b"table1"), (CLI, "server-info")):
            yield code, answers(code, argument)
        yield QUERY, replay.forward_query("10.0.0.1:34601", new)
    yield CLI, replay.cli(replay.OLD_INFO)


def test_every_byte_flipped_in_the_codec():
    masks = range(1, 256) if LONG else (0x01, 0x0F, 0x80)
    for code, frame in samples():
        assert not isinstance(decoded(code, frame), (ph.PageError, type(None)))
        for position in range(len(frame)):
            for mask in masks:
                flip = bytes([frame[position] ^ mask])
                decoded(code, frame[:position] + flip + frame[position + 1:])


@pytest.mark.parametrize("seed", range(50 if LONG else 5))
def test_arbitrary_bytes_in_the_codec(seed):
    """Noise, noise behind a good head, and real answers cut, repeated and put together anew."""
    rng = random.Random(seed)
    frames = list(samples())
    for _ in range(400):
        code, frame = rng.choice(frames)
        head = frame[:replay.sequence_at(frame) + 4]
        noise = bytes(rng.choice((0, 1, 2, 8, 11, 12, 13, 15, rng.randrange(256)))
                      for _ in range(rng.randrange(200)))
        other = rng.choice(frames)[1]
        cut = rng.randrange(len(frame))
        for data in (noise, head + noise, frame[:cut] + noise, frame[:cut] + frame[cut // 2:],
                     frame[:cut] + other[rng.randrange(len(other)):], frame + noise):
            decoded(code, data)


LENGTHS = (-(1 << 31), -1, 0, 3, 4, 8, 11, 40, (1 << 31) - 1, (1 << 28) + 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_lying_length_is_seen_at_once(leader, length):
    """Not after the timeout: the connection stays open and says nothing more."""
    leader.fault = replay.lying(length)
    check_error(one_page(leader), 502, None, leader.address)


@pytest.mark.parametrize("more", [-1, -20, 1, 1000])
def test_length_a_little_wrong(leader, more):
    leader.fault = replay.chain(
        lambda pieces: (struct.pack(">i", len(piece) + more) + piece[4:] for piece in pieces),
        replay.closed_after(1 << 20))
    check_error(one_page(leader), 502, None, leader.address)


@pytest.mark.parametrize("count", [-(1 << 31), -7, -1, 10, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("marker", [
    b"\x0f\x00\x02\x0c", b"\x0f\x00\x02\x0b", b"\x0d\x00\x06\x0b\x0b", b"\x0b\x00\x03",
    b"\x0f\x00\x05\x0c", b"\x0f\x00\x0a\x0c"])
def test_lying_counts_inside(leader, marker, count):
    """Counts of lists and maps and lengths of strings: never more memory than was received."""
    hit = []

    def lie(piece):
        at = piece.find(marker, replay.sequence_at(piece)) + len(marker)
        if at < len(marker):
            return piece
        hit.append(at)
        return piece[:at] + struct.pack(">i", count) + piece[at + 4:]
    leader.fault = lambda pieces: (lie(piece) for piece in pieces)
    tracemalloc.start()
    try:
        found = outcome(leader)
        assert isinstance(found, ph.PageError) or found.apps[0].partitions is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert hit


def test_garbage(leader):
    for data in (b"\0" * 64, b"\xff" * 64, random.Random(1).getrandbits(512).to_bytes(64, "big"),
                 b"SSH-2.0-OpenSSH_9\r\n", b"\x15\x03\x01\0\2\2\n"):
        leader.fault = replay.raw(data)
        check_error(one_page(leader), 502, None, leader.address)


def test_trailing_and_unasked_frames(leader):
    """An answer that nobody asked for is ignored or an error, never taken for another one."""
    def doubled(pieces):
        for piece in pieces:
            yield piece + piece
    leader.fault = doubled
    with serving(leader) as server:
        for target in PAGES * 2:
            answer = get(server.port, target)
            assert answer.status == 502 or answer.body == expected(STATE, target), target


# ---- answers of any size ------------------------------------------------------------------------

ROW = replay.partition(1, 0, {"ballot": 3, "max_replica_count": 3, "primary": None}, new=False)


def query_of(row, count):
    """The result of a query: so many of these partitions."""
    fields = (replay.field(replay.STRUCT, 1, replay.octets("ERR_OK")) + replay.i32(2, 1)
              + replay.field(replay.LIST, 5, struct.pack(">bi", replay.STRUCT, count)))
    return replay.field(replay.STRUCT, 0, fields + row * count + b"\0") + b"\0"


def test_memory_follows_from_the_size_of_the_frame():
    body = query_of(ROW, 10000)
    tracemalloc.start()
    try:
        assert len(read_query(ph._Decoder(body))["partitions"]) == 10000
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("row", [
    b"\0", replay.i64(2, 1) + b"\0",
    b"".join((replay.i64(2, 1), replay.i32(3, 1), replay.field(replay.STRUCT, 4, bytes(8)),
              replay.sequence_of(5, replay.STRUCT, []), b"\0")),
], ids=["empty", "ballot", "least that can be shown"])
def test_rows_smaller_than_a_server_sends_are_refused_unread(row):
    body = query_of(row, 1000000)
    tracemalloc.start()
    try:
        with pytest.raises(ph._WireError):
            read_query(ph._Decoder(body))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


LONG_LISTS = {
    "partitions": (read_query, query_of(ROW, 20000)),
    "texts": (ph._read_info, replay.cluster_info({"k%d" % n: "v" for n in range(100000)})),
    "unknown": (ph._read_info, replay.cluster_info(
        {}, extra=replay.sequence_of(9, replay.STRING, [replay.octets("x")] * 200000))),
    "environment": (ph._read_apps, replay.list_apps(
        [{"app_name": "x", "app_id": 1, "partition_count": 1,
          "envs": {"k%d" % n: "v" for n in range(100000)}}])),
}
for name in ("texts", "unknown", "environment"):
    read, data = LONG_LISTS[name]
    LONG_LISTS[name] = (read, data[replay.sequence_at(data) + 4:])


@pytest.mark.parametrize("read, body", LONG_LISTS.values(), ids=LONG_LISTS)
def test_decoding_pauses_and_ends_at_the_deadline(read, body, monkeypatch):
    pauses = []
    monkeypatch.setattr(ph, "_pause_if_due", lambda: pauses.append(True))
    read(ph._Decoder(body))
    assert len(pauses) > len(body) / ph._PAUSE_BYTES / 2
    with pytest.raises(socket.timeout):
        read(ph._Decoder(body, deadline=time.monotonic()))


def test_a_text_where_a_version_was_expected_has_a_limit(leader):
    leader.answers = replay.overriding(
        leader.answers, {CLI: replay.cli('{"version":[' + "{}," * 100000 + "0]}")})
    with serving(leader) as server:
        assert get(server.port, "/meta/nodes").status == 200
