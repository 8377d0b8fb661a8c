"""People's decisions beside the judge's: pure functions over labels, no model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from rlaif.files.settings import Section
from rlaif.judges.preferences import PreferenceSettings, labelled
from rlaif.records import Preference


class PeopleSettings(Section):
    """What people's decisions (`rlaif view`) do to labels. Changing this costs no model call."""

    people: Literal["override", "join"] | None = None
    """On pairs that people decided: `override`: their label stands, P(first is better) being the
    share of their votes, a tie half a vote; `join`: they are one voice more beside the judge or
    jury, weighted by `people_weight`; null leaves labels as the judge made them
    (`docs/ensembles.md`)."""
    people_weight: float = Field(default=1.0, gt=0)
    """With `people: join`: what people's share counts for where the judge counts for 1."""

    def about_people(self) -> dict[str, object]:
        """What of this decides labels."""
        weight = {"people_weight": self.people_weight} if self.people == "join" else {}
        return {"people": self.people, **weight}


def with_people(
    row: Preference, share: float | None, settings: PreferenceSettings, how: PeopleSettings
) -> Preference:
    """A soft label of verdicts made one with what people said of the pair.

    `share` is the share of people's votes for the first completion, None where nobody decided.
    `override` puts it in the label's place, `join` makes (p + w·share)/(1 + w) of the two, w being
    `people_weight`; where the judge abstained or had nothing to say, people's share stands alone.
    The margin of ties and `soft` are those of `settings`; a temperature is the judge's, and does
    nothing to people's share. What the verdicts alone gave is kept in `status_judged` and
    `p_judged`.
    """
    alone = row
    if row.status == "preferred" and row.p_first is not None and not settings.soft:
        alone = replace(row, p_first=float(row.p_first > 0.5))
    if share is None or how.people is None:
        return alone
    p, weight = share, how.people_weight
    if how.people == "join" and row.p_first is not None:
        p = (row.p_first + weight * share) / (1 + weight)
    status, p_first = labelled(p, True, settings.but(temperature=None))
    return replace(
        alone,
        status=status,
        p_first=p_first,
        reason=None,
        people=share,
        status_judged=alone.status,
        p_judged=alone.p_first,
    )
