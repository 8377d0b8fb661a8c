"""Published data sets, in their own schemas, read as their publishers mean: checked by value.

`datasets/` has small files in the schemas of large sets; the rows of others stand below. Every one
is read from JSON Lines and, where its types allow, from Parquet, and its columns are not renamed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlaif.errors import DataError
from rlaif.files.readers import BadRow, read_demonstrations, read_pairs, read_prompts
from rlaif.files.readers.settings import PairReading
from rlaif.records import Message, Pair

FILES = Path(__file__).parent / "datasets"

EGG, RIVER = "How long do I boil an egg?", "Name a river in France."
PRIME, RAIN = "Is 91 prime?", "Write one line about rain."
QUESTIONS = (EGG, RIVER, PRIME, RAIN)
GOOD = {
    EGG: "The answer is about eight minutes for a hard one.",
    RIVER: "The Loire is a river in France.",
    PRIME: "No, 91 is 7 times 13.",
    RAIN: "Rain writes small circles on the pond.",
}
BAD = {
    EGG: "The answer is two hours at full heat.",
    RIVER: "The Rhine is a river in France only.",
    PRIME: "No, wait, yes, 91 is prime.",
    RAIN: "Rain.",
}
UNKNOWN, LATER = "I do not know.", "Ask me later."
BRIEF = "You answer in one short sentence."

Read = tuple[str | None, str, str, str, float | None]  # system, prompt, first, second, label


def plain(labels: tuple[float, ...], turned: tuple[str, ...] = (), before: str = "") -> list[Read]:
    """The four questions with the good answer first, but for those that are `turned`."""
    return [
        (None, before + q, *((BAD[q], GOOD[q]) if q in turned else (GOOD[q], BAD[q])), label)
        for q, label in zip(QUESTIONS, labels, strict=True)
    ]


CLEAR = plain((1.0, 1.0, 1.0, 1.0))
TIED = plain((0.5, 1.0, 1.0, 1.0))  # the first row's scores are equal

EXPECTED: dict[str, list[Read]] = {
    "argilla_ufb_cleaned": TIED,
    "chatbot_arena": plain((1.0, 0.0, 0.5, 0.5)),
    "dahoas_hh": CLEAR,
    "dpo_mix_7k": TIED,
    "helpsteer2": CLEAR,
    "helpsteer2_preference": TIED,
    "llamafactory_alpaca": plain((1.0,) * 4, before="Answer the question.\n"),
    "llamafactory_sharegpt": CLEAR,
    "nectar": [
        (None, q, one, two, 1.0)
        for q in QUESTIONS
        for one, two in ((GOOD[q], BAD[q]), (GOOD[q], UNKNOWN), (BAD[q], UNKNOWN))
    ],
    "orca_dpo_pairs": [
        (BRIEF if q in (RIVER, RAIN) else None, q, GOOD[q], BAD[q], 1.0) for q in QUESTIONS
    ],
    "orpo_dpo_mix": CLEAR,
    "pku_saferlhf": plain((1.0, 0.0, 1.0, 0.0), turned=(RIVER, RAIN)),
    "rewardbench1": CLEAR,
    "rewardbench2": [
        *((None, q, GOOD[q], bad, 1.0) for q in QUESTIONS for bad in (BAD[q], UNKNOWN, LATER)),
        *(
            (None, "Name a primary colour.", good, bad, 1.0)
            for good in ("Red.", "Blue.")
            for bad in ("Tuesday.", "Nine.")
        ),
    ],
    "sharegpt_lists": CLEAR,
    "stack_exchange": CLEAR,
    "tulu3_mix": CLEAR,
    "ultrafeedback": plain((0.0,) * 4, turned=QUESTIONS),
    "ultrafeedback_binarized": TIED,
    "webgpt": TIED,
}


def told(pair: Pair) -> Read:
    *before, last = pair.prompt.messages
    assert last.role == "user"
    assert [m.role for m in before] in ([], ["system"])
    return (
        before[0].content if before else None,
        last.content,
        pair.first,
        pair.second,
        pair.label,
    )


def as_parquet(rows: list[Any], path: Path) -> Path | None:
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, TypeError):
        return None
    return path


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_in_a_published_schema_reads_by_value(tmp_path: Path, name: str) -> None:
    file = FILES / f"{name}.jsonl"
    bad: list[BadRow] = []
    assert [told(p) for p in read_pairs(file, on_bad=bad.append)] == EXPECTED[name]
    assert bad == []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    table = as_parquet(rows, tmp_path / f"{name}.parquet")
    assert table is not None or name == "rewardbench2"  # an empty struct is no Parquet type
    if table is not None:
        assert [told(p) for p in read_pairs(table, on_bad=bad.append)] == EXPECTED[name]
    assert bad == []


def test_every_file_is_expected_and_trl_implicit_prompts_are_read_where_asked_for() -> None:
    names = {file.stem for file in FILES.glob("*.jsonl")}
    assert names - EXPECTED.keys() == {"trl_implicit"}
    with pytest.raises(DataError, match=r"trl_implicit.jsonl:1: no prompt .*fields: chosen, rej"):
        list(read_pairs(FILES / "trl_implicit.jsonl"))
    found = [told(p) for p in read_pairs(FILES / "trl_implicit.jsonl", PairReading(format="trl"))]
    assert found == [
        (None, "The sky is", " blue.", " green.", 1.0),
        (None, "The sun is in the", " sky.", " sea.", 1.0),
    ]


def test_the_shared_faults_are_the_files_here() -> None:
    shared = Path(__file__).parents[2] / "../shared/faults/datasets"
    if not shared.is_dir():
        pytest.skip("the shared faults are not beside this checkout")
    for file in shared.glob("*.jsonl"):
        assert file.read_bytes() == (FILES / file.name).read_bytes(), file.name


def test_pku_has_two_verdicts_and_the_safer_one_is_read_where_asked_for() -> None:
    found = [
        p.label for p in read_pairs(FILES / "pku_saferlhf.jsonl", PairReading(format="pku_safer"))
    ]
    rows = [json.loads(s) for s in (FILES / "pku_saferlhf.jsonl").read_text().splitlines()]
    assert found == [1.0 - row["safer_response_id"] for row in rows]
    assert found != [p.label for p in read_pairs(FILES / "pku_saferlhf.jsonl")]


# ------------------------------------------------------------------ schemas that have no file here


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ONE = (None, "q", "a", "b")
TALK = [user("q0"), said("a0"), user("q")]

SCHEMAS: dict[str, tuple[list[dict[str, Any]], list[Any]]] = {
    "argilla/distilabel-intel-orca-dpo-pairs": (
        [
            {
                "system": s,
                "input": "q",
                "chosen": "a",
                "rejected": f"b{i}",
                "order": ["chosen"],
                "generations": ["a", "b"],
                "labelling_prompt": [user("rate")],
                "rating": rating,
                "status": status,
                "original_chosen": "a",
                "chosen_score": 9.0,
                "in_gsm8k_train": False,
            }
            for i, (s, rating, status) in enumerate(
                [
                    ("Be brief.", [9.0, 2.0], "unchanged"),
                    ("", [8.0, 8.0], "tie"),
                    ("", [2.0, 9.0], "swapped"),
                ]
            )
        ],
        [
            ("Be brief.", "q", "a", "b0", 1.0),
            (None, "q", "a", "b1", 0.5),
            (None, "q", "a", "b2", 1.0),
        ],
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        [
            {
                "source": "s",
                "instruction": "q",
                "chosen_response": "a",
                "rejected_response": f"b{i}",
                "chosen_avg_rating": 4.5,
                "rejected_avg_rating": r,
                "chosen_model": "m",
            }
            for i, r in enumerate((4.5, 3.0))
        ],
        [(None, "q", "a", "b0", 0.5), (None, "q", "a", "b1", 1.0)],
    ),
    "argilla/distilabel-math-preference-dpo": (
        [
            {
                "metadata": "{}",
                "instruction": "q",
                "chosen_response": "a",
                "chosen_rating": 8.0,
                "rejected_response": "b",
                "rejected_rating": 8.0,
            }
        ],
        [(*ONE, 0.5)],
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        [
            {
                "source": "s",
                "conversation": [{"input": "q0", "output": "a0"}, {"input": "q", "output": "x"}],
                "original_response": "x",
                "prompt": "q",
                "chosen": [*TALK, said("a")],
                "rejected": [*TALK, said(f"b{i}")],
                "rating_chosen": 5,
                "rating_rejected": r,
            }
            for i, r in enumerate((5, 1))
        ],
        [(["q0", "a0", "q"], "a", "b0", 0.5), (["q0", "a0", "q"], "a", "b1", 1.0)],
    ),
    "openbmb/UltraInteract_pair": (
        [
            {
                "task": "Coding",
                "dataset": "d",
                "id": "1",
                "parent_id": "0",
                "chosen": "a",
                "rejected": "b",
                "trajectory": [
                    {"from": "user", "value": "q0"},
                    {"from": "assistant", "value": "a0"},
                    {"from": "user", "value": "q"},
                ],
            }
        ],
        [(["q0", "a0", "q"], "a", "b", 1.0)],
    ),
    "messages as one list a field": (
        [
            {
                "trajectory": {"from": ["user", "gpt", "user"], "value": ["q0", "a0", "q"]},
                "chosen": "a",
                "rejected": "b",
            }
        ],
        [(["q0", "a0", "q"], "a", "b", 1.0)],
    ),
    "jondurbin/truthy-dpo": (
        [
            {"id": "1", "source": "s", "system": s, "prompt": "q", "chosen": "a", "rejected": r}
            for s, r in (("You are an AI.", "b"), ("", "c"))
        ],
        [("You are an AI.", "q", "a", "b", 1.0), (None, "q", "a", "c", 1.0)],
    ),
    "nvidia/HelpSteer3": (
        [
            {
                "domain": "general",
                "language": "english",
                "context": TALK,
                "response1": "a",
                "response2": f"b{p}",
                "overall_preference": p,
                "individual_preference": [{"score": p}],
            }
            for p in (-3, 0, 2)
        ],
        [(["q0", "a0", "q"], "a", f"b{p}", label) for p, label in ((-3, 1.0), (0, 0.5), (2, 0.0))],
    ),
    "nvidia/HelpSteer2, several turns and four responses": (
        [
            {
                "prompt": "q0\n<extra_id_1>Assistant\na0\n<extra_id_1>User\nq",
                "response": text,
                "helpfulness": h,
                "correctness": 1,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            }
            for text, h in (("x", 1), ("y", 3), ("z", 3))
        ],
        [
            (["q0", "a0", "q"], "x", "y", 0.0),
            (["q0", "a0", "q"], "x", "z", 0.0),
            (["q0", "a0", "q"], "y", "z", 0.5),
        ],
    ),
    "stanfordnlp/SHP": (
        [
            {
                "post_id": "p",
                "domain": "askculinary_train",
                "history": "q",
                "human_ref_A": "a",
                "human_ref_B": f"b{i}",
                "labels": label,
                "score_A": 3,
                "score_B": 9,
                "score_ratio": 3.0,
                "seconds_difference": 1.0,
            }
            for i, label in enumerate((1, 0))
        ],
        [(None, "q", "a", "b0", 1.0), (None, "q", "a", "b1", 0.0)],
    ),
    "lmsys/lmsys-arena-human-preference-55k": (
        [
            {
                "id": i,
                "model_a": "m",
                "model_b": "n",
                "prompt": '["q"]',
                "response_a": '["a"]',
                "response_b": json.dumps([second]),
                "winner_model_a": int(w == "a"),
                "winner_model_b": int(w == "b"),
                "winner_tie": int(w == "t"),
            }
            for i, (w, second) in enumerate([("a", "b1"), ("b", "b2"), ("t", "b3"), ("a", None)])
        ],
        [
            (None, "q", "a", "b1", 1.0),
            (None, "q", "a", "b2", 0.0),
            (None, "q", "a", "b3", 0.5),
            (None, "q", "a", "", 1.0),
        ],
    ),
    "lmsys/mt_bench_human_judgments": (
        [
            {
                "question_id": 81,
                "model_a": "m",
                "model_b": "n",
                "winner": winner,
                "judge": "j",
                "conversation_a": [user("q"), said("a"), user("more"), said("A")],
                "conversation_b": [user("q"), said(f"b{i}"), user("more"), said("B")],
                "turn": 1,
            }
            for i, winner in enumerate(("model_b", "tie", "tie (inconsistent)"))
        ],
        [(None, "q", "a", "b0", 0.0), (None, "q", "a", "b1", 0.5), (None, "q", "a", "b2", 0.5)],
    ),
    "berkeley-nest/Nectar, equal ranks": (
        [
            {
                "prompt": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant: ",
                "turns": 2,
                "num_responses": 3,
                "source": ["s"],
                "good_natured": True,
                "answers": [
                    {"answer": t, "model": "m", "rank": r}
                    for t, r in (("x", 2.0), ("y", 1.0), ("z", 2.0))
                ],
            }
        ],
        [
            (["q0", "a0", "q"], "x", "y", 0.0),
            (["q0", "a0", "q"], "x", "z", 0.5),
            (["q0", "a0", "q"], "y", "z", 1.0),
        ],
    ),
    "HuggingFaceH4/stack-exchange-preferences, equal scores": (
        [
            {
                "qid": 1,
                "question": "q",
                "date": "d",
                "metadata": ["m"],
                "answers": [
                    {
                        "answer_id": i,
                        "author": "u",
                        "author_id": 1,
                        "pm_score": s,
                        "selected": False,
                        "text": t,
                    }
                    for i, (t, s) in enumerate((("a", 2), ("b", 2), ("c", 4)))
                ],
            }
        ],
        [(None, "q", "a", "b", 0.5), (None, "q", "a", "c", 0.0), (None, "q", "b", "c", 0.0)],
    ),
    "LLaMA-Factory, history and system": (
        [
            {
                "instruction": "q",
                "input": "",
                "chosen": "a",
                "rejected": "b",
                "system": "s",
                "history": [["q0", "a0"]],
            }
        ],
        [(["s", "q0", "a0", "q"], "a", "b", 1.0)],
    ),
    "LLaMA-Factory, sharegpt with a system column": (
        [
            {
                "conversations": [{"from": "human", "value": "q"}],
                "system": "s",
                "tools": "",
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            }
        ],
        [("s", "q", "a", "b", 1.0)],
    ),
    "TRL, prompt as messages and repeated": (
        [{"prompt": TALK, "chosen": [*TALK, said("a")], "rejected": [*TALK, said("b")]}],
        [(["q0", "a0", "q"], "a", "b", 1.0)],
    ),
    "TRL, text parts and the role developer": (
        [
            {
                "prompt": [
                    {"role": "developer", "content": [{"type": "text", "text": "s"}]},
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                ],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
                "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
            }
        ],
        [("s", "q", "a", "b", 1.0)],
    ),
}


def told_shortly(pair: Pair, expected: Any) -> Any:
    """As `expected` tells it: with a system message and one turn, or with all texts in a list."""
    if isinstance(expected[0], list):
        texts = [m.content for m in pair.prompt.messages]
        return texts, pair.first, pair.second, pair.label
    return told(pair)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_in_a_published_schema_read_by_value(tmp_path: Path, name: str, form: str) -> None:
    rows, expected = SCHEMAS[name]
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    bad: list[BadRow] = []
    found = list(read_pairs(path, on_bad=bad.append))
    assert bad == []
    assert [told_shortly(p, e) for p, e in zip(found, expected, strict=True)] == expected


def test_arena_conversations_that_part_early_are_left_out_and_named(tmp_path: Path) -> None:
    row = {
        "winner": "model_a",
        "turn": 2,
        "conversation_a": [user("q"), said("a"), user("more"), said("A")],
        "conversation_b": [user("q"), said("b"), user("more"), said("B")],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "winner": "neither"}))
    bad: list[BadRow] = []
    assert list(read_pairs(path, PairReading(limit=1, skip_bad=1), on_bad=bad.append)) == []
    assert [b.reason for b in bad] == ["unlike_prefixes", "malformed"]
    assert "model_a, model_b or a tie, got 'neither'" in bad[1].detail


# ------------------------------------------------------------------ trees

TREE = [  # message, parent, role, text, rank
    ("p", None, "prompter", "q0", None),
    ("a", "p", "assistant", "a0", 1),
    ("b", "p", "assistant", "b0", 0),
    ("c", "p", "assistant", "c0", None),
    ("d", "a", "prompter", "q1", 0),
    ("e", "a", "prompter", "q2", 1),
    ("f", "d", "assistant", "x", 0),
    ("g", "d", "assistant", "y", 1),
]


def message(name: str, parent: str | None, role: str, text: str, rank: int | None) -> Any:
    return {
        "message_id": name,
        "parent_id": parent,
        "role": role,
        "text": text,
        "rank": rank,
        "lang": "en",
        "deleted": False,
        "review_result": True,
    }


def nested(name: str | None = None) -> Any:
    found = [{**message(*m), "replies": nested(m[0])} for m in TREE if m[1] == name]
    return found


def test_oasst_trees_are_siblings_by_rank_flat_and_nested(tmp_path: Path) -> None:
    flat = [{**message(*m), "message_tree_id": "p", "tree_state": "ready_for_export"} for m in TREE]
    single = [{**message("z", None, "prompter", "alone", None), "message_tree_id": "z"}]
    trees = [{"message_tree_id": "p", "tree_state": "ready_for_export", "prompt": nested()[0]}]
    expected = [(["q0"], "a0", "b0", 0.0), (["q0", "a0", "q1"], "x", "y", 1.0)]
    for rows in (flat + single, trees + single):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        bad: list[BadRow] = []
        found = [
            ([m.content for m in p.prompt.messages], p.first, p.second, p.label)
            for p in read_pairs(path, on_bad=bad.append)
        ]
        assert found == expected
        assert [b.reason for b in bad] == ["no_rating"]
    path.write_text("".join(json.dumps(row) + "\n" for row in flat[1:]))
    with pytest.raises(DataError, match="answers p, which is not beside it: sort the rows"):
        list(read_pairs(path))
    for ring, told in (
        ([{**flat[0], "parent_id": "a"}, flat[1]], "in a ring"),
        ([{**flat[0], "message_id": None}], "message_id"),
        ([flat[0], flat[0]], "twice in a tree"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in ring))
        with pytest.raises(DataError, match=told):
            list(read_pairs(path, PairReading(format="oasst")))
    path.write_text("".join(json.dumps(row) + "\n" for row in flat))
    only = list(read_prompts(path, on_bad=bad.append))
    assert [[m.content for m in p.messages] for p in only] == [["q0"]]


# ------------------------------------------------------------------ prompts and demonstrations


def test_prompts_of_published_rows(tmp_path: Path) -> None:
    rows = [
        {"system": "s", "question": "q"},
        {"instruction": "do", "input": "this", "output": "x"},
        {"instruction": "do", "context": "this", "response": "x", "category": "c"},
        {"conversations": [{"from": "human", "value": "q"}]},
        {"messages": [{"role": "developer", "content": "s"}, user("q")]},
        {"context": TALK, "response1": "a", "response2": "b", "overall_preference": 1},
        {"prompt": "q0\n<extra_id_1>Assistant\na0\n<extra_id_1>User\nq", "helpfulness": 1},
        {"question": {"dataset": "eli5", "full_text": "q"}, "answer_0": "a", "score_0": 0.0},
        {"prompt": "q", "question": "q", "system": ""},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [[m.content for m in p.messages] for p in read_prompts(path)]
    talk = ["q0", "a0", "q"]
    assert found == [
        ["s", "q"],
        ["do\nthis"],
        ["do\nthis"],
        ["q"],
        ["s", "q"],
        talk,
        talk,
        ["q"],
        ["q"],
    ]
    for name, pairs in EXPECTED.items():  # those too whose prompts stand in the responses
        asked = [p.messages[-1].content for p in read_prompts(FILES / f"{name}.jsonl")]
        assert set(asked) == {question for _, question, *_ in pairs}, name
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    path.write_text(json.dumps(hh) + "\n" + json.dumps({**hh, "rejected": hh["chosen"]}))
    bad: list[BadRow] = []
    assert [p.messages for p in read_prompts(path, on_bad=bad.append)] == [(Message("user", "q"),)]
    assert [b.reason for b in bad] == ["identical_responses"]


def test_demonstrations_of_published_rows(tmp_path: Path) -> None:
    talk = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
    rows = [
        {"instruction": "q", "input": "", "output": "a"},  # Alpaca
        {"instruction": "q", "context": "", "response": "a", "category": "c"},  # Dolly
        {"conversations": talk},  # ShareGPT
        {"source": "s", "conversation": [{"input": "q", "output": "a"}]},  # LDJnr/Capybara
        {"system": "s", "question": "q", "answer": "a"},
        {"prompt": "q", "prompt_id": "1", "messages": [user("q"), said("a")]},  # no_robots
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [([m.content for m in d.prompt.messages], d.text) for d in read_demonstrations(path)]
    alone, ordered = (["q"], "a"), (["s", "q"], "a")
    assert found == [alone, alone, ordered, alone, ordered, alone]
    path.write_text(json.dumps({"prompt": "q", "response": "a", "output": "b"}))
    with pytest.raises(DataError, match="expected one answer, got the fields response and output"):
        list(read_demonstrations(path))


def test_tables_of_text_have_the_same_labels(tmp_path: Path) -> None:
    """In a CSV file, as Kaggle has LMSYS-55k, every number is a text."""
    import csv

    names = [
        "lmsys/lmsys-arena-human-preference-55k",
        "stanfordnlp/SHP",
        "argilla/distilabel-math-preference-dpo",
    ]
    sets = [(SCHEMAS[name][0], [e[-1] for e in SCHEMAS[name][1]]) for name in names]
    for name in ("pku_saferlhf", "helpsteer2", "helpsteer2_preference"):
        rows = [json.loads(line) for line in (FILES / f"{name}.jsonl").read_text().splitlines()]
        sets.append((rows, [e[-1] for e in EXPECTED[name]]))
    for rows, labels in sets:
        path = tmp_path / "rows.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        assert [pair.label for pair in read_pairs(path)] == labels
