"""Numbers of params.yaml by what they are: every one is finite and has both bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

LEAST = 1e-12
"""The smallest number but 0: nearer to 0 a value would turn off what it is of, and not by its name."""


def _no_hidden_zero(value: float) -> float:
    if 0 < abs(value) < LEAST:
        raise PydanticCustomError("hidden_zero", f"so near to 0 it has no effect; give at least {LEAST:g}")
    return value


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, dict)) else [value]


OneOrMore = BeforeValidator(_as_list)
"""Of a list: one item may stand for the list of it, as in ``-S corpus.paths=my.txt``."""

# The upper bounds are far beyond what makes sense and below what breaks: an integer that no library takes, a
# product that overflows.
NoHiddenZero = AfterValidator(_no_hidden_zero)
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), NoHiddenZero]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NoHiddenZero]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), NoHiddenZero]
PerCent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NoHiddenZero]
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), NoHiddenZero]
"""A number of at least 0."""
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False), NoHiddenZero]
"""A learning rate of AdamW, whose updates are about that large."""
Nats = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), NoHiddenZero]
Count = Annotated[int, Field(gt=0, le=10**9)]
Batch = Annotated[int, Field(gt=0, le=10**6)]
Layers = Annotated[int, Field(gt=0, le=10_000)]
Width = Annotated[int, Field(gt=0, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
