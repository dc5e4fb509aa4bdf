"""A checkpoint as the subject of ``analysis.suitability``: exits by least squares, on a few windows of text.

Every window goes through the model once. Those of two thirds of the documents fit the maps
(``training.least_squares``), nothing of them is kept but sums; those of the others are read out at every exit
and kept as three numbers per token and readout. All that can be wrong with the request is said before the
weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.analysis.readings import BATCH, Normed, read_windows
from offramp.analysis.suitability import ROUNDS, Subject, in_batches
from offramp.artifacts.artifact import open_artifact
from offramp.artifacts.manifest import MANIFEST
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.corpus.excerpts import DEFAULT_TEXT, EVERY, Windows, draw, read_documents, split
from offramp.corpus.tokenizer import Encoder
from offramp.errors import UserError
from offramp.models.pretrained import PretrainedLM, load_pretrained
from offramp.models.store import load_model
from offramp.nn.translators import Affine
from offramp.results.suitability import LEAST_SQUARES, MeasuredText
from offramp.routing.split import spread_windows
from offramp.training.least_squares import TOKENS_PER_FEATURE, fit_maps, sums
from offramp.vocabulary import RAW, TUNED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOKENS = 30_000
"""Tokens that a checkpoint is run on, if not told otherwise."""
WINDOW = 128
"""Tokens of a window, if not told otherwise and the model has as many positions."""
BATCH_SIZE = 1
"""Windows of a timed batch, if not told otherwise."""
HELD_OUT = 8
"""Every so many-th document, or stretch, to fit on is held out to choose the ridge."""
PROPAGATION_WINDOWS = 8
"""Windows on which state propagation is measured."""
QUARTERS = (1, 2, 3)
"""Quarters of the depth after which exits stand, if not told otherwise."""


def of_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    exits_after: Sequence[int] | None = None,
    text: Sequence[Path] = (),
    window: int | None = None,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
    batch_size: int = BATCH_SIZE,
) -> Subject:
    """A checkpoint as it is, its exits read out raw and by least squares.

    It is run on about ``tokens`` tokens of ``text``, files and folders, and timed on ``rounds`` batches of
    ``batch_size`` windows. UserError for a checkpoint that cannot be used or cut after the layers
    ``exits_after``, and for too little text.
    """
    config = read_config(checkpoint)
    exits = _exits(config, checkpoint, exits_after)
    window = _window(config, window)
    encode = Encoder(load_tokenizer(checkpoint, config), "pretrained")
    excerpts = _Excerpts.of(text, encode, window, tokens, config.hidden_size)
    model = load_pretrained(checkpoint, exits, window, translator="affine").to(device)
    _fit(model, excerpts, device)
    kinds: dict[str, Normed] = {RAW: _raw(model), LEAST_SQUARES: model.readout_input}
    return _subject(model, checkpoint.name_or_path, excerpts, kinds, device, rounds, batch_size)


def of_trained(
    folder: Path,
    device: torch.device,
    *,
    text: Sequence[Path] = (),
    window: int | None = None,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
    batch_size: int = BATCH_SIZE,
) -> Subject:
    """The same of an ``lm`` artifact of a checkpoint, whose exits were trained: also read out as they are.

    ``text`` must be given, and be none that it was trained on. UserError where it is not, and where the model
    began as no checkpoint.
    """
    if not text:
        raise UserError(
            f"--model {folder} was trained, maybe on the text that is read by default; give --text that it "
            "has not seen, or leave --model out to measure its project's test split"
        )
    lm = open_artifact(folder, "lm")
    model = load_model(lm, Path.cwd())
    if not isinstance(model, PretrainedLM):
        raise UserError(
            f"--model {folder} holds a model that began as no checkpoint, and no tokenizer; leave --model "
            "out, in its project's folder"
        )
    checkpoint = model.config.checkpoint.under(Path.cwd())
    config = read_config(checkpoint)
    window = min(WINDOW, model.config.window) if window is None else window
    if window > model.config.window:
        raise UserError(
            f"--window {window} exceeds the {model.config.window} tokens that {folder} was trained on; give "
            "at most that"
        )
    encode = Encoder(load_tokenizer(checkpoint, config), "pretrained")
    excerpts = _Excerpts.of(text, encode, window, tokens, model.config.width)
    model = model.to(device)
    trained, affine = model.translators, (Affine(model.config.width).to(device) for _ in model.translators)
    model.translators = nn.ModuleList(affine)
    _fit(model, excerpts, device)
    fitted, model.translators = model.translators, trained
    kinds: dict[str, Normed] = {
        RAW: _raw(model),
        LEAST_SQUARES: lambda exit, x: fitted[exit](model.norm(x)),
        TUNED: lambda exit, x: model.readout_input(exit, model.exit_states(exit, x)),
    }
    return _subject(model, str(folder), excerpts, kinds, device, rounds, batch_size)


def is_trained(folder: Path) -> bool:
    """Whether a folder is an artifact, not a checkpoint as it is."""
    return (folder / MANIFEST).is_file()


def quarters(layers: int) -> list[int]:
    """The layers after which exits stand by default, of a model with so many."""
    return sorted({round(layers * quarter / 4) for quarter in QUARTERS} - {0, layers})


def _exits(config: PreTrainedConfig, checkpoint: Checkpoint, wanted: Sequence[int] | None) -> list[int]:
    layers = config.num_hidden_layers
    exits = quarters(layers) if wanted is None else list(wanted)
    if not exits:
        raise UserError(
            f"--model {checkpoint.name_or_path} has {layers} layer(s): no exit can stand before the last"
        )
    if any(later <= earlier for earlier, later in pairwise((0, *exits, layers))):
        raise UserError(
            f"--exits-after {' '.join(map(str, exits))}: give increasing numbers of layers from 1 to "
            f"{layers - 1}, each once; {checkpoint.name_or_path} has {layers} layers"
        )
    return exits


def _window(config: PreTrainedConfig, wanted: int | None) -> int:
    most = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or WINDOW)
    if wanted is None:
        return min(WINDOW, most)
    if wanted > config.max_position_embeddings:
        raise UserError(
            f"--window {wanted} exceeds the model's {config.max_position_embeddings} positions; give at most "
            "that"
        )
    return wanted


class _Excerpts:
    """Windows to fit on, some of them held out, and windows to measure on."""

    def __init__(self, fit: Windows, measured: Windows, source: str, window: int):
        self.fit, self.measured, self.source, self.window = fit, measured, source, window
        self.held_out = held_out(fit.group)

    @classmethod
    def of(cls, text: Sequence[Path], encode: Encoder, window: int, tokens: int, width: int) -> _Excerpts:
        """About ``tokens`` tokens of a text; UserError where they are, or it is, too few for the features."""
        if tokens < window:
            raise UserError(
                f"--tokens {tokens} is less than one --window of {window}; give more, e.g. {TOKENS}"
            )
        measured, fit = shares(tokens // window)
        least = least_windows(window, width)
        if tokens // window < least:
            raise UserError(
                f"--tokens {tokens}: too few to fit exits of {width} features and to measure them; give at "
                f"least {least * window}"
            )
        to_fit, to_measure = split(read_documents(text))
        out = cls(
            draw(to_fit, encode, window, fit),
            draw(to_measure, encode, window, measured),
            ", ".join(map(str, text)) or DEFAULT_TEXT,
            window,
        )
        if not _enough(len(out.fit) - int(out.held_out.sum()), window, width) or out.measured.groups < 2:
            got = (len(out.fit) + len(out.measured)) * window
            raise UserError(
                f"--text {out.source}: its windows of {window} have {got} tokens, too few to fit exits of "
                f"{width} features and to measure them; give at least {least * window}, or a smaller --window"
            )
        return out


def shares(windows: int) -> tuple[int, int]:
    """How many of so many windows are to measure on, and how many to fit on."""
    measured = max(2, windows // EVERY)
    return measured, windows - measured


def least_windows(window: int, width: int) -> int:
    """The least number of windows that is enough to fit maps of ``width`` features, and to measure them."""
    return next(
        total
        for total in count(EVERY)
        if _enough(shares(total)[1] - -(-shares(total)[1] // HELD_OUT), window, width)
    )


def held_out(group: np.ndarray) -> np.ndarray:
    """A mask of the windows, whose groups are (S,), that choose the ridge: of every HELD_OUT-th group."""
    names, place = np.unique(group, return_inverse=True)
    if len(names) < 2:
        return np.arange(len(group)) % HELD_OUT == HELD_OUT - 1
    return place % min(HELD_OUT, len(names)) == min(HELD_OUT, len(names)) - 1


def _enough(windows: int, window: int, width: int) -> bool:
    return windows * window >= TOKENS_PER_FEATURE * width


@torch.no_grad()
def _fit(model: PretrainedLM, excerpts: _Excerpts, device: torch.device) -> None:
    """Make the maps of least squares the model's translators, which are affine.

    They are not scaled down as those are that training begins with: that lowers the perplexity of an exit
    where all leave, but makes it less sure of the tokens it is right to be sure of, which are those that can
    leave. On SmolLM2 (9,984 tokens, 78 documents) it takes what is attainable at 1 % more perplexity from
    4.6 % of the FLOPs [3.7, 5.2] to 3.3 % [2.9, 4.0].
    """
    bar = tqdm(total=len(excerpts.fit), desc="fit the exits", unit="window", disable=None, leave=False)

    def batches(chosen: np.ndarray) -> Iterator[Tensor]:
        for rows in torch.from_numpy(np.flatnonzero(chosen)).split(BATCH):
            yield excerpts.fit.tokens[rows]
            bar.update(len(rows))

    with bar:
        train, held = (
            sums(model, batches(chosen), device=device) for chosen in (~excerpts.held_out, excerpts.held_out)
        )
    for translator, fit in zip(model.translators, fit_maps(train, held)):
        linear = cast(Affine, translator).last
        linear.weight.copy_(
            fit.weight - torch.eye(len(fit.weight), dtype=torch.float64, device=fit.weight.device)
        )
        linear.bias.copy_(fit.bias)


def _raw(model: PretrainedLM) -> Normed:
    last = model.config.num_blocks - 1
    return lambda exit, x: model.readout_input(last, x)


def _subject(
    model: PretrainedLM,
    name: str,
    excerpts: _Excerpts,
    kinds: dict[str, Normed],
    device: torch.device,
    rounds: int,
    batch_size: int,
) -> Subject:
    measured = excerpts.measured
    size = min(batch_size, len(measured))
    timed = torch.arange(rounds * size) % len(measured)
    propagated = spread_windows(len(measured), PROPAGATION_WINDOWS)
    return Subject(
        name=name,
        model=model,
        window=excerpts.window,
        readings=read_windows(model, measured, kinds, device),
        batches=in_batches(measured.tokens[timed], measured.targets[timed], size, device),
        propagated=in_batches(measured.tokens[propagated], measured.targets[propagated], BATCH, device),
        grouped_by=measured.grouped_by,
        text=MeasuredText(
            source=excerpts.source,
            documents=measured.documents,
            groups=measured.groups,
            fit_documents=excerpts.fit.documents,
            fit_tokens=excerpts.fit.tokens.numel(),
        ),
    )
