"""Checkpoints looked into: damage is said, differences are named, averages are means that open_clip reads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cli import main
from pipelines import checkpoints
from pipelines.errors import RecipeError
from pretrain.loop import checkpoint
from pretrain.model import encoder as towers
from tests.tiny import scenes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with three checkpoints of the tiny model, and an optimizer's moments."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    made = towers.build(scenes.write_model(folder))
    for samples in (16, 32, 48):
        weights = {
            n: w + 1e-3 * samples for n, w in made.weights(10.0).items() if w.is_floating_point()
        }
        content = {
            "model": {"name": made.name, "config": made.config},
            "state_dict": {**made.weights(10.0), **weights},
            "ema": {},
            "objective": {"0.log_scale": torch.tensor(2.3)},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3) * samples}}, "param_groups": []},
            "cursor": {"samples_seen": samples, "step": samples // 16, "phase": 0, "bad": {}},
            "settings": {"seed": 0, "phase.0.lr": 1e-3},
            "recipe": 'name = "tiny"\n',
            "data_hash": "abc",
            "data_sha256": "0123456789abcdef0123",
            "history": [{"samples_seen": 16, "changed": {"phase.0.lr": "was 1"}}] if samples > 32 else [],
        }  # fmt: skip
        checkpoint.save(str(folder), content, keep=9)
    return folder


def files(run: Path) -> list[str]:
    return checkpoint.committed(checkpoint.folder(str(run)))


def edited(source: str, target: Path, **change: object) -> str:
    """The checkpoint with other content, written as one of ours."""
    checkpoint.write(str(target), {**checkpoint.read(source), **change})
    return str(target)


def test_verify_says_what_is_inside(run: Path) -> None:
    text, fine = checkpoints.verify([str(run)])
    assert fine
    assert text.count(": whole") == 3
    for words in (
        "model tiny_32", "48 samples, step 3, phase 0", 'recipe "tiny", seed 0', "data abc, content 0123456789abcdef",
        "resumable: yes; holds objective, optimizer", "changed at 16 samples: {'phase.0.lr': 'was 1'}", "torch 2.",
    ):  # fmt: skip
        assert words in text


def test_verify_names_changed_bytes_and_figures_that_are_not_finite(
    run: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    with open(files(copied)[1], "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xfe")
    saved = checkpoint.read(files(copied)[2])
    saved["state_dict"]["visual.proj"][0, 0] = float("nan")
    checkpoint.write(files(copied)[2], saved)
    text, fine = checkpoints.verify([str(copied)])
    assert not fine
    assert f"{files(copied)[0]}: whole" in text
    assert f"{files(copied)[1]}: BAD: its bytes differ from those written" in text
    assert f"{files(copied)[2]}: BAD: not finite: state_dict.visual.proj (1 tensors)" in text
    result = CliRunner().invoke(main, ["checkpoint", "verify", str(copied)])
    assert result.exit_code == 1


def test_verify_a_file_that_is_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    text, fine = checkpoints.verify([str(tmp_path / "x.pt")])
    assert not fine
    assert "x.pt: can't be loaded" in text
    torch.save({"a": 1}, tmp_path / "y.pt")
    assert (
        "not a checkpoint of clip-pipe: no model" in checkpoints.verify([str(tmp_path / "y.pt")])[0]
    )
    alone = tmp_path / "alone.pt"
    shutil.copy(files(run)[0], alone)
    assert "no stamp beside it" in checkpoints.verify([str(alone)])[0]
    for path, words in (
        (tmp_path / "no", "no such file or folder"),
        (tmp_path, "no checkpoint in it"),
    ):
        with pytest.raises(RecipeError, match=words):
            checkpoints.verify([str(path)])


def test_equal_ones_are_equal(run: Path) -> None:
    text = checkpoints.diff(files(run)[0], files(run)[0])
    assert "settings: equal" in text
    assert "data_sha256: equal" in text
    assert not re.search(r"apart|only in|differ", text)


def test_diff_names_settings_and_the_tensors_furthest_apart(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.read(files(run)[2])
    weights = dict(saved["state_dict"])
    weights["visual.proj"] = weights["visual.proj"] + 0.5
    weights["extra"] = torch.zeros(2)
    weights["ln_final.weight"] = torch.zeros(3)
    other = edited(
        files(run)[2], tmp_path / "b.pt", state_dict=weights, settings={"seed": 1, "phase.0.lr": 1e-3}, data_hash="xyz",
    )  # fmt: skip
    text = checkpoints.diff(str(run), other)  # a run's folder is its newest
    assert "settings: 1 differ\n  seed: 0 / 1" in text
    assert "data_hash: 'abc' / 'xyz'" in text
    assert "  visual.proj: 0.5" in text
    assert "  extra: only in b" in text
    assert "  ln_final.weight: (64,) / (3,)" in text
    assert re.search(r"state_dict image: \d+ tensors, \d+ equal, at most 0.5 apart", text)
    assert re.search(r"state_dict text: (\d+) tensors, \1 equal\n", text)
    assert "optimizer: 1 tensors, 1 equal" in text


def test_the_average_is_the_mean_and_is_read_by_us_and_by_open_clip(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mean.pt"
    result = CliRunner().invoke(
        main, ["checkpoint", "average", str(run), "--last", "3", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"checkpoint": str(out), "averaged": files(run)}
    singles = [checkpoint.read(path)["state_dict"] for path in files(run)]
    mean = checkpoint.read(str(out))["state_dict"]
    for name, rows in mean.items():
        wanted = sum(one[name].double() for one in singles) / 3
        assert rows.dtype == singles[0][name].dtype
        torch.testing.assert_close(rows.double(), wanted.double(), atol=1e-6, rtol=1e-6)
    ours = towers.load(str(out))
    theirs = towers.import_open_clip().create_model(ours.name, pretrained=str(out))
    assert torch.equal(theirs.visual.proj, mean["visual.proj"])
    text, fine = checkpoints.verify([str(out)])
    assert fine
    assert "resumable: no, weights only" in text
    assert "average of " in text


def test_what_can_not_be_averaged(run: Path, tmp_path: Path) -> None:
    first, second, _ = files(run)
    out = str(tmp_path / "mean.pt")
    wrong = checkpoint.read(first)
    shapes = edited(
        first, tmp_path / "s.pt", state_dict={**wrong["state_dict"], "visual.proj": torch.zeros(2)}
    )
    model = edited(first, tmp_path / "m.pt", model={"name": "x", "config": {}})
    for paths, last, words in (
        ([first], 0, "one checkpoint\nhint: give several"),
        ([first, second], 2, "2 paths"),
        ([str(run)], 4, "has 3 checkpoints"),
        ([first, shapes], 0, "other tensors than .*visual.proj"),
        ([first, model], 0, "another model"),
    ):
        with pytest.raises(RecipeError, match=words):
            checkpoints.average(paths, out=out, last=last)
    stamp = tmp_path / "model.json"
    stamp.write_text("mine")
    own = str(tmp_path / "checkpoints" / "samples-mean.pt")
    for target, words in (
        (first, "000016.pt is there already"),
        (str(tmp_path / "model.pt"), "model.json is there already"),
        (own, "would take it for a checkpoint to resume from"),
    ):
        with pytest.raises(RecipeError, match=words):
            checkpoints.average([first, second], out=target, last=0)
    assert stamp.read_text() == "mine"


def test_damaged_ones_are_neither_averaged_nor_compared(run: Path, tmp_path: Path) -> None:
    first, second, _ = files(run)
    out, bad = str(tmp_path / "mean.pt"), tmp_path / "bad.pt"
    for name in (first, checkpoint.stamp_path(first)):
        shutil.copy(name, bad.with_suffix(Path(name).suffix))
    with bad.open("r+b") as file:
        file.seek(bad.stat().st_size // 2)
        file.write(b"\xff\xfe")
    for act in (
        lambda: checkpoints.average([second, str(bad)], out=out, last=0),
        lambda: checkpoints.diff(second, str(bad)),
        lambda: checkpoints.diff(str(bad), second),
    ):
        with pytest.raises(RecipeError, match=r"bad.pt: its bytes differ from those written"):
            act()
    weights = checkpoint.read(first)["state_dict"]
    weights["visual.proj"][0, 0] = float("inf")
    nan = edited(first, tmp_path / "nan.pt", state_dict=weights)
    with pytest.raises(RecipeError, match=r"nan.pt: not finite: state_dict.visual.proj"):
        checkpoints.average([second, nan], out=out, last=0)
    assert "not finite: state_dict.visual.proj (1 tensors)" in checkpoints.diff(second, nan)
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "no dict in it"),
        (torch.zeros(2), "no dict in it"),
        (
            {"model": 1, "state_dict": {}, "cursor": {}, "settings": {}},
            "no model, cursor.samples_seen",
        ),
        (
            {"state_dict": {"a": 1}},
            "no model, cursor, settings, tensors only under state_dict in it",
        ),
    ],
)
def test_what_looks_like_none_of_ours_is_said(
    content: object, words: str, run: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "odd.pt")
    torch.save(content, path)
    text, fine = checkpoints.verify([path])
    assert (fine, words in text) == (False, True), text
    for act in (
        lambda: checkpoints.diff(str(run), path),
        lambda: checkpoints.diff(path, str(run)),
        lambda: checkpoints.average([path, files(run)[0]], out=str(tmp_path / "o.pt"), last=0),
    ):
        with pytest.raises(RecipeError, match="not a checkpoint of clip-pipe"):
            act()


def test_a_foreign_one_is_diffed_though_it_says_less(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.read(files(run)[0])
    few = {name: saved[name] for name in ("model", "state_dict", "cursor", "settings")}
    torch.save(few, tmp_path / "few.pt")
    assert "data_hash: 'abc' / None" in checkpoints.diff(str(run), str(tmp_path / "few.pt"))


def test_two_runs_are_averaged_where_they_began_alike(run: Path, tmp_path: Path) -> None:
    first, second, _ = files(run)
    plain = {"seed": 0, "phase.0.lr": 1e-3}
    out = tmp_path / "mean.pt"
    for number, odd in enumerate(
        ({"seed": 1}, {"phase.0.objective.0.class": "Sigmoid"}, {"model": "x"})
    ):
        other = edited(second, tmp_path / f"o{number}.pt", settings={**plain, **odd})
        with pytest.raises(
            RecipeError, match=rf"of another run than .*: {next(iter(odd))} is .*\nhint:"
        ):
            checkpoints.average([first, other], out=str(out), last=0)
    told = {"pretrained": "w.pt", "phase.0.lr": 1e-4}
    a = edited(first, tmp_path / "a" / "a.pt", settings={"seed": 0, **told})
    b = edited(second, tmp_path / "b" / "b.pt", settings={"seed": 1, **told})
    checkpoints.average([a, b], out=str(out), last=0)
    one, two, mean = (
        checkpoint.read(path)["state_dict"]["visual.proj"] for path in (a, b, str(out))
    )
    torch.testing.assert_close(mean, (one + two) / 2)
