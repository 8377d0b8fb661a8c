"""One server: requests that are tried again, held back and paid for, behind a synchronous face.

The event loop runs in a thread of its own, so that it also works where one is running already, as
in a notebook. No exception of the client leaves this module: they carry requests with keys in them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from rlaif.engines.base import Usage, tell
from rlaif.engines.pacing import Budget, Gate, Load, Pacer
from rlaif.engines.replies import (
    Body,
    Malformed,
    Trouble,
    answered,
    parse,
    short,
    status_trouble,
    tokens_used,
)
from rlaif.engines.settings import HTTPSettings
from rlaif.errors import ConfigError, EngineError, missing_extra

T = TypeVar("T")
_LONGEST_BACKOFF = 60.0  # seconds
_LONGEST_WAIT = 300.0  # seconds a server may ask us to wait
_TOKENS_A_BYTE = 1 / 3  # until answers tell better; English has about 1/4
_NO_KEY = "none"
_SHORTEST_KEY = 8  # characters
MOST_BYTES = 64 << 20  # of an answer, unpacked: many times what any request can ask for
_MOST_ADDED = 100_000  # tokens that a server may put round a request
_PASSING = ("retry", "overload", "nonsense")
_NONSENSE_TRIES = 3  # a server that contradicts itself does so again, and each answer is paid for


class Server:
    """Asks one server. `ask` returns what `read` makes of the answer, or the trouble it met."""

    def __init__(self, settings: HTTPSettings, usage: Usage) -> None:
        self.url = settings.base_url.rstrip("/")
        self._settings, self._usage = settings, usage
        self._gate = Gate(settings.max_concurrency)
        self._requests = Pacer(settings.requests_per_minute)
        self._tokens = Pacer(settings.tokens_per_minute)
        prices = settings.price_per_million_input, settings.price_per_million_output
        self._budget = Budget(settings.max_cost, *prices)
        self._jitter = random.Random()  # not the global one, which others seed
        self._seen_bytes = self._seen_tokens = 0
        self._warned_of_usage = False
        api_key_env = settings.api_key_env
        self._key_hint = f"the key in {api_key_env}" if api_key_env else "api_key_env (now null)"
        self._client, self._secret = _client(self.url, api_key_env)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="rlaif-http", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop's thread and waits for it; interrupting cancels it."""
        if self._loop.is_closed():
            work.close()
            raise EngineError("this engine is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results in order. The first failure stops the rest and is raised."""
        tasks = [asyncio.ensure_future(w) for w in work]
        done = 0

        def ended(_: object) -> None:
            nonlocal done
            done += 1
            tell(done / len(tasks))

        for task in tasks:
            task.add_done_callback(ended)
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def refuse_beyond(self, bodies: Iterable[Body], *, output: int) -> None:
        """Stops before a batch that the budget cannot pay: half a batch is paid for nothing."""
        if self._budget.most is not None:
            prices = (self._budget.cost(self._estimate(body), output) for body in bodies)
            self._budget.refuse_beyond(sum(prices))

    async def ask(
        self,
        method: str,
        path: str,
        body: Body | None,
        read: Callable[[Body], T],
        *,
        output: int = 0,
    ) -> T | Trouble:
        """One request, tried again while that may help. `output`: most tokens it may generate.

        A path with a leading slash is taken from the server's root. EngineError when the server
        keeps failing. Answers that contradict themselves are given back as trouble after three.
        """
        nonsense = 0
        for tries in range(1, self._settings.retries + 2):
            outcome = await self._attempt(method, path, body, read, output)
            if not isinstance(outcome, Trouble) or outcome.kind not in _PASSING:
                return outcome
            trouble = outcome
            nonsense += outcome.kind == "nonsense"
            if nonsense >= min(_NONSENSE_TRIES, self._settings.retries + 1):
                return outcome
            wait = trouble.wait or 0.0
            if tries > self._settings.retries or wait > _LONGEST_WAIT:
                break
            # Full jitter, so that many requests do not come back at once.
            backoff = (
                min(_LONGEST_BACKOFF, self._settings.backoff * 2 ** (tries - 1))
                * self._jitter.random()
            )
            await asyncio.sleep(max(backoff, wait))
        asked = f" (it asks to wait {wait:.0f} s)" if wait else ""
        raise EngineError(
            f"{self.url}: gave up after {tries} tries; the last time, {trouble.message}{asked}. "
            "What was finished before is kept: run the same command again to go on from there",
            retryable=True,
        )

    async def _attempt(
        self, method: str, path: str, body: Body | None, read: Callable[[Body], T], output: int
    ) -> T | Trouble:
        """One try, within the limits."""
        is_paid = output > 0
        expected = self._estimate(body) if is_paid else 0.0
        price = self._budget.cost(expected, output)
        load: Load = "unknown"
        closed, spent = 0.0, 0.0
        self._budget.reserve(price)
        try:
            entered = await self._gate.enter()
            try:
                await self._requests.wait(1)
                await self._tokens.wait(expected + output)
                answer = await self._send(method, path, body)
                if isinstance(answer, Trouble):
                    load = "over" if answer.kind == "overload" else "unknown"
                    closed = min(answer.wait or 0.0, _LONGEST_WAIT)
                    return answer
                load = "fine"
                if is_paid:
                    spent = self._count(answer, body, expected, output)
                return _read(read, answer)
            finally:
                await self._gate.leave(entered, load, closed)
        finally:
            self._budget.settle(price, spent)

    async def _send(self, method: str, path: str, body: Body | None) -> Body | Trouble:
        """The answer's JSON object. Everything the server says is cleared of the key first."""
        import openai

        url = self.url.removesuffix("/v1") + path if path.startswith("/") else path
        try:
            async with asyncio.timeout(self._settings.timeout):
                if method == "GET":
                    text = await self._client.get(url, cast_to=str)
                else:
                    text = await self._client.post(url, cast_to=str, body=body)
            answer: Body = self._secret.clean_json(parse(self._secret.clean(text)))
            return answer
        except (TimeoutError, openai.APITimeoutError):
            return Trouble("overload", f"there was no answer within {self._settings.timeout:g} s")
        except openai.APIStatusError as error:
            trouble = status_trouble(
                error.status_code, self._secret.clean(error.response.text), error.response.headers
            )
            if error.status_code in (401, 403) and trouble.kind == "fatal":
                return Trouble("fatal", f"{trouble.message}. Check {self._key_hint}")
            return trouble
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            why = self._secret.clean(str(cause))
            if isinstance(cause, Refused):  # as older clients hand it on
                return Trouble("fatal", why)
            return Trouble("retry", f"the connection failed: {type(cause).__name__} {why}".strip())
        except Refused as error:
            return Trouble("fatal", self._secret.clean(str(error)))
        except Malformed as error:
            return Trouble("retry", str(error))
        except RecursionError:
            return Trouble("retry", "its answer is nested deeper than any that is asked for")

    def _estimate(self, body: Body | None) -> float:
        """Prompt tokens of a request, by the tokens a byte seen so far."""
        size = _size(body)
        rate = self._seen_tokens / self._seen_bytes if self._seen_bytes else _TOKENS_A_BYTE
        return size * rate

    def _possible(
        self, used: tuple[int, int, int] | None, answer: Body, body: Body | None
    ) -> tuple[int, int, int] | None:
        """The usage, if a request of this size can have it; else None, and a warning."""
        sent = len(json.dumps(body, ensure_ascii=False)) if body else 0
        if used is not None and 0 < used[0] <= 4 * sent + _MOST_ADDED:  # 0 would cost nothing
            _, cached, generated = used
            if cached <= used[0] and (generated or not answered(answer)):
                return used
        if not self._warned_of_usage:
            self._warned_of_usage = True
            said = answer.get("usage")
            what = "no usage" if said is None else f"a usage that cannot be: {short(said)}"
            warnings.warn(
                f"{self.url}: its answers tell {what}. The cost of such "
                "answers is estimated from the requests' length, and their tokens are not counted",
                stacklevel=2,
            )
        return None

    def _count(self, answer: Body, body: Body | None, expected: float, output: int) -> float:
        """Adds an answer to the usage, whatever else is wrong with it: it is paid for."""
        used = self._possible(tokens_used(answer), answer, body)
        if used is None:  # a server that does not count: its price is estimated, its tokens are not
            cost = self._budget.cost(expected, output)
        else:
            prompt, cached, generated = used
            self._usage.submitted_tokens += prompt
            self._usage.computed_tokens += max(0, prompt - cached) + generated
            self._usage.generated_tokens += generated
            self._seen_bytes += _size(body)
            self._seen_tokens += prompt
            self._tokens.correct(prompt + generated - expected - output)
            cost = self._budget.cost(prompt, generated)
        self._usage.cost += cost
        return cost


def _read(read: Callable[[Body], T], answer: Body) -> T | Trouble:
    try:
        return read(answer)
    except Malformed as error:
        return Trouble(error.kind, str(error))


def _size(body: Body | None) -> int:
    """Bytes of the text of a request."""
    parts = {k: body[k] for k in ("messages", "state", "input") if k in body} if body else {}
    return len(json.dumps(parts, ensure_ascii=False).encode()) if parts else 0


def _client(base_url: str, api_key_env: str | None) -> tuple[Any, Secret]:
    """The client, and what clears text of its key. The key stays in these two."""
    try:
        import openai
    except ImportError as error:
        raise missing_extra("openai", "http", "engine: http") from error
    key = (os.environ.get(api_key_env, "") if api_key_env else "").strip()
    if not key and api_key_env and "api.openai.com" in base_url:
        raise ConfigError(f"{base_url} needs a key: set the environment variable {api_key_env}")
    if not (key.isascii() and key.isprintable()):  # no header could carry it
        raise ConfigError(f"the key in {api_key_env} has characters that no key has")
    # Retries are ours, so that the gate sees every overload.
    client = openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key or _NO_KEY,
        max_retries=0,
        timeout=None,
        http_client=openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [_stay_here, _read_capped]}
        ),
    )
    return client, Secret(key)


