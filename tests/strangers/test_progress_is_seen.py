"""Progress: a live bar on a terminal, plain lines elsewhere, no other library's bars in either."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.cli.console import Rate

RUN = [sys.executable, "-c", "from rlaif.cli import main; main()"]
LABEL = ["label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "run"]
OURS = re.compile(r"(?:read|label): [\d,.]+ of [\d,]+ in \d+ s|read: [\d,.]+.*")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Can you {i} ?", "chosen": "Yes .", "rejected": "No ."} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """What a terminal of 100 columns is sent."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*RUN, *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(), "COLUMNS": "100"},
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(ours)
    assert child.wait() == 0
    return sent.decode()


def test_a_terminal_has_a_live_bar_and_no_other(pairs: Path) -> None:
    sent = on_a_terminal(pairs, *LABEL)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sent)
    assert re.search(r"label ━+ +4 of 4", plain)
    assert "Loading" not in plain
    assert "it/s" not in plain
    assert "%|" not in plain
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h")  # the cursor is shown again
    assert plain.splitlines()[-1].startswith("16 verdicts (16 new)")


def test_a_file_has_plain_lines_and_no_other(pairs: Path) -> None:
    for _ in range(2):  # the second time all is found done
        done = subprocess.run(
            [*RUN, *LABEL], cwd=pairs, env=environment(), capture_output=True, text=True, check=True
        )
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert lines
        assert all(OURS.fullmatch(line) for line in lines), lines


def test_the_time_left_is_told_once_it_is_known_and_of_new_work_only() -> None:
    rate = Rate()
    rate.saw(0, 100.0)
    assert rate.text(0, 1000) == ""
    rate.saw(4, 101.0)
    assert rate.text(504, 1000) == ""  # a second is too little to know; 500 were found done
    rate.saw(16, 104.0)
    assert rate.text(516, 1000) == ", 4.0/s, 2 min left"  # 484 at 4 a second
    found = Rate()
    found.saw(0, 0.0)
    found.saw(0, 60.0)  # a minute over what was done before
    assert found.text(500, 1000) == ""
