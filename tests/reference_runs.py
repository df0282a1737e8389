"""
One short training run of each kind, to verify that a change does not change any result.

    python tests/reference_runs.py run OUT --mintrec path/to/MIntRec --mintrec2 path/to/MIntRec2.0 \
        --simulated path/to/MIntRec-with-features --clips path/to/own-clips --text_encoder path/to/encoder
    python tests/reference_runs.py compare BEFORE AFTER

`run` trains with `examples/run_mir.py` of the working tree on words, on simulated features with anchors, on a folder with
clips, on two sets together, and for described intents, which are then added; one seed each. `compare` checks that the
weights, the logits next to described intents (both bit for bit) and the predictions of both runs are the same.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from amess_hf import AMESSForIntentClassification
from amess_hf.descriptions_amess import load_label_descriptions


SCRIPT = Path(__file__).parent.parent / "examples" / "run_mir.py"
KINDS = ("words", "simulated", "clips", "two_sets", "described")
SETTINGS = (
    "--do_train --do_eval --use_cpu --seed 3 --max_steps 24 --eval_strategy steps --eval_steps 12 --save_strategy steps "
    "--save_steps 12"
)
# Parameters that were renamed since the first recording: new name -> old name.
RENAMED_PARAMETERS = {}


def commands(options):
    """Kind of run -> the arguments that are its own."""
    return {
        "words": ["--dataset_name", "mintrec", "--data_dir", options.mintrec],
        "simulated": ["--dataset_name", "mintrec", "--data_dir", options.simulated]
        + ["--config_overrides", "fusion_type=anchor"],
        "clips": ["--dataset_name", "folder", "--data_dir", options.clips, "--audio_encoder", "log-mel"]
        + ["--video_encoder", "hog"],
        "two_sets": ["--dataset_name", "mintrec,mintrec2.0", "--data_dir", f"{options.mintrec},{options.mintrec2}"],
        "described": ["--dataset_name", "mintrec", "--data_dir", options.mintrec, "--pretrained_share", "0.5"]
        + ["--config_overrides", "projection_dim=0"],
    }


def add_described_intents(folder):
    """Add the intents of MIntRec2.0 that MIntRec lacks to the model in `folder`; write its logits for their sentences."""
    torch.use_deterministic_algorithms(True)
    model = AMESSForIntentClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    added = load_label_descriptions("mintrec2.0")
    model.set_label_descriptions({**added, **load_label_descriptions("mintrec")}, tokenizer)
    batch = tokenizer([sentences[-1] for sentences in added.values()], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    save_file({"logits": logits, "label_embeds": model.label_embeds}, Path(folder, "described.safetensors"))


def run(options):
    for kind in options.kinds.split(","):
        arguments = [*commands(options)[kind], "--output_dir", f"{options.out}/{kind}", *SETTINGS.split()]
        arguments += ["--text_model_name_or_path", options.text_encoder]
        subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True)
        if kind == "described":
            add_described_intents(f"{options.out}/{kind}")


def predictions(folder):
    """The rows of the predictions, without the text that later versions add."""
    lines = (folder / "predictions_dev.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[:4] for line in lines]


def compare(options):
    different = []
    for kind in options.kinds.split(","):
        before, after = Path(options.before, kind), Path(options.after, kind)
        weights = load_file(before / "model.safetensors")
        others = load_file(after / "model.safetensors")
        others = {RENAMED_PARAMETERS.get(name, name): value for name, value in others.items()}
        changed = sorted(set(weights) ^ set(others)) + [
            name for name in weights if name in others and not torch.equal(weights[name], others[name])
        ]
        if changed:
            different.append(f"{kind}: weights {', '.join(changed[:5])}")
        name = "described.safetensors"
        if kind == "described" and (before / name).read_bytes() != (after / name).read_bytes():
            different.append(f"{kind}: {name}")
        if predictions(before) != predictions(after):
            different.append(f"{kind}: predictions_dev.tsv")
    print("\n".join(different) or "the same, bit for bit")
    return bool(different)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("out")
    for name in ("mintrec", "mintrec2", "simulated", "clips", "text_encoder"):
        runner.add_argument(f"--{name}", required=True)
    comparison = actions.add_parser("compare")
    comparison.add_argument("before")
    comparison.add_argument("after")
    options = parser.parse_args()
    sys.exit(run(options) if options.action == "run" else compare(options))


if __name__ == "__main__":
    main()
