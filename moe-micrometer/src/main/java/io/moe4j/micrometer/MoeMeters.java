package io.moe4j.micrometer;

import io.micrometer.core.instrument.FunctionCounter;
import io.micrometer.core.instrument.FunctionTimer;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.MeterRegistry;
import io.micrometer.core.instrument.Tags;
import io.micrometer.core.instrument.binder.MeterBinder;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.lora.AdapterStats;
import io.moe4j.oracle.LayerStats;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.ScratchPool;
import io.moe4j.oracle.ScratchStats;
import java.util.concurrent.TimeUnit;
import java.util.function.ToDoubleFunction;

/**
 * Meters over what layers, scratch pools and adapter registries count anyway: a forward does
 * nothing for them. Micrometer refers to the objects weakly; closed ones keep their last values.
 *
 * <pre>{@code
 * MoeMeters.of(layer, Tags.of("layer", "0")).bindTo(registry);
 * MoeMeters.of(layer.scratchPool(), Tags.empty()).bindTo(registry);
 * MoeMeters.of(adapters, Tags.of("model", "m")).bindTo(registry);
 * }</pre>
 *
 * @since 0.1.0
 */
public final class MoeMeters {
  private MoeMeters() {}

  /**
   * A layer: {@code moe4j.forwards} (timer), {@code moe4j.forward.failures}, {@code moe4j.tokens},
   * {@code moe4j.weights} and {@code moe4j.scratch.per.forward} in bytes. Each carries the tags
   * {@code backend} and {@code device}.
   *
   * @param layer the layer
   * @param tags of the caller's, to tell layers apart
   * @return binds the meters
   */
  public static MeterBinder of(MoeLayer layer, Tags tags) {
    Tags all =
        tags.and(
            "backend", layer.selection().chosenBackend().name(),
            "device", layer.device().info().id().toString());
    return registry -> {
      FunctionTimer.builder(
              "moe4j.forwards",
              layer,
              l -> l.stats().forwards(),
              l -> (double) l.stats().nanos(),
              TimeUnit.NANOSECONDS)
          .tags(all)
          .description("Forwards that ended well")
          .register(registry);
      layerCounter(registry, layer, all, "moe4j.forward.failures", LayerStats::failures);
      layerCounter(registry, layer, all, "moe4j.tokens", LayerStats::tokens);
      layerGauge(registry, layer, all, "moe4j.weights", LayerStats::weightBytes);
      layerGauge(registry, layer, all, "moe4j.scratch.per.forward", LayerStats::scratchBytes);
    };
  }

  private static void layerCounter(
      MeterRegistry registry,
      MoeLayer layer,
      Tags tags,
      String name,
      ToDoubleFunction<LayerStats> value) {
    FunctionCounter.builder(name, layer, l -> value.applyAsDouble(l.stats()))
        .tags(tags)
        .register(registry);
  }

  private static void layerGauge(
      MeterRegistry registry,
      MoeLayer layer,
      Tags tags,
      String name,
      ToDoubleFunction<LayerStats> value) {
    Gauge.builder(name, layer, l -> value.applyAsDouble(l.stats()))
        .tags(tags)
        .baseUnit("bytes")
        .register(registry);
  }

  /**
   * A pool: {@code moe4j.scratch} in bytes, {@code moe4j.scratch.pieces}, {@code
   * moe4j.scratch.lent}, {@code moe4j.scratch.waits} (timer), {@code moe4j.scratch.timeouts}.
   *
   * @param pool the pool, of one layer or of many
   * @param tags of the caller's
   * @return binds the meters
   */
  public static MeterBinder of(ScratchPool pool, Tags tags) {
    return registry -> {
      FunctionTimer.builder(
              "moe4j.scratch.waits",
              pool,
              p -> p.stats().waits(),
              p -> (double) p.stats().waitNanos(),
              TimeUnit.NANOSECONDS)
          .tags(tags)
          .description("Forwards that waited for scratch memory")
          .register(registry);
      FunctionCounter.builder("moe4j.scratch.timeouts", pool, p -> (double) p.stats().timeouts())
          .tags(tags)
          .register(registry);
      poolGauge(registry, pool, tags, "moe4j.scratch", "bytes", ScratchStats::bytes);
      poolGauge(registry, pool, tags, "moe4j.scratch.pieces", "pieces", ScratchStats::pieces);
      poolGauge(registry, pool, tags, "moe4j.scratch.lent", "pieces", ScratchStats::lent);
    };
  }

  private static void poolGauge(
      MeterRegistry registry,
      ScratchPool pool,
      Tags tags,
      String name,
      String unit,
      ToDoubleFunction<ScratchStats> value) {
    Gauge.builder(name, pool, p -> value.applyAsDouble(p.stats()))
        .tags(tags)
        .baseUnit(unit)
        .register(registry);
  }

  /**
   * A registry of adapters: {@code moe4j.adapter.hits}, {@code .uploads}, {@code .evictions},
   * {@code .host.evictions}, {@code .waits}; {@code moe4j.adapters.loaded}, {@code
   * moe4j.adapter.slots} with the tag {@code state} = occupied or leased.
   *
   * @param adapters the registry
   * @param tags of the caller's
   * @return binds the meters
   */
  public static MeterBinder of(AdapterRegistry adapters, Tags tags) {
    return registry -> {
      adapterCounter(registry, adapters, tags, "moe4j.adapter.hits", AdapterStats::hits);
      adapterCounter(registry, adapters, tags, "moe4j.adapter.uploads", AdapterStats::uploads);
      adapterCounter(registry, adapters, tags, "moe4j.adapter.evictions", AdapterStats::evictions);
      adapterCounter(
          registry, adapters, tags, "moe4j.adapter.host.evictions", AdapterStats::hostEvictions);
      adapterCounter(registry, adapters, tags, "moe4j.adapter.waits", AdapterStats::waits);
      adapterGauge(registry, adapters, tags, "moe4j.adapters.loaded", AdapterStats::loadedAdapters);
      adapterGauge(
          registry,
          adapters,
          tags.and("state", "occupied"),
          "moe4j.adapter.slots",
          AdapterStats::occupiedSlots);
      adapterGauge(
          registry,
          adapters,
          tags.and("state", "leased"),
          "moe4j.adapter.slots",
          AdapterStats::leasedSlots);
    };
  }

  private static void adapterCounter(
      MeterRegistry registry,
      AdapterRegistry adapters,
      Tags tags,
      String name,
      ToDoubleFunction<AdapterStats> value) {
    FunctionCounter.builder(name, adapters, a -> value.applyAsDouble(a.stats()))
        .tags(tags)
        .register(registry);
  }

  private static void adapterGauge(
      MeterRegistry registry,
      AdapterRegistry adapters,
      Tags tags,
      String name,
      ToDoubleFunction<AdapterStats> value) {
    Gauge.builder(name, adapters, a -> value.applyAsDouble(a.stats()))
        .tags(tags)
        .register(registry);
  }
}
