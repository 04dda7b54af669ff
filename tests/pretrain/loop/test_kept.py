"""Checkpoints behind a URL: put whole after their metrics; a store that is away stops nothing and costs nothing."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.contract import storage
from pretrain.loop import away, checkpoint, resume
from pretrain.loop.kept import Kept
from pretrain.loop.log import MetricsLog
from pretrain.loop.settings import Phase, TrainSettings


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = f"memory://kept-{uuid.uuid4().hex}"
    yield f"{folder}/run"
    storage.remove(folder)


def kept(out: str, keep: int = 2) -> Kept:
    settings = TrainSettings(
        model="m", out=out, phase=(Phase(samples=1, global_batch=1),), keep_checkpoints=keep
    )
    log = MetricsLog(storage.join(out, "metrics.jsonl"))
    log.rewind(10**9)
    made = Kept(settings, log, lambda: None)
    made.log = log  # type: ignore[attr-defined]
    return made


def content(samples_seen: int, forever: bool = False) -> dict[str, Any]:
    return {
        "cursor": {"samples_seen": samples_seen}, "state_dict": {"w": torch.arange(5)}, "forever": forever,
    }  # fmt: skip


def there(out: str) -> list[str]:
    return [path.rpartition("/")[2] for path in storage.listed(checkpoint.folder(out))]


def pair(*samples: int) -> list[str]:
    return [f"samples-{n:012d}.{end}" for n in samples for end in ("json", "pt")]


def here(out: str) -> list[str]:
    folder = checkpoint.folder(away.folder(out))
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


class Away:
    """A store that takes nothing of the named end while ``down``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: str = "") -> None:
        self.down = True
        self.put: list[str] = []
        real = storage.link_or_copy

        def copy(source: str, target: str) -> None:
            if self.down and target.endswith(ends):
                raise OSError("503 SlowDown")
            real(source, target)
            self.put.append(target.rpartition("/")[2])

        monkeypatch.setattr(storage, "link_or_copy", copy)


