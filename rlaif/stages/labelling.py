"""pairs → verdicts → preferences."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from rlaif.config import Config
from rlaif.constitution import Principle, require
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.jury import JuryAgreement
from rlaif.evaluation.metrics import LabelQuality, Truth
from rlaif.files.readers import read_pairs
from rlaif.files.readers.repeats import Votes
from rlaif.judges.people import with_people
from rlaif.judges.preferences import Orders, aggregate
from rlaif.records import Pair, Preference, Verdict
from rlaif.stages.inputs import truth
from rlaif.stages.jury import Judges, judges_of
from rlaif.stages.lists import require_short_lists
from rlaif.stages.origins import pair_ids, record_inputs, tell_replaced
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.running import Reasoned
from rlaif.stages.temperature import FILE as TEMPERATURE_FILE
from rlaif.stages.temperature import require_temperature
from rlaif.stages.trained_on import tell_learnt
from rlaif.steps.executors import Judged
from rlaif.store import lineage, write_json
from rlaif.store.people import People, of_pair, require_people


def read(run: Run) -> None:
    """pairs from a file into the run, those that cannot be used named and counted."""
    config = run.config.pairs
    if config is None:
        raise ConfigError("no pairs to read: give --pairs FILE, or set `pairs:` in the config")
    rejected, votes = Rejected("read"), Votes()
    lines = 0

    def fresh() -> Iterator[Pair]:
        nonlocal lines
        for pair in read_pairs(config.path, config, on_bad=rejected.add):
            lines += 1
            progress(lines, None)
            if votes.add(pair):
                yield pair
        if not len(votes):
            raise rejected.none_left(config.path, "pair")

    before = pair_ids(run)
    table = run.store.table("pairs")
    with run.reporter.progress("read", None) as progress:
        table.replace(fresh())
    if votes.split:  # known only now, and rare: the labels are put right in a second pass
        table.replace(votes.counted(pair) for batch in table.iter_batches() for pair in batch)
    repeated = lines - len(votes)
    again = f", {repeated:,} repeated ones left out" if repeated else ""
    run.reporter.say(f"{len(votes):,} pairs read{again}")
    tell_replaced(run, before)
    rejected.write(run)
    facts = {"rows": len(votes), "repeated": repeated, "rejected_rows": rejected.counts()}
    run.store.update_manifest("read", {**facts, "source": config.path})
    record_inputs(run, "read")


def known(run: Run, labels: str = "own") -> Iterator[tuple[Pair, float]]:
    """The run's pairs of which it is known how probably the first side is better, with that
    probability: those of its file, if the config names one; or, where `labels` is `people`, what
    people decided in `rlaif view`. The others are counted and told.

    DataError if there is none.
    """
    from rlaif.training.processes import wait

    total = left = 0
    if labels == "people":
        said: Truth = partial(_said_of, require_people(run.store.root, "all"))
    else:
        if run.config.pairs is not None:
            if run.main:
                read(run)
            wait()
        said = truth(run)
    for batch in run.store.table("pairs").iter_batches():
        for pair in batch:
            total += 1
            p = said(pair)
            if p is None:
                left += 1
            else:
                yield pair, p
    if left == total:
        raise DataError(
            f"{run.store.root}: "
            + (f"none of its {total:,} pairs has a label of its own" if total else "no pairs")
            + ". Labels come with pairs that people compared (--pairs FILE: hh, hhh, TRL's, "
            "docs/data.md lists the formats), or from the judge or jury that labelled this run: "
            "--labels preferences"
        )
    if left:
        run.reporter.warn(f"{left:,} pairs without a label, not trained on")


def _said_of(people: Mapping[str, float], pair: Pair) -> float | None:
    return of_pair(people, pair.id)


def label(run: Run) -> None:
    """pairs → verdicts → preferences."""
    clock, store = time.monotonic(), run.store
    total = len(store.table("pairs"))
    if not total:
        raise nothing_to_label(run)
    temperature = require_temperature(run.config)
    principles, judges, said = run.principles(), judges_of(run), decided(run)
    require(principles, "label")
    require_short_lists(run)
    counts = Counts(run, judges)
    with closing(judges.verdicts(run.pairs, total, store.table("verdicts"), "label")) as stream:
        parts, orders, quality = counts.counted(stream), judges.orders, counts.quality
        store.table("preferences").replace(
            prefer_stream(run.config, parts, principles, orders, quality, temperature, said)
        )
    found = counts.result()
    _tell(run, judges, counts, temperature)
    write_json(store.path("evaluation", "labels.json"), found)
    _warn_of_mass(run, found["mass_under_half"])
    if found["gold_agreement"] is not None:
        tell_learnt(run, [juror.section for juror in judges.jurors])
    run.store.update_manifest("judge", judges.about())
    facts = {**counts.facts(), "new_rows": judges.new_rows, "temperature": temperature}
    finish(run, "label", clock, {**facts, **judges.facts()})


class Counts:
    """What is counted of verdicts and labels as they pass: how good they are, what the judges wrote
    before they decided, and of a jury how far it agrees."""

    def __init__(self, run: Run, judges: Judges) -> None:
        self.quality, self.reasoned = LabelQuality(truth(run)), Reasoned()
        self.jury: JuryAgreement | None = None
        rule = run.config.preferences
        self._how = rule.people
        if isinstance(judges.orders, Mapping):
            self.jury = JuryAgreement(
                judges.orders, rule=rule.orders, quorum=rule.quorum, margin=rule.principle_margin
            )

    def counted(self, stream: Iterable[Judged]) -> Iterator[Judged]:
        """The same chunks, counted as they pass. `quality` is told by whoever makes the labels."""
        parts = self.reasoned.counted(stream)
        return parts if self.jury is None else self.jury.counted(parts)

    def result(self) -> dict[str, Any]:
        """What `labels.json` tells."""
        found = self.quality.result()
        return found if self.jury is None else found | {"jury": self.jury.result()}

    def by_people(self) -> dict[str, Any]:
        """How many labels people had a word in, and how many of those it changed."""
        if self._how is None:
            return {}
        counts = {"pairs": self.quality.people, "changed": self.quality.changed}
        return {"people": {"how": self._how, **counts}}

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        quality = self.quality
        return {
            "rows": quality.verdicts,
            "abstained": dict(quality.reasons),
            "preferences": dict(quality.status),
            **self.by_people(),
            **self.reasoned.facts(),
        }


def nothing_to_label(run: Run) -> DataError:
    """The error for a run without pairs: what to do depends on why there are none."""
    config, root = run.config, run.store.root
    if config.pairs is None and config.sampling.n == 1 and len(run.store.table("completions")):
        return DataError(
            f"{root}: nothing to label: one completion of each prompt was sampled, and pairs need "
            "two: run `rlaif sample -n 2`"
        )
    return DataError(f"{root}: nothing to label: run `rlaif sample`, or give --pairs FILE")


def _tell(run: Run, judges: Judges, counts: Counts, temperature: float | None) -> None:
    """What became of the pairs, and what is to be known of it."""
    _tell_labels(run, judges.new_rows, counts.quality, counts.reasoned)
    if temperature is not None:
        of = " that the audit fitted" if run.config.preferences.temperature == "audit" else ""
        run.reporter.say(f"labels at the temperature {temperature:.3g}{of}")
    _tell_people(run, counts)
    _tell_examples(run, judges)
    _remove_audit(run)
    if counts.jury is not None:
        _tell_jury(run, counts.jury)


def _tell_people(run: Run, counts: Counts) -> None:
    found = counts.by_people().get("people")
    if found is None:
        return
    if not found["pairs"]:
        run.reporter.warn(
            f"preferences.people is {found['how']}, and nobody has decided a pair of this run yet: "
            "`rlaif view` shows pairs to people"
        )
        return
    does = "are people's" if found["how"] == "override" else "have people's word in them"
    run.reporter.say(
        f"{found['pairs']:,} labels {does}; {found['changed']:,} of them say something else than "
        "the judge's alone"
    )


def _tell_examples(run: Run, judges: Judges) -> None:
    """Says which worked examples a judge was shown, for some are without anybody asking."""
    for juror in judges.jurors:
        told = juror.about.get("examples")
        if told:
            size = f", {told['tokens']:,} tokens" if told["tokens"] is not None else ""
            who = "" if juror.name is None else f"{juror.name}: "
            run.reporter.say(
                f"{who}{told['shots']} worked examples ({told['from']}{size}) stood before each "
                "question; judge.examples says which"
            )


def _remove_audit(run: Run) -> None:
    """The audit was of other labels. Its temperature stays where labels are made at it."""
    if run.config.preferences.temperature != "audit":
        run.store.path(TEMPERATURE_FILE).unlink(missing_ok=True)
    path = run.store.path("evaluation", "audit.json")
    if path.is_file():
        path.unlink()
        again = lineage.command(lineage.AUDIT, run.store)
        run.reporter.say(f"the audit was of the labels before: `{again}` looks at these")


def _warn_of_mass(run: Run, low: float | None) -> None:
    """Says when the judge mostly wanted to write something else than the labels it was offered."""
    if low is not None and low > 0.5:
        run.reporter.warn(
            f"in {low:.0%} of the verdicts the labels together had less than half of the judge's "
            "probability: it would write something else. Look at the prompt (`rlaif constitution "
            "show`), and give the judge worked examples (`--examples`), a template whose cue leads "
            "to its labels, or another method"
        )


def prefer_stream(
    config: Config,
    parts: Iterable[Judged],
    principles: Sequence[Principle],
    orders: Orders,
    quality: LabelQuality,
    temperature: float | None = None,
    people: Mapping[str, float] | None = None,
) -> Iterator[Preference]:
    """The preferences of each chunk, of which nothing but `quality` is kept."""
    for part in parts:
        preferences = prefer(config, part.items, part.rows, principles, orders, temperature, people)
        quality.add(part.items, preferences, part.rows)
        yield from preferences


def prefer(
    config: Config,
    pairs: Sequence[Pair],
    verdicts: Sequence[Verdict],
    principles: Sequence[Principle],
    orders: Orders,
    temperature: float | None,
    people: Mapping[str, float] | None = None,
) -> list[Preference]:
    """Preferences by the config's rules, at what `require_temperature` found. A jury's verdicts
    have the jurors' names as judges. `people` is what `decided` gives; without it their decisions
    count for nothing."""
    rule = config.preferences.at(temperature)
    if not config.jury:
        rule = rule.but(jury="mean")
    made = aggregate(
        pairs,
        verdicts,
        rule.but(soft=True) if people else rule,
        weights={p.id: p.weight for p in principles},
        tiers={p.id: p.tier for p in principles},
        judge_weights={juror.name: juror.weight for juror in config.jury},
        orders=orders,
    )
    if not people:
        return made
    return [with_people(p, of_pair(people, p.pair.id), rule, config.preferences) for p in made]


def decided(run: Run) -> dict[str, float]:
    """What people said of pairs, where the config has it count: P(first is better) by pair."""
    return {} if run.config.preferences.people is None else People(run.store.root).labels()


def _tell_labels(run: Run, new: int, quality: LabelQuality, reasoned: Reasoned) -> None:
    status, short = quality.status, quality.unlabelled["quorum"]
    run.reporter.say(
        f"{quality.verdicts:,} verdicts ({new:,} new); {quality.pairs:,} pairs: "
        f"{status['preferred']:,} preferred, {status['tie']:,} ties, "
        f"{status['abstained']:,} abstained"
        + (f" ({short:,} for want of a quorum)" if short else "")
    )
    if reasoned.verdicts:
        run.reporter.say(
            f"{reasoned.verdicts:,} of {quality.verdicts:,} verdicts after a text of the judge's "
            f"own: {reasoned.tokens:,} tokens decoded"
        )
    if reasoned.thoughts_cut:
        run.reporter.warn(
            f"{reasoned.thoughts_cut:,} of {reasoned.thoughts:,} thoughts of the judge were closed "
            "at their budget: what they had come to by then counts. A number of tokens in "
            "`judge.thinking` (or the juror's) gives them more"
        )
    if quality.reasons:
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(quality.reasons.items()))
        run.reporter.warn(f"{quality.reasons.total():,} verdicts abstained: {reasons}")


def _tell_jury(run: Run, jury: JuryAgreement) -> None:
    """The two jurors that agree least, and the questions of which too few could tell."""
    known = [row for row in jury.agreement() if row["kappa"] is not None]
    if known:
        row = min(known, key=lambda row: row["kappa"])
        same, two = row["same_side"], " and ".join(row["jurors"])
        least = "least agreement of jurors: " if len(known) > 1 else ""
        run.reporter.say(
            f"{least}{two} lean to the same side on {same['value']:.1%} of {same['n']:,} questions "
            f"(κ {row['kappa']:.2f})"
        )
    if jury.short:
        run.reporter.warn(
            f"{jury.short:,} of {jury.questions:,} questions are short of the quorum of "
            f"{jury.quorum}"
        )
