"""Training the translators of a frozen model, maps or layers, towards what full depth predicts.

The loss of an exit is KL(full depth || exit), as in the tuned lens (arXiv 2303.08112). States are streamed:
every batch goes through the model once, without gradients, and serves all exits. Gradients begin at the
translators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.corpus.windows import TokenWindows
from offramp.machine.device import autocast
from offramp.machine.processes import Processes
from offramp.models.pretrained import PretrainedLM
from offramp.params import Pretrain
from offramp.states.statistics import Readout, token_statistics
from offramp.training.fit import Look, Loss, Phase
from offramp.training.losses import total_divergences


class Translators:
    """The losses and the looks of training the translators of ``model``."""

    def __init__(self, model: PretrainedLM, params: Pretrain, device: torch.device, processes: Processes):
        self.model, self.params, self.device, self.processes = model, params, device, processes
        self.matrices = [model.readout_matrix(exit).detach() for exit in range(model.config.num_blocks)]
        self.readouts = [Readout(matrix) for matrix in self.matrices]

    def phase(self, train: TokenWindows, calibration: TokenWindows, looks: Tensor) -> Phase:
        """Only translators learn; where they have nothing to learn, the phase looks at the model as it is."""
        self.model.requires_grad_(False)
        self.model.translators.requires_grad_(True)
        parameters = list(self.model.translators.parameters())
        return Phase(
            name="frozen",
            parameters=parameters,
            steps=self.params.steps if parameters else 0,
            num_sequences=len(train),
            window=train.window,
            starts_trained=True,
            losses=lambda indices, step: [self.losses(train.batch(indices)[0])],
            evaluate=lambda: self.look(calibration, looks),
        )

    def losses(self, tokens: Tensor) -> dict[str, Loss]:
        """Mean KL(full depth || exit) in nats of every exit but the last, over all tokens (B, T)."""
        with autocast(self.device, self.params.precision):
            totals = total_divergences(self.readout_inputs(tokens.to(self.device)), self.matrices)
        return {
            f"exit {exit}": Loss(total / tokens.numel(), tokens.numel()) for exit, total in enumerate(totals)
        }

    @torch.no_grad()
    def look(self, calibration: TokenWindows, windows: Tensor) -> dict[int, Look]:
        """Of every exit but the last, over the calibration windows with the given indices."""
        exits = range(self.model.config.num_blocks - 1)
        sums, tokens = [0.0] * (2 * len(exits)), 0.0
        for indices in self.processes.share(windows.split(self.params.batch_size)):
            inputs, targets = (part.to(self.device) for part in calibration.batch(indices))
            with autocast(self.device, self.params.precision):
                read = self.readout_inputs(inputs)
            statistics = token_statistics(read, self.readouts, targets.flatten())[:-1]
            totals = [
                part[name].double().sum().item() for name in ("loss", "divergence") for part in statistics
            ]
            sums, tokens = [total + more for total, more in zip(sums, totals)], tokens + targets.numel()
        *sums, tokens = self.processes.sum([*sums, tokens])
        return {exit: Look(sums[exit] / tokens, sums[len(exits) + exit] / tokens) for exit in exits}

    def readout_inputs(self, tokens: Tensor) -> list[Tensor]:
        """What the readout matrix of every exit is applied to, (B * T, D), of tokens (B, T)."""
        with torch.no_grad():
            states = self.model(tokens)
        return [
            self.model.readout_input(exit, self.model.exit_states(exit, x).flatten(0, 1))
            for exit, x in enumerate(states)
        ]
