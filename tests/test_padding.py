from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast, XLNetConfig
from utils import TEXT_SIZES, tiny_model

from amess_hf.processing_amess import encode_texts, pad_features


SMALL = {
    "llama": LlamaConfig(**TEXT_SIZES, intermediate_size=32, max_position_embeddings=64, initializer_range=0.3),
    "xlnet": XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, d_inner=32, initializer_range=0.3),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
}


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


class TestOtherTokenizers:
    """Tokenizers that pad on the left, and those of language models, which may have neither padding nor other tokens."""

    WORDS = "hello thanks you are so kind late again".split()

    def make(self, **kwargs):
        vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *self.WORDS])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", padding_side="left", **kwargs)

    @pytest.mark.parametrize("pad_token", ["<pad>", None])
    @pytest.mark.parametrize("kind", ["llama", "xlnet", "gpt2"])
    def test_an_answer_does_not_depend_on_the_batch(self, kind, pad_token):
        tokenizer = self.make(pad_token=pad_token)
        model = tiny_model(text_config=SMALL[kind], label_descriptions=None)
        texts, contexts = ["hello you", "", "thanks you are so kind late"], [["again"], [], ["so late", "kind"]]
        batch = encode_texts(tokenizer, texts, contexts)
        assert batch["attention_mask"][0].tolist() == [1] * 3 + [0] * 6 and not batch["attention_mask"][1].any()
        sound = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            together = model(**batch, audio_features=sound)
            for row, (text, context) in enumerate(zip(texts, contexts, strict=True)):
                alone = model(**encode_texts(tokenizer, [text], [context]), audio_features=sound[row : row + 1])
                torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=0)
                assert torch.equal(alone.anchor_indices[0], together.anchor_indices[row])

    def test_no_words_at_all(self):
        for pad_token in ("<pad>", None):
            batch = encode_texts(self.make(pad_token=pad_token), ["", " "])
            assert batch["input_ids"].shape == (2, 1) and not batch["attention_mask"].any()

    def test_threads_with_different_limits(self, tokenizer):
        """A fast tokenizer keeps the limit of a call; threads that cut and threads that do not must not meet."""

        def lengths(limit):
            return {
                encode_texts(tokenizer, ["please help me with this box"], max_length=limit)["input_ids"].shape[1]
                for _ in range(200)
            }

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lengths, [5, None, 4, 8] * 4)) == [{5}, {8}, {4}, {8}] * 4


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_features_that_are_no_numbers(value):
    clip = np.ones((4, 3))
    clip[2, 1] = value
    with pytest.raises(ValueError, match="`audio_features` of clip 1 of the batch holds NaN or infinite values"):
        pad_features([np.ones((2, 3)), clip], 3, 10, "audio_features")
    features, _ = pad_features([clip], 3, 2)  # beyond the limit nothing is read
    assert features.isfinite().all()
