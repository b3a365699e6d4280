# SPDX-FileCopyrightText: The pegasus_http authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP status interface of Apache Pegasus, in one file of standard-library Python.

Embed it in five lines:

>>> import pegasus_http as ph
>>> apps = [ph.App(1, "temp", [ph.Partition(primary="10.0.0.1:34801")], max_replica_count=1)]
>>> server = ph.start(ph.Cluster(apps, [ph.Node("10.0.0.1:34801")]), role="meta", port=0)
>>> server.publish(ph.Standby("10.0.0.2:34601"))    # any thread, any time, never blocks
>>> server.stop()

Run it: ``python -m pegasus_http --role meta`` serves a built-in sample, ``--cluster H:P,H:P`` a
running Pegasus cluster, ``--state FILE`` a saved one; ``--help`` tells the rest.

Mount it: `respond` is the whole application as one pure function, `StatusHandler` the same as a
handler class for any `http.server`.

Vendor it: copy this file anywhere, under any name. Importing it starts no thread, opens nothing,
configures nothing and reads no environment variable.

Threads: `StatusServer.publish` and `StatusServer.stop` may be called from any thread, and from a
page or a source. The model (`Cluster` and what it holds) is immutable and may be shared freely.

The pages are those of Pegasus's first HTTP interface, of August 2019; `flat` selects later shapes.
"""

from __future__ import annotations  # else every annotation is worked out at each import

import collections
import contextlib
import email.utils
import errno
import functools
import itertools
import math
import operator
import os
import re
import reprlib
import select
import socket
import stat
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from urllib.parse import quote, unquote_to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:  # argparse, json, logging and typing are twice the import of all the rest
    import argparse
    import json
    import logging
    from typing import Any, Dict, NamedTuple, Tuple, TypeVar, Union

    _State = Union["Cluster", "Standby", "PageError", None]
    _AnySource = Union["Cluster", "Standby", Callable[[], Any], "_Source", None]
    _Page = Dict[str, Any]  # of JSON-able values and, for long objects, iterators of their parts
    _Counts = Dict[str, "collections.Counter[Any]"]
    _T = TypeVar("_T")
    _Headers = Tuple[Tuple[str, str], ...]
    _Conversation = Generator[object, Any, None]
    _Reader = Callable[["_Decoder"], Any]
    _Type = Tuple[int, _Reader]
    _Fields = Dict[bytes, Tuple[str, _Reader]]
    _Work = Callable[["_Channel"], None]

else:

    class _NamedTupleMeta(type):  # `typing` has the same, but its import takes 3 ms (measured)
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            fields = body.get("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            base = collections.namedtuple(name, fields, defaults=defaults)
            return type(name, (base,), {"__slots__": (), **body})

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})


__version__ = "1.0.0"
__all__ = ["App", "Cluster", "LiveCluster", "Node", "PageError", "Partition", "ROUTES", "Response"]
__all__ += ["Standby", "StateFile", "StatusHandler", "StatusServer", "main", "respond", "start"]

# --- limits ---------------------------------------------------------------------------------------
# All are read when they are used: assign to the module's attribute before `start` to change one.

_MAX_LINE = 8 * 1024  # bytes of the request line or of one field line: what most servers allow
_MAX_HEAD = 32 * 1024  # bytes of a whole head: four full lines, cookies of a shared host included
_MAX_FIELDS = 100  # field lines of a head: http.client's own limit
_MAX_PARAMETERS = 100  # of a query: 4,000 would keep all others waiting for 20 ms (measured)
_MAX_ACCEPT = 1000  # characters of an Accept field: browsers send 200
_HEAD_SECONDS = 10.0  # from the first byte of a head to its last: a drip feed ends here
_IDLE_SECONDS = 75.0  # without a request: longer than the 60 s of load balancers and pollers
_WRITE_SECONDS = 30.0  # from the start of an answer to its last byte: 300 KB at 10 KB/s
_DRAIN_BYTES = 16 * 1024 * 1024  # thrown away after the last answer, which a reset would overtake
_DRAIN_SECONDS = 5.0  # for this
_STOP_SECONDS = 1.0  # what answers under way are given when the server stops
_GLANCE_SECONDS = 0.05  # what /version and /health wait for a source that has never answered
_ACCEPT_PAUSE_SECONDS = 0.1  # no accept for so long when descriptors have run out: no spinning
_MAX_SECONDS = 86400.0  # of max_age and timeout, the latter travels as 32-bit milliseconds
_REPORT_SECONDS = 10.0  # the same trouble is logged no more often: clients cannot fill a disk
_MAX_CONNECTIONS = 4096  # when the host names no other limit; an idle one costs about 2 KB
_REFUSED_AT_ONCE = 64  # clients above the limit who are being told so; others are closed
_LOOKED_AT_FOR_ROOM = 16  # idle connections that are looked at to find one that may be closed
_BACKLOG = 1024  # a burst of 1,000 connections is answered in 31 ms; with 128 it takes a second
_ACCEPTS_PER_TURN = 64  # connections accepted before those that are open have their turn
_RECV_BYTES = 16 * 1024  # of one receive
_JOINED_BYTES = 16 * 1024  # of a body that is sent as one piece with its head
_UNSENT_BYTES = 32 * 1024 * 1024  # of different pages that are being sent; above it the oldest end
_KNOWN_REQUESTS = 256  # requests that are answered by their bytes; a poller sends one or two
_KNOWN_BYTES = 2 * 1024  # of such a request: 256 of these are 512 KB
_PAGE_CACHE_BYTES = 32 * 1024 * 1024  # of finished pages that are kept with one state
_GZIP_BYTES = 1024  # smaller bodies fit into one packet anyway
_KEPT_STATES = 1024  # answers of a source: a live cluster has one for each table that is asked for
_WAITING_PAGES = 256  # different pages that wait to be made: a few seconds' work
_WORKER_IDLE_SECONDS = 30.0  # then the thread ends and connections to meta servers are closed
_STATE_BYTES = 64 * 1024 * 1024  # a state file: 5,000 tables x 64 partitions x 3 replicas
_FRAME_BYTES = 32 * 1024 * 1024  # an RPC answer: a table of 125,000 partitions
_MAX_ITEMS = 250_000  # of a list in it: more partitions than Pegasus takes for a table
_MAX_TEXT = 64 * 1024  # bytes of a text in it: 4 MB that are no UTF-8 took 2 s (measured)
_MAX_HOPS = 3  # forward addresses followed: the named leader may have lost its lease since
_WINDOW = 64  # requests under way to a meta server: 8 KB of them fit every socket buffer
_PAUSE_BYTES = 16 * 1024  # what is decoded between two looks at the clock: a millisecond
_RETRY_SECONDS = 0.2  # a failed attempt is followed by no other for so long: polls are no flood
_UNFINISHED_SECONDS = 60.0  # a read of a cluster that ran out of time is continued within so long
_MAX_REPORTS = 1000  # different texts that are remembered as logged

_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)  # a host may have the signal at its default


# === 2. Checks and text ===========================================================================


@functools.lru_cache(maxsize=8192)
def _is_short_address(text: str) -> bool:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    return match is not None and 0 < int(match.group(1)) < 65536


def _is_address(text: str) -> bool:
    return len(text) <= 300 and _is_short_address(text)  # the cache keeps what it was asked about


@functools.lru_cache(maxsize=None)
def _encoder(pretty: bool = False) -> json.JSONEncoder:
    import json  # here: 2 ms of the import of this module

    style: dict[str, Any] = {"indent": 4} if pretty else {"separators": (",", ":")}
    return json.JSONEncoder(ensure_ascii=False, **style)  # as the C++ server writes it


def _show(value: object) -> str:
    """In at most 80 characters; JSON values as JSON, as they stand in a state file."""
    text = type(value).__name__
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # 5,000 digits; objects
        text = reprlib.repr(value)
        if value is None or type(value) in (bool, int, float, str, list, dict):
            text = "".join(itertools.islice(_encoder().iterencode(value), 100))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _bad_value(where: str, expected: str, got: object) -> ValueError:
    return ValueError("%s: expected %s, got %s" % (where, expected, _show(got)))


def _check_count(value: object, where: str, most: int = 2**31 - 1, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _bad_value(where, "a whole number from %d to %d" % (least, most), value)
    return value


def _check_seconds(value: object, where: str, least: float = 0.0) -> None:
    if type(value) not in (int, float) or not least <= value <= _MAX_SECONDS:  # type: ignore[operator]
        raise _bad_value(where, "seconds from %g to %g" % (least, _MAX_SECONDS), value)


def _check_text(value: object, where: str) -> str:
    """The value as a plain str: a member of a str enum, for example, has another `str()`."""
    if not isinstance(value, str):
        raise _bad_value(where, "a string", value)
    if re.search("[\ud800-\udfff]", value):
        raise _bad_value(where, "text that UTF-8 can encode", value)
    return str.__str__(value)


def _check_choice(value: object, where: str, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise _bad_value(where, "one of " + ", ".join(choices), value)
    return str.__str__(value)


def _check_address(value: object, where: str, expected: str = '"host:port"') -> str:
    if not isinstance(value, str) or not _is_address(value):
        raise _bad_value(where, expected, value)
    return str.__str__(value)


_SLICE = 64  # tables or partitions: 0.5 ms of JSON, 2 ms of indented JSON
# began: the processor time of the thread when it paused last; pages: on a worker's, its `_Pages`.
_BURST = threading.local()
_BURST_SECONDS = 0.002


def _pause_if_due() -> None:
    """Let other threads run when this one has computed for 2 ms since its last pause. Otherwise
    each socket call of the serving thread waits 5 ms for the interpreter lock, and the p99 of
    /version is 14 ms instead of 2 (measured). A worker pauses until its loop has served all clients
    that are ready, for 2 ms at most: with shorter pauses 32 clients waited 60 ms (measured)."""
    used = time.thread_time() - getattr(_BURST, "began", 0.0)
    if 0.0 <= used <= _BURST_SECONDS:  # below 0: in a forked child the clock starts again
        return
    pages, until = getattr(_BURST, "pages", None), time.monotonic() + _BURST_SECONDS
    time.sleep(0.0001)  # enough for the other thread to take the lock
    while pages is not None and pages.loop_is_busy and time.monotonic() < until:
        time.sleep(0.0001)
    _BURST.began = time.thread_time()


def _slices(items: Iterable[Any], length: int = _SLICE) -> Iterator[list[Any]]:
    """The items in lists of at most `length`, with pauses between them."""
    iterator = iter(items)
    for part in iter(lambda: list(itertools.islice(iterator, length)), []):
        yield part
        _pause_if_due()


def _encode(value: object, pretty: bool = False) -> str:
    return _encoder(pretty).encode(value)


def _members(value: dict[Any, Any], pretty: bool = False) -> str:
    """The JSON without its braces; if pretty, also without the last line break."""
    return _encode(value, pretty)[1 : -2 if pretty else -1]


def _write_page(page: Any, pretty: bool) -> list[str]:
    """The page's JSON in pieces; joined they are what `json.dumps` makes of it, to the letter. A
    value that is an iterator is a long object in parts: a few rows as JSON, without the braces."""
    import json

    if not isinstance(page, dict) or not page:
        return [_encode(page, pretty)]
    pieces = ["{"]
    for key, value in page.items():
        if not isinstance(value, Iterator):
            pieces += [_members({key: value}, pretty), ","]
            continue
        pieces += [_members({key: {}}, pretty)[:-1], ""]  # up to the brace; "" if no part follows
        for part in value:
            if pretty:  # within JSON strings is no raw line break: all of them are between values
                part = _members(json.loads("{%s}" % part), True).replace("\n", "\n    ")
            pieces += [part, ","]
        # In the place of the last comma.
        pieces[-1] = "\n    }" if pretty and pieces[-1] else "}"
        pieces.append(",")
    return [*pieces[:-1], "\n}" if pretty else "}"]


def _local_time(second: float, end: str = "") -> str:
    """With the date; "-" if no calendar has it: a live cluster may send anything."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return time.strftime("%Y-%m-%d %H:%M:%S" + end, time.localtime(second))
    return "-"


@functools.lru_cache(maxsize=256)
def _host_and_port(authority: str) -> tuple[str, int]:
    """Host in lower case and port, 80 if left out; ("", 0) for what is malformed. RFC 3986, 3.2.2,
    without a user; zones as in RFC 6874 (`[fe80::1%25eth0]`) and as clients send them (`%eth0`)."""
    letters = r"[A-Za-z0-9._~!$&'()*+,;=-]"  # unreserved and sub-delims
    address = r"\[([0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._~-]+)?\]"
    later = r"\[[vV][0-9A-Fa-f]+\.(?:%s|:)+\]" % letters
    name = r"(?:%s|%%[0-9A-Fa-f]{2})+" % letters
    match = re.fullmatch("(%s|%s|%s)(?::([0-9]*))?" % (address, later, name), authority)
    host, ipv6, port = match.groups(default="") if match else ("", "", "0")
    with contextlib.suppress(OSError):  # of what looks like an IPv6 address and is none
        plain = ipv6 and socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ipv6))
        return host.replace(ipv6, plain).lower(), int(port[-9:] or 80)  # int() refuses 5,000 digits
    return "", 0


def _join(host: str, port: int) -> str:
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def _logger(child: str = "") -> logging.Logger:
    import logging  # here: 7 ms of the import of this module

    return logging.getLogger("pegasus_http" + child)


def _warn(text: str) -> None:
    with contextlib.suppress(BaseException):  # of a handler of the host: no page depends on it
        _logger().warning("%s", text)


# === 3. Cluster model =============================================================================

_APP_STATUSES = (  # enum app_status of Pegasus, without its AS_, in the order of its numbers
    "INVALID", "AVAILABLE", "CREATING", "CREATE_FAILED", "DROPPING", "DROP_FAILED", "DROPPED",
    "RECALLING")
_LIVE_STATUSES = ("AVAILABLE", "CREATING", "DROPPING", "RECALLING")  # their names are unique
_HEALTH = ("fully_healthy", "unhealthy", "write_unhealthy", "read_unhealthy")  # of partitions
_LAST_SECOND = 253402300799 - 86400  # of year 9999, whatever the time zone


def _check_kind(value: Any, where: str, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind):
        raise _bad_value(where, expected, value)
    return value


def _check_items(
    value: Any, where: str, expected: str, check: Callable[[Any, str], Any], unique: Any = None
) -> tuple[Any, ...]:
    """What an iterable (no text) gives, each item as `check(item, "")` returns it. unique: item ->
    names of its fields in which it must differ from all others."""
    is_item = hasattr(value, "_fields")  # an App where a list of Apps is meant, for example
    if is_item or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _bad_value(where, expected, value)
    checked: list[Any] = []
    first: dict[Any, int] = {}
    items = list(value)
    try:
        for item in itertools.chain.from_iterable(_slices(items)):
            item = check(item, "")
            for key in [(name, getattr(item, name)) for name in unique(item)] if unique else ():
                if first.setdefault(key, len(checked)) < len(checked):
                    same = (key[0], _show(key[1]), where, first[key])
                    raise ValueError(".%s: %s is already used by %s[%d]" % same)
            checked.append(item)
    except ValueError as error:
        raise ValueError("%s[%d]%s" % (where, len(checked), error)) from None
    return tuple(checked)


class Partition(NamedTuple):
    """One partition of a table: who serves it. Give the fields by name: the first is the ballot.

    ballot: its configuration's version, -1 for a split child that is not ready yet.
    max_replica_count: replicas it should have; None is the table's own figure.
    primary: "host:port" of the primary replica's server, None without one.
    secondaries: a tuple or list of "host:port", in the meta server's order.

    Names as in Pegasus's partition_configuration. Checked by `App`. Immutable.
    """

    ballot: int = 0
    max_replica_count: int | None = None
    primary: str | None = None
    secondaries: Sequence[str] = ()


def _check_primary(value: Any, where: str) -> str | None:
    return None if value is None else _check_address(value, where, '"host:port" or null')


def _check_partition(p: Any, where: str) -> Partition:
    """`p` with its addresses as plain texts in a tuple."""
    ballot, maximum, primary, secondaries = _check_kind(p, where, Partition, "a Partition")
    if (
        (type(ballot) is int and -1 <= ballot < 2**63)
        and (maximum is None or (type(maximum) is int and 0 <= maximum < 2**31))
        and (primary is None or (type(primary) is str and _is_address(primary)))
        and type(secondaries) is tuple
        and not [item for item in secondaries if type(item) is not str or not _is_address(item)]
    ):
        return p  # type: ignore[no-any-return]  # a large file is read in a fifth less of the time
    _check_count(ballot, where + ".ballot", 2**63 - 1, -1)
    if maximum is not None:
        _check_count(maximum, where + ".max_replica_count")
    primary = _check_primary(primary, where + ".primary")
    where += ".secondaries"
    _check_kind(secondaries, where, (tuple, list), 'a tuple or list of "host:port"')
    numbered = enumerate(secondaries)
    addresses = tuple([_check_address(item, "%s[%d]" % (where, n)) for n, item in numbered])
    return Partition(ballot, maximum, primary, addresses)


