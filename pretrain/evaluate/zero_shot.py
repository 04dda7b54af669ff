"""Zero-shot classification with prompt ensembles: top-1, top-5 and the mean over classes.

CLIP, arXiv 2103.00020, section 3.1.4: class weight = norm(mean over templates of norm(text)).
Ties count against the model, so one that maps everything to one point scores 0, not 1/classes.

Legend: N pictures, C classes, T templates, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.evaluate import class_set
from pretrain.evaluate.base import Encoder, Evaluation, not_below, share_at, unit
from pretrain.evaluate.embed import embed_images, embed_texts
from pretrain.evaluate.samples import labelled
from pretrain.evaluate.store import open_store

_TILE_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluation):
    """Figures: top1, top5 (of more than 5 classes), mean_per_class, n_pictures, n_classes, n_bad."""

    path: str  # folder of class folders, webdataset shards, or a tar or tar.gz with labels.csv
    set: str = ""  # a name in evaluate/sets, or the path of such a .toml; empty: `plain`
    templates: tuple[str, ...] = ()  # instead of the set's own
    batch: int = 256

    def check(self) -> None:
        class_set.load(self.set)
        if self.templates:
            class_set.check_templates(self.templates)
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}. hint: give 1 or more")

    def run(self, encoder: Encoder, device: torch.device | str) -> dict[str, float]:
        self.check()
        words = class_set.load(self.set)
        with open_store(self.path) as store:
            found = labelled(store)
            try:
                classnames, targets = words.resolve(found.labels)
            except ValueError as fault:
                raise ValueError(f"{self.path}: {fault}") from fault
            used = [
                (name, target) for name, target in zip(found.names, targets) if target is not None
            ]
            images = embed_images(encoder, store, [name for name, _ in used], device, self.batch)
        prompts = [words.prompts(name, self.templates) for name in classnames]
        weights_CD = class_weights(encoder, prompts, device, self.batch)
        targets_N = torch.tensor(
            [used[position][1] for position in images.positions], device=device
        )
        ranks_N = class_ranks(images.features_ND, weights_CD, targets_N)
        n_bad = found.n_bad + sum(images.bad.values())
        if n_bad:
            logging.getLogger(__name__).warning(
                "%s: %d bad: %s, %d without a class",
                self.path,
                n_bad,
                dict(images.bad),
                found.n_bad,
            )
        return {**_figures(ranks_N, targets_N, len(classnames)), "n_bad": n_bad}


def class_weights(
    encoder: Encoder, prompts: Sequence[Sequence[str]], device: torch.device | str, batch: int
) -> Tensor:
    """(C, D) unit rows: per class the mean of the unit features of its T prompts, made unit again."""
    flat = [text for texts in prompts for text in texts]
    features_XD = embed_texts(encoder, flat, device, batch)
    per_class = features_XD.split([len(texts) for texts in prompts])
    return unit(torch.stack([features_TD.mean(0) for features_TD in per_class]))


def class_ranks(images_ND: Tensor, weights_CD: Tensor, targets_N: Tensor) -> Tensor:
    """Rank of the right class, 1 is best: 1 + classes that beat it or tie with it. Int64 (N,)."""
    ranks = []
    for rows_BD, targets_B in zip(images_ND.split(_TILE_ROWS), targets_N.split(_TILE_ROWS)):
        cosines_BC = rows_BD @ weights_CD.T
        own_B1 = cosines_BC.gather(1, targets_B[:, None])
        against_BC = not_below(cosines_BC, own_B1)
        against_BC.scatter_(1, targets_B[:, None], False)
        ranks.append(1 + against_BC.sum(1))
    return torch.cat(ranks)


def _figures(ranks_N: Tensor, targets_N: Tensor, n_classes: int) -> dict[str, float]:
    figures = {"top1": share_at(ranks_N, 1)}
    if n_classes > 5:  # among five or fewer, top-5 is 1 whatever the model
        figures["top5"] = share_at(ranks_N, 5)
    present = targets_N.unique()
    per_class = [share_at(ranks_N[targets_N == target], 1) for target in present]
    figures["mean_per_class"] = sum(per_class) / len(per_class)
    return {**figures, "n_pictures": len(ranks_N), "n_classes": n_classes}
