"""Calibration tokens that no classifier was fitted on, as text: in order, with their places and documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from offramp.artifacts.files import readable
from offramp.exits.store import HELD_OUT, Exits


@dataclass(frozen=True)
class HeldOutText:
    """N tokens of K exits, with what every exit says of them as if none had left before."""

    confidence: np.ndarray
    """(K-1, N) of one signal, calibrated."""
    loss: np.ndarray
    """(K, N) nats"""
    argmax: np.ndarray
    """(K, N)"""
    target: np.ndarray
    """(N,), as all that follows"""
    sequence: np.ndarray
    """The number of its window in the calibration split."""
    position: np.ndarray
    document: np.ndarray


def held_out_text(exits: Exits, signal: str) -> HeldOutText:
    """All of them, of both parts that ``Exits.held_out`` knows."""
    count = exits.config["exits"]
    of_exits = {
        "confidence": [f"{signal}_{exit}" for exit in range(count - 1)],
        "loss": [f"loss_{exit}" for exit in range(count)],
        "argmax": [f"argmax_{exit}" for exit in range(count)],
    }
    of_token = ["target", "sequence", "position", "document"]
    read = [column for columns in of_exits.values() for column in columns] + of_token
    with readable(exits.artifact.file(HELD_OUT)) as file:
        table = pq.read_table(file, columns=read)
    return HeldOutText(
        **{
            name: np.stack([table[column].to_numpy() for column in columns])
            for name, columns in of_exits.items()
        },
        **{name: table[name].to_numpy() for name in of_token},
    )
