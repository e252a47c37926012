package io.moe4j.cli;

import picocli.CommandLine.IVersionProvider;

/** {@code moe --version}. */
final class Version implements IVersionProvider {
  /** {@return the version in the jar's manifest} */
  static String current() {
    String version = Version.class.getPackage().getImplementationVersion();
    return version == null ? "(not packaged)" : version;
  }

  @Override
  public String[] getVersion() {
    return new String[] {
      "moe4j " + current(),
      "Java " + Runtime.version() + " (" + System.getProperty("java.vendor") + ")"
    };
  }
}
