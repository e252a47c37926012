package io.moe4j.backend.flashinfer;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.ExternalStatus;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Supplier;

/**
 * What this process has of FlashInfer: looked for once for each module, loaded once, and the reason
 * kept where that failed. The oracle asks often, and a search walks through many folders. Safe for
 * several threads.
 */
final class Installed {
  /** A module, or why there is none. */
  record Answer(Optional<FlashInferModule> module, String reason) {}

  private record Question(String module, Optional<Path> path, Optional<String> version) {}

  /** The one of this process. */
  static final Installed HERE = new Installed(SearchPlaces::ofThisProcess);

  private final Supplier<SearchPlaces> places;
  private final Map<Question, Answer> answers = new HashMap<>();

  Installed(Supplier<SearchPlaces> places) {
    this.places = places;
  }

  /**
   * A module, loaded. Loading touches no device.
   *
   * @param options of a layer
   * @param name of the module
   * @param capability of the device it must serve
   */
  synchronized Answer module(FlashInferOptions options, String name, ComputeCapability capability) {
    return answers.computeIfAbsent(
        new Question(name, options.path(), options.version()),
        _ -> look(options, name, capability));
  }

  /** The module of the CUTLASS experts for a device, empty where FlashInfer has none for it. */
  Optional<Answer> cutlass(FlashInferOptions options, DeviceInfo device) {
    return device
        .capability()
        .flatMap(c -> FlashInferLibrary.cutlassModule(c).map(name -> module(options, name, c)));
  }

  /** The module of the TRTLLM experts for a device, empty where FlashInfer has none for it. */
  Optional<Answer> trtllm(FlashInferOptions options, DeviceInfo device) {
    return device
        .capability()
        .flatMap(c -> FlashInferLibrary.trtllmModule(c).map(name -> module(options, name, c)));
  }

  private Answer look(FlashInferOptions options, String name, ComputeCapability capability) {
    try {
      SearchPlaces where = places.get().with(options);
      FlashInferLibrary library = FlashInferLibrary.find(where, name, capability);
      return new Answer(Optional.of(FlashInferModule.load(library, where)), "");
    } catch (UnavailableException e) {
      return new Answer(Optional.empty(), e.reason());
    }
  }

  /** {@return what {@code moe doctor} prints of a module} */
  List<ExternalStatus> status(Platform platform, Optional<String> module) {
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    Optional<ComputeCapability> capability = device.flatMap(DeviceInfo::capability);
    if (capability.isEmpty()) {
      return List.of(
          new ExternalStatus(
              "FlashInfer", false, "not looked for: " + platform.whyAbsent(DeviceType.CUDA), ""));
    }
    if (module.isEmpty()) {
      return List.of(
          new ExternalStatus(
              "FlashInfer",
              false,
              "not looked for: it has no module for capability " + capability.get(),
              ""));
    }
    Answer answer = module(FlashInferOptions.DEFAULT, module.get(), capability.get());
    List<ExternalStatus> all = new ArrayList<>();
    answer
        .module()
        .ifPresentOrElse(
            m -> {
              FlashInferLibrary l = m.library();
              all.add(new ExternalStatus("FlashInfer", true, l.version() + ", " + l.module(), ""));
              all.add(
                  new ExternalStatus(
                      "TVM-FFI", true, m.runtime().version() + ", " + m.runtime().path(), ""));
            },
            () -> all.add(new ExternalStatus("FlashInfer", false, answer.reason(), "")));
    return all;
  }
}
