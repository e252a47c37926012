package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import java.io.IOException;
import java.nio.file.Files;

/**
 * What tuned tactics depend on. They are indices into a list that each build of the module orders
 * as it likes, so the build is part of it: version, size and time of the file.
 *
 * @param device its name
 * @param flashinfer version
 * @param moduleBytes size of the module's file
 * @param moduleTime when it was written, milliseconds
 * @param scheme of the weights, and whether the sum may be fused: that makes another list
 * @param dtype of hidden states
 * @param experts of this rank
 * @param topK experts of a token
 * @param hidden H
 * @param intermediate I
 * @param activation FlashInfer's number
 */
record TacticKey(
    String device,
    String flashinfer,
    long moduleBytes,
    long moduleTime,
    String scheme,
    String dtype,
    int experts,
    int topK,
    int hidden,
    int intermediate,
    int activation) {

  /** {@return the key of a layer, with a module's file as it is now} */
  static TacticKey of(MoeConfig config, DeviceInfo device, FlashInferLibrary library, boolean fused)
      throws IOException {
    return new TacticKey(
        device.name(),
        library.version().text(),
        Files.size(library.module()),
        Files.getLastModifiedTime(library.module()).toMillis(),
        CutlassScheme.of(config).orElseThrow().name() + (fused ? " fused sum" : ""),
        config.inputDtype().name(),
        config.numLocalExperts(),
        config.topK(),
        config.expertHiddenSize(),
        config.intermediateSize(),
        MoeActivation.of(config.activation()).orElseThrow().number());
  }

  /** Whether it is of the same device and the same build of the module. */
  boolean sameBuild(TacticKey o) {
    return device.equals(o.device)
        && flashinfer.equals(o.flashinfer)
        && moduleBytes == o.moduleBytes
        && moduleTime == o.moduleTime;
  }
}
