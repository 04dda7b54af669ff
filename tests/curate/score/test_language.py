"""score.language: the bundled model's first answer, one caption at a time, newlines and capitals included."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.score.language import Language
from curate.stage import StageError

SENTENCES = {
    "A dog runs through the green forest": "en",
    "Ein Hund läuft durch den grünen Wald": "de",
    "Un chien court dans la forêt": "fr",
    "Собака бежит по зелёному лесу": "ru",
    "森の中を走る犬の写真": "ja",
    "Un perro corre por el bosque verde": "es",
}


def measured(captions: list[str | None], **options: object) -> tuple[list[object], list[object]]:
    stage = Language(**options)  # type: ignore[arg-type]
    stage.check()
    done = stage.process(pa.table({"caption": pa.array(captions, pa.string())}), stage.open())
    assert done.schema == stage.writes()
    return done["language"].to_pylist(), done["language_confidence"].to_pylist()


def test_languages_of_plain_sentences() -> None:
    languages, confidences = measured(list(SENTENCES))
    assert languages == list(SENTENCES.values())
    assert all(0.5 < confidence <= 1 for confidence in confidences)  # type: ignore[operator]


def test_a_newline_does_not_cut_the_caption() -> None:
    german = "Ein Hund läuft durch den grünen Wald"
    whole, cut = measured([f"the\n{german}", f"the {german}"])
    assert whole[0] == whole[1] == "de"
    assert cut[0] == cut[1]


def test_what_the_model_does_not_know_has_a_low_confidence() -> None:
    languages, confidences = measured(["", "dog", "12345", "!!!", "\n", None])
    assert languages[-1] is None
    assert confidences[-1] is None
    assert all(confidence < 0.2 for confidence in confidences[:-1])  # type: ignore[operator]


def test_capitals_are_read_as_small_letters_unless_told_not_to() -> None:
    shouted = "THE WALKING DEAD THE COMPLETE THIRD SEASON"
    assert measured([shouted]) == measured([shouted.lower()])
    assert measured([shouted], lower_capitals=False) != measured([shouted])


def test_a_model_of_ones_own_and_one_that_is_none(tmp_path: Path) -> None:
    bundled = Path(Language().inputs()[0])
    copy = tmp_path / "own.ftz"
    copy.write_bytes(bundled.read_bytes())
    assert measured(list(SENTENCES), model=str(copy)) == measured(list(SENTENCES))
    assert Language(model=str(copy)).inputs() == (str(copy),)
    with pytest.raises(ValueError, match=r"no language model at .*none\.ftz\. hint: "):
        Language(model=str(tmp_path / "none.ftz")).check()
    copy.write_bytes(b"no model")
    with pytest.raises(StageError, match=r"read as a fastText model.*hint: "):
        Language(model=str(copy)).open()
    with pytest.raises(ValueError, match=r"is a URL\. hint"):
        Language(model="s3://bucket/lid.176.bin").check()
