"""What is asked of an object store, request by request: retried, bounded, and clear when it fails.

obstore retries a request that failed on the way or met 5xx or throttling. What it may not repeat without
knowing more, a conditional write above all, is repeated here: each such write carries a name of its own,
by which it is told from another writer's after an answer was lost.

A process that was forked has none of the library's threads: there the questions go to ``object_helper``.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from curate.contract import object_login

PIECE_BYTES = 64 << 20  # of one request that reads; a shard mostly is one
PART_BYTES = 16 << 20  # of an upload
_CHUNK_BYTES = 4 << 20  # between the network and the disk
_AT_ONCE = 4  # pieces of one file on their way
_PIECES = 9_000  # s3 takes 10,000 parts of one upload
_ATTEMPTS = 3
_WITHIN_S = 180.0  # no further attempt begins later
_WAIT_S = 0.5  # doubled each time
_WRITER = "clippipe-writer"  # metadata: who wrote a small file, to know one's own
_COPY_LIMIT_BYTES = 5 << 30  # the largest object that s3 copies by one request
_STATUS = re.compile(r"status code: (\d{3})")
_RETRIES = re.compile(r"after (\d+) retries")
_OTHER_REGION = "incorrectly configured region"
_FINAL = ("169.254.", _OTHER_REGION)  # nobody there who gives credentials; a redirect
_CODE = re.compile(r"<Code>([^<]*)</Code>")

Meta = tuple[int, str, str]  # bytes, version, the time of change


class StoreError(OSError):
    """An object store did not do what was asked, however often. The message has the path and a hint."""


def ask(name: str, *arguments: Any) -> Any:
    """One question of ``_QUESTIONS``, answered by this process or, if it was forked, by its helper."""
    _Runtime.start()
    if _Runtime.pid != os.getpid():
        from curate.contract import object_helper

        return object_helper.ask(name, arguments)
    return _QUESTIONS[name](*arguments)


class _Runtime:
    pid = 0  # of the process that has the library's threads

    @classmethod
    def start(cls) -> None:
        cls.pid = cls.pid or os.getpid()


def _tried(url: str, what: str, request: Callable[[], Any]) -> Any:
    """The answer to a request that may be repeated. Raises FileNotFoundError, PermissionError or StoreError."""
    from obstore import exceptions

    begun_s, wait_s = time.monotonic(), _WAIT_S
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return request()
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except (exceptions.BaseError, FileNotFoundError, OSError) as fault:
            text = str(fault)
            status = int(found[1]) if (found := _STATUS.search(text)) else 0
            # Credentials that can't be had come without a status too, and after all retries.
            final = status not in (0, 408, 429) and status < 500
            if isinstance(fault, ValueError | exceptions.InvalidPathError) or any(
                sign in text for sign in _FINAL
            ):
                final = True
            took_s = time.monotonic() - begun_s
            final |= attempt == _ATTEMPTS or took_s > _WITHIN_S
            if final or isinstance(fault, FileNotFoundError):
                raise _told(url, what, fault, attempt, took_s) from fault
        time.sleep(wait_s)
        wait_s *= 2
    raise AssertionError


def _told(url: str, what: str, fault: Exception, attempts: int, seconds: float) -> OSError:
    text = str(fault)
    status = found[1] if (found := _STATUS.search(text)) else ""
    code = found[1] if (found := _CODE.search(text)) else ""
    scheme, bucket, _ = object_login.split(url)
    said = (
        " ".join(filter(None, (status, code))) or text.partition("\n")[0].rpartition(" - ")[2][:300]
    )
    each = f", each with {found[1]} retries" if (found := _RETRIES.search(text)) else ""
    if code == "NoSuchBucket" or "ContainerNotFound" in text:
        return StoreError(f"{url}: there is no bucket {bucket!r}. hint: make it, or name another")
    if isinstance(fault, FileNotFoundError):
        return FileNotFoundError(f"{url}: no such file")
    if (
        _OTHER_REGION in text
        or status == "301"
        or code in ("PermanentRedirect", "AuthorizationHeaderMalformed")
    ):
        return StoreError(
            f"{url}: {what}: the bucket is in another region. hint: set AWS_REGION to the bucket's"
        )
    if status in ("401", "403") or "169.254." in text or "metadata.google" in text:
        said = said if status else "no credentials were found"
        return PermissionError(
            f"{url}: {what}: not allowed: {said}. hint: {object_login.hint(scheme)}"
        )
    return StoreError(
        f"{url}: {what}: asked {attempts} times in {seconds:.0f} s{each}: {said}. "
        "hint: is the store reachable, and not overloaded? once it is, the same command goes on"
    )


def _at(url: str) -> tuple[Any, str]:
    return object_login.store(url), object_login.split(url)[2]


def _meta(found: Any) -> Meta:
    return int(found["size"]), str(found["e_tag"] or ""), str(found["last_modified"])


def head(url: str) -> Meta:
    store, key = _at(url)
    return _meta(_tried(url, "look up", lambda: store.head(key)))


def get(url: str) -> bytes:
    store, key = _at(url)
    return _tried(url, "read", lambda: bytes(store.get(key).bytes()))


def _get(
    url: str, begin: int, end: int, version: str, size: int, take: Callable[[Any], Any]
) -> Any:
    """What ``take`` makes of the answer with these bytes of ``size``, of this version if one is named."""
    from obstore import exceptions

    store, key = _at(url)
    options: dict[str, Any] = {} if (begin, end) == (0, size) else {"range": (begin, end)}
    if version.startswith('"'):
        options["if_match"] = version
    try:
        what = f"read bytes {begin} to {end}"
        return _tried(url, what, lambda: take(store.get(key, options=options)))
    except exceptions.PreconditionError as fault:
        raise StoreError(
            f"{url}: was written anew while it was read. hint: does another run write there?"
        ) from fault


def _whole(found: Any, size: int) -> Any:
    if len(found) != size:
        raise OSError(f"{len(found)} of {size} bytes came")
    return found


def get_range(url: str, begin: int, end: int, version: str, size: int = -1) -> Any:
    """The bytes from ``begin`` up to ``end``. Raises StoreError if the file is of another version by now."""
    return _get(url, begin, end, version, size, lambda found: _whole(found.bytes(), end - begin))


def pieces(begin: int, end: int) -> list[tuple[int, int]]:
    """A range, cut into requests of at most ``PIECE_BYTES``."""
    return [(at, min(at + PIECE_BYTES, end)) for at in range(begin, end, PIECE_BYTES)]


def get_many(url: str, begin: int, end: int, version: str, size: int = -1) -> Any:
    """As ``get_range``, large ones by several requests at a time."""
    wanted = pieces(begin, end)
    if len(wanted) == 1:
        return get_range(url, begin, end, version, size)
    whole = memoryview(bytearray(end - begin))

    def fill(piece: tuple[int, int]) -> None:
        whole[piece[0] - begin : piece[1] - begin] = memoryview(get_range(url, *piece, version))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fill, wanted))
    return whole


def download(url: str, target: str) -> None:
    """Copy a file to disk, its bytes synced."""
    size, version, _ = head(url)
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def fill(piece: tuple[int, int]) -> None:
        begin, end = piece

        def take(found: Any) -> None:
            at = begin  # asked again, it comes from its beginning again
            for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                _write_at(file, chunk, at)
                at += len(chunk)
            if at != end:
                raise OSError(f"{at - begin} of {end - begin} bytes came")

        _get(url, begin, end, version, size, take)

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fill, pieces(0, size)))
        os.fsync(file)
    finally:
        os.close(file)


def _write_at(file: int, chunk: Any, at: int) -> None:
    left = memoryview(chunk)
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


def upload(url: str, source: str) -> str:
    """Put a file from disk there: seen when it is whole. What failed in the middle is taken back.

    Returns what the store calls this version, '' where it does not say.
    """
    from pathlib import Path

    store, key = _at(url)
    chunk = max(PART_BYTES, os.path.getsize(source) // _PIECES)
    put = _tried(
        url,
        "write",
        lambda: store.put(key, Path(source), chunk_size=chunk, max_concurrency=_AT_ONCE),
    )
    return str(put["e_tag"] or "")


def swap(url: str, data: bytes, expected: bytes | None) -> bool:
    """Write a small file if it holds ``expected`` (None: if nothing is there); whether it is ours now.

    The server decides, by If-None-Match or If-Match. After a lost answer the metadata says whose it is.
    """
    from obstore import exceptions

    store, key = _at(url)
    mode: Any = "create"
    if expected is not None:
        try:
            held, version = _tried(url, "read", lambda: _held(store.get(key)))
        except FileNotFoundError:
            return False
        if held != expected:
            return False
        mode = version
    writer = {_WRITER: uuid.uuid4().hex}
    try:
        _tried(url, "write", lambda: store.put(key, data, mode=mode, attributes=writer))
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        try:
            kept = _tried(url, "read", lambda: store.get(key)).attributes
        except FileNotFoundError:  # and gone again
            return False
        return kept.get(_WRITER) == writer[_WRITER]
    except FileNotFoundError:  # the one to be replaced is gone
        return False
    return True


def _held(found: Any) -> tuple[bytes, dict[str, Any]]:
    return bytes(found.bytes()), {
        name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None
    }


def copy(source: str, target: str) -> bool:
    """Copy within a bucket, by the server itself; False where it can't."""
    if object_login.split(source)[:2] != object_login.split(target)[:2]:
        return False
    if head(source)[0] >= _COPY_LIMIT_BYTES:
        return False
    store, key = _at(source)
    _tried(source, f"copy to {target}", lambda: store.copy(key, object_login.split(target)[2]))
    return True


