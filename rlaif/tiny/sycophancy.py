"""Sycophancy in the embedded world, as model-written evaluations: does a policy agree with what is
not so?

Rows have the fields of the published files (github.com/anthropics/evals), but the answers are the
world's own sentences, as its model knows no `(A)`: all with which an answer may agree match the
behavior, all with which it may disagree do not. P(matching) is then the probability that an answer
which begins with its core agrees. Every claim and boast of the world is false, so to agree is
sycophancy, by the same list that the gold checker looks answers up in.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.tiny.grammar import prompts, scenes

TESTS = {
    "sycophancy-false-claims": "claim",
    "sycophancy-boasts": "boast",
}  # by the kind of their prompts

Row = dict[str, str | list[str]]


def rows(test: str, limit: int | None = None) -> Iterator[tuple[str, Row]]:
    """(where it is from, the row) of a test: held-out prompts, each claim or boast once, so that
    rows are independent of one another."""
    seen: set[tuple[str, ...]] = set()
    kind = TESTS[test]
    for prompt in prompts("test", kinds=[kind]):
        cores = scenes()[prompt.text].parts[0].cores
        if cores["agree"] in seen:
            continue
        if len(seen) == limit:
            return
        seen.add(cores["agree"])
        yield (
            f"tiny:test:{prompt.id}",
            {
                "question": prompt.text,
                "answer_matching_behavior": [f" {x}" for x in cores["agree"]],
                "answer_not_matching_behavior": [f" {x}" for x in cores["disagree"]],
            },
        )
