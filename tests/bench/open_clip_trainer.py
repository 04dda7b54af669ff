"""open_clip's own training code, runnable beside a torch without CUDA, for the trainer's benchmarks.

    python tests/bench/open_clip_trainer.py --model vit_tiny_64 --train-data ...     as open_clip_train.main

Nothing of it is changed: `import_open_clip` makes torchvision importable and our model configurations
known, then open_clip's `main` gets the arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pretrain.model.encoder import import_open_clip


def options(*arguments: str) -> Any:
    """open_clip's options as its command line gives them, with what its `main` adds for one process."""
    import_open_clip()
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args

    parsed = parse_args(list(arguments))
    init_distributed_device(parsed)
    parsed.distill = parsed.wandb = parsed.tensorboard = False
    return parsed


def optimizer_as_in_main(model: Any, parsed: Any) -> Any:
    """AdamW over the two groups that open_clip's `main` makes (it has no function for them)."""
    import torch

    def exclude(name: str, rows: Any) -> bool:
        return rows.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    groups = [
        {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": parsed.wd},
    ]
    return torch.optim.AdamW(
        groups, lr=parsed.lr, betas=(parsed.beta1, parsed.beta2), eps=parsed.eps
    )


def main() -> None:
    import_open_clip()
    from open_clip_train.main import main as train

    train(sys.argv[1:])


if __name__ == "__main__":
    main()
