//! One connection to the broker, for `doctor` (docs/protocol.md#doctor).

use rumqttc::v5::{
    AsyncClient, Event,
    mqttbytes::{
        QoS,
        v5::{Filter, Packet, SubscribeReasonCode},
    },
};
use tokio::task::spawn_blocking;

use super::connection::{Config, REQUESTS, options, reason};
use crate::broker::MAX_REASON_CHARS;

/// Connects, subscribes to the topics, and disconnects. The caller limits the time. No message is taken away from a bridge:
/// a shared subscription (`$share/<group>/<topic>`) is tried without its group.
///
/// # Errors
/// Why the broker cannot be read, in words for operators.
pub async fn check(config: &Config) -> Result<(), String> {
    let of_try = config.clone();
    let options = spawn_blocking(move || options(&of_try)).await.map_err(|error| error.to_string())??;
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    let topics: Vec<&str> = config.topics.iter().map(|topic| without_group(topic)).collect();
    loop {
        let event = events.poll().await;
        match event.map_err(|error| reason(error).chars().take(MAX_REASON_CHARS).collect::<String>())? {
            Event::Incoming(Packet::ConnAck(_)) => {
                let filters = topics.iter().map(|topic| Filter::new(*topic, QoS::AtMostOnce));
                client.try_subscribe_many(filters).map_err(|error| error.to_string())?;
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                let mut answers = answer.return_codes.iter().zip(&topics);
                let refused = answers.find(|(code, _)| !matches!(code, SubscribeReasonCode::Success(_)));
                if let Some((code, topic)) = refused {
                    return Err(format!("the broker refuses the subscription to '{topic}': {code:?}"));
                }
                // The broker then does not log a lost connection. If that fails, the check has passed as well.
                if client.try_disconnect().is_ok() {
                    let _ = events.poll().await;
                }
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Returns the topic filter of a shared subscription, or the filter itself.
fn without_group(topic: &str) -> &str {
    topic.strip_prefix("$share/").and_then(|shared| shared.split_once('/')).map_or(topic, |(_, topic)| topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_subscriptions_are_tried_without_their_group() {
        assert_eq!(without_group("$share/g/a/#"), "a/#");
        assert_eq!(without_group("$share/g//a"), "/a");
        assert_eq!(without_group("a/$share/b"), "a/$share/b");
    }
}
