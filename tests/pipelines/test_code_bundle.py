"""A checkpoint's code: one file a class, made of whole modules, the same from modules and from another bundle."""

import ast
import importlib.util
import json
import shutil
import sys

import pytest
import torch
from fingerprints import FINGERPRINT, fingerprint, repaired, run_fresh
from paths import ROOT
from sentences import refused

from pipelines.checkpoint_names import ENTRY_MODULES
from pipelines.code_bundle import read_modules, write_bundle
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline

PIPELINES = ROOT / "pipelines"
EARLIER = ROOT / "tests" / "fixtures" / "earlier_checkpoint"
"""Of format 5, with the code of each module in a file of its own, 2 MB."""

COMPONENTS = {
    "feature_extractor": ("feature_extraction", "TimmFeatureExtractor"),
    "gaussian": ("feature_gaussian", "FeatureGaussian"),
    "coarse_gaussian": ("feature_gaussian", "FeatureGaussian"),
    "familiarity": ("feature_familiarity", "FeatureFamiliarity"),
    "memory": ("feature_memory", "FeatureMemory"),
    "calibration": ("score_calibration", "ScoreCalibration"),
    "categories": ("category_bank", "CategoryBank"),
}


def modules_in(folder, **sources):
    """Write module files; returns the folder."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def test_a_checkpoint_carries_a_file_for_each_pipeline_and_each_component_made_of_todays_modules(
    tiny_checkpoint, unified, tmp_path
):
    for checkpoint in (tiny_checkpoint, unified):
        index = json.loads((checkpoint / "model_index.json").read_text())
        assert {path.name for path in checkpoint.glob("*.py")} == {f"{module}.py" for module in ENTRY_MODULES}
        for module, class_name in ENTRY_MODULES.items():
            write_bundle(PIPELINES / f"{module}.py", tmp_path, class_name, module)
            assert (checkpoint / f"{module}.py").read_bytes() == (tmp_path / f"{module}.py").read_bytes()
        carried = [name for name in COMPONENTS if (checkpoint / name).is_dir()]
        assert sorted(path.parent.name for path in checkpoint.glob("*/*.py")) == sorted(carried)
        for component in carried:
            source, class_name = COMPONENTS[component]
            (tmp_path / component).mkdir(exist_ok=True)
            name = write_bundle(PIPELINES / f"{source}.py", tmp_path / component, class_name)
            assert index[component] == [name, class_name]
            made = tmp_path / component / f"{name}.py"
            assert (checkpoint / component / f"{name}.py").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(("module", "class_name"), ENTRY_MODULES.items())
def test_a_bundle_says_what_it_is_and_stands_alone(module, class_name, tmp_path):
    write_bundle(PIPELINES / f"{module}.py", tmp_path, class_name, module)
    text = (tmp_path / f"{module}.py").read_text()
    tree = ast.parse(text)
    modules = read_modules(PIPELINES / f"{module}.py")
    assert ast.get_docstring(tree).startswith(f"{class_name}, in one file made of {len(modules)} modules")
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    for name, (code, _) in modules.items():
        assert f"# %% {name}: needs " in text
        assert code.strip("\n") in text
        imported = [node for node in ast.parse((PIPELINES / f"{name}.py").read_text()).body if type(node) is ast.Import]
        assert all(ast.unparse(node) in code for node in imported)
    definitions = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(set(definitions)) == len(definitions) > 50
    pipelines = [name for name in definitions if name.endswith("Pipeline")]
    assert pipelines == [class_name]  # diffusers refuses a file with two


@pytest.mark.parametrize(("source", "class_name"), sorted(set(COMPONENTS.values())))
def test_a_component_made_of_a_pipelines_bundle_is_that_made_of_modules(source, class_name, tmp_path):
    folders = [tmp_path / name / "x" for name in ("modules", "bundle")]
    for folder in folders:
        folder.mkdir(parents=True)
    write_bundle(PIPELINES / "pipeline_gradient_denoise.py", tmp_path, "GradientDenoisePipeline", "repair")
    names = [
        write_bundle(path, folder, class_name)
        for path, folder in zip((PIPELINES / f"{source}.py", tmp_path / "repair.py"), folders, strict=True)
    ]
    assert names[0] == names[1]
    first, second = ((folder / f"{names[0]}.py").read_bytes() for folder in folders)
    assert first == second


def test_two_modules_that_define_one_name_are_refused_and_what_is_the_same_in_both_is_not(tmp_path):
    entry = "from .first import FIRST\nfrom .second import SECOND\n\n\nclass Entry():\n    both = FIRST, SECOND\n"
    shared = "import logging\n\nlogger = logging.getLogger(__name__)\n"
    modules_in(tmp_path, entry=entry, first=f"{shared}FIRST = 1\n", second=f"{shared}SECOND = 2\n")
    write_bundle(tmp_path / "entry.py", tmp_path, "Entry", "made")
    made = {"__name__": "made"}
    exec((tmp_path / "made.py").read_text(), made)
    assert made["FIRST"] + made["SECOND"] == 3
    for first, second in (
        ("FIRST = HIDDEN = 1\n", "SECOND = HIDDEN = 2\n"),
        ("def helper():\n    return 1\n\n\nFIRST = 1\n", "def helper():\n    return 2\n\n\nSECOND = 2\n"),
        ("from math import pi as Image\n\nFIRST = 1\n", "from PIL import Image\n\nSECOND = 2\n"),
        ("class Image:\n    pass\n\n\nFIRST = 1\n", "from PIL import Image\n\nSECOND = 2\n"),
    ):
        modules_in(tmp_path, first=first, second=second)
        with refused(ValueError, "first and second both define"):
            write_bundle(tmp_path / "entry.py", tmp_path, "Entry", "made")


@pytest.mark.parametrize(
    "line", ["from . import first", "from .first import FIRST as ONE", "from ..first import FIRST"]
)
def test_an_import_that_no_bundle_can_hold_is_refused(line, tmp_path):
    modules_in(tmp_path, entry=f"{line}\n\n\nclass Entry():\n    pass\n", first="FIRST = 1\n")
    with refused(ValueError, "bundle"):
        write_bundle(tmp_path / "entry.py", tmp_path, "Entry", "made")
    assert not (tmp_path / "made.py").exists()


def test_a_subclass_of_ones_own_is_saved_with_the_code_of_the_checkpoint(tiny_checkpoint, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline\n\n\n"
        "class Mine(AnomalyScoringPipeline):\n    pass\n"
    )
    spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
    mine = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    pipe = mine.Mine.from_pretrained(tiny_checkpoint)
    pipe.register_to_config(_name_or_path=str(tiny_checkpoint))
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_anomaly_scoring", "AnomalyScoringPipeline"]
    for module in ENTRY_MODULES:
        code = (tmp_path / "saved" / f"{module}.py").read_bytes()
        assert code == (tiny_checkpoint / f"{module}.py").read_bytes()


# A checkpoint that was saved before pipelines were bundled

LOAD = f"""
import json
import torch
from diffusers import DiffusionPipeline

