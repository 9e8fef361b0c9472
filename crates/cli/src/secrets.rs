//! How secrets are kept by a server of this user's, and which services there are.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ::secrets::{Options, Passphrase, Purpose};
use fleet::paths;
use services::Catalogue;

use crate::connection::variable;
use crate::failure::{Failure, Kind};
use crate::prompt;

/// Where they go, if not where we choose.
const STORE: &str = "SANDFORGE_SECRETS_STORE";
/// The file that has the passphrase.
const PASSPHRASE_FILE: &str = "SANDFORGE_SECRETS_PASSPHRASE_FILE";
/// Longest file of a service; the catalogue has a bound of its own.
const MAX_SERVICE: u64 = 1 << 20;

/// As the environment says. Whoever `asks` has somebody at a terminal.
pub(crate) fn options(asks: bool) -> Result<Options, Failure> {
    let place =
        match variable(STORE)?.as_deref() {
            None | Some("auto") => None,
            Some(text) => Some(text.parse().map_err(|error| {
                Failure::usage(format!("{STORE} cannot be used")).because(&error)
            })?),
        };
    let passphrase = match std::env::var_os(PASSPHRASE_FILE).filter(|path| !path.is_empty()) {
        Some(path) => Passphrase::File(path.into()),
        None if asks => Passphrase::Ask(Arc::new(passphrase)),
        None => Passphrase::None,
    };
    Ok(Options { place, passphrase, ..Options::default() })
}

fn passphrase(purpose: Purpose) -> io::Result<wire::text::Secret> {
    let once = prompt::secret(match purpose {
        Purpose::New => "A passphrase for your secrets",
        Purpose::Open => "The passphrase of your secrets",
    })?;
    if purpose == Purpose::New && prompt::secret("The same again")? != once {
        return Err(io::Error::other("they differ"));
    }
    Ok(once)
}

/// The services that come with this program, and the user's own.
pub(crate) fn catalogue() -> Result<Catalogue, Failure> {
    let mut catalogue = Catalogue::built_in();
    let Ok(directory) = paths::config().map(|config| config.join("services")) else {
        return Ok(catalogue);
    };
    let failed = |path: &PathBuf, error: &io::Error| {
        Failure::failed(format!("cannot read {path:?}")).because(error)
    };
    let mut files = Vec::new();
    match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&directory, &error)),
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|error| failed(&directory, &error))?.path();
                if path.extension() == Some(OsStr::new("toml")) {
                    files.push(path);
                }
            }
        }
    }
    // The same whatever order the directory has them in.
    files.sort();
    for path in files {
        let size = fs::metadata(&path).map_err(|error| failed(&path, &error))?.len();
        if size > MAX_SERVICE {
            return Err(Failure::usage(format!("{path:?} is too long for a file of a service")));
        }
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        catalogue = catalogue
            .with_file(&path.to_string_lossy(), &text)
            .map_err(|error| Failure::from_error(Kind::Usage, &error))?;
    }
    Ok(catalogue)
}
