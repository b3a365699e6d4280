# SPDX-FileCopyrightText: The pegasus_http authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP status interface of Apache Pegasus, in one file of standard-library Python.

Embed it; five lines, one daemon thread:

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

The pages are those of the first Pegasus release with an HTTP interface (1.12); ``flat`` selects the
later shape of three of them. RFC numbers beside the code refer to RFC 9110 (HTTP semantics) and
RFC 9112 (HTTP/1.1).
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
import selectors
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
    _Page = Dict[str, Any]  # of JSON-able values and `_Rows`
    _Counts = Dict[str, "collections.Counter[Any]"]
    _T = TypeVar("_T")
    _Headers = Tuple[Tuple[str, str], ...]
    _Conversation = Generator[object, Any, None]
    _Reader = Callable[["_Decoder"], Any]
    _Fields = Dict[bytes, Tuple[str, _Reader]]

else:

    class _NamedTupleMeta(type):
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body.get("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            made = collections.namedtuple(name, fields, defaults=defaults, module=__name__)
            for key in body.keys() - {"__module__", "__qualname__"}:
                setattr(made, key, body[key])
            return made

    class NamedTuple(metaclass=_NamedTupleMeta):
        """That of `typing`, whose import takes 3 ms (measured)."""


__version__ = "1.0.0"
__all__ = [
    "App",
    "Cluster",
    "LiveCluster",
    "Node",
    "PageError",
    "Partition",
    "ROUTES",
    "Response",
    "Standby",
    "StateFile",
    "StatusHandler",
    "StatusServer",
    "main",
    "respond",
    "start",
]

# --- limits ---------------------------------------------------------------------------------------
# All are read when they are used: assign to the module's attribute before `start` to change one.

_MAX_LINE = 8 * 1024  # bytes of the request line or of one field line: what most servers allow
_MAX_HEAD = 32 * 1024  # bytes of a whole head: four full lines, cookies of a shared host included
_MAX_FIELDS = 100  # field lines of a head: http.client's own limit
_HEAD_SECONDS = 10.0  # from the first byte of a head to its last: a drip feed ends here
_IDLE_SECONDS = 75.0  # without a request: longer than the 60 s of load balancers and pollers
_WRITE_SECONDS = 30.0  # from the start of an answer to its last byte: 300 KB at 10 KB/s
_DRAIN_BYTES = 16 * 1024 * 1024  # of input that is thrown away after the last answer, so that the
_DRAIN_SECONDS = 5.0  # client, which may still be sending, gets that answer and not a reset
_STOP_SECONDS = 1.0  # what answers under way are given when the server stops
_GLANCE_SECONDS = 0.05  # what /version and /health wait for a source that has never answered
_ACCEPT_PAUSE_SECONDS = 0.1  # no accept for so long when descriptors have run out: no spinning
_MAX_SECONDS = 86400.0  # of max_age and timeout, the latter travels as 32-bit milliseconds
_REPORT_SECONDS = 10.0  # the same trouble is logged no more often: clients cannot fill a disk
_MAX_CONNECTIONS = 4096  # when the host names no other limit; an idle one costs about 2 KB
_REFUSED_AT_ONCE = 64  # clients above the limit who are being told so; others are closed
_CLOSED_FOR_ROOM = 16  # idle connections that are looked at to find one that may be closed
_BACKLOG = 1024  # a burst of 1,000 connections is answered in 31 ms; with 128 it takes a second
_ACCEPTS_PER_TURN = 64  # connections accepted before those that are open have their turn
_RECV_BYTES = 16 * 1024  # of one receive
_JOINED_BYTES = 16 * 1024  # of a body that is sent as one piece with its head
_UNSENT_BYTES = 4 * 1024 * 1024  # of different pages that are leaving: silent readers hold no more
_KNOWN_REQUESTS = 256  # requests that are answered by their bytes; a poller sends one or two
_KNOWN_BYTES = 2 * 1024  # of such a request: 256 of these are 512 KB
_PAGE_CACHE_BYTES = 32 * 1024 * 1024  # of finished pages that are kept with one state
_GZIP_BYTES = 1024  # smaller bodies fit into one packet anyway
_KEPT_STATES = 1024  # answers of a source: for a live cluster one a table that is asked for
_WAITING_PAGES = 256  # different pages that wait to be made: a few seconds' work
_WORKER_IDLE_SECONDS = 30.0  # then the thread ends and connections to meta servers are closed
_STATE_BYTES = 64 * 1024 * 1024  # a state file: 5,000 tables x 64 partitions x 3 replicas
_FRAME_BYTES = 64 * 1024 * 1024  # an RPC answer: a table of 250,000 partitions
_MAX_HOPS = 3  # forward addresses followed: the named leader may have lost its lease since
_LIST_BYTES = 8 * 1024 * 1024  # the tables or the nodes: 5,000 with 1.6 KB of environment each
_INFO_BYTES = 64 * 1024  # the cluster's info or the version: twenty texts
_MAX_REPLICAS = 1000  # of a partition, dead ones included: lists so long are kept decoded
_WINDOW = 64  # requests under way to a meta server: 8 KB of them fit every socket buffer
_PAUSE_BYTES = 16 * 1024  # what is decoded between two looks at the clock: a millisecond
_RETRY_SECONDS = 0.2  # no other attempt so long after one that failed: polls are no flood
_UNFINISHED_SECONDS = 60.0  # a read of a cluster that ran out of time is continued within so long
_MAX_LOOKUPS = 16  # host names that are being resolved: each takes a thread while it lasts
_MAX_REPORTS = 1000  # odd rows that are logged: after so many different ones the log knows enough

_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)  # a host may have the signal at its default
_MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)


# === 2. Checks and text ===========================================================================

_ADDRESS = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})"


@functools.lru_cache(maxsize=8192)
def _is_address(text: str) -> bool:
    match = re.fullmatch(_ADDRESS, text)
    return match is not None and 0 < int(match.group(1)) < 65536


def _show(value: object) -> str:
    """In 80 characters: as JSON where it is JSON, which is what people wrote into a state file."""
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
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= _MAX_SECONDS:  # type: ignore[operator]
        raise _bad_value(where, "seconds from %g to %g" % (least, _MAX_SECONDS), value)


def _check_text(value: object, where: str) -> str:
    """The plain text of it: members of a text enum, for example, have another `str()`."""
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
_BURST = threading.local()  # began: the processor time of the thread when it paused last


def _pause_if_due() -> None:
    """Let other threads run when this one has computed for 2 ms since its last pause: each socket
    call of the serving thread would wait 5 ms for the interpreter lock, and the p99 of /version
    beside a busy worker be 14 ms instead of 2 (measured)."""
    used = time.thread_time() - getattr(_BURST, "began", 0.0)
    if not 0.0 <= used <= 0.002:  # below 0: in a forked child the clock starts again
        time.sleep(0.0001)  # enough for the other thread to take the lock
        _BURST.began = time.thread_time()


def _slices(items: Iterable[Any], length: int = _SLICE) -> Iterator[list[Any]]:
    """The items in lists of at most `length`, with pauses between them."""
    iterator = iter(items)
    for part in iter(lambda: list(itertools.islice(iterator, length)), []):
        yield part
        _pause_if_due()


@functools.lru_cache(maxsize=None)
def _encoder(pretty: bool = False) -> json.JSONEncoder:
    import json  # here: 2 ms of the import of this module

    style: dict[str, Any] = {"indent": 4} if pretty else {"separators": (",", ":")}
    return json.JSONEncoder(ensure_ascii=False, **style)  # as the C++ server writes it


def _encode(value: object, pretty: bool = False) -> str:
    return _encoder(pretty).encode(value)


def _members(value: dict[Any, Any], pretty: bool = False) -> str:
    """As JSON without the braces; indented, without the line break before the last one too."""
    return _encode(value, pretty)[1 : -2 if pretty else -1]


class _Rows(NamedTuple):
    """A long JSON object as a value of a page's dict, written in pieces: dicts of some hundred
    rows at most, or the JSON of such dicts without the braces."""

    parts: Iterable[dict[str, Any] | str]

    def write(self, pretty: bool) -> Iterator[str]:
        """The object in pieces, indented as a value of the page."""
        before = "{"
        for part in self.parts:
            if pretty and isinstance(part, str):
                import json

                part = json.loads("{%s}" % part)
            text = part if isinstance(part, str) else _members(part, pretty)
            if text:
                # within JSON strings there is no raw line break: all of them are between values
                yield before + (text.replace("\n", "\n    ") if pretty else text)
                before = ","
            _pause_if_due()
        yield "{}" if before == "{" else "\n    }" if pretty else "}"


def _write_page(page: Any, pretty: bool) -> list[str]:
    """The page's JSON in pieces. Joined they are what `json.dumps` makes of it, to the letter."""
    if not isinstance(page, dict) or not page:
        return [_encode(page, pretty)]
    pieces = ["{"]
    for key, value in page.items():
        if isinstance(value, _Rows):
            pieces += [_members({key: {}}, pretty)[:-2], *value.write(pretty), ","]
        else:
            pieces += [_members({key: value}, pretty), ","]
    return [*pieces[:-1], "\n}" if pretty else "}"]


def _local_time(second: float) -> str:
    """With date; "-" for what no calendar has: a live cluster may say anything."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
    return "-"


@functools.lru_cache(maxsize=256)
def _host_and_port(authority: str) -> tuple[str, int]:
    """Host in lower case and port, 80 where it is left out; ("", 0) for what is malformed.

    RFC 3986, 3.2.2, without a user. A zone may stand as in RFC 6874 (`[fe80::1%25eth0]`) and as
    clients send it (`[fe80::1%eth0]`).
    """
    letters = r"[A-Za-z0-9._~!$&'()*+,;=-]"  # unreserved and sub-delims
    address = r"\[([0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._~-]+)?\]"
    later = r"\[[vV][0-9A-Fa-f]+\.(?:%s|:)+\]" % letters
    name = r"(?:%s|%%[0-9A-Fa-f]{2})+" % letters
    match = re.fullmatch("(%s|%s|%s)(?::([0-9]*))?" % (address, later, name), authority)
    host, ipv6, port = match.groups(default="") if match else ("", "", "0")
    with contextlib.suppress(OSError):  # of what looks like an IPv6 address and is none
        plain = ipv6 and socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ipv6))
        return host.replace(ipv6, plain).lower(), int(port[-9:] or 80)
    return "", 0


def _join(host: str, port: int) -> str:
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def _logger(child: str = "") -> logging.Logger:
    import logging  # here: 7 ms of the import of this module

    return logging.getLogger("pegasus_http" + child)


# === 3. Cluster model =============================================================================

_APP_STATUSES = (  # enum app_status of Pegasus, without its AS_, in the order of its numbers
    "INVALID", "AVAILABLE", "CREATING", "CREATE_FAILED", "DROPPING", "DROP_FAILED", "DROPPED",
    "RECALLING",
)  # fmt: skip
_LIVE_STATUSES = ("AVAILABLE", "CREATING", "DROPPING", "RECALLING")  # their names are unique
_HEALTH = ("fully_healthy", "unhealthy", "write_unhealthy", "read_unhealthy")  # of partitions
_LAST_SECOND = 253402300799 - 86400  # of year 9999, whatever the time zone


def _check_kind(value: Any, where: str, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind):
        raise _bad_value(where, expected, value)
    return value


def _check_items(
    value: Any, where: str, expected: str, check: Callable[[Any, str], Any]
) -> tuple[Any, ...]:
    """What an iterable (no text) gives, each item as `check(item, "")` returns it."""
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__iter__"):
        raise _bad_value(where, expected, value)
    items: list[Any] = []
    try:
        items.extend(value)
    except Exception as error:
        place, kind = "%s[%d]" % (where, len(items)), type(error).__name__
        raise ValueError("%s: expected an item, got %s: %s" % (place, kind, error)) from error
    checked: list[Any] = []
    try:
        for part in _slices(items):
            for item in part:
                checked.append(check(item, ""))
    except ValueError as error:
        raise ValueError("%s[%d]%s" % (where, len(checked), error)) from None
    return tuple(checked)


def _check_unique(where: str, field: str, items: Iterable[tuple[int, Any]]) -> None:
    """`items` are those, with their numbers, of which no two may have the same."""
    first: dict[object, int] = {}
    for n, item in items:
        value = getattr(item, field)
        if first.setdefault(value, n) != n:
            text = "%s[%d].%s: %s is that of %s[%d] already"
            raise ValueError(text % (where, n, field, _show(value), where, first[value]))


class Partition(NamedTuple):
    """One partition of a table: who serves it.

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


def _is_final(p: Partition) -> bool:
    """Whether nothing is to be said or changed: three times as fast as the single checks, and
    64,000 partitions are a normal cluster."""
    ballot, maximum, primary, secondaries = p
    return (
        (type(ballot) is int and -1 <= ballot < 2**63)
        and (maximum is None or (type(maximum) is int and 0 <= maximum < 2**31))
        and (primary is None or (type(primary) is str and _is_address(primary)))
        and type(secondaries) is tuple
        and not [item for item in secondaries if type(item) is not str or not _is_address(item)]
    )


def _check_partition(p: Any, where: str) -> Partition:
    """`p` with its addresses as plain texts in a tuple."""
    if type(p) is Partition and _is_final(p):
        return p
    ballot, maximum, primary, secondaries = _check_kind(p, where, Partition, "a Partition")
    _check_count(ballot, where + ".ballot", 2**63 - 1, -1)
    if maximum is not None:
        _check_count(maximum, where + ".max_replica_count")
    primary = _check_primary(primary, where + ".primary")
    where += ".secondaries"
    _check_kind(secondaries, where, (tuple, list), 'a tuple or list of "host:port"')
    places = map((where + "[%d]").__mod__, itertools.count())
    return Partition(ballot, maximum, primary, tuple(map(_check_address, secondaries, places)))


