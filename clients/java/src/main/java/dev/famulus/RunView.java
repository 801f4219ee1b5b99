// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.Message;
import dev.famulus.v1.MessageState;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.RunStep;
import dev.famulus.v1.RunStepState;
import dev.famulus.v1.Snapshot;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.EnumSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * A run with its messages, steps and reasoning, kept up to date by the events of the run.
 *
 * <p>After an AttemptStarted, text that was shown but never stored is gone again; a Snapshot
 * replaces everything. A view of a stream that was joined in the middle lacks what came before,
 * until facts or a Snapshot bring it. For one thread.
 */
public final class RunView {
  private static final Set<RunState> FINAL_STATES =
      EnumSet.of(
          RunState.RUN_STATE_CANCELLED,
          RunState.RUN_STATE_FAILED,
          RunState.RUN_STATE_COMPLETED,
          RunState.RUN_STATE_INCOMPLETE,
          RunState.RUN_STATE_EXPIRED);

  private record Reasoning(long sequence, String text) {}

  private final ViewItems<Message> messages =
      new ViewItems<>(
          Message::getId,
          message -> message.getState() == MessageState.MESSAGE_STATE_IN_PROGRESS,
          MessageDraft::new);
  private final ViewItems<RunStep> steps =
      new ViewItems<>(
          RunStep::getId,
          step -> step.getState() == RunStepState.RUN_STEP_STATE_IN_PROGRESS,
          StepDraft::new);
  private final List<Reasoning> reasoning = new ArrayList<>();
  private Run run;
  private int attempt;
  private volatile String runId = ""; // also read by whoever closes the stream

  /** Makes a view that has seen no event yet. */
  public RunView() {}

  /**
   * Whether a state is one that a run never leaves.
   *
   * @param state any state
   * @return whether it is final
   */
  public static boolean isFinal(RunState state) {
    return FINAL_STATES.contains(state);
  }

  /**
   * The run as of its latest change of state.
   *
   * @return the run; empty until an event brought it
   */
  public Optional<Run> run() {
    return Optional.ofNullable(run);
  }

  /**
   * The id of the run.
   *
   * @return the id; empty until an event brought it
   */
  public String runId() {
    return runId;
  }

  /**
   * Number of the latest attempt that was announced.
   *
   * @return the number; 0 before a first takeover
   */
  public int attempt() {
    return attempt;
  }

  /**
   * The messages that the run wrote, the growing one included.
   *
   * @return the messages in the order in which they began
   */
  public List<Message> messages() {
    return messages.all();
  }

  /**
   * The steps of the run, the current one included.
   *
   * @return the steps by position
   */
  public List<RunStep> steps() {
    return steps.all().stream().sorted(Comparator.comparingInt(RunStep::getPosition)).toList();
  }

  /**
   * The text of all messages, a blank line between two.
   *
   * @return the text; empty where there is none
   */
  public String text() {
    return MessageText.of(messages());
  }

  /**
   * The model's reasoning; only of runs created with {@code stream_reasoning}.
   *
   * @return the text; empty where there is none
   */
  public String reasoning() {
    StringBuilder text = new StringBuilder();
    reasoning.forEach(each -> text.append(each.text()));
    return text.toString();
  }

  /**
   * Whether the run reached a final state.
   *
   * @return whether it did, as far as events told
   */
  public boolean finished() {
    return run != null && isFinal(run.getState());
  }

  /**
   * The run and its messages.
   *
   * @return both, as of the last event
   * @throws IllegalStateException where no event brought the run yet
   */
  public RunResult result() {
    if (run == null) {
      throw new IllegalStateException("no event brought the run yet");
    }
    return new RunResult(run, messages());
  }

  /**
   * Takes in one event. Kinds that this version does not know change nothing.
   *
   * @param event the next event of the run; they must come in order, each once
   */
  public void apply(RunEvent event) {
    switch (event.getEventCase()) {
      case RUN_STATE_CHANGED -> adopt(event.getRunStateChanged().getRun());
      case MESSAGE_STARTED -> begin(event.getSequence(), event.getMessageStarted().getMessage());
      case MESSAGE_COMPLETED -> finish(event.getMessageCompleted().getMessage());
      case TEXT_DELTA -> messages.extend(event.getTextDelta().getMessageId(), event);
      case REFUSAL_DELTA -> messages.extend(event.getRefusalDelta().getMessageId(), event);
      case ANNOTATION_ADDED -> messages.extend(event.getAnnotationAdded().getMessageId(), event);
      case STEP_STARTED -> begin(event.getSequence(), event.getStepStarted().getStep());
      case STEP_COMPLETED -> finish(event.getStepCompleted().getStep());
      case TOOL_CALL_DELTA -> steps.extend(event.getToolCallDelta().getStepId(), event);
      case REASONING_DELTA ->
          reasoning.add(new Reasoning(event.getSequence(), event.getReasoningDelta().getText()));
      case ATTEMPT_STARTED -> {
        attempt = event.getAttemptStarted().getAttempt();
        discard(event.getAttemptStarted().getDiscardsAfterSequence());
      }
      case SNAPSHOT -> replace(event.getSequence(), event.getSnapshot());
      default -> {} // no part of the view, or a kind of a newer version
    }
  }

  /** Takes over a newer state of the run. */
  void adopt(Run newer) {
    run = newer;
    name(newer.getId());
    if (finished()) {
      discard(0); // what is not stored when the run ends never will be
    }
  }

  /** Notes the id of the run. */
  void name(String id) {
    if (runId.isEmpty()) {
      runId = id;
    }
  }

  private void begin(long sequence, Message message) {
    name(message.getRunId());
    messages.begin(sequence, message);
  }

  private void begin(long sequence, RunStep step) {
    name(step.getRunId());
    steps.begin(sequence, step);
  }

  private void finish(Message message) {
    name(message.getRunId());
    messages.finish(message);
  }

  private void finish(RunStep step) {
    name(step.getRunId());
    steps.finish(step);
  }

  private void discard(long after) {
    messages.discard(after);
    steps.discard(after);
    reasoning.removeIf(each -> each.sequence() > after);
  }

  private void replace(long sequence, Snapshot snapshot) {
    messages.replace(sequence, snapshot.getMessagesList());
    steps.replace(sequence, snapshot.getStepsList());
    reasoning.clear();
    adopt(snapshot.getRun());
  }
}
