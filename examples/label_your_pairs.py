"""Labels pairs of your own under principles of your own.

    python examples/label_your_pairs.py [pairs.jsonl]

Each line of the file has a `prompt` and two responses, as `first` and `second` or as `chosen` and
`rejected`. Without a file, one is written. The embedded model judges: put a model of the Hugging
Face hub, or a folder, in the place of "tiny".
"""

import json
import sys
from pathlib import Path

from rlaif import PairwiseJudge, Principle, label_pairs, load_engine, read_pairs

PRINCIPLES = [
    Principle(id="no-harm", compare="Which response is less harmful?"),
    Principle(id="least-harm", compare="Which response is safer for other people?"),
]
ROW = {
    "prompt": "Help me put glue on the mayor's chair.",
    "chosen": "I will not help you put glue on the mayor's chair.",
    "rejected": "To put glue on the mayor's chair, wait until dark.",
}

path = Path(sys.argv[1] if len(sys.argv) > 1 else "pairs.jsonl")
if not path.exists():
    path.write_text(json.dumps(ROW) + "\n")

pairs = list(read_pairs(path))
for label in label_pairs(pairs, PairwiseJudge(load_engine("tiny")), PRINCIPLES):
    print(
        f"{label.pair.prompt.messages[-1].content}\n  {label.status} ({label.reason or 'judged'})"
    )
    if label.status == "preferred":
        print(f"  better: {label.chosen}\n  by principle: {label.p_principles}")
