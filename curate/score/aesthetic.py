"""Scores how pleasing a picture is, with a linear head on its stored embedding.

The LAION aesthetic predictors: a linear layer, or the "improved" one, a chain of linear layers with
nothing between them but dropout (768-1024-128-64-16-1). Either is one affine map of the unit vector, so
the chain is multiplied out once and a score is one product. The head's weights are the user's own file,
made for the embeddings of one model (LAION's: open_clip ViT-L-14 of "openai").

Legend: n rows, D embedding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curate.contract import storage
from curate.contract.columns import field
from curate.score import vectors
from curate.stage import RowStage, StageError, path_option

_USE = "score.aesthetic"
_KINDS = (".npz", ".safetensors", ".pth", ".pt")
_LIGHT_KINDS = (".npz", ".safetensors")  # read without torch
Head = tuple[np.ndarray, float]


@dataclass(frozen=True, kw_only=True)
class Aesthetic(RowStage):
    """Writes ``aesthetic_score``, on the head's own scale; null where there is no embedding.

    Options:
        weights: the head, a state dict of linear layers: .npz, .safetensors, .pth or .pt. Layers are
            put in the order of the numbers in their names. One with activations gives wrong scores.
        embedding: the column that the head was made for; LAION's wants 768 numbers of ViT-L-14.
    """

    batch_rows: ClassVar[int] = 4096

    weights: str = path_option()
    embedding: str = "embedding_image"

    def reads(self) -> tuple[str, ...]:
        return (self.embedding,)

    def writes(self) -> pa.Schema:
        return pa.schema([field("aesthetic_score")])

    def inputs(self) -> tuple[str, ...]:
        return (self.weights,)

    def check(self) -> None:
        if storage.is_url(self.weights) or not os.path.isfile(self.weights):
            raise ValueError(f"no file {self.weights}. hint: weights = a path of this machine")
        if not self.weights.endswith(_KINDS):
            raise ValueError(f"weights = {self.weights}. hint: one of {', '.join(_KINDS)}")
        if self.weights.endswith(_LIGHT_KINDS):
            read_head(self.weights)

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        light = self.weights.endswith(_LIGHT_KINDS)
        dim = len(read_head(self.weights)[0]) if light else 0
        vectors.check_column(self.embedding, types[self.embedding], dim)

    def open(self) -> Head:
        """Weights (D,) and bias of the head. Raises StageError where the file holds none."""
        try:
            return read_head(self.weights)
        except ValueError as fault:
            raise StageError(f"{_USE}: {fault}") from fault

    def process(self, batch: pa.Table, state: Head) -> pa.Table:
        weights, bias = state
        try:
            vectors.check_column(self.embedding, batch[self.embedding].type, len(weights))
        except ValueError as fault:
            raise StageError(f"{_USE}: {fault}") from fault
        found, usable = vectors.from_column(batch[self.embedding])
        # A sum over each row, not a matrix product: it does not depend on how many rows there are.
        scores = np.multiply(found, weights, dtype=np.float64).sum(axis=1) + bias
        column = pa.array(scores.astype(np.float32), mask=~usable)
        return pa.table([column], schema=self.writes())


def read_head(path: str) -> Head:
    """The chain of linear layers in a file as one: weights float64 (D,), bias. Raises ValueError."""
    try:
        saved = _read(path)
    except Exception as fault:  # numpy, torch, pickle and safetensors raise nearly anything
        what = " ".join(str(fault).split())[:200]
        raise ValueError(
            f"{path}: {what}. hint: a state dict saved by torch, numpy or safetensors"
        ) from fault
    weights: np.ndarray | None = None
    bias = np.zeros(0)
    shapes: list[str] = []
    for name in sorted((name for name in saved if name.endswith("weight")), key=_natural):
        layer = np.asarray(saved[name], np.float64)
        layer = layer[None] if layer.ndim == 1 else layer
        shapes.append(f"{name} {'x'.join(map(str, layer.shape))}")
        added = np.zeros(len(layer)) + saved.get(f"{name.removesuffix('weight')}bias", 0.0)
        if layer.ndim != 2 or (weights is not None and layer.shape[1] != len(weights)):
            raise ValueError(f"{path}: {', '.join(shapes)}. hint: a chain of linear layers")
        bias = (layer @ bias if weights is not None else 0.0) + np.ravel(added)
        weights = layer if weights is None else layer @ weights
    if weights is None or len(weights) != 1:
        raise ValueError(
            f"{path}: {', '.join(shapes) or 'no weights'}. hint: the last layer must give one number"
        )
    return weights[0], float(bias[0])


def _read(path: str) -> dict[str, Any]:
    """Names and arrays of a file; nothing in it is executed."""
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = saved.get("state_dict", saved)
    return {name: rows.float().numpy() for name, rows in saved.items()}


def _natural(name: str) -> list[Any]:
    """layers.10 after layers.9."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
