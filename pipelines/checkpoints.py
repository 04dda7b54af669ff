"""Looks into checkpoints: are they whole, where do two differ; and averages their weights.

A uniform average of weights along one run: Izmailov et al., arXiv 1803.05407 (SWA); of several runs
from one start: Wortsman et al., arXiv 2203.05482 (model soups). Means are taken in float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from curate.contract import storage
from pipelines.errors import RecipeError

_SECTIONS = ("state_dict", "ema", "objective", "optimizer")
_PARTS: dict[str, dict[str, Any]] = {
    "model": {"name": str, "config": dict},
    "state_dict": {},
    "cursor": {"samples_seen": int, "step": int, "phase": int, "bad": dict},
    "settings": {},
}
_SHOWN = 12  # tensors or settings named one by one, the furthest apart first


def verify(paths: Sequence[str]) -> tuple[str, bool]:
    """(what each checkpoint holds or what is wrong with it, whether all are whole).

    A path is a file, or a run's folder: then all that it has. Raises RecipeError for one without any.
    """
    lines: list[str] = []
    fine = True
    for given in paths:
        for path in _files(given):
            told, is_whole = _verified(path)
            lines += told
            fine &= is_whole
    return "\n".join(lines), fine


def diff(a: str, b: str) -> str:
    """Where two checkpoints, or the newest ones of two runs, differ. Raises RecipeError for no checkpoint."""
    first, second = (_read_as_written(_files(given)[-1]) for given in (a, b))
    lines: list[str] = []
    for name, content in (("a", first), ("b", second)):
        lines.append(f"{name}: {content.pop('path')}")
        wrong = _not_finite(content)
        lines += [f"  {_some(wrong)}"] if wrong else []
    lines += _settings_lines("settings", first["settings"], second["settings"])
    lines += _settings_lines("versions", first.get("versions", {}), second.get("versions", {}))
    for name in ("data_hash", "data_sha256"):
        ours, theirs = first.get(name), second.get(name)
        lines.append(f"{name}: equal" if ours == theirs else f"{name}: {ours!r} / {theirs!r}")
    lines += _settings_lines("cursor", first["cursor"], second["cursor"])
    for section in _SECTIONS:
        lines += _tensor_lines(section, first.get(section, {}), second.get(section, {}))
    return "\n".join(lines)


def average(paths: Sequence[str], *, out: str, last: int) -> str:
    """Write the mean of several checkpoints' weights; one JSON line. ``last``: the newest N of one run.

    Raises RecipeError for fewer than two, for damaged ones and figures that are not finite, for other
    models, shapes, objectives or seeds, or an ``out`` that is there or belongs to a run.
    """
    if last and len(paths) != 1:
        raise RecipeError("--last", f"{len(paths)} paths", "it goes with the folder of one run")
    files = _files(paths[0])[-last:] if last else [_files(path)[-1] for path in paths]
    if last and len(files) < last:
        raise RecipeError(f"--last {last}", f"{paths[0]} has {len(files)} checkpoints")
    if len(files) < 2:
        raise RecipeError("checkpoint average", "one checkpoint", "give several, or --last N RUN")
    _check_out(out)
    from pretrain.loop import checkpoint

    sums: dict[str, Any] = {}
    first = content = _read(files[0])
    for path in files:
        content = _read_as_written(path)
        wrong = _not_finite({"state_dict": content["state_dict"]})
        if wrong:
            raise RecipeError(path, _some(wrong), "leave it out")
        if content["model"]["config"] != first["model"]["config"]:
            raise RecipeError(
                path, f"another model than that of {files[0]}", "average one model's weights"
            )
        if _folder(path) != _folder(files[0]):
            _check_kindred(first, content)
        _add(sums, content["state_dict"], path, files[0])
    # What is no real number (an index buffer) is taken from the newest.
    mean = {
        name: (sums[name] / len(files)).to(rows.dtype) if rows.is_floating_point() else rows
        for name, rows in content["state_dict"].items()
    }
    kept = ("model", "settings", "recipe", "data_hash", "data_sha256", "cursor", "history")
    made = {name: content[name] for name in kept if name in content}
    checkpoint.write(out, {**made, "state_dict": mean, "averaged": files})
    return json.dumps({"checkpoint": out, "averaged": files}, ensure_ascii=False)


def _check_kindred(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Runs that learn other things, or begin at other random weights, have no mean that is a model.

    Those from the same ``pretrained`` weights may have other seeds. Raises RecipeError.
    """
    ours, theirs = first["settings"], other["settings"]
    one_start = bool(ours.get("pretrained")) and ours.get("pretrained") == theirs.get("pretrained")
    odd = [
        f"{name} is {theirs.get(name)!r}, there {ours.get(name)!r}"
        for name in sorted(set(ours) | set(theirs))
        if ours.get(name) != theirs.get(name)
        and (
            (name == "seed" and not one_start)
            or name in ("model", "pretrained")
            or ".objective" in name
        )
    ]
    if odd:
        raise RecipeError(
            other["path"], f"of another run than {first['path']}: {'; '.join(odd[:3])}",
            "average checkpoints of one run (--last N RUN), or of runs from the same pretrained weights",
        )  # fmt: skip


