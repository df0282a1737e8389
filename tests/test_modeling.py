import math

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel
from utils import DESCRIPTIONS, LABELS, random_batch, rows_of, text_config, tiny_config, tiny_model

from amess_hf import AMESSForIntentClassification, AMESSModel
from amess_hf.configuration_amess import FUSION_TYPES
from amess_hf.layers_amess import masked_mean
from amess_hf.modeling_amess import LOSS_PARTS, AMESSClassifierOutput


def close(first, second, tolerance=1e-5):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=0)


class TestOutputs:
    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_shapes(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        outputs = model(**random_batch(model.config))
        assert outputs.logits.shape == (3, 4)
        assert outputs.pooler_output.shape == (3, 32)
        assert outputs.loss.shape == ()
        close(outputs.multimodal_embeds.norm(dim=-1), torch.ones(3))
        close(outputs.label_embeds.norm(dim=-1), torch.ones(4))
        assert (outputs.anchor_indices is not None) == ("anchor" in fusion_type)
        assert (outputs.evidence is not None) == (fusion_type in ("anchor", "late"))

    def test_anchors_are_tokens_that_are_there_best_first(self):
        model = tiny_model()
        batch = random_batch(model.config, text=(5, 0, 2), audio=(9, 4, 0), video=(6, 1, 3))
        outputs = model(**batch)
        indices, scores = outputs.anchor_indices, outputs.anchor_scores
        lengths = torch.tensor([[5, 9, 6], [0, 4, 1], [2, 0, 3]])
        present = indices >= 0
        assert torch.equal(present.sum(-1), lengths.clamp(max=3))
        assert (indices < lengths[..., None]).all()
        assert (scores[present] > 0).all() and (scores[present] <= 1).all() and (scores[~present] == 0).all()
        assert (scores.diff(dim=-1) <= 0).all()
        for clip in indices.flatten(0, 1).tolist():
            chosen = [index for index in clip if index >= 0]
            assert len(set(chosen)) == len(chosen)

    def test_hidden_states_and_attentions(self):
        model = tiny_model(num_fusion_layers=3)
        model.set_attn_implementation("eager")
        batch = random_batch(model.config)
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        assert [state.shape for state in outputs.hidden_states] == [(3, 9, 16)] * 4
        assert [weights.shape for weights in outputs.attentions] == [(3, 2, 9, 9 + 1 + 7 + 9 + 8)] * 3
        close(outputs.attentions[0].sum(-1), torch.ones(3, 2, 9))
        padded = outputs.attentions[0][1, :, :, 10 + 3 : 10 + 7]  # the second clip has 3 of 7 words
        assert padded.max() < 1e-6

    def test_attentions_need_eager(self):
        model = tiny_model()
        model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match="set_attn_implementation"):
            model(**random_batch(model.config), output_attentions=True)

    def test_tuple(self):
        model = tiny_model()
        batch = random_batch(model.config)
        logits = model(**batch).logits
        close(model(**batch, return_dict=False)[1], logits)
        model.config.return_dict = model.amess.config.return_dict = False
        close(model(**batch)[1], logits)

    def test_asked_by_the_configuration(self):
        model = tiny_model(output_hidden_states=True)
        assert len(model(**random_batch(model.config)).hidden_states) == model.config.num_fusion_layers + 1


