//! Bad input of telemetry (docs/protocol.md#post-telemetry). Each case gets its status and its violations; nothing is stored, nothing is sent.

use serde_json::{Value, json};

use super::{body, create_pod, path, send, stored};
use crate::support::{
    http_client::{self, WsClient},
    sim_cluster::SimCluster,
};

/// Path, headers, and status and code of the answer.
type Request<'a> = (String, Vec<(&'a str, &'a str)>, u16, &'a str);

/// A change of a valid body: pointer, value (`None` removes it), and the paths of the violations.
type Change = (&'static str, Option<Value>, &'static [&'static str]);

const MAX_INTEGER: u64 = (1 << 53) - 1;

fn changes() -> Vec<Change> {
    let mut changes: Vec<Change> = vec![
        ("/region", None, &["region"]),
        ("/region", Some(json!(1)), &["region"]),
        ("/region", Some(json!(true)), &["region"]),
        ("/region", Some(json!([])), &["region"]),
        ("/region", Some(json!({})), &["region"]),
        ("/region", Some(json!("x".repeat(17))), &["region"]),
        ("/region", Some(json!("x".repeat(100_000))), &["region"]),
        ("/metrics", None, &["metrics"]),
        ("/metrics", Some(Value::Null), &["metrics"]),
        ("/metrics", Some(json!([])), &["metrics"]),
        ("/metrics", Some(json!("metrics")), &["metrics"]),
        ("/requests", Some(Value::Null), &["requests"]),
        ("/requests", Some(json!({})), &["requests"]),
        ("/requests", Some(json!("x")), &["requests"]),
        ("/requests", Some(json!(vec![json!({}); 201])), &["requests"]),
        ("/requests", Some(json!([1, {}, null])), &["requests[0]", "requests[2]"]),
        ("/requests", Some(json!([[], "x"])), &["requests[0]", "requests[1]"]),
    ];
    let keys = [
        ("/metrics/ttl", &["metrics.ttl"] as &'static [&'static str], true),
        ("/metrics/opn", &["metrics.opn"], true),
        ("/metrics/requests", &["metrics.requests"], true),
        ("/metrics/errors", &["metrics.errors"], true),
        ("/metrics/bytes", &["metrics.bytes"], true),
        ("/metrics/rt1Ms", &["metrics.rt1Ms"], false),
        ("/metrics/rt5Ms", &["metrics.rt5Ms"], false),
        ("/metrics/p50Ms", &["metrics.p50Ms"], false),
        ("/metrics/p90Ms", &["metrics.p90Ms"], false),
    ];
    for (pointer, violations, is_integer) in keys {
        for value in [None, Some(json!(-1)), Some(json!("1")), Some(json!(true)), Some(json!([1])), Some(json!({}))] {
            changes.push((pointer, value, violations));
        }
        if is_integer {
            for value in [Value::Null, json!(0.5), json!(MAX_INTEGER + 1), json!(1e300), json!(-0.5)] {
                changes.push((pointer, Some(value), violations));
            }
        }
    }
    changes
}

/// Sets or removes the value of a pointer.
fn changed((pointer, value, _): &Change) -> Value {
    let mut body = body();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => drop(parent.insert(key.to_owned(), value.clone())),
        None => drop(parent.remove(key)),
    }
    body
}

