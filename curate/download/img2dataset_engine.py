"""img2dataset's Downloader and Resizer, called on a window of URLs in memory, behind our guard.

``Downloader.download_shard`` does the work as it does for img2dataset's own users. Three of the names
it calls are other functions here: the GET is the guarded one, the statistics file is not written, and
the sample writer keeps samples in memory. Nothing inside img2dataset is changed for anybody else.
It is slower than `engine`, has no look-ahead, and is what that is measured against.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from curate.download import pixels
from curate.download.fetcher import Fetcher
from curate.download.guard import Policy
from curate.download.outcomes import Outcome, Refused
from curate.download.pictures import PictureOptions
from curate.score import picture

# The words of img2dataset for what it refuses itself.
_KINDS = {
    "image too small": "too_small",
    "image area too large": "too_large.pixels",
    "aspect ratio too large": "too_large.aspect",
    "hash mismatch": "hash",
}
_META = ("width", "height", "original_width", "original_height", "sha256", "exif")


class Img2datasetEngine:
    """One worker's downloader, used as `engine.Engine` is; rows are begun when they are collected.

    ``wire_bytes`` is the length of each body of the last call, None where none came whole.
    """

    def __init__(
        self, policy: Policy, options: PictureOptions, *, thread_count: int, memory_bytes: int
    ) -> None:
        self._module, resizer = borrowed()
        self.wire_bytes: list[int | None] = []
        self._options = options
        self._thread_count = thread_count
        self._fetcher = Fetcher(
            policy, most_requests=thread_count, memory_bytes=memory_bytes, done=_nobody
        )
        self._bounds = pixels.Bounds(
            min_image_size=options.min_image_size,
            max_image_area=options.max_image_area,
            max_aspect_ratio=options.max_aspect_ratio,
            max_frames=options.max_frames,
        )
        self._resize = functools.partial(
            _rebound(resizer.Resizer.__call__, SuppressStdoutStderr=contextlib.nullcontext),
            resizer.Resizer(
                image_size=options.image_size,
                resize_mode=options.resize_mode,
                resize_only_if_bigger=options.resize_only_if_bigger,
                upscale_interpolation=options.upscale_interpolation,
                downscale_interpolation=options.downscale_interpolation,
                encode_format=options.encode_format,
                encode_quality=options.encode_quality,
                skip_reencode=options.skip_reencode,
                disable_all_reencoding=options.disable_all_reencoding,
            ),
        )

    def expect(
        self,
        uids: Sequence[str],
        urls: Sequence[str | None],
        hashes: Sequence[str | None],
        notes: str,
    ) -> None:
        """img2dataset works on what it is given; nothing is begun."""

    def wants_more(self) -> bool:
        return False

    def costs(self) -> dict[str, float]:
        return self._fetcher.costs()

    def close(self) -> None:
        self._fetcher.close()

    def collect(
        self, uids: Sequence[str], urls: Sequence[str | None], hashes: Sequence[str | None]
    ) -> list[Outcome]:
        """An Outcome for each URL, in the order of ``urls``."""
        samples = _Samples(len(urls))
        self.wire_bytes = [None] * len(urls)
        expected = self._options.hash_name or None
        downloader = self._module.Downloader(
            sample_writer_class=samples,
            resizer=self._resized,
            thread_count=max(1, min(self._thread_count, len(urls))),
            save_caption=False,
            extract_exif=self._options.extract_exif,
            output_folder="",
            column_list=["url", *([expected] if expected else [])],
            timeout=0,  # the guard's, as all that concerns the GET
            number_sample_per_shard=max(1, len(urls)),
            oom_shard_count=1,
            compute_hash="sha256",
            verify_hash_type=expected,
            encode_format=self._options.encode_format,
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        run = _rebound(
            self._module.Downloader.download_shard,
            download_image_with_retry=self._fetched,
            write_stats=_no_stats,
        )
        columns = {"url": urls, **({expected: hashes} if expected else {})}
        with _feather(columns) as path:
            run(downloader, (0, path))
        return samples.finished(self.wire_bytes)

    def _fetched(
        self, row: tuple[int, str | None], **_: Any
    ) -> tuple[int, io.BytesIO | None, str | None]:
        """In place of img2dataset's ``download_image_with_retry``; its other arguments are the guard's."""
        key, url = row
        try:
            body = self._fetcher.get(url)
        except Refused as fault:
            return key, None, _message(fault)
        self.wire_bytes[key] = len(body)
        return key, io.BytesIO(body), None

    def _resized(self, stream: io.BytesIO, _: None = None) -> tuple[Any, ...]:
        """In place of calling img2dataset's Resizer: header first, then the resizer itself."""
        body = stream.read()
        try:
            with picture.quiet_stderr():
                data = pixels.ready(body, self._bounds)
                if self._options.disable_all_reencoding:
                    data = body
                found = self._resize(io.BytesIO(data))
                if found[5] is None and found[3]:  # what was decoded, whatever the header said
                    pixels.check((found[3], found[4]), self._bounds)
        except Refused as refusal:
            return None, None, None, None, None, _message(refusal)
        words = found[5]
        if words is None:
            return found
        return None, None, None, None, None, _message(Refused(_KINDS.get(words, "decode"), words))


class _Samples:
    """img2dataset's sample writer class and its instance in one: samples stay here."""

    def __init__(self, rows: int) -> None:
        self._written: list[tuple[bytes | None, dict[str, Any]] | None] = [None] * rows

    def __call__(self, *_: Any) -> _Samples:
        return self

    def write(self, image: bytes | None, key: str, caption: None, meta: dict[str, Any]) -> None:
        self._written[int(key)] = (image, meta)

    def close(self) -> None:
        """Nothing is open."""

    def finished(self, wire_bytes: list[int | None]) -> list[Outcome]:
        """What was written, as outcomes in row order."""
        found = []
        for row, length in zip(self._written, wire_bytes, strict=True):
            if row is None:
                nothing = "img2dataset returned nothing for this row"
                found.append(Outcome(kind="other", error_message=nothing, wire_bytes=length))
                continue
            image, meta = row
            kind, words = _kind(meta["error_message"])
            values = {name: meta.get(name) for name in _META}
            found.append(
                Outcome(kind=kind, image=image, error_message=words, wire_bytes=length, **values)
            )
        return found


def _kind(message: str | None) -> tuple[str | None, str | None]:
    """(kind, words) of a message, be it ours or img2dataset's own."""
    if message is None or message in _KINDS:
        return _KINDS.get(message or ""), message
    kind, _, explained = message.partition(": ")
    return kind, explained


def _nobody(key: Any, got: Any) -> None:
    """Nothing is submitted here: `Fetcher.get` hands its body to its caller."""


def _message(refusal: Refused) -> str:
    """Carries the kind through img2dataset, which knows only a message per row."""
    return f"{refusal.kind}: {refusal}"[:500]


def _no_stats(*_: Any) -> None:
    """In place of img2dataset's ``write_stats``: the runner counts rows and reasons itself."""


@contextlib.contextmanager
def _feather(columns: dict[str, Sequence[str | None]]) -> Iterator[str]:
    """The columns as img2dataset's shard file, in memory. ``download_shard`` removes it when done."""
    import fsspec

    fs = fsspec.filesystem("memory")
    path = f"/clip-pipe-{uuid.uuid4().hex}.feather"
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
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
