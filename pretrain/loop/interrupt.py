"""SIGTERM and Ctrl-C as a flag that the loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """``asked`` is true once a signal came. A second one, of either kind, is not caught any more."""

    def __init__(self) -> None:
        self.asked = False
        self.number = 0  # of the signal


@contextmanager
def caught() -> Iterator[Interrupt]:
    """Both signals are caught inside the block. Outside the main thread Python allows no handler."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: FrameType | None) -> None:
        interrupt.asked, interrupt.number = True, number
        for caught_too, handler in before.items():
            signal.signal(caught_too, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
