import numpy as np
import pytest
import torch
from datasets import Dataset
from utils import tiny_config

from amess_hf import AMESSDataCollator, AMESSProcessor


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
    assert batch["video_features"].shape == (3, config.video_config.max_length, 5)
    assert batch["audio_attention_mask"].sum(1).tolist() == [2, 3, 4]
    assert batch["video_attention_mask"].sum(1).tolist() == [0, 15, 15]
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 8)


def test_modalities_that_the_model_lacks_are_left_out(tokenizer):
    batch = AMESSDataCollator(tokenizer, tiny_config(audio_config=None))(rows())
    assert "audio_features" not in batch and "video_features" in batch


def test_features_that_the_data_lacks_are_absent(tokenizer):
    clips = [{"text": row["text"], "label": row["label"]} for row in rows()]
    batch = AMESSDataCollator(tokenizer, tiny_config())(clips)
    assert batch["audio_attention_mask"].sum() == 0


def test_processor_in_place_of_tokenizer_and_config(tokenizer):
    expected = AMESSDataCollator(tokenizer, tiny_config())(rows())
    batch = AMESSDataCollator(AMESSProcessor.for_model(tiny_config(), tokenizer))(rows())
    assert set(batch) == set(expected)
    for name, value in batch.items():
        assert torch.equal(value, expected[name])


def test_labels_that_count_for_no_clip_and_out_of_scope(tokenizer):
    clips = [{**row, "label": label} for row, label in zip(rows(), (-1, -100, 2), strict=True)]
    assert AMESSDataCollator(tokenizer, tiny_config())(clips)["labels"].tolist() == [-1, -100, 2]


def test_candidates(tokenizer):
    masks = [[True] * 4, [False, True, False, True], [True] * 4]
    clips = Dataset.from_list([{**row, "candidate_mask": mask} for row, mask in zip(rows(), masks, strict=True)])
    for split in (clips, clips.with_format("numpy", columns=["audio_features"], output_all_columns=True)):
        batch = AMESSDataCollator(tokenizer, tiny_config())([split[index] for index in range(3)])
        assert batch["candidate_mask"].dtype == torch.bool and batch["candidate_mask"].tolist() == masks


def test_tokenizer_without_config(tokenizer):
    with pytest.raises(TypeError, match="`processor` is a BertTokenizer; give an AMESSProcessor"):
        AMESSDataCollator(tokenizer)


def test_a_clip_is_named_by_its_id(tokenizer):
    clips = [{**row, "id": f"dia0_utt{number}"} for number, row in enumerate(rows())]
    clips[2]["audio_features"][1, 3] = np.nan
    with pytest.raises(ValueError, match="`audio_features` of clip dia0_utt2 holds NaN"):
        AMESSDataCollator(tokenizer, tiny_config())(clips)


def test_wrong_width(tokenizer):
    with pytest.raises(ValueError, match="video_features"):
        AMESSDataCollator(tokenizer, tiny_config(video_config={"feature_size": 7}))(rows())
