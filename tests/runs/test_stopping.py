import os
import signal
import subprocess
import sys
import threading

import pytest

import rlgns.runs.stopping
from rlgns.runs.stopping import WORDS, StopRequest

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def hangups_count(monkeypatch):
    """Default signal handlers, even if the shell ignores signals, as nohup or a background job does."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_a_request_said_once(number):
    stop, lines = StopRequest(), []
    before = [signal.getsignal(one) for one in ALL]
    with stop.listening(lines.append):
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert lines == [WORDS]
    assert [signal.getsignal(one) for one in ALL] == before


def test_sigterm_and_sighup_may_come_as_often_as_they_like(monkeypatch):
    monkeypatch.setattr(rlgns.runs.stopping, "GRACE_SECONDS", 0.0)
    stop, lines = StopRequest(), []
    with stop.listening(lines.append):
        for number in (signal.SIGTERM, signal.SIGHUP) * 5:
            os.kill(os.getpid(), number)
    assert stop.signal_number == signal.SIGTERM
    assert lines == [WORDS]


def test_a_second_ctrl_c_ends_the_run_at_once_after_the_grace_alone(monkeypatch):
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening(lambda _: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a bouncing key
        monkeypatch.setattr(rlgns.runs.stopping, "GRACE_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it goes on")


def test_under_nohup_a_run_survives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listening(lambda _: None):
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.signal_number is None


def test_outside_the_main_thread_nothing_is_listened_to():
    done = []

    def work() -> None:
        with StopRequest().listening(lambda _: None):
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.SIG_DFL]


def test_a_line_that_is_printed_while_another_is_being_printed_does_no_harm():
    """Python raises RuntimeError if a signal handler prints to a buffered stream that is in use."""
    code = """
import os, signal, sys, threading, time
from rlgns.runs.stopping import StopRequest
from rlgns.runs.terminal import tolerant_output
with tolerant_output():
    stop = StopRequest()
    def kill():
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)
    with stop.listening(lambda line: None):
        signal.signal(signal.SIGTERM, lambda *_: print("asked"))
        thread = threading.Thread(target=kill)
        thread.start()
        while thread.is_alive():
            print("x" * 10_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
