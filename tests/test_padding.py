import numpy as np
import pytest
import torch

from amess_hf.padding_amess import encode_texts, pad_features


class TestPadFeatures:
    def test_longest_of_the_batch(self):
        rng = np.random.default_rng(0)
        clips = [rng.normal(size=(frames, 3)).astype(np.float32) for frames in (2, 5, 1)]
        features, mask = pad_features(clips, 3, max_length=10)
        assert features.shape == (3, 5, 3) and features.dtype == torch.float32
        assert mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
        for row, clip in enumerate(clips):
            np.testing.assert_array_equal(features[row, : len(clip)].numpy(), clip)
            assert (features[row, len(clip) :] == 0).all()

    def test_cut_at_the_maximum_and_exactly_the_maximum(self):
        clips = [np.arange(12.0).reshape(4, 3), np.ones((3, 3))]
        features, mask = pad_features(clips, 3, max_length=3)
        assert mask.tolist() == [[1, 1, 1], [1, 1, 1]]
        np.testing.assert_array_equal(features[0].numpy(), clips[0][:3])

    def test_absent_clips(self):
        features, mask = pad_features([None, np.zeros((0, 3)), [[1.0, 2.0, 3.0]]], 3, max_length=4)
        assert mask.tolist() == [[0], [0], [1]]
        assert features[2].tolist() == [[1.0, 2.0, 3.0]]

    def test_nobody_has_it(self):
        features, mask = pad_features([None, None], 3, max_length=4)
        assert features.shape == (2, 1, 3) and mask.sum() == 0

    @pytest.mark.parametrize("clip", [np.ones((2, 4)), np.ones(3), np.ones((2, 1, 3))])
    def test_wrong_shape(self, clip):
        with pytest.raises(ValueError, match=r"`audio_features` of clip 1 .*\(frames, 3\)"):
            pad_features([np.ones((2, 3)), clip], 3, 10, "audio_features")


class TestEncodeTexts:
    def words(self, tokenizer, ids):
        return tokenizer.decode(ids).replace("[PAD]", "").split()

    def test_padding_and_masks(self, tokenizer):
        batch = encode_texts(tokenizer, ["hello", "thanks you are so kind"])
        assert batch["input_ids"].shape == (2, 7)
        assert batch["attention_mask"].sum(1).tolist() == [3, 7]

    def test_an_empty_utterance_has_no_words(self, tokenizer):
        batch = encode_texts(tokenizer, ["", "hello", "  "])
        assert batch["attention_mask"].sum(1).tolist() == [0, 3, 0]

    def test_long_utterance_is_cut_at_its_end(self, tokenizer):
        batch = encode_texts(tokenizer, ["please help me with this box"], max_length=5)
        assert self.words(tokenizer, batch["input_ids"][0]) == ["[CLS]", "please", "help", "me", "[SEP]"]

    def test_context_goes_before_with_separators(self, tokenizer):
        batch = encode_texts(tokenizer, ["help me"], [["a: hello", "b: no"]])
        expected = "[CLS] a : hello [SEP] b : no [SEP] help me [SEP]".split()
        assert self.words(tokenizer, batch["input_ids"][0]) == expected
        assert batch["token_type_ids"][0].tolist() == [0] * 9 + [1] * 3
        assert batch["utterance_mask"][0].tolist() == [0] * 8 + [1] * 4  # the separator stands for a start token

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_utterances_are_told_from_their_context(self, tokenizer, side, monkeypatch):
        monkeypatch.setattr(tokenizer, "padding_side", side)
        batch = encode_texts(tokenizer, ["help me", "hello", ""], [["b: no"], [], ["a: yes", "b: no"]])
        words = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["utterance_mask"], strict=True)]
        assert [self.words(tokenizer, ids) for ids in words] == [
            ["[SEP]", "help", "me", "[SEP]"],
            ["[CLS]", "hello", "[SEP]"],
            [],
        ]

    def test_no_context_no_utterance_mask(self, tokenizer):
        assert "utterance_mask" not in encode_texts(tokenizer, ["help me", "hello"], [[], []])

    def test_the_oldest_turn_goes_first_and_the_utterance_never(self, tokenizer):
        turns = ["a: hello", "b: no", "a: yes"]
        full = encode_texts(tokenizer, ["help me"], [turns])["input_ids"].shape[1]
        kept = []
        for limit in range(full, 4, -1):
            words = self.words(tokenizer, encode_texts(tokenizer, ["help me"], [turns], limit)["input_ids"][0])
            assert len(words) <= limit
            assert words[-3:] == ["help", "me", "[SEP]"]
            kept.append(sum(word in ("hello", "no", "yes") for word in words))
        assert kept[0] == 3 and kept[-1] == 0
        assert kept == sorted(kept, reverse=True)
        assert set(kept) == {0, 1, 2, 3}

    def test_the_limit_holds_whatever_separators_cost(self, tokenizer, monkeypatch):
        """Some tokenizers make more than one token of the blanks around a separator."""
        monkeypatch.setattr(type(tokenizer), "sep_token", property(lambda self: "[SEP] so so"), raising=False)
        for limit in range(5, 25):
            batch = encode_texts(tokenizer, ["help me"], [["a: hello", "b: no", "a: yes"]], limit)
            assert batch["input_ids"].shape[1] <= limit

    def test_utterance_longer_than_the_limit_leaves_no_room(self, tokenizer):
        batch = encode_texts(tokenizer, ["please help me with this box"], [["a: hello"]], max_length=6)
        assert self.words(tokenizer, batch["input_ids"][0]) == "[CLS] please help me with [SEP]".split()

    def test_batch_with_and_without_context(self, tokenizer):
        batch = encode_texts(tokenizer, ["help me", "hello"], [["b: no"], []], max_length=20)
        alone = encode_texts(tokenizer, ["hello"], max_length=20)
        assert batch["input_ids"][1, :3].tolist() == alone["input_ids"][0].tolist()
        assert batch["attention_mask"].sum(1).tolist() == [8, 3]
