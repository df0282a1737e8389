"""The pipeline: every kind of input, its answers against the model's own, and `UNK`."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Video
from transformers import (
    AutoProcessor,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaTokenizer,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)
from transformers import pipeline as make_pipeline
from transformers.utils import logging
from utils import (
    DESCRIPTIONS,
    FRONT_ENDS,
    LABELS,
    TEXT_SIZES,
    save_clip_model,
    save_noise_clip,
    tiny_config,
    tiny_model,
)

from amess_hf import (
    AMESSForIntentClassification,
    AMESSProcessor,
    IntentRecognitionPipeline,
    OutOfScopeDetector,
    clips_amess,
    pipeline_amess,
)
from amess_hf.datasets_amess import merge_fields


av = pytest.importorskip("av")

from clip_writer import write_clip

from amess_hf.clips_amess import ClipError
from amess_hf.pipeline_amess import anchor_spans, pool_windows, scored_anchors
from amess_hf.pipeline_amess import utterance_words as words_of
from amess_hf.processing_amess import encode_texts


TEXT = "hello you are late again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A saved model with its processor."""
    return save_clip_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(scope="module")
def pipe(folder):
    return make_pipeline("intent-recognition", model=folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_noise_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def scores(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def agree(first, second, atol=1e-5):
    assert set(scores(first)) == set(scores(second))
    for label, score in scores(first).items():
        assert score == pytest.approx(scores(second)[label], abs=atol)


class TestInputs:
    def test_a_clip_gives_the_models_own_answer(self, pipe, clip):
        answer = pipe({"video": clip, "text": TEXT})
        with torch.no_grad():
            logits = pipe.model(**pipe.processor(text=TEXT, clip=clip)).logits[0]
        expected = dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))
        assert scores(answer) == pytest.approx(expected, abs=1e-5)
        assert [entry["score"] for entry in answer] == sorted(expected.values(), reverse=True)

    def test_kinds_of_inputs(self, pipe, clip):
        words, sights = pipe({"text": TEXT}), pipe({"clip": clip})
        agree(pipe(TEXT), words)
        agree(pipe(clip), sights)
        agree(pipe({"video": clip}), sights)
        agree(pipe({"path": clip, "bytes": None}), sights)
        agree(pipe({"video": clip, "text": ""}), sights)
        agree(pipe({"video": clip, "audio": clip, "text": None}), sights)
        with open(clip, "rb") as file:
            agree(pipe(file.read()), sights)
        assert scores(words) != pytest.approx(scores(sights), abs=1e-4)

    def test_features_in_place_of_a_clip(self, pipe, clip):
        batch = pipe.processor(text=TEXT, clip=clip)
        features = {name: batch[name][0].numpy() for name in ("audio_features", "video_features")}
        agree(pipe({"text": TEXT, **features}), pipe({"text": TEXT, "clip": clip}))

    def test_lists_batches_data_sets_and_generators(self, pipe, clip):
        inputs = [{"text": TEXT, "clip": clip}, {"text": "thanks", "clip": None}, {"text": None, "clip": clip}] * 2
        expected = [pipe(one) for one in inputs]
        for answers in (
            pipe(inputs),
            pipe(tuple(inputs), batch_size=4),
            pipe(inputs, batch_size=6, num_workers=1),
            pipe(Dataset.from_list(inputs), batch_size=4),
            list(pipe((one for one in inputs), batch_size=5)),
            list(pipe(Dataset.from_list(inputs).to_iterable_dataset(), batch_size=5)),
        ):
            assert len(answers) == len(expected)
            for answer, one in zip(answers, expected, strict=True):
                agree(answer, one)
        assert pipe([]) == []

    def test_rows_of_a_data_set_keep_their_other_columns_out(self, pipe, clip):
        row = {"id": "dia0_utt3", "dialogue_id": "0", "label": 2, "start": 343.1, "end": 344}
        row |= {"text": TEXT, "clip": clip}
        agree(pipe(row), pipe({"text": TEXT, "clip": clip}))  # those seconds are the episode's, not the clip's
        data = Dataset.from_list([{**row, "mood": "b", "clip_id": "c"}])
        agree(pipe(data)[0], pipe(row))
        with pytest.raises(ValueError, match="has the key 'path', .*; did you mean 'clip'"):
            pipe(data.add_column("path", [clip]))

    def test_columns(self, pipe, clip):
        data = Dataset.from_list([{"text": "hello/you", "clip": clip, "audio": clip}] * 2)
        agree(pipe(data["text"])[1], pipe({"text": "hello/you"}))
        agree(pipe(data["clip"])[1], pipe(clip))
        decoded = data.cast_column("clip", Video()).cast_column("audio", Audio(sampling_rate=16000))
        agree(pipe(decoded["clip"])[1], pipe(clip))
        agree(pipe(decoded, batch_size=2)[1], pipe({"text": "hello/you", "clip": clip}))
        agree(next(pipe(decoded.to_iterable_dataset())), pipe({"text": "hello/you", "clip": clip}))

    def test_span_and_context(self, pipe, clip):
        with torch.no_grad():
            batch = pipe.processor(text=TEXT, context=["thanks"], clip=clip, start=0.2, end=0.6)
            expected = pipe.model(**batch).logits[0].softmax(-1).tolist()
        answer = pipe({"text": TEXT, "context": ["thanks"], "clip": clip, "start": 0.2, "end": 0.6})
        assert scores(answer) == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)

    def test_what_is_no_input(self, pipe, tmp_path):
        with pytest.raises(ClipError, match="nowhere.mp4 does not exist"):
            pipe(str(tmp_path / "nowhere.mp4"))
        with pytest.raises(ValueError, match=r"the input has only \['context', 'id'\]"):
            pipe({"id": "S01", "context": ["hello"]})
        with pytest.raises(ValueError, match="`video` is a int of shape"):
            pipe(7)


