"""Peak FLOP/s of known GPUs: dense (no structured sparsity), tensor cores with fp32 accumulation where there are any.

Sources are the vendor's data sheets and architecture white papers; where a sheet gives the sparse rate, half of it is
taken. ``fp32`` is the rate of the plain cores, ``tf32`` that of fp32 matrix products under
``torch.set_float32_matmul_precision("high")``.
"""

from __future__ import annotations

import re
from typing import Literal

NumberFormat = Literal["bf16", "fp16", "tf32", "fp32"]

_H100_SXM = {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}
_H100_NVL = {"bf16": 835.5e12, "fp16": 835.5e12, "tf32": 417.5e12, "fp32": 60.0e12}

_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    # NVIDIA A100 Tensor Core GPU data sheet (2021): one rate for PCIe and SXM, 40 and 80 GB.
    (r"\bA100\b", {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    # NVIDIA H100 data sheet, column PCIe (2022): sparse 1,513 / 756 TFLOPS.
    (r"\bH100 PCIe\b", {"bf16": 756.5e12, "fp16": 756.5e12, "tf32": 378e12, "fp32": 51e12}),
    # NVIDIA H100 data sheet, column NVL (2024): sparse 1,671 / 835 TFLOPS.
    (r"\bH100 NVL\b", _H100_NVL),
    # NVIDIA H100 architecture white paper, table 2, SXM5; the driver calls it "NVIDIA H100 80GB HBM3".
    (r"\bH100\b.*(HBM3|SXM)", _H100_SXM),
    # NVIDIA H200 data sheet (2024): NVL as H100 NVL, SXM as H100 SXM; memory differs.
    (r"\bH200 NVL\b", _H100_NVL),
    (r"\bH200\b", _H100_SXM),
    # NVIDIA HGX B200 data sheet (2025), an eighth of 8 GPUs: sparse 36 PFLOPS bf16, 18 PFLOPS TF32; 600 TFLOPS fp32.
    (r"\bB200\b", {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12, "fp32": 75e12}),
    # NVIDIA L40S data sheet (2023): 362.05 | 733 sparse.
    (r"\bL40S\b", {"bf16": 362.05e12, "fp16": 362.05e12, "tf32": 183e12, "fp32": 91.6e12}),
    # NVIDIA A10 data sheet (2021). The A10G of AWS is another part: not in the table.
    (r"\bA10\b", {"bf16": 125e12, "fp16": 125e12, "tf32": 62.5e12, "fp32": 31.2e12}),
    # NVIDIA V100 data sheet (2020): no bf16 and no TF32 in hardware.
    (r"\bV100-SXM[23]", {"fp16": 125e12, "tf32": 15.7e12, "fp32": 15.7e12}),
    (r"\bV100-PCIE", {"fp16": 112e12, "tf32": 14e12, "fp32": 14e12}),
    # NVIDIA T4 data sheet (2019): no bf16 and no TF32 in hardware.
    (r"\bT4\b", {"fp16": 65e12, "tf32": 8.1e12, "fp32": 8.1e12}),
    # NVIDIA Ampere GA102 white paper, table 2 (RTX 3090): fp16 and bf16 with fp32 accumulation.
    (r"\bRTX 3090$", {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12}),
    # NVIDIA Ada architecture white paper, appendix A (RTX 4090): with fp32 accumulation.
    (r"\bRTX 4090$", {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12}),
    # NVIDIA RTX Blackwell architecture white paper, appendix A (RTX 5090): with fp32 accumulation.
    (r"\bRTX 5090$", {"bf16": 209.5e12, "fp16": 209.5e12, "tf32": 104.8e12, "fp32": 104.8e12}),
)


def peak_flops(device_name: str, number_format: NumberFormat) -> float | None:
    """Dense peak of one device in FLOP/s.

    Args:
        device_name: as ``torch.cuda.get_device_name()`` gives it.
        number_format: of the matrix products: ``bf16``, ``fp16``, ``tf32`` or ``fp32``.

    Returns:
        None for a device that is not in the table (CPUs, variants with other clocks, MIG slices) and for a format
        that the device emulates: no MFU is better than a wrong one. ``monitor.peak_flops_per_device`` sets it by hand.
    """
    name = device_name.strip()
    if "MIG" in name:  # A slice of a device: its share of the peak is not in its name alone.
        return None
    for pattern, peaks in _PEAKS:
        if re.search(pattern, name):
            return peaks.get(number_format)
    return None


def number_format(precision: str, matmul_precision: str) -> NumberFormat:
    """The format of the matrix products under ``train.precision`` and ``train.matmul_precision``."""
    if precision == "bf16":
        return "bf16"
    if precision == "fp16":
        return "fp16"
    return "fp32" if matmul_precision == "highest" else "tf32"
