"""Pictures get open_clip's own embedding, the same bits in any batch; bad pictures a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.score import vectors
from curate.score.image_embedding import ImageEmbedding
from curate.score.picture import decode
from tests.conformance.examples import picture
from tests.tiny import models


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> ImageEmbedding:
    return ImageEmbedding(**models.clip_options(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def loaded(stage: ImageEmbedding) -> Any:
    return stage.open()


def pictures(count: int) -> list[bytes]:
    return [picture(number) for number in range(count)]


def test_it_is_what_open_clip_computes(stage: ImageEmbedding, loaded: Any) -> None:
    import open_clip
    import torch
    from PIL import Image

    given = pictures(3)
    transform = open_clip.image_transform(32, is_train=False)  # open_clip's defaults, by hand
    with torch.inference_mode():
        rows = torch.stack([transform(Image.fromarray(decode(data))) for data in given])
        wanted = torch.nn.functional.normalize(loaded.clip.encode_image(rows), dim=1).numpy()
    found, usable = vectors.from_column(
        stage.process(pa.table({"image": given}), loaded)["embedding_image"]
    )
    assert usable.all()
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2, (
        "different pictures have different embeddings"
    )
    assert np.linalg.norm(found.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)


def test_bits_do_not_depend_on_the_batch(stage: ImageEmbedding, loaded: Any) -> None:
    table = pa.table({"image": pictures(21)})
    whole = stage.process(table, loaded)["embedding_image"].to_pylist()
    for cut in (1, 2, 7, 9, 20):
        done = [
            row
            for start in range(0, 21, cut)
            for row in stage.process(table.slice(start, cut), loaded)["embedding_image"].to_pylist()
        ]
        assert done == whole, f"in batches of {cut}"


def test_bad_pictures_have_a_reason_and_leave_their_neighbours_alone(
    stage: ImageEmbedding, loaded: Any
) -> None:
    given = pa.array([None, b"<html>", picture(1), b""], pa.binary())
    done = stage.process(pa.table({"image": given}), loaded)
    assert done.schema == stage.writes()
    assert done["reason"].to_pylist() == [
        "error.score.image_embedding.no_image",
        "error.score.image_embedding.decode",
        None,
        "error.score.image_embedding.decode",
    ]
    alone = stage.process(pa.table({"image": [picture(1)]}), loaded)
    assert done["embedding_image"].to_pylist() == [
        None,
        None,
        *alone["embedding_image"].to_pylist(),
        None,
    ]
    none = stage.process(pa.table({"image": given[:2]}), loaded)
    assert none["embedding_image"].null_count == 2


def test_a_model_that_training_has_broken_gives_no_embedding(
    stage: ImageEmbedding, tmp_path: Path
) -> None:
    broken = stage.open()
    for parameter in broken.clip.visual.parameters():
        parameter.data.fill_(float("nan"))
    done = stage.process(pa.table({"image": [picture(1)]}), broken)
    assert done["embedding_image"].to_pylist() == [None]
    assert done["reason"].to_pylist() == ["error.score.image_embedding.not_finite"]


def test_two_models_can_stand_side_by_side(stage: ImageEmbedding) -> None:
    options = {"config": stage.config, "checkpoint": stage.checkpoint}
    other = ImageEmbedding(**options, column="embedding_image_b")
    other.check()
    assert other.writes().names[0] == "embedding_image_b"
    with pytest.raises(ValueError, match="hint: a name such as"):
        ImageEmbedding(**options, column="pictures").check()


def test_half_precision_is_near(stage: ImageEmbedding, loaded: Any) -> None:
    table = pa.table({"image": pictures(4)})
    options = {"config": stage.config, "checkpoint": stage.checkpoint}
    half = ImageEmbedding(**options, precision="bf16")
    one, two = (
        vectors.from_column(made.process(table, opened)["embedding_image"])[0]
        for made, opened in ((stage, loaded), (half, half.open()))
    )
    assert vectors.cosines(one, two).min() > 0.99
    assert not np.array_equal(one, two)
