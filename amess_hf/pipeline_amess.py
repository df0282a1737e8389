"""The pipeline `intent-recognition`: from a clip, words or features to the intent of the speaker."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .clips_amess import is_clip_source, read_sound, resample
from .constants_amess import CLIP_SUFFIXES, FEATURE_MODALITIES, MODALITIES, OUT_OF_SCOPE_LABEL
from .oos_amess import OutOfScopeDetector
from .processing_amess import AMESSProcessor


logger = logging.get_logger(__name__)

INPUT_KEYS = ("text", "context", "clip", "audio", "video", "audio_features", "video_features")
# Lists from this length on get a progress bar.
PROGRESS_FROM = 32
# A speech recogniser is given this much of a clip at most: utterances are short, and Whisper takes no more at once.
MAX_SPEECH_SECONDS = 30.0


class _Rows(Dataset):
    """Rows of a `datasets.Dataset` in the form that the library takes for a data set."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class IntentRecognitionPipeline(Pipeline):
    """
    Names the intent of an utterance from its words, its sound and its picture, as far as they are there.

    An input is a dictionary, or a path, address or `bytes` of a clip, or a text. Keys of the dictionary:

    - `text` (`str`): what is said; without it the words are absent, or come from `asr_model`.
    - `context` (`list[str]`): earlier turns of the dialogue, oldest first.
    - `video` (or `clip`): a clip, whose sound is used too unless `audio` is given; or frames `(frames, height, width, 3)`.
    - `audio`: a sound file, an array, or a dictionary with `array` and `sampling_rate`.
    - `audio_features`, `video_features`: ready features `(frames, width)`, instead of a clip.
    - `start`, `end` (`float`): the span of the clip in seconds. In rows that name a `dialogue_id` (MIntRec2.0) these are
      times of the episode that the clip was cut from, and are not used.

    Other keys, as rows of a data set have them, are passed over. Inputs may also come as a list (a list of results), a
    `datasets.Dataset` (a list of results) or a generator (results as they come).

    Args:
        model ([`AMESSForIntentClassification`]):
            The model.
        processor ([`AMESSProcessor`], *optional*):
            Loaded from the same place as the model. A processor that does not fit the model is an error.
        detector ([`OutOfScopeDetector`], or `False`, *optional*):
            By default the one saved beside the model, if there is one; `False` for none.
        asr_model (`str` or `Pipeline`, *optional*):
            Speech recogniser that gives the words of clips without `text`.
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

    def __init__(self, model, tokenizer=None, processor=None, detector=None, asr_model=None, **kwargs):
        if processor is None:
            if tokenizer is None:
                raise ValueError("Give `processor` or `tokenizer`, or load the model from a folder that holds them.")
            processor = AMESSProcessor.for_model(model.config, tokenizer)
        processor.check_model(model.config)
        super().__init__(model=model, tokenizer=processor.tokenizer, processor=processor, **kwargs)
        self.model.eval()
        self.detector = self._find_detector() if detector is None else (detector or None)
        self.asr_model = self._load_asr_model(asr_model)
        self._described: tuple[Any, Any] = (None, None)

    def _find_detector(self) -> OutOfScopeDetector | None:
        """The detector saved beside the model."""
        place = self.model.config._name_or_path
        if not place:
            return None
        try:
            return OutOfScopeDetector.from_pretrained(place, missing_ok=True, **self.model.hub_kwargs)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning(f"No out-of-scope detector is used, whether {place} has one cannot be seen ({reason}).")
            return None

    def _load_asr_model(self, asr_model: Any) -> Any:
        if not isinstance(asr_model, str):
            return asr_model
        from transformers import pipeline

        return pipeline("automatic-speech-recognition", model=asr_model, device=self.device)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves model, processor and detector, so that `pipeline` finds all of them in the folder."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if self.detector is not None:
            self.detector.save_pretrained(save_directory)

    def _sanitize_parameters(
        self, top_k: int | None = 5, threshold=None, candidate_labels=None, return_anchors=None, **unknown
    ):
        if unknown:
            raise TypeError(
                f"Unknown parameter of the pipeline: {', '.join(map(repr, unknown))}. There are `top_k`, `threshold`, "
                "`candidate_labels` and `return_anchors`."
            )
        forward, post = {}, {}
        if candidate_labels is not None:
            forward["candidates"] = self._descriptions(candidate_labels)
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise ValueError(f"`threshold` is {threshold}; it is a probability, from 0 to 1.")
            post["threshold"] = threshold
        if top_k != 5:
            if top_k is not None and top_k < 1:
                raise ValueError(f"`top_k` is {top_k}; it is the number of intents to give, or None for all.")
            post["top_k"] = top_k
        if return_anchors is not None:
            post["return_anchors"] = return_anchors
        return {}, forward, post

    def _descriptions(self, candidates: dict[str, Any] | list[str]) -> dict[str, list[str]]:
        """Sentences for each candidate; a name alone stands for the model's own description, or for itself."""
        if not candidates:
            raise ValueError("`candidate_labels` is empty. Give {name: description, ...}.")
        if not isinstance(candidates, dict):
            own = self.model.config.label_descriptions or {}
            candidates = {name: own.get(name, name) for name in candidates}
        return {name: [texts] if isinstance(texts, str) else list(texts) for name, texts in candidates.items()}

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """
        Args:
            inputs: One input, a list, a `datasets.Dataset` or a generator; see the class.
            top_k (`int`, *optional*, defaults to 5): Number of intents to give, `None` for all.
            threshold (`float`, *optional*):
                Probability below which the best intent does not count and `UNK` is given; instead of the detector.
            candidate_labels (`dict[str, str | list[str]]` or `list[str]`, *optional*):
                Choose among these intents, each described in a sentence or several, in place of the model's own. Those
                that the model was trained on keep their classifier. The detector, calibrated on the model's own intents,
                then has no say.
            return_anchors (`bool`, *optional*): Say which words, sounds and frames decided.
            batch_size, num_workers (`int`, *optional*): As for any pipeline; workers decode.

        Returns:
            For each input a list of `{"label", "score"}`, the best first; scores are probabilities. An input that is out
            of scope has `{"label": "UNK", "score"}` before the intents, its score being the probability that the best
            intent is not the right one.

            With `return_anchors`, a dictionary instead: `label`, `score`; `predictions` (the list without `UNK`);
            `in_scope` (`None` where neither a detector nor `threshold` says); `text` (as given or recognised); and
            `anchors`: for `text` a list of `{"word", "start", "end", "score"}` with `start` and `end` in characters, for
            `audio` and `video` of `{"frame", "start", "end", "score"}` in seconds of the clip (without `start` and `end`
            for ready features, whose rate is not known).

        Raises:
            ValueError: An input holds nothing to go by, or a clip cannot be used.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            return []
        if hasattr(inputs, "column_names") and hasattr(inputs, "__getitem__"):  # datasets.Dataset
            return list(super().__call__(_Rows(inputs), **kwargs))
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[Any]:
        # The library's own collation pads tensors; here a batch is a list of decoded clips until it is encoded.
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

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params) -> Any:
        examples = [self.preprocess(inputs, **preprocess_params)]
        return self.postprocess(
            self.forward({"examples": examples}, **forward_params)["results"][0], **postprocess_params
        )

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Decodes what there is of a clip; nothing is encoded yet."""
        row = _as_row(inputs)
        span = {} if "dialogue_id" in row else {"start": row.get("start"), "end": row.get("end")}
        video = row.get("video") if row.get("video") is not None else row.get("clip")
        audio = row.get("audio") if row.get("audio") is not None else (video if is_clip_source(video) else None)
        example = {name: row.get(name) for name in ("text", "context", "audio_features", "video_features")}
        example["offset"] = span.get("start") or 0.0
        example["sound"] = example["frames"] = example["speech"] = None
        if example["audio_features"] is None:
            example["sound"] = self.processor.read_sound(audio, row.get("sampling_rate"), **span)
        if example["video_features"] is None:
            example["frames"] = self.processor.read_frames(video, **span)
        if self.asr_model is not None and audio is not None and not (example["text"] or "").strip():
            example["speech"] = self._speech(audio, row.get("sampling_rate"), **span)
        return example

    def _speech(self, audio: Any, sampling_rate: int | None, start: float | None = None, end: float | None = None):
        rate = self.asr_model.feature_extractor.sampling_rate
        if is_clip_source(audio):
            limit = (start or 0.0) + MAX_SPEECH_SECONDS
            return read_sound(audio, rate, start, limit if end is None else min(end, limit))
        if isinstance(audio, dict):
            audio, sampling_rate = audio["array"], audio["sampling_rate"]
        return resample(np.asarray(audio), sampling_rate or rate, rate)[: round(MAX_SPEECH_SECONDS * rate)]

    def _forward(self, inputs: dict[str, Any], candidates: dict[str, list[str]] | None = None) -> dict[str, Any]:
        examples = inputs["examples"]
        texts = [example["text"] or self._transcribe(example["speech"]) for example in examples]
        batch = self._batch(texts, examples)
        model = self.model if candidates is None else self._model_for(candidates)
        outputs = model(**batch)
        scores = None
        if self.detector is not None and candidates is None:
            scores = self.detector.score(outputs)
        results = []
        for row, (text, example) in enumerate(zip(texts, examples, strict=True)):
            results.append(
                {
                    "labels": model.config.id2label,
                    "probabilities": outputs.logits[row].float().softmax(-1).cpu(),
                    "detector_score": None if scores is None else float(scores[row]),
                    "text": text,
                    "offset": example["offset"],
                    "clip": {name: example[f"{name}_features"] is None for name in FEATURE_MODALITIES},
                    "input_ids": batch["input_ids"][row].cpu(),
                    "anchor_indices": None if outputs.anchor_indices is None else outputs.anchor_indices[row].cpu(),
                    "anchor_scores": None
                    if outputs.anchor_scores is None
                    else outputs.anchor_scores[row].float().cpu(),
                }
            )
        return {"results": results}

    def _transcribe(self, speech: np.ndarray | None) -> str:
        if speech is None or len(speech) == 0:
            return ""
        rate = self.asr_model.feature_extractor.sampling_rate
        return self.asr_model({"raw": speech, "sampling_rate": rate})["text"].strip()

    def _batch(self, texts: list[str], examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        audio, video = self.processor.encode(
            [example["sound"] for example in examples], [example["frames"] for example in examples], self.device
        )
        features = {}
        for name, encoded in (("audio_features", audio), ("video_features", video)):
            features[name] = [
                example[name] if example[name] is not None or encoded is None else encoded[row]
                for row, example in enumerate(examples)
            ]
        batch = self.processor.pad(texts, [example["context"] for example in examples], **features)
        return {
            name: value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in batch.items()
        }

    def _model_for(self, candidates: dict[str, list[str]]) -> Any:
        """The model with another label set; it shares all weights but the classifier with the pipeline's own."""
        key = repr(candidates)
        if self._described[0] != key:
            model = copy.copy(self.model)
            model._modules, model._buffers = dict(model._modules), dict(model._buffers)
            model.config = copy.deepcopy(model.config)
            model.set_label_descriptions(candidates, self.processor.tokenizer)
            self._described = key, model
        return self._described[1]

    def postprocess(
        self,
        result: dict[str, Any],
        top_k: int | None = 5,
        threshold: float | None = None,
        return_anchors: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
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
        if result["anchor_indices"] is None:
            return {name: [] for name in MODALITIES}
        found = {}
        for name, positions, scores in zip(MODALITIES, result["anchor_indices"], result["anchor_scores"], strict=True):
            pairs = zip(positions.tolist(), scores.tolist(), strict=True)
            chosen = sorted(((p, s) for p, s in pairs if p >= 0), key=lambda pair: -pair[1])
            if name == "text":
                found[name] = self._word_anchors(chosen, result["input_ids"].tolist(), result["text"])
            else:
                found[name] = self._frame_anchors(chosen, name, result["clip"][name], result["offset"])
        return found

    def _word_anchors(self, chosen: list[tuple[int, float]], input_ids: list[int], text: str) -> list[dict[str, Any]]:
        """From tokens to the words of the utterance that they are part of; special tokens and context have no word."""
        spans = _token_spans(self.processor.tokenizer, input_ids, text)
        words: dict[tuple[int, int], float] = {}
        for position, score in chosen:
            if position in spans:
                span = _word_around(text, *spans[position])
                words[span] = max(score, words.get(span, 0.0))
        return [{"word": text[b:e], "start": b, "end": e, "score": score} for (b, e), score in words.items()]

    def _frame_anchors(
        self, chosen: list[tuple[int, float]], modality: str, from_clip: bool, offset: float
    ) -> list[dict[str, Any]]:
        load = self.processor.load_audio_encoder if modality == "audio" else self.processor.load_video_encoder
        encoder = load(self.device) if from_clip else None
        anchors = []
        for frame, score in chosen:
            anchor: dict[str, Any] = {"frame": frame}
            if encoder is not None:
                anchor["start"] = offset + frame / encoder.frame_rate
                anchor["end"] = offset + (frame + 1) / encoder.frame_rate
            anchors.append({**anchor, "score": score})
        return anchors


def _as_row(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, str) and "://" not in inputs:
        is_clip = os.path.isfile(inputs) or inputs.lower().endswith(CLIP_SUFFIXES)
        return {"clip": inputs} if is_clip else {"text": inputs}
    if not isinstance(inputs, dict) or ({"path", "bytes"} & set(inputs) and not set(INPUT_KEYS) & set(inputs)):
        if is_clip_source(inputs):
            return {"clip": inputs}
        raise ValueError(f"An input is a dictionary, a clip or a text, not {type(inputs).__name__}.")
    if all(inputs.get(key) is None for key in INPUT_KEYS if key != "context"):
        raise ValueError(f"The input has only {sorted(inputs)}. Give at least one of {', '.join(INPUT_KEYS)}.")
    return inputs


def _token_spans(tokenizer: Any, input_ids: list[int], text: str) -> dict[int, tuple[int, int]]:
    """{position in `input_ids`: (begin, end) in `text`} for the tokens of the utterance, which stand last."""
    if not text or not tokenizer.is_fast:
        return {}
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    for length in range(len(ids), 0, -1):  # the end may have been cut
        for begin in range(len(input_ids) - length, -1, -1):
            if input_ids[begin : begin + length] == ids[:length]:
                return {begin + index: offsets[index] for index in range(length)}
    return {}


def _word_around(text: str, begin: int, end: int) -> tuple[int, int]:
    """The run of characters without white space that holds `text[begin:end]`."""
    while begin < end and text[begin].isspace():  # byte-level tokens begin with the space before the word
        begin += 1
    while begin > 0 and not text[begin - 1].isspace():
        begin -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return begin, end


__all__ = ["IntentRecognitionPipeline"]
