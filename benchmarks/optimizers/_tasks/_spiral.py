"""A neural differential equation, trained through the solver."""

import functools

import diffrax
import jax
import jax.numpy as jnp

from ._task import Task, network


END, STEPS = 1.5, 22


@functools.cache
def spiral() -> Task:
    """A vector field of one hidden layer that follows a cubic spiral."""
    init, apply = network((2, 2, 32), 1, jnp.tanh)
    matrix = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
    ts = jnp.linspace(0.0, END, 12)
    starts = jax.random.normal(jax.random.key(3), (8, 2))

    def solve(field, y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(y)),
            diffrax.Heun(),
            0.0,
            END,
            END / STEPS,
            y0,
            saveat=diffrax.SaveAt(ts=ts),
            adjoint=diffrax.DirectAdjoint(),  # has second derivatives
            max_steps=STEPS + 2,
        ).ys

    wanted = jax.vmap(lambda y0: solve(lambda y: matrix @ y**3, y0))(starts)

    def residual(params, batch):
        del batch
        field = lambda y: apply(params, y[None])[0]
        return (jax.vmap(lambda y0: solve(field, y0))(starts) - wanted).ravel()

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    return Task(
        name="spiral",
        init=init,
        loss=loss,
        sample=lambda key: None,
        metric=lambda params: loss(params, None),
        target=1e-3,
        limit=1_500,
        residual=residual,
        likelihood="gaussian",
    )
