package io.moe4j.backend.cpu;

import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Some MLPs over the tokens routed to each: w13 product, LoRA, activation, w2 product, LoRA,
 * weighted sum. Thread-safe: each call works on its own workspace.
 */
interface Mlp {
  /** Pairs handled at a time; bounds the workspace whatever {@code T}. */
  int CHUNK_PAIRS = 8192;

  /**
   * What one call computes.
   *
   * @param hidden {@code [T, H]} of {@code hiddenType} from its start
   * @param ids int32 {@code [T, K]}; null = every pair goes to MLP 0
   * @param weights F32 {@code [T, K]}; null = 1
   * @param map int32 global to local; null = ids are local
   * @param lora adapters or null
   * @param output {@code [T, H]} of {@code outputType}
   */
  record Call(
      MemorySegment hidden,
      DType hiddenType,
      int tokens,
      int topK,
      @Nullable MemorySegment ids,
      @Nullable MemorySegment weights,
      @Nullable MemorySegment map,
      @Nullable MoeLoraContext lora,
      MemorySegment output,
      DType outputType) {}

  /**
   * What all MLPs of one set have in common.
   *
   * @param topK pairs of a token
   * @param weightOnInput whether the router's weight scales what the MLPs read
   * @param maxLoras slots
   * @param maxRank of an adapter
   * @param batchInvariant whether results may not depend on the batch
   */
  record Options(
      int topK, boolean weightOnInput, int maxLoras, int maxRank, boolean batchInvariant) {}

  /** {@return width of what is read and written} */
  int hidden();

  /** {@return bytes of workspace for a call of so many tokens} */
  long workspaceBytes(int maxTokens);

  /** Computes a call. */
  void run(Call call, MemorySegment workspace);

  /** {@return which kernels run, for people} */
  String description();
}
