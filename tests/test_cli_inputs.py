"""Several inputs, `-o -`, suggestions, completion, errors as JSON, and the verdict."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import wcompress
from wcompress.cli import _COMMANDS
from wcompress.cli.verdict import verdict
from wcompress.codec.results import PackResult, TaskScore
from wcompress.fidelity import Worst

FAST = ["--effort", "1", "--threads", "1"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        torch.save({f"{name}.w": torch.randn(40, 50, generator=generator)}, tmp_path / f"{name}.pt")
    return ["a.pt", "b.pt"]


def wcompress_process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "wcompress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_several_models_go_to_their_own_archives(cli: Run, models: list[str], tmp_path: Path) -> None:
    code, out, err = cli("pack", *models, *FAST)
    assert (code, err) == (0, "")
    assert out.count("smaller.") == 2
    (tmp_path / "out").mkdir()
    code, out, _ = cli("unpack", "a.pt.wcz", "b.pt.wcz", "-o", "out", "--json")
    assert code == 0
    results = json.loads(out)["results"]
    assert [result["output"] for result in results] == ["out/a.safetensors", "out/b.safetensors"]
    for command in ("inspect", "verify"):
        code, out, _ = cli(command, "a.pt.wcz", "b.pt.wcz", "--json")
        assert code == 0
        assert [r["sha256"] for r in json.loads(out)["results"]] == [r["sha256"] for r in results]
        code, out, _ = cli(command, "a.pt.wcz", "b.pt.wcz")
        assert code == 0
        assert "a.pt.wcz" in out
        assert "b.pt.wcz" in out


def test_one_input_gives_one_object(cli: Run, models: list[str]) -> None:
    code, out, _ = cli("pack", models[0], *FAST, "--json")
    assert code == 0
    assert json.loads(out)["archive"] == "a.pt.wcz"


def test_one_failing_input_does_not_stop_the_others(cli: Run, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("just text\n")
    code, out, err = cli("pack", "missing.pt", "text.pt", *models, *FAST, "--json")
    assert code == 3
    results = json.loads(out)["results"]
    assert [(r.get("input"), r.get("code")) for r in results] == [
        ("missing.pt", 2),
        ("text.pt", 3),
        (None, None),
        (None, None),
    ]
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["missing.pt", "text.pt"]
    damaged = (tmp_path / "a.pt.wcz").read_bytes()[:-1]
    (tmp_path / "a.pt.wcz").write_bytes(damaged)
    for command in ("verify", "inspect", "unpack"):
        code, out, err = cli(command, "a.pt.wcz", "b.pt.wcz")
        assert code == 4
        assert "b.pt.wcz" in out
        assert err.startswith("wcompress: a.pt.wcz")
    documents = json.loads(cli("verify", "a.pt.wcz", "b.pt.wcz", "--json")[1])["results"]
    assert [document["ok"] for document in documents] == [False, True]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "a.pt", "b.pt", "-o", "one.wcz"],
        ["pack", "a.pt", "b.pt", "-o", "-"],
        ["pack", "a.pt", "a.pt"],
        ["pack", "a.pt", "sub/a.pt", "-o", "out"],
        ["unpack", "a.pt.wcz", "a.pth.wcz"],
        ["verify", "a.pt.wcz", "b.pt.wcz", "--against", "a.pt"],
        ["pack", "a.pt", "-o", "-", "--json"],
        ["unpack", "a.pt.wcz", "-o", "-", "--json"],
        ["train", "mnist-fnn", "-o", "-", "--json"],
        ["demo", "-o", "-"],
        ["report", "a.pt", "--task", "mnist-fnn", "-o", "-"],
        ["reproduce", "-o", "-"],
        ["pack", "a.pt", "-o", "-", "--resume", "--refine", "on", "--task", "mnist-fnn"],
    ],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(
    cli: Run, models: list[str], tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "out").mkdir()
    assert len(models) == 2
    before = sorted(tmp_path.rglob("*"))
    code, out, err = cli(*arguments)
    assert code == 2
    if "--json" in arguments:
        assert json.loads(out) == {"error": err.removeprefix("wcompress: ").strip(), "code": 2}
    else:
        assert out == ""
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_standard_output_takes_archive_and_model(models: list[str], tmp_path: Path) -> None:
    packed = wcompress_process("pack", models[0], "-o", "-", *FAST, cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert "smaller" in packed.stderr.decode()
    (tmp_path / "piped.wcz").write_bytes(packed.stdout)
    file = wcompress_process("pack", models[0], "-o", "file.wcz", *FAST, cwd=tmp_path)
    assert file.returncode == 0, file.stderr
    assert packed.stdout == (tmp_path / "file.wcz").read_bytes()
    restored = wcompress_process("unpack", "piped.wcz", "-o", "-", "--format", "pt", cwd=tmp_path)
    assert restored.returncode == 0, restored.stderr
    (tmp_path / "restored.pt").write_bytes(restored.stdout)
    expected = wcompress.load(tmp_path / "file.wcz")
    assert torch.equal(torch.load(tmp_path / "restored.pt", weights_only=True)["a.w"], expected["a.w"])
    assert not (tmp_path / "-").exists()


def test_standard_output_takes_a_trained_model(tmp_path: Path) -> None:
    trained = wcompress_process("train", "mnist-fnn", "-o", "-", "--epochs", "1", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "185,300" in trained.stderr.decode()
    (tmp_path / "m.pt").write_bytes(trained.stdout)
    assert sum(t.numel() for t in torch.load(tmp_path / "m.pt", weights_only=True).values()) == 185_300


def test_a_failure_writes_nothing_to_standard_output(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("just text\n")
    failed = wcompress_process("pack", "text.pt", "-o", "-", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (3, b"")


def on_terminal(*arguments: str, cwd: Path, columns: int = 60) -> tuple[int, str]:
    """Exit code and what a terminal shows, of stdout and stderr together."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "wcompress", *arguments], stdout=follower, stderr=follower, cwd=cwd, env=environment
    )
    os.close(follower)
    shown = bytearray()
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    return process.wait(), shown.decode()


