"""Checkpoints of earlier formats load; those of later ones are refused with a message that says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from amess_hf import AMESSConfig, OutOfScopeDetector


CHECKPOINT = Path(__file__).parent / "fixtures" / "checkpoint-v1"


@pytest.fixture(scope="module")
def known():
    values = json.loads((CHECKPOINT / "known_values.json").read_text())
    inputs = {name: torch.tensor(value) for name, value in values["inputs"].items()}
    return inputs, {name: torch.tensor(value) for name, value in values["outputs"].items()}


@torch.no_grad()
def test_first_format_gives_its_known_answers(known):
    inputs, expected = known
    model, report = AutoModelForSequenceClassification.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.logits, expected["logits"], atol=1e-4, rtol=1e-5)
    assert torch.equal(outputs.anchor_indices, expected["anchor_indices"])
    assert expected["logits"].argmax(-1).unique().numel() > 1, "clips that all get one answer would show little"
    base = AutoModel.from_pretrained(CHECKPOINT)
    torch.testing.assert_close(base(**inputs).pooler_output, outputs.pooler_output)


@torch.no_grad()
def test_first_format_keeps_labels_descriptions_tokenizer_and_detector(known):
    inputs, expected = known
    config = AutoConfig.from_pretrained(CHECKPOINT)
    assert config.format_version == 2 and config.fusion_type == "gated_anchor"
    assert config.id2label == {0: "Thank", 1: "Complain", 2: "Greet"}
    assert config.label_descriptions["Greet"] == ["the speaker says hello to a friend"]
    tokens = AutoTokenizer.from_pretrained(CHECKPOINT)("hello friend")["input_ids"]
    assert tokens == inputs["input_ids"][0][: len(tokens)].tolist()
    detector = OutOfScopeDetector.from_pretrained(CHECKPOINT)
    outputs = AutoModelForSequenceClassification.from_pretrained(CHECKPOINT)(**inputs)
    torch.testing.assert_close(detector.score(outputs).float(), expected["oos_scores"], atol=1e-4, rtol=1e-5)


def test_first_format_keeps_its_loss_weights_under_their_new_names(tmp_path):
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert {"triplet_loss_weight", "clip_contrastive_loss_weight"} <= config.keys()
    config.update(triplet_loss_weight=0.75, clip_contrastive_loss_weight=0.25)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.label_triplet_loss_weight, loaded.batch_triplet_loss_weight) == (0.75, 0.25)


def test_checkpoint_is_small():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 200_000


def test_later_format_is_refused(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "later")
    config = json.loads((tmp_path / "later" / "config.json").read_text())
    config["format_version"] = 99
    (tmp_path / "later" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="format_version.*99.*update amess_hf"):
        AMESSConfig.from_pretrained(tmp_path / "later")
