/**
 * What a backend author and an inference engine compile against: tensors, configs, weights, LoRA
 * contexts, the plugin contract.
 */
module io.moe4j.api {
  requires static transitive org.jspecify;

  exports io.moe4j.api;
  exports io.moe4j.api.comm;
  exports io.moe4j.api.config;
  exports io.moe4j.api.device;
  exports io.moe4j.api.lora;
  exports io.moe4j.api.platform;
  exports io.moe4j.api.routing;
  exports io.moe4j.api.spi;
  exports io.moe4j.api.tensor;
  exports io.moe4j.api.weights;
}
