"""Runs evaluations one after another on one encoder, and appends their figures to metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from curate.contract.tars import TarDamage
from pretrain.evaluate.base import Evaluation
from pretrain.evaluate.table import json_line
from pretrain.loop import away


def run(
    encoder: nn.Module,
    evaluations: Sequence[tuple[str, Evaluation]],
    device: torch.device | str,
    metrics_path: str | None = None,
    context: Mapping[str, Any] | None = None,
    heard: Callable[[str, dict[str, float]], None] | None = None,
) -> dict[str, dict[str, float]]:
    """name -> figures of each evaluation. The encoder is in eval mode meanwhile, and then as it was.

    Each evaluation's line is written as soon as it is done, with ``context`` (samples_seen,
    checkpoint) in it, and ``heard`` gets its name and figures. Raises ValueError, with the evaluation's name, for a set that can't be used.
    """
    names = [name for name, _ in evaluations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two evaluations are named {twice[0]!r}. hint: give each its own `name`")
    training = encoder.training
    results: dict[str, dict[str, float]] = {}
    encoder.to(device).eval()
    try:
        for name, evaluation in evaluations:
            try:
                results[name] = evaluation.run(encoder, device)  # type: ignore[arg-type]
            except ValueError as fault:
                raise ValueError(f"evaluation {name}: {fault}") from fault
            except TarDamage as fault:
                raise ValueError(
                    f"evaluation {name}: {fault}. hint: the tar is damaged; replace it"
                ) from fault
            if metrics_path is not None:
                away.append(metrics_path, json_line(name, results[name], context))
            if heard is not None:
                heard(name, results[name])
    finally:
        encoder.train(training)
    return results
