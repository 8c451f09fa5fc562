"""Tests of wcompress.report: every figure in a report can be found again in the files that it speaks of."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wcompress.checkpoint import read_checkpoint
from wcompress.codec.options import PackOptions
from wcompress.errors import OptionError, OutputError
from wcompress.evaluate import evaluate
from wcompress.fidelity import same_bits
from wcompress.report.baselines import BASELINES, GROUP_SIZE, decode, encode, measure_baselines
from wcompress.report.figures import Mark, ratio_against_score
from wcompress.report.pipeline import measure_baseline
from wcompress.report.render import Column, Table, escape_markdown, to_json_text
from wcompress.report.reproduce import Reproduction, reproduce
from wcompress.report.rows import pareto_front
from wcompress.report.sweep import Report, SweepSetting, default_settings, report
from wcompress.tasks import BaselineTask, MnistData, load_embedded

HOSTILE = "<script>alert(1)</script>|$x_$"
TINY = PackOptions(block_size=64, latent_dim=4, hidden=(8,), effort=1, seed=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def short_training() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wcompress.codec.packers.paper._EPOCHS_PER_EFFORT", 12)
        yield


@pytest.fixture(scope="module")
def digits() -> MnistData:
    whole = load_embedded()
    return replace(whole, train_images=whole.train_images[:400], train_labels=whole.train_labels[:400])


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def reproduction(
    tmp_path_factory: pytest.TempPathFactory, digits: MnistData, stages: list[tuple[str, int, int]]
) -> Reproduction:
    def note(done: int, total: int, figures: Mapping[str, float | str]) -> None:
        stages.append((str(figures["stage"]), done, total))

    folder = tmp_path_factory.mktemp("reproduction")
    models = ("mnist-cnn", "mnist-rnn")
    return reproduce(
        folder, data=digits, effort=1, models=models, latent_dims=(8, 64), epochs=1, progress=note, device="cpu"
    )


@dataclass
class TinyTask:
    """Two inputs, two classes; the first weight decides."""

    name: str = HOSTILE
    dataset: str = "made up <b>"
    n_examples: int = 50

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 2))

    def calibration(self) -> Iterator[Tensor]:
        yield torch.zeros(1, 2)

    def validate(self, model: nn.Module) -> float:
        return self.evaluate(model)

    def evaluate(self, model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.n_examples, 2, generator=generator)
        with torch.inference_mode():
            return 100 * float((model(x).argmax(1) == (x[:, 0] > 0)).float().mean())


@pytest.fixture(scope="module")
def tiny_tensors() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: tensor.clone() for name, tensor in TinyTask().build().state_dict().items()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_tensors: dict[str, Tensor]) -> Report:
    folder = tmp_path_factory.mktemp("sweep")
    model = folder / "model <i>&amp;.pt"
    torch.save(tiny_tensors, model)
    settings = [SweepSetting(f"latent {n}", replace(TINY, latent_dim=n)) for n in (4, 2)]
    return report(model, TinyTask(), folder / "out", options=TINY, settings=settings)


def read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path}: holds {constant}")

    document: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return document


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Tags with attributes, and the text outside <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data


def check_self_contained(folder: Path) -> Page:
    page = Page(folder / "report.html")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "a"})
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert sources
    pictures = {path.read_bytes() for path in folder.glob("*.png")}
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) in pictures
    style = (folder / "report.html").read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    return page


# --- reproduce -----------------------------------------------------------------------------------------------------


def test_reproduction_writes_every_file(reproduction: Reproduction) -> None:
    written = {path.name for path in reproduction.files}
    expected = {"report.json", "report.md", "report.html", "table1.csv", "table2.csv", "sweep.csv", "sweep.png"}
    for number in (2, 3, 4, 5):
        expected |= {f"figure{number}.csv", f"figure{number}.png"}
    assert written == expected
    on_disk = {path.name for path in reproduction.folder.iterdir()}
    names = ("mnist-cnn", "mnist-rnn")
    models = {f"{name}.{suffix}" for name in names for suffix in ("pt", "wcz", "restored.safetensors")}
    models.add("mnist-cnn.latent8.wcz")
    assert on_disk == expected | models  # nothing temporary is left
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in reproduction.files if path.suffix == ".png")


def test_reproduction_json_agrees_with_the_files_on_disk(reproduction: Reproduction, digits: MnistData) -> None:
    folder = reproduction.folder
    document = read_json(folder / "report.json")
    assert document["kind"] == "reproduction"
    assert document["dataset"] == digits.dataset
    assert set(document["machine"]) == {"python", "torch", "platform", "cpus"}
    _, model = document["models"]
    checkpoint = read_checkpoint(folder / "mnist-rnn.pt")
    archive_bytes = (folder / "mnist-rnn.wcz").stat().st_size
    assert model["n_params"] == checkpoint.n_params == model["paper"]["n_params"] == 54_538
    assert model["pack"]["archive_bytes"] == sum(model["pack"]["sections"].values()) == archive_bytes
    assert model["ratio"] == model["pack"]["ratio"] == checkpoint.original_bytes / archive_bytes
    n_blocks = math.ceil(54_538 / 2048)
    assert model["latent_ratio"] == 54_538 / (64 * n_blocks)
    assert model["paper"] == {"n_params": 54_538, "score_before": 90, "score_after": 89}
    assert {"train", "pack", "unpack"} == set(model["seconds"])

    task = BaselineTask("mnist-rnn", digits)
    assert model["score_before"] == evaluate(folder / "mnist-rnn.pt", task).score
    assert model["score_after"] == evaluate(folder / "mnist-rnn.restored.safetensors", task).score
    assert model["drop"] == model["score_before"] - model["score_after"]
    assert model["pack"]["task"]["score_after"] == model["score_after"]


def test_sweep_of_latents_reuses_the_run_and_counts_its_archives(reproduction: Reproduction) -> None:
    document = read_json(reproduction.folder / "report.json")
    at_64, at_8 = document["sweep"]
    assert (at_64["latent_dim"], at_8["latent_dim"]) == (64, 8)
    assert at_64["pack"] == document["models"][0]["pack"]
    assert at_8["archive_bytes"] == (reproduction.folder / "mnist-cnn.latent8.wcz").stat().st_size
    assert at_8["ratio"] == at_8["pack"]["original_bytes"] / at_8["archive_bytes"]
    assert at_8["latent_ratio"] == pytest.approx(8 * at_64["latent_ratio"])
    rows = read_csv(reproduction.folder / "sweep.csv")
    assert [(int(row["latent_dim"]), float(row["ratio"])) for row in rows] == [
        (point["latent_dim"], point["ratio"]) for point in document["sweep"]
    ]


def test_reproduction_tables_agree_with_the_json(reproduction: Reproduction) -> None:
    folder = reproduction.folder
    _, model = read_json(folder / "report.json")["models"]
    _, first = read_csv(folder / "table1.csv")
    assert first == {
        "model": "RNN",
        "neurons": "28, 128, 128, 10",
        "paper_n_params": "54538",
        "n_params": "54538",
    }
    _, second = read_csv(folder / "table2.csv")
    for key in ("score_before", "score_after", "drop", "ratio", "latent_ratio"):
        assert float(second[key]) == model[key]
    assert int(second["archive_bytes"]) == model["pack"]["archive_bytes"]
    assert {row["model"] for row in read_csv(folder / "figure2.csv")} == {"CNN", "RNN"}
    curve = [row for row in read_csv(folder / "figure2.csv") if row["model"] == "RNN"]
    assert [float(row["train_loss"]) for row in curve] == [loss for _, loss in model["history"]["train"]]
    validated = [float(row["validation_loss"]) for row in curve if row["validation_loss"]]
    assert validated == [loss for _, loss in model["history"]["validation"]]
    _, time = read_csv(folder / "figure3.csv")
    assert float(time["vae_seconds"]) == model["history"]["seconds"]


@pytest.mark.parametrize("number", [4, 5])
def test_sample_digits_are_the_first_test_images_with_their_labels(
    reproduction: Reproduction, digits: MnistData, number: int
) -> None:
    rows = read_csv(reproduction.folder / f"figure{number}.csv")
    first = [row for row in rows if row["group"] == "first"]
    assert [int(row["index"]) for row in first] == list(range(30))
    assert [int(row["label"]) for row in first] == digits.test_labels[:30].tolist()
    assert all(row["original"] != row["restored"] for row in rows if row["group"] == "differs")


def test_reproduction_page_is_self_contained_and_names_its_data(reproduction: Reproduction, digits: MnistData) -> None:
    page = check_self_contained(reproduction.folder)
    markdown = (reproduction.folder / "report.md").read_text(encoding="utf-8")
    all_larger = all(run.pack.ratio < 1 for run in reproduction.runs)
    for text in (page.text, markdown):
        assert digits.dataset in text
        assert "not on MNIST" in text
        assert "the file is larger than the model" in text
        assert ("every archive is larger than its model" in text) == all_larger
        assert "latent ratio (the paper's)" in text
        assert "true ratio" in text
    assert "![" in markdown
    assert "(figure2.png)" in markdown


def test_reproduction_reports_its_stages(reproduction: Reproduction, stages: list[tuple[str, int, int]]) -> None:
    names = list(dict.fromkeys(stage for stage, _, _ in stages))
    expected = []
    for run in reproduction.runs:
        expected += [f"training {run.name}", f"packing {run.name}", f"unpacking and scoring {run.name}"]
    assert names == [*expected, "packing mnist-cnn, latent 8", "writing tables and figures"]
    assert all(0 <= done <= total for _, done, total in stages)


def test_reproduction_needs_force_for_a_folder_with_files(reproduction: Reproduction, digits: MnistData) -> None:
    before = {path: path.stat().st_mtime_ns for path in reproduction.folder.iterdir()}
    with pytest.raises(OutputError, match="not empty"):
        reproduce(reproduction.folder, data=digits, effort=1, models=("mnist-rnn",), epochs=1)
    assert before == {path: path.stat().st_mtime_ns for path in reproduction.folder.iterdir()}


def test_reproduction_takes_the_papers_four_networks_alone(
    tmp_path: Path, digits: MnistData, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def measure(name: str, *_: object, **__: object) -> object:
        names.append(name)
        return SimpleNamespace(name=name)

    def stop(*_: object) -> object:
        raise OptionError("enough")

    monkeypatch.setattr("wcompress.report.reproduce.measure_baseline", measure)
    monkeypatch.setattr("wcompress.report.reproduce._sweep_point", stop)
    with pytest.raises(OptionError, match="enough"):
        reproduce(tmp_path / "out", data=digits)
    assert names == ["mnist-fnn", "mnist-cnn", "mnist-rnn", "mnist-lstm"]


@pytest.mark.parametrize("models", [("mnist-rnn", "resnet"), ("lenet-5-caffe",), ()])
def test_unknown_models_are_refused_before_anything_is_written(tmp_path: Path, models: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="expected one or more of mnist-fnn"):
        reproduce(tmp_path / "out", models=models)
    assert not (tmp_path / "out").exists()


def test_a_baseline_takes_a_trained_checkpoint_and_keeps_existing_files(
    reproduction: Reproduction, digits: MnistData, tmp_path: Path
) -> None:
    checkpoint = reproduction.folder / "mnist-rnn.pt"
    (tmp_path / "mnist-rnn.wcz").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        measure_baseline("mnist-rnn", tmp_path, data=digits, effort=1, checkpoint=checkpoint)
    assert (tmp_path / "mnist-rnn.wcz").read_text() == "mine"
    run = measure_baseline(
        "mnist-rnn", tmp_path, data=digits, effort=1, latent_dim=4, checkpoint=checkpoint, force=True, device="cpu"
    )
    assert run.train_seconds is None
    assert run.score_before == reproduction.runs[1].score_before
    assert run.pack.archive_bytes == (tmp_path / "mnist-rnn.wcz").stat().st_size
    assert not (tmp_path / "mnist-rnn.pt").exists()
    assert run.to_json()["seconds"]["train"] is None


# --- sweep ---------------------------------------------------------------------------------------------------------


def test_sweep_json_and_csv_agree(swept: Report, tiny_tensors: dict[str, Tensor]) -> None:
    document = read_json(swept.folder / "report.json")
    original_bytes = sum(tensor.numel() * 4 for tensor in tiny_tensors.values())
    assert document["kind"] == "sweep"
    assert document["model"] == "model <i>&amp;.pt"
    assert document["task"] == {"name": HOSTILE, "dataset": "made up <b>", "n_examples": 50}
    assert [point["label"] for point in document["points"]] == ["latent 4", "latent 2"]
    for point in document["points"]:
        assert point["original_bytes"] == original_bytes
        assert point["ratio"] == original_bytes / point["archive_bytes"]
        assert point["dry_run"]
        assert point["task"]["score_before"] == document["score_before"]
    assert [baseline["name"] for baseline in document["baselines"]] == list(BASELINES)
    for baseline in document["baselines"]:
        assert baseline["ratio"] == original_bytes / baseline["archive_bytes"]
    rows = read_csv(swept.folder / "report.csv")
    measured = [*document["points"], *document["baselines"]]
    assert [float(row["ratio"]) for row in rows] == [point["ratio"] for point in measured]
    assert [int(row["archive_bytes"]) for row in rows] == [point["archive_bytes"] for point in measured]
    best = {row["name"] for row in rows if row["pareto"]}
    assert {mark["name"] for mark in document["pareto"]} <= best
    assert [path.name for path in swept.folder.iterdir() if path.suffix == ".wcz"] == []


def test_names_are_escaped_in_html_and_markdown(swept: Report) -> None:
    page = check_self_contained(swept.folder)
    assert HOSTILE in page.text
    assert "model <i>&amp;.pt" in page.text
    assert {"script", "i"}.isdisjoint(tag for tag, _ in page.tags)
    assert "<script" not in (swept.folder / "report.html").read_text(encoding="utf-8")
    markdown = (swept.folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "&lt;script&gt;" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(swept.points) + len(swept.baselines)
    assert len({line.count("|") - line.count("\\|") for line in table}) == 1


def test_sweep_takes_a_mapping_and_any_list_of_settings(tmp_path: Path, tiny_tensors: dict[str, Tensor]) -> None:
    result = report(tiny_tensors, TinyTask(name="t"), tmp_path / "out", settings=[SweepSetting("only", TINY)])
    assert result.model == "model"
    assert [point.label for point in result.points] == ["only"]
    with pytest.raises(OutputError, match="not empty"):
        report(tiny_tensors, TinyTask(), tmp_path / "out", settings=[])
    nothing = report(tiny_tensors, TinyTask(), tmp_path / "out", settings=[], force=True)
    assert nothing.points == ()
    assert read_json(tmp_path / "out" / "report.json")["points"] == []


def test_default_settings_go_through_the_latent_sizes() -> None:
    settings = default_settings(PackOptions(method="paper", effort=3, seed=9))
    assert [s.options.latent_dim for s in settings] == [128, 64, 32, 16]
    assert all((s.options.effort, s.options.seed) == (3, 9) for s in settings)
    bits = [s.options.bits_per_weight for s in default_settings(PackOptions(effort=3))]
    assert bits == sorted(bits, reverse=True)
    refined = [s.options for s in default_settings(PackOptions(refine="on")) if s.options.refines]
    assert [options.max_drop for options in refined] == [0.2, 0.5, 1.0, 2.0]
    assert len(bits) > 4


def test_pareto_front_holds_what_nothing_beats() -> None:
    a, b, c, d = Mark("a", 1, 99), Mark("b", 2, 98), Mark("c", 1.5, 98), Mark("d", 3, 98)
    broken = Mark("e", 9, math.nan)
    assert pareto_front([b, a, c, d, broken]) == (a, d)
    assert pareto_front([]) == ()


def test_missing_extra_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tensors: dict[str, Tensor]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    with pytest.raises(OptionError, match=r"matplotlib not installed; it needs `pip install wcompress\[report\]`"):
        report(tiny_tensors, TinyTask(), tmp_path / "out")
    with pytest.raises(OptionError, match="reproduce"):
        reproduce(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- baselines -----------------------------------------------------------------------------------------------------


def zoo() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(37, 5, generator=generator)
    tensors = {
        "fp32": w,
        "fp64": w.double() * 1e-3,
        "fp16": w.half(),
        "bf16": w.bfloat16(),
        "vector": w[0].clone(),
        "scalar": torch.tensor(1.25),
        "empty": torch.empty(0, 3),
        "zeros": torch.zeros(4, 4),
        "nan": torch.tensor([[1.0, math.nan], [math.inf, -0.0]]),
        "large": w * 1e6,
        "huge": w.double() * 1e200,
        "tiny": w * 1e-44,
        "int": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([[True, False]]),
        "complex": torch.complex(w, w).to(torch.complex128),
        "float8": w.to(torch.float8_e4m3fn),
        "float8 0-d": torch.tensor(0.5).to(torch.float8_e5m2fnuz),
        "__scales__": w[:1].clone(),
    }
    tensors["tied"] = tensors["fp32"]
    return tensors


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_give_back_every_name_dtype_and_shape(name: str) -> None:
    tensors = zoo()
    restored = decode(name, encode(name, tensors))
    assert restored.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert restored[key].dtype == tensor.dtype, key
        assert restored[key].shape == tensor.shape, key
        if key != "nan" and tensor.is_floating_point():
            assert torch.isfinite(restored[key].double()).all(), key
    for key in ("nan", "int", "bool", "complex", "float8", "float8 0-d", "empty", "zeros"):
        assert same_bits(restored[key], tensors[key]), key
    if name != "fp16":
        for key in ("vector", "scalar"):
            assert same_bits(restored[key], tensors[key]), key
    assert torch.equal(restored["tied"], restored["fp32"])


def test_zstd_is_lossless() -> None:
    tensors = zoo()
    restored = decode("zstd", encode("zstd", tensors))
    assert all(same_bits(restored[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "int8+zstd", "int4+zstd"])
def test_errors_stay_within_half_a_step(name: str) -> None:
    tensors = {key: tensor for key, tensor in zoo().items() if key in ("fp32", "fp64", "fp16", "bf16", "large")}
    restored = decode(name, encode(name, tensors))
    for key, tensor in tensors.items():
        w, error = tensor.double(), (restored[key].double() - tensor.double()).abs()
        rounding = torch.finfo(tensor.dtype).eps * w.abs()  # of the result, in the tensor's own dtype
        if name == "fp16":
            bound = 2**-11 * w.abs() + 2**-25
        elif name.startswith("int8"):
            bound = w.abs().max() / 127 * 0.5001 + rounding
        elif key == "large":
            bound = torch.zeros(())  # its scales are beyond fp16: kept as it is
        else:
            groups = torch.nn.functional.pad(w.reshape(-1), (0, -w.numel() % GROUP_SIZE)).reshape(-1, GROUP_SIZE)
            scale = groups.abs().amax(1).repeat_interleave(GROUP_SIZE)[: w.numel()].reshape(w.shape) / 7
            bound = scale * (0.5 + 7 * 2**-11) + 7 * 2**-24 + rounding
        assert (error <= bound).all(), key


def test_half_precision_keeps_what_it_would_make_infinite() -> None:
    tensors = {"w": torch.tensor([[65504.0, 1.0]]), "large": torch.tensor([[65505.0, 1 / 3]])}
    restored = decode("fp16", encode("fp16", tensors))
    assert same_bits(restored["w"], tensors["w"])
    assert same_bits(restored["large"], tensors["large"])


def test_bytes_are_those_of_the_numbers_and_a_small_header() -> None:
    w = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    tensors = {"weight": w, "bias": w[0].clone()}
    n, n_bias, header = w.numel(), 128, 400
    for name, expected in (
        ("fp16", 2 * (n + n_bias)),
        ("int8", n + 4 * n_bias + 4),
        ("int4", n // 2 + 2 * n // GROUP_SIZE + 4 * n_bias),
    ):
        assert expected < len(encode(name, tensors)) < expected + header, name
    assert len(encode("int4+zstd", tensors)) < len(encode("int4", tensors))
    assert len(encode("zstd", tensors)) < 4 * (n + n_bias) + header
    assert len(encode("fp16", {**tensors, "tied": w})) - len(encode("fp16", tensors)) < 100


def test_measured_baselines_count_their_bytes(tiny_tensors: dict[str, Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    points = measure_baselines(tiny_tensors, TinyTask(), progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(n, len(BASELINES)) for n in range(1, len(BASELINES) + 1)]
    original_bytes = 4 * sum(tensor.numel() for tensor in tiny_tensors.values())
    for point in points:
        assert point.n_bytes == len(encode(point.name, tiny_tensors))
        assert point.ratio == original_bytes / point.n_bytes
        assert 0 <= point.score <= 100


# --- rendering -----------------------------------------------------------------------------------------------------


def test_json_has_no_nan_and_no_infinity() -> None:
    text = to_json_text({"a": math.nan, "b": [math.inf, (1.5, None)], "c": {"d": -math.inf}})
    assert json.loads(text) == {"a": None, "b": [None, [1.5, None]], "c": {"d": None}}


def test_tables_show_numbers_to_people_and_keep_them_whole_in_csv() -> None:
    columns = (Column("n", "n", ","), Column("ratio", "ratio", "ratio"), Column("drop", "drop", ".2f"))
    table = Table("t", "", columns, ((12345, 31.846, -0.391), (1, 0.0998, math.nan), (2, 0.39, None)))
    assert table.shown_rows() == [["12,345", "31.8×", "−0.39"], ["1", "0.10×", "–"], ["2", "0.39×", "–"]]
    assert table.to_csv() == "n,ratio,drop\n12345,31.846,-0.391\n1,0.0998,\n2,0.39,\n"
    assert table.numeric == (True, True, True)


def test_markdown_escapes() -> None:
    assert escape_markdown("a|b\n<c> my_model _x_ `*[]") == r"a\|b &lt;c&gt; my_model \_x\_ \`\*\[\]"


def test_figures_take_any_name_and_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 3.0)
    mark = Mark("$\\frac{", 2.0, 50.0)
    png = ratio_against_score([mark], [], [], [mark], 50.0, title="日本 $x_", method="<b>")
    assert png.startswith(b"\x89PNG")
    assert matplotlib.rcParams["font.size"] == 3.0
