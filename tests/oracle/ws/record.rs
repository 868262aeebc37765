//! The record of one `/ws` connection.

use boilerhouse_bridge::event::{PerResource, Resource};
use boilerhouse_bridge::wire::CloseReason;
use serde::{Deserialize, Deserializer, de::Error};

use crate::oracle::recording::RecordedResponse;
use crate::oracle::transitions::Transition;

/// One message of `/ws`. A key that is not in docs/protocol.md#boilerhouse-stream is an error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WsEvent {
    pub(crate) r#type: WsEventType,
    pub(crate) name: String,
    pub(crate) phase: Option<String>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) workload_ref: Option<String>,
    pub(crate) source: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WsEventType {
    /// `instance.state`
    State,
    Transition(Transition),
}

impl<'de> Deserialize<'de> for WsEventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WsEventType, D::Error> {
        let name = String::deserialize(deserializer)?;
        let transitions = [Transition::Ready, Transition::Claimed, Transition::Released];
        let transition = transitions.into_iter().find(|transition| transition.event_type() == name);
        match transition {
            Some(transition) => Ok(WsEventType::Transition(transition)),
            None if name == "instance.state" => Ok(WsEventType::State),
            None => Err(D::Error::custom(format!("unknown event type {name}"))),
        }
    }
}

impl WsEventType {
    pub(crate) fn resource(self) -> Resource {
        match self {
            WsEventType::State | WsEventType::Transition(Transition::Ready) => Resource::Pods,
            WsEventType::Transition(Transition::Claimed | Transition::Released) => Resource::Claims,
        }
    }
}

/// The watchers that fed the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WatchMode {
    /// The hub.
    Shared,
    /// Dedicated watchers.
    Dedicated,
}

/// How the connection started, and how many responses its watchers had received by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// `?snapshot=none`
    Live(PerResource<usize>),
    Burst(PerResource<usize>),
}

impl Start {
    pub(crate) fn received(self) -> PerResource<usize> {
        let (Start::Live(received) | Start::Burst(received)) = self;
        received
    }
}

/// How the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is open.
    Open,
    /// The client disconnected.
    Disconnected,
    /// The bridge closed it.
    Closed(CloseReason),
}

/// One connection from its first message to its last.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) mode: WatchMode,
    pub(crate) responses: PerResource<Vec<RecordedResponse>>,
    pub(crate) start: Start,
    pub(crate) received: Vec<WsEvent>,
    pub(crate) end: End,
}
