import json
import tempfile
from importlib.util import find_spec

import pytest

from curate.contract import storage
from pretrain.loop import log as log_module
from pretrain.loop.log import MetricsLog

NAN = float("nan")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_and_beyond_the_cursor_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(str(path))
    log.rewind(0)  # nothing there yet
    for samples_seen in (10, 20, 30):
        log.write({"samples_seen": samples_seen, "loss": 1 / 3})
    log.rewind(20)
    log.write({"samples_seen": 30, "loss": 0.5})
    assert [line["samples_seen"] for line in lines(path)] == [10, 20, 30]
    assert lines(path)[-1]["loss"] == 0.5
    assert lines(path)[0]["loss"] == 1 / 3


def test_half_a_line_of_a_killed_process_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for torn in (
        '{"samples_seen": 20',
        "\n",
        "[1]\n",
        '{"samples_seen": "a"}\n',
        '{"samples_seen": [2]}\n',
    ):
        path.write_text('{"samples_seen": 10}\n' + torn)
        MetricsLog(str(path)).rewind(100)
        assert lines(path) == [{"samples_seen": 10}]


def test_figures_of_evaluations_stay_unless_they_belong_to_what_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"samples_seen": 10}\n{"eval": "a"}\n{"samples_seen": 20}\n{"eval": "b"}\n')
    MetricsLog(str(path)).rewind(10)
    assert lines(path) == [{"samples_seen": 10}, {"eval": "a"}]
    older = {"eval": "c", "samples_seen": 10}  # made when the run stood at 20 already
    path.write_text('{"samples_seen": 10}\n{"samples_seen": 20}\n' + json.dumps(older) + "\n")
    MetricsLog(str(path)).rewind(10)
    assert lines(path) == [{"samples_seen": 10}, older]


def test_figures_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    figures = {"loss": float("nan"), "grad_norm_image": float("inf"), "lr": 0.5}
    MetricsLog(str(path)).write({"samples_seen": 10, **figures})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "samples_seen": 10, "loss": None, "grad_norm_image": None, "lr": 0.5,
    }  # fmt: skip


def test_followers_get_the_numbers_by_samples(tmp_path):
    class Heard:
        def __init__(self) -> None:
            self.lines: list[tuple[int, dict]] = []
            self.failed = None

        def write(self, figures, samples_seen):
            self.lines.append((samples_seen, figures))

        def close(self, failed):
            self.failed = failed

    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    heard = Heard()
    log.trackers.append(heard)
    log.write(
        {"samples_seen": 10, "step": 1, "loss": 0.5, "mfu": None, "bottleneck": "compute-bound"}
    )
    log.close(failed=True)
    assert heard.lines == [(10, {"step": 1.0, "loss": 0.5})]
    assert heard.failed
    assert lines(tmp_path / "metrics.jsonl")[0]["mfu"] is None


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_shows_nothing_beyond_the_point_of_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # The second attempt resumes a run that was killed before its first checkpoint.
    for start, steps, resumed in (
        (0, (10, 50), False),
        (0, (10, 20, 30), True),
        (20, (30, 40), True),
    ):
        log = MetricsLog(str(tmp_path / "metrics.jsonl"))
        log.follow(("tensorboard",), start, {"lr": 0.1}, resumed=resumed)
        for step in steps:
            log.write({"samples_seen": step, "loss": step + start / 100})
        log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, round(event.value, 1)) for event in found] == [
        (10, 10.0), (20, 20.0), (30, 30.2), (40, 40.2),
    ]  # fmt: skip


