"""Checkpoints leave the step at once: tensors are copied to the CPU, and a thread writes them.

One write is in flight at most. The copies lie in buffers that are kept from one checkpoint to the
next, page-locked where there is CUDA, so that the step waits for no more than the copy is queued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Writer:
    """Runs ``write(content)`` in a thread, for one content at a time.

    A fault of the thread is raised, in its own words, by whichever call comes next; ``failed`` says
    that there is one without raising it.
    """

    def __init__(self, write: Callable[[dict[str, Any]], Any]) -> None:
        self._write = write
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    @property
    def failed(self) -> bool:
        return self._fault is not None

    def begin(self, content: dict[str, Any]) -> None:
        """Copy what the tensors hold now, and write it beside the training; waits for the last one."""
        self.wait()
        copied = self._copy(content, ())
        queued = None
        if torch.cuda.is_available():
            queued = torch.cuda.Event()
            queued.record()
        # Not a daemon: a process that ends on a fault of its own still finishes the file.
        self._thread = threading.Thread(
            target=self._run, args=(copied, queued), name="checkpoint-writer"
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is in flight. Raises what the thread raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def settle(self) -> None:
        """Return when nothing is in flight, whatever came of it: nobody is left to be told."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, content: dict[str, Any], queued: Any) -> None:
        try:
            if queued is not None:
                queued.synchronize()
            self._write(content)
        except BaseException as fault:
            self._fault = fault

    def _copy(self, thing: Any, path: tuple[Any, ...]) -> Any:
        """The same nest of dicts and lists with every tensor copied into its buffer."""
        if isinstance(thing, Tensor):
            return self._buffer(thing, path).copy_(thing.detach(), non_blocking=True)
        if isinstance(thing, dict):
            return {key: self._copy(value, (*path, key)) for key, value in thing.items()}
        if isinstance(thing, (list, tuple)):
            return type(thing)(self._copy(one, (*path, i)) for i, one in enumerate(thing))
        return thing

    def _buffer(self, like: Tensor, path: tuple[Any, ...]) -> Tensor:
        kept = self._buffers.get(path)
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype:
            kept = torch.empty(like.shape, dtype=like.dtype, pin_memory=torch.cuda.is_available())
            self._buffers[path] = kept
        return kept
