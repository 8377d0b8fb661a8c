"""`--where`: which pairs are meant, said in a line, such as `margin < 0.1 and text ~ knife`.

    EXPRESSION   TERM, joined by `and` and `or` (`and` binds tighter), `not` before one, parentheses
    TERM         FIELD OPERATOR VALUE, or `abstained` alone: any verdict that abstained
    number       = != < <= > >= a number: label (P(first is better)), margin (its distance from ½),
                 abstained (verdicts that did), length (words of the longer response), known (the
                 label that the pair came with), p(ID) (P(first) under a principle), and how far
                 apart are principles, orders, jurors
    word         = != a name: principle (the one that decided), status (preferred, tie, abstained,
                 unlabelled)
    text         ~ !~ what it contains, in any case of letters: text (prompt and responses), prompt

A value with a space or a parenthesis in it stands in quotes. A number that a pair does not have (a
label of one that abstained, say) meets no condition.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlaif.errors import ConfigError, nearest
from rlaif.evaluation.cases import Case

Test = Callable[[Case], bool]

_NUMBERS: dict[str, Callable[[Case], float | None]] = {
    "label": lambda case: case.label,
    "margin": lambda case: case.margin,
    "abstained": lambda case: case.abstained,
    "length": lambda case: case.length,
    "known": lambda case: case.pair.label,
    "principles": lambda case: case.apart("principles"),
    "orders": lambda case: case.apart("orders"),
    "jurors": lambda case: case.apart("jurors"),
}
_WORDS: dict[str, Callable[[Case], str | None]] = {
    "principle": lambda case: case.principle,
    "status": lambda case: case.status,
}
_STATUSES = ("preferred", "tie", "abstained", "unlabelled")
_TEXTS: dict[str, Callable[[Case], str]] = {
    "text": lambda case: "\n".join((_prompt(case), case.pair.first, case.pair.second)),
    "prompt": lambda case: _prompt(case),
}
FIELDS = (*_NUMBERS, *_WORDS, *_TEXTS, "p(ID)")
_NEED_VERDICTS = {"orders", "jurors"}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<operator>!=|!~|<=|>=|==|[=<>~()])|(?P<quoted>"[^"]*"|'[^']*')|"""
    r"""(?P<opinion>p\([^()\s]+\))|(?P<word>[^\s()=<>~!"']+))"""
)


def _prompt(case: Case) -> str:
    return "\n".join(message.content for message in case.pair.prompt.messages)


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on pairs. `needs_verdicts`: whether it looks beyond the label."""

    text: str
    test: Test
    needs_verdicts: bool

    def __call__(self, case: Case) -> bool:
        return self.test(case)


def parse_where(text: str, principles: Sequence[str] | None = None) -> Where:
    """The condition that an expression says; ConfigError with what was expected and where.

    `principles` are the ids that may be named; None lets any pass.
    """
    parser = _Parser(text, principles)
    test = parser.either()
    if parser.kind is not None:
        raise parser.wrong("expected `and`, `or` or the end")
    return Where(text, test, parser.needs_verdicts)


class _Parser:
    """Recursive descent over the expression's tokens; `kind` and `word` are the one at hand."""

    def __init__(self, text: str, principles: Sequence[str] | None) -> None:
        self.text, self.principles = text, principles
        self.needs_verdicts = False
        self.at = self.end = 0
        self.next()

    def next(self) -> None:
        """Goes on to the next token; `kind` is None at the end."""
        rest = self.text[self.end :]
        self.at = self.end + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind, self.word = None, "the end"
            return
        found = _TOKEN.match(rest)
        if found is None:
            self.word = rest.strip()
            raise self.wrong("cannot be read")
        self.end += found.end()
        self.kind, self.word = found.lastgroup, found[found.lastgroup or 0]

    def wrong(self, what: str) -> ConfigError:
        """The error at the token at hand, with a mark below it."""
        return ConfigError(
            f"--where: {what}, got {self.word}\n  {self.text}\n  {' ' * self.at}^\n"
            "e.g. --where 'margin < 0.1 and principle = no-harm'; fields: " + ", ".join(FIELDS)
        )

    def either(self) -> Test:
        tests = [self.both()]
        while self.kind == "word" and self.word == "or":
            self.next()
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else lambda case: any(test(case) for test in tests)

    def both(self) -> Test:
        tests = [self.one()]
        while self.kind == "word" and self.word == "and":
            self.next()
            tests.append(self.one())
        return tests[0] if len(tests) == 1 else lambda case: all(test(case) for test in tests)

    def one(self) -> Test:
        if self.kind == "word" and self.word == "not":
            self.next()
            inner = self.one()
            return lambda case: not inner(case)
        if self.kind == "operator" and self.word == "(":
            self.next()
            test = self.either()
            if self.kind != "operator" or self.word != ")":
                raise self.wrong("expected )")
            self.next()
            return test
        return self.term()

    def term(self) -> Test:
        field = self.word
        if self.kind == "opinion":
            name = self.known(field[2:-1])
            self.next()
            return self.number(lambda case: case.opinions.get(name))
        if self.kind != "word" or field not in FIELDS:
            raise self.wrong(f"expected a field{_near(field, FIELDS)}")
        self.needs_verdicts |= field in _NEED_VERDICTS
        self.next()
        if field == "abstained" and (self.kind != "operator" or self.word == ")"):
            return lambda case: case.abstained > 0
        if field in _NUMBERS:
            return self.number(_NUMBERS[field])
        return self.name(field) if field in _WORDS else self.contains(_TEXTS[field])

    def number(self, value: Callable[[Case], float | None]) -> Test:
        compare = _COMPARE[self.operator(*_COMPARE)]
        try:
            wanted = float(self.word)
        except ValueError:
            raise self.wrong("expected a number") from None
        self.next()

        def test(case: Case) -> bool:
            found = value(case)
            return found is not None and compare(found, wanted)

        return test

    def name(self, field: str) -> Test:
        value, same = _WORDS[field], self.operator("=", "!=") == "="
        wanted = self.value()
        if field == "principle":
            self.known(wanted)
        elif wanted not in _STATUSES:
            raise self.wrong(f"expected one of {', '.join(_STATUSES)}")
        self.next()
        return lambda case: (value(case) == wanted) is same

    def contains(self, value: Callable[[Case], str]) -> Test:
        inside = self.operator("~", "!~") == "~"
        wanted = self.value().casefold()
        self.next()
        return lambda case: (wanted in value(case).casefold()) is inside

    def operator(self, *wanted: str) -> str:
        found = "=" if self.word == "==" else self.word
        if self.kind != "operator" or found not in wanted:
            raise self.wrong(f"expected one of {' '.join(wanted)}")
        self.next()
        return found

    def value(self) -> str:
        if self.kind == "quoted":
            return self.word[1:-1]
        if self.kind != "word":
            raise self.wrong("expected a value")
        return self.word

    def known(self, name: str) -> str:
        if self.principles is not None and name not in self.principles:
            raise self.wrong(f"expected a principle of the run{_near(name, self.principles)}")
        return name


def _near(name: str, names: Iterable[str]) -> str:
    hint = nearest(name, names)
    return f" ({hint.strip().rstrip('?')}?)" if hint.startswith(" Did") else ""
