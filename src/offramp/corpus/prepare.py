"""From a text source to the data artifact: the work of the ``prepare`` stage.

The source is read two or three times (to count and check it, to train a tokenizer, to encode it), so that no
more of it than a few pieces is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import end_token, load_tokenizer, stop_tokens
from offramp.corpus.sources import Piece, joined, open_source
from offramp.corpus.split import SPLITS, assign, survey
from offramp.corpus.store import Stream, token_dtype, write_streams
from offramp.corpus.tokenizer import END, FILE, UNKNOWN, Encoder, train_tokenizer
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.params import Corpus, TokenizerParams
from offramp.results.corpus import Corpus as CorpusResult

WHOLE = 2**20
"""Characters that a checkpoint's tokenizer encodes at once; no token spans a cut in a longer document."""
MOST_UNKNOWN = 0.5
"""Share of a split's tokens that may be unknown."""


def prepare(
    corpus: Corpus,
    tokenizer: TokenizerParams,
    window: int,
    out: Path,
    params: dict[str, Any],
    root: Path = Path(),
    checkpoint: Checkpoint | None = None,
) -> Artifact:
    """Make the data artifact at ``out``: token streams of all splits, their tokenizer, a table of documents.

    ``window`` is the length of a sequence in tokens, ``params`` go into the manifest, relative paths start at
    ``root``. Tokenizer kind pretrained takes the tokenizer of the ``checkpoint``, which must then be given.

    UserError, with nothing at ``out`` changed: anything wrong with the text, too few documents, a split with
    fewer tokens than one window and its last target, or with mostly unknown ones.
    """
    source = open_source(corpus, root)
    source_splits, characters = survey(source)
    splits = assign(source_splits, corpus)
    train = SPLITS.index("train")

    def progress(task: str) -> Iterator[Piece]:
        return _progress(source, task, characters)

    pieces, unknown_id, stop_ids = progress("encode"), None, {}
    if tokenizer.kind == "pretrained":
        if checkpoint is None:
            raise ValueError("tokenizer kind pretrained needs the checkpoint whose tokenizer it is")
        config = read_config(checkpoint)
        trained, vocab_size, end_id = load_tokenizer(checkpoint, config), config.vocab_size, end_token(config)
        unknown_id = trained.token_to_id(getattr(trained.model, "unk_token", None) or "")
        pieces, stop_ids = joined(pieces, WHOLE), {"stop_ids": stop_tokens(checkpoint, config)}
    else:
        train_texts = (piece.text for piece in progress("tokenizer") if splits[piece.document] == train)
        trained = train_tokenizer(tokenizer, train_texts)
        vocab_size, end_id = trained.get_vocab_size(), trained.token_to_id(END)
        unknown_id = None if tokenizer.kind == "bpe" else trained.token_to_id(UNKNOWN)
    dtype = token_dtype(vocab_size)
    with create_artifact(out, "data", params, inputs={}) as writer:
        trained.save(str(writer.path / FILE))
        streams = write_streams(
            writer.path,
            pieces,
            splits,
            encode=Encoder(trained, tokenizer.kind),
            dtype=dtype,
            end_id=end_id,
            unknown_id=unknown_id,
        )
        _check_known(streams, tokenizer.kind)
        _check_windows(streams, window)
        writer.meta = {
            "dtype": dtype.name,
            "vocab_size": vocab_size,
            "window": window,
            "end_id": end_id,
            "unknown_id": unknown_id,
            "kind": tokenizer.kind,
            "splits": {split: stream.counts(window) for split, stream in streams.items()},
            **stop_ids,
            **({"hub_revision": source.revision} if source.revision else {}),
        }
    return open_artifact(out, "data", verify=False)


def corpus_metrics(data: Artifact) -> CorpusResult:
    """Vocabulary size, window and counts of every split."""
    return CorpusResult(vocab_size=data.meta["vocab_size"], window=data.meta["window"], **data.meta["splits"])


def _progress(pieces: Iterable[Piece], task: str, characters: int) -> Iterator[Piece]:
    with tqdm(total=characters, desc=task, unit="char", unit_scale=True, disable=None, leave=False) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece.text))


def _check_known(streams: dict[str, Stream], kind: str) -> None:
    for split, stream in streams.items():
        if (rate := stream.unknown / max(1, stream.tokens - stream.documents)) > MOST_UNKNOWN:
            remedy = {
                "word": "words are what stands between spaces; set tokenizer.kind: bpe or char, or lower "
                "tokenizer.min_count, or raise tokenizer.vocab_size",
                "char": "set tokenizer.kind: bpe, lower tokenizer.min_count or raise tokenizer.vocab_size",
            }.get(kind, "choose a checkpoint that knows the language of the text")
            raise UserError(
                f"tokenizer.kind = {kind!r}: {rate:.0%} of the tokens of split {split} are unknown, and at "
                f"most {MOST_UNKNOWN:.0%} may be, or there is nothing to learn; {remedy}"
            )


def _check_windows(streams: dict[str, Stream], window: int) -> None:
    for split, stream in streams.items():
        if stream.tokens < window + 1:
            share = "" if split == "train" else f", a larger corpus.{split}_fraction"
            raise UserError(
                f"window = {window}: split {split} has {stream.tokens} tokens, fewer than the {window + 1} "
                f"of one window and its last target; set a smaller window{share}, or give more text"
            )
