import math

import pytest
import torch

from amess_hf.anchor_embedding_amess import modality_losses
from amess_hf.loss_amess import classification_loss, consistency_loss, outlier_exposure_loss
from amess_hf.synchronization_amess import batch_triplet_loss, label_triplet_loss


def unit(*shape, seed=0):
    embeds = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(embeds, dim=-1).float()


class TestClassificationLoss:
    def test_hand_computed(self):
        # log(1 + 2 + 1) - log 2 = log 2 for label 1; log 4 for label 0
        logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, math.log(2), 0.0]])
        loss = classification_loss(logits, torch.tensor([1, 0]))
        torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(4)]))

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_same_as_torch(self, smoothing):
        logits, labels = torch.randn(7, 5), torch.randint(0, 5, (7,))
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(classification_loss(logits, labels, smoothing), expected)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_candidates_are_the_only_classes(self, smoothing):
        logits = torch.randn(6, 5)
        mask = torch.tensor([True, False, True, True, False]).expand(6, -1)
        labels = torch.tensor([0, 2, 3, 3, 2, 0])
        restricted = classification_loss(logits, labels, smoothing, mask)
        expected = classification_loss(logits[:, [0, 2, 3]], torch.tensor([0, 1, 2, 2, 1, 0]), smoothing)
        torch.testing.assert_close(restricted, expected)

    def test_smoothing_of_each_clip(self):
        logits, labels, smoothing = torch.randn(5, 4), torch.tensor([1, 0, -1, 3, 2]), torch.rand(5)
        expected = [classification_loss(logits[[i]], labels[[i]], smoothing[i].item()) for i in range(5)]
        torch.testing.assert_close(classification_loss(logits, labels, smoothing), torch.cat(expected))

    def test_clip_without_label_counts_nothing(self):
        logits = torch.randn(3, 4, requires_grad=True)
        loss = classification_loss(logits, torch.tensor([-1, 2, -1]))
        loss.sum().backward()
        assert loss[0] == loss[2] == 0
        assert logits.grad[[0, 2]].abs().sum() == 0


class TestModalityLosses:
    def test_hand_computed(self):
        # To the label, sound gives 1/2 and picture 1/4: they account for all and for half of the clip.
        logits = torch.tensor([[[0.0, math.log(2), 0.0], [math.log(2), 0.0, 0.0]]])
        found = modality_losses(logits, torch.ones(1, 2, dtype=torch.bool), torch.tensor([1]))
        spread = (2 * math.log(4) + math.log(2)) / 3
        picture = 1 / 2 * math.log(4) + 1 / 2 * spread
        torch.testing.assert_close(found, torch.tensor([[math.log(2), picture]]))

    def test_same_as_loop(self):
        logits, labels = torch.randn(9, 2, 5), torch.tensor([0, 3, 4, -1, 2, 1, 1, 4, 0])
        present = torch.rand(9, 2) > 0.3
        candidates = (torch.rand(9, 5) > 0.3).scatter(1, labels.clamp(min=0)[:, None], True)
        expected = torch.zeros(9, 2)
        for clip, label in enumerate(labels.tolist()):
            allowed = [index for index in range(5) if candidates[clip, index]]
            probs = [logits[clip, modality, allowed].softmax(-1) for modality in range(2)]
            for modality in range(2):
                if label < 0 or not present[clip, modality]:
                    continue
                own = allowed.index(label)
                share = probs[modality][own] / max(probs[other][own] for other in range(2) if present[clip, other])
                target = torch.full((len(allowed),), (1 - share) / len(allowed))
                target[own] += share
                expected[clip, modality] = -(target * probs[modality].log()).sum()
        torch.testing.assert_close(modality_losses(logits, present, labels, candidates), expected)

    def test_a_single_modality_accounts_for_everything(self):
        logits, labels = torch.randn(4, 2, 5), torch.tensor([0, 3, 4, 2])
        present = torch.tensor([[True, False]]).expand(4, -1)
        found = modality_losses(logits, present, labels)
        torch.testing.assert_close(found[:, 0], classification_loss(logits[:, 0], labels))
        assert not found[:, 1].any()

    def test_a_modality_that_another_one_speaks_for_learns_to_say_nothing(self):
        sure = torch.tensor([[30.0, 0.0, 0.0]])
        unsure = torch.zeros(1, 3, requires_grad=True)
        logits = torch.stack([sure, unsure], dim=1)
        modality_losses(logits, torch.ones(1, 2, dtype=torch.bool), torch.tensor([0])).sum().backward()
        before = torch.softmax(torch.zeros(3), -1)
        share = 1 / 3  # the probability that it gives to the label
        target = torch.tensor([share, 0.0, 0.0]) + (1 - share) / 3
        torch.testing.assert_close(unsure.grad[0], before - target)

    def test_shares_have_no_gradient(self):
        logits = torch.randn(6, 2, 4, requires_grad=True)
        modality_losses(logits, torch.ones(6, 2, dtype=torch.bool), torch.randint(0, 4, (6,)))[:, 0].sum().backward()
        assert logits.grad[:, 0].any() and not logits.grad[:, 1].any()


