/** A communicator between JVMs over TCP. */
module io.moe4j.comm.tcp {
  requires transitive io.moe4j.api;
  requires static org.jspecify;

  exports io.moe4j.comm.tcp;

  provides io.moe4j.api.comm.CommProvider with
      io.moe4j.comm.tcp.TcpCommProvider;
}
