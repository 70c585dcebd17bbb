"""The README's example runs as printed in a process that has never seen this repository; what it loads is current."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("mark", "shown", "expected"),
    [
        ("example", "print(result.is_anomalous[0], result.anomaly_map[0].shape)", "True"),
        ("repair", "print(result.is_accepted[0], result.images[0].size)", "True"),
    ],
)
def test_the_readmes_examples_find_and_remove_the_defect(tmp_path, mark, shown, expected):
    if not (ROOT / "checkpoints" / "magnetic-tile").is_dir():
        pytest.skip("the embedded checkpoint is not in this tree")
    readme = (ROOT / "README.md").read_text()
    code = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", readme, flags=re.DOTALL).group(1)
    # Run where only checkpoint and examples can be seen, under their printed names.
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    code += shown + "\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)


def test_the_embedded_checkpoint_carries_todays_code_and_stays_small():
    checkpoint = ROOT / "checkpoints" / "magnetic-tile"
    carried = sorted(checkpoint.rglob("*.py"))
    assert {path.name for path in carried} >= {"pipeline_anomaly_scoring.py", "feature_extraction.py"}
    for path in carried:  # AnomalyScoringPipeline.from_pretrained(folder).save_pretrained(folder) brings it up to date
        assert path.read_text() == (ROOT / "pipelines" / path.name).read_text(), path
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 40e6
