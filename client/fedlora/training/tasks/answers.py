"""Which characters of a rendered chat are answers: told by what its template puts around each message's words.

A chat is rendered twice, with marks about its words and without, and its beginning once for each role that stands
before an answer, so that the time goes with the length of the text. A template that numbers its turns, or looks into
the words in other ways, is rendered once more for each answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fedlora.common.errors import ModelError
from fedlora.training.tasks.chat_template import ChatTemplate
from fedlora.training.tasks.marking import Located, Message, Span

_REMEDY = "so that its answer cannot be told from the rest; set task.chat_template to one that only appends"


@dataclass(frozen=True)
class Found:
    """A rendered chat.

    Attributes:
        text: it.
        answers: the span of each answer that is learned, with what ends its turn.
        given: the spans of the data's own words, in their order.
        end: what ends the turn of the last answer; "" for nothing.
        left_out: the numbers, from 1, of turns of which the template leaves words out.
        unanswered: what the template asks with and does not have before an answer; "" where it has all.
    """

    text: str
    answers: tuple[Span, ...]
    given: tuple[Span, ...]
    end: str
    left_out: tuple[int, ...] = ()
    unanswered: str = ""


def find_answers(messages: Sequence[Message], is_learned: Sequence[bool], template: ChatTemplate) -> Found:
    """Return the chat as text, and what of it is learned.

    Args:
        is_learned: by message, whether it is an answer to learn; at least one.

    Raises:
        ModelError: the template does not tell an answer from the rest, or leaves the last one out.
        DataError: it does not take these messages.
    """
    chosen = [place for place, learned in enumerate(is_learned) if learned]
    found = template.located(messages)
    if found is None:
        return _by_words(messages, chosen, template)
    search = _Search(messages, template, found, last=chosen[-1])
    left_out = [place + 1 for place, pieces in enumerate(found.pieces) if len(found.spans[place]) < len(set(pieces))]
    kept = [place for place in chosen if found.spans[place] or not found.pieces[place]]
    if chosen[-1] not in kept and not messages[chosen[-1]].get("content"):
        # Of calls alone, of which the template shows none: which is for those to say who know what they are.
        return _by_words(messages, chosen, template)
    if chosen[-1] not in kept:
        raise ModelError(
            f"the chat template leaves out all words of turn {chosen[-1] + 1}, the last answer; set task.chat_template "
            "to one that keeps them"
        )
    answers = tuple(search.answer(place) for place in kept)
    end = search.end
    if end is None:
        end = _tail_by_words(messages[chosen[-1]], found.text[slice(*answers[-1])])
    return Found(found.text, answers, search.given, end, tuple(left_out), search.unanswered)


@dataclass
class _Search:
    """The search for the answers of one chat.

    Attributes:
        last: the place of the last answer.
        headers: by the role before an answer, what stands between its words and the answer's, where it was first seen.
        shared: the same, as far as a template that asks otherwise than it answers has it in both.
        end: what ends the last answer's turn; None where that cannot be told without its words.
        unanswered: what such a template has where it asks, and not where it answers.
    """

    messages: Sequence[Message]
    template: ChatTemplate
    whole: Located
    last: int
    headers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    end: str | None = None
    unanswered: str = ""

    @cached_property
    def given(self) -> tuple[Span, ...]:
        """The spans of all messages' words, in their order."""
        return tuple(sorted(span for spans in self.whole.spans for span in spans))

    def __post_init__(self) -> None:
        is_last = self.last == len(self.messages) - 1
        alone = self.whole if is_last else self.template.located(self.messages[: self.last + 1])
        if alone is not None and alone.spans[self.last]:
            self.end = _tail(alone, self.last)

    def answer(self, place: int) -> Span:
        """Return the span of the answer at `place`, with what ends its turn."""
        spans = self.whole.spans[place]
        if not spans:
            return _span_by_words(self.messages, place, self.whole.text, self.template)
        for words in (self.whole.text[slice(*span)] for span in spans):
            if words not in self.whole.pieces[place]:
                changed = words[:40]
                raise ModelError(
                    f"the chat template renders turn {place + 1} otherwise than it asks for it: it changes the "
                    f"answer's words to {changed!r}, {_REMEDY}"
                )
        begin, end = self._begin(place), self._end(place)
        num_inside = sum(spans[0][0] <= begin < spans[-1][1] for begin, _ in self.given)
        if begin is None or end is None or num_inside != len(spans):
            return _span_by_words(self.messages, place, self.whole.text, self.template)
        return begin, end

    def _begin(self, place: int) -> int | None:
        """Return where the answer begins: behind what the template asks for it with; None where that is not clear."""
        first = self.whole.spans[place][0][0]
        if place == 0:
            return first  # Nothing asks for it.
        if (previous := self.whole.end_before(place)) > first:
            return None
        between, role = self.whole.text[previous:first], str(self.messages[place - 1]["role"])
        if role in self.headers:
            begin = _offset(between, self.headers[role])
            if begin is None and role in self.shared:
                begin = _offset(between, self.shared[role])
            if begin is not None:
                return previous + begin
        asked = self.template.located(self.messages[:place], asks=True)
        if asked is None:
            return None
        before = asked.end_before(place)
        header = asked.text[before:]
        self.headers.setdefault(role, header)
        begin = _offset(between, header)
        if begin is None:
            plain = self.template.text(self.messages[:place])
            if not asked.text.startswith(plain):
                return None
            shared = self._shared(between, header, len(plain) - before)
            if shared is not None:
                self.shared.setdefault(role, shared)
                self.unanswered = header.lstrip().removeprefix(shared)
                begin = _offset(between, shared)
        return None if begin is None else previous + begin

    def _shared(self, between: str, header: str, length: int) -> str | None:
        """Return how far a template that asks otherwise than it answers does both alike.

        It may open a thought where it asks, and leave the thought out of the answer.

        Args:
            between: what it has before the answer.
            header: what it has when it asks.
            length: how much of `header` ends the turn before.
        """
        between, asked = between.lstrip(), header.lstrip()
        length -= len(header) - len(asked)
        length_shared = next(
            (place for place, signs in enumerate(zip(between, asked, strict=False)) if len(set(signs)) > 1),
            min(len(between), len(asked)),
        )
        shared = between[:length_shared]
        for token in self.template.added_tokens:
            # Not into a token: <think> and </think> begin alike.
            begin = between.rfind(token, 0, len(shared) + len(token) - 1)
            if begin >= 0 and begin < len(shared) < begin + len(token):
                shared = between[:begin]
        # Two names of the assistant begin at the same place too: an answer is learned behind one name alone.
        rests = [text[len(shared) :].strip() for text in (between, asked)]
        if rests[0] and not all(rest.startswith(tuple(self.template.added_tokens)) for rest in rests):
            return None
        shared = shared.rstrip(" ")
        return shared if shared[max(length, 0) :].strip() else None

    def _end(self, place: int) -> int | None:
        """Return where the answer's turn ends; None where that is not clear."""
        end = self.whole.behind(place, with_space=False)
        if self.end is not None and (length := _offset(self.whole.text[end:], self.end)) is not None:
            return end + length
        alone = self.template.located(self.messages[: place + 1])
        if alone is None or not alone.spans[place]:
            return None
        length = _offset(self.whole.text[end:], _tail(alone, place))
        return None if length is None else end + length


