"""The example tasks for other people's models keep what tiny models of their kind compute."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import nn

import wcompress
from tests.folders import contents
from wcompress.calibrate import packing
from wcompress.codec.results import TaskScore
from wcompress.evaluate import evaluate
from wcompress.tasks import load_task

EXAMPLES = Path(__file__).parent.parent / "examples"
FAST: dict[str, Any] = {"effort": 1, "threads": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def quick_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(packing, "DAMPINGS", (packing.DAMPING,))


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Some of Python's manual."""
    found = re.findall(r"[A-Z][^.:|*`=]{30,90}\.", "\n".join(topics[name] for name in sorted(topics)))
    return [" ".join(sentence.split()) for sentence in found][:320]


def save(model: Any, sentences: list[str], folder: Path) -> None:
    """A model with a tokenizer, as their library saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    model.save_pretrained(folder)


def packed(name: str, source: Path, bits: float) -> tuple[TaskScore, TaskScore]:
    """An example's scores of a model packed to so many bits a weight: by the weights alone, and calibrated."""
    found = []
    if source.is_dir():  # whose other files and index count
        weights = source / "model.safetensors"
        beside = 1000 + sum(path.stat().st_size for path in source.rglob("*") if path.is_file() and path != weights)
        bits += 8 * beside / (weights.stat().st_size / 4)
    task = load_task(str(EXAMPLES / f"{name}_task.py"))
    for way in ("off", "on"):
        result = wcompress.pack(source, f"{way}.wcz", task=task, calibrate=way, bits_per_weight=bits, **FAST)
        assert result.task is not None
        found.append(result.task)
    assert [score.chosen for score in found] == ["data-free", "calibrated"]
    assert evaluate("on.wcz", task).score == pytest.approx(found[1].score_after)
    return found[0], found[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> Path:
    """A folder with a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXT", "text.txt")
    Path("text.txt").write_text("\n".join(sentences))
    return tmp_path


def test_a_sentence_transformer_keeps_its_embeddings(
    place: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]
) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    save(BertModel(BertConfig(vocab_size=200, max_position_embeddings=128, **sizes)), sentences, place / "bert")
    (place / "bert" / "1_Pooling").mkdir()
    (place / "bert" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    monkeypatch.setenv("ORIGINAL", "bert")
    before, after = packed("sentence", Path("bert"), 3)
    assert before.unit == after.unit == "% cosine"
    assert after.score_before == pytest.approx(100)
    assert after.score_after > 99
    assert after.drop < before.drop / 2
    wcompress.unpack("on.wcz", "back")
    assert contents(place / "back").keys() == contents(place / "bert").keys()


def test_a_language_model_keeps_its_loss(place: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, tie_word_embeddings=True, **sizes))
    save(model, sentences, place / "llama")
    tokens = AutoTokenizer.from_pretrained("llama")(" ".join(sentences), return_tensors="pt")["input_ids"][0]
    windows = tokens.unfold(0, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        some = windows[torch.randint(len(windows), (16,))]
        scores = model(some).logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(scores, some[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained("llama")
    monkeypatch.setenv("ORIGINAL", "llama")
    before, after = packed("language", Path("llama"), 3)
    assert (after.unit, after.higher_is_better) == ("nats", False)
    assert after.drop < before.drop / 2


def test_an_image_classifier_keeps_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def network() -> nn.Module:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 4, 4), nn.ReLU())
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 50))

    module = types.ModuleType("my_networks")
    module.network = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_networks", module)
    torch.save(network().state_dict(), "net.pth")
    monkeypatch.setenv("NETWORK", "my_networks:network")
    monkeypatch.setenv("ORIGINAL", "net.pth")
    monkeypatch.delenv("IMAGES", raising=False)
    before, after = packed("image", Path("net.pth"), 2)
    assert after.score_before == 100
    assert after.drop < before.drop / 2


@pytest.mark.parametrize("name", ["sentence", "language", "image"])
def test_the_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}_task.py").read_text().splitlines()) < 40
