"""Tiny models with random weights, written as files: an open_clip checkpoint, a sentence-transformers folder."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

CLIP_DIM = 16
TEXT_DIM = 24
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": CLIP_DIM,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "star",
    "squares",
    "two",
    "photo",
    "of",
    "dog",
    "on",
    "sand",
    "left",
    "img",
    "_",
    ".",
    "1",
    "2",
    "jpg",
]


@functools.cache
def clip_weights() -> bytes:
    """An open_clip state dict of CLIP_CONFIG as torch saves it."""
    import torch

    from pretrain.model import encoder

    before = torch.random.get_rng_state()
    torch.manual_seed(7)
    made = encoder.from_config("clip_pipe_tests_tiny", CLIP_CONFIG)
    torch.random.set_rng_state(before)
    buffer = io.BytesIO()
    torch.save(made.weights(10.0), buffer)
    return buffer.getvalue()


def clip_options(folder: Path) -> dict[str, str]:
    """Writes the tiny open_clip model into a folder. Returns the options that name it."""
    config, checkpoint = folder / "tiny_clip.json", folder / "tiny_clip.pt"
    config.write_text(json.dumps(CLIP_CONFIG))
    checkpoint.write_bytes(clip_weights())
    return {"config": str(config), "checkpoint": str(checkpoint)}


def sentence_model(folder: Path) -> str:
    """Writes a tiny BERT with mean pooling, as sentence-transformers keeps it. Returns its folder."""
    import torch

    from curate.score.inference import import_torchvision

    import_torchvision()
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(tokens)) + "\n")
    before = torch.random.get_rng_state()
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(set(tokens)),
        hidden_size=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    torch.random.set_rng_state(before)
    BertTokenizerFast(str(vocabulary), model_max_length=64).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": n,
                    "name": str(n),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for n, (path, kind) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": TEXT_DIM, "pooling_mode_mean_tokens": True})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return str(folder)