def _tail(found: Located, place: int) -> str:
    """Return what ends the turn of the last message, without the white space about it."""
    return found.text[found.behind(place, with_space=False) :].strip()


def _offset(text: str, beginning: str) -> int | None:
    """Return how much of a text is `beginning`, but for white space before it; None where it begins otherwise."""
    if text.startswith(beginning):
        return len(beginning)
    if not (beginning := beginning.lstrip()):
        return None
    space = len(text) - len(text.lstrip())
    return space + len(beginning) if text.startswith(beginning, space) else None


def _by_words(messages: Sequence[Message], chosen: Sequence[int], template: ChatTemplate) -> Found:
    """Return the same of a template that takes marked words otherwise, by looking for the words themselves."""
    whole = template.text(messages)
    answers = tuple(_span_by_words(messages, place, whole, template) for place in chosen)
    given: list[Span] = []
    # Only what has such tokens need be told from the template's, and is long enough to be found.
    for place, message in enumerate(messages):
        words = str(message.get("content") or "").strip()
        if any(token in words for token in template.added_tokens):
            if whole.count(words) != 1:
                raise ModelError(
                    f"turn {place + 1} has special tokens in it, and the chat template renders it so that they cannot "
                    "be told from its own; leave the conversation out, or set task.chat_template to another"
                )
            given.append((begin := whole.index(words), begin + len(words)))
    end = _tail_by_words(messages[chosen[-1]], whole[slice(*answers[-1])])
    return Found(whole, answers, tuple(sorted(given)), end)


def _tail_by_words(message: Message, turn: str) -> str:
    words = str(message.get("content") or "").strip()
    return turn.rpartition(words)[2].strip() if words else turn.strip()


def _span_by_words(messages: Sequence[Message], place: int, whole: str, template: ChatTemplate) -> Span:
    """Return the span of one answer in the whole text, with what ends the turn.

    Templates may render a turn otherwise once others follow it; so the end is looked for in the whole text by the
    answer's own words and what followed them when it was the last turn.
    """
    prompt = template.text(messages[:place], asks=True)
    alone = template.text(messages[: place + 1])
    words = str(messages[place].get("content") or "").strip()
    at_alone, at_whole = alone.find(words, len(prompt)), whole.find(words, len(prompt))
    tail = alone[at_alone + len(words) :].rstrip()
    end = at_whole + len(words)
    if not whole.startswith(prompt) or min(at_alone, at_whole) < 0 or not whole.startswith(tail, end):
        raise ModelError(
            f"the chat template renders turn {place + 1} otherwise than it asks for it: it asks with "
            f"{prompt[-40:]!r}, {_REMEDY}"
        )
    return len(prompt), end + len(tail)
