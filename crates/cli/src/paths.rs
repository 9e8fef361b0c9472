//! Where things are on the host: one function each, and nowhere else.

use std::ffi::OsString;
use std::path::PathBuf;

const NAME: &str = "sandforge";

/// There is no place for something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no directory for {what}: set {variable} or HOME")]
pub(crate) struct NoPlace {
    what: &'static str,
    variable: &'static str,
}

fn set(variable: &str) -> Option<OsString> {
    std::env::var_os(variable).filter(|value| !value.is_empty())
}

fn resolve(
    what: &'static str,
    variable: &'static str,
    xdg: &str,
    below_home: &str,
    get: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, NoPlace> {
    if let Some(own) = get(variable) {
        return Ok(own.into());
    }
    // The base directory specification has relative ones ignored.
    if let Some(base) = get(xdg).map(PathBuf::from).filter(|base| base.is_absolute()) {
        return Ok(base.join(NAME));
    }
    match get("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(below_home).join(NAME)),
        None => Err(NoPlace { what, variable }),
    }
}

/// The state, keys, certificates and instances: `$SANDFORGE_DATA_DIR`, or `sandforge` in
/// `$XDG_DATA_HOME` or `~/.local/share`.
///
/// # Errors
/// `NoPlace` where none of them is set.
pub(crate) fn data() -> Result<PathBuf, NoPlace> {
    resolve("its data", "SANDFORGE_DATA_DIR", "XDG_DATA_HOME", ".local/share", set)
}

/// Sockets and kept machines: `$SANDFORGE_RUNTIME_DIR`, or `sandforge` in `$XDG_RUNTIME_DIR`, or
/// one of the user's own in the directory for temporary files.
pub(crate) fn runtime() -> PathBuf {
    if let Some(own) = set("SANDFORGE_RUNTIME_DIR") {
        return own.into();
    }
    match set("XDG_RUNTIME_DIR") {
        Some(runtime) => PathBuf::from(runtime).join(NAME),
        None => {
            let uid = rustix::process::getuid().as_raw();
            std::env::temp_dir().join(format!("{NAME}-{uid}"))
        }
    }
}

/// The socket of a server that runs, in [`runtime`].
pub(crate) fn socket() -> PathBuf {
    runtime().join("api.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_with(variables: &[(&str, &str)]) -> Result<PathBuf, NoPlace> {
        let get = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        resolve("its data", "SANDFORGE_DATA_DIR", "XDG_DATA_HOME", ".local/share", get)
    }

    #[test]
    fn the_most_particular_variable_counts() {
        let all = [("SANDFORGE_DATA_DIR", "/d"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(data_with(&all), Ok("/d".into()));
        assert_eq!(data_with(&all[1..]), Ok("/x/sandforge".into()));
        assert_eq!(data_with(&all[2..]), Ok("/h/.local/share/sandforge".into()));
        assert_eq!(
            data_with(&[("XDG_DATA_HOME", "relative"), ("HOME", "/h")]),
            Ok("/h/.local/share/sandforge".into())
        );
        let error = data_with(&[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no directory for its data: set SANDFORGE_DATA_DIR or HOME"
        );
    }
}
