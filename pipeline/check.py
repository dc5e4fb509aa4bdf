"""Stage check: validate params.yaml, take the fingerprints of corpus and checkpoint, before DVC touches any other output.

DVC deletes a stage's outputs before running it, so validation inside a stage alone would come too late to keep
earlier results. This stage runs every time; its outputs change only when text or weights do, so passing re-runs nothing.
"""

from __future__ import annotations

from pathlib import Path

from offramp.artifacts.files import write_json
from offramp.checkpoints.checkpoint import Checkpoint, check_cut, check_weights, load_tokenizer, read_config
from offramp.checkpoints.checkpoint import fingerprint as fingerprint_weights
from offramp.corpus.fingerprint import fingerprint
from offramp.params import Declared
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    precisions = {
        "pretrain.precision": params.pretrain.precision,
        "collect.precision": params.collect.precision,
    }
    if (
        params.runtime.device not in ("auto", "cpu") or "bf16" in precisions.values()
    ):  # importing torch takes seconds
        from offramp.machine.device import require_precision, setup

        device = setup(params.runtime.device, params.runtime.threads)
        for parameter, precision in precisions.items():
            require_precision(device, precision, parameter)
    checkpoint = _checked(params) if params.model.source == "hf" else None
    write_json(root / "build/corpus.json", fingerprint(params.corpus, root, checkpoint))
    write_json(root / "build/checkpoint.json", fingerprint_weights(checkpoint) if checkpoint else {})


def _checked(params: Declared) -> Checkpoint:
    """The checkpoint that the parameters name; UserError unless it can be used as they say."""
    checkpoint = Checkpoint.of(params.model)
    config = read_config(checkpoint)
    check_cut(config, checkpoint, params.model.exits_after, params.window)
    load_tokenizer(checkpoint, config)
    check_weights(checkpoint)
    return checkpoint


main = stage("check", run)

if __name__ == "__main__":
    main()
