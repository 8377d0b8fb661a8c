"""Pairs out of rows in which people or models scored, ranked or voted, a function a format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from rlaif.files.readers.chosen import Made, plain
from rlaif.files.readers.conversations import (
    Prefix,
    answer_of,
    better,
    conversation,
    make_pair,
    messages_of,
    require_prompt,
    with_system,
)
from rlaif.files.readers.fields import (
    Left,
    Row,
    expect,
    items,
    need,
    number,
    text_of,
)
from rlaif.records import Message, Pair

Placed = Sequence[tuple[str, Row]]  # rows with their places
_TIES = {"tie", "tie (bothbad)", "tie (inconsistent)", "both_bad", "bothbad", "tie_bothbad"}


def each_two(
    prompt: Prefix, texts: Sequence[str], label: Callable[[int, int], float], where: str
) -> Made:
    """Every two completions of a list; those that make no pair are left out by themselves."""
    if len(texts) < 2:
        raise Left("malformed", f"expected at least two completions, got {len(texts)}")
    for i, j in combinations(range(len(texts)), 2):
        try:
            yield make_pair(prompt, texts[i], texts[j], label(i, j), f"{where}#{i}-{j}")
        except Left as reason:
            yield Left(reason.reason, reason.detail or f"completions {i} and {j}")


def by_scores(prompt: Prefix, texts: Sequence[str], scores: Sequence[float], where: str) -> Made:
    """Every two completions, the higher score being the better; equal scores are a tie."""
    yield from each_two(prompt, texts, lambda i, j: better(scores[i], scores[j]), where)


def _one_of(value: Any, field: str, *known: int) -> int:
    """A whole number of a few; as text, or as a float with nothing after the point, too."""
    found = None if isinstance(value, bool) else number(value, field)
    expect(found in known, field, " or ".join(map(str, known)), value)
    return int(found or 0)


# ---------------------------------------------------------------------------- two completions


def webgpt(row: Row, where: str) -> Made:
    """https://huggingface.co/datasets/openai/webgpt_comparisons; the label as in Nakano et al."""
    question = need(row, "question")
    if isinstance(question, dict):
        question = need(question, "full_text")
    scores = [number(need(row, name), name) for name in ("score_0", "score_1")]
    if not math.isclose(scores[0], -scores[1], abs_tol=1e-6):
        expected = "expected score_0 and score_1 to sum to 0"
        raise Left("malformed", f"{expected}, got {scores[0]} and {scores[1]}")
    first, second = (text_of(need(row, f"answer_{i}"), f"answer_{i}").strip() for i in (0, 1))
    prompt = plain(text_of(question, "question").strip())
    yield make_pair(prompt, first, second, better(*scores), where)


def summarize(row: Row, where: str) -> Made:
    """Comparisons of https://github.com/openai/summarize-from-feedback: Reddit posts or news.

    The prompt is the one that the published models were given.
    """
    info = need(row, "info")
    expect(isinstance(info, dict), "info", "an object", info)
    summaries = items(need(row, "summaries"), "summaries")
    choice = need(row, "choice")
    two = len(summaries) == 2 and all(isinstance(s, dict) for s in summaries)
    expect(two, "summaries", "two summaries {text, policy}", summaries)
    expect(type(choice) is int and choice in (0, 1), "choice", "0 or 1", choice)
    first, second = (
        text_of(s.get("text"), f"summaries[{i}].text").strip() for i, s in enumerate(summaries)
    )
    yield make_pair(plain(_asked_summary(info)), first, second, 1.0 - choice, where)


def _asked_summary(info: Row) -> str:
    post, article = info.get("post"), info.get("article")
    if post is None and article is None:
        need(info, "post")
    if post is None:
        body = text_of(article, "info.article").strip()
        said = [f"Article:\n{body}"]
    else:
        body = text_of(post, "info.post").strip()
        said = [f"POST: {body}"]
        for field, start in (("title", "TITLE: "), ("subreddit", "SUBREDDIT: r/")):
            if info.get(field) is not None:
                said.insert(0, start + text_of(info[field], f"info.{field}").strip())
    if not body:
        raise Left("empty_prompt")
    return "\n\n".join([*said, "TL;DR:"])


def pku(row: Row, where: str, verdict: str = "better_response_id") -> Made:
    """https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF: which response is more helpful.

    `verdict` names the column: `safer_response_id` says which is safer, often the other one.
    """
    choice = _one_of(need(row, verdict), verdict, 0, 1)
    first, second = (text_of(need(row, f"response_{i}"), f"response_{i}") for i in (0, 1))
    yield make_pair(require_prompt(row), first, second, 1.0 - choice, where)


