"""A row's numbers do not depend on its neighbours or on how many there are; lengths are one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curate.score import inference


def test_a_row_is_the_same_in_any_cut_and_at_any_place() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(96, 200), torch.nn.GELU(), torch.nn.Linear(200, 33))
    rows = torch.randn(37, 96)
    whole = inference.in_fixed_batches(rows, 8, net)
    assert whole.shape == (37, 33)
    for cut in (1, 3, 8, 36):
        parts = [
            inference.in_fixed_batches(rows[start : start + cut], 8, net)
            for start in range(0, 37, cut)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    order = torch.randperm(37)
    assert np.array_equal(inference.in_fixed_batches(rows[order], 8, net), whole[order.numpy()])


def test_a_model_only_ever_sees_whole_batches() -> None:
    seen: list[int] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        assert torch.get_num_threads() == 1
        assert torch.is_inference_mode_enabled()
        return batch

    before = torch.get_num_threads()
    inference.in_fixed_batches(torch.ones(5, 2), 4, forward)
    assert seen == [4, 4]
    assert torch.get_num_threads() == before


def test_lengths_are_one_and_what_has_no_direction_is_nan() -> None:
    given = np.array([[3, 4], [0, 0], [np.inf, 1], [np.nan, 1], [1e-20, 0]], np.float32)
    found = inference.unit_norm(given)
    assert found.dtype == np.float32
    assert found[[0, 4]].tolist() == [[np.float32(0.6), np.float32(0.8)], [1, 0]]
    assert np.isnan(found[1:4]).all()


def test_a_device_that_is_not_there_is_named() -> None:
    assert inference.pick_device("cpu") == "cpu"
    if torch.cuda.is_available():
        pytest.skip("this machine has a cuda device")
    assert inference.pick_device("auto") == "cpu"
    with pytest.raises(ValueError, match=r'device = "cuda".*hint: device = "auto"'):
        inference.pick_device("cuda")


def test_torchvision_can_be_imported() -> None:
    inference.import_torchvision()
    inference.import_torchvision()
    from torchvision.transforms import Normalize

    assert Normalize
