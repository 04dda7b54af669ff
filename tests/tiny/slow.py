"""shard.write that takes its time, so that a fault meets it in the middle."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa

from curate.shard.write import Write
from curate.stage import Pictures, tuning_option

USE = "tests.tiny.slow"


@dataclass(frozen=True, kw_only=True)
class SlowWrite(Write):
    """shard.write, pausing ``pause`` seconds for each part that it packs."""

    pause: float = tuning_option(0.0)

    def pack(
        self, samples: pa.Table, pictures: Pictures, blocks_path: str, index_path: str
    ) -> dict[int, int]:
        time.sleep(self.pause)
        return super().pack(samples, pictures, blocks_path, index_path)
