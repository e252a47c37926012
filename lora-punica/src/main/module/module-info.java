/** Adapter registry and punica wrappers. */
module io.moe4j.lora {
  requires transitive io.moe4j.api;
  requires static jdk.incubator.vector;
  requires static transitive org.jspecify;
  requires jdk.jfr;
  requires org.slf4j;

  exports io.moe4j.lora;

  uses io.moe4j.api.spi.PunicaProvider;
}
