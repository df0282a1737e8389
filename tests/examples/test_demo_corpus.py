"""The demo corpus: the same every time, in the official layout, and no modality enough alone."""

import csv
import re
from collections import Counter

import demo_corpus as demo
import numpy as np
import pytest

from amess_hf.data.feature_files import SafetensorsFeatures
from amess_hf.datasets_amess import DATASETS


COUNTS = {"train": 400, "dev": 100, "test": 100}
P = demo.PLAIN_SHARE
# The table in the module's docstring.
EXPECTED = {
    ("text",): P + (1 - P) / 4,
    ("audio",): 0.1,
    ("video",): 0.1,
    ("audio", "video"): 0.2,
    ("text", "audio"): P + (1 - P) / 2,
    ("text", "video"): P + (1 - P) / 2,
    ("text", "audio", "video"): 1.0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.write_demo_corpus(folder, seed=5, clips_per_split=COUNTS)


def test_official_layout(corpus):
    folder, clips = corpus
    audio = SafetensorsFeatures(folder / "audio_data" / "wavlm_feats")
    video = SafetensorsFeatures(folder / "video_data" / "swin_feats")
    assert (audio.feature_size, video.feature_size) == (demo.AUDIO_WIDTH, demo.VIDEO_WIDTH)
    ids = []
    for split, count in COUNTS.items():
        with (folder / f"{split}.tsv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert list(rows[0]) == ["season", "episode", "clip", "text", "label"] and len(rows) == count
        assert [(row["text"], row["label"]) for row in rows] == [(clip.text, clip.label) for clip in clips[split]]
        ids += [f"{row['season']}_{row['episode']}_{row['clip']}" for row in rows]
        assert set(Counter(row["label"] for row in rows).values()) == {count // 20}
    every = [clip for of_split in clips.values() for clip in of_split]
    assert ids == [clip.id for clip in every] and len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"S\d\d_E\d\d_\d+", clip_id) for clip_id in ids)
    assert sorted(audio) == sorted(video) == sorted(ids)
    for clip in every[:: len(every) // 10]:
        np.testing.assert_array_equal(audio[clip.id], clip.audio)
        np.testing.assert_array_equal(video[clip.id], clip.video)
    assert {len(clip.audio) for clip in every} <= set(range(15, 41))
    assert {len(clip.video) for clip in every} <= set(range(10, 26))


def test_labels_are_those_of_mintrec():
    assert sorted(demo.EVIDENCE) == sorted(DATASETS["mintrec"].labels) == sorted(demo.PLAIN_TEMPLATES)
    assert len(set(demo.EVIDENCE.values())) == 20, "two intents with the same group, tone and face"


def test_same_seed_same_bytes_and_another_seed_another_corpus(tmp_path):
    counts = {"train": 30, "dev": 10}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        demo.write_demo_corpus(tmp_path / name, seed=seed, clips_per_split=counts)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 + 2 * 2
    differ = 0
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        differ += (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
    assert differ >= 4


@pytest.mark.parametrize("modalities", EXPECTED, ids="+".join)
def test_best_attainable_accuracy_is_that_of_the_docstring(modalities):
    clips = [clip for _, clip in demo.demo_clips(seed=3, clips_per_split={"train": 200})]
    assert demo.best_attainable_accuracy(clips, modalities) == pytest.approx(EXPECTED[modalities], abs=1e-9)
