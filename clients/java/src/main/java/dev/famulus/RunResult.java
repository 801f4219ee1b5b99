// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.Message;
import dev.famulus.v1.Run;
import java.util.List;

/**
 * A run that ended or needs action, and the messages it wrote.
 *
 * @param run the run
 * @param messages its messages, oldest first
 */
public record RunResult(Run run, List<Message> messages) {
  /** Copies the list. */
  public RunResult {
    messages = List.copyOf(messages);
  }

  /**
   * The text of all messages, a blank line between two.
   *
   * @return the text; empty where there is none
   */
  public String text() {
    return MessageText.of(messages);
  }
}
