"""An image classifier whose weights are in one file, on crops of photographs. Needs: scikit-learn, pillow

export ORIGINAL=resnet50.pth NETWORK=torchvision.models:resnet50 IMAGES=photos    # a folder of .jpg; by default two
wcompress pack $ORIGINAL --task examples/image_task.py --ratio 6
"""

import os
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import numpy as np
import sklearn
import torch
from PIL import Image

from wcompress.tasks import accuracy, predictions


def crop(photo, rng):  # float32 [3, 224, 224], less ImageNet's mean; as the network was trained
    size = rng.integers(min(photo.size) // 4, min(photo.size) + 1)
    left, top = (rng.integers(0, length - size + 1) for length in photo.size)
    pixels = photo.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + size, top + size))
    return (torch.tensor(np.array(pixels)) - torch.tensor([123.7, 116.3, 103.5])).permute(2, 0, 1) / 57.6


def task():
    original, rng = resolve_name(os.environ["NETWORK"])(), np.random.default_rng(0)
    original.load_state_dict(torch.load(os.environ["ORIGINAL"], weights_only=True))
    folder = Path(os.environ.get("IMAGES", Path(sklearn.__file__).parent / "datasets" / "images"))
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    images = torch.stack([crop(photos[i % len(photos)], rng) for i in range(600)])
    answers = predictions(original, images)  # so that scores tell how many stay the same
    return SimpleNamespace(
        build=resolve_name(os.environ["NETWORK"]),
        calibration=lambda: images[:300].split(25),
        validate=lambda model: accuracy(model, images[300:450], answers[300:450]),
        evaluate=lambda model: accuracy(model, images[450:], answers[450:]),
    )
