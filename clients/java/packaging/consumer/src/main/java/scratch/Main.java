// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package scratch;

import dev.famulus.FamulusClient;
import dev.famulus.FamulusException;
import dev.famulus.RetryPolicy;
import java.time.Duration;

/** Uses the packed client: asks for a run where no server is. */
final class Main {
  private Main() {}

  public static void main(String[] arguments) {
    RetryPolicy impatient = RetryPolicy.defaults().withGiveUpAfter(Duration.ZERO);
    try (FamulusClient client = FamulusClient.builder("127.0.0.1:1").retry(impatient).build()) {
      client.waitRun("run_1");
    } catch (FamulusException error) {
      System.out.println(error.code());
    }
  }
}
