import dataclasses
import json
import os
import re
import signal
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
import torch

from curate.contract import storage
from pretrain.loop import checkpoint, train
from pretrain.loop.job import TrainingStopped
from pretrain.loop.meter import TIMED
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.model import encoder as towers
from pretrain.model.tweak.freeze import Freeze
from pretrain.objective.base import Comm, Features
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.device_decode import each
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import jpegs, scenes

BATCH = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with shards of 40 scenes with rewrites, and the tiny model's configuration."""
    folder = tmp_path_factory.mktemp("train")
    scenes.write_shards(folder / "shards", 40, rewrite_count=3)
    scenes.write_model(folder)
    return folder


def settings(world: Path, out: Path, *phases: Phase, **change) -> TrainSettings:
    options = {
        "precision": "fp32",
        "workers": 0,
        "log_every_steps": 1,
        "keep_checkpoints": 9,
        **change,
    }
    return TrainSettings(
        model=str(world / "tiny_32.json"),
        out=str(out),
        phase=phases or (phase(),),
        **{"shards": (ShardSource(path=str(world / "shards")),), **options},
    )


def phase(**change) -> Phase:
    return Phase(
        **{
            "samples": 6 * BATCH,
            "global_batch": BATCH,
            "lr": 2e-3,
            "warmup_samples": 2 * BATCH,
            **change,
        }
    )


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def figures(out: Path) -> list[dict]:
    """Every line without what is timed."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines(out)]


def weights(path: str) -> dict[str, torch.Tensor]:
    return checkpoint.read(path)["state_dict"]


@pytest.fixture(scope="module")
def undisturbed(world) -> tuple[Path, str]:
    """(folder, checkpoint) of a run of two phases, one tower frozen in the second."""
    out = world / "undisturbed"
    result = train.run(
        settings(world, out, *two_phases()), seed=0, recipe_text="# recipe\n", data_hash="abc"
    )
    assert not result.interrupted
    return out, result.checkpoint


def two_phases() -> tuple[Phase, Phase]:
    return phase(view=(Crop(scale=(0.5, 1.0)), CaptionMix())), phase(
        samples=4 * BATCH, tweak=(Freeze(tower="image"),)
    )


def test_a_run_writes_what_the_contract_says(undisturbed):
    out, path = undisturbed
    found = lines(out)
    assert [line["samples_seen"] for line in found] == [BATCH * n for n in range(1, 11)]
    assert [line["step"] for line in found] == list(range(1, 11))
    assert [line["phase"] for line in found] == [0] * 6 + [1] * 4
    needed = {
        "loss",
        "logit_scale",
        "lr",
        "samples_per_s",
        "data_wait_frac",
        "bad_samples",
        "grad_norm_image",
        "grad_norm_text",
        "batch_accuracy",
    }
    assert all(needed <= set(line) for line in found)
    assert [line["lr"] for line in found[:2]] == [1e-3, 2e-3]
    assert found[5]["lr"] == pytest.approx(0, abs=1e-12)
    assert all(line["grad_norm_image"] > 0 for line in found[:6])
    assert all(line["grad_norm_image"] == 0 for line in found[6:])
    assert (out / "recipe.toml").read_text() == "# recipe\n"
    saved = checkpoint.read(path)
    assert (saved["data_hash"], saved["recipe"], saved["cursor"]["samples_seen"]) == (
        "abc",
        "# recipe\n",
        160,
    )
    assert towers.load(path).embed_dim == 64


@pytest.mark.parametrize("stops", [(6,), (8,), (2, 5, 9)])
def test_stopped_and_resumed_is_bit_for_bit_the_undisturbed_run(
    world, undisturbed, tmp_path, stops
):
    for number, stop in enumerate(stops):
        result = train.run(
            settings(world, tmp_path, *two_phases()),
            seed=0,
            resume=number > 0,
            stop_after_samples=stop * BATCH,
        )
        assert (result.interrupted, result.samples_seen) == (True, stop * BATCH)
    # Loader processes and the log's rhythm are free to change.
    result = train.run(settings(world, tmp_path, *two_phases(), workers=1), seed=0, resume=True)
    assert not result.interrupted
    assert figures(tmp_path) == figures(undisturbed[0])
    expected = weights(undisturbed[1])
    assert all(
        torch.equal(rows, expected[name]) for name, rows in weights(result.checkpoint).items()
    )


def test_a_finished_run_resumed_does_nothing(world, undisturbed):
    before = (undisturbed[0] / "metrics.jsonl").read_bytes()
    result = train.run(settings(world, undisturbed[0], *two_phases()), seed=0, resume=True)
    assert (result.checkpoint, result.interrupted, result.samples_seen) == (
        undisturbed[1],
        False,
        160,
    )
    assert (undisturbed[0] / "metrics.jsonl").read_bytes() == before


def test_a_damaged_newest_checkpoint_costs_only_the_time_since_the_one_before(
    world, undisturbed, tmp_path, caplog
):
    train.run(settings(world, tmp_path, *two_phases()), seed=0, stop_after_samples=2 * BATCH)
    newer = train.run(
        settings(world, tmp_path, *two_phases()), seed=0, resume=True, stop_after_samples=4 * BATCH
    )
    with open(newer.checkpoint, "r+b") as file:
        file.truncate(1000)
    train.run(settings(world, tmp_path, *two_phases()), seed=0, resume=True)
    assert figures(tmp_path) == figures(undisturbed[0])
    assert f"{newer.checkpoint}: its bytes differ" in caplog.text


def test_killed_without_warning_and_resumed(world, undisturbed, tmp_path):
    # Lines were written after the last checkpoint, the last one half; no other trace is left.
    train.run(settings(world, tmp_path, *two_phases()), seed=0, stop_after_samples=3 * BATCH)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 4, "samples_seen": 4 * BATCH, "loss": 0.0}) + '\n{"step": 5, "sam'
        )
    train.run(settings(world, tmp_path, *two_phases()), seed=0, resume=True)
    assert figures(tmp_path) == figures(undisturbed[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_run_that_resumes(world, undisturbed, tmp_path, number):
    def at_step_four(line):
        if line["step"] == 4:
            os.kill(os.getpid(), number)

    told = settings(world, tmp_path, *two_phases(), workers=1)
    result = train.run(told, seed=0, progress=at_step_four)
    assert (result.interrupted, result.samples_seen) == (True, 4 * BATCH)
    assert not train.run(told, seed=0, resume=True).interrupted
    assert figures(tmp_path) == figures(undisturbed[0])


def test_checkpoints_come_with_the_clock_and_the_oldest_go(world, tmp_path):
    train.run(settings(world, tmp_path, checkpoint_minutes=0.0, keep_checkpoints=2), seed=0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert kept == [f"samples-{5 * BATCH:012d}.pt", f"samples-{6 * BATCH:012d}.pt"]


def test_a_used_folder_and_a_changed_run_are_refused(world, undisturbed, tmp_path):
    out = undisturbed[0]
    good = settings(world, out, *two_phases())
    with pytest.raises(
        ValueError, match=r"already holds a run \(metrics.jsonl\). hint: go on with --resume"
    ):
        train.run(good, seed=0)
    changed = dataclasses.replace(
        good, phase=(dataclasses.replace(good.phase[0], lr=1.0), good.phase[1])
    )
    with pytest.raises(
        ValueError, match=r"phase.0.lr: checkpoint has 0.002, now 1.0. hint: undo the change"
    ):
        train.run(changed, seed=0, resume=True)
    with pytest.raises(ValueError, match="seed: checkpoint has 0, now 1"):
        train.run(good, seed=1, resume=True)
    with pytest.raises(ValueError, match="data: checkpoint has manifest abc, now xyz"):
        train.run(good, seed=0, data_hash="xyz", resume=True)
    other = scenes.write_shards(tmp_path / "shards", 40, rewrite_count=2)
    with pytest.raises(
        ValueError, match="data: the content of shards or sidecars is not what the checkpoint was"
    ):
        train.run(
            dataclasses.replace(good, shards=(ShardSource(path=str(other)),)), seed=0, resume=True
        )


def test_a_change_that_is_allowed_goes_on_and_is_written_down(world, tmp_path, caplog):
    short = phase(samples=3 * BATCH, weight_decay=0.2)
    train.run(settings(world, tmp_path, short, ema_decay=0.9), seed=0, recipe_text="# short\n")
    # Longer, with another decay, and batches of another size from here on.
    longer = phase(samples=9 * BATCH, weight_decay=0.01, global_batch=2 * BATCH)
    told = settings(world, tmp_path, longer, ema_decay=0.9, compile="off")
    with pytest.raises(ValueError, match=r"--allow-change phase.0.global_batch"):
        train.run(told, seed=0, resume=True, allow_changes=["phase.0.samples"])
    result = train.run(
        told,
        seed=0,
        resume=True,
        recipe_text="# longer\n",
        allow_changes=["phase.0", "no.such"],
    )
    assert (result.samples_seen, result.interrupted) == (9 * BATCH, False)
    assert "--allow-change no.such: nothing of that name changed" in caplog.text
    found = lines(tmp_path)
    assert [line.get("step", "note") for line in found] == [1, 2, 3, "note", 4, 5, 6]
    assert found[3]["changed"]["phase.0.weight_decay"] == "checkpoint has 0.2, now 0.01"
    saved = checkpoint.read(result.checkpoint)
    assert saved["history"] == [found[3]]
    assert [group["weight_decay"] for group in saved["optimizer"]["param_groups"]] == [0.01, 0.0]
    assert (tmp_path / "recipe.toml").read_text() == "# longer\n"
    again = train.run(told, seed=0, resume=True)  # it is now the run's own
    assert again.checkpoint == result.checkpoint


def test_a_change_that_can_not_be_gone_on_with_is_said(world, tmp_path):
    train.run(settings(world, tmp_path, phase(samples=2 * BATCH)), seed=0)
    frozen = phase(samples=4 * BATCH, tweak=(Freeze(tower="text"),))
    with pytest.raises(ValueError, match=r"does not fit the run as it is now: .*hint: put another"):
        train.run(settings(world, tmp_path, frozen), seed=0, resume=True, allow_changes=["phase"])


def test_milestones_stay_whatever_comes_after(world, tmp_path):
    told = settings(world, tmp_path, keep_every_samples=2 * BATCH, keep_checkpoints=1)
    train.run(told, seed=0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert kept == [f"samples-{n * BATCH:012d}.pt" for n in (2, 4, 6)]


def test_a_run_that_ends_on_a_fault_still_puts_what_is_being_written(world, tmp_path, monkeypatch):
    """Behind a URL: with its metrics, which are closed after it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = f"memory://fault-{uuid.uuid4().hex}"
    may, real = threading.Event(), checkpoint.write

    def slow(*arguments, **more):
        may.wait(30)
        real(*arguments, **more)

    def fail(line):
        if line["step"] == 2:
            threading.Timer(0.2, may.set).start()
            raise OSError("the terminal is gone")

    monkeypatch.setattr(checkpoint, "write", slow)
    told = dataclasses.replace(settings(world, out), keep_every_samples=BATCH)
    with pytest.raises(OSError, match="the terminal is gone"):
        train.run(told, seed=0, progress=fail)
    assert checkpoint.newest(out).endswith(f"{BATCH:012d}.pt")
    assert len(storage.read_text(f"{out}/metrics.jsonl").splitlines()) == 2
    storage.remove(out)


