"""Any open_clip checkpoint as two functions, pictures and captions to unit vectors; and its options.

Pictures go through open_clip's own validation transform for the model, captions through its tokenizer.

Legend: n rows, D embedding.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curate.contract import storage
from curate.score import inference, open_clip_spec
from curate.score.open_clip_spec import FOLDER_CONFIG, Spec
from curate.score.picture import decode
from curate.stage import Resources, StageError, path_option, tuning_option

if TYPE_CHECKING:
    from torch import Tensor

MAX_ASPECT = 16  # long side over short side; more is cut at the centre before it is scaled
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives
_SPECIAL_TOKENS = ("<start_of_text>", "<end_of_text>")


@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """Options of every stage that runs an open_clip model.

    Options:
        model: open_clip's name, such as "ViT-B-32". Not needed beside ``config``, nor for a checkpoint
            that clip-pipe trained.
        config: a JSON file in open_clip's format, such as the ``open_clip_config.json`` of a folder
            that was downloaded whole; its preprocessing counts too.
        checkpoint: the weights: a file that open_clip reads (.pt, .safetensors, .bin), or one of a
            clip-pipe run.
        pretrained: open_clip's tag, such as "openai". Without ``checkpoint`` its weights are downloaded
            by open_clip; with it, it only names the preprocessing that those weights want.
        precision: of the model; embeddings are stored alike.
        device: "cuda" asks the scheduler for a GPU; "auto" uses one that is visible.
    """

    model: str = ""
    config: str = path_option("")
    checkpoint: str = path_option("")
    pretrained: str = ""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = tuning_option("auto")

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1.0 if self.device == "cuda" else 0.0)

    def inputs(self) -> tuple[str, ...]:
        return tuple(path for path in (self.config, self.checkpoint) if path)

    def check(self) -> None:
        if not (self.checkpoint or self.pretrained):
            raise ValueError(
                "no weights. hint: checkpoint = a local file, or pretrained = open_clip's tag"
            )
        if self.model and self.config:
            raise ValueError(
                f"model = {self.model!r} and config = {self.config!r}. hint: set one of them"
            )
        if self.pretrained and not self.model:
            raise ValueError(
                f"pretrained = {self.pretrained!r} without a model. hint: model = the name whose tag it is"
            )
        for path in self.inputs():
            if storage.is_url(path) or not os.path.isfile(path):
                raise ValueError(f"no file {path}. hint: a path of this machine")
        self.spec()

    def spec(self) -> Spec:
        """Configuration and preprocessing. Raises ValueError with a hint."""
        if self.model:
            return open_clip_spec.named(self.model)
        if self.config:
            return open_clip_spec.from_file(self.config)
        found = open_clip_spec.saved(self.checkpoint)
        if found is None:
            raise ValueError(
                f"{self.checkpoint} does not say which model it is. hint: set model or config"
            )
        return found

    def load(self, use: str) -> LoadedClip:
        """The model, ready. Raises StageError for weights that can't be read or don't fit."""
        try:
            return _load(self)
        except Exception as fault:  # open_clip, torch, pickle and safetensors raise nearly anything
            what, _, hint = str(fault).partition(" hint: ")
            what = " ".join(what.split())[:300]
            raise StageError(
                f"{use}: {self.checkpoint or self.pretrained!r} can't be used: {what} "
                f"hint: {hint or 'give weights of this very model, or another model'}"
            ) from fault


class LoadedClip:
    """An open_clip model in eval mode: pictures or captions in, unit vectors out."""

    def __init__(
        self, clip: Any, dim: int, transform: Any, tokenizer: Any, device: str, dtype: Any
    ) -> None:
        self.clip = clip
        self.embed_dim = dim
        self._transform = transform
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype

    def embed_pictures(
        self, pictures: Sequence[bytes | None]
    ) -> tuple[np.ndarray, list[str | None]]:
        """float32 (n, D), NaN where there is no embedding; and the kind of fault of each, or None."""
        import torch

        tensors, faults = self._prepared(pictures)
        whole = np.full((len(pictures), self.embed_dim), np.nan, np.float32)
        if not tensors:
            return whole, faults
        whole[[fault is None for fault in faults]] = self._forward(
            torch.stack(tensors), self.clip.encode_image
        )
        broken = np.isnan(whole[:, 0]).tolist()
        return whole, [
            fault or ("not_finite" if nan else None) for fault, nan in zip(faults, broken)
        ]

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """float32 (n, D), NaN where the model gives no direction; cut off as open_clip's tokenizer does."""
        if not captions:
            return np.zeros((0, self.embed_dim), np.float32)
        plain = [_plain(caption) for caption in captions]
        return self._forward(self._tokenizer(plain), self.clip.encode_text)

    def _prepared(self, pictures: Sequence[bytes | None]) -> tuple[list[Tensor], list[str | None]]:
        from PIL import Image

        tensors: list[Tensor] = []
        faults: list[str | None] = []
        for data in pictures:
            fault: str | None = None
            if data is None:
                fault = "no_image"
            else:
                try:
                    image = Image.fromarray(_without_strips(decode(data)))
                    tensors.append(self._transform(image).to(self._dtype))
                except ValueError:
                    fault = "decode"
            faults.append(fault)
        return tensors, faults

    def _forward(self, rows: Tensor, encode: Any) -> np.ndarray:
        size = inference.batch_rows(self._device)
        return inference.unit_norm(inference.in_fixed_batches(rows, size, encode, self._device))


