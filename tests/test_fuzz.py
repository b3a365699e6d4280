"""The fuzzer in its short mode, and that it would notice a broken invariant."""

import pytest

import fuzz


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_invariants_hold(name):
    slow = {"request stream": 200, "answers of a meta server": 300}  # many cuts, a connection
    inputs = slow.get(name, 700)
    accepted, _, found = fuzz.fuzz(name, inputs, seed=11)
    assert found is None, fuzz.report(name, *found)
    assert 0 < accepted < inputs, "mutants are neither all right nor all wrong"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_seed_is_right(name):
    target = fuzz.TARGETS[name]
    for data in target.seeds:
        assert fuzz.broken(target, data)[0] is None, data


def test_mutants_depend_on_the_seed_alone():
    def mutants(seed):
        rng = fuzz.random.Random(seed)
        return [fuzz.mutate(rng, fuzz.TARGETS["request stream"]) for _ in range(50)]

    assert mutants(1) == mutants(1) != mutants(2)


def test_a_broken_invariant_is_found_shortened_and_printed(monkeypatch, capsys):
    def check(data):
        fuzz.must(b"\xff" not in data, "a byte that must not be")
        return True

    target = fuzz.TARGETS["request stream"]._replace(check=check)
    monkeypatch.setitem(fuzz.TARGETS, "request stream", target)
    assert fuzz.main(["--inputs", "3000", "--target", "request stream"]) == 1
    output = capsys.readouterr().out
    assert "a byte that must not be" in output and "--hex ff\n" in output
    assert fuzz.main(["--target", "request stream", "--hex", "ff"]) == 1
    assert fuzz.main(["--target", "request stream", "--hex", "61"]) == 0


def test_an_undocumented_error_is_a_broken_invariant():
    def check(data):
        raise IndexError("x")

    problem, _, _ = fuzz.broken(fuzz.Target([b""], [b""], check), b"")
    assert problem == "IndexError: x"


def test_the_answer_to_a_cut_stream_is_compared(monkeypatch):
    real = fuzz.converse

    def converse(server, pieces):
        answers, closed = real(server, pieces)
        return answers if len(pieces) == 1 else [], closed

    monkeypatch.setattr(fuzz, "converse", converse)
    with pytest.raises(fuzz.Broken, match="cut into"):
        fuzz.check_stream(fuzz.HEADS[0])