def test_a_terminal_is_spared_binary(models: list[str], tmp_path: Path) -> None:
    code, shown = on_terminal("pack", models[0], "-o", "-", *FAST, cwd=tmp_path)
    assert code == 2
    assert "terminal" in shown
    assert "\x89WCZ" not in shown


def test_a_terminal_shows_the_bar_and_the_result(models: list[str], tmp_path: Path) -> None:
    code, shown = on_terminal("pack", models[0], *FAST, cwd=tmp_path)
    assert code == 0
    assert "━" in shown
    assert "smaller." in shown
    assert "e+0" not in shown


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("pakc", "pack"), ("unpak", "unpack"), ("insepct", "inspect"), ("PACK", "pack"), ("verfy", "verify")],
)
def test_unknown_commands_are_suggested(cli: Run, wrong: str, right: str) -> None:
    code, out, err = cli(wrong)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "Did you mean" in err
    assert f"'{right}'" in err


def test_unknown_words_list_the_commands_and_files_the_command_for_them(cli: Run, models: list[str]) -> None:
    code, _, err = cli("zzzz")
    assert code == 2
    assert all(name in err for name in _COMMANDS)
    code, _, err = cli(models[0])
    assert code == 2
    assert "wcompress pack a.pt" in err


def test_unknown_options_are_suggested(cli: Run) -> None:
    code, _, err = cli("pack", "m.pt", "--efort", "3")
    assert code == 2
    assert "--effort" in err


COMPLETE = (
    "import sys\nfrom wcompress.cli import main\ntry: main()\n"
    "finally: print({'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
)


