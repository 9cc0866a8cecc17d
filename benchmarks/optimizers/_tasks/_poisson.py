"""A physics-informed network for Poisson's equation on an interval."""

import functools

import jax
import jax.numpy as jnp

from ._task import Task, network


def exact(x: jax.Array) -> jax.Array:
    """The solution, of two frequencies."""
    return jnp.sin(jnp.pi * x) + 0.2 * jnp.sin(4 * jnp.pi * x)


def source(x: jax.Array) -> jax.Array:
    """Minus its second derivative, over pi squared."""
    return jnp.sin(jnp.pi * x) + 3.2 * jnp.sin(4 * jnp.pi * x)


@functools.cache
def poisson(target: float) -> Task:
    """Three hidden layers of 32; relative L2 error of the solution."""
    init, apply = network((1, 1, 32), 3, jnp.tanh)
    points = jnp.linspace(0.0, 1.0, 66)[1:-1]
    ends = jnp.array([0.0, 1.0])
    fine = jnp.linspace(0.0, 1.0, 257)
    wanted = exact(fine)
    value = lambda params, x: apply(params, x[None, None])[0, 0]

    # Residuals of the equation, and ten times those of the ends.
    def at_point(params, x):
        second = jax.grad(jax.grad(lambda x: value(params, x)))(x)
        return second / jnp.pi**2 + source(x)

    at_end = lambda params, x: 10 * value(params, x)

    def residual(params, batch):
        del batch
        inside = jax.vmap(lambda x: at_point(params, x))(points)
        return jnp.concatenate([inside, jax.vmap(lambda x: at_end(params, x))(ends)])

    def curvature(params):
        """Rows of the Jacobian, one point each, and the residuals."""

        def rows(one, x):
            both = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0))
            return both(params, x)

        parts = rows(at_point, points), rows(at_end, ends)
        values, jacobian = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return jacobian, values

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    def metric(params):
        error = apply(params, fine[:, None])[:, 0] - wanted
        return jnp.linalg.norm(error) / jnp.linalg.norm(wanted)

    return Task(
        name=f"pinn {target:g}",
        init=init,
        loss=loss,
        sample=lambda key: None,
        metric=metric,
        target=target,
        limit=3_000 if target >= 1e-3 else 15_000,
        residual=residual,
        curvature=curvature,
        likelihood="gaussian",
    )
