#!/usr/bin/env bash
# One run of the README's comparison of mining and batch sizes, at 96,000 images seen; `lossopt evaluate RUN` then
# measures its best epoch on the evaluation alphabets.
#
#     bash scripts/omniglot_mining.sh batch64|batch128|batch512|batch4096|whole-set SEED [any key of lossopt train ...]
set -euo pipefail
cd "$(dirname "$0")/.."
variant=$1 seed=$2
shift 2

config=configs/omniglot_siamese.yaml
size=128
case $variant in
  whole-set) config=configs/omniglot_whole_set.yaml ;;
  batch64 | batch128 | batch512 | batch4096) size=${variant#batch} ;;
  *) echo "omniglot_mining.sh: $variant is none of batch64, batch128, batch512, batch4096, whole-set" >&2; exit 2 ;;
esac
steps=$((96000 / size))

args=(--data.init_args.classes_per_batch $((size / 4)) --data.init_args.batches_per_epoch $(((steps + 1) / 2)))
args+=(--trainer.max_epochs 2 --model.init_args.lr_scheduler.init_args.warmup_steps $((steps / 15 + 1)))
# the learning rate grows with the root of the batch, as is usual with Adam
args+=(--model.init_args.optimizer.init_args.lr "$(awk "BEGIN { printf \"%.5f\", 0.002 * sqrt($size / 128) }")")
args+=(--trainer.log_every_n_steps 25 --retrieval.test false)
if [ "$variant" = whole-set ]; then
  mining=--data.init_args.mining.init_args
  args+=($mining.warmup_steps 94 $mining.every_n_steps 188)
else
  args+=(--data.init_args.group_classes 0) # random batches: what is compared is what mining makes of them
fi
if [ "$size" -gt 128 ]; then
  args+=(--model.init_args.chunk_size 128)
fi
exec "${PYTHON:-python}" -m lossopt.cli train --config "$config" --seed "$seed" --name "$variant" "${args[@]}" "$@"
