package io.moe4j.tck;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.Tensor;

/** One rank of a right group with one thing changed. */
class WrongCommunicator implements Communicator {
  final Communicator right;

  WrongCommunicator(Communicator right) {
    this.right = right;
  }

  /** Rows of the last rank first. */
  static Communicator gathersInReverse(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
        super.allGather(send, receive, stream);
        long n = send.size(0);
        Tensor copy = Data.empty(receive.dtype(), receive.shape());
        copy.segment().copyFrom(receive.segment());
        for (int r = 0; r < size(); r++) {
          receive
              .narrow(0, r * n, n)
              .segment()
              .copyFrom(copy.narrow(0, (size() - 1 - r) * n, n).segment());
        }
      }
    };
  }

  /** What the last rank has is left out of sums. */
  static Communicator sumsWithoutLastRank(Communicator c) {
    return new WrongCommunicator(c) {
      private Tensor zeroOnLast(Tensor t) {
        return rank() == size() - 1 ? Data.empty(t.dtype(), t.shape()) : t;
      }

      @Override
      public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
        super.reduceScatter(zeroOnLast(send), receive, stream);
      }

      @Override
      public void allReduce(Tensor both, DeviceStream stream) {
        Tensor part = Data.empty(both.dtype(), both.shape());
        part.segment().copyFrom(zeroOnLast(both).segment());
        super.allReduce(part, stream);
        both.segment().copyFrom(part.segment());
      }
    };
  }

  /** Sums as a ring makes them: each part begins with another rank. */
  static Communicator sumsInRingOrder(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
        Tensor all = gathered(send, stream);
        long n = receive.size(0);
        sum(all, send.size(0), rank() * n, n, receive);
      }

      @Override
      public void allReduce(Tensor both, DeviceStream stream) {
        sum(gathered(both, stream), both.size(0), 0, both.size(0), both);
      }

      private void sum(Tensor all, long stride, long from, long n, Tensor into) {
        float[] total = new float[Math.toIntExact(into.elementCount())];
        for (int step = 1; step <= size(); step++) {
          int r = (rank() + step) % size();
          add(total, all.narrow(0, r * stride + from, n).toFloats());
        }
        put(total, into);
      }
    };
  }

  /** Rounds to the dtype after every rank. */
  static Communicator roundsInBetween(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allReduce(Tensor both, DeviceStream stream) {
        Tensor all = gathered(both, stream);
        float[] total = new float[Math.toIntExact(both.elementCount())];
        Tensor rounded = Data.empty(both.dtype(), both.shape());
        for (int r = 0; r < size(); r++) {
          add(total, all.narrow(0, r * both.size(0), both.size(0)).toFloats());
          put(total, rounded);
          total = rounded.toFloats();
        }
        put(total, both);
      }
    };
  }

  /** Uses what is sent as scratch. */
  static Communicator writesWhatIsSent(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
        super.allGather(send, receive, stream);
        if (send.elementCount() > 0) {
          send.set(send.get(0, 0) + 1, 0, 0);
        }
      }
    };
  }

  /** Gives every rank the same number of rows, as if all sent alike. */
  static Communicator packsReceivedRowsEvenly(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allToAll(
          Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream) {
        super.allToAll(send, sendRows, receive, receiveRows, stream);
        if (size() > 1 && receiveRows[0] > 0) {
          long n = receive.size(0);
          Tensor copy = Data.empty(receive.dtype(), receive.shape());
          copy.segment().copyFrom(receive.segment());
          receive.narrow(0, 1, n - 1).segment().copyFrom(copy.narrow(0, 0, n - 1).segment());
        }
      }
    };
  }

  /** Says that it was itself. */
  static Communicator blamesItself(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
        try {
          super.allGather(send, receive, stream);
        } catch (CommException e) {
          throw new CommException(rank(), "rank " + rank() + " failed", e);
        }
      }
    };
  }

  /** An error of its own making. */
  static Communicator throwsSomethingElse(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
        try {
          super.allGather(send, receive, stream);
        } catch (CommException e) {
          throw new IllegalStateException("ncclSystemError", e);
        }
      }
    };
  }

  /** Returns as if all had come. */
  static Communicator swallowsFailures(Communicator c) {
    return new WrongCommunicator(c) {
      @Override
      public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
        try {
          super.allGather(send, receive, stream);
        } catch (CommException e) {
          put(new float[Math.toIntExact(receive.elementCount())], receive);
        }
      }
    };
  }

  /** Frees twice. */
  static Communicator secondCloseThrows(Communicator c) {
    return new WrongCommunicator(c) {
      private int closed;

      @Override
      public void close() {
        super.close();
        if (++closed == 2) {
          throw new IllegalStateException("already freed");
        }
      }
    };
  }

  Tensor gathered(Tensor mine, DeviceStream stream) {
    long[] shape = mine.shape();
    shape[0] *= size();
    Tensor all = Data.empty(mine.dtype(), shape);
    right.allGather(mine, all, stream);
    return all;
  }

  static void add(float[] total, float[] values) {
    for (int i = 0; i < total.length; i++) {
      total[i] += values[i];
    }
  }

  static void put(float[] values, Tensor into) {
    Tensor flat = into.reshape(values.length);
    for (int i = 0; i < values.length; i++) {
      flat.set(values[i], i);
    }
  }

  @Override
  public String description() {
    return right.description();
  }

  @Override
  public int rank() {
    return right.rank();
  }

  @Override
  public int size() {
    return right.size();
  }

  @Override
  public DeviceType deviceType() {
    return right.deviceType();
  }

  @Override
  public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
    right.allGather(send, receive, stream);
  }

  @Override
  public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
    right.reduceScatter(send, receive, stream);
  }

  @Override
  public void allReduce(Tensor both, DeviceStream stream) {
    right.allReduce(both, stream);
  }

  @Override
  public void allToAll(
      Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream) {
    right.allToAll(send, sendRows, receive, receiveRows, stream);
  }

  @Override
  public void abort(Throwable cause) {
    right.abort(cause);
  }

  @Override
  public void close() {
    right.close();
  }
}
