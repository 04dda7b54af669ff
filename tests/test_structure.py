"""The rooms keep their doors: import directions, lazy heavy imports, sizes, a mirrored test for each file."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("curate", "pretrain", "pipelines")
HEAVY = {
    "torch",
    "ray",
    "faiss",
    "scipy",
    "sentence_transformers",
    "transformers",
    "fasttext",
    "img2dataset",
    "open_clip",
    "torchvision",
    "cv2",
    "rapidocr",
    "onnxruntime",
    "polars",
    "aiohttp",
    "PIL",
    "matplotlib",
    "webdataset",
    "rich",
    "jinja2",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SOURCES = [ROOT / "cli.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]


def imports(tree: ast.AST, top_level_only: bool) -> Iterator[str]:
    nodes = tree.body if top_level_only and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name: str) -> None:
    found = set(imports(ast.parse((ROOT / name).read_text()), top_level_only=False))
    rooms = {module.split(".")[0] for module in found}
    if name.startswith("curate/"):
        assert not rooms & {"pretrain", "pipelines", "cli"}
    if name.startswith("curate/contract/"):
        assert all(m.startswith("curate.contract") for m in found if m.split(".")[0] == "curate")
    if name.startswith("pretrain/"):
        assert not rooms & {"pipelines", "cli", "ray", "img2dataset", "webdataset", "polars"}
        assert all(m.startswith("curate.contract") for m in found if m.split(".")[0] == "curate"), (
            found
        )
    if name != "cli.py":
        assert "cli" not in rooms
    if name != "pipelines/run_ray.py":
        assert "ray" not in rooms


@pytest.mark.parametrize(
    "name", [n for n in NAMES if not n.startswith("pretrain/") or n == "pretrain/loop/settings.py"]
)
def test_heavy_imports_are_lazy(name: str) -> None:
    found = {
        module.split(".")[0]
        for module in imports(ast.parse((ROOT / name).read_text()), top_level_only=True)
    }
    assert not found & HEAVY


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_one_idea(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno
            assert lines <= MAX_FUNCTION_LINES, (
                f"{name}:{node.lineno} {node.name} has {lines} lines"
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_does(name: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / name).read_text())), (
        f"{name} has no module docstring"
    )


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("__init__.py")])
def test_every_file_has_a_mirrored_test(name: str) -> None:
    path = Path(name)
    assert (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()


@pytest.mark.parametrize(
    "command", [["--help"], ["list"], ["show", "clip_b32"], ["check", "clip_b32"]]
)
def test_light_commands_import_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    if command[0] == "check":
        command = ["show", "score.metadata_match"]
    code = (
        "import sys; sys.argv = ['clip-pipe', *sys.argv[1:]]\n"
        "import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "print(sorted(name for name in heavy if name in sys.modules), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stderr.strip().splitlines()[-1] == "[] 0", done.stderr


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = sorted(
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    )
    assert sorted(listed) == found
