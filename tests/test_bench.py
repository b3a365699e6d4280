"""That the benchmark can be run. It is measured by hand, on a machine that does nothing else."""

import os
import re
import subprocess
import sys

import support

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench")


def bench(script, *arguments):
    """The lines that a script of the benchmark prints."""
    done = subprocess.run(
        [sys.executable, os.path.join(BENCH, script), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=4 * support.PATIENCE, env=support.environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_commands_that_its_text_gives_exist():
    """The text has a command for each figure; what it chooses with --only is there."""
    with open(os.path.join(BENCH, "README.md"), encoding="utf-8") as file:
        commands = re.findall(r"`python tests/bench/(\w+\.py)([^`]*)`", file.read())
    names = {}
    for script, rest in commands:
        if script not in names:
            option = "--help" if script in ("live.py", "peers.py") else "--list"
            names[script] = " ".join(bench(script, option)).split()
        only = re.search(r"--only '?([^' ]+)", rest)
        assert not only or any(re.search(only.group(1), name) for name in names[script]), rest
        assert "--new" not in rest or "--new" in " ".join(names[script]), rest
    assert sorted(names) == ["bench.py", "inprocess.py", "live.py", "peers.py", "worst.py"]


def test_an_attack_and_its_control_give_two_figures():
    lines = bench("worst.py", "--small", "--pairs", "1", "--seconds", "0.2", "--only", "^burst$")
    table = [line for line in lines if line.startswith("| one client pipelines")]
    assert len(table) == 2
    for line, figure in zip(table, ("longest wait", "p99")):
        assert figure in line
        assert re.search(r"\| [\d.]+ ms \|", line)
        assert re.search(r"[\d.]+ ms without attack, [\d.]+ ms while another server is", line)
    answers = re.search(r"(\d+) answers/s to the attacker", table[1])
    assert int(answers.group(1)) > 0
