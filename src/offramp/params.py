"""The schema of params.yaml: every knob, its bounds, and the rules between knobs.

A stage calls ``load_params(stage)``: the whole file is validated first, then the stage sees only the
parameters that dvc.yaml declares for it (and ``runtime`` and ``tracking``, which never change a result's
meaning), so an undeclared dependency cannot arise.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML, YAMLError

from offramp.errors import UserError
from offramp.vocabulary import BENEFITS, LEARNED, ORACLES, SIGNALS, JointLabel, Label

LEAST = 1e-12
"""The smallest number but 0: nearer to 0 a value would turn off what it is of, and not by its name."""


def _no_hidden_zero(value: float) -> float:
    if 0 < abs(value) < LEAST:
        raise PydanticCustomError("hidden_zero", f"so near to 0 it has no effect; give at least {LEAST:g}")
    return value


# Every number is finite and has both bounds. The upper ones are far beyond what makes sense and below what
# breaks: an integer that no library takes, a product that overflows.
NoHiddenZero = AfterValidator(_no_hidden_zero)
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), NoHiddenZero]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NoHiddenZero]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), NoHiddenZero]
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), NoHiddenZero]
"""A number of at least 0."""
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False), NoHiddenZero]
"""A learning rate of AdamW, whose updates are about that large."""
Nats = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), NoHiddenZero]
Count = Annotated[int, Field(gt=0, le=10**9)]
Batch = Annotated[int, Field(gt=0, le=10**6)]
Layers = Annotated[int, Field(gt=0, le=10_000)]
Width = Annotated[int, Field(gt=0, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

OF_NO_RESULT = ("runtime", "tracking")
"""Sections that every stage may read, since no result hangs on them."""


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no conversions, and no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Corpus(Section):
    source: Literal["sotu", "hub", "files"]
    hub_name: str | None
    hub_config: str | None
    hub_column: str
    paths: list[str]
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
    exits_after: list[Layers]
    """Layers after which an exit stands, full depth not among them."""
    width: Width
    heads: Width
    key_value_heads: Width | None
    ffn_width: Width
    block_layers: Annotated[list[Layers], Field(min_length=2)]
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
    exit_weights: list[Amount]
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
    hidden: list[Width]
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
    budget: Fraction
    price: Amount
    curve_fractions: Annotated[list[Fraction], Field(min_length=1)]
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


class Params(Section):
    threshold: Share | list[Share] | Literal["auto", "risk", "budget", "price"]
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
        if isinstance(threshold, str) and self.routing.decay:
            raise ValueError(
                f"threshold {threshold} is found for all positions alike; with routing.decay give a number"
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


class Declared:
    """A stage's view of the parameters: reading one that dvc.yaml does not declare for it is an error.

    Its sections are the sections of Params, so that functions which take a section are given one.
    """

    def __init__(self, stage: str, params: Params, declared: list[str]):
        self._stage, self._params, self._declared = stage, params, declared

    def __getattr__(self, section: str) -> Any:
        value = getattr(self._params, section)
        if section in (*self._declared, *OF_NO_RESULT):
            return value
        if any(path.startswith(section + ".") for path in self._declared):
            return _declared_part(value, self._stage, self._declared, section + ".")
        raise AttributeError(_undeclared(self._stage, section))

    def to_json(self) -> dict[str, Any]:
        """The declared parameters as plain values, by dotted name: what goes into an artifact's manifest.

        Not ``runtime`` and ``tracking``, which are no part of a result's identity.
        """
        out = {}
        for path in self._declared:
            value: Any = self._params
            for name in path.split("."):
                value = getattr(value, name)
            out[path] = value.model_dump() if isinstance(value, BaseModel) else value
        return out


def _declared_part(section: Section, stage: str, declared: list[str], prefix: str) -> Section:
    """A section with only those fields that ``stage`` declares; reading another raises AttributeError."""

    def refuse(_: Section, name: str) -> Any:
        raise AttributeError(_undeclared(stage, prefix + name))

    namespace = {"__getattr__": refuse, "__module__": __name__}
    view = cast(type[Section], type(type(section).__name__, (type(section),), namespace))
    fields: dict[str, Any] = {}
    for name in type(section).model_fields:
        path, value = prefix + name, getattr(section, name)
        if path in declared:
            fields[name] = value
        elif any(other.startswith(path + ".") for other in declared):
            fields[name] = _declared_part(value, stage, declared, path + ".")
    return view.model_construct(**fields)


def _undeclared(stage: str, path: str) -> str:
    return f"stage {stage} reads parameter {path}, which dvc.yaml does not declare for it"


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml; UserError names the key, the value and the remedy."""
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the root of the project") from None
    except (YAMLError, ValueError) as error:  # ValueError: of numbers and dates that are none
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return parse_params(values, path.name)


def parse_params(values: Any, source: str = "params.yaml") -> Params:
    """Validate what a YAML file held; UserError names ``source``, wrong keys, their values and the remedy."""
    try:
        text = json.dumps(values, default=str)  # dates are the text that they were
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {error}; give plain sections, lists, numbers and texts") from None
    try:
        return Params.model_validate_json(text)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, source) for problem in error.errors())
        raise UserError("\n".join(problems)) from None


def load_params(stage: str, root: Path = Path(".")) -> Declared:
    """Validate all of params.yaml, then return what dvc.yaml declares for ``stage``."""
    params = read_params(root / "params.yaml")
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = list(stages[stage].get("params", []))
    return Declared(stage, params, declared)


OFF = {"pretrain.clip_norm": ", or null to clip nothing", "routing.decay": ", or null for no decay"}
"""How to say that a number has no limit, or is not wanted, by its parameter."""


def _explain(problem: ErrorDetails, source: str) -> str:
    """What pydantic found wrong, as one line for whoever wrote the file."""
    keys = [str(part) for part in problem["loc"]]
    if keys[:1] == ["threshold"]:  # a union: pydantic complains once per member
        given = f"{source}: threshold = {problem['input']!r}"
        return f'{given}: give a number from 0 to 1, one per exit, or "auto", "risk", "budget" or "price"'
    where = ".".join(keys)
    value = "" if problem["type"] in ("missing", "value_error") else f" = {problem['input']!r}"
    message = {
        "extra_forbidden": "unknown key; remove it or correct its name (params.yaml lists every key)",
        "missing": "missing; params.yaml in the repository lists every key with its default",
        "finite_number": f"give a finite number{OFF.get(where, '')}",
    }.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return f"{source}: {where}{value}: {message}" if where else f"{source}: {message}"
