"""Real photographs, end to end: serve them on loopback, curate from URLs, train, evaluate.

    python tests/bench/photographs.py --out runs/photos [--data ../shared/data] [--pictures 1000]

The pictures are captioned photographs (pairs-flickr8k-*.tar of the shared data); each (picture,
caption) pair is a row. The pictures of the held-out set are not in the list.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HELD_OUT = 200


def read_pairs(path: Path) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """(pictures by name, (name, caption) rows) of a tar with captions.tsv."""
    pictures: dict[str, bytes] = {}
    rows: list[tuple[str, str]] = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            data = file.read()
            if member.name.rsplit("/", 1)[-1] == "captions.tsv":
                table = csv.DictReader(
                    io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE
                )
                rows = [(row["filepath"], row["caption"]) for row in table]
            else:
                pictures[member.name] = data
    return {name: pictures[name] for name, _ in rows if name in pictures}, [
        row for row in rows if row[0] in pictures
    ]


@contextmanager
def served(pictures: dict[str, bytes], port: int = 0) -> Iterator[str]:
    """A loopback web server of the pictures; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = pictures.get(self.path.lstrip("/"))
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


def write_list(path: Path, rows: list[tuple[str, str]], base_url: str) -> None:
    """The source: url and caption, tab separated."""
    lines = ["url\tcaption", *(f"{base_url}/{name}\t{caption}" for name, caption in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_held_out(path: Path, pictures: dict[str, bytes], rows: list[tuple[str, str]]) -> None:
    """A retrieval set: pictures and captions.tsv in one tar."""
    table = "\n".join(["filepath\tcaption", *("\t".join(row) for row in rows)]) + "\n"
    with tarfile.open(path, "w") as tar:
        for name, data in [*pictures.items(), ("captions.tsv", table.encode())]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/photos")
    parser.add_argument(
        "--data",
        default=os.environ.get("CLIP_PIPE_SHARED_DATA", str(ROOT.parent / "shared" / "data")),
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=20_000)
    arguments = parser.parse_args()
    source = Path(arguments.data) / "pairs-flickr8k-train.tar"
    if not source.is_file():
        sys.exit(f"{source}: not found. hint: --data FOLDER, or set CLIP_PIPE_SHARED_DATA")
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    pictures, rows = read_pairs(source)
    names = list(pictures)
    held_out, wanted = set(names[:HELD_OUT]), set(names[HELD_OUT : HELD_OUT + arguments.pictures])
    write_held_out(
        out / "held_out.tar",
        {n: pictures[n] for n in held_out},
        [r for r in rows if r[0] in held_out],
    )
    values = {
        "curate.pool": out / "pool", "curate.shards": out / "shards", "curate.source.path": out / "list.tsv",
        "train.out": out / "train", "evaluate.0.path": out / "held_out.tar", "train.phase.0.samples": arguments.samples,
    }  # fmt: skip
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    port_file = out / "port"
    port = int(port_file.read_text()) if port_file.exists() else 0
    with served({n: pictures[n] for n in wanted}, port) as base_url:
        port_file.write_text(base_url.rsplit(":", 1)[1])
        write_list(out / "list.tsv", [r for r in rows if r[0] in wanted], base_url)
        for command in (["curate"], ["train", "--resume"], ["eval"]):
            subprocess.run(
                [
                    sys.executable,
                    str(ROOT / "cli.py"),
                    command[0],
                    "photos",
                    *command[1:],
                    *overrides,
                ],
                check=True,
            )


if __name__ == "__main__":
    main()
