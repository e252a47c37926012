package io.moe4j.oracle;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;

/** Parts of a workspace that are workspaces themselves. */
final class Workspaces {
  private Workspaces() {}

  static Workspace part(Workspace all, Part part) {
    return new Workspace(
        switch (all.memory()) {
          case HostMemory m -> new HostMemory(m.segment().asSlice(part.offset(), part.byteSize()));
          case DeviceMemory m ->
              new DeviceMemory(m.device(), m.address() + part.offset(), part.byteSize());
        });
  }
}
