"""Parameter groups, averages of the weights, and LoRA: what is trained, saved, loaded, merged and resumed."""

import json
import re
import shutil
import sys

import distributed_worker
import pytest
import torch
from encoder_texts import TEXT_ENCODERS, text_encoder_config
from transformers import AutoModel, AutoModelForSequenceClassification, BitsAndBytesConfig
from utils import random_batch, tiny_model

from amess_hf import AMESSTrainer, AMESSTrainingArguments
from amess_hf.hub import push_folder, push_to_hub, save_for_hub
from amess_hf.modeling_amess import AMESSForIntentClassification
from amess_hf.text_encoders_amess import is_quantized
from amess_hf.training import WeightAverage, add_lora, merge_lora, parameter_groups
from amess_hf.training.arguments import default_learning_rate


def adapted(folder, model_type="bert", with_base=True):
    """A model whose adapter is no longer zero, and its text encoder in `folder`."""
    model = tiny_model(text_config=text_encoder_config(model_type))
    model.amess.text_encoder.save_pretrained(folder)
    add_lora(model, rank=4, base_model_name_or_path=folder if with_base else None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def arguments(folder, **fields):
    return AMESSTrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **fields)


def weight_names(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def rates_and_decays(model, args):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, args)
        for parameter in group["params"]
    }


class TestParameterGroups:
    @pytest.mark.parametrize("model_type", TEXT_ENCODERS)
    def test_every_parameter_once_with_its_rate(self, tmp_path, model_type):
        """Half the rate for each layer below the last, of two; ALBERT has one layer, which is called twice."""
        model = tiny_model(text_config=text_encoder_config(model_type))
        rates = {"learning_rate": 1.0, "head_learning_rate": 3.0, "layer_decay": 0.5}
        args = arguments(tmp_path, **rates, weight_decay=0.2, head_weight_decay=0.4)
        found = rates_and_decays(model, args)
        assert found.keys() == {name for name, _ in model.named_parameters()}
        for name, (rate, decay) in found.items():
            in_encoder = ".text_encoder." in name
            number = re.search(r"(layers?|block|h)\.(\d)\.", name) if model_type != "albert" else None
            if not in_encoder:
                assert rate == 3.0, name
            elif number:
                assert rate == 0.5 ** (1 - int(number.group(2))), name
            assert decay in (0, 0.2 if in_encoder else 0.4), name
            assert decay == 0 or not name.endswith("bias"), name
            assert decay > 0 or not name.endswith(("out_proj.weight", "dense.weight")), name
        embedding = next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight)
        assert found[embedding][0] == 0.25
        in_encoder = {rate for name, (rate, _) in found.items() if ".text_encoder." in name}
        assert in_encoder == ({1.0, 0.25} if model_type == "albert" else {1.0, 0.5, 0.25})

    def test_frozen_parameters_are_left_out(self, tmp_path):
        model = tiny_model()
        model.get_input_embeddings().requires_grad_(False)
        rates = rates_and_decays(model, arguments(tmp_path, learning_rate=1e-4))
        assert not any("word_embeddings" in name for name in rates)


