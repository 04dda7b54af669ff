"""Whether a cluster's head still answers. Ray itself ends the driver after a minute, with words of its own.

Imports no ray: a connection to the head's port is all that is asked. A head that is restarted (Ray's fault
tolerance) is back within the time that is waited.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from pipelines.errors import RunFailed

LOST_S = 45.0  # of silence; Ray waits for 60
_LOOK_S = 3.0
_END_S = 8.0  # for an orderly end, which may wait for the head that is gone


class HeadWatch:
    """Asks a head at HOST:PORT now and then, in a thread; ``obey()`` raises RunFailed once it is gone."""

    def __init__(self, address: str, lost_s: float = LOST_S) -> None:
        self._address, self._lost_s = address, lost_s
        self._ended = threading.Event()
        self._told = ""
        threading.Thread(target=self._watch, name="head", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        return bool(self._told)

    def answers(self) -> bool:
        """Whether it does now: of a head that does not, Ray's questions take a minute."""
        return not self._ask()

    def obey(self) -> None:
        if self._told:
            raise RunFailed(self._told)

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        silent_since = (
            None  # the first question without an answer: this process itself may have been stopped
        )
        while not self._ended.wait(min(_LOOK_S, self._lost_s / 4)):
            fault = self._ask()
            if not fault:
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > self._lost_s:
                break
        else:
            return
        self._told = (
            f"the head of the Ray cluster, {self._address}, is gone: {fault}, for {self._lost_s:.0f} s\n"
            "hint: everything committed is kept; the same command goes on once there is a cluster again"
        )
        if not self._ended.wait(_END_S):
            os.write(2, f"error: {self._told}\n".encode())
            os._exit(RunFailed.exit_code)

    def _ask(self) -> str:
        """Why it does not answer; '' where it does."""
        host, _, port = self._address.rpartition(":")
        try:
            made = socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S)
        except (OSError, ValueError, OverflowError) as fault:
            return str(getattr(fault, "strerror", None) or fault)
        with suppress(OSError):
            made.close()
        return ""
