use super::*;

fn request_info(verb: &'static str, resource: &str) -> RequestInfo {
    RequestInfo { verb, resource: resource.into(), namespace: "bh".into(), server: "https://10.0.0.1:6443".into() }
}

fn response(code: u16, body: &str, request_info: &RequestInfo) -> UpstreamError {
    UpstreamError::from_response(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), body.as_bytes(), request_info)
}

#[test]
fn response_errors_state_the_remedy() {
    let pods = request_info("watch", "pods");
    assert_eq!(
        response(403, "{}", &pods).to_string(),
        "cannot watch pods in namespace bh: 403; grant it to this account or choose another namespace with --namespace, \
         then check with its kubeconfig: `kubectl auth can-i watch pods -n bh`"
    );
    let namespace = response(403, "{}", &request_info("get", "namespaces/bh")).to_string();
    assert!(namespace.starts_with("cannot get namespaces/bh: 403;"), "{namespace}");
    assert!(
        namespace.ends_with("`kubectl auth can-i get namespaces/bh`"),
        "a Namespace is in no namespace: {namespace}"
    );
    let claims = request_info("list", "boilerhouseclaims.boilerhouse.dev");
    assert!(
        response(404, "404 page not found", &claims).to_string().contains("boilerhouse-bridge crd | kubectl apply")
    );
    assert_eq!(response(404, "{}", &request_info("get", "namespaces")), UpstreamError::NoNamespace("bh".into()));
    assert!(response(401, "", &pods).to_string().contains("https://10.0.0.1:6443"));
    assert_eq!(response(410, "", &pods), UpstreamError::Expired);
}

#[test]
fn unexpected_bodies_still_produce_an_error_with_status() {
    for body in ["", "<html>", "{\"message\":7}", "null", "{\"message\":\"boom\",\"details\":null}"] {
        assert!(
            matches!(response(500, body, &request_info("list", "pods")), UpstreamError::ErrorStatus { code: 500, .. }),
            "expected ErrorStatus for the body {body}"
        );
    }
    let UpstreamError::ErrorStatus { message, .. } =
        response(500, &format!("{{\"message\":\"{}\"}}", "ä".repeat(1000)), &request_info("list", "pods"))
    else {
        panic!("a status 500 must be an ErrorStatus")
    };
    assert!(message.len() <= MAX_MESSAGE + 2);
}

#[test]
fn retry_after_is_read_from_header_or_body() {
    let pods = request_info("list", "pods");
    let throttled =
        |code, seconds: Option<u64>| UpstreamError::Throttled { code, retry_after: seconds.map(Duration::from_secs) };
    assert_eq!(response(429, "", &pods), throttled(429, None));
    assert_eq!(response(429, r#"{"details":{"retryAfterSeconds":3}}"#, &pods), throttled(429, Some(3)));
    let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
    for code in [429, 503, 409] {
        let status = StatusCode::from_u16(code).unwrap();
        assert_eq!(UpstreamError::from_response(status, &headers, b"", &pods), throttled(code, Some(7)));
    }
}

#[test]
fn nested_causes_are_classified() {
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let nested = kube::Error::Service(Box::new(io::Error::other(kube::Error::ReadEvents(refused))));
    assert_eq!(
        UpstreamError::from_client_error(&nested, &request_info("list", "pods")),
        UpstreamError::ConnectionRefused { server: "https://10.0.0.1:6443".into() }
    );
    let tls = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError));
    assert!(matches!(
        UpstreamError::from_client_error(&kube::Error::ReadEvents(tls), &request_info("list", "pods")),
        UpstreamError::Tls { .. }
    ));
}

#[test]
fn reason_contains_no_address() {
    let server: Arc<str> = "https://10.0.0.1:6443".into();
    for error in [
        UpstreamError::ConnectionRefused { server: server.clone() },
        UpstreamError::Unreachable { server: server.clone(), detail: "x".into() },
        UpstreamError::Unauthorized { server },
        UpstreamError::Forbidden(request_info("list", "pods")),
    ] {
        let reason = error.reason();
        assert!(!reason.contains("10.0.0.1"), "the reason must not contain an address: {reason}");
    }
}

#[test]
fn label_is_the_reason_in_snake_case_and_listed() {
    let server: Arc<str> = "https://10.0.0.1:6443".into();
    let info = request_info("list", "pods");
    let errors = [
        UpstreamError::ConnectionRefused { server: server.clone() },
        UpstreamError::Unreachable { server: server.clone(), detail: String::new() },
        UpstreamError::Tls { server: server.clone(), detail: String::new() },
        UpstreamError::Credentials(String::new()),
        UpstreamError::Unauthorized { server },
        UpstreamError::Forbidden(info.clone()),
        UpstreamError::NoNamespace("bh".into()),
        UpstreamError::NoCrd,
        UpstreamError::Expired,
        UpstreamError::Throttled { code: 429, retry_after: None },
        UpstreamError::ErrorStatus { code: 500, message: String::new(), request_info: info.clone() },
        UpstreamError::WatchError { code: 500, message: String::new() },
        UpstreamError::ListTooLarge { excess: String::new(), request_info: info.clone() },
        UpstreamError::Timeout { request_info: info, limit: Duration::from_secs(1) },
        UpstreamError::WatchOverdue,
        UpstreamError::WatchEnded,
        UpstreamError::ConnectionLost(String::new()),
        UpstreamError::Decode(String::new()),
        UpstreamError::VersionWentBack { known: 2, now: 1 },
    ];
    assert_eq!(errors.each_ref().map(UpstreamError::label), UpstreamError::LABELS);
    for error in errors {
        let expected = error.reason().replace("no BoilerhouseClaim resource", "no crd").replace(' ', "_");
        assert_eq!(error.label(), expected, "of {error:?}");
    }
}
