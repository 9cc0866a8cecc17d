"""The law of Brownian paths, by the suite that the package ships, with wrong variants.

Seeds are fresh in each run, so levels are 1e-6 a report; each wrong variant must be
found at that level too, or the suite would prove nothing.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.brownian import _legendre, _noise, _query


Tree = px.brownian.VirtualBrownianTree
LEVEL = 1e-6


def _tree(order, *, tol=2.0**-18, shape=(), t0=0.0, t1=1.0):
    return lambda key: Tree(t0, t1, tol, shape, key, order=order)


def _check(make_path, key, paths, **kwargs):
    batch = min(paths, 10_000)
    return px.brownian.check_law(
        make_path, key=key, paths=paths, level=LEVEL, batch=batch, **kwargs
    )


@pytest.mark.parametrize("order", [0, 2, 4])
def test_law_float32(order, key):
    report = _check(_tree(order), key, 4000)
    assert report.passed, str(report)


def test_law_float64(key):
    with jax.enable_x64(True):
        report = _check(_tree(1, tol=2.0**-36), key, 2000)
    assert report.passed, str(report)
    assert min(report.variance_ratios) <= 2.0**-35


def test_law_of_other_paths(key):
    def bridge(key):
        """White noise on three intervals, with the rest sampled between."""
        ts = jnp.array([0.0, 0.25, 0.3, 1.0])
        noise = jax.random.normal(jax.random.fold_in(key, 1), (3,))
        noise = noise * jnp.sqrt(ts[1:] - ts[:-1])
        return px.brownian.replay(ts, noise, tol=2.0**-12, key=key, order=1)

    report = _check(bridge, key, 3000, tol=2.0**-10)
    assert report.passed, str(report)

    def mixture(key):
        one, two = jax.random.split(key)
        mixed = px.brownian.mix(_tree(0)(one), _tree(0)(two), 0.6)
        return px.brownian.antithetic(mixed)

    report = _check(mixture, key, 3000, tol=2.0**-16)
    assert report.passed, str(report)


def test_law_of_pytrees_and_unbounded_trees(key):
    shape = {
        "a": jax.ShapeDtypeStruct((2,), jnp.float32),
        "b": jax.ShapeDtypeStruct((), jnp.complex64),
    }
    report = _check(_tree(1, shape=shape), key, 2000)
    assert report.passed, str(report)
    endless = lambda key: Tree(0.0, None, 2.0**-10, (), key, order=1)
    report = _check(endless, key, 2000, t1=37.0)
    assert report.passed, str(report)


# Wrong variants ---------------------------------------------------------------------


class _Mutant(px.brownian.AbstractMomentPath):
    """A tree under another name, so that nothing compiled before is reused."""

    tree: Tree
    name: str = eqx.field(static=True)
    flip: tuple[float, ...] = eqx.field(static=True)

    @property
    def shape(self):
        return self.tree.shape

    @property
    def order(self):
        return self.tree.order

    @property
    def t0(self):
        return self.tree.t0

    @property
    def t1(self):
        return self.tree.t1

    @property
    def leaf_length(self):
        return self.tree.leaf_length

    def time_dtype(self):
        return self.tree.time_dtype()

    def standardised(self, s, u, rows):
        out = self.tree.standardised(s, u, rows)
        flip = np.array(self.flip[:rows], np.float32)
        return eqx.tree_at(lambda x: x.z, out, flip * out.z)


def _shared_by_siblings(monkeypatch):
    original = _noise.normals

    def normals(words, nodes, element, dtype):
        low, high = nodes
        return original(
            words, (jnp.where(low > 3, low >> 1, low), high), element, dtype
        )

    monkeypatch.setattr("pathax.brownian._sample.normals", normals)


def _without_leaf_noise(monkeypatch):
    original = _query._leaves

    def leaves(*args):
        out = original(*args)
        return out._replace(coefficients=0 * out.coefficients)

    monkeypatch.setattr(_query, "_leaves", leaves)


def _swapped_halves(monkeypatch):
    original = _legendre.wavelet_coefficients
    monkeypatch.setattr(
        _legendre, "wavelet_coefficients", lambda order: original(order)[::-1]
    )


def _wide_midpoints(monkeypatch):
    """The midpoint of a bridge drawn as if H were not known: h/4 instead of h/16."""
    original = _legendre.wavelet_coefficients

    def coefficients(order):
        out = original(order).copy()
        out[:, :, 0] *= 2
        return out

    monkeypatch.setattr(_legendre, "wavelet_coefficients", coefficients)


def _bridge_of_wrong_interval(monkeypatch):
    """The leaf bridged over twice its length."""
    original = _query._residual

    def residual(leaf, factors, *args):
        return original(leaf, factors._replace(theta=factors.theta / 2), *args)

    monkeypatch.setattr(_query, "_residual", residual)


def _nothing(monkeypatch):
    del monkeypatch


@pytest.mark.parametrize(
    ("mutate", "order", "flip"),
    [
        (_shared_by_siblings, 0, (1.0,)),
        (_without_leaf_noise, 0, (1.0,)),
        (_swapped_halves, 1, (1.0, 1.0)),
        (_wide_midpoints, 1, (1.0, 1.0)),
        (_bridge_of_wrong_interval, 1, (1.0, 1.0)),
        (_nothing, 2, (1.0, 1.0, -1.0)),
    ],
    ids=lambda x: x.__name__.strip("_") if callable(x) else str(x),
)
def test_wrong_variants_are_found(mutate, order, flip, key, monkeypatch):
    mutate(monkeypatch)
    make = lambda key: _Mutant(_tree(order, tol=2.0**-10)(key), mutate.__name__, flip)
    report = _check(make, key, 4000)
    assert not report.passed, str(report)


def test_differences_from_the_start_are_found(key):
    """Increments as differences of two walks from the start, which float32 loses."""

    def make(key):
        levy_area = diffrax.SpaceTimeTimeLevyArea
        return diffrax.VirtualBrownianTree(0.0, 1.0, 2.0**-13, (), key, levy_area)

    report = _check(make, key, 1000, tol=2.0**-13)
    assert not report.passed, str(report)
    assert report.variance_ratios[2.0**-10][2] > 10


def test_report_names_the_worst_case(key):
    report = _check(_tree(0), key, 200)
    text = str(report)
    assert "joint whiteness" in text
    assert "200 paths" in text
    assert all(check.value >= 0 for check in report.checks)


def test_no_room_for_intervals(key):
    with pytest.raises(ValueError, match="no room"):
        px.brownian.check_law(_tree(0, tol=0.25), key=key, paths=10)


# The figures that the documentation states -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_joint_law_float32_in_depth(order, key):
    report = _check(_tree(order), key, 200_000, intervals=12)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("t0", "start", "finest"), [(0.0, 0.7, 20), (0.0, 1.0, 20), (1e3, 0.7, 12)]
)
def test_variance_ratios_within_two_percent(t0, start, finest, key):
    """1e5 paths, so 2% is 4.5 standard errors of a variance ratio."""
    tol = None if t0 else 2.0**-21
    sample = jax.jit(
        jax.vmap(
            lambda key, s, u: Tree(t0, t0 + 1, tol, (), key, order=2).moments(s, u),
            in_axes=(0, None, None),
        )
    )
    keys = jax.random.split(key, 100_000)
    for j in range(2, finest + 1):
        h = 2.0**-j
        s = np.float32(t0 + (start if start < 1 else 1 - h))
        u = np.float32(s + np.float32(h))
        moments = np.asarray(sample(keys, s, u), np.float64)
        ratio = moments.var(axis=0) * np.array([1, 3, 5]) / (float(u) - float(s))
        assert np.all(np.abs(ratio - 1) < 0.02), (j, ratio)
