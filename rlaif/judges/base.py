"""What a judge is: it answers asks, an ask being one pair shown in one order under one principle.

Showing both orders is done here, once, for every judge: `expand` writes the asks, and a verdict
always speaks of the pair's own first completion, whichever was shown first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rlaif.constitution import Principle
from rlaif.records import ORDERS, Order, Pair, Reason, Verdict, content_id


@dataclass(frozen=True, slots=True)
class Ask:
    """One judgement to be made. The completions appear to the judge as `shown`."""

    pair: Pair
    principle: Principle
    order: Order

    @property
    def shown(self) -> tuple[str, str]:
        """The two completions in the order in which the judge reads them."""
        first, second = self.pair.first, self.pair.second
        return (first, second) if self.order == "first_second" else (second, first)

    def unjudgeable(self) -> Reason | None:
        """Why no judge could answer this, if so."""
        if not self.pair.first.strip() or not self.pair.second.strip():
            return "empty_response"
        if not any(m.content.strip() for m in self.pair.prompt.messages):
            return "empty_prompt"
        return None


def verdict_key(judge: str, pair_id: str, order: Order, principle: str, compare: str) -> str:
    """The resume key of a verdict. `judge` is the fingerprint of all that its verdicts share."""
    return content_id(judge, pair_id, order, (principle, compare))


@runtime_checkable
class Judge(Protocol):
    """Anything that answers asks, in their order, one verdict each."""

    name: str

    def key(self, ask: Ask) -> str:
        """The resume key: equal keys mean the verdict would be the same."""
        ...

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        """One verdict an ask; a judge that cannot tell abstains with a reason."""
        ...


def expand(
    pairs: Iterable[Pair], principles: Sequence[Principle], orders: Sequence[Order] = ORDERS
) -> list[Ask]:
    """Every pair in every order under every principle.

    Principles vary fastest: asks that share a rendered pair stand together, which is what an engine
    needs to compute the pair once.
    """
    return [Ask(pair, p, order) for pair in pairs for order in orders for p in principles]
