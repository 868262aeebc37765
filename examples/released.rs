//! Prints each tenant that releases an instance: `cargo run --example released http://localhost:3000`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the output of the example")]

use boilerhouse_bridge::client::{Client, Error, Payload, Transport};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://localhost:3000".to_owned());
    let client = Client::builder(url).transport(Transport::Sse).types(["tenant.released"]).snapshot(false).build()?;
    let mut events = client.events();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Payload::TenantReleased(released) = event.payload {
                    println!("{} {}", released.time, released.tenant_id.as_deref().unwrap_or("unknown"));
                }
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}
