"""What `import amess_hf` imports and exposes, in a fresh process."""

import subprocess
import sys


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_only_public_names_are_shown():
    names = in_a_fresh_process("import amess_hf; print(*dir(amess_hf))")
    import amess_hf

    assert names == sorted(amess_hf.__all__)
    assert all(hasattr(amess_hf, name) for name in names)


def test_nothing_heavy_is_imported():
    heavy = in_a_fresh_process(
        "import sys, amess_hf; print(*[name for name in ('sklearn', 'evaluate', 'matplotlib') if name in sys.modules])"
    )
    assert heavy == []
