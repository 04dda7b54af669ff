"""Events reach the log and whoever listens; a log is bounded, never ends a run, and tells how the run ended."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import commands, events, slots
from pipelines.errors import RunFailed, Stopped
from tests.tiny import whole_run
from tests.tiny.stages import USE

ROOT = Path(__file__).resolve().parent.parent.parent


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, Any]]] = []

    def hear(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        self.heard.append((event, level, dict(fields)))


def entries(log: events.Log | str) -> list[dict[str, Any]]:
    path = log if isinstance(log, str) else log.path
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_s_log_says_what_happened_in_order(tmp_path: Path) -> None:
    ear = Ear()
    with events.listening(ear):
        told = json.loads(whole_run.run(whole_run.write(tmp_path)))
    assert told["log"].startswith(str(tmp_path / "pool" / "logs"))
    found = entries(told["log"])
    assert [found[0]["event"], found[-1]["event"]] == ["run_began", "run_ended"]
    assert found[-1]["outcome"] == "done"
    assert found[0]["command"] == "curate"
    assert {entry["event"] for entry in found} <= set(events.EVENTS)
    assert all({"time", "level", "event", "run"} <= set(entry) for entry in found)
    steps = [entry["step"] for entry in found if entry["event"] == "step_began"]
    assert [step.rpartition(":")[2] for step in steps][:3] == [
        "Numbers",
        "filter.duplicate_pair",
        "Length",
    ]
    assert steps[-1] == "shard.write"
    assert not any(
        entry["event"] == "said" for entry in found
    )  # ends of steps are events of their own
    rows: Counter[str] = Counter()
    for event, _, fields in ear.heard:
        if event == "part_done":
            rows[fields["stage"].rpartition(":")[2]] += fields.get("rows_in", 0)
    names = ("Numbers", "Length", "Common", "Picture", "PictureSize")
    assert [rows[name] for name in names] == [47, 33, 33, 10, 9]


def test_nothing_is_left_by_a_run_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as caught, events.logged(str(tmp_path), "curate"):
        raise RunFailed("refused")
    assert list(tmp_path.iterdir()) == []
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("fault", [RunFailed("the words"), OSError(28, "no room"), Stopped(15)])
def test_a_log_says_how_a_run_ended_and_the_exception_where_it_is(
    tmp_path: Path, fault: BaseException
) -> None:
    with pytest.raises(type(fault)) as caught, events.logged(str(tmp_path), "train", at_once=True) as log:  # fmt: skip
        raise fault
    last = entries(log)[-1]
    stopped = isinstance(fault, Stopped)
    assert last["outcome"] == ("stopped" if stopped else "failed")
    assert str(fault) in last["message"]
    assert getattr(caught.value, "__notes__", []) == ([] if stopped else [f"log: {log.path}"])


def test_warnings_of_our_loggers_are_events_and_others_are_not(tmp_path: Path) -> None:
    with events.logged(str(tmp_path), "train", at_once=True) as log:
        logging.getLogger("pretrain.stream.tars").warning("shard %s is cut", "00001.tar")
        logging.getLogger("clip_pipe").info("no warning")
        logging.getLogger("elsewhere").warning("not ours")
    logging.getLogger("clip_pipe").warning("too late")
    found = [entry for entry in entries(log) if entry["event"] == "logged"]
    assert [(entry["logger"], entry["message"]) for entry in found] == [("pretrain.stream.tars", "shard 00001.tar is cut")]  # fmt: skip


def test_warnings_of_a_worker_come_before_its_next_result_or_exception() -> None:
    def work() -> Iterator[int]:
        logging.getLogger("clip_pipe").warning("first")
        yield 1
        yield 2
        logging.getLogger("curate.x").error("last")
        raise ValueError("over")

    found: list[Any] = []
    with pytest.raises(ValueError, match="over"):
        found.extend(events.heard(work()))
    words = [[r["message"] for r in one.records] if isinstance(one, events.Heard) else one for one in found]  # fmt: skip
    assert words == [["first"], 1, 2, ["last"]]
    ear = Ear()
    with events.listening(ear):
        found[-1].tell()
    assert ear.heard[0][:2] == ("logged", "error")
    assert ear.heard[0][2]["process"] == os.getpid()


def test_a_worker_that_warns_without_end_is_heard_a_bounded_number_of_times() -> None:
    def work() -> Iterator[int]:
        for _ in range(1000):
            logging.getLogger("clip_pipe").warning("again")
        yield 1

    (heard, _) = events.heard(work())
    assert len(heard.records) == events._MOST_HEARD


def test_a_full_log_still_has_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST_BYTES", 2000)
    with events.logged(str(tmp_path), "train", at_once=True) as log:
        for number in range(500):
            events.tell("said", message=f"line {number}")
        events.tell("part_failed", "error", stage="a", part=3)
    found = entries(log)
    assert [entry["event"] for entry in found[-3:]] == ["full", "part_failed", "run_ended"]
    assert os.path.getsize(log.path) < 3000


def test_a_folder_keeps_its_newest_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST_LOGS", 3)
    (tmp_path / "logs").mkdir()
    for number in range(5):
        (tmp_path / "logs" / f"2020010{number}T000000-x-1.jsonl").write_text("")
    with events.logged(str(tmp_path), "train", at_once=True) as log:
        pass
    assert events.logs(str(tmp_path))[-1] == log.path
    assert len(events.logs(str(tmp_path))) == 3


def test_a_log_that_can_t_be_written_ends_no_run(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "logs").write_text("a file in the folder's place")
    with events.logged(str(tmp_path), "train", at_once=True):
        events.tell("said", message="on it goes")
    assert "log can't be written" in capsys.readouterr().err


def test_a_remote_pool_s_logs_lie_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with events.logged("s3://bucket/some/pool", "curate", at_once=True) as log:
        pass
    assert log.path.startswith(str(tmp_path))
    assert events.logs("s3://bucket/some/pool/") == [log.path]
    assert events.logs("s3://bucket/some-pool") == []


@pytest.mark.ray
def test_what_a_worker_warns_of_is_in_the_driver_s_log(tmp_path: Path, ray_address: str) -> None:
    stages = [{"use": f"{USE}:Length", "fail_on": "number 3"}]
    path = whole_run.write(tmp_path, stages)
    told = json.loads(commands.curate(path, (), local=False, address="", workers=0))
    found = [entry for entry in entries(told["log"]) if entry["event"] == "logged"]
    assert found
    assert all(entry["process"] != os.getpid() for entry in found)
    assert all(entry["node"] == os.uname().nodename for entry in found)


def test_warnings_are_printed_as_before_by_a_program_that_has_set_up_no_logging(
    tmp_path: Path,
) -> None:
    code = (
        "import logging, sys\nfrom pipelines import events\n"
        "with events.logged(sys.argv[1], 'train', at_once=True):\n"
        "    logging.getLogger('pretrain.x').warning('in the driver')\n"
        "def work():\n    logging.getLogger('clip_pipe').warning('in a worker')\n    yield 1\n"
        "list(events.heard(work()))\n"
        "logging.getLogger('clip_pipe').warning('behind')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=100)  # fmt: skip
    assert done.stderr.splitlines() == ["in the driver", "in a worker", "behind"]


class Nodes:
    """As much of Ray as is asked for nodes."""

    def __init__(self) -> None:
        self.living = {"a": "node-1", "b": "node-2"}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": key, "NodeManagerHostname": name, "Alive": True, "Resources": {"CPU": 1.0}}
                for key, name in self.living.items()]  # fmt: skip


def test_nodes_that_go_and_come_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_FRESH_S", -1.0)
    ray, ear = Nodes(), Ear()
    cluster = slots.Cluster(ray)
    with events.listening(ear):
        cluster.nodes()
        del ray.living["b"]
        cluster.nodes()
        ray.living["c"] = "node-3"
        cluster.nodes()
        cluster.nodes()
    found = [(event, fields["node"]) for event, _, fields in ear.heard if event != "gauge"]
    assert found == [("node_lost", "node-2"), ("node_joined", "node-3")]
    assert events.gauges()["nodes"] == 2
