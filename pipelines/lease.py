"""One runner a pool, and a shards folder: FOLDER/.lease says who writes there, and that it still lives.

A thread renews it every 10 s. It is taken over at once where its process is gone from this machine (the process
number and when that process was started, so that a number given out again is not taken for it). Of other
machines the clock is not trusted: who comes looks whether the lease changes, and takes it over when it has stood
still for a minute. A runner whose lease was taken, or could not be renewed for so long, commits nothing more.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from curate.contract import storage
from pipelines.errors import RunFailed

NAME = ".lease"
BEAT_S = 10.0
DEAD_S = 60.0  # a lease that stood still for so long is nobody's
_LOOK_S = 1.0
_TRIES = 5
_HELD: list[Lease] = []  # by this process
_SAID = "another run of clip-pipe is at work in this folder"


class Lease:
    """A folder's lease while this process holds it."""

    def __init__(self, folder: str, about: Callable[[], dict[str, Any]]) -> None:
        self.path = storage.join(folder, NAME)
        self.folder = folder
        self._about = about
        self._holder = (os.getpid(), threading.get_ident())
        self._run = uuid.uuid4().hex[:12]
        self._began = _now()
        self._text = ""
        self._renewed = _clock()
        self._taken = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="lease", daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Take the lease or raise RunFailed: somebody else has it."""
        for _ in range(_TRIES):
            text = self._told()
            if storage.create_text(self.path, text):
                break
            found = _read(self.path)
            if found is None:
                continue  # it ended in this moment
            refuse_living(self.folder, found, say)
            text = self._told()
            if storage.swap_text(self.path, text, found):
                say(
                    f"{self.folder}: the run before ended without an end ({_named(found)}); going on"
                )
                break
        else:
            raise RunFailed(f"{self.folder}: {_SAID}\nhint: try again")
        self._text, self._renewed = text, _clock()
        self._thread.start()

    def is_own(self) -> bool:
        """Whether this thread took it: another thread of the process is another run."""
        return self._holder == (os.getpid(), threading.get_ident())

    def check(self) -> None:
        """Raise RunFailed where the lease is not this run's any more."""
        if not self._taken and _clock() - self._renewed > DEAD_S / 2:
            self.renew()
        if not self._taken and _clock() - self._renewed > DEAD_S:
            self._taken = "it could not be renewed"
        if self._taken:
            raise RunFailed(
                f"{self.folder}: this run's lease is gone ({self._taken}); nothing more was written\n"
                "hint: another run may go on with this folder; what was done is kept, and the same command resumes"
            )

    def renew(self) -> None:
        """Write a new beat. What keeps that from being written is told by ``check`` once it lasts."""
        with self._lock:
            if self._taken or self._ended.is_set():
                return
            text = self._told()
            try:
                if storage.swap_text(self.path, text, self._text):
                    self._text, self._renewed = text, _clock()
                    return
                found = _read(self.path)
            except Exception:  # a server that is down: the next beat asks again
                return
            if found is not None and json_of(found).get("run") == self._run:
                self._text, self._renewed = found, _clock()  # written, and the answer was lost
            else:
                self._taken = f"now held by {_named(found)}" if found else "somebody deleted it"

    def release(self) -> None:
        """Give the folder back; what somebody else has written there stays."""
        self._ended.set()
        with self._lock, suppress(Exception):
            if not self._taken and _read(self.path) == self._text:
                storage.remove(self.path)
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _keep_on(self) -> None:
        while not self._ended.wait(BEAT_S) and not self._taken:
            self.renew()

    def _told(self) -> str:
        return json.dumps(
            {
                **_machine(),
                "pid": os.getpid(),
                "started": _start_of(os.getpid()),
                "user": _user(),
                "run": self._run,
                "command": " ".join(sys.argv)[:400],
                "began": self._began,
                "beat": _now(),
                "beats": uuid.uuid4().hex[:8],  # so that two beats within a second differ
                **self._where(),
            }
        )

    def _where(self) -> dict[str, Any]:
        """Where the run is; what can't be told must not end the beat."""
        try:
            return self._about()
        except Exception as fault:
            return {"step": f"not told: {fault}"}


