import numpy as np
import pytest
from transformers import BertTokenizer, RobertaTokenizer

from amess_hf.pipeline_amess import anchor_spans, scored_anchors
from amess_hf.pipeline_amess import utterance_words as words_of
from amess_hf.processing_amess import encode_texts


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def word_piece():
    vocabulary = [*SPECIAL, "un", "##believ", "##able", "day", "no", ","]
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})


@pytest.fixture(scope="module")
def byte_pair():
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "n", "o", "Ġ", "Ġd", "Ġda", "Ġday", "d", "a", "y"]
    return RobertaTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=[("Ġ", "d"), ("Ġd", "a"), ("Ġda", "y")],
    )


def utterance_words(tokenizer, anchors, text, context=(), max_length=None):
    encodings = encode_texts(tokenizer, [text], [context], max_length).encodings
    return words_of(text, anchors, encodings[0])


def scores(words):
    return [(word["word"], word["score"]) for word in words]


def test_scored_anchors():
    assert scored_anchors(np.array([4, 0, -1]), np.array([0.25, 0.5, 0.9], np.float32)) == [(0, 0.5), (4, 0.25)]


class TestUtteranceWords:
    # [CLS] un ##believ ##able , day [SEP]
    def test_word_piece_tokenizer(self, word_piece):
        words = utterance_words(word_piece, [(0, 0.9), (2, 0.5), (3, 0.7), (6, 0.1)], "Unbelievable,  day")
        assert scores(words) == [("Unbelievable,", 0.7), ("day", None)]
        assert [(word["start"], word["end"]) for word in words] == [(0, 13), (15, 18)]
        assert scores(utterance_words(word_piece, [(4, 0.6), (5, 0.2)], "unbelievable, day")) == [
            ("unbelievable,", 0.6),
            ("day", 0.2),
        ]

    # <s> n o Ġday </s>
    def test_byte_pair_tokenizer(self, byte_pair):
        assert scores(utterance_words(byte_pair, [(2, 0.5), (3, 0.25)], "no day")) == [("no", 0.5), ("day", 0.25)]
        # <s> n o Ġ n o </s>: a token that is the space before a word is part of it
        assert scores(utterance_words(byte_pair, [(3, 0.5)], "no no")) == [("no", None), ("no", 0.5)]

    def test_context_is_no_word_of_the_utterance(self, word_piece):
        # [CLS] no [SEP] no [SEP] day [SEP]
        anchors = [(1, 0.9), (3, 0.8), (5, 0.7)]
        assert scores(utterance_words(word_piece, anchors, "day", ["no", "no"])) == [("day", 0.7)]
        # the turns that do not fit are left out: [CLS] no [SEP] day [SEP], then [CLS] day [SEP]
        assert scores(utterance_words(word_piece, anchors, "day", ["no", "no"], max_length=5)) == [("day", 0.8)]
        assert scores(utterance_words(word_piece, anchors, "day", ["no", "no"], max_length=3)) == [("day", 0.9)]

    def test_a_cut_utterance(self, word_piece):
        assert scores(utterance_words(word_piece, [(1, 0.5), (2, 0.4)], "no day", max_length=3)) == [
            ("no", 0.5),
            ("day", None),
        ]

    def test_no_words(self, word_piece):
        assert utterance_words(word_piece, [(0, 0.5)], "  ", ["no"]) == []


def test_anchor_spans():
    assert anchor_spans([(3, 0.5)]) == [{"frame": 3, "score": 0.5}]
    assert anchor_spans([(3, 0.5), (0, 0.25)], 10, offset=1.0) == [
        {"frame": 3, "start": 1.3, "end": 1.4, "score": 0.5},
        {"frame": 0, "start": 1.0, "end": 1.1, "score": 0.25},
    ]
