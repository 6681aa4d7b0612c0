"""Reading compiled programs: loops count as often as they run, pieces of one collective once."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.products import executed_flops
from uniadapter_jax.planning.traffic import collectives, hbm_bytes

# As the TPU compiler writes: a loop without a noted length around a batched product, arrays in
# other memory, S(1), and one gather in two pieces, of which the second is in the loop.
TPU = """HloModule jit_f, is_scheduled=true

%gather_more (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.2 = f32[8,4]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%scatter (q: f32[8,4]) -> f32[2,4] {
  %q = f32[8,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[8,4]{1,0:T(8,128)} all-reduce(%q), channel_id=8, \
replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice = f32[2,4]{1,0:T(8,128)} slice(%all-reduce.1), slice={[0:2], [0:4]}
}

%body (arg: (s32[], bf16[3,50,64])) -> (s32[], bf16[3,50,64]) {
  %arg = (s32[]{:T(128)}, bf16[3,50,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[3,50,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %scores = f32[3,50,50]{2,1,0:T(8,128)S(1)} convolution(%x, %x), \
window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0oi->0bf
  %small = f32[2,4]{1,0:T(8,128)} broadcast(%next), dimensions={}
  %more = f32[8,4]{1,0:T(8,128)S(1)} fusion(%small), kind=kLoop, calls=%gather_more
  ROOT %out = (s32[]{:T(128)}, bf16[3,50,64]{2,1,0:T(8,128)(2,1)}) tuple(%next, %x)
}

%condition (arg.1: (s32[], bf16[3,50,64])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[3,50,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[3,50,64], y: f32[2,4], z: f32[8,4]) -> f32[2,4] {
  %x.1 = bf16[3,50,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[2,4]{1,0:T(8,128)} parameter(1)
  %z = f32[8,4]{1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %all-gather.1 = f32[8,4]{1,0:T(8,128)} all-gather(%y), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  %init = (s32[]{:T(128)}, bf16[3,50,64]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[3,50,64]{2,1,0:T(8,128)(2,1)}) while(%init), \
condition=%condition, body=%body
  %passed = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce-scatter = f32[2,4]{1,0:T(8,128)} fusion(%z), kind=kCustom, calls=%scatter
}
""".replace("%scatter", "%all-reduce-scatter.1")


def test_the_tpu_compilers_text():
    module = Module(TPU)
    assert module.unknown_loops == 0
    assert executed_flops(module) == 12 * 2 * 3 * 50 * 50 * 64
    found = collectives(module, devices=8)
    assert set(found) == {"all-gather", "reduce-scatter", "collective-permute"}
    assert found["collective-permute"].sent == found["collective-permute"].bytes == 8 * 4 * 4
    assert (found["all-gather"].count, found["all-gather"].bytes) == (1, 8 * 4 * 4)
    assert found["all-gather"].sent == pytest.approx(8 * 4 * 4 * 3 / 4)
    assert (found["reduce-scatter"].count, found["reduce-scatter"].bytes) == (1, 2 * 4 * 4)
    assert found["reduce-scatter"].sent == pytest.approx(2 * 4 * 4 * 3)


def test_a_loop_of_unknown_length_is_said():
    module = Module(TPU.replace("compare(%i.1, %limit)", "compare(%i.1, %i.1)"))
    assert module.unknown_loops == 1
    assert executed_flops(module) == 2 * 3 * 50 * 50 * 64


# A kernel of ours, whose keys lie in other memory, and a call that only names memory.
KERNEL = """HloModule jit_g, is_scheduled=true

ENTRY %main (q: bf16[4,8,128], k: bf16[4,8,128]) -> bf16[4,8,128] {
  %q = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %near = bf16[4,8,128]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%k), \
custom_call_target="ConcatBitcast"
  ROOT %attention = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %near), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"Zm9v", \
"cost_estimate":{"flops":"131072","transcendentals":"256","bytes_accessed":"24576"}}}
}
"""


def test_a_kernel_costs_what_it_says_and_moves_its_operands():
    module = Module(KERNEL)
    assert executed_flops(module) == 131_072
    assert hbm_bytes(module) == 2 * 4 * 8 * 128 * 2  # queries and the result


# A row of an array that stays where it is.
ROW = """HloModule jit_h, is_scheduled=true

ENTRY %main (x: f32[64,128], row: f32[1,128], i: s32[]) -> f32[64,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %row = f32[1,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %put = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%x, %row, %i, %zero)
}
"""


def test_a_row_that_is_put_into_an_array_moves_alone():
    numbers = 2 * 4  # the places, which lie in HBM, too
    assert hbm_bytes(Module(ROW)) == 2 * 4 * 128 + numbers


def compiled(function, *shapes):
    return Module(jax.jit(function).lower(*shapes).compile().as_text())


def test_products_of_a_scan_count_once_per_layer():
    kernels = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32)
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32)

    def layers(x, kernels):
        return jax.lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0]

    module = compiled(layers, x, kernels)
    assert executed_flops(module) == 7 * 2 * 16 * 32 * 32
    # Each of the 7 layers reads its own kernel, not the whole stack of them.
    stack = 7 * 32 * 32 * 4
    assert stack < hbm_bytes(module) < 7 * stack


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [((2, 6, 6, 3), (1, 1), 2 * 5 * 4 * 4 * 9 * 3 * 2), ((2, 6, 6, 3), (2, 2), 2 * 5 * 4 * 9 * 6)],
)
def test_a_convolution_that_is_one(shape, strides, expected):
    module = compiled(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32),
    )
    assert executed_flops(module) == expected


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    mesh = meshes.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})

    def five_times(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.tanh(x), "data"), None), x, length=5)[0]

    summed = jax.shard_map(
        five_times, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    rows = NamedSharding(mesh, P("data"))
    module = compiled(summed, jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows))
    found = collectives(module, devices=8)
    assert set(found) == {"all-reduce"}
    assert (found["all-reduce"].count, found["all-reduce"].bytes) == (5, 5 * 2 * 16 * 4)
    assert found["all-reduce"].sent == pytest.approx(5 * 2 * 16 * 4 * 2 * 3 / 4)
