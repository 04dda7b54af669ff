"""img2dataset's Downloader and Resizer, called on a window of URLs in memory, behind our guard.

``Downloader.download_shard`` does the work as it does for img2dataset's own users. Three of the names
it calls are other functions here: the GET is the guarded one, the statistics file is not written, and
the sample writer keeps samples in memory. Nothing inside img2dataset is changed for anybody else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.contract.draw import draw
from curate.download import pixels
from curate.download.guard import Guard, Policy, Refused
from curate.score import picture

_BACKOFF_S = 0.5
_MOST_WAIT_S = 30.0
_TRANSIENT = frozenset({"timeout", "refused", "connection", "http.408", "http.425", "http.429"})
# The words of img2dataset's resizer for what it refuses.
_RESIZER_KINDS = {
    "image too small": "too_small",
    "image area too large": "too_large.pixels",
    "aspect ratio too large": "too_large.aspect",
}
_OUTCOME_KEYS = (
    "status",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
)


@dataclass(frozen=True, kw_only=True)
class ResizeOptions:
    """Options of img2dataset's Resizer, under its names."""

    image_size: int
    resize_mode: str
    resize_only_if_bigger: bool
    encode_format: str
    encode_quality: int


@dataclass
class Outcome:
    """What became of one URL. ``kind`` is None for a success, else the end of its reason."""

    kind: str | None = "other"
    image: bytes | None = None
    status: str = "failed_to_download"
    error_message: str | None = "img2dataset returned nothing for this row"
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None


