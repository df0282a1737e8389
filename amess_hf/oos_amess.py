"""Out-of-scope detection: scores that are higher for clips with a known intent, and a detector with a threshold.

To add a score, derive a class from [`OutOfScopeScore`]: `score` maps the model's outputs to a number per clip, and `fit`, where
it learns from the training split, returns the tensors named in `state_shapes`. List it in `SCORES` under its name; the
detector, the evaluation and `run_mir.py --detector` take it from there.

A clip without audio, or with text alone, scores lower than a complete one whatever its intent: the threshold, and the
statistics that a score is standardized by, are set for each set of modalities.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from .configuration_amess import MODALITIES
from .processing_amess import write_json


# What a model returned for one batch: tensors or arrays by name. Methods take one, or one for each batch.
Outputs = Mapping[str, Any] | Iterable[Mapping[str, Any]]
Labels = torch.Tensor | Sequence
State = dict[str, torch.Tensor]

DETECTOR_CONFIG_NAME = "oos_detector.json"
DETECTOR_WEIGHTS_NAME = "oos_detector.safetensors"
FORMAT_VERSION = 2

# Rank of the neighbor whose similarity is the score.
NEIGHBOR = 5


class _Fields:
    """The fields of a model's outputs over all batches, in float64 on the CPU, of the clips in `rows`.

    float64, because distances in a wide space lose precision in float32, and a threshold must mean the same everywhere.
    """

    def __init__(self, outputs: Outputs, rows: Any = slice(None)):
        self.batches = [outputs] if isinstance(outputs, Mapping) else list(outputs)
        self.rows = rows

    def __getattr__(self, name: str) -> torch.Tensor:
        values = [batch.get(name) for batch in self.batches]
        if not values or any(value is None for value in values):
            raise ValueError(f"`outputs` has no `{name}`, which this out-of-scope score needs; choose another method")
        if name == "label_embeds":  # the same for every batch
            return torch.as_tensor(values[0]).detach().to("cpu", torch.float64)
        return torch.cat([torch.as_tensor(value).detach().to("cpu", torch.float64) for value in values])[self.rows]

    def modality_sets(self, clips: int) -> list[str]:
        """Return which modalities each clip has, e.g. `"text+audio"`; empty names where the outputs do not say."""
        if any(batch.get("modality_mask") is None for batch in self.batches):
            return [""] * clips
        return ["+".join(itertools.compress(MODALITIES, row)) for row in self.modality_mask.tolist()]


class OutOfScopeScore:
    """A score of clips, higher for those in scope.

    Attributes:
        state_shapes (`dict[str, tuple]`): The tensors that it learns from the training split, saved with the detector, and
            their shapes: numbers, or names of sizes, of which `width` is that of `pooler_output`.
    """

    state_shapes: dict[str, tuple[int | str, ...]] = {}

    def fit(self, outputs: _Fields, labels: torch.Tensor, model: nn.Module | None) -> State:
        """Return the state learned from the in-scope training clips."""
        return {}

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        """Return a score per clip, shape `(clips,)`."""
        raise NotImplementedError

    def adapt(self, outputs: _Fields, state: State) -> State:
        """Return what to replace in the state for clips like these, which lack a modality and are in scope."""
        return {}


class _MSP(OutOfScopeScore):
    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return outputs.logits.softmax(-1).amax(-1)


class _MaxLogit(OutOfScopeScore):
    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return outputs.logits.amax(-1)


class _Energy(OutOfScopeScore):
    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return outputs.logits.logsumexp(-1)


class _LabelSimilarity(OutOfScopeScore):
    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return (outputs.multimodal_embeds @ outputs.label_embeds.T).amax(-1)


class _KNN(OutOfScopeScore):
    state_shapes = {"neighbors": ("clips", "width")}

    def fit(self, outputs: _Fields, labels: torch.Tensor, model: nn.Module | None) -> State:
        return {"neighbors": nn.functional.normalize(outputs.pooler_output, dim=-1)}

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return _nearness(nn.functional.normalize(outputs.pooler_output, dim=-1), state["neighbors"])


class _KNNEnergy(_KNN):
    state_shapes = {**_KNN.state_shapes, "means": (2,), "deviations": (2,)}

    def fit(self, outputs: _Fields, labels: torch.Tensor, model: nn.Module | None) -> State:
        state = super().fit(outputs, labels, model)
        # No clip is its own neighbor.
        return state | self._moments(_nearness(state["neighbors"], state["neighbors"], skip=1), outputs)

    def adapt(self, outputs: _Fields, state: State) -> State:
        return self._moments(super().score(outputs, state), outputs)

    def _moments(self, nearness: torch.Tensor, outputs: _Fields) -> State:
        scores = torch.stack([nearness, outputs.logits.logsumexp(-1)], dim=-1)
        # A score that is the same for all clips says nothing, and must not be divided by zero.
        return {"means": scores.mean(0), "deviations": scores.std(0, correction=0).clamp(min=1e-9)}

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        scores = torch.stack([super().score(outputs, state), outputs.logits.logsumexp(-1)], dim=-1)
        return ((scores - state["means"]) / state["deviations"]).sum(-1)


class _Mahalanobis(OutOfScopeScore):
    state_shapes = {"whitening": ("width", "rank"), "whitened_means": ("classes", "rank")}

    def fit(self, outputs: _Fields, labels: torch.Tensor, model: nn.Module | None) -> State:
        """Find `A` with `A A^T` the pseudo-inverse of the covariance within classes, and the class means times `A`."""
        features = outputs.pooler_output
        _, class_index = labels.unique(return_inverse=True)
        members = nn.functional.one_hot(class_index).to(features.dtype)
        means = members.T @ features / members.sum(0)[:, None]
        centered = features - means[class_index]
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(features))
        # The cut-off of a pseudo-inverse: directions in which the training features do not vary carry no evidence.
        kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
        whitening = vectors[:, kept] / values[kept].sqrt()
        return {"whitening": whitening, "whitened_means": means @ whitening}

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        points = outputs.pooler_output @ state["whitening"]
        # By differences: products would lose precision.
        distances = torch.cdist(points, state["whitened_means"], compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.square().amin(-1)


class _ViM(OutOfScopeScore):
    state_shapes = {
        "origin": ("width",),
        "null_space": ("width", "rest"),
        "residual_scale": (),
        "classifier_weight": ("labels", "width"),
        "classifier_bias": ("labels",),
    }

    def fit(self, outputs: _Fields, labels: torch.Tensor, model: nn.Module | None) -> State:
        """Find the origin, the directions outside the principal subspace of the features, and the residual's scale."""
        features = outputs.pooler_output
        weight = model.classifier.weight.detach().to("cpu", torch.float64)
        bias = model.classifier.bias.detach().to("cpu", torch.float64)
        width = weight.shape[1]
        origin = -torch.linalg.pinv(weight) @ bias
        centered = features - origin
        _, vectors = torch.linalg.eigh(centered.T @ centered / len(features))  # ascending eigenvalues
        null_space = vectors[:, : width - 2 * width // 3]
        residual = torch.linalg.vector_norm(centered @ null_space, dim=-1).mean()
        greatest_logit = (features @ weight.T + bias).amax(-1).mean()
        # Without a residual there is nothing to match, and the score is the energy.
        scale = greatest_logit / residual if residual > 0 else torch.zeros_like(residual)
        return dict(zip(_ViM.state_shapes, (origin, null_space, scale, weight, bias), strict=True))

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        logits = outputs.pooler_output @ state["classifier_weight"].T + state["classifier_bias"]
        return logits.logsumexp(-1) + state["residual_scale"] * _Residual.score(self, outputs, state)


class _Residual(_ViM):
    state_shapes = {name: _ViM.state_shapes[name] for name in ("origin", "null_space")}

    def score(self, outputs: _Fields, state: State) -> torch.Tensor:
        return -torch.linalg.vector_norm((outputs.pooler_output - state["origin"]) @ state["null_space"], dim=-1)


SCORES: dict[str, type[OutOfScopeScore]] = {
    "msp": _MSP,
    "max_logit": _MaxLogit,
    "energy": _Energy,
    "mahalanobis": _Mahalanobis,
    "residual": _Residual,
    "vim": _ViM,
    "label_similarity": _LabelSimilarity,
    "knn": _KNN,
    "knn_energy": _KNNEnergy,
}
OOS_METHODS = tuple(SCORES)


def _nearness(features: torch.Tensor, neighbors: torch.Tensor, skip: int = 0) -> torch.Tensor:
    """Return the cosine to the `NEIGHBOR`-th nearest of `neighbors`, not counting the `skip` nearest."""
    rank = min(NEIGHBOR + skip, len(neighbors))
    parts = [(part @ neighbors.T).topk(rank).values[:, -1] for part in features.split(1024)]
    return torch.cat(parts) if parts else features.new_zeros(0)


class OutOfScopeDetector:
    """Decides whether a clip has one of the known intents.

    A score is higher the more a clip looks in scope; clips at or above a threshold, set on the dev split, count as in scope.

    | `method` | score, with logits `z`, features `f` (`pooler_output`) and unit embeddings `m` (`multimodal_embeds`) |
    | --- | --- |
    | `msp` | `max softmax(z)` |
    | `max_logit` | `max z` |
    | `energy` | `logsumexp(z)`: the negative free energy at temperature 1 |
    | `mahalanobis` | minus the smallest squared distance of `f` to a class mean, under the shared covariance |
    | `residual` | minus the length of the part of `f - o` outside the principal subspace of the training features |
    | `vim` | `logsumexp(W f + b) - a * residual length`: virtual-logit matching |
    | `label_similarity` | the largest cosine of `m` and a description's embedding |
    | `knn` | the fifth largest cosine of `f` and a training clip's features (Sun et al., ICML 2022) |
    | `knn_energy` | `knn + energy`, each standardized by its mean and deviation over the training clips |

    `W` and `b` are the classifier's, `o = -pinv(W) b`, and `a` makes the mean residual of the training clips equal to
    their mean largest logit. These are the definitions of `ood_detection/single_turn/` in thuiar/MIntRec2.0, except
    for the principal subspace: two thirds of the width, which is 512 of 768 as in the authors' code of virtual-logit
    matching (haoqiwang/vim, `benchmark.py`). MIntRec2.0's code takes as many dimensions as there are intents, which
    separates the clips less well. `label_similarity` is this project's. All computation is in float64 on the CPU.

    Args:
        method (`str`, *optional*, defaults to `"knn_energy"`): One of `OOS_METHODS`.

    Attributes:
        threshold (`float`, *optional*): The lowest score in scope; `None` before `calibrate`.
        thresholds (`dict[str, float]`): The same for each set of modalities, e.g. `"text+audio"`, as far as they were set.
        keep (`float`, *optional*): The share of in-scope dev clips that each threshold keeps.
        calibration_clips (`int`, *optional*): The number of in-scope dev clips that the threshold was set on.
        spread (`float`, *optional*): The standard deviation of their scores.
        calibration (`list`, *optional*): Temperature and scales of the evidence of the model that it was fitted on.
        state (`dict[str, torch.Tensor]`): What the method learned from the training split.

    Raises:
        `ValueError`: If there is no such method.

    Example:
    ```python
    detector = OutOfScopeDetector().fit(train_outputs, train_labels, model).calibrate(dev_outputs, keep=0.95)
    detector.predict(model(**batch))  # tensor([True, False, ...])
    detector.save_pretrained(folder)
    ```
    """

    def __init__(self, method: str = "knn_energy"):
        if method not in SCORES:
            raise ValueError(f"`method` is {method!r}; it must be one of {', '.join(SCORES)}")
        self.method = method
        self.state: State = {}
        self.calibration: list[Any] | None = None
        self._forget_thresholds()

    def check_model(self, config: PreTrainedConfig) -> None:
        """Raise a `ValueError` if the model was calibrated since the detector was fitted: the scores are others then.

        Args:
            config ([`AMESSConfig`]): The model's configuration.
        """
        if self.calibration not in (None, [config.temperature, config.evidence_scales]):
            raise ValueError(
                f"the out-of-scope detector was fitted with the temperatures {self.calibration}, but the model has "
                f"{[config.temperature, config.evidence_scales]}; fit and calibrate the detector again"
            )

    def _forget_thresholds(self) -> None:
        self.threshold: float | None = None
        self.keep: float | None = None
        self.calibration_clips: int | None = None
        self.spread: float | None = None
        self.thresholds: dict[str, float] = {}
        self.adapted: dict[str, State] = {}

    def __repr__(self):
        return f"{type(self).__name__}(method={self.method!r}, threshold={self.threshold}, keep={self.keep})"

    def fit(
        self, outputs: Outputs | None = None, labels: Labels | None = None, model: nn.Module | None = None
    ) -> "OutOfScopeDetector":
        """Learn what the method needs from the training split.

        `msp`, `max_logit`, `energy` and `label_similarity` need nothing.

        Args:
            outputs (`ModelOutput`, or a list of them, *optional*):
                The model's output for the training split, or one for each batch; `pooler_output` of shape `(clips,
                hidden_size)` is read.
            labels (`torch.LongTensor` of shape `(clips,)`, or a list of them, *optional*):
                Label ids, or those of each batch. Clips with -1 are left out.
            model ([`AMESSForIntentClassification`], *optional*):
                The model that made the outputs (`residual` and `vim` read its classifier); with it, a detector knows when
                the model's temperatures have changed since.

        Returns:
            [`OutOfScopeDetector`]: This detector, without a threshold.

        Raises:
            `ValueError`: If no clip is in scope, or the outputs lack a field.
        """
        self._forget_thresholds()  # they belonged to the previous state
        if hasattr(model, "config"):
            self.calibration = [model.config.temperature, model.config.evidence_scales]
        score = SCORES[self.method]()
        if not score.state_shapes:
            return self
        labels, known = _in_scope(labels)
        state = score.fit(_Fields(outputs, known), labels[known], model)
        # Contiguous, as they will be when loaded: another memory layout changes the order of sums.
        self.state = {name: state[name].contiguous() for name in score.state_shapes}
        return self

    def score(self, outputs: Outputs) -> torch.Tensor:
        """Score clips.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output, or one for each batch.

        Returns:
            `torch.DoubleTensor` of shape `(clips,)`: The scores; higher means in scope.

        Raises:
            `ValueError`: If the detector is not fitted, or the outputs lack a field.
        """
        self._check_fitted()
        fields, score = _Fields(outputs), SCORES[self.method]()
        for name, shape in score.state_shapes.items():
            width = self.state[name].shape[shape.index("width")] if "width" in shape else None
            if width not in (None, fields.pooler_output.shape[-1]):
                raise ValueError(
                    f"`pooler_output` is {fields.pooler_output.shape[-1]} wide, but this detector was fitted on {width}; "
                    "it belongs to another model"
                )
        scores = score.score(fields, self.state)
        given = fields.modality_sets(len(scores))
        for name in self.adapted.keys() & set(given):
            rows = torch.tensor([one == name for one in given])
            scores[rows] = score.score(_Fields(outputs, rows), self.state | self.adapted[name])
        return scores

    def _check_fitted(self) -> None:
        if self.state.keys() != SCORES[self.method].state_shapes.keys():
            raise ValueError(f"this `{self.method}` detector has not seen the training split; call `fit` first")

    def calibrate(
        self, outputs: Outputs, keep: float = 0.95, labels: Labels | None = None, masked: Sequence[Outputs] = ()
    ) -> "OutOfScopeDetector":
        """Set each threshold to the highest value that keeps at least the share `keep` of the in-scope dev clips.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output for the dev split, or one for each batch.
            keep (`float`, *optional*, defaults to 0.95): Share of in-scope clips to keep, above 0 and at most 1.
            labels (`torch.LongTensor` of shape `(clips,)`, or a list of them, *optional*):
                Label ids, where `outputs` has out-of-scope clips (-1) too; those are ignored.
            masked (`Sequence` of outputs, *optional*):
                The model's outputs, `modality_mask` among them, for the same clips with some modalities masked; each set of
                modalities gets a threshold of its own. Clips with another set have the one of `outputs`.

        Returns:
            [`OutOfScopeDetector`]: This detector.

        Raises:
            `ValueError`: If `keep` is out of range, no in-scope clip is left, or a score is NaN or infinite.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"`keep` is {keep}; it is the share of in-scope clips to keep, above 0 and at most 1")
        self._forget_thresholds()
        scores = self.score(outputs)
        known = torch.ones(len(scores), dtype=torch.bool) if labels is None else _in_scope(labels)[1]
        self.threshold, self.keep = self._lowest(scores[known], keep), keep
        self.calibration_clips = int(known.sum())
        self.spread = scores[known].std(correction=0).item()
        score = SCORES[self.method]()
        for part in masked:
            given = _Fields(part).modality_sets(len(known))
            name = max(set(given), key=given.count)
            rows = known & torch.tensor([one == name for one in given])
            fields = _Fields(part, rows)
            self.adapted[name] = score.adapt(fields, self.state)
            self.thresholds[name] = self._lowest(score.score(fields, self.state | self.adapted[name]), keep)
        return self

    def _lowest(self, scores: torch.Tensor, keep: float) -> float:
        """Return the highest threshold that keeps a share of the scores."""
        if not scores.isfinite().all():
            raise ValueError(f"the `{self.method}` score of a dev clip is NaN or infinite; check the model's outputs")
        # 1e-9: rounding may put the product just above a whole number.
        return scores.sort(descending=True).values[math.ceil(keep * len(scores) - 1e-9) - 1].item()

    def margins(self, outputs: Outputs) -> torch.Tensor:
        """Return how far each clip is above the threshold of the modalities that it has, in deviations of the dev scores.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output, or one for each batch.

        Returns:
            `torch.DoubleTensor` of shape `(clips,)`: Negative for a clip that is out of scope.

        Raises:
            `ValueError`: If no threshold is set.
        """
        if self.threshold is None:
            raise ValueError("this detector has no threshold; call `calibrate` on the dev split first")
        scores = self.score(outputs)
        given = _Fields(outputs).modality_sets(len(scores))
        thresholds = [self.thresholds.get(name, self.threshold) for name in given]
        return (scores - torch.tensor(thresholds, dtype=torch.float64)) / (self.spread or 1.0)

    def predict(self, outputs: Outputs) -> torch.Tensor:
        """Decide which clips are in scope; arguments and errors are those of [`margins`].

        Returns:
            `torch.BoolTensor` of shape `(clips,)`: True for a clip that is in scope.
        """
        return self.margins(outputs) >= 0

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `oos_detector.json` and `oos_detector.safetensors` into a folder, which is created if it does not exist.

        Raises:
            `ValueError`: If the detector is not fitted.
        """
        self._check_fitted()
        os.makedirs(save_directory, exist_ok=True)
        settings = {"format_version": FORMAT_VERSION} | {name: getattr(self, name) for name in _SETTINGS}
        write_json(os.path.join(save_directory, DETECTOR_CONFIG_NAME), settings)
        adapted = {f"{name}/{key}": value for name, state in self.adapted.items() for key, value in state.items()}
        tensors = self.state | adapted
        save_file(tensors, os.path.join(save_directory, DETECTOR_WEIGHTS_NAME), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, missing_ok: bool = False, **hub_kwargs: Any
    ) -> "OutOfScopeDetector | None":
        """Load a detector from a folder or from a model repository on the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): The folder, or the repository's id.
            missing_ok (`bool`, *optional*, defaults to `False`):
                Whether to return `None` where the model has no detector, instead of raising an error.
            hub_kwargs: `revision`, `token`, `cache_dir`, `subfolder`, ..., as for any `from_pretrained`.

        Returns:
            [`OutOfScopeDetector`], or `None` where there is none and `missing_ok` allows it.

        Raises:
            `OSError`: If a file is missing, or the repository cannot be reached.
            `ValueError`: If a file does not hold what it should.
        """
        place, missing = pretrained_model_name_or_path, {"_raise_exceptions_for_missing_entries": not missing_ok}
        settings_file = cached_file(place, DETECTOR_CONFIG_NAME, **missing, **hub_kwargs)
        if settings_file is None:
            return None
        weights_file = cached_file(place, DETECTOR_WEIGHTS_NAME, **hub_kwargs)
        with _reading(settings_file), open(settings_file, encoding="utf-8") as file:
            settings = json.load(file)
            if settings["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {settings['format_version']}, not {FORMAT_VERSION}")
            detector = cls(settings["method"])
            for name in _SETTINGS:
                setattr(detector, name, settings[name])
            numbers = [
                detector.threshold,
                detector.keep,
                detector.calibration_clips,
                detector.spread,
                *detector.thresholds.values(),
            ]
            if not all(number is None or math.isfinite(number) for number in numbers):
                raise ValueError("a threshold is not finite")
        with _reading(weights_file):
            # Copied out of the file, where a tensor may begin anywhere: another alignment rounds sums differently.
            tensors = {name: value.to(torch.float64, copy=True) for name, value in load_file(weights_file).items()}
            shapes = SCORES[detector.method].state_shapes
            detector.state = {name: tensors.pop(name) for name in shapes}
            detector.adapted = {name: {} for name in detector.thresholds}
            for key, value in tensors.items():
                name, _, field = key.rpartition("/")
                detector.adapted[name][field] = value
            for adapted in ({}, *detector.adapted.values()):
                _check_state(shapes, detector.state | adapted)
        return detector


_SETTINGS = ("method", "threshold", "keep", "calibration_clips", "thresholds", "spread", "calibration")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn whatever is wrong with a file of a detector into a `ValueError` that names it."""
    try:
        yield
    except Exception as error:  # safetensors has its own exception class, outside the standard ones
        raise ValueError(
            f"`{path}` does not hold an out-of-scope detector ({error!r}); save the detector again"
        ) from error


def _check_state(shapes: dict[str, tuple[int | str, ...]], state: State) -> None:
    """Raise `ValueError` unless the tensors have their shapes, in which a name stands for one size, and finite values."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        found = tuple(state[name].shape)
        expected = tuple(
            sizes.setdefault(size, n) if isinstance(size, str) else size for size, n in zip(shape, found, strict=False)
        )
        if len(shape) != len(found) or expected != found or 0 in found or not state[name].isfinite().all():
            raise ValueError(f"`{name}` of shape {found} is not a finite tensor of shape {shape}")


def _in_scope(labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Return label ids as a tensor, and which of them are in scope."""
    if isinstance(labels, (list, tuple)) and labels and isinstance(labels[0], torch.Tensor):
        labels = torch.cat(list(labels))
    labels = torch.as_tensor(labels).detach().cpu().long()
    if not (labels >= 0).any():
        raise ValueError("`labels` has no in-scope clip, only negative ids; give labelled clips")
    return labels, labels >= 0


__all__ = ["DETECTOR_CONFIG_NAME", "DETECTOR_WEIGHTS_NAME", "OOS_METHODS", "OutOfScopeDetector"]
