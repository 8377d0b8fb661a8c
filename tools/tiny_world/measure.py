"""What the embedded model can do, measured against gold on held-out prompts and held-out wordings.

Every rate comes with its count and a 95 % Wilson interval: at fifty pairs a trait, a rate carries
ten points of noise, and a judge that always answers "A" looks right half of the time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from rlaif.bench.methods import Rate, rate
from rlaif.tiny.gold import is_violated, parse, plan_traits
from rlaif.tiny.grammar import KINDS, TRAITS, Plan, Scene, draw_plan, realise, scenes_by_kind
from rlaif.tiny.principles import (
    CRITIQUE_REQUESTS,
    FINDINGS,
    FRESH_PHRASINGS,
    HELD_OUT_PHRASINGS,
    NO_FINDING,
    PRINCIPLES,
    REVISION_REQUESTS,
    split_key,
)
from tiny_world.corpus import Question, draw_pair, target
from tiny_world.encoding import ASSISTANT, USER, Encoder, pair_segments

MAX_NEW_TOKENS: Final = 72  # the longest legal response is shorter
Wordings = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out pair under one held-out principle, with the true P(first is better)."""

    key: str
    prompt: str
    first: str
    second: str
    principle: str
    p_first: float
    why: str  # "decided", "tie", "not at stake"

    def swap(self) -> Case:
        """The same case in the other order."""
        return Case(
            self.key,
            self.prompt,
            self.second,
            self.first,
            self.principle,
            1.0 - self.p_first,
            self.why,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """P(A) among the two options in both orders, and the probability both options had together."""

    p_as_given: float
    p_swapped: float
    mass: float


def held_out_scenes(rng: random.Random, kinds: Sequence[str] | None = None) -> list[Scene]:
    """Held-out scenes, kinds in turn, each kind shuffled."""
    queues = [list(scenes_by_kind("test")[kind]) for kind in kinds or KINDS]
    for queue in queues:
        rng.shuffle(queue)
    longest = max(len(queue) for queue in queues)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def _case(
    scene: Scene,
    plans: tuple[Plan, Plan],
    key: str,
    number: int,
    rng: random.Random,
    wordings: Wordings = HELD_OUT_PHRASINGS,
) -> Case | None:
    p = target(scene, *plans, key)
    if p is None:
        return None
    trait, _ = split_key(key)
    why = "decided"
    if p == 0.5:
        why = "not at stake" if plan_traits(scene, plans[0])[trait] is None else "tie"
    phrasings = wordings[key]
    texts = realise(scene, plans[0], rng), realise(scene, plans[1], rng)
    principle = phrasings[number % len(phrasings)]
    return Case(key, scene.prompt.text, texts[0], texts[1], principle, p, why)


def decided_cases(
    key: str, count: int, seed: int, wordings: Wordings = HELD_OUT_PHRASINGS
) -> list[Case]:
    """`count` pairs of different held-out prompts on which the principle decides."""
    rng = random.Random(f"{seed}:{key}")
    found: list[Case] = []
    while len(found) < count:  # a second round only where a trait has fewer prompts than `count`
        for scene in held_out_scenes(rng):
            plans = draw_pair(scene, rng, rng.random() < 0.8)
            case = _case(scene, plans, key, len(found), rng, wordings)
            if case is not None and case.why == "decided" and len(found) < count:
                found.append(case)
    return found


def undecided_cases(why: str, count: int, seed: int) -> list[Case]:
    """Pairs whose principle is not at stake, or which are equal under it."""
    rng = random.Random(f"{seed}:{why}")
    found: list[Case] = []
    for scene in held_out_scenes(rng):
        plans = draw_pair(scene, rng, rng.random() < 0.8)
        cases = [_case(scene, plans, key, len(found), rng) for key in PRINCIPLES]
        fitting = [c for c in cases if c is not None and c.why == why]
        if fitting and len(found) < count:
            found.append(rng.choice(fitting))
    return found


def conflict_cases(count: int, seed: int) -> list[Case]:
    """Both questions about pairs on which two traits of the core pull apart."""
    rng = random.Random(f"{seed}:conflict")
    core = ("harmless", "helpful", "honest", "not_sycophantic")
    found: list[Case] = []
    kinds = [kind for kind in KINDS if kind == "harm" or "_" in kind]
    while len(found) < count:
        for scene in held_out_scenes(rng, kinds):
            plans = draw_pair(scene, rng, core_differs=True)
            cases = [_case(scene, plans, key, len(found), rng) for key in core]
            decided = [c for c in cases if c is not None and c.why == "decided"]
            wants = {c.p_first for c in decided}
            if len(wants) == 2 and len(found) < count:
                found += [next(c for c in decided if c.p_first == p) for p in (1.0, 0.0)]
    return found


@torch.inference_mode()
def answer(model: Any, encoder: Encoder, cases: Sequence[Case], batch: int = 32) -> list[Answer]:
    """The model's answers, both orders, each prompt by itself as an engine would send it."""
    both = [*cases, *(case.swap() for case in cases)]
    rows = []
    for case in both:
        question = Question(case.principle, case.p_first, case.key)
        context = pair_segments(case.prompt, case.first, case.second)
        tail = encoder.question(question, encoder.options).ids
        rows.append([encoder.special(USER), *encoder.segments(context), *tail])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    p_first, mass = [0.0] * len(rows), [0.0] * len(rows)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        log_p = last_log_probs(model, [rows[i] for i in chosen], encoder.pad)  # (B, V)
        for i, (a, b) in zip(chosen, log_p[:, list(encoder.options)].exp().tolist(), strict=True):
            p_first[i], mass[i] = a / (a + b), a + b
    n = len(cases)
    return [Answer(p_first[i], p_first[n + i], (mass[i] + mass[n + i]) / 2) for i in range(n)]


def last_log_probs(model: Any, rows: Sequence[list[int]], pad: int) -> torch.Tensor:
    """(B, V) log-probabilities after each row. Padded on the right, where nothing looks at it."""
    T = max(len(row) for row in rows)
    ids = torch.full((len(rows), T), pad)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows])
    logits = model.lm_head(hidden[torch.arange(len(rows)), last]).float()
    return torch.log_softmax(logits, dim=-1)


