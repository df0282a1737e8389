"""
The full round trip through a Hub that speaks HTTP: train, push, pull with and without the package, predict, compare.

The steps (tests/hub_steps.py) are fresh processes, each with an empty `HF_HOME`. They run once for all tests here.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import HubServer
from hub_steps import DATASET, ONE_CALL, REPO
from huggingface_hub import ModelCard
from utils import tiny_model

from amess_hf.hub import files_for_hub, save_for_hub
from amess_hf.training import AMESSTrainingArguments


# Four processes that each import torch, one after another: slow where other work has the cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = Path(__file__).with_name("hub_steps.py")
FLAT_SET = {path.name for path in (STEPS.parents[1] / "amess_hf").glob("*_amess.py")}
# How files of `pickle` (protocols 2 to 5) and of `torch.save` begin.
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Everything that the steps left: the server, the working folder, their logs and what they wrote."""
    folder = tmp_path_factory.mktemp("circle")
    logs = {}
    with HubServer() as hub:

        def step(name, *arguments, token=None):
            home = tmp_path_factory.mktemp("home")
            environment = {**os.environ, **hub.environment(home, token), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, str(STEPS), name, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            logs[name] = done.stdout + done.stderr
            assert done.returncode == 0, f"{name} failed:\n{logs[name][-4000:]}"
            written = folder / f"{name.removeprefix('pull_')}.json"
            return json.loads(written.read_text()) if written.exists() else None

        step("train", token=hub.token)
        with_package = step("pull_with_package", token=hub.token)
        # No token from here on: what is public can be read by anybody.
        without_package = step("pull_without_package", with_package["commits"]["first"])
        step("train_from_hub")
        yield SimpleNamespace(hub=hub, folder=folder, logs=logs, local=with_package, remote=without_package)


class TestPush:
    def test_run_pushes_while_and_after_it_trains(self, circle):
        titles = [commit.title for commit in circle.hub.repository(REPO).history("main")]
        assert titles[0] == "End of training"
        assert "Training in progress, step 2" in titles

    def test_private_is_private(self, circle):
        assert circle.hub.repository(REPO).private
        assert not circle.hub.repository(ONE_CALL).private

    @pytest.mark.parametrize("repo_id", [REPO, ONE_CALL])
    def test_repository_is_complete(self, circle, repo_id):
        files = set(circle.hub.files(repo_id))
        assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
        assert {"processor_config.json", "label_descriptions.json", "training_args.json", "README.md"} <= files
        assert {"all_results.json", "eval_results.json", "test_results.json"} <= files

    @pytest.mark.parametrize("repo_id", [REPO, ONE_CALL])
    def test_code_is_the_flat_set_at_every_commit(self, circle, repo_id):
        for commit in circle.hub.repository(repo_id).history("main")[:-1]:
            assert {path for path in commit.files if path.endswith(".py")} == FLAT_SET
            assert not [path for path in commit.files if "/" in path]

    @pytest.mark.parametrize("repo_id", [REPO, ONE_CALL])
    def test_nothing_is_a_pickle(self, circle, repo_id):
        for commit in circle.hub.repository(repo_id).commits.values():
            for path, blob in commit.files.items():
                assert not path.endswith((".bin", ".pt", ".pth", ".pkl")), path
                assert not blob.content.startswith(PICKLED), path

    def test_token_and_machine_are_in_no_file_and_no_log(self, circle):
        token, folder = circle.hub.token, str(circle.folder)
        for name, log in circle.logs.items():
            assert token not in log, f"the token is in the log of {name}"
        for path in circle.folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), f"the token is in {path.name}"
        for repo_id, repo_type in ((REPO, "model"), (ONE_CALL, "model"), (DATASET, "dataset")):
            for path, content in circle.hub.files(repo_id, repo_type).items():
                assert token.encode() not in content, f"the token is in {path} of {repo_id}"
                assert folder.encode() not in content, f"a folder of this machine is in {path} of {repo_id}"

    def test_detector_goes_along_and_goes_away(self, circle):
        commits = circle.local["commits"]
        detector = {"oos_detector.json", "oos_detector.safetensors"}
        assert detector <= set(circle.hub.files(ONE_CALL, revision=commits["first"]))
        assert not detector & set(circle.hub.files(ONE_CALL, revision=commits["later"]))

    def test_same_again_makes_no_commit(self, circle):
        assert circle.local["commits"]["again"] == circle.local["commits"]["first"]
        assert len(circle.hub.repository(ONE_CALL).history("main")) == 3  # the empty one, the first and the later

    def test_card_has_the_figures_of_the_run(self, circle, tmp_path):
        (tmp_path / "README.md").write_bytes(circle.hub.files(ONE_CALL)["README.md"])
        results = json.loads(circle.hub.files(ONE_CALL)["all_results.json"])
        card = ModelCard.load(tmp_path / "README.md")
        figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert figures
        prefixes = ("eval_", "test_")
        for result in card.data.eval_results:
            candidates = [results.get(prefix + result.metric_type) for prefix in prefixes]
            assert result.metric_value in candidates, result

    def test_training_arguments_are_readable_and_masked(self, circle):
        arguments = json.loads(circle.hub.files(REPO)["training_args.json"])
        assert arguments["max_steps"] == 2
        assert arguments["hub_token"] in (None, "<HUB_TOKEN>")


