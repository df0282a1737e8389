"""The demo's clips: they are in the official layout, and what tells the intent lies within them."""

import csv

import clip_corpus
import numpy as np
import pytest
from demo_corpus import EVIDENCE, FACES, TONES
from demo_examples import EXAMPLES


av = pytest.importorskip("av", reason='pip install "amess_hf[video]"')
pytest.importorskip("PIL", reason='pip install "amess_hf[video]"')

COUNTS = {"train": 6, "dev": 4, "test": 4}


def test_corpus_is_in_the_layout_of_mintrec(tmp_path):
    clips = clip_corpus.write_clip_corpus(tmp_path / "corpus", seed=3, clips_per_split=COUNTS)
    for split, count in COUNTS.items():
        with (tmp_path / "corpus" / f"{split}.tsv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert [(row["text"], row["label"]) for row in rows] == [(clip.text, clip.label) for clip in clips[split]]
        assert len(rows) == count
        for clip in clips[split]:
            with av.open(str(tmp_path / "corpus" / clip.path)) as container:
                assert container.streams.video[0].codec_context.name == "h264"
                assert container.duration / 1e6 == pytest.approx(clip.scene.seconds, abs=0.25)
    with pytest.raises(ValueError, match="exists and is not empty"):
        clip_corpus.write_clip_corpus(tmp_path / "corpus")
    assert not list(tmp_path.glob(".corpus*"))


def test_evidence_lies_in_the_clip_and_speakers_of_test_are_new():
    clips = [(split, clip) for split, clip in clip_corpus.corpus_clips(seed=1)]
    speakers = {split: {clip.scene.speaker for name, clip in clips if name == split} for split in COUNTS}
    assert not speakers["train"] & (speakers["dev"] | speakers["test"]) and not speakers["dev"] & speakers["test"]
    assert not {example.scene.speaker for example in EXAMPLES} & (speakers["train"] | speakers["dev"])
    for _, clip in clips:
        scene, (_, tone, face) = clip.scene, EVIDENCE[clip.label]
        assert (scene.tone, scene.face) == (TONES[tone], FACES[face])
        for begin, end in (scene.tone_span, scene.face_span):
            assert 0 < begin < end < scene.seconds
    weak = np.mean([clip.scene.tone_strength < 0.5 for _, clip in clips])
    assert weak == pytest.approx(clip_corpus.WEAK_SHARE, abs=0.04)
    again = [clip for _, clip in clip_corpus.corpus_clips(seed=1)]
    assert again == [clip for _, clip in clips]
