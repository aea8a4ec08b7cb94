"""The shared library of the course "AIGC from First Principles".

Map of the package (a learner can read all of it in a weekend):

    device       choose a device and dtype, seed everything, limit threads
    doctor       `python -m aigc_lib.doctor`: what this machine can run
    expect       what a function expects of its input, in one line each
    check        how a chapter proves a claim: identities, matches, bands
    grading      what an assignment's tests are made of
    plotting     palette, grids, curves
    checkpoint   atomic save and load of tensors and JSON; nothing is ever unpickled
    schedules    noise schedules of diffusion: signal, sigma, and the maps between predictions
    train        the training loop, a generator of Step records
    optimizers   several that step as one: Muon for the matrices, AdamW for all else
    ema          the running average of a model's weights
    ops          functions on tensors: formula, reference, dispatch
    kernels      Triton, for the ops that have a kernel
    layers       modules shared by two or more models
    models       one family per file: a config and its modules; weights/ of the judge of digits
    objectives   likelihoods, the ELBO, losses of GANs and of diffusion: one value per example
    sampling     decoding: temperature, top-k, top-p, a cache; diffusion: from noise to data
    data         embedded data sets, made or already installed; MNIST, to be fetched, is optional
    metrics      bits per character, exact match, BLEU; recognition, coverage, Fréchet distance

Shape letters, the same everywhere:

    B batch        T tokens or time    M memory tokens (keys of another sequence)
    C channels     H heads             K head width          V vocabulary
    D data dims    Z latent            Y X image rows and columns
    S sampling steps                   N rows                G groups

Importing this package has no side effects and needs neither CUDA nor Triton.
"""
