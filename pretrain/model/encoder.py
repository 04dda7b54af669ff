"""DualEncoder: an open_clip model as two towers, pictures and words to features. Nothing else.

The logit scale is not here: it belongs to the objective. What is saved keeps open_clip's parameter
names, so `open_clip.create_model(name, pretrained=<checkpoint>)` reads our checkpoints unchanged.
open_clip's own transformers go the shorter way of `tower.py`; any other tower is called as it is.

Legend: B rows, H W pixels, D embedding, L text tokens, P patches, K patches kept.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curate.contract import storage
from pretrain.model import tower as passes
from pretrain.model.attention import lighten
from pretrain.model.draws import row_keys
from pretrain.model.tokens import SafeTokenizer
from pretrain.stream.lengths import Groups

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

    ``fixed`` names parameters that are never trained, by the model's own design.

    What tweaks set and ``thaw`` takes back: ``frozen`` towers run in eval mode and without gradients;
    ``keep_patches`` (row keys (B,), patches) -> int64 (B, K) says which patches each row keeps in
    training; ``text_length`` cuts the context to its first tokens. ``image_size`` stays as a tweak left it.

    ``wanted`` names features beside the pooled ones, e.g. "image:tokens". ``draw_key`` is the loop's: a
    number of the run and its phase, from which masks are drawn.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: nn.Module, name: str, config: dict[str, Any], tokenizer: Any) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.pretrained_logit_scale = _take_scale(clip)
        lighten(clip)
        self.clip = clip
        self.tokenizer = SafeTokenizer(tokenizer)
        self.image_size = _square(config["vision_cfg"].get("image_size", 224), name)
        self.embed_dim = int(config["embed_dim"])
        self.frozen: set[Tower] = set()
        self.keep_patches: Callable[[Tensor, int], Tensor] | None = None
        self.text_length: int | None = None
        self.wanted: frozenset[str] = frozenset()
        self.draw_key = 0
        self.fixed = frozenset(n for n, p in clip.named_parameters() if not p.requires_grad)
        preprocess = getattr(clip.visual, "preprocess_cfg", None) or {}
        mean, std = preprocess.get("mean", _OPENAI_MEAN), preprocess.get("std", _OPENAI_STD)
        # Not saved: they belong to the configuration, and a checkpoint is read by open_clip too.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def context_length(self) -> int:
        """Text length in tokens, with the start and end tokens."""
        return self.text_length or int(self.clip.context_length)  # type: ignore[arg-type]

    @property
    def text_is_causal(self) -> bool:
        """Whether ``encode_text`` takes any length up to ``context_length``, padding cut off."""
        return passes.text_is_causal(self.clip)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of both towers: what is compiled, checkpointed and sharded one by one."""
        trunk = getattr(self.clip.visual, "trunk", None)
        stacks = [
            getattr(part.transformer, "resblocks", ())
            for part in (self.clip.visual, passes.text_part(self.clip))
            if hasattr(part, "transformer")
        ]
        return [block for stack in (getattr(trunk, "blocks", ()), *stacks) for block in stack]

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), or float (B, 3, H, W) already normalised -> features (B, D), not unit norm.

        All patches are kept, in training too: masks need the rows' positions, see ``forward``.
        """
        return self._image(images, None, tokens=False)[0]

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """int64 (B, L) -> features (B, D), not unit norm. L is ``context_length``, or less if causal."""
        return self._text(tokens_BL, tokens=False)[0]

    def tokenize(self, texts: list[str]) -> Tensor:
        """int64 (len(texts), L). A special token written out in a caption stays plain text."""
        if self.text_length:
            return self.tokenizer(texts, self.text_length)
        return self.tokenizer(texts)

    def forward(
        self,
        views: dict[str, Tensor],
        towers: dict[str, Tower],
        positions: Tensor | None = None,
        groups: dict[str, Groups] | None = None,
    ) -> dict[str, Tensor]:
        """View name -> "<view>:pooled" features, and "<view>:tokens" where ``wanted`` has it.

        Views of one tower and shape go through it at once. ``positions``, int64 (B,), are the rows'
        places in the stream; training with dropped patches needs them. ``groups`` of a text view
        have its rows by length: each group goes through the tower at its own, if that is causal.
        """
        groups = groups or {}
        features: dict[str, Tensor] = {}
        for tower in TOWERS:
            of_tower = {n: rows for n, rows in views.items() if towers[n] == tower}
            for names in _alike(of_tower, groups):
                rows = torch.cat([views[n] for n in names]) if len(names) > 1 else views[names[0]]
                tokens = any(f"{name}:tokens" in self.wanted for name in names)
                if tower == "image":
                    made = self._image(rows, self._kept(names, views, positions), tokens)
                else:
                    made = self._text(rows, tokens, groups.get(names[0]))
                for kind, whole in zip(("pooled", "tokens"), made, strict=True):
                    parts = [] if whole is None else whole.split([len(views[n]) for n in names])
                    features |= {f"{n}:{kind}": part for n, part in zip(names, parts)}
        return features

    def _image(self, images: Tensor, keep_BK: Tensor | None, tokens: bool) -> passes.Outputs:
        visual = self.clip.visual
        with self._grad("image"):
            if passes.image_is_known(visual):  # type: ignore[arg-type]
                return passes.image_outputs(visual, images, self.mean, self.std, keep_BK, tokens)
            _refuse_tokens(tokens, "image")
            if images.dtype == torch.uint8:
                images = (images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
            return self.clip.encode_image(images), None  # type: ignore[operator]

    def _text(
        self, tokens_BL: Tensor, tokens: bool, groups: Groups | None = None
    ) -> passes.Outputs:
        length = tokens_BL.shape[1]
        if length > self.context_length or (
            length < self.context_length and not self.text_is_causal
        ):
            raise ValueError(
                f"texts of {length} tokens for a tower of {self.context_length}. "
                "hint: shorter ones are exact for causal towers only; set text_buckets = []"
            )
        with self._grad("text"):
            if passes.text_can_be_short(self.clip):
                exact = groups if self.text_is_causal else None
                return passes.text_outputs(self.clip, tokens_BL, tokens, exact)
            _refuse_tokens(tokens, "text")
            return self.clip.encode_text(tokens_BL), None  # type: ignore[operator]

    def _kept(
        self, names: list[str], views: dict[str, Tensor], positions: Tensor | None
    ) -> Tensor | None:
        """Which patches each row keeps, (B, K); None for all. Two views of a sample keep different ones."""
        if self.keep_patches is None or not self.training:
            return None
        if positions is None:
            raise ValueError(
                "patches are dropped by the rows' positions, and there are none. hint: forward(views, towers, positions)"
            )
        visual: Any = self.clip.visual
        side = self.image_size // visual.patch_size[0]
        keys = torch.cat(
            [row_keys(positions[: len(views[n])], self.draw_key, f"patches.{n}") for n in names]
        )
        return self.keep_patches(keys, side * side)

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

    def described(self) -> dict[str, Any]:
        """What a checkpoint says of its model, for ``load``. ``config`` is in open_clip's format."""
        pixels = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {"name": self.name, "config": self.config, "text_length": self.text_length, **pixels}

    def normalise_as(self, model: dict[str, Any]) -> None:
        """Take the mean and deviation of pixels from ``described()``: open_clip's tags have their own."""
        for name, rows in (("mean", self.mean), ("std", self.std)):
            rows.copy_(torch.tensor(model.get(name, rows.flatten().tolist())).view_as(rows))

    def thaw(self) -> None:
        """The state in which every phase begins, before its tweaks: all trains, all patches, all tokens.

        What was never trained (fixed position embeddings) stays so, and pictures keep their size.
        """
        self.frozen = set()
        self.keep_patches = None
        self.text_length = None
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(name not in self.fixed)
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
            model, weights = saved["model"], saved["state_dict"]
            name, config = model["name"], model["config"]
        except Exception as fault:
            raise ValueError(
                f"{path}: not a checkpoint of clip-pipe ({type(fault).__name__}: {str(fault)[:200]}). "
                "hint: give a file from a run's checkpoints folder"
            ) from fault
    encoder = from_config(name, config)
    encoder.load_weights(weights)
    encoder.normalise_as(model)
    encoder.text_length = model.get("text_length")
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
        content = json.dumps(config, sort_keys=True).encode()
        stem = f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}"
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
    listing = "`python -c 'import open_clip; print(open_clip.list_models())'` lists names"
    hint = f"did you mean {', '.join(near)}?" if near else listing
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


def _refuse_tokens(asked: bool, tower: str) -> None:
    if asked:
        raise ValueError(
            f"the objective needs the {tower} tower's tokens, and this model gives only its pooled feature. "
            "hint: use one of open_clip's own transformers, e.g. ViT-B-16"
        )


def _alike(views: dict[str, Tensor], apart: Container[str]) -> list[list[str]]:
    """Names of views grouped by the shape of a row and its type; those in ``apart`` each on its own."""
    groups: dict[Any, list[str]] = {}
    for name, rows in views.items():
        alone = name if name in apart else None
        groups.setdefault((rows.shape[1:], rows.dtype, alone), []).append(name)
    return list(groups.values())
