"""How many requests a server gets, how fast, and for how much. Nothing here knows HTTP.

All of it runs in one event loop, so it needs no locks beyond the gate's queue.
"""

from __future__ import annotations

import asyncio
import math
from typing import Literal

from rlaif.errors import ConfigError, EngineError, require_finite

Load = Literal["fine", "over", "unknown"]  # what an answer says about the server's load

_FIRST_LIMIT = 8.0


class Gate:
    """Lets in as many requests at once as the server bears, at most `most`.

    Additive increase, multiplicative decrease, as TCP (Chiu & Jain 1989): each success raises the
    limit, by one a round once an overload has been seen; an overload halves it, once for all the
    requests that were in flight together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(_FIRST_LIMIT, float(most))
        self.active = 0
        self._overloaded_at = -math.inf
        self._open_again = -math.inf
        self._queue = asyncio.Condition()

    async def enter(self) -> float:
        """Waits for a place; returns the time of entry, which `leave` takes."""
        loop = asyncio.get_running_loop()
        async with self._queue:
            await self._queue.wait_for(lambda: self.active < int(self.limit))
            self.active += 1
        try:
            while (wait := self._open_again - loop.time()) > 0:
                await asyncio.sleep(wait)
        except BaseException:
            await self._give_place()
            raise
        return loop.time()

    async def leave(self, entered: float, load: Load, closed_for: float = 0.0) -> None:
        """Gives the place back. `closed_for`: seconds for which the server wants no requests."""
        now = asyncio.get_running_loop().time()
        self._open_again = max(self._open_again, now + closed_for)
        if load == "over":
            if entered >= self._overloaded_at:
                self.limit = max(1.0, self.limit / 2)
                self._overloaded_at = now
        elif load == "fine":
            slow = self._overloaded_at > -math.inf
            self.limit = min(self.most, self.limit + (1 / self.limit if slow else 1))
        await self._give_place()

    async def _give_place(self) -> None:
        async with self._queue:
            self.active -= 1
            self._queue.notify(max(0, int(self.limit) - self.active))


class Pacer:
    """Spaces out work so that no minute holds more than `per_minute` units; None does not wait."""

    def __init__(self, per_minute: float | None) -> None:
        require_finite(**{"a limit a minute": per_minute})
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = -math.inf

    async def wait(self, units: float) -> None:
        if not self._interval:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._next)
        self._next = start + units * self._interval
        if start > now:
            await asyncio.sleep(start - now)

    def correct(self, units: float) -> None:
        """Adds what a piece of work turned out to need beyond its estimate (may be negative)."""
        self._next += units * self._interval


class Budget:
    """Money: what is spent, what requests in flight may still cost, and the limit on both."""

    def __init__(
        self, most: float | None, per_million_input: float, per_million_output: float
    ) -> None:
        require_finite(
            max_cost=most,
            price_per_million_input=per_million_input,
            price_per_million_output=per_million_output,
        )
        if most is not None and not (per_million_input or per_million_output):
            raise ConfigError(
                f"max_cost is {most}, but no price is known: set price_per_million_input and "
                "price_per_million_output"
            )
        self.most = most
        self.spent = 0.0
        self._in_flight = 0.0
        self._input, self._output = per_million_input / 1e6, per_million_output / 1e6

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        return input_tokens * self._input + output_tokens * self._output

    def reserve(self, estimate: float) -> None:
        """Sets money aside for a request; EngineError when the limit could be passed."""
        self.refuse_beyond(estimate)
        self._in_flight += estimate

    def settle(self, estimate: float, spent: float) -> None:
        """Replaces what was set aside by what was spent."""
        self._in_flight -= estimate
        self.spent += spent

    def refuse_beyond(self, estimate: float) -> None:
        """EngineError when this much more could pass the limit."""
        if self.most is None or self.spent + self._in_flight + estimate <= self.most:
            return
        raise EngineError(
            f"cost limit reached: {self.spent:.4f} of max_cost {self.most:.4f} is spent, and the "
            f"next requests may cost {self._in_flight + estimate:.4f} more. What was finished "
            "before is kept: run the same command again, with a higher max_cost if need be, and "
            "it goes on from there",
            retryable=True,
        )
