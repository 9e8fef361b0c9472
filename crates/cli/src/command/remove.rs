//! `sandforge rm`.

use clap::Args;

use crate::failure::Failure;

/// End machines that were kept, with all that is in them
#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Their names; `sandforge ls` lists them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl RemoveArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let supervisor = super::supervisor()?;
        super::block_on(async {
            for name in &self.names {
                supervisor.remove(name).await.map_err(|error| super::supervisor_failure(&error))?;
            }
            Ok(0)
        })
    }
}
