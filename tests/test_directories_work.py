"""Packing shards in parts, in processes and with ray gives the same folder; what was interrupted goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import wcompress
from tests.folders import FAST, contents, make_model, tensors_of
from tests.test_directories import Cli, refusal
from wcompress.directories import processes, work
from wcompress.directories.index import read_index
from wcompress.errors import ArchiveError, OptionError, OutputError, WCompressError

KILLED = """
import os, signal, sys, wcompress
def progress(done, total, figures):
    if done / total > float(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
wcompress.pack(sys.argv[1], effort=1, threads=1, device="cpu", progress=progress)
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four shards, and the folder that one pack makes of it."""
    folder = tmp_path_factory.mktemp("once")
    wcompress.pack(make_model(folder / "model", "bin", 4), **FAST)
    return folder


@pytest.fixture
def model(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def killed_once(once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Path(shutil.copytree(once / "model", tmp_path_factory.mktemp("killed") / "model"))
    done = subprocess.run([sys.executable, "-c", KILLED, model, "0.8"], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "model.wcz.part"]
    return model.parent


@pytest.fixture
def killed(killed_once: Path, model: Path) -> Path:
    """The folder in which a pack of the model was killed, in the last of four shards."""
    return Path(shutil.copytree(killed_once / "model.wcz.part", f"{model}.wcz.part"))


def packed_at(work_folder: Path) -> dict[str, int]:
    """When each archive in a work folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in (work_folder / "folder").glob("*.wcz")}


