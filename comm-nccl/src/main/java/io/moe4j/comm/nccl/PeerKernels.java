package io.moe4j.comm.nccl;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.ops.PeerLink;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** The kernels of {@code peers.cu} on one device, loaded. */
final class PeerKernels {
  static final int VECTOR_BYTES = 16;

  private static final int COLUMNS = 8;

  private static final int MOST_BLOCKS = 512;
  private static final int SOME_BLOCKS = 128;
  private static final int FEW_ROWS = 64;
  private static final int ROWS_OF_ALL = 1024;
  private static final int ROWS_A_BLOCK = 4;

  private final Kernel gather;
  private final Kernel sum16;
  private final Kernel sum16To32;
  private final Kernel sum32;
  private final Kernel combine16;
  private final Kernel combine16To32;
  private final Kernel reduce16;
  private final Kernel reduce16To32;
  private final Kernel reduce32;
  private final Kernel reduceRows16;
  private final Kernel reduceRows16To32;

  PeerKernels(CudaDevice device) {
    KernelLibrary library = KernelLibrary.of(PeerKernels.class, "comm-nccl-cuda");
    gather = device.kernel(library, library.select(device.info(), "peers_gather", Map.of()));
    sum16 = sum(device, library, "peers_sum", "bf16", "bf16");
    sum16To32 = sum(device, library, "peers_sum", "bf16", "f32");
    sum32 = sum(device, library, "peers_sum", "f32", "f32");
    combine16 = sum(device, library, "peers_combine", "bf16", "bf16");
    combine16To32 = sum(device, library, "peers_combine", "bf16", "f32");
    reduce16 = sum(device, library, "peers_reduce", "bf16", "bf16");
    reduce16To32 = sum(device, library, "peers_reduce", "bf16", "f32");
    reduce32 = sum(device, library, "peers_reduce", "f32", "f32");
    reduceRows16 = sum(device, library, "peers_reduce_rows", "bf16", "bf16");
    reduceRows16To32 = sum(device, library, "peers_reduce_rows", "bf16", "f32");
  }

  private static Kernel sum(
      CudaDevice device, KernelLibrary library, String name, String from, String to) {
    return device.kernel(
        library, library.select(device.info(), name, Map.of("from", from, "to", to)));
  }

  /**
   * {@return blocks for rows that each rank has room for; the same on every rank}
   *
   * @param rows a rank
   */
  static int blocks(int rows) {
    if (rows <= FEW_ROWS) {
      return Math.max(1, rows);
    }
    return rows <= ROWS_OF_ALL
        ? Math.min(rows, SOME_BLOCKS)
        : Math.min(MOST_BLOCKS, rows / ROWS_A_BLOCK);
  }

  /**
   * {@return blocks that add so many rows of experts, a row a block as long as there are blocks;
   * the same on every rank}
   *
   * @param rows a rank
   */
  static int addingBlocks(int rows) {
    return Math.clamp(rows, 1, MOST_BLOCKS);
  }

  private static KernelLaunch rooms(KernelLaunch launch, PeerRoom room, PeerRooms of) {
    for (int r = 0; r < PeerRooms.MOST_RANKS; r++) {
      launch.pointer(room.address(r));
    }
    return launch.pointer(of.stopAddress());
  }

  /** What every kernel that sums takes between its tensors and its sizes. */
  private static KernelLaunch sums(KernelLaunch launch, PeerRoom room, PeerRooms of) {
    return rooms(launch, room, of).i64(room.sumsAt()).i32(room.rank()).i32(room.all().size());
  }

  /** Where in a room what a gather brings lies. */
  record Places(long hidden, long ids, long weights, long slots) {}

  /**
   * Brings {@code n} rows of every rank to every rank; rows past this rank's tokens have no expert.
   *
   * @param hidden {@code [T, H]}, rows a multiple of 16 bytes, 16-byte aligned
   * @param ids int32 {@code [T, K]}
   * @param weights F32 {@code [T, K]}
   * @param mapping int32 {@code [T]}, null without adapters
   */
  void gather(
      Tensor hidden,
      Tensor ids,
      Tensor weights,
      @Nullable Tensor mapping,
      PeerRooms rooms,
      PeerRoom room,
      Places at,
      int n,
      DeviceStream stream) {
    long rowBytes = hidden.dtype().byteSize(hidden.size(1));
    KernelLaunch launch =
        gather.begin().pointer(hidden).pointer(ids).pointer(weights).pointer(mapping);
    rooms(launch, room, rooms)
        .i64(at.hidden())
        .i64(at.ids())
        .i64(at.weights())
        .i64(at.slots())
        .i32(room.rank())
        .i32(room.all().size())
        .i32(n)
        .i32(Math.toIntExact(hidden.size(0)))
        .i32(Math.toIntExact(ids.size(1)))
        .i32(Math.toIntExact(rowBytes / VECTOR_BYTES))
        .launch(stream, blocks(n));
  }

