"""The window over expected rows: any order of answers gives each row its own outcome, and the books are even."""

from __future__ import annotations

import gc
import random
import signal
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.download import engine as module
from curate.download.engine import Engine
from curate.download.fetcher import Body
from curate.download.guard import Policy
from curate.download.journal import Journal
from curate.download.outcomes import Outcome, Refused
from curate.download.pictures import PictureOptions
from curate.stage import StageError

PICTURE_BYTES = 1000


class Web:
    """In place of the fetcher: answers in a random order, or when told to. The bodies are the URLs."""

    def __init__(self, seed: int = 0, own_thread: bool = True) -> None:
        self.asked: list[str] = []
        self.released = 0
        self.pending: list[str] = []
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._closed = False
        if own_thread:
            threading.Thread(target=self._answer_all, daemon=True).start()

    def __call__(self, policy: Policy, *, done: Callable[..., None], **_: Any) -> Web:
        self.done = done
        return self

    def submit(self, key: str, url: str) -> None:
        with self._changed:
            self.asked.append(url)
            self.pending.append(url)
            self._changed.notify()

    def answer(self, url: str) -> None:
        self.pending.remove(url)
        kind = {"g": "http.404", "t": "timeout.total"}.get(url.rsplit("/", 1)[1][0])
        self.done(url, Body(url.encode()) if kind is None else Refused(kind, "words"))

    def _answer_all(self) -> None:
        while not self._closed:
            with self._changed:
                while not self.pending and not self._closed:
                    self._changed.wait()
                url = self._random.choice(self.pending) if self.pending else None
            if url is not None:
                self.answer(url)

    def release(self, size_bytes: int) -> None:
        self.released += size_bytes

    def waiting(self) -> int:
        return 0

    def costs(self) -> dict[str, float]:
        return {"requests": float(len(self.asked))}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class Decoding:
    """In place of the decoders: at once, on the caller's thread. The picture is the body, filled up."""

    def __init__(self, options: PictureOptions, *, done: Callable[..., None], **_: Any) -> None:
        self.done = done

    def submit(self, key: Any, body: bytes, expected_hash: str | None = None) -> None:
        self.done(key, pictured(body.decode(), expected_hash))

    def warm(self, count: int) -> None:
        pass

    def costs(self) -> dict[str, float]:
        return {"pictures": 1.0}

    def close(self) -> None:
        pass


def pictured(url: str, expected_hash: str | None) -> Outcome:
    if expected_hash == "wrong":
        return Outcome(kind="hash", error_message=url, wire_bytes=len(url))
    image = f"{url} {expected_hash} ".encode().ljust(PICTURE_BYTES, b".")
    return Outcome(image=image, width=1, wire_bytes=len(url))


def expected(url: str | None, expected_hash: str | None) -> Outcome:
    if url is None:
        return Outcome(kind="bad_url", error_message="the URL is missing")
    kind = {"g": "http.404", "t": "timeout.total"}.get(url.rsplit("/", 1)[1][0])
    if kind is not None:
        return Outcome(kind=kind, error_message="words")
    return pictured(url, expected_hash)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []

    def make(web: Web, memory_bytes: int = 1 << 24) -> Engine:
        monkeypatch.setattr(module, "Fetcher", web)
        monkeypatch.setattr(module, "Decoders", Decoding)
        opened.append(engine_of(memory_bytes))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def engine_of(memory_bytes: int) -> Engine:
    return Engine(
        Policy(), PictureOptions(),
        most_requests=8, processes=1, decode_timeout_s=60.0, memory_bytes=memory_bytes,
    )  # fmt: skip


def rows_of(urls: list[str | None], first: int = 0) -> tuple[list[str], list[Any], list[Any]]:
    return [f"u{first + n}" for n in range(len(urls))], list(urls), [None] * len(urls)


def urls_of(names: str) -> list[str | None]:
    return [f"http://a/{name}" for name in names.split()]