def test_a_checkpoint_that_can_not_be_written_stops_the_run_with_its_reason(
    world, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(TrainingStopped, match=r"no checkpoint can be .*No space left.*hint: make"):
        train.run(settings(world, tmp_path, checkpoint_minutes=0.0), seed=0)
    assert len(lines(tmp_path)) <= 3


def test_resume_of_an_empty_folder_begins(world, tmp_path):
    result = train.run(settings(world, tmp_path / "new", phase(samples=BATCH)), seed=0, resume=True)
    assert result.samples_seen == BATCH


def test_bad_samples_are_replaced_counted_and_said(world, tmp_path, caplog):
    scenes.write_shards(
        tmp_path / "shards", 40, change=lambda n, m: [("png", b"x"), *m[1:]] if n == 5 else m
    )
    told = settings(world, tmp_path / "out", phase(samples=5 * BATCH))
    result = train.run(
        dataclasses.replace(told, shards=(ShardSource(path=str(tmp_path / "shards")),)), seed=0
    )
    assert result.bad == {"picture.not_decodable": 2}  # 80 samples are two epochs of 40
    assert lines(tmp_path / "out")[-1]["bad_samples"] == 2
    assert lines(tmp_path / "out")[-1]["bad_by_kind"] == {"picture.not_decodable": 2}
    said = lines(tmp_path / "out")[-1]["bad_examples"]["picture.not_decodable"]
    where = rf"00000.tar: sample {scenes.uid(5)}: its picture at byte \d+: "
    assert re.match(where, said)
    assert [r.message for r in caplog.records] == [f"bad sample (picture.not_decodable): {said}"]


def test_a_set_that_lost_much_is_refused_and_its_damage_named(world, tmp_path, caplog):
    folder = scenes.write_shards(tmp_path / "shards", 40)
    (folder / "index.parquet").unlink()
    for name in ("00000.tar", "00001.tar"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 10])
    source = (ShardSource(path=str(folder)),)
    told = settings(world, tmp_path / "out", phase(samples=BATCH), shards=source)
    message = (
        r"samples are lost, more than max_bad_frac = 0.01: 00000.tar: .*; 00001.tar: .*hint: repair"
    )
    with pytest.raises(ValueError, match=message):
        train.run(told, seed=0)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    result = train.run(dataclasses.replace(told, max_bad_frac=1.0), seed=0)
    assert result.samples_seen == BATCH
    size = (folder / "00001.tar").stat().st_size
    named = rf"00001.tar: bytes \d+ to {size} hold no sample: .*byte.*; what follows is lost"
    assert sum(bool(re.fullmatch(named, r.message)) for r in caplog.records) == 1


