//! The server as a service of systemd.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Kind};
use crate::progress::Line;

const NAME: &str = "sandforge.service";
/// A unit that does not begin so is somebody else's.
const MARK: &str =
    "# Made by `sandforge serve --install-service`; `--uninstall-service` removes it.";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    User,
    System,
}

impl Scope {
    fn directory(self) -> Result<PathBuf, Failure> {
        if self == Self::System {
            return Ok("/etc/systemd/system".into());
        }
        let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let base = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config")));
        base.map(|base| base.join("systemd/user")).ok_or_else(|| {
            Failure::usage("there is no place for a service: set XDG_CONFIG_HOME or HOME")
        })
    }

    fn systemctl(self, arguments: &[&str]) -> std::io::Result<bool> {
        let mut command = Command::new("systemctl");
        if self == Self::User {
            command.arg("--user");
        }
        Ok(command.args(arguments).status()?.success())
    }
}

/// Writes the unit, with these arguments of ours but for the one that installs it, and starts it.
pub(crate) fn install(
    scope: Scope,
    arguments: impl Iterator<Item = OsString>,
    line: &mut Line,
) -> Result<u8, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed("cannot find this program").because(&error))?;
    let unit = unit(scope, &program, &kept(arguments))?;
    let directory = scope.directory()?;
    let path = directory.join(NAME);
    check_ours(&path)?;
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot write {path:?}")).because(&error);
    fs::create_dir_all(&directory).map_err(failed)?;
    fs::write(&path, unit).map_err(failed)?;
    line.notice(&format!("{} is written", path.display()));
    let started = scope
        .systemctl(&["daemon-reload"])
        .and_then(|reloaded| Ok(reloaded && scope.systemctl(&["enable", "--now", NAME])?));
    match started {
        Ok(true) => Ok(0),
        Ok(false) => Err(Failure::failed("systemctl could not start the service")
            .help("`journalctl --user -u sandforge` says why; without --user for the computer's")),
        Err(error) => Err(Failure::new(Kind::Unavailable, "cannot call systemctl")
            .because(&error)
            .help("where systemd runs: systemctl [--user] enable --now sandforge.service")),
    }
}

/// Stops the service and removes its unit.
pub(crate) fn uninstall(scope: Scope, line: &mut Line) -> Result<u8, Failure> {
    let path = scope.directory()?.join(NAME);
    if !check_ours(&path)? {
        return Err(Failure::new(Kind::NotFound, format!("there is no {}", path.display())));
    }
    // It may not run, and systemd may not either.
    let _ = scope.systemctl(&["disable", "--now", NAME]);
    fs::remove_file(&path)
        .map_err(|error| Failure::failed(format!("cannot remove {path:?}")).because(&error))?;
    let _ = scope.systemctl(&["daemon-reload"]);
    line.notice(&format!("{} is removed", path.display()));
    Ok(0)
}

/// Whether a unit of ours is there; one of somebody else's is an error.
fn check_ours(path: &Path) -> Result<bool, Failure> {
    match fs::read_to_string(path) {
        Ok(unit) if unit.starts_with(MARK) => Ok(true),
        Ok(_) => Err(Failure::failed(format!("{path:?} is not from this program"))
            .help("move it away first")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::failed(format!("cannot read {path:?}")).because(&error)),
    }
}

/// Our own arguments without `--install-service` and its value.
fn kept(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--install-service" {
            arguments.next_if(|next| next == "user" || next == "system");
        } else if !argument.as_bytes().starts_with(b"--install-service=") {
            kept.push(argument);
        }
    }
    kept
}

/// The unit. Ending the service ends the server alone: its sandboxes go on, and the next one
/// takes them up.
fn unit(scope: Scope, program: &Path, arguments: &[OsString]) -> Result<String, Failure> {
    let mut start = quoted(program.as_os_str())?;
    for argument in arguments {
        start.push(' ');
        start.push_str(&quoted(argument)?);
    }
    let target = match scope {
        Scope::User => "default.target",
        Scope::System => "multi-user.target",
    };
    Ok(format!(
        "{MARK}
[Unit]
Description=Sandforge
After=network.target

[Service]
Type=notify
ExecStart={start}
Restart=on-failure
WatchdogSec=30
KillMode=process
TimeoutStopSec=60
LimitNOFILE=65536
Delegate=yes

[Install]
WantedBy={target}
"
    ))
}

/// One argument as systemd reads it.
fn quoted(argument: &OsStr) -> Result<String, Failure> {
    let text = argument.to_str().filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| {
        Failure::usage(format!("{argument:?} cannot be in a service: it is not plain text"))
    })?;
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '%' | '$' => out.extend([character, character]),
            _ => out.push(character),
        }
    }
    out.push('"');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_flag_that_installs_is_not_in_the_unit() {
        let given = ["serve", "--install-service", "system", "--listen", "none"];
        assert_eq!(kept(words(&given).into_iter()), words(&["serve", "--listen", "none"]));
        let given = ["serve", "--install-service=user"];
        assert_eq!(kept(words(&given).into_iter()), words(&["serve"]));
        let given = ["serve", "--install-service", "--listen", "none"];
        assert_eq!(kept(words(&given).into_iter()), words(&["serve", "--listen", "none"]));
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let start = |argument: &str| quoted(OsStr::new(argument)).unwrap();
        assert_eq!(start("a b"), "\"a b\"");
        assert_eq!(start("50%$X\"\\"), "\"50%%$$X\\\"\\\\\"");
        assert!(quoted(OsStr::new("a\nExecStart=evil")).is_err());
    }

    #[test]
    fn the_unit_says_when_it_is_ready_and_leaves_the_sandboxes_alone() {
        let unit = unit(Scope::User, Path::new("/usr/bin/sandforge"), &words(&["serve"])).unwrap();
        assert!(unit.starts_with(MARK));
        for line in [
            "Type=notify",
            "KillMode=process",
            "WatchdogSec=30",
            "ExecStart=\"/usr/bin/sandforge\" \"serve\"",
            "WantedBy=default.target",
        ] {
            assert!(unit.lines().any(|one| one == line), "{line}");
        }
    }
}
