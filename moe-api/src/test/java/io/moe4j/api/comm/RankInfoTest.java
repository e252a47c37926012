package io.moe4j.api.comm;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.HashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class RankInfoTest {
  private static Map<String, String> env(String... pairs) {
    Map<String, String> all = new HashMap<>();
    for (String pair : pairs) {
      String[] both = pair.split("=", 2);
      all.put(both[0], both[1]);
    }
    return all;
  }

  private static RankInfo read(String... pairs) {
    return RankInfo.fromEnvironment(RankInfo.Options.NONE, env(pairs));
  }

  private static void refused(String message, String... pairs) {
    assertThatThrownBy(() -> read(pairs))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining(message);
  }

  @Test
  void nothingSaidIsOneProcess() {
    assertThat(read("PATH=/bin", "MASTER_PORT=1")).isEqualTo(RankInfo.SINGLE);
  }

  @Test
  void torchrun() {
    assertThat(read("RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "MASTER_ADDR=a", "MASTER_PORT=29400"))
        .isEqualTo(new RankInfo(8, 5, 1, "a", 29400, "RANK and WORLD_SIZE"));
    assertThat(read("RANK=0", "WORLD_SIZE=1", "LOCAL_RANK=0").worldSize()).isEqualTo(1);
  }

  @Test
  void torchrunsAgentListensOnThePortItself() {
    assertThat(
            read(
                    "RANK=1",
                    "WORLD_SIZE=2",
                    "LOCAL_RANK=1",
                    "MASTER_ADDR=a",
                    "MASTER_PORT=29400",
                    "TORCHELASTIC_USE_AGENT_STORE=True")
                .masterPort())
        .isEqualTo(29401);
  }

  @Test
  void slurm() {
    String[] task = {
      "SLURM_PROCID=3",
      "SLURM_NTASKS=4",
      "SLURM_LOCALID=1",
      "SLURM_STEP_ID=0",
      "SLURM_JOB_ID=1234567",
      "SLURM_NODELIST=tux[03-05,7],gpu1"
    };
    assertThat(read(task)).isEqualTo(new RankInfo(4, 3, 1, "tux03", 24567, "Slurm"));
    Map<String, String> more = env(task);
    more.put("MASTER_ADDR", "login");
    more.put("MASTER_PORT", "7000");
    assertThat(RankInfo.fromEnvironment(RankInfo.Options.NONE, more))
        .isEqualTo(new RankInfo(4, 3, 1, "login", 7000, "Slurm"));
    assertThat(
            read(
                    "SLURM_PROCID=0",
                    "SLURM_NTASKS=4",
                    "SLURM_LOCALID=0",
                    "SLURM_STEP_ID=0",
                    "SLURM_LAUNCH_NODE_IPADDR=10.0.0.1")
                .masterAddress())
        .isEqualTo("10.0.0.1");
  }

  @Test
  void aSlurmBatchScriptIsOneProcessWhateverTheJobHas() {
    assertThat(read("SLURM_PROCID=0", "SLURM_NTASKS=4", "SLURM_LOCALID=0"))
        .isEqualTo(RankInfo.SINGLE);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = ' ',
      value = {"a a", "a,b a", "tux[03-05,7],gpu1 tux03", "n[1-2]c[3,4],x n1c3", "r[7]-x r7-x"})
  void theFirstHostOfASlurmList(String list, String host) {
    assertThat(RankInfo.firstHost(list)).isEqualTo(host);
  }

  @Test
  void leaderWorkerSet() {
    assertThat(read("LWS_LEADER_ADDRESS=moe-0.moe.ns", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1"))
        .isEqualTo(new RankInfo(2, 1, 0, "moe-0.moe.ns", 29500, "LeaderWorkerSet"));
  }

  @Test
  void optionsComeFirst() {
    Map<String, String> torchrun =
        env("RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "MASTER_ADDR=a", "MASTER_PORT=29400");
    assertThat(RankInfo.fromEnvironment(new RankInfo.Options(2, 1, null, "b", 7), torchrun))
        .isEqualTo(new RankInfo(2, 1, 1, "b", 7, "options"));
    assertThat(RankInfo.fromEnvironment(new RankInfo.Options(null, null, 0, "b", 7), torchrun))
        .isEqualTo(new RankInfo(8, 5, 0, "b", 7, "RANK and WORLD_SIZE"));
    assertThatThrownBy(
            () -> RankInfo.fromEnvironment(new RankInfo.Options(2, null, null, "b", 7), env()))
        .hasMessageContaining("worldSize is 2 and rank null, must be given together");
    assertThatThrownBy(
            () -> RankInfo.fromEnvironment(new RankInfo.Options(2, 1, null, null, 7), env()))
        .hasMessageContaining("MASTER_ADDR is not set");
    assertThatThrownBy(
            () -> RankInfo.fromEnvironment(new RankInfo.Options(null, null, 1, null, null), env()))
        .hasMessageContaining("localRank is 1, but neither");
  }

  @Test
  void halfSetVariablesAreNamed() {
    refused("RANK is set, but WORLD_SIZE and LOCAL_RANK are not; they go together", "RANK=0");
    refused("WORLD_SIZE and LOCAL_RANK are set, but RANK is not", "WORLD_SIZE=2", "LOCAL_RANK=0");
    refused("LWS_GROUP_SIZE is set, but LWS_WORKER_INDEX", "LWS_GROUP_SIZE=2");
    refused(
        "SLURM_PROCID and SLURM_LOCALID are set, but SLURM_NTASKS is not",
        "SLURM_PROCID=0",
        "SLURM_LOCALID=0",
        "SLURM_STEP_ID=1");
    refused("MASTER_ADDR is not set", "RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_PORT=1");
    refused("MASTER_PORT is not set", "RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a");
  }

  @Test
  void contradictionsAreNamed() {
    refused("RANK is 2, but there are 2 ranks", "RANK=2", "WORLD_SIZE=2", "LOCAL_RANK=0");
    refused(
        "LOCAL_RANK is 1, more than RANK, which is 0",
        "RANK=0",
        "WORLD_SIZE=2",
        "LOCAL_RANK=1",
        "MASTER_ADDR=a",
        "MASTER_PORT=1");
    refused("RANK is \"x\", must be a number", "RANK=x", "WORLD_SIZE=2", "LOCAL_RANK=0");
    refused(
        "WORLD_SIZE is \"0\", must be a number of at least 1",
        "RANK=0",
        "WORLD_SIZE=0",
        "LOCAL_RANK=0");
    refused(
        "port 70000",
        "RANK=0",
        "WORLD_SIZE=2",
        "LOCAL_RANK=0",
        "MASTER_ADDR=a",
        "MASTER_PORT=70000");
    refused(
        "a bracket that does not close",
        "SLURM_PROCID=0",
        "SLURM_NTASKS=2",
        "SLURM_LOCALID=0",
        "SLURM_STEP_ID=0",
        "SLURM_NODELIST=tux[03-05");
  }
}
