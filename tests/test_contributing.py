"""CONTRIBUTING.md's filter, for real: its code is written where it says, tested, listed and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


def test_the_ten_minutes_filter(tmp_path: Path) -> None:
    for name in ("curate", "pretrain", "pipelines", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cli.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for code in blocks("python"):
        place = re.match(r"# (\S+\.py)\n", code)
        assert place, "each block says where it goes"
        (tmp_path / place[1]).write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    tests = [
        "tests/curate/filter/test_caption_words.py",
        "tests/conformance/test_curate_components.py",
    ]
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *tests,
        "-k",
        "caption_words or test_both_ends",
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert "filter.caption_words" in run("cli.py", "list", "stage").stdout
    recipe = tmp_path / "r.toml"
    (stage,) = blocks("toml")
    recipe.write_text(
        f'name = "x"\n[curate]\npool = "pool"\nshards = "shards"\n[curate.source]\nuse = "tests.tiny.stages:Numbers"\n{stage}'
    )
    done = run("cli.py", "curate", "r.toml", "--local", "--set", "curate.stage.0.at_least=4")
    assert done.returncode == 0, done.stderr
    assert "caption_words.few 10" in done.stderr
    done = run("cli.py", "check", "r.toml", "--set", "curate.stage.0.at_laest=4")
    assert done.returncode == 2
    assert "did you mean 'at_least'?" in done.stderr
