"""A judge of your own: prefers the response with fewer words.

rlaif label --pairs pairs.jsonl --method extending_judge:Shorter --out runs/shorter
"""

from rlaif import Ask, Verdict


class Shorter:
    name = "shorter"
    together = False  # it needs no other pairs of a prompt in the same call

    def key(self, ask: Ask) -> str:
        return "/".join([self.name, ask.pair.id, ask.order, ask.principle.id])

    def judge(self, asks: list[Ask]) -> list[Verdict]:
        return [self.verdict(ask) for ask in asks]

    def verdict(self, ask: Ask) -> Verdict:
        first, second = (len(text.split()) + 1 for text in (ask.pair.first, ask.pair.second))
        p = second / (first + second)  # P(the pair's first response is better)
        return Verdict(self.key(ask), ask.pair.id, ask.principle.id, ask.order, self.name, p)
