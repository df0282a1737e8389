"""AMESSProcessor: inputs, the resulting batch, what is saved, and incompatible settings."""

import json

import numpy as np
import pytest
import torch
from encoder_models import save_speech_model, save_vision_model, save_whisper
from transformers import AutoConfig, AutoProcessor
from transformers.utils import logging
from utils import FRONT_ENDS, tiny_config, tiny_model

from amess_hf import AMESSDataCollator, AMESSProcessor
from amess_hf.encoders_amess import HOGEncoder, LogMelEncoder
from amess_hf.recipe_amess import merge_fields


av = pytest.importorskip("av")

from clip_writer import write_clip

from amess_hf.clips_amess import ClipError, read_audio, read_frames


def random_frames(count, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One second of noise in sound and picture."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, random_frames(25), np.random.default_rng(0).uniform(-0.5, 0.5, 16000))
    return str(path)


@pytest.fixture
def processor(tokenizer):
    return AMESSProcessor.for_model(tiny_config(**FRONT_ENDS), tokenizer)


# The frames that the front end is given, three times as large and in colour.
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
        with open(clip, "rb") as file:
            same(whole, processor(text="hello", clip=file.read()))
        sound = read_audio(clip, 16000)
        frames = read_frames(clip, **HOGEncoder().reading)
        features = {
            "audio_features": LogMelEncoder()([sound])[0],
            "video_features": HOGEncoder()([frames])[0],
        }
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
        assert batch["audio_attention_mask"].sum(1).tolist() == [
            50 if batch["audio_attention_mask"][0, 49] else 49,
            60,
            0,
        ]
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
    def test_a_videos_sound_belongs_to_it(self, processor, clip):
        whole = processor(text="hello", clip=clip)
        same(whole, processor(text="hello", video=clip))
        same(whole, processor(text=["hello"], video=[clip]))

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
        assert f"`max_{modality}_length`" in record.message and "window_s" in record.message

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
        loaded.check_model(AutoConfig.from_pretrained(tmp_path / "saved"))
        same(expected, loaded(clip=clip))
        loaded.audio_encoder_layer = None
        with pytest.raises(ValueError, match="`audio_encoder_layer` is None in the processor and 2 in the model"):
            loaded.check_model(config)

    def test_front_ends(self, processor, clip, tmp_path):
        expected = processor(text="hello", clip=clip)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert isinstance(loaded, AMESSProcessor)
        assert (loaded.audio_sampling_rate, loaded.video_frame_rate) == (16000, 10.0)
        loaded.check_model(tiny_config(**FRONT_ENDS))
        same(expected, loaded(text="hello", clip=clip))

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
