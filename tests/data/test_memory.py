"""Memory: a mapped data set does not stay resident, and training stays far below the size of the features."""

import sys

import benchmark_memory as benchmark
import numpy as np
import pytest
from datasets import Array2D, Dataset, Features

from amess_hf.data import memory
from amess_hf.data.feature_files import SafetensorsFeatures
from amess_hf.data.memory import PageReleaser, release_mapped_pages, resident_bytes
from amess_hf.data.mintrec import MIntRec, load_mintrec


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


@linux_only
def test_release_mapped_pages(tmp_path):
    """Reading 50 MB of a mapped data set makes the process grow; releasing shrinks it and loses nothing."""
    frames = np.random.default_rng(0).standard_normal((25, 1000, 500), dtype=np.float32)
    rows = Dataset.from_generator(
        lambda: ({"x": clip} for clip in frames),
        features=Features({"x": Array2D((None, 500), "float32")}),
        cache_dir=str(tmp_path),
        writer_batch_size=4,
    ).with_format("numpy")
    release_mapped_pages()
    before = resident_bytes()
    for number in range(len(rows)):
        np.testing.assert_array_equal(rows[number]["x"], frames[number])
    view = rows[[3, 4]]["x"]
    grown = resident_bytes() - before
    assert grown > 0.8 * frames.nbytes
    assert release_mapped_pages() >= frames.nbytes
    assert resident_bytes() - before < 0.2 * frames.nbytes
    for number in (3, 4):
        np.testing.assert_array_equal(view[number - 3], frames[number])
        np.testing.assert_array_equal(rows[number]["x"], frames[number])


def test_release_elsewhere_does_nothing(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert release_mapped_pages() == 0


def test_page_releaser(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "release_mapped_pages", lambda: calls.append(1))
    releaser = PageReleaser(every=100)
    counts = [calls.copy() for size in (60, 60, 99, 1, 500) if releaser(size) is None]
    assert [len(count) for count in counts] == [0, 1, 1, 2, 3]


@linux_only
def test_the_ratio_holds_on_a_small_file(tmp_path, monkeypatch):
    """The claim for 4 GB (less than 2 GB above words) as a ratio, on 200 MB: building the data set, and going through
    all batches from Arrow or from safetensors, take less than half of the features' size beyond what words take."""
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 4)  # of this file even one usual batch is a tenth
    folder = tmp_path / "data"
    feature_bytes = benchmark.simulate(folder, 450)
    assert feature_bytes > 150e6

    def growth(steps):
        start = resident_bytes()
        return max(resident_bytes() for _ in steps) - start

    sampled = []
    example = MIntRec._example
    monkeypatch.setattr(
        MIntRec, "_example", lambda self, clip: sampled.append(resident_bytes()) or example(self, clip)
    )
    start = resident_bytes()
    rows = load_mintrec(folder, "mintrec2.0", cache_dir=tmp_path / "cache")["train"]
    grown = {"build": max(sampled) - start}
    words = rows.remove_columns("audio_features")
    lazy = benchmark.LazyRows(words, SafetensorsFeatures(folder / benchmark.FEATURES))
    grown["text"] = growth(benchmark.batches(words, None))
    grown["arrow"] = growth(benchmark.batches(rows, benchmark.FEATURE_SIZE))
    grown["safetensors"] = growth(benchmark.batches(lazy, benchmark.FEATURE_SIZE))
    for task in ("build", "arrow", "safetensors"):
        assert grown[task] - grown["text"] < 0.5 * feature_bytes, grown
    # Without the release of pages the same batches make the process as large as the file: the test can fail.
    monkeypatch.setattr(memory, "release_mapped_pages", lambda: 0)
    release_mapped_pages()
    assert growth(benchmark.batches(rows, benchmark.FEATURE_SIZE)) > 0.7 * feature_bytes
