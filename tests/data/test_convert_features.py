"""`python -m amess_hf.data.convert_features` from the command line."""

import pickle
import runpy
import sys

import numpy as np
import pytest

from amess_hf.data.convert_features import main
from amess_hf.data.feature_files import SafetensorsFeatures


@pytest.fixture
def pickled(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "swin_roi.pkl"
    path.write_bytes(pickle.dumps({f"dia{number}_utt0": rng.standard_normal((number, 1, 6)) for number in range(8)}))
    return path


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_as_a_command_with_the_rights_of_other_files(pickled, tmp_path, monkeypatch, capsys):
    out = tmp_path / "features" / "swin_roi"
    monkeypatch.setattr(sys, "argv", ["convert_features", str(pickled), str(out), "--dtype", "float16"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("amess_hf.data.convert_features", run_name="__main__")
    assert stopped.value.code == 0
    assert "swin_roi: 8 clips, 6 wide, float16, in 1 shards" in capsys.readouterr().out
    features = SafetensorsFeatures(out)
    assert [len(features[clip_id]) for clip_id in features] == list(range(8))
    (tmp_path / "plain").write_text("")
    assert {entry.stat().st_mode for entry in out.iterdir()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("damage", ["truncated", "hostile", "absent"])
def test_errors_are_one_line(pickled, tmp_path, capsys, damage):
    content = {"truncated": pickled.read_bytes()[:-9], "hostile": b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R."}
    pickled.unlink()
    if damage in content:
        pickled.write_bytes(content[damage])
    before = sorted(tmp_path.iterdir())
    assert main([str(pickled), str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert_features: ")]
    assert len(lines) == 1 and str(pickled) in lines[0]
    assert sorted(tmp_path.iterdir()) == before
