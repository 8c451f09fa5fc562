"""Where torch computes, and with how many threads."""

from __future__ import annotations

import pytest
import torch

from wcompress.device import one_torch_thread, resolve_device, torch_threads
from wcompress.errors import OptionError


def test_training_has_one_thread_whatever_there_is() -> None:
    with torch_threads(3), one_torch_thread():
        assert torch.get_num_threads() == 1


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with torch_threads(None):
        assert torch.get_num_threads() == before


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(OptionError, match="no CUDA"):
        resolve_device("cuda")
    with pytest.raises(OptionError, match="tpu"):
        resolve_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    assert resolve_device("cpu") == "cpu"
