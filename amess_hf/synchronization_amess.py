"""SS, semantic synchronization (A-MESS, arXiv 2503.19474): clips and descriptions of intents in one space.

A language model describes each intent y in a few sentences. The model embeds a sentence as it would a clip that has only
text; d_y is the mean of the sentences of y, scaled to unit length. A clip x and a description are compared by
s(x, y) = x · d_y, and by l(x, y) = s(x, y) / temperature (`similarity_logits`), which is learned. In training, the sentence
of an intent that the batch brings along stands for d_y, with gradient; d_y of the others is stored (`label_embeds`).

1. *Triplet* (`label_triplet_loss`): max(0, margin + max_{j != y} s(x, j) - s(x, y)), the form of FaceNet (Schroff et al.,
   CVPR 2015, eq. 2) on cosine similarity.
2. *Contrastive* (`classification_loss` of l): -log softmax(l)_y, InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4).
3. *Batch triplet* (`batch_triplet_loss`): for a clip a, the mean over the clips p of its intent of max(0, margin + s(a, n) -
   s(a, p)), n being the most similar clip of another intent. In training the clips are those of all processes, gradient
   included; with gradient accumulation, those of one micro-batch.
4. *Answer* (`combine_logits`), w = `label_similarity_weight`: (1 - w) classifier + w l + evidence.
5. *Described intents* have sentences, and examples that a person showed, but the classifier was not trained on them. An
   example that has text is embedded as any clip and counts in d_y as often as `EXAMPLE_WEIGHT` sentences. They are scored by l
   plus an offset o (calibrated stacking, Chao et al., ECCV 2016). With m = max trained score - max described l, each sentence
   or example being left out of its own d_y: o_1 (`balancing_offset`) is the largest with which the fraction `kept_share` of the
   sentences about trained intents that are answered correctly stays correct, a quantile of their m; o_2 gives the fraction
   `FOUND_SHARE` of the n examples to a described intent; o = (1 - q) o_1 + q o_2 with q = n / (n + `ENOUGH_EXAMPLES`).
6. *Votes of examples* (`teach_votes` of A-ME): audio and video learn to vote for a described intent from its examples.

The paper names the triplet contrastive learning; its formulas were not available, and these are the textbook forms.
"""

import functools
import math
import warnings
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .anchor_embedding_amess import teach_votes, voted_labels
from .configuration_amess import OUT_OF_SCOPE_ID, TRAINING_SENTENCES, check_sentences, text_positions
from .loss_amess import classification_loss, num_processes, restrict
from .processing_amess import encode_texts


# Chunk of descriptions that a training step encodes at a time, where there are more than twice as many.
SENTENCES_AT_A_TIME = 8
# Sentences of a trained intent, beyond those that training draws from, that are used to balance described intents.
PROBES = 24
# Tokens of a description that are read.
MAX_DESCRIPTION_LENGTH = 128
# Sentences that an example outweighs; 2 and 8 were not better on MIntRec's dev split (four folds, ten draws of 1, 4, 16).
EXAMPLE_WEIGHT = 4
# The share of the examples that are to be answered with a described intent, and the number of examples from which on this
# decides more about the offset than the sentences do.
FOUND_SHARE, ENOUGH_EXAMPLES = 0.75, 40