def _check_out(out: str) -> None:
    """Neither the file nor its stamp may be there, nor may it look like a checkpoint of a run's own."""
    from pretrain.loop import checkpoint

    for path in (out, checkpoint.stamp_path(out)):
        if storage.exists(path):
            raise RecipeError(f"--out {out}", f"{path} is there already", "name another file")
    *_, folder, name = ["", *storage.absolute(out).split("/")]
    if folder == "checkpoints" and name.startswith("samples-"):
        raise RecipeError(
            f"--out {out}", "a run would take it for a checkpoint to resume from", "name it otherwise, e.g. mean.pt"
        )  # fmt: skip


def _files(given: str) -> list[str]:
    """The file itself, or the checkpoints of a run's folder, oldest first. Raises RecipeError for none."""
    from pretrain.loop import checkpoint

    if storage.is_url(given):
        is_file, is_folder = given.endswith(".pt") and storage.exists(given), storage.exists(given)
    else:
        is_file, is_folder = os.path.isfile(given), os.path.isdir(given)
    if is_file:
        return [given]
    found = checkpoint.committed(given) or checkpoint.committed(checkpoint.folder(given))
    if not found:
        what = "no checkpoint in it" if is_folder else "no such file or folder"
        raise RecipeError(given, what, "give a run's folder, or a file of its checkpoints")
    return found


def _folder(path: str) -> str:
    return storage.absolute(path).rpartition("/")[0]


def _read(path: str) -> dict[str, Any]:
    """All of a checkpoint, with its path. Raises RecipeError for a file that is none."""
    from pretrain.loop import checkpoint

    try:
        found = checkpoint.read(path)
    except Exception as fault:  # torch raises many kinds for a file that is none of its own
        words = " ".join(str(fault).split())[:200]
        raise RecipeError(path, f"can't be loaded ({type(fault).__name__}: {words})",
                          "give a file from a run's checkpoints folder") from fault  # fmt: skip
    odd = _odd(found)
    if odd:
        raise RecipeError(path, f"not a checkpoint of clip-pipe: no {', '.join(odd)} in it",
                          "give a file from a run's checkpoints folder")  # fmt: skip
    return {**found, "path": path}


def _odd(found: Any) -> list[str]:
    """What a checkpoint has, and this has not, or not as it should be."""
    import torch

    if not isinstance(found, dict):
        return ["dict"]
    odd = [name for name in _PARTS if not isinstance(found.get(name), dict)]
    odd += [
        f"{part}.{name}"
        for part, names in _PARTS.items()
        for name, kind in names.items()
        if part not in odd and not isinstance(found[part].get(name), kind)
    ]
    weights = () if "state_dict" in odd else found["state_dict"].values()
    if not all(isinstance(rows, torch.Tensor) for rows in weights):
        odd.append("tensors only under state_dict")
    later = {"versions": dict, "recipe": str, "data_hash": str, "data_sha256": str, "history": list,
             "averaged": list, "bad_window": list}  # fmt: skip
    return odd + [
        name for name, kind in later.items() if not isinstance(found.get(name, kind()), kind)
    ]


def _read_as_written(path: str) -> dict[str, Any]:
    """As ``_read``. Raises RecipeError also where a stamp beside it says that its bytes have changed."""
    from pretrain.loop import checkpoint

    fault = checkpoint.fault_of(path) if storage.exists(checkpoint.stamp_path(path)) else None
    if fault:
        raise RecipeError(path, fault, "copy it again from where it was whole, or take another")
    return _read(path)


def _not_finite(content: dict[str, Any]) -> list[str]:
    """The tensors with an infinity or a NaN in them."""
    return [
        f"{section}.{name}"
        for section in _SECTIONS
        for name, rows in _tensors(content.get(section, {}))
        if rows.is_floating_point() and not bool(rows.isfinite().all())
    ]


def _some(wrong: list[str]) -> str:
    return f"not finite: {', '.join(wrong[:5])} ({len(wrong)} tensors)"


def _verified(path: str) -> tuple[list[str], bool]:
    from pretrain.loop import checkpoint

    notes: list[str] = []
    if storage.exists(checkpoint.stamp_path(path)):
        fault = checkpoint.fault_of(path)
        if fault:
            return [f"{path}: BAD: {fault}"], False
    else:
        notes = ["no stamp beside it, so whether its bytes are as written is not known"]
    try:
        content = _read(path)
    except RecipeError as bad:
        return [f"BAD: {bad}"], False
    wrong = _not_finite(content)
    if wrong:
        return [f"{path}: BAD: {_some(wrong)}"], False
    return [f"{path}: whole", *(f"  {line}" for line in [*_inside(content), *notes])], True


