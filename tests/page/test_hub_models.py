"""Models that users open from the Hub: which may be, and how."""

import json
import os
import shutil
import subprocess
import sys

import torch
from hub_server import hub
from paths import ROOT
from safetensors.torch import load_file
from sentences import assert_sentence

WEIGHTS = "diffusion_pytorch_model.safetensors"

OPENING = """
import json, os, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from page.models.model_shelf import ModelShelf
shelf, answers = ModelShelf([{tiny!r}], ["team/*"]), {{}}
for hub_id in ("team/poisoned", "team/renamed", "team/pickled", "team/beside", "team/none", "other/poisoned"):
    try:
        answers[hub_id] = shelf.open_from_hub(hub_id)
    except ValueError as error:
        answers[hub_id] = str(error)
answers["again"] = shelf.open_from_hub("team/poisoned")
answers["names"] = shelf.names
print("ANSWER" + json.dumps(answers))
"""


def test_hub_models_are_loaded_without_their_code_and_never_from_pickles(tiny_checkpoint, environment, tmp_path):
    poisoned, pickled, marker = tmp_path / "poisoned", tmp_path / "pickled", tmp_path / "marker"
    shutil.copytree(tiny_checkpoint, poisoned)
    poison = f"open({str(marker)!r}, 'w').write('executed')\n"
    for path in (*poisoned.rglob("*.py"), poisoned / "unet" / "evil.py", poisoned / "evil.py"):
        path.write_text(poison + (path.read_text() if path.is_file() else ""))
    renamed, beside = shutil.copytree(poisoned, tmp_path / "renamed"), shutil.copytree(poisoned, tmp_path / "beside")
    index = json.loads((poisoned / "model_index.json").read_text())
    index |= {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"]}
    (renamed / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(tiny_checkpoint, pickled)
    for folder in (pickled, beside):
        torch.save(load_file(folder / "unet" / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (pickled / "unet" / WEIGHTS).unlink()

    models = {"team/poisoned": poisoned, "team/renamed": renamed, "team/pickled": pickled, "team/beside": beside}
    with hub(models) as (address, asked):
        values = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path)}
        script = OPENING.format(root=str(ROOT), tiny=str(tiny_checkpoint))
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=os.environ | environment | values,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.split("ANSWER")[1])
    assert answers["team/poisoned"] == answers["again"] == ["team/poisoned"]
    assert answers["names"] == ["tiny", "team/poisoned"]
    assert not marker.exists()
    assert_sentence(answers["team/renamed"], "Evil", "AnomalyScoringPipeline")
    for hub_id in ("team/pickled", "team/beside"):
        assert_sentence(answers[hub_id], hub_id, "unet/diffusion_pytorch_model.bin", "pickle")
    assert_sentence(answers["team/none"], "team/none", "does not exist")
    assert_sentence(answers["other/poisoned"], "not among")
    assert not [path for path in asked if path.endswith((".py", ".bin"))]
    assert not [path for path in asked if "other" in path]
