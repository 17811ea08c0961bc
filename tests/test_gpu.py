"""The learner on a GPU.  Without one, these tests are skipped: a GPU is never needed.

With one, demonstrations are made in demos/ if they are missing, as any run makes them.
"""

import csv

import numpy as np
import pytest
import torch

import d4pg
import mili
import train
from tests.conftest import tiny

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


@pytest.mark.parametrize("obs", ["features", "pixels"])
def test_d4pg_learns_on_a_gpu_what_it_learns_on_a_cpu(obs):
    rng, ends = np.random.default_rng(0), []
    look = rng.normal(size=(2, 64, 51)).astype(np.float32)
    if obs == "pixels":
        look = rng.integers(256, size=(2, 64, 32, 32, 3), dtype=np.uint8)
    batch = {"obs": look[0], "next_obs": look[1], "reward": rng.random((64, 1), np.float32),
             "action": rng.uniform(-1, 1, (64, 9)).astype(np.float32),
             "discount": np.full((64, 1), 0.9, np.float32)}  # fmt: skip
    for device in ("cpu", GPU):
        torch.manual_seed(0)
        agent = d4pg.Agent(tiny(d4pg, device=device, obs=obs, size=32), look.shape[2:], 9)
        there = {name: torch.from_numpy(value).to(device) for name, value in batch.items()}
        losses = []
        for _ in range(3):
            metrics, TD = agent.update(there, agent.targets(there), None)
            losses.append([*map(float, metrics.values()), *TD.tolist()])
        ends.append(losses)
    np.testing.assert_allclose(*ends, rtol=0.02, atol=0.002)
    assert ends[0][0] != ends[0][2]


def test_mili_learns_on_a_gpu_what_it_learns_on_a_cpu(tmp_path):
    """Images are augmented there, and looked at: losses are the same, and which way they fall."""
    ends, ways = [], []
    for device in ("cpu", GPU):
        config = tiny(mili, device=device)
        mili.make_missing(config)
        run = mili.make_run(config)
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # whatever the processor: `d4pg.tune`
        run.folder = tmp_path
        run.start().learn(0, 0.0)
        ends.append(run.losses)
        slopes = [p.grad.cpu().flatten() for p in run.agent.nets.parameters() if p.requires_grad]
        ways.append(torch.cat(slopes))
    np.testing.assert_allclose(*ends, rtol=0.005)
    assert torch.cosine_similarity(*ways, dim=0) > 0.99


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("d4pg", "--steps 600"),
        ("metamimic", "--steps 600"),
        ("metamimic", "--steps 600 --obs pixels --size 32 --shift 2 --tell 1"),
        ("mili", "--method meta --half yes"),
    ],
)
def test_a_run_on_a_gpu_goes_on_and_is_judged_on_a_cpu(algorithm, flags, tmp_path):
    out, flags = tmp_path / "run", ["--preset", "tiny", *flags.split()]
    train.main([algorithm, *flags, "--device", GPU, "--out", str(out)])
    if algorithm != "mili":
        train.main([algorithm, "--resume", str(out), "--device", "cpu", "--steps", "700"])
    train.main(["eval", str(out)])
    with open(out / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["updates"]) > 0
