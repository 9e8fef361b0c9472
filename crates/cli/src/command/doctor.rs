//! `sandforge doctor`.

use clap::Args;
use supervisor::Doctor;

use crate::failure::Failure;
use crate::filter;

/// Say what this computer can run, and what is missing
///
/// Exit status: 0 where a machine could be started now, 1 where not.
#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl DoctorArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let supervisor = super::supervisor()?;
        let doctor = super::block_on(async { Ok(supervisor.doctor().await) })?;
        if self.json {
            super::print_json(&doctor)?;
        } else {
            super::print(&filter::plain(&described(&doctor)))?;
        }
        Ok(u8::from(!doctor.usable()))
    }
}

fn described(_: &Doctor) -> String {
    String::new() // PENDING
}
