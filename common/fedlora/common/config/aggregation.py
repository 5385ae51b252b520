"""[aggregation]: the method, whose class says which settings there are and what they may be."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from fedlora.common.section import Section
from fedlora.methods import DEFAULT, METHODS, Method, loadable_methods

# In the validation's context: whether a method may be missing here, because another machine aggregates.
ELSEWHERE = "aggregates elsewhere"


class OwnMethod(Section):
    method: Literal["own"] = Field("own", description="one that simulate(config, method=...) was given")
    name: str = Field("", description="its name")
    settings: str = Field("", description="what it says of itself, and by which a resumed run knows it again")


class MethodElsewhere(Section):
    """A method that is not installed here: a site need not have what the server aggregates with."""

    model_config = ConfigDict(extra="allow")

    method: str


def _section(given: object, info: ValidationInfo) -> object:
    """Return the method that a table names; what is wrong with it stands below its name, as in a tagged union."""
    if isinstance(given, Method | OwnMethod | MethodElsewhere):
        return given
    if not isinstance(given, Mapping):
        raise PydanticCustomError("model_type", "Input should be a table")
    settings = dict(given)
    name = settings.pop("method", DEFAULT)
    if name == "own":
        return OwnMethod.model_validate(settings)
    if not isinstance(name, str) or name not in METHODS:
        if (info.context or {}).get(ELSEWHERE) and isinstance(name, str):
            return MethodElsewhere.model_validate(given)
        expected = ", ".join(map(repr, METHODS))
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'method'", "tag": str(name), "expected_tags": expected}
        )
    try:
        return METHODS[name].model_validate(settings)
    except ValidationError as error:
        details = [
            cast(
                InitErrorDetails,
                {
                    "type": PydanticCustomError("value_error", "{error}", {"error": detail["ctx"]["error"]})
                    if detail["type"] == "value_error"
                    else detail["type"],
                    "loc": (name, *detail["loc"]),
                    "input": detail["input"],
                    "ctx": detail.get("ctx", {}),
                },
            )
            for detail in error.errors()
        ]
        raise ValidationError.from_exception_data("aggregation", details) from error


AggregationSection = Annotated[SerializeAsAny[Method] | OwnMethod | MethodElsewhere, BeforeValidator(_section)]


def default_section() -> Any:
    """Return the section of a run that names no method."""
    return METHODS[DEFAULT]()


def settings_of_all() -> dict[str, None]:
    """Return the keys that the section may have, over all methods, in their order."""
    return dict.fromkeys(["method", *(key for kind in loadable_methods()[0].values() for key in kind.model_fields)])
