"""Steps of tests/test_hub_roundtrip.py, each run as a separate process: `python hub_steps.py STEP [JSON]`."""

import json
import sys
from pathlib import Path

import numpy as np


REPO, ONE_CALL, DATASET = "org/amess-run", "org/amess-one-call", "org/demo-features"
EXAMPLES = Path(__file__).parents[1] / "examples"
WITHOUT = ("amess_hf", "av")


class KeptOut:
    """Makes the import of some packages fail as it does where they are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in WITHOUT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def clips() -> dict[str, list]:
    """Three clips, the last of words alone, as the processor takes them."""
    generator = np.random.default_rng(3)
    sizes = {"audio_features": (32, (9, 3)), "video_features": (24, (7, 12))}
    features = {
        name: [generator.normal(size=(frames, width)).astype("float32") for frames in lengths] + [None]
        for name, (width, lengths) in sizes.items()
    }
    return {"text": ["thank you so much for this", "zyx wvu", "i am sorry"], **features}


def answers(model, processor, pipe) -> dict:
    """What a pulled model says of the clips, in plain numbers."""
    import torch

    batch = clips()
    with torch.no_grad():
        outputs = model(**processor(**batch))
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    return {
        "logits": outputs.logits.tolist(),
        "anchors": outputs.anchor_indices.tolist(),
        "detector": pipe.detector.score(outputs).tolist(),
        "pipeline": pipe(rows, top_k=None, return_anchors=True),
    }


def train() -> None:
    """Writes the demo corpus and a text encoder; pushes the corpus as a data set, and a model trained for two steps."""
    sys.path += [str(EXAMPLES), str(EXAMPLES / "demo")]
    import run_demo
    import run_mir
    from demo_corpus import demo_label_descriptions, write_demo_corpus
    from transformers import BertConfig, BertModel

    from amess_hf import load_mintrec

    write_demo_corpus("corpus", clips_per_split={"train": 40, "dev": 20, "test": 20})
    load_mintrec("corpus", name="mintrec").push_to_hub(DATASET)
    descriptions = demo_label_descriptions()
    Path("descriptions.json").write_text(json.dumps({"descriptions": descriptions}))
    tokenizer = run_demo.build_tokenizer([text for texts in descriptions.values() for text in texts])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained("text-encoder")
    tokenizer.save_pretrained("text-encoder")
    options = (
        "--data_dir corpus --output_dir run --do_predict --push_to_hub --hub_strategy every_save --hub_private_repo"
    )
    run_mir.main([*_options("mintrec"), *options.split(), "--hub_model_id", REPO])


def train_from_hub() -> None:
    """Trains on the pushed data set."""
    sys.path += [str(EXAMPLES), str(EXAMPLES / "demo")]
    import run_mir

    run_mir.main([*_options(DATASET), "--output_dir", "run-from-hub"])


def _options(dataset: str) -> list[str]:
    options = "--text_model_name_or_path text-encoder --label_descriptions descriptions.json"
    options += " --config_overrides hidden_size=16"
    return ["--dataset_name", dataset, *options.split(), "--do_train", "--do_eval", "--max_steps", "2"]


def pull_with_package() -> None:
    """Pulls the model of the run; pushes it with a detector in one call; says what that repository answers."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

    import amess_hf

    config = AutoConfig.from_pretrained(REPO)
    model, processor = AutoModelForSequenceClassification.from_pretrained(REPO), AutoProcessor.from_pretrained(REPO)
    detector = amess_hf.OutOfScopeDetector("msp").fit()
    with torch.no_grad():
        worst, second, _ = sorted(detector.score(model(**processor(**clips()))).tolist())
    detector.threshold = (worst + second) / 2  # two of the three are in scope, whatever the last digits of a score
    push = {"repo_id": ONE_CALL, "run_folder": "run"}
    first = amess_hf.push_to_hub(model, processor, detector, **push)
    again = amess_hf.push_to_hub(model, processor, detector, **push)
    with torch.no_grad():
        model.classifier.bias += 1
    later = amess_hf.push_to_hub(model, processor.tokenizer, None, ONE_CALL)
    pipe = pipeline("intent-recognition", model=ONE_CALL, revision=first.oid)
    pulled = AutoModelForSequenceClassification.from_pretrained(ONE_CALL, revision=first.oid)
    parts = (config, pulled, AutoModel.from_pretrained(ONE_CALL), processor, pipe)
    commits = {"first": first.oid, "again": again.oid, "later": later.oid}
    result = answers(pulled, processor, pipe) | {
        "commits": commits,
        "modules": [type(part).__module__ for part in parts],
    }
    Path("with_package.json").write_text(json.dumps(result))


def pull_without_package(revision: str) -> None:
    """The same where `amess_hf` and the video library are not installed."""
    sys.meta_path.insert(0, KeptOut())
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

    loaders = [AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor]
    loaders = [loader.from_pretrained for loader in loaders] + [
        lambda name: pipeline("intent-recognition", model=name)
    ]
    refusals = [_error(lambda load=load: load(ONE_CALL)) for load in loaders]
    fetched = [name for name in sys.modules if name.endswith("_amess")]

    trusted = {"trust_remote_code": True, "revision": revision}
    config, base, model, processor = [load(ONE_CALL, **trusted) for load in loaders[:4]]
    pipe = pipeline("intent-recognition", model=ONE_CALL, **trusted)
    modules = [type(part).__module__ for part in (config, base, model, processor, pipe)]
    latest = AutoModelForSequenceClassification.from_pretrained(ONE_CALL, trust_remote_code=True)
    clip_error = _error(lambda: sys.modules[modules[3].replace("processing", "clips")].clip_durations("clip.mp4"))
    result = answers(model, processor, pipe) | {
        "refusals": refusals,
        "fetched_before_consent": fetched,
        "modules": modules,
        "bias_moved": (latest.classifier.bias - model.classifier.bias).tolist(),
        "clip_error": clip_error,
    }
    Path("without_package.json").write_text(json.dumps(result))


def _error(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
