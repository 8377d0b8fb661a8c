"""Answers that look right and cannot be: asked for again, then an abstention, never a number."""

from __future__ import annotations

import json
import math

import pytest

from rlaif.engines.base import Sampling
from rlaif.engines.replies import Malformed, first_tokens, tokens_used
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment

AB = (" A", " B")
CHAT = "/v1/chat/completions"
GOOD = pytest.approx((math.log(0.6), math.log(0.3)))


def ask(text: str) -> Rendered:
    return Rendered((RenderedMessage("user", (Segment(text, True),)),))


def told(*entries, sampled=None):
    """A first token with these (token, log-probability) pairs in its list."""
    rows = [{"token": t, "logprob": v} for t, v in entries]
    token, value = sampled or entries[0]
    first = {"token": token, "logprob": value, "top_logprobs": rows}
    choice = {"index": 0, "finish_reason": "length", "logprobs": {"content": [first]}}
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    return {"choices": [choice | {"message": {"content": "A"}}], "usage": usage}


NONSENSE = {
    "raw logits": told((" A", 12.3), (" B", 9.1)),
    "negative logits": told((" A", -0.1), (" B", -0.2), (" C", -0.3)),
    "a boolean": told((" A", -0.1), (" B", False)),
    "text": told((" A", -0.1), (" B", "-3")),
    "a token twice": told((" A", -0.1), (" A", -0.2), (" B", -3.0)),
    "a token twice alike": told((" A", -0.1), (" A", -0.1), (" B", -3.0)),
    "two probabilities of one token": told((" A", -0.5), (" B", -3.0), sampled=(" A", -2.5)),
    "a likely token left out": told((" A", -2.0), (" B", -3.0), sampled=("Sure", -0.3)),
    "no token": told((None, -0.1), (" B", -3.0)),
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_asked_for_again_then_abstains(server, connect, wire, body):
    server.script = lambda path, asked, _: (
        wire.reply(body=body) if path == CHAT and "bad" in str(asked) else None
    )
    with pytest.warns(UserWarning, match="malformed"):
        bad, good = connect().score([ask("bad"), ask("fine")], [AB, AB])
    assert (bad.logprobs, bad.failure) == ((), "malformed")
    assert good.logprobs == GOOD  # the stage goes on
    assert len(server.bodies()) == 3 + 1


def test_nonsense_that_passes_is_forgotten(server, connect, wire):
    server.script = lambda path, _, k: (
        wire.reply(body=NONSENSE["raw logits"]) if path == CHAT and k == 0 else None
    )
    assert connect().score([ask("x")], [AB])[0].logprobs == GOOD


@pytest.mark.parametrize(
    "body",
    [
        told((" A", 1e-7), (" B", -18.0)),
        told((" A", -0.6875), (" B", -0.6875)),  # in bfloat16
        told((" A", -0.5), (" B", -1.5), (" C", -9999.0), sampled=("zebra", -9999.0)),
        told((" A", -0.5), (" B", -1.5), sampled=("zebra", -11.0)),
        told((" A", -0.5), (" B", -1.5), sampled=(" A", -0.5004)),
        told((" A", -1.5), (" A", -2.5), (" B", -2.0)),  # two tokens of one text
    ],
)
def test_what_honest_servers_say_is_no_nonsense(body):
    tokens = first_tokens(body)
    assert tokens is not None
    assert {text for text, _ in tokens} >= {" A", " B"}


def test_a_list_of_asked_for_ids_need_not_hold_the_likeliest():
    body = told(("token_id:1", -4.0), ("token_id:2", -5.0), sampled=("token_id:9", -0.1))
    assert first_tokens(body, ranked=False) is not None
    with pytest.raises(Malformed, match="not among the likeliest"):
        first_tokens(body)


@pytest.mark.parametrize("share", [{"A": True, "B": 0.0}, {"A": 1.5, "B": -0.5}, {"A": 9, "B": 7}])
def test_typed_questions_are_checked_alike(server, connect, wire, share):
    answer = {
        "answers": {"label": {"probabilities": share}},
        "diagnostics": {"label": {"label_mass": 0.9}},
    }
    server.script = lambda path, *_: wire.reply(body=answer) if path == "/v1/systemone" else None
    with pytest.warns(UserWarning, match="malformed"):
        (scores,) = connect(scoring="decisions").score([ask("x")], [AB])
    assert scores.failure == "malformed"


def test_two_labels_of_one_token_are_refused(server, connect, wire):
    def script(path, body, _):
        if path == "/tokenize":
            text = body.get("prompt", "").strip(" ")
            return wire.reply(
                body={"tokens": [9] * text.startswith("\n") + [7] * bool(text.strip())}
            )
        return None

    server.script = script
    server.models = [{"id": "judge", "owned_by": "vllm"}]
    with pytest.raises(EngineError, match=r"' A' and ' B' the same token \(token_id:7\)"):
        connect().score([ask("x")], [AB])


# ---- what is paid for


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": -1_000_000, "completion_tokens": 1},
        {"prompt_tokens": 10, "completion_tokens": -1_000_000},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": 10, "completion_tokens": 1e300},
        {
            "prompt_tokens": 10,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": -5},
        },
        {"prompt_tokens": 50_000_000, "completion_tokens": 1},  # of a request of forty bytes
        {"prompt_tokens": 1e308, "completion_tokens": -4},
        {"prompt_tokens": 10, "completion_tokens": 0},  # of a text
        {"prompt_tokens": 10},
        {
            "prompt_tokens": 10,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 11},
        },
        None,
    ],
)
def test_impossible_usage_lowers_no_bill(server, connect, wire, usage):
    reply = wire.chat({" A": 0.6, " B": 0.3})
    reply.body["usage"] = usage
    server.script = lambda path, *_: reply if path == CHAT else None
    prices = {"price_per_million_input": 1000.0, "price_per_million_output": 10_000.0}
    engine = connect(**prices, max_cost=1000.0, tokens_per_minute=1e6)
    with pytest.warns(UserWarning, match="usage.*estimated") as told:
        scores = engine.score([ask("x" * 40)] * 3, [AB] * 3)
    assert len(told) == 1
    assert [s.logprobs for s in scores] == [GOOD] * 3
    assert 0.03 < engine.usage.cost < 1  # as estimated from the requests' bytes
    assert engine.usage.submitted_tokens == 0
    assert engine.usage.computed_tokens == 0


