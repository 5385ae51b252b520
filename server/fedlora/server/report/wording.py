"""Numbers as people read them, the same in the terminal and in the report; ASCII, for any terminal can show it."""

import math
from collections.abc import Iterable

UNKNOWN = "-"

# The exponential of a loss per token, shown beside the metric of a language model; it is better lower.
PERPLEXITY = "perplexity"


def score_text(value: float | None, metric_name: str) -> str:
    """Return a metric's value: accuracy in percent, any other with three digits after the point.

    Perplexity, of which a random model has thousands, has three significant digits.
    """
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "not finite"
    if metric_name == PERPLEXITY:
        return significant(value, 3)
    return f"{100 * value:.1f} %" if is_percentage(metric_name) else f"{value:.3f}"


def gain_text(before: float | None, after: float | None, metric_name: str) -> str:
    """Return what was gained with its sign, in percentage points for accuracy."""
    if before is None or after is None:
        return UNKNOWN
    if metric_name == PERPLEXITY:
        change = after - before
        return f"{'+' if change >= 0 else ''}{significant(change, 3)}" if math.isfinite(change) else UNKNOWN
    factor, digits = (100, 1) if is_percentage(metric_name) else (1, 3)
    # The difference of what is printed beside it, so that a reader's own subtraction agrees.
    gain = round(factor * after, digits) - round(factor * before, digits)
    return f"{gain:+.{digits}f}" if math.isfinite(gain) else UNKNOWN


def change_text(before: float | None, after: float | None, metric_name: str) -> str:
    """Return what a metric did, as the end of a sentence."""
    texts = score_text(before, metric_name), score_text(after, metric_name)
    if texts[0] == texts[1]:
        return f"stayed at {texts[1]}"
    change = (after or 0.0) - (before or 0.0)
    verb = "went" if not math.isfinite(change) else "rose" if change > 0 else "fell"
    return f"{verb} from {texts[0]} to {texts[1]}"


def is_percentage(metric_name: str) -> bool:
    """Return whether the metric is a share that reads better in percent."""
    return metric_name in ("accuracy", "exact match") or metric_name.endswith(" accuracy")


def loss_text(value: float) -> str:
    """Return a loss with three significant digits."""
    return significant(value, 3) if math.isfinite(value) else "not finite"


def error_texts(before: float, after: float) -> tuple[str, str]:
    """Return two errors with as many digits as it takes to tell them apart, three to five."""
    for digits in (3, 4, 5):
        texts = significant(before, digits), significant(after, digits)
        if texts[0] != texts[1]:
            break
    else:
        texts = significant(before, 3), significant(after, 3)
    return texts


def significant(value: float, digits: int) -> str:
    """Return the value with so many significant digits, without an exponent in the everyday range."""
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "not finite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 <= magnitude < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def percent_text(share: float) -> str:
    """Return a share in percent with two significant digits below ten percent, else none after the point."""
    percent = 100 * share
    if not math.isfinite(percent):
        return "not finite"
    return f"{significant(percent, 2) if abs(percent) < 10 else f'{percent:.0f}'} %"


def share_text(part: float) -> str:
    """Return a part of a whole in full percent."""
    return "under 1 %" if 0 < part < 0.01 else f"{100 * part:.0f} %"


def duration_text(seconds: float) -> str:
    """Return a duration in at most two units."""
    if not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size_text(size_bytes: int) -> str:
    """Return a size in decimal units."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    units = ("kB", "MB", "GB", "TB")
    power = min(len(units), int(math.log10(size_bytes) / 3))
    return f"{significant(size_bytes / 1000**power, 3)} {units[power - 1]}"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s in the plural."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def amount_text(count: int) -> str:
    """Return a large count shortly, with three significant digits from a million on."""
    for power, name in ((9, "billion"), (6, "million")):
        if count >= 10**power:
            return f"{significant(count / 10**power, 3)} {name}"
    return f"{count:,}"


def reason_text(reason: str) -> str:
    """Return a refusal's code in words, with what was found behind it if the reason says so."""
    code, colon, found = reason.partition(":")
    return code.replace("_", " ") + colon + found


def list_text(words: Iterable[str], *, limit: int = 4) -> str:
    """Return words as an enumeration; past the limit, how many more there are."""
    shown = list(words)
    if len(shown) > limit:
        shown = [*shown[:limit], f"{len(shown) - limit} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def ranges_text(numbers: Iterable[int]) -> str:
    """Return numbers in ascending order, runs of neighbours as a range."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(str(end) for end in run) for run in runs)


def bytes_text(size: float) -> str:
    """Return a number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit has returned")


def capital(text: str) -> str:
    """Return the text with a capital at its beginning."""
    return text[:1].upper() + text[1:]
