"""Memory and CPU time of the contrastive losses, forward and backward, beside the same without tiles.

    python tests/bench/loss_memory.py [--rows N] [--dim D] [--tile T] [--repeats R] [--threads T]

Each contender runs in a fresh process with one thread: random features of N rows, one small pass to
warm up, then the peak of resident memory over what was there before, and the least CPU time of a pass.
`plain` is the formula to the letter under autograd; open_clip's losses are used as its trainer does in
one process, on features of unit norm; `chunk_size` is measured where its signature has one. `plain` and
ours normalise the features within the measured part, open_clip's outside of it. The last columns are the
ratios to `plain` of the same loss; all losses of a kind must be equal to 1e-5.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

_CONTENDERS = (
    "softmax plain",
    "softmax open_clip",
    "softmax ours",
    "sigmoid plain",
    "sigmoid open_clip",
    "sigmoid open_clip chunk_size=512",
    "sigmoid ours",
)
_SCALE, _BIAS = 14.3, -10.0


def plain_loss(kind: str) -> Callable[..., Any]:
    """(pictures, texts of unit norm, scale, bias) -> the loss by its formula."""
    import torch
    from torch.nn.functional import cross_entropy, logsigmoid

    def softmax(images: Any, texts: Any, scale: Any, bias: Any) -> Any:
        labels = torch.arange(len(images))
        one, two = scale * images @ texts.T, scale * texts @ images.T
        return (cross_entropy(one, labels) + cross_entropy(two, labels)) / 2

    def sigmoid(images: Any, texts: Any, scale: Any, bias: Any) -> Any:
        signs = 2 * torch.eye(len(images)) - 1
        return -logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)

    return {"softmax": softmax, "sigmoid": sigmoid}[kind]


def theirs(kind: str, how: str) -> Callable[..., Any] | None:
    """open_clip's loss; None where this version has no such option."""
    from pretrain.model.encoder import import_open_clip

    losses = import_open_clip().loss
    if kind == "softmax":
        return losses.ClipLoss(local_loss=True, gather_with_grad=True)
    module, options = losses.SigLipLoss(), {}
    if "=" in how:
        name, _, value = how.split()[-1].partition("=")
        options = {name: int(value)}
        if name in inspect.signature(type(module).__init__).parameters:
            module, options = losses.SigLipLoss(**options), {}
        elif name not in inspect.signature(type(module).forward).parameters:
            return None
    return lambda *given: module(*given, **options)


def contender(kind: str, how: str, tile: int) -> Callable[[Any, Any, Any, Any], Any] | None:
    """(pictures, texts, scale, bias) -> loss, from features as towers give them."""
    from pretrain.objective.base import Comm, unit_rows
    from pretrain.objective.tiles import sigmoid_pairs, softmax_pairs

    if how == "ours" and kind == "softmax":
        return lambda x, t, s, b: softmax_pairs(unit_rows(x), unit_rows(t), s, Comm(), tile)[0]
    if how == "ours":
        return lambda x, t, s, b: sigmoid_pairs(unit_rows(x), unit_rows(t), s, b, Comm(), tile)[0]
    if how == "plain":
        loss = plain_loss(kind)
        return lambda x, t, s, b: loss(unit_rows(x), unit_rows(t), s, b)
    return theirs(kind, how)


def peak_bytes(reset: bool = False) -> int:
    """The most resident memory so far, or since the last reset where the system can forget it."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(kind: str, how: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    loss_of = contender(kind, how, arguments.tile)
    if loss_of is None:
        return {}

    def one_pass(rows: int) -> float:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(2, rows, arguments.dim, generator=generator)
        images, texts = torch.nn.functional.normalize(features, dim=-1).unbind()
        given = [images.requires_grad_(), texts.requires_grad_()]
        given += [torch.tensor(value, requires_grad=True) for value in (_SCALE, _BIAS)]
        figures["before_bytes"] = peak_bytes(reset=True)
        began_s = time.process_time()
        loss = loss_of(*given)
        loss.backward()
        figures["cpu_s"] = min(figures["cpu_s"], time.process_time() - began_s)
        figures["peak_bytes"] = peak_bytes() - figures["before_bytes"]
        return float(loss.detach())

    figures: dict[str, Any] = {"cpu_s": 1e9}
    one_pass(64)
    figures["cpu_s"] = 1e9
    figures["loss"] = one_pass(arguments.rows)
    found = figures["peak_bytes"]  # of the first pass: later ones may find memory not given back
    for _ in range(arguments.repeats - 1):
        one_pass(arguments.rows)
    return {**figures, "peak_bytes": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--tile", type=int, default=0, help="rows of ours; 0 chooses")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, _, how = arguments.one.partition(" ")
        print(json.dumps(measure(kind, how, arguments)))
        return
    print(f"N = {arguments.rows}, D = {arguments.dim}, {arguments.threads} thread")
    print(f"{'':36s}{'MiB':>8s}{'CPU s':>8s}{'loss':>10s}{'memory':>9s}{'time':>7s}")
    plain: dict[str, Any] = {}
    for name in _CONTENDERS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", name],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        figures = json.loads(done.stdout.splitlines()[-1])
        if not figures:
            print(f"{name:36s}{'this open_clip has no such option':>34s}")
            continue
        plain = figures if name.endswith("plain") else plain
        assert abs(figures["loss"] - plain["loss"]) < 1e-5 * plain["loss"], (name, figures, plain)
        print(
            f"{name:36s}{figures['peak_bytes'] / 2**20:8.0f}{figures['cpu_s']:8.2f}{figures['loss']:10.5f}"
            f"{plain['peak_bytes'] / figures['peak_bytes']:8.1f}x{plain['cpu_s'] / figures['cpu_s']:6.2f}x"
        )


if __name__ == "__main__":
    main()
