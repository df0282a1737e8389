"""Every family of text encoders: built, called, trained, saved, padded, and used as its checkpoint asks."""

import json

import pytest
import torch
from encoder_texts import DECODERS, TEXT_ENCODERS, text_encoder_config, word_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTextEncoding, BartConfig, set_seed
from utils import LABELS, random_batch, tiny_config, tiny_model

from amess_hf import AMESSForIntentClassification, AMESSProcessor
from amess_hf.processing_amess import encode_texts
from amess_hf.text_encoders_amess import check_text_config, pool, text_encoder_fields


TEXTS = ["hello you are so kind", "thanks", "please help me with this box again"]


def model_of(model_type, **fields):
    """A model in evaluation mode."""
    pooling = "last" if model_type in DECODERS else "mean"
    return tiny_model(text_config=text_encoder_config(model_type), **{"text_pooling": pooling, **fields})


def tokenizer_of(model_type):
    """A tokenizer like the family's own."""
    return word_tokenizer({"gpt2": "gpt2"}.get(model_type, "llama" if model_type in DECODERS else "bert"))


def batch_of(model, tokenizer, texts, contexts=None, audio=(9, 4, 1), video=(6, 8, 2)):
    """Words, sound and picture of `texts`, each as long as it is."""
    batch = random_batch(model.config, None, audio[: len(texts)], video[: len(texts)], labels=False)
    return {**batch, **encode_texts(tokenizer, texts, contexts)}


def padded(batch, count, side, token=7):
    """A batch with `count` more tokens of padding on one side."""
    pad = (count, 0) if side == "left" else (0, count)
    text = {
        name: torch.nn.functional.pad(batch[name], pad)
        for name in ("attention_mask", "utterance_mask")
        if name in batch
    }
    return {**batch, **text, "input_ids": torch.nn.functional.pad(batch["input_ids"], pad, value=token)}


@pytest.mark.parametrize("model_type", TEXT_ENCODERS)
class TestFamilies:
    def test_trains_and_is_saved(self, model_type, tmp_path):
        model, tokenizer = model_of(model_type).train(), tokenizer_of(model_type)
        batch = {**batch_of(model, tokenizer, TEXTS), "labels": torch.tensor([0, 1, 3])}
        descriptions = encode_texts(tokenizer, ["hello you", "late again"])
        outputs = model(
            **batch,
            description_input_ids=descriptions["input_ids"],
            description_attention_mask=descriptions["attention_mask"],
            description_indices=torch.tensor([0, 2]),
        )
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        model.eval().save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    def test_padding_changes_nothing(self, model_type):
        model, tokenizer = model_of(model_type), tokenizer_of(model_type)
        contexts = [["no never"], [], ["hello", "thanks"]]
        for context in (None, contexts):
            batch = batch_of(model, tokenizer, TEXTS, context)
            expected = model(**batch)
            for side in ("left", "right"):
                other = model(**padded(batch, 3, side))
                torch.testing.assert_close(other.logits, expected.logits, atol=1e-5, rtol=0)
                moved = 3 if side == "left" else 0
                text, expected_text = other.anchor_indices[:, 0], expected.anchor_indices[:, 0]
                assert torch.equal(text, torch.where(expected_text < 0, expected_text, expected_text + moved))
            for number, text in enumerate(TEXTS):
                alone = encode_texts(tokenizer, [text], None if context is None else [context[number]])
                alone |= {name: batch[name][[number]] for name in batch if name.startswith(("audio", "video"))}
                torch.testing.assert_close(model(**alone).logits[0], expected.logits[number], atol=1e-5, rtol=0)

    def test_context_is_read_but_not_fused(self, model_type):
        model, tokenizer = model_of(model_type), tokenizer_of(model_type)
        batch = batch_of(model, tokenizer, TEXTS, [["no never"], ["yes"], ["late again", "hello"]])
        words = [
            [tokenizer.convert_ids_to_tokens(int(token)) for token in ids[mask.bool()]]
            for ids, mask in zip(batch["input_ids"], batch["utterance_mask"], strict=True)
        ]
        for found, text in zip(words, TEXTS, strict=True):
            assert [word for word in found if word not in ("<s>", "</s>")] == text.split()
        other = batch_of(model, tokenizer, TEXTS, [["kind box"], ["yes"], ["late again", "hello"]])
        logits, others = model(**batch).logits, model(**other).logits
        assert not torch.allclose(logits[0], others[0], atol=1e-4)
        torch.testing.assert_close(logits[1:], others[1:], atol=1e-5, rtol=0)

    def test_clip_without_words(self, model_type):
        model, tokenizer = model_of(model_type), tokenizer_of(model_type)
        batch = batch_of(model, tokenizer, ["", *TEXTS[1:]])
        assert not batch["attention_mask"][0].any()
        features = {name: value[:1] for name, value in batch.items() if name.startswith(("audio", "video"))}
        expected = model(**features).logits[0]
        torch.testing.assert_close(model(**batch).logits[0], expected, atol=1e-5, rtol=0)
        # Of a batch in which nobody speaks, some tokenizers make no token at all.
        silent = model(**features, **encode_texts(tokenizer, [" "]))
        torch.testing.assert_close(silent.logits[0], expected, atol=1e-5, rtol=0)

    def test_bfloat16_and_checkpointing(self, model_type):
        model, tokenizer = model_of(model_type, dropout=0.0, modality_dropout=0.0).train(), tokenizer_of(model_type)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        batch = {**batch_of(model, tokenizer, TEXTS), "labels": torch.tensor([0, 1, 3])}

        def gradients():
            model.zero_grad()
            set_seed(0)
            model(**batch).loss.backward()
            return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

        expected = gradients()
        model.gradient_checkpointing_enable()
        found = gradients()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
        model.gradient_checkpointing_disable()
        model.to(torch.bfloat16)
        batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
        assert all(torch.isfinite(gradient).all() for gradient in gradients().values())