class TestWordsAndPaths:
    @pytest.fixture(autouse=True)
    def working_folder(self, tmp_path, monkeypatch):
        """A folder with a file `hello`, a file `thanks.txt`, and a folder `clips`."""
        (tmp_path / "hello").write_text("no clip")
        (tmp_path / "thanks.txt").write_text("no clip")
        (tmp_path / "clips").mkdir()
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        "text",
        ["hello", "so kind...", "yes/no or box/help", "thanks. hello", "https://x.org/clip.mp4 is kind", "kind...yes"],
    )
    def test_words_alone(self, pipe, text):
        agree(pipe(text), pipe({"text": text}))

    @pytest.mark.parametrize(
        "text", ["hello", "thanks.txt", "clips", "https://nowhere.invalid/clip.mp4", "clips/missing", "hello.mp4"]
    )
    def test_text_is_never_opened(self, pipe, text, monkeypatch):
        monkeypatch.setattr(clips_amess, "_opened", lambda _: pytest.fail("a clip was opened"))
        answer = pipe({"text": text}, return_anchors=True)
        assert answer["text"] == text
        agree(answer["predictions"], pipe([{"text": text}])[0])

    @pytest.mark.parametrize(
        "text",
        [
            "clips/missing",
            "clips",
            "clips/",
            "/clips/missing",
            r"C:\clips\missing",
            "./missing",
            "clips/a missing clip",
        ]
        + ["thanks.txt", "clip.mp", "nowhere.org", "https://nowhere.invalid/a", "https://nowhere.invalid/a.mp4"],
    )
    def test_what_looks_like_a_path_is_refused(self, pipe, text):
        with pytest.raises(ValueError, match="looks like a path or an address; pass a clip as {'clip': ...}") as error:
            pipe(text)
        assert repr(text) in str(error.value)

    @pytest.mark.parametrize("suffix", [".mp4", ".ogg", ".m4v", ".wmv", ".WAV"])
    def test_media_files(self, pipe, suffix):
        with pytest.raises(ClipError, match=f"missing{suffix} does not exist"):
            pipe(f"clips/missing{suffix}")

    def test_paths_are_clips(self, pipe, clip, tmp_path):
        shutil.copy(clip, tmp_path / "a clip.mp4")
        shutil.copy(clip, tmp_path / "nameless")
        for one in ("a clip.mp4", Path("nameless"), {"clip": "nameless"}, {"video": str(tmp_path / "nameless")}):
            agree(pipe(one), pipe({"clip": clip}))


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "meant"),
        [("vido", "video"), ("Text", "text"), ("txt", "text"), ("audio_feature", "audio_features")]
        + [(name, "clip") for name in ("path", "bytes", "file", "video_path")]
        + [("image", "frames")],
    )
    def test_unknown(self, pipe, clip, key, meant):
        with pytest.raises(ValueError, match=f"the input has the key '{key}', .*; did you mean '{meant}'"):
            pipe({"text": "hello", key: clip})
        with pytest.raises(ValueError, match="the input has the key 'mood', .*; the keys are text, "):
            pipe({"text": "hello", "mood": "good"})

    @pytest.mark.parametrize("nothing", ["", {"text": ""}, {"text": " ", "audio_features": np.zeros((0, 80))}])
    def test_nothing_to_go_by(self, pipe, nothing):
        with pytest.raises(ValueError, match="give at least one"):
            pipe(nothing)


