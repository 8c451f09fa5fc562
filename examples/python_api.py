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
        print(f"ratio {result.ratio:.2f}x, every byte of the file counted")

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
