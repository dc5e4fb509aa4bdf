"""The whole of params.yaml, and the rules between knobs of several sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from offramp.params.numbers import Share
from offramp.params.sections import (
    Collect,
    Corpus,
    Exits,
    Model,
    Pretrain,
    Report,
    Routing,
    Runtime,
    Section,
    TokenizerParams,
    Tracking,
)
from offramp.vocabulary import BENEFITS, LEARNED


class Params(Section):
    threshold: Share | list[Share] | Literal["auto", "quality", "risk", "budget", "price"]
    window: Annotated[int, Field(ge=2, le=10**6)]
    corpus: Corpus
    tokenizer: TokenizerParams
    model: Model
    pretrain: Pretrain
    collect: Collect
    exits: Exits
    routing: Routing
    report: Report
    runtime: Runtime
    tracking: Tracking

    @model_validator(mode="after")
    def _method_suits_model(self) -> Params:
        pretrain, source = self.pretrain, self.model.source
        if (source == "hf") != (self.tokenizer.kind == "pretrained"):
            raise ValueError(
                f"tokenizer.kind {self.tokenizer.kind} does not go with model.source {source}: a checkpoint "
                "reads the tokens of its own tokenizer, kind pretrained, and the native model any other"
            )
        if source == "hf" and pretrain.method == "blockwise":
            raise ValueError(
                "pretrain.method blockwise is of model.source native; use frozen, joint or final for a "
                "checkpoint"
            )
        if source == "hf" and pretrain.joint_classifier:
            raise ValueError(
                "pretrain.joint_classifier is of model.source native; set it to null for a checkpoint"
            )
        if source == "native" and pretrain.method == "frozen":
            raise ValueError("pretrain.method frozen trains the exits of a checkpoint; set model.source: hf")
        return self

    @model_validator(mode="after")
    def _a_window_is_run(self) -> Params:
        frozen, method = self.pretrain.frozen, self.pretrain.method
        begins = frozen.init == "least_squares" and frozen.translator in ("affine", "low_rank")
        runs_once = method == "frozen" or (method == "joint" and self.model.source == "hf" and begins)
        if runs_once and frozen.tokens < self.window:
            raise ValueError(
                f"pretrain.frozen.tokens {self.pretrain.frozen.tokens} is less than one window of "
                f"{self.window}; give more tokens, or a smaller window"
            )
        return self

    @model_validator(mode="after")
    def _every_exit_learns(self) -> Params:
        pretrain, blocks = self.pretrain, self._blocks
        if len(pretrain.exit_weights) not in (0, blocks):
            raise ValueError(
                f"pretrain.exit_weights has {len(pretrain.exit_weights)} values for {blocks} blocks; "
                "give one per block, or [] for equal weights"
            )
        if pretrain.exit_weights and not sum(pretrain.exit_weights):
            raise ValueError("pretrain.exit_weights are all zero: nothing would be trained")
        if pretrain.steps < blocks:
            raise ValueError(
                f"pretrain.steps {pretrain.steps} leaves a block without a step; there are {blocks} blocks"
            )
        return self

    @model_validator(mode="after")
    def _heads_suit_method(self) -> Params:
        pretrain, several = self.pretrain, self._blocks > 1
        blockwise, tied = pretrain.method == "blockwise", self.model.tied
        if self.model.source == "hf":
            return self  # all its exits have the checkpoint's head
        if not blockwise and pretrain.head == "frozen":
            raise ValueError("pretrain.head frozen belongs to method blockwise; use shared or per_block")
        if pretrain.method == "final" and pretrain.head == "per_block" and several:
            raise ValueError(
                "pretrain.method final never trains the earlier heads; set pretrain.head: shared"
            )
        if blockwise and tied and pretrain.head == "shared" and several:
            raise ValueError(
                "pretrain.head shared with model.tied would let later blocks move the embedding that frozen "
                "blocks read; set model.tied: false, or pretrain.head: per_block or frozen"
            )
        if blockwise and tied and pretrain.blockwise.embedding == "frozen":
            raise ValueError(
                "pretrain.blockwise.embedding frozen would freeze the tied readout too; set model.tied: false"
            )
        return self

    @model_validator(mode="after")
    def _tokens_may_leave(self) -> Params:
        routing, blocks, patience = self.routing, self._blocks, self.exits.confidence == "patience"
        if patience and blocks < 3:
            raise ValueError(
                "exits.confidence patience compares successive exits, so it needs at least 3 blocks; "
                f"there are {blocks}"
            )
        if routing.first_exit >= blocks - 1:
            raise ValueError(
                f"routing.first_exit {routing.first_exit} leaves no exit before full depth of {blocks} "
                f"blocks; give 0 to {blocks - 2}"
            )
        if routing.keep_first >= self.window:
            raise ValueError(
                f"routing.keep_first {routing.keep_first} keeps all tokens of a window of {self.window}; "
                "give less"
            )
        if routing.first_exit and patience:
            raise ValueError(
                "exits.confidence patience compares all exits from the first on; set routing.first_exit: 0"
            )
        return self

    @model_validator(mode="after")
    def _threshold_can_be_had(self) -> Params:
        threshold, exits, early = self.threshold, self.exits, self._blocks - 1
        if isinstance(threshold, list) and len(threshold) != early:
            raise ValueError(
                f"threshold {threshold} has {len(threshold)} values; give one for each of the {early} exits "
                "before full depth, or a single number"
            )
        if isinstance(threshold, str) and threshold != "quality" and self.routing.decay:
            raise ValueError(
                f"threshold {threshold} is found for all positions alike; with routing.decay give a number, "
                "or quality"
            )
        if threshold in ("budget", "price") and self.routing.kv == "recompute":
            raise ValueError(
                f"threshold {threshold} weighs what leaving saves, which with routing.kv recompute hangs on "
                "later tokens; set routing.kv: propagate or drop, or another threshold"
            )
        if threshold == "price" and (exits.confidence, exits.mode) != (LEARNED, "post"):
            raise ValueError(
                "threshold price weighs a predicted gain: set exits.confidence: learned and exits.mode: post "
                f"(now {exits.confidence}, {exits.mode})"
            )
        if threshold == "price" and exits.label not in BENEFITS:
            raise ValueError(
                f"threshold price needs exits.label gain or divergence, in nats; it is {exits.label}"
            )
        return self

    @model_validator(mode="after")
    def _joint_classifier_is_trained(self) -> Params:
        pretrain = self.pretrain
        if self.exits.mode == "joint" and pretrain.joint_classifier is None:
            raise ValueError(
                "exits.mode joint needs pretrain.joint_classifier, e.g. {label: loss, weight: 1.0}"
            )
        hard_signal = pretrain.blockwise.hard_signal if pretrain.method == "blockwise" else None
        if hard_signal == "classifier" and pretrain.joint_classifier is None:
            raise ValueError("pretrain.blockwise.hard_signal classifier needs pretrain.joint_classifier")
        if pretrain.method == "final" and pretrain.joint_classifier:
            raise ValueError(
                "pretrain.method final trains no earlier exit; set pretrain.joint_classifier: null"
            )
        return self

    @model_validator(mode="after")
    def _options_suit_method(self) -> Params:
        pretrain = self.pretrain
        for name, off in (("lora", "null"), ("layer_dropout", "0.0"), ("curriculum", "null")):
            if pretrain.method != "joint" and getattr(pretrain, name):
                raise ValueError(
                    f"pretrain.{name} belongs to method joint; set it to {off} for method {pretrain.method}"
                )
        no_layer_learns = pretrain.method == "frozen" and pretrain.frozen.translator != "block"
        if pretrain.gradient_checkpointing and no_layer_learns:
            raise ValueError(
                "pretrain.gradient_checkpointing runs layers again, and under method frozen with translator "
                f"{pretrain.frozen.translator} no layer is trained; set it to false"
            )
        if pretrain.lora and self.model.source == "native":
            raise ValueError(
                "pretrain.lora adapts a trained model, and model.source native starts from random weights; "
                "set it to null"
            )
        if pretrain.curriculum and pretrain.exit_weights and not pretrain.exit_weights[-1]:
            raise ValueError(
                "pretrain.curriculum always trains the last exit; give it a weight in pretrain.exit_weights, "
                "or null"
            )
        return self

    @property
    def _blocks(self) -> int:
        """The number of blocks, and so of exits with full depth among them."""
        model = self.model
        return len(model.block_layers) if model.source == "native" else len(model.exits_after) + 1
