"""A head is read from any file as one affine map, and gives what torch gives layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from curate.score import vectors
from curate.score.aesthetic import Aesthetic, read_head
from curate.stage import StageError

DIM = 24


class Predictor(nn.Module):
    """The shape of LAION's improved predictor, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(DIM, 16),
            nn.Dropout(0.2),
            nn.Linear(16, 8),
            nn.Dropout(0.1),
            *(nn.Identity() for _ in range(6)),
            nn.Linear(8, 4),
            nn.Linear(4, 1),
        )


def embeddings(rows: int) -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(rows, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def scored(path: Path, given: np.ndarray) -> np.ndarray:
    stage = Aesthetic(weights=str(path))
    stage.check()
    stage.check_columns({"embedding_image": vectors.column_type(DIM)})
    table = pa.table({"embedding_image": vectors.to_column(given, DIM)})
    done = stage.process(table, stage.open())
    assert done.schema == stage.writes()
    return done["aesthetic_score"].to_numpy()


@pytest.mark.parametrize("kind", [".pth", ".npz", ".safetensors"])
def test_a_chain_of_layers_is_what_torch_computes(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = Predictor().eval()
    path = tmp_path / f"head{kind}"
    weights = head.state_dict()
    if kind == ".pth":
        torch.save(weights, path)
    elif kind == ".npz":
        np.savez(path, **{name: rows.numpy() for name, rows in weights.items()})
    else:
        from safetensors.torch import save_file

        save_file(weights, path)
    given = embeddings(9)
    with torch.inference_mode():
        wanted = head.layers(torch.from_numpy(given.astype(np.float32)))[:, 0].numpy()
    assert scored(path, given) == pytest.approx(wanted, abs=1e-5)


def test_one_layer_with_and_without_a_bias(tmp_path: Path) -> None:
    given = embeddings(5)
    weight = np.arange(DIM, dtype=np.float32)
    np.savez(tmp_path / "a.npz", weight=weight[None], bias=np.float32([2]))
    np.savez(tmp_path / "b.npz", weight=weight)
    torch.save({"state_dict": nn.Linear(DIM, 1).state_dict()}, tmp_path / "c.pt")
    wanted = given.astype(np.float64) @ weight
    assert scored(tmp_path / "a.npz", given) == pytest.approx(wanted + 2, abs=1e-5)
    assert scored(tmp_path / "b.npz", given) == pytest.approx(wanted, abs=1e-5)
    assert len(scored(tmp_path / "c.pt", given)) == 5


def test_rows_without_an_embedding_have_no_score(tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", weight=np.ones(DIM))
    given = embeddings(3).astype(np.float32)
    given[1] = np.nan
    stage = Aesthetic(weights=str(tmp_path / "head.npz"))
    table = pa.table({"embedding_image": vectors.to_column(given, DIM)})
    done = stage.process(table, stage.open())["aesthetic_score"].to_pylist()
    assert [score is None for score in done] == [False, True, False]


def test_a_head_for_other_embeddings_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", weight=np.ones(DIM + 1))
    stage = Aesthetic(weights=str(tmp_path / "head.npz"))
    types = {"embedding_image": vectors.column_type(DIM)}
    with pytest.raises(ValueError, match=r"has 24 numbers a row, 25 are needed\. hint:"):
        stage.check_columns(types)
    torch.save(nn.Linear(DIM + 1, 1).state_dict(), tmp_path / "head.pth")
    unread = Aesthetic(weights=str(tmp_path / "head.pth"))
    unread.check()
    unread.check_columns(types)  # its size is known only once torch reads it
    table = pa.table({"embedding_image": vectors.to_column(embeddings(2), DIM)})
    with pytest.raises(StageError, match=r"score\.aesthetic: .*25 are needed"):
        unread.process(table, unread.open())


def test_files_that_hold_no_head_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", weight=np.ones((2, DIM)))
    np.savez(tmp_path / "gap.npz", **{"0.weight": np.ones((3, DIM)), "1.weight": np.ones((1, 4))})
    np.savez(tmp_path / "none.npz", other=np.ones(3))
    (tmp_path / "bad.npz").write_bytes(b"no")
    for name, said in (
        ("two", r"weight 2x24\. hint: the last layer must give one number"),
        ("gap", r"0\.weight 3x24, 1\.weight 1x4\. hint: a chain of linear layers"),
        ("none", "no weights. hint"),
        ("bad", "hint: a state dict saved by"),
    ):
        with pytest.raises(ValueError, match=said):
            read_head(str(tmp_path / f"{name}.npz"))
    with pytest.raises(ValueError, match="no file /nowhere"):
        Aesthetic(weights="/nowhere.npz").check()
    (tmp_path / "head.csv").write_text("1")
    with pytest.raises(ValueError, match=r"hint: one of \.npz"):
        Aesthetic(weights=str(tmp_path / "head.csv")).check()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(StageError, match=r"score\.aesthetic: .*evil\.pth"):
        Aesthetic(weights=str(tmp_path / "evil.pth")).open()
    assert "executed" not in capsys.readouterr().out
