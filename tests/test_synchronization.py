"""The balance between trained intents and those that are only described."""

import copy

import pytest
import torch
from utils import DESCRIPTIONS, LABELS, random_batch, tiny_model

from amess_hf import AMESSForIntentClassification
from amess_hf.anchor_embedding_amess import voted_labels
from amess_hf.synchronization_amess import balancing_offset, kept_share


class TestBalancingOffset:
    def test_keeps_the_share(self):
        trained, described = torch.randn(200, 7), torch.randn(200, 3)
        targets = torch.randint(0, 7, (200,))
        right = trained.argmax(-1) == targets
        for keep in (0.5, 0.8, 0.9):
            offset = balancing_offset(trained, described, targets, keep)
            kept = (trained.amax(-1) >= described.amax(-1) + offset - 1e-6) & right
            more = (trained.amax(-1) >= described.amax(-1) + offset + 1.0) & right
            assert kept.sum() >= keep * right.sum() > more.sum()

    def test_nothing_to_go_by(self):
        assert balancing_offset(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0]]), torch.tensor([1]), 0.9) == 0.0

    def test_more_intents_may_take_more(self):
        shares = [kept_share(20, added) for added in (1, 5, 20, 1000)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(1 - 1 / 42) and shares[-1] > 0.5


def lookup_model(tokenizer, **fields):
    """A model whose embedding of a sentence is the mean of its words', and whose classifier is sure of trained intents."""
    model = tiny_model(fusion_type="text", audio_config=None, video_config=None, projection_dim=0, **fields)
    generator = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=-1)
    names = list(model.config.label_descriptions)

    def encode(input_ids, attention_mask=None, token_type_ids=None, utterance_mask=None):
        states, mask = words[input_ids], attention_mask.bool()
        return states, (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), mask

    model.amess.encode_text = encode
    model.update_label_embeds(tokenizer)
    model.classifier.weight.data.copy_(8 * model.label_embeds)
    model.classifier.bias.data.zero_()
    assert names == [model.config.id2label[index] for index in range(len(names))]
    return model


def answers(model, tokenizer, sentences):
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.softmax(-1), [model.config.id2label[index] for index in logits.argmax(-1).tolist()]


class TestDescribedIntents:
    def test_a_new_intent_is_found_and_trained_ones_are_kept(self, tokenizer):
        model = lookup_model(tokenizer)
        model.set_label_descriptions({**DESCRIPTIONS, "Dance": ["box box no", "box no no"]}, tokenizer)
        assert model.config.described_labels == ["Dance"]
        probabilities, found = answers(model, tokenizer, ["box no", *(texts[0] for texts in DESCRIPTIONS.values())])
        assert found == ["Dance", *LABELS]
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))

    def test_the_constant_lifts_all_described_intents_alike(self, tokenizer):
        model = lookup_model(tokenizer)
        model.set_label_descriptions({**DESCRIPTIONS, "Dance": ["box no"], "Refuse": ["no never"]}, tokenizer)
        before, _ = answers(model, tokenizer, ["please hello box"])
        model.config.described_offset += 1.5
        after, _ = answers(model, tokenizer, ["please hello box"])
        ratio = (after / before)[0]
        torch.testing.assert_close(ratio[4] / ratio[0], torch.tensor(1.5).exp())
        torch.testing.assert_close(ratio[4], ratio[5])
        torch.testing.assert_close(ratio[0], ratio[3])

    def test_a_thousand_intents_with_one_sentence_each(self, tokenizer):
        model = lookup_model(tokenizer)
        words = "box no never yes so kind are with late again".split()
        added = {
            f"intent {index:03d}": " ".join(words[int(digit)] for digit in f"{index:03d}") for index in range(1000)
        }
        model.set_label_descriptions({**DESCRIPTIONS, **added}, tokenizer)
        probabilities, found = answers(model, tokenizer, [texts[0] for texts in DESCRIPTIONS.values()])
        assert probabilities.isfinite().all() and probabilities.shape == (4, 4 + len(added))
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
        assert sum(answer == label for answer, label in zip(found, LABELS, strict=True)) >= 2

    def test_one_that_means_the_same_shares(self, tokenizer):
        """Sentences of a trained intent and of its double go to these two, about half to each, and to no third intent."""
        thanks = [f"thanks you are {a} {b}" for a in ("so", "kind", "hello", "please") for b in ("you", "kind", "no")]
        descriptions = {**DESCRIPTIONS, "Thank": thanks}
        model = lookup_model(tokenizer, label_descriptions=descriptions)
        double = [f"thanks you are {a} {b}" for a in ("box", "me", "with", "kind") for b in ("you", "late", "so")]
        model.set_label_descriptions({**descriptions, "Express gratitude": double}, tokenizer)
        probabilities, found = answers(model, tokenizer, [*thanks, *double])
        assert set(found) == {"Thank", "Express gratitude"}
        both = probabilities[:, [LABELS.index("Thank"), 4]]
        assert (both.sum(-1) > 0.5).all()
        share = sum(answer == "Thank" for answer in found[:12]) / 12
        assert 0.25 <= share

    def test_all_trained_needs_no_constant(self, tokenizer):
        model = tiny_model()
        batch = random_batch(model.config, labels=False)
        model.update_label_embeds(tokenizer)
        before = model(**batch).logits
        model.set_label_descriptions(DESCRIPTIONS, tokenizer)
        assert model.config.described_offset == 0.0
        torch.testing.assert_close(model(**batch).logits, before)

    def test_the_constant_is_saved(self, tokenizer, tmp_path):
        model = tiny_model()
        model.set_label_descriptions({**DESCRIPTIONS, "Dance": ["box box no"]}, tokenizer)
        assert model.config.described_offset != 0.0
        model.save_pretrained(tmp_path)
        loaded = AMESSForIntentClassification.from_pretrained(tmp_path)
        assert loaded.config.described_offset == model.config.described_offset
        batch = random_batch(model.config, labels=False)
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)

    def test_order_of_the_intents_does_not_matter(self, tokenizer):
        model, other = (copy.deepcopy(tiny_model()) for _ in range(2))
        descriptions = {**DESCRIPTIONS, "Dance": ["box box no"], "Refuse": ["no never"]}
        model.set_label_descriptions(descriptions, tokenizer)
        other.set_label_descriptions(dict(reversed(descriptions.items())), tokenizer)
        assert model.config.described_offset == pytest.approx(other.config.described_offset, abs=1e-4)


