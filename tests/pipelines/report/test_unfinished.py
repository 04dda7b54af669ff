"""The page of a run without shards: stages, parts, and what failed, with foreign words escaped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import commands, curation, failures, recipe
from pipelines.failures import Failed
from pipelines.plan import plan_curation
from pipelines.report import unfinished
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.stages import USE


def test_a_run_without_shards_has_a_page(
    curate_recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 4}
    made = curate_recipe(source, [{"use": f"{USE}:Length", "fail_on": "r 7"}])
    plan = plan_curation(made)
    path = tmp_path / "r.toml"
    path.write_text(recipe.to_toml(made))
    curation.measure(plan, LocalRunner(), Quiet())
    Path(curation.part.sidecar(plan, plan.stages[1], 2)).unlink()
    failed = Failed("hung", "it said <b>nothing</b>", 4, "node-a", "/tmp/w.err")
    failures.Failures(plan.pool_root).note(plan.stages[1].name, 2, failed)
    pages = commands.report(str(path), []).splitlines()
    assert pages == [unfinished.write(plan)]
    page = Path(pages[0]).read_text()
    assert "it said &lt;b&gt;nothing&lt;/b&gt;" in page
    assert "2 of 3" in page
    assert f"error.{USE}:Length.KeyError 1" in page
    assert (
        f"note: part 2 of {USE}:Length: it hung in each of 4 attempts on node-a"
        in capsys.readouterr().err
    )
    assert unfinished.failed(plan.pool_root)[0]["part"] == 2