class TestMasks:
    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_alone_or_batched_whatever_the_neighbors(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, text=(5, 3, 7, 0), audio=(9, 4, 1, 6), video=(6, 0, 12, 2), labels=False)
        logits = model(**batch).logits
        for row in range(4):
            close(model(**rows_of(batch, [row])).logits, logits[[row]])
        close(model(**rows_of(batch, [3, 1])).logits, logits[[3, 1]])

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_what_padding_holds_does_not_matter(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, labels=False)
        expected = model(**batch).logits
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 17)
        for name, filling in (("audio", 1e4), ("video", float("nan"))):
            padding = batch[f"{name}_attention_mask"].unsqueeze(-1) == 0
            batch[f"{name}_features"] = batch[f"{name}_features"].masked_fill(padding, filling)
        close(model(**batch).logits, expected)

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_permuted_batch(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, labels=False)
        order = torch.tensor([2, 0, 1])
        permuted = model(**{name: value[order] for name, value in batch.items()})
        close(permuted.logits, model(**batch).logits[order])

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    @pytest.mark.parametrize("absent", ["text", "audio", "video"])
    def test_absent_for_the_batch_is_absent_for_each_clip(self, fusion_type, absent):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, **{absent: (0, 0, 0)}, labels=False)
        without = {name: value for name, value in batch.items() if not name.startswith(absent)}
        if absent == "text":
            del without["input_ids"], without["attention_mask"]
        close(model(**without).logits, model(**batch).logits)

    def test_a_modality_that_the_model_lacks_is_ignored(self):
        model = tiny_model(video_config=None)
        batch = random_batch(model.config, labels=False)
        expected = model(**batch).logits
        close(model(**batch, video_features=torch.randn(3, 4, 5)).logits, expected)

    def test_words_alone(self):
        model = tiny_model(audio_config=None, video_config=None)
        outputs = model(**random_batch(model.config))
        assert torch.isfinite(outputs.loss)
        assert (outputs.anchor_indices[:, 1:] == -1).all()

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_clip_without_anything_is_finite(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        outputs = model(**random_batch(model.config, text=(0, 2), audio=(0, 3), video=(0, 4), labels=False))
        assert torch.isfinite(outputs.logits).all()

    def test_masks_default_to_ones(self):
        model = tiny_model()
        batch = random_batch(model.config, text=(4, 4), audio=(5, 5), video=(6, 6), labels=False)
        features = {name: value for name, value in batch.items() if not name.endswith("mask")}
        close(model(**features).logits, model(**batch).logits)

    def test_context_is_read_but_neither_summarized_nor_chosen(self):
        model = tiny_model()
        batch = random_batch(model.config, text=(7, 5), audio=(3, 2), video=(2, 4), labels=False)
        utterance = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0]])
        outputs = model(**batch, utterance_mask=utterance)
        texts = outputs.anchor_indices[:, 0]
        assert [sorted(clip) for clip in texts.tolist()][1] == [2, 3, 4] and (texts[0] >= 3).all()
        states, summary, mask = model.amess.encode_text(
            batch["input_ids"], batch["attention_mask"], utterance_mask=utterance
        )
        assert torch.equal(mask, utterance.bool())
        close(summary, torch.stack([states[0, 3:].mean(0), states[1, 2:5].mean(0)]))
        other = {**batch, "input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, 1] += 1
        assert (model(**other, utterance_mask=utterance).logits[0] - outputs.logits[0]).abs().max() > 1e-4

    def test_masked_mean(self):
        states = torch.tensor([[[1.0], [3.0], [100.0]], [[7.0], [8.0], [9.0]]])
        mask = torch.tensor([[True, True, False], [False, False, False]])
        close(masked_mean(states, mask), torch.tensor([[2.0], [0.0]]))


class TestAttentionAndPrecision:
    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_eager_equals_sdpa(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, text=(5, 0, 7), audio=(0, 4, 1), labels=False)
        model.set_attn_implementation("sdpa")
        expected = model(**batch).logits
        model.set_attn_implementation("eager")
        close(model(**batch).logits, expected)

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_bfloat16(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config)
        expected = model(**batch)
        outputs = model.to(torch.bfloat16)(**batch)
        close(outputs.logits.float(), expected.logits, 0.1)
        outputs.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)

    @pytest.mark.parametrize("fusion_type", ["anchor", "cross_modal"])
    def test_gradient_checkpointing_changes_nothing(self, fusion_type):
        gradients = []
        for checkpointing in (False, True):
            model = tiny_model(fusion_type=fusion_type, dropout=0.0, modality_dropout=0.0, **without_text_dropout())
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(**random_batch(model.config)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            close(gradient, gradients[1][name])

    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
    def test_text_encoders(self, model_type):
        model = tiny_model(text_config=text_config(model_type))
        batch = random_batch(model.config)
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        outputs = model(**batch)
        outputs.loss.backward()
        # Every weight takes part: DDP would stop at one that does not.
        idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert idle == []
        single = rows_of({name: value for name, value in batch.items() if name != "token_type_ids"}, [1])
        close(model(**single).logits, outputs.logits[[1]])


def without_text_dropout():
    encoder = text_config()
    encoder.hidden_dropout_prob = encoder.attention_probs_dropout_prob = 0.0
    return {"text_config": encoder}


class TestTraining:
    @pytest.mark.parametrize("fusion_type", ["anchor", "cross_modal", "mean"])
    def test_gradient_reaches_the_features(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config)
        for name in ("audio_features", "video_features"):
            batch[name].requires_grad_()
        model(**batch).loss.backward()
        for name in ("audio", "video"):
            gradient = batch[f"{name}_features"].grad.abs().sum(-1)
            there = batch[f"{name}_attention_mask"].bool()
            assert (gradient[there] > 0).all()
            assert (gradient[~there] == 0).all()

    def test_the_choice_of_anchors_learns(self):
        model = tiny_model()
        model(**random_batch(model.config)).loss.backward()
        fusion = model.amess.fusion
        for weight in (fusion.query.weight, *(layer.votes.weight for layer in fusion.evidence.values())):
            assert weight.grad.abs().sum() > 0

    def test_parts_add_up(self):
        model = tiny_model(outlier_exposure_loss_weight=0.7, label_smoothing=0.1)
        batch = random_batch(model.config)
        batch["labels"][1] = -1
        outputs, config = model(**batch), model.config
        total = (
            outputs.classification_loss
            + config.modality_loss_weight * (outputs.text_loss + outputs.audio_loss + outputs.video_loss)
            + config.label_triplet_loss_weight * outputs.label_triplet_loss
            + config.label_contrastive_loss_weight * outputs.label_contrastive_loss
            + config.batch_triplet_loss_weight * outputs.batch_triplet_loss
            + 0.7 * outputs.outlier_exposure_loss
        )
        close(outputs.loss.detach(), total)
        assert not outputs.label_triplet_loss.requires_grad
        assert {name for name in AMESSClassifierOutput.__annotations__ if name.endswith("_loss")} == set(LOSS_PARTS)

    def test_two_dropout_passes(self):
        model = tiny_model(consistency_loss_weight=1.0, dropout=0.5)
        batch = random_batch(model.config)
        assert model(**batch).consistency_loss is None
        outputs = model.train()(**batch)
        assert outputs.consistency_loss > 0

    def test_two_dropout_passes_give_one_row_for_each_clip(self):
        model = tiny_model(consistency_loss_weight=1.0).train()
        model.set_attn_implementation("eager")
        batch = random_batch(model.config)
        mask = torch.tensor([[True] * 4, [True] * 4, [True, False, True, True]])
        batch["labels"][2] = 0
        outputs = model(**batch, candidate_mask=mask, output_hidden_states=True, output_attentions=True)
        assert outputs.label_embeds.shape == (4, 12)
        assert (outputs.logits[~mask] == torch.finfo(torch.float32).min).all()
        for name in ("logits", "multimodal_embeds", "pooler_output", "anchor_indices", "anchor_scores"):
            assert len(outputs[name]) == 3, name
        assert {len(states) for states in (*outputs.hidden_states, *outputs.attentions)} == {3}
        with pytest.raises(ValueError, match=r"shape \(2,\) for 3 clips"):
            model(**{**batch, "labels": batch["labels"][:2]})

    def test_zero_weights_leave_cross_entropy(self):
        parts = ("modality", "label_triplet", "label_contrastive", "batch_triplet")
        weights = {f"{part}_loss_weight": 0 for part in parts}
        model = tiny_model(**weights, label_smoothing=0.0, label_similarity_weight=0.0)
        batch = random_batch(model.config)
        outputs = model(**batch)
        close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]))
        assert outputs.label_triplet_loss is None

    def test_only_the_words_are_smoothed_where_evidence_is_added(self):
        """Evidence that is sure would be contradicted by the fused state, which the words' loss cannot see."""
        batch = random_batch(tiny_config())
        for fusion_type, smoothed in (("anchor", False), ("late", False), ("mean", True), ("text", True)):
            plain, other = (tiny_model(fusion_type=fusion_type, label_smoothing=value) for value in (0.0, 0.3))
            other.load_state_dict(plain.state_dict())
            losses = [model(**batch).classification_loss for model in (plain, other)]
            assert torch.equal(*losses) != smoothed, fusion_type
            if not smoothed:
                assert not torch.equal(plain(**batch).text_loss, other(**batch).text_loss)

    def test_without_descriptions(self):
        model = tiny_model(label_descriptions=None)
        outputs = model(**random_batch(model.config))
        assert outputs.label_embeds is None and outputs.label_triplet_loss is None
        assert outputs.batch_triplet_loss is not None

    def test_modality_dropout_masks_one_modality_of_some_clips(self):
        model = tiny_model(modality_dropout=0.5).train()
        masks = {name: torch.ones(1000, 2, dtype=torch.bool) for name in ("text", "audio", "video")}
        masks["video"][:500] = False
        masks["audio"][:250] = False  # the first quarter has words alone
        dropped = model.amess._drop_modalities(masks)
        left = torch.stack([dropped[name].any(1) for name in masks], dim=1)
        before = torch.stack([masks[name].any(1) for name in masks], dim=1)
        lost = (before & ~left).sum(1)
        assert (lost <= 1).all() and left.any(1).all()
        assert (lost[:250] == 0).all()
        assert 200 < lost[500:].sum() < 300  # 250 expected, deviation 11

    def test_candidates_restrict_answers(self):
        model = tiny_model()
        batch = random_batch(model.config, labels=False)
        mask = torch.tensor([[True, False, True, False], [False, True, False, False], [True] * 4])
        logits = model(**batch, candidate_mask=mask).logits
        assert (logits.softmax(-1)[~mask] == 0).all()
        close(logits[2], model(**batch).logits[2])

    def test_unknown_label_id(self):
        model = tiny_model()
        batch = random_batch(model.config)
        batch["labels"][0] = 4
        with pytest.raises(ValueError, match="4 labels"):
            model(**batch)

    def test_a_label_for_each_clip(self):
        model = tiny_model()
        with pytest.raises(ValueError, match=r"`labels` has shape \(1,\) for 3 clips"):
            model(**{**random_batch(model.config), "labels": torch.tensor([0])})


