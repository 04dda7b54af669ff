"""A process that was forked asks the store through one of its own, which ends with it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from curate.contract import object_client, object_helper, storage

pytestmark = pytest.mark.net


def test_a_forked_process_asks_through_one_of_its_own(bucket: str, tmp_path: Path) -> None:
    storage.write_text(f"{bucket}/a", "one")
    child = os.fork()
    if not child:
        code = 1
        try:
            told = storage.read_text(f"{bucket}/a")
            storage.write_text(f"{bucket}/b", f"{told} and two")
            storage.fetch(f"{bucket}/a", str(tmp_path / "a"))
            with storage.open_file(f"{bucket}/a") as file:
                assert file.read() == b"one"
            try:
                storage.read_text(f"{bucket}/none")
            except FileNotFoundError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage.read_text(f"{bucket}/b") == "one and two"
    assert (tmp_path / "a").read_text() == "one"


def test_the_helper_ends_with_who_asks(bucket: str) -> None:
    storage.write_text(f"{bucket}/a", "one")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        storage.read_text(f"{bucket}/a")
        os.write(write, str(object_helper._HELPERS[0]._process.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    helper = int(os.read(read, 100))
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        try:
            state = Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # nobody of ours is left to wait for it
            return
        time.sleep(0.02)
    raise AssertionError("the helper goes on")


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_text(f"{bucket}/a", "one")
    storage.write_text(f"{bucket}/b", "two")
    helper = object_helper._helper()

    def interrupted(source: Any) -> Any:
        monkeypatch.undo()
        raise KeyboardInterrupt

    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    monkeypatch.setattr(object_helper.pickle, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        helper.ask("get", (f"{bucket}/a",))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert helper._process.poll() is not None
    assert object_helper.ask("get", (f"{bucket}/b",)) == b"two"


def test_a_helper_that_died_is_told_and_the_next_question_starts_another(bucket: str) -> None:
    storage.write_text(f"{bucket}/a", "one")
    child = os.fork()
    if not child:
        code = 1
        try:
            storage.read_text(f"{bucket}/a")
            object_helper._HELPERS[0]._process.kill()
            with pytest.raises(object_client.StoreError, match="the process that asks the store"):
                storage.read_text(f"{bucket}/a")
            code = 0 if storage.read_text(f"{bucket}/a") == "one" else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
