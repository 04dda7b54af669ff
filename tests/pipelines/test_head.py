"""A head that is gone is noticed before Ray ends the driver; one that comes back in time is not missed."""

from __future__ import annotations

import socket
import time

import pytest

from pipelines.errors import RunFailed
from pipelines.head import HeadWatch

pytestmark = pytest.mark.net


def test_a_head_that_is_gone_ends_the_run_and_one_that_answers_does_not() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", lost_s=0.4)
    try:
        time.sleep(0.8)
        watch.obey()
        listener.close()
        until = time.monotonic() + 30
        while not watch.is_lost and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        watch.close()  # or it ends this process
    with pytest.raises(RunFailed, match=rf"127\.0\.0\.1:{port}, is gone: .*refused.*\nhint: "):
        watch.obey()


def test_a_head_that_comes_back_is_not_missed() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", lost_s=20.0)
    listener.close()
    time.sleep(0.3)
    with socket.create_server(("127.0.0.1", port)):
        time.sleep(0.3)
        watch.obey()
    watch.close()
