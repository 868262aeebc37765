import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.FaultEvent;
import com.launchdarkly.eventsource.HttpConnectStrategy;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.StartedEvent;
import com.launchdarkly.eventsource.StreamClosedByServerException;
import com.launchdarkly.eventsource.StreamEvent;
import com.neovisionaries.ws.client.WebSocketAdapter;
import com.neovisionaries.ws.client.WebSocketFactory;
import com.neovisionaries.ws.client.WebSocketFrame;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.time.Duration;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSource;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;
import org.eclipse.jetty.websocket.api.Callback;
import org.eclipse.jetty.websocket.api.Session;
import org.eclipse.jetty.websocket.client.WebSocketClient;
import org.java_websocket.handshake.ServerHandshake;

/**
 * Runs one Java client against the bridge. Prints one JSON line for each message and each change of the client's state,
 * as tests/clients/run describes.
 *
 * <p>usage: java Client CLIENT BASE_URL
 */
public final class Client {
  private static final long RETRY_MS = 1000;
  private static final Pattern ID = Pattern.compile("\"id\":\"([^\"]*)\"");

  private static String base;
  private static volatile String lastEventId = "";

  /** Reads one stream. Throws at an error; returns whether the end is not printed yet. */
  private interface Stream {
    boolean read() throws Exception;
  }

  private static synchronized void print(String key, String text, String detail) {
    StringBuilder line = new StringBuilder("{\"t\":").append(System.currentTimeMillis());
    field(line, key, text);
    field(line, "detail", detail);
    System.out.println(line.append('}'));
  }

