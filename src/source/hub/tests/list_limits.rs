//! Lists that exceed one of their limits (docs/limits.md#hub): the list fails with a named error, and nothing of it counts.

use super::*;
use crate::source::list_limits::ListLimits;

/// A page with one Pod, after which the API server announces another one.
fn endless_page(version: u64) -> ScriptedResponse {
    ScriptedResponse::Json(
        200,
        json!({"metadata": {"resourceVersion": "10", "continue": "token"}, "items": [pod("a", version)]}),
    )
}

/// Runs the hub against an API server whose first list ends and whose second one never does. Returns its events.
async fn events_of_endless_list(limits: ListLimits) -> (Vec<String>, usize) {
    let api = ScriptedApi::default();
    api.respond("list", list(10, &[pod("first", 5)]));
    api.respond("list", endless_page(11));
    api.respond("next page", endless_page(11));
    api.respond("watch", ended_watch([line("ERROR", &expired())]));
    let config = Config { list: limits, ..config() };
    let pages = std::cell::Cell::new(0);
    let test = async {
        api.wait_for_event(1, is_down).await;
        pages.set(api.request_count("next page"));
    };
    api.run_watch_loop(&config, test).await;
    (short_form(&api.events()), pages.get())
}

#[tokio::test(start_paused = true)]
async fn endless_list_fails_at_its_page_object_and_byte_limits() {
    let all = ListLimits::default();
    let page = pod("a", 11).to_string().len();
    for (limits, pages) in [
        (ListLimits { pages: 7, ..all }, 6),
        (ListLimits { objects: 5, ..all }, 5),
        (ListLimits { bytes: 5 * page as u64, ..all }, 4),
        (ListLimits { view_bytes: 2000, ..all }, 8),
    ] {
        let (events, read) = events_of_endless_list(limits).await;
        assert_eq!(events, ["=first5@10", "live", "down: list too large"], "of {limits:?}");
        assert!(read <= pages, "{read} further pages were read, at most {pages} expected: {limits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn endless_list_fails_at_its_time_limit() {
    let api = ScriptedApi::default();
    let config = Config { list: ListLimits { time: Duration::from_secs(45), ..ListLimits::default() }, ..config() };
    api.respond("list", endless_page(1));
    // Each page takes 20 s, which is less than `page_timeout`.
    let pages: Vec<_> = (0..3).map(|_| watch()).collect();
    let (senders, responses): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
    for response in responses {
        api.respond("next page", response);
    }
    let start = Instant::now();
    let test = async {
        let send = async {
            for (n, sender) in (1..).zip(senders) {
                api.wait_for_request("next page", n).await;
                tokio::time::sleep(Duration::from_secs(20)).await;
                let ScriptedResponse::Json(_, page) = endless_page(1) else { unreachable!() };
                // The hub no longer reads the third one.
                let _ = sender.send(Ok(Bytes::from(page.to_string()))).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = send => {}
            (at, down) = api.wait_for_event(1, is_down) => {
                assert_eq!(at - start, Duration::from_secs(45));
                assert!(matches!(down, SourceEvent::Health(_, Health::Down { reason, .. }) if &*reason == "no answer"));
            }
        }
    };
    api.run_watch_loop(&config, test).await;
}
