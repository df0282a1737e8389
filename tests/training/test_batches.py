"""The clips and the descriptions of a training step."""

import distributed_worker
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from utils import DESCRIPTIONS, tiny_model

from amess_hf.configuration_amess import TRAINING_SENTENCES
from amess_hf.training import LabelDescriptionSampler
from amess_hf.training.batches import ClipBatchSampler, training_dataloader, update_label_embeds, warn_of_cuts


@pytest.mark.parametrize("clips", [1, 7, 16, 17, 30])
@pytest.mark.parametrize("grouped", [False, True])
def test_shares_of_a_batch(clips, grouped):
    """Each step's shares are disjoint and together the single process's batch; every clip comes once in an epoch."""
    lengths = np.random.default_rng(clips).integers(1, 50, clips) if grouped else None
    alone = ClipBatchSampler(clips, 6, seed=4, lengths=lengths)
    shares = [ClipBatchSampler(clips, 2, 4, 3, rank, lengths) for rank in range(3)]
    epochs = []
    for epoch in range(2):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        steps = list(alone)
        assert len(steps) == len(alone) == len(shares[0]) == -(-clips // 6)
        assert sorted(sum(steps, [])) == list(range(clips))
        for whole, *parts in zip(steps, *shares, strict=True):
            assert sorted(sum(parts, [])) == sorted(whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        epochs.append(steps)
    assert clips < 7 or epochs[0] != epochs[1]


def test_last_batch_can_be_left_out():
    assert [len(batch) for batch in ClipBatchSampler(11, 2, 0, 2, 1, drop_last=True)] == [2, 2]


def test_grouping_by_length_pads_less():
    lengths = np.random.default_rng(0).integers(10, 500, 1000)

    def share_of_padding(sampler):
        held = [lengths[batch] for batch in sampler]
        return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in held)

    grouped = share_of_padding(ClipBatchSampler(1000, 16, 0, lengths=lengths))
    assert grouped < 0.3 * share_of_padding(ClipBatchSampler(1000, 16, 0))


def test_lengths_of_clips(tmp_path):
    """Tokens with the two special ones, and frames up to the limit, also of a selection in another order."""
    clips = distributed_worker.make_clips(12, seed=5)
    config, tokenizer = distributed_worker.make_model().config, distributed_worker.make_tokenizer()
    config.max_text_length, config.audio_config.max_length = 6, 4
    chosen = clips.select([7, 2, 2, 9])
    expected = [
        min(len(row["text"].split()) + 2, 6) + min(len(row["audio_features"]), 4) + len(row["video_features"])
        for row in chosen
    ]
    args = distributed_worker.make_arguments(tmp_path, 1, train_sampling_strategy="group_by_length")
    for clips in (chosen, list(chosen)):
        loader = training_dataloader(clips, None, args, Accelerator(), tokenizer, config)
        assert loader.batch_sampler.lengths.tolist() == expected


def test_share_of_clips_that_are_cut(caplog):
    config, tokenizer = distributed_worker.make_model().config, distributed_worker.make_tokenizer()
    clips = [
        {"text": "hello " * count, "context": ["hello " * 9], "audio_features": np.ones((count, 2))}
        for count in range(1, 9)
    ]
    config.max_text_length, config.audio_config.max_length = 8, 4
    warn_of_cuts(clips, tokenizer, config)
    assert (
        "training clips are cut: 25.0% beyond `max_text_length` (8), 50.0% beyond `audio_config.max_length` (4)"
        in caplog.text
    )
    caplog.clear()
    warn_of_cuts(clips[:4], tokenizer, config)
    assert not caplog.text


def test_memory_does_not_start_empty(tokenizer):
    model = tiny_model()
    model.label_embeds.zero_()
    update_label_embeds(model, tokenizer, missing_only=True)
    torch.testing.assert_close(model.label_embeds.norm(dim=-1), torch.ones(4))
    model.label_embeds.fill_(0.5)
    update_label_embeds(model, tokenizer, missing_only=True)
    assert (model.label_embeds == 0.5).all()


class TestLabelDescriptionSampler:
    @pytest.mark.parametrize("period", [1, 2, 3, 4, 7, 50])
    def test_every_label_once_in_a_period(self, tokenizer, period):
        sampler = LabelDescriptionSampler(DESCRIPTIONS, tokenizer, period, seed=0)
        for start in (0, 3 * period):
            seen = []
            for step in range(start, start + period):
                seen += sampler(step).get("description_indices", torch.tensor([])).tolist()
            assert sorted(seen) == [0, 1, 2, 3]

    def test_labels_take_turns_in_tens(self, tokenizer):
        sampler = LabelDescriptionSampler(
            {f"label {number}": ["thank"] for number in range(25)}, tokenizer, 10, seed=0
        )
        drawn = {step: sampler(step).get("description_indices", torch.tensor([])).tolist() for step in range(10)}
        assert drawn == dict.fromkeys(range(10), []) | {0: list(range(13)), 5: list(range(13, 25))}

    def test_same_step_same_draw(self, tokenizer):
        first, second = (LabelDescriptionSampler(DESCRIPTIONS, tokenizer, 1, seed=5) for _ in range(2))
        second(0)
        for name, value in first(3).items():
            assert torch.equal(value, second(3)[name])

    def test_all_sentences_are_drawn_and_belong_to_the_label(self, tokenizer):
        sampler = LabelDescriptionSampler(DESCRIPTIONS, tokenizer, 1, seed=0)
        drawn = set()
        for step in range(30):
            batch = sampler(step)
            for index, ids in zip(batch["description_indices"].tolist(), batch["description_input_ids"], strict=True):
                drawn.add((index, tokenizer.decode(ids, skip_special_tokens=True)))
        expected = {(index, text) for index, texts in enumerate(DESCRIPTIONS.values()) for text in texts}
        assert drawn == expected

    def test_draws_from_the_sentences_that_say_what_the_intent_is(self, tokenizer):
        defining = [f"grumble {'so ' * count}" for count in range(TRAINING_SENTENCES)]
        sampler = LabelDescriptionSampler({"Complain": [*defining, "hello there", "thanks"]}, tokenizer, 1, seed=0)
        drawn = {sampler(step)["description_input_ids"].shape[1] for step in range(100)}
        expected = {len(tokenizer(text)["input_ids"]) for text in defining}
        assert drawn == expected
