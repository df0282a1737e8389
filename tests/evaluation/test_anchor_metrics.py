"""Anchors compared with the known place of the evidence."""

import numpy as np
import pytest

from amess_hf.evaluation import ClipOutputs, compute_anchor_metrics, read_evidence_spans


def outputs_with(anchors):
    count = len(anchors)
    return ClipOutputs(
        ids=[f"clip{number}" for number in range(count)],
        texts=[""] * count,
        labels=np.zeros(count, dtype=int),
        logits=np.zeros((count, 2)),
        pooler_output=np.zeros((count, 2)),
        multimodal_embeds=np.zeros((count, 2)),
        anchor_indices=anchors,
    )


def write(path, *lines):
    path.write_text("\n".join(["id\tmodality\tfirst\tend\tframes\tlabel", *lines]) + "\n")
    return path


def test_by_hand(tmp_path):
    anchors = np.full((3, 3, 2), -1)
    anchors[0, 1], anchors[1, 1], anchors[2, 1] = (4, 9), (1, 2), (0, -1)
    path = write(
        tmp_path / "bursts.tsv", "clip0\taudio\t3\t5\t10\tJoke", "clip1\taudio\t2\t4\t4\tCare", "x\tvideo\t0\t1\t9\t"
    )
    metrics = compute_anchor_metrics(outputs_with(anchors), read_evidence_spans(path))
    assert metrics == {"audio": {"clips": 2, "best_anchor": 0.5, "all_anchors": 0.5, "chance": pytest.approx(0.35)}}


def test_no_anchors():
    outputs = outputs_with(np.full((1, 3, 2), -1))
    outputs.anchor_indices = None
    with pytest.raises(ValueError, match="chooses no anchors"):
        compute_anchor_metrics(outputs, {})


def test_bad_tables(tmp_path):
    with pytest.raises(ValueError, match="missing.tsv cannot be read"):
        read_evidence_spans(tmp_path / "missing.tsv")
    with pytest.raises(ValueError, match=r"bursts.tsv:2: not a span"):
        read_evidence_spans(write(tmp_path / "bursts.tsv", "clip0\taudio\tthree\t5\t10\tJoke"))
