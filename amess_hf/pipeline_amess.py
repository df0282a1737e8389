"""The pipeline `intent-recognition`: from a clip, text or features to the intent of the speaker.

Below it: what an input may be, and where anchors lie: among the words of the utterance, and in seconds of the clip.
"""

import copy
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .clips_amess import Clip, resample
from .configuration_amess import CLIP_SUFFIXES, FEATURE_MODALITIES, MODALITIES, NO_ANCHOR, OUT_OF_SCOPE_LABEL
from .oos_amess import OutOfScopeDetector
from .processing_amess import AMESSProcessor


logger = logging.get_logger(__name__)

INPUT_KEYS = ("text", "context", "clip", "audio", "video", "frames", "audio_features", "video_features")
# Keys that go with them, and what else rows of `load_mintrec` have.
OTHER_KEYS = ("start", "end", "sampling_rate", "dialogue_id")
ROW_KEYS = ("id", "label", "label_name", "in_scope", "speaker", "source", "utterance_id")
KNOWN_KEYS = (*INPUT_KEYS, *OTHER_KEYS, *ROW_KEYS)
# What other libraries call them.
ALIASES = dict.fromkeys(("path", "bytes", "file", "filename", "url", "video_path"), "clip")
ALIASES |= {
    "image": "frames",
    "images": "frames",
    "audio_path": "audio",
    "array": "audio",
    "sentence": "text",
    "utterance": "text",
}
# What an encoder calls the rate at which it is given a clip.
ENCODER_RATES = {"audio": "sampling_rate", "video": "clip_frame_rate"}
# What `candidate_labels` leave to the model's other intents.
NONE_OF_THESE = "none of these"
# A detector's margin counts to here: beyond, the probability is 1 in floating point.
MAX_MARGIN = 30.0
# Lists from this length on get a progress bar.
PROGRESS_FROM = 32
# A speech recognizer gets this much of a clip at once: Whisper takes no more.
MAX_SPEECH_SECONDS = 30.0
# A clip is answered from so much of it.
MAX_STREAM_SECONDS = 600.0
# The rest of a clip after the last window is skipped if it is shorter than this.
SHORTEST_WINDOW = 0.2
# Windows of a long clip or text that go through the model together.
WINDOWS_PER_BATCH = 8


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


# What each parameter of a call may be.
_PARAMETERS = {
    "top_k": (
        lambda value: value is None or (type(value) is int and value > 0),
        "a number of intents, at least 1, or None for all",
    ),
    "threshold": (lambda value: _is_number(value) and 0 <= value <= 1, "a probability, a number from 0 to 1"),
    "coverage": (
        lambda value: _is_number(value) and 0 < value < 1,
        "a share of clips above 0 and below 1, without `top_k`, `threshold`, `candidate_labels` and `extra_labels`",
    ),
    "return_anchors": (lambda value: isinstance(value, bool), "True or False"),
    "on_error": (lambda value: value in ("raise", "skip"), '"raise" or "skip"'),
    "window_s": (lambda value: _is_number(value) and value > 0, "a number of seconds above 0"),
    "stride_s": (lambda value: _is_number(value) and value > 0, "a number of seconds above 0, at most `window_s`"),
    "candidate_labels": (
        lambda value: isinstance(value, (dict, list, tuple, str)),
        "{name: description, ...}, a list of names, or names with commas between them",
    ),
    "extra_labels": (lambda value: isinstance(value, dict), "{name: description, ...}, without `candidate_labels`"),
}


# Parameters that exclude others.
_WITHOUT = {
    "extra_labels": {"candidate_labels"},
    "coverage": {"top_k", "threshold", "candidate_labels", "extra_labels"},
}


def _reports_errors(method: Callable) -> Callable:
    """Give a step the parameter `on_error`, with which it can return `{"error": reason}`; see `__call__`."""

    @functools.wraps(method)
    def guarded(*args: Any, on_error: str = "raise", **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except ValueError as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}

    return guarded