def pku_safer(row: Row, where: str) -> Made:
    """The same rows: which response is safer."""
    yield from pku(row, where, "safer_response_id")


def shp(row: Row, where: str) -> Made:
    """https://huggingface.co/datasets/stanfordnlp/SHP: `labels` is 1 where A is preferred."""
    label = _one_of(need(row, "labels"), "labels", 0, 1)
    sides = (f"human_ref_{side}" for side in "AB")
    first, second = (text_of(need(row, side), side) for side in sides)
    yield make_pair(plain(text_of(need(row, "history"), "history")), first, second, label, where)


def helpsteer_preference(row: Row, where: str) -> Made:
    """HelpSteer2-preference and HelpSteer3: a strength under 0 is for the first response.

    https://huggingface.co/datasets/nvidia/HelpSteer2, https://huggingface.co/datasets/nvidia/HelpSteer3
    """
    name = "preference_strength" if row.get("preference_strength") is not None else ""
    name = name or "overall_preference"
    strength = number(need(row, name), name)
    expect(abs(strength) <= 3, name, "a number from -3 to 3", row[name])
    numbered = "response_{}" if row.get("response_1") is not None else "response{}"
    sides = [numbered.format(i) for i in (1, 2)]
    first, second = (text_of(need(row, side), side) for side in sides)
    yield make_pair(nvidia_prompt(row), first, second, better(-strength, strength), where)


_EXTRA = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def nvidia_prompt(row: Row) -> Prefix:
    """The prompt of HelpSteer's rows, whose later turns stand after marks in one text."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return require_prompt(row)
    first, *rest = _EXTRA.split(text_of(prompt, "prompt"))
    said = [Message("user", first)] if first.strip() else []
    for speaker, text in zip(rest[::2], rest[1::2], strict=True):
        said.append(Message("user" if speaker == "User" else "assistant", text))
    return with_system(row, tuple(said))


# ---------------------------------------------------------------------------- arenas


def _voted(winner: Any) -> float:
    """P(A is better) of a vote. Both good, both bad, and judged so and so: all are ties."""
    if winner in ("model_a", "model_b"):
        return float(winner == "model_a")
    if isinstance(winner, str) and winner.strip().lower() in _TIES:
        return 0.5
    raise Left("malformed", f"expected 'winner' to be model_a, model_b or a tie, got {winner!r}")


def arena(row: Row, where: str) -> Made:
    """Chatbot Arena and MT-bench: two conversations, of which `turn` exchanges were judged.

    Models that were asked more than once answered the later questions after words of their own:
    such conversations part before the last turn.
    """
    label = _voted(need(row, "winner"))
    one, two = (messages_of(need(row, n), n) for n in ("conversation_a", "conversation_b"))
    if row.get("turn") is not None:
        judged = int(number(row["turn"], "turn"))
        one, two = _first_exchanges(one, judged), _first_exchanges(two, judged)
    yield _of_conversations(one, two, label, where)


def _first_exchanges(messages: Prefix, number_of: int) -> Prefix:
    ends = [i for i, m in enumerate(messages) if m.role == "assistant"]
    return messages[: ends[number_of - 1] + 1] if 0 < number_of <= len(ends) else messages


def _of_conversations(one: Prefix, two: Prefix, label: float, where: str) -> Pair:
    if one[:-1] != two[:-1]:
        raise Left("unlike_prefixes")
    return make_pair(one[:-1], answer_of(one[-1:]), answer_of(two[-1:]), label, where)


def arena_55k(row: Row, where: str) -> Made:
    """lmsys-arena-human-preference-55k: texts that are JSON lists of turns, three columns of votes.

    https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k
    """
    asked = _listed(need(row, "prompt"), "prompt")
    one, two = (_exchanges(row, name, asked) for name in ("response_a", "response_b"))
    yield _of_conversations(one, two, _vote_of_three(row), where)


def _exchanges(row: Row, name: str, asked: Sequence[str]) -> Prefix:
    said = _listed(need(row, name), name)
    if len(said) != len(asked):
        what = f"as many as 'prompt' has, {len(asked)}"
        raise Left("malformed", f"expected answers in '{name}', {what}, got {len(said)}")
    both = zip(asked, said, strict=True)
    return tuple(m for q, a in both for m in (Message("user", q), Message("assistant", a)))


def _vote_of_three(row: Row) -> float:
    if row.get("winner") is not None:
        return _voted(row["winner"])
    names = ("winner_model_a", "winner_tie", "winner_model_b")
    votes = [_one_of(need(row, name), name, 0, 1) for name in names]
    if sum(votes) != 1:
        raise Left("malformed", f"expected one of {', '.join(names)} to be 1, got {votes}")
    return (1.0, 0.5, 0.0)[votes.index(1)]


def _listed(value: Any, field: str) -> list[str]:
    """The texts of a JSON list, or of one text. A null among them is an answer without words."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            detail = f"expected '{field}' to be a JSON list of texts, got {error}"
            raise Left("malformed", detail) from error
    texts = value if isinstance(value, list) else [value]
    return [text_of("" if text is None else text, f"{field}[{i}]") for i, text in enumerate(texts)]


