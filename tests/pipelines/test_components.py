"""Components by path: found without a registry, described without importing torch, options checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError

CORE = {
    "source": {"source.url_table", "source.image_tars", "source.folder"},
    "stage": {"score.metadata_match", "score.text_regions", "filter.metadata_balance", "filter.threshold", "filter.duplicate_pair", "filter.duplicate_image", "download.fetch", "caption.llm_rewrite"},
    "shard": {"shard.write"},
    "objective": {"infonce"},
    "view": {"crop", "caption_mix"},
    "tweak": {"freeze"},
    "evaluate": {"zero_shot", "retrieval"},
}  # fmt: skip


@pytest.mark.parametrize("kind", components.KINDS)
def test_finds_by_path(kind: str) -> None:
    assert set(components.found(kind)) >= CORE[kind]


@pytest.mark.parametrize(
    ("kind", "use"), [(kind, use) for kind in components.KINDS for use in components.found(kind)]
)
def test_every_component_has_a_summary_and_typed_options(kind: str, use: str) -> None:
    description = components.describe(kind, use)
    assert description.summary.strip()
    for option in description.options:
        assert option.annotation is not None, (
            f"{use}.{option.name} has a type that can't be checked"
        )


def test_describing_objectives_imports_no_torch() -> None:
    code = "import sys; from pipelines import components\nfor kind in components.KINDS:\n    [components.describe(kind, use) for use in components.found(kind)]\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=components.ROOT,
    )
    assert done.stdout.strip() == "False"


def test_options_from_source_are_those_of_the_class() -> None:
    static = {
        option.name: option.default
        for option in components.describe("objective", "infonce").options
    }
    made = components.build("objective", Component("infonce"))
    assert static
    assert type(made).__name__ == components.describe("objective", "infonce").class_name


def test_code_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab_filters.py").write_text(
        "from dataclasses import dataclass\nimport pyarrow as pa\nfrom curate.stage import KEEP, REASON, RowStage, decision\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Short(RowStage):\n    'Refuses short captions.'\n    words: int = 3\n"
        "    def reads(self):\n        return ('caption',)\n    def writes(self):\n        return pa.schema([KEEP, REASON])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = components.build("stage", Component("mylab_filters:Short", {"words": 5}))
    assert made.words == 5
    with pytest.raises(RecipeError, match="has no option 'word'\nhint: did you mean 'words'"):
        components.build("stage", Component("mylab_filters:Short", {"word": 5}))


@pytest.mark.parametrize(
    ("use", "message"),
    [("no_such_lab:Blur", "No module named"), ("pipelines.errors:Blur", "has no 'Blur'")],
)
def test_code_that_is_not_there(use: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        components.describe("stage", use)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [(1, float, 1.0), ([1, 2], tuple[int, ...], (1, 2)), ("a", Literal["a", "b"], "a"), (None, int | None, None), ("x", str | tuple[str, ...], "x"), (["x"], str | tuple[str, ...], ("x",))],
)  # fmt: skip
def test_values_are_fitted(value: object, annotation: object, expected: object) -> None:
    got = components.coerce(value, annotation, "here")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1.5, int),
        ("1", int),
        (True, float),
        (["a"], tuple[int, ...]),
        ("c", Literal["a", "b"]),
        ("x", int | None),
    ],
)
def test_values_that_do_not_fit(value: object, annotation: object) -> None:
    with pytest.raises(RecipeError, match="here"):
        components.coerce(value, annotation, "here")


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = components.resolve_options(
        "stage", Component("score.metadata_match", {"entries": "e.json"})
    )
    assert options["entries"] == str(tmp_path / "e.json")


def test_the_recipe_s_seed_fills_the_option() -> None:
    assert (
        components.resolve_options("stage", Component("filter.metadata_balance", {"t": 5}), seed=7)[
            "seed"
        ]
        == 7
    )
    assert (
        components.resolve_options(
            "stage", Component("filter.metadata_balance", {"t": 5, "seed": 2}), seed=7
        )["seed"]
        == 2
    )


def test_an_option_that_is_a_table_takes_a_table_alone() -> None:
    given = Component("caption_mix", {"weights": {"alt": 2}}, "here")
    assert components.build("view", given).weights == {"alt": 2}
    with pytest.raises(RecipeError, match="a table, such as"):
        components.build("view", Component("caption_mix", {"weights": 3}, "here"))
