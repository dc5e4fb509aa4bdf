"""What computed a result, as far as it can change it: versions of libraries, CPU instructions, device.

Every manifest records it, and the runs in MLflow are tagged with it. What it makes run again is decided
elsewhere: the versions of libraries, without their local part, are among the dependencies of a stage
(``offramp.lineage.code``), so another version makes `dvc status` name the stage and `dvc repro` run it. The
instruction set, the device and the local part (``+cpu``, ``+cu130``) make nothing run again. They change the
last digits of what is computed, but they belong to the machine, and results that were pulled from another
machine must stay usable.

Importing this module does not import torch, so that preparing text does not depend on it.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
}
"""Libraries whose version can change a result: the name imported, and the distribution it comes in."""

TEXT_LIBRARIES = ("numpy", "tokenizers", "transformers")
"""Those of them that turn text into token ids."""

_chosen = {"device": "cpu"}
"""What ``set_device`` was told last; a process that never chose a device computes on the CPU."""


def set_device(device: str) -> None:
    """Say which device this process computes on from now, in words."""
    _chosen["device"] = device


@cache
def instruction_set() -> str:
    """The vector instructions that torch's kernels use on this CPU, such as AVX2 or AVX512 + AMX."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability} + AMX" if torch.cpu._is_amx_tile_supported() else capability


def text_versions() -> dict[str, str]:
    """What token ids depend on, alike on any machine. Versions are whole, with their local part."""
    return {name: version(LIBRARIES[name]) for name in TEXT_LIBRARIES}


def computing_versions() -> dict[str, str]:
    """What everything that is computed depends on: all libraries, ``cpu`` and ``device``."""
    versions = {name: version(LIBRARIES[name]) for name in LIBRARIES}
    return {**versions, "cpu": instruction_set(), **_chosen}
