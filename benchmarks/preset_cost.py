"""What a training step of a preset costs, computed from its shapes: nothing is trained, and no GPU is needed.

    python benchmarks/preset_cost.py --preset paper --tflops 989 --utilisation 0.3 --microseconds 65

Arithmetic is counted by torch's own counter while the UNet, forward and backward, and the backbone run on tensors
without data. Memory is the sum of what must be there at the end of the forward pass: weights, their average, gradients,
AdamW's moments, the half-precision copies of the weights that autocast keeps, and what the backward pass reads. Time
is the longer of two: a GPU's peak and the share of it that a program reaches give the time of the arithmetic, and the
number of operators that must be sent to it one after the other, each with some microseconds of the CPU, the time below
which small batches cannot come. It is a computed time, not a measured one, but for the microseconds: on a machine with
an H100 a step took 62 ms by `balanced` and 150 by `paper`, 65 for each operator that is counted here, with all that
Python does between them. Options of `training/train.py` may follow.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipelines.feature_extraction import TimmFeatureExtractor
from training.cli.arguments import parse_args
from training.networks.unet import build_unet

COPIES = {"weights": 4, "their average": 4, "gradients": 4, "AdamW's moments": 8, "bfloat16 copies": 2}
"""Bytes for each parameter."""

KEPT = "kept for the backward pass"


def cost(args):
    """Parameters, operations and bytes of one step on one process, computed.

    Args:
        args: settings of `training/train.py`; mixed precision is taken to be bf16 unless it is "no".

    Returns:
        `dict[str, float]`: parameters, unet_flops (forward and backward), feature_flops and operators of a step, and
        the bytes of each item of `COPIES` and of `KEPT`.
    """
    extractor = TimmFeatureExtractor(args.feature_extractor, args.feature_strides, args.feature_grid)
    operators = _OperatorCounter()
    with FlopCounterMode(display=False) as feature_counter, operators, torch.no_grad():
        extractor(torch.zeros(args.train_batch_size, 3, args.resolution, args.resolution))
    in_half = args.mixed_precision != "no"
    with FakeTensorMode():
        unet = build_unet(
            args.resolution, args.patch_size, extractor.num_features, args.block_out_channels, args.layers_per_block
        )
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        kept = _KeptTensors(unet)
        patches = torch.zeros(args.train_batch_size, unet.config.in_channels, *[args.resolution // args.patch_size] * 2)
        with FlopCounterMode(display=False) as unet_counter, operators:
            with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
                with torch.autocast("cpu", torch.bfloat16, enabled=in_half):
                    output = unet(patches, torch.zeros(args.train_batch_size, dtype=torch.long))[0]
                loss = output.float().square().mean()
            loss.backward()
    parameters = sum(each.numel() for each in unet.parameters())
    return {
        "parameters": parameters,
        "unet_flops": unet_counter.get_total_flops(),
        "feature_flops": feature_counter.get_total_flops(),
        "operators": operators.count,
        **{name: size * parameters for name, size in COPIES.items() if in_half or name != "bfloat16 copies"},
        KEPT: kept.bytes,
    }


class _OperatorCounter(TorchDispatchMode):
    """Counts the operators that compute something: views do not."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.namespace == "aten" and not function.is_view
        return function(*args, **(kwargs or {}))


class _KeptTensors:
    """Adds up the storages that autograd keeps, each once, and without the parameters."""

    def __init__(self, unet):
        self._seen = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
        self._alive = []  # a storage's address is its name only as long as it lives
        self.bytes = 0

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def format_cost(args, found, tflops, utilisation, microseconds):
    """A Markdown table of a step, and what the whole training takes."""
    flops = found["unet_flops"] + found["feature_flops"]
    lines = [
        f"{args.preset} preset, batches of {args.train_batch_size} at {args.resolution}×{args.resolution}, "
        f"{found['parameters'] / 1e6:.1f} million parameters; computed, not measured",
        "",
        "| of a step | |",
        "| --- | --- |",
        f"| UNet, forward and backward | {found['unet_flops'] / 1e12:.2f} TFLOP |",
        f"| features | {found['feature_flops'] / 1e12:.3f} TFLOP |",
        f"| operators | {found['operators']} |",
    ]
    sizes = {name: found[name] for name in (*COPIES, KEPT) if name in found}
    lines += [f"| {name} | {size / 2**30:.2f} GiB |" for name, size in sizes.items()]
    lines += [f"| memory in all, at least | {sum(sizes.values()) / 2**30:.2f} GiB |"]
    arithmetic, dispatch = flops / (tflops * 1e12 * utilisation), found["operators"] * microseconds * 1e-6
    seconds = max(arithmetic, dispatch)
    lines += [
        "",
        f"arithmetic at {utilisation:.0%} of {tflops:g} TFLOP/s: {1000 * arithmetic:.0f} ms a step; "
        f"operators at {microseconds:g} µs: {1000 * dispatch:.0f} ms a step",
        f"{args.max_train_steps} steps: {seconds * args.max_train_steps / 60:.0f} minutes",
    ]
    return "\n".join(lines)


def main(argv=None):
    """Compute and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tflops", type=float, default=989, help="a GPU's peak in bfloat16; 989 is an H100's (SXM)")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that is taken to be reached")
    parser.add_argument("--microseconds", type=float, default=65, help="of the CPU, to send an operator to the GPU")
    given, others = parser.parse_known_args(argv)
    args = parse_args(["--train_data_dir", ".", "--output_dir", ".", *others])
    print(format_cost(args, cost(args), given.tflops, given.utilisation, given.microseconds))


if __name__ == "__main__":
    main()
