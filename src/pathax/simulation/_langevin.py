"""Sampling by underdamped Langevin dynamics, with a warm-up and honest accounts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, PRNGKeyArray

from ..solvers import ShOULD
from ._chains import Chains, Dynamics


# The tolerance of the warm-up of a run with constant steps, and the error of the step
# that it chooses.
_WARM, _AIM = 0.05, 0.01


_LOST = (
    "{} solves of a block took more than {} steps, or a chain left the numbers: start "
    "nearer to where the density is, or give a smaller `step` or a larger `max_steps`."
)


class LangevinSamples(NamedTuple):
    """What [`pathax.simulation.langevin`][] returns.

    **Attributes:**

    - `samples`: of shape `(chains, samples, d)`.
    - `gradients`: evaluations of the gradient of the potential while sampling, of all
      chains together, rejected steps included.
    - `warmup_gradients`: those before, trials of steps included.
    - `rejected_gradients`: those of rejected steps while sampling.
    - `scale`: standard deviations, or the factor of the covariance, that the inverse
      mass matrix is the square of; in a unit of time in which the slowest direction
      has frequency one.
    - `friction`: in that unit of time.
    - `step`: the constant step, or the mean of adaptive ones, in that unit.
    - `gradients_per_sample`: without the warm-up.
    """

    samples: Array
    gradients: int
    warmup_gradients: int
    rejected_gradients: int
    scale: Array
    friction: float
    step: float
    gradients_per_sample: float


def langevin(
    potential: Callable[[Array], Array],
    key: PRNGKeyArray,
    initial: Array,
    *,
    samples: int,
    solver: dfx.AbstractSolver | None = None,
    tolerance: float | None = 0.05,
    step: float | None = None,
    spacing: float = 2.0,
    friction: float = 1.0,
    mass: str = "diagonal",
    warmup: int = 6,
    block: int = 32,
    max_steps: int = 4096,
) -> LangevinSamples:
    r"""Samples of $e^{-f}$ by underdamped Langevin dynamics, many chains at once.

    $$dx = v\,dt, \qquad dv = -\gamma v\,dt - M^{-1} \nabla f(x)\,dt
      + \sqrt{2 \gamma}\, M^{-1/2} dW,$$

    solved at order three, each chain on the Brownian path of one seed, with adaptive or
    with constant steps. There is no rejection of samples: what the steps get wrong
    stays in the samples, so halve `tolerance` or `step` to see whether it matters.

    **Arguments:**

    - `potential`: $f$, from an array `(d,)` to a scalar; differentiable.
    - `key`: random key; chain $i$ has `jax.random.fold_in(key, i)`.
    - `initial`: where the chains start, well spread.
    - `samples`: how many to keep of each chain.
    - `solver`: a Diffrax solver for Langevin terms; [`pathax.solvers.ShOULD`][] if
      `None`, of order three with two gradients a step.
    - `tolerance`: of the error of a step, in units of the velocity's standard
      deviation. A solver without an estimate of its error takes each step twice more,
      in halves. `None` is for constant steps.
    - `step`: the constant step. If `None` the warm-up chooses one with an error of
      0.01.
    - `spacing`: time between samples, in which what lies between is thinned out.
    - `friction`: $\gamma$.
    - `mass`: what the warm-up estimates $M^{-1}$ from: `"diagonal"`, squares of
      spreads; `"dense"`, the covariance; `"identity"`, nothing. But for the last, the
      unit of time is then such that the slowest direction, by the largest eigenvalue of
      what is left of the covariance, has frequency one, so that `friction` and
      `spacing` mean the same for all potentials.
    - `warmup`: number of blocks before the first sample is kept, the first ones
      shorter, always with adaptive steps. After each, $M$ is that of the block.
    - `block`: samples of each chain in one compiled call.
    - `max_steps`: adaptive steps aren't made smaller than `spacing` over this, whatever
      their error.

    **Returns:** a [`pathax.simulation.LangevinSamples`][].

    **Raises:** `ValueError` for options that don't fit together; `RuntimeError` if a
    chain took too many steps or left the numbers.

    **Cost:** counted, see `gradients`. In time all chains wait for the one that takes
    the most steps to its next sample.

    **Precision:** noise and its time integrals are exact in float32 at every step.

    **Reference:** J. Foster, T. Lyons and H. Oberhauser, The shifted ODE method for
    underdamped Langevin MCMC, arXiv 2101.03446. The estimate of the error and the
    warm-up are our own.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sd = jnp.array([1.0, 10.0])
    >>> found = px.simulation.langevin(
    ...     lambda x: 0.5 * jnp.sum((x / sd) ** 2),
    ...     jax.random.key(0),
    ...     jax.random.normal(jax.random.key(1), (32, 2)),
    ...     samples=64,
    ... )
    >>> found.samples.shape
    (32, 64, 2)
    >>> bool(jnp.all(jnp.abs(found.samples.std((0, 1)) / sd - 1) < 0.2))
    True

    ```
    """
    _check(initial, samples, tolerance, step, spacing, friction, mass, warmup, block)
    dynamics = lambda tolerance: Dynamics(
        potential,
        ShOULD() if solver is None else solver,
        friction=friction,
        spacing=spacing,
        block=block,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    count, size = initial.shape
    numbers = jnp.arange(count)
    keys = jax.jit(
        lambda phase: jax.vmap(
            lambda i: jax.random.fold_in(jax.random.fold_in(key, i), phase)
        )(numbers)
    )
    run = _Run(dynamics(_WARM if tolerance is None else tolerance), initial, keys)
    for i in range(warmup):
        run.advance(min(block, 4 * 2**i))
        run.adapt(mass)
    if tolerance is None:
        run.make_constant(dynamics(None), step)
    spent, run.gradients, run.rejected, run.steps = run.gradients, 0, 0, 0
    lengths = [min(block, samples - i) for i in range(0, samples, block)]
    kept = [run.advance(length) for length in lengths]
    x = jnp.concatenate(kept, axis=1)
    time = samples * spacing * count
    assert x.shape == (count, samples, size)
    return LangevinSamples(
        samples=x,
        gradients=run.gradients,
        warmup_gradients=spent,
        rejected_gradients=run.rejected,
        scale=run.scale,
        friction=friction,
        step=time / max(run.steps, 1),
        gradients_per_sample=run.gradients / (count * samples),
    )


def _check(
    initial, samples, tolerance, step, spacing, friction, mass, warmup, block
) -> None:
    if initial.ndim != 2 or not jnp.issubdtype(initial.dtype, jnp.floating):
        raise ValueError(
            "`initial` must be a floating array of shape (chains, d); got "
            f"{initial.dtype} of shape {initial.shape}."
        )
    if min(samples, block) < 1 or warmup < 0:
        raise ValueError(
            "`samples` and `block` must be at least 1 and `warmup` at least 0; got "
            f"{samples}, {block} and {warmup}."
        )
    if not min(spacing, friction) > 0:
        raise ValueError(
            f"`spacing` and `friction` must be positive; got {spacing} and {friction}."
        )
    if mass not in ("diagonal", "dense", "identity"):
        raise ValueError(
            f'`mass` must be "diagonal", "dense" or "identity"; got {mass!r}.'
        )
    if tolerance is not None and step is not None:
        raise ValueError(
            "Steps are either adaptive, with `tolerance=...`, or constant, with "
            f"`tolerance=None, step=...`; got {tolerance} and {step}."
        )
    if step is not None and not 0 < step <= spacing:
        raise ValueError(
            f"`step` must be positive and at most `spacing`; got {step} and {spacing}."
        )


class _Run:
    """Chains on their way, their scale, and what they have spent."""

    def __init__(self, dynamics: Dynamics, initial: Array, keys: Any):
        self.dynamics, self.keys, self.phase = dynamics, keys, 0
        size = initial.shape[1]
        self.scale = jnp.ones(size, initial.dtype)
        self.dt = dynamics.spacing / 64
        self.gradients = self.rejected = self.steps = 0
        self.last = initial[:, None]
        self.restart(initial)

    def _divisor(self, dt: float) -> float:
        """The largest step not above `dt` of which the spacing is a multiple."""
        return self.dynamics.spacing / math.ceil(self.dynamics.spacing / dt * 0.9999)

    def _keys(self) -> Array:
        self.phase += 1
        return self.keys(self.phase)

    def restart(self, x: Array) -> None:
        """Place the chains at `x`, in units of `scale`, with new velocities."""
        if self.scale.ndim == 1:
            z = x / self.scale[None]
        else:
            z = jax.scipy.linalg.solve_triangular(self.scale, x.T, lower=True).T
        draw = lambda key: jax.random.normal(key, z.shape[1:], z.dtype)
        v = jax.vmap(draw)(self._keys())
        self.chains = Chains(z, v, jnp.full(z.shape[0], self.dt, z.dtype))

    def advance(self, count: int) -> Array:
        """So many samples of each chain, `(chains, count, d)`."""
        place = self.chains, self._keys(), self.scale
        try:
            found = self.dynamics.run(*place, jnp.asarray(count, jnp.int32))
            self.chains, x, spent = jax.block_until_ready(found)
        except RuntimeError as error:  # times that aren't finite, in the tree
            raise RuntimeError(
                _LOST.format("Some", 4 * self.dynamics.max_steps)
            ) from error
        x = x[:, :count]
        sums = [int(np.asarray(s, np.int64).sum()) for s in spent]
        self.gradients += sums[0]
        self.rejected += sums[1]
        self.steps += sums[2]
        if sums[3] or not bool(jnp.all(jnp.isfinite(x))):
            raise RuntimeError(_LOST.format(sums[3], 4 * self.dynamics.max_steps))
        self.last = x
        return x

    def adapt(self, mass: str) -> None:
        """Take the scale from the last block."""
        x = np.asarray(self.last, np.float64)
        scale = scale_of(x.reshape(-1, x.shape[-1]), mass)
        self.scale = jnp.asarray(scale, self.scale.dtype)
        self.restart(self.last[:, -1])

    def make_constant(self, dynamics: Dynamics, step: float | None) -> None:
        """Go on with constant steps; without one given, with one whose error is `_AIM`,
        by trials at where the chains are.
        """
        self.dynamics = dynamics
        self.dt = self._divisor(dynamics.spacing / 8 if step is None else step)
        for _ in range(4 if step is None else 0):
            dt = jnp.asarray(self.dt, self.scale.dtype)
            errors = self.dynamics.errors(self.chains, self._keys(), self.scale, dt)
            error = float(jnp.sqrt(jnp.mean(errors**2)))
            self.gradients += 6 * errors.size
            factor = (_AIM / max(error, 1e-12)) ** (1 / 3.5)
            if not math.isfinite(factor):
                factor = 0.25
            wanted = self.dt * min(max(factor, 0.25), 4.0)
            self.dt = self._divisor(min(wanted, self.dynamics.spacing))
        z = self.chains.z
        self.chains = self.chains._replace(dt=jnp.full(z.shape[0], self.dt, z.dtype))


def scale_of(x: np.ndarray, mass: str) -> np.ndarray:
    """The square root of the inverse mass, of samples `(n, d)`.

    Spreads are half the distance of the 16% and the 84% quantile, and correlations are
    those of ranks: moments of a heavy tail would be those of a few samples. Then all is
    stretched by the largest standard deviation that is left, which makes that direction
    the one of frequency one.
    """
    count, size = x.shape
    if mass == "identity":
        return np.ones(size)
    low, high = np.quantile(x, [0.16, 0.84], axis=0)
    spread = np.maximum((high - low) / 2, 1e-12 * np.abs(x).max() + 1e-30)
    ranks = np.argsort(np.argsort(x, axis=0), axis=0)
    scores = np.asarray(ndtri((ranks + 0.5) / count), np.float64)
    rho = np.corrcoef(scores.T).reshape(size, size)
    if mass == "dense":
        rho = (count * rho + size * np.eye(size)) / (count + size)
        return spread[:, None] * np.linalg.cholesky(rho)
    return spread * math.sqrt(float(np.linalg.eigvalsh(rho)[-1]))
