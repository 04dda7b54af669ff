"""Image-text retrieval: R@1, R@5, R@10 in both directions, several captions a picture.

Image to text is a hit if any of the picture's captions is in the top k. Rank = 1 + wrong ones that
beat or tie with the right one, so a collapsed model scores 0; a caption that two pictures share
word for word is such a tie. Ranks are counted tile by tile: no N x M matrix is ever held.

Legend: N pictures, M captions, D embedding.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.evaluate.base import Encoder, Evaluation, not_below, share_at
from pretrain.evaluate.embed import embed_images, embed_texts
from pretrain.evaluate.samples import captioned
from pretrain.evaluate.store import open_store

_TILE = 2048
_RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluation):
    """Figures: image_to_text_r1, _r5, _r10, text_to_image_r1 ..., n_pictures, n_captions, n_bad."""

    path: str  # webdataset shards, or a folder, tar or tar.gz with captions.tsv
    all_captions: bool = False  # added captions too, not the alt-text alone
    batch: int = 256

    def check(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}. hint: give 1 or more")

    def run(self, encoder: Encoder, device: torch.device | str) -> dict[str, float]:
        self.check()
        with open_store(self.path) as store:
            found = captioned(store, self.all_captions)
            images = embed_images(encoder, store, found.names, device, self.batch)
        texts = [found.captions[position] for position in images.positions]
        owner_M = torch.tensor([i for i, own in enumerate(texts) for _ in own], device=device)
        captions_MD = embed_texts(
            encoder, [text for own in texts for text in own], device, self.batch
        )
        image_ranks_N, text_ranks_M = ranks(images.features_ND, captions_MD, owner_M)
        n_bad = found.n_bad + sum(images.bad.values())
        if n_bad:
            logging.getLogger(__name__).warning(
                "%s: %d bad: %s, %d without a caption",
                self.path,
                n_bad,
                dict(images.bad),
                found.n_bad,
            )
        return {
            **_recalls("image_to_text", image_ranks_N, len(captions_MD)),
            **_recalls("text_to_image", text_ranks_M, len(texts)),
            "n_pictures": len(texts),
            "n_captions": len(captions_MD),
            "n_bad": n_bad,
        }


def ranks(
    images_ND: Tensor, captions_MD: Tensor, owner_M: Tensor, tile: int = _TILE
) -> tuple[Tensor, Tensor]:
    """(rank of each picture's best caption (N,), rank of each caption's picture (M,)); 1 is best.

    ``owner_M`` is the picture of each caption. Every picture has a caption.
    """
    own_M = _own_cosines(images_ND, captions_MD, owner_M, tile)
    best_N = own_M.new_full((len(images_ND),), -torch.inf)
    best_N.scatter_reduce_(0, owner_M, own_M, "amax")
    image_ranks_N = torch.ones(len(images_ND), dtype=torch.int64, device=owner_M.device)
    text_ranks_M = torch.ones_like(owner_M)
    for row in range(0, len(images_ND), tile):
        rows = slice(row, row + tile)
        number_R1 = torch.arange(row, min(row + tile, len(images_ND)), device=owner_M.device)[
            :, None
        ]
        for column in range(0, len(captions_MD), tile):
            columns = slice(column, column + tile)
            cosines_RS = images_ND[rows] @ captions_MD[columns].T
            wrong_RS = owner_M[columns] != number_R1
            image_ranks_N[rows] += (wrong_RS & not_below(cosines_RS, best_N[rows, None])).sum(1)
            text_ranks_M[columns] += (wrong_RS & not_below(cosines_RS, own_M[columns])).sum(0)
    return image_ranks_N, text_ranks_M


def _own_cosines(images_ND: Tensor, captions_MD: Tensor, owner_M: Tensor, tile: int) -> Tensor:
    """The cosine of each caption with its own picture (M,)."""
    pairs = zip(captions_MD.split(tile), owner_M.split(tile))
    return torch.cat([(texts * images_ND[owner]).sum(-1) for texts, owner in pairs])


def _recalls(direction: str, ranks: Tensor, n_candidates: int) -> dict[str, float]:
    """R@K for each K below the number of candidates; beyond that it is 1 whatever the model."""
    return {f"{direction}_r{k}": share_at(ranks, k) for k in _RECALL_AT if k < n_candidates}
