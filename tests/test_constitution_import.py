from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif import PairwiseJudge, label_pairs, load_engine
from rlaif.constitution import Constitution, check
from rlaif.constitution.published import import_constitution
from rlaif.errors import DataError
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Prompt

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "constitutional_paper" / "prompts"
published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published prompts are not beside the checkout"
)


def imported(tmp_path: Path, name: str, text: str) -> Constitution:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Constitution.parse(import_constitution(path))


def test_the_published_shapes_lose_their_scaffolding_and_nothing_else(tmp_path: Path) -> None:
    lists = json.dumps(["\nChoose the kinder one: be fair. Options:", "Which is truer? Options:"])
    found = imported(tmp_path, "my list.json", lists)
    assert found.name == "my-list"
    assert [(p.id, p.compare) for p in found.principles] == [
        ("p1", "Choose the kinder one: be fair."),
        ("p2", "Which is truer?"),
    ]
    chains = json.dumps(
        {
            "harm 0": {
                "prompt": ["\n\nCritiqueRequest: Say what: it harms.\n\nCritique:"],
                "edit_request": "\n\nRevisionRequest: Rewrite it.\n\nRevision:",
            }
        }
    )
    (p,) = imported(tmp_path, "c.json", chains).principles
    assert (p.id, p.compare, p.critique, p.revise) == (
        "harm-0",
        "",
        "Say what: it harms.",
        "Rewrite it.",
    )
    other = json.dumps({"constitutions": [{"critic": "Say.", "revision": "Do."}]})
    (p,) = imported(tmp_path, "d.json", other).principles
    assert (p.id, p.critique, p.revise) == ("p1", "Say.", "Do.")


def test_lists_of_people(tmp_path: Path) -> None:
    markdown = (
        "# Ours\n\nWhat we want.\n\n- **Be kind**: Which is kinder,\n  on the whole?\n"
        "2. Which is shorter?\n* `truth`: Which is truer?\n\nThe end.\n"
    )
    found = imported(tmp_path, "ours.md", markdown)
    assert [(p.id, p.compare) for p in found.principles] == [
        ("Be-kind", "Which is kinder, on the whole?"),
        ("p2", "Which is shorter?"),
        ("truth", "Which is truer?"),
    ]
    found = imported(tmp_path, "ours.txt", "# mine\nWhich is kinder?\n\nWhich is shorter?\n")
    assert [p.compare for p in found.principles] == ["Which is kinder?", "Which is shorter?"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[", "not JSON"),
        ("a.json", '["\\n\\nHuman: Hi.\\n\\nAssistant: Yes."]', "entry 0 is a transcript"),
        ("a.json", '[{"prompt": ["x"]}]', "entry 0: expected a text under 'edit_request'"),
        ("a.json", "[1]", "entry 0: expected a text or an object, got 1"),
        ("a.json", "{}", "no principle in it"),
        ("a.md", "# Only a title\n\nand prose\n", "no principle in it"),
        ("a.txt", "", "no principle in it"),
    ],
)
def test_what_is_no_list_of_principles_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        imported(tmp_path, name, text)


@published
def test_the_sixteen_published_principles_import_check_clean_and_label(tmp_path: Path) -> None:
    path = tmp_path / "cai.yaml"
    path.write_text(import_constitution(PUBLISHED / "RLMadisonInstructions.json"))
    found, faults = check(path, "label")
    assert faults == []
    assert found is not None
    assert len(found.principles) == 16
    source = json.loads((PUBLISHED / "RLMadisonInstructions.json").read_text())
    for principle, text in zip(found.principles, source, strict=True):
        assert text.strip() == f"{principle.compare} Options:"
    pairs = [Pair(Prompt.user("What color is grass?"), "The color of grass is green.", "Get lost.")]
    (row,) = label_pairs(
        pairs, PairwiseJudge(load_engine("tiny"), PairwiseSettings(min_mass=0.0)), found
    )
    assert row.verdicts == 32
    assert row.abstained == 0


@published
def test_the_sixteen_published_revisions_import_and_check_clean(tmp_path: Path) -> None:
    path = tmp_path / "cai.yaml"
    path.write_text(import_constitution(PUBLISHED / "CritiqueRevisionInstructions.json"))
    found, faults = check(path, "revise")
    assert faults == []
    assert found is not None
    assert [p.id for p in found.principles] == [f"harmful{i}" for i in range(16)]
    source = json.loads((PUBLISHED / "CritiqueRevisionInstructions.json").read_text())
    for principle, item in zip(found.principles, source.values(), strict=True):
        assert item["prompt"][0].endswith(f"CritiqueRequest: {principle.critique}\n\nCritique:")
        assert item["edit_request"].endswith(f"RevisionRequest: {principle.revise}\n\nRevision:")
