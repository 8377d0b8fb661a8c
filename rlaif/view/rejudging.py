"""A principle reworded, asked again about some pairs: labels before and after.

Verdicts are factored, so the reworded principle is all that the judge is asked about; the others'
verdicts are those of the store. The judge lives in a process of its own (`python -m
rlaif.view.worker`), started when it is first needed: the page stays small and answers meanwhile,
and a model that dies takes nothing with it. Nothing is written to the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.errors import DataError, EngineError
from rlaif.view.index import Made
from rlaif.view.labelling import spread

Json = dict[str, Any]
SAMPLES = {
    "random": "random, spread over the margins",
    "doubt": "least decided under this principle",
    "decided": "most decided under this principle",
}
SIZES = (8, 16, 32, 64)
LETTERS = 2_000  # of a principle's text


class Rejudger:
    """Asks the worker of a run, one request at a time. The worker ends when its input does, at the
    latest with this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, principle: str, compare: str, pairs: Sequence[str]) -> Json:
        """What the labels of some pairs are, and would be with this wording.

        Raises EngineError with what the judge said when it cannot be loaded or asked.
        """
        with self._lock:
            worker = self._started()
            assert worker.stdin is not None
            assert worker.stdout is not None
            asked = {"principle": principle, "compare": compare, "pairs": list(pairs)}
            try:
                worker.stdin.write(json.dumps(asked) + "\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                self._process = None
                raise EngineError(
                    f"the judge's process ended (status {worker.wait()}); what it said stands "
                    "where `rlaif view` was started. Ask again to start it anew"
                )
        found: Json = json.loads(answer)
        if "error" in found:
            raise EngineError(f"the judge could not be asked: {found['error']}")
        return found

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlaif.view.worker", str(self.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        return self._process


def sample(made: Made, principle: str, which: str, size: int) -> list[str]:
    """The ids of pairs to judge again. DataError for a principle that the run does not have."""
    if principle not in made.principles or which not in SAMPLES or size not in SIZES:
        raise DataError(
            f"expected a principle of {', '.join(made.principles)}, a sample of "
            f"{', '.join(SAMPLES)} and a size of {', '.join(map(str, SIZES))}"
        )
    if which == "random":
        places = dict.fromkeys(spread(i, 0.5, made.pairs) for i in range(8 * size))
        chosen = list(places)[: min(size, made.pairs)]
        rows = made.run(f"SELECT id FROM facts WHERE place IN ({', '.join(map(str, chosen))})")
    else:
        order = "" if which == "doubt" else "DESC"
        rows = made.run(
            "SELECT id FROM opinion JOIN facts USING (n) WHERE c = ? AND opinion.p IS NOT NULL "
            f"GROUP BY n, id ORDER BY avg(abs(opinion.p - 0.5)) {order}, n LIMIT {size}",
            [made.principles.index(principle)],
        )
    return [row["id"] for row in rows]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a label says something else: another status, or the other side."""
    return side(before) != side(after)


def side(label: Mapping[str, Any]) -> str:
    """What a label says: `1`, `2`, or its status where it prefers neither."""
    if label["status"] != "preferred":
        return str(label["status"])
    return "1" if label["p"] > 0.5 else "2"
