"""States that follow each other: what pages take over from the last one never shows."""

import json
import random

import pytest

import pegasus_http as ph
import support

TARGETS = ("/meta/apps", "/meta/apps?detail", "/meta/nodes", "/meta/nodes?detail", "/meta/cluster")


def body(state, target):
    return ph.respond(state, "GET", target, role="meta").body


def partitions(chance, addresses):
    rows = []
    for _ in range(chance.randrange(4)):
        replicas = chance.sample(addresses, chance.randrange(min(4, len(addresses) + 1)))
        primary = replicas.pop() if replicas and chance.random() < 0.9 else None
        rows.append(ph.Partition(chance.randrange(9), 3, primary, tuple(replicas)))
    return rows


def table(chance, app_id, addresses):
    known = chance.random() < 0.9
    return ph.App(
        app_id, "t%d" % app_id, partitions(chance, addresses) if known else None,
        None if known else 4, status=chance.choice(("AVAILABLE",) * 6 + ("DROPPED", "CREATING")),
    )


def changed(chance, state):
    """The same cluster but for a few tables and nodes."""
    addresses = [node.address for node in state.nodes] or ["10.0.0.1:1"]
    apps = list(state.apps)
    for _ in range(chance.randrange(4)):
        kind = chance.choice(("add", "change", "change", "drop", "move"))
        place = chance.randrange(len(apps)) if apps else 0
        if kind == "add" or not apps:
            free = set(range(1, 70)) - {app.app_id for app in apps}
            apps.insert(place, table(chance, chance.choice(sorted(free)), addresses))
        elif kind == "change":
            apps[place] = table(chance, apps[place].app_id, addresses)
        elif kind == "drop":
            del apps[place]
        else:
            apps.append(apps.pop(place))
    nodes = list(state.nodes)
    if chance.random() < 0.3:
        nodes = nodes[chance.randrange(2):] + [ph.Node("10.0.0.%d:1" % chance.randrange(100, 200))]
    return state._replace(apps=apps, nodes=dict.fromkeys(nodes))


@pytest.mark.parametrize("seed", range(20))
def test_a_page_is_the_same_whatever_was_served_before(seed):
    chance = random.Random(seed)
    state = support.cluster(tables=chance.randrange(40), nodes=6)
    server = ph.StatusServer(state, role="meta")
    for _ in range(60):
        for target in chance.sample(TARGETS, chance.randrange(len(TARGETS))):
            assert body(state, target) == body(ph.Cluster(*state), target), target
        state = changed(chance, state)
        server.publish(state)


def counts(state, address, target="/meta/nodes?detail"):
    row = json.loads(body(state, target).decode())["details"][address]
    return [int(row[key]) for key in ("replica_count", "primary_count", "secondary_count")]


@pytest.mark.parametrize("how", ["removed", "DROPPED", "CREATING"])
def test_a_dropped_table_has_no_replicas_any_more(how):
    address, before = "10.0.0.1:34801", support.cluster(tables=3, nodes=3)
    server = ph.StatusServer(before, role="meta")
    assert counts(before, address) == [12, 4, 8]
    one, two, three = before.apps
    left = [one, three] if how == "removed" else [one, two._replace(status=how), three]
    after, back = before._replace(apps=left), before._replace()
    server.publish(after)
    assert counts(after, address) == [8, 3, 5]
    assert list(json.loads(body(after, "/meta/apps").decode())["general_info"]) == ["1", "3"]
    kept = counts(before, address, "/meta/nodes?detail&pretty")  # a page not asked for before
    assert kept == [12, 4, 8], "the older state is not touched"
    server.publish(back)
    assert counts(back, address) == [12, 4, 8]


def test_addresses_that_are_gone_are_forgotten():
    server = ph.StatusServer(role="meta")
    for n in range(300):
        address = "10.0.%d.%d:1" % divmod(n, 250)
        app = ph.App(1, "t", [ph.Partition(primary=address, secondaries=("10.1.0.1:1",))])
        state = ph.Cluster([app], [ph.Node(address)])
        server.publish(state)
        assert b'"primary_count":"1"' in body(state, "/meta/nodes?detail")
    assert [list(counts) for counts in state._replicas] == [[address], ["10.1.0.1:1"]]


def test_equal_pages_have_equal_tags_and_others_do_not():
    def tag(state, target, *fields):
        answer = ph.respond(state, "GET", target, fields, role="meta")
        return dict(answer.headers)["ETag"]

    one, again = (support.cluster(tables=30, nodes=30) for _ in range(2))
    other = one._replace(apps=one.apps[:-1])
    server = ph.StatusServer(one, role="meta")
    server.publish(other)
    for target in TARGETS[:4]:
        plain, pretty = tag(one, target), tag(one, target + "&?"["?" not in target] + "pretty")
        assert len({plain, pretty, tag(one, target, ("Accept-Encoding", "gzip"))}) == 3
        assert tag(again, target) == plain
        assert (tag(other, target) == plain) == (body(other, target) == body(one, target))
