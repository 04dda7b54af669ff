"""Notes on a part: what was written is read back, damage costs its record only, and a kill -9 no record at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import storage
from curate.download import journal as module
from curate.download.journal import Journal, Place, lasts
from curate.download.outcomes import KINDS, Outcome, is_transient

ROOT = Path(__file__).resolve().parents[3]


def success(image: bytes, **fields: object) -> Outcome:
    return Outcome(image=image, width=4, height=3, wire_bytes=99, **fields)  # type: ignore[arg-type]


def whole(folder: str | Path) -> dict[str, Outcome]:
    """All that is noted, pictures included."""
    found = {uid: noted.whole() for uid, noted in Journal(str(folder)).read().items()}
    return {uid: outcome for uid, outcome in found.items() if outcome is not None}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


texts = st.none() | st.text(max_size=20)
outcomes = st.one_of(
    st.builds(
        Outcome,
        image=st.binary(min_size=1, max_size=300) | st.just(b"\xc1clip-j1" * 3),
        width=st.integers(1, 1 << 31),
        sha256=texts,
        exif=texts,
        wire_bytes=st.none() | st.integers(0, 1 << 40),
    ),
    st.builds(Outcome, kind=st.sampled_from(["http.404", "decode", "dns"]), error_message=texts),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=32), outcomes, max_size=12))
def test_what_was_written_is_read_back(notes: dict[str, Outcome]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = f"{root}/deep/part-00000"
        journal = Journal(folder)
        places = {uid: journal.write(uid, outcome) for uid, outcome in notes.items()}
        for uid, place in places.items():  # at once, not only when it is closed
            assert (place.read() if place else None) == notes[uid].image
        assert whole(folder) == notes
        journal.close()
        assert whole(folder) == notes


def test_every_writer_has_a_file_and_all_are_read(tmp_path: Path) -> None:
    for number in range(3):
        journal = Journal(str(tmp_path))
        journal.write(f"u{number}", success(bytes([number])))
        journal.close()
    assert len(files(tmp_path)) == 3
    assert {uid: outcome.image for uid, outcome in whole(tmp_path).items()} == {
        "u0": b"\0", "u1": b"\1", "u2": b"\2",
    }  # fmt: skip
    assert Journal(str(tmp_path / "nothing")).read() == {}
    assert not (tmp_path / "nothing").exists()


def test_what_may_pass_is_not_noted(tmp_path: Path) -> None:
    kinds = [kind if not kind.endswith(".") else f"{kind}503" for kind in KINDS] + ["http.404"]
    journal = Journal(str(tmp_path))
    for kind in kinds:
        journal.write(kind, Outcome(kind=kind, error_message="words"))
    journal.close()
    found = set(whole(tmp_path))
    assert found == {kind for kind in kinds if lasts(kind)}
    assert not any(is_transient(kind) for kind in found)
    assert {"http.404", "not_an_image", "dns"} < found
    assert not {"http.503", "timeout.total", "host_down"} & found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_file_keeps_its_whole_records(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        journal = Journal(root)
        ends = []
        for number in range(4):
            journal.write(str(number), success(bytes([number]) * 40))
            ends.append(files(Path(root))[0].stat().st_size)
        journal.close()
        length = data.draw(st.integers(0, ends[-1]))
        os.truncate(files(Path(root))[0], length)
        assert list(whole(root)) == [str(n) for n, end in enumerate(ends) if end <= length]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_byte_costs_its_record_only(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        journal = Journal(root)
        starts = [0]
        for number in range(4):
            journal.write(str(number), success(bytes([number]) * 40))
            starts.append(files(Path(root))[0].stat().st_size)
        journal.close()
        (path,) = files(Path(root))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        hit = max(number for number in range(4) if starts[number] <= at)
        assert list(whole(root)) == [str(n) for n in range(4) if n != hit]


def test_damage_is_told_with_its_place_and_a_cut_end_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(tmp_path))
    for number in range(3):
        journal.write(str(number), success(b"x" * 50))
    journal.close()
    (path,) = files(tmp_path)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert list(whole(tmp_path)) == ["0", "1"]
    assert caplog.text == ""
    content = bytearray(path.read_bytes())
    content[size // 3 - 5] ^= 1
    path.write_bytes(content)
    assert list(whole(tmp_path)) == ["1"]
    assert f"{path}: damaged at byte 0" in caplog.text


def test_a_disk_that_takes_no_more_ends_the_notes_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(tmp_path))
    assert journal.write("a", success(b"1")) is not None
    monkeypatch.setattr(module.os, "writev", lambda *_: 3)
    assert journal.write("b", success(b"2")) is None
    monkeypatch.undo()
    assert journal.write("c", success(b"3")) is None  # behind half a record
    assert caplog.text.count("not noted") == 1
    journal.close()
    assert list(whole(tmp_path)) == ["a"]
    (tmp_path / "file").write_text("")
    assert Journal(str(tmp_path / "file" / "part")).write("a", success(b"1")) is None


def test_many_threads_write_whole_records(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))

    def write(first: int) -> None:
        for number in range(first, 400, 8):
            place = journal.write(str(number), success(str(number).encode() * 99))
            assert place is not None
            assert place.read() == str(number).encode() * 99

    threads = [threading.Thread(target=write, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert {int(uid): o.image for uid, o in whole(tmp_path).items()} == {
        n: str(n).encode() * 99 for n in range(400)
    }


def test_a_place_that_is_gone_is_none(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    place = journal.write("a", success(b"12345"))
    assert place is not None
    (noted,) = Journal(str(tmp_path)).read().values()
    os.truncate(place.path, place.offset + 2)
    assert place.read() is None
    assert noted.whole() is None
    os.remove(place.path)
    assert place.read() is None
    assert Place("memory://nowhere/x", 0, 3).read() is None


def test_a_killed_writer_loses_nothing_it_wrote(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from curate.download.journal import Journal\n"
        "from curate.download.outcomes import Outcome\n"
        "journal = Journal(sys.argv[1])\n"
        "for number in range(10**6):\n"
        "    journal.write(str(number), Outcome(image=str(number).encode() * 500))\n"
        "    print(number, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(200)]
    child.send_signal(signal.SIGKILL)
    told += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    found = whole(tmp_path)
    assert set(map(str, told)) <= set(found)
    assert all(outcome.image == uid.encode() * 500 for uid, outcome in found.items())


@pytest.fixture
def remote() -> str:
    return f"memory://journal-{uuid.uuid4().hex}/work/part-00003"


def test_behind_a_url_records_come_in_whole_segments(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 1000)
    journal = Journal(remote)
    for number in range(50):
        assert journal.write(f"u{number:02d}", success(bytes(100))) is None
        if number % 10 == 9:  # a segment in work gathers what comes meanwhile
            assert isinstance(journal._writer, module._Segments)
            assert journal._writer._committing is not None
            journal._writer._committing.join()
    assert 0 < len(whole(remote)) <= 50
    journal.close()
    assert list(whole(remote)) == [f"u{number:02d}" for number in range(50)]
    assert len(storage.listed(remote)) > 1


def test_notes_that_are_not_needed_any_more_are_not_committed_late(remote: str) -> None:
    journal = Journal(remote)
    journal.write("a", success(b"1"))
    journal.close(keep=False)
    assert storage.listed(remote) == []
    assert journal.write("b", success(b"2")) is None
    journal.close()
    assert storage.listed(remote) == []


def test_a_segment_leaves_an_open_transaction_of_the_caller_alone(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures of a part are written in one transaction while its downloads are noted."""
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 1)
    tar = remote.replace("work", "images") + ".tar"
    with storage.committed(tar) as file:
        file.write(b"first ")
        journal = Journal(remote)
        for number in range(5):
            journal.write(str(number), success(b"x"))
        journal.close()
        assert len(whole(remote)) == 5
        assert not storage.exists(tar)
        file.write(b"second")
    assert fsspec.filesystem("memory").cat(tar) == b"first second"


