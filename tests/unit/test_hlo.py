"""Bytes and collectives out of a compiled module's text, loops counted in full."""

from tests.devices import run_on_devices
from vqathinker_jax.hlo import Sent, largest_arrays, read_work, type_bytes

# A loop of 8 whose body gathers a matrix over 4 of 8 devices and sums over all, as a TPU's compiler writes it.
MODULE = """
%body.1 (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[], bf16[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[64,64]{1,0} get-tuple-element(%p), index=1
  %all-gather.1 = bf16[256,64]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %all-reduce.1 = bf16[64,64]{1,0:S(1)} all-reduce(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], bf16[64,64]{1,0}) tuple(%i, %x)
}

%condition.1 (p.1: (s32[], bf16[64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  %p.1 = (s32[], bf16[64,64]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t.1 = (s32[], bf16[64,64]{1,0}) tuple(%zero, %a)
  %while.1 = (s32[], bf16[64,64]{1,0}) while(%t.1), condition=%condition.1, body=%body.1
  ROOT %y = bf16[64,64]{1,0} get-tuple-element(%while.1), index=1
}
"""
SQUARE = 64 * 64 * 2


def test_what_a_loop_sends_counts_as_often_as_it_runs():
    sent = read_work(MODULE, 8).collectives
    assert sent["all-gather"] == Sent(8, 8 * 4 * SQUARE, 8 * 3 * SQUARE)
    # Round a ring of 8, a sum passes 7 of 8 parts twice; that it ends in vector memory changes nothing.
    assert sent["all-reduce"] == Sent(8, 8 * SQUARE, 8 * 2 * SQUARE * 7 // 8)


def test_a_loop_that_data_ends_runs_as_often_as_told():
    ended = MODULE.replace("ROOT %lt = pred[]", "%lt = pred[]").replace(
        "direction=LT\n", "direction=LT\n  ROOT %and = pred[] and(%lt, %lt)\n"
    )
    assert read_work(ended, 8, unknown_trips=5).collectives["all-gather"].count == 5


def test_vector_memory_costs_nothing():
    assert type_bytes("(bf16[64,64]{1,0}, f32[8]{0})") == SQUARE + 32
    assert type_bytes("bf16[64,64]{1,0:T(8,128)S(1)}") == 0


FETCHED = """HloModule fetched, is_scheduled=true

ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %copy-start.1 = (bf16[64,64]{1,0:S(1)}, bf16[64,64]{1,0}, u32[]{:S(1)}) copy-start(%a)
  %copy-done.1 = bf16[64,64]{1,0:S(1)} copy-done(%copy-start.1)
  ROOT %copy-start.2 = (bf16[64,64]{1,0}, bf16[64,64]{1,0:S(5)}, u32[]{:S(1)}) copy-start(%copy-done.1)
}
"""


def test_what_is_fetched_into_vector_memory_or_from_the_host_crosses_main_memory_once():
    assert read_work(FETCHED, 1).bytes == 2 * 64 * 64 * 2


def test_largest_arrays_come_first():
    assert largest_arrays(MODULE, 1) == [(4 * SQUARE, "bf16[256,64]")]


# One gathering of a matrix, written into two fusions that run beside it; a slice and an update, as a TPU's compiler
# writes them; a sum of two arrays at once.
FUSED = """
%half.1 (w: bf16[64,64]) -> bf16[256,64] {
  %w = bf16[64,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[256,64]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%half.2 (w.2: bf16[64,64]) -> bf16[256,64] {
  %w.2 = bf16[64,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[256,64]{1,0} all-gather(%w.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%slice.1 (stack: bf16[28,64,64], i: s32[]) -> bf16[64,64] {
  %stack = bf16[28,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = bf16[1,64,64]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %bitcast.1 = bf16[64,64]{1,0:S(1)} bitcast(%dynamic-slice.1), metadata={op_name="jit(f)/squeeze"}
}

ENTRY %main (a: bf16[64,64], b: bf16[28,64,64], j: s32[]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %b = bf16[28,64,64]{2,1,0} parameter(1)
  %j = s32[]{:T(128)} parameter(2)
  %fusion.1 = bf16[256,64]{1,0:S(1)} fusion(%a), kind=kLoop, calls=%half.1, metadata={op_name="jit(f)/dot"}
  %fusion.2 = bf16[256,64]{1,0:S(1)} fusion(%a), kind=kLoop, calls=%half.2, metadata={op_name="jit(f)/dot"}
  %both = (bf16[64,64]{1,0:S(1)}, bf16[64,64]{1,0:S(1)}) all-reduce(%a, %a), channel_id=8, replica_groups=[1,8]<=[8]
  ROOT %fusion.3 = bf16[64,64]{1,0:S(1)} fusion(%b, %j), kind=kLoop, calls=%slice.1, metadata={op_name="jit(f)/squeeze"}
}
"""


def test_what_is_written_twice_and_sent_once_counts_once():
    assert read_work(FUSED, 8).collectives["all-gather"] == Sent(1, 4 * SQUARE, 3 * SQUARE)


def test_a_sum_of_two_arrays_counts_both():
    assert read_work(FUSED, 8).collectives["all-reduce"].moved == 2 * SQUARE


def test_of_a_stack_that_a_fusion_slices_only_the_slice_is_read():
    without = FUSED.replace(FUSED[FUSED.index("  ROOT %fusion.3") :], "  ROOT %c = bf16[64,64]{1,0:S(1)} copy(%j)\n}\n")
    # Either reads the number of the slice.
    assert read_work(FUSED, 8).bytes - read_work(without, 8).bytes == SQUARE


def test_a_stack_that_is_laid_out_otherwise_where_it_lies_is_not_read_for_that():
    """So a TPU's compiler writes slices of stacks of bytes."""
    laid = "  %laid = bf16[28,64,64]{2,1,0} fusion(%stack), output_to_operand_aliasing={{}: (0, {})}, calls=%c\n"
    relaid = FUSED.replace("  %dynamic-slice.1", f"{laid}  %dynamic-slice.1").replace("slice(%stack", "slice(%laid")
    assert relaid.count("%laid") == 2
    assert read_work(relaid, 8).bytes == read_work(FUSED, 8).bytes


SCANNED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from vqathinker_jax.hlo import read_work
mesh = jax.make_mesh((4,), ("fsdp",), (jax.sharding.AxisType.Auto,))
w = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
x = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
run = jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
work = read_work(run.lower(w, x).compile().as_text(), 4)
print(work.collectives["all-gather"].count, work.collectives["all-gather"].moved, work.bytes)
"""


def test_this_machines_compiler_is_understood():
    count, moved, traffic = map(int, run_on_devices(4, "-c", SCANNED).stdout.split())
    assert (count, moved) == (6, 6 * 64 * 64 * 4)
    # At least every weight once and the activations of each layer, read and written.
    assert traffic >= 6 * (64 * 64 + 2 * 128 * 64) * 4


LOOKUP = """
%found.1 (table: bf16[1000,64], at: s32[8]) -> bf16[8,64] {
  %table = bf16[1000,64]{1,0} parameter(0)
  %at = s32[8]{0} parameter(1)
  ROOT %gather.1 = bf16[8,64]{1,0} gather(%table, %at), offset_dims={1}, slice_sizes={1,64}
}

ENTRY %main (a: bf16[1000,64], b: s32[8]) -> bf16[8,64] {
  %a = bf16[1000,64]{1,0} parameter(0)
  %b = s32[8]{0} parameter(1)
  ROOT %fusion.1 = bf16[8,64]{1,0} fusion(%a, %b), kind=kLoop, calls=%found.1
}
"""


def test_of_a_table_only_the_rows_that_are_looked_up_are_read():
    bare = LOOKUP.replace("fusion(%a, %b), kind=kLoop, calls=%found.1", "gather(%a, %b), offset_dims={1}")
    rows, numbers = 8 * 64 * 2, 8 * 4
    assert read_work(LOOKUP, 1).bytes == 2 * rows + numbers
    assert read_work(bare, 1).bytes == 2 * rows
