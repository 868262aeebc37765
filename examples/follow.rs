//! Holds the state of a bridge and prints its size after each change: `cargo run --example follow http://localhost:3000`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the output of the example")]

use boilerhouse_bridge::client::{Client, Error, State};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://localhost:3000".to_owned());
    let mut events = Client::builder(url).build()?.events();
    let mut state = State::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if state.apply(&event) && state.is_complete() {
                    println!("{} instances, {} claims", state.instances().len(), state.claims().len());
                }
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                state.connection_ended();
                eprintln!("{error}");
            }
        }
    }
    Ok(())
}
