"""Fetches each row's picture and resizes it, under img2dataset's options and column names.

``engine = "clip-pipe"`` fetches with libcurl and decodes in processes of its own, in one rolling window
over the parts (see `engine`). ``engine = "img2dataset"`` is img2dataset's Downloader and Resizer (1.47)
behind the same guarded GET, and what the first is measured against. Options, columns and resize modes are
img2dataset's. Both differ from it in what may be asked of the web (see `guard`), in limits that hold
before anything is decoded (see `pixels`), in EXIF orientation being applied once, in 16-bit samples
being scaled, in reading opt-out headers directive by directive (see `opt_out`), and in ``resize_mode``,
which starts as "keep_ratio" and not as "border": the trainer crops, so white borders would only be
learnt. ``original_width`` and ``original_height`` are of the upright picture. Proxies named in the
environment are not used: behind one, addresses could not be checked.

A refused row's reason is ``error.download.fetch.<kind>``, with a kind of ``outcomes.KINDS``;
``error_message`` has the words.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pyarrow as pa

from curate.contract.columns import field
from curate.download.opt_out import meant
from curate.download.outcomes import KINDS, Outcome, is_transient
from curate.download.resize import INTERPOLATIONS, MODES
from curate.stage import KEEP, REASON, RowStage, StageError, decision, error, tuning_option

if TYPE_CHECKING:
    from curate.download.guard import Policy
    from curate.download.pictures import PictureOptions

_QUALITY = {"jpg": (0, 100), "webp": (0, 100), "png": (0, 9)}
_HASHES = ("md5", "sha256", "sha512")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "engine": ("clip-pipe", "img2dataset"),
    "resize_mode": MODES,
    "upscale_interpolation": INTERPOLATIONS,
    "downscale_interpolation": INTERPOLATIONS,
    "encode_format": tuple(_QUALITY),
    "quality": ("fast", "exact"),
}
_ABOVE_ZERO = (
    "image_size", "max_aspect_ratio", "max_image_area", "max_frames", "timeout", "first_byte_timeout",
    "thread_count", "max_bytes", "requests_per_host", "decode_timeout", "memory_mb",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "min_image_size", "retries", "max_redirects", "requests_per_s_per_host", "decode_processes",
)  # fmt: skip
# What img2dataset has no notion of, so that nobody believes it was heeded.
_OWN_ENGINE_ONLY = ("quality", "decode_processes", "decode_timeout")
_AT_MOST = {"image_size": 10_000, "decode_processes": 256}
_PILLOW_AREA_PX = 100_000_000  # curate.score.picture.MAX_AREA_PX
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_IMG2DATASET_ROWS = 512
_NO_HASH = "(none given)"
_OUTCOME = (
    "status",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
)
# Not transient from one minute to the next, and still no word on the picture: a name that is not found
# looks like our own resolver being down, `tls` like a missing CA file or a wrong clock; robots.txt
# changes, and one that can't be read counts as a refusal; a busy machine decodes too slowly.
_PASSING = ("dns", "tls", "host_down", "robots", "decode.timeout", "decode.crashed", "other")


def _lasting() -> tuple[str, ...]:
    """Kinds that say something of the picture or its page, so that it is not asked again by itself."""
    codes = (f"http.{code}" for code in range(100, 500))
    kinds = [*(kind for kind in KINDS if not kind.endswith(".")), *codes]
    return tuple(kind for kind in kinds if kind not in _PASSING and not is_transient(kind))


class _Engine(Protocol):
    wire_bytes: list[int | None]

    def expect(
        self,
        uids: Sequence[str],
        urls: Sequence[str | None],
        hashes: Sequence[str | None],
        notes: str,
    ) -> None: ...
    def wants_more(self) -> bool: ...
    def collect(
        self, uids: Sequence[str], urls: Sequence[str | None], hashes: Sequence[str | None]
    ) -> list[Outcome]: ...
    def costs(self) -> dict[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Fetch(RowStage):
    """Writes img2dataset's columns, ``image`` (encoded; null where refused), ``keep`` and ``reason``.

    Options:
        image_size: px; of the short side in keep_ratio and center_crop, of the long side in
            keep_ratio_largest and border.
        resize_mode: "no", "keep_ratio", "center_crop", "border" (white) or "keep_ratio_largest".
        resize_only_if_bigger: leave smaller pictures as they are.
        upscale_interpolation, downscale_interpolation: "nearest", "linear", "cubic", "area" or "lanczos".
        min_image_size: px of the short side; img2dataset's 0 lets tracking pixels in.
        max_aspect_ratio: long side over short side; without a limit, a strip becomes megapixels.
        max_image_area: px; held against the header, before decoding.
        max_frames: frames or pages; the first one is the picture.
        encode_format: "jpg", "png" or "webp".
        encode_quality: 0 to 100; for png the compression, 0 to 9.
        skip_reencode: bytes that are already of the format, upright, clean and of the size stay as they are.
        disable_all_reencoding: JPEG, PNG and WebP that are clean stay as they came, whatever their size; others
            keep their size and are encoded anew, in `encode_format`.
        extract_exif: one more column, `exif`: the EXIF tags as a JSON object of text.
        verify_hash: (column, "md5", "sha256" or "sha512"): other bytes are refused, also where it is null or blank.
        quality: "fast" decodes large JPEGs at reduced scale and shrinks JPEGs quickly; "exact" gives img2dataset's pixels.
        engine: "clip-pipe", or "img2dataset" for its own code, slower, without look-ahead.
        timeout: s for one URL, from name to last byte, redirects included.
        first_byte_timeout: s until the answer begins.
        retries: of what may pass: timeouts, broken connections, 408, 425, 429, 5xx.
        thread_count: requests at once, at most; as many as help are used. With img2dataset: threads.
        user_agent_token: a word by which sites can name you, in headers and in robots.txt.
        disallowed_header_directives: of X-Robots-Tag, in any of its lines; and TDM reservation.
        max_bytes: of a body, also after decompression.
        max_redirects: each one is checked like the first URL.
        allow_hosts: host or host:port, exempt from the address check.
        robots_txt: heed robots.txt of each host.
        requests_per_host: at once.
        requests_per_s_per_host: 0 sets no limit.
        http2: where a server offers it.
        decode_processes: 0 takes OMP_NUM_THREADS where it is set, as Ray does, else one per core.
        decode_timeout: s for one picture.
        memory_mb: of bodies and pictures that wait, half of it each; decoding comes on top.
    """

    version: ClassVar[int] = 2
    looks_ahead: ClassVar[bool] = True
    batch_rows: ClassVar[int] = 64  # what follows begins early; the window is the engine's
    cures: ClassVar[Mapping[str, str]] = {
        "forbidden_address": "name the host in `allow_hosts` if it is yours",
        "dns": "check that this machine can resolve names",
        "refused": "start the server",
        "tls": "set SSL_CERT_FILE if the certificate is of your own authority",
        "timeout.connect": "raise `timeout` or `retries`, or lower `thread_count`",
        "timeout.first_byte": "raise `first_byte_timeout` or `retries`, or lower `thread_count`",
        "timeout.total": "raise `timeout` or `retries`, or lower `thread_count`",
        "http.429": "lower `requests_per_host`, set `requests_per_s_per_host`, or raise `retries`",
        "http.503": "lower `requests_per_host`, or raise `retries`",
        "decode.timeout": "raise `decode_timeout`",
        "decode.crashed": "lower `max_image_area`",
    }
    # A run with another threshold fetches what may have passed again, but not what the picture is.
    lasting_errors: ClassVar[tuple[str, ...]] = _lasting()

    image_size: int = 256
    resize_mode: str = "keep_ratio"
    resize_only_if_bigger: bool = False
    upscale_interpolation: str = "lanczos"
    downscale_interpolation: str = "area"
    min_image_size: int = 16
    max_aspect_ratio: float = 20.0
    max_image_area: int = _PILLOW_AREA_PX
    max_frames: int = 1000
    encode_format: str = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    disable_all_reencoding: bool = False
    extract_exif: bool = False
    verify_hash: tuple[str, ...] = ()
    quality: str = "fast"
    engine: str = "clip-pipe"
    timeout: float = tuning_option(10.0)
    first_byte_timeout: float = tuning_option(10.0)
    retries: int = tuning_option(0)
    thread_count: int = tuning_option(256)
    user_agent_token: str = "clip-pipe"
    disallowed_header_directives: tuple[str, ...] = (
        "noai", "noimageai", "noindex", "noimageindex", "tdm-reservation",
    )  # fmt: skip
    max_bytes: int = 32 << 20
    max_redirects: int = 5
    allow_hosts: tuple[str, ...] = ()
    robots_txt: bool = False
    requests_per_host: int = tuning_option(16)
    requests_per_s_per_host: float = tuning_option(0.0)
    http2: bool = tuning_option(True)
    decode_processes: int = tuning_option(0)
    decode_timeout: float = tuning_option(20.0)
    memory_mb: int = tuning_option(128)

    def __post_init__(self) -> None:
        if self.engine == "img2dataset":  # a batch is its window: a slow URL delays at most these
            object.__setattr__(self, "batch_rows", _IMG2DATASET_ROWS)

    def reads(self) -> tuple[str, ...]:
        return ("url", *self.verify_hash[:1])

    def writes(self) -> pa.Schema:
        exif = [field("exif")] if self.extract_exif else []
        return pa.schema([field("image"), *(field(name) for name in _OUTCOME), *exif, KEEP, REASON])

    def check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}. hint: one of {', '.join(allowed)}"
                )
        low, high = _QUALITY[self.encode_format]
        if not low <= self.encode_quality <= high:
            raise ValueError(
                f"encode_quality is {self.encode_quality}. hint: {low} to {high} for {self.encode_format}"
            )
        for name in _ABOVE_ZERO:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: it must be above 0")
        for name in _AT_LEAST_ZERO:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: it must be 0 or more")
        for name, most in _AT_MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: at most {most}")
        if self.max_image_area > _PILLOW_AREA_PX:
            raise ValueError(
                f"max_image_area is {self.max_image_area}. hint: at most {_PILLOW_AREA_PX}, since one such picture takes 300 MB"
            )
        self._check_names()
        self._check_together()

    def _check_names(self) -> None:
        if not _TOKEN.fullmatch(self.user_agent_token.strip()):
            raise ValueError(
                f"user_agent_token is {self.user_agent_token!r}. hint: a plain word by which sites can name you"
            )
        for host in self.allow_hosts:
            if "/" in host or "*" in host or not host.strip():
                raise ValueError(
                    f'allow_hosts has {host!r}. hint: write a host or host:port, such as "127.0.0.1:8000"'
                )
        for word in self.disallowed_header_directives:
            known = meant(word.strip().lower())
            if known is not None:
                raise ValueError(
                    f"disallowed_header_directives has {word!r}, which no site sends. hint: did you mean {known!r}?"
                )
        if self.verify_hash and (len(self.verify_hash) != 2 or self.verify_hash[1] not in _HASHES):
            raise ValueError(
                f"verify_hash is {list(self.verify_hash)}. hint: a column and one of {', '.join(_HASHES)}, "
                'such as ["md5_of_source", "md5"]'
            )
        if self.verify_hash and self.verify_hash[0] in self.writes().names:
            raise ValueError(
                f"verify_hash names {self.verify_hash[0]!r}, which this stage writes. hint: carry the expected hash under another name"
            )

    def _check_together(self) -> None:
        if self.skip_reencode and self.disable_all_reencoding:
            raise ValueError(
                "skip_reencode and disable_all_reencoding are both set. hint: the second leaves nothing to skip"
            )
        if self.engine == "clip-pipe":
            return
        for option in fields(self):
            if option.name in _OWN_ENGINE_ONLY and getattr(self, option.name) != option.default:
                raise ValueError(
                    f'{option.name} is {getattr(self, option.name)!r}, and engine = "img2dataset" can\'t heed it. hint: leave one of them out'
                )

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        """The expected hash must be text."""
        for name in self.verify_hash[:1]:
            if name in types and not (
                pa.types.is_string(types[name]) or pa.types.is_large_string(types[name])
            ):
                raise ValueError(
                    f"verify_hash names {name!r}, which is {types[name]}. hint: a column of text, in hex"
                )

    def open(self) -> _Engine:
        """The engine, ready to be asked; nothing is started. Raises StageError without its packages."""
        try:
            return self._engine()
        except ImportError as fault:
            raise StageError(
                f"download.fetch: {fault}. hint: pip install 'clip-pipe[curate]'"
            ) from fault

    def _engine(self) -> _Engine:
        if self.engine == "img2dataset":
            from curate.download.img2dataset_engine import Img2datasetEngine

            return Img2datasetEngine(
                self._policy(),
                self._pictures(),
                thread_count=self.thread_count,
                memory_bytes=self.memory_mb << 20,
            )
        from curate.download.engine import Engine

        return Engine(
            self._policy(),
            self._pictures(),
            most_requests=self.thread_count,
            processes=self.decode_processes or _processes(),
            decode_timeout_s=self.decode_timeout,
            memory_bytes=self.memory_mb << 20,
        )

    def _policy(self) -> Policy:
        from curate.download.guard import Policy

        token = self.user_agent_token.strip()
        own = self.engine == "clip-pipe"
        names = [
            token,
            *(name for name in ["clip-pipe" if own else "img2dataset"] if name != token),
        ]
        return Policy(
            timeout_s=self.timeout,
            first_byte_timeout_s=self.first_byte_timeout,
            max_bytes=self.max_bytes,
            max_redirects=self.max_redirects,
            allow_hosts=frozenset(host.strip().lower() for host in self.allow_hosts),
            user_agent=f"Mozilla/5.0 (compatible; {'; '.join(names)})",
            user_agent_token=token,
            disallowed_directives=frozenset(
                name.strip().lower() for name in self.disallowed_header_directives
            ),
            robots_txt=self.robots_txt,
            requests_per_host=self.requests_per_host,
            requests_per_s_per_host=self.requests_per_s_per_host,
            http2=self.http2,
            retries=self.retries,
        )

    def _pictures(self) -> PictureOptions:
        from curate.download.pictures import PictureOptions

        names = [option.name for option in fields(PictureOptions) if option.name != "hash_name"]
        return PictureOptions(
            **{name: getattr(self, name) for name in names},
            hash_name=self.verify_hash[1] if self.verify_hash else "",
        )

    def expect(self, rows: pa.Table, state: _Engine, notes: str) -> None:
        state.expect(*self._asked(rows), notes)

    def wants_more(self, state: _Engine) -> bool:
        return state.wants_more()

    def costs(self, state: _Engine) -> dict[str, float]:
        return state.costs()

    def _asked(self, rows: pa.Table) -> tuple[list[str], list[str | None], list[str | None]]:
        """uid, url and expected hash of each row."""
        urls: list[str | None] = rows["url"].to_pylist()
        uids = rows["uid"].to_pylist() if "uid" in rows.column_names else [str(url) for url in urls]
        if not self.verify_hash:
            return uids, urls, [None] * len(urls)
        hashes = rows[self.verify_hash[0]].to_pylist()
        return (
            uids,
            urls,
            [(value or "").strip().lower() or _NO_HASH for value in hashes],
        )

    def process(self, batch: pa.Table, state: _Engine) -> pa.Table:
        found = state.collect(*self._asked(batch))
        schema = self.writes()
        told = [  # img2dataset has a hash of successes only
            outcome if outcome.kind is None else replace(outcome, sha256=None, exif=None)
            for outcome in found
        ]
        columns: list[Any] = [
            pa.array([getattr(outcome, name) for outcome in told], schema.field(name).type)
            for name in schema.names
            if name not in (KEEP.name, REASON.name)
        ]
        reasons = [
            None if outcome.kind is None else error("download.fetch", outcome.kind)
            for outcome in found
        ]
        return pa.table([*columns, *decision(reasons)], schema=schema)


def _processes() -> int:
    """Decoding processes of one worker: what the scheduler gave it, else all cores it may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))
