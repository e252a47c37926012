/** What every experts backend and every device is measured against, as JUnit test classes. */
module io.moe4j.tck {
  requires transitive io.moe4j.api;
  requires static transitive org.jspecify;
  requires transitive org.junit.jupiter.api;
  requires io.moe4j.reference;
  requires jdk.management;
  requires org.junit.jupiter.params;

  exports io.moe4j.tck;

  opens io.moe4j.tck to
      org.junit.platform.commons;

  uses io.moe4j.api.device.DeviceProvider;
  uses io.moe4j.api.spi.BlockOpsProvider;
  uses io.moe4j.api.spi.ExpertsBackend;
}
