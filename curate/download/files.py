"""How many files this process may still open: each connection is one."""

from __future__ import annotations

import contextlib
import os
import resource

_SPARE = 192  # for whoever else opens files here: name look-ups, parts, decoders
_FEW = 10_240  # what macOS takes where the hard limit says "any number"
_FOLDERS = ("/proc/self/fd", "/dev/fd")


def free_files() -> int:
    """How many more files may be open at once, after the soft limit was raised to the hard one; at least 16."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        for wanted in (hard, _FEW):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                break
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(16, soft - _open_files() - _SPARE)


def _open_files() -> int:
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 64
