// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.Message;
import dev.famulus.v1.MessagePart;
import java.util.List;
import java.util.stream.Collectors;

/** The text of messages. */
public final class MessageText {
  private MessageText() {}

  /**
   * The text of some messages, a blank line between two, empty ones left out.
   *
   * @param messages the messages
   * @return their text
   */
  public static String of(List<Message> messages) {
    return messages.stream()
        .map(MessageText::of)
        .filter(text -> !text.isEmpty())
        .collect(Collectors.joining("\n\n"));
  }

  /**
   * The text parts of a message, joined.
   *
   * @param message the message
   * @return its text
   */
  public static String of(Message message) {
    return message.getContentList().stream()
        .filter(MessagePart::hasText)
        .map(part -> part.getText().getText())
        .collect(Collectors.joining());
  }
}