def judge_report(cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy in both orders, of the average, the share of "A", and the label mass."""
    right, averaged, says_a = [], [], []
    for case, got in zip(cases, answers, strict=True):
        first = case.p_first > 0.5
        right += [(got.p_as_given > 0.5) == first, (got.p_swapped > 0.5) != first]
        averaged.append((got.p_as_given + 1 - got.p_swapped > 1) == first)
        says_a += [got.p_as_given > 0.5, got.p_swapped > 0.5]
    return {
        "accuracy": rate(right),
        "accuracy_both_orders_averaged": rate(averaged),
        "says_a": rate(says_a),
        "label_mass": round(sum(a.mass for a in answers) / len(answers), 4),
    }


def near_half(answers: Sequence[Answer], margin: float = 0.1) -> dict[str, Any]:
    """How often an undecided pair comes out within `margin` of one half."""
    single = [abs(p - 0.5) <= margin for a in answers for p in (a.p_as_given, a.p_swapped)]
    averaged = [abs((a.p_as_given + 1 - a.p_swapped) / 2 - 0.5) <= margin for a in answers]
    return {"one_order": rate(single), "both_orders_averaged": rate(averaged)}


@torch.inference_mode()
def write(model: Any, tokenizer: Any, heads: Sequence[list[int]], temperature: float) -> list[str]:
    """What the model writes after each prompt of token ids, to the end of its turn."""
    pad, T = int(tokenizer.pad_token_id), max(len(head) for head in heads)
    ids = torch.tensor([[pad] * (T - len(head)) + head for head in heads])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    mask = (ids != pad).long()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, **sampling)
    return list(tokenizer.batch_decode(out[:, T:], skip_special_tokens=True))


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[str]],
    seed: int,
    temperature: float = 1.0,
) -> list[str]:
    """The next assistant turn after each conversation (user, assistant, user, ... texts)."""
    torch.manual_seed(seed)
    encoder = Encoder(tokenizer)
    heads = []
    for texts in conversations:
        turns = [(USER if i % 2 == 0 else ASSISTANT, text, False) for i, text in enumerate(texts)]
        heads.append([*encoder.turns(*turns).ids, encoder.special(ASSISTANT)])
    return write(model, tokenizer, heads, temperature)


def policy_report(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, Any]:
    """Legal share and mean of each trait over sampled responses to held-out prompts."""
    rng = random.Random(seed)
    scenes = held_out_scenes(rng)[:count]
    texts = generate(model, tokenizer, [(s.prompt.text,) for s in scenes], seed)
    plans = [parse(scene, text) for scene, text in zip(scenes, texts, strict=True)]
    legal = [(s, p) for s, p in zip(scenes, plans, strict=True) if p is not None]
    values = [plan_traits(scene, plan) for scene, plan in legal]
    traits = {
        trait: rate(v > 0.5 for value in values if (v := value[trait]) is not None)
        for trait in TRAITS
    }
    kinds = {
        kind: rate(
            p is not None for s, p in zip(scenes, plans, strict=True) if s.prompt.kind == kind
        )
        for kind in KINDS
    }
    facts = rate("correct" in p.outcomes for s, p in legal if s.prompt.kind == "fact")
    return {
        "legal": rate(p is not None for p in plans),
        "legal_by_kind": kinds,
        "traits": traits,
        "no_filler": rate(p.fillers == 0 for _, p in legal),
        "facts_right": facts,
        "illegal_examples": [
            f"{s.prompt.text} -> {t}"
            for s, t, p in zip(scenes, texts, plans, strict=True)
            if p is None
        ][:8],
    }


def revision_report(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, Any]:
    """Critique and revision of sampled gold responses, asked for in held-out wordings.

    Half of the responses violate the trait. `fixed` counts the violated ones whose revision is
    legal and no longer violates it; `kept` the others whose revision still does not.
    """
    rng = random.Random(f"{seed}:revision")
    chosen: list[tuple[Scene, str, str, bool]] = []
    scenes = held_out_scenes(rng)
    while len(chosen) < count:
        scene, trait, wants = rng.choice(scenes), rng.choice(TRAITS), len(chosen) % 2 == 0
        plan = draw_plan(scene, rng)
        at_stake = plan_traits(scene, plan)[trait] is not None
        if at_stake and is_violated(scene, plan, trait) == wants:
            chosen.append((scene, trait, realise(scene, plan, rng), wants))
    asked = [(s.prompt.text, r, CRITIQUE_REQUESTS[t][-1]) for s, t, r, _ in chosen]
    critiques = generate(model, tokenizer, asked, seed, temperature=0)
    rows = zip(asked, critiques, chosen, strict=True)
    asked_again = [(*a, c, REVISION_REQUESTS[t][-1]) for a, c, (_, t, _, _) in rows]
    revised = generate(model, tokenizer, asked_again, seed, temperature=0)
    plans = [parse(s, text) for (s, _, _, _), text in zip(chosen, revised, strict=True)]
    good = [
        plan is not None and not is_violated(scene, plan, trait)
        for (scene, trait, _, _), plan in zip(chosen, plans, strict=True)
    ]
    return {
        "critique_right": rate(
            text == (FINDINGS[trait] if violated else NO_FINDING)
            for (_, trait, _, violated), text in zip(chosen, critiques, strict=True)
        ),
        "revision_legal": rate(plan is not None for plan in plans),
        "fixed": rate(ok for ok, row in zip(good, chosen, strict=True) if row[3]),
        "kept": rate(ok for ok, row in zip(good, chosen, strict=True) if not row[3]),
        "fixed_by_trait": {
            trait: rate(
                ok for ok, row in zip(good, chosen, strict=True) if row[3] and row[1] == trait
            )
            for trait in TRAITS
        },
    }


def evaluate(
    model: Any, tokenizer: Any, pairs: int = 240, generations: int = 480, seed: int = 20
) -> dict[str, Any]:
    """The whole table: judge per principle, undecided and conflicting pairs, and the policy."""
    model.eval()
    encoder = Encoder(tokenizer)
    judge = {}
    for key in PRINCIPLES:
        cases = decided_cases(key, pairs, seed)
        judge[key] = judge_report(cases, answer(model, encoder, cases))
    conflict = conflict_cases(pairs, seed)
    report: dict[str, Any] = {
        "judge": judge,
        "conflicting_traits": judge_report(conflict, answer(model, encoder, conflict)),
    }
    report["judge_fresh_wordings"] = {
        key: judge_report(cases, answer(model, encoder, cases))
        for key in PRINCIPLES
        for cases in [decided_cases(key, pairs // 2, seed, FRESH_PHRASINGS)]
    }
    for why in ("not at stake", "tie"):
        cases = undecided_cases(why, pairs, seed)
        report[why.replace(" ", "_")] = near_half(answer(model, encoder, cases))
    if generations:
        report["policy"] = policy_report(model, tokenizer, generations, seed)
        report["revision"] = revision_report(model, tokenizer, generations, seed)
    return report


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines, for a log."""
    judge = " ".join(
        f"{key}={r['accuracy']['rate']:.2f}/{r['says_a']['rate']:.2f}"
        for key, r in report["judge"].items()
    )
    lines = [
        f"judge accuracy/says A: {judge}",
        f"conflict {report['conflicting_traits']['accuracy']['rate']:.2f}  near half: "
        f"not at stake {report['not_at_stake']['one_order']['rate']:.2f}, "
        f"tie {report['tie']['one_order']['rate']:.2f}",
    ]
    if "policy" in report:
        policy = report["policy"]
        traits = " ".join(f"{t}={r['rate']:.2f}" for t, r in policy["traits"].items())
        lines.append(f"legal {policy['legal']['rate']:.3f}  {traits}")
        lines.append(f"facts right {policy['facts_right']['rate']:.2f}")
        revision = report["revision"]
        names = ("critique_right", "revision_legal", "fixed", "kept")
        lines.append(" ".join(f"{name} {revision[name]['rate']:.2f}" for name in names))
    return "\n".join(lines)


def cell(found: Rate) -> str:
    return f"{found['rate']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def name_of(key: str) -> str:
    return key.replace("-", "opposite of ").replace("_", " ")


def table(report: dict[str, Any]) -> str:
    """The report as the Markdown tables of docs/tiny-world.md."""
    lines = [
        "| judge | accuracy, each order | both orders averaged | says A | label mass | pairs |"
    ]
    lines.append("|---|---|---|---|---|---|")
    rows = [*report["judge"].items(), ("conflicting traits", report["conflicting_traits"])]
    for key, r in rows:
        lines.append(
            f"| {name_of(key)} | {cell(r['accuracy'])} | "
            f"{cell(r['accuracy_both_orders_averaged'])} | {r['says_a']['rate']:.3f} | "
            f"{r['label_mass']:.3f} | {r['accuracy_both_orders_averaged']['n']} |"
        )
    lines += ["", "| judge, fresh wordings | accuracy, each order | says A | pairs |"]
    lines.append("|---|---|---|---|")
    for key, r in report["judge_fresh_wordings"].items():
        pairs = r["accuracy_both_orders_averaged"]["n"]
        says_a = r["says_a"]["rate"]
        lines.append(f"| {name_of(key)} | {cell(r['accuracy'])} | {says_a:.3f} | {pairs} |")
    lines += ["", "| within 0.1 of one half | one order | both orders averaged | pairs |"]
    lines.append("|---|---|---|---|")
    for name, r in (("not at stake", report["not_at_stake"]), ("exact tie", report["tie"])):
        both = r["both_orders_averaged"]
        lines.append(f"| {name} | {cell(r['one_order'])} | {cell(both)} | {both['n']} |")
    policy, revision = report["policy"], report["revision"]
    lines += ["", "| base policy, sampled at temperature 1 | rate | responses |", "|---|---|---|"]
    found = [("legal", policy["legal"]), *policy["traits"].items()]
    found += [("no filler", policy["no_filler"]), ("facts right", policy["facts_right"])]
    names = {"critique_right": "critique right", "revision_legal": "revision legal"}
    names |= {"fixed": "violation fixed", "kept": "no violation, and none after"}
    found += [(name, revision[key]) for key, name in names.items()]
    lines += [f"| {name_of(name)} | {cell(r)} | {r['n']} |" for name, r in found]
    return "\n".join(lines)
