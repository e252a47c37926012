package io.moe4j.api.comm;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Which of how many processes this one is, and where they meet. Nothing here starts processes:
 * torchrun, Slurm, Kubernetes or a shell does, and says so in the environment.
 *
 * @param worldSize processes of the group
 * @param rank this one, {@code 0..worldSize-1}
 * @param localRank this one among those of its host, for the choice of a device
 * @param masterAddress host of rank 0; empty for one process
 * @param masterPort where rank 0 listens for the others; 0 for one process
 * @param source who said so, for messages
 * @since 0.2.0
 */
public record RankInfo(
    int worldSize, int rank, int localRank, String masterAddress, int masterPort, String source) {
  /** One process. */
  public static final RankInfo SINGLE = new RankInfo(1, 0, 0, "", 0, "one process");

  /** Where rank 0 listens if nothing else is said; torch's default, too. */
  public static final int DEFAULT_PORT = 29500;

  private static final int FIRST_JOB_PORT = 20000;
  private static final int JOB_PORTS = 10000;

  /**
   * Checks the components.
   *
   * @param worldSize at least 1
   * @param rank {@code 0..worldSize-1}
   * @param localRank {@code 0..rank}
   * @param masterAddress not blank where there are several
   * @param masterPort 1..65535 where there are several
   * @param source not null
   */
  public RankInfo {
    Objects.requireNonNull(masterAddress, "masterAddress");
    Objects.requireNonNull(source, "source");
    if (worldSize < 1 || rank < 0 || rank >= worldSize) {
      throw new IllegalArgumentException(
          "rank is " + rank + " of " + worldSize + " (" + source + "), must be 0..worldSize-1");
    }
    if (localRank < 0 || localRank > rank) {
      throw new IllegalArgumentException(
          "localRank is " + localRank + " of rank " + rank + " (" + source + "), must be 0..rank");
    }
    if (worldSize > 1 && (masterAddress.isBlank() || masterPort < 1 || masterPort > 65535)) {
      throw new IllegalArgumentException(
          "rank 0 is at \""
              + masterAddress
              + "\", port "
              + masterPort
              + " ("
              + source
              + "); must be an address and a port of 1..65535");
    }
  }

  /**
   * What the user said. Rank and world size go together; the other values may be left to the
   * environment.
   *
   * @param worldSize processes, or null
   * @param rank this one, or null
   * @param localRank this one on its host, or null for {@code rank}
   * @param masterAddress host of rank 0, or null
   * @param masterPort where it listens, or null
   */
  public record Options(
      @Nullable Integer worldSize,
      @Nullable Integer rank,
      @Nullable Integer localRank,
      @Nullable String masterAddress,
      @Nullable Integer masterPort) {
    /** Nothing said. */
    public static final Options NONE = new Options(null, null, null, null, null);
  }

  /** {@return what this process's environment says} */
  public static RankInfo fromEnvironment() {
    return fromEnvironment(Options.NONE, System.getenv());
  }

  /**
   * The first of these that names a rank: the options; {@code RANK}, {@code WORLD_SIZE}, {@code
   * LOCAL_RANK} as torchrun sets them; {@code SLURM_PROCID}, {@code SLURM_NTASKS}, {@code
   * SLURM_LOCALID} of a step that {@code srun} started; {@code LWS_WORKER_INDEX}, {@code
   * LWS_GROUP_SIZE} of a Kubernetes LeaderWorkerSet; else one process.
   *
   * <p>Rank 0 is at {@code MASTER_ADDR} and {@code MASTER_PORT}; in Slurm without them on the first
   * host of the step, at a port made of the job's number; in a LeaderWorkerSet at {@code
   * LWS_LEADER_ADDRESS} and {@link #DEFAULT_PORT}. Below torchrun's agent, which listens on {@code
   * MASTER_PORT} itself ({@code TORCHELASTIC_USE_AGENT_STORE}), the next port is taken.
   *
   * @param options what the user said
   * @param environment of the process
   * @return the ranks
   * @throws IllegalArgumentException naming the variables that are missing, are no numbers or
   *     contradict each other
   */
  public static RankInfo fromEnvironment(Options options, Map<String, String> environment) {
    return new Reader(options, environment).read();
  }

  /** Looks up names, and says which are missing. */
  private static final class Reader {
    private final Options options;
    private final Map<String, String> environment;

    Reader(Options options, Map<String, String> environment) {
      this.options = Objects.requireNonNull(options, "options");
      this.environment = Objects.requireNonNull(environment, "environment");
    }

    RankInfo read() {
      if (options.worldSize() != null || options.rank() != null) {
        return ofOptions();
      }
      if (has("RANK") || has("WORLD_SIZE")) {
        requireAll("RANK", "WORLD_SIZE", "LOCAL_RANK");
        int size = number("WORLD_SIZE", 1);
        return of(size, "RANK", "LOCAL_RANK", null, 0, "RANK and WORLD_SIZE");
      }
      // Inside a batch script there is a task number too, but only one process.
      if (has("SLURM_PROCID") && (has("SLURM_STEP_ID") || has("SLURM_STEPID"))) {
        requireAll("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID");
        int size = number("SLURM_NTASKS", 1);
        return of(size, "SLURM_PROCID", "SLURM_LOCALID", slurmHost(), slurmPort(), "Slurm");
      }
      if (has("LWS_WORKER_INDEX") || has("LWS_GROUP_SIZE")) {
        requireAll("LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS");
        int size = number("LWS_GROUP_SIZE", 1);
        String leader = value("LWS_LEADER_ADDRESS");
        return of(size, "LWS_WORKER_INDEX", null, leader, DEFAULT_PORT, "LeaderWorkerSet");
      }
      if (options.localRank() != null) {
        throw new IllegalArgumentException(
            "localRank is "
                + options.localRank()
                + ", but neither options nor environment say a"
                + " rank");
      }
      return SINGLE;
    }

    private RankInfo ofOptions() {
      Integer size = options.worldSize();
      Integer rank = options.rank();
      if (size == null || rank == null) {
        throw new IllegalArgumentException(
            "worldSize is " + size + " and rank " + rank + ", must be given together");
      }
      Integer local = options.localRank();
      if (size == 1) {
        return new RankInfo(1, rank, local == null ? rank : local, "", 0, "options");
      }
      return new RankInfo(
          size, rank, local == null ? rank : local, address(null), port(0), "options");
    }

    private RankInfo of(
        int size,
        String rankName,
        @Nullable String localName,
        @Nullable String address,
        int port,
        String source) {
      int rank = number(rankName, 0);
      Integer said = options.localRank();
      int local = said != null ? said : localName == null ? 0 : number(localName, 0);
      if (rank >= size) {
        throw new IllegalArgumentException(
            rankName + " is " + rank + ", but there are " + size + " ranks (" + source + ")");
      }
      if (local > rank) {
        throw new IllegalArgumentException(
            (said != null || localName == null ? "localRank" : localName)
                + " is "
                + local
                + ", more than "
                + rankName
                + ", which is "
                + rank);
      }
      return size == 1
          ? new RankInfo(1, 0, 0, "", 0, source)
          : new RankInfo(size, rank, local, address(address), port(port), source);
    }

    private String address(@Nullable String fallback) {
      String said = options.masterAddress();
      if (said != null) {
        return said;
      }
      if (has("MASTER_ADDR")) {
        return value("MASTER_ADDR");
      }
      if (fallback == null) {
        throw new IllegalArgumentException(
            "MASTER_ADDR is not set: with several ranks it must name the host of rank 0");
      }
      return fallback;
    }

    private int port(int fallback) {
      Integer said = options.masterPort();
      if (said != null) {
        return said;
      }
      if (has("MASTER_PORT")) {
        int port = number("MASTER_PORT", 1);
        return "True".equalsIgnoreCase(environment.get("TORCHELASTIC_USE_AGENT_STORE"))
            ? port + 1
            : port;
      }
      if (fallback == 0) {
        throw new IllegalArgumentException(
            "MASTER_PORT is not set: with several ranks it must be where rank 0 listens");
      }
      return fallback;
    }

    /** Rank 0 runs on the step's first host. */
    private @Nullable String slurmHost() {
      for (String name : List.of("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")) {
        if (has(name)) {
          return firstHost(value(name));
        }
      }
      return has("SLURM_LAUNCH_NODE_IPADDR") ? value("SLURM_LAUNCH_NODE_IPADDR") : null;
    }

    /** Of two jobs on one host each has its own. */
    private int slurmPort() {
      return has("SLURM_JOB_ID")
          ? FIRST_JOB_PORT + number("SLURM_JOB_ID", 0) % JOB_PORTS
          : DEFAULT_PORT;
    }

    private boolean has(String name) {
      String value = environment.get(name);
      return value != null && !value.isBlank();
    }

    private String value(String name) {
      return String.valueOf(environment.get(name)).strip();
    }

    private void requireAll(String... names) {
      List<String> missing = new ArrayList<>();
      List<String> set = new ArrayList<>();
      for (String name : names) {
        (has(name) ? set : missing).add(name);
      }
      if (!missing.isEmpty()) {
        throw new IllegalArgumentException(
            String.join(" and ", set)
                + (set.size() == 1 ? " is" : " are")
                + " set, but "
                + String.join(" and ", missing)
                + (missing.size() == 1 ? " is" : " are")
                + " not; they go together");
      }
    }

    private int number(String name, int least) {
      String text = value(name);
      try {
        int n = Integer.parseInt(text);
        if (n >= least) {
          return n;
        }
      } catch (NumberFormatException e) {
        // said below
      }
      throw new IllegalArgumentException(
          name + " is \"" + text + "\", must be a number of at least " + least);
    }
  }

  /** The first name of a Slurm host list: {@code tux03} of {@code tux[03-05,7],gpu1}. */
  static String firstHost(String hosts) {
    StringBuilder name = new StringBuilder();
    for (int i = 0; i < hosts.length() && hosts.charAt(i) != ','; i++) {
      char c = hosts.charAt(i);
      if (c != '[') {
        name.append(c);
        continue;
      }
      int close = hosts.indexOf(']', i);
      if (close < 0) {
        throw new IllegalArgumentException(
            "the Slurm host list \"" + hosts + "\" has a bracket that does not close");
      }
      name.append(hosts.substring(i + 1, close).split("[,-]", 2)[0]);
      i = close;
    }
    return name.toString();
  }
}
