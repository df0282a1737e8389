"""The record of a run's settings: all that change its result, and no others."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments
from utils import tiny_model

from amess_hf import AMESSForIntentClassification, AMESSTrainingArguments
from amess_hf.training.run_record import _RESULT_ARGUMENTS, _SELECTION_ARGUMENTS, model_digest


# Arguments of the package's own whose value a run may change and end the same.
NO_RESULT = {
    "output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "dataloader_num_workers",
    "remove_unused_columns",
    "hub_private_repo",
    "logging_steps",
    "logging_nan_inf_filter",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",  # counts with the number of processes, as `batch_size_of_all_devices`
}


def test_every_argument_is_one_or_the_other():
    own = set(AMESSTrainingArguments.__annotations__)
    known = {*_RESULT_ARGUMENTS, *_SELECTION_ARGUMENTS}
    assert own - known == NO_RESULT
    assert known <= {field.name for field in dataclasses.fields(AMESSTrainingArguments)}
    assert {"seed", "learning_rate", "max_steps"} <= {field.name for field in dataclasses.fields(TrainingArguments)}


class TestModelDigest:
    @pytest.fixture
    def loaded(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        return AMESSForIntentClassification.from_pretrained(tmp_path)

    def test_same_weights(self, loaded):
        again = AMESSForIntentClassification.from_pretrained(loaded.config._name_or_path)
        assert model_digest(loaded) == model_digest(again)

    @pytest.mark.parametrize("name", ["classifier.weight", "label_embeds", "amess.fusion.out_proj.bias"])
    def test_any_tensor_of_a_loaded_model(self, loaded, name):
        """Two trained models over one frozen encoder are two models."""
        before = model_digest(loaded)
        with torch.no_grad():
            loaded.state_dict()[name].reshape(-1)[0] += 1e-3
        assert model_digest(loaded) != before

    def test_a_new_model_is_its_encoder(self):
        one, other = tiny_model(), tiny_model()
        with torch.no_grad():
            other.classifier.weight[0, 0] += 1e-7
        assert model_digest(one) == model_digest(other)
        with torch.no_grad():
            next(other.amess.text_encoder.parameters())[0] += 1e-3
        assert model_digest(one) != model_digest(other)
