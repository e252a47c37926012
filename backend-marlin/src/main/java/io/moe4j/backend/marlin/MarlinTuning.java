package io.moe4j.backend.marlin;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.tuning.PlanRace;
import io.moe4j.cuda.tuning.PlanTuner;
import io.moe4j.cuda.tuning.TunedTable;
import io.moe4j.cuda.tuning.TuningFile;
import io.moe4j.cuda.tuning.TuningPlace;
import io.moe4j.cuda.tuning.TuningStore;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Function;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * Plans measured on the user's card: what {@link PlanTuner} and {@link TuningStore} must know of
 * this module. Safe for several threads.
 */
final class MarlinTuning implements PlanTuner.Backend<MarlinPlan.Problem, MarlinPlan, PlanEntry> {
  static final TuningFile<PlanEntry> FILE = new TuningFile<>("backend-marlin", PlanEntry.FORM);
  private static final TuningStore<PlanEntry> STORE =
      new TuningStore<>(
          FILE, new TuningPlace(MarlinProperties.PLANS, "marlin-plans.json"), "tuned plans");

  private final MoeConfig config;
  private final ExpertWeights weights;
  private final CudaDevice device;

  private MarlinTuning(MoeConfig config, ExpertWeights weights, CudaDevice device) {
    this.config = config;
    this.weights = weights;
    this.device = device;
  }

  /** {@return a tuner of a layer, owned by the caller} */
  static Tuner tuner(MoeConfig config, ExpertWeights weights, CudaDevice device, Path file) {
    return new PlanTuner<>(
        device,
        new MarlinTuning(config, weights, device),
        FILE,
        key(config, device.info(), weights.numExperts()),
        file);
  }

  /** {@return where plans are read from; empty if that was turned off or there is no place} */
  static Optional<Path> path() {
    return STORE.path();
  }

  /** {@return what is there for a card, see {@link TuningStatus}} */
  static TuningStatus status(@Nullable DeviceInfo device) {
    return STORE.status(device, MarlinTuning::kernelSet);
  }

  /**
   * Who chooses plans for a layer. Never throws.
   *
   * @param config the layer
   * @param device the card
   * @param localExperts of the layer
   * @return the tuned choices, or the built-in ones where there are none
   */
  static Function<MarlinPlan.Problem, MarlinPlan> forLayer(
      MoeConfig config, DeviceInfo device, int localExperts) {
    List<PlanEntry> entries = STORE.entries(key(config, device, localExperts));
    return entries.isEmpty() ? MarlinPlan::choose : new TunedPlans(entries);
  }

  /** {@return what a layer's entries are kept under} */
  static TunedTable.Key key(MoeConfig config, DeviceInfo device, int localExperts) {
    PaddedSizes sizes = PaddedSizes.of(config);
    return new TunedTable.Key(
        device.name(),
        CudaDeviceProvider.capability(device).toString(),
        kernelSet(),
        weights(config),
        config.activation().isGated() ? "gated" : "none",
        localExperts,
        config.topK(),
        sizes.hidden(),
        sizes.intermediate());
  }

  /** Like {@code int4 group 128, bf16}, or with both products' schemes where they are two. */
  private static String weights(MoeConfig config) {
    QuantScheme first = config.uniformW13Scheme().orElseThrow();
    QuantScheme second = config.uniformW2Scheme().orElseThrow();
    return first
        + (first.equals(second) ? "" : " and " + second)
        + ", "
        + MarlinKernels.name(config.weightDtype());
  }

  private static String kernelSet() {
    return TuningFile.kernelSet(
        Stream.concat(MarlinKernels.library().kernels().stream(), ExpertKernels.all()));
  }

  @Override
  public ModularExperts experts(Function<MarlinPlan.Problem, MarlinPlan> choice) {
    return MarlinExperts.prepare(config, weights, device, LoraMode.FUSED, choice);
  }

  @Override
  public MarlinPlan builtIn(MarlinPlan.Problem problem) {
    return MarlinPlan.choose(problem);
  }

  @Override
  public Optional<PlanRace.Found<MarlinPlan>> search(
      MarlinPlan.Problem problem, PlanRace.Meter<MarlinPlan> meter, BooleanSupplier goOn)
      throws PlanRace.Rejected {
    return PlanSearch.run(problem, meter, goOn);
  }

  @Override
  public PlanEntry entry(MarlinPlan.Problem problem, PlanRace.Found<MarlinPlan> found) {
    return PlanEntry.of(problem, found.plan(), found.micros(), found.builtInMicros());
  }

  @Override
  public String text(MarlinPlan plan) {
    return plan.text();
  }
}
