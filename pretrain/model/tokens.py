"""open_clip's tokenizer, where special tokens written out in a caption stay plain text.

open_clip turns a literal `<end_of_text>` in an alt-text into the real end token, which is also the
pooling position. Otherwise the ids are the same; plain ASCII takes a shorter way to the same text.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class SafeTokenizer:
    """Words to ids, int64 (B, L). Wraps any tokenizer of open_clip; picklable.

    Only open_clip's own byte-pair tokenizer is made safe. The ones from Hugging Face keep their
    own rules for special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if hasattr(tokenizer, "clean_fn") and hasattr(tokenizer, "bpe_ranks"):
            special = [tokenizer.decoder[i] for i in tokenizer.all_special_ids]
            tokenizer.clean_fn = _SafeClean(tokenizer.clean_fn, tuple(special))

    def __call__(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)


class _SafeClean:
    """open_clip's cleaning, then every special token is broken up by a space after its first letter.

    The byte-pair pattern splits there anyway, so the ids are those of the plain characters.
    """

    def __init__(self, clean: Any, special: tuple[str, ...]) -> None:
        self.clean = clean
        self.special = special
        self.is_lower = getattr(clean, "__name__", "") == "_clean_lower"

    def __call__(self, text: str) -> str:
        if self.is_lower and text.isascii() and text.isprintable() and "&" not in text:
            text = " ".join(text.split()).lower()
        else:
            text = self.clean(text)
        for token in self.special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text