class TestDescriptions:
    def refreshed(self, model, indices=(1, 3)):
        inputs = torch.randint(5, 64, (len(indices), 6))
        return {
            "description_input_ids": inputs,
            "description_attention_mask": torch.ones_like(inputs),
            "description_indices": torch.tensor(indices),
        }

    def test_memory_keeps_the_others(self):
        model = tiny_model().train()
        before = model.label_embeds.clone()
        outputs = model(**random_batch(model.config), **self.refreshed(model))
        close(model.label_embeds[[0, 2]], before[[0, 2]], 0)
        assert (model.label_embeds[[1, 3]] - before[[1, 3]]).abs().max() > 0.01
        close(outputs.label_embeds.detach(), model.label_embeds, 0)

    def test_gradient_reaches_the_text_encoder_through_descriptions(self):
        model = tiny_model()
        outputs = model(**random_batch(model.config), **self.refreshed(model))
        words = model.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(outputs.label_embeds[1].sum(), words, retain_graph=True)
        assert gradient.abs().sum() > 0
        (from_memory,) = torch.autograd.grad(outputs.label_embeds[0].sum(), words)
        assert from_memory.abs().sum() == 0

    def test_memory_is_still_in_evaluation(self):
        model = tiny_model()
        before = model.label_embeds.clone()
        model(**random_batch(model.config), **self.refreshed(model))
        close(model.label_embeds, before, 0)

    def test_encoding_is_the_mean_of_sentences(self, tokenizer):
        model = tiny_model()
        embeds = model.encode_label_descriptions(DESCRIPTIONS, tokenizer, batch_size=2)
        sentences = [
            torch.stack([model.encode_label_descriptions({"x": [s]}, tokenizer)[0] for s in group]).mean(0)
            for group in DESCRIPTIONS.values()
        ]
        close(embeds, torch.nn.functional.normalize(torch.stack(sentences), dim=-1))

    def test_new_label_set(self, tokenizer):
        model = tiny_model()
        old = model.classifier.weight.clone()
        model.set_label_descriptions({"Thank": "thanks you", "Dance": ["hello hello", "box"]}, tokenizer)
        assert model.config.id2label == {0: "Thank", 1: "Dance"}
        assert model.config.described_labels == ["Dance"]
        close(model.classifier.weight[0], old[LABELS.index("Thank")], 0)
        logits = model(**random_batch(model.config, labels=False)).logits
        assert logits.shape == (3, 2)
        close(logits.exp().sum(-1), torch.ones(3))

    def test_new_label_set_survives_saving(self, tokenizer, tmp_path):
        model = tiny_model()
        model.set_label_descriptions({"Thank": "thanks you", "Dance": ["hello hello", "box"]}, tokenizer)
        model.save_pretrained(tmp_path)
        loaded = AMESSForIntentClassification.from_pretrained(tmp_path)
        batch = random_batch(model.config, labels=False)
        close(loaded(**batch).logits, model(**batch).logits, 0)

    def test_no_projection(self, tokenizer):
        model = tiny_model(projection_dim=0)
        model.update_label_embeds(tokenizer)
        outputs = model(**random_batch(model.config))
        assert outputs.label_embeds.shape == (4, 32)
        close(outputs.multimodal_embeds, torch.nn.functional.normalize(outputs.pooler_output, dim=-1))
        sound = {name: value for name, value in random_batch(model.config, labels=False).items() if "audio" in name}
        assert model(**sound).multimodal_embeds.shape == (3, 32)

    def test_empty_description(self, tokenizer):
        with pytest.raises(ValueError, match="'Dance'"):
            tiny_model().set_label_descriptions({"Dance": ["hello", " "]}, tokenizer)
        with pytest.raises(ValueError, match="no intent is described"):
            tiny_model().set_label_descriptions({}, tokenizer)

    @pytest.mark.parametrize(
        "fields",
        [{"label_descriptions": None}, {"label_triplet_loss_weight": 0.0, "label_contrastive_loss_weight": 0.0}],
    )
    def test_a_model_that_was_trained_without(self, tokenizer, fields):
        model = tiny_model(**fields, label_similarity_weight=0.0)
        with pytest.raises(ValueError, match="has 'Dance', but this model was trained without descriptions") as error:
            model.set_label_descriptions({"Thank": "thanks you", "Dance": "box"}, tokenizer)
        assert "\n" not in str(error.value) and model.config.num_labels == 4
        batch = random_batch(model.config, labels=False)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        before = model(**batch).logits[:, [LABELS.index("Thank"), LABELS.index("Greet")]]
        model.set_label_descriptions({"Thank": "thanks you", "Greet": "hello"}, tokenizer)
        assert model.config.label_descriptions is None
        close(model(**batch).logits.softmax(-1), before.softmax(-1))

    def test_an_untrained_model_compares(self, tokenizer):
        model = tiny_model(label_descriptions=None, described_labels=LABELS)
        model.set_label_descriptions({"Dance": "box"}, tokenizer)
        assert model.config.label_descriptions == {"Dance": ["box"]}

    def test_no_tokenizer_to_be_found(self):
        with pytest.raises(ValueError, match="tokenizer"):
            tiny_model().set_label_descriptions({"Dance": "hello"})


