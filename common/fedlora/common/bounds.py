"""What may stand in a field of a message, by type: each bound with the line that is said where it is broken.

The dataclasses of `messages` carry these types. They are checked where a message is read, not where one is made.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo
from pydantic_core import PydanticCustomError

from fedlora.common.errors import CODE
from fedlora.common.fates import PARTS, Fates
from fedlora.common.printable import printable

# The type of pydantic's error whose message is the whole line.
BROKEN = "bound"

# No data set has more, and sums of so many are exact.
MAX_EXAMPLES = 10**9
MAX_TOKENS = 10**13
# The phases that a client tells its seconds of.
PHASES = ("forward", "backward", "optimizer", "training", "validation")
# What a site may keep to itself.
WITHHELD = ("loss", "scores")

_MAX_ENTRIES = 100_000
_MAX_FINGERPRINTS = 100
_MAX_FATES = 100
# Some decades. A number that is larger than the other one is as good as infinite: means and charts of it end there.
_MOST_SECONDS = 1e9
_LARGEST = 1e30
# A share that was summed up may be a little more than 1.
_ROUNDING = 1e-6
# A run's id names a folder at the site.
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

K = TypeVar("K")
V = TypeVar("V")


def _broken(line: str) -> PydanticCustomError:
    return PydanticCustomError(BROKEN, "{line}", {"line": line})


def _at_least_one(line: str) -> AfterValidator:
    def check(number: int) -> int:
        if number < 1:
            raise _broken(line)
        return number

    return AfterValidator(check)


def _at_most(most: int, *, least: int = 0) -> AfterValidator:
    def check(number: int, read: ValidationInfo) -> int:
        if not least <= number <= most:
            raise _broken(f"{read.field_name} is {number}; expected {least} to {most:,}")
        return number

    return AfterValidator(check)


def _number(number: float) -> float:
    return math.copysign(math.inf, number) if abs(number) > _LARGEST else number


def _part(share: float, read: ValidationInfo) -> float:
    if not 0 <= share <= 1 + _ROUNDING:
        raise _broken(f"{read.field_name} is {share:g}; expected 0 to 1")
    return share


def _seconds(seconds: Mapping[str, float]) -> Mapping[str, float]:
    return {phase: seconds[phase] for phase in PHASES if phase in seconds and 0 <= seconds[phase] <= _MOST_SECONDS}


def _withheld(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in WITHHELD if name in names)


def _cut(length: int) -> AfterValidator:
    return AfterValidator(lambda text: printable(text[:length], most=length))


def _run_id(run: str) -> str:
    if not _RUN_ID.fullmatch(run):
        raise _broken(f"the server names the run {run[:64]!r}; expected letters, digits, _ and -")
    return run


def _num_rounds(num_rounds: int, before: ValidationInfo) -> int:
    round = before.data.get("round", 1)
    if round < 1 or num_rounds < 1:
        raise _broken(f"the server asks for round {round} of {num_rounds}; expected 1 or more")
    return num_rounds


def _num_shards(num_shards: int, before: ValidationInfo) -> int:
    shard = before.data.get("shard", 0)
    if shard >= num_shards:
        raise _broken(f"the server asks for shard {shard} of {num_shards}; expected one of them")
    return num_shards


def _factors(trains: Sequence[str]) -> Sequence[str]:
    if not trains or not set(trains) <= {"A", "B"}:
        raise _broken(f"the server asks to train {tuple(trains)}; expected A, B or both")
    return trains


def _trained_rank(rank: int, before: ValidationInfo) -> int:
    if rank < 1:
        raise _broken(f"{before.data.get('client')} trains rank {rank}; expected 1 or more")
    return rank


def _code(code: str) -> str:
    if not re.fullmatch(CODE, code):
        raise _broken("a failure whose code is none")
    return code


def _fates(fates: Fates) -> Fates:
    if (number := sum(map(len, fates.values()))) > _MAX_FATES:
        raise _broken(f"{number:,} fates of examples; expected at most {_MAX_FATES}")
    if not all(part in PARTS and re.fullmatch(CODE, code) for part, codes in fates.items() for code in codes):
        raise _broken("a fate of examples whose part or code is none")
    if (largest := max((number for codes in fates.values() for number in codes.values()), default=0)) > MAX_EXAMPLES:
        raise _broken(f"a fate of {largest} examples; expected at most {MAX_EXAMPLES:,}")
    return fates


def _at_most_entries(most: int) -> BeforeValidator:
    def check(entries: Mapping[K, V]) -> Mapping[K, V]:
        if len(entries) > most:
            raise _broken(f"{len(entries):,} entries in one field; expected at most {most:,}")
        return entries

    return BeforeValidator(check)


RunId = Annotated[str, AfterValidator(_run_id)]
# The field after `round`, which it is checked with.
NumRounds = Annotated[int, AfterValidator(_num_rounds)]
# The field after `shard`, which it is checked with.
NumShards = Annotated[int, AfterValidator(_num_shards)]
Factors = Annotated[tuple[Literal["A", "B"], ...], BeforeValidator(_factors)]
TrainedRank = Annotated[int, AfterValidator(_trained_rank)]
NumExamples = Annotated[int, _at_most(MAX_EXAMPLES)]
NumTokens = Annotated[int, _at_most(MAX_TOKENS)]
NumSteps = Annotated[int, _at_most(MAX_EXAMPLES)]
NumScored = Annotated[int, _at_least_one("a score over no examples"), _at_most(MAX_EXAMPLES)]
NumAnswered = Annotated[int, _at_least_one("generated answers to no examples"), _at_most(MAX_EXAMPLES)]
# Too large ones are infinite.
Number = Annotated[float, AfterValidator(_number)]
Part = Annotated[float, AfterValidator(_part)]
# By known phase; what is no such phase, or no time, is left out.
Seconds = Annotated[Mapping[str, float], AfterValidator(_seconds)]
# Known names alone.
Withheld = Annotated[tuple[str, ...], AfterValidator(_withheld)]
Code = Annotated[str, AfterValidator(_code)]
Text = Annotated[str, StringConstraints(max_length=2000)]
# Of a client, a group or a run: in a simulation a client may have the name of any group of the data.
Name = Annotated[str, StringConstraints(max_length=2000)]
KnownFates = Annotated[Fates, AfterValidator(_fates)]
Entries = Annotated[Mapping[K, V], _at_most_entries(_MAX_ENTRIES)]
# A peer's words: longer ones are cut, and what a terminal would take for more than text stands by its number.
Word = Annotated[str, _cut(40)]
Fingerprint = Annotated[str, _cut(100)]
Fingerprints = Annotated[Mapping[Word, Fingerprint], _at_most_entries(_MAX_FINGERPRINTS)]
# A key, a share of one, a digest or a signature.
Key = Annotated[bytes, Field(max_length=200)]
# Shares of a member's secrets for one other.
Sealed = Annotated[bytes, Field(max_length=4_000)]
# A certificate, and what it certifies.
Certified = Annotated[bytes, Field(max_length=8_000)]
SumStep = Literal["seal", "mask", "consent", "reveal"]