class IntentRecognitionPipeline(Pipeline):
    """Names the intent of an utterance from its text, audio and video, as far as they are given.

    An input is a dictionary, a clip (`pathlib.Path`, `bytes` or a file object), or a string. Keys of the dictionary:

    - `text` (`str`): what is said, taken literally; without it the text is absent, or comes from `asr_model`.
    - `context` (`list[str]` or `str`): earlier turns of the dialogue, oldest first.
    - `video` (or `clip`): a clip (path, address, `bytes`, file object), whose audio is used too unless `audio` is given; or
      an array of frames of shape `(frames, height, width, 3)`.
    - `frames`: the video alone: an array of frames, or a clip whose audio is not used.
    - `audio`: an audio file, an array (with `sampling_rate`), or a dictionary with `array` and `sampling_rate`.
    - `audio_features`, `video_features`: ready features of shape `(frames, width)`, instead of a clip.
    - `start`, `end` (`float`): the span of the clip in seconds. In rows that name a `dialogue_id` (MIntRec2.0) these are
      times of the episode that the clip was cut from, and are not used.

    What rows of [`load_mintrec`] have besides is ignored; any other key is an error. Of a `datasets.Dataset`, other columns
    are ignored too, unless one looks like a misspelt key.

    A plain string is what is said, unless it ends like a media file (`.mp4`, `.wav`, ...): then it is the path of a
    clip, as in other pipelines. Addresses, folders and anything else that looks like a path are refused as ambiguous.
    Pass untrusted texts as `{"text": ...}`: no file is opened then.

    Inputs may also come as a list, a `datasets.Dataset` or a column of it (a list of results), a
    `datasets.IterableDataset` or a generator (results one by one).

    Args:
        model ([`AMESSForIntentClassification`]):
            The model.
        processor ([`AMESSProcessor`], *optional*):
            By default loaded from the same place as the model. One that does not fit the model is an error.
        detector ([`OutOfScopeDetector`], or `False`, *optional*):
            By default the one saved with the model, if there is one; `False` for none.
        asr_model (`str` or `Pipeline`, *optional*):
            Speech recognizer that gives the text of clips without `text`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Used if there is no processor: one is made from the model's configuration and this tokenizer.
        kwargs:
            As for any pipeline (`device`, `batch_size`, ...), and the parameters of `__call__`.

    Example:
    ```python
    >>> from transformers import pipeline
    >>> import amess_hf

    >>> pipe = pipeline("intent-recognition", model="org/amess-mintrec2")
    >>> pipe({"video": "clip.mp4", "text": "oh great, you again"}, top_k=2)
    [{'label': 'Taunt', 'score': 0.81}, {'label': 'Joke', 'score': 0.09}]
    ```
    """

    _load_processor = None
    _load_tokenizer = None
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        processor: AMESSProcessor | None = None,
        detector: OutOfScopeDetector | bool | None = None,
        asr_model: str | Pipeline | None = None,
        **kwargs: Any,
    ):
        if model.config.model_type != "amess":
            place = model.config._name_or_path
            raise ValueError(
                f"`model` {place} is a {model.config.model_type} model; give an A-MESS model, as README trains"
            )
        if processor is None and tokenizer is None:
            raise ValueError(
                "give `processor` or `tokenizer` (after training, `processor=trainer.processing_class`), or load the model "
                "from a folder that holds them"
            )
        processor = processor or AMESSProcessor.for_model(model.config, tokenizer)
        processor.check_model(model.config)
        super().__init__(model=model, tokenizer=processor.tokenizer, processor=processor, **kwargs)
        self.model.eval()
        self.detector = self._find_detector() if detector is None else (detector or None)
        if self.detector is not None:
            self.detector.check_model(model.config)
        if isinstance(asr_model, str):
            from transformers import pipeline

            asr_model = pipeline("automatic-speech-recognition", model=asr_model, device=self.device)
        self.asr_model = asr_model
        self._described: tuple[Any, Any] = (None, None)

    def _find_detector(self) -> OutOfScopeDetector | None:
        """Load the detector saved with the model, if there is one."""
        place = self.model.config._name_or_path
        if not place:
            return None
        try:
            return OutOfScopeDetector.from_pretrained(place, missing_ok=True, **self.model.hub_kwargs)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning(f"no out-of-scope detector is used: {place} cannot be searched for one ({reason})")
            return None

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, processor and detector, so that `pipeline` finds all of them in the folder.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder.
            kwargs:
                For `save_pretrained` of `Pipeline`.
        """
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if self.detector is not None:
            self.detector.save_pretrained(save_directory)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Check the parameters, and sort them by the step that takes them."""
        unknown = [name for name in given if name not in _PARAMETERS]
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise TypeError(f"unknown parameter of the pipeline: {names}; there are {', '.join(_PARAMETERS)}")
        given = {name: value for name, value in given.items() if value is not None or name == "top_k"}
        for name, value in given.items():
            is_valid, what = _PARAMETERS[name]
            is_late = name == "stride_s" and is_valid(value) and value > given.get("window_s", 0.0)
            clashes = not _WITHOUT.get(name, set()).isdisjoint(given)
            if not is_valid(value) or is_late or clashes:
                raise ValueError(f"`{name}` is {value!r}; it must be {what}")
        if "coverage" in given:
            given["coverage"] = self._lowest_score(given["coverage"])
        if "window_s" in given:
            given.setdefault("stride_s", given["window_s"])
        for name in ("candidate_labels", "extra_labels"):
            if name in given:
                given[name] = self._descriptions(name, given[name])
        steps = [{"on_error", "window_s", "stride_s"}, {"candidate_labels", "extra_labels"}]
        steps.append({"top_k", "threshold", "coverage", "return_anchors"})
        return tuple({name: value for name, value in given.items() if name in step} for step in steps)

    def _lowest_score(self, coverage: float) -> float:
        """Return the probability from which on an intent is in the set with this coverage."""
        config, percent = self.model.config, math.ceil(100 * coverage - 1e-9)
        thresholds = config.coverage_thresholds or []
        if config.described_labels or len(thresholds) < percent:
            reason = f"its dev clips suffice for {len(thresholds) / 100:g} at most; calibrate it on more"
            reason = reason if thresholds else "it was not calibrated; train it with a dev split"
            reason = (
                "it has described intents, of which there were no dev clips" if config.described_labels else reason
            )
            raise ValueError(f"`coverage` is {coverage}, which this model cannot give: {reason}")
        return thresholds[percent - 1]

    def _descriptions(self, parameter: str, given: dict[str, Any] | list[str] | str) -> dict[str, list[str]]:
        """Return sentences and examples for each label; a name alone stands for the model's own description, or for itself."""
        labels, own = given, self.model.config.label_descriptions or {}
        if isinstance(given, str):  # comma-separated names, as in other zero-shot pipelines
            labels = [name.strip() for name in given.split(",") if name.strip()]
        if not isinstance(labels, dict) and all(isinstance(name, str) for name in labels):
            labels = {name: own.get(name, name) for name in labels}
        if not isinstance(labels, dict) or not labels or not all(map(_is_described, labels.items())):
            raise ValueError(
                f"`{parameter}` is {given!r}; give one name or more, each with a sentence, an example (a dictionary as for an "
                "input, or a path), or a list of both"
            )
        unknown = [name for name in labels if name not in self.model.config.label2id]
        if unknown and not self.model.knows_descriptions():
            raise ValueError(
                f"`{parameter}` has {', '.join(map(repr, unknown))}, but this model was trained without descriptions "
                f"and knows only {', '.join(self.model.config.label2id)}; train with `label_descriptions`"
            )
        labels = {name: list(one) if isinstance(one, (list, tuple)) else [one] for name, one in labels.items()}
        return {
            name: one if any(isinstance(part, str) for part in one) else [*own.get(name, [name]), *one]
            for name, one in labels.items()
        }

    def set_label_descriptions(self, label_descriptions: dict[str, Any]) -> None:
        """Answer with described intents from now on; see the model's method. Calls of other threads are not disturbed.

        An intent has a sentence, an example (a clip in any form that is an input, but for plain strings), or a list of both.
        An out-of-scope detector is dropped: it was calibrated on the former intents.
        """
        described = self._descriptions("label_descriptions", label_descriptions)
        self.detector = None
        self.model = self._with_labels(self.model, described)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Name the intent of one input or of several.

        Args:
            inputs:
                One input, a list, a `datasets.Dataset` or a generator; see the class.
            kwargs:
                The parameters below, which may also be given to the constructor.

                - `top_k` (`int`, *optional*, defaults to 5): Number of answers to give, `None` for all.
                - `threshold` (`float`, *optional*): Probability of the best intent below which the answer is `UNK`;
                  replaces the detector.
                - `coverage` (`float`, *optional*): Give the set of intents that holds the right one in this share of the
                  clips, for clips like those of the dev split that the model was calibrated on (split conformal
                  prediction); the set is never empty. It replaces `top_k` and the detector: sets hold intents only.
                - `candidate_labels` (`dict[str, Any]`, `list[str]` or `str`, *optional*): Choose among
                  these intents, each described in one sentence or several, or taught by examples: clips as inputs
                  (`{"text": ..., "video": ...}` or a `pathlib.Path`), in a list with the sentences or alone. Names alone, in
                  a list or a comma-separated string, stand for the model's own descriptions, or else for themselves.
                  Intents that the model was trained on keep their classifier. `none of these` gets the probability of the
                  model's other intents.
                  The detector, which was calibrated on the model's own intents, is ignored.
                - `extra_labels` (`dict[str, Any]`, likewise, *optional*): Choose among these intents and the model's
                  own. The detector has its say where the answer is one of the model's own.
                - `return_anchors` (`bool`, *optional*): Also return which words, sounds and frames decided.
                - `window_s` (`float`, *optional*): Split each clip into windows of this many seconds and answer for
                  each.
                - `stride_s` (`float`, *optional*): Seconds from one window to the next; by default windows do not overlap.
                - `on_error` (`str`, *optional*, defaults to `"raise"`): `"skip"` gives `{"error": reason}` instead of
                  the answer where a clip cannot be used.
                - `batch_size`, `num_workers` (`int`, *optional*): As for any pipeline; workers decode.

        Returns:
            `list[dict]`: For each input the intents as `{"label", "score"}`, the best first; scores are probabilities, whose
            sum over all is one. For an input that is out of scope, `{"label": "UNK", "score"}` comes first, whose score is
            how sure of that the detector is, at least 0.5; the intents share the rest.

            With `return_anchors`, a `dict` instead: `label`, `score` of the answer; `predictions` (the list); `in_scope`
            (`None` where neither a detector nor `threshold` says); `text` (as given or recognized); and `anchors`: for
            `text` a list of `{"word", "start", "end", "score"}` with `start` and `end` in characters, for `audio` and
            `video` of `{"frame", "start", "end", "score"}` in seconds of the clip (without `start` and `end` for ready
            features, whose rate is not known).

            With `window_s`, for each input a list of `{"start", "end", "predictions"}` in seconds of the clip, in
            temporal order, and with `return_anchors` all of the above next to `start` and `end`.

        Raises:
            ValueError: An input is empty, or a clip cannot be used.
            TypeError: A parameter is unknown.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            return []
        if hasattr(inputs, "column_names") or hasattr(inputs, "column_name"):  # of `datasets`
            rows = _rows_of(inputs)
            if not hasattr(rows, "__len__"):
                return super().__call__((row for row in rows), **kwargs)
            return list(super().__call__(Subset(rows, range(len(rows))), **kwargs))
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)

    def get_iterator(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        """Yield the results of several inputs, as `Pipeline` requires.

        The collation of `Pipeline` pads tensors; here a batch is a list of decoded clips until it is encoded.
        """
        run = self._in_windows if "window_s" in params[0] else self._plain
        return run(inputs, num_workers, batch_size, *params)

    def run_single(self, inputs: Any, *params: dict[str, Any]) -> Any:
        """Return the result of one input, as `Pipeline` requires."""
        return next(self.get_iterator([inputs], 0, 1, *params))

    def _plain(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        preprocess_params, forward_params, postprocess_params = params
        if hasattr(inputs, "__len__"):
            dataset, total = PipelineDataset(inputs, self.preprocess, preprocess_params), len(inputs)
        else:
            dataset, total = PipelineIterator(inputs, self.preprocess, preprocess_params), None
            num_workers = min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=list)
        hidden = total is None or total < PROGRESS_FROM
        with logging.tqdm(total=total, desc="Recognizing intents", unit="clip", disable=hidden) as progress:
            for examples in loader:
                for result in self.forward({"examples": examples}, **forward_params)["results"]:
                    yield self.postprocess(result, **postprocess_params)
                    progress.update()

    def _in_windows(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        """Answer for each window of each clip; only one window is in memory at a time."""
        preprocess_params, *other_params = params
        plain_params = {name: value for name, value in preprocess_params.items() if name == "on_error"}
        for one in inputs:
            rows = self._windows(one, **preprocess_params)
            if "error" in rows:
                yield rows
                continue
            answers = self._plain(rows, num_workers, batch_size, plain_params, *other_params)
            yield [
                {"start": row["clip"].start, "end": row["clip"].end}
                | (answer if isinstance(answer, dict) else {"predictions": answer})
                for row, answer in zip(rows, answers, strict=True)
            ]

    @_reports_errors
    def _windows(self, inputs: Any, window_s: float, stride_s: float) -> list[dict[str, Any]]:
        """Return a row for each window of a clip."""
        row = _as_row(inputs)
        given = [name for name in ("text", "audio_features", "video_features") if row.get(name) is not None]
        timeless = [name for name in given if name != "text" or row["text"].strip()]
        if timeless:
            raise ValueError(
                f"`window_s` splits a clip, but it is not known where `{timeless[0]}` belongs in it; leave it out"
            )
        parts = self._parts(Clip.from_row(row), window_s, stride_s)
        return [{"context": row.get("context"), "clip": part} for part in parts]

    def _parts(self, clip: Clip, window_s: float | None = None, stride_s: float | None = None) -> list[Clip]:
        """Cut a clip into windows, without the modalities that have ended.

        By default they are as long as the model takes at once, one after another, and a clip that is no longer stays as
        it is. A clip that cannot be read stays as it is too: reading it says why.
        """
        encoders = {
            name: self.processor.load_encoder(name) for name in FEATURE_MODALITIES if getattr(clip, name) is not None
        }
        encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        rates = {name: getattr(encoder, ENCODER_RATES[name]) for name, encoder in encoders.items()}
        ends = {name: end for name, end in clip.durations(rates).items() if end > clip.start}
        reach = [getattr(self.processor, f"max_{name}_length") / encoders[name].frame_rate for name in ends]
        total = min(max(ends.values(), default=0.0), math.inf if clip.end is None else clip.end)
        window, stride = window_s or min(reach, default=0.0), stride_s or window_s or min(reach, default=0.0)
        if window > min(reach, default=math.inf) + 1e-6:
            raise ValueError(f"`window_s` is {window:g}; this model takes at most {min(reach):g} seconds at once")
        if not ends or (window_s is None and total - clip.start <= window):
            return [clip]
        total, parts, start = min(total, clip.start + MAX_STREAM_SECONDS), [], clip.start
        while not parts or total - parts[-1].end >= SHORTEST_WINDOW:
            there = {
                name: getattr(clip, name) for name, end in ends.items() if not parts or end - start > SHORTEST_WINDOW
            }
            sources = {name: there.get(name) for name in FEATURE_MODALITIES}
            parts.append(dataclasses.replace(clip, start=start, end=min(start + window, total), **sources))
            start = clip.start + len(parts) * stride
        return parts

    def preprocess(self, inputs: Any, on_error: str = "raise") -> dict[str, Any]:
        """Decode a clip; nothing is encoded yet.

        Args:
            inputs:
                One input; see the class.
            on_error (`str`, *optional*, defaults to `"raise"`):
                See `__call__`.

        Returns:
            `dict`: What [`AMESSProcessor.read`] gives for the first window of the clip, with `parts` (all windows), `speech`
            (audio to be transcribed, or `None`) and `read` (the span, if it is not the whole clip); or `error` alone.
        """
        return {**self._read(inputs, on_error=on_error), "on_error": on_error}

    @_reports_errors
    def _read(self, inputs: Any) -> dict[str, Any]:
        row = _as_row(inputs)
        has_text = isinstance(row.get("text"), str) and row["text"].strip() != ""
        listens = self.asr_model is not None and not has_text
        clip = Clip.from_row(row)
        ready = any(row.get(f"{name}_features") is not None for name in FEATURE_MODALITIES)
        parts = [clip] if ready else self._parts(clip)
        example = self.processor.read({**row, "clip": parts[0]}) | {"parts": parts, "speech": None}
        if listens:
            example["speech"] = self._speech(clip, example["audio"] if len(parts) == 1 else None)
        example["read"] = None
        if parts[-1].end is not None and parts[-1].end - clip.start >= MAX_STREAM_SECONDS:
            example["read"] = clip.start, parts[-1].end
        taken = [name for name in FEATURE_MODALITIES if getattr(self.processor, f"{name}_feature_size") is not None]
        values = [example[key] for name in taken for key in (name, f"{name}_features")] + [example["speech"]]
        if not has_text and not any(value is not None and len(value) for value in values):
            raise ValueError("the input has no text, audio or video that this model takes; give at least one")
        return example

    def _speech(self, clip: Clip, audio: np.ndarray | None) -> np.ndarray | None:
        """Return the audio that the recognizer gets: what was decoded for the encoder, if that is all."""
        rate = self.asr_model.feature_extractor.sampling_rate
        if audio is None:
            return clip.read_audio(rate, MAX_STREAM_SECONDS)
        return resample(audio, self.processor.load_encoder("audio").sampling_rate, rate)

    def _transcribe(self, speech: np.ndarray) -> str:
        rate = self.asr_model.feature_extractor.sampling_rate
        size = round(MAX_SPEECH_SECONDS * rate)
        pieces = (speech[first : first + size] for first in range(0, len(speech), size))
        return " ".join(self.asr_model({"raw": piece, "sampling_rate": rate})["text"].strip() for piece in pieces)

    def _forward(
        self,
        inputs: dict[str, Any],
        candidate_labels: dict[str, list[str]] | None = None,
        extra_labels: dict[str, list[str]] | None = None,
    ) -> dict[str, Any]:
        examples = [example for example in inputs["examples"] if "error" not in example]
        results = iter(self._answers(examples, candidate_labels, extra_labels or {}) if examples else ())
        return {"results": [one if "error" in one else next(results) for one in inputs["examples"]]}

    def _answers(
        self, examples: list[dict[str, Any]], candidates: dict[str, Any] | None, extra: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return what the model says of each of a batch of decoded clips."""
        for example in examples:
            if example["speech"] is not None:
                example["text"] = self._transcribe(example["speech"])
        own, detector = self.model, self.detector  # one model for all of this, whatever other threads do
        model = own if not (candidates or extra) else self._model_for(own, candidates or extra)
        guarded = detector is not None and candidates is None and detector.threshold is not None
        models = [model, own] if guarded and model is not own else [model]
        rows = self.processor.encode(examples, self.device)
        outputs, windows = self._ask(models, rows, [example["clip"] for example in examples])
        margins = detector.margins(outputs[-1]).tolist() if guarded else None
        results = []
        for row, example in enumerate(examples):
            answer, place, seen, margin = outputs[0], row, [windows[row]], margins and margins[row]
            spans = _text_spans(example["text"] or "", windows[row]["encoding"], self.processor.text_prefix or "")
            if len(spans) > 1 or len(example["parts"]) > 1:
                in_windows = rows[row], example["parts"], spans
                found = self._ask_in_windows(models, *in_windows, on_error=example["on_error"])
                if "error" in found:
                    results.append(found)
                    continue
                (answer, *others), seen = found
                place, margin = 0, margins and detector.margins([answer, *others][-1]).item()
            results.append(
                {
                    "scores": _scores(answer.logits[place], model.config.id2label, candidates),
                    "extra": extra,
                    "margin": margin,
                    "text": example["text"] or "",
                    "windows": seen,
                    "decoded": {name: example[f"{name}_features"] is None for name in FEATURE_MODALITIES},
                    "read": example["read"],
                }
            )
        return results

    def _ask(self, models: list[Any], rows: list[dict[str, Any]], clips: list[Clip]) -> tuple[list[Any], list[Any]]:
        """Return the outputs of each model for a batch, and what each row needs to place its anchors."""
        batch = self.processor.collate(rows)
        masks = {"text": batch.get("utterance_mask", batch["attention_mask"])}
        masks |= {name: batch[f"{name}_attention_mask"] for name in FEATURE_MODALITIES if f"{name}_features" in batch}
        encodings = batch.encodings or [None] * len(rows)
        counts = torch.stack(
            [masks[name].sum(1) if name in masks else masks["text"].sum(1) * 0 for name in MODALITIES], 1
        )
        batch = batch.to(self.device, models[0].dtype)
        outputs = [model(**batch) for model in models]
        places = []
        for row, clip in enumerate(clips):
            place = {"encoding": encodings[row], "start": clip.start, "counts": counts[row].float(), "text": (0, None)}
            if outputs[0].anchor_indices is not None:
                place["anchors"] = (
                    outputs[0].anchor_indices[row].tolist(),
                    outputs[0].anchor_scores[row].float().tolist(),
                )
            places.append(place)
        return outputs, places

    @_reports_errors
    def _ask_in_windows(
        self, models: list[Any], row: dict[str, Any], parts: list[Clip], spans: list[tuple[int, int]]
    ) -> tuple[list[Any], list[Any]]:
        """Ask for each window of a long clip or text, a few at a time, and pool the answers as those of one input.

        If both are long, they go together in order. Each window of the clip is decoded when its turn comes, and once.
        """
        size, asked, places, at, batch = max(len(parts), len(spans)), [], [], 0, []
        for number in range(size):
            part, (begin, end) = number * len(parts) // size, spans[number * len(spans) // size]
            if part != at:
                at, read = part, self.processor.read({"clip": parts[part], "context": row["context"]})
                row = {**row, **self.processor.encode([read], self.device)[0], "text": row["text"]}
            batch.append(({**row, "text": (row["text"] or "")[begin:end]}, parts[part], (begin, end)))
            if len(batch) == WINDOWS_PER_BATCH or number == size - 1:
                outputs, found = self._ask(models, [one for one, _, _ in batch], [clip for _, clip, _ in batch])
                asked.append(outputs)
                places += [{**place, "text": span} for place, (_, _, span) in zip(found, batch, strict=True)]
                batch = []
        counts = torch.stack([place["counts"] for place in places])
        return [pool_windows(*pair, counts) for pair in zip(models, zip(*asked, strict=True), strict=True)], places

    def _model_for(self, model: PreTrainedModel, labels: dict[str, list[str]]) -> PreTrainedModel:
        """Return the model with more intents than its own: itself where there are none, else made once for a set."""
        own = model.config.label_descriptions or {}
        if all(name in model.config.label2id and own.get(name, labels[name]) == labels[name] for name in labels):
            return model
        # As long as nothing of the model is changed or moved.
        tensors = [*model.parameters(), *model.buffers()]
        state = [(tensor.data_ptr(), tensor.dtype, tensor.is_inference() or tensor._version) for tensor in tensors]
        key, described = (labels, state), self._described  # read as one pair: other threads may use other labels
        if not _same(described[0], key):
            own = own or {name: [name] for name in model.config.label2id}
            described = self._described = key, self._with_labels(model, {**own, **labels})
        return described[1]

    def _with_labels(self, model: PreTrainedModel, labels: dict[str, list[str]]) -> PreTrainedModel:
        """Return a copy with another label set, which shares all weights but those of the labels."""
        copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        sentences = {name: [part for part in one if isinstance(part, str)] for name, one in labels.items()}
        examples = {
            name: [self._example(name, number, part) for number, part in enumerate(one) if not isinstance(part, str)]
            for name, one in labels.items()
        }
        copied.set_label_descriptions(sentences, self.processor.tokenizer, examples)
        return copied

    def _example(self, name: str, number: int, given: Any) -> dict[str, torch.Tensor]:
        """Return the first window of a clip that teaches an intent, as a batch."""
        try:
            example = self._read(given)
        except ValueError as error:
            raise ValueError(f"entry {number} of {name!r}, an example: {error}") from error
        if example["speech"] is not None:
            example["text"] = self._transcribe(example["speech"])
        batch = self.processor.collate(self.processor.encode([example], self.device))
        return dict(batch.to(self.device, self.model.dtype))

    def postprocess(
        self,
        result: dict[str, Any],
        top_k: int | None = 5,
        threshold: float | None = None,
        coverage: float | None = None,
        return_anchors: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Turn what the model says of one input into the answer; see `__call__`."""
        if "error" in result:
            return {"error": result["error"]}
        read = {} if result["read"] is None else dict(zip(("start", "end"), result["read"], strict=True))
        predictions = [{"label": name, "score": score, **read} for name, score in result["scores"]]
        doubt, in_scope = None, None
        if coverage is not None:
            predictions, top_k = [one for one in predictions if one["score"] >= coverage] or predictions[:1], None
        else:
            doubt = self._doubt(predictions[0], result, threshold)
        if doubt is not None:
            in_scope = doubt < 0.5 and predictions[0]["label"] != NONE_OF_THESE
        if doubt is not None and doubt >= 0.5:
            shared = [{**one, "score": (1 - doubt) * one["score"]} for one in predictions]
            predictions = [{"label": OUT_OF_SCOPE_LABEL, "score": doubt, **read}, *shared]
        if not return_anchors:
            return predictions[:top_k]
        return {
            **predictions[0],
            "predictions": predictions[:top_k],
            "in_scope": in_scope,
            "text": result["text"],
            "anchors": self._anchors(result),
        }

    def _doubt(self, best: dict[str, Any], result: dict[str, Any], threshold: float | None) -> float | None:
        """Return how sure it is that the input is out of scope, from 0.5 on where it counts as such; `None` if unknown."""
        if threshold is not None:
            return 0.0 if best["score"] >= threshold else 1 - best["score"] / threshold / 2
        if result["margin"] is None:
            return 0.0 if best["label"] == NONE_OF_THESE else None
        if result["margin"] >= 0 or best["label"] in result["extra"]:
            return 0.0
        return 1 / (1 + math.exp(max(result["margin"], -MAX_MARGIN)))

    def _anchors(self, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Place the anchors of all windows; the score of one is its share of its window, times that of the window."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in MODALITIES}
        windows = [window for window in result["windows"] if "anchors" in window]
        total = sum(window["counts"] for window in windows)
        words = utterance_words(result["text"], [])
        for window in windows:
            shares = (window["counts"] / total).tolist()
            anchors = {
                name: [(position, score * share) for position, score in scored_anchors(*places)]
                for name, share, *places in zip(MODALITIES, shares, *window["anchors"], strict=True)
            }
            begin, end = window["text"]
            text = result["text"][begin:end]
            for part in utterance_words(text, anchors["text"], window["encoding"], self.processor.text_prefix):
                word = next(word for word in words if word["end"] > begin + part["start"])
                word["score"] = max((one["score"] for one in (word, part) if one["score"] is not None), default=None)
            for name in FEATURE_MODALITIES:
                encoder = self.processor.load_encoder(name, self.device) if result["decoded"][name] else None
                spans = anchor_spans(anchors[name], encoder and encoder.frame_rate, window["start"])
                if encoder is not None:
                    first = round((window["start"] - windows[0]["start"]) * encoder.frame_rate)
                    spans = [{**span, "frame": first + span["frame"]} for span in spans]
                found[name] += spans
        found["text"] = [word for word in words if word["score"] is not None]
        most = self.model.config.num_anchors
        return {name: sorted(one, key=lambda anchor: -anchor["score"])[:most] for name, one in found.items()}


def pool_windows(model: PreTrainedModel, outputs: Sequence[Any], counts: torch.Tensor) -> Any:
    """Pool what a model says of the windows of one input.

    The evidence of audio and of video is pooled as that of frames, e = log mean_t exp(v_t) (step 2 of A-ME), where a window
    counts as often as it has frames; states and embeddings are averaged likewise.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        outputs (sequence of [`AMESSClassifierOutput`]): What it returned for the windows, a batch at a time.
        counts (`torch.Tensor` of shape `(windows, 3)`): Tokens and frames of each window, by modality.

    Returns:
        [`AMESSClassifierOutput`] with one row.
    """
    joined = {
        name: torch.cat([one[name] for one in outputs]).float() for name in ("pooler_output", "multimodal_embeds")
    }
    counts = counts.to(joined["pooler_output"])
    shares = counts / counts.sum(0).clamp(min=1)
    features = shares[:, 1:][:, counts[:, 1:].any(0)]
    weights = features.mean(1) if features.shape[1] else shares[:, 0]
    pooled = {name: (weights @ states)[None] for name, states in joined.items()}
    pooled["pooler_output"] = pooled["pooler_output"].to(model.dtype)
    pooled["multimodal_embeds"] = torch.nn.functional.normalize(pooled["multimodal_embeds"], dim=-1)
    pooled["modality_mask"] = counts.any(0)[None]
    if outputs[0].evidence is not None:
        evidence = torch.cat([one.evidence for one in outputs]).float()
        evidence = (evidence + shares[:, 1:, None].log()).logsumexp(0, keepdim=True)
        pooled["evidence"] = evidence.where(pooled["modality_mask"][:, 1:, None], 0.0)
    answer = type(outputs[0])(**pooled, label_embeds=outputs[0].label_embeds)
    answer.logits = model.answer(answer)
    return answer


def _text_spans(text: str, encoding: Any, prefix: str = "") -> list[tuple[int, int]]:
    """Return the characters of overlapping parts of a text that was cut; the whole of one that was not.

    Args:
        text (`str`): The text.
        encoding (`tokenizers.Encoding`, *optional*): What a fast tokenizer made of it, whose `overflowing` has the rest.
        prefix (`str`): What came before it.
    """
    if encoding is None or not encoding.overflowing or not text.strip():
        return [(0, len(text))]
    tokens = [
        [
            (begin - len(prefix), end - len(prefix))
            for (begin, end), special in pairs
            if not special and end > len(prefix)
        ]
        for pairs in (
            zip(part.offsets, part.special_tokens_mask, strict=True) for part in (encoding, *encoding.overflowing)
        )
    ]
    size = max(len(tokens[0]) - 2, 1)  # a part may be cut into other tokens than the whole
    tokens = [token for part in tokens for token in part]
    starts = range(0, max(len(tokens) - size // 2, 1), max(size // 2, 1))
    spans = [(tokens[first][0], tokens[min(first + size, len(tokens)) - 1][1]) for first in starts]
    # A part begins with a whole word, which the part before has too.
    later = [(text.find(" ", begin, end) + 1 or begin, end) for begin, end in spans[1:]]
    return [spans[0], *later]


def _rows_of(data: Any) -> Any:
    """Return the rows of a data set with the columns that are inputs; of a column, rows or plain values.

    Clips are left encoded: `datasets` decodes them with torchcodec, this package with PyAV.
    """
    column = getattr(data, "column_name", None)
    if column is not None and (column not in INPUT_KEYS or not hasattr(data.source, "select_columns")):
        return data
    data, names = (data, data.column_names) if column is None else (data.source, [column])
    if names is not None:  # an `IterableDataset` may not know
        data = data.select_columns([name for name in names if name in KNOWN_KEYS or _meant_by(name)])
    for name, feature in (data.features or {}).items():
        if getattr(feature, "decode", False):
            data = data.cast_column(name, dataclasses.replace(feature, decode=False))
    return data


def _meant_by(key: Any) -> str | None:
    """Return the known key that an unknown one probably stands for."""
    near = difflib.get_close_matches(str(key).lower(), KNOWN_KEYS, n=1, cutoff=0.8)
    return ALIASES.get(key) or (near[0] if near else None)


def _scores(logits: torch.Tensor, names: dict[int, str], candidates: Iterable[str] | None) -> list[tuple[str, float]]:
    """Return the names and probabilities of one clip, the best first; all but the candidates are `none of these`."""
    probabilities = dict(zip(names.values(), logits.float().softmax(-1).tolist(), strict=True))
    if candidates is not None and set(probabilities) - set(candidates):
        others = sum(score for name, score in probabilities.items() if name not in candidates)
        probabilities = {**{name: probabilities[name] for name in candidates}, NONE_OF_THESE: others}
    return sorted(probabilities.items(), key=lambda pair: -pair[1])


def _as_row(inputs: Any) -> dict[str, Any]:
    """Make a dictionary of an input of any kind, and refuse what is ambiguous, unknown or empty."""
    row, wrong = inputs, None
    if isinstance(inputs, str):
        row = {_key_of(inputs): inputs}
    elif not isinstance(inputs, dict) or set(inputs) <= {"path", "bytes"}:
        row = {"clip": inputs}
    unknown = next((key for key in row if key not in KNOWN_KEYS), None)
    if unknown == "path or text":
        wrong = (
            f"{inputs!r} looks like a path or an address; pass a clip as {{'clip': ...}} and text as {{'text': ...}}"
        )
    elif unknown is not None:
        hint = (
            f"did you mean {_meant_by(unknown)!r}?" if _meant_by(unknown) else f"the keys are {', '.join(INPUT_KEYS)}"
        )
        wrong = f"has the key {unknown!r}, which would be ignored; {hint} (rename it, or leave it out)"
    elif all(row.get(key) is None for key in INPUT_KEYS if key != "context"):
        wrong = f"has only {sorted(row)}; give at least one of {', '.join(INPUT_KEYS)}"
    if wrong:
        raise ValueError(f"the input {wrong}")
    return row


def _key_of(text: str) -> str:
    """Tell whether a plain string is the path of a `clip` or what is said, `text`; some could be either."""
    single = text and not any(character.isspace() for character in text)
    is_address = single and "://" in text
    if text.lower().endswith(CLIP_SUFFIXES) and not is_address:
        return "clip"
    looks_like_a_path = single and (re.search(r"[/\\]|\w\.\w{2,4}$", text) or os.path.isdir(text))
    in_a_folder = re.search(r"[/\\]", text) and os.path.lexists(os.path.dirname(text))
    return "path or text" if is_address or looks_like_a_path or in_a_folder else "text"


def _is_described(candidate: tuple[Any, Any]) -> bool:
    """Tell whether a name and what describes it (sentences, examples) are what they must be."""
    name, parts = candidate
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    kinds = (str, dict, bytes, os.PathLike)
    return isinstance(name, str) and bool(parts) and all(isinstance(part, kinds) for part in parts)


def _same(first: Any, second: Any) -> bool:
    """Tell whether two nested values are equal, arrays in them too."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(map(_same, first.values(), second.values()))
    return (
        np.array_equal(first, second) if hasattr(first, "shape") else type(first) is type(second) and first == second
    )


def scored_anchors(indices: Iterable[Any], scores: Iterable[Any]) -> list[tuple[int, float]]:
    """List the anchors of one modality of one clip, the best first.

    Args:
        indices (array of shape `(num_anchors,)`):
            Positions, a row of the model's `anchor_indices`.
        scores (array of shape `(num_anchors,)`):
            A row of the model's `anchor_scores`.

    Returns:
        `list[tuple[int, float]]`: Position and score of each; places without an anchor are left out.
    """
    pairs = [(int(position), float(score)) for position, score in zip(indices, scores, strict=True)]
    return sorted((pair for pair in pairs if pair[0] != NO_ANCHOR), key=lambda pair: -pair[1])


def utterance_words(
    text: str, anchors: Sequence[tuple[int, float]], encoding: Any = None, prefix: str | None = None
) -> list[dict[str, Any]]:
    """Split an utterance at white space and find the score of each word.

    Args:
        text (`str`):
            The utterance.
        anchors (`list[tuple[int, float]]`):
            Tokens and their scores. Special tokens and those of the context belong to no word.
        encoding (`tokenizers.Encoding`, *optional*):
            What a fast tokenizer made of the utterance and its context, an entry of the `encodings` that
            [`AMESSProcessor.collate`] gives; without it there are no scores.
        prefix (`str`, *optional*):
            The prefix that the model was given before the text.

    Returns:
        `list[dict]`: For each word `word`, `start` and `end` in characters of `text`, and `score`, that of the best
        anchor among its tokens, `None` without one.
    """
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        words.append({"word": word, "start": start, "end": end, "score": None})
    if not words or not anchors or encoding is None:
        return words
    sequences = encoding.sequence_ids
    utterance = max(sequence for sequence in sequences if sequence is not None)
    before = len(prefix or "") if utterance == 0 else 0  # the prefix begins the first text of a pair
    for position, score in anchors:
        if position >= len(sequences) or sequences[position] != utterance:
            continue
        begin, end = (place - before for place in encoding.offsets[position])
        if end < 0:
            continue
        # A token may begin with the space before its word, or be that space, so its end says which word it belongs to.
        word = next((word for word in words if word["end"] >= max(end, begin + 1)), None)
        if word is not None and (word["score"] is None or score > word["score"]):
            word["score"] = score
    return words


def anchor_spans(
    anchors: Sequence[tuple[int, float]], frames_per_unit: float | None = None, offset: float = 0.0
) -> list[dict[str, Any]]:
    """Place the anchors among the frames of a modality on a time axis.

    Args:
        anchors (`list[tuple[int, float]]`):
            Frames and their scores.
        frames_per_unit (`float`, *optional*):
            Frames in one unit of the axis, e.g. in a second; without it, no times are given.
        offset (`float`, *optional*, defaults to 0):
            Where on the axis the first frame begins.

    Returns:
        `list[dict]`: `frame`, `start` and `end` (where known), `score`, in the order of `anchors`.
    """
    spans = []
    for frame, score in anchors:
        span: dict[str, Any] = {"frame": frame}
        if frames_per_unit is not None:
            span["start"] = offset + frame / frames_per_unit
            span["end"] = offset + (frame + 1) / frames_per_unit
        spans.append({**span, "score": score})
    return spans


__all__ = ["IntentRecognitionPipeline"]
