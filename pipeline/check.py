"""Stage check: validate params.yaml, and take the digests of text, checkpoint and code.

DVC deletes a stage's outputs before running it, so validation inside a stage alone would come too late to
keep earlier results. This stage always runs; its outputs change only with text, weights or code, so where all
of them are as they were, it makes no other stage run.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ruamel.yaml import YAML

from offramp.artifacts.files import write_json
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import check_cut, read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.checkpoints.weights import check_shapes, check_weights, weights_fingerprint
from offramp.corpus.fingerprint import fingerprint
from offramp.lineage.code import write_code
from offramp.params import Declared, read_params
from offramp.report.settings import cautions, flatten
from pipeline._stage import stage

log = logging.getLogger(__name__)


def run(params: Declared, root: Path) -> None:
    _check_precision(params)
    # of all parameters, none of which this stage's outputs hang on through them
    for caution in cautions(flatten(read_params(root / "params.yaml").model_dump())):
        log.warning("%s", caution)
    checkpoint = _checked(params) if params.model.source == "hf" else None
    text = fingerprint(params.corpus, root, checkpoint)
    if "revision" in text:  # of the hub; where it could not be asked, the commit that data/ was made of
        log.warning("corpus.hub_name: commit %s", text["revision"] or "not known, the hub cannot be asked")
    write_json(root / "build/corpus.json", text)
    write_json(root / "build/checkpoint.json", weights_fingerprint(checkpoint) if checkpoint else {})
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    others = {name: f"pipeline.{name}" for name in stages if name != "check"}
    write_code(others, root / "build/code", root)


def _check_precision(params: Declared) -> None:
    """Raise UserError where the device is not there, or lacks the precision that the parameters name."""
    precisions = {
        "pretrain.precision": params.pretrain.precision,
        "collect.precision": params.collect.precision,
    }
    if params.runtime.device in ("auto", "cpu") and "bf16" not in precisions.values():
        return  # every machine has that; importing torch to ask takes seconds
    from offramp.machine.device import require_precision, setup

    device = setup(params.runtime.device, params.runtime.threads)
    for parameter, precision in precisions.items():
        require_precision(device, precision, parameter)


def _checked(params: Declared) -> Checkpoint:
    """The checkpoint that the parameters name; UserError unless it can be used as they say."""
    checkpoint = Checkpoint.of(params.model)
    config = read_config(checkpoint)
    check_cut(config, checkpoint, params.model.exits_after, params.window)
    load_tokenizer(checkpoint, config)
    check_weights(checkpoint)
    check_shapes(checkpoint, config)
    return checkpoint


main = stage("check", run)

if __name__ == "__main__":
    main()
