// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.CallCredentials;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.Objects;
import java.util.concurrent.Executor;
import java.util.function.Supplier;
import java.util.regex.Pattern;

/** Shows a token with each call. */
final class BearerToken {
  private static final Metadata.Key<String> KEY =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  /**
   * What gRPC sends as it is. Of anything else it writes all bytes into the log, and sends none.
   */
  private static final Pattern PRINTABLE = Pattern.compile("[ -~]*");

  private final Supplier<String> token;

  BearerToken(Supplier<String> token) {
    this.token = token;
  }

  /** Asks for the token in a thread of {@code executor}: to get a fresh one may take time. */
  ClientInterceptor on(Executor executor) {
    CallCredentials credentials = new Credentials(executor);
    return new ClientInterceptor() {
      @Override
      public <Q, R> ClientCall<Q, R> interceptCall(
          MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
        return next.newCall(
            method,
            options.getCredentials() == null ? options.withCallCredentials(credentials) : options);
      }
    };
  }

  private final class Credentials extends CallCredentials {
    private final Executor executor;

    Credentials(Executor executor) {
      this.executor = executor;
    }

    @Override
    public void applyRequestMetadata(
        RequestInfo request, Executor ignored, MetadataApplier applier) {
      try {
        executor.execute(() -> apply(applier));
      } catch (RuntimeException closed) {
        applier.fail(Status.UNAVAILABLE.withDescription("the client is closed").withCause(closed));
      }
    }

    private void apply(MetadataApplier applier) {
      String current;
      try {
        current = Objects.requireNonNull(token.get());
      } catch (RuntimeException failed) { // whatever it is, it ends the call and nothing else
        applier.fail(Status.UNAVAILABLE.withDescription("there is no token").withCause(failed));
        return;
      }
      if (!PRINTABLE.matcher(current).matches()) {
        applier.fail(
            Status.UNAUTHENTICATED.withDescription(
                "the token has characters that no header may have, such as a line break"));
        return;
      }
      Metadata headers = new Metadata();
      headers.put(KEY, "Bearer " + current);
      applier.apply(headers);
    }
  }
}
