"""Stopping on SIGTERM and Ctrl-C."""

import os
import signal
import threading

import pytest

from difftop.run.signals import StopOnSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_handlers_come_back(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopOnSignal() as stop:
        assert not stop.stopped
        os.kill(os.getpid(), number)
        assert stop.stopped and stop.signal == number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_aborts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was an interrupt")
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_goes_on_without_handlers():
    seen = []

    def work():
        with StopOnSignal() as stop:
            seen.append(stop.stopped)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
