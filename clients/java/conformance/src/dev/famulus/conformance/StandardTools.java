// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.conformance;

import com.google.gson.JsonArray;
import dev.famulus.ToolException;
import dev.famulus.ToolHandler;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** The tools that every runner has. */
final class StandardTools {
  private static final Map<String, ToolHandler> ALL =
      Map.of(
          "echo", arguments -> "echo:" + arguments.get("text").getAsString(),
          "add", arguments -> arguments.get("a").getAsLong() + arguments.get("b").getAsLong(),
          "tell", arguments -> Map.of("told", true),
          "refuse",
              arguments -> {
                throw new ToolException("told to refuse");
              },
          "slow",
              arguments -> {
                TimeUnit.SECONDS.sleep(30);
                return "late";
              },
          "large", arguments -> "x".repeat((1 << 20) + 1));

  private StandardTools() {}

  /** Those that a step names. */
  static Map<String, ToolHandler> named(JsonArray names) {
    Map<String, ToolHandler> tools = new HashMap<>();
    names.forEach(name -> tools.put(name.getAsString(), ALL.get(name.getAsString())));
    tools.values().removeIf(handler -> handler == null);
    return tools;
  }
}
