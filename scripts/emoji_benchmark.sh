#!/usr/bin/env bash
# The grid of configs/benchmark/emoji.py, from nothing: backbones are trained from scratch on the
# pictures of one vendor, and every method adapts them to another vendor's pictures and to clips.
#
#   scripts/emoji_benchmark.sh PICTURES CLIPS OUT [--cells=i/n]
#
# PICTURES: Karpathy's layout, with file names that begin with google and twitter. CLIPS: MSR-VTT's
# layout. Backbones and records go to data/emoji, runs and the report to OUT. Rerunning skips what is
# complete and resumes what is not.
set -euo pipefail
pictures=${1:?PICTURES: a folder in Karpathy\'s layout}
clips=${2:?CLIPS: a folder in MSR-VTT\'s layout}
out=${3:?OUT: where runs and the report go}
shift 3
run() { python -m "uniadapter_jax.$@"; }

python scripts/split_pictures.py "$pictures" google data/emoji/pretrain twitter data/emoji/pictures
as_manifest=(--config.data.prepare.source=manifest)
for set in pretrain pictures; do
  run prepare --config=configs/clip_from_scratch.py --input="data/emoji/$set" "${as_manifest[@]}" \
    --output="data/emoji/$set/records" --train-tokenizer=1500
done
run prepare --config=configs/msrvtt.py --input="$clips" --output=data/emoji/clips/records \
  --config.data.prepare.sampling=middle --config.data.prepare.frames=4 \
  --config.data.prepare.short_side=72

for size in mini small; do
  [ -e "data/emoji/clip-$size" ] || run main --config=configs/clip_from_scratch.py \
    --config.backbone="random:configs/backbones/${size}_clip.json" \
    --config.data.records=data/emoji/pretrain/records --workdir="data/emoji/pretrain/clip-$size" \
    --save-backbone="data/emoji/clip-$size"
done

run benchmark --config=configs/benchmark/emoji.py --output="$out" "$@" --report