def label_triplet_loss(
    multimodal_embeds: torch.Tensor,
    label_embeds: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Margin triplet of a clip, the description of its intent, and the hardest other description (1 in this file's header).

    Args:
        multimodal_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips, unit length.
        label_embeds (`torch.Tensor` of shape `(num_labels, projection_dim)`): Descriptions, unit length.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        margin (`float`): Margin in cosine similarity.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero where there is no other description.
    """
    similarities = restrict(multimodal_embeds.float() @ label_embeds.float().T, candidate_mask)
    index = labels.clamp(min=0)[:, None]
    own = similarities.gather(1, index).squeeze(1)
    hardest = similarities.scatter(1, index, float("-inf")).amax(-1)
    return (margin + hardest - own).clamp(min=0).where(labels >= 0, 0.0)


def batch_triplet_loss(
    embeds: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    all_embeds: torch.Tensor | None = None,
    all_labels: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """Margin triplets between the clips of a batch (3 in this file's header).

    For a clip a it is the mean, over the clips p of the same intent, of max(0, margin + s(a, n) - s(a, p)), where n is the
    most similar clip of another intent.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips of this process, unit length.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Their labels, -1 for none.
        margin (`float`): Margin in cosine similarity.
        all_embeds (`torch.Tensor` of shape `(all_clips, projection_dim)`, *optional*):
            Clips of all processes; without it those of this process.
        all_labels (`torch.LongTensor` of shape `(all_clips,)`, *optional*): Their labels.
        first (`int`): Row of `all_embeds` at which this process' clips begin.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero for a clip without a label, without another clip of its
        intent, or without a clip of another intent.
    """
    all_embeds, all_labels = (embeds, labels) if all_embeds is None else (all_embeds, all_labels)
    similarities = embeds.float() @ all_embeds.float().T
    rows = torch.arange(embeds.shape[0], device=embeds.device)[:, None] + first
    itself = rows == torch.arange(all_embeds.shape[0], device=embeds.device)
    labelled = (labels >= 0)[:, None] & (all_labels >= 0)
    same = labels[:, None] == all_labels
    positive = labelled & same & ~itself
    negative = labelled & ~same
    hardest = similarities.masked_fill(~negative, float("-inf")).amax(-1, keepdim=True)
    # Where there is no negative, the hardest is minus infinity and the hinge below is zero: no gradient, no NaN.
    hinge = (margin + hardest - similarities).clamp(min=0).masked_fill(~positive, 0.0)
    return hinge.sum(-1) / positive.sum(-1).clamp(min=1)


@functools.cache
def _host_group(world: "distributed.ProcessGroup"):
    """Make a group of the same processes as `world` that communicates between hosts, without waiting for a device."""
    return distributed.new_group(backend="gloo")


@torch.compiler.disable  # torch refuses to compile this gather
def _gather(tensor: torch.Tensor):
    """Concatenate equally shaped tensors of all processes; the gradient is summed back to their owners."""
    from torch.distributed.nn.functional import all_gather  # not in builds of torch without `torch.distributed`

    with warnings.catch_warnings():
        # Deprecated in torch 2.13 in favor of a function that earlier versions lack.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.cat(all_gather(tensor))


def _gather_clips(embeds: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gather the clips of all processes, with gradient; batches may differ in size. For training: every process takes the step.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): This process' clips.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Their labels.

    Returns:
        `tuple`: `all_embeds` and `all_labels`, padded for each process to the longest batch with clips of label -1
        (which no loss counts), and the row at which this process' clips begin.
    """
    if num_processes() == 1:
        return embeds, labels, 0
    largest = torch.tensor(embeds.shape[0])
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_host_group(distributed.group.WORLD))
    missing = int(largest) - embeds.shape[0]
    embeds = nn.functional.pad(embeds, (0, 0, 0, missing))
    labels = nn.functional.pad(labels, (0, missing), value=OUT_OF_SCOPE_ID)
    return _gather(embeds), _gather(labels), distributed.get_rank() * embeds.shape[0]


class AMESSSynchronization:
    """Mixin for [`AMESSForIntentClassification`], which defines `amess`, `classifier`, `logit_scale` and `label_embeds`."""

    config: PreTrainedConfig

    # -------------------------------------------------------------------------------------------- descriptions as vectors

    @torch.no_grad()
    def encode_label_descriptions(
        self, label_descriptions: dict[str, list[str] | str], tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
    ) -> torch.Tensor:
        """Embed descriptions: the mean of each label's sentences, scaled to unit length.

        Args:
            label_descriptions (`dict[str, list[str] | str]`): Sentences for each label.
            tokenizer (`PreTrainedTokenizerBase`): The text encoder's tokenizer.
            batch_size (`int`): Sentences at a time.

        Returns:
            `torch.FloatTensor` of shape `(len(label_descriptions), projection_dim)`, rows in the order of the dict.

        Raises:
            `ValueError`: If a label has no sentence, or an empty one.
        """
        groups = list(_sentences_by_label(label_descriptions).values())
        embeds = self._embed_sentences([text for group in groups for text in group], tokenizer, batch_size)[0]
        return _mean_directions(embeds.split([len(group) for group in groups]))

    def update_label_embeds(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Embed `config.label_descriptions` again and store them with the model: after training, before saving."""
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        descriptions = {name: self.config.label_descriptions[name] for name in names}
        self.label_embeds.copy_(self.encode_label_descriptions(descriptions, tokenizer))

    @torch.no_grad()
    def _embed_sentences(self, sentences: list[str], tokenizer: PreTrainedTokenizerBase, batch_size: int = 64):
        """Return `multimodal_embeds` and `pooler_output` of sentences, without dropout."""
        was_training = self.training
        self.eval()
        outputs = [
            self._encode_sentences(**self._tokenize(sentences[first : first + batch_size], tokenizer))
            for first in range(0, len(sentences), batch_size)
        ]
        self.train(was_training)
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def _tokenize(self, sentences: list[str], tokenizer: PreTrainedTokenizerBase):
        max_length = min(text_positions(self.config.text_config), MAX_DESCRIPTION_LENGTH)
        sentences = [(self.config.description_prefix or "") + sentence for sentence in sentences]
        batch = encode_texts(tokenizer, sentences, max_length=max_length)
        return {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _encode_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        # Through the whole model, as a text-only clip, so that clips and descriptions are comparable.
        outputs = self.amess(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return outputs.multimodal_embeds, outputs.pooler_output

    def _refreshed_label_embeds(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, indices: torch.Tensor | None
    ):
        """Encode the descriptions of the labels `indices` again, with gradient; the others come from the stored embeddings."""
        if input_ids is None:
            return self.label_embeds.clone()
        fresh = self._encode_in_turns(input_ids, attention_mask).to(self.label_embeds.dtype)
        label_embeds = self.label_embeds.index_copy(0, indices, fresh)
        if self.training:
            # In place: DDP synchronizes the buffers that it was given at first.
            with torch.no_grad():
                self.label_embeds.copy_(label_embeds)
        return label_embeds

    def _encode_in_turns(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        """Encode sentences a few at a time, with gradient checkpointing: only those few take memory."""
        if len(input_ids) <= 2 * SENTENCES_AT_A_TIME:
            return self._encode_sentences(input_ids, attention_mask)[0]
        parts = zip(input_ids.split(SENTENCES_AT_A_TIME), attention_mask.split(SENTENCES_AT_A_TIME), strict=True)
        return torch.cat([checkpoint(self._encode_sentences, *part, use_reentrant=False)[0] for part in parts])

    # ------------------------------------------------------------------------------------------------------------- losses

    def similarity_logits(self, multimodal_embeds: torch.Tensor, label_embeds: torch.Tensor) -> torch.Tensor:
        """Compute cosine similarities over the learned temperature.

        Args:
            multimodal_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips, unit length.
            label_embeds (`torch.Tensor` of shape `(num_labels, projection_dim)`): Descriptions, unit length.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        # At most 100, as in CLIP: beyond that, a single step can ruin the temperature.
        scale = self.logit_scale.float().clamp(max=math.log(100)).exp()
        return scale * multimodal_embeds.float() @ label_embeds.float().T

    def synchronization_loss_terms(
        self,
        embeds: torch.Tensor,
        label_embeds: torch.Tensor,
        similarity_logits: torch.Tensor,
        labels: torch.Tensor,
        candidate_mask: torch.Tensor | None,
    ) -> list[tuple[str, float, torch.Tensor, torch.Tensor]]:
        """Return the losses 1 to 3 of this file's header that have a weight, as (name, weight, values, clips that count).

        Args:
            embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips, unit length.
            label_embeds (`torch.Tensor` of shape `(num_labels, projection_dim)`): Descriptions, unit length.
            similarity_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): What [`similarity_logits`] gives for them.
            labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
            candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.
        """
        config, labelled, terms = self.config, labels >= 0, []
        if weight := config.batch_triplet_loss_weight:
            others = _gather_clips(embeds, labels) if self.training else ()
            values = batch_triplet_loss(embeds, labels, config.triplet_margin, *others)
            terms.append(("batch_triplet_loss", weight, values, labelled))
        if config.label_descriptions is None:
            return terms
        if weight := config.label_triplet_loss_weight:
            values = label_triplet_loss(embeds, label_embeds, labels, config.triplet_margin, candidate_mask)
            terms.append(("label_triplet_loss", weight, values, labelled))
        if weight := config.label_contrastive_loss_weight:
            values = classification_loss(similarity_logits, labels, candidate_mask=candidate_mask)
            terms.append(("label_contrastive_loss", weight, values, labelled))
        return terms

    # ------------------------------------------------------------------------------------------------------------- answer

    def combine_logits(
        self, class_logits: torch.Tensor, similarity_logits: torch.Tensor, evidence: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Combine the scores of the classifier with those of the descriptions.

        Without descriptions, the classifier and the evidence; with trained labels only, as 4 in this file's header. Beside
        described intents, with P = softmax(l, plus `config.described_offset` for these): a described intent y scores
        z_y = log P(y); a trained one z_y = (1 - w) (log softmax(classifier) + log P(trained)) + w log P(y). The evidence
        then moves probability among the intents V that audio and video vote for, which are the trained ones and those taught
        by examples: z_V <- log softmax(z_V + evidence) + log sum exp(z_V).

        Args:
            class_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The classifier's scores.
            similarity_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scaled similarities.
            evidence (`torch.Tensor` of shape `(batch_size, num_labels)`, *optional*):
                What audio and video add to the labels that they vote for.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`.
        """
        weight = self.config.label_similarity_weight
        trained = self._trained_labels()
        if self.config.label_descriptions is None or (weight == 0 and len(trained) == self.config.num_labels):
            return class_logits + evidence
        if len(trained) == self.config.num_labels:
            # Not normalized: the scores of `oos_amess.py` depend on how confident both are.
            return (1 - weight) * class_logits.float() + weight * similarity_logits + evidence
        index = torch.tensor(trained, dtype=torch.long, device=class_logits.device)
        offsets = torch.full_like(similarity_logits[:1], self.config.described_offset).index_fill(1, index, 0.0)
        by_similarity = (similarity_logits + offsets).log_softmax(-1)
        known = self._known_scores(class_logits.index_select(1, index), by_similarity.index_select(1, index))
        scores = by_similarity.index_copy(1, index, known)
        if not isinstance(evidence, torch.Tensor):
            return scores
        voting = sorted({*trained, *voted_labels(self.amess.fusion)})
        index = torch.tensor(voting, dtype=torch.long, device=class_logits.device)
        voted = scores.index_select(1, index)
        shifted = voted + evidence.index_select(1, index)
        return scores.index_copy(1, index, shifted.log_softmax(-1) + voted.logsumexp(-1, keepdim=True))

    def _known_scores(self, class_logits: torch.Tensor, similarities: torch.Tensor) -> torch.Tensor:
        """Combine both scores of trained labels: (1 - w) (log softmax(classifier) + log sum exp(l)) + w l."""
        weight = self.config.label_similarity_weight
        by_class = class_logits.float().log_softmax(-1) + similarities.logsumexp(-1, keepdim=True)
        return (1 - weight) * by_class + weight * similarities

    def _trained_labels(self):
        """List the ids of the labels that the classifier was trained on."""
        described = set(self.config.described_labels or ())
        return [index for index, name in self.config.id2label.items() if name not in described]

    def knows_descriptions(self) -> bool:
        """Tell whether the model compares clips with descriptions: it was trained to, or has no trained labels."""
        learned = self.config.label_triplet_loss_weight > 0 or self.config.label_contrastive_loss_weight > 0
        return (self.config.label_descriptions is not None and learned) or not self._trained_labels()

    # -------------------------------------------------------------------------------------------------- described intents

    @torch.no_grad()
    def set_label_descriptions(
        self,
        label_descriptions: dict[str, list[str] | str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        examples: dict[str, list[dict[str, torch.Tensor]]] | None = None,
    ) -> None:
        """Replace the label set with described intents, without training the classifier.

        Intents that the classifier knows by the same name keep their weights; the others are scored by their
        descriptions and examples alone, with an offset (`config.described_offset`); see 5 and 6 in this file's header. What
        examples teach is in the weights; the examples are not kept, and their order changes nothing.

        Args:
            label_descriptions (`dict[str, list[str] | str]`): Sentences for each intent.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                The text encoder's tokenizer; loaded from the model's own folder if not given.
            examples (`dict[str, list[dict[str, torch.Tensor]]]`, *optional*):
                Clips of some of the intents, each a batch of one as [`AMESSProcessor.collate`] makes it.

        Raises:
            `ValueError`: If an intent has no description, no tokenizer can be found, or the model was trained without
                descriptions and an intent is none of its own.
        """
        knows, was_training = self.knows_descriptions(), self.training
        unknown = [name for name in label_descriptions if name not in self.config.label2id]
        if unknown and not knows:
            raise ValueError(
                f"`label_descriptions` has {', '.join(map(repr, unknown))}, but this model was trained without descriptions "
                f"of intents and knows its own alone: {', '.join(self.config.label2id)}; train with `label_descriptions` to "
                "choose among others"
            )
        descriptions = _sentences_by_label(label_descriptions)
        tokenizer = tokenizer or self._own_tokenizer()
        self.eval()
        trained = {self.config.id2label[index]: index for index in self._trained_labels()}
        probes, examples = self._probes(descriptions, trained), examples or {}
        # Sorted by length: less padding.
        sentences = sorted({*chain(*descriptions.values(), *probes.values())}, key=lambda text: (len(text), text))
        place = {sentence: index for index, sentence in enumerate(sentences)}
        embeds, pooled = self._embed_sentences(sentences, tokenizer)
        members = [[place[sentence] for sentence in group] for group in descriptions.values()]
        shown = []
        for row, name in enumerate(descriptions):
            for clip in self._embed_examples(examples.get(name, ())):
                shown.append((row, len(embeds)))
                members[row] += [len(embeds)] * EXAMPLE_WEIGHT
                embeds, pooled = (torch.cat(pair) for pair in zip((embeds, pooled), clip, strict=True))
        label_embeds = _mean_directions(embeds[group] for group in members)
        offset = 0.0
        if probes:
            ids = [trained[name] for name in descriptions if name in trained]
            asked = [(row, place[sentence]) for row, group in probes.items() for sentence in group]
            offset = self._measure_offset(embeds, self.classifier(pooled)[:, ids], label_embeds, members, asked, shown)
        rows = [trained.get(name) for name in descriptions]
        label_embeds = self._keep_same(label_embeds.to(self.label_embeds), rows)
        self._select_labels(rows)
        self.label_embeds = label_embeds
        new = {row: examples.get(name, ()) for row, name in enumerate(descriptions) if name not in trained}
        teach_votes(self.amess, new)
        self.train(was_training)
        self.config.id2label = dict(enumerate(descriptions))
        self.config.label2id = {name: index for index, name in enumerate(descriptions)}
        # Drop them if this model was not trained with descriptions.
        self.config.label_descriptions = descriptions if knows else None
        self.config.described_labels = [name for name in descriptions if name not in trained] or None
        self.config.described_offset = offset

    def _embed_examples(self, clips: Iterable[dict[str, torch.Tensor]]):
        """Return `multimodal_embeds` and `pooler_output` of clips that have text, in an order that their own does not change."""
        outputs = [self.amess(**clip, return_dict=True) for clip in clips]
        kept = [one for one in outputs if one.evidence is None or one.modality_mask[0, 0]]
        return sorted(((one.multimodal_embeds, one.pooler_output) for one in kept), key=lambda pair: pair[0].tolist())

    def _keep_same(self, label_embeds: torch.Tensor, rows: list[int | None]):
        """Replace embeddings by those of labels `rows` where they differ by rounding only, so that old answers come back."""
        for row, known in enumerate(rows):
            if known is not None and torch.allclose(label_embeds[row], self.label_embeds[known], atol=1e-4):
                label_embeds[row] = self.label_embeds[known]
        return label_embeds

    def _own_tokenizer(self):
        """Load the tokenizer from where the model was loaded."""
        if not self.config._name_or_path:
            raise ValueError("this model was not loaded from a folder that has a tokenizer; pass `tokenizer`")
        return AutoTokenizer.from_pretrained(self.config._name_or_path, **self.hub_kwargs)

    def _probes(self, descriptions: dict[str, list[str]], trained: dict[str, int]):
        """Sentences that tell how often trained intents keep their answer, by row; none where no intent is added."""
        if len(trained.keys() & descriptions) == len(descriptions):
            return {}
        # The sentences that the model was trained with, where it has them.
        own: dict[str, Any] = {**descriptions, **(self.config.label_descriptions or {})}
        return {
            row: (own[name][TRAINING_SENTENCES:] or own[name])[:PROBES]
            for row, name in enumerate(descriptions)
            if name in trained
        }

    def _measure_offset(
        self,
        embeds: torch.Tensor,
        class_logits: torch.Tensor,
        label_embeds: torch.Tensor,
        members: list[list[int]],
        asked: list[tuple[int, int]],
        shown: list[tuple[int, int]],
    ) -> float:
        """Find the offset from sentences that describe trained labels and from examples of described ones.

        `asked` and `shown` are these sentences and the examples, each with its label and its place in `embeds`; `members` are
        the places of the sentences and examples of all labels.
        """
        trained = sorted({row for row, _ in asked})
        described = [row for row in range(len(members)) if row not in trained]
        compared = embeds, class_logits, label_embeds, members
        scores, similarities = self._compare_left_out(*compared, asked, trained)
        targets = torch.tensor([trained.index(row) for row, _ in asked], device=scores.device)
        keep = kept_share(len(trained), len(described))
        offset = balancing_offset(scores, similarities[:, described], targets, keep)
        if not (shown := [pair for pair in shown if pair[0] in described]):
            return offset
        scores, similarities = self._compare_left_out(*compared, shown, trained)
        margins = scores.double().amax(-1) - similarities[:, described].double().amax(-1)
        share = len(shown) / (len(shown) + ENOUGH_EXAMPLES)
        return (1 - share) * offset + share * torch.quantile(margins, FOUND_SHARE).item()

    def _compare_left_out(
        self,
        embeds: torch.Tensor,
        class_logits: torch.Tensor,
        label_embeds: torch.Tensor,
        members: list[list[int]],
        pairs: list[tuple[int, int]],
        trained: list[int],
    ):
        """Score sentences or examples among the trained labels, and compare them with all labels.

        Each is compared with the others of its own label, or with itself if there is no other.
        """
        places = [place for _, place in pairs]
        similarities = self.similarity_logits(embeds[places], label_embeds)
        for index, (row, place) in enumerate(pairs):
            others = [member for member in members[row] if member != place] or members[row]
            own = _mean_directions([embeds[others]])
            similarities[index, row] = self.similarity_logits(embeds[place][None], own)[0, 0]
        return self._known_scores(class_logits[places], similarities[:, trained]), similarities

    def _select_labels(self, rows: list[int | None]):
        """Give classifier and fusion a new label set: label `i` has the weights of label `rows[i]`, or zeros for `None`."""
        classifier = nn.Linear(self.classifier.in_features, len(rows)).to(self.classifier.weight)
        for row, known in enumerate(rows):
            classifier.weight[row] = 0.0 if known is None else self.classifier.weight[known]
            classifier.bias[row] = 0.0 if known is None else self.classifier.bias[known]
        self.classifier = classifier
        if self.amess.fusion is not None:
            self.amess.fusion.select_labels(rows)


def kept_share(trained: int, described: int) -> float:
    """Return the fraction of the trained intents' sentences that must keep their answer beside described intents.

    The described intents may take half of their proportion of all intents: 1 - 0.5 described / (trained + described).
    """
    return 1 - 0.5 * described / (trained + described)


def balancing_offset(
    trained_scores: torch.Tensor, described_scores: torch.Tensor, targets: torch.Tensor, keep: float
) -> float:
    """Find the largest constant to add to the scores of described intents that leaves trained ones enough answers.

    Args:
        trained_scores (`torch.Tensor` of shape `(sentences, trained)`): Scores of sentences that describe trained intents.
        described_scores (`torch.Tensor` of shape `(sentences, described)`): Their scores for the described intents.
        targets (`torch.LongTensor` of shape `(sentences,)`): The intent of each sentence, a column of `trained_scores`.
        keep (`float`): Share of the sentences answered correctly without described intents that must stay correct.

    Returns:
        `float`: The constant; 0 where no sentence is answered correctly.
    """
    best, answers = trained_scores.double().max(-1)
    margins = (best - described_scores.double().amax(-1))[answers == targets]
    return torch.quantile(margins, 1 - keep, interpolation="lower").item() if len(margins) else 0.0


def _sentences_by_label(label_descriptions: dict[str, list[str] | str]) -> dict[str, list[str]]:
    """Return the sentences of each label as a list, or raise a `ValueError` where one has none."""
    if not label_descriptions:
        raise ValueError("`label_descriptions` is empty, so no intent is described; describe at least one")
    groups = {label: [texts] if isinstance(texts, str) else list(texts) for label, texts in label_descriptions.items()}
    for label, group in groups.items():
        check_sentences(label, group)
    return groups


def _mean_directions(groups: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the mean of each group of vectors, scaled to unit length."""
    return nn.functional.normalize(torch.stack([group.mean(0) for group in groups]), dim=-1)
