"""Out-of-scope detection for A-MESS: nine scores, a threshold, and the detector that holds both."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from .processing_amess import write_json


# What a model returned for one batch: tensors or arrays by name. Methods take one, or one for each batch.
Outputs = Mapping[str, Any] | Iterable[Mapping[str, Any]]

DETECTOR_CONFIG_NAME = "oos_detector.json"
DETECTOR_WEIGHTS_NAME = "oos_detector.safetensors"

# The tensors that each method keeps from the training split.
_STATE = {
    "msp": (),
    "max_logit": (),
    "energy": (),
    "mahalanobis": ("whitening", "whitened_means"),
    "residual": ("origin", "null_space"),
    "vim": ("origin", "null_space", "residual_scale", "classifier_weight", "classifier_bias"),
    "label_similarity": (),
    "knn": ("neighbours",),
    "knn_energy": ("neighbours", "means", "deviations"),
}
OOS_METHODS = tuple(_STATE)

# Rank of the neighbour whose similarity is the score.
NEIGHBOUR = 5


def _field(outputs: Outputs, name: str) -> torch.Tensor:
    """Concatenate the field `name` of the outputs along the batch, in float64 on the CPU.

    float64, because distances in a wide space lose precision in float32, and a threshold must mean the same
    everywhere.
    """
    batches = [outputs] if isinstance(outputs, Mapping) else list(outputs)
    values = [batch.get(name) for batch in batches]
    if not values or any(value is None for value in values):
        raise ValueError(f"`outputs` has no `{name}`, which this out-of-scope score needs; choose another method")
    if name == "label_embeds":  # the same for every batch
        values = values[:1]
    return torch.cat([torch.as_tensor(value).detach().to("cpu", torch.float64) for value in values])


def _label_tensor(labels: torch.Tensor | Sequence) -> torch.Tensor:
    if isinstance(labels, (list, tuple)) and labels and isinstance(labels[0], torch.Tensor):
        labels = torch.cat(list(labels))
    return torch.as_tensor(labels).detach().cpu().long()


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
    | `knn_energy` | `knn + energy`, each standardised by its mean and deviation over the training clips |

    `W` and `b` are the classifier's, `o = -pinv(W) b`, and `a` makes the mean residual of the training clips equal to
    their mean largest logit. These are the definitions of `ood_detection/single_turn/` in thuiar/MIntRec2.0, except
    for the principal subspace: two thirds of the width, which is 512 of 768 as in the authors' code of virtual-logit
    matching (haoqiwang/vim, `benchmark.py`). MIntRec2.0's code takes as many dimensions as there are intents, which
    separates the clips less well (`examples/results/README.md`, "Out of scope"). `label_similarity` is this project's.

    All computation is in float64 on the CPU.

    Args:
        method (`str`, *optional*, defaults to `"knn_energy"`): One of `OOS_METHODS`.

    Attributes:
        threshold (`float`, *optional*): The lowest score in scope; `None` before `calibrate`.
        keep (`float`, *optional*): The share of in-scope dev clips that the threshold keeps.
        calibration_clips (`int`, *optional*): The number of in-scope dev clips that the threshold was set on.
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
        if method not in OOS_METHODS:
            raise ValueError(f"`method` is {method!r}; it must be one of {', '.join(OOS_METHODS)}")
        self.method = method
        self.state: dict[str, torch.Tensor] = {}
        self.threshold: float | None = None
        self.keep: float | None = None
        self.calibration_clips: int | None = None

    def __repr__(self):
        return f"{type(self).__name__}(method={self.method!r}, threshold={self.threshold}, keep={self.keep})"

    @property
    def is_fitted(self) -> bool:
        """Whether the method has what it needs from the training split."""
        return all(name in self.state for name in _STATE[self.method])

    def fit(
        self,
        outputs: Outputs | None = None,
        labels: torch.Tensor | Sequence | None = None,
        model: nn.Module | None = None,
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
                The model that made the outputs (for `residual` and `vim`).

        Returns:
            [`OutOfScopeDetector`]: This detector, without a threshold.

        Raises:
            `ValueError`: If something that the method needs is missing, or lengths differ.
        """
        self.threshold = self.keep = self.calibration_clips = None  # they belonged to the previous state
        if not _STATE[self.method]:
            return self
        if outputs is None or labels is None:
            raise ValueError(f"`{self.method}` learns from the training split; give `outputs` and `labels` to `fit`")
        features = _field(outputs, "pooler_output")
        known = _in_scope(labels, len(features))
        features, labels = features[known], _label_tensor(labels)[known]
        if not len(features):
            raise ValueError("`labels` has no in-scope clip to learn from, only negative ids; give labelled clips")
        if self.method == "knn":
            state = {"neighbours": _unit(features)}
        elif self.method == "knn_energy":
            energy = _field(outputs, "logits")[known].logsumexp(-1)
            state = _fit_neighbours(_unit(features), energy)
        elif self.method == "mahalanobis":
            state = _fit_mahalanobis(features, labels)
        elif model is None:
            raise ValueError(f"`{self.method}` reads the classifier's weights; give `model` to `fit`")
        else:
            weight = model.classifier.weight.detach().to("cpu", torch.float64)
            bias = model.classifier.bias.detach().to("cpu", torch.float64)
            state = _fit_subspace(features, weight, bias)
        # Contiguous, as they will be when loaded: another memory layout changes the order of sums.
        self.state = {name: state[name].contiguous() for name in _STATE[self.method]}
        return self

    def score(self, outputs: Outputs) -> torch.Tensor:
        """Score clips.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output, or one for each batch.

        Returns:
            `torch.DoubleTensor` of shape `(clips,)`: The scores; higher means in scope.

        Raises:
            `ValueError`: If the detector is not fitted, or the outputs lack a field or have another width.
        """
        if not self.is_fitted:
            raise ValueError(f"this `{self.method}` detector has not seen the training split; call `fit` first")
        if self.method == "label_similarity":
            return (_field(outputs, "multimodal_embeds") @ _field(outputs, "label_embeds").T).amax(-1)
        if self.method in ("msp", "max_logit", "energy"):
            logits = _field(outputs, "logits")
            if self.method == "msp":
                return logits.softmax(-1).amax(-1)
            return logits.amax(-1) if self.method == "max_logit" else logits.logsumexp(-1)

        features = _field(outputs, "pooler_output")
        width = self._width()
        if features.shape[-1] != width:
            raise ValueError(
                f"`pooler_output` is {features.shape[-1]} wide and this detector was fitted on {width}; use the detector "
                "of this model, or call `fit`"
            )
        if self.method.startswith("knn"):
            nearness = _nearness(_unit(features), self.state["neighbours"])
            if self.method == "knn":
                return nearness
            scores = torch.stack([nearness, _field(outputs, "logits").logsumexp(-1)], dim=-1)
            return ((scores - self.state["means"]) / self.state["deviations"]).sum(-1)
        if self.method == "mahalanobis":
            return -_squared_distances(features @ self.state["whitening"], self.state["whitened_means"]).amin(-1)
        residual = torch.linalg.vector_norm((features - self.state["origin"]) @ self.state["null_space"], dim=-1)
        if self.method == "residual":
            return -residual
        logits = features @ self.state["classifier_weight"].T + self.state["classifier_bias"]
        return logits.logsumexp(-1) - self.state["residual_scale"] * residual

    def _width(self) -> int:
        """Return the width of the features that the detector was fitted on."""
        if self.method.startswith("knn"):
            return self.state["neighbours"].shape[-1]
        return len(self.state["whitening" if self.method == "mahalanobis" else "origin"])

    def calibrate(
        self, outputs: Outputs, keep: float = 0.95, labels: torch.Tensor | Sequence | None = None
    ) -> "OutOfScopeDetector":
        """Set the threshold to the highest value that keeps at least the share `keep` of the in-scope dev clips.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output for the dev split, or one for each batch.
            keep (`float`, *optional*, defaults to 0.95): Share of in-scope clips to keep, above 0 and at most 1.
            labels (`torch.LongTensor` of shape `(clips,)`, or a list of them, *optional*):
                Label ids, where `outputs` has out-of-scope clips (-1) too; those are ignored.

        Returns:
            [`OutOfScopeDetector`]: This detector.

        Raises:
            `ValueError`: If `keep` is out of range, no in-scope clip is left, or a score is NaN or infinite.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"`keep` is {keep}; it is the share of in-scope clips to keep, above 0 and at most 1")
        scores = self.score(outputs)
        if labels is not None:
            scores = scores[_in_scope(labels, len(scores))]
        if not len(scores):
            raise ValueError("`outputs` has no in-scope dev clip to set the threshold on; give labelled clips")
        if not scores.isfinite().all():
            raise ValueError(
                f"the `{self.method}` score of a dev clip is NaN or infinite; check the model's outputs for NaN"
            )
        # 1e-9: rounding may put the product just above a whole number.
        number_kept = math.ceil(keep * len(scores) - 1e-9)
        self.threshold = scores.sort(descending=True).values[number_kept - 1].item()
        self.keep, self.calibration_clips = keep, len(scores)
        return self

    def predict(self, outputs: Outputs) -> torch.Tensor:
        """Decide which clips are in scope.

        Args:
            outputs (`ModelOutput`, or a list of them): The model's output, or one for each batch.

        Returns:
            `torch.BoolTensor` of shape `(clips,)`: True for a clip that is in scope.

        Raises:
            `ValueError`: If no threshold is set.
        """
        if self.threshold is None:
            raise ValueError("this detector has no threshold; call `calibrate` on the dev split first")
        return self.score(outputs) >= self.threshold

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `oos_detector.json` and `oos_detector.safetensors`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; created if it does not exist.

        Raises:
            `ValueError`: If the detector is not fitted.
        """
        if not self.is_fitted:
            raise ValueError(
                f"this `{self.method}` detector has not seen the training split; call `fit` before saving"
            )
        os.makedirs(save_directory, exist_ok=True)
        settings = {
            "format_version": 1,
            "method": self.method,
            "threshold": self.threshold,
            "keep": self.keep,
            "calibration_clips": self.calibration_clips,
        }
        write_json(os.path.join(save_directory, DETECTOR_CONFIG_NAME), settings)
        save_file(self.state, os.path.join(save_directory, DETECTOR_WEIGHTS_NAME), metadata={"format": "pt"})

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
        settings_file = cached_file(
            pretrained_model_name_or_path,
            DETECTOR_CONFIG_NAME,
            _raise_exceptions_for_missing_entries=not missing_ok,
            **hub_kwargs,
        )
        if settings_file is None:
            return None
        weights_file = cached_file(pretrained_model_name_or_path, DETECTOR_WEIGHTS_NAME, **hub_kwargs)
        with open(settings_file, encoding="utf-8") as file:
            try:
                settings = json.load(file)
                detector = cls(settings["method"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"`{settings_file}` does not describe an out-of-scope detector: {error}; save the detector again"
                ) from error
        detector.threshold, detector.keep = settings.get("threshold"), settings.get("keep")
        detector.calibration_clips = settings.get("calibration_clips")
        for name in ("threshold", "keep"):
            value = getattr(detector, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(
                    f"`{settings_file}`: `{name}` is {value!r}, not a number; calibrate the detector again"
                )
        try:
            # Copied out of the file, where a tensor may begin anywhere: another alignment rounds sums differently.
            detector.state = {name: tensor.clone() for name, tensor in load_file(weights_file).items()}
        except Exception as error:  # safetensors has its own exception class, outside the standard ones
            raise ValueError(
                f"`{weights_file}` cannot be read as safetensors: {error}; save the detector again"
            ) from error
        missing = [name for name in _STATE[detector.method] if name not in detector.state]
        if missing:
            raise ValueError(
                f"`{weights_file}` lacks {', '.join(missing)} for `{detector.method}`; save the detector again"
            )
        return detector


def _in_scope(labels: torch.Tensor | Sequence, clips: int) -> torch.Tensor:
    """Mark the clips whose label is not negative."""
    labels = _label_tensor(labels)
    if len(labels) != clips:
        raise ValueError(f"`outputs` has {clips} clips and `labels` {len(labels)}; give one label for each")
    return labels >= 0


def _squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Map (clips, width) and (classes, width) to (clips, classes), by differences: products would lose precision."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features, dim=-1)


def _nearness(features: torch.Tensor, neighbours: torch.Tensor, skip: int = 0) -> torch.Tensor:
    """Return the cosine to the `NEIGHBOUR`-th nearest of `neighbours`, not counting the `skip` nearest."""
    rank = min(NEIGHBOUR + skip, len(neighbours))
    parts = [(part @ neighbours.T).topk(rank).values[:, -1] for part in features.split(1024)]
    return torch.cat(parts) if parts else features.new_zeros(0)


def _fit_neighbours(features: torch.Tensor, energy: torch.Tensor) -> dict:
    """Keep the training clips, and the mean and deviation of both scores over them; no clip is its own neighbour."""
    scores = torch.stack([_nearness(features, features, skip=1), energy], dim=-1)
    # A score that is the same for all clips says nothing, and must not be divided by zero.
    deviations = scores.std(0, correction=0).clamp(min=1e-9)
    return {"neighbours": features, "means": scores.mean(0), "deviations": deviations}


def _fit_mahalanobis(features: torch.Tensor, labels: torch.Tensor) -> dict:
    """Find `A` with `A A^T` the pseudo-inverse of the covariance within classes, and the class means times `A`."""
    _, class_index = labels.unique(return_inverse=True)
    members = torch.nn.functional.one_hot(class_index).to(features.dtype)
    means = members.T @ features / members.sum(0)[:, None]
    centred = features - means[class_index]
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
    # The cut-off of a pseudo-inverse: directions in which the training features do not vary carry no evidence.
    cut = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    kept = values > cut
    whitening = vectors[:, kept] / values[kept].sqrt()
    return {"whitening": whitening, "whitened_means": means @ whitening}


def _fit_subspace(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict:
    """Find the origin, the directions outside the principal subspace of the training features, and the residual's scale."""
    width = weight.shape[1]
    origin = -torch.linalg.pinv(weight) @ bias
    centred = features - origin
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(features))  # ascending eigenvalues
    null_space = vectors[:, : width - 2 * width // 3]
    residual = torch.linalg.vector_norm(centred @ null_space, dim=-1).mean()
    greatest_logit = (features @ weight.T + bias).amax(-1).mean()
    # Without a residual there is nothing to match, and the score is the energy.
    scale = greatest_logit / residual if residual > 0 else torch.zeros_like(residual)
    return {
        "origin": origin,
        "null_space": null_space,
        "residual_scale": scale,
        "classifier_weight": weight,
        "classifier_bias": bias,
    }


__all__ = ["DETECTOR_CONFIG_NAME", "DETECTOR_WEIGHTS_NAME", "OOS_METHODS", "OutOfScopeDetector"]
