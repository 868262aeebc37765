use super::*;

fn request(verb: &'static str, resource: &str) -> RequestInfo {
    RequestInfo { verb, resource: resource.into(), namespace: "bh".into(), server: "https://10.0.0.1:6443".into() }
}

fn answer(code: u16, body: &str, request: &RequestInfo) -> UpstreamError {
    UpstreamError::from_response(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), body.as_bytes(), request)
}

#[test]
fn response_errors_state_the_remedy() {
    let pods = request("watch", "pods");
    assert_eq!(
        answer(403, "{}", &pods).to_string(),
        "not allowed to watch pods in namespace bh: grant it to this account, then check with \
         `kubectl auth can-i watch pods -n bh`"
    );
    let claims = request("list", "boilerhouseclaims.boilerhouse.dev");
    assert!(answer(404, "404 page not found", &claims).to_string().contains("boilerhouse-bridge crd | kubectl apply"));
    assert_eq!(answer(404, "{}", &request("get", "namespaces")), UpstreamError::NoNamespace("bh".into()));
    assert!(answer(401, "", &pods).to_string().contains("https://10.0.0.1:6443"));
    assert_eq!(answer(410, "", &pods), UpstreamError::Expired);
}

#[test]
fn unexpected_bodies_still_produce_an_error_with_status() {
    for body in ["", "<html>", "{\"message\":7}", "null", "{\"message\":\"boom\",\"details\":null}"] {
        assert!(
            matches!(answer(500, body, &request("list", "pods")), UpstreamError::ErrorStatus { code: 500, .. }),
            "{body}"
        );
    }
    let UpstreamError::ErrorStatus { message, .. } =
        answer(500, &format!("{{\"message\":\"{}\"}}", "ä".repeat(1000)), &request("list", "pods"))
    else {
        panic!("an error answer")
    };
    assert!(message.len() <= MAX_MESSAGE + 2);
}

#[test]
fn retry_after_is_read_from_header_or_body() {
    let pods = request("list", "pods");
    let busy =
        |code, seconds: Option<u64>| UpstreamError::Throttled { code, retry_after: seconds.map(Duration::from_secs) };
    assert_eq!(answer(429, "", &pods), busy(429, None));
    assert_eq!(answer(429, r#"{"details":{"retryAfterSeconds":3}}"#, &pods), busy(429, Some(3)));
    let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
    for code in [429, 503, 409] {
        let status = StatusCode::from_u16(code).unwrap();
        assert_eq!(UpstreamError::from_response(status, &headers, b"", &pods), busy(code, Some(7)));
    }
}

#[test]
fn nested_causes_are_classified() {
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let nested = kube::Error::Service(Box::new(io::Error::other(kube::Error::ReadEvents(refused))));
    assert_eq!(
        UpstreamError::from_client_error(&nested, &request("list", "pods")),
        UpstreamError::ConnectionRefused { server: "https://10.0.0.1:6443".into() }
    );
    let tls = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError));
    assert!(matches!(
        UpstreamError::from_client_error(&kube::Error::ReadEvents(tls), &request("list", "pods")),
        UpstreamError::Tls { .. }
    ));
}

#[test]
fn brief_error_contains_no_address() {
    let server: Arc<str> = "https://10.0.0.1:6443".into();
    for trouble in [
        UpstreamError::ConnectionRefused { server: server.clone() },
        UpstreamError::Unreachable { server: server.clone(), detail: "x".into() },
        UpstreamError::Unauthorized { server },
        UpstreamError::Forbidden(request("list", "pods")),
    ] {
        assert!(!trouble.reason().contains("10.0.0.1"));
    }
}
