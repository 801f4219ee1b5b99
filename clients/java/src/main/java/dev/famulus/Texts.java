// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.Message;
import dev.famulus.v1.MessagePart;
import java.util.List;
import java.util.stream.Collectors;

/** The text of messages. */
final class Texts {
  private Texts() {}

  /** The text of all messages, a blank line between two, empty ones left out. */
  static String of(List<Message> messages) {
    return messages.stream()
        .map(Texts::of)
        .filter(text -> !text.isEmpty())
        .collect(Collectors.joining("\n\n"));
  }

  /** The text parts of a message, joined. */
  static String of(Message message) {
    return message.getContentList().stream()
        .filter(MessagePart::hasText)
        .map(part -> part.getText().getText())
        .collect(Collectors.joining());
  }
}