class TestWindows:
    @pytest.fixture(scope="class")
    def long_clip(self, tmp_path_factory):
        """Sound of 2.5 s and picture of 1.5 s, which change after a second."""
        path = tmp_path_factory.mktemp("long") / "long.mp4"
        generator = np.random.default_rng(0)
        frames = generator.integers(0, 255, (15, 32, 48, 3), dtype=np.uint8)
        write_clip(path, frames, np.concatenate([np.zeros(16000), generator.normal(0, 0.2, 24000)]), frame_rate=10)
        return str(path)

    def test_each_window_is_answered(self, pipe, long_clip):
        answers = pipe(long_clip, window_s=1.0, top_k=2)
        times = [(answer["start"], answer["end"]) for answer in answers]
        assert times == [(0.0, 1.0), (1.0, 2.0), (2.0, pytest.approx(2.5, abs=0.1))]
        for answer, key in zip(answers, ("clip", "clip", "audio"), strict=True):  # the picture ends at 1.5 s
            span = {"start": answer["start"], "end": answer["end"]}
            agree(answer["predictions"], pipe({key: long_clip, **span}, top_k=2))

    def test_stride_and_span(self, pipe, long_clip):
        answers = pipe({"clip": long_clip, "start": 0.5, "end": 2.0}, window_s=1.0, stride_s=0.5)
        assert [(answer["start"], answer["end"]) for answer in answers] == [(0.5, 1.5), (1.0, 2.0)]
        full = pipe({"clip": long_clip}, window_s=1.2, return_anchors=True)
        assert len(full) == 2 and {"start", "end", "label", "anchors", "in_scope"} <= set(full[0])
        with pytest.raises(ValueError, match="`window_s` is 1.5; this model takes at most 1.2 seconds at once"):
            pipe(long_clip, window_s=1.5)

    def test_several_clips_and_arrays(self, pipe, long_clip, clip):
        answers = pipe([long_clip, clip], window_s=1.2, batch_size=4)
        assert [len(answer) for answer in answers] == [2, 1]
        assert [len(answer) for answer in pipe((one for one in [long_clip, clip]), window_s=1.2)] == [2, 1]
        sound = np.random.default_rng(0).normal(0, 0.1, 40000)
        answers = pipe({"audio": sound, "sampling_rate": 16000}, window_s=1)
        assert [answer["end"] for answer in answers] == [1, 2, 2.5]
        agree(answers[1]["predictions"], pipe({"audio": sound[16000:32000], "sampling_rate": 16000}))

    def test_words_and_features_have_no_times(self, pipe, long_clip):
        for given in ({"text": TEXT}, {"audio_features": np.ones((5, 80))}):
            with pytest.raises(ValueError, match=f"it is not known where `{next(iter(given))}` belongs"):
                pipe({"clip": long_clip, **given}, window_s=1)


class TestStreams:
    """What is longer than the model takes at once: 1.2 seconds, and 16 tokens."""

    @pytest.fixture(scope="class")
    def voting(self, tokenizer):
        """A pipeline whose frames have votes."""
        model = tiny_model(**FRONT_ENDS)
        for module in model.modules():
            if type(module).__name__ == "AMESSVotes":
                torch.nn.init.normal_(module.weight, std=0.1)
        return IntentRecognitionPipeline(model, tokenizer=tokenizer, device="cpu")

    @pytest.fixture(scope="class")
    def long_clip(self, tmp_path_factory):
        """Four seconds: faint, but for the third."""
        path = tmp_path_factory.mktemp("long") / "long.mp4"
        generator = np.random.default_rng(0)
        frames, sound = generator.integers(80, 100, (40, 32, 48, 3), dtype=np.uint8), generator.normal(0, 0.01, 64000)
        frames[20:30] = generator.integers(0, 255, (10, 32, 48, 3))
        sound[32000:48000] = generator.normal(0, 0.2, 16000)
        write_clip(path, frames, sound, frame_rate=10)
        return str(path)

    def test_all_of_a_long_clip_counts(self, voting, long_clip, caplog):
        answer = voting({"clip": long_clip, "text": "hello"})
        begin = voting({"clip": long_clip, "text": "hello", "end": 1.2})
        assert scores(answer) != pytest.approx(scores(begin), abs=1e-3)
        assert not caplog.records  # nothing was cut
        agree(voting([TEXT, {"clip": long_clip, "text": "hello"}, long_clip], batch_size=3)[1], answer)
        times = [(a["start"], a["end"]) for a in voting(long_clip, return_anchors=True)["anchors"]["video"]]
        assert any(begin >= 1.2 for begin, _ in times) and all(0 <= begin < end <= 4.1 for begin, end in times)

    def test_evidence_is_that_of_the_frames_of_one_clip(self, voting, long_clip):
        outputs, counts, total = [], [], max(clips_amess.clip_durations(long_clip).values())
        for start in (number * 1.2 for number in range(4)):
            batch = voting.processor(text="hello", clip=long_clip, start=start, end=min(start + 1.2, total))
            with torch.no_grad():
                outputs.append(voting.model(**batch))
            counts.append([batch[f"{name}attention_mask"].sum().item() for name in ("", "audio_", "video_")])
        pooled = pool_windows(voting.model, outputs, torch.tensor(counts))
        agree(voting({"clip": long_clip, "text": "hello"}), self.ranked(pooled))
        weights = torch.tensor(counts)[:, 1:, None].double()
        evidence = torch.cat([one.evidence for one in outputs]).double()
        expected = (weights * evidence.exp()).sum(0) / weights.sum(0)
        torch.testing.assert_close(pooled.evidence[0].double(), expected.log(), atol=1e-5, rtol=0)
        alone = pool_windows(voting.model, outputs[:1], torch.tensor(counts[:1]))
        torch.testing.assert_close(alone.logits, outputs[0].logits, atol=1e-5, rtol=0)

    def ranked(self, outputs):
        names = zip(LABELS, outputs.logits[0].softmax(-1).tolist(), strict=True)
        return [{"label": name, "score": score} for name, score in names]

    @pytest.mark.parametrize("context", [None, ["thanks you"]])
    def test_all_of_a_long_text_counts(self, voting, context):
        filler = "the speaker says hello " * 12
        texts = [filler + end for end in ("thanks you are so kind", "late again please help me")]
        first, second = (voting({"text": text, "context": context}, return_anchors=True) for text in texts)
        assert scores(first["predictions"]) != pytest.approx(scores(second["predictions"]), abs=1e-4)
        for text, answer in zip(texts, (first, second), strict=True):
            words = answer["anchors"]["text"]
            assert words and all(text[word["start"] : word["end"]] == word["word"] for word in words)
        short = " ".join(texts[0].split()[:14])
        agree(voting({"text": short}), voting([{"text": short}, {"text": texts[0]}], batch_size=2)[0])

    def test_long_text_with_a_long_clip(self, voting, long_clip, monkeypatch):
        read = []
        original = AMESSProcessor.read
        monkeypatch.setattr(AMESSProcessor, "read", lambda self, row: read.append(row) or original(self, row))
        text = "the speaker says hello " * 12
        answer = voting({"clip": long_clip, "text": text})
        assert sum(scores(answer).values()) == pytest.approx(1) and len(read) == 4  # each window is decoded once
        assert scores(answer) != pytest.approx(scores(voting({"clip": long_clip, "text": "hello"})), abs=1e-4)

    def test_beyond_ten_minutes_the_answer_says_what_was_read(self, voting, long_clip, monkeypatch):
        monkeypatch.setattr(pipeline_amess, "MAX_STREAM_SECONDS", 2.0)
        answer = voting(long_clip)
        assert all((one["start"], one["end"]) == (0.0, 2.0) for one in answer)
        full = voting({"clip": long_clip, "start": 0.5}, return_anchors=True)
        assert (full["start"], full["end"]) == (0.5, 2.5)
        agree(answer, voting({"clip": long_clip, "end": 2.0}))
        assert "start" not in voting({"clip": long_clip, "end": 1.5})[0]

    def test_a_clip_that_breaks_off(self, voting, long_clip, tmp_path):
        path = tmp_path / "cut.mkv"
        write_clip(path, None, np.random.default_rng(0).uniform(-1, 1, 64000))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        answers = voting([str(path), long_clip], on_error="skip", batch_size=2)
        assert "is cut short" in answers[0]["error"] and len(answers[1]) == 4