def completed(words: str) -> list[str]:
    environment = {
        **os.environ,
        "_WCOMPRESS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run([sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    return [line.split(",", 1)[-1] for line in done.stdout.splitlines()]


def test_completion_knows_commands_options_and_values() -> None:
    assert completed("wcompress ") == list(_COMMANDS)
    assert completed("wcompress un") == ["unpack"]
    assert "--max-drop" in completed("wcompress pack --m")
    assert "lossless" in completed("wcompress pack --method l")


def test_completion_is_quick() -> None:
    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    # Time on the processor, which does not depend on what else runs.
    resource = pytest.importorskip("resource")
    before = used()
    for _ in range(3):
        completed("wcompress pa")
    assert (used() - before) / 3 < 0.6  # 0.1 s on an idle core


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_both_ways_give_the_same_completion_script(cli: Run, shell: str) -> None:
    code, script, err = cli("completion", shell)
    assert (code, err) == (0, "")
    assert f"_WCOMPRESS_COMPLETE={shell}_complete" in script
    environment = {**os.environ, "_WCOMPRESS_COMPLETE": f"{shell}_source"}
    assert wcompress_process(env=environment).stdout.decode().rstrip() + "\n" == script
    assert json.loads(cli("completion", shell, "--json")[1])["script"] == script


def test_the_script_completes_in_bash(tmp_path: Path) -> None:
    # As bash does it: the words are set, the registered function is called, its answer is in COMPREPLY.
    (tmp_path / "wcompress").write_text(f'#!/bin/sh\nexec {sys.executable} -m wcompress "$@"\n')
    (tmp_path / "wcompress").chmod(0o755)
    lines = (
        'eval "$(wcompress completion bash)"; complete -p wcompress; COMP_WORDS=(wcompress insp); COMP_CWORD=1;'
        ' _wcompress_completion wcompress; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", lines], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "inspect"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["pack", "missing.pt"], 2), (["inspect", "text.wcz"], 4), (["pack", "text.wcz"], 3), (["pakc"], 2)],
)
def test_errors_are_one_json_object_too(cli: Run, tmp_path: Path, arguments: list[str], code: int) -> None:
    (tmp_path / "text.wcz").write_text("just text\n")
    got, out, err = cli(*arguments, "--json")
    assert got == code
    assert json.loads(out) == {"error": err.removeprefix("wcompress: ").rstrip("\n"), "code": code}


def test_damage_is_one_json_object_of_verify(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "text.wcz").write_text("just text\n")
    code, out, _ = cli("verify", "text.wcz", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["code"]) == (4, False, 4)
    assert document["errors"] == [document["error"]]


def packed(**changes: Any) -> PackResult:
    figures: dict[str, Any] = {
        "archive": "m.pt.wcz",
        "source": "m.pt",
        "method": "vae",
        "n_params": 1000,
        "n_tensors": 2,
        "original_bytes": 4000,
        "archive_bytes": 440,
        "n_latents": None,
        "sections": {"symbols": 440},
        "sqnr_db": 22.04,
        "sha256": "",
        "max_abs_error": 0.1,
    }
    return PackResult(**{**figures, **changes})


WORST = Worst("fc2.weight", 19.0, 11.04, "fc1.weight")


@pytest.mark.parametrize(
    ("result", "options", "text"),
    [
        (packed(), {}, "9.09x smaller. Lossy: SQNR 22.0 dB over all weights.\nRestore with: wcompress unpack m.pt.wcz"),
        (
            packed(worst=WORST),
            {"restorable": False},
            "9.09x smaller. Lossy: every tensor keeps at least 19.0 dB (fc2.weight), every row at least 11.0 dB"
            " (fc1.weight).",
        ),
        (
            packed(worst=replace(WORST, row_tensor="fc2.weight")),
            {"restorable": False},
            "9.09x smaller. Lossy: every tensor keeps at least 19.0 dB (fc2.weight), every row at least 11.0 dB.",
        ),
        (
            packed(worst=Worst("norm.bias", 37.29)),
            {"restorable": False},
            "9.09x smaller. Lossy: every tensor keeps at least 37.2 dB (norm.bias).",
        ),
        (
            packed(sqnr_db=None, max_abs_error=0.0, archive_bytes=3000, archive="a b.wcz"),
            {},
            "1.33x smaller. Lossless: every value is kept exactly.\nRestore with: wcompress unpack 'a b.wcz'",
        ),
        (packed(sqnr_db=None), {"restorable": False}, "9.09x smaller. Lossy."),
        (
            packed(archive_bytes=8000, method="paper", sections={"decoder": 7000}),
            {"restorable": False},
            "Not smaller: the archive is 2.00x the size of the model: the VAE's decoder takes 7,000 of its 8,000 bytes."
            " Lossy: SQNR 22.0 dB over all weights.",
        ),
        (
            packed(task=TaskScore("digits", "toy", 98.0, 97.5), dry_run=True),
            {},
            "9.09x smaller. Lossy: SQNR 22.0 dB over all weights."
            " digits scored 98.00 % before and 97.50 % after on toy."
            " Nothing was written.",
        ),
        (
            packed(task=TaskScore("words", "toy", 3.0, 3.1, unit="nats"), dry_run=True),
            {},
            "9.09x smaller. Lossy: SQNR 22.0 dB over all weights."
            " words scored 3.00 nats before and 3.10 nats after on toy."
            " Nothing was written.",
        ),
    ],
)
def test_verdict(result: PackResult, options: dict[str, Any], text: str) -> None:
    assert verdict(result, **options) == text


def test_lossless_and_lossy_packs_say_so(cli: Run, models: list[str]) -> None:
    assert "Lossy: " in cli("pack", models[0], *FAST)[1]
    assert "Lossless: every value is kept exactly." in cli("pack", models[1], *FAST, "--method", "lossless")[1]


def test_pack_inspect_and_verify_name_the_worst_tensor_and_row(cli: Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(64, 64, generator=generator) for _ in range(2))
    second[:8] *= 0.2  # rows that keep less
    torch.save({"first": first, "second": second}, tmp_path / "m.pt")
    code, out, _ = cli("pack", "m.pt", *FAST, "--json")
    worst = json.loads(out)["worst"]
    assert code == 0
    assert worst["row_tensor"] == "second"
    summary = " ".join(cli("pack", "m.pt", *FAST, "-f")[1].split())
    assert f"({worst['tensor']}), every row at least " in summary
    for command in (["inspect", "m.pt.wcz"], ["verify", "m.pt.wcz", "--against", "m.pt"]):
        code, out, _ = cli(*command)
        assert code == 0
        assert re.search(rf"worst tensor +│ +{worst['sqnr_db']:.1f} dB, {worst['tensor']} ", out), out
        assert re.search(rf"worst row +│ +{worst['row_sqnr_db']:.1f} dB, of second ", out), out
    assert cli("pack", "m.pt", *FAST, "-f", "--method", "lossless")[0] == 0
    assert "worst" not in cli("inspect", "m.pt.wcz")[1]
    assert "worst" not in cli("verify", "m.pt.wcz", "--against", "m.pt")[1]


def test_trellis_is_another_name_of_vae(cli: Run, models: list[str], tmp_path: Path) -> None:
    code, out, _ = cli("pack", models[0], *FAST, "--method", "trellis", "--sqnr", "15", "--json")
    assert code == 0
    assert json.loads(out)["method"] == "vae"
    bytes_of = (tmp_path / "a.pt.wcz").read_bytes()
    assert wcompress.PackOptions(method="trellis") == wcompress.PackOptions(method="vae")
    assert wcompress.pack(models[0], "again.wcz", method="trellis", sqnr=15, effort=1).method == "vae"
    assert (tmp_path / "again.wcz").read_bytes() == bytes_of
