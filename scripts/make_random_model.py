"""Writes a model with random weights in a real shape, its tokenizer trained on your pairs.

python scripts/make_random_model.py --shape 15m --pairs pairs.jsonl.gz --out models/15m
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlaif.bench.random_model import SHAPES, make_model, texts_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--pairs", required=True, help="hh-rlhf or TRL preference rows")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    made = make_model(
        args.out, args.shape, texts_of(args.pairs), seed=args.seed, device=args.device
    )
    print(made)


if __name__ == "__main__":
    main()
