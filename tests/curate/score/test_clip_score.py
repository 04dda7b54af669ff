"""The score is open_clip's cosine of picture and caption; stored embeddings give nearly the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.score import vectors
from curate.score.clip_score import ClipScore
from curate.score.image_embedding import ImageEmbedding
from curate.score.picture import decode
from tests.conformance.examples import picture
from tests.tiny import models

CAPTIONS = ["a red circle on sand", "dog " * 200, "", "zwei blaue Quadrate, 犬"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return models.clip_options(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def loaded(options: dict[str, str]) -> Any:
    return ClipScore(**options).open()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.table({"image": [picture(n) for n in range(4)], "caption": CAPTIONS})


def test_it_is_what_open_clip_computes(
    options: dict[str, str], loaded: Any, table: pa.Table
) -> None:
    import open_clip
    import torch
    from PIL import Image

    transform = open_clip.image_transform(32, is_train=False)
    tokens = open_clip.SimpleTokenizer(context_length=16)(CAPTIONS)
    with torch.inference_mode():
        rows = torch.stack(
            [transform(Image.fromarray(decode(data.as_py()))) for data in table["image"]]
        )
        wanted = (
            loaded.clip.encode_image(rows, normalize=True)
            * loaded.clip.encode_text(tokens, normalize=True)
        ).sum(1)
    done = ClipScore(**options).process(table, loaded)
    assert done.schema == ClipScore(**options).writes()
    assert done["clip_score"].to_numpy() == pytest.approx(wanted.numpy(), abs=1e-6)
    assert len(set(done["clip_score"].to_pylist())) == 4


def test_faults_are_reasons(options: dict[str, str], loaded: Any) -> None:
    given = pa.table(
        {
            "image": pa.array([None, b"x", picture(0), picture(1)], pa.binary()),
            "caption": ["a", "a", None, "a"],
        }
    )
    done = ClipScore(**options).process(given, loaded)
    assert done["reason"].to_pylist() == [
        "error.score.clip_score.no_image",
        "error.score.clip_score.decode",
        "error.score.clip_score.no_caption",
        None,
    ]
    assert [score is None for score in done["clip_score"].to_pylist()] == [True, True, True, False]
    assert ClipScore(**options).process(given.slice(0, 2), loaded)["clip_score"].null_count == 2


def test_bits_do_not_depend_on_the_batch(options: dict[str, str], loaded: Any) -> None:
    stage = ClipScore(**options)
    table = pa.table(
        {
            "image": [picture(n) for n in range(11)],
            "caption": [f"a dog {'on sand ' * n}" for n in range(11)],
        }
    )
    whole = stage.process(table, loaded)["clip_score"].to_pylist()
    for cut in (1, 3, 10):
        parts = [stage.process(table.slice(start, cut), loaded) for start in range(0, 11, cut)]
        assert (
            pa.concat_tables([part.select(["clip_score"]) for part in parts])[
                "clip_score"
            ].to_pylist()
            == whole
        )


def test_stored_embeddings_are_read_in_place_of_pictures(
    options: dict[str, str], loaded: Any, table: pa.Table
) -> None:
    image = ImageEmbedding(**options)
    column = image.process(table, image.open())["embedding_image"]
    stage = ClipScore(**options, embedding="embedding_image")
    assert stage.reads() == ("embedding_image", "caption")
    stored = pa.table({"embedding_image": column, "caption": table["caption"]})
    near = stage.process(stored, loaded)["clip_score"].to_numpy()
    exact = ClipScore(**options).process(table, loaded)["clip_score"].to_numpy()
    assert np.abs(near - exact).max() < 1e-3
    empty = stored.set_column(0, "embedding_image", pa.nulls(4, column.type))
    assert (
        stage.process(empty, loaded)["reason"].to_pylist()
        == ["error.score.clip_score.no_embedding"] * 4
    )


def test_embeddings_of_another_model_are_refused_before_any_work(options: dict[str, str]) -> None:
    stage = ClipScore(**options, embedding="embedding_text")
    stage.check_columns({"embedding_text": vectors.column_type(16), "caption": pa.string()})
    with pytest.raises(ValueError, match=r"has 24 numbers a row, 16 are needed\. hint:"):
        stage.check_columns({"embedding_text": vectors.column_type(24), "caption": pa.string()})
