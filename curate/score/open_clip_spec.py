"""What an open_clip model is, read without importing torch: its configuration and its preprocessing.

From open_clip's own configurations by name, from a configuration file, or out of a checkpoint that
clip-pipe trained (a zip whose plain data is read and whose classes are not).
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER_CONFIG = "open_clip_config.json"  # in a folder that was downloaded whole
_NEEDED = ("embed_dim", "vision_cfg", "text_cfg")


@dataclass(frozen=True)
class Spec:
    """What is known of a model without torch."""

    config: dict[str, Any]  # open_clip's model configuration
    preprocess: dict[str, Any] = field(
        default_factory=dict
    )  # what differs from open_clip's default

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])


@functools.cache
def named(model: str) -> Spec:
    """A model that comes with open_clip. Raises ValueError with the names that are near."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ValueError("open_clip is not installed. hint: pip install 'clip-pipe[curate]'")
    folder = Path(package.origin).parent / "model_configs"
    path = folder / f"{model.replace('/', '-')}.json"
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob("*.json"))
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.4)
        raise ValueError(
            f"open_clip has no model {model!r}. hint: "
            + (f"did you mean {', '.join(near)}?" if near else "config = a file of your own")
        )
    return from_file(str(path))


def from_file(path: str) -> Spec:
    """A configuration in open_clip's format, bare or with its preprocessing. Raises ValueError."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as fault:
        raise ValueError(f"{path}: {fault}. hint: a JSON file in open_clip's format") from fault
    config = content.get("model_cfg", content) if isinstance(content, dict) else {}
    missing = [name for name in _NEEDED if name not in config]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}. hint: a model configuration in open_clip's format"
        )
    return Spec(config, content.get("preprocess_cfg", {}))


class _Inert(pickle.Unpickler):
    """Reads the plain data of a torch file; tensors, and whatever else has a class, become None."""

    def find_class(self, module: str, name: str) -> Any:
        return dict if name == "OrderedDict" else lambda *_: None

    def persistent_load(self, pid: Any) -> None:
        return None


def saved(path: str) -> Spec | None:
    """The model of a checkpoint of clip-pipe; None where the file is another's."""
    config = _saved_config(path, os.path.getmtime(path))
    return None if config is None else Spec(config)


@functools.lru_cache(maxsize=8)
def _saved_config(path: str, mtime_s: float) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as file:
                config = _Inert(file).load()["model"]["config"]
    except Exception:  # not a zip, no pickle in it, or another layout: then it is not ours
        return None
    return config if isinstance(config, dict) and all(n in config for n in _NEEDED) else None