def test_a_logger_that_is_not_there_is_told_before_the_run(monkeypatch):
    with pytest.raises(ValueError, match=r"no logger 'mlflow'. hint: tensorboard or wandb"):
        log_module.check(("mlflow",))
    monkeypatch.setattr(log_module.importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ValueError, match=rf"{name} is not installed. hint: pip install"):
            log_module.check((name,))


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """A stand-in for the service: what is asked of it, and that a run that began anew has a new id."""
    import wandb

    asked, runs = [], []

    class Run:
        def __init__(self, id):
            self.id, self.lines, self.code = id, [], None

        def define_metric(self, *names, **how):
            pass

        def log(self, figures):
            self.lines.append(figures)

        def finish(self, exit_code):
            self.code = exit_code

    def init(**options):
        asked.append(options)
        runs.append(Run(options["id"] or f"id{len(asked)}"))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    for samples_seen, resumed in ((0, False), (20, True), (0, True), (0, False)):
        log = MetricsLog(str(tmp_path / "metrics.jsonl"))
        log.follow(("wandb",), samples_seen, {"phase.0.lr": 0.1}, resumed=resumed)
        log.write({"samples_seen": samples_seen + 10, "loss": 0.5})
        log.close()
    assert [options["id"] for options in asked] == [None, "id1", "id1", None]
    assert asked[1]["resume"] == "allow"
    assert asked[0]["config"]["phase.0.lr"] == 0.1
    assert runs[1].lines == [{"loss": 0.5, "samples_seen": 30}]
    assert [run.code for run in runs] == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    log.follow(("wandb",), 0, {"phase.0.lr": 0.1})
    log.write({"samples_seen": 10, "loss": 0.5})
    log.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] in path.name


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_figures_of_evaluations_and_loses_no_others(tmp_path):
    """Of an older checkpoint, while the run's own events go further; a resume drops what lies beyond it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown(tag):
        found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        return [(e.step, round(e.value, 3)) for e in found.Scalars(tag)]

    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    log.follow(("tensorboard",), 0, {})
    for samples in (10, 20, 30):
        log.write({"samples_seen": samples, "loss": samples / 10})
    figures = {"zero_shot.cifar10": {"top1": 0.25, "n_images": 100, "nothing": NAN, "none": None}}
    log_module.evaluated(str(tmp_path), ("tensorboard",), 20, figures)
    log_module.evaluated(str(tmp_path), ("tensorboard",), 30, figures, ema=True)
    log.write({"samples_seen": 40, "loss": 4.0})
    log.close()
    assert shown("loss") == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
    assert shown("eval/zero_shot.cifar10.top1") == [(20, 0.25)]
    assert shown("eval/zero_shot.cifar10.n_images") == [(20, 100)]
    assert shown("eval_ema/zero_shot.cifar10.top1") == [(30, 0.25)]
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert not [tag for tag in tags if tag.endswith(("nothing", "none"))]


def test_a_logger_that_can_not_be_told_of_an_evaluation_costs_a_warning_only(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(log_module.importlib.util, "find_spec", lambda name: None)
    log_module.evaluated(str(tmp_path), ("tensorboard", "wandb"), 20, {"a": {"top1": 0.5}})
    assert [("tensorboard is not installed" in r.message, "wandb is not installed" in r.message) for r in caplog.records] == [(True, False), (False, True)]  # fmt: skip
    caplog.clear()
    log_module.evaluated(str(tmp_path), ("tensorboard",), 20, {"a": {"top1": NAN}})
    assert not caplog.records


def test_wandb_is_told_in_the_known_run_and_only_while_nobody_trains(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(log_module, "check", lambda loggers, out: None)
    heard = []

    class Heard:
        def __init__(self, out, begun, settings):
            heard.append(("begun", begun))

        def write(self, figures, samples_seen):
            heard.append((samples_seen, figures))

        def close(self, failed):
            heard.append(("closed", failed))

    monkeypatch.setitem(log_module._TRACKERS, "wandb", Heard)
    log_module.evaluated(str(tmp_path), ("wandb",), 20, {"a": {"top1": 0.5}})
    assert heard == [("begun", 20), (20, {"eval/a.top1": 0.5}), ("closed", False)]
    from pretrain.loop import lock

    held = lock.take(str(tmp_path))
    log_module.evaluated(str(tmp_path), ("wandb",), 20, {"a": {"top1": 0.5}})
    held.release()
    assert len(heard) == 3
    assert "is being trained into" in caplog.records[-1].message
    log_module.evaluated(str(tmp_path), ("wandb",), 20, {"a": {"top1": 0.5}})
    assert len(heard) == 6


def test_behind_a_url_the_file_is_cut_grown_and_noted_in_as_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = f"memory://log-{tmp_path.name}"
    path = f"{out}/metrics.jsonl"
    for attempt in range(2):
        log = MetricsLog(path)
        log.rewind(20)
        log.note({"samples_seen": 20, "changed": {"a": "b"}})
        log.write({"samples_seen": 30, "loss": 0.5})
        if not attempt:
            log.write({"samples_seen": 10, "eval": "late"})
        log.close()
    found = [json.loads(line) for line in storage.read_text(path).splitlines()]
    assert found == [
        {"samples_seen": 20, "changed": {"a": "b"}}, {"samples_seen": 10, "eval": "late"}, {"samples_seen": 30, "loss": 0.5},
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"can only be written to a disk, .* hint: leave it out"):
        log.follow(("tensorboard",), 0, {})
