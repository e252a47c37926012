package io.moe4j.backend.triton.tuning;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.triton.launch.TritonExperts;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.tuning.PlanRace;
import io.moe4j.cuda.tuning.PlanTuner;
import java.nio.file.Path;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Function;

/** What a {@link PlanTuner} must know of this module. */
public final class TritonTuner implements PlanTuner.Backend<Problem, TilePlan, TileEntry> {
  private final MoeConfig config;
  private final ExpertWeights weights;
  private final CudaDevice device;
  private final TileSet set;

  private TritonTuner(MoeConfig config, ExpertWeights weights, CudaDevice device) {
    this.config = config;
    this.weights = weights;
    this.device = device;
    this.set = TuningCache.set(config, device.info());
  }

  /** {@return a tuner of a layer, owned by the caller} */
  public static Tuner of(MoeConfig config, ExpertWeights weights, CudaDevice device, Path file) {
    return new PlanTuner<>(
        device,
        new TritonTuner(config, weights, device),
        TuningCache.FILE,
        TuningCache.key(config, device.info(), weights.numExperts()),
        file);
  }

  @Override
  public ModularExperts experts(Function<Problem, TilePlan> choice) {
    return TritonExperts.prepare(config, weights, device, LoraMode.FUSED, choice::apply);
  }

  @Override
  public TilePlan builtIn(Problem problem) {
    return TileTable.choose(problem);
  }

  @Override
  public Optional<PlanRace.Found<TilePlan>> search(
      Problem problem, PlanRace.Meter<TilePlan> meter, BooleanSupplier goOn)
      throws PlanRace.Rejected {
    return TileSearch.run(problem, set, meter, goOn);
  }

  @Override
  public TileEntry entry(Problem problem, PlanRace.Found<TilePlan> found) {
    return TileEntry.of(problem, found.plan(), found.micros(), found.builtInMicros());
  }

  @Override
  public String text(TilePlan plan) {
    return plan.text();
  }
}