class _Checked:
    """Base of the named tuples that hosts make: each field goes through its check.

    _checks: by field, (value, where) -> its final form, or ValueError. A field without one is a
        text; None needs no check where it is the default.
    """

    _checks: Mapping[str, Callable[[Any, str], Any]]

    if not TYPE_CHECKING:  # which is to see the named tuple's methods, that know the fields

        def __new__(cls, *fields: Any, **named: Any) -> Any:
            return cls._unchecked(**cls._check(super().__new__(cls, *fields, **named)))

        @classmethod
        def _make(cls, iterable: Iterable[Any]) -> Any:
            """What `_replace` builds on: through the checks."""
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
        """Of fields in their final form, which may hold the odd data of a live cluster."""
        return super().__new__(cls, *fields, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields alone: without what was computed, and odd data as it is."""
        return type(self)._unchecked, tuple(self)  # type: ignore[arg-type]


def _checked_pair(pair: Any, where: str) -> tuple[str, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise _bad_value(where, "a pair of strings", pair)
    return _check_text(pair[0], where), pair[1]


def _checked_envs(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    given = value.items() if isinstance(value, Mapping) else value
    pairs = _check_items(given, where, "a mapping of strings", _checked_pair)
    envs = {key: _check_text(text, "%s[%s]" % (where, _show(key))) for key, text in pairs}
    return tuple(sorted(envs.items()))


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

    app_id, app_name: its number and name.
    partitions: an iterable of `Partition` objects by index; None when they are not known.
    partition_count: their number; only needed when `partitions` is None.
    max_replica_count: replicas a partition should have.
    status: one of INVALID, AVAILABLE, CREATING, CREATE_FAILED, DROPPING, DROP_FAILED, DROPPED,
        RECALLING. Only AVAILABLE tables are on the list pages.
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
        "drop_second": functools.partial(_check_count, most=_LAST_SECOND),
        "expire_second": functools.partial(_check_count, most=_LAST_SECOND),
    }
    # What pages computed of this table. Threads may compute it twice at once, to the same end.
    _kept_health: tuple[int, ...] = ()
    _general_row = _healthy_row = ""

    @classmethod
    def _check(cls, given: Any) -> dict[str, Any]:
        fields = super()._check(given)
        if not fields["app_name"]:
            raise _bad_value("app_name", "at least one character", "")
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


class Node(NamedTuple):
    """One replica server. address: "host:port"; status: ALIVE or UNALIVE. Checked by `Cluster`."""

    address: str
    status: str = "ALIVE"


def _checked_node(node: Any, where: str) -> Node:
    address, status = _check_kind(node, where, Node, "a Node")
    address = _check_address(address, where + ".address")
    return Node(address, _check_choice(status, where + ".status", ("ALIVE", "UNALIVE")))


def _checked_nodes(value: Any, where: str) -> tuple[Node, ...]:
    nodes = _check_items(value, where, "Node objects", _checked_node)
    _check_unique(where, "address", enumerate(nodes))
    return nodes


def _checked_apps(value: Any, where: str) -> tuple[App, ...]:
    is_app = functools.partial(_check_kind, kind=App, expected="an App")
    apps = _check_items(value, where, "App objects", is_app)
    _check_unique(where, "app_id", enumerate(apps))
    live = (item for item in enumerate(apps) if item[1].status in _LIVE_STATUSES)
    _check_unique(where, "app_name", live)
    return apps


def _joined_servers(value: Any, where: str) -> str:
    if not isinstance(value, str):
        value = ",".join(_check_items(value, where, 'texts "host:port", or one text', _check_text))
    return _check_text(value, where)


def _balance_text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _check_text(value, where)
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        expected = "three whole numbers (move_pri, copy_pri, copy_sec), or a text"
        raise _bad_value(where, expected, value)
    counts = _check_items(value, where, "", _check_count)
    return "move_pri=%d,copy_pri=%d,copy_sec=%d,total=%d" % (*counts, sum(counts))


def _count_replicas(partitions: Iterable[Partition]) -> _Counts:
    """Figures by node, under their names on /meta/nodes."""
    primaries: collections.Counter[Any] = collections.Counter()
    secondaries: collections.Counter[Any] = collections.Counter()
    for part in _slices(partitions, 8 * _SLICE):  # 0.1 ms
        primaries.update([p.primary for p in part])
        secondaries.update(itertools.chain.from_iterable([p.secondaries for p in part]))
    del primaries[None]  # of partitions that have no primary
    names = ("replica_count", "primary_count", "secondary_count")
    return dict(zip(names, (primaries + secondaries, primaries, secondaries)))


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
        "nodes": _checked_nodes,
        "meta_servers": _joined_servers,
        "balance_operation_count": _balance_text,
    }
    _by_name: dict[str, App]  # the tables that have a right to their name
    _kept_counts: _Counts | None = None

    @classmethod
    def _unchecked(cls, *fields: Any, **named: Any) -> Cluster:
        # A live cluster's tables may have equal names when they are shown: the first one counts.
        self = super()._unchecked(*fields, **named)
        live = [app for part in _slices(self.apps) for app in part if app.status in _LIVE_STATUSES]
        self._by_name = {app.app_name: app for app in reversed(live)}
        return self

    def _replica_counts(self) -> _Counts:
        """Over the available tables. Counted anew for each state, 17 ms for 64,000 partitions: to
        add up counts kept with each table takes 22 ms, and 8 times the pages' memory (measured)."""
        if self._kept_counts is None:
            shown = [app.partitions or () for app in self.apps if app.status == "AVAILABLE"]
            self._kept_counts = _count_replicas(itertools.chain.from_iterable(shown))
        return self._kept_counts


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
        """Keep the four parts as attributes of the same names."""
        super().__init__(status, error, hint_message)
        self.status, self.error, self.hint_message = status, error, hint_message
        self.headers = headers


_RETRY_AFTER = (("Retry-After", "1"),)


def _not_active(hint: str, error: str = "ERR_SERVICE_NOT_ACTIVE") -> PageError:
    return PageError(503, error, hint, _RETRY_AFTER)


def _bad_data(hint: str, status: int = 400) -> PageError:
    return PageError(status, "ERR_INVALID_DATA", hint)


def _as_cluster(state: _State) -> Cluster:
    """The cluster, or the reason why there is none."""
    if isinstance(state, Cluster):
        return state
    if isinstance(state, PageError):
        raise state.with_traceback(None)  # many requests share it: it must not collect frames
    raise _not_active("no state has been published yet")


def _find_app(cluster: Cluster, name: str) -> App:
    """The table of that name; PageError when there is none, or when it comes or goes."""
    app = cluster._by_name.get(name)
    if app is None:
        plus = '; "+" stays a plus here, a blank is written %20' if "+" in name else ""
        raise PageError(404, "ERR_OBJECT_NOT_FOUND", 'table not found: "%s"%s' % (name, plus))
    if app.status == "DROPPING":
        raise _not_active('table is being dropped: "%s"' % name, "ERR_BUSY_DROPPING")
    if app.status != "AVAILABLE":
        raise _not_active('table is being created or recalled: "%s"' % name, "ERR_BUSY_CREATING")
    return app


class _Settings(NamedTuple):
    """What a server was told at its start, as far as pages depend on it."""

    role: str
    version: str | None
    git_commit: str | None
    flat: bool
    compress: bool
    address: str


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
            page[path] = ". ".join(filter(None, [usage, _help(route)]))
    return page


def _version(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Version and commit of the server."""
    of_state = (state.version, state.git_commit) if isinstance(state, Cluster) else (None, None)
    page: _Page = {
        "Version": settings.version or of_state[0] or __version__,
        "GitCommit": settings.git_commit or of_state[1] or "unknown",
    }
    return page if settings.flat else {"Version": page}


_IMPORTED = (os.getpid(), time.monotonic())


@functools.lru_cache(maxsize=1)
def _process_start(pid: int) -> float:
    """Unix time at which this process, `pid`, started; a forked child has its own.

    /proc/uptime may be that of a container, while the kernel counts from the boot of the machine.
    Where there is no /proc, or it makes no sense, it is when this module was imported, or now.
    """
    age = least = time.monotonic() - _IMPORTED[1] if pid == _IMPORTED[0] else 0.0
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        with open("/proc/self/stat", "rb") as stat:
            # proc(5): field 22, counted behind the command name, which may hold blanks
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    now = time.time()
    return now - (age if least <= age < now else least)


def _start_time(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Start of the process, in local time."""
    page: _Page = {"RecentStartTime": _local_time(_process_start(os.getpid()))}
    return page if settings.flat else {"RecentStartTime": page}


def _health(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Whether the server is up; with primary, 503 unless it is the primary meta server."""
    primary = settings.role == "meta" and isinstance(state, Cluster)
    if query.primary and not primary:
        raise _not_active("this server is not the primary meta server")
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


def _meta_app(state: _State, query: _Query, settings: _Settings) -> _Page:
    """One table: its partitions, their replicas and their health."""
    app = _find_app(_as_cluster(state), query.name)
    known = app.partitions
    maximum = app.max_replica_count if known is None else app._maximum(known[0]) if known else 0
    general = _shown(app, "app_name", "app_id", "partition_count")
    page: _Page = {"general": {**general, "max_replica_count": str(maximum)}}
    if not query.detail:
        return page
    if known is None:
        raise _not_active('the partitions of "%s" are not known' % app.app_name)
    numbered = _slices(enumerate(known))
    return {
        **page,
        "replicas": _Rows({str(n): _replica_row(app, n, p) for n, p in part} for part in numbered),
        "nodes": _Rows(_app_nodes(known)),
        "healthy": {name + "_partition_count": str(n) for name, n in zip(_HEALTH, app._health())},
    }


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


def _app_nodes(partitions: Sequence[Partition]) -> Iterator[dict[str, Any]]:
    """Rows of the nodes that hold a replica of the table, and of their sums."""
    replicas, primaries, secondaries = _count_replicas(partitions).values()
    nodes = sorted(replicas, key=_node_order)
    columns = {"primary": primaries, "secondary": secondaries, "total": replicas}
    for by_node in columns.values():
        by_node["total"] = sum(by_node.values())
    for part in _slices([*nodes, "total"]):
        yield {node: {"node": node, **_figures(columns, node)} for node in part}


def _meta_app_envs(state: _State, query: _Query, settings: _Settings) -> _Page:
    """One table's environment: what was set for it, by name."""
    return dict(sorted(dict(_find_app(_as_cluster(state), query.name).envs).items()))


def _meta_apps(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All available tables; with detail, their health."""
    apps = [app for app in _as_cluster(state).apps if app.status == "AVAILABLE"]
    apps.sort(key=operator.attrgetter("app_id"))
    page: _Page = {"general_info": _Rows(",".join(map(_general_row, p)) for p in _slices(apps))}
    summary = {"total_app_count": str(len(apps))}
    if query.detail and apps:
        known = [app for app in apps if app.partitions is not None]
        page["healthy_info"] = _Rows(",".join(map(_healthy_row, part)) for part in _slices(known))
        healths = [app._health() for part in _slices(known) for app in part]
        summary["fully_healthy_app_count"] = str(len([h for h in healths if not h[1]]))
        for n, name in enumerate(_HEALTH[1:], 1):
            summary[name + "_app_count"] = str(len([h for h in healths if h[n]]))
    return {**page, "summary": summary}


def _general_row(app: App) -> str:
    """Kept as text, like the other: 2 ms instead of 40 for 1,000 tables, one of them changed."""
    if not app._general_row:
        created = _local_time(app.create_second) if app.create_second else "-"
        row = {
            **_shown(app, "app_id", "status", "app_name", "app_type", "partition_count"),
            "replica_count": str(app.max_replica_count),
            "is_stateful": "true" if app.is_stateful else "false",
            "create_time": created if created == "-" else created + ".000",
            "drop_time": "-",
            "drop_expire": "-",
            "envs_count": str(len(app.envs)),
        }
        app._general_row = _members({row["app_id"]: row})
    return app._general_row


def _healthy_row(app: App) -> str:
    if not app._healthy_row:
        row = _shown(app, "app_id", "app_name", "partition_count")
        row.update({name: str(count) for name, count in zip(_HEALTH, app._health())})
        app._healthy_row = _members({row["app_id"]: row})
    return app._healthy_row


def _meta_nodes(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All replica servers; with detail, their replicas."""
    cluster = _as_cluster(state)
    counts = cluster._replica_counts() if query.detail else {}
    nodes = sorted(cluster.nodes, key=lambda node: _node_order(node.address))
    alive = len([node for node in nodes if node.status == "ALIVE"])
    return {
        "details": _Rows(
            {node.address: {**node._asdict(), **_figures(counts, node.address)} for node in part}
            for part in _slices(nodes)
        ),
        "summary": {
            "total_node_count": str(len(nodes)),
            "alive_node_count": str(alive),
            "unalive_node_count": str(len(nodes) - alive),
        },
    }


def _meta_cluster(state: _State, query: _Query, settings: _Settings) -> _Page:
    """The cluster: meta servers, ZooKeeper, function level, balance."""
    cluster = _as_cluster(state)
    page = dict(zip(cluster._fields[2:10], cluster[2:10]))  # up to the deviations
    for name, kind in zip(cluster._fields[8:10], ("primary_count", "replica_count")):
        if page[name] is None:
            counts = cluster._replica_counts()
            page[name] = _stddev(cluster, counts[kind], counts["replica_count"])
    return page if settings.flat else {"cluster_info": page}


def _stddev(cluster: Cluster, counts: Mapping[str, int], replicas: Mapping[str, int]) -> str:
    """Of alive nodes that hold any replica; a sample (n - 1) while a dead node still counts. In the
    C++ server's order of operations: `statistics` rounds differently, and is slow to import."""
    own = [counts[node] for node, status in cluster.nodes if status == "ALIVE" and replicas[node]]
    sample = any(counts[node] for node, status in cluster.nodes if status != "ALIVE")
    if len(own) < 2:
        return "0.00"
    mean = sum(own) / len(own)
    squares = sum((count - mean) ** 2 for count in own)
    deviation = math.sqrt(squares / (len(own) - 1 if sample else len(own)))
    return "%.2f" % (math.floor((deviation + 0.005) * 100) / 100)


def _favicon(state: _State, query: _Query, settings: _Settings) -> None:
    """Nothing: browsers ask every server for an icon."""


# === 5. Routes ====================================================================================


class _Route(NamedTuple):
    """One row of the dispatch table.

    page: (state, query, settings) -> a JSON object, or None: no content; the first line of its
    docstring is the help. parameters: query parameters besides `pretty`. roles: who serves it.
    shows: "nothing" of the state; the "cluster" as it is now; the "last state", however old, which
    may be an error; the "last cluster", whatever went wrong since.
    listed: whether `/` and --routes name it. for_people: what a browser gets instead, as HTML.
    """

    page: Callable[[_State, _Query, _Settings], _Page | None]
    parameters: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("meta",)
    shows: str = "cluster"
    listed: bool = True
    for_people: str = ""


_ROLES = ("meta", "replica")

#: The path-dispatch table: path -> `_Route`. 404, 405, OPTIONS, `/` and --routes come from it.
ROUTES: dict[str, _Route] = {
    "/": _Route(_index, (), _ROLES, "nothing"),
    "/favicon.ico": _Route(_favicon, (), _ROLES, "nothing", listed=False),
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


def _help(route: _Route) -> str:
    """First line of the page's docstring; none is left under -OO."""
    return (route.page.__doc__ or "").partition("\n")[0]


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
    """A request that is in order: which page, with which parameters, in which representation."""

    path: str
    query: _Query = _Query()
    gzip: bool = False
    html: bool = False

    @property
    def route(self) -> _Route:
        return ROUTES[self.path]


def _resolve(
    method: str, target: str, fields: Mapping[str, str], settings: _Settings
) -> _PageRequest | None:
    """The page that a request asks for, None for OPTIONS; PageError when it is not in order."""
    if method not in ("GET", "HEAD", "OPTIONS", *_OTHER_METHODS):
        raise PageError(501, "ERR_INVALID_DATA", "unknown method: " + method)
    if method == "OPTIONS" and target == "*":  # RFC 9110, 9.3.7: about the server as a whole
        return None
    if method == "CONNECT" and re.fullmatch(r".+:[0-9]+", target) and _host_and_port(target)[0]:
        raise _not_allowed(method, target)  # RFC 9110, 9.3.6: its target is a host and a port
    raw_path, _, raw_query = _split_target(target)[1].partition("?")
    path = _parse_path(raw_path)
    route = ROUTES.get(path)
    if route is None:
        raise PageError(404, "ERR_HANDLER_NOT_FOUND", 'service not found for "%s"' % path)
    if settings.role not in route.roles:
        hint = '"%s" is served by meta servers; this is a replica server' % path
        raise PageError(404, "ERR_HANDLER_NOT_FOUND", hint)
    if method == "OPTIONS":
        return None
    if method in _OTHER_METHODS:
        raise _not_allowed(method, path)
    query = _parse_query(raw_query, route.parameters)
    gzip = settings.compress and _accepts("gzip", fields.get("accept-encoding", ""))
    html = bool(route.for_people) and _accepts("text/html", fields.get("accept", ""), exact=True)
    return _PageRequest(path, query, gzip, html)


def _not_allowed(method: str, target: str) -> PageError:
    hint = "method %s is not allowed for %s" % (method, target)
    return PageError(405, "ERR_HANDLER_NOT_FOUND", hint, _ALLOW)


def _split_target(target: str) -> tuple[str, str]:
    """(authority, origin form) of a request target; the authority is "" in the usual form.

    RFC 9112, 3.2.2: a server accepts the absolute form too, and its authority replaces Host.
    """
    absolute = re.fullmatch(r"(?is)https?://([^/?#]*)(.*)", target)
    authority, origin = absolute.groups() if absolute else ("", target)
    if absolute and not origin.startswith("/"):
        origin = "/" + origin
    if not re.fullmatch(r"/[!\"$-~]*", origin):  # visible ASCII without the "#" of a fragment
        raise _bad_data('the request target is not a path: "%s"' % target)
    if absolute and not _host_and_port(authority)[0]:
        raise _bad_data('the request target names no host that is in order: "%s"' % target)
    return authority, origin


def _unescape(text: str) -> str:
    """Percent-decoded as UTF-8. Raises ValueError, which says what is wrong."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("malformed escape")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("bytes that are not UTF-8") from None


def _parse_path(raw: str) -> str:
    """Split, then decoded; empty segments collapse. An escaped slash stays escaped: a name."""
    try:
        segments = [_unescape(part).replace("/", "%2F") for part in raw.split("/") if part]
    except ValueError as error:
        raise _bad_data('%s in the path: "%s"' % (error, raw)) from None
    return "/" + "/".join(segments)


def _parse_query(raw: str, parameters: Sequence[str]) -> _Query:
    """Split at "&", then at the first "=", and only then decoded; "+" stays a plus.

    An unknown parameter is usually a typing error, but pages without parameters ignore it, as the
    C++ server does: it may be there to get past a cache. A bare flag is true, and so is one with an
    empty value, which standbys write into redirects.
    """
    values: dict[str, Any] = {}
    for piece in filter(None, raw.split("&")):
        raw_name, _, raw_value = piece.partition("=")
        try:
            name, value = _unescape(raw_name), _unescape(raw_value)
        except ValueError as error:
            raise _invalid('%s in parameter: "%s"' % (error, piece)) from None
        if name != "pretty" and name not in parameters:
            if parameters:
                raise _invalid("unknown parameter: " + name)
            continue
        if name in values:
            raise _invalid("duplicate parameter: " + name)
        if name != "name" and value not in ("true", "false", ""):
            raise _invalid('invalid %s: "%s", expected true or false' % (name, value))
        values[name] = value if name == "name" else value != "false"
    if "name" in parameters and not values.get("name"):
        raise _invalid("app name shouldn't be empty")
    return _Query(**values)


def _invalid(hint: str) -> PageError:
    return PageError(400, "ERR_INVALID_PARAMETERS", hint)


@functools.lru_cache(maxsize=64)
def _accepts(wanted: str, field: str, exact: bool = False) -> bool:
    """Whether an Accept or Accept-Encoding field names `wanted`, or "*" unless `exact`.

    RFC 9110, 12.4.2 and 12.5.3: the best match counts, and q=0 is a no.
    """
    named = {}
    for part in field.lower().split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        weights = [piece[2:].strip(" 0.") for piece in parameters if piece.startswith("q=")]
        named[name] = not weights or bool(weights[-1])
    return named.get(wanted, not exact and named.get("x-" + wanted, named.get("*", False)))


def _check_ready(state: _State, name: str, target: str, host: str, settings: _Settings) -> None:
    """Raise the answer to a request whose page cannot be made of `state`, such as a redirect, in
    constant time. name: of the table, or "". target, host: of the request, as they came."""
    if isinstance(state, Standby):
        raise _redirect(state, target, host, settings)
    cluster = _as_cluster(state)
    if name:
        _find_app(cluster, name)


def _redirect(state: Standby, target: str, host: str, settings: _Settings) -> PageError:
    """To the primary, built from the raw target: whatever it holds stays behind the authority."""
    primary = state.primary
    if primary is None:
        return _not_active("no primary meta server is known")
    authority, origin = _split_target(target)
    if _host_and_port(primary) in map(_host_and_port, (settings.address, authority or host)):
        return _not_active("the primary meta server is not known: it cannot be this standby")
    location = "http://" + primary + quote(origin, safe="/?:@!$&'()*+,;=-._~%")
    hint = "the primary meta server is " + primary
    return PageError(307, "ERR_FORWARD_TO_OTHERS", hint, (("Location", location),))


def _render(state: _State, request: _PageRequest, settings: _Settings) -> Response:
    """The whole 200 answer. It takes as long as the page is large."""
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
    tag = _tag(body)
    if settings.compress and len(body) >= _GZIP_BYTES:  # smaller ones fit into one packet anyway
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


def _tag(body: bytes) -> str:
    """An entity tag: 64 bits that depend on every byte, keyed by the process. hashlib would cost
    4 MB and 2 ms at its import. The interpreter lock is held while a part is hashed."""
    parts = []
    for begin in range(0, len(body), 65536):
        parts.append(hash(body[begin : begin + 65536]))
        _pause_if_due()
    return "%x-%016x" % (len(body), hash(tuple(parts)) & 2**64 - 1)


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


_ENTITY_TAG = r'(?:W/)?"[^"]*"'


def _matches(field: str, etag: str, weakly: bool = False) -> bool:
    """Whether a list of entity tags holds `etag`: RFC 9110, 13.1.1 strongly, 13.1.2 weakly.

    A comma between quotes belongs to the tag. "*" alone stands for any tag.
    """
    if not re.fullmatch(r"[ \t,]*(?:%s[ \t]*(?:,[ \t,]*|$))*" % _ENTITY_TAG, field):
        return field.strip() == "*"
    tags = re.findall(_ENTITY_TAG, field)
    return etag in tags or (weakly and "W/" + etag in tags)


def respond(
    state: _State,
    method: str,
    target: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    *,
    role: str = "meta",
    version: str | None = None,
    git_commit: str | None = None,
    flat: bool = False,
    compress: bool = True,
) -> Response:
    """The whole application as one pure function, for WSGI, ASGI, tests and the like.

    state: a `Cluster`, a `Standby`, None (nothing known yet) or a `PageError` to answer with.
    method, target: of the request, the target raw as it stood in the request line.
    headers: the request's, as a mapping or pairs, names in any case.
    role: "meta" or "replica"; version, git_commit: for /version, None for the state's or our own;
    flat: later page shapes; compress: gzip where the client accepts it and the page has 1 KiB.

    Bad requests are answered, with the errors that a server gives. Raises TypeError for another
    state and ValueError for another role. Thread-safe. Nothing is kept from one call to the next.
    """
    if state is not None and not isinstance(state, (Cluster, Standby, PageError)):
        expected = "a Cluster, Standby, PageError or None"
        raise TypeError("state: expected %s, got %s" % (expected, type(state).__name__))
    _check_choice(role, "role", _ROLES)
    fields: dict[str, str] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        name = name.lower()  # RFC 9110, 5.2: lines of one name form one list
        fields[name] = fields[name] + ", " + value if name in fields else value
    settings = _Settings(role, version, git_commit, flat, compress, "")
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
# Pure functions on bytes: no socket, no clock, no state.


class _Head(NamedTuple):
    """A parsed request head. line: its first. fields: names in lower case; the values of one name
    are joined by ", ". has_body: whether the client announces one."""

    line: str
    method: str
    target: str
    version: str
    fields: dict[str, str]
    keep_alive: bool
    has_body: bool


_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%s):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_BLANK_LINES = re.compile(rb"(?:\r\n)+")  # RFC 9112, 2.2: to be ignored before a request line
_CONTROLS = bytes({*range(32), 127} - {9, 10, 13})


def _check_characters(part: bytes) -> None:
    """No control characters, no CR without LF, no LF without CR; the last CR may be half of a pair.
    Counting is ten times as fast as a regular expression on a head of 7 KB (measured)."""
    part = part[:-1] if part.endswith(b"\r") else part
    pairs = part.count(b"\r\n")
    lines_end_well = part.count(b"\r") == pairs == part.count(b"\n")
    if not lines_end_well or len(part.translate(None, _CONTROLS)) < len(part):
        raise _bad_data("not HTTP: a control character, or a line that does not end in CRLF")


def _head_end(buffer: bytes, scanned: int) -> int:
    """Where the head ends (at its blank line), or -1; the first `scanned` bytes hold no end.

    Raises PageError as soon as it is clear that no head in order can follow, so that a TLS hello or
    a binary protocol is answered at once and not after _HEAD_SECONDS. How the bytes arrive makes no
    difference: first the request line is checked, then the rest.
    """
    new = scanned - 1 if buffer[scanned - 1 : scanned] == b"\r" else scanned
    line_end = buffer.find(b"\r\n", 0, _MAX_LINE + 2)
    if line_end < 0:
        _check_characters(buffer[new : _MAX_LINE + 1])
        if buffer[_MAX_LINE : _MAX_LINE + 2] not in (b"", b"\r"):
            raise _bad_data("the request line is longer than %d bytes" % _MAX_LINE, 414)
        return -1
    if new <= line_end:
        _check_characters(buffer[new:line_end])
        _parse_request_line(buffer[:line_end])
        new = line_end
    end = buffer.find(b"\r\n\r\n", max(line_end, scanned - 3))
    _check_characters(buffer[new : min(end + 2 if end >= 0 else len(buffer), _MAX_HEAD)])
    if end + 4 > _MAX_HEAD or (end < 0 and len(buffer) >= _MAX_HEAD):
        raise _bad_data("the header section is longer than %d bytes" % _MAX_HEAD, 431)
    return end


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


def _parse_head(head: bytes) -> _Head:
    """The head without its blank line; PageError says what is wrong with it."""
    lines = head.split(b"\r\n")
    method, target, version = _parse_request_line(lines[0])
    fields = _parse_fields(lines[1:])
    http11 = version == "HTTP/1.1"
    if http11 and "host" not in fields:
        raise _bad_data("no Host field, which HTTP/1.1 asks for")  # RFC 9112, 3.2
    if fields.get("host") and not _host_and_port(fields["host"])[0]:
        raise _bad_data('malformed Host field: "%s"' % fields["host"])
    connection = _list_field(fields.get("connection", ""))
    return _Head(
        lines[0].decode("ascii"), method, target, version, fields,
        keep_alive="close" not in connection and (http11 or "keep-alive" in connection),
        has_body=_announces_body(fields, http11),
    )  # fmt: skip


def _list_field(field: str) -> list[str]:
    """The elements of a list field in lower case; empty ones do not count (RFC 9110, 5.6.1.2)."""
    return [part.strip(" \t") for part in field.lower().split(",") if part.strip(" \t")]


def _parse_fields(lines: Sequence[bytes]) -> dict[str, str]:
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
        if name in fields:
            if name == "host":
                raise _bad_data("more than one Host field")  # RFC 9112, 3.2
            value = fields[name] + ", " + value
        fields[name] = value
    return fields


def _announces_body(fields: Mapping[str, str], http11: bool) -> bool:
    """RFC 9112, 6.3. The length is not needed, so it is never turned into a number."""
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if length is not None or not http11:
            raise _bad_data("Transfer-Encoding with Content-Length, or in HTTP/1.0")
        if _list_field(coding) != ["chunked"]:
            raise _bad_data('unknown transfer coding: "%s"' % coding, 501)
        return True
    if length is not None and not (length.isascii() and length.isdigit()):
        raise _bad_data('malformed Content-Length: "%s"' % length)
    return bool((length or "").strip("0"))


@functools.lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def _write_head(response: Response, second: int, connection: str) -> bytes:
    """The head of an answer. connection: value of the Connection field, "" for none."""
    phrase = BaseHTTPRequestHandler.responses.get(response.status, ("",))[0]
    lines = ["HTTP/1.1 %d %s" % (response.status, phrase)]
    lines += ["%s: %s" % pair for pair in response.headers]
    lines += ["Date: " + _http_date(second), "Server: pegasus_http/" + __version__]
    lines += ["Connection: " + connection] if connection else []
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


# === 7. Conversation ==============================================================================
# What is said over one connection, without the connection: a generator yields what it waits for
# and is sent what came of it. Two drivers move the bytes, the loop of `StatusServer` without
# blocking and `StatusHandler.handle` with it, so that both serve the same way.


class _Order:
    """A page that a client waits for. target, host: of its request, as they came. since: when it
    came. job: what it waits for, the key of a state or (pages, request). state: what the page is
    made of. edition, until: what it was found in, how long that holds. done: who gets the page."""

    def __init__(self, request: _PageRequest, target: str, host: str) -> None:
        self.request, self.target, self.host = request, target, host
        self.since, self.until = time.monotonic(), math.inf
        self.job: object = None
        self.state: _State = None
        self.edition: _Edition | None = None
        self.done: Callable[[Response], None]


class _Answer(NamedTuple):
    """An answer to send. head: all of it, but for a long `body`, which all who ask for it share.
    last: whether the connection ends after it. raw: the bytes that asked for it; equal bytes may be
    answered equally for as long as `order` says, where both are given."""

    head: bytes
    body: bytes
    last: bool = False
    raw: bytes = b""
    order: _Order | None = None


_READ = "bytes of the client"  # is sent bytes, b"" at their end, None when the deadline has passed
_END_OUR_SIDE = "the end of our side"  # is sent None once the client can see it


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
    protocol_version = "HTTP/1.1"
    server_version = "pegasus_http/" + __version__
    disable_nagle_algorithm = True  # of StreamRequestHandler: 40 ms an answer otherwise
    headers: dict[str, str]  # type: ignore[assignment]

    def __init__(
        self, request: Any, client_address: Any, server: Any, *, driven: bool = False
    ) -> None:
        """The base class serves the connection from within its constructor. `driven` leaves that
        out: then `server` is a `StatusServer`, whose loop moves the bytes of `converse`."""
        self.deadline = 0.0  # time.monotonic() until which `converse` waits for what it yields
        self.idle = False  # whether it waits for a request of which no byte has come
        self._buffer = self._raw = b""  # raw: the bytes that the request came in, if at once
        self._more_may_come = False  # of input that is no request
        self._error: PageError | None = None
        self._prepared = _OPTIONS_RESPONSE
        if driven:
            self.connection, self.client_address = request, client_address
            self.status_server = server
        else:
            super().__init__(request, client_address, server)

    def converse(self, refusal: PageError | None = None) -> _Conversation:
        """The connection from its first byte to its last, without a socket: a generator.

        It yields `_READ`, an `_Order` (a page that has to be made; it is sent the `Response`, or
        None when the deadline has passed), an `_Answer` (it is sent None once that has left) or
        `_END_OUR_SIDE`. `deadline` holds for what was yielded last. refusal: the answer to whatever
        the client may want.
        """
        if refusal is not None:
            self._refuse(refusal)
        while refusal is not None or (yield from self._take_request()):
            yield (yield from self._make_answer())
            if self.close_connection:
                if self._buffer or self._more_may_come:
                    yield from self._drain()
                return

    def _take_request(self) -> Generator[object, Any, bool]:
        """Take the next request off the buffer. False when there is none: the client has ended its
        side or has been idle too long. What is wrong with a request becomes its answer.

        A request has begun with its first byte; blank lines before it are no part of it and buy no
        time, but CR alone may become either.
        """
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
            elif not begun:
                begun, self.deadline = True, time.monotonic() + _HEAD_SECONDS
            if self._find_head(scanned, blank_bytes):
                return True
            scanned = len(self._buffer)
            if not self._buffer and time.monotonic() >= self.deadline:
                return False
            data = yield _READ
            if data == b"":
                return False
            if self.idle:
                idle_until, self.idle = self.deadline, False  # the driver may have moved it
            if data is not None:
                self._raw = b"" if self._buffer else data
                self._more_may_come = len(data) >= _RECV_BYTES
                self._buffer += data

    def _find_head(self, scanned: int, blank_bytes: int) -> bool:
        """Whether the request can be answered: the buffer begins with a whole head, which becomes
        the request, or with something that is none, or the time is over."""
        try:
            if blank_bytes > _MAX_HEAD:
                raise _bad_data("more than %d bytes of blank lines before a request" % _MAX_HEAD)
            end = _head_end(self._buffer, scanned) if self._buffer else -1
            if end >= 0:
                head = _parse_head(self._buffer[:end])
                self._buffer, self._error = self._buffer[end + 4 :], None
                self.requestline, self.command, self.path = head.line, head.method, head.target
                self.request_version, self.headers = head.version, head.fields
                self._more_may_come = self._more_may_come or head.has_body
                self.close_connection = head.has_body or not head.keep_alive
            elif self._buffer and time.monotonic() >= self.deadline:
                hint = "the request head was not complete within %g s" % _HEAD_SECONDS
                raise PageError(408, "ERR_TIMEOUT", hint)
            return end >= 0
        except PageError as error:
            self._refuse(error)
            return True

    def _refuse(self, error: PageError) -> None:
        """Make `error` the answer, and the last one: what follows cannot be told apart."""
        self.requestline = self.path = "-"
        # RFC 9110, 9.3.2: no body for HEAD, whatever is wrong with the rest
        self.command = "HEAD" if self._buffer.startswith(b"HEAD ") else "-"
        self.request_version, self.headers = "HTTP/1.1", {}
        self.close_connection = self._more_may_come = True
        self._error = error

    def _make_answer(self) -> Generator[object, Any, _Answer]:
        """The answer to the request taken last. Raises nothing."""
        server, order = self.status_server, None
        try:
            if self._error is not None:
                raise self._error
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
        head, body = _write_head(response, int(time.time()), connection), response.body
        if len(body) <= _JOINED_BYTES:
            head, body = head + body, b""
        alone = not (self._buffer or self._more_may_come or server._access_log)
        raw = self._raw if alone and response.status < 400 else b""
        return _Answer(head, body, self.close_connection, raw, order)

    def _respond(self, order: _Order | None) -> Response:
        """What `respond` makes of the prepared answer, counted and logged."""
        counters = self.status_server.counters
        self._prepared = _finish(self._prepared, self.command, self.headers)
        try:
            response = self.respond(order.state if order is not None else None)
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
        ready: to call it costs nothing. An override may raise a `PageError`; all else is 500.
        """
        return self._prepared

    def _drain(self) -> Generator[object, Any, None]:
        """Take in what the client still sends, so that no RST overtakes the answer: closing a
        socket with bytes unread sends one. In bounds: a client may send for ever."""
        self._buffer = b""
        yield _END_OUR_SIDE
        self.deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while left > 0 and time.monotonic() < self.deadline:
            data = yield _READ
            if not data:
                return
            left -= len(data)

    # --- blocking style ---------------------------------------------------------------------------

    def handle(self) -> None:
        """Drive `converse` with a blocking socket. Overridden because the base class takes one
        request with an e-mail parser that is 20 times as slow (measured)."""
        conversation, came = self.converse(), None
        try:
            while True:
                came = self._do(conversation.send(came))
        except (StopIteration, OSError):  # it is over, or the client is gone: nobody to tell
            self.close_connection = True

    def _do(self, wanted: object) -> object:
        """Do what the conversation waits for, and return what it is sent."""
        sock = self.connection
        sock.settimeout(max(self.deadline - time.monotonic(), 0.001))
        if wanted is _READ:
            with contextlib.suppress(socket.timeout):
                return sock.recv(_RECV_BYTES)
        elif isinstance(wanted, _Order):
            return self.status_server._pages.wait(wanted, self.deadline)
        elif isinstance(wanted, _Answer):
            sock.sendall(wanted.head, _NO_SIGPIPE | (_MORE_FOLLOWS if wanted.body else 0))
            if wanted.body:
                sock.sendall(wanted.body, _NO_SIGPIPE)
        elif wanted is _END_OUR_SIDE:
            sock.shutdown(socket.SHUT_WR)
        return None

    def version_string(self) -> str:
        """The Server field, without the interpreter's version that the base class adds."""
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """To the logger `pegasus_http.access` in Common Log Format; the base class prints."""
        host = str(self.client_address[0]) if self.client_address else "-"
        when = self.log_date_time_string()
        _logger(".access").info("%s - - [%s] %s", host, when, format % args)


# === 8. Worker ====================================================================================
# One daemon thread asks the source and makes the pages of tables, however many clients wait. What
# it has made is kept in an edition, which is replaced as a whole by the next state.


class _Counters:
    """What a server has done since it was made; plain numbers for the host's own metrics.

    requests: answered; errors: of these, with a status of 400 or more; connections: accepted;
    refreshes: answers of the source; last_error: the last trouble on our side, "" for none.
    """

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
        if len(self._reported) >= _KNOWN_REQUESTS:
            self._reported.clear()
        self._reported[text] = now
        try:
            _logger().warning("%s", text, exc_info=exc_info)
        except BaseException as error:  # a handler of the host raised, perhaps SystemExit
            self.last_error = "%s; to log it raised %s" % (text, type(error).__name__)

    def _failure(self, path: str, error: BaseException) -> Response:
        """Called where `error` is handled: what the client gets, after a report of what is not an
        answer itself. A closed conversation and a Ctrl-C in the main thread of a host go on."""
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
        """This process's own."""
        pid = os.getpid()
        made = self._made.get(pid)
        return self._made.setdefault(pid, self._make()) if made is None else made  # atomic


class _Source:
    """What a server asks for its state. `needs` may be called from any thread and answers at once;
    the other methods run on the worker's thread, one call at a time."""

    def needs(self, request: _PageRequest) -> tuple[str, ...]:
        """Keys of the states that the page needs, in order. The page is made of the last one; those
        before must be fresh and may already refuse the request. Asked again when a state came."""
        return ("state",) if request.route.shows != "nothing" else ()

    def read(self, key: str) -> tuple[_State, float]:
        """The state, None when it is not ready, and the time.monotonic() until which it is fresh.
        What it raises is answered: a PageError as it is, anything else with 500."""
        raise NotImplementedError

    def rest(self) -> None:
        """Nobody has asked for a while: let go of what can be had again."""


class _CallableSource(_Source):
    def __init__(self, function: Callable[[], _State], max_age: float) -> None:
        self._function, self._max_age = function, max_age

    def read(self, key: str) -> tuple[_State, float]:
        return self._function(), time.monotonic() + self._max_age


class _KeptPages:
    """A state, and the finished pages that were made of it, bounded by bytes."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self._pages: dict[_PageRequest, Response] = {}
        self._bytes = self._missed = 0
        self.get = self._pages.get

    def keep(self, request: _PageRequest, page: Response) -> None:
        """Above the bound only every eighth page takes the place of the oldest: clients that ask
        for more than fits, in turn, then still find most of what is kept."""
        if self._bytes + len(page.body) > _PAGE_CACHE_BYTES:
            self._missed += 1
            if self._missed % 8 or len(page.body) > _PAGE_CACHE_BYTES:
                return
        self._pages[request] = page
        self._bytes += len(page.body)
        while self._bytes > _PAGE_CACHE_BYTES:
            self._bytes -= len(self._pages.pop(next(iter(self._pages))).body)


class _Snapshot(NamedTuple):
    """A state as it came. cluster: the last good one, which is older when the state is an error.
    asked_at, came_at, until: when it was asked for, when it came, and until when it is fresh."""

    pages: _KeptPages
    cluster: Cluster | None
    asked_at: float = math.inf
    came_at: float = math.inf
    until: float = math.inf


class _Edition:
    """What is served from one state to the next. It is never changed to another state but replaced,
    so that nothing that is still being made of an old state can reach a new one, without a lock."""

    def __init__(self, snapshots: dict[str, _Snapshot]) -> None:
        self.snapshots = snapshots
        self.known: dict[bytes, _Answer] = {}  # answers by the bytes of their request
        self.known_until = 0.0


class _Job(NamedTuple):
    """Something that the worker does once for all who wait for it. orders: theirs, in order; None
    stands for nobody: the source is to be asked even if no client waits."""

    since: float
    orders: dict[_Order | None, None]


class _Worker:
    """The daemon thread that works for `_Pages`: started at its first job, one job at a time, ends
    when it is idle."""

    def __init__(self, pages: _Pages) -> None:
        self._pages = pages
        self._condition = threading.Condition()
        self._jobs: dict[object, _Job] = {}  # the first is under way
        self._stopped = False
        self.thread: threading.Thread | None = None

    def add(self, key: object, order: _Order | None = None) -> float:
        """Have the job of `key` done, for `order` if there is one; returns since when it has been
        waiting or under way. Raises PageError when too many different jobs wait or the host cannot
        start a thread. From any thread, like `cancel` and `keep`."""
        with self._condition:
            job = self._jobs.get(key)
            if job is None:
                if order is not None and len(self._jobs) >= _WAITING_PAGES:
                    hint = "%d other pages are waiting to be made" % _WAITING_PAGES
                    raise PageError(503, "ERR_BUSY", hint, _RETRY_AFTER)
                job = self._jobs[key] = _Job(time.monotonic(), {})
            job.orders[order] = None
            if self.thread is None:
                try:
                    name = "pegasus-http-worker"
                    thread = threading.Thread(target=self._run, name=name, daemon=True)
                    thread.start()
                except RuntimeError as error:
                    del self._jobs[key]
                    hint = "the host cannot start the thread that makes this page: %s" % error
                    raise PageError(503, "ERR_BUSY", hint, _RETRY_AFTER) from None
                self.thread = thread
            self._condition.notify()
            return job.since

    def cancel(self, order: _Order) -> None:
        """Whoever gave `order` waits no longer."""
        with self._condition:
            job = self._jobs.get(order.job)
            if job is not None:
                job.orders.pop(order, None)

    def keep(self, alive: bool) -> None:
        """Whether the thread is to live on for a while when nothing is left to do."""
        with self._condition:
            self._stopped = not alive
            self._condition.notify()

    @property
    def is_ending(self) -> bool:
        """Whether the thread, once stopped, has nothing left to do but end."""
        return self.thread is not None and not self._jobs

    def _next(self) -> object:
        """The key of the next job that somebody waits for; None when there has been none for long,
        or none is left and the server has stopped."""
        while True:
            for key, job in list(self._jobs.items()):
                if job.orders:
                    return key
                del self._jobs[key]
            if self._stopped or not self._condition.wait(_WORKER_IDLE_SECONDS):
                return None

    def _run(self) -> None:
        while True:
            with self._condition:
                key = self._next()
            if key is None:
                self._guard(self._pages.rest)
                with self._condition:
                    if not self._jobs:
                        self.thread = None
                        return
                continue
            page = self._guard(self._pages.work, key)
            with self._condition:
                job = self._jobs.pop(key)
            for order in filter(None, job.orders):
                self._guard(self._pages.tell, order, page)

    def _guard(self, function: Callable[..., Any], *arguments: object) -> Any:
        """This thread serves everybody: whatever goes wrong, it lives on."""
        try:
            return function(*arguments)
        except BaseException:
            self._pages.counters._report("the worker failed", exc_info=True)


class _Pages:
    """Finds the page of a request, or has it made. All methods may be called from any thread."""

    def __init__(
        self, source: _Source, settings: _Settings, timeout: float, counters: _Counters
    ) -> None:
        self.settings, self.edition = settings, _Edition({})
        self.counters, self.rest = counters, source.rest
        self._source, self._timeout = source, timeout
        self._worker = _PerProcess(functools.partial(_Worker, self))
        self._refreshed_at = -math.inf

    def publish(self, state: _State) -> None:
        """Serve `state` from now on."""
        cluster = state if isinstance(state, Cluster) else None
        self.edition = _Edition({"state": _Snapshot(_KeptPages(state), cluster)})

    def refresh(self) -> None:
        """Ask the source again for all that it has said."""
        self._refreshed_at = time.monotonic()
        self.edition.known_until = 0.0

    def turn(self, now: float) -> None:
        """Forget the known bytes when their Date, or the state under them, is over."""
        edition = self.edition
        if now >= edition.known_until:
            edition.known = {}
            edition.known_until = now + 1.0 - time.time() % 1.0

    def remember(self, answer: _Answer, order: _Order) -> None:
        """Answer equal bytes in the same way, until the second or the state is over."""
        edition = order.edition
        if edition is None or order.until <= time.monotonic():
            return
        if len(answer.raw) <= _KNOWN_BYTES and len(edition.known) < _KNOWN_REQUESTS:
            edition.known[answer.raw] = answer._replace(raw=b"", order=None)
            edition.known_until = min(edition.known_until, order.until)

    def find(self, order: _Order, late: bool = False) -> Response | None:
        """The page if it is there; None when something has to be computed or asked for first, and
        it is not too `late` for that. Takes constant time, whatever the cluster's size: pages that
        are made here have at most 10 KB and take 0.1 ms. Raises PageError."""
        request, shows = order.request, order.request.route.shows
        order.edition, order.state, order.until = self.edition, None, math.inf
        if shows == "cluster":
            pages = self._fresh_pages(order)
            return None if pages is None else pages.get(request)
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
        if order.request.route.shows == "cluster" or order.request.query.primary:
            return self._timeout
        return min(self._timeout, _GLANCE_SECONDS)

    def order(self, order: _Order, done: Callable[[Response], None]) -> Response | None:
        """Have the page made and `done` called with it, on the worker's thread. Returns the answer
        if there is one at once; then `done` is not called."""
        order.done = done
        try:
            page = self.find(order)
            if page is None:
                self._worker().add(order.job, order)
        except PageError as error:
            page = _error_response(error)
        return page

    def wait(self, order: _Order, deadline: float) -> Response | None:
        """The page, made while this thread waits; None when the deadline has passed."""
        ready = threading.Event()
        pages: list[Response] = []

        def done(page: Response) -> None:
            pages.append(page)
            ready.set()

        page = self.order(order, done)
        if page is None and ready.wait(max(deadline - time.monotonic(), 0.0)):
            page = pages[0]
        if page is None:
            self.cancel(order)
        return page

    def cancel(self, order: _Order) -> None:
        """Nobody waits for the page any longer."""
        self._worker().cancel(order)

    def warm_up(self, told: Callable[[_State], None]) -> None:
        """Have /meta/apps made, and tell what it is made of."""
        order = _Order(_PageRequest("/meta/apps"), "/meta/apps", "")
        if self.order(order, lambda page: told(order.state)) is not None:
            told(order.state)

    def keep_worker(self, alive: bool) -> _Worker:
        """Let the worker's thread live on, or end as soon as the source lets go of it."""
        worker: _Worker = self._worker()
        worker.keep(alive)
        return worker

    def _look_up(self, order: _Order, key: str) -> tuple[_Snapshot | None, bool]:
        """(what is there by that key, whether it is fresh). Fresh is, whatever its `until` says,
        what came while the order waited, but nothing that was asked for before a refresh."""
        order.job, snapshot = key, self.edition.snapshots.get(key)
        if snapshot is None or snapshot.asked_at < self._refreshed_at:
            order.until = -math.inf
            return snapshot, False
        order.until = min(order.until, snapshot.until)
        return snapshot, snapshot.until > time.monotonic() or snapshot.came_at >= order.since

    def _fresh_pages(self, order: _Order) -> _KeptPages | None:
        """Those that have the page, or to which it is to be added; None when a state has to be
        asked for first."""
        pages = None
        for key in self._source.needs(order.request):
            snapshot, fresh = self._look_up(order, key)
            if snapshot is None or not fresh:
                return None
            pages, name = snapshot.pages, order.request.query.name
            order.job, order.state = (pages, order.request), pages.state
            _check_ready(order.state, name, order.target, order.host, self.settings)
        return pages

    def _take_last(self, order: _Order, late: bool) -> bool:
        """Whether the order need not wait: its `state` is the last one, or None when it is too
        `late` to wait. What is not fresh is asked for again in any case. An order waits if there is
        nothing to show, until `patience` has passed since the source was asked. Of a source that
        has been silent for longer than max_age and timeout together, /health shows nothing."""
        key = self._source.needs(order.request)[0]
        snapshot, fresh = self._look_up(order, key)
        now = time.monotonic()
        if not fresh:
            try:
                late = late or now >= self._worker().add(key) + self.patience(order)
            except PageError:  # no thread can be started: the page must do without
                late = True
        if snapshot is not None and order.request.route.shows == "last cluster":
            order.state = snapshot.cluster
        elif snapshot is not None and now <= snapshot.until + self._timeout:
            order.state = snapshot.pages.state
        else:
            return late
        return True

    # --- on the worker's thread -------------------------------------------------------------------

    def work(self, job: Any) -> Response | None:
        """Ask for the state of a key, or make the page of (pages, request)."""
        if isinstance(job, str):
            self._ask(job)
            return None
        return self._make(*job)

    def tell(self, order: _Order, page: Response | None) -> None:
        """The order's job is done: hand over its page or, when a state has come, go on with it."""
        page = page or self.order(order, order.done)
        if page is not None:
            order.done(page)

    def _make(self, pages: _KeptPages, request: _PageRequest) -> Response:
        """The finished page, kept, or the error that it ends with."""
        page = pages.get(request)  # it may have come since the job was added
        if page is None:
            try:
                page = _render(pages.state, request, self.settings)
            except BaseException as error:
                return self.counters._failure(request.path, error)
            pages.keep(request, page)
        return page

    def _ask(self, key: str) -> None:
        """Ask the source; an equal state keeps the pages that were made of it."""
        snapshots, asked_at = dict(self.edition.snapshots), time.monotonic()
        before = snapshots.get(key)
        if before and before.asked_at >= self._refreshed_at and before.until > asked_at:
            return  # it has come since the job was added
        state, until = self._read(key)
        equal = before and isinstance(state, Cluster) and before.pages.state == state
        pages = before.pages if before and equal else _KeptPages(state)
        cluster = pages.state if isinstance(pages.state, Cluster) else before and before.cluster
        snapshots[key] = _Snapshot(pages, cluster, asked_at, time.monotonic(), until)
        if len(snapshots) > _KEPT_STATES:  # the first one, which all pages need, stays
            del snapshots[next(itertools.islice(snapshots, 1, None))]
        self.edition = _Edition(snapshots)
        self.counters.refreshes += 1

    def _read(self, key: str) -> tuple[_State, float]:
        try:
            state, until = self._source.read(key)
            if state is None:
                return _not_active("the source is not ready"), until
            if isinstance(state, (Cluster, Standby, PageError)):
                return state, until
            kind = type(state).__name__
            self.counters._report("the source returned %s, not a Cluster or Standby" % kind)
            hint = "the source of this page returned no cluster state"
        except PageError as error:
            return error.with_traceback(None), time.monotonic()
        except BaseException as error:  # SystemExit too: it must not end this thread
            until = time.monotonic()
            self.counters._report("the source raised " + type(error).__name__, exc_info=True)
            hint = "the source of this page failed; the log of the server tells more"
        return PageError(500, "ERR_UNKNOWN", hint), until


# === 9. Loop ======================================================================================
# Owns the sockets, on one thread, without blocking. It moves bytes, keeps deadlines and knows
# neither HTTP nor pages: what is said over a connection is its conversation's business.

_READABLE, _WRITABLE, _CLIENT_ENDED = 0x001, 0x004, 0x2000  # EPOLLIN, EPOLLOUT, EPOLLRDHUP


class _SelectorPoller:
    """What `select.epoll` does, by way of `selectors`: gevent and eventlet take epoll away from the
    processes that they patch, and other systems than Linux have none."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close

    def modify(self, fd: int, events: int) -> None:
        self.unregister(fd)
        wanted = selectors.EVENT_READ if events & _READABLE else 0
        wanted |= selectors.EVENT_WRITE if events & _WRITABLE else 0
        if wanted:
            self._selector.register(fd, wanted)

    register = modify

    def unregister(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return [
            (key.fd, _READABLE if events & selectors.EVENT_READ else _WRITABLE)
            for key, events in self._selector.select(timeout)
        ]


class _Connection:
    """A client's socket and the conversation over it. On the loop's thread alone."""

    def __init__(self, loop: _Loop, sock: socket.socket, conversation: StatusHandler) -> None:
        self.loop, self.sock, self.fd = loop, sock, sock.fileno()
        self.conversation = conversation
        self.steps: _Conversation | None = None  # of the conversation; None: it is over
        self.recv, self.send = sock.recv, sock.send
        self.events = -1  # what the poller watches; -1: nothing yet
        self.reading = False  # whether the conversation waits for bytes
        self.order: _Order | None = None  # the page that it waits for
        self.unsent: list[memoryview] = []  # of the answer that is leaving
        self.after_sending: Callable[[], None] = self.close
        self.leaving = self.draining = False  # the client, or we, have ended a side

    def proceed(self, came: object) -> None:
        """Give the conversation what it waited for, and do what it waits for next."""
        self.reading = False
        if self.steps is None:
            return  # closed since this was arranged
        try:
            wanted = self.steps.send(came)
        except StopIteration:
            self.close()
            return
        self.loop.look_at(self.conversation.deadline)
        if wanted is _READ:
            self.reading = True
            self.watch(_READABLE)
        elif isinstance(wanted, _Answer):
            if wanted.raw and wanted.order is not None:
                self.loop.pages.remember(wanted, wanted.order)
            self.transmit(wanted, self.take_turn)
        elif isinstance(wanted, _Order):
            self.order = wanted
            self.watch(_CLIENT_ENDED)
            done = functools.partial(self.loop.run_soon, self, self.page_came, wanted)
            page = self.loop.pages.order(wanted, done)
            if page is not None:
                self.page_came(wanted, page)
        else:
            self.draining = True
            with contextlib.suppress(OSError):  # the client is gone, as it will find out
                self.sock.shutdown(socket.SHUT_WR)
            self.proceed(None)

    def take_turn(self) -> None:
        """Go on in the next turn of the loop, so that other connections have theirs before."""
        if self.loop.stopping:
            self.close()
        else:
            self.loop.calls.append((self, self.proceed, (None,)))

    def page_came(self, order: _Order, page: Response) -> None:
        """Run by the loop; whoever has given up waiting has another order or none."""
        if self.order is order:
            self.order = None
            self.proceed(page)

    def react(self, events: int) -> None:
        """The poller has something to tell while no request is expected."""
        if self.order is not None:
            if events & ~_CLIENT_ENDED:
                self.close()
            else:  # it may have ended its side alone and wait for the page, as `nc -N` does
                self.leaving = True
                self.watch(0)
        elif self.unsent:
            self.send_unsent()
        elif self.reading:
            data = self.receive()
            if data is not None:
                self.proceed(data)

    def has_unread(self) -> bool:
        """Whether the client has sent something that has not been looked at yet."""
        try:
            return bool(self.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def receive(self) -> bytes | None:
        """Bytes, b"" at their end, None when there are none now."""
        try:
            return self.recv(_RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def read_again(self) -> None:
        """Expect the next request, for as long as the first."""
        if self.loop.stopping:
            self.close()
            return
        self.conversation.idle = self.reading = True
        self.conversation.deadline = self.loop.now + _IDLE_SECONDS
        if self.events != _READABLE:
            self.watch(_READABLE)

    def transmit(self, answer: _Answer, then: Callable[[], None]) -> None:
        """Send what leaves at once, and call `then` when all has left. Head and body leave in one
        call: as two packets the second would wait for the ACK of the first (44 ms)."""
        head, body, flags = answer.head, answer.body, _NO_SIGPIPE
        try:
            sent = self.sock.sendmsg([head, body], [], flags) if body else self.send(head, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent == len(head) + len(body):
            then()
            return
        self.unsent, self.after_sending = [memoryview(head), memoryview(body)], then
        self.drop_sent(sent)
        self.conversation.idle = self.reading = False
        self.conversation.deadline = self.loop.now + _WRITE_SECONDS
        self.loop.look_at(self.conversation.deadline)
        self.watch(_WRITABLE)
        self.loop.bound_unsent()

    def send_unsent(self) -> None:
        """The socket has room again."""
        try:
            self.drop_sent(self.sock.sendmsg(self.unsent, [], _NO_SIGPIPE))
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self.unsent:
            self.after_sending()

    def drop_sent(self, sent: int) -> None:
        while self.unsent and sent >= len(self.unsent[0]):
            sent -= len(self.unsent.pop(0))
        if sent:
            self.unsent[0] = self.unsent[0][sent:]

    def expire(self) -> None:
        """The deadline has passed. What the client sent while the process was stopped or the
        machine slept is there all the same: it is read before its time is called over."""
        if self.unsent:
            self.close()
        elif self.order is not None:
            self.loop.pages.cancel(self.order)
            self.order = None
            self.proceed(None)
        elif self.reading:
            self.proceed(self.receive())

    def watch(self, events: int) -> None:
        if events != self.events:
            poller = self.loop.poller
            (poller.register if self.events < 0 else poller.modify)(self.fd, events)
            self.events = events

    def close(self) -> None:
        """End it all. The shutdown is seen by the client even if a forked child holds a copy of the
        socket."""
        if self.steps is None:
            return
        del self.loop.connections[self.fd]
        if self.events >= 0:
            self.loop.poller.unregister(self.fd)
        if self.order is not None:
            self.loop.pages.cancel(self.order)
        self.steps.close()
        self.order = self.steps = None
        self.unsent = []
        self.reading = self.conversation.idle = False
        with self.sock, contextlib.suppress(OSError):  # the client may have been faster
            self.sock.shutdown(socket.SHUT_RDWR)


class _Loop:
    """The listener, all connections and their deadlines, on one thread of process `pid`."""

    pages: _Pages
    now: float
    stopping: bool

    def __init__(self, listener: socket.socket, server: StatusServer, max_connections: int) -> None:
        self.pages, self.counters, self._server = server._pages, server.counters, server
        self.pid, self.port = os.getpid(), int(listener.getsockname()[1])
        self.thread: threading.Thread | None = None
        self.poller: Any = select.epoll() if hasattr(select, "epoll") else _SelectorPoller()
        self.now = time.monotonic()
        self.connections: dict[int, _Connection] = {}
        # (whose it is, function, arguments): to be run in the next turn
        self.calls: collections.deque[tuple[_Connection | None, Any, Any]] = collections.deque()
        self.stop_asked = self.stopping = self.closed = False
        self._listener, self._max_connections = listener, max_connections
        self._wakee, self._waker = socket.socketpair()
        self._sweep_at = self.now
        self._accept_at = self._stop_at = math.inf
        for sock in (listener, self._wakee, self._waker):
            sock.setblocking(False)
        woken: Callable[[], object] = functools.partial(self._wakee.recv, 4096)
        self._reactions = {listener.fileno(): self._accept, self._wakee.fileno(): woken}
        for fd in self._reactions:
            self.poller.register(fd, _READABLE)

    def run(self) -> None:
        """Until `stop`."""
        poll, clock = self.poller.poll, time.monotonic
        while not self.stopping or (self.connections and self.now < self._stop_at):
            ready = poll(0.0 if self.calls else max(self._sweep_at - self.now, 0.0))
            self.now = now = clock()
            self.pages.turn(now)
            self._serve(ready)
            for _ in range(len(self.calls)):
                self._guard(*self.calls.popleft())
            if now >= self._sweep_at:
                self._sweep()
        for connection in list(self.connections.values()):
            self._guard(connection, connection.close)
        self.abandon()
        self.closed = True

    def _serve(self, ready: Iterable[tuple[int, int]]) -> None:
        """React to what is ready. An exception in one connection closes that one alone.

        Equal bytes have an equal answer for as long as the second and the state last: to look it up
        takes 3 us, to parse, dispatch and frame 24 (measured). It is all that a poller needs.
        """
        connections, pages = self.connections, self.pages
        for fd, events in ready:
            connection = connections.get(fd)
            try:
                if connection is None:
                    if fd in self._reactions:
                        self._reactions[fd]()
                elif connection.conversation.idle:
                    try:  # as `receive` does, but its call is a part of the 3 us that is felt
                        data = connection.recv(_RECV_BYTES)
                    except BlockingIOError:
                        continue
                    except OSError:
                        data = b""
                    answer = pages.edition.known.get(data)
                    if answer is None:
                        connection.proceed(data)
                    else:
                        self.counters.requests += 1  # the conversation has not moved
                        connection.transmit(
                            answer, connection.close if answer.last else connection.read_again
                        )
                else:
                    connection.react(events)
            except BaseException:
                self._failed(connection)

    def _guard(self, connection: _Connection | None, function: Any, arguments: Any = ()) -> None:
        try:
            function(*arguments)
        except BaseException:
            self._failed(connection)

    def _failed(self, connection: _Connection | None) -> None:
        """Called where an exception is handled: log it and close the connection it is of."""
        self.counters._report("a connection failed", exc_info=True)
        if connection is not None:
            connection.close()

    def run_soon(self, connection: _Connection | None, function: Any, *arguments: Any) -> None:
        """Run `function` on the loop's thread; if it fails, `connection` ends. From any thread."""
        self.calls.append((connection, function, arguments))
        with contextlib.suppress(OSError):  # it is full, which wakes as well, or closed
            self._waker.send(b"\0", _NO_SIGPIPE)

    def stop(self) -> None:
        """End `run` once the answers under way have left. From any thread."""
        self.stop_asked = True
        self.run_soon(None, self._begin_stop)

    def _begin_stop(self) -> None:
        if self.stopping:
            return
        self.stopping = True
        self._stop_at = self._sweep_at = self.now + _STOP_SECONDS
        if self._accept_at == math.inf:
            self.poller.unregister(self._listener.fileno())
        del self._reactions[self._listener.fileno()]
        self._listener.close()
        for connection in list(self.connections.values()):
            if connection.order is None and not connection.unsent:
                connection.close()

    def abandon(self) -> None:
        """Close the descriptors, end no connection: they are the parent's in a forked child."""
        for connection in self.connections.values():
            connection.sock.close()
        for thing in (self._listener, self._wakee, self._waker, self.poller):
            thing.close()

    def look_at(self, deadline: float) -> None:
        """Sweep no later than at `deadline`."""
        self._sweep_at = min(self._sweep_at, deadline)

    def _sweep(self) -> None:
        """Expire what is over; deadlines are absolute, and looked at no oftener than needed."""
        for connection in list(self.connections.values()):
            if connection.conversation.deadline <= self.now:
                self._guard(connection, connection.expire)
        if self._accept_at <= self.now and not self.stopping:
            self._accept_at = math.inf
            self.poller.register(self._listener.fileno(), _READABLE)
        deadlines = [c.conversation.deadline for c in self.connections.values()]
        deadlines += [self._accept_at, self._stop_at, self.now + 60.0]
        self._sweep_at = max(min(deadlines), self.now + 0.02)

    def _accept(self) -> None:
        for n in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if n == 0:  # later ones: it is not known whether one more is waiting
                    self._cannot_accept(error)
                return
            self._admit(sock, address)

    def _cannot_accept(self, error: OSError) -> None:
        """Descriptors have run out, in this process or in the system. Without a pause the poller
        would report the waiting client again and again."""
        if error.errno in (errno.EMFILE, errno.ENFILE) and self._make_room():
            return
        self.counters._report("cannot accept connections: %s" % error.strerror)
        self.poller.unregister(self._listener.fileno())
        self._accept_at = self.now + _ACCEPT_PAUSE_SECONDS
        self.look_at(self._accept_at)

    def _admit(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        self.counters.connections += 1
        limit, refusal = self._max_connections, None
        room = limit - len(self.connections)
        while room <= 0 and self._make_room():
            room += 1
        if room <= 0:
            hint = "the limit of %d connections is reached" % limit
            refusal = PageError(503, "ERR_BUSY", hint, _RETRY_AFTER)
        conversation = StatusHandler(sock, address, self._server, driven=True)
        connection = _Connection(self, sock, conversation)
        connection.steps = conversation.converse(refusal)
        self.connections[connection.fd] = connection
        self._guard(connection, connection.proceed, (None,))
        if len(self.connections) > limit + min(_REFUSED_AT_ONCE, limit // 16):
            connection.close()  # those who are being told so are bounded too

    def _make_room(self) -> bool:
        """Close a connection that is over but for its end or, without one, the longest idle."""
        over = [c for c in self.connections.values() if c.leaving or c.draining]
        found = over or [c for c in self.connections.values() if c.conversation.idle]
        found.sort(key=lambda c: c.conversation.deadline)
        for connection in found[:_CLOSED_FOR_ROOM]:
            if over or not connection.has_unread():
                connection.close()
                return True
        return False

    def bound_unsent(self) -> None:
        """Clients that do not read hold the pages of states that are over. When different pages of
        more than _UNSENT_BYTES in all are leaving, those that began first are given up."""
        unsent = [c for c in self.connections.values() if c.unsent]
        total = 0
        kept: set[int] = set()
        for connection in sorted(unsent, key=lambda c: -c.conversation.deadline):
            page = connection.unsent[-1].obj
            if id(page) not in kept:
                total += memoryview(page).nbytes
                if kept and total > _UNSENT_BYTES:
                    connection.close()
                else:
                    kept.add(id(page))


# === 10. Server ===================================================================================


def _check_state(state: object) -> Cluster | Standby:
    if isinstance(state, (Cluster, Standby)):
        return state
    raise TypeError("expected a Cluster or a Standby, got " + type(state).__name__)


def _check_listen(host: object, port: object) -> None:
    if not _check_text(host, "host"):
        raise _bad_value("host", 'an address such as "127.0.0.1" or "0.0.0.0"', host)
    _check_count(port, "port", 65535)


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


_RUNNING: weakref.WeakSet[StatusServer] = weakref.WeakSet()


def _close_in_child() -> None:
    """Otherwise a child would hold the port and every connection open for as long as it lives."""
    for server in list(_RUNNING):
        server._abandon()
    _RUNNING.clear()


@functools.lru_cache(maxsize=1)
def _hook_forks() -> None:
    """Once, at the first start: the hook cannot be taken back."""
    os.register_at_fork(after_in_child=_close_in_child)


class StatusServer:
    """The HTTP status server: one daemon thread for sockets, one more that makes pages.

    source: a `Cluster` or `Standby` (replaced by `publish`); a zero-argument callable that returns
        one, asked on the worker's thread; a `LiveCluster` or `StateFile`; None: /meta pages answer
        503.
    role: "meta" or "replica". host, port: where to listen; port 0 takes a free one. "::" serves
        IPv4 too.
    version, git_commit: for /version; None shows the state's, or this module's version.
    flat: the page shapes of Pegasus after 1.12.0's second HTTP change.
    max_age: seconds an answer of a callable source is kept (a `LiveCluster` has its own).
    timeout: seconds a page waits for its source before it answers 504.
    max_connections: at once, and at most three quarters of the descriptors that the process may
        have; over it the longest idle one goes, then new ones get 503.
    compress: gzip for clients that accept it. access_log: a line per request to the logger
        `pegasus_http.access` at INFO.

    Raises TypeError or ValueError for arguments that make no sense. The constructor touches
    nothing. All methods and attributes may be used from any thread. In a forked child the server is
    not running and can be started. A context manager: `with` starts and stops it.
    """

    def __init__(
        self,
        source: _AnySource = None,
        *,
        role: str,
        host: str = "127.0.0.1",
        port: int = 0,
        version: str | None = None,
        git_commit: str | None = None,
        flat: bool = False,
        max_age: float = 0.0,
        timeout: float = 5.0,
        max_connections: int | None = None,
        compress: bool = True,
        access_log: bool = False,
    ) -> None:
        """Keep the settings."""
        _check_choice(role, "role", _ROLES)
        _check_listen(host, port)
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        _check_count(1 if max_connections is None else max_connections, "max_connections", least=1)
        _check_text("" if version is None else version, "version")
        _check_text("" if git_commit is None else git_commit, "git_commit")
        self._host, self._port, self._max_connections = host, port, max_connections
        self._access_log, self.counters = access_log, _Counters()
        asked = source if isinstance(source, _Source) else None
        if asked is None and callable(source):
            asked = _CallableSource(source, max_age)
        self._has_source = asked is not None
        settings = _Settings(role, version, git_commit, flat, compress, "")
        self._pages = _Pages(asked or _Source(), settings, timeout, self.counters)
        if asked is None:
            self._pages.publish(None if source is None else _check_state(source))
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
        """Stop."""
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
        return loop is not None and loop.pid == os.getpid() and not loop.stop_asked

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
            self._pages.keep_worker(alive=True)
            listener = _listen(self._host, self._port)
            try:
                self._loop = self._run(listener)
            except BaseException:
                listener.close()
                raise
            _hook_forks()
            _RUNNING.add(self)

    def _run(self, listener: socket.socket) -> _Loop:
        loop = _Loop(listener, self, _connection_limit(self._max_connections))
        settings = self._pages.settings
        self._pages.settings = settings._replace(address=_join(self._host, loop.port))
        try:
            name = "pegasus-http:%d" % loop.port
            loop.thread = threading.Thread(target=loop.run, name=name, daemon=True)
            loop.thread.start()
        except RuntimeError as error:
            loop.abandon()
            raise RuntimeError(
                "the server needs a daemon thread, which this interpreter does not give: %s; start "
                "it in the main interpreter of a process that may have one more thread" % error
            ) from None
        return loop

    def stop(self) -> None:
        """Free the port: answers under way get a second to leave, all else is closed.

        Twice, before `start`, from a page, a source or a signal handler: all are fine. Returns when
        the port is free, except from a page, whose answer still has to leave. Does not wait for a
        source that hangs. The server can be started again.
        """
        if threading is None or sys is None or sys.is_finalizing():
            return  # the interpreter is clearing its modules: the system frees the port
        with self._lock():
            worker = self._pages.keep_worker(alive=False)
            self._abandon()
            loop = self._loop
            if loop is not None:
                loop.stop()  # first: a signal handler that stops too waits for its end
                _RUNNING.discard(self)
        if threading.current_thread() in (worker.thread, loop and loop.thread):
            return
        # Not by Thread.join: in a signal handler that interrupts another one it may wait for ever.
        until = time.monotonic() + _STOP_SECONDS + 5.0
        while worker.is_ending or (loop is not None and not loop.closed):
            if time.monotonic() >= until:
                return
            time.sleep(0.001)

    def publish(self, state: Cluster | Standby) -> None:
        """Serve `state` from now on. Never blocks; what is being answered keeps the state it has.

        Raises TypeError for anything but a `Cluster` or `Standby` (the last state stays), and
        RuntimeError when the server has a source that it asks.
        """
        if self._has_source:
            raise RuntimeError("this server asks its source: publish is for servers without one")
        self._pages.publish(_check_state(state))

    def refresh(self) -> None:
        """Ask the source again for all that it has said. Never blocks; what was published stays."""
        self._pages.refresh()

    def _abandon(self) -> None:
        """In a forked child: our thread is not there, the sockets are the parent's."""
        if self._loop is not None and self._loop.pid != os.getpid():
            self._loop.abandon()
            self._loop = None


def start(
    source: _AnySource = None,
    *,
    role: str,
    host: str = "127.0.0.1",
    port: int = 0,
    version: str | None = None,
    git_commit: str | None = None,
    flat: bool = False,
    max_age: float = 0.0,
    timeout: float = 5.0,
    max_connections: int | None = None,
    compress: bool = True,
    access_log: bool = False,
) -> StatusServer:
    """Make a `StatusServer` of these arguments and start it; raises what its `start` raises."""
    server = StatusServer(
        source, role=role, host=host, port=port, version=version, git_commit=git_commit, flat=flat,
        max_age=max_age, timeout=timeout, max_connections=max_connections, compress=compress,
        access_log=access_log,
    )  # fmt: skip
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
        """Read nothing yet."""
        _check_seconds(max_age, "max_age")
        self._path, self._max_age = os.fsdecode(path), max_age
        self._signature: tuple[int, ...] | None = None  # of the file that was read last
        self._cluster: Cluster | None = None
        self._fault = ""  # what is wrong with the content that was read last
        self._reported = ""

    def __repr__(self) -> str:
        """The path, and what was found there."""
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
        """Read the file at the next call even if it looks unchanged. From any thread."""
        self._signature = None

    def _look(self) -> Exception | None:
        """Read the file if it has changed; returns what is wrong with it now."""
        try:
            status = os.stat(self._path)
            if not stat.S_ISREG(status.st_mode):  # it would block, never end or never look changed
                raise OSError(errno.EINVAL, "not a regular file", self._path)
            # The time of the last change of the inode tells what a tool that sets the other hides.
            signature = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            if signature != self._signature:
                self._signature = signature  # first: `reload` may take it back meanwhile
                # It may be another than a moment ago, and a FIFO makes an ordinary open wait.
                with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                    data = file.read(_STATE_BYTES + 1) or b""
                self._cluster = _load_cluster(data, self._path)
                self._fault = ""
        except (OSError, MemoryError) as error:
            self._signature = None  # nothing was parsed, or another time there is more memory
            return error
        except ValueError as error:
            self._fault = str(error)
        return ValueError(self._fault) if self._fault else None

    def _report(self, trouble: Exception | None) -> None:
        text = "" if trouble is None else _failure_text(trouble)
        if text and text != self._reported:
            kept = "no good state yet" if self._cluster is None else "keeping the last good state"
            _logger().warning("%s: %s", kept, text)
        self._reported = text


def _failure_text(error: Exception) -> str:
    """One sentence, without Python's "[Errno 2]"."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror[:1].lower() + error.strerror[1:]
        return "%s: %s" % (error.filename, text) if error.filename else text
    if isinstance(error, MemoryError):
        return "not enough memory for this state"
    return error.hint_message if isinstance(error, PageError) else str(error)


def _load_cluster(data: bytes, name: str) -> Cluster:
    """ValueError, with `name` and the place, for all that is not a cluster."""
    import json

    try:
        if len(data) > _STATE_BYTES:
            raise ValueError("larger than %d bytes, the most that is read" % _STATE_BYTES)
        if not data or data.isspace():
            raise ValueError("empty; --dump prints what belongs there")
        value = json.loads(
            data.decode().lstrip("\ufeff"),  # a byte order mark is fine
            object_pairs_hook=_pairs_to_object,
            # A number too long for any field is not worth the time, the square of its length.
            parse_int=lambda digits: int(digits) if len(digits) < 25 else float(digits),
        )
        return _cluster_from_json(value)
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


# Strategy: `json` calls a function written in Python for each object, so that the interpreter lock
# changes hands. That function cannot know the place of its object. So a name that stands twice is
# kept under None, which is nobody's name, until `_object` knows the place. And partitions are made
# at once, where nothing is wrong with them: a million dictionaries and lists of a large file would
# stop all threads for 0.4 s (measured) whenever the garbage collector goes through them.
def _pairs_to_object(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    _pause_if_due()
    members: dict[Any, Any] = dict(pairs)
    if len(members) < len(pairs):
        members[None] = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
    if isinstance(members.get("partitions"), list):
        with contextlib.suppress(ValueError):  # to be told with its place, by `_app_from_json`
            members["partitions"] = _partitions_from_json(members["partitions"], "")
    return members


def _object(
    value: Any, where: str, fields: Iterable[str], needed: int = 0, unshown: Sequence[str] = ()
) -> dict[str, Any]:
    """A JSON object with `fields`, at least the first `needed`; `unshown` ones are left out."""
    if not isinstance(value, dict):
        raise _bad_value(where, "an object", value)
    if None in value:
        raise ValueError("%s: %s stands twice" % (where, _encode(value[None])))
    known = (*fields, *unshown)
    for name in value:
        if name not in known:
            unknown = (where, _encode(name), ", ".join(known))
            raise ValueError("%s: unknown field %s, expected one of %s" % unknown)
    for name in known[:needed]:
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


def _cluster_from_json(value: object) -> Cluster:
    top = _object(value, "top level", ("apps", "nodes", *_TEXT_FIELDS), 2)
    apps = [_app_from_json(*item) for item in _items(top["apps"], "apps")]
    nodes = [Node(**_object(*item, Node._fields, 2)) for item in _items(top["nodes"], "nodes")]
    texts = {}
    for part, fields in _TEXT_FIELDS.items():
        for name, text in _object(top.get(part, {}), part, fields).items():
            texts[fields[name]] = _check_text(text, "%s.%s" % (part, name))
    return Cluster(apps, nodes, **texts)


def _app_from_json(value: object, where: str) -> App:
    fields = _object(value, where, App._fields, 2, _UNSHOWN_OF_APP)
    rows, envs = fields.get("partitions"), fields.get("envs", {})
    if rows is not None and not isinstance(rows, tuple):
        fields["partitions"] = _partitions_from_json(rows, where + ".partitions")
    fields["envs"] = _object(envs, where + ".envs", envs or ())
    try:
        return App(**fields)
    except ValueError as error:
        raise ValueError("%s.%s" % (where, error)) from None


def _partitions_from_json(rows: object, where: str) -> tuple[Partition, ...]:
    partitions = []
    for row, place in _items(rows, where):
        fields = _object(row, place, Partition._fields, 0, _UNSHOWN_OF_PARTITION)
        secondaries = _items(fields.get("secondaries", []), place + ".secondaries")
        fields["secondaries"] = tuple([address for address, _ in secondaries])
        partitions.append(Partition(**fields))
    return tuple(partitions)


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
    host = "10.239.35.160"
    nodes = ["%s:%d" % (host, port) for port in (34801, 34802, 34803)]
    partitions = [
        Partition(3, 3, nodes[n % 3], (nodes[(n + 1) % 3], nodes[(n + 2) % 3])) for n in range(8)
    ]
    created = int(time.mktime((2019, 7, 30, 14, 4, 26, 0, 0, -1)))
    return Cluster(
        [App(1, "temp", partitions, create_second=created)], list(map(Node, nodes)),
        ["%s:%d" % (host, port) for port in (34601, 34602, 34603)], host + ":34601",
        zookeeper_hosts="127.0.0.1:22181", zookeeper_root="/pegasus/onebox/" + host,
    )  # fmt: skip


# === 12. Live cluster =============================================================================
# Three parts: the wire (frames, and the part of Thrift that is in them), the way to the primary
# meta server (find it, follow it, one connection), and the cluster that is kept between two pages.

# --- the wire: Thrift's binary protocol, as far as meta servers speak it -------------------------


class _WireError(ValueError):
    """An answer that is not what a meta server sends."""


class _Refused(Exception):
    """The server answered with an error: `args[0]` is its name."""


class _NotPrimary(_Refused):
    """A standby answered. leader: whom it takes for the primary, if it knows one."""

    def __init__(self, leader: str | None = None) -> None:
        super().__init__("ERR_SERVICE_NOT_ACTIVE")
        self.leader = leader


def _left(deadline: float) -> float:
    """The seconds until then; socket.timeout when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("no answer in time")
    return left


_INT, _LONG, _LIST_HEAD = struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">bi")


class _Decoder:
    """Reads a frame from front to back; each method reads a value of one type.

    A frame may have 64 MB, which take seconds: after every 16 KB other threads get their turn and
    the deadline may end the reading. Lists have to be as long as their count says, in elements of a
    size that a real server sends: what is made of a frame has a few times the size of the frame.
    """

    def __init__(self, data: bytes, deadline: float = math.inf) -> None:
        self._data, self._deadline = data, deadline
        self.at, self._pause_at = 0, min(_PAUSE_BYTES, len(data))
        self.odd: list[str] = []  # sentences about rows that make no sense and are left out

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

    def text(self) -> str:
        """Pegasus does not promise UTF-8: bytes that are none are shown as \\xNN."""
        return self.take(self.i32()).decode("utf-8", "backslashreplace")

    def text_map(self) -> dict[str, str]:
        keys = self.take(1)  # their type; what follows looks like a list of the values' type
        pairs = {self.text(): self.text() for _ in range(self.count(_TEXT))}
        if pairs and keys != b"\x0b":
            raise _WireError("a map that is not one of texts")
        return pairs

    def count(self, element: _Type, most: int = 2**31) -> int:
        """How many elements follow."""
        kind, count = _LIST_HEAD.unpack_from(self._data, self.at)
        self.at += _LIST_HEAD.size
        fits = 0 <= count <= most and count * element.least <= len(self._data) - self.at
        if not fits or (count and kind != element.kind):
            raise _WireError("a list of impossible length or type")
        return int(count)

    def struct(self, fields: _Fields) -> dict[str, Any]:
        """The fields that are known, by name."""
        values = {}
        data = self._data
        for _ in range(100):  # the largest of a real server has 11
            at = self.at
            self.at = at + 3
            tag = data[at : at + 3]  # type and number in one
            if tag in fields:
                name, read = fields[tag]
                values[name] = read(self)
            elif tag[:1] == b"\0":
                self.at = at + 1
                return values
            else:
                self._skip(tag)
        raise _WireError("a struct without end")

    def _skip(self, tag: bytes) -> None:
        """Past an unknown field. Not past a struct: some are raw values that only say so."""
        kinds, count = tag[:1], 1
        if kinds in (b"\x0d", b"\x0e", b"\x0f"):  # a map, a set, a list
            kinds, count = self.take(2 if kinds == b"\x0d" else 1), self.i32()
        if count < 0 or (count and not set(kinds) <= _SIZES.keys()):
            number = int.from_bytes(tag[1:], "big")
            raise _WireError("field %d is unknown and of type %s" % (number, list(kinds)))
        for kind in itertools.chain.from_iterable(itertools.repeat(kinds, count)):
            self.take(_SIZES[kind] or self.i32())

    def result(self, kind: _Type) -> Any:
        """A whole result: its one field has the number 0, and nothing follows."""
        if self.take(3) != bytes((kind.kind, 0, 0)):
            raise _WireError("no result")
        value = kind.read(self)
        if self._data[self.at :] != b"\0":
            raise _WireError("something follows the result")
        return value


@functools.lru_cache(maxsize=8192)
def _ipv4(raw: bytes) -> str | None:
    """a b c d, port, 00, type: 1 is an address, all else is none."""
    text = "%d.%d.%d.%d:%d" % (*raw[:4], int.from_bytes(raw[4:6], "big"))
    return text if raw[7] & 3 == 1 and _is_address(text) else None


@functools.lru_cache(maxsize=8192)
def _ipv4s(raw: bytes) -> tuple[str | None, ...]:
    return tuple([_ipv4(raw[at : at + 8]) for at in range(0, len(raw), 8)])


@functools.lru_cache(maxsize=8192)
def _host_port(raw: bytes) -> str | None:
    """Host, port, type: 1 is a host, 0 none."""
    text = "%s:%d" % (raw[:-3].decode("utf-8", "replace"), int.from_bytes(raw[-3:-1], "big"))
    return text if raw[-1] == 1 and _is_address(text) else None


class _Type(NamedTuple):
    """kind: its number in Thrift; least: bytes of the shortest value that a real server sends."""

    kind: int
    least: int
    read: _Reader


def _list_of(element: _Type) -> _Type:
    read = element.read
    return _Type(15, 5, lambda frame: [read(frame) for _ in range(frame.count(element))])


def _struct(least: int = 0, **types: _Type) -> _Type:
    """Fields by name, in the order of their numbers; read as a dict."""
    fields = {
        struct.pack(">bh", kind.kind, number): (name, kind.read)
        for number, (name, kind) in enumerate(types.items(), 1)
    }
    return _Type(12, least, lambda frame: frame.struct(fields))


_SIZES = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8, 11: 0}  # 3: byte, 4: double, 6: i16; 0: a text
_BOOL = _Type(2, 1, lambda frame: frame.take(1) != b"\0")
_I32 = _Type(8, 4, _Decoder.i32)
_I64 = _Type(10, 8, lambda frame: _LONG.unpack(frame.take(8))[0])
_TEXT, _TEXT_MAP = _Type(11, 4, _Decoder.text), _Type(13, 6, _Decoder.text_map)
_OCTETS = _Type(11, 4, lambda frame: frame.take(frame.i32()))
# These say that they are structs and are raw values.
_ERROR, _GPID = _Type(12, 4, _Decoder.text), _Type(12, 8, lambda frame: frame.take(8))
_IPV4 = _Type(12, 8, lambda frame: _ipv4(frame.take(8)))
_IPV4S = _Type(15, 5, lambda frame: _ipv4s(frame.take(8 * frame.count(_IPV4, _MAX_REPLICAS))))
_HOST_PORT = _Type(12, 7, lambda frame: _host_port(frame.take(frame.i32() + 3)))
_HOST_PORTS = _list_of(_HOST_PORT)

_TABLE = _struct(
    67, status=_I32, app_type=_TEXT, app_name=_OCTETS, app_id=_I32, partition_count=_I32,
    envs=_TEXT_MAP, is_stateful=_BOOL, max_replica_count=_I32, expire_second=_I64,
    create_second=_I64, drop_second=_I64,
)  # fmt: skip
_NODE = _struct(19, status=_I32, address=_IPV4, name=_HOST_PORT)
# What no page shows is here because a field that says it is a struct cannot be skipped.
_PARTITION = _struct(
    gpid=_GPID, ballot=_I64, max_replica_count=_I32, primary=_IPV4, secondaries=_IPV4S,
    last_drops=_IPV4S, last_committed_decree=_I64, partition_flags=_I32,
    primary_name=_HOST_PORT, secondary_names=_HOST_PORTS, last_drop_names=_HOST_PORTS,
)  # fmt: skip


def _string(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def _request(code: str, args: bytes, sequence: int, timeout_ms: int) -> bytes:
    """A request frame: header version 0, no table's id; `args` are the fields of its struct."""
    body = b"\x80\x01\x00\x01" + _string(code.encode()) + struct.pack(">i", sequence)
    body += b"\x0c\x00\x01" + args + b"\0\0"
    return struct.pack(">4s9iq", b"THFT", 0, 48, 0, len(body), 0, 0, 0, timeout_ms, 0, 0) + body


def _read_head(frame: bytes) -> tuple[str, str, int, int]:
    """The names of an error and of a call, the sequence number, and where the result begins."""
    head = _Decoder(frame)
    try:
        head.take(4)
        error, version, name, sequence = head.text(), head.take(4), head.text(), head.i32()
    except struct.error:
        raise _WireError("the answer is cut off") from None
    if version != b"\x80\x01\x00\x02":
        raise _WireError("not a Thrift reply")
    return error, name, sequence, head.at


def _read_checked(decoder: _Decoder, kind: _Type) -> dict[str, Any]:
    """A result struct whose error is ERR_OK; _NotPrimary or _Refused for others."""
    result: dict[str, Any] = decoder.result(kind)
    if result["error"] == "ERR_FORWARD_TO_OTHERS":
        raise _NotPrimary(*[row.primary for row in result.get("partitions", ())[:1]])
    if result["error"] != "ERR_OK":
        raise _Refused(result["error"])
    return result


_TABLES = _struct(error=_ERROR, infos=_list_of(_TABLE))
_NODES = _struct(error=_ERROR, infos=_list_of(_NODE))
_INFO = _struct(error=_ERROR, keys=_list_of(_TEXT), values=_list_of(_TEXT))


def _read_apps(decoder: _Decoder) -> list[tuple[App, bytes]]:
    """The tables as listed, each with the bytes of its name."""
    listed: dict[int, tuple[App, bytes]] = {}
    for info in _read_checked(decoder, _TABLES)["infos"]:
        name, status = info["app_name"], info["status"]
        info["app_name"] = name.decode("utf-8", "backslashreplace")
        info["status"] = _APP_STATUSES[status if 0 <= status < len(_APP_STATUSES) else 0]
        info["envs"] = tuple(sorted(info["envs"].items()))
        app = App._unchecked(partitions=None, **info)
        negative = min(app.app_id, app.partition_count, app.max_replica_count) < 0
        if negative or app.app_id in listed:
            wrong = "negative figures" if negative else "its id is another table's"
            decoder.odd.append("table %d, %s: %s" % (app.app_id, _encode(app.app_name), wrong))
        else:
            listed[app.app_id] = (app, name)
    return list(listed.values())


def _read_nodes(decoder: _Decoder) -> list[Node]:
    statuses: dict[str, str] = {}
    for info in _read_checked(decoder, _NODES)["infos"]:
        address = info.get("name") or info["address"]
        if address is None or address in statuses:
            decoder.odd.append("a node that has no address, or another node's: %s" % address)
        else:
            statuses[address] = "ALIVE" if info["status"] == 1 else "UNALIVE"
    return [Node(address, status) for address, status in statuses.items()]


def _read_info(decoder: _Decoder) -> dict[str, str]:
    result = _read_checked(decoder, _INFO)
    info = {"balance_operation_count": "unknown", **dict(zip(result["keys"], result["values"]))}
    return {name: info[name] for name in _INFO_FIELDS if name in info}


def _read_server_info(decoder: _Decoder) -> dict[str, str]:
    """JSON today, a sentence up to 2.5; anything else tells us nothing."""
    text = decoder.result(_TEXT)
    match = re.match(r"Pegasus Server (\S+) \(([^)]*)\)", text)
    if match:
        return {"version": match.group(1), "git_commit": match.group(2)}
    import json

    info = json.loads(text)
    found = {"version": info["version"], "git_commit": info["git_SHA"]}
    return {name: _check_text(value, name) for name, value in found.items()}


def _read_partition(decoder: _Decoder) -> Partition:
    """Host names are newer than addresses, are sent beside them, and are what is shown."""
    row = _PARTITION.read(decoder)
    primary = row.get("primary_name") or row["primary"]
    secondaries, names = row["secondaries"], row.get("secondary_names")
    if names:
        secondaries = tuple([n or old for n, old in itertools.zip_longest(names, secondaries)])
    if None in secondaries:
        secondaries = tuple(filter(None, secondaries))
        # Of a table with many of them the last one is told.
        number = int.from_bytes(row["gpid"][:4], "big")
        decoder.odd = ["a secondary without an address, in partition %d" % number]
    return Partition(row["ballot"], row["max_replica_count"], primary, secondaries)


_CONFIGURATION = _struct(
    error=_ERROR, app_id=_I32, partition_count=_I32, is_stateful=_BOOL,
    partitions=_list_of(_Type(12, 75, _read_partition)),
)  # fmt: skip
_read_query = functools.partial(_read_checked, kind=_CONFIGURATION)
_MISSING = {
    "ERR_OBJECT_NOT_FOUND": "DROPPED",
    "ERR_BUSY_CREATING": "CREATING",
    "ERR_BUSY_DROPPING": "DROPPING",
}


def _read_table(decoder: _Decoder, listed: App) -> App:
    """The listed table with its partitions; DROPPED when its name is another table's by now."""
    try:
        result = _read_query(decoder)
    except _Refused as error:
        if error.args[0] not in _MISSING:
            raise
        changes: dict[str, Any] = {"status": _MISSING[error.args[0]]}
    else:
        partitions = tuple(result["partitions"])
        changes = {"partitions": partitions, "partition_count": len(partitions)}
        if result["app_id"] != listed.app_id:
            changes = {"status": "DROPPED"}
    return App._unchecked(**{**listed._asdict(), **changes})


class _Rpc(NamedTuple):
    """A call. key: what its answer is kept as; read: makes a value of its result; most: bytes of
    an answer; listed: the table that it is about, as the list has it."""

    key: object
    code: str
    args: bytes
    read: _Reader
    most: int
    listed: App | None = None

    @property
    def about(self) -> str:
        """For hints and the log."""
        return str(self.key) if self.listed is None else "table " + _encode(self.listed.app_name)


_NO_FILTER = b"\x08\x00\x01\x00\x00\x00\x00"  # field 1: a status, where 0 is any
_SERVER_INFO = b"\x0b\x00\x01" + _string(b"server-info") + b"\x0f\x00\x02\x0b\x00\x00\x00\x00"
_RPCS = [  # the version comes first, since no page waits for it
    _Rpc("server_info", "RPC_CLI_CLI_CALL", _SERVER_INFO, _read_server_info, _INFO_BYTES),
    _Rpc("apps", "RPC_CM_LIST_APPS", _NO_FILTER, _read_apps, _LIST_BYTES),
    _Rpc("nodes", "RPC_CM_LIST_NODES", _NO_FILTER, _read_nodes, _LIST_BYTES),
    _Rpc("cluster_info", "RPC_CM_CLUSTER_INFO", b"", _read_info, _INFO_BYTES),
]


def _table_rpc(app: App, name: bytes) -> _Rpc:
    args = b"\x0b\x00\x01" + _string(name) + b"\x0f\x00\x02\x08\x00\x00\x00\x00"
    read = functools.partial(_read_table, listed=app)
    return _Rpc(app.app_id, _QUERY, args, read, _FRAME_BYTES, app)


_QUERY = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX"
_PROBE = _table_rpc(App._unchecked(-1, ""), b"")  # a standby's answer to it names the primary


# --- the way to the primary meta server ----------------------------------------------------------


class _Reply(NamedTuple):
    """What was asked, when, of whom; an error's name and the bytes of the result."""

    call: _Rpc
    asked: float
    server: str
    error: str
    body: bytes


class _Channel:
    """One connection to one server: requests are pipelined, answers are matched by number.

    An answer that has not come in time is still owed: the next exchange takes it. first_by: when
    the first answer to an exchange must have come; deadline: when the last. The lender sets them.
    """

    def __init__(self, address: str, timeout: float, first_by: float) -> None:
        """Connect. address: the numbers of host and port."""
        self.address = address
        self.first_by = self.deadline = first_by
        self._timeout_ms = int(timeout * 1000)
        self._sequence = 0
        self._owed: dict[int, tuple[_Rpc, float]] = {}
        self._buffer = bytearray()
        self._pid = os.getpid()
        self._socket = socket.create_connection(_split(address), _left(first_by))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close it for a forked child too, which has a copy; a child only closes its copy."""
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def exchange(self, calls: list[_Rpc], keep: Callable[[_Reply], object]) -> None:
        """Ask `calls`, and give `keep` each answer as it comes. No page needs the version, which is
        not waited for: if it comes late, the next exchange takes it."""
        owed = {call.key for call, _ in self._owed.values()}
        todo = collections.deque(call for call in calls if call.key not in owed)
        wanted = {call.key for call in calls} - {"server_info"}
        deadline = self.first_by
        while wanted:
            if todo and len(self._owed) <= _WINDOW // 2:
                part = [todo.popleft() for _ in range(min(_WINDOW // 2, len(todo)))]
                self._send(part, deadline)
            reply = self._answer(deadline)
            keep(reply)
            wanted.discard(reply.call.key)
            if reply.call.key != "server_info":
                deadline = self.deadline  # it is the primary: it may have all the time there is

    def _send(self, calls: list[_Rpc], deadline: float) -> None:
        requests = []
        for call in calls:
            self._sequence = (self._sequence + 1) % 2**31
            self._owed[self._sequence] = (call, time.monotonic())
            requests.append(_request(call.code, call.args, self._sequence, self._timeout_ms))
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(b"".join(requests), _NO_SIGPIPE)
        except socket.timeout:
            raise ConnectionAbortedError("takes no requests") from None  # half of one was sent

    def _answer(self, deadline: float) -> _Reply:
        while not self._has_frame():
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(_RECV_BYTES)
            if not data:
                raise ConnectionResetError("closed the connection without an answer")
            self._buffer += data
        length = int.from_bytes(self._buffer[:4], "big")
        # The names of an error and of a call have at most 51 bytes.
        error, name, sequence, at = _read_head(bytes(self._buffer[: min(length, 256)]))
        if sequence not in self._owed:
            raise _WireError("an answer to a request that was not made: %d" % sequence)
        call, asked = self._owed.pop(sequence)
        if name != call.code + "_ACK":
            raise _WireError("an answer to another call: " + name)
        with memoryview(self._buffer) as view:
            body = bytes(view[at:length])
        del self._buffer[:length]
        return _Reply(call, asked, self.address, error, body)

    def _has_frame(self) -> bool:
        if len(self._buffer) < 4:
            return False
        if bytes(self._buffer[:8]).lstrip().startswith((b"HTTP", b"<")):
            raise _WireError("an HTTP server, not a meta server's RPC port")
        length = int.from_bytes(self._buffer[:4], "big", signed=True)
        if not 8 < length <= _FRAME_BYTES:
            raise _WireError("a frame of impossible length: %d" % length)
        return len(self._buffer) >= length

    def end_requests(self, deadline: float) -> None:
        """Tell the server that nothing follows. An HTTP server, which waits for the end of a line,
        speaks then: _WireError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._answer(deadline)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _look_up(address: str, flags: int = 0) -> list[str]:
    """Its addresses as numbers, in the resolver's order; none if the name does not resolve."""
    host, port = _split(address)
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)
    except (OSError, UnicodeError):  # the latter of a label that is empty or too long
        return []
    return list(dict.fromkeys(_join(str(info[4][0]), port) for info in found))


class _Primary:
    """The way to the primary meta server.

    Strategy: the last primary is asked first, then those that were listed; each gets an equal share
    of the time that is left for its first answer. Whoever answers as the primary gets all the time
    there is. A standby says who is: that one is asked next, even if it was asked before and was
    only slow; its connection has been kept, and its answer is still owed. When all were asked, the
    slow ones get what time is left.
    """

    def __init__(self, meta_servers: list[str], timeout: float) -> None:
        """Connect to nothing yet."""
        self.leader: str | None = None
        self._meta_servers, self._timeout = meta_servers, timeout
        self._channels: dict[str, _Channel] = {}  # between two attempts, none but the leader's
        self._lookups: dict[str, tuple[threading.Thread, list[str]]] = {}
        self._pid = os.getpid()

    def rest(self) -> None:
        """Close what is open."""
        while self._channels:
            self._channels.popitem()[1].close()

    def ask(self, work: Callable[[_Channel], Any], deadline: float) -> Any:
        """What `work` makes of the primary's channel, whoever that is by now; or PageError."""
        if self._pid != os.getpid():  # a forked child: connections and threads are its parent's
            self.rest()
            self._lookups, self._pid = {}, os.getpid()
        try:
            result = self._search(work, deadline)
        except BaseException:
            self.rest()
            raise
        for address in self._channels.keys() - {self.leader}:
            self._channels.pop(address).close()
        return result

    def _search(self, work: Callable[[_Channel], Any], deadline: float) -> Any:
        first = [self.leader] if self.leader else []
        todo = collections.deque((one, False) for one in dict.fromkeys(first + self._meta_servers))
        labels: dict[str, str] = {}  # of resolved addresses, with the names that they come from
        troubles: dict[str, Exception] = {}  # what each server said instead
        followed: set[str] = set()
        while todo:
            address, again = todo.popleft()  # again: even if it has been asked and was slow
            trouble = troubles.get(address)
            if trouble is not None and not (again and isinstance(trouble, socket.timeout)):
                continue
            first_by = time.monotonic() + max(0.0, deadline - time.monotonic()) / (len(todo) + 1)
            try:
                if address in labels:
                    result = self._try(address, work, first_by, deadline)
                    self.leader = address
                    return result
                for one in reversed(self._resolve(address, first_by)):
                    labels[one] = one if one == address else "%s at %s" % (address, one)
                    todo.appendleft((one, again))
            except (OSError, _WireError, _Refused) as error:
                troubles[address] = error
                leader = getattr(error, "leader", None)
                if leader and (leader in followed or len(followed) < _MAX_HOPS):
                    followed.add(leader)
                    todo.appendleft((leader, True))
            if not todo and time.monotonic() < deadline:
                slow = [one for one, e in troubles.items() if isinstance(e, socket.timeout)]
                todo.extend((one, True) for one in slow)
        self._look_closer(troubles)
        raise _explain({labels.get(one, one): error for one, error in troubles.items()})

    def _resolve(self, address: str, deadline: float) -> list[str]:
        """The numbers of "host:port". The system's resolver cannot be given a time, so it has a
        thread; one that hangs is left behind, and waited for when the same name is asked again."""
        found = _look_up(address, socket.AI_NUMERICHOST)
        if found:
            return found
        if address not in self._lookups:
            self._lookups = {k: one for k, one in self._lookups.items() if one[0].is_alive()}
            if len(self._lookups) >= _MAX_LOOKUPS:
                raise OSError("too many host names are being resolved")
            target, name = lambda: found.extend(_look_up(address)), "pegasus-http-names"
            thread = threading.Thread(target=target, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError("no thread to resolve the host name: %s" % error) from None
            self._lookups[address] = (thread, found)
        thread, found = self._lookups[address]
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            raise socket.timeout("the host name is not resolved in time")
        del self._lookups[address]
        if not found:
            raise OSError("the host name does not resolve")
        return found

    def _try(
        self, address: str, work: Callable[[_Channel], Any], first_by: float, deadline: float
    ) -> Any:
        """Ask one server, over a new connection if the one that was kept turns out broken."""
        kept = self._channels.get(address)
        channel = kept or _Channel(address, self._timeout, first_by)
        self._channels[address] = channel
        channel.first_by, channel.deadline = first_by, deadline
        try:
            return work(channel)
        except _NotPrimary as standby:
            if standby.leader is None:  # answers to other calls do not name it
                channel.exchange([_PROBE], lambda reply: reply.call is _PROBE and _value(reply))
            raise
        except socket.timeout:
            raise  # its answer is still owed
        except (_WireError, OSError) as error:
            self._channels.pop(address).close()
            if kept is None or isinstance(error, _WireError):
                raise
        return self._try(address, work, first_by, deadline)

    def _look_closer(self, troubles: dict[str, Exception]) -> None:
        """Find the HTTP servers among those that have not answered."""
        deadline = time.monotonic() + 0.05 * self._timeout
        for address, channel in self._channels.items():
            if isinstance(troubles.get(address), socket.timeout):
                try:
                    channel.end_requests(deadline)
                except _WireError as error:
                    troubles[address] = error


def _value(reply: _Reply, decoder: _Decoder | None = None) -> Any:
    """What an answer says. A refusal or nonsense is a value too, since the server's other answers
    may be fine; raised is what concerns them all: it is a standby, or not ready."""
    call = reply.call
    try:
        if reply.error != "ERR_OK":
            raise _Refused(reply.error)
        if len(reply.body) > call.most:
            raise _WireError("it has %d bytes" % len(reply.body))
        return call.read(decoder or _Decoder(reply.body))
    except _Refused as error:
        if error.args[0] in _ABSENT and call.key != "server_info":
            raise
        return _Refused(*error.args)  # the one that was raised holds on to the whole answer
    except (ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
        missing = "no %s" if isinstance(error, KeyError) else "%s"
        return _WireError(missing % error)


_ABSENT = ("ERR_SERVICE_NOT_ACTIVE", "ERR_HANDLER_NOT_FOUND")  # not (yet) a primary, says a server


def _explain(troubles: Mapping[str, Exception]) -> PageError:
    """One error out of what each server said, the most telling kind first."""
    said = "; ".join("%s: %s" % (name, _describe(error)) for name, error in troubles.items())
    refused = [error.args[0] for error in troubles.values() if isinstance(error, _Refused)]
    if "ERR_SERVICE_NOT_ACTIVE" in refused:
        hint = "no primary meta server answers: " + said
        return PageError(503, "ERR_SERVICE_NOT_ACTIVE", hint, _RETRY_AFTER)
    if refused:
        return PageError(502, refused[-1], "the meta server refused: " + said)
    if any(isinstance(error, socket.timeout) for error in troubles.values()):
        return PageError(504, "ERR_TIMEOUT", "no meta server answered in time: " + said)
    return PageError(502, "ERR_NETWORK_FAILURE", "no meta server is reachable: " + said)


def _describe(error: Exception) -> str:
    if isinstance(error, _NotPrimary):
        leader = error.leader
        return "a standby of " + leader if leader else "a standby that knows no primary"
    if isinstance(error, _Refused) and error.args[0] == "ERR_HANDLER_NOT_FOUND":
        return "ERR_HANDLER_NOT_FOUND: a replica server, or a meta server that is still starting"
    if isinstance(error, socket.timeout):
        return str(error).replace("timed out", "no answer in time")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


# --- the cluster that is kept --------------------------------------------------------------------


class _Overview(NamedTuple):
    """What the primary said about all but the partitions, and when it was asked.

    queries: of the available tables; by_name: the same by the name that pages show, and if two look
    alike the one whose name it is. failures: by part, why the primary did not tell it.
    """

    asked: float
    server: str
    state: Cluster
    queries: list[_Rpc]
    by_name: dict[str, _Rpc]
    failures: dict[str, PageError]


_PARTS = ("apps", "nodes", "cluster_info")  # of the overview, each of which may fail alone


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
        servers = [address.strip() for address in meta_servers]
        self._servers = ",".join(servers)
        for address in servers or [""]:
            _check_address(address, "meta servers " + self._servers)
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        self._timeout, self._max_age = timeout, max_age
        self._lock = _PerProcess(threading.Lock)
        self._primary = _Primary(servers, timeout)
        self._kept: dict[object, tuple[_Reply, Any]] = {}  # by a call's key: its answer and value
        self._overview = _Overview(-math.inf, "", Cluster(), [], {}, {})
        self._unfinished: dict[str, float] = {}  # by kind of read: since when it is attempted
        self._reported: set[str] = set()

    def __repr__(self) -> str:
        """The meta servers, the last primary and the times."""
        about = (self._servers, self._primary.leader or "not known yet")
        times = (self._timeout, self._max_age)
        return "<LiveCluster %s, primary: %s, timeout %g s, max_age %g s>" % (about + times)

    def __call__(self) -> Cluster:
        """All there is to know, partitions included."""
        with self._lock():
            deadline = time.monotonic() + 0.9 * self._timeout
            self._read("overview", deadline)
            for failure in self._overview.failures.values():
                raise failure.with_traceback(None)
            return _as_cluster(self._read("partitions", deadline)[0])

    def needs(self, request: _PageRequest) -> tuple[str, ...]:
        """The overview, then what a page shows besides; "overview:PART" if that part failed."""
        shows, query, overview = request.route.shows, request.query, self._overview
        if shows != "cluster":
            return () if shows == "nothing" else ("overview",)
        shown = {"/meta/nodes": "nodes", "/meta/cluster": "cluster_info"}
        parts, state, more = [shown.get(request.path, "apps")], overview.state, ""
        deviations = (state.primary_replica_count_stddev, state.total_replica_count_stddev)
        if request.path == "/meta/app":
            more = "table:" + query.name if query.name in overview.by_name else ""
        elif query.detail or (request.path == "/meta/cluster" and None in deviations):
            more = "partitions"  # servers before 1.11.3 leave the deviations to be computed
            parts += ["apps", "nodes"]
        for part in parts:
            if part in overview.failures:
                return ("overview:" + part,)
        return ("overview", more) if more else ("overview",)

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
            self._primary.rest()

    def _read(self, key: str, deadline: float) -> tuple[_State, float]:
        kind, _, name = key.partition(":")
        now = time.monotonic()
        # Whoever asks for tables has asked for the overview before: any will do.
        oldest = now - self._max_age if kind == "overview" else -math.inf
        is_old = self._overview.asked <= oldest
        if is_old or self._stale(key, self._overview.server, now - self._max_age):
            # What came before an attempt ran out of time is not too old for the next one.
            since = max(self._unfinished.setdefault(kind, now), now - _UNFINISHED_SECONDS)
            work = functools.partial(self._refresh, key, since - self._max_age)
            self._primary.ask(work, deadline)
            del self._unfinished[kind]
        overview = self._overview
        if kind != "overview":
            return self._with_partitions(key)
        if name in overview.failures:
            raise overview.failures[name]
        return overview.state, overview.asked + self._max_age

    def _refresh(self, key: str, oldest: float, channel: _Channel) -> None:
        """Ask for all that `key` shows and that is too old, of one server. A table that is gone, or
        is another one by now, says that the list is old: it is read again, once."""
        if key.startswith("overview") or self._overview.server != channel.address:
            self._ask_overview(oldest, channel)
        self._fetch(key, oldest, channel)
        found = [self._kept[call.key][1] for call in self._calls(key)]
        if any(isinstance(app, App) and app.status == "DROPPED" for app in found):
            self._ask_overview(time.monotonic(), channel)
            self._fetch(key, oldest, channel)

    def _calls(self, key: str) -> list[_Rpc]:
        """What to ask for `key` once the overview is there, or for the overview itself ("")."""
        kind, _, name = key.partition(":")
        overview = self._overview
        if kind in ("partitions", "table") and "apps" in overview.failures:
            raise overview.failures["apps"].with_traceback(None)
        if kind == "table":
            return [overview.by_name[name]] if name in overview.by_name else []
        return {"": _RPCS, "partitions": overview.queries}.get(kind, [])

    def _fetch(self, key: str, oldest: float, channel: _Channel) -> None:
        stale = self._stale(key, channel.address, oldest)
        channel.exchange(stale, lambda reply: self._keep(reply, channel.deadline))

    def _stale(self, key: str, server: str, oldest: float) -> list[_Rpc]:
        """The calls that this server has not answered since `oldest`, or with an error before
        `max_age`, or when the list said something else about the table."""
        stale = []
        oldest_error = max(oldest, time.monotonic() - self._max_age)
        for call in self._calls(key):
            reply, value = self._kept.get(call.key, (None, None))
            since = oldest_error if isinstance(value, Exception) else oldest
            about = (server, call.listed)
            if not reply or (reply.server, reply.call.listed) != about or reply.asked < since:
                stale.append(call)
        return stale

    def _keep(self, reply: _Reply, deadline: float) -> None:
        """Keep the answer. An equal one keeps its value: nothing is decoded again, and what was
        computed of it still holds."""
        call = reply.call
        known, value = self._kept.get(call.key, (None, None))
        is_same = known is not None and known.call.listed == call.listed
        if known is None or not is_same or known[2:] != reply[2:]:  # server, error, body
            decoder = _Decoder(reply.body, deadline)
            value = _value(reply, decoder)
            about = (reply.server, call.about)
            for text in decoder.odd:
                self._report("%s: the answer about %s has odd rows, left out: " % about + text)
        self._kept[call.key] = (reply, value)
        _pause_if_due()

    def _ask_overview(self, oldest: float, channel: _Channel) -> None:
        """Read all but the partitions; of a part that is refused or nonsense keep the reason."""
        self._fetch("", oldest, channel)
        told: dict[str, Any] = {"apps": [], "nodes": [], "cluster_info": {}, "server_info": {}}
        failures = {}
        for part in told:
            reply, value = self._kept.get(part, (None, None))
            if reply is None or reply.server != channel.address:
                continue  # the version: missing, or another server's
            if not isinstance(value, Exception):
                told[part] = value
            elif part in _PARTS:
                failures[part] = _failure(reply, value)
        if len(failures) == len(_PARTS):
            raise self._kept["apps"][1].with_traceback(None)
        # Tables that are as they were stay the same objects, with what was computed of them.
        known = {app: app for app in self._overview.state.apps}
        apps = tuple([known.get(app, app) for app, _ in told["apps"]])
        info = {**told["cluster_info"], **told["server_info"]}
        state = Cluster._unchecked(apps, tuple(told["nodes"]), **info)
        available = [item for item in told["apps"] if item[0].status == "AVAILABLE"]
        available.sort(key=lambda item: item[0].app_name.encode() == item[1])  # wins in `by_name`
        queries = [_table_rpc(app, name) for app, name in available]
        by_name = {app.app_name: query for (app, _), query in zip(available, queries)}
        asked = min(self._kept[part][0].asked for part in _PARTS)
        self._overview = _Overview(asked, channel.address, state, queries, by_name, failures)
        keys = {*told, *[query.key for query in queries]}
        self._kept = {key: item for key, item in self._kept.items() if key in keys}

    def _with_partitions(self, key: str) -> tuple[Cluster, float]:
        """The state with the partitions of all tables, or of the one that `key` names alone.

        A table whose partitions make no sense spoils its own page alone: it is left out of others.
        """
        overview, is_all = self._overview, key == "partitions"
        apps = {app.app_id: app for app in overview.state.apps if is_all}
        asked = overview.asked
        for call in self._calls(key):
            _pause_if_due()
            reply, value = self._kept[call.key]
            asked = min(asked, reply.asked)
            if isinstance(value, App):
                apps[value.app_id] = value
                continue
            failure = _failure(reply, value)
            if not is_all or isinstance(value, _Refused):
                raise failure
            self._report(failure.hint_message + "; left out")
        state = overview.state._asdict()
        state["apps"] = tuple(apps.values())
        return Cluster._unchecked(**state), asked + self._max_age

    def _report(self, text: str) -> None:
        """Log it, once: what is odd about a cluster stays so."""
        if text not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(text)
            with contextlib.suppress(Exception):  # of a handler of the host: no page depends on it
                _logger().warning("%s", text)


def _failure(reply: _Reply, error: Exception) -> PageError:
    """The error of the pages that show what this answer should have told."""
    about = (reply.server, reply.call.about, error)
    if isinstance(error, _Refused):
        return PageError(502, error.args[0], "%s: the answer about %s is %s" % about)
    hint = "%s: the answer about %s makes no sense: %s" % about
    return PageError(502, "ERR_NETWORK_FAILURE", hint)


# === 13. Overview page for people =================================================================

_OVERVIEW = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Pegasus</title>
<meta name="viewport" content="width=device-width">
<style>  /* colours: the browser's own; of the kinds of health, k0 to k3; of primaries and others */
:root { color-scheme: light dark; --soft: #8882; --line: #8886; scroll-padding-top: 100px }
.k0, .good { --kind: #2e974d } .k1 { --kind: #d2a00c } .k2 { --kind: #e66b14; --stripes: 45deg }
.k3, .bad { --kind: #d42a2f; --stripes: -45deg } .p { --kind: #3470d0 } .s { --kind: #3470d080 }
.good, .bad { color: color-mix(in srgb, var(--kind) 70%, CanvasText) }
dt, small, #columns, #updated { font-size: 12px; color: color-mix(in srgb, CanvasText 70%, Canvas) }
/* what is shown, and where */
[hidden], :is(p, span):empty, .zookeeper_root, body:not(.primary) .primary,
body:not(.standby) .standby, body:not(.replica) .replica,
body:not(.standby, .replica) .other { display: none !important }
* { box-sizing: border-box; margin: 0; overflow-wrap: anywhere } main { padding: 8px 16px }
body { background: Canvas; font: 14px/1.4 system-ui, sans-serif } dl { padding: 4px 0 12px }
header { position: sticky; top: 0; z-index: 1; padding: 8px 16px; align-items: center;
  background: color-mix(in srgb, CanvasText 6%, Canvas); border-bottom: 1px solid var(--line) }
header, dl, #cluster { display: flex; flex-wrap: wrap; gap: 4px 28px } dl, #trouble { flex: 100% }
#trouble { padding: 6px 12px; background: #a3160f; color: #fff } label { margin-left: auto }
#nodes-part { flex: 1 1 220px } #tables-part { flex: 4 1 700px; min-width: 0 }
.stale main, .stale header a, .row.stale ul { opacity: .5; filter: grayscale(1) }
h1, h2 { display: inline; font-size: 17px } .bad { font-weight: 600 } summary { cursor: pointer }
input { font: inherit } #filter { width: min(100%, 400px); padding: 4px 10px; margin: 4px 0 }
/* lists; content-visibility lays out 1,000 tables in 40 ms instead of 900 (measured) */
#columns, .row summary { display: grid; grid-template-columns: 3fr 60px 70px 2fr 8fr; gap: 0 16px;
  padding: 4px; border-bottom: 1px solid var(--line) }
.row:not([open]) { content-visibility: auto; contain-intrinsic-size: auto 29px }
.row summary:hover, .bar { background: var(--soft) } .number { text-align: right }
.row .name { color: LinkText; white-space: pre-wrap; unicode-bidi: isolate }
.row .name::before { content: "▸ " } .row[open] .name::before { content: "▾ " }
.words span { display: inline-block; margin-right: 14px } main p { padding: 4px 0 }
ul { list-style: none; padding: 4px 0; display: grid; gap: 6px 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)) }
.row li { padding: 2px 8px; border: 1px solid var(--line); border-left: 6px solid var(--kind);
  font-size: 12px; white-space: pre-line; content-visibility: auto; contain-intrinsic-size: 76px }
.row li:not(.k0) { border-color: var(--kind); background: var(--soft) }
.bar { display: flex; height: 12px; margin-top: 4px }
i { background-color: var(--kind) } i:is(.k1, .k2, .k3) { min-width: 5px; background-image:
  repeating-linear-gradient(var(--stripes), #0000 0 4px, #0007 4px 6px) }
@media (max-width: 700px) { #columns, .number { display: none } .row summary { display: block } }
</style>
<header><h1 id="name">Pegasus</h1>
<a class="primary" href="#nodes-part" id="node-sum"></a>
<a class="primary" href="#tables-part" id="table-sum"></a>
<label><span id="updated"></span> <input type="checkbox" id="pause"> Pause</label>
<p id="trouble" role="alert"></p></header>
<main class="other"><p class="standby">This meta server is a standby. The primary has the figures;
this link leads to it: <a href="meta/apps?detail&amp;pretty">its tables as JSON</a>. Its overview
is at the same address without what follows the port.
<p class="replica">This is a replica server. Tables, nodes and their health are on the meta servers.
<dl id="version"></dl><dl id="startTime"></dl></main>
<main class="primary" id="cluster"><dl id="meta/cluster"></dl>
<details open id="nodes-part"><summary><h2>Nodes</h2></summary><ul id="nodes"></ul></details>
<details open id="tables-part"><summary><h2>Tables</h2></summary>
<input id="filter" type="search" aria-label="Filter tables" placeholder="Filter by name or id">
<div id="columns"></div><div id="tables"></div></details></main>
<noscript>This page needs JavaScript; the same as JSON: <a href="meta/cluster">cluster</a>,
<a href="meta/nodes?detail">nodes</a>, <a href="meta/apps?detail">tables</a>.</noscript>
<script>
const PERIOD = 5000, PATIENCE = 20000;  // ms from one refresh to the next; ms until one is given up
const MOST_CELLS = 1024;  // partitions that are shown of a table: more take a second to lay out
const KINDS = ["fully healthy", "unhealthy", "write-unhealthy", "read-unhealthy"], SIGNS = "✓◐▲✖";
const COLUMNS = [  // of the list of tables: style, heading, what it shows of a row
  ["name", "Table", (row) => row.app_name || "(no name)"],
  ["number", "Id", (row) => row.app_id],  ["number", "Partitions", (row) => row.partition_count],
  ["", "Health", (row) => bar(row.partition_count, row.counts.map((count, kind) =>
    [`k${kind}`, count - (kind && row.counts[kind + 1] || 0)]))],  // kinds 1 to 3 are nested
  ["words", "", (row) => row.unhealthy ? KINDS.map((name, kind) => make("span", {},
    row.counts[kind] ? `${SIGNS[kind]} ${row.counts[kind]} ${name}` : "")) : "not known"]];
const byName = new Intl.Collator(undefined, {numeric: true}).compare;
const $ = (id) => document.getElementById(id), tags = new Map();  // path -> ETag of what is drawn
let rows = [], role = "", busy = false, again = false, timer = 0, turn = 0;
async function get(signal, path, draw, row) {  // draws a page that is new; tells the server's role
  const answer = await fetch(path, {signal, redirect: "manual", cache: "no-cache"})
    .catch(() => { throw "connection lost"; });
  if (answer.type === "opaqueredirect") return "standby";  // scripts are not told where to
  const tag = answer.headers.get("ETag");
  if (tag && tag === tags.get(path)) return "primary";
  const page = await answer.json().catch(() => { throw `no proper answer (${answer.status})`; });
  if (page.error === "ERR_HANDLER_NOT_FOUND") return "replica";
  const trouble = answer.ok ? "" : `${page.hint_message} (${answer.status} ${page.error})`;
  if (trouble && !row) throw trouble;  // that of one table stands in its place
  draw(page, row || path, trouble);
  tags.set(path, tag);
  return "primary";
}
async function update(signal) {  // three requests; with an open table one of them is for that
  if (role !== "replica") role = await get(signal, "meta/apps?detail", drawTables);
  const pages = role !== "primary" ? [["version", drawFacts], ["startTime", drawFacts]]
    : [["meta/nodes?detail", drawNodes], ["meta/cluster", drawFacts]];
  const open = role === "primary" && rows.find((row) => row.line.open);
  if (open) pages[turn++ % 2] = [open.path, drawPartitions, open];
  await Promise.all(pages.map((page) => get(signal, ...page)));
}
async function refresh() {  // one at a time, so that a slow server is not asked ever more
  again = busy;
  if (busy) return;
  busy = true;
  const abort = new AbortController();
  setTimeout(() => abort.abort("no answer in time"), PATIENCE);
  report(await update(abort.signal).then(() => "", (error) => abort.signal.reason || error));
  abort.abort();  // what is still under way when one request has failed
  busy = false;
  if (again) refresh(); else plan(PERIOD);
}
function plan(delay) {  // the next refresh, not while nobody looks
  clearTimeout(timer);
  if (!$("pause").checked && !document.hidden && !busy) timer = setTimeout(refresh, delay);
}
function report(trouble) {
  const last = $("updated").textContent && ". These are the last figures.";
  const text = trouble && `✖ ${trouble}${last}`;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;  // else read out again
  if (!trouble) $("updated").textContent = `updated ${new Date().toLocaleTimeString()}`;
  if (!trouble) document.body.className = role; else role = "";
  document.body.classList.toggle("stale", trouble);
  const bad = trouble || document.querySelector("body.primary .bad");
  document.title = `${bad ? "✖" : "✓"} ${$("name").textContent}`;
}
function make(tag, properties, ...content) {  // texts become text nodes, never markup
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content.flat());
  return made;
}
function bar(whole, parts) {
  return make("div", {className: "bar"}, parts.filter(([, count]) => count > 0).map((part) =>
    make("i", {className: part[0], style: `width: ${100 * part[1] / whole}%`})));
}
function judge(noun, bad, all, trouble) {  // a link of the heading
  const textContent = bad ? `✖ ${bad} of ${all} ${noun}s ${trouble}` : `✓ ${all} ${noun}s`;
  Object.assign($(`${noun}-sum`), {textContent, className: bad ? "primary bad" : "primary good"});
}
function drawFacts(page, path) {
  const [first] = Object.values(page);  // later servers leave out the object around the facts
  const facts = typeof first === "object" ? first : page;
  if (path === "meta/cluster") $("name").textContent = facts.zookeeper_root || "Pegasus";
  $(path).replaceChildren(...Object.entries(facts).map(([className, text]) =>
    make("div", {className}, make("dt", {}, className.replace(/_/g, " ")),
      make("dd", {}, text.replace(/,/g, ", ")))));
}
function drawNodes(page) {
  const nodes = Object.values(page.details), dead = (node) => node.status !== "ALIVE";
  const most = Math.max(1, ...nodes.map((node) => node.replica_count));
  const title = (node) => `${dead(node) ? "✖" : "✓"} ${node.address} ${node.status}`;
  judge("node", nodes.filter(dead).length, nodes.length, "unalive");
  nodes.sort((a, b) => dead(b) - dead(a));
  $("nodes").replaceChildren(...nodes.map((node) => make("li", {},
    make("div", {className: dead(node) ? "bad" : ""}, title(node)),
    bar(most, [["p", node.primary_count], ["s", node.secondary_count]]),
    make("small", {}, `${node.primary_count} primary, ${node.secondary_count} secondary`))));
}
function drawTables(page) {
  const focus = document.activeElement.id, old = new Map(rows.map((row) => [row.app_id, row]));
  rows = Object.values(page.general_info).map((table) =>
    drawRow({...table, ...page.healthy_info?.[table.app_id]}, old.get(table.app_id)));
  rows.sort((a, b) => b.rank - a.rank || byName(a.app_name, b.app_name));
  $("tables").replaceChildren(...rows.map((row) => row.line));
  $(focus)?.focus({preventScroll: true});
  judge("table", rows.filter((row) => row.rank).length, rows.length, "unhealthy");
  filter();
}
function drawRow(facts, old) {
  const key = JSON.stringify(facts);
  if (old?.key === key) return old;
  const counts = KINDS.map((kind) => Number(facts[kind.replace(/[ -]/, "_")] || 0));
  const rank = (counts[3] * 1e5 + counts[2]) * 1e5 + counts[1];  // what cannot be read comes first
  const path = `meta/app?detail&name=${encodeURIComponent(facts.app_name)}`;
  if (old?.path !== path) tags.delete(path);  // nothing of that page is on the screen
  // Of the elements with one name the browser keeps one open at most.
  const line = old?.line || make("details", {className: "row", name: "tables", ontoggle: refresh},
    make("summary", {id: `table-${facts.app_id}`}), make("p", {}), make("ul", {}));
  const row = {...facts, key, counts, rank, path, line};
  const cells = COLUMNS.map(([className, , show]) => make("div", {className}, show(row)));
  line.firstChild.replaceChildren(...cells);
  return row;
}
function drawPartitions(page, row, trouble) {
  const [, note, list] = row.line.children;
  const cells = Object.values(page.replicas || {}).map((partition) => {
    const [have, most] = partition.replica_count.split("/").map(Number);
    return [partition.primary === "-" ? 3 : have >= most ? 0 : have < 2 ? 2 : 1, partition];
  });
  const cut = cells.length > MOST_CELLS && `the worst ${MOST_CELLS} of ${cells.length} partitions`;
  if (cut) cells.sort((a, b) => b[0] - a[0]);
  note.textContent = trouble || cut || "";
  row.line.classList.toggle("stale", trouble);
  if (!trouble) list.replaceChildren(...cells.slice(0, MOST_CELLS).map(([kind, partition]) =>
    make("li", {className: `k${kind}`},
      make("b", {}, `${SIGNS[kind]} ${partition.pidx} ${kind ? KINDS[kind] : ""}`), `
      ${partition.replica_count} replicas, ballot ${partition.ballot}
      primary ${partition.primary}
      secondary ${partition.secondaries.slice(1, -1).replace(/,/g, ", ") || "-"}`)));
}
function filter() {
  const text = $("filter").value.toLowerCase();
  const fits = (row) => row.app_name.toLowerCase().includes(text) || row.app_id === text;
  for (const row of rows) row.line.hidden = !fits(row);
}
$("columns").append(...COLUMNS.map(([className, heading]) => make("div", {className}, heading)));
$("filter").oninput = filter;
$("pause").onchange = document.onvisibilitychange = () => plan(0);
refresh();
</script>
"""
ROUTES["/"] = ROUTES["/"]._replace(for_people=_OVERVIEW)  # without this room browsers get JSON too


# === 14. Command line =============================================================================

def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        "pegasus_http", description="Serve the HTTP status pages of Apache Pegasus.",
        epilog="examples:\n  python -m pegasus_http --role meta\n  python -m pegasus_http --role "
        "meta --cluster 10.0.0.1:34601,10.0.0.2:34601 --listen :8080\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument_group("server").add_argument
    add("--role", choices=_ROLES, help="whose pages to serve; needed to serve")
    add("--listen", metavar="HOST:PORT", help="default 127.0.0.1:34601 (meta), :34801 (replica); "
        ":PORT is 127.0.0.1 too, 0.0.0.0:PORT every IPv4 address of the machine, [::]:PORT every "
        "address; port 0 takes a free one")  # fmt: skip
    add("--flat", action="store_true", help="page shapes of the releases after 1.12.0")
    add("--app-version", metavar="V", help="Version on /version (default: the source's)")
    add("--git-commit", metavar="G", help="GitCommit on /version (default: the source's)")
    add("--max-connections", metavar="N", type=int, default=_MAX_CONNECTIONS,
        help="at once (default %(default)s)")  # fmt: skip
    add("--no-gzip", action="store_true", help="never compress")
    _add_sources(parser)
    add = parser.add_argument_group("logging, to standard error").add_argument
    add("--access-log", action="store_true", help="a line per request, Common Log Format")
    add("--log-level", metavar="L", default="warning", help="default %(default)s", type=str.lower,
        choices=("debug", "info", "warning", "error", "critical"))  # fmt: skip
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    add_group = parser.add_argument_group
    group = add_group("source of the meta pages", "one of these; none: a built-in sample")
    add = group.add_mutually_exclusive_group().add_argument
    add("--cluster", metavar="H:P[,H:P...]", help="meta servers of a running cluster")
    add("--state", metavar="FILE", help="a saved state, - for standard input; SIGHUP reloads it")
    add("--standby-of", metavar="H:P", help="be a standby that redirects to this primary")
    group.add_argument("--max-age", metavar="S", type=float, default=1.0,
        help="seconds before a source is asked again (default %(default)s)")  # fmt: skip
    group.add_argument("--timeout", metavar="S", type=float, default=5.0,
        help="seconds a page waits for its source (default %(default)s)")  # fmt: skip
    group = add_group("instead of serving", "one of these")
    group.add_argument("--version", action="version", version="pegasus_http " + __version__)
    add = group.add_mutually_exclusive_group().add_argument
    add("--dump", action="store_true", help="print the state as JSON, for --state")
    add("--check", action="store_true", help="exit 0 if the source gives a good state, else 1")
    add("--routes", action="store_true", help="print the dispatch table")


def _check_options(options: argparse.Namespace) -> None:
    """ValueError where one is wrong. --listen becomes host and port."""
    if options.role is None and not (options.dump or options.check or options.routes):
        raise ValueError("--role is needed: meta or replica")
    sources = (options.cluster, options.state, options.standby_of)
    if options.role == "replica" and sources != (None, None, None):
        raise ValueError("a replica server has no meta pages: --role meta goes with a source")
    default = ":34801" if options.role == "replica" else ":34601"
    listen = default if options.listen is None else options.listen
    options.host, options.port = _listen_address(listen)
    _check_count(options.max_connections, "--max-connections", least=1)
    _check_seconds(options.timeout, "--timeout", 0.001)
    _check_seconds(options.max_age, "--max-age")
    if options.state == "":
        raise _bad_value("--state", "the name of a file, or - for standard input", options.state)
    if options.cluster is not None:
        for address in options.cluster.split(","):
            _check_address(address.strip(), "--cluster")
    if options.standby_of is not None:
        _check_redirect_target(options.standby_of, _join(options.host, options.port))


def _listen_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\s:/@\[\]]*)):([0-9]{1,5})", text)
    if match is not None and int(match.group(3)) < 65536:
        return match.group(1) or match.group(2) or "127.0.0.1", int(match.group(3))
    expected = "HOST:PORT, :PORT or [IPV6]:PORT with a port from 0 to 65535"
    if text.count(":") > 1 and re.fullmatch(r"\[?[0-9A-Fa-f:.]+\]?", text):
        expected = "[%s]:PORT" % text.strip("[]")
    raise _bad_value("--listen", expected, text)


def _check_redirect_target(text: str, own: str) -> None:
    """ValueError for what no client can be sent to."""
    import ipaddress

    _check_address(text, "--standby-of")
    if text == own:
        raise ValueError("--standby-of: this server itself listens on %s; name the primary" % own)
    host = text.rpartition(":")[0]
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        reserved = address.version == 4 and address.is_reserved  # broadcast is
        reachable = not (address.is_unspecified or address.is_multicast or reserved)
    except ValueError:  # a name, unless it looks like a number
        reachable = re.fullmatch(r"[0-9.]+|\[.*", host) is None
    if not reachable:
        raise _bad_value("--standby-of", "an address that clients can be sent to", text)


def _print(text: str, stream: Any) -> None:
    """All of `text`, or OSError. Past the buffer of a standard stream: what that keeps after an
    error comes up again at exit, which also waits for a thread that is stuck in it."""
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
    with contextlib.suppress(OSError, AttributeError):  # nobody reads, or it is closed
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


def _state_text(source: Any, dump: bool) -> str:
    """What --dump and --check print."""
    try:
        state = source() if callable(source) else source
    finally:
        if isinstance(source, LiveCluster):
            source.rest()
    if not isinstance(state, Cluster):
        raise ValueError("a standby or replica server has no cluster state to show; name a --state")
    if dump:
        import json

        return json.dumps(_cluster_to_json(state), indent=1, ensure_ascii=False)
    tables = [app.partition_count for app in state.apps if app.status == "AVAILABLE"]
    counts = (len(tables), sum(tables), len(state.nodes))
    return "ok: %d available tables, %d partitions, %d nodes" % counts


def _routes_text() -> str:
    lines = ["| path | roles | parameters | answer |", "|---|---|---|---|"]
    for path, route in sorted(ROUTES.items()):
        if route.listed:
            parameters = ", ".join((*route.parameters, "pretty"))
            row = (path, ", ".join(route.roles), parameters, _help(route))
            lines.append("| `%s` | %s | %s | %s |" % row)
    return "\n".join(lines)


_LOG_LINES = 1000  # lines that wait for whoever reads standard error: 100 KB
_LOG_SECONDS = 0.2  # what they are given at the end: nobody may be reading


@contextlib.contextmanager
def _logging(options: argparse.Namespace) -> Iterator[None]:
    """Our loggers write to standard error; in the end they are as they were."""
    import logging

    ours, access, handler = _logger(), _logger(".access"), _log_handler()
    levels = (ours.level, access.level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(options.log_level.upper())
    if options.access_log:
        access.setLevel("INFO")
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(levels[0])
        access.setLevel(levels[1])
        handler.close()


def _log_handler() -> logging.Handler:
    """Its lines are written to standard error by a daemon thread: whoever logs never waits for
    whoever reads. Lines above `_LOG_LINES` are dropped, and a later one says how many."""
    import logging
    import queue

    class Handler(logging.Handler):
        dropped = 0

        def emit(self, record: logging.LogRecord) -> None:
            if lines.qsize() >= _LOG_LINES:
                self.dropped += 1
                return
            is_access = record.name == "pegasus_http.access"
            self.put((record.getMessage() if is_access else self.format(record)) + "\n")

        def put(self, text: str) -> None:
            lost = "%d lines were dropped here, because nobody read standard error\n" % self.dropped
            lines.put(lost + text if self.dropped else text)
            self.dropped = 0

        def close(self) -> None:
            self.put("")
            lines.put(None)
            thread.join(_LOG_SECONDS)
            super().close()

    def write_lines(stream: Any) -> None:
        for text in iter(lines.get, None):
            with contextlib.suppress(OSError, AttributeError):  # nobody reads, or it is closed
                _print(text, stream)

    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    thread = threading.Thread(target=write_lines, args=[sys.stderr], daemon=True)
    thread.start()
    return Handler()


def _serve(options: argparse.Namespace, source: Any, label: str, restore: bool) -> None:
    import signal

    server = StatusServer(
        source, role=options.role, host=options.host, port=options.port, flat=options.flat,
        version=options.app_version, git_commit=options.git_commit, max_age=options.max_age,
        timeout=options.timeout, max_connections=options.max_connections,
        compress=not options.no_gzip, access_log=options.access_log,
    )  # fmt: skip
    with _logging(options), _caught_signals(restore) as caught:
        try:
            server.start()
        except (OSError, UnicodeError) as error:
            # The resolver's own numbers are below 0; a label of a bad length has none at all.
            number = max(getattr(error, "errno", None) or 0, 0)
            hint = _LISTEN_HINTS.get(number) or os.strerror(number).lower()
            where = _join(options.host, options.port)
            raise ValueError("cannot listen on %s: %s" % (where, hint)) from None
        with server:
            line = (server.url, options.role, label, os.getpid())
            _print("listening on %s role=%s source=%s pid=%d\n" % line, sys.stdout)
            if isinstance(source, LiveCluster):
                server._pages.warm_up(_warn_if_unreachable)
            number = 0
            while number not in (signal.SIGINT, signal.SIGTERM):
                number = caught.recv(1)[0]  # of any signal that the process handles
                if number == signal.SIGHUP and isinstance(source, StateFile):
                    source.reload()
                    server.refresh()
                elif number == signal.SIGHUP:
                    _logger().warning("SIGHUP is ignored: only --state FILE can be read again")


_LISTEN_HINTS = {
    0: "the host name does not resolve; 0.0.0.0 stands for all addresses of this machine",
    errno.EADDRINUSE: "the port is in use; end what uses it, or take a free one with port 0",
    errno.EACCES: "no permission; take a port from 1024 up",
    errno.EADDRNOTAVAIL: "not an address of this machine; 0.0.0.0 stands for all that it has",
    errno.EAFNOSUPPORT: "this machine has no IPv6; take an IPv4 address",
    errno.EINVAL: "a link-local address needs its zone, as in [fe80::1%eth0]:PORT",
    errno.EMFILE: "no file descriptor is left; raise the limit (ulimit -n)",
}  # fmt: skip


@contextlib.contextmanager
def _caught_signals(restore: bool) -> Iterator[socket.socket]:
    """A socket that receives a byte, its number, for each signal; an Event or a flag would sleep
    over a signal that strikes just before the wait. In the end all is as it was if `restore`; if
    not, signals are ignored: one more must not kill the interpreter while it shuts down."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("main() takes over the signals, so call it in the main thread of the"
                           " main interpreter; start() runs in any")  # fmt: skip
    inbox, outbox = socket.socketpair()
    with inbox, outbox:
        outbox.setblocking(False)
        wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.signal(number, lambda *_: None) for number in numbers]
        try:
            yield inbox
        finally:
            for number, handler in zip(numbers, handlers):
                signal.signal(number, (handler or signal.SIG_DFL) if restore else signal.SIG_IGN)
            signal.set_wakeup_fd(wakeup)


def _warn_if_unreachable(state: _State) -> None:
    if isinstance(state, PageError):
        _logger().warning("%s; serving, and asking again with the next request", state.hint_message)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``.

    argv: its arguments; None for those of the process, which is then taken to end with this call:
    signals are ignored from its return on. With arguments they are handled as before it. Returns
    the exit code: 0 after SIGINT or SIGTERM, 1 with one line on standard error when it cannot
    serve. Raises SystemExit: 2 for wrong usage, 0 after --help and --version. It serves in the main
    thread only, for it takes over the signals.
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
            _print(_state_text(source, options.dump) + "\n", sys.stdout)
        else:
            _serve(options, source, label, restore=argv is not None)
        return 0
    except (OSError, ValueError, PageError, RuntimeError, MemoryError) as error:
        return _fail(_failure_text(error))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
