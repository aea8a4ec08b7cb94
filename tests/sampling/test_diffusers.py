"""An independent reference: the samplers' steps are those of diffusers' schedulers."""

import diffusers
import pytest
import torch

from aigc_lib.sampling.diffusion import ancestral, ddim, exponential
from aigc_lib.schedules import Straight, cosine, linear
from tests.noise import normal


def theirs(kind, schedule, **settings):
    betas = schedule.beta.numpy()
    scheduler = getattr(diffusers, kind)(len(betas), trained_betas=betas, **settings)
    scheduler.alphas_cumprod = (1 - torch.tensor(betas)).cumprod(0)  # theirs are float32
    return scheduler


SETTINGS = [
    (linear(60), "eps", "epsilon", None),
    (cosine(60), "v", "v_prediction", None),
    (linear(60), "x0", "sample", (-1.0, 1.0)),
]
TIMES = list(range(54, -1, -6))
settings = pytest.mark.parametrize(
    ("schedule", "kind", "name", "clip"), SETTINGS, ids=["eps", "v", "x0 clipped"]
)


def predictions(x, t):
    """Anything: the samplers need no good network to agree."""
    return torch.sin(3 * x) * (0.5 + 0.01 * t)


def ours(sampler, schedule, kind, times, start, **options):
    """Our x after each step, with the same predictions at the same times and the same noise."""
    upcoming = iter(times)
    options |= {"parameterisation": kind, "generator": torch.Generator().manual_seed(7)}
    run = sampler(
        lambda x, c: predictions(x, next(upcoming)), schedule, tuple(start.shape), times=times,
        start=start, **options,
    )  # fmt: skip
    return [state.x for state in run][1:]


def compare(ours, scheduler, times, start, tol=1e-10, **options):
    x, draw = start, torch.Generator().manual_seed(7)
    if options.pop("draws", False):
        options["generator"] = draw
    for t, mine in zip(times, ours, strict=True):
        x = scheduler.step(predictions(x, t), t, x, **options).prev_sample
        assert (x - mine).abs().max() < tol * (1 + x.abs().max())


@settings
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("times", [list(range(59, -1, -1)), TIMES], ids=["all", "some"])
def test_ancestral_is_that_of_diffusers(schedule, kind, name, clip, variance, times):
    scheduler = theirs(
        "DDPMScheduler", schedule, prediction_type=name, clip_sample=clip is not None,
        variance_type={"beta": "fixed_large", "beta_tilde": "fixed_small"}[variance],
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=times)
    start = normal(4, 3)
    mine = ours(ancestral, schedule, kind, times, start, variance=variance, clip=clip)
    compare(mine, scheduler, times, start, draws=True)


@settings
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(schedule, kind, name, clip, eta):
    scheduler = theirs(
        "DDIMScheduler", schedule, prediction_type=name, clip_sample=clip is not None
    )
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == TIMES
    start = normal(4, 3)
    mine = ours(ddim, schedule, kind, TIMES, start, eta=eta, clip=clip)
    compare(mine, scheduler, TIMES, start, eta=eta, draws=True, use_clipped_model_output=True)


@settings
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("times", [TIMES, [59, 50, 30, 21, 3]], ids=["even", "uneven"])
def test_dpm_solver_is_that_of_diffusers(schedule, kind, name, clip, times):
    scheduler = theirs(
        "DPMSolverMultistepScheduler", schedule, prediction_type=name, solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=times)
    start = normal(4, 3)
    mine = ours(exponential, schedule, kind, times, start)
    compare(mine, scheduler, times, start, tol=2e-5)  # its sigmas are float32


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, {"num_inference_steps": 10}),
        ({"shift": 3.0}, {"num_inference_steps": 7}),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 6, "mu": 0.8}),
        ({}, {"sigmas": [1.0, 0.85, 0.3, 0.02]}),
    ],
    ids=["even", "shift 3", "by image size", "given"],
)
def test_eulers_flow_is_that_of_diffusers(settings, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, **settings)
    scheduler.set_timesteps(**steps)
    times, x = scheduler.sigmas[:-1].tolist(), normal(4, 3).float()
    mine = ours(ddim, Straight(), "velocity", times, x)
    assert len(mine) == len(times)
    for t, timestep, got in zip(times, scheduler.timesteps, mine, strict=True):
        x = scheduler.step(predictions(x, t), timestep, x).prev_sample
        assert (x - got).abs().max() < 2e-6  # theirs is float32
