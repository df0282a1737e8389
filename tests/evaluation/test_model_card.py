"""The model card: its content comes from the model and the run, and huggingface_hub can read it."""

import os
import re

import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, RepoCard
from utils import DESCRIPTIONS, FRONT_ENDS, LABELS, save_noise_clip, tiny_model

from amess_hf import __version__
from amess_hf.datasets_amess import merge_fields
from amess_hf.evaluation import create_model_card, name_repository
from amess_hf.hub import save_for_hub
from amess_hf.oos_amess import OutOfScopeDetector


RESULTS = {
    "epoch": 12.0,
    "eval_accuracy": 0.7011235955056179,
    "eval_weighted_f1": 0.6987654321,
    "eval_f1": 0.651,
    "eval_precision": 0.66,
    "eval_recall": 0.65,
    "eval_loss": 1.23,
    "eval_oos_auroc": 0.81,
    "test_accuracy": 0.6941,
    "train_runtime": 512.0,
}
MODALITIES = [
    {"modalities": ["text", "audio", "video"], "accuracy": 0.7011, "weighted_f1": 0.69, "changed": 0.0},
    {"modalities": ["text"], "accuracy": 0.68, "weighted_f1": 0.67, "changed": 0.1234},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def card(model):
    detector = OutOfScopeDetector("energy").calibrate({"logits": torch.randn(40, 4)}, keep=0.9)
    oos = {"energy": {"auroc": 0.81, "aupr_in": 0.9, "aupr_out": 0.7, "fpr95": 0.5, "eer": 0.3, "der": 0.4}}
    report = {"split": "dev", "modalities": MODALITIES, "oos_detection": oos}
    arguments = {"num_train_epochs": 12.0, "max_steps": -1, "learning_rate": 2e-4, "seed": 7, "fp16": False}
    names = ("mintrec2.0", "org/amess-mintrec2")
    return create_model_card(model, RESULTS, *names, detector, report, training_arguments=arguments)


class TestMetadata:
    def test_metrics_are_those_of_the_run(self, card):
        """The type is the metric's name in `all_results.json`, the split goes before it: nothing lost, nothing added."""
        prefixes = {"validation": "eval", "test": "test"}
        written = {
            f"{prefixes[result.dataset_split]}_{result.metric_type}": result.metric_value
            for result in card.data.eval_results
        }
        assert written == {
            key: value for key, value in RESULTS.items() if key.startswith(("eval_", "test_")) and key != "eval_loss"
        }

    def test_round_trip(self, card, tmp_path):
        card.save(tmp_path / "README.md")
        for read in (ModelCard(card.content), ModelCard.load(tmp_path / "README.md")):
            assert read.data.to_dict() == card.data.to_dict()
            assert read.data.eval_results == card.data.eval_results
            assert all(isinstance(result, EvalResult) for result in read.data.eval_results)
            assert read.text == card.text
        read = RepoCard.load(tmp_path / "README.md")
        read.save(tmp_path / "again.md")
        assert (tmp_path / "again.md").read_bytes() == (tmp_path / "README.md").read_bytes()

    def test_header(self, card):
        header = yaml.safe_load(card.content.split("---")[1])
        assert header["library_name"] == "transformers" and header["license"] == "cc-by-nc-sa-4.0"
        assert header["model-index"][0]["name"] == "amess-mintrec2"
        assert {"intent-recognition", "amess"} <= set(header["tags"])
        datasets = [result["dataset"] for result in header["model-index"][0]["results"]]
        assert datasets == [
            {"name": "MIntRec2.0", "type": "mintrec2.0", "split": split} for split in ("validation", "test")
        ]

    def test_no_metrics_without_a_run(self, model):
        card = create_model_card(model, {})
        assert "model-index" not in card.content and "## Results" not in card.content
        assert ModelCard(card.content).data.eval_results is None
        assert "\n# A-MESS\n" in card.content and "| base model | not named" in card.content


class TestText:
    def test_tables(self, card):
        assert "| validation | 70.11 | 69.88 | 65.10 | 66.00 | 65.00 | 81.00 |" in card.text
        assert "| test | 69.41 | – | – | – | – | – |" in card.text
        assert "| text + audio + video | 70.11 | 69.00 | 0.00 |" in card.text
        assert "| text | 68.00 | 67.00 | 12.34 |" in card.text
        assert "| `energy` | 81.00 | 90.00 | 70.00 | 50.00 | 30.00 | 40.00 |" in card.text
        for table in re.findall(r"(?:^\|.*\n)+", card.text, re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1

    def test_every_intent_with_its_descriptions(self, card):
        for label in LABELS:
            assert f"- **{label}**: {' '.join(DESCRIPTIONS[label])}\n" in card.text

    def test_of_many_sentences_the_first_are_shown(self):
        sentences = [f"Sentence {number}." for number in range(9)]
        model = tiny_model(label_descriptions={**DESCRIPTIONS, "Thank": sentences})
        text = create_model_card(model, {}).text
        assert "- **Thank**: Sentence 0. Sentence 1. Sentence 2. (And 6 more in `config.json`.)" in text

    def test_detector(self, card, model):
        assert "The threshold keeps 90.0 % of the 40 in-scope clips" in card.text
        assert re.search(r"below the threshold -?[\d.]+ is answered", card.text)
        assert "No detector is saved with this model" in create_model_card(model, RESULTS).text
        text = create_model_card(model, RESULTS, detector=OutOfScopeDetector("msp")).text
        assert "`msp`" in text and "No threshold is set" in text

    def test_how_to_load_names_the_model(self, card):
        assert card.text.count('"org/amess-mintrec2"') == 2

    def test_hyperparameters_and_versions(self, card, model):
        section = card.text.split("## Training")[1].split("## ")[0]
        rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE))
        assert rows["num_train_epochs"] == "12" and rows["seed"] == "7" and rows["learning_rate"] == "0.0002"
        assert rows["fusion_type"] == model.config.fusion_type
        assert "max_steps" not in rows and "fp16" not in rows
        assert f"amess_hf {__version__}" in section and f"torch {torch.__version__}" in section
        without = create_model_card(model, {}).text
        assert "## Training" not in without and f"transformers {transformers.__version__}" in without
        steps = create_model_card(model, {}, training_arguments={"num_train_epochs": 3.0, "max_steps": 40}).text
        assert "| max_steps | 40 |" in steps and "| num_train_epochs |" not in steps

    def test_licence_and_language(self, model, card):
        assert card.data.license == "cc-by-nc-sa-4.0" and card.data.language == "en"
        assert "| license | cc-by-nc-sa-4.0 |" in card.text and "| language | en |" in card.text
        own = create_model_card(model, {}, "meetings")
        assert own.data.license is None and "| license | not stated" in own.text
        own = create_model_card(model, {}, "meetings", license="mit", language=["de", "en"])
        assert own.data.license == "mit" and own.data.language == ["de", "en"]

    def test_limits_follow_the_modality_table(self, model, card):
        def limits(text, audio, both):
            table = [
                {"modalities": names, "accuracy": share, "weighted_f1": share, "changed": 0.0}
                for names, share in ((["text", "audio"], both), (["text"], text), (["audio"], audio))
            ]
            report = {"split": "dev", "modalities": table}
            return create_model_card(model, {}, report=report).text.split("## Limits")[1].split("## ")[0]

        sound = limits(text=0.11, audio=0.80, both=0.81)
        assert "Nearly all of the evidence that this model uses is in the audio" in sound
        both = limits(text=0.55, audio=0.20, both=0.90)
        assert "Nearly all" not in both and "55.00 % from text alone, 20.00 % from audio alone" in both
        assert "largest loss is that of text: 20.00 % without" in both
        assert "was not measured" in create_model_card(model, {}).text
        assert "was not measured" not in create_model_card(tiny_model(fusion_type="text"), {}).text

    def test_citations_follow_the_data(self, model):
        both = create_model_card(model, {}, "mintrec,mintrec2.0").text
        assert all(key in both for key in ("2503.19474", "zhang2022mintrec", "zhang2024mintrec", "CC BY-NC-SA 4.0"))
        own = create_model_card(model, {}, "meetings").text
        assert "Trained on meetings." in own and "zhang2022mintrec" not in own and "television" not in own

    def test_untrained_intents_are_marked(self):
        model = tiny_model(described_labels=["Thank"])
        text = create_model_card(model, {}).text
        assert text.count("known by its description alone") == 1
        assert "- **Thank** (not trained on; known by its description alone): " in text

    def test_words_only(self):
        text = create_model_card(tiny_model(fusion_type="text", label_descriptions=None), {}).text
        assert "intends from\ntext. " in text
        assert "intends from\ntext, audio and video. " in create_model_card(tiny_model(), {}).text
        assert "clip.mp4" not in text and "extra_labels" not in text
        assert "\n- **Greet**\n" in text
        text = create_model_card(tiny_model(fusion_type="text"), {}, training_arguments={"seed": 3}).text
        assert "| fusion_type | text |" in text and "num_anchors" not in text


