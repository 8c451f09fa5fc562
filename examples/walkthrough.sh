#!/usr/bin/env bash
# The whole job on the command line: train, pack, look inside, restore, check, score.
#
#   bash examples/walkthrough.sh          works in a temporary folder; needs `wcompress` and scikit-learn
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export WCOMPRESS_OFFLINE=1 # the embedded digits do; without this line MNIST would be downloaded

echo "== A model to pack: 185,300 weights"
wcompress train mnist-fnn -o fnn.pt

echo "== Pack it. The score before and after comes with --task"
wcompress pack fnn.pt --task mnist-fnn --effort "${EFFORT:-3}"

echo "== Where do the bytes go?"
wcompress inspect fnn.pt.wcz

echo "== Is the archive whole, and how far is it from the model?"
wcompress verify fnn.pt.wcz --against fnn.pt

echo "== Give the model back, all of it or a part, as safetensors or .pt"
wcompress unpack fnn.pt.wcz
wcompress unpack fnn.pt.wcz -o first-layer.pt --only '^fc1\.'

echo "== What the restored file is worth"
wcompress eval fnn.safetensors --task mnist-fnn

echo "== For scripts: one JSON object on stdout"
wcompress inspect fnn.pt.wcz --json | python3 -c 'import json, sys; print("ratio", round(json.load(sys.stdin)["ratio"], 3))'

echo "== Damage is noticed"
head -c 1000 fnn.pt.wcz > broken.wcz
wcompress unpack broken.wcz -o never.pt || echo "exit code $?"
EOF_MARK
sed -i '/^EOF_MARK$/d' examples/walkthrough.sh
cat > examples/python_api.py <<'E'
"""wcompress from Python: pack a state_dict, load it back, open one tensor.

    python examples/python_api.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import wcompress


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.wcz"

        # A path to a checkpoint works as well as a dict of tensors.
        result = wcompress.pack(model.state_dict(), archive, effort=1)
        print(f"{result.original_bytes:,} B of weights, {result.archive_bytes:,} B of archive")
        print(f"ratio {result.ratio:.2f}x with every byte counted, {result.latent_ratio:.1f}x as the paper counts")

        # Like safetensors.torch.load_file: name -> tensor.
        model.load_state_dict(wcompress.load(archive))

        # One tensor, without decoding the rest.
        with wcompress.open(archive) as opened:
            print(opened.keys())
            print(opened.get_tensor("2.weight").shape)

        # Is it whole, and how far from the original?
        print(wcompress.verify(archive).ok)

        # Damage and misuse raise exceptions of one family.
        archive.write_bytes(archive.read_bytes()[:-1])
        try:
            wcompress.load(archive)
        except wcompress.WCompressError as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