class TestCombinedLogits:
    @pytest.mark.parametrize("fields", [{"label_similarity_weight": 0.0}, {"label_descriptions": None}])
    def test_classifier_alone(self, fields):
        model = tiny_model(**fields)
        class_logits, similarities = torch.randn(5, 4), torch.randn(5, 4)
        assert torch.equal(model.combine_logits(class_logits, similarities), class_logits)

    def test_similarity_alone(self):
        model = tiny_model(label_similarity_weight=1.0)
        class_logits, similarities = torch.randn(5, 4), torch.randn(5, 4)
        close(model.combine_logits(class_logits, similarities), similarities)

    def test_geometric_mean_of_both(self):
        model = tiny_model(label_similarity_weight=0.3)
        class_logits, similarities = torch.randn(5, 4), torch.randn(5, 4)
        expected = class_logits.softmax(-1) ** 0.7 * similarities.softmax(-1) ** 0.3
        combined = model.combine_logits(class_logits, similarities)
        close(combined.softmax(-1), expected / expected.sum(-1, keepdim=True))
        # surer clips stay surer: the energy is no constant
        assert combined.logsumexp(-1).std() > 0.1

    def test_by_hand_with_a_new_label(self):
        model = tiny_model(label_similarity_weight=0.5, described_labels=["Ask for help"])
        class_logits = torch.tensor([[math.log(2), math.log(1), math.log(1), 50.0]])  # 1/2, 1/4, 1/4; last unused
        similarities = torch.tensor([[math.log(1), math.log(2), math.log(1), math.log(4)]])  # 1/8, 2/8, 1/8, 4/8
        # by class, with the known labels' half: 1/4, 1/8, 1/8
        expected = [(1 / 4 * 1 / 8) ** 0.5, (1 / 8 * 2 / 8) ** 0.5, (1 / 8 * 1 / 8) ** 0.5, 1 / 2]
        close(model.combine_logits(class_logits, similarities), torch.tensor([expected]).log())