def level(url: str) -> tuple[list[str], list[tuple[str, Meta]]]:
    """(folders, files) right below a folder, sorted, by one listing."""
    store, key = _at(url)
    found = _tried(url, "list", lambda: store.list_with_delimiter(key or None))
    files = [(one["path"], _meta(one)) for one in found["objects"] if one["path"] != key]
    return sorted(found["common_prefixes"]), sorted(files)


def below(url: str, one: bool = False) -> list[str]:
    """The keys of all files below a folder, by one listing; or only of ``one``."""
    store, key = _at(url)

    def request() -> list[str]:
        names: list[str] = []
        for page in store.list(key or None, chunk_size=1 if one else 1000):
            names += [entry["path"] for entry in page]
            if one and names:
                break
        return names

    return _tried(url, "list", request)


def delete(url: str, keys: list[str]) -> None:
    """Delete files of a bucket by their keys; nothing happens for those that are not there."""
    store, _ = _at(url)

    def request(some: list[str]) -> None:
        _tried(url, "delete", lambda: store.delete(some))

    for begin in range(0, len(keys), 1000):
        some = keys[begin : begin + 1000]
        try:
            request(some)
        except FileNotFoundError:  # some stores tell
            for key in some:
                with suppress(FileNotFoundError):
                    request([key])


def probe(url: str) -> bool:
    """Write and delete a small file; whether the store refuses a second one under its name.

    Raises FileNotFoundError, PermissionError, StoreError, sooner than other questions do.
    """
    from obstore import exceptions

    store, key = object_login.store(url, retries=2), object_login.split(url)[2]
    try:
        _tried(url, "write", lambda: store.put(key, b"1", mode="create"))
        try:
            _tried(url, "write", lambda: store.put(key, b"2", mode="create"))
            refuses = False
        except exceptions.AlreadyExistsError:
            refuses = True
    finally:
        with suppress(Exception):
            store.delete(key)
    return refuses


_QUESTIONS: dict[str, Callable[..., Any]] = {
    question.__name__: question
    for question in (
        head,
        get,
        get_many,
        download,
        upload,
        swap,
        copy,
        level,
        below,
        delete,
        probe,
    )
}