def test_usage_is_what_the_server_says_where_it_can_be():
    details = {"cached_tokens": None}
    body = {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": details}}
    assert tokens_used(body) == (7, 0, 2)


# ---- what is no text


def test_a_lone_surrogate_loses_one_row(server, connect, wire):
    def script(path, body, _):
        if path != CHAT:
            return None
        text = "half \ud83d" if "bad" in str(body["messages"]) else "whole"
        return wire.reply(body=json.dumps(wire.chat({"x": 0.5}, text, "stop").body))

    server.script = script
    with pytest.warns(UserWarning, match="surrogate"):
        rows = connect().generate([ask("fine"), ask("bad"), ask("so so")], Sampling(n=2))
    assert [[(g.text, g.finish_reason) for g in row] for row in rows] == [
        [("whole", "stop")] * 2,
        [("", "malformed")] * 2,
        [("whole", "stop")] * 2,
    ]


@pytest.mark.parametrize("body", ["[" * 100_000, '{"choices": ' + "9" * 5000 + "}"])
def test_json_that_no_reader_can_read_is_a_malformed_answer(server, connect, wire, body):
    server.script = lambda path, *_: wire.reply(body=body) if path == CHAT else None
    with pytest.raises(EngineError, match="expected JSON"):
        connect(retries=1).score([ask("x")], [AB])
