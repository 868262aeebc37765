//! Who may connect, what they see, how much (protocol.md sections 6 and 7).

mod scope;