def test_a_set_smaller_than_a_batch_is_warned_of(world, tmp_path, caplog):
    source = (ShardSource(path=str(scenes.write_shards(tmp_path / "shards", BATCH - 1))),)
    train.run(settings(world, tmp_path / "out", phase(samples=BATCH), shards=source), seed=0)
    told = (
        f"{source[0].path}: {BATCH - 1} samples, and of each global batch {BATCH} are drawn from it"
    )
    assert [r.message.partition(": a batch")[0] for r in caplog.records] == [told]


def test_a_set_whose_shards_are_cut_is_refused_by_its_index(world, tmp_path):
    folder = scenes.write_shards(tmp_path / "shards", 40)
    os.truncate(folder / "00000.tar", (folder / "00000.tar").stat().st_size // 2)
    told = settings(
        world, tmp_path / "out", phase(samples=BATCH), shards=(ShardSource(path=str(folder)),)
    )
    message = (
        r"samples are lost, more than max_bad_frac = 0.01: 00000.tar: ends at byte .*hint: repair"
    )
    with pytest.raises(ValueError, match=message):
        train.run(told, seed=0)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1, "none usable; the first"),
        (3, r"more than max_bad_frac = 0.01; for example 0000\d.tar: sample"),
    ],
)
def test_too_many_bad_samples_stop_the_run_and_say_which(world, tmp_path, share, message):
    scenes.write_shards(tmp_path / "shards", 40, change=lambda n, m: m[:1] if n % share == 0 else m)
    wrong = dataclasses.replace(
        settings(world, tmp_path / "out"), shards=(ShardSource(path=str(tmp_path / "shards")),)
    )
    with pytest.raises(TrainingStopped, match=message) as fault:
        train.run(wrong, seed=0)
    assert "hint:" in str(fault.value)


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path):
    message = (
        r"step \d+: the (loss is|weights are) not finite.*hint: in this order:.*a lower phase.0.lr"
    )
    with pytest.raises(TrainingStopped, match=message):
        train.run(settings(world, tmp_path, phase(lr=1e30, warmup_samples=0)), seed=0)
    found = json.loads((tmp_path / "not_finite.json").read_text())
    assert len(found["keys"]) == BATCH
    assert found["positions"][0] == (found["step"] - 1) * BATCH
    assert all(line["loss"] == line["loss"] for line in lines(tmp_path))


