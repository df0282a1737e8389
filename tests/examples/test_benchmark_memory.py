"""benchmark_memory.py on a few clips: every task runs, and the table shows its memory."""

import benchmark_memory as benchmark
import numpy as np
import pytest


@pytest.mark.slow
def test_every_task_runs(tmp_path):
    feature_bytes = benchmark.simulate(tmp_path / "data", 8)
    assert feature_bytes > 8 * 25 * benchmark.FEATURE_SIZE * 4
    for task in benchmark.TASKS:
        benchmark.run_task(task, tmp_path / "data", tmp_path / "cache")


def test_peak_memory():
    with benchmark.PeakMemory() as before:
        pass
    with benchmark.PeakMemory() as peak:
        held = np.ones(2**27, np.uint8)
    assert peak.own > before.own + held.nbytes / 2 and peak.resident >= peak.own


def test_table():
    peaks = {"text": {"own": 100 * 2**20, "resident": 200 * 2**20}, "arrow": {"own": 150 * 2**20, "resident": 2**30}}
    lines = benchmark.table(peaks, 100 * 2**20).splitlines()
    assert lines[-1] == "| train from the built data set (Arrow) | 150 | 50 | 0.50 | 1,024 |"
