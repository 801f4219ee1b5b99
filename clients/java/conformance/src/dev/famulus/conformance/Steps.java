// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonPrimitive;
import com.google.protobuf.InvalidProtocolBufferException;
import dev.famulus.FamulusClient;
import dev.famulus.FamulusException;
import dev.famulus.RunStream;
import dev.famulus.StreamOptions;
import dev.famulus.v1.CancelRunRequest;
import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.RunEvent;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Base64;
import java.util.function.Consumer;

/** The steps of a scenario. Each writes its lines. */
final class Steps {
  private final FamulusClient client;
  private final RawCalls calls;
  private final Consumer<JsonObject> write;

  Steps(FamulusClient client, Consumer<JsonObject> write) {
    this.client = client;
    this.calls = new RawCalls(client.channel());
    this.write = write;
  }

  void run(JsonObject step) throws InvalidProtocolBufferException {
    try {
      switch (step.get("op").getAsString()) {
        case "call" -> call(step);
        case "pages" -> pages(step);
        case "stream" -> follow(step, client.streamRun(create(step), options(step)));
        case "watch" ->
            follow(step, client.watchRun(step.get("run_id").getAsString(), options(step)));
        case "run_to_end" ->
            line("result", Transcript.result(client.runToEnd(create(step), options(step))));
        case "wait" ->
            line("result", Transcript.result(client.waitRun(step.get("run_id").getAsString())));
        default -> throw new IllegalArgumentException("there is no step " + step.get("op"));
      }
    } catch (FamulusException | StatusRuntimeException error) {
      line("error", Transcript.error(FamulusException.from(error)));
    }
  }

  private void call(JsonObject step) {
    byte[] response =
        calls.call(step.get("method").getAsString(), bytes(step, "request"), timeout(step));
    line("response", new JsonPrimitive(Base64.getEncoder().encodeToString(response)));
  }

  private void pages(JsonObject step) throws InvalidProtocolBufferException {
    calls.pages(
        step.get("method").getAsString(),
        bytes(step, "request"),
        ids -> line("page", Transcript.texts(ids)));
  }

  private void follow(JsonObject step, RunStream opened) {
    JsonObject end = new JsonObject();
    try (RunStream stream = opened) {
      end.addProperty("end", read(step, stream) ? "left" : "finished");
    } catch (FamulusException | StatusRuntimeException error) {
      end.addProperty("end", "error");
      end.add("error", Transcript.error(FamulusException.from(error)));
    }
    end.addProperty("last_sequence", opened.lastSequence());
    end.add("view", Transcript.view(opened.view()));
    write.accept(end);
  }

  /** Writes the events; whether the stream was left before its end. */
  private boolean read(JsonObject step, RunStream stream) {
    long leaveAfter = number(step, "leave_after", -1);
    long cancelAfter = number(step, "cancel_after", -1);
    if (leaveAfter == 0) {
      return true;
    }
    long count = 0;
    for (RunEvent event : stream) {
      line("event", Transcript.event(event));
      count++;
      if (count == cancelAfter) {
        CancelRunRequest request =
            CancelRunRequest.newBuilder().setRunId(stream.view().runId()).build();
        client.runs().cancelRun(request);
      }
      if (count == leaveAfter) {
        return true;
      }
    }
    return false;
  }

  private static StreamOptions options(JsonObject step) {
    StreamOptions options =
        StreamOptions.defaults().withAfterSequence(number(step, "after_sequence", 0));
    if (given(step, "tools")) {
      options = options.withTools(StandardTools.named(step.getAsJsonArray("tools")));
    }
    if (given(step, "tool_timeout_ms")) {
      options = options.withToolTimeout(Duration.ofMillis(step.get("tool_timeout_ms").getAsLong()));
    }
    boolean cancel = given(step, "cancel_on_exit") && step.get("cancel_on_exit").getAsBoolean();
    return cancel ? options.withCancelOnExit() : options;
  }

  private static CreateRunRequest create(JsonObject step) throws InvalidProtocolBufferException {
    return CreateRunRequest.parseFrom(bytes(step, "create"));
  }

  private static Duration timeout(JsonObject step) {
    return given(step, "timeout_ms") ? Duration.ofMillis(step.get("timeout_ms").getAsLong()) : null;
  }

  private static byte[] bytes(JsonObject step, String field) {
    return Base64.getDecoder().decode(step.get(field).getAsString());
  }

  private static long number(JsonObject step, String field, long otherwise) {
    return given(step, field) ? step.get(field).getAsLong() : otherwise;
  }

  private static boolean given(JsonObject step, String field) {
    return step.has(field) && !step.get(field).isJsonNull();
  }

  private void line(String key, JsonElement value) {
    JsonObject line = new JsonObject();
    line.add(key, value);
    write.accept(line);
  }
}
