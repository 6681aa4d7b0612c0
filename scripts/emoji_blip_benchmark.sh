#!/usr/bin/env bash
# The grid of configs/benchmark/emoji_blip.py, from nothing, as emoji_benchmark.sh does it for CLIP.
#
#   scripts/emoji_blip_benchmark.sh PICTURES CLIPS OUT [--cells=i/n]
#
# PICTURES: Karpathy's layout, with file names that begin with google and twitter. CLIPS: MSR-VTT's
# layout. Backbone and records go to data/emoji, runs and the report to OUT. Rerunning skips what is
# complete and resumes what is not.
set -euo pipefail
pictures=${1:?PICTURES: a folder in Karpathy\'s layout}
clips=${2:?CLIPS: a folder in MSR-VTT\'s layout}
out=${3:?OUT: where runs and the report go}
shift 3
run() { python -m "uniadapter_jax.$@"; }

python scripts/split_pictures.py "$pictures" google data/emoji/pretrain twitter data/emoji/pictures
as_manifest=(--config.data.prepare.source=manifest)
run prepare --config=configs/blip_from_scratch.py --input=data/emoji/pretrain "${as_manifest[@]}" \
  --output=data/emoji/pretrain/records-blip --train-wordpiece=1500
run prepare --config=configs/blip_from_scratch.py --input=data/emoji/pictures "${as_manifest[@]}" \
  --output=data/emoji/pictures/records
run prepare --config=configs/msrvtt.py --input="$clips" --output=data/emoji/clips/records \
  --config.data.prepare.sampling=middle --config.data.prepare.frames=4 \
  --config.data.prepare.short_side=72

[ -e data/emoji/blip-mini ] || run main --config=configs/blip_from_scratch.py \
  --config.backbone=random:configs/backbones/mini_blip.json \
  --config.data.records=data/emoji/pretrain/records-blip --workdir=data/emoji/pretrain/blip-mini \
  --save-backbone=data/emoji/blip-mini

run benchmark --config=configs/benchmark/emoji_blip.py --output="$out" "$@" --report
