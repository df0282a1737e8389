"""AMESSProcessor: inputs, the resulting batch, what is saved, and incompatible settings."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_models import save_speech_model, save_vision_model, save_whisper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoProcessor, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, XLNetConfig
from transformers.utils import logging
from utils import FRONT_ENDS, TEXT_SIZES, save_noise_clip, tiny_config, tiny_model

from amess_hf import AMESSDataCollator, AMESSProcessor
from amess_hf.datasets_amess import merge_fields
from amess_hf.encoders_amess import HOGEncoder, LogMelEncoder


av = pytest.importorskip("av")

from clip_writer import write_clip
from command_line import folder_written_aside

from amess_hf.clips_amess import ClipError, read_audio, read_frames
from amess_hf.processing_amess import (
    encode_texts,
    pad_features,
    write_json,
    write_text,
    written_aside,
)


SMALL = {
    "llama": LlamaConfig(**TEXT_SIZES, intermediate_size=32, max_position_embeddings=64, initializer_range=0.3),
    "xlnet": XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, d_inner=32, initializer_range=0.3),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
}


def random_frames(count, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One second of noise in sound and picture."""
    return save_noise_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def processor(tokenizer):
    return AMESSProcessor.for_model(tiny_config(**FRONT_ENDS), tokenizer)


# The frames that the front end is given, three times as large and in color.
FRAMES_IN_COLOUR = {"frame_rate": 10}


def same(first, second, atol=0.0):
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=0)


