"""Texts measured by the well-known metrics, those of references by the well-known libraries.

ROUGE by google's rouge-score, stemmed; BLEU, chrF and TER by sacreBLEU, over the whole corpus;
METEOR by NLTK. Diversity, length and repetition need no library and no reference. Intervals are
over prompts (`rlaif.statistics`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif.errors import missing_extra
from rlaif.files.readers.texts import Text
from rlaif.statistics.intervals import Floats, bootstrap, bootstrap_of, share

SEGMENT = 100  # tokens of a segment of MSTTR
REPEATED = 4  # tokens of an n-gram whose repetition counts
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_RESAMPLES = 500  # of corpus metrics


def words_of(text: str) -> list[str]:
    """Words and marks, lower case: NLTK's word-punct tokens, which need no data."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def measure(texts: Sequence[Text], *, seed: int = 0) -> dict[str, Any]:
    """All metrics of some texts. `n` is their number, `empty` how many are blank.

    `of_references` holds those that need references, over the rows that have some (its own `n`);
    None where none has. ConfigError where the libraries for them are missing.
    """
    names = [t.cluster for t in texts]
    tokens = [words_of(t.text) for t in texts]
    with_references = [t for t in texts if t.references]
    return {
        "n": len(texts),
        "empty": sum(not t.text.strip() for t in texts),
        "words": bootstrap([float(len(x)) for x in tokens], names, seed=seed).as_dict(),
        "characters": bootstrap([float(len(t.text)) for t in texts], names, seed=seed).as_dict(),
        "repetition": _repetitions(tokens, names),
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
        "msttr": msttr([x for row in tokens for x in row]),
        "of_references": of_references(with_references, seed=seed) if with_references else None,
    }


# --------------------------------------------------------------------------- without references


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams of the texts together.

    None without any. It falls with the number of texts: compare equally many. It has no interval,
    since a resample repeats texts and so is less diverse than any sample.
    """
    every = Counter(gram for tokens in texts for gram in ngrams(tokens, n))
    return len(every) / every.total() if every else None


def msttr(tokens: Sequence[str], segment: int = SEGMENT) -> float | None:
    """Mean segmental type–token ratio (Johnson 1944): the mean share of different tokens in
    consecutive segments of the texts joined together; None where there is no whole segment."""
    segments = [tokens[i : i + segment] for i in range(0, len(tokens) - segment + 1, segment)]
    return float(np.mean([len(set(s)) / segment for s in segments])) if segments else None


def repetition(tokens: Sequence[str], n: int = REPEATED) -> float | None:
    """Share of a text's n-grams that it said before (Welleck et al. 2020); None in shorter ones."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def _repetitions(texts: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, float] | None:
    known = [
        (r, name) for x, name in zip(texts, names, strict=True) if (r := repetition(x)) is not None
    ]
    return share([r for r, _ in known], [name for _, name in known]).as_dict() if known else None


# ------------------------------------------------------------------------------- with references


def of_references(texts: Sequence[Text], *, seed: int = 0) -> dict[str, Any]:
    """ROUGE F1 and METEOR as means of the texts' own, of the best reference each; BLEU, chrF and
    TER (0 to 100) of the corpus. `meteor_synonyms`: whether WordNet is on this machine; without it
    METEOR matches words and stems alone, and is lower than published ones."""
    names = [t.cluster for t in texts]
    found: dict[str, Any] = {"n": len(texts)}
    for metric, values in rouge(texts).items():
        found[metric] = share(values, names).as_dict()
    for metric, (stats, score) in corpus_metrics(texts).items():
        found[metric] = _of_corpus(stats, score, names, seed)
    values, synonyms = meteor(texts)
    found["meteor"] = share(np.clip(values, 0, 1), names).as_dict()
    found["meteor_synonyms"] = synonyms
    return found


def rouge(texts: Sequence[Text]) -> dict[str, list[float]]:
    """ROUGE-1, 2, L and Lsum (of the text's lines) of each text, stemmed, as F1."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-score") from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    rows = [scorer.score_multi(list(t.references), t.text) for t in texts]
    return {metric: [float(row[metric].fmeasure) for row in rows] for metric in ROUGE}


def corpus_metrics(texts: Sequence[Text]) -> dict[str, tuple[Floats, Any]]:
    """BLEU, chrF and TER: the statistics of each text (N, K), and what makes a score of their
    sums. sacreBLEU's own defaults: BLEU with its tokenizer 13a, chrF2, TER."""
    try:
        from sacrebleu.metrics import BLEU, CHRF, TER
    except ImportError as error:
        raise _missing("sacrebleu") from error
    most = max(len(t.references) for t in texts)
    streams = [
        [t.references[i] if i < len(t.references) else None for t in texts] for i in range(most)
    ]
    found = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        stats = metric._extract_corpus_statistics([t.text for t in texts], streams)
        found[name] = (np.asarray(stats, np.float64), metric)
    return found


def _of_corpus(stats: Floats, metric: Any, names: Sequence[str], seed: int) -> dict[str, float]:
    whole = bool((stats == stats.round()).all())

    def statistic(weights: Floats) -> float:
        sums = weights @ stats
        made = metric._compute_score_from_stats([int(x) for x in sums] if whole else sums.tolist())
        return float(made.score)

    found = bootstrap_of(statistic, len(stats), names, resamples=_RESAMPLES, seed=seed)
    return found.as_dict()


class _NoSynonyms:
    """Stands for WordNet where its data is not on this machine: no word has another."""

    def synsets(self, _: str) -> list[Any]:
        return []


def meteor(texts: Sequence[Text]) -> tuple[list[float], bool]:
    """METEOR of each text (Lavie & Agarwal 2007), and whether synonyms could count."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise _missing("nltk") from error
    known: Any = wordnet
    try:
        wordnet.synsets("word")
        synonyms = True
    except LookupError:
        known, synonyms = _NoSynonyms(), False
    values = [
        float(meteor_score([words_of(r) for r in t.references], words_of(t.text), wordnet=known))
        for t in texts
    ]
    return values, synonyms


def _missing(package: str) -> Exception:
    return missing_extra(package, "text", "measuring texts against references")


# ------------------------------------------------------------------------------------ perplexity


def perplexity(
    logprobs: Sequence[tuple[float, int] | None], names: Sequence[str], *, seed: int = 0
) -> dict[str, Any] | None:
    """exp(−Σ log P / Σ tokens) of texts, from each one's log-probability in nats and tokens; None
    of a text that has none, and of all where no text has any."""
    known = [(x, name) for x, name in zip(logprobs, names, strict=True) if x is not None]
    if not known:
        return None
    table = np.array([x for x, _ in known], np.float64)  # (N, 2)

    def statistic(weights: Floats) -> float:
        logs, tokens = weights @ table
        return math.exp(-logs / tokens) if tokens else math.nan

    found = bootstrap_of(statistic, len(known), [name for _, name in known], seed=seed)
    return {**found.as_dict(), "left_out": len(logprobs) - len(known)}
