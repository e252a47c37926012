package io.moe4j.lora;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** What Java Flight Recorder is told of adapters. Next to nothing while no recording runs. */
@Name("io.moe4j.Adapter")
@Label("Adapter")
@Category("moe4j")
@Description("An adapter was loaded, replaced, unloaded, brought into a slot or put out of one")
@StackTrace(false)
final class AdapterEvent extends Event {
  @Label("Adapter")
  String adapter = "";

  @Label("What happened")
  String action = "";

  @Label("Slot")
  int slot = -1;

  static void commit(String action, String adapter, int slot) {
    AdapterEvent e = new AdapterEvent();
    if (e.isEnabled()) {
      e.action = action;
      e.adapter = adapter;
      e.slot = slot;
      e.commit();
    }
  }
}