def assert_even(engine: Engine) -> None:
    """All that was begun is finished and collected, and nothing but the last rows is left."""
    assert (engine._unfinished, engine._finished, engine._held_bytes) == (0, 0, 0)
    assert set(engine._rows) == set(engine._given)
    assert {id(job) for job in engine._jobs.values()} == {id(r.job) for r in engine._given.values()}
    assert not engine._gets
    assert not engine._held_back
    assert engine._decoding == 0
    assert not engine._parts
    assert not engine._awaited


row = st.tuples(
    st.sampled_from([None, *urls_of("a b c d e g1 g2 t1")]),
    st.sampled_from([None, None, None, "right", "wrong"]),
)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.lists(row, max_size=12), min_size=1, max_size=4),
    cut=st.integers(1, 7),
    ahead=st.integers(0, 3),
    noted=st.booleans(),
    memory_bytes=st.sampled_from([0, 3 * PICTURE_BYTES, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_any_order_of_answers_gives_each_row_its_own_outcome(
    parts: list[list[Any]], cut: int, ahead: int, noted: bool, memory_bytes: int, seed: int
) -> None:
    web = Web(seed)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as root:
        patch.setattr(module, "Fetcher", web)
        patch.setattr(module, "Decoders", Decoding)
        engine = engine_of(memory_bytes)
        keyed = [
            [(f"{p}-{n}", url, digest) for n, (url, digest) in enumerate(rows)]
            for p, rows in enumerate(parts)
        ]
        for number, rows in enumerate(keyed):
            for other in range(number, min(len(keyed), number + ahead)):
                uids, urls, hashes = ([r[i] for r in keyed[other]] for i in range(3))
                engine.expect(uids, urls, hashes, f"{root}/{other}" if noted else "")
            for start in range(0, len(rows), cut):
                batch = rows[start : start + cut]
                asked = [batch]
                if seed % 3 == 0:  # as the runner does after an exception
                    asked += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                for some in asked:
                    got = engine.collect(*([r[i] for r in some] for i in range(3)))
                    assert got == [expected(url, digest) for _, url, digest in some]
                    assert engine.wire_bytes == [outcome.wire_bytes for outcome in got]
        if ahead:
            assert_even(engine)
            assert all(not left for left in (engine._unfinished, engine._held_bytes))
        engine.close()
        assert web.released == sum(
            len(url) for url in web.asked if url.rsplit("/", 1)[1][0] in "abcde"
        )


def test_rows_with_an_equal_url_share_one_get(made: Callable[..., Engine], tmp_path: Path) -> None:
    web = Web(own_thread=False)
    engine = made(web)
    urls: list[str | None] = ["http://a/b c", "http://a/b%20c", "HTTP://A/b%20c", "http://a/d"]
    engine.expect(["1", "2", "3", "4"], urls, [None, "right", "wrong", None], str(tmp_path / "0"))
    engine.expect(["5"], urls[:1], [None], str(tmp_path / "1"))
    assert web.asked == ["http://a/b%20c", "http://a/d"]
    for url in list(web.asked):
        web.answer(url)
    got = engine.collect(["1", "2", "3", "4"], urls, [None, "right", "wrong", None])
    assert [outcome.kind for outcome in got] == [None, None, "hash", None]
    assert set(Journal(str(tmp_path / "0")).read()) == {"1", "2", "3", "4"}
    engine.expect(["6"], ["http://a/d"], [None], str(tmp_path / "2"))  # has come, is still here
    assert set(Journal(str(tmp_path / "2")).read()) == {"6"}
    assert [o.kind for o in engine.collect(["5", "6"], [urls[0], urls[3]], [None, None])] == [
        None,
        None,
    ]
    assert len(web.asked) == 2
    assert_even(engine)


def test_what_is_expected_first_is_begun_first_and_only_a_window_of_it(
    made: Callable[..., Engine],
) -> None:
    web = Web(own_thread=False)
    engine = made(web, memory_bytes=64 * module._FIRST_GUESS_BYTES)
    urls = [f"http://a/{number}" for number in range(1000)]
    engine.expect(*rows_of(list(urls[:40])), "")
    assert web.asked == urls[:32]  # half of the memory, at the guess of a picture's size
    assert not engine.wants_more()
    for number in range(40, 1000, 40):
        engine.expect(*rows_of(list(urls[number : number + 40]), number), "")
    for url in urls[:32]:
        web.answer(url)
    assert web.asked == urls[: len(web.asked)]
    held = engine._held_bytes + engine._unfinished * engine._guess_bytes
    assert held <= engine._most_held_bytes + engine._guess_bytes
    assert len(web.asked) > 64  # pictures are smaller than the guess was


def test_a_hanging_url_holds_nobody_else(made: Callable[..., Engine], tmp_path: Path) -> None:
    web = Web(own_thread=False)
    engine = made(web)
    urls = urls_of("hang a b c")
    engine.expect(*rows_of(urls), str(tmp_path / "0"))
    for part in range(1, 4):
        assert engine.wants_more()
        engine.expect(*rows_of(urls_of(f"{part}a {part}b"), 10 * part), str(tmp_path / str(part)))
    for url in web.asked[1:]:
        web.answer(url)
    first: list[Outcome] = []
    waiting = threading.Thread(target=lambda: first.extend(engine.collect(*rows_of(urls))))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    assert len(Journal(str(tmp_path / "3")).read()) == 2  # done long before
    web.answer("http://a/hang")
    waiting.join(60)
    assert [outcome.kind for outcome in first] == [None] * 4
    for part in range(1, 4):
        engine.collect(*rows_of(urls_of(f"{part}a {part}b"), 10 * part))
    assert_even(engine)


def test_few_waiting_rows_and_room_are_asked_for(
    made: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_JOBS", 10)
    monkeypatch.setattr(module, "FEW_WAITING", 3)
    web = Web(own_thread=False)
    engine = made(web, memory_bytes=1 << 30)
    assert engine.wants_more()
    engine.expect(*rows_of(urls_of("a b c d e f")), "")
    assert engine.wants_more()
    engine.expect(*rows_of(urls_of("a1 b1 c1 d1 e1 f1"), 6), "")
    assert len(web.asked) == 10
    assert not engine.wants_more()


def test_beyond_the_memory_pictures_wait_in_the_journal(
    made: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_GUESS_BYTES", 10)  # far too low: all is begun at once
    web = Web(own_thread=False)
    engine = made(web, memory_bytes=8 * PICTURE_BYTES)
    urls: list[str | None] = [f"http://a/{number}" for number in range(60)]
    engine.expect(*rows_of(urls), str(tmp_path))
    assert len(web.asked) == 60
    for url in web.asked:
        web.answer(url)  # type: ignore[arg-type]
        assert engine._held_bytes <= 4 * PICTURE_BYTES
    got = engine.collect(*rows_of(urls))
    assert got == [expected(url, None) for url in urls]
    assert engine.collect(*rows_of(urls)) == got
    assert_even(engine)


@pytest.mark.parametrize("notes", ["", "memory://engine-notes/part"])
def test_without_a_journal_on_disk_pictures_stay_within_the_memory(
    made: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, notes: str
) -> None:
    monkeypatch.setattr(module, "_FIRST_GUESS_BYTES", 10)
    web = Web(own_thread=False)
    engine = made(web, memory_bytes=8 * PICTURE_BYTES)
    urls: list[str | None] = [f"http://a/{number}" for number in range(60)]
    engine.expect(*rows_of(urls), notes)
    for url in web.asked[5:]:
        web.answer(url)
        assert engine._held_bytes <= 5 * PICTURE_BYTES
    assert web.released < 10 * len("http://a/10")  # the bodies wait, and the fetcher with them
    for url in web.asked[:5]:
        web.answer(url)
    for start in range(0, 60, 6):
        part = [column[start : start + 6] for column in rows_of(urls)]
        assert engine.collect(*part) == [expected(url, None) for url in part[1]]
    assert_even(engine)


def test_bodies_that_wait_give_way_to_one_that_is_waited_for(
    made: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetcher may have no room for it before they are released."""
    monkeypatch.setattr(module, "_FIRST_GUESS_BYTES", 10)
    monkeypatch.setattr(module, "_STARVED_S", 0.001)
    web = Web(own_thread=False)
    engine = made(web, memory_bytes=2 * PICTURE_BYTES)
    urls: list[str | None] = [f"http://a/{number}" for number in range(30)]
    engine.expect(*rows_of(urls), "")
    for url in web.asked[1:]:
        web.answer(url)
    before = web.released
    waiting = threading.Thread(target=lambda: engine.collect(*rows_of(urls[:1])))
    waiting.start()
    deadline_s = time.monotonic() + 60
    while engine._held_back and time.monotonic() < deadline_s:
        time.sleep(0.002)
    assert not engine._held_back
    assert web.released > before
    web.answer("http://a/0")
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_body_that_nobody_wants_any_more_is_released(made: Callable[..., Engine]) -> None:
    web = Web(own_thread=False)
    engine = made(web)
    engine.expect(*rows_of(urls_of("a b")), "")
    for row in list(engine._rows.values()):
        engine._drop(row)
    for url in list(web.pending):
        web.answer(url)
    assert web.released == len("http://a/a") * 2
    assert (engine._unfinished, engine._held_bytes) == (0, 0)


def test_closing_wakes_who_waits(made: Callable[..., Engine]) -> None:
    engine = made(Web(own_thread=False))
    faults: list[BaseException] = []

    def collect() -> None:
        try:
            engine.collect(*rows_of(urls_of("a")))
        except StageError as fault:
            faults.append(fault)

    waiting = threading.Thread(target=collect)
    waiting.start()
    time.sleep(0.05)
    engine.close()
    waiting.join(60)
    assert "closed" in str(faults[0])


def test_a_picture_that_a_journal_lost_is_fetched_again(
    made: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_GUESS_BYTES", 10)
    web = Web(0)
    engine = made(web, memory_bytes=PICTURE_BYTES)
    urls = urls_of("a b c")
    engine.expect(*rows_of(urls), str(tmp_path))
    deadline_s = time.monotonic() + 60
    while len(Journal(str(tmp_path)).read()) < 3:
        assert time.monotonic() < deadline_s
    lost = {row.key[0] for row in engine._rows.values() if row.job.outcome.image is None}  # type: ignore[union-attr]
    assert lost
    for path in tmp_path.iterdir():
        path.unlink()
    assert engine.collect(*rows_of(urls)) == [expected(url, None) for url in urls]
    assert engine.collect(*rows_of(urls[:1])) == [expected(urls[0], None)]
    assert max(Counter(web.asked).values()) == 2
    assert_even(engine)


def test_rows_of_the_last_collect_may_be_asked_for_again(made: Callable[..., Engine]) -> None:
    web = Web()
    engine = made(web)
    urls = urls_of("a b c d g1")
    uids, _, hashes = rows_of(urls)
    whole = engine.collect(uids, urls, hashes)
    for start, end in ((0, 2), (2, 5), (0, 5), (3, 4)):
        assert (
            engine.collect(uids[start:end], urls[start:end], hashes[start:end])
            == (whole[start:end])
        )
    engine.expect(uids, urls, hashes, "")
    assert len(web.asked) == 5
    engine.collect(["other"], urls_of("e"), [None])
    assert len(engine._rows) == 1
    engine.collect(uids, urls, hashes)
    assert len(web.asked) == 11
    assert engine.collect([], [], []) == []


def test_a_part_that_was_begun_before_is_asked_for_the_rest_only(
    made: Callable[..., Engine], tmp_path: Path
) -> None:
    urls = urls_of("a b c g1 t1 e")
    first = Web(own_thread=False)
    engine = made(first)
    engine.expect(*rows_of(urls), str(tmp_path))
    for name in ("a", "c", "g1", "t1"):
        first.answer(f"http://a/{name}")
    second = Web()
    engine = made(second)
    engine.expect(*rows_of(urls), str(tmp_path))
    assert engine.collect(*rows_of(urls)) == [expected(url, None) for url in urls]
    assert sorted(second.asked) == urls_of("b e t1")
    assert_even(engine)


def test_rows_that_nobody_comes_for_lose_their_room_to_later_parts(
    made: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_JOBS", 4)
    web = Web(own_thread=False)
    engine = made(web)
    urls = [urls_of(f"{part}a {part}b {part}c") for part in range(3)]
    for part in range(3):
        engine.expect(*rows_of(urls[part], 3 * part), str(tmp_path / str(part)))
    for url in list(web.pending[:3]):
        web.answer(url)
    assert len(web.asked) == 4
    waiting = threading.Thread(target=lambda: engine.collect(*rows_of(urls[2], 6)))
    waiting.start()
    deadline_s = time.monotonic() + 60
    while waiting.is_alive():
        assert time.monotonic() < deadline_s
        for url in list(web.pending):
            web.answer(url)
        time.sleep(0.001)
    assert_even(engine)


def test_threads_may_collect_different_parts(made: Callable[..., Engine], tmp_path: Path) -> None:
    engine = made(Web(3), memory_bytes=6 * PICTURE_BYTES)
    faults: list[BaseException] = []

    def work(part: int) -> None:
        try:
            urls: list[str | None] = [f"http://a/{part}x{n // 2}" for n in range(60)]
            uids, _, hashes = rows_of(urls, 100 * part)
            engine.expect(uids, urls, hashes, str(tmp_path / str(part)))
            for start in range(0, 60, 7):
                cut = slice(start, start + 7)
                assert engine.collect(uids[cut], urls[cut], hashes[cut]) == [
                    expected(url, None) for url in urls[cut]
                ]
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert faults == []


def test_what_cannot_work_at_all_stops_the_run(
    made: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no more threads")

    web = Web(own_thread=False)
    engine = made(web)
    monkeypatch.setattr(web, "submit", broken)
    with pytest.raises(StageError, match=r"can't go on: OSError: no more threads. hint: "):
        engine.collect(*rows_of(urls_of("a")))
    engine = made(Web())
    monkeypatch.setattr(engine._decoders, "submit", broken)
    with pytest.raises(StageError, match=r"no more threads. hint: "):
        engine.collect(*rows_of(urls_of("a")))


def test_an_interrupt_comes_through_at_once(made: Callable[..., Engine]) -> None:
    engine = made(Web(own_thread=False))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    own = threading.get_ident()

    def interrupt() -> None:
        while not engine._awaited:
            time.sleep(0.01)
        time.sleep(0.05)
        signal.pthread_kill(own, signal.SIGALRM)

    interrupting = threading.Thread(target=interrupt, daemon=True)
    try:
        interrupting.start()
        began_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            engine.collect(*rows_of(urls_of("a")))
        assert time.monotonic() - began_s < 30
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not engine._awaited


def test_costs_are_those_of_both_sides(made: Callable[..., Engine]) -> None:
    assert made(Web()).costs() == {"requests": 0.0, "pictures": 1.0}


def test_a_part_that_is_begun_again_in_the_same_process_keeps_what_came(
    made: Callable[..., Engine], tmp_path: Path
) -> None:
    """The runner gave it up half-way: some rows are handed out and forgotten, some still wait."""
    web = Web()
    engine = made(web)
    urls = urls_of("a b c d e g1")
    uids, _, hashes = rows_of(urls)
    engine.expect(uids, urls, hashes, str(tmp_path / "0"))
    engine.collect(uids[:2], urls[:2], hashes[:2])
    engine.collect(uids[2:4], urls[2:4], hashes[2:4])
    engine.expect(uids, urls, hashes, str(tmp_path / "0"))
    got = engine.collect(uids, urls, hashes)
    assert got == [expected(url, None) for url in urls]
    assert len(web.asked) == 6
    assert_even(engine)


def test_pictures_that_were_handed_out_are_not_held_until_their_part_ends(
    made: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = made(Web())
    urls = urls_of("a b c d")
    uids, _, hashes = rows_of(urls)
    engine.expect(uids, urls, hashes, str(tmp_path))
    first = weakref.ref(engine.collect(uids[:1], urls[:1], hashes[:1])[0])
    assert first() is not None
    engine.collect(uids[1:2], urls[1:2], hashes[1:2])
    gc.collect()
    assert engine._parts
    assert first() is None