class TestWeightAverage:
    def test_slow_loop(self):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        average = WeightAverage(layer, decay=0.3)
        expected = layer.weight.detach().clone()
        for update in range(1, 9):
            with torch.no_grad():
                layer.weight.add_(torch.randn(2, 3))
            average.update()
            decay = min(0.3, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * layer.weight.detach()
        torch.testing.assert_close(average.averages["weight"], expected)

    def test_applied_and_back(self):
        layer = torch.nn.Linear(3, 2)
        average = WeightAverage(layer, 0.9)
        own = layer.weight.detach().clone()
        average.averages["weight"].fill_(7.0)
        with pytest.raises(KeyError), average.applied():
            assert (layer.weight == 7).all()
            raise KeyError
        assert torch.equal(layer.weight, own)
        assert (average.averages["weight"] == 7).all()
        average.apply()
        assert (layer.weight == 7).all()

    def test_saved_and_loaded(self, tmp_path):
        layer = torch.nn.Linear(3, 2)
        average = WeightAverage(layer, 0.9)
        for _ in range(3):
            with torch.no_grad():
                layer.weight.add_(1.0)
            average.update()
        average.save(tmp_path)
        other = WeightAverage(torch.nn.Linear(3, 2), 0.9)
        other.load(tmp_path)
        assert int(other.updates) == 3
        for name, value in average.averages.items():
            assert torch.equal(other.averages[name], value)
        assert [path.name for path in tmp_path.iterdir()] == ["averaged_weights.safetensors"]


class TestAdapters:
    def test_starts_as_the_model_was(self):
        model = tiny_model()
        batch = random_batch(model.config)
        expected = model(**batch).logits
        assert torch.equal(add_lora(model, rank=4)(**batch).logits, expected)

    @pytest.mark.parametrize("model_type", TEXT_ENCODERS)
    def test_what_is_trained(self, model_type):
        model = add_lora(tiny_model(text_config=text_encoder_config(model_type)), rank=2).train()
        model(**random_batch(model.config)).loss.backward()
        for name, parameter in model.named_parameters():
            frozen = "text_encoder" in name and "lora_" not in name
            assert parameter.requires_grad is not frozen and (parameter.grad is None) is frozen, name
        assert any("lora_A" in name for name, _ in model.named_parameters())

    def test_target_modules(self):
        model = add_lora(tiny_model(), rank=2, target_modules=["query", "value"])
        names = {name.split(".lora_")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_" in name}
        assert names == {"query", "value"}
        with pytest.raises(ValueError, match="does not fit a BertModel: .*nowhere"):
            add_lora(tiny_model(), target_modules=["nowhere"])
        with pytest.raises(ValueError, match="does not fit a BertModel: .*`r`"):
            add_lora(tiny_model(), rank=0)
        with pytest.raises(ValueError, match="already has an adapter"):
            add_lora(model)

    @pytest.mark.parametrize("with_base", [True, False])
    def test_saved_and_loaded(self, with_base, tmp_path):
        model = adapted(tmp_path / "base", with_base=with_base)
        batch = random_batch(model.config)
        expected = model(**batch)
        model.save_pretrained(tmp_path / "adapter")
        # Frozen weights are left out only where they can be had from elsewhere.
        frozen = {
            name for name in weight_names(tmp_path / "adapter") if "text_encoder" in name and "lora_" not in name
        }
        assert bool(frozen) is not with_base
        loaded, report = AMESSForIntentClassification.from_pretrained(tmp_path / "adapter", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        for again in (loaded, AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")):
            outputs = again(**batch)
            assert torch.equal(outputs.logits, expected.logits)
            assert torch.equal(outputs.label_embeds, expected.label_embeds)
        part = AutoModel.from_pretrained(tmp_path / "adapter")
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        assert torch.equal(part(**inputs).multimodal_embeds, expected.multimodal_embeds)
        # It can be saved again as it was.
        loaded.save_pretrained(tmp_path / "again")
        assert weight_names(tmp_path / "again") == weight_names(tmp_path / "adapter")

    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
    def test_merged(self, model_type, tmp_path):
        model = adapted(tmp_path / "base", model_type)
        batch = random_batch(model.config)
        expected = model(**batch).logits
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["text_adapter"] is None
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        assert model.config.text_adapter is not None and torch.equal(model(**batch).logits, expected)
        merge_lora(model)
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        assert set(model.state_dict()) == set(plain.state_dict())
        assert all(parameter.requires_grad for parameter in model.parameters())
        model.save_pretrained(tmp_path / "whole")
        assert weight_names(tmp_path / "whole") == weight_names(tmp_path / "merged")

    def test_another_base_is_refused(self, tmp_path):
        adapted(tmp_path / "base").save_pretrained(tmp_path / "adapter")
        tiny_model(seed=7).amess.text_encoder.save_pretrained(tmp_path / "base")
        with pytest.raises(ValueError, match="base has other weights than the adapter was trained on"):
            AMESSForIntentClassification.from_pretrained(tmp_path / "adapter")
        shutil.rmtree(tmp_path / "base")
        with pytest.raises(OSError, match="base"):
            AMESSForIntentClassification.from_pretrained(tmp_path / "adapter")

    def test_without_peft(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"amess_hf\[peft\]"):
            add_lora(tiny_model())

    def test_save_for_hub_merges(self, tmp_path):
        model = adapted(tmp_path / "base")
        save_for_hub(tmp_path / "merged", model)
        save_for_hub(tmp_path / "adapter", model, merge_adapter=False)
        assert not any("lora_" in name for name in weight_names(tmp_path / "merged"))
        assert any("lora_" in name for name in weight_names(tmp_path / "adapter"))

    def test_push_merges(self, hub, tmp_path):
        from huggingface_hub import HfApi

        model = adapted(tmp_path / "base")
        model.save_pretrained(tmp_path / "adapter")
        HfApi(token=hub.token).create_repo("org/lora")
        push_folder(tmp_path / "adapter", "org/lora", token=hub.token)
        loaded = AMESSForIntentClassification.from_pretrained("org/lora", token=hub.token)
        push_to_hub(model, repo_id="org/model", token=hub.token)
        batch = random_batch(model.config)
        for pushed in (loaded, AMESSForIntentClassification.from_pretrained("org/model", token=hub.token)):
            assert pushed.config.text_adapter is None
            torch.testing.assert_close(pushed(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
        assert model.config.text_adapter is not None
        assert any("lora_" in name for name in weight_names(tmp_path / "adapter"))


class TestTraining:
    def test_learning_rates(self, tmp_path):
        model = add_lora(tiny_model(), rank=2)
        assert default_learning_rate(model.config) == pytest.approx(7e-4)
        args = arguments(tmp_path, learning_rate=1.0, layer_decay=0.5, head_learning_rate=3.0)
        rates = {name: rate for name, (rate, _) in rates_and_decays(model, args).items()}
        for name, _ in model.named_parameters():
            if "lora_" in name:
                assert rates[name] == (1.0 if ".layer.1." in name else 0.5)
            else:
                assert rates.get(name) == (None if "text_encoder" in name else 3.0)

    def test_trains_resumes_and_loads(self, tmp_path):
        model = adapted(tmp_path / "base")
        clips = distributed_worker.make_clips(9, seed=3)

        def run(model, folder, steps, **fields):
            trainer = AMESSTrainer(
                model,
                arguments(folder, max_steps=steps, save_strategy="steps", save_steps=2, eval_strategy="no",
                          load_best_model_at_end=False, weight_averaging=0.9, gradient_checkpointing=True, **fields),
                train_dataset=clips,
                processing_class=distributed_worker.make_tokenizer(),
            )  # fmt: skip
            trainer.train(resume_from_checkpoint=(folder / "checkpoint-2").is_dir())
            trainer.save_model()
            return trainer.model.eval()

        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        whole = run(model, tmp_path / "whole", 4)
        moved = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
        assert any("lora_A" in name for name in moved) and "classifier.weight" in moved
        assert not any("base_layer" in name for name in moved)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
        batch = random_batch(model.config)
        assert torch.equal(loaded(**batch).logits, whole(**batch).logits)
        shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
        resumed = run(adapted(tmp_path / "base"), tmp_path / "parts", 4)
        torch.testing.assert_close(resumed(**batch).logits, whole(**batch).logits)

    def test_model_of_peft_is_refused(self, tokenizer, tmp_path):
        import peft

        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))
        with pytest.raises(ValueError, match="without the label embeddings; .*add_lora"):
            AMESSTrainer(model, arguments(tmp_path), processing_class=tokenizer)


class TestQuantized:
    """An encoder in 8 bits; those of 4 bits need an accelerator."""

    @pytest.fixture
    def model(self, tmp_path):
        pytest.importorskip("bitsandbytes", reason='pip install "amess_hf[quantization]"')
        torch.manual_seed(0)
        AutoModel.from_config(text_encoder_config("bert")).save_pretrained(tmp_path / "encoder")
        distributed_worker.make_tokenizer().save_pretrained(tmp_path / "encoder")
        return AMESSForIntentClassification.from_text_pretrained(
            tmp_path / "encoder",
            labels=["a", "b", "c", "d"],
            fusion_type="text",
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )

    def test_trains_and_loads(self, model, tmp_path):
        add_lora(model, rank=4, base_model_name_or_path=tmp_path / "encoder")
        layer = next(module for module in model.modules() if type(module).__name__ == "Linear8bitLt")
        before = layer.weight.detach().clone()
        clips = [{"id": str(n), "text": f"w{n % 4} w5", "label": n % 4} for n in range(8)]
        args = arguments(tmp_path / "run", max_steps=4, eval_strategy="no", load_best_model_at_end=False)
        trainer = AMESSTrainer(model, args, train_dataset=clips, processing_class=distributed_worker.make_tokenizer())
        trainer.train()
        trainer.save_model()
        assert torch.equal(layer.weight, before)
        assert not any("encoder.layer" in name and "lora" not in name for name in weight_names(tmp_path / "run"))
        loaded = AMESSForIntentClassification.from_pretrained(tmp_path / "run")
        assert not is_quantized(loaded.amess.text_encoder)
        batch = random_batch(model.config, audio=None, video=None)
        with torch.no_grad():
            rounded, whole = (each.eval()(**batch).logits.float() for each in (model, loaded))
        # Apart from what rounding the frozen weights to 8 bits changes.
        assert torch.cosine_similarity(rounded, whole).min() > 0.98
        merge_lora(loaded)

    def test_where_its_weights_are_must_be_known(self, model):
        with pytest.raises(ValueError, match="is quantized and its weights are not saved; give `base_model_name"):
            add_lora(model, rank=4)

    def test_it_is_not_merged(self, model, tmp_path):
        add_lora(model, rank=4, base_model_name_or_path=tmp_path / "encoder")
        with pytest.raises(ValueError, match="an adapter is not merged into rounded weights"):
            merge_lora(model)
        with pytest.raises(ValueError, match="an adapter is not merged into rounded weights"):
            model.save_pretrained(tmp_path / "merged", merge_adapter=True)
