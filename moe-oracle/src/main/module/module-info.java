/** Finds experts backends at run time, picks one, explains the choice; the layer facade. */
module io.moe4j.oracle {
  requires transitive io.moe4j.api;
  requires static org.jspecify;
  requires jdk.jfr;
  requires org.slf4j;

  exports io.moe4j.oracle;

  uses io.moe4j.api.spi.ExpertsBackend;
  uses io.moe4j.api.device.DeviceProvider;
  uses io.moe4j.api.spi.BlockOpsProvider;
  uses io.moe4j.api.spi.PunicaProvider;
  uses io.moe4j.api.spi.ExpertExchangeProvider;
  uses io.moe4j.api.comm.CommProvider;
}