class TestErrorsOfClips:
    def test_one_bad_clip_does_not_stop_the_others(self, pipe, clip, tmp_path):
        bad = tmp_path / "bad.mp4"
        bad.write_text("no clip")
        with pytest.raises(ClipError, match="bad.mp4 cannot be decoded"):
            pipe([clip, str(bad), TEXT])
        for batch_size in (1, 2, 3):
            answers = pipe([clip, str(bad), TEXT, str(bad)], on_error="skip", batch_size=batch_size)
            agree(answers[0], pipe(clip))
            agree(answers[2], pipe(TEXT))
            assert all(set(answers[row]) == {"error"} and "bad.mp4 cannot" in answers[row]["error"] for row in (1, 3))
        assert "bad.mp4" in pipe(str(bad), on_error="skip")["error"]
        timed = pipe([str(bad), clip], on_error="skip", window_s=1)
        assert "bad.mp4" in timed[0]["error"] and len(timed[1]) == 1


class TestAnswers:
    def test_top_k(self, pipe):
        assert len(pipe(TEXT)) == 4 and len(pipe(TEXT, top_k=2)) == 2 and len(pipe(TEXT, top_k=None)) == 4
        assert pipe(TEXT, top_k=1) == pipe(TEXT)[:1]
        with pytest.raises(ValueError, match="`top_k` is 0"):
            pipe(TEXT, top_k=0)
        with pytest.raises(TypeError, match="unknown parameter of the pipeline: 'topk'; there are .*candidate_labels"):
            pipe(TEXT, topk=2)

    def test_threshold(self, pipe):
        plain = pipe(TEXT)
        assert pipe(TEXT, threshold=0.0) == plain
        best = plain[0]["score"]
        unknown, *rest = pipe(TEXT, threshold=1.0)
        assert unknown == {"label": "UNK", "score": pytest.approx(1 - best / 2)}
        agree(rest, [{**one, "score": one["score"] * best / 2} for one in plain])
        assert pipe(TEXT, threshold=best - 1e-6)[0] == plain[0]
        assert pipe(TEXT, threshold=best + 1e-6)[0] == {"label": "UNK", "score": pytest.approx(0.5, abs=1e-4)}
        with pytest.raises(ValueError, match="`threshold` is 7"):
            pipe(TEXT, threshold=7)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("top_k", "3"), ("top_k", 2.0), ("top_k", True), ("threshold", "0.5"), ("threshold", float("nan"))),
            *(("return_anchors", "yes"), ("on_error", "ignore")),
            *(("window_s", "5"), ("window_s", 0), ("stride_s", 1.0)),
            *(("candidate_labels", value) for value in (7, ["Greet", None], {"Greet": None}, {}, [], " , ")),
        ],
    )
    def test_parameters_of_the_wrong_kind(self, pipe, name, value):
        with pytest.raises(ValueError, match=f"`{name}` (is|has) ") as error:
            pipe(TEXT, **{name: value})
        assert "\n" not in str(error.value)

    def test_anchors(self, pipe, clip):
        answer = pipe({"clip": clip, "text": TEXT}, return_anchors=True)
        assert answer["predictions"] == pipe({"clip": clip, "text": TEXT})
        assert answer["label"] == answer["predictions"][0]["label"] and answer["in_scope"] is None
        batch = pipe.processor(text=TEXT, clip=clip)
        with torch.no_grad():
            outputs = pipe.model(**batch)
        words = TEXT.split()
        positions, gates = outputs.anchor_indices[0].tolist(), outputs.anchor_scores[0].tolist()
        # token 0 is [CLS] and the last one [SEP]; every word is one token
        expected = {words[p - 1]: g for p, g in zip(positions[0], gates[0], strict=True) if 0 < p <= len(words)}
        assert {a["word"]: a["score"] for a in answer["anchors"]["text"]} == pytest.approx(expected, abs=1e-5)
        for anchor in answer["anchors"]["text"]:
            assert TEXT[anchor["start"] : anchor["end"]] == anchor["word"]
        for row, modality, rate in ((1, "audio", 50), (2, "video", 10)):
            anchors = answer["anchors"][modality]
            assert [a["frame"] for a in anchors] == [p for p in positions[row] if p >= 0]
            for anchor in anchors:
                assert anchor["start"] == pytest.approx(anchor["frame"] / rate)
                assert anchor["end"] == pytest.approx((anchor["frame"] + 1) / rate)
                assert 0 < anchor["score"] <= 1

    def test_anchors_of_a_span_are_in_seconds_of_the_clip(self, pipe, clip):
        answer = pipe({"clip": clip, "text": TEXT, "start": 0.4, "end": 0.8}, return_anchors=True)
        for modality in ("audio", "video"):
            assert answer["anchors"][modality]
            assert all(0.4 <= a["start"] < a["end"] <= 0.8 + 1e-6 for a in answer["anchors"][modality])

    def test_anchors_without_a_clip(self, pipe):
        features = {"audio_features": np.ones((5, 80)), "video_features": np.zeros((0, 580))}
        anchors = pipe({"text": "", **features}, return_anchors=True)["anchors"]
        assert anchors["text"] == [] and anchors["video"] == []
        assert set(anchors["audio"][0]) == {"frame", "score"}

    def test_anchor_words_with_context_punctuation_and_a_cut_text(self, pipe):
        text = "hello, you are   so-kind again please help me with this box no never"
        answer = pipe({"text": text, "context": ["thanks you"]}, return_anchors=True)
        assert answer["anchors"]["text"]
        assert all(anchor["word"] in text.split() for anchor in answer["anchors"]["text"])
        assert all(text[a["start"] : a["end"]] == a["word"] for a in answer["anchors"]["text"])

    def test_no_anchors_where_the_fusion_has_none(self, tokenizer):
        model = tiny_model(fusion_type="mean")
        pipe = IntentRecognitionPipeline(model, tokenizer=tokenizer, device="cpu")
        assert pipe(TEXT, return_anchors=True)["anchors"] == {"text": [], "audio": [], "video": []}

    def test_progress_on_long_lists(self, pipe, capsys):
        logging.enable_progress_bar()
        pipe([TEXT] * 31)
        assert "Recognizing intents" not in capsys.readouterr().err
        pipe([TEXT] * 32, batch_size=8)
        assert "Recognizing intents: 100%" in capsys.readouterr().err


