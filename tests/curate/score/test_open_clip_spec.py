"""A model's size is known by name, by file and from our own checkpoints, all without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curate.score import open_clip_spec
from tests.tiny import models

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return models.clip_options(tmp_path_factory.mktemp("clip"))


def test_the_size_is_known_without_torch(options: dict[str, str]) -> None:
    code = (
        "import sys\nfrom curate.score.image_embedding import ImageEmbedding\n"
        f"stage = ImageEmbedding(**{options!r})\nstage.check()\n"
        "print(stage.writes().field(0).type.list_size)\n"
        f"stage = ImageEmbedding(model='ViT-B-32', checkpoint={options['checkpoint']!r})\n"
        "print(stage.writes().field(0).type.list_size)\n"
        "print([name for name in ('torch', 'open_clip', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:3] == ["16", "512", "[]"], done.stderr


def test_a_name_is_one_of_open_clips() -> None:
    assert open_clip_spec.named("ViT-L-14").embed_dim == 768
    assert open_clip_spec.named("ViT-B/32") == open_clip_spec.named("ViT-B-32")
    with pytest.raises(ValueError, match=r"no model 'VIT-B-32'\. hint: did you mean .*ViT-B-32"):
        open_clip_spec.named("VIT-B-32")
    with pytest.raises(ValueError, match=r"no model '\?'\. hint: config = a file of your own"):
        open_clip_spec.named("?")


def test_a_file_is_bare_or_has_its_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(models.CLIP_CONFIG))
    assert open_clip_spec.from_file(str(path)) == open_clip_spec.Spec(models.CLIP_CONFIG)
    whole = {"model_cfg": models.CLIP_CONFIG, "preprocess_cfg": {"mean": [0, 0, 0]}}
    path.write_text(json.dumps(whole))
    assert open_clip_spec.from_file(str(path)).preprocess == {"mean": [0, 0, 0]}
    with pytest.raises(ValueError, match="hint: a JSON file"):
        open_clip_spec.from_file(str(tmp_path / "none.json"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_files_that_are_not_ours_say_nothing_and_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    path = tmp_path / "weights.pt"
    for content in ({"state_dict": {}}, {"model": {"config": {"embed_dim": 4}}}, Evil(), [1]):
        torch.save(content, path)
        assert open_clip_spec.saved(str(path)) is None
    torch.save({"model": {"config": models.CLIP_CONFIG}, "other": Evil()}, path)
    found = open_clip_spec.saved(str(path))
    assert found is not None
    assert found.embed_dim == models.CLIP_DIM
    path.write_bytes(b"no zip")
    assert open_clip_spec.saved(str(path)) is None
    assert "executed" not in capsys.readouterr().out
