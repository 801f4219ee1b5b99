// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.Message;
import dev.famulus.v1.MessagePart;
import dev.famulus.v1.MessageRole;
import dev.famulus.v1.MessageState;
import dev.famulus.v1.RefusalDelta;
import dev.famulus.v1.RunEvent;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A message that is being written. */
final class MessageDraft extends Draft<Message> {
  /** More than any message has. A damaged index must not cost memory. */
  private static final int MOST_PARTS = 1_000;

  MessageDraft(long began, String id, Message base) {
    super(began, base == null ? unseen(id) : base);
  }

  /** What is known of a message where nobody saw it begin. */
  private static Message unseen(String id) {
    return Message.newBuilder()
        .setId(id)
        .setRole(MessageRole.MESSAGE_ROLE_ASSISTANT)
        .setState(MessageState.MESSAGE_STATE_IN_PROGRESS)
        .build();
  }

  @Override
  Message grown(Message item, List<RunEvent> more) {
    Message.Builder message = item.toBuilder();
    // Text is gathered apart, or a long one would be copied anew for each of its fragments.
    Map<Integer, StringBuilder> texts = new HashMap<>();
    for (RunEvent delta : more) {
      switch (delta.getEventCase()) {
        case TEXT_DELTA -> {
          int index = delta.getTextDelta().getPartIndex();
          if (hasPart(message, index)) {
            texts
                .computeIfAbsent(index, key -> begun(message, key))
                .append(delta.getTextDelta().getText());
          }
        }
        case REFUSAL_DELTA -> {
          RefusalDelta refusal = delta.getRefusalDelta();
          if (hasPart(message, refusal.getPartIndex())) {
            texts.remove(refusal.getPartIndex()); // a part is one or the other
            MessagePart.Builder part = message.getContentBuilder(refusal.getPartIndex());
            part.getRefusalBuilder()
                .setRefusal(part.getRefusal().getRefusal() + refusal.getRefusal());
          }
        }
        case ANNOTATION_ADDED -> {
          int index = delta.getAnnotationAdded().getPartIndex();
          if (hasPart(message, index)) {
            MessagePart.Builder part = message.getContentBuilder(index);
            part.getTextBuilder().addAnnotations(delta.getAnnotationAdded().getAnnotation());
          }
        }
        default ->
            throw new IllegalArgumentException("no delta of a message: " + delta.getEventCase());
      }
    }
    texts.forEach(
        (index, text) ->
            message.getContentBuilder(index).getTextBuilder().setText(text.toString()));
    return message.build();
  }

  /**
   * Whether there is a part at an index, which is made if need be; not where the index makes no
   * sense.
   */
  private static boolean hasPart(Message.Builder message, int index) {
    if (index < 0 || index >= MOST_PARTS) {
      return false;
    }
    while (message.getContentCount() <= index) {
      message.addContentBuilder();
    }
    return true;
  }

  /** The text that a part has so far; it becomes a part of text where it is none. */
  private static StringBuilder begun(Message.Builder message, int index) {
    return new StringBuilder(message.getContentBuilder(index).getTextBuilder().getText());
  }
}
