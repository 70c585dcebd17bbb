"""What each choice in scoring is worth: noise draws, timesteps, smoothing and the image score, one changed at a time.

    python benchmarks/ablation.py CATEGORY [CATEGORY …]

Each variant is measured on synthetic defects in held-out good images, by which it may be chosen, and on real ones,
which only report how well that foresees them. Nothing is trained but a model that OUT/models does not hold yet.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from benchmarks.category import DEFAULT_BACKBONE, PAPER_ALPHA, Category, blended_maps, without_references
from pipelines.anomaly_maps import worst_mean
from pipelines.measurement import Measurement
from pipelines.score_calibration import ScoreCalibration, combine
from training.data.groups import HELP as GROUPS_HELP
from training.evaluation.metrics import per_region_overlap
from training.fitting.blend_weights import REDUCTION
from training.fitting.calibration_fit import draw_noise_fields
from training.fitting.normalisation import fit_normalisation
from training.runtime.process import keep_large_buffers, use_all_cores

NUM_DRAWS = 4

IMAGE_SCORES = {
    "largest value": lambda maps: maps.amax(dim=(-2, -1)),
    "mean of the worst 1 %": worst_mean,
    "mean of the worst 5 %": lambda components: (
        components.flatten(-2).topk(max(1, components[0, 0].numel() // 20)).values.mean(-1)
    ),
    "mean of all": lambda maps: maps.mean(dim=(-2, -1)),
}


class Measured:
    """A category's good, synthetic and real images, measured once for every noise draw."""

    def __init__(self, data):
        self.data, self.pipe = data, data.pipeline
        self.timesteps = sorted(self.pipe.config.timesteps)
        self.synthetic_masks = [mask.numpy() for _, masks in data.synthetic for mask in masks]
        sources = {
            "good": list(data.batches(data.held_out)),
            "synthetic": [samples for samples, _ in data.synthetic],
            "real": data.test,
        }
        self.draws = {name: self._measure(batches, name) for name, batches in sources.items()}

    @torch.inference_mode()
    def _measure(self, batches, name):
        """One `Measurement` of all images for each draw; the first is the checkpoint's own."""
        fields = [self.pipe.calibration.noise_fields(self.timesteps)]
        fields += [draw_noise_fields(1000 + d, self.timesteps, self.pipe.resolution) for d in range(1, NUM_DRAWS)]
        found = [[] for _ in fields]
        for batch in tqdm(batches, desc=f"{self.data.folder.name}, {name}", unit="batch"):
            for draw, noise in zip(found, fields, strict=True):
                draw.append(self.pipe.measure(batch, self.timesteps, noise))
        return [Measurement(*(torch.cat(maps) for maps in zip(*draw, strict=True))) for draw in found]

    def components(self, draws, timesteps):
        """Standardised components of good, synthetic and real images, the first `draws` draws averaged."""
        chosen = [self.timesteps.index(timestep) for timestep in timesteps]
        calibration = ScoreCalibration.from_config(self.pipe.calibration.config, timesteps=timesteps)
        averaged = {}
        for name, measurements in self.draws.items():
            kl, error = (
                torch.stack([getattr(each, name)[:, chosen] for each in measurements[:draws]]).mean(dim=0)
                for name in ("kl", "feature_error")
            )
            averaged[name] = measurements[0]._replace(kl=kl, feature_error=error)
        fit_normalisation(calibration, averaged["good"])
        return {name: calibration.standardize(each, timesteps) for name, each in averaged.items()}

    def row(self, name, draws=1, timesteps=None, sigma=None, image_score=worst_mean, network_alone=False):
        """Image AUROC and PRO of one variant, on synthetic and on real defects."""
        calibration, alpha = self.pipe.calibration, self.pipe.alpha
        if network_alone:
            calibration, alpha = without_references(calibration), PAPER_ALPHA
        components = self.components(draws, list(timesteps or self.timesteps))
        scores = {kind: image_score(each) for kind, each in components.items()}
        std, mean = torch.std_mean(scores["good"], dim=0)
        deciding, rule = calibration.image_parts, calibration.config.image_rule
        scores = {kind: combine(((each - mean) / std)[:, deciding], rule).numpy() for kind, each in scores.items()}
        real, defective = scores["real"], self.data.defective
        synthetic = np.concatenate([scores["good"], scores["synthetic"]])

        def pro(kind, masks):
            maps = blended_maps(self.pipe, calibration, components[kind], alpha, REDUCTION, sigma)
            return per_region_overlap([mask[::REDUCTION, ::REDUCTION] for mask in masks], list(maps.numpy()))

        is_synthetic = np.arange(len(synthetic)) >= len(scores["good"])
        return {
            "category": self.data.folder.name,
            "variant": name,
            "planted_image_auroc": float(roc_auc_score(is_synthetic, synthetic)),
            "planted_pro": pro("synthetic", self.synthetic_masks),
            "image_auroc": float(roc_auc_score(defective, real)),
            "pro": pro("real", self.data.masks),
        }


def ablate(data):
    """The rows of one category."""
    measured = Measured(data)
    rows = [measured.row("as shipped")]
    for alone, of in ((False, ""), (True, "network alone, ")):
        draws = (2, NUM_DRAWS) if not alone else (1, 2, NUM_DRAWS)
        rows += [measured.row(f"{of}{count} noise draws", draws=count, network_alone=alone) for count in draws]
        rows += [measured.row(f"{of}T = {t}", timesteps=[t], network_alone=alone) for t in measured.timesteps]
    rows += [measured.row(f"smoothing {sigma:g} pixels", sigma=sigma) for sigma in (0.0, 1.0, 4.0, 8.0)]
    rows += [measured.row(f"score: {name}", image_score=score) for name, score in IMAGE_SCORES.items()]
    return rows


def format_rows(rows):
    """A Markdown table, and for each category how synthetic defects rank the variants as real ones do."""
    names = ("planted_image_auroc", "planted_pro", "image_auroc", "pro")
    lines = [
        "| category | variant | synthetic image AUROC | synthetic PRO | image AUROC | PRO |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {row['category']} | {row['variant']} | " + " | ".join(f"{row[n]:.3f}" for n in names) + " |")
    lines.append("")
    for category in dict.fromkeys(row["category"] for row in rows):
        values = {name: [row[name] for row in rows if row["category"] == category] for name in names}
        image = spearmanr(values["planted_image_auroc"], values["image_auroc"]).statistic
        pixel = spearmanr(values["planted_pro"], values["pro"]).statistic
        lines.append(
            f"{category}: rank correlation of synthetic with real defects {image:.2f} (image), {pixel:.2f} (PRO)"
        )
    return "\n".join(lines)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("categories", nargs="+", help="folders in MVTec-AD layout")
    parser.add_argument("--seed", type=int, default=0, help="of splits and training")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="of the features")
    parser.add_argument("--max_train_steps", type=int, help="of a model that must be trained; default the preset's")
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--output_dir", default="outputs/ablation", help="models and table")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    output_dir = Path(args.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        rows = []
        settings = args.seed, args.backbone, output_dir, args.max_train_steps
        for folder in args.categories:
            rows += ablate(Category(Path(folder), *settings, groups=args.groups))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    table = format_rows(rows)
    (output_dir / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n")
    (output_dir / "ablation.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
