package io.moe4j.cli.bench;

import io.moe4j.api.DeviceException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.PunicaProviders;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeSession;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * One rank's part of a layer and of the tokens, or the whole on one GPU: what is measured there.
 * Not thread-safe.
 */
final class RankPart implements AutoCloseable {
  private static final int SAMPLES = 15;
  private static final int WARM = 20;
  private static final int REPLAYS = 10;
  private static final int OPERATIONS = 10;

  private final BenchShape shape;
  private final RanksLayout layout;
  private final int rank;
  private final Device device;
  private final DeviceStream stream;
  private final int rest;
  private final @Nullable Communicator communicator;
  private final Runnable meet;
  private final DeviceModel model;
  private final MoeLayer layer;
  private final List<LoraLayer> slots = new ArrayList<>();
  private final SlotsKey key = new SlotsKey("bench");
  private @Nullable PunicaWrapper punica;

  /**
   * Builds the layer.
   *
   * @param plan what is measured
   * @param shape of the whole layer
   * @param lora adapters
   * @param layout of the ranks, {@link RanksLayout#ONE} for the whole
   * @param rank this one
   * @param device where; stays the caller's
   * @param communicator to the others, stays the caller's; null for the whole
   * @param meet waits until all ranks are here
   */
  RankPart(
      RanksBench.Plan plan,
      BenchShape shape,
      DeviceBench.Lora lora,
      RanksLayout layout,
      int rank,
      Device device,
      @Nullable Communicator communicator,
      Runnable meet) {
    this.shape = shape;
    this.layout = layout;
    this.rank = rank;
    this.device = device;
    this.stream = device.defaultStream();
    this.rest = plan.rest();
    this.communicator = communicator;
    this.meet = meet;
    int most = plan.tokens().stream().mapToInt(Integer::intValue).max().orElse(layout.ranks());
    model = new DeviceModel(layout.weights(shape), device);
    MoeLayer.Builder builder =
        MoeLayer.builder(
                RanksBench.config(
                    layout.config(shape), layout.ownTokens(most), lora, layout.parallel(rank)),
                model.weights(BenchWeights.BF16))
            .oracle(plan.oracle())
            .backend(plan.backend())
            .device(device);
    if (communicator != null) {
      builder.communicator(communicator);
    }
    layer = builder.build();
    for (int a = 0; a < lora.adapters(); a++) {
      slots.add(model.adapter(lora.rank()));
    }
  }

  /** {@return how rows and sums move, and why so} */
  String exchange() {
    return layer.selection().exchange();
  }

  private PunicaWrapper punica() {
    PunicaWrapper wrapper = punica;
    if (wrapper == null) {
      wrapper = PunicaProviders.open(device);
      punica = wrapper;
    }
    return wrapper;
  }

  /**
   * Microseconds of a forward of all ranks' tokens.
   *
   * @param empty whether no token has an expert
   */
  double forward(int all, boolean empty) {
    int count = layout.ownTokens(all);
    int from = layout.firstToken(all, rank);
    DeviceBatch[] batches = DeviceBatch.rotating(shape, all);
    List<MoeForward> pass = new ArrayList<>();
    try (DeviceModel room = model.more();
        MoeSession session = layer.newSession(count)) {
      for (DeviceBatch b : batches) {
        Tensor logits = room.put(b.logits().narrow(0, from, count));
        Tensor output = room.empty(DType.BF16, count, shape.hiddenSize());
        MoeForward f = MoeForward.of(room.hidden(count), output);
        if (empty) {
          int k = shape.topK();
          int[] none = new int[count * k];
          Arrays.fill(none, -1);
          f =
              f.withTopk(
                  room.put(Tensor.ofInts(none, count, k)),
                  room.put(Tensor.ofFloats(new float[count * k], count, k)));
        } else {
          f = f.withRouterLogits(logits);
        }
        if (!slots.isEmpty()) {
          Tensor mapping = room.put(b.mapping(all, slots.size()).narrow(0, from, count));
          f = f.withLora(new DeviceAdapters(key, slots, mapping, this::punica));
        }
        pass.add(f);
      }
      LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(rest));
      return micros(() -> pass.forEach(f -> session.forward(f, stream))) / pass.size();
    }
  }

  /** Microseconds of the operation that brings all rows to all ranks. */
  double gather(int all) {
    int n = layout.ownTokens(all);
    int k = shape.topK();
    boolean adapters = !slots.isEmpty();
    try (DeviceModel room = model.more()) {
      List<Tensor> send = new ArrayList<>();
      List<Tensor> receive = new ArrayList<>();
      send.add(room.hidden(n));
      send.add(room.empty(DType.I32, n, k));
      send.add(room.empty(DType.F32, n, k));
      receive.add(room.empty(DType.BF16, all, shape.hiddenSize()));
      receive.add(room.empty(DType.I32, all, k));
      receive.add(room.empty(DType.F32, all, k));
      if (adapters) {
        send.add(room.empty(DType.I32, n));
        receive.add(room.empty(DType.I32, all));
      }
      return operations(c -> c.allGather(send, receive, stream));
    }
  }

  /** Microseconds of the operation that brings sums back. */
  double scatter(int all) {
    try (DeviceModel room = model.more()) {
      Tensor send = room.hidden(all);
      Tensor receive = room.empty(DType.BF16, layout.ownTokens(all), shape.hiddenSize());
      return operations(c -> c.reduceScatter(send, receive, stream));
    }
  }

  /** Microseconds of the operation that brings sums to ranks that have all tokens. */
  double allReduce(int all) {
    try (DeviceModel room = model.more()) {
      Tensor both = room.hidden(all); // grows to infinity, which takes no longer
      return operations(c -> c.allReduce(both, stream));
    }
  }

  private double operations(Consumer<Communicator> one) {
    Communicator c = communicator;
    return c == null
        ? 0
        : micros(() -> {
          for (int i = 0; i < OPERATIONS; i++) {
            one.accept(c);
          }
        })
            / OPERATIONS;
  }

  /** All ranks make as many launches: they wait for each other on the cards. */
  private double micros(Runnable work) {
    work.run(); // loads the kernels and connects
    stream.synchronize();
    try (Device.Graph graph =
        device
            .capture(stream, work)
            .orElseThrow(() -> new DeviceException(device.info().id() + " records no graphs"))) {
      launch(graph, WARM);
      double[] samples = new double[SAMPLES];
      for (int s = 0; s < SAMPLES; s++) {
        meet.run();
        long start = System.nanoTime();
        launch(graph, REPLAYS);
        samples[s] = (System.nanoTime() - start) / 1e3 / REPLAYS;
      }
      Arrays.sort(samples);
      return samples[SAMPLES / 2];
    }
  }

  private void launch(Device.Graph graph, int times) {
    for (int r = 0; r < times; r++) {
      graph.launch(stream);
    }
    stream.synchronize();
  }

  @Override
  public void close() {
    layer.close();
    if (punica != null) {
      punica.close();
    }
    model.close();
  }
}
