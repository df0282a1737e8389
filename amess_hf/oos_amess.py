"""Out-of-scope detection for A-MESS: seven scores, a threshold, and the detector that keeps both."""

import json
import math
import os
from collections.abc import Mapping

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file, logging


logger = logging.get_logger(__name__)

DETECTOR_CONFIG_NAME = "oos_detector.json"
DETECTOR_WEIGHTS_NAME = "oos_detector.safetensors"

# the tensors that each method keeps from the training split
_STATE = {
    "msp": (),
    "max_logit": (),
    "energy": (),
    "mahalanobis": ("whitening", "whitened_means"),
    "residual": ("origin", "null_space"),
    "vim": ("origin", "null_space", "residual_scale", "classifier_weight", "classifier_bias"),
    "label_similarity": (),
}
OOS_METHODS = tuple(_STATE)


def _field(outputs, name: str) -> torch.Tensor:
    """The field `name` of one model output, or of a list of them joined along the batch, in float64 on the CPU.

    float64 because distances in a wide space lose digits in float32, and a threshold must mean the same everywhere.
    """
    batches = [outputs] if isinstance(outputs, Mapping) else list(outputs)
    values = [batch.get(name) for batch in batches]
    if not values or any(value is None for value in values):
        raise ValueError(f"the model outputs have no `{name}`, which this out-of-scope score needs")
    if name == "label_embeds":  # the same for every batch
        values = values[:1]
    return torch.cat([torch.as_tensor(value).detach().to("cpu", torch.float64) for value in values])


def _label_tensor(labels) -> torch.Tensor:
    if isinstance(labels, (list, tuple)) and labels and isinstance(labels[0], torch.Tensor):
        labels = torch.cat(list(labels))
    return torch.as_tensor(labels).detach().cpu().long()


