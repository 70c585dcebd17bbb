"""Where the tests' files are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TILES = ROOT / "tests" / "fixtures" / "magnetic_tile"

TILE = TILES / "test" / "blowhole" / "exp1_num_4944.jpg"
"""Accepted by the tiny pipeline at 4 % and at 20 %."""
