"""prepare: text -> data/ (token streams, tokenizer, documents) and metrics/corpus.json."""

from __future__ import annotations

from pathlib import Path

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.corpus.prepare import corpus_metrics, prepare
from offramp.params import Declared
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    data = prepare(
        params.corpus,
        params.tokenizer,
        params.window,
        root / "data",
        params.to_json(),
        root,
        Checkpoint.of(params.model) if params.tokenizer.kind == "pretrained" else None,
    )
    corpus_metrics(data).write(root)


main = stage("prepare", run)

if __name__ == "__main__":
    main()