class TestSaving:
    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_nothing_is_lost(self, tmp_path, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert isinstance(loaded, AMESSForIntentClassification)
        assert loaded.config.label_descriptions == DESCRIPTIONS
        assert list(loaded.config.id2label.values()) == LABELS
        state = model.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, state[name]), name
        batch = random_batch(model.config)
        close(loaded(**batch).logits, model(**batch).logits, 0)

    def test_auto_model_has_the_same_embeddings(self, tmp_path):
        model = tiny_model()
        model.save_pretrained(tmp_path)
        base = AutoModel.from_pretrained(tmp_path)
        assert isinstance(base, AMESSModel)
        batch = random_batch(model.config, labels=False)
        close(base(**batch).multimodal_embeds, model(**batch).multimodal_embeds, 0)

    def test_from_text_pretrained(self, tmp_path, tokenizer):
        encoder = AutoModel.from_config(text_config())
        encoder.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        model = AMESSForIntentClassification.from_text_pretrained(
            tmp_path, labels=LABELS, label_descriptions=DESCRIPTIONS, audio_config={"feature_size": 6}, num_anchors=2
        )
        assert model.config.num_anchors == 2 and model.config.num_labels == 4
        for name, value in model.amess.text_encoder.state_dict().items():
            assert torch.equal(value, encoder.state_dict()[name])
        close(model.label_embeds, model.encode_label_descriptions(DESCRIPTIONS, tokenizer))
        assert model.label_embeds.norm(dim=-1).min() > 0.99

    def test_weights_stored_in_half_precision(self, tmp_path, tokenizer):
        """They are trained in float32 unless asked otherwise: in float16 training soon ends in NaN."""
        BertModel(text_config()).half().save_pretrained(tmp_path / "encoder")
        make = AMESSForIntentClassification.from_text_pretrained
        model = make(tmp_path / "encoder", labels=LABELS, label_descriptions=DESCRIPTIONS, tokenizer=tokenizer)
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
        model.save_pretrained(tmp_path / "model")
        again = AMESSForIntentClassification.from_pretrained(tmp_path / "model")
        assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
        as_stored = make(tmp_path / "encoder", labels=LABELS, dtype="auto")
        assert {parameter.dtype for parameter in as_stored.parameters()} == {torch.float16}

    def test_from_text_pretrained_needs_labels(self, tmp_path):
        with pytest.raises(ValueError, match="labels"):
            AMESSForIntentClassification.from_text_pretrained(tmp_path)


