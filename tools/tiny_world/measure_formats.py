"""What the embedded model can do in the judge formats beside the pair, measured against gold.

The pairs are those of `measure`: held-out prompts, held-out wordings, the principle decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from rlaif.bench.methods import Rate, rate
from rlaif.judges.scores import p_above
from rlaif.tiny.gold import plan_traits
from rlaif.tiny.grammar import realise
from rlaif.tiny.principles import HELD_OUT_PHRASINGS, PRINCIPLES, split_key
from tiny_world.encoding import Encoder, render_asking
from tiny_world.formats import (
    LETTERS,
    METHODS,
    NOT_AT_STAKE,
    SCORES,
    Asking,
    FormatRow,
    Method,
    best_target,
    draw_list,
    gold_rationale,
)
from tiny_world.measure import (
    Case,
    cell,
    decided_cases,
    held_out_scenes,
    last_log_probs,
    name_of,
    undecided_cases,
    write,
)

OPTIONS_OF: Final[dict[Method, int]] = {"cot": 2, "pointwise": SCORES, "rubric": 2}
NEAR: Final = 0.1  # of one half, and of an equal share of a list


@dataclass(frozen=True, slots=True)
class Said:
    """The options' probabilities, normalised, and what they had together before that."""

    p: tuple[float, ...]
    mass: float


@torch.inference_mode()
def ask(
    model: Any, encoder: Encoder, asked: Sequence[tuple[FormatRow, Asking]], batch: int = 32
) -> list[Said]:
    """The model's answers, each prompt by itself as an engine would send it."""
    prompts = [encoder.asking(row, asking) for row, asking in asked]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    found: dict[int, Said] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        log_p = last_log_probs(model, [prompts[i].ids for i in chosen], encoder.pad)  # (B, V)
        for i, row in zip(chosen, log_p, strict=True):
            p = row[list(prompts[i].options)].exp().tolist()
            found[i] = Said(tuple(x / sum(p) for x in p), sum(p))
    return [found[i] for i in range(len(prompts))]


def _asking(method: Method, case: Case, rationale: str | None = None) -> Asking:
    """The question of a case; what its answer should be is not looked at."""
    return Asking(method, case.principle, (0.0,) * OPTIONS_OF[method], case.key, rationale)


def rationales(
    model: Any, tokenizer: Any, encoder: Encoder, cases: Sequence[Case], batch: int = 64
) -> list[str]:
    """What the model writes before its verdicts, greedily."""
    heads = []
    for case in cases:
        row = FormatRow(case.prompt, (case.first, case.second), ())
        heads.append(encoder.prompt(render_asking(row, _asking("cot", case))))
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    found: dict[int, str] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        texts = write(model, tokenizer, [heads[i] for i in chosen], temperature=0)
        found |= {i: text.strip() for i, text in zip(chosen, texts, strict=True)}
    return [found[i] for i in range(len(heads))]


def cot_report(
    model: Any, tokenizer: Any, encoder: Encoder, cases: Sequence[Case]
) -> dict[str, Any]:
    """Both orders: rationales that are true word for word, and verdicts after the model's own."""
    both = [*cases, *(case.swap() for case in cases)]
    texts = rationales(model, tokenizer, encoder, both)
    asked = [
        (FormatRow(c.prompt, (c.first, c.second), ()), _asking("cot", c, text))
        for c, text in zip(both, texts, strict=True)
    ]
    said = ask(model, encoder, asked)
    pairs = list(zip(both, texts, said, strict=True))
    return {
        "rationale_right": rate(
            text == gold_rationale(c.prompt, c.first, c.second, split_key(c.key)[0])
            for c, text, _ in pairs
        ),
        "accuracy": rate((s.p[0] > 0.5) == (c.p_first > 0.5) for c, _, s in pairs),
        "near_half": rate(abs(s.p[0] - 0.5) <= NEAR for s in said),
        "says_not_at_stake": rate(text == NOT_AT_STAKE for text in texts),
        "label_mass": _mass(said),
    }


def _mass(said: Sequence[Said]) -> float:
    return round(sum(s.mass for s in said) / len(said), 4)


def single_report(
    model: Any, encoder: Encoder, method: Method, cases: Sequence[Case]
) -> dict[str, Any]:
    """Each response of a case by itself; which of the two comes out higher."""
    asked = [
        (FormatRow(case.prompt, (text,), ()), _asking(method, case))
        for case in cases
        for text in (case.first, case.second)
    ]
    said = ask(model, encoder, asked)
    p = [p_above(a.p, b.p) for a, b in zip(said[::2], said[1::2], strict=True)]
    return {
        "accuracy": rate(
            (x > 0.5) == (c.p_first > 0.5) and x != 0.5 for x, c in zip(p, cases, strict=True)
        ),
        "near_half": rate(abs(x - 0.5) <= NEAR for x in p),
        "label_mass": _mass(said),
    }


@dataclass(frozen=True, slots=True)
class ListCase:
    """A held-out list under a held-out principle, and the share of each response in the best."""

    row: FormatRow
    asking: Asking


