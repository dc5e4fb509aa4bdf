"""The sections of params.yaml: every knob with its bounds, and the rules within a section."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.params.numbers import (
    Amount,
    Batch,
    Count,
    Fraction,
    Layers,
    Nats,
    NoHiddenZero,
    OneOrMore,
    PerCent,
    Positive,
    Rate,
    Seed,
    Width,
)
from offramp.vocabulary import ORACLES, SIGNALS, JointLabel, Label


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no conversions, and no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Corpus(Section):
    source: Literal["sotu", "hub", "files"]
    hub_name: str | None
    hub_config: str | None
    hub_column: str
    paths: Annotated[list[str], OneOrMore]
    document_pattern: str | None
    document_characters: Count | None
    calibration_fraction: Fraction
    test_fraction: Fraction
    split_seed: Seed

    @model_validator(mode="after")
    def _complete(self) -> Corpus:
        if self.source == "hub" and not self.hub_name:
            raise ValueError("source hub needs hub_name, e.g. Salesforce/wikitext")
        if self.source == "files" and not self.paths:
            raise ValueError("source files needs paths: a list of text files or folders")
        if self.calibration_fraction + self.test_fraction >= 1:
            raise ValueError(
                "calibration_fraction + test_fraction leave nothing to train on; their sum must be below 1"
            )
        return self


class TokenizerParams(Section):
    kind: Literal["bpe", "word", "char", "pretrained"]
    vocab_size: Annotated[int, Field(ge=260, le=2**24)]
    min_count: Count


class Model(Section):
    source: Literal["native", "hf"]
    name_or_path: str | None
    gguf_file: str | None
    revision: str | None
    exits_after: Annotated[list[Layers], OneOrMore]
    """Layers after which an exit stands, full depth not among them."""
    width: Width
    heads: Width
    key_value_heads: Width | None
    ffn_width: Width
    block_layers: Annotated[list[Layers], Field(min_length=2), OneOrMore]
    """Layers per block; at least two blocks, or there is no exit to take."""
    norm: Literal["pre", "post"]
    tied: bool

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not divisible by 2 x heads = {2 * self.heads} "
                "(rotary attention needs an even width per head)"
            )
        if self.key_value_heads and self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads {self.key_value_heads} does not divide heads = {self.heads}; "
                "each is shared by as many heads"
            )
        return self

    @model_validator(mode="after")
    def _named(self) -> Model:
        if self.source == "hf" and not self.name_or_path:
            raise ValueError(
                "source hf needs name_or_path: the folder of a checkpoint, or its name on the Hugging Face "
                "hub"
            )
        if self.source == "hf" and not self.exits_after:
            raise ValueError(
                "source hf needs exits_after: the numbers of layers after which an exit stands, e.g. [10, 20]"
            )
        if any(later <= earlier for earlier, later in pairwise(self.exits_after)):
            raise ValueError(f"exits_after = {self.exits_after} is not increasing")
        return self


class Blockwise(Section):
    context: Literal["keep", "repack"]
    tokens: Literal["all", "hard"]
    hard_ratio: Fraction
    hard_signal: Literal["max_prob", "correct_prob", "classifier"]
    exited_state: Literal["output", "input"]
    embedding: Literal["trained", "frozen"]
    later_rate: Positive

    @model_validator(mode="after")
    def _repack_needs_hard(self) -> Blockwise:
        if self.context == "repack" and self.tokens == "all":
            raise ValueError(
                "context repack packs hard tokens into new sequences; set tokens: hard or context: keep"
            )
        return self


class JointClassifier(Section):
    label: JointLabel
    weight: Positive


class Frozen(Section):
    translator: Literal["identity", "affine", "low_rank", "mlp", "block"]
    rank: Width
    init: Literal["least_squares", "identity"]
    tokens: Annotated[int, Field(gt=0, le=10**12)]


class Lora(Section):
    rank: Width
    alpha: Positive


class Pretrain(Section):
    method: Literal["blockwise", "joint", "final", "frozen"]
    head: Literal["shared", "frozen", "per_block"]
    blockwise: Blockwise
    exit_weights: Annotated[list[Amount], OneOrMore]
    joint_classifier: JointClassifier | None
    frozen: Frozen
    lora: Lora | None
    layer_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NoHiddenZero]
    curriculum: Literal["rotational", "gradual"] | None
    steps: Count
    batch_size: Batch
    gradient_checkpointing: bool
    learning_rate: Rate
    schedule: Literal["cosine", "constant"]
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)]
    weight_decay: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NoHiddenZero]
    clip_norm: Positive | None
    """Null: gradients stay as long as they are."""
    evaluate_every: Count
    evaluate_windows: Count
    patience: Count
    precision: Literal["fp32", "bf16"]
    seed: Seed


class Collect(Section):
    precision: Literal["fp32", "bf16"]
    dtype: Literal["float16", "float32"]
    shard_tokens: Count
    batch_size: Batch


class Risk(Section):
    measure: Literal["disagreement", "error", "nll_increase"]
    tolerance: Fraction
    delta: Fraction


class Exits(Section):
    confidence: str
    mode: Literal["post", "joint"]
    label: Label
    easy_loss: Nats
    inputs: Literal["state", "statistics", "both"]
    calibration: Literal["isotonic", "temperature"]
    risk: Risk
    hidden: Annotated[list[Width], OneOrMore]
    learning_rate: Rate
    batch_size: Count
    max_epochs: Batch
    patience: Count
    seed: Seed

    @model_validator(mode="after")
    def _a_signal_for_inference(self) -> Exits:
        if self.confidence in ORACLES:
            raise ValueError(
                f"confidence = {self.confidence!r} needs the target, which inference does not have: "
                f"it is an oracle; use one of {', '.join(SIGNALS)}"
            )
        if self.confidence not in SIGNALS:
            raise ValueError(f"confidence = {self.confidence!r} is not a signal; known: {', '.join(SIGNALS)}")
        return self


class Routing(Section):
    kv: Literal["propagate", "recompute", "drop"]
    first_exit: Annotated[int, Field(ge=0, le=10_000)]
    decay: Positive | None
    keep_first: Annotated[int, Field(ge=0, le=10**6)]
    auto_exit_ratio: Fraction
    quality: PerCent
    budget: Fraction
    price: Amount
    curve_fractions: Annotated[list[Fraction], Field(min_length=1), OneOrMore]
    control_windows: Count
    timing_batches: Annotated[int, Field(ge=4, le=10**5)]
    batch_size: Batch
    bootstrap: Annotated[int, Field(ge=100, le=10**6)]
    seed: Seed


class Report(Section):
    text_tokens: Batch


class Runtime(Section):
    launcher: Annotated[str, Field(min_length=1)]
    """What runs ``-m pipeline.<stage>`` for the stages that touch the model."""
    device: str
    threads: Annotated[int, Field(gt=0, le=1024)]
    snapshot_seconds: Amount


class Tracking(Section):
    live: bool
    """Whether stages that take long log to MLflow while they run."""
    system_metrics: bool
    log_model: bool
    """Whether `track` gives the routed model to MLflow as a model."""
