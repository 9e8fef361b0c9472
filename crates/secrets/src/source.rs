//! Getting the value of a secret, wherever it comes from.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::Error;
use crate::record::{MAX_SECRET, Source, check_value};

/// How often a command that has closed its output is asked whether it has ended.
const POLL: Duration = Duration::from_millis(2);

/// The value, checked.
pub(crate) fn value(
    service: &str,
    source: &Source,
    timeout: Duration,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Secret, Error> {
    match source {
        Source::Value(secret) => Ok(secret.clone()),
        Source::Env(variable) => match environment(variable) {
            Some(value) => checked(service, Zeroizing::new(value.into_vec())),
            None => {
                let (service, variable) = (service.to_owned(), variable.clone());
                Err(Error::NoVariable { service, variable })
            }
        },
        Source::Command(command) => checked(service, output(service, command, timeout)?),
    }
}

/// Without the line break at its end.
fn checked(service: &str, mut bytes: Zeroizing<Vec<u8>>) -> Result<Secret, Error> {
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    check_value(&bytes)?;
    let problem =
        || Error::Command { service: service.to_owned(), problem: "printed a NUL".to_owned() };
    Secret::new(std::mem::take(&mut *bytes)).map_err(|_| problem())
}

/// What a command prints. Its complaints are not kept: they may have the secret in them.
fn output(service: &str, command: &str, timeout: Duration) -> Result<Zeroizing<Vec<u8>>, Error> {
    let problem = |problem: String| Error::Command { service: service.to_owned(), problem };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| problem(format!("could not be started: {error}")))?;
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::sync_channel(1);
    // Ends with the command's group, which is killed below at the latest.
    thread::spawn(move || {
        let most = MAX_SECRET + 2;
        let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
        let read = stdout.take(most as u64 + 1).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    let deadline = Instant::now() + timeout;
    let read = receiver.recv_timeout(timeout);
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("it is a process");
    let in_time = loop {
        if read.is_ok() && has_ended(group) {
            break true;
        }
        if Instant::now() >= deadline || is_too_long(&read) {
            break false;
        }
        thread::sleep(POLL);
    };
    // Whatever it left behind goes too, and the reader with it. Not waited for yet, its number is no
    // other's.
    let _ = kill_process_group(group, Signal::KILL);
    let status =
        child.wait().map_err(|error| problem(format!("could not be waited for: {error}")))?;
    if is_too_long(&read) {
        return Err(problem(format!("printed more than {MAX_SECRET} bytes")));
    }
    if !in_time {
        return Err(Error::CommandTimeout { service: service.to_owned(), limit: timeout });
    }
    if !status.success() {
        return Err(problem(format!("failed ({status})")));
    }
    match read {
        Ok(Ok(bytes)) if bytes.is_empty() => Err(problem("printed nothing".to_owned())),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(problem(format!("could not be read: {error}"))),
        Err(_) => Err(problem("could not be read".to_owned())),
    }
}

fn has_ended(process: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(process), options), Ok(None))
}

type Read = Result<std::io::Result<Zeroizing<Vec<u8>>>, mpsc::RecvTimeoutError>;

fn is_too_long(read: &Read) -> bool {
    matches!(read, Ok(Ok(bytes)) if bytes.len() > MAX_SECRET + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Result<Secret, Error> {
        let source = Source::Command(command.to_owned());
        value("github", &source, Duration::from_secs(20), &|_| None)
    }

    #[test]
    fn the_output_of_a_command_is_the_secret_without_its_line_break() {
        assert_eq!(of("echo ghp_0123456789").unwrap().expose(), b"ghp_0123456789");
        assert_eq!(of("printf 'ghp_0123456789\\r\\n'").unwrap().expose(), b"ghp_0123456789");
    }

    #[test]
    fn a_command_that_fails_or_says_nothing_gives_no_secret_and_is_not_quoted() {
        for (command, part) in [
            ("echo ghp_0123456789; echo ghp_0123456789 >&2; exit 3", "exit status: 3"),
            ("true", "printed nothing"),
            ("yes ghp_0123456789", "printed more than"),
            ("printf 'ghp_0123456789\\nghp_0123456789'", "line break"),
            ("/nowhere/at/all", "exit status: 127"),
        ] {
            let error = of(command).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("ghp_"), "{error}");
        }
    }

    #[test]
    fn a_command_has_its_time_and_so_has_what_it_started() {
        let begun = Instant::now();
        let limit = Duration::from_millis(200);
        for command in [
            "sleep 60",
            "echo ghp_0123456789; exec >&-; sleep 60",
            "sleep 60 & echo ghp_0123456789",
        ] {
            let source = Source::Command(command.to_owned());
            let error = value("github", &source, limit, &|_| None).unwrap_err();
            assert!(matches!(error, Error::CommandTimeout { .. }), "{command}: {error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_variable_is_read_when_it_is_needed() {
        let source = Source::Env("GH".to_owned());
        let is = |name: &str| (name == "GH").then(|| OsString::from("ghp_0123456789"));
        assert_eq!(value("github", &source, POLL, &is).unwrap().expose(), b"ghp_0123456789");
        let error = value("github", &source, POLL, &|_| None).unwrap_err().to_string();
        assert!(error.contains("the variable GH, which is not set"), "{error}");
    }
}
