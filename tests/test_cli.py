"""The command line: help for every command, exit codes, messages on stderr, data on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from tests.tiny import commands

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "demo",
    "check",
    "plan",
    "forecast",
    "curate",
    "whatif",
    "explain",
    "entries",
    "train",
    "eval",
    "checkpoint",
    "report",
    "list",
    "show",
}


def toml(folder: Path, **more: str) -> Path:
    path = folder / "r.toml"
    path.write_text(
        f'name = "{more.pop("name", "cli")}"\n[curate]\npool = "{folder}/pool"\nshards = "{folder}/shards"\n'
        f"[curate.source]\n{more.pop('source', 'use = ' + json.dumps('tests.tiny.stages:Numbers') + chr(10) + 'count = 23')}\n"
        f'[[curate.stage]]\nuse = "tests.tiny.stages:Picture"\n{more.pop("stage", "")}\n'
    )
    return path


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_are_the_contract_s() -> None:
    assert set(main.commands) >= COMMANDS


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_and_option_has_help(command: str) -> None:
    found = main.commands[command]
    assert found.help
    for parameter in found.params:
        assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), (
            f"{command} {parameter.name}"
        )
    assert invoke(command, "--help")[0] == 0


def test_curate_prints_one_json_line(tmp_path: Path) -> None:
    code, out, err = invoke("curate", str(toml(tmp_path)), "--local")
    assert code == 0, err
    told = json.loads(out)
    assert (told["rows_in"], told["kept"]) == (23, 23)
    assert Path(told["report"]).is_file()
    assert "23 of 23 rows kept" in err


def test_check_plan_and_report(tmp_path: Path) -> None:
    path = str(toml(tmp_path))
    assert "is fine" in invoke("check", path)[1]
    assert "to do" in invoke("plan", path)[1]
    code, _, err = invoke("report", path)
    assert code == 2
    assert "nothing to report on" in err
    invoke("curate", path, "--local")
    assert "to do" not in invoke("plan", path)[1]
    assert invoke("report", path)[1].strip() == f"{tmp_path}/shards/report.html"
    assert not list(tmp_path.glob("pool/work/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["check", "{r}", "--set", "curate.shard.samples_per_shrad=3"],
            "did you mean 'samples_per_shard'?",
        ),
        (
            ["curate", "{r}", "--local", "--set", "curate.source.count=0"],
            "count = 0\nhint: at least 1",
        ),
        (
            ["curate", "{r}", "--local", "--set", 'curate.stage.0.use="no.such"'],
            "no such stage component",
        ),
        (["train", "{r}"], "no [train] table"),
        (["eval", "{r}"], "no [[evaluate]] table"),
        (["show", "score.text_regoins"], "did you mean 'score.text_regions'?"),
        (
            ["check", "{r}", "--set", "curate.stage.0.dead=[1]"],
            "found [1] (list)\nhint: expected a text",
        ),
        (["check", "{r}", "--set", "curate.pool=s9://x/y"], "curate.pool: s9://x/y"),
        (["check", "{r}", "--set", "curate.pool=s3:/b/x"], "hint: s3:// has two slashes"),
        (["check", "{r}", "--set", "curate.pool=s3://b//x"], "hint: write one / where it has //"),
        (
            ["check", "{r}", "--set", "curate.shards={d}/pool/shards"],
            "lie in one another\nhint: name two folders side by side",
        ),
        (["curate", "{r}", "--local", "--set", "curate.pool=/proc/x/pool"], "can't be written"),
        (["curate", "{r}", "--local", "--set", "curate.shards={r}"], "error: curate.shards"),
        (["show", "clip_b23"], "did you mean 'clip_b32'?"),
        (["list", "filtre"], "no such kind"),
    ],
)
def test_wrong_input_exits_2_with_a_hint(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    path = str(toml(tmp_path))
    code, out, err = invoke(
        *(word.replace("{r}", path).replace("{d}", str(tmp_path)) for word in arguments)
    )
    assert (code, out) == (2, "")
    assert "error: " in err
    assert message in err
    assert not list(tmp_path.glob("pool/*"))


def test_a_failed_run_exits_1(tmp_path: Path) -> None:
    code, _, err = invoke("curate", str(toml(tmp_path, stage='dead = "word"')), "--local")
    assert code == 1
    assert "error.tiny.dead" in err


def test_a_file_that_ends_too_early_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """click takes an EOFError for the end of a dialogue and would say no more than "Aborted!"."""
    from pipelines import commands as real

    def cut(*_: object, **__: object) -> str:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    monkeypatch.setattr(real, "check", cut)
    code, out, err = invoke("check", "r.toml")
    assert (code, out) == (1, "")
    assert err == "error: Compressed file ended before the end-of-stream marker was reached\n"


def test_usage_errors_exit_2(tmp_path: Path) -> None:
    assert invoke("curate", str(toml(tmp_path)), "--local", "--workers", "2")[0] == 2
    assert invoke("train", "x", "--nproc", "2", "--ray", "2")[0] == 2
    assert "goes with --ray" in invoke("train", "x", "--address", "auto")[2]
    assert invoke("train", "x", "--address", "auto")[0] == 2
    assert "x>=1" in invoke("train", "x", "--ray", "0")[2]
    assert "x>=1" in invoke("plan", "x", "--gpus", "0")[2]
    assert invoke("train", "x", "--allow-change", "phase.0.lr")[0] == 2  # without --resume
    assert invoke("nonsense")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_pool_that_resumes(tmp_path: Path, number: signal.Signals) -> None:
    path = str(toml(tmp_path, source='use = "tests.tiny.stages:Slow"\ncount = 60'))
    commands.stopped(
        ["curate", path, "--local"], number, lambda: list(tmp_path.glob("pool/rows/*.parquet"))
    )
    assert list(tmp_path.glob("pool/rows/*.parquet"))
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert invoke("curate", path, "--local")[0] == 0


def test_show_a_component() -> None:
    out = invoke("show", "score.metadata_match")[1]
    assert "entries" in out
    assert "required" in out


def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    """In a process of its own: within the session Ray is connected already."""
    command = [sys.executable, "cli.py", "curate", str(toml(tmp_path)), "--address", "127.0.0.1:1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 2
    assert "error: --address 127.0.0.1:1: no Ray cluster answers" in done.stderr
    assert "hint: start one with `ray start --head`" in done.stderr
