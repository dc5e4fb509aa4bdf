"""Training the translators of a frozen model, maps or layers, towards what full depth predicts.

The model runs once over as much text as ``pretrain.frozen.tokens`` says. Its states at the exits and at full
depth go to disk (``training.state_cache``), the sums go into the normal equations from which linear
translators begin (``training.least_squares``), and every step and every look reads from there.

The loss of an exit is KL(full depth || exit), as in the tuned lens (arXiv 2303.08112). Over a large
vocabulary that is nearly all that a step costs, so a step computes it over a sample: what full depth holds
likely anywhere in the batch, and a few of the other entries, drawn anew every time, that stand for all of
them. A look computes it over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from offramp.corpus.windows import TokenWindows
from offramp.machine.device import autocast
from offramp.machine.processes import Processes
from offramp.models.pretrained import PretrainedLM
from offramp.nn.translators import LINEAR
from offramp.params import Pretrain
from offramp.states.statistics import Readout, token_statistics
from offramp.training.fit import Look, Loss, Phase
from offramp.training.least_squares import (
    NormalEquations,
    begin,
    require_tokens,
    sums_device,
)
from offramp.training.losses import LIKELY, VocabularySample, likeliest, total_divergences
from offramp.training.sequences import evenly_spaced
from offramp.training.snapshots import Snapshots
from offramp.training.state_cache import StateCache

SCALED_BY = 2048
"""Tokens that were held out, by which the scales of least squares are chosen."""
TOKENS = "pretrain.frozen.tokens"


class Translators:
    """The losses and the looks of training the translators of ``model``."""

    def __init__(
        self,
        model: PretrainedLM,
        params: Pretrain,
        snapshots: Snapshots,
        device: torch.device,
        processes: Processes,
    ):
        self.model, self.params, self.snapshots = model, params, snapshots
        self.device, self.processes = device, processes
        last = model.config.num_blocks - 1
        self.matrix = model.readout_matrix(last).detach()
        """The readout matrix (V, D), which all exits share."""
        self.readout = Readout(self.matrix)

    def phase(self, train: TokenWindows, calibration: TokenWindows, looks: Tensor, fresh: bool) -> Phase:
        """Only translators learn; where they have nothing to learn, the phase looks at the model as it is.

        Runs the model, but for what an interrupted run has left; a ``fresh`` phase begins with the maps of
        least squares, where the parameters say so.
        """
        model = self.model
        model.requires_grad_(False)
        model.translators.requires_grad_(True)
        parameters = list(model.translators.parameters())
        windows = self._learned_from(train)
        held_out, held_out_sums = self._run(calibration, looks, "calibration")
        phase = Phase(
            name="frozen",
            parameters=parameters,
            steps=0,
            num_sequences=len(windows),
            window=train.window,
            starts_trained=True,
            losses=lambda indices, step: [],
            evaluate=lambda: self.look(held_out, calibration, looks),
        )
        if not parameters:
            return phase
        cache, train_sums = self._run(train, windows, "train", learned=True)
        if fresh and self.fits:
            self._begin(train_sums, held_out, held_out_sums)
        return replace(
            phase,
            steps=self.params.steps,
            losses=lambda indices, step: [self.losses(cache, indices, step)],
        )

    @property
    def fits(self) -> bool:
        """Whether the translators begin with the maps of least squares."""
        return self.model.config.translator in LINEAR and self.params.frozen.init == "least_squares"

    def begin(self, train: TokenWindows, calibration: TokenWindows, looks: Tensor) -> None:
        """Make the maps of least squares the translators, where the parameters say so, and keep no states.

        This is how joint training begins. UserError where the text is too short for the features.
        """
        if not self.fits:
            return
        windows = self._learned_from(train)
        held_out, held_out_sums = self._run(calibration, looks, "calibration")
        _, train_sums = self._run(train, windows, "train", kept=False)
        self._begin(train_sums, held_out, held_out_sums)

    def losses(self, cache: StateCache, windows: Tensor, step: int) -> dict[str, Loss]:
        """Mean KL(full depth || exit) in nats of every exit but the last, over all tokens of the cached
        windows with the given numbers, as estimated from the step's sample of the vocabulary."""
        certain = torch.zeros(len(self.matrix), device=self.device)
        certain[cache.entries_of(windows).flatten().to(self.device)] = 1
        # one sample for all processes, from the batch as a whole
        certain = self.processes.sum_tensors({"certain": certain})["certain"] > 0
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        sample = VocabularySample.draw(certain, generator)
        rows = [sample.rows(self.matrix)] * self.model.config.num_blocks
        with autocast(self.device, self.params.precision):
            inputs = self.readout_inputs(cache, windows)
            totals = total_divergences(inputs, rows, sample.log_weights)
        tokens = len(windows) * cache.window
        return {f"exit {exit}": Loss(total / tokens, tokens) for exit, total in enumerate(totals)}

    @torch.no_grad()
    def look(self, cache: StateCache, calibration: TokenWindows, windows: Tensor) -> dict[int, Look]:
        """Of every exit but the last, over the calibration windows whose states are in the cache."""
        exits = range(self.model.config.num_blocks - 1)
        sums, tokens = [0.0] * (2 * len(exits)), 0.0
        for places in self.processes.share(torch.arange(len(windows)).split(self.params.batch_size)):
            targets = calibration.batch(windows[places])[1].flatten().to(self.device)
            with autocast(self.device, self.params.precision):
                read = self.readout_inputs(cache, places)
            statistics = token_statistics(read, [self.readout] * len(read), targets)[:-1]
            totals = [
                part[name].double().sum().item() for name in ("loss", "divergence") for part in statistics
            ]
            sums, tokens = [total + more for total, more in zip(sums, totals)], tokens + targets.numel()
        *sums, tokens = self.processes.sum([*sums, tokens])
        return {exit: Look(sums[exit] / tokens, sums[len(exits) + exit] / tokens) for exit in exits}

    def readout_inputs(self, cache: StateCache, windows: Tensor) -> list[Tensor]:
        """What the readout matrix is applied to, (B * T, D) of every exit, of cached windows."""
        return [
            self.model.readout_input(exit, self.model.exit_states(exit, x.to(self.device)).flatten(0, 1))
            for exit, x in enumerate(cache.states(windows))
        ]

    def _learned_from(self, train: TokenWindows) -> Tensor:
        """The windows that the parameters ask for; UserError where they are too few to fit maps by."""
        windows = evenly_spaced(len(train), self.params.frozen.tokens // train.window)
        if self.fits:
            require_tokens(len(windows) * train.window, self.model.config.width, TOKENS)
        return windows

    def _begin(
        self, train_sums: NormalEquations, held_out: StateCache, held_out_sums: NormalEquations
    ) -> None:
        some = evenly_spaced(held_out.windows, max(1, SCALED_BY // held_out.window))
        states = [x.flatten(0, 1).to(self.device) for x in held_out.states(some)]
        begin(self.model, train_sums, held_out_sums, states)
        self.processes.spread(self.model.translators.parameters())

    @torch.no_grad()
    def _run(
        self, text: TokenWindows, windows: Tensor, name: str, learned: bool = False, kept: bool = True
    ) -> tuple[StateCache, NormalEquations]:
        """Run the model over the ``windows`` of a text: their states, where they are ``kept``, with what is
        likely at full depth where they are ``learned`` from, and the normal equations where it fits maps.

        Every process runs a share. An interrupted run goes on where it was last saved.
        """
        model, processes = self.model, self.processes
        cache = StateCache(
            self.snapshots.scratch(f"states_{name}"),
            windows=len(windows),
            window=text.window,
            exits=model.config.num_blocks,
            width=model.config.width,
            entries=min(LIKELY, len(self.matrix)) if learned else 0,
        )
        whole = not kept or processes.broadcast(cache.make(TOKENS) if processes.main else None)
        exits = len(model.translators) if self.fits else 0
        equations = NormalEquations(exits, model.config.width, sums_device(self.device))
        progress = Snapshots(
            self.snapshots.scratch(f"progress_{name}_{processes.rank}"), self.snapshots.every_seconds
        )
        if saved := progress.load() if whole else None:
            equations.load_state_dict(saved["sums"])
        batches = processes.share(torch.arange(len(windows)).split(self.params.batch_size))
        finished = saved["batches"] if saved else 0
        for number, places in enumerate(
            tqdm(batches[finished:], desc=f"states of {name}", unit="batch", disable=processes.no_bar),
            start=finished + 1,
        ):
            tokens = text.batch(windows[places])[0].to(self.device)
            with autocast(self.device, self.params.precision):
                states = [x.float() for x in model(tokens)]
            *inputs, last = (model.norm(x).flatten(0, 1) for x in states)
            if kept:
                likely = likeliest(last, self.matrix) if learned else tokens.flatten()[:, None][:, :0]
                cache.write(int(places[0]), states, likely.view(*tokens.shape, cache.entries))
            equations.add(inputs[:exits], last)
            if number == len(batches) or progress.due():
                progress.save({"batches": number, "sums": equations.state_dict()})
        processes.wait()
        return cache, equations.over(processes)