class TestInputs:
    def test_clip_and_text(self, processor, clip):
        batch = processor(text="hello you", clip=clip)
        assert set(batch) >= {"input_ids", "attention_mask", "audio_features", "video_features"}
        assert batch["audio_features"].shape[::2] == (1, 80) and batch["video_features"].shape == (1, 10, 580)
        assert batch["audio_attention_mask"].all() and batch["video_attention_mask"].all()
        assert batch["attention_mask"].sum() == 4  # [CLS] hello you [SEP]

    def test_one_clip_by_four_ways(self, processor, clip):
        whole = processor(text="hello", clip=clip)
        same(whole, processor(text="hello", audio=clip, video=clip))
        same(whole, processor(text="hello", video=clip))
        same(whole, processor(text="hello", videos=[clip]))
        with open(clip, "rb") as file:
            same(whole, processor(text="hello", clip=file.read()))
        sound = read_audio(clip, 16000)
        frames = read_frames(clip, **HOGEncoder().reading)
        features = {"audio_features": LogMelEncoder()([sound])[0], "video_features": HOGEncoder()([frames])[0]}
        same(whole, processor(text="hello", **features))
        same(whole, processor(text="hello", audio={"array": sound, "sampling_rate": 16000}, video=clip))
        same(whole, processor(text=["hello"], audio=[sound], video=[clip]))
        same(whole, processor(text="hello", **{name: value.tolist() for name, value in features.items()}))

    def test_arrays(self, processor):
        frames = random_frames(5)
        batch = processor(text="hello", audio=np.zeros(44100, np.int16), video=frames, sampling_rate=44100)
        assert batch["audio_features"].shape[1] == pytest.approx(49, abs=1) and batch["video_features"].shape[1] == 5
        same(batch, processor(text="hello", audio=np.zeros((2, 44100)), video=frames / 255, sampling_rate=44100), 1e-6)
        same(batch, processor(text="hello", audio=torch.zeros(44100), video=torch.tensor(frames), sampling_rate=44100))

    def test_a_batch_is_its_members_padded(self, processor, clip):
        batch = processor(
            text=["hello you", None, "thanks"],
            clip=[clip, clip, None],
            audio_features=[None, np.ones((70, 80), np.float32), None],
        )
        assert batch["audio_attention_mask"].sum(1).tolist()[1:] == [60, 0]
        assert batch["video_attention_mask"].sum(1).tolist() == [10, 10, 0]
        assert batch["attention_mask"].sum(1).tolist() == [4, 0, 3]
        alone = processor(text="hello you", clip=clip)
        length = alone["audio_features"].shape[1]
        torch.testing.assert_close(batch["audio_features"][0, :length], alone["audio_features"][0])
        assert batch["audio_features"][0, length:].abs().max() == 0

    def test_the_same_batch_as_the_collator(self, processor, tokenizer):
        generator = np.random.default_rng(0)
        rows = [
            {
                "text": text,
                "context": context,
                "audio_features": generator.normal(size=(length, 80)).astype(np.float32),
                "video_features": generator.normal(size=(length, 580)).astype(np.float32),
            }
            for text, context, length in [("hello you", ["a: late again"], 5), ("", [], 90), ("thanks", [], 0)]
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        same(dict(processor(**columns)), AMESSDataCollator(tokenizer, tiny_config(**FRONT_ENDS))(rows))

    def test_the_model_takes_it(self, processor, clip):
        logits = tiny_model(**FRONT_ENDS)(**processor(text=["hello", "thanks"], clip=[clip, None])).logits
        assert logits.shape == (2, 4) and logits.isfinite().all()

    def test_span(self, processor, clip):
        batch = processor(text="hello", clip=clip, start=0.2, end=0.6)
        assert batch["video_features"].shape[1] == 4 and batch["audio_features"].shape[1] == 19
        pair = processor(clip=[clip, clip], start=0.2, end=[0.6, 0.4])
        assert pair["video_attention_mask"].sum(1).tolist() == [4, 2]

    def test_no_more_is_decoded_than_the_limits_let_through(self, tokenizer, tmp_path):
        path = tmp_path / "long.mp4"
        write_clip(path, random_frames(300), np.zeros(30 * 16000), frame_rate=10)
        processor = AMESSProcessor.for_model(tiny_config(**FRONT_ENDS), tokenizer)
        row = processor.read({"clip": path})
        # One frame more than the model takes, which says that there is more; one window of sound, 20 s.
        assert len(row["video"]) == 13 and len(row["audio"]) == 320080
        batch = processor(clip=path)
        assert batch["audio_features"].shape[1] == 60 and batch["video_features"].shape[1] == 12

    @pytest.mark.parametrize("absent", ["audio", "video"])
    def test_a_modality_that_the_model_does_not_take(self, tokenizer, clip, absent):
        config = tiny_config(**{**FRONT_ENDS, f"{absent}_config": None})
        batch = AMESSProcessor.for_model(config, tokenizer)(text="hello", clip=clip)
        assert f"{absent}_features" not in batch and f"{absent}_attention_mask" not in batch

    def test_sound_or_picture_alone(self, processor, tmp_path):
        write_clip(tmp_path / "mute.mp4", random_frames(10), frame_rate=10)
        write_clip(tmp_path / "voice.wav", sound=np.zeros(16000))
        batch = processor(text=["hello", "hello"], clip=[tmp_path / "mute.mp4", tmp_path / "voice.wav"])
        assert batch["audio_attention_mask"].sum(1).tolist() == [0, 49]
        assert batch["video_attention_mask"].sum(1).tolist() == [10, 0]


class TestSources:
    def test_frames_are_the_picture_alone(self, processor, clip):
        batch = processor(text="hello", frames=clip)
        assert not batch["audio_attention_mask"].any() and batch["video_attention_mask"].sum() == 10
        same(batch, processor(text="hello", frames=read_frames(clip, **FRAMES_IN_COLOUR)), 0.15)
        whole = processor(text="hello", clip=clip)
        same(whole, processor(text="hello", frames=clip, audio=clip))
        silent = processor(text="hello", video=clip, audio=np.zeros(16000))
        same({"video_features": silent["video_features"]}, {"video_features": whole["video_features"]})
        assert silent["audio_features"].max() < -1

    def test_spans_of_arrays(self, processor, clip):
        sound, frames = np.random.default_rng(0).normal(0, 0.1, 16000), random_frames(10)
        part = processor(audio=sound, frames=frames, start=0.2, end=0.6)
        same(part, processor(audio=sound[3200:9600], frames=frames[2:6]))
        for field, given in (("audio", {"audio": sound}), ("video", {"frames": frames})):
            with pytest.raises(ValueError, match=f"`{field}` ends before 4 seconds"):
                processor(**given, start=4)

    def test_context_as_one_string_is_one_turn(self, processor):
        same(processor(text="hello", context="thanks you"), processor(text="hello", context=["thanks you"]))
        same(processor(text="hello", context="thanks you"), processor(text=["hello"], context=[["thanks you"]]))
        rows = [{"text": "hello", "context": "thanks you"}]
        same(processor(text="hello", context="thanks you"), processor.collate(rows))

    @pytest.mark.parametrize("modality", ["audio", "video"])
    def test_what_is_cut_is_said(self, processor, modality, caplog, tmp_path):
        logging.get_logger("amess_hf.processing_amess").warning_once.__func__.cache_clear()
        path = tmp_path / "long.mp4"
        write_clip(path, random_frames(30), np.zeros(32000), frame_rate=10)
        short = {"audio": np.zeros(16000)} if modality == "audio" else {"frames": random_frames(12)}
        processor(**short)
        assert not caplog.records
        for _ in range(2):  # it is said once
            processor(**({"audio": path} if modality == "audio" else {"frames": path}))
        (record,) = caplog.records
        assert f"cut after {'60 frames (1.2 s)' if modality == 'audio' else '12 frames (1.2 s)'}" in record.message
        assert f"`max_{modality}_length`" in record.message and "the pipeline reads clips whole" in record.message

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"audio": {"array": np.zeros(800)}}, "`audio` has shape .* and `sampling_rate` 0; give"),
            ({"audio": np.full(800, np.nan)}, "`audio` has shape .*; give finite samples"),
            ({"audio": np.zeros(800), "sampling_rate": "16k"}, "`sampling_rate` '16k'; give .* a whole number"),
            (
                {"frames": np.full((2, 8, 8, 3), 9.0)},
                "`video` is a ndarray .*, integers from 0 to 255 or floating point from 0 to 1",
            ),
            ({"frames": np.full((2, 8, 8, 3), np.nan)}, "`video` is a ndarray"),
            ({"frames": np.full((2, 8, 8, 3), 300)}, "`video` is a ndarray"),
            ({"text": 7}, "`text` holds 7; give a string"),
            ({"text": "so \ud83d"}, r"`text` holds 'so \\ud83d'; give a string of whole characters"),
            ({"text": "hello", "context": ["thanks", None]}, "`context` holds None"),
            ({"frames": np.zeros((2, 8, 8, 3)), "start": "0:01"}, "`start` is '0:01'; give seconds"),
            ({"audio_features": np.full((3, 80), np.nan)}, "`audio_features` of clip 0 of the batch holds NaN"),
        ],
    )
    def test_what_is_refused(self, processor, given, message):
        with pytest.raises(ValueError, match=message) as error:
            processor(**given)
        assert "\n" not in str(error.value)


