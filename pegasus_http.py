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
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote_to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:  # argparse, json, logging and typing are twice the import of all the rest
    import argparse
    import json
    import logging
    from typing import Any, Dict, NamedTuple, Tuple, Union

    _State = Union["Cluster", "Standby", "PageError", None]
    _AnySource = Union["Cluster", "Standby", Callable[[], Any], "_Source", None]
    _Page = Union[Dict[str, Any], "_Pieces"]
    _Counts = Tuple["collections.Counter[Any]", "collections.Counter[Any]"]
    _Headers = Tuple[Tuple[str, str], ...]
    _Answer = Tuple[bytes, bytes, bool]  # head, body (empty where head holds it too), the last one
    _Needs = Tuple[Tuple[str, ...], str]  # parts of the state; the table's name where it matters
    _Reader = Callable[[bytes, int], Tuple[Any, int]]  # (data, position) -> (value, next position)

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
_IDLE_SECONDS = 30.0  # a connection without a request: longer than any poller's interval
_WRITE_SECONDS = 30.0  # from the start of an answer to its last byte: 300 KB at 10 KB/s
_DRAIN_BYTES = 64 * 1024  # unread input taken in before a close, so that no RST eats the answer
_DRAIN_SECONDS = 2.0  # the same by the clock
_STOP_SECONDS = 1.0  # what answers under way are given when the server stops
_GLANCE_SECONDS = 1.0  # what /version and /health wait for a source that has never answered
_PAUSE_SECONDS = 0.1  # no accept for so long when descriptors have run out: no spinning
_MAX_SECONDS = 86400.0  # of max_age and timeout, the latter travels as 32-bit milliseconds
_REPORT_SECONDS = 10.0  # the same trouble is logged no oftener: clients cannot fill a disk
_MAX_CONNECTIONS = 4096  # default of max_connections; an idle one costs about 2 KB
_BACKLOG = 1024  # a burst of 1,000 connections is answered in 31 ms; with 128 it takes a second
_RECV_BYTES = 16 * 1024  # bytes of one receive: 400 pipelined requests at most hold up others
_POLL_BYTES = 479  # of its first part: most requests, and no malloc (512 less a header), 3 % faster
_SEND_JOINED = 16 * 1024  # bytes of an answer that is sent as one piece and memoised as such
_MEMO_ENTRIES = 256  # request heads whose answers are memoised; a poller sends one or two
_MEMO_HEAD = 2 * 1024  # bytes of a head worth remembering: 256 of these are 512 KB
_PAGE_CACHE_BYTES = 32 * 1024 * 1024  # encoded pages kept with one state
_GZIP_BYTES = 1024  # smaller bodies fit into one packet anyway
_ASKED_ENTRIES = 1024  # answers of a source that are kept: one a table's page, at most
_STATE_BYTES = 64 * 1024 * 1024  # a state file: 5,000 tables x 64 partitions x 3 replicas
_FRAME_BYTES = 64 * 1024 * 1024  # an RPC answer: a table of 250,000 partitions
_BATCH = 64  # RPC requests under way (8 KB fit every socket buffer), accepts in a row, 503s told
_MAX_HOPS = 3  # forward addresses followed: the named leader may have lost its lease since
_SOURCE_IDLE_SECONDS = 30.0  # an unused connection to a meta server is closed after so long

# === 2. Checks and text ==========================================================================

# Patterns off the path of a request are compiled at their first use: 90 us of the import each.
_ADDRESS = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})"


@functools.lru_cache(maxsize=8192)
def _is_address(text: str) -> bool:
    match = re.fullmatch(_ADDRESS, text)
    return match is not None and 0 < int(match.group(1)) < 65536


@functools.lru_cache(maxsize=8192)
def _node_order(address: str) -> tuple[int, bytes, int]:
    """IPv4 addresses by number, then host names bytewise, each then by port."""
    host, _, port = address.rpartition(":")
    try:
        return 0, socket.inet_pton(socket.AF_INET, host), int(port)
    except OSError:
        return 1, host.encode(), int(port)


def _bad_value(where: str, expected: str, got: object) -> ValueError:
    if got is None or isinstance(got, (bool, int, float, str)):
        text = _encode(got)
    else:
        text = reprlib.repr(got)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return ValueError("%s: expected %s, got %s" % (where, expected, shown))


def _check_count(value: object, where: str, most: int = 2**31 - 1, least: int = 0) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _bad_value(where, "a whole number from %d to %d" % (least, most), value)