# ---------------------------------------------------------------------------- several completions

_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def ultrafeedback(row: Row, where: str) -> Made:
    """Each two completions of https://github.com/OpenBMB/UltraFeedback, by their mean ratings.

    Ratings are texts from "1" to "5", or "N/A": a pair is compared on the aspects that both sides
    have a rating for. `overall_score` is not read: thousands of its values are wrong.
    """
    prompt = conversation(text_of(need(row, "instruction"), "instruction"), "instruction")
    texts, ratings = [], []
    for i, completion in enumerate(items(need(row, "completions"), "completions")):
        place = f"completions[{i}]"
        expect(isinstance(completion, dict), place, "an object", completion)
        texts.append(text_of(completion.get("response"), f"{place}.response"))
        ratings.append(_ratings(completion.get("annotations"), f"{place}.annotations"))

    def label(i: int, j: int) -> float:
        one, two = ratings[i], ratings[j]
        both = [aspect for aspect in _ASPECTS if aspect in one and aspect in two]
        if not both:
            raise Left("no_rating", f"completions {i} and {j}: no aspect rated on both")
        return better(sum(one[a] for a in both), sum(two[a] for a in both))

    yield from each_two(prompt, texts, label, where)


def _ratings(annotations: Any, place: str) -> dict[str, int]:
    """The rated aspects. The first releases had a list of one annotation an aspect."""
    expect(isinstance(annotations, dict), place, "an object", annotations)
    found = {}
    for aspect in _ASPECTS:
        given = annotations.get(aspect)
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        if given is None:
            continue
        expect(isinstance(given, dict), f"{place}.{aspect}", "an object", given)
        rating = given.get("Rating")
        if rating is None or rating == "N/A":
            continue
        if str(rating) not in {"1", "2", "3", "4", "5"}:
            expected = f"expected '{place}.{aspect}.Rating' to be 1 to 5 or N/A"
            raise Left("malformed", f"{expected}, got {rating!r}")
        found[aspect] = int(rating)
    return found


def _answers(row: Row, text: str, score: str) -> tuple[list[str], list[float]]:
    texts, scores = [], []
    for i, answer in enumerate(items(need(row, "answers"), "answers")):
        place = f"answers[{i}]"
        expect(isinstance(answer, dict), place, f"an answer {{{text}, {score}}}", answer)
        texts.append(text_of(answer.get(text), f"{place}.{text}"))
        scores.append(number(answer.get(score), f"{place}.{score}"))
    return texts, scores


def nectar(row: Row, where: str) -> Made:
    """https://huggingface.co/datasets/berkeley-nest/Nectar: seven answers, rank 1 is the best."""
    texts, ranks = _answers(row, "answer", "rank")
    yield from by_scores(require_prompt(row), texts, [-rank for rank in ranks], where)


def stack_exchange(row: Row, where: str) -> Made:
    """https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences

    `pm_score` is the logarithm of the votes, and 1 more for the answer that was accepted.
    """
    texts, scores = _answers(row, "text", "pm_score")
    question = plain(text_of(need(row, "question"), "question"))
    yield from by_scores(question, texts, scores, where)


def listed(row: Row, where: str) -> Made:
    """Columns that a user named `completions`, with `scores` or `ranks`."""
    given = items(need(row, "completions"), "completions")
    texts = [
        text_of(one, f"completions[{i}]")
        if isinstance(one, str)
        else answer_of(messages_of(one, f"completions[{i}]"))
        for i, one in enumerate(given)
    ]
    name = "scores" if row.get("scores") is not None else "ranks"
    values = [number(v, f"{name}[{i}]") for i, v in enumerate(items(need(row, name), name))]
    expect(len(values) == len(texts), name, f"a list of {len(texts)}, as 'completions' is", values)
    sign = 1 if name == "scores" else -1
    yield from by_scores(require_prompt(row), texts, [sign * value for value in values], where)


