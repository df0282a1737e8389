"""What `import amess_hf` imports and exposes, in a fresh process."""

import subprocess
import sys
from pathlib import Path


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_only_public_names_are_shown():
    names = in_a_fresh_process("import amess_hf; print(*dir(amess_hf))")
    import amess_hf

    assert names == sorted(amess_hf.__all__)
    assert all(hasattr(amess_hf, name) for name in names)


def test_nothing_heavy_is_imported():
    heavy = in_a_fresh_process(
        "import sys, amess_hf, amess_hf.evaluation; print(*[name for name in ('sklearn', 'evaluate', 'matplotlib') if name in sys.modules])"
    )
    assert heavy == []


def test_the_version_is_that_of_the_changes():
    import amess_hf

    readme = Path(__file__).parents[1] / "README.md"
    assert f"**Changes.** {amess_hf.__version__}:" in readme.read_text(encoding="utf-8")