def test_several_terms_are_summed_by_weight_and_reported_apart(world, tmp_path):
    objective = ((1.0, InfoNCE()), (0.5, InfoNCE(init_temperature=0.5)))
    train.run(settings(world, tmp_path, phase(samples=BATCH, objective=objective)), seed=0)
    (line,) = lines(tmp_path)
    assert line["loss"] == pytest.approx(
        line["infonce.0.loss"] + 0.5 * line["infonce.1.loss"], rel=1e-6
    )
    assert line["logit_scale"] == pytest.approx(1 / 0.07, rel=0.01)


def test_half_precision_trains_and_clipping_bounds_the_step(world, tmp_path):
    train.run(settings(world, tmp_path, phase(grad_clip_norm=0.1), precision="bf16"), seed=0)
    assert all(line["loss"] < 10 for line in lines(tmp_path))
    saved = checkpoint.read(checkpoint.newest(str(tmp_path)) or "")
    assert saved["state_dict"]["visual.proj"].dtype == torch.float32


def test_it_learns_64_pairs_by_heart(world, tmp_path):
    # methods T6: R@1 = 1 in under 300 steps.
    scenes.write_shards(tmp_path / "shards", 64)
    told = settings(
        world, tmp_path / "out",
        Phase(samples=80 * 64, global_batch=64, lr=1e-3, warmup_samples=640, view=(Crop(scale=(1, 1)), CaptionMix())),
    )  # fmt: skip
    result = train.run(
        dataclasses.replace(
            told, shards=(ShardSource(path=str(tmp_path / "shards")),), log_every_steps=50
        ),
        seed=0,
    )
    encoder = towers.load(result.checkpoint)
    from pretrain.stream.picture import decode_rgb

    with torch.no_grad():
        images = encoder.encode_image(
            torch.stack([torch.from_numpy(decode_rgb(scenes.picture(n))) for n in range(64)])
        )
        texts = encoder.encode_text(encoder.tokenize([scenes.caption(n) for n in range(64)]))
        term = InfoNCE()
        _, found = term(Features({"image:pooled": images, "text:pooled": texts}), Comm(), 0)
    assert float(found["batch_accuracy"]) == 1.0


