"""Chains of underdamped Langevin dynamics, in coordinates that a warm-up chooses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..brownian import VirtualBrownianTree
from ..solvers import QUICSORT, ShOULD, counting, evaluations
from ._coordinates import Coordinates


class Chains(NamedTuple):
    """Where all chains are, in coordinates of unit mass, with velocities `v`."""

    z: Array  # (chains, d)
    v: Array
    g: Array  # gradients at `z`, where the solver keeps them between steps
    dt: Array  # (chains,): the step that the next sample begins with


class Spent(NamedTuple):
    """Gradients of each chain, those of rejected steps among them."""

    gradients: Array
    rejected: Array
    steps: Array
    failed: Array


class Dynamics:
    """Blocks of samples, one compiled call each.

    Between two samples there is one solve; all solves of a block read one Brownian
    path, and the state of the solver goes from one to the next.
    """

    def __init__(
        self,
        potential: Callable[[Array], Array],
        solver: Any,
        *,
        friction: float,
        spacing: float,
        block: int,
        tolerance: float | None,
        max_steps: int,
    ):
        self.potential, self.solver = potential, solver
        self.friction, self.spacing, self.block = friction, spacing, block
        self.tolerance, self.max_steps = tolerance, max_steps
        self.keeps_gradients = isinstance(solver, ShOULD | QUICSORT)
        chains = jax.vmap(self._block, in_axes=(0, 0, None, None))
        self.run = eqx.filter_jit(chains)
        self.errors = jax.jit(jax.vmap(self._error, in_axes=(0, 0, None, None)))
        self.slopes = jax.jit(jax.vmap(jax.grad(potential)))

    def _terms(self, of: Coordinates, noise: Any) -> dfx.MultiTerm:
        def potential(z, args):
            return self.potential(of.to_x(z)) - of.log_volume(z)

        gradient = jax.grad(potential)
        one = jnp.ones((), noise.shape.dtype)
        friction = self.friction * one
        return dfx.MultiTerm(
            dfx.UnderdampedLangevinDriftTerm(friction, one, gradient),
            dfx.UnderdampedLangevinDiffusionTerm(friction, one, noise),
        )

    def _noise(self, key: Array, like: Array, horizon: float) -> VirtualBrownianTree:
        shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
        return VirtualBrownianTree(
            0.0,
            horizon,
            self.spacing / (2 * self.max_steps),
            shape,
            key,
            dfx.SpaceTimeTimeLevyArea,
        )

    def _block(self, chain: Chains, key: Array, of: Coordinates, count: Array):
        """One chain: where it is, positions `(block, d)`, and what it spent by each.

        Of the positions only the first `count` are filled.
        """
        noise = self._noise(key, chain.z, self.block * self.spacing)
        terms = self._terms(of, noise)
        solver, controller = self._method()
        saveat = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)

        def sample(i: Array, carry: tuple):
            chain, state, xs, spent = carry
            # Products, so that the end of one solve is the start of the next.
            t0 = i.astype(chain.z.dtype) * self.spacing
            t1 = (i + 1).astype(chain.z.dtype) * self.spacing
            out = dfx.diffeqsolve(
                terms,
                solver,
                t0,
                t1,
                chain.dt,
                (chain.z, chain.v),
                stepsize_controller=controller,
                saveat=saveat,
                max_steps=4 * self.max_steps,
                throw=False,
                solver_state=state,
                made_jump=False,
            )
            assert out.ys is not None
            z, v = (y[0] for y in out.ys)
            made = evaluations(out)
            rejected = spent.rejected[i - 1] + made.rejected.drift
            steps = jnp.asarray(out.stats["num_accepted_steps"], jnp.int32)
            failed = jnp.asarray(out.result != dfx.RESULTS.successful)
            now = Spent(
                made.accepted.drift + rejected,
                rejected,
                spent.steps[i - 1] + steps,
                spent.failed[i - 1] + failed.astype(jnp.int32),
            )
            dt = chain.dt
            if self.tolerance is not None:
                dt = self.spacing / jnp.maximum(steps, 1).astype(dt.dtype)
            spent = jax.tree.map(
                lambda a, b: a.at[i].set(b.astype(a.dtype)), spent, now
            )
            chain = Chains(z, v, chain.g, dt)
            return chain, out.solver_state, xs.at[i].set(of.to_x(z)), spent

        xs = jnp.zeros((self.block, *chain.z.shape), chain.z.dtype)
        # What is spent before the first sample is read from the last place.
        nothing = jnp.zeros(self.block, jnp.int32)
        spent = Spent(*(nothing for _ in Spent._fields))
        state = self._begin(solver, terms, chain)
        carry = chain, state, xs, spent
        chain, state, xs, spent = jax.lax.fori_loop(0, count, sample, carry)
        if self.keeps_gradients:
            chain = chain._replace(g=state.inner)
        return chain, xs, spent

    def _begin(self, solver: Any, terms: Any, chain: Chains) -> Any:
        """The state of the solver, with the gradient that is known already."""
        dt = chain.dt
        y0 = chain.z, chain.v
        state = solver.init(terms, jnp.zeros_like(dt), dt, y0, None)
        state = jax.tree.map(jnp.asarray, state)
        if not self.keeps_gradients:
            return state
        nothing = jax.tree.map(jnp.zeros_like, state.accepted)
        return eqx.tree_at(lambda s: (s.inner, s.accepted), state, (chain.g, nothing))

    def _method(self) -> tuple[Any, Any]:
        if self.tolerance is None:
            return counting(self.solver)
        solver = self.solver
        if not has_estimate(solver):
            solver = dfx.HalfSolver(solver)
        controller = dfx.PIDController(
            rtol=0.0,
            atol=self.tolerance,
            pcoeff=0.1,
            icoeff=0.3,
            dtmin=self.spacing / self.max_steps,
            dtmax=self.spacing,
        )
        return counting(solver, controller)

    def _error(self, chain: Chains, key: Array, of: Coordinates, dt: Array) -> tuple:
        """Of a step, against two of half the length: root mean square over z and v;
        and the number of gradients.
        """
        noise = self._noise(key, chain.z, self.spacing)
        terms = self._terms(of, noise)
        solver, _ = counting(dfx.HalfSolver(self.solver))
        y0, zero = (chain.z, chain.v), jnp.zeros_like(dt)
        state = solver.init(terms, zero, dt, y0, None)
        _, error, _, state, _ = solver.step(terms, zero, dt, y0, None, state, False)
        error = jnp.sqrt(jnp.mean(jnp.stack(jax.tree.leaves(error)) ** 2))
        return error, state.accepted.drift


def has_estimate(solver: Any) -> bool:
    """Whether a solver estimates its own error."""
    adaptive = dfx.AbstractAdaptiveSolver, dfx.ALIGN, dfx.HalfSolver
    return isinstance(solver, adaptive)
