"""Losses of the two players of a GAN, on logits: a = logit D(x), so that D = σ(a).

The discriminator D(x) is its probability that x is real; the generator's images are x̃ = G(z).

    V(D, G) = E[log D(x)] + E[log(1 − D(x̃))],

which D maximises by minimising `discriminator_loss`. For the generator three losses circulate; they
differ in what they do to the logit ã of a fake, and all of them push it up:

    saturating        log(1 − D)    slope −D             the game's own; flat where D is sure
    non-saturating    −log D        slope −(1 − D)       steepest where D is sure
    probability       −D            slope −D (1 − D)     flat on both sides

The hinge pair plays another game, on the bare score a. All is per example and at least float32;
what is made of logarithms is in nats. In D's step the graph of the fakes should end at the images.
Other shapes than (B,), one B for real and fake, raise ValueError.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype

Each = Float[Tensor, " B"]


def discriminator_loss(real: Each, fake: Each) -> Each:
    """−log σ(a) − log(1 − σ(ã)): what D minimises, two cross-entropies for a real and a fake.

    Its mean estimates −V(D, G) ≥ log 4 − 2 JSD(p, q), equal at D = p/(p + q); log 4 where D = ½.

    Source: Goodfellow et al. 2014, equation 1, with the sign turned.
    Derived: 30_gan_minimax eq-value
    """
    real, fake = _wide(real=real, fake=fake)
    return -F.logsigmoid(real) - F.logsigmoid(-fake)


def saturating_generator_loss(fake: Each) -> Each:
    """log(1 − σ(ã)): what G minimises in the minimax game; unbounded below.

    Source: Goodfellow et al. 2014, equation 1: the term of V that G enters.
    Derived: 30_gan_minimax eq-slopes
    """
    (fake,) = _wide(fake=fake)
    return F.logsigmoid(-fake)


def non_saturating_generator_loss(fake: Each) -> Each:
    """−log σ(ã): what G minimises in practice.

    Source: Goodfellow et al. 2014, section 3: "maximize log D(G(z))".
    Derived: 30_gan_minimax eq-slopes
    """
    (fake,) = _wide(fake=fake)
    return -F.logsigmoid(fake)


def probability_generator_loss(fake: Each) -> Each:
    """−σ(ã): what some texts print, here to be compared; a probability, not nats.

    Source: Popular texts; compare Goodfellow et al. 2014, section 3, whose loss has the logarithm.
    Derived: 30_gan_minimax eq-slopes
    """
    (fake,) = _wide(fake=fake)
    return -torch.sigmoid(fake)


def hinge_discriminator_loss(real: Each, fake: Each) -> Each:
    """max(0, 1 − a) + max(0, 1 + ã): how far scores miss a margin, in units of the score.

    An example on its own side of the margin costs nothing and teaches nothing.

    Source: Lim and Ye 2017; Miyato et al. 2018, equation 16, with the sign turned.
    Derived: 30_gan_minimax eq-hinge
    """
    real, fake = _wide(real=real, fake=fake)
    return F.relu(1 - real) + F.relu(1 + fake)


def hinge_generator_loss(fake: Each) -> Each:
    """−ã: minus the score of the fake, of slope −1 everywhere.

    Source: Lim and Ye 2017; Miyato et al. 2018, equation 17.
    Derived: 30_gan_minimax eq-hinge
    """
    (fake,) = _wide(fake=fake)
    return -fake


def _wide(**logits: Tensor) -> list[Tensor]:
    expect.shaped(("B",), **logits)
    return [a.to(loss_dtype(a)) for a in logits.values()]