class TestSaving:
    def test_layer_and_histograms(self, tokenizer, clip, tmp_path):
        pytest.importorskip("skimage")
        names = {"audio_encoder": save_whisper(tmp_path / "whisper"), "audio_encoder_layer": 2, "video_encoder": "hog"}
        fields = {"audio_config": {"feature_size": 32, "encoder": names["audio_encoder"], "encoder_layer": 2}}
        fields["video_config"] = {"feature_size": 580, "encoder": "hog"}
        config = tiny_config(**merge_fields(FRONT_ENDS, fields))
        processor = AMESSProcessor.for_model(config, tokenizer)
        assert (processor.audio_sampling_rate, processor.video_frame_rate) == (16000, 10.0)
        expected = processor(clip=clip)
        processor.save_pretrained(tmp_path / "saved")
        config.save_pretrained(tmp_path / "saved")
        loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
        assert isinstance(loaded, AMESSProcessor)
        loaded.check_model(AutoConfig.from_pretrained(tmp_path / "saved"))
        same(expected, loaded(clip=clip))
        loaded.audio_encoder_layer = None
        with pytest.raises(ValueError, match="`audio_encoder_layer` is None in the processor and 2 in the model"):
            loaded.check_model(config)

    def test_hub_encoders(self, tokenizer, clip, tmp_path):
        speech = save_speech_model(tmp_path / "wavlm", norm="layer")
        vision = save_vision_model(tmp_path / "swin")
        names = {
            "audio_config": {"encoder": speech, "feature_size": 32},
            "video_config": {"encoder": vision, "feature_size": 24},
        }
        config = tiny_config(**names)
        processor = AMESSProcessor.for_model(config, tokenizer, video_frame_rate=5)
        expected = processor(text="hello", clip=clip)  # loads the encoders, which are not to be saved
        assert expected["video_features"].shape[1:] == (5, 24) and expected["audio_features"].shape[-1] == 32
        processor.save_pretrained(tmp_path / "model")
        saved = json.loads((tmp_path / "model" / "processor_config.json").read_text())
        assert saved["feature_extractor"]["do_normalize"] and saved["image_processor"]["size"]["height"] == 32
        loaded = AutoProcessor.from_pretrained(tmp_path / "model")
        assert type(loaded.image_processor) is type(processor.image_processor)
        assert {**loaded.to_dict(), "auto_map": None} == {**processor.to_dict(), "auto_map": None}
        same(expected, loaded(text="hello", clip=clip))

    def test_names_of_inputs(self, processor):
        assert set(processor.model_input_names) >= {"input_ids", "audio_features", "video_attention_mask"}


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        "field, value, other",
        [
            ("audio_encoder", "microsoft/wavlm-base", {"audio_config": {"encoder": "microsoft/wavlm-base"}}),
            ("video_encoder", None, {"video_config": None}),
            ("audio_feature_size", 768, {"audio_config": {"feature_size": 768}}),
            ("max_text_length", 40, {"max_text_length": 40}),
            ("max_audio_length", 400, {"audio_config": {"max_length": 400}}),
            ("max_video_length", 180, {"video_config": {"max_length": 180}}),
        ],
    )
    def test_another_model(self, processor, field, value, other):
        processor.check_model(tiny_config(**FRONT_ENDS))
        with pytest.raises(ValueError, match=f"`{field}` is .* in the processor and {value!r} in the model"):
            processor.check_model(tiny_config(**merge_fields(FRONT_ENDS, other)))

    def test_an_encoder_of_another_width_or_rate(self, tokenizer, clip):
        wide = AMESSProcessor(tokenizer, audio_encoder="log-mel", audio_feature_size=768)
        with pytest.raises(
            ValueError, match="`audio_feature_size` is 768, but that of `audio_encoder` 'log-mel' is 80"
        ):
            wide(audio=clip)
        fast = AMESSProcessor(tokenizer, audio_encoder="log-mel", audio_feature_size=80, audio_sampling_rate=8000)
        with pytest.raises(
            ValueError, match="`audio_sampling_rate` is 8000, but that of `audio_encoder` 'log-mel' is 16000"
        ):
            fast(audio=clip)

    def test_a_clip_for_a_model_of_unknown_encoders(self, tokenizer, clip):
        processor = AMESSProcessor.for_model(tiny_config(), tokenizer)
        with pytest.raises(
            ValueError, match=f"{clip} cannot be used: the model was trained with ready audio features"
        ):
            processor(text="hello", clip=clip)
        assert processor(text="hello", audio_features=np.zeros((3, 6)))["audio_features"].shape == (1, 3, 6)

    def test_bad_arguments(self, processor, tmp_path):
        with pytest.raises(ValueError, match="nothing to process"):
            processor(context=["hello"])
        with pytest.raises(ValueError, match="the lists differ in length: {'text': 2, 'clip': 1}"):
            processor(text=["a", "b"], clip=["clip.mp4"])
        with pytest.raises(ValueError, match="`return_tensors` is 'np'"):
            processor(text="hello", return_tensors="np")
        with pytest.raises(ValueError, match=r"`audio_features` .* \(3, 7\); it must be \(frames, 80\)"):
            processor(text="hello", audio_features=np.zeros((3, 7)))
        with pytest.raises(ValueError, match=r"`video` is a ndarray of shape \(5, 4, 4, 1\)"):
            processor(video=np.zeros((5, 4, 4, 1)))
        with pytest.raises(ClipError, match="nowhere.mp4 does not exist"):
            processor(clip=tmp_path / "nowhere.mp4")

    def test_preprocessing_that_is_not_available_is_said(self, tokenizer, caplog):
        config = tiny_config(audio_config={"encoder": "no-such/model"})
        assert AMESSProcessor.for_model(config, tokenizer).feature_extractor is None
        assert "The preprocessing of no-such/model cannot be loaded" in caplog.text


