"""What computed a result, as far as it can change it: versions of libraries, CPU instructions, device.

Every manifest records it, and the runs in MLflow are tagged with it. What it makes run again is decided
elsewhere: the versions of libraries, without their local part, are among the dependencies of a stage
(``offramp.lineage.code``), so another version makes `dvc status` name the stage and `dvc repro` run it. The
instruction set, the device and the local part (``+cpu``, ``+cu130``) make nothing run again. They change the
last digits of what is computed, but they belong to the machine, and results that were pulled from another
machine must stay usable.

This module does not import torch, so that preparing text does not depend on it: ``offramp.machine.device``
tells it about the machine.
"""

from __future__ import annotations

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

_machine: dict[str, str] = {}
"""What ``set_machine`` was told last; empty where this process never chose a device."""


def set_machine(cpu: str, device: str) -> None:
    """Say what this process computes on from now: the CPU's instruction set and the device, in words."""
    _machine.update(cpu=cpu, device=device)


def text_versions() -> dict[str, str]:
    """What token ids depend on, alike on any machine. Versions are whole, with their local part."""
    return {name: version(LIBRARIES[name]) for name in TEXT_LIBRARIES}


def computing_versions() -> dict[str, str]:
    """What everything that is computed depends on: all libraries, ``cpu`` and ``device``."""
    return {name: version(LIBRARIES[name]) for name in LIBRARIES} | _machine
