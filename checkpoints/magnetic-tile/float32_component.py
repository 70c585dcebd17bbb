"""A component that stays in float32 whatever dtype its pipeline is cast to: statistics lose their meaning in half."""

import torch
from diffusers import ModelMixin

from .safetensors_only import SafetensorsOnly


class Float32Component(SafetensorsOnly, ModelMixin):
    """Buffers follow a move to another device, but no change of dtype."""

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if buffer.is_floating_point() and moved.dtype != torch.float32:
                setattr(self, name, buffer.to(device=moved.device, dtype=torch.float32))
        return self