{FINGERPRINT}
torch.set_num_threads(1)  # with more, sums round otherwise
pipe = DiffusionPipeline.from_pretrained("{{folder}}", trust_remote_code=True)
repair = DiffusionPipeline.from_pretrained(
    "{{folder}}", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
print("ANSWER" + json.dumps([fingerprint(pipe, {{files}}), repaired(repair, {{files}})]))
"""


def test_a_checkpoint_of_before_scores_and_repairs_the_same_to_the_last_bit_by_its_code_and_by_ours(
    tile_files, tmp_path, one_core
):
    torch.set_num_threads(1)
    files = [str(path) for path in tile_files[:3]]

    def by_its_own_code(folder):
        workplace = tmp_path / folder.name
        workplace.mkdir()
        return run_fresh(LOAD.format(folder=folder, files=files), workplace)[0]

    assert len(list(EARLIER.glob("*.py"))) > 20
    scores, repair = by_its_own_code(EARLIER)
    pipe = AnomalyScoringPipeline.from_pretrained(EARLIER)
    assert fingerprint(pipe, files) == scores
    assert repaired(GradientDenoisePipeline.from_pretrained(EARLIER), files) == repair
    again = tmp_path / "earlier"
    shutil.copytree(EARLIER, again)
    pipe.save_pretrained(again / "saved", half_precision=True)
    assert by_its_own_code(again / "saved") == [scores, repair]
    assert {path.name for path in (again / "saved").glob("*.py")} == {f"{module}.py" for module in ENTRY_MODULES}
