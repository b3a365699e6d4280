"""The overview page for people: its answer on the wire, and what a real browser makes of it."""

import base64
import contextlib
import hashlib
import html.parser
import json
import logging
import re
import threading

import pytest

import browser
import pegasus_http as ph
import support

HTML = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
NASTY = [
    "<img src=x onerror=window.hurt=1>", "<script>window.hurt=1</script>", "</script><b>",
    "x" * 200, "javascript:window.hurt=1", "a&amp;b \"c' d", "\u202eevil", "%3Cb%3E?&name=#",
]  # fmt: skip


def table(name, healths="ok", app_id=1, replicas=3):
    """A table with one partition per letter: o and k fully healthy, u unhealthy, w, r."""
    places = {"u": ("10.0.0.1:1", "10.0.0.2:1"), "w": ("10.0.0.1:1",), "r": (None,)}
    full = ("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
    return ph.App(app_id, name, max_replica_count=replicas, partitions=[
        ph.Partition(ballot=7, primary=place[0], secondaries=tuple(place[1:]))
        for place in (places.get(letter, full) for letter in healths)
    ])


def cluster(*apps, dead=(), **info):
    nodes = [ph.Node("10.0.0.%d:1" % n, "UNALIVE" if n in dead else "ALIVE") for n in (1, 2, 3)]
    info = {"zookeeper_root": "/pegasus/test", "primary_meta_server": "10.0.0.1:34601", **info}
    return ph.Cluster(apps, nodes, **info)


# --- the answer, without a browser ----------------------------------------------------------------

@pytest.fixture(scope="module")
def port():
    with ph.start(cluster(table("temp")), role="meta") as server:
        yield server.port


ACCEPTS = [
    ("Accept: text/html", True),
    (HTML, True),
    ("Accept: TEXT/HTML;charset=utf-8", True),
    ("Accept: application/json, text/html;q=0.1", True),
    ("Accept: text/html;q=0", False),
    ("Accept: text/html; q=0.000, */*", False),
    ("Accept: */*", False),
    ("Accept: text/*", False),
    ("Accept: application/json", False),
    ("Accept: text/html-not", False),
    ("Accept: x-text/html", False),
    ("Accept:", False),
    ("X-Nothing: at all", False),
]


@pytest.mark.parametrize("field, is_html", ACCEPTS)
def test_who_names_html_gets_the_page_and_programs_get_json(port, field, is_html):
    answer = support.get(port, "/", field)
    wanted = "text/html; charset=utf-8" if is_html else "application/json"
    assert (answer.status, answer.headers["content-type"]) == (200, wanted)
    assert "accept" in re.split(", *", answer.headers["vary"].lower())
    if is_html:
        assert answer.body.startswith(b"<!doctype html>")
    else:
        assert "/version" in answer.json


def test_only_the_root_has_a_page_for_people(port):
    assert support.get(port, "/version", HTML).headers["content-type"] == "application/json"
    assert support.get(port, "/nosuch", HTML).headers["content-type"] == "application/json"


def test_head_and_conditional_requests(port):
    answer = support.get(port, "/", HTML)
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = support.get(port, "/", HTML, method="HEAD")
    for name in ("content-length", "content-type", "etag", "content-security-policy", "vary"):
        assert head.headers[name] == answer.headers[name]
    again = support.get(port, "/", HTML, "If-None-Match: " + answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["vary"] == answer.headers["vary"]
    program = support.get(port, "/", "If-None-Match: " + answer.headers["etag"])
    assert program.status == 200 and program.headers.get("etag") != answer.headers["etag"]
    zipped = support.get(port, "/", HTML, "Accept-Encoding: gzip")
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.headers["etag"] != answer.headers["etag"] and len(zipped.body) < 10000


def test_every_role_and_state_has_the_page():
    trouble = ph.PageError(504, "ERR_TIMEOUT", "too slow")
    for state in (None, ph.Standby("10.0.0.2:1"), ph.Standby(None), ph.Cluster(), trouble):
        for role in ("meta", "replica"):
            response = ph.respond(state, "GET", "/", {"Accept": "text/html"}, role=role)
            assert response.body.startswith(b"<!doctype html>")


class Markup(html.parser.HTMLParser):
    """Counts the elements and collects the attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs


def test_the_policy_names_the_one_script_and_the_one_style(port):
    answer = support.get(port, "/", HTML)
    text = answer.body.decode("utf-8")
    markup = Markup(text)
    assert markup.elements.count("script") == markup.elements.count("style") == 1
    for name, value in markup.attributes:
        assert not name.startswith("on") and name not in ("style", "src", "action"), name
        assert name != "href" or not re.match(r"\w+:|//", value), value  # nothing from elsewhere
    wanted = {
        "default-src": "'none'", "connect-src": "'self'", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    for tag in ("script", "style"):
        source = re.search("<%s>(.*?)</%s>" % (tag, tag), text, re.S)[1].encode()
        digest = base64.b64encode(hashlib.sha256(source).digest()).decode()
        wanted[tag + "-src"] = "'sha256-%s'" % digest
    policy = answer.headers["content-security-policy"]
    parts = [part.strip().partition(" ") for part in policy.split(";") if part.strip()]
    assert {name: value for name, _, value in parts} == wanted


def test_without_its_text_browsers_get_json_too(monkeypatch):
    monkeypatch.setitem(ph.ROUTES, "/", ph.ROUTES["/"]._replace(for_people=""))
    response = ph.respond(None, "GET", "/", {"Accept": "text/html"})
    assert dict(response.headers)["Content-Type"] == "application/json"


# --- in a browser ---------------------------------------------------------------------------------

# The clock of the page stands still: what it plans for 5 seconds later happens when the test says
# tick(), what it plans for 20 seconds later when the test says tock(). All other timers are real.
# With #fast, 5 seconds are a twentieth of a second, and all else is as in a browser.
CLOCK = """
    const [start, stop, ask] = [setTimeout, clearTimeout, fetch].map((f) => f.bind(window));
    const planned = new Map();
    let last = 0, sent = 0;
    const fire = (delay) => {
      for (const [id, [run, after]] of [...planned]) {
        if (after === delay && planned.delete(id)) run();
      }
      return true;
    };
    window.tick = () => fire(5000);
    window.tock = () => fire(20000);
    window.due = () => [...planned.values()].filter((timer) => timer[1] === 5000).length;
    window.sent = () => sent;
    window.all = (selector) => [...document.querySelectorAll(selector)];
    window.count = (selector) => all(selector).length;
    window.byId = (id) => document.getElementById(id);
    if (location.hash === "#fast") {
      window.setTimeout = (run, after) => start(run, after === 5000 ? 50 : after);
    } else {
      window.setTimeout = (run, after) => {
        if (after < 5000) return start(run, after);
        planned.set(last -= 1, [run, after]);
        return last;
      };
      window.clearTimeout = (id) => planned.delete(id) || stop(id);
      AbortSignal.timeout = (after) => {
        const abort = new AbortController();
        planned.set(last -= 1, [() => abort.abort(), after]);
        return abort.signal;
      };
      window.fetch = (...args) => { sent += 1; return ask(...args); };
    }
"""

# A promise that is kept after all timers that are due have run.
LATER = "new Promise((done) => setTimeout(done, 100))"


@pytest.fixture(scope="module")
def chromium():
    if browser.CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    with browser.running() as page:
        page.command("Page.enable")
        page.command("Page.addScriptToEvaluateOnNewDocument", source="{%s}" % CLOCK)
        yield page


@pytest.fixture
def page(chromium):
    chromium.look()
    yield chromium
    chromium.open("about:blank")


@pytest.fixture
def targets(caplog):
    """Takes what the server has answered since the last call: (target, status), in order."""
    caplog.set_level(logging.INFO, "pegasus_http.access")

    def take():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        found = [re.search(r'"GET (\S+) HTTP/1.1" ([0-9]+)', line) for line in lines]
        return [(match[1], int(match[2])) for match in found if match]

    return take


@contextlib.contextmanager
def watched(page, state, role="meta", **settings):
    """A server, and the page open on it with the first figures on the screen."""
    with ph.start(state, role=role, **settings) as server:
        page.open(server.url + "/")
        page.wait("due() === 1")
        yield server


def texts(page, selector):
    return page.run("all(%s).map((found) => found.textContent)" % json.dumps(selector))


def turn(page):
    """One refresh, from its start to its end."""
    page.run("tick()")
    page.wait("due() === 1")


NOTE, CELLS = ".row[open] p", ".row[open] li"


def names(page):
    return texts(page, ".row .name")


def shown(page, selector):
    """The text of one element, line by line; "" when it is hidden.

    By `textContent`: what is scrolled out of sight is not laid out and has no `innerText`.
    """
    text = page.run(
        "(() => { const found = document.querySelector(%s);"
        " return found && found.checkVisibility() ? found.textContent : ''; })()"
        % json.dumps(selector)
    )
    return re.sub("\\s*\n\\s*", "\n", text)


def open_table(page, name):
    page.run(
        "all('.row .name').find((name) => name.textContent === %s).click()" % json.dumps(name)
    )
    page.wait("count('.row[open] li') && due() === 1")


@pytest.mark.parametrize("flat", [False, True])
def test_the_cluster(page, flat):
    apps = [
        table("fine", "oooo", 1), table("short", "ou", 2), table("no-write", "ow", 3),
        table("no-read", "or", 4), table("alone", "ww", 5, replicas=1), table("Zebra10", "o", 6),
        table("Zebra9", "o", 7),
    ]  # fmt: skip
    state = cluster(*apps, dead=[2], meta_servers="10.0.0.1:34601,10.0.0.9:34601",
                    meta_function_level="steady", balance_operation_count=(1, 2, 3))
    with watched(page, state, flat=flat):
        assert names(page) == ["no-read", "no-write", "short", "alone", "fine", "Zebra9", "Zebra10"]
        facts = shown(page, "#cluster dl")
        for text in ("10.0.0.1:34601, 10.0.0.9:34601", "steady", "move_pri=1, copy_pri=2"):
            assert text in facts
        assert shown(page, "h1") == "/pegasus/test"
        assert shown(page, "#table-sum") == "✖ 3 of 7 tables unhealthy"
        assert shown(page, "#node-sum") == "✖ 1 of 3 nodes unalive"
        assert page.run("document.title") == "✖ /pegasus/test"
        assert shown(page, "#nodes li").startswith("✖ 10.0.0.2:1 UNALIVE")
        row = shown(page, "#tables .row")
        for text in ("no-read", "✓ 1 fully healthy", "◐ 1 unhealthy", "▲ 1 write", "✖ 1 read"):
            assert text in row
        widths = "all(%s).map((i) => [i.className, i.style.width])"
        found = page.run(widths % "'#tables .row:first-child i:not([hidden])'")
        assert found == [["k0", "50%"], ["k3", "50%"]]
        [[kind, width]] = page.run(widths % "'#nodes li:first-child i:not([hidden])'")
        assert kind == "s" and width.startswith("76.9")  # 10 of the 13 that the fullest has
        assert shown(page, "#trouble") == "" and not page.run("document.body.matches('.stale')")


def test_an_empty_cluster_and_a_healthy_one(page):
    with watched(page, cluster()) as server:
        assert names(page) == [] and shown(page, "#table-sum") == "✓ 0 tables"
        server.publish(cluster(table("temp", "oo")))
        page.wait("tick() && document.title === '✓ /pegasus/test' && count('.row') === 1")
        assert page.run("count('.name *')") == 0


def test_hostile_texts_are_shown_as_texts(page):
    apps = [table(name, "or", n) for n, name in enumerate(NASTY, 1)]
    state = cluster(*apps, zookeeper_root=NASTY[0], zookeeper_hosts=NASTY[1])
    with watched(page, state):
        assert sorted(names(page)) == sorted(NASTY)
        for name in NASTY:
            open_table(page, name)
            assert shown(page, NOTE) == "" and "read-unhealthy" in shown(page, ".row[open] ul")
        assert shown(page, "h1") == NASTY[0] and NASTY[1] in shown(page, "#cluster dl")
        assert page.run("count('img, script')") == 1
        assert page.run("window.hurt === undefined")
        for width in (1440, 390):
            page.look(width)
            page.wait("innerWidth === %d" % width)
            assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_the_partitions_of_a_table(page, targets):
    state = cluster(table("temp", "ouwr", 1), table("other", "o", 2))
    with watched(page, state, access_log=True) as server:
        targets()
        open_table(page, "temp")
        assert [re.split(" *\n *", cell) for cell in texts(page, CELLS)] == [
            ["✓ 0", "3/3 replicas, ballot 7", "primary 10.0.0.1:1",
             "secondary 10.0.0.2:1, 10.0.0.3:1"],
            ["◐ 1 unhealthy", "2/3 replicas, ballot 7", "primary 10.0.0.1:1",
             "secondary 10.0.0.2:1"],
            ["▲ 2 write-unhealthy", "1/3 replicas, ballot 7", "primary 10.0.0.1:1", "secondary -"],
            ["✖ 3 read-unhealthy", "0/3 replicas, ballot 7", "primary -", "secondary -"],
        ]  # fmt: skip
        colours = page.run("all('.row[open] li').map((cell) => "
                           "getComputedStyle(cell).borderLeftColor)")
        assert len(set(colours)) == 4
        wanted = ["/meta/app?detail&name=temp", "/meta/apps?detail"]
        others = []
        for _ in range(4):
            asked = sorted(target for target, _ in targets())
            assert len(asked) == 3 and asked[:2] == wanted
            others.append(asked[2])
            turn(page)
        assert others[:2] == others[2:] and set(others) == {"/meta/cluster", "/meta/nodes?detail"}
        server.publish(cluster(table("temp", "o", 1), table("other", "o", 2)))
        page.wait("tick() && count('.row[open] li') === 1")
        for name in ("other", "temp", "other"):
            open_table(page, name)
            assert page.run("count('.row[open]')") == 1
        temp, other = table("temp", "o", 1), table("other", "o", 2)
        for apps in ([temp], [temp, other]):  # the open one is dropped, and recalled
            server.publish(cluster(*apps))
            turn(page)
            assert page.run("[count('.row'), count('.row[open]')]") == [len(apps), 0]
        open_table(page, "other")


def test_a_table_of_many_partitions_shows_the_worst(page):
    with watched(page, cluster(table("wide", "o" * 1500 + "r"))):
        open_table(page, "wide")
        assert page.run("count('.row[open] li')") == 1024
        assert shown(page, CELLS).startswith("✖ 1500") and "1501" in shown(page, ".row[open] ul")


def test_trouble_with_one_table_is_shown_in_its_place(page):
    """A table whose partitions nobody knows."""
    blind = ph.App(2, "blind", partitions=None, partition_count=4)
    with watched(page, cluster(table("temp"), blind)):
        page.run("byId('table-2').click()")
        page.wait("all('.row[open] p').some((note) => note.innerText.includes('not known'))")
        page.wait("due() === 1")
        assert shown(page, "#trouble") == ""


def test_at_most_three_requests_and_304s(page, targets):
    with watched(page, cluster(table("temp", "oo")), access_log=True) as server:
        first = targets()
        assert sorted(first)[1:] == [
            ("/meta/apps?detail", 200), ("/meta/cluster", 200), ("/meta/nodes?detail", 200),
        ] and len(first) == 4  # fmt: skip
        page.run("window.seen = []; window.observer = new MutationObserver((list) => "
                 "seen.push(...list)); observer.observe(byId('cluster'), {subtree: true, "
                 "childList: true, attributes: true, characterData: true})")
        for _ in range(3):
            turn(page)
            answers = targets()
            assert len(answers) == 3 and {status for _, status in answers} == {304}
        assert page.run("seen.length") == 0
        server.publish(cluster(table("temp", "or")))
        page.run("tick()")
        page.wait("due() === 1 && seen.length > 0")
        assert shown(page, "#table-sum") == "✖ 1 of 1 tables unhealthy"
        assert len(targets()) == 3


def test_a_state_that_changes_while_the_page_is_open(page):
    """Also of a large cluster: what a person did there stays."""
    big = support.cluster(tables=1000, partitions=64, nodes=100)
    with watched(page, big) as server:
        assert page.run("[count('.row'), count('#nodes li')]") == [1000, 100]
        page.run("byId('filter').value = 'table12', "
                 "byId('filter').dispatchEvent(new Event('input'))")
        open_table(page, "table123")
        page.run("byId('table-123').focus(), scrollTo(0, 40)")
        apps = [table("table120", "r", 120) if app.app_id == 120 else app for app in big.apps]
        server.publish(big._replace(apps=tuple(apps)))
        page.wait("tick() && byId('table-sum').textContent.startsWith('✖ 1 of')")
        assert names(page)[0] == "table120"
        assert page.run("document.activeElement.id") == "table-123" and page.run("scrollY") == 40
        assert page.run("byId('filter').value") == "table12"
        assert page.run("count('.row:not([hidden])')") == 11
        assert page.run("count('.row[open] li')") == 64


def test_filter(page):
    apps = [table(name, "o", n) for n, name in enumerate(["Users", "user_log", "temp"], 1)]
    visible = '.row:not([hidden]) .name'
    with watched(page, cluster(*apps)):
        page.run("byId('filter').focus()")
        for key in "uSER":
            page.key(key, ord(key.upper()), key)
        assert texts(page, visible) == ["user_log", "Users"]
        page.run("byId('filter').select()")
        page.key("3", ord("3"), "3")
        assert texts(page, visible) == ["temp"]
        page.key("Backspace", 8)
        assert len(texts(page, visible)) == 3


def test_keyboard(page):
    with watched(page, cluster(table("temp", "oo", 1), table("other", "o", 2))):
        visited = []
        while "table-1" not in visited:
            page.key("Tab", 9)
            visited.append(page.run("document.activeElement.id"))
            assert len(visited) < 20, visited
        assert visited.index("pause") < visited.index("filter") < visited.index("table-2")
        page.key("Enter", 13, "\r")
        page.wait("count('.row[open] li') === 2 && due() === 1")
        assert page.run("document.activeElement.parentNode.open")
        page.key(" ", 32, " ")
        page.wait("due() === 1")
        assert shown(page, ".row[open]") == ""


def test_pause_and_a_hidden_tab(page):
    show = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}), " \
        "document.dispatchEvent(new Event('visibilitychange'))"
    with watched(page, cluster(table("temp"))) as server:
        page.run("byId('pause').click()")
        page.run(LATER)
        assert page.run("byId('pause').checked")
        assert page.run("due()") == 0 and page.run("sent()") == 3
        page.run("byId('pause').click()")
        page.wait("due() === 1 && sent() === 6")  # it starts with fresh figures
        page.run(show % "true")
        page.run(LATER)
        assert page.run("due()") == 0 and page.run("sent()") == 6
        server.publish(cluster(table("temp"), table("new", app_id=2)))
        page.run(show % "false")
        page.wait("due() === 1 && sent() === 9")
        assert len(names(page)) == 2
        page.run("byId('pause').click()")
        page.run("document.querySelector('.row .name').click()")
        page.wait("count('.row[open] li')")  # asked for, although paused
        assert page.run("due()") == 0


def test_a_lost_connection_and_its_recovery_by_itself(page):
    """With a clock that goes by itself: nobody touches the page, and it is up to date again."""
    state = cluster(table("temp", "oo"))
    with ph.start(state, role="meta") as server:
        page.open(server.url + "/#fast")
        page.wait("count('.row') === 1 && byId('updated').textContent !== ''")
        port = server.port
    page.wait("byId('trouble').innerText.includes('connection lost')")
    assert names(page) == ["temp"] and shown(page, "#trouble").endswith("the last figures.")
    assert page.run("getComputedStyle(document.querySelector('main:not(.other)')).opacity") == "0.5"
    assert page.run("document.title") == "✖ /pegasus/test"
    with ph.start(cluster(table("temp"), table("new", app_id=2)), role="meta", port=port):
        page.wait("count('.row') === 2")
        page.wait("byId('trouble').innerText === ''")
        assert not page.run("document.body.matches('.stale')")


def test_a_source_in_trouble(page):
    hint = "<b>no primary</b> is known"
    answers = [ph.PageError(503, "ERR_SERVICE_NOT_ACTIVE", hint)]

    def source():
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    with watched(page, source):
        assert shown(page, "#trouble") == "✖ %s (503 ERR_SERVICE_NOT_ACTIVE)" % hint
        assert shown(page, "main") == ""
        answers[0] = cluster(table("temp"))
        page.wait("tick() && byId('trouble').innerText === ''")
        assert names(page) == ["temp"]
        answers[0] = ValueError("a secret of the host")
        page.wait("tick() && document.body.matches('.stale')")
        assert "500 ERR_UNKNOWN" in shown(page, "#trouble") and names(page) == ["temp"]


def test_a_slow_server_is_not_asked_ever_more(page):
    """One request is under way and nothing brings a second one, not even a click on a table."""
    gate = threading.Event()
    gate.set()
    asked = threading.Event()

    def source():
        asked.set()
        assert gate.wait(support.PATIENCE)
        return cluster(table("temp", "ouwr"))

    with watched(page, source, timeout=support.PATIENCE):
        try:
            asked.clear()
            gate.clear()
            page.run("tick()")
            assert asked.wait(support.PATIENCE)
            for _ in range(3):
                page.run("tick(), byId('pause').click(), byId('table-1').click(), "
                         "document.dispatchEvent(new Event('visibilitychange'))")
            page.run(LATER)
            assert page.run("sent()") == 4 and page.run("due()") == 0
            page.run("byId('pause').click(), tock()")  # it gives up
            page.wait("byId('trouble').innerText.includes('no answer in time')")
        finally:
            gate.set()
        page.wait("count('.row[open] li') === 4 && due() === 1")
        assert shown(page, "#trouble") == "" and page.run("sent()") == 7


def test_an_answer_that_comes_too_late_is_the_banner_with_the_servers_hint(page):
    late = threading.Event()
    try:
        with ph.start(lambda: late.wait(support.PATIENCE), role="meta", timeout=0.05) as server:
            page.open(server.url + "/")
            page.wait("byId('trouble').innerText.includes('504 ERR_TIMEOUT')")
    finally:
        late.set()


@pytest.mark.parametrize("flat", [False, True])
def test_a_standby_links_to_the_primary(page, flat, targets):
    with ph.start(cluster(table("temp")), role="meta") as primary:
        state = ph.Standby("127.0.0.1:%d" % primary.port)
        with watched(page, state, flat=flat, version="1.2.3", access_log=True) as server:
            assert len(targets()) == 4  # the page itself is the first
            assert "is a standby" in shown(page, "p.standby")
            assert shown(page, ".other dl") == "Version1.2.3GitCommitunknown"
            assert shown(page, "p.replica") == shown(page, "#cluster") == ""
            server.publish(cluster(table("mine")))  # it takes over
            page.wait("tick() && byId('cluster').checkVisibility()")
            assert shown(page, ".other") == "" and names(page) == ["mine"]
            server.publish(state)
            page.wait("tick() && document.querySelector('.other').checkVisibility()")
            assert shown(page, "#cluster") == "" and shown(page, "#table-sum") == ""
            page.run("document.querySelector('p.standby a').click()")
            page.wait("location.port === '%d'" % primary.port)
            page.wait("document.body && document.body.innerText.includes('temp')")


@pytest.mark.parametrize("flat", [False, True])
def test_a_replica_server(page, flat, targets):
    with watched(page, None, "replica", flat=flat, version="1.2.3", git_commit="abc",
                 access_log=True):
        text = shown(page, ".other")
        assert "is a replica server" in shown(page, "p.replica")
        assert "Version1.2.3GitCommitabc" in text
        assert "RecentStartTime20" in text
        assert shown(page, "p.standby") == shown(page, "#cluster") == ""
        assert len(targets()) == 4
        turn(page)
        wanted = ["/meta/apps?detail", "/startTime", "/version"]
        assert sorted(target for target, _ in targets()) == wanted


def test_the_policy_blocks_what_is_not_of_the_page(page):
    with ph.start(cluster(), role="meta") as other, watched(page, cluster()) as server:
        page.run("window.blocked = [], addEventListener('securitypolicyviolation', (event) => "
                 "blocked.push(event.effectiveDirective))")
        ask = "fetch('%s/version', {mode: 'no-cors'}).then(() => 'sent', () => 'refused')"
        assert page.run(ask % other.url) == "refused" and page.run(ask % server.url) == "sent"
        page.run("image = new Image(), image.src = '%s/version', added = "
                 "document.createElement('script'), added.textContent = 'window.hurt = 1', "
                 "document.body.append(image, added)" % other.url)
        page.wait("blocked.length === 3")
        blocked = page.run("blocked.map((name) => name.replace('-elem', '')).sort()")
        assert blocked == ["connect-src", "img-src", "script-src"]
        assert page.run("window.hurt === undefined") and other.counters.connections == 0


@pytest.mark.parametrize("width, dark", [(1440, True), (390, False), (390, True)])
def test_phone_and_dark(page, width, dark):
    page.look(width, 844, dark)
    with watched(page, cluster(table("temp", "ouwr"))):
        open_table(page, "temp")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall("[0-9]+", ground))) < 150) == dark
        assert "read-unhealthy" in shown(page, ".row[open] ul")
