// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static dev.famulus.Followed.CREATE;
import static dev.famulus.Followed.QUICK;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.ServerCredentials;
import io.grpc.Status;
import io.grpc.TlsServerCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Encrypted connections. */
@Timeout(60)
final class TlsTest {
  private static final RetryPolicy IMPATIENT = QUICK.withGiveUpAfter(Duration.ofMillis(100));

  @TempDir private static Path folder;
  private static Identity server;
  private static Identity caller;

  /** A certificate that vouches for itself, and its key. */
  private record Identity(Path certificate, Path key) {}

  @BeforeAll
  static void makeCertificates() throws Exception {
    server = identity("server");
    caller = identity("caller");
  }

  @Test
  void theServerIsKnownByItsAuthorityAndGetsTheToken() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(credentials(false), Story.plain());
        FamulusClient client =
            FamulusClient.builder(runs.target()).tls(server.certificate()).token("t").build()) {
      assertEquals("Good morning, world", client.runToEnd(CREATE).text());
      assertEquals(List.of("Bearer t", "Bearer t"), runs.tokens);
    }
  }

  @Test
  void aServerOfAnotherAuthorityIsNotTalkedTo() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(credentials(false), Story.plain());
        FamulusClient client =
            FamulusClient.builder(runs.target())
                .tls(caller.certificate())
                .retry(QUICK.withGiveUpAfter(Duration.ofDays(1)))
                .build()) {
      FamulusException error =
          assertThrows(FamulusException.class, () -> client.waitRun(Story.RUN_ID));
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertTrue(error.description().contains("certification path"), error.description());
      assertFalse(error.isTransient());
      assertEquals(List.of(), runs.tokens);
    }
  }

  @Test
  void theCallerIsKnownByItsCertificate() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(credentials(true), Story.plain());
        FamulusClient client =
            FamulusClient.builder(runs.target())
                .tls(server.certificate(), caller.certificate(), caller.key())
                .build();
        FamulusClient stranger =
            FamulusClient.builder(runs.target())
                .tls(server.certificate())
                .retry(IMPATIENT)
                .build()) {
      assertEquals("Good morning, world", client.runToEnd(CREATE).text());
      assertThrows(FamulusException.class, () -> stranger.runToEnd(CREATE));
    }
  }

  private ServerCredentials credentials(boolean callersShowCertificates) throws IOException {
    TlsServerCredentials.Builder credentials =
        TlsServerCredentials.newBuilder()
            .keyManager(server.certificate().toFile(), server.key().toFile());
    if (callersShowCertificates) {
      credentials
          .trustManager(caller.certificate().toFile())
          .clientAuth(TlsServerCredentials.ClientAuth.REQUIRE);
    }
    return credentials.build();
  }

  /** Made by the keytool of the JDK; its files are PEM, as the client wants them. */
  private static Identity identity(String name) throws Exception {
    Path store = folder.resolve(name + ".p12");
    String keytool = Path.of(System.getProperty("java.home"), "bin", "keytool").toString();
    Process made =
        new ProcessBuilder(
                keytool,
                "-genkeypair",
                "-alias",
                name,
                "-dname",
                "CN=" + name,
                "-ext",
                "san=ip:127.0.0.1",
                "-ext",
                "bc=ca:true",
                "-keyalg",
                "EC",
                "-validity",
                "2",
                "-storepass",
                "changeit",
                "-keystore",
                store.toString())
            .redirectErrorStream(true)
            .start();
    String said = new String(made.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertEquals(0, made.waitFor(), said);
    KeyStore keys = KeyStore.getInstance("PKCS12");
    try (InputStream stored = Files.newInputStream(store)) {
      keys.load(stored, "changeit".toCharArray());
    }
    byte[] key = keys.getKey(name, "changeit".toCharArray()).getEncoded();
    return new Identity(
        pem(name + ".crt", "CERTIFICATE", keys.getCertificate(name).getEncoded()),
        pem(name + ".key", "PRIVATE KEY", key));
  }

  private static Path pem(String file, String what, byte[] content) throws IOException {
    String lines = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(content);
    return Files.writeString(
        folder.resolve(file),
        "-----BEGIN " + what + "-----\n" + lines + "\n-----END " + what + "-----\n");
  }
}
