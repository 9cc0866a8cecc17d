"""Sampling by underdamped Langevin dynamics, with a warm-up and honest accounts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..solvers import ShOULD
from ._chains import Chains, Dynamics
from ._conditional import conditional
from ._coordinates import ConditionalScale, Coordinates, Linear
from ._mass import adapted


# The tolerance of the warm-up of a run with constant steps, the time of one of its
# rounds, and the error of the step that it chooses, tried on so many chains at most.
_WARM, _ROUND, _AIM, _TRIED = 0.5, 2.0, 0.02, 64
_CAUTIOUS = 0.01  # such an error, where the scale differs from place to place

_MASSES = "diagonal", "dense", "conditional", "identity"

# A covariance is estimated from so many points for each dimension.
_POINTS = 10


_LOST = (
    "{} solves of a block took more than {} steps, or a chain left the numbers: start "
    "nearer to where the density is, or give a smaller `step` or a larger `max_steps`."
)


class LangevinSamples(NamedTuple):
    """What [`pathax.simulation.langevin`][] returns.

    **Attributes:**

    - `samples`: of shape `(chains, samples, d)`.
    - `warmup_samples`: where the chains were after each round of the warm-up,
      `(chains, rounds, d)`.
    - `gradients`: evaluations of the gradient of the potential while sampling, of all
      chains together, rejected steps included.
    - `warmup_gradients`: those before, trials of steps included.
    - `rejected_gradients`: those of rejected steps while sampling.
    - `gradients_by_sample`: all evaluations up to each round of the warm-up and to each
      sample, `(rounds + samples,)`.
    - `scale`: standard deviations, or the factor of the covariance, that the inverse
      mass matrix is the square of; in a unit of time in which the slowest direction
      has frequency one. Or a [`pathax.simulation.ConditionalScale`][].
    - `friction`: in that unit of time.
    - `step`: the constant step, or the mean of adaptive ones, in that unit.
    - `spacing`: time between samples, a whole number of steps if those are constant.
    - `gradients_per_sample`: without the warm-up.
    """

    samples: Array
    warmup_samples: Array
    gradients: int
    warmup_gradients: int
    rejected_gradients: int
    gradients_by_sample: np.ndarray
    scale: Array | ConditionalScale
    friction: float
    step: float
    spacing: float
    gradients_per_sample: float


def langevin(
    potential: Callable[[Array], Array],
    key: PRNGKeyArray,
    initial: Array,
    *,
    samples: int,
    solver: dfx.AbstractSolver | None = None,
    tolerance: float | None = None,
    step: float | None = None,
    spacing: float = 3.0,
    friction: float = 1.0,
    mass: str = "dense",
    warmup: int | None = None,
    block: int = 32,
    max_steps: int = 4096,
) -> LangevinSamples:
    r"""Samples of $e^{-f}$ by underdamped Langevin dynamics, many chains at once.

    $$dx = v\,dt, \qquad dv = -\gamma v\,dt - M^{-1} \nabla f(x)\,dt
      + \sqrt{2 \gamma}\, M^{-1/2} dW,$$

    solved at order three, each chain on the Brownian path of one seed, with constant or
    with adaptive steps. There is no rejection of samples: what the steps get wrong
    stays in the samples, so halve `tolerance` or `step` to see whether it matters.

    **Arguments:**

    - `potential`: $f$, from an array `(d,)` to a scalar; differentiable.
    - `key`: random key; chain $i$ has `jax.random.fold_in(key, i)`.
    - `initial`: where the chains start, well spread.
    - `samples`: how many to keep of each chain.
    - `solver`: a Diffrax solver for Langevin terms; [`pathax.solvers.ShOULD`][] if
      `None`, of order three with two gradients a step.
    - `tolerance`: `None` for constant steps. Else of the error of an adaptive step, in
      units of the velocity's standard deviation. A solver without an estimate of its
      error takes each step twice more, in halves.
    - `step`: the constant step. If `None` the warm-up chooses the one whose error,
      averaged over the chains, is 0.02, or 0.01 with conditional scales.
    - `spacing`: time between samples, in which what lies between is thinned out. With
      constant steps it is the nearest multiple of the step.
    - `friction`: $\gamma$.
    - `mass`: what the warm-up estimates $M^{-1}$ as: `"dense"`, the covariance;
      `"diagonal"`, squares of spreads, for hundreds of dimensions and more;
      `"identity"`, nothing; `"conditional"`, a covariance whose scales depend on the
      position, see [`pathax.simulation.ConditionalScale`][], for hierarchies, where
      spreads of some entries are themselves unknown: give a `tolerance` with it, unless
      the potential is known to have that form. But for the identity, the unit of
      time is then such that the slowest direction, by the largest eigenvalue of what is
      left of the covariance, has frequency one, so that `friction` and `spacing` mean
      the same for all potentials.
    - `warmup`: rounds before the first sample is kept, of two units of time (or of one
      `spacing` if steps are adaptive or the mass is the identity). Each begins with a
      new $M$, from positions and gradients of all chains. By default eight, and as many
      more, up to 64, as it takes to have ten positions a dimension.
    - `block`: samples of each chain in one compiled call.
    - `max_steps`: adaptive steps aren't made smaller than `spacing` over this, whatever
      their error.

    **Returns:** a [`pathax.simulation.LangevinSamples`][].

    **Raises:** `ValueError` for options that don't fit together; `RuntimeError` if a
    chain took too many steps or left the numbers.

    **Cost:** counted, see `gradients`. In time all chains wait for the one that takes
    the most steps to its next sample. A dense mass takes `d^2` operations a gradient,
    and `d^3` a round; conditional scales twice as many a gradient, and a fit a round,
    of seconds for tens of dimensions.

    **Precision:** noise and its time integrals are exact in float32 at every step. On a
    Gaussian the steps that the warm-up chooses leave variances 1% too small.

    **Reference:** J. Foster, T. Lyons and H. Oberhauser, The shifted ODE method for
    underdamped Langevin MCMC, arXiv 2101.03446. Mass matrices by gradients: the
    minimizer of the Fisher divergence, as in A. Seyboldt, E. Carlson and B. Carpenter,
    Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence, arXiv
    2603.18845. The estimate of the error and the fit of conditional scales, by the
    same divergence, are our own.

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
    chains, size = initial.shape
    of = lambda tolerance, spacing: Dynamics(
        potential,
        ShOULD() if solver is None else solver,
        friction=friction,
        spacing=spacing,
        block=block,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    constant = tolerance is None
    free = mass == "identity"  # of our unit of time
    first = (
        of(_WARM, spacing if free else _ROUND) if constant else of(tolerance, spacing)
    )
    run = _Run(first, initial, _keys_of(key, chains), spacing / 64 if free else 1.0)
    if warmup is None:
        warmup = max(8, min(64, math.ceil(_POINTS * size / chains)))
    for _ in range(warmup):
        run.round(mass)
    run.adapt(mass)
    run.restart()
    if constant:
        dt = run.fitting_step() if step is None else step
        spacing = max(round(spacing / dt), 1) * dt
        run.dynamics, run.dt = of(None, spacing), dt
        run.restart()
    spent, run.rejected, run.steps = run.gradients, 0, 0
    lengths = [min(block, samples - i) for i in range(0, samples, block)]
    kept, by_sample = zip(*(run.advance(length) for length in lengths), strict=True)
    gradients = run.gradients - spent
    found = run.coordinates.cast(initial.dtype)
    return LangevinSamples(
        samples=jnp.concatenate(kept, axis=1),
        warmup_samples=run.trace(),
        gradients=gradients,
        warmup_gradients=spent,
        rejected_gradients=run.rejected,
        gradients_by_sample=np.concatenate([run.by_round, *by_sample]),
        scale=jnp.asarray(found.factor) if isinstance(found, Linear) else found,
        friction=friction,
        step=samples * spacing * chains / max(run.steps, 1),
        spacing=spacing,
        gradients_per_sample=gradients / (chains * samples),
    )


def _keys_of(key: PRNGKeyArray, chains: int) -> Callable[[int], Array]:
    """From a phase of a run to the keys of its chains."""
    numbers = jnp.arange(chains)
    one = lambda i, phase: jax.random.fold_in(jax.random.fold_in(key, i), phase)
    return jax.jit(lambda phase: jax.vmap(lambda i: one(i, phase))(numbers))


def _check(
    initial, samples, tolerance, step, spacing, friction, mass, warmup, block
) -> None:
    if initial.ndim != 2 or not jnp.issubdtype(initial.dtype, jnp.floating):
        raise ValueError(
            "`initial` must be a floating array of shape (chains, d); got "
            f"{initial.dtype} of shape {initial.shape}."
        )
    if min(samples, block) < 1 or (warmup is not None and warmup < 0):
        raise ValueError(
            "`samples` and `block` must be at least 1 and `warmup` at least 0; got "
            f"{samples}, {block} and {warmup}."
        )
    if not min(spacing, friction) > 0:
        raise ValueError(
            f"`spacing` and `friction` must be positive; got {spacing} and {friction}."
        )
    if mass not in _MASSES:
        raise ValueError(f"`mass` must be one of {', '.join(_MASSES)}; got {mass!r}.")
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
    """Chains on their way, their coordinates, and what they have spent."""

    def __init__(self, dynamics: Dynamics, initial: Array, keys: Any, dt: float):
        self.dynamics, self.keys, self.phase = dynamics, keys, 0
        self.coordinates: Coordinates = Linear(np.ones(initial.shape[1]))
        self.gradients = self.rejected = self.steps = 0
        self.dtype, self.dt, self.x = initial.dtype, dt, initial
        self.g = self._slopes()
        self.places: list[tuple[np.ndarray, np.ndarray]] = []
        self.by_round: list[int] = []

    def _slopes(self) -> np.ndarray:
        """Gradients where the chains are."""
        self.gradients += len(self.x)
        return np.asarray(self.dynamics.slopes(self.x), np.float64)

    def _keys(self) -> Array:
        self.phase += 1
        return self.keys(self.phase)

    def restart(self) -> None:
        """Place the chains where they are, in the coordinates, with new velocities."""
        z = self.coordinates.to_z(np.asarray(self.x, np.float64))
        g = self.coordinates.slopes_to_z(z, self.g)
        z, g = (jnp.asarray(part, self.dtype) for part in (z, g))
        draw = lambda key: jax.random.normal(key, z.shape[1:], z.dtype)
        v = jax.vmap(draw)(self._keys())
        self.chains = Chains(z, v, g, jnp.full(len(z), self.dt, z.dtype))

    def advance(self, count: int) -> tuple[Array, np.ndarray]:
        """So many samples of each chain, `(chains, count, d)`, and the gradients of all
        chains up to each.
        """
        place = self.chains, self._keys(), self.coordinates.cast(self.dtype)
        try:
            found = self.dynamics.run(*place, jnp.asarray(count, jnp.int32))
            self.chains, x, spent = jax.block_until_ready(found)
        except RuntimeError as error:  # times that aren't finite, in the tree
            raise RuntimeError(
                _LOST.format("Some", 4 * self.dynamics.max_steps)
            ) from error
        x = x[:, :count]
        sums = [np.asarray(s, np.int64).sum(0)[:count] for s in spent]
        before = self.gradients
        self.gradients += int(sums[0][-1])
        self.rejected += int(sums[1][-1])
        self.steps += int(sums[2][-1])
        if sums[3][-1] or not bool(jnp.all(jnp.isfinite(x))):
            raise RuntimeError(_LOST.format(sums[3][-1], 4 * self.dynamics.max_steps))
        self.x = x[:, -1]
        return x, before + sums[0]

    def adapt(self, mass: str) -> None:
        """Take the coordinates from where the chains are, and were of late."""
        x = np.asarray(self.x, np.float64)
        self.places.append((x, self.g))
        wanted = math.ceil(_POINTS * x.shape[1] / len(x))
        last = self.places[-min(wanted, (len(self.places) + 1) // 2) :]
        x, g = (np.concatenate(part) for part in zip(*last, strict=True))
        before = self.coordinates
        if mass == "conditional":
            capacity = wanted * len(self.places[0][0])
            known = before if isinstance(before, ConditionalScale) else None
            if len(x) > 1:
                self.coordinates = conditional(x, g, capacity, known)
        elif isinstance(before, Linear):
            factor = adapted(np.asarray(before.factor), x, g, mass)
            self.coordinates = Linear(factor)

    def round(self, mass: str) -> None:
        """Adapt the coordinates, and go on for one sample."""
        self.adapt(mass)
        self.restart()
        self.advance(1)
        self.collect()
        self.by_round.append(self.gradients)

    def trace(self) -> Array:
        """Where the chains were after each round, `(chains, rounds, d)`."""
        after = [x for x, _ in self.places[1:]]
        found = (
            np.stack(after, 1) if after else np.zeros((len(self.x), 0, len(self.g[0])))
        )
        return jnp.asarray(found, self.dtype)

    def collect(self) -> None:
        """Gradients where the chains are, from the solver if it keeps them."""
        if not self.dynamics.keeps_gradients:
            self.g = self._slopes()
            return
        z, g = (np.asarray(part, np.float64) for part in (self.chains.z, self.chains.g))
        self.g = self.coordinates.slopes_to_x(z, g)

    def fitting_step(self) -> float:
        """The step of the error to aim at where the chains are, by trials on some."""
        aim = _AIM if isinstance(self.coordinates, Linear) else _CAUTIOUS
        some = jax.tree.map(lambda x: x[:_TRIED], self.chains)
        of, dt = self.coordinates.cast(self.dtype), 1.0
        for _ in range(4):
            step = jnp.asarray(dt, self.dtype)
            errors, made = self.dynamics.errors(some, self._keys()[:_TRIED], of, step)
            self.gradients += int(np.asarray(made, np.int64).sum())
            error = float(jnp.sqrt(jnp.mean(errors**2)))
            factor = (aim / max(error, 1e-12)) ** (1 / 3.5)
            if not math.isfinite(factor):
                factor = 0.25
            longest = self.dynamics.spacing  # that there is noise for
            before, dt = dt, min(dt * min(max(factor, 0.25), 4.0), longest)
            if abs(math.log(dt / before)) < 0.05:
                break
        return dt
