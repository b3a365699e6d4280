"""--cluster on the command line."""

import pytest

import replay
from fakes import STATE, check_error, one_page
from replay import Meta
from support import get, running, wait_until


@pytest.fixture
def dump_error(main):
    """Call it with an address: the line on stderr of a --dump that cannot work."""
    def call(address):
        code, out, err = main("--role", "meta", "--cluster", address, "--dump", "--timeout", "5")
        assert (code, out) == (1, ""), (code, out, err)
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1, err
        return err

    return call


@pytest.mark.parametrize("address", [
    "10.0.0.1", "10.0.0.1:", ":34601", "10.0.0.1:x", "10.0.0.1:0", "10.0.0.1:65536", "a:1,b", "",
])
def test_address_that_is_none(main, address):
    code, out, err = main("--role", "meta", "--cluster", address)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert address.split(",")[-1] in err


def test_name_that_does_not_resolve(dump_error):
    assert "no-such-host.invalid:34601" in dump_error("no-such-host.invalid:34601")


@pytest.mark.parametrize("host", [
    "no-such-host.invalid", "x" * 70 + ".invalid", "a..invalid",
], ids=["unknown", "label too long", "empty label"])
def test_name_that_cannot_resolve_is_passed_over(leader, host):
    """A label that is empty or too long fails in another way than an unknown name."""
    address = host + ":34601"
    assert one_page(address, leader, timeout=20.0).status == 200
    check_error(one_page(address, timeout=20.0), 502, "ERR_NETWORK_FAILURE", address)
    with Meta(replay.standby(address)) as standby:
        assert one_page(standby, leader, timeout=20.0).status == 200


def test_http_server_where_a_meta_was_expected(dump_error, leader):
    leader.fault = replay.HTTP_400
    error = dump_error(leader.address)
    assert leader.address in error
    assert "HTTP" in error
    check_error(one_page(leader), 502, None, leader.address, "HTTP")


def test_replica_server_where_a_meta_was_expected(dump_error):
    with Meta(replay.replica_server()) as replica:
        error = dump_error(replica.address)
    assert replica.address in error
    assert "replica" in error


def test_a_dump_of_tables_that_real_servers_take_is_a_state_file(main, tmp_path):
    state = replay.make_state(tables=4)
    state["apps"][2].update(app_name="")
    state["apps"][3].update(status="DROPPED", expire_second=10**13)
    with Meta(replay.synthetic(state)) as meta:
        code, out, _ = main("--cluster", meta.address, "--dump")
    assert code == 0
    (tmp_path / "state.json").write_text(out, encoding="utf-8")
    assert main("--state", str(tmp_path / "state.json"), "--dump") == (0, out, "")


def test_refused_on_the_command_line(dump_error):
    with replay.refused() as dead:
        assert dump_error(dead) == (
            "pegasus_http: error: no meta server is reachable: %s: connection refused; "
            "give --cluster the RPC addresses of meta servers\n" % dead)


def test_cluster_that_is_not_there_yet():
    """Unreachable at start is a warning: the pages come when the cluster does."""
    with Meta(replay.failing("ERR_SERVICE_NOT_ACTIVE")) as meta:
        arguments = ("--role", "meta", "--cluster", meta.address, "--timeout", "0.5", "--flat")
        with running(*arguments) as (_, port):
            assert get(port, "/meta/nodes").status == 503
            assert get(port, "/health").status == 200
            meta.answers = replay.synthetic(STATE)
            wait_until(lambda: get(port, "/meta/nodes").status == 200, "the cluster is there")
