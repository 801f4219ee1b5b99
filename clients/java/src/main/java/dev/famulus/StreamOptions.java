// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import java.time.Duration;
import java.util.Map;
import java.util.Optional;

/**
 * How to follow a run. Immutable: each method that takes something gives a new object.
 *
 * <pre>{@code
 * StreamOptions.defaults().withTools(Map.of("get_weather", this::weather)).withCancelOnExit()
 * }</pre>
 */
public final class StreamOptions {
  private static final StreamOptions DEFAULTS =
      new StreamOptions(0, null, Duration.ofSeconds(60), false);

  private final long afterSequence;
  private final Map<String, ToolHandler> tools;
  private final Duration toolTimeout;
  private final boolean cancelOnExit;

  private StreamOptions(
      long afterSequence,
      Map<String, ToolHandler> tools,
      Duration toolTimeout,
      boolean cancelOnExit) {
    this.afterSequence = afterSequence;
    this.tools = tools;
    this.toolTimeout = toolTimeout;
    this.cancelOnExit = cancelOnExit;
  }

  /**
   * From the first event on, without tools; leaving the stream does not stop the run.
   *
   * @return the defaults
   */
  public static StreamOptions defaults() {
    return DEFAULTS;
  }

  /**
   * Starts behind an event that was seen before.
   *
   * @param sequence its {@code sequence}; 0 starts at the first
   * @return new options
   */
  public StreamOptions withAfterSequence(long sequence) {
    return new StreamOptions(sequence, tools, toolTimeout, cancelOnExit);
  }

  /**
   * Answers the function calls of the run.
   *
   * @param handlers the functions by name; the model is told of a call of any other that it does
   *     not exist
   * @return new options
   */
  public StreamOptions withTools(Map<String, ? extends ToolHandler> handlers) {
    return new StreamOptions(afterSequence, Map.copyOf(handlers), toolTimeout, cancelOnExit);
  }

  /**
   * How long each call of a tool may take.
   *
   * @param timeout the time; 60 s by default
   * @return new options
   */
  public StreamOptions withToolTimeout(Duration timeout) {
    return new StreamOptions(afterSequence, tools, timeout, cancelOnExit);
  }

  /**
   * Cancels the run when the stream is left before the run has ended.
   *
   * @return new options
   */
  public StreamOptions withCancelOnExit() {
    return new StreamOptions(afterSequence, tools, toolTimeout, true);
  }

  long afterSequence() {
    return afterSequence;
  }

  /** The functions by name; empty where calls are not to be answered at all. */
  Optional<Map<String, ToolHandler>> tools() {
    return Optional.ofNullable(tools);
  }

  Duration toolTimeout() {
    return toolTimeout;
  }

  boolean cancelOnExit() {
    return cancelOnExit;
  }
}
