"""Evidence by statistics is standardized with the training clips before training."""

import datasets
import pytest
import torch
from utils import tiny_model

from amess_hf import AMESSTrainer, AMESSTrainingArguments
from amess_hf.layers_amess import masked_statistics
from amess_hf.training.standardization import standardize_statistics


TONE = {"audio_config": {"norm": "clip", "pooling": "statistics"}}


def clips(model, lengths):
    generator = torch.Generator().manual_seed(1)
    width = model.config.audio_config.feature_size
    return [3 + 2 * torch.randn(length, width, generator=generator) for length in lengths]


def collate(frames):
    length = max(map(len, frames))
    batch = torch.full((len(frames), length, frames[0].shape[-1]), 99.0)  # padding may hold anything
    mask = torch.zeros(len(frames), length, dtype=torch.bool)
    for row, clip in enumerate(frames):
        batch[row, : len(clip)], mask[row, : len(clip)] = clip, True
    return {"audio_features": batch, "audio_attention_mask": mask}


def test_by_hand():
    model = tiny_model(**TONE)
    sound = clips(model, (5, 9, 1, 0, 70) + (7,) * 40)
    standardize_statistics(model, sound, collate)
    layer = model.amess.fusion.evidence["audio"]
    rows = [
        torch.cat([clip.mean(0), (clip.var(0, correction=0) + torch.finfo(torch.float32).eps).sqrt()])
        for clip in sound
        if len(clip)
    ]
    expected = torch.stack(rows)
    torch.testing.assert_close(layer.mean, expected.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.deviation, expected.std(0, correction=0), atol=1e-5, rtol=1e-5)
    batch = collate(sound)
    standardized = layer.frame_statistics(batch["audio_features"], batch["audio_attention_mask"])[
        [0, 1, 2, *range(4, 45)]
    ]
    assert standardized.mean(0).abs().max() < 1e-4 and (standardized.std(0, correction=0) - 1).abs().max() < 1e-4


def test_other_models_stay_as_they_are():
    for fields in ({}, {**TONE, "fusion_type": "mean"}, {"fusion_type": "text"}):
        model = tiny_model(**fields)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        standardize_statistics(model, [], collate)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_once_only_and_saved(tmp_path):
    model = tiny_model(**TONE)
    standardize_statistics(model, clips(model, (5, 9, 3)), collate)
    mean = model.amess.fusion.evidence["audio"].mean.clone()
    standardize_statistics(model, clips(model, (2, 2)), collate)
    assert torch.equal(model.amess.fusion.evidence["audio"].mean, mean) and mean.any()
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).amess.fusion.evidence["audio"].mean, mean)


def test_a_number_that_never_changes_counts_for_nothing():
    model = tiny_model(**TONE)
    sound = clips(model, (5, 9, 3))
    for clip in sound:
        clip[:, 0] = 7.0
    standardize_statistics(model, sound, collate)
    layer, width = model.amess.fusion.evidence["audio"], model.config.audio_config.feature_size
    assert layer.deviation[0] == 1 and layer.mean[0] == pytest.approx(7) and layer.deviation[width] == 1
    assert torch.isfinite(layer.frame_statistics(*collate(sound).values())).all()


def test_nothing_is_drawn_and_the_mode_is_kept():
    model = tiny_model(**TONE).train()
    state = torch.random.get_rng_state()
    standardize_statistics(model, clips(model, (5, 9)), collate)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert not model.amess.fusion.evidence["audio"]._forward_pre_hooks


def test_training_without_clips_says_so(tmp_path, tokenizer):
    args = AMESSTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = AMESSTrainer(tiny_model(**TONE), args, processing_class=tokenizer)
    with pytest.raises(ValueError, match="requires a train_dataset"):
        trainer.train()


def test_one_clip_or_none_changes_nothing():
    model = tiny_model(**TONE)
    standardize_statistics(model, clips(model, (4, 0)), collate)
    assert not model.amess.fusion.evidence["audio"].is_standardized


def test_the_first_clips_of_a_stream():
    model = tiny_model(**TONE)
    sound = clips(model, (3, 4, 5))
    stream = datasets.IterableDataset.from_generator(lambda: ({"clip": clip.tolist()} for clip in sound))
    standardize_statistics(model, stream, lambda rows: collate([torch.tensor(row["clip"]) for row in rows]))
    expected = tiny_model(**TONE)
    standardize_statistics(expected, sound, collate)
    found, wanted = (m.amess.fusion.evidence["audio"].mean for m in (model, expected))
    torch.testing.assert_close(found, wanted)


def test_statistics_of_a_modality_that_is_absent_are_zero():
    mean, deviation = masked_statistics(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))
    assert not mean.any() and deviation.max() < 1e-3
