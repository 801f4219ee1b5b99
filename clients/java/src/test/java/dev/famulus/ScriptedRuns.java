// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.famulus.v1.CancelRunRequest;
import dev.famulus.v1.CancelRunResponse;
import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.CreateRunResponse;
import dev.famulus.v1.GetRunRequest;
import dev.famulus.v1.GetRunResponse;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunServiceGrpc;
import dev.famulus.v1.RunState;
import dev.famulus.v1.StreamRunRequest;
import dev.famulus.v1.StreamRunResponse;
import dev.famulus.v1.SubmitToolOutputsRequest;
import dev.famulus.v1.SubmitToolOutputsResponse;
import dev.famulus.v1.WaitRunRequest;
import dev.famulus.v1.WaitRunResponse;
import dev.famulus.v1.WatchRunRequest;
import dev.famulus.v1.WatchRunResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerCredentials;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * A RunService on a real port. It tells a log kept in memory and serves each stream by the next
 * entry of a plan; wholly, when the plan is used up. The log is published up to the first event at
 * which the run waits for outputs of tools; submitting them publishes the rest.
 */
final class ScriptedRuns extends RunServiceGrpc.RunServiceImplBase implements AutoCloseable {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  final List<ScriptedStream> streams = Collections.synchronizedList(new ArrayList<>());
  final List<CreateRunRequest> created = Collections.synchronizedList(new ArrayList<>());
  final List<SubmitToolOutputsRequest> submitted = Collections.synchronizedList(new ArrayList<>());
  final List<String> cancelled = Collections.synchronizedList(new ArrayList<>());
  final List<String> tokens = Collections.synchronizedList(new ArrayList<>());

  /** What the next unary calls are refused with. */
  final Queue<StatusRuntimeException> refusals = new ConcurrentLinkedQueue<>();

  private final Queue<ScriptedStream.Serving> plan = new ArrayDeque<>();
  private final List<RunEvent> log;
  private final ExecutorService threads = Executors.newCachedThreadPool();
  private final Server server;
  private int visible;

  ScriptedRuns(List<RunEvent> log, ScriptedStream.Serving... plan) throws IOException {
    this(InsecureServerCredentials.create(), log, plan);
  }

  ScriptedRuns(ServerCredentials credentials, List<RunEvent> log, ScriptedStream.Serving... plan)
      throws IOException {
    this.log = new ArrayList<>(log);
    this.plan.addAll(List.of(plan));
    this.visible = pauseAfter(0);
    this.server =
        Grpc.newServerBuilderForPort(0, credentials)
            .addService(this)
            .intercept(new TokenReader())
            .executor(threads)
            .build()
            .start();
  }

  String target() {
    return "127.0.0.1:" + server.getPort();
  }

