"""A disk that is full: one line that names the output, exit code 2, and nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wcompress
from wcompress.checkpoint.write import write_checkpoint
from wcompress.cli import run
from wcompress.errors import OutputError
from wcompress.files import atomic_output
from wcompress.refine.resume import save_state

resource = pytest.importorskip("resource", reason="no limit on the size of files here")


@contextlib.contextmanager
def no_file_beyond(n_bytes: int) -> Iterator[None]:
    """Writing fails at this size, with "File too large", as it would on a full disk at whatever is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer{n}.weight": torch.randn(64, 64, generator=generator) for n in range(4)}
    torch.save(tensors, folder / "m.pt")
    wcompress.pack(folder / "m.pt", folder / "m.wcz", method="lossless")
    return folder


COMMANDS = {
    "x.wcz": ["pack", "m.pt", "-o", "x.wcz", "--effort", "1", "--threads", "1"],
    "exact.wcz": ["pack", "m.pt", "-o", "exact.wcz", "--method", "lossless"],
    "paper.wcz": ["pack", "m.pt", "-o", "paper.wcz", "--method", "paper", "--effort", "1", "--hidden", "16"],
    "x.pt": ["unpack", "m.wcz", "-o", "x.pt"],
    "x.safetensors": ["unpack", "m.wcz", "-o", "x.safetensors"],
    "trained.pt": ["train", "mnist-fnn", "-o", "trained.pt", "--epochs", "1"],
    "trained.safetensors": ["train", "mnist-fnn", "-o", "trained.safetensors", "--epochs", "1"],
}


@pytest.mark.parametrize("output", COMMANDS)
@pytest.mark.parametrize("n_bytes", [64, 300, 2000])  # numba needs 32 for a lock of its own
def test_commands(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    n_bytes: int,
) -> None:
    if "trained" in output and n_bytes != 300:
        pytest.skip("one size is enough where the same code writes")
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    with no_file_beyond(n_bytes):
        code = run(COMMANDS[output])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err == f"wcompress: {output}: cannot be written (File too large); free space or choose another place\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "m.wcz"]


@pytest.mark.parametrize("format", ["pt", "safetensors"])
@pytest.mark.parametrize("n_tensors", [0, 1, 40])
def test_a_checkpoint_fails_at_every_size_or_is_whole(tmp_path: Path, format: str, n_tensors: int) -> None:
    tensors = {f"layer{n}.weight": torch.full((30, 30), float(n)) for n in range(n_tensors)}
    path = tmp_path / f"x.{format}"
    write_checkpoint(path, tensors, format=format)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for n_bytes in [*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        with (
            no_file_beyond(n_bytes),
            pytest.raises(OutputError, match="too large"),
            atomic_output(path, force=True) as temporary,
        ):
            write_checkpoint(temporary, tensors, format=format)  # type: ignore[arg-type]
        assert path.read_bytes() == whole
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_the_checkpoint_of_a_refinement(tmp_path: Path) -> None:
    path = tmp_path / "model.wcz.refine"
    save_state(path, "key", {"n": torch.ones(3)})
    whole = path.read_bytes()
    with no_file_beyond(700), pytest.raises(OutputError, match=r"model\.wcz\.refine: .*too large"):
        save_state(path, "key", {"n": torch.ones(3000)})
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_while_torch_writes_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def write(self, data: bytes) -> int:  # noqa: ARG002
            raise KeyboardInterrupt

    class Opened:
        def __enter__(self) -> Interrupted:
            return Interrupted()

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(Path, "open", lambda *_: Opened())
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "x.pt", {"w": torch.ones(3)}, format="pt")
