"""The benchmark: `python tests/bench/bench.py` runs all of it, `--only` a part.

Every server is a process of its own on 127.0.0.1. Two servers are compared by running wrk against
them in turns and taking the median of the ratios of neighbouring runs: absolute figures of a
shared machine mean little, ratios of neighbours do. "others" is the share of one processor that
anything but server and wrk took meanwhile: where that is much, run it again on a quiet machine.
Without wrk the scenarios that need it fail and say so, and the others run.
"""

import argparse
import os
import re
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # of this process: measuring leaves nothing behind in the tree
sys.path.insert(0, HERE)

import peers  # noqa: E402
import report  # noqa: E402
import scenarios  # noqa: E402


def say(text):
    print(text, flush=True)


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="runs of each server per comparison")
    parser.add_argument("--seconds", type=int, default=1, help="length of a run, whole seconds")
    parser.add_argument("--only", default="", metavar="REGEX", help="scenarios to run")
    parser.add_argument("--peers", metavar="A,B", help="who to compare /version with, by name")
    parser.add_argument("--list", action="store_true", help="what --only and --peers choose")
    found = parser.parse_args(argv)
    known = (*scenarios.BASES, *peers.PEERS)
    found.peers = tuple(found.peers.split(",")) if found.peers else known
    for name in set(found.peers) - set(known):
        parser.error("no server named %r, there are: %s" % (name, ", ".join(known)))
    if found.pairs < 1 or found.seconds < 1:
        parser.error("--pairs and --seconds are at least 1")
    return found


def machine():
    load1 = os.getloadavg()[0]
    return "Python %s, %d cores, load %.1f" % (sys.version.split()[0], os.cpu_count() or 0, load1)


def run(options):
    """The rows of all scenarios asked for; one that fails is reported and the others still run."""
    bench = scenarios.Bench(options.pairs, options.seconds, options.peers, say)
    rows, failed = [], False
    for name, scenario in scenarios.SCENARIOS.items():
        if not re.search(options.only, name):
            continue
        say("-- " + name)
        try:
            for row in scenario(bench):
                rows.append(row)
                say(report.line(row))
        except (RuntimeError, OSError) as error:
            failed = True
            say("%s: failed: %s" % (name, error))
    return rows, failed


def main(argv=None):
    options = arguments(argv)
    if options.list:
        chosen = [name for name in scenarios.SCENARIOS if re.search(options.only, name)]
        say("scenarios: " + " ".join(chosen))
        say("servers: " + " ".join(options.peers))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PYTHONPYCACHEPREFIX"] = cache
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every import compiles
        say(machine())
        try:
            rows, failed = run(options)
        except KeyboardInterrupt:
            say("interrupted")
            return 130
    say("\n" + report.table(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
