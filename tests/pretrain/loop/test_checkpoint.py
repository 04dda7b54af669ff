import dataclasses
import os

import pytest
import torch

from pretrain.loop import checkpoint
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.model.tweak.freeze import Freeze
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.view.crop import Crop


def content(samples_seen: int) -> dict:
    return {"cursor": {"samples_seen": samples_seen}, "state_dict": {"w": torch.arange(5)}}


def names(tmp_path) -> list[str]:
    return sorted(os.listdir(tmp_path / "checkpoints"))


def test_what_is_saved_is_read_and_the_oldest_go(tmp_path):
    out = str(tmp_path)
    assert checkpoint.newest(out) is None
    for samples_seen in (5, 10, 100):
        path = checkpoint.save(out, content(samples_seen), keep=2)
    assert checkpoint.newest(out) == path
    saved = checkpoint.read(path)
    assert saved["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4]
    assert saved["versions"]["torch"]
    assert names(tmp_path) == [
        f"samples-{n:012d}.{end}" for n in (10, 100) for end in ("json", "pt")
    ]


def test_a_damaged_one_is_passed_over_and_named(tmp_path):
    out = str(tmp_path)
    older = checkpoint.save(out, content(5), keep=3)
    newer = checkpoint.save(out, content(10), keep=3)
    with open(newer, "r+b") as file:
        file.seek(300)
        file.write(b"\xff\x00\xff")
    path, faults = checkpoint.newest_whole(out)
    assert path == older
    assert faults == [f"{newer}: its bytes differ from those written"]
    with open(older, "ab") as file:
        file.write(b"x")
    with pytest.raises(
        ValueError, match=r"no checkpoint to resume from: .*000010.pt: its bytes differ.*hint:"
    ):
        checkpoint.newest(out)


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleaned(tmp_path):
    out = str(tmp_path)
    kept = checkpoint.save(out, content(5), keep=3)
    folder = tmp_path / "checkpoints"
    (folder / "samples-000000000010.pt").write_bytes(b"no stamp yet")
    (folder / "samples-000000000011.pt.tmp-77").write_bytes(b"half")
    assert checkpoint.newest(out) == kept
    checkpoint.clean(out)
    assert names(tmp_path) == ["samples-000000000005.json", "samples-000000000005.pt"]


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code in a checkpoint was run",))

    torch.save(Bomb(), tmp_path / "bomb.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only|Unsupported"):
        checkpoint.read(str(tmp_path / "bomb.pt"))


def described(**change) -> dict:
    phase = Phase(
        samples=10, global_batch=2, view=(Crop(scale=(0.5, 1.0)),), tweak=(Freeze(tower="text"),),
        objective=((1.0, InfoNCE(init_temperature=0.1)),),
    )  # fmt: skip
    settings = TrainSettings(model="m", out="a", shards=(ShardSource(path="x"),), phase=(phase,))
    return checkpoint.describe(dataclasses.replace(settings, **change))


def test_settings_are_described_down_to_every_option():
    found = described()
    assert found["phase.0.view.0.use"] == "Crop"
    assert (found["phase.0.view.0.scale.0"], found["phase.0.view.0.scale.1"]) == (0.5, 1.0)
    assert found["phase.0.tweak.0.tower"] == "text"
    assert found["phase.0.objective.0.1.init_temperature"] == 0.1
    assert found["shards.0"] == 1.0


def test_what_decides_the_result_is_compared_and_the_rest_is_free():
    free = described(
        out="b",
        workers=7,
        checkpoint_minutes=1.0,
        log_every_steps=3,
        shards=(ShardSource(path="y"),),
    )
    assert checkpoint.changed(described(), free) == []
    found = checkpoint.changed(
        described(), described(model="n", shards=(ShardSource(path="x", weight=2.0),))
    )
    assert found == ["model: checkpoint has 'm', now 'n'", "shards.0: checkpoint has 1.0, now 2.0"]


def test_damaged_ones_are_set_aside_and_push_no_good_one_out(tmp_path):
    out = str(tmp_path)
    good = checkpoint.save(out, content(5), keep=3)
    for samples in (10, 15):
        with open(checkpoint.save(out, content(samples), keep=3), "ab") as file:
            file.write(b"x")
    path, faults = checkpoint.newest_whole(out)
    assert (path, len(faults)) == (good, 2)
    checkpoint.set_aside_newer(out, good)
    newest = checkpoint.save(out, content(10), keep=1)
    assert checkpoint.newest(out) == newest
    assert len(list((tmp_path / "checkpoints").glob("damaged-samples-*.pt"))) == 2
