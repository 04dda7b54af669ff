import dataclasses
import os

import pytest
import torch

from curate.contract import disk
from pretrain.loop import checkpoint
from pretrain.loop.settings import Phase, ShardSource, Sidecar, TrainSettings
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


def test_only_temporary_names_are_cleaned_away(tmp_path):
    out = str(tmp_path)
    kept = checkpoint.save(out, content(5), keep=3)
    folder = tmp_path / "checkpoints"
    (folder / "samples-000000000010.pt").write_bytes(b"no stamp")
    (folder / "samples-000000000012.json").write_text("no file")
    (folder / "samples-000000000011.pt.tmp-77").write_bytes(b"half")
    before = set(names(tmp_path))
    checkpoint.clean(out)
    assert before - set(names(tmp_path)) == {"samples-000000000011.pt.tmp-77"}
    path, (fault,) = checkpoint.newest_whole(out)
    assert path == kept
    assert "000010.pt: no stamp (.json) beside it" in fault


def test_what_nothing_vouches_for_is_set_aside_and_never_taken_for_no_run(tmp_path):
    out = str(tmp_path)
    for samples in (5, 10):
        kept = checkpoint.save(out, content(samples), keep=3)
    for _ in range(2):  # twice the same name: the first one set aside stays
        with open(checkpoint.save(out, content(20), keep=9), "rb") as file:
            data = file.read()
        (tmp_path / "checkpoints" / "samples-000000000020.json").unlink()
        assert checkpoint.newest(out) == kept
        checkpoint.set_aside_newer(out, kept)
    aside = [name for name in names(tmp_path) if name.startswith("unstamped-")]
    assert aside == ["unstamped-1-samples-000000000020.pt", "unstamped-samples-000000000020.pt"]
    assert (tmp_path / "checkpoints" / aside[0]).read_bytes() == data
    for path in (tmp_path / "checkpoints").glob("*.json"):
        path.unlink()
    before = names(tmp_path)
    with pytest.raises(
        ValueError, match=r"000010.pt: no stamp .*000005.pt: no stamp .*hint: bring back"
    ):
        checkpoint.newest_whole(out)
    assert names(tmp_path) == before


def test_at_no_moment_is_there_a_file_without_its_stamp(tmp_path, monkeypatch):
    """Every change of the folder is a moment at which the process may be killed."""
    out, folder = str(tmp_path), tmp_path / "checkpoints"
    seen = 0

    def looked(act):
        def then(*arguments):
            nonlocal seen
            act(*arguments)
            seen += 1
            for path in folder.glob("samples-*.pt"):
                assert '"sha256"' in path.with_suffix(".json").read_text()
            for path in folder.glob("samples-*.json"):
                assert '"sha256"' in path.read_text()

        return then

    for name in ("replace", "remove"):
        monkeypatch.setattr(os, name, looked(getattr(os, name)))
    for samples in (5, 10, 15):
        checkpoint.save(out, content(samples), keep=1)
    assert seen == 3 * 2 + 2 * 2


def test_a_full_disk_is_told_in_its_own_words_and_leaves_the_last_one(tmp_path, monkeypatch):
    out = str(tmp_path)
    kept = checkpoint.save(out, content(5), keep=3)

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 100_000

        def write(self, data):
            self.left -= len(memoryview(data).cast("B"))
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = open
    monkeypatch.setattr(disk, "open", lambda path, mode: Full(real(path, mode)), raising=False)
    monkeypatch.setattr(Full, "__enter__", lambda self: self, raising=False)
    monkeypatch.setattr(Full, "__exit__", lambda self, *_: self.file.close(), raising=False)
    big = {**content(10), "w": torch.zeros(100_000)}
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(out, big, keep=3)
    monkeypatch.undo()
    assert checkpoint.newest(out) == kept
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
        compile="on",
        activation_checkpointing=True,
    )
    assert checkpoint.changed(described(), free) == {}
    found = checkpoint.changed(
        described(), described(model="n", shards=(ShardSource(path="x", weight=2.0),))
    )
    assert found == {
        "model": "checkpoint has 'm', now 'n'",
        "shards.0": "checkpoint has 1.0, now 2.0",
    }
    bigger = Phase(samples=10, global_batch=2, micro_batch=1)
    assert not [name for name in described(phase=(bigger,)) if "micro_batch" in name]


def test_of_sidecars_the_place_is_free_and_their_use_is_not():
    def beside(path: str, use: str) -> dict:
        return described(sidecar=(Sidecar(path=path, use=use),))

    assert checkpoint.changed(beside("a", "caption"), beside("b", "caption")) == {}
    assert checkpoint.changed(beside("a", "caption"), beside("a", "captions")) == {
        "sidecar.0.use": "checkpoint has 'caption', now 'captions'"
    }


def test_a_key_allows_itself_and_what_is_below_it():
    changes = {"phase.0.lr": "a", "phase.0.objective.0.1.use": "b", "phase.01": "c", "data": "d"}
    fine, refused, idle = checkpoint.split_allowed(changes, ["phase.0", "data", "seed"])
    assert sorted(fine) == ["data", "phase.0.lr", "phase.0.objective.0.1.use"]
    assert (list(refused), idle) == (["phase.01"], ["seed"])
    assert checkpoint.split_allowed({}, []) == ({}, {}, [])


def test_milestones_stay_and_do_not_count(tmp_path):
    out = str(tmp_path)
    for samples in (5, 10, 15, 20, 25):
        checkpoint.save(out, content(samples), keep=2, forever=samples in (5, 15))
    kept = [path.rsplit("/", 1)[-1] for path in checkpoint.committed(checkpoint.folder(out))]
    assert kept == [f"samples-{n:012d}.pt" for n in (5, 15, 20, 25)]


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


def test_finite_is_all_of_them():
    good, bad = torch.zeros(3), torch.tensor([0.0, float("inf")])
    assert checkpoint.all_finite([])
    assert checkpoint.all_finite([good, good])
    assert not checkpoint.all_finite([good, bad, good])
