"""Fetches each row's picture and resizes it, on img2dataset's Downloader and Resizer.

Options, columns and resize modes are img2dataset's (1.47). It differs in what may be asked of the web
(see `guard`), in limits that hold before anything is decoded (see `pixels`), in EXIF orientation being
applied once, in 16-bit samples being scaled, in reading opt-out headers directive by directive (see
`opt_out`), and in ``resize_mode``, which starts as "keep_ratio" and not as "border": the trainer crops,
so white borders would only be learnt. ``original_width`` and ``original_height`` are of the upright
picture. Proxies named in the environment are not used: behind one, addresses could not be checked.

A refused row's reason is ``error.download.fetch.<kind>``; ``error_message`` has the words. The kinds:

==================  =============================================================================
bad_url, scheme     not a URL; neither http nor https
dns                 the host has no address
forbidden_address   a private, loopback or link-local address that ``allow_hosts`` does not name
refused             nobody listens there
connection, tls     the connection broke or ended early; no trusted certificate
timeout             not done ``timeout`` seconds after it began, redirects included
redirect            more than 5, or one without a target
protocol            not HTTP, or an impossible header
http.<code>         any answer but 200
opt_out             X-Robots-Tag forbids the use
too_large.bytes     over ``max_bytes``, as announced or as received
not_an_image        HTML, SVG, text, nothing, or bytes of no picture format
too_small           short side under ``min_image_size``
too_large.pixels    area over ``max_image_area``
too_large.aspect    long side over ``max_aspect_ratio`` times the short one
decode              a picture, but damaged or of a format that cannot be read here
other               none of these; the message says what
==================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from curate.contract.columns import field
from curate.stage import KEEP, REASON, RowStage, decision, error, tuning_option

if TYPE_CHECKING:
    from curate.download.img2dataset_engine import Engine

_RESIZE_MODES = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
_QUALITY = {"jpg": (0, 100), "webp": (0, 100), "png": (0, 9)}
_PILLOW_AREA_PX = 100_000_000  # curate.score.picture.MAX_AREA_PX
_OUTCOME = (
    "status",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
)


@dataclass(frozen=True, kw_only=True)
class Fetch(RowStage):
    """Writes img2dataset's columns, ``image`` (encoded; null where refused), ``keep`` and ``reason``."""

    cures: ClassVar[Mapping[str, str]] = {
        "forbidden_address": "name the host in `allow_hosts` if it is yours",
        "refused": "start the server",
        "timeout": "raise `timeout` or `retries`, or lower `thread_count`",
    }
    # A run with another threshold fetches what may have passed again, but not what the picture is.
    lasting_errors: ClassVar[tuple[str, ...]] = (
        "bad_url",
        "scheme",
        "http.404",
        "http.410",
        "opt_out",
        "too_large.bytes",
        "not_an_image",
        "too_small",
        "too_large.pixels",
        "too_large.aspect",
        "decode",
    )
    batch_rows: ClassVar[int] = 512  # one window of URLs: a slow one delays at most these

    image_size: int = 256  # px; of the short side in keep_ratio
    resize_mode: str = "keep_ratio"
    resize_only_if_bigger: bool = False
    min_image_size: int = 16  # px, short side; img2dataset's 0 lets tracking pixels in
    max_aspect_ratio: float = 20.0  # img2dataset has no limit, so a strip becomes megapixels
    max_image_area: int = _PILLOW_AREA_PX  # px; held against the header, before decoding
    encode_format: str = "jpg"
    encode_quality: int = 95
    timeout: float = 10.0  # s for one URL, from name to last byte
    retries: int = 0  # of what may pass: timeouts, broken connections, 408, 425, 429, 5xx
    thread_count: int = tuning_option(64)
    user_agent_token: str = "clip-pipe"
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    max_bytes: int = 32 << 20
    allow_hosts: tuple[str, ...] = ()  # host or host:port, exempt from the address check

    def reads(self) -> tuple[str, ...]:
        return ("url",)

    def writes(self) -> pa.Schema:
        return pa.schema([field("image"), *(field(name) for name in _OUTCOME), KEEP, REASON])

    def check(self) -> None:
        if self.resize_mode not in _RESIZE_MODES:
            raise ValueError(
                f"resize_mode is {self.resize_mode!r}. hint: one of {', '.join(_RESIZE_MODES)}"
            )
        if self.encode_format not in _QUALITY:
            raise ValueError(
                f"encode_format is {self.encode_format!r}. hint: one of {', '.join(_QUALITY)}"
            )
        low, high = _QUALITY[self.encode_format]
        if not low <= self.encode_quality <= high:
            raise ValueError(
                f"encode_quality is {self.encode_quality}. hint: {low} to {high} for {self.encode_format}"
            )
        for name in (
            "image_size",
            "thread_count",
            "max_bytes",
            "timeout",
            "max_image_area",
            "max_aspect_ratio",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: it must be above 0")
        if self.retries < 0 or self.min_image_size < 0:
            raise ValueError("retries or min_image_size is negative. hint: 0 turns either off")
        if self.max_image_area > _PILLOW_AREA_PX:
            raise ValueError(
                f"max_image_area is {self.max_image_area}. hint: at most {_PILLOW_AREA_PX}, since one such picture takes 300 MB"
            )
        if not self.user_agent_token.strip().isascii() or not self.user_agent_token.strip():
            raise ValueError(
                f"user_agent_token is {self.user_agent_token!r}. hint: a plain word by which sites can name you"
            )
        self._check_hosts()

    def _check_hosts(self) -> None:
        for host in self.allow_hosts:
            if "/" in host or "*" in host or not host.strip():
                raise ValueError(
                    f'allow_hosts has {host!r}. hint: write a host or host:port, such as "127.0.0.1:8000"'
                )

    def open(self) -> Engine:
        """img2dataset's downloader, ready to be called. Raises ModuleNotFoundError without img2dataset."""
        from curate.download.guard import Policy
        from curate.download.img2dataset_engine import Engine, ResizeOptions
        from curate.download.pixels import Bounds

        token = self.user_agent_token.strip()
        policy = Policy(
            timeout_s=self.timeout,
            max_bytes=self.max_bytes,
            allow_hosts=frozenset(host.strip().lower() for host in self.allow_hosts),
            user_agent=f"Mozilla/5.0 (compatible; {token}; img2dataset)",
            user_agent_token=token,
            disallowed_directives=frozenset(
                name.strip().lower() for name in self.disallowed_header_directives
            ),
        )
        bounds = Bounds(
            min_image_size=self.min_image_size,
            max_image_area=self.max_image_area,
            max_aspect_ratio=self.max_aspect_ratio,
        )
        options = ResizeOptions(
            image_size=self.image_size,
            resize_mode=self.resize_mode,
            resize_only_if_bigger=self.resize_only_if_bigger,
            encode_format=self.encode_format,
            encode_quality=self.encode_quality,
        )
        return Engine(policy, bounds, options, self.thread_count, self.retries)

    def process(self, batch: pa.Table, state: Engine) -> pa.Table:
        found = state.download(batch["url"].to_pylist())
        schema = self.writes()
        columns = [
            pa.array([getattr(outcome, name) for outcome in found], schema.field(name).type)
            for name in ("image", *_OUTCOME)
        ]
        reasons = [
            None if outcome.kind is None else error("download.fetch", outcome.kind)
            for outcome in found
        ]
        return pa.table([*columns, *decision(reasons)], schema=schema)
