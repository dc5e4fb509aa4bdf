"""A project's finished model, opened and checked, with its tokenizer and its policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from operator import attrgetter, itemgetter
from pathlib import Path

import torch
from tokenizers import Tokenizer

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.artifacts.manifest import read_manifest
from offramp.corpus.tokenizer import Encoder, open_tokenizer, token_texts
from offramp.errors import UserError
from offramp.exits.store import Exits
from offramp.machine.device import setup
from offramp.models.blockwise import Blockwise
from offramp.models.store import load_model
from offramp.params import Params, parse_params, read_params
from offramp.routing.choice import choose_policy
from offramp.routing.policies import ThresholdPolicy

DECIDES = (
    "threshold",
    "exits.confidence",
    "routing.kv",
    "routing.first_exit",
    "routing.decay",
    "routing.keep_first",
    "routing.quality",
    "routing.control_windows",
    "routing.bootstrap",
    "routing.seed",
)
"""Parameters on which the thresholds of quality hang, beside the exits."""


@dataclass
class Project:
    """What the pipeline left in the folder ``root``, ready to run; ``open_project`` makes it."""

    root: Path
    params: Params
    data: Artifact
    lm: Artifact
    model: Blockwise
    """In evaluation mode, on the ``device``."""
    device: torch.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data."""
        return open_tokenizer(self.data)

    @cached_property
    def encoder(self) -> Encoder:
        """What turns text into token ids."""
        return Encoder(self.tokenizer, self.kind)

    @property
    def kind(self) -> str:
        """The kind of the tokenizer: bpe, word, char or pretrained."""
        return self.data.meta["kind"]

    @property
    def end_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        return self.data.meta["end_id"]

    @property
    def stop_ids(self) -> set[int]:
        """The tokens at which generation ends: of a checkpoint there may be several.

        UserError where the data of a checkpoint does not name them.
        """
        if self.kind != "pretrained":
            return set() if self.end_id is None else {self.end_id}
        if "stop_ids" not in self.data.meta:
            raise UserError(
                f"{self.data.path} does not say at which tokens the checkpoint's texts end; "
                "run `dvc repro` to make it again"
            )
        return set(self.data.meta["stop_ids"])

    @cached_property
    def opening(self) -> list[int]:
        """The tokens that the tokenizer puts before every text, such as the ``<s>`` of Llama; [] for most."""
        begun = self.tokenizer.encode("a", add_special_tokens=True)
        return [id for id, _ in takewhile(itemgetter(1), zip(begun.ids, begun.special_tokens_mask))]

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text to be continued, begun as Transformers begins texts (``opening``).

        UserError for text that is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            bytes_ = text[error.start : error.end]
            raise UserError(
                f"the prompt is not valid UTF-8 text: {bytes_!r} is no character; give it in UTF-8"
            ) from None
        return [*self.opening, *self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any before or after it."""
        return self.encoder(text).tolist()

    def decode(self, before: int, tokens: list[int]) -> str:
        """The text of ``tokens`` after the token ``before``, which may decide on a leading space."""
        return "".join(token_texts(self.tokenizer, self.kind, [before, *tokens])[1:])

    def policy(self, threshold: float | list[float] | str | None = None) -> ThresholdPolicy:
        """The policy that says who may leave, by the parameters or with another ``threshold``.

        The thresholds of ``quality`` are those that the stage evaluate found. UserError where it did not, or
        where the exits belong to another model, or were trained on states of another precision.
        """
        params = self.params
        if threshold is not None:
            params = parse_params({**params.model_dump(), "threshold": threshold}, "options")
        exits = open_artifact(self.root / "models/exits", "exits")
        if exits.meta["lm"] != self.lm.digest:
            raise UserError(
                f"{exits.path} was trained on states of another model than {self.lm.path}; run `dvc repro`"
            )
        if exits.meta.get("precision") != params.collect.precision:
            raise UserError(
                f"collect.precision = {params.collect.precision!r}, but {exits.path} was trained on states "
                "of another; run `dvc repro`"
            )
        window = self.data.meta["window"]
        return choose_policy(
            self._evaluated(params, exits) if params.threshold == "quality" else params.threshold,
            Exits(exits),
            self.model,
            window=window,
            signals=params.exits,
            settings=params.routing,
            device=self.device,
        ).policy

    def _evaluated(self, params: Params, exits: Artifact) -> list[float]:
        """The thresholds in force at the last evaluation, which found them by running calibration text."""
        routed = read_manifest(self.root / "routed")
        changed = [name for name in DECIDES if routed["params"].get(name) != attrgetter(name)(params)]
        if routed["inputs"].get("exits") != exits.digest:
            changed.append("models/exits")
        if changed:
            raise UserError(
                f"threshold quality: {', '.join(changed)} changed since the stage evaluate found the "
                "thresholds by running calibration text; run `dvc repro evaluate`"
            )
        return routed["meta"]["thresholds"]


def open_project(root: Path = Path(".")) -> Project:
    """Open the project in the folder ``root``; UserError where parameters or artifacts are not in order."""
    params = read_params(root / "params.yaml")
    device = setup(params.runtime.device, params.runtime.threads)
    data = open_artifact(root / "data", "data")
    lm = open_artifact(root / "models/lm", "lm", inputs={"data": data})
    return Project(root, params, data, lm, load_model(lm, root).to(device), device)
