"""Races between implementations: `python -m bench`, one script per op.

    race      interleave arms in shuffled rounds, turn the samples into ratios and verdicts
    arms      how an implementation enters a race: as it is, compiled, under a setting
    gate      who may race at all: only what computes the right thing
    clock     one sample of a call's time, on the CPU and on CUDA, and the machine's ceilings
    memory    peak memory of one call; on the CPU in a process of its own
    report    the table on the screen and the dated JSON file, kept in bench/results/

The other modules hold the cases, `cases(device, *, quick, compiled)`: those of the ops that
`aigc_lib.ops.registry` lists, and decode. `quick` makes them small, `compiled` puts torch.compile
among the peers. Three comparisons stand apart, in `bench.experiments`: `language` trains language
models for equal CPU time, `dcgan` a DCGAN without one rule at a time, `diffusion` one U-Net by
three losses.
"""
