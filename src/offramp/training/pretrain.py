"""Pretraining of a block-wise language model: block by block, all exits jointly, or by its last exit alone.

Block by block is the method of the report ``exit-labels``; ``pretrain.blockwise`` says where ours departs. A
pretrained model is fine-tuned, jointly or by its last exit, or stays frozen while its exits' translators
learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.device import autocast, require_precision
from offramp.machine.processes import ALONE, Processes
from offramp.machine.watch import NOBODY, Watch
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM
from offramp.models.pretrained import PretrainedLM
from offramp.params import Pretrain
from offramp.states.statistics import Readout, token_statistics
from offramp.training.fit import FitConfig, Look, Loss, Phase, PhaseProgress, fit_phase, trained
from offramp.training.frozen import Translators
from offramp.training.layerskip import dropout_probabilities, exits_on, handed_on, layers_run, states_with
from offramp.training.loop import Row
from offramp.training.lora import add_adapters
from offramp.training.losses import total_nll
from offramp.training.sequences import (
    BlockInputs,
    InContext,
    evenly_spaced,
    hardness_threshold,
    make_confidence,
    repack,
)
from offramp.training.snapshots import Snapshots


@dataclass
class Pretrained:
    """What pretraining leaves behind, besides the weights in the model."""

    curve: list[Row]
    best: dict[str, dict[str, float]]
    """Per phase: best_step, steps, calibration_ppl, and calibration_kl where that is minimised."""
    thresholds: list[float]
    """Hardness threshold after every block but the last; empty unless later blocks learn from hard tokens."""


class Pretrainer:
    """Runs the phases of ``pretrain.method`` on a model, resuming from a snapshot where there is one.

    Several processes train the same model, each on its share of the data, and all end with the same weights
    and curve.
    """

    def __init__(
        self,
        model: Blockwise,
        train: TokenWindows,
        calibration: TokenWindows,
        params: Pretrain,
        snapshots: Snapshots,
        device: torch.device,
        processes: Processes = ALONE,
        watch: Watch = NOBODY,
    ):
        require_precision(device, params.precision, "pretrain.precision")
        self.processes = processes
        self.model, self.train, self.calibration = model.to(device), train, calibration
        self.model.gradient_checkpointing = params.gradient_checkpointing
        self.params, self.snapshots, self.device, self.watch = params, snapshots, device, watch
        self.judged_by: list[Tensor] = []
        self.confidence = make_confidence(params.blockwise.hard_signal, self.model, self.judged_by)
        self.thresholds: list[float] = []
        self.finished: dict[str, Tensor] = {}
        """Weights that earlier phases trained, by name."""
        self.looks = evenly_spaced(len(calibration), params.evaluate_windows)
        self.config = FitConfig(**{name: getattr(params, name) for name in FitConfig.__dataclass_fields__})

    def run(self) -> Pretrained:
        lora = self.params.lora
        merge = add_adapters(self.model, lora.rank, lora.alpha) if lora else None
        resumed = self.snapshots.load()
        progress = PhaseProgress(**resumed["progress"]) if resumed else PhaseProgress()
        best = dict(resumed["done"]) if resumed else {}
        if resumed:
            self.model.load_state_dict({**resumed["finished"], **resumed.pop("model")}, strict=False)
            self.finished = dict(resumed["finished"])
            self.thresholds = list(resumed["thresholds"])
            self.judged_by += [matrix.to(self.device) for matrix in resumed["judged_by"]]
            self.watch.curve(progress.curve)
        blocks = range(self.model.config.num_blocks) if self.params.method == "blockwise" else range(1)
        for index in blocks[progress.phase :]:
            phase = self._phase(index, fresh=progress.step == 0)
            extra = {
                "done": best,
                "finished": self.finished,
                "thresholds": self.thresholds,
                "judged_by": self.judged_by,
            }
            fit_phase(
                phase,
                model=self.model,
                config=self.config,
                progress=progress,
                snapshots=self.snapshots,
                resumed=resumed if progress.step else None,
                extra=extra,
                processes=self.processes,
                watch=self.watch,
            )
            best[phase.name] = {
                "best_step": progress.best_step,
                "steps": progress.step,
                "calibration_ppl": self._perplexity(phase, progress.best_nll),
            }
            if self.params.method == "frozen":
                best[phase.name]["calibration_kl"] = progress.best_loss
            self.finished |= trained(self.model)
            progress = PhaseProgress(phase=index + 1, curve=progress.curve)
            resumed = None
        if merge:
            merge()
        return Pretrained(progress.curve, best, self.thresholds)

    def _perplexity(self, phase: Phase, nll: float) -> float:
        """Of ``nll`` nats per token; UserError where that is no finite number."""
        perplexity = float(torch.tensor(nll).exp())
        if not isfinite(perplexity):
            raise UserError(
                f"pretrain: {phase.name} ends with a calibration loss of {nll} nats, whose perplexity is no "
                f"number; lower pretrain.learning_rate (now {self.params.learning_rate})"
            )
        return perplexity

    def _phase(self, index: int, fresh: bool) -> Phase:
        if self.params.method == "blockwise":
            return self._block_phase(index, fresh)
        if self.params.method == "frozen":
            return self._translators().phase(self.train, self.calibration, self.looks, fresh)
        if self.params.method == "joint" and isinstance(self.model, PretrainedLM) and fresh:
            self._translators().begin(self.train, self.calibration, self.looks)
        return self.whole_phase()

    def _translators(self) -> Translators:
        assert isinstance(self.model, PretrainedLM)  # so say the rules of the parameters
        return Translators(self.model, self.params, self.snapshots, self.device, self.processes)

    # -- one block at a time ------------------------------------------------------------------

    def _block_phase(self, block: int, fresh: bool) -> Phase:
        settings, model, params = self.params.blockwise, self.model, self.params
        assert isinstance(model, BlockwiseLM)  # so say the rules of the parameters
        trainable: list[nn.Parameter] = [
            *model.blocks[block].parameters(),
            *model.norms[block].parameters(),
        ]
        if model.exit_classifiers and block < model.config.num_blocks - 1:
            trainable += model.exit_classifiers[block].parameters()
        if block == 0 and settings.embedding == "trained":
            trainable += model.embedding.parameters()
        matrix = cast(nn.Parameter, model.readout_matrix(block))
        if block == 0 or params.head != "frozen":
            trainable += [matrix] if all(matrix is not parameter for parameter in trainable) else []
        if fresh and block > 0 and model.config.heads_per_exit:
            matrix.data.copy_(model.readout_matrix(block - 1).data)
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is one for one in trainable))

        train, calibration = self._block_inputs(block, fresh)
        blocks = model.config.num_blocks
        steps = params.steps // blocks + (1 if block < params.steps % blocks else 0)
        return Phase(
            name=f"block {block}",
            parameters=trainable,
            steps=steps,
            num_sequences=len(train),
            window=self.train.window,
            losses=lambda indices, step: [self._block_losses(block, train, indices)],
            evaluate=lambda: {block: Look(self._block_nll(block, calibration))},
            rate=1.0 if block == 0 else settings.later_rate,
        )

    def _block_inputs(self, block: int, fresh: bool) -> tuple[BlockInputs, BlockInputs]:
        """Training and calibration inputs of ``block``; finds the hard tokens of the blocks before it."""
        settings = self.params.blockwise
        if block == 0 or settings.tokens == "all":
            return self._in_context(self.train, block), self._in_context(self.calibration, block)
        if fresh:  # a head that blocks share moves on: what is hard stays judged by the head as it was
            self.judged_by.append(self.model.readout_matrix(block - 1).detach().clone())
        with autocast(self.device, self.params.precision):
            if settings.context == "keep":
                if fresh:
                    before = self._in_context(self.train, block - 1, self.thresholds)
                    self.thresholds.append(self._threshold(before, block - 1))
                return (
                    self._in_context(self.train, block, self.thresholds),
                    self._in_context(self.calibration, block, self.thresholds),
                )
            return self._repacked_inputs(block, fresh)

    def _repacked_inputs(self, block: int, fresh: bool) -> tuple[BlockInputs, BlockInputs]:
        train: BlockInputs = self._in_context(self.train, 0)
        calibration: BlockInputs = self._in_context(self.calibration, 0)
        for before in range(block):  # deterministic, so a resumed run finds the same tokens
            if before == len(self.thresholds):
                self.thresholds.append(self._threshold(train, before))
            train, calibration = (
                repack(
                    inputs,
                    self.model,
                    before,
                    self.confidence,
                    threshold=self.thresholds[before],
                    window=self.train.window,
                    folder=self.snapshots.scratch(f"{name}_{before}"),
                    batch_size=self.config.batch_size,
                    device=self.device,
                    processes=self.processes,
                )
                for name, inputs in (("train", train), ("calibration", calibration))
            )
        return train, calibration

    def _in_context(
        self, windows: TokenWindows, block: int, thresholds: list[float] | None = None
    ) -> InContext:
        return InContext(self.model, windows, block, self.device, self.confidence, thresholds)

    def _threshold(self, inputs: BlockInputs, block: int) -> float:
        return hardness_threshold(
            inputs,
            self.model,
            block,
            self.confidence,
            ratio=self.params.blockwise.hard_ratio,
            batch_size=self.config.batch_size,
            processes=self.processes,
        )

    def _block_losses(self, block: int, inputs: BlockInputs, indices: Tensor) -> dict[str, Loss]:
        with autocast(self.device, self.params.precision):
            x, targets, counts = inputs.batch(indices)
            return self._exit_losses(block, self.model.run_block(block, x), targets, counts)

    @torch.no_grad()
    def _block_nll(self, block: int, inputs: BlockInputs) -> float:
        total, tokens = 0.0, 0.0
        for indices in self.processes.share(
            evenly_spaced(len(inputs), len(self.looks)).split(self.config.batch_size)
        ):
            with autocast(self.device, self.params.precision):
                x, targets, counts = inputs.batch(indices)
                nll, counted = self._nll(block, self.model.run_block(block, x), targets, counts)
            total, tokens = total + nll.item(), tokens + counted
        total, tokens = self.processes.sum([total, tokens])
        return total / max(1, tokens)

    # -- all blocks at once -------------------------------------------------------------------

    def whole_phase(self) -> Phase:
        """Training all blocks together, towards the losses of all exits (joint) or of the last."""
        last = self.model.config.num_blocks - 1
        exits = list(range(last + 1)) if self.params.method == "joint" else [last]
        given = self.params.exit_weights
        weights = {exit: given[exit] if given else 1.0 / len(exits) for exit in exits}

        def losses(indices: Tensor, step: int) -> Iterator[dict[str, Loss]]:
            tokens, targets = (part.to(self.device) for part in self.train.batch(indices))
            with autocast(self.device, self.params.precision):
                states = self._states(tokens, step)
            # each exit back-propagates to these, and the layers once
            read = [x.detach().requires_grad_() for x in states]
            on = exits_on(self.params.curriculum, exits, step, self.params.steps)
            for exit, weight in reversed(handed_on(weights, on).items()):
                with autocast(self.device, self.params.precision):
                    of_exit = self._exit_losses(exit, read[exit], targets, None)
                of_exit[f"exit {exit}"] = replace(of_exit[f"exit {exit}"], weight=weight)
                yield of_exit
            torch.autograd.backward([states[exit] for exit in on], [read[exit].grad for exit in on])

        return Phase(
            name=self.params.method,
            parameters=self._whole_parameters(),
            steps=self.params.steps,
            num_sequences=len(self.train),
            window=self.train.window,
            losses=losses,
            weights=weights,
            evaluate=lambda: {exit: Look(nll) for exit, nll in self._exit_nlls(exits).items()},
            starts_trained=isinstance(self.model, PretrainedLM),
            patient_until=self.params.steps // 2 if self.params.curriculum == "gradual" else 0,
        )

    def _whole_parameters(self) -> list[nn.Parameter]:
        """What training changes: all parameters; with LoRA the adapters and what belongs to an exit alone."""
        if self.params.lora:
            kept = {
                name
                for name, parameter in self.model.blocks.named_parameters(prefix="blocks")
                if parameter.requires_grad
            }
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(
                    name in kept or name.startswith(("translators.", "exit_classifiers."))
                )
        else:
            self.model.requires_grad_(True)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _states(self, tokens: Tensor, step: int) -> list[Tensor]:
        """Hidden states after every block, as training sees them."""
        if not self.params.layer_dropout:
            return self.model(tokens)
        probabilities = dropout_probabilities(sum(self.model.config.block_layers), self.params.layer_dropout)
        return states_with(self.model, tokens, layers_run(probabilities, self.params.seed, step))

    @torch.no_grad()
    def _exit_nlls(self, exits: list[int]) -> dict[int, float]:
        totals, tokens = dict.fromkeys(exits, 0.0), 0.0
        for indices in self.processes.share(self.looks.split(self.config.batch_size)):
            inputs, targets = (part.to(self.device) for part in self.calibration.batch(indices))
            with autocast(self.device, self.params.precision):
                states = self.model(inputs)
                for exit in exits:
                    totals[exit] += self._nll(exit, states[exit], targets, None)[0].item()
            tokens += targets.numel()
        *sums, tokens = self.processes.sum([*totals.values(), tokens])
        return {exit: total / tokens for exit, total in zip(exits, sums)}

    # -- losses of one exit -------------------------------------------------------------------

    def _nll(self, exit: int, x: Tensor, targets: Tensor, counts: Tensor | None) -> tuple[Tensor, int]:
        """The negative log-likelihood summed over the tokens that count, in nats, and their number."""
        x = self.model.exit_states(exit, x)
        x, targets = (x.flatten(0, 1), targets.flatten()) if counts is None else (x[counts], targets[counts])
        return total_nll(self.model.readout_input(exit, x), self.model.readout_matrix(exit), targets), len(
            targets
        )

    def _exit_losses(self, exit: int, x: Tensor, targets: Tensor, counts: Tensor | None) -> dict[str, Loss]:
        """The losses of an exit by name, over the tokens that count; its classifier's over all tokens."""
        nll, counted = self._nll(exit, x, targets, counts)
        losses = {f"exit {exit}": Loss(nll / max(1, counted), counted)}
        joint = self.params.joint_classifier
        if joint and exit < len(self.model.exit_classifiers):
            losses[f"classifier {exit}"] = Loss(
                self._classifier_loss(exit, x, targets, joint.label), targets.numel(), joint.weight
            )
        return losses

    def _classifier_loss(self, exit: int, x: Tensor, targets: Tensor, label: str) -> Tensor:
        """The loss of a classifier that learns together with the blocks, as in the report ``exit-labels``.

        Binary cross-entropy on label correct; on the others the squared error of the sigmoid from the largest
        probability (distill) or from that of the correct token (loss).
        """
        with torch.no_grad():
            flat = self.model.readout_input(exit, x).flatten(0, 1)
            statistics = token_statistics(
                [flat], [Readout(self.model.readout_matrix(exit))], targets.flatten()
            )[0]
        logit = self.model.exit_classifiers[exit](x).flatten().float()
        if label == "correct":
            return F.binary_cross_entropy_with_logits(
                logit, (statistics["argmax"] == targets.flatten()).float()
            )
        return F.mse_loss(
            torch.sigmoid(logit), statistics["max_prob" if label == "distill" else "correct_prob"]
        )


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
