"""How a run keeps its checkpoints: on disk a fault ends it, behind a URL the file waits here for the next put."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pretrain.loop import away, checkpoint
from pretrain.loop.log import MetricsLog
from pretrain.loop.settings import TrainSettings

_logger = logging.getLogger(__name__)


class Kept:
    """Writes them, in the writer's thread. ``unput``: what is on this disk only, and why; "" if nothing is."""

    def __init__(self, settings: TrainSettings, log: MetricsLog, held: Callable[[], None]) -> None:
        self._settings, self._log, self._held = settings, log, held
        self.unput = ""

    def write(self, content: dict[str, Any]) -> None:
        """Commit one. Raises as the disk does, and away.FolderLost where the folder is another run's by now."""
        told = self._settings
        forever = content.pop("forever")
        try:
            checkpoint.save(
                told.out, content, told.keep_checkpoints, forever=forever, before_put=self._before
            )
        except away.NotPut as fault:
            self.unput = str(fault)
            _logger.warning(
                "%s. Training goes on; it is tried again with the next checkpoint", fault
            )
        else:
            self.unput = ""

    def _before(self) -> None:
        self._held()
        self._log.put()  # no checkpoint is ever ahead of its metrics

    def last_words(self) -> str:
        """What to say at the end of a run whose last checkpoint is on this disk only; "" where none is."""
        return self.unput and (
            f"the last checkpoint is whole, and on this machine only: {self.unput}. hint: once the store answers, "
            "--resume on this machine puts it there and goes on; or copy it and the .json beside it there"
        )
