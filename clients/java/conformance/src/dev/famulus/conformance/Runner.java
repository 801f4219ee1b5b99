// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import dev.famulus.ClientBuilder;
import dev.famulus.FamulusClient;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/**
 * The runner of the conformance suite: {@code runner HOST:PORT < scenario.json > transcript.jsonl}.
 */
final class Runner {
  private static final Gson GSON =
      new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  private Runner() {}

  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 1) {
      System.err.println("usage: runner HOST:PORT < scenario.json");
      System.exit(2);
    }
    JsonObject scenario =
        JsonParser.parseReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))
            .getAsJsonObject();
    ClientBuilder builder = FamulusClient.builder(arguments[0]);
    if (scenario.has("token") && !scenario.get("token").isJsonNull()) {
      builder.token(scenario.get("token").getAsString()).allowTokenInPlaintext();
    }
    PrintStream transcript = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    try (FamulusClient client = builder.build()) {
      JsonArray steps = scenario.getAsJsonArray("steps");
      for (int index = 0; index < steps.size(); index++) {
        int step = index;
        new Steps(
                client,
                line -> {
                  line.addProperty("step", step);
                  transcript.println(GSON.toJson(line));
                })
            .run(steps.get(index).getAsJsonObject());
      }
    }
  }
}
