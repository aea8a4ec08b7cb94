"""`python -m bench.experiments.autoencoder [--steps 1500] [--seed 0] [--dry]`: 43's autoencoder.

It learns to draw scenes of the training split again after they went through a small latent; no
pair of shape and colour that is held out is ever seen. The weights in chapters/results are those of
the command above without `--dry`, with which a trial writes nothing; command, date, device and
seed stand beside them in the file. The measures printed at the end use scenes with held-out pairs.
"""

import argparse
import datetime
import time

import torch
from torch import Tensor

from aigc_lib import checkpoint, train
from aigc_lib import device as devices
from aigc_lib.data.scenes import agreement, read, scenes
from aigc_lib.ema import EMA
from aigc_lib.models.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from aigc_lib.objectives.elbo import gaussian_kl
from bench import report
from tools import ROOT, command

WEIGHTS = ROOT / "chapters/results/43_latent_diffusion.autoencoder.safetensors"
CONFIG = AutoencoderConfig(channels=8, widths=(32, 64))
BETA, BATCH, LR, IMAGES = 1e-5, 64, 3e-3, 20_000


def fit(steps: int, seed: int) -> tuple[Autoencoder, float]:
    """The average of a trained autoencoder, its scale set, and the mean loss of the last steps."""
    devices.seed_everything(seed)
    draws = torch.Generator().manual_seed(seed)
    images = 2 * scenes(IMAGES, draws).images - 1
    net = Autoencoder(CONFIG).to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(
        net.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    ema = EMA(net, 0.995)

    def loss_fn(step: int) -> Tensor:
        x = images[torch.randint(IMAGES, (BATCH,), generator=draws)]
        noise = torch.randn(BATCH, *CONFIG.latent_shape, generator=draws)
        x_hat, mu, log_var = net(x, noise)
        return ((x_hat - x).square().flatten(1).sum(1) + BETA * gaussian_kl(mu, log_var)).mean()

    schedule = train.warmup_cosine(steps, warmup=min(50, steps - 1))
    run = train.run(loss_fn, net, adam, steps=steps, schedule=schedule, clip=20.0, ema=ema)
    losses = [step.loss for step in run]
    ema.model.fit_scale(images[:4000])
    return ema.model, sum(losses[-200:]) / len(losses[-200:])


@torch.no_grad()
def measured(net: Autoencoder, seed: int, count: int = 2000) -> dict:
    """Of held-out scenes drawn again: the error in [0, 1], and which share is read as it should be.

    "right 0.3" is with noise of deviation 0.3 on the latent, whose own is 1.
    """
    draws = torch.Generator().manual_seed(seed + 1)
    fresh = scenes(count, draws, held_out=True)
    latent, log_var = net.encode(2 * fresh.images - 1)
    found = {"deviation": latent.std().item(), "posterior": (0.5 * log_var).exp().mean().item()}
    for noise in (0.0, 0.1, 0.2, 0.3, 0.5):
        noisy = latent + noise * torch.randn(latent.shape, generator=draws)
        images = (net.decode(noisy) / 2 + 0.5).clamp(0, 1)
        if noise == 0:
            found["rmse"] = (images - fresh.images).square().mean().sqrt().item()
        right = agreement(fresh.facts, read(images))["all"]
        found[f"right {noise}"] = right.float().mean().item()
    return found


def main() -> int:
    """Train, measure and write; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.autoencoder",
        description="Train the autoencoder of chapter 43's scenes, and write its weights.",
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    devices.limit_threads(1)
    start, spent = time.perf_counter(), time.process_time()
    net, loss = fit(arguments.steps, arguments.seed)
    record = {
        "command": f"python -m bench.experiments.autoencoder --steps {arguments.steps}"
        f" --seed {arguments.seed}",
        "date": datetime.date.today().isoformat(),
        "device": report.processor(),
        "torch": str(torch.__version__),
        "threads": 1,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "loss": loss,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
        **measured(net, arguments.seed),
    }
    print("\n".join(f"{key:14}{value}" for key, value in record.items()))
    if not arguments.dry:
        config = {"channels": CONFIG.channels, "patch": CONFIG.patch, "widths": CONFIG.widths}
        tree = {"config": config, "weights": net.state_dict(), "record": record}
        checkpoint.save(WEIGHTS, tree)
        print(f"{WEIGHTS.relative_to(ROOT)}: {WEIGHTS.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    command(main)
