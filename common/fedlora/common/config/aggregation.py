"""[aggregation]: the method, whose class says which settings there are and what they may be."""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError
from pydantic_core.core_schema import ErrorType

from fedlora.common.errors import ConfigError
from fedlora.common.section import Section
from fedlora.methods import DEFAULT, METHODS, Method, loadable_methods

# In the validation's context: whether a method may be missing here, because another machine aggregates.
ELSEWHERE = "aggregates elsewhere"

_KNOWN_TYPES = set(get_args(ErrorType))


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
    is_elsewhere = bool((info.context or {}).get(ELSEWHERE)) and isinstance(name, str) and name != "own"
    if name != "own" and (not isinstance(name, str) or name not in METHODS):
        if is_elsewhere:
            return MethodElsewhere.model_validate(given)
        expected = ", ".join(map(repr, METHODS))
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'method'", "tag": str(name), "expected_tags": expected}
        )
    try:
        return (OwnMethod if name == "own" else METHODS[name]).model_validate(settings)
    except (ValidationError, ConfigError) as error:
        # What cannot be used here, or is of another version, is the affair of who aggregates.
        if is_elsewhere:
            return MethodElsewhere.model_validate(given)
        if isinstance(error, ConfigError):
            raise
        details = [_below(name, detail) for detail in error.errors()]
        raise ValidationError.from_exception_data("aggregation", details) from error


def _below(name: str, detail: ErrorDetails) -> InitErrorDetails:
    """Return a finding about a method's settings as one of the run file, below the method's name."""
    kind: str | PydanticCustomError = detail["type"]
    context = detail.get("ctx", {})
    if detail["type"] == "value_error":
        kind = PydanticCustomError("value_error", "{error}", {"error": context["error"]})
    elif detail["type"] not in _KNOWN_TYPES:
        kind = PydanticCustomError("own", "{message}", {"message": detail["msg"]})
    return InitErrorDetails(type=kind, loc=(name, *detail["loc"]), input=detail["input"], ctx=context)


AggregationSection = Annotated[SerializeAsAny[Method] | OwnMethod | MethodElsewhere, BeforeValidator(_section)]


def settings_of_all() -> dict[str, None]:
    """Return the keys that the section may have, over all methods, in their order."""
    kinds: list[type[Section]] = [OwnMethod, *loadable_methods()[0].values()]
    return dict.fromkeys(["method", *(key for kind in kinds for key in kind.model_fields)])
