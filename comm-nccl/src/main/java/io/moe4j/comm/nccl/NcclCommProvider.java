package io.moe4j.comm.nccl;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.cuda.CudaDevice;
import java.io.IOException;
import java.net.ServerSocket;
import java.util.HexFormat;
import java.util.Map;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;

/**
 * Groups of GPUs over NCCL. A group is NCCL's 128 bytes in hexadecimal, and where rank 0 listens
 * for the others' control connections: {@code hex@host:port/key}. Nothing on those connections is
 * encrypted: for networks whose hosts trust each other. Thread-safe.
 *
 * @since 0.2.0
 */
public final class NcclCommProvider implements CommProvider {
  /** Sockets of groups that rank 0 has named and not yet opened, by group. */
  private static final Map<String, ServerSocket> LISTENING = new ConcurrentHashMap<>();

  private final NcclLibrary.Installed installed;

  /** For {@link java.util.ServiceLoader}. */
  public NcclCommProvider() {
    this(NcclLibrary.Installed.HERE);
  }

  NcclCommProvider(NcclLibrary.Installed installed) {
    this.installed = installed;
  }

  @Override
  public String name() {
    return "nccl";
  }

  @Override
  public String version() {
    return installed.library().map(l -> l.version().toString()).orElse("");
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
  }

  @Override
  public Optional<String> whyUnsupported(Platform platform) {
    return installed.reason();
  }

  private NcclLibrary library() {
    return installed
        .library()
        .orElseThrow(() -> new CommException(0, "no NCCL: " + installed.reason().orElse(""), null));
  }

  /** {@return a group of ranks on this host} */
  @Override
  public String newGroup() {
    return newGroup("127.0.0.1");
  }

  /**
   * A group whose ranks reach this host by an address: listens there from now on, until rank 0
   * opens the group in this JVM.
   *
   * @param host an address or name of this host
   * @return the group
   * @throws CommException if the address is not this host's, or NCCL makes no id
   */
  @Override
  public String newGroup(String host) {
    library();
    byte[] id;
    try {
      id = Nccl.uniqueId();
    } catch (Nccl.Refused e) {
      throw new CommException(0, String.valueOf(e.getMessage()), e);
    }
    ServerSocket socket = Control.listen(host);
    String key = UUID.randomUUID().toString().replace("-", "");
    String name =
        new GroupName(HexFormat.of().formatHex(id), host, socket.getLocalPort(), key).toString();
    LISTENING.put(name, socket);
    return name;
  }

  @Override
  public Communicator open(CommConfig config, Device device) {
    return openOn(new Card.Cuda(CudaDevice.of(device)), config);
  }

  /** The same on anything that plays a card. */
  NcclCommunicator openOn(Card card, CommConfig config) {
    NcclVersion version = library().version();
    GroupName group = GroupName.parse(config.group());
    ServerSocket socket = config.rank() == 0 ? LISTENING.remove(config.group()) : null;
    Control control = null;
    if (config.size() > 1 && group.hasControl()) {
      if (config.rank() == 0 && socket == null) {
        throw new IllegalArgumentException(
            "group was named by another process, or has been opened before; rank 0 must name it");
      }
      control = Control.open(group, config, "NCCL " + version, socket);
    } else {
      close(socket);
    }
    return new NcclCommunicator(version, config, card, control).join(group.id());
  }

  private static void close(@Nullable ServerSocket socket) {
    try {
      if (socket != null) {
        socket.close();
      }
    } catch (IOException e) {
      // nobody has come
    }
  }
}
