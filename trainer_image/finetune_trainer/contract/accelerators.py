# SPDX-License-Identifier: Apache-2.0
"""Accelerators: a table of known cards, and the facts about a device that the operator reads from nodes.

`find_card` finds an accelerator by the product name that the nodes of a cluster have as a label. Sources of
the table: the data sheets of NVIDIA (B200, GB200: DGX and HGX Blackwell; H100, H200, A100, A30, A10, A40, L4,
L40, L40S, T4, V100; RTX: white papers of the architectures Ampere, Ada and Blackwell), of AWS (A10G: G5
instances) and of AMD (Instinct MI210, MI300X, MI325X).

- Memory is what the driver offers to programs, rounded to GiB: less than the name says for cards whose
  GDDR6 memory stores its own error-correcting codes, such as the L4.
- The peak is that of dense bf16 matrix products with sums in fp32. Data sheets often state twice as much,
  with structured sparsity. T4 and V100 have no bf16 units: theirs is that of fp16.
- Compute capabilities are those of NVIDIA's list of CUDA GPUs. Cards that the trainer cannot use are in the
  table, so that preflight says so before a device is requested.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from finetune_trainer.contract.base import SharedPart

GIBIBYTE: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceCard:
    """One accelerator."""

    name: str
    """Short name for messages."""
    memory_gib: int
    peak_teraflops: float
    compute_capability: tuple[int, int] | None
    """Version of the architecture of a card of NVIDIA; None for other makers."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_gib * GIBIBYTE


MIN_COMPUTE_CAPABILITY: Final = (8, 0)
"""Older cards have no bfloat16 units, and the pinned PyTorch has no kernels for most of them."""

CARDS: Final[Mapping[str, DeviceCard]] = {
    "NVIDIA-GB200": DeviceCard("GB200", 185, 2500, (10, 0)),
    "NVIDIA-B200": DeviceCard("B200", 179, 2250, (10, 0)),
    "NVIDIA-H200": DeviceCard("H200", 140, 989, (9, 0)),
    "NVIDIA-H200-NVL": DeviceCard("H200 NVL", 140, 835, (9, 0)),
    "NVIDIA-H100-80GB-HBM3": DeviceCard("H100", 80, 989, (9, 0)),
    "NVIDIA-H100-PCIe": DeviceCard("H100 PCIe", 80, 756, (9, 0)),
    "NVIDIA-H100-NVL": DeviceCard("H100 NVL", 94, 835, (9, 0)),
    "NVIDIA-A100-SXM4-80GB": DeviceCard("A100", 80, 312, (8, 0)),
    "NVIDIA-A100-80GB-PCIe": DeviceCard("A100 PCIe", 80, 312, (8, 0)),
    "NVIDIA-A100-SXM4-40GB": DeviceCard("A100", 40, 312, (8, 0)),
    "NVIDIA-A100-PCIE-40GB": DeviceCard("A100 PCIe", 40, 312, (8, 0)),
    "NVIDIA-A30": DeviceCard("A30", 24, 165, (8, 0)),
    "NVIDIA-A40": DeviceCard("A40", 45, 149.7, (8, 6)),
    "NVIDIA-A10": DeviceCard("A10", 22, 125, (8, 6)),
    "NVIDIA-A10G": DeviceCard("A10G", 22, 70, (8, 6)),
    "NVIDIA-L4": DeviceCard("L4", 22, 121, (8, 9)),
    "NVIDIA-L40": DeviceCard("L40", 45, 181, (8, 9)),
    "NVIDIA-L40S": DeviceCard("L40S", 45, 362, (8, 9)),
    "Tesla-T4": DeviceCard("T4", 15, 65, (7, 5)),
    "Tesla-V100-SXM2-16GB": DeviceCard("V100", 16, 125, (7, 0)),
    "Tesla-V100-SXM2-32GB": DeviceCard("V100", 32, 125, (7, 0)),
    "Tesla-V100-PCIE-16GB": DeviceCard("V100 PCIe", 16, 112, (7, 0)),
    "Tesla-V100-PCIE-32GB": DeviceCard("V100 PCIe", 32, 112, (7, 0)),
    "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition": DeviceCard("RTX PRO 6000", 95, 503.8, (12, 0)),
    "NVIDIA-RTX-PRO-6000-Blackwell-Workstation-Edition": DeviceCard("RTX PRO 6000", 95, 503.8, (12, 0)),
    "NVIDIA-RTX-6000-Ada-Generation": DeviceCard("RTX 6000 Ada", 47, 364.2, (8, 9)),
    "NVIDIA-RTX-A6000": DeviceCard("RTX A6000", 47, 154.8, (8, 6)),
    "NVIDIA-RTX-A5000": DeviceCard("RTX A5000", 23, 111.1, (8, 6)),
    "NVIDIA-GeForce-RTX-5090": DeviceCard("RTX 5090", 31, 209.5, (12, 0)),
    "NVIDIA-GeForce-RTX-4090": DeviceCard("RTX 4090", 23, 165.2, (8, 9)),
    "NVIDIA-GeForce-RTX-3090": DeviceCard("RTX 3090", 23, 71, (8, 6)),
    "AMD_Instinct_MI325X_OAM": DeviceCard("MI325X", 256, 1307.4, None),
    "AMD_Instinct_MI300X_OAM": DeviceCard("MI300X", 192, 1307.4, None),
    "AMD_Instinct_MI210": DeviceCard("MI210", 64, 181, None),
}
"""Cards by the node label of `PRODUCT_LABELS`.

A part of a card (MIG) and a card that pods share have labels with a suffix, and so are unknown here.
"""

PRODUCT_LABELS: Final = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")
"""Node labels with the product name: of NVIDIA's GPU feature discovery, and of AMD's node labeller."""

_BY_LABEL: Final = {label.lower(): card for label, card in CARDS.items()}


def find_card(product: str | None) -> DeviceCard | None:
    """The card with this product name, in any case; None if it is unknown."""
    return _BY_LABEL.get((product or "").lower())


def why_unusable(name: str, capability: tuple[int, int] | None) -> str | None:
    """Why the trainer cannot use a card; None if it can, or if an image of the user decides.

    Args:
        name: name of the card for the message.
        capability: its compute capability; None if NVIDIA did not make it.
    """
    if capability is None or capability >= MIN_COMPUTE_CAPABILITY:
        return None
    version, needed = (".".join(map(str, each)) for each in (capability, MIN_COMPUTE_CAPABILITY))
    return (
        f"{name} has the compute capability {version}, and training needs {needed} or newer (Ampere): it"
        " computes in bfloat16, which older cards do not have"
    )


def gibibytes(size: int) -> str:
    """GiB of a size in bytes, with two significant digits; all digits from 10 on."""
    number = size / GIBIBYTE
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


class DeviceFacts(SharedPart):
    """Properties of one device. A field is None if it is unknown."""

    product: Annotated[str | None, Field(max_length=63)] = None
    """Product name as in the node label `nvidia.com/gpu.product`."""
    memory_bytes: int | None = None
    """Memory of one device, in bytes."""
    peak_teraflops: float | None = None
    """Peak of dense bf16 matrix products, in 10^12 floating-point operations per second."""