def list_cases(key: str, count: int, size: int, seed: int, decided: bool = True) -> list[ListCase]:
    """`count` lists of `size` responses with one best, or on which the principle says nothing."""
    rng = random.Random(f"{seed}:{key}:{size}:list")
    found: list[ListCase] = []
    while len(found) < count:
        before = len(found)
        for scene in held_out_scenes(rng):
            plans = draw_list(scene, rng, size)
            p = best_target(scene, plans, key)
            wanted = p is not None and (
                max(p) == 1.0
                if decided
                else plan_traits(scene, plans[0])[split_key(key)[0]] is None
            )
            if p is None or not wanted or len(found) >= count:
                continue
            wording = HELD_OUT_PHRASINGS[key][len(found) % len(HELD_OUT_PHRASINGS[key])]
            row = FormatRow(scene.prompt.text, tuple(realise(scene, x, rng) for x in plans), ())
            found.append(ListCase(row, Asking("listwise", wording, p, key)))
        if len(found) == before:
            return found  # a trait that is always at stake
    return found


def list_report(model: Any, encoder: Encoder, cases: Sequence[ListCase]) -> dict[str, Any]:
    """How often the best response gets the most probability, in the order drawn."""
    said = ask(model, encoder, [(case.row, case.asking) for case in cases])
    best = [s.p.index(max(s.p)) for s in said]
    return {
        "accuracy": rate(
            case.asking.p[i] == max(case.asking.p) for case, i in zip(cases, best, strict=True)
        ),
        "near_uniform": rate(max(abs(x - 1 / len(s.p)) for x in s.p) <= NEAR for s in said),
        "says": {letter: rate(i == k for i in best) for k, letter in enumerate(LETTERS)},
        "label_mass": _mass(said),
    }


def evaluate_formats(
    model: Any, tokenizer: Any, pairs: int = 240, seed: int = 20
) -> dict[str, Any]:
    """Every format by principle, the lists by size, and what is said where nothing is at stake."""
    model.eval()
    encoder = Encoder(tokenizer)
    report: dict[str, Any] = {method: {} for method in METHODS}
    for key in PRINCIPLES:
        cases = decided_cases(key, pairs, seed)
        report["cot"][key] = cot_report(model, tokenizer, encoder, cases)
        report["pointwise"][key] = single_report(model, encoder, "pointwise", cases)
        report["rubric"][key] = single_report(model, encoder, "rubric", cases)
        report["listwise"][key] = list_report(model, encoder, list_cases(key, pairs, 4, seed))
    report["listwise_by_size"] = {
        str(size): list_report(
            model,
            encoder,
            [c for key in PRINCIPLES for c in list_cases(key, max(pairs // 8, 1), size, seed)],
        )
        for size in (2, 3, 4)
    }
    apart = undecided_cases("not at stake", pairs, seed)
    core = [key for key in PRINCIPLES if split_key(key)[0] not in ("polite", "concise")]
    lists = [c for key in core for c in list_cases(key, max(pairs // 5, 1), 4, seed, decided=False)]
    report["not_at_stake"] = {
        "cot": cot_report(model, tokenizer, encoder, apart)["near_half"],
        "pointwise": single_report(model, encoder, "pointwise", apart)["near_half"],
        "rubric": single_report(model, encoder, "rubric", apart)["near_half"],
        "listwise": list_report(model, encoder, lists)["near_uniform"],
    }
    return report


def summary_of_formats(report: dict[str, Any]) -> str:
    """Accuracies and label masses in a few lines, for a log."""
    lines = []
    for method in METHODS:
        by = report[method]
        found = " ".join(f"{key}={r['accuracy']['rate']:.2f}" for key, r in by.items())
        mass = min(r["label_mass"] for r in by.values())
        lines.append(
            f"{method}: {found} | least mass {mass:.3f}, not at stake near equal "
            f"{report['not_at_stake'][method]['rate']:.2f}"
        )
    said = " ".join(f"{key}={r['rationale_right']['rate']:.2f}" for key, r in report["cot"].items())
    return "\n".join([*lines, f"rationales right: {said}"])


def table_of_formats(report: dict[str, Any]) -> str:
    """The report as the Markdown tables of docs/tiny-world.md."""
    lines = ["| | rationale right | `cot` | `pointwise` | `rubric` | `listwise`, best of 4 |"]
    lines.append("|---|---|---|---|---|---|")
    for key in PRINCIPLES:
        rates: list[Rate] = [report["cot"][key]["rationale_right"]]
        rates += [report[method][key]["accuracy"] for method in METHODS]
        lines.append(f"| {name_of(key)} | {' | '.join(cell(r) for r in rates)} |")
    apart = [report["not_at_stake"][method] for method in METHODS]
    lines.append(f"| near equal where not at stake | | {' | '.join(cell(r) for r in apart)} |")
    mass = [min(r["label_mass"] for r in report[method].values()) for method in METHODS]
    lines.append(f"| least label mass | | {' | '.join(f'{m:.3f}' for m in mass)} |")
    lines += ["", "| listwise | best found | lists |", "|---|---|---|"]
    for size, r in report["listwise_by_size"].items():
        lines.append(f"| {size} responses | {cell(r['accuracy'])} | {r['accuracy']['n']} |")
    return "\n".join(lines)
