#!/usr/bin/env python3
"""
Export a saved A-MESS to ONNX: words and features in, logits and anchors out.

    python examples/export_onnx.py --model_name_or_path runs/mintrec --output_file amess.onnx

The numbers of clips, words and frames are dynamic; `--batch_size`, `--text_length`, `--audio_length`, `--video_length`
each fix one. The file is checked against the model with onnxruntime before it counts as written. Needs
`pip install "amess_hf[onnx]"`.

Inputs: `input_ids`, `attention_mask` (batch, text_length) int64; `audio_features` (batch, audio_length, size) float32 and
`audio_attention_mask` (batch, audio_length) int64; the same for `video`, as far as the model takes them; and for a model
that was trained with earlier turns of the dialogue `token_type_ids` (where its text encoder has types) and
`utterance_mask`, both (batch, text_length) int64, as the collator makes them (clips without earlier turns: zeros, and the
attention mask). Outputs: `logits`
(batch, num_labels), and for the anchor fusion `anchor_indices` (batch, 3, num_anchors) int64 with -1 for none, and
`anchor_scores`.
"""

import os
import sys
from dataclasses import dataclass, field

import torch
from progress import ProgressArguments, hide_progress_bars
from transformers import HfArgumentParser
from transformers.utils import logging

from amess_hf import AMESSForIntentClassification
from amess_hf.processing_amess import written_aside


logger = logging.get_logger("amess_hf.export_onnx")

TOLERANCE = 1e-4
OPSET = 20


@dataclass
class ExportArguments:
    """What to export, where to, and with which sizes."""

    model_name_or_path: str = field(metadata={"help": "A saved model: a folder or a Hub repository."})
    output_file: str = field(default="amess.onnx", metadata={"help": "The file to write."})
    batch_size: int | None = field(default=None, metadata={"help": "Clips per batch; dynamic if not given."})
    text_length: int | None = field(default=None, metadata={"help": "Tokens; dynamic if not given."})
    audio_length: int | None = field(default=None, metadata={"help": "Frames of sound; dynamic if not given."})
    video_length: int | None = field(default=None, metadata={"help": "Frames of picture; dynamic if not given."})

    def __post_init__(self):
        sizes = [self.batch_size, self.text_length, self.audio_length, self.video_length]
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"sizes are {sizes}; each must be at least 1")


class ForONNX(torch.nn.Module):
    """The model with plain tensors in and out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids,
        attention_mask,
        token_type_ids=None,
        utterance_mask=None,
        audio_features=None,
        audio_attention_mask=None,
        video_features=None,
        video_attention_mask=None,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            utterance_mask=utterance_mask,
            audio_features=audio_features,
            audio_attention_mask=audio_attention_mask,
            video_features=video_features,
            video_attention_mask=video_attention_mask,
        )
        if outputs.anchor_indices is None:
            return (outputs.logits,)
        return outputs.logits, outputs.anchor_indices, outputs.anchor_scores


def input_sizes(config, arguments):
    """Length of each input's second axis in the example: `{"text": …, "audio": …, "video": …}`, as the model takes them."""
    sizes = {"text": arguments.text_length or 7}
    for modality, example in (("audio", 11), ("video", 9)):
        if modality in config.feature_configs and config.fusion_type != "text":
            sizes[modality] = getattr(arguments, f"{modality}_length") or example
    return sizes


def example_inputs(config, batch_size, lengths, seed=0):
    """Random inputs; from the second clip on, each shorter than the last, with padding."""
    draw = torch.Generator().manual_seed(seed)
    inputs = {}
    for modality, length in lengths.items():
        held = torch.arange(batch_size)[:, None]
        mask = (torch.arange(length) < (length - held).clamp(min=1)).long()
        if modality == "text":
            inputs["input_ids"] = torch.randint(0, config.text_config.vocab_size, mask.shape, generator=draw)
            inputs["attention_mask"] = mask
            if config.context_turns:
                context = torch.arange(length) < length // 2
                if getattr(config.text_config, "type_vocab_size", 0) > 1:
                    inputs["token_type_ids"] = (mask.bool() & ~context).long()
                inputs["utterance_mask"] = (mask.bool() & ~context).long()
        else:
            size = config.feature_configs[modality].feature_size
            inputs[f"{modality}_features"] = torch.randn(*mask.shape, size, generator=draw)
            inputs[f"{modality}_attention_mask"] = mask
    return inputs


def dynamic_axes(inputs, arguments):
    """For each input the names of its dynamic axes; `None` if all sizes are fixed."""
    axes = {}
    batch = {} if arguments.batch_size else {0: torch.export.Dim("batch", min=1, max=4096)}
    lengths = {
        modality: {}
        if getattr(arguments, f"{modality}_length")
        else {1: torch.export.Dim(f"{modality}_length", max=8192)}
        for modality in ("text", "audio", "video")
    }
    for name in inputs:
        axes[name] = {**batch, **lengths[name.split("_")[0] if name.startswith(("audio", "video")) else "text"]}
    return axes if any(axes.values()) else None


def export(model, arguments):
    """
    Write the ONNX file, and check that onnxruntime agrees with the model.

    Raises:
        `ValueError`: if they differ by more than 1e-4, or onnx is not installed.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'exporting needs {error.name}: pip install "amess_hf[onnx]"') from error
    model = model.float().eval()
    lengths = input_sizes(model.config, arguments)
    inputs = example_inputs(model.config, arguments.batch_size or 3, lengths)
    names = ["logits"] if model.config.fusion_type != "anchor" else ["logits", "anchor_indices", "anchor_scores"]
    with written_aside(arguments.output_file) as partial:
        torch.onnx.export(
            ForONNX(model),
            kwargs=inputs,
            f=partial,
            input_names=list(inputs),
            output_names=names,
            dynamic_shapes=dynamic_axes(inputs, arguments),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        difference = largest_difference(model, partial, arguments)
        if difference > TOLERANCE:
            raise ValueError(
                f"onnxruntime differs from the model by {difference:.1e}, more than {TOLERANCE}; nothing was exported"
            )
    return difference


def largest_difference(model, path, arguments):
    """The largest difference between onnxruntime and the model, over batches of the sizes that the file takes; anchors must be equal."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    lengths, largest = input_sizes(model.config, arguments), 0.0
    for seed, (clips, factor) in enumerate(((3, 1), (1, 3), (5, 2))):
        sizes = {
            modality: length if getattr(arguments, f"{modality}_length") else length * factor
            for modality, length in lengths.items()
        }
        inputs = example_inputs(model.config, arguments.batch_size or clips, sizes, seed)
        with torch.no_grad():
            expected = ForONNX(model)(**inputs)
        given = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for one, other in zip(expected, given, strict=True):
            largest = max(largest, float((one - torch.from_numpy(other)).abs().max()))
    return largest


def main(arguments=None):
    parser = HfArgumentParser((ExportArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    model = AMESSForIntentClassification.from_pretrained(arguments.model_name_or_path)
    difference = export(model, arguments)
    size = os.path.getsize(arguments.output_file) / 2**20
    print(f"{arguments.output_file}: {size:.1f} MiB; onnxruntime differs from the model by at most {difference:.1e}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError) as error:
        sys.exit(f"export_onnx.py: {error}")
