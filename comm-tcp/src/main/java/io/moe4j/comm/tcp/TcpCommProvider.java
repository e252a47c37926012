package io.moe4j.comm.tcp;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import java.util.Optional;

/**
 * Groups of JVMs over TCP. A group is {@code host:port}, where rank 0 listens, or {@code
 * host:port/key} with a word that keeps strangers out by accident. Every rank is connected with
 * every other; all but rank 0 listen on a port that the system picks, on the address by which they
 * reach rank 0. Nothing is encrypted: for networks whose hosts trust each other.
 *
 * <p>Thread-safe.
 *
 * @since 0.2.0
 */
public final class TcpCommProvider implements CommProvider {
  /** For {@link java.util.ServiceLoader}. */
  public TcpCommProvider() {}

  @Override
  public String name() {
    return "tcp";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public Optional<String> whyUnsupported(Platform platform) {
    return Optional.empty();
  }

  /**
   * A group on this host: listens on a loopback port from now on, until rank 0 opens the group.
   *
   * @return {@code 127.0.0.1:port/key}
   */
  @Override
  public String newGroup() {
    return newGroup("127.0.0.1");
  }

  /**
   * A group whose ranks reach this host by an address: listens there from now on, on a port that
   * the system picks, until rank 0 opens the group in this JVM.
   *
   * @param host an address or name of this host
   * @return {@code host:port/key}
   * @throws io.moe4j.api.comm.CommException if the address is not this host's
   */
  @Override
  public String newGroup(String host) {
    return Listeners.listen(host);
  }

  @Override
  public Communicator open(CommConfig config, Device device) {
    if (!device.info().id().type().equals(DeviceType.CPU)) {
      throw new IllegalArgumentException(
          "device is " + device.info().id() + "; tcp carries host memory, needs cpu");
    }
    return new TcpCommunicator(config, Mesh.connect(config));
  }
}
