"""The exported model agrees with the model, for all lengths, and names the same anchors."""

import export_onnx
import pytest
import torch
from utils import random_batch, tiny_model


onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "amess_hf[onnx]"')
pytest.importorskip("onnxscript", reason='pip install "amess_hf[onnx]"')


def run(path, batch):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {put.name for put in session.get_inputs()}
    given = session.run(None, {name: value.numpy() for name, value in batch.items() if name in wanted})
    return dict(zip([put.name for put in session.get_outputs()], map(torch.from_numpy, given), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_free_lengths(tmp_path, capfd):
    """From the command line; then with batches of other sizes, and clips that lack a modality."""
    model = tiny_model(label_similarity_weight=0.4)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "amess.onnx"
    export_onnx.main(["--model_name_or_path", str(tmp_path / "model"), "--output_file", str(path)])
    assert not list(tmp_path.glob("*.partial"))
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 1 and "torch" not in printed.err, "the exporter's own remarks"
    for seed, (text, audio, video) in enumerate(
        [
            ((5, 3, 7), (9, 4, 1), (6, 8, 2)),
            ((2,), (17,), (1,)),
            ((4, 0), (0, 12), (3, 0)),
            ([8] * 6, [2] * 6, [15] * 6),
        ]
    ):
        batch = random_batch(model.config, text, audio, video, seed=seed, labels=False)
        with torch.no_grad():
            expected = model(**batch)
        given = run(path, batch)
        torch.testing.assert_close(given["logits"], expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(given["anchor_scores"], expected.anchor_scores, atol=1e-4, rtol=0)
        assert torch.equal(given["anchor_indices"], expected.anchor_indices)


@pytest.mark.slow
def test_with_earlier_turns(tmp_path):
    """What tells the utterance from its context is an input too, and counts."""
    model = tiny_model(context_turns=2)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "amess.onnx"
    export_onnx.main(["--model_name_or_path", str(tmp_path / "model"), "--output_file", str(path)])
    batch = random_batch(model.config, labels=False)
    batch["token_type_ids"] = (torch.arange(batch["input_ids"].shape[1]) > 2).long().expand_as(batch["input_ids"])
    batch["utterance_mask"] = batch["attention_mask"] * batch["token_type_ids"]
    with torch.no_grad():
        expected, alike = model(**batch).logits, model(**{**batch, "utterance_mask": batch["attention_mask"]}).logits
    torch.testing.assert_close(run(path, batch)["logits"], expected, atol=1e-4, rtol=0)
    assert (expected - alike).abs().max() > 1e-2


@pytest.mark.slow
def test_fixed_lengths(tmp_path):
    model = tiny_model(fusion_type="mean", video_config=None)
    sizes = {"batch_size": 2, "text_length": 6, "audio_length": 10, "video_length": 5}
    arguments = export_onnx.ExportArguments("", str(tmp_path / "amess.onnx"), **sizes)
    assert export_onnx.export(model, arguments) <= 1e-4
    session = onnxruntime.InferenceSession(arguments.output_file, providers=["CPUExecutionProvider"])
    assert [put.shape for put in session.get_inputs()] == [[2, 6], [2, 6], [2, 10, 6], [2, 10]]
    assert [put.name for put in session.get_outputs()] == ["logits"]
    batch = random_batch(model.config, (6, 4), (10, 3), None, labels=False)
    with torch.no_grad():
        torch.testing.assert_close(
            run(arguments.output_file, batch)["logits"], model(**batch).logits, atol=1e-4, rtol=0
        )


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "largest_difference", lambda *_: 1e-3)
    arguments = export_onnx.ExportArguments("", str(tmp_path / "amess.onnx"), text_length=4)
    with pytest.raises(ValueError, match="differs from the model by 1.0e-03"):
        export_onnx.export(tiny_model(fusion_type="text"), arguments)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="must be at least 1"):
        export_onnx.ExportArguments("model", text_length=0)