class TestBadInput:
    @pytest.mark.parametrize("base", [False, True])
    def test_unknown_argument(self, base):
        model = tiny_model().amess if base else tiny_model()
        with pytest.raises(TypeError, match="'audio_feature'"):
            model(**random_batch(model.config, labels=False), audio_feature=torch.zeros(3, 4, 6))

    def test_no_modality(self):
        with pytest.raises(ValueError, match="no modality"):
            tiny_model()()

    def test_wrong_width(self):
        model = tiny_model()
        with pytest.raises(ValueError, match="`audio_features` is 7 wide.* 6"):
            model(**random_batch(model.config, audio=None), audio_features=torch.randn(3, 4, 7))

    def test_wrong_shape(self):
        model = tiny_model()
        batch = random_batch(model.config, audio=None)
        with pytest.raises(
            ValueError, match=r"`audio_features` has shape \(3, 6\); it must be \(batch_size, length, 6\)"
        ):
            model(**batch, audio_features=torch.randn(3, 6))
        with pytest.raises(ValueError, match="different numbers of clips"):
            model(**batch, audio_features=torch.randn(1, 4, 6))

    @pytest.mark.parametrize("fusion_type", FUSION_TYPES)
    def test_no_frame_is_no_sound(self, fusion_type):
        model = tiny_model(fusion_type=fusion_type)
        batch = random_batch(model.config, audio=None)
        close(model(**batch, audio_features=torch.zeros(3, 0, 6)).logits, model(**batch).logits)


