// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import dev.famulus.FamulusException;
import dev.famulus.MessageText;
import dev.famulus.RunResult;
import dev.famulus.RunView;
import dev.famulus.v1.ErrorReason;
import dev.famulus.v1.FunctionCall;
import dev.famulus.v1.Message;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunErrorCode;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunStep;
import dev.famulus.v1.ToolCall;
import java.util.List;
import java.util.Locale;

/** Events, results and errors as the lines of a transcript say them. */
final class Transcript {
  private Transcript() {}

  static JsonObject event(RunEvent event) {
    JsonObject line = new JsonObject();
    boolean known = event.getEventCase() != RunEvent.EventCase.EVENT_NOT_SET;
    line.addProperty("sequence", event.getSequence());
    line.addProperty(
        "kind", known ? event.getEventCase().name().toLowerCase(Locale.ROOT) : "unknown");
    switch (event.getEventCase()) {
      case RUN_STATE_CHANGED -> {
        line.addProperty("state", state(event.getRunStateChanged().getRun()));
        line.addProperty("error", error(event.getRunStateChanged().getRun()));
      }
      case STEP_STARTED -> step(line, event.getStepStarted().getStep());
      case STEP_COMPLETED -> step(line, event.getStepCompleted().getStep());
      case MESSAGE_STARTED -> message(line, event.getMessageStarted().getMessage());
      case MESSAGE_COMPLETED -> message(line, event.getMessageCompleted().getMessage());
      case TEXT_DELTA -> {
        line.addProperty("part_index", event.getTextDelta().getPartIndex());
        line.addProperty("text", event.getTextDelta().getText());
      }
      case REFUSAL_DELTA -> {
        line.addProperty("part_index", event.getRefusalDelta().getPartIndex());
        line.addProperty("refusal", event.getRefusalDelta().getRefusal());
      }
      case REASONING_DELTA -> line.addProperty("text", event.getReasoningDelta().getText());
      case ANNOTATION_ADDED ->
          line.addProperty("part_index", event.getAnnotationAdded().getPartIndex());
      case TOOL_CALL_DELTA -> {
        line.addProperty("name", event.getToolCallDelta().getName());
        line.addProperty("arguments", event.getToolCallDelta().getArgumentsJsonDelta());
      }
      case TOOL_CALLS_REQUESTED ->
          line.add(
              "names",
              texts(
                  event.getToolCallsRequested().getToolCallsList().stream()
                      .map(call -> call.getFunction().getName())
                      .toList()));
      case TOOL_OUTPUT_RECEIVED -> {
        FunctionCall first = event.getToolOutputReceived().getToolCalls(0).getFunction();
        line.addProperty("output", first.getOutput());
        line.addProperty("is_error", first.getOutputIsError());
      }
      case RETRY_SCHEDULED ->
          line.addProperty(
              "reason", without("RUN_ERROR_CODE_", event.getRetryScheduled().getReason().name()));
      case ATTEMPT_STARTED -> {
        line.addProperty("attempt", event.getAttemptStarted().getAttempt());
        line.addProperty("discards_after", event.getAttemptStarted().getDiscardsAfterSequence());
      }
      case SNAPSHOT -> {
        line.addProperty("state", state(event.getSnapshot().getRun()));
        line.add(
            "texts",
            texts(event.getSnapshot().getMessagesList().stream().map(MessageText::of).toList()));
      }
      case EVENT_NOT_SET -> {}
    }
    return line;
  }

  static JsonObject view(RunView view) {
    JsonObject line = new JsonObject();
    line.addProperty("state", view.run().map(Transcript::state).orElse(""));
    line.addProperty("text", view.text());
    line.addProperty("attempt", view.attempt());
    line.addProperty("messages", view.messages().size());
    line.addProperty("steps", view.steps().size());
    return line;
  }

  static JsonObject result(RunResult result) {
    JsonObject line = new JsonObject();
    line.addProperty("state", state(result.run()));
    line.addProperty("error", error(result.run()));
    line.addProperty("text", result.text());
    line.addProperty("messages", result.messages().size());
    line.addProperty("prompt_tokens", result.run().getUsage().getPromptTokens());
    line.addProperty("completion_tokens", result.run().getUsage().getCompletionTokens());
    return line;
  }

  static JsonObject error(FamulusException error) {
    JsonObject line = new JsonObject();
    boolean known = error.reason() != ErrorReason.ERROR_REASON_UNSPECIFIED;
    line.addProperty("code", error.code().name());
    line.addProperty("reason", known ? without("ERROR_REASON_", error.reason().name()) : "");
    line.addProperty("message", error.description());
    JsonObject metadata = new JsonObject();
    error.metadata().forEach(metadata::addProperty);
    line.add("metadata", metadata);
    JsonArray violations = new JsonArray();
    error
        .violations()
        .forEach(
            each -> {
              JsonObject violation = new JsonObject();
              violation.addProperty("field", each.field());
              violation.addProperty("description", each.description());
              violations.add(violation);
            });
    line.add("violations", violations);
    line.addProperty("retry_after", error.retryAfter().isPresent());
    return line;
  }

  static JsonArray texts(List<String> texts) {
    JsonArray array = new JsonArray();
    texts.forEach(array::add);
    return array;
  }

  private static void step(JsonObject line, RunStep step) {
    line.addProperty("state", without("RUN_STEP_STATE_", step.getState().name()));
    JsonArray calls = new JsonArray();
    for (ToolCall call : step.getToolCalls().getToolCallsList()) {
      JsonObject each = new JsonObject();
      each.addProperty("name", call.getFunction().getName());
      each.addProperty("arguments", call.getFunction().getArgumentsJson());
      each.addProperty("output", call.getFunction().getOutput());
      calls.add(each);
    }
    line.add("calls", calls);
  }

  private static void message(JsonObject line, Message message) {
    line.addProperty("state", without("MESSAGE_STATE_", message.getState().name()));
    line.addProperty("text", MessageText.of(message));
  }

  private static String state(Run run) {
    return without("RUN_STATE_", run.getState().name());
  }

  private static String error(Run run) {
    return run.getError().getCode() == RunErrorCode.RUN_ERROR_CODE_UNSPECIFIED
        ? ""
        : without("RUN_ERROR_CODE_", run.getError().getCode().name());
  }

  private static String without(String prefix, String name) {
    return name.startsWith(prefix) ? name.substring(prefix.length()) : name;
  }
}
