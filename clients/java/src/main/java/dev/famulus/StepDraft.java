// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.FunctionCall;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunStep;
import dev.famulus.v1.ToolCall;
import dev.famulus.v1.ToolCallBatch;
import dev.famulus.v1.ToolCallDelta;
import java.util.List;

/** A step that goes on. */
final class StepDraft extends Draft<RunStep> {
  StepDraft(long began, String id, RunStep base) {
    super(began, base == null ? RunStep.newBuilder().setId(id).build() : base);
  }

  @Override
  RunStep grown(RunStep item, List<RunEvent> more) {
    RunStep.Builder step = item.toBuilder();
    for (RunEvent event : more) {
      ToolCallDelta delta = event.getToolCallDelta();
      FunctionCall.Builder function =
          call(step.getToolCallsBuilder(), delta.getCallId()).getFunctionBuilder();
      if (function.getName().isEmpty()) {
        function.setName(delta.getName());
      }
      function.setArgumentsJson(function.getArgumentsJson() + delta.getArgumentsJsonDelta());
    }
    return step.build();
  }

  /** The call of an id, added if need be. */
  private static ToolCall.Builder call(ToolCallBatch.Builder batch, String id) {
    for (ToolCall.Builder call : batch.getToolCallsBuilderList()) {
      if (call.getId().equals(id)) {
        return call;
      }
    }
    return batch.addToolCallsBuilder().setId(id);
  }
}