@pytest.fixture
def decoding_folder(world, tmp_path, monkeypatch) -> dict:
    """Settings of a run over JPEGs, and a decoder of the device's that refuses every fifth one."""
    monkeypatch.setattr(
        train, "nvjpeg", lambda device: each(jpegs.OnTheCpu(lambda data: sum(data) % 5 == 0))
    )
    source = ShardSource(path=str(jpegs.write_shards(tmp_path / "jpegs", 20)))
    return {"shards": (source,), "augment": "device", "decode": "device"}


def test_a_run_that_decodes_on_the_device_resumes_bit_for_bit(world, tmp_path, decoding_folder):
    told = settings(world, tmp_path / "out", phase(samples=3 * BATCH), **decoding_folder)
    assert train.run(told, seed=0, stop_after_samples=2 * BATCH).interrupted
    parts = train.run(dataclasses.replace(told, workers=1), seed=0, resume=True)
    # This decoder has the loaders' own pixels.
    other = dataclasses.replace(told, out=str(tmp_path / "worker"), decode="worker")
    whole = train.run(other, seed=0)
    assert figures(tmp_path / "out") == figures(tmp_path / "worker")
    expected = weights(whole.checkpoint)
    assert all(torch.equal(rows, expected[n]) for n, rows in weights(parts.checkpoint).items())


def test_who_decodes_is_part_of_a_run(world, tmp_path, decoding_folder):
    told = settings(world, tmp_path / "out", phase(samples=2 * BATCH), **decoding_folder)
    train.run(told, seed=0, stop_after_samples=BATCH)
    other = dataclasses.replace(told, decode="worker")
    with pytest.raises(
        ValueError, match=r"decode: checkpoint has 'device', now 'worker'.*--allow-change decode"
    ):
        train.run(other, seed=0, resume=True)
    assert not train.run(other, seed=0, resume=True, allow_changes=["decode"]).interrupted


def test_decoding_on_a_device_that_is_not_there_is_refused_before_anything_is_written(
    world, tmp_path
):
    told = settings(world, tmp_path / "out", augment="device", decode="device")
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match=r'train.decode = "device", and there is no CUDA device'
        ):
            train.run(told, seed=0)
        assert not (tmp_path / "out").exists()
