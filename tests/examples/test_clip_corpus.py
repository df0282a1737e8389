"""The demo's clips: what tells the intent is in the sound and the picture, where it is said to be, and nowhere else."""

import csv

import clip_corpus
import demo_clips
import numpy as np
import pytest
from demo_corpus import EVIDENCE, FACES, TONES
from demo_examples import EXAMPLES


av = pytest.importorskip("av", reason='pip install "amess_hf[video]"')
pytest.importorskip("PIL", reason='pip install "amess_hf[video]"')

COUNTS = {"train": 6, "dev": 4, "test": 4}


def scene(tone=None, face=None, seed=0, speaker=3, **fields):
    return demo_clips.Scene(speaker, 2.0, tone, (0.6, 1.2), face, (0.8, 1.6), seed=seed, **fields)


@pytest.mark.parametrize("speaker", range(4))
def test_tone_changes_the_voice_in_its_span_only(speaker):
    plain, raised, soft = (demo_clips.voice_samples(scene(tone, speaker=speaker)) for tone in (None, *TONES[::-1]))

    def level(samples, first, last):
        return float(np.sqrt((samples[int(first * 16000) : int(last * 16000)] ** 2).mean()))

    assert level(raised, 0.7, 1.1) > level(raised, 0.0, 0.5) * level(plain, 0.7, 1.1) / level(plain, 0.0, 0.5)
    assert level(soft, 0.7, 1.1) < level(plain, 0.7, 1.1)
    before = slice(0, int(0.5 * 16000))  # the same but for the level, which follows the loudest moment
    assert np.corrcoef(soft[before], plain[before])[0, 1] > 0.99 < np.corrcoef(raised[before], plain[before])[0, 1]
    assert all(np.abs(samples).max() <= 1 for samples in (plain, raised, soft))


def test_face_moves_in_its_span_only():
    sound = np.zeros(32000, dtype=np.float32)
    still, smiling, frowning = (demo_clips.Actor(scene(face=face), sound, (64, 48)) for face in (None, *FACES))
    for time in (0.1, 0.7, 1.8):
        assert np.array_equal(still.draw(time), smiling.draw(time))
    assert [actor.pose(1.2)["smile"] for actor in (still, smiling, frowning)] == [0.0, 1.0, -1.0]
    middle = [actor.draw(1.2).astype(int) for actor in (still, smiling, frowning)]
    assert all(np.abs(middle[0] - other).mean() > 0.5 for other in middle[1:])


def test_weak_scenes_say_little():
    clear, weak, none = (demo_clips.voice_samples(scene("raised", tone_strength=s)) for s in (1.0, 0.1, 0.0))
    assert np.abs(weak - none).mean() < np.abs(clear - none).mean()
    np.testing.assert_array_equal(none, demo_clips.voice_samples(scene(None, tone_strength=0.0)))


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


def test_examples_say_the_same_and_mean_different_things():
    first, second, *_, last = EXAMPLES
    assert first.text == second.text and first.intent != second.intent and last.intent is None
    for example in EXAMPLES[:-1]:
        _, tone, face = EVIDENCE[example.intent]
        assert (example.scene.tone, example.scene.face) == (TONES[tone], FACES[face])