def test_they_are_put_read_and_thinned_as_on_disk(out: str) -> None:
    run = kept(out)
    for samples in (5, 10, 15, 20):
        run.write(content(samples, forever=samples == 10))
    assert there(out) == pair(10, 15, 20)
    assert not here(out)
    path = checkpoint.newest(out)
    assert path == storage.join(checkpoint.folder(out), "samples-000000000020.pt")
    assert checkpoint.read(path)["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4]


def test_damage_behind_a_url_is_passed_over_and_set_aside(out: str) -> None:
    run = kept(out, 9)
    for samples in (5, 10, 15):
        run.write(content(samples))
    newest, newer = (
        storage.join(checkpoint.folder(out), f"samples-0000000000{n}.pt") for n in (15, 10)
    )
    with storage.open_file(newest) as file:
        data = bytearray(file.read())
    data[300] ^= 0xFF
    with storage.committed(newest) as file:
        file.write(data)
    with storage.committed(newer) as file:
        file.write(data[:-1])
    path, faults = checkpoint.newest_whole(out)
    assert path is not None
    assert path.endswith("05.pt")
    assert [fault.partition(".pt: ")[2] for fault in faults] == [
        "its bytes differ from those written"
    ] * 2
    assert resume.prepare_folder(out, True, "") == path
    assert there(out) == [
        *(f"damaged-{name}" for name in pair(10, 15)), *pair(5),
    ]  # fmt: skip


@pytest.mark.parametrize("ends", [".json", ".pt"])
def test_a_store_that_is_away_for_a_while_stops_nothing(
    out: str, ends: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = kept(out)
    run.write(content(5))
    store = Away(monkeypatch, ends)
    for samples in (10, 15, 20):
        with caplog.at_level(logging.WARNING):
            run.write(content(samples, forever=samples == 10))
    # The newest, and what is kept forever: no more room is taken here, however long it lasts.
    assert here(out) == pair(10, 20)
    assert checkpoint.newest(out) == storage.join(checkpoint.folder(out), "samples-000000000005.pt")
    assert caplog.text.count("Training goes on") == 3
    last = checkpoint.folder(away.folder(out)) + "/samples-000000000020.pt"
    assert run.last_words().startswith(
        f"the last checkpoint is whole, and on this machine only: {last}"
    )
    assert "503 SlowDown. hint: once the store answers, --resume" in run.last_words()
    store.down, store.put = False, []
    run.write(content(25))
    assert run.last_words() == ""
    assert there(out) == pair(5, 10, 25)
    assert not here(out)
    # What a run goes on from is there first; nothing is, for a moment, without its stamp.
    assert store.put == [*pair(25), *pair(10)]


def test_what_was_left_here_is_put_by_a_resumed_run(
    out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = kept(out)
    run.log.write({"samples_seen": 5})  # type: ignore[attr-defined]
    run.write(content(5))
    store = Away(monkeypatch)
    run.write(content(10))
    with pytest.raises(
        ValueError, match=r"left a checkpoint on this machine: .*10.pt could not be put"
    ):
        resume.prepare_folder(out, True, "")
    store.down = False
    path = resume.prepare_folder(out, True, "")
    assert path.endswith("samples-000000000010.pt")
    assert "put there now" in caplog.text
    assert there(out) == pair(5, 10)


def test_what_was_left_here_is_no_part_of_a_run_that_went_on_elsewhere_or_begins(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resume.prepare_folder(out, False, "# a\n") == ""
    run = kept(out)
    run.log.write({"samples_seen": 5})  # type: ignore[attr-defined]
    run.log.put()  # type: ignore[attr-defined]
    store = Away(monkeypatch)
    run.write(content(10))
    checkpoint_there = checkpoint.folder(out) + "/samples-000000000020.pt"
    checkpoint.write(checkpoint_there, content(20))  # by another machine
    store.down = False
    assert resume.prepare_folder(out, True, "") == checkpoint_there
    assert there(out) == pair(20)
    assert here(out) == pair(10)
    storage.remove(out)
    assert resume.prepare_folder(out, False, "# b\n") == ""
    assert not here(out)


def spoil(path: str) -> None:
    with storage.open_file(path) as file:
        data = bytearray(file.read())
    data[300] ^= 0xFF
    with storage.committed(path) as made:
        made.write(data)


def test_a_damaged_one_that_was_left_here_does_not_take_the_next_one_s_place(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(out)
    run.write(content(20))
    store = Away(monkeypatch)
    run.write(content(30))
    spoil(f"{checkpoint.folder(away.folder(out))}/samples-000000000030.pt")
    store.down = False
    assert resume.prepare_folder(out, True, "").endswith("20.pt")
    assert here(out) == [f"damaged-{name}" for name in pair(30)]
    kept(out).write(content(25))
    assert there(out) == pair(20, 25)


def test_a_whole_one_that_was_left_here_is_worth_more_than_a_damaged_newer_one_there(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(out)
    run.write(content(5))
    store = Away(monkeypatch)
    run.write(content(15))
    store.down = False
    damaged = f"{checkpoint.folder(out)}/samples-000000000020.pt"
    checkpoint.write(damaged, content(20))
    spoil(damaged)
    assert resume.prepare_folder(out, True, "").endswith("15.pt")
    assert there(out) == [*(f"damaged-{name}" for name in pair(20)), *pair(5, 15)]


def test_no_checkpoint_is_ahead_of_its_metrics_and_none_is_put_into_a_lost_folder(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(out)
    monkeypatch.setattr(away, "_EVERY_S", 1e9)
    for samples in (5, 10):
        run.log.write({"samples_seen": samples})  # type: ignore[attr-defined]
        with monkeypatch.context() as broken:
            if samples == 10:
                broken.setattr(
                    storage, "swap_text", lambda *_: (_ for _ in ()).throw(OSError("no"))
                )
            run.write(content(samples))
    assert there(out) == pair(5)
    assert "could not be put" in run.last_words()
    assert storage.read_text(storage.join(out, "metrics.jsonl")) == '{"samples_seen": 5}\n'

    def lost() -> None:
        raise away.FolderLost("another run's")

    run._held = lost
    with pytest.raises(away.FolderLost):
        run.write(content(15))
    assert there(out) == pair(5)


def test_a_store_that_deletes_nothing_is_warned_of(
    out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = kept(out, 1)
    run.write(content(5))
    real = storage.remove

    def remove(path: str) -> None:
        if storage.is_url(path):
            raise PermissionError("not allowed")
        real(path)

    with monkeypatch.context() as held:
        held.setattr(storage, "remove", remove)
        run.write(content(10))
    assert "older checkpoints could not be deleted: not allowed" in caplog.text
    assert run.last_words() == ""
    run.write(content(15))
    assert there(out) == pair(15)
