"""The pipeline `intent-recognition`: from a clip, words or features to the intent of the speaker."""

import copy
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .clips_amess import check_span, clip_durations, clip_span, is_clip_source, read_sound, resample
from .configuration_amess import CLIP_SUFFIXES, FEATURE_MODALITIES, MODALITIES, NO_ANCHOR, OUT_OF_SCOPE_LABEL
from .oos_amess import OutOfScopeDetector
from .processing_amess import AMESSProcessor, clip_sources, encode_text, sound_array


logger = logging.get_logger(__name__)

INPUT_KEYS = ("text", "context", "clip", "audio", "video", "frames", "audio_features", "video_features")
# Keys that go with them; all others are taken for unrelated columns of a data set.
OTHER_KEYS = ("start", "end", "sampling_rate", "dialogue_id", "id", "label")
# Lists from this length on get a progress bar.
PROGRESS_FROM = 32
# A speech recogniser gets at most this much of a clip: utterances are short, and Whisper takes no more at once.
MAX_SPEECH_SECONDS = 30.0
# The rest of a clip after the last window is skipped if it is shorter than this.
SHORTEST_WINDOW = 0.2


class _Rows(Dataset):
    """Rows of a `datasets.Dataset` as the PyTorch data set that `transformers.Pipeline` recognises."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class IntentRecognitionPipeline(Pipeline):
    """Names the intent of an utterance from its words, sound and video, as far as they are given.

    An input is a dictionary, a clip (`pathlib.Path`, `bytes` or a file object), or a string. Keys of the dictionary:

    - `text` (`str`): what is said, taken literally; without it the words are absent, or come from `asr_model`.
    - `context` (`list[str]` or `str`): earlier turns of the dialogue, oldest first.
    - `video` (or `clip`): a clip (path, address, `bytes`, file object), whose sound is used too unless `audio` is given; or
      an array of frames of shape `(frames, height, width, 3)`.
    - `frames`: the picture alone: an array of frames, or a clip whose sound is not used.
    - `audio`: a sound file, an array (with `sampling_rate`), or a dictionary with `array` and `sampling_rate`.
    - `audio_features`, `video_features`: ready features of shape `(frames, width)`, instead of a clip.
    - `start`, `end` (`float`): the span of the clip in seconds. In rows that name a `dialogue_id` (MIntRec2.0) these are
      times of the episode that the clip was cut from, and are not used.

    Other keys, such as other columns of a data set, are ignored, but one that looks like a misspelt key is an error.

    A plain string is what is said, unless it ends like a media file (`.mp4`, `.wav`, ...): then it is the path of a
    clip, as in other pipelines. Addresses, folders and anything else that looks like a path are refused as ambiguous.
    Pass untrusted texts as `{"text": ...}`: no file is opened then.

    Inputs may also come as a list (a list of results), a `datasets.Dataset` (a list of results), a
    `datasets.IterableDataset` or a generator (results one by one).

    Args:
        model ([`AMESSForIntentClassification`]):
            The model.
        processor ([`AMESSProcessor`], *optional*):
            By default loaded from the same place as the model. One that does not fit the model is an error.
        detector ([`OutOfScopeDetector`], or `False`, *optional*):
            By default the one saved with the model, if there is one; `False` for none.
        asr_model (`str` or `Pipeline`, *optional*):
            Speech recogniser that gives the words of clips without `text`.
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
        if processor is None:
            if tokenizer is None:
                raise ValueError("give `processor` or `tokenizer`, or load the model from a folder that holds them")
            processor = AMESSProcessor.for_model(model.config, tokenizer)
        processor.check_model(model.config)
        super().__init__(model=model, tokenizer=processor.tokenizer, processor=processor, **kwargs)
        self.model.eval()
        self.detector = self._find_detector() if detector is None else (detector or None)
        self.asr_model = self._load_asr_model(asr_model)
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

    def _load_asr_model(self, asr_model: Any) -> Any:
        if not isinstance(asr_model, str):
            return asr_model
        from transformers import pipeline

        return pipeline("automatic-speech-recognition", model=asr_model, device=self.device)

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

    def _sanitize_parameters(
        self,
        top_k: int | None = 5,
        threshold: float | None = None,
        candidate_labels: dict[str, Any] | list[str] | str | None = None,
        return_anchors: bool | None = None,
        on_error: str | None = None,
        window_s: float | None = None,
        stride_s: float | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"unknown parameter of the pipeline: {', '.join(map(repr, unknown))}; there are `top_k`, `threshold`, "
                "`candidate_labels`, `return_anchors`, `on_error`, `window_s` and `stride_s`"
            )
        pre, forward, post = {}, {}, {}
        if candidate_labels is not None:
            forward["candidates"] = self._descriptions(candidate_labels)
        if threshold is not None:
            if not _is_number(threshold) or not 0 <= threshold <= 1:
                raise ValueError(f"`threshold` is {threshold!r}; it is a probability, a number from 0 to 1")
            post["threshold"] = threshold
        if top_k != 5:
            if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
                raise ValueError(
                    f"`top_k` is {top_k!r}; it is the number of intents to give, at least 1, or None for all"
                )
            post["top_k"] = top_k
        if return_anchors is not None:
            if not isinstance(return_anchors, bool):
                raise ValueError(f"`return_anchors` is {return_anchors!r}; it must be True or False")
            post["return_anchors"] = return_anchors
        if on_error is not None:
            if on_error not in ("raise", "skip"):
                raise ValueError(f"`on_error` is {on_error!r}; choose raise or skip")
            pre["on_error"] = on_error
        for name, value in (("window_s", window_s), ("stride_s", stride_s)):
            if value is not None and (not _is_number(value) or not value > 0):
                raise ValueError(f"`{name}` is {value!r}; it must be a number of seconds above 0")
        if stride_s is not None and (window_s is None or stride_s > window_s):
            raise ValueError(f"`stride_s` is {stride_s}; it must be at most `window_s`, which is {window_s}")
        if window_s is not None:
            pre |= {"window_s": window_s, "stride_s": stride_s or window_s}
        return pre, forward, post

    def _descriptions(self, candidates: dict[str, Any] | list[str] | str) -> dict[str, list[str]]:
        """Return sentences for each candidate; a name alone stands for the model's own description, or for itself."""
        if isinstance(candidates, str):  # comma-separated names, as in other zero-shot pipelines
            candidates = [name.strip() for name in candidates.split(",") if name.strip()]
        if not candidates:
            raise ValueError("`candidate_labels` is empty; give {name: description, ...} or a list of names")
        if not isinstance(candidates, (dict, list, tuple)) or not all(isinstance(name, str) for name in candidates):
            raise ValueError(
                f"`candidate_labels` is {candidates!r}; give {{name: description, ...}} or a list of names, all strings"
            )
        unknown = [name for name in candidates if name not in self.model.config.label2id]
        if unknown and not self.model.knows_descriptions():
            raise ValueError(
                f"`candidate_labels` has {', '.join(map(repr, unknown))}, but this model was trained without descriptions "
                f"of intents and knows only its own: {', '.join(self.model.config.label2id)}; train with "
                "`label_descriptions` to choose among others"
            )
        if not isinstance(candidates, dict):
            own = self.model.config.label_descriptions or {}
            candidates = {name: own.get(name, name) for name in candidates}
        for name, texts in candidates.items():
            if not isinstance(texts, (str, list, tuple)):
                raise ValueError(
                    f"`candidate_labels` has {texts!r} for {name!r}; give a sentence or a list of sentences"
                )
        return {name: [texts] if isinstance(texts, str) else list(texts) for name, texts in candidates.items()}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Name the intent of one input or of several.

        Args:
            inputs:
                One input, a list, a `datasets.Dataset` or a generator; see the class.
            kwargs:
                The parameters below, which may also be given to the constructor.

                - `top_k` (`int`, *optional*, defaults to 5): Number of intents to give, `None` for all.
                - `threshold` (`float`, *optional*): Probability below which the answer is `UNK`; replaces the
                  detector.
                - `candidate_labels` (`dict[str, str | list[str]]`, `list[str]` or `str`, *optional*): Choose among
                  these intents instead of the model's own, each described in one sentence or several. Names alone, in
                  a list or a comma-separated string, stand for the model's own descriptions, or else for themselves.
                  Intents that the model was trained on keep their classifier. The detector, which was calibrated on
                  the model's own intents, is then ignored.
                - `return_anchors` (`bool`, *optional*): Also return which words, sounds and frames decided.
                - `window_s` (`float`, *optional*): Split each clip into windows of this many seconds and answer for
                  each.
                - `stride_s` (`float`, *optional*): Seconds from one window to the next; by default windows do not overlap.
                - `on_error` (`str`, *optional*, defaults to `"raise"`): `"skip"` gives `{"error": reason}` instead of
                  the answer where a clip cannot be used.
                - `batch_size`, `num_workers` (`int`, *optional*): As for any pipeline; workers decode.

        Returns:
            `list[dict]`: For each input the intents as `{"label", "score"}`, the best first; scores are probabilities. An
            input that is out of scope has `{"label": "UNK", "score"}` before the intents, whose score is the
            probability that the best intent is wrong.

            With `return_anchors`, a `dict` instead: `label`, `score`; `predictions` (the list without `UNK`); `in_scope`
            (`None` where neither a detector nor `threshold` says); `text` (as given or recognised); and `anchors`: for
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
        if hasattr(inputs, "column_names") and hasattr(inputs, "__len__"):  # datasets.Dataset
            return list(super().__call__(_Rows(inputs), **kwargs))
        if hasattr(inputs, "column_names"):  # datasets.IterableDataset
            return super().__call__((row for row in inputs), **kwargs)
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield the results of several inputs, as `Pipeline` requires.

        The collation of `Pipeline` pads tensors; here a batch is a list of decoded clips until it is encoded.
        """
        parameters = num_workers, batch_size, preprocess_params, forward_params, postprocess_params
        return (
            self._timed(inputs, *parameters) if "window_s" in preprocess_params else self._plain(inputs, *parameters)
        )

    def _plain(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        preprocess_params, forward_params, postprocess_params = params
        if hasattr(inputs, "__len__"):
            dataset, total = PipelineDataset(inputs, self.preprocess, preprocess_params), len(inputs)
        else:
            dataset, total = PipelineIterator(inputs, self.preprocess, preprocess_params), None
            num_workers = min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=list)
        hidden = total is None or total < PROGRESS_FROM
        with logging.tqdm(total=total, desc="Recognising intents", unit="clip", disable=hidden) as progress:
            for examples in loader:
                for result in self.forward({"examples": examples}, **forward_params)["results"]:
                    yield self.postprocess(result, **postprocess_params)
                    progress.update()

    def _timed(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        """Answer for each window of each clip; only one window is in memory at a time."""
        preprocess_params, *other_params = params
        window, stride = preprocess_params["window_s"], preprocess_params["stride_s"]
        plain_params = {name: value for name, value in preprocess_params.items() if name == "on_error"}
        for one in inputs:
            try:
                rows = self._windows(_as_row(one), window, stride)
            except ValueError as error:
                if preprocess_params.get("on_error") != "skip":
                    raise
                yield {"error": str(error)}
                continue
            answers = self._plain(rows, num_workers, batch_size, plain_params, *other_params)
            yield [
                {"start": row["start"], "end": row["end"]}
                | (answer if isinstance(answer, dict) else {"predictions": answer})
                for row, answer in zip(rows, answers, strict=True)
            ]

    def _windows(self, row: dict[str, Any], window: float, stride: float) -> list[dict[str, Any]]:
        """Return a row for each window of a clip."""
        given = [name for name in ("text", "audio_features", "video_features") if row.get(name) is not None]
        if given and not (given == ["text"] and not row["text"].strip()):
            raise ValueError(
                f"`window_s` splits a clip, but it is not known where `{given[0]}` belongs in it; leave it out "
                "(`asr_model` hears the words of each window)"
            )
        span = clip_span(row)
        check_span(span["start"], span["end"])
        ends = {"audio": self._seconds_of_sound(row), "frames": self._seconds_of_picture(row)}
        begin, total = span["start"] or 0.0, max(ends.values())
        total = total if span["end"] is None else min(total, span["end"])
        if total <= begin:
            raise ValueError(f"the input ends at {total:g} s and `start` is {begin:g}; there is nothing left")
        rows, start = [], begin
        while True:
            there = {
                name: row[name] if end - start > SHORTEST_WINDOW or not rows else None for name, end in ends.items()
            }
            end = min(start + window, total)
            rows.append({**row, **there, "start": start, "end": end, "dialogue_id": None})
            if total - end < SHORTEST_WINDOW:
                return rows
            start = begin + len(rows) * stride

    def _seconds_of_sound(self, row: dict[str, Any]) -> float:
        encoder = None if row["audio"] is None else self.processor.load_encoder("audio", self.device)
        if encoder is None:
            return 0.0
        if is_clip_source(row["audio"]):
            return clip_durations(row["audio"])[0]
        samples, rate = sound_array(row["audio"], row.get("sampling_rate"))
        return max(samples.shape) / (rate or encoder.sampling_rate)

    def _seconds_of_picture(self, row: dict[str, Any]) -> float:
        encoder = None if row["frames"] is None else self.processor.load_encoder("video", self.device)
        if encoder is None:
            return 0.0
        frames = row["frames"]
        return clip_durations(frames)[1] if is_clip_source(frames) else len(frames) / encoder.clip_frame_rate

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """Return the result of one input, as `Pipeline` requires."""
        if "window_s" in preprocess_params:
            return next(self._timed([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))
        examples = [self.preprocess(inputs, **preprocess_params)]
        results = self.forward({"examples": examples}, **forward_params)["results"]
        return self.postprocess(results[0], **postprocess_params)

    def preprocess(self, inputs: Any, on_error: str = "raise") -> dict[str, Any]:
        """Decode a clip; nothing is encoded yet.

        Args:
            inputs:
                One input; see the class.
            on_error (`str`, *optional*, defaults to `"raise"`):
                See `__call__`.

        Returns:
            `dict`: What [`AMESSProcessor.read`] gives, with `offset` (second of the clip at which the span begins) and
            `speech` (sound to be transcribed, or `None`); or `error` alone.
        """
        try:
            return self._read(_as_row(inputs))
        except ValueError as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        example = self.processor.read(row)
        span = clip_span(row)
        example["offset"], example["speech"] = span["start"] or 0.0, None
        if self.asr_model is not None and row["audio"] is not None and not (example["text"] or "").strip():
            example["speech"] = self._speech(row["audio"], row.get("sampling_rate"), **span)
        names = [("audio_features", "sound"), ("video_features", "frames")]
        taken = [pair for pair in names if getattr(self.processor, f"{pair[0].removesuffix('s')}_size") is not None]
        values = [example[name] for pair in taken for name in pair] + [example["speech"]]
        if not (example["text"] or "").strip() and not any(value is not None and len(value) for value in values):
            raise ValueError(
                "the input holds no words, sound or picture that this model takes; give at least one of them"
            )
        return example

    def _speech(self, audio: Any, sampling_rate: int | None, start: float | None, end: float | None) -> np.ndarray:
        rate = self.asr_model.feature_extractor.sampling_rate
        if is_clip_source(audio):
            limit = (start or 0.0) + MAX_SPEECH_SECONDS
            return read_sound(audio, rate, start, limit if end is None else min(end, limit))
        samples, sampling_rate = sound_array(audio, sampling_rate)
        sound = resample(samples, sampling_rate or rate, rate)
        first = round((start or 0.0) * rate)
        limit = first + round(MAX_SPEECH_SECONDS * rate)
        return sound[first : limit if end is None else min(round(end * rate), limit)]

    def _forward(self, inputs: dict[str, Any], candidates: dict[str, list[str]] | None = None) -> dict[str, Any]:
        examples = [example for example in inputs["examples"] if "error" not in example]
        results = iter(self._answers(examples, candidates) if examples else ())
        return {"results": [one if "error" in one else next(results) for one in inputs["examples"]]}

    def _answers(
        self, examples: list[dict[str, Any]], candidates: dict[str, list[str]] | None
    ) -> list[dict[str, Any]]:
        """Return the model's outputs for each of a batch of decoded clips."""
        for example in examples:
            example["text"] = example["text"] or self._transcribe(example["speech"])
        batch = self.processor.collate(self.processor.encode(examples, self.device))
        model = self.model if candidates is None else self._model_for(candidates)
        outputs = model(**batch.to(self.device, self.model.dtype))
        scores = None
        if self.detector is not None and candidates is None:
            scores = self.detector.score(outputs)
        results = []
        for row, example in enumerate(examples):
            result = {
                "labels": model.config.id2label,
                "probabilities": outputs.logits[row].float().softmax(-1).cpu(),
                "detector_score": None if scores is None else float(scores[row]),
                "text": example["text"],
                "context": example["context"],
                "offset": example["offset"],
                "decoded": {name: example[f"{name}_features"] is None for name in FEATURE_MODALITIES},
                "anchors": None,
            }
            if outputs.anchor_indices is not None:
                positions, gates = outputs.anchor_indices[row].tolist(), outputs.anchor_scores[row].float().tolist()
                result["anchors"] = [scored_anchors(*pair) for pair in zip(positions, gates, strict=True)]
            results.append(result)
        return results

    def _transcribe(self, speech: np.ndarray | None) -> str:
        if speech is None or len(speech) == 0:
            return ""
        rate = self.asr_model.feature_extractor.sampling_rate
        return self.asr_model({"raw": speech, "sampling_rate": rate})["text"].strip()

    def _model_for(self, candidates: dict[str, list[str]]) -> Any:
        """Return the model with another label set; it shares all weights but those of the labels with the pipeline's own."""
        key, described = repr(candidates), self._described  # read as one pair: other threads may use other candidates
        if described[0] != key:
            shared = {id(parameter): parameter for parameter in self.model.parameters()}
            model = copy.deepcopy(self.model, shared)  # other modules, the same weights
            model.set_label_descriptions(candidates, self.processor.tokenizer)
            self._described = described = key, model
        return described[1]

    def postprocess(
        self,
        result: dict[str, Any],
        top_k: int | None = 5,
        threshold: float | None = None,
        return_anchors: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Turn the model's outputs for one input into the answer; see `__call__`."""
        if "error" in result:
            return result
        probabilities, order = result["probabilities"].sort(descending=True)
        pairs = zip(probabilities.tolist(), order.tolist(), strict=True)
        predictions = [{"label": result["labels"][index], "score": score} for score, index in pairs]
        in_scope = self._in_scope(predictions[0]["score"], result["detector_score"], threshold)
        unknown = {"label": OUT_OF_SCOPE_LABEL, "score": 1.0 - predictions[0]["score"]}
        answer = unknown if in_scope is False else predictions[0]
        predictions = predictions[:top_k]
        if not return_anchors:
            return [unknown, *predictions] if in_scope is False else predictions
        return {
            **answer,
            "predictions": predictions,
            "in_scope": in_scope,
            "text": result["text"],
            "anchors": self._anchors(result),
        }

    def _in_scope(self, best: float, detector_score: float | None, threshold: float | None) -> bool | None:
        if threshold is not None:
            return best >= threshold
        if detector_score is None or self.detector.threshold is None:
            return None
        return detector_score >= self.detector.threshold

    def _anchors(self, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        if result["anchors"] is None:
            return {name: [] for name in MODALITIES}
        anchors = dict(zip(MODALITIES, result["anchors"], strict=True))
        tokenizer, limit = self.processor.tokenizer, self.processor.max_text_length
        prefix = self.processor.text_prefix
        words = utterance_words(tokenizer, anchors["text"], result["text"], result["context"], limit, prefix)
        found = {"text": sorted((w for w in words if w["score"] is not None), key=lambda word: -word["score"])}
        for name in FEATURE_MODALITIES:
            encoder = self.processor.load_encoder(name, self.device) if result["decoded"][name] else None
            found[name] = anchor_spans(anchors[name], encoder and encoder.frame_rate, result["offset"])
        return found


def _as_row(inputs: Any) -> dict[str, Any]:
    """Convert an input of any kind to a row, in which `audio` and `frames` say what to decode."""
    if isinstance(inputs, str):
        inputs = _named_by(inputs)
    elif not isinstance(inputs, dict) or ({"path", "bytes"} & set(inputs) and not set(INPUT_KEYS) & set(inputs)):
        if not is_clip_source(inputs):
            raise ValueError(f"an input is a dictionary, a clip or a text, not {type(inputs).__name__}")
        inputs = {"clip": inputs}
    _check_keys(inputs)
    if all(inputs.get(key) is None for key in INPUT_KEYS if key != "context"):
        raise ValueError(f"the input has only {sorted(inputs)}; give at least one of {', '.join(INPUT_KEYS)}")
    sources = clip_sources(inputs)
    return {**inputs, "audio": sources["audio"], "frames": sources["video"], "video": None, "clip": None}


def _named_by(text: str) -> dict[str, Any]:
    """Tell whether a plain string is what is said or the path of a clip; refuse one that could be either."""
    single = text and not any(character.isspace() for character in text)
    is_address = single and "://" in text
    if text.lower().endswith(CLIP_SUFFIXES) and not is_address:
        return {"clip": text}
    looks_like_a_path = single and (re.search(r"[/\\]|\w\.\w{2,4}$", text) or os.path.isdir(text))
    if is_address or looks_like_a_path or (re.search(r"[/\\]", text) and os.path.lexists(os.path.dirname(text))):
        kind = "an address" if is_address else "a path"
        raise ValueError(
            f"the input {text!r} looks like {kind}; pass a clip as {{'clip': ...}} and words as {{'text': ...}}"
        )
    return {"text": text}


def _check_keys(inputs: dict[str, Any]) -> None:
    """Refuse a key that is close to a known one: it would be ignored."""
    known = (*INPUT_KEYS, *OTHER_KEYS)
    for key in inputs:
        near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.8)
        if key not in known and near:
            raise ValueError(f"the input has the key {key!r}; did you mean {near[0]!r}? (rename it, or leave it out)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


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
    tokenizer: PreTrainedTokenizerBase,
    anchors: Sequence[tuple[int, float]],
    text: str,
    context: Sequence[str] | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
) -> list[dict[str, Any]]:
    """Split an utterance at white space and find the score of each word.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder. One without offsets (not a fast one) gives no scores.
        anchors (`list[tuple[int, float]]`):
            Tokens and their scores. Special tokens and those of the context belong to no word.
        text (`str`):
            The utterance.
        context (`list[str]`, *optional*):
            Earlier turns that the model was given with it.
        max_length (`int`, *optional*):
            Maximum number of tokens that the model was given.
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
    if not words or not anchors or not tokenizer.is_fast:
        return words
    encoding = encode_text(tokenizer, text, context or (), max_length, prefix, return_offsets_mapping=True)
    sequences, offsets = encoding.sequence_ids(), encoding["offset_mapping"]
    utterance = max(sequence for sequence in sequences if sequence is not None)
    before = len(prefix or "") if utterance == 0 else 0  # the prefix begins the first text of a pair
    for position, score in anchors:
        if position >= len(sequences) or sequences[position] != utterance:
            continue
        begin, end = (place - before for place in offsets[position])
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
