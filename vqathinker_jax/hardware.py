"""The machines that training is planned for: what a chip holds and how fast it goes, and how many of them there are.

Figures are the makers' data sheets': dense bf16 products, memory, and links in one direction. `link` is what a chip
sends along one axis of its network, both ways round a ring.
Source: Google Cloud's TPU pages, "How to Scale Your Model" (links), NVIDIA's H100 and H200 data sheets.
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Literal

from vqathinker_jax.records import InputError


@dataclass(frozen=True)
class Chip:
    """memory: bytes that a program may use. flops: operations a second. bandwidth, link: bytes a second."""

    platform: Literal["tpu", "gpu", "cpu"]
    memory: int
    flops: float
    bandwidth: float
    link: float


GIB = 2**30
SHARE_OF_GPU = 0.92
CHIPS = {
    # What XLA leaves to programs is a quarter of a GiB less than the sheet says.
    "v4": Chip("tpu", int(31.75 * GIB), 275e12, 1228e9, 2 * 45e9),
    "v5e": Chip("tpu", int(15.75 * GIB), 197e12, 819e9, 2 * 45e9),
    "v5p": Chip("tpu", int(94.75 * GIB), 459e12, 2765e9, 2 * 90e9),
    "v6e": Chip("tpu", int(31.25 * GIB), 918e12, 1640e9, 2 * 90e9),
    # Of a GPU's memory `train` lets JAX take `SHARE_OF_GPU`; JAX by itself would take three quarters.
    "h100": Chip("gpu", int(SHARE_OF_GPU * 80e9), 989e12, 3350e9, 450e9),
    "h200": Chip("gpu", int(SHARE_OF_GPU * 141e9), 989e12, 4800e9, 450e9),
    # Nominal speeds: what a plan for this machine is good for is its memory.
    "cpu": Chip("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1e11, 2e10, 1e10),
}


@dataclass(frozen=True)
class Target:
    """So many chips of a kind. topology: the shape of a TPU slice, as 4x4x4; empty for others."""

    kind: str
    count: int
    topology: str = ""

    @property
    def chip(self) -> Chip:
        """What each of them is; a CPU's memory is shared by all."""
        return CHIPS[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}:{self.topology or self.count}"


def parse_target(text: str) -> Target:
    """The hardware of a text such as v5p:4x4x4, v5e:8x8, h200:8 or cpu:8.

    Raises: InputError for anything else.
    """
    found = re.fullmatch(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+){{0,2}})", text)
    sizes = [int(size) for size in found[2].split("x")] if found else []
    if not found or 0 in sizes:
        known = ", ".join(CHIPS)
        raise InputError(f"topology {text!r}: give a kind ({known}) and a shape, as v5p:4x4x4, v5e:8x8 or h200:8")
    kind = found[1]
    dimensions = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}.get(kind, 1)
    if len(sizes) != dimensions:
        raise InputError(f"topology {text!r}: {kind} has {dimensions} dimensions, as {'x'.join(['4'] * dimensions)}")
    return Target(kind, math.prod(sizes), found[2] if dimensions > 1 else "")
