"""A-ME: evidence of audio and video, anchors, and the tokens that convolutions make."""

import math

import pytest
import torch
from utils import random_batch, rows_of, tiny_config, tiny_model

from amess_hf import anchor_embedding_amess
from amess_hf.anchor_embedding_amess import (
    AMESSFrameEvidence,
    AMESSStatisticsEvidence,
    AMESSVotes,
    choose_anchors,
    pool_votes,
    support,
)
from amess_hf.layers_amess import AMESSGridConvolution, AMESSTemporalLayer, shift_features


TONE = {"audio_config": {"norm": "clip", "num_conv_layers": 2, "pooling": "statistics"}}
PICTURE = {"video_config": {"num_conv_layers": 1, "conv_kernel_size": 3}}
GRID = {"video_config": {"feature_size": 5 * 5 * 2, "grid_side": 5}}


def lengths_mask(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


class TestPooling:
    def test_by_hand(self):
        votes = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [9.0, 9.0]]])
        pooled = pool_votes(votes, torch.tensor([[True, True, False]]))
        expected = [math.log((1 + math.exp(2)) / 2), 1.0]
        torch.testing.assert_close(pooled, torch.tensor([expected]))

    def test_slow_loop_and_absent_clip(self):
        generator = torch.Generator().manual_seed(0)
        votes, mask = torch.randn(3, 7, 4, generator=generator), lengths_mask(7, 2, 0)
        pooled = pool_votes(votes, mask)
        for clip, length in enumerate((7, 2)):
            for label in range(4):
                mean = sum(math.exp(votes[clip, frame, label]) for frame in range(length)) / length
                assert pooled[clip, label] == pytest.approx(math.log(mean), abs=1e-5)
        assert (pooled[2] == 0).all()

    def test_a_longer_clip_of_the_same_frames_is_not_surer(self):
        votes = torch.randn(1, 3, 4)
        twice = torch.cat([votes, votes], dim=1)
        once = pool_votes(votes, lengths_mask(3))
        torch.testing.assert_close(pool_votes(twice, lengths_mask(6)), once)


class TestVotes:
    @pytest.mark.parametrize("layer_class", [AMESSFrameEvidence, AMESSStatisticsEvidence])
    def test_nothing_is_said_before_training(self, layer_class):
        model = tiny_model(**(TONE if layer_class is AMESSStatisticsEvidence else {}))
        fresh = type(model)(model.config).eval()
        assert isinstance(fresh.amess.fusion.evidence["audio"], layer_class)
        outputs = fresh(**random_batch(model.config))
        assert (outputs.evidence == 0).all()

    def test_a_maximum_finds_a_word_anywhere(self):
        evidence = AMESSStatisticsEvidence(tiny_config(dropout=0.0), 6).eval()
        for votes in evidence.children():
            if isinstance(votes, AMESSVotes):
                torch.nn.init.zeros_(votes.weight)
        torch.nn.init.ones_(evidence.peak_votes.weight)
        tokens, mask = torch.zeros(3, 7, 16), lengths_mask(7, 3, 0)
        tokens[0, 5], tokens[1, 1], tokens[1, 4], tokens[2, 0] = 2.0, 2.0, 9.0, 9.0  # the last two are padding
        frames = torch.zeros(3, 7, 6)
        votes, _ = evidence(frames, mask, tokens, mask)
        assert (votes[0] == votes[1]).all() and (votes[0] == 32).all() and (votes[2] == 0).all()

    def test_other_labels(self):
        votes = AMESSVotes(3, 2)
        before = votes.weight.detach().clone()
        votes.select_labels([1, None, 0])
        assert torch.equal(votes.weight[[0, 2]], before[[1, 0]]) and (votes.weight[1] == 0).all()
        assert votes(torch.ones(5, 3)).shape == (5, 3)


class TestSupport:
    def test_by_hand(self):
        # The modality says the first of two intents, three to one: a frame scores a quarter of the votes' difference.
        evidence = torch.tensor([[math.log(3.0), 0.0]])
        scores = support(torch.tensor([[[2.0, 0.0], [0.0, 2.0], [5.0, 5.0]]]), evidence)
        torch.testing.assert_close(scores, torch.tensor([[0.5, -0.5, 0.0]]))

    def test_slow_loop(self):
        votes, evidence = torch.randn(2, 5, 3), torch.randn(2, 3)
        scores = support(votes, evidence)
        for clip in range(2):
            total = sum(math.exp(value) for value in evidence[clip])
            for frame in range(5):
                likely = sum(math.exp(evidence[clip, k]) / total * float(votes[clip, frame, k]) for k in range(3))
                assert scores[clip, frame] == pytest.approx(likely - float(votes[clip, frame].mean()), abs=1e-5)

    def test_a_frame_that_votes_for_what_the_clip_rules_out_is_no_anchor(self):
        config = tiny_config(dropout=0.0)
        evidence = AMESSFrameEvidence(config, config.num_labels)
        torch.nn.init.eye_(evidence.votes.weight)
        frames = torch.zeros(1, 6, config.num_labels)
        frames[0, :3, 0], frames[0, 4, 1] = 3.0, 3.5  # three frames agree, and one stands out
        says, scores = evidence(frames, lengths_mask(6), frames, lengths_mask(6))
        assert says[0].argmax() == 0 and scores[0].argmax() in (0, 1, 2)


