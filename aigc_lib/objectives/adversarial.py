"""Losses of the two players of a GAN, on logits: a = logit D(x), so that D = σ(a).

The discriminator D(x) is its probability that x is real; the generator's images are x̃ = G(z).

    V(D, G) = E[log D(x)] + E[log(1 − D(x̃))],

which D maximises by minimising `discriminator_loss`. For the generator three losses circulate; they
differ in what they do to the logit of a fake, and all of them push it up:

    saturating        log(1 − D)    slope −D             the game's own; flat where D is sure
    non-saturating    −log D        slope −(1 − D)       steepest where D is sure
    probability       −D            slope −D (1 − D)     flat on both sides

The hinge pair plays another game, on the bare score a. Everything is per example; what is made of
logarithms is in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib.ops.cross_entropy import loss_dtype


def discriminator_loss(real: Float[Tensor, " B"], fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What the discriminator minimises in the minimax game: two cross-entropies, real and fake.

    −log σ(a) − log(1 − σ(ã)),   in nats for a pair of a real and a fake example.

    Its mean estimates −V(D, G) ≥ log 4 − 2 JSD(p, q), with equality at D = p / (p + q). A
    discriminator that says ½ to everything has log 4.

    Source: Goodfellow et al. 2014, equation 1, with the sign turned.
    Derived: 30_gan_minimax eq-value

    Args:
        real: a, logits of real examples.
        fake: ã, logits of as many generated ones, whose graph should end at the examples.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: not one axis each, or not equally many.
    """
    real, fake = _wide(real=real, fake=fake)
    return -F.logsigmoid(real) - F.logsigmoid(-fake)


def saturating_generator_loss(fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What the generator minimises in the minimax game: D's log probability of having seen a fake.

    log(1 − σ(ã)),   in nats; its slope in ã is −D.

    Unbounded below. Where D is sure of a fake the slope is nearly 0: it saturates.

    Source: Goodfellow et al. 2014, equation 1: the term of V that G enters.
    Derived: 30_gan_minimax eq-slopes

    Args:
        fake: ã, logits of generated examples.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: not one axis.
    """
    (fake,) = _wide(fake=fake)
    return F.logsigmoid(-fake)


def non_saturating_generator_loss(fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What the generator minimises in practice: minus D's log probability that the fake is real.

    −log σ(ã),   in nats; its slope in ã is −(1 − D).

    Source: Goodfellow et al. 2014, section 3: "maximize log D(G(z))".
    Derived: 30_gan_minimax eq-slopes

    Args:
        fake: ã, logits of generated examples.

    Returns:
        (B,), 0 or more, at least float32.

    Raises:
        ValueError: not one axis.
    """
    (fake,) = _wide(fake=fake)
    return -F.logsigmoid(fake)


def probability_generator_loss(fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """A generator's loss that some texts print: minus D's probability that the fake is real.

    −σ(ã),   a probability, not nats; its slope in ã is −D (1 − D).

    It is here to be compared: the slope is nearly 0 wherever D is sure, in either direction.

    Source: Popular texts; compare Goodfellow et al. 2014, section 3, whose loss has the logarithm.
    Derived: 30_gan_minimax eq-slopes

    Args:
        fake: ã, logits of generated examples.

    Returns:
        (B,), from −1 to 0, at least float32.

    Raises:
        ValueError: not one axis.
    """
    (fake,) = _wide(fake=fake)
    return -torch.sigmoid(fake)


def hinge_discriminator_loss(
    real: Float[Tensor, " B"], fake: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """What the discriminator minimises in the hinge game: how far scores miss a margin.

    max(0, 1 − a) + max(0, 1 + ã),   in units of the score.

    An example on its own side of the margin costs nothing and teaches nothing.

    Source: Lim and Ye 2017; Miyato et al. 2018, equation 16, with the sign turned.
    Derived: 30_gan_minimax eq-hinge

    Args:
        real: a, scores of real examples; no probability is made of them.
        fake: ã, scores of as many generated ones, whose graph should end at the examples.

    Returns:
        (B,), 0 or more, at least float32.

    Raises:
        ValueError: not one axis each, or not equally many.
    """
    real, fake = _wide(real=real, fake=fake)
    return F.relu(1 - real) + F.relu(1 + fake)


def hinge_generator_loss(fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What the generator minimises in the hinge game: minus the score of the fake.

    −ã,   in units of the score; its slope is −1 everywhere.

    Source: Lim and Ye 2017; Miyato et al. 2018, equation 17.
    Derived: 30_gan_minimax eq-hinge

    Args:
        fake: ã, scores of generated examples.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: not one axis.
    """
    (fake,) = _wide(fake=fake)
    return -fake


def _wide(**logits: Tensor) -> list[Tensor]:
    """The logits in at least float32, if each has one axis and all are equally many."""
    shapes = [tuple(a.shape) for a in logits.values()]
    if any(len(shape) != 1 for shape in shapes) or len(set(shapes)) != 1:
        found = " and ".join(map(str, shapes))
        raise ValueError(
            f"expected one logit per example, (B,), for {', '.join(logits)}, got {found}"
        )
    return [a.to(loss_dtype(a)) for a in logits.values()]
