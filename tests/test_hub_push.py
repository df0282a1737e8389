"""What a push uploads, removes and is called, on a Hub on loopback."""

import pytest
from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from utils import tiny_model

from amess_hf import AMESSTrainer, AMESSTrainingArguments, push_to_hub
from amess_hf.hub import push_folder


REPO = "org/model"


def titles(hub, repo_id=REPO):
    return [commit.title for commit in hub.repository(repo_id).history("main")][:-1]


class TestFolder:
    @pytest.fixture
    def push(self, hub, tmp_path):
        """Push a folder with just these files, over what the repository has."""
        HfApi(token=hub.token).create_repo(REPO, exist_ok=True)

        def push(*names):
            folder = tmp_path / str(len(titles(hub)))
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(name)
            push_folder(folder, REPO, hub.token)
            return set(hub.files(REPO))

        return push

    def test_what_an_earlier_model_had_is_removed_and_the_rest_is_kept(self, hub, push):
        kept = {"README.md", "all_results.json", "vocab.txt"}
        weights = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        stale = {*weights, "model.safetensors.index.json", "old_amess.py", "oos_detector.json"}
        stale |= {"oos_detector.safetensors"}
        assert push("config.json", *kept, *stale) == {"config.json", *kept, *stale}
        assert push("config.json", "model.safetensors") == {"config.json", "model.safetensors", *kept}
        assert len(titles(hub)) == 2

    def test_nothing_is_removed_where_the_folder_has_no_model(self, push):
        push("config.json", "model.safetensors")
        assert push("README.md") == {"README.md", "config.json", "model.safetensors"}

    def test_folders_are_neither_uploaded_nor_cleared(self, hub, push, tmp_path):
        push("config.json", "model.safetensors", "checkpoint-2/config.json")
        (tmp_path / "state").mkdir()
        for name in ("model.safetensors", "old_amess.py"):
            (tmp_path / "state" / name).write_text("x")
        HfApi(token=hub.token).upload_folder(
            repo_id=REPO, folder_path=tmp_path / "state", path_in_repo="last-checkpoint"
        )
        files = push("config.json", "reports/report.md")
        assert files == {"config.json", "last-checkpoint/model.safetensors", "last-checkpoint/old_amess.py"}


class TestTrainer:
    @pytest.fixture
    def trainer(self, hub, tmp_path, tokenizer):
        arguments = AMESSTrainingArguments(
            output_dir=str(tmp_path / "run"), hub_token=hub.token, eval_strategy="no", load_best_model_at_end=False
        )
        return AMESSTrainer(model=tiny_model(), args=arguments, processing_class=tokenizer)

    @pytest.mark.parametrize("named", [{}, {"repo_id": REPO}])
    def test_repository_is_the_first_argument_or_named(self, hub, trainer, named):
        message = ["With a name"] if named else [REPO]
        commit = trainer.push_to_hub(*message, **named)
        assert commit.oid == hub.repository(REPO).history("main")[0].sha
        assert titles(hub) == ["With a name" if named else "End of training"]
        files = hub.files(REPO)
        assert {"model.safetensors", "processor_config.json", "modeling_amess.py", "training_args.json"} <= set(files)
        assert b"org/model" in files["README.md"]
        assert trainer.args.hub_model_id is None, "arguments that are given are not changed"

    def test_later_pushes_go_to_the_same_repository(self, hub, trainer):
        trainer.push_to_hub(REPO, private=True)
        (bias,) = (p for name, p in trainer.model.named_parameters() if name == "classifier.bias")
        bias.data += 1
        trainer.push_to_hub("and/or moved, with a message")
        assert titles(hub) == ["and/or moved, with a message", "End of training"]
        assert list(hub.repositories) == [("model", REPO)] and hub.repository(REPO).private

    def test_card_on_the_hub_is_not_overwritten(self, hub, trainer):
        api = HfApi(token=hub.token)
        api.create_repo(REPO)
        api.upload_file(path_or_fileobj=b"edited", path_in_repo="README.md", repo_id=REPO)
        trainer.push_to_hub(REPO)
        assert hub.files(REPO)["README.md"] == b"edited"

    @pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
    def test_checkpoint_is_pushed_in_the_background(self, hub, trainer, tmp_path, strategy):
        trainer.args.hub_strategy = HubStrategy(strategy)
        trainer.push_to_hub(REPO)
        checkpoint = tmp_path / "checkpoint-7"
        checkpoint.mkdir()
        for name in ("config.json", "optimizer.pt", "trainer_state.json"):
            (checkpoint / name).write_text(name)
        trainer.state.global_step = 7
        trainer._push_from_checkpoint(str(checkpoint))
        trainer._finish_current_push()
        folder = {"every_save": None, "checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-7"}[strategy]
        below = {path for path in hub.files(REPO) if "/" in path}
        names = ("config.json", "optimizer.pt", "trainer_state.json")
        assert below == ({f"{folder}/{name}" for name in names} if folder else set())
        assert "optimizer.pt" not in hub.files(REPO) and hub.files(REPO)["config.json"] == b"config.json"
        assert "Training in progress, step 7" in titles(hub)


def test_missing_repository_is_said():
    with pytest.raises(ValueError, match='`repo_id` is missing; give the repository to push to, "organization/name"'):
        push_to_hub(tiny_model())