def import_open_clip() -> Any:
    """open_clip, also beside a CPU-only torch."""
    inference.import_torchvision()
    import open_clip

    return open_clip


def _load(options: OpenClipModel) -> LoadedClip:
    open_clip = import_open_clip()
    from open_clip.factory import load_checkpoint
    from open_clip.transform import PreprocessCfg, image_transform_v2

    spec, device = options.spec(), inference.pick_device(options.device)
    preprocess, weights = spec.preprocess, options.checkpoint
    if options.pretrained:
        tag = _tag(open_clip, options.model, options.pretrained, spec)
        preprocess = {**preprocess, **tag}
        weights = weights or open_clip.download_pretrained(tag)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        content = {"model_cfg": spec.config, "preprocess_cfg": preprocess}
        Path(folder, FOLDER_CONFIG).write_text(json.dumps(content))
        clip = open_clip.create_model(
            f"local-dir:{folder}",
            load_weights=False,
            pretrained_text=False,
            precision=options.precision,
            device=device,
        )
        if _is_torchscript(weights):
            clip.load_state_dict(_torchscript_weights(weights))
        else:
            load_checkpoint(clip, weights)
        tokenizer = open_clip.get_tokenizer(_tokenizer_source(options, folder))
    transform = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    dtype = open_clip.get_input_dtype(options.precision)
    return LoadedClip(clip.eval(), spec.embed_dim, transform, tokenizer, device, dtype)


def _is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive: so are the ones that OpenAI published."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _torchscript_weights(path: str) -> dict[str, Tensor]:
    """The state dict of such an archive, without what is no weight."""
    import torch

    weights = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: rows for name, rows in weights.items() if name not in _NO_WEIGHTS}


def _tokenizer_source(options: OpenClipModel, folder: str) -> str:
    """What open_clip finds the tokenizer by: a name, a downloaded folder, or the one just written."""
    if options.model:
        return options.model
    if os.path.basename(options.config) == FOLDER_CONFIG:
        return f"local-dir:{os.path.dirname(options.config)}"
    return f"local-dir:{folder}"


def _tag(open_clip: Any, model: str, name: str, spec: Spec) -> dict[str, Any]:
    """open_clip's record of a pretrained tag. Raises ValueError for an unknown one."""
    tag = open_clip.get_pretrained_cfg(model, name)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(model)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ValueError(f"no tag {name!r} for {model}. hint: one of {', '.join(near) or 'none'}")
    if bool(tag.get("quick_gelu")) != bool(spec.config.get("quick_gelu")):
        other = (
            model.removesuffix("-quickgelu")
            if spec.config.get("quick_gelu")
            else f"{model}-quickgelu"
        )
        raise ValueError(
            f"the weights {name!r} were trained with another activation than {model} has. "
            f'hint: model = "{other}"'
        )
    return dict(tag)


def _without_strips(pixels: np.ndarray) -> np.ndarray:
    """The middle of a picture that is far longer than wide: scaled as it is, a strip would fill the memory."""
    height_px, width_px = pixels.shape[:2]
    most_px = MAX_ASPECT * min(height_px, width_px)
    top, left = max(0, (height_px - most_px) // 2), max(0, (width_px - most_px) // 2)
    return pixels[top : top + most_px, left : left + most_px]


def _plain(caption: str) -> str:
    """The caption with special tokens broken up, so that one written out does not end the text."""
    for token in _SPECIAL_TOKENS:
        caption = caption.replace(token, f"< {token[1:]}")
    return caption


class _quiet:
    """open_clip reports to the root logger that weights are random before they are loaded."""

    def __enter__(self) -> None:
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
