"""From a text source to the data artifact: the work of the ``prepare`` stage.

The source is read two or three times (count and check, train a tokenizer, encode), so that nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint, end_token, load_tokenizer, read_config, stop_tokens
from offramp.corpus.sources import Piece, joined, open_source
from offramp.corpus.split import SPLITS, assign, survey
from offramp.corpus.store import Stream, token_dtype, write_streams
from offramp.corpus.tokenizer import END, FILE, UNKNOWN, Encoder, train_tokenizer
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.params import Corpus, TokenizerParams

WHOLE = 2**20
"""Characters that a checkpoint's tokenizer is given at once; where longer documents are cut, no token spans the cut."""


def prepare(
    corpus: Corpus,
    tokenizer: TokenizerParams,
    window: int,
    out: Path,
    params: dict[str, Any],
    root: Path = Path(),
    checkpoint: Checkpoint | None = None,
) -> Artifact:
    """Make the data artifact at ``out``; ``params`` go into its manifest, relative paths start at ``root``.

    ``checkpoint`` is whose tokenizer is used by kind pretrained.

    UserError, with nothing at ``out`` changed: anything wrong with the text, too few documents, a split with
    fewer tokens than one window and its last target.
    """
    source = open_source(corpus, root)
    given, characters = survey(source)
    splits = assign(given, corpus)
    train = SPLITS.index("train")

    def progress(task: str) -> Iterator[Piece]:
        return _progress(source, task, characters)

    pieces, unknown_id, more = progress("encode"), None, {}
    if tokenizer.kind == "pretrained":
        theirs = read_config(checkpoint)
        used, vocab_size, end_id = load_tokenizer(checkpoint, theirs), theirs.vocab_size, end_token(theirs)
        pieces, more = joined(pieces, WHOLE), {"stop_ids": stop_tokens(checkpoint, theirs)}
    else:
        train_texts = (piece.text for piece in progress("tokenizer") if splits[piece.document] == train)
        used = train_tokenizer(tokenizer, train_texts)
        vocab_size, end_id = used.get_vocab_size(), used.token_to_id(END)
        unknown_id = None if tokenizer.kind == "bpe" else used.token_to_id(UNKNOWN)
    dtype = token_dtype(vocab_size)
    with create_artifact(out, "data", params, inputs={}) as writer:
        used.save(str(writer.path / FILE))
        streams = write_streams(
            writer.path, pieces, splits, Encoder(used, tokenizer.kind), dtype, end_id, unknown_id
        )
        _check_windows(streams, window)
        writer.meta = {
            "dtype": dtype.name,
            "vocab_size": vocab_size,
            "window": window,
            "end_id": end_id,
            "unknown_id": unknown_id,
            "kind": tokenizer.kind,
            "splits": {split: stream.counts(window) for split, stream in streams.items()},
            **more,
        }
    return open_artifact(out, "data", verify=False)


def corpus_metrics(data: Artifact) -> dict[str, Any]:
    """What metrics/corpus.json holds: vocabulary, window and the counts of every split."""
    return {"vocab_size": data.meta["vocab_size"], "window": data.meta["window"], **data.meta["splits"]}


def _progress(pieces: Iterable[Piece], task: str, characters: int) -> Iterator[Piece]:
    with tqdm(total=characters, desc=task, unit="char", unit_scale=True, disable=None, leave=False) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece.text))


def _check_windows(streams: dict[str, Stream], window: int) -> None:
    for split, stream in streams.items():
        if stream.tokens < window + 1:
            share = "" if split == "train" else f", a larger corpus.{split}_fraction"
            raise UserError(
                f"window = {window}: split {split} has {stream.tokens} tokens, fewer than the {window + 1} "
                f"of one window and its last target; set a smaller window{share}, or give more text"
            )
