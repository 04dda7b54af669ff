"""Files that are made here and put behind a URL: nothing is lost, whoever else writes and whatever fails."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.contract import storage
from pretrain.loop import away


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file behind a URL, with a temporary folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = f"memory://away-{uuid.uuid4().hex}"
    yield f"{folder}/run/metrics.jsonl"
    storage.remove(folder)


def growing(url: str, **more: object) -> away.Growing:
    made = away.Growing(url, away.local(url), more.get("may_write", lambda: None))  # type: ignore[arg-type]
    there = storage.read_text(url) if storage.exists(url) else None
    made.begin(there or "", there)
    return made


def test_lines_are_put_beside_and_whole(url: str) -> None:
    file = growing(url)
    for number in range(50):
        file.add(f"{number}\n")
    file.put()
    assert storage.read_text(url) == "".join(f"{number}\n" for number in range(50))
    file.add("last\n")
    file.close()
    assert storage.read_text(url).endswith("49\nlast\n")
    assert not os.path.exists(file.local)


def test_lines_that_others_add_meanwhile_stay_there_and_here(url: str) -> None:
    file = growing(url)
    file.add("1\n")
    file.put()
    away.append(url, "theirs\n")
    file.add("2\n")
    file.put()
    assert storage.read_text(url) == "1\n2\ntheirs\n"
    assert Path(file.local).read_text() == "1\n2\ntheirs\n"


def test_appending_from_several_sides_loses_no_line(url: str, tmp_path: Path) -> None:
    for path in (url, str(tmp_path / "on_disk.jsonl")):
        threads = [
            threading.Thread(target=lambda n=n, path=path: [away.append(path, f"{n}-{i}\n") for i in range(20)])  # type: ignore[misc]
            for n in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = {f"{n}-{i}" for n in range(4) for i in range(20)}
        assert sorted(storage.read_text(path).splitlines()) == sorted(wanted)


def test_half_a_line_is_ended_first(url: str, tmp_path: Path) -> None:
    for path in (url, str(tmp_path / "on_disk.jsonl")):
        storage.write_text(path, '{"half')
        away.append(path, "whole\n")
        assert storage.read_text(path) == '{"half\nwhole\n'


def test_a_put_that_raised_and_had_come_there_doubles_no_line(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = growing(url)
    file.add("0\n")
    assert file._thread is not None
    file._thread.join()  # it puts at once, and then not for a while
    file.add("1\n")
    real = storage.swap_text

    def swap(*arguments: str) -> bool:
        real(*arguments)
        raise TimeoutError("no answer")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "swap_text", swap)
        with pytest.raises(TimeoutError):
            file.put()
    away.append(url, "theirs\n")
    file.add("2\n")
    file.put()
    assert storage.read_text(url) == "0\n1\n2\ntheirs\n"


def test_nothing_is_put_once_the_file_is_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that goes on beside is waited for, and fails nothing."""
    begun, may = threading.Event(), threading.Event()
    file = growing(url, may_write=lambda: begun.set() or may.wait(30))
    file.add("1\n")  # its put waits
    beside = file._thread
    assert beside is not None
    assert begun.wait(30)
    threading.Timer(0.1, may.set).start()
    monkeypatch.setattr(file, "put", lambda: None)
    file.close()
    assert not beside.is_alive()
    assert storage.read_text(url) == "1\n"


@pytest.mark.parametrize("change", ["deleted", "answer lost", "rewritten"])
def test_an_object_that_is_not_what_it_was_holds_all_lines_again(
    url: str, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = growing(url)
    file.add("1\n")
    file.put()
    if change == "deleted":
        storage.remove(url)
    elif change == "rewritten":
        storage.write_text(url, "something else\n")
    else:
        real, lost = storage.swap_text, [True]

        def swap(*arguments: str) -> bool:
            return real(*arguments) and not (lost and lost.pop())

        monkeypatch.setattr(storage, "swap_text", swap)
    file.add("2\n")
    file.put()
    assert storage.read_text(url) == "1\n2\n"
    assert ("changed by somebody else" in caplog.text) == (change == "rewritten")


def test_a_store_that_fails_is_told_once_and_nothing_is_lost(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(away, "_EVERY_S", 0.0)
    monkeypatch.setattr(away, "_SHARE", 0)
    file = growing(url)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "swap_text", lambda *_: (_ for _ in ()).throw(OSError("503")))
        for number in range(4):
            file.add(f"{number}\n")
            assert file._thread is not None
            file._thread.join()
        file.close()
    assert caplog.text.count("is tried again") == 1
    assert f"all of it is in {file.local}" in caplog.text
    assert Path(file.local).read_text() == "0\n1\n2\n3\n"
    file.close()
    assert storage.read_text(url) == "0\n1\n2\n3\n"


def test_a_folder_that_is_another_run_s_is_not_written_to(url: str) -> None:
    def lost() -> None:
        raise away.FolderLost("gone")

    file = growing(url, may_write=lost)
    file.add("1\n")
    with pytest.raises(away.FolderLost):
        file.put()
    assert not storage.exists(url)


def test_what_a_former_run_left_here_is_none_of_the_next(url: str) -> None:
    out = url.rpartition("/")[0]
    away.set_aside(out)
    for _ in range(2):
        storage.write_text(away.local(url), "before\n")
        away.set_aside(out)
    assert not os.path.exists(away.folder(out))
    for number in (1, 2):
        assert (
            Path(f"{away.folder(out)}.before-{number}", "metrics.jsonl").read_text() == "before\n"
        )


def test_a_file_is_on_disk_under_its_name_for_as_long_as_it_is_needed(url: str) -> None:
    weights = f"{url.rpartition('/')[0]}/weights.safetensors"
    storage.write_text(weights, "weights")
    with away.on_disk(weights) as path:
        assert os.path.basename(path) == "weights.safetensors"
        assert Path(path).read_text() == "weights"
    assert not os.path.exists(path)
    with away.on_disk("a_tag") as path:
        assert path == "a_tag"


def test_lines_that_were_left_here_join_those_that_are_there(url: str) -> None:
    storage.write_text(away.local(url), "1\n2\n3\n")
    for there in (None, "1\n", "1\n2\ntheirs\n", "1\n2\n3\ntheirs\n"):
        if there is not None:
            storage.write_text(url, there)
        away.put_lines(url)
        wanted = "1\n2\n3\n" + ("theirs\n" if there and "theirs" in there else "")
        assert storage.read_text(url) == wanted


def test_the_folder_here_is_its_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert away.folder("s3://b/a") != away.folder("s3://b/c")
    assert os.path.dirname(away.local("s3://b/a/metrics.jsonl")) == away.folder("s3://b/a/")
    root = Path(away.folder("s3://b/a")).parent
    assert root.stat().st_mode & 0o77 == 0
    root.rmdir()
    (tmp_path / "theirs").mkdir()
    root.symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"belongs to somebody else. hint: set TMPDIR"):
        away.folder("s3://b/a")
