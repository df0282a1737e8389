"""`python -m amess_hf.data.convert_features` from the command line."""

import os
import pickle
import runpy
import signal
import sys

import numpy as np
import pytest

from amess_hf.data.convert_features import main
from amess_hf.data.feature_files import SafetensorsFeatures, read_pickle, write_features


@pytest.fixture
def pickled(tmp_path):
    rng = np.random.default_rng(0)
    clips = {f"dia{number}_utt0": rng.standard_normal((number, 1, 6)) for number in range(8)}
    path = tmp_path / "swin_roi.pkl"
    path.write_bytes(pickle.dumps(clips))
    return path, clips


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("float16", 3e-3)])
def test_converts(pickled, tmp_path, capsys, dtype, atol):
    path, clips = pickled
    assert main([str(path), str(tmp_path / "swin_roi"), "--dtype", dtype]) == 0
    assert f"swin_roi: 8 clips, 6 wide, {dtype}, in 1 shards" in capsys.readouterr().out
    features = SafetensorsFeatures(tmp_path / "swin_roi")
    for clip_id, frames in clips.items():
        np.testing.assert_allclose(features[clip_id], frames[:, 0], rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_as_a_command_with_the_rights_of_other_files(pickled, tmp_path, monkeypatch):
    path, _ = pickled
    out = tmp_path / "features" / "swin_roi"
    monkeypatch.setattr(sys, "argv", ["convert_features", str(path), str(out)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("amess_hf.data.convert_features", run_name="__main__")
    assert stopped.value.code == 0
    plain = tmp_path / "plain"
    plain.write_text("")
    assert {entry.stat().st_mode for entry in out.iterdir()} == {plain.stat().st_mode}


@pytest.mark.parametrize("damage", ["truncated", "hostile", "absent"])
def test_errors_are_one_line(pickled, tmp_path, capsys, damage):
    path, clips = pickled
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "hostile":
        path.write_bytes(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R.")
    else:
        path.unlink()
    before = sorted(tmp_path.iterdir())
    assert main([str(path), str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert_features: ")]
    assert len(lines) == 1 and str(path) in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_conversion_leaves_no_output(tmp_path):
    """SIGKILL in the middle: nothing under the final name, and a second run does the whole work."""
    clips = {f"c{number}": np.full((20, 50), number, np.float32) for number in range(200)}
    path, out = tmp_path / "slow.pkl", tmp_path / "out"
    path.write_bytes(pickle.dumps(clips))

    def killed_half_way():
        for number, entry in enumerate(read_pickle(path)):
            if number == 100:
                os.kill(os.getpid(), signal.SIGKILL)
            yield entry

    child = os.fork()
    if child == 0:
        write_features(killed_half_way(), out, source=path, shard_bytes=20_000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert main([str(path), str(out)]) == 0
    assert len(SafetensorsFeatures(out)) == 200
