package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.backend.cpu.ffi.CallStruct;

/** Where things stand in the workspace of a {@link NativeMlp}, in bytes from its start. */
record NativeLayout(
    int tokens,
    long x,
    long xStride,
    long act,
    long actStride,
    long y,
    long yStride,
    long pair,
    long position,
    long shrunk,
    long shrunkStride,
    long segments,
    long call,
    long x13,
    long x13Stride,
    long act2,
    long act2Stride,
    long total) {
  /** {@return the layout for calls of at most so many tokens} */
  static NativeLayout of(NativeSpec spec, int maxTokens) {
    PackedWeights weights = spec.weights();
    Mlp.Options options = spec.options();
    int tokens = Math.clamp(maxTokens, 1, Math.max(1, MlpLayout.CHUNK_PAIRS / options.topK()));
    long pairs = (long) tokens * options.topK();
    // A multiple of 4096 would put all rows of a column into the same few lines of a cache.
    long xStride = 4L * weights.hiddenPadded + Workspace.ALIGNMENT;
    long actStride = 4L * weights.intermediatePadded + Workspace.ALIGNMENT;
    boolean lora = options.maxLoras() > 0;
    long shrunkStride = lora ? 3 * Workspace.align(4L * options.maxRank()) : 0;
    long act = xStride * pairs;
    long y = act + actStride * pairs;
    long pair = y + xStride * pairs;
    long position = pair + Workspace.align(4 * pairs);
    long shrunk = position + Workspace.align(4 * pairs);
    long segments = shrunk + shrunkStride * pairs;
    long call = segments + Workspace.align(lora ? CallStruct.SEGMENT_BYTES * pairs : 0);
    // Copies in the order of packed columns, where those have one, or in int8; 0 = none.
    long x13Stride = weights.w13.copyStride(xStride);
    long act2Stride = weights.w2.copyStride(actStride);
    long x13 = call + Workspace.align(CallStruct.CALL_BYTES);
    long act2 = x13 + x13Stride * pairs;
    long total = act2 + act2Stride * pairs;
    return new NativeLayout(
        tokens,
        0,
        xStride,
        act,
        actStride,
        y,
        xStride,
        pair,
        position,
        shrunk,
        shrunkStride,
        segments,
        call,
        x13Stride > 0 ? x13 : 0,
        x13Stride,
        act2Stride > 0 ? act2 : act,
        act2Stride,
        total);
  }
}
