#!/usr/bin/env bash
# The grid of configs/benchmark/easy_vqa.py, from nothing: a BLIP learns to answer about one half
# of the pictures, and every method adapts it to the other half with colours inverted.
#
#   scripts/easy_vqa_benchmark.sh OUT [--cells=i/n]
#
# The data come with the package easy-vqa (3 MB). Backbone and records go to data/easy-vqa, runs and
# the report to OUT. Rerunning skips what is complete and resumes what is not.
set -euo pipefail
out=${1:?OUT: where runs and the report go}
shift
run() { python -m "uniadapter_jax.$@"; }

pip install --quiet easy-vqa
data=$(python -c 'import easy_vqa, os; print(os.path.dirname(easy_vqa.__file__))')/data
python scripts/split_easy_vqa.py "$data" data/easy-vqa/pretrain data/easy-vqa/adapt
run prepare --config=configs/easy_vqa.py --input=data/easy-vqa/pretrain \
  --output=data/easy-vqa/pretrain/records --train-wordpiece=126
run prepare --config=configs/easy_vqa.py --input=data/easy-vqa/adapt \
  --output=data/easy-vqa/adapt/records

[ -e data/easy-vqa/blip ] || run main --config=configs/easy_vqa.py \
  --config.data.records=data/easy-vqa/pretrain/records --config.train.steps=3000 \
  --workdir=data/easy-vqa/pretrain/run --save-backbone=data/easy-vqa/blip

run benchmark --config=configs/benchmark/easy_vqa.py --output="$out" "$@" --report
