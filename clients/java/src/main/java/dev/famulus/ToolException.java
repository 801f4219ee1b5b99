// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

/**
 * Throw it in a tool to tell the model why the call failed: of other exceptions the model sees the
 * class name only.
 */
public class ToolException extends Exception {
  private static final long serialVersionUID = 1L;

  /**
   * Makes the exception.
   *
   * @param message what the model is told
   */
  public ToolException(String message) {
    super(message);
  }
}
