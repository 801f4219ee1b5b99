// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.ErrorReason;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunServiceGrpc;
import dev.famulus.v1.SubmitToolOutputsRequest;
import dev.famulus.v1.ToolCall;
import dev.famulus.v1.ToolOutput;
import java.util.List;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.function.Consumer;

/**
 * Answers the function calls of one stream behind its back, one round for all calls that are asked
 * for together.
 */
final class ToolRounds {
  /** Somebody answered before, or the run went on, ended or expired: the stream tells. */
  private static final Set<ErrorReason> OVERTAKEN =
      Set.of(
          ErrorReason.ERROR_REASON_RUN_NOT_WAITING,
          ErrorReason.ERROR_REASON_TOOL_OUTPUT_CONFLICT,
          ErrorReason.ERROR_REASON_RUN_EXPIRED);

  private final Toolbox toolbox;
  private final RepeatedCalls calls;
  private final ExecutorService threads;
  private final Consumer<Throwable> failed;
  private final Queue<Future<?>> rounds = new ConcurrentLinkedQueue<>();

  /** {@code failed} is told, in a thread of ours, why outputs cannot be submitted. */
  ToolRounds(
      Toolbox toolbox, RepeatedCalls calls, ExecutorService threads, Consumer<Throwable> failed) {
    this.toolbox = toolbox;
    this.calls = calls;
    this.threads = threads;
    this.failed = failed;
  }

  /**
   * Starts to answer those calls that no earlier event asked for. {@code lookUp} gives the run as
   * it is now.
   */
  void answer(List<ToolCall> asked, Callable<Run> lookUp) {
    Set<String> claimed = toolbox.claim(asked);
    if (!claimed.isEmpty()) {
      rounds.removeIf(Future::isDone);
      try {
        rounds.add(threads.submit(() -> answer(claimed, lookUp)));
      } catch (RejectedExecutionException closed) {
        // The client is closed, and with it the stream: there is nobody to answer to.
      }
    }
  }

  /** Stops what still runs; its outputs are dropped. */
  void stop() {
    rounds.forEach(round -> round.cancel(true));
  }

  private void answer(Set<String> claimed, Callable<Run> lookUp) {
    try {
      // An old event may ask for what was answered long ago: a tool must not run again for it.
      Run run = lookUp.call();
      List<ToolCall> open =
          OpenCalls.of(run).stream().filter(call -> claimed.contains(call.getId())).toList();
      if (!open.isEmpty()) {
        submit(run.getId(), toolbox.answer(open));
      }
    } catch (InterruptedException stopped) {
      Thread.currentThread().interrupt();
    } catch (Exception | Error error) {
      failed.accept(error);
    }
  }

  private void submit(String runId, List<ToolOutput> outputs) throws InterruptedException {
    SubmitToolOutputsRequest request =
        SubmitToolOutputsRequest.newBuilder().setRunId(runId).addAllToolOutputs(outputs).build();
    try {
      calls.send(RunServiceGrpc.getSubmitToolOutputsMethod(), request);
    } catch (FamulusException refused) {
      if (!OVERTAKEN.contains(refused.reason())) {
        throw refused;
      }
    }
  }
}