class TestLabelTriplet:
    def test_hand_computed(self):
        labels_at = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        clips = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        # clip 0: own 1, hardest other 0.6: 0.5 + 0.6 - 1 = 0.1; clip 1 with label 2: own 0.8, hardest 1: 0.7
        loss = label_triplet_loss(clips, labels_at, torch.tensor([0, 2]), margin=0.5)
        torch.testing.assert_close(loss, torch.tensor([0.1, 0.7]))

    def test_slow_loop(self):
        clips, descriptions, labels = unit(9, 6), unit(5, 6, seed=1), torch.randint(-1, 5, (9,))
        loss = label_triplet_loss(clips, descriptions, labels, margin=0.3)
        for row, label in enumerate(labels.tolist()):
            expected = 0.0
            if label >= 0:
                similar = [float(clips[row] @ description) for description in descriptions]
                expected = max(0.0, 0.3 + max(s for i, s in enumerate(similar) if i != label) - similar[label])
            assert loss[row].item() == pytest.approx(expected, abs=1e-6)

    def test_candidates(self):
        clips, descriptions, labels = unit(4, 6), unit(5, 6, seed=1), torch.tensor([0, 1, 1, 0])
        mask = torch.tensor([True, True, False, False, False]).expand(4, -1)
        restricted = label_triplet_loss(clips, descriptions, labels, 0.3, mask)
        torch.testing.assert_close(restricted, label_triplet_loss(clips, descriptions[:2], labels, 0.3))


class TestContrastive:
    def test_softmax_over_descriptions(self):
        similarities, labels = torch.randn(6, 4), torch.tensor([0, 3, -1, 2, 1, 1])
        loss = classification_loss(similarities, labels)
        for row, label in enumerate(labels.tolist()):
            exponents = [math.exp(value) for value in similarities[row].tolist()]
            expected = -math.log(exponents[label] / sum(exponents)) if label >= 0 else 0.0
            assert loss[row].item() == pytest.approx(expected, abs=1e-5)


class TestBatchTriplet:
    @staticmethod
    def slow(embeds, labels, margin):
        values = []
        for a in range(len(labels)):
            positives = [p for p in range(len(labels)) if p != a and labels[p] == labels[a] and labels[a] >= 0]
            negatives = [n for n in range(len(labels)) if labels[n] != labels[a] and labels[n] >= 0 and labels[a] >= 0]
            if not positives or not negatives:
                values.append(0.0)
                continue
            hardest = max(float(embeds[a] @ embeds[n]) for n in negatives)
            hinges = [max(0.0, margin + hardest - float(embeds[a] @ embeds[p])) for p in positives]
            values.append(sum(hinges) / len(hinges))
        return torch.tensor(values)

    @pytest.mark.parametrize("seed", range(5))
    def test_slow_loop(self, seed):
        embeds = unit(12, 6, seed=seed)
        labels = torch.randint(-1, 4, (12,), generator=torch.Generator().manual_seed(seed))
        expected = self.slow(embeds, labels.tolist(), 0.4)
        torch.testing.assert_close(batch_triplet_loss(embeds, labels, 0.4), expected)

    def test_part_of_a_larger_batch(self):
        embeds, labels = unit(10, 6), torch.randint(0, 3, (10,))
        whole = batch_triplet_loss(embeds, labels, 0.4)
        part = batch_triplet_loss(embeds[4:7], labels[4:7], 0.4, embeds, labels, first=4)
        torch.testing.assert_close(part, whole[4:7])


class TestConsistencyAndOutliers:
    def test_consistency_by_hand(self):
        first, second = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])  # (1/4, 3/4), (1/2, 1/2)
        forth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
        back = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        loss = consistency_loss(first, second)
        assert loss.item() == pytest.approx((forth + back) / 2, abs=1e-6)

    def test_consistency_with_candidates(self):
        first, second = torch.randn(3, 4), torch.randn(3, 4)
        mask = torch.tensor([True, True, False, True]).expand(3, -1)
        expected = consistency_loss(first[:, [0, 1, 3]], second[:, [0, 1, 3]])
        torch.testing.assert_close(consistency_loss(first, second, mask), expected)

    def test_outliers_only(self):
        logits = torch.tensor([[0.0, math.log(3)], [1.0, 1.0], [0.0, math.log(3)]])
        loss = outlier_exposure_loss(logits, torch.tensor([-1, -1, 0]))
        expected = [-0.5 * (math.log(0.25) + math.log(0.75)), math.log(2), 0.0]
        torch.testing.assert_close(loss, torch.tensor(expected))


def every_loss(embeds, descriptions, labels):
    scores = 20 * embeds.float() @ descriptions.float().T
    return {
        "classification": classification_loss(scores, labels, 0.1),
        "label_triplet": label_triplet_loss(embeds, descriptions, labels, 0.2),
        "batch_triplet": batch_triplet_loss(embeds, labels, 0.2),
        "consistency": consistency_loss(scores, scores.flip(0)),
        "outlier": outlier_exposure_loss(scores, labels),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "labels", "count"),
    [
        ([0, 1, 2], [1, 1, 1], 3),  # one class in the batch
        ([0], [2], 3),  # one clip
        ([0, 0, 0, 0], [0, 1, 2, 0], 3),  # all the same clip
        ([0, 1], [-1, -1], 3),  # no label at all
        ([0, 1], [0, 0], 1),  # one label at all
    ],
)
def test_never_nan(rows, labels, count, dtype):
    embeds = unit(3, 8)[rows].to(dtype).requires_grad_()
    descriptions = unit(count, 8, seed=1).to(dtype).requires_grad_()
    for name, loss in every_loss(embeds, descriptions, torch.tensor(labels)).items():
        assert loss.dtype == torch.float32
        assert loss.shape == (len(rows),)
        assert torch.isfinite(loss).all(), name
        embeds.grad = descriptions.grad = None
        loss.sum().backward(retain_graph=True)
        for leaf in (embeds, descriptions):
            assert leaf.grad is None or torch.isfinite(leaf.grad).all(), name
