"""The command line: exit codes, one-line errors, JSON, and files that appear whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FAST = ["--effort", "1", "--block-size", "64", "--latent-dim", "4", "--hidden", "16", "--threads", "1"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def archive(cli: Run, checkpoint: Path) -> Path:
    assert cli("pack", checkpoint, *FAST)[0] == 0
    return checkpoint.with_name("model.pt.wcz")


def one_line(err: str) -> bool:
    return err.startswith("wcompress: ") and err.count("\n") == 1 and "Traceback" not in err


def test_pack_unpack_inspect_verify(
    cli: Run, archive: Path, checkpoint: Path, tensors: dict[str, torch.Tensor]
) -> None:
    code, out, err = cli("inspect", archive)
    assert (code, err) == (0, "")
    for name in tensors:
        assert name in out
    code, out, _ = cli("verify", archive, "--against", checkpoint)
    assert code == 0
    assert "every checksum holds" in out
    code, out, _ = cli("unpack", archive, "-o", "again.pt", "--format", "pt")
    assert code == 0
    assert list(torch.load("again.pt", weights_only=True)) == list(tensors)


def test_json_is_one_object_and_nothing_else(cli: Run, checkpoint: Path, archive: Path) -> None:
    code, out, _ = cli("pack", checkpoint, *FAST, "-f", "--json")
    packed = json.loads(out)
    assert code == 0
    assert packed["archive_bytes"] == archive.stat().st_size == sum(packed["sections"].values())
    inspected = json.loads(cli("inspect", archive, "--json")[1])
    assert inspected["sha256"] == packed["sha256"]
    verified = json.loads(cli("verify", archive, "--against", checkpoint, "--json")[1])
    assert verified["ok"] is True
    assert set(verified) >= {"ok", "sha256", "sqnr_db", "max_abs_error", "errors"}
    unpacked = json.loads(cli("unpack", archive, "-o", "x.pt", "--json")[1])
    assert unpacked["sha256"] == packed["sha256"]


def test_existing_outputs(cli: Run, checkpoint: Path, archive: Path) -> None:
    before = archive.read_bytes()
    code, out, err = cli("pack", checkpoint, *FAST)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "-f" in err
    assert archive.read_bytes() == before
    assert cli("pack", checkpoint, "-o", checkpoint, "-f", *FAST)[0] == 2
    assert cli("pack", checkpoint, *FAST, "-f")[0] == 0


def test_default_names(cli: Run, archive: Path, tmp_path: Path) -> None:
    code, _, err = cli("unpack", archive)  # complex tensors are in it, which safetensors keeps only in part
    assert code == 0, err
    assert (tmp_path / "model.safetensors").exists()
    code, _, err = cli("unpack", archive, "--format", "pt")
    assert code == 2
    assert "model.pt" in err


@pytest.mark.parametrize("command", ["unpack", "inspect", "verify"])
def test_damage_is_exit_code_4(cli: Run, archive: Path, command: str) -> None:
    whole = archive.read_bytes()
    for damaged in (
        b"",
        whole[:3],
        whole[:-1],
        whole[:100],
        whole[: len(whole) // 2] + b"!" + whole[len(whole) // 2 + 1 :],
    ):
        archive.write_bytes(damaged)
        code, out, err = cli(command, archive)
        assert (code, out) == (4, "")
        assert one_line(err)
        assert str(archive) in err
    assert sorted(path.name for path in archive.parent.iterdir() if path.is_file()) == ["model.pt", "model.pt.wcz"]


def test_verify_json_tells_of_damage(cli: Run, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-1])
    code, out, _ = cli("verify", archive, "--json")
    assert code == 4
    assert json.loads(out)["ok"] is False


def test_verify_against_another_model_is_exit_code_1(cli: Run, archive: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, "other.pt")
    code, _, err = cli("verify", archive, "--against", "other.pt")
    assert code == 1
    assert "not in the archive" in err


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 3), (b"just text\n", 3), (b"GGUF" + bytes(100), 3), (b"version https://git-lfs.github.com/spec/v1\n", 3)],
)
def test_other_files_are_exit_code_3(cli: Run, tmp_path: Path, content: bytes, code: int) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    got, out, err = cli("pack", "model.pt", *FAST)
    assert (got, out) == (code, "")
    assert one_line(err)
    assert not (tmp_path / "model.pt.wcz").exists()


def test_usage_errors_are_exit_code_2_in_one_line(cli: Run, checkpoint: Path, archive: Path) -> None:
    for arguments in (
        ["pack"],
        ["pack", "missing.pt"],
        ["pack", checkpoint, "--effort", "10"],
        ["pack", checkpoint, "--no-such-option"],
        ["pack", checkpoint, "--hidden", "a,b", "-f"],
        ["pack", checkpoint, "-o", "missing/folder/x.wcz"],
        ["pack", checkpoint, "--latent-dim", "0", "-f"],
        ["pack", checkpoint, "--task", "no-such-task", "-f"],
        ["frobnicate"],
        ["inspect", "missing.wcz"],
        ["unpack", archive, "-o", "x.pt", "--only", "("],
        ["unpack", archive, "-o", "/dev/null", "-f"],
        ["eval", checkpoint, "--task", "mnist-fnn"],
        ["eval", checkpoint],
        ["train", "mnist-gnn", "-o", "x.pt"],
        ["train", "mnist-fnn"],
    ):
        code, out, err = cli(*arguments)
        assert (code, out) == (2, ""), arguments
        assert one_line(err), err


def test_what_a_pickle_holds_beside_its_weights(cli: Run) -> None:
    torch.save(
        {
            "net": {"a": torch.ones(4, 4), "b": [torch.zeros(2)]},
            "args": argparse.Namespace(lr=1),
            "opt": {"m": torch.ones(1)},
        },
        "m.pt",
    )
    code, out, err = cli("pack", "m.pt", "--method", "lossless", "--json", "--key", "net")
    assert code == 0
    assert "left out, with tensors that are not the model's: opt" in err
    assert "not part of the model, left out: args" in err
    document = json.loads(out)
    assert document["left_out_tensors"] == ["opt"]
    assert ["'b'" in warning for warning in document["warnings"]] == [True]
    code, _, err = cli("pack", "m.pt", "--method", "lossless", "--strict", "-f", "--key", "net")
    assert code == 3
    assert "argparse.Namespace" in err
    assert err.count("\n") == 1


def test_left_out_is_named(cli: Run) -> None:
    torch.save({"epoch": 3, "optimizer_state_dict": {}, "model_state_dict": {"w": torch.ones(4, 4)}}, "full.pt")
    code, out, err = cli("pack", "full.pt", *FAST, "--json")
    assert code == 0
    assert "optimizer_state_dict" in err
    assert json.loads(out)["left_out"]
    assert "left out" not in cli("pack", "full.pt", *FAST, "-f", "-q")[2]


def test_dry_run(cli: Run, checkpoint: Path) -> None:
    code, out, _ = cli("pack", checkpoint, *FAST, "--dry-run")
    assert code == 0
    assert "would make" in out
    assert not checkpoint.with_name("model.pt.wcz").exists()


def test_train_pack_and_eval(cli: Run) -> None:
    code, out, err = cli("train", "mnist-fnn", "-o", "fnn.pt", "--epochs", "6", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert trained["n_params"] == 185_300
    assert "digits" in trained["dataset"]
    evaluated = json.loads(cli("eval", "fnn.pt", "--task", "mnist-fnn", "--json")[1])
    assert evaluated["score"] == trained["score"] > 80
    assert evaluated["n_examples"] == trained["n_examples"]
    code, out, err = cli("pack", "fnn.pt", "--task", "mnist-fnn", "--hidden", "64", "--effort", "1", "--json")
    assert code == 0, err
    task = json.loads(out)["task"]
    assert task["score_before"] == trained["score"]
    assert task["drop"] == task["score_before"] - task["score_after"]
    restored = json.loads(cli("eval", "fnn.pt.wcz", "--task", "mnist-fnn", "--json")[1])
    assert restored["score"] == task["score_after"]


def test_a_wrong_task_is_one_line(cli: Run) -> None:
    torch.save({"w": torch.ones(4, 4)}, "other.pt")
    code, _, err = cli("eval", "other.pt", "--task", "mnist-cnn")
    assert code == 2
    assert one_line(err)
    assert "do not fit" in err


def test_the_demo_takes_the_papers_four_networks_alone(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(to_json=lambda: {"model": name})

    monkeypatch.setattr("wcompress.report.pipeline.measure_baseline", measure)
    monkeypatch.setattr("wcompress.cli.demo_command.runs_table", lambda *_: None)
    code, out, _ = cli("demo", "--json")
    assert code == 0
    assert [row["model"] for row in json.loads(out)["models"]] == ["mnist-fnn", "mnist-cnn", "mnist-rnn", "mnist-lstm"]


COMMANDS = ["pack", "unpack", "inspect", "verify", "eval", "train", "report", "reproduce", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_the_common_options(cli: Run, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"wcompress {command}" in out.split("Example")[1]
    for option in ("--force", "--quiet", "--verbose", "--json", "--no-progress", "--version"):
        assert option in out
    assert cli(command, "--version")[1].startswith("wcompress ")


def python(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from wcompress.cli import run\n"
        f"for c in {COMMANDS}: run([c, '--help'])\n"
        "run(['--version']); heavy = {'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', heavy, file=sys.stderr)"
    )
    assert "HEAVY set()" in python("-c", code).communicate()[1]


def test_help_is_quick() -> None:
    for arguments in (["--help"], ["--version"]):
        best = min(_cpu_seconds(arguments) for _ in range(3))
        assert best < 0.6  # 0.15 s on an idle core; the rest is for one that others use as well


def _cpu_seconds(arguments: list[str]) -> float:
    # Not the time that passes: how long a busy machine lets a process wait says nothing of the process.
    resource = pytest.importorskip("resource")

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(usage.ru_utime + usage.ru_stime)

    before = used()
    python("-m", "wcompress", *arguments).communicate()
    return used() - before


def test_a_closed_pipe_and_a_full_disk_are_quiet(archive: Path) -> None:
    command = f"{sys.executable} -m wcompress inspect {archive}"
    closed = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert "Traceback" not in closed.stderr
    assert "Exception" not in closed.stderr
    if os.path.exists("/dev/full"):  # noqa: PTH110
        full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
        assert full.returncode == 2
        assert one_line(full.stderr)


def test_progress_only_on_a_terminal(cli: Run, checkpoint: Path) -> None:
    assert cli("pack", checkpoint, *FAST, "-f")[2].count("\n") <= 1  # at most the note that the archive is larger


def test_a_shard_is_kept_as_the_source_is(cli: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(8, 8)}, tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    before = (tmp_path / "model-1.safetensors").read_bytes()
    code, _, err = cli("pack", index, "-o", "model-1.safetensors", "-f", *FAST)
    assert code == 2
    assert one_line(err)
    assert (tmp_path / "model-1.safetensors").read_bytes() == before
    assert cli("pack", index, "-o", "m.wcz", *FAST)[0] == 0


def test_numbers_beyond_all_bounds_are_usage_errors(cli: Run, checkpoint: Path) -> None:
    for option, value in (("--threads", "100000"), ("--threads", "9" * 20), ("--seed", "9" * 25)):
        code, _, err = cli("pack", checkpoint, option, value)
        assert code == 2
        assert one_line(err)
    for place in (".", ""):
        code, _, err = cli("unpack", place)
        assert code == 2
        assert one_line(err)


def test_no_arguments_show_the_help(cli: Run) -> None:
    code, out, err = cli()
    assert code == 2
    assert (out + err).count("\n") > 10


def test_a_task_that_prints_leaves_json_alone(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import torch\n"
        "class Task:\n"
        "    n_examples = 1\n"
        "    def build(self): return torch.nn.Linear(4, 4)\n"
        "    def calibration(self): return []\n"
        "    def validate(self, model): return 50.0\n"
        "    def evaluate(self, model): print('hello'); return 50.0\n"
        "task = Task\n"
    )
    torch.save(torch.nn.Linear(4, 4).state_dict(), "m.pt")
    code, out, err = cli("eval", "m.pt", "--task", "loud.py", "--json")
    assert code == 0, err
    assert json.loads(out)["score"] == 50.0
    assert "hello" in err


def test_names_that_are_no_text_and_names_that_are_markup(cli: Run, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.pt")
    torch.save({"w[v2]": torch.ones(8, 8), "red\x1b[31m": torch.ones(3)}, tmp_path / odd)
    assert cli("pack", tmp_path / odd, "-o", "m.wcz", *FAST)[0] == 0
    code, out, _ = cli("inspect", "m.wcz")
    assert code == 0
    assert "w[v2]" in out
    assert "\x1b" not in out


def test_closed_and_narrow_streams(archive: Path) -> None:
    command = f"{sys.executable} -m wcompress inspect {archive}"
    for line in (f"{command} >&-", f"PYTHONIOENCODING=ascii {command}", f"COLUMNS=20 {command}"):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert "internal error" not in done.stderr
        assert "Traceback" not in done.stderr
