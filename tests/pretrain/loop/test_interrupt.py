import os
import signal
import threading

import pytest

from pretrain.loop.interrupt import caught


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    others = signal.getsignal(signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM)
    with caught() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        assert interrupt.asked
        for either in (signal.SIGTERM, signal.SIGINT):  # a second one ends the process
            assert signal.getsignal(either) in (before, others)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def body():
        with caught() as interrupt:
            found.append((interrupt.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(False, before)]