# ---------------------------------------------------------------------------- of several rows


def helpsteer(rows: Placed) -> Made:
    """https://huggingface.co/datasets/nvidia/HelpSteer2: a row a response, those of a prompt one
    after the other. The one with the higher `helpfulness` is better, as for the reward models that
    were published with it.
    """
    if len(rows) == 1:
        raise Left("single_completion", "no other row of this prompt beside it")
    texts = [text_of(need(row, "response"), "response") for _, row in rows]
    scores = [number(need(row, "helpfulness"), "helpfulness") for _, row in rows]
    where, first = rows[0]
    yield from by_scores(nvidia_prompt(first), texts, scores, where)


def oasst(rows: Placed) -> Made:
    """https://huggingface.co/datasets/OpenAssistant/oasst1: replies to one message, rank 0 best.

    A row is a message and its tree's rows stand together, or a row is a whole tree.
    """
    if len(rows) == 1 and isinstance(rows[0][1].get("prompt"), dict):
        found = _replies(rows[0][1]["prompt"], (), rows[0][0])
    else:
        found = _replies_of_rows(rows)
    made = 0
    for prompt, replies, where in found:
        ranked = [r for r in replies if r.get("rank") is not None and r.get("deleted") is not True]
        if len(ranked) > 1:
            texts = [text_of(r.get("text"), "text") for r in ranked]
            ranks = [-number(r["rank"], "rank") for r in ranked]
            yield from by_scores(prompt, texts, ranks, where)
            made += 1
    if not made:
        raise Left("no_rating", "no message of this tree has two ranked replies")


Replies = Iterable[tuple[Prefix, Sequence[Mapping[str, Any]], str]]


def _replies(node: Mapping[str, Any], before: Prefix, where: str) -> Replies:
    """A tree's nodes, each with the assistant's replies to it."""
    said = (*before, _oasst_message(node))
    replies = items(node.get("replies") or [], "replies")
    for i, reply in enumerate(replies):
        expect(isinstance(reply, dict), f"replies[{i}]", "a message", reply)
    if said[-1].role == "user":
        yield said, replies, f"{where}@{node.get('message_id')}"
    for reply in replies:
        yield from _replies(reply, said, where)


def _replies_of_rows(rows: Placed) -> Replies:
    talk: dict[Any, Prefix] = {None: ()}
    replies: dict[Any, list[Row]] = {}
    places = {text_of(need(row, "message_id"), "message_id"): where for where, row in rows}
    if len(places) < len(rows):
        raise Left("malformed", "expected messages with ids of their own, got one twice in a tree")
    for _, row in rows:
        parent = row.get("parent_id")
        expect(parent is None or isinstance(parent, str), "parent_id", "an id or null", parent)
        if parent is not None and parent not in places:
            raise Left(
                "malformed",
                f"message {row.get('message_id')} answers {parent}, which is not beside it: sort "
                "the rows by message_tree_id",
            )
        replies.setdefault(parent, []).append(row)
    waiting = list(replies.get(None, []))
    while waiting:
        row = waiting.pop(0)
        name = str(row["message_id"])
        talk[name] = (*talk[row.get("parent_id")], _oasst_message(row))
        if talk[name][-1].role == "user" and name in replies:
            yield talk[name], replies[name], places[name]
        waiting += replies.get(name, [])
    if len(talk) <= len(rows):  # the root's None is in it too
        raise Left("malformed", "expected a tree, got messages that answer one another in a ring")


def _oasst_message(row: Mapping[str, Any]) -> Message:
    role = row.get("role")
    expect(role in ("prompter", "assistant"), "role", "prompter or assistant", role)
    speaker = "user" if role == "prompter" else "assistant"
    (message,) = messages_of([{"role": speaker, "content": row.get("text")}], "text")
    return message


def oasst_prompt(row: Row) -> Prefix:
    """What a tree's first message asks; the messages below it are no prompts by themselves."""
    if row.get("parent_id") is not None:
        raise Left("not_a_prompt", "a message that answers another one")
    node = row.get("prompt")
    return (_oasst_message(node if isinstance(node, dict) else row),)