def _check_seconds(value: object, where: str, least: float = 0.0) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= _MAX_SECONDS:  # type: ignore[operator]
        raise _bad_value(where, "seconds from %g to %g" % (least, _MAX_SECONDS), value)


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise _bad_value(where, "a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad_value(where, "text that UTF-8 can encode", ascii(value)) from None


def _check_choice(value: object, where: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise _bad_value(where, "one of " + ", ".join(choices), value)


def _check_address(value: object, where: str, none: str = "") -> None:
    """`none` is " or null" where no address at all is fine too."""
    if not (none and value is None) and not (isinstance(value, str) and _is_address(value)):
        raise _bad_value(where, '"host:port"' + none, value)


def _check_unique(where: str, field: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        first: dict[object, int] = {}
        for n, value in enumerate(values):
            if first.setdefault(value, n) != n:
                raise ValueError("%s[%d].%s: %r is that of %s[%d] already"
                                 % (where, n, field, value, where, first[value]))  # fmt: skip


@functools.lru_cache(maxsize=1)
def _encoder() -> json.JSONEncoder:
    import json  # here: 2 ms of the import of this module

    return json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _encode(value: object) -> str:
    """As JSON. Non-ASCII text stays as it is, like in the real server's answers."""
    return _encoder().encode(value)


def _escape(text: str) -> str:
    return _encode(text)[1:-1]


def _local_time(second: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


# === 3. Cluster model ============================================================================

_APP_STATUSES = (  # enum app_status of Pegasus, without its AS_, in the order of its numbers
    "INVALID",
    "AVAILABLE",
    "CREATING",
    "CREATE_FAILED",
    "DROPPING",
    "DROP_FAILED",
    "DROPPED",
    "RECALLING",
)
_LIVE_STATUSES = ("AVAILABLE", "CREATING", "DROPPING", "RECALLING")  # their names are unique
_NODE_STATUSES = ("ALIVE", "UNALIVE")
_LAST_SECOND = 253402300799 - 86400  # of year 9999, whatever the time zone


class Partition(NamedTuple):
    """One partition of a table: who serves it.

    ballot: its configuration's version, -1 for a split child that is not ready yet.
    max_replica_count: replicas it should have; None is the table's own figure.
    primary: "host:port" of the primary replica's server, None without one.
    secondaries: a tuple of "host:port", in the meta server's order.

    Names as in Pegasus's partition_configuration. Checked by `App`. Immutable.
    """

    ballot: int = 0
    max_replica_count: int | None = None
    primary: str | None = None
    secondaries: tuple[str, ...] = ()


def _check_partition(p: object, where: str) -> None:
    """64,000 of these are a normal cluster: the checks are inline, the text only when needed."""
    if not isinstance(p, Partition):
        raise _bad_value(where, "a Partition", p)
    if type(p.ballot) is not int or not -1 <= p.ballot < 2**63:
        raise _bad_value(where + ".ballot", "a whole number from -1 to 2**63 - 1", p.ballot)
    if p.max_replica_count is not None:
        _check_count(p.max_replica_count, where + ".max_replica_count")
    if p.primary is not None and not (isinstance(p.primary, str) and _is_address(p.primary)):
        raise _bad_value(where + ".primary", '"host:port" or null', p.primary)
    if not isinstance(p.secondaries, tuple):
        raise _bad_value(where + ".secondaries", 'a tuple of "host:port"', p.secondaries)
    for n, address in enumerate(p.secondaries):
        if not (isinstance(address, str) and _is_address(address)):
            raise _bad_value("%s.secondaries[%d]" % (where, n), '"host:port"', address)


class _AppFields(NamedTuple):
    app_id: int
    app_name: str
    partitions: tuple[Partition, ...] | None
    partition_count: int
    max_replica_count: int
    status: str
    app_type: str
    is_stateful: bool
    envs: tuple[tuple[str, str], ...]
    create_second: int
    drop_second: int
    expire_second: int


class App(_AppFields):
    """One table. Names as in Pegasus's app_info.

    app_id, app_name: its number and name.
    partitions: `Partition` objects by index; None when they are not known.
    partition_count: their number; only needed when `partitions` is None.
    max_replica_count: replicas a partition should have.
    status: one of INVALID, AVAILABLE, CREATING, CREATE_FAILED, DROPPING, DROP_FAILED, DROPPED,
        RECALLING. Only AVAILABLE tables are on the list pages.
    app_type, is_stateful: shown as they are.
    envs: the table's environment, a mapping of strings.
    create_second, drop_second, expire_second: Unix time in seconds, 0 for unknown or never.

    Raises ValueError, whose text begins with the offending field. Immutable. Share unchanged tables
    between states: what pages computed of the same objects is not computed again.
    """

    def __new__(
        cls,
        app_id: int,
        app_name: str,
        partitions: Iterable[Partition] | None = None,
        partition_count: int | None = None,
        max_replica_count: int = 3,
        status: str = "AVAILABLE",
        app_type: str = "pegasus",
        is_stateful: bool = True,
        envs: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        create_second: int = 0,
        drop_second: int = 0,
        expire_second: int = 0,
    ) -> App:
        """Check every field and fill in what may be left out."""
        known = None if partitions is None else tuple(partitions)
        if partition_count is None:
            partition_count = len(known or ())
        pairs = tuple(sorted(dict(envs).items()))
        self = super().__new__(
            cls, app_id, app_name, known, partition_count, max_replica_count, status, app_type,
            is_stateful, pairs, create_second, drop_second, expire_second,
        )  # fmt: skip
        self._check()
        return self

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> App:  # type: ignore[override,unused-ignore]
        """What `_replace` builds on: through the checks."""
        return cls(*iterable)

    def _with_decoded(self, partitions: tuple[Partition, ...]) -> App:
        """This table with partitions that the decoder has checked: an eighth of the time of
        reading a large cluster was to check them again (measured)."""
        fields = [*self[:2], partitions, len(partitions), *self[4:]]
        return tuple.__new__(App, fields)

    def _check(self) -> None:
        _check_count(self.app_id, "app_id")
        _check_text(self.app_name, "app_name")
        if not self.app_name:
            raise _bad_value("app_name", "at least one character", self.app_name)
        _check_count(self.partition_count, "partition_count")
        for n, partition in enumerate(self.partitions or ()):
            _check_partition(partition, "partitions[%d]" % n)
        if self.partitions is not None and len(self.partitions) != self.partition_count:
            expected = "%d, the number of partitions" % len(self.partitions)
            raise _bad_value("partition_count", expected, self.partition_count)
        _check_count(self.max_replica_count, "max_replica_count")
        _check_choice(self.status, "status", _APP_STATUSES)
        _check_text(self.app_type, "app_type")
        if not isinstance(self.is_stateful, bool):
            raise _bad_value("is_stateful", "true or false", self.is_stateful)
        for key, value in self.envs:
            _check_text(key, "envs")
            _check_text(value, "envs[%r]" % key)
        for name in ("create_second", "drop_second", "expire_second"):
            _check_count(getattr(self, name), name, _LAST_SECOND)

    def _maximum(self, partition: Partition) -> int:
        own = partition.max_replica_count
        return self.max_replica_count if own is None else own

    def _health(self) -> tuple[int, int, int]:
        """Partitions that are fully healthy, write-unhealthy and read-unhealthy."""
        fully = write = read = 0
        for _, maximum, primary, secondaries in self.partitions or ():
            if primary is None:
                write += 1
                read += 1
            elif len(secondaries) + 1 >= (self.max_replica_count if maximum is None else maximum):
                fully += 1
            elif not secondaries:
                write += 1
        return fully, write, read


class Node(NamedTuple):
    """One replica server. address: "host:port"; status: ALIVE or UNALIVE. Checked by `Cluster`."""

    address: str
    status: str = "ALIVE"


def _count_replicas(apps: Iterable[App]) -> _Counts:
    """Primaries and secondaries by node, over the available tables (None: no primary)."""
    primaries: collections.Counter[Any] = collections.Counter()
    secondaries: collections.Counter[Any] = collections.Counter()
    for app in apps:
        if app.partitions and app.status == "AVAILABLE":
            primaries.update([p.primary for p in app.partitions])
            chained = itertools.chain.from_iterable([p.secondaries for p in app.partitions])
            secondaries.update(chained)
    return primaries, secondaries


def _difference(before: Sequence[App], now: Sequence[App]) -> tuple[list[App], list[App]]:
    """The tables, as objects, that only `before` has, and those that only `now` has."""
    if len(before) == len(now):  # what usually changes is in its place: 30 ns a table
        changed = map(operator.is_not, before, now)
        pairs = list(itertools.compress(zip(before, now), changed))
        before, now = [old for old, _ in pairs], [new for _, new in pairs]
    gone, new = dict(zip(map(id, before), before)), dict(zip(map(id, now), now))
    return (
        [app for key, app in gone.items() if key not in new],
        [app for key, app in new.items() if key not in gone],
    )


_GENERAL_ROW = (
    '"%d":{"app_id":"%d","status":"%s","app_name":"%s","app_type":"%s","partition_count":"%d",'
    '"replica_count":"%d","is_stateful":"%s","create_time":"%s","drop_time":"-",'
    '"drop_expire":"-","envs_count":"%d"}'
)
_HEALTHY_ROW = (
    '"%d":{"app_id":"%d","app_name":"%s","partition_count":"%d","fully_healthy":"%d",'
    '"unhealthy":"%d","write_unhealthy":"%d","read_unhealthy":"%d"}'
)
_BLOCK_BITS = 4  # 16 ids: at 1,000 tables one block is written in the time that all are joined


class _Block:
    """Available tables of neighbouring ids, and their rows on /meta/apps. When a table changes,
    only its block is written again: 0.5 ms instead of 12 for the page of 1,000 (measured)."""

    def __init__(self, apps: Iterable[App]) -> None:
        self.apps = sorted(apps, key=operator.itemgetter(0))  # by app_id

    @functools.cached_property
    def general(self) -> bytes:
        rows = []
        for app in self.apps:
            created = _local_time(app.create_second) + ".000" if app.create_second else "-"
            rows.append(_GENERAL_ROW % (
                app.app_id, app.app_id, app.status, _escape(app.app_name), _escape(app.app_type),
                app.partition_count, app.max_replica_count,
                "true" if app.is_stateful else "false", created, len(app.envs),
            ))  # fmt: skip
        return ",".join(rows).encode()

    @functools.cached_property
    def healthy(self) -> tuple[bytes, list[int]]:
        """Rows, and how many tables are fully healthy, unhealthy, write- and read-unhealthy."""
        rows, tables = [], [0, 0, 0, 0]
        for app in self.apps:
            if app.partitions is not None:
                fully, write, read = app._health()
                others = app.partition_count - fully
                rows.append(_HEALTHY_ROW % (
                    app.app_id, app.app_id, _escape(app.app_name), app.partition_count, fully,
                    others, write, read,
                ))  # fmt: skip
                for n, counts in enumerate((not others, others, write, read)):
                    tables[n] += bool(counts)
        return ",".join(rows).encode(), tables


class _PageCache:
    """Encoded pages of one state, bounded by bytes: what does not fit empties it."""

    def __init__(self) -> None:
        self._pages: dict[object, Response] = {}
        self._used = 0
        self.get = self._pages.get

    def keep(self, key: object, page: Response) -> None:
        if self._used + len(page.body) > _PAGE_CACHE_BYTES:
            self._pages.clear()
            self._used = 0
        if len(page.body) <= _PAGE_CACHE_BYTES:
            self._used += len(page.body)
            self._pages[key] = page


class _ClusterFields(NamedTuple):
    apps: tuple[App, ...]
    nodes: tuple[Node, ...]
    meta_servers: str
    primary_meta_server: str
    zookeeper_hosts: str
    zookeeper_root: str
    meta_function_level: str
    balance_operation_count: str
    primary_replica_count_stddev: str | None
    total_replica_count_stddev: str | None
    cluster_name: str | None
    version: str | None
    git_commit: str | None


class Cluster(_ClusterFields):
    """What the primary meta server knows. Names as in Pegasus's cluster_info.

    apps, nodes: iterables of `App` (dropped ones may be among them) and `Node`, in any order.
    meta_servers: "host:port" texts, or one text of them joined by commas.
    primary_meta_server, zookeeper_hosts, zookeeper_root, meta_function_level, cluster_name: texts.
    balance_operation_count: (move_pri, copy_pri, copy_sec), or the text that the server made.
    primary_replica_count_stddev, total_replica_count_stddev: the server's own figures as text
        ("0.47"); None computes them from the partitions (rdsn-rpc 7.6).
    version, git_commit: what /version shows unless the server is told otherwise.

    Raises ValueError, whose text begins with the place (`apps[3].app_id`). Immutable: what the
    pages compute is kept with the object and is right for as long as it lives.
    """

    def __new__(
        cls,
        apps: Iterable[App] = (),
        nodes: Iterable[Node] = (),
        meta_servers: str | Iterable[str] = "",
        primary_meta_server: str = "",
        zookeeper_hosts: str = "",
        zookeeper_root: str = "",
        meta_function_level: str = "lively",
        balance_operation_count: str | tuple[int, int, int] = (0, 0, 0),
        primary_replica_count_stddev: str | None = None,
        total_replica_count_stddev: str | None = None,
        cluster_name: str | None = None,
        version: str | None = None,
        git_commit: str | None = None,
    ) -> Cluster:
        """Check every field and bring the alternatives into one form."""
        if not isinstance(meta_servers, str):
            meta_servers = ",".join(meta_servers)
        if not isinstance(balance_operation_count, str):
            move_pri, copy_pri, copy_sec = balance_operation_count
            balance_operation_count = "move_pri=%d,copy_pri=%d,copy_sec=%d,total=%d" % (
                move_pri, copy_pri, copy_sec, move_pri + copy_pri + copy_sec,
            )  # fmt: skip
        self = super().__new__(
            cls, tuple(apps), tuple(nodes), meta_servers, primary_meta_server, zookeeper_hosts,
            zookeeper_root, meta_function_level, balance_operation_count,
            primary_replica_count_stddev, total_replica_count_stddev, cluster_name, version,
            git_commit,
        )  # fmt: skip
        self._check()
        return self

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Cluster:  # type: ignore[override,unused-ignore]
        """What `_replace` builds on: through the checks."""
        return cls(*iterable)

    def _check(self) -> None:
        for n, app in enumerate(self.apps):
            if not isinstance(app, App):
                raise _bad_value("apps[%d]" % n, "an App", app)
        _check_unique("apps", "app_id", [app.app_id for app in self.apps])
        names = [app.app_name if app.status in _LIVE_STATUSES else n
                 for n, app in enumerate(self.apps)]  # fmt: skip
        _check_unique("apps", "app_name", names)
        for n, node in enumerate(self.nodes):
            if not isinstance(node, Node):
                raise _bad_value("nodes[%d]" % n, "a Node", node)
            _check_address(node.address, "nodes[%d].address" % n)
            _check_choice(node.status, "nodes[%d].status" % n, _NODE_STATUSES)
        _check_unique("nodes", "address", [node.address for node in self.nodes])
        for name, value in zip(self._fields[2:], self[2:]):
            if value is not None or name not in _OPTIONAL_INFO:
                _check_text(value, name)

    def _inherit(self, older: Cluster) -> None:
        """Take over what `older` has computed: the same then costs only what changed since."""
        self._base.update(older._base)
        for name in ("_replicas", "_blocks"):
            if name in older.__dict__:
                self._base[name] = (older.apps, older.__dict__[name])

    @functools.cached_property
    def _base(self) -> dict[str, tuple[tuple[App, ...], Any]]:
        """By what is computed: the tables it was last computed of, and what came out."""
        return {}

    @functools.cached_property
    def _replicas(self) -> _Counts:
        """Primaries and secondaries by node. 64,000 partitions: 15 ms afresh, 0.2 ms when one table
        of 1,000 has changed (measured)."""
        apps, counted = self._base.pop("_replicas", ((), _count_replicas(())))
        gone, new = map(_count_replicas, _difference(apps, self.apps))
        primaries, secondaries = (counter.copy() for counter in counted)
        for total, less, more in zip((primaries, secondaries), gone, new):
            total.subtract(less)
            total.update(more)
            for node in [node for node in less.keys() - more.keys() if not total[node]]:
                del total[node]  # else every address that ever was would stay
        return primaries, secondaries

    @functools.cached_property
    def _blocks(self) -> list[_Block]:
        """The available tables in blocks, by ascending app id."""
        apps, blocks = self._base.pop("_blocks", ((), ()))
        gone, new = _difference(apps, self.apps)
        changed: dict[int, list[App]] = {app.app_id >> _BLOCK_BITS: [] for app in (*gone, *new)}
        for app in new:
            if app.status == "AVAILABLE":
                changed[app.app_id >> _BLOCK_BITS].append(app)
        lost = set(map(id, gone))
        found = []
        for block in blocks:
            number = block.apps[0].app_id >> _BLOCK_BITS
            if number in changed:
                changed[number] += [app for app in block.apps if id(app) not in lost]
            else:
                found.append(block)
        found += [_Block(some) for some in changed.values() if some]
        return sorted(found, key=lambda block: block.apps[0].app_id)

    @functools.cached_property
    def _by_name(self) -> dict[str, App]:
        """The tables that have the right to their name; dropped ones may share it."""
        return {app.app_name: app for app in self.apps if app.status in _LIVE_STATUSES}

    @functools.cached_property
    def _pages(self) -> _PageCache:
        return _PageCache()


_OPTIONAL_INFO = frozenset(Cluster._fields[8:])


class _StandbyFields(NamedTuple):
    primary: str | None


class Standby(_StandbyFields):
    """The state of a meta server that is not the primary.

    primary: "host:port" that /meta pages redirect to; None while none is known (503).
    Raises ValueError for anything else. Immutable.
    """

    def __new__(cls, primary: str | None) -> Standby:
        """Check the address: it goes into a Location field."""
        _check_address(primary, "primary", " or null")
        return super().__new__(cls, primary)


# === 4. Pages ====================================================================================

class PageError(Exception):
    """An answer that is an error, in Pegasus's form. Pages and sources may raise it.

    status: HTTP status code. error: Pegasus error code, such as "ERR_BUSY". hint_message: one
    sentence that says what to do. headers: further (name, value) pairs of the answer.
    """

    def __init__(
        self, status: int, error: str, hint_message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Keep the four parts as attributes of the same names."""
        super().__init__(status, error, hint_message)
        self.status, self.error, self.hint_message = status, error, hint_message
        self.headers = headers


class _Pieces(list):  # type: ignore[type-arg]
    """A page that is JSON already: bytes to be joined."""


_RETRY_AFTER = (("Retry-After", "1"),)


def _not_active(hint: str) -> PageError:
    return PageError(503, "ERR_SERVICE_NOT_ACTIVE", hint, _RETRY_AFTER)


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


@functools.lru_cache(maxsize=1)
def _process_start(pid: int) -> float:
    """Unix time at which process `pid` (this one; a forked child has its own) started."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as stat, open("/proc/uptime", "rb") as uptime:
            # proc(5): field 22, counted behind the command name, which may hold blanks
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
            age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, ValueError, IndexError):
        return _IMPORTED


_IMPORTED = time.time()


def _index(state: _State, query: _Query, settings: _Settings) -> _Page:
    """This list."""
    return {
        path: _help(route) for path, route in sorted(ROUTES.items()) if settings.role in route.roles
    }


def _version(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Version and commit of the server."""
    of_state = (state.version, state.git_commit) if isinstance(state, Cluster) else (None, None)
    page: dict[str, Any] = {
        "Version": settings.version or of_state[0] or __version__,
        "GitCommit": settings.git_commit or of_state[1] or "unknown",
    }
    return page if settings.flat else {"Version": page}


def _start_time(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Start of the process, in local time."""
    page: dict[str, Any] = {"RecentStartTime": _local_time(_process_start(os.getpid()))}
    return page if settings.flat else {"RecentStartTime": page}


def _health(state: _State, query: _Query, settings: _Settings) -> _Page:
    """Whether the server is up; with primary, 503 unless it is the primary meta server."""
    primary = settings.role == "meta" and isinstance(state, Cluster)
    if query.primary and not primary:
        raise _not_active("this server is not the primary meta server")
    return {"status": "ok", "role": settings.role, "primary": "true" if primary else "false"}


def _find_app(cluster: Cluster, name: str) -> App:
    app = cluster._by_name.get(name)
    if app is None:
        raise PageError(404, "ERR_OBJECT_NOT_FOUND", 'table not found: "%s"' % name)
    if app.status in ("CREATING", "RECALLING"):
        hint = 'table is being created or recalled: "%s"' % name
        raise PageError(503, "ERR_BUSY_CREATING", hint, _RETRY_AFTER)
    if app.status == "DROPPING":
        hint = 'table is being dropped: "%s"' % name
        raise PageError(503, "ERR_BUSY_DROPPING", hint, _RETRY_AFTER)
    return app


def _meta_app(state: _State, query: _Query, settings: _Settings) -> _Page:
    """One table: its partitions, their replicas and their health."""
    cluster = _as_cluster(state)
    app = _find_app(cluster, query.name)
    maximum = app.max_replica_count
    if app.partitions is not None:
        maximum = app._maximum(app.partitions[0]) if app.partitions else 0
    page: dict[str, Any] = {
        "general": {
            "app_name": app.app_name,
            "app_id": str(app.app_id),
            "partition_count": str(app.partition_count),
            "max_replica_count": str(maximum),
        }
    }
    if query.detail:
        page.update(_app_detail(app))
    return page


def _app_detail(app: App) -> dict[str, Any]:
    if app.partitions is None:
        raise _not_active('the partitions of "%s" are not known' % app.app_name)
    fully, write, read = app._health()
    return {
        "replicas": {
            str(pidx): {
                "pidx": str(pidx),
                "ballot": str(p.ballot),
                "replica_count": "%d/%d"
                % ((p.primary is not None) + len(p.secondaries), app._maximum(p)),
                "primary": p.primary or "-",
                "secondaries": "[" + ",".join(p.secondaries) + "]",
            }
            for pidx, p in enumerate(app.partitions)
        },
        "nodes": _app_nodes(app),
        "healthy": {
            "fully_healthy_partition_count": str(fully),
            "unhealthy_partition_count": str(app.partition_count - fully),
            "write_unhealthy_partition_count": str(write),
            "read_unhealthy_partition_count": str(read),
        },
    }


def _app_nodes(app: App) -> dict[str, Any]:
    primaries, secondaries = _count_replicas([app])
    del primaries[None]
    rows = [
        (node, primaries[node], secondaries[node])
        for node in sorted(primaries.keys() | secondaries.keys(), key=_node_order)
    ]
    rows.append(("total", sum(primaries.values()), sum(secondaries.values())))
    return {
        node: {"node": node, "primary": str(p), "secondary": str(s), "total": str(p + s)}
        for node, p, s in rows
    }


def _meta_apps(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All available tables; with detail, their health."""
    blocks = _as_cluster(state)._blocks
    summary = {"total_app_count": str(sum([len(block.apps) for block in blocks]))}
    page = [b'{"general_info":{', *_commas([block.general for block in blocks])]
    if query.detail and blocks:
        page += [b'},"healthy_info":{', *_commas([block.healthy[0] for block in blocks])]
        names = ("fully_healthy", "unhealthy", "write_unhealthy", "read_unhealthy")
        for name, *tables in zip(names, *[block.healthy[1] for block in blocks]):
            summary[name + "_app_count"] = str(sum(tables))
    return _Pieces([*page, b'},"summary":', _encode(summary).encode(), b"}"])


def _commas(pieces: list[bytes]) -> list[bytes]:
    """The pieces that are not empty, with commas between them."""
    return [part for piece in pieces if piece for part in (b",", piece)][1:]


def _meta_nodes(state: _State, query: _Query, settings: _Settings) -> _Page:
    """All replica servers; with detail, their replicas."""
    cluster = _as_cluster(state)
    rows = []
    for address, status in sorted(cluster.nodes, key=lambda node: _node_order(node.address)):
        row = '"%s":{"address":"%s","status":"%s"' % (address, address, status)
        if query.detail:
            primary, secondary = (counts[address] for counts in cluster._replicas)
            row += ',"replica_count":"%d","primary_count":"%d","secondary_count":"%d"' % (
                primary + secondary, primary, secondary,
            )  # fmt: skip
        rows.append(row + "}")
    alive = sum([node.status == "ALIVE" for node in cluster.nodes])
    summary = {
        "total_node_count": str(len(rows)),
        "alive_node_count": str(alive),
        "unalive_node_count": str(len(rows) - alive),
    }
    page = '{"details":{%s},"summary":%s}' % (",".join(rows), _encode(summary))
    return _Pieces([page.encode()])


def _meta_cluster(state: _State, query: _Query, settings: _Settings) -> _Page:
    """The cluster: meta servers, ZooKeeper, function level, balance."""
    cluster = _as_cluster(state)
    primary_sd, total_sd = cluster[8:10]
    if primary_sd is None or total_sd is None:
        computed = _stddevs(cluster)
        primary_sd, total_sd = primary_sd or computed[0], total_sd or computed[1]
    page: dict[str, Any] = {
        "meta_servers": cluster.meta_servers,
        "primary_meta_server": cluster.primary_meta_server,
        "zookeeper_hosts": cluster.zookeeper_hosts,
        "zookeeper_root": cluster.zookeeper_root,
        "meta_function_level": cluster.meta_function_level,
        "balance_operation_count": cluster.balance_operation_count,
        "primary_replica_count_stddev": primary_sd,
        "total_replica_count_stddev": total_sd,
    }
    return page if settings.flat else {"cluster_info": page}


def _stddevs(cluster: Cluster) -> tuple[str, str]:
    """Of primaries and of all replicas, over the alive nodes that hold any (rdsn-rpc 7.6).

    Bessel's correction is the server's: it applies while a dead node still holds some.
    """
    primaries, secondaries = cluster._replicas
    counts = {
        status: [
            (primaries[node.address], primaries[node.address] + secondaries[node.address])
            for node in cluster.nodes
            if node.status == status
        ]
        for status in _NODE_STATUSES
    }
    holders = [both for both in counts["ALIVE"] if both[1]]
    primary, total = (
        _stddev([both[n] for both in holders], any(both[n] for both in counts["UNALIVE"]))
        for n in (0, 1)
    )
    return primary, total


def _stddev(counts: Sequence[int], sample: bool) -> str:
    """By hand and in the server's order of operations: `statistics` rounds differently, and
    importing it would hold up the loop for 10 ms (measured)."""
    if len(counts) < 2:
        return "0.00"
    mean = sum(counts) / len(counts)
    squares = sum((count - mean) ** 2 for count in counts)
    deviation = math.sqrt(squares / (len(counts) - sample))
    return "%.2f" % (math.floor((deviation + 0.005) * 100) / 100)


def _as_cluster(state: _State) -> Cluster:
    """The cluster, or the reason why there is none."""
    if isinstance(state, Cluster):
        return state
    if isinstance(state, PageError):
        raise state.with_traceback(None)  # many requests share it: it must not collect frames
    raise _not_active("no state has been published yet")


# === 5. Routes ===================================================================================

class _Route(NamedTuple):
    """One row of the dispatch table.

    page: (state, query, settings) -> JSON-able; the first line of its docstring is the help text.
    parameters: query parameters besides `pretty`. roles: who serves it.
    needs: the parts of a cluster's state it shows; detail_needs: those that `detail` adds.
    waits: whether it waits for a source; if not, what was last known will do.
    """

    page: Callable[[_State, _Query, _Settings], _Page]
    parameters: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("meta",)
    needs: tuple[str, ...] = ()
    detail_needs: tuple[str, ...] = ()
    waits: bool = True


_BOTH = ("meta", "replica")

#: The path-dispatch table: path -> `_Route`. 404, 405, OPTIONS, `/` and --routes come from it.
ROUTES: dict[str, _Route] = {
    "/": _Route(_index, (), _BOTH),
    "/version": _Route(_version, (), _BOTH, ("server_info",), waits=False),
    "/startTime": _Route(_start_time, (), _BOTH),
    "/recentStartTime": _Route(_start_time, (), _BOTH),
    "/health": _Route(_health, ("primary",), _BOTH, ("apps",), waits=False),
    "/meta/app": _Route(_meta_app, ("name", "detail"), needs=("apps", "partitions")),
    "/meta/apps": _Route(_meta_apps, ("detail",), needs=("apps",), detail_needs=("partitions",)),
    "/meta/nodes": _Route(
        _meta_nodes, ("detail",), needs=("nodes",), detail_needs=("apps", "partitions")
    ),
    "/meta/cluster": _Route(_meta_cluster, needs=("cluster_info",)),
}

_ALLOW = (("Allow", "GET, HEAD, OPTIONS"),)
_OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT")  # known, never allowed
_NO_STORE = (("Cache-Control", "no-store"),)
_NO_SNIFF = (("X-Content-Type-Options", "nosniff"),)


class Response(NamedTuple):
    """One answer: status code, (name, value) header pairs without Date and Server, body bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _PageRequest(NamedTuple):
    """A request that is in order: which page, with which parameters."""

    path: str
    query: _Query

    @property
    def route(self) -> _Route:
        return ROUTES[self.path]

    @property
    def needs(self) -> tuple[str, ...]:
        route = self.route
        return route.needs + route.detail_needs if self.query.detail else route.needs


def _help(route: _Route) -> str:
    """First line of the page's docstring; none is left under -OO."""
    return (route.page.__doc__ or "").partition("\n")[0]


@functools.lru_cache(maxsize=_MEMO_ENTRIES)
def _resolve(method: str, target: str, role: str) -> _PageRequest:
    """Which page `target` asks for; PageError when that is none or not in order."""
    if method not in ("GET", "HEAD", "OPTIONS", *_OTHER_METHODS):
        raise PageError(501, "ERR_INVALID_DATA", "unknown method: " + method)
    if target == "*" and method == "OPTIONS":  # RFC 9110, 9.3.7: about the server as a whole
        return _PageRequest("/", _Query())
    raw_path, _, raw_query = _origin_form(target).partition("?")
    path = _parse_path(raw_path)
    route = ROUTES.get(path)
    if route is None:
        raise PageError(404, "ERR_HANDLER_NOT_FOUND", 'service not found for "%s"' % path)
    if role not in route.roles:
        hint = '"%s" is served by meta servers; this is a replica server' % path
        raise PageError(404, "ERR_HANDLER_NOT_FOUND", hint)
    if method == "OPTIONS":
        return _PageRequest("/", _Query())  # whose answer needs no source
    if method in _OTHER_METHODS:
        hint = "method %s is not allowed for %s" % (method, path)
        raise PageError(405, "ERR_HANDLER_NOT_FOUND", hint, _ALLOW)
    return _PageRequest(path, _parse_query(raw_query, route.parameters))


_ORIGIN_FORM = r"/[!\"$-~]*"  # visible ASCII without "#", which starts a fragment


def _origin_form(target: str) -> str:
    """The target without scheme and authority (RFC 9112, 3.2.2: a server accepts both forms)."""
    absolute = re.match(r"(?i)https?://[^/?]+", target)
    origin = target[absolute.end() :] if absolute else target
    if absolute and not origin.startswith("/"):
        origin = "/" + origin
    if not re.fullmatch(_ORIGIN_FORM, origin):
        raise PageError(400, "ERR_INVALID_DATA", 'the request target is not a path: "%s"' % target)
    return origin


def _unescape(text: str) -> str:
    """Percent-decoded as UTF-8; ValueError for what is malformed."""
    if "%" not in text and text.isascii():
        return text
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("malformed escape")
    return unquote_to_bytes(text).decode("utf-8")


def _parse_path(raw: str) -> str:
    """Split, then decoded; empty segments collapse. An escaped slash stays escaped: a name."""
    try:
        segments = [_unescape(segment) for segment in raw.split("/") if segment]
    except ValueError:
        hint = 'malformed escape in the path: "%s"' % raw
        raise PageError(400, "ERR_INVALID_DATA", hint) from None
    return "/" + "/".join([segment.replace("/", "%2F") for segment in segments])


def _parse_query(raw: str, parameters: Sequence[str]) -> _Query:
    """Contract section 3: split at "&", then at the first "=", then decode; "+" stays a plus."""
    values: dict[str, Any] = {}
    for piece in filter(None, raw.split("&")):
        raw_name, equals, raw_value = piece.partition("=")
        try:
            name, value = _unescape(raw_name), _unescape(raw_value)
        except ValueError:
            raise _invalid('malformed escape in parameter: "%s"' % piece) from None
        if name != "pretty" and name not in parameters:
            raise _invalid("unknown parameter: " + name)
        if name in values:
            raise _invalid("duplicate parameter: " + name)
        values[name] = value if name == "name" else _flag(name, value if equals else "true")
    if "name" in parameters and not values.get("name"):
        raise _invalid("app name shouldn't be empty")
    return _Query(**values)


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise _invalid('invalid %s: "%s", expected true or false' % (name, value))
    return value == "true"


def _invalid(hint: str) -> PageError:
    return PageError(400, "ERR_INVALID_PARAMETERS", hint)


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

    Never raises for bad requests: they are answered as contract section 4 says. Thread-safe.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields = {name.lower(): value for name, value in pairs}
    settings = _Settings(role, version, git_commit, flat, compress, "")
    try:
        call = _resolve(method, target, role)
    except PageError as error:
        return _error_response(error, method)
    return _respond(state, method, target, fields, settings, call)


def _respond(
    state: _State,
    method: str,
    target: str,
    fields: Mapping[str, str],
    settings: _Settings,
    call: _PageRequest,
) -> Response:
    if method == "OPTIONS":
        return Response(204, _ALLOW + _NO_SNIFF, b"")
    try:
        if isinstance(state, Standby) and call.path.startswith("/meta/"):
            response = _redirect(state, target, fields, settings)
        else:
            response = _page_response(state, fields, settings, call)
    except PageError as error:
        return _error_response(error, method)
    condition = fields.get("if-none-match")
    if condition and _etag_matches(condition, dict(response.headers).get("ETag", "")):
        dropped = ("Content-Type", "Content-Length", "Content-Encoding")  # RFC 9110, 15.4.5
        kept = [pair for pair in response.headers if pair[0] not in dropped]
        return Response(304, tuple(kept), b"")
    return response._replace(body=b"") if method == "HEAD" else response


def _redirect(
    state: Standby, target: str, fields: Mapping[str, str], settings: _Settings
) -> Response:
    """To the primary, built from the raw target: whatever it holds stays behind the authority."""
    primary = state.primary
    if primary is None:
        raise _not_active("no primary meta server is known")
    host = fields.get("host", "").lower()
    if primary.lower() in (settings.address.lower(), host, host + ":80"):
        raise _not_active("the primary meta server is not known: it cannot be this standby")
    hint = "the primary meta server is %s" % primary
    location = ("Location", "http://%s%s" % (primary, _origin_form(target)))
    return _error_response(PageError(307, "ERR_FORWARD_TO_OTHERS", hint, (location,)), "GET")


def _page_response(
    state: _State, fields: Mapping[str, str], settings: _Settings, call: _PageRequest
) -> Response:
    gzipped = settings.compress and _accepts_gzip(fields.get("accept-encoding", ""))
    vary = (("Vary", "Accept-Encoding"),) if settings.compress else ()
    if not call.path.startswith("/meta/"):
        headers = _NO_STORE if call.path == "/health" else ()
        body, _ = _body(call.route.page(state, call.query, settings), call)
        return _encoded(body, headers, vary, gzipped)
    cluster = _as_cluster(state)
    key = (call.path, call.query, settings.flat, settings.compress, gzipped)
    response = cluster._pages.get(key)
    if response is None:
        if gzipped:
            plain = _page_response(cluster, {}, settings, call)
            body, tag = plain.body, dict(plain.headers)["ETag"].strip('"')
        else:
            body, tag = _body(call.route.page(cluster, call.query, settings), call)
        response = _encoded(body, (("Cache-Control", "no-cache"),), vary, gzipped, tag)
        cluster._pages.keep(key, response)
    return response


def _body(page: _Page, call: _PageRequest) -> tuple[bytes, str]:
    """The page's bytes, and an entity tag for them."""
    if call.query.pretty:
        import json

        if isinstance(page, _Pieces):
            page = json.loads(b"".join(page))
        page = _Pieces([json.dumps(page, ensure_ascii=False, indent=4).encode()])
    elif not isinstance(page, _Pieces):
        page = _Pieces([_encode(page).encode()])
    body = b"".join([*page, b"\n"])
    # 64 bits, keyed by the process: strong enough, and without hashlib's 4 MB and 2 ms of import.
    # The pieces know their hashes: a fifth of the time after a change of one table (measured).
    return body, "%x-%016x" % (len(body), hash(tuple(page)) & 2**64 - 1)


def _encoded(
    body: bytes, headers: _Headers, vary: _Headers, gzipped: bool, tag: str = ""
) -> Response:
    """A 200 with its representation fields; small bodies are never compressed."""
    if len(body) >= _GZIP_BYTES:
        headers += vary
        if gzipped:
            # level 1 holds up the loop for 0.7 ms instead of 1.7 for a page of 240 KB (measured)
            packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            body = packer.compress(body) + packer.flush()
            headers += (("Content-Encoding", "gzip"),)
            tag += tag and "-gzip"  # RFC 9110, 8.8.3.3: each representation has its own
    if tag:
        headers += (("ETag", '"%s"' % tag),)
    return _with_length(200, headers, body)


def _with_length(status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> Response:
    fixed = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    return Response(status, fixed + _NO_SNIFF + headers, body)


def _error_response(error: PageError, method: str) -> Response:
    page = {"error": error.error, "hint_message": error.hint_message}
    body = _encode(page).encode("utf-8", "replace") + b"\n"
    response = _with_length(error.status, error.headers + _NO_STORE, body)
    return response._replace(body=b"") if method == "HEAD" else response


def _etag_matches(field: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list compared weakly, or "*"."""
    listed = (tag.strip() for tag in field.split(","))
    return bool(etag) and any(tag in ("*", etag, "W/" + etag) for tag in listed)


@functools.lru_cache(maxsize=64)
def _accepts_gzip(field: str) -> bool:
    """RFC 9110, 12.5.3; the best match counts, and q=0 is a no."""
    weights = {}
    for part in field.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, weight = parameter.partition("=")
        no = name.strip() == "q" and not weight.strip(" 0.")
        weights[coding.strip()] = not no
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))


# === 6. HTTP protocol ============================================================================

# Pure functions on bytes: no socket, no clock, no state.


class _Head(NamedTuple):
    """A parsed request head. fields: lower-case names; lines of one name are joined by ", "."""

    line: str
    method: str
    target: str
    version: str
    fields: dict[str, str]
    keep_alive: bool
    has_body: bool


def _bad_data(hint: str, status: int = 400) -> PageError:
    return PageError(status, "ERR_INVALID_DATA", hint)


_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e]+) (HTTP/([0-9])\.([0-9]))" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%s):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]*)?"
_BLANK_LINES = re.compile(rb"(?:\r\n)+")  # RFC 9112, 2.2: to be ignored before a request line
_CONTROLS = bytes({*range(32), 127} - {9, 10, 13})


def _is_no_head(part: bytes) -> bool:
    """Control characters, CR without LF, LF without CR: whatever follows, it is no request head.

    Counting is ten times as fast as a regular expression on a head of 7 KB (measured).
    """
    pairs = part.count(b"\r\n")
    lines_end_well = part.count(b"\r") == pairs == part.count(b"\n")
    return not lines_end_well or len(part.translate(None, _CONTROLS)) < len(part)


def _head_end(buffer: bytes, scanned: int) -> int:
    """Where the head ends (at its blank line), or -1; the first `scanned` bytes hold no end.

    Raises PageError as soon as it is clear that no head in order can follow, so that a TLS hello
    or a binary protocol is answered at once and not after _HEAD_SECONDS. How the bytes arrive
    makes no difference: the checks have one order, and see what they would see of a whole head.
    """
    end = buffer.find(b"\r\n\r\n", max(0, scanned - 3))
    line_end = buffer.find(b"\r\n", 0, _MAX_LINE + 2)
    examined = min(end + 1 or len(buffer), _MAX_LINE + 1 if line_end < 0 else _MAX_HEAD)
    begin = scanned - (buffer[scanned - 1 : scanned] == b"\r")
    part = buffer[begin:examined]
    if _is_no_head(part[:-1] if part.endswith(b"\r") else part):
        raise _bad_data("not HTTP: a control character, or a line that does not end in CRLF")
    if line_end < 0 and buffer[_MAX_LINE : _MAX_LINE + 2] not in (b"", b"\r"):
        raise _bad_data("the request line is longer than %d bytes" % _MAX_LINE, 414)
    if end + 4 > _MAX_HEAD or (end < 0 and len(buffer) >= _MAX_HEAD):
        raise _bad_data("the header section is longer than %d bytes" % _MAX_HEAD, 431)
    return end


def _parse_head(head: bytes) -> _Head:
    """The head without its blank line; PageError says what is wrong with it."""
    lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise _bad_data("malformed request line, expected: METHOD /path HTTP/1.1")
    method, target, version, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise _bad_data("unsupported version %s, expected HTTP/1.1" % version, 505)
    fields = _parse_fields(lines[1:])
    http11 = minor != "0"  # RFC 9110, 2.5: a higher minor version is served as the highest known
    host = fields.get("host")
    if host is None and http11:
        raise _bad_data("no Host field, which HTTP/1.1 asks for")  # RFC 9112, 3.2
    if host is not None and not re.fullmatch(_HOST, host):
        raise _bad_data('malformed Host field: "%s"' % host)
    connection = {option.strip() for option in fields.get("connection", "").lower().split(",")}
    return _Head(
        lines[0].decode("ascii"), method, target, version, fields,
        keep_alive="close" not in connection and (http11 or "keep-alive" in connection),
        has_body=_announces_body(fields, http11),
    )  # fmt: skip


_parse_head_memo = functools.lru_cache(maxsize=_MEMO_ENTRIES)(_parse_head)


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
        if coding.lower() != "chunked":
            raise _bad_data('unknown transfer coding: "%s"' % coding, 501)
        return True
    if length is None:
        return False
    if not (length.isascii() and length.isdigit()):
        raise _bad_data('malformed Content-Length: "%s"' % length)
    return bool(length.strip("0"))


@functools.lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def _frame(response: Response, second: int, connection: str) -> bytes:
    """The head of an answer. connection: value of the Connection field, "" for none."""
    phrase = BaseHTTPRequestHandler.responses.get(response.status, ("",))[0]
    lines = ["HTTP/1.1 %d %s" % (response.status, phrase)]
    lines += ["%s: %s" % pair for pair in response.headers]
    lines += ["Date: " + _http_date(second), "Server: pegasus_http/" + __version__]
    if connection:
        lines.append("Connection: " + connection)
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


# === 7. Conversation =============================================================================

class StatusHandler(BaseHTTPRequestHandler):
    """One connection: request bytes in, answer bytes out.

    As the handler class of any `http.server` or `socketserver` server it serves its connection in
    blocking style, on whichever thread that server gives it:

        class Handler(StatusHandler):
            status_server = StatusServer(cluster, role="meta")    # never started: holds the state
        ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()

    The loop of `StatusServer` feeds the same class with bytes. To add pages, override `respond`.
    `headers` is a dict with lower-case names. An instance belongs to one thread at a time.
    """

    status_server: StatusServer
    protocol_version = "HTTP/1.1"
    server_version = "pegasus_http/" + __version__
    disable_nagle_algorithm = True  # of StreamRequestHandler: 40 ms an answer otherwise
    headers: dict[str, str]  # type: ignore[assignment]

    def __init__(
        self, request: Any, client_address: Any, server: Any, *, fed: bool = False
    ) -> None:
        """The base class serves the connection from within its constructor; `fed` leaves that
        out: then `server` is a `StatusServer`, whose loop moves the bytes."""
        self.buffer = b""
        self.pending = memoryview(b"")
        self.deadline = 0.0
        self.phase = _READING
        self.in_head = False
        self.ticket = self.drained = 0
        self.linger = False
        self.raw: bytes | None = None
        self.call: _PageRequest | None = None
        self.done: Callable[[_State], None] = _nobody
        self._failure: PageError | None = None
        self._scanned = 0
        if fed:
            self.request = self.connection = request
            self.client_address = client_address
            self.status_server = server
            self.close_connection = False
        else:
            super().__init__(request, client_address, server)

    def next_request(self) -> bool:
        """Take the next request from `buffer`; False while its head is not complete.

        What is wrong with it becomes the answer; where its end is lost, the last one.
        """
        blank = _BLANK_LINES.match(self.buffer)
        if blank is not None:
            self.buffer, self._scanned = self.buffer[blank.end() :], 0
        try:
            end = _head_end(self.buffer, self._scanned)
            if end < 0:
                self._scanned = len(self.buffer)
                return False
            data = self.buffer[:end]
            head = _parse_head_memo(data) if end <= _MEMO_HEAD else _parse_head(data)
        except PageError as error:
            self.fail(error)
            return True
        self.buffer, self._scanned, self._failure = self.buffer[end + 4 :], 0, None
        self.requestline, self.command, self.path = head.line, head.method, head.target
        self.request_version, self.headers = head.version, head.fields
        self.close_connection = not head.keep_alive or head.has_body
        self.linger = head.has_body
        try:
            self.call = _resolve(head.method, head.target, self.status_server._settings.role)
        except PageError as error:
            self.call, self._failure = None, error
        return True

    def fail(self, error: PageError) -> None:
        """Make `error` the answer, and the last one: what follows cannot be told apart."""
        self.requestline = self.path = "-"
        # RFC 9110, 9.3.2: no body for HEAD, whatever is wrong with the rest
        self.command = "HEAD" if self.buffer.startswith(b"HEAD ") else "-"
        self.request_version, self.headers, self.call = "HTTP/1.1", {}, None
        self.close_connection = self.linger = True
        self._failure = error

    def answer(self, state: _State) -> tuple[Response, bytes]:
        """The answer to the request taken last, and its head as bytes. Never raises."""
        status_server = self.status_server
        try:
            response = self.respond(state)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and _in_main_thread():
                raise  # of a host that serves in its main thread, in blocking style
            path = self.call.path if self.call is not None else "another page"
            status_server._report("%s raised %s" % (path, type(error).__name__), exc_info=True)
            hint = "the page failed; the log of the server tells more"
            response = _error_response(PageError(500, "ERR_UNKNOWN", hint), self.command)
        status_server.counters.requests += 1
        if response.status >= 400:
            status_server.counters.errors += 1
        if status_server._access_log:
            self.log_request(response.status, len(response.body))
        connection = "close" if self.close_connection else ""
        if self.request_version == "HTTP/1.0" and not connection:
            connection = "keep-alive"
        return response, _frame(response, int(time.time()), connection)

    def respond(self, state: _State) -> Response:
        """The answer to the request in `command`, `path` and `headers`; override to add pages.

        state: what the page may show; raises nothing for bad requests. An override counts where the
        subclass is given to an `http.server`; the loop of `StatusServer` uses this class itself.
        """
        if self.call is None:
            return _error_response(self._failure or PageError(500, "ERR_UNKNOWN", ""), self.command)
        settings = self.status_server._settings
        return _respond(state, self.command, self.path, self.headers, settings, self.call)

    def handle(self) -> None:
        """Blocking style: requests until the client or an error ends it. Overridden because the
        base class takes one request with an e-mail parser that is 20 times as slow (measured)."""
        self.close_connection = False
        try:
            while not self.close_connection and self._receive():
                state = self.status_server._wait_for_state(self.call)
                response, head = self.answer(state)
                self.connection.settimeout(_WRITE_SECONDS)
                self.connection.sendall(head + response.body)
            if self.linger or self.buffer:
                self._drain()
        except OSError:
            self.close_connection = True  # the client is gone: nobody is left to tell

    def _receive(self) -> bool:
        deadline = time.monotonic() + _IDLE_SECONDS
        begun = False
        while not self.next_request():
            if self.buffer and not begun:
                begun, deadline = True, time.monotonic() + _HEAD_SECONDS
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.connection.recv(_RECV_BYTES)
            except socket.timeout:
                if begun:
                    self.fail(_late_head())
                return begun
            if not data:
                return False
            self.buffer += data
        return True

    def _drain(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while left > 0 and deadline > time.monotonic():
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self.connection.recv(_RECV_BYTES)
            left -= len(data) or left

    def version_string(self) -> str:
        """The Server field, without the interpreter's version that the base class adds."""
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """To the logger `pegasus_http.access` in Common Log Format; the base class prints."""
        host = str(self.client_address[0]) if self.client_address else "-"
        message = format % args
        _logger(".access").info("%s - - [%s] %s", host, self.log_date_time_string(), message)


def _nobody(state: _State) -> None:
    """Whom a state is given to that nobody waits for."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _late_head() -> PageError:
    hint = "the request head was not complete within %g s" % _HEAD_SECONDS
    return PageError(408, "ERR_TIMEOUT", hint)


def _logger(child: str = "") -> logging.Logger:
    import logging  # here: 7 ms of the import of this module

    return logging.getLogger("pegasus_http" + child)


# === 8. Worker ===================================================================================

class _Source:
    """What the asking thread reads from. `LiveCluster` reads by page, a plain callable does not."""

    def needs(self, call: _PageRequest) -> _Needs | None:
        """What `call` needs of this source, as a key; None when nothing."""
        raise NotImplementedError

    def read(self, needs: _Needs) -> tuple[_State, float]:
        """The state, and the time.monotonic() until which it is fresh."""
        raise NotImplementedError

    def rest(self) -> None:
        """Nobody has asked for a while: let go of what can be had again."""

    def forked(self) -> None:
        """In a child process: what is open is the parent's, a lock may be held for ever."""


class _CallableSource(_Source):
    def __init__(self, function: Callable[[], _State], max_age: float) -> None:
        self._function, self._max_age = function, max_age

    def needs(self, call: _PageRequest) -> _Needs | None:
        return (("state",), "") if call.needs and call.path != "/version" else None

    def read(self, needs: _Needs) -> tuple[_State, float]:
        return self._function(), time.monotonic() + self._max_age


def _as_source(source: Any, max_age: float) -> _Source:
    return source if isinstance(source, _Source) else _CallableSource(source, max_age)


class _Asker:
    """The thread that asks a source: one call at a time, shared by all who wait for it."""

    def __init__(self, source: _Source, server: StatusServer) -> None:
        self.source = source
        self.known: dict[_Needs, tuple[_State, float]] = {}  # its last answer, and until when
        self.last: _State = None
        self._server = server
        self.asked_at: dict[_Needs, float] = {}  # when what is under way was first asked for
        self._wanted: dict[_Needs, list[Callable[[_State], None]]] = {}
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def ask(self, needs: _Needs, done: Callable[[_State], None] | None = None) -> None:
        """Have `done` called with the next state, on the asking thread. From any thread."""
        with self._condition:
            waiting = self._wanted.setdefault(needs, [])
            self.asked_at.setdefault(needs, time.monotonic())
            if done is not None:
                waiting.append(done)
            if self._thread is None:
                name = "pegasus-http-source:%d" % self._server.port
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._thread = thread
            self._condition.notify()

    def forget(self, needs: _Needs, done: Callable[[_State], None]) -> None:
        """Whoever gave `done` waits no longer. From any thread."""
        with self._condition:
            if done in self._wanted.get(needs, ()):
                self._wanted[needs].remove(done)

    def stop(self) -> None:
        """End the thread as soon as the source lets go of it. From any thread."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        _join_thread(self._thread, _STOP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._condition:
                idle = not (
                    self._wanted or self._stopped or self._condition.wait(_SOURCE_IDLE_SECONDS)
                )
                if self._stopped:
                    break
                needs = next(iter(self._wanted), None)
            if needs is not None:
                self._read(needs)
            elif idle:
                self.source.rest()
        self.source.rest()

    def _read(self, needs: _Needs) -> None:
        known = self.known  # `_distrust` puts another in its place: what was read before is lost
        state, until = self._ask_source(needs)
        before, _ = known.get(needs, (None, 0.0))
        if isinstance(state, Cluster) and isinstance(before, Cluster):
            if state == before:
                state = before  # the same object: all that was computed of it still holds
            else:
                state._inherit(before)
        with self._condition:
            if len(known) >= _ASKED_ENTRIES:
                known.clear()
            known[needs] = (state, until)
            self.last = state
            waiting = self._wanted.pop(needs)
            self.asked_at.pop(needs)
        self._server.counters.refreshes += 1
        for done in waiting:
            done(state)

    def _ask_source(self, needs: _Needs) -> tuple[_State, float]:
        try:
            state, until = self.source.read(needs)
        except PageError as error:
            return error.with_traceback(None), time.monotonic()
        except BaseException as error:
            self._server._report("the source raised %s" % type(error).__name__, exc_info=True)
            hint = "the source of this page failed; the log of the server tells more"
            return PageError(500, "ERR_UNKNOWN", hint), time.monotonic()
        if state is not None and not isinstance(state, (Cluster, Standby, PageError)):
            kind = type(state).__name__
            self._server._report("the source returned %s, not a Cluster or Standby" % kind)
            hint = "the source of this page returned no cluster state"
            return PageError(500, "ERR_UNKNOWN", hint), until
        return (_not_active("the source is not ready") if state is None else state), until


def _join_thread(thread: threading.Thread | None, seconds: float) -> None:
    """Wait for it, unless it is this one, or frozen because the interpreter is shutting down."""
    if thread is None or thread is threading.current_thread() or sys.is_finalizing():
        return
    thread.join(seconds)


# === 9. Loop =====================================================================================

class _SelectorPoller:
    """Readiness through `selectors`, for platforms without epoll."""

    read, write = selectors.EVENT_READ, selectors.EVENT_WRITE

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.register: Callable[[int, int], object] = self._selector.register
        self.modify: Callable[[int, int], object] = self._selector.modify
        self.unregister: Callable[[int], object] = self._selector.unregister
        self.close = self._selector.close

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return [(key.fd, events) for key, events in self._selector.select(timeout)]


class _EpollPoller:
    """The same without the key objects of `selectors`, which are a tenth of the time of a request
    with 16 connections and a quarter with one (measured)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.read, self.write = select.EPOLLIN, select.EPOLLOUT
        self.register: Callable[[int, int], object] = self._epoll.register
        self.modify: Callable[[int, int], object] = self._epoll.modify
        self.unregister: Callable[[int], object] = self._epoll.unregister
        self.poll: Callable[[float], list[tuple[int, int]]] = self._epoll.poll
        self.close = self._epoll.close


_Poller = _EpollPoller if hasattr(select, "epoll") else _SelectorPoller


def _send_byte(sock: socket.socket) -> None:
    """Wake whoever receives at its other end; a full socket has done so, a closed one need not."""
    try:
        sock.send(b"\0")
    except OSError:
        return


_CAN_GATHER = hasattr(socket.socket, "sendmsg")  # not on Windows

# What a connection is doing. While it is not reading, its next request is neither read nor parsed.
_READING, _ASKING, _WRITING, _LINGERING, _CLOSED = range(5)


class _Loop:
    """Owns the listener and every connection, on one thread."""

    def __init__(self, server: StatusServer, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._poller = _Poller()
        self._wakee, self._waker = socket.socketpair()
        self._open: dict[StatusHandler, None] = {}
        self._reading: dict[int, StatusHandler] = {}
        self._watched: dict[int, Callable[[], None] | None] = {}  # None: one of those above
        # by number where that is possible: 4 % more requests a second (measured)
        posix = os.name == "posix"
        self._read: Callable[[int, int], bytes] = os.read if posix else self._receive
        self._write: Callable[[int, bytes], int] = os.write if posix else self._transmit
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._now = time.monotonic()
        self._sweep_at = self._now
        self._memo_until = 0.0
        self._accept_at: float | None = None
        self._stop_at: float | None = None
        for sock in (listener, self._wakee, self._waker):
            sock.setblocking(False)
        self._watch(listener, self._poller.read, self._accept)
        self._watch(self._wakee, self._poller.read, self._woken)

    def run(self) -> None:
        """Until `stop`."""
        poll, clock = self._poller.poll, time.monotonic
        while self._stop_at is None or (self._open and self._now < self._stop_at):
            ready = poll(self._sweep_at - self._now)  # never negative, which would be for ever
            self._now = now = clock()
            if now >= self._memo_until:
                self._turn()
            self._serve(ready)
            if now >= self._sweep_at:
                self._sweep()
        self.close()

    def _serve(self, ready: Sequence[tuple[int, int]]) -> None:
        """React to what is ready; an exception in one connection closes that one alone.

        Equal bytes have an equal answer for as long as the second and the state last: to look it up
        takes 3 us, to parse, dispatch and frame 24. That all of it stands here and calls nothing
        saves a sixth of the processor's time (both measured); it is all that a poller needs.
        """
        memo, counters = self._server._memo, self._server.counters
        reading, read, write, size = self._reading, self._read, self._write, _POLL_BYTES
        idle_until = self._now + _IDLE_SECONDS
        for fd, _ in ready:
            handler = reading.get(fd)
            try:
                if handler is None:
                    self._react(fd)
                    memo = self._server._memo  # that may have taken long, or have published
                    continue
                try:
                    data = read(fd, size)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                answer = memo.get(data)
                if answer is None or handler.buffer:
                    self._receive_on(handler, data)
                    memo = self._server._memo
                    continue
                counters.requests += 1
                head, body, last = answer
                try:
                    sent = 0 if body or last else write(fd, head)
                except OSError:
                    sent = 0  # `_send` tries again and sees what it means
                if sent == len(head):
                    handler.deadline = idle_until
                else:
                    handler.close_connection = last
                    self._send(handler, head[sent:], body)
            except Exception:
                self._failed(fd)

    def _receive(self, fd: int, size: int) -> Any:
        return self._reading[fd].connection.recv(size)

    def _transmit(self, fd: int, data: bytes) -> Any:
        return self._reading[fd].connection.send(data)

    def _react(self, fd: int) -> None:
        react = self._watched.get(fd)
        if react is not None:
            react()

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop's thread. From any thread."""
        self._calls.append(function)
        _send_byte(self._waker)

    def stop(self) -> None:
        """End `run` once the answers under way have left. From any thread."""
        self.call(self._begin_stop)

    def close(self) -> None:
        """Close everything, shut down nothing: a forked child calls this too."""
        for handler in self._open:
            handler.phase = _CLOSED
            handler.connection.close()
        self._open.clear()
        self._watched.clear()
        for thing in (self._listener, self._wakee, self._waker, self._poller):
            thing.close()

    def _begin_stop(self) -> None:
        self._stop_at = self._sweep_at = self._now + _STOP_SECONDS
        if self._accept_at is None:
            self._unwatch(self._listener)
        self._listener.close()
        for handler in list(self._open):
            if handler.phase not in (_ASKING, _WRITING):
                self._close(handler)

    def _woken(self) -> None:
        try:
            self._wakee.recv(4096)
        except BlockingIOError:
            return
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                self._failed(-1)

    def _turn(self) -> None:
        """Forget the memoised answers: their Date, or the state under them, is over."""
        self._server._memo = {}
        self._memo_until = self._now + 1.0 - time.time() % 1.0

    def _failed(self, fd: int) -> None:
        """Called where an exception is handled: log it and close the connection it is of."""
        self._server._report("a connection failed", exc_info=True)
        for handler in list(self._open):
            if handler.connection.fileno() == fd:
                self._close(handler)

    # --- readiness -------------------------------------------------------------------------------

    def _watch(
        self, sock: socket.socket, events: int, react: Callable[[], None] | None
    ) -> None:
        fd = sock.fileno()
        (self._poller.modify if fd in self._watched else self._poller.register)(fd, events)
        self._reading.pop(fd, None)
        self._watched[fd] = react

    def _unwatch(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        self._reading.pop(fd, None)
        if fd in self._watched:
            del self._watched[fd]
            self._poller.unregister(fd)

    def _read_on(self, handler: StatusHandler) -> None:
        self._watch(handler.connection, self._poller.read, None)
        self._reading[handler.connection.fileno()] = handler

    def _until(self, handler: StatusHandler, seconds: float) -> None:
        handler.deadline = self._now + seconds
        if handler.deadline < self._sweep_at:
            self._sweep_at = handler.deadline

    def _sweep(self) -> None:
        """Expire what is over; deadlines are absolute, and looked at no oftener than needed."""
        for handler in list(self._open):
            if handler.deadline <= self._now:
                try:
                    self._expire(handler)
                except Exception:
                    self._failed(handler.connection.fileno())
        if self._accept_at is not None and self._accept_at <= self._now and self._stop_at is None:
            self._accept_at = None
            self._watch(self._listener, self._poller.read, self._accept)
        deadlines = [handler.deadline for handler in self._open]
        deadlines += [self._accept_at or math.inf, self._stop_at or math.inf, self._now + 60.0]
        self._sweep_at = max(min(deadlines), self._now + 0.02)

    def _expire(self, handler: StatusHandler) -> None:
        if handler.phase == _ASKING:
            self._server._forget(handler.call, handler.done)
            self._resume(handler, handler.ticket, self._server._late(handler.call))
        elif handler.phase == _READING and handler.in_head:
            handler.fail(_late_head())
            self._finish(handler, None)
        else:
            self._close(handler)

    # --- connections -----------------------------------------------------------------------------

    def _accept(self) -> None:
        for n in range(_BATCH):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if n:
                    return  # descriptors run out before it is known whether one more is waiting
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._make_room():
                    return
                self._server._report("cannot accept connections: %s" % error.strerror)
                self._unwatch(self._listener)
                self._accept_at = self._now + _PAUSE_SECONDS
                self._sweep_at = min(self._sweep_at, self._accept_at)
                return
            connection.setblocking(False)
            self._server.counters.connections += 1
            try:
                data = connection.recv(_RECV_BYTES)  # often there already: one poll less
            except BlockingIOError:
                self._adopt(connection, address)
            except OSError:
                connection.close()
            else:
                self._welcome(connection, address, data)

    def _welcome(self, connection: socket.socket, address: Any, data: bytes) -> None:
        """Serve the first bytes of a connection. One that brings a single request, known and the
        last, needs neither a handler nor a poll: 6 % more of these a second (measured)."""
        head, body, last = self._server._memo.get(data, (b"", b"", False))
        sent = 0
        if last and not body:
            try:
                sent = connection.send(head)
            except OSError:
                sent = 0
            if sent == len(head):
                self._server.counters.requests += 1
                connection.close()
                return
        handler = self._adopt(connection, address)
        if handler.phase != _READING:
            return
        if sent:
            self._server.counters.requests += 1
            handler.close_connection = True
            self._write_on(handler, memoryview(head)[sent:])
        else:
            self._received(handler, data)

    def _adopt(self, connection: socket.socket, address: Any) -> StatusHandler:
        handler = StatusHandler(connection, address, self._server, fed=True)
        self._open[handler] = None
        self._until(handler, _IDLE_SECONDS)
        if len(self._open) > self._server._max_connections and not self._make_room(handler):
            self._refuse(handler)
        else:
            self._read_on(handler)
        return handler

    def _make_room(self, newest: StatusHandler | None = None) -> bool:
        """Close the longest idle connection, if there is one besides the newest."""
        idle = [h for h in self._open if h.phase == _READING and not h.in_head and h is not newest]
        if idle:
            self._close(min(idle, key=lambda handler: handler.deadline))
        return bool(idle)

    def _refuse(self, handler: StatusHandler) -> None:
        if len(self._open) > self._server._max_connections + _BATCH:
            self._close(handler)  # those who are being told so are bounded too
            return
        hint = "the limit of %d connections is reached" % self._server._max_connections
        handler.fail(PageError(503, "ERR_BUSY", hint, _RETRY_AFTER))
        self._finish(handler, None)

    def _close(self, handler: StatusHandler) -> None:
        self._unwatch(handler.connection)
        self._open.pop(handler, None)
        handler.phase = _CLOSED
        handler.pending = memoryview(b"")
        handler.connection.close()

    def _receive_on(self, handler: StatusHandler, data: bytes) -> None:
        """Take in what the client has sent, of which `data` is the first part."""
        if len(data) == _POLL_BYTES:
            try:
                data += handler.connection.recv(max(_RECV_BYTES - len(data), 0))
            except BlockingIOError:
                pass  # that was all
            except OSError:
                data = b""
        long = len(data) >= _POLL_BYTES  # what is shorter has been looked up
        answer = self._server._memo.get(data) if long and not handler.buffer else None
        if answer is None:
            self._received(handler, data)
        else:
            self._server.counters.requests += 1
            head, body, handler.close_connection = answer
            self._send(handler, head, body)

    def _received(self, handler: StatusHandler, data: bytes) -> None:
        handler.raw = None if handler.buffer else data
        handler.buffer += data
        if data:
            self._advance(handler)
        else:
            self._close(handler)

    def _advance(self, handler: StatusHandler) -> None:
        """Answer the requests that are there, one at a time, for as long as answers leave."""
        while handler.buffer and handler.phase == _READING:
            if not handler.next_request():
                if handler.buffer and not handler.in_head:
                    handler.in_head = True
                    self._until(handler, _HEAD_SECONDS)
                return
            memo = self._server._memo  # before the state: `publish` sets them the other way round
            ready, state, until = self._server._state_for(handler.call)
            if not ready:
                self._ask(handler)
                return
            self._finish(handler, state, memo, until)

    def _ask(self, handler: StatusHandler) -> None:
        handler.phase = _ASKING
        handler.ticket += 1
        self._unwatch(handler.connection)
        self._until(handler, self._server._patience(handler.call))
        handler.done = functools.partial(self._answered, handler, handler.ticket)
        self._server._ask(handler.call, handler.done)

    def _answered(self, handler: StatusHandler, ticket: int, state: _State) -> None:
        """Called on the asking thread."""
        self.call(functools.partial(self._resume, handler, ticket, state))

    def _resume(self, handler: StatusHandler, ticket: int, state: _State) -> None:
        if handler.phase == _ASKING and handler.ticket == ticket:
            handler.raw = None
            handler.phase = _READING
            self._finish(handler, state)
            self._continue(handler)

    def _continue(self, handler: StatusHandler) -> None:
        """Go on after an answer that did not leave at once."""
        self._advance(handler)
        if handler.phase == _READING:
            self._read_on(handler)

    def _finish(
        self,
        handler: StatusHandler,
        state: _State,
        memo: dict[bytes, _Answer] | None = None,
        until: float = 0.0,
    ) -> None:
        response, head = handler.answer(state)
        body = response.body
        if len(head) + len(body) <= _SEND_JOINED or not _CAN_GATHER:
            head, body = head + body, b""
        raw, handler.raw, handler.in_head = handler.raw, None, False
        alone = not handler.buffer and not handler.linger
        if memo is not None and raw is not None and alone and response.status < 400:
            self._memoise(memo, raw, (head, body, handler.close_connection), until)
        self._send(handler, head, body)

    def _memoise(
        self, memo: dict[bytes, _Answer], raw: bytes, answer: _Answer, until: float
    ) -> None:
        """Remember the answer to these bytes, for no longer than its state is fresh."""
        if until > self._now and len(raw) <= _MEMO_HEAD and not self._server._access_log:
            if len(memo) >= _MEMO_ENTRIES:
                memo.clear()
            memo[raw] = answer
            self._memo_until = min(self._memo_until, until)

    def _send(self, handler: StatusHandler, head: bytes, body: bytes) -> None:
        """Head and body leave in one call: two would wait for each other's ACK (44 ms)."""
        connection = handler.connection
        try:
            sent = connection.sendmsg([head, body]) if body else connection.send(head)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(handler)
            return
        late = sent - len(head)
        if late == len(body):
            if handler.close_connection or self._stop_at is not None:
                self._end(handler)
            else:
                handler.deadline = self._now + _IDLE_SECONDS
        else:
            rest = memoryview(body)[late:] if late >= 0 else memoryview(head + body)[sent:]
            self._write_on(handler, rest)

    def _write_on(self, handler: StatusHandler, rest: memoryview) -> None:
        handler.pending, handler.phase = rest, _WRITING
        self._until(handler, _WRITE_SECONDS)
        react = functools.partial(self._writable, handler)
        self._watch(handler.connection, self._poller.write, react)

    def _writable(self, handler: StatusHandler) -> None:
        try:
            sent = handler.connection.send(handler.pending)
        except BlockingIOError:
            return
        except OSError:
            self._close(handler)
            return
        handler.pending = handler.pending[sent:]
        if handler.pending:
            return
        handler.phase = _READING
        if handler.close_connection or self._stop_at is not None:
            self._end(handler)
        else:
            self._until(handler, _IDLE_SECONDS)
            self._continue(handler)

    def _end(self, handler: StatusHandler) -> None:
        """The last answer has left."""
        if handler.linger or handler.buffer:
            self._linger(handler)
        else:
            self._close(handler)

    def _linger(self, handler: StatusHandler) -> None:
        """Closing with input unread sends a RST that may overtake the answer."""
        try:
            handler.connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(handler)
            return
        handler.phase = _LINGERING
        handler.buffer = b""
        self._until(handler, _DRAIN_SECONDS)
        react = functools.partial(self._drain, handler)
        self._watch(handler.connection, self._poller.read, react)

    def _drain(self, handler: StatusHandler) -> None:
        try:
            data = handler.connection.recv(_RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        handler.drained += len(data)
        if not data or handler.drained > _DRAIN_BYTES:
            self._close(handler)


# === 10. Server ==================================================================================

class _Counters:
    """What a server has done since it was made; plain numbers for the host's own metrics.

    requests: answered; errors: of these, with a status of 400 or more; connections: accepted;
    refreshes: calls of the source; last_error: the last trouble on our side, "" for none.
    """

    def __init__(self) -> None:
        self.requests = self.errors = self.connections = self.refreshes = 0
        self.last_error = ""


class StatusServer:
    """The HTTP status server: one daemon thread, and one more for a source that is asked.

    source: a `Cluster` or `Standby` (replaced by `publish`); a zero-argument callable that returns
        one, asked on its own thread; a `LiveCluster`; None: /meta pages answer 503.
    role: "meta" or "replica". host, port: where to listen; port 0 takes a free one.
    version, git_commit: for /version; None shows the state's, or this module's version.
    flat: the page shapes of Pegasus after 1.12.0's second HTTP change.
    max_age: seconds an answer of a callable source is kept (a `LiveCluster` has its own).
    timeout: seconds a page waits for its source before it answers 504.
    max_connections: at once; over it the longest idle one goes, then new ones get 503.
    compress: gzip for clients that accept it. access_log: a line per request to the logger
        `pegasus_http.access` at INFO.

    Raises TypeError or ValueError for arguments that make no sense. The constructor touches
    nothing. All methods and attributes may be used from any thread. A context manager: `with`
    starts and stops it.
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
        max_connections: int = _MAX_CONNECTIONS,
        compress: bool = True,
        access_log: bool = False,
    ) -> None:
        """Keep the settings."""
        _check_choice(role, "role", _BOTH)
        _check_count(port, "port", 65535)
        _check_count(max_connections, "max_connections", least=1)
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        self._host, self._port = host, port
        self._settings = _Settings(role, version, git_commit, flat, compress, _join(host, port))
        self._timeout, self._access_log = timeout, access_log
        self._max_connections = max_connections
        asked = callable(source) or isinstance(source, _Source)
        self._source = _as_source(source, max_age) if asked else None
        self._state: _State = None if asked or source is None else _check_state(source)
        self._asker = None if self._source is None else _Asker(self._source, self)
        self._memo: dict[bytes, _Answer] = {}
        self._reported: dict[str, float] = {}
        self._lock = threading.RLock()  # reentrant: a signal handler may call stop within start
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self.counters = _Counters()

    def __enter__(self) -> StatusServer:
        """Start, unless it runs already: `with start(...) as server` works too."""
        if not self.running:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop."""
        self.stop()

    @property
    def port(self) -> int:
        """The port: while running the one that is bound."""
        return self._port_bound if self._loop is not None else self._port

    @property
    def url(self) -> str:
        """Where to find the server, such as "http://127.0.0.1:34601"."""
        return "http://" + _join(self._host, self.port)

    @property
    def running(self) -> bool:
        """Whether it is serving."""
        return self._loop is not None

    def start(self) -> None:
        """Bind in the caller's thread and serve on a daemon thread.

        Raises OSError when the address cannot be bound, RuntimeError when it runs already.
        """
        with self._lock:
            if self._loop is not None:
                raise RuntimeError("the server is running already at " + self.url)
            _logger(), _encoder()  # imported now: not by a request, not without descriptors
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            address = (self._host, self._port)
            # not http.server's bind, whose getfqdn may stall for 30 s
            listener = socket.create_server(address, family=family, backlog=_BACKLOG)
            try:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
                self._port_bound = int(listener.getsockname()[1])
                address = _join(self._host, self._port_bound)
                self._settings = self._settings._replace(address=address)
                loop = _Loop(self, listener)
                name = "pegasus-http:%d" % self._port_bound
                thread = threading.Thread(target=loop.run, name=name, daemon=True)
                thread.start()
                self._thread = thread
            except BaseException:
                listener.close()
                raise
            self._loop = loop
            _watch_forks(self)

    def stop(self) -> None:
        """Free the port: answers under way get a second to leave, all else is closed.

        Twice, before `start`, from a page, a source or a signal handler: all are fine. Returns when
        the port is free, except from a page, whose answer still has to leave. The server can be
        started again.
        """
        with self._lock:
            if self._loop is not None:
                self._loop.stop()  # first: a signal handler that stops too waits for the thread
                _RUNNING.discard(self)
            self._loop = None
            thread, asker = self._thread, self._asker
        _join_thread(thread, _STOP_SECONDS + 5.0)
        if asker is not None and self._source is not None:
            self._asker = _Asker(self._source, self)
            asker.stop()

    def publish(self, state: Cluster | Standby) -> None:
        """Serve `state` from now on. Never blocks; what is being answered keeps the state it has.

        Raises TypeError for anything but a `Cluster` or `Standby` (the last state stays), and
        RuntimeError when the server has a source that it asks.
        """
        if self._source is not None:
            raise RuntimeError("this server asks its source: publish is for servers without one")
        _check_state(state)
        before = self._state
        if isinstance(state, Cluster) and isinstance(before, Cluster) and state is not before:
            state._inherit(before)
        self._state = state
        self._memo = {}

    def _state_for(self, call: _PageRequest | None) -> tuple[bool, _State, float]:
        """(whether it can be answered now, the state, until when that may be memoised)."""
        asker = self._asker
        if asker is None or call is None:
            return True, self._state, math.inf
        needs = asker.source.needs(call)
        if needs is None:
            return True, asker.last, math.inf
        known = asker.known.get(needs)
        if known is None:
            late = time.monotonic() - asker.asked_at.get(needs, math.inf) > _GLANCE_SECONDS
            return late and not call.route.waits, None, 0.0
        state, until = known
        if until <= time.monotonic():
            if call.route.waits:
                return False, None, 0.0
            asker.ask(needs)
        return True, state, until

    def _patience(self, call: _PageRequest | None) -> float:
        waits = call is None or call.route.waits
        return self._timeout if waits else min(self._timeout, _GLANCE_SECONDS)

    def _late(self, call: _PageRequest | None) -> _State:
        """What a page shows whose source has not answered in time."""
        if call is None or not call.route.waits:
            return None
        hint = "the source of this page has not answered within %g s" % self._timeout
        return PageError(504, "ERR_TIMEOUT", hint)

    def _ask(self, call: _PageRequest | None, done: Callable[[_State], None]) -> None:
        asker = self._asker
        needs = asker.source.needs(call) if asker is not None and call is not None else None
        if asker is not None and needs is not None:
            asker.ask(needs, done)

    def _forget(self, call: _PageRequest | None, done: Callable[[_State], None]) -> None:
        asker = self._asker
        needs = asker.source.needs(call) if asker is not None and call is not None else None
        if asker is not None and needs is not None:
            asker.forget(needs, done)

    def _distrust(self) -> None:
        """Ask the source again for all that it has said."""
        if self._asker is not None:
            self._asker.known = {}
        self._memo = {}

    def _wait_for_state(self, call: _PageRequest | None) -> _State:
        """The same for the blocking style of `StatusHandler`."""
        ready, state, _ = self._state_for(call)
        if ready:
            return state
        answered = threading.Event()
        states: list[_State] = []

        def done(state: _State) -> None:
            states.append(state)
            answered.set()

        self._ask(call, done)
        if answered.wait(self._patience(call)):
            return states[0]
        self._forget(call, done)
        return self._late(call)

    def _report(self, text: str, exc_info: bool = False) -> None:
        """Log trouble on our side; the same one at most every 10 s, whatever clients do."""
        now = time.monotonic()
        self.counters.last_error = text
        if now - self._reported.get(text, -math.inf) > _REPORT_SECONDS:
            if len(self._reported) >= _MEMO_ENTRIES:
                self._reported.clear()
            self._reported[text] = now
            _logger().warning("%s", text, exc_info=exc_info)

    def _forked(self) -> None:
        """In a child process: our thread is not there, the sockets are the parent's."""
        loop, self._loop, self._lock = self._loop, None, threading.RLock()
        if self._source is not None:
            self._source.forked()
            self._asker = _Asker(self._source, self)
        if loop is not None:
            loop.close()


def _check_state(state: object) -> Cluster | Standby:
    if isinstance(state, (Cluster, Standby)):
        return state
    raise TypeError("expected a Cluster or a Standby, got " + type(state).__name__)


def _join(host: str, port: int) -> str:
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


_RUNNING: weakref.WeakSet[StatusServer] = weakref.WeakSet()


@functools.lru_cache(maxsize=1)
def _hook_forks() -> None:
    """Once, at the first start: the hook cannot be taken back."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_in_child)


def _watch_forks(server: StatusServer) -> None:
    _hook_forks()
    _RUNNING.add(server)


def _close_in_child() -> None:
    """Else a child would hold the port and every connection open for as long as it lives."""
    for server in list(_RUNNING):
        server._forked()
    _RUNNING.clear()


def start(source: _AnySource = None, *, role: str, **settings: Any) -> StatusServer:
    """Make a `StatusServer` of these arguments and start it; raises what its `start` raises."""
    server = StatusServer(source, role=role, **settings)
    server.start()
    return server


# === 11. State file and sample ===================================================================

# --- state file ----------------------------------------------------------------------------------

# Fields of app_info and partition_configuration that no page shows: fine in a file, not kept.
_UNSHOWN_OF_APP = (
    "duplicating", "init_partition_count", "is_bulk_loading", "atomic_idempotent",
)  # fmt: skip
_UNSHOWN_OF_PARTITION = ("pid", "last_drops", "last_committed_decree", "partition_flags")
_INFO_FIELDS = Cluster._fields[2:11]


class StateFile(_Source):
    """A source, and a zero-argument callable: the `Cluster` saved in a file, read anew when it
    changes.

    path: of a JSON file as `--dump` prints it: apps, nodes, cluster_info, server_info, each under
        Pegasus's own field names.
    max_age: seconds before a server looks at the file again.

    The first call raises OSError or ValueError when there is no good state, with a text that names
    the place (`apps[3].partitions[2].primary: expected …`). Later a bad file keeps the last good
    state and is logged once. To be called by one thread at a time.
    """

    def __init__(self, path: str, *, max_age: float = 1.0) -> None:
        """Read nothing yet."""
        self._path, self._max_age = path, max_age
        self._signature: tuple[int, int, int] | None = None
        self._cluster: Cluster | None = None
        self._complaint = ""

    def __call__(self) -> Cluster:
        """The cluster as the file has it now."""
        try:
            status = os.stat(self._path)
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._cluster is None or signature != self._signature:
                self._signature = signature  # first: `reload` may take it back meanwhile
                with open(self._path, "rb") as file:
                    self._cluster = _load_cluster(file.read(_STATE_BYTES + 1), self._path)
                self._complaint = ""
        except (OSError, ValueError) as error:
            self._signature = None
            if self._cluster is None:
                raise
            if str(error) != self._complaint:
                self._complaint = str(error)
                _logger().warning("keeping the last good state: %s", error)
        return self._cluster

    def needs(self, call: _PageRequest) -> _Needs | None:
        """The whole file, for all pages that show any of it."""
        return (("state",), "") if call.needs else None

    def read(self, needs: _Needs) -> tuple[_State, float]:
        """The cluster, and the time.monotonic() until which it is fresh."""
        return self(), time.monotonic() + self._max_age

    def reload(self) -> None:
        """Read the file at the next call even if it looks unchanged. From any thread."""
        self._signature = None


def _load_cluster(data: bytes, name: str) -> Cluster:
    """ValueError, with `name` and the place, for all that is not a cluster."""
    import json

    try:
        if len(data) > _STATE_BYTES:
            raise ValueError("larger than %d MiB" % (_STATE_BYTES >> 20))
        return _cluster_from_json(json.loads(data.decode("utf-8")))
    except RecursionError:
        raise ValueError("%s: nested too deeply" % name) from None
    except ValueError as error:
        raise ValueError("%s: %s" % (name, error)) from None


def _object(
    value: object, where: str, known: Sequence[str], required: Sequence[str]
) -> dict[str, Any]:
    """A copy of `value`, a JSON object with nothing but `known` keys."""
    if not isinstance(value, dict):
        raise _bad_value(where, "an object", value)
    for key in value:
        if key not in known:
            raise ValueError("%s: unknown field %s, expected one of %s"
                             % (where, _encode(key), ", ".join(known)))  # fmt: skip
    for key in required:
        if key not in value:
            raise ValueError("%s.%s: missing" % (where, key))
    return dict(value)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _bad_value(where, "a list", value)
    return value


def _cluster_from_json(value: object) -> Cluster:
    parts = ("apps", "nodes", "cluster_info", "server_info")
    top = _object(value, "top level", parts, ("apps", "nodes"))
    apps = [
        _app_from_json(item, "apps[%d]" % n) for n, item in enumerate(_list(top["apps"], "apps"))
    ]
    nodes = [
        Node(**_object(item, "nodes[%d]" % n, Node._fields, Node._fields))
        for n, item in enumerate(_list(top["nodes"], "nodes"))
    ]
    info = _object(top.get("cluster_info", {}), "cluster_info", _INFO_FIELDS, ())
    for name, text in info.items():
        _check_text(text, "cluster_info." + name)
    server = _object(top.get("server_info", {}), "server_info", ("version", "git_SHA"), ())
    for name, text in server.items():
        _check_text(text, "server_info." + name)
    return Cluster(
        apps, nodes, version=server.get("version"), git_commit=server.get("git_SHA"), **info
    )


def _app_from_json(value: object, where: str) -> App:
    fields = _object(value, where, App._fields + _UNSHOWN_OF_APP, ("app_id", "app_name"))
    for name in _UNSHOWN_OF_APP:
        fields.pop(name, None)
    if fields.get("partitions") is not None:
        place = where + ".partitions"
        fields["partitions"] = [
            _partition_from_json(item, "%s[%d]" % (place, n))
            for n, item in enumerate(_list(fields["partitions"], place))
        ]
    if not isinstance(fields.get("envs", {}), dict):
        raise _bad_value(where + ".envs", "an object", fields["envs"])
    try:
        return App(**fields)
    except ValueError as error:
        raise ValueError("%s.%s" % (where, error)) from None


def _partition_from_json(value: object, where: str) -> Partition:
    fields = _object(value, where, Partition._fields + _UNSHOWN_OF_PARTITION, ())
    for name in _UNSHOWN_OF_PARTITION:
        fields.pop(name, None)
    if "secondaries" in fields:
        fields["secondaries"] = tuple(_list(fields["secondaries"], where + ".secondaries"))
    return Partition(**fields)


def _cluster_to_json(cluster: Cluster) -> dict[str, Any]:
    """The reverse of `_cluster_from_json`."""
    apps = []
    for app in cluster.apps:
        fields = app._asdict()
        fields["envs"] = dict(app.envs)
        if app.partitions is not None:
            fields["partitions"] = [partition._asdict() for partition in app.partitions]
        apps.append(fields)
    info = {name: getattr(cluster, name) for name in _INFO_FIELDS}
    server = {"version": cluster.version, "git_SHA": cluster.git_commit}
    return {
        "apps": apps,
        "nodes": [node._asdict() for node in cluster.nodes],
        "cluster_info": {name: text for name, text in info.items() if text is not None},
        "server_info": {name: text for name, text in server.items() if text is not None},
    }


# --- built-in sample -----------------------------------------------------------------------------


def _sample() -> Cluster:
    """The onebox of Pegasus's documentation: one table on three replica servers."""
    host = "10.239.35.160"
    nodes = ["%s:%d" % (host, port) for port in (34801, 34802, 34803)]
    partitions = [
        Partition(3, 3, nodes[n % 3], (nodes[(n + 1) % 3], nodes[(n + 2) % 3])) for n in range(8)
    ]
    created = int(time.mktime((2019, 7, 30, 14, 4, 26, 0, 0, -1)))
    return Cluster(
        [App(1, "temp", partitions, create_second=created)],
        [Node(address) for address in nodes],
        meta_servers=["%s:%d" % (host, port) for port in (34601, 34602, 34603)],
        primary_meta_server=host + ":34601",
        zookeeper_hosts="127.0.0.1:22181",
        zookeeper_root="/pegasus/onebox/" + host,
    )


# === 12. Live cluster ============================================================================

# --- live cluster: the wire (rdsn-rpc.md, sections 1 and 2) --------------------------------------


class _WireError(ValueError):
    """An answer that is not what a meta server sends."""


_STRUCT, _STOP = 12, b"\0"
_I16, _I32, _I64 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")
_LIST, _HEADER = struct.Struct(">bi"), struct.Struct(">4sIIIIIiiiiQ")
_FIXED_SIZES = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8}  # bool, byte, double, i16, i32, i64


def _string(data: bytes) -> bytes:
    return _I32.pack(len(data)) + data


def _request(code: str, args: bytes, sequence: int, timeout_ms: int) -> bytes:
    """A request frame: header v0, app id 0; `args` are the fields of the request struct."""
    body = b"\x80\x01\x00\x01" + _string(code.encode()) + _I32.pack(sequence)
    body += b"\x0c\x00\x01" + args + _STOP + _STOP
    return _HEADER.pack(b"THFT", 0, 48, 0, len(body), 0, 0, 0, timeout_ms, 0, 0) + body


def _read_i32(data: bytes, at: int) -> tuple[int, int]:
    return _I32.unpack_from(data, at)[0], at + 4


def _read_i64(data: bytes, at: int) -> tuple[int, int]:
    return _I64.unpack_from(data, at)[0], at + 8


def _read_bool(data: bytes, at: int) -> tuple[bool, int]:
    return data[at] != 0, at + 1


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + _I32.unpack_from(data, at)[0]
    if not at + 4 <= end <= len(data):
        raise _WireError("a text of impossible length")
    return data[at + 4 : end], end


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    """Pegasus does not promise UTF-8; what is not shows as \\xNN, so that names stay apart."""
    raw, at = _read_bytes(data, at)
    return raw.decode("utf-8", "backslashreplace"), at


@functools.lru_cache(maxsize=8192)
def _address(raw: bytes) -> str | None:
    """An rpc_address: a b c d, port, 00, type; anything but type 1 (IPv4) is no address."""
    if raw[7] & 3 != 1:
        return None
    return _sane("%d.%d.%d.%d:%d" % (raw[0], raw[1], raw[2], raw[3], raw[4] << 8 | raw[5]))


def _sane(address: str) -> str:
    if not _is_address(address):
        raise _WireError("an impossible address: " + address)
    return address


def _read_address(data: bytes, at: int) -> tuple[bytes, int]:
    """Raw, since the host_port that newer servers send too is what is shown."""
    raw = data[at : at + 8]
    if len(raw) < 8:
        raise _WireError("the answer is cut off")
    return raw, at + 8


@functools.lru_cache(maxsize=8192)
def _host_port(raw: bytes) -> str | None:
    """Host, port, type. The port arrives as i16 and means 0 to 65535; type 1 is a host, 0 none."""
    if raw[-1] != 1:
        return None
    host = raw[:-3].decode("utf-8", "backslashreplace")
    return _sane("%s:%d" % (host, raw[-3] << 8 | raw[-2]))


def _read_host_port(data: bytes, at: int) -> tuple[str | None, int]:
    length = _I32.unpack_from(data, at)[0] + 3
    raw = data[at + 4 : at + 4 + length]
    if length < 3 or len(raw) < length:
        raise _WireError("the answer is cut off")
    return _host_port(raw), at + 4 + length


def _count(data: bytes, at: int) -> tuple[int, int]:
    """Of elements: each has a byte at least, so that a lie costs no memory."""
    count, at = _read_i32(data, at)
    if not 0 <= count <= len(data) - at:
        raise _WireError("a list of impossible length")
    return count, at


def _list_head(data: bytes, at: int, kind: int, size: int) -> int:
    """How many elements of `kind` follow, each of `size` bytes or more."""
    found, count = _LIST.unpack_from(data, at)
    if not 0 <= count * size <= len(data) - at - 5 or (count and found != kind):
        raise _WireError("a list of impossible length or type")
    return int(count)


def _list_of(kind: int, read: _Reader) -> _Reader:
    def read_list(data: bytes, at: int) -> tuple[list[Any], int]:
        count, at = _list_head(data, at, kind, 1), at + 5
        values = []
        for _ in range(count):
            value, at = read(data, at)
            values.append(value)
        return values, at

    return read_list


def _read_addresses(data: bytes, at: int) -> tuple[bytes, int]:
    """A list of rpc_address, raw: eight bytes each."""
    end = at + 5 + 8 * _list_head(data, at, _STRUCT, 8)
    return data[at + 5 : end], end


@functools.lru_cache(maxsize=8192)
def _addresses(raw: bytes) -> tuple[str | None, ...]:
    return tuple([_address(raw[n : n + 8]) for n in range(0, len(raw), 8)])


def _read_text_map(data: bytes, at: int) -> tuple[dict[str, str], int]:
    kinds = data[at : at + 2]
    count, at = _count(data, at + 2)
    if count and kinds != b"\x0b\x0b":
        raise _WireError("a map of other types than text to text")
    values: dict[str, str] = {}
    for _ in range(count):
        key, at = _read_text(data, at)
        values[key], at = _read_text(data, at)
    return values, at


def _struct_of(
    fields: Mapping[tuple[int, int], tuple[str, _Reader]], required: Iterable[str] = ()
) -> _Reader:
    """Reads a struct into a dict. fields: (type, id) -> (name, reader). A struct without what is
    required ends the decoding at once: a list of a million empty ones costs nothing."""
    needed = frozenset(required)
    by_tag = {struct.pack(">bh", *key): field for key, field in fields.items()}

    def read_struct(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        while True:
            tag = data[at : at + 3]  # type and id as one key: half the time of unpacking them
            field = by_tag.get(tag)
            if field is not None:
                name, read = field
                values[name], at = read(data, at + 3)
            elif tag[:1] == _STOP:
                if not needed <= values.keys():
                    raise _WireError("no " + ", ".join(sorted(needed - values.keys())))
                return values, at + 1
            else:
                at = _skip(data, at)

    return read_struct


def _skip(data: bytes, at: int) -> int:
    """Past an unknown field. Not past a struct: it may be a raw special type (rdsn-rpc 2.2)."""
    kind, (number, at) = data[at], (_I16.unpack_from(data, at + 1)[0], at + 3)
    if kind in _FIXED_SIZES:
        at += _FIXED_SIZES[kind]
    elif kind == 11:
        _, at = _read_bytes(data, at)
    elif kind in (13, 14, 15):
        kinds = data[at : at + (2 if kind == 13 else 1)]
        count, at = _count(data, at + len(kinds))
        if count and not set(kinds) <= {11, *_FIXED_SIZES}:
            raise _WireError("field %d is unknown and holds structs" % number)
        for each in bytes(kinds) * count:
            at = _read_bytes(data, at)[1] if each == 11 else at + _FIXED_SIZES[each]
    else:
        raise _WireError("field %d is unknown and of type %d, a struct or worse" % (number, kind))
    if at > len(data):
        raise _WireError("the answer is cut off")
    return at


_APP_INFO = _struct_of({
    (8, 1): ("status", _read_i32),
    (11, 2): ("app_type", _read_text),
    (11, 3): ("app_name", _read_bytes),
    (8, 4): ("app_id", _read_i32),
    (8, 5): ("partition_count", _read_i32),
    (13, 6): ("envs", _read_text_map),
    (2, 7): ("is_stateful", _read_bool),
    (8, 8): ("max_replica_count", _read_i32),
    (10, 9): ("expire_second", _read_i64),
    (10, 10): ("create_second", _read_i64),
    (10, 11): ("drop_second", _read_i64),
}, required=("status", "app_name", "app_id"))  # fmt: skip
_PARTITION = _struct_of({
    (12, 1): ("pid", _read_i64),
    (10, 2): ("ballot", _read_i64),
    (8, 3): ("max_replica_count", _read_i32),
    (12, 4): ("primary", _read_address),
    (15, 5): ("secondaries", _read_addresses),
    (15, 6): ("last_drops", _read_addresses),
    (10, 7): ("last_committed_decree", _read_i64),
    (8, 8): ("partition_flags", _read_i32),
    (12, 9): ("hp_primary", _read_host_port),
    (15, 10): ("hp_secondaries", _list_of(_STRUCT, _read_host_port)),
    (15, 11): ("hp_last_drops", _list_of(_STRUCT, _read_host_port)),
})  # fmt: skip
# The fields that every server since 1.11 sends first and in this order, but for the two lists.
_USUAL = (
    struct.Struct(">3sq3sq3si3s8s3sbi"),  # pid, ballot, max_replica_count, primary, secondaries
    struct.Struct(">3sbi"),  # last_drops
    struct.Struct(">3sq3si"),  # last_committed_decree, partition_flags
)
_USUAL_TAGS = tuple(
    struct.pack(">bh", *tag)
    for tag in ((12, 1), (10, 2), (8, 3), (12, 4), (15, 5), (15, 6), (10, 7), (8, 8))
)


def _read_usual(data: bytes, at: int) -> tuple[dict[str, Any], int] | None:
    """The fields of a partition_configuration, eight of them in three steps, which saves a
    quarter of the time (measured); None for any other order, or one that is cut off."""
    first, second, third = _USUAL
    try:
        t1, _, t2, ballot, t3, most, t4, primary, t5, kind, count = first.unpack_from(data, at)
        listed = at + first.size
        at = listed + 8 * count
        t6, drops_kind, drops = second.unpack_from(data, at)
        at += second.size + 8 * drops
        t7, _, t8, _ = third.unpack_from(data, at)
    except struct.error:
        return None
    usual = (t1, t2, t3, t4, t5, t6, t7, t8) == _USUAL_TAGS and kind == drops_kind == _STRUCT
    if not usual or count < 0 or drops < 0:
        return None
    values, at = _PARTITION(data, at + third.size)
    values.update(ballot=ballot, max_replica_count=most, primary=primary)
    values["secondaries"] = data[listed : listed + 8 * count]
    return values, at


def _read_partition(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    values, at = _read_usual(data, at) or _PARTITION(data, at)
    if "ballot" not in values:
        raise _WireError("a partition without ballot")
    return values, at


_NODE_INFO = _struct_of({
    (8, 1): ("status", _read_i32),
    (12, 2): ("node", _read_address),
    (12, 3): ("hp_node", _read_host_port),
}, required=("status", "node"))  # fmt: skip
_RESULT = {(12, 1): ("err", _read_text)}
_LIST_APPS_RESULT = _struct_of(
    {**_RESULT, (15, 2): ("infos", _list_of(_STRUCT, _APP_INFO)), (11, 3): ("hint", _read_text)}
)
_LIST_NODES_RESULT = _struct_of({**_RESULT, (15, 2): ("infos", _list_of(_STRUCT, _NODE_INFO))})
_TEXTS = _list_of(11, _read_text)
_CLUSTER_INFO_RESULT = _struct_of(
    {**_RESULT, (15, 2): ("keys", _TEXTS), (15, 3): ("values", _TEXTS)}
)
_PARTITIONS = _list_of(_STRUCT, _read_partition)
_QUERY_RESULT = _struct_of(
    {**_RESULT, (8, 2): ("app_id", _read_i32), (15, 5): ("partitions", _PARTITIONS)}
)


class _Reply(NamedTuple):
    """The head of an answer frame; `body` is where its result begins."""

    error: str
    name: str
    sequence: int
    body: int


def _read_reply(frame: bytes) -> _Reply:
    error, at = _read_text(frame, 4)
    if frame[at : at + 4] != b"\x80\x01\x00\x02":
        raise _WireError("not a Thrift reply")
    name, at = _read_text(frame, at + 4)
    sequence, at = _read_i32(frame, at)
    return _Reply(error, name, sequence, at)


def _result(frame: bytes, at: int, kind: bytes, read: _Reader) -> Any:
    """The one field of a result: `kind` is its field header, after it nothing may follow."""
    if frame[at : at + 3] != kind:
        raise _WireError("no result")
    value, at = read(frame, at + 3)
    if frame[at:] != _STOP:
        raise _WireError("something follows the result")
    return value


# --- live cluster: the calls (rdsn-rpc.md, section 3) --------------------------------------------


class _NotPrimary(Exception):
    """A standby answered. leader: whom it takes for the primary, if it knows one."""

    def __init__(self, leader: str | None = None) -> None:
        super().__init__("a standby of " + leader if leader else "a standby that knows no primary")
        self.leader = leader


class _Refused(Exception):
    """The server answered with an error: `args[0]` is its name."""


class _Rpc(NamedTuple):
    """A call: its task code, the fields of its request struct, what makes a value of its result."""

    code: str
    args: bytes
    decode: Callable[[bytes, int], Any]


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    error = result.get("err", "no error code")
    if error == "ERR_FORWARD_TO_OTHERS":
        raise _NotPrimary()
    if error != "ERR_OK":
        raise _Refused(error)
    return result


def _guarded(decode: Callable[[bytes, int], Any]) -> Callable[[bytes, int], Any]:
    """Arbitrary bytes raise nothing but _WireError (and what a well-formed answer says)."""

    def guarded(frame: bytes, at: int) -> Any:
        try:
            return decode(frame, at)
        except _WireError:
            raise
        except (ValueError, LookupError, struct.error, TypeError, RecursionError) as error:
            raise _WireError("an answer that makes no sense: %s" % error) from None

    return guarded


class _Listed(NamedTuple):
    """A table as listed; `name` is what the wire calls it."""

    app: App
    name: bytes


@_guarded
def _decode_apps(frame: bytes, at: int) -> list[_Listed]:
    listed = []
    for info in _checked(_result(frame, at, b"\x0c\0\0", _LIST_APPS_RESULT))["infos"]:
        name = info.pop("app_name")
        info["status"] = _APP_STATUSES[_index_of(info["status"], len(_APP_STATUSES))]
        text = name.decode("utf-8", "backslashreplace")
        listed.append(_Listed(App(app_name=text, **info), name))
    return listed


def _index_of(number: int, length: int) -> int:
    if not 0 <= number < length:
        raise _WireError("unknown number of an enum: %d" % number)
    return number


@_guarded
def _decode_nodes(frame: bytes, at: int) -> list[Node]:
    nodes = []
    for info in _checked(_result(frame, at, b"\x0c\0\0", _LIST_NODES_RESULT))["infos"]:
        address: Any = info.get("hp_node") or _address(info["node"])
        _check_address(address, "node")
        nodes.append(Node(address, "ALIVE" if info["status"] == 1 else "UNALIVE"))
    return nodes


@_guarded
def _decode_info(frame: bytes, at: int) -> dict[str, str]:
    result = _checked(_result(frame, at, b"\x0c\0\0", _CLUSTER_INFO_RESULT))
    pairs = zip(result["keys"], result["values"])
    return {key: value for key, value in pairs if key in _INFO_FIELDS}


@_guarded
def _decode_server_info(frame: bytes, at: int) -> dict[str, str]:
    """JSON today, a sentence up to 2.5; anything else tells us nothing."""
    text = _result(frame, at, b"\x0b\0\0", _read_text)
    if text.startswith("{"):
        import json

        info = json.loads(text)
        found = {"version": info.get("version"), "git_commit": info.get("git_SHA")}
    else:
        match = re.match(r"Pegasus Server (\S+) \(([^)]*)\)", text)
        found = {"version": match.group(1), "git_commit": match.group(2)} if match else {}
    for name, value in found.items():
        _check_text(value, name)
    return found


@_guarded
def _decode_query(frame: bytes, at: int) -> tuple[str, int, tuple[Partition, ...]]:
    """(error name, app id, partitions); a standby's answer names the primary."""
    result = _result(frame, at, b"\x0c\0\0", _QUERY_RESULT)
    partitions = []
    for row in result["partitions"]:
        primary = row["hp_primary"] if "hp_primary" in row else _address(row["primary"])
        secondaries = row.get("hp_secondaries")
        if secondaries is None:
            secondaries = _addresses(row["secondaries"])
        ballot, maximum = row["ballot"], row["max_replica_count"]
        if ballot < -1 or maximum < 0 or None in secondaries:
            raise _WireError("a partition with impossible figures or replicas")
        partitions.append(Partition(ballot, maximum, primary, tuple(secondaries)))
    if result["err"] == "ERR_FORWARD_TO_OTHERS":
        raise _NotPrimary(partitions[0].primary if partitions else None)
    return result["err"], result["app_id"], tuple(partitions)


_NO_FILTER = b"\x08\x00\x01\x00\x00\x00\x00"  # field 1, status = 0: any
_CALLS = {
    "apps": _Rpc("RPC_CM_LIST_APPS", _NO_FILTER, _decode_apps),
    "nodes": _Rpc("RPC_CM_LIST_NODES", _NO_FILTER, _decode_nodes),
    "cluster_info": _Rpc("RPC_CM_CLUSTER_INFO", b"", _decode_info),
    "server_info": _Rpc(
        "RPC_CLI_CLI_CALL",
        b"\x0b\x00\x01" + _string(b"server-info") + b"\x0f\x00\x02\x0b\x00\x00\x00\x00",
        _decode_server_info,
    ),
}


def _query(name: bytes, decode: Callable[[bytes, int], Any] = _decode_query) -> _Rpc:
    args = b"\x0b\x00\x01" + _string(name) + b"\x0f\x00\x02\x08\x00\x00\x00\x00"
    return _Rpc("RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX", args, decode)


class _Channel:
    """One connection to one server: pipelined requests, answers matched by sequence id."""

    def __init__(self, address: str, timeout: float, timeout_ms: int) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self._timeout_ms = timeout_ms
        self._sequence = 0
        self._buffer = bytearray()
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout)
        except UnicodeError as error:  # of the IDNA codec: a label that is empty or too long
            raise socket.gaierror(str(error)) from None

    def close(self) -> None:
        self._socket.close()

    def exchange(self, calls: Sequence[_Rpc], first_by: float, deadline: float) -> list[Any]:
        """The results of `calls`, in their order. first_by: when the first must have come."""
        results: list[Any] = [None] * len(calls)
        for begin in range(0, len(calls), _BATCH):
            waiting = {}
            requests = b""
            for n, call in enumerate(calls[begin : begin + _BATCH], begin):
                self._sequence += 1
                waiting[self._sequence] = n
                requests += _request(call.code, call.args, self._sequence, self._timeout_ms)
            self._socket.settimeout(_left(first_by))
            self._socket.sendall(requests)
            while waiting:
                frame = self._frame(first_by)
                first_by = deadline
                reply = _guarded(lambda frame, at: _read_reply(frame))(frame, 0)
                which = waiting.pop(reply.sequence, None)
                if which is None:
                    continue  # left over from a batch that was given up
                if reply.error != "ERR_OK":
                    raise _Refused(reply.error)
                if reply.name != calls[which].code + "_ACK":
                    raise _WireError("an answer to another call: " + reply.name)
                results[which] = calls[which].decode(frame, reply.body)
        return results

    def _frame(self, by: float) -> bytes:
        """The next whole frame; never more is kept than was received."""
        length = 4
        while len(self._buffer) < length or length == 4:
            if len(self._buffer) >= 4:
                if self._buffer.startswith(b"HTTP"):
                    raise _WireError("an HTTP server, not a meta server's RPC port")
                length = _I32.unpack_from(self._buffer)[0]
                if not 8 < length <= _FRAME_BYTES:
                    raise _WireError("a frame of impossible length: %d" % length)
                if len(self._buffer) >= length:
                    break
            self._receive(by)
        frame = bytes(self._buffer[:length])
        del self._buffer[:length]
        return frame

    def _receive(self, by: float) -> None:
        try:
            self._socket.settimeout(_left(by))
            data = self._socket.recv(_RECV_BYTES)
        except socket.timeout:
            if self._sequence == 1 or not self._buffer:
                self._look_closer()
            raise
        if not data:
            raise ConnectionResetError("closed the connection without an answer")
        self._buffer += data

    def _look_closer(self) -> None:
        """A silent server may be waiting for a line of HTTP: end our side and see what it says."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(0.05 * self._timeout_ms / 1000)
            data = self._socket.recv(512)
        except OSError:
            return
        if data[:5] == b"HTTP/" or data.lstrip()[:1] == b"<":
            raise _WireError("an HTTP server, not a meta server's RPC port")


def _left(by: float) -> float:
    left = by - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


class _Part(NamedTuple):
    """A part of the state, and the time.monotonic() at which it was asked for."""

    value: Any
    at: float


class _Table(NamedTuple):
    """A table with its partitions, the list entry it was built of, the answer, and when."""

    app: App
    listed: App
    answer: bytes
    at: float


_NOTHING_KNOWN = _Part(None, -math.inf)
_GONE = {
    "ERR_OBJECT_NOT_FOUND": "DROPPED",
    "ERR_BUSY_CREATING": "CREATING",
    "ERR_BUSY_DROPPING": "DROPPING",
}


class LiveCluster(_Source):
    """A running Pegasus cluster, read through its meta servers' RPC, releases 1.11 to today.

    meta_servers: "host:port" texts, or one text of them joined by commas.
    timeout: seconds within which a call ends, with a state or with an error.
    max_age: seconds for which an answer of the meta servers is used before they are asked again.

    Give it to `StatusServer` as its source: each page then asks only for what it shows. Calling it
    returns the whole `Cluster`, and raises PageError when that is not to be had; `rest` closes the
    connection that is kept for the next call. ValueError for a bad address or time. Thread-safe;
    one caller at a time gets through.
    """

    def __init__(
        self,
        meta_servers: str | Iterable[str],
        *,
        timeout: float = 5.0,
        max_age: float = 1.0,
    ) -> None:
        """Connect to nothing yet."""
        if isinstance(meta_servers, str):
            meta_servers = meta_servers.split(",")
        self._meta_servers = [address.strip() for address in meta_servers]
        for address in self._meta_servers or [""]:
            _check_address(address, "meta servers " + ",".join(self._meta_servers))
        _check_seconds(timeout, "timeout", 0.001)
        _check_seconds(max_age, "max_age")
        self._timeout, self._max_age = timeout, max_age
        self._lock = threading.Lock()
        self._channel: _Channel | None = None
        self._leader: str | None = None
        self._parts: dict[str, _Part] = {}
        self._tables: dict[int, _Table] = {}
        self._failure: PageError | None = None
        self._failures = 0
        self._retry_at = -math.inf

    def __call__(self) -> Cluster:
        """All there is to know, partitions included."""
        state, _ = self.read((("apps", "nodes", "cluster_info", "server_info", "partitions"), ""))
        return _as_cluster(state)

    def needs(self, call: _PageRequest) -> _Needs | None:
        """What the page of `call` shows."""
        return (call.needs, call.query.name) if call.needs else None

    def rest(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._drop_channel()

    def forked(self) -> None:
        """A lock and a connection of its own for a child process."""
        self._lock = threading.Lock()
        self._drop_channel()

    def read(self, needs: _Needs) -> tuple[_State, float]:
        """The state, or a PageError, with the time.monotonic() until which it holds."""
        with self._lock:
            deadline = time.monotonic() + 0.9 * self._timeout  # the rest is for the way back
            try:
                state, until = self._read(needs, deadline)
            except _Unreachable as error:
                if self._retry_at <= time.monotonic():  # an attempt that was made, not spared
                    self._failure, self._failures = error, self._failures + 1
                    self._retry_at = time.monotonic() + min(0.05 * 2 ** min(self._failures, 5), 1.0)
                return error, self._retry_at
            except PageError as error:
                return error, time.monotonic() + min(self._max_age, 1.0)
            self._failures = 0
            return state, until

    def _read(self, needs: _Needs, deadline: float) -> tuple[_State, float]:
        parts, name = needs
        self._refresh([part for part in parts if part != "server_info"], deadline)
        info: dict[str, str] = {}
        if "cluster_info" in parts:
            info = dict(self._parts["cluster_info"].value)
            info.setdefault("balance_operation_count", "unknown")
            if not {"primary_replica_count_stddev", "total_replica_count_stddev"} <= info.keys():
                parts += ("apps", "nodes", "partitions")  # before 1.11.3: computed from these
                self._refresh(("apps", "nodes"), deadline)
        asked = [part for part in parts if part not in ("partitions", "server_info")]
        times = [self._parts[part].at for part in asked]
        apps: list[App] = []
        if "apps" in parts:
            apps = [listed.app for listed in self._parts["apps"].value]
        if "partitions" in parts:
            apps = self._with_partitions(name, deadline, times)
            apps = [app for app in apps if not name or app.app_name == name]
        if "server_info" in parts:
            info.update(self._version_of_cluster(deadline))
            times.append(self._parts["server_info"].at)
        nodes = self._parts["nodes"].value if "nodes" in parts else ()
        try:
            return Cluster(apps, nodes, **info), min(times) + self._max_age
        except ValueError as error:
            hint = "the meta server's answer makes no sense: %s" % error
            raise PageError(502, "ERR_NETWORK_FAILURE", hint) from None

    def _refresh(self, parts: Iterable[str], deadline: float) -> None:
        """Ask for those of `parts` that are too old."""
        now = time.monotonic()
        stale = [
            part for part in _CALLS
            if part in parts and self._parts.get(part, _NOTHING_KNOWN).at + self._max_age <= now
        ]  # fmt: skip
        if stale:
            values = self._exchange([_CALLS[part] for part in stale], deadline)
            for part, value in zip(stale, values):
                self._keep(part, value, now)

    def _version_of_cluster(self, deadline: float) -> dict[str, str]:
        """Of all that is asked for this is an extra: no failure of it spoils or delays a page."""
        now = time.monotonic()
        try:
            self._refresh(["server_info"], min(deadline, now + _GLANCE_SECONDS))
        except PageError:
            before = self._parts.get("server_info", _Part({}, now)).value
            self._parts["server_info"] = _Part(before, now + 5.0)
        return dict(self._parts["server_info"].value)

    def _keep(self, part: str, value: Any, now: float) -> None:
        """Equal tables keep their objects: what was computed of them still holds."""
        if part == "apps":
            known = {item.app.app_id: item for item in self._parts.get(part, _Part((), 0)).value}
            same = (known.get(item.app.app_id) for item in value)
            value = [old if old == item else item for old, item in zip(same, value)]
            ids = {item.app.app_id for item in value}
            self._tables = {key: table for key, table in self._tables.items() if key in ids}
        self._parts[part] = _Part(value, now)

    def _with_partitions(self, name: str, deadline: float, times: list[float]) -> list[App]:
        """The tables; those that the page shows (`name` or all) with their partitions."""
        now = time.monotonic()
        listed = self._parts["apps"].value
        shown = [
            item for item in listed
            if item.app.status == "AVAILABLE" and (not name or item.app.app_name == name)
        ]  # fmt: skip
        stale = []
        for item in shown:
            table = self._tables.get(item.app.app_id)
            fresh = table is not None and table.at + self._max_age > now
            if not fresh or (table is not None and table.listed is not item.app):
                stale.append(item)
        if stale:
            calls = [_query(item.name, functools.partial(self._table, item, now)) for item in stale]
            for answered in self._exchange(calls, deadline):
                self._tables[answered.listed.app_id] = answered
        tables = {item.app.app_id: self._tables[item.app.app_id] for item in shown}
        times += [table.at for table in tables.values()]
        return [
            tables[item.app.app_id].app if item.app.app_id in tables else item.app
            for item in listed
        ]

    def _table(self, item: _Listed, now: float, frame: bytes, at: int) -> _Table:
        """What a query's answer makes of a listed table; an equal answer makes the same object."""
        answer = frame[at:]
        known = self._tables.get(item.app.app_id)
        if known is not None and known.answer == answer and known.listed is item.app:
            return known._replace(at=now)
        error, app_id, partitions = _decode_query(frame, at)
        if error == "ERR_OK" and app_id != item.app.app_id:
            error = "ERR_OBJECT_NOT_FOUND"  # dropped, and its name given to another
        if error in _GONE:
            return _Table(item.app._replace(status=_GONE[error]), item.app, answer, now)
        if error != "ERR_OK":
            raise _Refused(error)
        return _Table(item.app._with_decoded(partitions), item.app, answer, now)

    # --- finding the primary (rdsn-rpc.md, section 4) --------------------------------------------

    def _exchange(self, calls: Sequence[_Rpc], deadline: float) -> list[Any]:
        """The results of `calls` from the primary, wherever it is by now; or PageError."""
        if self._failure is not None and time.monotonic() < self._retry_at:
            raise self._failure.with_traceback(None)
        first = [self._leader] if self._leader else []
        todo = collections.deque(dict.fromkeys(first + self._meta_servers))
        troubles: dict[str, Exception] = {}
        hops = 0
        while todo:
            address = todo.popleft()
            now = time.monotonic()
            first_by = now + max(deadline - now, 0.0) / (len(todo) + 1)
            try:
                results = self._ask(address, calls, first_by, deadline)
            except (OSError, _WireError, _Refused, _NotPrimary) as error:
                troubles[address] = error
                leader = getattr(error, "leader", None)
                if leader and leader not in troubles and hops < _MAX_HOPS:
                    hops += 1
                    todo = collections.deque(dict.fromkeys([leader, *todo]))
            else:
                self._leader, self._failure = address, None
                return results
        self._drop_channel()
        raise _explain(troubles)

    def _ask(
        self, address: str, calls: Sequence[_Rpc], first_by: float, deadline: float
    ) -> list[Any]:
        """Ask one server, over a new connection if the one that was kept turns out broken."""
        reused = self._channel is not None and self._channel.address == address
        try:
            channel = self._connect(address, first_by)
            try:
                return channel.exchange(calls, first_by, deadline)
            except _NotPrimary as standby:
                if standby.leader is None:  # only this query's answer names the primary
                    channel.exchange([_query(b"")], first_by, deadline)
                raise
        except (_WireError, OSError) as error:
            self._drop_channel()
            if not reused or isinstance(error, (_WireError, socket.timeout)):
                raise
        return self._ask(address, calls, first_by, deadline)

    def _connect(self, address: str, by: float) -> _Channel:
        if self._channel is None or self._channel.address != address:
            self._drop_channel()
            self._channel = _Channel(address, _left(by), int(self._timeout * 1000))
        return self._channel

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class _Unreachable(PageError):
    """There is no primary to talk to: all pages have to wait, none is worth an attempt."""


_ABSENT = ("ERR_SERVICE_NOT_ACTIVE", "ERR_HANDLER_NOT_FOUND")  # not (yet) a primary, says a server


def _explain(troubles: Mapping[str, Exception]) -> PageError:
    """One error out of what each server said, the most telling kind first."""
    said = "; ".join("%s: %s" % (address, _say(error)) for address, error in troubles.items())
    errors = list(troubles.values())
    refused = [str(error.args[0]) for error in errors if isinstance(error, _Refused)]
    answered = set(refused) - set(_ABSENT) or any(isinstance(error, _WireError) for error in errors)
    kind = PageError if answered else _Unreachable
    if "ERR_SERVICE_NOT_ACTIVE" in refused or any(isinstance(e, _NotPrimary) for e in errors):
        hint = "no primary meta server answers: " + said
        return kind(503, "ERR_SERVICE_NOT_ACTIVE", hint, _RETRY_AFTER)
    if refused:
        return kind(502, refused[-1], "the meta server refused: " + said)
    if any(isinstance(error, socket.timeout) for error in errors):
        return kind(504, "ERR_TIMEOUT", "no meta server answered in time: " + said)
    return kind(502, "ERR_NETWORK_FAILURE", "no meta server is reachable: " + said)


def _say(error: Exception) -> str:
    if isinstance(error, _Refused) and error.args[0] == "ERR_HANDLER_NOT_FOUND":
        return "ERR_HANDLER_NOT_FOUND: a replica server, or a meta server that is still starting"
    if isinstance(error, socket.timeout):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "the host name does not resolve"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


# === 13. Overview page for people ================================================================

# === 14. Command line ============================================================================

def _listen_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected HOST:PORT, :PORT or [IPV6]:PORT, got %r" % text)
    return host.strip("[]") or "127.0.0.1", int(port)


_EXAMPLES = """examples:
  python -m pegasus_http --role meta
  python -m pegasus_http --role meta --cluster 10.0.0.1:34601,10.0.0.2:34601 --listen :8080
"""


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="pegasus_http",
        description="Serve the HTTP status pages of Apache Pegasus.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("server").add_argument
    add("--role", choices=_BOTH, help="whose pages to serve; needed to serve")
    add("--listen", metavar="HOST:PORT", help="default 127.0.0.1:34601 (meta), :34801 (replica); "
        "port 0 takes a free one")  # fmt: skip
    add("--flat", action="store_true", help="page shapes of the releases after 1.12.0")
    add("--app-version", metavar="V", help="Version on /version (default: the source's)")
    add("--git-commit", metavar="G", help="GitCommit on /version (default: the source's)")
    add("--max-connections", metavar="N", type=int, default=_MAX_CONNECTIONS,
        help="at once (default %(default)s)")  # fmt: skip
    add("--no-gzip", action="store_true", help="never compress")
    _add_sources(parser)
    add = parser.add_argument_group("instead of serving").add_argument
    add("--dump", action="store_true", help="print the state as JSON, for --state")
    add("--check", action="store_true", help="exit 0 if the source gives a good state, else 1")
    add("--routes", action="store_true", help="print the dispatch table")
    add("--version", action="version", version="pegasus_http " + __version__)
    add = parser.add_argument_group("logging, to standard error").add_argument
    add("--access-log", action="store_true", help="a line per request, Common Log Format")
    add("--log-level", metavar="L", default="warning", help="default %(default)s",
        type=str.lower,
        choices=("debug", "info", "warning", "error", "critical"))  # fmt: skip
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "source of the meta pages", "one of these; none: a built-in sample"
    )
    add = group.add_mutually_exclusive_group().add_argument
    add("--cluster", metavar="H:P[,H:P...]", help="meta servers of a running cluster")
    add("--state", metavar="FILE", help="a saved state, - for standard input; SIGHUP reloads it")
    add("--standby-of", metavar="H:P", help="be a standby that redirects to this primary")
    add = group.add_argument
    add("--max-age", metavar="S", type=float, default=1.0,
        help="seconds before a source is asked again (default %(default)s)")  # fmt: skip
    add("--timeout", metavar="S", type=float, default=5.0,
        help="seconds a page waits for its source (default %(default)s)")  # fmt: skip


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked: SystemExit with code 2 and one line where it is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    serving = not (options.dump or options.check or options.routes)
    if serving and options.role is None:
        parser.error("--role is needed: meta or replica")
    if options.role == "replica" and (options.cluster or options.state or options.standby_of):
        parser.error("a replica server has no meta pages: --role meta goes with a source")
    default = "127.0.0.1:34801" if options.role == "replica" else "127.0.0.1:34601"
    try:
        options.listen = _listen_address(options.listen or default)
        _check_count(options.max_connections, "--max-connections", least=1)
        _check_seconds(options.timeout, "--timeout", 0.001)
        _check_seconds(options.max_age, "--max-age")
        if options.cluster is not None:
            settings = {"timeout": options.timeout, "max_age": options.max_age}
            options.cluster = LiveCluster(options.cluster, **settings)
        if options.standby_of is not None:
            options.standby_of = Standby(options.standby_of)
    except ValueError as error:
        parser.error(str(error))
    return options


def _source(options: argparse.Namespace) -> tuple[Any, str]:
    """The source of the meta pages and what it is called; OSError or ValueError without one."""
    if options.cluster is not None:
        return options.cluster, "cluster"
    if options.state == "-":
        return _load_cluster(sys.stdin.buffer.read(_STATE_BYTES + 1), "standard input"), "state"
    if options.state is not None:
        state_file = StateFile(options.state, max_age=options.max_age)
        state_file()
        return state_file, "state"
    if options.standby_of is not None:
        return options.standby_of, "standby"
    return (None, "none") if options.role == "replica" else (_sample(), "sample")


def _show_state(source: Any, dump: bool) -> None:
    """--dump and --check."""
    state = source() if callable(source) else source
    if not isinstance(state, Cluster):
        raise ValueError("there is no cluster state to show: a standby or replica has none")
    if dump:
        import json

        json.dump(_cluster_to_json(state), sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        tables = [app for app in state.apps if app.status == "AVAILABLE"]
        partitions = sum(app.partition_count for app in tables)
        counts = (len(tables), partitions, len(state.nodes))
        print("ok: %d available tables, %d partitions, %d nodes" % counts)


def _show_routes() -> None:
    print("| path | roles | parameters | answer |\n|---|---|---|---|")
    for path, route in sorted(ROUTES.items()):
        parameters = ", ".join((*route.parameters, "pretty"))
        print("| `%s` | %s | %s | %s |" % (path, ", ".join(route.roles), parameters, _help(route)))


def _set_up_logging(options: argparse.Namespace) -> None:
    import logging

    log_format = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=options.log_level.upper(), format=log_format)
    if options.access_log:
        access = _logger(".access")
        access.addHandler(logging.StreamHandler())
        access.setLevel(logging.INFO)
        access.propagate = False


def _serve(options: argparse.Namespace, source: Any, label: str) -> int:
    import signal

    host, port = options.listen
    server = StatusServer(
        source, role=options.role, host=host, port=port, version=options.app_version,
        git_commit=options.git_commit, flat=options.flat, max_age=options.max_age,
        timeout=options.timeout, max_connections=options.max_connections,
        compress=not options.no_gzip, access_log=options.access_log,
    )  # fmt: skip
    ends = [signal.SIGINT, signal.SIGTERM]
    reloads = [signal.SIGHUP] if isinstance(source, StateFile) else []
    with _Caught(ends + reloads) as caught:
        try:
            server.start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            hint = "cannot listen on %s: %s; --listen :0 takes a free port"
            return _fail(hint % (_join(host, port), reason))
        line = (server.url, options.role, label, os.getpid())
        print("listening on %s role=%s source=%s pid=%d" % line, flush=True)
        if isinstance(source, LiveCluster):
            server._ask(_resolve("GET", "/meta/apps", "meta"), _warn_if_unreachable)
        while caught.recv(1)[0] not in ends:
            source.reload()
            server._distrust()
    server.stop()
    return 0


class _Caught:
    """A context: a socket that receives a byte, its number, for each of these signals.

    Not an Event or a flag: a signal that strikes just before the wait would be slept over. In the
    end they are ignored: one more must not kill the interpreter while it shuts down.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._inbox, self._outbox = socket.socketpair()

    def __enter__(self) -> socket.socket:
        import signal

        self._outbox.setblocking(False)
        signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, lambda *_: None)
        return self._inbox

    def __exit__(self, *exc: object) -> None:
        import signal

        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._inbox.close()
        self._outbox.close()


def _warn_if_unreachable(state: _State) -> None:
    if isinstance(state, PageError):
        _logger().warning("%s; serving, and asking again with the next request", state.hint_message)


def _fail(text: str) -> int:
    print("pegasus_http: error: " + text, file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``.

    argv: its arguments, None for those of the process. Returns the exit code: 0 after SIGINT or
    SIGTERM, 1 with one line on standard error when it cannot serve. Raises SystemExit: 2 for wrong
    usage, 0 after --help and --version. To be called in the main thread of a process that ends
    with it: it takes over the signals.
    """
    options = _options(argv)
    try:
        if options.routes:
            _show_routes()
            return 0
        _set_up_logging(options)
        source, label = _source(options)
        if options.dump or options.check:
            _show_state(source, options.dump)
            return 0
        return _serve(options, source, label)
    except PageError as error:
        return _fail(error.hint_message)
    except ValueError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail("%s: %s" % (error.filename, error.strerror) if error.filename else str(error))


if __name__ == "__main__":
    sys.exit(main())
