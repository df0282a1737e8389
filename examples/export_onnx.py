#!/usr/bin/env python3
"""
Export a saved A-MESS to ONNX: text and features in, logits and anchors out.

    python examples/export_onnx.py --model_name_or_path runs/mintrec --output_file amess.onnx

The numbers of clips, tokens and frames are dynamic; `--batch_size`, `--text_length`, `--audio_length`, `--video_length`
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

import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from command_line import one_line_errors, parse
from transformers.hf_argparser import HfArg

from amess_hf import AMESSForIntentClassification
from amess_hf.processing_amess import written_aside


TOLERANCE = 1e-4
OPSET = 20


@dataclass
class ExportArguments:
    """What to export, where to, and with which sizes."""

    model_name_or_path: str = HfArg(help="A saved model: a folder or a Hub repository.")
    output_file: str = HfArg(default="amess.onnx", help="The file to write.")
    batch_size: int | None = HfArg(default=None, help="Clips per batch; dynamic if not given.")
    text_length: int | None = HfArg(default=None, help="Tokens; dynamic if not given.")
    audio_length: int | None = HfArg(default=None, help="Frames of audio; dynamic if not given.")
    video_length: int | None = HfArg(default=None, help="Frames of video; dynamic if not given.")

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
        features = audio_features, audio_attention_mask, video_features, video_attention_mask
        outputs = self.model(input_ids, attention_mask, token_type_ids, *features, utterance_mask=utterance_mask)
        outputs = outputs.logits, outputs.anchor_indices, outputs.anchor_scores
        return outputs if outputs[1] is not None else outputs[:1]


def input_sizes(config, arguments):
    """Length of each input's second axis in the example: `{"text": …, "audio": …, "video": …}`, as the model takes them."""
    examples = {"text": 7, "audio": 11, "video": 9}
    taken = ["text", *(config.feature_configs if config.fusion_type != "text" else ())]
    return {modality: getattr(arguments, f"{modality}_length") or examples[modality] for modality in taken}


def example_inputs(config, batch_size, lengths, seed=0):
    """Random inputs; from the second clip on, each shorter than the last, with padding."""
    draw = torch.Generator().manual_seed(seed)
    inputs, held = {}, torch.arange(batch_size)[:, None]
    for modality, length in lengths.items():
        mask = torch.arange(length) < (length - held).clamp(min=1)
        if modality != "text":
            size = config.feature_configs[modality].feature_size
            inputs[f"{modality}_features"] = torch.randn(*mask.shape, size, generator=draw)
            inputs[f"{modality}_attention_mask"] = mask.long()
            continue
        inputs["input_ids"] = torch.randint(0, config.text_config.vocab_size, mask.shape, generator=draw)
        inputs["attention_mask"] = mask.long()
        if config.context_turns:
            utterance = (mask & (torch.arange(length) >= length // 2)).long()
            if getattr(config.text_config, "type_vocab_size", 0) > 1:
                inputs["token_type_ids"] = utterance
            inputs["utterance_mask"] = utterance
    return inputs


def dynamic_axes(inputs, arguments):
    """For each input the names of its dynamic axes; `None` if all sizes are fixed."""
    batch = {} if arguments.batch_size else {0: torch.export.Dim("batch", min=1, max=4096)}
    lengths = {
        modality: {}
        if getattr(arguments, f"{modality}_length")
        else {1: torch.export.Dim(f"{modality}_length", max=8192)}
        for modality in ("text", "audio", "video")
    }
    axes = {name: {**batch, **lengths.get(name.split("_")[0], lengths["text"])} for name in inputs}
    return axes if any(axes.values()) else None


@contextmanager
def exporter_silenced():
    """What torch's exporter says of its own code is not for the user; errors are raised all the same."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export(model, arguments):
    """
    Write the ONNX file, and check that onnxruntime agrees with the model.

    Raises:
        `ValueError`: if they differ by more than 1e-4.
        `ImportError`: if onnx is not installed.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'exporting needs {error.name}: pip install "amess_hf[onnx]"') from error
    model, wrapped = model.float().eval(), ForONNX(model).eval()
    inputs = example_inputs(model.config, arguments.batch_size or 3, input_sizes(model.config, arguments))
    names = ["logits"] if model.config.fusion_type != "anchor" else ["logits", "anchor_indices", "anchor_scores"]
    with written_aside(arguments.output_file) as partial:
        with exporter_silenced():
            torch.onnx.export(
                wrapped,
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
    """The largest difference between onnxruntime and the model, over batches of the sizes that the file takes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    lengths, largest = input_sizes(model.config, arguments), 0.0
    for seed, (clips, factor) in enumerate(((3, 1), (1, 3), (5, 2))):
        fixed = {modality: getattr(arguments, f"{modality}_length") for modality in lengths}
        sizes = {modality: fixed[modality] or length * factor for modality, length in lengths.items()}
        inputs = example_inputs(model.config, arguments.batch_size or clips, sizes, seed)
        with torch.no_grad():
            expected = ForONNX(model)(**inputs)
        given = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for one, other in zip(expected, given, strict=True):
            largest = max(largest, float((one - torch.from_numpy(other)).abs().max()))
    return largest


def main(arguments=None):
    (arguments,) = parse([ExportArguments], __doc__, arguments)
    model = AMESSForIntentClassification.from_pretrained(arguments.model_name_or_path)
    difference = export(model, arguments)
    size = os.path.getsize(arguments.output_file) / 2**20
    print(f"{arguments.output_file}: {size:.1f} MiB; onnxruntime differs from the model by at most {difference:.1e}")


if __name__ == "__main__":
    with one_line_errors():
        main()
