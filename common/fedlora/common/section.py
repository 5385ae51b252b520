"""The base of all sections of the run file, and the numbers that they are made of."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    def entries(self) -> Iterator[tuple[str, object, str]]:
        """Yield each key with its value and its description, as a run file has them."""
        for key, field in type(self).model_fields.items():
            yield key, getattr(self, key), field.description or ""
