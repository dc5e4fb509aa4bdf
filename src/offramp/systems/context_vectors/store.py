"""The ``contexts`` artifact: what a context block makes of every token of a stream, layer by layer.

Every layer is a folder of its own, ``layer_<i>``, in the form of the ``states`` artifact with one exit, for
layers differ in width: row t of its table and of its hidden states is token t. The metadata holds the digest
of the stream, so that contexts cannot be read beside tokens they were not made from. Writing and reading hold
one shard at a time, whatever the length of the stream.

Shapes: N tokens, n tokens of a shard, d_i the width of layer i.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.errors import UserError
from offramp.states.store import States, StatesWriter

KIND = "contexts"
SHARD = 65_536
"""Tokens of one shard, of every layer: what a reader holds at one time."""


def stream_digest(tokens: Tensor, begins: Tensor) -> str:
    """The digest of a stream of token ids (N,) and of where its documents begin (N,)."""
    digest = hashlib.sha256(tokens.to(torch.int64).numpy().tobytes())
    digest.update(begins.numpy().tobytes())
    return digest.hexdigest()


def write_contexts(
    path: Path,
    tokens: Tensor,
    begins: Tensor,
    parts: Iterable[Sequence[Tensor]],
    params: dict[str, Any],
    *,
    inputs: dict[str, Artifact] | None = None,
    dtype: str = "float16",
    shard: int = SHARD,
) -> Artifact:
    """Write ``parts``, outputs (n, d_i) of all layers for consecutive tokens, in shards of at most ``shard``
    tokens.

    A part is never cut: where one is larger, so is its shard. Raises UserError where they are not as many as
    the tokens, or do not fit ``dtype``.
    """
    with create_artifact(path, KIND, params, inputs or {}) as out:
        writers: list[StatesWriter] = []
        written = 0
        for outputs in parts:
            rows = slice(written, written + len(outputs[0]))
            if not writers:
                writers = [
                    StatesWriter(_folder(out.path, layer), 1, dtype, shard) for layer in range(len(outputs))
                ]
            columns = {"token": tokens[rows].numpy(), "begins": begins[rows].numpy()}
            for writer, output in zip(writers, outputs, strict=True):
                writer.add(columns, [output])
            written = rows.stop
            del outputs, output  # before the next part is made
        for writer in writers:
            writer.close()
        if written != len(tokens):
            raise UserError(
                f"contexts: {written} were made for {len(tokens)} tokens; "
                "make them from the stream they belong to"
            )
        out.meta.update(
            layers=len(writers),
            tokens=written,
            shards=writers[0].shards,
            exits=1,
            window=1,
            stream=stream_digest(tokens, begins),
        )
    return open_artifact(path, KIND, verify=False)


def _folder(root: Path, layer: int) -> Path:
    folder = root / f"layer_{layer}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Contexts:
    """An opened ``contexts`` artifact beside the stream it was made from."""

    def __init__(self, artifact: Artifact, tokens: Tensor, begins: Tensor):
        """UserError where the contexts are of another stream than tokens (N,) with documents at ``begins``
        (N,)."""
        digest = stream_digest(tokens, begins)
        if artifact.meta["stream"] != digest:
            raise UserError(
                f"{artifact.path} holds contexts of another token stream (digest "
                f"{artifact.meta['stream'][:12]}) than the one given (digest {digest[:12]}); "
                "cache the contexts of these tokens"
            )
        self.tokens, self.begins = tokens, begins
        folders = [artifact.path / f"layer_{layer}" for layer in range(artifact.meta["layers"])]
        self.layers = [States(replace(artifact, path=folder)) for folder in folders]
        self.shards: int = artifact.meta["shards"]

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Which tokens, and the outputs (n, d_i) of all layers for them, as float32; a shard at a time."""
        start = 0
        for outputs in zip(*(layer.hidden_shards(0) for layer in self.layers)):
            rows = slice(start, start + len(outputs[0]))
            yield rows, [output.float() for output in outputs]
            start = rows.stop

    def layer(self, index: int) -> Tensor:
        """All of one layer, (N, d_i): for what has to see the whole, at the price of its memory."""
        return self.layers[index].hidden(0)
