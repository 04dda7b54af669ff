"""How commands end badly: the message, the hint and the exit code; options made by rows."""

from __future__ import annotations

import signal
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipelines import command_line
from pipelines.errors import RecipeError, RunFailed, Stopped


def ended(fault: BaseException) -> tuple[int, str]:
    @click.group(cls=command_line.Group)
    def main() -> None: ...

    @main.command()
    def go() -> None:
        raise fault

    result = CliRunner().invoke(main, ["go"])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (RecipeError("a.b", "odd", "do c"), 2, "error: a.b: odd\nhint: do c\n"),
        (RunFailed("it broke"), 1, "error: it broke\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            1,
            "error: x: No such file or directory\n",
        ),
        (OSError(28, "No room", "x"), 1, "error: x: No room\nhint: make room"),
        (OSError("s3://b/x: away. hint: wait"), 1, "error: s3://b/x: away\nhint: wait\n"),
        (Stopped(15), 143, "stopped. Everything committed is kept"),
    ],
)
def test_faults_become_messages_and_codes(fault: BaseException, code: int, message: str) -> None:
    found, told = ended(fault)
    assert found == code
    assert told.startswith(message)


def test_signals_become_stopped_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop, command_line.signals():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_by_rows() -> None:
    got: dict[str, Any] = {}

    @click.command()
    @command_line.options(
        ("--word", "w", "A word."),
        ("--many", (), "Words."),
        ("--switch", False, "On."),
        ("--size", 5, "N."),
    )
    @command_line.count("--ranks", "N.", 1)
    def command(**options: Any) -> None:
        got.update(options)

    invoked = CliRunner().invoke(command, ["--many", "a", "--many", "b", "--switch"])
    assert invoked.exit_code == 0, invoked.output
    assert got == {"word": "w", "many": ("a", "b"), "switch": True, "size": 5, "ranks": 1}
    assert CliRunner().invoke(command, ["--size", "-1"]).exit_code == 2
    assert CliRunner().invoke(command, ["--ranks", "0"]).exit_code == 2


def test_local_and_a_cluster_are_two_places() -> None:
    with pytest.raises(click.UsageError, match="neither --address nor --workers"):
        command_line.one_place({"local": True, "address": "auto", "workers": 0})
    place = {"local": True, "address": "", "workers": 0}
    assert command_line.one_place({**place}) == {**place, "patience": (0.0, 600.0)}
    patient = {**place, "task_deadline": 7.0, "wait_for_resources": 0.0}
    assert command_line.one_place(patient) == {**place, "patience": (7.0, 0.0)}
