"""The pipeline `intent-recognition`: from a clip, words or features to the intent of the speaker."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .anchors_amess import anchor_spans, scored_anchors, utterance_words
from .clips_amess import clip_span, is_clip_source, read_sound, resample
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
    """Rows of a `datasets.Dataset` as the PyTorch data set that `transformers.Pipeline` recognises."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class IntentRecognitionPipeline(Pipeline):
    """Names the intent of an utterance from its words, sound and video, as far as they are given.

    An input is a dictionary, or a path, address or `bytes` of a clip, or a text. Keys of the dictionary:

    - `text` (`str`): what is said; without it the words are absent, or come from `asr_model`.
    - `context` (`list[str]`): earlier turns of the dialogue, oldest first.
    - `video` (or `clip`): a clip, whose sound is used too unless `audio` is given; or an array of frames of shape
      `(frames, height, width, 3)`.
    - `audio`: a sound file, an array (with `sampling_rate`), or a dictionary with `array` and `sampling_rate`.
    - `audio_features`, `video_features`: ready features of shape `(frames, width)`, instead of a clip.
    - `start`, `end` (`float`): the span of the clip in seconds. In rows that name a `dialogue_id` (MIntRec2.0) these are
      times of the episode that the clip was cut from, and are not used.

    Other keys, such as other columns of a data set, are ignored. Inputs may also come as a list (a list of results), a
    `datasets.Dataset` (a list of results) or a generator (results as they come).

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
            Where there is no processor: the one that belongs to the model and this tokenizer is made.
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
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"unknown parameter of the pipeline: {', '.join(map(repr, unknown))}; there are `top_k`, `threshold`, "
                "`candidate_labels` and `return_anchors`"
            )
        forward, post = {}, {}
        if candidate_labels is not None:
            forward["candidates"] = self._descriptions(candidate_labels)
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise ValueError(f"`threshold` is {threshold}; it is a probability, from 0 to 1")
            post["threshold"] = threshold
        if top_k != 5:
            if top_k is not None and top_k < 1:
                raise ValueError(f"`top_k` is {top_k}; it is the number of intents to give, or None for all")
            post["top_k"] = top_k
        if return_anchors is not None:
            post["return_anchors"] = return_anchors
        return {}, forward, post

    def _descriptions(self, candidates: dict[str, Any] | list[str] | str) -> dict[str, list[str]]:
        """Give sentences for each candidate; a name alone stands for the model's own description, or for itself."""
        if isinstance(candidates, str):  # names with commas between them, as in other zero-shot pipelines
            candidates = [name.strip() for name in candidates.split(",") if name.strip()]
        if not candidates:
            raise ValueError("`candidate_labels` is empty; give {name: description, ...} or a list of names")
        if not isinstance(candidates, dict):
            own = self.model.config.label_descriptions or {}
            candidates = {name: own.get(name, name) for name in candidates}
        return {name: [texts] if isinstance(texts, str) else list(texts) for name, texts in candidates.items()}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Name the intent of one input or of several.

        Args:
            inputs:
                One input, a list, a `datasets.Dataset` or a generator; see the class.
            kwargs:
                The parameters below, which may also be given to the constructor.

                - `top_k` (`int`, *optional*, defaults to 5): Number of intents to give, `None` for all.
                - `threshold` (`float`, *optional*): Probability below which the best intent does not count and `UNK` is
                  given; instead of the detector.
                - `candidate_labels` (`dict[str, str | list[str]]`, `list[str]` or `str`, *optional*): Choose among these
                  intents in place of the model's own, each described in one sentence or several. Names alone, in a list
                  or in a string with commas between them, stand for the model's own descriptions, or else for
                  themselves. Intents that the model was trained on keep their classifier. The detector, which was
                  calibrated on the model's own intents, is then ignored.
                - `return_anchors` (`bool`, *optional*): Also say which words, sounds and frames decided.
                - `batch_size`, `num_workers` (`int`, *optional*): As for any pipeline; workers decode.

        Returns:
            `list[dict]`: For each input the intents as `{"label", "score"}`, the best first; scores are probabilities. An
            input that is out of scope has `{"label": "UNK", "score"}` before the intents, its score being the probability
            that the best intent is not the right one.

            With `return_anchors`, a `dict` instead: `label`, `score`; `predictions` (the list without `UNK`); `in_scope`
            (`None` where neither a detector nor `threshold` says); `text` (as given or recognised); and `anchors`: for
            `text` a list of `{"word", "start", "end", "score"}` with `start` and `end` in characters, for `audio` and
            `video` of `{"frame", "start", "end", "score"}` in seconds of the clip (without `start` and `end` for ready
            features, whose rate is not known).

        Raises:
            ValueError: An input holds nothing to go by, or a clip cannot be used.
            TypeError: A parameter is not known.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            return []
        if hasattr(inputs, "column_names") and hasattr(inputs, "__getitem__"):  # datasets.Dataset
            return list(super().__call__(_Rows(inputs), **kwargs))
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
        """Give the results of several inputs, as `Pipeline` asks for them.

        The collation of `Pipeline` pads tensors; here a batch is a list of decoded clips until it is encoded.
        """
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

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """Give the result of one input, as `Pipeline` asks for it."""
        examples = [self.preprocess(inputs, **preprocess_params)]
        return self.postprocess(
            self.forward({"examples": examples}, **forward_params)["results"][0], **postprocess_params
        )

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Decode what there is of a clip; nothing is encoded yet.

        Args:
            inputs:
                One input; see the class.

        Returns:
            `dict`: What [`AMESSProcessor.read`] gives, with `offset` (second of the clip at which the span begins) and
            `speech` (sound to be transcribed, or `None`).
        """
        row = _as_row(inputs)
        example = self.processor.read(row)
        span = clip_span(row)
        example["offset"], example["speech"] = span["start"] or 0.0, None
        if self.asr_model is not None and row.get("audio") is not None and not (example["text"] or "").strip():
            example["speech"] = self._speech(row["audio"], row.get("sampling_rate"), **span)
        return example

    def _speech(self, audio: Any, sampling_rate: int | None, start: float | None, end: float | None) -> np.ndarray:
        rate = self.asr_model.feature_extractor.sampling_rate
        if is_clip_source(audio):
            limit = (start or 0.0) + MAX_SPEECH_SECONDS
            return read_sound(audio, rate, start, limit if end is None else min(end, limit))
        if isinstance(audio, dict):
            audio, sampling_rate = audio["array"], audio["sampling_rate"]
        return resample(np.asarray(audio), sampling_rate or rate, rate)[: round(MAX_SPEECH_SECONDS * rate)]

    def _forward(self, inputs: dict[str, Any], candidates: dict[str, list[str]] | None = None) -> dict[str, Any]:
        examples = inputs["examples"]
        for example in examples:
            example["text"] = example["text"] or self._transcribe(example["speech"])
        batch = self.processor.collate(self.processor.encode(examples, self.device))
        first_tokens = batch["attention_mask"].argmax(1).tolist()  # not 0 where padding stands on the left
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
                "first_token": first_tokens[row],
                "anchors": None,
            }
            if outputs.anchor_indices is not None:
                positions, gates = outputs.anchor_indices[row].tolist(), outputs.anchor_scores[row].float().tolist()
                result["anchors"] = [scored_anchors(*pair) for pair in zip(positions, gates, strict=True)]
            results.append(result)
        return {"results": results}

    def _transcribe(self, speech: np.ndarray | None) -> str:
        if speech is None or len(speech) == 0:
            return ""
        rate = self.asr_model.feature_extractor.sampling_rate
        return self.asr_model({"raw": speech, "sampling_rate": rate})["text"].strip()

    def _model_for(self, candidates: dict[str, list[str]]) -> Any:
        """Give the model another label set; it shares all weights but the classifier with the pipeline's own."""
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
        """Turn the model's outputs for one input into the answer; see `__call__`."""
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
        words = utterance_words(
            tokenizer, anchors["text"], result["text"], result["context"], limit, result["first_token"], prefix
        )
        found = {"text": sorted((w for w in words if w["score"] is not None), key=lambda word: -word["score"])}
        for name in FEATURE_MODALITIES:
            encoder = self.processor.load_encoder(name, self.device) if result["decoded"][name] else None
            found[name] = anchor_spans(anchors[name], encoder and encoder.frame_rate, result["offset"])
        return found


def _as_row(inputs: Any) -> dict[str, Any]:
    """Bring an input of any kind into the form of a row, in which `audio` and `video` say what to decode."""
    if isinstance(inputs, str) and "://" not in inputs:
        is_clip = os.path.isfile(inputs) or inputs.lower().endswith(CLIP_SUFFIXES)
        inputs = {"clip": inputs} if is_clip else {"text": inputs}
    elif not isinstance(inputs, dict) or ({"path", "bytes"} & set(inputs) and not set(INPUT_KEYS) & set(inputs)):
        if not is_clip_source(inputs):
            raise ValueError(f"an input is a dictionary, a clip or a text, not {type(inputs).__name__}")
        inputs = {"clip": inputs}
    if all(inputs.get(key) is None for key in INPUT_KEYS if key != "context"):
        raise ValueError(f"the input has only {sorted(inputs)}; give at least one of {', '.join(INPUT_KEYS)}")
    video = inputs.get("video") if inputs.get("video") is not None else inputs.get("clip")
    audio = inputs.get("audio") if inputs.get("audio") is not None else (video if is_clip_source(video) else None)
    return {**inputs, "audio": audio, "video": video, "clip": None}


__all__ = ["IntentRecognitionPipeline"]
