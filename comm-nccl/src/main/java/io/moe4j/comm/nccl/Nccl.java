package io.moe4j.comm.nccl;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.comm.nccl.ffi.NcclFfi;
import io.moe4j.comm.nccl.ffi.ncclConfig_v23000;
import io.moe4j.comm.nccl.ffi.ncclUniqueId;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** NCCL's functions with Java's types. The library must be loaded. */
final class Nccl {
  private Nccl() {}

  /** NCCL refused something; the message has its words. */
  static final class Refused extends RuntimeException {
    private static final long serialVersionUID = 1L;

    Refused(String message) {
      super(message);
    }
  }

  /** {@return 128 bytes that name a new group} */
  static byte[] uniqueId() {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment id = ncclUniqueId.allocate(arena);
      int result = NcclFfi.ncclGetUniqueId(id);
      if (result != NcclFfi.ncclSuccess()) {
        throw new Refused("ncclGetUniqueId: " + words(result, MemorySegment.NULL));
      }
      return id.toArray(ValueLayout.JAVA_BYTE);
    }
  }

  /**
   * Begins to join a group, without waiting for the others.
   *
   * @param handle receives the communicator
   * @param version of the library
   * @return NCCL's result, {@code ncclInProgress} as a rule
   */
  static int init(MemorySegment handle, int size, byte[] id, int rank, NcclVersion version) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment config = ncclConfig_v23000.allocate(arena);
      int undefined = NcclFfi.NCCL_CONFIG_UNDEF_INT();
      ncclConfig_v23000.size(config, ncclConfig_v23000.sizeof());
      ncclConfig_v23000.magic(config, NcclFfi.NCCL_API_MAGIC());
      ncclConfig_v23000.version(config, Math.min(version.code(), NcclFfi.NCCL_VERSION_CODE()));
      ncclConfig_v23000.blocking(config, 0);
      ncclConfig_v23000.cgaClusterSize(config, undefined);
      ncclConfig_v23000.minCTAs(config, undefined);
      ncclConfig_v23000.maxCTAs(config, undefined);
      ncclConfig_v23000.netName(config, MemorySegment.NULL);
      ncclConfig_v23000.splitShare(config, undefined);
      ncclConfig_v23000.trafficClass(config, undefined);
      ncclConfig_v23000.commName(config, MemorySegment.NULL);
      ncclConfig_v23000.collnetEnable(config, undefined);
      ncclConfig_v23000.CTAPolicy(config, undefined);
      ncclConfig_v23000.shrinkShare(config, undefined);
      ncclConfig_v23000.nvlsCTAs(config, undefined);
      ncclConfig_v23000.nChannelsPerNetPeer(config, undefined);
      ncclConfig_v23000.nvlinkCentricSched(config, undefined);
      ncclConfig_v23000.graphUsageMode(config, undefined);
      ncclConfig_v23000.numRmaCtx(config, undefined);
      ncclConfig_v23000.maxP2pPeers(config, undefined);
      ncclConfig_v23000.graphStreamOrdering(config, undefined);
      MemorySegment name = ncclUniqueId.allocate(arena);
      name.copyFrom(MemorySegment.ofArray(id));
      return NcclFfi.ncclCommInitRankConfig(handle, size, name, rank, config);
    }
  }

  /** {@return the state of a communicator: {@code ncclInProgress}, success, or what went wrong} */
  static int state(MemorySegment comm) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment slot = arena.allocate(ValueLayout.JAVA_INT);
      int result = NcclFfi.ncclCommGetAsyncError(comm, slot);
      return result == NcclFfi.ncclSuccess() ? slot.get(ValueLayout.JAVA_INT, 0) : result;
    }
  }

  // The header declares these without (void), which jextract takes for a variable number of
  // arguments.

  private static final class Group {
    static final NcclFfi.ncclGroupStart START = NcclFfi.ncclGroupStart.makeInvoker();
    static final NcclFfi.ncclGroupEnd END = NcclFfi.ncclGroupEnd.makeInvoker();
  }

  static int groupStart() {
    return Group.START.apply();
  }

  static int groupEnd() {
    return Group.END.apply();
  }

  static boolean isInProgress(int result) {
    return result == NcclFfi.ncclInProgress();
  }

  static boolean isSuccess(int result) {
    return result == NcclFfi.ncclSuccess();
  }

  /** {@return NCCL's words for a result} */
  static String words(int result, MemorySegment comm) {
    String general = text(NcclFfi.ncclGetErrorString(result));
    String last = text(NcclFfi.ncclGetLastError(comm)).strip();
    return "NCCL error " + result + ", " + general + (last.isEmpty() ? "" : " (" + last + ")");
  }

  private static String text(MemorySegment address) {
    return address.address() == 0 ? "" : address.reinterpret(Long.MAX_VALUE).getString(0);
  }

  /**
   * {@return NCCL's name for numbers that are summed}
   *
   * @throws IllegalArgumentException naming the argument
   */
  static int summable(String name, Tensor t) {
    if (t.dtype() == DType.F32) {
      return NcclFfi.ncclFloat32();
    }
    if (t.dtype() == DType.BF16) {
      return NcclFfi.ncclBfloat16();
    }
    if (t.dtype() == DType.F16) {
      return NcclFfi.ncclFloat16();
    }
    throw new IllegalArgumentException(name + " is " + t + ", must be F32, BF16 or F16");
  }

  static long bytes(Tensor t) {
    return t.dtype().byteSize(t.elementCount());
  }

  static MemorySegment address(Tensor t) {
    return MemorySegment.ofAddress(t.deviceAddress());
  }
}
