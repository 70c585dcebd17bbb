"""Score the batches of a process and write what belongs to each finished chunk: overlays, maps, and last its rows."""

from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

from pipelines.anomaly_maps import resize_map
from pipelines.image_preprocessing import as_uint8, misfit_of
from rendering.heat_map import outline, overlay, saturation_of
from training.inference.parquet_files import write_maps
from training.inference.score_table import scored_row, unreadable_row
from training.runtime.whole_files import whole_file

OVERLAYS = "overlays"
"""In the output folder."""


class ChunkScorer:
    """Scores batches; chunks of several runs may be under way at once, each of them in its order.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline.
        chunks (`ScoredChunks`): where finished chunks are kept.
        alpha (`float`, *optional*), false_alarm_rate (`float`, *optional*): as the pipeline takes them.
        overlays (`bool`): whether to draw heat maps over the images, below OUT/overlays.
        maps (`bool`): whether to keep the anomaly maps, in OUT/maps.
    """

    def __init__(self, pipe, chunks, alpha=None, false_alarm_rate=None, overlays=True, maps=False):
        self.pipe, self.chunks = pipe, chunks
        self.options = {"alpha": alpha, "false_alarm_rate": false_alarm_rate}
        self.saturation = saturation_of(pipe) if overlays else None
        self.keeps_maps = maps
        self._rows, self._maps = defaultdict(list), defaultdict(list)

    def score(self, batch):
        """Score a `ImageBatch`; if it ends its chunk, the chunk is written."""
        place = batch.run, batch.chunk
        readable = [index for index, image in enumerate(batch.images) if image.rgb is not None]
        rows = [unreadable_row(image.name, image.refusal) for image in batch.images]
        if readable:
            output = self.pipe([batch.images[i].rgb for i in readable], batch_size=len(readable), **self.options)
            for number, index in enumerate(readable):
                image, anomaly_map = batch.images[index], output.anomaly_map[number]
                misfit = misfit_of(image.rgb, self.pipe.config.white_level)
                rows[index] = scored_row(image.name, output, number, misfit)
                if self.saturation is not None:
                    self._draw(image, anomaly_map, output.pred_mask[number])
                if self.keeps_maps:
                    square = resize_map(torch.from_numpy(anomaly_map), (self.pipe.resolution,) * 2)
                    self._maps[place].append((image.name, square.numpy()))
        self._rows[place] += rows
        if batch.ends_chunk:
            self._write(place, batch.ends_run)

    def _draw(self, image, anomaly_map, mask):
        shown = as_uint8(image.rgb, self.pipe.config.white_level)
        drawn = outline(overlay(shown, anomaly_map, self.saturation), mask)
        path = Path(self.chunks.output_dir, OVERLAYS, f"{image.target}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, self.chunks.folder, durable=False) as stream:
            Image.fromarray(drawn).save(stream, "PNG")

    def _write(self, place, is_last):
        maps = self._maps.pop(place, [])
        if maps:
            self.chunks.maps.mkdir(exist_ok=True)
            with whole_file(self.chunks.maps / f"{self.chunks.name(*place)}.parquet", self.chunks.folder) as stream:
                write_maps(*zip(*maps, strict=True), stream)
        self.chunks.write(*place, self._rows.pop(place), is_last)