class OutOfScopeDetector:
    """
    Says whether a clip has one of the known intents. A score is higher the more a clip looks in scope; clips at or above
    a threshold, set on the dev split, count as in scope.

    | `method` | score, with logits `z`, features `f` (`pooler_output`) and unit embeddings `m` (`multimodal_embeds`) |
    | --- | --- |
    | `msp` | `max softmax(z)` |
    | `max_logit` | `max z` |
    | `energy` | `logsumexp(z)`: the negative free energy at temperature 1 |
    | `mahalanobis` | minus the least squared distance of `f` to a class mean, in the covariance all classes share |
    | `residual` | minus the length of the part of `f - o` outside the principal subspace of the training features |
    | `vim` | `logsumexp(W f + b) - a * residual length`: virtual-logit matching |
    | `label_similarity` | the greatest cosine of `m` and a description's embedding |

    `W` and `b` are the classifier's, `o = -pinv(W) b`, and `a` makes the mean residual of the training clips equal to
    their mean greatest logit. These are the definitions of `ood_detection/single_turn/` in thuiar/MIntRec2.0, but for the
    principal subspace: two thirds of the width, which is 512 of 768 as in the authors' code of virtual-logit matching
    (haoqiwang/vim, `benchmark.py`). MIntRec2.0's code takes as many dimensions as there are intents, which leaves less to
    tell the clips apart by (README, "Out of scope"). `label_similarity` is this project's.

    All computation is in float64 on the CPU.

    Args:
        method (`str`, *optional*, defaults to `"vim"`): one of `OOS_METHODS`.

    Example:

    ```python
    detector = OutOfScopeDetector("vim").fit(train_outputs, train_labels, model).calibrate(dev_outputs, keep=0.95)
    detector.predict(model(**batch))  # tensor([True, False, ...])
    detector.save_pretrained(folder)
    ```
    """

    def __init__(self, method: str = "vim"):
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
        return all(name in self.state for name in _STATE[self.method])

    def fit(self, outputs=None, labels=None, model=None) -> "OutOfScopeDetector":
        """
        Learns what the method needs from the training split; `msp`, `max_logit`, `energy` and `label_similarity` need
        nothing and take no arguments.

        Args:
            outputs: the model's output for the training split, or a list of outputs, one for each batch; `pooler_output`
                of shape (clips, hidden_size) is read.
            labels: (clips,) label ids, or a list of tensors, one for each batch. Clips with -1 are left out.
            model: the `AMESSForIntentClassification` that made the outputs (for `residual` and `vim`).

        Raises:
            ValueError: something that the method needs is missing, or lengths differ.
        """
        self.threshold = self.keep = self.calibration_clips = None  # belonged to the former state
        if not _STATE[self.method]:
            return self
        if outputs is None or labels is None:
            raise ValueError(f"`{self.method}` learns from the training split: give `outputs` and `labels` to `fit`")
        features, labels = _field(outputs, "pooler_output"), _label_tensor(labels)
        if len(features) != len(labels):
            raise ValueError(
                f"`outputs` has {len(features)} clips and `labels` {len(labels)}; give one label for each"
            )
        features, labels = features[labels >= 0], labels[labels >= 0]
        if not len(features):
            raise ValueError("`labels` has no in-scope clip to learn from; every one is negative")
        if self.method == "mahalanobis":
            state = _fit_mahalanobis(features, labels)
        elif model is None:
            raise ValueError(f"`{self.method}` reads the classifier's weights: give `model` to `fit`")
        else:
            weight = model.classifier.weight.detach().to("cpu", torch.float64)
            bias = model.classifier.bias.detach().to("cpu", torch.float64)
            state = _fit_subspace(features, weight, bias)
        # contiguous as they will be when loaded: another memory layout sums in another order
        self.state = {name: state[name].contiguous() for name in _STATE[self.method]}
        return self

    def score(self, outputs) -> torch.Tensor:
        """
        Args:
            outputs: the model's output, or a list of outputs, one for each batch.

        Returns:
            `torch.Tensor` of shape (clips,), float64: higher = in scope.

        Raises:
            ValueError: the detector is not fitted, or the outputs lack a field or have another width.
        """
        if not self.is_fitted:
            raise ValueError(f"this `{self.method}` detector has not seen the training split: call `fit` first")
        if self.method == "label_similarity":
            return (_field(outputs, "multimodal_embeds") @ _field(outputs, "label_embeds").T).amax(-1)
        if self.method in ("msp", "max_logit", "energy"):
            logits = _field(outputs, "logits")
            if self.method == "msp":
                return logits.softmax(-1).amax(-1)
            return logits.amax(-1) if self.method == "max_logit" else logits.logsumexp(-1)

        features = _field(outputs, "pooler_output")
        width = len(self.state["whitening" if self.method == "mahalanobis" else "origin"])
        if features.shape[-1] != width:
            raise ValueError(
                f"`pooler_output` is {features.shape[-1]} wide and this detector was fitted on {width}: it belongs to "
                "another model"
            )
        if self.method == "mahalanobis":
            return -_squared_distances(features @ self.state["whitening"], self.state["whitened_means"]).amin(-1)
        residual = torch.linalg.vector_norm((features - self.state["origin"]) @ self.state["null_space"], dim=-1)
        if self.method == "residual":
            return -residual
        logits = features @ self.state["classifier_weight"].T + self.state["classifier_bias"]
        return logits.logsumexp(-1) - self.state["residual_scale"] * residual

    def calibrate(self, outputs, keep: float = 0.95, labels=None) -> "OutOfScopeDetector":
        """
        Sets the threshold to the highest value that keeps at least the share `keep` of the in-scope dev clips.

        Args:
            outputs: the model's output for the dev split, or a list of outputs, one for each batch.
            keep: share of in-scope clips to keep, above 0 and at most 1.
            labels: (clips,) label ids where `outputs` has out-of-scope clips too (-1): they have no say.

        Raises:
            ValueError: `keep` is out of range, no in-scope clip is left, or a score is NaN or infinite.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"`keep` is {keep}; it is the share of in-scope clips to keep, above 0 and at most 1")
        scores = self.score(outputs)
        if labels is not None:
            labels = _label_tensor(labels)
            if len(labels) != len(scores):
                raise ValueError(
                    f"`outputs` has {len(scores)} clips and `labels` {len(labels)}; give one label for each"
                )
            scores = scores[labels >= 0]
        if not len(scores):
            raise ValueError("there is no in-scope dev clip to set the threshold on")
        if not scores.isfinite().all():
            raise ValueError(
                f"the `{self.method}` score of a dev clip is NaN or infinite: look at the model's outputs"
            )
        # 1e-9: the product may come out a hair above a whole number
        number_kept = math.ceil(keep * len(scores) - 1e-9)
        self.threshold = scores.sort(descending=True).values[number_kept - 1].item()
        self.keep, self.calibration_clips = keep, len(scores)
        return self

    def predict(self, outputs) -> torch.Tensor:
        """
        Returns:
            `torch.Tensor` of shape (clips,), bool: True for a clip that is in scope.

        Raises:
            ValueError: no threshold is set.
        """
        if self.threshold is None:
            raise ValueError("this detector has no threshold: call `calibrate` on the dev split first")
        return self.score(outputs) >= self.threshold

    def save_pretrained(self, save_directory: str | os.PathLike):
        """Writes `oos_detector.json` and `oos_detector.safetensors` into the folder, which is made if need be."""
        if not self.is_fitted:
            raise ValueError(
                f"this `{self.method}` detector has not seen the training split: call `fit` before saving"
            )
        os.makedirs(save_directory, exist_ok=True)
        settings = {
            "format_version": 1,
            "method": self.method,
            "threshold": self.threshold,
            "keep": self.keep,
            "calibration_clips": self.calibration_clips,
        }
        with open(os.path.join(save_directory, DETECTOR_CONFIG_NAME), "w", encoding="utf-8") as file:
            json.dump(settings, file, indent=2)
            file.write("\n")
        save_file(self.state, os.path.join(save_directory, DETECTOR_WEIGHTS_NAME), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, missing_ok: bool = False, **hub_kwargs):
        """
        Reads a detector from a folder or from a model repository on the Hub.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            missing_ok: give None where the model has no detector, rather than an error.
            hub_kwargs: `revision`, `token`, `cache_dir`, `subfolder`, ..., as for any `from_pretrained`.

        Raises:
            OSError: a file is missing, or the repository cannot be reached.
            ValueError: a file does not hold what it should.
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
                raise ValueError(f"{settings_file} does not describe an out-of-scope detector: {error}") from error
        detector.threshold, detector.keep = settings.get("threshold"), settings.get("keep")
        detector.calibration_clips = settings.get("calibration_clips")
        try:
            detector.state = load_file(weights_file)
        except Exception as error:  # safetensors has its own exception class, outside the standard ones
            raise ValueError(
                f"{weights_file} cannot be read as safetensors: {error}; save the detector anew"
            ) from error
        missing = [name for name in _STATE[detector.method] if name not in detector.state]
        if missing:
            raise ValueError(
                f"{weights_file} lacks {', '.join(missing)} for `{detector.method}`; save the detector anew"
            )
        return detector