class TestPadFeatures:
    def test_longest_of_the_batch(self):
        clips = [np.random.default_rng(0).normal(size=(frames, 3)).astype(np.float32) for frames in (2, 5, 0)]
        features, mask = pad_features([*clips, None, [[1.0, 2.0, 3.0]]], 3, max_length=10)
        assert features.shape == (5, 5, 3) and features.dtype == torch.float32
        assert mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [0] * 5, [0] * 5, [1, 0, 0, 0, 0]]
        for row, clip in enumerate(clips):
            np.testing.assert_array_equal(features[row, : len(clip)].numpy(), clip)
            assert (features[row, len(clip) :] == 0).all()

    def test_cut_at_the_maximum_and_exactly_the_maximum(self):
        clips = [np.arange(12.0).reshape(4, 3), np.ones((3, 3))]
        features, mask = pad_features(clips, 3, max_length=3)
        assert mask.tolist() == [[1, 1, 1], [1, 1, 1]]
        np.testing.assert_array_equal(features[0].numpy(), clips[0][:3])

    def test_nobody_has_it(self):
        features, mask = pad_features([None, None], 3, max_length=4)
        assert features.shape == (2, 1, 3) and mask.sum() == 0

    @pytest.mark.parametrize("clip", [np.ones((2, 4)), np.ones(3), np.ones((2, 1, 3))])
    def test_wrong_shape(self, clip):
        with pytest.raises(ValueError, match=r"`audio_features` of clip 1 .*\(frames, 3\)"):
            pad_features([np.ones((2, 3)), clip], 3, 10, "audio_features")

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_features_that_are_no_numbers(self, value):
        clip = np.ones((4, 3))
        clip[2, 1] = value
        with pytest.raises(ValueError, match="`audio_features` of clip 1 of the batch holds NaN or infinite values"):
            pad_features([np.ones((2, 3)), clip], 3, 10, "audio_features")
        features, _ = pad_features([clip], 3, 2)  # beyond the limit nothing is read
        assert features.isfinite().all()


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


