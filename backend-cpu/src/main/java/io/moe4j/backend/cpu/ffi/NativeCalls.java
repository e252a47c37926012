package io.moe4j.backend.cpu.ffi;

import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/**
 * Handles of the C functions, constants so that the compiler sees through them. Initialised only
 * where the library loads; {@link NativeKernels} asks before.
 */
final class NativeCalls {
  private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT;
  private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG;
  private static final ValueLayout POINTER = ValueLayout.ADDRESS;
  private static final Linker.Option HEAP_TOO = Linker.Option.critical(true);
  private static final SymbolLookup SYMBOLS = NativeKernels.symbols();

  static final MethodHandle ISA = function("moe_isa", FunctionDescriptor.of(INT));
  static final MethodHandle ABI = function("moe_abi", FunctionDescriptor.of(LONG, INT));
  static final MethodHandle PEAK = function("moe_peak", FunctionDescriptor.of(LONG, INT, LONG));
  static final MethodHandle INT8 = function("moe_int8", FunctionDescriptor.of(INT, INT));
  static final MethodHandle GATHER =
      function(
          "moe_gather",
          FunctionDescriptor.ofVoid(LONG, POINTER, INT, POINTER, LONG, LONG, LONG),
          HEAP_TOO);
  static final MethodHandle SHRINK =
      function("moe_shrink", FunctionDescriptor.ofVoid(LONG, LONG, INT));
  static final MethodHandle REORDER =
      function("moe_reorder", FunctionDescriptor.ofVoid(LONG, INT, LONG, LONG, LONG));
  static final MethodHandle W13 = function("moe_w13", task());
  static final MethodHandle W2 = function("moe_w2", task());
  static final MethodHandle COMBINE =
      function(
          "moe_combine",
          FunctionDescriptor.ofVoid(LONG, POINTER, LONG, LONG, LONG, POINTER, INT),
          HEAP_TOO);
  static final MethodHandle DENSE =
      function(
          "moe_dense",
          FunctionDescriptor.ofVoid(
              INT, POINTER, INT, POINTER, INT, LONG, POINTER, POINTER, LONG, LONG, LONG, LONG, LONG,
              LONG),
          HEAP_TOO);
  static final MethodHandle FINISH =
      function(
          "moe_finish",
          FunctionDescriptor.ofVoid(
              INT, POINTER, POINTER, POINTER, INT, POINTER, POINTER, INT, LONG, LONG, LONG),
          HEAP_TOO);
  static final MethodHandle ROUTE =
      function(
          "moe_route",
          FunctionDescriptor.ofVoid(
              INT, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, LONG, LONG),
          HEAP_TOO);
  static final MethodHandle PACK = function("moe_pack", pack());
  static final MethodHandle PACK_HEAP = function("moe_pack", pack(), HEAP_TOO);
  static final MethodHandle PACK_CODED =
      function(
          "moe_pack_coded",
          FunctionDescriptor.of(
              INT, LONG, POINTER, LONG, LONG, POINTER, LONG, LONG, POINTER, LONG, LONG));

  private NativeCalls() {}

  private static FunctionDescriptor task() {
    return FunctionDescriptor.ofVoid(LONG, LONG, LONG, LONG, LONG, LONG, LONG, LONG);
  }

  private static FunctionDescriptor pack() {
    return FunctionDescriptor.ofVoid(
        LONG, INT, LONG, LONG, POINTER, LONG, LONG, POINTER, LONG, LONG);
  }

  @SuppressWarnings("restricted")
  private static MethodHandle function(
      String name, FunctionDescriptor type, Linker.Option... options) {
    MemorySegment symbol =
        SYMBOLS
            .find(name)
            .orElseThrow(() -> new UnsatisfiedLinkError("the kernels have no " + name));
    return Linker.nativeLinker().downcallHandle(symbol, type, options);
  }
}