class TestCandidates:
    INTENTS = {"Negotiate": ["help me with this box"], "Greet": ["hello there"], "Leave": ["never again", "no"]}

    def expected(self, pipe, tokenizer, intents):
        """The probabilities after `set_label_descriptions` of a copy of the model."""
        model = copy.deepcopy(pipe.model)
        model.set_label_descriptions(intents, tokenizer)
        with torch.no_grad():
            logits = model(**pipe.processor(text=TEXT).to(dtype=model.dtype)).logits[0]
        return dict(zip(intents, logits.float().softmax(-1).tolist(), strict=True))

    def test_other_intents_leave_the_answers_with_the_own_ones_as_they_were(self, folder, clip):
        pipe = make_pipeline("intent-recognition", model=folder)
        for module in pipe.model.modules():
            if type(module).__name__ == "AMESSVotes":  # zero at first
                torch.nn.init.normal_(module.weight)
        inputs = {"clip": clip, "text": "hello you"}
        before = pipe(inputs)
        assert len(pipe(inputs, candidate_labels={"Negotiate": "no never", "Greet": "hello"})) == 3
        agree(pipe(inputs), before)

    def test_candidates_and_none_of_them(self, pipe, tokenizer):
        before, answer = pipe(TEXT), pipe(TEXT, candidate_labels=self.INTENTS)
        expected = self.expected(pipe, tokenizer, {**DESCRIPTIONS, **self.INTENTS})
        rest = sum(score for name, score in expected.items() if name not in self.INTENTS)
        wanted = {name: expected[name] for name in self.INTENTS} | {"none of these": rest}
        assert scores(answer) == pytest.approx(wanted, abs=1e-5)
        assert [one["score"] for one in answer] == sorted(wanted.values(), reverse=True)
        assert pipe(TEXT) == before  # the pipeline's own model is as it was
        agree(pipe([TEXT] * 2, candidate_labels=dict(self.INTENTS))[1], answer)

    def test_one_candidate_can_lose(self, pipe):
        own = scores(pipe(TEXT))
        best = max(own, key=own.get)
        assert scores(pipe(TEXT, candidate_labels=best)) == pytest.approx(
            {best: own[best], "none of these": 1 - own[best]}, abs=1e-5
        )
        worst = min(own, key=own.get)
        full = pipe(TEXT, candidate_labels=[worst], return_anchors=True)
        assert full["label"] == "none of these" and full["in_scope"] is False

    def test_names_alone(self, pipe):
        answer = pipe(TEXT, candidate_labels=["Greet", "Thank"])
        agree(answer, pipe(TEXT, candidate_labels={name: DESCRIPTIONS[name] for name in ("Greet", "Thank")}))
        agree(answer, pipe(TEXT, candidate_labels="Greet, Thank"))
        assert set(scores(pipe(TEXT, candidate_labels=["late", "kind"]))) == {"late", "kind", "none of these"}
        assert set(scores(pipe(TEXT, candidate_labels=LABELS))) == set(LABELS)

    def test_extra_labels(self, pipe, tokenizer):
        extra = {"Negotiate": "help me with this box"}
        expected = self.expected(pipe, tokenizer, {**DESCRIPTIONS, **extra})
        assert scores(pipe(TEXT, extra_labels=extra)) == pytest.approx(expected, abs=1e-5)
        with pytest.raises(ValueError, match="`extra_labels` is .* without `candidate_labels`"):
            pipe(TEXT, extra_labels=extra, candidate_labels="Greet")

    def test_examples_in_every_form(self, folder, clip, tmp_path):
        """Words, a clip as a path and in a dictionary, and decoded features teach; the same ones are not encoded again."""
        pipe = make_pipeline("intent-recognition", model=folder, device="cpu")
        audio = np.random.default_rng(0).normal(size=(9, 80)).astype(np.float32)
        shown = [{"text": "box box"}, Path(clip), {"clip": clip, "text": "no"}, {"audio_features": audio}]
        before, taught = pipe(TEXT), pipe(TEXT, extra_labels={"Dance": [*shown, "a sentence"]})
        model = pipe._described[1]
        assert scores(pipe(TEXT, extra_labels={"Dance": [*shown, "a sentence"]})) == scores(taught)
        assert pipe._described[1] is model
        assert scores(taught) != pytest.approx(scores(pipe(TEXT, extra_labels={"Dance": "a sentence"})), abs=1e-4)
        assert pipe(TEXT) == before
        alone = pipe(TEXT, extra_labels={"Dance": {"text": "box box"}}, top_k=None)
        assert "Dance" in scores(alone) and pipe._described[1].config.label_descriptions["Dance"] == ["Dance"]
        pipe.set_label_descriptions({**DESCRIPTIONS, "Dance": shown})
        pipe.save_pretrained(tmp_path)
        loaded = make_pipeline("intent-recognition", model=str(tmp_path), device="cpu")
        assert loaded({"text": "no", "clip": clip}) == pipe({"text": "no", "clip": clip})
        with pytest.raises(ValueError, match="entry 1 of 'Dance', an example: .*missing.mp4"):
            pipe(TEXT, extra_labels={"Dance": ["a sentence", Path("missing.mp4")]})

    @pytest.mark.parametrize("change", ["weights", "dtype", "labels"])
    def test_a_changed_model_answers_anew(self, folder, tokenizer, change):
        pipe = make_pipeline("intent-recognition", model=folder, device="cpu")
        before = scores(pipe(TEXT, extra_labels=self.INTENTS, top_k=None))
        own = DESCRIPTIONS
        if change == "weights":
            with torch.no_grad():
                pipe.model.classifier.bias += torch.tensor([2.0, -1.0, 0.0, 1.0])
        elif change == "dtype":
            pipe.model.double()
        else:
            own = {"Thank": DESCRIPTIONS["Thank"], "Late": ["late again"]}
            pipe.set_label_descriptions(own)
        after = scores(pipe(TEXT, extra_labels=self.INTENTS, top_k=None))
        assert after == pytest.approx(self.expected(pipe, tokenizer, {**own, **self.INTENTS}), abs=1e-5)
        assert change == "dtype" or after != pytest.approx(before, abs=1e-3)

    def test_labels_change_while_others_ask(self, folder):
        pipe = make_pipeline("intent-recognition", model=folder, device="cpu")
        sets = [
            {f"{name} {number}": f"{name} again" for name in ("late", "kind", "box")[: number + 2]}
            for number in (0, 1)
        ]
        expected = []
        for one in sets:
            pipe.set_label_descriptions(one)
            expected.append(scores(pipe(TEXT)))
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(pipe, TEXT) for _ in range(60)]
            for number in range(10):
                pipe.set_label_descriptions(sets[number % 2])
        for answer in (one.result() for one in asked):
            assert any(
                set(scores(answer)) == set(one) and scores(answer) == pytest.approx(one, abs=1e-6) for one in expected
            )

    def test_threads_keep_their_own(self, pipe):
        sets = [{f"{name} {number}": [f"{name} again"] for name in ("late", "kind")} for number in range(4)]
        expected = [scores(pipe(TEXT, candidate_labels=one)) for one in sets]
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda one: scores(pipe(TEXT, candidate_labels=one)), sets * 5)
            for number, answer in enumerate(answers):
                assert answer == pytest.approx(expected[number % 4], abs=1e-6)

    @pytest.mark.parametrize(
        "fields",
        [{"label_descriptions": None}, {"label_triplet_loss_weight": 0.0, "label_contrastive_loss_weight": 0.0}],
    )
    def test_a_model_that_has_learned_no_descriptions(self, tokenizer, fields):
        plain = IntentRecognitionPipeline(tiny_model(**fields), tokenizer=tokenizer, device="cpu")
        for others in ({"Negotiate": "help me"}, ["Negotiate", "Greet"]):
            with pytest.raises(ValueError, match="`candidate_labels` has 'Negotiate', but this model was trained w"):
                plain(TEXT, candidate_labels=others)
        answer = scores(plain(TEXT, candidate_labels=["Greet", "Thank"]))
        expected = scores(plain(TEXT))
        expected = {name: expected[name] for name in ("Greet", "Thank")}
        assert answer == pytest.approx({**expected, "none of these": 1 - sum(expected.values())}, abs=1e-5)


