"""Parameters: every knob of params.yaml with its bounds, the rules between knobs, and how the file is read.

A stage calls ``load_params(stage)``: the whole file is validated first, then the stage sees only the
parameters that dvc.yaml declares for it (and ``runtime`` and ``tracking``, which never change a result's
meaning), so an undeclared dependency cannot arise. Nothing here computes.
"""

from offramp.params.declared import OF_NO_RESULT, Declared
from offramp.params.reading import (
    default_values,
    load_params,
    parse_params,
    read_params,
    read_stages,
    with_lists,
)
from offramp.params.schema import Params
from offramp.params.sections import (
    Blockwise,
    Collect,
    Corpus,
    Exits,
    Frozen,
    JointClassifier,
    Lora,
    Model,
    Pretrain,
    Report,
    Risk,
    Routing,
    Runtime,
    Section,
    TokenizerParams,
    Tracking,
)

__all__ = [
    "OF_NO_RESULT",
    "Blockwise",
    "Collect",
    "Corpus",
    "Declared",
    "Exits",
    "Frozen",
    "JointClassifier",
    "Lora",
    "Model",
    "Params",
    "Pretrain",
    "Report",
    "Risk",
    "Routing",
    "Runtime",
    "Section",
    "TokenizerParams",
    "Tracking",
    "default_values",
    "load_params",
    "parse_params",
    "read_params",
    "read_stages",
    "with_lists",
]
