"""Collectives in the text of compiled programs, of CPU and of TPU."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from effnet_jax.planner.program import Collective, collectives, memory_traffic

# In the form of programs compiled for v5e 2x4 (libtpu 0.0.52), and pairs as GPU programs have them.
PAIRS = """HloModule jit_f, is_scheduled=true

%wrapped (param: f32[8,4]) -> f32[8,4] {
  %param = f32[8,4]{1,0} parameter(0)
  ROOT %to-all = f32[8,4]{1,0} all-to-all(%param), channel_id=1, dimensions={0}
}

%inner (param.1: bf16[16]) -> bf16[16] {
  ROOT %ag = bf16[16]{0:T(256)(128)(2,1)S(1)} all-gather(%param.1), channel_id=2, dimensions={0}
}

%body (param.2: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %call = bf16[16]{0} fusion(%x), kind=kCustom, calls=%inner
  ROOT %tuple = (s32[], bf16[16]{0}) tuple(%i, %call)
}

%start (param.4: f32[4]) -> f32[32] {
  %ag.1 = f32[32]{0} all-gather(%param.4), channel_id=27, dimensions={0}
}

%async_collective_fusion.1 (param.5: f32[4]) -> f32[32] {
  %ag.2 = f32[32]{0} all-gather(%param.5), channel_id=27, dimensions={0}
}

ENTRY %main.9_spmd (param.3: f32[1024,512]) -> (f32[8,4], /*index=1*/f32[16,4]) {
  %cps = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%param.3), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %cpd = f32[8,4]{1,0:T(8,128)S(1)} collective-permute-done(%cps), metadata={op_name="f(x)"}
  %ags = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%y), dimensions={0}
  %agd = f32[16,4]{1,0} all-gather-done(%ags)
  %as = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(%y), calls=%wrapped
  %ad = f32[8,4]{1,0} async-done(%as), calls=%wrapped
  %async-collective-start = f32[32]{0} fusion(%y), kind=kCustom, calls=%start
  %between = f32[32]{0} fusion(%y), kind=kCustom, calls=%async_collective_fusion.1
  %w = (s32[], bf16[16]{0}) while(%t), condition=%test, body=%body
  %ar = (f32[3]{0}, pred[5]{0}, /*index=2*/s4[3]{0}) all-reduce(%a, %b, %c), to_apply=%add
  %no = f32[3]{0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="g/ all-reduce(x)"}
}
"""


def test_pairs_tuples_and_loops_count_once():
    assert collectives(PAIRS) == [
        Collective("all-to-all", 128, False),
        Collective("all-gather", 32, True),
        Collective("all-gather", 128, False),
        Collective("collective-permute", 128, False),
        Collective("all-gather", 256, False),
        Collective("all-reduce", 12 + 5 + 2, False),
    ]


def test_a_program_with_one_of_each_and_one_in_a_loop():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def local(x):  # [8, 3] of float32 on each device: 96 bytes.
        summed = jax.lax.psum(x, "data")
        ring = [(i, (i + 1) % 8) for i in range(8)]
        looped = jax.lax.fori_loop(
            0, 3, lambda _, y: y * jax.lax.pmean(y.sum(), "data"), x.astype(jnp.bfloat16)
        )
        return (
            jax.lax.psum_scatter(summed, "data", tiled=True),
            jax.lax.all_gather(x, "data").sum(0),
            jax.lax.ppermute(x, "data", ring),
            jax.lax.all_to_all(x, "data", 0, 0, tiled=True),
            looped,
        )

    spec = PartitionSpec("data")
    program = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=(spec,) * 5)
    text = jax.jit(program).lower(jnp.ones((64, 3))).compile().as_text()
    found = collectives(text)
    assert [each.kind for each in found if each.in_loop] == ["all-reduce"]
    assert {(each.kind, each.bytes) for each in found if not each.in_loop} == {
        ("all-reduce", 96),
        ("reduce-scatter", 12),
        ("all-gather", 8 * 96),
        ("collective-permute", 96),
        ("all-to-all", 96),
    }
    alone = jax.jit(lambda x: x * x.sum()).lower(jnp.ones(8)).compile().as_text()
    assert collectives(alone) == []


# As libtpu 0.0.42 writes programs for v5e. x is 64 x 64 of bfloat16, padded to 64 x 128: 16 KiB.
KEPT = """HloModule jit_f, is_scheduled=true

%fused (param: bf16[64,64]) -> bf16[64,64] {
  %param = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %tanh = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} tanh(%param)
}

