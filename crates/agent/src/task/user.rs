//! Who a task runs as, by the guest's own `/etc/passwd` and `/etc/group`.
//!
//! Both files belong to whoever was root in the sandbox: they are read inside of the task's root,
//! up to a bound, and only where they are regular files.

use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};
use wire::op::{ErrorCode, OpError};

/// The task's user namespace maps these ids and no others. The next one, the last of 16 bits, which
/// means "none" to old calls and so owns nothing, is left for the task's init.
pub(super) const IDS: u32 = 65_535;
/// The user of a request that names none.
const DEFAULT_ID: u32 = 1000;
/// A hostile file must not fill the memory of the task before its command runs.
const FILE_MAX: u64 = 1 << 20;
/// More than any real user has; the kernel's bound is 65536.
const GROUPS_MAX: usize = 256;

/// An identity to run as.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) name: Vec<u8>,
    /// As in the passwd file; absent for a uid that it does not have.
    pub(super) home: Option<Vec<u8>>,
    pub(super) shell: Vec<u8>,
}

impl User {
    /// Finds `name`, `uid`, or either with `:group`; uid 1000 where nothing is asked for.
    pub(crate) fn find(request: Option<&[u8]>) -> Result<Self, OpError> {
        Self::find_in(request, &contents("/etc/passwd")?, &contents("/etc/group")?)
    }

    fn find_in(request: Option<&[u8]>, passwd: &[u8], group: &[u8]) -> Result<Self, OpError> {
        let Some(request) = request else {
            let mut user = by_id(DEFAULT_ID, passwd);
            user.groups = groups_of(&user, group);
            return Ok(user);
        };
        let (who, of_group) = match request.iter().position(|byte| *byte == b':') {
            Some(colon) => (&request[..colon], Some(&request[colon + 1..])),
            None => (request, None),
        };
        let mut user = match number(who) {
            Some(uid) => by_id(in_range(uid, request)?, passwd),
            None => by_name(who, passwd).ok_or_else(|| {
                let who = String::from_utf8_lossy(who);
                OpError::new(
                    ErrorCode::NotFound,
                    format!("there is no user '{who}' in the image's /etc/passwd"),
                )
            })?,
        };
        match of_group {
            // A group that is named is the only one.
            Some(name) => user.gid = group_id(name, group, request)?,
            None => user.groups = groups_of(&user, group),
        }
        Ok(user)
    }
}

fn by_name(name: &[u8], passwd: &[u8]) -> Option<User> {
    lines(passwd).find_map(|line| (line.split(colon).next()? == name).then(|| user(line))?)
}

/// A uid without an entry is a user all the same, with a group of the same number.
fn by_id(uid: u32, passwd: &[u8]) -> User {
    lines(passwd)
        .find_map(|line| (number(line.split(colon).nth(2)?)? == uid).then(|| user(line))?)
        .unwrap_or_else(|| User {
            uid,
            gid: uid,
            groups: Vec::new(),
            name: uid.to_string().into_bytes(),
            home: None,
            shell: b"/bin/sh".to_vec(),
        })
}

/// `name:password:uid:gid:comment:home:shell`.
fn user(line: &[u8]) -> Option<User> {
    let mut fields = line.split(colon);
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    let home = fields.nth(1)?;
    let shell = fields.next()?;
    Some(User {
        uid,
        gid,
        groups: Vec::new(),
        name: name.to_vec(),
        home: home.starts_with(b"/").then(|| home.to_vec()),
        shell: if shell.starts_with(b"/") { shell } else { b"/bin/sh" }.to_vec(),
    })
}

/// `name:password:gid:members`.
fn groups_of(user: &User, group: &[u8]) -> Vec<u32> {
    lines(group)
        .filter_map(|line| {
            let mut fields = line.split(colon).skip(2);
            let (gid, members) = (fields.next()?, fields.next()?);
            members.split(|byte| *byte == b',').find(|name| *name == user.name)?;
            id(gid).filter(|gid| *gid != user.gid)
        })
        .take(GROUPS_MAX)
        .collect()
}