class TestFiles:
    def test_file_gets_its_name_when_it_is_complete(self, tmp_path):
        path = tmp_path / "scores.txt"
        with written_aside(path) as partial:
            Path(partial).write_text("0.7")
            assert not path.exists()
        assert path.read_text() == "0.7"
        with pytest.raises(TypeError):
            write_json(path, {"score": object()})
        with pytest.raises(RuntimeError), written_aside(path) as partial:
            Path(partial).touch()
            raise RuntimeError
        assert path.read_text() == "0.7" and os.listdir(tmp_path) == ["scores.txt"]

    @pytest.mark.parametrize("exists", [False, True])
    def test_folder_gets_its_name_when_it_is_complete(self, tmp_path, exists):
        folder = tmp_path / "new" / "corpus"
        if exists:
            folder.mkdir(parents=True)
        with folder_written_aside(folder) as partial:
            write_text(partial / "train.csv", "id,text\n")
            assert not (folder / "train.csv").exists()
        assert (folder / "train.csv").read_text() == "id,text\n" and os.listdir(folder.parent) == ["corpus"]
        with pytest.raises(RuntimeError), folder_written_aside(folder.parent / "other"):
            raise RuntimeError
        for taken in (folder, folder / "train.csv"):
            with pytest.raises(ValueError, match="exists and is not empty"), folder_written_aside(taken):
                pass
        assert os.listdir(folder.parent) == ["corpus"]
