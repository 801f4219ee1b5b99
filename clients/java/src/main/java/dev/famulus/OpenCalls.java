// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.FunctionCallProblem;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.ToolCall;
import java.util.List;

/** Which function calls wait for an output. */
final class OpenCalls {
  private OpenCalls() {}

  /** The function calls that a run waits for. */
  static List<ToolCall> of(Run run) {
    return run.getState() == RunState.RUN_STATE_REQUIRES_ACTION
        ? open(run.getRequiredAction().getToolCallsList())
        : List.of();
  }

  /** The function calls that an event says the run waits, or waited, for. */
  static List<ToolCall> of(RunEvent event) {
    return switch (event.getEventCase()) {
      case TOOL_CALLS_REQUESTED -> open(event.getToolCallsRequested().getToolCallsList());
      case RUN_STATE_CHANGED -> of(event.getRunStateChanged().getRun());
      case SNAPSHOT -> of(event.getSnapshot().getRun());
      default -> List.of();
    };
  }

  private static List<ToolCall> open(List<ToolCall> calls) {
    return calls.stream()
        .filter(ToolCall::hasFunction)
        .filter(call -> !call.getFunction().hasOutput())
        .filter(
            call ->
                call.getFunction().getProblem()
                    == FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNSPECIFIED)
        .toList();
  }
}
