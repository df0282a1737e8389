"""Features of sound and picture: shapes, agreement with direct computation, independence of the batch and of later frames."""

import sys

import numpy as np
import pytest
import torch
from encoder_models import SPEECH_MODELS, save_speech_model, save_vision_model, save_whisper
from transformers import AutoImageProcessor, AutoModel, WhisperFeatureExtractor, WhisperModel

from amess_hf.encoders_amess import WINDOW_FEATURES, HOGEncoder, HOGGridEncoder, LogMelEncoder, load_encoder


VISION_WIDTHS = {"swin": 24, "vit": 32, "resnet": 16, "videomae": 32}


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def pictures(count, height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models by name, made once."""
    folder = tmp_path_factory.mktemp("encoders")
    made = {f"{kind}-group": save_speech_model(folder / kind, kind) for kind in SPEECH_MODELS}
    made["wavlm-layer"] = save_speech_model(folder / "wavlm-layer", norm="layer")
    made["deep-group"] = save_speech_model(folder / "deep-group", "hubert", layers=3)
    made["deep-layer"] = save_speech_model(folder / "deep-layer", "wav2vec2", norm="layer", layers=3)
    made["whisper"] = save_whisper(folder / "whisper")
    return made | {kind: save_vision_model(folder / kind, kind) for kind in VISION_WIDTHS}


class TestLogMel:
    def test_frame_count_and_width(self):
        encoder = LogMelEncoder()
        features = encoder([noise(16000), noise(0), noise(3200), noise(7)])
        assert [f.shape for f in features] == [(49, 80), (0, 80), (9, 80), (1, 80)]
        assert encoder.frame_rate == 50 and all(f.dtype == np.float32 for f in features)

    def test_a_band_by_hand(self):
        """One frame by a direct Fourier sum over the mel filters."""
        encoder, sound = LogMelEncoder(), noise(400)
        windowed = np.pad(sound.astype(np.float64) * encoder.window, (0, 112))
        samples = np.arange(512)
        bins = [abs(np.sum(windowed * np.exp(-2j * np.pi * k * samples / 512))) ** 2 for k in range(257)]
        expected = (np.log10(np.maximum(np.array(bins) @ encoder.mel_filters, 1e-10)) + 4) / 4
        np.testing.assert_allclose(encoder([sound])[0][0], expected, atol=1e-4)

    def test_a_tone_is_in_its_band_and_silence_is_low(self):
        times = np.arange(16000) / 16000
        low, high = (LogMelEncoder()([np.sin(2 * np.pi * f * times)])[0].mean(0).argmax() for f in (200, 4000))
        assert low < 10 < 50 < high
        np.testing.assert_allclose(LogMelEncoder()([np.zeros(800)])[0], -1.5, atol=1e-6)

    def test_windows_join_without_a_gap(self):
        encoder = LogMelEncoder()
        sound = noise((WINDOW_FEATURES + 30) * 320 + 80)
        joined = encoder([sound])[0]
        assert len(joined) == WINDOW_FEATURES + 30
        for frame in (0, WINDOW_FEATURES - 1, WINDOW_FEATURES, WINDOW_FEATURES + 29):
            alone = encoder([sound[frame * 320 : frame * 320 + 400]])[0]
            np.testing.assert_allclose(joined[frame], alone[0], atol=1e-6)

    def test_the_needed_seconds_settle_the_features(self):
        encoder = LogMelEncoder()
        sound = noise(WINDOW_FEATURES * 320 * 2 + 5000)
        for length in (1, WINDOW_FEATURES, WINDOW_FEATURES + 1):
            needed = round(encoder.seconds_needed(length) * 16000)
            np.testing.assert_array_equal(encoder([sound[:needed]])[0][:length], encoder([sound])[0][:length])


class TestSpeechModels:
    @pytest.mark.parametrize("kind", ["wavlm-group", "wav2vec2-group", "hubert-group", "wavlm-layer"])
    def test_alone_as_in_a_batch(self, models, kind):
        encoder = load_encoder("audio", models[kind])
        sounds = [noise(16000, 1), noise(3200, 2), noise(0), noise(100, 3), noise(16000, 4)]
        together = encoder(sounds)
        assert [f.shape for f in together] == [(49, 32), (9, 32), (0, 32), (1, 32), (49, 32)]
        for sound, features in zip(sounds, together, strict=True):
            np.testing.assert_allclose(encoder([sound])[0], features, atol=2e-5)

    def test_equals_the_model(self, models):
        encoder = load_encoder("audio", models["wavlm-group"])
        sound = noise(8000)
        model = AutoModel.from_pretrained(models["wavlm-group"]).eval()
        with torch.no_grad():
            expected = model(torch.from_numpy(sound)[None]).last_hidden_state[0]
        np.testing.assert_allclose(encoder([sound])[0], expected.numpy(), atol=1e-5)

    def test_frozen(self, models):
        encoder = load_encoder("audio", models["wavlm-group"])
        assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())
        encoder.model.bfloat16()
        features = encoder([noise(8000)])[0]
        assert features.dtype == np.float32 and np.isfinite(features).all()

    def test_long_sound_goes_in_windows(self, models):
        encoder = load_encoder("audio", models["wavlm-group"])
        sound = noise(320 * (WINDOW_FEATURES + 10) + 80)
        features = encoder([sound])[0]
        assert len(features) == WINDOW_FEATURES + 10
        needed = round(encoder.seconds_needed(5) * 16000)
        assert needed < len(sound)
        np.testing.assert_allclose(features[:5], encoder([sound[:needed]])[0][:5], atol=1e-6)
        np.testing.assert_allclose(features[-10:], encoder([sound[320 * WINDOW_FEATURES :]])[0], atol=1e-5)


class TestLayers:
    @pytest.mark.parametrize("kind", ["deep-group", "deep-layer"])
    @pytest.mark.parametrize("layer", [1, 2, 3])
    def test_the_states_after_a_layer(self, models, kind, layer):
        sounds = [noise(8000, 1), noise(3200, 2)]
        model = AutoModel.from_pretrained(models[kind]).eval()
        encoder = load_encoder("audio", models[kind], layer=layer)
        for sound, features in zip(sounds, encoder(sounds), strict=True):
            values = encoder.feature_extractor(sound, sampling_rate=16000, return_tensors="pt")["input_values"]
            with torch.no_grad():
                expected = model(values, output_hidden_states=True).hidden_states[layer][0]
            np.testing.assert_allclose(features, expected.numpy(), atol=2e-5)

    @pytest.mark.parametrize(("kind", "layer", "layers"), [("deep-group", 4, 3), ("whisper", 7, 3), ("whisper", 0, 3)])
    def test_a_layer_that_is_not_there(self, models, kind, layer, layers):
        with pytest.raises(ValueError, match=f"`audio_encoder_layer` is {layer}, but .* has {layers} layers"):
            load_encoder("audio", models[kind], layer=layer)


class TestWhisper:
    def test_thirty_seconds_are_the_models_own_states(self, models):
        """Of a clip as long as Whisper pads to, the states are those of transformers' `WhisperEncoder`."""
        sound = noise(480000)
        model = WhisperModel.from_pretrained(models["whisper"]).get_encoder().eval()
        mel = WhisperFeatureExtractor()(sound, sampling_rate=16000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            outputs = model(mel, output_hidden_states=True)
        for layer in (None, 2):
            expected = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
            states = load_encoder("audio", models["whisper"], layer=layer)._states([sound])
            torch.testing.assert_close(states, expected, atol=2e-5, rtol=0)

    def test_as_long_as_the_clip_and_alone_as_in_a_batch(self, models):
        encoder = load_encoder("audio", models["whisper"], layer=2)
        assert (encoder.sampling_rate, encoder.frame_rate, encoder.feature_size) == (16000, 50, 32)
        sounds = [noise(16000, 1), noise(3210, 2), noise(0), noise(100, 3), noise(16000, 4)]
        together = encoder(sounds)
        assert [f.shape for f in together] == [(50, 32), (10, 32), (0, 32), (1, 32), (50, 32)]
        for sound, features in zip(sounds, together, strict=True):
            np.testing.assert_allclose(encoder([sound])[0], features, atol=2e-5)
        assert np.abs(together[0] - together[4]).max() > 0.1

    def test_a_layer_leaves_the_rest_out(self, models):
        encoder = load_encoder("audio", models["whisper"], layer=2)
        assert len(encoder.model.layers) == 2 and not hasattr(encoder.model, "decoder")


class TestVisionModels:
    @pytest.mark.parametrize("kind", list(VISION_WIDTHS))
    def test_alone_as_in_a_batch(self, models, kind):
        encoder = load_encoder("video", models[kind], frame_rate=4)
        clips = [pictures(5, seed=1), pictures(0), pictures(37, seed=2), pictures(1, 33, 71, seed=3)]
        together = encoder(clips)
        step = 2 if kind == "videomae" else 1
        width = VISION_WIDTHS[kind]
        assert encoder.feature_size == width and encoder.frame_rate == 4 / step
        assert [f.shape for f in together] == [(-(-n // step), width) for n in (5, 0, 37, 1)]
        for clip, features in zip(clips, together, strict=True):
            np.testing.assert_allclose(encoder([clip])[0], features, atol=2e-5)
        needed = encoder.frames_needed(3)
        np.testing.assert_allclose(encoder([clips[2][:needed]])[0][:3], together[2][:3], atol=2e-5)

    @pytest.mark.parametrize("kind", ["swin", "vit", "resnet"])
    def test_equals_the_model(self, models, kind):
        frames = pictures(3)
        model = AutoModel.from_pretrained(models[kind]).eval()
        pixels = AutoImageProcessor.from_pretrained(models[kind])(list(frames), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixels)
        pooled = outputs.last_hidden_state[:, 0] if kind == "vit" else outputs.pooler_output.flatten(1)
        np.testing.assert_allclose(load_encoder("video", models[kind])([frames])[0], pooled.numpy(), atol=1e-5)

    def test_frames_come_as_a_stream(self, models):
        """No more than a batch of frames is taken before the first is encoded, and a generator will do."""
        encoder = load_encoder("video", models["swin"])
        taken, seen = [], []
        encode = encoder._encode

        def watched(inputs):
            seen.append(len(taken))
            return encode(inputs)

        def frames():
            for frame in pictures(70):
                taken.append(1)
                yield frame

        encoder._encode = watched
        assert encoder([frames()])[0].shape == (70, 24) and seen == [32, 64, 70]


def test_what_cannot_be_used(models):
    for modality, front_end in (("audio", "log-mel"), ("video", "hog")):
        with pytest.raises(
            ValueError, match=f"`{modality}_encoder` is 'no/model', which cannot be loaded .*'{front_end}'"
        ):
            load_encoder(modality, "no/model")
    with pytest.raises(ValueError, match="a vit model, which does not read audio; give a WavLM"):
        load_encoder("audio", models["vit"])
    with pytest.raises(ValueError, match="`audio_encoder_layer` is 3, but 'log-mel' has no layers"):
        load_encoder("audio", "log-mel", layer=3)


class TestHOG:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("skimage")

    @pytest.mark.parametrize("name", ["hog", "hog-grid"])
    def test_the_librarys_histograms_and_the_change(self, name):
        from skimage.feature import hog

        frames = pictures(3, 64, 64)[..., 0]
        features = load_encoder("video", name)([frames])[0]
        assert features.dtype == np.float32
        if name == "hog":
            cell, small = (16, 16), frames.reshape(3, 16, 4, 16, 4).mean((2, 4)).reshape(3, -1) / 255
            shapes, motion = features[:, :324], features[:, 324:]
        else:
            grids = features.reshape(3, 15, 15, 10)
            cell, small = (4, 4), np.stack([frames[:, :5, :5].mean((1, 2)), frames[:, -5:, -5:].mean((1, 2))], 1) / 255
            shapes, motion = grids[..., :9], grids[:, [0, -1], [0, -1], 9]
            assert not grids[0, ..., 9].any()
        for frame, shape in zip(frames, shapes, strict=True):
            blocks = hog(frame / 255, 9, cell, cells_per_block=(2, 2), feature_vector=False)
            expected = blocks.ravel() if name == "hog" else blocks[:, :, 0, 0]
            np.testing.assert_allclose(shape, expected, atol=1e-5)
        np.testing.assert_allclose(motion, np.diff(small, axis=0, prepend=small[:1]), atol=1e-5)

    def test_it_sees_shape_where_the_mean_brightness_is_the_same(self):
        bars = np.zeros((1, 64, 64), dtype=np.uint8)
        bars[:, :, ::8] = 255
        upright, lying = (HOGEncoder()([frames])[0][0, :324] for frames in (bars, bars.transpose(0, 2, 1)))
        assert upright @ lying < 0.1 * upright @ upright

    @pytest.mark.parametrize(("kind", "width"), [(HOGEncoder, 580), (HOGGridEncoder, 2250)])
    def test_frames_of_any_size_and_pictures_that_stay(self, kind, width):
        encoder = kind()
        assert encoder.reading == {"frame_rate": 10.0, "size": (64, 64), "gray": True} and kind(4.0).frame_rate == 4
        assert encoder([[]])[0].shape == (0, width) and encoder([pictures(2, 90, 40)])[0].shape == (2, width)
        frame = pictures(1, 64, 64)[0, ..., 0]
        twice, copied = encoder([[frame, frame], [frame, frame.copy()]])
        np.testing.assert_array_equal(twice, copied)

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage.feature", None)
        with pytest.raises(ImportError, match=r"needs scikit-image; pip install \"amess_hf\[video\]\""):
            load_encoder("video", "hog")
