// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.AttemptStarted;
import dev.famulus.v1.FunctionCall;
import dev.famulus.v1.Message;
import dev.famulus.v1.MessageCompleted;
import dev.famulus.v1.MessageCreation;
import dev.famulus.v1.MessagePart;
import dev.famulus.v1.MessageRole;
import dev.famulus.v1.MessageStarted;
import dev.famulus.v1.MessageState;
import dev.famulus.v1.RequiredAction;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.RunStateChanged;
import dev.famulus.v1.RunStep;
import dev.famulus.v1.RunStepState;
import dev.famulus.v1.Snapshot;
import dev.famulus.v1.StepCompleted;
import dev.famulus.v1.StepStarted;
import dev.famulus.v1.TextDelta;
import dev.famulus.v1.TextPart;
import dev.famulus.v1.ToolCall;
import dev.famulus.v1.ToolCallsRequested;
import java.util.ArrayList;
import java.util.List;

/** Writes the log of a run, one event per call. */
final class Story {
  static final String RUN_ID = "run_1";

  private final List<RunEvent> log = new ArrayList<>();

  static List<RunEvent> plain() {
    return new Story()
        .state(RunState.RUN_STATE_QUEUED)
        .state(RunState.RUN_STATE_IN_PROGRESS)
        .begin(1)
        .text(1, "Good", " ", "morning", ", ", "world")
        .end(1, "Good morning, world")
        .state(RunState.RUN_STATE_COMPLETED)
        .log();
  }

  /** A run that was taken over in the middle of its second message, twice. */
  static List<RunEvent> takenOver() {
    Story story =
        new Story().state(RunState.RUN_STATE_IN_PROGRESS).begin(1).text(1, "One").end(1, "One");
    long committed = story.last();
    return story
        .begin(2)
        .text(2, "Two, ", "they")
        .takeover(2, committed, 1_000)
        .begin(3)
        .text(3, "Tw")
        .takeover(3, committed, 2_000)
        .begin(4)
        .text(4, "Two, ", "we say")
        .end(4, "Two, we say")
        .state(RunState.RUN_STATE_COMPLETED)
        .log();
  }

  /** A run that asks for outputs and then writes a message. */
  static List<RunEvent> withTools(ToolCall... calls) {
    return new Story()
        .state(RunState.RUN_STATE_IN_PROGRESS)
        .ask(calls)
        .state(RunState.RUN_STATE_IN_PROGRESS)
        .begin(1)
        .text(1, "Do", "ne")
        .end(1, "Done")
        .state(RunState.RUN_STATE_COMPLETED)
        .log();
  }

  List<RunEvent> log() {
    return log;
  }

  long last() {
    return log.isEmpty() ? 0 : log.get(log.size() - 1).getSequence();
  }

  Story tell(RunEvent.Builder event) {
    return tell(event, last() + 1);
  }

  Story tell(RunEvent.Builder event, long sequence) {
    log.add(event.setSequence(sequence).build());
    return this;
  }

  Story state(RunState state, ToolCall... calls) {
    Run.Builder run = Run.newBuilder().setId(RUN_ID).setState(state).setLastSequence(last() + 1);
    if (calls.length > 0) {
      run.setRequiredAction(RequiredAction.newBuilder().addAllToolCalls(List.of(calls)));
    }
    return tell(RunEvent.newBuilder().setRunStateChanged(RunStateChanged.newBuilder().setRun(run)));
  }

  /** Starts a step that writes a message. */
  Story begin(int number) {
    RunStep step = step(number, RunStepState.RUN_STEP_STATE_IN_PROGRESS);
    Message message = message(number, "", MessageState.MESSAGE_STATE_IN_PROGRESS);
    return tell(RunEvent.newBuilder().setStepStarted(StepStarted.newBuilder().setStep(step)))
        .tell(
            RunEvent.newBuilder()
                .setMessageStarted(MessageStarted.newBuilder().setMessage(message)));
  }

  Story text(int number, String... fragments) {
    for (String fragment : fragments) {
      TextDelta.Builder delta =
          TextDelta.newBuilder().setMessageId("msg_" + number).setText(fragment);
      tell(RunEvent.newBuilder().setTextDelta(delta));
    }
    return this;
  }

  /** Ends the message and its step. */
  Story end(int number, String text) {
    RunStep step = step(number, RunStepState.RUN_STEP_STATE_COMPLETED);
    Message message = message(number, text, MessageState.MESSAGE_STATE_COMPLETED);
    return tell(RunEvent.newBuilder()
            .setMessageCompleted(MessageCompleted.newBuilder().setMessage(message)))
        .tell(RunEvent.newBuilder().setStepCompleted(StepCompleted.newBuilder().setStep(step)));
  }

  Story takeover(int attempt, long discardsAfter, long sequence) {
    AttemptStarted.Builder started =
        AttemptStarted.newBuilder().setAttempt(attempt).setDiscardsAfterSequence(discardsAfter);
    return tell(RunEvent.newBuilder().setAttemptStarted(started), sequence);
  }

  Story ask(ToolCall... calls) {
    ToolCallsRequested.Builder requested =
        ToolCallsRequested.newBuilder().addAllToolCalls(List.of(calls));
    return tell(RunEvent.newBuilder().setToolCallsRequested(requested))
        .state(RunState.RUN_STATE_REQUIRES_ACTION, calls);
  }

  static RunEvent snapshot(long sequence, Run run, Message... messages) {
    return RunEvent.newBuilder()
        .setSequence(sequence)
        .setSnapshot(Snapshot.newBuilder().setRun(run).addAllMessages(List.of(messages)))
        .build();
  }

  static Message message(int number, String text, MessageState state) {
    Message.Builder message =
        Message.newBuilder()
            .setId("msg_" + number)
            .setRunId(RUN_ID)
            .setRole(MessageRole.MESSAGE_ROLE_ASSISTANT)
            .setState(state);
    if (!text.isEmpty()) {
      message.addContent(MessagePart.newBuilder().setText(TextPart.newBuilder().setText(text)));
    }
    return message.build();
  }

  static ToolCall call(String id, String name, String arguments) {
    return ToolCall.newBuilder()
        .setId(id)
        .setFunction(FunctionCall.newBuilder().setName(name).setArgumentsJson(arguments))
        .build();
  }

  private static RunStep step(int number, RunStepState state) {
    return RunStep.newBuilder()
        .setId("step_" + number)
        .setRunId(RUN_ID)
        .setPosition(number)
        .setState(state)
        .setMessageCreation(MessageCreation.newBuilder().setMessageId("msg_" + number))
        .build();
  }
}
