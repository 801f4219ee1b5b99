// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import dev.famulus.v1.ErrorReason;
import io.grpc.Metadata;
import java.time.Duration;
import java.util.List;
import java.util.Map;

/**
 * What the service says about an error beyond its status; {@code retryAfter} is null where it names
 * no time.
 */
record ErrorDetails(
    String reasonName,
    Map<String, String> metadata,
    List<Violation> violations,
    Duration retryAfter) {

  static final ErrorDetails NONE = new ErrorDetails("", Map.of(), List.of(), null);

  private static final String DOMAIN = "famulus";
  private static final Metadata.Key<byte[]> KEY =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  /** The details in the trailers of a call; those that are missing or damaged are left empty. */
  static ErrorDetails in(Metadata trailers) {
    byte[] packed = trailers == null ? null : trailers.get(KEY);
    if (packed == null) {
      return NONE;
    }
    Status status = parsed(packed);
    ErrorInfo info = find(status, ErrorInfo.getDefaultInstance());
    BadRequest wrong = find(status, BadRequest.getDefaultInstance());
    RetryInfo retry = find(status, RetryInfo.getDefaultInstance());
    boolean ours = info.getDomain().equals(DOMAIN);
    return new ErrorDetails(
        ours ? info.getReason() : "",
        ours ? Map.copyOf(info.getMetadataMap()) : Map.of(),
        wrong.getFieldViolationsList().stream()
            .map(each -> new Violation(each.getField(), each.getDescription()))
            .toList(),
        retry.hasRetryDelay()
            ? Duration.ofSeconds(retry.getRetryDelay().getSeconds())
                .plusNanos(retry.getRetryDelay().getNanos())
            : null);
  }

  ErrorReason reason() {
    try {
      return ErrorReason.valueOf("ERROR_REASON_" + reasonName);
    } catch (IllegalArgumentException newer) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
  }

  private static Status parsed(byte[] packed) {
    try {
      return Status.parseFrom(packed);
    } catch (InvalidProtocolBufferException damaged) {
      return Status.getDefaultInstance();
    }
  }

  @SuppressWarnings("unchecked") // a parser of a message's own type
  private static <M extends Message> M find(Status status, M none) {
    for (Any detail : status.getDetailsList()) {
      if (detail.is(none.getClass())) {
        try {
          return (M) none.getParserForType().parseFrom(detail.getValue());
        } catch (InvalidProtocolBufferException damaged) {
          return none;
        }
      }
    }
    return none;
  }
}
