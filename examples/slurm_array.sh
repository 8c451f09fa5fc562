#!/usr/bin/env bash
# Pack a model folder on many machines at once with Slurm: an array of tasks packs the shards, a last job joins them.
#
#   bash examples/slurm_array.sh MODEL OUTPUT.wcz [TASKS]      both on a file system that all machines share
#
# Each task packs every TASKS-th shard, so there can be no more tasks than shards. A task that fails or is lost can be
# submitted again: `join` names what is missing, and what is done is not done again. The output is the same as that of
# `wcompress pack MODEL -o OUTPUT.wcz`.
set -euo pipefail

model=$(realpath "$1") output=$(realpath "$2") tasks=${3:-4}

array=$(sbatch --parsable --job-name=wcompress --array="1-$tasks" --cpus-per-task=8 --mem=32G --time=04:00:00 \
    --wrap="wcompress pack '$model' -o '$output' --shard \$SLURM_ARRAY_TASK_ID/$tasks --device cpu --threads 8")
sbatch --job-name=wcompress-join --dependency="afterok:$array" --time=01:00:00 --wrap="wcompress join '$output'"
