"""The demo corpus: the same every time, in the official layout, and no modality enough alone (by counting)."""

import csv
import re
from collections import Counter, defaultdict
from itertools import combinations

import demo_corpus as demo
import numpy as np
import pytest

from amess_hf.data.feature_files import SafetensorsFeatures
from amess_hf.datasets_amess import DATASETS


COUNTS = {"train": 400, "dev": 100, "test": 100}
P = demo.PLAIN_SHARE
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(demo.MODALITIES, size)]
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


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_official_layout(corpus):
    folder, clips = corpus
    audio = SafetensorsFeatures(folder / "audio_data" / "wavlm_feats")
    video = SafetensorsFeatures(folder / "video_data" / "swin_feats")
    assert (audio.feature_size, video.feature_size) == (demo.AUDIO_WIDTH, demo.VIDEO_WIDTH)
    ids = []
    for split, count in COUNTS.items():
        rows = read_rows(folder / f"{split}.tsv")
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


def test_words_are_plain_lines_that_never_repeat(corpus):
    texts = [clip.text for clips in corpus[1].values() for clip in clips]
    assert len(set(texts)) == len(texts) == sum(COUNTS.values())
    assert all(re.fullmatch(r"[a-z',? ]+", text) for text in texts), "fillers left open, or odd characters"


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


@pytest.mark.parametrize("modalities", SUBSETS, ids="+".join)
def test_best_attainable_accuracy_is_that_of_the_docstring(modalities):
    clips = [clip for _, clip in demo.demo_clips(seed=3, clips_per_split={"train": 200})]
    assert demo.best_attainable_accuracy(clips, modalities) == pytest.approx(EXPECTED[modalities], abs=1e-9)


def pattern(template):
    """A regular expression for what `template` can become."""
    parts = re.split(r"{(\w+)}", template)
    parts[1::2] = [f"(?:{'|'.join(map(re.escape, demo.FILLERS[slot]))})" for slot in parts[1::2]]
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts))


def intents_of_text(text):
    """Every intent whose templates give `text`, found without knowing how the clip was drawn."""
    plain = [
        intent
        for intent, templates in demo.PLAIN_TEMPLATES.items()
        if any(pattern(template).fullmatch(text) for template in templates)
    ]
    grouped = [
        intent
        for group, templates in demo.GROUP_TEMPLATES.items()
        if any(pattern(template).fullmatch(text) for template in templates)
        for intent in demo.GROUPS[group]
    ]
    return frozenset(plain + grouped)


def burst_of(features, directions):
    """Which direction some two neighbouring frames show most clearly, above the clip's own offset."""
    along = (features - features.mean(axis=0)) @ directions.T
    return int((along[1:] + along[:-1]).max(axis=0).argmax())


def test_counting_what_files_show_gives_the_same_accuracy(corpus):
    """The words (by template) and bursts (by projection), read back from the files, sort the clips into cells. Within
    a cell nothing tells the clips apart, so a perfect reader is right once in as many times as it has intents."""
    folder, clips = corpus
    seen = []
    for modality, width, name in (
        ("audio", demo.AUDIO_WIDTH, "wavlm_feats"),
        ("video", demo.VIDEO_WIDTH, "swin_feats"),
    ):
        features = SafetensorsFeatures(folder / f"{modality}_data" / name)
        directions = demo.burst_directions(width, seed=5)
        seen.append({clip_id: burst_of(features[clip_id], directions) for clip_id in features})
    every = [clip for of_split in clips.values() for clip in of_split]
    evidence = [(intents_of_text(clip.text), seen[0][clip.id], seen[1][clip.id]) for clip in every]
    for subset in SUBSETS:
        places = [demo.MODALITIES.index(modality) for modality in subset]
        cells = defaultdict(list)
        for clip, witness in zip(every, evidence, strict=True):
            cells[tuple(witness[place] for place in places)].append(clip.label)
        right = sum(len(labels) / len(set(labels)) for labels in cells.values())
        assert right / len(every) == pytest.approx(EXPECTED[subset], abs=1e-9), subset
    assert right == len(every), "all three together must leave nothing open"


def test_the_average_frame_shows_little_and_the_burst_much(corpus):
    """The evidence is local: within the burst the direction stands out, in the clip's mean it is drowned."""
    every = [clip for of_split in corpus[1].values() for clip in of_split]
    for modality, factor, width in (("audio", 1, demo.AUDIO_WIDTH), ("video", 2, demo.VIDEO_WIDTH)):
        directions = demo.burst_directions(width, seed=5)
        np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-12)
        inside, share = [], []
        for clip in every:
            start, end = getattr(clip, f"{modality}_burst")
            features = getattr(clip, modality)
            assert 2 <= end - start <= 0.25 * len(features) + 1
            inside.append((features[start:end] @ directions[demo.EVIDENCE[clip.label][factor]]).mean())
            share.append((end - start) / len(features))
        assert np.mean(inside) == pytest.approx(demo.BURST_STRENGTH, abs=0.15)
        assert np.mean(share) < 0.25


def test_descriptions_tell_the_intents_in_official_order():
    descriptions = demo.demo_label_descriptions()
    assert list(descriptions) == DATASETS["mintrec"].labels and descriptions == demo.demo_label_descriptions()
    assert {len(sentences) for sentences in descriptions.values()} == {3}
    assert not any("{" in sentence for sentences in descriptions.values() for sentence in sentences)
