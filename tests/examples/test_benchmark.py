"""The benchmark in miniature: every section yields plausible numbers, and the page and the plot show them."""

import json

import benchmark
import pytest
import torch
from transformers import BertConfig

from amess_hf import AMESSConfig


SIZES = {
    "TEXT_LENGTH": 20,
    "VIDEO_LENGTH": 60,
    "AUDIO_LENGTH": 150,
    "VIDEO_SIZE": 5,
    "AUDIO_SIZE": 6,
    "BATCH_SIZE": 3,
    "GROWTH": ((4, 2), (8, 4), (16, 8)),
    "CLIPS": 2,
}


@pytest.fixture
def miniature(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(benchmark, name, value)
    sizes = {"vocab_size": 20000, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(benchmark, "BertConfig", lambda **_: BertConfig(**sizes, intermediate_size=16))
    fusion = {"hidden_size": 8, "intermediate_size": 8, "num_fusion_layers": 1, "projection_dim": 8}
    monkeypatch.setattr(benchmark, "AMESSConfig", lambda **values: AMESSConfig(**(values | fusion)))


@pytest.fixture
def results(miniature, monkeypatch, tmp_path):
    """What all sections measured, the folder, with memory that is not measured in processes of their own."""
    peaks = {"text": 200, "anchor": 220, "anchor + SS": 300}

    def peaks_of(tasks, *_):
        return {task: dict.fromkeys(("bytes", "own"), peaks.get(task, 400)) for task in tasks}

    monkeypatch.setattr(benchmark, "peaks_of", peaks_of)
    threads = torch.get_num_threads()
    try:
        arguments = ["--sections", ",".join(benchmark.SECTIONS), "--output_dir", str(tmp_path)]
        return benchmark.main([*arguments, *"--quick --threads 1 --clips 4".split()]), tmp_path
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_section(results, capsys):
    results, folder = results
    assert json.loads((folder / "benchmark.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "benchmark.png").stat().st_size > 10_000
    page = (folder / "benchmark.md").read_text()
    assert "| anchor | 0.00 | 1.10 | 1.15 (held) |" in page
    assert benchmark.other_work_text(results["other_processes"]) in page
    tables = {title: table["rows"] for title, table in results["tables"].items()}
    for kind, rounds in (("Training step", 6), ("Inference", 12)):
        assert set(tables[kind]) == {*benchmark.VARIANTS, "text, batch's longest"}
        assert tables[kind]["text"]["ratio"] == 1
        for name, record in tables[kind].items():
            # on a busy machine there may be no ratio, and the page says so
            assert f"| {name} | {benchmark.COLUMNS['seconds'][1](record)} | {benchmark.ratio_text(record)} |" in page
            assert record["low"] <= record["high"] and len(record["times"]) == record["rounds"] == rounds
            assert record["seconds"] > 0 and record["spread"] >= 0
        assert tables[kind]["anchor"]["bound"] == 1.12
    growth = tables["Growth of the fusion: anchor"]
    assert list(growth) == ["4/2", "8/4", "16/8"]
    assert list(tables["Growth of the fusion: cross_modal"]) == ["4/2", "8/4"]
    assert "ratio" not in growth["4/2"] and growth["8/4"]["low"] <= growth["8/4"]["high"]
    assert list(tables["Inference with described intents"]) == ["30", "300", "3000"]
    assert sum(record["share"] for record in tables["From clips to intents"].values()) == pytest.approx(1)
    shares = [record["share"] for record in tables["Padding"].values()]
    assert 1 > shares[0] > shares[1] > shares[2] >= 0
    (memory,) = (rows for title, rows in tables.items() if title.startswith("Memory of features"))
    assert set(memory) == set(benchmark.DATA_TASKS)


def test_tasks_whose_memory_is_measured(miniature, tmp_path):
    assert benchmark.write_data(tmp_path, 8) > 8 * 25 * benchmark.AUDIO_SIZE * 4
    for task in (*benchmark.DATA_TASKS, "anchor", "30 described intents"):
        benchmark.run_task(task, tmp_path, torch.device("cpu"))


def test_peak_memory_is_that_of_the_process(monkeypatch):
    """200 MiB that are held for a tenth of a second."""
    program = "import time; held = bytearray(b'x') * 2**21 * 100; time.sleep(0.3)"
    popen = benchmark.psutil.Popen
    monkeypatch.setattr(benchmark.psutil, "Popen", lambda command, **kw: popen([command[0], "-c", program], **kw))
    (peak,) = benchmark.peaks_of(["text"], benchmark.BenchmarkArguments()).values()
    assert 200 * 2**20 < peak["own"] <= peak["bytes"] < 300 * 2**20
    monkeypatch.setattr(benchmark.psutil, "Popen", lambda command, **kw: popen(["false"], **kw))
    with pytest.raises(OSError, match="measures text ended with status 1"):
        benchmark.peaks_of(["text"], benchmark.BenchmarkArguments())


def test_what_is_measured_is_a_step(miniature):
    """A step changes the weights that it should, and needs what a step needs."""
    models = benchmark.variant_models(torch.device("cpu"), ["anchor + SS"])
    model, batch = models["anchor + SS"], benchmark.make_batch(torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benchmark.training_step(model, benchmark.make_optimizer(models), batch)()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"label_embeds", "logit_scale", "classifier.weight", "amess.fusion.nothing"} <= changed
    assert any(name.startswith("amess.text_encoder") for name in changed)


def test_ratios():
    times = {"text": [1.0, 1.01, 1.02, 0.99, 1.0, 1.0], "anchor": [1.1, 1.1, 1.12, 1.1, 1.09, 1.11]}
    records = benchmark.with_ratios({name: benchmark.summary(values) for name, values in times.items()}, "text")
    assert records["text"]["ratio"] == records["text"]["low"] == records["text"]["high"] == 1
    record = records["anchor"]
    assert record["ratio"] == pytest.approx(1.1) and 1.07 < record["low"] <= 1.1 <= record["high"] < 1.13
    assert benchmark.ratio_text(record).startswith("1.10 (1.")
    assert benchmark.bound_text(record | {"bound": 1.12}) == "1.12 (held)"
    assert benchmark.bound_text(record | {"bound": 1.05}) == "1.05 **(exceeded)**"