%body (param.1: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %param.1 = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %x.1 = bf16[64,64]{1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=1
  %fusion.1 = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%x.1), kind=kLoop, calls=%fused
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)}) tuple(%i, %fusion.1)
}

ENTRY %main (x: bf16[64,64], w: f32[4,64,64]) -> bf16[64,64] {
  %x = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[4,64,64]{2,1,0:T(8,128)} parameter(1), metadata={op_name="w"}
  %begin = ((f32[4,64,64]{2,1,0:T(8,128)}), f32[1,64,64]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%w), slice={[0:1], [0:64], [0:64]}
  %fusion = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kLoop, calls=%fused
  %end = f32[1,64,64]{2,1,0:T(8,128)S(1)} slice-done(%begin)
  %product = f32[64,64]{1,0:T(8,128)S(1)} convolution(%fusion, %end), dim_labels=bf_io->bf
  %convert = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%product), kind=kLoop, calls=%fused
  %tuple = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)}) tuple(%zero, %convert)
  %loop = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)}) while(%tuple), body=%body
  ROOT %out = bf16[64,64]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_traffic_is_what_leaves_the_chip_or_comes_to_it():
    x, slice_of_w = 64 * 128 * 2, 64 * 128 * 4
    # x and the slice are read, the conversion is written; then each trip reads and writes.
    assert memory_traffic(KEPT, trips=1) == x + slice_of_w + x + 2 * x
    assert memory_traffic(KEPT, trips=10) == x + slice_of_w + x + 10 * 2 * x


# Rows of a 4 x 64 x 128 array of float32 (128 KiB, 32 KiB a row): two are updated in place, one
# after another; of another array two are read, and of a third everything and a row.
SLICED = """HloModule jit_f, is_scheduled=true

%fused (param_0: f32[4,64,128], param_1: f32[4,64,128], param_2: f32[4,64,128]) -> f32[4,64,128] {
  %param_0 = f32[4,64,128]{2,1,0:T(8,128)} parameter(0)
  %param_1 = f32[4,64,128]{2,1,0:T(8,128)} parameter(1)
  %param_2 = f32[4,64,128]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[] constant(0)
  %view = f32[4,64,128]{2,1,0:T(8,128)} bitcast(%param_1)
  %row = f32[1,64,128]{2,1,0:T(8,128)} slice(%view), slice={[0:1], [0:64], [0:128]}
  %chosen = f32[1,64,128]{2,1,0:T(8,128)} dynamic-slice(%param_1, %zero, %zero, %zero)
  %third = f32[1,64,128]{2,1,0:T(8,128)} slice(%param_2), slice={[0:1], [0:64], [0:128]}
  %sum = f32[1,64,128]{2,1,0:T(8,128)} reduce(%param_2, %third), dimensions={0}, to_apply=%add
  %first = f32[4,64,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_0, %row, %zero, %zero, %zero)
  ROOT %both = f32[4,64,128]{2,1,0:T(8,128)} dynamic-update-slice(%first, %chosen, %zero, %zero)
}

ENTRY %main (x: f32[4,64,128], y: f32[4,64,128], z: f32[4,64,128]) -> f32[4,64,128] {
  %x = f32[4,64,128]{2,1,0:T(8,128)} parameter(0)
  %y = f32[4,64,128]{2,1,0:T(8,128)} parameter(1)
  %z = f32[4,64,128]{2,1,0:T(8,128)} parameter(2)
  ROOT %out = f32[4,64,128]{2,1,0:T(8,128)} fusion(%x, %y, %z), kind=kLoop, calls=%fused
}
"""


def test_slices_that_are_read_or_updated_in_place_count_alone():
    row = 64 * 128 * 4
    # Two rows of y and all of z are read; two rows of x are written, and none is read.
    assert memory_traffic(SLICED) == 2 * row + 4 * row + 2 * row
    # As a result that is passed on beside another, it counts alike.
    pair = "(f32[4,64,128]{2,1,0:T(8,128)}, f32[1,64,128]{2,1,0:T(8,128)})"
    text = SLICED.replace("ROOT %both =", "%both =").replace(
        "\n}\n\nENTRY", f"\n  ROOT %all = {pair} tuple(%both, %sum)\n}}\n\nENTRY"
    )
    text = text.replace("ROOT %out = f32[4,64,128]{2,1,0:T(8,128)}", f"ROOT %out = {pair}")
    assert memory_traffic(text) == 2 * row + 4 * row + 2 * row + row