def test_initial_projection_keeps_angles():
    """Rows of the projection are orthonormal at first, so that a pretrained encoder's geometry is kept."""
    weight = AMESSModel(tiny_config()).projection.weight
    close(weight @ weight.T, torch.eye(12))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("fusion_type", ["anchor", "cross_modal", "mean", "text"])
def test_dynamic_int8_quantization(fusion_type):
    model = tiny_model(fusion_type=fusion_type)
    batch = random_batch(model.config, labels=False)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        logits, expected = quantized(**batch).logits, model(**batch).logits
    assert not torch.equal(logits, expected)  # something was quantized
    torch.testing.assert_close(logits, expected, atol=0.2 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_no_numbers(value):
    model = tiny_model()
    batch = random_batch(model.config, labels=False)
    with torch.no_grad():
        expected = model(**batch).logits
        batch["audio_features"][1, 5] = value  # padding: the second clip has four frames of sound
        torch.testing.assert_close(model(**batch).logits, expected)
        batch["audio_features"][1, 2] = value
        with pytest.raises(ValueError, match="`audio_features` holds NaN or infinite values where its mask is 1"):
            model(**batch)


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_offloaded_weights(fusion_type):
    """Each weight is read in the forward of its own module, where accelerate brings it back."""
    model = tiny_model(fusion_type=fusion_type)
    batch = random_batch(model.config)
    expected = model(**batch)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    outputs = model(**batch)
    close(outputs.loss, expected.loss)
    close(outputs.logits, expected.logits)


class TestVocabulary:
    def test_a_new_token_needs_an_embedding(self, tmp_path):
        model = tiny_model()
        with pytest.raises(ValueError, match=r"`input_ids` has 69, but .* 64 tokens; .*resize_token_embeddings"):
            model(input_ids=torch.tensor([[2, 69]]))
        model.resize_token_embeddings(70)
        model.save_pretrained(tmp_path)
        loaded = AMESSForIntentClassification.from_pretrained(tmp_path)
        assert loaded.config.text_config.vocab_size == 70
        close(loaded(input_ids=torch.tensor([[2, 69]])).logits, model(input_ids=torch.tensor([[2, 69]])).logits)


def test_late_fusion_of_text_alone():
    model = tiny_model(fusion_type="late", audio_config=None, video_config=None)
    text = tiny_model(fusion_type="text", audio_config=None, video_config=None)
    text.load_state_dict(model.state_dict())
    batch = random_batch(model.config)
    close(model(**batch).logits, text(**batch).logits)


@pytest.mark.parametrize(
    "fields", [{"r": "x"}, {"r": 10**9}, {"target_modules": 5}, {"bogus": 5}, {"init_lora_weights": "no such way"}]
)
def test_adapter_fields_that_peft_does_not_take(fields):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="`text_adapter` does not fit"):
        tiny_model(text_adapter=fields)
