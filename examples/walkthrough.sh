#!/usr/bin/env bash
# The whole job on the command line: train, pack, look inside, restore, check, score.
#
#   bash examples/walkthrough.sh          works in a temporary folder; needs `wcompress` and scikit-learn
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export WCOMPRESS_OFFLINE=1 # use the embedded digits; without this line MNIST would be downloaded

echo "== A model to pack: 185,300 weights"
wcompress train mnist-fnn -o fnn.pt

echo "== Pack it. With --task it is scored before and after"
wcompress pack fnn.pt --task mnist-fnn --effort "${EFFORT:-3}"

echo "== Where do the bytes go?"
wcompress inspect fnn.pt.wcz

echo "== Is the archive intact, and how far is it from the model?"
wcompress verify fnn.pt.wcz --against fnn.pt

echo "== Restore the model, whole or in part, as safetensors or .pt"
wcompress unpack fnn.pt.wcz
wcompress unpack fnn.pt.wcz -o first-layer.pt --only '^fc1\.'

echo "== Score the restored file"
wcompress eval fnn.safetensors --task mnist-fnn

echo "== For scripts: one JSON object on stdout"
wcompress inspect fnn.pt.wcz --json | python3 -c 'import json, sys; print("ratio", round(json.load(sys.stdin)["ratio"], 3))'

echo "== Damage is detected"
head -c 1000 fnn.pt.wcz > broken.wcz
wcompress unpack broken.wcz -o never.pt || echo "exit code $?"
