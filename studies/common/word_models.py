"""Word-level models without the flaws of exit-labels and loss-prediction, in the sizes of those reports.

The vocabulary is of the training documents alone, with an <unk> that training sees; the embedding is trained;
every exit has a head of its own; every block learns from all tokens in their context; documents are split,
and those that stop training early are not those that are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.corpus.windows import TokenWindows
from studies.common.first_block import initialise_as_published
from studies.common.product_path import (
    Recipe,
    SmallModel,
    model_section,
    pretrain_section,
    study_data,
    trained,
)
from studies.common.text import StudyText


def word_models(
    text: StudyText, cache: Path, settings: Mapping[str, Any], seeds: Sequence[int]
) -> list[SmallModel]:
    """A model of two exits for every random seed, with float32 states, at ``cache``/word_models: made where
    missing.

    ``settings`` is the section word_models of the shared settings.
    """
    place = cache / "word_models"
    data = study_data(text, place, settings, "word", settings["min_count"])
    windows = TokenWindows(data, "train")
    return [
        trained(_recipe(place, seed, settings), data, windows, "float32", initialise_as_published)
        for seed in seeds
    ]


def _recipe(place: Path, seed: int, settings: Mapping[str, Any]) -> Recipe:
    model, pretrain = model_section(settings, "post"), pretrain_section(settings, seed, 3, {})
    return Recipe.of(place / str(seed), model, pretrain, __name__)
