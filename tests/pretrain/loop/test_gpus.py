"""GPUs are found by torch's names and by people's."""

import pytest

from pretrain.loop import gpus


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H200", "H200"), ("h200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("NVIDIA A100-SXM4-80GB", "A100"), ("a100-40gb", "A100 40GB"),
        ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("NVIDIA A10G", "A10G"), ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GH200 480GB", "GH200"), ("NVIDIA B200", "B200"), ("NVIDIA H20", "H20"), ("rtx-4090", "RTX 4090"),
        ("4090", "RTX 4090"), ("rtx4090", "RTX 4090"), ("a6000", "RTX A6000"),
    ],
)  # fmt: skip
def test_names(name: str, found: str) -> None:
    gpu = gpus.find(name)
    assert gpu is not None
    assert gpu.name == found


def test_peaks_are_of_the_precision() -> None:
    gpu = gpus.named("a100")
    assert gpu.peak_flops("bf16") == 312e12
    assert gpu.peak_flops("fp32") == 19.5e12
    assert gpu.memory_bytes == pytest.approx(79.1 * 2**30)
    assert gpus.named("h200").memory_bytes == pytest.approx(139.7 * 2**30)
    assert gpus.named("h200").sheet_gb == 141


@pytest.mark.parametrize("name", gpus.NAMES)
def test_what_a_program_finds_is_a_little_less_than_the_sheet_s_word_in_gib(name: str) -> None:
    gpu = gpus.named(name)
    assert 0.9 * gpu.sheet_gb <= gpu.memory_bytes / 2**30 <= gpu.sheet_gb


def test_an_unknown_one_is_answered_with_near_ones() -> None:
    assert gpus.find("") is None
    assert gpus.find("rtx") is None
    with pytest.raises(ValueError, match=r"no GPU 'h300' is known. hint: did you mean .*H200"):
        gpus.named("h300")
