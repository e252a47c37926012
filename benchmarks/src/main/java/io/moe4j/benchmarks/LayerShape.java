package io.moe4j.benchmarks;

/** Sizes of the routed experts of one layer of a model. */
public enum LayerShape {
  /** OLMoE-1B-7B. */
  OLMOE(64, 8, 2048, 1024),
  /** Qwen3-30B-A3B. */
  QWEN3_30B_A3B(128, 8, 2048, 768),
  /** Mixtral's proportions, a quarter of its width. */
  MIXTRAL_SMALL(8, 2, 1024, 3584),
  /** Fits into a cache. */
  TINY(8, 2, 256, 512);

  final int experts;
  final int topK;
  final int hidden;
  final int intermediate;

  LayerShape(int experts, int topK, int hidden, int intermediate) {
    this.experts = experts;
    this.topK = topK;
    this.hidden = hidden;
    this.intermediate = intermediate;
  }

  /** {@return elements of one expert's three matrices} */
  long expertElements() {
    return 3L * hidden * intermediate;
  }
}
