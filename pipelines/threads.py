"""One thread for each CPU that a task asked for: libraries would start one for each CPU of the machine."""

from __future__ import annotations

import os
import sys

import pyarrow as pa

# Read when a library is loaded; what is loaded already is told by its own call.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "RAYON_NUM_THREADS",
)


def environment(count: int = 1) -> dict[str, str]:
    """The variables that hold a new process to so many threads."""
    return dict.fromkeys(VARIABLES, str(count))


def limit(cpus: float) -> None:
    """Hold this process to the threads of a task with ``cpus``, at least one."""
    count = max(1, int(cpus))
    os.environ.update(environment(count))
    pa.set_cpu_count(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(count)