class TestOutOfScope:
    @pytest.fixture
    def guarded(self, folder, pipe, tmp_path):
        """A copy of the model's folder with a detector whose threshold lies between the scores of two texts."""
        with torch.no_grad():
            outputs = pipe.model(**pipe.processor(text=[TEXT, "thanks"]))
        detector = OutOfScopeDetector("msp")
        ordered = detector.score(outputs).tolist()
        detector.threshold = sum(ordered) / 2
        shutil.copytree(folder, tmp_path / "model")
        detector.save_pretrained(tmp_path / "model")
        names = [TEXT, "thanks"]
        return str(tmp_path / "model"), names[int(np.argmax(ordered))], names[int(np.argmin(ordered))]

    def test_the_detector_beside_the_model_is_used(self, guarded):
        place, known, unknown = guarded
        pipe = make_pipeline("intent-recognition", model=place, device="cpu")
        assert "UNK" not in scores(pipe(known))
        answers = pipe([known, unknown], batch_size=2, top_k=None)
        assert [answer[0]["label"] == "UNK" for answer in answers] == [False, True]
        for answer in answers:
            values = [one["score"] for one in answer]
            assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)
        assert answers[1][0]["score"] >= 0.5 and len(pipe(unknown, top_k=2)) == 2
        full = pipe(unknown, return_anchors=True)
        assert {name: full[name] for name in ("label", "score")} == full["predictions"][0]
        assert full["label"] == "UNK" and full["score"] == pytest.approx(answers[1][0]["score"])
        assert full["in_scope"] is False and pipe(known, return_anchors=True)["in_scope"] is True
        # a threshold replaces the detector, which is ignored for other intents
        assert "UNK" not in scores(pipe(unknown, threshold=0.0))
        assert "UNK" not in scores(pipe(unknown, candidate_labels=["late", "kind"]))
        # and has its say next to extra ones, where the answer is one of the own
        added = pipe(unknown, extra_labels={"late": "late again"}, return_anchors=True)
        nearest = next(one["label"] for one in added["predictions"] if one["label"] != "UNK")
        assert added["in_scope"] is (nearest == "late")

    @pytest.mark.parametrize(("name", "options"), [("model", {}), (".", {"subfolder": "model"})])
    def test_the_model_knows_its_place(self, guarded, tmp_path, monkeypatch, name, options):
        place, _, unknown = guarded
        monkeypatch.chdir(tmp_path)
        model = AMESSForIntentClassification.from_pretrained(name, **options)
        monkeypatch.chdir("/")
        pipe = IntentRecognitionPipeline(model, processor=AMESSProcessor.from_pretrained(place), device="cpu")
        assert pipe(unknown)[0]["label"] == "UNK"

    def test_none(self, guarded, pipe):
        place, _, unknown = guarded
        assert pipe.detector is None
        open_pipe = make_pipeline("intent-recognition", model=place, detector=False, device="cpu")
        assert "UNK" not in scores(open_pipe(unknown))


