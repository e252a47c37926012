package io.moe4j.api.comm;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.Tensor;
import java.util.List;

/**
 * One rank of a group. Every rank makes the same calls in the same order with tensors of the same
 * shape and dtype; a call is complete when the stream has done it (on the host stream: when it
 * returns). All tensors are contiguous, in memory of {@link #deviceType}, owned by the caller and
 * alive until then; sent tensors are not written, and what is sent may not overlap what is
 * received.
 *
 * <p>Equal calls give equal bits. Sums are made in f32 in the order of ranks whatever the dtype,
 * and rounded once; a vendor's library may sum in an order of its own and round BF16 and F16 at
 * each step, which {@link #sumsInRankOrder} tells.
 *
 * <p>A rank that fails or does not come within the deadline ends the group: every call that waits
 * or comes later throws {@link CommException}, which names the rank and the cause. Nothing waits
 * for ever. Not safe for several threads: one call of a rank at a time.
 *
 * @since 0.2.0
 */
public interface Communicator extends AutoCloseable {
  /** {@return what carries it, for messages: {@code nccl 2.28}, {@code in-process}} */
  String description();

  /** {@return this rank, {@code 0..size-1}} */
  int rank();

  /** {@return the number of ranks} */
  int size();

  /** {@return where tensors have to be} */
  DeviceType deviceType();

  /**
   * {@return whether sums are made in f32 in the order of ranks and rounded once; true unless a
   * library decides}
   *
   * @since 0.2.0
   */
  default boolean sumsInRankOrder() {
    return true;
  }

  /**
   * Brings every rank's tensor to every rank.
   *
   * @param send {@code [n, ...]}
   * @param receive {@code [size * n, ...]}, rank 0's rows first; overwritten
   * @param stream where to run
   */
  void allGather(Tensor send, Tensor receive, DeviceStream stream);

  /**
   * Several {@link #allGather(Tensor, Tensor, DeviceStream)} as one call, which a library may do in
   * one step. By default one after the other.
   *
   * @param send what each of them sends
   * @param receive where it goes, in the same order
   * @param stream where to run
   */
  default void allGather(List<Tensor> send, List<Tensor> receive, DeviceStream stream) {
    if (send.size() != receive.size()) {
      throw new IllegalArgumentException(
          "send has " + send.size() + " tensors, receive " + receive.size());
    }
    for (int i = 0; i < send.size(); i++) {
      allGather(send.get(i), receive.get(i), stream);
    }
  }

  /**
   * Sums all ranks' tensors and leaves each rank its part.
   *
   * @param send {@code [size * n, ...]}, F32, BF16 or F16; rows {@code r * n} on are for rank r
   * @param receive {@code [n, ...]}, overwritten with the sum
   * @param stream where to run
   */
  void reduceScatter(Tensor send, Tensor receive, DeviceStream stream);

  /**
   * Sums all ranks' tensors.
   *
   * @param both F32, BF16 or F16; read, then overwritten with the sum
   * @param stream where to run
   */
  void allReduce(Tensor both, DeviceStream stream);

  /**
   * Sends rows to every rank and receives from every rank.
   *
   * @param send {@code [sum(sendRows), ...]}, rank 0's rows first
   * @param sendRows rows for each rank, known on the host
   * @param receive {@code [at least sum(receiveRows), ...]}, rank 0's rows first; overwritten
   * @param receiveRows rows from each rank: what that rank gave for this one
   * @param stream where to run
   */
  void allToAll(
      Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream);

  /**
   * Ends the group on every rank: waiting and later calls of the others throw, with this cause.
   *
   * @param cause why
   */
  void abort(Throwable cause);

  /** Leaves the group, once everything enqueued has finished. May be called twice. */
  @Override
  void close();
}