class Refused(Exception):
    """What a server answers that is not taken, whatever else it would say."""


async def _stay_here(response: Any) -> None:
    """Refuses to be sent to another host, which would be told the prompts."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    there = here.join(response.headers["location"])
    upgraded = (here.scheme, there.scheme) == ("http", "https")
    if there.host != here.host or not (
        upgraded or (here.scheme, here.port) == (there.scheme, there.port)
    ):
        raise Refused(
            f"it sends requests on to another host, {there.scheme}://{there.netloc.decode()}, and "
            "that is refused: if the server is there, name it in base_url"
        )


async def _read_capped(response: Any) -> None:
    """Reads an answer, unpacked, as long as it keeps to a size that answers have."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise Refused(f"its answer is longer than {MOST_BYTES >> 20} MiB, which is refused")
        parts.append(part)
    response._content = b"".join(parts)  # what `aread` would keep; it has no limit


class Secret:
    """Clears text and JSON of a key, as it is or in the escapes that servers echo it in."""

    def __init__(self, key: str) -> None:
        # Shorter ones are words that stand for no key ("EMPTY"), which answers may well use.
        self._pattern = (
            re.compile("".join(map(_written, key))) if len(key) >= _SHORTEST_KEY else None
        )

    def clean(self, text: str) -> str:
        return self._pattern.sub("***", text) if self._pattern else text

    def clean_json(self, value: Any) -> Any:
        """A JSON value, whose strings are cleaned after their escapes were read."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list):
            return [self.clean_json(item) for item in value]
        if isinstance(value, dict):
            return {self.clean(key): self.clean_json(item) for key, item in value.items()}
        return value


def _written(character: str) -> str:
    """A pattern of the ways to write an ASCII character: in URLs, JSON, HTML and Python's repr."""
    code = ord(character)
    ways = (
        f"(?i:%(?:25)*{code:02x})",
        rf"(?i:\\+u00{code:02x})",
        rf"(?i:\\+x{code:02x})",
        f"(?i:&#0*{code};)",
        f"(?i:&#x0*{code:x};)",
        rf"\\+{re.escape(character)}",
        re.escape(character),
    )
    return f"(?:{'|'.join(ways)})"