class TestLoading:
    def test_save_and_load(self, pipe, clip, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert isinstance(AutoProcessor.from_pretrained(tmp_path), AMESSProcessor)
        again = make_pipeline("intent-recognition", model=str(tmp_path), device="cpu")
        agree(again({"clip": clip, "text": TEXT}), pipe({"clip": clip, "text": TEXT}))

    def test_from_objects(self, pipe, tokenizer, clip):
        built = make_pipeline("intent-recognition", model=pipe.model, tokenizer=tokenizer, device="cpu")
        agree(built({"clip": clip, "text": TEXT}), pipe({"clip": clip, "text": TEXT}))
        assert "('text', 'audio', 'video')" in repr(built)
        with pytest.raises(ValueError, match="give `processor` or `tokenizer` .*`processor=trainer.processing_class`"):
            make_pipeline("intent-recognition", model=pipe.model)

    def test_another_model(self, tokenizer, tmp_path):
        config = BertConfig(**TEXT_SIZES, intermediate_size=32)
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is a bert model; give an A-MESS model"):
            make_pipeline("intent-recognition", model=str(tmp_path))

    def test_a_new_token(self, tokenizer):
        model, tokenizer = tiny_model(), copy.deepcopy(tokenizer)
        tokenizer.add_tokens([f"new{number}" for number in range(40)])
        with pytest.raises(ValueError, match=r"has 92 tokens and the model 64; .*resize_token_embeddings"):
            IntentRecognitionPipeline(model, tokenizer=tokenizer)
        model.resize_token_embeddings(len(tokenizer))
        assert len(IntentRecognitionPipeline(model, tokenizer=tokenizer, device="cpu")("hello new39")) == 4

    def test_a_processor_of_another_model(self, pipe, tokenizer):
        other = AMESSProcessor.for_model(
            tiny_config(**merge_fields(FRONT_ENDS, {"audio_config": {"max_length": 480}})), tokenizer
        )
        with pytest.raises(ValueError, match="`max_audio_length` is 480 in the processor and 60 in the model"):
            make_pipeline("intent-recognition", model=pipe.model, processor=other)


class Recognizer:
    """Stands in for a speech recognition pipeline: hears whether there is sound."""

    class feature_extractor:
        sampling_rate = 8000

    def __call__(self, inputs):
        assert inputs["sampling_rate"] == 8000
        return {"text": f" {TEXT} " if len(inputs["raw"]) == pytest.approx(8000, abs=700) else "box"}


class TestSpeechRecognition:
    def test_missing_words_are_filled_in(self, folder, clip, pipe):
        hearing = make_pipeline("intent-recognition", model=folder, asr_model=Recognizer(), device="cpu")
        agree(hearing(clip), pipe({"clip": clip, "text": TEXT}))
        assert hearing(clip, return_anchors=True)["text"] == TEXT
        agree(hearing({"clip": clip, "text": "thanks"}), pipe({"clip": clip, "text": "thanks"}))
        agree(hearing(TEXT), pipe(TEXT))
        sound = {"array": np.zeros(16000), "sampling_rate": 16000}
        agree(hearing({"audio": sound}), pipe({"audio": sound, "text": TEXT}))

    def test_a_model_of_the_hub(self, folder, clip, pipe, tmp_path):
        torch.manual_seed(0)
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
        (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
        config = Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=len(letters),
        )  # fmt: skip
        Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "asr")
        Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path / "asr")
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "asr")
        hearing = make_pipeline("intent-recognition", model=folder, asr_model=str(tmp_path / "asr"), device="cpu")
        heard = hearing(clip, return_anchors=True)["text"]
        assert heard.strip()
        agree(hearing(clip), pipe({"clip": clip, "text": heard}))


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


