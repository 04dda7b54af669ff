"""Every format that img2dataset's reader reads gives the rows here that it gives there."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.source.url_table import UrlTable

ROWS = [("http://a.example/1.jpg", "a red one"), ("http://b.example/2.jpg?x=1&y=2", "caf\u00e9, two"), ("http://c.example/3", "third")]  # fmt: skip
FORMATS = [
    "parquet", *(f"{name}{end}" for name in ("csv", "tsv", "jsonl", "json", "txt") for end in ("", ".gz"))
]  # fmt: skip


def _reader() -> ModuleType:
    """img2dataset.reader alone: its package imports far more than that."""
    package = importlib.util.find_spec("img2dataset")
    if package is None or not package.submodule_search_locations:
        pytest.skip("img2dataset is not installed")
    path = Path(package.submodule_search_locations[0]) / "reader.py"
    spec = importlib.util.spec_from_file_location("img2dataset_reader", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, format: str) -> Path:
    records = [{"URL": url, "TEXT": text} for url, text in ROWS]
    kind = format.removesuffix(".gz")
    path = folder / f"list.{format}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    lines = {
        "csv": ["URL,TEXT", *(f'{url},"{text}"' for url, text in ROWS)],
        "tsv": ["URL\tTEXT", *(f"{url}\t{text}" for url, text in ROWS)],
        "jsonl": [json.dumps(record) for record in records],
        "json": [json.dumps(records)],
        "txt": [url for url, _ in ROWS],
    }[kind]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if format.endswith(".gz") else data)
    return path


def theirs(path: Path, format: str, folder: Path) -> list[tuple[str, str | None]]:
    folder.mkdir()
    captions = None if format.startswith("txt") else "TEXT"
    url = "url" if format.startswith("txt") else "URL"
    reader = _reader().Reader(
        str(path), format, url, captions, None, None, None, 2, set(), str(folder)
    )
    found: list[tuple[str, str | None]] = []
    for _, feather in reader:
        for row in pa.ipc.open_file(feather).read_all().to_pylist():
            found.append((row["url"], row.get("caption")))
    return found


@pytest.mark.filterwarnings("ignore")  # of pandas, in its code
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_rows_as_img2datasets_reader(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format)
    column = "url" if format.startswith("txt") else "URL"
    stage = UrlTable(path=str(path), url=column, caption="TEXT", rows_per_part=2)
    stage.check()
    found = pa.concat_tables([table for part in stage.parts() for table in stage.produce(part)])
    assert found["keep"].to_pylist() == [True] * len(ROWS)
    ours = list(zip(found["url"].to_pylist(), found["caption"].to_pylist(), strict=True))
    assert ours == [(url, text or "") for url, text in theirs(path, format, tmp_path / "tmp")]
