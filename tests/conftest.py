"""What every test starts from, and how tests type commands: in this process, words in, text and an exit code out."""

from collections import namedtuple

import hypothesis
import pytest
import torch

from kit.browser import CHROMIUM, sync_playwright
from kit.bucket_server import bucket_server
from normscope import cli

# How long an example takes is the machine's matter: a slow or busy one must not fail a law.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

Done = namedtuple("Done", "stdout stderr")


@pytest.fixture(autouse=True)
def _random_numbers():
    """Start every test at the same random numbers: what it draws does not depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.fixture
def run(capfd):
    """Run the command line and return what it printed; another exit code than ``code`` fails the test."""

    def run(*words, code=0):
        capfd.readouterr()
        stopped = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as stop:
            stopped = stop.code or 0
        done = Done(*capfd.readouterr())
        assert stopped == code, done
        return done

    return run


@pytest.fixture
def refuse(run):
    """Run what must be refused: one line on standard error beside what the user's own code ``printed``, exit code 2."""

    def refuse(*words, printed=""):
        done = run(*words, code=2)
        assert done.stdout == ""
        lines = [line for line in done.stderr.replace(printed, "").splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("normscope: ")
        assert "Traceback" not in lines[0]
        return lines[0]

    return refuse


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for the tests that look at pages."""
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def endpoint():
    """An S3 server on loopback with the buckets ``runs`` and ``bucket``, in the environment of who uses it."""
    with bucket_server("runs", "bucket") as address:
        yield address
