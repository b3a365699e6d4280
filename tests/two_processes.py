"""Runs the test files in two processes at once, since much of a test's time is waiting.

conftest.py takes the hook below from here. Each process takes the next file when it has finished
one. The first process of pytest runs no test: it prints what the two report. With `-s` or `--pdb`,
or if there is one file only, everything runs in one process, as usual.
"""

import itertools
import multiprocessing.connection
import os

import pytest

import support

PROCESSES = 2


class Sender:
    """Stands where pytest has its printer, and sends each report to the first process."""

    def __init__(self, session, reports):
        self.session, self.reports = session, reports
        self._tw = session.config.get_terminal_writer()  # pytest asks its printer for it

    def pytest_runtest_logreport(self, report):
        config = self.session.config
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        try:
            self.reports.send(data)
        except OSError:
            self.session.shouldstop = "the first process has stopped"


def run_files(session, files, numbers, reports):
    """Run the files whose numbers this process takes from the pipe, until it is empty."""
    plugins = session.config.pluginmanager
    capture = plugins.get_plugin("capturemanager")
    capture.stop_global_capturing()  # its files would be shared by the processes
    capture.start_global_capturing()
    sender = Sender(session, reports)
    plugins.unregister(name="terminalreporter")
    plugins.register(sender, "terminalreporter")
    taken = iter(lambda: os.read(numbers, 1), b"")
    items = (item for number in taken for item in files[number[0]])
    item = next(items, None)
    while item and not session.shouldfail and not session.shouldstop:
        following = next(items, None)  # tells pytest which fixtures can end
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
    session._setupstate.teardown_exact(None)  # has something to do if the loop ended early


def pytest_runtestloop(session):
    """Called by pytest to run the tests that it has collected; None leaves that to its own loop."""
    config = session.config
    files = [list(items) for _, items in itertools.groupby(session.items, lambda i: i.fspath)]
    in_one = config.option.capture == "no" or config.option.usepdb or config.option.collectonly
    if len(files) < 2 or in_one or session.testsfailed or not hasattr(os, "fork"):
        return None
    # What the processes share is made now and removed by the first.
    support.bytecode_folder()
    config._tmp_path_factory.getbasetemp()
    numbers, write_end = os.pipe()
    os.write(write_end, bytes(range(len(files))))
    os.close(write_end)
    fork = multiprocessing.get_context("fork")
    running = {}
    for _ in range(PROCESSES):
        reports, sending = fork.Pipe(duplex=False)
        process = fork.Process(target=run_files, args=(session, files, numbers, sending))
        process.start()
        sending.close()
        running[reports] = process
    try:
        report_all(session, dict(running))
    finally:
        os.close(numbers)
        for reports, process in running.items():
            reports.close()  # a process that still runs ends after its test
            process.join()
    return True


def report_all(session, running):
    """Pass on what the processes report, until both have ended or enough tests have failed."""
    config = session.config
    report = None
    while running:
        for reports in multiprocessing.connection.wait(running):
            try:
                data = reports.recv()
            except EOFError:
                process = running.pop(reports)
                process.join()
                if process.exitcode:
                    pytest.exit("a process that runs tests ended with %s, not long after %s"
                                % (process.exitcode, report and report.nodeid), returncode=1)
                continue
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            if report.when == "setup":
                config.hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
            config.hook.pytest_runtest_logreport(report=report)
            if report.when == "teardown":
                config.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