class TestShifts:
    """Training moves the bands of the sound and the grids of the picture, each clip by its own step."""

    def test_bands(self):
        frames = torch.arange(1.0, 7).repeat(64, 2, 1)
        moved = shift_features(frames, 2)
        steps = moved[:, 0, 2] - frames[:, 0, 2]
        assert set(steps.tolist()) == {-2, -1, 0, 1, 2}
        for clip, step in enumerate(steps):
            assert torch.equal(moved[clip], (frames[clip] + step).clamp(1, 6))

    def test_grid(self):
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        frames = torch.stack([rows, columns], dim=-1).reshape(1, 1, -1).repeat(64, 3, 1)
        moved = shift_features(frames, 1, grid_side=4).reshape(64, 3, 4, 4, 2)
        steps = moved[:, 0, 1, 1] - 1
        assert len({tuple(step.tolist()) for step in steps}) == 9
        for clip, (down, across) in enumerate(steps):
            expected = torch.stack([(rows + down).clamp(0, 3), (columns + across).clamp(0, 3)], dim=-1)
            assert torch.equal(moved[clip], expected.expand(3, -1, -1, -1))

    def test_only_in_training(self):
        shifts = {"audio_config": {"max_shift": 2}, "video_config": {**GRID["video_config"], "max_shift": 1}}
        model = tiny_model(**shifts, dropout=0.0, modality_dropout=0.0)
        batch = random_batch(model.config)
        with torch.no_grad():
            once, again = model(**batch).logits, model(**batch).logits
            assert torch.equal(once, again)
            model.amess.fusion.train()
            assert not torch.equal(model(**batch).logits, once)


class TestAnchors:
    def test_most_votes_first(self):
        scores, mask = torch.tensor([[1.0, 3.0, 2.0, 9.0], [0.0, 5.0, 0.0, 0.0]]), lengths_mask(3, 0, 4)[:2]
        mask = torch.tensor([[True, True, True, False], [False] * 4])
        indices, shares, present = choose_anchors(scores, mask, 2)
        assert indices[0].tolist() == [1, 2] and present.tolist() == [[True, True], [False, False]]
        torch.testing.assert_close(shares[0], scores[0, :3].softmax(-1)[[1, 2]])
        assert (shares[1] == 0).all()

    def test_of_equal_scores_the_earlier(self):
        for length in (6, 16, 17, 400):
            scores = torch.zeros(2, length)
            scores[1, 4] = 1.0
            indices, shares, _ = choose_anchors(scores, torch.ones(2, length, dtype=torch.bool), 3)
            assert indices.tolist() == [[0, 1, 2], [4, 0, 1]]

    def test_silence_is_answered_alike_beside_any_neighbor(self):
        model = tiny_model()
        batch = random_batch(model.config, audio=(9, 4, 1), video=(6, 8, 2))
        batch["audio_features"][:1], batch["video_features"][:1] = 0.0, 0.5
        together = {name: torch.nn.functional.pad(value, (0, 0, 0, 300)) if value.dim() == 3 else value
                    for name, value in batch.items()}  # fmt: skip
        for name in ("audio", "video"):
            mask = f"{name}_attention_mask"
            together[mask] = torch.nn.functional.pad(batch[mask], (0, 300))
        first, second = model(**rows_of(batch, [0])), model(**together)
        torch.testing.assert_close(first.logits, second.logits[:1], atol=1e-5, rtol=1e-5)
        assert torch.equal(first.anchor_indices, second.anchor_indices[:1])

    def test_positions_are_those_of_frames(self):
        model = tiny_model(**TONE)
        indices = model(**random_batch(model.config, audio=(9, 4, 1))).anchor_indices[:, 1]
        assert (indices[indices >= 0] % 4 == 0).all() and (indices[0] >= 0).sum() == 3 and (indices[2] >= 0).sum() == 1