class Engine:
    """One worker's downloader. ``download`` may be called any number of times.

    ``wire_bytes`` is the length of each body of the last call, None where none came whole.
    """

    def __init__(
        self,
        policy: Policy,
        bounds: pixels.Bounds,
        options: ResizeOptions,
        thread_count: int,
        retries: int,
    ) -> None:
        downloader, resizer = borrowed()
        self._module = downloader
        self._guard = Guard(policy)
        self._bounds = bounds
        self._encode_format = options.encode_format
        self._thread_count = thread_count
        self._retries = retries
        self.wire_bytes: list[int | None] = []
        self._resize = functools.partial(
            _rebound(resizer.Resizer.__call__, SuppressStdoutStderr=contextlib.nullcontext),
            resizer.Resizer(**vars(options)),
        )

    def download(self, urls: list[str | None]) -> list[Outcome]:
        """An Outcome for each URL, in the order of ``urls``."""
        samples = _Samples(len(urls))
        self.wire_bytes = [None] * len(urls)
        downloader = self._module.Downloader(
            sample_writer_class=samples,
            resizer=self._resized,
            thread_count=max(1, min(self._thread_count, len(urls))),
            save_caption=False,
            extract_exif=False,
            output_folder="",
            column_list=["url"],
            timeout=self._guard.policy.timeout_s,
            number_sample_per_shard=max(1, len(urls)),
            oom_shard_count=1,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format=self._encode_format,
            retries=self._retries,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        run = _rebound(
            self._module.Downloader.download_shard,
            download_image_with_retry=self._fetched,
            write_stats=_no_stats,
        )
        with _feather(urls) as path:
            run(downloader, (0, path))
        return samples.outcomes

    def _fetched(
        self, row: tuple[int, str | None], retries: int, **_: Any
    ) -> tuple[int, io.BytesIO | None, str | None]:
        """In place of img2dataset's ``download_image_with_retry``; its other arguments are the guard's."""
        key, url = row
        for attempt in range(retries + 1):
            try:
                body = self._guard.get(url)
                self.wire_bytes[key] = len(body)
                return key, io.BytesIO(body), None
            except Refused as refusal:
                wait_s = _wait_s(refusal, attempt, url or "")
                if attempt == retries or wait_s is None:
                    return key, None, _message(refusal)
                time.sleep(wait_s)
        raise AssertionError("unreachable: the last attempt returns")

    def _resized(self, stream: io.BytesIO, _: None = None) -> tuple[Any, ...]:
        """In place of calling img2dataset's Resizer: header first, then the resizer itself."""
        try:
            with picture.quiet_stderr():
                data = pixels.ready(stream.read(), self._bounds)
                found = self._resize(io.BytesIO(data))
        except Refused as refusal:
            return None, None, None, None, None, _message(refusal)
        words = found[5]
        if words is None:
            return found
        kind = _RESIZER_KINDS.get(words, "decode")
        return None, None, None, None, None, _message(Refused(kind, words[:200]))


class _Samples:
    """img2dataset's sample writer class and its instance in one: samples land in ``outcomes``."""

    def __init__(self, rows: int) -> None:
        self.outcomes = [Outcome() for _ in range(rows)]

    def __call__(self, *_: Any) -> _Samples:
        return self

    def write(self, image: bytes | None, key: str, caption: None, meta: dict[str, Any]) -> None:
        outcome = Outcome(kind=None, image=image, **{name: meta[name] for name in _OUTCOME_KEYS})
        if outcome.error_message is not None:
            outcome.kind, _, outcome.error_message = outcome.error_message.partition(": ")
        self.outcomes[int(key)] = outcome

    def close(self) -> None:
        """Nothing is open."""


def _message(refusal: Refused) -> str:
    """Carries the kind through img2dataset, which knows only a message per row."""
    return f"{refusal.kind}: {refusal}"


def _wait_s(refusal: Refused, attempt: int, url: str) -> float | None:
    """How long to wait before the next attempt, or None where another would be no use."""
    if refusal.kind not in _TRANSIENT and not refusal.kind.startswith("http.5"):
        return None
    if refusal.retry_after_s is not None:
        return refusal.retry_after_s if refusal.retry_after_s <= _MOST_WAIT_S else None
    return min(_MOST_WAIT_S, _BACKOFF_S * 2**attempt * (0.5 + draw(url, f"download:{attempt}")))


def _no_stats(*_: Any) -> None:
    """In place of img2dataset's ``write_stats``: the runner counts rows and reasons itself."""


@contextlib.contextmanager
def _feather(urls: list[str | None]) -> Iterator[str]:
    """The URLs as img2dataset's shard file, in memory. ``download_shard`` removes it when done."""
    import fsspec

    fs = fsspec.filesystem("memory")
    path = f"/clip-pipe-{uuid.uuid4().hex}.feather"
    table = pa.table({"url": pa.array(urls, pa.string())})
    with fs.open(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    try:
        yield f"memory:/{path}"
    finally:
        if fs.exists(path):
            fs.rm(path)


def _rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same code with some of its module's names meaning something else, for this copy only."""
    return types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


@functools.cache
def borrowed() -> tuple[Any, Any]:
    """img2dataset's ``downloader`` and ``resizer`` modules, without the rest of the package.

    The package's own ``__init__`` brings its command line, Spark and wandb: 7 s per worker process
    against 1.6 s for these two (measured). ``wandb`` is only touched by its logger process, which does
    not run here. A process that imported img2dataset before gets the modules it already has; one that
    imports it later gets the whole package, since nothing is left behind in ``sys.modules``.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network on import
    names = ("img2dataset.downloader", "img2dataset.resizer")
    before = set(sys.modules)
    if "img2dataset" not in before:
        spec = importlib.util.find_spec("img2dataset")
        if spec is None:
            raise ModuleNotFoundError(
                "download.fetch: img2dataset is not installed. hint: pip install 'clip-pipe[curate]'"
            )
        package = types.ModuleType("img2dataset")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["img2dataset"] = package
        if "wandb" not in before:
            sys.modules["wandb"] = types.ModuleType("wandb")
    try:
        downloader, resizer = (importlib.import_module(name) for name in names)
    finally:
        for name in set(sys.modules) - before:
            if name == "wandb" or name.split(".")[0] == "img2dataset":
                del sys.modules[name]
    return downloader, resizer