class _Checked:
    """Base of the named tuples that hosts make. _checks: field -> function (value, where) that
    gives its final form. A field without one is a text. None is allowed where it is the default."""

    _checks: Mapping[str, Callable[[Any, str], Any]]

    if not TYPE_CHECKING:  # which is to see the named tuple's methods, that know the fields

        def __new__(cls, *fields: Any, **named: Any) -> Any:
            return cls._unchecked(**cls._check(super().__new__(cls, *fields, **named)))

        @classmethod
        def _make(cls, iterable: Iterable[Any]) -> Any:
            # `_replace` builds on it.
            return cls(*iterable)

    @classmethod
    def _check(cls, given: Any) -> dict[str, Any]:
        fields: dict[str, Any] = given._asdict()
        for name, value in fields.items():
            if value is not None or given._field_defaults.get(name, "") is not None:
                fields[name] = cls._checks.get(name, _check_text)(value, name)
        return fields

    @classmethod
    def _unchecked(cls: type[_T], *fields: Any, **named: Any) -> _T:
        """Make one of fields in their final form; odd data of a live cluster is allowed."""
        return super().__new__(cls, *fields, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields alone: without what was computed, and odd data as it is."""
        return type(self)._unchecked, tuple(self)  # type: ignore[arg-type]


def _checked_envs(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    try:
        envs = dict(value)
    except (TypeError, ValueError):
        raise _bad_value(where, "a mapping of strings", value) from None
    named = [(_check_text(key, where), text) for key, text in envs.items()]
    checked = [(key, _check_text(text, "%s[%s]" % (where, _show(key)))) for key, text in named]
    return tuple(sorted(checked))


class _AppFields(NamedTuple):
    app_id: int
    app_name: str
    partitions: Sequence[Partition] | None = None
    partition_count: int = None  # type: ignore[assignment]  # until it is checked
    max_replica_count: int = 3
    status: str = "AVAILABLE"
    app_type: str = "pegasus"
    is_stateful: bool = True
    envs: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    create_second: int = 0
    drop_second: int = 0
    expire_second: int = 0


class App(_Checked, _AppFields):
    """One table. Names as in Pegasus's app_info.

    app_id, app_name: its number and name; real servers take an empty name, too.
    partitions: an iterable of `Partition` objects by index; None when they are not known.
    partition_count: their number, for a table whose `partitions` are not known; 0 without both.
    max_replica_count: replicas a partition should have; 3 unless it is given.
    status: AVAILABLE unless it is given, or INVALID, CREATING, CREATE_FAILED, DROPPING,
        DROP_FAILED, DROPPED, RECALLING. Only AVAILABLE tables are on the list pages.
    app_type, is_stateful: shown as they are.
    envs: the table's environment, a mapping of strings or (key, value) pairs.
    create_second, drop_second, expire_second: Unix time in seconds, 0 for unknown or never.

    Raises ValueError, whose text begins with the offending field. Immutable. Share unchanged tables
    between states: what pages computed of the same objects is not computed again.
    """

    _checks = {
        "app_id": _check_count,
        "partitions": lambda got, at: _check_items(got, at, "Partition objects", _check_partition),
        "partition_count": _check_count,
        "max_replica_count": _check_count,
        "status": lambda value, where: _check_choice(value, where, _APP_STATUSES),
        "is_stateful": functools.partial(_check_kind, kind=bool, expected="true or false"),
        "envs": _checked_envs,
        "create_second": functools.partial(_check_count, most=_LAST_SECOND),
        # Of a table that was dropped with a very long reserve, which real servers take.
        "drop_second": functools.partial(_check_count, most=2**63 - 1),
        "expire_second": functools.partial(_check_count, most=2**63 - 1),
    }
    # What pages computed of this table. Threads may compute it twice at once, to the same end.
    _kept_health: tuple[int, ...] = ()
    _kept_rows: Sequence[str] = ()

    @classmethod
    def _check(cls, given: Any) -> dict[str, Any]:
        fields = super()._check(given)
        known, count = fields["partitions"], fields["partition_count"]
        if count is None:
            fields["partition_count"] = len(known or ())
        elif known is not None and count != len(known):
            raise _bad_value("partition_count", "%d, the number of partitions" % len(known), count)
        return fields

    def _maximum(self, partition: Partition) -> int:
        own = partition.max_replica_count
        return self.max_replica_count if own is None else own

    def _health(self) -> tuple[int, ...]:
        if not self._kept_health:
            fully = write = read = 0
            for part in _slices(self.partitions or ()):
                for _, own, primary, secondaries in part:
                    if primary is None:
                        write += 1
                        read += 1
                    elif len(secondaries) + 1 >= (self.max_replica_count if own is None else own):
                        fully += 1
                    elif not secondaries:
                        write += 1
            self._kept_health = fully, self.partition_count - fully, write, read
        return self._kept_health


def _with_known(apps: Iterable[App], before: Iterable[App]) -> list[App]:
    """`apps`, where a table that is unchanged is the object from `before`, which keeps what pages
    computed of it."""
    known = {app.app_id: app for app in before}
    return [known[app.app_id] if known.get(app.app_id) == app else app for app in apps]


class Node(NamedTuple):
    """One replica server. address: "host:port"; status: ALIVE or UNALIVE. Checked by `Cluster`."""

    address: str
    status: str = "ALIVE"


def _checked_node(node: Any, where: str) -> Node:
    address, status = _check_kind(node, where, Node, "a Node")
    address = _check_address(address, where + ".address")
    return Node(address, _check_choice(status, where + ".status", ("ALIVE", "UNALIVE")))


def _checked_apps(value: Any, where: str) -> tuple[App, ...]:
    def unique(app: App) -> list[str]:
        return ["app_id", "app_name"] if app.status in _LIVE_STATUSES else ["app_id"]

    is_app = functools.partial(_check_kind, kind=App, expected="an App")
    return _check_items(value, where, "App objects", is_app, unique)


def _joined_servers(value: Any, where: str) -> str:
    if not isinstance(value, str):
        value = ",".join(_check_items(value, where, 'texts "host:port", or one text', _check_text))
    return _check_text(value, where)


def _balance_text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _check_text(value, where)
    expected = "three whole numbers (move_pri, copy_pri, copy_sec), or a text"
    counts = _check_items(value, where, expected, _check_count)
    if len(counts) != 3:
        raise _bad_value(where, expected, value)
    return "move_pri=%d,copy_pri=%d,copy_sec=%d,total=%d" % (*counts, sum(counts))


class _ClusterFields(NamedTuple):
    apps: Sequence[App] = ()
    nodes: Sequence[Node] = ()
    meta_servers: str | Iterable[str] = ""
    primary_meta_server: str = ""
    zookeeper_hosts: str = ""
    zookeeper_root: str = ""
    meta_function_level: str = "lively"
    balance_operation_count: str | Sequence[int] = "move_pri=0,copy_pri=0,copy_sec=0,total=0"
    primary_replica_count_stddev: str | None = None
    total_replica_count_stddev: str | None = None
    cluster_name: str | None = None
    version: str | None = None
    git_commit: str | None = None


class Cluster(_Checked, _ClusterFields):
    """What the primary meta server knows. Names as in Pegasus's cluster_info.

    apps, nodes: iterables of `App` (dropped ones may be among them) and `Node`, in any order.
    meta_servers: "host:port" texts, or one text of them joined by commas.
    primary_meta_server, zookeeper_hosts, zookeeper_root, meta_function_level, cluster_name: texts.
    balance_operation_count: (move_pri, copy_pri, copy_sec), or the text that the server made.
    primary_replica_count_stddev, total_replica_count_stddev: the server's own figures as text
        ("0.47"); None computes them from the partitions, as the C++ server does.
    version, git_commit: what /version shows unless the server is told otherwise.

    Raises ValueError, whose text begins with the place (`apps[3].app_id`). Immutable.
    """

    _checks = {
        "apps": _checked_apps,
        "nodes": lambda got, at: _check_items(
            got, at, "Node objects", _checked_node, lambda node: ["address"]),
        "meta_servers": _joined_servers,
        "balance_operation_count": _balance_text,
    }
    _by_name: dict[str, App]  # the tables that are not dropped, by name

    @classmethod
    def _unchecked(cls, *fields: Any, **named: Any) -> Cluster:
        # A live cluster's tables may have equal names when they are shown: the first one counts.
        self = super()._unchecked(*fields, **named)
        live = [app for part in _slices(self.apps) for app in part if app.status in _LIVE_STATUSES]
        self._by_name = {app.app_name: app for app in reversed(live)}
        return self


class _StandbyFields(NamedTuple):
    primary: str | None


class Standby(_Checked, _StandbyFields):
    """The state of a meta server that is not the primary.

    primary: "host:port" that /meta pages redirect to; None while none is known (503).
    Raises ValueError for anything else. Immutable.
    """

    _checks = {"primary": _check_primary}


# === 4. Pages =====================================================================================


class PageError(Exception):
    """An answer that is an error, in Pegasus's form. Pages and sources may raise it.

    status: HTTP status code. error: Pegasus error code, such as "ERR_BUSY". hint_message: one
    sentence that says what to do. headers: further (name, value) pairs of the answer.
    """

    def __init__(self, status: int, error: str, hint_message: str, headers: _Headers = ()) -> None:
        """Keep the four parts under the same names. ValueError for what cannot be sent."""
        headers = tuple(headers)
        _check_count(status, "status", 599, 100)
        for text in (error, hint_message, *itertools.chain.from_iterable(headers)):
            _check_kind(text, "a part of a PageError", str, "a text")
        if re.search("[\r\n]", "".join(itertools.chain.from_iterable(headers))):
            raise _bad_value("headers", "texts of one line each", headers)
        super().__init__(status, error, hint_message)
        self.status, self.error, self.hint_message = status, error, hint_message
        self.headers = headers


_RETRY_AFTER = (("Retry-After", "1"),)


def _unavailable(hint: str, error: str = "ERR_SERVICE_NOT_ACTIVE") -> PageError:
    return PageError(503, error, hint, _RETRY_AFTER)


def _bad_data(hint: str, status: int = 400) -> PageError:
    return PageError(status, "ERR_INVALID_DATA", hint)


def _as_cluster(state: _State) -> Cluster:
    """The cluster, or the reason why there is none."""
    if isinstance(state, Cluster):
        return state
    if isinstance(state, PageError):
        raise state.with_traceback(None)  # many requests share it: it must not collect frames
    raise _unavailable("no state has been published yet")


def _find_app(cluster: Cluster, name: str) -> App:
    """The table of that name; PageError if there is none or it is not available."""
    app = cluster._by_name.get(name)
    if app is None:
        plus = '; "+" stays a plus here, a blank is written %20' if "+" in name else ""
        raise PageError(404, "ERR_OBJECT_NOT_FOUND", 'table not found: "%s"%s' % (name, plus))
    if app.status == "DROPPING":
        raise _unavailable('table is being dropped: "%s"' % name, "ERR_BUSY_DROPPING")
    if app.status != "AVAILABLE":
        raise _unavailable('table is being created or recalled: "%s"' % name, "ERR_BUSY_CREATING")
    return app


class _Settings(NamedTuple):
    """What a server was told at its start, as far as pages depend on it."""

    role: str
    version: str | None
    git_commit: str | None
    flat: bool
    compress: bool
    address: str


_ROLES = ("meta", "replica")


def _checked_settings(
    role: str, version: str | None, git_commit: str | None, flat: bool, compress: bool
) -> _Settings:
    _check_choice(role, "role", _ROLES)
    _check_text("" if version is None else version, "version")
    _check_text("" if git_commit is None else git_commit, "git_commit")
    return _Settings(role, version, git_commit, flat, compress, "")


class _Query(NamedTuple):
    """The parameters of a request, decoded and checked."""

    name: str = ""
    detail: bool = False
    pretty: bool = False
    primary: bool = False


def _index(state: _State, query: _Query, settings: _Settings) -> _Page:
    """This list."""
    page = {}
    for path, route in sorted(ROUTES.items()):
        if route.listed and settings.role in route.roles:
            usage = "".join(["[&%s]" % name for name in route.parameters])
            usage = re.sub(r"^\[&", "[", usage.replace("[&name]", "name=<app_name>"))
            page[path] = ". ".join(filter(None, [usage, route.help]))
    return page


def _version(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Version and commit of the server."""
    page: _Page = {
        "Version": settings.version or getattr(state, "version", None) or __version__,
        "GitCommit": settings.git_commit or getattr(state, "git_commit", None) or "unknown",
    }
    return page if settings.flat else {"Version": page}


_IMPORTED = time.monotonic()


@functools.lru_cache(maxsize=1)
def _process_start(pid: int) -> float:
    """Unix time at which this process, `pid`, started: a forked child has its own. It is when this
    module was imported, where /proc is missing or makes no sense, as in some containers."""
    now, age = time.time(), -1.0
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        with open("/proc/self/stat", "rb") as stat:
            # proc(5): field 22, counted behind the command name, which may hold blanks
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - (age if 0.0 <= age < now else time.monotonic() - _IMPORTED)


def _start_time(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Start of the process, in local time."""
    page: _Page = {"RecentStartTime": _local_time(_process_start(os.getpid()))}
    return page if settings.flat else {"RecentStartTime": page}


def _health(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Whether the server is up; with primary, 503 unless it is the primary meta server."""
    primary = settings.role == "meta" and isinstance(state, Cluster)
    if query.primary and not primary:
        raise _unavailable("this server is not the primary meta server")
    return {"status": "ok", "role": settings.role, "primary": "true" if primary else "false"}


@functools.lru_cache(maxsize=8192)
def _node_order(address: str) -> tuple[int, bytes, int]:
    """IPv4 addresses by number, then host names bytewise, each then by port."""
    host, _, port = address.rpartition(":")
    try:
        return 0, socket.inet_pton(socket.AF_INET, host), int(port)
    except OSError:
        return 1, host.encode(), int(port)


def _shown(item: Any, *fields: str) -> dict[str, str]:
    return {name: str(getattr(item, name)) for name in fields}


def _figures(counts: _Counts, node: str) -> dict[str, str]:
    return {name: str(by_node[node]) for name, by_node in counts.items()}


def _count_replicas(apps: Iterable[App]) -> _Counts:
    """Figures by node over the available tables, under their names on /meta/nodes."""
    shown = [app.partitions or () for app in apps if app.status == "AVAILABLE"]
    primaries: collections.Counter[Any] = collections.Counter()
    secondaries: collections.Counter[Any] = collections.Counter()
    for part in _slices(itertools.chain.from_iterable(shown), 8 * _SLICE):  # 0.1 ms
        primaries.update([p.primary for p in part])
        secondaries.update(itertools.chain.from_iterable([p.secondaries for p in part]))
    del primaries[None]  # of partitions that have no primary
    names = ("replica_count", "primary_count", "secondary_count")
    return dict(zip(names, (primaries + secondaries, primaries, secondaries)))


def _replica_row(app: App, pidx: int, partition: Partition) -> dict[str, str]:
    secondaries = partition.secondaries
    live = len(secondaries) if partition.primary is None else len(secondaries) + 1
    return {
        "pidx": str(pidx),
        "ballot": str(partition.ballot),
        "replica_count": "%d/%d" % (live, app._maximum(partition)),
        "primary": partition.primary or "-",
        "secondaries": "[" + ",".join(secondaries) + "]",
    }


def _meta_app(state: _State, query: _Query, settings: _Settings) -> _Page:
    """One table; with detail, its partitions, their replicas and their health."""
    app = _find_app(_as_cluster(state), query.name)
    known = app.partitions
    maximum = app.max_replica_count
    if known is not None:  # as the C++ server: that of the first partition
        maximum = app._maximum(known[0]) if known else 0
    general = _shown(app, "app_name", "app_id", "partition_count")
    general["max_replica_count"] = str(maximum)
    if not query.detail:
        return {"general": general}
    if known is None:
        raise _unavailable('the partitions of "%s" are not known' % app.app_name)
    replicas, primaries, secondaries = _count_replicas([app]).values()
    columns = {"primary": primaries, "secondary": secondaries, "total": replicas}
    nodes = [*sorted(replicas, key=_node_order), "total"]
    for by_node in columns.values():
        by_node["total"] = sum(by_node.values())
    return {
        "general": general,
        "replicas": (
            _members({str(pidx): _replica_row(app, pidx, partition) for pidx, partition in part})
            for part in _slices(enumerate(known))
        ),
        "nodes": (
            _members({node: {"node": node, **_figures(columns, node)} for node in part})
            for part in _slices(nodes)
        ),
        "healthy": {name + "_partition_count": str(n) for name, n in zip(_HEALTH, app._health())},
    }


def _meta_app_envs(state: _State, query: _Query, settings: _Settings) -> _Page:
    """One table's environment: what was set for it, by name."""
    return dict(_find_app(_as_cluster(state), query.name).envs)


def _rows(app: App) -> Sequence[str]:
    """General and healthy, as text: 2 ms instead of 40 for 1,000 tables of which one changed."""
    if not app._kept_rows:
        general = {
            **_shown(app, "app_id", "status", "app_name", "app_type", "partition_count"),
            "replica_count": str(app.max_replica_count),
            "is_stateful": "true" if app.is_stateful else "false",
            "create_time": _local_time(app.create_second, ".000") if app.create_second else "-",
            "drop_time": "-",
            "drop_expire": "-",
            "envs_count": str(len(app.envs)),
        }
        healthy = _shown(app, "app_id", "app_name", "partition_count")
        healthy.update(zip(_HEALTH, map(str, app._health())))
        app._kept_rows = [_members({row["app_id"]: row}) for row in (general, healthy)]
    return app._kept_rows


def _meta_apps(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All available tables; with detail, their health."""
    apps = [app for app in _as_cluster(state).apps if app.status == "AVAILABLE"]
    apps.sort(key=operator.attrgetter("app_id"))
    page: _Page = {"general_info": (_rows(app)[0] for part in _slices(apps) for app in part)}
    summary = {"total_app_count": str(len(apps))}
    if query.detail and apps:
        known = [app for app in apps if app.partitions is not None]
        page["healthy_info"] = (_rows(app)[1] for part in _slices(known) for app in part)
        healths = [app._health() for part in _slices(known) for app in part]
        summary["fully_healthy_app_count"] = str(len([h for h in healths if not h[1]]))
        for n, name in enumerate(_HEALTH[1:], 1):
            summary[name + "_app_count"] = str(len([h for h in healths if h[n]]))
    return {**page, "summary": summary}


def _meta_nodes(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All replica servers; with detail, how many replicas each has."""
    cluster = _as_cluster(state)
    counts = _count_replicas(cluster.apps) if query.detail else {}
    nodes = sorted(cluster.nodes, key=lambda node: _node_order(node.address))
    alive = len([node for node in nodes if node.status == "ALIVE"])
    return {
        "details": (
            _members({n.address: {**n._asdict(), **_figures(counts, n.address)} for n in part})
            for part in _slices(nodes)
        ),
        "summary": {
            "total_node_count": str(len(nodes)),
            "alive_node_count": str(alive),
            "unalive_node_count": str(len(nodes) - alive),
        },
    }


def _stddev(cluster: Cluster, counts: Mapping[str, int], replicas: Mapping[str, int]) -> str:
    """Of alive nodes that hold any replica; divided by n - 1 while a dead node holds some, else by
    n. In the C++ server's order of operations: `statistics` rounds differently, and is slow to
    import."""
    own = [counts[node] for node, status in cluster.nodes if status == "ALIVE" and replicas[node]]
    sample = any(counts[node] for node, status in cluster.nodes if status != "ALIVE")
    if len(own) < 2:
        return "0.00"
    mean = sum(own) / len(own)
    squares = sum((count - mean) ** 2 for count in own)
    deviation = math.sqrt(squares / (len(own) - 1 if sample else len(own)))
    return "%.2f" % (math.floor((deviation + 0.005) * 100) / 100)


def _meta_cluster(state: _State, query: _Query, settings: _Settings) -> _Page:
    """The cluster: meta servers, ZooKeeper, function level, balance."""
    cluster = _as_cluster(state)
    page = dict(zip(cluster._fields[2:10], cluster[2:10]))  # meta_servers to the deviations
    if None in page.values():
        replicas, primaries, _ = _count_replicas(cluster.apps).values()
        for name, counts in zip(cluster._fields[8:10], (primaries, replicas)):
            if page[name] is None:
                page[name] = _stddev(cluster, counts, replicas)
    return page if settings.flat else {"cluster_info": page}


# === 5. Routes ====================================================================================


class _Route(NamedTuple):
    """One row of the dispatch table.

    page: gives a JSON object, or None: no content; the first line of its docstring is the help.
    parameters: besides `pretty`. listed: whether `/` and --routes name it. for_people: what a
    browser gets instead, as HTML. shows: "nothing" of the state; the "cluster" as it is now; the
    "last state", even a bad one; the "last cluster", whatever went wrong since.
    """

    page: Callable[[_State, _Query, _Settings], _Page | None]
    parameters: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("meta",)
    shows: str = "cluster"
    listed: bool = True
    for_people: str = ""

    @property
    def help(self) -> str:
        """First line of the page's docstring; none is left under -OO."""
        return (self.page.__doc__ or "").partition("\n")[0]


#: The path-dispatch table: path -> `_Route`. 404, 405, OPTIONS, `/` and --routes come from it.
ROUTES: dict[str, _Route] = {
    "/": _Route(_index, (), _ROLES, "nothing"),
    "/favicon.ico": _Route(lambda *_: None, (), _ROLES, "nothing", listed=False),
    "/version": _Route(_version, (), _ROLES, "last cluster"),
    "/startTime": _Route(_start_time, (), _ROLES, "nothing"),
    "/recentStartTime": _Route(_start_time, (), _ROLES, "nothing"),
    "/health": _Route(_health, ("primary",), _ROLES, "last state"),
    "/meta/app": _Route(_meta_app, ("name", "detail")),
    "/meta/app_envs": _Route(_meta_app_envs, ("name",)),
    "/meta/apps": _Route(_meta_apps, ("detail",)),
    "/meta/nodes": _Route(_meta_nodes, ("detail",)),
    "/meta/cluster": _Route(_meta_cluster),
}

_ALLOW = (("Allow", "GET, HEAD, OPTIONS"),)
_OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT")  # known, never allowed
_NO_STORE = (("Cache-Control", "no-store"),)
_NO_SNIFF = (("X-Content-Type-Options", "nosniff"),)


class Response(NamedTuple):
    """One answer: status code, (name, value) header pairs without Date and Server, body bytes."""

    status: int
    headers: _Headers
    body: bytes


_OPTIONS_RESPONSE = Response(204, _ALLOW + _NO_SNIFF, b"")


def _with_length(status: int, content_type: str, headers: _Headers, body: bytes) -> Response:
    fixed = (("Content-Type", content_type), ("Content-Length", str(len(body))))
    return Response(status, fixed + _NO_SNIFF + headers, body)


def _error_response(error: PageError) -> Response:
    page = {"error": error.error, "hint_message": error.hint_message}
    body = _encode(page).encode("utf-8", "replace") + b"\n"
    return _with_length(error.status, "application/json", error.headers + _NO_STORE, body)


class _PageRequest(NamedTuple):
    """A valid request: which page, with which parameters, in which representation."""

    path: str
    query: _Query
    gzip: bool
    html: bool

    @property
    def route(self) -> _Route:
        return ROUTES[self.path]


def _split_target(target: str) -> tuple[str, str]:
    """(authority, origin form) of a request target; the authority is "" in the usual form. That of
    the absolute form, which a server accepts too, replaces Host (RFC 9112, 3.2.2)."""
    absolute = re.fullmatch(r"(?is)https?://([^/?#]*)/?(.*)", target)
    authority, origin = (absolute[1], "/" + absolute[2]) if absolute else ("", target)
    if not re.fullmatch(r"/[!\"$-~]*", origin):  # visible ASCII without the "#" of a fragment
        raise _bad_data('the request target is not a path: "%s"' % target)
    if absolute and not _host_and_port(authority)[0]:
        raise _bad_data('the request target has a malformed host: "%s"' % target)
    return authority, origin


def _unescape(text: str, error: Callable[[str], PageError], place: str) -> str:
    """Percent-decoded as UTF-8; raises `error` of what is wrong in `place`."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise error("malformed escape in " + place)
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise error("bytes that are not UTF-8 in " + place) from None


def _parse_path(raw: str) -> str:
    """Decoded, but for an escaped slash, which belongs to a name; empty segments collapse."""
    kept = re.sub("%2[Ff]", "%252F", raw)
    decoded = _unescape(kept, _bad_data, 'the path: "%s"' % raw)
    return "/" + "/".join([segment for segment in decoded.split("/") if segment])


def _invalid(hint: str) -> PageError:
    return PageError(400, "ERR_INVALID_PARAMETERS", hint)


def _parse_query(raw: str, parameters: Sequence[str]) -> _Query:
    """Split at "&", then at the first "=", and only then decoded; "+" stays a plus.

    An unknown parameter is usually a typing error, but pages without parameters ignore it: it may
    be there to get past a cache. A bare flag is true, and so is one with an empty value, which
    standbys of the C++ server write into redirects.
    """
    values: dict[str, Any] = {}
    pieces = [piece for piece in raw.split("&") if piece]
    if len(pieces) > _MAX_PARAMETERS:
        raise _invalid("more than %d parameters" % _MAX_PARAMETERS)
    for piece in pieces:
        place = 'parameter: "%s"' % piece
        name, value = [_unescape(part, _invalid, place) for part in piece.partition("=")[::2]]
        if name not in ("pretty", *parameters):
            if parameters:
                raise _invalid("unknown parameter: " + name)
        elif name in values:
            raise _invalid("duplicate parameter: " + name)
        elif name == "name":
            values[name] = value
        elif value in ("true", "false", ""):
            values[name] = value != "false"
        else:
            raise _invalid('invalid %s: "%s", expected true or false' % (name, value))
    if "name" in parameters and not values.get("name"):
        raise _invalid("app name shouldn't be empty")
    return _Query(**values)


@functools.lru_cache(maxsize=64)
def _accepts(wanted: str, field: str, exact: bool = False) -> bool:
    """Whether an Accept or Accept-Encoding field names `wanted`, or "*" unless `exact`. RFC 9110,
    12.4.2 and 12.5.3: the best match counts, and q=0 is a no; 8.4.1.3: x-gzip is gzip. A very long
    field names nothing."""
    named: dict[str, bool] = {}
    if len(field) > _MAX_ACCEPT:
        return False
    for part in field.lower().split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        weights = [piece[2:].strip(" 0.") for piece in parameters if piece.startswith("q=")]
        named[name] = not weights or bool(weights[-1])
    return named.get(wanted, not exact and named.get("x-" + wanted, named.get("*", False)))


def _resolve(
    method: str, target: str, fields: Mapping[str, str], settings: _Settings
) -> _PageRequest | None:
    """The page that a request asks for, None for OPTIONS; PageError when it is not valid."""
    if method not in ("GET", "HEAD", "OPTIONS", *_OTHER_METHODS):
        raise PageError(501, "ERR_INVALID_DATA", "unknown method: " + method)
    if method == "OPTIONS" and target == "*":  # RFC 9110, 9.3.7: about the server as a whole
        return None
    if method == "CONNECT" and re.fullmatch(r"[^/]+:[0-9]+", target):
        target = "http://" + target  # RFC 9110, 9.3.6: the target is a host and a port
    raw_path, _, raw_query = _split_target(target)[1].partition("?")
    path = _parse_path(raw_path)
    route = ROUTES.get(path)
    if route is None or settings.role not in route.roles:
        elsewhere = '"%s" is served by meta servers; this is a replica server'
        hint = ('service not found for "%s"' if route is None else elsewhere) % path
        raise PageError(404, "ERR_HANDLER_NOT_FOUND", hint)
    if method == "OPTIONS":
        return None
    if method in _OTHER_METHODS:
        hint = "method %s is not allowed for %s" % (method, path)
        raise PageError(405, "ERR_HANDLER_NOT_FOUND", hint, _ALLOW)
    query = _parse_query(raw_query, route.parameters)
    gzip = settings.compress and _accepts("gzip", fields.get("accept-encoding", ""))
    html = bool(route.for_people) and _accepts("text/html", fields.get("accept", ""), exact=True)
    return _PageRequest(path, query, gzip, html)


def _check_ready(state: _State, name: str, target: str, host: str, settings: _Settings) -> None:
    """Raise the answer to a request whose page cannot be made of `state`, in constant time. name:
    of the table, or "". target, host: of the request, as they came."""
    if not isinstance(state, Standby):
        cluster = _as_cluster(state)
        if name:
            _find_app(cluster, name)
        return
    primary = state.primary
    if primary is None:
        raise _unavailable("no primary meta server is known")
    authority, origin = _split_target(target)
    if _host_and_port(primary) in map(_host_and_port, (settings.address, authority or host)):
        raise _unavailable("no primary is known: the one that was named is this standby")
    # Built from the raw target: whatever that holds stays behind the authority.
    location = "http://" + primary + quote(origin, safe="/?:@!$&'()*+,;=-._~%")
    hint = "the primary meta server is " + primary
    raise PageError(307, "ERR_FORWARD_TO_OTHERS", hint, (("Location", location),))


@functools.lru_cache(maxsize=1)
def _content_policy(html: str) -> str:
    """Nothing but the page's own script and style, and requests to where it came from."""
    import base64
    import hashlib  # here: only browsers need it

    rules = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    for element, text in re.findall(r"(?s)<(script|style)>(.*?)</\1>", html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rules.append("%s-src 'sha256-%s'" % (element, digest))
    return "; ".join([*rules, "frame-ancestors 'none'"])


def _render(state: _State, request: _PageRequest, settings: _Settings) -> Response:
    """The whole answer, 200 or 204. It takes as long as the page is large."""
    route, content_type = request.route, "application/json"
    headers: _Headers = ()
    vary = ["Accept"] if route.for_people else []
    if request.html:
        content_type = "text/html; charset=utf-8"
        headers = (("Content-Security-Policy", _content_policy(route.for_people)),)
        body = route.for_people.encode()
    else:
        page = route.page(state, request.query, settings)
        if page is None:  # an icon that we do not have, which browsers ask for again and again
            return Response(204, (("Cache-Control", "max-age=86400"), *_NO_SNIFF), b"")
        body = ("".join(_write_page(page, request.query.pretty)) + "\n").encode()
    tag = "%x-%08x%08x" % (len(body), zlib.crc32(body), zlib.adler32(body))
    if settings.compress and len(body) >= _GZIP_BYTES:
        vary.append("Accept-Encoding")
        if request.gzip:
            packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # 240 KB: 0.7 ms
            body = packer.compress(body) + packer.flush()
            headers += (("Content-Encoding", "gzip"),)
            tag += "-gzip"  # RFC 9110, 8.8.3.3: each representation has its own
    if vary:
        headers += (("Vary", ", ".join(vary)),)
    if request.path == "/health":
        headers += _NO_STORE
    else:
        headers += (("Cache-Control", "no-cache"), ("ETag", '"%s"' % tag))
    return _with_length(200, content_type, headers, body)


def _matches(field: str, etag: str, weakly: bool = False) -> bool:
    """Whether a list of entity tags holds `etag`: RFC 9110, 13.1.1 strongly, 13.1.2 weakly. "*"
    alone stands for any tag; a comma between quotes belongs to the tag."""
    tag = r'(?:W/)?"[^"]*"'
    if not re.fullmatch(r"[ \t,]*(?:%s[ \t]*(?:,[ \t,]*|$))*" % tag, field):
        return field.strip() == "*"
    tags = re.findall(tag, field)
    return etag in tags or (weakly and "W/" + etag in tags)


def _finish(response: Response, method: str, fields: Mapping[str, str]) -> Response:
    """What the client's conditions and its method leave of an answer (RFC 9110, 13.2.2)."""
    etag = dict(response.headers).get("ETag", "")
    if etag and "if-match" in fields and not _matches(fields["if-match"], etag):
        hint = "If-Match does not hold: the page has another ETag by now"
        response = _error_response(PageError(412, "ERR_INVALID_PARAMETERS", hint))
    elif etag and _matches(fields.get("if-none-match", ""), etag, weakly=True):
        dropped = ("Content-Type", "Content-Length", "Content-Encoding")  # RFC 9110, 15.4.5
        kept = [pair for pair in response.headers if pair[0] not in dropped]
        return Response(304, tuple(kept), b"")
    return response._replace(body=b"") if method == "HEAD" else response


def respond(
    state: _State, method: str, target: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, role: str = "meta",
    version: str | None = None, git_commit: str | None = None, flat: bool = False,
    compress: bool = True,
) -> Response:
    """The whole application as one pure function, for WSGI, ASGI, tests and the like.

    state: a `Cluster`, a `Standby`, None (nothing known yet) or a `PageError` to answer with.
    method, target: of the request, the target raw as it stood in the request line.
    headers: the request's, as a mapping or pairs, names in any case.
    role: "meta" or "replica"; version, git_commit: for /version, None for the state's or our own;
    flat: the later page shapes; compress: gzip where the client accepts it and the page has 1 KiB.

    Bad requests are answered, with the errors that a server gives. Raises TypeError for another
    state and ValueError for another role. Thread-safe. No answer is kept from one call to the next.
    """
    if state is not None and not isinstance(state, (Cluster, Standby, PageError)):
        raise TypeError("state: expected a Cluster, Standby, PageError or None, got " + repr(state))
    settings = _checked_settings(role, version, git_commit, flat, compress)
    fields: dict[str, str] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        name = name.lower()  # RFC 9110, 5.2: lines of one name form one list
        fields[name] = fields[name] + ", " + value if name in fields else value
    try:
        request = _resolve(method, target, fields, settings)
        if request is None:
            return _OPTIONS_RESPONSE
        if request.route.shows == "cluster":
            _check_ready(state, request.query.name, target, fields.get("host", ""), settings)
        response = _render(state, request, settings)
    except PageError as error:
        response = _error_response(error)
    return _finish(response, method, fields)


# === 6. HTTP protocol =============================================================================
# Functions on bytes: no socket, no state.

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_BEGINNING = re.compile(rb"%s|\r?\Z" % _TOKEN)  # CR may be half of a blank line
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%s):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_BLANK_LINES = re.compile(rb"(?:\r\n)+")  # RFC 9112, 2.2: to be ignored before a request line
_HEAD_END = re.compile(rb"\n\r?\n")  # LF alone too, for _parse_head to refuse it
_format_date = functools.lru_cache(maxsize=2)(email.utils.formatdate)


def _parse_request_line(line: bytes) -> tuple[str, str, str]:
    """(method, target, version)."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if not line.isascii():
            raise _bad_data("the request line holds bytes that are not ASCII: percent-encode them")
        raise _bad_data("malformed request line, expected: METHOD /path HTTP/1.1")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise _bad_data("unsupported version HTTP/%s.%s, expected HTTP/1.1" % (major, minor), 505)
    # RFC 9110, 2.5: a higher minor version is served as the highest that is known
    return method, target, "HTTP/1.0" if minor == "0" else "HTTP/1.1"


def _head_end(buffer: bytes, scanned: int) -> int:
    """Where the head ends (behind its blank line), or -1; the first `scanned` bytes hold no end.

    Raises PageError at once when no valid request line can come of it, such as for a TLS hello.
    How the bytes arrive makes no difference: first the request line is checked, then the rest.
    """
    if not _BEGINNING.match(buffer):
        raise _bad_data("not HTTP, expected: METHOD /path HTTP/1.1")
    line_end = buffer.find(b"\n", 0, _MAX_LINE + 2) + 1
    if not line_end and len(buffer) > _MAX_LINE + 1:
        raise _bad_data("the request line is longer than %d bytes" % _MAX_LINE, 414)
    if line_end > scanned:
        _parse_request_line(buffer[:line_end])
    match = _HEAD_END.search(buffer, max(line_end - 1, scanned - 2)) if line_end else None
    if (len(buffer) + 1 if match is None else match.end()) > _MAX_HEAD:
        raise _bad_data("the header section is longer than %d bytes" % _MAX_HEAD, 431)
    return -1 if match is None else match.end()


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """(method, target, version, fields) of a whole head; PageError says what is wrong with it.
    Names of fields are in lower case, values of one name are joined by ", "."""
    line_end = head.index(b"\n") + 1
    method, target, version = _parse_request_line(head[:line_end])
    if not head.endswith(b"\r\n\r\n"):
        raise _bad_data("malformed blank line, expected: CRLF")
    lines = head[line_end:].split(b"\r\n")[:-2]
    if len(lines) > _MAX_FIELDS:
        raise _bad_data("more than %d field lines" % _MAX_FIELDS, 431)
    fields: dict[str, str] = {}
    for line in lines:
        if len(line) > _MAX_LINE:
            raise _bad_data("a field line is longer than %d bytes" % _MAX_LINE, 431)
        match = _FIELD_LINE.fullmatch(line)
        if match is None:  # RFC 9112, 5.1 and 5.2: blank before the colon, line folding
            raise _bad_data("malformed field line, expected: Name: value")
        name = match.group(1).decode("ascii").lower()
        value = match.group(2).decode("latin-1").strip(" \t")
        fields[name] = fields[name] + ", " + value if name in fields else value
    if version == "HTTP/1.1" and "host" not in fields:
        raise _bad_data("no Host field, which HTTP/1.1 asks for")  # RFC 9112, 3.2
    if fields.get("host") and not _host_and_port(fields["host"])[0]:  # two are malformed, too
        raise _bad_data('malformed Host field: "%s"' % fields["host"])
    return method, target, version, fields


def _list_field(field: str) -> list[str]:
    """The elements of a list field in lower case; empty ones do not count (RFC 9110, 5.6.1.2)."""
    return [part.strip(" \t") for part in field.lower().split(",") if part.strip(" \t")]


def _keeps_alive(version: str, fields: Mapping[str, str]) -> bool:
    """RFC 9112, 9.3."""
    options = _list_field(fields.get("connection", ""))
    return "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)


def _announces_body(version: str, fields: Mapping[str, str]) -> bool:
    """RFC 9112, 6.3. The length is not needed, so it is never turned into a number."""
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if length is not None or version == "HTTP/1.0":
            raise _bad_data("Transfer-Encoding with Content-Length, or in HTTP/1.0")
        if _list_field(coding) != ["chunked"]:
            raise _bad_data('unknown transfer coding: "%s"' % coding, 501)
        return True
    if length is not None and not (length.isascii() and length.isdigit()):
        raise _bad_data('malformed Content-Length: "%s"' % length)
    return bool((length or "").strip("0"))


def _write_head(response: Response, connection: str) -> bytes:
    """The head of an answer. connection: value of the Connection field, "" for none."""
    phrase = BaseHTTPRequestHandler.responses.get(response.status, ("",))[0]
    lines = ["HTTP/1.1 %d %s" % (response.status, phrase)]
    lines += ["%s: %s" % pair for pair in response.headers]
    date = _format_date(int(time.time()), usegmt=True)
    lines += ["Date: " + date, "Server: pegasus_http/" + __version__]
    lines += ["Connection: " + connection] if connection else []
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


# === 7. Conversation ==============================================================================
# What is said over one connection, without the connection: a generator yields what it waits for
# and is sent what came of it. Two drivers move the bytes, the loop of `StatusServer` without
# blocking and `StatusHandler.handle` with it, so that both serve the same way.


class _Order:
    """A page that a client waits for. target, host: of its request, as they came. since: when it
    came. job: what it waits for, the key of a state or (snapshot, request). state: what the page is
    made of. known, until: where its answer may be remembered, and until when. page: what the worker
    has made. done: what it calls when it has done the job."""

    def __init__(self, request: _PageRequest, target: str, host: str) -> None:
        self.request, self.target, self.host = request, target, host
        self.since, self.until = time.monotonic(), math.inf
        self.job: object = None
        self.state: _State = None
        self.known: dict[bytes, _Answer] = {}
        self.page: Response | None = None
        self.done: Callable[[], object]


class _Answer(NamedTuple):
    """An answer to send. body: empty unless it is long; then all who ask for it share it. last: the
    connection ends after it. raw: the request's bytes; equal ones may get it if `order` allows."""

    head: bytes
    body: bytes
    last: bool
    raw: bytes
    order: _Order | None


_READ = "bytes of the client"  # the driver sends bytes, b"" at their end, None when it is too late
_END_OUR_SIDE = "the end of our side"  # the driver sends None once the client can see it


class StatusHandler(BaseHTTPRequestHandler):
    """One connection: request bytes in, answer bytes out.

    As the handler class of any `http.server` or `socketserver` server it serves its connection in
    blocking style, on whichever thread that server gives it:

        class Handler(StatusHandler):
            status_server = StatusServer(cluster, role="meta")    # never started: holds the state
        ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()

    What a subclass may override: `status_server`, `respond` (to add pages), `log_message`. What it
    may read there: `command`, `path` (the raw target), `headers` (a dict with lower-case names),
    `request_version`, `requestline`, `client_address`. The loop of `StatusServer` uses this class
    itself. An instance belongs to one thread at a time.
    """

    status_server: StatusServer
    headers: dict[str, str]  # type: ignore[assignment]

    def __init__(self, *connection: Any, driven: bool = False) -> None:
        """connection: socket, client address, server; the base class serves it from within its
        constructor. `driven`: the server is a `StatusServer`, whose loop drives `converse`."""
        self.deadline = 0.0  # time.monotonic() until which `converse` waits for what it yields
        self.idle = False  # whether it waits for a request of which no byte has come
        self._buffer = self._raw = b""  # raw: the request's bytes, if in one piece
        self._more_may_come = False  # of what the client sends, to be drained before the end
        self._prepared = _OPTIONS_RESPONSE
        if driven:
            self.connection, self.client_address, self.status_server = connection
        else:
            super().__init__(*connection)

    def converse(self, refusal: PageError | None = None) -> _Conversation:
        """The connection from its first byte to its last, without a socket: a generator.

        It yields `_READ`, an `_Order` (it is sent the `Response`, or None when the deadline has
        passed), an `_Answer` (it is sent None once that has left) or `_END_OUR_SIDE`. `deadline`
        holds for what was yielded last. refusal: the answer to whatever the client may want.
        """
        while True:
            try:
                if refusal is None and not (yield from self._take_request()):
                    return
            except PageError as error:
                refusal = error
            if refusal is not None:  # the last answer: where the next request begins is unknown
                # RFC 9110, 9.3.2: no body for HEAD, whatever is wrong with the rest
                self.command = "HEAD" if self._buffer.startswith(b"HEAD ") else "-"
                self.path = self.requestline = "-"
                self.request_version, self.headers = "HTTP/1.1", {}
                self.close_connection = self._more_may_come = True
            yield (yield from self._make_answer(refusal))
            if self.close_connection:
                if self._buffer or self._more_may_come:
                    yield from self._drain()
                return

    def _take_request(self) -> Generator[object, Any, bool]:
        """Take the next request off the buffer. False when there is none: the client has ended its
        side or has been idle too long. Raises PageError of what is no request, or comes too slowly.
        Its time begins with its first byte; blank lines before it do not extend the wait."""
        idle_until = self.deadline = time.monotonic() + _IDLE_SECONDS
        self.idle, self._raw = not self._buffer, b""
        scanned, blank_bytes, begun = 0, 0, False
        while True:
            blank = _BLANK_LINES.match(self._buffer)
            if blank is not None:
                self._buffer, scanned = self._buffer[blank.end() :], 0
                blank_bytes += blank.end()
            if not self._buffer:
                begun, self.deadline = False, idle_until
            elif not begun:  # perhaps with a CR that turns out to be of a blank line
                begun, self.deadline = True, time.monotonic() + _HEAD_SECONDS
            if self._find_head(scanned, blank_bytes):
                return True
            if not begun and time.monotonic() >= self.deadline:
                return False
            scanned = len(self._buffer)
            data = yield _READ
            if data == b"":
                return False
            if self.idle:
                idle_until, self.idle = self.deadline, False  # the loop moves it with known answers
            if data is not None:
                self._raw = b"" if self._buffer else data
                self._more_may_come = len(data) >= _RECV_BYTES
                self._buffer += data

    def _find_head(self, scanned: int, blank_bytes: int) -> bool:
        """Whether the buffer begins with a whole head, which then becomes the request."""
        if blank_bytes > _MAX_HEAD:
            raise _bad_data("more than %d bytes of blank lines before a request" % _MAX_HEAD)
        end = _head_end(self._buffer, scanned)
        if end >= 0:
            self.command, self.path, version, fields = _parse_head(self._buffer[:end])
            self.request_version, self.headers = version, fields
            self.requestline = "%s %s %s" % (self.command, self.path, version)
            has_body = _announces_body(version, fields)
            self.close_connection = has_body or not _keeps_alive(version, fields)
            self._more_may_come = self._more_may_come or has_body
            self._buffer = self._buffer[end:]
        elif self._buffer and time.monotonic() >= self.deadline:
            hint = "the request head was not complete within %g s" % _HEAD_SECONDS
            raise PageError(408, "ERR_TIMEOUT", hint)
        return end >= 0

    def _make_answer(self, refusal: PageError | None) -> Generator[object, Any, _Answer]:
        """The answer to the request taken last. Raises nothing."""
        server, order = self.status_server, None
        try:
            if refusal is not None:
                raise refusal
            request = _resolve(self.command, self.path, self.headers, server._pages.settings)
            self._prepared = _OPTIONS_RESPONSE
            if request is not None:
                order = _Order(request, self.path, self.headers.get("host", ""))
                page = server._pages.find(order)
                if page is None:
                    self.deadline = time.monotonic() + server._pages.patience(order)
                    page = yield order
                self._prepared = page or server._pages.find_late(order)
        except BaseException as error:
            self._prepared = server.counters._failure(self.path, error)
        response = self._respond(order)
        self.deadline = time.monotonic() + _WRITE_SECONDS
        kept = "keep-alive" if self.request_version == "HTTP/1.0" else ""
        connection = "close" if self.close_connection else kept
        head, body = _write_head(response, connection), response.body
        if len(body) <= _JOINED_BYTES:
            head, body = head + body, b""
        alone = not (self._buffer or self._more_may_come or server._access_log)
        raw = self._raw if alone and response.status < 400 else b""
        return _Answer(head, body, self.close_connection, raw, order)

    def _respond(self, order: _Order | None) -> Response:
        """What `respond` and the request make of the prepared answer, counted and logged."""
        counters = self.status_server.counters
        try:
            response = self.respond(order.state if order is not None else None)
            response = _finish(response, self.command, self.headers)
        except BaseException as error:
            response = _finish(counters._failure(self.path, error), self.command, {})
        counters.requests += 1
        counters.errors += 1 if response.status >= 400 else 0
        if self.status_server._access_log:
            try:
                self.log_request(response.status, len(response.body))
            except BaseException as error:  # of the host's logging
                counters.last_error = "the access log raised " + type(error).__name__
        return response

    def respond(self, state: _State) -> Response:
        """The answer to the request in `command`, `path` and `headers`; override to add pages.

        state: what the page was made of, None where it shows none. The answer of this class is
        ready: to call it costs nothing. An override may raise a `PageError`; all else is 500. What
        the client's conditions and HEAD leave of an answer is seen to afterwards.
        """
        return self._prepared

    def _drain(self) -> Generator[object, Any, None]:
        """Take in what the client still sends, so that no RST overtakes the answer: closing a
        socket with bytes unread sends one. With limits: a client may send for ever."""
        self._buffer = b""
        yield _END_OUR_SIDE
        self.deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while left > 0 and time.monotonic() < self.deadline:
            data = yield _READ
            if not data:
                return
            left -= len(data)

    def handle(self) -> None:
        """Drive `converse` with a blocking socket. Overridden because the base class takes one
        request with an e-mail parser that is 20 times as slow (measured)."""
        conversation, came, sock = self.converse(), None, self.connection
        flags = 0 if hasattr(sock, "cipher") else _NO_SIGPIPE  # TLS takes none
        with contextlib.suppress(OSError):  # it is no TCP; otherwise this saves 40 ms an answer
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(StopIteration, OSError):  # it is over, or the client is gone
            while True:
                wanted, came = conversation.send(came), None
                sock.settimeout(max(self.deadline - time.monotonic(), 0.001))
                if wanted is _READ:
                    with contextlib.suppress(socket.timeout):
                        came = sock.recv(_RECV_BYTES)
                elif isinstance(wanted, _Order):
                    came = self.status_server._pages.wait(wanted, self.deadline)
                elif isinstance(wanted, _Answer):
                    sock.sendall(wanted.head, flags)
                    sock.sendall(wanted.body, flags)
                else:
                    sock.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *args: Any) -> None:
        """To the logger `pegasus_http.access` in Common Log Format; the base class prints."""
        host = str(self.client_address[0]) if self.client_address else "-"
        now = time.localtime()
        month = self.monthname[now.tm_mon]  # strftime's follows the locale
        when = "%02d/%s/%s" % (now.tm_mday, month, time.strftime("%Y:%H:%M:%S %z", now))
        _logger(".access").info("%s - - [%s] %s", host, when, format % args)


# === 8. Worker ====================================================================================
# One daemon thread asks the source and makes the pages of tables, however many clients wait. It
# tells those who wait for a job when it is done, and they look again. Only the thread that waits
# for an order uses it, except that the worker sets its `page`.


class _Counters:
    """What a server has done since it was made; the docstring of `StatusServer` has the names."""

    def __init__(self) -> None:
        self.requests = self.errors = self.connections = self.refreshes = 0
        self.last_error = ""
        self._reported: dict[str, float] = {}

    def __repr__(self) -> str:
        shown = ["%s=%r" % item for item in vars(self).items() if not item[0].startswith("_")]
        return "<counters %s>" % " ".join(shown)

    def _report(self, text: str, exc_info: bool = False) -> None:
        """Log trouble on our side; the same trouble at most every 10 s, whatever clients do."""
        now, self.last_error = time.monotonic(), text
        if now - self._reported.get(text, -math.inf) <= _REPORT_SECONDS:
            return
        if len(self._reported) >= _MAX_REPORTS:
            self._reported.clear()
        self._reported[text] = now
        try:
            _logger().warning("%s", text, exc_info=exc_info)
        except BaseException as error:  # a handler of the host raised, perhaps SystemExit
            self.last_error = "%s; to log it raised %s" % (text, type(error).__name__)

    def _failure(self, path: str, error: BaseException) -> Response:
        """The answer to `error`, from within its `except`; all but a PageError is reported.
        GeneratorExit, and Ctrl-C in a host's main thread, are raised again."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        ctrl_c = isinstance(error, KeyboardInterrupt) and in_main_thread
        if ctrl_c or isinstance(error, GeneratorExit):
            raise error
        if isinstance(error, PageError):
            return _error_response(error)
        self._report("%s raised %s" % (path.partition("?")[0], type(error).__name__), exc_info=True)
        hint = "the page failed; the log of the server tells more"
        return _error_response(PageError(500, "ERR_UNKNOWN", hint))


class _PerProcess:
    """Something that each process has of its own: a forked child must not wait for a lock, a thread
    or a connection of its parent. Fork hooks would not do: uWSGI and other hosts written in C fork
    without calling them."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: dict[int, Any] = {}

    def __call__(self) -> Any:
        pid = os.getpid()
        made = self._made.get(pid)
        return self._made.setdefault(pid, self._make()) if made is None else made  # atomic


class _Source:
    """What a server asks for its state: a callable of the host, or a subclass. `needs` may be
    called from any thread and answers at once; the other methods run on the worker's thread, one
    call at a time."""

    def __init__(self, function: Any, max_age: float) -> None:
        self._function, self._max_age = function, max_age

    def needs(self, request: _PageRequest) -> tuple[str, ...]:
        """Keys of the states that the page needs, in order. The page is made of the last one; those
        before must be fresh and may already refuse the request. Asked again when a state came."""
        return ("state",)

    def read(self, key: str) -> tuple[_State, float]:
        """The state, None when it is not ready, and the time.monotonic() until which it is fresh.
        What it raises is answered: a PageError as it is, anything else with 500."""
        return self._function(), time.monotonic() + self._max_age

    def rest(self) -> None:
        """Nobody has asked for a while: let go of what can be had again."""


class _Snapshot:
    """A state, and the finished pages that were made of it. cluster: the last good state, which is
    older when this one is an error. asked_at, came_at, until: when it was asked for, when it came,
    and until when it is fresh; for ever if it was published."""

    def __init__(self, state: _State, before: _Snapshot | None = None) -> None:
        self.state = state
        older = None if before is None else before.cluster
        self.cluster: Cluster | None = state if isinstance(state, Cluster) else older
        self.asked_at = self.came_at = self.until = math.inf
        self.pages: dict[_PageRequest, Response] = {}
        self._bytes = 0

    def keep(self, request: _PageRequest, page: Response) -> None:
        """When it is full, the page that was kept last goes: of more pages than fit, asked for in
        turn, most then stay."""
        size = len(page.body)
        if size <= _PAGE_CACHE_BYTES:
            while self._bytes + size > _PAGE_CACHE_BYTES:
                self._bytes -= len(self.pages.popitem()[1].body)
            self.pages[request] = page
            self._bytes += size


class _Worker:
    """The daemon thread that works for `_Pages`: started at its first job, one job at a time, ends
    when it is idle. All but `_run` may be called from any thread."""

    def __init__(self, pages: _Pages) -> None:
        self._pages = pages
        self._condition = threading.Condition()
        self._jobs: dict[object, dict[_Order, bool]] = {}  # what is to be done: who waits for it
        self._under_way: object = None
        self._stopped = False
        self.thread: threading.Thread | None = None

    def add(self, key: object, order: _Order | None = None) -> None:
        """Have the job of `key` done, for `order` if there is one. Raises PageError when too many
        different jobs wait or the host cannot start a thread."""
        with self._condition:
            if key not in self._jobs and order and len(self._jobs) >= _WAITING_PAGES:
                hint = "%d other pages are waiting to be made" % _WAITING_PAGES
                raise _unavailable(hint, "ERR_BUSY")
            if self.thread is None:
                name = "pegasus-http-worker"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    hint = "the host cannot start the thread that makes this page: %s" % error
                    raise _unavailable(hint, "ERR_BUSY") from None
                self.thread = thread
            orders = self._jobs.setdefault(key, {})
            if order is not None:
                orders[order] = True
            self._condition.notify()

    def cancel(self, order: _Order) -> None:
        """Whoever gave `order` waits no longer."""
        with self._condition:
            orders = self._jobs.get(order.job, {})
            if orders.pop(order, False) and not orders and order.job != self._under_way:
                del self._jobs[order.job]

    def keep(self, alive: bool) -> None:
        """Whether the thread is to live on for a while when nothing is left to do."""
        with self._condition:
            self._stopped = not alive
            self._condition.notify()

    def _run(self) -> None:
        _BURST.pages = self._pages
        while True:
            page = None
            with self._condition:
                if not (self._jobs or self._stopped):
                    self._condition.wait(_WORKER_IDLE_SECONDS)
                key = self._under_way = next(iter(self._jobs), None)
            try:
                page = self._pages.work(key)
            except BaseException:  # this thread serves everybody: it lives on
                self._pages.counters._report("the worker failed", exc_info=True)
            with self._condition:
                if key is None and not self._jobs:
                    self.thread = None
                    return
                orders, self._under_way = self._jobs.pop(key, {}), None
            for order in orders:
                order.page = page
                with contextlib.suppress(BaseException):  # likewise
                    order.done()


# Strategy: answers are kept in a snapshot or in `known`. Both belong to one state and are replaced
# with it: first the snapshot, then `known`. An `_Order` takes `known` first. So nothing that is
# still being made of an old state can reach a new one, without a lock.
class _Pages:
    """Finds the page of a request, or has it made. All methods but those of the worker may be
    called from any thread."""

    def __init__(
        self, source: _Source, settings: _Settings, timeout: float, counters: _Counters
    ) -> None:
        self._source, self._timeout = source, timeout
        self.settings, self.counters = settings, counters
        self.worker = _PerProcess(functools.partial(_Worker, self))
        self.known: dict[bytes, _Answer] = {}  # answers by the bytes of their request
        self._snapshots: dict[str, _Snapshot] = {}
        self._refreshed_at = -math.inf
        self.loop_is_busy = False  # answering clients at this moment

    def publish(self, state: _State) -> None:
        self._snapshots = {"state": _Snapshot(state)}
        self.known = {}

    def refresh(self) -> None:
        self._refreshed_at = time.monotonic()
        self.known = {}

    def find(self, order: _Order, late: bool = False) -> Response | None:
        """The page if it is there; None when `order.job` has to be done first. If it is too `late`
        for that, all pages but the cluster's do without it. Takes constant time, whatever the
        cluster's size: pages that are made here have at most 11 KB and take 0.1 ms. Raises
        PageError."""
        request, shows = order.request, order.request.route.shows
        order.known, order.state, order.until = self.known, None, math.inf
        if shows == "cluster":
            return self._find_made(order)
        if shows != "nothing" and not self._take_last(order, late):
            return None
        return _render(order.state, request, self.settings)

    def find_late(self, order: _Order) -> Response:
        """The answer when the page has not come in time."""
        page = self.find(order, late=True)
        if page is None:
            source = isinstance(order.job, str)
            reason = "its source has not answered" if source else "it is still being made"
            hint = "this page was not ready within %g s: %s" % (self._timeout, reason)
            raise PageError(504, "ERR_TIMEOUT", hint)
        return page

    def patience(self, order: _Order) -> float:
        """Seconds for which an order waits for its page."""
        waits = order.request.route.shows == "cluster" or order.request.query.primary
        return self._timeout if waits else min(self._timeout, _GLANCE_SECONDS)

    def fetch(self, order: _Order) -> Response | None:
        """The page, or the error instead of it. None when the worker has something to do first: it
        will call `order.done`, which has to see to it that this is called again."""
        try:
            page = order.page or self.find(order)
            if page is None:
                self.worker().add(order.job, order)
            return page
        except BaseException as error:
            return self.counters._failure(order.request.path, error)

    def wait(self, order: _Order, deadline: float) -> Response | None:
        """The page, for which this thread waits; None when the deadline has passed."""
        ready = threading.Event()
        order.done = ready.set
        page = self.fetch(order)
        while page is None and ready.wait(max(deadline - time.monotonic(), 0.0)):
            ready.clear()
            page = self.fetch(order)
        self.worker().cancel(order)
        return page

    def warm_up(self) -> None:
        """Have /meta/apps made, and say so when its source cannot be reached."""

        def look() -> None:
            if self.fetch(order) is not None and isinstance(order.state, PageError):
                again = "; serving, and asking again with the next request"
                _warn(order.state.hint_message + again)

        order = _Order(_PageRequest("/meta/apps", _Query(), False, False), "/meta/apps", "")
        order.done = look
        look()

    def _look_up(self, order: _Order, key: str) -> tuple[_Snapshot | None, bool]:
        """(what is there by that key, whether it is fresh). What came while the order waited is
        fresh whatever its `until`; what was asked for before a refresh never is."""
        order.job, snapshot = key, self._snapshots.get(key)
        if snapshot is None or snapshot.asked_at < self._refreshed_at:
            order.until = -math.inf
            return snapshot, False
        order.until = min(order.until, snapshot.until)
        return snapshot, snapshot.until > time.monotonic() or snapshot.came_at >= order.since

    def _find_made(self, order: _Order) -> Response | None:
        page, request = None, order.request
        for key in self._source.needs(request):
            snapshot, fresh = self._look_up(order, key)
            if snapshot is None or not fresh:
                return None
            order.job, order.state = (snapshot, request), snapshot.state
            _check_ready(order.state, request.query.name, order.target, order.host, self.settings)
            page = snapshot.pages.get(request)
        return page

    def _take_last(self, order: _Order, late: bool) -> bool:
        """Whether the order need not wait: its `state` is the last one, or None when it is too
        `late` to wait. What is not fresh is asked for again in any case. Of a source that has been
        silent for longer than max_age and timeout together, /health shows nothing."""
        key = self._source.needs(order.request)[0]
        snapshot, fresh = self._look_up(order, key)
        if not fresh:
            try:
                self.worker().add(key)
            except PageError:  # no thread can be started: the page must do without
                late = True
        if snapshot is not None and order.request.route.shows == "last cluster":
            order.state = snapshot.cluster
        elif snapshot is not None and time.monotonic() <= snapshot.until + self._timeout:
            order.state = snapshot.state
        else:
            return late
        return True

    # --- on the worker's thread -------------------------------------------------------------------

    def work(self, job: Any) -> Response | None:
        """Ask for the state of a key or, for None, rest. Of (snapshot, request) make the page,
        which is kept, or the error that it ends with."""
        if job is None:
            self._source.rest()
        elif isinstance(job, str):
            self._ask(job)
        else:
            snapshot, request = job
            page: Response | None = snapshot.pages.get(request)
            if page is None:  # otherwise it has come since the job was added
                try:
                    page = _render(snapshot.state, request, self.settings)
                except BaseException as error:
                    return self.counters._failure(request.path, error)
                snapshot.keep(request, page)
            return page
        return None

    def _ask(self, key: str) -> None:
        """Ask the source; an equal state keeps the pages that were made of it."""
        asked_at, snapshot = time.monotonic(), self._snapshots.get(key)
        if snapshot and snapshot.asked_at >= self._refreshed_at and snapshot.until > asked_at:
            return  # it has come since the job was added
        state, until = None, 0.0
        try:
            state, until = self._source.read(key)
            if state is None:
                raise _unavailable("the source is not ready")
            if not isinstance(state, (Cluster, Standby, PageError)):
                kind = type(state).__name__
                raise TypeError("the source returned %s, not a Cluster or Standby" % kind)
        except PageError as error:
            state = error.with_traceback(None)
        except BaseException as error:  # SystemExit too: it must not end this thread
            self.counters._report("the source raised " + type(error).__name__, exc_info=True)
            hint = "the source of this page failed; the log of the server tells more"
            state = PageError(500, "ERR_UNKNOWN", hint)
        if not (snapshot and isinstance(state, Cluster) and state == snapshot.state):
            snapshot = _Snapshot(state, snapshot)
        snapshot.asked_at, snapshot.came_at = asked_at, time.monotonic()
        snapshot.until = max(until, snapshot.came_at)
        self._snapshots[key] = snapshot
        if len(self._snapshots) > _KEPT_STATES:  # the first one, which all pages need, stays
            del self._snapshots[next(itertools.islice(self._snapshots, 1, None))]
        self.known = {}
        self.counters.refreshes += 1


# === 9. Loop ======================================================================================
# Owns the sockets, on one thread, without blocking. It moves bytes and keeps deadlines. What they
# mean is the business of conversations; the loop only knows some answers by their request's bytes.

_READABLE, _WRITABLE, _CLIENT_ENDED = 0x001, 0x004, 0x2000  # EPOLLIN, EPOLLOUT, EPOLLRDHUP


class _SelectPoller:
    """What `select.epoll` does, by way of `select.select`: gevent and eventlet take epoll away from
    the processes that they patch, and other systems than Linux have none."""

    def __init__(self) -> None:
        self._watched: dict[int, int] = {}
        self.modify, self.unregister = self._watched.__setitem__, self._watched.__delitem__
        self.close = self._watched.clear

    def register(self, fd: int, events: int) -> None:
        if fd >= 1024:
            raise OSError(errno.EMFILE, "select() takes descriptors below 1024 only")
        self._watched[fd] = events

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        readers = [fd for fd, events in self._watched.items() if events & _READABLE]
        writers = [fd for fd, events in self._watched.items() if events & _WRITABLE]
        readers, writers, _ = select.select(readers, writers, [], timeout)
        return [(fd, _READABLE) for fd in readers] + [(fd, _WRITABLE) for fd in writers]


_TURN, _EXPIRED = "its turn has come", "its deadline has passed"


class _Connection:
    """A client's socket, and the conversation over it. On the loop's thread alone, where an OSError
    means that the client is gone: the loop then closes the connection."""

    def __init__(
        self, loop: _Loop, sock: socket.socket, address: Any, refusal: PageError | None
    ) -> None:
        self.loop, self.sock, self.fd = loop, sock, sock.fileno()
        self.recv, self.send = sock.recv, sock.send
        self.conversation = StatusHandler(sock, address, loop.server, driven=True)
        self.steps = self._steps(self.conversation.converse(refusal))
        self.watched = -1  # the events that the poller watches; -1: none yet
        self.order: _Order | None = None  # the page that is waited for
        self.unsent: list[memoryview] = []  # of the answer that is leaving
        self.half_closed = False  # the client, or we, have ended one side

    def resume(self, why: object = None) -> None:
        """Take the steps that can be taken without waiting."""
        try:
            events = self.steps.send(why)
        except StopIteration:
            self.close()
            return
        self.loop.sweep_by(self.conversation.deadline)
        if events != self.watched:
            poller = self.loop.poller
            (poller.register if self.watched < 0 else poller.modify)(self.fd, events)
            self.watched = events

    def _steps(self, conversation: _Conversation) -> Generator[int, object, None]:
        """Do what the conversation waits for, from the first step to the last. Yields the events to
        watch for, and is sent what came: those events, the bytes, a known answer that has been
        begun, _TURN or _EXPIRED."""
        came: object = None
        with contextlib.suppress(StopIteration), contextlib.closing(conversation):
            while True:
                wanted = conversation.send(came)
                came = None
                if wanted is _READ:
                    came = yield from self._receive()
                elif isinstance(wanted, _Order):
                    came = yield from self._fetch(wanted)
                elif isinstance(wanted, _Answer):
                    self.loop.remember(wanted)
                    self.begin(wanted)
                    yield from self._send_rest()
                    if self.loop.stopping:
                        return
                    # Other connections have their turn before this one's next request.
                    self.loop.turns.append(self)
                    while (yield self.watched) is not _TURN:
                        pass
                else:
                    self.half_closed = True
                    self.sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> Generator[int, object, bytes | None]:
        """Read once more when the time is over: the client may have sent while the process was
        stopped or the machine slept."""
        while True:
            why = yield _READABLE
            if isinstance(why, bytes):
                return why
            if isinstance(why, _Answer):  # a known one, begun already
                self.conversation.idle = False
                self.conversation.deadline = self.loop.now + _WRITE_SECONDS
                yield from self._send_rest()
                if why.last or self.loop.stopping:
                    return b""
                self.conversation.idle = True
                self.conversation.deadline = self.loop.now + _IDLE_SECONDS
                continue
            with contextlib.suppress(BlockingIOError):
                return self.recv(_RECV_BYTES)
            if why is _EXPIRED:
                return None

    def _fetch(self, order: _Order) -> Generator[int, object, Response | None]:
        """A client that ends its side may wait for the page all the same, as `nc -N` does."""
        order.done = functools.partial(self.loop.give_turn, self)
        self.order, events = order, _CLIENT_ENDED
        try:
            page = self.loop.pages.fetch(order)
            while page is None:
                why = yield events
                if why is _EXPIRED:
                    return None
                if why is _TURN:
                    page = self.loop.pages.fetch(order)
                elif why == _CLIENT_ENDED:
                    self.half_closed, events = True, 0
                else:
                    raise ConnectionResetError
            return page
        finally:
            self.order = None
            self.loop.pages.worker().cancel(order)

    def begin(self, answer: _Answer) -> bool:
        """Send what leaves at once; whether that was all. Head and body leave in one call: as two
        packets the second would wait for the ACK of the first (44 ms)."""
        head, body, flags = answer.head, answer.body, _NO_SIGPIPE
        try:
            sent = self.sock.sendmsg([head, body], [], flags) if body else self.send(head, flags)
        except OSError:  # there is no room, or the client is gone, as the next attempt will show
            sent = 0
        if sent < len(head) + len(body):
            self.unsent = [memoryview(part) for part in (head, body) if part]
            self._drop(sent)
            self.loop.unsent_grew = True
        return not self.unsent

    def _send_rest(self) -> Generator[int, object, None]:
        while self.unsent:
            if (yield _WRITABLE) is _EXPIRED:
                raise TimeoutError
            with contextlib.suppress(BlockingIOError):
                self._drop(self.sock.sendmsg(self.unsent, [], _NO_SIGPIPE))

    def _drop(self, sent: int) -> None:
        while self.unsent and sent >= len(self.unsent[0]):
            sent -= len(self.unsent.pop(0))
        if sent:
            self.unsent[0] = self.unsent[0][sent:]

    def close(self) -> None:
        """End it all. The shutdown is seen by the client even if a forked child holds a copy of the
        socket."""
        if self.sock.fileno() < 0:
            return  # it is closed
        del self.loop.connections[self.fd]
        if self.watched >= 0:
            self.loop.poller.unregister(self.fd)
        self.steps.close()
        with self.sock, contextlib.suppress(OSError):  # the client may have been faster
            self.sock.shutdown(socket.SHUT_RDWR)


class _Loop:
    """The listener, all connections and their deadlines, on one thread of process `pid`."""

    def __init__(self, listener: socket.socket, server: StatusServer, max_connections: int) -> None:
        self.server, self._counters = server, server.counters
        self.pages: _Pages = server._pages
        self.pid, self.port = os.getpid(), int(listener.getsockname()[1])
        self.thread: threading.Thread | None = None
        self.poller: Any = select.epoll() if hasattr(select, "epoll") else _SelectPoller()
        self.now: float = time.monotonic()
        self.connections: dict[int, _Connection] = {}
        self.turns: collections.deque[_Connection] = collections.deque()  # next to be resumed
        self.stopping: bool = False
        self.closed: bool = False
        self.unsent_grew: bool = False  # by one more answer that could not leave at once
        self._listener, self._max_connections = listener, max_connections
        self._wakee, self._waker = socket.socketpair()
        self._sweep_at, self._known_until, self._stop_at = self.now, self.now, math.inf
        for sock in (listener, self._wakee, self._waker):
            sock.setblocking(False)
        self._reactions: dict[int, Callable[[], object]] = {
            listener.fileno(): self._accept,
            self._wakee.fileno(): functools.partial(self._wakee.recv, 4096),
        }
        for fd in self._reactions:
            self.poller.register(fd, _READABLE)

    def run(self) -> None:
        """Until `stopping` is set, and until the answers under way have left then."""
        try:
            while not self.stopping:
                self._turn()
        except BaseException:  # for example, the host has closed all its descriptors
            # Ours stay as they are: their numbers may be others' by now.
            self._counters._report("the server has stopped", exc_info=True)
            self.stopping = self.closed = True
            return
        self.poller.unregister(self._listener.fileno())
        self._listener.close()
        self._stop_at = self.now + _STOP_SECONDS
        self.sweep_by(self._stop_at)
        for connection in list(self.connections.values()):
            if connection.order is None and not connection.unsent:
                connection.close()
        while self.connections and self.now < self._stop_at:
            self._turn()
        for connection in list(self.connections.values()):
            connection.close()
        self.abandon()
        self.closed = True

    def _turn(self) -> None:
        self.pages.loop_is_busy = bool(self.turns)
        ready = self.poller.poll(0.0 if self.turns else max(self._sweep_at - self.now, 0.0))
        self.pages.loop_is_busy, self.now = True, time.monotonic()
        if self.now >= self._known_until:  # the Date in them, or their state, is over
            self.pages.known = {}
            self._known_until = self.now + 1.0 - time.time() % 1.0
        self._serve(ready)
        for _ in range(len(self.turns)):
            connection = self.turns.popleft()
            # One that waits for no page any longer looks in vain for bytes: no harm.
            self._guard(connection, connection.resume, _TURN)
        if self.unsent_grew:
            self.unsent_grew = False
            self._bound_unsent()
        if self.now >= self._sweep_at:
            self._sweep()

    def _serve(self, ready: Iterable[tuple[int, int]]) -> None:
        """React to what is ready.

        Equal bytes have an equal answer for as long as the second and the state last: to look it up
        takes 3 us, to parse, dispatch and frame 24 (measured). It is all that a poller needs.
        """
        connections, pages = self.connections, self.pages
        for fd, events in ready:
            connection = connections.get(fd)
            if connection is None:  # perhaps it was closed in this turn
                self._guard(None, self._reactions.get(fd, int))  # int does nothing
            elif not connection.conversation.idle:
                self._guard(connection, connection.resume, events)
            else:
                try:
                    data = connection.recv(_RECV_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                answer = pages.known.get(data)
                if answer is None:
                    self._guard(connection, connection.resume, data)
                    continue
                self._counters.requests += 1  # the conversation does not move
                if connection.begin(answer) and not answer.last:
                    connection.conversation.deadline = self.now + _IDLE_SECONDS
                else:
                    self._guard(connection, connection.resume, answer)

    def _guard(self, connection: _Connection | None, function: Any, *arguments: object) -> None:
        """Whatever goes wrong in one connection closes that one alone."""
        try:
            function(*arguments)
        except BaseException as error:
            if not isinstance(error, OSError):  # otherwise the client is gone
                self._counters._report("a connection failed", exc_info=True)
            if connection is not None:
                connection.close()

    def remember(self, answer: _Answer) -> None:
        """Answer equal bytes in the same way, until the second or the state is over."""
        raw, order = answer.raw, answer.order
        if not raw or order is None or order.until <= self.now:
            return
        if len(raw) <= _KNOWN_BYTES and len(order.known) < _KNOWN_REQUESTS:
            order.known[raw] = answer._replace(raw=b"", order=None)
            self._known_until = min(self._known_until, order.until)

    def give_turn(self, connection: _Connection) -> None:
        """Resume `connection`, which waits for a page, on the loop's thread. From any thread."""
        self.turns.append(connection)
        self.wake()

    def wake(self) -> None:
        """Have another turn. From any thread."""
        with contextlib.suppress(OSError):  # it is full, which wakes as well, or closed
            self._waker.send(b"\0", _NO_SIGPIPE)

    def abandon(self) -> None:
        """Close the descriptors, end no connection: they are the parent's in a forked child."""
        self.pages.loop_is_busy = False
        sockets = [connection.sock for connection in self.connections.values()]
        for thing in (*sockets, self._listener, self._wakee, self._waker, self.poller):
            thing.close()

    def sweep_by(self, deadline: float) -> None:
        self._sweep_at = min(self._sweep_at, deadline)

    def _sweep(self) -> None:
        """Expire what is over; deadlines are absolute, and looked at no oftener than needed."""
        for connection in list(self.connections.values()):
            if connection.conversation.deadline <= self.now:
                self._guard(connection, connection.resume, _EXPIRED)
        if not self.stopping:
            self.poller.modify(self._listener.fileno(), _READABLE)  # the end of a pause
        deadlines = [c.conversation.deadline for c in self.connections.values()]
        self._sweep_at = max(min([*deadlines, self._stop_at, self.now + 60.0]), self.now + 0.02)

    def _accept(self) -> None:
        """When descriptors have run out, in this process or in the system, pause: otherwise the
        poller would report the waiting client again and again."""
        for n in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if n > 0:
                    return  # it is not known whether one more is waiting
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._make_room():
                    self._counters._report("cannot accept connections: %s" % error.strerror)
                    self.poller.modify(self._listener.fileno(), 0)
                    self.sweep_by(self.now + _ACCEPT_PAUSE_SECONDS)
                return
            self._admit(sock, address)
            if len(self.connections) >= self._max_connections:
                return  # to make room takes milliseconds: others have their turn first

    def _admit(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        self._counters.connections += 1
        limit, refusal = self._max_connections, None
        while len(self.connections) >= limit and refusal is None:
            if not self._make_room():
                refusal = _unavailable("the limit of %d connections is reached" % limit, "ERR_BUSY")
        connection = _Connection(self, sock, address, refusal)
        self.connections[connection.fd] = connection
        self._guard(connection, connection.resume, None)
        if len(self.connections) > limit + min(_REFUSED_AT_ONCE, limit // 16):
            connection.close()  # those who are being told so are bounded too

    def _make_room(self) -> bool:
        """Close a connection of which one side has ended: it is over, or most likely its client has
        gone. If there is none, the longest idle one whose client has sent nothing by now."""
        ended = [c for c in self.connections.values() if c.half_closed]
        found = ended or [c for c in self.connections.values() if c.conversation.idle]
        found.sort(key=lambda c: c.conversation.deadline)
        for connection in found[:_LOOKED_AT_FOR_ROOM]:
            with contextlib.suppress(OSError):
                if not ended and connection.recv(1, socket.MSG_PEEK):
                    continue
            connection.close()
            return True
        return False

    def _bound_unsent(self) -> None:
        """Clients that do not read hold the pages of states that are over. When different pages of
        more than _UNSENT_BYTES in all are leaving, those that began first are given up."""
        unsent = [c for c in self.connections.values() if c.unsent]
        kept: set[int] = set()  # the identities of pages
        size = 0
        for connection in sorted(unsent, key=lambda c: -c.conversation.deadline):
            page: Any = connection.unsent[-1].obj
            if id(page) in kept:
                continue
            if kept and size + len(page) > _UNSENT_BYTES:
                connection.close()
            else:
                kept.add(id(page))
                size += len(page)


# === 10. Server ===================================================================================


def _check_state(state: object, expected: str = "a Cluster or a Standby") -> Cluster | Standby:
    if isinstance(state, (Cluster, Standby)):
        return state
    raise TypeError("expected %s, got %s" % (expected, type(state).__name__))


def _listen(host: str, port: int) -> socket.socket:
    """A listener at the address; not http.server's, whose getfqdn may stall for 30 s."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    sock = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    return sock


def _connection_limit(wished: int | None) -> int:
    """At most three quarters of the descriptors that the process may have: the host needs some."""
    import resource

    limit = _MAX_CONNECTIONS if wished is None else wished
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if most == resource.RLIM_INFINITY else max(1, min(limit, most * 3 // 4))


_STARTED: weakref.WeakSet[StatusServer] = weakref.WeakSet()


@functools.lru_cache(maxsize=1)
def _hook_forks() -> None:
    """A child would hold the port and every connection open for as long as it lives. Once, at the
    first start: the hook cannot be taken back."""

    def abandon() -> None:
        for server in _STARTED:
            server._abandon()

    os.register_at_fork(after_in_child=abandon)


class StatusServer:
    """The HTTP status server: one daemon thread for sockets, one more that makes pages.

    source: a `Cluster` or `Standby` (replaced by `publish`); a zero-argument callable that returns
        one, asked on the worker's thread; a `LiveCluster` or `StateFile`; None: /meta pages answer
        503.
    role: "meta" or "replica". host, port: where to listen; port 0 takes a free one. "::" serves
        IPv4 too.
    version, git_commit: for /version; None shows the state's, or this module's version.
    flat: the later page shapes, as Pegasus 1.12.3 and 2.x have them.
    max_age: seconds an answer of a callable source is kept; a `LiveCluster` or `StateFile` has its
        own.
    timeout: seconds a page waits for its source before it answers 504.
    max_connections: at once, and at most three quarters of the descriptors that the process may
        have. Above it the connection that has been idle longest is closed; when none is idle, new
        ones get 503.
    compress: gzip for clients that accept it. access_log: a line per request to the logger
        `pegasus_http.access` at INFO.

    Its attribute `counters` has plain numbers: requests, errors (answers with a status of 400 or
    more), connections, refreshes (answers of the source); and last_error, a text, "" for none.

    Raises TypeError or ValueError for arguments that make no sense. The constructor touches
    nothing. All methods and attributes may be used from any thread. In a forked child the server is
    not running and can be started. A context manager: `with` starts and stops it.
    """

    def __init__(
        self, source: _AnySource = None, *, role: str, host: str = "127.0.0.1", port: int = 0,
        version: str | None = None, git_commit: str | None = None, flat: bool = False,
        max_age: float = 0.0, timeout: float = 5.0, max_connections: int | None = None,
        compress: bool = True, access_log: bool = False,
    ) -> None:
        settings = _checked_settings(role, version, git_commit, flat, compress)
        if not _check_text(host, "host"):
            raise _bad_value("host", 'an address such as "127.0.0.1" or "0.0.0.0"', host)
        _check_count(port, "port", 65535)
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        _check_count(1 if max_connections is None else max_connections, "max_connections", least=1)
        self._host, self._port, self._max_connections = host, port, max_connections
        self._access_log, self.counters = access_log, _Counters()
        self._is_published = not callable(source)
        asked = source if isinstance(source, _Source) else _Source(source, max_age)
        self._pages = _Pages(asked, settings, timeout, self.counters)
        if self._is_published:
            kinds = "a Cluster, Standby, LiveCluster, StateFile, function or None as the source"
            self._pages.publish(None if source is None else _check_state(source, kinds))
        self._lock = _PerProcess(threading.RLock)  # a signal handler may stop it within `start`
        self._loop: _Loop | None = None  # of the last start
        _encode("")  # imports json now: not while a fork or a request is under way
        _connection_limit(None)  # imports resource now: not without descriptors

    def __enter__(self) -> StatusServer:
        """Start, unless it runs already: `with start(...) as server` works too."""
        if not self.running:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        """Such as <StatusServer meta http://127.0.0.1:34601 running>."""
        how = "running" if self.running else "not running"
        return "<StatusServer %s %s %s>" % (self._pages.settings.role, self.url, how)

    @property
    def port(self) -> int:
        """The port: while running the one that is bound."""
        return self._loop.port if self._loop is not None and self.running else self._port

    @property
    def url(self) -> str:
        """Where to find the server, such as "http://127.0.0.1:34601"."""
        return "http://" + _join(self._host, self.port)

    @property
    def running(self) -> bool:
        """Whether it is serving, in this process."""
        loop = self._loop
        return loop is not None and loop.pid == os.getpid() and not loop.stopping

    def start(self) -> None:
        """Bind in the caller's thread and serve on a daemon thread.

        Raises OSError when the address cannot be bound, RuntimeError when it runs already or no
        daemon thread can be started, as in a subinterpreter.
        """
        with self._lock():
            if self.running:
                raise RuntimeError("the server is running already at " + self.url)
            self._abandon()
            _logger()  # imports logging now: not by a request, not without descriptors
            listener = _listen(self._host, self._port)
            with contextlib.ExitStack() as undo:
                undo.callback(listener.close)
                loop = _Loop(listener, self, _connection_limit(self._max_connections))
                undo.callback(loop.abandon)
                address, pages = _join(self._host, loop.port), self._pages
                pages.settings = pages.settings._replace(address=address)
                try:
                    name = "pegasus-http:%d" % loop.port
                    loop.thread = threading.Thread(target=loop.run, name=name, daemon=True)
                    loop.thread.start()
                except RuntimeError as error:
                    hint = "start it in the main interpreter of a process that may have one more"
                    text = "the server needs a daemon thread: %s; %s" % (error, hint)
                    raise RuntimeError(text) from None
                undo.pop_all()
            pages.worker().keep(alive=True)
            self._loop = loop
            _hook_forks()
            _STARTED.add(self)

    def stop(self) -> None:
        """Free the port: answers under way get a second to leave, all else is closed.

        It may be called twice, before `start`, or by a page, a source or a signal handler. Returns
        when the port is free, except from a page, whose answer still has to leave. Does not wait
        for a source that hangs. The server can be started again.
        """
        if threading is None or sys is None or sys.is_finalizing():
            return  # the interpreter is clearing its modules: the system frees the port
        with self._lock():
            self._abandon()
            loop, worker = self._loop, self._pages.worker()
            worker.keep(alive=False)
            if loop is not None:
                loop.stopping = True
                loop.wake()
        if loop is None or threading.current_thread() in (worker.thread, loop.thread):
            return
        # Not by Thread.join: in a signal handler that interrupts another one it may wait for ever.
        until = time.monotonic() + _STOP_SECONDS + 5.0
        while not loop.closed and time.monotonic() < until:
            time.sleep(0.001)

    def publish(self, state: Cluster | Standby) -> None:
        """Serve `state` from now on. Never blocks; what is being answered keeps the state it has.

        Raises TypeError for anything but a `Cluster` or `Standby` (the last state stays), and
        RuntimeError when the server has a source that it asks.
        """
        if not self._is_published:
            raise RuntimeError("this server asks its source: publish is for servers without one")
        self._pages.publish(_check_state(state))

    def refresh(self) -> None:
        """Have the source asked again, with the next request for each of its answers. Never blocks.
        What was published stays; a `LiveCluster` keeps what it was told for its own max_age."""
        self._pages.refresh()

    def _abandon(self) -> None:
        """In a forked child: our thread is not there, the sockets are the parent's."""
        if self._loop is not None and self._loop.pid != os.getpid():
            self._loop.abandon()
            self._loop = None


def start(
    source: _AnySource = None, *, role: str, host: str = "127.0.0.1", port: int = 0,
    version: str | None = None, git_commit: str | None = None, flat: bool = False,
    max_age: float = 0.0, timeout: float = 5.0, max_connections: int | None = None,
    compress: bool = True, access_log: bool = False,
) -> StatusServer:
    """Make a `StatusServer` of these arguments and start it; raises what its `start` raises."""
    server = StatusServer(
        source, role=role, host=host, port=port, version=version, git_commit=git_commit, flat=flat,
        max_age=max_age, timeout=timeout, max_connections=max_connections, compress=compress,
        access_log=access_log)
    server.start()
    return server


# === 11. State file and sample ====================================================================

# Fields of app_info and partition_configuration that no page shows: fine in a file, not kept.
_UNSHOWN_OF_APP = ("duplicating", "init_partition_count", "is_bulk_loading", "atomic_idempotent")
_UNSHOWN_OF_PARTITION = ("pid", "last_drops", "last_committed_decree", "partition_flags")
_INFO_FIELDS = Cluster._fields[2:11]
# The parts of a file that hold texts, with the field of `Cluster` for each.
_TEXT_FIELDS = {
    "cluster_info": {name: name for name in _INFO_FIELDS},
    "server_info": {"version": "version", "git_SHA": "git_commit"},
}


def _failure_text(error: Exception) -> str:
    """One sentence, without Python's "[Errno 2]"."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror[:1].lower() + error.strerror[1:]
        return "%s: %s" % (error.filename, text) if error.filename else text
    if isinstance(error, MemoryError):
        return "not enough memory for this state"
    if isinstance(error, PageError):
        return error.hint_message + "; give --cluster the RPC addresses of meta servers"
    return str(error)


def _object(
    value: Any, where: str, fields: Iterable[str], needed: int = 0, unshown: Sequence[str] = ()
) -> dict[str, Any]:
    """A JSON object with `fields`, at least the first `needed`; `unshown` ones are left out."""
    if not isinstance(value, dict):
        raise _bad_value(where, "an object", value)
    if None in value:
        raise ValueError("%s: %s appears twice" % (where, _show(value[None])))
    known = dict.fromkeys((*fields, *unshown))
    for name in value:
        if name not in known:
            unknown = (where, _show(name), ", ".join(known))
            raise ValueError("%s: unknown field %s, expected one of %s" % unknown)
    for name in itertools.islice(known, needed):
        if name not in value:
            raise ValueError("%s: %s is missing" % (where, _encode(name)))
    return {name: item for name, item in value.items() if name not in unshown}


def _items(value: object, where: str) -> Iterator[tuple[Any, str]]:
    """The items of a JSON list, each with its place."""
    if not isinstance(value, list):
        raise _bad_value(where, "a list", value)
    for n, item in enumerate(value):
        _pause_if_due()
        yield item, "%s[%d]" % (where, n)


def _partitions_from_json(rows: object, where: str) -> tuple[Partition, ...]:
    partitions = []
    for row, place in _items(rows, where):
        fields = _object(row, place, Partition._fields, 0, _UNSHOWN_OF_PARTITION)
        secondaries = _items(fields.get("secondaries", []), place + ".secondaries")
        fields["secondaries"] = tuple([address for address, _ in secondaries])
        partitions.append(_check_partition(Partition(**fields), place))
    return tuple(partitions)


# Strategy: `json` calls a function written in Python for each object, so that the interpreter lock
# changes hands. That function cannot know the place of its object. So a name that appears twice is
# kept under None, which is nobody's name, until `_object` knows the place. And partitions are made
# at once, where nothing is wrong with them: a million dictionaries and lists of a large file would
# stop all threads for 0.4 s (measured) whenever the garbage collector goes through them. It would
# still be 80 ms if those of unchanged tables, which are `known`, were there twice.
def _pairs_to_object(known: Mapping[Any, Any], pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    _pause_if_due()
    members: dict[Any, Any] = dict(pairs)
    if len(members) < len(pairs):
        members[None] = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
    if isinstance(members.get("partitions"), list):
        with contextlib.suppress(ValueError):  # to be told with its place, by `_app_from_json`
            partitions = _partitions_from_json(members["partitions"], "")
            members["partitions"] = known.get(partitions, partitions)
    return members


def _app_from_json(value: object, where: str) -> App:
    fields = _object(value, where, App._fields, 2, _UNSHOWN_OF_APP)
    rows, envs = fields.get("partitions"), fields.get("envs", {})
    if rows is not None and not isinstance(rows, tuple):
        fields["partitions"] = _partitions_from_json(rows, where + ".partitions")
    fields["envs"] = _object(envs, where + ".envs", envs or ())  # any names
    try:
        return App(**fields)
    except ValueError as error:
        raise ValueError("%s.%s" % (where, error)) from None


def _cluster_from_json(value: object, before: Sequence[App]) -> Cluster:
    top = _object(value, "top level", ("apps", "nodes", *_TEXT_FIELDS), 2)
    apps = [_app_from_json(*item) for item in _items(top["apps"], "apps")]
    nodes = [Node(**_object(*item, Node._fields, 2)) for item in _items(top["nodes"], "nodes")]
    texts = {}
    for part, fields in _TEXT_FIELDS.items():
        for name, text in _object(top.get(part, {}), part, fields).items():
            texts[fields[name]] = _check_text(text, "%s.%s" % (part, name))
    return Cluster(_with_known(apps, before), nodes, **texts)


def _load_cluster(data: bytes, name: str, before: Sequence[App] = ()) -> Cluster:
    """ValueError, with `name` and the place, for all that is not a cluster. before: the tables that
    were read last."""
    import json

    known = {app.partitions: app.partitions for part in _slices(before) for app in part}
    try:
        if len(data) > _STATE_BYTES:
            raise ValueError("larger than %d bytes, the most that is read" % _STATE_BYTES)
        if not data or data.isspace():
            raise ValueError("empty; --dump prints what belongs there")
        text = data.decode().lstrip("\ufeff")  # a byte order mark is fine
        value = json.loads(text, object_pairs_hook=functools.partial(_pairs_to_object, known))
        return _cluster_from_json(value, before)
    except RecursionError:
        fault = "nested too deeply to be a state"
    except UnicodeDecodeError as error:
        byte = (error.start + 1, data[error.start])
        fault = "not UTF-8: byte %d is 0x%02x; save it as UTF-8" % byte
    except json.JSONDecodeError as error:
        problem = re.sub("( starting)? at$|: *$", "", error.msg).lower()
        found = error.doc[error.pos : error.pos + 1]
        place = (error.lineno, error.colno, problem, _show(found) if found else "the end")
        fault = ("not JSON: line %d, column %d: %s at %s" % place).replace("expecting", "expected")
    except ValueError as error:
        fault = str(error)
    raise ValueError("%s: %s" % (name, fault))


class StateFile(_Source):
    """A source, and a zero-argument callable: the `Cluster` in a file, read anew when it changes.

    path: of a JSON file as `--dump` prints it: apps, nodes, cluster_info, server_info, each under
        Pegasus's own field names. max_age: seconds before a server looks at the file again.

    A call raises OSError, ValueError or MemoryError until there is a good state; a ValueError names
    the place (`apps[3].partitions[2].primary: expected …`). Later a bad file keeps the last good
    state and is logged once. A server answers 503 until there is a good state. TypeError or
    ValueError for a bad argument. To be called by one thread at a time.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_age: float = 1.0) -> None:
        _check_seconds(max_age, "max_age")
        self._path, self._max_age = os.fsdecode(path), max_age
        self._signature: tuple[int, ...] | None = None  # of the file that was read last
        self._cluster: Cluster | None = None
        self._fault = ""  # what is wrong with the content that was read last
        self._reported = ""

    def __repr__(self) -> str:
        found = self._fault or "not read yet"
        if self._cluster is not None:
            found = "%d tables, %d nodes" % (len(self._cluster.apps), len(self._cluster.nodes))
        return "<StateFile %r: %s>" % (self._path, found)

    def __call__(self) -> Cluster:
        """The cluster as the file has it now."""
        trouble = self._look()
        if self._cluster is None:
            raise trouble or ValueError("%s: nothing was read" % self._path)
        self._report(trouble)
        return self._cluster

    def read(self, key: str) -> tuple[_State, float]:
        """The cluster, and the time.monotonic() until which it is fresh."""
        self._report(self._look())
        return self._cluster, time.monotonic() + self._max_age

    def reload(self) -> None:
        """Read the file at the next call even if it looks unchanged, and log what is wrong with it
        again. From any thread."""
        self._signature, self._reported = None, ""

    def _look(self) -> Exception | None:
        """Read the file if it has changed; returns what is wrong with it now."""
        try:
            status = os.stat(self._path)
            if not stat.S_ISREG(status.st_mode):  # it would block, never end or never look changed
                raise OSError(errno.EINVAL, "not a regular file", self._path)
            # ctime shows a change even when a tool has set mtime back.
            signature = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            if signature != self._signature:
                self._signature = signature  # first: `reload` may take it back meanwhile
                # The file may have been replaced since; an ordinary open of a FIFO would wait.
                with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                    data = file.read(_STATE_BYTES + 1) or b""
                before = () if self._cluster is None else self._cluster.apps
                self._cluster = _load_cluster(data, self._path, before)
                self._fault = ""
        except (OSError, MemoryError) as error:
            self._signature = None  # nothing was parsed, or another time there is more memory
            return error
        except ValueError as error:
            self._fault = str(error)
        return ValueError(self._fault) if self._fault else None

    def _report(self, trouble: Exception | None) -> None:
        text = "" if trouble is None else _failure_text(trouble)
        # First: `reload` may take it back while the line is written.
        before, self._reported = self._reported, text
        if text and text != before:
            kept = "no good state yet" if self._cluster is None else "keeping the last good state"
            _warn("%s: %s" % (kept, text))


def _cluster_to_json(cluster: Cluster) -> dict[str, Any]:
    """The reverse of `_cluster_from_json`."""
    state: dict[str, Any] = {"apps": [], "nodes": [node._asdict() for node in cluster.nodes]}
    for app in cluster.apps:
        rows = None if app.partitions is None else [p._asdict() for p in app.partitions]
        state["apps"].append({**app._asdict(), "envs": dict(app.envs), "partitions": rows})
    for part, fields in _TEXT_FIELDS.items():
        texts = ((name, getattr(cluster, field)) for name, field in fields.items())
        state[part] = {name: text for name, text in texts if text is not None}
    return state


def _sample() -> Cluster:
    """The onebox of Pegasus's documentation: one table on three replica servers."""
    nodes = ["10.239.35.160:34801", "10.239.35.160:34802", "10.239.35.160:34803"]
    metas = [address.replace("348", "346") for address in nodes]
    places = [(nodes[n % 3], (nodes[(n + 1) % 3], nodes[(n + 2) % 3])) for n in range(8)]
    created = int(time.mktime((2019, 7, 30, 14, 4, 26, 0, 0, -1)))
    app = App(1, "temp", [Partition(3, 3, *place) for place in places], create_second=created)
    return Cluster([app], [Node(address) for address in nodes], metas, metas[0], "127.0.0.1:22181",
                   "/pegasus/onebox/10.239.35.160")


# === 12. Live cluster =============================================================================
# Three parts: the wire (frames, and the part of Thrift that is in them), the way to the primary
# meta server (find it, follow it, one connection), and the cluster that is kept between two pages.

# --- the wire: Thrift's binary protocol, as far as meta servers speak it -------------------------


class _WireError(ValueError):
    """An answer that is not what a meta server sends."""


_ABSENT = {  # the errors of a server that is not, or not yet, a primary
    "ERR_FORWARD_TO_OTHERS": "a standby that knows no primary",
    "ERR_SERVICE_NOT_ACTIVE": "ERR_SERVICE_NOT_ACTIVE: still starting",
    "ERR_HANDLER_NOT_FOUND": "ERR_HANDLER_NOT_FOUND: a replica server, or still starting",
}


class _Refused(Exception):
    """A server's error of this name. leader: whom a standby takes for the primary, if it knows."""

    def __init__(self, name: str, leader: str | None = None) -> None:
        self.name, self.leader = name[:100], leader
        super().__init__("a standby of " + leader if leader else _ABSENT.get(name, self.name))


def _left(deadline: float) -> float:
    """The seconds until then; socket.timeout when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("no answer in time")
    return left


# Number of a type: bytes of its values. In this order: bool, byte, double, i16, i32, i64, and text,
# which is sent with its length.
_SIZES = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8, 11: 0}
_INT, _LONG, _LIST_HEAD = struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">bi")


class _Decoder:
    """Reads a result from front to back; each method reads a value of one type.

    A frame may have 32 MB, which take seconds: after every 16 KB other threads get their turn and
    the deadline may end the reading. Lists have a limit and end the reading when they are cut off:
    what is made of a frame has a few times its size.
    """

    def __init__(self, data: bytes, deadline: float = math.inf) -> None:
        self._data, self._deadline = data, deadline
        self.at, self._pause_at = 0, min(_PAUSE_BYTES, len(data))
        self.odd: list[str] = []  # what makes no sense and is left out

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        begin = self.at
        end = self.at = begin + size
        if not begin <= end <= self._pause_at:
            if not begin <= end <= len(self._data):
                raise _WireError("the answer is cut off")
            self._pause_at = min(end + _PAUSE_BYTES, len(self._data))
            _left(self._deadline)
            _pause_if_due()
        return self._data[begin:end]

    def i32(self) -> int:
        value: int = _INT.unpack_from(self._data, self.at)[0]
        self.at += 4
        return value

    def octets(self) -> bytes:
        size = self.i32()
        if size > _MAX_TEXT:
            raise _WireError("a text of impossible length")
        return self.take(size)

    def text(self) -> str:
        """Pegasus does not promise UTF-8: bytes that are none are shown as \\xNN."""
        return self.octets().decode("utf-8", "backslashreplace")

    def text_map(self) -> tuple[tuple[str, str], ...]:
        self.take(1)  # the keys' type; what follows begins like a list
        return tuple(sorted((self.text(), self.text()) for _ in range(self.count(11))))

    def count(self, expected: int) -> int:
        """How many elements of the expected kind follow."""
        kind, count = _LIST_HEAD.unpack_from(self._data, self.at)
        self.at += _LIST_HEAD.size
        if not 0 <= count <= _MAX_ITEMS or (count and kind != expected):
            raise _WireError("a list of impossible length or type")
        return int(count)

    def struct(self, fields: _Fields) -> dict[str, Any]:
        """The fields that are known, by name."""
        values, data = {}, self._data
        for _ in range(100):  # the largest of a real server has 15
            tag = data[self.at : self.at + 3]  # type and number in one
            self.at += 3
            if tag in fields:
                name, read = fields[tag]
                values[name] = read(self)
            elif tag[:1] == b"\0":
                self.at -= 2
                return values
            else:
                self._skip(tag)
        raise _WireError("a struct without end")

    def _skip(self, tag: bytes) -> None:
        """Past an unknown field. Not past a struct: some fields of that type are raw values."""
        kinds, count = tag[:1], 1
        if kinds in (b"\x0d", b"\x0e", b"\x0f"):  # a map, a set, a list
            kinds, count = self.take(2 if kinds == b"\x0d" else 1), self.i32()
        if count < 0 or (count and not set(kinds) <= _SIZES.keys()):
            number = int.from_bytes(tag[1:], "big")
            raise _WireError("field %d is unknown and of type %s" % (number, list(kinds)))
        for kind in itertools.chain.from_iterable(itertools.repeat(kinds, count)):
            self.take(_SIZES[kind] or self.i32())


@functools.lru_cache(maxsize=8192)
def _ipv4(raw: bytes) -> str | None:
    """a b c d, port, 00, type: 1 is an address, all else is none."""
    text = "%d.%d.%d.%d:%d" % (*raw[:4], int.from_bytes(raw[4:6], "big"))
    return text if raw[7] & 3 == 1 and _is_address(text) else None


@functools.lru_cache(maxsize=8192)
def _host_port(raw: bytes) -> str | None:
    """Host, port, type: 1 is a host, 0 none."""
    text = "%s:%d" % (raw[:-3].decode("utf-8", "replace"), int.from_bytes(raw[-3:-1], "big"))
    return text if raw[-1] == 1 and _is_address(text) else None


def _list_of(element: _Type) -> _Type:
    kind, read = element
    return 15, lambda frame: [read(frame) for _ in range(frame.count(kind))]


def _struct(**types: _Type) -> _Type:
    """Fields by name, in the order of their numbers; read as a dict."""
    fields = {
        struct.pack(">bh", kind, number): (name, read)
        for number, (name, (kind, read)) in enumerate(types.items(), 1)
    }
    return 12, lambda frame: frame.struct(fields)


# Each type is its number in Thrift and a function that reads a value of it.
_BOOL: _Type = (2, lambda frame: frame.take(1) != b"\0")
_I32: _Type = (8, _Decoder.i32)
_I64: _Type = (10, lambda frame: _LONG.unpack(frame.take(8))[0])
_TEXT: _Type = (11, _Decoder.text)
_OCTETS: _Type = (11, _Decoder.octets)
_TEXT_MAP: _Type = (13, _Decoder.text_map)
# These say that they are structs and are raw values.
_ERROR: _Type = (12, _Decoder.text)
_GPID: _Type = (12, lambda frame: frame.take(8))
_IPV4: _Type = (12, lambda frame: _ipv4(frame.take(8)))
_HOST_PORT: _Type = (
    12, lambda frame: _host_port(raw) if len(raw := frame.take(frame.i32() + 3)) < 300 else None)
_IPV4S, _HOST_PORTS = _list_of(_IPV4), _list_of(_HOST_PORT)

_TABLE = _struct(
    status=_I32, app_type=_TEXT, app_name=_OCTETS, app_id=_I32, partition_count=_I32,
    envs=_TEXT_MAP, is_stateful=_BOOL, max_replica_count=_I32, expire_second=_I64,
    create_second=_I64, drop_second=_I64)
_NODE = _struct(status=_I32, address=_IPV4, name=_HOST_PORT)
# What no page shows is here because a field that says it is a struct cannot be skipped.
_PARTITION = _struct(
    gpid=_GPID, ballot=_I64, max_replica_count=_I32, primary=_IPV4, secondaries=_IPV4S,
    last_drops=_IPV4S, last_committed_decree=_I64, partition_flags=_I32,
    primary_name=_HOST_PORT, secondary_names=_HOST_PORTS, last_drop_names=_HOST_PORTS)
_TABLES = _struct(error=_ERROR, infos=_list_of(_TABLE))
_NODES = _struct(error=_ERROR, infos=_list_of(_NODE))
_INFO = _struct(error=_ERROR, keys=_list_of(_TEXT), values=_list_of(_TEXT))


def _read_result(decoder: _Decoder, kind: _Type) -> Any:
    """A result, which is the field number 0; _Refused when it has another error than ERR_OK."""
    number, read = kind
    if decoder.take(3) != bytes((number, 0, 0)):
        raise _WireError("no result")
    result = read(decoder)
    if number == 12 and result["error"] != "ERR_OK":  # a standby's has the primary in a partition
        raise _Refused(result["error"], *[p.primary for p in result.get("partitions", ())[:1]])
    return result


# What these read are fields of a Cluster, but each table has the bytes of its name beside it.


def _read_apps(decoder: _Decoder) -> dict[str, Any]:
    listed: dict[int, tuple[App, bytes]] = {}
    for info in _read_result(decoder, _TABLES)["infos"]:
        name, status = info["app_name"], info["status"]
        info["app_name"] = name.decode("utf-8", "backslashreplace")
        info["status"] = _APP_STATUSES[status if 0 <= status < len(_APP_STATUSES) else 0]
        app = App._unchecked(partitions=None, **info)
        negative = min(app.app_id, app.partition_count, app.max_replica_count) < 0
        if negative or app.app_id in listed:
            wrong = "table %d, %s: negative figures, or the id of another"
            decoder.odd.append(wrong % (app.app_id, _encode(app.app_name)))
        else:
            listed[app.app_id] = (app, name)
    return {"apps": listed.values()}


def _read_nodes(decoder: _Decoder) -> dict[str, Any]:
    statuses: dict[str, str] = {}
    for info in _read_result(decoder, _NODES)["infos"]:
        address = info.get("name") or info["address"]
        if address is None or address in statuses:
            decoder.odd.append("a node that has no address, or another node's: %s" % address)
        else:
            statuses[address] = "ALIVE" if info["status"] == 1 else "UNALIVE"
    return {"nodes": tuple([Node(*item) for item in statuses.items()])}


def _read_info(decoder: _Decoder) -> dict[str, str]:
    result = _read_result(decoder, _INFO)
    info = {"balance_operation_count": "unknown", **dict(zip(result["keys"], result["values"]))}
    return {name: info[name] for name in _INFO_FIELDS if name in info}


def _read_server_info(decoder: _Decoder) -> dict[str, str]:
    """JSON today, a sentence up to 2.5; anything else, or longer, tells us nothing."""
    text = _read_result(decoder, _TEXT)[:1000]
    match = re.match(r"Pegasus Server (\S+) \(([^)]*)\)", text)
    if match:
        return {"version": match.group(1), "git_commit": match.group(2)}
    import json

    info = json.loads(text)
    found = {"version": info["version"], "git_commit": info["git_SHA"]}
    return {name: _check_text(value, name) for name, value in found.items()}


def _read_partition(decoder: _Decoder) -> Partition:
    """Host names are newer than addresses, are sent beside them, and are what is shown."""
    row = _PARTITION[1](decoder)
    primary = row.get("primary_name") or row["primary"]
    secondaries, names = row["secondaries"], row.get("secondary_names")
    if names:
        secondaries = [n or old for n, old in itertools.zip_longest(names, secondaries)]
    if None in secondaries:
        secondaries = filter(None, secondaries)
        # Of a table with many of them the last one is told.
        number = int.from_bytes(row["gpid"][:4], "big")
        decoder.odd = ["a secondary without an address, in partition %d" % number]
    return Partition(row["ballot"], row["max_replica_count"], primary, tuple(secondaries))


_CONFIGURATION = _struct(
    error=_ERROR, app_id=_I32, partition_count=_I32, is_stateful=_BOOL,
    partitions=_list_of((12, _read_partition)))
_MISSING = {
    "ERR_OBJECT_NOT_FOUND": "DROPPED",
    "ERR_BUSY_CREATING": "CREATING",
    "ERR_BUSY_DROPPING": "DROPPING",
}


def _read_table(decoder: _Decoder, listed: App) -> App:
    """The listed table with its partitions, or the status of one that has none to show."""
    try:
        result = _read_result(decoder, _CONFIGURATION)
        if result["app_id"] != listed.app_id:  # its name is another table's by now
            raise _Refused("ERR_OBJECT_NOT_FOUND")
        partitions = tuple(result["partitions"])
        changes = {"partitions": partitions, "partition_count": len(partitions)}
    except _Refused as error:
        if error.name not in _MISSING:
            raise
        changes = {"status": _MISSING[error.name]}
    return App._unchecked(**{**listed._asdict(), **changes})


_NO_TABLE = App._unchecked(-1, "")


class _Rpc(NamedTuple):
    """A call. key: what its answer is kept as, and called in hints; read: makes a value of its
    result; listed: the table that it is about, as the list has it."""

    key: str
    code: str
    args: bytes  # the fields of its struct
    read: Callable[..., Any]
    listed: App = _NO_TABLE


def _string(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


_NO_FILTER = b"\x08\x00\x01\x00\x00\x00\x00"  # field 1: a status, where 0 is any
_SERVER_INFO = b"\x0b\x00\x01" + _string(b"server-info") + b"\x0f\x00\x02\x0b\x00\x00\x00\x00"
_RPCS = [  # the version is first: no page waits for it, but it comes before what is waited for
    _Rpc("server_info", "RPC_CLI_CLI_CALL", _SERVER_INFO, _read_server_info),
    _Rpc("apps", "RPC_CM_LIST_APPS", _NO_FILTER, _read_apps),
    _Rpc("nodes", "RPC_CM_LIST_NODES", _NO_FILTER, _read_nodes),
    _Rpc("cluster_info", "RPC_CM_CLUSTER_INFO", b"", _read_info),
]
_QUERY_TABLE = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX"


def _table_rpc(key: str, app: App, name: bytes) -> _Rpc:
    args = b"\x0b\x00\x01" + _string(name) + b"\x0f\x00\x02\x08\x00\x00\x00\x00"
    return _Rpc(key, _QUERY_TABLE, args, _read_table, app)


_PROBE = _table_rpc("no table", _NO_TABLE, b"")  # a standby's answer to it names the primary


def _request(call: _Rpc, sequence: int, timeout_ms: int) -> bytes:
    """A request frame: header version 0, no table's id."""
    body = b"\x80\x01\x00\x01" + _string(call.code.encode()) + struct.pack(">i", sequence)
    body += b"\x0c\x00\x01" + call.args + b"\0\0"
    return struct.pack(">4s9iq", b"THFT", 0, 48, 0, len(body), 0, 0, 0, timeout_ms, 0, 0) + body


# A reply behind its length, which counts itself: error, version, call, number of the request. The
# names stand behind their own lengths.
_REPLY_HEAD = re.compile(rb"(?s)\0\0\0.(\w+)\x80\x01\0\x02\0\0\0.(\w+?)_ACK(....)")


class _Reply(NamedTuple):
    """What `server` answered to `call`: the name of an error, the bytes of the result, the value
    that was read from them. asked: the time.monotonic() of the call."""

    call: _Rpc
    server: str
    error: str
    body: bytes
    asked: float
    value: Any = None


_NOTHING = _Reply(_PROBE, "", "", b"", -math.inf)


def _value(reply: _Reply, decoder: _Decoder) -> Any:
    """The reply's value, or a PageError if it has none: other replies may be fine. Raises _Refused
    when the server is not the primary."""
    call = reply.call
    about = "%s: the answer about %s " % (reply.server, call.key)
    try:
        if reply.error != "ERR_OK":
            raise _Refused(reply.error)
        return call.read(decoder, call.listed) if call.code == _QUERY_TABLE else call.read(decoder)
    except _Refused as refused:
        if refused.name in _ABSENT and call.key != "server_info":
            raise
        return PageError(502, refused.name, about + "is " + refused.name)
    except (ValueError, LookupError, TypeError, RecursionError, struct.error) as wrong:
        text = "makes no sense: " + ("no %s" if isinstance(wrong, KeyError) else "%s") % wrong
        return PageError(502, "ERR_NETWORK_FAILURE", about + text)


# --- the way to the primary meta server ----------------------------------------------------------


class _Channel:
    """One connection to one server: requests are pipelined, answers are matched by number.

    An answer that has not come in time is still owed: the next exchange takes it. first_by: until
    when the server may prove to be the primary; deadline: until when the primary may answer.
    """

    def __init__(self, address: str, first_by: float) -> None:
        """Connect. address: the numbers of host and port."""
        self.address, self.first_by, self.deadline = address, first_by, first_by
        self._sequence = 0
        self._owed: dict[int, tuple[_Rpc, float]] = {}
        self._buffer = bytearray()
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _left(first_by))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a forked child may have a copy
        self._socket.close()

    def exchange(self, calls: list[_Rpc]) -> Iterator[_Reply]:
        """Ask `calls`; yields each reply as it comes. No page needs the version, which is not
        waited for: if it comes late, the next exchange takes it."""
        owed = {call.key for call, _ in self._owed.values()}
        todo = collections.deque(call for call in calls if call.key not in owed)
        wanted = {call.key for call in calls} - {"server_info"}
        while wanted:
            if todo and len(self._owed) <= _WINDOW // 2:
                self._send([todo.popleft() for _ in range(min(_WINDOW // 2, len(todo)))])
            reply = self._reply()
            yield reply
            wanted.discard(reply.call.key)

    def _send(self, calls: list[_Rpc]) -> None:
        requests, timeout_ms = [], math.ceil(1000 * _left(self.deadline))
        for call in calls:
            self._sequence = (self._sequence + 1) % 2**31
            self._owed[self._sequence] = (call, time.monotonic())
            requests.append(_request(call, self._sequence, timeout_ms))
        try:
            self._socket.settimeout(_left(self.first_by))
            self._socket.sendall(b"".join(requests), _NO_SIGPIPE)
        except socket.timeout:
            raise ConnectionAbortedError("takes no requests") from None  # half of one was sent

    def _reply(self) -> _Reply:
        self._receive(4)
        length = int.from_bytes(self._buffer[:4], "big", signed=True)
        if not 8 < length <= _FRAME_BYTES:  # for example, an HTTP server's
            raise _WireError("not a meta server's answer: %r" % bytes(self._buffer[:8]))
        self._receive(length)
        head = _REPLY_HEAD.match(bytes(self._buffer[4 : min(length, 256)]))
        if head is None:
            raise _WireError("not a Thrift reply")
        error, code, number = head.groups()
        sequence = int.from_bytes(number, "big")
        call, asked = self._owed.pop(sequence, (_PROBE, 0.0))
        if not asked or code.decode() != call.code:
            raise _WireError("an answer to a request that was not made: %d" % sequence)
        with memoryview(self._buffer) as view:
            body = bytes(view[4 + head.end() : length])
        del self._buffer[:length]
        return _Reply(call, self.address, error.decode(), body, asked)

    def _receive(self, size: int) -> None:
        """Have so many bytes in the buffer."""
        while len(self._buffer) < size:
            self._socket.settimeout(_left(self.first_by))
            data = self._socket.recv(_RECV_BYTES)
            if not data:
                raise ConnectionResetError("closed the connection without an answer")
            self._buffer += data


def _explain(troubles: Mapping[str, Exception]) -> PageError:
    """One error out of what each server said, the most telling kind first."""
    each = []
    for name, error in troubles.items():
        reason = getattr(error, "strerror", None)  # of an OSError
        each.append("%s: %s" % (name, reason.lower() if reason else error))
    said, kinds = "; ".join(each), {type(error) for error in troubles.values()}
    if _Refused in kinds:
        return _unavailable("no primary meta server answers: " + said)
    if socket.timeout in kinds:
        return PageError(504, "ERR_TIMEOUT", "no meta server answered in time: " + said)
    return PageError(502, "ERR_NETWORK_FAILURE", "no meta server is reachable: " + said)


class _Primary:
    """The way to the primary meta server.

    Strategy: the last primary is asked first, then those that were listed; each gets an equal share
    of the time that is left for its first answer. Whoever answers as the primary gets all the time
    there is. A standby says who is: that one is asked next, even if it was asked before and was
    only slow; its connection has been kept, and its answer is still owed. When all were asked, the
    slow ones get what time is left.
    """

    def __init__(self, meta_servers: list[str]) -> None:
        self.leader: str | None = None
        self._meta_servers = meta_servers
        self._channels: dict[str, _Channel] = {}  # between two attempts, none but the leader's
        self._lookups: dict[str, tuple[threading.Thread, list[str]]] = {}

    def rest(self, keep: str | None = None) -> None:
        """Close what is open, but for one."""
        for address in self._channels.keys() - {keep}:
            self._channels.pop(address).close()

    def ask(self, work: _Work, deadline: float) -> None:
        """Do `work` with the primary's channel, whoever that is by now; or PageError."""
        keep = None
        try:
            keep = self.leader = self._search(work, deadline)
        finally:
            self.rest(keep)

    def _search(self, work: _Work, deadline: float) -> str:
        first = [self.leader] if self.leader else []
        todo = collections.deque(dict.fromkeys(first + self._meta_servers))
        labels: dict[str, str] = {}  # of resolved addresses, with the names that they come from
        troubles: dict[str, Exception] = {}  # what each server said instead
        hops = 0
        while todo:
            address = todo.popleft()
            first_by = time.monotonic() + max(0.0, deadline - time.monotonic()) / (len(todo) + 1)
            trouble = troubles.get(address)
            try:
                if trouble and not isinstance(trouble, socket.timeout):
                    raise trouble  # only a slow one is asked again
                found = self._resolve(address, first_by)
                if found == [address]:
                    self._try(address, work, first_by, deadline)
                    return address
                labels.update({one: "%s at %s" % (address, one) for one in found})
                todo.extendleft(reversed(found))
            except (OSError, RuntimeError, UnicodeError, _WireError, _Refused) as error:
                leader = getattr(error, "leader", None)
                if leader and error is not trouble and hops < _MAX_HOPS:
                    hops += 1
                    todo.appendleft(leader)
                troubles[address] = error
            if not todo and time.monotonic() < deadline:
                todo.extend(one for one, e in troubles.items() if isinstance(e, socket.timeout))
        raise _explain({labels.get(one, one): error for one, error in troubles.items()})

    def _resolve(self, address: str, deadline: float) -> list[str]:
        """The numbers of "host:port". The system's resolver cannot be given a time, so it has a
        thread; one that hangs is left behind, and waited for when the same name is asked again."""
        host, _, port = address.rpartition(":")
        if re.match(r"[0-9.]+$|\[", host):
            return [address]

        def look_up() -> None:
            with contextlib.suppress(OSError, UnicodeError):  # the latter of an empty label
                infos = socket.getaddrinfo(host, int(port), 0, socket.SOCK_STREAM)
                found.extend(_join(str(info[4][0]), int(port)) for info in infos)

        if address not in self._lookups:
            found: list[str] = []
            thread = threading.Thread(target=look_up, name="pegasus-http-names", daemon=True)
            thread.start()
            self._lookups[address] = (thread, found)
        thread, found = self._lookups[address]
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            raise socket.timeout("the host name is not resolved in time")
        del self._lookups[address]
        if not found:
            raise OSError("the host name does not resolve")
        return found

    def _try(self, address: str, work: _Work, first_by: float, deadline: float) -> None:
        """Ask one server, over a new connection if the one that was kept turns out broken."""
        kept = self._channels.get(address)
        channel = self._channels[address] = kept or _Channel(address, first_by)
        channel.first_by, channel.deadline = first_by, deadline
        try:
            work(channel)
        except _Refused as error:
            if error.leader is None:  # answers to other calls do not name it
                for reply in channel.exchange([_PROBE]):
                    if reply.call is _PROBE:
                        _value(reply, _Decoder(reply.body))
            raise
        except socket.timeout:
            raise  # its answer is still owed
        except (OSError, _WireError):
            self._channels.pop(address).close()
            if kept is None:
                raise
            self._try(address, work, first_by, deadline)


# --- the cluster that is kept --------------------------------------------------------------------


class LiveCluster(_Source):
    """A running Pegasus cluster, read through its meta servers' RPC, releases 1.11 to today.

    meta_servers: "host:port" texts, or one text of them joined by commas.
    timeout: seconds within which a call ends, with a state or with an error.
    max_age: seconds for which an answer of the meta servers is used before they are asked again.

    Give it to `StatusServer` as its source: each page then asks only for what it shows. Calling it
    returns the whole `Cluster`, and raises PageError when that is not to be had; `rest` closes the
    connection that is kept for the next call. ValueError for a bad address or time. Thread-safe;
    one caller at a time gets through. A forked child opens a connection of its own.

    Strategy: each answer is kept with the time it was asked at. A read asks for what is older than
    `max_age`; when it runs out of time, the next one goes on where it had to stop.
    """

    def __init__(
        self, meta_servers: str | Iterable[str], *, timeout: float = 5.0, max_age: float = 1.0
    ) -> None:
        """Connect to nothing yet."""
        if isinstance(meta_servers, str):
            meta_servers = meta_servers.split(",")
        servers = [_check_text(address, "meta servers").strip() for address in meta_servers]
        self._servers = ",".join(servers)
        for address in servers or [""]:
            _check_address(address, "meta servers " + self._servers)
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        self._timeout, self._max_age = timeout, max_age
        self._lock = _PerProcess(threading.Lock)
        self._primary = _PerProcess(functools.partial(_Primary, servers))
        self._kept: dict[str, _Reply] = {}  # by the key of the call
        # The overview is all but the partitions. _server, _asked: who gave it, and when it was
        # asked for; _failures: why parts of it are missing; _queries: for the partitions of its
        # tables. `needs` is called from any thread: each of these is replaced, never changed.
        self._server, self._asked, self._state = "", -math.inf, Cluster()
        self._failures: dict[str, PageError] = {}
        self._queries: list[_Rpc] = []
        self._unfinished: dict[str, float] = {}  # by key of a read: since when it is attempted
        self._reported: set[str] = set()  # what is odd stays so

    def __repr__(self) -> str:
        about = (self._servers, self._primary().leader or "not known yet")
        times = (self._timeout, self._max_age)
        return "<LiveCluster %s, primary: %s, timeout %g s, max_age %g s>" % (about + times)

    def __call__(self) -> Cluster:
        """All there is to know, partitions included."""
        with self._lock():
            deadline = time.monotonic() + 0.9 * self._timeout
            self._read("overview", deadline)
            for failure in self._failures.values():
                raise failure.with_traceback(None)
            return self._read("partitions", deadline)[0]

    def needs(self, request: _PageRequest) -> tuple[str, ...]:
        """The overview, then what a page shows besides; "overview:PART" if that part failed."""
        path, state = request.path, self._state
        if request.route.shows != "cluster":
            return ("overview",)
        parts = [{"/meta/nodes": "nodes", "/meta/cluster": "cluster_info"}.get(path, "apps")]
        keys = ["overview"]
        # Servers before 1.11.3 leave the deviations to be computed.
        deviations = (state.primary_replica_count_stddev, state.total_replica_count_stddev)
        if path == "/meta/app":
            keys.append("partitions:" + request.query.name)
        elif request.query.detail or (path == "/meta/cluster" and None in deviations):
            keys.append("partitions")
            parts += ["apps", "nodes"]
        failed = ["overview:" + part for part in parts if part in self._failures]
        return tuple(failed[:1] or keys)

    def read(self, key: str) -> tuple[_State, float]:
        """The state, or a PageError, with the time.monotonic() until which it holds."""
        with self._lock():
            try:
                # The rest of the timeout is for the way back.
                return self._read(key, time.monotonic() + 0.9 * self._timeout)
            except PageError as error:
                return error.with_traceback(None), time.monotonic() + _RETRY_SECONDS

    def rest(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock():
            self._primary().rest()

    def _report(self, text: str) -> None:
        if text not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(text)
            _warn(text)

    def _read(self, key: str, deadline: float) -> tuple[Cluster, float]:
        kind, _, part = key.partition(":")
        now = time.monotonic()
        # A fresh overview is not read again. Of partitions `_fetch` looks at each table's age.
        if kind != "overview" or self._asked + self._max_age <= now:
            # What came before an attempt ran out of time is not too old for the next one.
            begun = self._unfinished.items()
            self._unfinished = {k: at for k, at in begun if at > now - _UNFINISHED_SECONDS}
            since = self._unfinished.setdefault(key, now)
            work = functools.partial(self._refresh, key, since - self._max_age)
            self._primary().ask(work, deadline)
            del self._unfinished[key]
        if kind != "overview":
            return self._with_partitions(key)
        if part in self._failures:
            raise self._failures[part].with_traceback(None)
        return self._state, self._asked + self._max_age

    def _refresh(self, key: str, oldest: float, channel: _Channel) -> None:
        """Ask for all that `key` shows and that is too old, of one server. A table that is gone, or
        is another one by now, says that the list is old: it is read again, once."""
        if key.startswith("overview") or self._server != channel.address:
            self._ask_overview(oldest, channel)
        self._fetch(self._calls(key), oldest, channel)
        # The status of a PageError is a number.
        if any(self._kept[call.key].value.status == "DROPPED" for call in self._calls(key)):
            self._ask_overview(time.monotonic(), channel)
            self._fetch(self._calls(key), oldest, channel)

    def _calls(self, key: str) -> list[_Rpc]:
        """What to ask about the partitions that `key` shows, once the overview is there."""
        kind, _, name = key.partition(":")
        tables = self._queries if kind == "partitions" else []
        return [call for call in tables if name in ("", call.listed.app_name)]

    def _fetch(self, calls: list[_Rpc], oldest: float, channel: _Channel) -> None:
        """Ask what this server has not answered since `oldest`, or only with an error. An answer
        that is as it was keeps its value: what was computed of that still holds."""
        server, stale = channel.address, []
        for call in calls:
            kept = self._kept.get(call.key, _NOTHING)
            is_same = (kept.call, kept.server) == (call, server) and kept.asked >= oldest
            if not is_same or isinstance(kept.value, PageError):
                stale.append(call)
        for reply in channel.exchange(stale):
            key = reply.call.key
            kept = self._kept.get(key, _NOTHING)
            value = kept.value
            if kept[:4] != reply[:4]:  # all but when it was asked for, and the value
                decoder = _Decoder(reply.body, channel.deadline)
                value = _value(reply, decoder)
                for odd in decoder.odd:
                    about = (server, key, odd)
                    self._report("%s: the answer about %s has odd rows, left out: %s" % about)
            self._kept[key] = reply._replace(value=value)
            if key != "server_info":
                channel.first_by = channel.deadline  # it is the primary: it may take all the time
            _pause_if_due()

    def _ask_overview(self, oldest: float, channel: _Channel) -> None:
        """Read all but the partitions; of a part that is refused or nonsense keep the reason."""
        self._fetch(_RPCS, oldest, channel)
        kept = [self._kept.get(call.key, _NOTHING) for call in _RPCS]
        told: dict[str, Any] = {}
        failures = {}
        for reply in kept:
            if isinstance(reply.value, PageError):
                failures[reply.call.key] = reply.value
            elif reply.server == channel.address:  # the version may be missing, or another server's
                told.update(reply.value)
        failures.pop("server_info", None)
        if len(failures) == len(_RPCS) - 1:
            raise failures["apps"].with_traceback(None)
        rows = list(told.pop("apps", ()))
        apps = _with_known([app for app, _ in rows], self._state.apps)
        self._state = Cluster._unchecked(tuple(apps), **told)
        listed = list(zip(apps, [name for _, name in rows]))
        # Two names may look alike when shown: the one whose bytes are that very text comes first.
        listed.sort(key=lambda item: item[0].app_name.encode() != item[1])
        self._queries = [
            _table_rpc("table %d, %s" % (app.app_id, _encode(app.app_name)), app, name)
            for app, name in listed
            if app.status == "AVAILABLE"
        ]
        self._server, self._failures = channel.address, failures
        self._asked = min(reply.asked for reply in kept[1:])  # without the version
        keys = {call.key for call in _RPCS + self._queries}
        self._kept = {key: reply for key, reply in self._kept.items() if key in keys}

    def _with_partitions(self, key: str) -> tuple[Cluster, float]:
        """The state with the partitions of all tables, or of the one alone that `key` names. If
        they make no sense, the table's own page fails; others show it without them."""
        if "apps" in self._failures:
            raise self._failures["apps"].with_traceback(None)
        is_all = key == "partitions"
        apps = {app.app_id: app for app in self._state.apps if is_all}
        asked = self._asked
        for call in self._calls(key):
            kept = self._kept[call.key]
            asked = min(asked, kept.asked)
            if isinstance(kept.value, App):
                apps[kept.value.app_id] = kept.value
            elif is_all and kept.value.error == "ERR_NETWORK_FAILURE":
                self._report(kept.value.hint_message + "; its partitions are left out")
            else:
                raise kept.value.with_traceback(None)
        state = {**self._state._asdict(), "apps": tuple(apps.values())}
        version = self._kept.get("server_info", _NOTHING)  # it may have come after the overview
        if version.server == self._server and isinstance(version.value, dict):
            state.update(version.value)
        return Cluster._unchecked(**state), asked + self._max_age


# === 13. Overview page for people =================================================================

_OVERVIEW = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Pegasus</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --soft: #8882; --line: #8886 }
.k0, .good { --kind: #2e974d } .k1 { --kind: #d2a00c } .k2 { --kind: #e66b14 } /* healthy to not */
.k3, .bad { --kind: #d42a2f } .p { --kind: #3470d0 } .s { --kind: #3470d080 }
.good, .bad { color: color-mix(in srgb, var(--kind) 70%, CanvasText) } .bad { font-weight: 600 }
* { box-sizing: border-box; margin: 0; overflow-wrap: anywhere }
body { background: Canvas; font: 14px/1.4 system-ui, sans-serif } h1, h2 { font-size: 17px }
header { position: sticky; top: 0; z-index: 1; border-bottom: 1px solid var(--line);
  background: color-mix(in srgb, CanvasText 6%, Canvas) } label { margin-left: auto }
header, main { padding: 8px 16px } dt, small, #updated { font-size: 12px; opacity: .8 }
header, dl, #cluster { display: flex; flex-wrap: wrap; gap: 4px 28px } dl { padding: 0 0 12px }
#trouble { padding: 6px 12px; background: #a3160f; color: #fff } dl, #trouble { flex: 100% }
.stale main, p:not(:empty) + ul { opacity: .5; filter: grayscale(1) }
section { flex: 1 1 220px } section + section { flex: 4 1 700px; min-width: 0 }
[hidden], p:empty, .zookeeper_root, body:not(.primary) .primary, body:not(.standby) .standby,
body:not(.replica) .replica, body:not(.standby, .replica) .other { display: none !important }
summary { display: grid; grid-template-columns: 3fr 150px 2fr 8fr; gap: 0 16px; padding: 4px;
  border-bottom: 1px solid var(--line); cursor: pointer }
.bar, summary:hover { background: var(--soft) } input { font: inherit; max-width: 100% }
.name { color: LinkText; white-space: pre-wrap }
ul { list-style: none; padding: 4px 0; display: grid; gap: 6px 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)) }
.row li { border: 1px solid var(--kind); border-left-width: 6px; padding: 2px 8px;
  font-size: 12px; white-space: pre-line; contain-intrinsic-size: auto 76px }
/* What is out of sight is not laid out: 1,000 tables take 40 ms instead of 900 (measured). */
.row:not([open]), .row li { content-visibility: auto } .row { contain-intrinsic-size: auto 29px }
.bar { display: flex; height: 12px; margin-top: 4px } i { background: var(--kind); min-width: 3px }
@media (max-width: 700px) { summary { display: block } }
</style>
<header><h1 id="name">Pegasus</h1>
<label><span id="updated"></span> <input type="checkbox" id="pause"> Pause</label>
<p id="trouble"></p></header>
<main class="other"><p class="standby">This meta server is a standby.
<a href="meta/apps?detail&amp;pretty">This link leads to the primary</a>, which has the figures.</p>
<p class="replica">This is a replica server. Tables, nodes and health are on the meta servers.</p>
<dl id="version"></dl><dl id="start"></dl></main>
<main class="primary" id="cluster"><dl id="facts"></dl>
<section><h2 id="node-sum"></h2><ul id="nodes"></ul></section>
<section><h2 id="table-sum"></h2>
<input id="filter" type="search" size="36" placeholder="Filter by name, id or health">
<div id="tables"></div></section></main>
<noscript>This page needs JavaScript. <a href="meta/apps?detail">The tables as JSON</a></noscript>
<script>
const PERIOD = 5000, PATIENCE = 20000;  // ms from one refresh to the next; ms for one answer
const CELLS = 1024;  // partitions that are shown of a table: the browser hangs on 65,536 (measured)
const KINDS = ["fully healthy", "unhealthy", "write-unhealthy", "read-unhealthy"], SIGNS = "✓◐▲✖";
const byName = new Intl.Collator(undefined, {numeric: true}).compare;
const $ = (id) => document.getElementById(id);
let busy = false, again = false, timer = 0, turn = 0;
async function get(path, draw, place) {  // draws a page that is new there; tells the server's role
  const signal = AbortSignal.timeout(PATIENCE);
  const answer = await fetch(path, {redirect: "manual", cache: "no-cache", signal})
    .catch(() => { throw signal.aborted ? "no answer in time" : "connection lost"; });
  if (answer.type === "opaqueredirect") return "standby";  // scripts are not told where to
  const tag = answer.headers.get("ETag");
  if (tag && tag === place.tag) return "primary";
  const page = await answer.json().catch(() => { throw `no proper answer (${answer.status})`; });
  if (page.error === "ERR_HANDLER_NOT_FOUND") return "replica";
  if (!answer.ok) throw `${page.hint_message} (${answer.status} ${page.error})`;
  draw(page, place);
  place.tag = tag;
  return "primary";
}
async function update() {  // three requests; with an open table one of them is for that
  const role = await get("meta/apps?detail", drawTables, $("tables"));
  const pages = role === "primary"
    ? [["meta/nodes?detail", drawNodes, $("nodes")], ["meta/cluster", drawFacts, $("facts")]]
    : [["version", drawFacts, $("version")], ["startTime", drawFacts, $("start")]];
  const open = role === "primary" && document.querySelector(".row[open]");
  if (open) {
    const [, note, list] = open.children;
    note.textContent = await get(open.path, drawPartitions, list).then(() => "", String);
    pages.splice(turn++ % 2, 1);
  }
  for (const page of pages) await get(...page);
  document.body.className = role;
}
const isResting = () => $("pause").checked || document.hidden;
async function refresh() {  // one at a time, so that a slow server is not asked ever more
  clearTimeout(timer);
  again = busy;
  if (busy) return;
  busy = true;
  report(await update().then(() => "", String));
  busy = false;
  if (again) refresh(); else if (!isResting()) timer = setTimeout(refresh, PERIOD);
}
function report(trouble) {
  const last = $("updated").textContent && ". These are the last figures.";
  $("trouble").textContent = trouble && `✖ ${trouble}${last}`;
  if (!trouble) $("updated").textContent = `updated ${new Date().toLocaleTimeString()}`;
  document.body.classList.toggle("stale", trouble);
  const bad = trouble || document.querySelector("body.primary .bad");
  document.title = `${bad ? "✖" : "✓"} ${$("name").textContent}`;
}
function make(tag, properties, ...content) {  // texts become text nodes, never markup
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
}
function bar(whole, counts) {
  return make("div", {className: "bar"}, ...Object.entries(counts).map(([className, count]) =>
    make("i", {className, hidden: !+count, style: `width: ${100 * count / whole}%`})));
}
function judge(noun, bad, all, trouble) {
  const textContent = bad ? `✖ ${bad} of ${all} ${noun}s ${trouble}` : `✓ ${all} ${noun}s`;
  Object.assign($(`${noun}-sum`), {textContent, className: bad ? "bad" : "good"});
}
function drawFacts(page, list) {
  const [first] = Object.values(page);  // later servers leave out the object around the facts
  const facts = typeof first === "object" ? first : page;
  if (list.id === "facts") $("name").textContent = facts.zookeeper_root || "Pegasus";
  list.replaceChildren(...Object.entries(facts).map(([className, text]) => make("div", {className},
    make("dt", {}, className.replace(/_/g, " ")), make("dd", {}, text.replace(/,/g, ", ")))));
}
function drawNodes(page, list) {
  const nodes = Object.values(page.details), dead = (node) => node.status !== "ALIVE";
  const most = Math.max(1, ...nodes.map((node) => node.replica_count));
  judge("node", nodes.filter(dead).length, nodes.length, "unalive");
  nodes.sort((a, b) => dead(b) - dead(a));
  list.replaceChildren(...nodes.map((node) => make("li", {},
    make("div", {className: dead(node) ? "bad" : ""},
      `${dead(node) ? "✖" : "✓"} ${node.address} ${node.status}`),
    bar(most, {p: node.primary_count, s: node.secondary_count}),
    make("small", {}, `${node.primary_count} primary, ${node.secondary_count} secondary`))));
}
function drawTables(page, list) {
  const focus = document.activeElement;
  const tables = Object.values(page.general_info).map((table) =>
    ({...table, counts: KINDS.map((kind) =>
      Number(page.healthy_info[table.app_id]?.[kind.replace(/[ -]/, "_")] || 0))}));
  // What cannot be read comes first, then what cannot be written.
  const rank = ({counts}) => (counts[3] * 1e5 + counts[2]) * 1e5 + counts[1];
  tables.sort((a, b) => rank(b) - rank(a) || byName(a.app_name, b.app_name));
  list.replaceChildren(...tables.map(drawTable));
  focus.focus({preventScroll: true});
  judge("table", tables.filter(rank).length, tables.length, "unhealthy");
  filter();
}
function drawTable({app_id, app_name, partition_count, counts}) {
  const id = `table-${app_id}`, [fully, unhealthy, write, read] = counts;  // `write` holds `read`
  const line = $(id)?.parentNode || make("details", {className: "row", ontoggle: refresh},
    make("summary", {id}), make("p"), make("ul"));
  line.name = "tables";  // of the elements with one name the browser keeps one open at most
  line.path = `meta/app?detail&name=${encodeURIComponent(app_name)}`;
  line.firstChild.replaceChildren(make("div", {className: "name"}, app_name || "(no name)"),
    make("small", {}, `id ${app_id}, ${partition_count} partitions`), bar(partition_count,
      {k0: fully, k1: unhealthy - write, k2: write - read, k3: read}),
    KINDS.map((kind, n) => counts[n] && `${SIGNS[n]} ${counts[n]} ${kind}`)
      .filter(Boolean).join(", ") || "not known");
  return line;
}
function drawPartitions(page, list) {
  const partitions = Object.values(page.replicas).map((partition) => {
    const [have, most] = partition.replica_count.split("/").map(Number);
    const kind = partition.primary === "-" ? 3 : have >= most ? 0 : have < 2 ? 2 : 1;
    return {...partition, kind};
  });
  const cut = partitions.length > CELLS && `the worst ${CELLS} of ${partitions.length} partitions`;
  if (cut) partitions.sort((a, b) => b.kind - a.kind);
  list.replaceChildren(cut || "", ...partitions.slice(0, CELLS).map((partition) =>
    make("li", {className: `k${partition.kind}`}, make("b", {}, SIGNS[partition.kind],
      ` ${partition.pidx} ${partition.kind ? KINDS[partition.kind] : ""}`), `
      ${partition.replica_count} replicas, ballot ${partition.ballot}
      primary ${partition.primary}
      secondary ${partition.secondaries.slice(1, -1).replace(/,/g, ", ") || "-"}`)));
}
function filter() {
  const text = $("filter").value.toLowerCase();
  for (const line of $("tables").children)
    line.hidden = !line.firstChild.textContent.toLowerCase().includes(text);
}
$("filter").oninput = filter;
$("pause").onchange = document.onvisibilitychange = () =>
  isResting() ? clearTimeout(timer) : refresh();
refresh();
</script>
"""
ROUTES["/"] = ROUTES["/"]._replace(for_people=_OVERVIEW)  # without this room browsers get JSON too


# === 14. Command line =============================================================================


def _add_sources(parser: argparse.ArgumentParser) -> None:
    add_group = parser.add_argument_group
    group = add_group("source of the meta pages", "one of these; none: a built-in sample")
    add = group.add_mutually_exclusive_group().add_argument
    add("--cluster", metavar="H:P[,H:P...]", help="meta servers of a running cluster")
    add("--state", metavar="FILE", help="a saved state, read again when it changes; - for standard "
        "input, read once")
    add("--standby-of", metavar="H:P", help="be a standby that redirects to this primary")
    group.add_argument("--max-age", metavar="S", type=float, default=1.0,
        help="seconds before a source is asked again (default %(default)s)")
    group.add_argument("--timeout", metavar="S", type=float, default=5.0,
        help="seconds a page waits for its source (default %(default)s)")
    group = add_group("instead of serving", "one of these")
    group.add_argument("--version", action="version", version="pegasus_http " + __version__)
    add = group.add_mutually_exclusive_group().add_argument
    add("--dump", action="store_true", help="print the state as JSON, for --state")
    add("--check", action="store_true", help="exit 0 if the source gives a good state, else 1")
    add("--routes", action="store_true", help="print the dispatch table")


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        "pegasus_http", description="Serve the HTTP status pages of Apache Pegasus.",
        epilog="examples:\n  python -m pegasus_http --role meta\n  python -m pegasus_http --role "
        "meta --cluster 10.0.0.1:34601,10.0.0.2:34601 --listen :8080\n",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument_group("server").add_argument
    add("--role", choices=_ROLES, help="whose pages to serve; needed only to serve")
    add("--listen", metavar="HOST:PORT", help="default 127.0.0.1:34601 (meta), :34801 (replica); "
        ":PORT is 127.0.0.1 too, 0.0.0.0:PORT every IPv4 address of the machine, [::]:PORT every "
        "address; port 0 takes a free one")
    add("--flat", action="store_true", help="the later page shapes, of 1.12.3 and 2.x")
    add("--app-version", metavar="V",
        help="Version on /version (default: the source's, else our own)")
    add("--git-commit", metavar="G", help="GitCommit on /version (default: the source's)")
    add("--max-connections", metavar="N", type=int, default=_MAX_CONNECTIONS,
        help="at once (default %(default)s)")
    add("--no-gzip", action="store_true", help="never compress")
    _add_sources(parser)
    add = parser.add_argument_group("logging, to standard error").add_argument
    add("--access-log", action="store_true", help="a line per request, Common Log Format")
    levels = ("debug", "info", "warning", "error", "critical")
    add("--log-level", metavar="L", default="warning", type=str.lower, choices=levels,
        help=", ".join(levels) + "; default %(default)s")
    return parser


def _listen_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\s:/@\[\]]*)):([0-9]{1,5})", text)
    if match is not None and int(match.group(3)) < 65536:
        return match.group(1) or match.group(2) or "127.0.0.1", int(match.group(3))
    expected = "HOST:PORT, :PORT or [IPV6]:PORT with a port from 0 to 65535"
    if text.count(":") > 1 and re.fullmatch(r"\[?[0-9A-Fa-f:.]+\]?", text):
        expected = "[%s]:PORT" % text.strip("[]")
    raise _bad_value("--listen", expected, text)


_ADDRESS_OPTION = 'HOST:PORT or [IPV6]:PORT, without "http://"'


def _check_redirect_target(text: str, own: str) -> None:
    """ValueError for what no client can be sent to."""
    import ipaddress

    host = _check_address(text, "--standby-of", _ADDRESS_OPTION).rpartition(":")[0].strip("[]")
    if text == own:
        raise ValueError("--standby-of: this server itself listens on %s; name the primary" % own)
    try:
        ip = ipaddress.ip_address(host)
        is_bad = ip.is_unspecified or ip.is_multicast or (ip.version == 4 and ip.is_reserved)
    except ValueError:  # a name, unless it looks like a number
        is_bad = re.fullmatch(r"[0-9.]+|.*:.*", host) is not None
    if is_bad:
        raise _bad_value("--standby-of", "an address that clients can be sent to", text)


def _check_options(options: argparse.Namespace) -> None:
    """ValueError where one is wrong. --listen becomes host and port."""
    if options.role is None and not (options.dump or options.check or options.routes):
        raise ValueError("--role is needed: meta or replica")
    sources = (options.cluster, options.state, options.standby_of)
    if options.role == "replica" and sources != (None, None, None):
        refused = "--cluster, --state or --standby-of"
        raise ValueError("--role replica takes no %s: use --role meta" % refused)
    if options.state == "":
        raise _bad_value("--state", "the name of a file", "")
    if options.listen is None:
        options.listen = ":34801" if options.role == "replica" else ":34601"
    options.host, options.port = _listen_address(options.listen)
    _check_count(options.max_connections, "--max-connections", least=1)
    _check_seconds(options.timeout, "--timeout", 0.001)
    _check_seconds(options.max_age, "--max-age")
    if options.cluster is not None:
        for address in options.cluster.split(","):
            _check_address(address.strip(), "--cluster", _ADDRESS_OPTION)
    if options.standby_of is not None:
        _check_redirect_target(options.standby_of, _join(options.host, options.port))
    if (options.dump or options.check) and (options.role == "replica" or options.standby_of):
        raise ValueError("--dump and --check need a cluster: a standby or replica server has none")


def _print(text: str, stream: Any) -> None:
    """All of `text`, or OSError. Not through the buffer of a standard stream: what is left there by
    an error is written again at exit, which would also wait for a thread that is blocked in it."""
    try:
        stream.flush()
        with open(stream.buffer.fileno(), "wb", closefd=False) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except (AttributeError, ValueError):  # it has no descriptor: a host has put it there
        stream.write(text)
    except OSError as error:
        error.filename = "standard output"
        raise


def _fail(text: str) -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads, or it is closed
        _print("pegasus_http: error: %s\n" % " ".join(text.splitlines()), sys.stderr)
    return 1


def _source(options: argparse.Namespace) -> tuple[Any, str]:
    """The source of the meta pages and what it is called; OSError or ValueError without one."""
    if options.cluster is not None:
        settings = {"timeout": options.timeout, "max_age": options.max_age}
        return LiveCluster(options.cluster, **settings), "cluster"
    if options.state == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: --state - reads the state from it")
        data = sys.stdin.buffer.read(_STATE_BYTES + 1)
        return _load_cluster(data, "standard input"), "state"
    if options.state is not None:
        state_file = StateFile(options.state, max_age=options.max_age)
        state_file()
        return state_file, "state"
    if options.standby_of is not None:
        return Standby(options.standby_of), "standby"
    return (None, "none") if options.role == "replica" else (_sample(), "sample")


def _state_text(source: Any, label: str, dump: bool) -> str:
    """What --dump and --check print."""
    try:
        state = source() if callable(source) else source
    finally:
        if isinstance(source, LiveCluster):
            source.rest()
    if dump:
        import json

        return json.dumps(_cluster_to_json(state), indent=1, ensure_ascii=False)
    tables = [app.partition_count for app in state.apps if app.status == "AVAILABLE"]
    counts = (label, len(tables), sum(tables), len(state.nodes))
    return "ok: source=%s, available tables %d, partitions %d, nodes %d" % counts


def _routes_text() -> str:
    lines = ["| path | roles | parameters | answer |", "|---|---|---|---|"]
    for path, route in sorted(ROUTES.items()):
        if route.listed:
            parameters = ", ".join((*route.parameters, "pretty"))
            row = (path, ", ".join(route.roles), parameters, route.help)
            lines.append("| `%s` | %s | %s | %s |" % row)
    return "\n".join(lines)


def _log_handler() -> logging.Handler:
    """To standard error, without waiting for whoever reads there: a line that finds no room is
    dropped, and a later one says how many were."""
    import logging

    try:
        fd, room = sys.stderr.fileno(), select.poll()
    except (AttributeError, OSError, ValueError):  # it is closed, or a host has put it there
        return logging.StreamHandler()
    with contextlib.suppress(OSError):  # a terminal may take less than poll() says, and then block
        fd = os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    room.register(fd, select.POLLOUT)

    class Handler(logging.Handler):
        dropped = 0

        def emit(self, record: logging.LogRecord) -> None:
            is_access = record.name == "pegasus_http.access"
            self.write((record.getMessage() if is_access else self.format(record)) + "\n")

        def write(self, text: str, patience: int = 0) -> None:
            lost = "%d lines were dropped here, because nobody read standard error\n" % self.dropped
            whole = (lost + text if self.dropped else text).encode("utf-8", "backslashreplace")
            data = memoryview(whole)
            with contextlib.suppress(OSError):  # the reader has gone, the disk is full
                while data and room.poll(patience):
                    data = data[os.write(fd, data[: select.PIPE_BUF]) :]  # so much fits always
            self.dropped = self.dropped + 1 if data else 0

        def close(self) -> None:  # `logging` calls it at exit
            if self.dropped:
                self.write("", 200)
            super().close()

    return Handler()


def _set_up_log(level: str) -> None:
    import logging

    handler = _log_handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _logger().addHandler(handler)
    _logger().setLevel(level.upper())
    _logger(".access").setLevel("INFO")  # a server says nothing there unless it is told to


_LISTEN_HINTS = {
    0: "the host name does not resolve; 0.0.0.0 stands for all addresses of this machine",
    errno.EADDRINUSE: "the port is in use, or was a moment ago; end what uses it, or take a free "
    "one with port 0",
    errno.EACCES: "no permission; take a port from 1024 up",
    errno.EADDRNOTAVAIL: "not an address of this machine; 0.0.0.0 stands for all that it has",
    errno.EMFILE: "no file descriptor is left; raise the limit (ulimit -n)",
}


def _started(server: StatusServer) -> StatusServer:
    """The server; ValueError with a hint when it cannot listen."""
    try:
        server.start()
    except (OSError, UnicodeError) as error:
        # The resolver's own numbers are below 0; a label of a bad length has none at all.
        number = max(getattr(error, "errno", None) or 0, 0)
        hint = _LISTEN_HINTS.get(number) or os.strerror(number).lower()
        raise ValueError("cannot listen on %s: %s" % (server.url[7:], hint)) from None
    return server


def _read_again(server: StatusServer, source: Any) -> None:
    if isinstance(source, StateFile):
        source.reload()
        server.refresh()
        server._pages.warm_up()  # reads the file now, not with a request
    else:
        _logger().warning("SIGHUP is ignored: only --state FILE can be read again")


def _serve(options: argparse.Namespace, source: Any, label: str) -> None:
    import signal

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("main() takes over the signals, so call it in the main thread of the "
            "main interpreter; start() runs in any")
    server = StatusServer(
        source, role=options.role, host=options.host, port=options.port, flat=options.flat,
        version=options.app_version, git_commit=options.git_commit, max_age=options.max_age,
        timeout=options.timeout, max_connections=options.max_connections,
        compress=not options.no_gzip, access_log=options.access_log)
    _set_up_log(options.log_level)
    # Signals write their numbers there: a flag would miss one that strikes just before the wait.
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)
    signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, lambda *_: None)
    with _started(server):
        line = (server.url, options.role, label, os.getpid())
        _print("listening on %s role=%s source=%s pid=%d\n" % line, sys.stdout)
        if isinstance(source, LiveCluster):
            server._pages.warm_up()
        while True:
            caught = os.read(inbox, 1)[0]  # any signal that the process handles
            if caught == signal.SIGHUP:
                _read_again(server, source)
            elif caught in (signal.SIGINT, signal.SIGTERM):
                break
    for number in signals:  # one more must not kill the interpreter while it shuts down
        signal.signal(number, signal.SIG_IGN)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``.

    argv: its arguments; None for those of the process. Returns the exit code: 0 after SIGINT or
    SIGTERM, 1 with one line on standard error when it cannot serve, or when --check or --dump finds
    no good state, 130 after Ctrl-C before it serves. Raises SystemExit: 2 for wrong usage, 0 after
    --help and --version. To serve it has to be called in the main thread, and the process should
    end after it: signal handlers and logging stay as this call has set them.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        _check_options(options)
    except ValueError as error:
        parser.error(str(error))
    if sys.stdout is None:
        return _fail("standard output is closed: send it to a file or to /dev/null")
    try:
        if options.routes:
            _print(_routes_text() + "\n", sys.stdout)
            return 0
        source, label = _source(options)
        if options.dump or options.check:
            _print(_state_text(source, label, options.dump) + "\n", sys.stdout)
        else:
            _serve(options, source, label)
        return 0
    except (OSError, ValueError, PageError, RuntimeError, MemoryError) as error:
        return _fail(_failure_text(error))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