def _squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """(clips, width), (classes, width) -> (clips, classes); differences and not products, which would cancel digits."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _fit_mahalanobis(features: torch.Tensor, labels: torch.Tensor) -> dict:
    """A whitening `A` with `A A^T` the pseudo-inverse of the covariance within classes, and the class means times `A`."""
    _, class_index = labels.unique(return_inverse=True)
    members = torch.nn.functional.one_hot(class_index).to(features.dtype)
    means = members.T @ features / members.sum(0)[:, None]
    centred = features - means[class_index]
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
    # the cut of a pseudo-inverse: directions in which the training features do not vary carry no evidence
    cut = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    kept = values > cut
    whitening = vectors[:, kept] / values[kept].sqrt()
    return {"whitening": whitening, "whitened_means": means @ whitening}


def _fit_subspace(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict:
    """The origin, the directions outside the principal subspace of the training features, and the residual's scale."""
    width = weight.shape[1]
    origin = -torch.linalg.pinv(weight) @ bias
    centred = features - origin
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(features))  # ascending eigenvalues
    null_space = vectors[:, : width - 2 * width // 3]
    residual = torch.linalg.vector_norm(centred @ null_space, dim=-1).mean()
    greatest_logit = (features @ weight.T + bias).amax(-1).mean()
    # features without residual: nothing to match, the score falls back to the energy
    scale = greatest_logit / residual if residual > 0 else torch.zeros_like(residual)
    return {
        "origin": origin,
        "null_space": null_space,
        "residual_scale": scale,
        "classifier_weight": weight,
        "classifier_bias": bias,
    }


__all__ = ["OOS_METHODS", "OutOfScopeDetector"]
