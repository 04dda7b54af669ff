"""DualEncoder: an open_clip model as two towers, pictures and words to features. Nothing else.

The logit scale is not here: it belongs to the objective. What is saved keeps open_clip's parameter
names, so `open_clip.create_model(name, pretrained=<checkpoint>)` reads our checkpoints unchanged.

Legend: B rows, H W pixels, D embedding, L text tokens.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curate.contract import storage
from pretrain.model.tokens import SafeTokenizer

CONFIGS = Path(__file__).parent / "configs"
Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_NOT_OURS = ("logit_scale", "logit_bias")
_kept_alive: list[Any] = []


def import_open_clip() -> Any:
    """open_clip with our own configurations registered.

    PyPI's torchvision is built for CUDA, and with a CPU-only torch its compiled part does
    not load; its Python part then fails to describe two operators nobody declared. Declaring them
    is enough: open_clip uses torchvision's transforms only.
    """
    try:
        import open_clip
    except RuntimeError as fault:
        if "torchvision::" not in str(fault):
            raise
        for name in [
            n for n in sys.modules if n.split(".")[0] in ("torchvision", "open_clip", "timm")
        ]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # lives with the process
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        import open_clip
    if "vit_tiny_64" not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS)
    return open_clip


class DualEncoder(nn.Module):
    """Two towers over an open_clip model.

    ``frozen`` names towers in eval mode and without gradients (see ``tweak/freeze.py``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: nn.Module, name: str, config: dict[str, Any], tokenizer: Any) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.pretrained_logit_scale = _take_scale(clip)
        self.clip = clip
        self.tokenizer = SafeTokenizer(tokenizer)
        self.image_size = _square(config["vision_cfg"].get("image_size", 224), name)
        self.embed_dim = int(config["embed_dim"])
        self.frozen: set[Tower] = set()
        preprocess = getattr(clip.visual, "preprocess_cfg", None) or {}
        mean, std = preprocess.get("mean", _OPENAI_MEAN), preprocess.get("std", _OPENAI_STD)
        # Not saved: they belong to the configuration, and a checkpoint is read by open_clip too.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def context_length(self) -> int:
        """Text length in tokens, with the start and end tokens."""
        return int(self.clip.context_length)  # type: ignore[arg-type]

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), or float (B, 3, H, W) already normalised -> features (B, D), not unit norm."""
        with self._grad("image"):
            if images.dtype == torch.uint8:
                images = (images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
            return self.clip.encode_image(images)  # type: ignore[operator]

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """int64 (B, L) -> features (B, D), not unit norm."""
        with self._grad("text"):
            return self.clip.encode_text(tokens_BL)  # type: ignore[operator]

    def tokenize(self, texts: list[str]) -> Tensor:
        """int64 (len(texts), L). A special token written out in a caption stays plain text."""
        return self.tokenizer(texts)

    def forward(self, views: dict[str, Tensor], towers: dict[str, Tower]) -> dict[str, Tensor]:
        """View name -> "<view>:pooled" features. Views of one tower and shape go through it at once."""
        features: dict[str, Tensor] = {}
        for tower, encode in (("image", self.encode_image), ("text", self.encode_text)):
            for names in _alike({n: rows for n, rows in views.items() if towers[n] == tower}):
                pooled = encode(
                    torch.cat([views[n] for n in names]) if len(names) > 1 else views[names[0]]
                )
                for name, rows in zip(
                    names, pooled.split([len(views[n]) for n in names]), strict=True
                ):
                    features[f"{name}:pooled"] = rows
        return features

    def tower_parameters(self, tower: Tower) -> Iterator[tuple[str, nn.Parameter]]:
        """open_clip's names and parameters of one tower; everything that is not visual is text."""
        for name, parameter in self.clip.named_parameters():
            if name.startswith("visual.") == (tower == "image"):
                yield name, parameter

    def tower_modules(self, tower: Tower) -> Iterator[nn.Module]:
        for name, module in self.clip.named_children():
            if (name == "visual") == (tower == "image"):
                yield module

    def weights(self, logit_scale: float) -> dict[str, Tensor]:
        """open_clip's state dict, on the CPU, with the logarithm of ``logit_scale`` under its name there."""
        found = {name: rows.detach().cpu() for name, rows in self.clip.state_dict().items()}
        return {**found, "logit_scale": torch.tensor(logit_scale).log()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take what ``weights()`` gave. Raises RuntimeError for those of another model."""
        self.clip.load_state_dict({n: rows for n, rows in weights.items() if n not in _NOT_OURS})

    def thaw(self) -> None:
        """Everything trains again: the state in which every phase begins, before its tweaks."""
        self.frozen = set()
        self.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        for tower in self.frozen:
            for module in self.tower_modules(tower):
                module.eval()
        return self

    def _grad(self, tower: Tower) -> Any:
        return torch.no_grad() if tower in self.frozen else nullcontext()


def build(name: str, pretrained: str = "") -> DualEncoder:
    """A model by open_clip's name, one of ours, or the path of a configuration file (``.json``).

    ``pretrained`` is a path of weights in open_clip's format (a checkpoint of ours is one), or an
    open_clip tag. Random weights come from torch's global generator. Raises ValueError with a hint
    for a name or weights that cannot be used.
    """
    open_clip = import_open_clip()
    if name.endswith(".json"):
        name = _register(Path(name).stem, _read_config(name))
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(_unknown(name, open_clip.list_models()))
    with _quiet():
        try:
            clip = open_clip.create_model(name, pretrained=pretrained or None)
        except (RuntimeError, OSError, KeyError) as fault:
            if not pretrained:
                raise
            raise ValueError(
                f"weights {pretrained!r} do not fit model {name!r}: {' '.join(str(fault).split())[:300]}. "
                "hint: give a file of weights of this very model, or an open_clip tag"
            ) from fault
        return DualEncoder(clip, name, config, open_clip.get_tokenizer(name))


def load(path: str) -> DualEncoder:
    """The encoder of one of our checkpoints, in eval mode. Raises ValueError for any other file."""
    with storage.open_file(path) as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            name, config, weights = (
                saved["model"]["name"],
                saved["model"]["config"],
                saved["state_dict"],
            )
        except Exception as fault:
            raise ValueError(
                f"{path}: not a checkpoint of clip-pipe ({type(fault).__name__}: {str(fault)[:200]}). "
                "hint: give a file from a run's checkpoints folder"
            ) from fault
    encoder = from_config(name, config)
    encoder.load_weights(weights)
    return encoder.eval()


def from_config(name: str, config: dict[str, Any]) -> DualEncoder:
    """A randomly initialised encoder from a configuration as kept in a checkpoint."""
    return build(_register(name, config))


def _register(stem: str, config: dict[str, Any]) -> str:
    """Make a configuration known to open_clip; returns the name it has there."""
    open_clip = import_open_clip()
    known = open_clip.get_model_config(stem)
    if known == config:
        return stem
    if known is not None:
        stem = (
            f"{stem}-{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{stem}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
    return stem


def _read_config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(storage.read_text(path))
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"model configuration {path}: {fault}. hint: a JSON file in open_clip's format"
        ) from fault
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(
            f"model configuration {path}: no {missing}. hint: see pretrain/model/configs/vit_tiny_64.json"
        )
    return config


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else "`python -c 'import open_clip; print(open_clip.list_models())'` lists names"
    )
    return f"unknown model {name!r}. hint: {hint}"


def _square(size: Any, name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(
            f"model {name!r} takes pictures of {tuple(size)} pixels. hint: only square ones are supported"
        )
    return int(sides.pop())


def _take_scale(clip: nn.Module) -> float:
    """Remove open_clip's own logit scale and bias; returns the scale, exponentiated."""
    scale = float(clip.logit_scale.detach().exp())  # type: ignore[operator]
    clip.logit_scale = None  # type: ignore[assignment]
    clip.logit_bias = None  # type: ignore[assignment]
    return scale


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs to the root that weights are random, which here was asked for; errors are raised."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _alike(views: dict[str, Tensor]) -> list[list[str]]:
    """Names of views grouped by the shape of a row and its type."""
    groups: dict[Any, list[str]] = {}
    for name, rows in views.items():
        groups.setdefault((rows.shape[1:], rows.dtype), []).append(name)
    return list(groups.values())