def test_a_killed_pack_goes_on_where_it_was(cli: Cli, killed: Path, once: Path, tmp_path: Path) -> None:
    before = packed_at(killed)
    assert len(before) == 3
    code, out, err = cli("pack", "model", "--effort", 1)
    assert (code, out) == (2, "")
    assert "--resume" in err
    assert packed_at(killed) == before
    code, _, err = cli("inspect", killed)
    assert code == 2
    assert "not done" in err
    seen: list[str] = []
    real = work.pack_shard

    def watched(job: Any, *rest: Any) -> Any:
        seen.append(job.name)
        return real(job, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "pack_shard", watched)
        code, out, _ = cli("pack", "model", "--effort", 1, "--threads", 1, "--device", "cpu", "--resume", "--json")
    assert code == 0
    assert seen == ["pytorch_model-00004-of-00004.bin"]
    assert contents(tmp_path / "model.wcz") == contents(once / "model.wcz")
    resumed, whole = json.loads(out), wcompress.inspect(once / "model.wcz").to_json()
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["max_abs_error"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.wcz"]


def test_what_changed_since_is_packed_again(model: Path, killed: Path, tmp_path: Path) -> None:
    before = packed_at(killed)
    assert len(before) == 3
    changed = {name: tensor + 1 for name, tensor in tensors_of(4).items() if name.startswith("layers.0.")}
    torch.save(changed, model / "pytorch_model-00001-of-00004.bin")
    (killed / "folder" / "pytorch_model-00002-of-00004.bin.wcz").write_bytes(b"cut off")
    wcompress.pack(model, resume=True, **FAST)
    assert torch.allclose(wcompress.load(tmp_path / "model.wcz")["layers.0.bias"], changed["layers.0.bias"], atol=0.1)
    fresh = wcompress.pack(model, tmp_path / "fresh.wcz", **FAST)
    assert contents(tmp_path / "model.wcz") == contents(tmp_path / "fresh.wcz")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model.wcz").glob("*.wcz")}
    assert [name for name in before if after[name] == before[name]] == ["pytorch_model-00003-of-00004.bin.wcz"]
    assert len(fresh.warnings) == 0


@pytest.mark.usefixtures("killed")
def test_other_options_use_nothing_of_an_interrupted_pack(model: Path, tmp_path: Path) -> None:
    wcompress.pack(model, resume=True, method="lossless", threads=1, device="cpu")
    assert {wcompress.inspect(path).method for path in (tmp_path / "model.wcz").glob("*.wcz")} == {"lossless"}


def test_force_starts_anew(model: Path, killed: Path, once: Path, tmp_path: Path) -> None:
    (killed / "folder" / "old.wcz").write_bytes(b"x")
    wcompress.pack(model, force=True, **FAST)
    assert contents(tmp_path / "model.wcz") == contents(once / "model.wcz")
    (tmp_path / "other.wcz.part").mkdir()
    (tmp_path / "other.wcz.part" / "mine.txt").write_text("mine")
    refusal(OutputError, lambda: wcompress.pack(model, tmp_path / "other.wcz", force=True, **FAST))
    assert (tmp_path / "other.wcz.part" / "mine.txt").exists()


def test_an_interrupted_pack_says_how_to_go_on(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = work.pack_shard

    def interrupted(job: Any, *rest: Any) -> Any:
        if "00002" in job.name:
            raise KeyboardInterrupt
        return real(job, *rest)

    monkeypatch.setattr(work, "pack_shard", interrupted)
    code, out, err = cli("pack", model, "--effort", 1, "--threads", 1)
    assert (code, out) == (130, "")
    assert "model.wcz.part" in err.splitlines()[0]
    assert "--resume" in err.splitlines()[0]


# --- in parts -------------------------------------------------------------------------------------------------------


def test_parts_on_several_machines_join_to_the_same_folder(cli: Cli, model: Path, once: Path, tmp_path: Path) -> None:
    fast = ["--effort", 1, "--threads", 1, "--device", "cpu"]
    for part in (3, 1):  # of which each machine has a file system of its own
        (tmp_path / f"machine{part}").mkdir()
        out = tmp_path / f"machine{part}" / "out.wcz"
        code, text, _ = cli("pack", model, "-o", out, "--shard", f"{part}/3", *fast)
        assert code == 0
        assert "wcompress join" in text
        assert not out.exists()
        shutil.copytree(f"{out}.part", tmp_path / "out.wcz.part", dirs_exist_ok=True)
    code, text, err = cli("join", "out.wcz")
    assert (code, text) == (2, "")
    assert err.count("\n") == 1
    assert "'pytorch_model-00002-of-00004.bin' missing" in err
    assert "--shard 2/3" in err
    code, text, _ = cli("pack", model, "-o", "out.wcz", "--shard", "2/3", *fast, "--json")
    assert code == 0
    assert len(json.loads(text)["shards"]) == 1
    code, text, _ = cli("join", "out.wcz", "--json")
    assert code == 0
    document = json.loads(text)
    assert len(document["shards"]) == 4
    assert contents(tmp_path / "out.wcz") == contents(once / "model.wcz")
    whole = json.loads(cli("inspect", once / "model.wcz", "--json")[1])
    for key in ("archive_bytes", "n_params", "ratio", "sha256", "sections"):
        assert document[key] == whole[key]
    assert document["sqnr_db"] == pytest.approx(whole["sqnr_db"], abs=0.002)
    code, _, err = cli("join", "out.wcz")
    assert code == 2
    assert "whole already" in err


def test_parts_of_other_models_or_options_do_not_join(cli: Cli, model: Path, tmp_path: Path) -> None:
    def pack(part: str, **options: Any) -> None:
        wcompress.pack(model, tmp_path / "out.wcz", shard=part, **{**FAST, **options})

    pack("1/2")
    refusal(OutputError, lambda: pack("2/2", effort=2))
    refusal(OutputError, lambda: pack("2/4"))
    pack("2/2")
    records = tmp_path / "out.wcz.part" / "records"
    record = records / "pytorch_model-00002-of-00004.bin.json"
    whole = record.read_text()
    record.write_text(whole.replace(read_index_options(record), "0" * 64))
    refusal(ArchiveError, lambda: wcompress.join_folder(tmp_path / "out.wcz"))
    record.write_text(whole)
    archive = tmp_path / "out.wcz.part" / "folder" / "pytorch_model-00003-of-00004.bin.wcz"
    spare = archive.read_bytes()
    archive.write_bytes(spare[:-1])
    code, _, err = cli("join", "out.wcz")
    assert code == 4
    assert err.count("\n") == 1
    archive.write_bytes(spare)
    side = tmp_path / "out.wcz.part" / "folder" / "config.json"
    side.unlink()
    assert "config.json" in refusal(OutputError, lambda: wcompress.join_folder(tmp_path / "out.wcz"))
    pack("1/2")
    assert len(wcompress.join_folder(tmp_path / "out.wcz.part").shards) == 4  # either name will do
    assert "no shards" in refusal(OutputError, lambda: wcompress.join_folder(tmp_path / "none.wcz"))


def read_index_options(record: Path) -> str:
    return str(json.loads(record.read_text())["entry"]["options"])


SBATCH = """#!/usr/bin/env bash
n=1
for argument in "$@"; do case "$argument" in
    --array=1-*) n=${argument#--array=1-};;
    --wrap=*) wrap=${argument#--wrap=};;
esac; done
for number in $(seq "$n"); do SLURM_ARRAY_TASK_ID=$number bash -c "$wrap" >> log 2>&1 || exit 1; done
echo 1
"""


def test_the_slurm_example_packs_and_joins(model: Path, once: Path, tmp_path: Path) -> None:
    fast = 'case "$1" in pack) set -- "$@" --effort 1 --threads 1;; esac'
    programs = {"sbatch": SBATCH, "wcompress": f'#!/bin/sh\n{fast}\nexec {sys.executable} -m wcompress "$@"\n'}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    script = Path(__file__).parent.parent / "examples" / "slurm_array.sh"
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", script, model, "out.wcz", "2"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert len(script.read_text().splitlines()) < 40
    assert contents(tmp_path / "out.wcz") == contents(once / "model.wcz")


# --- engines --------------------------------------------------------------------------------------------------------


def children() -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "directories.worker" in line]


def test_processes_give_the_same_folder_though_a_worker_is_killed(
    model: Path, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('code of the current folder was run')")
    victims: list[int] = []
    shares: list[float] = []

    def progress(done: int, total: int, figures: Mapping[str, float | str]) -> None:
        shares.append(done / total)
        if not victims and "shards done" in str(figures.get("stage")):
            victims.append(children()[-1])
            os.kill(victims[0], signal.SIGKILL)

    result = wcompress.pack(model, engine="processes", workers=2, progress=progress, **FAST)
    assert victims
    assert contents(tmp_path / "model.wcz") == contents(once / "model.wcz")
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert result.n_tensors == 12
    assert children() == []


def test_a_shard_that_ends_every_worker_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = processes.subprocess.Popen

    def failing(_command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", "pass"], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", failing)
    line = refusal(WCompressError, lambda: wcompress.pack(model, engine="processes", workers=1, **FAST))
    assert "pytorch_model-00001" in line
    assert "3 worker processes" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_in_a_worker_is_the_error(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "safetensors", 2)
    code, out, err = cli("pack", model, "--engine", "processes", "--workers", 2, "--effort", 1, "--sqnr", 119)
    assert (code, out) == (1, "")
    assert err.startswith("wcompress: shard 'model-0000")
    assert err.count("\n") == 1


def test_without_ray_there_is_one_line(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = cli("pack", model, "--engine", "ray", "--effort", 1)
    assert (code, out) == (2, "")
    assert "wcompress[ray]" in err
    assert err.count("\n") == 1
    assert refusal(OptionError, lambda: wcompress.pack(model, engine="ray", shard="1/2", **FAST))


def test_ray_gives_the_same_folder(model: Path, once: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = "import sys, wcompress; wcompress.pack(sys.argv[1], engine='ray', effort=1, threads=1, device='cpu')"
    subprocess.run([sys.executable, "-c", code, model], check=True)  # ray warns of much, which is not ours
    assert contents(tmp_path / "model.wcz") == contents(once / "model.wcz")


def test_the_same_archive_whatever_the_order_of_metadata(tmp_path: Path) -> None:
    # The library that reads safetensors gives metadata in another order in each process.
    (tmp_path / "m").mkdir()
    metadata = {f"key {number}": "value" for number in range(8)}
    save_file({"w": torch.ones(8, 8)}, tmp_path / "m" / "model.safetensors", metadata=metadata)
    wcompress.pack(tmp_path / "m", method="lossless", threads=1, device="cpu")
    wcompress.pack(tmp_path / "m", tmp_path / "n.wcz", method="lossless", threads=1, device="cpu", engine="processes")
    assert contents(tmp_path / "m.wcz") == contents(tmp_path / "n.wcz")
    assert read_index(tmp_path / "m.wcz").shards[0].name == "model.safetensors"
