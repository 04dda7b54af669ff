"""One run at a time in a folder: its first rank holds OUT/.lock, which says on which machine and in which process.

A POSIX record lock: the system frees it when the process dies, however it dies, and processes forked from
it (loaders that outlive it by seconds) do not hold it. It works between machines where the shared file
system has locks; where it has none, a run goes on with a warning. Behind a URL there is no such lock: who calls
the loop gives another way to be alone there (`pipelines.launch`: a lease).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from curate.contract import storage
from pretrain.loop.world import World

_logger = logging.getLogger(__name__)
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
# Holds a folder behind a URL, or raises ValueError; gives what raises away.FolderLost once it is held no more.
Alone = Callable[[str], AbstractContextManager[Callable[[], None]]]
_HERE: set[str] = set()  # held by this process: the system lets it lock its own file twice


class Lock:
    """A lock that was taken, or 0 where the file system has none."""

    def __init__(self, path: str, file: int) -> None:
        self.path, self._file = path, file

    def release(self) -> None:
        _HERE.discard(self.path)
        if self._file:
            with suppress(OSError):
                os.unlink(self.path)  # still held: nobody else can have taken this very file
            os.close(self._file)
            self._file = 0


def take(out: str) -> Lock:
    """Lock a run's folder, which is made. Raises ValueError, naming who has it."""
    path = storage.join(storage.absolute(out), ".lock")
    if path in _HERE:
        raise ValueError(refusal(out, "this process"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            holder = _holder(file)
            os.close(file)
            if fault.errno in _HELD_BY_ANOTHER:
                raise ValueError(refusal(out, holder)) from fault
            _logger.warning(
                "%s can't be locked (%s): see to it that only one run at a time writes there", path, fault.strerror
            )  # fmt: skip
            return Lock(path, 0)
        if _is_still(path, file):
            break
        os.close(file)  # it was released, and so removed, between opening and locking
    os.ftruncate(file, 0)
    os.write(file, json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode())
    _HERE.add(path)
    return Lock(path, file)


@contextmanager
def hold(out: str, world: World, alone: Alone | None = None) -> Iterator[Callable[[], None]]:
    """The first rank locks the folder inside the block; all ranks call it together, and all are refused.

    Gives what raises away.FolderLost where the folder is not held any more; on the first rank.
    """
    fault, still = "", _held
    with ExitStack() as ending:
        if world.is_first:
            try:
                if not storage.is_url(out):
                    ending.callback(take(out).release)
                elif alone is not None:
                    still = ending.enter_context(alone(out))
                else:
                    _logger.warning("%s can't be locked: see to it that only one run at a time writes there", out)  # fmt: skip
            except (ValueError, OSError) as found:
                fault = str(found)
        told = world.gather(fault)[0]
        if told:
            raise ValueError(told)
        yield still


def _held() -> None:
    """A lock of the system's is held until its process ends."""


def _is_still(path: str, file: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    try:
        found = json.loads(os.read(file, 4096))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def refusal(out: str, holder: str) -> str:
    return f"{out} is being trained into by {holder}. hint: wait until it has ended, stop it, or name another folder"
