#!/usr/bin/env bash
# The grid of configs/benchmark/emoji.py, with `blip` that of emoji_blip.py, with `depth` that of
# depth.py, from nothing: backbones are trained from scratch on the pictures of one vendor, and
# methods adapt them to another vendor's pictures and to clips.
#
#   scripts/emoji_benchmark.sh clip|blip|depth PICTURES CLIPS OUT [--cells=i/n]
#
# PICTURES: Karpathy's layout, with file names that begin with google and twitter. CLIPS: MSR-VTT's
# layout. Backbones and records go to data/emoji, runs and the report to OUT. Rerunning skips what is
# complete and resumes what is not.
set -euo pipefail
family=${1:?clip, blip or depth}
pictures=${2:?PICTURES: a folder in Karpathy\'s layout}
clips=${3:?CLIPS: a folder in MSR-VTT\'s layout}
out=${4:?OUT: where runs and the report go}
shift 4
case $family in
  clip) sizes=(mini small) grid=emoji ;;
  blip) sizes=(mini) grid=emoji_blip ;;
  depth) family=clip sizes=(deep) grid=depth ;;
  *)
    echo "error: clip, blip or depth is meant, not $family" >&2
    exit 2
    ;;
esac
run() { python -m "uniadapter_jax.$@"; }

python scripts/split_pictures.py "$pictures" google data/emoji/pretrain twitter \
  data/emoji/pictures data/emoji/negatives
for set in pretrain pictures negatives; do
  run prepare --config=configs/clip_from_scratch.py --input="data/emoji/$set" \
    --config.data.prepare.source=manifest --output="data/emoji/$set/records" \
    --train-tokenizer=1500 --train-wordpiece=1500
done
run prepare --config=configs/msrvtt.py --input="$clips" --output=data/emoji/clips/records \
  --config.data.prepare.sampling=middle --config.data.prepare.frames=4 \
  --config.data.prepare.short_side=72

for size in "${sizes[@]}"; do
  name=$family-$size
  [ -e "data/emoji/$name" ] || run main --config="configs/${family}_from_scratch.py" \
    --config.backbone="random:configs/backbones/${size}_$family.json" \
    --config.data.records=data/emoji/pretrain/records --workdir="data/emoji/pretrain/$name" \
    --save-backbone="data/emoji/$name"
done

run benchmark --config="configs/benchmark/$grid.py" --output="$out" "$@" --report
