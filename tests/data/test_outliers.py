"""The utterances without intent that are shipped, and clips made of them."""

import pytest
from demo_corpus import write_demo_corpus

from amess_hf import load_mintrec
from amess_hf.data.outliers import outlier_utterances, with_outliers
from amess_hf.descriptions_amess import load_label_descriptions, normalize_sentence


def test_none_describes_an_intent():
    utterances = [normalize_sentence(text) for text in outlier_utterances()]
    assert len(set(utterances)) == len(utterances) > 200
    for name in ("mintrec", "mintrec2.0"):
        described = {normalize_sentence(text) for texts in load_label_descriptions(name).values() for text in texts}
        assert not described & set(utterances)


def test_clips(tmp_path):
    write_demo_corpus(tmp_path, clips_per_split={"train": 20, "dev": 20})
    words = load_mintrec(tmp_path, audio_features="none", video_features="none")["train"]
    split = with_outliers(words)
    assert split.features == words.features and split["text"][20:] == outlier_utterances()
    assert set(split["label"][20:]) == {-1} and split["label"][:20] == words["label"][:]
    with pytest.raises(ValueError, match="no sound and no picture"):
        with_outliers(load_mintrec(tmp_path)["train"])
