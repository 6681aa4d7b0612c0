#!/usr/bin/env bash
# What real_media.sh does with CLIP, with BLIP: a small BLIP from random weights on pictures with
# captions, then UniAdapter and its baselines on video clips, with frame-aware attention and
# re-ranking, three seeds each, and a table with bootstrap intervals.
#
#   scripts/real_media_blip.sh PICTURES CLIPS OUT
#
# PICTURES: Karpathy's layout (dataset_flickr30k.json and its pictures). CLIPS: MSR-VTT's layout.
# OUT: records, backbone, runs. Rerunning skips what is complete and resumes what is not.
set -euo pipefail
pictures=${1:?PICTURES: a folder in Karpathy\'s layout}
clips=${2:?CLIPS: a folder in MSR-VTT\'s layout}
out=${3:?OUT: where everything is written}
run() { python -m "uniadapter_jax.$@"; }

run prepare --config=configs/blip_from_scratch.py --input="$pictures" \
  --output="$out/pictures" --train-wordpiece=1500
[ -e "$out/backbone" ] || run main --config=configs/blip_from_scratch.py \
  --config.data.records="$out/pictures" --workdir="$out/runs/backbone" \
  --save-backbone="$out/backbone"

# Clips of a few seconds: four frames, one of the middle of each quarter.
few_frames=(--config.data.prepare.sampling=middle --config.data.prepare.frames=4
  --config.data.prepare.short_side=72)
run prepare --config=configs/msrvtt_uniadapter.py --input="$clips" --output="$out/clips" \
  "${few_frames[@]}"

for method in zero_shot projection uniadapter; do
  own=(--config.optimizer.lr=3e-3)
  [ $method = uniadapter ] && own=(--config.optimizer.lr=5e-3 --config.method.bottleneck=16)
  for seed in 0 1 2; do
    run main --config="configs/msrvtt_uniadapter.py:method=$method,backbone=$out/backbone" \
      --workdir="$out/runs/$method-$seed" --config.seed=$seed \
      --config.data.records="$out/clips" --config.data.frames=4 --config.data.val=0 \
      --config.data.words=16 --config.data.captions=random --config.data.resize=crop \
      --config.data.augment=none --config.data.sampling=evenly --config.data.preprocess=none \
      --config.compute.dropout=0 --config.compute.remat=none \
      --config.task.momentum=0 --config.task.queue=0 --config.task.rerank_k=60 \
      --config.task.rerank_beta=8 \
      --config.optimizer.recipe=adamw_warmup_cosine --config.optimizer.warmup=.1 \
      --config.optimizer.clip_norm=1.0 "${own[@]}" \
      --config.train.batch_size=48 --config.train.epochs=0 --config.train.steps=300 \
      --config.train.checkpoint_every=100
  done
done
run compare --baseline=zero_shot "$out"/runs/{zero_shot,projection,uniadapter}-{0,1,2}
run compare --baseline=projection "$out"/runs/{projection,uniadapter}-{0,1,2}
