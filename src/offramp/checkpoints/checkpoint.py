"""Where a checkpoint is, and how to get at its files.

A checkpoint is a folder or a name on the Hugging Face hub; its weights are safetensors or a GGUF file.
Nothing pickled is read, and no code of a checkpoint is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.artifacts.paths import in_project
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.params import Model

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
"""A name on the hub, perhaps with its owner's before a slash.

Anything else is a path: what has more slashes, or begins like ``/``, ``./`` or ``~``.
"""


class Checkpoint(NamedTuple):
    """Where a checkpoint is; as text, the parameter that names it, with which messages of errors begin."""

    name_or_path: str
    """A folder, or a name on the Hugging Face hub."""
    gguf_file: str | None = None
    """File within it, for weights in the GGUF format."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""

    @classmethod
    def of(cls, model: Model) -> Checkpoint:
        """The checkpoint that the ``model`` parameters name; ValueError where they name none."""
        if model.name_or_path is None:
            raise ValueError("model.name_or_path is null: a native model has no checkpoint")
        return cls(model.name_or_path, model.gguf_file, model.revision)

    def __str__(self) -> str:
        return f"model.name_or_path = {self.name_or_path!r}"

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for the ``from_pretrained`` functions of Transformers, beside the name or path."""
        return {
            "trust_remote_code": False,
            **{name: value for name, value in self._asdict().items() if name != "name_or_path" and value},
        }

    @property
    def folder(self) -> Path | None:
        """The folder of the checkpoint, in the project; None where ``name_or_path`` is no folder."""
        folder = in_project(self.name_or_path)
        return folder if folder.is_dir() else None

    @property
    def place(self) -> str:
        """What the ``from_pretrained`` functions of Transformers take: the folder, or else the name."""
        return str(self.folder or self.name_or_path)

    @property
    def may_be_on_hub(self) -> bool:
        """Whether it is no folder and its name could be one on the hub, which is not asked.

        ``build/tiny`` is a path where there is a folder ``build``: a mistyped one must not fetch the weights
        of a stranger.
        """
        owner, slash, _ = self.name_or_path.partition("/")
        in_a_folder = bool(slash) and in_project(owner).is_dir()
        return self.folder is None and not in_a_folder and HUB_NAME.fullmatch(self.name_or_path) is not None

    def under(self, root: Path) -> Checkpoint:
        """The same checkpoint with its path, where it is a relative one, starting at ``root``."""
        moved = self._replace(name_or_path=str(root / self.name_or_path))
        return moved if moved.folder or not HUB_NAME.fullmatch(self.name_or_path) else self


def find_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file of the checkpoint, fetched where it is on the hub; None where it has no such file."""
    if checkpoint.folder:
        local = checkpoint.folder / name
        return local if local.is_file() else None
    if not checkpoint.may_be_on_hub:
        return None
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(checkpoint.name_or_path, name, revision=checkpoint.revision)
    except OSError:
        return None
    return None if file is None else Path(file)


def read_json(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """The JSON object that a file of the checkpoint holds; UserError where it holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{checkpoint}: its {file.name} is not valid JSON ({first_line(error)}); fetch or save it again"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{checkpoint}: its {file.name} is no JSON object; fetch or save it again")
    return values


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of one's own."""
    return str(error).strip().partition("\n")[0]
