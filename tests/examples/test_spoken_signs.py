"""The corpus of spoken words and hand signs: what tells the intent, and that no split knows another's voices."""

import csv
import io
import wave

import numpy as np
import pytest
import spoken_signs


pytest.importorskip("skimage", reason='pip install "amess_hf[video]"')
av = pytest.importorskip("av", reason='pip install "amess_hf[video]"')


def tone(pitch):
    """A WAV file of half a second, as a synthesizer writes it."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(22_050)
        samples = np.sin(2 * np.pi * pitch * np.arange(11_025) / 22_050)
        file.writeframes((2**14 * samples).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture
def synthesizer(monkeypatch):
    """A synthesizer with two accents and twenty variants, for which every word is a tone of its own."""

    def espeak(*arguments):
        if arguments[0] == "--voices=en":
            return b" 5  en-gb  --/M  English  gmw/en\n 5  en-us  --/M  American  gmw/en-US\n"
        if arguments[0] == "--voices=variant":
            return "".join(f" 5  variant  --/F  voice{n}  !v/voice{n}\n" for n in range(20)).encode()
        return tone(200 + 10 * len(arguments[-1]))

    monkeypatch.setattr(spoken_signs, "espeak", espeak)


def test_no_voice_is_in_two_splits(synthesizer):
    voices = spoken_signs.voices()
    assert {split: len(names) for split, names in voices.items()} == {"train": 24, "dev": 6, "test": 10}
    variants = [{name.split("+")[1] for name in names} for names in voices.values()]
    assert not variants[0] & variants[1] and not variants[0] & variants[2] and not variants[1] & variants[2]
    photographs = [name for names in spoken_signs.PHOTOGRAPHS.values() for name in names]
    assert len(set(photographs)) == len(photographs)


def test_what_tells_the_intent():
    clips = spoken_signs.draw_clips("train", 200, 0, ["en+a", "en+b"])
    kinds = [clip.tells for clip in clips]
    assert {kind: kinds.count(kind) for kind in spoken_signs.TELLS} == {"both": 80, "audio": 60, "video": 60}
    for clip in clips:
        word, fingers = spoken_signs.INTENTS[clip.label]
        assert (word in clip.spoken) == (clip.tells != "video")
        assert (clip.fingers == fingers) == (clip.tells != "audio")
        assert clip.text in spoken_signs.FILLERS and clip.fingers in (fingers, spoken_signs.FIST, None)
    assert {clip.label for clip in clips} == set(spoken_signs.INTENTS)
    assert {clip.person for clip in clips}.isdisjoint(
        clip.person for clip in spoken_signs.draw_clips("dev", 200, 0, ["en+c"])
    )
    assert clips == spoken_signs.draw_clips("train", 200, 0, ["en+a", "en+b"])


def test_corpus(tmp_path, synthesizer):
    arguments = spoken_signs.CorpusArguments(tmp_path / "clips", train_clips=4, dev_clips=2, test_clips=2)
    spoken_signs.write_corpus(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]
    with open(tmp_path / "clips" / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        with av.open(str(tmp_path / "clips" / row["video"])) as clip:
            assert clip.streams.video[0].width == spoken_signs.SIZE[0]
            assert clip.duration / av.time_base >= spoken_signs.SECONDS_AT_LEAST - 0.2 and clip.streams.audio
    with pytest.raises(ValueError, match="exists"):
        spoken_signs.write_corpus(arguments)