def snippet_of(text):
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


class TestSnippet:
    """What the card shows is run on the very model that the card lies with."""

    def run(self, folder, monkeypatch):
        code = snippet_of((folder / "README.md").read_text(encoding="utf-8"))
        lines = re.sub(r"^recognize\((.*)\)$", r"answers.append(recognize(\1))", code, flags=re.MULTILINE)
        monkeypatch.chdir(folder)
        names = {"answers": []}
        exec(lines, names)
        return names["answers"]

    def test_clips(self, tmp_path, tokenizer, monkeypatch):
        pytest.importorskip("av", reason='pip install "amess_hf[video]"')
        save_for_hub(tmp_path, tiny_model(**FRONT_ENDS), tokenizer)
        save_noise_clip(tmp_path / "clip.mp4")
        words, clip, described = self.run(tmp_path, monkeypatch)
        assert words[0]["label"] in LABELS and clip != words
        assert "Negotiate" in {answer["label"] for answer in described} and len(described) == len(LABELS) + 1

    def test_sound_alone(self, tmp_path, tokenizer, monkeypatch):
        pytest.importorskip("av", reason='pip install "amess_hf[video]"')
        from clip_writer import write_clip

        save_for_hub(tmp_path, tiny_model(**FRONT_ENDS | {"video_config": None}), tokenizer)
        write_clip(tmp_path / "clip.wav", sound=np.random.default_rng(0).uniform(-0.5, 0.5, 16000))
        assert len(self.run(tmp_path, monkeypatch)) == 3

    def test_ready_features(self, tmp_path, tokenizer, monkeypatch):
        save_for_hub(tmp_path, tiny_model(), tokenizer)
        np.save(tmp_path / "audio.npy", np.ones((7, 6), dtype=np.float32))
        np.save(tmp_path / "video.npy", np.ones((7, 5), dtype=np.float32))
        words, clip, _ = self.run(tmp_path, monkeypatch)
        assert clip != words

    def test_words_alone(self, tmp_path, tokenizer, monkeypatch):
        save_for_hub(tmp_path, tiny_model(fusion_type="text", label_descriptions=None), tokenizer)
        assert len(self.run(tmp_path, monkeypatch)) == 1