def by_word(words):
    return [(word["word"], word["score"]) for word in words]


def test_scored_anchors():
    assert scored_anchors(np.array([4, 0, -1]), np.array([0.25, 0.5, 0.9], np.float32)) == [(0, 0.5), (4, 0.25)]


class TestUtteranceWords:
    # [CLS] un ##believ ##able , day [SEP]
    def test_word_piece_tokenizer(self, word_piece):
        words = utterance_words(word_piece, [(0, 0.9), (2, 0.5), (3, 0.7), (6, 0.1)], "Unbelievable,  day")
        assert by_word(words) == [("Unbelievable,", 0.7), ("day", None)]
        assert [(word["start"], word["end"]) for word in words] == [(0, 13), (15, 18)]
        assert by_word(utterance_words(word_piece, [(4, 0.6), (5, 0.2)], "unbelievable, day")) == [
            ("unbelievable,", 0.6),
            ("day", 0.2),
        ]

    # <s> n o Ġday </s>
    def test_byte_pair_tokenizer(self, byte_pair):
        assert by_word(utterance_words(byte_pair, [(2, 0.5), (3, 0.25)], "no day")) == [("no", 0.5), ("day", 0.25)]
        # <s> n o Ġ n o </s>: a token that is the space before a word is part of it
        assert by_word(utterance_words(byte_pair, [(3, 0.5)], "no no")) == [("no", None), ("no", 0.5)]

    def test_context_is_no_word_of_the_utterance(self, word_piece):
        # [CLS] no [SEP] no [SEP] day [SEP]
        anchors = [(1, 0.9), (3, 0.8), (5, 0.7)]
        assert by_word(utterance_words(word_piece, anchors, "day", ["no", "no"])) == [("day", 0.7)]
        # the turns that do not fit are left out: [CLS] no [SEP] day [SEP], then [CLS] day [SEP]
        assert by_word(utterance_words(word_piece, anchors, "day", ["no", "no"], max_length=5)) == [("day", 0.8)]
        assert by_word(utterance_words(word_piece, anchors, "day", ["no", "no"], max_length=3)) == [("day", 0.9)]

    def test_a_cut_utterance(self, word_piece):
        assert by_word(utterance_words(word_piece, [(1, 0.5), (2, 0.4)], "no day", max_length=3)) == [
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
