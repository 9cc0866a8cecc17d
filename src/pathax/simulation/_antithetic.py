"""Antithetic pairs: one path and its mirror image."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from ..brownian import antithetic


def antithetic_pairs(
    solve: Callable[[Any], PyTree], path: Callable[[PRNGKeyArray], Any]
) -> Callable[[PRNGKeyArray], PyTree]:
    r"""The mean of a solve over a Brownian path and over its negative.

    $$Y = \tfrac12 (f(B) + f(-B)), \qquad
      \operatorname{Var} Y = \tfrac12 \operatorname{Var} f (1 + \rho),$$

    with the correlation $\rho$ of $f(B)$ and $f(-B)$: near $-1$ where the output is
    nearly odd in the noise. $-B$ has the law of $B$, so $Y$ has the mean of $f$.

    **Arguments:**

    - `solve`: from a path to a tree of real numbers or arrays.
    - `path`: from a random key to a path of this library, e.g. a
      [`pathax.brownian.VirtualBrownianTree`][].

    **Returns:** a function of a key, for [`pathax.simulation.ensemble`][]. One of its
    paths costs two solves; its variance is that of pairs.

    **Cost:** two solves.

    **Reference:** J. M. Hammersley and K. W. Morton, A new Monte Carlo technique:
    antithetic variates, Math. Proc. Cambridge Philos. Soc. 52 (1956).

    **Example:**

    ```python
    >>> import jax
    >>> import pathax as px
    >>> path = lambda key: px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-4, (), key
    ... )
    >>> odd = px.simulation.antithetic_pairs(lambda path: path.evaluate(0.0, 1.0), path)
    >>> found = px.simulation.ensemble(odd, jax.random.key(0), 64, chunk=64)
    >>> float(found.mean), float(found.variance)
    (0.0, 0.0)

    ```
    """

    def pair(key: PRNGKeyArray) -> PyTree:
        one = path(key)
        both = solve(one), solve(antithetic(one))
        return jax.tree.map(lambda x, y: (x + y) / 2, *both)

    return pair
