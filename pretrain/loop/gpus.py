"""GPUs by name: peak arithmetic, which MFU is a share of, and memory. From their data sheets; no torch.

Peaks are of dense matrices in bf16 with sums in fp32, and of fp32 without tensor cores (what PyTorch
does by default). A chip reaches less in practice (an H200 about 790 of its 989 TFLOP/s), so 80 % is
about the most that can be seen. Memory is what PyTorch tells as a device's total capacity (in its
out-of-memory messages), in GiB of 2^30 bytes; drivers differ by 1 % or so. What a data sheet calls GB is
neither: an H200's "141 GB" are 139.7 GiB to a program, which are 150.0 GB of 10^9 bytes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peaks in FLOP/s, memory in bytes as a program finds it; ``sheet_gb`` is the data sheet's word."""

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    sheet_gb: float

    def peak_flops(self, precision: str) -> float:
        """Of the precision of a run, "bf16" or "fp32"."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


# name, bf16 TFLOP/s, fp32 TFLOP/s, GiB, the data sheet's "GB" (of one GPU: nvidia.com/en-us/data-center/h200
# says 141GB; GB200 and B200 of the NVL72 and HGX pages, GH200 the one with 96GB; amd.com for MI300X).
# A longer name stands before the shorter one it contains.
_TABLE = (
    ("GB200", 2450, 80, 184, 186),
    ("B200", 2250, 75, 178.3, 180),
    ("GH200", 989, 67, 94.5, 96),
    ("H200", 989, 67, 139.7, 141),
    ("H100 NVL", 835, 60, 93, 94),
    ("H100 PCIe", 756, 51, 79.1, 80),
    ("H100", 989, 67, 79.1, 80),
    ("H800", 989, 67, 79.1, 80),
    ("H20", 148, 44, 95, 96),
    ("A100 40GB", 312, 19.5, 39.4, 40),
    ("A100", 312, 19.5, 79.1, 80),
    ("A800", 312, 19.5, 79.1, 80),
    ("A40", 149.7, 37.4, 44.4, 48),
    ("A30", 165, 10.3, 23.5, 24),
    ("A10G", 70, 35, 22, 24),
    ("A10", 125, 31.2, 22, 24),
    ("RTX A6000", 154.8, 38.7, 47.5, 48),
    ("RTX 6000 Ada", 364, 91, 47.5, 48),
    ("L40S", 362, 91.6, 44.4, 48),
    ("L40", 181, 90.5, 44.4, 48),
    ("L4", 121, 30.3, 22, 24),
    ("RTX 5090", 209.5, 104.8, 31.4, 32),
    ("RTX 4090", 165.2, 82.6, 23.5, 24),
    ("RTX 3090", 71, 35.6, 23.5, 24),
    ("MI300X", 1307, 163, 191.5, 192),
)
NAMES = tuple(row[0] for row in _TABLE)


def find(name: str) -> Gpu | None:
    """By what torch calls it ("NVIDIA H100 80GB HBM3") or a person does ("h100"); None where not known."""
    have = re.findall(r"[a-z]+\d*[a-z]*|\d+[a-z]*", name.lower())
    rows = [row for row in _TABLE if all(word in have for word in row[0].lower().split())]
    if not rows and have:  # "4090", "rtx4090": a part of one name only
        rows = [row for row in _TABLE if "".join(have) in row[0].lower().replace(" ", "")]
        rows = rows if len(rows) == 1 else []
    for known, bf16, fp32, memory, sheet_gb in rows[:1]:
        return Gpu(known, bf16 * 1e12, fp32 * 1e12, memory * 2**30, sheet_gb)
    return None


def named(name: str) -> Gpu:
    """As ``find``. Raises ValueError with a hint for a name not known."""
    found = find(name)
    if found is None:
        near = difflib.get_close_matches(name.upper(), NAMES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(NAMES)}"
        raise ValueError(f"no GPU {name!r} is known. hint: {hint}")
    return found