def test_a_store_that_fails_is_told_and_the_run_goes_on(
    remote: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(module.storage, "committed", broken)
    journal = Journal(remote)
    journal.write("a", success(b"1"))
    journal.close()
    assert "A killed run would fetch" in caplog.text


def record(key: bytes, words: bytes, image: bytes = b"EVIL") -> bytes:
    crc = zlib.crc32(image, zlib.crc32(words))
    return module._HEAD.pack(key, len(words), len(image), crc) + words + image


def test_a_picture_cannot_look_like_a_record(tmp_path: Path) -> None:
    """One whose record is cut short, so that reading looks for the next one inside the picture."""
    words = json.dumps(["c", {"width": 7}]).encode()
    first = Journal(str(tmp_path))
    first.write("other", success(b"1"))  # a key that was known would be another file's
    key = bytes.fromhex(files(tmp_path)[0].stem)
    journal = Journal(str(tmp_path / "part"))
    journal.write("a", success(b"good"))
    journal.write("b", success(b"\xff\xd8" + record(key, words) + bytes(1000)))
    (path,) = files(tmp_path / "part")
    os.truncate(path, path.stat().st_size - 10)
    assert list(whole(tmp_path / "part")) == ["a"]


@pytest.mark.parametrize(
    "words", [b"{not json", b"[1]", b'["a", 3]', b'[3, {"kind": null}]', b'["a", {"kind": 3}]']
)
def test_a_record_out_of_form_is_told_and_left_out(
    tmp_path: Path, words: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(tmp_path))
    journal.write("a", success(b"good"))
    journal.close()
    (path,) = files(tmp_path)
    good = path.read_bytes()
    path.write_bytes(record(bytes.fromhex(path.stem), words) + good)
    assert list(whole(tmp_path)) == ["a"]
    assert "left out" in caplog.text
    path.rename(tmp_path / "renamed.journal")
    assert whole(tmp_path) == {}


def test_notes_that_another_attempt_may_end_otherwise_are_not_read(tmp_path: Path) -> None:
    """Of a writer that noted more."""
    journal = Journal(str(tmp_path))
    journal.write("a", success(b"good"))
    journal.close()
    (path,) = files(tmp_path)
    words = json.dumps(["b", {"kind": "timeout.total"}]).encode()
    path.write_bytes(path.read_bytes() + record(bytes.fromhex(path.stem), words, b""))
    assert list(whole(tmp_path)) == ["a"]


def test_a_slow_store_holds_up_nothing_and_little_waits_for_it(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(module, "_MOST_GATHERED_BYTES", 3000)
    real, may_go = module._put, threading.Event()

    def slow(path: str, records: list[bytes]) -> None:
        may_go.wait(60)
        real(path, records)

    monkeypatch.setattr(module, "_put", slow)
    journal = Journal(remote)
    for number in range(50):
        journal.write(str(number), success(bytes(1000)))
    assert isinstance(journal._writer, module._Segments)
    assert journal._writer._bytes < 5000
    ending = threading.Thread(target=journal.close, kwargs={"keep": False})
    ending.start()
    time.sleep(0.05)
    assert ending.is_alive()  # or a segment could appear after the folder was removed
    may_go.set()
    ending.join(60)
    assert len(storage.listed(remote)) == 1


def test_notes_are_json_that_another_tool_can_read(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write("a", success(b"12345", sha256="ff"))
    journal.close()
    data = files(tmp_path)[0].read_bytes()
    _, words_bytes, image_bytes, _ = module._HEAD.unpack_from(data)
    uid, fields = json.loads(data[module._HEAD.size : module._HEAD.size + words_bytes])
    assert (uid, fields["sha256"], image_bytes, data[-5:]) == ("a", "ff", 5, b"12345")
