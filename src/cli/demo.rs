//! demo
use super::Failure;
#[derive(Debug, clap::Args)]
pub(super) struct Demo {}
impl Demo {
    pub(super) async fn run(self) -> Result<u8, Failure> {
        Ok(0)
    }
}
