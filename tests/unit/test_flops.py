"""Operations counted on a trace are those of the products that run."""

import jax
import jax.numpy as jnp

from vqathinker_jax.flops import count_flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def test_a_product_is_two_operations_a_term():
    assert count_flops(jnp.matmul, X, W) == PRODUCT
    assert count_flops(jax.jit(jnp.matmul), X, W) == PRODUCT


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    def layers(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    assert count_flops(layers, X, W) == 5 * PRODUCT


def test_a_gradient_is_two_products_more_and_rematerialising_one_more():
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.square(x @ w).sum()

    assert count_flops(jax.grad(loss, argnums=(0, 1)), X, W) == 3 * PRODUCT

    def twice(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.square(jnp.sin(x @ w) @ w).sum()

    # The second layer's product is not needed again, only the first's.
    kept, again = (count_flops(jax.grad(f, argnums=(0, 1)), X, W) for f in (twice, jax.checkpoint(twice)))
    assert kept == 6 * PRODUCT
    assert again in (7 * PRODUCT, 8 * PRODUCT)


def test_a_convolution_counts_its_kernel_at_every_place():
    image, kernel = jnp.zeros((1, 3, 10, 10)), jnp.zeros((5, 3, 3, 3))
    convolve = lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID")  # noqa: E731
    assert count_flops(convolve, image, kernel) == 2 * 5 * 8 * 8 * 3 * 3 * 3
    grouped = jnp.zeros((6, 1, 3, 3))
    depthwise = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", feature_group_count=3)  # noqa: E731
    assert count_flops(depthwise, image, grouped) == 2 * 6 * 8 * 8 * 3 * 3