class TestRepositoryName:
    def test_card_of_a_run_names_the_repository_that_it_is_pushed_to(self, model, tmp_path):
        path = tmp_path / "README.md"
        create_model_card(model, RESULTS, "meetings").save(path)
        assert 'model="."' in path.read_text() and "in the folder that this file is in" in path.read_text()
        before = path.read_text()
        path.write_text(before + "\nA remark of the author's.\n")
        for repo_id in ("org/amess-meetings", "org/amess-meetings", "other/moved"):
            name_repository(path, repo_id)
            text = path.read_text()
            assert text.count(f'"{repo_id}"') == 2 and 'model="."' not in text
            assert "A remark of the author's." in text
        assert "folder that this file is in" not in text
        name_repository(path, "org/amess-meetings")
        assert ModelCard.load(path).data.to_dict()["model-index"][0]["name"] == "amess-meetings"
        assert "\n# amess-meetings\n" in path.read_text()

    def test_other_cards_stay_as_they_are(self, tmp_path):
        path = tmp_path / "README.md"
        path.write_bytes(b"# amess\r\nmy own card\r\n")
        name_repository(path, "org/model")
        assert path.read_bytes() == b"# amess\r\nmy own card\r\n"


class TestHostileInput:
    def test_no_path_of_a_machine(self, tmp_path):
        """The text encoder's folder on somebody's machine is no base model, the data's folder no data set's name."""
        model = tiny_model()
        model.config.text_config._name_or_path = str(tmp_path / "own-encoder")
        card = create_model_card(model, RESULTS, os.path.join(tmp_path, "clips"))
        assert tmp_path.name not in card.content and "Trained on clips." in card.text
        assert card.data.base_model is None and "| base model | own-encoder (a local folder) |" in card.text
        assert card.data.model_name == "A-MESS on clips" and "\n# A-MESS on clips\n" in card.text

    def test_encoders_are_base_models(self):
        model = tiny_model(**merge_fields(FRONT_ENDS, {"audio_config": {"encoder": "facebook/wavlm-base"}}))
        model.config.text_config._name_or_path = "google-bert/bert-base-uncased"
        card = create_model_card(model, {})
        assert card.data.base_model == ["google-bert/bert-base-uncased", "facebook/wavlm-base"]
        assert "built from google-bert/bert-base-uncased and facebook/wavlm-base" in card.text
        assert "| base model | google-bert/bert-base-uncased, facebook/wavlm-base |" in card.text

    def test_names_are_no_markup(self):
        shown = {
            "$\\frac{$": r"\$\\frac{\$",
            "<img src=x onerror=alert(1)>": "&lt;img src=x onerror=alert(1)&gt;",
            "two\nlines": "two lines",
            "**bold** _it_": r"\*\*bold\*\* \_it\_",
            "[click](http://x)": r"\[click\](http:&#47;&#47;x)",
            "see www.x.org": "see www&#46;x.org",
            "R&D": "R&amp;D",
            "a|b": r"a\|b",
        }
        model = tiny_model(id2label=dict(enumerate(shown)), label_descriptions={name: [name] for name in shown})
        card = create_model_card(model, RESULTS, "<b>data")
        for line in shown.values():
            assert f"\n- **{line}**: {line}\n" in card.text, line
        assert "intents of &lt;b&gt;data" in card.text and "<b>" not in card.text
        assert ModelCard(card.content).data.to_dict() == card.data.to_dict()

    def test_descriptions_cannot_break_the_card(self):
        nasty = {"Greet": ["line\n---\nlicense: none\n---", "{{ card_data }} {% raw %}"], "Th|ank": ["a"]}
        model = tiny_model(id2label={0: "Greet", 1: "Th|ank"}, label_descriptions=nasty)
        card = create_model_card(model, RESULTS)
        read = ModelCard(card.content)
        assert read.data.to_dict() == card.data.to_dict()
        assert "- **Th\\|ank**" in read.text
        assert "line --- license: none --- {{ card_data }} {% raw %}" in read.text