@contextmanager
def held(
    folders: Sequence[str],
    say: Callable[[str], None] = print,
    about: Callable[[], dict[str, Any]] = dict,
) -> Iterator[None]:
    """Hold the leases of these folders, in this order. Raises RunFailed where somebody else has one.

    ``about``: what a beat says of the run: its step, the step's parts, and how many are done. A folder that
    this thread holds already is held once.
    """
    taken: list[Lease] = []
    mine = {lease.folder for lease in _HELD if lease.is_own()}
    try:
        for folder in dict.fromkeys(folders):
            if folder in mine:
                continue
            lease = Lease(folder, about)
            lease.take(say)
            taken.append(lease)
            _HELD.append(lease)
        yield
    finally:
        for lease in reversed(taken):
            _HELD.remove(lease)
            lease.release()


def check() -> None:
    """Raise RunFailed where a lease of this process is gone. In a worker there is none."""
    for lease in _HELD:
        if lease.is_own():
            lease.check()


def is_empty(folder: str) -> bool:
    """``storage.is_empty``, for a folder that nothing but a lease was written to."""
    if storage.is_empty(folder):
        return True
    names = (path.rsplit("/", 1)[-1] for path in storage.listed(folder))
    return all(name == NAME or storage.TEMPORARY in name for name in names)


def read(folder: str) -> dict[str, Any] | None:
    """What a folder's lease says, for `clip-pipe status`; None where nobody holds it."""
    found = _read(storage.join(folder, NAME))
    return None if found is None else json_of(found)


def is_left(folder: str) -> bool:
    """Whether a folder's lease is one of a process that is gone from this machine."""
    told = read(folder)
    return told is not None and bool(is_gone(told))


def is_gone(lease: dict[str, Any]) -> bool | None:
    """Whether the process that holds a lease is gone; None where this machine can't tell."""
    if any(lease.get(key) != value for key, value in _machine().items()):
        return None
    try:
        number = int(lease["pid"])
        os.kill(number, 0)
    except (KeyError, ValueError, ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    started = _start_of(number)
    return bool(started) and started != lease.get("started")


def refuse_living(folder: str, text: str, say: Callable[[str], None]) -> None:
    """Raise RunFailed unless the run that a lease names is dead; of other machines that takes a minute."""
    gone = is_gone(json_of(text))
    if gone:
        return
    if gone is None:
        say(
            f"{folder}: {_named(text)} holds it; waiting up to {DEAD_S:.0f} s to see whether that lives"
        )
        until = _clock() + DEAD_S
        while (found := _read(storage.join(folder, NAME))) == text:
            if _clock() >= until:
                return
            time.sleep(min(_LOOK_S, DEAD_S / 20))
        if found is None:
            return
        text = found
    told = json_of(text)
    raise RunFailed(
        f"{folder}: {_SAID}: {_named(text)}, since {told.get('began', '?')}, last beat {told.get('beat', '?')}, "
        f"command: {told.get('command', '?')}\n"
        f"hint: wait for it, or end it there (kill {told.get('pid', 'PID')}) and run this again; "
        "another recipe over the same rows needs another pool folder meanwhile"
    )


def json_of(text: str) -> dict[str, Any]:
    """A lease's fields; {} for a text that is none of ours."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: str) -> str | None:
    try:
        return storage.read_text(path)
    except FileNotFoundError:
        return None


def _named(text: str) -> str:
    told = json_of(text)
    return f"process {told.get('pid', '?')} of {told.get('user', '?')} on {told.get('host', '?')}"


def _machine() -> dict[str, str]:
    """What tells this machine, and this table of processes, from others: containers may share a name."""
    return {
        "host": os.uname().nodename,
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),
    }


def _start_of(number: int) -> str:
    """When a process was started, in the system's own count; '' where that is not told or it has ended."""
    fields = _first_line(f"/proc/{number}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return "ended" if fields[0] in ("Z", "X") else fields[19]


def _first_line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts those."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
