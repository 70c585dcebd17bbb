"""The computed cost of a preset: operations and memory against what can be counted by hand or measured."""

import pytest
import torch

from benchmarks.preset_cost import KEPT, _KeptTensors, cost, format_cost
from training.cli.arguments import parse_args
from training.networks.unet import build_unet

SMALL = ["--resolution", "64", "--patch_size", "4", "--block_out_channels", "32", "64", "--feature_grid", "16"]


def settings(*options):
    return parse_args(["--train_data_dir", ".", "--output_dir", ".", *SMALL, *options])


def test_arithmetic_grows_with_the_batch_and_parameters_do_not():
    one, four = (cost(settings("--train_batch_size", size)) for size in ("1", "4"))
    assert four["unet_flops"] == pytest.approx(4 * one["unet_flops"], rel=0.01)
    assert four["feature_flops"] == 4 * one["feature_flops"]
    assert four["parameters"] == one["parameters"]
    assert four["operators"] == pytest.approx(one["operators"], rel=0.1)


def test_a_pass_forward_and_backward_takes_three_times_the_forward_pass_but_for_the_first_layer():
    args = settings("--train_batch_size", "2")
    found = cost(args)
    unet = build_unet(64, 4, 192, args.block_out_channels, args.layers_per_block)
    first = 2 * 2 * 16 * 16 * unet.conv_in.weight.numel()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(2, 48, 16, 16), torch.zeros(2, dtype=torch.long))
    assert found["unet_flops"] == pytest.approx(3 * counter.get_total_flops() - first, rel=0.01)


def test_what_is_kept_for_the_backward_pass_is_what_real_tensors_keep_and_less_when_it_is_computed_again():
    args = settings("--train_batch_size", "2", "--mixed_precision", "no")
    found = cost(args)
    unet = build_unet(64, 4, 192, args.block_out_channels, args.layers_per_block)
    real = _KeptTensors(unet)
    with torch.autograd.graph.saved_tensors_hooks(real.note, lambda tensor: tensor):
        unet(torch.zeros(2, 48, 16, 16), torch.zeros(2, dtype=torch.long))[0].square().mean()
    assert found[KEPT] == pytest.approx(real.bytes, rel=0.1)
    again = cost(settings("--train_batch_size", "2", "--mixed_precision", "no", "--gradient_checkpointing"))
    assert again[KEPT] < 0.6 * found[KEPT]
    assert again["unet_flops"] > 1.1 * found["unet_flops"]


def test_time_is_the_longer_of_arithmetic_and_sending_operators():
    args = settings()
    args.max_train_steps = 1000
    found = {"parameters": 1, "unet_flops": 2e12, "feature_flops": 1e12, "operators": 1000, KEPT: 2**30}
    assert "1000 steps: 100 minutes" in format_cost(args, found, 1, 0.5, 8)
    assert "1000 steps: 17 minutes" in format_cost(args, found, 1e6, 0.5, 1000)
