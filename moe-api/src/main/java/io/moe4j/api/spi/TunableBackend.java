package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.weights.ExpertWeights;
import java.nio.file.Path;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * A backend that carries several variants of its kernels, chooses among them by a built-in table,
 * and can find better choices for a card by measuring. What is found is kept in a file that {@link
 * #prepare} reads by itself; the backend owns the file's format. A file that is missing, damaged,
 * or was made on another card or with other kernels never fails anything: the built-in table
 * serves, and one log line says why.
 *
 * @since 0.1.0
 */
public interface TunableBackend extends ExpertsBackend {
  /**
   * {@return where tuned choices are looked for: the user's own cache directory unless the user
   * said otherwise; empty where that was turned off or there is no such directory}
   */
  Optional<Path> tuningFile();

  /**
   * What {@link #tuningFile} holds. Never throws: what is wrong with the file is in the answer.
   *
   * @param device the card to look for; null = there is none
   * @return the status, as {@code moe doctor} prints it
   */
  TuningStatus tuningStatus(@Nullable DeviceInfo device);

  /**
   * Prepares a layer for measuring. May be slow, like {@link #prepare}, and needs as much memory.
   *
   * @param config the layer; with LoRA, {@code maxRank} is the rank that is to be measured
   * @param weights fits {@code config}; views that stay valid until the result is closed
   * @param device an open device of {@link #deviceType()}; outlives the result
   * @param file where choices go; what it holds already stays there
   * @return owned by the caller
   */
  Tuner tuner(MoeConfig config, ExpertWeights weights, Device device, Path file);
}
