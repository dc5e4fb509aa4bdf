"""From a text source to the data artifact: the work of the ``prepare`` stage.

The source is read three times (count and check, train the tokenizer, encode), so that nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from offramp.corpus.sources import Piece, open_source
from offramp.corpus.split import SPLITS, assign, survey
from offramp.corpus.store import Stream, token_dtype, write_streams
from offramp.corpus.tokenizer import END, FILE, UNKNOWN, Encoder, train_tokenizer
from offramp.errors import UserError
from offramp.lineage.artifact import Artifact, create_artifact, open_artifact

if TYPE_CHECKING:
    from offramp.params import Corpus, TokenizerParams


def prepare(
    corpus: Corpus,
    tokenizer: TokenizerParams,
    window: int,
    out: Path,
    params: dict[str, Any],
    root: Path = Path(),
) -> Artifact:
    """Make the data artifact at ``out``; ``params`` go into its manifest, relative paths start at ``root``.

    UserError, with nothing at ``out`` changed: anything wrong with the text, too few documents, a split with
    fewer tokens than one window and its last target.
    """
    source = open_source(corpus, root)
    given, characters = survey(source)
    splits = assign(given, corpus)
    train = SPLITS.index("train")

    def progress(task: str) -> Iterator[Piece]:
        return _progress(source, task, characters)

    train_texts = (piece.text for piece in progress("tokenizer") if splits[piece.document] == train)
    trained = train_tokenizer(tokenizer, train_texts)
    vocab_size = trained.get_vocab_size()
    dtype = token_dtype(vocab_size)
    end_id = trained.token_to_id(END)
    unknown_id = None if tokenizer.kind == "bpe" else trained.token_to_id(UNKNOWN)
    with create_artifact(out, "data", params, inputs={}) as writer:
        trained.save(str(writer.path / FILE))
        encode = Encoder(trained, tokenizer.kind)
        streams = write_streams(writer.path, progress("encode"), splits, encode, dtype, end_id, unknown_id)
        _check_windows(streams, window)
        writer.meta = {
            "dtype": dtype.name,
            "vocab_size": vocab_size,
            "window": window,
            "end_id": end_id,
            "unknown_id": unknown_id,
            "kind": tokenizer.kind,
            "splits": {split: stream.counts(window) for split, stream in streams.items()},
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