#[tokio::test]
async fn every_bad_input_gets_its_status_and_changes_nothing() {
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a", "alice");
    let bridge = cluster.bridge(&[]).await;
    let mut stream = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=telemetry").await;
    let json_type = ("Content-Type", "application/json");
    let mut cases = 0;
    for change in changes() {
        let text = changed(&change).to_string();
        let answer = send(bridge.address, &path(&uid), &[json_type], text.as_bytes()).await;
        let error = answer.json();
        let short = text.chars().take(300).collect::<String>();
        assert_eq!((answer.status, &error["code"]), (422, &json!("INVALID_INPUT")), "{short}: {error}");
        let violations = error["details"]["violations"].as_array().unwrap();
        let paths: Vec<_> = violations.iter().map(|violation| violation["path"].as_str().unwrap()).collect();
        assert_eq!(paths, change.2, "{short}");
        assert!(answer.body.len() < 2_000 && error["message"] == error["error"], "{error}");
        cases += 1;
    }

    // Bodies that are text of this form: status, and the paths of the violations.
    let valid = body().to_string();
    let region = |region: &str| format!(r#"{{"region":{region},"metrics":{}}}"#, body()["metrics"]);
    let all_wrong = r#"{"region":1,"metrics":{"ttl":-1,"opn":-1,"rt1Ms":-1,"rt5Ms":-1,"p50Ms":-1,"p90Ms":-1,"requests":-1,
                       "errors":-1,"bytes":-1,"more":1},"requests":1,"other":1}"#;
    let many_unknown = format!("{{{}}}", (0..20_000).map(|n| format!(r#""k{n}":0"#)).collect::<Vec<_>>().join(","));
    let texts: Vec<(Vec<u8>, u16, usize)> = vec![
        (Vec::new(), 400, 0),
        (b" ".to_vec(), 400, 0),
        (b"{".to_vec(), 400, 0),
        (valid.as_bytes()[..valid.len() - 1].to_vec(), 400, 0),
        (format!("{valid}x").into_bytes(), 400, 0),
        (format!("{valid}{valid}").into_bytes(), 400, 0),
        (format!("\u{feff}{valid}").into_bytes(), 400, 0),
        (b"region=eu&metrics=1".to_vec(), 400, 0),
        (b"{'region':null}".to_vec(), 400, 0),
        (region("NaN").into_bytes(), 400, 0),
        (region("undefined").into_bytes(), 400, 0),
        (region("1e999").into_bytes(), 400, 0),
        (region("\"\\ud800\"").into_bytes(), 400, 0),
        ([&region("\"").as_bytes()[..10], b"\xff\xfe\"}"].concat(), 400, 0),
        (region(&format!("{}{}", "[".repeat(200), "]".repeat(200))).into_bytes(), 400, 0),
        (vec![b'['; 200_000], 400, 0),
        (b"\0\x01\x02".to_vec(), 400, 0),
        (b"null".to_vec(), 422, 1),
        (b"7".to_vec(), 422, 1),
        (b"\"text\"".to_vec(), 422, 1),
        (b"[]".to_vec(), 422, 1),
        (b"{}".to_vec(), 422, 2),
        (region("null,\"region\":null").into_bytes(), 422, 1),
        (region("null,\"extra\":1").into_bytes(), 422, 1),
        (region("null,\"Region\":null").into_bytes(), 422, 1),
        (br#"{"region":null,"metrics":{}}"#.to_vec(), 422, 9),
        (all_wrong.as_bytes().to_vec(), 422, 13),
        (many_unknown.into_bytes(), 422, 500),
        (vec![b' '; (256 << 10) + 1], 413, 0),
        (vec![b'x'; 1 << 20], 413, 0),
    ];
    for (text, status, violations) in texts {
        let answer = send(bridge.address, &path(&uid), &[json_type], &text).await;
        let short = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
        assert_eq!(answer.status, status, "{short}: {}", answer.body);
        let found = answer.json()["details"]["violations"].as_array().map_or(0, Vec::len);
        assert_eq!(found, violations, "{short}: {}", answer.body);
        assert!(answer.body.len() < 200_000);
        cases += 1;
    }

    // Headers, paths and parameters: code and status of a post with a valid body.
    let (content, accept, encoding) = ("Content-Type", "Accept", "Content-Encoding");
    let unknown = "01234567-89ab-cdef-0123-456789abcdef";
    let upper = uid.to_uppercase();
    let requests: Vec<Request<'_>> = vec![
        (path(&uid), vec![], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![(content, "text/plain")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![(content, "application/x-www-form-urlencoded")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![(content, "multipart/form-data; boundary=x")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![(content, "application/json; charset=latin1")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![json_type, json_type], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![json_type, (encoding, "gzip")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (path(&uid), vec![json_type, (accept, "text/html")], 406, "NOT_ACCEPTABLE"),
        (path(&uid), vec![json_type, (accept, "application/json;q=0")], 406, "NOT_ACCEPTABLE"),
        (path(&uid), vec![json_type, ("Origin", "https://elsewhere.example")], 403, "FORBIDDEN"),
        (path(&uid), vec![json_type, ("Sec-Fetch-Site", "cross-site")], 403, "FORBIDDEN"),
        (format!("{}?x=1", path(&uid)), vec![json_type], 400, "BAD_REQUEST"),
        (path("a"), vec![json_type], 400, "BAD_REQUEST"),
        (path("not-a-uuid-but-has-36-characters-xxx"), vec![json_type], 400, "BAD_REQUEST"),
        (path(&uid.replace('-', "")), vec![json_type], 400, "BAD_REQUEST"),
        (path(&format!("{{{uid}}}")), vec![json_type], 400, "BAD_REQUEST"),
        (path("..%2f..%2fetc"), vec![json_type], 400, "BAD_REQUEST"),
        (path("%ff%fe"), vec![json_type], 400, "BAD_REQUEST"),
        (path(unknown), vec![json_type], 404, "NOT_FOUND"),
        (path("00000000-0000-0000-0000-000000000000"), vec![json_type], 404, "NOT_FOUND"),
        (format!("{}/", path(&uid)), vec![json_type], 200, ""),
        ("/v1/tunnels/telemetry".to_owned(), vec![json_type], 405, "METHOD_NOT_ALLOWED"),
        ("/api/v1/telemetry".to_owned(), vec![json_type], 405, "METHOD_NOT_ALLOWED"),
        ("/v1/tunnels".to_owned(), vec![json_type], 404, "NOT_FOUND"),
        (path(&upper), vec![json_type], 200, ""),
    ];
    let mut accepted = 0;
    for (path, headers, status, code) in requests {
        let answer = send(bridge.address, &path, &headers, valid.as_bytes()).await;
        assert_eq!(answer.status, status, "{path} {headers:?}: {}", answer.body);
        if status == 200 {
            accepted += 1;
            assert_eq!(stream.event().await["tunnelId"], uid);
        } else {
            assert_eq!(answer.json()["code"], code, "{path} {headers:?}");
            cases += 1;
            assert_eq!(stored(&bridge).await.len(), usize::from(accepted > 0), "{path}");
        }
    }

    // A chunked body has no length that could be checked before.
    let chunk = format!("{:x}\r\n{}\r\n", 200 << 10, "x".repeat(200 << 10));
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        path(&uid),
        bridge.address
    );
    let answer = http_client::send_raw(bridge.address, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(http_client::parse(&String::from_utf8(answer).unwrap()).status, 413);
    cases += 1;
    assert!(cases >= 80, "{cases} cases");
    println!("{cases} bad inputs");

    let count = async |outcome: &str| {
        http_client::metric(bridge.address, &format!(r#"bridge_telemetry_posts_total{{outcome="{outcome}"}}"#)).await
    };
    assert_eq!(count("accepted").await, accepted);
    assert!(count("malformed").await > 20 && count("invalid").await > 60 && count("too_large").await == 3);
    assert_eq!(count("unknown_tunnel").await, 2);
    // The next event is that of the next valid post: nothing was sent before.
    let mut last = body();
    last["region"] = json!("last");
    assert_eq!(super::post(&bridge, &uid, &last).await.status, 200);
    assert_eq!(stream.event().await["region"], "last");
}