  private static Kernel of(DType partial, DType out, Kernel to16, Kernel to32, Kernel of32) {
    return partial == DType.F32 && out == DType.F32 ? of32 : of(partial, out, to16, to32);
  }

  private static Kernel of(DType partial, DType out, Kernel to16, Kernel to32) {
    if (partial == DType.BF16 && out == DType.BF16) {
      return to16;
    }
    if (partial == DType.BF16 && out == DType.F32) {
      return to32;
    }
    throw new IllegalArgumentException(
        "sums are "
            + partial
            + " and the output is "
            + out
            + ": BF16 goes to BF16 or F32, F32 to F32");
  }

  /**
   * Adds up what all ranks' experts have for this rank's tokens, in f32 and in the order of ranks.
   *
   * @param partial BF16 or F32 {@code [ranks * n, H]}, rows a multiple of 16 bytes, aligned
   * @param out {@code [T, H]}, F32 or the dtype of {@code partial}, 16-byte aligned, overwritten
   * @param blocks the same on every rank
   */
  void sum(
      Tensor partial,
      Tensor out,
      PeerRooms rooms,
      PeerRoom room,
      int n,
      int blocks,
      DeviceStream stream) {
    Kernel kernel = of(partial.dtype(), out.dtype(), sum16, sum16To32, sum32);
    long rowBytes = partial.dtype().byteSize(partial.size(1));
    sums(kernel.begin().pointer(partial).pointer(out), room, rooms)
        .i32(n)
        .i32(Math.toIntExact(out.size(0)))
        .i32(Math.toIntExact(rowBytes / VECTOR_BYTES))
        .launch(stream, blocks);
  }

  /**
   * The same of experts' rows that are not added yet; a token's are added first, and travel as one,
   * in BF16.
   *
   * @param rows in BF16, {@code [P, H]}
   * @param weights address of F32 {@code [ranks * n, K]}, 0 if they were applied
   * @param topK {@code K}
   * @param out {@code [T, H]}, F32 or BF16, 16-byte aligned, overwritten
   */
  void combine(
      PeerLink.PairRows rows,
      long weights,
      int topK,
      Tensor out,
      PeerRooms rooms,
      PeerRoom room,
      int n,
      DeviceStream stream) {
    KernelLaunch launch =
        of(DType.BF16, out.dtype(), combine16, combine16To32)
            .begin()
            .pointer(rows.address())
            .pointer(rows.rowOfPair())
            .pointer(weights)
            .pointer(out);
    sums(launch, room, rooms)
        .i32(n)
        .i32(Math.toIntExact(out.size(0)))
        .i32(topK)
        .i32(Math.toIntExact(rows.width() / COLUMNS))
        .launch(stream, addingBlocks(n));
  }

  /**
   * Adds up what all ranks' experts have for tokens that every rank has, in f32 and in the order of
   * ranks: the same bits on every rank.
   *
   * @param partial BF16 or F32 {@code [T, H]}, {@code T >= 1}, rows a multiple of 16 bytes, aligned
   * @param out {@code [T, H]}, F32 or the dtype of {@code partial}, 16-byte aligned, overwritten
   */
  void reduce(Tensor partial, Tensor out, PeerRooms rooms, PeerRoom room, DeviceStream stream) {
    long rowBytes = partial.dtype().byteSize(partial.size(1));
    int tokens = Math.toIntExact(partial.size(0));
    KernelLaunch launch =
        of(partial.dtype(), out.dtype(), reduce16, reduce16To32, reduce32)
            .begin()
            .pointer(partial)
            .pointer(out);
    sums(launch, room, rooms)
        .i32(tokens)
        .i32(Math.toIntExact(rowBytes / VECTOR_BYTES))
        .launch(stream, addingBlocks(tokens));
  }

  /**
   * The same of experts' rows that are not added yet; a token's are added first, and travel as one,
   * in BF16.
   *
   * @param rows in BF16, {@code [P, H]}
   * @param weights address of F32 {@code [T, K]}, 0 if they were applied
   * @param topK {@code K}
   * @param out {@code [T, H]}, {@code T >= 1}, F32 or BF16, 16-byte aligned, overwritten
   */
  void reduceRows(
      PeerLink.PairRows rows,
      long weights,
      int topK,
      Tensor out,
      PeerRooms rooms,
      PeerRoom room,
      DeviceStream stream) {
    int tokens = Math.toIntExact(out.size(0));
    KernelLaunch launch =
        of(DType.BF16, out.dtype(), reduceRows16, reduceRows16To32)
            .begin()
            .pointer(rows.address())
            .pointer(rows.rowOfPair())
            .pointer(weights)
            .pointer(out);
    sums(launch, room, rooms)
        .i32(tokens)
        .i32(topK)
        .i32(Math.toIntExact(rows.width() / COLUMNS))
        .launch(stream, addingBlocks(tokens));
  }
}
