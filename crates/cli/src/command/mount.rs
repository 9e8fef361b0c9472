//! `sandforge mount` and `umount`: directories that come to a sandbox, and go, while it runs.

use std::ffi::OsString;

use clap::Args;
use client::api::{MountMode, MountQuery, Sandbox};

use crate::connection;
use crate::failure::Failure;
use crate::mount::{LiveArgs, Mode, Mount};

/// Share a directory live with a sandbox that runs
///
/// What either side changes, the other has, until `sandforge umount`. Tasks that run see it too.
#[derive(Args)]
pub(crate) struct MountArgs {
    /// The sandbox's name or id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,

    /// The directory, and where it is to be in the sandbox; :ro for one that stays as it is
    #[arg(value_name = "DIR:/PLACE[:ro]")]
    mount: OsString,

    #[command(flatten)]
    live: LiveArgs,

    /// Print the sandbox as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take a directory that is shared live away from a sandbox
#[derive(Args)]
pub(crate) struct UmountArgs {
    /// The sandbox's name or id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,

    /// Where it is in the sandbox
    #[arg(value_name = "/PLACE")]
    place: String,

    /// Print the sandbox as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl MountArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let mut mount = Mount::parse(&self.mount)?;
        if !matches!(mount.mode, Mode::Api(MountMode::Live | MountMode::Copy)) {
            return Err(Failure::usage("a sandbox that runs is given directories live only")
                .help("name no mode; `sandforge cp` copies a directory in"));
        }
        mount.mode = Mode::Api(MountMode::Live);
        self.live.apply(std::slice::from_mut(&mut mount))?;
        if !connection::has_server()? {
            return Err(Failure::usage(
                "a live directory ends with the process that serves it, and \
                                       this command is none that stays",
            )
            .help("start a server: sandforge serve"));
        }
        let request = mount.request()?;
        connection::ask(async |client| {
            tell(&client.attach_mount(&self.sandbox, &request).await?, self.json)
        })
    }
}

impl UmountArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let query = MountQuery { guest_path: self.place.clone() };
        connection::ask(async |client| {
            tell(&client.detach_mount(&self.sandbox, &query).await?, self.json)
        })
    }
}

fn tell(sandbox: &Sandbox, json: bool) -> Result<u8, Failure> {
    if json {
        super::print_json(sandbox)?;
    }
    Ok(0)
}
