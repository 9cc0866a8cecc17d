"""What the papers report, for tasks that are larger than those run here.

Pal et al. 2021 and 2023, as reprinted in A. Pal's thesis (MIT, 2023): evaluations
without and with the method, and what was measured of the fit, in the paper's unit.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One method on one task, beside the plain twin of the same table."""

    task: str
    method: str
    evaluations: tuple[float, float]
    fit: tuple[float, float]
    unit: str

    @property
    def ratio(self) -> float:
        """Of evaluations."""
        plain, own = self.evaluations
        return own / plain


MNIST, PHYSIONET = "MNIST, 28 x 28", "PhysioNet 2012, latent ODE"
NSDE, SPIRAL = "MNIST, stochastic", "spiral, stochastic"
RIGHT, LOSS, SQUARES = "% right", "loss, 1e-3", "mean square"
PUBLISHED = (
    Row(MNIST, "steer", (253.0, 265.0), (97.94, 97.94), RIGHT),
    Row(MNIST, "error", (253.0, 177.0), (97.94, 97.32), RIGHT),
    Row(MNIST, "stiffness", (253.0, 259.0), (97.94, 98.08), RIGHT),
    Row(MNIST, "published unbiased", (303.559, 187.961), (97.612, 97.526), RIGHT),
    Row(MNIST, "published biased", (303.559, 182.849), (97.612, 97.488), RIGHT),
    Row(PHYSIONET, "steer", (733.0, 699.0), (3.55, 3.48), LOSS),
    Row(PHYSIONET, "error", (733.0, 287.0), (3.55, 3.57), LOSS),
    Row(PHYSIONET, "stiffness", (733.0, 273.0), (3.55, 3.58), LOSS),
    Row(PHYSIONET, "published unbiased", (758.0, 422.0), (3.41, 3.64), LOSS),
    Row(PHYSIONET, "published biased", (758.0, 463.0), (3.41, 3.63), LOSS),
    Row(SPIRAL, "error", (528.67, 502.0), (0.0217, 0.0227), SQUARES),
    Row(SPIRAL, "stiffness", (528.67, 502.0), (0.0217, 0.0204), SQUARES),
    Row(NSDE, "error", (411.33, 184.67), (96.95, 96.27), RIGHT),
    Row(NSDE, "stiffness", (411.33, 382.0), (96.95, 96.80), RIGHT),
    Row(NSDE, "published unbiased", (313.86, 228.93), (96.66, 96.57), RIGHT),
    Row(NSDE, "published biased", (313.86, 230.10), (96.66, 96.44), RIGHT),
)
