// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.famulus.v1.Annotation;
import dev.famulus.v1.AnnotationAdded;
import dev.famulus.v1.FunctionCall;
import dev.famulus.v1.Message;
import dev.famulus.v1.MessageState;
import dev.famulus.v1.ReasoningDelta;
import dev.famulus.v1.RefusalDelta;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.TextDelta;
import dev.famulus.v1.ToolCallDelta;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What a run looks like after some events. */
final class RunViewTest {
  private final RunView view = new RunView();

  @Test
  void aTakeoverDropsDraftsAndKeepsWhatIsCompleted() {
    Story story =
        new Story().state(RunState.RUN_STATE_IN_PROGRESS).begin(1).text(1, "One").end(1, "One");
    apply(story.begin(2).text(2, "Two").takeover(2, story.last() - 1, 1_000));
    // The draft began before that sequence, only its delta lies behind it.
    assertEquals("One", view.text());
    assertEquals(2, view.messages().size());
    assertEquals(2, view.attempt());
    view.apply(new Story().takeover(3, 2, 2_000).log().get(0));
    assertEquals(1, view.messages().size());
    assertEquals(1, view.steps().size());
  }

  @Test
  void aFinalStateDropsWhatIsStillADraft() {
    apply(new Story().begin(1).text(1, "Half").state(RunState.RUN_STATE_FAILED));
    assertEquals(List.of(), view.messages());
    assertEquals(List.of(), view.steps());
    assertEquals("", view.result().text());
  }

  @Test
  void partsGrowByTheirIndexAndADamagedIndexCostsNothing() {
    view.apply(text(1, "b"));
    view.apply(text(0, "a"));
    view.apply(text(1, "c"));
    view.apply(text(-1, "x"));
    view.apply(text(1_000, "x"));
    Message message = view.messages().get(0);
    assertEquals(2, message.getContentCount());
    assertEquals("abc", view.text());
    assertEquals(MessageState.MESSAGE_STATE_IN_PROGRESS, message.getState());
    view.apply(text(999, "z"));
    assertEquals(1_000, view.messages().get(0).getContentCount());
  }

  @Test
  void annotationsAndRefusalsGrowToo() {
    view.apply(text(0, "a"));
    view.apply(
        RunEvent.newBuilder()
            .setAnnotationAdded(
                AnnotationAdded.newBuilder()
                    .setMessageId("msg_1")
                    .setAnnotation(Annotation.newBuilder().setText("a")))
            .build());
    view.apply(text(0, "b"));
    for (String words : List.of("I ", "will not")) {
      view.apply(
          RunEvent.newBuilder()
              .setRefusalDelta(
                  RefusalDelta.newBuilder().setMessageId("msg_1").setPartIndex(1).setRefusal(words))
              .build());
    }
    Message message = view.messages().get(0);
    assertEquals("ab", message.getContent(0).getText().getText());
    assertEquals(1, message.getContent(0).getText().getAnnotationsCount());
    assertEquals("I will not", message.getContent(1).getRefusal().getRefusal());
  }

  @Test
  void toolCallsGrowAndReasoningIsJoined() {
    view.apply(toolCall("call_1", "add", "{\"a\""));
    view.apply(toolCall("call_2", "echo", "{}"));
    view.apply(toolCall("call_1", "", ": 1}"));
    FunctionCall first = view.steps().get(0).getToolCalls().getToolCalls(0).getFunction();
    assertEquals("add", first.getName());
    assertEquals("{\"a\": 1}", first.getArgumentsJson());
    assertEquals(2, view.steps().get(0).getToolCalls().getToolCallsCount());
    view.apply(reasoning(4, "Let me "));
    view.apply(reasoning(5, "think"));
    assertEquals("Let me think", view.reasoning());
    view.apply(new Story().takeover(2, 4, 100).log().get(0));
    assertEquals("Let me ", view.reasoning());
  }

  @Test
  void aViewWithoutARunHasNoResult() {
    view.apply(RunEvent.getDefaultInstance());
    assertThrows(IllegalStateException.class, view::result);
  }

  private void apply(Story story) {
    story.log().forEach(view::apply);
  }

  private static RunEvent text(int index, String text) {
    return RunEvent.newBuilder()
        .setTextDelta(
            TextDelta.newBuilder().setMessageId("msg_1").setPartIndex(index).setText(text))
        .build();
  }

  private static RunEvent toolCall(String id, String name, String arguments) {
    return RunEvent.newBuilder()
        .setToolCallDelta(
            ToolCallDelta.newBuilder()
                .setStepId("step_1")
                .setCallId(id)
                .setName(name)
                .setArgumentsJsonDelta(arguments))
        .build();
  }

  private static RunEvent reasoning(long sequence, String text) {
    return RunEvent.newBuilder()
        .setSequence(sequence)
        .setReasoningDelta(ReasoningDelta.newBuilder().setText(text))
        .build();
  }
}
