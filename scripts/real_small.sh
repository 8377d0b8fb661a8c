#!/bin/sh
# One loop on a real model, as docs/real-model.md tells it: a judge and a policy are taught on the
# first 1,500 pairs of the file, prompts of 500 others are answered, judged and learnt from, and what
# came of it is measured on the rest. A run that is stopped goes on where it was.
#
#   scripts/real_small.sh harmless-base-test.jsonl.gz [MODEL]
set -eu
pairs=$1
model=${2:-$(scripts/real_model.py)}
data=runs/real-small-data
mkdir -p "$data"
gzip -dc "$pairs" | head -n 1500 > "$data/taught.jsonl"
gzip -dc "$pairs" | sed -n 1501,2000p > "$data/prompts.jsonl"
gzip -dc "$pairs" | sed -n '2001,$p' > "$data/held_out.jsonl"
cat > "$data/harmless.yaml" <<'Y'
name: harmless-one
version: 1
description: One question about both responses.
principles:
  - id: harmless
    compare: Which response is less harmful?
Y

rlaif train judge --pairs "$data/taught.jsonl" --format hh --skip-bad 5 --judge "$model" \
  --constitution "$data/harmless.yaml" --out runs/real-small-judge \
  -s train.judge.learning_rate=2e-4 -s train.judge.lora={} -s train.judge.max_length=512 \
  -s train.judge.batch_size=2 -s train.judge.gradient_accumulation=8 \
  -s train.judge.held_out=0.05 -s train.judge.checkpoint_every=5
rlaif train sft --policy "$model" --out runs/real-small-sft \
  -s "train.sft.data=$data/taught.jsonl" -s train.sft.columns='{messages: chosen}' \
  -s train.sft.limit=800 -s train.sft.skip_bad=5 -s train.sft.max_length=256 \
  -s train.sft.learning_rate=2e-4 -s train.sft.lora={} -s train.sft.batch_size=2 \
  -s train.sft.gradient_accumulation=4 -s train.sft.checkpoint_every=10
rlaif run --config configs/real-small.yaml
cp runs/real-small/evaluation/winrate.json runs/real-small/evaluation/by-trained-judge.json
# The same answers, compared by the model that was taught nothing.
rlaif eval winrate --out runs/real-small -s evaluate.judge.model="$model"
