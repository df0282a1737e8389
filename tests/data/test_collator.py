import numpy as np
import pytest
import torch
from utils import tiny_config

from amess_hf import AMESSDataCollator


def rows(count=3):
    rng = np.random.default_rng(0)
    return [
        {
            "text": "hello you " * (row + 1),
            "label": row % 4,
            "audio_features": rng.normal(size=(2 + row, 6)).astype(np.float32),
            "video_features": rng.normal(size=(30 * row, 5)).astype(np.float32),
        }
        for row in range(count)
    ]


def test_batch(tokenizer):
    config = tiny_config()
    batch = AMESSDataCollator(tokenizer, config)(rows())
    assert batch["audio_features"].shape == (3, 4, 6)
    assert batch["video_features"].shape == (3, config.max_video_length, 5)
    assert batch["audio_attention_mask"].sum(1).tolist() == [2, 3, 4]
    assert batch["video_attention_mask"].sum(1).tolist() == [0, 15, 15]
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 8)


def test_modalities_that_the_model_lacks_are_left_out(tokenizer):
    batch = AMESSDataCollator(tokenizer, tiny_config(audio_feature_size=None))(rows())
    assert "audio_features" not in batch and "video_features" in batch


def test_features_that_the_data_lacks_are_absent(tokenizer):
    clips = [{"text": row["text"], "label": row["label"]} for row in rows()]
    batch = AMESSDataCollator(tokenizer, tiny_config())(clips)
    assert batch["audio_attention_mask"].sum() == 0


def test_processor_is_as_good_as_its_tokenizer(tokenizer):
    class Processor:
        pass

    processor = Processor()
    processor.tokenizer = tokenizer
    expected = AMESSDataCollator(tokenizer, tiny_config())(rows())
    for name, value in AMESSDataCollator(processor, tiny_config())(rows()).items():
        assert torch.equal(value, expected[name])


def test_candidates(tokenizer):
    clips = [{**row, "dataset": name} for row, name in zip(rows(), ("one", "two", "one"), strict=True)]
    collator = AMESSDataCollator(tokenizer, tiny_config(), candidates={"one": [0, 1, 2, 3], "two": [1, 3]})
    assert collator(clips)["candidate_mask"].tolist() == [[True] * 4, [False, True, False, True], [True] * 4]


def test_wrong_width(tokenizer):
    with pytest.raises(ValueError, match="video_features"):
        AMESSDataCollator(tokenizer, tiny_config(video_feature_size=7))(rows())