  @Override
  public void close() {
    try {
      server.shutdownNow().awaitTermination(); // its last words need the threads
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    threads.shutdownNow();
  }

  /** An error with its details, in the service's manner. */
  static StatusRuntimeException refusal(
      Status.Code code, String message, com.google.protobuf.Message... details) {
    com.google.rpc.Status.Builder status =
        com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage(message);
    for (com.google.protobuf.Message detail : details) {
      status.addDetails(Any.pack(detail));
    }
    return StatusProto.toStatusRuntimeException(status.build());
  }

  static ErrorInfo reason(String name) {
    return ErrorInfo.newBuilder()
        .setDomain("famulus")
        .setReason(name)
        .putMetadata("model", "m")
        .build();
  }

  static RetryInfo retryAfter(Duration delay) {
    return RetryInfo.newBuilder()
        .setRetryDelay(
            com.google.protobuf.Duration.newBuilder()
                .setSeconds(delay.getSeconds())
                .setNanos(delay.getNano()))
        .build();
  }

  static BadRequest wrong(String field) {
    return BadRequest.newBuilder()
        .addFieldViolations(
            BadRequest.FieldViolation.newBuilder().setField(field).setDescription("is wrong"))
        .build();
  }

  /** Publishes up to the next pause. */
  synchronized void publish() {
    visible = pauseAfter(visible);
    notifyAll();
  }

  synchronized void add(RunEvent event) {
    log.add(event);
    publish();
  }

  /** The event at a position of the log, as soon as it is published; null at the end of the log. */
  synchronized RunEvent published(int position) throws InterruptedException {
    while (position >= visible && position < log.size()) {
      wait();
    }
    return position < log.size() ? log.get(position) : null;
  }

  /** The run as it is now. */
  synchronized Run run() {
    Run run = Run.newBuilder().setId(Story.RUN_ID).build();
    for (RunEvent event : log.subList(0, visible)) {
      run = event.hasRunStateChanged() ? event.getRunStateChanged().getRun() : run;
    }
    return run;
  }

  private int pauseAfter(int index) {
    for (int position = index; position < log.size(); position++) {
      if (log.get(position).getRunStateChanged().getRun().getState()
          == RunState.RUN_STATE_REQUIRES_ACTION) {
        return position + 1;
      }
    }
    return log.size();
  }

  @Override
  public void streamRun(StreamRunRequest request, StreamObserver<StreamRunResponse> responses) {
    serve(
        new ScriptedStream(
            this,
            request,
            request.getAfterSequence(),
            (ServerCallStreamObserver<StreamRunResponse>) responses,
            events ->
                responses.onNext(StreamRunResponse.newBuilder().addAllEvents(events).build())));
  }

  @Override
  public void watchRun(WatchRunRequest request, StreamObserver<WatchRunResponse> responses) {
    serve(
        new ScriptedStream(
            this,
            request,
            request.getAfterSequence(),
            (ServerCallStreamObserver<WatchRunResponse>) responses,
            events ->
                responses.onNext(WatchRunResponse.newBuilder().addAllEvents(events).build())));
  }

  private void serve(ScriptedStream stream) {
    ScriptedStream.Serving serving;
    synchronized (this) {
      streams.add(stream);
      serving = plan.isEmpty() ? ScriptedStream::whole : plan.remove();
    }
    threads.execute(() -> stream.serve(serving));
  }

  @Override
  public void createRun(CreateRunRequest request, StreamObserver<CreateRunResponse> response) {
    if (!refused(response)) {
      created.add(request);
      answer(response, CreateRunResponse.newBuilder().setRun(run()).build());
    }
  }

  @Override
  public void getRun(GetRunRequest request, StreamObserver<GetRunResponse> response) {
    answer(response, GetRunResponse.newBuilder().setRun(run()).build());
  }

  @Override
  public void waitRun(WaitRunRequest request, StreamObserver<WaitRunResponse> response) {
    if (refused(response)) {
      return;
    }
    ServerCallStreamObserver<WaitRunResponse> call =
        (ServerCallStreamObserver<WaitRunResponse>) response;
    call.setOnCancelHandler(this::publish);
    threads.execute(
        () -> {
          if (awaitStop(call)) {
            RunView view = new RunView();
            log.forEach(view::apply);
            answer(
                response,
                WaitRunResponse.newBuilder().setRun(run()).addAllMessages(view.messages()).build());
          }
        });
  }

  private synchronized boolean awaitStop(ServerCallStreamObserver<?> call) {
    while (!call.isCancelled()) {
      RunState state = run().getState();
      if (state == RunState.RUN_STATE_REQUIRES_ACTION || RunView.isFinal(state)) {
        return true;
      }
      try {
        wait();
      } catch (InterruptedException stopped) {
        return false;
      }
    }
    return false;
  }

  @Override
  public void submitToolOutputs(
      SubmitToolOutputsRequest request, StreamObserver<SubmitToolOutputsResponse> response) {
    if (!refused(response)) {
      submitted.add(request);
      publish();
      answer(response, SubmitToolOutputsResponse.newBuilder().setRun(run()).build());
    }
  }

  @Override
  public void cancelRun(CancelRunRequest request, StreamObserver<CancelRunResponse> response) {
    cancelled.add(request.getRunId());
    answer(response, CancelRunResponse.newBuilder().setRun(run()).build());
  }

  private boolean refused(StreamObserver<?> response) {
    StatusRuntimeException refusal = refusals.poll();
    if (refusal != null) {
      response.onError(refusal);
    }
    return refusal != null;
  }

  private static <R> void answer(StreamObserver<R> response, R message) {
    response.onNext(message);
    response.onCompleted();
  }

  private final class TokenReader implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      tokens.add(String.valueOf(headers.get(AUTHORIZATION)));
      return next.startCall(call, headers);
    }
  }
}