class TestPretrained:
    @pytest.mark.parametrize("model_type", ["bert", "t5", "qwen3"])
    def test_weights_are_taken_over(self, model_type, tmp_path):
        set_seed(1)
        auto_class = AutoModelForTextEncoding if model_type == "t5" else AutoModel
        encoder = auto_class.from_config(text_encoder_config(model_type)).eval()
        encoder.save_pretrained(tmp_path)
        tokenizer = tokenizer_of(model_type)
        tokenizer.save_pretrained(tmp_path)
        model = AMESSForIntentClassification.from_text_pretrained(
            tmp_path, labels=LABELS, label_descriptions={label: ["hello you"] for label in LABELS}, fusion_type="text"
        ).eval()
        assert model.config.text_pooling == ("last" if model_type == "qwen3" else "mean")
        batch = encode_texts(tokenizer, TEXTS[:1])
        states = encoder(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        expected = states[:, -1] if model_type == "qwen3" else states.mean(1)
        torch.testing.assert_close(model(**batch).pooler_output, expected)

    def test_what_is_no_text_encoder(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is an A-MESS model, not a text encoder"):
            AMESSForIntentClassification.from_text_pretrained(tmp_path, labels=LABELS)
        with pytest.raises(ValueError, match="bart model with a decoder"):
            check_text_config(BartConfig(), "bart")


class TestDescriptionsInTurns:
    @pytest.mark.parametrize("count", [3, 4, 9])
    def test_same_gradients(self, count, monkeypatch):
        tokenizer, labels = tokenizer_of("bert"), [f"intent {number}" for number in range(count)]
        model = tiny_model(id2label=dict(enumerate(labels)), label_descriptions={name: ["hello"] for name in labels},
                           dropout=0.0, modality_dropout=0.0, text_config=text_encoder_config("distilbert")).train()  # fmt: skip
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        batch = {**batch_of(model, tokenizer, TEXTS), "labels": torch.tensor([0, 1, 2])}
        described = encode_texts(tokenizer, [f"{TEXTS[number % 3]} {number * 'a '}" for number in range(count)])
        descriptions = {
            "description_input_ids": described["input_ids"],
            "description_attention_mask": described["attention_mask"],
            "description_indices": torch.arange(count),
        }
        memory = model.label_embeds.clone()
        found = []
        for together in (count, 2):
            monkeypatch.setattr("amess_hf.synchronization_amess.SENTENCES_AT_A_TIME", together)
            model.zero_grad()
            model.label_embeds.copy_(memory)
            outputs = model(**batch, **descriptions)
            outputs.loss.backward()
            found.append((outputs.label_embeds.detach(), [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


class TestUsage:
    def fields(self, folder, config="bert", **files):
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".json").write_text(json.dumps(content))
        return text_encoder_fields(folder, text_encoder_config(config))

    def test_without_files(self, tmp_path):
        assert self.fields(tmp_path) == {"text_pooling": "mean"}
        assert self.fields(tmp_path, "gpt2") == {"text_pooling": "last"}

    @pytest.mark.parametrize(
        "settings, pooling",
        [
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
            ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
            ({"pooling_mode_lasttoken": True}, "last"),
            ({"pooling_mode": "lasttoken"}, "last"),
            ({"pooling_mode_max_tokens": True}, "mean"),
        ],
    )
    def test_pooling(self, settings, pooling, tmp_path):
        modules = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        assert self.fields(tmp_path, modules=modules, **{"1_Pooling__config": settings}) == {"text_pooling": pooling}

    def test_prompts(self, tmp_path):
        prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}
        assert self.fields(tmp_path, config_sentence_transformers=prompts) == {
            "text_pooling": "mean", "text_prefix": "query: ", "description_prefix": "passage: "
        }  # fmt: skip
        prompts = {"prompts": {"classify": "Instruct: "}, "default_prompt_name": "classify"}
        assert self.fields(tmp_path, config_sentence_transformers=prompts)["text_prefix"] == "Instruct: "

    def test_broken_file(self, tmp_path):
        (tmp_path / "modules.json").write_text("[{")
        with pytest.raises(ValueError, match=r"modules\.json is not valid JSON"):
            text_encoder_fields(tmp_path, text_encoder_config("bert"))

    def test_minilm(self, minilm):
        from transformers import AutoConfig

        assert text_encoder_fields(minilm, AutoConfig.from_pretrained(minilm)) == {"text_pooling": "mean"}

    @pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
    def test_prefix_is_read_but_not_fused(self, kind):
        tokenizer = word_tokenizer(kind)
        batch = encode_texts(tokenizer, TEXTS, [["no never"], [], []], max_length=7, prefix="so late: ")
        for ids, mask, utterance, text in zip(
            batch["input_ids"], batch["attention_mask"], batch["utterance_mask"], TEXTS, strict=True
        ):
            read = tokenizer.convert_ids_to_tokens(ids[mask.bool()])
            assert read[:4] in (
                ["<s>", "so", "late", ":"],
                ["so", "late", ":", text.split()[0]],
                ["so", "late", ":", "no"],
            )
            words = [word for word in tokenizer.convert_ids_to_tokens(ids[utterance.bool()]) if word[0] != "<"]
            assert [word for word in words if word != ":"] == text.split()[: {"bert": 5, "llama": 6, "gpt2": 7}[kind]]

    def test_prefix_goes_from_configuration_to_batch(self):
        tokenizer, config = word_tokenizer("bert"), tiny_config(text_prefix="so late: ")
        processor = AMESSProcessor.for_model(config, tokenizer)
        batch = processor(text=TEXTS)
        assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0, 1:4]) == ["so", "late", ":"]
        with pytest.raises(ValueError, match="`text_prefix`"):
            processor.check_model(tiny_config())


class TestPool:
    def test_by_hand(self):
        states = torch.arange(24.0).view(2, 4, 3)
        utterance = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool()
        for pooling, expected in (("mean", states[0, 1:3].mean(0)), ("cls", states[0, 0]), ("last", states[0, 2])):
            assert torch.equal(pool(states, utterance, pooling), torch.stack([expected, torch.zeros(3)])), pooling

    def test_unknown(self):
        with pytest.raises(ValueError, match="`text_pooling` is 'max'; it must be one of mean, cls, last"):
            tiny_config(text_pooling="max")