def shown_clips(model, seed, count=4, burst=6.0):
    """Clips without text of an intent that a direction in some frames of audio and video tells, each a batch of one."""
    direction = torch.Generator().manual_seed(seed)
    signs = {n: torch.randn(c.feature_size, generator=direction) for n, c in model.config.feature_configs.items()}
    clips = []
    for number in range(count):
        batch = random_batch(model.config, text=(0,), audio=(9,), video=(8,), seed=100 * seed + number, labels=False)
        for name, sign in signs.items():
            batch[f"{name}_features"][0, number % 4 : number % 4 + 3] += burst * sign / sign.norm()
        clips.append(batch)
    return clips


class TestExamples:
    SENTENCES = {"Wave": ["box box no"], "Nod": ["no box again"], "Bow": ["late box"], "Clap": ["again late"]}

    @pytest.fixture(scope="class")
    def taught(self, tokenizer):
        """(model before, after, intents -> clips that were shown)."""
        before = tiny_model()
        examples = {name: shown_clips(before, seed) for seed, name in enumerate(self.SENTENCES, 1)}
        after = copy.deepcopy(before)
        after.set_label_descriptions({**DESCRIPTIONS, **self.SENTENCES}, tokenizer, examples)
        return before, after, examples

    @pytest.mark.parametrize("modality", ["audio", "video"])
    def test_what_only_one_modality_tells_is_learned(self, taught, modality):
        """Of 80 other clips with one modality, at least half: twice chance among the four new intents."""
        _, model, _ = taught
        right = []
        for seed, name in enumerate(self.SENTENCES, 1):
            for clip in shown_clips(model, seed, 24)[4:]:
                clip = {key: value for key, value in clip.items() if key.startswith(modality)}
                right.append(model.config.id2label[int(model(**clip).logits.argmax())] == name)
        assert sum(right) / len(right) >= 0.5

    def test_votes_count_where_no_intent_is_trained(self, taught, tokenizer):
        _, model, examples = copy.deepcopy(taught)
        model.set_label_descriptions(self.SENTENCES, tokenizer, examples)
        for seed, name in enumerate(self.SENTENCES, 1):
            answers = [int(model(**clip).logits.argmax()) for clip in shown_clips(model, seed, 24)[4:]]
            assert answers.count(model.config.label2id[name]) >= 10

    def test_an_example_counts_as_its_weight_in_sentences(self, tokenizer):
        model = tiny_model()
        clip = random_batch(model.config, text=(5,), audio=None, video=None, labels=False)
        embeds = torch.cat([model._embed_sentences(["box no"], tokenizer)[0]] + [model(**clip).multimodal_embeds] * 4)
        model.set_label_descriptions({**DESCRIPTIONS, "Dance": "box no"}, tokenizer, {"Dance": [clip]})
        torch.testing.assert_close(model.label_embeds[-1], torch.nn.functional.normalize(embeds.mean(0), dim=-1))

    def test_words_alone_teach_no_votes(self, tokenizer):
        model = tiny_model()
        words = random_batch(model.config, text=(5,), audio=(0,), video=None, labels=False)
        examples = {"Wave": shown_clips(model, 1), "Nod": [words]}
        model.set_label_descriptions({**DESCRIPTIONS, "Wave": "box box", "Nod": "no box"}, tokenizer, examples)
        known = len(DESCRIPTIONS)
        assert voted_labels(model.amess.fusion) == {*range(known), known}

    def test_order_changes_nothing(self, taught, tokenizer):
        model, after, examples = taught
        again = copy.deepcopy(model)
        backwards = {name: clips[::-1] for name, clips in reversed(examples.items())}
        again.set_label_descriptions({**DESCRIPTIONS, **self.SENTENCES}, tokenizer, backwards)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in after.state_dict().items())
        assert again.config.described_offset == after.config.described_offset

    def test_a_checkpoint_keeps_what_was_taught(self, taught, tmp_path):
        _, model, examples = taught
        model.save_pretrained(tmp_path)
        loaded = AMESSForIntentClassification.from_pretrained(tmp_path)
        clip = examples["Wave"][0]
        assert torch.equal(loaded(**clip).logits, model(**clip).logits)

    def test_removing_the_intents_brings_the_old_answers_back(self, taught, tokenizer):
        before, after, examples = taught
        before, again = copy.deepcopy(before), copy.deepcopy(after)
        before.update_label_embeds(tokenizer)
        stored = copy.deepcopy(before)
        before.set_label_descriptions({**DESCRIPTIONS, **self.SENTENCES}, tokenizer, examples)
        before.set_label_descriptions(DESCRIPTIONS, tokenizer)
        batch = random_batch(before.config)
        assert torch.equal(before(**batch).logits, stored(**batch).logits)
        assert not again.training

    def test_trained_labels_keep_their_votes(self, taught):
        before, after, examples = taught
        known = before.config.num_labels
        evidence = [model(**examples["Wave"][0]).evidence[..., :known] for model in (before, after)]
        torch.testing.assert_close(*evidence)