fn group_id(name: &[u8], group: &[u8], request: &[u8]) -> Result<u32, OpError> {
    if let Some(gid) = number(name) {
        return in_range(gid, request);
    }
    let mut found = lines(group).filter(|line| line.split(colon).next() == Some(name));
    found.find_map(|line| id(line.split(colon).nth(2)?)).ok_or_else(|| {
        let name = String::from_utf8_lossy(name);
        OpError::new(
            ErrorCode::NotFound,
            format!("there is no group '{name}' in the image's /etc/group"),
        )
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
}

fn colon(byte: &u8) -> bool {
    *byte == b':'
}

fn id(text: &[u8]) -> Option<u32> {
    number(text).filter(|id| *id < IDS)
}

fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().or(Some(u32::MAX))
}

fn in_range(id: u32, request: &[u8]) -> Result<u32, OpError> {
    if id < IDS {
        return Ok(id);
    }
    let request = String::from_utf8_lossy(request);
    let message = format!("user '{request}': a sandbox has the ids 0 to {} only", IDS - 1);
    Err(OpError::new(ErrorCode::Invalid, message))
}

/// A file's content, nothing where there is none.
fn contents(path: &str) -> Result<Vec<u8>, OpError> {
    // NONBLOCK: a FIFO in its place must not hold the task up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(Vec::new()) };
    let file = File::from(fd);
    let failed = |reason: String| OpError::new(ErrorCode::Failed, format!("{path}: {reason}"));
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("is not a regular file".into()));
    }
    if metadata.len() > FILE_MAX {
        return Err(failed(format!("is longer than {FILE_MAX} bytes")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n\
        broken:x:zero:0::/:/bin/sh\n\
        dev:x:1000:1000:Developer,,,:/home/dev:/bin/zsh\n\
        far:x:70000:70000::/home/far:/bin/sh\n\
        relative:x:1001:50::home:\n";
    const GROUP: &[u8] = b"root:x:0:\ndev:x:1000:dev\nvideo:x:44:dev,root\nstaff:x:50:\n";

    fn find(request: &str) -> Result<User, OpError> {
        User::find_in(Some(request.as_bytes()), PASSWD, GROUP)
    }

    #[test]
    fn nothing_asked_for_is_uid_1000_with_its_home_and_groups() {
        let user = User::find_in(None, PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![44]));
        assert_eq!((user.name, user.home), (b"dev".to_vec(), Some(b"/home/dev".to_vec())));
    }

    #[test]
    fn an_image_without_uid_1000_still_has_a_user() {
        let user = User::find_in(None, b"root:x:0:0:root:/root:/bin/bash\n", b"").unwrap();
        assert_eq!((user.uid, user.gid, user.home), (1000, 1000, None));
        assert_eq!(user.name, b"1000");
    }

    #[test]
    fn names_and_numbers_find_the_same_user() {
        assert_eq!(find("root").unwrap(), find("0").unwrap());
        assert_eq!(find("dev").unwrap(), find("1000").unwrap());
    }

    #[test]
    fn a_named_group_is_the_only_one() {
        let user = find("dev:staff").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 50, vec![]));
        assert_eq!(find("0:44").unwrap().gid, 44);
    }

    #[test]
    fn unknown_names_are_told() {
        let error = find("nobody-here").unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("nobody-here"));
        assert_eq!(find("dev:nope").unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(find("").unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn ids_outside_of_the_map_are_refused_however_they_come() {
        assert_eq!(find("65535").unwrap_err().code, ErrorCode::Invalid);
        assert_eq!(find("99999999999999").unwrap_err().code, ErrorCode::Invalid);
        assert_eq!(find("dev:70000").unwrap_err().code, ErrorCode::Invalid);
        assert_eq!(find("far").unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn odd_entries_are_skipped_or_mended() {
        assert_eq!(find("broken").unwrap_err().code, ErrorCode::NotFound);
        let user = find("relative").unwrap();
        assert_eq!((user.home, user.shell), (None, b"/bin/sh".to_vec()));
    }
}