class TestPull:
    def test_with_the_package_its_classes_are_used(self, circle):
        assert {module.partition(".")[0] for module in circle.local["modules"]} == {"amess_hf"}

    def test_without_it_the_repository_s_are(self, circle):
        assert {module.partition(".")[0] for module in circle.remote["modules"]} == {"transformers_modules"}
        revision = circle.local["commits"]["first"]
        assert all(revision in module for module in circle.remote["modules"])

    def test_answers_are_the_same(self, circle):
        for name in ("logits", "detector"):
            np.testing.assert_allclose(circle.remote[name], circle.local[name], atol=1e-6, rtol=0)
        assert circle.remote["anchors"] == circle.local["anchors"]

    def test_pipelines_say_the_same(self, circle):
        for remote, local in zip(circle.remote["pipeline"], circle.local["pipeline"], strict=True):
            assert [entry["label"] for entry in remote["predictions"]] == [e["label"] for e in local["predictions"]]
            assert remote["score"] == pytest.approx(local["score"], abs=1e-6)
            assert remote["in_scope"] == local["in_scope"] is not None
            assert remote["anchors"].keys() == local["anchors"].keys()
        assert [answer["in_scope"] for answer in circle.local["pipeline"]].count(True) == 2

    def test_refusal_without_consent_is_transformers_own(self, circle):
        assert len(circle.remote["refusals"]) == 5
        for refusal in circle.remote["refusals"]:
            assert re.match(r"ValueError: .*trust_remote_code=True", refusal, re.DOTALL), refusal
        assert circle.remote["fetched_before_consent"] == []

    def test_pinned_revision_is_not_the_latest(self, circle):
        np.testing.assert_allclose(circle.remote["bias_moved"], 1.0, atol=1e-6)

    def test_missing_video_library_is_named_when_it_is_needed(self, circle):
        assert circle.remote["clip_error"].startswith("ImportError")
        assert "pip install" in circle.remote["clip_error"]


def test_pushed_data_set_trains(circle):
    results = json.loads((circle.folder / "run-from-hub" / "all_results.json").read_text())
    assert 0 <= results["eval_accuracy"] <= 1
    assert results["train_loss"] > 0
    config = json.loads((circle.folder / "run-from-hub" / "config.json").read_text())
    assert [config[f"{name}_config"]["feature_size"] for name in ("audio", "video")] == [32, 24]
    assert len(config["id2label"]) == 20


class TestFolders:
    def test_only_what_belongs_on_the_hub_is_taken(self, tmp_path):
        names = ["config.json", "model.safetensors", "modeling_amess.py", "vocab.txt", "README.md"]
        others = ["training_args.bin", "optimizer.pt", "rng_state.pth", "predictions_dev.tsv", "own.py"]
        for name in [*names, *others, "trainer_state.json", "averaged_weights.safetensors"]:
            (tmp_path / name).write_text("x")
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2" / "config.json").write_text("x")
        assert files_for_hub(tmp_path) == sorted(names)

    def test_training_arguments_replace_the_pickle(self, tmp_path):
        (tmp_path / "training_args.bin").write_bytes(b"\x80\x04")
        arguments = AMESSTrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret", max_steps=7)
        save_for_hub(tmp_path, tiny_model(), training_args=arguments)
        text = (tmp_path / "training_args.json").read_text()
        assert json.loads(text)["max_steps"] == 7
        assert "hf_secret" not in text and str(tmp_path) not in text
        assert not (tmp_path / "training_args.bin").exists()
