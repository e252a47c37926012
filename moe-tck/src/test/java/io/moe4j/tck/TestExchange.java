package io.moe4j.tck;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertPlacement;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * All rows to all ranks, in heap memory of each call: short and right. What a subclass overrides is
 * its mistake.
 */
class TestExchange implements ExpertExchange {
  final MoeConfig config;
  final Communicator group;
  private final BlockOps block;
  private @Nullable ExchangeInputs all;
  private long perRank;

  TestExchange(MoeConfig config, Communicator group, BlockOps block) {
    this.config = config;
    this.group = group;
    this.block = block;
  }

  /** Makes exchanges. */
  interface Maker {
    ExpertExchange make(MoeConfig config, Communicator group, BlockOps block);
  }

  /** {@return a provider of such exchanges} */
  static ExpertExchangeProvider provider(Maker maker) {
    return new ExpertExchangeProvider() {
      @Override
      public String name() {
        return "test";
      }

      @Override
      public int priority() {
        return 0;
      }

      @Override
      public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
        // Sums in the order in which copies of an expert are chosen: other bits on other ranks.
        boolean differs =
            config.parallel().replicatedTokens()
                && config.placement().filter(ExpertPlacement::isRedundant).isPresent();
        return Support.checks()
            .require(
                communicator != null, Support.Code.PARALLEL, () -> "no communicator, needs one")
            .require(
                !differs,
                Support.Code.PARALLEL,
                () -> "the same tokens and experts on several ranks")
            .result();
      }

      @Override
      public ExpertExchange open(
          MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
        return maker.make(config, Objects.requireNonNull(communicator), block);
      }
    };
  }

  /** Rows of the last rank first, on the way out only. */
  static ExpertExchange rowsInReverse(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, WrongCommunicator.gathersInReverse(group), block);
  }

  /** The sum of all ranks but the last. */
  static ExpertExchange sumMissesARank(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, WrongCommunicator.sumsWithoutLastRank(group), block);
  }

  /** Rows go, slots stay: every rank takes its own tokens' slots for all rows. */
  static ExpertExchange slotsStay(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      Tensor gatherSlots(Tensor slots, DeviceStream stream) {
        Tensor all = super.gatherSlots(slots, stream);
        long n = slots.size(0);
        for (long r = 0; r < group.size(); r++) {
          all.narrow(0, r * n, n).segment().copyFrom(slots.segment());
        }
        return all;
      }
    };
  }

  /** Before the experts and again behind them. */
  static ExpertExchange weightsTwice(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      Tensor weights(Tensor topkWeights) {
        Tensor squared = Data.empty(DType.F32, topkWeights.shape());
        for (long t = 0; t < squared.size(0); t++) {
          for (long k = 0; k < squared.size(1); k++) {
            squared.set(topkWeights.get(t, k) * topkWeights.get(t, k), t, k);
          }
        }
        return squared;
      }
    };
  }

  /** Rows that fill up are tokens of expert 0. */
  static ExpertExchange paddingIsExpertZero(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      int paddingId() {
        return 0;
      }

      @Override
      public int maxRows(int maxTokens) {
        return maxTokens; // and not times the number of ranks
      }
    };
  }

  /** Every rank that has an expert adds it. */
  static ExpertExchange everyCopyAdds(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      int computes(int expert, int tokenRank) {
        return group.rank();
      }
    };
  }

  /** The last bit depends on the call. */
  static ExpertExchange lastBitVaries(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      private int calls;

      @Override
      public void combine(
          Tensor output,
          ExchangedRows rows,
          ExchangeInputs inputs,
          Tensor routed,
          Workspace workspace,
          DeviceStream stream) {
        super.combine(output, rows, inputs, routed, workspace, stream);
        if (calls++ % 2 == 1 && routed.elementCount() > 0) {
          routed.set(Math.nextUp((float) routed.get(0, 0)), 0, 0);
        }
      }
    };
  }

  /** The last rank rounds otherwise, where all have the same tokens. */
  static ExpertExchange ranksDiffer(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      public void combine(
          Tensor output,
          ExchangedRows rows,
          ExchangeInputs inputs,
          Tensor routed,
          Workspace workspace,
          DeviceStream stream) {
        super.combine(output, rows, inputs, routed, workspace, stream);
        boolean last = config.parallel().epRank() == config.parallel().epSize() - 1;
        if (config.parallel().replicatedTokens() && last && routed.elementCount() > 0) {
          routed.set(Math.nextUp((float) routed.get(0, 0)), 0, 0);
        }
      }
    };
  }

  /** Takes a failure for an empty rank. */
  static ExpertExchange failureHidden(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      @Override
      public ExchangedRows dispatch(
          ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
        try {
          return super.dispatch(inputs, workspace, stream);
        } catch (io.moe4j.api.comm.CommException e) {
          throw new IllegalStateException("exchange failed");
        }
      }
    };
  }

  /** Frees twice. */
  static ExpertExchange secondCloseThrows(MoeConfig config, Communicator group, BlockOps block) {
    return new TestExchange(config, group, block) {
      private boolean closed;

      @Override
      public void close() {
        if (closed) {
          throw new IllegalStateException("already freed");
        }
        closed = true;
      }
    };
  }

  @Override
  public String name() {
    return "test";
  }

  @Override
  public ActivationFormat activationFormat() {
    return config.activationFormat();
  }

  @Override
  public boolean outputIsReduced() {
    return true;
  }

  @Override
  public int maxRows(int maxTokens) {
    return maxTokens * group.size();
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return 0;
  }

  int paddingId() {
    return -1;
  }

  Tensor weights(Tensor topkWeights) {
    return topkWeights;
  }

  /** Of a redundant expert, the rank that is to compute it. */
  int computes(int expert, int tokenRank) {
    return config.placement().map(p -> p.rank(expert, tokenRank)).orElse(group.rank());
  }

  private Tensor mine(Tensor allIds) {
    for (long row = 0; row < allIds.size(0); row++) {
      for (long k = 0; k < allIds.size(1); k++) {
        int expert = (int) allIds.get(row, k);
        if (expert >= 0 && computes(expert, (int) (row / perRank)) != group.rank()) {
          allIds.set(-1, row, k);
        }
      }
    }
    return allIds;
  }

  private Tensor gather(Tensor mine, DeviceStream stream) {
    long[] shape = mine.shape();
    shape[0] *= group.size();
    Tensor all = Data.empty(mine.dtype(), shape);
    group.allGather(mine, all, stream);
    return all;
  }

  Tensor gatherSlots(Tensor slots, DeviceStream stream) {
    return gather(slots, stream);
  }

  private Tensor padded(Tensor mine, int fill) {
    long[] shape = mine.shape();
    shape[0] = perRank;
    Tensor more = Data.empty(mine.dtype(), shape);
    more.segment().fill((byte) fill);
    more.narrow(0, 0, mine.size(0)).segment().copyFrom(mine.segment());
    return more;
  }

  @Override
  public ExchangedRows dispatch(ExchangeInputs inputs, Workspace workspace, DeviceStream stream) {
    Tensor counts = gather(Tensor.ofInts(new int[] {(int) inputs.hidden().size(0)}, 1), stream);
    perRank = Arrays.stream(counts.toInts()).max().orElse(0);
    ExpertRouting mine = inputs.routing();
    Tensor slots = inputs.tokenLoraMapping();
    all =
        new ExchangeInputs(
            gather(padded(inputs.hidden(), 0), stream),
            new ExpertRouting(
                mine(gather(padded(mine.topkIds(), paddingId()), stream)),
                weights(gather(padded(mine.topkWeights(), 0), stream)),
                mine.expertMap()),
            slots == null ? null : gatherSlots(padded(slots, -1), stream));
    if (config.activationFormat() == ActivationFormat.STANDARD) {
      return new ExchangedRows(all.hidden(), all.routing(), null, all.tokenLoraMapping());
    }
    long experts = config.numLocalExperts();
    long rows = perRank * group.size();
    Tensor hidden = Data.empty(inputs.hidden().dtype(), experts, rows, config.expertHiddenSize());
    Tensor numTokens = Data.empty(DType.I32, experts);
    Tensor batchedSlots = slots == null ? null : Data.empty(DType.I32, experts, rows);
    block.dispatch(
        all.hidden(),
        all.routing(),
        all.tokenLoraMapping(),
        hidden,
        numTokens,
        batchedSlots,
        scratch(rows),
        stream);
    return new ExchangedRows(hidden, null, numTokens, batchedSlots);
  }

  private Workspace scratch(long tokens) {
    long bytes = Math.max(block.workspaceBytes((int) tokens), 1);
    return new Workspace(Data.empty(DType.U8, bytes).memory());
  }

  @Override
  public void combine(
      Tensor output,
      ExchangedRows rows,
      ExchangeInputs inputs,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    long total = perRank * group.size();
    Tensor sums = output;
    if (config.activationFormat() == ActivationFormat.BATCHED) {
      sums = Data.empty(DType.F32, total, config.expertHiddenSize());
      block.combine(output, Objects.requireNonNull(all).routing(), sums, scratch(total), stream);
    }
    Tensor mine = Data.empty(DType.F32, perRank, config.expertHiddenSize());
    group.reduceScatter(sums, mine, stream);
    routed.segment().copyFrom(mine.narrow(0, 0, routed.size(0)).segment());
  }

  @Override
  public void close() {}
}
