"""What can become of a URL: a picture, or one kind of refusal out of a short list.

A refused row's reason is ``error.download.fetch.<kind>``; ``error_message`` has the words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Kind -> what it means. A kind that ends in a dot stands for a family (http.404, http.503, ...).
KINDS: Mapping[str, str] = {
    "bad_url": "not a URL",
    "scheme": "neither http nor https",
    "dns": "the host has no address",
    "forbidden_address": "a private, loopback or link-local address that `allow_hosts` does not name",
    "refused": "nobody listens there",
    "connection": "the connection broke, or the body ended early",
    "tls": "no trusted certificate, or no common protocol",
    "timeout.connect": "no connection within `timeout`",
    "timeout.first_byte": "connected, and no answer within `first_byte_timeout`",
    "timeout.total": "not done `timeout` seconds after it began, redirects included",
    "redirect": "more than `max_redirects`, or one without a target",
    "protocol": "not HTTP, or an impossible header",
    "http.": "any answer but 200 and 203, by its code",
    "host_down": "the host failed so often that it is left alone for a while",
    "robots": "robots.txt forbids it (with `robots_txt`)",
    "opt_out": "a header forbids the use (`disallowed_header_directives`)",
    "too_large.bytes": "over `max_bytes`, as announced, as received, or as unpacked",
    "hash": "not the bytes that `verify_hash` expects",
    "not_an_image": "HTML, SVG, text, nothing, or bytes of no picture format",
    "too_small": "short side under `min_image_size`",
    "too_large.pixels": "area over `max_image_area`",
    "too_large.aspect": "long side over `max_aspect_ratio` times the short one",
    "too_large.frames": "more than `max_frames` frames or pages",
    "decode": "a picture, but damaged or of a format that cannot be read here",
    "decode.timeout": "not decoded within `decode_timeout`",
    "decode.crashed": "the process that decoded it died, or ran out of memory",
    "other": "none of these; the message says what",
}

# Kinds that may be gone the next minute: what `--retry transient` asks again, and `retries` at once.
TRANSIENT = frozenset({
    "timeout.connect", "timeout.first_byte", "timeout.total", "refused", "connection", "host_down",
    "http.408", "http.425", "http.429", "http.5xx",
})  # fmt: skip
# Of these, what is not tried again at once: such a host is left alone on purpose.
_NOT_AT_ONCE = frozenset({"host_down"})

_RESIZE_KINDS = frozenset({
    "not_an_image", "too_small", "too_large.pixels", "too_large.aspect", "too_large.frames",
    "decode", "decode.timeout", "decode.crashed",
})  # fmt: skip


class Refused(Exception):
    """A picture that does not come in. ``kind`` ends the row's reason, the message has the words.

    ``passing``: the fault was of this moment (our resolver, our files), whatever the kind says.
    """

    def __init__(
        self, kind: str, words: str, retry_after_s: float | None = None, *, passing: bool = False
    ) -> None:
        super().__init__(words)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.passing = passing


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one URL, in img2dataset's words. ``kind`` is None for a success.

    ``original_width`` and ``original_height`` are of the upright picture, in pixels.
    """

    kind: str | None = None
    image: bytes | None = None
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None  # of the body as it came
    exif: str | None = None  # JSON object of text, with `extract_exif`
    wire_bytes: int | None = None  # length of the body, None where none came whole

    @property
    def status(self) -> str:
        """img2dataset's word: success, failed_to_download or failed_to_resize."""
        if self.kind is None:
            return "success"
        return "failed_to_resize" if self.kind in _RESIZE_KINDS else "failed_to_download"


def refusal(fault: Refused, wire_bytes: int | None = None) -> Outcome:
    """The outcome of a URL that was refused."""
    return Outcome(kind=fault.kind, error_message=str(fault)[:500], wire_bytes=wire_bytes)


def matches(kind: str, pattern: str) -> bool:
    """Whether a kind is meant by a pattern: itself, its family (``timeout``), or ``http.5xx``."""
    form = (
        re.escape(pattern.rstrip(".")).replace("x", r"[0-9x]")
        if pattern.startswith("http.")
        else re.escape(pattern)
    )
    return re.fullmatch(rf"{form}(\..*)?", kind) is not None


def is_transient(kind: str) -> bool:
    """Whether another attempt, some time later, may end otherwise."""
    return any(matches(kind, pattern) for pattern in TRANSIENT)


def is_tried_at_once(kind: str) -> bool:
    """Whether ``retries`` is for this kind: it is transient, and not of a host that is left alone."""
    return kind not in _NOT_AT_ONCE and is_transient(kind)