class TestTemporalLayer:
    def test_halves_and_leaves_padding_out(self):
        config = tiny_config()
        layer, tokens = AMESSTemporalLayer(config, 3).eval(), torch.randn(2, 7, 16)
        mask = lengths_mask(7, 4)
        states, mask_after = layer(tokens, mask)
        assert states.shape == (2, 4, 16) and mask_after.sum(1).tolist() == [4, 2]
        alone, _ = layer(tokens[1:, :4], mask[1:, :4])
        torch.testing.assert_close(states[1, :2], alone[0])


class TestGrids:
    def test_a_pattern_is_found_wherever_it_is(self):
        convolution = AMESSGridConvolution(tiny_config(), 48 * 48 * 2, 48).eval()
        here, there = torch.zeros(2, 48, 48, 2)
        pattern = torch.randn(3, 3, 2)
        here[20:23, 20:23], there[20:23, 24:27] = pattern, pattern
        nothing = torch.zeros(1, 3, 48 * 48 * 2)
        found = convolution(torch.stack([here, there, here.flip(2)]).reshape(1, 3, -1))
        torch.testing.assert_close(found[0, 0], found[0, 1], atol=1e-4, rtol=1e-4)
        assert (found[0, 2] - found[0, 0]).abs().max() > 0.01 < (found - convolution(nothing)).abs().max()

    def test_gradients_reach_every_place(self):
        convolution = AMESSGridConvolution(tiny_config(), 5 * 5 * 2, 5).eval()
        frames = torch.randn(1, 1, 50, requires_grad=True)
        convolution(frames).sum().backward()
        assert (frames.grad != 0).all()

    def test_a_frame_is_read_by_itself(self):
        convolution = AMESSGridConvolution(tiny_config(), 5 * 5 * 2, 5).eval()
        frames = torch.randn(2, 4, 50)
        together = convolution(frames)
        torch.testing.assert_close(convolution(frames[1:, 2:3])[0, 0], together[1, 2])
        assert together.shape == (2, 4, 16)

    def test_no_grid(self):
        with pytest.raises(ValueError, match=r"`video_config`: `grid_side` is 5; .* divides `feature_size` \(24\)"):
            tiny_config(video_config={"feature_size": 24, "grid_side": 5})


@pytest.mark.parametrize(
    "fields", [{}, TONE, PICTURE, {**TONE, **PICTURE}, GRID, {"fusion_type": "late", **GRID}, {"fusion_type": "late"}]
)
class TestClipAlone:
    def test_padding_and_neighbors_change_nothing(self, fields):
        model = tiny_model(**fields)
        batch = random_batch(model.config, text=(5, 3, 7), audio=(9, 4, 1), video=(6, 8, 2))
        together = model(**batch)
        for clip in range(3):
            outputs = model(**rows_of(batch, [clip]))
            torch.testing.assert_close(together.logits[clip], outputs.logits[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.evidence[clip], outputs.evidence[0], atol=1e-5, rtol=1e-5)

    def test_words_alone_are_answered_as_without_fusion(self, fields):
        model = tiny_model(**fields)
        batch = random_batch(model.config, audio=(0, 3, 1), video=(0, 2, 2), labels=False)
        with_others = model(**batch)
        words = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
        torch.testing.assert_close(with_others.logits[0], model(**words).logits[0], atol=1e-5, rtol=1e-5)
        assert with_others.modality_mask.tolist() == [[True, False, False], [True, True, True], [True, True, True]]
        torch.testing.assert_close(with_others.pooler_output[0], with_others.text_pooler_output[0])

    def test_a_clip_that_lacks_a_modality_counts_in_no_loss_of_it(self, fields):
        model = tiny_model(**fields)
        batch = random_batch(model.config, audio=(9, 0, 1), video=(6, 8, 2))
        before = model(**batch).audio_loss
        batch["labels"][1] = (batch["labels"][1] + 1) % 4
        torch.testing.assert_close(model(**batch).audio_loss, before)

    def test_evidence_learns_from_its_own_loss_alone(self, fields):
        model = tiny_model(**fields, label_similarity_weight=0.0, modality_loss_weight=0.0)
        weights = [p for name, p in model.named_parameters() if "votes" in name]
        loss = model(**random_batch(model.config)).classification_loss
        assert weights and not loss.requires_grad
        model(**random_batch(model.config)).loss.backward()
        if fields.get("fusion_type") == "late":
            assert all(weight.grad is None for weight in weights)


def test_votes_for_many_labels_are_made_again(monkeypatch):
    """The same losses and gradients, whether votes are kept for the backward pass or not."""

    def gradients():
        model = tiny_model(modality_dropout=0.0, dropout=0.0).train()
        loss = model(**random_batch(model.config)).loss
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    kept, expected = gradients()
    monkeypatch.setattr(anchor_embedding_amess, "MANY_LABELS", 1)
    made_again, found = gradients()
    assert torch.equal(kept, made_again) and set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0, msg=name)
