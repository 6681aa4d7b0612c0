#!/usr/bin/env bash
# The whole story on real media: a small CLIP from random weights on pictures with captions, then
# every method on video clips, three seeds each, and a table with bootstrap intervals.
#
#   scripts/real_media.sh PICTURES CLIPS OUT
#
# PICTURES: Karpathy's layout (dataset_flickr30k.json and its pictures). CLIPS: MSR-VTT's layout.
# OUT: records, backbone, runs. Rerunning skips what is complete and resumes what is not.
set -euo pipefail
pictures=${1:?PICTURES: a folder in Karpathy\'s layout}
clips=${2:?CLIPS: a folder in MSR-VTT\'s layout}
out=${3:?OUT: where everything is written}
run() { python -m "uniadapter_jax.$@"; }

run prepare --config=configs/clip_from_scratch.py --input="$pictures" \
  --output="$out/pictures" --train-tokenizer=1500
[ -e "$out/backbone" ] || run main --config=configs/clip_from_scratch.py \
  --config.data.records="$out/pictures" --workdir="$out/runs/backbone" \
  --save-backbone="$out/backbone"

# Clips of a few seconds: four frames, one of the middle of each quarter.
few_frames=(--config.data.prepare.sampling=middle --config.data.prepare.frames=4
  --config.data.prepare.short_side=72)
run prepare --config=configs/msrvtt.py --input="$clips" --output="$out/clips" "${few_frames[@]}"

for method in zero_shot projection lora cross_modal_adapter full; do
  case $method in
    full) own=(--config.optimizer.lr=3e-4) ;;
    cross_modal_adapter) own=(--config.optimizer.lr=1e-2 --config.method.init_std=.03) ;;
    *) own=(--config.optimizer.lr=3e-3) ;;
  esac
  for seed in 0 1 2; do
    run main --config="configs/msrvtt.py:method=$method,backbone=$out/backbone" \
      --workdir="$out/runs/$method-$seed" --config.seed=$seed \
      --config.data.records="$out/clips" --config.data.frames=4 --config.data.val=0 \
      --config.data.captions=random --config.task.similarity=mean_pool \
      --config.optimizer.recipe=adamw_warmup_cosine "${own[@]}" \
      --config.train.batch_size=48 --config.train.epochs=0 --config.train.steps=120 \
      --config.train.checkpoint_every=60
  done
done
run compare --baseline=zero_shot "$out"/runs/{zero_shot,projection,lora,cross_modal_adapter,full}-{0,1,2}
