"""A denoiser that torchao has quantised, in a process of its own: torchao prints and warns wherever it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TORCHAO = ROOT / "build/torchao"
"""Where ``make families`` puts it."""
SCRIPT = """
import shutil, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import diffusers, torch
from torchao.quantization import Int8WeightOnlyConfig
from handler.engine.starting import start
from handler.settings import Settings
from tests.engine.test_sources import picture
from tests.families import rectified_flows

torch.set_num_threads(1)
folder = Path(sys.argv[1])
stock = rectified_flows.flux()
drawn = picture(stock)
stock.save_pretrained(folder)
quantised = type(stock.transformer).from_pretrained(
    folder / "transformer", quantization_config=diffusers.TorchAoConfig(Int8WeightOnlyConfig()), dtype=torch.float32
)
shutil.rmtree(folder / "transformer")
quantised.save_pretrained(folder / "transformer")
engine = start(Settings(model_id=str(folder), dtype="float32", max_batch=2, cache_dir=str(folder / "cache")))
kinds = {type(one).__name__ for one in engine.pipe.transformer.parameters()}
unlike = abs(picture(engine.pipe) - drawn).max()
print("told:", sorted(kinds), engine.batcher.merging, 0 < unlike < 0.1)
engine.close()
"""


@pytest.mark.families
def test_a_denoiser_that_torchao_has_quantised(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TORCHAO), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "told: ['Int8Tensor', 'Parameter'] True True" in done.stdout
