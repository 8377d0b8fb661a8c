"""Concurrency, spacing and money without a server."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rlaif.engines.pacing import Budget, Gate, Pacer
from rlaif.engines.replies import retry_after
from rlaif.errors import EngineError


def test_the_gate_grows_fast_halves_once_a_round_and_then_grows_slowly() -> None:
    async def scene() -> list[float]:
        gate = Gate(64)
        limits = [gate.limit]
        for _ in range(8):  # one round of successes doubles it
            await gate.leave(await gate.enter(), "fine")
        limits.append(gate.limit)
        entered = [await gate.enter() for _ in range(16)]
        for time_of_entry in entered:  # one overload, told by all that were in flight
            await gate.leave(time_of_entry, "over")
        limits.append(gate.limit)
        for _ in range(8):
            await gate.leave(await gate.enter(), "fine")
        limits.append(gate.limit)
        await gate.leave(await gate.enter(), "unknown")
        limits.append(gate.limit)
        return limits

    first, doubled, halved, grown, same = asyncio.run(scene())
    assert (first, doubled, halved) == (8, 16, 8)
    assert 8.9 < grown < 9.0  # additive: one a round
    assert same == grown


def test_the_gate_never_lets_in_more_than_its_limit_and_loses_no_place() -> None:
    async def scene() -> tuple[int, int]:
        gate, inside, most = Gate(5), 0, 0

        async def visit(i: int) -> None:
            nonlocal inside, most
            entered = await gate.enter()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001 * (i % 3))
            inside -= 1
            await gate.leave(entered, "over" if i == 20 else "fine")

        tasks = [asyncio.ensure_future(visit(i)) for i in range(60)]
        await asyncio.sleep(0.002)
        for task in tasks[50:]:  # cancelled while they wait
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return most, gate.active

    assert asyncio.run(scene()) == (5, 0)


def test_the_pacer_spaces_starts_and_learns_what_work_really_needed() -> None:
    async def scene() -> float:
        pacer = Pacer(60 * 100)  # 100 a second
        started = time.monotonic()
        await pacer.wait(10)  # starts at once, the next 0.1 s later
        pacer.correct(10)  # it needed 20: 0.2 s later
        await pacer.wait(1)
        return time.monotonic() - started

    assert 0.19 <= asyncio.run(scene()) < 1.0


def test_the_budget_counts_what_is_still_in_flight() -> None:
    budget = Budget(1.0, per_million_input=1.0, per_million_output=4.0)
    assert budget.cost(500_000, 100_000) == pytest.approx(0.9)
    budget.reserve(0.6)
    with pytest.raises(EngineError, match="cost limit") as caught:
        budget.reserve(0.5)
    assert caught.value.retryable
    budget.settle(0.6, 0.2)
    budget.reserve(0.8)
    budget.settle(0.8, 0.8)
    assert budget.spent == pytest.approx(1.0)


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after({"retry-after": date}) or 0) <= 30
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "nan"}):
        assert retry_after(nothing) is None