def _inside(content: dict[str, Any]) -> Iterator[str]:
    """What a checkpoint holds, in words."""
    cursor = content["cursor"]
    count = sum(rows.numel() for rows in content["state_dict"].values())
    yield f"model {content['model']['name']}, {count:,} numbers; {content['path'].rsplit('/', 1)[-1]}"
    yield f"{cursor['samples_seen']:,} samples, step {cursor['step']:,}, phase {cursor['phase']}"
    if any(cursor["bad"].values()):
        yield f"bad samples {cursor['bad']}"
    has = [name for name in _SECTIONS[1:] if content.get(name)]
    yield f"resumable: {'yes' if 'optimizer' in content else 'no, weights only'}; holds {', '.join(has) or 'no more'}"
    name = next(
        (line for line in content.get("recipe", "").splitlines() if line.startswith("name")), ""
    )
    yield f"recipe {name.partition('=')[2].strip() or 'unnamed'}, seed {content['settings'].get('seed')}"
    yield f"data {content.get('data_hash') or 'of unknown manifest'}, content {content.get('data_sha256', '')[:16]}"
    for change in content.get("history", []):
        yield f"changed at {change['samples_seen']:,} samples: {change['changed']}"
    if "averaged" in content:
        yield f"average of {', '.join(content['averaged'])}"
    yield "made with " + ", ".join(f"{k} {v}" for k, v in content.get("versions", {}).items())


def _settings_lines(what: str, a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    names = [name for name in sorted(set(a) | set(b)) if a.get(name) != b.get(name)]
    lines = [f"{what}: {f'{len(names)} differ' if names else 'equal'}"]
    return lines + [f"  {name}: {a.get(name)!r} / {b.get(name)!r}" for name in names]


def _tensor_lines(section: str, a: Any, b: Any) -> list[str]:
    """A summary by tower, then the tensors that are furthest apart, of other shapes, or missing."""
    ours, theirs = dict(_tensors(a)), dict(_tensors(b))
    if not ours and not theirs:
        return []
    apart: dict[str, float] = {}
    odd: list[str] = []
    for name in sorted(set(ours) | set(theirs)):
        if name not in ours or name not in theirs:
            odd.append(f"  {name}: only in {'a' if name in ours else 'b'}")
        elif ours[name].shape != theirs[name].shape:
            odd.append(f"  {name}: {tuple(ours[name].shape)} / {tuple(theirs[name].shape)}")
        else:
            apart[name] = _distance(ours[name], theirs[name])
    lines: list[str] = []
    for tower in ("image", "text") if section in ("state_dict", "ema") else ("",):
        group = {n: d for n, d in apart.items() if not tower or _tower(n) == tower}
        differ = [d for d in group.values() if d]
        most = f", at most {max(differ):.3g} apart" if differ else ""
        lines.append(
            f"{section}{' ' + tower if tower else ''}: {len(group)} tensors, {len(group) - len(differ)} equal{most}"
        )
    far = sorted((n for n, d in apart.items() if d), key=lambda n: -apart[n])
    lines += [f"  {name}: {apart[name]:.3g}" for name in far[:_SHOWN]] + odd[:_SHOWN]
    rest = max(len(far) - _SHOWN, 0) + max(len(odd) - _SHOWN, 0)
    return lines + ([f"  and {rest} more"] if rest else [])


def _distance(a: Any, b: Any) -> float:
    """The greatest absolute difference; infinite where one is not a number and the other is."""
    difference = (a.double() - b.double()).abs().nan_to_num(nan=float("inf"))
    both = a.isnan() & b.isnan() if a.is_floating_point() and b.is_floating_point() else None
    if both is not None:
        difference = difference.masked_fill(both, 0.0)
    return float(difference.max()) if difference.numel() else 0.0


def _tower(name: str) -> str:
    return "image" if name.startswith("visual.") else "text"


def _tensors(thing: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor in a nest of dicts and lists, by its path."""
    import torch

    if isinstance(thing, torch.Tensor):
        yield name, thing
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(thing, (list, tuple)):
        for number, value in enumerate(thing):
            yield from _tensors(value, f"{name}.{number}")


def _add(sums: dict[str, Any], weights: dict[str, Any], path: str, first: str) -> None:
    """Sum weights in float64. Raises RecipeError where names or shapes are not those of the first."""
    if not sums:
        sums.update({name: rows.double() for name, rows in weights.items()})
        return
    odd = sorted(set(weights) ^ set(sums)) or [
        name for name, rows in weights.items() if rows.shape != sums[name].shape
    ]
    if odd:
        raise RecipeError(path, f"other tensors than {first}: {', '.join(odd[:5])}",
                          "average checkpoints of one model and resolution")  # fmt: skip
    for name, rows in weights.items():
        sums[name] += rows.double()
