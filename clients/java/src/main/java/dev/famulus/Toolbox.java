// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.ToolCall;
import dev.famulus.v1.ToolOutput;
import java.lang.System.Logger.Level;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Answers function calls with handlers by name; the time-out holds for each call by itself. */
final class Toolbox {
  private static final System.Logger LOG = System.getLogger("dev.famulus");
  private static final int LARGEST_OUTPUT = 1 << 20; // bytes; the service takes no more

  private final Map<String, ToolHandler> handlers;
  private final Duration timeout;
  private final ExecutorService threads;
  private final Set<String> claimed = new HashSet<>();

  Toolbox(Map<String, ToolHandler> handlers, Duration timeout, ExecutorService threads) {
    this.handlers = handlers;
    this.timeout = timeout;
    this.threads = threads;
  }

  /** Ids of those calls that nobody claimed before: the caller must answer them. */
  Set<String> claim(List<ToolCall> calls) {
    Set<String> fresh = new HashSet<>();
    for (ToolCall call : calls) {
      if (claimed.add(call.getId())) {
        fresh.add(call.getId());
      }
    }
    return fresh;
  }

  /** Runs the calls in parallel. Interrupting the thread interrupts the handlers. */
  List<ToolOutput> answer(List<ToolCall> calls) throws InterruptedException {
    long deadline = System.nanoTime() + timeout.toNanos();
    List<Future<Object>> running = new ArrayList<>();
    try {
      for (ToolCall call : calls) {
        running.add(threads.submit(() -> run(call)));
      }
      List<ToolOutput> outputs = new ArrayList<>();
      for (int index = 0; index < calls.size(); index++) {
        outputs.add(output(calls.get(index), running.get(index), deadline));
      }
      return outputs;
    } finally {
      running.forEach(each -> each.cancel(true));
    }
  }

  private Object run(ToolCall call) throws Exception {
    ToolHandler handler = handlers.get(call.getFunction().getName());
    if (handler == null) {
      throw new ToolException("there is no tool of this name");
    }
    return handler.call(Json.arguments(call.getFunction().getArgumentsJson()));
  }

  private ToolOutput output(ToolCall call, Future<Object> result, long deadline)
      throws InterruptedException {
    ToolOutput.Builder output = ToolOutput.newBuilder().setCallId(call.getId());
    try {
      Object value = result.get(Math.max(0, deadline - System.nanoTime()), TimeUnit.NANOSECONDS);
      return output.setOutput(checked(Json.output(value))).build();
    } catch (ExecutionException failed) {
      if (!(failed.getCause() instanceof ToolException)) {
        String name = call.getFunction().getName();
        LOG.log(
            Level.ERROR,
            () -> "the tool " + name + " failed, in the call " + call.getId(),
            failed.getCause());
      }
      return output.setOutput(told(failed.getCause())).setIsError(true).build();
    } catch (ToolException unusable) {
      return output.setOutput(told(unusable)).setIsError(true).build();
    } catch (TimeoutException slow) {
      result.cancel(true);
      String text = "the tool took longer than " + Seconds.text(timeout) + " seconds";
      return output.setOutput(text).setIsError(true).build();
    }
  }

  /**
   * What the model is told of an error. The text of any exception may hold what is not the model's
   * to see.
   */
  private static String told(Throwable error) {
    if (error instanceof ToolException meant) {
      return clean(String.valueOf(meant.getMessage()));
    }
    String name = error.getClass().getSimpleName();
    return "the tool failed: " + (name.isEmpty() ? error.getClass().getName() : name);
  }

  private static String checked(String text) throws ToolException {
    String output = clean(text);
    if (output.getBytes(StandardCharsets.UTF_8).length > LARGEST_OUTPUT) {
      throw new ToolException("the tool's result is larger than 1 MiB");
    }
    return output;
  }

  /** The text without what the service would refuse: lone surrogates and NUL. */
  private static String clean(String text) {
    return new String(text.getBytes(StandardCharsets.UTF_8), StandardCharsets.UTF_8)
        .replace('\0', '\uFFFD');
  }
}