  private static void field(StringBuilder line, String key, String text) {
    if (text == null) return;
    line.append(",\"").append(key).append("\":\"");
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (c == '"' || c == '\\') line.append('\\').append(c);
      else if (c < ' ') line.append(String.format("\\u%04x", (int) c));
      else line.append(c);
    }
    line.append('"');
  }

  private static void state(String kind, Object detail) {
    print("state", kind, detail == null ? null : detail.toString());
  }

  /** Prints a message and remembers its cursor. */
  private static void message(String text) {
    print("message", text, null);
    Matcher id = ID.matcher(text);
    if (id.find()) lastEventId = id.group(1);
  }

  private static boolean closed(int code, String reason) {
    state("close", (code + " " + reason).strip());
    return false;
  }

  private static void data(String line) {
    if (line.startsWith("data: ")) message(line.substring(6));
  }

  private static URI sseUri() {
    return URI.create(base + "/api/sse");
  }

  private static URI wsUri() {
    String query = lastEventId.isEmpty() ? "" : "?lastEventId=" + lastEventId;
    return URI.create(base.replaceFirst("http", "ws") + "/api/websocket" + query);
  }

  /** Connects again after each end, as programs do whose library does not. */
  private static void loop(Stream stream) throws InterruptedException {
    while (true) {
      state("connect", lastEventId);
      try {
        if (stream.read()) state("end", null);
      } catch (Exception error) {
        state("error", error);
      }
      Thread.sleep(RETRY_MS);
    }
  }

  private static HttpRequest request() {
    HttpRequest.Builder request = HttpRequest.newBuilder(sseUri());
    if (!lastEventId.isEmpty()) request.header("Last-Event-ID", lastEventId);
    return request.build();
  }

  private static Stream httpClientLines() {
    HttpClient client = HttpClient.newHttpClient();
    return () -> {
      HttpResponse<java.util.stream.Stream<String>> response = client.send(request(), HttpResponse.BodyHandlers.ofLines());
      state("open", null);
      response.body().forEach(Client::data);
      return true;
    };
  }

  private static Stream httpClientScanner() {
    HttpClient client = HttpClient.newHttpClient();
    return () -> {
      Scanner lines = new Scanner(client.send(request(), HttpResponse.BodyHandlers.ofInputStream()).body());
      state("open", null);
      while (lines.hasNextLine()) data(lines.nextLine());
      if (lines.ioException() != null) throw lines.ioException();
      return true;
    };
  }

  private static boolean urlConnection() throws Exception {
    HttpURLConnection connection = (HttpURLConnection) sseUri().toURL().openConnection();
    if (!lastEventId.isEmpty()) connection.setRequestProperty("Last-Event-ID", lastEventId);
    try (BufferedReader lines = new BufferedReader(new InputStreamReader(connection.getInputStream(), "UTF-8"))) {
      state("open", null);
      for (String line; (line = lines.readLine()) != null; ) data(line);
    }
    return true;
  }

  private static Stream httpClientWebSocket() {
    HttpClient client = HttpClient.newHttpClient();
    return () -> {
      CompletableFuture<Boolean> end = new CompletableFuture<>();
      client.newWebSocketBuilder().buildAsync(wsUri(), new WebSocket.Listener() {
        private final StringBuilder parts = new StringBuilder();

        @Override
        public void onOpen(WebSocket socket) {
          state("open", null);
          socket.request(1);
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence text, boolean last) {
          parts.append(text);
          if (last) {
            message(parts.toString());
            parts.setLength(0);
          }
          socket.request(1);
          return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
          end.complete(closed(code, reason));
          return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
          end.completeExceptionally(error);
        }
      }).join();
      return end.get();
    };
  }

  private static OkHttpClient okHttp(Duration readTimeout) {
    return readTimeout == null ? new OkHttpClient() : new OkHttpClient.Builder().readTimeout(readTimeout).build();
  }

  private static Stream okHttpSse(OkHttpClient client) {
    return () -> {
      Request.Builder request = new Request.Builder().url(sseUri().toString());
      if (!lastEventId.isEmpty()) request.header("Last-Event-ID", lastEventId);
      CompletableFuture<Boolean> end = new CompletableFuture<>();
      EventSources.createFactory(client).newEventSource(request.build(), new EventSourceListener() {
        @Override
        public void onOpen(EventSource source, Response response) {
          state("open", null);
        }

        @Override
        public void onEvent(EventSource source, String id, String type, String data) {
          message(data);
        }

        @Override
        public void onClosed(EventSource source) {
          end.complete(true);
        }

        @Override
        public void onFailure(EventSource source, Throwable error, Response response) {
          end.completeExceptionally(error != null ? error : new IllegalStateException("status " + response.code()));
        }
      });
      return end.get();
    };
  }

  private static Stream okHttpWebSocket() {
    OkHttpClient client = new OkHttpClient();
    return () -> {
      CompletableFuture<Boolean> end = new CompletableFuture<>();
      client.newWebSocket(new Request.Builder().url(wsUri().toString()).build(), new okhttp3.WebSocketListener() {
        @Override
        public void onOpen(okhttp3.WebSocket socket, Response response) {
          state("open", null);
        }

        @Override
        public void onMessage(okhttp3.WebSocket socket, String text) {
          message(text);
        }

        @Override
        public void onClosing(okhttp3.WebSocket socket, int code, String reason) {
          socket.close(1000, null);
          end.complete(closed(code, reason));
        }

        @Override
        public void onFailure(okhttp3.WebSocket socket, Throwable error, Response response) {
          end.completeExceptionally(error);
        }
      });
      return end.get();
    };
  }

  private static void launchDarkly(HttpConnectStrategy connect) {
    com.launchdarkly.eventsource.EventSource source =
        new com.launchdarkly.eventsource.EventSource.Builder(connect).errorStrategy(ErrorStrategy.alwaysContinue()).build();
    for (StreamEvent event : source.anyEvents()) {
      if (event instanceof MessageEvent) message(((MessageEvent) event).getData());
      else if (event instanceof StartedEvent) state("open", null);
      else if (event instanceof FaultEvent) {
        Exception cause = ((FaultEvent) event).getCause();
        state(cause instanceof StreamClosedByServerException ? "end" : "error", cause);
      }
    }
    state("gave up", null);
  }

  private static boolean javaWebSocket() throws Exception {
    CompletableFuture<Boolean> end = new CompletableFuture<>();
    new org.java_websocket.client.WebSocketClient(wsUri()) {
      @Override
      public void onOpen(ServerHandshake handshake) {
        state("open", null);
      }

      @Override
      public void onMessage(String text) {
        message(text);
      }

      @Override
      public void onClose(int code, String reason, boolean remote) {
        end.complete(closed(code, reason));
      }

      @Override
      public void onError(Exception error) {
        state("error", error);
      }
    }.connect();
    return end.get();
  }

  /** Jetty needs a public class. */
  public static final class JettyListener implements Session.Listener.AutoDemanding {
    final CompletableFuture<Boolean> end = new CompletableFuture<>();

    @Override
    public void onWebSocketOpen(Session session) {
      state("open", null);
    }

    @Override
    public void onWebSocketText(String text) {
      message(text);
    }

    @Override
    public void onWebSocketClose(int code, String reason, Callback callback) {
      end.complete(closed(code, reason == null ? "" : reason));
      callback.succeed();
    }

    @Override
    public void onWebSocketError(Throwable error) {
      state("error", error);
    }
  }

  private static Stream jetty() throws Exception {
    WebSocketClient client = new WebSocketClient();
    client.start();
    return () -> {
      JettyListener listener = new JettyListener();
      client.connect(listener, wsUri()).get();
      return listener.end.get();
    };
  }

  private static boolean nvWebSocket() throws Exception {
    CompletableFuture<Boolean> end = new CompletableFuture<>();
    com.neovisionaries.ws.client.WebSocket socket = new WebSocketFactory().createSocket(wsUri());
    socket.addListener(new WebSocketAdapter() {
      @Override
      public void onTextMessage(com.neovisionaries.ws.client.WebSocket socket, String text) {
        message(text);
      }

      @Override
      public void onDisconnected(
          com.neovisionaries.ws.client.WebSocket socket, WebSocketFrame server, WebSocketFrame client, boolean byServer) {
        String reason = server == null ? "" : server.getCloseReason();
        end.complete(closed(server == null ? 1006 : server.getCloseCode(), reason == null ? "" : reason));
      }
    });
    socket.connect();
    return end.get();
  }

  public static void main(String[] arguments) throws Exception {
    base = arguments[1];
    switch (arguments[0]) {
      case "HttpClient, ofLines" -> loop(httpClientLines());
      case "HttpClient, Scanner" -> loop(httpClientScanner());
      case "HttpURLConnection" -> loop(Client::urlConnection);
      case "java.net.http.WebSocket" -> loop(httpClientWebSocket());
      case "okhttp-sse" -> loop(okHttpSse(okHttp(null)));
      case "okhttp-sse, readTimeout" -> loop(okHttpSse(okHttp(Duration.ZERO)));
      case "okhttp WebSocket" -> loop(okHttpWebSocket());
      case "okhttp-eventsource" -> launchDarkly(ConnectStrategy.http(sseUri()));
      case "okhttp-eventsource, readTimeout" ->
          launchDarkly(ConnectStrategy.http(sseUri()).readTimeout(45, TimeUnit.SECONDS));
      case "Java-WebSocket" -> loop(Client::javaWebSocket);
      case "jetty-websocket" -> loop(jetty());
      case "nv-websocket-client" -> loop(Client::nvWebSocket);
      default -> throw new IllegalArgumentException("unknown client: " + arguments[0]);
    }
  }
}
