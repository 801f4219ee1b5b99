// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.AssistantServiceGrpc;
import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.RunServiceGrpc;
import dev.famulus.v1.ThreadServiceGrpc;
import dev.famulus.v1.UsageServiceGrpc;
import dev.famulus.v1.UserDataServiceGrpc;
import dev.famulus.v1.WaitRunRequest;
import dev.famulus.v1.WaitRunResponse;
import io.grpc.Channel;

/**
 * A channel to famulus, the typed stubs on it, and what follows runs through broken connections.
 *
 * <pre>{@code
 * try (FamulusClient client = FamulusClient.builder("127.0.0.1:7461").build();
 *     RunStream stream = client.streamRun(create)) {
 *   for (RunEvent event : stream) {
 *     System.out.print(event.getTextDelta().getText());
 *   }
 * }
 * }</pre>
 *
 * <p>Any number of threads may share a client. Its methods throw {@link FamulusException}, the
 * stubs {@link io.grpc.StatusRuntimeException}. A thread that waits in a method and is interrupted
 * gets a FamulusException with the code CANCELLED, and stays interrupted.
 */
public final class FamulusClient implements AutoCloseable {
  private final Connection connection;
  private final RetryPolicy policy;

  FamulusClient(Connection connection, RetryPolicy policy) {
    this.connection = connection;
    this.policy = policy;
  }

  /**
   * Starts to set up a client.
   *
   * @param target {@code host:port}, or any name that gRPC resolves, such as {@code
   *     dns:///famulus:8443}; calls spread over all addresses that it finds
   * @return what builds the client
   */
  public static ClientBuilder builder(String target) {
    return new ClientBuilder(target);
  }

  /**
   * Assistants: who answers.
   *
   * @return a new blocking stub
   */
  public AssistantServiceGrpc.AssistantServiceBlockingStub assistants() {
    return AssistantServiceGrpc.newBlockingStub(channel());
  }

  /**
   * Threads and their messages.
   *
   * @return a new blocking stub
   */
  public ThreadServiceGrpc.ThreadServiceBlockingStub threads() {
    return ThreadServiceGrpc.newBlockingStub(channel());
  }

  /**
   * Runs.
   *
   * @return a new blocking stub
   */
  public RunServiceGrpc.RunServiceBlockingStub runs() {
    return RunServiceGrpc.newBlockingStub(channel());
  }

  /**
   * What runs used.
   *
   * @return a new blocking stub
   */
  public UsageServiceGrpc.UsageServiceBlockingStub usage() {
    return UsageServiceGrpc.newBlockingStub(channel());
  }

  /**
   * What is stored of users: its export and its deletion.
   *
   * @return a new blocking stub
   */
  public UserDataServiceGrpc.UserDataServiceBlockingStub userData() {
    return UserDataServiceGrpc.newBlockingStub(channel());
  }

  /**
   * For stubs of other kinds: {@code RunServiceGrpc.newFutureStub(client.channel())}. Calls on it
   * carry the token.
   *
   * @return the channel, which is closed with this client
   */
  public Channel channel() {
    return connection.channel();
  }

  /**
   * Starts a run and follows it from its first event to its end.
   *
   * @param create the run; with a {@code request_id} the same call joins the run that an earlier
   *     one started
   * @return the stream, which calls nothing before it is iterated over; close it
   */
  public RunStream streamRun(CreateRunRequest create) {
    return streamRun(create, StreamOptions.defaults());
  }

  /**
   * Starts a run and follows it to its end.
   *
   * @param create the run; with a {@code request_id} the same call joins the run that an earlier
   *     one started
   * @param options from where on, with which tools, and what happens when the stream is left
   * @return the stream, which calls nothing before it is iterated over; close it
   */
  public RunStream streamRun(CreateRunRequest create, StreamOptions options) {
    return stream(Following.starting(create, options.afterSequence(), new Outage(policy)), options);
  }

  /**
   * Follows a run that exists, from its first event to its end.
   *
   * @param runId the run
   * @return the stream, which calls nothing before it is iterated over; close it
   */
  public RunStream watchRun(String runId) {
    return watchRun(runId, StreamOptions.defaults());
  }

  /**
   * Follows a run that exists to its end.
   *
   * @param runId the run
   * @param options from where on, with which tools, and what happens when the stream is left
   * @return the stream, which calls nothing before it is iterated over; close it
   */
  public RunStream watchRun(String runId, StreamOptions options) {
    return stream(Following.watching(runId, options.afterSequence(), new Outage(policy)), options);
  }

  /**
   * Starts a run and waits until it has ended or needs action.
   *
   * @param create the run
   * @return the run and its messages
   */
  public RunResult runToEnd(CreateRunRequest create) {
    try {
      RepeatedCalls calls = new RepeatedCalls(connection, policy);
      CreateRunRequest repeatable = Following.repeatable(create);
      return wait(
          calls, calls.send(RunServiceGrpc.getCreateRunMethod(), repeatable).getRun().getId());
    } catch (InterruptedException interrupted) {
      throw FamulusException.interrupted(interrupted);
    }
  }

  /**
   * Starts a run and waits until it has ended. With tools its function calls are answered; without,
   * it is also given back when it needs action.
   *
   * @param create the run
   * @param options with which tools
   * @return the run and its messages
   */
  public RunResult runToEnd(CreateRunRequest create, StreamOptions options) {
    if (options.tools().isEmpty()) {
      return runToEnd(create);
    }
    try (RunStream stream = streamRun(create, options)) {
      stream.forEach(event -> {});
      return stream.view().result();
    }
  }

  /**
   * Waits until a run has ended or needs action. To stop waiting does not stop the run.
   *
   * @param runId the run
   * @return the run and its messages
   */
  public RunResult waitRun(String runId) {
    try {
      return wait(new RepeatedCalls(connection, policy), runId);
    } catch (InterruptedException interrupted) {
      throw FamulusException.interrupted(interrupted);
    }
  }

  /**
   * Closes the channel and cancels what is open on it; streams that are iterated over end with an
   * error.
   */
  @Override
  public void close() {
    connection.close();
  }

  private static RunResult wait(RepeatedCalls calls, String runId) throws InterruptedException {
    WaitRunRequest request = WaitRunRequest.newBuilder().setRunId(runId).build();
    WaitRunResponse response = calls.await(RunServiceGrpc.getWaitRunMethod(), request);
    return new RunResult(response.getRun(), response.getMessagesList());
  }

  private RunStream stream(Following following, StreamOptions options) {
    return new RunStream(connection, following, policy, options);
  }
}
