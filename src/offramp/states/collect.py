"""Stage ``collect``: one forward pass over a split that keeps what later stages need of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.errors import writing
from offramp.machine.device import autocast, require_precision
from offramp.machine.processes import ALONE, Processes
from offramp.machine.watch import NOBODY, Watch
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM
from offramp.params import Collect
from offramp.results.shape import exit_key
from offramp.results.states import CollectedSplit, ExitLoss, LossShare
from offramp.states.statistics import SATURATION, Readout, saturation, token_statistics
from offramp.states.store import READOUT, States, StatesWriter, join_tables, shard_starts


def collect_states(
    model: Blockwise,
    windows: TokenWindows,
    path: Path,
    settings: Collect,
    *,
    params: dict[str, Any],
    inputs: dict[str, Artifact],
    device: torch.device,
    processes: Processes = ALONE,
    watch: Watch = NOBODY,
) -> Artifact:
    """Write the ``states`` artifact of a split to ``path``, shard by shard.

    ``params`` and ``inputs`` are for its manifest. Several processes write a share of the shards each; the
    artifact has the bytes that one process would have written. UserError where the device cannot run the
    model in ``settings.precision``.
    """
    require_precision(device, settings.precision, "collect.precision")
    model = model.to(device).eval()
    exits = model.config.num_blocks
    batches = torch.arange(len(windows)).split(settings.batch_size)
    starts = shard_starts([len(batch) * windows.window for batch in batches], settings.shard_tokens)
    shards = processes.share(range(len(starts)))
    first, last = ([*starts, len(batches)][shard] for shard in (shards.start, shards.stop))
    with create_artifact(path, "states", params, inputs) if processes.main else nullcontext() as out:
        folder = processes.broadcast(out.path if out else None)
        writer = StatesWriter(folder, exits, settings.dtype, settings.shard_tokens, first_shard=shards.start)
        iterated = iterate_states(
            model, windows, batches[first:last], device, no_bar=processes.no_bar, precision=settings.precision
        )
        for number, (columns, hidden) in enumerate(iterated, 1):
            writer.add(columns, hidden)
            tokens = len(columns["token"]) * processes.count  # the others are about as far
            watch.step(path.name, number, tokens, share_collected=number / (last - first))
        writer.close()
        processes.wait()
        if out:
            join_tables(folder)
            if isinstance(model, BlockwiseLM):
                save_readouts(model, folder / READOUT)
            out.meta.update(
                exits=exits,
                tokens=len(windows) * windows.window,
                shards=len(starts),
                window=windows.window,
                width=model.config.width,
                vocab_size=model.config.vocab_size,
                dtype=settings.dtype,
                precision=settings.precision,
            )
    processes.wait()
    return open_artifact(path, "states", verify=False)


@torch.no_grad()
def iterate_states(
    model: Blockwise,
    windows: TokenWindows,
    batches: Sequence[Tensor],
    device: torch.device,
    *,
    no_bar: bool | None = None,
    precision: str = "fp32",
) -> Iterator[tuple[dict[str, np.ndarray], list[Tensor]]]:
    """Yield, batch by batch, the columns (N,) of the token table and the hidden states (N, D) of every exit.

    ``batches`` hold the indices of windows; N are the tokens of a batch. ``precision`` is that of the layers;
    readouts and statistics are float32. ``no_bar`` is tqdm's ``disable``.
    """
    exits = range(model.config.num_blocks)
    readouts = [Readout(model.readout_matrix(exit)) for exit in exits]
    length = windows.window
    for indices in tqdm(batches, desc="collect", unit="batch", disable=no_bar):
        tokens, targets = windows.batch(indices)
        x, states, read, saturated = model.embed(tokens.to(device)), [], [], []
        for exit in exits:
            with autocast(device, precision):
                before, x = model.run_block_in_parts(exit, x)
                read.append(model.exit_states(exit, x).flatten(0, 1))
            states.append(x.flatten(0, 1))
            saturated.append(saturation(before.flatten(0, 1), states[-1]))
        normed = [model.readout_input(exit, state) for exit, state in zip(exits, read)]
        columns: dict[str, np.ndarray] = {
            "document": windows.documents(indices).ravel().astype(np.int32),
            "sequence": np.repeat(indices.numpy(), length).astype(np.int32),
            "position": np.tile(np.arange(length, dtype=np.int32), len(indices)),
            "token": tokens.flatten().numpy().astype(np.int32),
            "target": targets.flatten().numpy().astype(np.int32),
        }
        for exit, statistics in enumerate(token_statistics(normed, readouts, targets.flatten().to(device))):
            for name, values in statistics.items():
                array = values.cpu().numpy()
                columns[f"{name}_{exit}"] = array.astype(np.int32 if name == "argmax" else np.float32)
            columns[f"{SATURATION}_{exit}"] = saturated[exit].cpu().numpy()
        yield columns, states


def save_readouts(model: BlockwiseLM, file: Path) -> None:
    """Write the readouts of all exits, and the exit classifiers that were trained together with the model."""
    tensors = {
        f"exit_classifiers.{name}": value.cpu() for name, value in model.exit_classifiers.state_dict().items()
    }
    for exit in range(model.config.num_blocks):
        if exit == 0 or model.config.heads_per_exit:
            tensors[f"matrix_{exit}"] = model.readout_matrix(exit).detach().cpu().clone()
        if model.config.norm == "pre":
            norm = cast(nn.RMSNorm, model.norms[exit])
            tensors[f"norm_{exit}"] = norm.weight.detach().cpu().clone()
    with writing(file, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, file)


def summarise(states: States) -> CollectedSplit:
    """Tokens, and per exit perplexity, accuracy, and mean, spread and quartiles of the loss (nats).

    The quartiles are interpolated linearly.
    """
    exits, target = {}, states.column("target")
    for exit in range(states.num_exits):
        loss = states.column(f"loss_{exit}").astype(np.float64)
        low, median, high = np.quantile(loss, (0.25, 0.5, 0.75))
        exits[exit_key(exit)] = ExitLoss(
            ppl=float(np.exp(loss.mean())),
            accuracy=float((states.column(f"argmax_{exit}") == target).mean()),
            loss_mean=float(loss.mean()),
            loss_std=float(loss.std()),
            loss_q25=float(low),
            loss_median=float(median),
            loss_q75=float(high),
            entropy_mean=float(states.column(f"entropy_{exit}").astype(np.float64).mean()),
        )
    return CollectedSplit(tokens=states.num_tokens, **exits)


def loss_histogram(states: States, split: str, bin_width: float = 0.5) -> list[LossShare]:
    """Per exit the share of a split's tokens in every bin of loss, ``bin_width`` nats wide."""
    rows: list[LossShare] = []
    for exit in range(states.num_exits):
        loss = states.column(f"loss_{exit}")
        counts = np.bincount((loss / bin_width).astype(np.int64))
        rows += [
            LossShare(split=split, exit=exit, loss=(number + 0.5) * bin_width, share=float(count / len(loss)))
            for number, count in enumerate(counts)
        ]
    return rows
