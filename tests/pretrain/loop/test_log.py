import json

from pretrain.loop.log import MetricsLog


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
    for torn in ('{"samples_seen": 20', "\n", "[1]\n"):
        path.write_text('{"samples_seen": 10}\n' + torn)
        MetricsLog(str(path)).rewind(100)
        assert lines(path) == [{"samples_seen": 10}]


def test_figures_of_evaluations_stay_unless_they_belong_to_what_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"samples_seen": 10}\n{"eval": "a"}\n{"samples_seen": 20}\n{"eval": "b"}\n')
    MetricsLog(str(path)).rewind(10)
    assert lines(path) == [{"samples_seen": 10}, {"eval": "a"}]
