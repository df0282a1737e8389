"""The benchmark in miniature: every section yields plausible numbers, and the page and the plot show them."""

import json
import os

import benchmark
import pytest
import torch
from transformers import BertConfig, Qwen2Config

from amess_hf import AMESSConfig


SIZES = {
    "TEXT_LENGTH": 20,
    "VIDEO_LENGTH": 60,
    "AUDIO_LENGTH": 150,
    "VIDEO_SIZE": 5,
    "AUDIO_SIZE": 6,
    "BATCH_SIZE": 3,
    "GROWTH": ((4, 2), (8, 4), (16, 8)),
}


@pytest.fixture
def miniature(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(benchmark, name, value)
    sizes = {"vocab_size": 20000, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(benchmark, "BertConfig", lambda: BertConfig(**sizes, intermediate_size=16))
    fusion = {"hidden_size": 8, "intermediate_size": 8, "num_fusion_layers": 1, "projection_dim": 8}
    monkeypatch.setattr(benchmark, "AMESSConfig", lambda **values: AMESSConfig(**fusion, **values))


@pytest.mark.slow
def test_every_section(miniature, monkeypatch, tmp_path, capsys):
    peaks = {"text": 200, "anchor": 220}
    monkeypatch.setattr(
        benchmark.subprocess, "run", lambda command, **_: type("Done", (), {"stdout": f"{peaks[command[3]]}\n"})
    )
    threads = torch.get_num_threads()
    try:
        results = benchmark.main(["--quick", "--output_dir", str(tmp_path), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    page = (tmp_path / "benchmark.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "| anchor | 0.00 | 1.10 |" in page
    assert benchmark.other_work_text(results["other_processes"]) in page

    sections = results["sections"]
    assert set(sections) == set(benchmark.SECTIONS) - {"gpu", "decoder"}
    for records in sections["step"].values():
        assert set(records) == {*benchmark.VARIANTS, "text, batch's longest"} and records["text"]["ratio"] == 1
        for name, record in records.items():
            # on a busy machine there may be no ratio, and the page says so
            assert f"| {name} | {benchmark.milliseconds(record)} | {benchmark.ratio_text(record)} |" in page
            assert record["low"] <= record["high"] and len(record["times"]) == record["rounds"]
            assert record["seconds"] > 0 and record["spread"] >= 0 and record["rounds"] in (6, 12)
    growth = sections["growth"]["anchor"]
    assert list(growth) == ["4/2", "8/4", "16/8"] and list(sections["growth"]["cross_modal"]) == ["4/2", "8/4"]
    assert growth["4/2"]["growth"] is None and growth["8/4"]["growth"]["low"] <= growth["8/4"]["growth"]["high"]
    assert list(sections["intents"]) == ["30", "300", "3000"]
    assert sum(record["share"] for record in sections["latency"].values()) == pytest.approx(1)
    shares = [record["padding"] for record in sections["padding"].values()]
    assert 1 > shares[0] > shares[1] > shares[2] >= 0
    assert all(record["clips_per_second"] > 1 for record in sections["loading"].values())


@pytest.mark.slow
def test_decoder(miniature, monkeypatch):
    sizes = {"vocab_size": 20000, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = Qwen2Config(**sizes, num_key_value_heads=1, intermediate_size=16)
    monkeypatch.setattr(benchmark, "decoder_config", lambda: decoder)
    records = benchmark.section_decoder(benchmark.BenchmarkArguments(), torch.device("cpu"))
    assert list(records) == ["all weights", "LoRA, rank 16", "LoRA, gradient checkpointing", "inference"]
    assert records["all weights"]["ratio"] == 1 and all(record["seconds"] > 0 for record in records.values())
    results = {"device": "", "software": "", "settings": "", "other_processes": [], "sections": {"decoder": records}}
    assert "| LoRA, rank 16 |" in benchmark.as_markdown(results)


def test_memory_with_more_intents(miniature):
    assert benchmark.peak_of("30 described intents", torch.device("cpu")) > 0


def test_summary_of_times():
    """Median, and half the distance of the quartiles, counted by hand."""
    times = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert benchmark.summary(times) == {"seconds": 3.0, "spread": 1.5, "rounds": 5, "times": times}
    assert benchmark.summary([2.0])["spread"] == 0


def test_what_is_measured_is_a_step(miniature):
    """A step changes the weights that it should, and needs what a step needs."""
    device = torch.device("cpu")
    models = benchmark.make_models(device, ["anchor + SS"])
    model = models["anchor + SS"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benchmark.training_step(model, benchmark.make_optimizer(models), benchmark.make_batch(device))()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"label_embeds", "logit_scale", "classifier.weight", "amess.fusion.nothing"} <= changed
    assert any(name.startswith("amess.text_encoder") for name in changed)
    assert benchmark.flops_of_step(model, benchmark.make_batch(device)) > 1e5


def test_unknown_section():
    with pytest.raises(SystemExit, match="no section speed; there are step, memory"):
        benchmark.main(["--sections", "speed"])


class TestRatios:
    def records(self, **times):
        return benchmark.with_ratios({name: benchmark.summary(values) for name, values in times.items()}, "text")

    def test_undisturbed(self):
        records = self.records(text=[1.0, 1.01, 1.02, 0.99, 1.0, 1.0], anchor=[1.1, 1.1, 1.12, 1.1, 1.09, 1.11])
        assert records["text"]["ratio"] == records["text"]["low"] == records["text"]["high"] == 1
        record = records["anchor"]
        assert record["ratio"] == pytest.approx(1.1) and 1.07 < record["low"] <= 1.1 <= record["high"] < 1.13
        assert benchmark.ratio_text(record).startswith("1.10 (1.")

    def test_disturbed(self):
        """As next to other work: some rounds take several times as long as others."""
        record = self.records(text=[1.0, 3.0, 1.2, 4.0, 2.5, 1.1], anchor=[1.2, 0.9, 2.0, 1.0, 1.0, 3.0])["anchor"]
        assert record["ratio"] is None and record["high"] - record["low"] > 0.25
        assert benchmark.ratio_text(record).startswith("not measured (")

    def test_not_measured_is_drawn(self, tmp_path):
        times = {name: [1.0, 3.0, 1.2, 9.0, 2.5] for name in benchmark.VARIANTS} | {
            "anchor": [5.0, 0.9, 2.0, 1.0, 7.0]
        }
        step = {kind: self.records(**times) for kind in ("training", "inference")}
        results = {"device": "", "software": "", "settings": "", "other_processes": {}, "sections": {"step": step}}
        assert "| not measured (" in benchmark.as_markdown(results)
        benchmark.draw(results, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 1000


def test_other_work_is_named():
    """Averages over the time that passed, programs of the same name together."""
    others = benchmark.OtherWork()
    others.before = {(-1, 0.0): ("gone", 5.0)}
    others.begin -= 1000
    seconds = {(-1, 0.0): ("gone", 105.0), (-2, 0.0): ("python", 1000.0), (-3, 0.0): ("python", 500.0)}
    others.processor_seconds = lambda: {**seconds, (-4, 0.0): ("sh", 1.0)}
    cores = others.cores()
    assert list(cores) == ["python", "gone"] and cores["python"] == pytest.approx(1.5, abs=0.1)
    assert "other processes took 1.6 cores on average (python 1.5, gone 0.1)" in benchmark.other_work_text(cores)
    assert "No other process" in benchmark.other_work_text({})


def test_own_processes_are_no_other_work():
    keys = {pid for pid, _ in benchmark.OtherWork.processor_seconds()}
    assert os.getpid() not in keys and os.getppid() in keys
